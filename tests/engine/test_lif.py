"""The leaky integrate-and-fire model against its closed form."""

import math

import numpy as np
import pytest

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    GivenWeightsConfig,
    InhibitionConfig,
    NetworkConfig,
)
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)


def lone(bias: float, **parameters: float) -> NetworkConfig:
    """Neurons that do not know of each other, under a constant drive."""
    neuron = ChannelConfig(gain=1, bias=bias, parameters=parameters)
    return NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, inhibition=InhibitionConfig(strength_mv=0))


def analytic_interval_ms(drive: float, tau: float, threshold: float, reset: float, refractory: float) -> float:
    return refractory + tau * math.log((drive - reset) / (drive - threshold))


@pytest.mark.parametrize("drive_mv", [16.0, 30.0])
@pytest.mark.parametrize("refractory_ms", [0.0, 3.0])
def test_constant_drive_fires_at_the_analytic_rate(drive_mv: float, refractory_ms: float) -> None:
    # a tick of 1 us: a spike is late by at most one tick in an interval of at least 13 ms, so 1e-4 needs no luck
    dt_ms = 0.001 if JIT_ENABLED else 0.1
    network = SpikingNetwork(lone(drive_mv, refractory_ms=refractory_ms, tau_mem_ms=20), dt_ms=dt_ms)
    expected = analytic_interval_ms(drive_mv, 20, 15, 0, refractory_ms)
    spikes = network.run(np.zeros((round(2.1 * expected / dt_ms), 16), dtype=np.float32))[:, 0]
    first, second = np.flatnonzero(spikes) * dt_ms
    assert second - first == pytest.approx(expected, rel=1e-4, abs=0 if JIT_ENABLED else dt_ms)


@pytest.mark.parametrize("dt_ms", [1.0, 0.5, 0.1])
def test_an_interval_is_the_analytic_one_rounded_up_to_the_tick(dt_ms: float) -> None:
    network = SpikingNetwork(lone(21.7, refractory_ms=2, tau_mem_ms=20), dt_ms=dt_ms)
    spikes = network.run(np.zeros((20_000, 16), dtype=np.float32))[:, 0]
    expected = math.ceil(analytic_interval_ms(21.7, 20, 15, 0, 2) / dt_ms)
    assert set(np.diff(np.flatnonzero(spikes))) == {expected}


def test_integration_is_exact_whatever_the_step() -> None:
    potentials = []
    for dt_ms in (1.0, 0.1, 0.001):
        network = SpikingNetwork(lone(10.0, tau_mem_ms=20), dt_ms=dt_ms)
        network.run(np.zeros((round(30 / dt_ms), 16)))
        potentials.append(float(network.state[0]["variables"][0, 0]))
    # 30,000 steps in float32: half a unit in the last place of 10 each, as a random walk, is below 1e-4
    assert potentials == pytest.approx([10 * -math.expm1(-30 / 20)] * 3, rel=1e-5)


@pytest.mark.parametrize(("refractory_ms", "dt_ms", "expected"), [(0, 1, 1), (2, 1, 3), (5, 1, 6), (2, 0.1, 21)])
def test_no_spike_falls_within_the_refractory_period(refractory_ms: float, dt_ms: float, expected: int) -> None:
    # a drive far above threshold reaches it within one tick: what is left is the period itself
    network = SpikingNetwork(lone(0, refractory_ms=refractory_ms, tau_mem_ms=1), dt_ms=dt_ms)
    spikes = network.run(np.full((1000, 16), 1000.0))[:, 0]
    assert set(np.diff(np.flatnonzero(spikes))) == {expected}


def test_the_membrane_stays_at_reset_while_refractory() -> None:
    network = SpikingNetwork(lone(40.0, refractory_ms=4, v_reset_mv=-3))
    while not network.step(np.zeros(16))[0]:
        pass
    for _ in range(4):
        network.step(np.full(16, 50.0))
        assert network.state[0]["variables"][0, 0] == -3
    network.step(np.zeros(16))
    assert network.state[0]["variables"][0, 0] > -3


def test_inhibition_cannot_push_a_membrane_below_its_floor() -> None:
    network = SpikingNetwork(lone(0, v_min_mv=-12))
    network.run(np.full((500, 16), -200.0))
    assert network.state[0]["variables"][0, :14].tolist() == [-12.0] * 14


def test_a_weight_moves_the_membrane_by_itself_one_tick_after_the_spike() -> None:
    weights = np.zeros((16, 16))
    weights[2, 5] = 3.5
    config = NetworkConfig(
        sensory=ChannelConfig(gain=10, bias=0), weights=GivenWeightsConfig(matrix_mv=weights.tolist())
    )
    network = SpikingNetwork(config)
    stimuli = np.zeros(16)
    stimuli[2] = 1000
    assert network.step(stimuli).nonzero()[0].tolist() == [2]
    assert network.state[0]["variables"][0, 5] == 0
    network.step(np.zeros(16))
    assert network.state[0]["variables"][0, 5] == 3.5
    assert network.state[0]["variables"][0, 2] == 0, "row = source, column = target"


def test_a_membrane_at_rest_is_at_rest_and_never_subnormal() -> None:
    network = SpikingNetwork(lone(0, tau_mem_ms=1))
    network.step(np.full(16, 10.0))
    for _ in range(200):
        network.step(np.zeros(16))
        v = abs(network.state[0]["variables"][0, 0])
        assert v == 0 or v > np.finfo(np.float32).tiny
    assert v == 0


def test_every_channel_can_have_its_own_parameters() -> None:
    config = lone(20.0).model_copy(update={"channels": {4: ChannelOverride(parameters={"v_threshold_mv": 19.0})}})
    counts = SpikingNetwork(config).run(np.zeros((5000, 16))).sum(axis=0)
    intervals = (5000 / counts[[3, 4]]).tolist()
    expected = [analytic_interval_ms(20, 20, threshold, 0, 2) for threshold in (15, 19)]
    assert intervals == pytest.approx(expected, abs=1.2)
