"""Accuracy on small generated recordings, held-out time, beside spikeinterface's matching with the same templates.

A regression test: `tests/bench/bench_sorting.py` measures whole arrays over many seeds.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bench.sorting_peers import measure
from bench.sorting_runs import bundle_from_truth, delays_ms, run_held_out
from bench.sorting_truth import Scenario, Truth

pytestmark = pytest.mark.slow

UTAH = Scenario("utah", 1, n_channels=24, n_units=15, n_background=50, train_s=10.0, test_s=8.0)
PROBE = Scenario("neuropixels", 1, n_channels=48, n_units=24, n_background=50, train_s=10.0, test_s=6.0)


@pytest.mark.parametrize(
    ("scenario", "peer", "below", "least"),
    [
        pytest.param(UTAH, "tdc-peeler, z-scored", 0.01, 0.96, id="utah", marks=pytest.mark.long),
        pytest.param(PROBE, "wobble, whitened", 0.02, 0.97, id="probe"),
    ],
)
def test_units_are_found_as_well_as_by_the_best_peer(
    tmp_path: Path, scenario: Scenario, peer: str, below: float, least: float
) -> None:
    truth = Truth(scenario)
    signal = truth.cached(tmp_path)

    found, reached = run_held_out(bundle_from_truth(truth, signal), truth, signal)
    theirs = np.array(measure(scenario, tmp_path, [peer])[peer]["accuracy"])

    # within what is asked of whole arrays, plus the standard error of so few units
    error = (reached.accuracy - theirs).std(ddof=1) / len(theirs) ** 0.5
    assert reached.accuracy.mean() > theirs.mean() - below - error
    assert reached.accuracy.mean() > least  # what it reached when this was written, less a point
    assert np.percentile(delays_ms(found, truth), 99) <= 2.5  # of recorded time: no clock is read


@pytest.mark.long
def test_a_unit_that_fades_by_a_third_is_kept(tmp_path: Path) -> None:
    still, fading = UTAH, dataclasses.replace(UTAH, slow="fade", test_s=20.0)
    truth = Truth(still)
    bundle = bundle_from_truth(truth, truth.cached(tmp_path))
    faded = Truth(fading)

    base = run_held_out(bundle, truth, truth.cached(tmp_path))[1].accuracy.mean()
    reached = run_held_out(bundle, faded, faded.cached(tmp_path))[1].accuracy.mean()

    assert reached > base - 0.03
