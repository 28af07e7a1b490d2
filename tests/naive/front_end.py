"""Front end and encoder, slow and obvious: scipy filters whole signals, Python counts, numpy averages."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from neuromod.sorting.config import FrontEndConfig

Floats = NDArray[np.float64]


def filtered(x: Floats, sampling_frequency: float, low_hz: float, high_hz: float, order: int) -> Floats:
    """Causal band-pass of shape (n, n_channels), at rest on the first sample."""
    sos = scipy.signal.butter(order, [low_hz, high_hz], btype="bandpass", fs=sampling_frequency, output="sos")
    at_rest = scipy.signal.sosfilt_zi(sos)[:, :, None] * x[0]
    y: Floats = scipy.signal.sosfilt(sos, x, axis=0, zi=at_rest)[0]
    return y


def referenced(y: Floats, kind: str, taking_part: Sequence[int], clip: Floats | None = None) -> Floats:
    """Signal with the common reference of the channels that take part taken away."""
    used = list(taking_part)
    if kind == "none":
        return y
    if kind == "median":
        return y - np.median(y[:, used], axis=1, keepdims=True)
    mean = y[:, used].mean(axis=1, keepdims=True)
    if kind == "clipped-mean":
        assert clip is not None
        mean = mean + np.clip(y[:, used] - mean, -clip[used], clip[used]).mean(axis=1, keepdims=True)
    without: Floats = y - mean
    return without


def crossing_samples(y: Floats, threshold: float, dead_samples: int) -> list[int]:
    """Samples at which one channel comes down through its threshold, at least `dead_samples` apart."""
    found: list[int] = []
    for i in range(len(y)):
        came_down = y[i] < threshold and (i == 0 or not y[i - 1] < threshold)
        if came_down and (not found or i - found[-1] >= dead_samples):
            found.append(i)
    return found


def features(
    config: FrontEndConfig,
    samples: NDArray[np.float32],
    sampling_frequency: float,
    blocks: Sequence[int],
    noise: dict[str, Floats],
    excluded: Sequence[int] = (),
) -> Floats:
    """Features of all blocks, shape (n_blocks, n_channels * n_kinds), with noise that is already known."""
    x = samples.astype(np.float64)
    n_channels = x.shape[1]
    used = [c for c in range(n_channels) if c not in excluded]
    ends = np.cumsum(blocks)
    columns = []
    for kind in config.features:
        if kind == "crossings":
            k = config.crossings
            clip = config.clip_noise * noise["crossings"]
            y = filtered(x, sampling_frequency, k.low_hz, k.high_hz, k.order)
            y = referenced(y, config.reference, used, clip)
            dead = max(1, round(k.dead_time_ms * 1e-3 * sampling_frequency))
            level = k.threshold_noise * noise["crossings"] if k.threshold_uv is None else [k.threshold_uv] * n_channels
            counts = np.zeros((len(blocks), n_channels))
            for c in used:
                for i in crossing_samples(y[:, c], level[c], dead):
                    counts[np.searchsorted(ends, i, side="right"), c] += 1
            columns.append(counts)
        elif kind == "spiking_band":
            s = config.spiking_band
            y = filtered(x, sampling_frequency, s.low_hz, s.high_hz, s.order)
            clip = config.clip_noise * noise.get("spiking_band", np.ones(n_channels))
            y = referenced(y, config.reference, used, clip)
            columns.append(_power(y, blocks, s.window_ms, s.log, sampling_frequency))
        elif kind == "bands":
            b = config.bands
            for low_hz, high_hz in b.ranges_hz:
                y = referenced(filtered(x, sampling_frequency, low_hz, high_hz, b.order), b.reference, used)
                columns.append(_power(y, blocks, b.window_ms, b.log, sampling_frequency))
        else:
            columns.append(np.array([part.mean(axis=0) for part in np.split(x, ends[:-1])]))
    result = np.stack(columns, axis=2)  # block, channel, kind
    result[:, list(excluded)] = 0.0
    return result.reshape(len(blocks), -1)


def _power(y: Floats, blocks: Sequence[int], window_ms: float, log: bool, sampling_frequency: float) -> Floats:
    means = np.array([(part**2).mean(axis=0) for part in np.split(y, np.cumsum(blocks)[:-1])])
    smoothed = [means[0]]
    for mean, n in zip(means[1:], blocks[1:], strict=True):
        keep = math.exp(-n / sampling_frequency / (window_ms * 1e-3)) if window_ms > 0 else 0.0
        smoothed.append(keep * smoothed[-1] + (1 - keep) * mean)
    power = np.array(smoothed)
    return 10 * np.log10(power) if log else power


def stimuli(
    features: Floats,
    matrix: Floats,
    keep: float,
    centre: Floats,
    scale: Floats,
    gain: float,
    offset: float,
    clip: tuple[float, float],
) -> Floats:
    """Stimuli of all blocks: exponential smoothing, normalisation, mixing, clipping."""
    smoothed = [features[0]]
    for vector in features[1:]:
        smoothed.append(keep * smoothed[-1] + (1 - keep) * vector)
    mixed = ((np.array(smoothed) - centre) / scale) @ matrix.T
    result = np.clip(offset + gain * mixed, *clip)
    result[:, ~matrix.any(axis=1)] = 0.0
    return np.asarray(result, dtype=np.float64)
