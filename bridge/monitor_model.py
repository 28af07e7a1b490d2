"""What a monitor knows of a daemon: takes its messages, keeps the last seconds of them. No terminal, no sockets.

Messages of every tick come by the thousand each second: they are read as arrays, a batch at a time, from the fixed
layouts of PROTOCOL.md. All others are few, and unpacked one by one.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.actuators.base import Stimulation
from neuromod.bridge import wire
from neuromod.bridge.gate import REASONS
from neuromod.bridge.wire import Flag

TOPICS: Final = ("spikes", "command", "stimulation", "state", "array", "health", "event")
"""What a monitor subscribes to."""

WARN_S: Final = 1.0
SILENT_S: Final = 2.0
"""No message at all for so long: the daemon, or the way to it, is gone."""

KEPT_S: Final = 10.0
_MOST_TICKS: Final = 1 << 15
_LATENCIES: Final = 120  # seconds of history
_SAME_CLOCK_S: Final = 0.5
_NOTE_LOST_S: Final = 3.0
_ONE_RESTART_S: Final = 5.0
_MEMBRANE_FORGETS: Final = 0.995  # of its range, at each `state`

TICKS: Final = np.dtype([("t", "f8"), ("latency_us", "f8"), ("spikes", "u4"), ("flags", "u4")])
"""What is kept of a tick; `t` is when it ended."""

_SPIKES: Final = {"seq": ">u8", "tick": ">u8", "t_sample": ">f8", "t_tick": ">f8", "spikes": "<u2", "flags": ">u4"}
_COMMAND: Final = {"seq": ">u8", "t_tick": ">f8", "events": ">u4", "flags": ">u4"}
_IDLE: Final = int(Flag.FILLER | Flag.PAUSED)


class FrameReader:
    """Reads many messages of one fixed layout at a time, as records.

    Parameters
    ----------
    frame : Frame
        The layout.
    values : mapping of str to str
        Which of its values to read, and as what dtype.
    """

    def __init__(self, frame: wire.Frame, values: Mapping[str, str]) -> None:
        self.size = len(frame.template)
        self.dtype = np.dtype(
            {
                "names": list(values),
                "formats": list(values.values()),
                "offsets": [frame.offsets[name] for name in values],
                "itemsize": self.size,
            }
        )
        # keys and types, and what is the same in every message of this layout
        template = np.frombuffer(frame.template, np.uint8)
        self._is_fixed = np.zeros(self.size, np.bool_)
        self._is_fixed[0] = True
        for key, offset in frame.offsets.items():
            begin = frame.template.rindex(bytes([0xA0 | len(key)]) + key.encode(), 0, offset)
            self._is_fixed[begin : offset + {"v": 1, "n": 2}.get(key, 0)] = True
        self._expected = template[self._is_fixed]

    def read(self, payloads: Sequence[bytes]) -> tuple[NDArray[Any], list[bytes]]:
        """Return records of the messages in this layout, in order, and the messages in any other."""
        alike = [payload for payload in payloads if len(payload) == self.size]
        other = [payload for payload in payloads if len(payload) != self.size] if len(alike) < len(payloads) else []
        data = np.frombuffer(b"".join(alike), np.uint8).reshape(-1, self.size)
        is_good = (data[:, self._is_fixed] == self._expected).all(axis=1)
        if not is_good.all():
            other += [payload for payload, good in zip(alike, is_good, strict=True) if not good]
            data = np.ascontiguousarray(data[is_good])
        return data.reshape(-1).view(self.dtype), other


@dataclass(slots=True)
class Note:
    """A note of the operator on its way into the record: `t` on the daemon's clock, `tick` once it came back."""

    text: str
    t: float
    sent_at: float
    tick: int | None = None
    is_sent: bool = True
    told: str = ""  # the last that the operator was told of it


@dataclass(frozen=True, slots=True)
class Gate:
    """How the safety gate is, by all that was heard.

    Attributes
    ----------
    state : {"unknown", "off", "disarmed", "armed"}
    mode : str
    seconds_left : float or None
        Of the arming; None where there is none, or `health` has not told of it yet.
    heartbeat_s : float or None
        Since the operator's last heartbeat; None where none is asked for.
    ended_by : str
        What ended the last arming.
    arms : int
    counts : mapping of str to int
    dose_nc : float or None
    """

    state: str
    mode: str = ""
    seconds_left: float | None = None
    heartbeat_s: float | None = None
    ended_by: str = ""
    arms: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    dose_nc: float | None = None

    @property
    def refusals(self) -> dict[str, int]:
        """Trains refused, by reason, most first."""
        found = {name.removeprefix("refused_"): n for name, n in self.counts.items() if name.startswith("refused_")}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class Model:
    """Everything heard, as far back as it is shown. Times named `now` are of one monotonic clock of the caller."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.malformed = 0
        self.restarts = 0
        self.restarted_at: float | None = None
        self.heard_at: float | None = None
        self.events: deque[tuple[float, wire.EventMessage]] = deque(maxlen=200)
        self.notes: deque[Note] = deque(maxlen=50)
        self.refusal = ""  # why messages cannot be read at all
        self._spikes = FrameReader(wire.spikes_frame(wire.N_CHANNELS), _SPIKES)
        self._commands: dict[int, FrameReader] = {}
        self._forget()

    def _forget(self) -> None:
        """Begin anew, as with another daemon; what concerns this listener stays."""
        self.ticks = np.zeros(0, TICKS)
        self.tick = 0
        self.latencies: deque[tuple[float, float, float]] = deque(maxlen=_LATENCIES)
        self._latency_window: list[NDArray[np.float64]] = []
        self._latency_from = -math.inf
        self.state: wire.StateMessage | None = None
        self.membrane_range: NDArray[np.float64] | None = None
        self.health: dict[str, Any] = {}
        self.health_at: float | None = None
        self.command: tuple[NDArray[np.float32], int] | None = None  # values, flags
        self.command_events: dict[int, tuple[int, float]] = {}  # bit: how often, and when last, on the daemon's clock
        self.stimulation: Stimulation | None = None
        self.stimulation_at = -math.inf
        self.train: Stimulation | None = None
        self.counts = self.unit = ""
        self.rates_hz = self.noise = np.zeros(0, np.float32)
        self.positions_um: NDArray[np.float32] = np.zeros((0, 2), np.float32)
        self.excluded: set[int] = set()
        self.snippets: dict[int, wire.Snippet] = {}
        self._next_seq: dict[str, int] = {}
        self._offset_s: float | None = None

    # -- messages -----------------------------------------------------------------------------------------------------

    def take(self, topic: bytes, payloads: Sequence[bytes], now: float) -> None:
        """Take messages of one topic, in the order in which they came."""
        if not payloads:
            return
        self.heard_at = now
        if topic == wire.TOPIC_SPIKES:
            self._take_spikes(payloads, now)
        elif topic == wire.TOPIC_COMMAND:
            self._take_commands(payloads, now)
        else:
            for payload in payloads:
                self._take_one(topic, payload, now)

    def _take_one(self, topic: bytes, payload: bytes, now: float) -> None:
        message = self._unpack(topic, payload)
        match message:
            case wire.HealthMessage():
                uptime_s = message.body.get("uptime_s", math.inf)
                if self.health and uptime_s < self.health.get("uptime_s", -math.inf):
                    self._restart(now)
                self.health, self.health_at = message.body, now
                self._follow_clock(message.t, now)
            case wire.StateMessage():
                self._take_state(message)
                self._follow_clock(message.t, now)
            case wire.ArrayMessage():
                self._count("array", np.array([message.seq], np.uint64), now)
                self._take_array(message)
            case Stimulation():
                self._count("stimulation", np.array([message.seq], np.uint64), now)
                self.stimulation, self.stimulation_at = message, now
                if message.kind == "train":
                    self.train = message
            case wire.EventMessage():
                self._take_event(message, now)

    def _unpack(self, topic: bytes, payload: bytes) -> wire.OutputMessage | None:
        try:
            return wire.unpack_output(topic, payload)
        except wire.MessageError as error:
            self.malformed += 1
            if error.reason is wire.Reason.VERSION:
                self.refusal = str(error)
            return None

    def _take_spikes(self, payloads: Sequence[bytes], now: float) -> None:
        records, odd = self._spikes.read(payloads)
        if odd:  # another writer of msgpack: rare, and not worth an array
            read = [self._unpack(wire.TOPIC_SPIKES, payload) for payload in odd]
            good = [m for m in read if isinstance(m, wire.SpikesMessage) and len(m.spikes) == wire.N_CHANNELS]
            more = np.zeros(len(good), records.dtype)
            for record, message in zip(more, good, strict=True):
                bits = int(np.packbits(message.spikes, bitorder="little").view("<u2")[0])
                record["seq"], record["tick"], record["spikes"] = message.seq, message.tick, bits
                record["t_sample"], record["t_tick"], record["flags"] = message.t_sample, message.t_tick, message.flags
            records = np.concatenate([records, more])
            records = records[np.argsort(records["seq"], kind="stable")]
        if not len(records):
            return
        records = records[self._count("spikes", records["seq"], now) :]
        new = np.zeros(len(records), TICKS)
        new["t"] = records["t_tick"]
        new["latency_us"] = (records["t_tick"] - records["t_sample"]) * 1e6
        new["spikes"], new["flags"] = records["spikes"], records["flags"]
        self.tick = int(records["tick"][-1])
        new = new[np.isfinite(new["t"])]
        if not len(new):
            return
        kept = np.concatenate([self.ticks, new])[-_MOST_TICKS:]
        self.ticks = kept[kept["t"] > kept["t"][-1] - KEPT_S]
        self._follow_clock(float(new["t"][-1]), now)
        self._measure(new)

    def _measure(self, new: NDArray[Any]) -> None:
        """Add to the history of latencies, a second of ticks at a time."""
        live = new[(new["flags"] & _IDLE) == 0]
        self._latency_window.append(live["latency_us"][np.isfinite(live["latency_us"])])
        end = float(new["t"][-1])
        if end >= self._latency_from + 1.0:
            window = np.concatenate(self._latency_window)
            if len(window) and math.isfinite(self._latency_from):
                p50, p99 = np.percentile(window, [50, 99])
                self.latencies.append((float(p50), float(p99), float(window.max())))
            self._latency_window.clear()
            self._latency_from = end

    def _take_commands(self, payloads: Sequence[bytes], now: float) -> None:
        last = self._unpack(wire.TOPIC_COMMAND, payloads[-1])
        if last is None or not hasattr(last, "values"):
            return
        n = len(last.values)
        if n not in self._commands:
            self._commands[n] = FrameReader(wire.command_frame(n), _COMMAND)
        records, _ = self._commands[n].read(payloads)
        if not len(records):
            return
        records = records[self._count("command", records["seq"], now) :]
        self.command = (last.values, int(records["flags"][-1]))
        happened = int(np.bitwise_or.reduce(records["events"].astype(np.uint32)))
        for bit in range(happened.bit_length()):
            if happened >> bit & 1:
                with_it = records[(records["events"].astype(np.uint32) >> np.uint32(bit) & np.uint32(1)) == 1]
                before, _ = self.command_events.get(bit, (0, 0.0))
                self.command_events[bit] = (before + len(with_it), float(with_it["t_tick"][-1]))

    def _take_state(self, message: wire.StateMessage) -> None:
        self.state = message
        levels = message.membrane.astype(np.float64)
        if self.membrane_range is None or self.membrane_range.shape[1] != len(levels):
            self.membrane_range = np.stack([levels, levels])
        low, high = self.membrane_range
        middle = 0.5 * (low + high)
        low[:] = np.fmin(middle + (low - middle) * _MEMBRANE_FORGETS, levels)
        high[:] = np.fmax(middle + (high - middle) * _MEMBRANE_FORGETS, levels)

    def _take_array(self, message: wire.ArrayMessage) -> None:
        if len(self.rates_hz) != message.n:
            self.rates_hz, self.noise = (np.full(message.n, np.nan, np.float32) for _ in range(2))
            self.positions_um = np.zeros((0, 2), np.float32)
        here = slice(message.first, message.first + len(message.rates_hz))
        self.rates_hz[here], self.noise[here] = message.rates_hz, message.noise
        if len(message.positions_um):
            if len(self.positions_um) != message.n:
                self.positions_um = np.full((message.n, 2), np.nan, np.float32)
            self.positions_um[here] = message.positions_um
        self.excluded = {c for c in self.excluded if not here.start <= c < here.stop} | set(message.excluded)
        self.counts, self.unit = message.counts, message.unit
        for snippet in message.snippets:
            self.snippets.pop(snippet.channel, None)
            self.snippets[snippet.channel] = snippet  # the newest last
        while len(self.snippets) > 64:
            del self.snippets[next(iter(self.snippets))]

    def _take_event(self, message: wire.EventMessage, now: float) -> None:
        self.events.append((now, message))
        if message.name == "daemon.restarted":
            self._restart(now, is_told=True)
        if message.name == "note" and message.source == "ingest":
            for note in self.notes:
                if note.tick is None and note.text == message.value and abs(note.t - message.t) < 1e-6:
                    note.tick = message.tick
                    break

    # -- loss, restart, clock -----------------------------------------------------------------------------------------

    def _count(self, topic: str, seqs: NDArray[Any], now: float) -> int:
        """Count what is missing; return where in these messages a new daemon begins, 0 for nowhere."""
        numbers = seqs.astype(np.int64)
        expected = self._next_seq.get(topic, int(numbers[0]))
        steps = np.diff(numbers, prepend=expected - 1) - 1
        back = np.flatnonzero(steps < 0)
        begin = int(back[-1]) if len(back) else 0
        if len(back):
            self._restart(now)
            steps = steps[begin + 1 :]
        missing = int(steps[steps > 0].sum())
        if missing:
            self.lost[topic] += missing
        self._next_seq[topic] = int(numbers[-1]) + 1
        return begin

    def _restart(self, now: float, *, is_told: bool = False) -> None:
        """Begin anew with a daemon that was started again; several messages may tell of the same start."""
        if self.restarted_at is not None and now - self.restarted_at < (60.0 if is_told else _ONE_RESTART_S):
            return
        self.restarts += 1
        self.restarted_at = now
        if not is_told:
            self._forget()

    def _follow_clock(self, t: float, now: float) -> None:
        """Learn how far the daemon's clock is from ours; the least delay seen is the nearest to none."""
        if math.isfinite(t):
            apart = now - t
            self._offset_s = apart if self._offset_s is None else min(self._offset_s, apart)

    def daemon_time(self, now: float) -> float | None:
        """Return our moment `now` on the daemon's clock; None before anything was heard."""
        if self._offset_s is None:
            return None
        # on the daemon's own host the two are one clock, and what lies between is delay
        return now if 0.0 <= self._offset_s < _SAME_CLOCK_S else now - self._offset_s

    # -- what is shown ------------------------------------------------------------------------------------------------

    def age_s(self, now: float) -> float:
        """Return how long nothing was heard, in seconds; infinite where nothing ever was."""
        return math.inf if self.heard_at is None else now - self.heard_at

    def connection(self, now: float) -> str:
        """Return "waiting" (never heard), "live", "late" or "silent"."""
        age_s = self.age_s(now)
        if math.isinf(age_s):
            return "waiting"
        return "live" if age_s < WARN_S else "late" if age_s < SILENT_S else "silent"

    def gate(self, now: float) -> Gate:
        """Return how the gate is: by health, or by a message to stimulators that came after it."""
        told = self.health.get("stimulation", {})
        state = told.get("state", "unknown")
        health_at = self.health_at if self.health_at is not None else -math.inf
        since = now - health_at if math.isfinite(health_at) else 0.0
        ended_by = str(told.get("disarmed_by", ""))
        newest = self.stimulation
        if newest is not None and self.stimulation_at >= health_at:
            if newest.kind == "stop":
                state, ended_by = "disarmed", REASONS[newest.reason] if newest.reason < len(REASONS) else ""
            else:
                state = "armed"
        is_told = state == "armed" == told.get("state")
        heartbeat_s = told.get("heartbeat_s")
        return Gate(
            state=state,
            mode=str(told.get("mode", "")),
            seconds_left=max(0.0, told.get("seconds_left", 0.0) - since) if is_told else None,
            heartbeat_s=heartbeat_s + since if is_told and heartbeat_s is not None else None,
            ended_by=ended_by,
            arms=int(told.get("arms", 0)),
            counts=dict(told.get("counts", {})),
            dose_nc=told.get("dose_nc"),
        )

    def raster(self, n_columns: int, seconds: float = 5.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return spikes per channel and column of time, shape (16, n_columns), and the flags of each column.

        Columns lie on a grid of time that does not move, so that what has been drawn only scrolls; -1 marks a column
        without any tick.
        """
        counts = np.zeros((wire.N_CHANNELS, n_columns), np.int64)
        flags = np.full(n_columns, -1, np.int64)
        if not len(self.ticks):
            return counts, flags
        width_s = seconds / n_columns
        bins = np.floor(self.ticks["t"] / width_s).astype(np.int64)
        columns = bins - bins[-1] + n_columns - 1
        shown = columns >= 0
        columns, ticks = columns[shown], self.ticks[shown]
        flags[columns] = 0
        np.bitwise_or.at(flags, columns, ticks["flags"].astype(np.int64))
        for channel in range(wire.N_CHANNELS):
            fired = (ticks["spikes"] >> np.uint32(channel) & np.uint32(1)).astype(np.bool_)
            counts[channel] = np.bincount(columns[fired], minlength=n_columns)
        return counts, flags

    def ticks_per_s(self) -> float:
        """Return how often the network stepped in the last second heard."""
        if not len(self.ticks):
            return 0.0
        newest = self.ticks["t"][-1]
        recent = self.ticks[self.ticks["t"] > newest - 1.0]
        return float(((recent["flags"] & _IDLE) == 0).sum())

    def spikes_per_s(self) -> NDArray[np.float64]:
        """Return spikes of each channel in the last second heard."""
        if not len(self.ticks):
            return np.zeros(wire.N_CHANNELS)
        recent = self.ticks[self.ticks["t"] > self.ticks["t"][-1] - 1.0]["spikes"]
        fired = recent[:, None] >> np.arange(wire.N_CHANNELS, dtype=np.uint32) & np.uint32(1)
        return np.asarray(fired.sum(axis=0), np.float64)

    def note_state(self, note: Note, now: float) -> str:
        """Return "kept", "sent", "lost" (did not come back in time), or "unsent" (nobody took it)."""
        if note.tick is not None:
            return "kept"
        if not note.is_sent:
            return "unsent"
        return "lost" if now - note.sent_at > _NOTE_LOST_S else "sent"

    def summary(self, now: float) -> dict[str, Any]:
        """Return the state in one plain map, for programs."""
        gate, health = self.gate(now), self.health
        age_s = self.age_s(now)
        rates = self.rates_hz[np.isfinite(self.rates_hz)]
        noise = self.noise[np.isfinite(self.noise)]
        return {
            "connection": self.connection(now),
            "silent_s": None if math.isinf(age_s) else round(age_s, 3),
            "state": health.get("state"),
            "tick": self.tick,
            "uptime_s": health.get("uptime_s"),
            "ticks_per_s": self.ticks_per_s(),
            "spikes_per_s": self.spikes_per_s().tolist(),
            "modulators": dict(self.state.modulators) if self.state is not None else {},
            "latency_us": dict(health.get("latency_us", {})),
            "counters": {name: n for name, n in health.get("counters", {}).items() if n},
            "errors": dict(health.get("errors", {})),
            "array": {
                "channels": len(self.rates_hz),
                "counts": self.counts or None,
                "rate_hz_median": float(np.median(rates)) if len(rates) else None,
                "noise_median": float(np.median(noise)) if len(noise) else None,
                "unit": self.unit or None,
                "excluded": len(self.excluded),
            },
            "stimulation": {
                "state": gate.state,
                "mode": gate.mode or None,
                "seconds_left": None if gate.seconds_left is None else round(gate.seconds_left, 3),
                "heartbeat_s": gate.heartbeat_s,
                "ended_by": gate.ended_by or None,
                "counts": dict(gate.counts),
            },
            "recording": health.get("recording", {}).get("state"),
            "watchdogs": health.get("watchdogs", {}),
            "restarts": health.get("restarts"),
            "restarts_seen": self.restarts,
            "lost": dict(self.lost),
            "malformed": self.malformed,
        }
