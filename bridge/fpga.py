"""The process between the daemon and a board that runs the network in fixed point.

It listens to the output socket and hands the board what drove each tick (`stimuli`). In mode mirror the board follows,
and is compared: bit for bit with the twin, which runs here, and in its spikes with the daemon's own network. In mode
offload the board is the network: its spikes go back to ingest (`board`), and the daemon publishes them.

One thread, which waits on the socket and the board at once, and no longer than `POLL_INTERVAL_S`, but while a board is
opened or loaded: what the daemon says meanwhile waits in the socket. A board that is gone is looked for again; its
network goes on in the twin until then, whose state it gets. A board that differs from the twin gives no more spikes
back: what computes wrongly once is not to move or stimulate anything, and the daemon goes to its safe state.
"""

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pylsl
import zmq

from neuromod.adapters.actuators.base import POLL_INTERVAL_S
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.config import create_device
from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.siliconbridge import SiliconBridge
from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.fpga_compare import Latencies, Mirror
from neuromod.bridge.fpga_config import FAULTS, AdapterConfig, check_session
from neuromod.bridge.fpga_ticks import BoardTick, Ticks
from neuromod.bridge.peer import Peer
from neuromod.bridge.stop_signals import STOP_SIGNALS
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError

log = logging.getLogger(__name__)

_MAX_PENDING = 64
_TELL_S = 1.0
_UNKNOWN = wire.Flag.FILLER | wire.Flag.PAUSED | wire.Flag.BOARD
_GONE = (AdapterLostError, AdapterTimeoutError)


class FpgaAdapter:
    """One board, served until it is stopped.

    Parameters
    ----------
    config : AdapterConfig
        What to do.
    session : SessionConfig, optional
        The daemon's; without it, a network of defaults.
    clock : callable
        Returns the time in seconds, that of the daemon.

    Attributes
    ----------
    counts : dict of str to int
        Messages by what became of them, and boards lost and found.
    latencies : Latencies
        Round trips of ticks on the wire.
    mirror : Mirror or None
        The twin; None before the first tick.
    """

    def __init__(
        self,
        config: AdapterConfig,
        session: SessionConfig | None = None,
        clock: Callable[[], float] = pylsl.local_clock,
    ) -> None:
        check_session(config, session)
        self._config = config
        self._clock = clock
        self._device: Board | SiliconBridge = create_device(config.fpga)
        self._is_away = False
        self._look_at = math.inf
        offload = None if session is None else session.offload
        self._delay_ticks = 0 if offload is None else offload.delay_ticks
        self._ticks = Ticks(NetworkConfig() if session is None else session.network, config.fpga)
        self._pending: deque[BoardTick] = deque()
        self._last_step: tuple[int, int] | None = None  # seq and tick of the last message of a step
        self._told_at = -math.inf
        self._told: dict[str, int] = {}
        self._peer = Peer(config, config.name)
        self._poller = zmq.Poller()
        self.counts = self._peer.counts
        self.latencies = Latencies()
        self.mirror: Mirror | None = None

    @property
    def device_name(self) -> str:
        """Which board."""
        return self._device.name

    def run(self, stop: Callable[[], bool], ready: Callable[[], object] = lambda: None) -> None:
        """Serve until `stop()`.

        Parameters
        ----------
        stop : callable
            Asked at least every `POLL_INTERVAL_S`.
        ready : callable
            Called once, when the board is open and the daemon is listened to.

        Raises
        ------
        AdapterError
            If the board cannot be opened, or was lost and is not to be looked for again.
        ConfigError, FixedPointError
            If the link does not carry the session's ticks, or hardware not its numbers.
        MessageError
            If the daemon speaks another version of the protocol.
        """
        try:
            self._open()
            self._peer.connect(wire.TOPIC_STIMULI, wire.TOPIC_SPIKES)
            self._poller.register(self._peer.sub, zmq.POLLIN)
            ready()
            while not stop():
                try:
                    self._serve()
                except _GONE as error:
                    self._lose(error)
            self._finish()
        finally:
            self._device.close()
            self._peer.close()

    # -- the board

    def _open(self) -> None:
        self._device.open()
        fd = self._device.fileno()
        if fd >= 0:
            self._poller.register(fd, zmq.POLLIN)

    def _close(self) -> None:
        fd = self._device.fileno()
        if fd >= 0:
            self._poller.unregister(fd)
        self._device.close()

    def _lose(self, error: AdapterError) -> None:
        """Let the twin go on alone."""
        self._close()
        if self._config.reconnect_s == 0.0:
            raise error
        log.warning("%s; looked for again every %g s", error, self._config.reconnect_s)
        self._peer.count("board_lost")
        self._is_away = True
        self._look_at = self._clock() + self._config.reconnect_s
        for pending in self._pending:
            self._follow(pending, None)
        self._pending.clear()

    def _look_for_it(self) -> None:
        self._look_at = self._clock() + self._config.reconnect_s
        try:
            self._open()
            if self.mirror is not None and self._ticks.image is not None:  # else the next tick begins anew
                self._load()
        except AdapterError as error:
            log.debug("%s", error)
            self._close()
            return
        self._is_away = False
        self._peer.count("reconnects")
        log.info("%s is back", self._device.name)

    def _load(self) -> None:
        """Give the board the twin's state, or begin both anew where its protocol cannot carry that."""
        assert self.mirror is not None
        if not self._device.has_checksum:
            assert self._ticks.image is not None
            self.mirror.restart(self._ticks.image)
            self._ticks.repeat_modulation()
        self._device.load(self.mirror.state)

    # -- the daemon

    def _serve(self) -> None:
        """Wait once for board and daemon; hand on, compare, and do what is due."""
        wait_s = POLL_INTERVAL_S
        if self._pending and self._device.fileno() < 0:
            wait_s = 1e-3  # nothing to wait on: looked at often
        self._poller.poll(int(1e3 * wait_s))
        self._hear_board()
        messages = self._peer.messages()
        # more waits in the socket, which counts what it must drop by jumps in `seq`
        while len(self._pending) < _MAX_PENDING and (message := next(messages, None)) is not None:
            self._hear(message)
            self._hear_board()
        now = self._clock()
        if self._is_away and now >= self._look_at:
            self._look_for_it()
        if not self._is_away:
            self._peer.tell_alive(now)
        if now - self._told_at >= _TELL_S:
            self._told_at = now
            self._tell()

    def _hear(self, message: wire.OutputMessage) -> None:
        if isinstance(message, wire.SpikesMessage):
            self._hear_spikes(message)
        elif isinstance(message, wire.StimuliMessage):
            self._follow_sequence(message)
            if message.is_step:
                self._step(message)
            else:
                self._peer.count("standing_still")

    def _follow_sequence(self, message: wire.StimuliMessage) -> None:
        rise = self._peer.rise("stimuli", message.seq)
        if rise < 1:
            self._peer.count("daemon_restarts")
            self._begin_anew(f"seq went from {message.seq - rise} to {message.seq}: another daemon")
        else:
            self._peer.count("lost_messages", rise - 1)

    def _follow_ticks(self, message: wire.StimuliMessage) -> None:
        """Count ticks passed over; begin anew where messages that are lost do not account for the number of this."""
        last, self._last_step = self._last_step, (message.seq, message.tick)
        if last is None or self._ticks.image is None:
            return
        n_messages, n_ticks = message.seq - last[0], message.tick - last[1]
        if 1 <= n_ticks <= n_messages:
            self._peer.count("ticks_passed_over", n_ticks - 1)
            return
        self._peer.count("network_restores")
        self._begin_anew(
            f"tick went from {last[1]} to {message.tick} within {n_messages} messages: the daemon restored a "
            "checkpoint, or is another"
        )

    def _begin_anew(self, why: str) -> None:
        """Have the next tick begin with the images of the session, since the daemon's network is not what it was."""
        by_hand = "" if self._device.has_checksum else "; reset the board too, which its protocol cannot"
        log.warning("%s; begun anew with the images: what was learnt on the daemon is not in them%s", why, by_hand)
        self._ticks.forget()

    def _step(self, message: wire.StimuliMessage) -> None:
        self._follow_ticks(message)
        if self._ticks.image is None:
            self._begin(message)
        tick = self._ticks.take(message)
        if tick is None:
            return
        if self._is_away:
            self._follow(tick, None)
            return
        assert self.mirror is not None
        number = (int(self.mirror.state[0]["tick"]) + len(self._pending)) % 2**32
        self._pending.append(tick)
        self._device.submit(number, tick.stimuli, tick.modulation)

    def _begin(self, message: wire.StimuliMessage) -> None:
        """Build the network of this daemon, in the twin and on the board."""
        state = self._ticks.begin(message, self._device.latency_timer_ms)
        for tick in self._pending:  # of another daemon
            self._follow(tick, None)
        self._pending.clear()
        if self.mirror is None:
            self.mirror = Mirror(state)
        else:
            self.mirror.restart(state)
        if not self._is_away:
            try:
                self._load()
            except _GONE as error:
                self._lose(error)
        if self._ticks.n > 1:
            log.warning(
                "%d ticks of the session make one of the board's, of %g ms, with the mean of their stimuli: it is a "
                "network of its own, and not compared with the daemon's spikes",
                *(self._ticks.n, self._ticks.step_ms),
            )

    # -- answers

    def _hear_board(self) -> None:
        if self._is_away:
            return
        for answer in self._device.poll():
            pending = self._pending.popleft()
            self._follow(pending, answer)
            if self._config.mode == "offload" and not answer.is_lost and not self._is_wrong():
                self._peer.send(wire.BoardInput(pending.tick, answer.spikes, checked=self._device.has_checksum))
            if answer.round_trip_ns:
                self.latencies.add(answer.round_trip_ns)

    def _is_wrong(self) -> bool:
        return self.mirror is not None and self.mirror.diverging > 0

    def _follow(self, tick: BoardTick, answer: Answer | None) -> None:
        assert self.mirror is not None
        divergence = self.mirror.follow(tick.tick, tick.stimuli, tick.modulation, answer)
        if divergence is not None and self.mirror.diverging == 1:
            log.warning(
                "tick %d: channels %s of the board differ from the twin (spikes %04x instead of %04x)",
                *(divergence.tick, ", ".join(map(str, divergence.channels)), divergence.spikes),
                divergence.expected_spikes,
            )

    def _hear_spikes(self, message: wire.SpikesMessage) -> None:
        """Compare with what the daemon fired; of mode offload, with what it published as the board's."""
        tick = message.tick - self._delay_ticks
        if self.mirror is not None and self._ticks.n == 1 and not message.flags & _UNKNOWN and tick >= 0:
            self.mirror.hear(tick, sum(1 << channel for channel in message.channels))

    # -- telling

    def _tell(self) -> None:
        """Tell the daemon what has changed, where something has gone wrong."""
        counts = self.all_counts()
        wrong = {what: n for what, n in counts.items() if what not in ("standing_still", "unheard")}
        if wrong == self._told:
            return
        self._told = wrong
        value: dict[str, Any] = dict(wrong)
        if self.mirror is not None and self.mirror.first is not None:
            value["first_divergence"] = self.mirror.first.tick
        self._peer.send(wire.EventInput(self._config.name + FAULTS, self._clock(), value))

    def all_counts(self) -> dict[str, int]:
        """Return what was counted here and by the device, the board's own under `board_...`."""
        counts = dict(self.counts)
        for what, n in self._device.counts.items():
            counts[f"board_{what}" if what in counts else what] = n
        if self.mirror is not None and self.mirror.diverging:
            counts["diverging"] = self.mirror.diverging
        return counts

    def _finish(self) -> None:
        """Hear what is still under way."""
        end = time.monotonic() + 1e-3 * self._config.fpga.timeout_ms
        try:
            while self._pending and not self._is_away and time.monotonic() < end:
                self._poller.poll(int(1e3 * POLL_INTERVAL_S))
                self._hear_board()
        except AdapterError as error:
            log.warning("%s", error)

    def summary(self) -> dict[str, Any]:
        """Return what became of it all, as plain data."""
        fpga, link = self._config.fpga, self._config.fpga.link(float(self._device.latency_timer_ms or 0))
        return {
            "mode": self._config.mode,
            "port": fpga.port,
            "protocol": fpga.protocol,
            "baud": link.baud,
            "depth": link.depth,
            "decimation": self._ticks.n,
            "step_ms": self._ticks.step_ms,
            **(self.mirror.summary() if self.mirror is not None else {"compared": 0}),
            # a network of longer steps is another, whose spikes say nothing of the daemon's
            **({"agreement_with_daemon": None} if self._ticks.n > 1 else {}),
            "round_trip_us": self.latencies.summary(),
            "modelled_wire_us": {"out": 1e6 * link.out_s, "back": 1e6 * link.back_s},
            "counts": self.all_counts(),
        }


def serve_board(
    config: AdapterConfig,
    session: SessionConfig | None,
    *,
    ready: Callable[[str], object] = lambda text: None,
    done: Callable[[dict[str, Any]], object] = lambda summary: None,
) -> int:
    """Serve one board until a signal.

    Parameters
    ----------
    config : AdapterConfig
        What to do.
    session : SessionConfig, optional
        The daemon's.
    ready : callable
        Given a sentence when the board is open and the daemon is listened to.
    done : callable
        Given the summary at the end, whatever that is, once there was a tick.

    Returns
    -------
    int
        Exit code after a signal: 0, or 1 where the board differed from its twin. Errors are raised.
    """
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in STOP_SIGNALS}
    adapter = FpgaAdapter(config, session)
    begun = time.monotonic()
    has_ended = False
    try:
        adapter.run(
            stopped.is_set,
            lambda: ready(f"{config.output} -> {adapter.device_name}, {config.mode}; Ctrl-C stops"),
        )
        has_ended = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        log.info("%.1f s: %s", time.monotonic() - begun, adapter.all_counts())
        if has_ended or adapter.mirror is not None:  # what never began has nothing to sum up
            done(adapter.summary())
    return 1 if adapter.mirror is not None and adapter.mirror.diverging else 0
