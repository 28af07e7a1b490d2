"""Our online sorter on recordings whose spikes are known: run by the millisecond, timed and scored."""

import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from bench.sorting_truth import FREQUENCY, UV_PER_BIT, Score, Truth, score
from numpy.typing import NDArray

from neuromod.engine.compiled import jit_apart
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.events import N_EVENTS, UNIT_EVENT
from neuromod.sorting.online import Sorter, SorterState, take_sample
from neuromod.sorting.templates import estimate

CHUNK = 30
"""Samples that arrive together: 1 ms."""
LEAD_S = 0.5
"""The sorter starts this long before what is scored: filters settle."""


@jit_apart
def push(sorter: SorterState, samples: NDArray[np.float32], x: NDArray[np.float64]) -> None:
    """Give the sorter samples of shape (n, n_channels); `x` is scratch, (n_padded,)."""
    for i in range(samples.shape[0]):
        for c in range(samples.shape[1]):
            x[c] = samples[i, c]
        take_sample(sorter, x)


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


def bundle_from_truth(truth: Truth, signal: NDArray[np.int16], **options: Any) -> Bundle:
    """Templates from the true spike times of the first part, through our chain."""
    scenario = truth.scenario
    samples, units = truth.part(0, scenario.n_train)
    return estimate(
        lambda begin, end: signal[begin:end].astype(np.float32) * np.float32(UV_PER_BIT),
        scenario.n_train,
        samples,
        units,
        unit_ids=[f"u{i}" for i in range(scenario.n_units)],
        name=scenario.name,
        sampling_frequency=FREQUENCY,
        channel_names=[f"ch{i}" for i in range(scenario.n_channels)],
        positions_um=truth.positions_um,
        **options,
    )


def run(
    bundle: Bundle,
    blocks: Iterable[NDArray[np.float32]],
    first: int,
    *,
    engine: Literal["auto", "sparse", "dense"] = "auto",
    tracking: bool = True,
) -> Run:
    """Sort blocks of signal in uV whose first sample has the number `first`."""
    sorter = Sorter(bundle, engine=engine, tracking=tracking)
    state = sorter.state
    x = np.zeros(state.last_x.shape[0])
    events, told_at, cpu_ns = [np.zeros(0, UNIT_EVENT)], [np.zeros(0, np.int64)], []
    push(state, np.zeros((0, len(bundle.noise)), np.float32), x)
    at = first
    for block in blocks:
        for begin in range(0, len(block), CHUNK):
            samples = block[begin : begin + CHUNK]
            before = time.thread_time_ns()
            push(state, samples, x)
            cpu_ns.append(time.thread_time_ns() - before)
            at += len(samples)
            n = int(state.events.counters[N_EVENTS])
            if n:
                found = state.events.rows[:n].copy()
                found["sample"] += first
                events.append(found)
                told_at.append(np.full(n, at))
                state.events.counters[N_EVENTS] = 0
    return Run(np.concatenate(events), np.concatenate(told_at), np.array(cpu_ns))


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
