"""The coincidence detector and the interneuron do what their names say."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from neuromod.engine.config import (
    ChannelConfig,
    CoincidenceConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.layout import COINCIDENCE, INHIBITORY
from neuromod.engine.network import SpikingNetwork

PULSE = 1000.0  # with no bias, makes a channel fire at that very tick and only then
NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
PUPPET = ChannelConfig(gain=10, bias=0, parameters={"refractory_ms": 0.0})


def puppets(coincidence: CoincidenceConfig) -> NetworkConfig:
    """Sensory channels that fire exactly where told."""
    return NetworkConfig(sensory=PUPPET, weights=NO_WEIGHTS, coincidence=coincidence)


def play(config: NetworkConfig, times_ms: Mapping[int, Sequence[float]], dt_ms: float = 1.0) -> np.ndarray:
    """Let channels fire at the given times and return the times of the detector's spikes in ms."""
    stimuli = np.zeros((round(200 / dt_ms), 16), dtype=np.float32)
    for channel, times in times_ms.items():
        stimuli[np.round(np.array(times) / dt_ms).astype(int), channel] = PULSE
    spikes = SpikingNetwork(config, dt_ms=dt_ms).run(stimuli)
    sensory = {c: (spikes[:, c].nonzero()[0] * dt_ms).tolist() for c in times_ms}
    assert sensory == {c: pytest.approx(times) for c, times in times_ms.items()}
    return spikes[:, COINCIDENCE].nonzero()[0] * dt_ms


@pytest.mark.parametrize("dt_ms", [1.0, 0.5, 0.1, 0.05])
def test_enough_channels_within_the_window_make_a_coincidence(dt_ms: float) -> None:
    config = puppets(CoincidenceConfig(window_ms=3, min_channels=4))
    fired = play(config, {0: [50], 3: [51], 7: [52], 13: [53]}, dt_ms)
    assert fired == pytest.approx([53 + dt_ms])


@pytest.mark.parametrize("dt_ms", [1.0, 0.5, 0.1, 0.05])
def test_the_same_spikes_spread_one_tick_further_make_none(dt_ms: float) -> None:
    config = puppets(CoincidenceConfig(window_ms=3, min_channels=4))
    assert play(config, {0: [50], 3: [51], 7: [52], 13: [53 + dt_ms]}, dt_ms).size == 0


def test_many_spikes_of_too_few_channels_make_no_coincidence() -> None:
    config = puppets(CoincidenceConfig(window_ms=3, min_channels=4))
    assert play(config, {0: [50, 51, 52, 53], 3: [50, 51, 52, 53], 7: [50, 51, 52, 53]}).size == 0


def test_one_coincidence_is_one_spike() -> None:
    config = puppets(CoincidenceConfig(window_ms=20, min_channels=2, refractory_ms=0))
    assert play(config, {0: [50], 1: [52]}).tolist() == [53]


def test_a_lasting_coincidence_fires_again_after_the_refractory_period() -> None:
    config = puppets(CoincidenceConfig(window_ms=2, min_channels=2, refractory_ms=5))
    always = list(range(50, 66))
    assert play(config, {0: always, 1: always}).tolist() == [51, 57, 63]


def test_the_detector_fires_for_random_volleys_exactly_as_counted() -> None:
    rng = np.random.default_rng(8)
    stimuli = np.zeros((20_000, 16), dtype=np.float32)
    stimuli[:, :14] = (rng.random((20_000, 14)) < 0.03) * PULSE
    spikes = SpikingNetwork(puppets(CoincidenceConfig(window_ms=4, min_channels=5, refractory_ms=0))).run(stimuli)
    sensory = spikes[:, :14]
    expected = [
        bool(sensory[k - 1].any() and sensory[max(0, k - 5) : k].any(axis=0).sum() >= 5) if k else False
        for k in range(len(spikes))
    ]
    assert spikes[:, COINCIDENCE].tolist() == expected
    assert 100 < sum(expected) < 10_000


def test_the_window_counts_in_model_time() -> None:
    config = puppets(CoincidenceConfig(window_ms=3, min_channels=2))
    slow = config.modulation.model_copy(
        update={"baseline": config.modulation.baseline.model_copy(update={"tempo": 0.5})}
    )
    assert play(config, {0: [50], 1: [56]}).size == 0
    assert play(config.model_copy(update={"modulation": slow}), {0: [50], 1: [56]}).tolist() == [57]


def volley_config(inhibition: InhibitionConfig) -> NetworkConfig:
    """Channel 0 answers its drive; volleys of the others reach only the interneuron."""
    weights = np.zeros((16, 16))
    weights[1:14, INHIBITORY] = 4.0
    return NetworkConfig(
        sensory=ChannelConfig(gain=10, bias=0),
        weights=GivenWeightsConfig(matrix_mv=weights.tolist()),
        inhibition=inhibition,
    )


def volley(n_channels: int, inhibition: InhibitionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Fire channels 1..n together at tick 100; return all spikes and the potential of channel 0 at every tick."""
    network = SpikingNetwork(volley_config(inhibition))
    stimuli = np.zeros((200, 16), dtype=np.float32)
    stimuli[:, 0] = 1.0  # 10 mV: below threshold, so that the potential shows the inhibition
    stimuli[100, 1 : 1 + n_channels] = PULSE
    spikes, potential = np.empty((200, 16), dtype=bool), np.empty(200)
    for k in range(200):
        spikes[k] = network.step(stimuli[k])
        potential[k] = network.state[0]["variables"][0, 0]
    return spikes, potential


@pytest.mark.parametrize(("n_channels", "fires"), [(3, False), (4, True), (13, True)])
def test_the_interneuron_integrates_the_sensory_spikes(n_channels: int, fires: bool) -> None:
    # 4 mV each against a threshold of 15 mV
    spikes, _ = volley(n_channels, InhibitionConfig())
    assert spikes[101, INHIBITORY] == fires
    assert spikes[:, INHIBITORY].sum() == fires


@pytest.mark.parametrize("duration_ms", [0, 1, 8, 25])
def test_a_spike_of_the_interneuron_inhibits_for_the_stated_time(duration_ms: int) -> None:
    _, free = volley(0, InhibitionConfig(strength_mv=20, duration_ms=duration_ms))
    _, held = volley(6, InhibitionConfig(strength_mv=20, duration_ms=duration_ms))
    assert (free[:102] == held[:102]).all()
    falling = np.flatnonzero(np.diff(held) < 0) + 1
    assert falling.tolist() == list(range(102, 102 + duration_ms))


def test_inhibition_has_the_stated_strength() -> None:
    _, held = volley(6, InhibitionConfig(strength_mv=18, duration_ms=90))
    assert held[190] == pytest.approx(10 - 18 * (1 - np.exp(-89 / 20)), rel=1e-3)


def test_another_spike_starts_inhibition_anew() -> None:
    network = SpikingNetwork(volley_config(InhibitionConfig(strength_mv=20, duration_ms=10)))
    stimuli = np.zeros((60, 16), dtype=np.float32)
    stimuli[[10, 16], 1:8] = PULSE
    network.run(stimuli[:17])
    left = []
    for row in stimuli[17:40]:
        network.step(row)
        left.append(float(network.state[0]["inhibition_left_ms"]))
    # the second volley arrives at tick 17, inhibition starts at 18
    assert left[:3] == [4.0, 9.0, 8.0]
    assert left[-1] == 0


def test_inhibition_lowers_the_rates_of_a_driven_network() -> None:
    stimuli = np.random.default_rng(2).uniform(0, 5, (5000, 16))
    rates = [
        SpikingNetwork(NetworkConfig(inhibition=InhibitionConfig(strength_mv=strength))).run(stimuli)[:, :14].mean()
        for strength in (0, 30)
    ]
    assert rates[1] < 0.8 * rates[0]


def test_stimuli_reach_neither_detector_nor_interneuron_by_default() -> None:
    stimuli = np.zeros((500, 16))
    stimuli[:, [COINCIDENCE, INHIBITORY]] = PULSE
    assert not SpikingNetwork(NetworkConfig(sensory=PUPPET)).run(stimuli).any()


def test_the_detector_excites_the_sensory_channels_as_configured() -> None:
    weights = RandomWeightsConfig(low_mv=0, high_mv=0, from_coincidence_mv=2.5, to_interneuron_mv=0)
    config = NetworkConfig(sensory=PUPPET, weights=weights, coincidence=CoincidenceConfig(min_channels=1))
    network = SpikingNetwork(config)
    stimuli = np.zeros((3, 16))
    stimuli[0, 0] = PULSE
    spikes = network.run(stimuli)
    assert spikes[:, COINCIDENCE].tolist() == [False, True, False]
    assert network.state[0]["variables"][0, 1:14].tolist() == [2.5] * 13
