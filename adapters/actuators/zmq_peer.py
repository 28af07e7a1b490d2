"""A program of yours as actuator, over a pair of ZeroMQ sockets of its own.

Messages are multipart ``[topic, payload]``, the payload one msgpack map.

| topic | direction | payload |
|---|---|---|
| `command`, `spikes`, `stimulation` | to the peer | the fields of `Command`, `Spikes`, `Stimulation`; `values` binary, float32, little-endian |
| `arm`, `disarm` | to the peer | `t`; before `arm` and after `disarm`, its output is in the safe state |
| `ping` | to the peer | `n`, `lease_ms`: who hears nothing for so long goes to the safe state by itself |
| `pong` | from the peer | `n` of the ping, `armed` (optional): whether it acts; without pongs it counts as lost |
| `ack` | from the peer | `topic`, `seq` of a message that it took |
| `reward` | from the peer | `amount`, `t` (optional) |
| `event` | from the peer | `name`, `t` and `value` (optional) |
| `stimuli` | from the peer | `values`, `t` (optional) |
"""  # noqa: E501 (a table)

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import pylsl
import zmq

from neuromod.adapters.actuator_config import ZmqPeerConfig
from neuromod.adapters.actuators.base import (
    Acknowledgement,
    ActuatorMessage,
    Answer,
    Command,
    Event,
    Reward,
    Stimuli,
    Topic,
    not_open,
    says_nothing,
    topic_of,
)
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError

# What may wait for a peer that is busy; everything that acts expires, so more would only be too late.
_WAITING = 256
_TAKEN_AT_ONCE = 1000
_LARGEST = 1 << 16

MALFORMED = (ValueError, TypeError, KeyError, OverflowError)
"""What `unpack` and `as_answer` raise for a message that is none."""


class ZmqPeer:
    """Forwards messages to a peer, and brings its answers back.

    Parameters
    ----------
    config : ZmqPeerConfig
        Where the peer is, and what it wants.
    clock : callable
        Returns the time in seconds.

    Attributes
    ----------
    malformed : int
        Answers that could not be used, and were dropped.
    """

    def __init__(self, config: ZmqPeerConfig, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._config = config
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._out: Any = None
        self._in: Any = None
        self._is_armed = False
        self._pings = self._ponged = self._armed_at = 0
        self._pinged = 0.0
        self._heard = -math.inf
        self._answers: list[Answer] = []
        self.malformed = 0

    @property
    def name(self) -> str:
        """Where it is."""
        return f"ZeroMQ peer at {self._config.messages}"

    @property
    def wants(self) -> frozenset[Topic]:
        """As configured."""
        return frozenset(self._config.wants)

    @property
    def is_armed(self) -> bool:
        """True from `arm` to `disarm`, `close` or an error."""
        return self._is_armed

    @property
    def addresses(self) -> tuple[str, str]:
        """Where messages go and answers come from, with the ports that were bound."""
        self._check()
        return (self._out.last_endpoint.decode(), self._in.last_endpoint.decode())

    def open(self) -> None:
        """Bind or connect, and wait until the peer answers a ping.

        Raises
        ------
        AdapterError
            If an address cannot be used.
        AdapterTimeoutError
            If no peer answers.
        """
        if self._context is not None and self._heard > -math.inf:
            return
        self.reach()
        deadline = time.monotonic() + self._config.open_timeout_s
        try:
            self._await_pong(deadline)
            # the peer takes from an earlier connection and from this one in turn: once it answers a second time, it has
            # also heard the last word of the earlier one, which would otherwise disarm it later
            self._say("disarm", {"t": self._clock()})
            self._await_pong(deadline)
        except BaseException:
            self.close()
            raise

    def reach(self) -> None:
        """Bind or connect the sockets only; `open` does it too."""
        if self._context is not None:
            return
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        out = context.socket(zmq.PUSH if self._config.pattern == "push" else zmq.PUB)
        into = context.socket(zmq.PULL)
        into.setsockopt(zmq.MAXMSGSIZE, _LARGEST)
        for socket in (out, into):
            socket.set_hwm(_WAITING)
            socket.linger = 0
        out.immediate = True  # nothing piles up for a peer that is not there
        try:
            for socket, address in ((out, self._config.messages), (into, self._config.answers)):
                if self._config.bind:
                    socket.bind(address)
                else:
                    socket.connect(address)
        except zmq.ZMQError as error:
            context.destroy(0)
            raise AdapterError(f"{address} cannot be used ({error.strerror}); choose another address") from error
        self._context, self._out, self._in = context, out, into
        self._heard, self._answers = -math.inf, []

    def arm(self) -> None:
        """Tell the peer to act from now on."""
        self._check()
        if not self._is_armed:
            self._say("arm", {"t": self._clock()})
            self._is_armed = True
            self._armed_at = self._pings

    def send(self, message: ActuatorMessage) -> bool:
        """Forward one message, at once or not at all."""
        self._check()
        topic = topic_of(message)
        if not self._is_armed or topic not in self._config.wants or says_nothing(message, self._clock()):
            return False
        self._say(topic, as_map(message))
        return True

    def poll(self) -> Sequence[Answer]:
        """Return the answers, ping, and notice a peer that is silent."""
        self._check()
        self._listen()
        now = self._clock()
        if now - self._heard > 1e-3 * self._config.lost_ms:
            silent_ms = 1e3 * (now - self._heard)
            self.disarm()
            raise AdapterLostError(f"{self.name} has been silent for {silent_ms:.0f} ms; check that it still runs")
        if now - self._pinged >= 1e-3 * self._config.ping_ms:
            self._pinged = now
            # a peer that is stuck is told by its silence, and not by what it does not take
            with contextlib.suppress(zmq.Again):
                self._out.send_multipart([b"ping", msgpack.packb(self._ping())], zmq.DONTWAIT)
        answers, self._answers = self._answers, []
        return answers

    def disarm(self) -> None:
        """Tell the peer to go to its safe state; if that does not reach it, the end of the pings will."""
        self._is_armed = False
        if self._out is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._out.send_multipart([b"disarm", msgpack.packb({"t": self._clock()})], zmq.DONTWAIT)

    def close(self) -> None:
        """Disarm, and close the sockets; what was sent last gets 20 ms to leave."""
        self.disarm()
        context, self._context = self._context, None
        if context is not None:
            self._out.close(20)
            self._in.close(0)
            context.term()
        self._out = self._in = None

    def _await_pong(self, deadline: float) -> None:
        first = self._pings + 1
        while self._ponged < first:
            self._say("ping", self._ping())
            self._in.poll(max(1, int(self._config.ping_ms)))
            self._listen()
            if time.monotonic() > deadline:
                raise AdapterTimeoutError(
                    f"{self.name} did not answer within {self._config.open_timeout_s:g} s; start it, and check "
                    f"that its pongs come to {self._config.answers}"
                )

    def _ping(self) -> dict[str, Any]:
        self._pings += 1
        return {"n": self._pings, "lease_ms": self._config.lease_ms}

    def _say(self, topic: str, body: dict[str, Any]) -> None:
        try:
            self._out.send_multipart([topic.encode(), msgpack.packb(body)], zmq.DONTWAIT)
        except zmq.Again:
            if self._heard == -math.inf:
                return  # not there yet; `open` says so in time
            self.disarm()
            raise AdapterTimeoutError(
                f"{self.name} does not take what is sent ({_WAITING} messages wait); check that it still runs and "
                "keeps up, or send it less"
            ) from None

    def _listen(self) -> None:
        for _ in range(_TAKEN_AT_ONCE):
            try:
                parts = self._in.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                topic, body = parts[0], unpack(parts[1])
                if topic == b"pong":
                    self._pong(body)
                else:
                    self._answers.append(as_answer(topic, body, self._clock()))
            except (*MALFORMED, IndexError):
                self.malformed += 1
                continue
            self._heard = self._clock()

    def _pong(self, body: dict[str, Any]) -> None:
        self._ponged = int(body["n"])
        if self._ponged > self._armed_at and not body.get("armed", True):
            self._is_armed = False  # it heard nothing for its lease; who uses us may arm it again

    def _check(self) -> None:
        if self._context is None:
            raise not_open(self.name)


def as_map(message: ActuatorMessage) -> dict[str, Any]:
    """Return a message as a map that msgpack can carry."""
    body = {field.name: getattr(message, field.name) for field in fields(message)}
    if isinstance(message, Command):
        body["values"] = np.asarray(message.values, "<f4").tobytes()
        body["flags"] = int(message.flags)
    return body


def unpack(payload: bytes) -> dict[str, Any]:
    """Return the map that a payload is.

    Raises
    ------
    ValueError, TypeError
        If it is none; msgpack's errors are ValueErrors.
    """
    body = msgpack.unpackb(payload)
    if not isinstance(body, dict):
        raise TypeError(f"a message is a map, not {type(body).__name__}")
    return body


def as_answer(topic: bytes, body: dict[str, Any], now: float) -> Answer:
    """Return what a peer said.

    Raises
    ------
    ValueError, TypeError, KeyError, OverflowError
        If it is not as the table at the top says.
    """
    t = None if body.get("t") is None else float(body["t"])
    if topic == b"ack":
        if body["topic"] not in ("command", "spikes", "stimulation"):
            raise ValueError(f"there is no topic {body['topic']!r}")
        return Acknowledgement(body["topic"], int(body["seq"]), now)
    if topic == b"reward":
        return Reward(float(body["amount"]), t)
    if topic == b"event":
        return Event(str(body["name"]), t, body.get("value"))
    if topic == b"stimuli":
        return Stimuli(np.frombuffer(body["values"], "<f4").astype(np.float32), t)
    raise ValueError(f"there is no answer {topic[:32]!r}")
