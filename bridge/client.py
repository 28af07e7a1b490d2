"""Talk to a running daemon from Python: listen to what it publishes, send stimuli and rewards, give commands.

>>> from neuromod.bridge.client import Client
>>> with Client() as client:  # doctest: +SKIP
...     for message in client.subscribe("spikes", timeout_s=1.0):
...         if 3 in message.channels:
...             client.send_reward(1.0)

One `Client` belongs to one thread, as ZeroMQ's sockets do; make another one for another thread. Every wait is bounded:
nothing here blocks for longer than the timeout that it was given.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq
from numpy.typing import ArrayLike

from neuromod.bridge import wire
from neuromod.bridge.admission import UNORDERED
from neuromod.bridge.arming import prove
from neuromod.bridge.keys import ClientKey, connect, load_client
from neuromod.engine.errors import NeuromodError

POLL_MS = 100  # how soon a waiting subscription notices `stop`
BATCH = 1000  # messages taken in a row before the clock is read again


class ClientTimeoutError(NeuromodError, TimeoutError):
    """The daemon did not answer, or published nothing, in time."""


class RefusedError(NeuromodError):
    """The daemon answered a request with an error; `reason` is its countable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Subscription:
    """An iterator over what the daemon publishes; made by `Client.subscribe`.

    Attributes
    ----------
    received : int
        Messages handed out.
    lost : dict of str to int
        By topic: messages that the daemon published and that never came, seen as jumps in `seq`. They are dropped
        where this subscriber is slower than the daemon; raise `buffer` or read faster.
    malformed : int
        Messages that could not be unpacked, and were passed over.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        topics: Iterable[str],
        *,
        timeout_s: float | None = None,
        stop: threading.Event | None = None,
        buffer: int = 100_000,
        key: ClientKey | None = None,
    ) -> None:
        self.received = 0
        self.lost: dict[str, int] = {}
        self.malformed = 0
        self._timeout_s = timeout_s
        self._stop = stop or threading.Event()
        self._address, self._has_key = address, key is not None
        self._next_seq: dict[bytes, int] = {}
        known = {topic.decode() for topic in wire.OUTPUT_TOPICS}
        wanted = list(topics) or sorted(known)
        for topic in wanted:
            if topic not in known:
                raise wire.MessageError(
                    wire.Reason.TOPIC, f"topic {topic!r} is not published; choose from {', '.join(sorted(known))}"
                )
        self._socket = context.socket(zmq.SUB)
        self._socket.set_hwm(buffer)
        self._socket.linger = 0
        for topic in wanted:
            self._socket.subscribe(topic.encode())
        _connect(self._socket, address, key)

    def __iter__(self) -> Iterator[wire.OutputMessage]:
        return self

    def __next__(self) -> wire.OutputMessage:
        message = self.receive(self._timeout_s)
        if message is None:
            raise StopIteration
        return message

    def receive(self, timeout_s: float | None = None) -> wire.OutputMessage | None:
        """Return the next message, or None after `stop`.

        Parameters
        ----------
        timeout_s : float, optional
            How long to wait; without it, until `stop`.

        Raises
        ------
        ClientTimeoutError
            Nothing came in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stop.is_set():
            for _ in range(BATCH):
                try:
                    parts = self._socket.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                try:
                    topic, payload = wire.split_parts(parts)
                    message = wire.unpack_output(topic, payload)
                except wire.MessageError as error:
                    if error.reason is wire.Reason.VERSION:
                        raise
                    self.malformed += 1
                    continue
                self._count(topic, message)
                return message
            wait_ms = POLL_MS if deadline is None else min(POLL_MS, 1e3 * (deadline - time.monotonic()))
            if wait_ms <= 0:
                raise ClientTimeoutError(
                    f"nothing came from {self._address} within {timeout_s:g} s; check that the daemon runs "
                    "('neuromod status') and publishes there" + _or_refused(self._has_key)
                )
            self._socket.poll(max(1, int(wait_ms)))
        return None

    def stop(self) -> None:
        """End the iteration; may be called from another thread."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and close the socket. Call it from the thread that iterates."""
        self._stop.set()
        self._socket.close(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, topic: bytes, message: wire.OutputMessage) -> None:
        self.received += 1
        if not isinstance(message, wire.SpikesMessage | wire.StimuliMessage | wire.UnitMessage | wire.ArrayMessage):
            return
        expected = self._next_seq.get(topic, message.seq)
        if message.seq > expected:
            name = topic.decode()
            self.lost[name] = self.lost.get(name, 0) + message.seq - expected
        # a lower number is a daemon that was started again: count on from there
        self._next_seq[topic] = message.seq + 1


class Client:
    """A connection to one daemon. Sockets are opened at their first use, and closed with the `with` block.

    Parameters
    ----------
    ingest, output, control : str
        The daemon's three addresses, as in the `[sockets]` section of its session file.
    timeout_s : float
        How long a request may take, and a send may wait for the daemon to be there.
    key : Path or str, optional
        File that `neuromod keys new` wrote, for a daemon that asks for keys.

    Raises
    ------
    ConfigError
        Where the key cannot be read, or others may read it.

    Examples
    --------
    >>> with Client(timeout_s=1.0) as client:  # doctest: +SKIP
    ...     print(client.request("status")["health"]["state"])
    ...     client.send_modulators(acetylcholine=0.8)
    ...     client.request("set", parameters={"publish.state_hz": 20})
    """

    def __init__(
        self,
        *,
        ingest: str = wire.DEFAULT_INGEST,
        output: str = wire.DEFAULT_OUTPUT,
        control: str = wire.DEFAULT_CONTROL,
        timeout_s: float = 2.0,
        key: Path | str | None = None,
    ) -> None:
        self.ingest = ingest
        self.output = output
        self.control = control
        self.timeout_s = timeout_s
        self._key = load_client(Path(key)) if key is not None else None
        self._session: str | None = None
        self._seq = 0
        # a context of its own: closing this client never waits for, or disturbs, anyone else's sockets
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._push: zmq.Socket[bytes] | None = None
        self._dealer: zmq.Socket[bytes] | None = None
        self._subscriptions: list[Subscription] = []
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket. What was sent gets up to `timeout_s` to leave."""
        for subscription in self._subscriptions:
            subscription.close()
        if self._dealer is not None:
            self._dealer.close(0)
        if self._push is not None:
            self._push.close(int(1e3 * self.timeout_s))
        self._context.term()

    def subscribe(
        self,
        *topics: str,
        timeout_s: float | None = None,
        stop: threading.Event | None = None,
        buffer: int = 100_000,
    ) -> Subscription:
        """Listen to what the daemon publishes.

        Parameters
        ----------
        *topics : str
            Any of spikes, stimuli, units, command, stimulation, state, array, health, event; none for all.
        timeout_s : float, optional
            Raise `ClientTimeoutError` where nothing comes for so long; without it, wait until stopped.
        stop : threading.Event, optional
            Ends the iteration when set, within 0.1 s.
        buffer : int
            Messages to hold while this program is busy; beyond it they are dropped, and counted as lost.

        Returns
        -------
        Subscription
            An iterator of `SpikesMessage`, `StimuliMessage`, `UnitMessage`, `Command`, `Stimulation`, `StateMessage`,
            `ArrayMessage`, `HealthMessage` and `EventMessage`.
        """
        subscription = Subscription(
            self._context, self.output, topics, timeout_s=timeout_s, stop=stop, buffer=buffer, key=self._key
        )
        self._subscriptions.append(subscription)
        return subscription

    def send_stimuli(self, values: ArrayLike, t: float | None = None) -> None:
        """Send one vector of stimuli: added to the source's, or, with `source = "zmq"`, one tick by itself.

        Here and below: with `t`, the time now on `pylsl.local_clock`, `health` tells how long it took to take effect.
        """
        self.send(wire.StimuliInput(wire.as_stimuli(values), t))

    def send_modulators(self, *, t: float | None = None, **levels: float) -> None:
        """Set any of dopamine (-1 to 1), cortisol, acetylcholine (0 to 1) and tempo (0.1 to 4)."""
        self.send(wire.ModulatorsInput(levels, t))

    def send_reward(self, amount: float, t: float | None = None) -> None:
        """Add a reward; negative for a punishment."""
        self.send(wire.RewardInput(amount, t))

    def send_stress(self, amount: float, t: float | None = None) -> None:
        """Add a stress, not negative."""
        self.send(wire.StressInput(amount, t))

    def send_alive(self, name: str) -> None:
        """Say that a peer that stimulation depends on lives."""
        self.send(wire.AliveInput(name))

    def send_heartbeat(self, token: int) -> None:
        """Keep what `arm` returned alive."""
        self.send(wire.HeartbeatInput(token))

    def send_stimulate(self, program: str) -> None:
        """Ask the gate for a train of a program. With a key this asks control for a session first."""
        if self._key is None:
            self.send(wire.StimulateInput(program))
        else:
            # a session for each: nobody answers that one has been forgotten, as by a daemon that was started anew
            self.send(wire.StimulateInput(program, self._ask("hello", {})["session"], 1))

    def send_board(self, tick: int, spikes: int, checked: bool = False) -> None:
        """Answer for a board that is the network (`[offload]`): the spikes of a tick, bit i = channel i.

        `checked` says that they came over a link with a checksum; where stimulation is sent, no other answer counts.
        """
        self.send(wire.BoardInput(tick, spikes, checked))

    def send_stop(self) -> None:
        """Stop stimulation at once."""
        self.send(wire.StopInput())

    def arm(self, seconds: float, key: bytes | None = None) -> dict[str, Any]:
        """Arm stimulation; the result has the `token` that heartbeats show, and until when.

        Raises
        ------
        RefusedError
            The daemon says no, and why: reason "key" where the key is wrong.
        """
        args: dict[str, Any] = {"seconds": float(seconds)}
        if key is not None:
            nonce = self.request("challenge")["nonce"]
            args |= {"nonce": nonce, "mac": prove(key, nonce, seconds)}
        result: dict[str, Any] = self.request("arm", **args)
        return result

    def send_event(self, name: str, value: Any = None, t: float | None = None) -> None:
        """Mark this moment, or the moment `t` on the daemon's `lsl_local_clock`, in the session."""
        self.send(wire.EventInput(name, t, value))

    def send(self, message: wire.IngestMessage) -> None:
        """Send one message to ingest.

        Raises
        ------
        MessageError
            The daemon would refuse the message; nothing was sent.
        ClientTimeoutError
            No daemon is there to take it.
        """
        topic, payload = wire.pack_ingest(message)
        if self._push is None:
            self._push = self._context.socket(zmq.PUSH)
            # only a daemon that is there gets messages: without this they pile up here, and arrive late as a burst
            self._push.immediate = True
            self._push.sndtimeo = int(1e3 * self.timeout_s)
            _connect(self._push, self.ingest, self._key)
        try:
            self._push.send_multipart([topic, payload])
        except zmq.Again:
            raise ClientTimeoutError(
                f"no daemon took the message at {self.ingest} within {self.timeout_s:g} s; "
                "check that it runs ('neuromod status') and that the address is its ingest" + _or_refused(self._key)
            ) from None

    def request(self, cmd: str, **args: Any) -> Any:
        """Give a command to the daemon and return the result.

        Parameters
        ----------
        cmd : str
            One of the commands of PROTOCOL.md: status, pause, resume, stop, set, checkpoint, restore, ...
        **args
            What the command takes.

        Raises
        ------
        RefusedError
            The daemon says no, and why.
        ClientTimeoutError
            No answer in `timeout_s`.
        """
        if self._key is None or cmd in UNORDERED:
            return self._ask(cmd, args)
        if self._session is not None:
            try:
                return self._ask_in_order(cmd, args)
            except RefusedError as error:
                if error.reason != "session":
                    raise  # else the daemon has forgotten it, or is another one by now
        self._session, self._seq = self._ask("hello", {})["session"], 0
        return self._ask_in_order(cmd, args)

    def _ask_in_order(self, cmd: str, args: dict[str, Any]) -> Any:
        self._seq += 1
        return self._ask(cmd, args, self._session, self._seq)

    def _ask(self, cmd: str, args: dict[str, Any], session: str | None = None, seq: int | None = None) -> Any:
        number = next(self._ids)
        payload = wire.pack_request(wire.Request(cmd, args, number, session, seq))
        if self._dealer is None:
            self._dealer = self._context.socket(zmq.DEALER)
            self._dealer.linger = 0
            _connect(self._dealer, self.control, self._key)
        with contextlib.suppress(zmq.Again):  # full: the daemon takes nothing, and does not answer either
            self._dealer.send(payload, zmq.DONTWAIT)
        deadline = time.monotonic() + self.timeout_s
        while (left_ms := 1e3 * (deadline - time.monotonic())) > 0:
            if not self._dealer.poll(max(1, int(left_ms))):
                continue
            reply = wire.unpack_reply(self._dealer.recv_multipart()[-1])
            if reply.id != number:
                continue  # the late answer to a request that was given up
            if not reply.ok:
                raise RefusedError(reply.reason, reply.error)
            return reply.result
        # a request that was given up must not reach a daemon that is started later
        self._dealer.close(0)
        self._dealer = None
        raise ClientTimeoutError(
            f"no answer to {cmd!r} from {self.control} within {self.timeout_s:g} s; check that the daemon runs "
            "and that this is its control address" + _or_refused(self._key)
        )


def _or_refused(key: object) -> str:
    return "; or it refuses this key: its log says" if key else "; or it asks for a key (--key), and none was given"


def _connect(socket: "zmq.Socket[bytes]", address: str, key: ClientKey | None) -> None:
    try:
        connect(socket, address, key)
    except zmq.ZMQError as error:
        socket.close(0)
        raise wire.MessageError(
            wire.Reason.TYPE,
            f"{address!r} is no address to connect to ({error.strerror}); one looks like {wire.DEFAULT_OUTPUT}",
        ) from None
