"""The daemon: opens sockets and source, runs the loop in a thread of its own, and takes it down in the right order.

Threads: the loop (compiled; alone on source, output and ingest); the collector (results, state, health, events);
control; guard and ledger of stimulation; and whatever looks after the source. Main waits on one event that signals and
the command `stop` set.
"""

import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.adapters.base import Marker, Source, StreamInfo
from neuromod.adapters.config import ZmqConfig
from neuromod.adapters.lsl import LslMarkers, LslSource
from neuromod.bridge import array_watch, logs, native, realtime, wire
from neuromod.bridge import collector as collecting
from neuromod.bridge import loop_state as rt
from neuromod.bridge.admission import admission_of
from neuromod.bridge.arming import Arming, read_key
from neuromod.bridge.assembly import Assembly, assemble, stimuli_stream
from neuromod.bridge.collector import Collector
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.control import Control
from neuromod.bridge.doorkeeper import Doorkeeper
from neuromod.bridge.gate import DECISION
from neuromod.bridge.guard import Guard
from neuromod.bridge.intake import Feeder, Keeper, ring_capacity
from neuromod.bridge.ledger import Ledger, LedgerError
from neuromod.bridge.loop import run
from neuromod.bridge.lsl_list import markers_of, source_of
from neuromod.bridge.metrics import MetricsServer, make_registry
from neuromod.bridge.notify import Notifier
from neuromod.bridge.pipeline import TICK, UNIT
from neuromod.bridge.recorder import SAMPLES, Recorder, sample_dtype
from neuromod.bridge.resume import LastLife
from neuromod.bridge.ring import Ring, available, drain
from neuromod.bridge.safety_config import is_sent
from neuromod.bridge.session import start_session
from neuromod.bridge.supervision import Supervision
from neuromod.bridge.warm import warm_loop
from neuromod.bridge.watchdog import STUCK_EXIT_CODE
from neuromod.bridge.yoked import yoked_trains
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import AdapterError, ConfigError, NeuromodError

log = logging.getLogger(__name__)

_LONGEST_STOP_S = 0.4
_LONGEST_JOIN_S = 0.35
_LONGEST_FILES_S = 1.0  # for the record, where a thread is stuck
_SOURCE_TIMEOUT_MS = 5  # how long the loop waits on the ingest socket where stimuli messages are the source
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_SUBSCRIPTION_BYTES = 4096  # libzmq makes a node of every byte, in the loop's thread: 0.1 s and more for a MiB
_INGEST_HWM = 10_000
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_LARGEST_CHUNK = 8192
_LEASE_MS = 100.0  # how long a command holds where no stimulation says so
_BURST_HZ = 1 << 15
_OUT_FRAMES = 2048  # two seconds of ticks of 1 ms: a thread that sends in Python may wait for the interpreter


class Daemon:
    """One session, from `open` to `close`; a context manager.

    Parameters
    ----------
    config : SessionConfig
        What to run.
    source : Source, optional
        In place of the one that the configuration names; opened and closed by the daemon.
    speed : float
        Sources that have an end: seconds of recording per second; 0 for as fast as the machine goes.
    on_ticks : callable, optional
        Gets every array of TICK records, in order, from the collector's thread.
    supervision : Supervision, optional
        Watchdogs and checkpoints, and what is known of the last life; without it no checkpoint is written by itself.
    """

    def __init__(
        self,
        config: SessionConfig,
        *,
        source: Source | None = None,
        speed: float = 1.0,
        on_ticks: Callable[[NDArray[Any]], None] | None = None,
        on_units: Callable[[NDArray[Any]], None] | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self.config = config
        self.supervision = supervision or Supervision(config.model_copy(update={"checkpoint": None}))
        self.stopped = threading.Event()
        self.failure: Exception | None = None
        self._source: Source | None = source
        self._speed, self._on_ticks, self._on_units = speed, on_ticks, on_units
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._door: Doorkeeper | None = None
        self._markers: list[LslMarkers] = []
        self._threads: list[threading.Thread] = []
        self._stop_threads = threading.Event()
        self._loop_done: threading.Event | None = None  # once there is a loop
        self.is_looking = False  # for its source, which may take long: the moment at which a signal may interrupt
        self.recorder: Recorder | None = None
        self._ledger: Ledger | None = None
        self.metrics: MetricsServer | None = None
        self.is_stuck = False  # a thread could not be ended, and what it uses was left as it is
        self._uncertainty_s = float("nan")
        self.addresses: dict[str, str] = {}

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Bind the sockets, open the source, start the loop.

        Raises
        ------
        ConfigError, AdapterError
            One sentence for what cannot be; nothing stays open.
        """
        if not JIT_ENABLED:
            raise ConfigError("NUMBA_DISABLE_JIT is set, but the real-time loop is compiled code or nothing: unset it")
        runtime = self.config.runtime
        for refused in realtime.prepare_process(runtime):
            log.warning("%s", refused)
        try:
            self._bind()
            self.supervision.begin()
            self.is_looking = True
            warm_loop()
            self._open_source()
            self.is_looking = False
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop the loop first, then the other threads, then what they used. Safe to call twice."""
        self.is_looking = False
        if self._loop_done is not None:
            self.collector.is_stopping = True
            self.collector.halt()
            native.set_word(self.loop.block[0]["shared"], rt.STOP, 1)
            if not self._loop_done.wait(_LONGEST_STOP_S):
                # freeing sockets and inlets under native code would be worse than leaving without good-byes
                log.critical("the loop did not stop within %g s; leaving at once", _LONGEST_STOP_S)
                logging.shutdown()
                os._exit(1)
        self._stop_threads.set()
        deadline = time.monotonic() + _LONGEST_JOIN_S
        self._send_last(deadline)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        if stuck := [thread.name for thread in self._threads if thread.is_alive()]:
            # sockets and inlets are never freed under a thread that uses them
            log.warning("%s did not end within %g s: what they use stays open", ", ".join(stuck), _LONGEST_JOIN_S)
            self.is_stuck = True
            if "output" in self._sockets and not {"neuromod-exchange", "neuromod-collector"} & set(stuck):
                self._say_goodbye()
            self.leave_files(stuck)
            self.supervision.end(self.failure)
            return
        self._threads.clear()
        self._close_ledger()
        if self.recorder is not None:
            self.recorder.close("stopped" if self.failure is None else f"failed: {self.failure}")
        if self._source is not None:
            self._source.close()
        for markers in self._markers:
            markers.close()
        self.supervision.end(self.failure)
        if "output" in self._sockets and self._loop_done is not None:
            self._say_goodbye()
        if self.metrics is not None:
            self.metrics.close()
        if self._door is not None:
            self._door.close()
            self._door = None
        for opened in self._sockets.values():
            opened.close(linger=20)  # so that the good-bye leaves
        self._sockets.clear()
        if self._context is not None:
            self._context.term()
            self._context = None

    def _send_last(self, deadline: float) -> None:
        """Send what the loop left for the exchange thread, a last "stop" of stimulation too, before anything waits."""
        if self._loop_done is None or "output" not in self._sockets:
            return
        for thread in self._threads:
            if thread.name == "neuromod-exchange":
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    return  # the socket is still its own
        with contextlib.suppress(zmq.ZMQError):
            _send_all(self._sockets["output"], self.rings.out)

    def leave_files(self, stuck: list[str]) -> None:
        """End record and ledger where threads are stuck; no longer than a bound, since the process is to end."""
        ledger, recorder = self._ledger, self.recorder

        def end() -> None:
            if ledger is not None and "neuromod-ledger" not in stuck:  # it holds the lock, and the file is right
                ledger.close(None)  # all that was granted counts as spent
            if recorder is not None:
                recorder.close(f"stopped; {', '.join(stuck)} did not end")

        thread = threading.Thread(target=end, name="neuromod-files", daemon=True)
        thread.start()
        thread.join(_LONGEST_FILES_S)
        if thread.is_alive():
            log.error("the record could not be ended within %g s; what is on the disk stays as it is", _LONGEST_FILES_S)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        self._context = zmq.Context(io_threads=1)
        door = self._door = Doorkeeper(self._context, self.config.security)
        kinds = {"ingest": zmq.PULL, "output": zmq.PUB, "control": zmq.ROUTER}
        for name, kind in kinds.items():
            bound = self._sockets[name] = self._context.socket(kind)
            bound.maxmsgsize = _MAX_MESSAGE_BYTES if name != "output" else _MAX_SUBSCRIPTION_BYTES
            door.protect(name, bound)
            address = getattr(self.config.sockets, name)
            if name == "ingest":
                bound.rcvhwm = _INGEST_HWM
                if self.config.source_content == "stimuli":
                    bound.rcvtimeo = _SOURCE_TIMEOUT_MS
            if name == "output":
                bound.sndhwm = _INGEST_HWM
            try:
                bound.bind(address)
            except zmq.ZMQError as error:
                raise ConfigError(
                    f"sockets.{name}: {address} cannot be bound: {error.strerror or error}; "
                    "is another daemon running? Stop it, or choose another port"
                ) from None
            endpoint = bound.get(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            self.addresses[name] = endpoint.decode().rstrip("\0")
        if self.config.metrics is not None:
            self.metrics = MetricsServer(self.config.metrics)
        self._spawn("neuromod-door", lambda: door.run(self._stop_threads))

    def _open_source(self) -> None:
        config = self.config
        # first, since a playback begins as soon as somebody listens to its signal
        for marker_config in config.markers:
            markers = markers_of(config, marker_config)
            try:
                markers.open()
            except AdapterError as error:
                if marker_config.required:
                    raise
                log.warning("markers: %s; the session goes on without", error)
                continue
            self._markers.append(markers)
        self._functions = native.c_functions()
        absent = native.missing(self._functions)
        if not self._functions[[native.LSL_LOCAL_CLOCK, native.SLEEP, native.MEMMOVE]].all():
            raise ConfigError("the C functions of the loop (clock, sleep, memmove) are not to be had on this platform")
        in_python = config.runtime.loop == "python"
        if in_python or absent:
            for library in absent:
                log.warning("%s cannot be called from compiled code here: Python threads do its part", library)
            self._functions[[native.ZMQ_SEND, native.ZMQ_MSG_RECV]] = 0
        scale: NDArray[np.float32] | None = None
        info: StreamInfo
        if isinstance(config.source, ZmqConfig) and self._source is None:
            info = stimuli_stream(config.source)
            self._pulls = rt.SOURCE_ZMQ
        else:
            if self._source is None:
                self._source = source_of(config)
            if isinstance(self._source, LslSource):
                self._source.open(subscribed=False)
            else:
                self._source.open()
            info = self._source.info
            is_native = isinstance(self._source, LslSource) and not (in_python or absent)
            self._pulls = rt.SOURCE_LSL if is_native else rt.SOURCE_RING
            if isinstance(self._source, LslSource):
                scale = self._source.scale if is_native else None
        self._scale = scale
        stimulation = config.stimulation
        yoked = None
        if stimulation is not None and stimulation.yoked_session is not None:
            yoked = yoked_trains(stimulation.yoked_session, [e.name for e in stimulation.electrodes])
        self.assembly: Assembly = assemble(config, info, scale=scale, yoked=yoked)

    def _open_stimulation(self) -> Arming:
        """Read the key and open the ledger, before anything runs: what is wrong with them is said at the start."""
        stimulation = self.config.stimulation
        if stimulation is None:
            return Arming(None)
        if stimulation.ledger is not None and is_sent(stimulation.mode):
            gate = self.assembly.stimulation.gate[0]
            self._ledger = Ledger(
                stimulation.ledger,
                self.config.session.name,
                [electrode.name for electrode in stimulation.electrodes],
                session_pc=gate["session_pc"],
                minute_pc=gate["minute_pc"],
            )
            self._ledger.start(gate, int(pylsl.local_clock() * 1e9))
        return Arming(read_key(stimulation.key_file) if stimulation.key_file is not None else None)

    def _close_ledger(self) -> None:
        if self._ledger is not None:
            try:
                self._ledger.close(self.assembly.stimulation.gate[0]["dose_pc"].copy())
            except LedgerError as error:
                log.error("%s", error)
            self._ledger = None

    def _announce(self, what: str, sentence: str, numbers: dict[str, Any]) -> None:
        """Say in the log and as an event how the recording fares."""
        log.warning("recording: %s", sentence)
        if (collector := getattr(self, "collector", None)) is not None:
            now = pylsl.local_clock()
            collector.events.add_event(f"recording.{what}", now, sentence, "daemon", now)

    def _start_recorder(self, is_timed: bool, clock_rate: float) -> None:
        record, assembly = self.config.record, self.assembly
        if record is None:
            return
        # inputs before the ticks that they act on: the recorder keeps this order where it has both
        kinds = {"inputs": rt.INPUT, "ticks": TICK, "decisions": DECISION}
        if assembly.front_end.unit_ids:
            kinds["units"] = UNIT
        if record.raw:
            kinds[SAMPLES] = sample_dtype(assembly.info.n_channels)
        self.recorder = start_session(
            record.folder,
            self.config,
            records=kinds,
            info=assembly.info,
            block_ms=assembly.block_ms,
            ticks_per_block=assembly.ticks_per_block,
            built_from=assembly.built_from,
            local_clock=pylsl.local_clock(),
            scale=self._scale,
            extra={
                "is_timed": is_timed,
                "clock_rate": clock_rate,
                "pulls": int(self._pulls),
                "unit_ids": list(assembly.front_end.unit_ids),
                "continues": self.supervision.last_session,
            },
            announce=self._announce,
            min_free_bytes=int(record.min_free_mb * 1e6),
            warn_free_bytes=int(record.warn_free_mb * 1e6),
        )
        # where a replay begins: the ledger has told the gate of earlier doses
        parts = b"".join(part.tobytes() for part in assembly.parts())
        self.recorder.add_message(
            "checkpoints", {"id": 0, "data": parts, "stimulation": assembly.stimulation.block.tobytes()}
        )

    def _start(self) -> None:
        config, assembly = self.config, self.assembly
        n_channels = assembly.info.n_channels
        # only what has an end was recorded, and is played at a pace; a plug-in may be as live as LSL
        is_live = self._pulls != rt.SOURCE_RING or assembly.info.n_samples is None
        paced_rate = 0.0 if is_live else self._speed
        is_timed = is_live or paced_rate > 0
        is_lsl = isinstance(self._source, LslSource)
        arming = self._open_stimulation()
        self._start_recorder(is_timed, 1.0 / paced_rate if paced_rate > 0 else 1.0)
        keeps_samples = self.recorder is not None and config.record is not None and config.record.raw
        slowdown = 1.0 / min(paced_rate, 1.0) if paced_rate > 0 else 1.0  # blocks take so much longer than they are
        is_watched = config.publish.array_hz > 0 and array_watch.window_samples(assembly) > 0
        chunk = int(min(max(assembly.samples_per_block + 1, 64), _LARGEST_CHUNK))
        in_python = not self._functions[native.ZMQ_SEND]
        self.rings = rt.make_rings(
            n_channels,
            samples_capacity=ring_capacity(n_channels, assembly.info.sampling_frequency),
            out_capacity=_OUT_FRAMES if in_python else 2,
            # half a second; messages of stimuli, and what is played as fast as it goes, know no rate
            raw_capacity=ring_capacity(n_channels, max(assembly.info.sampling_frequency, _BURST_HZ))
            if keeps_samples
            else array_watch.ring_capacity(assembly, chunk)
            if is_watched
            else 2,
        )
        self.loop = rt.make_loop(
            self._functions,
            source=self._pulls,
            n_channels=n_channels,
            chunk=chunk,
            ticks_per_block=assembly.ticks_per_block,
            block_s=assembly.block_ms / 1000.0,
            stall_s=config.timing.stall_bound_ms(assembly.block_ms * slowdown) / 1000.0,
            late_s=config.timing.late_ms / 1000.0 if is_timed else math.inf,
            publish_all=config.publish.spikes == "every",
            publish_stimuli=config.publish.stimuli,
            paced_rate=paced_rate,
            parts=assembly.parts(),
            decisions=assembly.pipeline.decisions,
            units=assembly.pipeline.units,
            n_outputs=int(assembly.decoder[0]["n_outputs"]),
            lease_s=(config.stimulation.lease_ms if config.stimulation is not None else _LEASE_MS) / 1000.0,
            keep_samples=keeps_samples or is_watched,
            behind=config.timing.behind,
            # a recording waits for us, and stimuli that were sent are each to act
            behind_s=config.timing.behind_bound_ms(assembly.block_ms) / 1000.0 if is_lsl else math.inf,
            period_s=1.0 / assembly.info.sampling_frequency,
        )
        if self.recorder is not None and keeps_samples:
            self.recorder.record_samples(self.rings.raw)
        rt.set_handles(
            self.loop,
            inlet=self._source.handle if self._pulls == rt.SOURCE_LSL else 0,  # type: ignore[union-attr]
            pub=0 if in_python else self._sockets["output"].underlying,
            pull=0 if in_python else self._sockets["ingest"].underlying,
        )
        self.collector = Collector(
            assembly,
            self.loop,
            self.rings,
            clock=pylsl.local_clock,
            state_hz=config.publish.state_hz,
            array_hz=config.publish.array_hz,
            health_s=config.publish.health_s,
            describe_source=self.describe_source,
            on_ticks=self._on_ticks,
            on_units=self._on_units,
            is_timed=is_timed,
            recorder=self.recorder,
            on_behind=self._end_behind,
            door=self._door,
            admission=(admission := admission_of(config.security)),
        )
        if isinstance(self._source, LslSource):
            self._follow_clock(*self._source.correction(), submit=False)
        checkpoints = self.supervision.attach(self.collector, self._clock_of_source)
        self._spawn("neuromod-collector", lambda: collecting.run(self.collector, self._stop_threads))
        guard = Guard(self.collector, config.stimulation.stop_file if config.stimulation else None, self._ledger)
        if config.stimulation is not None:
            guard.look()  # before anybody can arm
            guard.grant()
            self._spawn("neuromod-guard", lambda: guard.run(self._stop_threads))
            if self._ledger is not None:
                self._spawn("neuromod-ledger", lambda: guard.run_ledger(self._stop_threads))
        assert self._door is not None
        control = Control(
            self._sockets["control"],
            self.collector,
            self.stopped.set,
            door=self._door,
            admission=admission,
            arming=arming,
            ledger_fault=lambda: guard.fault,
            checkpoints=checkpoints,
        )
        self._spawn("neuromod-control", lambda: control.run(self._stop_threads))
        if (metrics := self.metrics) is not None:
            log.info("metrics: %s", metrics.url)
            registry = make_registry(self.collector, session=config.session.name)
            self._spawn("neuromod-metrics", lambda: metrics.run(registry, self._stop_threads))
        if in_python:
            self._spawn("neuromod-exchange", self._exchange)
        if self._pulls == rt.SOURCE_RING and isinstance(self._source, LslSource):
            self._source.subscribe()  # last, so that no sample waits for us
        self._loop_done = threading.Event()
        self._spawn("neuromod-loop", self._run_loop, masked=True)
        if self._pulls == rt.SOURCE_LSL:
            self._await_data()
        if self._pulls == rt.SOURCE_RING:
            assert self._source is not None
            feeder = Feeder(
                self._source,
                self.rings.samples,
                on_markers=self.collector.add_markers,
                on_lost=lambda: self._set_state(rt.LOST),
                on_reconnect=self._source_is_back,
                on_end=self._on_source_end,
                paced_hz=paced_rate * assembly.info.sampling_frequency,
            )
            self._spawn("neuromod-source", lambda: feeder.run(self._stop_threads))
        elif self._pulls == rt.SOURCE_LSL:
            assert isinstance(self._source, LslSource)
            keeper = Keeper(
                self._source,
                is_lost=lambda: self._state() == rt.LOST,
                on_clock=self._follow_clock,
                on_reconnect=self._send_inlet,
            )
            self._spawn("neuromod-source", lambda: keeper.run(self._stop_threads))
        for name, target in self.supervision.threads(self._stop_threads):
            self._spawn(name, target)
        for markers in self._markers:
            self._spawn("neuromod-markers", self._marker_keeper(markers))
        promoted = realtime.promote_library_threads(config.runtime)
        if promoted:
            log.info("%d threads of the libraries run at priority %d too", promoted, config.runtime.realtime_priority)

    def _await_data(self) -> None:
        """Wait until samples flow; the loop's first pull subscribes.

        Were it done before the loop runs, samples would pile up while Python starts it: 10 ms beside a busy thread.
        """
        assert isinstance(self._source, LslSource)
        assert self._loop_done is not None
        # not before that pull: two threads that start the reception of one inlet would end the process
        while not native.get_word(self.loop.block[0]["shared"], rt.PULLED) and not self._loop_done.is_set():
            self.stopped.wait(0.001)
        self._source.subscribe()

    def _marker_keeper(self, markers: LslMarkers) -> Callable[[], None]:
        offset = [0.0]

        def on_clock(offset_s: float, _: float) -> None:
            if np.isfinite(offset_s):
                offset[0] = offset_s

        def on_markers(found: list[Marker]) -> None:
            now = pylsl.local_clock()
            for marker in found:
                self.collector.events.add_event(marker.name, marker.t + offset[0], marker.value, "lsl", now)

        on_clock(*markers.correction())
        keeper = Keeper(
            markers,
            is_lost=lambda: markers.is_lost,
            on_clock=on_clock,
            on_reconnect=lambda: None,
            on_markers=on_markers,
        )
        return lambda: keeper.run(self._stop_threads)

    def _spawn(self, name: str, target: Callable[[], None], *, masked: bool = False) -> None:
        def guarded() -> None:
            if masked and hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                target()
            except Exception as error:  # whatever it is, the session must end in order and say so
                log.exception("thread %s failed", name)
                self._fail(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _end_behind(self, sentence: str) -> None:
        log.error("%s", sentence)
        self._fail(RuntimeError(sentence))  # it ran, and failed: not a fault of the configuration

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.stopped.set()

    # -- threads ------------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        try:
            for refused in realtime.prepare_loop_thread(self.config.runtime):
                log.warning("%s", refused)
            parts = self.assembly
            run(self.loop, self.rings, *parts.states)
        finally:
            assert self._loop_done is not None
            self._loop_done.set()  # the only proof that no native code runs any more

    def _exchange(self) -> None:
        """Stand in for the loop at both sockets where it cannot call libzmq."""
        output, ingest = self._sockets["output"], self._sockets["ingest"]
        while not self._stop_threads.is_set():
            _send_all(output, self.rings.out, limit=256)
            if ingest.poll(0 if available(self.rings.out.ends) else 1):
                with contextlib.suppress(zmq.Again):
                    self._judge(ingest.recv_multipart(zmq.DONTWAIT, copy=False))

    def _judge(self, frames: list[zmq.Frame]) -> None:
        try:
            topic, payload = wire.split_parts([frame.bytes for frame in frames])
            assert self._door is not None
            self.collector.judge(topic, payload, self._door.sender(frames[0]).user_id)
        except wire.MessageError as error:
            self.collector.refuse(error.reason, str(error))

    # -- the source ---------------------------------------------------------------------------------------------------

    def _state(self) -> int:
        return int(native.get_word(self.loop.block[0]["shared"], rt.STATE))

    def _set_state(self, state: int) -> None:
        """Correct what the loop says of its source; only while no samples reach it, or it would say otherwise."""
        native.set_word(self.loop.block[0]["shared"], rt.STATE, state)

    def _source_is_back(self) -> None:
        assert isinstance(self._source, LslSource)
        self._set_state(rt.STALLED)
        self._follow_clock(*self._source.correction())

    def _follow_clock(self, offset_s: float, uncertainty_s: float, *, submit: bool = True) -> None:
        offset_s -= self.config.timing.device_delay_ms / 1000.0
        self._uncertainty_s = uncertainty_s
        if not np.isfinite(offset_s):
            return
        if submit:
            self.collector.submit(rt.CLOCK, values=[offset_s])
        else:
            self.loop.block[0]["numbers"][rt.OFFSET] = offset_s

    def _clock_of_source(self) -> tuple[float, float]:
        """Return the correction of the source's clock and its uncertainty, in s; NaN where none is measured."""
        return float(
            self.loop.block[0]["numbers"][rt.OFFSET]
        ) if self._uncertainty_s >= 0.0 else math.nan, self._uncertainty_s

    def _send_inlet(self) -> None:
        assert isinstance(self._source, LslSource)
        # no longer lost, although nothing has come yet: else the keeper would destroy the inlet that the loop pulls
        self._set_state(rt.STALLED)
        self._follow_clock(*self._source.correction())  # its host may have been started anew, with another clock
        while not self.collector.submit(rt.INLET, word=self._source.handle) and not self._stop_threads.wait(0.01):
            pass

    def _on_source_end(self, error: Exception | None) -> None:
        if error is not None:
            log.error("the source failed: %s", error)
            self.failure = error
        native.set_word(self.loop.block[0]["shared"], rt.SOURCE_ENDED, 1)

    def describe_source(self) -> dict[str, Any]:
        """Say what health says of the source."""
        info = self.assembly.info
        return {
            "name": info.name,
            "kind": self.config.source.kind,
            "content": info.kind,
            "n_channels": info.n_channels,
            "sampling_frequency": info.sampling_frequency,
            "hostname": info.hostname,
            "source_id": info.source_id,
            "clock_offset_s": float(self.loop.block[0]["numbers"][rt.OFFSET]),
            "clock_uncertainty_s": self._uncertainty_s if math.isfinite(self._uncertainty_s) else None,
            "quirks": dict(self._source.quirks) if self._source is not None else {},
        }

    def has_ended(self) -> bool:
        """Say whether a recording has been played to its end, and all of it was taken."""
        return self._state() == rt.ENDED and not available(self.rings.ticks.ends)

    def _say_goodbye(self) -> None:
        """Publish what is left, and a last health message; the loop is done, so the socket is ours again."""
        output = self._sockets["output"]
        with contextlib.suppress(zmq.ZMQError):
            _send_all(output, self.rings.out)
            _send_all(output, self.rings.frames)
            for event in self.collector.due_events:
                output.send_multipart([wire.TOPIC_EVENT, event], zmq.DONTWAIT)
            body = self.collector.health()
            payload = wire.pack_health(wire.HealthMessage(body["t"], "stopping", body))
            output.send_multipart([wire.TOPIC_HEALTH, payload], zmq.DONTWAIT)


def _send_all(output: "zmq.Socket[bytes]", ring: Ring, limit: int = 4096) -> None:
    """Send the messages that wait in a ring of FRAME."""
    for frame in drain(ring, rt.FRAME, limit=limit):
        middle = int(frame["topic"])
        data = frame["data"][: middle + int(frame["payload"])].tobytes()
        output.send_multipart([data[:middle], data[middle:]], zmq.DONTWAIT)


def serve(
    config: SessionConfig,
    *,
    on_open: Callable[[Daemon], None] = lambda daemon: None,
    notifier: Notifier | None = None,
    last: LastLife | None = None,
) -> int:
    """Run a session until a signal, the command `stop`, or the end of its recording.

    Parameters
    ----------
    config : SessionConfig
        What to run.
    on_open : callable
        Called with the daemon once it runs.
    notifier : Notifier, optional
        Tells a service manager how it is.
    last : LastLife, optional
        What a supervisor knows of the life before this one.

    Returns
    -------
    int
        Exit code: 0, or 1 where a part of the daemon failed.
    """
    notifier = notifier or Notifier()
    daemon = Daemon(
        config, supervision=Supervision(config, notifier=notifier, last=last, on_stuck=lambda: leave(daemon))
    )
    hook = sys.unraisablehook
    sys.unraisablehook = unless_interrupted(hook)
    stop_on_signals(daemon.stopped, interrupt=lambda: daemon.is_looking)
    is_open = False
    try:
        with notifier.starting():
            daemon.open()
        is_open = True
        on_open(daemon)
        notifier.ready()
        halt_on_signal(daemon.collector.halt)
        for name, address in daemon.addresses.items():
            log.info("%s: %s", name, address)
        logs.say(f"{daemon.assembly.info.name} -> {daemon.addresses['output']}; Ctrl-C stops")
        while not daemon.stopped.wait(0.1):
            if daemon.has_ended():
                log.info("the recording has been played to its end")
                break
    except Interrupted:
        log.info("stopped before the session began")
    except Exception:
        # a callback of the compiler drops an Interrupted that is raised in it, and the compiler fails for want of it
        if is_open or not daemon.stopped.wait(0.1):
            raise
        log.info("stopped before the session began")
    finally:
        notifier.stopping()
        daemon.close()
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = hook
        # the process ends now: collecting what the compiler left would take 0.3 s of the 0.5 s that a stop may take
        gc.freeze()
        if daemon.is_stuck:
            # a thread that is still inside a library would be a crash, or a hang, when the interpreter leaves
            logging.shutdown()
            os._exit(1 if daemon.failure else 0)
    if isinstance(daemon.failure, NeuromodError):
        raise daemon.failure
    return 1 if daemon.failure else 0


def leave(daemon: Daemon) -> None:
    """End the process of a daemon whose loop is stuck: record and ledger first, then nothing that could wait."""
    daemon.leave_files(["neuromod-loop"])
    daemon.supervision.end(NeuromodError("the loop stood still"))
    logging.shutdown()
    os._exit(STUCK_EXIT_CODE)


def halt_on_signal(halt: Callable[[], None]) -> None:
    """Have SIGUSR1 stop stimulation, and nothing else; called in the main thread."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: halt())


class Interrupted(BaseException):
    """A signal came while the daemon was looking for its source."""


def unless_interrupted(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`sys.unraisablehook` that says nothing of an Interrupted that was dropped, and leaves the rest to `hook`."""

    def tell_what_is_dropped(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Interrupted):
            hook(dropped)

    return tell_what_is_dropped


def stop_on_signals(stop: threading.Event, *, interrupt: Callable[[], bool] = lambda: False) -> None:
    """Have SIGINT, SIGTERM and SIGHUP set an event; the first of them raises Interrupted while `interrupt()` is true.

    The event is set by a thread. A handler runs in the main thread between any two instructions, also while that holds
    the lock of the very event that it waits on.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    has_interrupted = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal has_interrupted
        if interrupt() and not has_interrupted:
            has_interrupted = True
            raise Interrupted

    def watch() -> None:
        while numbers := reader.recv(64):
            if not set(numbers).isdisjoint(_STOP_SIGNALS):  # every signal with a handler is written there
                stop.set()

    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="neuromod-signals", daemon=True).start()
    for number in _STOP_SIGNALS:
        signal.signal(number, on_signal)
