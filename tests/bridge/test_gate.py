"""The safety gate: each limit binds by itself, and a fault ends an arming until somebody arms again."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from naive.gate import Limits, Totals, Train, fill
from neuromod.bridge import gate as g

S = 10**9
T0 = 1000 * S


def make(
    electrodes: Sequence[Limits] = (Limits(), Limits()),
    totals: Totals | None = None,
    *,
    armed: bool = True,
    sends: bool = True,
) -> Any:
    gate = g.make_gate(len(electrodes))[0]
    fill(gate, electrodes, totals or Totals(), sends=sends)
    if armed:
        assert g.arm(gate, T0, T0 + 10**6 * S, 7) == g.ALLOWED
    return gate


def record(train: Train) -> Any:
    row = np.zeros(1, g.TRAIN)[0]
    for name, value in vars(train).items():
        row[name] = value
    return row


def ask(gate: Any, train: Train, at_ns: int = T0, conditions: int = 0) -> str:
    return g.REASONS[g.check(gate, record(train), at_ns, conditions)]


def up(x: float) -> float:
    return math.nextafter(x, math.inf)


def down(x: float) -> float:
    return math.nextafter(x, 0.0)


TWO = Train(pulses=2, period_us=1000.0)  # pulses of 400 us, 600 us between them

BY_ITSELF: dict[str, tuple[Limits, Totals, Train, Train]] = {
    # limit -> it alone, a train that just keeps it, a train that just does not
    "amplitude": (Limits(amplitude_ua=10.0), Totals(), Train(), Train(amplitude_ua=-up(10.0))),
    "total_amplitude": (Limits(), Totals(total_amplitude_ua=10.0), Train(), Train(amplitude2_ua=up(10.0))),
    "charge": (Limits(charge_pc=2000.0), Totals(), Train(), Train(phase_us=up(200.0))),
    # 2000 pC on 2000 um^2 are 100 uC/cm^2
    "density": (Limits(density_uc_cm2=100.0), Totals(), Train(), Train(phase_us=up(200.0))),
    # and 0.002 uC x 100 uC/cm^2 = 0.2 = 10^k
    "shannon": (Limits(shannon=up(0.2)), Totals(), Train(), Train(phase_us=200.0 * (1.0 + 1e-15))),
    "balance": (Limits(balance_pc=10.0), Totals(), Train(phase2_us=201.0), Train(phase2_us=up(201.0))),
    "interphase": (Limits(interphase_us=30.0), Totals(), Train(interphase_us=30.0), Train(interphase_us=up(30.0))),
    "rate": (Limits(rate_hz=1000.0), Totals(), TWO, dataclasses.replace(TWO, period_us=down(1000.0))),
    "pulses": (Limits(pulses=2), Totals(), TWO, dataclasses.replace(TWO, pulses=3)),
    "duration": (Limits(duration_us=1400.0), Totals(), TWO, dataclasses.replace(TWO, period_us=up(1000.0))),
    "interval": (Limits(interval_us=600.0), Totals(), TWO, dataclasses.replace(TWO, period_us=down(1000.0))),
    "overlap": (Limits(), Totals(), Train(pulses=2, period_us=400.0), Train(pulses=2, period_us=399.0)),
    "compliance": (Limits(impedance_kohm=50.0), Totals(compliance_mv=500.0), Train(), Train(amplitude2_ua=up(10.0))),
    "minute": (Limits(minute_pc=4000.0), Totals(), TWO, dataclasses.replace(TWO, amplitude_ua=-up(10.0))),
    "total_minute": (Limits(), Totals(minute_pc=4000.0), TWO, dataclasses.replace(TWO, pulses=3)),
    "session": (Limits(session_pc=4000.0), Totals(), TWO, dataclasses.replace(TWO, amplitude_ua=-up(10.0))),
    "total_session": (Limits(), Totals(session_pc=4000.0), TWO, dataclasses.replace(TWO, pulses=3)),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_ITSELF)
def test_each_limit_binds_by_itself(name: str) -> None:
    limits, totals, inside, outside = BY_ITSELF[name]
    assert ask(make([limits], totals), inside) == "allowed"
    assert ask(make([limits], totals), outside) == name
    assert ask(make([Limits()]), outside) == ("overlap" if name == "overlap" else "allowed")  # that one has no number


def test_balance_binds_as_a_part_of_the_first_phase_too() -> None:
    limits = Limits(balance_fraction=0.03125)
    assert ask(make([limits]), Train(amplitude_ua=-16.0, amplitude2_ua=16.5)) == "allowed"
    assert ask(make([limits]), Train(amplitude_ua=-16.0, amplitude2_ua=up(16.5))) == "balance"
    assert ask(make([limits]), Train(amplitude2_ua=0.0)) == "balance"


def test_two_phases_of_the_same_charge_are_balanced_however_long_each_is() -> None:
    gate = make([Limits(balance_pc=0.0, balance_fraction=0.0)])
    assert ask(gate, Train(amplitude_ua=-3.3, phase_us=170.1, amplitude2_ua=3.3, phase2_us=170.1)) == "allowed"
    assert ask(gate, Train(amplitude_ua=-16.0, phase_us=100.0, amplitude2_ua=4.0, phase2_us=400.0), T0 + S) == "allowed"


def test_currents_of_trains_that_overlap_on_different_electrodes_add_up() -> None:
    gate = make(totals=Totals(total_amplitude_ua=30.0))
    long = dataclasses.replace(TWO, period_us=1e6)  # lasts 1.0004 s
    assert ask(gate, long) == "allowed"
    other = Train(electrode=1, amplitude_ua=-20.0, phase_us=100.0)
    assert ask(gate, dataclasses.replace(other, amplitude_ua=-up(20.0))) == "total_amplitude"
    assert ask(gate, other) == "allowed"
    assert ask(gate, dataclasses.replace(other, amplitude_ua=-30.0), T0 + S) == "total_amplitude"
    assert ask(gate, dataclasses.replace(other, amplitude_ua=-30.0), T0 + S + 400_001) == "allowed"


def test_the_interval_holds_between_trains_from_the_latest_end_of_the_first() -> None:
    gate = make([Limits(interval_us=600.0), Limits()], Totals(start_within_ns=5_000_000))
    assert ask(gate, Train()) == "allowed"
    end = T0 + 5_000_000 + 400_000
    assert ask(gate, Train(), end) == "overlap"
    assert ask(gate, Train(), end + 599_999) == "interval"
    assert ask(gate, Train(electrode=1), end + 599_999) == "allowed"
    assert ask(gate, Train(), end + 600_000) == "allowed"


def test_single_pulses_cannot_evade_the_rate() -> None:
    """A pulse of 400 us that may begin 5 ms late; at 300 Hz the next comes 3,333,333.3 ns after its end or later."""
    gate = make([Limits(rate_hz=300.0), Limits()], Totals(start_within_ns=5_000_000))
    assert ask(gate, Train()) == "allowed"
    end = T0 + 5_000_000 + 400_000
    assert ask(gate, Train(), end) == "overlap"
    assert ask(gate, Train(), end + 3_333_333) == "rate"
    assert ask(gate, Train(electrode=1), end + 3_333_333) == "allowed"
    assert ask(gate, Train(), end + 3_333_334) == "allowed"


def test_the_rate_and_the_interval_hold_between_trains_each_where_the_other_does_not_bind() -> None:
    end = T0 + 400_000
    for limits, gap_ns, name in (
        (Limits(rate_hz=1000.0, interval_us=600.0), 999_999, "rate"),
        (Limits(rate_hz=1000.0, interval_us=1200.0), 1_199_999, "interval"),
    ):
        gate = make([limits])
        assert ask(gate, Train()) == "allowed"
        assert ask(gate, Train(), end + gap_ns) == name
        assert ask(gate, Train(), end + gap_ns + 1) == "allowed"


@pytest.mark.parametrize("rate_hz", [0.0, math.nan])
def test_a_rate_that_is_not_given_forbids_single_pulses_too(rate_hz: float) -> None:
    gate = make()
    gate["rate_hz"] = rate_hz
    assert ask(gate, Train()) == "rate"


@pytest.mark.parametrize("name", ["minute", "total_minute"])
def test_the_dose_of_a_minute_is_free_again_after_the_minute_and_not_before(name: str) -> None:
    limits = Limits(minute_pc=4000.0 if name == "minute" else math.inf)
    gate = make([limits, limits], Totals(minute_pc=4000.0 if name == "total_minute" else math.inf))
    assert ask(gate, TWO) == "allowed"
    assert ask(gate, Train(), T0 + 60 * S) == name
    assert ask(gate, Train(), T0 + 61 * S + S - 1) == name  # the whole second of its end counts, and one to spare
    assert ask(gate, Train(), T0 + 62 * S) == "allowed"


def test_a_train_counts_for_the_minute_as_long_as_any_of_it_does() -> None:
    gate = make([Limits(minute_pc=62 * 2000.0)])
    assert ask(gate, Train(pulses=60, period_us=1e6)) == "allowed"  # its last pulse comes 59 s from now
    assert ask(gate, Train(pulses=3, period_us=1e6), T0 + 100 * S) == "minute"
    assert ask(gate, Train(pulses=2, period_us=1e6), T0 + 100 * S) == "allowed"
    assert ask(gate, Train(pulses=60, period_us=1e6), T0 + 121 * S) == "allowed"


def test_a_train_longer_than_the_gate_looks_ahead_is_refused_whatever_the_limits() -> None:
    assert ask(make(), Train(pulses=61, period_us=1e6)) == "duration"


def test_the_dose_of_a_session_adds_up_by_electrode_and_in_total() -> None:
    gate = make([Limits(session_pc=4000.0), Limits()], Totals(session_pc=8000.0))
    assert ask(gate, TWO) == "allowed"
    assert ask(gate, Train(), T0 + 1000 * S) == "session"
    assert ask(gate, dataclasses.replace(TWO, electrode=1), T0 + 1000 * S) == "allowed"
    assert ask(gate, Train(electrode=1), T0 + 2000 * S) == "total_session"
    assert gate["dose_pc"][[0, 1, g.TOTAL]].tolist() == [4000.0, 4000.0, 8000.0]


def test_nothing_is_allowed_beyond_what_the_ledger_granted() -> None:
    gate = make()
    gate["granted_pc"] = 2000.0
    assert ask(gate, TWO) == "ledger"
    assert ask(gate, Train()) == "allowed"
    assert ask(gate, Train(), T0 + S) == "ledger"
    g.grant(gate, 0, 4000.0)
    assert ask(gate, Train(), T0 + S) == "ledger"  # the total is still used up
    g.grant(gate, g.TOTAL, 4000.0)
    assert ask(gate, Train(), T0 + S) == "allowed"


def test_a_grant_is_never_taken_back_and_senseless_ones_are_ignored() -> None:
    gate = make()
    gate["granted_pc"] = 5.0
    for index, value in ((0, 4.0), (0, math.nan), (-1, 9.0), (g.TOTAL + 1, 9.0), (2**62, 9.0)):
        g.grant(gate, index, value)
    assert (gate["granted_pc"] == 5.0).all()


def test_where_nothing_is_sent_the_limits_hold_and_the_dose_is_kept_apart() -> None:
    gate = make([Limits(session_pc=4000.0)], sends=False)
    gate["granted_pc"] = 0.0
    assert ask(gate, TWO) == "allowed"
    assert ask(gate, Train(), T0 + S) == "session"
    assert gate["dose_pc"][0] == 0.0
    assert gate["would_pc"][[0, g.TOTAL]].tolist() == [4000.0, 4000.0]


HOSTILE = (math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e-300, 1e300, 1.7e308, -1.0)


@pytest.mark.parametrize(
    "name", ["amplitude_ua", "phase_us", "interphase_us", "amplitude2_ua", "phase2_us", "period_us"]
)
def test_a_number_that_no_stimulator_could_have_is_refused(name: str) -> None:
    small = (0.0, -0.0, 5e-324, 1e-300)
    may_be: dict[str, tuple[float, ...]] = {"interphase_us": small, "period_us": small}
    may_be |= {"amplitude2_ua": (0.0, -0.0), "phase2_us": (0.0, -0.0), "amplitude_ua": (-1.0,)}
    for value in HOSTILE:
        expected = "allowed" if value in may_be.get(name, ()) else "nonsense"
        train = record(Train())
        train[name] = value
        assert g.REASONS[g.check(make(), train, T0, 0)] == expected, value


@pytest.mark.parametrize("pulses", [0, -1, g.MAX_PULSES + 1, 2**63 - 1, -(2**63)])
def test_a_count_that_no_stimulator_could_have_is_refused(pulses: int) -> None:
    assert ask(make(), dataclasses.replace(TWO, pulses=pulses)) == "nonsense"


def test_two_phases_of_one_sign_are_refused() -> None:
    assert ask(make(), Train(amplitude_ua=10.0)) == "nonsense"
    assert ask(make(), Train(amplitude_ua=-10.0, amplitude2_ua=-10.0)) == "nonsense"
    assert ask(make(), Train(amplitude_ua=10.0, amplitude2_ua=-10.0)) == "allowed"


@pytest.mark.parametrize("electrode", [-1, 2, 31, 32, 33, 2**63 - 1, -(2**63)])
def test_an_electrode_that_is_not_there_is_refused(electrode: int) -> None:
    assert ask(make(), Train(electrode=electrode)) == "electrode"


def test_a_gate_of_zeros_refuses_everything_and_cannot_be_armed() -> None:
    gate = np.zeros(1, g.GATE)[0]
    assert ask(gate, Train()) == "electrode"
    assert g.REASONS[g.arm(gate, T0, T0 + S, 7)] == "electrode"
    assert not g.heartbeat(gate, 0, T0)
    gate["armed"] = gate["n_electrodes"] = 1
    assert ask(gate, Train()) != "allowed"


@pytest.mark.parametrize("name", [n for n in Limits.__dataclass_fields__ if n != "interval_us"])
def test_a_limit_that_is_not_a_number_refuses(name: str) -> None:
    gate = make(totals=Totals(compliance_mv=1e9))
    gate[name] = math.nan
    assert ask(gate, TWO) != "allowed"


@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_always_to_the_safe_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        a, b = (float(x) for x in rng.uniform(1e-3, 1e6, 2) * 10.0 ** rng.integers(-3, 4, 2))
        exact = Fraction(a) * Fraction(b)
        for rounded in (g.product_up(a, b), g.product_down(a, b)):
            assert abs(Fraction(rounded) - exact) <= exact * Fraction(2, 2**52)
        assert Fraction(g.product_down(a, b)) <= exact <= Fraction(g.product_up(a, b))
        assert (
            Fraction(a) + Fraction(b)
            <= Fraction(g.sum_up(a, b))
            <= (Fraction(a) + Fraction(b)) * (1 + Fraction(2, 2**52))
        )
    assert g.product_up(20.0, 200.0) == g.product_down(20.0, 200.0) == 4000.0  # what is exact stays


# ---- arming


def test_nothing_is_allowed_before_the_first_arming_or_after_its_end() -> None:
    gate = make(armed=False)
    assert ask(gate, Train()) == "not_armed"
    assert g.arm(gate, T0, T0 + S, 7) == g.ALLOWED
    assert ask(gate, Train(), T0 + S - 1) == "allowed"
    assert ask(gate, Train(electrode=1), T0 + S) == "expired"
    assert ask(gate, Train(electrode=1), T0 + S + 1) == "not_armed"


@pytest.mark.parametrize(
    ("until", "token", "now", "reason"),
    [
        (T0, 7, T0, "arming"),
        (T0 - 1, 7, T0, "arming"),
        (T0 + 5 * S + 1, 7, T0, "arming"),
        (2**63 - 1, 7, T0, "arming"),
        (-(2**63), 7, T0, "arming"),
        (T0 + S, 0, T0, "token"),
        (T0 + S, 7, -1, "clock"),
        (2**63 - 1, 7, 2**63 - 2, "clock"),
        (-(2**63), 7, -(2**63), "clock"),
        (T0 + 5 * S, 7, T0, "allowed"),
    ],
)
def test_an_arming_that_makes_no_sense_is_refused(until: int, token: int, now: int, reason: str) -> None:
    gate = make(totals=Totals(longest_arming_ns=5 * S), armed=False)
    assert g.REASONS[g.arm(gate, now, until, token)] == reason
    assert bool(gate["armed"]) == (reason == "allowed")


def test_no_arming_before_the_minute_of_a_restart_is_over() -> None:
    gate = make(totals=Totals(arm_after_ns=T0 + 61 * S), armed=False)
    assert g.REASONS[g.arm(gate, T0 + 61 * S - 1, T0 + 100 * S, 7)] == "waiting"
    assert g.REASONS[g.arm(gate, T0 + 61 * S, T0 + 100 * S, 7)] == "allowed"


def test_heartbeats_with_the_token_keep_an_arming_and_nothing_brings_it_back() -> None:
    gate = make(totals=Totals(heartbeat_ns=S))
    assert g.heartbeat(gate, 7, T0 + S)
    assert not g.heartbeat(gate, 8, T0 + 2 * S)
    assert not g.heartbeat(gate, 0, T0 + 2 * S)
    assert ask(gate, Train(), T0 + 2 * S) == "allowed"
    assert not g.heartbeat(gate, 7, T0 + 2 * S + 1)  # too late
    assert g.REASONS[gate["disarm_reason"]] == "heartbeat"
    assert not g.heartbeat(gate, 7, T0 + 2 * S + 2)
    assert ask(gate, Train(), T0 + 2 * S + 3) == "not_armed"
    assert g.arm(gate, T0 + 3 * S, T0 + 9 * S, 9) == g.ALLOWED
    assert ask(gate, Train(), T0 + 3 * S) == "allowed"
    assert not g.heartbeat(gate, 7, T0 + 3 * S)  # of the arming before


def test_a_peer_must_live_before_and_while_stimulation_is_armed() -> None:
    gate = make(totals=Totals(n_peers=2, peer_timeout_ns=S), armed=False)
    g.alive(gate, 0, T0)
    assert g.REASONS[g.arm(gate, T0, T0 + 9 * S, 7)] == "peer"
    for peer in (-1, 2, 8, 2**62):
        g.alive(gate, peer, T0)
    assert g.REASONS[g.arm(gate, T0, T0 + 9 * S, 7)] == "peer"
    g.alive(gate, 1, T0)
    assert g.REASONS[g.arm(gate, T0, T0 + 9 * S, 7)] == "allowed"
    g.alive(gate, 0, T0 + S)
    assert g.REASONS[g.watch(gate, T0 + S, 0)] == "allowed"
    g.alive(gate, 1, T0 + S + 1)  # too late: its return does not help
    assert not gate["armed"]
    assert g.REASONS[gate["disarm_reason"]] == "peer"


DISARMING = ("STOPPED", "NONFINITE_STATE", "SILENT", "DISCONTINUITY", "PAUSED", "BOARD")
INHIBITING = ("LATE", "FILLED", "NONFINITE_INPUT", "WARMING")


@pytest.mark.parametrize("name", DISARMING)
def test_a_grave_condition_disarms_and_must_be_over_before_the_next_arming(name: str) -> None:
    gate, bit, reason = make(), getattr(g, f"CONDITION_{name}"), getattr(g, name)
    assert g.REASONS[g.watch(gate, T0, bit)] == name.lower()
    assert g.watch(gate, T0, bit) == g.ALLOWED  # it is disarmed already
    assert gate["disarm_reason"] == reason
    assert ask(gate, Train()) == "not_armed"
    assert g.arm(gate, T0, T0 + S, 7) == reason
    g.watch(gate, T0, 0)
    assert ask(gate, Train()) == "not_armed"
    assert g.arm(gate, T0, T0 + S, 7) == g.ALLOWED


@pytest.mark.parametrize("name", ["NONFINITE_STATE", "DISCONTINUITY", "PAUSED", "BOARD"])
def test_a_fault_of_the_last_tick_forbids_arming_through_turns_without_a_tick(name: str) -> None:
    gate, bit, reason = make(armed=False), getattr(g, f"CONDITION_{name}"), getattr(g, name)
    g.watch(gate, T0, bit)
    for turn in (g.CONDITION_IDLE, g.CONDITION_IDLE | g.CONDITION_LATE, g.CONDITION_IDLE):
        g.watch(gate, T0, turn)
        assert g.arm(gate, T0, T0 + S, 7) == reason
    g.watch(gate, T0, 0)
    g.watch(gate, T0, g.CONDITION_IDLE)
    assert g.arm(gate, T0, T0 + S, 7) == g.ALLOWED


@pytest.mark.parametrize("name", ["STOPPED", "SILENT"])
def test_a_fault_that_turns_without_a_tick_see_too_is_over_when_they_see_it_no_more(name: str) -> None:
    gate = make(armed=False)
    g.watch(gate, T0, g.CONDITION_IDLE | getattr(g, f"CONDITION_{name}"))
    assert g.arm(gate, T0, T0 + S, 7) == getattr(g, name)
    g.watch(gate, T0, g.CONDITION_IDLE)
    assert g.arm(gate, T0, T0 + S, 7) == g.ALLOWED


@pytest.mark.parametrize("name", INHIBITING)
def test_a_passing_condition_forbids_the_trains_of_its_tick_alone(name: str) -> None:
    gate, bit = make(), getattr(g, f"CONDITION_{name}")
    assert g.watch(gate, T0, bit) == g.ALLOWED
    assert ask(gate, Train(), T0, bit) == name.lower()
    assert g.watch(gate, T0 + 1, 0) == g.ALLOWED
    assert ask(gate, Train(), T0 + 1) == "allowed"


@pytest.mark.parametrize("name", [*DISARMING, *INHIBITING])
def test_no_train_passes_under_any_condition_even_unwatched(name: str) -> None:
    assert ask(make(), Train(), T0, getattr(g, f"CONDITION_{name}")) == name.lower()


def test_late_ticks_in_a_row_disarm_and_turns_without_a_tick_do_not_break_the_row() -> None:
    gate = make(totals=Totals(late_ticks=3))
    late, idle = g.CONDITION_LATE, g.CONDITION_IDLE
    assert [g.watch(gate, T0, c) for c in (late, late, 0, late, idle, late, idle)] == [g.ALLOWED] * 7
    assert g.REASONS[g.watch(gate, T0, late)] == "late"


def test_a_clock_that_goes_back_disarms_and_helps_nobody() -> None:
    gate = make([Limits(minute_pc=2000.0)])
    assert ask(gate, Train(), T0 + 10 * S) == "allowed"
    assert g.REASONS[g.watch(gate, T0 + 10 * S - 1, 0)] == "clock"
    assert ask(gate, Train(), T0) == "clock"
    assert g.REASONS[g.arm(gate, T0 + S, T0 + 20 * S, 7)] == "clock"
    assert g.REASONS[g.arm(gate, T0 + 10 * S, T0 + 20 * S, 7)] == "allowed"
    assert ask(gate, Train(), T0 + 11 * S) == "minute"


@pytest.mark.parametrize("now", [-1, -(2**63), 2**63 - 1, g.MAX_NS + 1])
def test_a_time_that_cannot_be_disarms(now: int) -> None:
    assert ask(make(), Train(), now) == "clock"
    gate = make()
    assert g.REASONS[g.watch(gate, now, 0)] == "clock"
    assert not gate["armed"]


def test_every_function_that_is_told_the_time_ends_an_arming_that_is_over() -> None:
    late = T0 + 10**6 * S
    for act in (
        lambda gate: g.watch(gate, late, 0),
        lambda gate: g.heartbeat(gate, 7, late),
        lambda gate: g.alive(gate, 0, late),
        lambda gate: g.arm(gate, late, late, 7),
        lambda gate: ask(gate, Train(), late),
    ):
        gate = make(totals=Totals(n_peers=1, peer_timeout_ns=10**18), armed=False)
        g.alive(gate, 0, T0)
        assert g.arm(gate, T0, late, 7) == g.ALLOWED
        act(gate)
        assert not gate["armed"]
        assert g.REASONS[gate["disarm_reason"]] == "expired"


def test_a_refused_arming_leaves_an_earlier_one_as_it_was() -> None:
    gate = make()
    assert g.REASONS[g.arm(gate, T0, T0, 8)] == "arming"
    assert g.heartbeat(gate, 7, T0)
    assert ask(gate, Train()) == "allowed"


def test_disarm_by_command_is_counted_once() -> None:
    gate = make()
    g.disarm(gate, g.DISARMED, T0)
    g.disarm(gate, g.STOPPED, T0)
    assert (gate["arms"], gate["disarms"], gate["disarm_reason"]) == (1, 1, g.DISARMED)


def test_a_refused_train_costs_nothing_and_changes_nothing_but_the_time() -> None:
    gate = make([Limits(charge_pc=1.0)])
    before = gate.copy()
    assert ask(gate, Train(), T0 + S) == "charge"
    assert gate == before


def test_doses_of_a_checkpoint_count_where_they_are_higher() -> None:
    gate, other = make(), make()
    gate["dose_pc"][:2], other["dose_pc"][:2] = (1.0, 5.0), (3.0, 4.0)
    other["would_pc"][0] = 2.0
    g.keep_doses(gate, other)
    assert gate["dose_pc"][:2].tolist() == [3.0, 5.0]
    assert gate["would_pc"][0] == 2.0


def test_the_reasons_have_numbers_names_and_sentences() -> None:
    assert len(set(g.REASONS)) == len(g.REASON_TEXTS) == g.N_REASONS
    for i, name in enumerate(g.REASONS):
        assert getattr(g, name.upper()) == i
