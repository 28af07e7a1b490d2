"""What `neuromod certify` measures, each beside a bare loop in turn, so that both see the same machine.

Every figure is in microseconds, from stamps of the one monotonic clock that all processes of a host share.
"""

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import bench_latency, wire
from neuromod.bridge.bench_latency import SETTLE_S, BenchError, free_addresses
from neuromod.bridge.certify_workers import BARE, LSL, SEATS, ZEROMQ, sleeper_words
from neuromod.bridge.wire import Flag

RATE_HZ = 30_000.0
"""Of the raw signal of the grid."""

_MODULE = "neuromod.bridge.certify_workers"
_DRAIN_S = 0.3
_PULSE_WINDOW_S = 0.02
_ACTUATE_S = 60.0
_LOOPBACK = """
source = {{kind = "lsl", source_id = "{source_id}", content = "signal"}}
[front_end]
features = ["crossings"]
reference = "none"
warmup_s = 0.5
crossings = {{threshold_noise = -8.0}}
[encoder]
kind = "groups"
groups = [[0]]
combine = "sum"
normalisation = "none"
smoothing_ms = 0
offset = 0.0
gain = 1000.0
clip = [0.0, 1000.0]
[decoder]
kind = "linear"
bin_ms = 1.0
weights = [[[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]]
"""


class CertifyError(BenchError):
    """A measurement could not be made."""


@dataclass(frozen=True)
class Settings:
    """How long and how often to measure.

    Attributes
    ----------
    rounds : int
        Repetitions of each measure; five at the least tell a change from noise.
    link_s, paced_s, grid_s, loopback_s : float
        Length of one repetition, in seconds.
    channels : tuple of int
        Counts of channels of the grid, at 30 kHz.
    ticks_ms : tuple of float
        Lengths of ticks of the grid: whole numbers of samples, so that a push is a tick.
    loopback : bool
        Whether to send pulses through the whole path.
    """

    rounds: int = 5
    link_s: float = 2.0
    paced_s: float = 2.0
    grid_s: float = 1.0
    loopback_s: float = 3.0
    channels: tuple[int, ...] = (16, 96, 384)
    ticks_ms: tuple[float, ...] = (1.0, 0.5, 0.2)
    loopback: bool = False

    @property
    def n_steps(self) -> int:
        """Repetitions in all."""
        return self.rounds * (2 + len(self.channels) * len(self.ticks_ms) + int(self.loopback))


@dataclass
class Pair:
    """Repetitions of a measure, and of its bare loop: arrays of us."""

    ours: list[NDArray[np.float64]] = field(default_factory=list)
    bare: list[NDArray[np.float64]] = field(default_factory=list)


@dataclass
class Point:
    """A rate of ticks and a count of channels.

    Attributes
    ----------
    ends : list of ndarray of float64
        From the push of the newest sample to the end of the tick, us, for each repetition.
    computed : list of ndarray of float64
        From when the loop had the samples to the end of the tick, us.
    answers : Pair
        From the push to a subscriber of commands, and of the bare loop's messages.
    n_missing : int
        Blocks that were sent and gave no tick.
    """

    channels: int
    tick_ms: float
    ends: list[NDArray[np.float64]] = field(default_factory=list)
    computed: list[NDArray[np.float64]] = field(default_factory=list)
    answers: Pair = field(default_factory=Pair)
    n_missing: int = 0


@dataclass
class Loopback:
    """Pulses from an outlet to the far end of an actuator, us; and the parts of their way.

    Attributes
    ----------
    total : list of ndarray of float64
        From the push of the pulse to the command at the far end, for each repetition.
    parts : dict of str to list of ndarray
        The same pulses; the parts of one pulse add up to its total.
    n_sent, n_answered, n_unasked : int
        Pulses, those that were answered, and answers without a pulse.
    """

    total: list[NDArray[np.float64]] = field(default_factory=list)
    parts: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    n_sent: int = 0
    n_answered: int = 0
    n_unasked: int = 0


@dataclass
class Measured:
    """All that was measured."""

    settings: Settings
    zeromq: Pair
    lsl: Pair
    ticks: Pair
    ended: Pair
    points: list[Point]
    loopback: Loopback | None
    bare_ticks: str


class Crew(bench_latency.Crew):
    """The processes, each of which does any job."""

    def __init__(self) -> None:
        super().__init__(SEATS, _MODULE)

    def give(self, seat: str, do: str, job: dict[str, Any], result: str = "") -> None:
        """Give a worker a job, and wait until it is ready for it; its result goes into a file of that name."""
        self.ask(seat, job | {"do": do, "result": self.path(result)})

    def path(self, name: str) -> str:
        """Return where a worker leaves its result."""
        return str(self.folder / name)


def measure(settings: Settings, step: Callable[[str], None] = lambda what: None) -> Measured:
    """Measure everything.

    Parameters
    ----------
    settings : Settings
        What, how long and how often.
    step : callable
        Given a line before each of ``settings.n_steps`` repetitions.

    Raises
    ------
    BenchError
        A process failed, or nothing arrived.
    """
    zeromq, lsl, ticks, ended = Pair(), Pair(), Pair(), Pair()
    with Crew() as crew:
        for k in range(settings.rounds):
            step(f"ZeroMQ and LSL beside bare TCP, {k + 1} of {settings.rounds}")
            found = links(crew, settings.link_s)
            zeromq.ours.append(found[ZEROMQ])
            lsl.ours.append(found[LSL])
            for pair in (zeromq, lsl):
                pair.bare.append(found[BARE])
        for k in range(settings.rounds):
            step(f"ticks of 1 ms beside a bare loop, {k + 1} of {settings.rounds}")
            begins, ends, bare = paced_ticks(crew, settings.paced_s)
            ticks.ours.append(begins)
            ended.ours.append(ends)
            for pair in (ticks, ended):
                pair.bare.append(bare)
        points = [Point(channels, tick_ms) for channels in settings.channels for tick_ms in settings.ticks_ms]
        for k in range(settings.rounds):
            for point in points if k % 2 == 0 else points[::-1]:
                step(f"{point.channels} channels, ticks of {point.tick_ms:g} ms, {k + 1} of {settings.rounds}")
                run_point(crew, point, settings.grid_s)
        loopback = Loopback() if settings.loopback else None
        if loopback is not None:
            for k in range(settings.rounds):
                step(f"pulses to an actuator, {k + 1} of {settings.rounds}")
                run_loopback(crew, loopback, settings.loopback_s, seed=k)
    return Measured(settings, zeromq, lsl, ticks, ended, points, loopback, sleeper_words())


def links(crew: Crew, seconds: float, interval_s: float = 0.0005) -> dict[int, NDArray[np.float64]]:
    """Return one-way latencies between two processes by `ZEROMQ`, `LSL` and `BARE`, whose messages take turns."""
    address = free_addresses(2)
    job = {
        "zeromq": address[0],
        "port": int(address[1].rpartition(":")[2]),
        "source_id": uuid.uuid4().hex,
        "seconds": seconds,
        "interval_s": interval_s,
    }
    crew.give("send", "near_end", job)
    crew.give("subscribe", "far_end", job, "links.npz")
    crew.hear("send", seconds + 60.0)
    crew.finish("subscribe")
    crew.stop("send")
    found = {}
    with np.load(crew.path("links.npz")) as heard:
        for way, name in ((ZEROMQ, "ZeroMQ"), (LSL, "LSL"), (BARE, "TCP")):
            sent, arrived = heard[str(way)].T
            found[way] = _settled((arrived - sent) * 1e6, sent, name)
    return found


def paced_ticks(crew: Crew, seconds: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return how late ticks of 1 ms began and ended in the daemon's loop, and how late a bare loop woke.

    Both run at the same time: either sleeps for most of it, and what holds the machine up meets both.
    """
    output, control, ingest = free_addresses(3)
    crew.give("bare", "sleeper", {}, "bare.npy")
    job = {"seconds": seconds, "output": output, "control": control, "ingest": ingest}
    crew.give("daemon", "paced", job, "paced.npy")
    crew.hear("daemon", seconds + 120.0)
    crew.finish("bare")
    ticks, bare = np.load(crew.path("paced.npy")), np.load(crew.path("bare.npy"))
    due = ticks["t_sample"]
    together = (bare[:, 0] >= due[0]) & (bare[:, 0] <= due[-1])
    return (
        _settled((ticks["t_arrival"] - due) * 1e6, due, "the loop's ticks"),
        _settled((ticks["t_tick"] - due) * 1e6, due, "the loop's ticks"),
        _settled(bare[together, 1], bare[together, 0], "the bare loop"),
    )


def run_point(crew: Crew, point: Point, seconds: float) -> None:
    """Measure a point once more: a bare loop on a stream, and the daemon with decoder and gate on the same stream."""
    chunk = round(RATE_HZ * point.tick_ms / 1e3)
    job = {
        "n_channels": point.channels,
        "rate": RATE_HZ,
        "chunk": chunk,
        "block_ms": point.tick_ms,
        "busy": False,
        "closed_loop": True,
        "record": "",
        "seconds": seconds,
        "result": crew.path("ticks.npy"),
    }
    stamps, messages, _ = crew.send_through("bare", job, wire.TOPIC_SPIKES, is_polled=False)
    bare = bench_latency.judge(stamps, messages["t_sample"], messages["arrival"], chunk / RATE_HZ, {})
    point.answers.bare.append(bare.latencies_us)

    stamps, messages, _ = crew.send_through("daemon", job, wire.TOPIC_COMMAND, is_polled=True)
    ticks = np.load(crew.path("ticks.npy"))
    block = _blocks_of(ticks, stamps, chunk)
    known = (block >= 0) & (block < len(stamps))
    ticks, block = ticks[known], block[known]
    pushed = stamps[block]
    point.ends.append(_settled((ticks["t_tick"] - pushed) * 1e6, pushed, "ticks"))
    point.computed.append(_settled((ticks["t_tick"] - ticks["t_arrival"]) * 1e6, pushed, "ticks"))
    expected = np.flatnonzero(stamps >= stamps[0] + SETTLE_S)
    point.n_missing += len(np.setdiff1d(expected, block))
    order = np.argsort(ticks["tick"])
    place = np.clip(np.searchsorted(ticks["tick"][order], messages["tick"]), 0, len(ticks) - 1)
    same = ticks["tick"][order][place] == messages["tick"]
    sent = pushed[order][place][same]
    point.answers.ours.append(_settled((messages["arrival"][same] - sent) * 1e6, sent, "commands"))


def _blocks_of(ticks: NDArray[Any], stamps: NDArray[np.float64], chunk: int) -> NDArray[np.int64]:
    """Return which push brought the newest sample of each tick.

    By counting samples; where the count begins is known by the stamp of the first tick, and of each one before which
    the loop dropped samples. Other stamps are no help: the loop lays them on a grid, which follows a sender that was
    held up only slowly.
    """
    begins = (ticks["flags"] & Flag.DISCONTINUITY) != 0
    begins[0] = True
    at = ticks["t_sample"][begins]
    at += stamps[np.abs(stamps - at[0]).argmin()] - at[0]  # the count begins with a push: the rest is clock correction
    push = np.clip(np.searchsorted(stamps, at - 0.5 / RATE_HZ), 0, len(stamps) - 1)
    still_to_come = np.clip(np.rint((stamps[push] - at) * RATE_HZ).astype(np.int64), 0, chunk - 1)
    counted = ticks["sample"].astype(np.int64)
    shift = (push + 1) * chunk - still_to_come - counted[begins]
    block: NDArray[np.int64] = (counted + shift[np.cumsum(begins) - 1] - 1) // chunk
    return block


def run_loopback(crew: Crew, found: Loopback, seconds: float, seed: int) -> None:
    """Send pulses into the daemon's stream, and hear at the far end of an actuator what it makes of them."""
    output, control, ingest, messages, answers = free_addresses(5)
    source_id = uuid.uuid4().hex
    chunk = round(RATE_HZ / 1e3)
    settle_s = 1.5
    job = {
        "n_channels": 16, "rate": RATE_HZ, "chunk": chunk, "source_id": source_id, "seconds": seconds + settle_s,
        "settle_s": settle_s, "seed": seed, "noise_uv": 5.0, "pulse_uv": -400.0, "least_blocks": 25, "most_blocks": 50,
        "output": output, "control": control, "ingest": ingest, "messages": messages, "answers": answers,
        "session": _LOOPBACK.format(source_id=source_id),
    }  # fmt: skip
    crew.give("subscribe", "peer", job, "heard.npy")
    with _actuator(crew, job):
        crew.give("send", "pulses", job, "pulses.npy")
        crew.give("daemon", "daemon", job, "ticks.npy")
        crew.hear("send", seconds + 120.0)
        time.sleep(_DRAIN_S)
        crew.finish("daemon")
        crew.stop("send")
    crew.finish("subscribe")
    sent, ticks, heard = (np.load(crew.path(name)) for name in ("pulses.npy", "ticks.npy", "heard.npy"))
    _judge_loopback(found, sent, ticks, heard[heard[:, 1] > 0.5])


def _judge_loopback(
    found: Loopback, sent: NDArray[np.float64], ticks: NDArray[Any], heard: NDArray[np.float64]
) -> None:
    """Lay each pulse beside the first answer within `_PULSE_WINDOW_S`."""
    if not len(sent):
        raise CertifyError("no pulse was sent: the time is too short for one")
    first = np.searchsorted(heard[:, 0], sent)
    inside = np.clip(first, 0, max(len(heard) - 1, 0))
    is_answered = (first < len(heard)) & (heard[inside, 0] - sent < _PULSE_WINDOW_S) if len(heard) else sent < 0.0
    answers, pushed = heard[inside[is_answered]] if len(heard) else heard, sent[is_answered]
    found.n_sent += len(sent)
    found.n_answered += len(answers)
    found.n_unasked += len(heard) - len(answers)
    if not len(answers):
        raise CertifyError("no pulse came out at the actuator; see 'neuromod doctor', and whether the host was busy")
    at = np.clip(np.searchsorted(ticks["tick"], answers[:, 2].astype(np.uint64)), 0, len(ticks) - 1)
    arrived, ended = ticks["t_arrival"][at], answers[:, 3]
    found.total.append((answers[:, 0] - pushed) * 1e6)
    for name, part in (
        ("pulse pushed -> the loop has the samples of the tick that answers", arrived - pushed),
        ("front end, network and decoder", ended - arrived),
        ("command sent -> actuator process -> far end", answers[:, 0] - ended),
    ):
        found.parts.setdefault(name, []).append(part * 1e6)


@contextlib.contextmanager
def _actuator(crew: Crew, job: dict[str, Any]) -> Any:
    """`neuromod actuate zmq`, between the daemon's output and the far end."""
    options = [f"messages='{job['messages']}'", f"answers='{job['answers']}'", 'wants=["command"]']
    command = [sys.executable, "-m", "neuromod.bridge.cli", "actuate", "zmq"]
    for option in options:
        command += ["--option", option]
    command += ["--output", job["output"], "--ingest", job["ingest"]]
    process = subprocess.Popen(command, env=crew.environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()  # that it is ready, or why not
        if process.poll() is not None or "stops" not in said:
            raise CertifyError(f"the actuator process did not start: {said.strip() or 'it said nothing'}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_ACTUATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _settled(us: NDArray[np.float64], when: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Leave out the first moments, in which caches are filled and connections are made."""
    found: NDArray[np.float64] = us[when >= when[0] + SETTLE_S] if len(when) else us
    if not len(found):
        raise CertifyError(f"{what}: nothing arrived after the first {SETTLE_S:g} s; measure for longer")
    return found
