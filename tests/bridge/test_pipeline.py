"""From samples to spikes: grid, gaps, blocks, queue and ticks, against a slow twin and in any split."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from naive.pipeline import NaivePipeline, Row
from neuromod.adapters.base import StreamInfo
from neuromod.adapters.decoder import make_decoder
from neuromod.bridge.assembly import assemble
from neuromod.bridge.config import parse
from neuromod.bridge.gate import CONDITION_BOARD
from neuromod.bridge.pipeline import (
    COUNTERS,
    FLAG_MODULATED,
    FLAGS_NEXT,
    PAUSED,
    TICK,
    advance,
    consume,
    dequeue_stimuli,
    drop_samples,
    enqueue_stimuli,
    make_pipeline,
    resume,
    samples_wanted,
    stand_by,
    take_answer,
)
from neuromod.bridge.stimulation import make_stimulation
from neuromod.bridge.wire import Flag
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.layout import LIVE
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import add_reward, add_stress, set_learning, set_modulator, set_parameter
from neuromod.sorting.config import EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd, finish_block, push

TINY = float(np.finfo(np.float32).smallest_subnormal)
N_EXAMPLES = 60 if JIT_ENABLED else 10
QUEUE_LENGTH = 1024

PLAIN_FEATURES = FrontEndConfig(features=("raw",), reference="none")  # the mean of a block
PLAIN_STIMULI = EncoderConfig(kind="identity", smoothing_ms=0.0, normalisation="none", offset=0.0, clip=(-1e30, 1e30))


@dataclass(frozen=True)
class Setup:
    """What a stream is, and how it is treated."""

    sampling_frequency: float = 1000.0
    block_ms: float = 1.0
    ticks_per_block: int = 1
    n_channels: int = 2
    regular: bool = True
    jitter_ms: float = 0.2
    fill: str = "hold"
    max_fill_ms: float = 20.0
    scale: tuple[float, ...] = (1.0, 1.0)
    delay_ticks: int = 0
    checked_only: bool = False

    @property
    def period(self) -> float:
        return 1.0 / self.sampling_frequency

    def options(self) -> dict[str, Any]:
        return {**self.__dict__, "scale": np.array(self.scale, np.float32)}

    def network(self) -> SpikingNetwork:
        return SpikingNetwork(seed=1, dt_ms=min(1.0, self.block_ms / self.ticks_per_block))


class Chain:
    """The compiled pipeline with its front end, encoder and network."""

    def __init__(
        self, setup: Setup, front_end: FrontEndConfig = PLAIN_FEATURES, encoder: EncoderConfig = PLAIN_STIMULI
    ) -> None:
        self.front_end = FrontEnd(front_end, setup.n_channels, setup.sampling_frequency)
        self.encoder = Encoder(encoder, self.front_end.n_features, self.front_end.feature_names)
        self.network = setup.network()
        self.decoder = make_decoder(None, self.network.dt_ms)
        self.stimulation = make_stimulation(None, dt_ms=self.network.dt_ms)
        self.pipeline = make_pipeline(n_features=self.front_end.n_features, **setup.options())

    def consume(
        self,
        samples: NDArray[np.float32],
        stamps: NDArray[np.float64],
        *,
        chunks: Sequence[int] = (),
        capacities: Sequence[int] = (4096,),
    ) -> NDArray[Any]:
        """Take all samples, so many a call as `chunks` says and the rest in one; return the records."""
        samples, parts, turn = samples.copy(), [np.zeros(0, TICK)], 0
        ends = [*np.minimum(np.cumsum(np.array(chunks, np.int64)), len(stamps)), len(stamps)]
        first = 0
        for end in ends:
            while first < end:
                records = np.full(capacities[turn % len(capacities)], 0, TICK)
                records.view(np.uint8)[:] = 0xAA  # every field must be written
                turn += 1
                before = first
                first, n_records = consume(
                    self.pipeline,
                    self.front_end.state,
                    self.encoder.state,
                    self.network.state,
                    self.decoder,
                    self.stimulation,
                    samples,
                    stamps,
                    first,
                    int(end),
                    records,
                )
                assert first > before or n_records > 0, "no progress"
                parts.append(records[:n_records])
        return np.concatenate(parts)

    def counters(self) -> dict[str, int]:
        return dict(zip(COUNTERS, self.pipeline.counters.tolist(), strict=True))

    def state(self) -> bytes:
        parts: list[Any] = [*self.pipeline, *self.front_end.parts(), *self.encoder.state, self.network.state]
        return b"".join(part.tobytes() for part in parts)

    def modulate(self, index: int, level: float) -> None:
        """Set a level between two ticks, as the loop does."""
        set_modulator(self.network.state, index, np.float32(level))
        self.pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED


def contents(records: NDArray[Any]) -> list[bytes]:
    """All fields, without the padding between them."""
    return [records[name].tobytes() for name in TICK.names or ()]


def steady(setup: Setup, n: int) -> NDArray[np.float64]:
    return 100.0 + np.arange(n) / setup.sampling_frequency


def noise(setup: Setup, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(1.0, 1.0, (n, setup.n_channels)).astype(np.float32)


def ramp(setup: Setup, n: int) -> NDArray[np.float32]:
    """Sample k has the value k + 1 in all channels."""
    return np.repeat(np.arange(1.0, n + 1, dtype=np.float32)[:, None], setup.n_channels, axis=1)


def flags_of(records: NDArray[Any], flag: Flag) -> list[int]:
    """Rows at which a flag is set."""
    return np.flatnonzero(records["flags"] & flag).tolist()


def play(
    setup: Setup, samples: NDArray[np.float32], stamps: NDArray[np.float64], **how: Any
) -> tuple[NDArray[Any], dict[str, int]]:
    chain = Chain(setup)
    records = chain.consume(samples, stamps, **how)
    return records, chain.counters()


# ---------------------------------------------------------------------------------------------------------------------
# streams with everything that goes wrong


RATES: list[tuple[float, float, int]] = [  # rate in Hz, block in ms, ticks per block
    (1000.0, 1.0, 1),
    (1000.0, 5.0, 5),
    (250.0, 4.0, 4),
    (30000.0, 0.1, 1),
    (24414.0625, 0.25, 1),  # 6.1 samples a block
    (2034.5052083333333, 1.0, 1),  # 2.03 samples a block
    (44100.0, 0.3, 1),
    (20.0, 50.0, 50),  # feature vectors
]


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    rate, block_ms, ticks_per_block = draw(st.sampled_from(RATES))
    period_ms = 1000.0 / rate
    return Setup(
        sampling_frequency=rate,
        block_ms=block_ms,
        ticks_per_block=ticks_per_block,
        regular=draw(st.sampled_from([True, True, True, False])),
        jitter_ms=draw(st.sampled_from([0.0, 0.2, 0.7, 1.6, 5.3])) * period_ms,
        fill=draw(st.sampled_from(["hold", "zero"])),
        max_fill_ms=draw(st.sampled_from([0.0, 4.1, 12.3, 100.0])) * period_ms,
        scale=draw(st.sampled_from([(1.0, 1.0), (0.195, -2.0)])),
        delay_ticks=draw(st.sampled_from([0, 0, 1, 3, 64])),
    )


# steps between stamps in periods, most of them 1; `None` repeats the sample before
STEPS = st.one_of(
    st.just(1.0),
    st.just(1.0),
    st.just(1.0),
    st.floats(0.0, 3.0).map(lambda step: round(step, 3)),
    st.integers(2, 20).map(float),
    st.sampled_from([0.0, -1.0, -7.3, 1.1, 0.9, 130.0, 1e5, -1e5]),
    st.none(),
)
VALUES = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([0.0, -0.0, -TINY, np.nan, np.inf, -np.inf, 3.0]),
    st.integers(-2, 2),
)


@st.composite
def streams(draw: st.DrawFn, setup: Setup) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    steps = draw(st.lists(STEPS, min_size=1, max_size=60))
    samples, stamps = [], []
    t = draw(st.sampled_from([0.0, 12.5, 98765.4321]))
    values = [0.0, 0.0]
    for step in steps:
        if step is not None:
            t += step * setup.period
            values = draw(st.lists(VALUES, min_size=2, max_size=2))
        samples.append(values)
        stamps.append(t)
    stamps_array = np.array(stamps)
    for at in draw(st.lists(st.integers(0, len(steps) - 1), max_size=2)):
        stamps_array[at] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return np.array(samples, np.float32), stamps_array


@settings(max_examples=4 * N_EXAMPLES, deadline=None)
@given(data=st.data(), setup=setups())
def test_consume_equals_its_naive_twin(data: st.DataObject, setup: Setup) -> None:
    samples, stamps = data.draw(streams(setup))
    chain, twin = Chain(setup), NaivePipeline(setup.network(), **setup.options())

    rows: list[NDArray[Any]] = []
    at = 0
    while at < len(stamps):
        # between two calls comes what may come between two ticks
        for _ in range(data.draw(st.sampled_from([0, 0, 1, 3]))):
            stimuli = np.full(16, data.draw(st.floats(-3, 3, width=32)), np.float32)
            assert enqueue_stimuli(chain.pipeline, stimuli, 0.0) == twin.queue_stimuli(stimuli)
        if setup.delay_ticks:
            ticks = st.integers(max(0, twin.n_ticks - setup.delay_ticks - 2), twin.n_ticks + 1)
            for tick in data.draw(st.lists(ticks, max_size=6)):
                spikes = data.draw(st.integers(0, 0xFFFF))
                is_checked = data.draw(st.sampled_from([True, True, True, False]))
                take_answer(chain.pipeline, tick, spikes, is_checked)
                twin.answer(tick, spikes, is_checked)
        if data.draw(st.sampled_from([False, False, False, True])):
            drop_samples(chain.pipeline, data.draw(st.integers(0, 500)))
            twin.drop()
        if data.draw(st.booleans()):
            level = data.draw(st.sampled_from([0.25, 1.0]))
            chain.modulate(2, level)
            set_modulator(twin.network.state, 2, np.float32(level))
            twin.is_modulated = True
        if data.draw(st.sampled_from([False, False, True])):
            dopamine, live = data.draw(st.sampled_from([-0.5, 0.75])), data.draw(st.integers(0, len(LIVE) - 1))
            on = data.draw(st.booleans())
            for network in (chain.network, twin.network):
                set_modulator(network.state, 0, np.float32(dopamine))
                set_parameter(network.state, live, np.float64(network.state[0]["live"][live] * 0.75))
                set_learning(network.state, on)
        twin.pause(data.draw(st.sampled_from([False, False, True])))
        if twin.is_paused:
            chain.pipeline.words[PAUSED] = 1
        else:
            resume(chain.pipeline)
        n = data.draw(st.integers(1, 30))
        rows.append(chain.consume(samples[at : at + n], stamps[at : at + n], capacities=[setup.ticks_per_block]))
        for sample, stamp in zip(samples[at : at + n], stamps[at : at + n], strict=True):
            twin.feed(sample, float(stamp))
        at += n

    records = np.concatenate(rows)
    assert chain.counters() == {name: twin.counters[name] for name in COUNTERS}
    assert records["flags"].tolist() == [int(tick.flags) for tick in twin.ticks]
    missing = (records["flags"] & Flag.BOARD) != 0
    assert ((records["conditions"] & CONDITION_BOARD) != 0).tolist() == missing.tolist()
    for name in ("tick", "sample", "spikes"):
        assert records[name].tolist() == [getattr(tick, name) for tick in twin.ticks], name
    for name in ("stimuli", "membrane", "modulators"):
        expected = [getattr(tick, name) for tick in twin.ticks]
        assert records[name].tobytes() == np.array(expected, np.float32).tobytes(), name
    for name in ("modulation", "step_ms"):
        assert records[name].tobytes() == np.array([getattr(tick, name) for tick in twin.ticks]).tobytes(), name
    np.testing.assert_allclose(records["t_sample"], [tick.t_sample for tick in twin.ticks], rtol=0, atol=1e-9)
    for name in ("seq", "t_arrival", "t_tick"):  # the loop's to fill in
        assert not records[name].any()


@settings(max_examples=2 * N_EXAMPLES, deadline=None)
@given(
    data=st.data(),
    setup=setups(),
    chunks=st.lists(st.integers(1, 9), max_size=30),
    extra=st.lists(st.integers(0, 70), min_size=1, max_size=4),
)
def test_no_split_of_the_samples_nor_any_room_for_records_changes_a_bit(
    data: st.DataObject, setup: Setup, chunks: list[int], extra: list[int]
) -> None:
    samples, stamps = data.draw(streams(setup))
    whole, split = Chain(setup), Chain(setup)
    for chain in (whole, split):
        for k in range(5):
            enqueue_stimuli(chain.pipeline, np.full(16, k, np.float32), 0.0)

    at_once = whole.consume(samples, stamps)
    in_parts = split.consume(samples, stamps, chunks=chunks, capacities=[setup.ticks_per_block + e for e in extra])

    assert contents(in_parts) == contents(at_once)
    assert split.state() == whole.state()


REAL = FrontEndConfig.model_validate({"features": ["crossings", "spiking_band"], "warmup_s": 0.02})
REAL_STIMULI = EncoderConfig(warmup_s=0.02)
REAL_SETUP = Setup(
    sampling_frequency=24414.0625, n_channels=4, scale=(1.0, 0.5, 2.0, 1.0), jitter_ms=0.05, max_fill_ms=3.0
)


def spoilt_signal(seed: int, n: int = 4000) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A raw signal with gaps, a repeated sample, a step back and values that are no numbers."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0.0, 20.0, (n, REAL_SETUP.n_channels)).astype(np.float32)
    samples[rng.random(samples.shape) < 0.01] *= 8.0
    samples[rng.random(samples.shape) < 0.001] = np.nan
    steps = np.ones(n)
    steps[rng.integers(1, n, 8)] = [2, 3, 40, 60, 500, 2, -30, 7]
    stamps = 5.0 + np.cumsum(steps) * REAL_SETUP.period
    samples[n // 2], stamps[n // 2] = samples[n // 2 - 1], stamps[n // 2 - 1]
    return samples, stamps


@pytest.mark.parametrize("seed", [1, 2])
def test_a_raw_signal_with_a_real_front_end_equals_the_naive_twin(seed: int) -> None:
    samples, stamps = spoilt_signal(seed)
    front_end = FrontEnd(REAL, REAL_SETUP.n_channels, REAL_SETUP.sampling_frequency)
    encoder = Encoder(REAL_STIMULI, front_end.n_features, front_end.feature_names)

    def stimulate(block: Sequence[Row]) -> Row:
        features, stimuli = np.zeros(front_end.n_features, np.float32), np.zeros(16, np.float32)
        push(front_end.state, np.array(block))
        finish_block(front_end.state, features)
        encode(encoder.state, features, stimuli)
        return stimuli

    twin = NaivePipeline(REAL_SETUP.network(), stimulate=stimulate, **REAL_SETUP.options())
    chain = Chain(REAL_SETUP, REAL, REAL_STIMULI)

    records = chain.consume(samples, stamps)
    for sample, stamp in zip(samples, stamps, strict=True):
        twin.feed(sample, float(stamp))

    assert chain.counters() == {name: twin.counters[name] for name in COUNTERS}
    assert records["spikes"].any()
    assert records["spikes"].tolist() == [tick.spikes for tick in twin.ticks]
    assert records["stimuli"].tobytes() == np.array([tick.stimuli for tick in twin.ticks]).tobytes()
    assert records["flags"].tolist() == [int(tick.flags) for tick in twin.ticks]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_raw_signal_in_the_chunks_of_a_network_gives_the_bits_of_a_replay(seed: int) -> None:
    samples, stamps = spoilt_signal(seed)
    whole, split = Chain(REAL_SETUP, REAL, REAL_STIMULI), Chain(REAL_SETUP, REAL, REAL_STIMULI)
    chunks = np.random.default_rng(seed).integers(1, 60, 100).tolist()

    at_once = whole.consume(samples, stamps)
    in_parts = split.consume(samples, stamps, chunks=chunks, capacities=[1, 7])

    assert contents(in_parts) == contents(at_once)
    assert split.state() == whole.state()


def digest() -> str:
    """Hash of all that a short spoilt stream becomes, for comparison with the JIT off."""
    chain = Chain(REAL_SETUP, REAL, REAL_STIMULI)
    enqueue_stimuli(chain.pipeline, np.full(16, 1.25, np.float32), 0.0)
    add_reward(chain.network.state, np.float32(0.3))
    add_stress(chain.network.state, np.float32(0.1))
    samples, stamps = spoilt_signal(3, 2000)
    stamps[1000] = np.nan
    records = chain.consume(samples, stamps, chunks=[500, 3])
    assert records["spikes"].any()
    found = hashlib.sha256(b"".join(contents(records)) + chain.state())
    setup = Setup(block_ms=5.0, ticks_per_block=5, fill="zero", max_fill_ms=8.0)
    chain = Chain(setup)
    stamps = np.cumsum(np.where(np.arange(200) % 17 == 16, 4.0, 1.0)) * setup.period
    found.update(b"".join(contents(chain.consume(noise(setup, 200), stamps))) + chain.state())
    return found.hexdigest()


@pytest.mark.skipif(not JIT_ENABLED, reason="compares with the compiled form, which is switched off")
def test_the_interpreted_pipeline_gives_the_bits_of_the_compiled_one() -> None:
    child = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == digest()


def test_the_same_recording_twice_gives_the_same_bits() -> None:
    samples, stamps = spoilt_signal(4)
    chains = [Chain(REAL_SETUP, REAL, REAL_STIMULI) for _ in range(2)]

    first, second = (chain.consume(samples, stamps) for chain in chains)

    assert first["spikes"].any()
    assert contents(first) == contents(second)
    assert chains[0].state() == chains[1].state()


# ---------------------------------------------------------------------------------------------------------------------
# the grid, case by case


def test_a_perfect_stream_has_nothing_to_report() -> None:
    setup = Setup()

    records, counters = play(setup, noise(setup, 500), steady(setup, 500))

    assert not records["flags"].any()
    assert {name for name, count in counters.items() if count} == {"samples", "blocks", "ticks"}
    assert records["tick"].tolist() == list(range(500))
    assert records["sample"].tolist() == list(range(1, 501))
    assert records["t_sample"].tolist() == steady(setup, 500).tolist()


@pytest.mark.parametrize("jitter_ms", [0.01, 0.2, 0.49])
def test_one_lost_sample_of_exact_stamps_is_counted_as_one(jitter_ms: float) -> None:
    setup = Setup(jitter_ms=jitter_ms)
    kept = np.delete(np.arange(100), 40)

    records, counters = play(setup, ramp(setup, 100)[kept], steady(setup, 100)[kept])

    assert (counters["gaps"], counters["samples_lost"], counters["samples_filled"]) == (1, 1, 1)
    assert (counters["samples"], counters["discontinuities"]) == (99, 0)
    assert flags_of(records, Flag.FILLED) == [40]
    assert records["stimuli"][39:42, 0].tolist() == [40.0, 40.0, 42.0]
    np.testing.assert_allclose(records["t_sample"], steady(setup, 100), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("fill", "filled"), [("hold", 3.0), ("zero", 0.0)])
def test_a_gap_is_filled_as_the_policy_says(fill: str, filled: float) -> None:
    setup = Setup(fill=fill)
    kept = [0, 1, 2, 6, 7]

    records, counters = play(setup, ramp(setup, 8)[kept], steady(setup, 8)[kept])

    assert records["stimuli"][:, 0].tolist() == [1.0, 2.0, 3.0, filled, filled, filled, 7.0, 8.0]
    assert flags_of(records, Flag.FILLED) == [3, 4, 5]
    assert (counters["gaps"], counters["samples_lost"], counters["samples_filled"]) == (1, 3, 3)


@pytest.mark.parametrize(("missing", "is_filled"), [(20, True), (21, False)])
def test_a_gap_beyond_the_limit_lays_the_grid_anew(missing: int, is_filled: bool) -> None:
    setup = Setup(max_fill_ms=20.5)
    kept = [*range(10), *range(10 + missing, 60)]

    records, counters = play(setup, ramp(setup, 60)[kept], steady(setup, 60)[kept])

    assert counters["samples_lost"] == missing
    assert counters["samples_filled"] == (missing if is_filled else 0)
    assert counters["discontinuities"] == (0 if is_filled else 1)
    assert flags_of(records, Flag.DISCONTINUITY) == ([] if is_filled else [10])
    assert len(records) == (60 if is_filled else 60 - missing)


def test_a_clock_set_back_lays_the_grid_anew_and_loses_nothing() -> None:
    setup = Setup()
    stamps = steady(setup, 60)
    stamps[30:] -= 50.0

    records, counters = play(setup, noise(setup, 60), stamps)

    assert (counters["backward_steps"], counters["discontinuities"], counters["samples_lost"]) == (1, 1, 0)
    assert flags_of(records, Flag.DISCONTINUITY) == [30]
    assert len(records) == counters["samples"] == 60


def test_a_sample_that_comes_twice_is_taken_once() -> None:
    setup = Setup()
    twice = np.repeat(np.arange(20), np.where(np.arange(20) % 5 == 3, 2, 1))

    records, counters = play(setup, ramp(setup, 20)[twice], steady(setup, 20)[twice])

    assert counters["duplicates"] == 4
    assert records["stimuli"][:, 0].tolist() == list(range(1, 21))
    assert not records["flags"].any()


def test_a_sample_that_comes_twice_is_known_by_its_numbers_even_where_a_channel_has_none() -> None:
    setup = Setup(jitter_ms=0.2)
    samples = ramp(setup, 10)
    samples[:, 1] = np.nan
    twice = [0, 1, 2, 3, 3, 4, 5]

    _, counters = play(setup, samples[twice], steady(setup, 10)[twice])

    assert (counters["duplicates"], counters["backward_steps"]) == (1, 0)


def test_equal_values_at_another_time_are_no_duplicates() -> None:
    setup = Setup()

    _, counters = play(setup, np.ones((50, 2), np.float32), steady(setup, 50))

    assert (counters["samples"], counters["duplicates"]) == (50, 0)


def test_stamps_that_are_no_numbers_take_the_next_place() -> None:
    setup = Setup()
    stamps = steady(setup, 30)
    stamps[[5, 11, 12]] = [np.nan, np.inf, -np.inf]

    records, counters = play(setup, noise(setup, 30), stamps)

    assert counters["bad_stamps"] == 3
    assert (counters["gaps"], counters["discontinuities"], len(records)) == (0, 0, 30)
    np.testing.assert_allclose(records["t_sample"], steady(setup, 30), rtol=0, atol=1e-9)


def test_a_first_stamp_that_is_no_number_lays_no_grid() -> None:
    setup = Setup()
    stamps = steady(setup, 10)
    stamps[:2] = np.nan

    _, counters = play(setup, noise(setup, 10), stamps)

    assert (counters["bad_stamps"], counters["samples"]) == (2, 10)
    assert (counters["gaps"], counters["samples_lost"], counters["discontinuities"]) == (0, 0, 0)


def test_samples_that_were_dropped_are_neither_filled_in_nor_a_gap_whatever_time_they_took() -> None:
    setup = Setup(max_fill_ms=1000.0)
    chain, samples, stamps = Chain(setup), ramp(setup, 10), steady(setup, 10)
    stamps[5:] += 0.3

    before = chain.consume(samples[:5], stamps[:5])
    drop_samples(chain.pipeline, 300)
    after = chain.consume(samples[5:], stamps[5:])

    assert flags_of(before, Flag.DISCONTINUITY) == []
    assert flags_of(after, Flag.DISCONTINUITY) == [0]
    assert after["sample"].tolist() == [6, 7, 8, 9, 10]
    np.testing.assert_array_equal(after["stimuli"][:, 0], [6, 7, 8, 9, 10])
    counters = chain.counters()
    assert (counters["discontinuities"], counters["gaps"], counters["samples_filled"]) == (1, 0, 0)


@pytest.mark.parametrize("leap", [1e9, 1e18, 1e300, -1e300])
def test_a_stamp_from_another_world_is_one_discontinuity_and_a_count_that_still_counts(leap: float) -> None:
    setup = Setup()
    stamps = steady(setup, 10)
    stamps[5] = leap

    records, counters = play(setup, noise(setup, 10), stamps)

    assert (len(records), counters["discontinuities"]) == (10, 2)
    assert 0 <= counters["samples_lost"] < 2**62
    assert (counters["gaps"], counters["backward_steps"]) == (1, 1)


def test_values_that_are_no_numbers_hold_the_last_that_was() -> None:
    setup = Setup()
    samples = ramp(setup, 6)
    samples[2, 0], samples[3, 0], samples[3, 1] = np.nan, np.inf, -np.inf

    records, counters = play(setup, samples, steady(setup, 6))

    assert records["stimuli"][:, 0].tolist() == [1.0, 2.0, 2.0, 2.0, 5.0, 6.0]
    assert records["stimuli"][:, 1].tolist() == [1.0, 2.0, 3.0, 3.0, 5.0, 6.0]
    assert flags_of(records, Flag.NONFINITE) == [2, 3]
    assert counters["nonfinite_values"] == 3


@pytest.mark.parametrize("n_bad", [1, 3])
def test_a_stream_that_begins_without_numbers_begins_at_zero(n_bad: int) -> None:
    setup = Setup()
    samples = ramp(setup, 6)
    samples[:n_bad] = np.nan

    records, _ = play(setup, samples, steady(setup, 6))

    assert records["stimuli"][:, 0].tolist() == [0.0] * n_bad + list(range(n_bad + 1, 7))


@settings(max_examples=N_EXAMPLES // 2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), jitter_ms=st.sampled_from([1.5, 10.0, 40.0]))
def test_jitter_within_its_limit_is_no_gap(seed: int, jitter_ms: float) -> None:
    setup = Setup(jitter_ms=jitter_ms)  # of more than a sample: less cannot be told from a lost one
    rng = np.random.default_rng(seed)
    # the first stamp is off the true grid too, so that two may differ by twice the deviation
    stamps = steady(setup, 400) + rng.uniform(-0.45, 0.45, 400) * jitter_ms * 1e-3

    records, counters = play(setup, noise(setup, 400), stamps)

    assert (counters["gaps"], counters["backward_steps"], counters["duplicates"]) == (0, 0, 0)
    assert len(records) == 400


@pytest.mark.parametrize("true_rate", [250.2, 249.8, 250.0])
def test_a_rate_that_is_not_quite_nominal_is_followed(true_rate: float) -> None:
    setup = Setup(sampling_frequency=250.0, block_ms=4.0, ticks_per_block=4)
    n = 20_000 if JIT_ENABLED else 4_000  # 80 s, over which the grids part by 64 ms

    records, counters = play(setup, noise(setup, n), 7.0 + np.arange(n) / true_rate)

    assert counters["gaps"] == counters["backward_steps"] == counters["discontinuities"] == 0
    assert counters["samples"] == n
    assert not records["flags"].any()


def test_a_stream_without_a_rate_has_no_gaps() -> None:
    setup = Setup(regular=False)
    stamps = np.array([3.0, 3.1, 9.0, 9.0, 2.0, np.nan, 100.0])

    records, counters = play(setup, ramp(setup, 7), stamps)

    assert records["stimuli"][:, 0].tolist() == list(range(1, 8))
    assert {name for name, count in counters.items() if count} == {"samples", "blocks", "ticks", "bad_stamps"}


def test_one_message_is_one_tick_even_where_the_clock_stands_still() -> None:
    setup = Setup(regular=False)

    records, counters = play(setup, np.ones((5, 2), np.float32), np.full(5, 3.0))

    assert (len(records), counters["duplicates"]) == (5, 0)


# ---------------------------------------------------------------------------------------------------------------------
# blocks


@pytest.mark.parametrize(("rate", "block_ms", "ticks_per_block"), RATES)
def test_blocks_end_where_their_length_says_though_it_be_no_whole_number(
    rate: float, block_ms: float, ticks_per_block: int
) -> None:
    setup = Setup(sampling_frequency=rate, block_ms=block_ms, ticks_per_block=ticks_per_block)
    n = 2000 if ticks_per_block < 50 else 20

    records, _ = play(setup, noise(setup, n), steady(setup, n))

    ends = records["sample"][::ticks_per_block].astype(np.int64)
    samples_per_block = max(1.0, rate * block_ms / 1000.0)
    k = np.arange(1, len(ends) + 1)
    assert (np.abs(ends - k * samples_per_block) < 1.0).all()
    assert (ends <= k * samples_per_block + 1e-6).all()
    assert len(ends) == int(n / samples_per_block + 1e-6)


def test_a_feature_vector_of_50_ms_is_fifty_ticks_with_the_same_stimuli() -> None:
    setup = Setup(sampling_frequency=20.0, block_ms=50.0, ticks_per_block=50)

    records, counters = play(setup, ramp(setup, 3), steady(setup, 3))

    assert (counters["blocks"], counters["ticks"]) == (3, 150)
    assert records["tick"].tolist() == list(range(150))
    assert records["stimuli"][:, 0].tolist() == [1.0] * 50 + [2.0] * 50 + [3.0] * 50
    assert records["sample"].tolist() == [1] * 50 + [2] * 50 + [3] * 50
    assert records["t_sample"].tolist() == np.repeat(steady(setup, 3), 50).tolist()


@settings(max_examples=N_EXAMPLES // 2, deadline=None)
@given(rate=st.sampled_from(RATES), n=st.integers(0, 30))
def test_the_samples_wanted_close_the_open_block_and_no_other(rate: tuple[float, float, int], n: int) -> None:
    setup = Setup(sampling_frequency=rate[0], block_ms=rate[1], ticks_per_block=rate[2])
    chain = Chain(setup)
    stamps = steady(setup, 200)
    chain.consume(noise(setup, n), stamps[:n])

    wanted = samples_wanted(chain.pipeline)
    almost = chain.consume(noise(setup, wanted - 1), stamps[n : n + wanted - 1])
    closed = chain.consume(noise(setup, 1), stamps[n + wanted - 1 : n + wanted])

    assert wanted >= 1
    assert len(almost) == 0
    assert len(closed) == rate[2]


# ---------------------------------------------------------------------------------------------------------------------
# inputs


@pytest.mark.parametrize(("block_ms", "ticks_per_block"), [(1.0, 1), (5.0, 5)])
def test_each_queued_message_is_added_to_one_tick_in_order(block_ms: float, ticks_per_block: int) -> None:
    setup = Setup(block_ms=block_ms, ticks_per_block=ticks_per_block)
    chain = Chain(setup)
    for k in range(3):
        assert enqueue_stimuli(chain.pipeline, np.arange(16, dtype=np.float32) + 100.0 * (k + 1), 0.0)

    records = chain.consume(np.full((10, 2), 0.5, np.float32), steady(setup, 10))

    expected = np.zeros((10, 16), np.float32)
    expected[:, :2] = 0.5
    for k in range(3):
        expected[k] += np.arange(16) + 100.0 * (k + 1)
    assert records["stimuli"].tolist() == expected.tolist()
    assert flags_of(records, Flag.EXTERNAL) == [0, 1, 2]
    assert chain.counters()["stimuli_applied"] == 3


def test_a_full_queue_refuses_and_counts_and_keeps_the_order() -> None:
    chain = Chain(Setup())

    taken = [enqueue_stimuli(chain.pipeline, np.full(16, k, np.float32), 0.0) for k in range(QUEUE_LENGTH + 3)]

    assert taken == [True] * QUEUE_LENGTH + [False] * 3
    assert chain.counters()["stimuli_overflow"] == 3
    values = np.zeros(16, np.float32)
    for k in range(QUEUE_LENGTH):
        assert dequeue_stimuli(chain.pipeline, values, np.zeros(1))
        assert values.tolist() == [k] * 16
    assert not dequeue_stimuli(chain.pipeline, values, np.zeros(1))


def test_a_paused_session_reads_on_but_does_not_step_the_network() -> None:
    setup = Setup()
    chain, twin = Chain(setup), setup.network()
    samples, stamps = noise(setup, 60), steady(setup, 60)

    before = chain.consume(samples[:20], stamps[:20])
    state = chain.network.state.tobytes()
    chain.pipeline.words[PAUSED] = 1
    enqueue_stimuli(chain.pipeline, np.ones(16, np.float32), 0.0)
    paused = chain.consume(samples[20:40], stamps[20:40])
    assert chain.network.state.tobytes() == state
    chain.pipeline.words[PAUSED] = 0
    after = chain.consume(samples[40:], stamps[40:])

    assert paused["tick"].tolist() == [19] * 20
    assert not paused["spikes"].any()
    assert paused["flags"].tolist() == [int(Flag.PAUSED)] * 20
    assert paused["sample"].tolist() == list(range(21, 41))
    assert after["tick"].tolist() == list(range(20, 40))
    assert flags_of(after, Flag.EXTERNAL) == [0]  # what came meanwhile waited
    assert chain.counters()["ticks"] == 40
    stimuli = np.concatenate([before["stimuli"], after["stimuli"]])
    spikes = np.concatenate([before["spikes"], after["spikes"]])
    assert spikes.tolist() == [sum(1 << i for i in np.flatnonzero(row)) for row in twin.run(stimuli)]


def test_a_session_paused_from_the_start_shows_tick_zero() -> None:
    setup = Setup()
    chain = Chain(setup)
    chain.pipeline.words[PAUSED] = 1

    paused = chain.consume(noise(setup, 3), steady(setup, 3))
    chain.pipeline.words[PAUSED] = 0
    after = chain.consume(noise(setup, 3), 0.003 + steady(setup, 3))

    assert paused["tick"].tolist() == [0, 0, 0]
    assert after["tick"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("block_ms", "ticks_per_block"), [(1.0, 1), (5.0, 5)])
def test_a_modulation_is_flagged_on_exactly_the_first_tick_after_it(block_ms: float, ticks_per_block: int) -> None:
    setup = Setup(block_ms=block_ms, ticks_per_block=ticks_per_block)
    chain = Chain(setup)
    samples, stamps = noise(setup, 30), steady(setup, 30)
    rows = [chain.consume(samples[:12], stamps[:12])]  # for blocks of five: in the middle of the third

    chain.modulate(2, 1.0)
    rows.append(chain.consume(samples[12:], stamps[12:]))

    first = 12 if ticks_per_block == 1 else 10
    assert flags_of(np.concatenate(rows), Flag.MODULATED) == [first]


def test_a_modulation_during_a_pause_is_flagged_on_the_first_tick_that_it_acts_on() -> None:
    setup = Setup()
    chain = Chain(setup)
    samples, stamps = noise(setup, 15), steady(setup, 15)
    chain.pipeline.words[PAUSED] = 1
    chain.modulate(2, 1.0)

    rows = [chain.consume(samples[:5], stamps[:5])]
    chain.pipeline.words[PAUSED] = 0
    rows.append(chain.consume(samples[5:], stamps[5:]))

    assert flags_of(np.concatenate(rows), Flag.MODULATED) == [5]


def test_a_tick_in_which_plasticity_stood_still_says_so() -> None:
    chain = Chain(Setup())
    chain.modulate(0, 0.5)
    records = np.zeros(2, TICK)
    records["flags"] = [0, Flag.BLANKED]

    for record in records:
        advance(chain.pipeline, chain.network.state, chain.decoder, chain.stimulation, record)

    assert records["modulation"][0, 4] > 0.0
    assert records["modulation"][1, 4] == 0.0
    assert (records["modulation"][:, :4] != 0.0).all()
    assert records["step_ms"].tolist() == [1.0, 1.0]
    assert chain.network.state[0]["learning"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# a board is the network


@pytest.mark.parametrize("delay_ticks", [1, 2, 64])
def test_answers_are_published_so_many_ticks_later_beside_a_network_that_goes_on(delay_ticks: int) -> None:
    chain, alone, n = Chain(Setup(delay_ticks=delay_ticks)), Chain(Setup()), 200
    samples, stamps = noise(Setup(), n), steady(Setup(), n)
    expected = alone.consume(samples, stamps)
    board = np.random.default_rng(1).integers(0, 2**16, n)

    rows = []
    for k in range(n):
        rows.append(chain.consume(samples[k : k + 1], stamps[k : k + 1]))
        take_answer(chain.pipeline, k, int(board[k]), k % 2 == 0)
    records = np.concatenate(rows)

    assert records["spikes"].tolist() == [0] * delay_ticks + board[:-delay_ticks].tolist()
    assert flags_of(records, Flag.BOARD) == list(range(delay_ticks))
    for name in ("tick", "stimuli", "membrane", "modulators", "modulation"):  # of the shadow
        assert records[name].tobytes() == expected[name].tobytes(), name
    counters = chain.counters()
    assert [counters[f"board_{name}"] for name in ("answered", "missing", "late")] == [n - delay_ticks, delay_ticks, 0]


def test_an_answer_that_is_past_or_came_before_or_is_to_come_is_counted_and_changes_nothing() -> None:
    chain = Chain(Setup(delay_ticks=2))
    samples, stamps = noise(Setup(), 12), steady(Setup(), 12)
    chain.consume(samples[:10], stamps[:10])

    for tick in (10, 11, 2**63 - 1, 7, 0):  # the first three are to come, of the others ticks 9 and 2 would have told
        take_answer(chain.pipeline, tick, 0xFFFF, True)
    assert chain.counters()["board_late"] == 5
    take_answer(chain.pipeline, 8, 0b101, True)
    take_answer(chain.pipeline, 8, 0xFFFF, True)
    assert chain.counters()["board_late"] == 6
    records = chain.consume(samples[10:], stamps[10:])

    assert records["spikes"].tolist() == [0b101, 0]
    assert flags_of(records, Flag.BOARD) == [1]


def forgets_on_a_discontinuity(chain: Chain, samples: NDArray[np.float32], stamps: NDArray[np.float64]) -> None:
    stamps[8:] += 5.0


def forgets_after_a_filler(chain: Chain, samples: NDArray[np.float32], stamps: NDArray[np.float64]) -> None:
    stand_by(chain.pipeline)


def forgets_after_a_pause(chain: Chain, samples: NDArray[np.float32], stamps: NDArray[np.float64]) -> None:
    chain.pipeline.words[PAUSED] = 1
    resume(chain.pipeline)


@pytest.mark.parametrize("interrupt", [forgets_on_a_discontinuity, forgets_after_a_filler, forgets_after_a_pause])
def test_no_answer_of_before_an_interruption_is_used_after_it_however_late_it_comes(interrupt: Any) -> None:
    delay, setup = 4, Setup(delay_ticks=4)
    chain, samples, stamps = Chain(setup), noise(setup, 16), steady(setup, 16)
    rows = []
    for k in range(16):
        if k == 8:
            interrupt(chain, samples, stamps)
        if k == 10:  # late, and in time for tick 11
            take_answer(chain.pipeline, 7, 0xFFFF, True)
        rows.append(chain.consume(samples[k : k + 1], stamps[k : k + 1]))
        if k != 7:
            take_answer(chain.pipeline, k, 1 + k, True)
    records = np.concatenate(rows)

    assert records["tick"].tolist() == list(range(16))
    assert flags_of(records, Flag.BOARD) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert records["spikes"].tolist() == [0] * 4 + [1, 2, 3, 4] + [0] * 4 + [9, 10, 11, 12]
    assert (records["conditions"][8 : 8 + delay] & CONDITION_BOARD).all()


def test_to_resume_what_runs_forgets_nothing() -> None:
    chain = Chain(Setup(delay_ticks=1))
    samples, stamps = noise(Setup(), 3), steady(Setup(), 3)
    chain.consume(samples[:2], stamps[:2])
    take_answer(chain.pipeline, 1, 0b11, True)
    resume(chain.pipeline)

    assert chain.consume(samples[2:], stamps[2:])["spikes"].tolist() == [0b11]


def test_where_a_checksum_is_demanded_an_answer_without_is_as_good_as_none() -> None:
    chain = Chain(Setup(delay_ticks=2, checked_only=True))
    samples, stamps = noise(Setup(), 12), steady(Setup(), 12)
    chain.consume(samples[:10], stamps[:10])

    take_answer(chain.pipeline, 8, 0xFFFF, False)
    take_answer(chain.pipeline, 9, 0xFFFF, False)
    take_answer(chain.pipeline, 9, 0b101, True)  # not taken for a second one
    records = chain.consume(samples[10:], stamps[10:])

    assert records["spikes"].tolist() == [0, 0b101]
    assert flags_of(records, Flag.BOARD) == [0]
    assert chain.counters()["board_unchecked"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# assembly


def assembled(toml: str, kind: str, rate: float, **how: Any) -> Any:
    info = StreamInfo("s", kind, 2, rate, ("a", "b"), ("", ""))  # type: ignore[arg-type]
    return assemble(parse(toml), info, **how)


@pytest.mark.parametrize(
    ("kind", "rate", "block_ms", "n_ticks", "dt_ms"),
    [
        ("signal", 30000.0, 1.0, 1, 1.0),
        ("signal", 24414.0625, 1.0, 1, 1.0),
        ("signal", 250.0, 4.0, 4, 1.0),  # no block without a sample
        ("signal", 512.0, 1.953125, 2, 0.9765625),
        ("features", 20.0, 50.0, 50, 1.0),
        ("features", 1000.0, 1.0, 1, 1.0),
        ("features", 30.0, 100.0 / 3.0, 34, 100.0 / 3.0 / 34.0),
        ("features", 2000.0, 0.5, 1, 0.5),
    ],
)
def test_a_block_is_cut_into_ticks_of_at_most_a_millisecond(
    kind: str, rate: float, block_ms: float, n_ticks: int, dt_ms: float
) -> None:
    front = "" if kind == "features" else '[front_end]\nfeatures = ["raw"]\nreference = "none"\n'
    parts = assembled(f'source = {{kind = "lsl", name = "s", content = "{kind}"}}\n{front}', kind, rate)

    assert parts.block_ms == pytest.approx(block_ms)
    assert parts.ticks_per_block == n_ticks
    assert parts.network.dt_ms == pytest.approx(dt_ms)


def test_every_part_that_changes_is_a_part_of_the_assembly() -> None:
    parts = assembled('source = {kind = "lsl", name = "s", content = "features"}', "features", 1000.0)
    ids = {array.ctypes.data for array in parts.parts()}

    # programs, mode and decisions are not: a checkpoint must not change what is stimulated
    kept = [part for name, part in parts.pipeline._asdict().items() if name not in ("decisions", "units")]
    loop = [*kept, *parts.front_end.parts(), *parts.encoder.state]
    owned = [*loop, parts.network.state, parts.decoder, parts.stimulation.gate]

    assert {array.ctypes.data for array in owned} == ids
    assert all(array.flags.c_contiguous for array in parts.parts())


if __name__ == "__main__":
    print(digest())


def test_a_sender_that_was_held_up_and_catches_up_has_lost_nothing() -> None:
    setup = Setup(jitter_ms=5.0, max_fill_ms=0.0)
    # stamped by push: 200 ms of silence, then the backlog within a moment, then as before
    start = steady(setup, 1)[0]
    burst = start + 0.3 + 1e-5 * np.arange(200)
    stamps = np.concatenate([steady(setup, 100), burst, 0.303 + steady(setup, 100)])

    _, counters = play(setup, noise(setup, 400), stamps)

    assert counters["gaps"] == 1
    assert counters["backward_steps"] > 1
    assert counters["samples_lost"] <= 10  # what is left is within the tolerance of either end
    assert counters["samples"] == 400
