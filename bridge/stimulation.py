"""What asks for stimulation: events, a schedule, the operator, or another session; and how far it is carried out.

`stimulate` runs in the compiled loop once a tick, after the decoder. It turns what the tick holds into trains, has the
gate judge each, and writes down every decision. What is sent is the caller's to send: a decision with `delivered` set.

Modes
-----
live : events of the decoder trigger programs; allowed trains are sent.
dry_run : as live, and nothing is sent. The gate judges as ever; the dose that would have been is kept apart.
open_loop : events are ignored; a schedule triggers its program.
sham : as dry run. Apart from it because a log must say which of the two was meant, and because it can be blind.
yoked : events are ignored; the trains that another session delivered are asked for at the same ticks.

Requests by hand are heard in every mode.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.gate import (
    ALLOWED,
    GATE,
    N_REASONS,
    REASONS,
    TRAIN,
    check,
    watch,
)
from neuromod.bridge.safety_config import (
    MAX_EVENTS,
    MAX_PROGRAMS,
    MODES,
    StimulationConfig,
    build_gate,
    build_programs,
)
from neuromod.engine.compiled import jit
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout_types import Record

LIVE, DRY_RUN, OPEN_LOOP, SHAM, YOKED = range(len(MODES))

CAUSES = ("event", "schedule", "yoked", "manual")
CAUSE_SCHEDULE, CAUSE_YOKED, CAUSE_MANUAL = 64, 65, 66
"""`cause` of a decision: below 64 the number of the event's bit, or one of these."""

MAX_DECISIONS_PER_TICK = 16
"""Trains that are judged in one tick; what is asked beyond is refused and counted, without a decision of its own."""
MAX_REQUESTS = 16
"""Requests by hand that may wait."""

YOKED_TRAIN = np.dtype([("tick", np.int64), *((name, TRAIN[name]) for name in TRAIN.names or ())], align=True)
"""A train of another session, and the tick at which it was issued."""

_PROGRAMS = (MAX_PROGRAMS,)

STIMULATION = np.dtype(
    [
        ("configured", np.int64),  # 0: nothing is, `stimulate` returns at once
        ("mode", np.int64),
        ("blind", np.int64),
        ("lease_ns", np.int64),  # a stimulator that hears nothing for so long stops
        # programs, column by column
        ("n_programs", np.int64),
        ("electrode", np.int64, _PROGRAMS),
        ("amplitude_ua", np.float64, _PROGRAMS),
        ("phase_us", np.float64, _PROGRAMS),
        ("interphase_us", np.float64, _PROGRAMS),
        ("amplitude2_ua", np.float64, _PROGRAMS),
        ("phase2_us", np.float64, _PROGRAMS),
        ("pulses", np.int64, _PROGRAMS),
        ("period_us", np.float64, _PROGRAMS),
        ("trigger", np.int64, (MAX_EVENTS,)),  # program of each event bit; -1 = none
        # the schedule, in ticks
        ("schedule_program", np.int64),  # -1 = none
        ("schedule_period", np.float64),
        ("schedule_jitter", np.float64),  # due times are moved by up to so much either way
        ("schedule_started", np.int64),
        ("schedule_nominal", np.float64),
        ("schedule_due", np.float64),
        ("random", np.uint64),
        # requests by hand that wait
        ("n_requests", np.int64),
        ("requests", np.int64, (MAX_REQUESTS,)),
        # what the tick asks for
        ("n_asked", np.int64),
        ("asked", np.int64, (MAX_DECISIONS_PER_TICK,)),  # program, or row of `yoked`
        ("asked_cause", np.int64, (MAX_DECISIONS_PER_TICK,)),
        # counters
        ("next_yoked", np.int64),
        ("decisions", np.int64),  # also the id of the last one
        ("issued", np.int64),  # allowed
        ("delivered", np.int64),  # and sent
        ("overflow", np.int64),  # asked beyond MAX_DECISIONS_PER_TICK, or beyond the room for decisions
        ("missed", np.int64),  # yoked trains whose tick never came
        ("requests_refused", np.int64),  # requests by hand for which there was no room or no program
        ("refused", np.int64, (N_REASONS,)),
    ],
    align=True,
)
"""Programs, mode, schedule and counters; shape (1,) in `StimulationState`."""

_LEFT, _RIGHT, _LAST, _TOP = np.uint64(13), np.uint64(7), np.uint64(17), np.uint64(11)
_GOLDEN = 0x9E3779B97F4A7C15


class StimulationState(NamedTuple):
    """State of `stimulate`. `block` and `gate` belong into a checkpoint."""

    block: NDArray[Any]  # STIMULATION, shape (1,)
    gate: NDArray[Any]  # GATE, shape (1,)
    yoked: NDArray[Any]  # YOKED_TRAIN, in the order of ticks


def make_stimulation(
    config: StimulationConfig | None, *, dt_ms: float, yoked: NDArray[Any] | None = None
) -> StimulationState:
    """Allocate the state of `stimulate`; disarmed.

    Parameters
    ----------
    config : StimulationConfig, optional
        None: nothing is configured, and the gate refuses everything.
    dt_ms : float
        Length of a tick, in ms.
    yoked : ndarray of YOKED_TRAIN, optional
        Mode `yoked` needs it, and no other takes it.

    Raises
    ------
    ConfigError
        Yoked trains and the mode do not fit together, or the trains are not in the order of their ticks.
    """
    block = np.zeros(1, STIMULATION)
    state = block[0]
    state["trigger"] = state["schedule_program"] = -1
    none = np.zeros(0, YOKED_TRAIN)
    if config is None:
        return StimulationState(block, np.zeros(1, GATE), none)
    if (yoked is not None) != (config.mode == "yoked"):
        raise ConfigError(
            "stimulation: mode 'yoked' repeats the trains of another session, which must be given to it and to no "
            f"other mode; this is mode {config.mode!r} {'without' if yoked is None else 'with'} such trains"
        )
    if yoked is not None and (yoked.dtype != YOKED_TRAIN or np.any(np.diff(yoked["tick"]) < 0)):
        raise ConfigError(
            "stimulation: yoked trains must be YOKED_TRAIN records in the order of their ticks; sort them"
        )
    state["configured"] = 1
    state["mode"] = MODES.index(config.mode)
    state["blind"] = config.blind
    state["lease_ns"] = round(config.lease_ms * 1e6)
    programs = build_programs(config)
    state["n_programs"] = programs.size
    for name in TRAIN.names or ():
        if name != "program":
            state[name][: programs.size] = programs[name]
    names = [program.name for program in config.programs]
    for trigger in config.triggers:
        state["trigger"][trigger.event] = names.index(trigger.program)
    if config.schedule is not None:
        state["schedule_program"] = names.index(config.schedule.program)
        state["schedule_period"] = config.schedule.period_ms / dt_ms
        state["schedule_jitter"] = config.schedule.jitter_ms / dt_ms
        # xorshift never leaves 0, and gives close seeds close first numbers
        state["random"] = ((config.schedule.seed + 1) * _GOLDEN) % 2**64 or 1
    return StimulationState(block, build_gate(config), none if yoked is None else np.ascontiguousarray(yoked))


@jit
def request_program(state: StimulationState, program: int) -> bool:
    """Ask for a program by hand, to be judged at the next tick; False, and counted, where it cannot be asked for."""
    block = state.block[0]
    waiting = block["n_requests"]
    if block["configured"] == 0 or not 0 <= program < block["n_programs"] or waiting >= MAX_REQUESTS:
        block["requests_refused"] += 1
        return False
    block["requests"][waiting] = program
    block["n_requests"] = waiting + 1
    return True


@jit
def _ask(block: Record, what: int, cause: int | np.int64) -> None:
    """Put a train on the list of the tick."""
    k = block["n_asked"]
    if k >= MAX_DECISIONS_PER_TICK:
        block["overflow"] += 1
        return
    block["asked"][k] = what
    block["asked_cause"][k] = cause
    block["n_asked"] = k + 1


@jit
def _draw_due(block: Record) -> None:
    """Place the next train of the schedule around its nominal time [1]_.

    References
    ----------
    .. [1] Marsaglia (2003), J. Stat. Softw. 8(14).
    """
    x = block["random"]
    x ^= x << _LEFT
    x ^= x >> _RIGHT
    x ^= x << _LAST
    block["random"] = x
    uniform = np.float64(np.int64(x >> _TOP)) * 2.0**-53
    block["schedule_due"] = block["schedule_nominal"] + block["schedule_jitter"] * (2.0 * uniform - 1.0)


@jit
def _ask_schedule(block: Record, tick: int) -> None:
    """Ask for the scheduled program where it is due. What was missed is left out, never caught up with."""
    if block["schedule_program"] < 0:
        return
    if block["schedule_started"] == 0:
        block["schedule_started"] = 1
        block["schedule_nominal"] = float(tick) + block["schedule_period"]
        _draw_due(block)
    if float(tick) < block["schedule_due"]:
        return
    _ask(block, block["schedule_program"], np.int64(CAUSE_SCHEDULE))
    nominal = block["schedule_nominal"] + block["schedule_period"]
    # later than this tick whatever the jitter, or a train that was missed would bring two at once
    if nominal - block["schedule_jitter"] <= float(tick):
        nominal = float(tick) + block["schedule_period"]
    block["schedule_nominal"] = nominal
    _draw_due(block)


@jit
def _ask_yoked(block: Record, yoked: NDArray[Any], tick: int) -> None:
    """Ask for the trains that the other session delivered at this tick."""
    k = block["next_yoked"]
    while k < yoked.shape[0] and yoked[k]["tick"] <= tick:
        if yoked[k]["tick"] == tick:
            _ask(block, k, np.int64(CAUSE_YOKED))
        else:
            block["missed"] += 1
        k += 1
    block["next_yoked"] = k


@jit
def _copy_program(block: Record, program: int, decision: Record) -> None:
    """Write a program's train into a decision."""
    decision["electrode"] = block["electrode"][program]
    decision["amplitude_ua"] = block["amplitude_ua"][program]
    decision["phase_us"] = block["phase_us"][program]
    decision["interphase_us"] = block["interphase_us"][program]
    decision["amplitude2_ua"] = block["amplitude2_ua"][program]
    decision["phase2_us"] = block["phase2_us"][program]
    decision["pulses"] = block["pulses"][program]
    decision["period_us"] = block["period_us"][program]
    decision["program"] = program


@jit
def _copy_yoked(train: Record, decision: Record) -> None:
    """Write a train of another session into a decision."""
    decision["electrode"] = train["electrode"]
    decision["amplitude_ua"] = train["amplitude_ua"]
    decision["phase_us"] = train["phase_us"]
    decision["interphase_us"] = train["interphase_us"]
    decision["amplitude2_ua"] = train["amplitude2_ua"]
    decision["phase2_us"] = train["phase2_us"]
    decision["pulses"] = train["pulses"]
    decision["period_us"] = train["period_us"]
    decision["program"] = train["program"]


@jit
def stimulate(
    state: StimulationState,
    events: int,
    tick: int,
    now_ns: int,
    conditions: int,
    decisions: NDArray[Any],
    n: int,
) -> int:
    """Look after the arming, and turn what a tick asks for into decisions.

    Parameters
    ----------
    state : StimulationState
        Changed in place.
    events : int
        Event bits of the decoder.
    tick, now_ns : int
        Number of the tick, and local clock in ns.
    conditions : int
        CONDITION_* bits of the tick.
    decisions : ndarray of DECISION
        Written from `n` on; `record` is left to the caller. Where there is no room left, what is asked for is refused
        and counted in `overflow`.
    n : int
        Decisions that are in it already.

    Returns
    -------
    int
        How many decisions there are now.
    """
    block = state.block[0]
    if block["configured"] == 0:
        return n
    gate = state.gate[0]
    watch(gate, now_ns, conditions)
    mode = block["mode"]
    block["n_asked"] = 0
    for k in range(block["n_requests"]):
        _ask(block, block["requests"][k], np.int64(CAUSE_MANUAL))
    block["n_requests"] = 0
    if mode == OPEN_LOOP:
        _ask_schedule(block, tick)
    elif mode == YOKED:
        _ask_yoked(block, state.yoked, tick)
    elif events:
        for bit in range(MAX_EVENTS):
            if events >> bit & 1 and block["trigger"][bit] >= 0:
                _ask(block, block["trigger"][bit], np.int64(bit))
    for k in range(block["n_asked"]):
        if n >= decisions.shape[0]:
            block["overflow"] += 1
            continue
        decision = decisions[n]
        n += 1
        block["decisions"] += 1
        what, cause = block["asked"][k], block["asked_cause"][k]
        decision["record"] = 0
        decision["tick"] = tick
        decision["now_ns"] = now_ns
        decision["id"] = block["decisions"]
        decision["mode"] = mode
        decision["cause"] = cause
        if cause == CAUSE_YOKED:
            _copy_yoked(state.yoked[what], decision)
        else:
            _copy_program(block, what, decision)
        # the gate, in its only place
        reason = check(gate, decision, now_ns, conditions)
        delivered = 1 if reason == ALLOWED and gate["sends"] else 0
        decision["reason"] = reason
        decision["delivered"] = delivered
        decision["expires_ns"] = now_ns + gate["start_within_ns"] if reason == ALLOWED else 0
        block["refused"][reason] += reason != ALLOWED
        block["issued"] += reason == ALLOWED
        block["delivered"] += delivered
    return n


def public_mode(state: StimulationState) -> str:
    """Return the mode as the operator may see it: "blinded" in a blind session, whose log alone holds it."""
    block = state.block[0]
    return "blinded" if block["blind"] else MODES[int(block["mode"])]


def count(state: StimulationState) -> dict[str, int]:
    """Return the counters by name, those of refusals as `refused_` and the reason, where there were any."""
    block = state.block[0]
    names = ("issued", "delivered", "overflow", "missed", "requests_refused")
    counts = {name: int(block[name]) for name in names if not (name == "delivered" and block["blind"])}
    return counts | {f"refused_{REASONS[i]}": int(k) for i, k in enumerate(block["refused"]) if k}
