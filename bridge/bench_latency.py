"""Latency from an LSL sample's stamp to a ZeroMQ subscriber, as ratios to a bare loop of the same interleaved runs.

Three processes as in a laboratory: a sender, the system under test, a subscriber; all read the same monotonic clock.
A message is laid beside the sender's own note of when it pushed the sample, so no clock correction enters the result.
"""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import bench_recording, wire
from neuromod.bridge.warm import LONGEST_START_S
from neuromod.engine.errors import NeuromodError

BARE, NEUROMOD, BUSY, EZMSG = "bare", "neuromod", "neuromod, busy thread", "ezmsg"
CLOSED_LOOP, RECORDING = "neuromod, closed loop", "neuromod, recording"
CHOICES = {"neuromod": NEUROMOD, "busy": BUSY, "ezmsg": EZMSG, "closed-loop": CLOSED_LOOP, "recording": RECORDING}
"""What may be asked for by itself. Bare always runs, and so does neuromod where something is held against it."""

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
SETTLE_S = 0.25
"""The first moments of a run are reported as the first sample's lateness, and left out of the percentiles."""

_DAEMONS = (NEUROMOD, BUSY, CLOSED_LOOP, RECORDING)
_ANSWER_S = 180.0
_DRAIN_S = 0.3
_LSL_API_CFG = """\
[lab]
SessionID = neuromod-bench-{session}
[ports]
IPv6 = disable
[multicast]
ResolveScope = machine
[log]
level = -3
"""


class BenchError(NeuromodError, RuntimeError):
    """A worker of the bench failed."""


@dataclass(frozen=True)
class Stream:
    """What the sender sends: chunks of `chunk` samples."""

    name: str
    n_channels: int
    rate: float
    chunk: int

    @property
    def period_s(self) -> float:
        """Time between two chunks, which is the time between two messages."""
        return self.chunk / self.rate


FEATURES = Stream("16 x 1 kHz", 16, 1000.0, 1)
RAW = Stream("96 x 30 kHz raw, chunks of 1 ms", 96, 30000.0, 30)


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes
    ----------
    latencies_us : ndarray of float64, shape (n,)
        Of the messages after the first `SETTLE_S`.
    first_us : float
        Of the first message.
    sent, lost : int
        Chunks, and those of them that no message told of.
    notes : dict
        What the workers said at the end; of a run that was recorded also the `recording`, and of every daemon its
        `memory`.
    """

    latencies_us: NDArray[np.float64]
    first_us: float
    sent: int
    lost: int
    notes: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return percentiles and counts."""
        return percentiles(self.latencies_us) | {"first_us": self.first_us, "sent": self.sent, "lost": self.lost}


class Sent(NamedTuple):
    """What became of a stream: when its chunks were pushed, the messages by field, and the last words of workers."""

    stamps: NDArray[np.float64]
    messages: dict[str, NDArray[Any]]
    notes: dict[str, Any]


def percentiles(latencies_us: NDArray[np.float64]) -> dict[str, float]:
    """Return p50, p99, p99.9 and the maximum."""
    return {f"{name}_us": float(np.percentile(latencies_us, q)) for name, q in PERCENTILES.items()}


class Worker:
    """A process that does jobs for the bench, of a module that has a worker of this role."""

    def __init__(self, role: str, environment: dict[str, str], module: str = "neuromod.bridge.bench_workers") -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,  # ctrl-C is for the bench, which ends them in order
        )
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({"said": "failed", "error": "the process ended"})

    def tell(self, line: str | dict[str, Any]) -> None:
        """Give it a job, or the word "stop"."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # where it has ended, whoever waits for it hears so
            self._process.stdin.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
            self._process.stdin.flush()

    def wait_for(self, word: str, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        """Wait until it says a word."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except Empty:
            raise BenchError(f"the {self.role} did not say {word!r} within {timeout_s:g} s") from None
        if answer["said"] != word:
            raise BenchError(f"the {self.role} failed: {answer.get('error', answer)}")
        return answer

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Crew:
    """Workers on a private LSL session of this machine, and a folder for what they find; a context manager."""

    def __init__(self, roles: Iterable[str], module: str = "neuromod.bridge.bench_workers") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="neuromod-bench-")
        self.folder = Path(self._folder.name)
        self.environment = private_session(self.folder)
        self._workers = {role: Worker(role, self.environment, module) for role in roles}

    def __enter__(self) -> Self:
        try:
            for worker in self._workers.values():  # compiling may take minutes
                worker.wait_for("here", LONGEST_START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def ask(self, role: str, job: dict[str, Any]) -> None:
        """Give a worker a job, and wait until it is ready for it."""
        self._workers[role].tell(job)
        self._workers[role].wait_for("ready")

    def hear(self, role: str, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        """Wait until a worker has done its job."""
        return self._workers[role].wait_for("done", timeout_s)

    def stop(self, role: str) -> None:
        """Tell a worker to end its job, or to clear up after it."""
        self._workers[role].tell("stop")

    def finish(self, role: str) -> dict[str, Any]:
        """End a job, and wait until it is done."""
        self.stop(role)
        return self.hear(role)

    def send_through(self, role: str, job: dict[str, Any], topic: bytes, *, is_polled: bool) -> Sent:
        """Send a stream for ``job["seconds"]`` through the system of a role, with an operator where it is polled."""
        output, control, ingest = free_addresses(3)
        job = job | {"source_id": uuid.uuid4().hex, "output": output, "control": control, "ingest": ingest}
        stamps, messages = self.folder / "stamps.npy", self.folder / "messages.npz"
        self.ask("subscribe", {"output": output, "topic": topic.decode(), "result": str(messages)})
        self.ask("send", job | {"result": str(stamps)})
        self.ask(role, job)
        if is_polled:
            self._workers["poll"].tell(job)
        notes = {"sender": self.hear("send", job["seconds"] + 60.0)}
        if is_polled:
            notes["poll"] = self.finish("poll")
        time.sleep(_DRAIN_S)  # what is still under way arrives before the subscriber sees the stop
        notes["subscriber"] = self.finish("subscribe")
        notes["system"] = self.finish(role)
        self.stop("send")
        with np.load(messages) as found:
            return Sent(np.load(stamps), dict(found), notes)


class Workers(Crew):
    """The processes of one bench."""

    def __init__(self, systems: list[str]) -> None:
        super().__init__(["send", "subscribe", "poll", *dict.fromkeys(_role(system) for system in systems)])

    def run(self, system: str, stream: Stream, seconds: float) -> Run:
        """Let one system work for so many seconds."""
        is_daemon = system in _DAEMONS
        job: dict[str, Any] = {
            "n_channels": stream.n_channels,
            "rate": stream.rate,
            "chunk": stream.chunk,
            "seconds": seconds,
            "busy": system == BUSY,
            "closed_loop": system == CLOSED_LOOP,
            "record": "",
        }
        topic = wire.TOPIC_COMMAND if system == CLOSED_LOOP else wire.TOPIC_SPIKES
        with contextlib.ExitStack() as stack:
            if system == RECORDING:
                folder = tempfile.TemporaryDirectory(prefix="neuromod-bench-", dir=bench_recording.disk_folder())
                job["record"] = stack.enter_context(folder)
            stamps, messages, notes = self.send_through(_role(system), job, topic, is_polled=is_daemon)
            if system == RECORDING:
                n_heard = notes["subscriber"]["messages"]
                notes["recording"] = bench_recording.inspect(Path(job["record"]), len(stamps) * stream.chunk, n_heard)
        if is_daemon:
            told = notes["system"]
            notes["memory"] = bench_recording.memory(told["memory_mb"], told["memory_every_s"])
        return judge(stamps, messages["t_sample"], messages["arrival"], stream.period_s, notes)


def private_session(folder: Path) -> dict[str, str]:
    """Return an environment with an LSL session of its own on this machine; its configuration goes into `folder`."""
    config = folder / "lsl_api.cfg"
    config.write_text(_LSL_API_CFG.format(session=uuid.uuid4().hex), encoding="utf-8")
    return dict(os.environ) | {"LSLAPICFG": str(config)}


def judge(
    stamps: NDArray[np.float64],
    t_sample: NDArray[np.float64],
    arrival: NDArray[np.float64],
    period_s: float,
    notes: dict[str, Any],
) -> Run:
    """Lay messages beside the stamps they bear; a clock correction of much less than a period does not matter."""
    if not len(t_sample):
        raise BenchError("no message arrived at all")
    after = np.clip(np.searchsorted(stamps, t_sample), 1, len(stamps) - 1)
    nearest = after - (t_sample - stamps[after - 1] < stamps[after] - t_sample)
    right = np.abs(stamps[nearest] - t_sample) < period_s
    found, first_seen = np.unique(nearest[right], return_index=True)
    latencies_us = (arrival[right][first_seen] - stamps[found]) * 1e6
    settled = stamps[found] >= stamps[0] + SETTLE_S
    if not settled.any():
        raise BenchError("no message arrived after the first moments")
    return Run(latencies_us[settled], float(latencies_us[0]), len(stamps), len(stamps) - len(found), notes)


def measure(
    seconds: float,
    rounds: int,
    endurance_s: float,
    say: Callable[[str], None] = lambda line: None,
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Run everything, or a part of it.

    Parameters
    ----------
    seconds : float
        Length of one run.
    rounds : int
        Every system runs once in each round; ratios are taken within a round.
    endurance_s : float
        Length of one more run of the daemon, and of one that is recorded, that count losses; 0 for none.
    say : callable
        Gets a line before each run.
    only : collection of str
        Of `CHOICES`; empty for all.

    Returns
    -------
    dict
        By stream: systems, ratios to bare with their spread, and the endurance run.

    Raises
    ------
    BenchError
        Something else is asked for, or what is not installed.
    """
    systems = choose(only)
    if EZMSG in systems and not has_ezmsg():
        missing = "ezmsg is not installed (pip install 'neuromod-bridge[bench]')"
        if only:
            raise BenchError(f"{missing}: install it, or leave it out")
        say(f"{missing}: left out")
        systems.remove(EZMSG)
    on_raw = [system for system in systems if system not in (BUSY, EZMSG)]
    with Workers(systems) as workers:
        streams = {"features": _compare(workers, FEATURES, systems, seconds, rounds, say)}
        if len(on_raw) > 1:
            streams["raw"] = _compare(workers, RAW, on_raw, seconds, rounds, say)
        endurance: dict[str, Any] = {}
        lasting = []
        if not only or "neuromod" in only:
            lasting = [("features", NEUROMOD, FEATURES), ("raw", NEUROMOD, RAW)]
        if RECORDING in systems:
            lasting.append(("recording", RECORDING, RAW))
        for key, system, stream in lasting if endurance_s > 0 else ():
            say(f"{stream.name}: {system}, {endurance_s:g} s")
            run = workers.run(system, stream, endurance_s)
            named = {
                "stream": "raw" if stream is RAW else "features",
                "name": stream.name,
                "system": system,
                "seconds": endurance_s,
            }
            endurance[key] = named | run.summary() | {"notes": run.notes}
    return {"streams": streams, "endurance": endurance}


def choose(only: Collection[str]) -> list[str]:
    """Return the systems to run, in order: those asked for, and what they are held against.

    Raises
    ------
    BenchError
        What is asked for is none of `CHOICES`.
    """
    if unknown := [name for name in only if name not in CHOICES]:
        raise BenchError(f"there is no system {unknown[0]!r}; choose from {', '.join(CHOICES)}")
    wanted = {CHOICES[name] for name in only or CHOICES}
    if wanted & {BUSY, RECORDING}:
        wanted.add(NEUROMOD)
    return [BARE, *(system for system in CHOICES.values() if system in wanted)]


def has_ezmsg() -> bool:
    """Say whether ezmsg, of the extra `bench`, is installed."""
    return importlib.util.find_spec("ezmsg") is not None


def _compare(
    workers: Workers, stream: Stream, systems: list[str], seconds: float, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {system: [] for system in systems}
    for k, order in enumerate(_orders(systems, rounds)):
        for system in order:
            say(f"{stream.name}: {system}, round {k + 1} of {rounds}")
            runs[system].append(workers.run(system, stream, seconds))
    return {
        "name": stream.name,
        "systems": {system: _pooled(runs[system]) for system in systems},
        "ratios": {system: _ratios(runs[system], runs[BARE]) for system in systems if system != BARE},
        "ratio_busy_to_neuromod": _ratios(runs[BUSY], runs[NEUROMOD]) if BUSY in runs else None,
        "ratio_recording_to_neuromod": _ratios(runs[RECORDING], runs[NEUROMOD]) if RECORDING in runs else None,
    }


def _orders(systems: list[str], rounds: int) -> Iterator[list[str]]:
    """There and back again, so that a drift of the machine favours nobody."""
    for k in range(rounds):
        yield systems if k % 2 == 0 else systems[::-1]


def _pooled(runs: list[Run]) -> dict[str, Any]:
    return percentiles(np.concatenate([run.latencies_us for run in runs])) | {
        "first_us": {
            "median": float(np.median([run.first_us for run in runs])),
            "max": max(run.first_us for run in runs),
        },
        "sent": sum(run.sent for run in runs),
        "lost": sum(run.lost for run in runs),
        "runs": [run.summary() | {"notes": run.notes} for run in runs],
    }


def _ratios(runs: list[Run], to: list[Run]) -> dict[str, dict[str, float]]:
    """Return, for each percentile, the ratios within the rounds: their median, least and greatest."""
    found = {}
    for name in PERCENTILES:
        pairs = [a.summary()[f"{name}_us"] / b.summary()[f"{name}_us"] for a, b in zip(runs, to, strict=True)]
        found[name] = {"median": float(np.median(pairs)), "least": min(pairs), "greatest": max(pairs)}
    return found


def _role(system: str) -> str:
    return "daemon" if system in _DAEMONS else system


def free_addresses(n: int) -> list[str]:
    """Return addresses of this host whose ports nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
