"""Replays a recorded session bit for bit, and says at which tick it comes out otherwise.

The parts of the loop are built anew from the header of the log and begin as the log says that they began. Then all
that came from outside is brought in where it took effect, and everything that was computed is compared with the
record: spikes, decoded outputs and events, membranes, modulators, what spoke against stimulation, spikes of units,
every decision of the gate, and its answer to every arming. `consume` and `advance` are those of the live loop.

From samples, where they were recorded: front end and encoder too, so that stimuli and flags are compared as well. From
recorded stimuli, where they were not, or are not complete: all that follows the encoder.

Nothing is claimed that was not compared. Where ticks, or inputs that acted on them, are missing from the log, the state
is unknown from there on, and the replay goes on at the next checkpoint that the log holds, if there is one.
"""

import json as json_text
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.adapters.decoder import DECODER
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.gate import (
    CONDITION_BOARD,
    CONDITION_LATE,
    CONDITION_NONFINITE_STATE,
    CONDITION_STOPPED,
    DECISION,
    GATE,
    RESTORED,
    disarm,
    keep_doses,
)
from neuromod.bridge.loop_inputs import apply_input
from neuromod.bridge.loop_state import ARM, DECODER_SWAP, INPUT, INPUT_NAMES, RESTORE, SNAPSHOT, SOURCE_ZMQ, STIMULI
from neuromod.bridge.pipeline import (
    ANCHORED,
    N_DECISIONS,
    N_UNITS,
    PAUSED,
    RECORDS,
    TAKEN,
    TICK,
    TICK_NEXT,
    UNIT,
    Pipeline,
    advance,
    consume,
    forget_answers,
    set_time,
    stand_by,
)
from neuromod.bridge.recorder import SAMPLES
from neuromod.bridge.session import Session, versions
from neuromod.bridge.stimulation import MAX_DECISIONS_PER_TICK
from neuromod.bridge.wire import Flag
from neuromod.bridge.yoked import yoked_trains
from neuromod.engine.compiled import jit
from neuromod.engine.errors import SessionLogError
from neuromod.engine.layout import N_CHANNELS

FLAG_FILLER, FLAG_LATE, FLAG_PAUSED = int(Flag.FILLER), int(Flag.LATE), int(Flag.PAUSED)
_EXTERNAL = CONDITION_LATE | CONDITION_STOPPED  # what the loop, and not the pipeline, knew against stimulation

COMPUTED = (
    *("record", "tick", "flags", "modulators", "modulation", "step_ms"),
    *("spikes", "membrane", "events", "outputs", "conditions"),
)
"""Fields of a TICK record that are compared whatever the replay begins from; of the flags, LATE is the clock's.

Where it begins from stimuli, the other flags are given, too, but for BOARD.
"""
FROM_SAMPLES = ("sample", "stimuli")
"""Fields that are compared too where it begins from samples.

Not `t_sent`: where stimuli are the source, only their sender knows it, and nothing is computed from it.
"""

_TICKS_AT_ONCE = 8192
_BYTES_AT_ONCE = 16_000_000  # of samples
_DECISIONS_AT_ONCE = 65536
_UNITS_AT_ONCE = 65536
_OF_A_UNIT = ("record", "tick", "sample", "unit", "amplitude", "residual", "flags")  # the time is the clock's
_BLIND_FIELDS = ("mode", "delivered")  # which tell the condition

# what a compiled stretch ended with
_DONE, _SPECIAL, _LOST_INPUT, _FULL, _MORE_SAMPLES = range(5)
# where it is
_TICK, _INPUT, _NUMBER, _DECISION, _SAMPLE, _UNIT = range(6)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay came out otherwise for the first time.

    Attributes
    ----------
    record, tick : int
        Number of the record, and of the network step, as recorded.
    what : {"tick", "decision", "unit", "input"}
        What was compared.
    field : str
        Which of its fields.
    expected, got : object
        What the log says, and what the replay gave.
    """

    record: int
    tick: int
    what: str
    field: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        where = f"tick {self.tick} (record {self.record}): {self.what} {self.field}"
        return f"{where}: expected {self.expected}, got {self.got}"


@dataclass
class SessionReplay:
    """What the replay of a session gave.

    Attributes
    ----------
    folder : str
        The session.
    from_samples, from_stimuli : int
        Network steps that were compared, by what they were computed from.
    paused, fillers : int
        Records that are no step: paused ones are compared too, fillers hold nothing that was computed.
    decisions, inputs : int
        Decisions that were compared, and inputs that were applied.
    skipped : int
        Records of ticks that were not compared, since the state was unknown.
    decisions_lost : int
        Decisions that the replay came to and the log has lost, or was cut off before.
    units, units_lost : int
        The same of spikes of sorted units.
    losses : list of str
        Where the state became unknown or samples ran out, and where the replay went on.
    notes : list of str
        What is not as it was when the session was recorded.
    difference : Difference or None
        The first one, at which the replay ended.
    stream_s, wall_s : float
        Time that the compared steps stand for, and that the replay took.
    """

    folder: str
    from_samples: int = 0
    from_stimuli: int = 0
    paused: int = 0
    fillers: int = 0
    decisions: int = 0
    inputs: int = 0
    skipped: int = 0
    decisions_lost: int = 0
    units: int = 0
    units_lost: int = 0
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    difference: Difference | None = None
    stream_s: float = 0.0
    wall_s: float = 0.0

    @property
    def ticks(self) -> int:
        """Network steps that were compared."""
        return self.from_samples + self.from_stimuli

    @property
    def verdict(self) -> str:
        """Say "same", "differs", or "nothing": that nothing could be compared."""
        if self.difference is not None:
            return "differs"
        return "same" if self.ticks + self.paused + self.fillers else "nothing"

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        rate = self.stream_s / self.wall_s if self.wall_s > 0.0 else None
        return {"verdict": self.verdict, "ticks": self.ticks, **asdict(self), "times_real_time": rate}


def replay_session(
    folder: Path,
    *,
    use_samples: bool = True,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> SessionReplay:
    """Replay a session and compare it with its record, up to the first difference.

    Parameters
    ----------
    folder : Path
        The session; one that was killed, or is damaged, is replayed as far as its log goes.
    use_samples : bool
        Begin from raw samples where the log has them.
    on_progress : callable
        Gets how many records of ticks were gone through, and how many there are where the log says so.

    Raises
    ------
    SessionLogError, ConfigError
        The session cannot be read, was recorded in another layout, or lacks a file that its loop is built from.
    """
    session = Session(folder)
    with TemporaryDirectory(prefix="neuromod-replay-") as place:
        return _Replayer(session, Path(place), use_samples=use_samples, on_progress=on_progress).run()


# -- compiled ---------------------------------------------------------------------------------------------------------


@jit
def _reapply(
    pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any, given: Any, stimuli: NDArray[np.float32]
) -> None:
    """Let an input take effect once more; `given` gets the answer to an arming."""
    if given["kind"] == ARM:
        stimulation.gate[0]["conditions"] = np.int64(given["values"][2])
    apply_input(given, pipeline, network, decoder, stimulation, decoder, stimuli)


@jit
def _keep_decisions(pipeline: Pipeline, decisions: NDArray[Any], at: NDArray[np.int64]) -> None:
    """Move what the gate decided on into `decisions`."""
    for k in range(pipeline.words[N_DECISIONS]):
        decisions[at[_DECISION]] = pipeline.decisions[k]
        at[_DECISION] += 1
    pipeline.words[N_DECISIONS] = 0


@jit
def _keep_units(pipeline: Pipeline, units: NDArray[Any], at: NDArray[np.int64]) -> None:
    """Move the spikes of units into `units`."""
    for k in range(pipeline.words[N_UNITS]):
        units[at[_UNIT]] = pipeline.units[k]
        at[_UNIT] += 1
    pipeline.words[N_UNITS] = 0


@jit
def _play_stimuli(
    pipeline: Pipeline,
    network: Any,
    decoder: Any,
    stimulation: Any,
    ticks: NDArray[Any],
    made: NDArray[Any],
    given: NDArray[Any],
    decisions: NDArray[Any],
    stimuli: NDArray[np.float32],
    at: NDArray[np.int64],
) -> int:
    """Go through ticks by their recorded stimuli, until all are done or `_Replayer` must act.

    Parameters
    ----------
    pipeline, network, decoder, stimulation
        State of the parts; changed in place.
    ticks : ndarray of TICK, shape (n,)
        As recorded, without gaps.
    made : ndarray of TICK, shape (n,)
        Holds what a tick is given; gets what is computed.
    given : ndarray of INPUT
        Inputs in their order. Gets the tick that each acts on, and answers.
    decisions : ndarray of DECISION
        Gets what the gate decides on.
    stimuli : ndarray of float32, shape (16,)
        Room.
    at : ndarray of int64, shape (6,)
        Places in `ticks`, `given`, the number of the next input, the place in `decisions`; moved on.
    """
    words = pipeline.words
    while at[_TICK] < ticks.shape[0]:
        tick = ticks[at[_TICK]]
        while at[_INPUT] < given.shape[0] and given[at[_INPUT]]["record"] <= np.int64(tick["record"]):
            one = given[at[_INPUT]]
            if one["number"] != at[_NUMBER]:
                return _LOST_INPUT
            if one["kind"] == RESTORE or one["kind"] == DECODER_SWAP:
                return _SPECIAL
            one["tick"] = words[TICK_NEXT]
            if one["kind"] != STIMULI:  # which are in the recorded stimuli already
                _reapply(pipeline, network, decoder, stimulation, one, stimuli)
            at[_INPUT] += 1
            at[_NUMBER] += 1
        if np.int64(tick["inputs"]) != at[_NUMBER]:
            return _LOST_INPUT
        if tick["flags"] & FLAG_FILLER:
            stand_by(pipeline)
        else:
            if at[_DECISION] + MAX_DECISIONS_PER_TICK > decisions.shape[0]:
                return _FULL
            advance(pipeline, network, decoder, stimulation, made[at[_TICK]])
            _keep_decisions(pipeline, decisions, at)
        at[_TICK] += 1
    return _DONE


@jit
def _play_samples(
    pipeline: Pipeline,
    front_end: Any,
    encoder: Any,
    network: Any,
    decoder: Any,
    stimulation: Any,
    samples: NDArray[np.float32],
    stamps: NDArray[np.float64],
    ticks: NDArray[Any],
    made: NDArray[Any],
    given: NDArray[Any],
    decisions: NDArray[Any],
    units: NDArray[Any],
    stimuli: NDArray[np.float32],
    at: NDArray[np.int64],
    ticks_per_block: int,
    is_zmq: bool,
) -> int:
    """Go through whole blocks of ticks by their samples, until no whole one is left or `_Replayer` must act.

    Parameters
    ----------
    samples, stamps : ndarray of float32, shape (m, n_channels), and of float64, shape (m,)
        Without gaps. Changed in place.
    ticks_per_block : int
        Of the assembly.
    is_zmq : bool
        Whether messages of stimuli are the samples, so that as inputs they must not be added once more.

    units : ndarray of UNIT
        Gets the spikes of sorted units.

    Others as of `_play_stimuli`; `at` has the places in `samples` and `units` too.
    """
    words = pipeline.words
    while True:
        while at[_TICK] < ticks.shape[0] and ticks[at[_TICK]]["flags"] & FLAG_FILLER:
            stand_by(pipeline)
            at[_TICK] += 1
        if at[_INPUT] < given.shape[0] and given[at[_INPUT]]["samples"] <= words[TAKEN]:
            one = given[at[_INPUT]]
            if one["number"] != at[_NUMBER]:
                return _LOST_INPUT
            if one["kind"] == RESTORE or one["kind"] == DECODER_SWAP:
                return _SPECIAL
            one["tick"] = words[TICK_NEXT]
            if not (is_zmq and one["kind"] == STIMULI):
                _reapply(pipeline, network, decoder, stimulation, one, stimuli)
            at[_INPUT] += 1
            at[_NUMBER] += 1
            continue
        if at[_TICK] + ticks_per_block > ticks.shape[0]:
            return _DONE
        if at[_DECISION] + ticks_per_block * MAX_DECISIONS_PER_TICK > decisions.shape[0]:
            return _FULL
        if at[_UNIT] + pipeline.units.shape[0] > units.shape[0]:
            return _FULL
        n = stamps.shape[0] - at[_SAMPLE]
        if at[_INPUT] < given.shape[0]:
            n = min(n, given[at[_INPUT]]["samples"] - words[TAKEN])
        if n <= 0:
            return _MORE_SAMPLES
        tick = ticks[at[_TICK]]
        conditions: Any = np.int64(tick["conditions"])
        set_time(pipeline, tick["now_ns"], conditions & _EXTERNAL)
        block = made[at[_TICK] : at[_TICK] + ticks_per_block]  # room for one block, so that it closes at most one
        done, n_records = consume(
            pipeline,
            front_end,
            encoder,
            network,
            decoder,
            stimulation,
            samples,
            stamps,
            at[_SAMPLE],
            at[_SAMPLE] + n,
            block,
        )
        at[_SAMPLE] = done
        _keep_units(pipeline, units, at)
        if n_records > 0:
            if np.int64(tick["inputs"]) != at[_NUMBER]:
                return _LOST_INPUT
            _keep_decisions(pipeline, decisions, at)
            at[_TICK] += n_records


@jit
def _keep_gate(gate: NDArray[Any], before: NDArray[Any], restored: NDArray[Any], now_ns: int) -> None:
    """Put the gate back as it was before a checkpoint was restored, as the loop does."""
    restored[0] = gate[0]
    gate[0] = before[0]
    keep_doses(gate[0], restored[0])
    disarm(gate[0], RESTORED, now_ns)


# -- reading ----------------------------------------------------------------------------------------------------------


class _Feed:
    """Records of one kind, read as far as they are asked for; their field `record` never decreases."""

    def __init__(self, session: Session, kind: str, dtype: np.dtype[Any]) -> None:
        self._chunks = session.log_chunks(kind)
        self._dtype = dtype
        self.rows: NDArray[Any] = np.empty(0, dtype)
        self.has_ended = False

    def read(self, record: int) -> None:
        """Have in `rows` all that are numbered up to a record, and the one behind them where there is one."""
        parts = [self.rows]
        while not self.has_ended and not (len(parts[-1]) and parts[-1]["record"][-1] > record):
            chunk = next(self._chunks, None)
            if chunk is None:
                self.has_ended = True
            else:
                parts.append(np.frombuffer(chunk.payload, self._dtype))
        self.rows = np.concatenate(parts) if len(parts) > 1 else self.rows

    def n_until(self, record: int) -> int:
        """Return how many of `rows` are numbered up to a record."""
        return int(np.searchsorted(self.rows["record"].astype(np.int64), record, side="right"))

    def drop(self, n: int) -> None:
        """Forget the first `n` of `rows`."""
        self.rows = self.rows[n:]


class _Samples:
    """Raw samples, without gaps; `samples` and `stamps` hold those that are next."""

    def __init__(self, session: Session, n_channels: int) -> None:
        self._chunks = session.log_chunks(SAMPLES)
        self._limit = max(1, _BYTES_AT_ONCE // (4 * n_channels))
        self._waiting: tuple[int, NDArray[Any]] | None = None
        self.end = 0  # number of the sample behind those that are there
        self.why = ""  # why there are no more
        self.samples: NDArray[np.float32] = np.empty((0, n_channels), np.float32)
        self.stamps: NDArray[np.float64] = np.empty(0, np.float64)

    def seek(self, position: int) -> None:
        """Go forward to a sample."""
        self.why = ""
        # what has been read already
        n = max(0, len(self.stamps) - max(0, self.end - position))
        self.samples, self.stamps = self.samples[n:], self.stamps[n:]
        if position <= self.end:
            return
        while (found := self._next()) is not None:
            first, rows = found
            if first + len(rows) > position:
                skipped = max(0, position - first)
                self._waiting = (first + skipped, rows[skipped:])
                break
        self.end = position

    def more(self, done: int) -> bool:
        """Forget the first `done` samples, and read on; False where there are no more without a gap."""
        samples, stamps = [self.samples[done:]], [self.stamps[done:]]
        n = 0
        while n < self._limit and not self.why:
            found = self._next()
            if found is None:
                self.why = "the log has no more samples"
            elif found[0] != self.end:
                self._waiting = found
                self.why = f"{found[0] - self.end} samples are lost"
            else:
                samples.append(found[1]["values"])
                stamps.append(found[1]["stamp"])
                n += len(found[1])
                self.end += len(found[1])
        self.samples = np.ascontiguousarray(np.concatenate(samples), np.float32)
        self.stamps = np.ascontiguousarray(np.concatenate(stamps), np.float64)
        return n > 0

    def _next(self) -> tuple[int, NDArray[Any]] | None:
        if self._waiting is not None:
            found, self._waiting = self._waiting, None
            return found
        chunk = next(self._chunks, None)
        return None if chunk is None else (chunk.first, chunk.array())


# -- replaying --------------------------------------------------------------------------------------------------------


class _Replayer:
    """Replays one session, once."""

    def __init__(
        self, session: Session, place: Path, *, use_samples: bool, on_progress: Callable[[int, int | None], None]
    ) -> None:
        self.session, self.on_progress = session, on_progress
        self.result = SessionReplay(str(session.folder))
        for kind, dtype in (("ticks", TICK), ("inputs", INPUT), ("decisions", DECISION), ("units", UNIT)):
            if session.kinds.get(kind, UNIT if kind == "units" else None) != dtype:
                raise SessionLogError(
                    f"{session.folder} was recorded by version {session.metadata['versions']['neuromod']}, whose "
                    f"{kind} are laid out otherwise: replay it with that version"
                )
        self.end = session.end()
        self.parts = self._build(place)
        self.use_samples = use_samples and SAMPLES in session.kinds
        self.is_zmq = session.metadata["pulls"] == SOURCE_ZMQ
        self.inputs = _Feed(session, "inputs", INPUT)
        self.decisions = _Feed(session, "decisions", DECISION)
        self.samples = _Samples(session, self.parts.info.n_channels)
        self.units = _Feed(session, "units", UNIT) if "units" in session.kinds else None
        self.at = np.zeros(6, np.int64)
        self.made_decisions = np.zeros(max(_DECISIONS_AT_ONCE, self.parts.pipeline.decisions.shape[0]), DECISION)
        self.made_units = np.zeros(_UNITS_AT_ONCE, UNIT)
        self.stimuli = np.zeros(N_CHANNELS, np.float32)
        self.is_known = False  # the state of the loop
        self.by_samples = False  # that of front end and encoder too
        self.missing = 0  # records of ticks between others

    def run(self) -> SessionReplay:
        begun = time.perf_counter()
        self._begin()
        total = None if self.end is None else int(self.end["records"].get("ticks", 0))
        n_seen, left = 0, np.empty(0, TICK)
        for ticks, is_last in self._windows():
            n_seen += len(ticks)
            if len(left) and left[-1]["record"] + 1 != ticks[0]["record"]:
                self._take(left, is_last=True)
                left = left[:0]
            left = self._take(np.concatenate([left, ticks]), is_last=is_last)
            self.on_progress(n_seen, total)
            if self.result.difference is not None:
                break
        if self.result.difference is None:
            self._play_rest()
            self._check_end()
        self.result.stream_s = self.result.ticks * self.parts.network.dt_ms / 1000.0
        self.result.wall_s = time.perf_counter() - begun
        return self.result

    # -- begin

    def _build(self, place: Path) -> Assembly:
        header = self.session.unsealed()
        config = self.session.materialise(place)
        stream = dict(header["stream"])
        info = StreamInfo(**stream | {"channel_names": tuple(stream["channel_names"]), "units": tuple(stream["units"])})
        scale = None if header["scale"] is None else np.array(header["scale"], np.float32)
        stimulation = config.stimulation
        yoked = None
        if stimulation is not None and stimulation.yoked_session is not None:
            yoked = yoked_trains(stimulation.yoked_session, [e.name for e in stimulation.electrodes])
        parts = assemble(config, info, scale=scale, yoked=yoked)
        now = versions()
        for name, then in header["versions"].items():
            if now.get(name) != then:
                self.result.notes.append(f"recorded with {name} {then}, this is {now.get(name)}")
        return parts

    def _begin(self) -> None:
        """Set the parts to what they were when the session began."""
        found = self._blob("checkpoints", 0)
        if found is None:
            self._lose("the log does not hold the state at the beginning")
            return
        fresh = [part.tobytes() for part in self.parts.parts()]
        self._set(found)
        gate = self.parts.stimulation.gate
        changed = [
            a
            for a, b in zip(self.parts.parts(), fresh, strict=True)
            if a.ctypes.data != gate.ctypes.data and a.tobytes() != b
        ]
        if changed:  # as on a machine whose exponential function rounds otherwise
            self.result.notes.append(
                "this program builds the loop otherwise; the replay begins from the recorded state"
            )

    def _set(self, found: dict[str, Any]) -> None:
        """Set all parts to a recorded state; what knows samples, too."""
        self._copy(found["data"])
        block = self.parts.stimulation.block
        block[:] = np.frombuffer(found["stimulation"], block.dtype)
        self.is_known, self.by_samples = True, self.use_samples
        if self.by_samples:
            self.samples.seek(int(self.parts.pipeline.words[TAKEN]))
            self.at[_SAMPLE] = 0

    def _copy(self, data: bytes) -> None:
        expected = sum(part.nbytes for part in self.parts.parts())
        if len(data) != expected:
            raise SessionLogError(
                f"{self.session.folder}: a recorded state has {len(data)} bytes, not the {expected} of this loop; "
                "replay it with the version that it was recorded with"
            )
        done = 0
        for part in self.parts.parts():
            rows = part.reshape(-1)
            rows[:] = np.frombuffer(data, part.dtype, rows.size, done)
            done += part.nbytes

    def _blob(self, kind: str, number: int) -> dict[str, Any] | None:
        return next((m for m in self.session.messages(kind) if m["id"] == number and "data" in m), None)

    # -- through the ticks

    def _windows(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """Yield records of ticks without gaps between their numbers, and whether nothing goes on behind them."""
        waiting: list[NDArray[Any]] = []
        for chunk in self.session.log_chunks("ticks"):
            rows = np.frombuffer(chunk.payload, TICK)
            for part in np.split(rows, np.flatnonzero(np.diff(rows["record"].astype(np.int64)) != 1) + 1):
                if waiting and waiting[-1]["record"][-1] + 1 != part["record"][0]:
                    yield np.concatenate(waiting), True
                    waiting = []
                waiting.append(part)
            if sum(map(len, waiting)) >= _TICKS_AT_ONCE:
                yield np.concatenate(waiting), False
                waiting = []
        yield np.concatenate([np.empty(0, TICK), *waiting]), True

    def _take(self, ticks: NDArray[Any], *, is_last: bool) -> NDArray[Any]:
        """Go through ticks; return those that wait for the rest of their block."""
        words = self.parts.pipeline.words
        while len(ticks) and self.result.difference is None:
            if self.is_known and ticks[0]["record"] != words[RECORDS]:
                missing = int(ticks[0]["record"]) - int(words[RECORDS])
                self.missing += missing
                self._lose(f"{missing} records of ticks are missing before record {ticks[0]['record']}")
            if not self.is_known:
                ticks = self._resume(ticks)
                continue
            n, is_waiting = self._play(ticks)
            ticks = ticks[n:]
            if is_waiting and len(ticks):  # for the rest of a block
                if not is_last:
                    break
                self._leave_samples("the last block is not complete")
        return ticks

    def _lose(self, why: str) -> None:
        self.is_known = False
        self.result.losses.append(f"{why}: the state is unknown from there on")

    def _leave_samples(self, why: str) -> None:
        self.by_samples = False
        self.result.losses.append(f"{why}: from record {self.parts.pipeline.words[RECORDS]} on by recorded stimuli")

    def _resume(self, ticks: NDArray[Any]) -> NDArray[Any]:
        """Set the state to the first checkpoint within these ticks; return those behind it, if there are any."""
        first, last = int(ticks[0]["record"]), int(ticks[-1]["record"])
        self.inputs.read(last)
        for k in range(self.inputs.n_until(last)):
            one = self.inputs.rows[k]
            if one["record"] < first or one["kind"] not in (SNAPSHOT, RESTORE):
                continue
            # a restored one leaves the gate as it was, which is unknown
            if one["kind"] == RESTORE and self.parts.stimulation_config is not None:
                continue
            found = self._blob("checkpoints", int(one["id"]))
            if found is None:
                continue
            behind: NDArray[Any] = ticks[ticks["record"] >= one["record"]]
            words = self.parts.pipeline.words
            if one["kind"] == RESTORE:
                found = found | {"stimulation": self.parts.stimulation.block.tobytes()}
                self._copy(found["data"])
                self._overrule(bool(behind[0]["flags"] & FLAG_PAUSED), int(one["record"]), int(one["samples"]))
                found |= {"data": b"".join(part.tobytes() for part in self.parts.parts())}
            self._set(found)
            words[RECORDS] = one["record"]
            self.at[_NUMBER] = one["number"] + 1
            self.inputs.drop(k + 1)
            self._drop_decisions(int(one["record"]) - 1)
            self.result.skipped += len(ticks) - len(behind)
            self.result.losses.append(f"the replay goes on from the checkpoint at record {one['record']}")
            return behind
        self.inputs.drop(self.inputs.n_until(last))
        self._drop_decisions(last)
        self.result.skipped += len(ticks)
        return ticks[:0]

    def _drop_decisions(self, record: int) -> None:
        self.decisions.read(record)
        self.decisions.drop(self.decisions.n_until(record))
        self._drop_units(record)

    def _drop_units(self, record: int) -> None:
        if self.units is not None:
            self.units.read(record)
            self.units.drop(self.units.n_until(record))

    def _play(self, ticks: NDArray[Any]) -> tuple[int, bool]:
        """Play ticks as far as they go, and compare them; return how many, and whether all were that can be for now."""
        last = int(ticks[-1]["record"])
        self.inputs.read(last)
        inputs = self.inputs.rows[: self.inputs.n_until(last)]
        given = _unanswered(inputs)
        made = np.zeros(len(ticks), TICK) if self.by_samples else _stripped(ticks)
        at, started_by_samples = self.at, self.by_samples
        at[_TICK] = at[_INPUT] = at[_DECISION] = at[_UNIT] = 0
        status = _FULL
        while status in (_FULL, _SPECIAL, _MORE_SAMPLES):
            status = self._stretch(ticks, made, given)
            if status == _SPECIAL and not self._apply_special(given[at[_INPUT]]):
                break
            if status == _FULL and at[_DECISION] == at[_UNIT] == 0:
                raise SessionLogError("a block has more decisions than there is room for")
            if status == _FULL:
                break  # compare these, then go on
            if status == _MORE_SAMPLES:
                if not self.samples.more(int(at[_SAMPLE])):
                    at[_SAMPLE] = 0
                    self._leave_samples(self.samples.why)
                    break
                at[_SAMPLE] = 0
        if status == _LOST_INPUT:
            where = int(ticks[at[_TICK]]["record"])
            self._lose(f"an input that acted before record {where} is not in the log")
        n, n_inputs = int(at[_TICK]), int(at[_INPUT])
        self._compare(ticks[:n], made[:n], inputs[:n_inputs], given[:n_inputs], by_samples=started_by_samples)
        self.inputs.drop(n_inputs)
        return n, status == _DONE

    def _play_rest(self) -> None:
        """Apply the inputs behind the last tick, by way of a filler that is none of the session's."""
        if not self.is_known:
            return
        self.inputs.read(np.iinfo(np.int64).max)
        n = self.inputs.n_until(int(self.parts.pipeline.words[RECORDS]))
        if n < len(self.inputs.rows):
            what = f"{len(self.inputs.rows) - n} inputs"
            self.result.losses.append(f"{what} at the end are left out: ticks between them are not in the log")
        inputs, self.by_samples = self.inputs.rows[:n], False
        given, last = _unanswered(inputs), np.zeros(1, TICK)
        last["flags"], last["record"], last["inputs"] = FLAG_FILLER, 1 << 60, self.at[_NUMBER] + len(inputs)
        self.at[_TICK] = self.at[_INPUT] = self.at[_DECISION] = self.at[_UNIT] = 0
        while (status := self._stretch(last, last, given)) == _SPECIAL and self._apply_special(given[self.at[_INPUT]]):
            pass
        if status == _LOST_INPUT:
            self._lose("an input behind the last tick is not in the log")
        n = int(self.at[_INPUT])
        self._compare(last[:0], last[:0], inputs[:n], given[:n], by_samples=False)

    def _stretch(self, ticks: NDArray[Any], made: NDArray[Any], given: NDArray[Any]) -> int:
        parts = self.parts
        if self.by_samples:
            status = _play_samples(
                *parts.states,
                self.samples.samples,
                self.samples.stamps,
                ticks,
                made,
                given,
                self.made_decisions,
                self.made_units,
                self.stimuli,
                self.at,
                parts.ticks_per_block,
                self.is_zmq,
            )
        else:
            pipeline, _, _, network, decoder, stimulation = parts.states
            status = _play_stimuli(
                pipeline,
                network,
                decoder,
                stimulation,
                ticks,
                made,
                given,
                self.made_decisions,
                self.stimuli,
                self.at,
            )
        return int(status)

    def _apply_special(self, one: Any) -> bool:
        """Let an input take effect that brings something with it; False where that is not in the log."""
        pipeline, stimulation = self.parts.pipeline, self.parts.stimulation
        words = pipeline.words
        kind = "checkpoints" if one["kind"] == RESTORE else "decoders"
        found = self._blob(kind, int(one["id"]))
        if found is None:
            self._lose(f"what the {INPUT_NAMES[one['kind']]} before record {one['record']} brought is not in the log")
            return False
        one["tick"] = words[TICK_NEXT]
        if one["kind"] == RESTORE:
            kept = bool(words[PAUSED]), int(words[RECORDS]), int(words[TAKEN])
            gate, restored = stimulation.gate.copy(), np.zeros(1, GATE)
            self._copy(found["data"])
            self._overrule(*kept)
            _keep_gate(stimulation.gate, gate, restored, int(one["now_ns"]))
            one["tick"] = words[TICK_NEXT]
        else:
            decoder = np.frombuffer(found["data"], DECODER).copy()
            _install(self.parts, decoder, one)
        self.at[_INPUT] += 1
        self.at[_NUMBER] += 1
        return True

    def _overrule(self, is_paused: bool, records: int, taken: int) -> None:
        """Set what a checkpoint does not change."""
        words = self.parts.pipeline.words
        words[PAUSED], words[RECORDS], words[TAKEN], words[ANCHORED] = is_paused, records, taken, 0
        words[N_DECISIONS] = words[N_UNITS] = 0
        forget_answers(self.parts.pipeline)

    # -- comparing

    def _compare(
        self,
        ticks: NDArray[Any],
        made: NDArray[Any],
        inputs: NDArray[Any],
        given: NDArray[Any],
        *,
        by_samples: bool,
    ) -> None:
        """Compare what was computed with what was recorded, and count it; note the first difference."""
        result = self.result
        is_filler = (ticks["flags"] & FLAG_FILLER) != 0
        made[is_filler] = ticks[is_filler]
        fields: tuple[str, ...] = COMPUTED
        if by_samples:
            made["flags"] |= ticks["flags"] & FLAG_LATE
            fields = FROM_SAMPLES + fields
        found = [
            _first(ticks, made, fields, "tick", ticks["record"], ticks["tick"]),
            _first(inputs, given, ("tick", "values"), "input", inputs["record"], inputs["tick"]),
            *self._compare_decisions(ticks),
            *self._compare_units(ticks, by_samples=by_samples),
        ]
        differences = [one for one in found if one is not None]
        n = len(ticks)
        if differences:
            # an input acts before its tick, a decision comes after it
            result.difference = min(
                differences, key=lambda d: (d.record, ("input", "unit", "tick", "decision").index(d.what))
            )
            if self.session.is_blind and result.difference.field in _BLIND_FIELDS:
                d = result.difference
                result.difference = Difference(d.record, d.tick, d.what, d.field, "sealed", "sealed")
            n = int((ticks["record"] < result.difference.record).sum())
        is_paused = (ticks["flags"][:n] & FLAG_PAUSED) != 0
        n_fillers, n_paused = int(is_filler[:n].sum()), int((is_paused & ~is_filler[:n]).sum())
        result.fillers += n_fillers
        result.paused += n_paused
        if by_samples:
            result.from_samples += n - n_fillers - n_paused
        else:
            result.from_stimuli += n - n_fillers - n_paused
        result.inputs += len(inputs)

    def _compare_decisions(self, ticks: NDArray[Any]) -> list[Difference | None]:
        if not len(ticks):
            return []
        last = int(ticks[-1]["record"])
        self.decisions.read(last)
        n = self.decisions.n_until(last)
        recorded, made = self.decisions.rows[:n], self.made_decisions[: self.at[_DECISION]]
        _, in_recorded, in_made = np.intersect1d(recorded["id"], made["id"], return_indices=True)
        a, b = recorded[in_recorded], made[in_made]
        found = [_first(a, b, DECISION.names or (), "decision", a["record"], a["tick"])]
        self.result.decisions += len(a)
        extra = recorded[~np.isin(recorded["id"], made["id"])]
        if len(extra):
            found.append(_difference(extra[0], "id", int(extra[0]["id"]), "no such decision"))
        absent = made[~np.isin(made["id"], recorded["id"])]
        has_later = len(self.decisions.rows) > n
        for one in absent:
            # decisions are numbered: one between two others was made, and lost on its way into the log
            if (
                has_later
                or (n and one["id"] < recorded["id"][-1])
                or self.end is None
                or self.end["lost"].get("decisions")
            ):
                self.result.decisions_lost += 1
            else:
                found.append(_difference(one, "id", "no such decision", int(one["id"])))
                break
        self.decisions.drop(n)
        return found

    def _compare_units(self, ticks: NDArray[Any], *, by_samples: bool) -> list[Difference | None]:
        if self.units is None or not len(ticks):
            return []
        last = int(ticks[-1]["record"])
        if not by_samples:
            self._drop_units(last)
            return []
        self.units.read(last)
        n = self.units.n_until(last)
        recorded, made = self.units.rows[:n], self.made_units[: self.at[_UNIT]]
        self.units.drop(n)
        made = made[made["record"] <= last]
        keys = [rows["sample"].astype(np.int64) << 16 | rows["unit"] for rows in (recorded, made)]
        _, in_recorded, in_made = np.intersect1d(*keys, return_indices=True)
        a, b = recorded[in_recorded], made[in_made]
        found = [_first(a, b, _OF_A_UNIT, "unit", a["record"], a["tick"])]
        self.result.units += len(a)
        extra, absent = recorded[~np.isin(keys[0], keys[1])], made[~np.isin(keys[1], keys[0])]
        if len(extra):
            one = extra[0]
            found.append(
                Difference(int(one["record"]), int(one["tick"]), "unit", "unit", int(one["unit"]), "no such spike")
            )
        if self.end is None or self.end["lost"].get("units"):
            self.result.units_lost += len(absent)
        elif len(absent):
            one = absent[0]
            found.append(
                Difference(int(one["record"]), int(one["tick"]), "unit", "unit", "no such spike", int(one["unit"]))
            )
        return found

    def _check_end(self) -> None:
        """Say what the log tells of its own end, where ticks after the last one that is there were lost."""
        if self.end is None:
            return
        written = int(self.end["records"].get("ticks", 0))
        seen = self.result.ticks + self.result.paused + self.result.fillers + self.result.skipped + self.missing
        if self.is_known and seen < written:
            self.result.losses.append(f"{written - seen} records of ticks at the end cannot be read")


def _install(parts: Assembly, decoder: NDArray[Any], one: Any) -> None:
    """Let DECODER_SWAP take effect, by the function of the loop."""
    echo = np.zeros(1, INPUT)
    echo[0] = one
    _swap(parts.pipeline, parts.network.state, parts.decoder, parts.stimulation, decoder, echo)


@jit
def _swap(
    pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any, next_decoder: NDArray[Any], echo: NDArray[Any]
) -> None:
    apply_input(echo[0], pipeline, network, decoder, stimulation, next_decoder, pipeline.added)


def _unanswered(inputs: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of inputs without what the loop answered."""
    given = inputs.copy()
    given["tick"] = 0
    given["values"][given["kind"] == ARM, 1] = 0.0
    return given


def _stripped(ticks: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of ticks without anything that was computed, so that nothing can be taken for its own proof."""
    made = ticks.copy()
    for name in COMPUTED:
        if name not in ("conditions", "flags"):
            made[name] = 0
    made["conditions"] &= ~np.uint32(CONDITION_NONFINITE_STATE | CONDITION_BOARD)
    made["flags"] &= ~np.uint32(Flag.BOARD)
    return made


def _first(
    expected: NDArray[Any],
    got: NDArray[Any],
    fields: tuple[str, ...],
    what: str,
    records: NDArray[Any],
    ticks: NDArray[Any],
) -> Difference | None:
    """Return the first place at which any bit of the fields differs."""
    found: list[tuple[int, str]] = []
    for name in fields:
        a, b = (np.ascontiguousarray(rows[name]) for rows in (expected, got))
        if a.tobytes() != b.tobytes():
            shape = (len(a), -1)
            rows_differ = (a.view(np.uint8).reshape(shape) != b.view(np.uint8).reshape(shape)).any(axis=1)
            found.append((int(np.flatnonzero(rows_differ)[0]), name))
    if not found:
        return None
    at, name = min(found, key=lambda one: one[0])
    values = (_plain(rows[name][at]) for rows in (expected, got))
    return Difference(int(records[at]), int(ticks[at]), what, name, *values)


def _difference(decision: Any, name: str, expected: Any, got: Any) -> Difference:
    return Difference(int(decision["record"]), int(decision["tick"]), "decision", name, expected, got)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


# -- command ----------------------------------------------------------------------------------------------------------


def replay_session_command(folder: Path, *, json: bool) -> int:
    """Replay a session and say what came of it; the body of `neuromod replay SESSION`.

    Returns
    -------
    int
        Exit code: 0 where all that was compared is the same, 1 where it differs, 2 where nothing could be compared.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=json or not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"replaying {folder.name}", total=None)
        result = replay_session(
            folder, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    if json:
        print(json_text.dumps(_finite(result.as_dict()), indent=2, allow_nan=False))
    else:
        _print(result)
    return {"same": 0, "differs": 1, "nothing": 2}[result.verdict]


def _finite(value: Any) -> Any:
    """Return plain data with text for the numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _print(result: SessionReplay) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=result.folder, show_header=False)
    verdict = {
        "same": "[green]the same, bit for bit",
        "differs": "[red]differs",
        "nothing": "[red]nothing could be compared",
    }[result.verdict]
    table.add_row("verdict", verdict)
    if result.difference is not None:
        table.add_row("[red]first at", escape(str(result.difference)))
    rate = result.stream_s / result.wall_s if result.wall_s > 0.0 else 0.0
    table.add_row("replayed", f"{result.stream_s:.2f} s in {result.wall_s:.2f} s ({rate:.1f} x real time)")
    table.add_row(
        "ticks", f"{result.ticks} compared: {result.from_samples} from samples, {result.from_stimuli} from stimuli"
    )
    odd = {"paused": result.paused, "fillers": result.fillers, "not compared": result.skipped}
    if told := ", ".join(f"{count} {name}" for name, count in odd.items() if count):
        table.add_row("", told)
    lost = f", {result.decisions_lost} not in the log" if result.decisions_lost else ""
    table.add_row("decisions", f"{result.decisions} compared{lost}")
    if result.units or result.units_lost:
        lost = f", {result.units_lost} not in the log" if result.units_lost else ""
        table.add_row("spikes of units", f"{result.units} compared{lost}")
    table.add_row("inputs", str(result.inputs))
    for sentence in result.losses:
        table.add_row("[yellow]loss", escape(sentence))
    for sentence in result.notes:
        table.add_row("[yellow]note", escape(sentence))
    Console(soft_wrap=False).print(table)
