"""From units to channels: who feeds what and why, what units are tuned to, and constants frozen for a session."""

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle, BundleInfo, UnitInfo
from neuromod.sorting.config import EncoderConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.unit_encoding import (
    COLUMNS,
    MIN_SPIKES,
    cells,
    count_blocks,
    explain,
    measure_normalisation,
    poisson_normalisation,
    propose,
    read_table,
)
from neuromod.sorting.unit_tuning import Tuning, measure_tuning

Floats = NDArray[np.float64]
FS = 1000.0


def make_bundle(positions: Sequence[tuple[float, float]], rates: Sequence[float] | None = None) -> Bundle:
    """A sorting of one channel, whose units lie and fire as told."""
    rates = rates if rates is not None else [5.0] * len(positions)
    units = tuple(
        UnitInfo(id=f"u{i}", channel="a", position_um=at, n_spikes=100, rate_hz=rate, peak_uv=-80.0)
        for i, (at, rate) in enumerate(zip(positions, rates, strict=True))
    )
    n = len(units)
    info = BundleInfo(
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        name="made up",
        sampling_frequency=FS,
        channel_names=("a",),
        engine="sparse",
        n_before=1,
        units=units,
    )
    templates = np.full((n, 3, 1), -1.0, dtype=np.float32)
    limits = np.tile([0.75, 1.5], (n, 1))
    return Bundle(info, np.zeros((1, 2)), np.ones(1), np.ones((1, 1), np.float32), templates, templates, limits)


def utah() -> Bundle:
    """Some 120 units of a Utah array: a square of 4 mm."""
    rng = np.random.default_rng(1)
    positions = [(float(x), float(y)) for x, y in 400.0 * rng.integers(0, 10, (120, 2))]
    return make_bundle(positions, rng.uniform(0.5, 20.0, 120).tolist())


def probe() -> Bundle:
    """Units along 3.8 mm of a shank 48 um wide."""
    rng = np.random.default_rng(2)
    positions = [(float(rng.uniform(0, 48)), float(y)) for y in rng.permutation(np.linspace(0, 3800, 90))]
    return make_bundle(positions, rng.uniform(0.5, 20.0, 90).tolist())


def numbers(groups: Sequence[Sequence[str]]) -> list[list[int]]:
    return [[int(unit[1:]) for unit in group] for group in groups]


# location and rate


@pytest.mark.parametrize("array", [utah, probe])
@pytest.mark.parametrize("by", ["location", "rate"])
def test_every_unit_feeds_one_sensory_channel(array: Callable[[], Bundle], by: Any) -> None:
    encoding = propose(array(), by)

    assert len(encoding.groups) == len(encoding.reasons) == 14
    assert all(encoding.groups)
    assert sorted(sum(encoding.groups, ())) == sorted(array().unit_ids)
    assert all(encoding.reasons)


def test_groups_of_a_probe_lie_one_behind_the_other_in_depth() -> None:
    depths = np.array([unit.position_um[1] for unit in probe().info.units])

    spans = [(depths[group].min(), depths[group].max()) for group in numbers(propose(probe()).groups)]

    assert all(above < below for (_, above), (below, _) in itertools.pairwise(spans))


def test_groups_of_a_utah_array_are_compact_rectangles() -> None:
    bundle = utah()
    positions = np.array([unit.position_um for unit in bundle.info.units])

    groups = numbers(propose(bundle).groups)

    spread = np.mean([positions[group].std(axis=0).mean() for group in groups])
    # a square of side a has the deviation a / sqrt(12); 14 of equal area in 4 mm: 0.31 mm. Bisection leaves rectangles
    # of up to 2 to 1, with a mean side up to 6 % longer, and cuts on a grid of 0.4 mm: a third more is generous, while
    # groups drawn by lot would have 1.15 mm
    assert spread < 1.33 * 4000 / np.sqrt(14 * 12)
    for k, group in enumerate(groups):
        low, high = positions[group].min(axis=0), positions[group].max(axis=0)
        others = np.delete(positions, group, axis=0)
        assert not np.any(np.all((others > low) & (others < high), axis=1)), f"group {k} has strangers inside"


@pytest.mark.parametrize("array", [utah, probe])
def test_location_balances_the_mean_of_units_and_rates(array: Callable[[], Bundle]) -> None:
    rates = np.array([unit.rate_hz for unit in array().info.units])
    weights = 0.5 / len(rates) + 0.5 * rates / rates.sum()

    shares = np.array([weights[group].sum() for group in numbers(propose(array()).groups)])

    # every cut is off by at most half of the heaviest unit, and at most 4 cuts lie above a group, halving each time
    assert np.abs(shares - 1 / 14).max() <= weights.max()


def test_a_shank_far_away_shares_no_group() -> None:
    positions = [(250.0 * shank, 20.0 * i) for shank in range(2) for i in range(8)]

    groups = numbers(propose(make_bundle(positions), n_groups=2).groups)

    assert groups == [list(range(8)), list(range(8, 16))]


def test_rates_are_shared_nearly_as_equally_as_any_grouping_could() -> None:
    rates = np.array([40.0, 9.0, 9.0, 9.0, 9.0, 4.0, 20.0, 20.0])
    best = min(
        np.bincount(places, weights=rates, minlength=3).max() for places in itertools.product(range(3), repeat=8)
    )

    encoding = propose(make_bundle([(0.0, 0.0)] * 8, rates.tolist()), "rate", n_groups=3)

    # Graham's bound for the fastest first, 4/3 - 1/(3 n); in turn by number would give 67 Hz
    assert max(rates[group].sum() for group in numbers(encoding.groups)) <= (4 / 3 - 1 / 9) * best
    assert encoding.reasons[0] == "1 unit with 40 Hz together; groups have 40 Hz on average"


@pytest.mark.parametrize("by", ["location", "rate"])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_few_units_get_a_channel_each(by: Any, n: int) -> None:
    encoding = propose(make_bundle([(0.0, 0.0)] * n, [0.0] * n), by)

    assert sorted(encoding.groups) == sorted((f"u{i}",) for i in range(n))


def test_a_proposal_hangs_on_the_sorting_alone() -> None:
    assert propose(utah()) == propose(utah())


# tuning


def movement(n: int = 1200) -> Floats:
    """A walk of velocity in two dimensions with a memory of 10 rows."""
    noise = np.random.default_rng(3).normal(size=(n, 2))
    v = np.zeros((n, 2))
    for i in range(1, n):
        v[i] = 0.9 * v[i - 1] + noise[i]
    return np.asarray(v / v.std(), dtype=np.float64)


def tuned_counts(v: Floats, directions: Floats, depth: float = 1.0) -> Floats:
    rate = np.maximum(3.0 + depth * v @ np.stack([np.cos(directions), np.sin(directions)]), 0.0)
    return np.asarray(np.random.default_rng(4).poisson(rate), dtype=np.float64)


def test_a_cosine_tuned_unit_shows_its_preferred_direction_and_strength() -> None:
    v, directions = movement(), np.array([0.5, -2.0, 3.0])

    tuning = measure_tuning(tuned_counts(v, directions), v)

    # slopes of 1 known to sqrt(3 / 1200) = 0.05: an angle to 0.05 rad; three of those
    assert np.abs(np.angle(np.exp(1j * (tuning.preferred - directions)))).max() < 0.15
    # signal variance 1 of 1 + 3 (Poisson of mean 3); the walk's own variance is uncertain by sqrt(2 * 10 / 1200)
    np.testing.assert_allclose(tuning.strength, 0.25, atol=0.06)
    assert tuning.is_tuned.all()


def test_strength_is_the_share_of_variance_of_a_least_squares_fit() -> None:
    v = movement(300)
    counts = tuned_counts(v, np.array([1.0]))
    x = np.column_stack([np.ones(300), v])

    residual = counts - x @ np.linalg.lstsq(x, counts, rcond=None)[0]

    assert measure_tuning(counts, v).strength[0] == pytest.approx(1 - residual.var() / counts.var(), abs=1e-9)


def test_p_values_are_those_of_shifting_and_fitting_one_by_one() -> None:
    v = movement(200)
    counts = tuned_counts(v, np.array([1.0, 2.0]), depth=0.3)

    def r2(behaviour: Floats) -> Floats:
        x = np.column_stack([np.ones(200), behaviour])
        residual = counts - x @ np.linalg.lstsq(x, counts, rcond=None)[0]
        return np.asarray(1 - residual.var(axis=0) / counts.var(axis=0), dtype=np.float64)

    nulls = np.array([r2(np.roll(v, shift, axis=0)) for shift in range(10, 191)])

    expected = (1 + (nulls >= r2(v)).sum(axis=0)) / 182
    np.testing.assert_allclose(measure_tuning(counts, v).p_value, expected, rtol=1e-12)
    assert (expected > 1 / 182).any()  # or the comparison would say little


def test_slow_counts_that_follow_nothing_are_rarely_taken_for_tuned() -> None:
    """Units that drift beside behaviour that drifts: what a test on independent rows calls tuned."""
    rng = np.random.default_rng(5)
    kernel = np.exp(-np.arange(60) / 15.0)
    slow = np.apply_along_axis(np.convolve, 0, rng.normal(size=(1259, 200)), kernel, mode="valid")
    slow /= slow.std()

    tuning = measure_tuning(slow, movement())

    # 200 units at 0.01: 2 expected; more than 8 by chance in 2 of 10,000 draws. With independent rows, F above 4.6
    # (1 %, 2 and 1197 degrees of freedom) finds 30 and more
    assert tuning.is_tuned.sum() <= 8
    assert (tuning.strength > 2 * 4.6 / 1197).sum() > 30


def test_conditions_give_eta_squared_and_the_condition_of_most_spikes() -> None:
    labels = np.array(["left", "right", "up"])[np.random.default_rng(6).integers(0, 3, 300)]
    noise = np.random.default_rng(7).poisson(2.0, (300, 3))
    counts = noise + np.column_stack([4 * (labels == "up"), 4 * (labels == "left"), np.zeros(300)])

    tuning = measure_tuning(counts, labels)

    assert tuning.conditions == ("left", "right", "up")
    assert tuning.preferred[:2].tolist() == [2, 0]
    assert tuning.is_tuned.tolist() == [True, True, False]
    means = {label: counts[labels == label, 0].mean() for label in tuning.conditions}
    between = np.var([means[label] for label in labels])
    assert tuning.strength[0] == pytest.approx(between / counts[:, 0].var(), rel=1e-9)


def test_numbered_conditions_come_in_the_order_of_their_numbers() -> None:
    labels = np.tile([10, 2, 1], 100)

    assert measure_tuning(np.random.default_rng(8).poisson(1.0, (300, 1)), labels).conditions == ("1", "2", "10")


def test_rows_of_unknown_behaviour_are_left_out() -> None:
    v = movement(400)
    counts = tuned_counts(v, np.array([1.0]))
    known = np.arange(400) % 3 != 0
    holed = np.where(known[:, None], v, np.nan)

    with_holes, without = measure_tuning(counts, holed), measure_tuning(counts[known], v[known])

    for a, b in zip(with_holes[1:], without[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_silent_unit_is_not_tuned() -> None:
    tuning = measure_tuning(np.zeros((300, 1)), movement(300))

    assert (tuning.strength[0], tuning.p_value[0]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "counts, behaviour, words",
    [
        (np.zeros(300), np.zeros((300, 2)), r"counts of shape \(300,\)"),
        (np.zeros((300, 1)), np.zeros((299, 2)), "behaviour of 299 rows beside counts of 300"),
        (np.zeros((300, 1)), np.zeros((300, 3)), r"behaviour of shape \(300, 3\)"),
        (np.zeros((300, 1)), np.zeros(300), "one label a row"),
        (np.zeros((300, 1)), np.ones((300, 2)), "behaviour never changes"),
        (np.zeros((300, 1)), ["a"] * 300, "behaviour never changes"),
        (np.zeros((300, 1)), np.full((300, 2), np.nan), "known in 0 rows"),
        (np.zeros((60, 1)), np.eye(60)[:, :2], "known in 60 rows: too few.*112"),
        (np.full((300, 1), np.nan), np.zeros((300, 2)), "not finite"),
    ],
)
def test_behaviour_that_cannot_be_used_is_refused(counts: Any, behaviour: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure_tuning(counts, behaviour)


def directed(preferred: Sequence[float], p_value: Sequence[float] | None = None) -> Tuning:
    n = len(preferred)
    p = np.array(p_value) if p_value is not None else np.full(n, 0.001)
    return Tuning((), np.array(preferred), np.full(n, 0.2), p, 0.01)


def test_units_of_like_direction_share_a_sector_and_untuned_ones_are_left_out() -> None:
    bundle = make_bundle([(0.0, 0.0)] * 6)
    quarter = np.pi / 2
    tuning = directed([0.1, quarter, -0.1, np.pi, 0.0, -np.pi], [0.001, 0.001, 0.001, 0.001, 0.5, 0.01])

    encoding = propose(bundle, "tuning", n_groups=4, tuning=tuning)

    assert encoding.groups == (("u0", "u2"), ("u1",), ("u3", "u5"), ())
    assert encoding.reasons[1] == (
        "1 unit preferring directions around 90 deg; behaviour explains 20.0 % of the variance on average (p <= 0.01)"
    )
    assert encoding.reasons[3] == "no tuned unit prefers directions around 270 deg: this stimulus stays 0"
    assert explain(encoding, bundle)[-1].units == ("u4",)
    assert "no more of their counts than chance" in explain(encoding, bundle)[-1].reason


@pytest.mark.parametrize(
    "directions, n", [(np.arange(60) * 0.1 - 3, 14), (np.arange(8) * np.pi / 4, 8), (np.full(20, 0.5), 4)]
)
def test_sectors_are_as_many_as_leave_the_fewest_empty(directions: Floats, n: int) -> None:
    bundle = make_bundle([(0.0, 0.0)] * len(directions))

    assert len(propose(bundle, "tuning", tuning=directed(directions.tolist())).groups) == n


def test_each_condition_gets_a_stimulus() -> None:
    bundle = make_bundle([(0.0, 0.0)] * 3)
    tuning = Tuning(("grip", "reach"), np.array([1.0, 0.0, 1.0]), np.full(3, 0.3), np.full(3, 0.001), 0.01)

    encoding = propose(bundle, "tuning", tuning=tuning)

    assert encoding.groups == (("u1",), ("u0", "u2"))
    assert 'condition "reach"' in encoding.reasons[1]


def test_tuning_that_cannot_group_is_refused() -> None:
    bundle = make_bundle([(0.0, 0.0)] * 2)
    with pytest.raises(ConfigError, match="no unit of 2 follows the behaviour"):
        propose(bundle, "tuning", tuning=directed([0.0, 1.0], [0.2, 0.3]))
    with pytest.raises(ConfigError, match="tuning of 3 units for a sorting of 2"):
        propose(bundle, "tuning", tuning=directed([0.0, 1.0, 2.0]))
    many = Tuning(tuple("abcdefghijklmno"), np.zeros(2), np.ones(2), np.zeros(2), 0.01)
    with pytest.raises(ConfigError, match="15 conditions for 14 sensory channels"):
        propose(bundle, "tuning", tuning=many)


# tables


def test_a_table_is_followed_to_the_letter(tmp_path: Path) -> None:
    by_csv, by_toml = tmp_path / "units.csv", tmp_path / "units.toml"
    by_csv.write_text("\ufeffnote, stimulus, unit\nloud, 15, u2\n, 1, u0\n")
    by_toml.write_text("[stimulus]\nu2 = 15\nu0 = 1\n")
    bundle = make_bundle([(0.0, 0.0)] * 3)

    encoding = propose(bundle, "table", table=by_csv)

    assert encoding.groups == ((), ("u0",), *((),) * 13, ("u2",))
    assert encoding.reasons[15] == "1 unit by the table, of the inhibitory interneuron"
    assert propose(bundle, "table", table=by_toml) == encoding == propose(bundle, "table", table={"u0": 1, "u2": 15})
    assert explain(encoding, bundle)[-1].reason == "left out: not in the table"


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "unit,stimulus\nu0,1\nu0,2\n", 'line 3: unit "u0" was given a stimulus before'),
        ("a.csv", "unit,stimulus\nu0,1.5\n", 'line 2: stimulus "1.5" of unit "u0" is no whole number'),
        ("a.csv", "unit,stimulus\nu0\n", 'stimulus "" of unit "u0"'),
        ("a.csv", "unit,stimulus\n,3\n", "line 2: no unit is named"),
        ("a.csv", "unit,stimulus\nu0,16\n", 'gives unit "u0" stimulus 16; 0 to 15 expected'),
        ("a.csv", "unit,stimulus\nu9,1\n", 'names "u9", which the sorting does not have; it has "u0"'),
        ("a.csv", "unit,stimulus\n", "the table names no unit"),
        ("a.csv", "u0,1\n", 'columns "unit" and "stimulus" expected'),
        ("a.csv", "", 'columns "unit" and "stimulus" expected'),
        ("a.toml", "u0 = 1\n", r"a table \[stimulus\]"),
        ("a.toml", "[stimulus]\nu0 = 1\nu0 = 2\n", "cannot read the table"),
        ("a.toml", "[stimulus]\nu0 = true\n", 'gives unit "u0" stimulus True'),
        ("a.toml", "[stimulus]\nu0 = -1\n", "stimulus -1; 0 to 15 expected"),
        ("a.txt", "u0 1\n", "a .csv or .toml file"),
        ("absent.csv", None, "cannot read the table"),
        ("a.csv", b"\xff\xfe", "cannot read the table"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_the_place(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(ConfigError, match=words):
        propose(make_bundle([(0.0, 0.0)]), "table", table=path)


def test_a_table_that_is_read_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("unit,stimulus\n7,0\n")

    assert read_table(tmp_path / "a.csv") == {"7": 0}


# what is asked for without sense


@pytest.mark.parametrize(
    "by, options, words",
    [
        ("location", {"n_groups": 15}, "n_groups = 15: 1 to 14 expected"),
        ("location", {"table": {"u0": 1}}, "by location has no use for a table"),
        ("rate", {"tuning": directed([0.0])}, "by rate has no use for a tuning"),
        ("tuning", {}, "by tuning takes a tuning: give one"),
        ("table", {}, "by table takes a table: give one"),
        ("table", {"table": {"u0": 1}, "n_groups": 3}, "n_groups has no effect on a table"),
    ],
)
def test_options_without_effect_are_refused(by: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        propose(make_bundle([(0.0, 0.0)]), by, **options)


def test_a_sorting_without_units_cannot_be_encoded() -> None:
    with pytest.raises(ConfigError, match="has no unit that could be encoded"):
        propose(make_bundle([]))


# explaining


def test_an_explanation_says_units_rate_positions_and_reason() -> None:
    bundle = make_bundle([(0.0, 10.0), (48.0, 30.0)], [2.0, 3.5])

    rows = explain(propose(bundle, n_groups=1), bundle)

    assert rows[0].model_dump(mode="json") == {
        "stimulus": 0,
        "units": ["u0", "u1"],
        "rate_hz": 5.5,
        "positions_um": [[0.0, 10.0], [48.0, 30.0]],
        "reason": "2 units between (0, 10) and (48, 30) um, 100.0 % of units and 100.0 % of spikes",
    }
    assert cells(rows) == [["0", "u0 u1", "5.5", "0 to 48", "10 to 30", rows[0].reason]]
    assert len(cells(rows)[0]) == len(COLUMNS)


def test_an_encoding_of_another_sorting_is_not_explained() -> None:
    with pytest.raises(ConfigError, match='names "u1", which the sorting does not have'):
        explain(propose(make_bundle([(0.0, 0.0)] * 2)), make_bundle([(0.0, 0.0)]))


def test_the_encoder_groups_units_as_proposed() -> None:
    bundle = make_bundle([(0.0, 100.0 * i) for i in range(4)])
    encoding = propose(bundle, "table", table={"u0": 2, "u3": 2, "u1": 0})
    info = bundle.info.model_copy(update={"encoding": encoding})
    encoder = Encoder(
        EncoderConfig(smoothing_ms=0.0, normalisation="none", offset=0.0, combine="sum"),
        4,
        bundle.unit_ids,
        bundle=Bundle(info, *(getattr(bundle, name) for name in bundle.__slots__[1:])),
    )
    stimuli = np.zeros(16, dtype=np.float32)

    encode(encoder.state, np.array([1, 2, 4, 0.5], dtype=np.float32), stimuli)

    assert stimuli.tolist() == [2.0, 0.0, 1.5] + [0.0] * 13


# normalisation


def test_blocks_are_counted_as_the_loop_cuts_them() -> None:
    """2.5 samples a block: 2, 3, 2, 3, ... and what is left at the end is no block."""
    bundle = make_bundle([(0.0, 0.0)] * 2)

    counts = np.concatenate(list(count_blocks([7, 0, 1, 2, 4, 12], [1, 0, 0, 0, 1, 0], bundle, 13, block_ms=2.5)))

    np.testing.assert_array_equal(counts, [[2, 0], [1, 1], [0, 0], [0, 1], [0, 0]][: len(counts)])
    assert len(counts) == 5  # edges 0, 2, 5, 7, 10, 12: sample 12 lies behind the last


def test_long_recordings_are_counted_in_parts_without_losing_a_spike() -> None:
    rng = np.random.default_rng(9)
    at, unit = rng.integers(0, 10_000, 3000), rng.integers(0, 3, 3000)

    parts = list(count_blocks(at, unit, make_bundle([(0.0, 0.0)] * 3), 10_000))

    assert [len(part) for part in parts] == [4096, 4096, 1808]
    expected = np.zeros((10_000, 3))
    np.add.at(expected, (at, unit), 1)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize(
    "samples, units, block_ms, words",
    [
        ([1, 2], [0], 1.0, "one of each a spike expected"),
        ([100], [0], 1.0, "outside the recording of 100 samples"),
        ([1], [1], 1.0, "other units than the 1"),
        ([1], [0], 0.5, "less than a sample"),
    ],
)
def test_spikes_that_do_not_fit_are_refused(samples: Any, units: Any, block_ms: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        next(count_blocks(samples, units, make_bundle([(0.0, 0.0)]), 100, block_ms=block_ms))


def smoothed(counts: Floats, block_ms: float, smoothing_ms: float) -> Floats:
    """The exponential kernel, one number at a time."""
    decay = np.exp(-block_ms / smoothing_ms)
    out = counts.astype(np.float64).copy()
    for t in range(1, len(out)):
        out[t] = decay * out[t - 1] + (1 - decay) * out[t]
    return out


def test_constants_are_mean_and_deviation_of_the_counts_as_the_encoder_smooths_them() -> None:
    """Bursts, which a closed form for Poisson trains would miss."""
    bursts = np.random.default_rng(10).poisson(0.02, (2000, 2)) * [[2, 5]]
    bundle = make_bundle([(0.0, 0.0)] * 2)

    found = measure_normalisation(bundle, bursts.astype(np.float32), block_ms=2.0, smoothing_ms=20.0)

    trace = smoothed(bursts, 2.0, 20.0)
    np.testing.assert_allclose(found.mean, trace.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.sd, trace.std(axis=0), rtol=1e-9)
    assert (found.block_ms, found.smoothing_ms) == (2.0, 20.0)


def test_chunks_of_counts_make_no_difference() -> None:
    counts = np.random.default_rng(11).poisson(0.05, (4000, 2)).astype(np.float32)
    bundle = make_bundle([(0.0, 0.0)] * 2)

    def chunks() -> Iterator[NDArray[np.float32]]:
        yield from np.array_split(counts, 7)

    assert measure_normalisation(bundle, chunks()) == measure_normalisation(bundle, counts)


@pytest.mark.parametrize("block_ms, smoothing_ms", [(1.0, 30.0), (20.0, 30.0), (50.0, 10.0), (10.0, 0.0)])
def test_the_closed_form_is_the_exponential_kernel_summed(block_ms: float, smoothing_ms: float) -> None:
    """A spike leaves w, w d, w d^2, ...: for Poisson counts the mean is that sum, the variance the sum of squares."""
    decay = np.exp(-block_ms / smoothing_ms) if smoothing_ms > 0 else 0.0
    kernel = (1 - decay) * decay ** np.arange(2000)
    per_block = 7.0 * block_ms * 1e-3

    mean, sd = poisson_normalisation(7.0, block_ms, smoothing_ms)

    assert mean == pytest.approx(per_block * kernel.sum(), rel=1e-9)
    assert sd**2 == pytest.approx(per_block * (kernel**2).sum(), rel=1e-9)


def test_a_smoothed_poisson_train_has_the_rate_and_variance_of_the_closed_form() -> None:
    rates = np.array([20.0, 200.0])
    counts = np.random.default_rng(12).poisson(rates * 0.005, (24_000, 2)).astype(np.float32)  # 120 s

    found = measure_normalisation(make_bundle([(0.0, 0.0)] * 2, rates.tolist()), counts, block_ms=5.0)

    mean, sd = poisson_normalisation(rates, 5.0, 30.0)
    # mean: 1 / sqrt(2400) = 2 % of the slower; deviation: half of sqrt(1 / 2400 + 2 * 30 ms / 120 s), 1.5 %. Three each
    np.testing.assert_allclose(found.mean, mean, rtol=0.06)
    np.testing.assert_allclose(found.sd, sd, rtol=0.045)
    # continuous limit, rate / (2 tau), from which 5 ms blocks differ by (block / 2 tau)^2 / 3 = 0.2 %
    np.testing.assert_allclose((sd / 0.005) ** 2, rates / (2 * 0.030), rtol=0.003)


def test_units_of_too_few_spikes_get_the_closed_form_at_their_rate() -> None:
    counts = np.zeros((10_000, 3), dtype=np.float32)
    counts[:: 10_000 // MIN_SPIKES + 1, 0] = 1  # one spike short of enough
    counts[:: 10_000 // MIN_SPIKES, 1] = 1
    assert counts.sum(axis=0).tolist() == [MIN_SPIKES, MIN_SPIKES + 1, 0]
    counts[0, 0] = 0

    found = measure_normalisation(make_bundle([(0.0, 0.0)] * 3, [2.5, 2.5, 0.0]), counts)

    mean, sd = poisson_normalisation([2.5, 0.0, 0.05], 1.0, 30.0)  # nothing in 10 s: half a spike
    assert (found.mean[0], found.sd[0]) == (mean[0], sd[0])
    assert found.mean[1] != mean[0]
    assert (found.mean[2], found.sd[2]) == pytest.approx((mean[2], sd[2]))


@pytest.mark.parametrize("counts", [None, np.ones((2999, 1), dtype=np.float32)])
def test_without_time_enough_all_units_get_the_closed_form(counts: Any) -> None:
    found = measure_normalisation(make_bundle([(0.0, 0.0)], [12.0]), counts)

    mean, sd = poisson_normalisation([12.0], 1.0, 30.0)
    assert (found.mean, found.sd) == (tuple(mean), tuple(sd))


def test_of_more_than_an_hour_the_first_hour_counts() -> None:
    """A block of 30 s: an hour, less the block that would end a warm-up, is 119 of them."""
    counts = np.random.default_rng(13).poisson(50, (400, 1)).astype(np.float32)

    found = measure_normalisation(make_bundle([(0.0, 0.0)]), counts, block_ms=30_000.0, smoothing_ms=0.0)

    assert found.mean[0] == pytest.approx(counts[:119].mean(), rel=1e-6)
    assert found.sd[0] == pytest.approx(counts[:119].astype(np.float64).std(), rel=1e-9)


@pytest.mark.parametrize(
    "counts, durations, words",
    [
        (np.zeros((5, 2), dtype=np.float32), {}, r"counts of shape \(5, 2\); \(n_blocks, 1\) expected"),
        (np.full((5, 1), -1.0, dtype=np.float32), {}, "negative or not finite"),
        (np.full((5, 1), np.nan, dtype=np.float32), {}, "negative or not finite"),
        (None, {"block_ms": 0.0}, "a block of 0.0 ms"),
        (None, {"smoothing_ms": float("nan")}, "smoothing_ms = nan"),
    ],
)
def test_counts_that_cannot_be_normalised_are_refused(counts: Any, durations: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure_normalisation(make_bundle([(0.0, 0.0)]), counts, **durations)


def test_a_session_begins_with_the_frozen_constants() -> None:
    bundle = make_bundle([(0.0, 0.0)] * 2, [10.0, 40.0])
    info = bundle.info.model_copy(update={"normalisation": measure_normalisation(bundle)})
    bundle = Bundle(info, *(getattr(bundle, name) for name in bundle.__slots__[1:]))
    encoder = Encoder(EncoderConfig(kind="identity", offset=0.0, clip=(-5, 5)), 2, bundle.unit_ids, bundle=bundle)
    stimuli = np.zeros(16, dtype=np.float32)

    encode(encoder.state, np.zeros(2, dtype=np.float32), stimuli)

    mean, sd = poisson_normalisation([10.0, 40.0], 1.0, 30.0)
    np.testing.assert_allclose(stimuli[:2], -mean / sd, rtol=1e-6)
