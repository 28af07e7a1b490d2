"""Features in, 16 stimuli out: smoothing, normalisation with frozen constants, and one mixing matrix."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.compiled import jit
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import N_CHANNELS, N_SENSORY
from neuromod.sorting.baseline import Baseline
from neuromod.sorting.bundle import Bundle, Normalisation
from neuromod.sorting.config import EncoderConfig

# Entries of EncoderState.options.
_ZSCORE, _RECTIFY, _WARMUP_BLOCKS = range(3)
_RECTIFIERS = ("none", "half", "full")

# Entries of EncoderState.numbers.
_DECAY, _LIMIT, _GAIN, _OFFSET, _LOW, _HIGH = range(6)

# Entries of EncoderState.counters.
_READY, _SEEN, _ANY = range(3)

# below these, a standard deviation is rounding and not signal
_RELATIVE_FLOOR = 1e-9
_ABSOLUTE_FLOOR = 1e-60

# limits on weights, gain and scale (EncoderConfig) keep the double sums of any float32 features far from overflow
_LARGEST_WEIGHT = 1e30


class EncoderState(NamedTuple):
    """Everything `encode` reads and writes."""

    # fixed at construction
    options: NDArray[np.int64]
    numbers: NDArray[np.float64]
    matrix: NDArray[np.float64]  # (n_features, 16)
    reached: NDArray[np.float64]  # (16,) 1 where any feature reaches the stimulus
    # frozen after the warm-up
    centre: NDArray[np.float64]  # (n_features,)
    inverse: NDArray[np.float64]  # (n_features,) 1 / scale, or 0: the feature says nothing
    # moving with every block
    counters: NDArray[np.int64]
    smoothed: NDArray[np.float64]  # (n_features,)
    seen: NDArray[np.float64]  # (n_features,) values seen
    mean: NDArray[np.float64]  # (n_features,) of the warm-up
    squares: NDArray[np.float64]  # (n_features,) squared deviations of the warm-up
    # scratch
    mixed: NDArray[np.float64]  # (16,)


_CHANGING = ("centre", "inverse", "counters", "smoothed", "seen", "mean", "squares")


@jit
def encode(
    state: EncoderState, features: NDArray[np.float32], stimuli: NDArray[np.float32], is_blanked: bool = False
) -> None:
    """Turn one feature vector into stimuli.

    Parameters
    ----------
    state : EncoderState
        Changed in place.
    features : ndarray of float32, shape (n_features,)
        One block. A value that is not finite is taken as unknown: the feature stays where it was.
    stimuli : ndarray of float32, shape (16,)
        Overwritten; always finite. All 0 until features and normalisation are known.
    is_blanked : bool
        Whether an artefact was blanked in the block. The warm-up leaves such a block out whole, so that constants are
        those of clean blocks; after it, this makes no difference.
    """
    if is_blanked and state.counters[_READY] == 0:
        for k in range(N_CHANNELS):
            stimuli[k] = 0.0
        return
    n_features = state.smoothed.shape[0]
    decay = state.numbers[_DECAY]
    any_known = False
    for f in range(n_features):
        value = np.float64(features[f])
        if not math.isfinite(value):
            continue
        any_known = True
        if state.seen[f] == 0.0:
            state.smoothed[f] = value
        else:
            state.smoothed[f] = value + (state.smoothed[f] - value) * decay
        state.seen[f] += 1.0
        if state.counters[_READY] == 0:  # Welford: one pass, no cancellation
            step = state.smoothed[f] - state.mean[f]
            state.mean[f] += step / state.seen[f]
            state.squares[f] += step * (state.smoothed[f] - state.mean[f])
    if any_known:
        state.counters[_ANY] = 1
        if state.counters[_READY] == 0:
            state.counters[_SEEN] += 1
            if state.counters[_SEEN] == state.options[_WARMUP_BLOCKS]:
                _freeze(state)
                state.counters[_READY] = 1

    if state.counters[_READY] == 0 or state.counters[_ANY] == 0:
        for k in range(N_CHANNELS):
            stimuli[k] = 0.0
        return
    _mix(state, stimuli)


@jit
def is_encoding(state: EncoderState) -> bool:
    """Whether the constants of normalisation are known."""
    return state.counters[_READY] == 1  # type: ignore[no-any-return]


@jit
def _mix(state: EncoderState, stimuli: NDArray[np.float32]) -> None:
    mixed = state.mixed
    for k in range(N_CHANNELS):
        mixed[k] = 0.0
    limit = state.numbers[_LIMIT]
    for f in range(state.smoothed.shape[0]):
        if state.seen[f] == 0.0:
            continue
        value = (state.smoothed[f] - state.centre[f]) * state.inverse[f]
        value = min(max(value, -limit), limit)
        if value == 0.0:  # most counts of a millisecond are
            continue
        for k in range(N_CHANNELS):
            mixed[k] += value * state.matrix[f, k]
    for k in range(N_CHANNELS):
        value = state.numbers[_GAIN] * mixed[k]
        if state.options[_RECTIFY] == 1:
            value = max(value, 0.0)
        elif state.options[_RECTIFY] == 2:
            value = abs(value)
        value += state.numbers[_OFFSET]
        stimuli[k] = min(max(value, state.numbers[_LOW]), state.numbers[_HIGH]) if state.reached[k] > 0.0 else 0.0


@jit
def _freeze(state: EncoderState) -> None:
    """Constants of the z-score from the warm-up; a feature that never moved gets no say."""
    if state.options[_ZSCORE] == 0:
        return
    for f in range(state.smoothed.shape[0]):
        n = state.seen[f]
        sd = math.sqrt(state.squares[f] / n) if n > 0.0 else 0.0
        state.centre[f] = state.mean[f]
        state.inverse[f] = 1.0 / sd if sd > max(_ABSOLUTE_FLOOR, _RELATIVE_FLOOR * abs(state.mean[f])) else 0.0


class Encoder:
    """The encoder of one session: checks its configuration, owns its state, warms its kernel.

    Parameters
    ----------
    config : EncoderConfig
        What to compute.
    n_features : int
        Length of a feature vector.
    feature_names : sequence of str, optional
        Names that `groups` may use; default ``f1``, ``f2``, ... A group may also name a channel: all its features.
    baseline : Baseline, optional
        Frozen mean and deviation of each feature, used by ``normalisation = "zscore"``.
    block_ms : float
        Nominal duration of a block, for the time constants.
    bundle : Bundle, optional
        The sorting, where features are its units and nothing else: its proposed groups stand in for contiguous ones,
        and its normalisation for a warm-up, where it was measured with this `block_ms` and smoothing.

    Raises
    ------
    ConfigError
        The configuration cannot work on such features, or the baseline is not one of such features.
    """

    def __init__(
        self,
        config: EncoderConfig,
        n_features: int,
        feature_names: Sequence[str] | None = None,
        baseline: Baseline | None = None,
        *,
        block_ms: float = 1.0,
        bundle: Bundle | None = None,
    ) -> None:
        names = tuple(feature_names) if feature_names is not None else tuple(f"f{i + 1}" for i in range(n_features))
        if n_features < 1 or len(names) != n_features:
            raise ConfigError(f"{len(names)} feature names for {n_features} features; at least 1, and one name each")
        if not (math.isfinite(block_ms) and block_ms > 0):
            raise ConfigError(f"a block of {block_ms} ms; a positive duration expected")
        self.config = config
        self.n_features = n_features
        self.feature_names = names
        self.block_ms = float(block_ms)
        self._baseline = baseline if config.normalisation == "zscore" else None
        if self._baseline is not None:
            self._baseline.check_encoding(names, self.block_ms, config.smoothing_ms)
        sorting = bundle.info if bundle is not None and bundle.unit_ids == names else None
        self._frozen: Normalisation | None = None
        if sorting is not None and sorting.normalisation is not None and config.normalisation == "zscore":
            measured = sorting.normalisation.block_ms, sorting.normalisation.smoothing_ms
            if self._baseline is None and measured == (self.block_ms, config.smoothing_ms):
                self._frozen = sorting.normalisation
        if sorting is not None and sorting.encoding is not None and config.kind == "groups" and not config.groups:
            config = config.model_copy(update={"groups": sorting.encoding.groups})
        matrix = mixing_matrix(config, names)
        self.state = _allocate(config, matrix, self.block_ms)
        self.reset()
        encode(self.state, np.full(n_features, np.nan, dtype=np.float32), np.empty(N_CHANNELS, dtype=np.float32))
        is_encoding(self.state)
        self.reset()

    @property
    def is_ready(self) -> bool:
        """Whether the constants of normalisation are known and stimuli are live."""
        return bool(self.state.counters[_READY])

    @property
    def normalisation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each smoothed feature over the warm-up; zeros where there was none."""
        n = np.maximum(self.state.seen, 1.0)
        return self.state.mean.copy(), np.sqrt(self.state.squares / n)

    def reset(self) -> None:
        """Back to the state of a new encoder, warm-up included."""
        state = self.state
        for name in _CHANGING:
            getattr(state, name).fill(0)
        state.inverse.fill(1.0)
        if self.config.normalisation == "scale":
            state.centre[:] = _per_feature("centre", self.config.centre, self.n_features)
            state.inverse[:] = 1.0 / _per_feature("scale", self.config.scale, self.n_features)
        elif (frozen := self._baseline or self._frozen) is not None:
            mean, sd = np.array(frozen.mean), np.array(frozen.sd)
            known = sd > np.maximum(_ABSOLUTE_FLOOR, _RELATIVE_FLOOR * np.abs(mean))
            state.centre[:] = mean
            state.inverse[:] = np.where(known, 1.0 / np.where(known, sd, 1.0), 0.0)
        state.counters[_READY] = int(
            self.config.normalisation != "zscore" or self._baseline is not None or self._frozen is not None
        )


def mixing_matrix(config: EncoderConfig, feature_names: Sequence[str]) -> NDArray[np.float64]:
    """The matrix from features to stimuli, shape (16, n_features).

    Raises
    ------
    ConfigError
        The kind of encoder does not fit the features, or the file does not hold such a matrix.
    """
    n = len(feature_names)
    if config.kind == "identity":
        if n > N_CHANNELS:
            raise ConfigError(
                f'encoder.kind = "identity" takes up to {N_CHANNELS} features, the stream gives {n}; '
                'set encoder.kind = "groups" to pool them, or "matrix" to weigh them'
            )
        return np.eye(N_CHANNELS, n)
    if config.kind == "matrix":
        return _matrix_from_file(config, n)
    groups = _named_groups(config, feature_names) if config.groups else _contiguous_groups(n)
    matrix = np.zeros((N_CHANNELS, n))
    for k, members in enumerate(groups):
        if members:
            share = {"sum": 1.0, "mean": 1.0 / len(members), "unit": 1.0 / math.sqrt(len(members))}[config.combine]
            matrix[k, members] = share
    return matrix


def _contiguous_groups(n: int) -> list[list[int]]:
    """All features over the sensory channels, neighbours together, sizes differing by at most one."""
    n_groups = min(n, N_SENSORY)
    return [list(range(k * n // n_groups, (k + 1) * n // n_groups)) for k in range(n_groups)]


def _named_groups(config: EncoderConfig, feature_names: Sequence[str]) -> list[list[int]]:
    groups = []
    for k, members in enumerate(config.groups):
        found: list[int] = []
        for member in members:
            if isinstance(member, int):
                if not 0 <= member < len(feature_names):
                    raise ConfigError(
                        f"encoder.groups[{k}]: there is no feature {member}; there are 0 to {len(feature_names) - 1}"
                    )
                found.append(member)
                continue
            named = [i for i, name in enumerate(feature_names) if name == member or name.startswith(member + ".")]
            if not named:
                raise ConfigError(
                    f'encoder.groups[{k}]: no channel or feature is called "{member}"; there are '
                    + ", ".join(feature_names[:8])
                    + (", ..." if len(feature_names) > 8 else "")
                )
            found += named
        if len(set(found)) != len(found):
            raise ConfigError(f"encoder.groups[{k}] names a feature twice: {list(members)}")
        groups.append(found)
    if not any(groups):
        raise ConfigError("encoder.groups holds no feature at all; name some, or leave groups out for contiguous ones")
    return groups


def _matrix_from_file(config: EncoderConfig, n: int) -> NDArray[np.float64]:
    path = config.matrix_path
    assert path is not None  # EncoderConfig saw to it
    if path.suffix not in (".npy", ".csv"):
        raise ConfigError(f"encoder.matrix_path = {path}: .npy or .csv expected")
    try:
        with path.open("rb") as file:  # numpy would leave a damaged one open
            loaded = np.load(file) if path.suffix == ".npy" else np.loadtxt(file, delimiter=",", ndmin=2)
        matrix = np.asarray(loaded, dtype=np.float64)
    except NO_ARRAYS as error:
        raise ConfigError(f"encoder.matrix_path = {path} cannot be read as a matrix of numbers: {error}") from error
    if matrix.shape not in ((N_CHANNELS, n), (N_SENSORY, n)):
        hint = "; transpose it" if matrix.T.shape in ((N_CHANNELS, n), (N_SENSORY, n)) else ""
        raise ConfigError(
            f"encoder.matrix_path = {path} holds a matrix of shape {matrix.shape}; "
            f"({N_CHANNELS}, {n}) or ({N_SENSORY}, {n}) expected, one column per feature{hint}"
        )
    if not np.all(np.abs(matrix) <= _LARGEST_WEIGHT):  # NaN is not either
        raise ConfigError(
            f"encoder.matrix_path = {path} holds values that are not finite, or beyond {_LARGEST_WEIGHT:g}"
        )
    return np.vstack([matrix, np.zeros((N_CHANNELS - matrix.shape[0], n))])


def _per_feature(key: str, value: float | tuple[float, ...], n: int) -> NDArray[np.float64]:
    if isinstance(value, tuple):
        if len(value) != n:
            raise ConfigError(f"encoder.{key} holds {len(value)} values for {n} features; give one number, or {n}")
        return np.array(value, dtype=np.float64)
    return np.full(n, value, dtype=np.float64)


def _allocate(config: EncoderConfig, matrix: NDArray[np.float64], block_ms: float) -> EncoderState:
    n = matrix.shape[1]
    zscore = config.normalisation == "zscore"
    options = np.zeros(3, dtype=np.int64)
    options[_ZSCORE] = int(zscore)
    options[_RECTIFY] = _RECTIFIERS.index(config.rectify)
    options[_WARMUP_BLOCKS] = max(2, round(config.warmup_s * 1000.0 / block_ms))
    numbers = np.zeros(6)
    numbers[_DECAY] = math.exp(-block_ms / config.smoothing_ms) if config.smoothing_ms > 0 else 0.0
    numbers[_LIMIT] = config.limit_sd if zscore else np.inf
    numbers[_GAIN] = config.gain
    numbers[_OFFSET] = config.offset
    numbers[_LOW], numbers[_HIGH] = config.clip
    return EncoderState(
        options=options,
        numbers=numbers,
        matrix=np.ascontiguousarray(matrix.T),
        reached=np.any(matrix != 0.0, axis=1).astype(np.float64),
        centre=np.zeros(n),
        inverse=np.zeros(n),
        counters=np.zeros(3, dtype=np.int64),
        smoothed=np.zeros(n),
        seen=np.zeros(n),
        mean=np.zeros(n),
        squares=np.zeros(n),
        mixed=np.zeros(N_CHANNELS),
    )
