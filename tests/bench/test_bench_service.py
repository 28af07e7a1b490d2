"""The benchmark of the service: it measures what it says, on real processes. How fast they are is not asked here."""

import numpy as np
import pytest
from bench.bench_service import OBSERVED, Bench, memory, ratios, summary

from neuromod.bridge.bench_latency import Stream

SMALL = Stream("4 x 10 kHz, chunks of 1 ms", 4, 10_000.0, 10)


@pytest.mark.compiled_loop
def test_an_observed_daemon_is_recorded_scraped_and_heard_beside_a_subscriber_that_is_stuck() -> None:
    with Bench(SMALL) as bench:
        run = bench.run(OBSERVED, 3.0)
    notes = run.notes

    assert run.sent == 3000
    assert run.loop_us.shape == run.heard_us.shape
    assert 0 < np.median(run.loop_us) < np.median(run.heard_us)
    assert notes["scrapes"]["n"] > 0
    assert notes["scrapes"]["failed"] == 0
    assert notes["stuck_was"] == "stopped"
    assert min(notes["others_heard"]) > 2000
    assert notes["recording"]["is_ok"], notes["recording"]
    assert len(run.memory_mb) >= 3
    assert notes["exit_code"] == 0
    assert summary(run)["loop"]["p50_us"] == np.percentile(run.loop_us, 50)
    told = ratios([run], [run])
    assert told["loop_p50"] == told["heard_p99"] == {"median": 1.0, "least": 1.0, "greatest": 1.0}


def test_the_slope_of_memory_is_that_of_the_second_half_of_the_run() -> None:
    rising_at_first = [100.0 + min(k, 50) for k in range(100)]
    rising_on = [100.0 + k for k in range(100)]

    assert memory(rising_at_first)["slope_mb_per_h"] == pytest.approx(0.0, abs=1e-6)
    assert memory(rising_on)["slope_mb_per_h"] == pytest.approx(3600.0)
