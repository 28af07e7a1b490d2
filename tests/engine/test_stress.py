"""Cortisol makes every model harder to fire, by drive and by charge alike, and leaves inhibition what it is."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    ModulationConfig,
    NetworkConfig,
)
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.models.model import Model
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

Fires = Callable[[NDArray[np.float64]], NDArray[np.bool_]]

GAIN = 1.5
NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
WINDOW_MS = 40
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)

# AdEx moves V_T away from E_L by the gain; rest and the foot of the exponential, which count too, stay where they are
TOLERANCE = {"adex": 0.06}


def at_rest(model: Model, threshold_gain: float) -> SpikingNetwork:
    """Neurons that do not know of each other, under no drive; a stimulus is a drive."""
    level = NeuroModulators(cortisol=0.5)
    modulation = ModulationConfig(baseline=level, cortisol_threshold=(threshold_gain - 1) / level.cortisol)
    network = SpikingNetwork(
        NetworkConfig(
            sensory=ChannelConfig(model=model.name, gain=1, bias=0),
            weights=NO_WEIGHTS,
            inhibition=InhibitionConfig(strength_mv=0),
            learning=LearningConfig(rule="none"),
            modulation=modulation,
            stimulus_limit=1e5,
        )
    )
    if model.name == "izhikevich":  # the one that does not start at rest
        network.run(np.zeros((300, 16)))
    return network


def least(fires: Fires, greatest: float) -> float:
    """The least of the numbers up to `greatest` that fires, within 1 / 13^4 of those, 14 at a time."""
    low, high = 0.0, greatest
    for _ in range(4):
        tried = np.linspace(low, high, 14)
        fired = fires(tried)
        assert fired[-1]
        first = int(fired.argmax())
        assert first > 0
        low, high = float(tried[first - 1]), float(tried[first])
    return high


def least_charge(model: Model, threshold_gain: float) -> float:
    def fires(charges: NDArray[np.float64]) -> NDArray[np.bool_]:
        network = at_rest(model, threshold_gain)
        network.state[0]["weights_mv"][0, :14] = charges
        network.state[0]["arriving"] = 1
        return np.asarray(network.run(np.zeros((WINDOW_MS, 16)))[:, :14].any(axis=0))

    return least(fires, 60.0)


def least_drive(model: Model, threshold_gain: float) -> float:
    def fires(drives: NDArray[np.float64]) -> NDArray[np.bool_]:
        stimuli = np.zeros((WINDOW_MS, 16))
        stimuli[:, :14] = drives
        return np.asarray(at_rest(model, threshold_gain).run(stimuli)[:, :14].any(axis=0))

    # 120 mV across the passive membrane: whatever the active currents do, that is enough
    return least(fires, 120 * model.input_per_mv(model.complete({})))


@every_model
def test_the_least_charge_that_fires_a_resting_neuron_rises_by_the_threshold_gain(model: Model) -> None:
    tolerance = TOLERANCE.get(model.name, 0.01)
    assert least_charge(model, GAIN) == pytest.approx(GAIN * least_charge(model, 1.0), rel=tolerance)


@every_model
def test_the_least_drive_that_fires_a_resting_neuron_rises_by_the_threshold_gain(model: Model) -> None:
    tolerance = TOLERANCE.get(model.name, 0.01)
    assert least_drive(model, GAIN) == pytest.approx(GAIN * least_drive(model, 1.0), rel=tolerance)


@every_model
def test_what_hyperpolarises_does_the_same_with_cortisol_and_without(model: Model) -> None:
    per_mv = model.input_per_mv(model.complete({}))
    moved = []
    for gain in (1.0, GAIN):
        network = at_rest(model, gain)
        before = network.state[0]["variables"][0, :14].copy()
        network.state[0]["weights_mv"][0, 7:14] = -3.0
        network.state[0]["arriving"] = 1
        stimuli = np.zeros((1, 16))
        stimuli[:, :7] = -10 * per_mv
        network.run(stimuli)
        moved.append(network.state[0]["variables"][0, :14] - before)
    assert (moved[0] < 0).all()
    # the same bits, but for the foot of the exponential of AdEx, less than 1e-4 of a mV here
    assert moved[1] == pytest.approx(moved[0], rel=1e-3 if model.name == "adex" else 0)
