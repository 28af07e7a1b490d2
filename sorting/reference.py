"""Common references: what all channels share at one instant, to be taken away from each."""

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit

NONE, MEAN, MEDIAN, CLIPPED_MEAN = range(4)
CODES = {"none": NONE, "mean": MEAN, "median": MEDIAN, "clipped-mean": CLIPPED_MEAN}

LANES = 8
"""Partial sums of a mean: lane j adds channels j, j + 8, ..., an order that is fixed and still vectorises."""


@jit
def mean(y: NDArray[np.float64], weight: NDArray[np.float64], inverse: float) -> float:
    """Mean of the channels of weight 1.

    Parameters
    ----------
    y : ndarray of float64, shape (n_padded,)
        One sample of every channel; `n_padded` is a multiple of `LANES`.
    weight : ndarray of float64, shape (n_padded,)
        1 for channels that take part, 0 for others.
    inverse : float
        1 / number of channels that take part, or 0.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float64(0.0)
    for c in range(0, y.shape[0], 8):
        s0 += y[c] * weight[c]
        s1 += y[c + 1] * weight[c + 1]
        s2 += y[c + 2] * weight[c + 2]
        s3 += y[c + 3] * weight[c + 3]
        s4 += y[c + 4] * weight[c + 4]
        s5 += y[c + 5] * weight[c + 5]
        s6 += y[c + 6] * weight[c + 6]
        s7 += y[c + 7] * weight[c + 7]
    return (((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))) * inverse


@jit
def clipped_mean(
    y: NDArray[np.float64],
    weight: NDArray[np.float64],
    inverse: float,
    clip: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> float:
    """Mean again, with each channel held to within `clip` of the plain mean.

    A spike of one channel is held back, while an artefact that all channels share is taken away whole, since clipping
    is around the mean and not around zero.

    Parameters
    ----------
    y, weight, inverse
        As in `mean`.
    clip : ndarray of float64, shape (n_padded,)
        Largest deviation of each channel, in units of `y`; infinite for a plain mean.
    scratch : ndarray of float64, shape (n_padded,)
        Overwritten.
    """
    centre = mean(y, weight, inverse)
    for c in range(y.shape[0]):
        deviation = y[c] - centre
        limit = clip[c]
        deviation = limit if deviation > limit else deviation
        scratch[c] = -limit if deviation < -limit else deviation
    return centre + mean(scratch, weight, inverse)


@jit
def select(values: NDArray[np.float64], n: int, k: int) -> float:
    """The k-th smallest (from 0) of the first n values, by Hoare's quickselect; reorders them in place."""
    low = 0
    high = n - 1
    while low < high:
        a = values[low]
        b = values[(low + high) >> 1]
        c = values[high]
        pivot = max(min(a, b), min(max(a, b), c))  # median of three: sorted and reversed input stay linear
        i = low
        j = high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                held = values[i]
                values[i] = values[j]
                values[j] = held
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return values[k]  # type: ignore[no-any-return]


@jit
def median(y: NDArray[np.float64], weight: NDArray[np.float64], scratch: NDArray[np.float64], n_channels: int) -> float:
    """Exact median of the channels of weight 1; of an even number, the mean of the two in the middle; of none, 0."""
    n = 0
    for c in range(n_channels):
        if weight[c] > 0.0:
            scratch[n] = y[c]
            n += 1
    if n == 0:
        return 0.0
    upper: float = select(scratch, n, n >> 1)
    if n & 1:
        return upper
    below: float = scratch[0]
    for i in range(n >> 1):  # everything left of the upper median is no larger than it
        if scratch[i] > below:
            below = scratch[i]
    return 0.5 * (below + upper)
