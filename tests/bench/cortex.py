"""Features of cortex, the session that turns them into sixteen spike trains, and linear readouts to hold against it.

The mixing matrix and every readout are fitted to a training part alone; what is held out is replayed and scored, no
more. Bins are those of the recording; everything is causal: bin k is decoded from bins up to k.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.io
import scipy.signal
from numpy.typing import NDArray

from neuromod.adapters import calibration
from neuromod.adapters.calibration import FitOptions
from neuromod.adapters.decoder import decode_all, make_decoder
from neuromod.adapters.decoder_config import N_OUTPUTS, FittedConfig
from neuromod.adapters.memory import MemorySource
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.replay import play
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.layout import N_CHANNELS, N_SENSORY
from neuromod.sorting.encoder import Encoder, encode

Floats = NDArray[np.float64]
Known = NDArray[np.bool_]
Kind = Literal["linear", "kalman"]

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "wrist-flexion.toml"
VARIABLE = "train_data.spikeratedata"
N_LAGS = 10
"""Bins that every linear readout looks at: half a second, the most that a decoder in the loop takes."""
GROUPS = {"cursor": slice(0, 4), "EMG": slice(4, None)}
"""Targets that one decoder gives together: a decoder has eight outputs, a Kalman filter six states."""
_MATRIX_STRENGTH = 0.1
_GAP_BINS = 20


class Recording(NamedTuple):
    """A recording of features and of what moved.

    Attributes
    ----------
    features : ndarray of float64, shape (n_bins, n_features)
        Rates or counts.
    targets : ndarray of float64, shape (n_bins, n_targets)
        Cursor position and velocity first, then EMG.
    names : tuple of str
        Of the targets.
    bin_ms : float
        Length of a bin, a whole number of ms.
    """

    features: Floats
    targets: Floats
    names: tuple[str, ...]
    bin_ms: float


def load(path: Path) -> Recording:
    """Read a wrist-flexion recording (limblab's `train_data`). Force is left out: it is the cursor, r = 1.00."""
    data = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["train_data"]
    targets = np.column_stack([data.cursorposbin, data.velocbin[:, :2], data.emgdatabin]).astype(np.float64)
    names = ("x", "y", "x velocity", "y velocity", *(str(name).strip() for name in data.emgguide))
    return Recording(np.asarray(data.spikeratedata, np.float64), targets, names, 50.0)


def synthetic(seed: int, n_bins: int = 4000, n_features: int = 40) -> Recording:
    """Draw a cursor that wanders, and Poisson counts of channels whose rates are linear in it.

    Parameters
    ----------
    seed : int
        Of everything.
    n_bins, n_features : int
        Length, and how many channels.
    """
    rng = np.random.default_rng(seed)
    b, a = scipy.signal.butter(2, 0.05)
    position = scipy.signal.lfilter(b, a, rng.normal(size=(n_bins + 200, 2)), axis=0)[200:]
    position /= position.std(axis=0)
    velocity = np.diff(position, axis=0, prepend=position[:1]) * 20.0
    state = np.column_stack([position, velocity / velocity.std(axis=0)])
    tuning = rng.normal(size=(4, n_features)) * 0.4
    counts = rng.poisson(np.maximum(1.5 + state @ tuning, 0.0))
    return Recording(counts.astype(np.float64), state, ("x", "y", "x velocity", "y velocity"), 50.0)


# -- training and held-out time ---------------------------------------------------------------------------------------


def split(n_bins: int) -> tuple[Known, Known]:
    """Return the first three quarters, less a gap, and the last quarter."""
    first = n_bins * 3 // 4
    bins = np.arange(n_bins)
    return bins < first - _GAP_BINS, bins >= first


def folds(training: Known, n_folds: int = 5) -> list[tuple[Known, Known]]:
    """Return contiguous blocks within the training part, each as what is left to train on, and what it holds out."""
    rows = np.flatnonzero(training)
    parts = []
    for block in np.array_split(rows, n_folds):
        tested = np.zeros_like(training)
        tested[block] = True
        kept = training.copy()
        kept[max(0, block[0] - _GAP_BINS) : block[-1] + 1 + _GAP_BINS] = False
        parts.append((kept, tested))
    return parts


def shuffled(recording: Recording, training: Known, seed: int) -> Recording:
    """Return the recording with training targets whose blocks of 2 s have changed places."""
    rows = np.flatnonzero(training)
    blocks = np.array_split(rows, max(2, int(len(rows) * recording.bin_ms / 2000.0)))
    order = np.random.default_rng(seed).permutation(len(blocks))
    targets = recording.targets.copy()
    targets[rows] = recording.targets[np.concatenate([blocks[k] for k in order])]
    return recording._replace(targets=targets)


def r2(truth: Floats, outputs: Floats) -> Floats:
    """1 - SSE / SST about the mean of `truth`, for each column."""
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(1.0 - ((outputs - truth) ** 2).sum(axis=0) / spread)


# -- features to spikes -----------------------------------------------------------------------------------------------


def smooth(features: Floats, bin_ms: float, tau_ms: float) -> Floats:
    """Exponential smoothing, as the encoder's: the first value is where it starts."""
    decay = np.exp(-bin_ms / tau_ms) if tau_ms > 0.0 else 0.0
    done, _ = scipy.signal.lfilter([1.0 - decay], [1.0, -decay], features, axis=0, zi=decay * features[:1])
    return np.asarray(done)


def directions(z: Floats, targets: Floats, training: Known, n: int) -> Floats:
    """Find the directions in the space of channels that tell most of all targets: reduced-rank regression.

    Parameters
    ----------
    z : ndarray of float64, shape (n_bins, n_features)
        Standardised.
    targets : ndarray of float64, shape (n_bins, n_targets)
        Each counts the same.
    training : ndarray of bool, shape (n_bins,)
        What may be looked at.
    n : int
        How many.

    Returns
    -------
    ndarray of float64, shape (n_features, n)
        Each gives a standard deviation of 1.

    Notes
    -----
    Ridge regression on all channels and lags; then the singular vectors of its weights, channels against lags and
    targets, in the metric of the channels' covariance: what is lost is least where channels vary most.
    """
    spread = targets[training].std(axis=0)
    weights, _ = ridge(lagged(z), targets / np.where(spread > 0.0, spread, 1.0), training, (_MATRIX_STRENGTH,))[0]
    by_channel = weights.reshape(N_LAGS, z.shape[1], -1).transpose(1, 0, 2).reshape(z.shape[1], -1)
    values, vectors = np.linalg.eigh(np.cov(z[training].T) + 1e-3 * np.eye(z.shape[1]))
    left = np.linalg.svd((vectors * np.sqrt(values)) @ vectors.T @ by_channel, full_matrices=False)[0]
    found = (vectors / np.sqrt(values)) @ vectors.T @ left[:, :n]
    return np.asarray(found / (z @ found)[training].std(axis=0))


def fit_encoder(recording: Recording, training: Known, tau_ms: float, n: int = N_SENSORY // 2) -> tuple[Floats, Floats]:
    """Fit the mixing matrix: each direction twice, as it is and turned around, for the encoder rectifies.

    Returns
    -------
    matrix : ndarray of float64, shape (14, n_features)
        Rows 0 to n - 1 are the directions, the n after them the same turned around, and the others 0.
    centre : ndarray of float64, shape (n_features,)
        The mean of each feature.
    """
    x = smooth(recording.features, recording.bin_ms, tau_ms)
    centre, sd = x[training].mean(axis=0), x[training].std(axis=0)
    inverse = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0.0)
    rows = (directions((x - centre) * inverse, recording.targets, training, n) * inverse[:, None]).T
    matrix = np.zeros((N_SENSORY, len(centre)))
    matrix[: 2 * n] = np.vstack([rows, -rows])
    return matrix, centre


def session(path: Path, bin_ms: float, matrix_path: Path, centre: Floats, variable: str | None) -> SessionConfig:
    """Complete the session of deploy/examples with what belongs to one recording."""
    raw: dict[str, Any] = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    raw["source"] = {"kind": "features", "path": path, "bin_ms": bin_ms, "variable": variable}
    raw["encoder"] |= {"matrix_path": matrix_path, "centre": tuple(centre.tolist())}
    return SessionConfig.model_validate(raw)


def encode_for(recording: Recording, training: Known, folder: Path, path: Path, variable: str | None) -> SessionConfig:
    """Fit the encoder to the training part, write its matrix into `folder`, and return the session that uses it."""
    matrix, centre = fit_encoder(recording, training, smoothing_ms())
    matrix_path = folder / "matrix.npy"
    np.save(matrix_path, matrix)
    return session(path, recording.bin_ms, matrix_path, centre, variable)


def smoothing_ms() -> float:
    """Time constant of the encoder's smoothing, as the session of deploy/examples has it."""
    return float(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["encoder"]["smoothing_ms"])


def stimuli_of(config: SessionConfig, recording: Recording) -> NDArray[np.float32]:
    """Return what the loop's encoder makes of each bin, shape (n_bins, 16)."""
    encoder = Encoder(config.encoder, recording.features.shape[1], block_ms=recording.bin_ms)
    stimuli = np.zeros((len(recording.features), N_CHANNELS), np.float32)
    for features, row in zip(recording.features.astype(np.float32), stimuli, strict=True):
        encode(encoder.state, features, row)
    return stimuli


def spikes_of(config: SessionConfig, recording: Recording) -> NDArray[np.uint32]:
    """Play the recording through the loop; return the spikes, one number a tick, bit i = channel i."""
    source = MemorySource(recording.features, 1000.0 / recording.bin_ms, kind="features")
    return np.asarray(play(config, source).log.column("spikes"), np.uint32)


def fixed_spikes_of(config: SessionConfig, stimuli: NDArray[np.float32], bin_ms: float) -> NDArray[np.uint32]:
    """Return the spikes of the fixed-point network, which hardware follows to the bit, on the same stimuli."""
    spikes = FixedNetwork(config.network).run(np.repeat(stimuli, round(bin_ms), axis=0))
    return np.asarray(spikes @ (1 << np.arange(N_CHANNELS)), np.uint32)


def counts_of(spikes: NDArray[np.uint32], bin_ms: float) -> Floats:
    """Count the spikes of each channel in each bin."""
    trains = spikes[:, None] >> np.arange(N_CHANNELS, dtype=np.uint32) & 1
    return np.asarray(trains.reshape(-1, round(bin_ms), N_CHANNELS).sum(axis=1), np.float64)


# -- readouts ---------------------------------------------------------------------------------------------------------


def lagged(x: Floats, n_lags: int = N_LAGS) -> Floats:
    """Each bin beside the `n_lags` - 1 before it, newest first; zero before the start."""
    padded = np.vstack([np.zeros((n_lags, x.shape[1])), x])
    return np.hstack([padded[n_lags - lag : n_lags - lag + len(x)] for lag in range(n_lags)])


def ridge(x: Floats, y: Floats, training: Known, strengths: tuple[float, ...]) -> list[tuple[Floats, Floats]]:
    """Ridge regression on features in units of their standard deviation.

    Returns
    -------
    list of (ndarray of shape (n_features, n_targets), ndarray of shape (n_targets,))
        For each strength, relative to the variance of the features: weights of the features as they are, and bias.
    """
    centre, sd, mean = x[training].mean(axis=0), x[training].std(axis=0), y[training].mean(axis=0)
    used = sd > 1e-12
    z = (x[training][:, used] - centre[used]) / sd[used]
    gram, moment = z.T @ z, z.T @ (y[training] - mean)
    found = []
    for strength in strengths:
        weights = np.zeros((x.shape[1], y.shape[1]))
        weights[used] = np.linalg.solve(gram + strength * len(z) * np.eye(len(gram)), moment) / sd[used, None]
        found.append((weights, mean - centre @ weights))
    return found


def kalman(x: Floats, y: Floats, training: Known, strength: float) -> Floats:
    """Kalman filter (Wu et al. 2006) whose states are all targets, run over the whole recording.

    `strength` is the share by which correlations of the observations' noise are shrunk.
    """
    rows = np.flatnonzero(training)
    used = x[training].std(axis=0) > 1e-12
    z_mean, y_mean = x[rows][:, used].mean(axis=0), y[rows].mean(axis=0)
    z, state = x[:, used] - z_mean, y - y_mean
    follows = rows[:-1][np.diff(rows) == 1]
    a = np.linalg.lstsq(state[follows], state[follows + 1], rcond=None)[0].T
    w = np.cov((state[follows + 1] - state[follows] @ a.T).T, bias=True)
    c = np.linalg.lstsq(state[rows], z[rows], rcond=None)[0].T
    q = np.cov((z[rows] - state[rows] @ c.T).T, bias=True)
    q = (1.0 - strength) * q + (strength + 1e-4) * np.diag(np.diag(q))
    projection = np.linalg.solve(q, c).T  # C' Q^-1
    information = projection @ c
    seen = z @ projection.T
    p, m, settled = np.cov(state[rows].T, bias=True), np.zeros(y.shape[1]), False
    outputs = np.empty_like(y)
    for k in range(len(y)):
        m = a @ m
        if not settled:  # the covariance knows nothing of the data, and comes to rest
            after = np.linalg.inv(np.linalg.inv(a @ p @ a.T + w) + information)
            settled = bool(np.abs(after - p).max() <= 1e-12 * np.abs(p).max())
            p = after
        m = m + p @ (seen[k] - information @ m)
        outputs[k] = m + y_mean
    return outputs


def read_out(kind: Kind, x: Floats, y: Floats, training: Known, strengths: tuple[float, ...]) -> list[Floats]:
    """Fit a readout of continuous inputs to the training part; return outputs over the whole recording by strength."""
    if kind == "kalman":
        return [np.hstack([kalman(x, y[:, group], training, s) for group in _groups(y)]) for s in strengths]
    wide = lagged(x)
    return [np.asarray(wide @ weights + bias) for weights, bias in ridge(wide, y, training, strengths)]


def choose(kind: Kind, x: Floats, y: Floats, training: Known, strengths: tuple[float, ...]) -> tuple[float, Floats]:
    """Choose a regularisation by blocks held out within the training part; return it, and its R2 there."""
    scores = np.mean(
        [
            [r2(y[out], outputs[out]) for outputs in read_out(kind, x, y, kept, strengths)]
            for kept, out in folds(training)
        ],
        axis=0,
    )
    best = int(scores.mean(axis=1).argmax())
    return strengths[best], np.asarray(scores[best])


def fit_decoder(
    kind: Kind, spikes: NDArray[np.uint32], recording: Recording, training: Known, group: slice, strength: float
) -> FittedConfig:
    """Fit the project's decoder, as `neuromod calibrate` does, to the ticks of the training part."""
    ticks = round(recording.bin_ms)
    targets = np.repeat(np.where(training[:, None], recording.targets[:, group], np.nan), ticks, axis=0)
    last = (int(np.flatnonzero(training)[-1]) + 1) * ticks
    # its own validation is as short as it can be: choices were made before, and scores come from what is held out
    options = FitOptions(
        bin_ms=recording.bin_ms, n_lags=N_LAGS, strengths=(strength,), n_folds=3, n_shuffles=1,
        limit=10.0 * float(np.abs(recording.targets[training][:, group]).max()),
    )  # fmt: skip
    return calibration.fit(spikes[:last], 1.0, targets[:last], kind, options).decoder


def decode_spikes(
    kind: Kind, spikes: NDArray[np.uint32], recording: Recording, training: Known, strength: float
) -> Floats:
    """Outputs of the compiled decoders at the end of each bin, over the whole recording."""
    found = []
    for group in _groups(recording.targets):
        decoder = make_decoder(fit_decoder(kind, spikes, recording, training, group, strength), 1.0)
        outputs, events = np.zeros((len(spikes), N_OUTPUTS), np.float32), np.zeros(len(spikes), np.int64)
        decode_all(decoder[0], spikes, outputs, events)
        ticks = round(recording.bin_ms)
        found.append(outputs[ticks - 1 :: ticks, : recording.targets[:, group].shape[1]].astype(np.float64))
    return np.hstack(found)


def _groups(targets: Floats) -> list[slice]:
    return [group for group in GROUPS.values() if targets[:, group].shape[1]]
