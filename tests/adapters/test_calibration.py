"""Fits find what is there, claim nothing where nothing is, and are scored by the decoder that will run."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
from numpy.typing import NDArray

from neuromod.adapters import calibration
from neuromod.adapters.calibration import Estimate, Fit, FitOptions, Kind, Metrics, fit
from neuromod.adapters.decoder import decode_all, make_decoder
from neuromod.adapters.decoder_config import DecoderFileConfig, KalmanConfig, LinearConfig, PopulationVectorConfig
from neuromod.adapters.decoder_file import Provenance, save_decoder
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import ConfigError

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="fits run the decoder over millions of ticks")

Floats = NDArray[np.float64]

DT_MS = 5.0
KINDS: tuple[Kind, ...] = ("population_vector", "linear", "kalman")
# without lags: a Wiener filter of five bins would need longer recordings for its many weights
FAST = FitOptions(n_lags=2, bin_ms=50.0, tau_ms=150.0, strengths=(0.001, 0.1, 1.0), n_shuffles=2)


def wandering(n: int, dimensions: int = 2, tau_ms: float = 500.0, seed: int = 0) -> Floats:
    """A smooth random velocity of unit variance (twice filtered noise)."""
    keep = np.exp(-DT_MS / tau_ms)
    noise = np.random.default_rng(seed).normal(size=(n, dimensions))
    path = scipy.signal.lfilter([1.0], [1.0, -2.0 * keep, keep * keep], noise, axis=0)
    return (path - path.mean(axis=0)) / path.std(axis=0)  # type: ignore[no-any-return]


def preferred(dimensions: int = 2) -> Floats:
    if dimensions == 2:
        angle = 2.0 * np.pi * np.arange(14) / 14
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = np.random.default_rng(4).normal(size=(14, dimensions))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


def tuned_spikes(
    targets: Floats, seed: int = 1, baseline_hz: float = 40.0, depth_hz: float = 20.0
) -> NDArray[np.bool_]:
    """Fourteen cosine-tuned channels; 14 is silent, 15 fires regardless."""
    rates = np.clip(baseline_hz + depth_hz * targets @ preferred(targets.shape[1]).T, 0.0, 190.0)
    rates = np.column_stack([rates, np.zeros(len(rates)), np.full(len(rates), 30.0)])
    return np.random.default_rng(seed).random(rates.shape) < rates * DT_MS * 1e-3


def reaches(n_trials: int, n_ticks: int = 100, seed: int = 0) -> Floats:
    """Eight directions in random order, half a second each."""
    angle = 2.0 * np.pi * np.random.default_rng(seed).integers(0, 8, n_trials) / 8
    return np.repeat(np.round(np.stack([np.cos(angle), np.sin(angle)], axis=1), 12), n_ticks, axis=0)


def figure(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.mean is not None
    return estimate.mean


N = 24_000  # two minutes


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    targets = wandering(N)
    spikes = tuned_spikes(targets)
    return {kind: fit(spikes, DT_MS, targets, kind, FAST) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_tuned_channels_are_decoded_far_above_both_baselines(fits: dict[str, Fit], kind: str) -> None:
    metrics = fits[kind].metrics
    assert figure(metrics.decoder.r2) > 0.5
    assert figure(metrics.decoder.correlation) > 0.75
    assert metrics.beats_baselines
    assert figure(metrics.decoder.within_45_degrees) > 0.6 > 0.4 > figure(metrics.shuffled.within_45_degrees)


@pytest.mark.parametrize("kind", KINDS)
def test_baselines_of_good_data_are_no_better_than_nothing(fits: dict[str, Fit], kind: str) -> None:
    metrics = fits[kind].metrics
    # the mean of other blocks is never better than the block's own
    assert all(value is not None and value <= 0.0 for value in metrics.mean.r2.folds)
    assert figure(metrics.mean.correlation) == 0.0
    assert figure(metrics.shuffled.r2) < 0.05
    assert abs(figure(metrics.shuffled.correlation)) < 0.3  # five blocks of some 25 independent stretches


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_claimed_where_spikes_and_targets_have_nothing_to_do_with_each_other(kind: Kind) -> None:
    targets, others = wandering(N, seed=10), wandering(N, seed=11)
    metrics = fit(tuned_spikes(others), DT_MS, targets, kind, FAST).metrics
    assert figure(metrics.decoder.r2) < 0.05
    assert not metrics.beats_baselines


def test_the_kalman_filter_beats_the_memoryless_decoder_on_what_moves_smoothly(fits: dict[str, Fit]) -> None:
    """The order of Wu et al. 2006, on data made after its model."""
    targets = wandering(N)
    one_bin = fit(tuned_spikes(targets), DT_MS, targets, "linear", FAST.model_copy(update={"n_lags": 1}))
    for smooth, rough in zip(fits["kalman"].metrics.decoder.r2.folds, one_bin.metrics.decoder.r2.folds, strict=True):
        assert smooth is not None
        assert rough is not None
        assert smooth > rough


def test_a_population_vector_finds_directions_baselines_and_depths(fits: dict[str, Fit]) -> None:
    found = fits["population_vector"].decoder
    assert isinstance(found, PopulationVectorConfig)
    assert found.channels == tuple(range(14))  # not the silent one, not the one that fires regardless
    cosines = (np.array(found.preferred_directions) * preferred()).sum(axis=1)
    assert cosines.min() > np.cos(np.radians(15.0))
    np.testing.assert_allclose(found.per_channel("baseline_hz"), 40.0, atol=3.0)
    # the typical target has the length sqrt(2); rates clipped at zero, and the lag of their filter, take a little
    np.testing.assert_allclose(found.per_channel("depth_hz"), 20.0 * np.sqrt(2.0), rtol=0.25)


def test_three_dimensions_are_decoded_as_well() -> None:
    targets = wandering(N, dimensions=3)
    found = fit(tuned_spikes(targets), DT_MS, targets, "population_vector", FAST)
    assert found.decoder.n_outputs == 3
    assert found.metrics.beats_baselines


def test_a_linear_decoder_finds_the_weights_that_made_its_targets() -> None:
    """Targets that are a weighted sum of counts, held between bins: nothing is left unexplained."""
    rng = np.random.default_rng(2)
    spikes = rng.random((N, 16)) < 0.2
    counts = spikes.reshape(-1, 10, 16).sum(axis=1)
    weights = rng.normal(size=(2, 2, 16))
    y = np.full((len(counts), 2), np.nan)
    y[1:] = counts[1:] @ weights[:, 0].T + counts[:-1] @ weights[:, 1].T + [3.0, -2.0]
    targets = np.full((N, 2), np.nan)
    targets[9:] = np.repeat(y, 10, axis=0)[: N - 9]

    found = fit(spikes, DT_MS, targets, "linear", FAST.model_copy(update={"strengths": (1e-9, 1.0)}))

    assert isinstance(found.decoder, LinearConfig)
    np.testing.assert_allclose(np.array(found.decoder.weights), weights, atol=1e-6)
    np.testing.assert_allclose(found.decoder.bias, [3.0, -2.0], atol=1e-5)
    assert found.metrics.strength == 1e-9
    assert figure(found.metrics.decoder.r2) == pytest.approx(1.0, abs=1e-9)


def test_a_linear_decoder_on_rates_can_be_fitted() -> None:
    targets = wandering(N)
    options = FAST.model_copy(update={"features": "rates"})
    found = fit(tuned_spikes(targets), DT_MS, targets, "linear", options)
    assert isinstance(found.decoder, LinearConfig)
    assert (found.decoder.features, found.decoder.n_lags) == ("rates", 1)
    assert found.metrics.beats_baselines


def test_a_kalman_fit_finds_the_system_that_made_its_data() -> None:
    rng = np.random.default_rng(3)
    a = np.array([[0.95, 0.1], [-0.1, 0.95]])
    x = np.zeros((4800, 2))
    for t in range(1, len(x)):
        x[t] = a @ x[t - 1] + rng.normal(scale=0.3, size=2)
    # one count of 0 to 10 a bin of ten ticks, linear in the state but for its noise
    p = np.clip(0.5 + 0.1 * x @ preferred().T, 0.02, 0.98)
    spikes = np.zeros((48_000, 16), dtype=np.bool_)
    spikes[:, :14] = rng.random((48_000, 14)) < np.repeat(p, 10, axis=0)

    options = FAST.model_copy(update={"target_names": ("vx", "vy")})
    found = fit(spikes, DT_MS, np.repeat(x, 10, axis=0), "kalman", options)

    assert isinstance(found.decoder, KalmanConfig)
    assert found.decoder.states == ("vx", "vy")
    np.testing.assert_allclose(found.decoder.transition, a, atol=0.02)
    np.testing.assert_allclose(found.decoder.transition_noise, 0.09 * np.eye(2), atol=0.01)
    np.testing.assert_allclose(
        found.decoder.observation, preferred(), atol=0.1
    )  # 10 ticks x 0.1; clipping takes a little
    assert found.metrics.beats_baselines


# discrete targets


def test_reaches_to_eight_targets_are_told_apart() -> None:
    targets = reaches(240)
    metrics = fit(tuned_spikes(targets, depth_hz=30.0), DT_MS, targets, "linear", FAST).metrics
    assert metrics.n_targets == 8
    assert figure(metrics.decoder.nearest_target) > 0.8
    assert figure(metrics.decoder.within_45_degrees) > 0.9
    for naive in (metrics.mean, metrics.shuffled):
        assert figure(naive.nearest_target) < 0.3  # 1 in 8 by chance
        assert figure(naive.within_45_degrees) < 0.5  # 3 in 8 by chance


def test_time_between_trials_may_be_unknown() -> None:
    targets = reaches(240)
    targets[np.arange(len(targets)) % 100 < 30] = np.nan
    known = np.nan_to_num(targets)
    metrics = fit(tuned_spikes(known, depth_hz=30.0), DT_MS, targets, "population_vector", FAST).metrics
    assert metrics.held_out_s == pytest.approx(240 * 70 * DT_MS * 1e-3, rel=0.02)
    assert figure(metrics.decoder.nearest_target) > 0.7


# honesty of the figures


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_the_compiled_decoder_on_its_held_out_blocks(kind: Kind) -> None:
    """Everything once more by hand, from the blocks on: fit outside the gap, run from the gap on, compare."""
    targets = wandering(N)
    spikes = tuned_spikes(targets)
    options = FAST.model_copy(update={"strengths": (0.1,)})
    metrics = fit(spikes, DT_MS, targets, kind, options).metrics
    length, gap = N // 5, 200
    masks = (spikes << np.arange(16)).sum(axis=1).astype(np.uint32)
    for k in (1, 4):
        first, last = k * length, (k + 1) * length
        training = targets.copy()
        training[max(0, first - gap) : last + gap] = np.nan
        decoder = make_decoder(fit(spikes, DT_MS, training, kind, options).decoder, DT_MS)
        outputs, events = np.zeros((length + gap, 8), np.float32), np.zeros(length + gap, np.int64)
        decode_all(decoder[0], masks[first - gap : last], outputs, events)
        truth, found = targets[first:last], outputs[gap:, :2].astype(np.float64)
        expected = 1.0 - ((found - truth) ** 2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
        value = metrics.decoder.r2.folds[k]
        # the limit comes from all targets known to a fit, which may differ; sums are rounded in another order
        assert value == pytest.approx(expected.mean(), abs=1e-6)


def test_no_figure_has_seen_its_block() -> None:
    """Other targets in one block change what the other folds learn from, but not the fit that is scored there."""
    targets = wandering(N)
    spikes = tuned_spikes(targets)
    seen: list[NDArray[Any]] = []
    real = calibration._linear

    def spy(data: Any, training: Any, strength: float) -> Any:
        seen.append(np.flatnonzero(training & data.known))
        return real(data, training, strength)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_linear", spy)
        fit(spikes, DT_MS, targets, "linear", FAST)

    block, gap = N // 5, 200
    # all fits of the first fold: its choice among three strengths, the fit that is scored, the same for two shuffles
    first = seen[: 5 * 3 + 1 + 5 * 3 + 2]
    assert min(int(used.min()) for used in first) == block + gap


def test_the_interval_is_students_over_the_blocks() -> None:
    estimate = calibration._estimate([0.1, 0.2, 0.3, 0.4, float("nan")])
    # scipy.stats.ttest_1samp's interval, from a table: t(3, 97.5 %) = 3.182446
    half = 3.182446 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2.0
    assert estimate.mean == pytest.approx(0.25)
    assert (estimate.low, estimate.high) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-6)
    assert estimate.folds == (0.1, 0.2, 0.3, 0.4, None)


def test_a_fit_is_the_same_twice() -> None:
    targets = wandering(N)
    spikes = tuned_spikes(targets)
    assert fit(spikes, DT_MS, targets, "kalman", FAST) == fit(spikes, DT_MS, targets, "kalman", FAST)


def test_spikes_may_come_as_one_number_a_tick() -> None:
    targets = wandering(N)
    spikes = tuned_spikes(targets)
    masks = (spikes << np.arange(16)).sum(axis=1).astype(np.uint32)
    a, b = (fit(s, DT_MS, targets, "population_vector", FAST) for s in (spikes, masks))
    assert a == b


def test_outputs_of_a_fitted_decoder_are_limited_to_twice_the_largest_target(fits: dict[str, Fit]) -> None:
    assert fits["linear"].decoder.limit == pytest.approx(2.0 * np.abs(wandering(N)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_goes_through_a_file_into_a_session(tmp_path: Path, fits: dict[str, Fit], kind: str) -> None:
    found = fits[kind]
    provenance = Provenance(
        fitted_at=datetime.datetime.now(datetime.UTC),
        dt_ms=DT_MS,
        options=FAST.model_dump(mode="json"),
        metrics=found.metrics.model_dump(mode="json"),
    )
    path = save_decoder(tmp_path, "reach", found.decoder, provenance)
    decoder = make_decoder(DecoderFileConfig(path=path), DT_MS)
    assert decoder.tobytes() == make_decoder(found.decoder, DT_MS, version=1).tobytes()
    assert Metrics.model_validate_json(found.metrics.model_dump_json()) == found.metrics


# refusals


def _good(n: int = 6000) -> tuple[NDArray[np.bool_], Floats]:
    targets = wandering(n)
    return tuned_spikes(targets), targets


def test_a_short_recording_is_refused_with_the_length_it_needs() -> None:
    spikes, targets = _good(1000)
    with pytest.raises(ConfigError, match=r"5\.0 s of known targets for 31 numbers a fit; at least \d+\.\d s expected"):
        fit(spikes, DT_MS, targets, "linear", FAST)


def test_blocks_shorter_than_their_gaps_are_refused() -> None:
    spikes, targets = _good(3000)
    with pytest.raises(ConfigError, match=r"less than the gap of 1\.00 s"):
        fit(spikes, DT_MS, targets, "kalman", FAST)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s, y: (s, y[:-1]), "linear", "one row for each expected"),
        (lambda s, y: (s[:, :8], y), "linear", r"shape \(n_ticks, 16\) expected"),
        (lambda s, y: (s * 2, y), "linear", "spikes other than 0 and 1"),
        (lambda s, y: (np.full(len(y), 1 << 16, np.uint32), y), "linear", "must lie within 0 and 65535"),
        (lambda s, y: (s & False, y), "linear", "no channel spiked"),
        (lambda s, y: (s, y * np.nan), "linear", "every target is NaN"),
        (lambda s, y: (s, y * [1.0, 0.0]), "linear", "target x1 never moves"),
        (lambda s, y: (s, y * 1e7), "linear", "targets beyond 1e"),
        (lambda s, y: (s, np.where(y > 1.0, np.inf, y)), "linear", "targets beyond 1e"),
        (lambda s, y: (s, y[:, 0]), "population_vector", "takes 2 to 3 targets, got 1"),
        (lambda s, y: (s, np.tile(y, (1, 4))), "kalman", "takes 1 to 6 targets, got 8"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused_with_the_reason(change: Any, kind: Kind, message: str) -> None:
    spikes, targets = change(*_good())
    with pytest.raises(ConfigError, match=message):
        fit(spikes, DT_MS, targets, kind, FAST)


def test_names_are_one_for_each_target() -> None:
    spikes, targets = _good()
    with pytest.raises(ConfigError, match="one name each"):
        fit(spikes, DT_MS, targets, "linear", FAST.model_copy(update={"target_names": ("x",)}))
