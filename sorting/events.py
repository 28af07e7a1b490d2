"""What the online sorter says of each spike that it recognised, and where both of its engines write it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit

UNIT_EVENT = np.dtype(
    [
        ("sample", np.int64),  # at which the unit's template has its trough, counted from the first sample taken
        ("unit", np.int64),  # row of the bundle's templates
        ("amplitude", np.float64),  # multiple of the template
        ("residual", np.float64),  # RMS of what is left around it once it is subtracted; 1 is noise alone
    ],
    align=True,
)

MAX_EVENTS = 1024
"""Room for the events of one block; 384 channels at their busiest give some tens a millisecond."""

# Entries of UnitEvents.counters.
N_EVENTS, MATCHED, UNMATCHED, OVERFLOWS = range(4)


class UnitEvents(NamedTuple):
    """Events that were found and not yet read; a reader sets ``counters[N_EVENTS]`` to 0."""

    rows: NDArray[np.void]  # UNIT_EVENT, the oldest first found
    counts: NDArray[np.float64]  # (n_units,) events of the open block
    counters: NDArray[
        np.int64
    ]  # rows in use; events, unmatched detections and rows that found no room, since the start


def make_events(n_units: int, capacity: int = MAX_EVENTS) -> UnitEvents:
    """Allocate room for the events of one block."""
    return UnitEvents(np.zeros(capacity, UNIT_EVENT), np.zeros(n_units), np.zeros(4, np.int64))


@jit
def add_event(events: UnitEvents, sample: int, unit: int, amplitude: float, residual: float) -> None:
    """Append one event, and count it for its unit even where there is no room to tell more."""
    counters = events.counters
    counters[MATCHED] += 1
    events.counts[unit] += 1.0
    n = counters[N_EVENTS]
    if n == events.rows.shape[0]:
        counters[OVERFLOWS] += 1
        return
    row = events.rows[n]
    row["sample"] = sample
    row["unit"] = unit
    row["amplitude"] = amplitude
    row["residual"] = residual
    counters[N_EVENTS] = n + 1
