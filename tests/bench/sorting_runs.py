"""Our online sorter on recordings whose spikes are known: run by the millisecond, timed and scored."""

import ctypes
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from bench.sorting_truth import FREQUENCY, UV_PER_BIT, Score, Truth, score
from numpy.typing import NDArray

from neuromod.sorting.bundle import Bundle
from neuromod.sorting.events import N_EVENTS, UNIT_EVENT
from neuromod.sorting.online import Sorter, SorterState, take_sample
from neuromod.sorting.templates import Reader, estimate

CHUNK = 30
"""Samples that arrive together: 1 ms."""
READ = 100 * CHUNK
"""Samples after which events are read."""
LEAD_S = 0.5
"""The sorter starts this long before what is scored: filters settle."""


_CLOCK_THREAD_CPUTIME_ID = 3
_clock_gettime = ctypes.CDLL(None).clock_gettime
_clock_gettime.argtypes, _clock_gettime.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_int


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # not cached: it calls by address
def push(
    sorter: SorterState,
    samples: NDArray[np.float32],
    x: NDArray[np.float64],
    now: NDArray[np.int64],
    cpu_ns: NDArray[np.int64],
    n_events: NDArray[np.int64],
) -> None:
    """Give the sorter samples of shape (n, n_channels), a chunk at a time, as the loop does: without an interpreter.

    `x` and `now` are scratch; `cpu_ns` and `n_events` get this thread's time for each chunk, and the events so far.
    """
    for chunk in range(len(cpu_ns)):
        _clock_gettime(_CLOCK_THREAD_CPUTIME_ID, now.ctypes.data)
        before = now[0] * 1_000_000_000 + now[1]
        for i in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            for c in range(samples.shape[1]):
                x[c] = samples[i, c]
            take_sample(sorter, x)
        _clock_gettime(_CLOCK_THREAD_CPUTIME_ID, now.ctypes.data)
        cpu_ns[chunk] = now[0] * 1_000_000_000 + now[1] - before
        n_events[chunk] = sorter.events.counters[N_EVENTS]


class Run(NamedTuple):
    """What the sorter said."""

    events: NDArray[np.void]
    """UNIT_EVENT, counted from the recording's first sample."""
    told_at: NDArray[np.int64]
    """Number of the first sample after the chunk in which each event was told."""
    cpu_ns: NDArray[np.int64]
    """Of each chunk: time of this thread."""

    def part(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples and units of events in [begin, end)."""
        inside = (self.events["sample"] >= begin) & (self.events["sample"] < end)
        return self.events["sample"][inside], self.events["unit"][inside]


def estimate_from(
    truth: Truth,
    read: Reader,
    *,
    spikes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    n_units: int | None = None,
    **options: Any,
) -> Bundle:
    """Templates from the first part through our chain: from the true spikes, or others."""
    scenario = truth.scenario
    samples, units = spikes if spikes is not None else truth.part(0, scenario.n_train)
    return estimate(
        read,
        scenario.n_train,
        samples,
        units,
        unit_ids=[f"u{i}" for i in range(n_units if n_units is not None else scenario.n_units)],
        name=scenario.name,
        sampling_frequency=FREQUENCY,
        channel_names=[f"ch{i}" for i in range(scenario.n_channels)],
        positions_um=truth.positions_um,
        **options,
    )


def bundle_from_truth(truth: Truth, signal: NDArray[np.int16], **options: Any) -> Bundle:
    """Templates from the true spikes of the first part of a recording that is kept."""
    return estimate_from(
        truth, lambda begin, end: signal[begin:end].astype(np.float32) * np.float32(UV_PER_BIT), **options
    )


def run(
    bundle: Bundle,
    blocks: Iterable[NDArray[np.float32]],
    first: int,
    *,
    engine: Literal["auto", "sparse", "dense"] = "auto",
    tracking: bool = True,
) -> Run:
    """Sort blocks of signal in uV whose first sample has the number `first`; each a whole number of chunks."""
    sorter = Sorter(bundle, engine=engine, tracking=tracking)
    state = sorter.state
    x = np.zeros(state.last_x.shape[0])
    events, told_at, cpu_ns = [np.zeros(0, UNIT_EVENT)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    now = np.zeros(2, np.int64)
    at = first
    for block in blocks:
        for begin in range(0, len(block), READ):
            samples = block[begin : begin + READ]
            taken, count = np.zeros((2, len(samples) // CHUNK), np.int64)
            push(state, samples, x, now, taken, count)
            found = state.events.rows[: int(state.events.counters[N_EVENTS])].copy()
            found["sample"] += first
            events.append(found)
            told_at.append(at + CHUNK * (1 + np.searchsorted(count, np.arange(len(found)), side="right")))
            cpu_ns.append(taken)
            state.events.counters[N_EVENTS] = 0
            at += len(samples)
    return Run(np.concatenate(events), np.concatenate(told_at), np.concatenate(cpu_ns))


def run_held_out(bundle: Bundle, truth: Truth, signal: NDArray[np.int16], **options: Any) -> tuple[Run, Score]:
    """Sort the last part of a recording, and score it."""
    n_train, n_samples = truth.scenario.n_train, truth.scenario.n_samples
    first = n_train - round(LEAD_S * FREQUENCY)
    blocks = (
        signal[begin : min(begin + 30_000, n_samples)].astype(np.float32) * np.float32(UV_PER_BIT)
        for begin in range(first, n_samples, 30_000)
    )
    found = run(bundle, blocks, first, **options)
    reached = score(truth.part(n_train, n_samples), found.part(n_train, n_samples), truth.scenario.n_units)
    return found, reached


def delays_ms(found: Run, truth: Truth) -> NDArray[np.float64]:
    """From the trough of each true spike that was found to the end of the chunk in which it was told."""
    delays = []
    true_samples, true_units = truth.samples, truth.units
    for unit in np.unique(found.events["unit"]):
        mine = found.events["unit"] == unit
        troughs = true_samples[true_units == unit]
        if not len(troughs):
            continue
        said, told = found.events["sample"][mine], found.told_at[mine]
        after = np.clip(np.searchsorted(troughs, said), 1, max(len(troughs) - 1, 1)) if len(troughs) > 1 else 0
        nearest = np.where(
            np.abs(troughs[after] - said) < np.abs(troughs[after - 1] - said), troughs[after], troughs[after - 1]
        )
        hit = np.abs(nearest - said) <= 0.4e-3 * FREQUENCY
        delays.append((told - nearest)[hit])
    return np.concatenate(delays) / FREQUENCY * 1e3 if delays else np.zeros(0)
