"""The programs that `neuromod certify` starts, each in a process of its own: the bare ones, and the daemon itself.

`python -m neuromod.bridge.certify_workers SEAT`; they take jobs as those of `bench_workers` do, four of which (`send`,
`subscribe`, `bare` and `poll`) serve here, too.
"""

import ctypes
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.adapters.memory import MemorySource
from neuromod.bridge import bench_workers, wire
from neuromod.bridge.bench_workers import Desk, Job
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.wire import Flag
from neuromod.engine.layout import N_CHANNELS

ZEROMQ, LSL, BARE = range(3)
"""The ways of `far_end`; a payload begins with the way that it took and the time of its sending."""

LINK_BYTES = 64
LINK_HEAD = np.dtype([("way", "<i8"), ("sent", "<f8")])

_CONNECT_S = 10.0
_POLL_S = 0.2
_PACED_HZ = 1000.0
_TICKS_AT_ONCE = 100  # of the bare loop, before it looks whether it is to stop


def far_end(desk: Desk, job: Job) -> None:
    """The receiving end of ZeroMQ, LSL and bare TCP at once: a thread for each, of which one wakes at a time."""
    heard: dict[int, list[tuple[float, float]]] = {way: [] for way in (ZEROMQ, LSL, BARE)}
    stop, clock = desk.stop, pylsl.local_clock
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.rcvtimeo = int(1e3 * _POLL_S)
    sub.subscribe(b"")
    sub.connect(job["zeromq"])
    bare = socket.create_connection(("127.0.0.1", job["port"]), _CONNECT_S)
    bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bare.settimeout(_POLL_S)
    inlet = bench_workers.find_inlet(job)
    inlet.open_stream(_CONNECT_S)

    def hear(payload: Any, arrived: float) -> None:
        head = np.frombuffer(payload, LINK_HEAD, 1)[0]
        heard[int(head["way"])].append((float(head["sent"]), arrived))

    def hear_zeromq() -> None:
        while not stop.is_set():
            try:
                payload = sub.recv()
            except zmq.Again:
                continue
            hear(payload, clock())

    def hear_bare() -> None:
        while not stop.is_set():
            try:
                payload = bare.recv(LINK_BYTES, socket.MSG_WAITALL)
            except TimeoutError:
                continue
            if len(payload) < LINK_BYTES:
                return
            hear(payload, clock())

    def hear_lsl() -> None:
        while not stop.is_set():
            sample, stamp = inlet.pull_sample(_POLL_S)
            if sample is not None:
                heard[LSL].append((stamp, clock()))

    threads = [threading.Thread(target=hear_one) for hear_one in (hear_zeromq, hear_bare, hear_lsl)]
    for thread in threads:
        thread.start()
    desk.say("ready")
    stop.wait()
    for thread in threads:
        thread.join()
    inlet.close_stream()
    bare.close()
    context.destroy(0)
    columns: dict[str, Any] = {str(way): np.array(rows).reshape(-1, 2) for way, rows in heard.items()}
    np.savez(job["result"], **columns)
    desk.say("done")


def near_end(desk: Desk, job: Job) -> None:
    """The sending end: messages at a pace, by ZeroMQ, bare TCP, LSL and bare TCP in turn."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.bind(job["zeromq"])
    listener = socket.create_server(("127.0.0.1", job["port"]))
    listener.settimeout(_CONNECT_S)
    n_values = LINK_BYTES // 4
    info = pylsl.StreamInfo("neuromod-certify", "Certify", n_values, 0.0, pylsl.cf_float32, job["source_id"])
    outlet = pylsl.StreamOutlet(info)
    desk.say("ready")
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    outlet.wait_for_consumers(_CONNECT_S)
    time.sleep(_POLL_S)  # a subscription takes its time, and nobody says when it is there
    payload = np.zeros(LINK_BYTES, np.uint8)
    head, sample = payload[: LINK_HEAD.itemsize].view(LINK_HEAD), [0.0] * n_values
    clock, ways = pylsl.local_clock, (ZEROMQ, BARE, LSL, BARE)
    start, interval = clock(), job["interval_s"]
    for k in range(round(job["seconds"] / interval)):
        ahead = start + k * interval - clock()
        if ahead > 0.0:
            time.sleep(ahead)
        way = ways[k & 3]
        now = clock()
        if way == LSL:
            outlet.push_sample(sample, now)
            continue
        head["way"], head["sent"] = way, now
        data = payload.tobytes()
        if way == ZEROMQ:
            pub.send(data)
        else:
            peer.sendall(data)
    desk.say("done")
    desk.stop.wait()
    peer.close()
    listener.close()
    context.destroy(500)


def sleeper(desk: Desk, job: Job) -> None:
    """The bare loop of ticks: nothing but sleeping until each is due, in compiled code where the host lets it."""
    sleep_until = _compiled_sleep(round(1e9 / _PACED_HZ))
    found: list[tuple[float, NDArray[np.int64]]] = []

    def run() -> None:
        while not desk.stop.is_set():
            late_ns = np.zeros(_TICKS_AT_ONCE, np.int64)
            found.append((pylsl.local_clock(), late_ns))
            sleep_until(late_ns)

    desk.say("ready")
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    due = np.concatenate([start + (1.0 + np.arange(len(late))) / _PACED_HZ for start, late in found])
    np.save(job["result"], np.column_stack((due, np.concatenate([late for _, late in found]) / 1e3)))
    desk.say("done")


def sleeper_words() -> str:
    """Say what the bare loop of ticks sleeps by."""
    return "clock_nanosleep(TIMER_ABSTIME)" if _has_nanosleep() else "time.sleep, since there is no clock_nanosleep"


def _has_nanosleep() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "clock_nanosleep")


def _compiled_sleep(period_ns: int) -> Callable[[NDArray[np.int64]], None]:
    """Return a function that fills an array with how late it woke at each tick, in ns; compiled, and run once."""
    if not _has_nanosleep():

        def plain(late_ns: NDArray[np.int64]) -> None:
            start = time.monotonic_ns()
            for k in range(late_ns.shape[0]):
                due = start + (k + 1) * period_ns
                while (ahead := due - time.monotonic_ns()) > 0:
                    time.sleep(ahead / 1e9)
                late_ns[k] = time.monotonic_ns() - due

        return plain
    import numba

    libc = ctypes.CDLL(None)
    nanosleep, gettime = libc.clock_nanosleep, libc.clock_gettime
    nanosleep.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    gettime.argtypes = [ctypes.c_int, ctypes.c_void_p]
    nanosleep.restype = gettime.restype = ctypes.c_int
    monotonic, absolute = time.CLOCK_MONOTONIC, 1
    second = 1_000_000_000

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
    def compiled(late_ns: Any, until: Any, now: Any) -> None:
        gettime(monotonic, now.ctypes)
        start = now[0] * second + now[1]
        for k in range(late_ns.shape[0]):
            due = start + (k + 1) * period_ns
            until[0], until[1] = due // second, due % second
            nanosleep(monotonic, absolute, until.ctypes, now.ctypes)
            gettime(monotonic, now.ctypes)
            late_ns[k] = now[0] * second + now[1] - due

    until, now = np.zeros(2, np.int64), np.zeros(2, np.int64)
    compiled(np.zeros(1, np.int64), until, now)
    return lambda late_ns: compiled(late_ns, until, now)


def paced(desk: Desk, job: Job) -> None:
    """The daemon with a source in memory that it paces itself: what it makes of ticks of 1 ms."""
    n = round(job["seconds"] * _PACED_HZ)
    values = np.random.default_rng(0).normal(0.0, 1.0, (n, N_CHANNELS))
    source = MemorySource(values, _PACED_HZ, kind="features")
    config = _session(job, "source = {kind = 'lsl', name = 'in memory', content = 'features'}\n")
    run = _Run(config, source)
    desk.say("ready")
    run.until(lambda running: running.has_ended(), job["seconds"] + 60.0)
    run.save(job["result"])
    desk.say("done", **run.notes)


def live(desk: Desk, job: Job) -> None:
    """The daemon on an LSL stream, and what it notes of its own ticks.

    With decoder and gate as in the latency bench, or with the session that the job brings.
    """
    run = _Run(_session(job, job["session"]) if "session" in job else bench_workers.session(job))
    desk.say("ready")
    run.until(lambda _: desk.stop.is_set(), float("inf"))
    run.save(job["result"])
    desk.say("done", **run.notes)


def pulses(desk: Desk, job: Job) -> None:
    """An outlet of noise in blocks, and a pulse in channel 0 at a random place now and then; notes when it was sent."""
    n_channels, rate, chunk = job["n_channels"], job["rate"], job["chunk"]
    info = pylsl.StreamInfo("neuromod-loopback", "EEG", n_channels, rate, pylsl.cf_float32, job["source_id"])
    outlet = pylsl.StreamOutlet(info, max_buffered=10)
    desk.say("ready")
    random = np.random.default_rng(job["seed"])
    noise = random.normal(0.0, job["noise_uv"], (64, chunk, n_channels)).astype(np.float32)
    period, n = chunk / rate, round(job["seconds"] * rate / chunk)
    waits = random.integers(job["least_blocks"], job["most_blocks"], n)
    at = set((round(job["settle_s"] / period) + np.cumsum(waits)).tolist())
    clock = pylsl.local_clock
    outlet.wait_for_consumers(_CONNECT_S)
    start = clock()
    sent = []
    for k in range(n):
        block = noise[k & 63]
        if k in at:
            place = int(random.integers(0, chunk - 1))
            block = block.copy()
            block[place : place + 2, 0] += job["pulse_uv"] * np.array([1.0, -0.6], np.float32)
        ahead = start + k * period - clock()
        if ahead > 0.0:
            time.sleep(ahead)
        now = clock()
        outlet.push_chunk(block, now)
        if k in at:
            sent.append(now)
    np.save(job["result"], np.array(sent, np.float64))
    desk.say("done")
    desk.stop.wait()


class _Run:
    """A daemon of this process, and the records of its ticks."""

    def __init__(self, config: SessionConfig, source: MemorySource | None = None) -> None:
        from neuromod.bridge.service import Daemon

        self._parts: list[NDArray[Any]] = []
        self._daemon = Daemon(config, source=source, on_ticks=self._keep)
        self._daemon.__enter__()
        self.notes: dict[str, Any] = {}

    def _keep(self, ticks: NDArray[Any]) -> None:
        columns = ("tick", "sample", "t_sample", "t_arrival", "t_tick", "flags")
        kept = np.empty(len(ticks), [(name, ticks.dtype[name]) for name in columns])
        for name in columns:
            kept[name] = ticks[name]
        self._parts.append(kept)

    def until(self, ended: Callable[[Any], bool], longest_s: float) -> None:
        """Let it run."""
        give_up = time.monotonic() + longest_s
        try:
            while not ended(self._daemon) and time.monotonic() < give_up:
                if self._daemon.stopped.wait(0.02):
                    break
            self._daemon.collector.turn()
            health = self._daemon.collector.health()
        finally:
            self._daemon.__exit__(None, None, None)
        self.notes = {
            "counters": {name: count for name, count in health["counters"].items() if count},
            "stimulation": health["stimulation"],
        }

    def save(self, path: str) -> None:
        """Keep the ticks at which the network moved."""
        if not self._parts:
            raise RuntimeError("the daemon had no tick")
        ticks = np.concatenate(self._parts)
        np.save(path, ticks[(ticks["flags"] & Flag.FILLER) == 0])


def _session(job: Job, text: str) -> SessionConfig:
    addresses = "".join(f"{name} = '{job[name]}'\n" for name in ("output", "control", "ingest"))
    return parse(f"{text}\n[sockets]\n{addresses}")


def peer(desk: Desk, job: Job) -> None:
    """The far end of an actuator: what a program behind `neuromod actuate zmq` hears, and when."""
    import msgpack

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    messages, answers = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    messages.rcvtimeo = 100
    messages.connect(job["messages"])
    answers.connect(job["answers"])
    desk.say("ready")
    heard: list[tuple[float, float, float, float]] = []
    clock = pylsl.local_clock
    armed = False
    while not desk.stop.is_set():
        try:
            topic, payload = messages.recv_multipart()
        except zmq.Again:
            continue
        now = clock()
        body = msgpack.unpackb(payload)
        if topic == b"ping":
            answers.send_multipart([b"pong", msgpack.packb({"n": body["n"]})])
        elif topic in (b"arm", b"disarm"):
            armed = topic == b"arm"
        elif topic == wire.TOPIC_COMMAND and armed:
            value = float(np.frombuffer(body["values"], "<f4")[0])
            heard.append((now, value, body["tick"], body["t_tick"]))
    np.save(job["result"], np.array(heard, np.float64).reshape(-1, 4))
    context.destroy(0)
    desk.say("done", heard=len(heard))


JOBS: dict[str, Callable[[Desk, Job], None]] = {
    "far_end": far_end,
    "near_end": near_end,
    "sleeper": sleeper,
    "paced": paced,
    "daemon": live,
    "pulses": pulses,
    "peer": peer,
} | {role: bench_workers.ROLES[role] for role in ("send", "subscribe", "bare", "poll")}

SEATS = ("send", "subscribe", "daemon", "bare", "poll")
"""Processes; each does one job after another, of any kind, so that few have to be started."""


def work(desk: Desk, job: Job) -> None:
    """Do the job that ``job["do"]`` names, or that of the seat."""
    JOBS[job.get("do", sys.argv[1])](desk, job)


if __name__ == "__main__":
    bench_workers.main(sys.argv[1], work, bench_workers.warm_daemon if sys.argv[1] == "daemon" else lambda: None)
