"""The core's Verilog, compiled, against the twin: every register after every tick, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from core_comparison import (
    compare,
    random_modulation,
    random_state,
    random_stimuli,
    recorded_stimuli,
    varied_modulation,
    varied_stimuli,
)

from neuromod.adapters.fpga.core_model import ADDRESSES, CoreModel, state_words
from neuromod.bridge.config import for_recording
from neuromod.engine.errors import AdapterError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import REGISTERS

JANGO = "m1-utah-wristflexion-jango/Jango_20141203_default_offline_data.mat"
EPISODE = 100
"""Ticks from one adversarial state; later, what can saturate has, and most of the rest is silent."""


def _adversarial(seed: int, n_ticks: int) -> tuple[int, int]:
    """Go through random states with random input; return how many spikes there were, and the most clocks of a tick."""
    rng = np.random.default_rng(seed)
    n_spikes, most_clocks = 0, 0
    with CoreModel(seed=seed + 1) as core:
        for _ in range(n_ticks // EPISODE):
            state = random_state(rng)
            core.load(state)
            found = compare(core, state, random_stimuli(rng, EPISODE), random_modulation(rng, EPISODE))
            assert found.difference == ""
            n_spikes, most_clocks = n_spikes + found.n_spikes, max(most_clocks, found.most_clocks)
    return n_spikes, most_clocks


def _recorded(recordings: Path, n_ticks: int) -> None:
    stimuli = recorded_stimuli(
        for_recording(recordings / JANGO, bin_ms=50.0, stream="train_data.spikeratedata"), n_ticks
    )
    network = FixedNetwork()
    start = network.state[0]["weights"].copy()
    modulation = varied_modulation(network, np.random.default_rng(1), n_ticks)
    with CoreModel(seed=1) as core:
        core.load(network.state)
        found = compare(core, network.state, stimuli, modulation)
    assert found.difference == ""
    assert len(stimuli) == n_ticks
    assert found.n_spikes > n_ticks // 100
    assert (network.state[0]["weights"] != start).sum() > 100


@pytest.mark.parametrize("seed", range(2))
def test_core_equals_the_twin_with_registers_and_input_anywhere_in_their_range(seed: int) -> None:
    n_spikes, most_clocks = _adversarial(seed, 5000)
    assert n_spikes > 1000
    assert most_clocks < 1000  # 10 us at 100 MHz


def test_core_equals_the_twin_while_it_learns() -> None:
    network, rng = FixedNetwork(), np.random.default_rng(0)
    start = network.state[0]["weights"].copy()
    with CoreModel(seed=1) as core:
        core.load(network.state)
        found = compare(core, network.state, varied_stimuli(rng, 6000), varied_modulation(network, rng, 6000))
    assert found.difference == ""
    assert found.n_spikes > 3000
    assert (network.state[0]["weights"] != start).sum() > 100


def test_core_equals_the_twin_on_a_recording(recordings: Path) -> None:
    _recorded(recordings, 4000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_core_equals_the_twin_over_half_a_million_ticks_of_a_recording(recordings: Path) -> None:
    _recorded(recordings, 500_000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_core_equals_the_twin_over_half_a_million_adversarial_ticks() -> None:
    n_spikes, _ = _adversarial(100, 500_000)
    assert n_spikes > 100_000


def test_a_comparison_finds_a_single_wrong_bit() -> None:
    network, rng = FixedNetwork(), np.random.default_rng(2)
    stimuli = varied_stimuli(rng, 20)
    with CoreModel() as core:
        core.load(network.state)
        core.write([0x123], [int(network.state[0]["weights"][2, 3]) ^ 1])
        found = compare(core, network.state, stimuli)
    assert found.difference.startswith("tick 0: weights[35] is 0x")
    assert found.difference.endswith("1 numbers differ in all")


@pytest.mark.parametrize("seed", range(4))
def test_registers_are_read_as_they_were_written_whatever_they_powered_up_as(seed: int) -> None:
    state = random_state(np.random.default_rng(seed))
    with CoreModel(seed=seed) as core:
        core.load(state)
        assert (core.read(ADDRESSES) == state_words(state)).all()
        assert core.read_state() == state
        assert (core.read([0x085, 0x08F, 0x0F0, 0x0FF, 0x300, 0x3FF]) == 0).all()  # nothing lies there


@pytest.mark.parametrize("seed", range(2))
def test_bits_beyond_a_register_are_ignored(seed: int) -> None:
    """Any word may be written anywhere; what is read is as wide as the register, with its sign."""
    written = np.random.default_rng(seed).integers(0, 2**32, len(ADDRESSES)).astype(np.uint32)
    beyond = np.concatenate([np.full(each.size, 32 - each.bits) for each in REGISTERS]).astype(np.uint32)
    signed = np.concatenate([np.full(each.size, each.signed) for each in REGISTERS])
    on_top = written << beyond
    expected = np.where(signed, (on_top.view(np.int32) >> beyond.view(np.int32)).view(np.uint32), on_top >> beyond)
    nowhere = [0x085, 0x0F0, 0x300]
    with CoreModel(seed=1) as core:
        core.write([*ADDRESSES, *nowhere], [*written, 1, 1, 1])
        assert (core.read(ADDRESSES) == expected).all()
        assert (core.read(nowhere) == 0).all()


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_reset_in_the_middle_of_a_tick_leaves_nothing_behind(seed: int) -> None:
    """What it was doing is lost; once the registers are written anew, all is as ever."""
    rng = np.random.default_rng(seed)
    with CoreModel(seed=seed) as core:
        for after_clocks in (*range(1, 40), *range(40, 900, 17)):
            state = random_state(rng)
            core.reset(after_clocks)
            core.load(state)
            found = compare(core, state, random_stimuli(rng, 2), random_modulation(rng, 2))
            assert found.difference == "", after_clocks


def test_bad_input_is_refused_by_its_shape() -> None:
    with CoreModel() as core:
        with pytest.raises(AdapterError, match=r"stimuli of shape \(n, 16\), got \(2, 15\)"):
            core.run(np.zeros((2, 15), np.int16))
        with pytest.raises(AdapterError, match=r"modulation of shape \(2, 5\), got \(1, 5\)"):
            core.run(np.zeros((2, 16), np.int16), np.zeros((1, 5), np.int64))
        with pytest.raises(AdapterError, match="as many words as addresses"):
            core.write([1, 2], [3])
