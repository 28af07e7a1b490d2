"""The frozen baseline: measured by the session's own chain, saved to a dated file, refused where it does not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.baseline import Baseline
from neuromod.sorting.config import CrossingsConfig, EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd
from neuromod.sorting.measure import BaselineEstimator, measure_baseline

Floats = NDArray[np.float32]
Run = Callable[..., Floats]
FS = 15000.0
NAMES = ("a", "b", "c", "d")
FRONT_END = FrontEndConfig(reference="mean", crossings=CrossingsConfig(threshold_noise=-2.0))
ENCODER = EncoderConfig()


def signal(n: int = 3000) -> Floats:
    samples = np.random.default_rng(0).normal(0, 10, (n, 4)).astype(np.float32)
    samples[:, 2] = 0.0
    return samples


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return measure_baseline(FRONT_END, ENCODER, [signal()], FS, NAMES, duration_s=0.2, stream_name="rig 1")


def test_a_baseline_is_what_the_loop_itself_would_have_measured(run: Run, baseline: Baseline) -> None:
    front_end = FrontEnd(FRONT_END.model_copy(update={"warmup_s": 0.1}), 4, FS, NAMES)
    features = run(front_end, signal(), [15] * 200)
    encoder = Encoder(EncoderConfig(warmup_s=0.1), 4, front_end.feature_names)
    for vector in features:
        encode(encoder.state, vector, np.empty(16, dtype=np.float32))

    assert baseline.excluded == {"c": "dead"}
    np.testing.assert_array_equal(baseline.noise["crossings"], front_end.noise["crossings"])
    np.testing.assert_array_equal(baseline.threshold_uv[:2], front_end.threshold[:2])
    assert baseline.threshold_uv[2] is None
    np.testing.assert_array_equal(baseline.mean, encoder.normalisation[0])
    np.testing.assert_array_equal(baseline.sd, encoder.normalisation[1])
    assert baseline.mean[0] > 0


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_make_no_difference_to_a_baseline(baseline: Baseline, chunk: int) -> None:
    chunks = (signal()[i : i + chunk] for i in range(0, 3000, chunk))

    again = measure_baseline(FRONT_END, ENCODER, chunks, FS, NAMES, duration_s=0.2, stream_name="rig 1")

    assert again.model_copy(update={"measured_at": baseline.measured_at}) == baseline


def test_a_session_with_a_baseline_counts_from_the_first_block(run: Run, baseline: Baseline) -> None:
    front_end = FrontEnd(FRONT_END, 4, FS, NAMES, baseline)
    encoder = Encoder(ENCODER, 4, front_end.feature_names, baseline)

    features = run(front_end, signal(), [15] * 200)
    stimuli = np.zeros(16, dtype=np.float32)
    drive = np.zeros(16)
    for vector in features:
        encode(encoder.state, vector, stimuli)
        drive += stimuli

    assert front_end.is_ready
    assert encoder.is_ready
    assert np.isfinite(features).all()
    assert (features[:, 2] == 0).all()
    assert drive[[0, 1, 3]].min() > 0
    assert drive[2] == pytest.approx(200 * ENCODER.offset)  # an excluded channel says nothing: rest
    assert front_end.excluded == baseline.excluded
    np.testing.assert_array_equal(front_end.threshold[[0, 1, 3]], np.array(baseline.threshold_uv)[[0, 1, 3]])


def test_a_baseline_survives_its_file_under_a_dated_name(tmp_path: Path, baseline: Baseline) -> None:
    path = baseline.save(tmp_path)

    assert re.fullmatch(r"baseline-rig_1-\d{8}T\d{6}\.json", path.name)
    assert Baseline.load(path) == baseline
    assert list(tmp_path.iterdir()) == [path]
    assert baseline.save(tmp_path / "mine.json") == tmp_path / "mine.json"


@pytest.mark.parametrize(
    "sampling_frequency, names, config, words",
    [
        (30000.0, NAMES, FRONT_END, ["sampling frequency", "15000", "30000"]),
        (FS, ("a", "b", "c"), FRONT_END, ["number of channels: 4 in the baseline, 3"]),
        (FS, ("a", "b", "c", "x"), FRONT_END, ['name of channel 3: "d" in the baseline, "x"']),
        (FS, NAMES, FrontEndConfig(reference="mean"), ["crossings.threshold_noise = -2.0 in the baseline, -4.5 here"]),
        (FS, NAMES, FRONT_END.model_copy(update={"reference": "none"}), ['reference = "mean"', '"none" here']),
    ],
)
def test_a_baseline_of_another_stream_or_configuration_is_refused_naming_the_difference(
    baseline: Baseline, sampling_frequency: float, names: tuple[str, ...], config: FrontEndConfig, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        FrontEnd(config, len(names), sampling_frequency, names, baseline)

    for word in [*words, 'baseline of "rig 1"', "`neuromod baseline`"]:
        assert word in str(caught.value)


def test_the_length_of_the_warm_up_does_not_make_a_baseline_foreign(baseline: Baseline) -> None:
    FrontEnd(FRONT_END.model_copy(update={"warmup_s": 99.0}), 4, FS, NAMES, baseline)


def test_an_encoder_of_other_blocks_smoothing_or_features_refuses_the_baseline(baseline: Baseline) -> None:
    names = baseline.feature_names
    with pytest.raises(ConfigError, match="block_ms: 1 in the baseline, 2 here"):
        Encoder(ENCODER, 4, names, baseline, block_ms=2.0)
    with pytest.raises(ConfigError, match="smoothing_ms: 30 in the baseline, 5 here"):
        Encoder(EncoderConfig(smoothing_ms=5.0), 4, names, baseline)
    with pytest.raises(ConfigError, match=r'feature 0: "a\.crossings" in the baseline, "f1" here'):
        Encoder(ENCODER, 4, None, baseline)
    with pytest.raises(ConfigError, match="number of features: 4 in the baseline, 3 here"):
        Encoder(ENCODER, 3, names[:3], baseline)
    Encoder(EncoderConfig(normalisation="none", smoothing_ms=5.0), 4, names, baseline)


def test_features_have_a_baseline_without_a_front_end() -> None:
    rates = np.random.default_rng(1).normal(20.0, 3.0, (200, 4)).astype(np.float32)
    encoder = EncoderConfig(smoothing_ms=0.0)

    baseline = measure_baseline(None, encoder, [rates], 20.0, NAMES, duration_s=10.0)

    assert baseline.block_ms == 50.0
    assert baseline.noise == {}
    np.testing.assert_allclose(baseline.mean, rates.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(baseline.sd, rates.astype(np.float64).std(axis=0))
    Encoder(encoder, 4, NAMES, baseline, block_ms=50.0)
    with pytest.raises(ConfigError, match="takes features as they come"):
        FrontEnd(FRONT_END, 4, 20000.0, NAMES, baseline.model_copy(update={"sampling_frequency": 20000.0}))


def test_a_stream_that_ends_too_early_gives_no_baseline() -> None:
    with pytest.raises(ConfigError, match=r"gave 0\.1 s of the 0\.2 s"):
        measure_baseline(FRONT_END, ENCODER, [signal(1500)], FS, NAMES, duration_s=0.2)


def test_a_silent_stream_gives_no_baseline() -> None:
    with pytest.raises(ConfigError, match="every channel is dead, noisy or excluded"):
        measure_baseline(FRONT_END, ENCODER, [np.zeros((3000, 4), np.float32)], FS, NAMES, duration_s=0.2)


def test_samples_that_cannot_be_measured_are_refused() -> None:
    estimator = BaselineEstimator(FRONT_END, ENCODER, 4, FS, NAMES, duration_s=0.2)
    with pytest.raises(ConfigError, match="not finite"):
        estimator.push(np.full((3, 4), np.nan, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"shape \(3, 5\); \(n, 4\) expected"):
        estimator.push(np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(ConfigError, match="positive duration"):
        BaselineEstimator(FRONT_END, ENCODER, 4, FS, NAMES, duration_s=0.0)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"version": 2}, "version"),
        ({"format": "something"}, "format"),
        ({"excluded": {"a": "ugly"}}, "excluded.a"),
        ({"mean": [1.0]}, "mean holds 1 values, 4 expected"),
        ({"sd": [-1.0, 1.0, 1.0, 1.0]}, "sd.0"),
        ({"noise": {"crossings": [1.0]}}, "noise.crossings holds 1 values"),
        ({"front_end_hash": "0"}, "was edited"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(
    tmp_path: Path, baseline: Baseline, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(baseline.model_dump(mode="json") | change))

    with pytest.raises(ConfigError, match=words):
        Baseline.load(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"format": "neuromod-base')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "cut.json", "bytes.json"):
        with pytest.raises(ConfigError, match=name):
            Baseline.load(tmp_path / name)


def test_noise_missing_from_a_baseline_is_named(baseline: Baseline) -> None:
    with pytest.raises(ConfigError, match="no noise of crossings for 4 channels"):
        FrontEnd(FRONT_END, 4, FS, NAMES, baseline.model_copy(update={"noise": {}}))
