"""Common references and the streaming noise estimate, each against numpy."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromod.sorting import noise, reference

finite = st.floats(-1e6, 1e6, width=32)


def padded(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    n = -(-len(values) // reference.LANES) * reference.LANES
    y, weight = np.zeros(n), np.zeros(n)
    y[: len(values)] = values
    weight[: len(values)] = 1.0
    return y, weight


@settings(max_examples=60, deadline=None)
@given(values=st.lists(finite | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), data=st.data())
def test_median_is_exact_over_the_channels_that_take_part(values: list[float], data: st.DataObject) -> None:
    y, weight = padded(values)
    left_out = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - 1))
    weight[list(left_out)] = 0.0

    found = reference.median(y, weight, np.zeros_like(y), len(values))

    assert found == np.median(y[weight > 0])


@settings(max_examples=40, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=40), data=st.data())
def test_select_finds_every_rank(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values) - 1))

    assert reference.select(np.array(values), len(values), k) == sorted(values)[k]


@pytest.mark.parametrize("order", [1, -1])
def test_median_of_sorted_and_reversed_channels_is_exact(order: int) -> None:
    y, weight = padded(list(range(301))[::order])

    assert reference.median(y, weight, np.zeros_like(y), 301) == 150.0


def test_of_no_channels_every_reference_is_zero() -> None:
    y, weight = padded([1.0, 2.0])
    weight[:] = 0.0

    assert reference.mean(y, weight, 0.0) == 0.0
    assert reference.median(y, weight, np.zeros_like(y), 2) == 0.0
    assert reference.clipped_mean(y, weight, 0.0, np.full_like(y, np.inf), np.zeros_like(y)) == 0.0


@settings(max_examples=40, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=40), limit=st.floats(0.0, 1e3))
def test_clipped_mean_is_the_mean_of_what_stays_near_the_mean(values: list[float], limit: float) -> None:
    y, weight = padded(values)
    x = np.array(values, dtype=np.float64)

    found = reference.clipped_mean(y, weight, 1.0 / len(values), np.full_like(y, limit), np.zeros_like(y))

    expected = x.mean() + np.clip(x - x.mean(), -limit, limit).mean()
    # 40 additions of numbers up to 1e6, each rounded to 1e-16 of the sum
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-8, 1e-3, 7.0, 1e5]))
def test_median_of_the_histogram_is_that_of_the_values_within_a_bin(seed: int, scale: float) -> None:
    values = np.abs(np.random.default_rng(seed).normal(0.0, scale, 501)).astype(np.float32)
    counts = np.zeros((1, noise.BINS), dtype=np.int32)

    for value in values:
        noise.add_magnitudes(counts, np.array([value]).view(np.int32), 1)

    # a bin is 3.1 % wide at most; interpolation does better with more values
    assert noise.median_of(counts[0], noise.bin_edges()) == pytest.approx(np.median(values), rel=0.032)


def test_noise_of_a_long_stretch_is_exact_to_a_thousandth() -> None:
    edges = noise.bin_edges()
    counts = np.histogram(np.abs(np.random.default_rng(1).normal(0.0, 9.0, 400_000)), edges)[0].astype(np.int32)

    sigma = noise.median_of(counts, edges) / noise.MAD_OF_UNIT_NOISE

    # the sampling error of the median of 400,000 values is 0.18 %, two thirds of the time
    assert sigma == pytest.approx(9.0, rel=0.005)


@pytest.mark.parametrize("value, index", [(0.0, 0), (1e-20, 0), (2.0**-40, 0), (1.0, 40 * 32), (1e30, noise.BINS - 1)])
def test_magnitudes_fall_into_the_bin_whose_edges_hold_them(value: float, index: int) -> None:
    counts = np.zeros((1, noise.BINS), dtype=np.int32)

    noise.add_magnitudes(counts, np.array([value], dtype=np.float32).view(np.int32), 1)

    assert np.flatnonzero(counts[0]).tolist() == [index]


def test_noise_of_silence_is_zero() -> None:
    counts = np.zeros(noise.BINS, dtype=np.int32)
    assert noise.median_of(counts, noise.bin_edges()) == 0.0
    counts[0] = 10
    assert noise.median_of(counts, noise.bin_edges()) == 0.0
