"""A process beside the daemon, on its output and ingest sockets: it hears what is published, and says that it lives."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic
import zmq
from pydantic import AfterValidator, Field

from neuromod.adapters.actuator_config import check_loopback
from neuromod.bridge import wire
from neuromod.bridge.keys import connect, load_client

_AT_ONCE = 256
_BUFFER = 10_000


def _within_reach(address: str, info: pydantic.ValidationInfo) -> str:
    return address if info.data.get("key") is not None and address.startswith("tcp://") else check_loopback(address)


class PeerConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What every process beside the daemon has to know.

    Attributes
    ----------
    output, ingest : str
        Addresses of the daemon; on another host only with a key.
    key : Path, optional
        File that `neuromod keys new` wrote, with the roles observe and feed, for a daemon that asks for keys.
    alive_hz : float
        How often to tell the daemon that the device lives.
    reconnect_s : float
        Pause before a device that was lost is looked for again; 0 ends the process instead.
    """

    key: Path | None = None  # first: what the addresses may be depends on it
    output: Annotated[str, AfterValidator(_within_reach)] = wire.DEFAULT_OUTPUT
    ingest: Annotated[str, AfterValidator(_within_reach)] = wire.DEFAULT_INGEST
    alive_hz: Annotated[float, Field(gt=0.0, le=100.0)] = 20.0
    reconnect_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 1.0


class Peer:
    """Both sockets, and what was counted on them.

    Parameters
    ----------
    config : PeerConfig
        Where the daemon is.
    name : str
        Under which the daemon knows this peer.

    Raises
    ------
    ConfigError
        Where the key cannot be read, or others may read it.

    Attributes
    ----------
    sub : zmq.Socket
        Brings what the daemon publishes; None before `connect`.
    counts : dict of str to int
        Messages by what became of them.
    """

    def __init__(self, config: PeerConfig, name: str) -> None:
        self._config, self._name = config, name
        self._key = load_client(config.key) if config.key is not None else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._push: Any = None
        self._last_seq: dict[str, int] = {}
        self._alive_at = -math.inf
        self.sub: Any = None
        self.counts: dict[str, int] = {}

    def connect(self, *topics: bytes) -> None:
        """Listen to these topics from now on."""
        self.sub = self._context.socket(zmq.SUB)
        self.sub.set_hwm(_BUFFER)
        self.sub.setsockopt(zmq.MAXMSGSIZE, wire.MAX_OUTBOUND_BYTES)
        self._push = self._context.socket(zmq.PUSH)
        self._push.immediate = True  # an `alive` that waited for a daemon would be a lie
        self._push.set_hwm(_AT_ONCE)
        self.sub.reconnect_ivl = self._push.reconnect_ivl = 20
        for topic in topics:
            self.sub.subscribe(topic)
        for socket, address in ((self.sub, self._config.output), (self._push, self._config.ingest)):
            connect(socket, address, self._key)

    def close(self) -> None:
        """Close both sockets; what was not sent yet is lost."""
        self._context.destroy(0)

    def messages(self) -> Iterator[wire.OutputMessage]:
        """Take one waiting message after the other, but not for ever.

        Raises
        ------
        MessageError
            If the daemon speaks another version of the protocol.
        """
        for _ in range(_AT_ONCE):
            try:
                parts = self.sub.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = wire.unpack_output(*wire.split_parts(parts))
            except wire.MessageError as error:
                if error.reason is wire.Reason.VERSION:
                    raise
                self.count("malformed")
            else:
                yield message

    def rise(self, topic: str, seq: int) -> int:
        """Return how far `seq` of a topic rose: above 1 messages were lost, below 1 it is another daemon's."""
        last = self._last_seq.get(topic, seq - 1)
        self._last_seq[topic] = seq
        return seq - last

    def send(self, message: wire.IngestMessage) -> None:
        """Send to ingest, or count it where no daemon is there."""
        try:
            self._push.send_multipart(wire.pack_ingest(message), zmq.DONTWAIT)
        except zmq.Again:
            self.count("unheard")

    def tell_alive(self, now: float) -> None:
        """Tell the daemon that the device lives, where it is time to."""
        if now - self._alive_at >= 1.0 / self._config.alive_hz:
            self._alive_at = now
            self.send(wire.AliveInput(self._name))

    def count(self, what: str, n: int = 1) -> None:
        """Count n of these."""
        if n:
            self.counts[what] = self.counts.get(what, 0) + n
