"""The benches run, count what they should, and say what their figures depend on; how fast anything is, no test says."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.bridge import bench, bench_latency, bench_throughput
from neuromod.bridge.bench_latency import BARE, BUSY, EZMSG, FEATURES, NEUROMOD, SETTLE_S, Workers, judge

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
        workers.ask("subscribe", {"output": "no address", "result": ""})


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
    assert set(features["systems"]) == {BARE, NEUROMOD, BUSY}
    assert set(raw["systems"]) == {BARE, NEUROMOD}
    for system in features["systems"].values():
        assert system["sent"] == 600
        assert 0.0 < system["p50_us"] <= system["p99_us"] <= system["p999_us"] <= system["max_us"]
    assert features["ratios"][NEUROMOD]["p50"]["median"] > 0.0
    assert EZMSG not in features["ratios"]
    assert report["endurance"]["features"]["sent"] == 400
    assert exit_code == (0 if all(target["met"] for target in report["targets"] if target["must"]) else 1)


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
