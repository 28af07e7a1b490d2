"""Bounded rings between one producer and one consumer thread, compiled or not, without locks.

Everything that enters or leaves the real-time loop travels by one of these. A full ring never blocks its producer: the
new record is refused and counted.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuromod.bridge.native import copy, load_acquire, load_relaxed, store_relaxed, store_release
from neuromod.engine.compiled import jit

# a cache line each, since producer and consumer write them from different cores
_HEAD, _TAIL, _REFUSED = 0, 8, 16


class Ring(NamedTuple):
    """A ring of records of one structured dtype, as rows of bytes; make it with `make_ring`.

    Bytes, because then the same compiled code serves every dtype.
    """

    ends: NDArray[np.int64]  # head, tail, records refused
    rows: NDArray[np.uint8]


def make_ring(dtype: DTypeLike, capacity: int) -> Ring:
    """Allocate a ring of `capacity` records (a power of two)."""
    if capacity < 1 or capacity & (capacity - 1):
        raise ValueError(f"the capacity of a ring must be a power of two, not {capacity}")
    return Ring(np.zeros(24, np.int64), rows_of(np.zeros(capacity, dtype)))


class SampleRing(NamedTuple):
    """A ring of samples. Apart from `Ring`, because a record's width would make compiled code depend on it."""

    ends: NDArray[np.int64]
    samples: NDArray[np.float32]
    stamps: NDArray[np.float64]


def make_sample_ring(n_channels: int, capacity: int) -> SampleRing:
    """Allocate a ring of `capacity` samples (a power of two) of `n_channels` values."""
    if capacity < 1 or capacity & (capacity - 1):
        raise ValueError(f"the capacity of a ring must be a power of two, not {capacity}")
    return SampleRing(
        np.zeros(24, np.int64), np.zeros((capacity, n_channels), np.float32), np.zeros(capacity, np.float64)
    )


@jit
def put_samples(ring: SampleRing, samples: NDArray[np.float32], stamps: NDArray[np.float64], first: int) -> int:
    """Append samples from `first` on as far as there is room; return how many. Producer's thread only."""
    head = load_relaxed(ring.ends, _HEAD)
    room = ring.stamps.shape[0] - (head - load_acquire(ring.ends, _TAIL))
    n = min(room, stamps.shape[0] - first)
    for i in range(n):
        at = (head + i) & (ring.stamps.shape[0] - 1)
        ring.stamps[at] = stamps[first + i]
        copy(ring.samples[at], samples[first + i])
    store_release(ring.ends, _HEAD, head + n)
    return n


@jit
def add_samples(ring: SampleRing, samples: NDArray[np.float32], stamps: NDArray[np.float64], n: int) -> None:
    """Append the first `n` samples; those for which there is no room are lost, and counted. Producer's thread only."""
    head = load_relaxed(ring.ends, _HEAD)
    room = ring.stamps.shape[0] - (head - load_acquire(ring.ends, _TAIL))
    taken = min(room, n)
    for i in range(taken):
        at = (head + i) & (ring.stamps.shape[0] - 1)
        ring.stamps[at] = stamps[i]
        copy(ring.samples[at], samples[i])
    store_release(ring.ends, _HEAD, head + taken)
    if taken < n:
        store_relaxed(ring.ends, _REFUSED, load_relaxed(ring.ends, _REFUSED) + n - taken)


def rows_of(records: NDArray[Any]) -> NDArray[np.uint8]:
    """View an array of records as rows of bytes, shape (n, itemsize)."""
    return records.view(np.uint8).reshape(records.shape[0], records.dtype.itemsize)


@jit
def reserve(ring: Ring) -> int:
    """Return the row to fill next; -1, and counted, where the ring is full. Producer's thread only."""
    head = load_relaxed(ring.ends, _HEAD)
    if head - load_acquire(ring.ends, _TAIL) >= ring.rows.shape[0]:
        store_relaxed(ring.ends, _REFUSED, load_relaxed(ring.ends, _REFUSED) + 1)
        return -1
    return head & (ring.rows.shape[0] - 1)


@jit
def commit(ring: Ring) -> None:
    """Hand the row that was reserved to the consumer. Producer's thread only."""
    store_release(ring.ends, _HEAD, load_relaxed(ring.ends, _HEAD) + 1)


@jit
def put(ring: Ring, source: NDArray[np.uint8], i: int) -> bool:
    """Append row `i` of `source`; False, and counted, where the ring is full. Producer's thread only."""
    at = reserve(ring)
    if at < 0:
        return False
    copy(ring.rows[at], source[i])
    commit(ring)
    return True


@jit
def take(ring: Ring, target: NDArray[np.uint8]) -> int:
    """Move as many rows as there are, and as `target` holds, into `target`; return how many. Consumer's thread only."""
    tail = load_relaxed(ring.ends, _TAIL)
    n = min(load_acquire(ring.ends, _HEAD) - tail, target.shape[0])
    for i in range(n):
        copy(target[i], ring.rows[(tail + i) & (ring.rows.shape[0] - 1)])
    store_release(ring.ends, _TAIL, tail + n)
    return n


@jit
def available(ends: NDArray[np.int64]) -> int:
    """Return how many records wait. Consumer's thread only."""
    return load_acquire(ends, _HEAD) - load_relaxed(ends, _TAIL)


@jit
def peek(ends: NDArray[np.int64], capacity: int, ahead: int) -> int:
    """Return the place of the waiting record `ahead` places from the next. Consumer's thread only."""
    return (load_relaxed(ends, _TAIL) + ahead) & (capacity - 1)


@jit
def release(ends: NDArray[np.int64], n: int) -> None:
    """Give the next `n` waiting records back to the producer. Consumer's thread only."""
    store_release(ends, _TAIL, load_relaxed(ends, _TAIL) + n)


@jit
def refused(ends: NDArray[np.int64]) -> int:
    """Return how many records found the ring full."""
    return load_relaxed(ends, _REFUSED)


def append(ring: Ring, record: NDArray[Any]) -> bool:
    """Append one record, given as an array of length 1, from Python; False, and counted, where the ring is full."""
    return bool(put(ring, rows_of(record), 0))


def drain(ring: Ring, dtype: np.dtype[Any], limit: int = 4096) -> NDArray[Any]:
    """Take all waiting records, at most `limit`, as a new array."""
    taken = np.empty(min(int(available(ring.ends)), limit), dtype)
    if len(taken):
        take(ring, rows_of(taken))
    return taken
