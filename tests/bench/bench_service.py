"""What it costs the loop to be looked at: the bare daemon, beside one that is recorded, scraped, watched and heard.

``python tests/bench/bench_service.py --rounds 5 --seconds 20 --long 600`` sends 96 channels at 30 kHz over LSL, in
chunks of a millisecond, to ``neuromod start`` as a user runs it:

bare: one subscriber, which measures.
observed: a record with raw samples, metrics that are scraped each second, ``neuromod monitor`` on a terminal, and five
    subscribers: the one that measures, three to everything, and one to everything that is stopped by SIGSTOP.

The two take turns, there and back again, and ratios are taken within a round. A tick is laid beside the sender's own
note of when it pushed the sample, so no correction of clocks enters. After that one long run of the observed daemon
says what becomes of its memory. Exits with 1 where anything is lost.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgpack
import numpy as np
import psutil
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.bridge import bench_latency, bench_recording, wire
from neuromod.bridge.bench_latency import RAW, BenchError, Stream, Worker
from neuromod.bridge.client import Client
from neuromod.bridge.warm import LONGEST_START_S

BARE, OBSERVED = "bare", "observed"
SETTLE_S = 2.0
"""The first seconds of a run, in which processes start and caches fill, are left out of the percentiles."""

_READY_S = 60.0
_MEMORY_EVERY_S = 1.0
_N_LISTENERS = 3

_SESSION = """\
source = {{kind = "lsl", source_id = "{source_id}", content = "signal"}}
[sockets]
ingest = "{ingest}"
output = "{output}"
control = "{control}"
"""
_RUNTIME = """\
[runtime]
realtime_priority = {realtime}
cpus = {cpus}
"""
_OBSERVED = """\
[record]
raw = true
folder = "{folder}"
min_free_mb = 50.0
[metrics]
address = "{metrics}"
"""


@dataclass
class Run:
    """What one run gave.

    Attributes
    ----------
    loop_us : ndarray of float64
        From the pushing of a sample to the end of its tick.
    heard_us : ndarray of float64
        And to its message at the measuring subscriber.
    lost : dict
        What was lost, by where; only what is not 0.
    memory_mb : list of float
        Resident memory of the daemon, each second.
    notes : dict
        Of everything that took part.
    """

    loop_us: NDArray[np.float64]
    heard_us: NDArray[np.float64]
    sent: int
    lost: dict[str, int]
    memory_mb: list[float]
    notes: dict[str, Any] = field(default_factory=dict)


class Listener:
    """A subscriber in a process of its own, which says when it has heard something."""

    def __init__(self, output: str, topic: str, result: Path | None = None) -> None:
        arguments = [sys.executable, __file__, "--listen", output, topic, str(result or "")]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.wait_for("here")

    def wait_for(self, word: str) -> str:
        """Wait for a line that begins with a word, and return the rest of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise BenchError(f"a subscriber ended without a word of {word!r}")

    def close(self) -> int:
        """End it, stopped or not; return how many messages it heard."""
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.close()
        n = int(self.wait_for("heard"))
        self.kill()
        return n

    def kill(self) -> None:
        """End it, whatever it is doing. Safe to call twice."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def listen(output: str, topic: str, result: str) -> None:
    """Hear messages until stdin ends; keep the times of each tick's where there is a file for them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.rcvhwm, socket.rcvtimeo, socket.reconnect_ivl = 0, 100, 10  # it is here before the publisher is
    socket.subscribe(topic.encode())
    socket.connect(output)
    ended = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    print("here", flush=True)
    n, arrivals, payloads, clock = 0, [], [], pylsl.local_clock
    while not ended.is_set():
        try:
            payload = socket.recv_multipart()[-1]
        except zmq.Again:
            continue
        now = clock()
        n += 1
        if n == 1:
            print("first", flush=True)
        if result:
            arrivals.append(now)
            payloads.append(payload)
    if result:
        bodies = [msgpack.unpackb(payload) for payload in payloads]
        live = [i for i, body in enumerate(bodies) if not body["flags"] & wire.Flag.FILLER]
        t_sample, t_tick, tick = ([bodies[i][name] for i in live] for name in ("t_sample", "t_tick", "tick"))
        np.savez(result, arrival=[arrivals[i] for i in live], t_sample=t_sample, t_tick=t_tick, tick=tick)
    print(f"heard {n}", flush=True)


class Daemon:
    """`neuromod start` as a user runs it."""

    def __init__(self, session: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "neuromod.bridge.cli", "-v", "start", str(session)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._is_up.wait(LONGEST_START_S) or self.process.poll() is not None:
            self.end()
            raise BenchError("the daemon did not start: " + "".join(self.lines[-3:]))
        self._of_process = psutil.Process(self.process.pid)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "Ctrl-C stops" in line:
                self._is_up.set()
        self._is_up.set()

    def resident_mb(self) -> float:
        """Return what it has in memory."""
        return float(self._of_process.memory_info().rss) / 1e6

    def cpu_s(self) -> float:
        """Return the processor time that it took so far."""
        times = self._of_process.cpu_times()
        return float(times.user + times.system)

    def end(self) -> int:
        """End it as a service manager would; return its exit code. Safe to call twice."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5.0)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return self.process.returncode


class Monitor:
    """`neuromod monitor` on a terminal of its own; what it draws is read and counted."""

    def __init__(self, session: Path) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        subprocess.run(["stty", "rows", "40", "cols", "140"], stdin=theirs, check=True)
        command = [sys.executable, "-m", "neuromod.bridge.cli", "monitor", "-c", str(session)]
        environment = os.environ | {"TERM": "xterm-256color"}
        self._process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.drawn_bytes = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # its end is gone
            while data := os.read(self._ours, 65536):
                self.drawn_bytes += len(data)

    def close(self) -> int:
        """End it, and return how many bytes it drew."""
        has_ended = self._process.poll()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        self.kill()
        if has_ended is not None:
            raise BenchError(f"the monitor ended by itself, with {has_ended}")
        return self.drawn_bytes

    def kill(self) -> None:
        """End it, whatever it is doing. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5.0)
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1


def has_monitor() -> bool:
    """Say whether this version has the command `neuromod monitor`."""
    command = [sys.executable, "-m", "neuromod.bridge.cli", "monitor", "--help"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Scraper:
    """Reads /metrics each second, and notes how long that takes."""

    def __init__(self, address: str) -> None:
        self._url, self._stop = f"http://{address}/metrics", threading.Event()
        self.took_ms: list[float] = []
        self.failed = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            begun = time.perf_counter()
            try:
                with urllib.request.urlopen(self._url, timeout=10.0) as answer:
                    answer.read()
                self.took_ms.append((time.perf_counter() - begun) * 1e3)
            except OSError:
                self.failed += 1

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()


class Bench:
    """A private LSL session of this machine, and the runs in it; a context manager."""

    def __init__(self, stream: Stream = RAW, realtime: int = 0, cpus: Sequence[int] = ()) -> None:
        self.stream, self._realtime, self._cpus = stream, realtime, list(cpus)
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="neuromod-bench-")))
        config = self._folder / "lsl_api.cfg"
        config.write_text(bench_latency._LSL_API_CFG.format(session=uuid.uuid4().hex), encoding="utf-8")
        self._environment = dict(os.environ) | {"LSLAPICFG": str(config)}
        self.with_monitor = has_monitor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, system: str, seconds: float) -> Run:
        """Let one system work for so many seconds."""
        with contextlib.ExitStack() as stack:
            on_disk = tempfile.TemporaryDirectory(prefix="neuromod-bench-", dir=bench_recording.disk_folder())
            return self._run(system, seconds, Path(stack.enter_context(on_disk)), stack)

    def _run(self, system: str, seconds: float, folder: Path, stack: contextlib.ExitStack) -> Run:
        output, control, ingest, metrics = bench_latency.free_addresses(4)
        source_id, is_observed = uuid.uuid4().hex, system == OBSERVED
        text = _SESSION.format(source_id=source_id, ingest=ingest, output=output, control=control)
        metrics = metrics.removeprefix("tcp://")
        text += _RUNTIME.format(realtime=self._realtime, cpus=self._cpus)
        if is_observed:
            text += _OBSERVED.format(folder=folder / "sessions", metrics=metrics)
        session = folder / "session.toml"
        session.write_text(text, encoding="utf-8")
        stamps_file, messages_file = folder / "stamps.npy", folder / "messages.npz"

        measuring = Listener(output, "spikes", messages_file)
        n_others = _N_LISTENERS + (not self.with_monitor) if is_observed else 0
        others = [Listener(output, "") for _ in range(n_others)]
        stuck = Listener(output, "") if is_observed else None
        for listener in (measuring, *others, *([stuck] if stuck is not None else [])):
            stack.callback(listener.kill)
        sender = Worker("send", self._environment)
        stack.callback(sender.close)
        sender.wait_for("here", LONGEST_START_S)
        stream = self.stream
        job = {"n_channels": stream.n_channels, "rate": stream.rate, "chunk": stream.chunk, "source_id": source_id}
        sender.tell(job | {"seconds": seconds, "result": str(stamps_file), "consumer_s": LONGEST_START_S})
        sender.wait_for("ready")
        daemon = Daemon(session, self._environment)
        stack.callback(daemon.end)
        begun, cpu_s, memory = time.monotonic(), daemon.cpu_s(), [daemon.resident_mb()]
        if stuck is not None:
            stuck.wait_for("first")
            stuck.process.send_signal(signal.SIGSTOP)
        monitor = Monitor(session) if is_observed and self.with_monitor else None
        if monitor is not None:
            stack.callback(monitor.kill)
        scraper = Scraper(metrics) if is_observed else None
        if scraper is not None:
            stack.callback(scraper.close)

        done = threading.Event()
        sampler = threading.Thread(target=lambda: _follow(daemon, done, memory))
        sampler.start()
        stack.callback(done.set)
        notes: dict[str, Any] = {"sender": sender.wait_for("done", seconds + 120.0)}
        done.set()
        sampler.join()
        notes["cpu_share"] = (daemon.cpu_s() - cpu_s) / (time.monotonic() - begun)
        if scraper is not None:
            scraper.close()
            notes["scrapes"] = {"n": len(scraper.took_ms), "failed": scraper.failed}
            notes["scrapes"]["p50_ms"] = float(np.median(scraper.took_ms)) if scraper.took_ms else None
        if monitor is not None:
            notes["monitor_bytes"] = monitor.close()
        with Client(control=control, output=output, ingest=ingest, timeout_s=20.0) as client:
            health = client.request("status")["health"]
        if stuck is not None:
            notes["stuck_was"] = psutil.Process(stuck.process.pid).status()
            notes["stuck_heard"] = stuck.close()
        notes["others_heard"] = [other.close() for other in others]
        heard = measuring.close()
        notes["exit_code"] = daemon.end()
        sender.tell("stop")
        stamps = np.load(stamps_file)
        with np.load(messages_file) as messages:
            of = {name: messages[name] for name in messages.files}
        lost = _losses(health, of, len(stamps) * stream.chunk)
        if is_observed:
            notes["recording"] = found = bench_recording.inspect(folder / "sessions", len(stamps) * stream.chunk, 0)
            lost |= {f"record: {key}": found.get(key, 1) for key in ("ticks_lost", "samples_lost")}
            lost["record: not whole"] = int(not found["is_ok"])
            lost["scrapes failed"] = scraper.failed if scraper is not None else 0
        notes |= {"heard": heard, "counters": health["counters"], "latency_us": health["latency_us"]}
        loop = bench_latency.judge(stamps, of["t_sample"], of["t_tick"], stream.period_s, {})
        arrived = bench_latency.judge(stamps, of["t_sample"], of["arrival"], stream.period_s, {})
        skip = max(0, round((SETTLE_S - bench_latency.SETTLE_S) / stream.period_s))
        lost = {where: n for where, n in lost.items() if n}
        return Run(loop.latencies_us[skip:], arrived.latencies_us[skip:], len(stamps), lost, memory, notes)


def _follow(daemon: Daemon, done: threading.Event, memory: list[float]) -> None:
    while not done.wait(_MEMORY_EVERY_S):
        memory.append(daemon.resident_mb())


def _losses(health: dict[str, Any], of: dict[str, NDArray[Any]], n_samples: int) -> dict[str, int]:
    """Return what was lost on the way to the ticks, and to the subscriber that measures."""
    counters = health["counters"]
    lost = {
        "samples": n_samples - counters["samples"],
        "messages": int((np.diff(of["tick"].astype(np.int64)) - 1).sum()),
    }
    for name, n in counters.items():
        if name.endswith("_overflow") or name in ("samples_lost", "samples_dropped", "send_errors", "gaps"):
            lost[name] = n
    return lost


def summary(run: Run) -> dict[str, Any]:
    """Return the figures of a run."""
    found: dict[str, Any] = {
        "loop": bench_latency.percentiles(run.loop_us),
        "heard": bench_latency.percentiles(run.heard_us),
        "sent": run.sent,
        "lost": run.lost,
        "memory": memory(run.memory_mb),
        "notes": run.notes,
    }
    return found


def memory(resident_mb: list[float]) -> dict[str, float]:
    """Return what became of the memory: as `bench_recording.memory`, and the slope of the second half in MB an hour."""
    found = bench_recording.memory(resident_mb, _MEMORY_EVERY_S)
    half = np.array(resident_mb[len(resident_mb) // 2 :])
    if len(half) > 2:
        found["slope_mb_per_h"] = float(np.polyfit(np.arange(len(half)) * _MEMORY_EVERY_S, half, 1)[0]) * 3600.0
    return found


def ratios(observed: list[Run], bare: list[Run]) -> dict[str, dict[str, float]]:
    """Return, for each percentile of the loop's and the subscriber's times, the ratios within the rounds."""
    found = {}
    for what in ("loop", "heard"):
        for name in ("p50_us", "p99_us"):
            pairs = [summary(a)[what][name] / summary(b)[what][name] for a, b in zip(observed, bare, strict=True)]
            found[f"{what}_{name[:3]}"] = {
                "median": float(np.median(pairs)),
                "least": min(pairs),
                "greatest": max(pairs),
            }
    return found


def measure(
    rounds: int,
    seconds: float,
    long_s: float,
    say: Callable[[str], None],
    realtime: int = 0,
    cpus: Sequence[int] = (),
) -> dict[str, Any]:
    """Run everything."""
    runs: dict[str, list[Run]] = {BARE: [], OBSERVED: []}
    with Bench(realtime=realtime, cpus=cpus) as bench:
        monitor = "neuromod monitor" if bench.with_monitor else "no neuromod monitor here: a subscriber in its place"
        say(f"{bench.stream.name}; {monitor}")
        for k, order in enumerate(_orders(rounds)):
            for system in order:
                run = bench.run(system, seconds)
                runs[system].append(run)
                say(f"round {k + 1} of {rounds}, {system:>8}: {_line(run)}")
        found: dict[str, Any] = {
            "stream": bench.stream.name,
            "monitor": bench.with_monitor,
            "runtime": {"realtime_priority": realtime, "cpus": list(cpus)},
            "ratios": ratios(runs[OBSERVED], runs[BARE]) if rounds else {},
            "runs": {system: [summary(run) for run in them] for system, them in runs.items()},
        }
        if long_s:
            run = bench.run(OBSERVED, long_s)
            found["long"] = summary(run) | {"seconds": long_s}
            say(f"{long_s:g} s, observed: {_line(run)}; memory {memory(run.memory_mb)}")
    them = [run for of in found["runs"].values() for run in of] + ([found["long"]] if long_s else [])
    found["lost"] = sum(n for run in them for n in run["lost"].values())
    return found


def _orders(rounds: int) -> Iterator[list[str]]:
    for k in range(rounds):
        yield [BARE, OBSERVED] if k % 2 == 0 else [OBSERVED, BARE]


def _line(run: Run) -> str:
    loop, heard = bench_latency.percentiles(run.loop_us), bench_latency.percentiles(run.heard_us)
    told = f"loop p50 {loop['p50_us']:.1f} p99 {loop['p99_us']:.1f} us, heard p50 {heard['p50_us']:.1f} us"
    return f"{told}, {run.notes['cpu_share']:.2f} processors, lost {run.lost or 'nothing'}"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--long", type=float, default=0.0, help="seconds of one more run of the observed daemon")
    parser.add_argument("--realtime", type=int, default=0, help="runtime.realtime_priority of either daemon")
    parser.add_argument("--cpus", type=int, nargs="*", default=(), help="runtime.cpus of either daemon")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--listen", nargs=3, metavar=("OUTPUT", "TOPIC", "RESULT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.listen:
        listen(*given.listen)
        return 0

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = measure(given.rounds, given.seconds, given.long, say, given.realtime, given.cpus)
    for name, ratio in found["ratios"].items():
        print(f"{name}: observed / bare = {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['greatest']:.3f})")
    print("lost nothing" if not found["lost"] else f"lost {found['lost']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1, default=float), encoding="utf-8")
    return int(bool(found["lost"]))


if __name__ == "__main__":
    sys.exit(main())
