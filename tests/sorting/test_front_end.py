"""Samples in, features out: what the front end promises."""

import datetime
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import naive.front_end as naive
from neuromod.engine.errors import ConfigError
from neuromod.sorting.baseline import Baseline, front_end_hash
from neuromod.sorting.config import (
    BandsConfig,
    CrossingsConfig,
    FrontEndConfig,
    SpikingBandConfig,
)
from neuromod.sorting.front_end import FrontEnd, finish_block, is_ready, push

Floats = NDArray[np.float32]
Run = Callable[..., Floats]
FS = 15000.0
ALL_KINDS = ("crossings", "spiking_band", "bands", "raw")


def noise_with_spikes(n_samples: int, n_channels: int, seed: int, common: float = 0.0) -> Floats:
    """Noise of 10 uV around an offset, with something common to all channels and biphasic spikes of 150 uV."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 10.0, (n_samples, n_channels)) + 300.0 + common * rng.normal(0.0, 10.0, (n_samples, 1))
    shape = -150.0 * np.array([0.3, 1.0, 0.5, -0.4, -0.3, -0.1])
    for c in range(n_channels):
        for start in rng.integers(0, n_samples - len(shape), max(1, n_samples // 100)):
            x[start : start + len(shape), c] += shape
    return x.astype(np.float32)


def known_noise(config: FrontEndConfig, noise: dict[str, list[float]], excluded: dict[str, str]) -> Baseline:
    n = len(next(iter(noise.values())))
    return Baseline(
        measured_at=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        stream_name="test",
        sampling_frequency=FS,
        channel_names=tuple(f"ch{i + 1}" for i in range(n)),
        duration_s=1.0,
        block_ms=1.0,
        smoothing_ms=0.0,
        front_end=config,
        front_end_hash=front_end_hash(config),
        excluded=excluded,
        noise={name: tuple(values) for name, values in noise.items()},
        threshold_uv=(None,) * n,
        feature_names=(),
        mean=(),
        sd=(),
    )


def state_bytes(front_end: FrontEnd) -> bytes:
    return b"".join(array.tobytes() for array in front_end.parts())


@pytest.mark.parametrize("reference", ["none", "mean", "median", "clipped-mean"])
@pytest.mark.parametrize("seed", [1, 2])
def test_features_equal_the_naive_twin(run: Run, reference: str, seed: int) -> None:
    config = FrontEndConfig.model_validate(
        {"features": ALL_KINDS, "reference": reference, "bands": {"ranges_hz": [(20, 60), (60, 200)]}}
    )
    samples = noise_with_spikes(900, 7, seed, common=2.0)
    blocks = [15, 14, 16, 1, 44] * 10
    noise = {"crossings": [9.0, 10.0, 11.0, 12.0, 13.0, 8.0, 10.0], "spiking_band": [4.0] * 7}
    front_end = FrontEnd(config, 7, FS, baseline=known_noise(config, noise, {"ch3": "noisy"}))

    features = run(front_end, samples, blocks)

    levels = {name: np.array(values) for name, values in noise.items()}
    expected = naive.features(config, samples, FS, blocks, levels, excluded=[2])
    crossings = [i for i, name in enumerate(front_end.feature_names) if name.endswith("crossings")]
    assert expected[:, crossings].sum() > 30
    # counts: the twins' signals differ by rounding (1e-13 uV), and no seeded sample lies that near a threshold
    np.testing.assert_array_equal(features[:, crossings], expected[:, crossings])
    # float32 rounds to 6e-8; double sums in another order differ far less
    np.testing.assert_allclose(features, expected, rtol=2e-7, atol=1e-9)


def test_crossings_are_counted_from_the_start_for_whoever_looks_on(run: Run) -> None:
    front_end = FrontEnd(FrontEndConfig(features=("crossings",), warmup_s=0.02, reference="none"), 3, FS)

    features = run(front_end, noise_with_spikes(3000, 3, seed=4), [15] * 200)

    counted = front_end.crossings
    assert counted is not None
    assert counted.sum() > 20
    np.testing.assert_array_equal(counted, np.nansum(features, axis=0))
    assert not any(part is front_end.state.crossed for part in front_end.parts())  # no checkpoint holds them
    front_end.reset()
    assert not np.any(front_end.crossings)
    assert FrontEnd(FrontEndConfig(features=("raw",), reference="none"), 3, FS).crossings is None


@pytest.mark.parametrize("log", [False, True])
def test_power_of_a_tone_is_half_its_squared_amplitude(run: Run, log: bool) -> None:
    config = FrontEndConfig(features=("bands",), bands=BandsConfig(ranges_hz=((8.0, 13.0),), window_ms=1.0, log=log))
    front_end = FrontEnd(config, 1, 250.0)
    t = np.arange(1000) / 250.0
    tone = (20.0 * np.sin(2 * np.pi * 10.2 * t)).astype(np.float32)[:, None]

    features = run(front_end, tone, [250] * 4)

    power = 10 ** (features[-1, 0] / 10) if log else features[-1, 0]
    assert power == pytest.approx(200.0, rel=0.02)  # 10.2 Hz is the band's geometric middle; a second is 10.2 periods


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 240), max_size=12),
    reference=st.sampled_from(["none", "mean", "median", "clipped-mean"]),
    n_channels=st.sampled_from([2, 8, 9]),
)
def test_any_split_of_the_samples_gives_the_same_bits(
    run: Run, cuts: list[int], reference: str, n_channels: int
) -> None:
    config = FrontEndConfig.model_validate(
        {"features": ALL_KINDS, "reference": reference, "warmup_s": 0.01, "bands": {"ranges_hz": [(20, 60)]}}
    )
    samples = noise_with_spikes(240, n_channels, seed=3)
    blocks = [30, 31, 29, 70, 80]
    whole, split = (FrontEnd(config, n_channels, FS) for _ in range(2))

    expected = run(whole, samples, blocks)
    features = run(split, samples, blocks, cuts)

    assert features.tobytes() == expected.tobytes()
    assert state_bytes(split) == state_bytes(whole)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 240), later=st.integers(0, 240))
def test_counts_do_not_depend_on_where_blocks_end(run: Run, cut: int, later: int) -> None:
    config = FrontEndConfig(crossings=CrossingsConfig(threshold_uv=-40.0, dead_time_ms=3.0))
    samples = noise_with_spikes(240, 3, seed=4)
    edges = [0, *sorted([cut, later]), 240]

    one = run(FrontEnd(config, 3, FS), samples, [240])
    many = run(FrontEnd(config, 3, FS), samples, list(np.diff(edges)))

    np.testing.assert_array_equal(many.sum(axis=0), one[0])
    assert one.sum() > 0


def test_crossings_closer_than_the_dead_time_count_once(run: Run) -> None:
    config = FrontEndConfig(crossings=CrossingsConfig(low_hz=1.0, high_hz=7000.0, threshold_uv=-50.0, dead_time_ms=2.0))
    samples = np.zeros((300, 1), dtype=np.float32)
    samples[[100, 110, 129, 130, 161]] = -100.0  # 2 ms are 30 samples: 110 and 129 are dead; 130 never came up again

    counts = run(FrontEnd(config, 1, FS), samples, [1] * 300)[:, 0]

    assert np.flatnonzero(counts).tolist() == [100, 161]


def test_staying_below_threshold_counts_once(run: Run) -> None:
    config = FrontEndConfig(
        crossings=CrossingsConfig(low_hz=0.01, high_hz=7000.0, threshold_uv=-50.0, dead_time_ms=0.0)
    )
    samples = np.zeros((300, 1), dtype=np.float32)
    samples[100:200] = -100.0

    assert run(FrontEnd(config, 1, FS), samples, [300])[0, 0] == 1


def test_an_offset_of_the_signal_leaves_no_transient(run: Run) -> None:
    config = FrontEndConfig(
        features=("crossings", "bands"),
        crossings=CrossingsConfig(threshold_uv=-1e-3),
        bands=BandsConfig(ranges_hz=((4.0, 8.0),)),
    )
    samples = np.full((100, 2), -5000.0, dtype=np.float32)

    features = run(FrontEnd(config, 2, FS), samples, [100])

    np.testing.assert_allclose(features, 0.0, atol=1e-9)


def test_an_artefact_of_all_channels_is_taken_away_and_a_spike_is_not(run: Run) -> None:
    config = FrontEndConfig(reference="clipped-mean")
    noise = {"crossings": [10.0] * 16}
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 10, (300, 16)).astype(np.float32)
    samples[100:105] -= 5000.0
    samples[200:203, 4] -= 400.0

    counts = run(FrontEnd(config, 16, FS, baseline=known_noise(config, noise, {})), samples, [150, 150])

    assert counts[0].sum() == 0
    assert counts[1].tolist() == [float(c == 4) for c in range(16)]


@pytest.mark.parametrize("reference", ["mean", "median", "clipped-mean"])
def test_an_excluded_channel_has_no_features_and_no_say_in_the_reference(run: Run, reference: str) -> None:
    config = FrontEndConfig.model_validate(
        {
            "features": ["crossings", "spiking_band", "raw"],
            "reference": reference,
            "exclude_channels": ["ch2", 4],
            "warmup_s": 0.01,
        }
    )
    samples = noise_with_spikes(450, 5, seed=5)
    wild = samples.copy()
    wild[:, [1, 4]] = np.random.default_rng(6).normal(0, 1e6, (450, 2))

    tame_features = run(FrontEnd(config, 5, FS), samples, [150] * 3)
    front_end = FrontEnd(config, 5, FS)
    features = run(front_end, wild, [150] * 3)

    assert front_end.excluded == {"ch2": "configured", "ch5": "configured"}
    assert np.all(features[1:].reshape(2, 5, 3)[:, [1, 4]] == 0.0)
    assert features.tobytes() == tame_features.tobytes()


def test_warm_up_measures_noise_finds_bad_channels_then_counts(run: Run) -> None:
    config = FrontEndConfig(reference="mean", warmup_s=0.2, saturation_uv=4000.0)
    rng = np.random.default_rng(7)
    samples = rng.normal(0, 10, (4500, 6)).astype(np.float32)
    samples[:, 1] = 12.0
    samples[:, 3] *= 40
    samples[::20, 5] = 4096.0
    front_end = FrontEnd(config, 6, FS)

    features = run(front_end, samples, [1500, 1499, 1, 1500])

    assert np.isnan(features[:3]).all()  # 3000 samples, to the end of the third block
    assert np.isfinite(features[3:]).all()
    assert front_end.is_ready
    assert is_ready(front_end.state)
    assert front_end.excluded == {"ch2": "dead", "ch4": "noisy", "ch6": "saturated"}
    second_half = naive.filtered(samples.astype(np.float64), FS, 300.0, 6000.0, 2)
    second_half = naive.referenced(second_half, "mean", [0, 2, 4])[1500:3000]
    exact = np.median(np.abs(second_half), axis=0) / 0.6744897501960817
    # bins of 3 % with interpolation within: 1500 values leave about 30 to a bin, so a third of one at worst
    np.testing.assert_allclose(front_end.noise["crossings"][[0, 2, 4]], exact[[0, 2, 4]], rtol=0.01)
    np.testing.assert_allclose(front_end.threshold[[0, 2, 4]], -4.5 * front_end.noise["crossings"][[0, 2, 4]])
    assert np.isneginf(front_end.threshold[[1, 3, 5]]).all()


def test_without_anything_to_measure_there_is_no_warm_up() -> None:
    absolute = FrontEndConfig(crossings=CrossingsConfig(threshold_uv=-50.0))

    assert FrontEnd(absolute, 4, FS).is_ready
    assert FrontEnd(FrontEndConfig(features=("raw", "bands")), 4, FS).is_ready
    assert not FrontEnd(FrontEndConfig(), 4, FS).is_ready


def test_raw_is_the_mean_of_the_block(run: Run) -> None:
    samples = np.array([[1.0, 2.0], [3.0, 6.0], [-1.0, 0.5]], dtype=np.float32)

    features = run(FrontEnd(FrontEndConfig(features=("raw",)), 2, 250.0), samples, [2, 1])

    np.testing.assert_array_equal(features, [[2.0, 4.0], [-1.0, 0.5]])


def test_a_block_without_samples_changes_no_power(run: Run) -> None:
    config = FrontEndConfig(features=("spiking_band", "raw"), spiking_band=SpikingBandConfig(window_ms=1.0))
    features = run(FrontEnd(config, 2, FS), noise_with_spikes(120, 2, seed=8), [60, 0, 60])

    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[1], features[0])


def test_features_are_named_channel_by_channel() -> None:
    config = FrontEndConfig(features=("crossings", "bands"), bands=BandsConfig(ranges_hz=((0.5, 4.0), (8.0, 13.0))))
    front_end = FrontEnd(config, 2, FS, ["a", "b"])

    assert front_end.n_features == 6
    assert front_end.feature_names == (
        "a.crossings",
        "a.0.5-4Hz",
        "a.8-13Hz",
        "b.crossings",
        "b.0.5-4Hz",
        "b.8-13Hz",
    )


def test_reset_forgets_everything(run: Run) -> None:
    config = FrontEndConfig(warmup_s=0.01)
    samples = noise_with_spikes(450, 3, seed=10)
    used = FrontEnd(config, 3, FS)
    expected = run(used, samples, [200, 250])
    state = state_bytes(used)

    used.reset()

    assert not used.is_ready
    assert run(used, samples, [200, 250]).tobytes() == expected.tobytes()
    assert state_bytes(used) == state


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_huge_input_gives_finite_features(run: Run, value: float) -> None:
    config = FrontEndConfig(features=ALL_KINDS, reference="clipped-mean", warmup_s=0.005)
    samples = noise_with_spikes(300, 3, seed=11)
    samples[200:210, 1] = value

    features = run(FrontEnd(config, 3, FS), samples, [100] * 3)

    assert np.isfinite(features[1:]).all()


def test_silence_after_a_signal_leaves_no_denormal_numbers(run: Run) -> None:
    front_end = FrontEnd(FrontEndConfig(features=("spiking_band",)), 1, FS)
    run(front_end, noise_with_spikes(60, 1, seed=12), [60])

    for _ in range(12):
        run(front_end, np.zeros((500, 1), dtype=np.float32), [500])

    z = np.abs(front_end.state.z)
    assert np.all((z == 0.0) | (z > 1e-100))


@pytest.mark.parametrize("n_channels", [1, 15, 16, 1024])
def test_any_number_of_channels_works(run: Run, n_channels: int) -> None:
    config = FrontEndConfig(warmup_s=2 / FS)

    features = run(FrontEnd(config, n_channels, FS), noise_with_spikes(8, n_channels, seed=13), [4, 4])

    assert features.shape == (2, n_channels)
    assert np.isnan(features[0]).all()  # its first two samples were the warm-up
    assert np.isfinite(features[1]).all()


@pytest.mark.parametrize(
    "changes, sampling_frequency, words",
    [
        ({"features": ["crossings"]}, 250.0, ["front_end.crossings", "300 to 6000 Hz", "125 Hz", '"bands"']),
        ({"features": ["crossings"]}, 10000.0, ["front_end.crossings", "6000 Hz must lie below 5000", "4500"]),
        ({"features": ["spiking_band"]}, 1500.0, ["front_end.spiking_band", "1000 Hz"]),
        ({"features": ["bands"], "bands": {"ranges_hz": [[70, 200]]}}, 250.0, ["front_end.bands.ranges_hz", "112.5"]),
        ({"reference": "mean", "exclude_channels": [0]}, FS, ["front_end.reference", '"none"']),
        ({"features": ["bands"], "bands": {"reference": "mean"}, "exclude_channels": [0]}, FS, ["bands.reference"]),
        ({"exclude_channels": ["nobody"]}, FS, ["exclude_channels", '"nobody"', "ch1, ch2"]),
        ({"exclude_channels": [2]}, FS, ["exclude_channels", "no channel 2"]),
        ({"exclude_channels": [0, 1]}, FS, ["every channel"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_key_and_the_fix(
    changes: dict[str, object], sampling_frequency: float, words: list[str]
) -> None:
    config = FrontEndConfig.model_validate(changes)

    with pytest.raises(ConfigError) as caught:
        FrontEnd(config, 2, sampling_frequency)

    for word in words:
        assert word in str(caught.value)


def test_a_lone_channel_is_not_referenced_to_itself(run: Run) -> None:
    config = FrontEndConfig(crossings=CrossingsConfig(threshold_uv=-60.0))

    assert run(FrontEnd(config, 1, FS), noise_with_spikes(300, 1, seed=14), [300])[0, 0] > 0


def test_names_must_fit_the_channels() -> None:
    with pytest.raises(ConfigError, match="3 channel names for 2"):
        FrontEnd(FrontEndConfig(), 2, FS, ["a", "b", "c"])


def test_an_empty_push_changes_nothing() -> None:
    front_end = FrontEnd(FrontEndConfig(), 2, FS)
    before = state_bytes(front_end)

    push(front_end.state, np.empty((0, 2), dtype=np.float32))

    assert state_bytes(front_end) == before
    finish_block(front_end.state, np.empty(2, dtype=np.float32))
