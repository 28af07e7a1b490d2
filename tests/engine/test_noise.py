"""The noise of the drive: its moments, its independence, and that it is part of the state."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    GivenWeightsConfig,
    InterneuronConfig,
    LearningConfig,
    ModulationConfig,
    NetworkConfig,
)
from neuromod.engine.errors import ConfigError
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
SILENT = {"v_threshold_mv": 1000.0, "v_min_mv": -1000.0}
N_TICKS = 40_000 if JIT_ENABLED else 1000
needs_many_numbers = pytest.mark.skipif(not JIT_ENABLED, reason="statistics of numbers that are the same bits compiled")


def noisy(
    noise: float = 1.0, seed: int = 0, tempo: float = 1.0, dt_ms: float = 1.0, tau_mem_ms: float = 20.0
) -> SpikingNetwork:
    """Sensory channels that only follow their noise: no spike, no weight, no bias."""
    channel = ChannelConfig(gain=10, bias=0, noise=noise, parameters=SILENT | {"tau_mem_ms": tau_mem_ms})
    modulation = ModulationConfig(baseline=NeuroModulators(tempo=tempo))
    return SpikingNetwork(
        NetworkConfig(
            seed=seed,
            sensory=channel,
            weights=NO_WEIGHTS,
            modulation=modulation,
            learning=LearningConfig(rule="none"),
        ),
        dt_ms=dt_ms,
    )


def potentials(network: SpikingNetwork, n_ticks: int) -> NDArray[np.float64]:
    """Potential of each sensory channel at each tick."""
    rest, out = np.zeros((1, 16)), np.empty((n_ticks, 14))
    for k in range(n_ticks):
        network.run(rest)
        out[k] = network.state[0]["variables"][0, :14]
    return out


def drives(network: SpikingNetwork, n_ticks: int) -> NDArray[np.float64]:
    """Drive of each sensory channel at each tick."""
    rest, out = np.zeros((1, 16)), np.empty((n_ticks, 14))
    for k in range(n_ticks):
        network.run(rest)
        out[k] = network.state[0]["drive"][:14]
    return out


@pytest.fixture(scope="module")
def numbers() -> NDArray[np.float64]:
    """Noise of 1 at ticks of 1 ms, shape (ticks, channels): the random numbers themselves."""
    return drives(noisy(), N_TICKS)


# bounds on statistics are 4.5 standard errors: one in 150,000 seeds would miss one, and the seed is fixed
@needs_many_numbers
def test_its_numbers_have_the_moments_that_it_documents(numbers: NDArray[np.float64]) -> None:
    n = numbers.size
    assert abs(numbers.mean()) < 4.5 / math.sqrt(n)
    variance = numbers.var()
    assert abs(variance - 1) < 4.5 * math.sqrt((2 - 0.15) / n)  # variance of a square: kurtosis - 1
    assert abs((numbers**3).mean()) < 4.5 * math.sqrt(15 / n)
    assert abs((numbers**4).mean() / variance**2 - (3 - 0.15)) < 4.5 * math.sqrt(96 / n)
    assert 4 < np.abs(numbers).max() < 4.9


@needs_many_numbers
def test_its_numbers_are_distributed_as_sums_of_eight_uniform_ones(numbers: NDArray[np.float64]) -> None:
    # Irwin-Hall: P(sum of n <= x) = sum over k of (-1)^k C(n, k) (x - k)^n / n!
    def probability(x: float) -> float:
        return float(
            sum((-1) ** k * math.comb(8, k) * (x - k) ** 8 for k in range(math.floor(x) + 1))
        ) / math.factorial(8)

    for z in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3):
        expected = probability(4 + z * math.sqrt(8 / 12))
        scatter = math.sqrt(expected * (1 - expected) / numbers.size)
        assert abs((numbers < z).mean() - expected) < 4.5 * scatter


@needs_many_numbers
def test_its_numbers_are_uncorrelated_in_time(numbers: NDArray[np.float64]) -> None:
    for lag in (1, 2, 3, 5, 10, 100):
        for values in (numbers, numbers**2 - 1):
            correlation = (values[lag:] * values[:-lag]).mean() / values.var()
            assert abs(correlation) < 4.5 / math.sqrt(values[lag:].size)


@needs_many_numbers
@pytest.mark.parametrize("lag", [0, 1])
def test_its_numbers_are_uncorrelated_between_channels(numbers: NDArray[np.float64], lag: int) -> None:
    correlation = numbers[lag:].T @ numbers[: len(numbers) - lag] / len(numbers)
    off_diagonal = correlation[~np.eye(14, dtype=bool)]
    assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(len(numbers))
    assert np.abs(np.diag(correlation) - (lag == 0)).max() < 4.5 * math.sqrt(2 / len(numbers))


@pytest.mark.parametrize(("dt_ms", "tempo"), [(1.0, 1.0), (0.25, 1.0), (1.0, 4.0), (0.01, 0.1)])
def test_its_deviation_is_that_of_an_average_over_the_step(dt_ms: float, tempo: float) -> None:
    unit = drives(noisy(2.0), 20)
    scaled = drives(noisy(2.0, dt_ms=dt_ms, tempo=tempo), 20)
    assert scaled == pytest.approx(unit / math.sqrt(dt_ms * tempo), rel=1e-6)


@needs_many_numbers
@pytest.mark.parametrize(("dt_ms", "tempo"), [(1.0, 1.0), (0.25, 1.0), (1.0, 4.0)])
def test_noise_of_a_membrane_does_not_depend_on_the_step(dt_ms: float, tempo: float) -> None:
    # v' = v + (d - v) r with r = 1 - exp(-h / tau) and d of variance sigma^2 ms / h: a first-order autoregression of
    # variance sigma^2 / h x r / (2 - r) = sigma^2 / h x tanh(h / 2 tau), the sigma^2 / 2 tau of an Ornstein-Uhlenbeck
    # process but for (h / 2 tau)^2 / 3: 0.3 % at 4 ms
    step_ms, tau_ms, sigma = dt_ms * tempo, 20.0, 3.0
    v = potentials(noisy(sigma, dt_ms=dt_ms, tempo=tempo), N_TICKS)[round(5 * tau_ms / step_ms) :]
    expected = sigma**2 / step_ms * math.tanh(step_ms / (2 * tau_ms))
    assert expected == pytest.approx(sigma**2 / (2 * tau_ms), rel=4e-3)
    # numbers this far apart are independent: the sum of squared autocorrelations is 1 / tanh(h / tau)
    independent = v.size * math.tanh(step_ms / tau_ms)
    assert abs(v.var() / expected - 1) < 4.5 * math.sqrt(2 / independent)
    lag = round(tau_ms / step_ms)
    correlation = (v[lag:] * v[:-lag]).mean() / v.var()
    assert correlation == pytest.approx(math.exp(-lag * step_ms / tau_ms), abs=4.5 * math.sqrt(2 / independent))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, same, other = (drives(noisy(seed=seed), 50) for seed in (3, 3, 4))
    assert (first == same).all()
    assert not (first == other).any()


def test_no_two_channels_have_the_same_numbers() -> None:
    first = drives(noisy(), 50)
    assert len(np.unique(first)) > 0.99 * first.size


def test_a_checkpoint_continues_the_sequence_and_a_reset_repeats_it() -> None:
    network = noisy()
    start = drives(network, 30)
    checkpoint = network.checkpoint()
    onward = drives(network, 30)
    elsewhere = noisy(seed=99)
    for back in (network, elsewhere):
        back.restore(checkpoint)
        assert (drives(back, 30) == onward).all()
    network.reset()
    assert (drives(network, 30) == start).all()
    assert not (start == onward).any()


def test_without_noise_the_random_state_does_not_advance() -> None:
    network = SpikingNetwork(NetworkConfig(sensory=ChannelConfig(noise=0), interneuron=InterneuronConfig(noise=0)))
    before = network.state[0]["random"].copy()
    network.run(np.ones((50, 16)))
    assert (network.state[0]["random"] == before).all()
    assert before.all()
    assert len(set(before.tolist())) == 16


def test_noise_of_one_channel_leaves_the_others_as_they_were() -> None:
    stimuli = np.random.default_rng(1).uniform(0, 4, (300, 16))
    quiet = NetworkConfig(weights=NO_WEIGHTS)
    one = quiet.model_copy(update={"channels": {5: ChannelOverride(noise=30.0)}})
    plain, mixed = SpikingNetwork(quiet).run(stimuli), SpikingNetwork(one).run(stimuli)
    different = (plain != mixed)[:, :14].any(axis=0)  # the detector counts them all
    assert np.flatnonzero(different).tolist() == [5]


def test_noise_makes_a_channel_below_threshold_fire() -> None:
    def spikes(noise: float) -> int:
        config = NetworkConfig(sensory=ChannelConfig(bias=12, noise=noise), weights=NO_WEIGHTS)
        return int(SpikingNetwork(config).run(np.zeros((500, 16)))[:, :14].sum())

    assert spikes(0) == 0
    assert spikes(20) > 50


def test_the_interneuron_may_be_noisy_too() -> None:
    network = SpikingNetwork(NetworkConfig(interneuron=InterneuronConfig(bias=12, noise=50.0), weights=NO_WEIGHTS))
    assert network.run(np.zeros((500, 16)))[:, 15].any()


def test_the_noisy_drive_is_held_to_the_limit_of_the_model() -> None:
    # the shortest steps make the noise largest: 1e6 x sqrt(1 / 0.0001) = 1e8 a standard deviation
    network = noisy(1e6, dt_ms=0.001, tempo=0.1)
    network.state[0]["drive_limit"][:14] = 1e7
    values = drives(network, 50)
    assert np.abs(values).max() == 1e7
    assert {-1e7, 1e7} < set(np.unique(values).tolist())


@pytest.mark.parametrize(("dt_ms", "fits"), [(1.0, True), (0.1, False)])
def test_noise_that_the_limit_of_a_model_would_cut_is_refused(dt_ms: float, fits: bool) -> None:
    # 1.5 x 4.9 standard deviations are 7.35, and sqrt(10) times as much in a tenth of the step; the limit is 10
    config = NetworkConfig(sensory=ChannelConfig(model="fitzhugh_nagumo", noise=1.5))
    if fits:
        SpikingNetwork(config, dt_ms=dt_ms)
        return
    with pytest.raises(ConfigError, match=r"channel 0: noise of 1.5 reaches 23.2\d* in steps of 0.1 ms"):
        SpikingNetwork(config, dt_ms=dt_ms)
