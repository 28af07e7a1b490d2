"""What a soak run is judged by: every sample accounted for, and nothing unsafe at the far end.

Everything here is a function of what was written down: what the source pushed, what the witness heard, what the
sessions recorded, what the stimulator did. Times are seconds on the local clock, which all processes share.

A sample of the source is accounted for where
- a tick has it as its newest one, in the record of a session or at the witness;
- or it lies between two ticks of which the later one says so: DISCONTINUITY (the grid was laid anew) or FILLED;
- or the daemon was down: it lies after the last tick of a life (and no more than `OWED_S` before that life's end), and
  before the first tick of the next.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench.soak_workers import COMMAND, PUSHED, SEEN, SPIKES, STIMULATION
from numpy.typing import NDArray

from neuromod.bridge.session import Session, find_sessions, verify
from neuromod.bridge.wire import Flag

OWED_S = 1.0
"""What was published so long before a kill is in the record."""

LATE_S = 0.03
"""What a pulse may start late after a lease or a stop, for the way over the serial line."""

_SILENT = int(Flag.FILLER | Flag.PAUSED | Flag.DISCONTINUITY | Flag.LATE | Flag.BOARD)
_NO_STEP = int(Flag.FILLER | Flag.PAUSED)
_GAP = int(Flag.DISCONTINUITY | Flag.FILLED)
_LEASE, _TRAIN, _STOP = 0, 1, 2


@dataclass(frozen=True)
class Recorded:
    """What one session recorded."""

    name: str
    t: NDArray[np.float64]
    """When each tick ended."""
    tick: NDArray[np.uint64]
    t_sample: NDArray[np.float64]
    flags: NDArray[np.uint32]
    ended: str
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """All that was written down.

    Attributes
    ----------
    pushed : list of ndarray of PUSHED
        Of each life of the source.
    seen : ndarray of SEEN
        What the witness heard.
    recorded : list of Recorded
        In the order of their beginnings.
    lives : list of (float, float)
        From when to when the daemon was there.
    pulses : list of dict
        Those of the stimulator, as it wrote them.
    program : dict
        The only train there may be: amplitude_ua, phase_us, period_us, pulses; start_within_s as the session has it.
    """

    pushed: list[NDArray[Any]]
    seen: NDArray[Any]
    recorded: list[Recorded]
    lives: list[tuple[float, float]]
    pulses: list[dict[str, Any]]
    program: dict[str, float]


@dataclass
class Verdict:
    """What the evidence says."""

    counts: dict[str, int] = field(default_factory=dict)
    unaccounted: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)


def collect(folder: Path, lives: Sequence[tuple[float, float]], program: dict[str, float]) -> Evidence:
    """Read everything that a rig wrote."""
    recorded = []
    for session in find_sessions(folder / "sessions"):
        report = verify(session)
        ticks = Session(session).records("ticks")
        complaints = [str(fault) for fault in report.faults if fault.what != "torn"]
        if report.ended != "early":  # a recording that ends for want of room says what it left out
            complaints += [f"{n} {kind} are lost" for kind, n in report.lost.items()]
        names = ("gaps", "missing", "steps_missing", "backward")
        complaints += [f"{report.ticks[name]} {name} of ticks" for name in names if report.ticks.get(name)]
        recorded.append(
            Recorded(
                session.name,
                np.array(ticks["t_tick"]),
                np.array(ticks["tick"]),
                np.array(ticks["t_sample"]),
                np.array(ticks["flags"]),
                report.ended,
                tuple(complaints),
            )
        )
    recorded.sort(key=lambda each: float(each.t[0]) if len(each.t) else np.inf)
    pulses = folder / "pulses.jsonl"
    return Evidence(
        [_rows(path, PUSHED) for path in sorted(folder.glob("pushed*"), key=lambda path: int(path.name[6:]))],
        _rows(folder / "seen", SEEN),
        recorded,
        list(lives),
        [json.loads(line) for line in pulses.read_text().splitlines() if line] if pulses.exists() else [],
        program,
    )


def _rows(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    data = path.read_bytes() if path.exists() else b""
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)


def judge(evidence: Evidence) -> Verdict:
    """Judge everything."""
    verdict = Verdict()
    _judge_records(evidence, verdict)
    _judge_samples(evidence, verdict)
    _judge_commands(evidence, verdict)
    _judge_pulses(evidence, verdict)
    return verdict


# -- ticks


def _of_life(t: NDArray[np.float64], lives: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """Return the life of the daemon in which each time lies."""
    starts = np.array([start for start, _ in lives])
    return np.maximum(np.searchsorted(starts, t, side="right") - 1, 0)


def _judge_records(evidence: Evidence, verdict: Verdict) -> None:
    """Within each life: records have no hole, and hold what the witness saw; what the witness missed is recorded."""
    spikes = evidence.seen[evidence.seen["kind"] == SPIKES]
    life_of = _of_life(spikes["t"], evidence.lives)
    by_life: dict[int, list[Recorded]] = {}
    for each in evidence.recorded:
        verdict.unaccounted += [f"{each.name}: {complaint}" for complaint in each.complaints]
        if len(each.t):
            by_life.setdefault(int(_of_life(each.t[:1], evidence.lives)[0]), []).append(each)
    holes = 0
    for life, (_, end) in enumerate(evidence.lives):
        here = spikes[(life_of == life)]
        steps = here[(here["flags"] & _NO_STEP) == 0]
        records = by_life.get(life, [])
        kept = np.concatenate([np.empty(0, np.uint64), *(each.tick for each in records)])
        last = int(kept.max()) if len(kept) else -1
        missing = steps[~np.isin(steps["tick"], kept)]
        ended = any(each.ended == "early" for each in records)
        owed = missing[(missing["tick"] <= last) | ((missing["t"] < end - OWED_S) & (not ended))]
        if len(owed):
            verdict.unaccounted.append(f"life {life}: {len(owed)} ticks were published and not recorded")
        jumps = np.diff(here["seq"].astype(np.int64))
        for at in np.flatnonzero(jumps != 1):
            holes += int(max(0, jumps[at] - 1))
            between = kept[(kept > here["tick"][at]) & (kept < here["tick"][at + 1])]
            ticks = int(here["tick"][at + 1]) - int(here["tick"][at]) - 1
            if ticks > len(between) and not ended:
                verdict.unaccounted.append(
                    f"life {life}: the witness missed {jumps[at] - 1} messages after tick {here['tick'][at]}, "
                    f"and {ticks - len(between)} of their ticks are not recorded"
                )
    verdict.counts["witness_missed"] = holes
    verdict.counts["ticks_seen"] = int(((spikes["flags"] & _NO_STEP) == 0).sum())
    verdict.counts["fillers_seen"] = int(((spikes["flags"] & int(Flag.FILLER)) != 0).sum())
    verdict.counts["ticks_recorded"] = sum(int(((each.flags & _NO_STEP) == 0).sum()) for each in evidence.recorded)


def _judge_samples(evidence: Evidence, verdict: Verdict) -> None:
    """Every sample that the source pushed is in a tick, in a gap that is flagged, or came while the daemon was down."""
    stamps = np.concatenate([np.empty(0), *(each["stamp"] for each in evidence.pushed)])
    if not len(stamps):
        return
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    period = 1e-3
    t, t_sample, flags = _all_ticks(evidence)
    life = _of_life(t, evidence.lives)
    steps = (flags & _NO_STEP) == 0
    t, t_sample, flags, life = t[steps], t_sample[steps], flags[steps], life[steps]
    order = np.lexsort((t, life))
    t, t_sample, flags, life = t[order], t_sample[order], flags[order], life[order]
    state = np.zeros(len(stamps), np.uint8)  # 0 nowhere, 1 in a tick, 2 in a gap, 3 while down, 4 before or after
    nearest = np.clip(np.searchsorted(stamps, t_sample - 0.5 * period), 0, len(stamps) - 1)
    is_there = np.abs(stamps[nearest] - t_sample) <= 0.5 * period
    is_filled = (flags & int(Flag.FILLED)) != 0  # the sample stands for what did not come
    state[nearest[is_there & is_filled]] = 2
    state[nearest[is_there & ~is_filled]] = 1
    first, last = (float(t_sample.min()), float(t_sample.max())) if len(t) else (np.inf, -np.inf)
    outside = (stamps < first - 0.5 * period) | (stamps > last + 0.5 * period)

    def mark(begin: float, end: float, as_what: int) -> None:
        a, b = np.searchsorted(stamps, (begin - 0.5 * period, end + 0.5 * period))  # corrected clocks differ by some us
        part = state[a:b]
        part[part == 0] = as_what

    for k in range(1, len(t)):
        if life[k] == life[k - 1] and flags[k] & _GAP:
            mark(t_sample[k - 1], t_sample[k], 2)
    for each in np.unique(life):
        mine = np.flatnonzero(life == each)
        end = evidence.lives[int(each)][1]
        later = t_sample[life > each]
        if len(later):
            mark(max(t_sample[mine[-1]], end - OWED_S), float(later.min()), 3)
    state[(state == 0) & outside] = 4
    lost = np.flatnonzero(state == 0)
    verdict.counts |= {
        "pushed": len(stamps),
        "in_ticks": int((state == 1).sum()),
        "in_flagged_gaps": int((state == 2).sum()),
        "while_down": int((state == 3).sum()),
        "before_or_after": int((state == 4).sum()),
        "unaccounted": len(lost),
    }
    if len(lost):
        verdict.unaccounted.append(
            f"{len(lost)} samples are in no tick, no gap that is flagged, and did not come while the daemon was down; "
            f"the first at {stamps[lost[0]]:.3f}"
        )
    doubled = len(nearest[is_there]) - len(np.unique(nearest[is_there]))
    if doubled:
        verdict.unaccounted.append(f"{doubled} samples are the newest of two ticks")


def _all_ticks(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint32]]:
    """Return the ticks of records and witness, each once: when they ended, their newest sample, their flags."""
    spikes = evidence.seen[evidence.seen["kind"] == SPIKES]
    t = np.concatenate([spikes["t"], *(each.t for each in evidence.recorded)])
    tick = np.concatenate([spikes["tick"], *(each.tick for each in evidence.recorded)])
    t_sample = np.concatenate([spikes["t_sample"], *(each.t_sample for each in evidence.recorded)])
    flags = np.concatenate([spikes["flags"], *(each.flags for each in evidence.recorded)])
    keys = np.zeros(len(t), [("life", "<u4"), ("tick", "<u8"), ("no_step", "<u4")])
    keys["life"], keys["tick"], keys["no_step"] = _of_life(t, evidence.lives), tick, flags & _NO_STEP
    _, unique = np.unique(keys, return_index=True)
    return t[unique], t_sample[unique], flags[unique]


# -- safety


def _judge_commands(evidence: Evidence, verdict: Verdict) -> None:
    """While the source is silent, and wherever a tick is not to be trusted, commands say to do nothing."""
    commands = evidence.seen[evidence.seen["kind"] == COMMAND]
    inhibited = (commands["flags"] & int(Flag.INHIBITED)) != 0
    silent = (commands["flags"] & _SILENT) != 0
    verdict.counts |= {"commands": len(commands), "commands_inhibited": int(inhibited.sum())}
    for what, wrong in (
        ("without INHIBITED, although the tick is not to be acted on", silent & ~inhibited),
        ("INHIBITED, and not zero", inhibited & (commands["nonzero"] != 0)),
    ):
        if wrong.any():
            first = commands[wrong][0]
            verdict.unsafe.append(f"{int(wrong.sum())} commands are {what}; the first at tick {first['tick']}")


def _judge_pulses(evidence: Evidence, verdict: Verdict) -> None:
    """Each pulse belongs to a train that the gate sent, is as the program says, and begins while the lease lasts."""
    told = evidence.seen[evidence.seen["kind"] == STIMULATION]
    told = told[np.argsort(told["t"], kind="stable")]
    trains, stops = told[told["what"] == _TRAIN], told[told["what"] == _STOP]
    leases = told[told["what"] != _STOP]
    verdict.counts |= {"pulses": len(evidence.pulses), "trains": len(trains), "stops": len(stops)}
    program, before = evidence.program, -np.inf
    wrong: dict[str, list[float]] = {}
    for pulse in sorted(evidence.pulses, key=lambda each: each["start_ns"]):
        at = 1e-9 * pulse["start_ns"]
        for what in _wrong_with(pulse, at, before, program, trains, stops, leases):
            wrong.setdefault(what, []).append(at)
        before = at
    verdict.unsafe += [f"{len(times)} pulses {what}; the first at {times[0]:.4f}" for what, times in wrong.items()]


def _wrong_with(
    pulse: dict[str, Any],
    at: float,
    before: float,
    program: dict[str, float],
    trains: NDArray[Any],
    stops: NDArray[Any],
    leases: NDArray[Any],
) -> list[str]:
    found = []
    if (
        not np.isclose(pulse["amplitude_ua"], program["amplitude_ua"], rtol=1e-5)
        or not np.isclose(pulse["phase_us"], program["phase_us"], rtol=1e-5)
        or pulse["electrode"] != 0
        or not 0 <= pulse["index"] < program["pulses"]
    ):
        found.append("are not those of the program")
    charge = pulse["amplitude_ua"] * pulse["phase_us"] + pulse["amplitude2_ua"] * pulse["phase2_us"]
    if abs(charge) > 1e-3 * abs(program["amplitude_ua"] * program["phase_us"]):
        found.append("are not balanced")
    if at - before < 0.9e-6 * program["period_us"]:
        found.append("follow each other faster than the program allows")
    longest = program["start_within_s"] + 1e-6 * program["period_us"] * program["pulses"] + LATE_S
    mine = trains[(trains["id"] & 0xFFFF_FFFF == pulse["train"]) & (trains["t"] <= at) & (trains["t"] > at - 1.0)]
    if not len(mine):
        found.append("belong to no train that the gate sent")
        return found
    begun = float(mine["t"][-1])
    if at > begun + longest:
        found.append("come after their train has to be over")
    if at > float(leases["expires"][leases["t"] <= at].max(initial=-np.inf)) + LATE_S:
        found.append("come after the lease is over")
    if ((stops["t"] >= begun) & (stops["t"] < at - LATE_S)).any():
        found.append("come after a stop")
    return found


# -- whether the judge can fail


def check_the_judge(evidence: Evidence) -> list[str]:
    """Change the evidence in ways that must not pass; return those that did."""
    return [name for name, change in _CHANGES.items() if (made := change(evidence)) and not _is_worse(evidence, made)]


def n_changes() -> int:
    """How many ways there are."""
    return len(_CHANGES)


def _is_worse(before: Evidence, after: Evidence) -> bool:
    then, now = judge(before), judge(after)
    return (now.unaccounted, now.unsafe) != (then.unaccounted, then.unsafe)


def _with_pulse(evidence: Evidence, **changed: Any) -> Evidence | None:
    if not evidence.pulses:
        return None
    middle = len(evidence.pulses) // 2
    pulse = evidence.pulses[middle] | changed
    if "later_s" in changed:
        pulse["start_ns"] += int(1e9 * pulse.pop("later_s"))
    return replace(evidence, pulses=[*evidence.pulses[:middle], pulse, *evidence.pulses[middle + 1 :]])


def _with_a_stop(evidence: Evidence) -> Evidence | None:
    """Say that the gate stopped just after a train began, whose last pulse came all the same."""
    trains = evidence.seen[(evidence.seen["kind"] == STIMULATION) & (evidence.seen["what"] == _TRAIN)]
    if not len(trains) or not evidence.pulses:
        return None
    train = trains[len(trains) // 2].copy()
    pulse = next((each for each in evidence.pulses if each["train"] == train["id"] and each["index"] == 0), None)
    if pulse is None:
        return None
    late = pulse | {"start_ns": int(1e9 * (float(train["t"]) + LATE_S + 0.02)), "index": 1}
    train["what"], train["t"] = _STOP, train["t"] + 1e-3
    return replace(evidence, seen=np.append(evidence.seen, train), pulses=[*evidence.pulses, late])


def _with_command(evidence: Evidence, change: Callable[[Any], None]) -> Evidence | None:
    rows = np.flatnonzero(evidence.seen["kind"] == COMMAND)
    rows = rows[(evidence.seen["flags"][rows] & _SILENT) != 0]
    if not len(rows):
        return None
    seen = evidence.seen.copy()
    change(seen[rows[0] : rows[0] + 1])
    return replace(evidence, seen=seen)


def _without_ticks(evidence: Evidence, *, recorded: bool, seen: bool) -> Evidence | None:
    """Take some consecutive ticks away that nobody flagged."""
    spikes = evidence.seen[evidence.seen["kind"] == SPIKES]
    calm = spikes[spikes["flags"] == 0]
    if len(calm) < 1000:
        return None
    begin = next((float(t) for t in calm["t"][len(calm) // 2 :: 50] if _is_calm(evidence, spikes, float(t))), None)
    if begin is None:
        return None
    end = begin + 0.02
    records = evidence.recorded
    if recorded:
        records = [
            replace(
                each,
                **{
                    name: getattr(each, name)[~((each.t >= begin) & (each.t < end))]
                    for name in ("tick", "t_sample", "flags", "t")
                },
            )
            for each in records
        ]
    heard = evidence.seen
    if seen:
        heard = heard[~((heard["kind"] == SPIKES) & (heard["t"] >= begin) & (heard["t"] < end))]
    return replace(evidence, seen=heard, recorded=records)


def _is_calm(evidence: Evidence, spikes: NDArray[Any], t: float) -> bool:
    """Say whether nothing is flagged in a tenth of a second, and all of it is recorded."""
    near = (spikes["t"] >= t) & (spikes["t"] < t + 0.1)
    n_recorded = sum(int(((each.t >= t) & (each.t < t + 0.1)).sum()) for each in evidence.recorded)
    return bool(near.sum() > 50 and n_recorded >= near.sum() and not spikes["flags"][near].any())


def _clear(row: Any) -> None:
    row["flags"] &= ~np.uint32(Flag.INHIBITED)


def _act(row: Any) -> None:
    row["nonzero"] = 1


_CHANGES: dict[str, Callable[[Evidence], Evidence | None]] = {
    "a pulse of twice the amplitude": lambda e: _with_pulse(e, amplitude_ua=2.0 * e.program["amplitude_ua"]),
    "a pulse on another electrode": lambda e: _with_pulse(e, electrode=3),
    "a pulse that is not balanced": lambda e: _with_pulse(e, amplitude2_ua=0.0),
    "a pulse of no train": lambda e: _with_pulse(e, train=0xFFFF_FFF0),
    "a pulse half a second late": lambda e: _with_pulse(e, later_s=0.5),
    "a pulse after a stop": _with_a_stop,
    "a command in silence without INHIBITED": lambda e: _with_command(e, _clear),
    "a command in silence that says to act": lambda e: _with_command(e, _act),
    "ticks that were published and not recorded": lambda e: _without_ticks(e, recorded=True, seen=False),
    "ticks that nobody has": lambda e: _without_ticks(e, recorded=True, seen=True),
}
