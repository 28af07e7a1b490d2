"""The adaptive exponential integrate-and-fire model against the solution that finds every spike as an event."""

import functools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
)
from neuromod.engine.models.adex import ADEX, PATTERN_CURRENTS_PA, rest, rheobase_pa
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
NONE = LearningConfig(rule="none")


def lone(drive: float, preset: str | None = None, **parameters: float) -> NetworkConfig:
    """Neurons that do not know of each other, under a constant drive."""
    neuron = ChannelConfig(model="adex", preset=preset, gain=1, bias=drive, parameters=parameters)
    return NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, inhibition=InhibitionConfig(strength_mv=0), learning=NONE)


def at_leak_reversal(config: NetworkConfig, dt_ms: float) -> SpikingNetwork:
    """Start it where the papers do: v = E_L, w = 0."""
    network = SpikingNetwork(config, dt_ms=dt_ms)
    network.state[0]["variables"][0, :14] = config.sensory.complete_parameters()["e_l_mv"]
    network.state[0]["variables"][1, :14] = 0
    return network


def spike_times(config: NetworkConfig, duration_ms: float, dt_ms: float) -> NDArray[np.float64]:
    """Ends of the ticks in which channel 0 fired, from v = E_L, w = 0."""
    spikes = at_leak_reversal(config, dt_ms).run(np.zeros((round(duration_ms / dt_ms), 16)))[:, 0]
    return (np.flatnonzero(spikes) + 1.0) * np.float64(dt_ms)


@functools.cache
def exact(
    drive: float, duration_ms: float, preset: str | None = None, **parameters: float
) -> tuple[NDArray[np.float64], float, float]:
    """Spike times, and v and w at the end, from v = E_L, w = 0.

    On its way to the peak v moves too fast for the digits of t. The solution is therefore sought along another
    variable s, with ds = (1 + exp((v - V_T) / Delta_T)) dt, in which nothing is fast; t is one more unknown.
    """
    p = ADEX.complete(parameters, preset)
    c, g_l, e_l, v_t, delta, tau_w, a, b, v_reset, v_peak, refractory = (float(np.float32(x)) for x in p.values())

    def equations(_: float, y: NDArray[np.float64]) -> list[float]:
        v, w, _t = y
        slow = 1 / (1 + math.exp((v - v_t) / delta))
        dv = ((drive - w - g_l * (v - e_l)) * slow + g_l * delta * (1 - slow)) / c
        return [dv, (a * (v - e_l) - w) / tau_w * slow, slow]

    def meets_peak(_: float, y: NDArray[np.float64]) -> float:
        return float(y[0] - v_peak)

    def ends(_: float, y: NDArray[np.float64]) -> float:
        return float(y[2] - duration_ms)

    meets_peak.terminal = ends.terminal = True  # type: ignore[attr-defined]
    spikes: list[float] = []
    state = [e_l, 0.0, 0.0]
    while True:
        way = solve_ivp(equations, (0, 1e9), state, "DOP853", events=[meets_peak, ends], rtol=1e-9, atol=1e-9)
        if len(way.t_events[1]):
            v, w, _t = way.y_events[1][0]
            return np.array(spikes), float(v), float(w)
        _v, w, t = way.y_events[0][0]
        spikes.append(t)
        w = a * (v_reset - e_l) + (w + b - a * (v_reset - e_l)) * math.exp(-refractory / tau_w)
        state = [v_reset, w, t + refractory]
        if state[2] >= duration_ms:
            return np.array(spikes), v_reset, math.nan


# -- integration


@pytest.mark.parametrize("drive_pa", [700.0, 1000.0, 1500.0, 2500.0])
def test_spike_times_at_ticks_of_a_tenth_are_the_exact_ones(drive_pa: float) -> None:
    expected = exact(drive_pa, 100.0)[0]
    found = spike_times(lone(drive_pa), 100.0, dt_ms=0.1)
    assert len(found) == len(expected) >= 2
    # a spike is reported at the end of its tick: 0 to 0.1 ms late if nothing else is wrong. Integration may move it
    # across that by a tenth of what was asked for
    late = found - expected
    assert late.min() > -0.01
    assert late.max() < 0.11


@pytest.mark.parametrize("drive_pa", [700.0, 1000.0, 2500.0, 5000.0])
@pytest.mark.parametrize("refractory_ms", [0.0, 2.3])
def test_spike_counts_of_a_second_at_ticks_of_1_ms_are_the_exact_ones(drive_pa: float, refractory_ms: float) -> None:
    duration = 1000.0 if JIT_ENABLED else 100.0
    expected = len(exact(drive_pa, duration, refractory_ms=refractory_ms)[0])
    found = len(spike_times(lone(drive_pa, refractory_ms=refractory_ms), duration, dt_ms=1.0))
    assert found == pytest.approx(expected, abs=1)


def errors_mv(drives: list[float], duration_ms: float) -> list[float]:
    """Root mean square over the drives of the error of v at the end, for substeps of 1/4, 1/8 and 1/16 ms."""
    errors = []
    for dt_ms in (0.25, 0.125, 0.0625):
        found = []
        for drive in drives:
            network = at_leak_reversal(lone(drive), dt_ms)
            network.run(np.zeros((round(duration_ms / dt_ms), 16)))
            found.append(network.state[0]["variables"][0, 0] - exact(drive, duration_ms)[1])
        errors.append(float(np.sqrt(np.mean(np.square(found)))))
    return errors


def test_convergence_is_of_second_order_on_the_way_to_a_spike() -> None:
    # half a millisecond before the first one
    errors = errors_mv([1500.0], 6.5)
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_convergence_is_of_second_order_across_spikes() -> None:
    # an error depends on where in their substeps ten spikes fall: hence the average over currents
    drives = np.linspace(2000, 2100, 12 if JIT_ENABLED else 4).tolist()
    assert len(exact(drives[0], 60.0)[0]) == 10
    errors = errors_mv(drives, 60.0)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_the_peak_hardly_matters() -> None:
    low, high = (exact(1000.0, 100.0, v_peak_mv=v_peak)[0] for v_peak in (-35.0, 60.0))
    # what is left of the way: C / g_L exp(-(v_peak - V_T) / Delta_T) = 4 us
    assert high[0] - low[0] == pytest.approx(281 / 30 * math.exp(-15.4 / 2), rel=0.1)
    assert len(low) == len(high)


def test_a_refractory_period_need_not_be_whole_substeps() -> None:
    expected = exact(2500.0, 100.0, refractory_ms=1.37)[0]
    found = spike_times(lone(2500.0, refractory_ms=1.37), 100.0, dt_ms=0.1)
    assert len(found) == len(expected)
    assert np.abs(found - 0.05 - expected).max() < 0.06


def test_the_membrane_stays_at_reset_while_refractory() -> None:
    network = SpikingNetwork(lone(2500.0, refractory_ms=5))
    while not network.step(np.zeros(16))[0]:
        pass
    for _ in range(4):
        network.state[0]["arriving"] = 1
        network.step(np.zeros(16))
        assert network.state[0]["variables"][0, 0] == np.float32(-70.6)
    network.run(np.zeros((2, 16)))
    assert network.state[0]["variables"][0, 0] > -70


# -- rest and rheobase


def test_it_starts_at_the_stable_fixed_point_and_stays() -> None:
    p = ADEX.complete({})

    def outward(v: float) -> float:
        return 34 * (v + 70.6) - 60 * math.exp((v + 50.4) / 2)

    v = brentq(outward, -70.6, -55, xtol=1e-12)
    assert rest(p) == pytest.approx((v, 4 * (v + 70.6)), rel=1e-9)
    network = SpikingNetwork(lone(0))
    network.run(np.zeros((500, 16)))
    # leaks of 1 % a substep stop within half a unit in the last place of 70 (4e-6), divided by that 1 %
    assert network.state[0]["variables"][0, 0] == pytest.approx(v, abs=1e-3)


@pytest.mark.parametrize(
    "parameters",
    [
        {"a_ns": -40.0},  # no slope holds it
        {"v_t_mv": -70.0, "delta_t_mv": 20.0},  # the exponential is above the leak everywhere
        {"a_ns": 1000.0, "tau_w_ms": 10_000.0, "v_t_mv": -70.58},  # there is a fixed point, and it oscillates
    ],
)
def test_a_neuron_that_fires_by_itself_starts_at_the_leak_reversal(parameters: dict[str, float]) -> None:
    complete = ADEX.complete(parameters)
    assert rest(complete) is None
    assert ADEX.start(complete) == (complete["e_l_mv"], 0.0, 0.0)


@pytest.mark.parametrize(
    ("preset", "bifurcation"), [(None, "oscillation"), ("tonic", "saddle"), ("adapting", "oscillation")]
)
def test_the_rheobase_is_where_the_fixed_point_loses_its_stability(preset: str | None, bifurcation: str) -> None:
    p = ADEX.complete({}, preset)
    c, g_l, e_l, v_t, delta, tau_w, a = (p[q.name] for q in ADEX.parameters[:7])
    # the fixed points for every drive, one for every v; their eigenvalues say where stability ends
    v = np.linspace(e_l, v_t + 2 * delta, 400_001)
    x = np.exp((v - v_t) / delta)
    drive = (g_l + a) * (v - e_l) - g_l * delta * x
    trace, determinant = g_l * (x - 1) / c - 1 / tau_w, (g_l * (1 - x) + a) / (c * tau_w)
    first_unstable = int(np.argmax((trace >= 0) | (determinant <= 0)))
    assert ("oscillation" if trace[first_unstable] >= 0 else "saddle") == bifurcation
    assert rheobase_pa(p) == pytest.approx(drive[first_unstable], rel=1e-4)


@pytest.mark.parametrize("preset", [None, "tonic"])
def test_a_slowly_rising_current_fires_at_the_rheobase(preset: str | None) -> None:
    rheobase = rheobase_pa(ADEX.complete({}, preset))
    # slow, or the membrane would swing; and long, since just above the bifurcation the swing grows slowly
    ramp = np.minimum(np.linspace(0, 1.5, 4000), 1)[:, None] * rheobase
    stimuli = np.tile(ramp, (1, 16))
    stimuli[:, 0] *= 0.98
    stimuli[:, 1] *= 1.02
    spikes = SpikingNetwork(lone(0, preset)).run(stimuli)
    assert not spikes[:, 0].any()
    assert spikes[:, 1].any()


# -- presets


def intervals(preset: str, duration_ms: float = 600.0) -> tuple[float, NDArray[np.float64]]:
    """First spike and intervals under the current of the figure."""
    times = spike_times(lone(PATTERN_CURRENTS_PA[preset], preset), duration_ms, dt_ms=0.1)
    return float(times[0]), np.diff(times)


@pytest.mark.parametrize("preset", sorted(set(ADEX.presets) - {"irregular"}))
def test_patterns_are_those_of_the_exact_solution(preset: str) -> None:
    drive = PATTERN_CURRENTS_PA[preset]
    duration = 600.0 if JIT_ENABLED else 100.0
    expected, found = exact(drive, duration, preset)[0], spike_times(lone(drive, preset), duration, dt_ms=0.1)
    assert len(found) == len(expected)
    # the tick, and 0.05 % of drift
    assert np.abs(found - 0.05 - expected).max() < 0.05 + 5e-4 * duration


def test_tonic_spiking_is_regular_from_the_start() -> None:
    _, between = intervals("tonic", 300.0)
    assert len(between) > 20
    assert between.max() < 1.15 * between.min()


def test_adapting_slows_down_and_settles() -> None:
    _, between = intervals("adapting")
    assert (np.diff(between) > -0.25).all(), "an interval is a tick too long or too short"
    assert between[-1] > 4 * between[0]


def test_an_initial_burst_is_followed_by_regular_spikes() -> None:
    _, between = intervals("initial_burst")
    assert between[:2].max() < 10
    assert between[2:].min() > 50


def test_regular_bursting_is_pairs_of_spikes_far_apart() -> None:
    _, between = intervals("regular_bursting")
    within, apart = between[between < 20], between[between > 20]
    assert len(apart) >= 3
    assert len(within) >= 4
    assert apart.max() < 1.05 * apart.min()


def test_delayed_accelerating_comes_late_and_speeds_up() -> None:
    first, between = intervals("delayed_accelerating", 300.0)
    assert first > 2 * intervals("tonic", 100.0)[0]
    assert (np.diff(between) < 0.25).all(), "an interval is a tick too long or too short"
    assert between[-1] < 0.7 * between[0]


def test_delayed_regular_bursting_comes_late_in_bursts() -> None:
    first, between = intervals("delayed_regular_bursting")
    assert first > 50
    assert between[:3].max() < 10
    pauses = np.flatnonzero(between > 30)
    assert set(np.diff(pauses)) == {4}, "four spikes to a burst"


def test_transient_spiking_fires_once_and_falls_silent() -> None:
    _, between = intervals("transient")
    assert len(between) == 0


@pytest.mark.skipif(not JIT_ENABLED, reason="takes long to interpret")
def test_irregular_spiking_is_chaos() -> None:
    drive = PATTERN_CURRENTS_PA["irregular"]
    network = at_leak_reversal(lone(drive, "irregular"), 0.1)
    network.state[0]["variables"][1, 1] += 1e-3  # pA: a millionth of w
    spikes = network.run(np.zeros((20_000, 16)))
    one, other = (np.flatnonzero(spikes[:, i])[:100] for i in (0, 1))
    assert np.abs(one[:5] - other[:5]).max() <= 1
    assert np.abs(one[20:] - other[20:]).max() > 50, "5 ms: neighbours part"
    between = np.diff(one[10:]) * 0.1
    assert between.std() > 0.3 * between.mean()
    # no cycle of up to ten intervals
    assert all(np.abs(between[n:] - between[:-n]).max() > 5 for n in range(1, 11))


# -- the rest of the network


def test_cortisol_raises_the_threshold_in_proportion_to_its_distance_from_rest() -> None:
    calm = SpikingNetwork(lone(1000.0, v_t_mv=-50.4 + 0.3 * 20.2))
    stressed = SpikingNetwork(lone(1000.0))
    duration = 200
    expected = calm.run(np.zeros((duration, 16)))[:, 0]
    spikes = stressed.run(np.zeros((duration, 16)), NeuroModulators(cortisol=1.0))[:, 0]
    assert np.flatnonzero(spikes) == pytest.approx(np.flatnonzero(expected), abs=1)
    assert 0 < spikes.sum() < SpikingNetwork(lone(1000.0)).run(np.zeros((duration, 16)))[:, 0].sum()


def test_a_charge_moves_the_membrane_by_its_weight() -> None:
    weights = np.zeros((16, 16))
    weights[0, 1], weights[0, 2] = 5.0, 30.0
    config = lone(0).model_copy(update={"weights": GivenWeightsConfig(matrix_mv=weights.tolist())})
    network = SpikingNetwork(config, dt_ms=0.001)
    before = network.state[0]["variables"][0].copy()
    network.state[0]["arriving"] = 1
    network.step(np.zeros(16))
    # a thousandth of a millisecond of leak is 5 mV / 9000
    assert network.state[0]["variables"][0, 1] - before[1] == pytest.approx(5, abs=2e-3)
    assert network.run(np.zeros((1000, 16)))[:, [1, 2]].any(axis=0).tolist() == [False, True]


def test_inhibition_of_1_mv_moves_the_resting_membrane_by_1_mv() -> None:
    network = SpikingNetwork(lone(0, a_ns=0))
    before = float(network.state[0]["variables"][0, 0])
    network.run(np.full((200, 16), -network.state[0]["inhibited"][0]))
    assert network.state[0]["variables"][0, 0] - before == pytest.approx(-1, abs=2e-3)


def test_a_second_spike_within_a_tick_is_not_reported_and_not_lost() -> None:
    fast = {"v_reset_mv": -45.0, "tau_w_ms": 10_000.0, "a_ns": 0.0, "b_pa": 100.0}
    network = at_leak_reversal(lone(5000.0, None, **fast), 1.0)
    spikes = network.run(np.zeros((20, 16)))[:, 0]
    expected = len(exact(5000.0, 20.0, None, **fast)[0])
    assert spikes.sum() < expected
    assert float(network.state[0]["variables"][1, 0]) / 100 == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"v_reset_mv": 20.0}, "v_reset_mv < v_peak_mv"),
        ({"e_l_mv": -50.0}, "e_l_mv < v_t_mv"),
        ({"v_t_mv": 30.0}, "v_t_mv < v_peak_mv"),
        ({"c_pf": 14.0}, "time constant c_pf / g_l_ns of at least 0.5 ms"),
        ({"tau_w_ms": 0.5}, "tau_w_ms"),
    ],
)
def test_parameters_that_cannot_be_are_refused_with_a_reason(parameters: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ChannelConfig(model="adex", parameters=parameters)
