"""The network in fixed point: to the bit as specified, near to floating point, and honest about what it cannot hold."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from naive.fixed import fixed_tick as naive_tick
from naive.fixed import held_drives
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError, FixedPointError, StimulusError
from neuromod.engine.fixed_network import MAX_FIXED_DT_MS, FixedNetwork, quantised_modulation, quantised_stimuli
from neuromod.engine.fixed_registers import MODULATION, REGISTERS, register, size_bytes
from neuromod.engine.fixed_tick import count_saturated, fixed_tick
from neuromod.engine.modulators import RANGES, NeuroModulators
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import modulation, set_learning, set_modulator


def _exact(state: Any) -> dict[str, Any]:
    """Registers as exact numbers; those without a fraction as ints."""
    block = state[0]

    def convert(value: Any, scale: int) -> Any:
        if isinstance(value, list):
            return [convert(each, scale) for each in value]
        return Fraction(value, scale) if scale > 1 else value

    return {each.name: convert(block[each.name].tolist(), 1 << each.fraction) for each in REGISTERS}


def _randomised(rng: np.random.Generator) -> FixedNetwork:
    """A network with every register anywhere in its range, extremes included, but for short times and some spikes."""
    network = FixedNetwork()
    block = network.state[0]
    for each in REGISTERS:
        values = rng.integers(each.lowest, each.highest, each.shape, endpoint=True)
        extreme = rng.choice([each.lowest, each.highest], each.shape)
        block[each.name] = np.where(rng.random(each.shape) < 0.2, extreme, values)
    for name in ("refractory", "refractory_left", "inhibition_ticks", "window_ticks", "coincidence_refractory"):
        block[name] = rng.integers(0, 4, register(name).shape)
    block["coincidence_left"] = 0
    block["since_spike"][:8] = rng.integers(0, 4, 8)
    return network


@pytest.mark.parametrize("seed", range(6))
def test_compiled_tick_equals_naive_tick_with_registers_anywhere_in_their_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fired = 0
    for _ in range(4):
        network = _randomised(rng)
        network.state[0]["rule"] = rng.choice([0, 1, 3])
        exact = _exact(network.state)
        for _ in range(6):
            words = rng.choice([-(2**15), 2**15 - 1, 0, int(rng.integers(-(2**15), 2**15))], 16).astype(np.int16)
            spikes = fixed_tick(network.state, words)
            expected = naive_tick(exact, [Fraction(int(word), 256) for word in words])
            assert [bool(spikes >> i & 1) for i in range(16)] == expected
            assert _exact(network.state) == exact
            fired += sum(expected)
    assert fired > 0


def test_compiled_tick_equals_naive_tick_while_it_learns() -> None:
    network = FixedNetwork()
    network.state[0]["learning_factor"] = 1 << 14
    start = network.state[0]["weights"].copy()
    exact = _exact(network.state)
    words = quantised_stimuli(_stimuli(40), 1000.0)
    for row in words:
        fixed_tick(network.state, row)
        naive_tick(exact, [Fraction(int(word), 256) for word in row])
    assert _exact(network.state) == exact
    assert (network.state[0]["weights"] != start).any()


def test_learning_parts_from_floating_point_no_further_than_floating_point_from_itself() -> None:
    """A recurrent network is chaotic: the measure is the same network with stimuli moved by half a step of Q8.8.

    Twice the distance is allowed, since fixed point rounds in more places than its input.
    """
    stimuli = _stimuli(10_000)
    levels = NeuroModulators(dopamine=0.5)
    fixed, floating, moved = FixedNetwork(), SpikingNetwork(), SpikingNetwork()
    start = floating.weights
    ours = fixed.run(stimuli, np.tile(fixed.modulation_words(levels), (len(stimuli), 1))).sum(0).astype(float)
    theirs = floating.run(stimuli.astype(np.float32), levels).sum(0).astype(float)
    others = moved.run((stimuli + 2.0**-9).astype(np.float32), levels).sum(0).astype(float)
    assert np.abs(floating.weights - start).mean() > 0.05
    assert np.abs(ours - theirs).sum() < 2 * np.abs(others - theirs).sum()
    distance = np.abs(fixed.weights - floating.weights).mean()
    assert distance < 2 * np.abs(moved.weights - floating.weights).mean()


def test_below_threshold_membranes_follow_floating_point_within_the_rounding_of_their_input() -> None:
    """Half a step of Q8.8 at a gain of 10 is 0.02 mV; half a step of Q8.16 a tick, over 20 ticks, 0.0002 mV."""
    config = NetworkConfig.model_validate({"sensory": {"bias": 0.0}})
    stimuli = np.minimum(_stimuli(2000), 1.4)
    fixed, floating = FixedNetwork(config), SpikingNetwork(config)
    greatest = 0.0
    for row in stimuli:
        assert not fixed.run(row[np.newaxis]).any()
        assert not floating.step(row).any()
        theirs = floating.state[0]["variables"][0][:14].astype(float)
        assert np.abs(fixed.state[0]["v"][:14] / 65_536 - theirs).max() < 0.0202
        greatest = max(greatest, theirs.max())
    assert greatest > 10.0


def test_a_state_that_does_not_learn_fits_the_promised_1600_bytes() -> None:
    assert size_bytes(learning=False) == 893
    assert size_bytes(learning=True) == 2580


def test_no_two_registers_share_an_address() -> None:
    taken = [address for each in REGISTERS for address in range(each.address, each.address + each.size)]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("dt_ms", [3.0, 6.0, MAX_FIXED_DT_MS])
def test_in_one_long_step_membranes_and_traces_come_where_many_short_ones_bring_them(dt_ms: float) -> None:
    """Held inputs below threshold: only rounding parts them, by half a unit of each step's rise and result."""
    config = NetworkConfig.model_validate({"learning": {"rule": "reward"}})
    n = round(dt_ms)
    short, long = FixedNetwork(config), FixedNetwork(config, dt_ms=dt_ms)
    for network in (short, long):
        network.state[0]["pre_trace"][:] = np.arange(16) << 16
        network.state[0]["v"][:14] = np.arange(14) << 15
    row = np.linspace(-0.5, 0.5, 16)[np.newaxis]
    assert not short.run(np.repeat(row, n, axis=0)).any()
    assert not long.run(row).any()
    for name in ("v", "pre_trace"):
        np.testing.assert_allclose(long.state[0][name], short.state[0][name], atol=2 * n + 1, err_msg=name)


def test_a_fixed_point_network_takes_longer_steps_than_one_of_floating_point_and_these_no_other() -> None:
    for wrong in (0.0009, 10.01):
        with pytest.raises(ConfigError, match=f"dt_ms must lie within 0.001 and 10.0, got {wrong}"):
            FixedNetwork(dt_ms=wrong)
    with pytest.raises(ConfigError, match=r"dt_ms must lie within 0.001 and 1.0, got 1.5"):
        SpikingNetwork(dt_ms=1.5)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"sensory": {"model": "izhikevich"}}, "channel 0 is izhikevich, expected lif or lapicque"),
        ({"sensory": {"noise": 1.0}}, "channel 3 has noise of 1, expected 0"),
        ({"delay_ticks": [1] + [0] * 15}, "delay_ticks"),
        ({"learning": {"rule": "hebbian"}}, "hebbian"),
        ({"learning": {"bounds": "soft"}}, "soft"),
        ({"learning": {"homeostasis": {}}}, "homeostasis"),
        ({"sensory": {"parameters": {"v_threshold_mv": 200.0}}}, r"threshold\[0\] is 200 mV, expected -128 to 127.996"),
    ],
)
def test_what_hardware_cannot_hold_is_refused_by_name(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FixedPointError, match=complaint):
        FixedNetwork(NetworkConfig.model_validate(config))


@pytest.mark.parametrize("seed", range(4))
def test_the_tick_and_the_host_make_the_same_words_of_levels_and_live_parameters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network, out = SpikingNetwork(dt_ms=[1.0, 0.1, 1 / 3, 0.7][seed]), np.empty(5)
    dt_ms = network.dt_ms
    for _ in range(200):
        config = NetworkConfig.model_validate(
            {
                "input_gain": rng.uniform(0, 4),
                "recurrent_gain": rng.uniform(0, 4),
                "inhibition": {"strength_mv": rng.uniform(0, 20)},
                "learning": {"rate_per_s": rng.uniform(0, 50)},
            }
        )
        live = {
            "input_gain": config.input_gain,
            "recurrent_gain": config.recurrent_gain,
            "inhibition_strength_mv": config.inhibition.strength_mv,
            "learning_rate_per_s": config.learning.rate_per_s,
        }
        network.set_parameters(**live)
        for index, (low, high) in enumerate(RANGES[:3]):
            set_modulator(network.state, index, np.float32(rng.uniform(low, high)))
        levels = network.modulators

        step_ms = modulation(network.state, out)

        assert step_ms == dt_ms
        expected = FixedNetwork(config, dt_ms=dt_ms).modulation_words(levels)
        np.testing.assert_array_equal(quantised_modulation(out), expected[np.newaxis])


@pytest.mark.parametrize("seed", range(3))
def test_words_of_modulation_are_the_nearest_of_their_registers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.0, 256.0 - 2.0**-16, (300, 5)) * rng.choice([0.0, 1e-3, 1.0], (300, 5))
    rows[:, 4] = rng.uniform(-128.0, 127.9, 300)
    fractions = [register(name).fraction for name in MODULATION]
    expected = [[math.floor(x * 2**n + 0.5) for x, n in zip(row, fractions, strict=True)] for row in rows.tolist()]
    assert quantised_modulation(rows).tolist() == expected
    assert quantised_modulation(rows[7]).tolist() == [expected[7]]


@pytest.mark.parametrize("wrong", [np.nan, -1.0, 256.0, np.inf])
def test_modulation_that_does_not_fit_is_refused_by_the_first_row_of_each_register(wrong: float) -> None:
    rows = np.ones((4, 5))
    rows[1:, 3] = wrong
    rows[2:, 0] = wrong
    with pytest.raises(FixedPointError, match=r"^input_gain\[2\] .*; inhibition\[1\] ") as found:
        quantised_modulation(rows)
    assert str(found.value).count(";") == 1


def test_frozen_plasticity_and_a_learning_factor_of_zero_leave_weights_and_collect_eligibility() -> None:
    frozen, fixed, out = SpikingNetwork(), FixedNetwork(), np.empty(5)
    weights, words = frozen.weights, fixed.weights
    set_modulator(frozen.state, 0, np.float32(0.5))
    set_learning(frozen.state, False)
    n_spikes = 0
    for k, row in enumerate(_stimuli(500)):
        modulation(frozen.state, out)
        assert out[4] == 0.0
        theirs = frozen.step(row)
        ours = fixed.run(row[np.newaxis], quantised_modulation(out))[0]
        if (theirs != ours).any():  # a recurrent network is chaotic: from here on they are two
            break
        n_spikes += theirs.sum()
        # 2^-16 of a trace a tick, and what falls of it
        collected = fixed.state[0]["eligibility"] / 2.0**24
        np.testing.assert_allclose(collected, frozen.state[0]["eligibility_mv"], rtol=0, atol=(k + 1) * 1e-5)
    assert n_spikes > 20
    assert np.abs(collected).max() > 0.1
    assert (frozen.weights == weights).all()
    assert (fixed.weights == words).all()


def test_a_rule_without_reward_has_no_learning_factor() -> None:
    network, out = SpikingNetwork(NetworkConfig.model_validate({"learning": {"rule": "hebbian"}})), np.empty(5)
    set_modulator(network.state, 0, np.float32(0.5))
    modulation(network.state, out)
    assert out[4] == 0.0


def test_tempo_other_than_that_of_the_parameters_is_refused() -> None:
    with pytest.raises(FixedPointError, match="expected the tempo of the parameters, 1, got 2"):
        FixedNetwork().modulation_words(NeuroModulators(tempo=2.0))


def test_stimuli_saturate_and_bad_ones_are_refused() -> None:
    row = np.array([[1e9, -1e9, 0.5, 1 / 512, -1 / 512, *[0.0] * 11]])
    assert quantised_stimuli(row, 1000.0)[0, :5].tolist() == [32767, -32768, 128, 1, 0]
    with pytest.raises(StimulusError, match="finite"):
        quantised_stimuli(np.full((1, 16), np.nan), 1000.0)
    network = FixedNetwork()
    before = network.state.copy()
    with pytest.raises(StimulusError, match="learning_factor within"):
        network.run(row, np.array([[0, 0, 0, 0, 2**40]]))
    assert network.state == before


def test_a_silent_network_forgets_its_eligibility_to_zero() -> None:
    network = FixedNetwork()
    for name in ("bias", "gain"):
        network.state[0][name][:] = 0
    network.state[0]["eligibility"][0, 1], network.state[0]["eligibility"][1, 0] = 1000, -1000
    network.run(np.zeros((1000, 16)))
    assert not network.state[0]["eligibility"].any()


# -- drives past their range ------------------------------------------------------------------------------------------


def _saturated(network: FixedNetwork, words: Any, modulation: Any = ()) -> tuple[int, list[int]]:
    """Return the ticks at which a drive is held, and those of each channel."""
    channels = np.zeros(16, np.int64)
    rows = np.array(modulation, np.int64).reshape(-1, 5)
    return count_saturated(network.state, np.array(words, np.int16), rows, channels), channels.tolist()


def _unity() -> FixedNetwork:
    """A network of gains of 1, whose drive is stimulus plus bias."""
    network = FixedNetwork()
    network.state[0]["input_gain"], network.state[0]["gain"][:], network.state[0]["bias"][:] = 1 << 16, 1 << 8, 0
    return network


@pytest.mark.parametrize("seed", range(6))
def test_drives_that_are_held_are_counted_as_the_naive_twin_does_and_nothing_moves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_held = n_free = 0
    for _ in range(20):
        network = _randomised(rng)
        network.state[0]["gain"] >>= rng.integers(0, 12)
        words = (rng.integers(-(2**15), 2**15, (8, 16)) >> rng.integers(0, 12, (8, 1))).astype(np.int16)
        rows = np.zeros((rng.choice([0, 8]), 5), np.int64)
        rows[:, 0] = rng.integers(0, 2**24, len(rows)) >> rng.integers(0, 12, len(rows))
        before, exact, expected = network.state.copy(), _exact(network.state), []
        for k, row in enumerate(words):
            if len(rows):
                exact["input_gain"] = Fraction(int(rows[k, 0]), 1 << 16)
            expected.append(held_drives(exact, [Fraction(int(word), 256) for word in row]))
        ticks, channels = _saturated(network, words, rows)
        assert channels == np.sum(expected, axis=0).tolist()
        assert ticks == sum(map(any, expected))
        assert network.state == before
        n_held, n_free = n_held + sum(channels), n_free + 8 * 15 - sum(channels)
    assert min(n_held, n_free) > 100


@pytest.mark.parametrize(("word", "bias", "is_held"), [
    (2**15 - 1, 0, False), (2**15 - 1, 1, True), (2**14, 2**14 - 1, False), (2**14, 2**14, True),
    (-(2**15), 0, False), (-(2**15), -1, True), (-(2**14), -(2**14), False), (-(2**14), -(2**14) - 1, True),
])  # fmt: skip
def test_a_drive_of_128_mv_less_one_step_is_within_the_range_and_so_is_one_of_minus_128_mv(
    word: int, bias: int, is_held: bool
) -> None:
    network = _unity()
    network.state[0]["bias"][3] = bias
    words = [[word if i == 3 else 0 for i in range(16)]]
    assert _saturated(network, words) == (int(is_held), [int(is_held and i == 3) for i in range(16)])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stimulus_is_held_from_the_first_step_past_the_end_of_q8_16(sign: int) -> None:
    network, word = _unity(), 129 * sign
    end = 2**23 - 1 if sign > 0 else -(2**23)
    # the greatest input gain whose product, rounded half up, is not past the end
    last = max(gain for gain in range(16_647_140, 16_647_180) if (word * gain + 128 >> 8) * sign <= end * sign)
    words = [[word, *[0] * 15]] * 2
    assert _saturated(network, words, [[last, 0, 0, 0, 0], [last + 1, 0, 0, 0, 0]]) == (1, [1, *[0] * 15])


def test_a_stimulus_past_the_range_is_counted_even_where_a_small_gain_or_the_bias_brings_the_drive_back() -> None:
    network = _unity()
    network.state[0]["input_gain"] = 2 << 16
    network.state[0]["gain"][:4], network.state[0]["bias"][1] = (128, 256, 0, -256), -(2**14)
    # 200 mV, held to 128: drives of 64, 64, 0 and -128 mV instead of 100, 136, 0 and -200
    assert _saturated(network, [[100 * 256] * 4 + [0] * 12]) == (1, [1, 1, 0, 1, *[0] * 12])


def test_the_detector_has_no_drive_and_ticks_before_are_not_forgotten() -> None:
    network = _unity()
    network.state[0]["bias"][14] = network.state[0]["bias"][15] = 2**15 - 1
    channels = np.full(16, 5, np.int64)
    words = np.full((3, 16), 256, np.int16)
    assert count_saturated(network.state, words, np.zeros((0, 5), np.int64), channels) == 3
    assert channels.tolist() == [5] * 15 + [8]


def test_lowering_all_that_is_in_mv_by_one_factor_brings_the_drive_back_and_leaves_the_network_what_it_is() -> None:
    """By 1/16, which rounds nothing in floating point: there the spikes are the same ones."""
    high, low = (NetworkConfig.model_validate(_in_mv(scale)) for scale in (1.0, 1 / 16))
    stimuli = _stimuli(2000)
    words = quantised_stimuli(stimuli, 1000.0)
    assert _saturated(FixedNetwork(high), words)[0] > 1000
    assert _saturated(FixedNetwork(low), words) == (0, [0] * 16)
    levels = NeuroModulators(dopamine=0.5)
    spikes = SpikingNetwork(high).run(stimuli.astype(np.float32), levels)
    np.testing.assert_array_equal(SpikingNetwork(low).run(stimuli.astype(np.float32), levels), spikes)
    assert spikes.sum() > 1000


def _in_mv(scale: float) -> dict[str, Any]:
    """A session whose drive goes to 300 mV, times `scale`."""
    neuron = {"v_threshold_mv": 80.0 * scale, "v_reset_mv": 0.0, "v_min_mv": -20.0 * scale}
    return {
        "sensory": {"gain": 100.0 * scale, "bias": 4.0 * scale, "parameters": neuron},
        "interneuron": {"parameters": neuron},
        "inhibition": {"strength_mv": 30.0 * scale},
        "weights": {"kind": "random", "low_mv": 0.0, "high_mv": 4.0 * scale,
                    "from_coincidence_mv": 4.0 * scale, "to_interneuron_mv": 16.0 * scale},
        "learning": {"rule": "reward", "a_plus_mv": 0.5 * scale, "a_minus_mv": 0.5 * scale, "w_max_mv": 8.0 * scale},
    }  # fmt: skip


def _stimuli(n: int) -> NDArray[np.float64]:
    """Steps of 20 ticks."""
    return np.repeat(np.random.default_rng(1).uniform(0, 3, (-(-n // 20), 16)), 20, axis=0)[:n]


@pytest.mark.parametrize("dt_ms", [0.0, -1.0, 10.1, np.nan])
def test_registers_run_in_ticks_of_a_length_that_there_is(dt_ms: float) -> None:
    with pytest.raises(ConfigError, match="expected ticks of"):
        FixedNetwork.from_registers(FixedNetwork().state, dt_ms=dt_ms)
