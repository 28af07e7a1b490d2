"""Takes the loop's results off its rings: counts, statistics, state, health, events, and messages Python must judge."""

import dataclasses
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
from neuromod.adapters.decoder import KINDS
from neuromod.bridge import gate as safety
from neuromod.bridge import loop_state as rt
from neuromod.bridge import native, wire
from neuromod.bridge import stimulation as stimulating
from neuromod.bridge.admission import Admission
from neuromod.bridge.array_watch import ArrayWatch
from neuromod.bridge.assembly import Assembly
from neuromod.bridge.commands import CommandError
from neuromod.bridge.doorkeeper import Doorkeeper
from neuromod.bridge.events import EventAligner
from neuromod.bridge.histograms import Histograms
from neuromod.bridge.pipeline import COUNTERS, DELAY, PAUSED, TICK, UNIT
from neuromod.bridge.recorder import Recorder
from neuromod.bridge.ring import append, available, drain, refused
from neuromod.bridge.roles import EVERY_ROLE, INGEST_ROLES, Sender, names_of
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
_OF_STIMULATORS = ("stimulated", "refused")  # events in which a stimulator answers the gate
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
    state_hz, array_hz, health_s : float
        How often `state`, `array` and `health` are published.
    describe_source : callable
        Returns what health says of the source.
    on_ticks, on_units : callable, optional
        Gets every drained array of TICK records, and of UNIT.
    is_timed : bool
        Whether stamps are on our clock. Those of a recording that plays as fast as it can are not: it has no latency.
    recorder : Recorder, optional
        Keeps everything.
    on_behind : callable, optional
        Gets the sentence that says why the loop has ended, where it fell behind its source and is to stop then.
    door : Doorkeeper, optional
        Tells of connections.
    admission : Admission, optional
        Says whether a request for stimulation came before.
    """

    def __init__(
        self,
        assembly: Assembly,
        loop: rt.Loop,
        rings: rt.Rings,
        *,
        clock: Callable[[], float],
        state_hz: float,
        array_hz: float = 0.0,
        health_s: float,
        describe_source: Callable[[], dict[str, Any]],
        on_ticks: Callable[[NDArray[Any]], None] | None = None,
        on_units: Callable[[NDArray[Any]], None] | None = None,
        is_timed: bool = True,
        recorder: Recorder | None = None,
        on_behind: Callable[[str], None] | None = None,
        door: Doorkeeper | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.assembly, self.loop, self.rings = assembly, loop, rings
        self.state_hz, self.array_hz, self.health_s = state_hz, array_hz, health_s
        self.events = EventAligner()
        self.past_events: deque[EventMessage] = deque(maxlen=_KEPT_EVENTS)
        self.refusals: Counter[str] = Counter()
        self.spike_counts = np.zeros(N_CHANNELS, np.int64)
        self.is_stopping = False
        self._door, self._admission = door, admission or Admission(None)
        self.heard: dict[str, int] = {}  # how often those said `alive` who are watched
        self.more_health: dict[str, Callable[[], Any]] = {}  # what other parts of the daemon say, by key
        self._clock, self._describe_source, self._on_ticks = clock, describe_source, on_ticks
        self._on_units = on_units
        self.is_timed = is_timed
        self.histograms = Histograms()
        self.recorder = recorder
        self._on_behind = on_behind
        self._last_role_refusal = ""
        self._array = ArrayWatch(assembly, loop, rings.raw, recorder)
        stimulation = assembly.stimulation_config
        self.peers = stimulation.peers if stimulation is not None else ()
        self.programs = tuple(p.name for p in stimulation.programs) if stimulation is not None else ()
        decoder = assembly.decoder[0]
        # by its version: where each decoder is from that may come to run
        self.decoder_sources = {int(decoder["version"]): "session" if decoder["n_outputs"] else ""}
        self._effects: deque[tuple[int, float]] = deque(maxlen=65536)  # (tick that it acts on, when it was sent)
        self._ingest_latencies: list[NDArray[np.float64]] = []
        self._markers: deque[tuple[Marker, int]] = deque()
        self.due_events: deque[bytes] = deque(maxlen=_KEPT_EVENTS)
        self._started = clock()
        self._last: NDArray[Any] = np.zeros(1, TICK)
        self._rates_hz = np.zeros(N_CHANNELS, np.float64)
        self._latencies: list[NDArray[np.float64]] = []
        self._next_state = self._next_health = self._last_state = self._last_health = self._started
        self._last_array = self._started
        self._frame = np.zeros(1, rt.FRAME)
        self._frames_lock = threading.Lock()
        self._inputs_lock = threading.RLock()  # a signal may call `halt` in the middle of it
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[threading.Event, NDArray[Any]]] = {}
        self.unanswered: set[int] = set()  # calls that were given up, and whose echo has not come
        self._said_refusals: tuple[float, int] = (self._started, 0)
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

    def submit(
        self, kind: int, *, word: int = 0, values: Any = (), number: int = 0, t_sent: float | None = None
    ) -> bool:
        """Leave an input for the loop; False, and counted, where too many wait already."""
        record = np.zeros(1, rt.INPUT)
        record[0]["kind"], record[0]["id"], record[0]["word"] = kind, number, word
        record[0]["values"][: len(values)] = values
        record[0]["t_sent"] = t_sent or 0.0
        with self._inputs_lock:
            return append(self.rings.inputs, record)

    def next_id(self) -> int:
        """Return a number for the next `call`, for a message of the record to name it by."""
        return next(self._ids)

    def call(self, kind: int, *, word: int = 0, values: Any = (), number: int | None = None) -> Any:
        """Leave an input, wait until it took effect, and return its echo: `tick` is the first that it acts on.

        Raises
        ------
        TimeoutError
            If the loop did not take it within a second, or the session ends.
        """
        number = self.next_id() if number is None else number
        done, answer = threading.Event(), np.zeros(1, rt.INPUT)
        self._waiting[number] = (done, answer)
        try:
            if not self.submit(kind, word=word, values=values, number=number):
                raise TimeoutError("too many inputs wait for the loop: it did not get the command; try again")
            left_s = _LONGEST_WAIT_S
            while left_s > 0.0 and not self.is_stopping and not done.wait(_PATIENCE_S):
                left_s -= _PATIENCE_S
            if not done.is_set():
                self.unanswered.add(number)  # it may still take effect
                raise TimeoutError(f"the loop did not take the command within {_LONGEST_WAIT_S:g} s, or is stopping")
        finally:
            del self._waiting[number]
        return answer[0]

    def now(self) -> float:
        """Return the local clock, in seconds."""
        return self._clock()

    def halt(self, reason: int = safety.STOPPED) -> None:
        """Have stimulation stop at once: the loop looks before every tick, and sooner than at any input."""
        with self._inputs_lock:
            shared = self.loop.block[0]["shared"]
            native.set_word(shared, rt.HALT_REASON, reason)
            native.set_word(shared, rt.HALTS, native.get_word(shared, rt.HALTS) + 1)

    def hold(self, is_held: bool) -> None:
        """Forbid stimulation, and arming, for as long as it is held."""
        native.set_word(self.loop.block[0]["shared"], rt.HOLD, int(is_held))

    def add_markers(self, markers: list[Marker], ordinals: list[int]) -> None:
        """Note markers of a source that the loop is fed from, each with its place among the samples."""
        self._markers.extend(zip(markers, ordinals, strict=True))

    # -- from the loop ------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Take everything that waits, and publish what is due."""
        reached = native.get_word(self.rings.samples.ends, _TAIL) - math.ceil(self.assembly.samples_per_block)
        # ticks first: then every input that acted on one of them is there too, and is recorded before it
        ticks = drain(self.rings.ticks, TICK, limit=65536)
        self._take_echoes(drain(self.rings.echoes, rt.INPUT))
        if len(ticks):
            self._take_ticks(ticks)
        decided = drain(self.rings.decisions, safety.DECISION)
        units = drain(self.rings.units, UNIT, limit=65536)
        self._array.make_room()
        if len(units):
            self._array.add_units(units)
        if self._on_units is not None and len(units):
            self._on_units(units)
        if self.recorder is not None:
            self.recorder.add("decisions", decided)
            if len(units):
                self.recorder.add("units", units)
        for frame in drain(self.rings.odd, rt.INGEST_FRAME):
            middle, end = int(frame["topic"]), int(frame["topic"] + frame["payload"])
            data = frame["data"].tobytes()
            user_id = data[end : end + int(frame["sender"])]
            self.judge(data[:middle], data[middle:end], user_id.decode(errors="replace"))
        now = self._clock()
        self._place_markers(reached, now)
        self._publish_events(now)
        if self.state_hz and now >= min(self._next_state, self._last_state + 1.0 / self.state_hz):
            self._last_state = now
            self._next_state = max(self._next_state + 1.0 / self.state_hz, now)
            self.publish(wire.TOPIC_STATE, wire.pack_state(self._state(now)))
        if self.array_hz and now >= self._last_array + 1.0 / self.array_hz:
            self._last_array = now
            for payload in self._array.messages(now, self.last_tick):
                self.publish(wire.TOPIC_ARRAY, payload)
        if now >= min(self._next_health, self._last_health + self.health_s):
            self._last_health = now
            self._next_health = max(self._next_health + self.health_s, now)
            body = self.health()
            self._latencies.clear()
            self._ingest_latencies.clear()
            if self.recorder is not None:
                self.recorder.add_message("health", body)
            self.publish(wire.TOPIC_HEALTH, wire.pack_health(wire.HealthMessage(body["t"], body["state"], body)))
            self._report_refusals(now)

    def _take_echoes(self, echoes: NDArray[Any]) -> None:
        if not len(echoes):
            return
        if self.recorder is not None:
            self.recorder.add("inputs", echoes)
        for echo in echoes[echoes["kind"] == rt.BEHIND]:
            self._tell_behind(echo)
        for echo in echoes[(echoes["id"] != 0) | (echoes["t_sent"] != 0.0)]:
            if echo["t_sent"] != 0.0 and echo["kind"] != rt.STIMULI:  # a tick tells of its stimuli itself
                self._effects.append((int(echo["tick"]), float(echo["t_sent"])))
            self.unanswered.discard(int(echo["id"]))
            if (waiting := self._waiting.get(int(echo["id"]))) is not None:
                waiting[1][0] = echo
                waiting[0].set()

    def _tell_behind(self, echo: Any) -> None:
        """Say that the loop fell behind its source, and what it did about it."""
        dropped, t = int(echo["values"][0]), float(echo["now_ns"]) * 1e-9
        frequency_hz = self.assembly.info.sampling_frequency
        sentence = (
            f"the loop fell behind its source: samples were {echo['values'][1] * 1e3:.0f} ms old with more waiting; "
            f"{dropped} samples ({dropped / frequency_hz * 1e3:.0f} ms) were dropped"
        )
        self.events.add_event("source.behind", t, sentence, "daemon", self._clock())
        if echo["word"] and self._on_behind is not None:
            self._on_behind(f'{sentence}, and the session ends, as timing.behind = "stop" asks')
        else:
            log.error("%s", sentence)

    def finish(self) -> None:
        """Give the events that still wait for their tick the last one there was: nothing is lost."""
        self._place_markers(sys.maxsize, self._clock())
        self._publish_events(math.inf)

    def _publish_events(self, now: float) -> None:
        for event in self.events.take(now):
            self.past_events.append(event)
            if self.recorder is not None:
                self.recorder.add_message("events", dataclasses.asdict(event))
            if not self._tells_condition(event):
                self.due_events.append(self._pack_event(event))
        # as many as there is room for: a burst of markers is longer than the ring
        while self.due_events and available(self.rings.frames.ends) < _FRAMES_FOR_EVENTS:
            self.publish(wire.TOPIC_EVENT, self.due_events.popleft())

    def _tells_condition(self, event: EventMessage) -> bool:
        """Say whether an event would tell a blind operator the mode: a stimulator speaks only where trains are sent."""
        is_blind = bool(self.assembly.stimulation.block[0]["blind"])
        return is_blind and event.source == "ingest" and event.name in _OF_STIMULATORS

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

    def judge(self, topic: bytes, payload: bytes, user_id: str | None = None) -> None:
        """Read an ingest message that the loop did not take by itself; count what is wrong with it.

        Parameters
        ----------
        topic, payload : bytes
            The message.
        user_id : str, optional
            That of its sender, as the authentication gave it. Without keys everybody holds every role.
        """
        sender = self._door.sender_of(user_id) if self._door is not None else Sender.of(user_id)
        if not sender.may(needed := INGEST_ROLES.get(topic, EVERY_ROLE)):
            self._refuse_role(topic, sender, names_of(needed))
            return
        try:
            message = wire.unpack_ingest(topic, payload)
        except wire.MessageError as error:
            self.refuse(error.reason, str(error))
            return
        match message:
            case wire.StimuliInput():
                taken = self.submit(rt.STIMULI, values=message.values, t_sent=message.t)
            case wire.ModulatorsInput():
                word, values = 0, np.zeros(len(MODULATORS))
                for i, name in enumerate(MODULATORS):
                    if name in message.levels:
                        word |= 1 << i
                        values[i] = message.levels[name]
                taken = self.submit(rt.LEVELS, word=word, values=values, t_sent=message.t)
            case wire.RewardInput():
                taken = self.submit(rt.REWARD, values=[message.amount], t_sent=message.t)
            case wire.StressInput():
                taken = self.submit(rt.STRESS, values=[message.amount], t_sent=message.t)
            case wire.AliveInput():
                if message.name in self.heard:
                    self.heard[message.name] += 1
                # an actuator that nothing depends on may live, too
                taken = message.name not in self.peers or self.submit(rt.ALIVE, word=self.peers.index(message.name))
            case wire.HeartbeatInput():
                taken = self.submit(rt.HEARTBEAT, word=message.token)
            case wire.StimulateInput():
                taken = self._submit_program(message, sender)
            case wire.BoardInput() if self.assembly.pipeline.words[DELAY] == 0:
                self.refuse(wire.Reason.TOPIC, "no board is the network of this session: it has no [offload]")
                taken = True  # it is counted already
            case wire.BoardInput():
                taken = self.submit(rt.BOARD, word=message.tick, values=[message.spikes, message.checked])
            case wire.StopInput():
                self.halt()
                taken = True
            case wire.EventInput():
                now = self._clock()
                t = now if message.t is None else message.t
                self.events.add_event(message.name, t, message.value, "ingest", now)
                taken = True
        if not taken:
            self.refuse("overflow", "too many inputs wait for the loop")

    def _submit_program(self, message: wire.StimulateInput, sender: Sender) -> bool:
        name = message.program
        try:
            self._admission.check_stimulate(sender, message.session, message.seq)
        except CommandError as error:
            self.refuse(error.reason, str(error))
            return True  # it is counted already
        if name not in self.programs:
            known = ", ".join(self.programs) or "none"
            self.refuse(wire.Reason.RANGE, f"{name!r} is no program of this session; it has {known}")
            return True  # it is counted already
        return self.submit(rt.STIMULATE, word=self.programs.index(name))

    def _refuse_role(self, topic: bytes, sender: Sender, needed: list[str]) -> None:
        sentence = f"{sender.name[:64]!r} sent {topic.decode()!r}, which needs the role {' or '.join(needed)}"
        self._last_role_refusal = sentence
        self.refuse("role", sentence)

    def refuse(self, reason: str, sentence: str) -> None:
        """Count a refused message; the log gets one line a second at the most."""
        self.refusals[str(reason)] += 1
        log.debug("refused a message: %s", sentence)

    def _take_ticks(self, ticks: NDArray[Any]) -> None:
        if self.recorder is not None:
            self.recorder.add("ticks", ticks)
        if self._on_ticks is not None:
            self._on_ticks(ticks)
        self._last = ticks[-1:].copy()
        is_idle = (ticks["flags"] & (wire.Flag.FILLER | wire.Flag.PAUSED)) != 0
        live = ticks[~is_idle] if is_idle.any() else ticks
        if not len(live):
            return
        self.events.add_ticks(live["t_sample"], live["tick"])
        self._measure_ingest(live)
        if self.is_timed:
            self._latencies.append(live["t_tick"] - live["t_sample"])
            self.histograms.latency.add(self._latencies[-1])
            self.histograms.compute.add(live["t_tick"] - live["t_arrival"])
        counts = (live["spikes"][:, None] >> _CHANNELS & 1).sum(axis=0, dtype=np.int64)
        self.spike_counts += counts
        span_s = len(live) * self.assembly.network.dt_ms / 1000.0
        keep = math.exp(-span_s / _RATE_TAU_S)
        self._rates_hz = self._rates_hz * keep + counts / span_s * (1.0 - keep)

    def _measure_ingest(self, live: NDArray[Any]) -> None:
        """Find how long it took from the sending of inputs to the end of the first tick that they act on."""
        timed = live[live["t_sent"] != 0.0]
        if len(timed):
            self._add_ingest_latencies(timed["t_tick"] - timed["t_sent"])
        while self._effects and self._effects[0][0] <= live["tick"][-1]:
            tick, sent = self._effects.popleft()
            at = min(int(np.searchsorted(live["tick"], tick)), len(live) - 1)
            self._add_ingest_latencies(np.array([live["t_tick"][at] - sent]))

    def _add_ingest_latencies(self, times_s: NDArray[np.float64]) -> None:
        self._ingest_latencies.append(times_s)
        self.histograms.ingest.add(times_s)

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

    @property
    def last(self) -> Any:
        """The newest TICK record that was collected; all zero before the first."""
        return self._last[0]

    @property
    def rates_hz(self) -> NDArray[np.float64]:
        """Firing rates of the network's channels over the last half second, in Hz."""
        return self._rates_hz

    @property
    def decoder_from(self) -> str:
        """Where the decoder is from that runs now: "session", or a file."""
        return self.decoder_sources.get(int(self.assembly.decoder[0]["version"]), "")

    def modulator_levels(self) -> dict[str, float]:
        """Return the levels of the neuromodulators at the newest tick."""
        return dict(zip(MODULATORS, self.last["modulators"].tolist(), strict=True))

    def sample_age_s(self, *, at_arrival: bool = False) -> float:
        """Return the age of the newest sample that the loop has taken; NaN before the first, or where it has none.

        Parameters
        ----------
        at_arrival : bool
            As of when the loop took it: between samples that come one by one, or in chunks, it grows without a fault.
        """
        numbers = self.loop.block[0]["numbers"]
        newest = float(numbers[rt.NEWEST])
        if not self.is_timed or newest == 0.0:
            return math.nan
        return float(numbers[rt.LAST_DATA] if at_arrival else self._clock()) - newest

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
        found["ingest_disconnects"] = self._door.disconnects if self._door is not None else 0
        for name in _REFUSED_BY_LOOP:
            del found[name]
        for name in ("ticks", "decisions", "units", "echoes", "odd", "inputs", "frames", "out"):
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
        return {key: describe() for key, describe in self.more_health.items()} | {
            "v": wire.PROTOCOL_VERSION,
            "t": now,
            "state": self.state_name(),
            "tick": self.last_tick,
            "uptime_s": now - self._started,
            "counters": self.counters(),
            "errors": self.errors(),
            "latency_us": _percentiles(self._latencies),
            "ingest_latency_us": _percentiles(self._ingest_latencies),
            "source": self._describe_source(),
            "sample_age_ms": 1e3 * age_s if math.isfinite(age_s := self.sample_age_s()) else None,
            "warming_up": not (self.assembly.front_end.is_ready and self.assembly.encoder.is_ready),
            "excluded_channels": self.assembly.front_end.excluded,
            "blanked": self.assembly.front_end.blanked._asdict(),
            "units": self.assembly.front_end.describe_units(),
            "learning": has_plasticity and bool(network.state[0]["learning"]),
            "board": self._describe_board(),
            "decoder": self._describe_decoder(),
            "stimulation": self._describe_stimulation(now),
            "recording": self.recorder.status() if self.recorder is not None else {"state": "off"},
            "security": self._door.status() if self._door is not None else {},
        }

    def _describe_board(self) -> dict[str, int]:
        """Say how the board answers that is the network; nothing where none is."""
        if self.assembly.pipeline.words[DELAY] == 0:
            return {}
        counted = self.counters()
        return {name: counted[f"board_{name}"] for name in ("answered", "missing", "late", "unchecked")}

    def _describe_decoder(self) -> dict[str, Any]:
        decoder = self.assembly.decoder[0]
        return {
            "kind": KINDS[int(decoder["kind"])],
            "version": int(decoder["version"]),
            "from": self.decoder_from,
            "runaways": int(decoder["runaways"]),
        }

    def _describe_stimulation(self, now: float) -> dict[str, Any]:
        """Say how the gate is; read while the loop writes, each number an aligned word of its own."""
        state = self.assembly.stimulation
        if not state.block[0]["configured"]:
            return {"state": "off"}
        gate = state.gate[0]
        is_armed = bool(gate["armed"])
        dose = gate["dose_pc"] if gate["sends"] else gate["would_pc"]
        told: dict[str, Any] = {
            "state": "armed" if is_armed else "disarmed",
            "mode": stimulating.public_mode(state),
            "seconds_left": max(0.0, float(gate["until_ns"]) * 1e-9 - now) if is_armed else 0.0,
            "arms": int(gate["arms"]),
            "disarmed_by": safety.REASONS[int(gate["disarm_reason"])] if gate["disarms"] and not is_armed else "",
            "counts": stimulating.count(state),
        }
        if is_armed and gate["heartbeat_ns"]:
            told["heartbeat_s"] = max(0.0, now - float(gate["heartbeat_at_ns"]) * 1e-9)
        return told if state.block[0]["blind"] else told | {"dose_nc": float(dose[safety.TOTAL]) / 1000.0}

    def _state(self, now: float) -> wire.StateMessage:
        last = self._last[0]
        return wire.StateMessage(
            tick=int(last["tick"]),
            t=now,
            membrane=last["membrane"],
            modulators=self.modulator_levels(),
            rates_hz=self._rates_hz.astype(np.float32),
        )

    def _report_refusals(self, now: float) -> None:
        """Say in the log, at the pace of health, what was refused or lost since the last time."""
        said_at, said = self._said_refusals
        errors = self.errors()
        total = sum(errors.values())
        if total > said:
            log.warning("refused %d messages in %.1f s; so far: %s", total - said, now - said_at, errors)
            if self._last_role_refusal:
                log.warning("refused for want of a role; the last: %s", self._last_role_refusal)
                self._last_role_refusal = ""
        self._said_refusals = (now, total)
        for name, count in self.counters().items():
            if name.endswith("overflow") and count > self._overflowing.get(name, 0):
                log.warning("%s: %d lost so far", name, count)
                self._overflowing[name] = count


def _percentiles(parts: list[NDArray[np.float64]]) -> dict[str, float]:
    """Return p50, p99 and the maximum of times in seconds, in microseconds; nothing where there are none."""
    window = np.concatenate([np.empty(0), *parts]) * 1e6
    if not len(window):
        return {}
    p50, p99 = np.percentile(window, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(window.max())}


def run(collector: Collector, stop: threading.Event, every_s: float = 0.01) -> None:
    """Call `turn` until `stop` is set, and once more."""
    while not stop.wait(every_s):
        collector.turn()
    collector.turn()
    collector.finish()
