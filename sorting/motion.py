"""Following a probe that slips along its axis: the signal is moved back under the templates.

The chain whitens ``z = W y``. Where tissue has moved by ``d`` against the probe, ``z = W K(d) y``, in which ``K(d)``
interpolates over channels what each would have seen had nothing moved (kriging with an exponential kernel, as motion is
corrected offline [1]_). Both matrices together are another whitening of as few terms, so following costs nothing; and
templates, their energies and cross-correlations stay as they are.

How far it has moved is told by the spikes of all units: each is laid against its template moved by some distances
either way, too, and twice the log of how much likelier that makes it is summed, never below 0 (Page's cumulative sum
[2]_, which is quick to see a change however long there was none). Once a sum is large, the signal is moved by half of
its distance, and all begin anew. A derivative would not do: a whitened template is narrow, and tells of a step as far
as a row of sites by its wrong side.

References
----------
.. [1] Garcia, Windolf, Boussard, Dichter, Buccino & Yger (2024), A modular implementation to handle and benchmark drift
   correction for high-density extracellular recordings, eNeuro 11.
.. [2] Page (1954), Continuous inspection schemes, Biometrika 41, 100-115.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit
from neuromod.sorting.bundle import Bundle

STEP_UM = 2.0
MOST_UM = 60.0
N_STEPS = 2 * round(MOST_UM / STEP_UM) + 1
"""Displacements that are tabled, from -60 to 60 um; the middle is none."""
_KERNEL_UM = 50.0
_NEAREST = 12
_TERMS = 16
_RIDGE = 0.01

DISTANCES_UM = (-24.0, -12.0, -4.0, 4.0, 12.0, 24.0)
"""That templates are moved by, to be compared."""

_EVERY_S = 0.1
_MOST_OF_A_SPIKE = 10.0
_SURE = 60.0  # twice a log likelihood ratio: much, because spikes that overlap are not chance

# Entries of MotionState.place.
AT, _FRAMES, _EVERY = range(3)


class MotionState(NamedTuple):
    """Where the probe is believed to be."""

    neighbour: NDArray[np.int64]  # (N_STEPS, n_terms) channels that each whitened channel is made of
    weight: NDArray[np.float32]  # (N_STEPS, n_terms)
    moved: NDArray[np.float32]  # (n_units, n_distances, n_most, n_samples) templates, moved
    overlap: NDArray[np.float64]  # (n_units, n_distances) scalar product of each with where it came from
    energy: NDArray[np.float64]  # (n_units, n_distances) and with itself
    steps: NDArray[np.int64]  # (n_distances,) half of each distance, in steps
    total: NDArray[np.float32]  # (n_samples,) scratch
    place: NDArray[np.int64]  # step, frames since it was last judged, frames between two judgements
    gain: NDArray[np.float64]  # (n_distances,) the sums


CHANGING = ("place", "gain")


def make_motion(bundle: Bundle | None, frame: int, reached: NDArray[np.int64], n_reached: NDArray[np.int64],
                templates: NDArray[np.float32]) -> MotionState:  # fmt: skip
    """Table the whitening at every displacement; without a bundle, of nothing and never moving.

    Parameters
    ----------
    bundle : Bundle or None
        Geometry, whitening, templates.
    frame : int
        Samples of a frame.
    reached, n_reached : ndarray of int64
        Channels of each unit, as the engine has them.
    templates : ndarray of float32, shape (n_units, n_most, n_samples)
        As the engine subtracts them.
    """
    n_distances = len(DISTANCES_UM)
    place, gain = np.zeros(3, np.int64), np.zeros(n_distances)
    steps = np.array([np.sign(d) * max(1.0, abs(d) // (2.0 * STEP_UM)) for d in DISTANCES_UM], np.int64)
    moved = np.zeros((len(templates) if bundle is not None else 0, n_distances, *templates.shape[1:]), np.float32)
    total = np.zeros(templates.shape[2], np.float32)
    if bundle is None:
        tables = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32)
        nothing = np.zeros((0, n_distances))
        return MotionState(*tables, moved, nothing, nothing, steps, total, place, gain)
    place[AT] = N_STEPS // 2
    place[_EVERY] = max(1, round(_EVERY_S * bundle.info.sampling_frequency / frame))
    whitening = bundle.whitening.astype(np.float64)
    terms = [_largest(whitening @ _interpolation(bundle, (i - N_STEPS // 2) * STEP_UM)) for i in range(N_STEPS)]
    for i, distance in enumerate(DISTANCES_UM):
        matrix = whitening @ _interpolation(bundle, -distance)
        for u in range(len(moved)):
            channels = reached[u, : n_reached[u]]
            moved[u, i, : n_reached[u]] = (bundle.templates_uv[u] @ matrix.T)[:, channels].T
    return MotionState(
        np.stack([neighbour for neighbour, _ in terms]),
        np.stack([weight for _, weight in terms]).astype(np.float32),
        moved,
        np.einsum("udct,uct->ud", moved, templates, dtype=np.float64),
        np.einsum("udct,udct->ud", moved, moved, dtype=np.float64),
        steps,
        total,
        place,
        gain,
    )


def rows(bundle: Bundle) -> NDArray[np.int64]:
    """Where the terms of each channel begin, shape (n_channels + 1,)."""
    return np.arange(len(bundle.info.channel_names) + 1, dtype=np.int64) * _TERMS


def reset_motion(motion: MotionState) -> None:
    """Back to where it began."""
    motion.gain.fill(0.0)
    motion.place[_FRAMES] = 0
    motion.place[AT] = motion.neighbour.shape[0] // 2


@jit
def learn(
    motion: MotionState,
    window: NDArray[np.float32],
    channels: NDArray[np.int64],
    n_channels: int,
    start: int,
    unit: int,
    amplitude: float,
    prior: float,
    energy: float,
    gain: float,
) -> None:
    """Take note of a spike that was just subtracted from the window, from column `start` on.

    Parameters
    ----------
    motion : MotionState
        Changed in place.
    window : ndarray of float32
        What is left.
    channels, n_channels : ndarray of int64, int
        Of the unit's template.
    start, unit, amplitude : int, int, float
        Of the spike.
    prior, gain : float
        Precision of amplitudes, and about what.
    energy : float
        Of the unit's template.
    """
    total = motion.total
    as_it_is = amplitude * energy + prior * gain
    known = as_it_is * as_it_is / (energy + prior)
    for d in range(motion.gain.shape[0]):
        product = amplitude * motion.overlap[unit, d]
        for k in range(n_channels):
            row = window[channels[k], start : start + motion.moved.shape[3]]
            template = motion.moved[unit, d, k]
            for t in range(total.shape[0]):  # side by side: a sum along the row would not be vectorised
                total[t] += row[t] * template[t]
        for t in range(total.shape[0]):
            product += total[t]
            total[t] = np.float32(0.0)
        explained = product + prior * gain
        likelier = explained * explained / (motion.energy[unit, d] + prior) - known
        motion.gain[d] = max(0.0, motion.gain[d] + min(max(likelier, -_MOST_OF_A_SPIKE), _MOST_OF_A_SPIKE))


@jit
def follow(motion: MotionState, neighbour: NDArray[np.int64], weight: NDArray[np.float32]) -> None:
    """Judge, when it is time, whether the probe has moved, and whiten from then on as if it had not."""
    place = motion.place
    place[_FRAMES] += 1
    if place[_FRAMES] < place[_EVERY]:
        return
    place[_FRAMES] = 0
    best = 0
    for d in range(motion.gain.shape[0]):
        if motion.gain[d] > motion.gain[best]:
            best = d
    at = min(max(place[AT] + motion.steps[best], 0), motion.neighbour.shape[0] - 1)
    if motion.gain[best] > _SURE and at != place[AT]:
        place[AT] = at
        put(motion, neighbour, weight)
        for d in range(motion.gain.shape[0]):
            motion.gain[d] = 0.0


@jit
def put(motion: MotionState, neighbour: NDArray[np.int64], weight: NDArray[np.float32]) -> None:
    """Give the chain the whitening of the place believed in."""
    at = motion.place[AT]
    for k in range(neighbour.shape[0]):
        neighbour[k] = motion.neighbour[at, k]
        weight[k] = motion.weight[at, k]


def _interpolation(bundle: Bundle, moved_um: float) -> NDArray[np.float64]:
    """The signal of each channel, `moved_um` further along the axis, from that of the channels around."""
    n = len(bundle.positions_um)
    live = np.flatnonzero(bundle.noise > 0.0)
    matrix = np.zeros((n, n))
    if moved_um == 0.0:
        matrix[live, live] = 1.0
        return matrix
    sites = bundle.positions_um[live]
    targets = sites + np.array([0.0, moved_um])
    distance = np.linalg.norm(targets[:, np.newaxis] - sites, axis=2)
    near = np.argsort(distance, axis=1, kind="stable")[:, :_NEAREST]
    among = np.exp(-np.linalg.norm(sites[near][:, :, np.newaxis] - sites[near][:, np.newaxis], axis=3) / _KERNEL_UM)
    among += _RIDGE * np.eye(near.shape[1])
    to_target = np.exp(-np.take_along_axis(distance, near, axis=1) / _KERNEL_UM)
    weights = np.linalg.solve(among, to_target[..., np.newaxis])[..., 0]
    matrix[live[:, np.newaxis], live[near]] = weights
    return matrix


def _largest(matrix: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The largest terms of each row, one row after the other; those that are missing have no weight."""
    n = len(matrix)
    chosen = np.argsort(-np.abs(matrix), axis=1, kind="stable")[:, :_TERMS]
    chosen = np.sort(chosen, axis=1)
    weights = np.take_along_axis(matrix, chosen, axis=1)
    missing = _TERMS - chosen.shape[1]
    chosen = np.pad(chosen, ((0, 0), (0, missing)))
    return chosen.reshape(n * _TERMS), np.pad(weights, ((0, 0), (0, missing))).reshape(n * _TERMS)
