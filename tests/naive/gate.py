"""The safety gate once more, slow and obvious: exact fractions, and a list of every train that was ever issued.

Two things are here. `NaiveGate` decides as the gate does. `violations` knows nothing of gates: it looks at trains that
were delivered, draws every pulse of them on a line of time, and says which limits were broken. Even the minute's dose
is judged by brute force, over every window of 60 s.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from neuromod.bridge import gate as g

INF = math.inf


@dataclass(frozen=True)
class Train:
    electrode: int = 0
    amplitude_ua: float = -10.0
    phase_us: float = 200.0
    interphase_us: float = 0.0
    amplitude2_ua: float = 10.0
    phase2_us: float = 200.0
    pulses: int = 1
    period_us: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Of one electrode; infinite, so that none binds but the ones that a test sets."""

    amplitude_ua: float = INF
    charge_pc: float = INF
    density_uc_cm2: float = INF
    area_um2: float = 2000.0
    shannon: float = INF
    balance_pc: float = INF
    balance_fraction: float = INF
    interphase_us: float = INF
    rate_hz: float = INF
    pulses: float = INF
    duration_us: float = INF
    interval_us: float = 0.0
    impedance_kohm: float = 1.0
    minute_pc: float = INF
    session_pc: float = INF


@dataclass(frozen=True)
class Totals:
    """Of all electrodes, and of arming."""

    compliance_mv: float = INF
    total_amplitude_ua: float = INF
    minute_pc: float = INF
    session_pc: float = INF
    start_within_ns: int = 0
    longest_arming_ns: int = 10**18
    heartbeat_ns: int = 0
    peer_timeout_ns: int = 10**9
    late_ticks: int = 3
    arm_after_ns: int = 0
    n_peers: int = 0


def fill(gate, electrodes: Sequence[Limits], totals: Totals, *, sends: bool = True) -> None:  # type: ignore[no-untyped-def]
    """Write limits into a GATE record, and grant it everything."""
    for i, limits in enumerate(electrodes):
        for name, value in vars(limits).items():
            gate[name][i] = value
    gate["minute_pc"][g.TOTAL], gate["session_pc"][g.TOTAL] = totals.minute_pc, totals.session_pc
    for name in ("compliance_mv", "total_amplitude_ua", "start_within_ns", "longest_arming_ns", "heartbeat_ns"):
        gate[name] = getattr(totals, name)
    for name in ("peer_timeout_ns", "late_ticks", "arm_after_ns", "n_peers"):
        gate[name] = getattr(totals, name)
    gate["granted_pc"] = INF
    gate["sends"] = sends


def exceeds(value: Fraction | float, limit: float) -> bool:
    """Say whether a value is over a limit, exactly."""
    if limit == INF:
        return False
    return bool(Fraction(value) > Fraction(limit))


def charge(t: Train) -> Fraction:
    return max(
        abs(Fraction(t.amplitude_ua)) * Fraction(t.phase_us), abs(Fraction(t.amplitude2_ua)) * Fraction(t.phase2_us)
    )


def pulse_us(t: Train) -> Fraction:
    return Fraction(t.phase_us) + Fraction(t.interphase_us) + Fraction(t.phase2_us)


def duration_us(t: Train) -> Fraction:
    return pulse_us(t) + (t.pulses - 1) * Fraction(t.period_us)


def is_sensible(t: Train) -> bool:
    numbers = (t.amplitude_ua, t.phase_us, t.interphase_us, t.amplitude2_ua, t.phase2_us, t.period_us)
    if not all(math.isfinite(x) for x in numbers):
        return False
    return (
        g.MIN_AMPLITUDE_UA <= abs(t.amplitude_ua) <= g.MAX_AMPLITUDE_UA
        and (t.amplitude2_ua == 0 or g.MIN_AMPLITUDE_UA <= abs(t.amplitude2_ua) <= g.MAX_AMPLITUDE_UA)
        and t.amplitude_ua * t.amplitude2_ua <= 0
        and g.MIN_PHASE_US <= t.phase_us <= g.MAX_PHASE_US
        and (t.phase2_us == 0 or g.MIN_PHASE_US <= t.phase2_us <= g.MAX_PHASE_US)
        and 0 <= t.interphase_us <= g.MAX_PHASE_US
        and 0 <= t.period_us <= g.MAX_PERIOD_US
        and 1 <= t.pulses <= g.MAX_PULSES
    )


def judge(t: Train, electrodes: Sequence[Limits], totals: Totals) -> int:
    """Judge a train by itself."""
    if not is_sensible(t):
        return g.NONSENSE
    if not 0 <= t.electrode < len(electrodes):
        return g.ELECTRODE
    limits = electrodes[t.electrode]
    strongest = max(abs(t.amplitude_ua), abs(t.amplitude2_ua))
    q = charge(t)
    first, second = Fraction(t.amplitude_ua) * Fraction(t.phase_us), Fraction(t.amplitude2_ua) * Fraction(t.phase2_us)
    left = abs(first + second)
    density = q * 100 / Fraction(limits.area_um2)
    over_fraction = limits.balance_fraction != INF and left > Fraction(limits.balance_fraction) * abs(first)
    gap = Fraction(t.period_us) - pulse_us(t)
    repeats = t.pulses > 1
    dose = q * t.pulses
    rules = (
        (exceeds(strongest, limits.amplitude_ua), g.AMPLITUDE),
        (exceeds(strongest, totals.total_amplitude_ua), g.TOTAL_AMPLITUDE),
        (exceeds(q, limits.charge_pc), g.CHARGE),
        (exceeds(density, limits.density_uc_cm2), g.DENSITY),
        (exceeds(density * q / 10**6, limits.shannon), g.SHANNON),
        (exceeds(left, limits.balance_pc) or over_fraction, g.BALANCE),
        (exceeds(t.interphase_us, limits.interphase_us), g.INTERPHASE),
        (exceeds(t.pulses, limits.pulses), g.PULSES),
        (repeats and gap < 0, g.OVERLAP),
        (repeats and limits.rate_hz != INF and Fraction(t.period_us) * Fraction(limits.rate_hz) < 10**6, g.RATE),
        (repeats and gap < Fraction(limits.interval_us), g.INTERVAL),
        (exceeds(duration_us(t), limits.duration_us) or exceeds(duration_us(t), g.MAX_TRAIN_US), g.DURATION),
        (exceeds(Fraction(strongest) * Fraction(limits.impedance_kohm), totals.compliance_mv), g.COMPLIANCE),
        (exceeds(dose, limits.minute_pc), g.MINUTE),
        (exceeds(dose, totals.minute_pc), g.TOTAL_MINUTE),
        (exceeds(dose, limits.session_pc), g.SESSION),
        (exceeds(dose, totals.session_pc), g.TOTAL_SESSION),
    )
    return next((reason for broken, reason in rules if broken), g.ALLOWED)


DISARMING = (
    (g.CONDITION_STOPPED, g.STOPPED),
    (g.CONDITION_NONFINITE_STATE, g.NONFINITE_STATE),
    (g.CONDITION_SILENT, g.SILENT),
    (g.CONDITION_DISCONTINUITY, g.DISCONTINUITY),
    (g.CONDITION_PAUSED, g.PAUSED),
    (g.CONDITION_BOARD, g.BOARD),
)
INHIBITING = (
    *DISARMING,
    (g.CONDITION_NONFINITE_INPUT, g.NONFINITE_INPUT),
    (g.CONDITION_FILLED, g.FILLED),
    (g.CONDITION_WARMING, g.WARMING),
    (g.CONDITION_LATE, g.LATE),
)


def first_of(conditions: int, table: Sequence[tuple[int, int]]) -> int:
    return next((reason for bit, reason in table if conditions & bit), g.ALLOWED)


@dataclass
class Issued:
    t_ns: int  # of its issue
    end_ns: int  # the latest possible
    train: Train


@dataclass
class NaiveGate:
    electrodes: Sequence[Limits]
    totals: Totals
    issued: list[Issued] = field(default_factory=list)
    armed: bool = False
    until: int = 0
    token: int = 0
    heard: int = 0
    alive: dict[int, int] = field(default_factory=dict)
    latest: int = 0
    late: int = 0
    conditions: int = 0
    why: int = 0

    def lapse(self, now: int) -> int:
        """Look at the clock; disarm where the time for something is up."""
        reason = g.ALLOWED
        if not 0 <= now <= g.MAX_NS or now < self.latest:
            reason = g.CLOCK
        else:
            self.latest = now
            if self.armed and now >= self.until:
                reason = g.EXPIRED
            elif self.armed and self.totals.heartbeat_ns and now - self.heard > self.totals.heartbeat_ns:
                reason = g.HEARTBEAT
            elif self.armed and self.a_peer_is_lost(now):
                reason = g.PEER
        if reason and self.armed:
            self.disarm(reason)
        return reason

    def a_peer_is_lost(self, now: int) -> bool:
        return any(
            p not in self.alive or now - self.alive[p] > self.totals.peer_timeout_ns for p in range(self.totals.n_peers)
        )

    def disarm(self, reason: int) -> None:
        if self.armed:
            self.why = reason
        self.armed = False

    def arm(self, now: int, until: int, token: int) -> int:
        if self.lapse(now) == g.CLOCK:
            return g.CLOCK
        if not self.electrodes:
            return g.ELECTRODE
        if token == 0:
            return g.TOKEN
        if now < self.totals.arm_after_ns:
            return g.WAITING
        if until <= now or until > g.MAX_NS or until - now > self.totals.longest_arming_ns:
            return g.ARMING
        reason = first_of(self.conditions, DISARMING)
        if reason:
            return reason
        if self.a_peer_is_lost(now):
            return g.PEER
        self.armed, self.until, self.token, self.heard, self.late = True, until, token, now, 0
        return g.ALLOWED

    def heartbeat(self, token: int, now: int) -> bool:
        was_armed = self.armed
        lapsed = self.lapse(now)
        if not was_armed or lapsed or token == 0 or token != self.token:
            return False
        self.heard = now
        return True

    def hear_peer(self, peer: int, now: int) -> None:
        if self.lapse(now) != g.CLOCK and 0 <= peer < self.totals.n_peers:
            self.alive[peer] = now

    def watch(self, now: int, conditions: int) -> int:
        if conditions & g.CONDITION_IDLE:  # the faults of the last tick hold on
            lasting = g.CONDITION_PAUSED | g.CONDITION_NONFINITE_STATE | g.CONDITION_DISCONTINUITY | g.CONDITION_BOARD
            self.conditions = conditions | (self.conditions & lasting)
        else:
            self.conditions = conditions
        if conditions & g.CONDITION_LATE:
            self.late += 1
        elif not conditions & g.CONDITION_IDLE:
            self.late = 0
        was_armed = self.armed
        reason = self.lapse(now) or first_of(conditions, DISARMING)
        if not reason and self.late and self.late >= self.totals.late_ticks:
            reason = g.LATE
        if not was_armed:
            return g.ALLOWED
        if reason:
            self.disarm(reason)
        return reason

    def check(self, t: Train, now: int, conditions: int) -> int:
        reason = judge(t, self.electrodes, self.totals) or self.lapse(now)
        if reason:
            return reason
        if not self.armed:
            return g.NOT_ARMED
        reason = first_of(conditions, INHIBITING) or self.judge_among_others(t, now)
        if not reason:
            end = now + self.totals.start_within_ns + math.ceil(duration_us(t) * 1000)
            self.issued.append(Issued(now, end, t))
        return reason

    def judge_among_others(self, t: Train, now: int) -> int:
        mine = [x for x in self.issued if x.train.electrode == t.electrode]
        limits = self.electrodes[t.electrode]
        if mine:
            gap = now - max(x.end_ns for x in mine)
            if gap <= 0:
                return g.OVERLAP
            if limits.rate_hz != INF and gap * Fraction(limits.rate_hz) < 10**9:
                return g.RATE
            if gap < Fraction(limits.interval_us) * 1000:
                return g.INTERVAL
        current = sum(strongest(x.train) for x in [*self.issued, Issued(now, now, t)] if x.end_ns >= now)
        if exceeds(current, self.totals.total_amplitude_ua):
            return g.TOTAL_AMPLITUDE
        recent = [x for x in self.issued if x.end_ns // 10**9 >= now // 10**9 - 61]
        sums = (
            ([x for x in recent if x in mine], limits.minute_pc, g.MINUTE),
            (recent, self.totals.minute_pc, g.TOTAL_MINUTE),
            (mine, limits.session_pc, g.SESSION),
            (self.issued, self.totals.session_pc, g.TOTAL_SESSION),
        )
        dose = charge(t) * t.pulses
        for trains, limit, reason in sums:
            if exceeds(dose + sum(charge(x.train) * x.train.pulses for x in trains), limit):
                return reason
        return g.ALLOWED


def strongest(t: Train) -> Fraction:
    return Fraction(max(abs(t.amplitude_ua), abs(t.amplitude2_ua)))


@dataclass(frozen=True)
class Delivered:
    """A train that a stimulator began."""

    t_ns: Fraction
    train: Train


def violations(
    delivered: Sequence[Delivered], electrodes: Sequence[Limits], totals: Totals, *, minute_ns: int = 60 * 10**9
) -> set[str]:
    """Return which limits the trains that were delivered broke, pulse by pulse; empty where all was safe.

    Independent of the gate: no bins, no booking, no lease, no order of issue. Pulses lie where they were delivered.
    """
    broken: set[str] = set()
    pulses = []  # (start, end, electrode, current, charge), in ns and pC
    for d in delivered:
        t = d.train
        if not is_sensible(t) or not 0 <= t.electrode < len(electrodes):
            broken.add("nonsense")
            continue
        limits = electrodes[t.electrode]
        first, second = (
            Fraction(t.amplitude_ua) * Fraction(t.phase_us),
            Fraction(t.amplitude2_ua) * Fraction(t.phase2_us),
        )
        q, density = charge(t), charge(t) * 100 / Fraction(limits.area_um2)
        rules = {
            "amplitude": exceeds(strongest(t), limits.amplitude_ua),
            "charge": exceeds(q, limits.charge_pc),
            "density": exceeds(density, limits.density_uc_cm2),
            "shannon": exceeds(q * density / 10**6, limits.shannon),
            "balance": exceeds(abs(first + second), limits.balance_pc)
            or (
                limits.balance_fraction != INF and abs(first + second) > Fraction(limits.balance_fraction) * abs(first)
            ),
            "interphase": exceeds(t.interphase_us, limits.interphase_us),
            "pulses": exceeds(t.pulses, limits.pulses),
            "duration": exceeds(duration_us(t), limits.duration_us),
            "compliance": exceeds(strongest(t) * Fraction(limits.impedance_kohm), totals.compliance_mv),
        }
        broken |= {name for name, is_broken in rules.items() if is_broken}
        starts = [d.t_ns + k * Fraction(t.period_us) * 1000 for k in range(t.pulses)]
        pulses += [(a, a + pulse_us(t) * 1000, t.electrode, strongest(t), q) for a in starts]
    pulses.sort()
    for e, limits in enumerate(electrodes):
        own = [p for p in pulses if p[2] == e]
        for one, other in itertools.pairwise(own):
            if other[0] < one[1]:
                broken.add("overlap")
            if other[0] - one[1] < Fraction(limits.interval_us) * 1000:
                broken.add("interval")
            if limits.rate_hz != INF and (other[0] - one[0]) * Fraction(limits.rate_hz) < 10**9:
                broken.add("rate")
        broken |= _over_dose(own, limits.minute_pc, limits.session_pc, "", minute_ns)
    broken |= _over_dose(pulses, totals.minute_pc, totals.session_pc, "total_", minute_ns)
    for start, *_ in pulses:  # the sum of currents can only rise where a pulse begins
        if exceeds(sum((p[3] for p in pulses if p[0] <= start < p[1]), Fraction(0)), totals.total_amplitude_ua):
            broken.add("total_amplitude")
    return broken


def _over_dose(pulses: list, minute: float, session: float, prefix: str, minute_ns: int) -> set[str]:  # type: ignore[type-arg]
    broken = set()
    if exceeds(sum((p[4] for p in pulses), Fraction(0)), session):
        broken.add(prefix + "session")
    # a window holds a pulse that it cuts, too; one that holds the most can be moved until a pulse's end bounds it
    for _, end, *_ in pulses:
        if exceeds(sum((p[4] for p in pulses if end <= p[1] and p[0] <= end + minute_ns), Fraction(0)), minute):
            broken.add(prefix + "minute")
    return broken
