"""Which channels are under a stimulation artefact at a sample: trains of windows on the exact grid of their pulses.

The loop registers a train when it sends one; `remask` then says, sample by sample, which channels are clean. Between
two changes there is nothing to compute, so that a stream without stimulation pays one comparison a sample.

A window reaches from `lead` before the nominal time of a pulse to `after` behind its end, both shifted by the delay
from the tick to the artefact's appearance in the stream. Its edges are computed from the number of the pulse, never
added up, and rounded away from the pulse: whole samples at either edge are blanked where a part of them is asked for.
"""

import math

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit

N_ELECTRODES = 32
"""Electrodes that a session may stimulate."""

TRAINS_EACH = 8
"""Trains of one electrode of which each is kept pulse by pulse; short ones and a long delay make several pending."""

N_TRAINS = N_ELECTRODES * TRAINS_EACH

# Columns of `trains` (int64).
_ELECTRODE, _ORIGIN, _PULSES, _PULSE, _FIRST, _LAST = range(6)
TRAIN_COLUMNS = 6

# Columns of `times` (float64), in us.
_START, _PERIOD, _WIDTH = range(3)
TIME_COLUMNS = 3

# Columns of `extent` (float64), in us.
LEAD, AFTER, DELAY = range(3)
EXTENT_COLUMNS = 3

NEVER = 2**62
"""A sample that no stream reaches."""


@jit
def add_train(
    trains: NDArray[np.int64],
    times: NDArray[np.float64],
    extent: NDArray[np.float64],
    n_trains: int,
    sampling_frequency: float,
    electrode: int,
    origin: int,
    start_us: float,
    pulses: int,
    period_us: float,
    pulse_us: float,
) -> int:
    """Add a train to those that are pending; return how many there are now.

    Parameters
    ----------
    trains : ndarray of int64, shape (N_TRAINS, TRAIN_COLUMNS)
        Pending trains, in no particular order; changed in place.
    times : ndarray of float64, shape (N_TRAINS, TIME_COLUMNS)
        Their times; changed in place.
    extent : ndarray of float64, shape (N_ELECTRODES, EXTENT_COLUMNS)
        Lead, time after the pulse and delay of each electrode, in us.
    n_trains : int
        Rows in use.
    sampling_frequency : float
        In Hz.
    electrode : int
        From 0 to `N_ELECTRODES` - 1.
    origin : int
        Number of the sample from which `start_us` counts.
    start_us, period_us, pulse_us : float
        Nominal time of the first pulse, from one pulse to the next, and length of one, in us.
    pulses : int
        At least 1.

    Notes
    -----
    Where `TRAINS_EACH` trains of the electrode are pending already, one of them becomes a single window up to the end
    of the new train: more is blanked than asked for, never less.
    """
    row = n_trains
    same = 0
    for i in range(n_trains):
        if trains[i, _ELECTRODE] == electrode:
            same += 1
            row = i
    if same < TRAINS_EACH:
        row = n_trains
        n_trains += 1
        trains[row, _ELECTRODE] = electrode
        trains[row, _ORIGIN] = origin
        trains[row, _PULSES] = pulses
        times[row, _START] = start_us + extent[electrode, DELAY]
        times[row, _PERIOD] = period_us
        times[row, _WIDTH] = pulse_us
        _place(trains, times, extent, sampling_frequency, row, 0)
        return n_trains
    first = trains[row, _FIRST]
    _place(trains, times, extent, sampling_frequency, row, trains[row, _PULSES] - 1)
    last = trains[row, _LAST]
    trains[row, _ORIGIN] = origin
    trains[row, _PULSES] = pulses
    times[row, _START] = start_us + extent[electrode, DELAY]
    times[row, _PERIOD] = period_us
    times[row, _WIDTH] = pulse_us
    _place(trains, times, extent, sampling_frequency, row, 0)
    first = min(first, trains[row, _FIRST])
    _place(trains, times, extent, sampling_frequency, row, pulses - 1)
    trains[row, _FIRST] = first
    trains[row, _LAST] = max(last, trains[row, _LAST])
    return n_trains


@jit
def _place(
    trains: NDArray[np.int64],
    times: NDArray[np.float64],
    extent: NDArray[np.float64],
    sampling_frequency: float,
    row: int,
    pulse: int,
) -> None:
    """Set the window of a train to that of one of its pulses.

    Microseconds times hertz first, division last: whole samples come out whole, since the product is exact below 2**53.
    """
    electrode = trains[row, _ELECTRODE]
    at = times[row, _START] + pulse * times[row, _PERIOD]
    first = (at - extent[electrode, LEAD]) * sampling_frequency / 1e6
    last = (at + times[row, _WIDTH] + extent[electrode, AFTER]) * sampling_frequency / 1e6
    trains[row, _PULSE] = pulse
    trains[row, _FIRST] = trains[row, _ORIGIN] + np.int64(math.floor(first))
    trains[row, _LAST] = trains[row, _ORIGIN] + np.int64(math.ceil(last))


@jit
def remask(
    trains: NDArray[np.int64],
    times: NDArray[np.float64],
    extent: NDArray[np.float64],
    mask: NDArray[np.bool_],
    clean: NDArray[np.float64],
    n_trains: int,
    sampling_frequency: float,
    sample: int,
) -> tuple[int, int]:
    """Find the channels that are clean at a sample, and drop trains that are over.

    Parameters
    ----------
    trains, times, extent, n_trains, sampling_frequency
        As of `add_train`.
    mask : ndarray of bool, shape (N_ELECTRODES, n_padded)
        Channels that each electrode's artefact reaches.
    clean : ndarray of float64, shape (n_padded,)
        Overwritten: 1 where a channel is clean, else 0.
    sample : int
        Number of the sample; no smaller than that of the last call.

    Returns
    -------
    n_trains, until : int
        Trains that are left, and the first sample at which this must be called again.
    """
    for c in range(clean.shape[0]):
        clean[c] = 1.0
    until: int = NEVER
    row = 0
    while row < n_trains:
        while trains[row, _LAST] < sample and trains[row, _PULSE] + 1 < trains[row, _PULSES]:
            _place(trains, times, extent, sampling_frequency, row, trains[row, _PULSE] + 1)
        if trains[row, _LAST] < sample:
            n_trains -= 1
            for k in range(trains.shape[1]):
                trains[row, k] = trains[n_trains, k]
            for k in range(times.shape[1]):
                times[row, k] = times[n_trains, k]
            continue
        if trains[row, _FIRST] <= sample:
            electrode = trains[row, _ELECTRODE]
            for c in range(clean.shape[0]):
                if mask[electrode, c]:
                    clean[c] = 0.0
            until = min(until, trains[row, _LAST] + 1)
        else:
            until = min(until, trains[row, _FIRST])
        row += 1
    return n_trains, until
