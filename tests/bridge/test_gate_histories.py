"""The gate against its slow twin, and against an oracle, over histories that nobody thought of."""

import dataclasses
import importlib.util
import math
import random
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from naive.gate import Delivered, Limits, NaiveGate, Totals, Train, duration_us, fill, violations
from neuromod.bridge import gate as g
from neuromod.engine.compiled import JIT_ENABLED

US, MS, S = 1_000, 1_000_000, 1_000_000_000
T0 = 1000 * S


def draw_limits(rng: random.Random, share: float = 0.6) -> tuple[list[Limits], Totals]:
    """Draw limits; each is there in `share` of all cases."""

    def maybe(value: float) -> float:
        return value if rng.random() < share else math.inf

    electrodes = [
        Limits(
            amplitude_ua=maybe(rng.randint(10, 60)),
            charge_pc=maybe(rng.randint(500, 8000)),
            density_uc_cm2=maybe(rng.uniform(20, 400)),
            area_um2=rng.uniform(500, 4000),
            shannon=maybe(rng.uniform(0.001, 3)),
            balance_pc=maybe(rng.randint(0, 500)),
            balance_fraction=maybe(rng.uniform(0, 0.2)),
            interphase_us=maybe(rng.randint(0, 100)),
            rate_hz=maybe(rng.randint(1, 1500)),
            pulses=maybe(rng.randint(1, 20)),
            duration_us=maybe(rng.randint(100, 1_000_000)),
            interval_us=rng.choice([0.0, 100.0, rng.uniform(0, 3000)]),
            impedance_kohm=rng.uniform(1, 100),
            minute_pc=maybe(rng.randint(5_000, 60_000)),
            session_pc=maybe(rng.randint(5_000, 200_000)),
        )
        for _ in range(2)
    ]
    totals = Totals(
        compliance_mv=maybe(rng.uniform(100, 4000)),
        total_amplitude_ua=maybe(rng.randint(20, 120)),
        minute_pc=maybe(rng.randint(10_000, 120_000)),
        session_pc=maybe(rng.randint(20_000, 400_000)),
        start_within_ns=rng.choice([0, 1, 10 * MS, 100 * MS]),
        longest_arming_ns=rng.choice([100 * S, 10_000 * S]),
        heartbeat_ns=rng.choice([0, 30 * S]),
        peer_timeout_ns=rng.choice([10 * S, 1000 * S]),
        late_ticks=rng.randint(1, 4),
        n_peers=rng.choice([0, 2]),
    )
    return electrodes, totals


HOSTILE = (math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e-300, 1e300, -1.0, 1e7, 2.0**53)


def draw_train(rng: random.Random) -> Train:
    a, p = (
        (float(rng.randint(1, 50)), float(rng.randint(20, 300)))
        if rng.random() < 0.5
        else (rng.uniform(1, 50), rng.uniform(20, 300))
    )
    sign = rng.choice([-1, 1])
    train = Train(
        rng.randrange(2), sign * a, p, rng.choice([0.0, 0.0, 30.0]), -sign * a, p + rng.choice([0, 0, 0, 0.5, -3]),
        rng.choice([1, 1, 2, 5, 19]), rng.choice([700.0, 2000.0, rng.uniform(400, 5e5)]),
    )  # fmt: skip
    if rng.random() < 0.1:
        name = rng.choice([f.name for f in dataclasses.fields(Train)])
        value: Any = rng.choice([-1, 2, 33, 2**62, 0]) if name in ("electrode", "pulses") else rng.choice(HOSTILE)
        train = dataclasses.replace(train, **{name: value})
    return train


def record(train: Train) -> Any:
    row = np.zeros(1, g.TRAIN)[0]
    for name, value in vars(train).items():
        row[name] = value
    return row


@pytest.mark.parametrize("seed", range(40))
def test_the_gate_decides_as_its_slow_twin_does(seed: int) -> None:
    """Reasons, heartbeats and disarms are equal at every step of a random history, and the oracle finds nothing."""
    rng = random.Random(seed)
    electrodes, totals = draw_limits(rng)
    gate = g.make_gate(len(electrodes))[0]
    fill(gate, electrodes, totals)
    twin = NaiveGate(electrodes, totals)
    delivered: list[Delivered] = []
    now, token = T0, 0
    for _ in range(250):
        now += rng.choice([0, 1, US, MS, 10 * MS, 100 * MS, S, rng.randrange(20 * S)])
        told = now if rng.random() < 0.99 else rng.choice([now - 1, now - S, -1, g.MAX_NS + 1])
        kind = rng.random()
        if kind < 0.6:
            conditions = 1 << rng.randrange(11) if rng.random() < 0.1 else 0
            if rng.random() < 0.1:
                conditions |= g.CONDITION_IDLE
            assert g.watch(gate, told, conditions) == twin.watch(told, conditions)
            train = draw_train(rng)
            reason = g.check(gate, record(train), told, conditions)
            assert reason == twin.check(train, told, conditions), train
            if reason == g.ALLOWED:
                delay = rng.choice([0, totals.start_within_ns, rng.randint(0, totals.start_within_ns)])
                delivered.append(Delivered(Fraction(told + delay), train))
        elif kind < 0.7:
            offered = rng.choice([token, token, token, 5, 0])
            assert bool(g.heartbeat(gate, offered, told)) == twin.heartbeat(offered, told)
        elif kind < 0.8:
            peer = rng.randint(-1, 2)
            g.alive(gate, peer, told)
            twin.hear_peer(peer, told)
        elif kind < 0.97:
            for peer in range(totals.n_peers):
                g.alive(gate, peer, told)
                twin.hear_peer(peer, told)
            until, offered = told + rng.randint(-S, 2 * totals.longest_arming_ns), rng.randint(0, 4)
            reason = g.arm(gate, told, until, offered)
            assert reason == twin.arm(told, until, offered)
            token = offered if reason == g.ALLOWED else token
        else:
            g.disarm(gate, g.DISARMED, told)
            twin.disarm(g.DISARMED)
        assert bool(gate["armed"]) == twin.armed
        assert gate["disarm_reason"] == twin.why
    assert violations(delivered, electrodes, totals) == set()


finite = st.floats(0.001, 1e5)
numbers = st.one_of(finite, finite.map(lambda x: -x), st.integers(1, 500).map(float), st.floats())
sensible = st.builds(
    lambda e, a, p, sign, n, gap, period: Train(e, sign * a, p, gap, -sign * a, p, n, period),
    st.integers(0, 1), st.floats(1.0, 30.0), st.floats(10.0, 150.0), st.sampled_from([-1, 1]), st.integers(1, 8),
    st.sampled_from([0.0, 30.0]), st.floats(3000.0, 1e5),
)  # fmt: skip
hostile = st.builds(
    Train, st.integers(-(2**63), 2**63 - 1), numbers, numbers, numbers, numbers, numbers,
    st.integers(-(2**63), 2**63 - 1), numbers,
)  # fmt: skip
trains = st.one_of(sensible, sensible, sensible, hostile)
steps = st.sampled_from([1, US, MS, 10 * MS, 100 * MS, 110 * MS, 300 * MS, S, 2 * S, 5 * S, 30 * S, 60 * S, 61 * S])


class Histories(RuleBasedStateMachine):
    """Whatever is done to a gate in whatever order, what it lets pass keeps every limit.

    `delivered` is all that the oracle looks at. `spell` is a plain account of the arming: None once anything came that
    must end it.
    """

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.electrodes, self.totals = draw_limits(random.Random(seed), share=0.3)
        self.gate = g.make_gate(len(self.electrodes))
        fill(self.gate[0], self.electrodes, self.totals)
        self.now = self.latest = T0
        self.delivered: list[Delivered] = []
        self.checked = 0
        self.spell: dict[str, int] | None = None
        self.peers: dict[int, int] = {}
        self.late = self.fault = 0
        g.watch(self.gate[0], T0, 0)
        self.saved = self.gate.copy()

    def tell(self, now: int) -> bool:
        """Let time pass in the plain account; say whether the clock is one that can be."""
        if now < self.latest or now > g.MAX_NS:
            self.spell = None
            return False
        self.latest = now
        if self.spell is not None:
            lost = any(
                now - self.peers.get(p, -(10**18)) > self.totals.peer_timeout_ns for p in range(self.totals.n_peers)
            )
            silent = self.totals.heartbeat_ns and now - self.spell["beat"] > self.totals.heartbeat_ns
            if lost or silent or now >= self.spell["until"]:
                self.spell = None
        return True

    @rule(step=steps)
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(
        token=st.sampled_from([1, 2, 3, 0]),
        seconds=st.sampled_from([100.0, 50.0, 1.0, 0.0, -1.0, 10_000.0, 10_001.0]),
        are_heard=st.sampled_from([True, True, True, False]),
    )
    def arm(self, token: int, seconds: float, are_heard: bool) -> None:
        if are_heard:
            for peer in range(self.totals.n_peers):
                self.hear(peer)
        g.watch(self.gate[0], self.now, g.CONDITION_IDLE)
        self.tell(self.now)
        until = self.now + round(seconds * S)
        if g.arm(self.gate[0], self.now, until, token) == g.ALLOWED:
            assert token != 0
            assert not self.fault
            assert self.now < until <= self.now + self.totals.longest_arming_ns
            self.spell, self.late = {"until": until, "token": token, "beat": self.now}, 0

    @rule(token=st.integers(0, 3))
    def heartbeat(self, token: int) -> None:
        counted = g.heartbeat(self.gate[0], token, self.now)
        if self.tell(self.now) and self.spell is not None and token == self.spell["token"] != 0:
            self.spell["beat"] = self.now
        else:
            assert not counted

    @rule(peer=st.integers(-1, 9))
    def hear(self, peer: int) -> None:
        g.alive(self.gate[0], peer, self.now)
        if self.tell(self.now):
            self.peers[peer] = self.now

    @rule(
        back=st.one_of(st.integers(1, 100 * S), st.sampled_from([2**62, 2**40])),
        by=st.sampled_from(["watch", "arm", "alive", "heartbeat", "check"]),
    )
    def clock_goes_back(self, back: int, by: str) -> None:
        told, gate = self.latest - back, self.gate[0]
        if by == "check":
            assert g.check(gate, record(Train()), told, 0) != g.ALLOWED
            return  # a train that is refused for its numbers does not tell the time
        self.spell = None
        if by == "watch":
            g.watch(gate, told, 0)
            self.late = self.fault = 0
        elif by == "arm":
            assert g.arm(gate, told, told + S, 1) == g.CLOCK
        elif by == "alive":
            g.alive(gate, 0, told)
        else:
            assert not g.heartbeat(gate, 1, told)

    @rule()
    def disarm(self) -> None:
        g.disarm(self.gate[0], g.DISARMED, self.now)
        self.spell = None

    @rule()
    def checkpoint(self) -> None:
        self.saved = self.gate.copy()

    @rule()
    def restore(self) -> None:
        g.keep_doses(self.gate[0], self.saved[0])
        g.disarm(self.gate[0], g.RESTORED, self.now)
        self.spell = None

    @rule(token=st.sampled_from([1, 2]))
    def arm_well(self, token: int) -> None:
        self.arm(token, 100.0, True)

    @precondition(lambda self: len(self.delivered) < 40)
    @rule(asked=st.lists(sensible, min_size=1, max_size=3), step=steps, delay=st.sampled_from([0.0, 0.5, 1.0]))
    def tick_well(self, asked: list[Train], step: int, delay: float) -> None:
        if self.spell is None:
            self.arm(1, 100.0, True)
        self.tick(asked, 0, step, delay)

    @precondition(lambda self: len(self.delivered) < 40)
    @rule(
        asked=st.lists(trains, min_size=1, max_size=3),
        conditions=st.sampled_from([0] * 12 + [1 << bit for bit in range(11)]),
        step=steps,
        delay=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def tick(self, asked: list[Train], conditions: int, step: int, delay: float) -> None:
        gate = self.gate[0]
        self.now += step
        is_late = conditions & g.CONDITION_LATE
        self.late = self.late + 1 if is_late else self.late if conditions & g.CONDITION_IDLE else 0
        self.tell(self.now)
        grave = conditions & (8 | 16 | 32 | 128 | 256 | 1024) or self.late >= self.totals.late_ticks
        if grave:
            self.spell = None
        if not conditions & g.CONDITION_IDLE:
            self.fault = conditions & (8 | 16 | 128 | 1024)
        g.watch(gate, self.now, conditions)
        for train in asked:
            before = gate.copy()
            if g.check(gate, record(train), self.now, conditions) == g.ALLOWED:
                assert self.spell is not None
                assert not conditions & ~g.CONDITION_IDLE
                start = self.now + round(delay * self.totals.start_within_ns)
                self.delivered.append(Delivered(Fraction(start), train))
            else:
                for name in ("dose_pc", "bins_pc", "busy_until_ns"):
                    assert np.array_equal(gate[name], before[name])

    @invariant()
    def what_was_delivered_kept_every_limit(self) -> None:
        if len(getattr(self, "delivered", ())) > self.checked:
            self.checked = len(self.delivered)
            assert violations(self.delivered, self.electrodes, self.totals) == set()


def test_some_of_the_random_histories_do_deliver_trains() -> None:
    """What never lets anything pass would be safe, and the tests above worth nothing."""
    passed = []

    class Counted(Histories):
        def teardown(self) -> None:
            passed.append(len(getattr(self, "delivered", ())))

    run_state_machine_as_test(Counted, settings=_SETTINGS)
    # Hypothesis draws from constants that it finds in our sources, too: how many there are moves with any module that
    # is loaded. That histories at all, and many trains, pass is what counts.
    assert sum(n > 0 for n in passed) >= 20
    assert sum(passed) >= 100


_SETTINGS = settings(
    max_examples=80, stateful_step_count=50, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestHistories = Histories.TestCase
TestHistories.settings = _SETTINGS


def test_the_oracle_sees_each_limit_broken() -> None:
    """An oracle that cannot fail is worth nothing: each train here breaks one limit, alone or with the one before."""
    one, long = Train(), Train(pulses=3, period_us=1e6)
    cases = {
        "amplitude": (Limits(amplitude_ua=9.0), Totals(), [one]),
        "charge": (Limits(charge_pc=1999.0), Totals(), [one]),
        "density": (Limits(density_uc_cm2=99.0), Totals(), [one]),
        "shannon": (Limits(shannon=0.19), Totals(), [one]),
        "balance": (Limits(balance_fraction=0.1), Totals(), [Train(phase2_us=150.0)]),
        "interphase": (Limits(interphase_us=1.0), Totals(), [Train(interphase_us=2.0)]),
        "pulses": (Limits(pulses=2), Totals(), [long]),
        "duration": (Limits(duration_us=1e6), Totals(), [long]),
        "compliance": (Limits(impedance_kohm=50.0), Totals(compliance_mv=499.0), [one]),
        "rate": (Limits(rate_hz=0.5), Totals(), [long]),
        "interval": (Limits(interval_us=700.0), Totals(), [Train(pulses=2, period_us=1000.0)]),
        "overlap": (Limits(), Totals(), [one, one]),
        "minute": (Limits(minute_pc=5000.0), Totals(), [long]),
        "session": (Limits(session_pc=5000.0), Totals(), [long]),
        "total_minute": (Limits(), Totals(minute_pc=5000.0), [long]),
        "total_session": (Limits(), Totals(session_pc=5000.0), [long]),
        "total_amplitude": (Limits(), Totals(total_amplitude_ua=19.0), [one, dataclasses.replace(one, electrode=1)]),
        "nonsense": (Limits(), Totals(), [Train(amplitude_ua=math.nan)]),
    }
    for name, (limits, totals, given) in cases.items():
        found = violations([Delivered(Fraction(T0), t) for t in given], [limits, Limits()], totals)
        assert name in found, name
        assert found <= {name, "interval"}, name  # trains that overlap have no interval either
    assert duration_us(long) == 2_000_400


def test_the_oracle_sees_single_pulses_that_come_at_too_high_a_rate() -> None:
    limits = [Limits(rate_hz=1000.0), Limits(rate_hz=1000.0)]

    def given(gap_ns: int, electrode: int) -> list[Delivered]:
        return [Delivered(Fraction(T0 + gap_ns), Train(electrode=electrode)), Delivered(Fraction(T0), Train())]

    assert violations(given(999_999, 0), limits, Totals()) == {"rate"}
    assert violations(given(1_000_000, 0), limits, Totals()) == set()
    assert violations(given(999_999, 1), limits, Totals()) == set()


def load_bench() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "gate_histories.py"
    spec = importlib.util.spec_from_file_location("gate_histories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gate_histories"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not JIT_ENABLED, reason="the driver of the histories takes hours uncompiled")
def test_no_history_gets_an_unsafe_pulse_past_the_gate_and_every_broken_gate_is_caught() -> None:
    bench = load_bench()
    result = bench.run(3000, seed=7)
    assert result["unsafe"] == 0, result["broken"]
    assert result["pulses"] > 3000  # it lets trains pass
    between_trains = {"overlap", "interval", "rate"}
    assert between_trains | {"minute", "session", "total_minute", "clock", "ledger"} <= set(result["refused"])
    missed = [name for name, found in bench.check_oracle(20_000, seed=7).items() if not found["unsafe"]]
    assert missed == []
