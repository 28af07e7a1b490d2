"""Stimulation artefacts: what is blanked, what that leaves alone, and that it is counted."""

import datetime
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import naive.front_end as naive
from neuromod.engine.errors import ConfigError
from neuromod.sorting.baseline import Baseline, front_end_hash
from neuromod.sorting.blanking import TRAINS_EACH
from neuromod.sorting.config import ArtefactConfig, EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd, blank, finish_block, is_blanked, push, skip

Floats = NDArray[np.float32]
Run = Callable[..., Floats]
FS = 15000.0
ALL_KINDS = ("crossings", "spiking_band", "bands", "raw")
BLOCK = 15
ARTEFACTS = ArtefactConfig.model_validate(
    {
        "lead_us": 200,
        "blank_us": 700,
        "delay_us": 300,
        "rate_window_ms": 20,
        "electrodes": [
            {"electrode": 1, "channels": ["ch1", 4], "lead_us": 0, "blank_us": 1500},
            {"electrode": 31, "channels": [], "lead_us": 1000, "blank_us": 5000},
        ],
    }
)


def windows(n_channels: int) -> dict[int, naive.Window]:
    """`ARTEFACTS`, as the twin takes it."""
    return {
        0: naive.Window(200, 700, 300, range(n_channels)),
        1: naive.Window(0, 1500, 0, [0, 4]),
        31: naive.Window(1000, 5000, 0, []),
    }


def signal(n_samples: int, n_channels: int, seed: int) -> Floats:
    """Noise of 10 uV around an offset, partly common, with biphasic spikes of 150 uV."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 10.0, (n_samples, n_channels)) + 300.0 + rng.normal(0.0, 10.0, (n_samples, 1))
    shape = -150.0 * np.array([0.3, 1.0, 0.5, -0.4, -0.3, -0.1])
    for c in range(n_channels):
        for start in rng.integers(0, n_samples - len(shape), n_samples // 60):
            x[start : start + len(shape), c] += shape
    return x.astype(np.float32)


def all_kinds(reference: str, **changes: object) -> FrontEndConfig:
    return FrontEndConfig.model_validate(
        {"features": ALL_KINDS, "reference": reference, "bands": {"ranges_hz": [(20, 60), (60, 200)]}} | changes
    )


def known_noise(config: FrontEndConfig, n_channels: int) -> Baseline:
    return Baseline(
        measured_at=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        stream_name="test",
        sampling_frequency=FS,
        channel_names=tuple(f"ch{i + 1}" for i in range(n_channels)),
        duration_s=1.0,
        block_ms=1.0,
        smoothing_ms=0.0,
        front_end=config,
        front_end_hash=front_end_hash(config),
        excluded={"ch3": "noisy"},
        noise={"crossings": (10.0,) * n_channels, "spiking_band": (4.0,) * n_channels},
        threshold_uv=(None,) * n_channels,
        feature_names=(),
        mean=(),
        sd=(),
    )


def state_bytes(front_end: FrontEnd) -> bytes:
    return b"".join(array.tobytes() for array in front_end.parts())


def raw(artefacts: ArtefactConfig, n_channels: int = 2, sampling_frequency: float = FS) -> FrontEnd:
    """A front end that needs no warm-up and does nothing but blank and average."""
    return FrontEnd(FrontEndConfig(features=("raw",)), n_channels, sampling_frequency, artefacts=artefacts)


def blanked_at(front_end: FrontEnd, n_samples: int) -> list[int]:
    """Numbers of the samples, from here on, at which anything is blanked."""
    found = []
    features = np.zeros(front_end.n_features, dtype=np.float32)
    for i in range(n_samples):
        push(front_end.state, np.zeros((1, front_end.n_channels), dtype=np.float32))
        finish_block(front_end.state, features)
        if is_blanked(front_end.state):
            found.append(i)
    return found


trains = st.lists(
    st.builds(
        naive.Train,
        origin=st.integers(2, 39).map(lambda block: block * BLOCK),
        electrode=st.sampled_from([0, 1, 31]),
        start_us=st.integers(0, 3000).map(float),
        pulses=st.integers(1, 6),
        period_us=st.integers(200, 9000).map(float),
        pulse_us=st.integers(0, 500).map(float),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(trains=trains, reference=st.sampled_from(["none", "mean", "median", "clipped-mean"]), zero=st.booleans())
def test_features_equal_the_naive_twin(run: Run, trains: list[naive.Train], reference: str, zero: bool) -> None:
    config = all_kinds(reference)
    artefacts = ARTEFACTS.model_copy(update={"crossings": "zero" if zero else "hold_rate"})
    samples = signal(40 * BLOCK, 7, seed=1)
    front_end = FrontEnd(config, 7, FS, baseline=known_noise(config, 7), artefacts=artefacts)

    features = run(front_end, samples, [BLOCK] * 40, trains=trains)

    blanked = naive.blanked_samples(samples.shape, FS, trains, windows(7))
    noise = {"crossings": np.full(7, 10.0), "spiking_band": np.full(7, 4.0)}
    expected = naive.features(
        config, samples, FS, [BLOCK] * 40, noise, [2], blanked, None if zero else artefacts.rate_window_ms
    )
    assert expected[:, ::5].sum() > 30
    assert front_end.blanked == (blanked.sum(), blanked.any(axis=1).sum())
    # float32 rounds to 6e-8; the twins' doubles differ by rounding of the filters, of 1e-13 uV on 10 uV
    np.testing.assert_allclose(features, expected, rtol=2e-7, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(trains=trains, cuts=st.lists(st.integers(0, 40 * BLOCK), max_size=12))
def test_any_split_of_the_samples_gives_the_same_bits(run: Run, trains: list[naive.Train], cuts: list[int]) -> None:
    config = all_kinds("clipped-mean", warmup_s=0.01)
    samples = signal(40 * BLOCK, 5, seed=2)
    whole, split = (FrontEnd(config, 5, FS, artefacts=ARTEFACTS) for _ in range(2))

    expected = run(whole, samples, [BLOCK] * 40, trains=trains)
    features = run(split, samples, [BLOCK] * 40, cuts, trains)

    assert features.tobytes() == expected.tobytes()
    assert state_bytes(split) == state_bytes(whole)


@settings(max_examples=25, deadline=None)
@given(trains=trains, reference=st.sampled_from(["none", "mean", "median", "clipped-mean"]))
def test_what_happens_within_a_window_moves_no_bit(run: Run, trains: list[naive.Train], reference: str) -> None:
    config = all_kinds(reference, warmup_s=0.01, saturation_uv=4000.0)
    samples = signal(40 * BLOCK, 5, seed=3)
    blanked = naive.blanked_samples(samples.shape, FS, trains, windows(5))
    artefact = samples.copy()
    artefact[blanked] += np.random.default_rng(4).normal(0.0, 1e4, int(blanked.sum())).astype(np.float32)
    clean, hit = (FrontEnd(config, 5, FS, artefacts=ARTEFACTS) for _ in range(2))

    expected = run(clean, samples, [BLOCK] * 40, trains=trains)
    features = run(hit, artefact, [BLOCK] * 40, trains=trains)

    assert features.tobytes() == expected.tobytes()
    assert state_bytes(hit) == state_bytes(clean)


def test_after_a_window_the_filters_come_back_to_the_signal(run: Run) -> None:
    config = FrontEndConfig.model_validate(
        {
            "features": ["crossings", "spiking_band"],
            "reference": "clipped-mean",
            "spiking_band": {"window_ms": 0},
        }
    )
    samples = signal(120 * BLOCK, 6, seed=5)
    artefact = samples.copy()
    train = naive.Train(10 * BLOCK, 0, 0.0, 3, 4000.0, 400.0)
    blanked = naive.blanked_samples(samples.shape, FS, [train], windows(6))
    # 100 x the offset and 3000 x the noise, and on each channel another, so that no reference takes it away
    artefact[blanked] = np.random.default_rng(12).normal(0.0, 3e4, int(blanked.sum())).astype(np.float32)
    known = known_noise(config, 6)

    untouched = run(FrontEnd(config, 6, FS, baseline=known), samples, [BLOCK] * 120)
    features = run(
        FrontEnd(config, 6, FS, baseline=known, artefacts=ARTEFACTS), artefact, [BLOCK] * 120, trains=[train]
    )

    # holding differs from the signal by some 100 uV, and the filters forget that as the slowest pole decays: the
    # order-2 band-pass of 300 Hz keeps less than 1e-9 of it after this many samples, which no block of ours can show
    poles = scipy.signal.butter(2, [300.0, 1000.0], btype="bandpass", fs=FS, output="zpk")[1]
    settled = math.ceil(math.log(1e-9) / math.log(np.abs(poles).max()))
    first = (int(np.flatnonzero(blanked.any(axis=1))[-1]) + settled) // BLOCK + 1
    assert first < 60
    np.testing.assert_array_equal(features[first:, ::2], untouched[first:, ::2])
    np.testing.assert_allclose(features[first:, 1::2], untouched[first:, 1::2], rtol=1e-6)
    np.testing.assert_array_equal(features[:10], untouched[:10])
    # between, ring-down included: without blanking the same artefact reads as 1e4 times the power
    assert features[10:first, 1::2].max() < 10 * untouched[:, 1::2].max()
    unblanked = run(FrontEnd(config, 6, FS, baseline=known), artefact, [BLOCK] * 120)
    assert unblanked[10:first, 1::2].max() > 1e4 * untouched[:, 1::2].max()


def test_a_train_far_ahead_changes_no_bit_of_the_features(run: Run) -> None:
    config = all_kinds("clipped-mean", warmup_s=0.01)
    samples = signal(40 * BLOCK, 5, seed=6)
    plain, blanking, pending = (FrontEnd(config, 5, FS, artefacts=a) for a in (None, ARTEFACTS, ARTEFACTS))

    expected = run(plain, samples, [BLOCK] * 40)
    later = naive.Train(BLOCK, 0, 1e6, 1, 0.0, 0.0)

    assert run(blanking, samples, [BLOCK] * 40).tobytes() == expected.tobytes()
    assert run(pending, samples, [BLOCK] * 40, trains=[later]).tobytes() == expected.tobytes()
    for name in ("z", "hold", "total", "smoothed", "noise", "threshold", "clip", "weight", "inverse"):
        assert np.array_equal(getattr(pending.state, name), getattr(plain.state, name)), name
    assert pending.blanked == blanking.blanked == (0, 0)


def test_without_a_configuration_nothing_is_blanked(run: Run) -> None:
    samples = signal(10 * BLOCK, 2, seed=7)
    train = naive.Train(0, 0, 0.0, 10, 1000.0, 200.0)
    config = FrontEndConfig(features=("raw",))

    expected = run(FrontEnd(config, 2, FS), samples, [BLOCK] * 10)
    front_end = FrontEnd(config, 2, FS)

    assert run(front_end, samples, [BLOCK] * 10, trains=[train]).tobytes() == expected.tobytes()
    assert front_end.blanked == (0, 0)


@pytest.mark.parametrize(
    "start_us, pulse_us, expected",
    [
        (1000.0, 0.0, range(9, 19)),  # 1 ms less 0.4 is sample 9; 1 ms and 0.2 is sample 18
        (1001.0, 0.0, range(9, 20)),  # a part of a sample counts whole, at the late edge ...
        (999.0, 0.0, range(8, 19)),  # ... and at the early one
        (1000.0, 200.0, range(9, 22)),  # counted from the end of the pulse
        (0.0, 0.0, range(4)),  # what would have to be blanked before it was known is not
    ],
)
def test_a_window_is_rounded_away_from_the_pulse(start_us: float, pulse_us: float, expected: range) -> None:
    front_end = raw(ArtefactConfig(lead_us=400.0, blank_us=200.0))

    blank(front_end.state, 0, start_us, 1, 0.0, pulse_us)

    assert blanked_at(front_end, 40) == list(expected)
    assert front_end.blanked == (2 * len(expected), len(expected))


def test_a_long_train_at_a_fractional_rate_does_not_drift() -> None:
    rate, period_us = 24414.0625, 3333.0
    front_end = raw(ArtefactConfig(lead_us=0.0, blank_us=0.0), sampling_frequency=rate)

    blank(front_end.state, 0, 0.0, 200, period_us, 0.0)

    found = blanked_at(front_end, 16400)
    expected = naive.blanked_samples(
        (16400, 2), rate, [naive.Train(0, 0, 0.0, 200, period_us, 0.0)], {0: naive.Window(0, 0, 0, [0, 1])}
    )
    assert found == np.flatnonzero(expected[:, 0]).tolist()
    assert found[-1] == math.ceil(199 * 3333 * 24414.0625e-6)


def test_trains_that_wait_for_the_delay_are_all_blanked() -> None:
    front_end = raw(ArtefactConfig(lead_us=0.0, blank_us=0.0, delay_us=20_000.0))
    features = np.zeros(2, dtype=np.float32)
    for _ in range(TRAINS_EACH):  # one pulse every 2 ms, the first of which shows up after 20
        blank(front_end.state, 5, 0.0, 1, 0.0, 0.0)
        push(front_end.state, np.zeros((30, 2), dtype=np.float32))
        finish_block(front_end.state, features)

    assert blanked_at(front_end, 400) == [300 + 30 * k - 30 * TRAINS_EACH for k in range(TRAINS_EACH)]


def test_more_trains_than_can_be_kept_blank_all_between_them_and_no_more() -> None:
    front_end = raw(ArtefactConfig(lead_us=0.0, blank_us=200.0))
    starts = [1000.0 * (k + 1) for k in range(TRAINS_EACH + 4)]
    for start_us in starts:
        blank(front_end.state, 3, start_us, 2, 400.0, 0.0)
    blank(front_end.state, 4, 100_000.0, 1, 0.0, 0.0)

    found = set(blanked_at(front_end, 2000))

    pulses = [15 * (k + 1) + at for k in range(len(starts)) for at in (0, 6)]
    asked = {s for at in pulses for s in range(at, at + 4)}
    tail = set(range(15 * TRAINS_EACH, 15 * (TRAINS_EACH + 4) + 10))
    assert asked <= found - set(range(1500, 1504))
    assert found <= asked | tail | set(range(1500, 1504))
    assert front_end.blanked.instants == len(found)


def test_samples_that_nobody_filled_in_pass_for_a_pending_train_too() -> None:
    front_end = raw(ArtefactConfig(lead_us=0.0, blank_us=0.0))
    blank(front_end.state, 0, 2000.0, 3, 2000.0, 0.0)

    skip(front_end.state, 40)  # past the first pulse

    assert blanked_at(front_end, 100) == [20, 50]


def test_blanks_of_two_electrodes_add_up_channel_by_channel(run: Run) -> None:
    artefacts = ArtefactConfig.model_validate(
        {
            "lead_us": 0,
            "blank_us": 1000,
            "electrodes": [
                {"electrode": "left", "channels": [0, 1], "lead_us": 0, "blank_us": 1000},
                {"electrode": "right", "channels": ["ch2", "ch3"], "lead_us": 0, "blank_us": 1000},
            ],
        }
    )
    front_end = FrontEnd(
        FrontEndConfig(features=("raw",)), 4, FS, artefacts=artefacts, electrode_names=("left", "right")
    )
    samples = np.zeros((45, 4), dtype=np.float32)
    samples[:15] = 1.0
    samples[15:31] = 99.0
    trains = [naive.Train(15, k, 0.0, 1, 0.0, 0.0) for k in (0, 1)]

    features = run(front_end, samples, [15, 15, 15], trains=trains)

    np.testing.assert_array_equal(features[1], [1.0, 1.0, 1.0, 99.0])
    np.testing.assert_allclose(features[2], [0.0, 0.0, 0.0, 99.0 / 15], rtol=1e-6)
    assert front_end.blanked == (3 * 16, 16)


def test_a_block_without_a_clean_sample_keeps_its_features(run: Run) -> None:
    config = all_kinds("none", crossings={"threshold_uv": -60.0})
    samples = signal(30 * BLOCK, 3, seed=8)
    artefacts = ArtefactConfig(lead_us=0.0, blank_us=4000.0)
    train = naive.Train(20 * BLOCK, 0, 0.0, 1, 0.0, 0.0)
    front_end = FrontEnd(config, 3, FS, artefacts=artefacts)

    features = run(front_end, samples, [BLOCK] * 30, trains=[train]).reshape(30, 3, 5)

    np.testing.assert_array_equal(features[20:24, :, 1:], np.broadcast_to(features[19, :, 1:], (4, 3, 4)))
    rate = features[20, :, 0]
    np.testing.assert_array_equal(features[20:24, :, 0], np.broadcast_to(rate, (4, 3)))
    # 1/60 of the samples start a spike, so a quarter of one per block, of which the dead time takes a part
    assert ((rate > 0.0) & (rate < 1.0)).all()
    # so early, the mean has forgotten next to nothing: it is that of all blocks so far, up to exp(-20 ms / 200 ms)
    np.testing.assert_allclose(rate, features[:20, :, 0].mean(axis=0), rtol=0.1)


def test_a_count_may_be_told_to_read_zero_instead(run: Run) -> None:
    config = FrontEndConfig.model_validate({"crossings": {"threshold_uv": -60.0}})
    artefacts = ArtefactConfig(lead_us=0.0, blank_us=4000.0, crossings="zero")
    train = naive.Train(20 * BLOCK, 0, 0.0, 1, 0.0, 0.0)

    features = run(FrontEnd(config, 3, FS, artefacts=artefacts), signal(450, 3, seed=8), [BLOCK] * 30, trains=[train])

    assert features[:20].sum() > 5
    assert (features[20:24] == 0.0).all()


def test_a_crossing_that_began_in_the_blank_is_none(run: Run) -> None:
    config = FrontEndConfig.model_validate(
        {"crossings": {"low_hz": 0.01, "high_hz": 7000, "threshold_uv": -50, "dead_time_ms": 0}}
    )
    samples = np.zeros((90, 1), dtype=np.float32)
    samples[20:60] = -200.0  # goes down in the blank, comes back after it
    samples[70:75] = -200.0
    artefacts = ArtefactConfig(lead_us=0.0, blank_us=1000.0, crossings="zero")
    train = naive.Train(15, 0, 0.0, 1, 0.0, 0.0)

    counts = run(FrontEnd(config, 1, FS, artefacts=artefacts), samples, [1] * 90, trains=[train])[:, 0]

    assert np.flatnonzero(counts).tolist() == [70]


def test_a_channel_blanked_from_the_first_sample_on_is_unknown_until_it_is_clean(run: Run) -> None:
    config = all_kinds("none", crossings={"threshold_uv": -60.0})
    artefacts = ArtefactConfig(channels=("ch2",), lead_us=0.0, blank_us=1500.0)
    front_end = FrontEnd(config, 2, FS, artefacts=artefacts)
    samples = np.full((4 * BLOCK, 2), -5000.0, dtype=np.float32)

    features = run(front_end, samples, [BLOCK] * 4, trains=[naive.Train(0, 0, 0.0, 1, 0.0, 0.0)]).reshape(4, 2, 5)

    assert np.isfinite(features[:, 0]).all()
    assert np.isnan(features[0, 1]).all()
    assert np.isfinite(features[1:, 1]).all()
    np.testing.assert_allclose(features[1:, 1, :4], 0.0, atol=1e-9)  # an offset of 5 mV rings no filter
    np.testing.assert_array_equal(features[1:, 1, 4], -5000.0)


def test_the_warm_up_counts_clean_samples(run: Run) -> None:
    config = FrontEndConfig(reference="mean", warmup_s=0.2, saturation_uv=4000.0)
    samples = np.random.default_rng(9).normal(0.0, 10.0, (6000, 5)).astype(np.float32)
    trains = [naive.Train(k * 150, 0, 0.0, 1, 0.0, 0.0) for k in range(2, 38)]
    blanked = naive.blanked_samples(samples.shape, FS, trains, windows(5))
    artefact = samples.copy()
    artefact[blanked] = 5000.0
    plain, front_end = (FrontEnd(config, 5, FS, artefacts=a) for a in (None, ARTEFACTS))

    untouched = run(plain, samples, [150] * 40)
    features = run(front_end, artefact, [150] * 40, trains=trains)

    assert np.isfinite(untouched[20:]).all()
    ready = int(np.searchsorted(np.cumsum(~blanked[:, 0]), 3000)) // 150 + 1  # the block after the 3000th clean sample
    assert np.isnan(features[:ready]).all()
    assert np.isfinite(features[ready:]).all()
    assert front_end.excluded == {}
    second_half = np.flatnonzero(~blanked[:, 0])[1500:3000]
    y = naive.filtered(naive.held(artefact.astype(np.float64), blanked), FS, 300.0, 6000.0, 2)
    exact = np.median(np.abs(naive.referenced(y, "mean", range(5))[second_half]), axis=0) / 0.6744897501960817
    # bins of 3 % with interpolation within: 1500 values leave about 30 to a bin, so a third of one at worst
    np.testing.assert_allclose(front_end.noise["crossings"], exact, rtol=0.01)
    # and near those without an artefact: such medians scatter by 3 %, in either, and half of the samples are others
    np.testing.assert_allclose(front_end.threshold, plain.threshold, rtol=0.12)


def test_the_encoder_learns_from_clean_blocks_alone() -> None:
    config = EncoderConfig(warmup_s=0.03)
    rng = np.random.default_rng(10)
    clean = rng.normal(5.0, 2.0, (60, 4)).astype(np.float32)
    touched = np.zeros(90, dtype=np.bool_)
    touched[rng.choice(80, 30, replace=False)] = True
    mixed = np.full((90, 4), 1e6, dtype=np.float32)
    mixed[~touched] = clean
    only, both = Encoder(config, 4), Encoder(config, 4)

    def encoded(encoder: Encoder, vectors: Floats, flags: Sequence[bool]) -> Floats:
        out = np.full((len(vectors), 16), np.nan, dtype=np.float32)
        for vector, flag, row in zip(vectors, flags, out, strict=True):
            encode(encoder.state, vector, row, flag and not encoder.is_ready)
        return out

    flags = touched.tolist()
    expected = encoded(only, clean[:30], [False] * 30)
    upto = int(np.flatnonzero(np.cumsum(~touched) == 30)[0]) + 1
    out = encoded(both, mixed[:upto], flags[:upto])

    assert only.is_ready
    assert both.is_ready
    for one, other in zip(only.state, both.state, strict=True):
        assert one.tobytes() == other.tobytes()
    assert (out[touched[:upto]] == 0.0).all()
    assert out[-1].tobytes() == expected[-1].tobytes()


def test_once_ready_the_encoder_takes_blanked_blocks_as_they_are() -> None:
    config = EncoderConfig(normalisation="scale")
    one, other = Encoder(config, 2), Encoder(config, 2)
    out, same = np.zeros(16, dtype=np.float32), np.zeros(16, dtype=np.float32)
    for value in (1.0, 2.0, 3.0):
        encode(one.state, np.full(2, value, dtype=np.float32), out, False)
        encode(other.state, np.full(2, value, dtype=np.float32), same, True)

        assert out.tobytes() == same.tobytes()


def test_of_a_stream_of_features_whole_vectors_are_blanked(run: Run) -> None:
    front_end = raw(ArtefactConfig(lead_us=0.0, blank_us=1500.0), n_channels=3, sampling_frequency=20.0)
    vectors = np.arange(30, dtype=np.float32).reshape(10, 3)

    features = run(front_end, vectors, [1] * 10, trains=[naive.Train(4, 0, 60_000.0, 1, 0.0, 400.0)])

    # 60 ms lie between the second and the third vector of 50 ms from there
    expected = vectors.copy()
    expected[5:7] = vectors[4]
    np.testing.assert_array_equal(features, expected)


def test_reset_forgets_trains_and_counts(run: Run) -> None:
    train = naive.Train(BLOCK, 0, 0.0, 20, 1000.0, 200.0)
    front_end = raw(ARTEFACTS, n_channels=5)
    before = state_bytes(front_end)
    run(front_end, signal(5 * BLOCK, 5, seed=11), [BLOCK] * 5, trains=[train])
    assert front_end.blanked.samples > 0

    front_end.reset()

    assert front_end.blanked == (0, 0)
    np.testing.assert_array_equal(front_end.state.trains, 0)
    run(front_end, np.zeros((0, 5), dtype=np.float32), [0])
    assert not is_blanked(front_end.state)
    front_end.reset()
    assert state_bytes(front_end) == before


@pytest.mark.parametrize(
    "changes, names, words",
    [
        ({"channels": ["nobody"]}, (), ["artefacts.channels", '"nobody"', "ch1, ch2"]),
        ({"channels": [2]}, (), ["artefacts.channels", "no channel 2"]),
        ({"electrodes": [{"electrode": 0, "channels": [7]}]}, (), ["artefacts.electrodes[0].channels", "no channel 7"]),
        ({"electrodes": [{"electrode": 32}]}, (), ["artefacts.electrodes[0]", "no electrode 32", "0 to 31"]),
        ({"electrodes": [{"electrode": 1}]}, ("a",), ["no electrode 1", "0 to 0"]),
        ({"electrodes": [{"electrode": "b"}]}, ("a",), ['no electrode "b"', "there are a"]),
        ({"electrodes": [{"electrode": "a"}, {"electrode": 0}]}, ("a",), ["artefacts.electrodes[1]", "twice"]),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(
    changes: dict[str, object], names: tuple[str, ...], words: list[str]
) -> None:
    artefacts = ArtefactConfig.model_validate(changes)

    with pytest.raises(ConfigError) as caught:
        FrontEnd(FrontEndConfig(features=("raw",)), 2, FS, artefacts=artefacts, electrode_names=names)

    for word in words:
        assert word in str(caught.value)
