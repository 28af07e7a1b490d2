"""Takes the loop's results off its rings: counts, statistics, state, health, events, and messages Python must judge."""

import itertools
import logging
import math
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Marker
from neuromod.bridge import loop_state as rt
from neuromod.bridge import native, wire
from neuromod.bridge.assembly import Assembly
from neuromod.bridge.events import EventAligner
from neuromod.bridge.pipeline import COUNTERS, PAUSED, TICK
from neuromod.bridge.ring import append, available, drain, refused
from neuromod.bridge.wire import EventMessage
from neuromod.engine.errors import ProtocolError
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import MODULATORS

log = logging.getLogger(__name__)

_RATE_TAU_S = 0.5
_LONGEST_WAIT_S = 1.0
_PATIENCE_S = 0.05
_KEPT_EVENTS = 100_000
_LONGEST_EVENT = rt.FRAME_BYTES - len(wire.TOPIC_EVENT)
_LONGEST_TEXT = 256
_FRAMES_FOR_EVENTS = 48  # of 64: the rest is for state and health
_TAIL = 8  # where a ring counts what was taken from it
_REFUSED_BY_LOOP = {"ingest_oversized": "oversized", "ingest_parts": "parts"}
_CHANNELS = np.arange(N_CHANNELS, dtype=np.uint32)


class Collector:
    """Everything that Python does with the results of a running loop; one thread calls `turn`.

    Parameters
    ----------
    assembly : Assembly
        The parts of the loop.
    loop, rings
        Its state and its rings.
    clock : callable
        The local clock, in seconds.
    state_hz, health_s : float
        How often `state` and `health` are published.
    describe_source : callable
        Returns what health says of the source.
    on_ticks : callable, optional
        Gets every drained array of TICK records.
    is_timed : bool
        Whether stamps are on our clock. Those of a recording that plays as fast as it can are not: it has no latency.
    """

    def __init__(
        self,
        assembly: Assembly,
        loop: rt.Loop,
        rings: rt.Rings,
        *,
        clock: Callable[[], float],
        state_hz: float,
        health_s: float,
        describe_source: Callable[[], dict[str, Any]],
        on_ticks: Callable[[NDArray[Any]], None] | None = None,
        is_timed: bool = True,
    ) -> None:
        self.assembly, self.loop, self.rings = assembly, loop, rings
        self.state_hz, self.health_s = state_hz, health_s
        self.events = EventAligner()
        self.past_events: deque[EventMessage] = deque(maxlen=_KEPT_EVENTS)
        self.refusals: Counter[str] = Counter()
        self.spike_counts = np.zeros(N_CHANNELS, np.int64)
        self.is_stopping = False
        self.disconnects = 0
        self._clock, self._describe_source, self._on_ticks = clock, describe_source, on_ticks
        self._is_timed = is_timed
        self._markers: deque[tuple[Marker, int]] = deque()
        self.due_events: deque[bytes] = deque(maxlen=_KEPT_EVENTS)
        self._started = clock()
        self._last: NDArray[Any] = np.zeros(1, TICK)
        self._rates_hz = np.zeros(N_CHANNELS, np.float64)
        self._latencies: list[NDArray[np.float64]] = []
        self._next_state = self._next_health = self._last_state = self._last_health = self._started
        self._frame = np.zeros(1, rt.FRAME)
        self._frames_lock, self._inputs_lock = threading.Lock(), threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[threading.Event, list[int]]] = {}
        self._said_refusals: tuple[float, int] = (0.0, 0)
        self._overflowing: dict[str, int] = {}

    # -- to the loop --------------------------------------------------------------------------------------------------

    def publish(self, topic: bytes, payload: bytes) -> bool:
        """Have the loop send a message between two ticks; False, and counted, where too many wait already."""
        if len(topic) + len(payload) > rt.FRAME_BYTES:
            log.error("a %s message of %d bytes is too long to be sent", topic.decode(), len(payload))
            return False
        with self._frames_lock:
            frame = self._frame[0]
            frame["topic"], frame["payload"] = len(topic), len(payload)
            frame["data"][: len(topic) + len(payload)] = np.frombuffer(topic + payload, np.uint8)
            return append(self.rings.frames, self._frame)

    def submit(self, kind: int, *, word: int = 0, values: Any = (), number: int = 0) -> bool:
        """Leave an input for the loop; False, and counted, where too many wait already."""
        record = np.zeros(1, rt.INPUT)
        record[0]["kind"], record[0]["id"], record[0]["word"] = kind, number, word
        record[0]["values"][: len(values)] = values
        with self._inputs_lock:
            return append(self.rings.inputs, record)

    def call(self, kind: int, *, word: int = 0, values: Any = ()) -> int:
        """Leave an input, wait until it took effect, and return the first tick that it acts on.

        Raises
        ------
        TimeoutError
            If the loop did not take it within a second, or the session ends.
        """
        number = next(self._ids)
        done, answer = threading.Event(), [0]
        self._waiting[number] = (done, answer)
        try:
            left_s = _LONGEST_WAIT_S if self.submit(kind, word=word, values=values, number=number) else 0.0
            while left_s > 0.0 and not self.is_stopping and not done.wait(_PATIENCE_S):
                left_s -= _PATIENCE_S
            if not done.is_set():
                raise TimeoutError(f"the loop did not take the command within {_LONGEST_WAIT_S:g} s, or is stopping")
        finally:
            del self._waiting[number]
        return answer[0]

    def add_markers(self, markers: list[Marker], ordinals: list[int]) -> None:
        """Note markers of a source that the loop is fed from, each with its place among the samples."""
        self._markers.extend(zip(markers, ordinals, strict=True))

    # -- from the loop ------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Take everything that waits, and publish what is due."""
        for echo in drain(self.rings.echoes, rt.INPUT):
            if (waiting := self._waiting.get(int(echo["id"]))) is not None:
                waiting[1][0] = int(echo["tick"])
                waiting[0].set()
        reached = native.get_word(self.rings.samples.ends, _TAIL) - math.ceil(self.assembly.samples_per_block)
        ticks = drain(self.rings.ticks, TICK, limit=65536)
        if len(ticks):
            self._take_ticks(ticks)
        for frame in drain(self.rings.odd, rt.INGEST_FRAME):
            middle = int(frame["topic"])
            data = frame["data"].tobytes()
            self.judge(data[:middle], data[middle : middle + int(frame["payload"])])
        now = self._clock()
        self._place_markers(reached, now)
        self._publish_events(now)
        if self.state_hz and now >= min(self._next_state, self._last_state + 1.0 / self.state_hz):
            self._last_state = now
            self._next_state = max(self._next_state + 1.0 / self.state_hz, now)
            self.publish(wire.TOPIC_STATE, wire.pack_state(self._state(now)))
        if now >= min(self._next_health, self._last_health + self.health_s):
            self._last_health = now
            self._next_health = max(self._next_health + self.health_s, now)
            body = self.health()
            self._latencies.clear()
            self.publish(wire.TOPIC_HEALTH, wire.pack_health(wire.HealthMessage(body["t"], body["state"], body)))
            self._report_refusals(now)

    def finish(self) -> None:
        """Give the events that still wait for their tick the last one there was: nothing is lost."""
        self._place_markers(sys.maxsize, self._clock())
        self._publish_events(math.inf)

    def _publish_events(self, now: float) -> None:
        for event in self.events.take(now):
            self.past_events.append(event)
            self.due_events.append(self._pack_event(event))
        # as many as there is room for: a burst of markers is longer than the ring
        while self.due_events and available(self.rings.frames.ends) < _FRAMES_FOR_EVENTS:
            self.publish(wire.TOPIC_EVENT, self.due_events.popleft())

    def _pack_event(self, event: EventMessage) -> bytes:
        """Pack an event, whatever a marker stream or a recording put into it."""
        try:
            payload = wire.pack_event(event)
            if len(payload) <= _LONGEST_EVENT:
                return payload
        except (ProtocolError, ValueError, TypeError) as error:
            log.warning("event %.64r: %s; its value goes out as text", event.name, error)
        self.refusals["event_value"] += 1
        name, value = (ascii(part)[1:-1][:_LONGEST_TEXT] for part in (event.name, str(event.value)))
        return wire.pack_event(EventMessage(name, event.t, event.tick, event.source, value))

    def judge(self, topic: bytes, payload: bytes) -> None:
        """Read an ingest message that the loop did not take by itself; count what is wrong with it."""
        try:
            message = wire.unpack_ingest(topic, payload)
        except wire.MessageError as error:
            self.refuse(error.reason, str(error))
            return
        match message:
            case wire.StimuliInput():
                taken = self.submit(rt.STIMULI, values=message.values)
            case wire.ModulatorsInput():
                word, values = 0, np.zeros(len(MODULATORS))
                for i, name in enumerate(MODULATORS):
                    if name in message.levels:
                        word |= 1 << i
                        values[i] = message.levels[name]
                taken = self.submit(rt.LEVELS, word=word, values=values)
            case wire.RewardInput():
                taken = self.submit(rt.REWARD, values=[message.amount])
            case wire.StressInput():
                taken = self.submit(rt.STRESS, values=[message.amount])
            case wire.EventInput():
                now = self._clock()
                t = now if message.t is None else message.t
                self.events.add_event(message.name, t, message.value, "ingest", now)
                taken = True
        if not taken:
            self.refuse("overflow", "too many inputs wait for the loop")

    def refuse(self, reason: str, sentence: str) -> None:
        """Count a refused message; the log gets one line a second at the most."""
        self.refusals[str(reason)] += 1
        log.debug("refused a message: %s", sentence)

    def _take_ticks(self, ticks: NDArray[Any]) -> None:
        if self._on_ticks is not None:
            self._on_ticks(ticks)
        self._last = ticks[-1:].copy()
        live = ticks[(ticks["flags"] & (wire.Flag.FILLER | wire.Flag.PAUSED)) == 0]
        if not len(live):
            return
        self.events.add_ticks(live["t_sample"], live["tick"])
        if self._is_timed:
            self._latencies.append(live["t_tick"] - live["t_sample"])
        counts = (live["spikes"][:, None] >> _CHANNELS & 1).sum(axis=0, dtype=np.int64)
        self.spike_counts += counts
        span_s = len(live) * self.assembly.network.dt_ms / 1000.0
        keep = math.exp(-span_s / _RATE_TAU_S)
        self._rates_hz = self._rates_hz * keep + counts / span_s * (1.0 - keep)

    def _place_markers(self, reached: int, now: float) -> None:
        """Give a marker its time once the loop has had its sample: only then is the clock of a recording tied to ours.

        A block later, so that the tick that it belongs to has been taken too.
        """
        numbers = self.loop.block[0]["numbers"]
        while self._markers:
            marker, ordinal = self._markers[0]
            has_ended = self.loop.block[0]["shared"][rt.STATE] == rt.ENDED
            if ordinal >= reached and not has_ended:
                break
            self._markers.popleft()
            t = float(numbers[rt.OFFSET] + numbers[rt.RATE] * marker.t)
            self.events.add_event(marker.name, t, marker.value, "recording", now)

    # -- what is published --------------------------------------------------------------------------------------------

    @property
    def last_tick(self) -> int:
        """Number of the newest tick that was collected."""
        return int(self._last[0]["tick"])

    def state_name(self) -> str:
        """Say how the loop is, in the words of PROTOCOL.md."""
        if self.is_stopping:
            return "stopping"
        told = rt.STATE_NAMES[int(self.loop.block[0]["shared"][rt.STATE])]
        return "paused" if told == "streaming" and self.assembly.pipeline.words[PAUSED] else told

    def counters(self) -> dict[str, int]:
        """Everything counted since the session began."""
        # read while the loop writes: each is one aligned word, so none is torn
        found = dict(zip(COUNTERS, self.assembly.pipeline.counters.tolist(), strict=True))
        found |= dict(zip(rt.LOOP_COUNTERS, self.loop.block[0]["counters"].tolist(), strict=True))
        network = self.assembly.network.state[0]
        found["bad_stimuli"], found["bad_levels"] = int(network["bad_stimuli"]), int(network["bad_levels"])
        found["spikes"] = int(self.spike_counts.sum())
        found["ingest_disconnects"] = self.disconnects
        for name in _REFUSED_BY_LOOP:
            del found[name]
        for name in ("ticks", "echoes", "odd", "inputs", "frames", "out"):
            found[f"{name}_overflow"] = int(refused(getattr(self.rings, name).ends))
        return found

    def errors(self) -> dict[str, int]:
        """Messages refused since the session began, by reason, whoever refused them."""
        found = Counter(self.refusals)
        counted = dict(zip(rt.LOOP_COUNTERS, self.loop.block[0]["counters"].tolist(), strict=True))
        for name, reason in _REFUSED_BY_LOOP.items():
            found[reason] += counted[name]
        overflowing = self.assembly.pipeline.counters[COUNTERS.index("stimuli_overflow")]
        found["overflow"] += int(overflowing) + int(refused(self.rings.odd.ends))
        return {reason: count for reason, count in found.items() if count}

    def health(self) -> dict[str, Any]:
        """Return the health map as of now; its latencies are of the time since the last published one."""
        now, network = self._clock(), self.assembly.network
        rules = network.config.learning
        has_plasticity = rules.rule != "none" or rules.homeostasis is not None
        window = np.concatenate([np.empty(0), *self._latencies]) * 1e6
        latency = {}
        if len(window):
            p50, p99 = np.percentile(window, [50, 99])
            latency = {"p50": float(p50), "p99": float(p99), "max": float(window.max())}
        return {
            "v": wire.PROTOCOL_VERSION,
            "t": now,
            "state": self.state_name(),
            "tick": self.last_tick,
            "uptime_s": now - self._started,
            "counters": self.counters(),
            "errors": self.errors(),
            "latency_us": latency,
            "source": self._describe_source(),
            "warming_up": not (self.assembly.front_end.is_ready and self.assembly.encoder.is_ready),
            "excluded_channels": self.assembly.front_end.excluded,
            "learning": has_plasticity and bool(network.state[0]["learning"]),
        }

    def _state(self, now: float) -> wire.StateMessage:
        last = self._last[0]
        return wire.StateMessage(
            tick=int(last["tick"]),
            t=now,
            membrane=last["membrane"],
            modulators=dict(zip(MODULATORS, last["modulators"].tolist(), strict=True)),
            rates_hz=self._rates_hz.astype(np.float32),
        )

    def _report_refusals(self, now: float) -> None:
        """Say in the log, at the pace of health, what was refused or lost since the last time."""
        said_at, said = self._said_refusals
        errors = self.errors()
        total = sum(errors.values())
        if total > said:
            log.warning("refused %d messages in %.1f s; so far: %s", total - said, now - said_at, errors)
        self._said_refusals = (now, total)
        for name, count in self.counters().items():
            if name.endswith("overflow") and count > self._overflowing.get(name, 0):
                log.warning("%s: %d lost so far", name, count)
                self._overflowing[name] = count


def run(collector: Collector, stop: threading.Event, every_s: float = 0.01) -> None:
    """Call `turn` until `stop` is set, and once more."""
    while not stop.wait(every_s):
        collector.turn()
    collector.turn()
    collector.finish()
