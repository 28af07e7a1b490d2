"""Compares the core, as compiled from its Verilog, with the twin: every register after every tick."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from naive.board import PLACES
from neuromod.adapters.base import create_source
from neuromod.adapters.config import FeaturesConfig
from neuromod.adapters.fpga.core_model import ADDRESSES, CoreModel
from neuromod.bridge.config import SessionConfig
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.fixed_registers import FIXED_BLOCK, MODULATION, REGISTERS, register
from neuromod.engine.fixed_tick import fixed_tick, set_modulation
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import NeuroModulators
from neuromod.sorting.encoder import Encoder, encode

_MODULATION = [register(name) for name in MODULATION]
_CHUNK = 1000


class Comparison(NamedTuple):
    """What a comparison found: in words, the first difference, or nothing; and what the run was like."""

    difference: str
    n_spikes: int
    most_clocks: int


def compare(
    core: CoreModel, state: NDArray[Any], stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None
) -> Comparison:
    """Run core and twin from where they are; the twin's `state`, which the core has to hold, is moved on."""
    n_spikes, most_clocks = 0, 0
    settings = np.zeros((0, 5), np.int64) if modulation is None else modulation
    for k in range(0, len(stimuli), _CHUNK):
        rows, words = stimuli[k : k + _CHUNK], settings[k : k + _CHUNK]
        run = core.run(rows, words if len(words) else None, keep_words=True)
        n_spikes += int(np.bitwise_count(run.spikes).sum())
        most_clocks = max(most_clocks, int(run.clocks.max()))
        tick, word = _first_difference(state, _numbers(state), rows, words, run.spikes, run.words)
        if tick >= 0:
            return Comparison(_describe(k + tick, word, state, run.spikes, run.words), n_spikes, most_clocks)
    return Comparison("", n_spikes, most_clocks)


def random_state(rng: np.random.Generator) -> NDArray[Any]:
    """Every register anywhere in its range, extremes included, but for short times, and some spikes of late."""
    state = np.zeros(1, FIXED_BLOCK)
    block = state[0]
    for each in REGISTERS:
        values = rng.integers(each.lowest, each.highest, each.shape, endpoint=True)
        extreme = rng.choice([each.lowest, each.highest], each.shape)
        block[each.name] = np.where(rng.random(each.shape) < 0.2, extreme, values)
    if rng.random() < 0.8:
        for name in ("refractory", "refractory_left", "inhibition_ticks", "window_ticks", "coincidence_refractory"):
            block[name] = rng.integers(0, 4, register(name).shape)
        block["coincidence_left"] = 0
        block["since_spike"][:8] = rng.integers(0, 4, 8)
    block["rule"] = rng.choice([0, 1, 3, 3, 1, 2])
    return state


def random_stimuli(rng: np.random.Generator, n: int) -> NDArray[np.int16]:
    """Anywhere in the range; a third at its ends."""
    words = rng.integers(-(2**15), 2**15, (n, N_CHANNELS))
    extreme = rng.choice([-(2**15), 2**15 - 1, 0], (n, N_CHANNELS))
    return np.where(rng.random((n, N_CHANNELS)) < 0.33, extreme, words).astype(np.int16)


def random_modulation(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """Anywhere in the range; a fifth at its ends, a fifth near one, for the circuit to go on living."""
    columns = []
    for each in _MODULATION:
        values = rng.integers(each.lowest, each.highest, n, endpoint=True)
        extreme = rng.choice([each.lowest, each.highest, 0], n)
        usual = rng.integers(0, 2 << 16, n)
        kind = rng.random(n)
        columns.append(np.where(kind < 0.2, extreme, np.where(kind < 0.4, usual, values)))
    return np.ascontiguousarray(np.stack(columns, axis=1))


def varied_modulation(network: FixedNetwork, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """What levels of the neuromodulators come to that change every 100 ticks: the network learns, and unlearns."""
    levels = zip(rng.uniform(-1, 1, 64), rng.uniform(0, 1, 64), rng.uniform(0, 1, 64), strict=True)
    rows = [network.modulation_words(NeuroModulators(dopamine=d, cortisol=c, acetylcholine=a)) for d, c, a in levels]
    return np.array(rows)[rng.integers(0, 64, -(-n // 100))].repeat(100, axis=0)[:n]


def varied_stimuli(rng: np.random.Generator, n: int) -> NDArray[np.int16]:
    """Steps of 20 ticks, at which the default network fires some 600 times in 1000 ticks."""
    return quantised_stimuli(np.repeat(rng.uniform(0, 3, (-(-n // 20), N_CHANNELS)), 20, axis=0)[:n], 1000.0)


def recorded_stimuli(config: SessionConfig, n: int) -> NDArray[np.int16]:
    """Stimuli of the first `n` ticks for which the encoder makes some of a recording of features.

    As the loop does it, each vector of features is encoded once and stands for as many ticks as its bin has ms; the
    loop itself is left out, since compiling it takes longer than all the rest.
    """
    assert isinstance(config.source, FeaturesConfig)
    source = create_source(config.source)
    source.open()
    try:
        info, bin_ms = source.info, round(config.source.bin_ms)
        encoder = Encoder(config.encoder, info.n_channels, info.channel_names, block_ms=bin_ms)
        kept: list[NDArray[np.float32]] = []
        stimuli = np.empty(N_CHANNELS, np.float32)
        while not source.ended and len(kept) * bin_ms < n:
            for features in source.read(1000, 1.0).samples:
                was_ready = encoder.is_ready
                encode(encoder.state, features, stimuli)
                if was_ready:
                    kept.append(stimuli.copy())
    finally:
        source.close()
    return quantised_stimuli(np.repeat(kept, bin_ms, axis=0)[:n], config.network.stimulus_limit)


def _numbers(state: NDArray[Any]) -> NDArray[np.int64]:
    """The same memory, number by number."""
    return state.view(np.int64).reshape(-1)


@numba.njit(error_model="numpy")
def _first_difference(state, numbers, stimuli, modulation, spikes, words):  # type: ignore[no-untyped-def]
    """Tick and number that differ first; (t, -1) for the spikes alone, (-1, -1) for none."""
    for k in range(stimuli.shape[0]):
        if modulation.shape[0] > 0:
            set_modulation(state, modulation[k])
        if fixed_tick(state, stimuli[k]) != spikes[k]:
            return k, -1
        for i in range(numbers.shape[0]):
            if np.uint32(numbers[i] & 0xFFFFFFFF) != words[k, i]:
                return k, i
    return -1, -1


def _describe(
    tick: int, word: int, state: NDArray[Any], spikes: NDArray[np.uint16], words: NDArray[np.uint32] | None
) -> str:
    if word < 0 or words is None:
        return f"tick {tick}: spikes {spikes[tick % _CHUNK]:016b}, expected {int(state[0]['spikes']):016b}"
    where, index = PLACES[int(ADDRESSES[word])]
    expected = int(_numbers(state)[word]) & 0xFFFFFFFF
    n_wrong = int((words[tick % _CHUNK] != _numbers(state).astype(np.uint32)).sum())
    return (
        f"tick {tick}: {where.name}[{index}] is 0x{words[tick % _CHUNK, word]:08X}, expected 0x{expected:08X}; "
        f"{n_wrong} numbers differ in all"
    )
