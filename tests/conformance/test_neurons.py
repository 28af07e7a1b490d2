"""What every neuron model keeps, whoever wrote it: a model in the catalogue has these tests."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.neurons import any_parameters, bounds, neuron_like, starts_at_rest, strange_neuron
from naive.network import NaiveNetwork
from neuromod.engine import tick as kernels
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.models.model import Model
from neuromod.engine.modulators import MODULATORS
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
NONE = LearningConfig(rule="none")
LONGEST_MS = 4.0 if JIT_ENABLED else 1.0
AT_REST = [(m, preset) for m in MODELS for preset in (None, *m.presets) if starts_at_rest(m, preset)]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def crowd(model: Model, seed: int) -> NetworkConfig:
    """Every channel another neuron of the model, with strong weights of both signs; one in five is a strange one."""
    rng = np.random.default_rng(seed)
    names = [None, *model.presets]
    presets = itertools.cycle(names[int(k)] for k in rng.permutation(len(names)))
    return NetworkConfig(
        seed=seed,
        channels={
            i: neuron_like(model, next(presets), rng) if (i + seed) % 5 else strange_neuron(model, rng)
            for i in (*range(14), 15)
        },
        weights=RandomWeightsConfig(low_mv=-5, high_mv=8, from_coincidence_mv=4, to_interneuron_mv=8),
        inhibition=InhibitionConfig(strength_mv=rng.uniform(0, 20), duration_ms=rng.uniform(0, 10)),
        learning=NONE,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dt_ms", "n_ticks"), [(1.0, 120), (0.17, 250)])
@every_model
def test_a_compiled_network_equals_its_naive_twin(model: Model, dt_ms: float, n_ticks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = crowd(model, seed)
    network = SpikingNetwork(config, dt_ms=dt_ms)
    twin = NaiveNetwork(config, network.weights, dt_ms)
    potentials, total = np.empty(16, dtype=np.float32), np.zeros(16, dtype=int)
    stimuli = rng.normal(1, 2, (n_ticks if JIT_ENABLED else n_ticks // 3, 16)).astype(np.float32)
    stimuli[rng.random(stimuli.shape) < 0.003] = 1000
    for now in stimuli:
        if rng.random() < 0.1:
            index, level = int(rng.integers(4)), np.float32(rng.uniform(-1, 4))
            kernels.set_modulator(network.state, index, level)
            twin.set_modulator(MODULATORS[index], level)
        mask, expected = kernels.tick(network.state, now), twin.tick(now)
        kernels.membrane(network.state, potentials)
        assert [mask >> i & 1 == 1 for i in range(16)] == expected
        assert potentials.tolist() == twin.membrane()
        total += expected
    assert not JIT_ENABLED or (total > 2).sum() >= 8, (
        "most neurons must have fired again and again, or little was compared"
    )


@functools.cache
def network_of(name: str) -> SpikingNetwork:
    return SpikingNetwork(NetworkConfig(sensory=ChannelConfig(model=name), weights=NO_WEIGHTS, learning=NONE))


def often_at_the_ends(limit: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([-limit, 0.0, limit]) | st.floats(-limit, limit), min_size=1, max_size=5)


@every_model
@settings(deadline=None, max_examples=200 if JIT_ENABLED else 15)
@given(
    data=st.data(),
    kicks_mv=often_at_the_ends(1.6e6),  # sixteen spikes, with the greatest weight and the greatest gain
    step_ms=st.sampled_from([1e-4, 0.1, 1.0, LONGEST_MS]) | st.floats(1e-4, LONGEST_MS),
    cortisol=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_nothing_that_is_allowed_takes_a_variable_beyond_its_bounds(
    model: Model, data: st.DataObject, kicks_mv: list[float], step_ms: float, cortisol: float
) -> None:
    parameters = data.draw(any_parameters(model))
    drives = data.draw(often_at_the_ends(model.input_limit))
    network = network_of(model.name)
    network.reset()
    block = network.state[0]
    block["parameters"][: len(parameters), :14] = np.array(list(parameters.values()))[:, np.newaxis]
    own = block["variables"][: len(model.variables), :14]
    own[:] = np.array(model.start(parameters))[:, np.newaxis]
    block["dt_ms"] = step_ms
    rounded = {name: float(np.float32(value)) for name, value in parameters.items()}
    low, high = np.array(bounds(model, rounded, float(np.float32(1 + 0.3 * cortisol))), dtype=np.float32).T[
        ..., np.newaxis
    ]
    zeros = np.zeros(16, dtype=np.float32)
    for k in range(16 if JIT_ENABLED else 4):
        kernels.set_modulator(network.state, MODULATORS.index("cortisol"), np.float32(cortisol))
        block["bias"][:14] = np.resize(np.roll(drives, k), 14)
        block["weights_mv"][0, :14] = np.resize(np.roll(kicks_mv, k), 14)
        block["arriving"] = k % 4 != 3  # a spike of channel 0, or none
        kernels.tick(network.state, zeros)
        assert np.isfinite(block["derived"]).all()
        assert ((own >= low) & (own <= high)).all()
        assert ((own == 0) | (np.abs(own) >= np.finfo(np.float32).tiny)).all(), "subnormal: slow on many processors"


@every_model
def test_a_network_starts_as_its_model_says(model: Model) -> None:
    rng = np.random.default_rng(len(model.name))
    channels = {i: strange_neuron(model, rng) for i in range(14)}
    network = SpikingNetwork(NetworkConfig(channels=channels))
    for i in range(14):
        expected = np.array(model.start(channels[i].parameters), dtype=np.float32)
        assert network.state[0]["variables"][: len(expected), i].tolist() == expected.tolist()


@pytest.mark.parametrize(("model", "preset"), AT_REST, ids=lambda x: x.name if isinstance(x, Model) else x or "own")
def test_a_neuron_that_starts_at_rest_stays_there_without_drive(model: Model, preset: str | None) -> None:
    neuron = ChannelConfig(model=model.name, preset=preset, gain=0, bias=0)
    network = SpikingNetwork(NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, learning=NONE))
    own = network.state[0]["variables"][: len(model.variables), 0]
    start = own.copy()
    network.run(np.zeros((300 if JIT_ENABLED else 30, 16)))
    # rest is where the equations are balanced to float32, or to the digits of published parameters
    assert own == pytest.approx(start, rel=1e-5, abs=1e-3)


@every_model
def test_a_network_of_neurons_as_they_come_is_silent_and_fires_for_1_and_more_for_2(model: Model) -> None:
    config = NetworkConfig(
        sensory=ChannelConfig(model=model.name), interneuron={"model": model.name}, weights=NO_WEIGHTS, learning=NONE
    )
    n_ticks = 500 if JIT_ENABLED else 60
    silent, one, two = (SpikingNetwork(config).run(np.full((n_ticks, 16), x)).sum(axis=0) for x in (0.0, 1.0, 2.0))
    assert silent.max() == 0
    assert one[:14].min() > 0
    assert (two > one)[:14].all()
