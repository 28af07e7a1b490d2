"""Robust noise, measured as samples stream by: a histogram of magnitudes on a logarithmic grid.

The median of |x| over any length of signal, in fixed memory and with no allocation, from all samples rather than a
few: 32 bins an octave over 64 octaves hold any physical unit, and interpolation within the bin leaves the error of the
median of Gaussian noise below 0.1 %.
"""

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit

BINS = 2048
"""Bins of one channel: 64 octaves from 2**-40 (1e-12) to 2**24 (2e7), 32 each."""

MAD_OF_UNIT_NOISE = 0.6744897501960817
"""Median of |x| for Gaussian x of unit standard deviation."""

_SHIFT = 23 - 5  # leaves 5 bits of the mantissa of a float32
_FIRST = (127 - 40) << 5


def bin_edges() -> NDArray[np.float64]:
    """Lower edges of all bins and the upper edge of the last, shape (BINS + 1,)."""
    index = np.arange(BINS + 1)
    return np.ldexp(1.0 + (index % 32) / 32.0, index // 32 - 40)


@jit
def add_magnitudes(histogram: NDArray[np.int32], bits: NDArray[np.int32], n: int) -> None:
    """Count one magnitude per channel.

    Parameters
    ----------
    histogram : ndarray of int32, shape (n_channels, BINS)
        Counts, changed in place.
    bits : ndarray of int32, shape (n_channels,)
        The bit patterns of non-negative float32 magnitudes: exponent and leading mantissa bits are the bin.
    n : int
        Number of channels.
    """
    for c in range(n):
        index = (bits[c] >> _SHIFT) - _FIRST
        if index < 0:
            index = 0
        if index > BINS - 1:
            index = BINS - 1
        histogram[c, index] += 1


@jit
def median_of(counts: NDArray[np.int32], edges: NDArray[np.float64]) -> float:
    """Median of what a channel's histogram counted; 0 where it is below the grid or nothing was counted."""
    total = 0
    for i in range(BINS):
        total += counts[i]
    if 2 * counts[0] >= total:
        return 0.0
    half = 0.5 * total
    before = 0
    for i in range(BINS):
        if before + counts[i] >= half:
            return edges[i] + (half - before) / counts[i] * (edges[i + 1] - edges[i])  # type: ignore[no-any-return]
        before += counts[i]
    return 0.0
