"""What units follow in behaviour: preferred direction or condition, how strongly, and whether by more than chance."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.errors import ConfigError

Floats = NDArray[np.float64]

_NEAR = 0.05
"""Part of the rows within which a shift is too near to none: behaviour resembles itself from one moment to the next."""
_RANK = 1e-9


class Tuning(NamedTuple):
    """Tuning of units, one entry each.

    Attributes
    ----------
    conditions : tuple of str
        Labels of the conditions; empty where behaviour is a direction.
    preferred : ndarray of float64, shape (n_units,)
        Direction in radians, from -pi to pi, or number of the condition of the highest mean count.
    strength : ndarray of float64, shape (n_units,)
        Part of the variance of the counts that behaviour explains, 0 to 1: R2 of cosine tuning, eta squared of
        conditions.
    p_value : ndarray of float64, shape (n_units,)
        Part of the circular shifts of the behaviour, itself among them, that explain as much.
    alpha : float
        A unit is tuned where its p value is at most this.
    """

    conditions: tuple[str, ...]
    preferred: Floats
    strength: Floats
    p_value: Floats
    alpha: float

    @property
    def is_tuned(self) -> NDArray[np.bool_]:
        """Whether each unit follows the behaviour by more than chance."""
        return self.p_value <= self.alpha


def measure_tuning(counts: ArrayLike, behaviour: ArrayLike, *, alpha: float = 0.01) -> Tuning:
    """Measure how the counts of units follow behaviour.

    Parameters
    ----------
    counts : array_like of float, shape (n_rows, n_units)
        Spikes of each unit in each bin, or trial, in order of time.
    behaviour : array_like, shape (n_rows, 2) of float or (n_rows,) of labels
        Movement (such as velocity) along two axes, NaN where unknown; or the condition of each row, as text or whole
        numbers, empty text where unknown. Delays between brain and movement are for the caller to take out.
    alpha : float
        Level of significance, for each unit: of 100 units without tuning, about ``100 * alpha`` are taken for tuned.

    Returns
    -------
    Tuning
        One entry for each unit.

    Raises
    ------
    ConfigError
        Shapes do not fit, behaviour never changes, or rows are too few to tell tuning from chance.

    Notes
    -----
    Cosine tuning [1]_: ``count = b0 + bx x + by y``, by least squares; the preferred direction is that of (bx, by).
    Conditions are the same regression on one indicator each. The chance level comes from all circular shifts of the
    behaviour against the counts but those within 5 % of the rows [2]_: they keep what each resembles of itself over
    time, which a shuffle of rows would break and so find tuning everywhere. A shift changes neither the variance of the
    counts nor the regressors' own products, so that all of them come at once from a circular cross-correlation.

    References
    ----------
    .. [1] Georgopoulos, Kalaska, Caminiti & Massey (1982), J. Neurosci. 2, 1527-1537.
    .. [2] Harris (2020), Nonsense correlations in neuroscience, bioRxiv 2020.11.29.402719.
    """
    y = np.asarray(counts, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] == 0:
        raise ConfigError(f"counts of shape {y.shape}; (n_rows, n_units) expected")
    if not np.all(np.isfinite(y)):
        raise ConfigError("counts that are not finite; leave out the rows that are not known")
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha = {alpha}: a level of significance lies between 0 and 1, such as 0.01")
    x, conditions, known = _regressors(np.asarray(behaviour), len(y))
    x, y = x[known], y[known]
    near = max(1, math.ceil(_NEAR * len(y)))
    shifts = np.arange(near, len(y) - near + 1)
    if 1 + len(shifts) < math.ceil(1.0 / alpha):
        raise ConfigError(
            f"behaviour is known in {len(y)} rows: too few to tell tuning from chance at alpha = {alpha:g}, which "
            f"takes {math.ceil(1.0 / (alpha * (1.0 - 2.0 * _NEAR)))}; record longer, or take shorter bins"
        )
    basis = _orthonormal(x - x.mean(axis=0))
    if basis.shape[1] == 0:
        raise ConfigError("behaviour never changes, so nothing can be tuned to it; choose a stretch in which it does")
    y_centred = y - y.mean(axis=0)
    variance = (y_centred**2).sum(axis=0)
    moves = variance > _RANK * (y**2).sum(axis=0)
    # explained[s, u]: squared length of the projection of unit u on behaviour that is s rows late
    waves = np.conj(np.fft.rfft(basis, axis=0))
    explained = np.empty((len(y), y.shape[1]))
    for unit in range(y.shape[1]):
        projections = np.fft.irfft(waves * np.fft.rfft(y_centred[:, unit])[:, None], n=len(y), axis=0)
        explained[:, unit] = (projections**2).sum(axis=1)
    explained /= np.where(moves, variance, 1.0)
    strength = np.where(moves, explained[0], 0.0)
    as_good = (explained[shifts] >= explained[0] * (1.0 - _RANK)).sum(axis=0)
    p_value = np.where(moves, (1.0 + as_good) / (1.0 + len(shifts)), 1.0)
    if conditions:
        preferred = np.argmax(x.T @ y / x.sum(axis=0)[:, None], axis=0).astype(np.float64)
    else:
        slopes = np.linalg.lstsq(x - x.mean(axis=0), y_centred, rcond=None)[0]
        preferred = np.arctan2(slopes[1], slopes[0])
    return Tuning(conditions, preferred, np.clip(strength, 0.0, 1.0), p_value, alpha)


def _regressors(behaviour: NDArray[np.generic], n_rows: int) -> tuple[Floats, tuple[str, ...], NDArray[np.bool_]]:
    """What counts are regressed on, labels of its columns if they are conditions, and the rows that are known."""
    if len(behaviour) != n_rows:
        raise ConfigError(f"behaviour of {len(behaviour)} rows beside counts of {n_rows}; one row for each expected")
    if behaviour.ndim == 1 and behaviour.dtype.kind in "UiubO":
        labels = np.array([str(label).strip() for label in behaviour.tolist()])
        known = labels != ""
        unique = _in_order(labels[known].tolist())
        return (labels[:, None] == np.array(unique)[None, :]).astype(np.float64), unique, known
    if behaviour.ndim == 2 and behaviour.shape[1] == 2 and behaviour.dtype.kind in "iuf":
        x = behaviour.astype(np.float64)
        known = np.all(np.isfinite(x), axis=1)
        return np.where(known[:, None], x, 0.0), (), known
    raise ConfigError(
        f"behaviour of shape {behaviour.shape} and type {behaviour.dtype}; two numbers a row (movement along two axes) "
        "or one label a row (conditions as text or whole numbers) expected"
    )


def _in_order(labels: list[str]) -> tuple[str, ...]:
    """Labels without repeats, numbers by value."""
    unique = sorted(set(labels))
    try:
        return tuple(sorted(unique, key=float))
    except ValueError:
        return tuple(unique)


def _orthonormal(x: Floats) -> Floats:
    """An orthonormal basis of the columns of x, those that say nothing new left out."""
    u, size, _ = np.linalg.svd(x, full_matrices=False)
    basis: Floats = u[:, size > _RANK * max(1.0, float(size.max(initial=0.0)))]
    return basis
