"""From events, a schedule, a hand or another session to decisions of the gate; and what a session file may ask for."""

import itertools
from typing import Any

import numpy as np
import pydantic
import pytest

from neuromod.bridge import gate as g
from neuromod.bridge.safety_config import DENSITY_UC_CM2, MODES, StimulationConfig, build_gate, is_sent
from neuromod.bridge.stimulation import (
    CAUSE_MANUAL,
    CAUSE_SCHEDULE,
    CAUSE_YOKED,
    MAX_DECISIONS_PER_TICK,
    MAX_REQUESTS,
    YOKED_TRAIN,
    StimulationState,
    count,
    make_stimulation,
    public_mode,
    request_program,
    stimulate,
)
from neuromod.engine.errors import ConfigError

MS, S = 1_000_000, 1_000_000_000
T0 = 1000 * S


def config(**changes: Any) -> StimulationConfig:
    table: dict[str, Any] = {
        "electrodes": [
            {"name": "a", "area_um2": 2000.0, "material": "sirof", "impedance_kohm": 40.0},
            {"name": "b", "area_um2": 2000.0, "material": "sirof", "impedance_kohm": 40.0},
        ],
        "programs": [
            {"name": "left", "electrode": "a", "amplitude_ua": -20.0, "phase_us": 200.0},
            {
                "name": "right",
                "electrode": "b",
                "amplitude_ua": -10.0,
                "phase_us": 200.0,
                "pulses": 2,
                "period_us": 1e4,
            },
        ],
        "triggers": [{"event": 0, "program": "left"}, {"event": 5, "program": "right"}],
        "mode": "live",
        "key_file": "key",
        "ledger": "dose.json",
    }
    table |= changes
    if table["mode"] == "yoked":
        table.setdefault("yoked_session", "session")
    return StimulationConfig.model_validate(table)


class Session:
    """A stimulation state with a clock that the test turns."""

    def __init__(self, *, armed: bool = True, yoked: Any = None, room: int = 64, **changes: Any) -> None:
        self.state: StimulationState = make_stimulation(config(**changes), dt_ms=1.0, yoked=yoked)
        self.state.gate["granted_pc"] = np.inf
        if armed:
            assert g.arm(self.state.gate[0], T0, T0 + 500 * S, 7) == g.ALLOWED
        self.state.gate["heartbeat_ns"] = 0
        self.decisions = np.zeros(room, g.DECISION)

    def tick(self, tick: int, events: int = 0, conditions: int = 0) -> Any:
        n = stimulate(self.state, events, tick, T0 + tick * MS, conditions, self.decisions, 0)
        return self.decisions[:n].copy()


def test_where_nothing_is_configured_nothing_happens() -> None:
    state = make_stimulation(None, dt_ms=1.0)
    decisions = np.zeros(4, g.DECISION)
    assert stimulate(state, 0xFFFFFFFF, 0, T0, 0, decisions, 2) == 2
    assert not request_program(state, 0)
    assert g.REASONS[g.arm(state.gate[0], T0, T0 + S, 1)] == "electrode"
    assert not decisions.view(np.uint8).any()


def test_an_event_asks_for_its_program_and_the_decision_holds_the_train() -> None:
    (decision,) = Session().tick(3, events=1 << 5 | 1 << 6)
    assert g.REASONS[decision["reason"]] == "allowed"
    assert decision["delivered"] == 1
    assert (decision["cause"], decision["program"], decision["electrode"], decision["tick"]) == (5, 1, 1, 3)
    assert (decision["amplitude_ua"], decision["amplitude2_ua"], decision["pulses"]) == (-10.0, 10.0, 2)
    assert decision["now_ns"] == T0 + 3 * MS
    assert decision["expires_ns"] == T0 + 3 * MS + 10 * MS


def test_every_decision_is_numbered_and_refusals_are_decisions_too() -> None:
    session = Session()
    first, second, third = session.tick(0, events=0b100001), session.tick(1, events=1), session.tick(2)
    assert first["id"].tolist() == [1, 2]
    assert second["id"].tolist() == [3]
    assert g.REASONS[second["reason"][0]] == "overlap"
    assert (second["delivered"][0], second["expires_ns"][0]) == (0, 0)
    assert third.size == 0
    assert count(session.state) == {
        "issued": 2, "delivered": 2, "overflow": 0, "missed": 0, "requests_refused": 0, "refused_overlap": 1,
    }  # fmt: skip


def test_the_gate_is_watched_in_ticks_without_trains_too() -> None:
    session = Session()
    session.tick(0, conditions=g.CONDITION_DISCONTINUITY)
    (decision,) = session.tick(1, events=1)
    assert g.REASONS[decision["reason"]] == "not_armed"
    assert g.REASONS[session.state.gate[0]["disarm_reason"]] == "discontinuity"


@pytest.mark.parametrize("mode", ["dry_run", "sham"])
def test_what_is_not_sent_is_judged_as_ever_and_costs_no_dose(mode: str) -> None:
    live, quiet = Session(), Session(mode=mode)
    for tick in range(0, 200, 7):
        a, b = live.tick(tick, events=0b100001), quiet.tick(tick, events=0b100001)
        assert a["reason"].tolist() == b["reason"].tolist()
        assert not b["delivered"].any()
    np.testing.assert_array_equal(live.state.gate["dose_pc"], quiet.state.gate["would_pc"])
    assert live.state.gate["dose_pc"].any()
    assert not quiet.state.gate["dose_pc"].any()


def test_requests_by_hand_are_heard_in_every_mode_at_the_next_tick_only() -> None:
    yoked = np.zeros(0, YOKED_TRAIN)
    for mode in MODES:
        session = Session(mode=mode, yoked=yoked if mode == "yoked" else None, schedule=SCHEDULE)
        assert request_program(session.state, 1)
        (decision,) = session.tick(0)
        assert (decision["cause"], decision["program"]) == (CAUSE_MANUAL, 1)
        assert session.tick(1).size == 0


def test_requests_for_which_there_is_no_room_or_no_program_are_refused() -> None:
    session = Session()
    for program in (-1, 2, 16, 2**62):
        assert not request_program(session.state, program)
    assert all(request_program(session.state, 0) for _ in range(MAX_REQUESTS))
    assert not request_program(session.state, 0)
    assert count(session.state)["requests_refused"] == 5


def test_what_is_asked_beyond_the_room_is_refused_and_counted() -> None:
    session = Session()
    for _ in range(MAX_REQUESTS):
        request_program(session.state, 0)
    assert session.tick(0, events=0b100001).size == MAX_DECISIONS_PER_TICK
    assert count(session.state)["overflow"] == 2
    small = Session(room=1)
    assert small.tick(0, events=0b100001).size == 1
    assert count(small.state)["overflow"] == 1
    assert small.state.gate[0]["busy_until_ns"][1] == g.NEVER_NS  # not judged, so not issued


SCHEDULE = {"program": "left", "period_ms": 150.0, "jitter_ms": 20.0, "seed": 3}


def due(seed: int, n: int = 3000, step: int = 1) -> list[int]:
    session = Session(mode="open_loop", schedule=SCHEDULE | {"seed": seed})
    at = [(tick, d) for tick in range(0, n, step) for d in session.tick(tick, events=0xFF)]
    assert all(d["cause"] == CAUSE_SCHEDULE and d["delivered"] for _, d in at)
    return [tick for tick, _ in at]


def test_open_loop_follows_its_schedule_and_no_event() -> None:
    ticks = due(seed=3)
    assert len(ticks) in (19, 20)  # the twentieth is due at 3000, give or take the jitter
    for k, tick in enumerate(ticks):
        assert abs(tick - 150 * (k + 1)) <= 21  # the jitter, and up to the next tick
    assert len({b - a for a, b in itertools.pairwise(ticks)}) > 5


def test_a_schedule_is_a_matter_of_its_seed() -> None:
    assert due(seed=3) == due(seed=3) != due(seed=4)


def test_a_schedule_that_was_held_up_does_not_catch_up() -> None:
    session = Session(mode="open_loop", schedule=SCHEDULE)
    session.tick(0)
    asked = [tick for tick in (5000, 5001, 5002, 5100, 5180) for _ in session.tick(tick)]
    assert asked[0] == 5000
    assert len(asked) <= 2
    assert 5001 not in asked


def yoke(*rows: tuple[int, int, float]) -> Any:
    trains = np.zeros(len(rows), YOKED_TRAIN)
    for train, (tick, electrode, amplitude) in zip(trains, rows, strict=True):
        train["tick"], train["electrode"], train["amplitude_ua"], train["amplitude2_ua"] = (
            tick, electrode, -amplitude, amplitude,
        )  # fmt: skip
        train["phase_us"] = train["phase2_us"] = 200.0
        train["pulses"] = 1
    return trains


def test_yoked_trains_come_at_their_ticks_through_the_same_gate() -> None:
    session = Session(mode="yoked", yoked=yoke((2, 0, 20.0), (2, 1, 5.0), (9, 0, 20.0), (500, 0, 21.0)))
    at = [(tick, d) for tick in range(600) for d in session.tick(tick, events=0xFF)]
    assert [(tick, int(d["electrode"]), g.REASONS[d["reason"]]) for tick, d in at] == [
        (2, 0, "allowed"), (2, 1, "allowed"), (9, 0, "overlap"), (500, 0, "charge"),
    ]  # fmt: skip
    assert all(d["cause"] == CAUSE_YOKED for _, d in at)


def test_yoked_trains_whose_tick_never_comes_are_counted_and_not_given() -> None:
    session = Session(mode="yoked", yoked=yoke((2, 0, 20.0), (9, 0, 20.0)))
    assert session.tick(5).size == 0
    assert session.tick(9).size == 1
    assert count(session.state)["missed"] == 1


def test_yoked_trains_and_their_mode_go_together() -> None:
    with pytest.raises(ConfigError, match="yoked"):
        make_stimulation(config(), dt_ms=1.0, yoked=yoke((1, 0, 1.0)))
    with pytest.raises(ConfigError, match="yoked"):
        make_stimulation(config(mode="yoked"), dt_ms=1.0)
    with pytest.raises(ConfigError, match="order"):
        make_stimulation(config(mode="yoked"), dt_ms=1.0, yoked=yoke((2, 0, 1.0), (1, 0, 1.0)))


def test_blind_the_operator_sees_neither_mode_nor_what_was_sent() -> None:
    shown = {}
    for mode in ("live", "sham"):
        session = Session(mode=mode, blind=True)
        (decision,) = session.tick(0, events=1)
        assert decision["delivered"] == is_sent(mode)  # the log has it
        shown[mode] = (public_mode(session.state), count(session.state))
    assert shown["live"] == shown["sham"]
    assert public_mode(Session().state) == "live"


def test_two_runs_of_the_same_inputs_make_the_same_decisions() -> None:
    runs = []
    for _ in range(2):
        session, rng = Session(), np.random.default_rng(5)
        runs.append([session.tick(t, int(rng.integers(64)), int(rng.integers(2)) * 2).tobytes() for t in range(300)])
    assert runs[0] == runs[1]


# ---- the session file


def test_the_default_mode_sends_nothing() -> None:
    electrodes = [{"name": "a", "area_um2": 2000.0, "material": "pt", "impedance_kohm": 40.0}]
    quiet = StimulationConfig.model_validate({"electrodes": electrodes})
    assert quiet.mode == "dry_run"
    assert not is_sent(quiet.mode)
    assert not build_gate(quiet)[0]["sends"]
    assert quiet.electrodes[0].charge_nc == 4.0
    assert quiet.heartbeat_ms > 0


@pytest.mark.parametrize("material", DENSITY_UC_CM2)
def test_the_material_gives_the_limit_of_charge_density_unless_it_is_given(material: str) -> None:
    electrode = {"name": "a", "area_um2": 2000.0, "material": material, "impedance_kohm": 40.0}
    for more, expected in (({}, DENSITY_UC_CM2[material]), ({"density_uc_cm2": 12.0}, 12.0)):
        built = build_gate(StimulationConfig.model_validate({"electrodes": [electrode | more]}))
        assert built[0]["density_uc_cm2"][0] == expected


PROGRAM = {"name": "p", "electrode": "a", "amplitude_ua": -10.0, "phase_us": 100.0}
ELECTRODE = {"name": "a", "area_um2": 3000.0, "material": "sirof", "impedance_kohm": 40.0}
TRAIN = PROGRAM | {"pulses": 10, "period_us": 1e4}


@pytest.mark.parametrize(
    ("electrode", "program", "says"),
    [
        ({"amplitude_ua": 9.0}, PROGRAM, "expected at most 9 uA, got 10"),
        ({"charge_nc": 0.9}, PROGRAM, "expected at most 0.9 nC, got 1"),
        ({"density_uc_cm2": 33.0}, PROGRAM, "expected at most 33 uC/cm2, got 33.3"),
        ({"shannon_k": -1.5}, PROGRAM, "expected at most -1.5"),
        ({}, PROGRAM | {"phase2_us": 110.0}, "expected at most 0.01 nC of difference, got 0.1"),
        ({}, PROGRAM | {"interphase_us": 101.0}, "expected at most 100 us, got 101"),
        ({"rate_hz": 99.0}, TRAIN, "expected at most 99 Hz, got 100"),
        ({"pulses": 9}, TRAIN, "expected at most 9 pulses, got 10"),
        ({"duration_ms": 90.0}, TRAIN, "expected at most 90000 us, got 90200"),
        ({}, TRAIN | {"period_us": 199.0}, "expected a period_us of at least 200, got 199"),
        ({"interval_us": 9900.0}, TRAIN, "expected a period_us of at least 10100, got 10000"),
        ({"impedance_kohm": 501.0}, PROGRAM, "expected at most 5 V, got 5.01"),
        ({"minute_uc": 0.009}, TRAIN, "expected at most 0.009 uC, got 0.01"),
        ({"session_uc": 0.009}, TRAIN, "expected at most 0.009 uC, got 0.01"),
        ({}, PROGRAM | {"amplitude2_ua": -10.0}, "sign"),
        ({}, PROGRAM | {"amplitude_ua": 0.0}, "sign"),
    ],
)
def test_a_program_that_would_never_pass_is_refused_with_the_limit_and_the_way_out(
    electrode: dict[str, Any], program: dict[str, Any], says: str
) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        StimulationConfig.model_validate({"electrodes": [ELECTRODE | electrode], "programs": [program]})
    assert "program p would never pass the gate" in str(caught.value)
    assert says in str(caught.value)


def test_the_shannon_criterion_is_refused_for_microelectrodes() -> None:
    with pytest.raises(pydantic.ValidationError, match="does not hold for microelectrodes"):
        StimulationConfig.model_validate({"electrodes": [ELECTRODE | {"area_um2": 1999.0, "shannon_k": 1.5}]})
    StimulationConfig.model_validate({"electrodes": [ELECTRODE | {"area_um2": 2000.0, "shannon_k": 1.5}]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "live", "ledger": None}, "ledger"),
        ({"mode": "sham", "key_file": None}, "key_file"),
        ({"mode": "open_loop"}, "schedule"),
        ({"mode": "live", "yoked_session": "x"}, "yoked_session"),
        ({"schedule": {"program": "left", "period_ms": 10.0, "jitter_ms": 6.0}}, "jitter_ms"),
        ({"schedule": {"program": "nobody", "period_ms": 10.0}}, "expected one of left, right, got nobody"),
        ({"triggers": [{"event": 1, "program": "nobody"}]}, "expected one of left, right, got nobody"),
        ({"triggers": [{"event": 1, "program": "left"}, {"event": 1, "program": "right"}]}, "each only once"),
        ({"peers": ["x", "x"]}, "each only once"),
        ({"lease_ms": 20.0, "start_within_ms": 30.0}, "start_within_ms"),
        ({"lease_ms": float("nan")}, "lease_ms"),
        ({"unknown": 1}, "unknown"),
        ({"electrodes": []}, "electrodes"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=says):
        config(**changes)
