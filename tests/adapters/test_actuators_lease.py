"""The last word at the device: whatever comes, in whatever order, no pulse outlives its lease."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from conformance.actuators import train
from neuromod.adapters.actuators.base import Stimulation, StimulationKind
from neuromod.adapters.actuators.lease import LATEST_NS, Heard, Lease, Limits

MS = 1_000_000
T0 = 10**12


def at(ms: float) -> int:
    return T0 + round(ms * MS)


def message(
    seq: int, ms: float, kind: StimulationKind = "train", lease_ms: float = 100.0, **changes: Any
) -> Stimulation:
    t = 1e-9 * at(ms)
    return replace(train(seq, t, t + 1e-3 * lease_ms), kind=kind, **changes)


def run(lease: Lease, until_ms: float) -> list[float]:
    """Return when pulses start, in ms, if the device looks exactly when it should."""
    found: list[float] = []
    while (due := lease.next_ns) is not None and due <= at(until_ms):
        found += [(pulse.start_ns - T0) / MS for pulse in lease.pulses(due)]
    lease.pulses(at(until_ms))
    return found


def test_a_train_has_its_pulses_at_its_period() -> None:
    lease = Lease()
    assert lease.hear(message(1, 0, pulses=4), at(0)) is Heard.STARTED
    assert run(lease, 50) == [0, 10, 20, 30]
    (end,) = lease.ended()
    assert (end.pulses, end.asked, end.t_ns) == (4, 4, at(30.45))
    assert not lease.is_running


def test_a_train_stops_in_its_middle_when_the_lease_is_not_prolonged() -> None:
    lease = Lease()
    lease.hear(message(1, 0, lease_ms=25), at(0))
    assert run(lease, 1000) == [0, 10, 20]
    assert lease.ended()[0].pulses == 3


def test_leases_prolong_a_train_and_the_last_one_ends_it() -> None:
    lease = Lease()
    lease.hear(message(1, 0, lease_ms=25), at(0))
    assert run(lease, 20) == [0, 10, 20]
    assert lease.hear(message(2, 20, "lease", 25), at(20)) is Heard.PROLONGED
    assert run(lease, 1000) == [30, 40]


def test_after_the_lease_only_a_new_train_starts_pulses_again() -> None:
    lease = Lease()
    lease.hear(message(1, 0, lease_ms=15), at(0))
    run(lease, 20)
    lease.hear(message(2, 20, "lease"), at(20))
    assert run(lease, 60) == []
    lease.hear(message(3, 60), at(60))
    assert run(lease, 75) == [60, 70]


def test_a_train_that_comes_too_late_does_not_start_and_ends_what_runs() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    assert lease.hear(message(2, 0, electrode=4, lease_ms=20), at(20)) is Heard.STALE
    assert run(lease, 100) == []


def test_a_stop_ends_everything_whatever_its_number_and_age() -> None:
    lease = Lease()
    lease.hear(message(7, 0), at(0))
    assert lease.hear(message(2, -500, "stop", lease_ms=0), at(1)) is Heard.STOPPED
    assert run(lease, 100) == []


@pytest.mark.parametrize("seq", [5, 4, 0])
def test_a_number_that_does_not_rise_stops_everything_and_does_not_act(seq: int) -> None:
    lease = Lease()
    lease.hear(message(5, 0), at(0))
    assert lease.hear(message(seq, 1, electrode=4), at(1)) is Heard.REPEATED
    assert run(lease, 100) == []
    assert lease.hear(message(seq + 1, 100), at(100)) is Heard.STARTED  # the other daemon is heard from then on


def test_a_lost_message_may_have_been_a_stop_and_is_taken_as_one() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    assert lease.hear(message(3, 1, "lease"), at(1)) is Heard.PROLONGED
    assert run(lease, 100) == []


def test_a_clock_that_goes_back_stops_everything() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    assert lease.pulses(at(0))
    assert lease.pulses(at(-1)) == []
    assert not lease.is_running
    assert lease.hear(message(2, -2), at(-2)) is Heard.BACKWARD


@pytest.mark.parametrize(
    ("changes", "heard"),
    [
        ({"t": 1e-9 * at(5)}, Heard.FUTURE),
        ({"lease_ms": 1001}, Heard.LONG),
        ({"expires": math.nan}, Heard.OUT_OF_RANGE),
        ({"expires": math.inf}, Heard.OUT_OF_RANGE),
        ({"electrode": 16}, Heard.OUT_OF_RANGE),
        ({"electrode": -1}, Heard.OUT_OF_RANGE),
        ({"amplitude_ua": -201.0, "amplitude2_ua": 201.0}, Heard.OUT_OF_RANGE),
        ({"amplitude_ua": math.nan}, Heard.OUT_OF_RANGE),
        ({"amplitude2_ua": -50.0}, Heard.OUT_OF_RANGE),
        ({"phase2_us": 100.0}, Heard.OUT_OF_RANGE),
        ({"phase_us": 0.0, "phase2_us": 0.0}, Heard.OUT_OF_RANGE),
        ({"phase_us": 2001.0, "phase2_us": 2001.0}, Heard.OUT_OF_RANGE),
        ({"interphase_us": -1.0}, Heard.OUT_OF_RANGE),
        ({"pulses": 0}, Heard.OUT_OF_RANGE),
        ({"pulses": 10_001}, Heard.OUT_OF_RANGE),
        ({"period_us": 449.0}, Heard.OUT_OF_RANGE),
    ],
)
def test_what_the_device_does_not_allow_stops_everything(changes: dict[str, Any], heard: Heard) -> None:
    lease = Lease(Limits())
    lease.hear(message(1, 0, electrode=7), at(0))
    assert lease.hear(message(2, 1, **changes), at(1)) is heard
    assert run(lease, 100) == []


def test_a_second_train_on_a_busy_electrode_is_refused_and_the_first_goes_on() -> None:
    lease = Lease()
    lease.hear(message(1, 0, pulses=2), at(0))
    assert run(lease, 5) == [0]
    assert lease.hear(message(2, 5), at(5)) is Heard.BUSY
    assert lease.hear(message(3, 5, electrode=4, pulses=1), at(5)) is Heard.STARTED
    assert run(lease, 80) == [5, 10]


def test_a_pulse_that_began_before_a_stop_is_over_before_its_electrode_is_used_again() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    lease.pulses(at(0))
    lease.stop(at(0.1))
    assert lease.hear(message(2, 0.2), at(0.2)) is Heard.BUSY  # 0.45 ms long
    assert lease.hear(message(3, 0.45), at(0.45)) is Heard.STARTED


def test_a_device_that_looks_late_gives_no_burst_and_leaves_out_what_is_too_late() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    assert lease.pulses(at(35)) == []
    assert run(lease, 60) == [40, 50, 60]


def test_a_pulse_that_is_a_little_late_moves_the_next_ones_and_never_shortens_a_period() -> None:
    lease = Lease()
    lease.hear(message(1, 0), at(0))
    assert len(lease.pulses(at(0.5))) == 1
    assert lease.pulses(at(10.4)) == []
    assert len(lease.pulses(at(10.5))) == 1
    assert lease.pulses(at(21.2)) == []  # 1.2 ms behind its place
    assert len(lease.pulses(at(30))) == 1


KINDS: list[StimulationKind] = ["train", "lease", "stop"]


def history(seed: int) -> Iterator[tuple[int, Stimulation | None]]:
    """Give times, and what comes then: mostly a gate as it should be, at times everything that it should not be."""
    rng = random.Random(seed)
    now, seq = T0, 0
    for _ in range(80):
        now += rng.randrange(0, 12 * MS) if rng.random() < 0.985 else -rng.randrange(1, 3 * MS)
        if rng.random() < 0.5:
            yield now, None
            continue
        seq += 1 if rng.random() < 0.95 else rng.choice([0, -1, -5, 2, 9])
        age_ms = rng.uniform(0.0, 2.0) if rng.random() < 0.98 else -1.0
        lease_ms = rng.uniform(20.0, 60.0) if rng.random() < 0.95 else rng.choice([-5.0, 0.0, 2.0, 2000.0])
        t = 1e-9 * now - 1e-3 * age_ms
        yield (
            now,
            replace(
                train(seq, t, t + 1e-3 * lease_ms),
                kind=rng.choices(KINDS, [4, 6, 0.3])[0],
                electrode=rng.randrange(4),
                amplitude_ua=-50.0 if rng.random() < 0.98 else -51.0 * rng.choice([4, -1]),
                pulses=rng.randrange(1, 12),
                period_us=rng.uniform(500.0, 12_000.0),
            ),
        )


def test_no_history_of_messages_and_times_gets_a_pulse_past_its_lease() -> None:
    seen: Counter[str] = Counter()
    for seed in range(400):
        lease = Lease(Limits(n_electrodes=4))
        words: list[tuple[Stimulation, int]] = []
        started: dict[int, int] = {}  # by number of the train: the place among the words at which it was heard
        own: dict[int, list[int]] = {}  # by number of the train: when its pulses started
        latest = T0
        turned_back = -1  # how many words had been heard when the clock last went back
        for number, (now, said) in enumerate(history(seed)):
            if now < latest:
                turned_back = len(words) + (said is not None)
            latest = now
            if said is not None:
                said = replace(said, id=number)
                words.append((said, now))
                heard = lease.hear(said, now)
                seen[heard] += 1
                if heard is Heard.STARTED:
                    started[number] = len(words) - 1
            for pulse in lease.pulses(now):
                assert pulse.start_ns == now
                place = started[pulse.train]
                assert place >= turned_back, "the clock went back since"
                since = words[place:]
                assert all(word.kind != "stop" for word, _ in since)
                assert now < round(since[-1][0].expires * 1e9), "past the newest word"
                for (a, t_a), (b, t_b) in itertools.pairwise(since):
                    assert b.seq == a.seq + 1, "a word was lost, or from another daemon"
                    assert t_a <= t_b < round(a.expires * 1e9), "the lease ran out between two words"
                asked = since[0][0]
                assert abs(asked.amplitude_ua) == 50.0
                times = own.setdefault(pulse.train, [])
                assert len(times) <= pulse.index < asked.pulses
                late_ns = now - since[0][1] - pulse.index * round(asked.period_us * 1e3)
                assert 0 <= late_ns <= LATEST_NS, "too early, or too late"
                ends = round(asked.expires * 1e9) + pulse.index * round(asked.period_us * 1e3)
                assert now <= ends, "later than the gate counts with"
                assert not times or now - times[-1] >= round(asked.period_us * 1e3), "a burst"
                times.append(now)
                seen["pulse"] += 1
                seen["later pulse"] += pulse.index > 0
    # nothing above holds because nothing happened
    assert seen["later pulse"] > 1000
    assert all(seen[heard] > 10 for heard in Heard), seen
