"""A probe that slips is followed, and not where tracking is off."""

import dataclasses

import numpy as np
import pytest
from bench.sorting_runs import estimate_from
from bench.sorting_truth import BLOCK, Scenario, Truth, score
from numpy.typing import NDArray

from neuromod.sorting.bundle import Bundle
from neuromod.sorting.chain import TAKEN
from neuromod.sorting.events import N_EVENTS
from neuromod.sorting.motion import AT, MOST_UM, N_STEPS, STEP_UM
from neuromod.sorting.offline import _push
from neuromod.sorting.online import Sorter

STILL = Scenario("neuropixels", 1, n_channels=40, n_units=18, n_background=30, train_s=8.0, test_s=12.0)
STEP = dataclasses.replace(STILL, slow="step")  # by 20 um at 14 s
MOVED_UM = 20.0


class Recorded:
    """A recording in memory, and what is true of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.truth = Truth(scenario)
        self.signal: NDArray[np.float32] = np.concatenate(list(self.truth.blocks()))


@pytest.fixture(scope="module")
def still() -> Recorded:
    return Recorded(STILL)


@pytest.fixture(scope="module")
def step() -> Recorded:
    return Recorded(STEP)


@pytest.fixture(scope="module")
def bundle(still: Recorded) -> Bundle:
    return estimate_from(still.truth, lambda begin, end: still.signal[begin:end])


def place_um(sorter: Sorter) -> float:
    return float(sorter.state.dense.motion.place[AT] - N_STEPS // 2) * STEP_UM


def found(sorter: Sorter, recorded: Recorded, first_s: int, last_s: int) -> float:
    """Sort some seconds; return the mean accuracy of units in the last two of them."""
    x = np.zeros(sorter.state.last_x.shape[0])
    at, until = first_s * BLOCK, last_s * BLOCK
    offset = at - int(sorter.state.chain.counters[TAKEN])
    samples, units = [], []
    for first in range(at, until, 600):
        _push(sorter.state, recorded.signal[first : min(first + 600, until)], x)
        rows = sorter.state.events.rows[: int(sorter.state.events.counters[N_EVENTS])]
        samples.append(rows["sample"] + offset)
        units.append(rows["unit"].copy())
        sorter.state.events.counters[N_EVENTS] = 0
    events, unit = np.concatenate(samples), np.concatenate(units)
    begin = until - 2 * BLOCK
    late = events >= begin
    reached = score(recorded.truth.part(begin, until), (events[late], unit[late]), STILL.n_units)
    return float(np.mean(reached.accuracy))


def made(bundle: Bundle, *, tracking: bool = True) -> Sorter:
    return Sorter(bundle, engine="dense", tracking=tracking)


def test_a_probe_that_stays_is_left_where_it_is(bundle: Bundle, still: Recorded) -> None:
    sorter = made(bundle)

    assert found(sorter, still, 8, 20) > 0.95
    assert abs(place_um(sorter)) <= STEP_UM


def test_a_step_as_far_as_a_row_of_sites_is_followed_and_undone(
    bundle: Bundle, still: Recorded, step: Recorded
) -> None:
    sorter = made(bundle)

    followed = found(sorter, step, 14, 20)

    assert place_um(sorter) == pytest.approx(MOVED_UM, abs=2 * STEP_UM)
    assert followed > found(made(bundle, tracking=False), step, 14, 20) + 0.2
    found(sorter, still, 8, 20)
    assert abs(place_um(sorter)) <= 2 * STEP_UM


def test_following_is_bounded(bundle: Bundle, still: Recorded) -> None:
    sorter = made(bundle)
    for first in range(8, 18, 2):
        sorter.state.dense.motion.gain[-1] = 1e9
        found(sorter, still, first, first + 2)
        assert abs(place_um(sorter)) <= MOST_UM


def test_a_reset_forgets_where_the_probe_went(bundle: Bundle, step: Recorded) -> None:
    sorter = made(bundle)
    at_first = sorter.state.chain.weight.copy()
    once = found(sorter, step, 14, 18)
    assert not np.array_equal(at_first, sorter.state.chain.weight)

    sorter.reset()

    np.testing.assert_array_equal(at_first, sorter.state.chain.weight)
    assert found(sorter, step, 14, 18) == once


def test_without_tracking_nothing_moves(bundle: Bundle, step: Recorded) -> None:
    sorter = made(bundle, tracking=False)
    weights = sorter.state.chain.weight.copy()

    found(sorter, step, 14, 17)

    np.testing.assert_array_equal(sorter.state.chain.weight, weights)
    np.testing.assert_array_equal(sorter.state.dense.gain, 1.0)
