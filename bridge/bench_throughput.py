"""How much faster than real time each part of the path is, on one thread and without sockets to other processes."""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.frames import fill_spikes, spikes_frame
from neuromod.bridge.native import ZMQ_DONTWAIT, ZMQ_SEND, c_functions, call_send
from neuromod.bridge.replay import play
from neuromod.engine.compiled import jit
from neuromod.engine.network import SpikingNetwork
from neuromod.sorting.config import FrontEndConfig

RAW_HZ = 30000.0
_WARM_UP_S = 1.0
REPEATS = 5
_GAIN_UV = 0.25
FRAMES = 200_000


def measure(seconds: float, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure everything.

    Parameters
    ----------
    seconds : float
        Length of the raw recording that is replayed; the features are fifty times as long.
    say : callable
        Gets a line before each part.
    """
    say("the whole path from raw signal to spikes, 96 channels")
    path_96 = path_share(96)
    say("the same, 384 channels")
    path_384 = path_share(384)
    with tempfile.TemporaryDirectory(prefix="neuromod-bench-") as name:
        say(f"replay of {seconds:g} s of 96 channels from a file")
        raw = replay_raw(Path(name), 96, seconds)
        say(f"replay of {50 * seconds:g} s of 16 features at 1 kHz from a file")
        features = replay_features(Path(name), 50 * seconds)
    say("one tick, one message")
    return {
        "path_96": path_96,
        "path_384": path_384,
        "replay_raw_96": raw,
        "replay_features_16": features,
        "tick_ns": tick_ns(with_modulators=False),
        "tick_with_modulators_ns": tick_ns(with_modulators=True),
        "frame_ns": frame_ns(with_subscriber=False),
        "frame_with_subscriber_ns": frame_ns(with_subscriber=True),
    }


def path_share(n_channels: int) -> dict[str, float]:
    """Return what the path from samples to tick records takes of one core at 30 kHz, in blocks of 1 ms.

    Returns
    -------
    dict
        best_share, median_share of several seconds of signal; slowest_block_us; all after the warm-up.
    """
    assembly = _assemble(n_channels)
    rng = np.random.default_rng(0)
    samples = rng.normal(0.0, 10.0, (int(RAW_HZ), n_channels)).astype(np.float32)
    records, start = assembly.records(), 0
    shares = []
    for k in range(math.ceil(_WARM_UP_S) + 1 + REPEATS):
        # `consume` works in place: every second gets samples of its own
        fresh, stamps = samples.copy(), (start + np.arange(len(samples))) / RAW_HZ
        start += len(samples)
        begin = time.process_time()
        _consume(assembly, fresh, stamps, records)
        if k > _WARM_UP_S:
            shares.append(time.process_time() - begin)
    slowest_s, block = 0.0, int(RAW_HZ / 1000)
    for at in range(0, len(samples), block):
        chunk, stamps = samples[at : at + block].copy(), (start + at + np.arange(block)) / RAW_HZ
        begin = time.perf_counter()
        assembly.consume(chunk, stamps, 0, records)
        slowest_s = max(slowest_s, time.perf_counter() - begin)
    return {
        "best_share": min(shares),
        "median_share": float(np.median(shares)),
        "slowest_block_us": slowest_s * 1e6,
    }


def _assemble(n_channels: int) -> Assembly:
    names = tuple(f"ch{i + 1}" for i in range(n_channels))
    info = StreamInfo("bench", "signal", n_channels, RAW_HZ, names, ("uV",) * n_channels)
    config = parse('source = {kind = "lsl", name = "bench"}')
    return assemble(config.model_copy(update={"front_end": FrontEndConfig(warmup_s=_WARM_UP_S)}), info)


def _consume(
    assembly: Assembly, samples: NDArray[np.float32], stamps: NDArray[np.float64], records: NDArray[Any]
) -> None:
    done = 0
    while done < len(samples):
        done, _ = assembly.consume(samples, stamps, done, records)


def replay_raw(folder: Path, n_channels: int, seconds: float) -> dict[str, float]:
    """Return how fast a raw binary recording of int16 replays through spikeinterface and the path."""
    path = folder / "raw.bin"
    second = np.random.default_rng(0).normal(0.0, 10.0 / _GAIN_UV, (int(RAW_HZ), n_channels)).astype(np.int16)
    with path.open("wb") as file:
        for _ in range(math.ceil(seconds)):
            file.write(second.tobytes())
    return _replay(
        parse(
            f"source = {{kind = 'recording', path = '{path}', format = 'binary', n_channels = {n_channels}, "
            f"sampling_frequency_hz = {RAW_HZ}, dtype = 'int16', gain_uv = {_GAIN_UV}}}"
        )
    )


def replay_features(folder: Path, seconds: float) -> dict[str, float]:
    """Return how fast a matrix of 16 features at 1 kHz replays."""
    path = folder / "features.npy"
    np.save(path, np.random.default_rng(0).normal(0.0, 10.0, (round(seconds * 1000.0), 16)).astype(np.float32))
    return _replay(parse(f"source = {{kind = 'features', path = '{path}', bin_ms = 1.0}}"))


def _replay(config: SessionConfig) -> dict[str, float]:
    play(config, until_tick=1)  # what is imported and loaded once
    result = play(config)
    return {
        "recording_s": result.stream_s,
        "wall_s": result.wall_s,
        "times_real_time": result.stream_s / result.wall_s,
    }


def tick_ns(*, with_modulators: bool, n: int = 200_000) -> float:
    """Return the time of one tick in a compiled loop, in ns; the best of several."""
    network = SpikingNetwork(seed=0)
    stimuli = np.random.default_rng(0).normal(8.0, 4.0, (n, 16)).astype(np.float32)
    levels = np.tile(np.array([0.5, 0.2, 0.4, 1.0], np.float32), (n, 1)) if with_modulators else None
    network.run(stimuli[:10], None if levels is None else levels[:10])
    return _best_ns(lambda: network.run(stimuli, levels), n)


@jit
def _send_many(functions: Any, socket: int, topic: Any, frame: Any, n: int) -> None:
    for k in range(n):
        fill_spikes(frame, k, k, k, 0.001 * k, 0.001 * k, k & 0xFFFF, 0)
        call_send(functions[ZMQ_SEND], (socket, topic.ctypes.data, np.uint64(topic.shape[0]), np.int32(3)))
        call_send(functions[ZMQ_SEND], (socket, frame.ctypes.data, np.uint64(frame.shape[0]), np.int32(ZMQ_DONTWAIT)))


def frame_ns(*, with_subscriber: bool) -> float | None:
    """Return the time to fill and send a spikes message in a compiled loop, in ns; None without libzmq's address."""
    functions = c_functions()
    if not functions[ZMQ_SEND]:
        return None
    with zmq.Context() as context, context.socket(zmq.PUB) as output, context.socket(zmq.SUB) as subscriber:
        output.bind("inproc://bench" if not with_subscriber else "tcp://127.0.0.1:*")
        if with_subscriber:
            subscriber.subscribe(b"spikes")
            endpoint = output.get(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            subscriber.connect(endpoint.decode().rstrip("\0"))
            while not subscriber.poll(1):  # until the subscription has arrived
                output.send_multipart([b"spikes", b""])
        topic, frame = np.frombuffer(b"spikes", np.uint8), spikes_frame()
        _send_many(functions, output.underlying, topic, frame, 10)
        found = _best_ns(lambda: _send_many(functions, output.underlying, topic, frame, FRAMES), FRAMES)
        output.linger = 0
    return found


def _best_ns(do: Callable[[], Any], n: int) -> float:
    best = math.inf
    for _ in range(REPEATS):
        begin = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - begin)
    return best / n * 1e9
