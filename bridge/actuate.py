"""The process between the daemon and one actuator: it hands on what is fresh, and disarms whatever else happens.

It listens to the output socket, passes commands, spikes and stimulation to the actuator, tells ingest that the
actuator lives (`alive`) and what it answers (`reward`, `event`, `stimuli`). One thread, and no wait longer than
`POLL_INTERVAL_S`, but while the actuator is being opened: it is disarmed then.

The actuator is armed by the first fresh message that it could act on, and disarmed by: no such message for
`silence_ms`, a stop of the gate, a sequence number that does not rise (another daemon), an error, a signal, the end.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Annotated

import pylsl
import zmq
from pydantic import Field

from neuromod.adapters.actuator_config import ActuatorConfig
from neuromod.adapters.actuators.base import (
    POLL_INTERVAL_S,
    Acknowledgement,
    Actuator,
    ActuatorMessage,
    Answer,
    Command,
    Event,
    Reward,
    Spikes,
    Stimulation,
    Stimuli,
    create_actuator,
    says_nothing,
    topic_of,
)
from neuromod.bridge import wire
from neuromod.bridge.peer import Peer, PeerConfig
from neuromod.bridge.stop_signals import STOP_SIGNALS
from neuromod.engine.errors import AdapterError

log = logging.getLogger(__name__)

# The clocks of two processes of one host are the same clock; what claims to be newer is from elsewhere.
_AHEAD_S = 1e-3


class ActuateConfig(PeerConfig, frozen=True, extra="forbid"):
    """An actuator process.

    Attributes
    ----------
    actuator : ActuatorConfig
        What to drive.
    name : str, optional
        Under which it tells the daemon that it lives, as in `peers` of the session; the kind, where none is given.
    silence_ms : float
        Disarm when nothing that may be acted on has come for so long.
    stale_ms : float
        Spikes older than this are dropped; commands and stimulation tell their own `expires`.
    """

    actuator: ActuatorConfig
    name: Annotated[str, Field(min_length=1, max_length=wire.MAX_NAME_CHARACTERS)] | None = None
    silence_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 250.0
    stale_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 100.0


class Actuation:
    """One actuator, served until it is stopped.

    Parameters
    ----------
    config : ActuateConfig
        What to do.
    actuator : Actuator, optional
        Instead of the one that the configuration describes.
    clock : callable
        Returns the time in seconds, that of the daemon.

    Attributes
    ----------
    counts : dict of str to int
        Messages and answers by what became of them.
    """

    def __init__(
        self,
        config: ActuateConfig,
        actuator: Actuator | None = None,
        clock: Callable[[], float] = pylsl.local_clock,
    ) -> None:
        self._config = config
        self._actuator = create_actuator(config.actuator) if actuator is None else actuator
        self._clock = clock
        self._fresh = -math.inf
        self._peer = Peer(config, config.name or config.actuator.kind)
        self.counts = self._peer.counts

    def run(self, stop: Callable[[], bool], ready: Callable[[], object] = lambda: None) -> None:
        """Serve until `stop()`.

        Parameters
        ----------
        stop : callable
            Asked at least every `POLL_INTERVAL_S`.
        ready : callable
            Called once, when the actuator is open and the daemon is listened to.

        Raises
        ------
        AdapterError
            If the actuator cannot be opened, or was lost and is not to be looked for again.
        MessageError
            If the daemon speaks another version of the protocol.
        """
        try:
            self._actuator.open()
            self._peer.connect(*(topic.encode() for topic in self._actuator.wants))
            ready()
            while not stop():
                try:
                    self._serve()
                except AdapterError as error:
                    self._actuator.close()
                    if self._config.reconnect_s == 0.0:
                        raise
                    log.warning("%s; disarmed, and looked for again", error)
                    self._look_for_it(stop)
        finally:
            # first of all, and whatever was raised
            self._actuator.disarm()
            self._actuator.close()
            self._peer.close()

    def _serve(self) -> None:
        """Wait once for messages; hand them on, and do what is due."""
        self._peer.sub.poll(int(1e3 * POLL_INTERVAL_S))
        for heard in self._peer.messages():
            message = _as_actuators_take_it(heard)
            if message is not None:
                self._hand_on(message)
        if self._actuator.is_armed and self._clock() - self._fresh > 1e-3 * self._config.silence_ms:
            self._disarm("nothing to act on has come for %g ms", self._config.silence_ms)
        for answer in self._actuator.poll():
            self._tell(answer)
        self._peer.tell_alive(self._clock())  # polled without an error: it lives

    def _hand_on(self, message: ActuatorMessage) -> None:
        topic, now = topic_of(message), self._clock()
        rise = self._peer.rise(topic, message.seq)
        if isinstance(message, Stimulation) and message.kind == "stop":
            self._actuator.send(message)
            self._disarm("the gate says stop (reason %d)", message.reason)
            return
        if rise < 1:
            self._peer.count("restarts")
            self._disarm("%s went from message %d to %d: another daemon", topic, message.seq - rise, message.seq)
            return
        self._peer.count("lost", rise - 1)
        if self._is_stale(message, now):
            self._peer.count("stale")
            return
        if not says_nothing(message, now):
            self._fresh = now
            self._actuator.arm()
        self._peer.count("acted" if self._actuator.send(message) else "dropped")

    def _is_stale(self, message: ActuatorMessage, now: float) -> bool:
        if isinstance(message, Spikes):
            return not -_AHEAD_S <= now - message.t_tick <= 1e-3 * self._config.stale_ms
        written = message.t if isinstance(message, Stimulation) else message.t_tick
        return not now < message.expires or not written <= now + _AHEAD_S

    def _disarm(self, why: str, *values: object) -> None:
        if self._actuator.is_armed:
            log.info("disarmed: " + why, *values)
        self._actuator.disarm()

    def _look_for_it(self, stop: Callable[[], bool]) -> None:
        """Try to open the actuator again, every `reconnect_s`; what the daemon says meanwhile is thrown away."""
        due = self._clock() + self._config.reconnect_s
        while not stop():
            if self._peer.sub.poll(int(1e3 * POLL_INTERVAL_S)):
                self._peer.sub.recv_multipart(zmq.DONTWAIT)
            if self._clock() < due:
                continue
            try:
                self._actuator.open()
                log.info("%s is back", self._actuator.name)
                self._peer.count("reconnects")
                return
            except AdapterError as error:
                log.debug("%s", error)
                due = self._clock() + self._config.reconnect_s

    def _tell(self, answer: Answer) -> None:
        try:
            match answer:
                case Reward(amount, t):
                    self._peer.send(wire.RewardInput(amount, self._clock() if t is None else t))
                case Event(name, t, value):
                    self._peer.send(wire.EventInput(name, t, value))
                case Stimuli(values, t):
                    self._peer.send(wire.StimuliInput(values, t))
                case Acknowledgement():
                    self._peer.count("acknowledged")
        except wire.MessageError as error:
            self._peer.count("bad_answers")
            log.warning("an answer of %s cannot be sent on: %s", self._actuator.name, error)


def _as_actuators_take_it(message: wire.OutputMessage) -> ActuatorMessage | None:
    match message:
        case wire.SpikesMessage():
            channels = sum(1 << channel for channel in message.channels)
            flags = int(message.flags)
            return Spikes(message.seq, message.tick, message.t_sample, message.t_tick, channels, flags)
        case Command() | Stimulation():
            return message
    return None


def actuate(config: ActuateConfig, *, ready: Callable[[str], object] = lambda text: None) -> int:
    """Serve one actuator until a signal.

    Parameters
    ----------
    config : ActuateConfig
        What to do.
    ready : callable
        Given a sentence when the actuator is open and the daemon is listened to.

    Returns
    -------
    int
        Exit code: 0 after a signal. Errors are raised: of the configuration, of opening, and of a device that was
        lost and is not looked for again.
    """
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in STOP_SIGNALS}
    actuation = Actuation(config)
    begun = time.monotonic()
    try:
        actuation.run(stopped.is_set, lambda: ready(f"{config.output} -> {actuation._actuator.name}; Ctrl-C stops"))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        log.info("%.1f s: %s", time.monotonic() - begun, actuation.counts)
    return 0
