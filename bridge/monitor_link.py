"""What a monitor has to do with a daemon: hears it, stops its stimulation, leaves notes in its record."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from neuromod.bridge import wire
from neuromod.bridge.keys import connect, load_client
from neuromod.bridge.monitor_model import TOPICS, Model
from neuromod.bridge.operator import Line, Stop
from neuromod.engine.errors import NeuromodError

_BUFFER = 100_000  # messages: a minute of ticks for a terminal that hangs
_MOST_AT_ONCE = 20_000
_TURN_S = 0.2
_CONFIRM_S = 2.0
_PATIENCE_S = 1.0


class Ear:
    """A subscription that hands over everything that has come, and never waits; connects, and again, by itself."""

    def __init__(self, output: str, client_key: Path | None = None) -> None:
        key = load_client(client_key) if client_key is not None else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm, self._socket.linger = _BUFFER, 0
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 100, 1000
        for topic in TOPICS:
            self._socket.subscribe(topic.encode())
        try:
            connect(self._socket, output, key)
        except zmq.ZMQError as error:
            self.close()
            raise NeuromodError(
                f"{output!r} is no address to connect to ({error.strerror}); one looks like {wire.DEFAULT_OUTPUT}"
            ) from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def listen(self, model: Model, now: float) -> int:
        """Give the model what has come; return how many messages."""
        found: dict[bytes, list[bytes]] = {}
        receive, n = self._socket.recv_multipart, 0
        with contextlib.suppress(zmq.Again):
            while n < _MOST_AT_ONCE:
                parts = receive(zmq.DONTWAIT)
                n += 1
                if len(parts) == 2:
                    found.setdefault(parts[0], []).append(parts[1])
        for topic, payloads in found.items():
            model.take(topic, payloads, now)
        return n


@dataclass(frozen=True, slots=True)
class Word:
    """What became of a stop, for people."""

    text: str
    is_good: bool


class Hand(threading.Thread):
    """Stops stimulation, and sends notes, in a thread of its own, which no drawing holds up.

    Parameters
    ----------
    addresses : mapping of str to str
        ingest, output and control of the daemon, and the `client_key` where it asks for one.
    """

    def __init__(self, addresses: Mapping[str, Any]) -> None:
        super().__init__(name="neuromod-monitor-hand", daemon=True)
        self._addresses = dict(addresses)
        self._line = self._connected()  # here, where whoever asks for it learns what is wrong with an address or a key
        self._wake, self._is_stop_wanted, self._is_closed = threading.Event(), threading.Event(), threading.Event()
        self._notes: deque[tuple[str, float, float]] = deque()
        self.words: deque[Word] = deque(maxlen=10)
        self.unsent: deque[float] = deque(maxlen=50)  # when those notes were taken

    def stop(self) -> None:
        """Stop stimulation now, by every way there is; may be called from any thread."""
        self._is_stop_wanted.set()
        self._wake.set()

    def note(self, text: str, t: float) -> None:
        """Send a note; `t` is on the daemon's clock."""
        self._notes.append((text, t, time.monotonic() + _PATIENCE_S))
        self._wake.set()

    def close(self) -> None:
        """End the thread; a stop that was asked for, and notes, are sent first."""
        self._is_closed.set()
        self._wake.set()
        self.join(2.0 * _CONFIRM_S)

    def run(self) -> None:
        """Send what is asked for until closed."""
        try:
            while not self._is_closed.is_set() or self._is_stop_wanted.is_set() or self._notes:
                self._wake.wait(0.01 if self._notes else _TURN_S)
                self._wake.clear()
                for _ in self._line.receive():  # what came before a stop says nothing of it
                    pass
                if self._is_stop_wanted.is_set():
                    self._is_stop_wanted.clear()
                    word = _stop(self._line)
                    self.words.append(word)
                    if not word.is_good:
                        # a request that was given up must not reach a daemon that is started later
                        self._line.close()
                        self._line = self._connected()
                while self._notes and self._send(*self._notes[0]):
                    self._notes.popleft()
        finally:
            self._line.close()

    def _connected(self) -> Line:
        return Line("stimulation", "health", **self._addresses)

    def _send(self, text: str, t: float, until: float) -> bool:
        """Send a note; False where it is to be tried again soon."""
        if self._line.send(wire.EventInput("note", t, text)):
            return True
        if time.monotonic() < until:
            return False
        self.unsent.append(t)
        return True


def _stop(line: Line) -> Word:
    stop = Stop(line)
    if stop.wait(_CONFIRM_S):
        return Word(f"STIMULATION IS STOPPED: disarmed, says the daemon ({stop.confirmed_by})", True)
    if stop.refusal is not None:
        return Word(f"nothing to stop: {stop.refusal}", True)
    if stop.forbidden and not stop.is_sent:
        return Word(f"THIS KEY MAY NOT STOP: SWITCH THE STIMULATOR OFF; {stop.forbidden}", False)
    if stop.is_sent or stop.is_answered:
        return Word("THE STOP WAS SENT, BUT IS NOT CONFIRMED: SWITCH THE STIMULATOR OFF", False)
    return Word("NO DAEMON TOOK THE STOP: SWITCH THE STIMULATOR OFF", False)
