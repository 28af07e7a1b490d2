"""The benchmark of fixed against floating point measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.bench_fixed import compare, distance, matched, steps
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED


def raster(*spikes: tuple[int, int]) -> NDArray[np.bool_]:
    found = np.zeros((400, 16), dtype=bool)
    for tick, channel in spikes:
        found[tick, channel] = True
    return found


def test_spikes_match_on_their_channel_and_within_so_many_ticks() -> None:
    one, other = raster((10, 3), (20, 4)), raster((10, 3), (22, 4), (20, 5))
    assert [matched(one, other, k) for k in (0, 1, 2)] == [2 / 5, 2 / 5, 4 / 5]
    assert matched(raster(), raster(), 0) == 1.0
    assert matched(raster((0, 0)), raster((399, 0)), 2) == 0.0  # the end is not beside the beginning


def test_distance_tells_counts_weights_and_the_first_difference() -> None:
    one, other = raster(*((k, 0) for k in range(200))), raster(*((k, 0) for k in range(50, 200)))
    weights = np.zeros((16, 16))
    found = distance(one, other, weights + 0.5, weights)
    assert (found["first_difference"], found["within_0"]) == (0, 300 / 350)
    assert found["count_error_max"] == pytest.approx(50 / 150)
    assert found["weight_error_mean_mv"] == found["weight_error_max_mv"] == 0.5
    assert distance(one, one, weights, weights)["first_difference"] is None


@pytest.mark.skipif(not JIT_ENABLED, reason="NUMBA_DISABLE_JIT is set: the runs take minutes when interpreted")
def test_fixed_point_is_nearer_where_nothing_recurs_and_the_weights_stay_near() -> None:
    (run,) = compare("", lambda run: steps(run, 4000), 1, recurrent_gain=0.0)["fixed"]
    assert run["within_2"] > 0.9
    assert run["weight_error_max_mv"] < 0.1


@pytest.mark.skipif(not JIT_ENABLED, reason="NUMBA_DISABLE_JIT is set: the runs take minutes when interpreted")
def test_it_prints_json() -> None:
    script = Path(__file__).with_name("bench_fixed.py")
    command = [sys.executable, str(script), "--json", "--ticks", "2000", "--runs", "1", "--seeds", "0"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=250).stdout)
    assert len(found["cases"]) == 2
    assert found["tick_ns"]["learning"] > 0
