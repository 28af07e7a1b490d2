"""Features in, 16 stimuli out: what the encoder promises."""

from pathlib import Path

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import naive.front_end as naive
from neuromod.engine.errors import ConfigError
from neuromod.sorting.config import EncoderConfig
from neuromod.sorting.encoder import Encoder, encode, is_encoding

Floats = NDArray[np.float32]
PLAIN = {"smoothing_ms": 0.0, "normalisation": "none", "offset": 0.0, "clip": (-1e6, 1e6)}


def plain(**changes: object) -> EncoderConfig:
    """Nothing but the mixing."""
    return EncoderConfig.model_validate(PLAIN | changes)


def encoded(encoder: Encoder, features: NDArray[np.floating]) -> Floats:
    out = np.full((len(features), 16), np.nan, dtype=np.float32)
    for vector, row in zip(np.ascontiguousarray(features, dtype=np.float32), out, strict=True):
        encode(encoder.state, vector, row)
    return out


def state_bytes(encoder: Encoder) -> bytes:
    return b"".join(array.tobytes() for array in encoder.state)


@pytest.mark.parametrize("n", [1, 14, 16])
def test_identity_hands_feature_i_to_stimulus_i(n: int) -> None:
    features = np.arange(1.0, n + 1, dtype=np.float32)[None]

    stimuli = encoded(Encoder(plain(kind="identity"), n), features)[0]

    np.testing.assert_array_equal(stimuli[:n], features[0])
    np.testing.assert_array_equal(stimuli[n:], 0.0)


def test_identity_of_more_than_16_features_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r'up to 16 features, the stream gives 17; .*"groups"'):
        Encoder(plain(kind="identity"), 17)


@pytest.mark.parametrize("n", [1, 5, 14, 15, 96, 384])
def test_default_groups_share_all_features_among_the_sensory_channels(n: int) -> None:
    matrix = Encoder(plain(combine="sum"), n).state.matrix  # (n, 16)

    assert (matrix.sum(axis=1) == 1.0).all()
    sizes = matrix.sum(axis=0)
    assert (sizes[14:] == 0).all()
    used = sizes[: min(n, 14)]
    assert used.max() - used.min() <= 1
    assert (np.diff(matrix.argmax(axis=1)) >= 0).all()


def test_groups_by_name_of_channel_or_feature_or_by_number() -> None:
    names = ["a.crossings", "a.raw", "b.crossings", "b.raw"]
    config = plain(groups=[["a"], [], ["b.raw", 0]], combine="mean")

    stimuli = encoded(Encoder(config, 4, names), np.array([[1.0, 2.0, 4.0, 8.0]]))[0]

    np.testing.assert_array_equal(stimuli[:4], [1.5, 0.0, 4.5, 0.0])


@pytest.mark.parametrize("combine, expected", [("sum", 8.0), ("mean", 2.0), ("unit", 4.0)])
def test_a_group_is_combined_as_stated(combine: str, expected: float) -> None:
    stimuli = encoded(Encoder(plain(groups=[[0, 1, 2, 3]], combine=combine), 4), np.full((1, 4), 2.0))

    assert stimuli[0, 0] == expected


@pytest.mark.parametrize(
    "groups, words",
    [
        ([["c"]], 'no channel or feature is called "c"; there are a, b'),
        ([["a"], [2]], r"groups\[1\]: there is no feature 2"),
        ([["a", 0]], "names a feature twice"),
        ([[], []], "holds no feature at all"),
    ],
)
def test_groups_that_name_nothing_are_refused(groups: list[list[str | int]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Encoder(plain(groups=groups), 2, ["a", "b"])


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
@pytest.mark.parametrize("rows", [14, 16])
def test_a_matrix_from_a_file_weighs_the_features(tmp_path: Path, suffix: str, rows: int) -> None:
    path = tmp_path / f"decoder{suffix}"
    matrix = np.random.default_rng(0).normal(size=(rows, 5))
    np.save(path, matrix) if suffix == ".npy" else np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    features = np.random.default_rng(1).normal(size=(1, 5)).astype(np.float32)

    stimuli = encoded(Encoder(plain(kind="matrix", matrix_path=path), 5), features)[0]

    np.testing.assert_allclose(stimuli[:rows], matrix @ features[0].astype(np.float64), rtol=1e-6)
    np.testing.assert_array_equal(stimuli[rows:], 0.0)


def test_a_matrix_that_does_not_fit_is_refused_with_the_fix(tmp_path: Path) -> None:
    for name, content, words in (
        ("turned.npy", np.zeros((5, 16)), "transpose it"),
        ("small.npy", np.zeros((3, 5)), r"shape \(3, 5\); \(16, 5\) or \(14, 5\) expected"),
        ("nan.npy", np.full((16, 5), np.nan), "not finite"),
        ("huge.npy", np.full((16, 5), -1e31), "beyond"),
        ("object.npy", np.array([{}], dtype=object), "cannot be read"),
        ("text.csv", "a,b\n", "cannot be read"),
        ("header.npy", "\x93NUMPY\x01\0\x04\0{'''", "cannot be read"),
        ("empty.npy", "", "cannot be read"),
        ("other.txt", "1", ".npy or .csv expected"),
        ("absent.npy", None, "cannot be read"),
    ):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="latin-1")
        elif content is not None:
            np.save(path, content, allow_pickle=True)
        with pytest.raises(ConfigError, match=words):
            Encoder(plain(kind="matrix", matrix_path=path), 5)


@pytest.mark.parametrize("rectify, expected", [("none", [-2.0, 4.0]), ("half", [1.0, 4.0]), ("full", [4.0, 4.0])])
def test_gain_rectifier_and_offset_act_in_this_order(rectify: str, expected: list[float]) -> None:
    encoder = Encoder(plain(kind="identity", gain=3.0, offset=1.0, rectify=rectify), 2)

    np.testing.assert_array_equal(encoded(encoder, np.array([[-1.0, 1.0]]))[0, :2], expected)


def test_stimuli_that_no_feature_reaches_get_no_offset() -> None:
    assert (encoded(Encoder(plain(kind="identity", offset=1.0), 2), np.zeros((1, 2)))[0, 2:] == 0.0).all()


def test_scale_uses_the_constants_given() -> None:
    encoder = Encoder(plain(kind="identity", normalisation="scale", centre=(1.0, 2.0), scale=4.0), 2)

    np.testing.assert_array_equal(encoded(encoder, np.array([[3.0, -2.0]]))[0, :2], [0.5, -1.0])
    with pytest.raises(ConfigError, match=r"encoder.centre holds 2 values for 3 features"):
        Encoder(plain(kind="identity", normalisation="scale", centre=(1.0, 2.0)), 3)


@pytest.mark.parametrize("block_ms", [1.0, 50.0])
def test_smoothing_forgets_at_the_stated_time_constant(block_ms: float) -> None:
    encoder = Encoder(plain(kind="identity", smoothing_ms=100.0), 1, block_ms=block_ms)
    n = int(100.0 / block_ms)

    stimuli = encoded(encoder, np.array([[1.0]] + [[0.0]] * n))[:, 0]

    assert stimuli[-1] == pytest.approx(np.exp(-1.0), rel=1e-6)


def test_zscore_constants_are_those_of_the_warm_up_and_then_frozen() -> None:
    config = EncoderConfig(kind="identity", smoothing_ms=0.0, warmup_s=0.1, offset=0.0, clip=(-4.0, 4.0))
    rng = np.random.default_rng(2)
    features = rng.normal([5.0, -3.0, 7.0], [1.0, 2.0, 0.0], (200, 3)).astype(np.float32)
    encoder = Encoder(config, 3)

    stimuli = encoded(encoder, features)

    assert (stimuli[:99] == 0.0).all()
    first = features[:100].astype(np.float64)
    expected = np.clip(
        (features[99:] - first.mean(axis=0)) / np.where(first.std(axis=0) > 0, first.std(axis=0), 1), -4, 4
    )
    # one-pass against two-pass moments: 1e-12, below the 6e-8 of float32
    np.testing.assert_allclose(stimuli[99:, :2], expected[:, :2], rtol=1e-6, atol=1e-6)
    assert (stimuli[:, 2] == 0.0).all()  # a feature that never moved has no scale, and no say
    assert encoder.is_ready
    assert is_encoding(encoder.state)


def test_one_feature_cannot_rule_its_group() -> None:
    config = EncoderConfig(
        groups=((0, 1, 2, 3),), smoothing_ms=0.0, warmup_s=0.1, limit_sd=2.0, offset=0.0, combine="sum"
    )
    encoder = Encoder(config, 4)
    encoded(encoder, np.tile([[-1.0], [1.0]], (50, 4)))

    stimuli = encoded(encoder, np.array([[1e6, 0.0, 0.0, 0.0]]))

    assert stimuli[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize("combine", ["sum", "mean", "unit"])
def test_compiled_encoder_equals_the_naive_twin(combine: str) -> None:
    config = EncoderConfig.model_validate(
        {"combine": combine, "smoothing_ms": 20.0, "normalisation": "scale", "centre": 0.02, "scale": 0.1, "gain": 0.7}
    )
    features = np.random.default_rng(3).poisson(0.03, (200, 40)).astype(np.float32)
    encoder = Encoder(config, 40)

    stimuli = encoded(encoder, features)

    one = np.ones(40)
    matrix = encoder.state.matrix.T
    expected = naive.stimuli(
        features.astype(np.float64), matrix, np.exp(-1 / 20), 0.02 * one, 0.1 * one, 0.7, config.offset, config.clip
    )
    np.testing.assert_allclose(stimuli, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    features=hnp.arrays(np.float32, (6, 3), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    normalisation=st.sampled_from(["none", "zscore", "scale"]),
    rectify=st.sampled_from(["none", "half", "full"]),
    smoothing_ms=st.sampled_from([0.0, 10.0]),
)
def test_stimuli_are_finite_whatever_comes(
    features: Floats, normalisation: str, rectify: str, smoothing_ms: float
) -> None:
    config = EncoderConfig.model_validate(
        {
            "groups": [[0, 1], [2]],
            "normalisation": normalisation,
            "rectify": rectify,
            "smoothing_ms": smoothing_ms,
            "warmup_s": 0.002,
            "scale": 1e-30,
            "gain": 1e6,
            "clip": (-3e38, 3e38),
        }
    )

    assert np.isfinite(encoded(Encoder(config, 3), features)).all()


def test_a_feature_that_is_unknown_stays_where_it_was() -> None:
    encoder = Encoder(plain(kind="identity", offset=1.0), 2)

    stimuli = encoded(encoder, np.array([[np.nan, np.nan], [3.0, np.nan], [np.nan, 2.0], [np.inf, 4.0]]))

    np.testing.assert_array_equal(stimuli[:, 0], [0.0, 4.0, 4.0, 4.0])
    np.testing.assert_array_equal(stimuli[:, 1], [0.0, 1.0, 3.0, 5.0])


def test_unknown_features_do_not_count_for_the_warm_up() -> None:
    config = EncoderConfig(kind="identity", smoothing_ms=0.0, warmup_s=0.01)
    encoder = Encoder(config, 1)

    encoded(encoder, np.full((50, 1), np.nan))
    assert not encoder.is_ready
    encoded(encoder, np.arange(10.0)[:, None])

    assert encoder.is_ready
    assert encoder.normalisation[0][0] == pytest.approx(4.5)


def test_reset_forgets_everything() -> None:
    encoder = Encoder(EncoderConfig(warmup_s=0.05), 20)
    features = np.random.default_rng(4).poisson(0.1, (100, 20)).astype(np.float32)
    expected, state = encoded(encoder, features), state_bytes(encoder)

    encoder.reset()

    assert not encoder.is_ready
    assert encoded(encoder, features).tobytes() == expected.tobytes()
    assert state_bytes(encoder) == state


def test_defaults_keep_stimuli_of_a_utah_array_in_range() -> None:
    """Crossings of 96 channels at 1 to 60 Hz, counted each millisecond."""
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.uniform(1, 60, 96) / 1000, (1500, 96)).astype(np.float32)

    stimuli = encoded(Encoder(EncoderConfig(warmup_s=0.5), 96), counts)[500:]

    assert 0.4 < stimuli[:, :14].mean() < 1.2
    assert stimuli[:, :14].std() > 0.3
    assert (stimuli[:, 14:] == 0.0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "matrix"},
        {"matrix_path": "m.npy"},
        {"kind": "identity", "groups": [[0]]},
        {"clip": [1.0, 0.0]},
        {"clip": [0.0, 3.4e38]},
        {"scale": 0.0},
        {"scale": [1.0, -1.0]},
        {"gain": 1e7},
        {"gain": float("nan")},
        {"gian": 1.0},
    ],
)
def test_impossible_combinations_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        EncoderConfig.model_validate(changes)
