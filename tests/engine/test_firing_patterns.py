"""Each of the twenty firing patterns shows what its name claims, when the exact solution does."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import ChannelConfig, GivenWeightsConfig, InhibitionConfig, NetworkConfig
from neuromod.engine.models.firing_patterns import PATTERNS, Trace, run_pattern
from neuromod.engine.models.izhikevich import IZHIKEVICH
from neuromod.engine.network import SpikingNetwork

DT_MS = 0.1 if JIT_ENABLED else 0.25


def spike_times(name: str) -> NDArray[np.float64]:
    return run_pattern(PATTERNS[name], DT_MS).spike_times_ms


def bursts(times: NDArray[np.float64], apart_ms: float) -> list[int]:
    """Numbers of spikes between pauses of at least `apart_ms`."""
    return [len(burst) for burst in np.split(times, np.flatnonzero(np.diff(times) >= apart_ms) + 1) if len(burst)]


def steady_rates_hz(name: str, drives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rates of a pattern's neuron under up to 14 constant drives, by the last interval of two seconds."""
    network = SpikingNetwork(
        NetworkConfig(
            sensory=ChannelConfig(model="izhikevich", preset=name, gain=1),
            weights=GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16),
            inhibition=InhibitionConfig(strength_mv=0),
        )
    )
    spikes = network.run(np.tile(np.resize(drives, 16), (2000, 1)))
    rates = np.zeros(len(drives))
    for i in range(len(drives)):
        times = np.flatnonzero(spikes[:, i])
        if len(times) > 1 and times[-1] + 2 * (times[-1] - times[-2]) > len(spikes):  # else it has stopped
            rates[i] = 1000 / (times[-1] - times[-2])
    return rates


def test_there_are_the_twenty_of_the_figure_each_with_its_preset() -> None:
    assert [pattern.letter for pattern in PATTERNS.values()] == list("ABCDEFGHIJKLMNOPQRST")
    assert set(PATTERNS) <= set(IZHIKEVICH.presets)


def test_tonic_spiking_fires_for_as_long_as_it_is_driven() -> None:
    times = spike_times("tonic_spiking")
    intervals = np.diff(times[1:])
    assert times[0] > 10
    assert len(intervals) >= 3
    assert intervals[1:].max() - intervals[1:].min() < 1
    assert times[-1] + intervals[-1] > 100


def test_phasic_spiking_fires_once_although_the_drive_stays() -> None:
    (time,) = spike_times("phasic_spiking")
    assert 20 < time < 50
    assert PATTERNS["phasic_spiking"].input(np.array([199.0])) == 0.5


def test_tonic_bursting_bursts_for_as_long_as_it_is_driven() -> None:
    times = spike_times("tonic_bursting")
    n_spikes = bursts(times, apart_ms=15)
    assert times[0] > 22
    assert len(n_spikes) >= 4
    assert min(n_spikes) >= 3


def test_phasic_bursting_bursts_once_although_the_drive_stays() -> None:
    times = spike_times("phasic_bursting")
    (n_spikes,) = bursts(times, apart_ms=15)
    assert n_spikes >= 4
    assert 20 < times[0] < times[-1] < 80


def test_mixed_mode_bursts_and_goes_on_with_single_spikes() -> None:
    first, *others = bursts(spike_times("mixed_mode"), apart_ms=15)
    assert first >= 3
    assert len(others) >= 3
    assert set(others) == {1}


def test_spike_frequency_adaptation_fires_ever_more_slowly() -> None:
    intervals = np.diff(spike_times("spike_frequency_adaptation"))
    assert len(intervals) >= 4
    assert (np.diff(intervals) > 0).all()
    assert intervals[-1] > 10 * intervals[0]


def test_class_1_begins_slowly_on_the_ramp_and_quickens() -> None:
    intervals = np.diff(spike_times("class_1_excitable"))
    assert (np.diff(intervals) < 0).all()
    assert intervals[0] > 2.5 * intervals[-1]


def test_class_2_begins_fast_on_the_ramp() -> None:
    # twice as fast as the class-1 neuron, on a ramp five times as slow
    first, second, *_ = spike_times("class_2_excitable")
    assert second - first < 25
    assert second - first < 0.55 * np.diff(spike_times("class_1_excitable"))[0]


def test_a_steady_class_1_neuron_fires_as_slowly_as_one_likes_and_a_class_2_neuron_does_not() -> None:
    # the class-1 neuron's resting state vanishes at a drive of (4.1 + 0.1)^2 / (4 x 0.04) - 108 = 2.25
    class_1 = steady_rates_hz("class_1_excitable", np.array([2.2, 2.3, 2.5, 3, 4, 6, 8, 10, 15, 20]))
    assert class_1[0] == 0
    assert 0 < class_1[1] < 8
    assert (np.diff(class_1) > 0).all()
    class_2 = steady_rates_hz("class_2_excitable", np.linspace(-0.4, 0.9, 14))
    assert class_2[0] == 0
    assert class_2[-1] > 0
    assert class_2[class_2 > 0].min() > 25


def test_spike_latency_fires_long_after_the_pulse() -> None:
    (time,) = spike_times("spike_latency")
    assert time >= 10 + 10
    assert time >= 13 + 7


def test_subthreshold_oscillations_follow_a_spike_and_fade() -> None:
    trace = run_pattern(PATTERNS["subthreshold_oscillations"], DT_MS)
    (time,) = trace.spike_times_ms
    after = trace.t_ms > time + 5
    v, t = trace.v_mv[after].astype(float), trace.t_ms[after]
    peaks = np.flatnonzero((v[1:-1] > v[:-2]) & (v[1:-1] >= v[2:])) + 1
    peaks = peaks[v[peaks] > v[-1] + 0.01]  # those of the ringing, not of rounding
    assert len(peaks) >= 3
    assert (np.diff(v[peaks]) < 0).all()
    # the eigenfrequency at rest, v = -62.5, u = -16.25: roots of s^2 - (2 k v + 5 - a) s + a (b - 2 k v - 5) = 0
    trace_of, determinant = 0.08 * -62.5 + 5 - 0.05, 0.05 * (0.26 - 0.08 * -62.5 - 5)
    period_ms = 2 * np.pi / np.sqrt(determinant - trace_of**2 / 4)
    assert np.diff(t[peaks])[1:] == pytest.approx(period_ms, rel=0.1)


def test_resonator_fires_for_the_doublet_at_its_period_alone() -> None:
    (time,) = spike_times("resonator")
    assert 320 < time < 345, "pulses at 40 and 60 ms are half a period apart, those at 280 and 320 ms a whole one"


def test_integrator_fires_for_the_close_doublet_alone() -> None:
    (time,) = spike_times("integrator")
    assert 14 < time < 25, "pulses at 9 and 14 ms add up, those at 70 and 80 ms do not"


def test_rebound_spike_follows_inhibition() -> None:
    (time,) = spike_times("rebound_spike")
    assert time > 25


def test_rebound_burst_follows_inhibition() -> None:
    times = spike_times("rebound_burst")
    (n_spikes,) = bursts(times, apart_ms=15)
    assert n_spikes >= 4
    assert times[0] > 25


def test_threshold_variability_fires_for_a_pulse_after_inhibition_alone() -> None:
    (time,) = spike_times("threshold_variability")
    assert time > 80, "the same pulse at 10 ms leaves it silent"


def test_bistability_is_started_by_one_pulse_and_stopped_by_another() -> None:
    times = spike_times("bistability")
    intervals = np.diff(times)
    assert 37.5 < times[0] < 50
    assert len(intervals) >= 4
    assert intervals.max() - intervals.min() < 1
    assert times[-1] < 207
    assert times[-1] + intervals[-1] < 300 - intervals[-1], "there was time for two more"


def test_a_depolarizing_afterpotential_follows_the_spike() -> None:
    trace = run_pattern(PATTERNS["depolarizing_afterpotential"], DT_MS)
    (time,) = trace.spike_times_ms
    rest = trace.v_mv[trace.t_ms < 9][-1]
    hump = trace.v_mv[(trace.t_ms > time + 1) & (trace.t_ms < time + 20)]
    assert hump.max() > rest + 15
    assert hump.max() > -60 + 5, "it rises from the reset"
    assert trace.v_mv[-1] < rest + 2


def test_accommodation_fires_for_the_fast_ramp_not_for_the_slow_higher_one() -> None:
    pattern = PATTERNS["accommodation"]
    (time,) = spike_times("accommodation")
    assert 300 < time < 315
    t = np.arange(400.0)
    assert pattern.input(t[:300]).max() > 1.5 * pattern.input(t[300:]).max()


def test_inhibition_induced_spiking_fires_while_inhibited_alone() -> None:
    times = spike_times("inhibition_induced_spiking")
    assert len(times) >= 3
    assert 50 < times.min() < times.max() < 225


def test_inhibition_induced_bursting_bursts_while_inhibited_alone() -> None:
    times = spike_times("inhibition_induced_bursting")
    n_spikes = bursts(times, apart_ms=15)
    assert len(n_spikes) >= 2
    assert min(n_spikes) >= 3
    assert 50 < times.min() < times.max() < 250


def exact_spike_times(name: str, trace: Trace) -> NDArray[np.float64]:
    """Spikes of the hybrid system, each found as an event, under the drive that the ticks held."""
    pattern = PATTERNS[name]
    a, b, c, d, k2, k1, k0, offset, decay, peak = IZHIKEVICH.complete({}, name).values()

    def equations(_: float, y: NDArray[np.float64], drive: float) -> list[float]:
        v, u = y
        return [(k2 * v + k1) * v + k0 - u + drive, a * (b * (v + offset) - decay * u)]

    def meets_peak(_: float, y: NDArray[np.float64], drive: float) -> float:
        return float(y[0] - peak)

    meets_peak.terminal = True  # type: ignore[attr-defined]
    changes = np.flatnonzero(np.diff(trace.input)) + 1
    ends_ms = [*trace.t_ms[changes].tolist(), pattern.duration_ms]
    t, state, spikes = 0.0, [pattern.v0_mv, pattern.u0], []
    for drive, end_ms in zip(trace.input[np.r_[0, changes]].tolist(), ends_ms, strict=True):
        while t < end_ms:
            way = solve_ivp(
                equations, (t, end_ms), state, "DOP853", args=(drive,), events=meets_peak, rtol=1e-9, atol=1e-9
            )
            t, state = float(way.t[-1]), way.y[:, -1].tolist()
            if way.status == 1:
                spikes.append(t)
                state = [c, state[1] + d]
    return np.array(spikes)


@pytest.mark.skipif(not JIT_ENABLED, reason="takes minutes")
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_that_of_the_exact_solution(name: str) -> None:
    # Ramps change with every tick: held over one of 0.5 ms they make a stair of some 500 steps for the solver. A tick
    # starts 0 to 1 tick before its spike. Beside that, 0.1 ms is what float32 does to spikes that come from the edge of
    # firing, one part in a thousand of the time that they took, and 0.2 ms what seventeen spikes in steps of 0.5 ms
    # gather, some 0.01 ms each.
    dt_ms = 0.5 if PATTERNS[name].letter in "GHR" else 0.1
    trace = run_pattern(PATTERNS[name], dt_ms)
    exact = exact_spike_times(name, trace)
    assert len(trace.spike_times_ms) == len(exact) > 0
    late = exact - trace.spike_times_ms
    slack_ms = 0.1 if dt_ms == 0.1 else 0.2
    assert -slack_ms < late.min() <= late.max() < dt_ms + slack_ms


@pytest.mark.parametrize("name", ["phasic_spiking", "depolarizing_afterpotential", "accommodation"])
def test_a_trace_draws_spikes_to_their_peak_and_tells_its_drive(name: str) -> None:
    pattern = PATTERNS[name]
    trace = run_pattern(pattern, 0.5)
    assert len(trace.t_ms) == len(trace.v_mv) == len(trace.input) == len(trace.spikes) == pattern.duration_ms / 0.5
    assert (trace.v_mv[trace.spikes] == 30).all()
    assert (trace.v_mv[~trace.spikes] < 30).all()
    assert trace.input.tolist() == pattern.input(trace.t_ms).tolist()
    assert list(itertools.compress(trace.t_ms, trace.spikes)) == trace.spike_times_ms.tolist()
