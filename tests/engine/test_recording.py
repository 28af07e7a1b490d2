"""Recordings: what is in the block at the end of a tick, and the run as if nothing had looked."""

import numpy as np
import pytest

from neuromod.engine import tick as kernels
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import ChannelOverride, NetworkConfig
from neuromod.engine.errors import ConfigError, StimulusError
from neuromod.engine.layout import LAYOUT
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.recording import record

N_TICKS = 500 if JIT_ENABLED else 60
LEVELS = NeuroModulators(dopamine=0.5, cortisol=0.2, acetylcholine=0.3, tempo=1.5)
ALL_FIELDS = [field.name for field in LAYOUT]


def stimuli_of(seed: int, n_ticks: int = N_TICKS) -> np.ndarray:
    return np.random.default_rng(seed).normal(2, 2, (n_ticks, 16)).astype(np.float32)


@pytest.mark.parametrize("every", [1, 7, N_TICKS, N_TICKS + 1])
@pytest.mark.parametrize("levels", [None, LEVELS])
def test_a_recorded_run_has_the_bits_of_a_run(every: int, levels: NeuroModulators | None) -> None:
    watched, alone = SpikingNetwork(seed=1), SpikingNetwork(seed=1)
    recording = record(watched, stimuli_of(1), ["variables", "weights_mv"], levels, every=every)
    expected = alone.run(stimuli_of(1), levels)
    assert (recording.spikes == expected).all()
    assert expected.any()
    assert watched.state.tobytes() == alone.state.tobytes()


def test_every_field_holds_what_the_block_held_after_each_tick() -> None:
    watched, stepped = SpikingNetwork(seed=2), SpikingNetwork(seed=2)
    recording = record(watched, stimuli_of(2, 60), ALL_FIELDS, LEVELS)
    for k, row in enumerate(stimuli_of(2, 60)):
        stepped.step(row, LEVELS)
        for field in LAYOUT:
            seen, expected = recording[field.name][k], stepped.state[0][field.name]
            assert seen.tobytes() == expected.tobytes(), field.name
            assert seen.dtype == np.dtype(field.dtype)
            assert seen.shape == field.shape


def test_every_kth_tick_is_recorded_and_dated_by_its_end() -> None:
    network = SpikingNetwork(seed=3, dt_ms=0.5)
    network.run(stimuli_of(3, 10))
    recording = record(network, stimuli_of(4, 29), ["step"], every=7)
    assert recording["step"].tolist() == [17, 24, 31, 38]
    assert recording.t_ms.tolist() == [8.5, 12.0, 15.5, 19.0]
    assert recording.spikes.shape == (29, 16)
    assert recording.start_ms == 5.0
    assert recording.spike_times_ms(2).tolist() == [5 + 0.5 * (k + 1) for k in range(29) if recording.spikes[k, 2]]
    assert recording.spikes[:, 2].any()
    assert network.n_ticks == 39


def test_a_run_without_a_tick_records_nothing() -> None:
    recording = record(SpikingNetwork(), np.zeros((0, 16)), ["weights_mv"])
    assert recording["weights_mv"].shape == (0, 16, 16)
    assert recording.spikes.shape == (0, 16)


def test_a_run_may_record_spikes_alone() -> None:
    recording = record(SpikingNetwork(seed=1), stimuli_of(1), [])
    assert recording.spikes.any()
    with pytest.raises(ConfigError, match="'variables' was not recorded, no field was"):
        recording["variables"]


def test_a_variable_is_found_by_the_name_that_its_model_gives_it() -> None:
    whole = record(SpikingNetwork(seed=5), stimuli_of(5))
    named = record(SpikingNetwork(seed=5), stimuli_of(5), ["refractory_left_ms", "v_mv"])
    for row, name in enumerate(["v_mv", "refractory_left_ms"]):
        expected = whole["variables"][:, row, 3]
        assert expected.any()
        assert whole.variable(name, 3).tolist() == expected.tolist()
        assert named.variable(name, 3).tolist() == expected.tolist()
        assert named[name].shape == (N_TICKS, 16)


def test_a_variable_is_nan_where_the_model_of_a_channel_has_none_of_its_name() -> None:
    named = record(SpikingNetwork(), stimuli_of(1), ["v_mv"])
    assert np.isnan(named["v_mv"][:, 14]).all(), "the coincidence detector has no membrane"
    assert np.isfinite(named["v_mv"][:, :14]).all()


def test_a_variable_is_found_in_whatever_row_a_channels_model_has_it() -> None:
    config = NetworkConfig(
        channels={
            2: ChannelOverride(model="adex", parameters={"refractory_ms": 3.0}, bias=1000.0),
            4: ChannelOverride(model="izhikevich"),
        }
    )
    recording = record(SpikingNetwork(config), stimuli_of(6), ["refractory_left_ms", "u", "variables"])
    for name, channel, row in (("refractory_left_ms", 2, 2), ("refractory_left_ms", 3, 1), ("u", 4, 1)):
        expected = recording["variables"][:, row, channel]
        assert expected.any()
        assert recording.variable(name, channel).tolist() == expected.tolist()
    assert np.isnan(recording["u"][:, 3]).all()
    with pytest.raises(ConfigError, match=r"channel 3 has no variable 'u'; it has v_mv, refractory_left_ms"):
        recording.variable("u", 3)


def test_an_unknown_field_is_refused_by_naming_those_there_are() -> None:
    network = SpikingNetwork()
    with pytest.raises(ConfigError, match=r"no field 'voltage'.*variables v_mv, .*fields step, .*weights_mv"):
        record(network, stimuli_of(1), ["voltage"])
    assert network.n_ticks == 0


def test_what_was_not_recorded_is_refused_by_naming_what_was() -> None:
    recording = record(SpikingNetwork(), stimuli_of(1), ["weights_mv", "drive"])
    with pytest.raises(ConfigError, match="'kick' was not recorded, weights_mv, drive was: name it in `fields`"):
        recording["kick"]
    with pytest.raises(ConfigError, match="'variables' was not recorded"):
        recording.variable("v_mv", 0)
    with pytest.raises(ConfigError, match="channel 14 has no variable 'v_mv'; it has none"):
        recording.variable("v_mv", 14)
    with pytest.raises(ConfigError, match="channel must lie within 0 and 15, got 16"):
        recording.variable("v_mv", 16)


@pytest.mark.parametrize(
    ("stimuli", "words"),
    [
        (np.zeros((5, 15)), r"expected stimuli of shape \(n, 16\)"),
        (np.full((5, 16), np.nan), "expected finite float32 numbers, got nan as stimulus 0 of tick 0"),
    ],
)
def test_bad_stimuli_are_refused_as_by_a_run(stimuli: np.ndarray, words: str) -> None:
    network = SpikingNetwork()
    with pytest.raises(StimulusError, match=words):
        record(network, stimuli)
    assert network.n_ticks == 0


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_a_period_that_is_no_number_of_ticks_is_refused(every: int) -> None:
    network = SpikingNetwork()
    with pytest.raises(ConfigError, match="every must be a whole number of ticks, at least 1, got"):
        record(network, stimuli_of(1), every=every)
    assert network.n_ticks == 0


def test_one_field_may_be_named_without_a_list() -> None:
    recording = record(SpikingNetwork(), stimuli_of(1), "v_mv")
    assert recording.rows.dtype.names == ("v_mv",)
    assert recording.variable("v_mv", 0).any()


@pytest.mark.parametrize("channel", [-1, 16])
def test_spikes_of_a_channel_that_there_is_not_are_refused(channel: int) -> None:
    recording = record(SpikingNetwork(), stimuli_of(1), [])
    with pytest.raises(ConfigError, match=f"channel must lie within 0 and 15, got {channel}"):
        recording.spike_times_ms(channel)
    assert recording.spike_times_ms(14).shape == (recording.spikes[:, 14].sum(),)


@pytest.mark.skipif(not JIT_ENABLED, reason="compiled code alone has signatures")
def test_recording_leaves_the_kernel_of_a_run_as_it_is() -> None:
    signatures = list(kernels.run.signatures)  # type: ignore[attr-defined]
    record(SpikingNetwork(), stimuli_of(1), ["variables"], every=3)
    assert list(kernels.run.signatures) == signatures  # type: ignore[attr-defined]
