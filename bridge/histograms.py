"""Counts of times in fixed buckets, fed with whole arrays: what the collector keeps for `[metrics]`."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BOUNDS_S: NDArray[np.float64] = np.array(
    [float(f"{step}e{decade}") for decade in range(-6, 0) for step in ("1", "1.5", "2", "3", "5", "7")] + [1.0]
)
"""Upper bounds of the buckets, in seconds: six a decade from 1 us to 1 s, so that a quantile is known to a third."""


class Counted(NamedTuple):
    """What a histogram holds at one moment."""

    counts: NDArray[np.int64]  # by bucket; the last one is of what is beyond the last bound
    total_s: float


class Histogram:
    """Times since the session began; one thread adds, and any may read."""

    def __init__(self) -> None:
        self._counted = Counted(np.zeros(len(BOUNDS_S) + 1, np.int64), 0.0)

    def add(self, times_s: NDArray[Any]) -> None:
        """Count times, in seconds. Those below 0, of clocks that do not agree, count as 0."""
        counts = np.bincount(np.searchsorted(BOUNDS_S, times_s), minlength=len(BOUNDS_S) + 1)
        # a new tuple: whoever reads meanwhile has counts and sum of one moment, without a lock
        self._counted = Counted(
            self._counted.counts + counts, self._counted.total_s + float(np.maximum(times_s, 0.0).sum())
        )

    def read(self) -> Counted:
        """Return what was counted until now."""
        return self._counted


class Histograms:
    """Those that the collector feeds.

    Attributes
    ----------
    latency : Histogram
        Of each tick, from the stamp of its newest sample to its end.
    compute : Histogram
        Of each tick, from the moment at which the loop had its samples to its end.
    ingest : Histogram
        From the sending of an input to the end of the first tick that it acts on, where it says when it was sent.
    """

    def __init__(self) -> None:
        self.latency, self.compute, self.ingest = Histogram(), Histogram(), Histogram()
