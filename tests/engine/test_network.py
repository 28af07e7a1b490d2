"""SpikingNetwork: determinism, checkpoints, reset, live parameters, and what it refuses."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuromod.engine.config import (
    GivenWeightsConfig,
    InhibitionConfig,
    ModulationConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.errors import CheckpointError, ConfigError, StimulusError
from neuromod.engine.layout import BLOCK_BYTES, COINCIDENCE, FIXED, INHIBITORY, LIVE
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork


def stimuli_of(seed: int, n_ticks: int) -> np.ndarray:
    """Features of 10 ms each, as an encoder hands them over."""
    rows = np.random.default_rng(seed).normal(0.7, 1.2, (-(-n_ticks // 10), 16))
    return np.repeat(rows, 10, axis=0)[:n_ticks].astype(np.float32)


def block_of(network: SpikingNetwork) -> bytes:
    return network.state.tobytes()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    first, second = SpikingNetwork(seed=seed), SpikingNetwork(seed=seed)
    assert (first.run(stimuli_of(1, 2000)) == second.run(stimuli_of(1, 2000))).all()
    assert block_of(first) == block_of(second)


def test_another_seed_gives_other_weights() -> None:
    assert (SpikingNetwork(seed=1).weights != SpikingNetwork(seed=2).weights).any()
    assert (SpikingNetwork(seed=1).weights == SpikingNetwork(NetworkConfig(seed=1)).weights).all()


@pytest.mark.parametrize("form", ["none", "constant", "rows"])
def test_run_equals_as_many_steps(form: str) -> None:
    stimuli = stimuli_of(2, 600)
    rows = np.random.default_rng(3).uniform([-1, 0, 0, 0.1], [1, 1, 1, 4], (600, 4)).astype(np.float32)
    constant = NeuroModulators(dopamine=0.5, cortisol=0.25, acetylcholine=0.5, tempo=1.5)
    whole, single = SpikingNetwork(seed=4), SpikingNetwork(seed=4)
    at_once = whole.run(stimuli, {"none": None, "constant": constant, "rows": rows}[form])
    for k in range(600):
        levels = None
        if form == "constant":
            levels = constant
        if form == "rows":
            levels = NeuroModulators(
                dopamine=rows[k, 0], cortisol=rows[k, 1], acetylcholine=rows[k, 2], tempo=max(rows[k, 3], 0.1)
            )
        assert (single.step(stimuli[k], levels) == at_once[k]).all()
    assert block_of(whole) == block_of(single)
    assert at_once.any()


def test_a_run_can_be_split_anywhere() -> None:
    stimuli = stimuli_of(5, 1000)
    whole, split = SpikingNetwork(seed=4), SpikingNetwork(seed=4)
    expected = whole.run(stimuli)
    parts = [split.run(part) for part in np.split(stimuli, [0, 1, 17, 600])]
    assert (np.concatenate(parts) == expected).all()
    assert split.n_ticks == 1000


def test_a_restored_checkpoint_continues_bit_for_bit() -> None:
    network = SpikingNetwork(seed=4)
    network.run(stimuli_of(6, 777), NeuroModulators(dopamine=0.3, cortisol=0.4, acetylcholine=0.2, tempo=1.7))
    network.set_parameters(input_gain=1.25)
    saved = network.checkpoint()
    expected = network.run(stimuli_of(7, 1000))
    other = SpikingNetwork(NetworkConfig(seed=99, inhibition=InhibitionConfig(strength_mv=1)))
    other.restore(saved)
    assert (other.run(stimuli_of(7, 1000)) == expected).all()
    assert block_of(other) == block_of(network)
    assert other.n_ticks == 1777


def test_restoring_keeps_the_state_where_others_hold_it() -> None:
    network = SpikingNetwork(seed=4)
    state, saved = network.state, network.checkpoint()
    network.run(stimuli_of(6, 10))
    network.restore(saved)
    assert state is network.state
    assert state[0]["step"] == 0


def damage(checkpoint: bytes) -> bytes:
    return checkpoint[:200] + bytes([checkpoint[200] ^ 1]) + checkpoint[201:]


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda c: b"", "not a checkpoint"),
        (lambda c: c[:10], "not a checkpoint"),
        (lambda c: b"PK" + c[2:], "not a checkpoint"),
        (lambda c: c[:8] + struct.pack("<I", 9999) + c[12:], "layout version 9999"),
        (lambda c: c[:12] + bytes(16) + c[28:], "layout version 2 \\(0000"),
        (lambda c: c[:-1], "damaged"),
        (lambda c: c + b"\0", "damaged"),
        (damage, "damaged"),
    ],
)
def test_a_foreign_or_damaged_checkpoint_is_refused_and_changes_nothing(
    spoil: Callable[[bytes], bytes], word: str
) -> None:
    network = SpikingNetwork(seed=4)
    network.run(stimuli_of(6, 100))
    before = block_of(network)
    with pytest.raises(CheckpointError, match=word):
        network.restore(spoil(network.checkpoint()))
    assert block_of(network) == before


def test_a_checkpoint_of_another_step_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"ticks of 0\.5 ms, this one of 1 ms"):
        SpikingNetwork().restore(SpikingNetwork(dt_ms=0.5).checkpoint())


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"sensory": {"model": "izhikevich"}}, "models, model, parameters"),
        ({"sensory": {"bias": 3.0}}, "otherwise: bias differ"),
        ({"learning": {"rule": "hebbian"}}, "otherwise: rule differ"),
        ({"delay_ticks": [1] * 16}, "delay_ticks, delayed"),
    ],
)
def test_the_checkpoint_of_a_network_built_otherwise_is_refused(other: dict[str, Any], word: str) -> None:
    network = SpikingNetwork()
    before = block_of(network)
    with pytest.raises(CheckpointError, match=word):
        network.restore(SpikingNetwork(NetworkConfig.model_validate(other)).checkpoint())
    assert block_of(network) == before


def test_running_changes_no_field_that_a_checkpoint_is_compared_by() -> None:
    network = SpikingNetwork(
        NetworkConfig.model_validate(
            {
                "sensory": {"noise": 5.0},
                "delay_ticks": [1] * 16,
                "learning": {"homeostasis": {}},
                "channels": {3: {"model": "pospischil", "preset": "IB"}},
            }
        )
    )
    before = network.state[0].copy()
    network.add_reward(1.0)
    network.set_tempo(2.0)
    moved = set()
    for row in stimuli_of(1, 2000):
        network.step(row)
        moved |= {name for name in before.dtype.names if not np.array_equal(network.state[0][name], before[name])}
    assert not moved & set(FIXED)
    unmoved = set(before.dtype.names) - moved - set(FIXED)
    # set by hand, checked apart, or 0 because nothing was bad
    assert unmoved == {"learning", "live", "n_channels", "dt_ms", "bad_stimuli", "bad_levels"}


def test_reset_restores_everything() -> None:
    network = SpikingNetwork(seed=4)
    fresh = block_of(network)
    first = network.run(stimuli_of(8, 500), NeuroModulators(dopamine=1, cortisol=1, acetylcholine=1, tempo=3))
    network.set_parameters(input_gain=2.0)
    network.state[0]["weights_mv"][:] += 1
    network.reset()
    assert block_of(network) == fresh
    again = network.run(stimuli_of(8, 500), NeuroModulators(dopamine=1, cortisol=1, acetylcholine=1, tempo=3))
    assert (first == again).all()


def test_a_new_network_has_not_moved() -> None:
    network = SpikingNetwork()
    assert network.n_ticks == 0
    assert network.modulators == NeuroModulators()
    assert not network.state[0]["variables"].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_stimulus_that_is_not_finite_is_refused_and_the_network_stays(value: float) -> None:
    network = SpikingNetwork()
    before = block_of(network)
    stimuli = np.zeros((5, 16))
    stimuli[3, 7] = value
    with pytest.raises(StimulusError, match="stimulus 7 of tick 3"):
        network.run(stimuli)
    with pytest.raises(StimulusError, match="stimulus 7 of tick 0"):
        network.step(stimuli[3])
    assert block_of(network) == before


@pytest.mark.parametrize("shape", [(), (15,), (17,), (1, 16), (16, 1)])
def test_stimuli_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StimulusError, match=r"expected stimuli of shape \(16,\), got"):
        SpikingNetwork().step(np.zeros(shape))


@pytest.mark.parametrize("shape", [(16,), (4, 15), (2, 4, 16)])
def test_a_run_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StimulusError, match=r"expected stimuli of shape \(n, 16\), got"):
        SpikingNetwork().run(np.zeros(shape))


def test_modulators_of_another_shape_or_not_finite_are_refused() -> None:
    network = SpikingNetwork()
    with pytest.raises(StimulusError, match=r"expected modulators of shape \(3, 4\), got \(2, 4\)"):
        network.run(np.zeros((3, 16)), np.zeros((2, 4)))
    with pytest.raises(StimulusError, match="modulator 1 of tick 0"):
        network.run(np.zeros((1, 16)), [[0, np.nan, 0, 1]])
    assert network.n_ticks == 0


def test_any_numbers_in_any_order_of_memory_are_taken() -> None:
    stimuli = stimuli_of(9, 200)
    expected = SpikingNetwork().run(stimuli)
    for other in (stimuli.astype(np.float64), np.asfortranarray(stimuli), stimuli.tolist()):
        assert (SpikingNetwork().run(other) == expected).all()


def test_a_run_of_no_ticks_is_empty() -> None:
    network = SpikingNetwork()
    assert network.run(np.zeros((0, 16))).shape == (0, 16)
    assert network.run(np.zeros((0, 16)), NeuroModulators()).shape == (0, 16)
    assert network.n_ticks == 0


@pytest.mark.parametrize("dt_ms", [0.0, -1.0, 1.01, np.nan])
def test_a_step_out_of_range_is_refused(dt_ms: float) -> None:
    with pytest.raises(ConfigError, match="dt_ms must lie within"):
        SpikingNetwork(dt_ms=dt_ms)


@pytest.mark.parametrize("seed", [-1, 2**63, 7.5, True])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        SpikingNetwork(seed=seed)


def test_live_parameters_change_and_say_what_changed() -> None:
    network = SpikingNetwork()
    assert network.set_parameters(input_gain=1.5, coincidence_min_channels=4) == {"input_gain": (1.0, 1.5)}
    assert network.set_parameters(input_gain=1.5) == {}
    assert network.set_parameters() == {}


@pytest.mark.parametrize("name", LIVE)
def test_every_live_parameter_acts(name: str) -> None:
    other = {
        "input_gain": 0.5,
        "recurrent_gain": 3.0,
        "inhibition_strength_mv": 0.0,
        "inhibition_duration_ms": 1.0,
        "coincidence_window_ms": 1.0,
        "coincidence_min_channels": 7,
        "learning_rate_per_s": 50.0,
    }[name]
    plain, changed = SpikingNetwork(seed=1), SpikingNetwork(seed=1)
    changed.set_parameters(**{name: other})
    for network in (plain, changed):
        network.add_reward(1.0)
    assert (changed.run(stimuli_of(3, 3000)) != plain.run(stimuli_of(3, 3000))).any()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"seed": 3}, "cannot change while the network runs; input_gain, "),
        ({"nonsense": 3}, "cannot change"),
        ({"input_gain": -1.0}, "input_gain: .* got -1"),
        ({"input_gain": np.nan}, "input_gain"),
        ({"coincidence_min_channels": 15}, "coincidence_min_channels"),
        ({"coincidence_min_channels": 2.5}, "coincidence_min_channels"),
        ({"inhibition_duration_ms": 1e9}, "inhibition_duration_ms"),
    ],
)
def test_a_live_parameter_out_of_range_is_refused_and_nothing_changes(values: dict[str, float], word: str) -> None:
    network = SpikingNetwork()
    before = block_of(network)
    with pytest.raises(ConfigError, match=word):
        network.set_parameters(recurrent_gain=0.5, **values)
    assert block_of(network) == before


def test_given_weights_arrive_as_given() -> None:
    matrix = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    matrix[:, COINCIDENCE] = 0
    network = SpikingNetwork(NetworkConfig(weights=GivenWeightsConfig(matrix_mv=matrix.tolist())))
    assert (network.weights == matrix).all()


def test_random_weights_lie_in_their_range_and_spare_the_diagonal() -> None:
    chosen = RandomWeightsConfig(low_mv=0.1, high_mv=0.2, from_coincidence_mv=0.3, to_interneuron_mv=0.4)
    weights = SpikingNetwork(NetworkConfig(weights=chosen)).weights
    between = weights[:14, :14]
    assert not between.diagonal().any()
    assert ((between[~np.eye(14, dtype=bool)] >= 0.1) & (between[~np.eye(14, dtype=bool)] <= 0.2)).all()
    assert (weights[COINCIDENCE, :14] == np.float32(0.3)).all()
    assert (weights[:14, INHIBITORY] == np.float32(0.4)).all()
    assert not weights[:, COINCIDENCE].any()
    assert not weights[INHIBITORY].any()


def test_the_default_network_is_lively_without_running_away() -> None:
    network = SpikingNetwork(seed=3)
    rng = np.random.default_rng(11)
    shared = rng.normal(size=(400, 1))
    z_scored = np.repeat((rng.normal(size=(400, 16)) + shared) / np.sqrt(2), 50, axis=0)
    counts = np.repeat(rng.uniform(0, 5, (400, 16)), 50, axis=0)
    for stimuli, low, high in ((z_scored, 5, 30), (counts, 20, 60)):
        network.reset()
        rates = network.run(stimuli).mean(axis=0) * 1000
        assert ((rates[:14] > low) & (rates[:14] < high)).all(), rates
        assert 1 < rates[COINCIDENCE] < 100
        assert 1 < rates[INHIBITORY] < 100
    network.reset()
    assert not network.run(np.zeros((2000, 16))).any()
    assert network.run(np.full((2000, 16), 1e9))[:, 0].sum() <= 667, "refractoriness bounds every rate"


def test_undisturbed_modulators_stay_at_their_baseline() -> None:
    network = SpikingNetwork(NetworkConfig(modulation=ModulationConfig(baseline=NeuroModulators(cortisol=0.3))))
    network.run(stimuli_of(1, 500))
    assert network.modulators == NeuroModulators(cortisol=0.3)


def test_a_checkpoint_is_one_block_and_a_short_header() -> None:
    assert len(SpikingNetwork().checkpoint()) == BLOCK_BYTES + 32


def test_a_checkpoint_with_weights_where_there_is_no_synapse_is_refused() -> None:
    fixed = {"learning": {"rule": "none"}}
    sparse = SpikingNetwork(NetworkConfig.model_validate(fixed | {"connected": [[1] * 15 + [0]] * 16}))
    with pytest.raises(CheckpointError, match="weights where `connected` has no synapse"):
        sparse.restore(SpikingNetwork(NetworkConfig.model_validate(fixed)).checkpoint())
    assert not sparse.weights[:, INHIBITORY].any()


@pytest.mark.parametrize(
    ("levels", "word"),
    [
        ([0.0, 0.0, 0.0, 0.0], "tempo of tick 0 is 0, expected 0.1 to 4"),
        ([2.0, 0.0, 0.0, 1.0], "dopamine of tick 0 is 2, expected -1 to 1"),
    ],
)
def test_a_row_of_levels_out_of_range_is_refused(levels: list[float], word: str) -> None:
    network = SpikingNetwork()
    with pytest.raises(StimulusError, match=word):
        network.run(np.zeros((3, 16)), np.tile(levels, (3, 1)))
    assert network.n_ticks == 0


@pytest.mark.parametrize("config", [7, {"seed": 7}])
def test_what_is_no_configuration_is_refused_with_a_word_on_what_is(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a NetworkConfig, got .*seed=7"):
        SpikingNetwork(config)
