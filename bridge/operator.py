"""The operator's side of stimulation: a console that keeps the gate armed while a hand is on it, and the ways to stop.

The console is a dead man's handle. One thread reads the keys, draws the view and beats, in this order, so that whatever
keeps the view from being drawn or the keys from being read (a stopped process, a hung terminal, a pipe that nobody
reads) keeps it from beating too, and the gate disarms by itself. Nothing here beats from a thread of its own.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import zmq

from neuromod.adapters.actuators.base import Stimulation
from neuromod.bridge import gate as safety
from neuromod.bridge import wire
from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError
from neuromod.bridge.keys import load_client
from neuromod.engine.errors import NeuromodError

LOST_S = 2.0
"""A gate whose lease was not heard for so long is taken for lost, and the console ends."""

_LONGEST_BEAT_S = 0.25
_STATUS_S = 0.25
_VIEW_S = 0.1
_CONFIRM_S = 2.0
_LINGER_MS = 200
_ROUNDING_S = 1e-6
_END_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP") if hasattr(signal, name)
]
_READ_BYTES = 4096

Who = Literal["operator", "time", "gate", "daemon", "view"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How an arming ended.

    Attributes
    ----------
    by : {"operator", "time", "gate", "daemon", "view"}
        The operator let go; the time was up; the gate disarmed for another reason; the daemon was not heard; what is
        shown could not be written.
    reason : str
        The gate's word for it where the gate ended it, else what the operator or the daemon did.
    text : str
        The same in a sentence.
    is_confirmed : bool
        Whether the daemon said that the gate is disarmed.
    """

    by: Who
    reason: str
    text: str
    is_confirmed: bool = True

    @property
    def exit_code(self) -> int:
        """0 where the operator or the time ended it and the daemon said so, else 1."""
        return 0 if self.by in ("operator", "time") and self.is_confirmed else 1


class Line:
    """Sockets to a daemon, none of which ever makes this program wait.

    Parameters
    ----------
    ingest, output, control : str
        Addresses of the daemon.
    *topics : str
        What to hear of its output.
    client_key : Path, optional
        For a daemon that asks for keys.
    """

    def __init__(self, *topics: str, ingest: str, output: str, control: str, client_key: Path | None = None) -> None:
        key = load_client(client_key) if client_key is not None else None
        self._context = zmq.Context()
        self._push, self._sub, self._dealer = (self._context.socket(kind) for kind in (zmq.PUSH, zmq.SUB, zmq.DEALER))
        self._push.immediate = True  # what nobody is there to take is not kept for a daemon that is started later
        self._push.linger, self._sub.linger, self._dealer.linger = _LINGER_MS, 0, 0
        for topic in topics:
            self._sub.subscribe(topic.encode())
        self._requests = 0
        try:
            for socket, address in ((self._push, ingest), (self._sub, output), (self._dealer, control)):
                if key is not None:
                    key.apply(socket)
                try:
                    socket.connect(address)
                except zmq.ZMQError as error:
                    raise NeuromodError(
                        f"{address!r} is no address to connect to ({error.strerror}); "
                        f"one looks like {wire.DEFAULT_CONTROL}"
                    ) from None
        except NeuromodError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; a message that was taken gets 0.2 s to leave."""
        for socket in (self._push, self._sub, self._dealer):
            socket.close()
        self._context.term()

    def send(self, message: wire.IngestMessage) -> bool:
        """Send a message to ingest; False, and nothing is sent, where nobody can take it now."""
        try:
            self._push.send_multipart(list(wire.pack_ingest(message)), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def request(self, cmd: str) -> int:
        """Send a request, whose reply comes with `receive`; return its number."""
        self._requests += 1
        with contextlib.suppress(zmq.Again):  # a daemon that has answered nothing for a thousand requests is stuck
            self._dealer.send(wire.pack_request(wire.Request(cmd, {}, self._requests)), zmq.DONTWAIT)
        return self._requests

    def wait(self, timeout_s: float, *handles: int) -> None:
        """Wait until something came, a file can be read, or the time is over."""
        poller = zmq.Poller()
        for socket in (self._sub, self._dealer):
            poller.register(socket, zmq.POLLIN)
        for handle in handles:
            poller.register(handle, zmq.POLLIN)
        poller.poll(max(0, round(1e3 * timeout_s)))

    def receive(self) -> Iterator[wire.OutputMessage | wire.Reply]:
        """Yield everything that came, published messages first."""
        for socket, unpack in ((self._sub, _unpack_output), (self._dealer, _unpack_reply)):
            while True:
                try:
                    parts = socket.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                with contextlib.suppress(wire.MessageError):  # what is not understood says nothing
                    yield unpack(parts)


def _unpack_output(parts: list[bytes]) -> wire.OutputMessage:
    return wire.unpack_output(*wire.split_parts(parts))


def _unpack_reply(parts: list[bytes]) -> wire.Reply:
    return wire.unpack_reply(parts[-1])


# -- stopping ---------------------------------------------------------------------------------------------------------


class Stop:
    """Ends an arming by both ways at once: the message `stop` to ingest, and the command `disarm`.

    Parameters
    ----------
    line : Line
        Hearing `stimulation` and `health`.
    since : float
        Messages on `stimulation` from before this moment, on the daemon's clock, are of an earlier arming.
    """

    def __init__(self, line: Line, since: float = float("-inf")) -> None:
        self._line, self._since = line, since
        self._number = line.request("disarm")
        self.is_sent = line.send(wire.StopInput())
        self.is_answered = False
        self.refusal: RefusedError | None = None
        self.forbidden = ""  # why this client may not give the command; the message may be obeyed all the same
        self.confirmed_by = ""

    def wait(self, timeout_s: float = _CONFIRM_S) -> bool:
        """Wait until the daemon says by any way that the gate is disarmed; False where it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not self.confirmed_by and self.refusal is None and (left_s := deadline - time.monotonic()) > 0:
            if not self.is_sent:  # not connected yet: try again soon
                self.is_sent = self._line.send(wire.StopInput())
            self._line.wait(left_s if self.is_sent else min(left_s, 0.005))
            for message in self._line.receive():
                self._take(message)
        return bool(self.confirmed_by)

    def _take(self, message: wire.OutputMessage | wire.Reply) -> None:
        match message:
            case wire.Reply() if message.id == self._number and message.reason == "role":
                self.forbidden = message.error
            case wire.Reply() if message.id == self._number:
                self.is_answered = True
                if message.ok:
                    self.confirmed_by = "control"
                elif message.reason != "internal":
                    self.refusal = RefusedError(message.reason, message.error)
            case Stimulation() if message.kind == "stop" and message.t >= self._since:
                self.confirmed_by = "stimulation"
            # one that was on its way when the stop was sent can only say "armed", never "disarmed" too early
            case wire.HealthMessage() if message.body.get("stimulation", {}).get("state") == "disarmed":
                self.confirmed_by = "health"


@dataclass(frozen=True, slots=True)
class Halted:
    """What became of a halt: what the daemon confirmed it by ("" for nothing), whether anybody took it, and why not."""

    confirmed_by: str
    is_taken: bool
    forbidden: str = ""


def halt(
    *, ingest: str, output: str, control: str, timeout_s: float = _CONFIRM_S, client_key: Path | None = None
) -> Halted:
    """Stop stimulation by every way there is at once; one that is stuck does not hold up the other.

    Raises
    ------
    RefusedError
        There is no stimulation to stop.
    """
    with Line("stimulation", "health", ingest=ingest, output=output, control=control, client_key=client_key) as line:
        stop = Stop(line)
        stop.wait(timeout_s)
        if stop.refusal is not None:
            raise stop.refusal
        return Halted(stop.confirmed_by, stop.is_sent or stop.is_answered, stop.forbidden)


# -- the hand on the handle -------------------------------------------------------------------------------------------


class Hand:
    """Keys, the end of input, and the signals that end a program: all that says that the operator lets go.

    On a terminal every key does, Ctrl-C, Ctrl-Z and Ctrl-S too: the terminal takes none of them for itself. It is put
    back on every way out but SIGKILL. Without a terminal what comes in is thrown away, and its end lets go.

    Raises
    ------
    NeuromodError
        There is no input, or this program is not in the foreground of its terminal: no key could reach it.
    """

    def __enter__(self) -> Self:
        self.is_held, self.let_go_by = True, ""
        try:
            self._input = sys.stdin.fileno()
            self.is_terminal = os.isatty(self._input)
        except (AttributeError, ValueError, OSError):
            raise NeuromodError(
                "there is no standard input, by whose end stimulation could be stopped; give one, as in: sleep 60 |"
            ) from None
        if self.is_terminal and not _is_in_foreground(self._input):
            raise NeuromodError("this runs in the background, where no key reaches it; run it in the foreground")
        self._wake, self._wakes = os.pipe()
        for end in (self._wake, self._wakes):
            os.set_blocking(end, False)
        self._old_wakes = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in _END_SIGNALS}
        self._old_terminal: list[Any] | None = None
        if self.is_terminal:
            self._take_terminal()
        return self

    def __exit__(self, *_: object) -> None:
        if self._old_terminal is not None:
            import termios

            with contextlib.suppress(termios.error):  # the terminal is gone
                # what else was typed, as the rest of an arrow key, is not for the shell
                termios.tcsetattr(self._input, termios.TCSAFLUSH, self._old_terminal)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakes)
        os.close(self._wake)
        os.close(self._wakes)

    @property
    def handles(self) -> tuple[int, ...]:
        """File descriptors to wait for."""
        return (self._wake, self._input) if self.is_held else (self._wake,)

    def look(self) -> bool:
        """Say whether the operator still holds on."""
        if not self.is_held:
            return False
        import select

        ready, _, _ = select.select([self._input], [], [], 0.0)
        if ready:
            try:
                got = os.read(self._input, _READ_BYTES)
            except OSError:  # EIO: the terminal was closed
                got = b""
            if not got:
                self._let_go("the terminal was closed" if self.is_terminal else "standard input ended")
            elif self.is_terminal:
                self._let_go("a key")
        return self.is_held

    def _take_terminal(self) -> None:
        import termios

        self._old_terminal = termios.tcgetattr(self._input)
        mode = termios.tcgetattr(self._input)
        mode[0] &= ~(termios.IXON | termios.IXOFF)  # Ctrl-S would hang the view
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        # a key that was typed before is not meant for this
        termios.tcsetattr(self._input, termios.TCSAFLUSH, mode)

    def _on_signal(self, number: int, frame: object) -> None:
        self._let_go(signal.Signals(number).name)

    def _let_go(self, by: str) -> None:
        if self.is_held:
            self.is_held, self.let_go_by = False, by


def _is_in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # a terminal without job control
        return True


# -- the view ---------------------------------------------------------------------------------------------------------


class View(Protocol):
    """Shows what the console knows; may raise OSError where it cannot."""

    def show(self, state: dict[str, Any]) -> None:
        """Show the state; called at every turn."""

    def end(self, ending: Ending) -> None:
        """Show how it ended."""


class JsonView:
    """One line of JSON for each change, on standard output."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None

    def show(self, state: dict[str, Any]) -> None:
        """Print the state where something but the time left has changed."""
        known = {key: value for key, value in state.items() if key != "seconds_left"}
        if known != self._last:
            _print_line({"event": "armed" if self._last is None else "change", **state})
            self._last = known

    def end(self, ending: Ending) -> None:
        """Print the ending."""
        _print_line(
            {
                "event": "ended",
                "by": ending.by,
                "reason": ending.reason,
                "text": ending.text,
                "confirmed": ending.is_confirmed,
            }
        )


def _print_line(body: dict[str, Any]) -> None:
    print(json.dumps(body, allow_nan=False), flush=True)


class LiveView:
    """A panel that is drawn anew ten times a second; without a terminal, a line for each change."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        # drawn by hand: a thread that draws would go on while this one hangs
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._due = 0.0
        self._last: tuple[Any, ...] = ()

    def show(self, state: dict[str, Any]) -> None:
        """Draw the state, where it is time to."""
        if self._live is None:
            line = (state["mode"], _counts(state["counts"]))
            if line != self._last:
                print(f"armed, {state['seconds_left']:.0f} s left, mode {line[0]}, {line[1]}", flush=True)
            self._last = line
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + _VIEW_S
            if not self._live.is_started:
                self._live.start()
            self._live.update(_panel(state), refresh=True)

    def end(self, ending: Ending) -> None:
        """Leave the last view, and the ending below it."""
        if self._live is not None and self._live.is_started:
            self._live.stop()
        self._console.print(f"stimulation ended: {ending.text}", markup=False, highlight=False, soft_wrap=True)


def _panel(state: dict[str, Any]) -> Any:
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("state", "[bold red]ARMED[/bold red]")
    table.add_row("left", f"{state['seconds_left']:.1f} s")
    table.add_row("mode", str(state["mode"]))
    for name, value in state["counts"].items():
        table.add_row(name.replace("_", " "), str(value))
    if "dose_nc" in state:
        table.add_row("dose", f"{state['dose_nc']:.3f} nC")
    table.add_row("last ended by", state["last_ended_by"] or "nothing yet")
    beats = f"every {state['heartbeat_ms']:g} ms" if state["heartbeat_ms"] else "[yellow]none is asked for[/yellow]"
    table.add_row("heartbeat", beats)
    return Panel(table, title="stimulation", subtitle="[bold]any key stops[/bold]", expand=False)


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items())


# -- the console ------------------------------------------------------------------------------------------------------


_SHOWN = ("mode", "counts", "dose_nc")


class Console:
    """Keeps an arming alive while the operator holds on, and ends it at once when he lets go.

    Parameters
    ----------
    line : Line
        Hearing `stimulation`.
    hand : Hand
        The operator's.
    view : View
        What is shown.
    armed : dict
        Result of the command `arm`.
    before : dict
        `stimulation` of the health before it.
    seconds : float
        For how long it was armed.
    """

    def __init__(
        self, line: Line, hand: Hand, view: View, armed: dict[str, Any], before: dict[str, Any], seconds: float
    ) -> None:
        self._line, self._hand, self._view = line, hand, view
        self._token = int(armed["token"])
        self._since = float(armed["until"]) - seconds - _ROUNDING_S
        self._heartbeat_ms = float(armed["heartbeat_ms"])
        # without a heartbeat to keep there is still the view
        self._beat_s = min(_LONGEST_BEAT_S, 0.25e-3 * self._heartbeat_ms or _LONGEST_BEAT_S)
        now = time.monotonic()
        self._heard_at, self._until = now, now + seconds
        self._next_beat = self._next_status = now
        self._told = before
        self._last_ended_by = str(before.get("disarmed_by", ""))
        self._ending: Ending | None = None

    def run(self) -> Ending:
        """Turn until the arming has ended, and return how."""
        try:
            while self._ending is None:
                self._turn()
        except (OSError, SystemExit):  # of the view: sockets and keys take care of theirs; rich exits on a broken pipe
            self._ending = self._stopped("view", "view", "the view cannot be written")
        except BaseException:  # whatever goes wrong here, nothing stays armed
            Stop(self._line, self._since).wait()
            raise
        return self._ending

    def _turn(self) -> None:
        if not self._hand.look():
            self._ending = self._stopped("operator", self._hand.let_go_by, f"by the operator: {self._hand.let_go_by}")
            return
        for message in self._line.receive():
            self._take(message)
            if self._ending is not None:
                return
        now = time.monotonic()
        if now - self._heard_at > LOST_S:
            text = f"the gate was not heard for {LOST_S:g} s: is the daemon gone?"
            self._ending = self._stopped("daemon", "lost", text)
            return
        if now >= self._next_status:
            self._next_status = now + _STATUS_S
            self._line.request("status")
        self._view.show(self._state(now))
        # last: a turn that could not read, hear and show does not beat
        if self._heartbeat_ms and time.monotonic() >= self._next_beat:
            self._line.send(wire.HeartbeatInput(self._token))
            self._next_beat = time.monotonic() + self._beat_s
        left_s = min(self._next_beat if self._heartbeat_ms else now + _VIEW_S, self._next_status, now + _VIEW_S)
        self._line.wait(left_s - time.monotonic(), *self._hand.handles)

    def _take(self, message: wire.OutputMessage | wire.Reply) -> None:
        match message:
            case Stimulation() if message.t >= self._since:  # others are of an arming before
                self._heard_at = time.monotonic()
                if message.kind == "stop":
                    self._ending = _ended_by_gate(safety.REASONS[message.reason])
            case wire.Reply() if message.ok:  # nothing but its status was asked
                self._told = message.result["health"]["stimulation"]
                if self._told["state"] != "armed":
                    self._ending = _ended_by_gate(str(self._told.get("disarmed_by", "")))

    def _state(self, now: float) -> dict[str, Any]:
        told: dict[str, Any] = {key: value for key, value in self._told.items() if key in _SHOWN}
        return {
            "state": "armed",
            "seconds_left": round(max(0.0, self._until - now), 1),
            **told,
            "last_ended_by": self._last_ended_by,
            "heartbeat_ms": self._heartbeat_ms,
        }

    def _stopped(self, by: Who, reason: str, text: str) -> Ending:
        if Stop(self._line, self._since).wait():
            return Ending(by, reason, text)
        text += "; but the daemon has not said that the gate is disarmed"
        if self._heartbeat_ms:
            text += f": without a heartbeat it is within {self._heartbeat_ms:g} ms"
        return Ending(by, reason, text, is_confirmed=False)


def _ended_by_gate(reason: str) -> Ending:
    if reason == safety.REASONS[safety.EXPIRED]:
        return Ending("time", reason, "the time it was armed for is over")
    text = safety.REASON_TEXTS[safety.REASONS.index(reason)] if reason in safety.REASONS else "nobody says why"
    return Ending("gate", reason, f"disarmed by the gate ({reason}): {text}")


def arm(
    seconds: float,
    key: bytes | None,
    *,
    ingest: str,
    output: str,
    control: str,
    as_json: bool = False,
    timeout_s: float = 2.0,
    client_key: Path | None = None,
) -> Ending:
    """Arm stimulation and keep it armed until the operator lets go, its time is over, or the gate disarms.

    Parameters
    ----------
    seconds : float
        For how long at most.
    key : bytes, optional
        The session's.
    ingest, output, control : str
        Addresses of the daemon.
    as_json : bool
        Print one line of JSON for each change, instead of a view for people.
    timeout_s : float
        How long to wait for the daemon when arming.
    client_key : Path, optional
        For a daemon that asks for keys; it needs the roles observe and stimulate.

    Raises
    ------
    NeuromodError
        It could not be armed, and why.
    """
    addresses = {"ingest": ingest, "output": output, "control": control}
    # the hand comes first: a key or a signal while the daemon is asked counts too
    with (
        Hand() as hand,
        Line("stimulation", **addresses, client_key=client_key) as line,
        Client(**addresses, timeout_s=timeout_s, key=client_key) as client,
    ):
        health = client.request("status")["health"]
        if client_key is not None:
            _check_hears(load_client(client_key).name, health["security"]["clients"])
        before = health["stimulation"]
        if before["state"] == "armed":
            raise NeuromodError(
                "stimulation is armed already, by another console or program; end that: neuromod disarm"
            )
        if not hand.look():
            raise NeuromodError(f"nothing was armed: {hand.let_go_by}")
        try:
            armed = client.arm(seconds, key)
        except ClientTimeoutError:
            Stop(line).wait()  # it may have been carried out all the same
            raise
        view: View = JsonView() if as_json else LiveView()
        ending = Console(line, hand, view, armed, before, seconds).run()
        try:
            view.end(ending)
        except (OSError, SystemExit):
            _forget_stdout()
        return ending


def _check_hears(name: str, clients: dict[str, list[str]]) -> None:
    """Refuse a key that may arm and not hear: the console would hold a gate of which it knows nothing."""
    if "observe" not in (roles := clients.get(name, ["observe"])):
        raise NeuromodError(
            f"nothing was armed: the key of {name} is for {', '.join(roles)}, and the console needs observe too, to "
            "hear that the gate holds; make one with 'neuromod keys new NAME --roles observe,stimulate'"
        )


def _forget_stdout() -> None:
    """Have nothing more written to an output that is gone, or Python stumbles over it at its exit."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
