"""Fit a decoder to spikes and targets, and say by held-out blocks how well it would have done.

Pure computation on arrays: sessions and files are other people's business. The figures come from the compiled decoder
itself, run causally over blocks of time that the fit has not seen; so do the choices of regularisation, from blocks
inside the training data.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
import scipy.signal
import scipy.special
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from neuromod.adapters.decoder import decode_all, make_decoder
from neuromod.adapters.decoder_config import (
    MAX_LAGS,
    MAX_STATES,
    N_OUTPUTS,
    FittedConfig,
    KalmanConfig,
    LinearConfig,
    PopulationVectorConfig,
)
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import N_CHANNELS

Kind = Literal["population_vector", "linear", "kalman"]
Floats = NDArray[np.float64]
_Known = NDArray[np.bool_]

# Rows of data for each number that is fitted to them, below which a fit says nothing.
_ROWS_PER_PARAMETER = 3
_MOST_DISCRETE_TARGETS = 32
_WITHIN_COSINE = math.cos(math.radians(45.0))
# A preferred direction counts where it stands out from its own scatter between parts of the data by this factor.
_TUNED = 2.0
_LARGEST_TARGET = 1e6


class FitOptions(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How to fit and how to validate.

    Attributes
    ----------
    features : {"counts", "rates"}
        Of a linear decoder.
    bin_ms : float
        Bin of counts, for linear and Kalman decoders.
    n_lags : int
        Bins that a linear decoder on counts looks at.
    tau_ms : float
        Time constant of filtered rates.
    target_names : tuple of str
        Names of the targets, and of the states of a Kalman decoder; by default x0, x1, ...
    limit : float, optional
        Limit of the outputs; by default twice the largest target.
    n_folds : int
        Contiguous blocks, each held out once.
    gap_ms : float
        Time left out of training on either side of a held-out block, at least the memory of the decoder.
    strengths : tuple of float
        Regularisation to choose from: ridge of a linear decoder, relative to the variance of the features; of a Kalman
        decoder the share, at most 1, by which correlations of the counts' noise are shrunk.
    shuffle_block_ms : float
        The shuffled baseline is fitted to targets whose blocks of this length have changed places.
    n_shuffles : int
        Shuffles for each held-out block.
    seed : int
        Of the shuffles.
    """

    features: Literal["counts", "rates"] = "counts"
    bin_ms: Annotated[float, Field(ge=0.1, le=10_000.0)] = 50.0
    n_lags: Annotated[int, Field(ge=1, le=MAX_LAGS)] = 5
    tau_ms: Annotated[float, Field(ge=0.1, le=60_000.0)] = 100.0
    target_names: tuple[str, ...] = ()
    limit: Annotated[float, Field(gt=0.0, le=1e30)] | None = None
    n_folds: Annotated[int, Field(ge=3, le=50)] = 5
    gap_ms: Annotated[float, Field(ge=0.0, le=600_000.0)] = 1000.0
    strengths: Annotated[tuple[Annotated[float, Field(ge=0.0, le=1e6)], ...], Field(min_length=1)] = (
        *(0.0001, 0.001, 0.01, 0.1, 1.0),
    )
    shuffle_block_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] = 2000.0
    n_shuffles: Annotated[int, Field(ge=1, le=100)] = 3
    seed: int = 0


class Estimate(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A figure over held-out blocks.

    Attributes
    ----------
    mean : float or None
        Mean over the blocks; None where no block has it, as a correlation with what never moves.
    low, high : float or None
        95 % interval of the mean, by Student's t over the blocks. Blocks share training data: take it as a guide.
    folds : tuple of float or None
        The figure of each block.
    """

    mean: float | None
    low: float | None
    high: float | None
    folds: tuple[float | None, ...]


class Scores(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How well something predicts held-out targets.

    Attributes
    ----------
    r2 : Estimate
        Coefficient of determination, 1 - SSE / SST about the block's own mean, averaged over the outputs.
    r2_per_output : tuple of Estimate
        The same for each output.
    correlation : Estimate
        Pearson's, averaged over the outputs.
    correlation_per_output : tuple of Estimate
        The same for each output.
    nearest_target : Estimate, optional
        Discrete targets: part of the trials whose mean output lies nearest to the right one.
    within_45_degrees : Estimate, optional
        Two or three outputs: part of the trials (of the ticks, where targets are continuous) whose output points to
        within 45 degrees of the target.
    """

    r2: Estimate
    r2_per_output: tuple[Estimate, ...]
    correlation: Estimate
    correlation_per_output: tuple[Estimate, ...]
    nearest_target: Estimate | None = None
    within_45_degrees: Estimate | None = None


class Metrics(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Held-out figures of a decoder beside those of naive ones.

    Attributes
    ----------
    kind : str
        Of the decoder.
    n_folds : int
        Blocks held out, one after another.
    held_out_s : float
        Time over which the figures were taken.
    n_targets : int, optional
        Number of different targets, where they are discrete.
    strength : float
        Regularisation of the decoder, chosen inside the data; 0 for a population vector, which has none.
    decoder : Scores
        The compiled decoder, run causally.
    mean : Scores
        Always the mean of the training targets.
    shuffled : Scores
        The same kind of decoder, fitted to targets shuffled in blocks.
    """

    kind: str
    n_folds: int
    held_out_s: float
    n_targets: int | None
    strength: float
    decoder: Scores
    mean: Scores
    shuffled: Scores

    @property
    def beats_baselines(self) -> bool:
        """Whether the interval of R2 lies above those of both baselines."""
        low = self.decoder.r2.low
        highs = (self.mean.r2.high, self.shuffled.r2.high)
        return low is not None and all(high is not None and low > high for high in highs)


class Fit(NamedTuple):
    """What a calibration gives."""

    decoder: FittedConfig
    metrics: Metrics


class _Data(NamedTuple):
    """Everything the fits look at; rows are ticks, of the features bins."""

    masks: NDArray[np.uint32]
    features: Floats  # (n_ticks // bin_ticks, n_features): what the decoder would see at the end of each bin
    targets: Floats
    known: _Known  # all of the targets are
    dt_ms: float
    bin_ticks: int  # 1 where the decoder moves each tick
    options: FitOptions
    limit: float
    names: tuple[str, ...]


_Fitter = Callable[[_Data, _Known, float], FittedConfig]


def fit(
    spikes: ArrayLike, dt_ms: float, targets: ArrayLike, kind: Kind = "linear", options: FitOptions | None = None
) -> Fit:
    """Fit a decoder and validate it on held-out blocks.

    Parameters
    ----------
    spikes : array_like, shape (n_ticks, 16) or (n_ticks,)
        1 or True where a channel spiked; or one number a tick whose bits are the channels.
    dt_ms : float
        Length of a tick.
    targets : array_like of float, shape (n_ticks, n_outputs) or (n_ticks,)
        What the outputs should have been; NaN where that is unknown.
    kind : {"population_vector", "linear", "kalman"}
        What to fit. The targets of a population vector are its two or three dimensions, those of a Kalman decoder its
        states.
    options : FitOptions, optional
        How.

    Returns
    -------
    Fit
        `decoder`, fitted to all data; `metrics`, of the same procedure on blocks held out.

    Raises
    ------
    ConfigError
        Shapes do not fit, values are impossible, a target never moves, or there is clearly too little data.

    Notes
    -----
    Validation is nested: the regularisation of each training set is chosen by blocks held out inside it, so no figure
    has seen its block in any way. Blocks are contiguous in time, since neighbouring ticks are nearly copies of each
    other, and a gap on both sides keeps the decoder's memory and the targets' own correlation out.
    """
    options = options or FitOptions()
    data = _prepare(spikes, dt_ms, targets, kind, options)
    fitter: _Fitter = {"population_vector": _population_vector, "linear": _linear, "kalman": _kalman}[kind]
    rng = np.random.default_rng(options.seed)
    discrete = _discrete_targets(data)
    blocks = _blocks(data, np.ones(len(data.known), dtype=np.bool_), options.n_folds)
    folds: dict[str, list[dict[str, Floats]]] = {"decoder": [], "mean": [], "shuffled": []}
    held_out = 0
    for first, last in blocks:
        training = _outside(data, first, last)
        strength = _choose_strength(data, training, kind, fitter)
        tested, outputs = _run(data, fitter(data, training, strength), first, last)
        held_out += int(tested.sum())
        truth = data.targets[tested]
        folds["decoder"].append(_score(truth, outputs[tested], discrete))
        mean = np.tile(data.targets[training & data.known].mean(axis=0), (len(truth), 1))
        folds["mean"].append(_score(truth, mean, discrete))
        shuffles = []
        for k in range(options.n_shuffles):
            other = data._replace(targets=_shuffle(data, training, rng))
            if k == 0:  # the same procedure as for the decoder; one choice does for all shuffles of a block
                strength = _choose_strength(other, training, kind, fitter)
            _, outputs = _run(data, fitter(other, training, strength), first, last)
            shuffles.append(_score(truth, outputs[tested], discrete))
        folds["shuffled"].append({key: np.mean([s[key] for s in shuffles], axis=0) for key in shuffles[0]})
    everything = np.ones(len(data.known), dtype=np.bool_)
    strength = _choose_strength(data, everything, kind, fitter)
    metrics = Metrics(
        kind=kind,
        n_folds=options.n_folds,
        held_out_s=held_out * dt_ms * 1e-3,
        n_targets=len(discrete) if discrete is not None else None,
        strength=strength,
        decoder=_scores(folds["decoder"]),
        mean=_scores(folds["mean"]),
        shuffled=_scores(folds["shuffled"]),
    )
    return Fit(fitter(data, everything, strength), metrics)


# data


def _prepare(spikes: ArrayLike, dt_ms: float, targets: ArrayLike, kind: Kind, options: FitOptions) -> _Data:
    if not (math.isfinite(dt_ms) and dt_ms > 0.0):
        raise ConfigError(f"a tick of {dt_ms} ms; a positive duration expected")
    trains = _trains(np.asarray(spikes))
    y: Floats = np.array(targets, dtype=np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != len(trains):
        raise ConfigError(f"targets of shape {np.shape(targets)} for {len(trains)} ticks; one row for each expected")
    most, least = {"population_vector": (3, 2), "linear": (N_OUTPUTS, 1), "kalman": (MAX_STATES, 1)}[kind]
    if not least <= y.shape[1] <= most:
        raise ConfigError(f'kind = "{kind}" takes {least} to {most} targets, got {y.shape[1]}')
    names = options.target_names or tuple(f"x{i}" for i in range(y.shape[1]))
    if len(names) != y.shape[1] or len(set(names)) != len(names):
        raise ConfigError(f"target_names = {list(names)} for {y.shape[1]} targets; one name each, all different")
    known: _Known = np.logical_not(np.isnan(y).any(axis=1))
    if not (np.abs(y[known]) <= _LARGEST_TARGET).all():
        raise ConfigError(f"targets beyond {_LARGEST_TARGET:g}; give them in a larger unit, and NaN where unknown")
    by_rates = kind == "population_vector" or (kind == "linear" and options.features == "rates")
    bin_ticks = 1 if by_rates else max(1, round(options.bin_ms / dt_ms))
    _refuse_too_little(trains, y, known, dt_ms, kind, by_rates, bin_ticks, names, options)
    if by_rates:
        decay = math.exp(-dt_ms / options.tau_ms)
        gain = (1.0 - decay) * 1000.0 / dt_ms
        features = scipy.signal.lfilter([gain], [1.0, -decay], trains, axis=0)
    else:
        features = _lagged_counts(trains, bin_ticks, options.n_lags if kind == "linear" else 1)
    masks = (trains.astype(np.uint32) << np.arange(N_CHANNELS, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    limit = options.limit if options.limit is not None else 2.0 * float(np.abs(y[known]).max())
    return _Data(masks, features, y, known, float(dt_ms), bin_ticks, options, limit, names)


def _trains(spikes: NDArray[np.generic]) -> Floats:
    """Spikes as zeros and ones, shape (n_ticks, 16)."""
    if spikes.ndim == 1 and spikes.dtype.kind in "ui":
        bits = spikes.astype(np.int64)
        if len(bits) and (bits.min() < 0 or bits.max() >> N_CHANNELS):
            raise ConfigError(f"spikes as one number a tick must lie within 0 and {(1 << N_CHANNELS) - 1}")
        return (bits[:, None] >> np.arange(N_CHANNELS) & 1).astype(np.float64)
    if spikes.ndim != 2 or spikes.shape[1] != N_CHANNELS or spikes.dtype.kind not in "buif":
        raise ConfigError(
            f"spikes of shape {spikes.shape} and type {spikes.dtype}; "
            f"zeros and ones of shape (n_ticks, {N_CHANNELS}) expected"
        )
    if not np.isin(spikes, (0, 1)).all():
        raise ConfigError("spikes other than 0 and 1: a channel spikes at most once a tick, and a decoder sees no more")
    return spikes.astype(np.float64)


def _lagged_counts(trains: Floats, bin_ticks: int, n_lags: int) -> Floats:
    """Counts of a bin and of the `n_lags` - 1 before it, newest first, one row a whole bin; zero before the start."""
    n_bins = len(trains) // bin_ticks
    counts = trains[: n_bins * bin_ticks].reshape(n_bins, bin_ticks, N_CHANNELS).sum(axis=1)
    padded = np.vstack([np.zeros((n_lags, N_CHANNELS)), counts])
    return np.hstack([padded[n_lags - lag : n_lags - lag + n_bins] for lag in range(n_lags)])


def _refuse_too_little(
    trains: Floats,
    y: Floats,
    known: _Known,
    dt_ms: float,
    kind: Kind,
    by_rates: bool,
    bin_ticks: int,
    names: Sequence[str],
    options: FitOptions,
) -> None:
    spiking = int(trains.any(axis=0).sum())
    if spiking == 0:
        raise ConfigError("no channel spiked: there is nothing to decode")
    if not known.any():
        raise ConfigError("every target is NaN: there is nothing to fit to")
    for i, name in enumerate(names):
        if np.ptp(y[known, i]) == 0.0:
            raise ConfigError(f"target {name} never moves: there is nothing to fit to")
    n_parameters = {
        "population_vector": 1 + y.shape[1],
        "kalman": max(1 + y.shape[1], spiking),
        "linear": 1 + spiking * (1 if by_rates else options.n_lags),
    }[kind]
    row_ms = 2.0 * options.tau_ms if by_rates else bin_ticks * dt_ms
    n_rows = known.sum() * dt_ms / row_ms
    # the share that is left for training inside a training set
    share = (1.0 - 1.0 / options.n_folds) ** 2
    needed = _ROWS_PER_PARAMETER * n_parameters / share
    if n_rows < needed:
        raise ConfigError(
            f"{known.sum() * dt_ms * 1e-3:.1f} s of known targets for {n_parameters} numbers a fit; at least "
            f"{needed * row_ms * 1e-3:.1f} s expected: record longer"
            + (", or take fewer lags" if kind == "linear" and not by_rates and options.n_lags > 1 else "")
        )
    block_ms = len(trains) * dt_ms / options.n_folds**2
    gap_ms = _gap_ticks(dt_ms, bin_ticks, options) * dt_ms
    if block_ms < gap_ms:
        raise ConfigError(
            f"{len(trains) * dt_ms * 1e-3:.1f} s cut into {options.n_folds} x {options.n_folds} blocks leaves "
            f"{block_ms * 1e-3:.2f} s each, less than the gap of {gap_ms * 1e-3:.2f} s between them; "
            f"at least {gap_ms * options.n_folds**2 * 1e-3:.0f} s expected: record longer, or set gap_ms lower"
        )


def _gap_ticks(dt_ms: float, bin_ticks: int, options: FitOptions) -> int:
    """Gap between training and test, whole bins, no shorter than what the decoder remembers."""
    memory_ms = 3.0 * options.tau_ms if bin_ticks == 1 else options.n_lags * bin_ticks * dt_ms
    return math.ceil(max(options.gap_ms, memory_ms) / dt_ms / bin_ticks) * bin_ticks


# held-out blocks


def _blocks(data: _Data, within: _Known, n: int) -> Iterator[tuple[int, int]]:
    """Contiguous blocks that together hold all ticks `within`, each with as many known ones, cut between bins."""
    usable = np.flatnonzero(within & data.known)
    cuts = [0, *(int(usable[k * len(usable) // n]) for k in range(1, n)), len(data.known)]
    cuts = [cut // data.bin_ticks * data.bin_ticks for cut in cuts[:-1]] + cuts[-1:]
    yield from itertools.pairwise(cuts)


def _outside(data: _Data, first: int, last: int) -> _Known:
    """All ticks but a block and the gaps on both sides."""
    gap = _gap_ticks(data.dt_ms, data.bin_ticks, data.options)
    outside = np.ones(len(data.known), dtype=np.bool_)
    outside[max(0, first - gap) : last + gap] = False
    return outside


def _run(data: _Data, decoder: FittedConfig, first: int, last: int) -> tuple[_Known, Floats]:
    """Run the compiled decoder over a block, from the gap before it on.

    Returns which ticks of the recording are to be scored, and the outputs of all (NaN where it did not run).
    """
    start = max(0, first - _gap_ticks(data.dt_ms, data.bin_ticks, data.options))
    compiled = make_decoder(decoder, data.dt_ms)
    n = last - start
    raw, events = np.zeros((n, N_OUTPUTS), dtype=np.float32), np.zeros(n, dtype=np.int64)
    decode_all(compiled[0], data.masks[start:last], raw, events)
    outputs = np.full(data.targets.shape, np.nan)
    outputs[start:last] = raw[:, : data.targets.shape[1]]
    tested = np.zeros(len(data.known), dtype=np.bool_)
    record = compiled[0]
    settling = int(max(record["settle_ticks"], record["n_lags"] * record["bin_ticks"]))
    tested[max(first, start + settling) : last] = True  # nothing is decoded yet in the very first ticks of a recording
    return tested & data.known, outputs


def _choose_strength(data: _Data, training: _Known, kind: Kind, fitter: _Fitter) -> float:
    """Regularisation that predicts best, by blocks held out inside the training set."""
    options = data.options
    strengths = tuple(s for s in options.strengths if kind != "kalman" or s <= 1.0) or (1.0,)
    if kind == "population_vector":
        return 0.0
    if len(strengths) == 1:
        return strengths[0]
    errors = np.zeros(len(strengths))
    scale = data.targets[training & data.known].var(axis=0)
    for first, last in _blocks(data, training, options.n_folds):
        inner = training & _outside(data, first, last)
        if not (inner & data.known).any():
            continue
        for k, strength in enumerate(strengths):
            tested, outputs = _run(data, fitter(data, inner, strength), first, last)
            at = np.flatnonzero(tested & training)
            errors[k] += (((outputs[at] - data.targets[at]) ** 2) / scale).sum()
    return strengths[int(np.argmin(errors))]


def _shuffle(data: _Data, training: _Known, rng: np.random.Generator) -> Floats:
    """Targets of the training set whose blocks have changed places; NaN elsewhere."""
    usable = np.flatnonzero(training & data.known)
    n = min(max(1, round(data.options.shuffle_block_ms / data.dt_ms)), max(1, len(usable) // 4))
    starts = np.arange(0, len(usable), n)
    moved = np.concatenate([usable[starts[k] : starts[k] + n] for k in rng.permutation(len(starts))])
    shuffled = np.full_like(data.targets, np.nan)
    shuffled[usable] = data.targets[moved]
    return shuffled


# fits


def _rows(data: _Data, training: _Known) -> NDArray[np.int64]:
    """Ticks of the training set at which the decoder moves and the target is known."""
    ends = np.arange(data.bin_ticks - 1, len(data.known), data.bin_ticks)
    rows: NDArray[np.int64] = ends[(training & data.known)[ends]]
    if len(rows) < 2:
        raise ConfigError("too few known targets fall on the end of a bin; take shorter bins, or record longer")
    return rows


def _linear(data: _Data, training: _Known, strength: float) -> FittedConfig:
    """Ridge regression on centred features in units of their standard deviation (Hoerl & Kennard 1970)."""
    rows = _rows(data, training)
    x, y = data.features[rows // data.bin_ticks], data.targets[rows]
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    sd = x.std(axis=0)
    used = sd > 0.0
    z = (x[:, used] - centre[used]) / sd[used]
    solution = np.linalg.solve(z.T @ z + strength * len(rows) * np.eye(z.shape[1]), z.T @ (y - mean))
    weights = np.zeros((x.shape[1], y.shape[1]))
    weights[used] = solution / sd[used, None]
    bias = mean - centre @ weights
    by_rates = data.bin_ticks == 1 and data.options.features == "rates"
    n_lags = x.shape[1] // N_CHANNELS
    return LinearConfig(
        features=data.options.features,
        bin_ms=data.bin_ticks * data.dt_ms if not by_rates else LinearConfig.model_fields["bin_ms"].default,
        n_lags=n_lags,
        tau_ms=data.options.tau_ms,
        weights=_nested(weights.T.reshape(y.shape[1], n_lags, N_CHANNELS)),
        bias=_nested(bias),
        limit=data.limit,
    )


def _population_vector(data: _Data, training: _Known, strength: float) -> FittedConfig:
    """Cosine tuning: rate = baseline + b . target, by least squares; b points to the preferred direction.

    The depth is how far the rate rises for a target of root mean square length. Channels vote whose b stands out from
    its scatter between five parts of the data. The gain is the least squares one.
    """
    rows = _rows(data, training)
    rates, y = data.features[rows // data.bin_ticks], data.targets[rows]
    slopes, baseline = _regress(y, rates)
    parts = [_regress(y[part], rates[part])[0] for part in np.array_split(np.arange(len(rows)), 5)]
    scatter = np.sqrt(np.var(parts, axis=0, ddof=1).sum(axis=0) / len(parts))
    length = np.sqrt((slopes**2).sum(axis=0))
    typical = math.sqrt((y**2).sum(axis=1).mean())
    clear = np.divide(length, scatter, out=np.zeros_like(length), where=scatter > 0.0)
    possible = length * typical > 1e-3  # spikes/s; below, a vote would be division by rounding
    chosen = np.flatnonzero((clear > _TUNED) & possible)
    if len(chosen) < y.shape[1]:
        order = np.argsort(-clear, kind="stable")
        chosen = np.sort([c for c in order if possible[c]][: y.shape[1]])
    if len(chosen) == 0:
        raise ConfigError("no channel's rate changes with the targets: a population vector has nothing to go by")
    depth = length[chosen] * typical
    directions = (slopes[:, chosen] / length[chosen]).T
    vector = ((rates[:, chosen] - baseline[chosen]) / depth) @ directions * (y.shape[1] / len(chosen))
    gain = (vector * y).sum() / max((vector**2).sum(), 1e-300)
    return PopulationVectorConfig(
        channels=tuple(int(c) for c in chosen),
        preferred_directions=_nested(directions),
        baseline_hz=_nested(np.maximum(baseline[chosen], 0.0)),
        depth_hz=_nested(depth),
        gain=float(gain),
        tau_ms=data.options.tau_ms,
        limit=data.limit,
    )


def _kalman(data: _Data, training: _Known, strength: float) -> FittedConfig:
    """Least squares for both models, residual covariances for both noises (Wu et al. 2006)."""
    rows = _rows(data, training)
    x, z = data.targets[rows], data.features[rows // data.bin_ticks]
    used = np.flatnonzero(z.std(axis=0) > 0.0)
    if len(used) == 0:
        raise ConfigError("no channel's counts change: a Kalman filter has nothing to observe")
    x_mean, z_mean = x.mean(axis=0), z[:, used].mean(axis=0)
    x, z = x - x_mean, z[:, used] - z_mean
    follows = np.flatnonzero(np.diff(rows) == data.bin_ticks)
    if len(follows) <= x.shape[1]:
        raise ConfigError("hardly two known targets lie one bin apart; take shorter bins, or record longer")
    a = _least_squares(x[follows], x[follows + 1]).T
    w = _covariance(x[follows + 1] - x[follows] @ a.T)
    c = _least_squares(x, z).T
    q = _covariance(z - x @ c.T)
    q = (1.0 - strength) * q + strength * np.diag(np.diag(q))
    # rounding, and channels that say exactly the same, must not make it singular
    q += 1e-4 * np.mean(np.diag(q)) * np.eye(len(q)) + 1e-6 * np.eye(len(q))
    return KalmanConfig(
        bin_ms=data.bin_ticks * data.dt_ms,
        states=data.names,
        outputs=data.names,
        channels=tuple(int(k) for k in used),
        state_mean=_nested(x_mean),
        count_mean=_nested(z_mean),
        transition=_nested(a),
        transition_noise=_nested(w),
        observation=_nested(c),
        observation_noise=_nested(q),
        initial_covariance=_nested(_covariance(x)),
        limit=data.limit,
    )


def _regress(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slopes and intercepts of y on x by least squares."""
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    slopes = _least_squares(x - centre, y - mean)
    return slopes, mean - centre @ slopes


def _least_squares(x: Floats, y: Floats) -> Floats:
    """The b of least |y - x b|, by the normal equations: rows are many and columns at most six."""
    return np.asarray(np.linalg.lstsq(x.T @ x, x.T @ y, rcond=None)[0], dtype=np.float64)


def _covariance(residuals: Floats) -> Floats:
    covariance: Floats = residuals.T @ residuals / len(residuals)
    return 0.5 * (covariance + covariance.T)


def _nested(array: Floats) -> tuple:  # type: ignore[type-arg]
    """An array as tuples of tuples of floats."""
    return tuple(_nested(row) if np.ndim(row) else float(row) for row in array)


# figures


def _discrete_targets(data: _Data) -> Floats | None:
    """The different targets, where there are few."""
    found: Floats = np.unique(data.targets[data.known], axis=0)
    return found if 2 <= len(found) <= _MOST_DISCRETE_TARGETS else None


def _score(truth: Floats, outputs: Floats, discrete: Floats | None) -> dict[str, Floats]:
    """Figures of one block, NaN where there is none."""
    if len(truth) == 0:
        empty = np.full(truth.shape[1], np.nan)
        nothing = {"r2": empty, "correlation": empty}
        return nothing | {key: np.array(np.nan) for key in ("nearest_target", "within_45_degrees")}
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    moves = spread > 1e-12 * (truth**2).sum(axis=0)
    error = ((outputs - truth) ** 2).sum(axis=0)
    r2 = np.where(moves, 1.0 - error / np.where(moves, spread, 1.0), np.nan)
    result = {"r2": r2, "correlation": _correlations(truth, outputs)}
    if discrete is not None:
        edges = np.flatnonzero(np.any(np.diff(truth, axis=0) != 0.0, axis=1)) + 1
        truth = np.array([part[0] for part in np.split(truth, edges)])
        outputs = np.array([part.mean(axis=0) for part in np.split(outputs, edges)])
        distance = ((outputs[:, None] - discrete[None]) ** 2).sum(axis=2)
        right = (discrete[distance.argmin(axis=1)] == truth).all(axis=1)
        result["nearest_target"] = np.array(right.mean())
    else:
        result["nearest_target"] = np.array(np.nan)
    result["within_45_degrees"] = np.array(_within_45_degrees(truth, outputs))
    return result


def _correlations(truth: Floats, outputs: Floats) -> Floats:
    """Pearson's of each output; 0 for an output that stands still, NaN for a target that does."""
    a, b = truth - truth.mean(axis=0), outputs - outputs.mean(axis=0)
    power_a, power_b = (a**2).sum(axis=0), (b**2).sum(axis=0)
    moves = power_b > 1e-12 * (outputs**2).sum(axis=0)
    product = np.sqrt(power_a * power_b)
    correlation = np.where(moves, (a * b).sum(axis=0) / np.where(moves & (product > 0.0), product, 1.0), 0.0)
    return np.where(power_a > 1e-12 * (truth**2).sum(axis=0), correlation, np.nan)


def _within_45_degrees(truth: Floats, outputs: Floats) -> float:
    if truth.shape[1] not in (2, 3):
        return math.nan
    far, wide = np.sqrt((truth**2).sum(axis=1)), np.sqrt((outputs**2).sum(axis=1))
    pointing = far > 1e-9 * far.max(initial=0.0)
    if not pointing.any():
        return math.nan
    along = (truth * outputs).sum(axis=1)
    right = (wide > 0.0) & (along >= _WITHIN_COSINE * far * wide * (1.0 - 1e-12))
    return float(right[pointing].mean())


def _scores(folds: Sequence[dict[str, Floats]]) -> Scores:
    n_outputs = len(folds[0]["r2"])

    def every(key: str) -> Estimate | None:
        estimate = _estimate([float(fold[key]) for fold in folds])
        return estimate if estimate.mean is not None else None

    def each(key: str) -> tuple[Estimate, ...]:
        return tuple(_estimate([float(fold[key][o]) for fold in folds]) for o in range(n_outputs))

    def overall(key: str) -> Estimate:
        return _estimate([_mean_of_known(fold[key]) for fold in folds])

    return Scores(
        r2=overall("r2"),
        r2_per_output=each("r2"),
        correlation=overall("correlation"),
        correlation_per_output=each("correlation"),
        nearest_target=every("nearest_target"),
        within_45_degrees=every("within_45_degrees"),
    )


def _mean_of_known(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _estimate(values: Sequence[float]) -> Estimate:
    known = np.array([value for value in values if not math.isnan(value)])
    folds = tuple(None if math.isnan(value) else value for value in values)
    if len(known) == 0:
        return Estimate(mean=None, low=None, high=None, folds=folds)
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean=mean, low=None, high=None, folds=folds)
    half = float(scipy.special.stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / math.sqrt(len(known)))
    return Estimate(mean=mean, low=mean - half, high=mean + half, folds=folds)
