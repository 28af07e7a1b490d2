"""The squid axon against the same equations solved to high accuracy."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    GivenWeightsConfig,
    InhibitionConfig,
    NetworkConfig,
)
from neuromod.engine.network import SpikingNetwork

Floats = NDArray[np.float64]

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
REST = (0.0, 0.0529325, 0.5961208, 0.3176769)

# the table of the engine's reference: a current step from rest, rate over the second second, at 6.3 C
RATES_HZ = {
    6.2: 0,
    6.3: 52.3,
    6.5: 55.0,
    7.0: 58.3,
    10.0: 68.3,
    15.0: 78.6,
    20.0: 86.5,
    50.0: 117,
    100.0: 147,
    150.0: 168,
    160.0: 0,
}

needs_compilation = pytest.mark.skipif(not JIT_ENABLED, reason="two seconds in substeps of 0.05 ms, interpreted")


def lone(drives: dict[int, float] | float, **parameters: float) -> NetworkConfig:
    """Axons that do not know of each other, each under a constant drive (uA/cm2); one number drives channel 0."""
    drives = drives if isinstance(drives, dict) else {0: drives}
    return with_channels({i: axon(drive, **parameters) for i, drive in drives.items()})


def axon(drive: float, **parameters: float) -> ChannelOverride:
    return ChannelOverride(model="hodgkin_huxley", gain=1, bias=drive, parameters=parameters)


def with_channels(channels: dict[int, ChannelOverride]) -> NetworkConfig:
    return NetworkConfig(
        sensory=ChannelConfig(gain=0, bias=0),
        channels=channels,
        weights=NO_WEIGHTS,
        inhibition=InhibitionConfig(strength_mv=0),
    )


def derivatives(drive: float, phi: float) -> Callable[[float, Floats], list[float]]:
    """The equations of 1952 with the parameters of the standard axon."""

    def linoid(x: float) -> float:
        return x / math.expm1(x) if x else 1.0

    def f(t: float, y: Floats) -> list[float]:
        v, m, h, n = y
        return [
            drive - 120 * m**3 * h * (v - 115) - 36 * n**4 * (v + 12) - 0.3 * (v - 10.6),
            phi * (linoid((25 - v) / 10) * (1 - m) - 4 * math.exp(-v / 18) * m),
            phi * (0.07 * math.exp(-v / 20) * (1 - h) - h / (math.exp((30 - v) / 10) + 1)),
            phi * (0.1 * linoid((10 - v) / 10) * (1 - n) - 0.125 * math.exp(-v / 80) * n),
        ]

    return f


def exact_spikes_ms(drive: float, until_ms: float, phi: float = 1.0) -> Floats:
    def crossing(t: float, y: Floats) -> float:
        return float(y[0] - 20)

    crossing.direction = 1  # type: ignore[attr-defined]
    solution = solve_ivp(
        derivatives(drive, phi), (0, until_ms), REST, method="LSODA", rtol=1e-8, atol=1e-9, events=crossing
    )
    return np.asarray(solution.t_events[0])


def exact_end(drive: float, end_ms: float, start: tuple[float, ...] = REST) -> Floats:
    solution = solve_ivp(derivatives(drive, 1.0), (0, end_ms), start, method="LSODA", rtol=1e-11, atol=1e-12)
    return np.asarray(solution.y[:, -1])


def rate_hz(times_ms: Floats) -> float:
    """Rate by the intervals between the first and the last spike, which the edges of the window do not touch."""
    return float(1000 * (len(times_ms) - 1) / (times_ms[-1] - times_ms[0])) if len(times_ms) > 1 else 0.0


def potential(network: SpikingNetwork, channel: int = 0) -> float:
    return float(network.state[0]["variables"][0, channel])


def test_the_gates_start_at_their_steady_state_at_rest_and_stay_there() -> None:
    network = SpikingNetwork(lone(0.0))
    assert network.state[0]["variables"][:4, 0] == pytest.approx([0, 0.0529, 0.5961, 0.3177], abs=5e-5)
    network.run(np.zeros((200, 16)))
    # e_leak = 10.6 mV is rounded: what it leaves at 0 mV, 0.3 x 0.0011 uA/cm2, over a conductance of about 1 mS/cm2
    assert abs(potential(network)) < 1e-3
    assert network.state[0]["variables"][1:4, 0] == pytest.approx(REST[1:], abs=1e-4)


@needs_compilation
def test_rates_are_those_of_the_reference_for_every_current() -> None:
    network = SpikingNetwork(lone(dict(enumerate(RATES_HZ))))
    spikes = network.run(np.zeros((2000, 16)))[1000:]
    for channel, (drive, expected) in enumerate(RATES_HZ.items()):
        measured = rate_hz(np.flatnonzero(spikes[:, channel]).astype(float))
        assert measured == pytest.approx(expected, abs=1), f"{drive} uA/cm2"


@needs_compilation
def test_the_onset_of_steady_firing_lies_between_6_2_and_6_3() -> None:
    drives = dict(enumerate(np.linspace(6.2, 6.3, 11).round(2).tolist()))
    spikes = SpikingNetwork(lone(drives)).run(np.zeros((3000, 16)))[2000:, :11].sum(axis=0)
    assert spikes[0] == 0
    assert spikes[-1] > 50
    assert (np.diff(spikes > 0) >= 0).all(), "once it fires, it fires for every greater current"


def test_first_spikes_are_those_of_the_exact_solution() -> None:
    spikes = SpikingNetwork(lone(10.0), dt_ms=0.05).run(np.zeros((1000, 16)))[:, 0]
    # a spike is reported at the end of its tick: up to 0.05 ms late; the rest is the error of three periods
    assert np.flatnonzero(spikes) * 0.05 + 0.025 == pytest.approx(exact_spikes_ms(10.0, 50), abs=0.08)


@pytest.mark.parametrize(("drive", "end_ms"), [(3.0, 4.0), (30.0, 1.0), (30.0, 3.0)])
def test_the_error_falls_with_the_square_of_the_substep(drive: float, end_ms: float) -> None:
    # below threshold, on the rise and on the fall of a spike. Substeps are the ticks here; rounding (some 1e-4 mV) is
    # far below the error of the scheme (6e-3 mV at least)
    errors = []
    for dt_ms in (0.05, 0.025, 0.0125):
        network = SpikingNetwork(lone(drive), dt_ms=dt_ms)
        network.run(np.zeros((round(end_ms / dt_ms), 16)))
        errors.append(abs(potential(network) - exact_end(drive, end_ms)[0]))
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert ratios == pytest.approx([4, 4], rel=0.1)


def test_substeps_do_not_depend_on_the_tick() -> None:
    potentials = []
    for dt_ms in (1.0, 0.5, 0.05):
        network = SpikingNetwork(lone(9.0), dt_ms=dt_ms)
        network.run(np.zeros((round(12 / dt_ms), 16)))
        assert network.state[0]["derived"][0, 0] == round(dt_ms / 0.05)
        potentials.append(potential(network))
    # the gates' whole substep and its two halves differ by rounding alone
    assert potentials[1:] == pytest.approx(potentials[:1] * 2, abs=2e-3)


def test_charge_moves_the_membrane_at_the_start_of_the_step() -> None:
    weights = np.zeros((16, 16))
    weights[1, 0] = 9.0
    config = lone({0: 0.0, 1: 200.0}).model_copy(update={"weights": GivenWeightsConfig(matrix_mv=weights.tolist())})
    network = SpikingNetwork(config)
    while not network.step(np.zeros(16))[1]:
        pass
    before = network.state[0]["variables"][:4, 0].copy()
    network.step(np.zeros(16))
    start = tuple(float(x) for x in before + np.array([9.0, 0, 0, 0]))
    # the error of twenty substeps of second order on the foot of a spike
    assert network.state[0]["variables"][:4, 0] == pytest.approx(exact_end(0.0, 1.0, start), rel=5e-3, abs=5e-4)


def test_a_spike_is_a_crossing_of_20_mv_and_its_level_a_parameter() -> None:
    # 2 uA/cm2 swing around some 2 mV: they cross 1 mV, never 20
    config = with_channels({0: axon(2.0), 1: axon(2.0, v_spike_mv=1.0)})
    spikes = SpikingNetwork(config).run(np.zeros((100, 16)))
    assert not spikes[:, 0].any()
    assert spikes[:, 1].any()


@pytest.mark.parametrize("temperature_c", [16.3, 0.0])
def test_temperature_scales_the_rates_of_the_gates(temperature_c: float) -> None:
    phi = 3 ** ((temperature_c - 6.3) / 10)
    network = SpikingNetwork(lone(20.0, temperature_c=temperature_c), dt_ms=0.05)
    spikes = np.flatnonzero(network.run(np.zeros((1600, 16)))[:, 0]).astype(np.float64) * 0.05
    expected = exact_spikes_ms(20.0, 80.0, phi)
    assert len(spikes) == len(expected) > 3
    # 0.05 ms of a tick in some 60 ms, and the scheme's 0.2 %
    assert rate_hz(spikes) == pytest.approx(rate_hz(expected), rel=3e-3)


def test_quicker_gates_get_shorter_substeps() -> None:
    temperatures = (0.0, 6.3, 16.3, 26.3)
    network = SpikingNetwork(with_channels({i: axon(0.0, temperature_c=c) for i, c in enumerate(temperatures)}))
    network.step(np.zeros(16))
    assert network.state[0]["derived"][0, :4].tolist() == [20, 20, 35, 60]


def test_a_channel_does_not_feel_how_fine_the_substeps_of_another_are() -> None:
    alone = SpikingNetwork(lone(10.0))
    together = SpikingNetwork(with_channels({0: axon(10.0), 1: axon(10.0, temperature_c=30.0)}))
    for _ in range(40):
        alone.step(np.zeros(16))
        together.step(np.zeros(16))
        assert potential(alone) == potential(together)
