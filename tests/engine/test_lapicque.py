"""Lapicque's membrane against its closed form: rate, rheobase, chronaxie, strength-duration curve."""

import math

import numpy as np
import pytest

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
)
from neuromod.engine.models.lapicque import (
    LAPICQUE,
    chronaxie_ms,
    rate_hz,
    rheobase_na,
    tau_ms,
    threshold_current_na,
)
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
NONE = LearningConfig(rule="none")
DEFAULTS = LAPICQUE.complete({})


def lone(bias_na: float, **parameters: float) -> NetworkConfig:
    """Neurons that do not know of each other, under a constant current; a stimulus counts in nA."""
    neuron = ChannelConfig(model="lapicque", gain=1, bias=bias_na, parameters=parameters)
    return NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, inhibition=InhibitionConfig(strength_mv=0), learning=NONE)


def potential(network: SpikingNetwork) -> float:
    return float(network.state[0]["variables"][0, 0])


def test_the_defaults_are_a_membrane_of_20_ms_and_0_15_na() -> None:
    assert tau_ms(DEFAULTS) == pytest.approx(20)
    assert rheobase_na(DEFAULTS) == pytest.approx(0.15)
    assert chronaxie_ms(DEFAULTS) == pytest.approx(20 * math.log(2))
    assert threshold_current_na(DEFAULTS, chronaxie_ms(DEFAULTS)) == pytest.approx(2 * rheobase_na(DEFAULTS))
    assert threshold_current_na(DEFAULTS, 1e6) == pytest.approx(rheobase_na(DEFAULTS))


@pytest.mark.parametrize("current_na", [0.16, 0.3])
def test_constant_current_fires_at_the_analytic_rate(current_na: float) -> None:
    # a tick of 1 us: a spike is late by at most one tick in an interval of at least 13 ms, so 1e-4 needs no luck
    dt_ms = 0.001 if JIT_ENABLED else 0.1
    network = SpikingNetwork(lone(current_na), dt_ms=dt_ms)
    expected_ms = 20 * math.log(current_na / (current_na - 0.15))
    spikes = network.run(np.zeros((round(2.1 * expected_ms / dt_ms), 16), dtype=np.float32))[:, 0]
    first, second = np.flatnonzero(spikes) * dt_ms
    assert second - first == pytest.approx(expected_ms, rel=1e-4, abs=0 if JIT_ENABLED else dt_ms)
    assert rate_hz(DEFAULTS, current_na) == pytest.approx(1000 / expected_ms, rel=1e-12)


@pytest.mark.parametrize("dt_ms", [1.0, 0.5, 0.1])
def test_an_interval_is_the_analytic_one_rounded_up_to_the_tick(dt_ms: float) -> None:
    network = SpikingNetwork(lone(0.217), dt_ms=dt_ms)
    spikes = network.run(np.zeros((5_000, 16), dtype=np.float32))[:, 0]
    assert set(np.diff(np.flatnonzero(spikes))) == {math.ceil(1000 / rate_hz(DEFAULTS, 0.217) / dt_ms)}


@pytest.mark.parametrize(("resistance_mohm", "capacitance_pf"), [(100, 200), (250, 80), (20, 100)])
def test_potential_follows_the_closed_form_whatever_the_step(resistance_mohm: float, capacitance_pf: float) -> None:
    current_na = 10 / resistance_mohm
    tau = resistance_mohm * capacitance_pf / 1000
    for dt_ms in (1.0, 0.1, 0.01):
        network = SpikingNetwork(
            lone(current_na, resistance_mohm=resistance_mohm, capacitance_pf=capacitance_pf), dt_ms=dt_ms
        )
        network.run(np.zeros((round(30 / dt_ms), 16)))
        # 3,000 steps in float32: half a unit in the last place of 10 each, as a random walk, is below 1e-4
        assert potential(network) == pytest.approx(10 * -math.expm1(-30 / tau), rel=1e-5)


@pytest.mark.parametrize(("resistance_mohm", "v_threshold_mv"), [(100, 15), (40, 22)])
def test_the_rheobase_parts_what_fires_in_the_end_from_what_never_does(
    resistance_mohm: float, v_threshold_mv: float
) -> None:
    chosen = {"resistance_mohm": resistance_mohm, "v_threshold_mv": v_threshold_mv}
    rheobase = rheobase_na(LAPICQUE.complete(chosen))
    fired = [SpikingNetwork(lone(rheobase * part, **chosen)).run(np.zeros((1000, 16)))[:, 0] for part in (0.999, 1.001)]
    # at 1.001 the threshold is reached after tau ln 1001: 138 ms for a tau of 20 ms
    assert [spikes.any() for spikes in fired] == [False, True]


@pytest.mark.parametrize("duration_ms", [0.1, 1.0, 13.8, 60.0])
def test_pulses_fire_from_the_strength_duration_curve_on(duration_ms: float) -> None:
    threshold = threshold_current_na(DEFAULTS, duration_ms)
    fired = []
    for part in (0.999, 1.001):
        network = SpikingNetwork(lone(0), dt_ms=0.1)
        pulse = np.zeros((1000, 16))
        pulse[: round(duration_ms / 0.1)] = threshold * part
        fired.append(bool(network.run(pulse)[:, 0].any()))
    assert fired == [False, True]


def test_twice_the_rheobase_needs_one_chronaxie() -> None:
    dt_ms = 0.01
    network = SpikingNetwork(lone(2.0 * rheobase_na(DEFAULTS)), dt_ms=dt_ms)
    spikes = network.run(np.zeros((1500, 16)))[:, 0]
    assert spikes.argmax() + 1 == math.ceil(chronaxie_ms(DEFAULTS) / dt_ms)


def test_it_has_neither_refractory_period_nor_floor() -> None:
    network = SpikingNetwork(lone(0))
    assert network.run(np.full((20, 16), 1000.0))[:, 0].all()
    network.run(np.full((400, 16), -2.0))
    # after 20 time constants: 400 rounded steps towards -200 mV stop within a few units of its last place
    assert potential(network) == pytest.approx(-200, rel=1e-5)


def test_cortisol_raises_the_threshold() -> None:
    stress = NeuroModulators(cortisol=1.0)  # thresholds x 1.3
    for part, fires in ((1.299, False), (1.301, True)):
        network = SpikingNetwork(lone(rheobase_na(DEFAULTS) * part))
        assert network.run(np.zeros((500, 16)), stress)[:, 0].any() == fires


def test_inhibition_takes_the_current_of_its_depolarisation() -> None:
    for resistance_mohm in (50.0, 400.0):
        network = SpikingNetwork(lone(0, resistance_mohm=resistance_mohm))
        assert network.state[0]["inhibited"][0] == np.float32(1 / resistance_mohm)


def test_a_membrane_at_rest_is_at_rest_and_never_subnormal() -> None:
    network = SpikingNetwork(lone(0, resistance_mohm=10, capacitance_pf=100))
    network.step(np.full(16, 1.0))
    assert potential(network) > 5
    for _ in range(200):
        network.step(np.zeros(16))
        v = abs(potential(network))
        assert v == 0 or v > np.finfo(np.float32).tiny
    assert v == 0
