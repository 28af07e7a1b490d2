"""Random histories with faults against the safety gate, judged by an oracle that knows nothing of it.

    python tests/bench/gate_histories.py            # 100,000 histories, then the check of the oracle
    python tests/bench/gate_histories.py --n 1000   # fewer

A history draws limits, and then arms, disarms, heartbeats (wrong ones too), lost peers, conditions, clocks that jump
ahead and back, checkpoints that are restored, daemons that are killed and begin again from their ledger, and trains:
most of them near the limits, some hostile. What the gate allows is delivered, each train at a random time before it
expires.

The oracle sees what was delivered: pulses on a line of time, in whole ns, uA and pC, so that its arithmetic is exact
and none of it is the gate's. Every window of 60 s and every sum of currents is counted out. Beside it stands a plain
account of who armed when, and which fault came since.

A check of the oracle follows: gates that each have one limit knocked out, every one of which it must catch.

Exit code 0: no pulse was unsafe, and every broken gate was caught.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from neuromod.bridge import gate as g

F = TypeVar("F", bound=Callable[..., Any])

_E, _P = 3, 2  # electrodes and peers
_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000
_LEASE_NS = 100 * _MS
_MAX_PULSES = 4096
_NONE = 2**40  # a limit that is not there

# columns of the limits of an electrode
(
    _AMPLITUDE, _CHARGE, _DENSITY, _AREA, _SHANNON, _BALANCE, _FRACTION, _INTERPHASE, _RATE, _PULSES, _DURATION,
    _INTERVAL, _IMPEDANCE, _MINUTE, _SESSION,
) = range(15)  # fmt: skip
# columns of the others
(
    _COMPLIANCE, _CURRENT, _ALL_MINUTE, _ALL_SESSION, _START_WITHIN, _LONGEST, _BEAT, _PEER, _LATE,
) = range(9)  # fmt: skip

KINDS = (
    "nonsense", "electrode", "amplitude", "charge", "density", "shannon", "balance", "fraction", "interphase", "pulses",
    "duration", "compliance", "rate", "overlap", "interval", "minute", "session", "total_amplitude", "total_minute",
    "total_session", "not_armed", "condition", "arming",
)  # fmt: skip
"""What the oracle tells apart."""
_K = {name: i for i, name in enumerate(KINDS)}
(
    _K_NONSENSE, _K_ELECTRODE, _K_AMPLITUDE, _K_CHARGE, _K_DENSITY, _K_SHANNON, _K_BALANCE, _K_FRACTION, _K_INTERPHASE,
    _K_PULSES, _K_DURATION, _K_COMPLIANCE, _K_RATE, _K_OVERLAP, _K_INTERVAL, _K_MINUTE, _K_SESSION, _K_CURRENT,
    _K_ALL_MINUTE, _K_ALL_SESSION, _K_NOT_ARMED, _K_CONDITION, _K_ARMING,
) = range(len(KINDS))  # fmt: skip

MUTATIONS = (
    "none", "amplitude", "charge", "density", "shannon", "balance", "fraction", "interphase", "rate", "pulses",
    "duration", "interval", "minute", "session", "compliance", "total_amplitude", "total_minute", "total_session",
    "late start", "heartbeat", "peers", "late ticks", "clock", "overlap between trains",
    "minute forgotten when disarmed", "dose forgotten at a restart", "no wait after a restart", "expiry",
    "conditions", "disarm ignored", "restored armed", "dose of a checkpoint believed", "rate between trains",
    "faults forgotten without a tick",
)  # fmt: skip
"""What is taken from the gate to see whether the oracle misses it; the first takes nothing."""
(
    _WHOLE, _NO_AMPLITUDE, _NO_CHARGE, _NO_DENSITY, _NO_SHANNON, _NO_BALANCE, _NO_FRACTION, _NO_INTERPHASE, _NO_RATE,
    _NO_PULSES, _NO_DURATION, _NO_INTERVAL, _NO_MINUTE, _NO_SESSION, _NO_COMPLIANCE, _NO_TOTAL_AMPLITUDE,
    _NO_TOTAL_MINUTE, _NO_TOTAL_SESSION, _NO_LATE_START, _NO_HEARTBEAT, _NO_PEERS, _NO_LATE_TICKS, _NO_CLOCK,
    _NO_OVERLAP_BETWEEN_TRAINS, _NO_MINUTE_FORGOTTEN_WHEN_DISARMED, _NO_DOSE_FORGOTTEN_AT_A_RESTART,
    _NO_NO_WAIT_AFTER_A_RESTART, _NO_EXPIRY, _NO_CONDITIONS, _NO_DISARM_IGNORED, _NO_RESTORED_ARMED,
    _NO_DOSE_OF_A_CHECKPOINT_BELIEVED, _NO_RATE_BETWEEN_TRAINS, _NO_FAULTS_FORGOTTEN_WITHOUT_A_TICK,
) = range(len(MUTATIONS))  # fmt: skip


def compiled(function: F) -> F:
    """Compile a part of the driver; not cached, since it is run once."""
    njit: Any = numba.njit
    return njit(function)  # type: ignore[no-any-return]


# Kernels are inlined wherever they are called: each is called in one place here, or this would compile for minutes.


@compiled
def _copy(rows: Any, to: int, origin: int) -> None:
    """Copy a gate byte by byte: assigned as a record of 40 KB, it would keep LLVM busy for minutes."""
    for i in range(rows.shape[1]):
        rows[to, i] = rows[origin, i]


@compiled
def _check(gate: Any, train: Any, now: int, conditions: int) -> int:
    return g.check(gate, train, now, conditions)


@compiled
def _watch(gate: Any, now: int, conditions: int) -> int:
    return g.watch(gate, now, conditions)


@compiled
def _arm(gate: Any, now: int, until: int, token: int) -> int:
    return g.arm(gate, now, until, token)


@compiled
def _heartbeat(gate: Any, token: int, now: int) -> bool:
    return g.heartbeat(gate, token, now)


@compiled
def _alive(gate: Any, peer: int, now: int) -> None:
    g.alive(gate, peer, now)


@compiled
def _disarm(gate: Any, reason: int, now: int) -> None:
    g.disarm(gate, reason, now)


@compiled
def _keep_doses(gate: Any, other: Any) -> None:
    g.keep_doses(gate, other)


@compiled
def _pick(values: Any) -> Any:
    return values[np.random.randint(values.shape[0])]  # noqa: NPY002  (numba knows this generator alone)


@compiled
def _chance(percent: int) -> bool:
    return np.random.randint(100) < percent  # noqa: NPY002


@compiled
def _draw_limits(limits: Any, totals: Any, near: Any) -> None:
    """Draw limits that the trains of `_draw_train` are around; each is missing in every third history or so."""
    for e in range(_E):
        limits[e, _AMPLITUDE] = np.random.randint(10, 60)  # noqa: NPY002
        limits[e, _CHARGE] = np.random.randint(500, 8000)  # noqa: NPY002
        limits[e, _DENSITY] = np.random.randint(20, 400)  # noqa: NPY002
        limits[e, _AREA] = np.random.randint(500, 4000)  # noqa: NPY002
        limits[e, _SHANNON] = np.random.randint(1, 3000)  # noqa: NPY002  (in 1/1024 uC^2/cm^2)
        limits[e, _BALANCE] = np.random.randint(0, 500)  # noqa: NPY002
        limits[e, _FRACTION] = np.random.randint(0, 16)  # noqa: NPY002  (in 1/64)
        limits[e, _INTERPHASE] = np.random.randint(0, 100)  # noqa: NPY002
        limits[e, _RATE] = np.random.randint(1, 1500)  # noqa: NPY002
        limits[e, _PULSES] = np.random.randint(1, 20)  # noqa: NPY002
        limits[e, _DURATION] = _pick(near) // 1000 + 100
        limits[e, _INTERVAL] = np.random.randint(0, 3000)  # noqa: NPY002
        limits[e, _IMPEDANCE] = np.random.randint(1, 100)  # noqa: NPY002
        limits[e, _MINUTE] = np.random.randint(5_000, 60_000)  # noqa: NPY002
        limits[e, _SESSION] = np.random.randint(5_000, 200_000)  # noqa: NPY002
        for c in range(limits.shape[1]):
            if c not in (_AREA, _IMPEDANCE) and _chance(45):
                limits[e, c] = 0 if c == _INTERVAL else _NONE
    totals[_COMPLIANCE] = np.random.randint(100, 4000) if _chance(40) else _NONE  # noqa: NPY002
    totals[_CURRENT] = np.random.randint(20, 120) if _chance(60) else _NONE  # noqa: NPY002
    totals[_ALL_MINUTE] = np.random.randint(10_000, 120_000) if _chance(60) else _NONE  # noqa: NPY002
    totals[_ALL_SESSION] = np.random.randint(20_000, 400_000) if _chance(60) else _NONE  # noqa: NPY002
    totals[_START_WITHIN] = _pick(np.array([0, 1, 1 * _MS, 10 * _MS, 100 * _MS]))
    totals[_LONGEST] = _pick(np.array([10 * _S, 600 * _S, 100_000 * _S]))
    totals[_BEAT] = _pick(np.array([0, 0, 2 * _S, 30 * _S]))
    totals[_PEER] = _pick(np.array([2 * _S, 30 * _S, 1000 * _S, 1000 * _S]))
    totals[_LATE] = np.random.randint(1, 4)  # noqa: NPY002


@compiled
def _as_limit(value: int) -> float:
    return np.inf if value == _NONE else float(value)


@compiled
def _configure(gate: Any, limits: Any, totals: Any, mutation: int) -> None:
    """Give the gate the limits, but for the one that is knocked out."""
    gate["n_electrodes"] = _E
    gate["n_peers"] = 0 if mutation == _NO_PEERS else _P
    gate["sends"] = 1
    for e in range(_E):
        gate["amplitude_ua"][e] = np.inf if mutation == _NO_AMPLITUDE else _as_limit(limits[e, _AMPLITUDE])
        gate["charge_pc"][e] = np.inf if mutation == _NO_CHARGE else _as_limit(limits[e, _CHARGE])
        gate["density_uc_cm2"][e] = np.inf if mutation == _NO_DENSITY else _as_limit(limits[e, _DENSITY])
        gate["area_um2"][e] = limits[e, _AREA]
        gate["shannon"][e] = np.inf if mutation == _NO_SHANNON else _as_limit(limits[e, _SHANNON]) / 1024.0
        gate["balance_pc"][e] = np.inf if mutation == _NO_BALANCE else _as_limit(limits[e, _BALANCE])
        gate["balance_fraction"][e] = np.inf if mutation == _NO_FRACTION else _as_limit(limits[e, _FRACTION]) / 64.0
        gate["interphase_us"][e] = np.inf if mutation == _NO_INTERPHASE else _as_limit(limits[e, _INTERPHASE])
        gate["rate_hz"][e] = np.inf if mutation == _NO_RATE else _as_limit(limits[e, _RATE])
        gate["pulses"][e] = np.inf if mutation == _NO_PULSES else _as_limit(limits[e, _PULSES])
        gate["duration_us"][e] = np.inf if mutation == _NO_DURATION else _as_limit(limits[e, _DURATION])
        gate["interval_us"][e] = 0.0 if mutation == _NO_INTERVAL else float(limits[e, _INTERVAL])
        gate["minute_pc"][e] = np.inf if mutation == _NO_MINUTE else _as_limit(limits[e, _MINUTE])
        gate["session_pc"][e] = np.inf if mutation == _NO_SESSION else _as_limit(limits[e, _SESSION])
        gate["impedance_kohm"][e] = limits[e, _IMPEDANCE]
    gate["compliance_mv"] = np.inf if mutation == _NO_COMPLIANCE else _as_limit(totals[_COMPLIANCE])
    gate["total_amplitude_ua"] = np.inf if mutation == _NO_TOTAL_AMPLITUDE else _as_limit(totals[_CURRENT])
    gate["minute_pc"][g.TOTAL] = np.inf if mutation == _NO_TOTAL_MINUTE else _as_limit(totals[_ALL_MINUTE])
    gate["session_pc"][g.TOTAL] = np.inf if mutation == _NO_TOTAL_SESSION else _as_limit(totals[_ALL_SESSION])
    gate["start_within_ns"] = 0 if mutation == _NO_LATE_START else totals[_START_WITHIN]
    gate["longest_arming_ns"] = totals[_LONGEST]
    gate["heartbeat_ns"] = 0 if mutation == _NO_HEARTBEAT else totals[_BEAT]
    gate["peer_timeout_ns"] = totals[_PEER]
    gate["late_ticks"] = 1_000_000 if mutation == _NO_LATE_TICKS else totals[_LATE]


@compiled
def _draw_train(train: Any, near: Any, hostile: Any) -> bool:
    """Draw a train; say whether it holds a number that no train may have."""
    train["electrode"] = np.random.randint(_E)  # noqa: NPY002
    sign = 1 if _chance(50) else -1
    a, p = np.random.randint(1, 50), np.random.randint(20, 300)  # noqa: NPY002
    train["amplitude_ua"], train["phase_us"] = sign * a, p
    train["amplitude2_ua"], train["phase2_us"] = -sign * a, p
    if _chance(10):
        train["phase2_us"] = p + np.random.randint(-10, 11)  # noqa: NPY002
    if _chance(5):
        train["amplitude2_ua"] = -sign * np.random.randint(1, 50)  # noqa: NPY002
    train["interphase_us"] = np.random.randint(0, 100) if _chance(20) else 0  # noqa: NPY002
    train["pulses"] = np.random.randint(1, 20) if _chance(40) else 1  # noqa: NPY002
    train["period_us"] = _pick(near) // 20_000 + np.random.randint(100, 2000)  # noqa: NPY002
    if not _chance(8):
        return False
    number = hostile[np.random.randint(hostile.shape[0])]  # noqa: NPY002
    field = np.random.randint(8)  # noqa: NPY002
    if field == 0:
        train["amplitude_ua"] = number
    elif field == 1:
        train["phase_us"] = number
    elif field == 2:
        train["interphase_us"] = number
    elif field == 3:
        train["amplitude2_ua"] = number
    elif field == 4:
        train["phase2_us"] = number
    elif field == 5:
        train["period_us"] = number
    elif field == 6:
        train["pulses"] = _pick(np.array([0, -1, 2**62, -(2**62), 1_000_001]))
    else:
        train["electrode"] = _pick(np.array([-1, _E, 31, 32, 33, 2**62, -(2**62)]))
        return True
    if field == 6:
        return True
    size = abs(number)
    if field in (0, 3):
        return not (1e-6 <= size <= 1e6 or (field == 3 and size == 0.0))
    if field in (1, 4):
        return not (1e-3 <= number <= 1e6 or (field == 4 and size == 0.0))
    return not 0.0 <= number <= (6e7 if field == 5 else 1e6)


@compiled
def _judge_train(train: Any, limits: Any, totals: Any, broken: Any) -> None:
    """Judge a train by itself; all of its numbers are whole."""
    e = train["electrode"]
    a, p = abs(np.int64(train["amplitude_ua"])), np.int64(train["phase_us"])
    a2, p2 = abs(np.int64(train["amplitude2_ua"])), np.int64(train["phase2_us"])
    n, period, gap = train["pulses"], np.int64(train["period_us"]), np.int64(train["interphase_us"])
    strongest, charge, left = max(a, a2), max(a * p, a2 * p2), abs(a * p - a2 * p2)
    length = p + gap + p2
    area = limits[e, _AREA]
    broken[_K_AMPLITUDE] += strongest > limits[e, _AMPLITUDE]
    broken[_K_CHARGE] += charge > limits[e, _CHARGE]
    broken[_K_DENSITY] += charge * 100 > limits[e, _DENSITY] * area
    broken[_K_SHANNON] += limits[e, _SHANNON] != _NONE and charge * charge * 1024 > limits[e, _SHANNON] * 10_000 * area
    broken[_K_BALANCE] += left > limits[e, _BALANCE]
    broken[_K_FRACTION] += left * 64 > limits[e, _FRACTION] * a * p
    broken[_K_INTERPHASE] += gap > limits[e, _INTERPHASE]
    broken[_K_PULSES] += n > limits[e, _PULSES]
    broken[_K_DURATION] += (n - 1) * period + length > limits[e, _DURATION]
    broken[_K_COMPLIANCE] += strongest * limits[e, _IMPEDANCE] > totals[_COMPLIANCE]


@compiled
def _judge_time(pulses: Any, n: int, limits: Any, totals: Any, broken: Any) -> None:
    """Judge all pulses on the line of time. Columns: start and end in ns, electrode, uA, pC, order."""
    sums, session = np.zeros(_E + 1, np.int64), np.zeros(_E + 1, np.int64)
    for i in range(n):
        start, end, e = pulses[i, 0], pulses[i, 1], pulses[i, 2]
        session[e] += pulses[i, 4]
        session[_E] += pulses[i, 4]
        sums[:] = 0
        current = 0
        for k in range(n):
            other = pulses[k]
            if other[0] <= start < other[1]:
                current += other[3]
            if end <= other[1] and other[0] <= end + 60 * _S:  # a window that begins at this pulse's end
                sums[other[2]] += other[4]
                sums[_E] += other[4]
            if k != i and other[2] == e and other[0] >= start:
                broken[_K_OVERLAP] += other[0] < end
                broken[_K_INTERVAL] += other[0] - end < limits[e, _INTERVAL] * _US
                broken[_K_RATE] += limits[e, _RATE] != _NONE and (other[0] - start) * limits[e, _RATE] < _S
        broken[_K_CURRENT] += current > totals[_CURRENT]
        broken[_K_MINUTE] += sums[e] > limits[e, _MINUTE]
        broken[_K_ALL_MINUTE] += sums[_E] > totals[_ALL_MINUTE]
    for e in range(_E):
        broken[_K_SESSION] += session[e] > limits[e, _SESSION]
    broken[_K_ALL_SESSION] += session[_E] > totals[_ALL_SESSION]


@compiled
def _deliver(train: Any, now: int, within: int, pulses: Any, n: int) -> int:
    """Let a stimulator give a train: at once, at the last moment, or in between."""
    delay = 0
    if within > 0 and _chance(70):
        delay = within if _chance(50) else np.random.randint(within + 1)  # noqa: NPY002
    length = np.int64(train["phase_us"]) + np.int64(train["interphase_us"]) + np.int64(train["phase2_us"])
    a, a2 = abs(np.int64(train["amplitude_ua"])), abs(np.int64(train["amplitude2_ua"]))
    for k in range(min(train["pulses"], _MAX_PULSES - n)):
        start = now + delay + k * np.int64(train["period_us"]) * _US
        pulses[n, 0], pulses[n, 1], pulses[n, 2] = start, start + length * _US, train["electrode"]
        pulses[n, 3] = max(a, a2)
        pulses[n, 4] = max(a * np.int64(train["phase_us"]), a2 * np.int64(train["phase2_us"]))
        n += 1
    return n


@compiled
def _top_up(gate: Any, ledger: Any) -> None:
    """Grant more where less than half is left, the ledger's file first."""
    for i in range(g.MAX_ELECTRODES + 1):
        if ledger[i] - gate["dose_pc"][i] < 20_000.0:
            ledger[i] = gate["dose_pc"][i] + 40_000.0
            gate["granted_pc"][i] = ledger[i]


@compiled
def _forbidding(conditions: int) -> bool:
    return conditions & ~g.CONDITION_IDLE != 0


@compiled
def _run(
    seed: int, n_histories: int, mutation: int, gates: Any, rows: Any, trains: Any, near: Any, hostile: Any,
    n_actions: int, asked: Any, broken: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Run histories; return how many were unsafe, how many were run, and how many pulses were delivered.

    `gates` holds the gate, a fresh one, an older state and a copy, and `rows` is the same memory in bytes; `asked`
    counts by reason, `broken` by kind.
    """
    np.random.seed(seed)  # noqa: NPY002
    limits, totals = np.zeros((_E, 15), np.int64), np.zeros(9, np.int64)
    pulses, ledger = np.zeros((_MAX_PULSES, 5), np.int64), np.zeros(g.MAX_ELECTRODES + 1)
    t_peer = np.zeros(_P, np.int64)
    unsafe, delivered = 0, 0
    for history in range(n_histories):
        gate, train = gates[0], trains[0]
        _draw_limits(limits, totals, near)
        _copy(rows, 0, 1)
        _configure(gate, limits, totals, mutation)
        now = 1000 * _S + np.random.randint(_S)  # noqa: NPY002
        ledger[:] = 0.0
        _copy(rows, 2, 0)
        n, before = 0, broken.sum()
        # the plain account: who armed, and what came since
        armed, until, token, beat, latest, late, not_before, fault = False, 0, 0, 0, 0, 0, 0, 0
        t_peer[:] = -(2**60)
        for _ in range(n_actions):
            jump = np.random.randint(100)  # noqa: NPY002
            if jump < 45:
                now += _pick(near) // 100
            elif jump < 75:
                now += np.random.randint(1, 100 * _MS)  # noqa: NPY002
            elif jump < 90:
                now += np.random.randint(1, 3 * _S)  # noqa: NPY002
            elif jump < 95:
                now += np.random.randint(1, 70 * _S)  # noqa: NPY002
            told = now
            if _chance(1):
                told = _pick(np.array([now - 1, now - 10 * _S, 0, -1, -(2**62), 2**62]))
            # what time alone does to an arming, by the plain account
            action = np.random.randint(100)  # noqa: NPY002
            told_of = action < 92
            if told_of:
                if told < latest or told > 2**61:
                    armed = False
                else:
                    latest = told
                    if told >= until or (totals[_BEAT] > 0 and told - beat > totals[_BEAT]):
                        armed = False
                    for i in range(_P):
                        if told - t_peer[i] > totals[_PEER]:
                            armed = False
            is_clock = told == latest
            if mutation == _NO_CLOCK:
                gate["last_ns"] = 0
            if mutation == _NO_EXPIRY and gate["armed"]:
                gate["until_ns"] = 2**60
            was_armed = gate["armed"]
            if action < 60:  # a tick, with a train or two
                conditions = 0
                if _chance(8):
                    conditions = 1 << np.random.randint(9)  # noqa: NPY002
                if _chance(4):
                    conditions |= g.CONDITION_LATE
                late = late + 1 if conditions & g.CONDITION_LATE else 0
                fault = conditions & (8 | 16 | 128)  # until the next tick
                if conditions & (8 | 16 | 32 | 128 | 256) or late >= totals[_LATE]:
                    armed = False
                seen: Any = np.int64(0) if mutation == _NO_CONDITIONS else conditions
                _watch(gate, told, seen)
                if mutation == _NO_CONDITIONS and conditions & g.CONDITION_LATE:
                    gate["late_run"] = late
                for _ in range(np.random.randint(1, 4)):  # noqa: NPY002
                    is_bad = _draw_train(train, near, hostile)
                    if mutation == _NO_OVERLAP_BETWEEN_TRAINS:
                        for e in range(_E):
                            gate["busy_until_ns"][e] = -(2**61)
                    if mutation == _NO_RATE_BETWEEN_TRAINS:  # a single pulse has no rate within it
                        for e in range(_E):
                            is_free = train["pulses"] == 1 or limits[e, _RATE] == _NONE
                            gate["rate_hz"][e] = np.inf if is_free else float(limits[e, _RATE])
                    reason = _check(gate, train, told, seen)
                    asked[reason] += 1
                    if reason == g.ALLOWED:
                        broken[_K_NONSENSE] += is_bad
                        broken[_K_NOT_ARMED] += not armed or not is_clock
                        broken[_K_CONDITION] += _forbidding(conditions)
                        if not is_bad:
                            _judge_train(train, limits, totals, broken)
                            n = _deliver(train, told, totals[_START_WITHIN], pulses, n)
                if mutation == _NO_MINUTE_FORGOTTEN_WHEN_DISARMED and was_armed and not gate["armed"]:
                    for k in range(g.N_BINS):
                        gate["bin_second"][k] = -1000
            elif action < 66:
                offered = token if _chance(80) else np.random.randint(0, 5)  # noqa: NPY002
                _heartbeat(gate, offered, told)
                if armed and is_clock and offered == token and token != 0:
                    beat = told
            elif action < 78:
                peer = np.random.randint(-1, _P + 1)  # noqa: NPY002
                _alive(gate, peer, told)
                if is_clock and 0 <= peer < _P:
                    t_peer[peer] = told
            elif action < 90:  # the peers are heard, and then it is armed
                if _chance(90):
                    for i in range(_P):
                        _alive(gate, i, told)
                        if is_clock:
                            t_peer[i] = told
                if mutation == _NO_FAULTS_FORGOTTEN_WITHOUT_A_TICK:
                    gate["conditions"] = 0
                if mutation != _NO_NO_WAIT_AFTER_A_RESTART and _chance(50):
                    _watch(gate, told, g.CONDITION_IDLE)
                goal = told + np.random.randint(-_S, 2 * totals[_LONGEST]) if is_clock else told  # noqa: NPY002
                offered = np.random.randint(0, 5)  # noqa: NPY002
                if _arm(gate, told, goal, offered) == g.ALLOWED:
                    fits = (
                        offered != 0
                        and fault == 0
                        and told < goal <= told + totals[_LONGEST]
                        and told >= not_before
                        and is_clock
                    )
                    for i in range(_P):
                        fits = fits and told - t_peer[i] <= totals[_PEER]
                    broken[_K_ARMING] += not fits
                    armed, until, token, beat, late = True, goal, offered, told, 0
            elif action < 92:
                late = late + 1 if action == 90 else late
                _watch(gate, told, g.CONDITION_IDLE | (g.CONDITION_LATE if action == 90 else 0))
                if late >= totals[_LATE] and action == 90:
                    armed = False
            elif action < 94:
                armed = False
                if mutation != _NO_DISARM_IGNORED:
                    _disarm(gate, g.DISARMED, told)
            elif action < 96:
                _copy(rows, 2, 0)  # a checkpoint
            elif action < 98:  # is restored
                _copy(rows, 3, 0)
                _copy(rows, 0, 2)
                if mutation != _NO_DOSE_OF_A_CHECKPOINT_BELIEVED:
                    _copy(rows, 2, 0)
                    _copy(rows, 0, 3)
                    _keep_doses(gate, gates[2])
                armed = False
                if mutation != _NO_RESTORED_ARMED:
                    _disarm(gate, g.RESTORED, told)
            elif _chance(50):  # kill -9, and the stimulator's lease runs out; then a new daemon, from the ledger
                for k in range(n):
                    if pulses[k, 0] > now + _LEASE_NS:
                        pulses[k, 0] = -1
                kept = 0
                for k in range(n):
                    if pulses[k, 0] != -1:
                        for c in range(5):
                            pulses[kept, c] = pulses[k, c]
                        kept += 1
                n = kept
                _copy(rows, 0, 1)
                _copy(rows, 2, 1)
                _configure(gate, limits, totals, mutation)
                if mutation == _NO_DOSE_FORGOTTEN_AT_A_RESTART:
                    ledger[:] = 0.0
                else:
                    for i in range(g.MAX_ELECTRODES + 1):
                        gate["dose_pc"][i] = ledger[i]
                        gate["granted_pc"][i] = ledger[i]
                now += np.random.randint(1, _S)  # noqa: NPY002
                not_before = now + 63 * _S
                gate["arm_after_ns"] = 0 if mutation == _NO_NO_WAIT_AFTER_A_RESTART else not_before
                armed, latest, late, fault = False, 0, 0, 0
                t_peer[:] = -(2**60)
            if _chance(30):  # a thread, which comes when it may
                _top_up(gate, ledger)
        delivered += n
        _judge_time(pulses, n, limits, totals, broken)
        if broken.sum() != before:
            unsafe += 1
            if mutation != _WHOLE:
                return unsafe, history + 1, delivered
    return unsafe, n_histories, delivered


def run(n: int, *, seed: int, mutation: int = 0, n_actions: int = 120) -> dict[str, Any]:
    """Run `n` histories, or for a broken gate as many as it takes to catch it."""
    gates = np.zeros(4, g.GATE)
    gates[1] = g.make_gate(_E)[0]
    rows = gates.view(np.uint8).reshape(4, -1)
    near = np.array([0, 0, 1, 1000, 100 * _US, _MS, 10 * _MS, 100 * _MS, 1 * _S, 2 * _S, 10 * _S], np.int64)
    hostile = np.array([np.nan, np.inf, -np.inf, 0.0, 5e-324, 1e-300, 1e300, 1.7e308, -1.0, 1e7, 1e18])
    asked, broken = np.zeros(g.N_REASONS, np.int64), np.zeros(len(KINDS), np.int64)
    unsafe, ran, delivered = _run(
        seed, n, mutation, gates, rows, np.zeros(1, g.TRAIN), near, hostile, n_actions, asked, broken
    )
    return {
        "histories": ran,
        "asked": int(asked.sum()),
        "allowed": int(asked[0]),
        "pulses": delivered,
        "refused": {g.REASONS[i]: int(asked[i]) for i in range(1, g.N_REASONS) if asked[i]},
        "unsafe": unsafe,
        "broken": {KINDS[i]: int(k) for i, k in enumerate(broken) if k},
    }


def check_oracle(n: int, *, seed: int) -> dict[str, dict[str, Any]]:
    """Run a gate without each of its limits until the oracle catches it, for at most `n` histories."""
    return {name: run(n, seed=seed, mutation=i) for i, name in enumerate(MUTATIONS) if i}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=100_000, help="histories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    began = time.perf_counter()
    result = run(options.n, seed=options.seed)
    result["seconds"] = round(time.perf_counter() - began, 1)
    caught = check_oracle(20_000, seed=options.seed)
    missed = [name for name, found in caught.items() if not found["unsafe"]]
    if options.json:
        print(json.dumps(result | {"broken_gates": caught, "missed": missed}))
    else:
        print(f"{result['histories']} histories in {result['seconds']} s (compiling included)")
        print(f"trains asked {result['asked']}, allowed {result['allowed']}, of {result['pulses']} pulses; refused:")
        for name, k in sorted(result["refused"].items(), key=lambda item: -item[1]):
            print(f"  {name:16} {k:10}")
        print(f"unsafe = {result['unsafe']} {result['broken'] or ''}")
        print("broken gates, and the history that gave each away:")
        for name, found in caught.items():
            told = ", ".join(found["broken"]) if found["unsafe"] else "MISSED"
            print(f"  without {name:32} {found['histories']:6}  {told}")
    return 1 if result["unsafe"] or missed else 0


if __name__ == "__main__":
    sys.exit(main())
