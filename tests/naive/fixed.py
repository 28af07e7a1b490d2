"""Slow, obvious twin of the fixed-point tick: fractions of exact value, rounded where FIXED_POINT.md says so."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any


def nearest(x: Fraction, fraction: int) -> Fraction:
    """The nearest multiple of 2**-fraction; half goes up."""
    return Fraction(floor(x * 2**fraction + Fraction(1, 2)), 2**fraction)


def within(x: Fraction, whole: int, fraction: int, *, signed: bool = True) -> Fraction:
    """X held to the range of Q(whole).(fraction), or UQ where not signed."""
    step = Fraction(1, 2**fraction)
    span = Fraction(2) ** whole
    low, high = (-span / 2, span / 2 - step) if signed else (Fraction(0), span - step)
    return max(low, min(x, high))


def fallen(x: Fraction, fall: Fraction, fraction: int) -> Fraction:
    """What a fall leaves of x, towards zero."""
    left = x * (1 - fall) * 2**fraction
    return Fraction(floor(left) if x > 0 else ceil(left), 2**fraction)


def fixed_tick(s: dict[str, Any], stimuli: Sequence[Fraction]) -> list[bool]:
    """Advance by a tick; `s` has the registers by name as exact numbers, lists of them, or lists of lists."""
    old = [bool(s["spikes"] >> i & 1) for i in range(16)]
    distinct = sum(s["since_spike"][i] <= s["window_ticks"] for i in range(14))
    coincidence = any(old[:14]) and distinct >= s["min_channels"] and s["coincidence_left"] == 0
    s["coincidence_left"] = s["coincidence_refractory"] if coincidence else max(0, s["coincidence_left"] - 1)
    s["v"][14] = Fraction(distinct)
    left = s["inhibition_ticks"] if old[15] else s["inhibition_left"]
    s["inhibition_left"] = max(0, left - 1)
    fired = [False] * 16
    for i in [*range(14), 15]:
        charge = sum((within(nearest(s["weights"][j][i], 8), 8, 8) for j in range(16) if old[j]), Fraction(0))
        drive = _drive(s, stimuli, i, s["inhibition"] if left > 0 and i < 14 else 0, lambda x: within(x, 8, 16))
        leak = nearest((drive - s["v"][i]) * s["rise"][i], 16)
        moved = within(s["v"][i] + leak + nearest(charge * s["recurrent_gain"], 16), 8, 16)
        moved = max(moved, s["v_min"][i])
        if s["refractory_left"][i] > 0:
            s["v"][i] = s["v_reset"][i]
            s["refractory_left"][i] -= 1
        elif moved >= s["threshold"][i] * s["threshold_gain"]:
            fired[i] = True
            s["v"][i] = s["v_reset"][i]
            s["refractory_left"][i] = s["refractory"][i]
        else:
            s["v"][i] = moved
        s["since_spike"][i] = 0 if fired[i] else min(65_535, s["since_spike"][i] + 1)
    if s["rule"] & 1:
        _learn(s, fired, coincidence)
    fired[14] = coincidence
    s["spikes"] = sum(1 << i for i in range(16) if fired[i])
    s["tick"] = (s["tick"] + 1) % 2**32
    return fired


def held_drives(s: dict[str, Any], stimuli: Sequence[Fraction]) -> list[bool]:
    """Tell the channels whose drive, without inhibition, is not what registers of any width would make of it."""
    return [
        i != 14 and _drive(s, stimuli, i, 0, lambda x: within(x, 8, 16)) != _drive(s, stimuli, i, 0, lambda x: x)
        for i in range(16)
    ]


def _drive(
    s: dict[str, Any], stimuli: Sequence[Fraction], i: int, inhibition: Any, hold: Callable[[Fraction], Fraction]
) -> Fraction:
    stimulus = hold(nearest(stimuli[i] * s["input_gain"], 16))
    return hold(nearest(stimulus * s["gain"][i], 16) + s["bias"][i] - inhibition)


def _learn(s: dict[str, Any], fired: list[bool], coincidence: bool) -> None:
    left = [coincidence if j == 14 else fired[j] for j in range(16)]
    for i in range(16):
        s["pre_trace"][i] = fallen(s["pre_trace"][i], s["fall_plus"], 16)
        s["post_trace"][i] = fallen(s["post_trace"][i], s["fall_minus"], 16)
    for j in range(16):
        for i in range(16):
            change = Fraction(0)
            if s["plastic"][j] >> i & 1:
                if fired[i]:
                    change += within(nearest(s["pre_trace"][j] * s["a_plus"], 24), 8, 24)
                if left[j]:
                    change -= within(nearest(s["post_trace"][i] * s["a_minus"], 24), 8, 24)
            e = within(fallen(s["eligibility"][j][i], s["fall_eligibility"], 24) + change, 8, 24)
            s["eligibility"][j][i] = e
            w = s["weights"][j][i]
            moved = min(w + nearest(e * s["learning_factor"], 24), max(w, s["w_max"]))
            s["weights"][j][i] = within(max(moved, min(w, s["w_min"])), 8, 24)
    for name, channels in (("pre_trace", left), ("post_trace", fired)):
        for i in range(16):
            if channels[i]:
                kept = Fraction(0) if s["rule"] & 2 else s[name][i]
                s[name][i] = within(kept + 1, 8, 16, signed=False)
