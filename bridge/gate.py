"""The safety gate: the last thing that a train of pulses passes on its way to a body, compiled into the loop.

`check` allows a train or refuses it with a reason, and never changes it. It allows only while the gate is armed: an
explicit, expiring act that any fault undoes (`watch`) and that only a new `arm` brings back. A gate of zeros refuses
everything. The gate reads no clock: every function is told the time, `now_ns`, in ns of the local clock.

How numbers are compared: a value equal to its limit passes. Every product and sum that stands against a limit is
rounded upwards where it is not exact, and the limit's side downwards, so that no rounding admits what the numbers as
given exceed.

Time of a train: a stimulator may begin it up to `start_within_ns` after its issue (`expires_ns` of the decision) and
no later. Against the past a train therefore counts from its issue, against the future to its latest possible end. What
is relied on beside: that a stimulator keeps to a train's period, and leaves a pulse out rather than be late with it.

Software is never the last safeguard.
"""

import math
from typing import Any

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.layout_types import Record

MAX_ELECTRODES = 32
MAX_PEERS = 8
TOTAL = MAX_ELECTRODES
"""Index of the sum over all electrodes in the fields of `_SUMS` items."""

_SUMS = (MAX_ELECTRODES + 1,)
_EACH = (MAX_ELECTRODES,)

N_BINS = 128
"""Bins of one second in which the dose of the last minute is kept; see `_minute_pc`."""

CONDITION_LATE = 1  # the tick came later than it may
CONDITION_FILLED = 2  # samples of the tick were lost and filled in
CONDITION_NONFINITE_INPUT = 4  # a sample was not finite
CONDITION_DISCONTINUITY = 8  # the grid of samples was laid anew
CONDITION_PAUSED = 16
CONDITION_SILENT = 32  # the source has stalled
CONDITION_WARMING = 64  # front end or encoder is not ready
CONDITION_NONFINITE_STATE = 128  # network or decoder
CONDITION_STOPPED = 256  # a stop was asked for: message, signal, file, key
CONDITION_IDLE = 512  # the loop turned without a tick: says nothing of late ticks
CONDITION_BOARD = 1024  # the board that is the network has not answered in time

_REASONS = (
    ("allowed", "within every limit; issued"),
    ("nonsense", "a number is not finite, has a sign it cannot have, or is beyond what any stimulator does"),
    ("electrode", "there is no electrode of this number"),
    ("not_armed", "stimulation is not armed"),
    ("expired", "the arming has run out"),
    ("heartbeat", "the operator's heartbeat was not heard in time"),
    ("peer", "a peer that must live was not heard in time"),
    ("clock", "the clock went backward, or shows no time that can be"),
    ("late", "the tick, or as many ticks in a row as end an arming, came late"),
    ("filled", "samples of the tick were lost and filled in"),
    ("nonfinite_input", "a sample of the tick was not finite"),
    ("discontinuity", "the samples do not follow on those before"),
    ("paused", "the session is paused"),
    ("silent", "the source has stalled"),
    ("warming", "front end or encoder is not ready yet"),
    ("nonfinite_state", "the network or the decoder holds a number that is not finite"),
    ("stopped", "a stop was asked for"),
    ("amplitude", "the current of a phase is over the electrode's limit"),
    ("total_amplitude", "the currents of all trains that overlap in time are over the limit together"),
    ("charge", "the charge of a phase is over the electrode's limit"),
    ("density", "the charge of a phase per area is over the electrode's limit"),
    ("shannon", "charge and charge density together are over the Shannon criterion"),
    ("balance", "the two phases do not take back each other's charge closely enough"),
    ("interphase", "the pause between the two phases is too long"),
    ("rate", "the pulses follow each other, or the train before on the same electrode, at too high a rate"),
    ("pulses", "the train has too many pulses"),
    ("duration", "the train takes too long"),
    ("overlap", "a pulse would begin before the one before it has surely ended on the same electrode"),
    ("interval", "a pulse would follow too soon after the end of the one before it on the same electrode"),
    ("compliance", "the current through the electrode's impedance needs more than the compliance voltage"),
    ("minute", "the electrode's dose of a minute would be exceeded"),
    ("total_minute", "the dose of a minute on all electrodes would be exceeded"),
    ("session", "the electrode's dose of the session would be exceeded"),
    ("total_session", "the dose of the session on all electrodes would be exceeded"),
    ("ledger", "the dose is beyond what the ledger has durably granted"),
    ("disarmed", "disarmed by command"),
    ("restored", "disarmed because a checkpoint was restored"),
    ("token", "the token of an arming must not be 0"),
    ("arming", "the arming would end before it begins, or last longer than it may"),
    ("waiting", "not all pulses before a restart are surely older than a minute yet"),
    ("program", "there is no program of this number"),
    ("board", "the board that is the network has not answered in time"),
)
REASONS = tuple(name for name, _ in _REASONS)
"""Names of the reasons, by number."""
REASON_TEXTS = tuple(text for _, text in _REASONS)
"""What each reason means, in a few words."""
N_REASONS = len(REASONS)
(
    ALLOWED,
    NONSENSE,
    ELECTRODE,
    NOT_ARMED,
    EXPIRED,
    HEARTBEAT,
    PEER,
    CLOCK,
    LATE,
    FILLED,
    NONFINITE_INPUT,
    DISCONTINUITY,
    PAUSED,
    SILENT,
    WARMING,
    NONFINITE_STATE,
    STOPPED,
    AMPLITUDE,
    TOTAL_AMPLITUDE,
    CHARGE,
    DENSITY,
    SHANNON,
    BALANCE,
    INTERPHASE,
    RATE,
    PULSES,
    DURATION,
    OVERLAP,
    INTERVAL,
    COMPLIANCE,
    MINUTE,
    TOTAL_MINUTE,
    SESSION,
    TOTAL_SESSION,
    LEDGER,
    DISARMED,
    RESTORED,
    TOKEN,
    ARMING,
    WAITING,
    PROGRAM,
    BOARD,
) = range(N_REASONS)

_TRAIN_FIELDS: list[tuple[Any, ...]] = [
    ("electrode", np.int64),  # its number, from 0
    ("amplitude_ua", np.float64),  # current of the first phase; cathodic is negative
    ("phase_us", np.float64),  # how long the first phase lasts
    ("interphase_us", np.float64),  # pause between the phases
    ("amplitude2_ua", np.float64),  # current of the second, recovering phase: of opposite sign, or 0
    ("phase2_us", np.float64),
    ("pulses", np.int64),
    ("period_us", np.float64),  # from the start of a pulse to that of the next; not read for a single pulse
    ("program", np.int64),  # where it comes from; the gate does not read it
]
TRAIN = np.dtype(_TRAIN_FIELDS, align=True)
"""A train of equal, rectangular, biphasic pulses."""

DECISION = np.dtype(
    [
        ("record", np.uint64),  # number of the TICK record that it belongs to
        ("tick", np.int64),
        ("now_ns", np.int64),
        ("id", np.int64),  # from 1, over all decisions of a session
        ("reason", np.int64),  # index into REASONS; 0 = allowed and issued
        ("mode", np.int64),  # index into stimulation.MODES
        ("delivered", np.int64),  # 1 where it is sent: it was allowed, and the mode sends
        ("cause", np.int64),  # CAUSE_* of stimulation
        *_TRAIN_FIELDS,
        ("expires_ns", np.int64),  # a stimulator begins it before or never: the gate counts on it; 0 where refused
    ],
    align=True,
)
"""What the gate decided on one train."""

GATE = np.dtype(
    [
        # limits; np.inf switches one off, except `interval_us` (0)
        ("n_electrodes", np.int64),
        ("n_peers", np.int64),
        ("sends", np.int64),  # 1: what is allowed is delivered; 0: dry run and sham, whose dose is kept apart
        ("amplitude_ua", np.float64, _EACH),
        ("charge_pc", np.float64, _EACH),  # per phase; 1 uA x 1 us = 1 pC
        ("density_uc_cm2", np.float64, _EACH),  # per phase
        ("area_um2", np.float64, _EACH),  # geometric
        ("shannon", np.float64, _EACH),  # 10^k, in uC^2/cm^2
        ("balance_pc", np.float64, _EACH),
        ("balance_fraction", np.float64, _EACH),  # of the first phase's charge
        ("interphase_us", np.float64, _EACH),
        ("rate_hz", np.float64, _EACH),
        ("pulses", np.float64, _EACH),
        ("duration_us", np.float64, _EACH),
        ("interval_us", np.float64, _EACH),
        ("impedance_kohm", np.float64, _EACH),
        ("compliance_mv", np.float64),
        ("total_amplitude_ua", np.float64),
        ("minute_pc", np.float64, _SUMS),
        ("session_pc", np.float64, _SUMS),
        ("start_within_ns", np.int64),  # a stimulator begins a train within this time of its issue, or never
        ("longest_arming_ns", np.int64),
        ("heartbeat_ns", np.int64),  # longest time between heartbeats; 0 = none is needed
        ("peer_timeout_ns", np.int64),
        ("late_ticks", np.int64),  # late ticks in a row that end an arming
        ("arm_after_ns", np.int64),  # no arming before
        # arming
        ("armed", np.int64),
        ("armed_ns", np.int64),
        ("until_ns", np.int64),
        ("token", np.int64),
        ("heartbeat_at_ns", np.int64),
        ("alive_at_ns", np.int64, (MAX_PEERS,)),
        ("last_ns", np.int64),  # latest time that was told
        ("late_run", np.int64),  # late ticks in a row so far
        ("conditions", np.int64),  # of the last `watch`, and those of the last tick that hold until the next
        ("disarm_reason", np.int64),
        ("disarmed_ns", np.int64),
        ("arms", np.int64),
        ("disarms", np.int64),
        # what is under way, and what was given
        ("busy_until_ns", np.int64, _EACH),  # latest end of the last train
        ("active_ua", np.float64, _EACH),  # greatest current of the last train
        ("bin_second", np.int64, (N_BINS,)),
        ("bins_pc", np.float64, (N_BINS, MAX_ELECTRODES + 1)),
        ("dose_pc", np.float64, _SUMS),  # delivered, over all restarts that the ledger remembers
        ("would_pc", np.float64, _SUMS),  # allowed in a mode that does not send
        ("granted_pc", np.float64, _SUMS),  # `dose_pc` may rise this far: the ledger holds it as spent already
    ],
    align=True,
)
"""Limits and state of the gate; `shape (1,)[0]` is handed to the functions."""

MAX_NS = 2**61
NEVER_NS = -(2**61)

# what no stimulator is asked for; these bounds keep all arithmetic below free of overflow and underflow
MIN_AMPLITUDE_UA, MAX_AMPLITUDE_UA = 1e-6, 1e6
MIN_PHASE_US, MAX_PHASE_US = 1e-3, 1e6
MAX_PERIOD_US = 6e7
MAX_PULSES = 1_000_000
MAX_TRAIN_US = 6e7
"""Longest train whatever the limits say, in us: the bins of the dose reach no further ahead."""
MAX_START_WITHIN_NS = 1_000_000_000
MAX_LIMIT = 1e15
"""A limit from here on is as good as infinite."""

_SECOND_NS = 1_000_000_000
_WINDOW_S = 61
_SPLIT = 134217729.0  # 2^27 + 1
_ABOVE, _BELOW = 1.0 + 2.0**-52, 1.0 - 2.0**-52
_LASTING = (  # they hold until the next tick
    CONDITION_DISCONTINUITY | CONDITION_PAUSED | CONDITION_NONFINITE_STATE | CONDITION_BOARD
)
_DISARMING = _LASTING | CONDITION_STOPPED | CONDITION_SILENT


@jit
def _residue(a: float, b: float, product: float) -> float:
    """Return exactly what rounding took off a product [1]_; for numbers far from overflow and underflow.

    References
    ----------
    .. [1] Dekker (1971), Numer. Math. 18, 224-242.
    """
    c = _SPLIT * a
    a_high = c - (c - a)
    a_low = a - a_high
    c = _SPLIT * b
    b_high = c - (c - b)
    b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@jit
def product_up(a: float, b: float) -> float:
    """Return a x b for two numbers >= 0, rounded up where it is not exact; infinite where a factor is too large."""
    if not (0.0 <= a < MAX_LIMIT and 0.0 <= b < MAX_LIMIT):
        return math.inf
    product = a * b
    return product * _ABOVE if _residue(a, b, product) > 0.0 else product


@jit
def product_down(a: float, b: float) -> float:
    """Return a x b of a limit, rounded down where it is not exact.

    Infinite where a factor is as good as infinite; -1, which nothing keeps, where one is no number or negative.
    """
    if not (a >= 0.0 and b >= 0.0):
        return -1.0
    if a >= MAX_LIMIT or b >= MAX_LIMIT:
        return math.inf
    product = a * b
    return product * _BELOW if _residue(a, b, product) < 0.0 else product


@jit
def sum_up(a: float, b: float) -> float:
    """Return a + b for two numbers >= 0, rounded up where it is not exact [1]_.

    References
    ----------
    .. [1] Knuth, The Art of Computer Programming, vol. 2, section 4.2.2 (the sum and its exact error).
    """
    if not (0.0 <= a < math.inf and 0.0 <= b < math.inf):
        return math.inf
    total = a + b
    part = total - a
    return total * _ABOVE if (a - (total - part)) + (b - part) > 0.0 else total


@jit
def charge_pc(train: Record) -> float:
    """Return the charge of the larger phase of a pulse, in pC, rounded up."""
    first = product_up(abs(train["amplitude_ua"]), train["phase_us"])
    return max(first, product_up(abs(train["amplitude2_ua"]), train["phase2_us"]))


@jit
def duration_us(train: Record) -> float:
    """Return the time from the start of a train to the end of its last pulse, in us, rounded up."""
    pulse = sum_up(sum_up(train["phase_us"], train["interphase_us"]), train["phase2_us"])
    if train["pulses"] <= 1:
        return pulse
    return sum_up(product_up(float(train["pulses"] - 1), train["period_us"]), pulse)


@jit
def imbalance_pc(train: Record) -> float:
    """Return the charge that the two phases leave behind, in pC: |Q1 - Q2|, rounded up."""
    a, p, a2, p2 = abs(train["amplitude_ua"]), train["phase_us"], abs(train["amplitude2_ua"]), train["phase2_us"]
    if (a == a2 and p == p2) or (a == p2 and p == a2):
        return 0.0
    over = _difference_up(product_up(a, p), product_down(a2, p2))
    return max(over, _difference_up(product_up(a2, p2), product_down(a, p)))


@jit
def _difference_up(a: float, b: float) -> float:
    """Return a - b, rounded up where it is not exact; 0 where it is negative."""
    if a <= b:
        return 0.0
    difference = a - b
    part = difference - a
    return difference * _ABOVE if (a - (difference - part)) + (-b - part) > 0.0 else difference


@jit
def check_static(gate: Record, train: Record) -> int:
    """Judge a train by the limits that depend on nothing but the train.

    Parameters
    ----------
    gate : GATE record
        Not changed.
    train : TRAIN record
        Or any other with its fields.

    Returns
    -------
    int
        Index into REASONS; 0 where no such limit is exceeded.

    Notes
    -----
    The charge per phase below which microelectrodes did no harm is that of [1]_; the criterion of [2]_ is
    log10(D) = k - log10(Q), that is D x Q = 10^k, with Q in uC and D in uC/cm^2 per phase.

    References
    ----------
    .. [1] Cogan, Ludwig, Welle & Takmakov (2016), J. Neural Eng. 13, 021001.
    .. [2] Shannon (1992), IEEE Trans. Biomed. Eng. 39, 424-426.
    """
    a, p, a2, p2 = abs(train["amplitude_ua"]), train["phase_us"], abs(train["amplitude2_ua"]), train["phase2_us"]
    pulses, period, gap = train["pulses"], train["period_us"], train["interphase_us"]
    # written so that a NaN, which compares false with everything, is refused
    if not (MIN_AMPLITUDE_UA <= a <= MAX_AMPLITUDE_UA and MIN_PHASE_US <= p <= MAX_PHASE_US):
        return NONSENSE
    if not (a2 == 0.0 or MIN_AMPLITUDE_UA <= a2 <= MAX_AMPLITUDE_UA):
        return NONSENSE
    if not (p2 == 0.0 or MIN_PHASE_US <= p2 <= MAX_PHASE_US):
        return NONSENSE
    if a2 != 0.0 and (train["amplitude_ua"] > 0.0) == (train["amplitude2_ua"] > 0.0):
        return NONSENSE
    if not (0.0 <= gap <= MAX_PHASE_US and 0.0 <= period <= MAX_PERIOD_US and 1 <= pulses <= MAX_PULSES):
        return NONSENSE
    e = train["electrode"]
    if not 0 <= e < min(gate["n_electrodes"], MAX_ELECTRODES):
        return ELECTRODE
    strongest = max(a, a2)
    if not strongest <= gate["amplitude_ua"][e]:
        return AMPLITUDE
    if not strongest <= gate["total_amplitude_ua"]:
        return TOTAL_AMPLITUDE
    charge = charge_pc(train)
    if not charge <= gate["charge_pc"][e]:
        return CHARGE
    area = gate["area_um2"][e]
    # 1 uC/cm^2 = 0.01 pC/um^2
    if not product_up(charge, 100.0) <= product_down(gate["density_uc_cm2"][e], area):
        return DENSITY
    # Q x D with Q in pC: 1e-6 uC times 100 / area uC/cm^2
    if not product_up(charge, charge) <= product_down(product_down(gate["shannon"][e], 1e4), area):
        return SHANNON
    left = imbalance_pc(train)
    if not (left <= gate["balance_pc"][e] and left <= product_down(gate["balance_fraction"][e], product_down(a, p))):
        return BALANCE
    if not gap <= gate["interphase_us"][e]:
        return INTERPHASE
    if not float(pulses) <= gate["pulses"][e]:
        return PULSES
    if pulses > 1:
        pulse = sum_up(sum_up(p, gap), p2)
        if not pulse <= period:
            return OVERLAP
        if not product_down(period, gate["rate_hz"][e]) >= 1e6:
            return RATE
        if not sum_up(pulse, gate["interval_us"][e]) <= period:
            return INTERVAL
    duration = duration_us(train)
    if not (duration <= gate["duration_us"][e] and duration <= MAX_TRAIN_US):
        return DURATION
    if not product_up(strongest, gate["impedance_kohm"][e]) <= gate["compliance_mv"]:
        return COMPLIANCE
    dose = product_up(charge, float(pulses))
    if not dose <= gate["minute_pc"][e]:
        return MINUTE
    if not dose <= gate["minute_pc"][TOTAL]:
        return TOTAL_MINUTE
    if not dose <= gate["session_pc"][e]:
        return SESSION
    if not dose <= gate["session_pc"][TOTAL]:
        return TOTAL_SESSION
    return ALLOWED


@jit
def _lapse(gate: Record, now_ns: int) -> int:
    """Return why an arming has ended by time alone, 0 where it has not; remember the time."""
    if not 0 <= now_ns <= MAX_NS or now_ns < gate["last_ns"]:
        return CLOCK
    gate["last_ns"] = now_ns
    if gate["armed"] != 1:
        return ALLOWED
    if now_ns >= gate["until_ns"]:
        return EXPIRED
    if gate["heartbeat_ns"] > 0 and now_ns - gate["heartbeat_at_ns"] > gate["heartbeat_ns"]:
        return HEARTBEAT
    return _peers_lost(gate, now_ns)


@jit
def _peers_lost(gate: Record, now_ns: int) -> int:
    """Return PEER where one of the peers was not heard in time."""
    for i in range(min(gate["n_peers"], MAX_PEERS)):
        if now_ns - gate["alive_at_ns"][i] > gate["peer_timeout_ns"]:
            return PEER
    return ALLOWED


@jit
def _by_condition(conditions: int) -> int:
    """Return the reason for which conditions forbid a train, 0 where they do not."""
    if conditions & CONDITION_STOPPED:
        return STOPPED
    if conditions & CONDITION_NONFINITE_STATE:
        return NONFINITE_STATE
    if conditions & CONDITION_SILENT:
        return SILENT
    if conditions & CONDITION_DISCONTINUITY:
        return DISCONTINUITY
    if conditions & CONDITION_PAUSED:
        return PAUSED
    if conditions & CONDITION_BOARD:
        return BOARD
    if conditions & CONDITION_NONFINITE_INPUT:
        return NONFINITE_INPUT
    if conditions & CONDITION_FILLED:
        return FILLED
    if conditions & CONDITION_WARMING:
        return WARMING
    if conditions & CONDITION_LATE:
        return LATE
    return ALLOWED


@jit
def _minute_pc(gate: Record, column: int, second: int) -> float:
    """Return a dose that no window of 60 s that holds this moment, or begins later, exceeds, in pC.

    A train is booked whole, in the bin of its latest end. Any train that has given charge within 60 s before a moment
    in second s ended in the bin s - 60 or later, so that the bins from s - 61 on, those ahead of us included, hold at
    least what any such window holds.
    """
    total = 0.0
    for k in range(N_BINS):
        if gate["bin_second"][k] >= second - _WINDOW_S:
            total = sum_up(total, gate["bins_pc"][k, column])
    return total


@jit
def check(gate: Record, train: Record, now_ns: int, conditions: int) -> int:
    """Allow a train, and account for it, or refuse it.

    Parameters
    ----------
    gate : GATE record
        Changed in place.
    train : TRAIN record
        Or any other with its fields. Not changed: what is over a limit is refused, never made smaller.
    now_ns : int
        Local clock, in ns.
    conditions : int
        CONDITION_* bits of the tick.

    Returns
    -------
    int
        Index into REASONS: the first limit that forbids the train, 0 where none does.
    """
    reason = check_static(gate, train)
    if reason != ALLOWED:
        return reason
    reason = _lapse(gate, now_ns)
    if reason != ALLOWED:
        if gate["armed"]:
            disarm(gate, reason, now_ns)
        return reason
    if gate["armed"] != 1:
        return NOT_ARMED
    reason = _by_condition(conditions)
    if reason != ALLOWED:
        return reason
    e = train["electrode"]
    if now_ns <= gate["busy_until_ns"][e]:
        return OVERLAP
    since_ns = float(now_ns - gate["busy_until_ns"][e])
    # from the end of the last pulse, which its start is before: no two starts are closer than the rate allows
    if not product_down(min(since_ns, 0.5 * MAX_LIMIT), gate["rate_hz"][e]) >= 1e9:  # no time is as good as infinite
        return RATE
    if not since_ns >= product_up(gate["interval_us"][e], 1000.0):
        return INTERVAL
    # a train under way can only end: the sum of now is the greatest that is still to come
    strongest = max(abs(train["amplitude_ua"]), abs(train["amplitude2_ua"]))
    current = strongest
    for i in range(min(gate["n_electrodes"], MAX_ELECTRODES)):
        if gate["busy_until_ns"][i] >= now_ns:
            current = sum_up(current, gate["active_ua"][i])
    if not current <= gate["total_amplitude_ua"]:
        return TOTAL_AMPLITUDE
    dose = product_up(charge_pc(train), float(train["pulses"]))
    second = now_ns // _SECOND_NS
    if not sum_up(_minute_pc(gate, e, second), dose) <= gate["minute_pc"][e]:
        return MINUTE
    if not sum_up(_minute_pc(gate, TOTAL, second), dose) <= gate["minute_pc"][TOTAL]:
        return TOTAL_MINUTE
    if not sum_up(sum_up(gate["dose_pc"][e], gate["would_pc"][e]), dose) <= gate["session_pc"][e]:
        return SESSION
    if not sum_up(sum_up(gate["dose_pc"][TOTAL], gate["would_pc"][TOTAL]), dose) <= gate["session_pc"][TOTAL]:
        return TOTAL_SESSION
    if gate["sends"] and not (
        sum_up(gate["dose_pc"][e], dose) <= gate["granted_pc"][e]
        and sum_up(gate["dose_pc"][TOTAL], dose) <= gate["granted_pc"][TOTAL]
    ):
        return LEDGER
    _account(gate, e, now_ns, math.ceil(product_up(duration_us(train), 1000.0)), strongest, dose)
    return ALLOWED


@jit
def _account(gate: Record, e: int, now_ns: int, duration_ns: int, strongest: float, dose: float) -> None:
    """Book a train that is about to be issued."""
    end_ns = now_ns + max(0, min(gate["start_within_ns"], MAX_START_WITHIN_NS)) + duration_ns
    gate["busy_until_ns"][e] = end_ns
    gate["active_ua"][e] = strongest
    second = end_ns // _SECOND_NS
    k = second % N_BINS
    if gate["bin_second"][k] != second:  # what it held is older than the window: see N_BINS and MAX_TRAIN_US
        gate["bin_second"][k] = second
        for i in range(MAX_ELECTRODES + 1):
            gate["bins_pc"][k, i] = 0.0
    gate["bins_pc"][k, e] = sum_up(gate["bins_pc"][k, e], dose)
    gate["bins_pc"][k, TOTAL] = sum_up(gate["bins_pc"][k, TOTAL], dose)
    if gate["sends"]:
        gate["dose_pc"][e] = sum_up(gate["dose_pc"][e], dose)
        gate["dose_pc"][TOTAL] = sum_up(gate["dose_pc"][TOTAL], dose)
    else:
        gate["would_pc"][e] = sum_up(gate["would_pc"][e], dose)
        gate["would_pc"][TOTAL] = sum_up(gate["would_pc"][TOTAL], dose)


@jit
def disarm(gate: Record, reason: int, now_ns: int) -> None:
    """End an arming, whatever it is; counted where there was one. Only `arm` undoes it."""
    if gate["armed"]:
        gate["disarms"] += 1
        gate["disarm_reason"] = reason
        gate["disarmed_ns"] = now_ns
    gate["armed"] = 0
    gate["until_ns"] = 0
    gate["token"] = 0


@jit
def arm(gate: Record, now_ns: int, until_ns: int, token: int) -> int:
    """Arm stimulation until an instant, or refuse to.

    Parameters
    ----------
    gate : GATE record
        Changed in place. An arming that is refused leaves an earlier one as it was, unless its time is up.
    now_ns, until_ns : int
        Local clock, in ns; at most `longest_arming_ns` apart.
    token : int
        What a heartbeat must show; not 0.

    Returns
    -------
    int
        Index into REASONS; 0 where the gate is armed now.
    """
    reason = _lapse(gate, now_ns)
    if reason != ALLOWED and gate["armed"]:
        disarm(gate, reason, now_ns)
    if reason == CLOCK:
        return CLOCK
    if gate["n_electrodes"] <= 0:
        return ELECTRODE
    if token == 0:
        return TOKEN
    if now_ns < gate["arm_after_ns"]:
        return WAITING
    if not now_ns < until_ns <= MAX_NS or until_ns - now_ns > gate["longest_arming_ns"]:
        return ARMING
    reason = _by_condition(gate["conditions"] & _DISARMING)
    if reason != ALLOWED:
        return reason
    reason = _peers_lost(gate, now_ns)
    if reason != ALLOWED:
        return reason
    gate["armed"] = 1
    gate["armed_ns"] = now_ns
    gate["until_ns"] = until_ns
    gate["token"] = token
    gate["heartbeat_at_ns"] = now_ns
    gate["late_run"] = 0
    gate["arms"] += 1
    return ALLOWED


@jit
def heartbeat(gate: Record, token: int, now_ns: int) -> bool:
    """Hear the operator's heartbeat; says whether it counted.

    A wrong token never helps, and one that comes too late finds the gate disarmed.
    """
    reason = _lapse(gate, now_ns)
    if gate["armed"] != 1:
        return False
    if reason != ALLOWED:
        disarm(gate, reason, now_ns)
        return False
    if token != gate["token"] or token == 0:
        return False
    gate["heartbeat_at_ns"] = now_ns
    return True


@jit
def alive(gate: Record, peer: int, now_ns: int) -> None:
    """Hear that a peer lives. One that was lost disarms the gate first: its return brings nothing back."""
    reason = _lapse(gate, now_ns)
    if reason != ALLOWED and gate["armed"]:
        disarm(gate, reason, now_ns)
    if reason != CLOCK and 0 <= peer < min(gate["n_peers"], MAX_PEERS):
        gate["alive_at_ns"][peer] = now_ns


@jit
def watch(gate: Record, now_ns: int, conditions: int) -> int:
    """Look after an arming: once a tick, and whenever the loop turns without data (with CONDITION_IDLE).

    Parameters
    ----------
    gate : GATE record
        Changed in place.
    now_ns : int
        Local clock, in ns.
    conditions : int
        CONDITION_* bits.

    Returns
    -------
    int
        Index into REASONS: why this call disarmed the gate; 0 where it did not, armed or not.

    Notes
    -----
    A tick that is late, filled in, not finite or of a front end that warms up only forbids trains (`check` says so);
    `late_ticks` late ones in a row disarm. A turn without a tick does not end a pause, a discontinuity or a state that
    is not finite: `arm` is refused until a tick without them.
    """
    # a turn without a tick has seen nothing that could have ended what the last tick found
    kept = gate["conditions"] & _LASTING if conditions & CONDITION_IDLE else 0
    gate["conditions"] = conditions | kept
    if conditions & CONDITION_LATE:
        gate["late_run"] += 1
    elif not conditions & CONDITION_IDLE:
        gate["late_run"] = 0
    reason = _lapse(gate, now_ns)
    if gate["armed"] != 1:
        return ALLOWED
    if reason == ALLOWED:
        reason = _by_condition(conditions & _DISARMING)
    if reason == ALLOWED and gate["late_run"] > 0 and gate["late_run"] >= gate["late_ticks"]:
        reason = LATE
    if reason != ALLOWED:
        disarm(gate, reason, now_ns)
    return reason


@jit
def grant(gate: Record, index: int, granted_pc: float) -> None:
    """Let the dose of an electrode, or of all (TOTAL), rise to what the ledger holds as spent; never takes back."""
    if 0 <= index <= MAX_ELECTRODES and granted_pc > gate["granted_pc"][index]:
        gate["granted_pc"][index] = granted_pc


def make_gate(n_electrodes: int) -> Any:
    """Return a gate, shape (1,), that knows its electrodes and whose every limit is yet to be given: it allows nothing.

    Raises
    ------
    ValueError
        More electrodes than a gate has.
    """
    if not 0 <= n_electrodes <= MAX_ELECTRODES:
        raise ValueError(f"a gate has at most {MAX_ELECTRODES} electrodes, not {n_electrodes}")
    gate = np.zeros(1, GATE)
    gate["n_electrodes"] = n_electrodes
    gate["alive_at_ns"] = gate["busy_until_ns"] = NEVER_NS
    gate["bin_second"] = -N_BINS * 2
    return gate


@jit
def keep_doses(gate: Record, other: Record) -> None:
    """Raise the doses of the session to those of another state of this gate where they are higher.

    A checkpoint tells a gate no more than this: limits, and everything that goes by the clock, stay those of the
    running gate, which has seen every train of its process. The minute before a restart is the ledger's to wait for.
    """
    for i in range(MAX_ELECTRODES + 1):
        gate["dose_pc"][i] = max(gate["dose_pc"][i], other["dose_pc"][i])
        gate["would_pc"][i] = max(gate["would_pc"][i], other["would_pc"][i])
