"""The operator's console as a dead man's handle, and every way to stop: processes and terminals, a real daemon."""

import fcntl
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import zmq
from harness import (
    FREE_PORTS,
    WAIT_S,
    Process,
    Running,
    driven,
    driven_daemon,
    process,
    pulsing,
    sockets,
    started,
    wait_until,
)
from typer.testing import CliRunner, Result

from neuromod.bridge import operator
from neuromod.bridge.arming import write_key
from neuromod.bridge.cli import app
from neuromod.bridge.config import SessionConfig, parse

pytestmark = pytest.mark.compiled_loop

LONG_MS = 20_000.0  # a heartbeat that cannot lapse within a test: what disarms then was something else
CLI = [sys.executable, "-m", "neuromod.bridge.cli"]
NOWHERE = "tcp://127.0.0.1:1"


def config(folder: Path, heartbeat_ms: float = LONG_MS) -> SessionConfig:
    key = folder / "key"
    if not key.exists():
        write_key(key)
    stimulation = f'mode = "live"\nkey_file = "{key}"\nledger = "{folder / "dose.json"}"\nheartbeat_ms = {heartbeat_ms}'
    return parse(pulsing(stimulation) + FREE_PORTS, folder=folder)


def daemon(folder: Path, heartbeat_ms: float = LONG_MS) -> AbstractContextManager[Running]:
    return driven_daemon(config(folder, heartbeat_ms))


def told(running: Running) -> dict[str, Any]:
    stimulation: dict[str, Any] = running.health["stimulation"]
    return stimulation


def is_armed(running: Running) -> bool:
    return bool(told(running)["state"] == "armed")


def wait_for_disarm(running: Running) -> str:
    """Return what disarmed."""
    wait_until(lambda: not is_armed(running), "the end of the arming")
    by: str = told(running)["disarmed_by"]
    return by


def arm_args(folder: Path, addresses: dict[str, str], *more: str) -> list[str]:
    return ["arm", "--key", str(folder / "key"), "--timeout", str(WAIT_S), *sockets(addresses), *more]


def run(*args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(args), input=stdin, env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})


class Terminal:
    """A console of the operator at a terminal of its own, as in a window."""

    # opening a terminal makes it the one of a process that leads a session and has none
    _TAKE = (
        "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'neuromod.bridge.cli', *sys.argv[2:]])"
    )

    def __init__(self, *args: str) -> None:
        self.keyboard, self._tty = pty.openpty()
        self.mode = termios.tcgetattr(self._tty)
        self.popen = subprocess.Popen(
            [sys.executable, "-c", self._TAKE, os.ttyname(self._tty), *args],
            stdin=self._tty,
            stdout=self._tty,
            stderr=self._tty,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        )
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(WAIT_S)
        for handle in {self.keyboard, self._tty} - {-1}:
            os.close(handle)

    def _read(self) -> None:
        while self.keyboard != -1 and select.select([self.keyboard], [], [], 0.0)[0]:
            self.shown += os.read(self.keyboard, 4096).decode(errors="replace")

    def wait_for(self, what: str) -> None:
        def look() -> bool:
            self._read()
            return what in self.shown

        wait_until(look, f"{what!r} on the terminal; it shows {self.shown!r}", 60.0)

    def press(self, key: str) -> None:
        os.write(self.keyboard, key.encode())

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._tty)
        os.close(self.keyboard)
        self.keyboard = self._tty = -1

    def end(self) -> int:
        """Wait for the end, reading what is shown meanwhile; return the exit code."""

        def look() -> bool:
            self._read()
            return self.popen.poll() is not None

        wait_until(look, "the end of the console")
        if self.keyboard != -1:
            self._read()
        code: int = self.popen.returncode
        return code

    @property
    def is_restored(self) -> bool:
        return termios.tcgetattr(self._tty) == self.mode


@contextmanager
def console(running: Running, folder: Path, *more: str) -> Iterator[Terminal]:
    """Give a console that holds stimulation armed."""
    with Terminal(*arm_args(folder, running.daemon.addresses, *more)) as terminal:
        terminal.wait_for("ARMED")
        yield terminal


# -- letting go


@pytest.mark.parametrize(
    "key", [" ", "x", "\x03", "\x1a", "\x13", "\x1b[A"], ids=["space", "x", "ctrl-c", "ctrl-z", "ctrl-s", "arrow"]
)
def test_any_key_stops_stimulation_at_once(tmp_path: Path, key: str) -> None:
    with daemon(tmp_path) as running, console(running, tmp_path) as terminal:
        wait_until(lambda: told(running)["counts"]["delivered"] > 2, "trains while armed")
        assert not terminal.is_restored  # keys come one by one, unseen

        terminal.press(key)

        assert wait_for_disarm(running) in ("stopped", "disarmed")
        assert terminal.end() == 0
        assert "by the operator: a key" in terminal.shown
        assert terminal.is_restored


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP])
def test_every_signal_that_ends_a_program_stops_stimulation(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path) as running, console(running, tmp_path) as terminal:
        terminal.popen.send_signal(number)

        assert wait_for_disarm(running) in ("stopped", "disarmed")
        assert terminal.end() == 0
        assert terminal.is_restored


def test_a_closed_terminal_stops_stimulation(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, console(running, tmp_path) as terminal:
        terminal.hang_up()

        assert wait_for_disarm(running) in ("stopped", "disarmed")
        terminal.end()


def test_without_a_terminal_the_end_of_input_stops_stimulation(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, program(tmp_path, running) as child:
        child.wait_for_line('"armed"', "out")
        child.tell("what is written to it is no key")
        before = told(running)["counts"]["delivered"]
        wait_until(lambda: told(running)["counts"]["delivered"] > before + 2, "more trains")

        assert child.popen.stdin is not None
        child.popen.stdin.close()

        assert wait_for_disarm(running) in ("stopped", "disarmed")
        assert child.end()[0] == 0
        assert lines(child)[-1]["reason"] == "standard input ended"


# -- the dead man's handle


def test_a_console_that_is_stopped_loses_its_arming_by_the_heartbeat(tmp_path: Path) -> None:
    with daemon(tmp_path, heartbeat_ms=1000.0) as running, console(running, tmp_path) as terminal:
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1.5 or not is_armed(running), "longer than a heartbeat")
        assert is_armed(running)  # by its heartbeats

        terminal.popen.send_signal(signal.SIGSTOP)

        assert wait_for_disarm(running) == "heartbeat"
        terminal.popen.send_signal(signal.SIGCONT)
        assert terminal.end() == 1
        assert "heartbeat was not heard" in terminal.shown
        assert terminal.is_restored


def test_a_console_that_is_killed_loses_its_arming_by_the_heartbeat(tmp_path: Path) -> None:
    with daemon(tmp_path, heartbeat_ms=1000.0) as running, console(running, tmp_path) as terminal:
        terminal.popen.kill()

        assert wait_for_disarm(running) == "heartbeat"


def test_a_view_that_hangs_keeps_the_console_from_beating(tmp_path: Path) -> None:
    with daemon(tmp_path, heartbeat_ms=500.0) as running:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, b"-" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))  # full, and nobody reads
        args = arm_args(tmp_path, running.daemon.addresses, "--json")
        child = subprocess.Popen([*CLI, *args], stdin=subprocess.PIPE, stdout=writer)
        try:
            wait_until(lambda: told(running)["disarmed_by"], "an arming and its end", 60.0)
            assert told(running)["disarmed_by"] == "heartbeat"
            assert child.poll() is None  # it hangs to this moment
        finally:
            child.kill()
            child.communicate()
            os.close(reader)
            os.close(writer)


def test_a_view_that_nobody_takes_any_longer_stops_stimulation(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        reader, writer = os.pipe()
        args = arm_args(tmp_path, running.daemon.addresses, "--json")
        child = subprocess.Popen(
            [*CLI, *args],
            stdin=subprocess.PIPE,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        try:
            wait_until(lambda: is_armed(running), "the arming", 60.0)
            os.close(reader)

            assert wait_for_disarm(running) in ("stopped", "disarmed")
            _, errors = child.communicate(timeout=WAIT_S)
            assert child.returncode == 1
            assert b"the view cannot be written" in errors
            assert b"Traceback" not in errors
        finally:
            child.kill()
            child.wait(WAIT_S)


# -- what else ends it


@contextmanager
def program(folder: Path, running: Running, *more: str) -> Iterator[Process]:
    """Give a console as another program starts it."""
    with process("-m", "neuromod.bridge.cli", *arm_args(folder, running.daemon.addresses, "--json", *more)) as child:
        yield child


def lines(child: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in child.lines["out"]]


def test_the_end_of_its_time_is_no_failure(tmp_path: Path) -> None:
    with daemon(tmp_path, heartbeat_ms=1000.0) as running, program(tmp_path, running, "--seconds", "2") as child:
        child.wait_for_line('"armed"', "out")

        assert child.end()[0] == 0
        first, *between, last = lines(child)
        assert (first["event"], first["state"], first["mode"]) == ("armed", "armed", "live")
        assert {line["event"] for line in between} == {"change"}
        assert between[-1]["counts"]["delivered"] > 0
        assert between[-1]["dose_nc"] > 0.0
        assert last == {
            "event": "ended",
            "by": "time",
            "reason": "expired",
            "text": "the time it was armed for is over",
            "confirmed": True,
        }
        assert told(running)["disarmed_by"] == "expired"


def test_a_stop_by_another_ends_the_console_with_its_reason(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, program(tmp_path, running) as child:
        child.wait_for_line('"armed"', "out")
        running.client.request("pause")

        assert child.end()[0] == 1
        assert (lines(child)[-1]["by"], lines(child)[-1]["reason"]) == ("gate", "paused")
        assert "the session is paused" in child.errors


def test_a_daemon_that_is_killed_ends_the_console(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text(config(tmp_path).effective_toml())
    with started(file) as (child, client):
        addresses = {"ingest": client.ingest, "output": client.output, "control": client.control}
        with driven(addresses), process("-m", "neuromod.bridge.cli", *arm_args(tmp_path, addresses, "--json")) as held:
            held.wait_for_line('"armed"', "out")
            child.popen.kill()

            assert held.end()[0] == 1
            last = lines(held)[-1]
            assert (last["by"], last["reason"], last["confirmed"]) == ("daemon", "lost", False)


# -- who cannot arm


def test_a_wrong_key_arms_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        other = tmp_path / "other"
        write_key(other)
        reader, writer = os.pipe()  # an input that does not end
        child = subprocess.run(
            [*CLI, *arm_args(tmp_path, running.daemon.addresses), "--key", str(other)],
            stdin=reader,
            capture_output=True,
            text=True,
            timeout=60,
        )
        os.close(reader)
        os.close(writer)

        assert child.returncode == 2
        assert "the key is not that of this session" in child.stderr
        assert not is_armed(running)
        assert told(running)["disarmed_by"] == ""


def test_a_second_console_is_refused_while_one_holds(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, program(tmp_path, running) as first:
        first.wait_for_line('"armed"', "out")
        with program(tmp_path, running) as second:
            assert second.end(timeout_s=60.0)[0] == 2
            assert "armed already" in second.errors
        assert is_armed(running)


def test_an_input_that_has_ended_already_arms_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        child = subprocess.run(
            [*CLI, *arm_args(tmp_path, running.daemon.addresses)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert child.returncode == 2
        assert "nothing was armed: standard input ended" in child.stderr
        assert told(running)["disarmed_by"] == ""


def test_without_a_daemon_or_a_key_nothing_can_be_armed(tmp_path: Path) -> None:
    addresses = dict.fromkeys(("ingest", "output", "control"), NOWHERE)
    write_key(tmp_path / "key")
    reader, writer = os.pipe()
    child = subprocess.run(
        [*CLI, *arm_args(tmp_path, addresses), "--timeout", "0.1"],
        stdin=reader,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(reader)
    os.close(writer)
    assert child.returncode == 2
    assert "check that the daemon runs" in child.stderr
    (tmp_path / "key").chmod(0o644)
    readable = run(*arm_args(tmp_path, addresses))
    assert readable.exit_code == 2
    assert "others may read" in readable.stderr


# -- stopping from elsewhere


def arm_for_long(running: Running, folder: Path) -> None:
    running.client.arm(60.0, (folder / "key").read_bytes().strip())
    assert is_armed(running)


def test_halt_stops_at_once_and_says_that_the_gate_is_disarmed(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        arm_for_long(running, tmp_path)

        result = run("halt", *sockets(running.daemon.addresses), "--timeout", str(WAIT_S), "--json")

        assert result.exit_code == 0
        assert json.loads(result.stdout)["disarmed"] is True
        assert not is_armed(running)


@contextmanager
def stuck(kind: int) -> Iterator[str]:
    """Give the address of a socket that takes what comes, and never answers."""
    context = zmq.Context()
    socket = context.socket(kind)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        socket.close(0)
        context.term()


def test_halt_works_where_control_is_stuck(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, stuck(zmq.ROUTER) as control:
        arm_for_long(running, tmp_path)

        addresses: dict[str, Any] = running.daemon.addresses | {"control": control}
        halted = operator.halt(**addresses, timeout_s=WAIT_S)

        assert halted.confirmed_by in ("stimulation", "health")
        assert wait_for_disarm(running) == "stopped"


def test_halt_works_where_ingest_is_stuck(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, stuck(zmq.PULL) as ingest:
        arm_for_long(running, tmp_path)

        addresses: dict[str, Any] = running.daemon.addresses | {"ingest": ingest}
        halted = operator.halt(**addresses, timeout_s=WAIT_S)

        assert halted.confirmed_by
        assert wait_for_disarm(running) == "disarmed"


def test_halt_says_where_it_reached_nobody_or_got_no_answer(tmp_path: Path) -> None:
    nobody = run("halt", *sockets(dict.fromkeys(("ingest", "output", "control"), NOWHERE)), "--timeout", "0.1")
    assert nobody.exit_code == 2
    assert "switch the stimulator off" in nobody.stderr
    with stuck(zmq.PULL) as ingest, stuck(zmq.ROUTER) as control:
        addresses = {"ingest": ingest, "output": NOWHERE, "control": control}
        silent = run("halt", *sockets(addresses), "--timeout", "0.5")
    assert silent.exit_code == 1
    assert "no answer says" in silent.stderr


def test_disarm_ends_an_arming_and_send_stimulate_asks_for_a_train(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        addresses = running.daemon.addresses
        arm_for_long(running, tmp_path)
        assert run("send", "stimulate", "pulse", "--address", addresses["ingest"]).exit_code == 0
        assert run("disarm", "--address", addresses["control"], "--timeout", str(WAIT_S)).exit_code == 0
        assert wait_for_disarm(running) == "disarmed"


def test_key_writes_a_key_for_its_owner_alone_and_never_over_another(tmp_path: Path) -> None:
    file = tmp_path / "stimulation.key"

    first, second = run("key", str(file)), run("key", str(file))

    assert first.exit_code == 0
    assert "neuromod arm --key" in first.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().strip()) == 64
    assert second.exit_code == 2
    assert "keys are not overwritten" in second.stderr
