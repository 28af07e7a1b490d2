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
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.adapters.base import Source
from neuromod.bridge import array_watch, logs, native, realtime, wire
from neuromod.bridge import collector as collecting
from neuromod.bridge import loop_state as rt
from neuromod.bridge.admission import admission_of
from neuromod.bridge.arming import Arming, read_key
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.collector import Collector
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.control import Control
from neuromod.bridge.gate import DECISION
from neuromod.bridge.guard import Guard
from neuromod.bridge.intake import Intake
from neuromod.bridge.keepers import ring_capacity
from neuromod.bridge.ledger import Ledger, LedgerError
from neuromod.bridge.loop import run
from neuromod.bridge.metrics import MetricsServer, make_registry
from neuromod.bridge.notify import Notifier
from neuromod.bridge.pipeline import TICK, UNIT
from neuromod.bridge.recorder import SAMPLES, Recorder, sample_dtype
from neuromod.bridge.resume import LastLife
from neuromod.bridge.ring import available
from neuromod.bridge.safety_config import is_sent
from neuromod.bridge.session import start_session
from neuromod.bridge.sockets import Sockets
from neuromod.bridge.stop_signals import (
    STOP_SIGNALS,
    Interrupted,
    halt_on_signal,
    stop_on_signals,
    unless_interrupted,
)
from neuromod.bridge.supervision import Supervision
from neuromod.bridge.warm import warm_loop
from neuromod.bridge.watchdog import STUCK_EXIT_CODE
from neuromod.bridge.yoked import yoked_trains
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import ConfigError, NeuromodError

log = logging.getLogger(__name__)

_LONGEST_STOP_S = 0.4
_LONGEST_JOIN_S = 0.35
_LONGEST_FILES_S = 1.0  # for the record, where a thread is stuck
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
        self.intake = Intake(config, source)
        self._speed, self._on_ticks, self._on_units = speed, on_ticks, on_units
        self._sockets = Sockets(config)
        self._threads: list[threading.Thread] = []
        self._stop_threads = threading.Event()
        self._loop_done: threading.Event | None = None  # once there is a loop
        self.is_looking = False  # for its source, which may take long: the moment at which a signal may interrupt
        self.recorder: Recorder | None = None
        self._ledger: Ledger | None = None
        self.metrics: MetricsServer | None = None
        self.is_stuck = False  # a thread could not be ended, and what it uses was left as it is
        self.addresses = self._sockets.addresses

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
            self._sockets.open()
            if self.config.metrics is not None:
                self.metrics = MetricsServer(self.config.metrics)
            self._spawn("neuromod-door", lambda: self._sockets.door.run(self._stop_threads))
            self.supervision.begin()
            self.is_looking = True
            warm_loop()
            self._open_source()
            self.is_looking = False
            self._start()
        except BaseException as error:
            if isinstance(error, Exception):
                self._note_failure(error)  # what had begun did not end in order
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
            if self._loop_done is not None and not {"neuromod-exchange", "neuromod-collector"} & set(stuck):
                self._say_goodbye()
            self.leave_files(stuck)
            self.supervision.end(self.failure)
            return
        self._threads.clear()
        self._close_ledger()
        if self.recorder is not None:
            self.recorder.close("stopped" if self.failure is None else f"failed: {self.failure}")
        self.intake.close()
        self.supervision.end(self.failure)
        if self._loop_done is not None and self._sockets.is_open:
            self._say_goodbye()
        if self.metrics is not None:
            self.metrics.close()
        self._sockets.close()

    def _send_last(self, deadline: float) -> None:
        """Send what the loop left for the exchange thread, a last "stop" of stimulation too, before anything waits."""
        if self._loop_done is None or not self._sockets.is_open:
            return
        for thread in self._threads:
            if thread.name == "neuromod-exchange":
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    return  # the socket is still its own
        with contextlib.suppress(zmq.ZMQError):
            self._sockets.send(self.rings.out)

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

    def _open_source(self) -> None:
        config = self.config
        self._functions = _loop_functions(config)
        info = self.intake.open(is_native=not self._is_in_python, is_patient=self.supervision.is_kept_up)
        stimulation = config.stimulation
        yoked = None
        if stimulation is not None and stimulation.yoked_session is not None:
            yoked = yoked_trains(stimulation.yoked_session, [e.name for e in stimulation.electrodes])
        self.assembly: Assembly = assemble(config, info, scale=self.intake.scale, yoked=yoked)

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
            scale=self.intake.scale,
            extra={
                "is_timed": is_timed,
                "clock_rate": clock_rate,
                "pulls": int(self.intake.pulls),
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

    def _make_loop(self, paced_rate: float, is_timed: bool) -> None:
        """Allocate the loop and its rings, and give it its inlet and its sockets."""
        config, assembly = self.config, self.assembly
        n_channels, fs = assembly.info.n_channels, assembly.info.sampling_frequency
        keeps_samples = self.recorder is not None and config.record is not None and config.record.raw
        slowdown = 1.0 / min(paced_rate, 1.0) if paced_rate > 0 else 1.0  # blocks take so much longer than they are
        is_watched = config.publish.array_hz > 0 and array_watch.window_samples(assembly) > 0
        chunk = int(min(max(assembly.samples_per_block + 1, 64), _LARGEST_CHUNK))
        self.rings = rt.make_rings(
            n_channels,
            samples_capacity=ring_capacity(n_channels, fs),
            out_capacity=_OUT_FRAMES if self._is_in_python else 2,
            # half a second; messages of stimuli, and what is played as fast as it goes, know no rate
            raw_capacity=ring_capacity(n_channels, max(fs, _BURST_HZ))
            if keeps_samples
            else array_watch.ring_capacity(assembly, chunk)
            if is_watched
            else 2,
        )
        self.loop = rt.make_loop(
            self._functions,
            source=self.intake.pulls,
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
            behind_s=config.timing.behind_bound_ms(assembly.block_ms) / 1000.0 if self.intake.is_lsl else math.inf,
            period_s=1.0 / fs,
        )
        if self.recorder is not None and keeps_samples:
            self.recorder.record_samples(self.rings.raw)
        rt.set_handles(
            self.loop,
            inlet=self.intake.inlet,
            pub=0 if self._is_in_python else self._sockets["output"].underlying,
            pull=0 if self._is_in_python else self._sockets["ingest"].underlying,
        )

    @property
    def _is_in_python(self) -> bool:
        """Whether Python threads do what the loop cannot, or is not to, do by itself."""
        return not self._functions[native.ZMQ_SEND]

    def _start(self) -> None:
        config, assembly = self.config, self.assembly
        # only what has an end was recorded, and is played at a pace; a plug-in may be as live as LSL
        is_live = self.intake.pulls != rt.SOURCE_RING or assembly.info.n_samples is None
        paced_rate = 0.0 if is_live else self._speed
        is_timed = is_live or paced_rate > 0
        arming = self._open_stimulation()
        self._start_recorder(is_timed, 1.0 / paced_rate if paced_rate > 0 else 1.0)
        self._make_loop(paced_rate, is_timed)
        self.collector = Collector(
            assembly,
            self.loop,
            self.rings,
            clock=pylsl.local_clock,
            state_hz=config.publish.state_hz,
            array_hz=config.publish.array_hz,
            health_s=config.publish.health_s,
            describe_source=self.intake.describe,
            on_ticks=self._on_ticks,
            on_units=self._on_units,
            is_timed=is_timed,
            recorder=self.recorder,
            on_behind=self._end_behind,
            door=self._sockets.door,
            admission=(admission := admission_of(config.security)),
        )
        self.intake.attach(self.collector)
        checkpoints = self.supervision.attach(self.collector, self.intake.clock)
        self._spawn("neuromod-collector", lambda: collecting.run(self.collector, self._stop_threads))
        guard = Guard(self.collector, config.stimulation.stop_file if config.stimulation else None, self._ledger)
        if config.stimulation is not None:
            guard.look()  # before anybody can arm
            guard.grant()
            self._spawn("neuromod-guard", lambda: guard.run(self._stop_threads))
            if self._ledger is not None:
                self._spawn("neuromod-ledger", lambda: guard.run_ledger(self._stop_threads))
        control = Control(
            self._sockets["control"],
            self.collector,
            self.stopped.set,
            door=self._sockets.door,
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
        if self._is_in_python:
            self._spawn(
                "neuromod-exchange",
                lambda: self._sockets.exchange(self.rings.out, self._judge, self._stop_threads),
            )
        self._loop_done = threading.Event()
        self._spawn("neuromod-loop", self._run_loop, masked=True)
        self.intake.begin(self.stopped)
        for name, target in (
            *self.intake.threads(self._stop_threads, self._note_failure),
            *self.supervision.threads(self._stop_threads),
        ):
            self._spawn(name, target)
        promoted = realtime.promote_library_threads(config.runtime)
        if promoted:
            log.info("%d threads of the libraries run at priority %d too", promoted, config.runtime.realtime_priority)

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
        self._note_failure(error)
        self.stopped.set()

    def _note_failure(self, error: Exception) -> None:
        self.failure = self.failure or error

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

    def _judge(self, frames: list[zmq.Frame]) -> None:
        try:
            topic, payload = wire.split_parts([frame.bytes for frame in frames])
            self.collector.judge(topic, payload, self._sockets.door.sender(frames[0]).user_id)
        except wire.MessageError as error:
            self.collector.refuse(error.reason, str(error))

    def has_ended(self) -> bool:
        """Say whether a recording has been played to its end, and all of it was taken."""
        state = native.get_word(self.loop.block[0]["shared"], rt.STATE)
        return bool(state == rt.ENDED) and not available(self.rings.ticks.ends)

    def _say_goodbye(self) -> None:
        """Publish what is left, and a last health message; the loop is done, so the socket is ours again."""
        body = self.collector.health()
        health = wire.pack_health(wire.HealthMessage(body["t"], "stopping", body))
        self._sockets.say_goodbye(self.rings, list(self.collector.due_events), health)


def _loop_functions(config: SessionConfig) -> NDArray[Any]:
    """Return the C functions that the loop calls; those of libzmq are 0 where Python threads do its part."""
    functions = native.c_functions()
    if not functions[[native.LSL_LOCAL_CLOCK, native.SLEEP, native.MEMMOVE]].all():
        raise ConfigError("the C functions of the loop (clock, sleep, memmove) are not to be had on this platform")
    absent = native.missing(functions)
    if absent or config.runtime.loop == "python":
        for library in absent:
            log.warning("%s cannot be called from compiled code here: Python threads do its part", library)
        functions[[native.ZMQ_SEND, native.ZMQ_MSG_RECV]] = 0
    return functions


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
        Exit code: 0, or 1 where a part of the daemon failed, which the log has told. What cannot begin is raised.
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
                if daemon.failure is None:
                    log.info("the recording has been played to its end")
                break
    except Interrupted:
        log.info("stopped before the session began")
    except Exception as error:
        # a callback of the compiler drops an Interrupted that is raised in it, and the compiler fails for want of it
        if is_open or not daemon.stopped.wait(0.1):
            if daemon.is_stuck:  # nobody will be there to say it
                log.critical("%s", error)
            raise
        daemon.failure = None
        log.info("stopped before the session began")
    finally:
        notifier.stopping()
        daemon.close()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = hook
        # the process ends now: collecting what the compiler left would take 0.3 s of the 0.5 s that a stop may take
        gc.freeze()
        if daemon.is_stuck:
            # a thread that is still inside a library would be a crash, or a hang, when the interpreter leaves
            logging.shutdown()
            os._exit(1 if daemon.failure else 0)
    return 1 if daemon.failure else 0


def leave(daemon: Daemon) -> None:
    """End the process of a daemon whose loop is stuck: record and ledger first, then nothing that could wait."""
    daemon.leave_files(["neuromod-loop"])
    daemon.supervision.end(NeuromodError("the loop stood still"))
    logging.shutdown()
    os._exit(STUCK_EXIT_CODE)
