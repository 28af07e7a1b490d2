"""The compiled tick against its naive twin, and what it promises whatever it is fed."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from naive.network import NEURONS, NaiveNetwork
from neuromod.engine import tick as kernels
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    HomeostasisConfig,
    InhibitionConfig,
    LearningConfig,
    ModelName,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.layout import COINCIDENCE, MAX_DELAY_TICKS
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.modulators import MODULATORS
from neuromod.engine.network import SpikingNetwork, initial_weights

QUICK_SCALING = HomeostasisConfig(target_hz=30, tau_rate_ms=200, tau_scaling_ms=500)
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


def mask(rng: np.random.Generator, share: float) -> tuple[tuple[int, ...], ...]:
    """One for about this share of the synapses, from and to every channel but the detector, which takes no weights."""
    ones = rng.random((16, 16)) < share
    ones[:, COINCIDENCE] = False
    return tuple(tuple(map(int, row)) for row in ones)


def compare(config: NetworkConfig, n_ticks: int, dt_ms: float) -> tuple[SpikingNetwork, NDArray[np.int64]]:
    """Play the same ticks, modulators, rewards and switches of learning to a network and its twin.

    Asserts that they agree in every bit of every tick; returns the network as it is then, and the spikes by channel.
    """
    rng = np.random.default_rng(config.seed)
    network = SpikingNetwork(config, dt_ms=dt_ms)
    twin = NaiveNetwork(config, network.weights, dt_ms)
    potentials, total = np.empty(16, dtype=np.float32), np.zeros(16, dtype=int)
    stimuli = rng.normal(2, 2, (n_ticks, 16)).astype(np.float32)
    for bad in (np.nan, np.inf, -FLOAT32_MAX):
        stimuli[rng.random(stimuli.shape) < 0.001] = bad
    block = network.state[0]
    for now in stimuli:
        if rng.random() < 0.05:
            index, level = int(rng.integers(4)), np.float32(rng.uniform(-1, 4))
            kernels.set_modulator(network.state, index, level)
            twin.set_modulator(MODULATORS[index], level)
        if rng.random() < 0.02:
            amount = np.float32(rng.normal())
            for change in ("add_reward", "add_stress", "boost_focus"):
                getattr(kernels, change)(network.state, amount)
                getattr(twin, change)(amount)
        if rng.random() < 0.01:
            twin.learning = not twin.learning
            kernels.set_learning(network.state, twin.learning)
        spikes, expected = kernels.tick(network.state, now), twin.tick(now)
        kernels.membrane(network.state, potentials)
        assert [spikes >> i & 1 == 1 for i in range(16)] == expected
        assert potentials.tolist() == twin.membrane()
        assert (block["weights_mv"] == twin.weights).all()
        assert (block["eligibility_mv"] == twin.plasticity.eligibility).all()
        assert block["pre_trace"].tolist() == twin.plasticity.pre_trace
        assert block["post_trace"].tolist() == twin.plasticity.post_trace
        assert block["rate_hz"].tolist() == twin.plasticity.rates
        total += expected
    assert block["levels"].tolist() == list(twin.levels.values())
    assert block["random"].tolist() == [random.state for random in twin.random]
    assert block["bad_stimuli"] == twin.bad_stimuli > 0
    return network, total


@pytest.mark.parametrize("dt_ms", [1.0, 0.6])
@pytest.mark.parametrize("rule", ["none", "reward", "hebbian"])
def test_compiled_tick_equals_naive_tick(rule: Literal["none", "reward", "hebbian"], dt_ms: float) -> None:
    config = busy_config(28).model_copy(update={"learning": LearningConfig(rule=rule, rate_per_s=50)})
    network, total = compare(config, round(400 / dt_ms), dt_ms)
    assert total.min() > 0, "every channel must have fired, or nothing was compared"
    assert (network.weights != initial_weights(config)).sum() >= (0 if rule == "none" else 100)


@pytest.mark.parametrize("homeostasis", [None, QUICK_SCALING], ids=["", "scaling"])
@pytest.mark.parametrize("bounds", ["hard", "soft"])
@pytest.mark.parametrize("pairing", ["all", "nearest"])
@pytest.mark.parametrize("rule", ["none", "reward", "hebbian"])
def test_compiled_tick_equals_naive_tick_with_delays_noise_masks_and_every_kind_of_plasticity(
    rule: str, pairing: str, bounds: str, homeostasis: HomeostasisConfig | None
) -> None:
    rng = np.random.default_rng([len(rule), len(pairing), len(bounds)])
    learning = {
        "rule": rule,
        "pairing": pairing,
        "bounds": bounds,
        "homeostasis": homeostasis,
        "a_plus_mv": rng.uniform(0, 1),
        "a_minus_mv": rng.uniform(0, 1),
        "tau_plus_ms": rng.uniform(5, 40),
        "tau_minus_ms": rng.uniform(5, 40),
        "tau_eligibility_ms": rng.uniform(1, 300),
        "rate_per_s": rng.uniform(5, 50),
        "w_min_mv": -1.0,  # weights start beyond either bound
        "w_max_mv": 2.0,
        "plastic": mask(rng, 0.5),
    }
    config = busy_config(int(rng.integers(1000))).model_copy(
        update={
            "learning": LearningConfig.model_validate(learning),
            "connected": mask(rng, 0.7),
            "delay_ticks": tuple(rng.choice([0, 0, 1, 5, MAX_DELAY_TICKS], 16).tolist()),
        }
    )
    channels = {i: own.model_copy(update={"noise": rng.uniform(0, 10)}) for i, own in config.channels.items()}
    network, total = compare(config.model_copy(update={"channels": channels}), 300 if JIT_ENABLED else 180, 1.0)
    assert (total > 0).sum() >= 12
    changed = network.weights != initial_weights(config)
    assert changed.any() == (rule != "none" or homeostasis is not None)
    assert not changed[network.state[0]["plastic"] == 0].any()


@pytest.mark.parametrize("seed", range(3))
def test_compiled_tick_equals_naive_tick_with_every_model_at_once(seed: int) -> None:
    channels = {}
    for k, i in enumerate((*range(14), 15)):
        model = MODELS[(k + seed) % len(MODELS)]
        preset = ([None, *model.presets] * 14)[k // len(MODELS) + seed]
        # a parameter of the lif population must not get into a lif channel with a preset of its own
        channels[i] = ChannelOverride.model_validate(
            {"model": model.name, "preset": preset, "gain": model.gain, "bias": model.bias, "noise": 0.1 * model.gain}
        )
    config = NetworkConfig(
        seed=seed,
        channels=channels,
        weights=RandomWeightsConfig(low_mv=-3, high_mv=4, from_coincidence_mv=2, to_interneuron_mv=3),
        learning=LearningConfig(rate_per_s=50),
    )
    network, total = compare(config, 200, 1.0)
    fired = {int(network.state[0]["model"][i]) for i in np.flatnonzero(total)}
    assert fired >= {model.number for model in MODELS}


def test_every_model_has_a_twin_and_a_name_in_the_configuration() -> None:
    assert set(NEURONS) == {model.name for model in MODELS} == set(get_args(ModelName))


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
