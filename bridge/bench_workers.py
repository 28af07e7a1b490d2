"""The programs that the latency bench starts, each in a process of its own.

`python -m neuromod.bridge.bench_workers ROLE` starts one. It imports and warms what it needs, says so, and then does
one job after another: a line of JSON on stdin is a job, the line "stop" ends it, and the end of stdin ends the worker.
Answers are lines of JSON on stdout. Waiting workers cost no time, so that the runs of different systems can follow
each other at once.
"""

import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import zmq

from neuromod.bridge import realtime, wire
from neuromod.bridge.config import RuntimeConfig, SessionConfig, parse
from neuromod.engine.layout import N_CHANNELS, N_SENSORY

_SPIN_S = 80e-6  # the sender wakes so much early and spins to the exact time
_WAIT_S = 0.2
_CONSUMER_S = 20.0
_CONNECT_S = 10.0
_POLLS_PER_S = 50.0
_ARMED_S = 600.0
_MEMORY_EVERY_S = 0.25
_BIN_MS = 1.0  # a step of the decoder in every tick: the dearest there is

_MEASURING = ("send", "subscribe")

# front end and encoder are warm before anything is counted: a gate that waits for them lets nothing pass
_CLOSED_LOOP = """
[encoder]
warmup_s = 0.1
[decoder]
kind = "kalman"
bin_ms = {bin_ms}
states = ["px", "py", "vx", "vy"]
outputs = ["vx", "vy"]
state_mean = [0.0, 0.0, 0.0, 0.0]
count_mean = {count_mean}
transition = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.9, 0.0], [0.0, 0.0, 0.0, 0.9]]
transition_noise = {transition_noise}
observation = {observation}
observation_noise = {observation_noise}
initial_covariance = {transition_noise}
events = [
    {{channel = 0, refractory_ms = 20.0}}, {{channel = 4, refractory_ms = 20.0}}, {{channel = 8, refractory_ms = 20.0}},
    {{output = 0, above = 0.0, refractory_ms = 20.0}},
]
[stimulation]
mode = "dry_run"
heartbeat_ms = 0.0
[[stimulation.electrodes]]
name = "e1"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
[[stimulation.electrodes]]
name = "e2"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
[[stimulation.programs]]
name = "pulse"
electrode = "e1"
amplitude_ua = -10.0
phase_us = 200.0
[[stimulation.programs]]
name = "train"
electrode = "e2"
amplitude_ua = -5.0
phase_us = 200.0
pulses = 3
period_us = 5000.0
[[stimulation.triggers]]
event = 0
program = "pulse"
[[stimulation.triggers]]
event = 1
program = "pulse"
[[stimulation.triggers]]
event = 2
program = "pulse"
[[stimulation.triggers]]
event = 3
program = "train"
"""

Job = dict[str, Any]


class Desk:
    """Stdin and stdout of a worker."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                self.stop.set()
            else:
                self.stop.clear()
                self._jobs.put(json.loads(line))
        os._exit(0)  # the bench is gone, whatever we are in the middle of

    def next_job(self) -> Job:
        """Wait for a job."""
        return self._jobs.get()

    @staticmethod
    def say(word: str, **more: Any) -> None:
        """Write one line."""
        print(json.dumps({"said": word} | more), flush=True)


def send(desk: Desk, job: Job) -> None:
    """LSL outlet: chunks of `chunk` samples, each pushed exactly when it is due and stamped at that moment."""
    n_channels, rate, chunk = job["n_channels"], job["rate"], job["chunk"]
    info = pylsl.StreamInfo("neuromod-bench", "Bench", n_channels, rate, pylsl.cf_float32, job["source_id"])
    outlet = pylsl.StreamOutlet(info, max_buffered=10)
    desk.say("ready")
    period, n = chunk / rate, round(job["seconds"] * rate / chunk)
    data = np.random.default_rng(0).normal(0.0, 10.0, (64, chunk, n_channels)).astype(np.float32)
    single = [row[0].tolist() for row in data]
    stamps = np.zeros(n)
    clock, sleep = pylsl.local_clock, time.sleep
    deadline = clock() + job.get("consumer_s", _CONSUMER_S)
    while not outlet.have_consumers() and clock() < deadline:
        sleep(0.001)
    start = clock()
    now = start
    for k in range(n):
        # after a delay of the scheduler, chunks follow each other no closer than they can be told apart by their stamps
        due = max(start + k * period, now + 0.5 * period)
        ahead = due - clock() - _SPIN_S
        if ahead > 0.0:
            sleep(ahead)
        while (now := clock()) < due:
            pass
        stamps[k] = now
        if chunk == 1:
            outlet.push_sample(single[k & 63], now)
        else:
            outlet.push_chunk(data[k & 63], now)
    np.save(job["result"], stamps)
    late_us = (stamps - start - period * np.arange(n)) * 1e6
    desk.say("done", late_p99_us=float(np.percentile(late_us, 99)))
    desk.stop.wait()


def subscribe(desk: Desk, job: Job) -> None:
    """ZeroMQ subscriber to one topic: notes when each message arrived, and which time it bears."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.rcvhwm = 0
    socket.rcvtimeo = 100
    socket.reconnect_ivl = 10  # it is here before the publisher is
    socket.subscribe(job["topic"].encode())
    socket.connect(job["output"])
    desk.say("ready")
    arrivals: list[float] = []
    payloads: list[bytes] = []
    clock, stop = pylsl.local_clock, desk.stop
    while not stop.is_set():
        try:
            _, payload = socket.recv_multipart()
        except zmq.Again:
            continue
        arrivals.append(clock())
        payloads.append(payload)
    socket.close(0)
    context.term()
    read = [_read(payload) for payload in payloads]
    live = [i for i, (_, flags, _) in enumerate(read) if not flags & wire.Flag.FILLER]
    inhibited = sum(bool(read[i][1] & wire.Flag.INHIBITED) for i in live)
    np.savez(
        job["result"],
        t_sample=[read[i][0] for i in live],
        tick=[read[i][2] for i in live],
        arrival=[arrivals[i] for i in live],
    )
    desk.say("done", messages=len(live), fillers=len(read) - len(live), inhibited=inhibited)


def _read(payload: bytes) -> tuple[float, int, int]:
    """Return the time of the sample, the flags and the tick of any message; no flags and -1 where it has none."""
    import msgpack

    body: dict[str, Any] = msgpack.unpackb(payload)
    return body["t_sample"], body.get("flags", 0), body.get("tick", -1)


def bare(desk: Desk, job: Job) -> None:
    """The loop that everybody writes first: pylsl, msgpack, pyzmq, and nothing in between."""
    import msgpack

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.bind(job["output"])
    inlet = find_inlet(job)
    inlet.open_stream(_CONNECT_S)
    desk.say("ready")
    pack, stop, topic = msgpack.packb, desk.stop, wire.TOPIC_SPIKES
    chunk, n = job["chunk"], 0
    buffer = np.zeros((chunk, job["n_channels"]), np.float32)
    while not stop.is_set():
        if chunk == 1:
            _, stamp = inlet.pull_sample(_WAIT_S)
        else:
            _, stamps = inlet.pull_chunk(_WAIT_S, chunk, dest_obj=buffer)
            stamp = stamps[-1] if stamps else None
        if stamp is not None:
            n += 1
            socket.send_multipart([topic, pack({"tick": n, "t_sample": stamp})])
    inlet.close_stream()
    socket.close(0)
    context.term()
    desk.say("done")


def find_inlet(job: Job) -> Any:
    """Return an inlet of the stream that the sender announces."""
    found = pylsl.resolve_byprop("source_id", job["source_id"], 1, _CONNECT_S)
    if not found:
        raise RuntimeError(f"LSL found no stream of this host itself within {_CONNECT_S:g} s; see 'neuromod doctor'")
    inlet = pylsl.StreamInlet(found[0], max_buflen=10, recover=False)
    inlet.time_correction(_CONNECT_S)  # or the first pull would wait for it
    return inlet


def session(job: Job) -> SessionConfig:
    """Return the session that the daemon runs: features of 1 ms, or raw signal through the whole front end.

    With ``job["closed_loop"]`` a decoder and stimulation come on top, with ``job["record"]`` a record of everything in
    that folder. ``job["block_ms"]`` is the length of a block of raw signal, where samples are to be counted.
    """
    content = '"signal"' if job["chunk"] > 1 else '"features"'
    text = f"source = {{kind = 'lsl', source_id = '{job['source_id']}', content = {content}}}\n"
    text += f"[sockets]\noutput = '{job['output']}'\ncontrol = '{job['control']}'\ningest = '{job['ingest']}'\n"
    if job["record"]:
        text += f"[record]\nraw = true\nfolder = {json.dumps(job['record'])}\n"
    if "block_ms" in job:
        # where the sender was held up, nothing is filled in: so that counts of samples are counts of what was pushed
        text += f"[timing]\nblock_ms = {job['block_ms']}\njitter_ms = 1000.0\n"
    if job["closed_loop"]:
        text += _closed_loop(min(_BIN_MS, job.get("block_ms", _BIN_MS))) + (
            "[front_end]\nwarmup_s = 0.1\n" if job["chunk"] > 1 else ""
        )
    return parse(text)


def _closed_loop(bin_ms: float) -> str:
    """Return a Kalman filter of two outputs over all sensory channels, and programs that spikes and outputs trigger."""
    angles = np.linspace(0.0, 2.0 * np.pi, N_SENSORY, endpoint=False)
    observation = np.zeros((N_SENSORY, 4))
    observation[:, 2], observation[:, 3] = 0.05 * np.cos(angles), 0.05 * np.sin(angles)
    return _CLOSED_LOOP.format(
        bin_ms=bin_ms,
        count_mean=[0.02] * N_SENSORY,
        transition_noise=(0.01 * np.eye(4)).tolist(),
        observation=observation.tolist(),
        observation_noise=(0.05 * np.eye(N_SENSORY)).tolist(),
    )


def daemon(desk: Desk, job: Job) -> None:
    """The daemon, whole: result ring, state, health and control; with `busy`, beside a Python thread without rest."""
    from neuromod.bridge.service import Daemon

    rest = threading.Event()
    if job["busy"]:
        threading.Thread(target=_be_busy, args=(rest,), daemon=True).start()
    memory = [resident_mb()]
    with Daemon(session(job)) as running:
        desk.say("ready")
        while not desk.stop.wait(_MEMORY_EVERY_S):
            memory.append(resident_mb())
        running.collector.turn()
        health = running.collector.health()
    rest.set()
    desk.say(
        "done",
        counters={name: count for name, count in health["counters"].items() if count},
        stimulation=health["stimulation"],
        ingest_latency_us=health["ingest_latency_us"],
        memory_mb=[amount for amount in memory if amount is not None],
        memory_every_s=_MEMORY_EVERY_S,
    )


def resident_mb() -> float | None:
    """Return how much memory this process has in RAM, in MB; None where nothing tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        pass
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.Process().memory_info().rss) / 1e6


def _be_busy(rest: threading.Event) -> None:
    n = 0
    while not rest.is_set():
        for _ in range(1000):
            n += 1


def poll(desk: Desk, job: Job) -> None:
    """A control client that asks for the status all the time.

    Where there is a loop to be closed it is the operator, too: it arms stimulation, again where a fault ended that, and
    sends inputs that bear the time of their sending. They change nothing, and take the way of those that do.
    """
    from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError

    asked, unanswered, armed, refused, sent = 0, 0, 0, 0, 0
    windows: list[dict[str, float]] = []
    disarmed_by: list[str] = []
    with Client(control=job["control"], output=job["output"], ingest=job["ingest"], timeout_s=1.0) as client:
        health = client.subscribe("health") if job["closed_loop"] else None
        while not desk.stop.wait(1.0 / _POLLS_PER_S):
            asked += 1
            try:
                status = client.request("status")["health"]
                if health is None:
                    continue
                windows += _heard_latencies(health)
                if status["tick"] < 1 or status["state"] != "streaming":
                    continue
                if status["stimulation"]["state"] == "disarmed":
                    if because := status["stimulation"]["disarmed_by"]:
                        disarmed_by.append(because)
                    client.arm(_ARMED_S)
                    armed += 1
                client.send_reward(0.0, t=pylsl.local_clock())
                client.send_stimuli(np.zeros(N_CHANNELS), t=pylsl.local_clock())
                sent += 2
            except ClientTimeoutError:
                unanswered += 1
            except RefusedError:
                refused += 1
        if health is not None:
            windows += _heard_latencies(health)
    told: Job = {"asked": asked, "unanswered": unanswered}
    if job["closed_loop"]:
        told |= {"armed": armed, "refused": refused, "disarmed_by": disarmed_by, "inputs": sent, "windows": windows}
    desk.say("done", **told)


def _heard_latencies(health: Any) -> list[dict[str, float]]:
    """Return the latencies of inputs that the `health` messages tell of which have come since the last time."""
    from neuromod.bridge.client import ClientTimeoutError

    found = []
    try:
        while True:
            found.append(health.receive(0.0).body["ingest_latency_us"])
    except ClientTimeoutError:
        return [window for window in found if window]


def ezmsg(desk: Desk, job: Job) -> None:
    """The same path as two units of ezmsg in one process: an LSL source and a ZeroMQ sink."""
    import asyncio

    import ezmsg.core as ez
    import msgpack

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.bind(job["output"])
    inlet = find_inlet(job)
    inlet.open_stream(_CONNECT_S)

    class Source(ez.Unit):  # type: ignore[misc,unused-ignore]
        OUTPUT = ez.OutputStream(float)

        @ez.publisher(OUTPUT)  # type: ignore[untyped-decorator,unused-ignore]
        async def pull(self) -> Any:
            desk.say("ready")
            loop = asyncio.get_running_loop()
            while not desk.stop.is_set():
                # the blocking pull in a thread: quicker than asking again and again, which costs a millisecond
                _, stamp = await loop.run_in_executor(None, inlet.pull_sample, _WAIT_S)
                if stamp is not None:
                    yield self.OUTPUT, stamp
            raise ez.NormalTermination

    class Sink(ez.Unit):  # type: ignore[misc,unused-ignore]
        INPUT = ez.InputStream(float)

        @ez.subscriber(INPUT)  # type: ignore[untyped-decorator,unused-ignore]
        async def publish(self, stamp: float) -> None:
            socket.send_multipart([wire.TOPIC_SPIKES, msgpack.packb({"t_sample": stamp})])

    class System(ez.Collection):  # type: ignore[misc,unused-ignore]
        SOURCE = Source()
        SINK = Sink()

        def network(self) -> Any:
            return ((self.SOURCE.OUTPUT, self.SINK.INPUT),)

    ez.run(SYSTEM=System(), force_single_process=True)
    inlet.close_stream()
    socket.close(0)
    context.term()
    desk.say("done")


def warm_daemon() -> None:
    """Compile what a daemon needs before its first session."""
    from neuromod.bridge import service  # noqa: F401
    from neuromod.bridge.warm import warm_loop

    warm_loop()


def _warm_ezmsg() -> None:
    import ezmsg.core  # noqa: F401


ROLES: dict[str, Callable[[Desk, Job], None]] = {
    "send": send,
    "subscribe": subscribe,
    "bare": bare,
    "daemon": daemon,
    "poll": poll,
    "ezmsg": ezmsg,
}
_WARM: dict[str, Callable[[], None]] = {"daemon": warm_daemon, "ezmsg": _warm_ezmsg}


def main(role: str, do: Callable[[Desk, Job], None], warm: Callable[[], None] = lambda: None) -> None:
    """Do the jobs of a role: `warm` once, and `do` for each of them."""
    # the same timer slack for every system and for those who measure; before any library starts its threads
    realtime.prepare_process(RuntimeConfig())
    warm()
    desk = Desk()
    desk.say("here")
    while True:
        job = desk.next_job()
        # a collection of the whole heap in the sender or the subscriber would be measured as latency of the system
        gc.collect()
        if role in _MEASURING:
            gc.disable()
        try:
            do(desk, job)
        except Exception as error:
            desk.say("failed", error=f"{type(error).__name__}: {error}")
        gc.enable()


if __name__ == "__main__":
    main(sys.argv[1], ROLES[sys.argv[1]], _WARM.get(sys.argv[1], lambda: None))
