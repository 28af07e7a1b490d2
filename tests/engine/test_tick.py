"""The compiled tick against its naive twin, and what it promises whatever it is fed."""

from collections.abc import Callable

import numpy as np
import pytest

from naive.network import NaiveNetwork
from neuromod.engine import tick as kernels
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.modulators import MODULATORS
from neuromod.engine.network import SpikingNetwork

FLOAT32_MAX = np.finfo(np.float32).max


def busy_config(seed: int) -> NetworkConfig:
    """Every channel with its own parameters, strong weights of both signs, modulators that come and go quickly."""
    rng = np.random.default_rng(seed)
    channels = {
        i: ChannelOverride(
            parameters={
                "tau_mem_ms": rng.uniform(3, 40),
                "v_threshold_mv": rng.uniform(8, 20),
                "v_reset_mv": rng.uniform(-5, 2),
                "v_min_mv": rng.uniform(-30, -6),
                "refractory_ms": rng.uniform(0, 5),
            },
            gain=rng.uniform(6, 15),
            bias=rng.uniform(8, 16),
        )
        for i in (*range(14), 15)
    }
    return NetworkConfig(
        seed=seed,
        channels=channels,
        weights=RandomWeightsConfig(low_mv=-3, high_mv=4, from_coincidence_mv=2, to_interneuron_mv=3),
        inhibition=InhibitionConfig(strength_mv=rng.uniform(0, 40), duration_ms=rng.uniform(0, 10)),
        learning=LearningConfig(rule="none"),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dt_ms", [1.0, 0.3])
def test_compiled_tick_equals_naive_tick(seed: int, dt_ms: float) -> None:
    rng = np.random.default_rng(seed)
    network = SpikingNetwork(busy_config(seed), dt_ms=dt_ms)
    twin = NaiveNetwork(network.config, network.weights, dt_ms)
    potentials = np.empty(16, dtype=np.float32)
    total = np.zeros(16, dtype=int)
    stimuli = rng.normal(2, 2, (1500, 16)).astype(np.float32)
    stimuli[rng.random(stimuli.shape) < 0.001] = np.nan
    stimuli[rng.random(stimuli.shape) < 0.001] = np.inf
    stimuli[rng.random(stimuli.shape) < 0.001] = -FLOAT32_MAX
    for now in stimuli:
        if rng.random() < 0.05:
            index, level = int(rng.integers(4)), np.float32(rng.uniform(-1, 4))
            kernels.set_modulator(network.state, index, level)
            twin.set_modulator(MODULATORS[index], level)
        if rng.random() < 0.02:
            amount = np.float32(rng.normal())
            kernels.add_reward(network.state, amount)
            twin.add_reward(amount)
            kernels.add_stress(network.state, amount)
            twin.add_stress(amount)
        mask = kernels.tick(network.state, now)
        expected = twin.tick(now)
        kernels.membrane(network.state, potentials)
        assert [mask >> i & 1 == 1 for i in range(16)] == expected
        assert potentials.tolist() == twin.membrane()
        total += expected
    assert network.state[0]["levels"].tolist() == list(twin.levels.values())
    assert network.state[0]["bad_stimuli"] == twin.bad_stimuli > 0
    assert total.min() > 0, "every channel must have fired, or nothing was compared"


def test_a_stimulus_that_is_not_finite_counts_as_none_and_is_counted() -> None:
    clean, dirty = SpikingNetwork(seed=1), SpikingNetwork(seed=1)
    rng = np.random.default_rng(1)
    for _ in range(500):
        stimuli = rng.normal(1, 1, 16).astype(np.float32)
        stimuli[3] = 0
        expected = kernels.tick(clean.state, stimuli)
        stimuli[3] = rng.choice([np.nan, np.inf, -np.inf])
        assert kernels.tick(dirty.state, stimuli) == expected
    assert dirty.state[0]["bad_stimuli"] == 500
    assert clean.state[0]["bad_stimuli"] == 0


@pytest.mark.parametrize("value", [FLOAT32_MAX, -FLOAT32_MAX, np.finfo(np.float32).tiny, 1e30, -1e30])
def test_no_finite_stimulus_makes_a_potential_infinite(value: float) -> None:
    extreme = ChannelConfig(gain=1000, bias=-1000, parameters={"tau_mem_ms": 0.1, "v_threshold_mv": 1000})
    network = SpikingNetwork(NetworkConfig(sensory=extreme, stimulus_limit=1e6))
    network.run(np.full((50, 16), value, dtype=np.float32))
    assert np.isfinite(network.state[0]["variables"]).all()
    assert np.isfinite(network.state[0]["drive"]).all()


@pytest.mark.parametrize("change", [kernels.add_reward, kernels.add_stress])
def test_an_amount_that_is_not_finite_is_ignored_and_counted(change: Callable[..., None]) -> None:
    network = SpikingNetwork()
    before = network.modulators
    change(network.state, np.float32(np.nan))
    change(network.state, np.float32(np.inf))
    assert network.modulators == before
    assert network.state[0]["bad_levels"] == 2


@pytest.mark.parametrize("index", range(4))
def test_a_level_is_held_to_its_range_and_never_becomes_nan(index: int) -> None:
    network = SpikingNetwork()
    out = np.empty(4, dtype=np.float32)
    for level, expected in ((100, [1, 1, 1, 4]), (-100, [-1, 0, 0, 0.1])):
        kernels.set_modulator(network.state, index, np.float32(level))
        kernels.set_modulator(network.state, index, np.float32(np.nan))
        kernels.levels(network.state, out)
        assert out[index] == np.float32(expected[index])
    assert network.state[0]["bad_levels"] == 2


def test_a_live_parameter_that_is_not_finite_is_ignored_and_counted() -> None:
    network = SpikingNetwork()
    before = network.state[0]["live"].copy()
    kernels.set_parameter(network.state, 0, np.float64(np.nan))
    assert (network.state[0]["live"] == before).all()
    assert network.state[0]["bad_levels"] == 1


def test_learning_is_a_flag_in_the_state() -> None:
    network = SpikingNetwork()
    kernels.set_learning(network.state, False)
    assert network.state[0]["learning"] == 0
    kernels.set_learning(network.state, True)
    assert network.state[0]["learning"] == 1


def test_no_weight_changes_without_dopamine() -> None:
    network = SpikingNetwork(seed=3)
    before = network.weights
    network.run(np.full((1000, 16), 2.0))
    assert (network.weights == before).all()
