"""Template matching for dense probes: a bank of matched filters, and greedy peeling in the space of their scores.

Each template is the sum of three products of a shape over channels and a course over time (its best approximation of
rank 3). The *score* of a unit at a sample is the scalar product of its template, laid there, and the whitened signal:
first the sum over channels for each of the three shapes, then a filter over time; both are computed once for each new
frame. From its score ``d`` and its energy ``e`` follow the amplitude of a spike in least squares, ``a = d / e``, and
with a prior of amplitudes about the unit's gain ``g`` (1 as sorted, and slowly followed), of precision ``p``, twice the
log of how much more likely the signal is with the spike than without: ``(d + p g)^2 / (e + p) - p g^2``.

The filter over time whitens what the noise has in common from sample to sample, and a score's peak between samples is
that of a parabola: troughs lie anywhere.

The likeliest spike of all units and samples is taken first. Taking it away changes the scores of every unit that shares
a channel with it by a known course, the cross-correlation of both templates, and its shapes' sums by another, so that
nothing need be filtered again. That goes on until no spike is left. A spike is decided on only when its scores are
known some samples past it: one that begins there, and is likelier, would make it look like what it is not.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit, jit_apart
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.chain import LANES
from neuromod.sorting.events import UNMATCHED, UnitEvents, add_event
from neuromod.sorting.motion import MotionState, learn, make_motion, reset_motion
from neuromod.sorting.sparse import peak_between, whitened_in_time

RANK = 3
PRIOR = 100.0
"""Precision of amplitudes about the gain, in units of the whitened signal's."""
LEAST_GAIN = 40.0
"""Of the log likelihood, twice: below it, noise alone is as good an explanation."""
GAIN_RATE, LEAST_OF_GAIN, MOST_OF_GAIN = 0.02, 0.4, 1.6
"""How amplitudes are followed: by this share of what a spike differs, and how far. Slower than on arrays: while a probe
slips, much that is taken for a spike of a unit is not."""
_AHEAD_MS = 0.27
_BACK_MS = 0.5
_REFRACTORY_MS = 0.5
_MOST = 64  # spikes of one frame; those beyond are decided on with the next

# Entries of DenseState.settings.
_FRAME, _N_BEFORE, _N_SAMPLES, _AHEAD, _BACK, _REFRACTORY, _N_SCORES, _LOCAL, TRACKING = range(9)
# Entries of DenseState.numbers.
_PRIOR, _LEAST, _RATE = range(3)


class DenseState(NamedTuple):
    """Everything `match_dense` reads and writes."""

    # fixed at construction
    settings: NDArray[np.int64]
    numbers: NDArray[np.float64]
    n_reached: NDArray[np.int64]  # (n_units,) channels of each
    reached: NDArray[np.int64]  # (n_units, n_most) which
    shapes: NDArray[np.float32]  # (n_units, RANK, n_most) over channels
    courses: NDArray[np.float32]  # (n_units, RANK, >= n_samples) over time, whitened
    templates: NDArray[np.float32]  # (n_units, n_most, n_samples) their sum, before time was whitened
    energy: NDArray[np.float64]  # (n_units,) <template, filter>
    plain: NDArray[np.float64]  # (n_units,) <template, template>
    limits: NDArray[np.float64]  # (n_units, 2) of the amplitude
    row: NDArray[np.int64]  # (n_units + 1,) where the pairs of each unit begin
    other: NDArray[np.int64]  # (n_pairs,) the unit that shares a channel
    crosses: NDArray[np.float32]  # (n_pairs, 2 n_samples + 1) change of the other's scores, with a 0 at either end
    sums: NDArray[np.float32]  # (n_pairs, RANK, n_samples + 2) change of the other's sums over channels, likewise
    motion: MotionState  # of a probe that slips, where it is followed
    # moving
    sum: NDArray[np.float32]  # (n_units, RANK, n_sums) the signal summed over channels by each shape
    score: NDArray[np.float32]  # (n_units, n_scores)
    last: NDArray[np.int64]  # (n_units,) sample of the last event
    gain: NDArray[np.float64]  # (n_units,) slow change of the amplitude since the sorting
    # scratch
    best: NDArray[np.float64]  # (n_units,) likeliest spike of each unit in the samples at hand
    best_at: NDArray[np.int64]  # (n_units,) where
    blocked: NDArray[np.int64]  # (n_units,) from which score on one that is still to be decided stands in the way


CHANGING = ("sum", "score", "last", "gain")
"""What a checkpoint must hold."""


def window_samples(bundle: Bundle, frame: int) -> int:
    """Return how long a window must be: whole templates around every spike that may be subtracted."""
    fs = bundle.info.sampling_frequency
    ahead, back = round(_AHEAD_MS * 1e-3 * fs), round(_BACK_MS * 1e-3 * fs)
    return int(bundle.templates.shape[1] + ahead + back + 3 * frame)


def make_dense(bundle: Bundle | None, frame: int, *, tracking: bool = True) -> DenseState:
    """Allocate the engine for a bundle; without one, of no unit.

    Parameters
    ----------
    bundle : Bundle or None
        Templates, amplitude limits and threshold.
    frame : int
        Samples of a frame.
    tracking : bool
        Whether templates follow slow change.
    """
    settings, numbers = np.zeros(9, np.int64), np.zeros(3)
    n_units, n_samples, n_channels = bundle.templates.shape if bundle is not None else (0, 1, 0)
    supports: list[NDArray[np.int64]] = []
    if bundle is not None:
        supports = [np.flatnonzero(np.any(template != 0.0, axis=0)) for template in bundle.templates]
        fs = bundle.info.sampling_frequency
        settings[_FRAME], settings[_N_BEFORE], settings[_N_SAMPLES] = frame, bundle.info.n_before, n_samples
        settings[_AHEAD], settings[_BACK] = round(_AHEAD_MS * 1e-3 * fs), round(_BACK_MS * 1e-3 * fs)
        settings[_REFRACTORY] = round(_REFRACTORY_MS * 1e-3 * fs)
        settings[_LOCAL] = round(0.25e-3 * fs)
        # scores of the spikes that may still be decided on
        settings[_N_SCORES] = settings[_AHEAD] + settings[_BACK] + 2 * frame
        settings[TRACKING] = tracking
        numbers[:] = PRIOR, LEAST_GAIN, GAIN_RATE if tracking else 0.0
    n_most = -(-max([1, *map(len, supports)]) // 4) * 4
    n_taps = -(-n_samples // 4) * 4
    reached = np.zeros((n_units, n_most), np.int64)
    shapes = np.zeros((n_units, RANK, n_most), np.float32)
    courses = np.zeros((n_units, RANK, n_taps), np.float32)
    for u, support in enumerate(supports):
        assert bundle is not None
        reached[u, : len(support)] = support
        if len(support):
            left, values, right = np.linalg.svd(bundle.templates[u][:, support].T, full_matrices=False)
            rank = min(RANK, len(values))
            shapes[u, :rank, : len(support)] = (left[:, :rank] * values[:rank]).T
            courses[u, :rank, :n_samples] = right[:rank]
    templates = np.einsum("urc,urt->uct", shapes, courses[..., :n_samples]).astype(np.float32)
    if bundle is not None:
        courses[..., :n_samples] = whitened_in_time(courses[..., :n_samples], bundle.info.autocovariance)
    filters = np.einsum("urc,urt->uct", shapes, courses[..., :n_samples].astype(np.float64))
    row, other = _pairs(supports)
    crosses = np.zeros((len(other), 2 * n_samples + 1), np.float32)
    sums = np.zeros((len(other), RANK, n_samples + 2), np.float32)
    wide = np.zeros((n_channels, n_samples))
    for u in range(n_units):
        wide[:] = 0.0
        wide[supports[u]] = templates[u, : len(supports[u])]
        for k in range(row[u], row[u + 1]):
            v = other[k]
            over_channels = shapes[v, :, : len(supports[v])] @ wide[supports[v]]
            sums[k, :, 1:-1] = over_channels
            crosses[k, 1:-1] = sum(
                np.correlate(over_channels[r], courses[v, r, :n_samples], "full") for r in range(RANK)
            )
    lanes = -(-frame // LANES) * LANES
    n_reached = np.array([len(support) for support in supports], np.int64)
    state = DenseState(
        settings=settings,
        numbers=numbers,
        n_reached=n_reached,
        reached=reached,
        shapes=shapes,
        courses=courses,
        templates=templates,
        energy=(templates * filters).sum(axis=(1, 2)),
        plain=(templates.astype(np.float64) ** 2).sum(axis=(1, 2)),
        limits=np.ascontiguousarray(bundle.amplitude_limits) if bundle is not None else np.zeros((0, 2)),
        row=row,
        other=other,
        crosses=crosses,
        sums=sums,
        motion=make_motion(bundle if tracking else None, frame, reached, n_reached, templates),
        sum=np.zeros((n_units, RANK, n_taps - 1 + lanes), np.float32),
        score=np.zeros((n_units, int(settings[_N_SCORES]) + lanes), np.float32),
        last=np.zeros(n_units, np.int64),
        gain=np.zeros(n_units),
        best=np.zeros(n_units),
        best_at=np.zeros(n_units, np.int64),
        blocked=np.zeros(n_units, np.int64),
    )
    reset_dense(state)
    return state


def _pairs(supports: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units that share a channel with each, itself included."""
    sets = [set(support.tolist()) for support in supports]
    others = [[v for v, theirs in enumerate(sets) if ours & theirs] for ours in sets]
    row = np.concatenate([[0], np.cumsum([len(found) for found in others])]).astype(np.int64)
    return row, np.array([v for found in others for v in found], np.int64)


def reset_dense(state: DenseState) -> None:
    """Back to the state of a new engine."""
    state.sum.fill(0.0)
    state.score.fill(0.0)
    state.last.fill(-(1 << 40))
    state.gain.fill(1.0)
    reset_motion(state.motion)


@jit_apart
def match_dense(
    state: DenseState,
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
    state : DenseState
        Changed in place.
    window : ndarray of float32, shape (n_channels, >= end)
        Whitened signal; what is recognised is subtracted from it.
    end : int
        Columns in use; the newest frame is the last of them.
    present : ndarray of float64, shape (>= n_channels,)
        0 where a channel is blanked or masked.
    threshold : ndarray of float32, shape (n_channels,)
        Below which a trough that no unit explains is counted.
    first_sample : int
        Number of the sample in the first column.
    events : UnitEvents
        Gets the events, those of one call the likeliest first.
    """
    settings = state.settings
    n_scores = settings[_N_SCORES]
    for u in range(state.energy.shape[0]):
        _filter_frame(state, window, end, u)
    # column of the window in which the first score has its trough
    offset = end - (settings[_N_SAMPLES] - settings[_N_BEFORE]) - n_scores + 1
    begin = n_scores - settings[_FRAME] - settings[_AHEAD] - settings[_BACK]
    decided = n_scores - settings[_AHEAD]  # those from here on are known, and not decided on
    for u in range(state.energy.shape[0]):
        state.blocked[u] = n_scores
        _look(state, u, begin, first_sample + offset)
    for _ in range(_MOST):
        unit = -1
        most = state.numbers[_LEAST]
        for u in range(state.energy.shape[0]):
            if state.best[u] > most:
                most = state.best[u]
                unit = u
        if unit < 0:
            break
        at = state.best_at[unit]
        if at >= decided:
            # not to be decided on yet: nothing that may be no more than its echo is, either
            for k in range(state.row[unit], state.row[unit + 1]):
                v = state.other[k]
                state.blocked[v] = min(state.blocked[v], max(begin, at - settings[_N_BEFORE]))
                _look(state, v, begin, first_sample + offset)
            state.best[unit] = 0.0
            continue
        _take(state, window, end, unit, at, offset, first_sample, events)
        for k in range(state.row[unit], state.row[unit + 1]):
            _look(state, state.other[k], begin, first_sample + offset)
    _count_unmatched(state, window, present, threshold, offset + begin, events)


@jit
def _filter_frame(state: DenseState, window: NDArray[np.float32], end: int, u: int) -> None:
    """Shift sums and scores of a unit by a frame, and compute the new ones."""
    settings = state.settings
    frame = settings[_FRAME]
    n_samples = settings[_N_SAMPLES]
    n_scores = settings[_N_SCORES]
    newest = end - frame
    score = state.score[u]
    for t in range(n_scores - frame):
        score[t] = score[t + frame]
    for t in range(n_scores - frame, score.shape[0]):
        score[t] = np.float32(0.0)
    for r in range(RANK):
        sums = state.sum[u, r]
        for t in range(n_samples - 1):
            sums[t] = sums[t + frame]
        for t in range(n_samples - 1, sums.shape[0]):
            sums[t] = np.float32(0.0)
    # Four at a time, so that what they add up to is loaded and stored a quarter as often; and few slices, each of which
    # costs as much as a vector of products.
    shapes = state.shapes[u]
    for first in range(0, frame, LANES):
        begin = newest + first
        put = n_samples - 1 + first
        out0 = state.sum[u, 0, put : put + LANES]
        out1 = state.sum[u, 1, put : put + LANES]
        out2 = state.sum[u, 2, put : put + LANES]
        for k in range(0, state.n_reached[u], 4):
            s0 = window[state.reached[u, k], begin : begin + LANES]
            s1 = window[state.reached[u, k + 1], begin : begin + LANES]
            s2 = window[state.reached[u, k + 2], begin : begin + LANES]
            s3 = window[state.reached[u, k + 3], begin : begin + LANES]
            _add_four(out0, shapes[0, k : k + 4], s0, s1, s2, s3)
            _add_four(out1, shapes[1, k : k + 4], s0, s1, s2, s3)
            _add_four(out2, shapes[2, k : k + 4], s0, s1, s2, s3)
    for r in range(RANK):
        course = state.courses[u, r]
        for first in range(0, frame, LANES):
            out = score[n_scores - frame + first : n_scores - frame + first + LANES]
            for k in range(0, course.shape[0], 4):
                w = course[k : k + 4]
                source = state.sum[u, r, first + k : first + k + LANES + 3]
                w0 = w[0]
                w1 = w[1]
                w2 = w[2]
                w3 = w[3]
                for t in range(out.shape[0]):
                    out[t] += (w0 * source[t] + w1 * source[t + 1]) + (w2 * source[t + 2] + w3 * source[t + 3])
    for t in range(n_scores, score.shape[0]):  # lanes beyond the frame
        score[t] = np.float32(0.0)


@jit
def _add_four(
    out: NDArray[np.float32],
    w: NDArray[np.float32],
    s0: NDArray[np.float32],
    s1: NDArray[np.float32],
    s2: NDArray[np.float32],
    s3: NDArray[np.float32],
) -> None:
    w0 = w[0]
    w1 = w[1]
    w2 = w[2]
    w3 = w[3]
    for t in range(out.shape[0]):  # not a constant: such a loop is unrolled before it could be vectorised
        out[t] += (w0 * s0[t] + w1 * s1[t]) + (w2 * s2[t] + w3 * s3[t])


@jit
def _look(state: DenseState, u: int, begin: int, first: int) -> None:
    """Find the likeliest spike of a unit; `first` is the sample of the first score."""
    energy = state.energy[u]
    prior = state.numbers[_PRIOR]
    gain = state.gain[u]
    low = np.float32(state.limits[u, 0] * gain * energy)
    high = np.float32(state.limits[u, 1] * gain * energy)
    since = state.last[u] + state.settings[_REFRACTORY] - first
    score = state.score[u]
    most = np.float32(0.0)
    at = -1
    for t in range(begin, state.blocked[u]):
        d = score[t]
        if d > most and d >= low and d <= high and (t >= since or t <= since - 2 * state.settings[_REFRACTORY]):
            most = d
            at = t
    state.best[u] = 0.0
    if at >= 0:
        d64 = peak_between(score, at, state.settings[_N_SCORES])[0] + prior * gain
        state.best[u] = d64 * d64 / (energy + prior) - prior * gain * gain
        state.best_at[u] = at


@jit
def _take(
    state: DenseState,
    window: NDArray[np.float32],
    end: int,
    unit: int,
    at: int,
    offset: int,
    first_sample: int,
    events: UnitEvents,
) -> None:
    """Subtract a spike from window, scores and sums, and tell of it."""
    settings = state.settings
    n_samples = settings[_N_SAMPLES]
    n_scores = settings[_N_SCORES]
    product, fraction = peak_between(state.score[unit], at, n_scores)
    amplitude = product / state.energy[unit]
    # a parabola through three samples moves the template to where, between samples, the spike is
    behind = np.float32(0.5 * amplitude * fraction * (fraction + 1.0))
    here = np.float32(amplitude * (1.0 - fraction * fraction))
    ahead = np.float32(0.5 * amplitude * fraction * (fraction - 1.0))
    start = offset + at - settings[_N_BEFORE]
    total = 0.0
    n_reached = state.n_reached[unit]
    for k in range(n_reached):
        row = window[state.reached[unit, k]]
        template = state.templates[unit, k]
        row[start] -= here * template[0] + ahead * template[1]
        for t in range(1, n_samples - 1):
            row[start + t] -= (behind * template[t - 1] + ahead * template[t + 1]) + here * template[t]
        row[start + n_samples - 1] -= behind * template[n_samples - 2] + here * template[n_samples - 1]
        for t in range(n_samples):
            total += np.float64(row[start + t]) * np.float64(row[start + t])
    if settings[TRACKING]:
        learn(
            state.motion, window, state.reached[unit], n_reached, start, unit, amplitude, state.numbers[_PRIOR],
            state.plain[unit], state.gain[unit],
        )  # fmt: skip
    # the sums hold the signal from the window's column `sums_first` on
    sums_first = end - settings[_FRAME] - (n_samples - 1)
    for k in range(state.row[unit], state.row[unit + 1]):
        v = state.other[k]
        cross = state.crosses[k]
        score = state.score[v]
        low = max(0, at - (n_samples - 1))
        high = min(n_scores, at + n_samples)
        for t in range(low, high):
            i = t - at + n_samples
            score[t] -= (behind * cross[i - 1] + ahead * cross[i + 1]) + here * cross[i]
        begin = max(0, sums_first - start)
        for r in range(RANK):
            course = state.sums[k, r]
            sums = state.sum[v, r]
            for t in range(begin, n_samples):
                change = (behind * course[t] + ahead * course[t + 2]) + here * course[t + 1]
                sums[start + t - sums_first] -= change
    gain = state.gain[unit] + state.numbers[_RATE] * (amplitude - state.gain[unit])
    state.gain[unit] = min(max(gain, LEAST_OF_GAIN), MOST_OF_GAIN)
    sample = first_sample + offset + at
    state.last[unit] = sample
    add_event(events, sample, unit, amplitude, math.sqrt(total / (n_samples * n_reached)))


@jit
def _count_unmatched(
    state: DenseState,
    window: NDArray[np.float32],
    present: NDArray[np.float64],
    threshold: NDArray[np.float32],
    begin: int,
    events: UnitEvents,
) -> None:
    """Count troughs of the frame behind all that may still be explained: below threshold, and the least around."""
    local = state.settings[_LOCAL]
    for c in range(window.shape[0]):
        if present[c] == 0.0:
            continue
        row = window[c]
        for t in range(begin - state.settings[_FRAME], begin):
            v = row[t]
            if v < threshold[c]:
                is_least = True
                for k in range(max(0, t - local), t + local + 1):
                    if row[k] < v:
                        is_least = False
                events.counters[UNMATCHED] += is_least
