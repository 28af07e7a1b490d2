"""Events find the first tick whose newest sample is not before them; nothing is lost, whatever comes late."""

import math
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromod.bridge.events import EventAligner

NOW = 1000.0  # our clock, by hand


def aligner_with(times: list[float], first_tick: int = 0) -> EventAligner:
    aligner = EventAligner(patience_s=2.0)
    aligner.add_ticks(np.array(times), np.arange(first_tick, first_tick + len(times), dtype=np.uint64))
    return aligner


def tick_of(aligner: EventAligner, t: float) -> int:
    """Tick of an event that comes now."""
    aligner.add_event("e", t, None, "ingest", NOW)
    (event,) = aligner.take(NOW)
    return event.tick


@settings(deadline=None)
@given(times=st.lists(st.integers(0, 100), min_size=1), t=st.integers(-5, 100), first_tick=st.integers(0, 2**40))
def test_an_event_belongs_to_the_first_tick_whose_newest_sample_is_not_before_it(
    times: list[int], t: int, first_tick: int
) -> None:
    # in ms; stamps jitter, so that a tick may have an earlier time than the one before it
    aligner = EventAligner()
    aligner.add_ticks(np.array(times) * 1e-3, np.arange(first_tick, first_tick + len(times), dtype=np.uint64))
    aligner.add_event("e", t * 1e-3, None, "ingest", NOW)

    events = list(aligner.take(NOW))

    expected = [first_tick + k for k, time in enumerate(times) if time >= t][:1]
    assert [event.tick for event in events] == expected


def test_an_event_at_the_very_time_of_a_tick_is_its_own() -> None:
    assert tick_of(aligner_with([1.0, 2.0, 3.0], first_tick=7), 2.0) == 8


def test_an_event_waits_until_its_tick_is_there() -> None:
    aligner = aligner_with([1.0, 2.0])
    aligner.add_event("stimulus", 2.5, {"side": "left"}, "lsl", NOW)

    assert list(aligner.take(NOW + 1.9)) == []
    aligner.add_ticks(np.array([2.4]), np.array([2], np.uint64))
    assert list(aligner.take(NOW + 1.9)) == []
    aligner.add_ticks(np.array([2.6]), np.array([3], np.uint64))
    (event,) = aligner.take(NOW + 1.9)

    assert (event.name, event.t, event.tick, event.source, event.value) == (
        "stimulus",
        2.5,
        3,
        "lsl",
        {"side": "left"},
    )
    assert list(aligner.take(NOW + 1.9)) == []


def test_an_event_of_a_silent_source_is_given_the_last_tick_once_patience_is_over() -> None:
    aligner = aligner_with([1.0, 2.0], first_tick=40)
    aligner.add_event("e", 5.0, None, "ingest", NOW)

    assert list(aligner.take(NOW + 2.0)) == []
    (event,) = aligner.take(NOW + 2.1)

    assert event.tick == 41


def test_an_event_before_any_tick_is_given_tick_zero_once_patience_is_over() -> None:
    aligner = EventAligner(patience_s=2.0)
    aligner.add_event("e", 5.0, None, "ingest", NOW)

    assert list(aligner.take(NOW)) == []
    assert [event.tick for event in aligner.take(NOW + 2.1)] == [0]


def test_patience_is_counted_for_every_event_by_itself() -> None:
    aligner = aligner_with([1.0])
    aligner.add_event("first", 5.0, None, "ingest", NOW)
    aligner.add_event("second", 5.0, None, "ingest", NOW + 1.0)

    assert [event.name for event in aligner.take(NOW + 2.5)] == ["first"]
    assert [event.name for event in aligner.take(NOW + 3.5)] == ["second"]


@settings(deadline=None)
@given(times=st.lists(st.integers(0, 9), max_size=20))
def test_events_leave_in_the_order_of_their_times_and_equal_ones_as_they_came(times: list[int]) -> None:
    aligner = aligner_with([100.0])
    for number, t in enumerate(times):
        aligner.add_event(str(number), float(t), None, "ingest", NOW)

    left = [(event.t, int(event.name)) for event in aligner.take(NOW)]

    assert left == sorted((float(t), number) for number, t in enumerate(times))


def test_a_late_event_finds_the_tick_that_is_past() -> None:
    aligner = EventAligner()
    for second in range(60):
        aligner.add_ticks(second + np.arange(1, 1001) / 1000.0, np.arange(1000, dtype=np.uint64) + 1000 * second)

    assert tick_of(aligner, 0.5) == 499
    assert tick_of(aligner, 59.0005) == 59000


def test_an_event_older_than_all_that_is_kept_gets_the_oldest_tick_kept() -> None:
    aligner = EventAligner()
    aligner.add_ticks(np.arange(100_000.0), np.arange(100_000, dtype=np.uint64))

    assert tick_of(aligner, 10.0) == 100_000 - 65_536


def test_ticks_arriving_in_any_portions_make_no_difference() -> None:
    times = np.arange(1000) / 10.0
    whole, portions = EventAligner(), EventAligner()
    whole.add_ticks(times, np.arange(1000, dtype=np.uint64))
    for k in range(0, 1000, 7):
        portions.add_ticks(times[k : k + 7], np.arange(k, min(k + 7, 1000), dtype=np.uint64))
    portions.add_ticks(times[:0], np.empty(0, np.uint64))

    assert [tick_of(whole, t) for t in (-1.0, 3.33, 99.9)] == [tick_of(portions, t) for t in (-1.0, 3.33, 99.9)]


def test_after_a_clock_was_set_back_new_events_find_the_new_ticks() -> None:
    aligner = aligner_with([500.0, 501.0, 502.0])
    aligner.add_ticks(np.array([10.0, 11.0, 12.0]), np.array([3, 4, 5], np.uint64))

    assert tick_of(aligner, 10.5) == 4
    aligner.add_event("after", 12.5, None, "lsl", NOW)
    assert list(aligner.take(NOW)) == []  # its tick is still to come
    aligner.add_ticks(np.array([13.0]), np.array([6], np.uint64))
    assert [event.tick for event in aligner.take(NOW)] == [6]


def test_an_event_from_before_a_clock_was_set_back_finds_its_tick_once_patience_is_over() -> None:
    aligner = aligner_with([500.0, 501.0, 502.0])
    aligner.add_event("before", 500.5, None, "lsl", NOW)
    aligner.add_ticks(np.array([10.0, 11.0]), np.array([3, 4], np.uint64))

    assert list(aligner.take(NOW)) == []  # a time to come on the new clock, as far as one can know
    assert [event.tick for event in aligner.take(NOW + 2.1)] == [1]


def test_a_time_that_came_twice_means_the_newer() -> None:
    aligner = aligner_with([10.0, 11.0, 12.0, 10.5, 11.5, 12.5])

    assert tick_of(aligner, 11.2) == 4
    assert tick_of(aligner, 10.2) == 1  # the newer time does not have it
    assert tick_of(aligner, 3.0) == 3


def test_at_the_end_every_event_is_due() -> None:
    aligner = aligner_with([1.0, 2.0])
    aligner.add_event("beyond the last tick", 2.5, None, "recording", NOW)

    assert [event.tick for event in aligner.take(math.inf)] == [1]


@pytest.mark.parametrize("t", [math.nan, math.inf, -math.inf])
def test_an_event_at_no_time_is_not_lost(t: float) -> None:
    aligner = aligner_with([1.0, 2.0])
    aligner.add_event("e", t, None, "recording", NOW)

    events = [*aligner.take(NOW), *aligner.take(NOW + 3.0)]

    assert len(events) == 1


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_events_added_by_other_threads_meanwhile_are_not_lost() -> None:
    aligner, n_events, n_threads = aligner_with([1.0]), 3000, 2

    def add() -> None:
        for _ in range(n_events):
            aligner.add_event("e", 0.5, None, "lsl", NOW)

    threads = [threading.Thread(target=add) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    left = 0
    while any(thread.is_alive() for thread in threads):
        left += len(list(aligner.take(NOW)))
    left += len(list(aligner.take(NOW)))

    assert left == n_threads * n_events
