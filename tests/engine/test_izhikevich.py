"""Izhikevich's model against the solution that finds every spike as an event, in float64."""

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    ModulationConfig,
    NetworkConfig,
)
from neuromod.engine.models.izhikevich import IZHIKEVICH
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)

# preset, drive, spikes in the first 1000 ms from v = c, u = b c: the exact row of the project's reference table
COUNTS = [("RS", 10, 23), ("IB", 14, 59), ("CH", 10, 86), ("CH", 20, 171), ("FS", 10, 137), ("LTS", 10, 78)]


def lone(preset: str | None, drive: float, **parameters: float) -> NetworkConfig:
    """Neurons that do not know of each other, under a constant drive."""
    neuron = ChannelConfig(model="izhikevich", preset=preset, gain=1, bias=drive, parameters=parameters)
    return NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, inhibition=InhibitionConfig(strength_mv=0))


@functools.cache
def exact(
    preset: str, drive: float, duration_ms: float, **parameters: float
) -> tuple[NDArray[np.float64], float, float]:
    """Spike times, and v and u at the end, from v = c, u = b c; parameters rounded to float32 as the network's are."""
    rounded = {name: float(np.float32(p)) for name, p in IZHIKEVICH.complete(parameters, preset).items()}
    a, b, c, d, k2, k1, k0, offset, decay, peak = rounded.values()

    def equations(_: float, y: NDArray[np.float64]) -> list[float]:
        v, u = y
        return [(k2 * v + k1) * v + k0 - u + drive, a * (b * (v + offset) - decay * u)]

    def meets_peak(_: float, y: NDArray[np.float64]) -> float:
        return float(y[0] - peak)

    meets_peak.terminal = True  # type: ignore[attr-defined]
    spikes: list[float] = []
    t, state = 0.0, [c, b * (c + offset)]
    while True:
        way = solve_ivp(equations, (t, duration_ms), state, "DOP853", events=meets_peak, rtol=1e-11, atol=1e-9)
        t, state = float(way.t[-1]), way.y[:, -1].tolist()
        if way.status == 0:
            return np.array(spikes), state[0], state[1]
        spikes.append(t)
        state = [c, state[1] + d]


def spike_times(config: NetworkConfig, duration_ms: float, dt_ms: float) -> NDArray[np.float64]:
    """Ends of the ticks in which channel 0 fired."""
    spikes = SpikingNetwork(config, dt_ms=dt_ms).run(np.zeros((round(duration_ms / dt_ms), 16)))[:, 0]
    return (np.flatnonzero(spikes) + 1).astype(np.float64) * dt_ms


@pytest.mark.parametrize(("preset", "drive", "expected"), COUNTS)
def test_counts_at_ticks_of_1_ms_are_those_of_the_exact_solution(preset: str, drive: float, expected: int) -> None:
    assert len(exact(preset, drive, 1000)[0]) == expected
    assert len(spike_times(lone(preset, drive), 1000, dt_ms=1.0)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("preset", "drive", "expected"), COUNTS)
def test_every_spike_of_a_second_falls_into_its_tick_of_a_tenth(preset: str, drive: float, expected: int) -> None:
    # A tick reports its spike at its end, 0 to 0.1 ms late. What is left, a fifth of a tick, is the error that the
    # times have gathered, mostly float32: v = -65 is kept to 8e-6 mV, and where v creeps at 0.1 mV/ms, each of the
    # 10,000 steps may so misplace the next spike by some 4e-5 ms, or 4e-3 ms in all as a random walk.
    duration_ms = 1000 if JIT_ENABLED else 100
    expected_times = exact(preset, drive, duration_ms)[0]
    times = spike_times(lone(preset, drive), duration_ms, dt_ms=0.1)
    assert len(times) == len(expected_times)
    late = times - expected_times
    assert -0.02 < late.min() <= late.max() < 0.12


@pytest.mark.parametrize(
    ("drive", "duration_ms", "parameters", "n_spikes"),
    [
        (3, 3, {"a_per_ms": 0.5, "b": 0.26}, 0),
        (10, 6, {"a_per_ms": 2.0, "b": 0.2}, 1),
        (30, 24, {"a_per_ms": 0.5, "b": 0.25, "d": 4.0}, 14),
    ],
)
def test_integration_is_of_third_order(
    drive: float, duration_ms: float, parameters: dict[str, float], n_spikes: int
) -> None:
    # A quick u, so that the errors lie above the roundings of float32. Ratios of 8 are third order; 5 and 12 lie about
    # halfway to second and fourth, 2^2.3 and 2^3.6.
    spikes, v, _ = exact("RS", drive, duration_ms, **parameters)
    assert len(spikes) == n_spikes
    errors = []
    for dt_ms in (0.5, 0.25, 0.125):
        network = SpikingNetwork(lone("RS", drive, **parameters), dt_ms=dt_ms)
        network.run(np.zeros((round(duration_ms / dt_ms), 16)))
        errors.append(abs(network.state[0]["variables"][0, 0] - v))
    coarse, middle, fine = errors
    assert 5 < coarse / middle < 12
    assert 5 < middle / fine < 12


def test_a_step_of_4_ms_does_all_its_spikes_and_reports_one() -> None:
    config = lone("FS", 100)
    slow, fast = SpikingNetwork(config), SpikingNetwork(config)
    n_spikes = slow.run(np.zeros((400, 16)), NeuroModulators(tempo=1))[:, 0].reshape(100, 4).sum(axis=1)
    reported = fast.run(np.zeros((100, 16)), NeuroModulators(tempo=4))[:, 0]
    assert n_spikes.max() > 1
    assert (reported == (n_spikes > 0)).all()
    # both take substeps of 0.5 ms
    assert fast.state[0]["variables"][:2, 0].tolist() == slow.state[0]["variables"][:2, 0].tolist()


def test_a_drive_that_fires_in_every_substep_leaves_the_right_state() -> None:
    # 40 spikes a substep's length apart or less, each of which adds 8 to u: u counts them
    spikes, _, u = exact("RS", 800, 10)
    assert np.diff(spikes).max() < 0.5
    network = SpikingNetwork(lone("RS", 800))
    network.run(np.zeros((10, 16)))
    assert network.state[0]["variables"][1, 0] == pytest.approx(u, rel=1e-3)


def test_it_begins_at_the_reset_with_u_in_balance_with_it() -> None:
    network = SpikingNetwork(lone("FS", 0))
    assert network.state[0]["variables"][:2, 0].tolist() == [-65.0, -13.0]


def test_a_neuron_whose_u_runs_away_begins_no_higher_than_it_can_come_back_from() -> None:
    # from its reset of -45, with u in balance there, it would fire in every tick for ever
    neuron = ChannelConfig(model="izhikevich", preset="inhibition_induced_bursting")
    config = NetworkConfig(sensory=neuron, weights=NO_WEIGHTS)
    network, at_reset = SpikingNetwork(config), SpikingNetwork(config)
    assert network.state[0]["variables"][:2, 0].tolist() == [-65.0, 65.0]
    at_reset.state[0]["variables"][:2, :14] = np.array([[-45.0], [45.0]])
    assert not network.run(np.zeros((200, 16))).any()
    assert at_reset.run(np.zeros((200, 16)))[:, :14].all()


def test_charge_that_arrives_moves_the_membrane_by_itself() -> None:
    weights = np.zeros((16, 16))
    weights[2, 5] = 3.5
    neuron = ChannelConfig(model="izhikevich", gain=1)
    network = SpikingNetwork(
        NetworkConfig(sensory=neuron, weights=GivenWeightsConfig(matrix_mv=weights.tolist())), dt_ms=0.001
    )
    v = network.state[0]["variables"][0]
    v[2] = 29.9
    assert network.step(np.zeros(16)).nonzero()[0].tolist() == [2]
    before = v[5]
    network.step(np.zeros(16))
    # in a microsecond v moves by 0.003 mV on its own
    assert v[5] - before == pytest.approx(3.5, abs=0.005)


def test_charge_beyond_the_peak_fires_at_once() -> None:
    weights = np.zeros((16, 16))
    weights[2, 5] = 500.0
    neuron = ChannelConfig(model="izhikevich", gain=1)
    network = SpikingNetwork(NetworkConfig(sensory=neuron, weights=GivenWeightsConfig(matrix_mv=weights.tolist())))
    network.state[0]["variables"][0, 2] = 29.9
    network.step(np.zeros(16))
    assert network.step(np.zeros(16)).nonzero()[0].tolist() == [5]
    # u from rest, -13, plus d, less a millisecond's decay of at most a d
    assert network.state[0]["variables"][1, 5] == pytest.approx(-13 + 8, abs=0.2)


def test_cortisol_raises_the_rheobase_by_its_factor() -> None:
    # at a factor of 2 the division is exact, so that twice the drive must give the same bits
    stress = ModulationConfig(baseline=NeuroModulators(cortisol=1), cortisol_threshold=1)
    calm = SpikingNetwork(lone("RS", 10))
    stressed = SpikingNetwork(lone("RS", 20).model_copy(update={"modulation": stress}))
    assert (calm.run(np.zeros((300, 16)))[:, 0] == stressed.run(np.zeros((300, 16)))[:, 0]).all()
    assert calm.state[0]["variables"][0, 0] == stressed.state[0]["variables"][0, 0]
    assert SpikingNetwork(lone("RS", 20)).run(np.zeros((300, 16)))[:, 0].sum() > 8


@pytest.mark.parametrize("preset", ["RS", "LTS", "class_1_excitable"])
def test_inhibition_of_10_mv_holds_the_membrane_10_mv_below_rest(preset: str) -> None:
    per_mv = IZHIKEVICH.input_per_mv(IZHIKEVICH.complete({}, preset))
    network = SpikingNetwork(lone(preset, 0))
    v = network.state[0]["variables"][0]
    network.run(np.zeros((1500, 16)))
    rest = float(v[0])
    network = SpikingNetwork(lone(preset, -10 * per_mv))
    v = network.state[0]["variables"][0]
    network.run(np.zeros((1500, 16)))
    assert v[0] == pytest.approx(rest - 10, abs=0.01)


def test_every_preset_says_what_inhibition_means_to_it() -> None:
    for preset in IZHIKEVICH.presets:
        assert 0.3 < IZHIKEVICH.input_per_mv(IZHIKEVICH.complete({}, preset)) < 5


def test_thalamo_cortical_neurons_fire_from_rest_and_burst_after_inhibition() -> None:
    # Izhikevich (2003), Fig. 2: a depolarised cell fires tonically, a hyperpolarised one a burst when it is released
    tonic = spike_times(lone("TC", 1.5), 150, dt_ms=0.5)
    assert len(tonic) >= 3
    network = SpikingNetwork(lone("TC", 0), dt_ms=0.5)
    stimuli = np.zeros((400, 16))
    stimuli[:100] = -25
    spikes = network.run(stimuli)[:, 0]
    assert spikes[:100].sum() == 0
    intervals = np.diff(np.flatnonzero(spikes)) * 0.5
    assert len(intervals) >= 3
    assert intervals[0] < np.diff(tonic).min()


@pytest.mark.parametrize(("c_mv", "v_peak_mv"), [(30.0, 30.0), (-40.0, -50.0)])
def test_a_reset_at_or_above_the_peak_is_refused(c_mv: float, v_peak_mv: float) -> None:
    with pytest.raises(ValueError, match="expected c_mv < v_peak_mv, got"):
        ChannelConfig(model="izhikevich", parameters={"c_mv": c_mv, "v_peak_mv": v_peak_mv})
