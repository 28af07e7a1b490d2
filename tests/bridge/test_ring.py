"""Rings: every record once, whole and in order; a full ring refuses, counts, and never blocks."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuromod.bridge.ring import (
    Ring,
    SampleRing,
    append,
    available,
    commit,
    drain,
    make_ring,
    make_sample_ring,
    peek,
    put,
    put_samples,
    refused,
    release,
    reserve,
    rows_of,
    take,
)
from neuromod.engine.compiled import JIT_ENABLED, jit

N_WORDS = 16
RECORD = np.dtype([("words", np.int64, (N_WORDS,))])
"""All words of a record are the same number, so that a torn one shows."""

N_RECORDS = 20_000 if JIT_ENABLED else 2_000
N_SAMPLES = 100_000 if JIT_ENABLED else 2_000
N_CHANNELS = 24
PATIENCE = 1 << 33  # refusals before a producer or a consumer gives up; ten seconds and more


@jit
def produce(ring: Ring, words: NDArray[np.int64], rows: NDArray[np.uint8], n: int, patience: int) -> int:
    """Put records 0 to n - 1, trying again where the ring is full; return how often it was. `rows` is `words`."""
    failed = 0
    for number in range(n):
        words[0, :] = number
        while not put(ring, rows, 0):
            failed += 1
            if failed > patience:
                return failed
    return failed


@jit
def produce_in_place(ring: Ring, n: int, patience: int) -> int:
    """As `produce`, writing into the ring's own memory."""
    failed = 0
    for number in range(n):
        at = reserve(ring)
        while at < 0:
            failed += 1
            if failed > patience:
                return failed
            at = reserve(ring)
        words = ring.rows[at].view(np.int64)
        words[:] = number
        commit(ring)
    return failed


@jit
def read_samples(ring: SampleRing, n: int, patience: int) -> int:
    """Take samples as the loop does, until n are there; return how many were whole and in their place."""
    good, seen, waited = 0, 0, 0
    while seen < n and waited < patience:
        waiting = available(ring.ends)
        waited += 0 if waiting else 1
        for k in range(waiting):
            at = peek(ring.ends, ring.stamps.shape[0], k)
            whole = ring.stamps[at] == seen
            for c in range(ring.samples.shape[1]):
                whole = whole and ring.samples[at, c] == seen
            good += 1 if whole else 0
            seen += 1
        release(ring.ends, waiting)
    return good


def records(first: int, n: int) -> NDArray[Any]:
    made = np.zeros(n, RECORD)
    made["words"] = np.arange(first, first + n)[:, None]
    return made


def numbers(taken: NDArray[Any]) -> list[int]:
    """The number of each record, all words of which must agree."""
    words = taken["words"]
    assert (words == words[:, :1]).all(), "torn records"
    return words[:, 0].tolist()  # type: ignore[no-any-return]


def drain_until(ring: Ring, thread: threading.Thread, pause: int) -> NDArray[Any]:
    """Drain while `thread` produces, and what is left; skip turns to let the ring fill now and then."""
    parts, turn = [], 0
    while thread.is_alive():
        turn += 1
        if turn % pause == 0:
            parts.append(drain(ring, RECORD))
    while len(last := drain(ring, RECORD)):
        parts.append(last)
    return np.concatenate(parts)


@pytest.mark.parametrize("capacity", [0, -1, -8, 3, 6, 100, 1023])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        make_ring(RECORD, capacity)
    with pytest.raises(ValueError, match="power of two"):
        make_sample_ring(2, capacity)


@pytest.mark.parametrize("capacity", [1, 2, 4, 1024])
def test_a_ring_holds_as_many_records_as_it_says(capacity: int) -> None:
    ring = make_ring(RECORD, capacity)

    taken = [append(ring, records(i, 1)) for i in range(capacity + 1)]

    assert taken == [True] * capacity + [False]
    assert available(ring.ends) == capacity
    assert refused(ring.ends) == 1


def test_a_full_ring_keeps_what_it_has_and_takes_more_once_there_is_room() -> None:
    ring = make_ring(RECORD, 4)
    for i in range(7):
        append(ring, records(i, 1))

    assert numbers(drain(ring, RECORD)) == [0, 1, 2, 3]
    assert append(ring, records(7, 1))
    assert numbers(drain(ring, RECORD)) == [7]
    assert refused(ring.ends) == 3


@settings(max_examples=60, deadline=None)
@given(capacity=st.sampled_from([1, 2, 8]), steps=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10))))
def test_a_ring_is_a_bounded_queue(capacity: int, steps: list[tuple[int, int]]) -> None:
    ring, twin = make_ring(RECORD, capacity), list[int]()
    n_put = n_refused = 0

    for n_in, n_out in steps:
        for _ in range(n_in):
            fits = len(twin) < capacity
            assert append(ring, records(n_put, 1)) == fits
            twin += [n_put] if fits else []
            n_refused += not fits
            n_put += 1
        target = np.zeros(n_out, RECORD)
        n_taken = take(ring, rows_of(target))
        assert numbers(target[:n_taken]) == twin[:n_out]
        del twin[:n_out]

        assert available(ring.ends) == len(twin)
        assert refused(ring.ends) == n_refused


def test_draining_stops_at_its_limit_and_goes_on_there() -> None:
    ring = make_ring(RECORD, 16)
    for i in range(10):
        append(ring, records(i, 1))

    assert numbers(drain(ring, RECORD, limit=4)) == [0, 1, 2, 3]
    assert numbers(drain(ring, RECORD)) == [4, 5, 6, 7, 8, 9]
    assert len(drain(ring, RECORD)) == 0


def test_a_reserved_row_is_not_seen_before_it_is_committed() -> None:
    ring = make_ring(RECORD, 4)

    at = reserve(ring)
    assert available(ring.ends) == 0
    ring.rows[at] = rows_of(records(5, 1))[0]
    commit(ring)

    assert numbers(drain(ring, RECORD)) == [5]


@pytest.mark.parametrize("pause", [1, 50])
def test_every_record_of_a_compiled_producer_arrives_once_whole_and_in_order(pause: int) -> None:
    ring, failed = make_ring(RECORD, 64), [0]
    record = records(0, 1)
    produce(make_ring(RECORD, 1), record["words"], rows_of(record), 1, 0)

    def run() -> None:
        failed[0] = produce(ring, record["words"], rows_of(record), N_RECORDS, PATIENCE)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seen = drain_until(ring, thread, pause)

    assert numbers(seen) == list(range(N_RECORDS))
    assert refused(ring.ends) == failed[0]


def test_records_written_in_place_arrive_once_whole_and_in_order() -> None:
    ring = make_ring(RECORD, 64)
    produce_in_place(make_ring(RECORD, 1), 1, 0)

    thread = threading.Thread(target=produce_in_place, args=(ring, N_RECORDS, PATIENCE), daemon=True)
    thread.start()

    assert numbers(drain_until(ring, thread, 1)) == list(range(N_RECORDS))


def test_a_producer_without_a_consumer_is_refused_and_never_waits() -> None:
    ring, record = make_ring(RECORD, 8), records(0, 1)

    failed = produce(ring, record["words"], rows_of(record), 9, 10_000)

    assert failed == 10_001  # it came back as often as it was refused
    assert refused(ring.ends) == 10_001
    assert numbers(drain(ring, RECORD)) == list(range(8))


@settings(max_examples=60, deadline=None)
@given(capacity=st.sampled_from([1, 2, 8]), steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_a_sample_ring_takes_as_many_samples_as_it_has_room_for(capacity: int, steps: list[tuple[int, int]]) -> None:
    ring, twin = make_sample_ring(2, capacity), list[float]()
    offered = np.arange(1000, dtype=np.float64)
    first = 0

    for n_in, n_out in steps:
        room = capacity - len(twin)
        chunk = offered[: first + n_in]
        n = put_samples(ring, np.column_stack([chunk, -chunk]).astype(np.float32), chunk, first)
        assert n == min(room, n_in)
        twin += chunk[first : first + n].tolist()
        first += n
        assert available(ring.ends) == len(twin)
        for k in range(min(n_out, len(twin))):
            at = peek(ring.ends, capacity, k)
            assert ring.stamps[at] == twin[k]
            assert ring.samples[at].tolist() == [twin[k], -twin[k]]
        release(ring.ends, min(n_out, len(twin)))
        del twin[: min(n_out, len(twin))]


def test_every_sample_of_a_python_source_reaches_a_compiled_reader_whole_and_in_order() -> None:
    ring, good = make_sample_ring(N_CHANNELS, 256), [0]
    stamps = np.arange(N_SAMPLES, dtype=np.float64)
    samples = np.repeat(stamps.astype(np.float32)[:, None], N_CHANNELS, axis=1)
    read_samples(make_sample_ring(N_CHANNELS, 1), 0, 0)

    def run() -> None:
        good[0] = read_samples(ring, N_SAMPLES, PATIENCE)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    first = 0
    while first < N_SAMPLES and thread.is_alive():
        first += put_samples(ring, samples, stamps, first)
    thread.join(30.0)

    assert not thread.is_alive()
    assert good[0] == N_SAMPLES
