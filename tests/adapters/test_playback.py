"""A recording on the wire: what leaves one process arrives in another, bit for bit, and the process ends as told."""

import ctypes
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conformance.makers import write_xdf
from conformance.sources import read_all
from neuromod.adapters import playback as playback_module
from neuromod.adapters.base import Chunk, Marker, open_source
from neuromod.adapters.config import LslConfig, MarkerConfig, XdfConfig
from neuromod.adapters.lsl import LslMarkers
from neuromod.adapters.memory import MemorySource
from neuromod.adapters.playback import MAX_VALUES_PER_S, Outlet, play
from neuromod.engine.errors import AdapterTimeoutError

# float64 seconds on a clock of days: the sum and the difference are off by a few units in the last place
STAMP_TOLERANCE_S = 1e-9


@contextmanager
def playback(config: dict[str, Any] | str) -> Iterator[subprocess.Popen[str]]:
    text = config if isinstance(config, str) else json.dumps(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "neuromod.adapters.playback", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_another_process_receives_the_same_bits_stamps_names_units_and_markers(tmp_path: Path) -> None:
    stamps = 1000.0 + np.arange(300) / 100.0
    stamps[150:] += 0.4  # a gap
    stamps[200] -= 0.013  # a step back
    path = write_xdf(tmp_path / "session.xdf", stamps=stamps)
    straight = open_source(XdfConfig(path=path))
    expected = read_all(straight)
    expected_markers = straight.markers()
    with playback({"source": {"kind": "xdf", "path": str(path)}, "speed": 4.0, "chunk_ms": 5.0}) as process:
        ready = read_line(process)
        assert ready["ready"] is True
        markers = LslMarkers(MarkerConfig(source_id=ready["markers_source_id"]))
        markers.open()
        live = open_source(LslConfig(source_id=ready["source_id"]))
        info = live.info
        got = read_all(live, 50, enough=300)
        got_markers = markers.markers()  # before the sender ends: what is queued dies with it
        done = read_line(process)
        live.close()
        markers.close()
        assert process.wait(60) == 0
    np.testing.assert_array_equal(got.samples.view(np.uint32), expected.samples.view(np.uint32))
    np.testing.assert_allclose(got.stamps, done["t0"] + expected.stamps / 4.0, rtol=0, atol=STAMP_TOLERANCE_S)
    assert info.channel_names == straight.info.channel_names == ("left", "right")
    assert info.units == ("uV", "uV")
    assert info.stream_type == "EEG"
    assert info.sampling_frequency == 400.0
    assert [(m.name, m.value) for m in got_markers] == [(m.name, m.value) for m in expected_markers] == [("go", None)]
    assert got_markers[0].t == pytest.approx(done["t0"] + expected_markers[0].t / 4.0, abs=STAMP_TOLERANCE_S)
    assert done["n_samples"] == 300
    assert done["was_stopped"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("listening", [True, False])
def test_a_signal_ends_it_at_once_without_a_traceback(tmp_path: Path, number: int, listening: bool) -> None:
    path = write_xdf(tmp_path / "session.xdf", n=12_000)  # two minutes
    with playback({"source": {"kind": "xdf", "path": str(path)}}) as process:
        ready = read_line(process)
        live = open_source(LslConfig(source_id=ready["source_id"])) if listening else None
        if live:
            live.read(1, 2.0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60.0)
        if live:
            live.close()
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"source": {"kind": "xdf", "path": "/nowhere/at.xdf"}}, "no such file"),
        ({"source": {"kind": "xdf", "path": "x.xdf", "speed": 2}}, "speed"),
        ("{not json", "JSON"),
        ("/nowhere/config.json", "/nowhere/config.json"),
    ],
)
def test_what_cannot_be_played_is_one_message_and_exit_code_2(config: Any, word: str) -> None:
    with playback(config) as process:
        out, errors = process.communicate(timeout=60.0)
    assert process.returncode == 2
    assert out == ""
    assert word in errors
    assert "Traceback" not in errors


def collect(source: MemorySource, listen: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any, Outlet]:
    """Play in a thread, and read all of it here."""
    ready = threading.Event()
    result: dict[str, Any] = {}

    def on_ready(outlet: Outlet) -> None:
        result["outlet"] = outlet
        ready.set()

    def run() -> None:
        result["played"] = play(source, on_ready=on_ready, drain_timeout_s=5.0, **options)

    source.open()
    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20.0)
    live = open_source(LslConfig(source_id=result["outlet"].source_id, **(listen or {})))
    assert live.info.is_regular == source.info.is_regular
    got = read_all(live, 5000, enough=source.info.n_samples)
    live.close()
    thread.join(60.0)
    return got, result["played"], result["outlet"]


def test_at_maximal_speed_nothing_is_lost() -> None:
    samples = np.random.default_rng(5).normal(size=(60_000, 32)).astype(np.float32)
    source = MemorySource(samples, 30_000.0, name="fast")
    got, played, outlet = collect(source, speed="max")
    np.testing.assert_array_equal(got.samples, samples)
    assert played.n_samples == 60_000
    assert outlet.speed == pytest.approx(min(MAX_VALUES_PER_S / (30_000 * 32), 200e3 / 30_000))


def test_a_clock_set_back_keeps_its_stamps_and_the_pace_goes_on() -> None:
    stamps = np.concatenate([500.0 + np.arange(50) / 100.0, np.arange(50) / 100.0]) - 500.0
    source = MemorySource(np.ones((100, 1)), 100.0, stamps=stamps, name="reset")
    got, played, _ = collect(source, speed=2.0)
    assert len(got) == 100
    np.testing.assert_allclose(got.stamps, played.t0 + stamps / 2.0, rtol=0, atol=STAMP_TOLERANCE_S)


def test_a_source_of_irregular_rate_is_an_outlet_of_irregular_rate() -> None:
    stamps = np.cumsum(np.random.default_rng(6).uniform(0.001, 0.003, 100))
    samples = np.arange(300, dtype=np.float32).reshape(100, 3)
    source = MemorySource(samples, 500.0, stamps=stamps, kind="features", is_regular=False, name="uneven")
    got, played, outlet = collect(source, {"content": "features", "bin_ms": 2.0})
    assert outlet.nominal_rate == 0.0
    np.testing.assert_array_equal(got.samples, samples)
    np.testing.assert_allclose(got.stamps, played.t0 + stamps, rtol=0, atol=STAMP_TOLERANCE_S)


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 1000.0

    def local_clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    ("step_s", "waited_s"),
    [(0.7, 0.7), (6.0, 6.0), (599.0, 599.0), (601.0, 0.01), (86400.0, 0.01), (-0.5, 0.0), (-1.1, 0.01), (-500.0, 0.01)],
)
def test_a_pause_is_played_at_its_length_and_a_clock_that_was_set_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, speed: float, step_s: float, waited_s: float
) -> None:
    clock, sent = Clock(), []

    def push(outlet: int, samples: int, n_values: int, stamps: int, pushthrough: int) -> None:
        assert n_values == 1
        sent.append((clock.now, ctypes.c_double.from_address(stamps).value))

    monkeypatch.setattr(playback_module, "pylsl", clock)
    monkeypatch.setattr(playback_module, "time", clock)
    monkeypatch.setattr(playback_module, "_push_chunk", push)
    stamps = np.array([0.0, 0.01, 0.02, 0.02 + step_s, 0.03 + step_s, 0.04 + step_s])
    player = playback_module._Player(SimpleNamespace(obj=0), None, speed, clock.now, lambda: False)
    player.play(Chunk(np.ones((2, 1), np.float32), stamps[:2]), 1, 0.01)
    player.play(Chunk(np.ones((4, 1), np.float32), stamps[2:]), 1, 0.01)
    left, stamped = np.array(sent).T
    np.testing.assert_allclose(stamped, player.t0 + stamps / speed, rtol=0, atol=STAMP_TOLERANCE_S)
    due = np.array([0.0, 0.01, 0.02, 0.02 + waited_s, 0.03 + waited_s, 0.04 + waited_s])
    if -1.0 < step_s < 0:  # jitter: sent at once, and nothing moves until the stamps have caught up
        due[3:] = 0.02
    np.testing.assert_allclose(left, player.t0 + due / speed, rtol=0, atol=1e-6)


def test_markers_after_the_last_sample_are_sent_too() -> None:
    source = MemorySource(np.ones((30, 1)), 1000.0, markers=[Marker(0.01, "in"), Marker(5.0, "after")], name="tail")
    _, played, _ = collect(source)
    assert played.n_markers == 2


def test_it_waits_for_a_listener_only_so_long() -> None:
    source = MemorySource(np.ones((30, 1)), 1000.0, name="lonely")
    source.open()
    with pytest.raises(AdapterTimeoutError, match="nobody listened"):
        play(source, consumer_timeout_s=0.1)


def test_a_stop_before_anybody_listens_sends_nothing() -> None:
    source = MemorySource(np.ones((30, 1)), 1000.0, name="stopped")
    source.open()
    played = play(source, stop=lambda: True)
    assert played.was_stopped
    assert played.n_samples == 0
