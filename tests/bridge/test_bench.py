"""The benches run, count what they should, and say what their figures depend on; how fast anything is, no test says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.adapters.decoder_config import KalmanConfig
from neuromod.bridge import bench, bench_latency, bench_recording, bench_throughput, bench_workers
from neuromod.bridge.bench_latency import (
    BARE,
    BUSY,
    CLOSED_LOOP,
    EZMSG,
    FEATURES,
    NEUROMOD,
    RECORDING,
    SETTLE_S,
    BenchError,
    Workers,
    choose,
    judge,
)
from neuromod.bridge.config import parse
from neuromod.bridge.pipeline import TICK
from neuromod.bridge.recorder import sample_dtype
from neuromod.bridge.session import start_session

pytestmark = pytest.mark.compiled_loop


def test_messages_are_laid_beside_the_stamps_they_bear() -> None:
    stamps: NDArray[np.float64] = 100.0 + 0.001 * np.arange(1000, dtype=np.float64)
    heard = np.delete(np.arange(1000), [500, 501])

    run = judge(stamps, stamps[heard] + 20e-6, stamps[heard] + 150e-6, 0.001, {})

    assert (run.sent, run.lost) == (1000, 2)
    assert run.first_us == pytest.approx(150.0, abs=0.1)  # of the sender's own stamp, whatever the clock correction
    assert len(run.latencies_us) == 998 - round(SETTLE_S / 0.001)
    np.testing.assert_allclose(run.latencies_us, 150.0, atol=0.1)


def test_no_message_at_all_is_an_error() -> None:
    with pytest.raises(bench_latency.BenchError, match="no message"):
        judge(np.arange(10.0), np.empty(0), np.empty(0), 1.0, {})


def test_a_worker_that_fails_says_why() -> None:
    with Workers([]) as workers, pytest.raises(bench_latency.BenchError, match="the subscribe failed"):
        workers.ask("subscribe", {"output": "no address", "topic": "spikes", "result": ""})


def test_what_is_asked_for_runs_beside_what_it_is_held_against() -> None:
    assert choose(["closed-loop"]) == [BARE, CLOSED_LOOP]
    assert choose(["recording", "closed-loop"]) == [BARE, NEUROMOD, CLOSED_LOOP, RECORDING]
    assert choose(["busy"]) == [BARE, NEUROMOD, BUSY]
    assert choose([]) == [BARE, NEUROMOD, BUSY, EZMSG, CLOSED_LOOP, RECORDING]
    with pytest.raises(BenchError, match="no system 'beauty'; choose from neuromod, busy"):
        choose(["recording", "beauty"])


@pytest.mark.parametrize("chunk", [1, 30])
def test_the_closed_loop_has_decoder_and_gate_and_needs_no_stimulator(chunk: int) -> None:
    job = {"chunk": chunk, "source_id": "bench", "closed_loop": True, "record": ""}
    job |= {name: f"tcp://127.0.0.1:{5600 + k}" for k, name in enumerate(("output", "control", "ingest"))}

    session = bench_workers.session(job)

    assert isinstance(session.decoder, KalmanConfig)
    assert session.decoder.n_outputs == 2
    assert session.stimulation is not None
    assert (session.stimulation.mode, session.stimulation.heartbeat_ms) == ("dry_run", 0.0)
    assert {trigger.event for trigger in session.stimulation.triggers} == set(range(len(session.decoder.events)))
    assert session.record is None


def record_ticks(folder: Path, n: int) -> None:
    """Record a session of `n` ticks of one sample each."""
    ticks, samples = np.zeros(n, TICK), np.zeros(n, sample_dtype(2))
    ticks["tick"] = ticks["record"] = np.arange(n)
    recorder = start_session(
        folder,
        parse('source = {kind = "lsl", source_id = "bench"}'),
        records={"ticks": TICK, "samples": samples.dtype},
        info=StreamInfo("bench", "features", 2, 1000.0, ("a", "b"), ("uV", "uV")),
        block_ms=1.0,
        ticks_per_block=1,
        built_from="",
        local_clock=0.0,
        min_free_bytes=0,
        warn_free_bytes=0,
        warn_free_s=0.001,
    )
    recorder.add("ticks", ticks)
    recorder.add("samples", samples)
    recorder.close("stopped")


def test_a_record_is_held_against_what_was_sent_and_what_was_heard(tmp_path: Path) -> None:
    record_ticks(tmp_path, 100)

    whole = bench_recording.inspect(tmp_path, 100, 100)
    assert (whole["is_ok"], whole["ended"], whole["ticks"]) == (True, "properly", 100)
    assert (whole["ticks_lost"], whole["samples_lost"], whole["others_lost"]) == (0, 0, {})
    # a log that ends too early is whole in itself: only from outside can be seen what it lacks
    short = bench_recording.inspect(tmp_path, 130, 107)
    assert (short["ticks_lost"], short["samples_lost"]) == (7, 30)


def test_a_session_that_was_not_recorded_is_no_good(tmp_path: Path) -> None:
    assert not bench_recording.inspect(tmp_path, 100, 100)["is_ok"]


def test_memory_that_fills_at_the_start_is_flat_and_a_leak_is_not() -> None:
    filling = bench_recording.memory([50.0, 60.0, 90.0, 100.0, *[100.0] * 12], 0.25)
    leaking = bench_recording.memory([50.0, *(100.0 + 0.5 * np.arange(16))], 0.25)

    assert (filling["before_mb"], filling["growth_mb"], filling["most_mb"]) == (50.0, 0.0, 100.0)
    assert leaking["growth_mb"] == pytest.approx(4.0)  # half of the run: 8 times 0.5
    assert bench_recording.memory([], 0.25) == {}


def test_latencies_of_inputs_are_taken_from_every_second_of_every_run() -> None:
    first = {"p50": 100.0, "p99": 300.0, "max": 400.0}
    second = {"p50": 200.0, "p99": 500.0, "max": 900.0}
    third = {"p50": 300.0, "p99": 400.0, "max": 410.0}
    notes = [
        {"poll": {"windows": [first, second]}, "system": {"ingest_latency_us": {}}},
        {"poll": {"windows": []}, "system": {"ingest_latency_us": third}},
    ]

    assert bench.input_latency(notes) == {"p50": 200.0, "p99": 400.0, "max": 900.0}
    assert bench.input_latency([]) == {}


@pytest.mark.slow
def test_latency_bench_reports_every_system_beside_bare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_latency, "has_ezmsg", lambda: False)  # of which a word is said, and no more

    exit_code = bench.latency(json=True, seconds=0.6, rounds=1, endurance_s=0.4)

    printed = capsys.readouterr()
    report: dict[str, Any] = json.loads(printed.out)
    assert "ezmsg is not installed" in printed.err
    assert {"cpu", "kernel", "python", "liblsl", "libzmq", "versions"} <= set(report["host"])
    features, raw = report["streams"]["features"], report["streams"]["raw"]
    assert set(features["systems"]) == {BARE, NEUROMOD, BUSY, CLOSED_LOOP, RECORDING}
    assert set(raw["systems"]) == {BARE, NEUROMOD, CLOSED_LOOP, RECORDING}
    for system in features["systems"].values():
        assert system["sent"] == 600
        assert 0.0 < system["p50_us"] <= system["p99_us"] <= system["p999_us"] <= system["max_us"]
    assert features["ratios"][NEUROMOD]["p50"]["median"] > 0.0
    assert EZMSG not in features["ratios"]
    assert set(report["endurance"]) == {"features", "raw", "recording"}
    assert report["endurance"]["features"]["sent"] == 400
    for stream, n_samples in ((features, 600), (raw, 18_000)):
        assert stream["ratio_recording_to_neuromod"]["p50"]["median"] > 0.0
        recorded = stream["systems"][RECORDING]["runs"][0]["notes"]["recording"]
        assert recorded["ended"] == "properly"
        assert recorded["samples"] + recorded["samples_lost"] == n_samples
        assert recorded["ticks"] > 0
    assert exit_code == (0 if all(target["met"] for target in report["targets"] if target["must"]) else 1)


@pytest.mark.slow
def test_the_closed_loop_is_armed_and_the_gate_has_to_decide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[dict[str, Any]] = []
    measure = bench_latency.measure

    def keep(*args: Any) -> dict[str, Any]:
        bodies.append(measure(*args))
        return bodies[0]

    monkeypatch.setattr(bench_latency, "measure", keep)

    bench.latency(seconds=1.0, rounds=1, only=["closed-loop"])

    printed = capsys.readouterr().out
    assert "p50 to command / bare" in printed
    assert "inputs took effect after" in printed
    assert NEUROMOD not in bodies[0]["streams"]["features"]["systems"]
    assert bodies[0]["endurance"] == {}
    for stream in bodies[0]["streams"].values():
        notes = stream["systems"][CLOSED_LOOP]["runs"][0]["notes"]
        counts = notes["system"]["stimulation"]["counts"]
        assert notes["poll"]["armed"] >= 1
        assert counts["issued"] > 0
        assert counts["delivered"] == 0
        assert bench.input_latency([notes])["p50"] > 0.0


@pytest.mark.slow
def test_throughput_bench_prints_shares_and_multiples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_throughput, "REPEATS", 1)
    monkeypatch.setattr(bench_throughput, "FRAMES", 100)

    assert bench.throughput(json=True, seconds=1.0) == 0

    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {target["name"] for target in report["targets"]} >= {"replay of 96 channels raw"}
    for part in ("path_96", "path_384"):
        assert report[part]["median_share"] > 0.0
    assert report["replay_raw_96"]["recording_s"] == 1.0
    assert report["tick_ns"] > 0.0


def test_tables_show_the_ratio_with_its_spread(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = {"median": 0.91, "least": 0.85, "greatest": 1.02}

    assert bench.spread(ratio) == "0.91 (0.85-1.02)"
    assert FEATURES.period_s == 0.001
