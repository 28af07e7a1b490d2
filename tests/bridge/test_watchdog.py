"""Watchdogs: each change is said once, nothing flaps, and a loop that is stuck ends its process and no other does."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MEMORY, GatedSource, Running, process, session, wait_until

from neuromod.bridge.notify import Notifier
from neuromod.bridge.session_log import LogReader
from neuromod.bridge.supervision import Supervision
from neuromod.bridge.watchdog import STUCK_EXIT_CODE, Check, Clocks, Lasting, Peers, Standing, Watchdogs, disk_check
from neuromod.bridge.wire import EventMessage

INF = float("inf")


class Told:
    """Watchdogs over one check that the test answers for, and what they announced."""

    def __init__(self, hold_s: float = 2.0, check: Check | None = None) -> None:
        self.fault = ""
        self.said: list[tuple[str, bool, str]] = []
        self.dogs = Watchdogs(
            {"x": check or (lambda now: self.fault)},
            announce=lambda *what: self.said.append(what),
            local_clock=lambda: 100.0,
            hold_s=hold_s,
        )


# -- when something is said


def test_a_fault_and_its_end_are_each_said_once() -> None:
    told = Told(hold_s=2.0)
    for now, fault in [(0, ""), (1, "bad"), (2, "worse"), (3, ""), (4, ""), (5, ""), (6, "")]:
        told.fault = fault
        told.dogs.look(now)
    assert [(name, is_ok) for name, is_ok, _ in told.said] == [("x", False), ("x", True)]
    assert told.said[0][2] == "bad"
    assert "worse" in told.said[1][2]
    assert told.dogs.describe()["x"] == {"ok": True, "since": 100.0, "says": ""}


def test_what_comes_and_goes_is_one_fault_that_is_not_over() -> None:
    told = Told(hold_s=2.0)
    for now in range(40):
        told.fault = "" if now % 2 else "bad"
        told.dogs.look(float(now))
    assert len(told.said) == 1
    assert told.dogs.describe()["x"]["ok"] is False


def test_a_condition_is_wrong_once_it_has_lasted() -> None:
    is_so = True
    check = Lasting(5.0, lambda: is_so, lambda lasted_s: f"{lasted_s:g} s")
    assert [check(now) for now in (0, 5, 6)] == ["", "", "6 s"]
    is_so = False
    assert check(7) == ""
    is_so = True
    assert [check(now) for now in (8, 13)] == ["", ""]


def test_a_loop_that_stands_is_told_from_one_that_goes_round() -> None:
    turns = 0
    check = Standing(1.0, lambda: turns, lambda lasted_s: f"{lasted_s:g} s")
    for now in (0.0, 2.0):
        turns += 1
        assert check(now) == ""
    assert [check(now) for now in (3.0, 4.0, 4.5)] == ["", "", "1.5 s"]
    turns += 1
    assert check(5.0) == ""


def test_a_host_that_gave_no_time_is_not_taken_for_a_loop_that_is_stuck() -> None:
    told = Told(check=Standing(1.0, lambda: 7, lambda lasted_s: "stuck"))
    stop, times = threading.Event(), iter([0.0, 0.1, 3600.0, 3600.1, 7200.0])

    def clock() -> float:
        found = next(times, None)
        if found is None:
            stop.set()
            return 7200.1
        return found

    told.dogs.run(stop, clock)
    assert told.said == []


def test_a_silent_peer_is_named() -> None:
    heard = {"arm": 0, "stimulator": 0}
    check = Peers(5.0, heard)
    for now in range(7):
        heard["arm"] += 1
        said = check(float(now))
    assert said == "not heard: stimulator (for 6.0 s)"
    heard["stimulator"] += 1
    assert check(8.0) == ""


# -- clocks


class Turned:
    """Clocks that the test turns by hand."""

    def __init__(self) -> None:
        self.wall, self.slept, self.source = 1000.0, 0.0, (0.0, 0.001)
        self.check = Clocks(
            step_ms=50.0,
            jump_ms=10.0,
            uncertainty_ms=20.0,
            source=lambda: self.source,
            wall=lambda: self.wall,
            monotonic=lambda: 10.0,
            asleep=lambda: self.slept,
        )


def test_a_step_of_the_clock_on_the_wall_is_told_with_its_sign() -> None:
    clocks = Turned()
    clocks.wall += 0.02  # slewing, as time services do
    assert clocks.check(0) == ""
    clocks.wall -= 3.0
    assert clocks.check(1) == "the clock on the wall was set by -3000 ms"
    assert clocks.check(2) == ""


def test_a_host_that_slept_is_told_and_its_step_of_the_clock_is_not_told_too() -> None:
    clocks = Turned()
    clocks.slept += 12.5
    clocks.wall += 12.5
    assert clocks.check(0) == "the host was suspended for 12.5 s"
    assert clocks.check(1) == ""


def test_a_jump_of_the_source_and_a_clock_that_is_badly_known_are_told() -> None:
    clocks = Turned()
    clocks.source = (0.5, 0.001)
    assert clocks.check(0) == "the source's clock jumped by +500.0 ms"
    clocks.source = (0.5, 0.03)
    assert clocks.check(1) == "the source's clock is known to 30.0 ms only"
    clocks.source = (float("nan"), float("nan"))  # no answer: what was known holds
    assert clocks.check(2) == ""


# -- the disk


@pytest.mark.parametrize(
    ("status", "fault", "says"),
    [
        ({"state": "off"}, "", ""),
        ({}, "", ""),
        ({"free_bytes": 1.2e9}, "", "room for 200 MB more of the recording, which lasts 20.0 min at this rate"),
        ({"free_s": 120.0}, "", "which lasts 2.0 min"),
        ({"busy_s": 3.5}, "", "a write of the recording takes 3.5 s so far"),
        ({"state": "ended", "why": "the disk is full"}, "", "the recording has ended: the disk is full"),
        ({}, "checkpoint c could not be written: No space left on device", "No space left on device"),
    ],
)
def test_what_is_wrong_with_the_disk_is_told(status: dict[str, Any], fault: str, says: str) -> None:
    whole = {"state": "recording", "free_bytes": 1e12, "free_s": 1200.0, "busy_s": 0.0} | status
    check = disk_check(
        lambda: whole,
        min_free_bytes=1e9,
        warn_free_bytes=5e8,
        warn_free_s=600.0,
        write_s=2.0,
        checkpoint_fault=lambda: fault,
    )
    assert says in check(0)
    assert bool(check(0)) == bool(says)


# -- a daemon


@pytest.mark.compiled_loop
def test_a_silent_source_and_a_silent_peer_are_announced_and_so_is_their_return() -> None:
    source = GatedSource(np.zeros((100_000, 16), np.float32), 1000.0, kind="features")
    limits = '[watchdog]\nsource_s = 0.3\npeers = ["arm"]\npeer_s = 0.3\nhold_s = 0.2\n'
    with Running(session(MEMORY + limits), source=source, speed=1.0) as running:
        listener = running.listen("event", "health")

        def told(name: str, word: str) -> Callable[[], bool]:
            return lambda: any(m.name == f"watchdog.{name}" and word in m.value for m in listener.of(EventMessage))

        listener.until(told("source", "nothing from the source"), "the silence announced")
        listener.until(told("peers", "not heard: arm"), "the peer announced")
        health = listener.health(lambda m: not m.body["watchdogs"]["source"]["ok"])
        assert "it is waiting" in health.body["watchdogs"]["source"]["says"]

        source.let_go()
        listener.until(told("source", "well again"), "the source's return")
        done = threading.Event()

        def live() -> None:
            while not done.wait(0.05):
                running.client.send_alive("arm")

        thread = threading.Thread(target=live)
        thread.start()
        try:
            listener.until(told("peers", "well again"), "the peer's return")
        finally:
            done.set()
            thread.join()
        assert listener.health(lambda m: m.body["watchdogs"]["source"]["ok"])


@contextmanager
def listening(manager: socket.socket) -> Iterator[list[str]]:
    """Give the lines that a service manager hears, as they come."""
    heard: list[str] = []
    done = threading.Event()
    manager.settimeout(0.05)

    def listen() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                heard.extend(manager.recv(4096).decode().split("\n"))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join()


STUCK = """
import ctypes, os, sys, threading, time
from pathlib import Path
from neuromod.bridge import native, service
from neuromod.bridge.config import load
from neuromod.bridge.notify import Notifier

class Daemon(service.Daemon):
    def open(self):
        super().open()
        threading.Thread(target=self.get_stuck, daemon=True).start()
        return self

    def get_stuck(self):
        while not Path(sys.argv[2]).exists():
            time.sleep(0.01)
        # the loop's next call of zmq_msg_recv waits for a signal, and its thread takes none
        functions = self.loop.block[0]["functions"]
        functions[native.ZMQ_MSG_RECV] = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p).value

service.Daemon = Daemon
sys.exit(service.serve(load(sys.argv[1]), notifier=Notifier(sys.argv[3])))
"""


@pytest.mark.compiled_loop
def test_a_stuck_loop_ends_the_process_with_its_own_code_and_the_record_has_an_end(
    session_file: Callable[[str], Path], tmp_path: Path
) -> None:
    config = session_file(f'source = "zmq"\n[watchdog]\ntick_s = 0.5\n[record]\nfolder = "{tmp_path}/kept"\n')
    mark, address = tmp_path / "stuck", str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        with listening(manager) as heard, process("-c", STUCK, str(config), str(mark), address) as child:
            child.wait_for_line("Ctrl-C stops", timeout_s=240.0)
            wait_until(lambda: heard.count("WATCHDOG=1") >= 2, "pings of a loop that goes round")
            mark.touch()
            code, _ = child.end()
    assert code == STUCK_EXIT_CODE
    assert "stuck in a library" in child.errors
    (folder,) = (tmp_path / "kept").iterdir()
    log = LogReader(folder)
    assert [chunk.kind for chunk in log.chunks("notes")] == ["notes"]
    assert log.end is not None
    assert "did not end" in log.end["why"]
    assert heard.index("READY=1") < heard.index("WATCHDOG=1")
    assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in heard)


# -- the service manager


@pytest.mark.parametrize("is_abstract", [False, pytest.param(True, id="abstract")])
def test_a_service_manager_hears_datagrams_on_its_socket(is_abstract: bool, tmp_path: Path) -> None:
    name = f"@neuromod-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if is_abstract else name)
        manager.settimeout(20.0)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
        with Notifier.from_environment(environment) as notifier:
            with notifier.starting():
                assert manager.recv(4096) == b"EXTEND_TIMEOUT_USEC=30000000\nSTATUS=starting"
            notifier.ready()
            assert manager.recv(4096) == b"READY=1\nSTATUS=the loop runs"
            notifier.status("two\nlines")
            assert manager.recv(4096) == b"STATUS=two lines"
            assert notifier.watchdog_s == 30.0
            assert Supervision(session(MEMORY), notifier=notifier).is_kept_up
    assert not Supervision(session(MEMORY)).is_kept_up  # started by hand: who did is there to start the stream


def test_without_a_service_manager_nothing_is_said_and_nothing_fails(tmp_path: Path) -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, pid=2).watchdog_s == INF
    for address in ("", str(tmp_path / "nobody"), "no-path"):
        with Notifier(address) as notifier, notifier.starting():
            notifier.ready()
            notifier.alive()
            notifier.stopping()
