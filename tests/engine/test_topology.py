"""Who reaches whom, with what weight and how late: as the configuration says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
import pytest
from numpy.typing import NDArray

from neuromod.engine.config import (
    ChannelConfig,
    CoincidenceConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, MAX_DELAY_TICKS
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork, connected, initial_weights

PULSE = 1000.0
PUPPET = ChannelConfig(gain=10, bias=0, parameters={"refractory_ms": 0.0, "v_min_mv": -1000.0})
ONES = ((1,) * 16,) * 16


def random_mask(seed: int) -> NDArray[np.int64]:
    ones = (np.random.default_rng(seed).random((16, 16)) < 0.5).astype(int)
    ones[:, COINCIDENCE] = 0
    return ones


def arrivals(
    weights: NDArray[np.float64], ticks: Mapping[int, Sequence[int]], n_ticks: int, **more: Any
) -> NDArray[np.float64]:
    """Charge that reaches each channel at each tick, mV, when channels fire at the given ticks."""
    config = NetworkConfig(
        sensory=PUPPET,
        weights=GivenWeightsConfig(matrix_mv=weights.tolist()),
        learning=LearningConfig(rule="none"),
        **more,
    )
    network = SpikingNetwork(config)
    stimuli = np.zeros((n_ticks, 16))
    for channel, when in ticks.items():
        stimuli[list(when), channel] = PULSE
    out = np.empty((n_ticks, 16))
    for k in range(n_ticks):
        network.step(stimuli[k])
        out[k] = network.state[0]["kick"]
    return out


# --- weights ------------------------------------------------------------------------------------------------------


def test_given_weights_go_from_the_row_to_the_column() -> None:
    weights = np.arange(256).reshape(16, 16) / 100
    weights[:, COINCIDENCE] = 0
    charge = arrivals(weights, {0: [3], 7: [5], 13: [7]}, 10)
    for source, tick in ((0, 4), (7, 6), (13, 8)):
        assert (charge[tick] == weights[source].astype(np.float32)).all()
    assert not np.delete(charge, [4, 6, 8], axis=0).any()


def test_spikes_that_arrive_together_add_up() -> None:
    weights = np.zeros((16, 16))
    weights[[1, 2, 3], 0] = 1.0, 0.5, -0.25
    assert arrivals(weights, {1: [2], 2: [2], 3: [2]}, 5)[:, 0].tolist() == [0, 0, 0, 1.25, 0]


def test_random_weights_lie_between_the_sensory_channels_and_within_their_range() -> None:
    chosen = RandomWeightsConfig(low_mv=-0.2, high_mv=0.6, from_coincidence_mv=0.7, to_interneuron_mv=1.5)
    weights = initial_weights(NetworkConfig(weights=chosen))
    between = weights[:14, :14][~np.eye(14, dtype=bool)]
    assert -0.2 <= between.min() < -0.15
    assert 0.55 < between.max() <= np.float32(0.6)
    expected = np.zeros((16, 16), dtype=np.float32)
    expected[:14, :14][~np.eye(14, dtype=bool)] = between
    expected[COINCIDENCE, :14] = 0.7
    expected[:14, INHIBITORY] = 1.5
    assert (weights == expected).all()


# --- which synapses exist -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "given"])
def test_a_synapse_that_does_not_exist_has_no_weight(kind: str) -> None:
    mask = random_mask(1)
    given = GivenWeightsConfig(matrix_mv=random_mask(2).astype(float).tolist())
    whole = NetworkConfig(weights=RandomWeightsConfig() if kind == "random" else given)
    part = NetworkConfig.model_validate(whole.model_dump() | {"connected": mask.tolist()})
    assert (initial_weights(part) == initial_weights(whole) * mask).all()
    assert (SpikingNetwork(part).weights == initial_weights(part)).all()
    assert initial_weights(part).any()


def test_without_a_mask_every_synapse_exists() -> None:
    assert connected(NetworkConfig()).all()
    assert (initial_weights(NetworkConfig(connected=ONES)) == initial_weights(NetworkConfig())).all()


@pytest.mark.parametrize("rule", ["hebbian", "reward"])
def test_a_synapse_that_does_not_exist_never_gets_a_weight(rule: str) -> None:
    mask = random_mask(3)
    learning = LearningConfig.model_validate(
        {"rule": rule, "rate_per_s": 100, "w_min_mv": -2, "plastic": random_mask(4).tolist()}
    )
    network = SpikingNetwork(NetworkConfig(sensory=PUPPET, connected=mask.tolist(), learning=learning))
    assert (network.state[0]["plastic"] == mask * random_mask(4)).all()
    before = network.weights
    network.run((np.random.default_rng(5).random((400, 16)) < 0.1) * PULSE, NeuroModulators(dopamine=1))
    assert not network.weights[mask == 0].any()
    changed = network.weights != before
    assert changed.sum() > 40
    assert not changed[random_mask(4) == 0].any()


# --- delays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1, 2, 33, MAX_DELAY_TICKS])
def test_a_spike_arrives_its_delay_and_one_tick_later(delay: int) -> None:
    weights = np.zeros((16, 16))
    weights[3, :3] = 1.0
    charge = arrivals(weights, {3: [4]}, 80, delay_ticks=(0, 0, 0, delay, *[0] * 12))
    assert np.argwhere(charge).tolist() == [[4 + delay + 1, target] for target in range(3)]


def test_several_spikes_are_in_flight_at_once() -> None:
    weights = np.zeros((16, 16))
    weights[3, 0], weights[4, 0] = 1.0, 10.0
    when = {3: [0, 1, 2, 5, 40, 62, 63], 4: [7, 8]}
    charge = arrivals(weights, when, 140, delay_ticks=(0, 0, 0, MAX_DELAY_TICKS, 58, *[0] * 11))
    expected = np.zeros(140)
    expected[[tick + MAX_DELAY_TICKS + 1 for tick in when[3]]] += 1
    expected[[tick + 58 + 1 for tick in when[4]]] += 10
    assert charge[:, 0].tolist() == expected.tolist()


def test_random_trains_arrive_late_by_each_channels_own_delay() -> None:
    rng = np.random.default_rng(6)
    delays = rng.integers(0, MAX_DELAY_TICKS + 1, 16)
    weights = np.zeros((16, 16))
    weights[1:14, 0] = 2.0 ** np.arange(-4, 9)  # a sum of these says who it was
    fired = rng.random((200, 16)) < 0.1
    when = {channel: np.flatnonzero(fired[:, channel]).tolist() for channel in range(1, 14)}
    charge = arrivals(weights, when, 200, delay_ticks=tuple(delays.tolist()))[:, 0]
    expected = np.zeros(200)
    for channel in range(1, 14):
        for tick in when[channel]:
            if tick + delays[channel] + 1 < 200:
                expected[tick + delays[channel] + 1] += weights[channel, 0]
    assert charge.tolist() == expected.tolist()


def test_a_delay_of_none_is_the_network_without_delays() -> None:
    stimuli = np.random.default_rng(7).uniform(0, 4, (1000, 16))
    # the interneuron sends no weights: its own delay moves inhibition alone, which is switched off
    off = InhibitionConfig(strength_mv=0)
    without = SpikingNetwork(NetworkConfig(seed=1, inhibition=off))
    delayed = SpikingNetwork(NetworkConfig(seed=1, inhibition=off, delay_ticks=(0,) * 15 + (1,)))
    assert (without.state[0]["delayed"], delayed.state[0]["delayed"]) == (0, 1)
    spikes = delayed.run(stimuli)
    assert (spikes == without.run(stimuli)).all()
    assert spikes.any(axis=0).all()


@pytest.mark.parametrize("delay", [0, 5])
def test_inhibition_starts_late_by_the_delay_of_the_interneuron(delay: int) -> None:
    weights = np.zeros((16, 16))
    weights[1, INHIBITORY] = 50.0
    config = NetworkConfig(
        sensory=PUPPET,
        weights=GivenWeightsConfig(matrix_mv=weights.tolist()),
        inhibition=InhibitionConfig(strength_mv=20, duration_ms=4),
        delay_ticks=(*[0] * 15, delay),
    )
    network = SpikingNetwork(config)
    stimuli = np.zeros((30, 16))
    stimuli[10, 1] = PULSE
    inhibited = []
    for k in range(30):
        spikes = network.step(stimuli[k])
        assert spikes[INHIBITORY] == (k == 11)
        if network.state[0]["drive"][0] < 0:
            inhibited.append(k)
    assert inhibited == [12 + delay + k for k in range(4)]


def test_the_detectors_spikes_are_delayed_while_what_it_detects_is_not() -> None:
    weights = np.zeros((16, 16))
    weights[COINCIDENCE, :14] = 2.0
    config = NetworkConfig(
        sensory=PUPPET,
        weights=GivenWeightsConfig(matrix_mv=weights.tolist()),
        coincidence=CoincidenceConfig(min_channels=2),
        delay_ticks=(*[9] * 14, 6, 0),
    )
    network = SpikingNetwork(config)
    stimuli = np.zeros((30, 16))
    stimuli[4, :2] = PULSE
    detected, arrived = [], []
    for k in range(30):
        if network.step(stimuli[k])[COINCIDENCE]:
            detected.append(k)
        if network.state[0]["kick"][5] != 0:
            arrived.append(k)
    assert detected == [5]
    assert arrived == [5 + 6 + 1]


def test_spikes_in_flight_are_part_of_a_checkpoint() -> None:
    config = NetworkConfig(delay_ticks=tuple(range(40, 56)))
    stimuli = np.random.default_rng(8).uniform(0, 4, (400, 16))
    network, other = SpikingNetwork(config), SpikingNetwork(config, seed=5)
    network.run(stimuli[:200])
    other.restore(network.checkpoint())
    assert (other.run(stimuli[200:]) == network.run(stimuli[200:])).all()
    assert (other.weights == network.weights).all()


# --- what is refused ------------------------------------------------------------------------------------------------

DETECTED = np.zeros((16, 16), dtype=int)
DETECTED[2, COINCIDENCE] = 1


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"delay_ticks": (0,) * 15}, "delay_ticks.*at least 16 items"),
        ({"delay_ticks": (0,) * 17}, "delay_ticks.*at most 16 items"),
        ({"delay_ticks": (MAX_DELAY_TICKS + 1,) * 16}, "delay_ticks.0.*less than or equal to 62"),
        ({"delay_ticks": (-1,) * 16}, "delay_ticks.0.*greater than or equal to 0"),
        ({"delay_ticks": (0.5,) * 16}, "delay_ticks.0.*valid integer"),
        ({"connected": ONES[:15]}, "connected.*at least 16 items"),
        ({"connected": (*ONES[:15], (1,) * 15)}, "connected.15.*at least 16 items"),
        ({"connected": ((2,) * 16,) * 16}, "connected.0.0.*less than or equal to 1"),
        ({"learning": {"plastic": ONES[:3]}}, "plastic.*at least 16 items"),
        ({"learning": {"plastic": DETECTED.tolist()}}, "column 14 of plastic must be 0.*no weighted input"),
        ({"learning": {"w_min_mv": 2, "w_max_mv": 2}}, r"w_min_mv \(2\) must lie below w_max_mv \(2\)"),
        ({"weights": {"kind": "given", "matrix_mv": DETECTED.tolist()}}, "column 14 of the weights must be 0"),
        ({"weights": {"kind": "given", "matrix_mv": ONES[:2]}}, "matrix_mv.*at least 16 items"),
        ({"weights": {"kind": "random", "low_mv": 2, "high_mv": 1}}, r"low_mv \(2\) must not exceed high_mv \(1\)"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_with_what_was_expected(entries: dict[str, Any], complaint: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=f"(?s){complaint}"):
        NetworkConfig.model_validate(entries)
