"""The daemon's three sockets.

The loop alone touches output and ingest while it runs; where it cannot call libzmq, the exchange thread does in its
place. The control thread has the third. What is sent at the end, whoever ends the daemon sends: nobody else is left.
"""

import contextlib
import threading
from collections.abc import Callable

import zmq

from neuromod.bridge import loop_state as rt
from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.doorkeeper import Doorkeeper
from neuromod.bridge.ring import Ring, available, drain
from neuromod.engine.errors import ConfigError

_KINDS = {"ingest": zmq.PULL, "output": zmq.PUB, "control": zmq.ROUTER}
_SOURCE_TIMEOUT_MS = 5  # how long the loop waits on the ingest socket where stimuli messages are the source
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_SUBSCRIPTION_BYTES = 4096  # libzmq makes a node of every byte, in the loop's thread: 0.1 s and more for a MiB
_HWM = 10_000
_LINGER_MS = 20  # so that the good-bye leaves
_FRAMES_AT_ONCE = 256  # then ingest is looked at


class Sockets:
    """Bound by `open`, until `close`.

    Parameters
    ----------
    config : SessionConfig
        Of the session.

    Attributes
    ----------
    addresses : dict of str to str
        By name: "ingest", "output", "control".
    door : Doorkeeper
        Knows who may speak on them, and who has spoken.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._bound: dict[str, zmq.Socket[bytes]] = {}
        self._door: Doorkeeper | None = None
        self.addresses: dict[str, str] = {}

    def open(self) -> None:
        """Bind all of them.

        Raises
        ------
        ConfigError
            One cannot be bound; those that were stay open.
        """
        self._context = zmq.Context(io_threads=1)
        self._door = Doorkeeper(self._context, self._config.security)
        for name, kind in _KINDS.items():
            bound = self._bound[name] = self._context.socket(kind)
            bound.maxmsgsize = _MAX_MESSAGE_BYTES if name != "output" else _MAX_SUBSCRIPTION_BYTES
            self._door.protect(name, bound)
            address = getattr(self._config.sockets, name)
            if name == "ingest":
                bound.rcvhwm = _HWM
                if self._config.source_content == "stimuli":
                    bound.rcvtimeo = _SOURCE_TIMEOUT_MS
            if name == "output":
                bound.sndhwm = _HWM
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

    @property
    def is_open(self) -> bool:
        """Whether they can be used."""
        return len(self._bound) == len(_KINDS)

    @property
    def door(self) -> Doorkeeper:
        """Knows who may speak, and who has spoken."""
        assert self._door is not None
        return self._door

    def __getitem__(self, name: str) -> "zmq.Socket[bytes]":
        return self._bound[name]

    def exchange(self, out: Ring, judge: Callable[[list[zmq.Frame]], None], stop: threading.Event) -> None:
        """Stand in for the loop at both of its sockets until `stop` is set.

        Parameters
        ----------
        out : Ring
            Of FRAME: what the loop wants sent.
        judge : callable
            Gets the parts of each message from ingest.
        stop : Event
            Ends it.
        """
        ingest = self._bound["ingest"]
        while not stop.is_set():
            self.send(out, limit=_FRAMES_AT_ONCE)
            if ingest.poll(0 if available(out.ends) else 1):
                with contextlib.suppress(zmq.Again):
                    judge(ingest.recv_multipart(zmq.DONTWAIT, copy=False))

    def send(self, ring: Ring, limit: int = 4096) -> None:
        """Publish the messages that wait in a ring of FRAME."""
        for frame in drain(ring, rt.FRAME, limit=limit):
            middle = int(frame["topic"])
            data = frame["data"][: middle + int(frame["payload"])].tobytes()
            self.publish(data[:middle], data[middle:])

    def publish(self, topic: bytes, payload: bytes) -> None:
        """Publish one message; called by whoever has the output socket."""
        self._bound["output"].send_multipart([topic, payload], zmq.DONTWAIT)

    def say_goodbye(self, rings: rt.Rings, events: list[bytes], health: bytes) -> None:
        """Publish what the loop left, events, and a last health message."""
        with contextlib.suppress(zmq.ZMQError):
            self.send(rings.out)
            self.send(rings.frames)
            for event in events:
                self.publish(wire.TOPIC_EVENT, event)
            self.publish(wire.TOPIC_HEALTH, health)

    def close(self) -> None:
        """Close all of them, and whatever let people in. Safe to call twice."""
        if self._door is not None:
            self._door.close()
            self._door = None
        for bound in self._bound.values():
            bound.close(linger=_LINGER_MS)
        self._bound.clear()
        if self._context is not None:
            self._context.term()
            self._context = None
