"""Template matching for sparse arrays: find a trough, fit the units that reach it, subtract the best, look again.

Where electrodes hardly share units, few templates are candidates for a trough, and each is fitted in full, by
generalised least squares against noise that is not white in time: ``filter = C^-1 template``, the amplitude
``a = <signal, filter> / <template, filter>`` at every shift of up to 3 samples, and between samples by a parabola
through the products around the best. Without that, units of one electrode are confused more for where their troughs
lie than for noise (0.960 to 0.967 on an array of 96; with C, 0.969).
The unit that takes off most, of those whose amplitude is within their limits, is subtracted from the window, and the
troughs that this uncovers are looked at in turn, until none is left that is not explained or given up.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit, jit_apart
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.events import UNMATCHED, UnitEvents, add_event

SHIFTS = 3
"""How far, in samples, a template is shifted against the trough it is tried on."""
_LOCAL_MS = 0.25  # a trough is the least value of its channel this far around it
_BACK_MS = 0.5  # how far behind the newest troughs that a subtraction uncovers are still looked for
_REFRACTORY_MS = 0.5  # nearer than this, a unit does not fire twice: the second is what a poor fit left of the first
_LONGEST_FRAMES = 64
_MOST_GIVEN_UP = 256
GAIN_RATE = 0.06
"""How amplitudes are followed: by this share of what a spike differs. A sixth of that lost 5 points more to a fading by
a third in 40 s; and amplitudes that vary by 10 % move the gain by no more than 2 %."""
_FLOOR = 0.1  # of the noise's power, white, added before it is inverted
PRIOR = 100.0  # 1 / variance of the amplitudes of a unit: they vary by 10 %

# Entries of SparseState.settings.
_FRAME, _N_BEFORE, _N_SAMPLES, _LOCAL, _BACK, _REFRACTORY, _MOST = range(7)
# Entries of SparseState.numbers.
_RATE, _LOW, _HIGH, _PRIOR = range(4)


class SparseState(NamedTuple):
    """Everything `match_sparse` reads and writes."""

    # fixed at construction
    settings: NDArray[np.int64]
    numbers: NDArray[np.float64]
    n_reached: NDArray[np.int64]  # (n_units,) channels of each
    reached: NDArray[np.int64]  # (n_units, n_most) which
    templates: NDArray[np.float32]  # (n_units, n_most, n_samples)
    filters: NDArray[np.float32]  # the same, whitened in time
    energy: NDArray[np.float64]  # (n_units,) <template, filter>
    limits: NDArray[np.float64]  # (n_units, 2) of the amplitude
    n_candidates: NDArray[np.int64]  # (n_channels,) units that a trough on each may be of
    candidates: NDArray[np.int64]  # (n_channels, most)
    # moving
    given_up: NDArray[np.int64]  # (_MOST_GIVEN_UP, 2) channel and sample of troughs that no unit explains
    n_given_up: NDArray[np.int64]  # (1,)
    last: NDArray[np.int64]  # (n_units,) sample of the last event
    gain: NDArray[np.float64]  # (n_units,) slow change of the amplitude since the sorting
    # scratch
    score: NDArray[np.float64]  # (2 * SHIFTS + 1,)


CHANGING = ("given_up", "n_given_up", "last", "gain")
"""What a checkpoint must hold."""


def window_samples(bundle: Bundle, frame: int) -> int:
    """Return how long a window must be: whole templates around every trough that is looked at."""
    n_before, n_samples = bundle.info.n_before, bundle.templates.shape[1]
    back = round(_BACK_MS * 1e-3 * bundle.info.sampling_frequency)
    local = round(_LOCAL_MS * 1e-3 * bundle.info.sampling_frequency)
    return int(n_before + n_samples + 2 * SHIFTS + 2 * frame + back + local)


def make_sparse(bundle: Bundle | None, frame: int, *, tracking: bool = True) -> SparseState:
    """Allocate the engine for a bundle; without one, of no unit.

    Parameters
    ----------
    bundle : Bundle or None
        Templates, amplitude limits and threshold.
    frame : int
        Samples of a frame.
    tracking : bool
        Whether templates follow slow change of a unit's amplitude: by 1 / 100 of the deviation per spike, and never
        below half or above twice the template of the sorting.
    """
    settings, numbers = np.zeros(7, np.int64), np.zeros(4)
    if bundle is None:
        n_units, n_channels, n_most, n_samples = 0, 0, 1, 1
        supports: list[NDArray[np.int64]] = []
    else:
        templates = bundle.templates
        n_units, n_samples, n_channels = templates.shape
        supports = [np.flatnonzero(np.any(template != 0.0, axis=0)) for template in templates]
        n_most = max([1, *map(len, supports)])
        fs = bundle.info.sampling_frequency
        settings[_FRAME], settings[_N_BEFORE], settings[_N_SAMPLES] = frame, bundle.info.n_before, n_samples
        settings[_LOCAL] = max(1, round(_LOCAL_MS * 1e-3 * fs))
        settings[_BACK] = round(_BACK_MS * 1e-3 * fs)
        settings[_REFRACTORY] = round(_REFRACTORY_MS * 1e-3 * fs)
        settings[_MOST] = _LONGEST_FRAMES
        numbers[_RATE] = GAIN_RATE if tracking else 0.0
        numbers[_LOW], numbers[_HIGH] = 0.5, 2.0
        numbers[_PRIOR] = PRIOR
    reached, stored = np.zeros((n_units, n_most), np.int64), np.zeros((n_units, n_most, n_samples), np.float32)
    near: list[list[int]] = [[] for _ in range(n_channels)]
    for u, support in enumerate(supports):
        assert bundle is not None
        reached[u, : len(support)] = support
        stored[u, : len(support)] = bundle.templates[u][:, support].T
        troughs = bundle.templates[u].min(axis=0)
        for c in support:
            # a trough of the sum of this unit and another may stand where this one alone is not the deepest
            if troughs[c] <= 0.4 * troughs.min():
                near[c].append(u)
    filters = stored if bundle is None else whitened_in_time(stored, bundle.info.autocovariance)
    candidates = np.full((n_channels, max([1, *map(len, near)])), -1, np.int64)
    for c, units in enumerate(near):
        candidates[c, : len(units)] = units
    state = SparseState(
        settings=settings,
        numbers=numbers,
        n_reached=np.array([len(support) for support in supports], np.int64),
        reached=reached,
        templates=stored,
        filters=filters,
        energy=(stored.astype(np.float64) * filters).sum(axis=(1, 2)),
        limits=np.ascontiguousarray(bundle.amplitude_limits) if bundle is not None else np.zeros((0, 2)),
        n_candidates=np.array([len(units) for units in near], np.int64),
        candidates=candidates,
        given_up=np.zeros((_MOST_GIVEN_UP, 2), np.int64),
        n_given_up=np.zeros(1, np.int64),
        last=np.zeros(n_units, np.int64),
        gain=np.zeros(n_units),
        score=np.zeros(2 * SHIFTS + 1),
    )
    reset_sparse(state)
    return state


def whitened_in_time(templates: NDArray[np.float32], autocovariance: Sequence[float]) -> NDArray[np.float32]:
    """Return matched filters: templates, time last, times the inverse of the noise's covariance.

    What no template has, outside the pass band, is lifted by `_FLOOR`, so that it is not amplified.
    """
    n = templates.shape[-1]
    lags = np.zeros(n)
    known = min(n, len(autocovariance))
    lags[:known] = autocovariance[:known]
    lags[0] += _FLOOR
    covariance = lags[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))]
    filters = templates.astype(np.float64) @ np.linalg.inv(covariance)
    return np.ascontiguousarray(filters, dtype=np.float32)


def reset_sparse(state: SparseState) -> None:
    """Back to the state of a new engine: templates as sorted."""
    state.given_up.fill(0)
    state.n_given_up.fill(0)
    state.last.fill(-(1 << 40))
    state.gain.fill(1.0)


@jit_apart
def match_sparse(
    state: SparseState,
    window: NDArray[np.float32],
    end: int,
    present: NDArray[np.float64],
    threshold: NDArray[np.float32],
    first_sample: int,
    events: UnitEvents,
) -> None:
    """Recognise the spikes that the newest frame completes.

    Parameters
    ----------
    state : SparseState
        Changed in place.
    window : ndarray of float32, shape (n_channels, >= end)
        Whitened signal; what is recognised is subtracted from it.
    end : int
        Columns in use; the newest frame is the last of them.
    present : ndarray of float64, shape (>= n_channels,)
        0 where a channel is blanked or masked.
    threshold : ndarray of float32, shape (n_channels,)
        Below which a trough is detected.
    first_sample : int
        Number of the sample in the first column.
    events : UnitEvents
        Gets the events, those of one call in the order in which they were recognised.
    """
    settings = state.settings
    # the newest trough whose template, at any shift, lies within the window
    stop = end - (settings[_N_SAMPLES] - settings[_N_BEFORE]) - SHIFTS + 1
    start = stop - settings[_FRAME] - settings[_BACK]
    events.counters[UNMATCHED] += _forget(state, first_sample + start)
    # each turn explains a trough or gives it up; the bound is far above what a frame can hold
    for _ in range(settings[_MOST]):
        channel, at = _deepest(state, window, present, threshold, start, stop, first_sample)
        if channel < 0:
            return
        if not _explain(state, window, present, channel, at, first_sample, events):
            n = state.n_given_up[0]
            if n == _MOST_GIVEN_UP:
                return
            state.given_up[n, 0] = channel
            state.given_up[n, 1] = first_sample + at
            state.n_given_up[0] = n + 1


@jit
def _deepest(
    state: SparseState,
    window: NDArray[np.float32],
    present: NDArray[np.float64],
    threshold: NDArray[np.float32],
    start: int,
    stop: int,
    first_sample: int,
) -> tuple[int, int]:
    """Return channel and column of the deepest trough that has not been given up; -1 where there is none."""
    local = state.settings[_LOCAL]
    least = np.float32(0.0)
    channel = -1
    at = -1
    for c in range(window.shape[0]):
        if present[c] == 0.0:
            continue
        row = window[c]
        limit = min(least, threshold[c])
        for t in range(start, stop):
            v = row[t]
            if v < limit:
                is_least = not _is_given_up(state, c, first_sample + t)
                for k in range(t - local, t + local + 1):
                    if row[k] < v:
                        is_least = False
                if is_least:
                    least = v
                    limit = v
                    channel = c
                    at = t
    return channel, at


@jit
def _forget(state: SparseState, before: int) -> int:
    """Drop the troughs given up that are too old to be looked at again; return how many they were."""
    kept = 0
    n = state.n_given_up[0]
    for k in range(n):
        if state.given_up[k, 1] >= before:
            state.given_up[kept, 0] = state.given_up[k, 0]
            state.given_up[kept, 1] = state.given_up[k, 1]
            kept += 1
    state.n_given_up[0] = kept
    return n - kept  # type: ignore[no-any-return]


@jit
def _reconsider(state: SparseState, unit: int, start: int) -> None:
    """Give troughs another chance where a template was subtracted from sample `start` on."""
    kept = 0
    for k in range(state.n_given_up[0]):
        channel = state.given_up[k, 0]
        sample = state.given_up[k, 1]
        touched = False
        if start <= sample < start + state.settings[_N_SAMPLES]:
            for i in range(state.n_reached[unit]):
                touched = touched or state.reached[unit, i] == channel
        if not touched:
            state.given_up[kept, 0] = channel
            state.given_up[kept, 1] = sample
            kept += 1
    state.n_given_up[0] = kept


@jit
def _is_given_up(state: SparseState, channel: int, sample: int) -> bool:
    found = False
    for k in range(state.n_given_up[0]):
        found = found or (state.given_up[k, 0] == channel and state.given_up[k, 1] == sample)
    return found


@jit
def _explain(
    state: SparseState,
    window: NDArray[np.float32],
    present: NDArray[np.float64],
    channel: int,
    at: int,
    first_sample: int,
    events: UnitEvents,
) -> bool:
    """Fit all candidates for a trough; subtract the best and tell of it. False where none fits."""
    settings = state.settings
    n_before = settings[_N_BEFORE]
    prior = state.numbers[_PRIOR]
    score = state.score
    best = 0.0
    unit = -1
    shift = 0
    fraction = 0.0
    amplitude = 0.0
    for k in range(state.n_candidates[channel]):
        u = state.candidates[channel, k]
        energy = state.energy[u]
        gain = state.gain[u]
        top = 0
        for s in range(2 * SHIFTS + 1):
            score[s] = _product(state, window, u, at + s - SHIFTS - n_before)
            top = s if score[s] > score[top] else top
        if abs(first_sample + at + top - SHIFTS - state.last[u]) < settings[_REFRACTORY]:
            continue
        product, moved = peak_between(score, top, 2 * SHIFTS + 1)
        a = product / energy
        if a < state.limits[u, 0] * gain or a > state.limits[u, 1] * gain:
            continue
        # log of the posterior, twice, against that of no spike
        taken = product + prior * gain
        evidence = taken * taken / (energy + prior) - prior * gain * gain
        if evidence > best:
            best = evidence
            unit = u
            shift = top - SHIFTS
            fraction = moved
            amplitude = a
    if unit < 0:
        return False
    start = at + shift - n_before
    residual = _subtract(state, window, unit, start, np.float32(amplitude), np.float32(fraction))
    _reconsider(state, unit, first_sample + start)
    sample = first_sample + at + shift
    state.last[unit] = sample
    add_event(events, sample, unit, amplitude, residual)
    # of blanked channels nothing is learnt
    whole = True
    for k in range(state.n_reached[unit]):
        if present[state.reached[unit, k]] == 0.0:
            whole = False
    if whole:
        gain = state.gain[unit] + state.numbers[_RATE] * (amplitude - state.gain[unit])
        state.gain[unit] = min(max(gain, state.numbers[_LOW]), state.numbers[_HIGH])
    return True


@jit
def peak_between(score: NDArray[Any], top: int, n: int) -> tuple[float, float]:
    """Return the peak of a parabola through a largest score, of n, and its neighbours, and how far past it that is."""
    peak = np.float64(score[top])
    fraction = 0.0
    if 0 < top < n - 1:
        before = np.float64(score[top - 1])
        after = np.float64(score[top + 1])
        curvature = before - 2.0 * peak + after
        if curvature < 0.0:
            fraction = min(max(0.5 * (before - after) / curvature, -0.5), 0.5)
            peak += 0.25 * (after - before) * fraction
    return peak, fraction


@jit
def _product(state: SparseState, window: NDArray[np.float32], unit: int, start: int) -> float:
    """Scalar product of a unit's matched filter and the window, in four partial sums whose order is fixed."""
    n = state.settings[_N_SAMPLES]
    total = 0.0
    for k in range(state.n_reached[unit]):
        template = state.filters[unit, k]
        row = window[state.reached[unit, k]]
        s0 = s1 = s2 = s3 = np.float32(0.0)
        whole = n - n % 4
        for t in range(0, whole, 4):
            s0 += template[t] * row[start + t]
            s1 += template[t + 1] * row[start + t + 1]
            s2 += template[t + 2] * row[start + t + 2]
            s3 += template[t + 3] * row[start + t + 3]
        for t in range(whole, n):
            s0 += template[t] * row[start + t]
        total += np.float64((s0 + s1) + (s2 + s3))
    return total


@jit
def _subtract(
    state: SparseState,
    window: NDArray[np.float32],
    unit: int,
    start: int,
    amplitude: np.float32,
    fraction: np.float32,
) -> float:
    """Take a template, later by a fraction of a sample, from the window; return the RMS of what is left.

    The move is a parabola through three samples: with `fraction` within half a sample, off by 1 % of a trough.
    """
    ahead = np.float32(0.5) * amplitude * fraction * (fraction - np.float32(1.0))
    here = amplitude * (np.float32(1.0) - fraction * fraction)
    behind = np.float32(0.5) * amplitude * fraction * (fraction + np.float32(1.0))
    n = state.settings[_N_SAMPLES]
    total = 0.0
    for k in range(state.n_reached[unit]):
        c = state.reached[unit, k]
        template = state.templates[unit, k]
        row = window[c]
        row[start] -= here * template[0] + ahead * template[1]
        for t in range(1, n - 1):
            row[start + t] -= behind * template[t - 1] + here * template[t] + ahead * template[t + 1]
        row[start + n - 1] -= behind * template[n - 2] + here * template[n - 1]
        for t in range(n):
            total += np.float64(row[start + t]) * np.float64(row[start + t])
    return math.sqrt(total / (n * state.n_reached[unit]))
