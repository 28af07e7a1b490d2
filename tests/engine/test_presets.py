"""Every model and every preset, alone: silent without stimulus, firing with one, and held back by inhibition."""

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import ChannelConfig, GivenWeightsConfig, LearningConfig, NetworkConfig
from neuromod.engine.layout import INHIBITORY
from neuromod.engine.models.catalogue import MODELS, model_named
from neuromod.engine.network import SpikingNetwork

needs_compilation = pytest.mark.skipif(not JIT_ENABLED, reason="some hundred thousand substeps")

NEURONS = [(model.name, preset) for model in MODELS for preset in (None, *model.presets)]
every_neuron = pytest.mark.parametrize(("name", "preset"), NEURONS, ids=lambda x: x or "own")

# Begins at its reset, from where it fires a burst until u has built up.
BURSTS_AT_THE_ONSET = {("izhikevich", "rebound_burst"): 7}

# Answers fast changes, and is silent under whatever stays.
FIRES_AT_THE_ONSET_ALONE = {("izhikevich", "accommodation")}

SETTLED = 500


def alone(name: str, preset: str | None) -> SpikingNetwork:
    """Neurons that do not know of each other, with the inhibition that an interneuron would bring."""
    return SpikingNetwork(
        NetworkConfig(
            sensory=ChannelConfig(model=name, preset=preset),
            weights=GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16),
            learning=LearningConfig(rule="none"),
        )
    )


def spikes_at(network: SpikingNetwork, stimulus: float, n_ticks: int) -> NDArray[np.bool_]:
    return network.run(np.full((n_ticks, 16), stimulus))[:, 0]


@needs_compilation
@every_neuron
def test_a_neuron_is_silent_without_stimulus_but_for_its_onset(name: str, preset: str | None) -> None:
    # of AdEx, delayed_regular_bursting has no rest: it drifts, and fires after some 180 s
    spikes = spikes_at(alone(name, preset), 0.0, 5000)
    assert spikes[:SETTLED].sum() <= BURSTS_AT_THE_ONSET.get((name, preset or ""), 2)
    assert not spikes[SETTLED:].any()


@needs_compilation
@every_neuron
def test_a_neuron_at_rest_fires_for_a_stimulus_of_1_and_for_one_of_2(name: str, preset: str | None) -> None:
    for stimulus in (1.0, 2.0):
        network = alone(name, preset)
        spikes_at(network, 0.0, SETTLED)
        assert spikes_at(network, stimulus, 200).any()


@needs_compilation
@every_neuron
def test_a_stimulus_of_2_makes_a_neuron_fire_for_as_long_as_it_stays(name: str, preset: str | None) -> None:
    network = alone(name, preset)
    spikes_at(network, 0.0, SETTLED)
    spikes_at(network, 2.0, 1500)
    assert spikes_at(network, 2.0, 1000).any() != ((name, preset) in FIRES_AT_THE_ONSET_ALONE)


@needs_compilation
@every_neuron
def test_inhibition_as_it_is_by_default_holds_back_a_spike_that_was_due_in_4_ms(name: str, preset: str | None) -> None:
    network = alone(name, preset)
    spikes_at(network, 0.0, SETTLED)
    at_onset = network.state.copy()
    times = np.flatnonzero(spikes_at(network, 2.0, 500))
    due = int(times[times >= 100][0]) if times[-1] >= 100 else int(times[-1])
    counts = []
    for inhibited in (False, True):
        network.state[:] = at_onset
        spikes_at(network, 2.0, due - 4)
        network.state[0]["arriving"] = inhibited << INHIBITORY  # as if the interneuron had just fired
        counts.append(int(spikes_at(network, 2.0, 5).sum()))
    assert counts[1] < counts[0]


@every_neuron
def test_a_millivolt_of_inhibition_takes_some_drive(name: str, preset: str | None) -> None:
    model = model_named(name)
    assert model.input_per_mv(model.complete({}, preset)) > 0


def test_no_parameters_of_any_model_turn_inhibition_off_or_round() -> None:
    rng = np.random.default_rng(0)
    for model in MODELS:
        for _ in range(500):
            # ends of the ranges, where the extremes are, as often as their inside
            chosen = {p.name: float(rng.choice([p.low, p.high, rng.uniform(p.low, p.high)])) for p in model.parameters}
            assert model.input_per_mv(chosen) > 0
    fhn = model_named("fitzhugh_nagumo")
    per_mv = fhn.input_per_mv(fhn.complete({"a": 0.0, "b": 1.0}))  # whose slope at rest is 0
    assert per_mv == 1 / 25, "30 mV then take 1.2, of the 0.3 to 1.4 in which a neuron fires"
