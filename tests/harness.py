"""Daemons, streams and clients for the tests of the service; every wait is for a condition, and bounded."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pylsl
from numpy.typing import NDArray

from neuromod.adapters.base import Chunk, Source, empty_chunk, open_source
from neuromod.adapters.memory import MemorySource
from neuromod.bridge.assembly import assemble
from neuromod.bridge.client import Client, ClientTimeoutError, Subscription
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.service import Daemon
from neuromod.bridge.wire import Flag, HealthMessage, OutputMessage, SpikesMessage, StateMessage

WAIT_S = 20.0  # for what takes milliseconds: two busy cores may be busy with something else

ONE_PULSE = """
[[stimulation.electrodes]]
name = "e1"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
[[stimulation.programs]]
name = "pulse"
electrode = "e1"
amplitude_ua = -10.0
phase_us = 200.0
"""
"""One electrode, and a pulse on it; it follows a table [stimulation]."""

ONE_PROGRAM = f"""{ONE_PULSE}
[[stimulation.triggers]]
event = 0
program = "pulse"
"""
"""The same at the decoder's first event."""

FREE_PORTS = """
[sockets]
ingest = "tcp://127.0.0.1:*"
output = "tcp://127.0.0.1:*"
control = "tcp://127.0.0.1:*"
"""


def session(text: str) -> SessionConfig:
    """Return a session on free ports, with `state` at the highest rate."""
    if "[publish]" in text:
        text = text.replace("[publish]", "[publish]\nstate_hz = 100")
    else:
        text += "\n[publish]\nstate_hz = 100\nhealth_s = 0.1\n"
    return parse(text + FREE_PORTS)


STRONG = [5.0] * 14 + [0.0, 0.0]
"""Stimuli by which every sensory channel fires, and the first asks for a pulse in a session of `pulsing`."""


def pulsing(stimulation: str) -> str:
    """Return a session file without sockets, whose ticks are sent (`driven`), and whose first channel asks for pulses.

    Parameters
    ----------
    stimulation : str
        What its table [stimulation] says, without programs.
    """
    return f"""
        source = {{kind = "zmq", block_ms = 1.0}}
        [timing]
        stall_ms = 20000.0
        late_ms = 10000.0
        [publish]
        health_s = 0.1
        [decoder]
        kind = "rates"
        channels = [0, 1]
        events = [{{channel = 0, refractory_ms = 20.0}}]
        [stimulation]
        {stimulation}
        {ONE_PROGRAM}
        """


@contextmanager
def driven(addresses: dict[str, str]) -> Iterator[None]:
    """Send stimuli, a tick each, from a thread: a source that never falls silent."""
    stop = threading.Event()

    def run() -> None:
        # a daemon that a test kills takes no more, and a source that falls silent by itself disarms, which tests see
        with Client(**addresses, timeout_s=5.0) as client, contextlib.suppress(ClientTimeoutError):
            while not stop.wait(0.005):
                client.send_stimuli(STRONG)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)


@contextmanager
def driven_daemon(session: SessionConfig) -> Iterator["Running"]:
    """Give a daemon whose network moves."""
    with Running(session) as running, driven(running.daemon.addresses):
        wait_until(lambda: running.health["tick"] > 3, "ticks")
        yield running


def sockets(addresses: dict[str, str]) -> list[str]:
    """Return addresses as options of a command."""
    return [part for name, address in addresses.items() for part in (f"--{name}", address)]


MEMORY = """source = {kind = "lsl", name = "in place of a source in memory", content = "features"}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
"""
"""A source that is given as an object stands in for the one that the session names."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.002)
    return found


class Records:
    """Records of ticks, as `Daemon(on_ticks=...)` hands them over."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = []

    def __call__(self, ticks: NDArray[Any]) -> None:
        self._parts.append(ticks.copy())

    def all(self) -> NDArray[Any]:
        """Return every record so far."""
        return np.concatenate(self._parts) if self._parts else np.empty(0, [("flags", np.uint32)])

    def live(self) -> NDArray[Any]:
        """Return the records of ticks at which the network moved."""
        records: Any = self.all()
        live: NDArray[Any] = records[(records["flags"] & (Flag.FILLER | Flag.PAUSED)) == 0]
        return live

    def wait_for(self, n: int, timeout_s: float = WAIT_S) -> NDArray[Any]:
        """Return the live records once there are `n` of them."""
        wait_until(lambda: sum(map(len, self._parts)) >= n and len(self.live()) >= n, f"{n} ticks", timeout_s)
        return self.live()


class Listener:
    """A subscriber that is connected when it is made, and keeps what it got."""

    def __init__(self, client: Client, *topics: str) -> None:
        # subscriptions travel in order: when the last one works, all do
        self.subscription: Subscription = client.subscribe(*(t for t in topics if t != "state"), "state")
        self.messages: list[OutputMessage] = []
        self.until(lambda: self.of(StateMessage), "subscription")

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
        """Listen until a condition on what was heard holds; return its value."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{what}: not within {timeout_s:g} s"
            message = self.subscription.receive(left_s)
            assert message is not None
            self.messages.append(message)
        return found

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the messages of one kind."""
        return [message for message in self.messages if isinstance(message, kind)]

    def spikes(self, n: int) -> list[SpikesMessage]:
        """Return the spikes messages once there are `n`."""
        self.until(lambda: len(self.of(SpikesMessage)) >= n, f"{n} spikes messages")
        return self.of(SpikesMessage)

    def health(self, condition: Callable[[HealthMessage], Any], what: str = "health") -> HealthMessage:
        """Return the next health message that fulfils a condition."""
        seen = len(self.messages)
        found: HealthMessage = self.until(
            lambda: next((m for m in self.messages[seen:] if isinstance(m, HealthMessage) and condition(m)), None), what
        )
        return found


def raster(messages: list[SpikesMessage]) -> NDArray[np.bool_]:
    """Return spikes as (n, 16)."""
    return np.array([message.spikes for message in messages])


def bits(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the spikes of records as (n, 16)."""
    return (records["spikes"][:, None] >> np.arange(16, dtype=np.uint32) & 1).astype(bool)


class GatedSource(MemorySource):
    """A source in memory that keeps silent until it is let go, so that subscribers can be there first.

    It can fall silent again, before any sample.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._until = 0
        self._given = 0

    def let_go(self, until: int | None = None) -> None:
        """Give samples up to one, or all."""
        self._until = sys.maxsize if until is None else until

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples, none while silent."""
        n = min(max_samples, self._until - self._given)
        if n <= 0:
            time.sleep(min(timeout_s, 0.002))
            return empty_chunk(self.info.n_channels)
        chunk = super().read(n, timeout_s)
        self._given += len(chunk)
        return chunk


class Running:
    """A daemon in this process, and a client of it."""

    def __init__(self, config: SessionConfig, **options: Any) -> None:
        self.records = Records()
        self.daemon = Daemon(config, on_ticks=self.records, **options)

    def __enter__(self) -> Self:
        self.daemon.open()
        self.client = Client(**self.daemon.addresses, timeout_s=WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.daemon.close()
        assert self.daemon.failure is None
        assert not self.daemon.is_stuck

    def listen(self, *topics: str) -> Listener:
        """Return a connected subscriber."""
        return Listener(self.client, *topics)

    @property
    def health(self) -> dict[str, Any]:
        """What the daemon would say of itself now."""
        body: dict[str, Any] = self.daemon.collector.health()
        return body

    def wait_for_ticks(self, n: int) -> None:
        """Wait until the network has moved so many times since the start."""
        wait_until(lambda: self.health["counters"]["ticks"] == n, f"{n} ticks")

    def wait_for_health(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """Return the first health map that fulfils a condition."""
        found: dict[str, Any] = wait_until(lambda: (h := self.health) and condition(h) and h, what)
        return found


def straight(config: SessionConfig, source: Source | None = None) -> NDArray[Any]:
    """Play a source straight through `consume`, without a daemon, and return the records of its ticks."""
    opened = open_source(config.source) if source is None else source
    opened.open()
    parts, found = assemble(config, opened.info), []
    records = parts.records()
    while not opened.ended:
        chunk, done = opened.read(4096, 1.0), 0
        while done < len(chunk):
            done, n = parts.consume(chunk.samples, chunk.stamps, done, records)
            found.append(records[:n].copy())
    opened.close()
    return np.concatenate(found)


class Process:
    """A child that is read line by line, and never outlives its test."""

    def __init__(self, *command: str) -> None:
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(
            [sys.executable, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
        )
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self._news: queue.Queue[None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", self.popen.stdout), ("err", self.popen.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            self.lines[name].append(line.rstrip("\n"))
        stream.close()

    def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def wait_for_line(self, pattern: str, where: str = "err", timeout_s: float = 60.0) -> re.Match[str]:
        """Return the match of the first line that matches."""

        def look() -> re.Match[str] | None:
            for line in list(self.lines[where]):
                if found := re.search(pattern, line):
                    return found
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}: {self.lines}"
            return None

        found: re.Match[str] = wait_until(look, f"{pattern!r} in {where}", timeout_s)
        return found

    def end(self, number: int | None = None, timeout_s: float = WAIT_S) -> tuple[int, float]:
        """Wait for the end, after a signal where one is given; return exit code and seconds."""
        begun = time.monotonic()
        if number is not None:
            self.popen.send_signal(number)
        # Popen.wait looks every 50 ms only
        wait_until(lambda: self.popen.poll() is not None, "the end of the process", timeout_s)
        code = self.popen.returncode
        took_s = time.monotonic() - begun
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        for reader in self._readers:
            reader.join(WAIT_S)
        return code, took_s

    def halt(self, number: int = signal.SIGKILL) -> tuple[float, float]:
        """Kill or stop it; return when it still ran and when it surely did no more, in seconds of the local clock."""
        before = float(pylsl.local_clock())
        os.kill(self.popen.pid, number)
        os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)  # every thread of it
        return before, float(pylsl.local_clock())

    @property
    def n_children(self) -> int:
        """How many children it has now."""
        return len(psutil.Process(self.popen.pid).children(recursive=True))

    @property
    def errors(self) -> str:
        """All of stderr so far."""
        return "\n".join(self.lines["err"])


@contextmanager
def process(*command: str) -> Iterator[Process]:
    """Give a child process."""
    child = Process(*command)
    try:
        yield child
    finally:
        if child.popen.poll() is None:
            child.popen.kill()
        child.end()


@contextmanager
def neuromod(*args: str) -> Iterator[Process]:
    """Give the command `neuromod`, with its log at level info."""
    with process("-m", "neuromod.bridge.cli", "-v", *args) as child:
        yield child


@contextmanager
def started(config: Path) -> Iterator[tuple[Process, Client]]:
    """Give `neuromod start CONFIG` once it runs, and a client of it."""
    with neuromod("start", str(config)) as child:
        child.wait_for_line("Ctrl-C stops", timeout_s=240.0)  # it may have to compile first
        addresses = {name: child.wait_for_line(rf"\b{name}: (\S+)")[1] for name in ("ingest", "output", "control")}
        with Client(**addresses, timeout_s=WAIT_S) as client:
            yield child, client


class Playback(Process):
    """A recording that is played as an LSL outlet, in a process of its own."""

    def __init__(self, **config: Any) -> None:
        super().__init__("-m", "neuromod.adapters.playback", json.dumps({"die_with_parent": True, **config}))

    def wait_ready(self) -> dict[str, Any]:
        """Return what it says once the outlet exists."""
        self.wait_for_line('"ready"', "out")
        facts: dict[str, Any] = json.loads(self.lines["out"][0])
        return facts


@contextmanager
def playback(**config: Any) -> Iterator[Playback]:
    """Give a playback whose outlet exists."""
    child = Playback(**config)
    try:
        child.wait_ready()
        yield child
    finally:
        if child.popen.poll() is None:
            os.kill(child.popen.pid, signal.SIGKILL)
        child.end()
