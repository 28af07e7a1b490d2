"""Front end and encoder, slow and obvious: scipy filters whole signals, Python counts, numpy averages."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from neuromod.sorting.config import FrontEndConfig

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Train(NamedTuple):
    """A train of pulses, registered before sample number `origin`; times in us."""

    origin: int
    electrode: int
    start_us: float
    pulses: int
    period_us: float
    pulse_us: float


class Window(NamedTuple):
    """What is blanked around a pulse of one electrode; times in us."""

    lead_us: float
    blank_us: float
    delay_us: float
    channels: Sequence[int]


def blanked_samples(
    shape: tuple[int, int], sampling_frequency: float, trains: Iterable[Train], windows: dict[int, Window]
) -> Mask:
    """Mark every sample that any pulse of any train blanks, in exact arithmetic; shape (n, n_channels)."""
    blanked = np.zeros(shape, dtype=np.bool_)
    rate = Fraction(sampling_frequency) / 1_000_000
    for train in trains:
        window = windows[train.electrode]
        for pulse in range(train.pulses):
            at = Fraction(train.start_us) + Fraction(window.delay_us) + pulse * Fraction(train.period_us)
            first = train.origin + math.floor((at - Fraction(window.lead_us)) * rate)
            last = train.origin + math.ceil((at + Fraction(train.pulse_us) + Fraction(window.blank_us)) * rate)
            # what has been pushed before the train was registered is past
            blanked[max(first, train.origin, 0) : last + 1, list(window.channels)] = True
    return blanked


def held(x: Floats, blanked: Mask) -> Floats:
    """Signal in which a blanked channel stays at its last clean value."""
    x = x.copy()
    for i in range(1, len(x)):
        x[i, blanked[i]] = x[i - 1, blanked[i]]
    return x


def filtered(x: Floats, sampling_frequency: float, low_hz: float, high_hz: float, order: int) -> Floats:
    """Causal band-pass of shape (n, n_channels), at rest on the first sample."""
    sos = scipy.signal.butter(order, [low_hz, high_hz], btype="bandpass", fs=sampling_frequency, output="sos")
    at_rest = scipy.signal.sosfilt_zi(sos)[:, :, None] * x[0]
    y: Floats = scipy.signal.sosfilt(sos, x, axis=0, zi=at_rest)[0]
    return y


def referenced(
    y: Floats, kind: str, taking_part: Sequence[int], clip: Floats | None = None, blanked: Mask | None = None
) -> Floats:
    """Signal with the common reference of the channels that take part, and are clean, taken away."""
    if blanked is not None:
        rows = [
            referenced(y[i : i + 1], kind, [c for c in taking_part if not blanked[i, c]], clip) for i in range(len(y))
        ]
        return np.concatenate(rows)
    used = list(taking_part)
    if kind == "none" or not used:
        return y
    if kind == "median":
        return y - np.median(y[:, used], axis=1, keepdims=True)
    mean = y[:, used].mean(axis=1, keepdims=True)
    if kind == "clipped-mean":
        assert clip is not None
        mean = mean + np.clip(y[:, used] - mean, -clip[used], clip[used]).mean(axis=1, keepdims=True)
    without: Floats = y - mean
    return without


def crossing_samples(y: Floats, threshold: float, dead_samples: int, blanked: Mask | None = None) -> list[int]:
    """Samples at which one channel comes down through its threshold, in sight, at least `dead_samples` apart."""
    if blanked is None:
        blanked = np.zeros(len(y), dtype=np.bool_)
    found: list[int] = []
    for i in range(len(y)):
        in_sight = not blanked[i] and (i == 0 or not blanked[i - 1])
        came_down = in_sight and y[i] < threshold and (i == 0 or not y[i - 1] < threshold)
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
    blanked: Mask | None = None,
    rate_window_ms: float | None = None,
) -> Floats:
    """Features of all blocks, shape (n_blocks, n_channels * n_kinds), with noise that is already known.

    Blanked samples add to counts what the recent rate says, with `rate_window_ms`, or nothing.
    """
    if blanked is None:
        blanked = np.zeros(samples.shape, dtype=np.bool_)
    x = held(samples.astype(np.float64), blanked)
    n_channels = x.shape[1]
    used = [c for c in range(n_channels) if c not in excluded]
    ends = np.cumsum(blocks)
    columns = []
    for kind in config.features:
        if kind == "crossings":
            k = config.crossings
            clip = config.clip_noise * noise["crossings"]
            y = filtered(x, sampling_frequency, k.low_hz, k.high_hz, k.order)
            y = referenced(y, config.reference, used, clip, blanked)
            dead = max(1, round(k.dead_time_ms * 1e-3 * sampling_frequency))
            level = k.threshold_noise * noise["crossings"] if k.threshold_uv is None else [k.threshold_uv] * n_channels
            counts = np.zeros((len(blocks), n_channels))
            for c in used:
                for i in crossing_samples(y[:, c], level[c], dead, blanked[:, c]):
                    counts[np.searchsorted(ends, i, side="right"), c] += 1
            if rate_window_ms is not None:
                counts = _filled_in(counts, blocks, blanked, rate_window_ms * 1e-3 * sampling_frequency)
            columns.append(counts)
        elif kind == "spiking_band":
            s = config.spiking_band
            y = filtered(x, sampling_frequency, s.low_hz, s.high_hz, s.order)
            clip = config.clip_noise * noise.get("spiking_band", np.ones(n_channels))
            y = referenced(y, config.reference, used, clip, blanked)
            columns.append(_power(y, blanked, blocks, s.window_ms, s.log, sampling_frequency))
        elif kind == "bands":
            b = config.bands
            for low_hz, high_hz in b.ranges_hz:
                y = filtered(x, sampling_frequency, low_hz, high_hz, b.order)
                y = referenced(y, b.reference, used, None, blanked)
                columns.append(_power(y, blanked, blocks, b.window_ms, b.log, sampling_frequency))
        else:
            columns.append(_smoothed_means(x, blanked, blocks, 0.0))
    result = np.stack(columns, axis=2)  # block, channel, kind
    result[:, list(excluded)] = 0.0
    return result.reshape(len(blocks), -1)


def _power(
    y: Floats, blanked: Mask, blocks: Sequence[int], window_ms: float, log: bool, sampling_frequency: float
) -> Floats:
    power = _smoothed_means(y**2, blanked, blocks, window_ms * 1e-3 * sampling_frequency)
    return 10 * np.log10(power) if log else power


def _smoothed_means(values: Floats, blanked: Mask, blocks: Sequence[int], window_samples: float) -> Floats:
    """Means over the clean samples of each block, smoothed; a block without any repeats the one before."""
    ends = np.cumsum(blocks)[:-1]
    result = np.full((len(blocks), values.shape[1]), np.nan)
    for c in range(values.shape[1]):
        level = math.nan
        parts = zip(np.split(values[:, c], ends), np.split(~blanked[:, c], ends), strict=True)
        for block, (part, clean) in enumerate(parts):
            n = int(clean.sum())
            if n:
                keep = math.exp(-n / window_samples) if window_samples > 0 and not math.isnan(level) else 0.0
                level = (keep * level if keep else 0.0) + (1 - keep) * part[clean].mean()
            result[block, c] = level
    return result


def _filled_in(counts: Floats, blocks: Sequence[int], blanked: Mask, window_samples: float) -> Floats:
    """Counts with what the clean samples so far, of the same block too, let expect of the blanked ones."""
    result = counts.copy()
    ends = np.cumsum(blocks)[:-1]
    for c in range(counts.shape[1]):
        crossings = samples = 0.0
        for block, part in enumerate(np.split(blanked[:, c], ends)):
            missed, n = int(part.sum()), int((~part).sum())
            keep = math.exp(-n / window_samples)
            crossings, samples = crossings * keep + counts[block, c], samples * keep + n
            if missed:
                result[block, c] += missed * crossings / samples
    return result


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
