"""Samples in, features out: the compiled, causal front end that runs inside the loop.

A sample takes as many *paths* as there are kinds of features: filter, common reference, then what the kind does with
it (count crossings, add up power or values). Everything is clocked by samples, one at a time, so that how they were cut
into chunks cannot change a bit. Beside the paths stands the online sorter (`online.py`), with the chain that its
templates were estimated through: it is handed every sample, and adds one feature per unit behind those of channels.

Without a baseline the noise of each channel is measured in the stream itself. The first half of the warm-up, with no
reference, so that a dead channel is silent and a noisy one does not leak into others, finds channels to exclude and
where the clipped mean clips; the second half, run as the session will be, finds the thresholds. Until then features
are NaN: unknown is not zero.

Around each pulse of stimulation the channels that its artefact reaches are *blanked*: they hold their last clean value,
which rings the filters less than any other causal choice that knows no more, and what comes out of the filters then
counts for nothing. The step back to the signal still rings, for a few periods of a band's lower edge.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit
from neuromod.engine.errors import ConfigError
from neuromod.sorting import blanking, noise, reference
from neuromod.sorting.baseline import Baseline
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.config import ArtefactConfig, BlankingConfig, FrontEndConfig
from neuromod.sorting.events import MATCHED, OVERFLOWS, UNMATCHED
from neuromod.sorting.online import Sorter, SorterState, set_clean, take_sample

# What a path does with a sample.
CROSSINGS, POWER, LOG_POWER, RAW = range(4)

# Columns of FrontEndState.paths.
_KIND, _REFERENCE, _HISTOGRAM, _SECTIONS = range(4)

# Entries of FrontEndState.settings.
_N_CHANNELS, _HOLD_SAMPLES, _SECOND_HALF, _BLANKS, _HOLD_RATE, _SORTS = range(6)

# Entries of FrontEndState.counters.
(
    _STARTED,
    _STAGE,
    _STAGE_LEFT,
    _STAGE_SAMPLES,
    _BLOCK_SAMPLES,
    _BLOCKS,
    _LIVE,
    _SAMPLE,  # samples so far: the number of the next
    _REMASK,  # sample at which the set of blanked channels may change
    _TRAINS,  # trains that are pending
    _BLANKED,  # channels that are blanked now
    _TOUCHED,  # whether anything was blanked in the open block
    _WAS_TOUCHED,  # the same of the block closed last
    _BLANKED_SAMPLES,  # since the start, over all channels
    _BLANKED_INSTANTS,  # samples at which any channel was blanked
) = range(15)

# Entries of FrontEndState.limits.
_CLIP_NOISE, _THRESHOLD_NOISE, _THRESHOLD_UV, _DEAD_BELOW, _NOISY_ABOVE, _SATURATION_UV, _FREQUENCY, _RATE_SAMPLES = (
    range(8)
)

# Stages.
_SURVEY, _MEASURE, READY = range(3)

# Why a channel takes no part.
INCLUDED, CONFIGURED, DEAD, NOISY, SATURATED = range(5)
REASONS = ("included", "configured", "dead", "noisy", "saturated")

_PAD = 8
_LARGEST_F32 = float(np.finfo(np.float32).max)
_SATURATED_FRACTION = 0.01
_DENORMAL_GUARD = 1e-60


class FrontEndState(NamedTuple):
    """Everything the kernels read and write; `n_padded` is the number of channels rounded up to a multiple of 8."""

    # fixed at construction
    settings: NDArray[np.int64]
    limits: NDArray[np.float64]
    paths: NDArray[np.int64]  # (n_paths, 4)
    sos: NDArray[np.float64]  # (n_paths, n_sections, 5): b0 b1 b2 a1 a2
    at_rest: NDArray[np.float64]  # (n_paths, n_sections, 2): filter state for a constant input of 1
    window_samples: NDArray[np.float64]  # (n_paths,)
    edges: NDArray[np.float64]  # (BINS + 1,)
    blank_extent: NDArray[np.float64]  # (N_ELECTRODES, 3): us before a pulse, after it, and its delay
    blank_mask: NDArray[np.bool_]  # (N_ELECTRODES, n_padded): channels that the electrode's artefact reaches
    unit_channel: NDArray[np.int64]  # (n_units,) where each is largest
    # frozen after the warm-up
    weight: NDArray[np.float64]  # (n_padded,) 1: takes part
    reason: NDArray[np.int64]  # (n_padded,)
    noise: NDArray[np.float64]  # (n_measured, n_padded)
    clip: NDArray[np.float64]  # (n_paths, n_padded)
    threshold: NDArray[np.float64]  # (n_padded,)
    # moving with every sample or block
    counters: NDArray[np.int64]
    z: NDArray[np.float64]  # (n_paths, n_sections, 2, n_padded)
    hold: NDArray[np.int64]  # (n_padded,) samples until a crossing counts again
    total: NDArray[np.float64]  # (n_paths, n_padded) sums of the block
    smoothed: NDArray[np.float64]  # (n_paths, n_padded)
    saturated: NDArray[np.float64]  # (n_padded,) samples on the rails in this stage
    histogram: NDArray[np.int32]  # (n_measured, n_padded, BINS)
    x: NDArray[np.float64]  # (n_padded,) the sample, and so the value that a blanked channel holds
    trains: NDArray[np.int64]  # (N_TRAINS, 6) see blanking.py
    train_times: NDArray[np.float64]  # (N_TRAINS, 3)
    clean: NDArray[np.float64]  # (n_padded,) 0: blanked
    present: NDArray[np.float64]  # (n_padded,) 1: takes part and is clean
    inverse: NDArray[np.float64]  # (1,) 1 / channels that take part and are clean
    missed: NDArray[np.int64]  # (n_padded,) blanked samples of the block
    recent: NDArray[np.float64]  # (2, n_padded) crossings and clean samples, both forgotten exponentially
    crossed: NDArray[np.float64]  # (n_padded,) crossings since the start, for whoever looks on: nothing goes by them
    unit_recent: NDArray[np.float64]  # (2, n_units) spikes and clean samples, likewise
    sorter: SorterState
    # scratch
    y: NDArray[np.float64]  # (n_padded,)
    scratch: NDArray[np.float64]  # (n_padded,)
    magnitude: NDArray[np.float32]  # (n_padded,)
    magnitude_bits: NDArray[np.int32]  # the same memory


_CHANGING = (
    "weight", "reason", "noise", "clip", "threshold",
    "counters", "z", "hold", "total", "smoothed", "saturated", "histogram",
    "x", "trains", "train_times", "clean", "present", "inverse", "missed", "recent", "crossed", "unit_recent",
)  # fmt: skip


@jit
def push(state: FrontEndState, samples: NDArray[np.float32]) -> None:
    """Take in samples of the current block.

    Parameters
    ----------
    state : FrontEndState
        Changed in place.
    samples : ndarray of float32, shape (n, n_channels), C-contiguous
        Any number of samples, finite, all of one block.
    """
    n_channels = state.settings[_N_CHANNELS]
    x = state.x
    for i in range(samples.shape[0]):
        if state.counters[_SAMPLE] >= state.counters[_REMASK]:
            _remask(state)
        blanked = state.counters[_BLANKED] > 0
        if blanked:
            _take_clean(state, samples[i])
        else:
            for c in range(n_channels):
                x[c] = samples[i, c]
        if state.counters[_STARTED] == 0:
            _rest_at(state)
            # a channel blanked from the first sample on has no value to rest at before it is clean
            state.counters[_STARTED] = 0 if blanked else 1
        for path in range(state.paths.shape[0]):
            _advance(state, path, blanked)
        if state.settings[_SORTS] == 1:
            take_sample(state.sorter, x)
        state.counters[_BLOCK_SAMPLES] += 1
        state.counters[_SAMPLE] += 1
        # a sample of which anything is blanked is no part of the warm-up, which so measures every channel as long
        if state.counters[_STAGE] != READY and not blanked:
            _measure_rails(state)
            state.counters[_STAGE_SAMPLES] += 1
            state.counters[_STAGE_LEFT] -= 1
            if state.counters[_STAGE_LEFT] == 0:
                _next_stage(state)


@jit
def finish_block(state: FrontEndState, features: NDArray[np.float32]) -> None:
    """Write the features of the block that ends here, and start the next.

    Parameters
    ----------
    state : FrontEndState
        Changed in place.
    features : ndarray of float32, shape (n_features,)
        Channel by channel, within a channel kind by kind; then unit by unit. NaN during the warm-up, 0 for excluded
        channels. NaN as well where a channel has been blanked since the start, so that there is no value to hold.
    """
    n_channels = state.settings[_N_CHANNELS]
    n_paths = state.paths.shape[0]
    n_samples = state.counters[_BLOCK_SAMPLES]
    live = state.counters[_LIVE] == 1
    touched = state.counters[_TOUCHED] == 1
    for path in range(n_paths):
        kind = state.paths[path, _KIND]
        total = state.total[path]
        smoothed = state.smoothed[path]
        if kind == CROSSINGS:
            for c in range(n_channels):
                smoothed[c] = total[c]
                state.crossed[c] += total[c]
            if state.settings[_HOLD_RATE] == 1 and live:
                _remember_counts(state, total, n_samples, touched)
                if touched:
                    for c in range(n_channels):
                        if state.missed[c] > 0:  # never clean so far: 0 / 0, not known
                            smoothed[c] += float(state.missed[c]) * (state.recent[0, c] / state.recent[1, c])
        elif touched:
            for c in range(n_channels):
                n_clean = float(n_samples - state.missed[c])
                if n_clean > 0.0:
                    keep = 0.0
                    if state.window_samples[path] > 0.0 and state.counters[_BLOCKS] > 0:
                        keep = math.exp(-n_clean / state.window_samples[path])
                    mean = total[c] / n_clean
                    smoothed[c] = mean if math.isnan(smoothed[c]) else mean + (smoothed[c] - mean) * keep
                elif state.counters[_BLOCKS] == 0:
                    smoothed[c] = np.nan
        elif n_samples > 0:
            keep = 0.0
            if state.window_samples[path] > 0.0 and state.counters[_BLOCKS] > 0:
                keep = math.exp(-float(n_samples) / state.window_samples[path])
            for c in range(n_channels):
                mean = total[c] / float(n_samples)
                smoothed[c] = mean if math.isnan(smoothed[c]) else mean + (smoothed[c] - mean) * keep
        for c in range(n_channels):
            value = smoothed[c]
            if kind == LOG_POWER:
                value = 10.0 * math.log10(max(value, 1e-30))
            if state.weight[c] == 0.0:
                value = 0.0
            known = live and not math.isnan(value)
            value = min(max(value, -_LARGEST_F32), _LARGEST_F32)
            features[c * n_paths + path] = np.float32(value) if known else np.float32(np.nan)
            total[c] = 0.0
    if state.settings[_SORTS] == 1:
        _finish_units(state, features, n_samples, touched, live)
    if n_samples > 0:
        state.counters[_BLOCKS] += 1
    state.counters[_BLOCK_SAMPLES] = 0
    state.counters[_LIVE] = 1 if state.counters[_STAGE] == READY else 0  # a block half warm-up is not one
    state.counters[_WAS_TOUCHED] = state.counters[_TOUCHED]
    if touched:
        state.counters[_TOUCHED] = 0
        for c in range(n_channels):
            state.missed[c] = 0
    _flush_denormals(state)


@jit
def _finish_units(
    state: FrontEndState, features: NDArray[np.float32], n_samples: int, touched: bool, live: bool
) -> None:
    """Write how often each unit fired in the block; blanked samples of its channel as for crossings."""
    counts = state.sorter.events.counts
    first = features.shape[0] - counts.shape[0]
    window = state.limits[_RATE_SAMPLES]
    for u in range(counts.shape[0]):
        value = counts[u]
        counts[u] = 0.0
        if state.settings[_HOLD_RATE] == 1:
            missed = float(state.missed[state.unit_channel[u]]) if touched else 0.0
            n_clean = float(n_samples) - missed
            keep = math.exp(-n_clean / window)
            state.unit_recent[0, u] = state.unit_recent[0, u] * keep + value
            state.unit_recent[1, u] = state.unit_recent[1, u] * keep + n_clean
            if missed > 0.0:  # never clean so far: 0 / 0, not known
                value += missed * (state.unit_recent[0, u] / state.unit_recent[1, u])
        features[first + u] = np.float32(value) if live else np.float32(np.nan)


@jit
def is_ready(state: FrontEndState) -> bool:
    """Whether the warm-up is over, so that the features of the block at hand will be numbers."""
    return state.counters[_LIVE] == 1  # type: ignore[no-any-return]


@jit
def blank(
    state: FrontEndState, electrode: int, start_us: float, pulses: int, period_us: float, pulse_us: float
) -> None:
    """Register a train of stimulation pulses, whose artefacts are to be blanked.

    Between two blocks, as the train is sent. Times count from the instant of the sample that will be pushed next; the
    electrode's delay is added to them. Windows may overlap, within a train and across electrodes.

    Parameters
    ----------
    state : FrontEndState
        Changed in place.
    electrode : int
        From 0 to 31; not checked.
    start_us : float
        Nominal time of the first pulse, in us; 0 for at once.
    pulses : int
        Number of pulses; none is registered where it is below 1.
    period_us : float
        From one pulse to the next, in us.
    pulse_us : float
        Length of one pulse, both phases and what is between them, in us.
    """
    if state.settings[_BLANKS] == 0 or pulses < 1:
        return
    counters = state.counters
    counters[_TRAINS] = blanking.add_train(
        state.trains,
        state.train_times,
        state.blank_extent,
        counters[_TRAINS],
        state.limits[_FREQUENCY],
        electrode,
        counters[_SAMPLE],
        start_us,
        pulses,
        period_us,
        pulse_us,
    )
    counters[_REMASK] = counters[_SAMPLE]


@jit
def skip(state: FrontEndState, n_samples: int) -> None:
    """Let samples go by that the stream lost and nothing stands in for, so that pending trains stay in place."""
    state.counters[_SAMPLE] += n_samples


@jit
def is_blanked(state: FrontEndState) -> bool:
    """Whether anything was blanked in the block that `finish_block` closed last."""
    return state.counters[_WAS_TOUCHED] == 1  # type: ignore[no-any-return]


@jit
def _remask(state: FrontEndState) -> None:
    """Find out which channels are blanked from the sample at hand on, and until when that holds."""
    counters = state.counters
    counters[_TRAINS], counters[_REMASK] = blanking.remask(
        state.trains,
        state.train_times,
        state.blank_extent,
        state.blank_mask,
        state.clean,
        counters[_TRAINS],
        state.limits[_FREQUENCY],
        counters[_SAMPLE],
    )
    _set_present(state)


@jit
def _take_clean(state: FrontEndState, sample: NDArray[np.float32]) -> None:
    """Take the values of clean channels, leave the others at their last, and count."""
    for c in range(sample.shape[0]):
        if state.clean[c] > 0.0:
            state.x[c] = sample[c]
        else:
            state.missed[c] += 1
    state.counters[_TOUCHED] = 1
    state.counters[_BLANKED_SAMPLES] += state.counters[_BLANKED]
    state.counters[_BLANKED_INSTANTS] += 1


@jit
def _remember_counts(state: FrontEndState, total: NDArray[np.float64], n_samples: int, touched: bool) -> None:
    """Update the recent rate, which stands in for blanked samples, with the clean samples of a block.

    Crossings and samples are forgotten alike, in clean time: their ratio has no bias from the first block on.
    """
    window = state.limits[_RATE_SAMPLES]
    keep = math.exp(-float(n_samples) / window)
    n_clean = float(n_samples)
    for c in range(state.settings[_N_CHANNELS]):
        if touched:
            n_clean = float(n_samples - state.missed[c])
            keep = math.exp(-n_clean / window)
        state.recent[0, c] = state.recent[0, c] * keep + total[c]
        state.recent[1, c] = state.recent[1, c] * keep + n_clean


@jit
def _rest_at(state: FrontEndState) -> None:
    """Filters in the state they would have, had the first sample stood for ever: no step response to an offset."""
    for path in range(state.paths.shape[0]):
        for s in range(state.paths[path, _SECTIONS]):
            for k in range(2):
                for c in range(state.x.shape[0]):
                    state.z[path, s, k, c] = state.at_rest[path, s, k] * state.x[c]


@jit
def _advance(state: FrontEndState, path: int, blanked: bool) -> None:
    """Take one sample of all channels through one path."""
    y = state.y
    x = state.x
    n = y.shape[0]
    for c in range(n):
        y[c] = x[c]
    for s in range(state.paths[path, _SECTIONS]):
        _filter(y, state.z[path, s, 0], state.z[path, s, 1], state.sos[path, s])

    common = 0.0
    kind = state.paths[path, _REFERENCE]
    if state.counters[_STAGE] == _SURVEY:
        kind = reference.NONE
    if kind == reference.CLIPPED_MEAN:
        common = reference.clipped_mean(y, state.present, state.inverse[0], state.clip[path], state.scratch)
    elif kind == reference.MEAN:
        common = reference.mean(y, state.present, state.inverse[0])
    elif kind == reference.MEDIAN:
        common = reference.median(y, state.present, state.scratch, state.settings[_N_CHANNELS])

    row = state.paths[path, _HISTOGRAM]
    if row >= 0 and state.counters[_STAGE] != READY and not blanked:
        for c in range(n):
            size = abs(y[c] - common)
            state.magnitude[c] = size if size < 1e30 else 1e30
        noise.add_magnitudes(state.histogram[row], state.magnitude_bits, state.settings[_N_CHANNELS])

    kind = state.paths[path, _KIND]
    if blanked:
        _silence(state, common, kind)
    total = state.total[path]
    if kind == CROSSINGS:
        _count_crossings(y, common, state.threshold, state.hold, total, state.settings[_HOLD_SAMPLES])
    elif kind == RAW:
        for c in range(n):
            total[c] += y[c] - common
    else:
        for c in range(n):
            total[c] += (y[c] - common) * (y[c] - common)


@jit
def _silence(state: FrontEndState, common: float, kind: int) -> None:
    """Put blanked channels where they add nothing: on the reference, which is above any threshold.

    A way down that began in the blank is none: the first clean sample finds `hold` at 1, as if it had been below.
    """
    for c in range(state.settings[_N_CHANNELS]):
        if state.clean[c] == 0.0:
            state.y[c] = common
            if kind == CROSSINGS and state.hold[c] < 2:  # counted down by one at this very sample
                state.hold[c] = 2


@jit
def _filter(y: NDArray[np.float64], z0: NDArray[np.float64], z1: NDArray[np.float64], sos: NDArray[np.float64]) -> None:
    """One second-order section, transposed direct form II, on one sample of all channels."""
    b0 = sos[0]
    b1 = sos[1]
    b2 = sos[2]
    a1 = sos[3]
    a2 = sos[4]
    for c in range(y.shape[0]):
        v = y[c]
        out = b0 * v + z0[c]
        z0[c] = b1 * v - a1 * out + z1[c]
        z1[c] = b2 * v - a2 * out
        y[c] = out


@jit
def _count_crossings(
    y: NDArray[np.float64],
    common: float,
    threshold: NDArray[np.float64],
    hold: NDArray[np.int64],
    total: NDArray[np.float64],
    hold_samples: int,
) -> None:
    """Count the channels that came down through their threshold.

    `hold` counts down the dead time and then stays at 1 while the signal is still below: a crossing needs a way down.
    """
    for c in range(y.shape[0]):
        below = 1 if y[c] - common < threshold[c] else 0
        held = hold[c]
        left = held - 1 if held > 0 else 0
        left = left if left > below else below
        crossed = below == 1 and held == 0
        total[c] += 1.0 if crossed else 0.0
        hold[c] = hold_samples if crossed else left


@jit
def _measure_rails(state: FrontEndState) -> None:
    rail = state.limits[_SATURATION_UV]
    if rail > 0.0:
        for c in range(state.settings[_N_CHANNELS]):
            if abs(state.x[c]) >= rail:
                state.saturated[c] += 1.0


@jit
def _next_stage(state: FrontEndState) -> None:
    """Turn what a stage of the warm-up saw into noise, exclusions, clipping and thresholds."""
    n_channels = state.settings[_N_CHANNELS]
    for row in range(state.noise.shape[0]):
        for c in range(n_channels):
            median = noise.median_of(state.histogram[row, c], state.edges)
            state.noise[row, c] = median / noise.MAD_OF_UNIT_NOISE
    _exclude(state)
    measured = state.counters[_STAGE] == _MEASURE
    _set_levels(state, measured)
    for row in range(state.histogram.shape[0]):
        for c in range(n_channels):
            for i in range(noise.BINS):
                state.histogram[row, c, i] = 0
    for c in range(n_channels):
        state.saturated[c] = 0.0
    state.counters[_STAGE] += 1
    state.counters[_STAGE_SAMPLES] = 0
    state.counters[_STAGE_LEFT] = state.settings[_SECOND_HALF] if state.counters[_STAGE] == _MEASURE else 0


@jit
def _exclude(state: FrontEndState) -> None:
    """Judge channels by the first measured path against the median of those that still take part."""
    n_channels = state.settings[_N_CHANNELS]
    measured = state.noise[0]
    typical = reference.median(measured, state.weight, state.scratch, n_channels)
    allowed = _SATURATED_FRACTION * float(state.counters[_STAGE_SAMPLES])
    for c in range(n_channels):
        if state.reason[c] != INCLUDED:
            continue
        if state.limits[_SATURATION_UV] > 0.0 and state.saturated[c] > allowed:
            state.reason[c] = SATURATED
        elif measured[c] <= 0.0 or measured[c] < state.limits[_DEAD_BELOW] * typical:
            state.reason[c] = DEAD
        elif typical > 0.0 and measured[c] > state.limits[_NOISY_ABOVE] * typical:
            state.reason[c] = NOISY
    _set_weights(state)


@jit
def _set_weights(state: FrontEndState) -> None:
    for c in range(state.settings[_N_CHANNELS]):
        state.weight[c] = 1.0 if state.reason[c] == INCLUDED else 0.0
    _set_present(state)


@jit
def _set_present(state: FrontEndState) -> None:
    """Say which channels make up the reference, and how many are blanked."""
    n = 0.0
    blanked = 0
    for c in range(state.settings[_N_CHANNELS]):
        state.present[c] = state.weight[c] * state.clean[c]
        n += state.present[c]
        blanked += state.clean[c] == 0.0
    state.inverse[0] = 1.0 / n if n > 0.0 else 0.0
    state.counters[_BLANKED] = blanked
    if state.settings[_SORTS] == 1:
        set_clean(state.sorter, state.present)


@jit
def _set_levels(state: FrontEndState, with_thresholds: bool) -> None:
    """Set clipping, and thresholds where wanted, from noise and exclusions."""
    for path in range(state.paths.shape[0]):
        row = state.paths[path, _HISTOGRAM]
        for c in range(state.settings[_N_CHANNELS]):
            if row >= 0:
                state.clip[path, c] = state.limits[_CLIP_NOISE] * state.noise[row, c]
            if state.paths[path, _KIND] == CROSSINGS and with_thresholds:
                level = state.limits[_THRESHOLD_UV]
                if level == 0.0:
                    level = state.limits[_THRESHOLD_NOISE] * state.noise[row, c]
                state.threshold[c] = level if state.weight[c] > 0.0 else -np.inf


@jit
def _flush_denormals(state: FrontEndState) -> None:
    """Zero what is left of filter states after a silence.

    Subnormal numbers cost up to a hundred times a normal operation; 1e-60 is far below anything a float32 feature
    can show, and far enough above 1e-308 that no block is long enough to decay into them.
    """
    z = state.z
    for path in range(z.shape[0]):
        for s in range(z.shape[1]):
            for k in range(2):
                for c in range(z.shape[3]):
                    if abs(z[path, s, k, c]) < _DENORMAL_GUARD:
                        z[path, s, k, c] = 0.0


class Blanked(NamedTuple):
    """How much was blanked since the start."""

    samples: int
    """Over all channels."""
    instants: int
    """At which any channel was blanked."""


class FrontEnd:
    """The front end of one stream: checks its configuration, owns its state, warms its kernels.

    Parameters
    ----------
    config : FrontEndConfig
        What to compute.
    n_channels : int
        Channels of a sample.
    sampling_frequency : float
        Samples per second.
    channel_names : sequence of str, optional
        Default ``ch1``, ``ch2``, ...
    baseline : Baseline, optional
        Frozen noise and exclusions; without one they are measured in the first `warmup_s` seconds of the stream, where
        anything needs them.
    artefacts : ArtefactConfig, optional
        What `blank` does; nothing without.
    electrode_names : sequence of str, optional
        Electrodes that can be stimulated, at most 32, for `artefacts` to name.

    Raises
    ------
    ConfigError
        The configuration cannot work on such a stream, or the baseline is not one of such a stream.

    Notes
    -----
    A crossing is counted at the first sample below threshold, and needs the signal to have come back above before the
    next. Power is the mean square over the block, smoothed by an exponential of `window_ms`. Reference channels and
    noise are those of the filtered signal.
    """

    def __init__(
        self,
        config: FrontEndConfig,
        n_channels: int,
        sampling_frequency: float,
        channel_names: Sequence[str] | None = None,
        baseline: Baseline | None = None,
        *,
        artefacts: ArtefactConfig | None = None,
        electrode_names: Sequence[str] = (),
    ) -> None:
        names = tuple(channel_names) if channel_names is not None else default_names(n_channels)
        if n_channels < 1 or len(names) != n_channels:
            raise ConfigError(f"{len(names)} channel names for {n_channels} channels; at least 1, and one name each")
        if not (math.isfinite(sampling_frequency) and sampling_frequency > 0):
            raise ConfigError(f"sampling frequency {sampling_frequency} Hz; a positive number expected")
        self.config = config
        self.n_channels = n_channels
        self.sampling_frequency = float(sampling_frequency)
        self.channel_names = names
        self.artefacts = artefacts
        self._configured = _excluded_indices(config, names)
        n_left = n_channels - len(self._configured)
        self._paths = _paths(config, self.sampling_frequency, n_left)
        self.bundle: Bundle | None = None
        if "units" in config.kinds(self.sampling_frequency):
            assert config.units.bundle is not None  # FrontEndConfig saw to it
            self.bundle = Bundle.load(config.units.bundle)
            self.bundle.check_stream(self.sampling_frequency, names)
        self._sorter = Sorter(self.bundle, engine=config.units.engine, tracking=config.units.tracking)
        self._baseline = baseline
        if baseline is not None:
            baseline.check_stream(self.sampling_frequency, names)
            baseline.check_front_end(config)
            for path in self._paths:
                if path.is_measured and len(baseline.noise.get(path.name, ())) != n_channels:
                    raise ConfigError(
                        f'the baseline of "{baseline.stream_name}" holds no noise of {path.name} for {n_channels} '
                        "channels; measure it again with `neuromod baseline`"
                    )
        self.state = _allocate(config, self._paths, n_channels, self.sampling_frequency, self._sorter, self.bundle)
        if artefacts is not None:
            _set_blanking(self.state, artefacts, names, tuple(electrode_names), self.sampling_frequency)
        self.reset()
        self._warm()

    @property
    def n_features(self) -> int:
        """Length of a feature vector: channels times kinds, and units."""
        return self.n_channels * len(self._paths) + len(self.unit_ids)

    @property
    def unit_ids(self) -> tuple[str, ...]:
        """Ids of the sorted units; none where the loop does not sort."""
        return self.bundle.unit_ids if self.bundle is not None else ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """``channel.kind`` of each feature, channel by channel; then the ids of units."""
        return (*(f"{name}.{path.name}" for name in self.channel_names for path in self._paths), *self.unit_ids)

    @property
    def is_ready(self) -> bool:
        """Whether thresholds are known and features are numbers."""
        return bool(self.state.counters[_LIVE])

    @property
    def excluded(self) -> dict[str, str]:
        """Channels that take no part, and why: configured, dead, noisy or saturated."""
        return {
            name: REASONS[code]
            for name, code in zip(self.channel_names, self.state.reason[: self.n_channels].tolist(), strict=True)
            if code != INCLUDED
        }

    @property
    def noise(self) -> dict[str, NDArray[np.float64]]:
        """Standard deviation of the noise by path (`crossings`, ...), where measured, in units of the stream."""
        rows = [path for path in self._paths if path.is_measured]
        return {path.name: self.state.noise[i, : self.n_channels].copy() for i, path in enumerate(rows)}

    @property
    def threshold(self) -> NDArray[np.float64]:
        """Threshold of each channel in units of the stream; -inf where nothing can cross."""
        return self.state.threshold[: self.n_channels].copy()

    @property
    def crossings(self) -> NDArray[np.float64] | None:
        """Crossings of each channel since the start, as counted; None where the front end looks for none."""
        has_any = any(path.kind == CROSSINGS for path in self._paths)
        return self.state.crossed[: self.n_channels].copy() if has_any else None

    @property
    def blanked(self) -> Blanked:
        """Samples that stimulation artefacts have cost since the start."""
        counters = self.state.counters
        return Blanked(int(counters[_BLANKED_SAMPLES]), int(counters[_BLANKED_INSTANTS]))

    def describe_units(self) -> dict[str, object]:
        """Say how the online sorter fares; nothing where the loop does not sort."""
        if self.bundle is None:
            return {}
        counters = self.state.sorter.events.counters
        return {
            "sorting": self.bundle.info.name,
            "engine": self._sorter.engine,
            "tracking": self.config.units.tracking,
            "ids": list(self.unit_ids),
            "spikes": int(counters[MATCHED]),
            "unmatched": int(counters[UNMATCHED]),
            "overflows": int(counters[OVERFLOWS]),
            "masked": self._sorter.masked,
        }

    def parts(self) -> list[NDArray[Any]]:
        """Return the arrays that change with the signal, and those that configuration alone makes, for a checkpoint.

        Templates and whitening are left out: they are the sorting's, and large. So is what nothing goes by.
        """
        left_out = ("sorter", "crossed")
        return [part for name, part in self.state._asdict().items() if name not in left_out] + self._sorter.changing()

    def reset(self) -> None:
        """Back to the state of a new front end, warm-up included."""
        state = self.state
        for name in _CHANGING:
            getattr(state, name).fill(0)
        state.clean.fill(1)
        for c in self._configured:
            state.reason[c] = CONFIGURED
        self._sorter.reset()
        state.clip.fill(np.inf)
        state.threshold.fill(-np.inf)
        if self._baseline is not None:
            for c, name in enumerate(self.channel_names):
                if name in self._baseline.excluded:
                    state.reason[c] = REASONS.index(self._baseline.excluded[name])
            for row, path in enumerate(path for path in self._paths if path.is_measured):
                state.noise[row, : self.n_channels] = self._baseline.noise[path.name]
        _set_weights(state)
        needs_warmup = self._baseline is None and any(path.is_measured for path in self._paths)
        if needs_warmup:
            samples = max(2, round(self.config.warmup_s * self.sampling_frequency))
            state.settings[_SECOND_HALF] = samples - samples // 2
            state.counters[_STAGE] = _SURVEY
            state.counters[_STAGE_LEFT] = samples // 2
        else:
            _set_levels(state, True)
            state.counters[_STAGE] = READY
            state.counters[_LIVE] = 1

    def _warm(self) -> None:
        """Compile, or load from the disk cache, before anything is live."""
        push(self.state, np.empty((0, self.n_channels), dtype=np.float32))
        finish_block(self.state, np.empty(self.n_features, dtype=np.float32))
        is_ready(self.state)
        is_blanked(self.state)
        blank(self.state, 0, 0.0, 0, 0.0, 0.0)
        self.reset()


class _Path(NamedTuple):
    """One kind of feature: how it is filtered, referenced and summed up."""

    name: str
    kind: int
    reference: int
    sos: NDArray[np.float64]
    window_ms: float
    is_measured: bool


def default_names(n_channels: int) -> tuple[str, ...]:
    """``ch1``, ``ch2``, ..."""
    return tuple(f"ch{i + 1}" for i in range(n_channels))


def band_pass(low_hz: float, high_hz: float, order: int, sampling_frequency: float, key: str) -> NDArray[np.float64]:
    """Second-order sections of a Butterworth band-pass, shape (order, 6).

    Raises
    ------
    ConfigError
        The band does not fit below half the sampling frequency; says which key to change to what.
    """
    nyquist = 0.5 * sampling_frequency
    if low_hz >= nyquist:
        raise ConfigError(
            f"front_end.{key}: {low_hz:g} to {high_hz:g} Hz lies above {nyquist:g} Hz, half of the stream's "
            f"{sampling_frequency:g} Hz; choose a lower band, or for slow signals "
            'front_end.features = ["bands"] or ["raw"]'
        )
    if high_hz >= nyquist:
        raise ConfigError(
            f"front_end.{key}: the upper edge {high_hz:g} Hz must lie below {nyquist:g} Hz, half of the stream's "
            f"{sampling_frequency:g} Hz; set it to {0.9 * nyquist:g} or less"
        )
    import scipy.signal  # takes longer to import than all else here, and streams of features need no filter

    sos: NDArray[np.float64] = scipy.signal.butter(
        order, [low_hz, high_hz], btype="bandpass", fs=sampling_frequency, output="sos"
    )
    if not (np.all(np.isfinite(sos)) and np.all(np.abs(sos[:, 5]) < 1.0)):
        raise ConfigError(
            f"front_end.{key}: {low_hz:g} to {high_hz:g} Hz is too narrow for a filter at {sampling_frequency:g} Hz; "
            "widen the band or lower its order"
        )
    return sos


def _at_rest(sos: NDArray[np.float64]) -> NDArray[np.float64]:
    """State of each section, shape (n_sections, 2), for a constant input of 1."""
    states = np.zeros((sos.shape[0], 2))
    level = 1.0
    for state, (b0, b1, b2, _, a1, a2) in zip(states, sos, strict=True):
        out = level * (b0 + b1 + b2) / (1.0 + a1 + a2)
        state[1] = b2 * level - a2 * out
        state[0] = b1 * level - a1 * out + state[1]
        level = out
    return states


def _paths(config: FrontEndConfig, sampling_frequency: float, n_included: int) -> list[_Path]:
    main, kinds = config.reference, config.kinds(sampling_frequency)
    if main == "auto":
        main = "clipped-mean" if n_included >= 16 else "none"
    uses_main = bool({"crossings", "spiking_band"} & set(kinds))
    for key, kind, used in (
        ("reference", main, uses_main),
        ("bands.reference", config.bands.reference, "bands" in kinds),
    ):
        if used and kind != "none" and n_included < 2:
            raise ConfigError(
                f'front_end.{key} = "{kind}" on {n_included} channel(s) would leave nothing of the signal; '
                'it takes at least 2 channels: set it to "none"'
            )
    code = reference.CODES[main]
    paths: list[_Path] = []
    for feature in kinds:
        if feature == "crossings":
            c = config.crossings
            sos = band_pass(c.low_hz, c.high_hz, c.order, sampling_frequency, "crossings")
            measured = c.threshold_uv is None or main == "clipped-mean"
            paths.append(_Path("crossings", CROSSINGS, code, sos, 0.0, measured))
        elif feature == "spiking_band":
            s = config.spiking_band
            sos = band_pass(s.low_hz, s.high_hz, s.order, sampling_frequency, "spiking_band")
            power = LOG_POWER if s.log else POWER
            paths.append(_Path("spiking_band", power, code, sos, s.window_ms, main == "clipped-mean"))
        elif feature == "units":
            continue  # the sorter has a chain of its own
        elif feature == "bands":
            b = config.bands
            power = LOG_POWER if b.log else POWER
            own = reference.CODES[b.reference]
            for low_hz, high_hz in b.ranges_hz:
                sos = band_pass(low_hz, high_hz, b.order, sampling_frequency, "bands.ranges_hz")
                name = f"{low_hz:g}-{high_hz:g}Hz"
                paths.append(_Path(name, power, own, sos, b.window_ms, b.reference == "clipped-mean"))
        else:
            paths.append(_Path("raw", RAW, reference.NONE, np.empty((0, 6)), 0.0, False))
    return paths


def _excluded_indices(config: FrontEndConfig, names: tuple[str, ...]) -> tuple[int, ...]:
    found = _channel_indices("front_end.exclude_channels", config.exclude_channels, names)
    if len(found) == len(names):
        raise ConfigError("front_end.exclude_channels excludes every channel of the stream; leave at least one")
    return found


def _channel_indices(key: str, channels: Sequence[str | int], names: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of channels given by name or number, ascending."""
    found = []
    for channel in channels:
        if isinstance(channel, int):
            if not 0 <= channel < len(names):
                raise ConfigError(f"{key}: there is no channel {channel}; the stream has 0 to {len(names) - 1}")
            found.append(channel)
        elif channel in names:
            found.append(names.index(channel))
        else:
            raise ConfigError(
                f'{key}: the stream has no channel "{channel}"; it has {", ".join(names[:8])}'
                + (", ..." if len(names) > 8 else "")
            )
    return tuple(sorted(set(found)))


def _set_blanking(
    state: FrontEndState,
    config: ArtefactConfig,
    names: tuple[str, ...],
    electrodes: tuple[str, ...],
    sampling_frequency: float,
) -> None:
    """Fill in what each electrode's pulses blank."""
    state.settings[_BLANKS] = 1
    state.settings[_HOLD_RATE] = int(config.crossings == "hold_rate")
    state.limits[_RATE_SAMPLES] = config.rate_window_ms * 1e-3 * sampling_frequency
    given: dict[int, tuple[str, BlankingConfig]] = {}
    for i, entry in enumerate(config.electrodes):
        key = f"artefacts.electrodes[{i}]"
        if isinstance(entry.electrode, int):
            number = entry.electrode
        elif entry.electrode in electrodes:
            number = electrodes.index(entry.electrode)
        else:
            raise ConfigError(
                f'{key}: there is no electrode "{entry.electrode}"; there are {", ".join(electrodes) or "none"}'
            )
        n_electrodes = len(electrodes) or blanking.N_ELECTRODES
        if not 0 <= number < n_electrodes:
            raise ConfigError(f"{key}: there is no electrode {number}; there are 0 to {n_electrodes - 1}")
        if number in given:
            raise ConfigError(f"{key}: electrode {entry.electrode} is there twice; leave one entry")
        given[number] = key, entry
    for number in range(blanking.N_ELECTRODES):
        key, windows = given.get(number, ("artefacts", config))
        state.blank_extent[number] = windows.lead_us, windows.blank_us, windows.delay_us
        if windows.channels == "all":
            state.blank_mask[number, : len(names)] = True
        else:
            state.blank_mask[number, list(_channel_indices(f"{key}.channels", windows.channels, names))] = True


def _allocate(
    config: FrontEndConfig,
    paths: list[_Path],
    n_channels: int,
    sampling_frequency: float,
    sorter: Sorter,
    bundle: Bundle | None,
) -> FrontEndState:
    n_padded = -(-n_channels // _PAD) * _PAD
    n_paths = len(paths)
    n_sections = max([1, *(path.sos.shape[0] for path in paths)])
    rows = [path.is_measured for path in paths]
    n_measured = sum(rows)

    settings = np.zeros(6, dtype=np.int64)
    settings[_N_CHANNELS] = n_channels
    settings[_SORTS] = bundle is not None
    names = bundle.info.channel_names if bundle is not None else ()
    unit_channel = [names.index(unit.channel) for unit in bundle.info.units] if bundle is not None else []
    dead_samples = round(config.crossings.dead_time_ms * 1e-3 * sampling_frequency)
    settings[_HOLD_SAMPLES] = max(1, dead_samples - 1)  # samples between two crossings that are `dead_samples` apart
    limits = np.zeros(8)
    limits[_CLIP_NOISE] = config.clip_noise
    limits[_THRESHOLD_NOISE] = config.crossings.threshold_noise
    limits[_THRESHOLD_UV] = config.crossings.threshold_uv or 0.0
    limits[_DEAD_BELOW] = config.dead_below
    limits[_NOISY_ABOVE] = config.noisy_above
    limits[_SATURATION_UV] = config.saturation_uv or 0.0
    limits[_FREQUENCY] = sampling_frequency
    limits[_RATE_SAMPLES] = np.inf
    table = np.zeros((n_paths, 4), dtype=np.int64)
    sos = np.zeros((n_paths, n_sections, 5))
    at_rest = np.zeros((n_paths, n_sections, 2))
    for i, path in enumerate(paths):
        n = path.sos.shape[0]
        table[i] = path.kind, path.reference, sum(rows[:i]) if path.is_measured else -1, n
        if n:
            sos[i, :n] = path.sos[:, [0, 1, 2, 4, 5]]
            at_rest[i, :n] = _at_rest(path.sos)
    magnitude = np.zeros(n_padded, dtype=np.float32)
    return FrontEndState(
        settings=settings,
        limits=limits,
        paths=table,
        sos=sos,
        at_rest=at_rest,
        window_samples=np.array([path.window_ms * 1e-3 * sampling_frequency for path in paths]),
        edges=noise.bin_edges(),
        blank_extent=np.zeros((blanking.N_ELECTRODES, blanking.EXTENT_COLUMNS)),
        blank_mask=np.zeros((blanking.N_ELECTRODES, n_padded), dtype=np.bool_),
        unit_channel=np.array(unit_channel, dtype=np.int64),
        weight=np.zeros(n_padded),
        reason=np.zeros(n_padded, dtype=np.int64),
        noise=np.zeros((n_measured, n_padded)),
        clip=np.zeros((n_paths, n_padded)),
        threshold=np.zeros(n_padded),
        counters=np.zeros(15, dtype=np.int64),
        z=np.zeros((n_paths, n_sections, 2, n_padded)),
        hold=np.zeros(n_padded, dtype=np.int64),
        total=np.zeros((n_paths, n_padded)),
        smoothed=np.zeros((n_paths, n_padded)),
        saturated=np.zeros(n_padded),
        histogram=np.zeros((n_measured, n_padded, noise.BINS), dtype=np.int32),
        x=np.zeros(n_padded),
        trains=np.zeros((blanking.N_TRAINS, blanking.TRAIN_COLUMNS), dtype=np.int64),
        train_times=np.zeros((blanking.N_TRAINS, blanking.TIME_COLUMNS)),
        clean=np.zeros(n_padded),
        present=np.zeros(n_padded),
        inverse=np.zeros(1),
        missed=np.zeros(n_padded, dtype=np.int64),
        recent=np.zeros((2, n_padded)),
        crossed=np.zeros(n_padded),
        unit_recent=np.zeros((2, len(unit_channel))),
        sorter=sorter.state,
        y=np.zeros(n_padded),
        scratch=np.zeros(n_padded),
        magnitude=magnitude,
        magnitude_bits=magnitude.view(np.int32),
    )
