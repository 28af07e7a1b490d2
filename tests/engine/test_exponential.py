"""The engine's own exponentials against the library's."""

import hashlib
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.exponential import exp32, one_minus_exp

LOWEST, HIGHEST = -87.0, 88.0


def distance_ulp(x: np.float32) -> float:
    """How far `exp32` is from the truth, in units in the last place of the float32 nearest to it."""
    truth = math.exp(float(x))
    return abs(float(exp32(x)) - truth) / float(np.spacing(np.float32(truth)))


def test_it_agrees_with_the_library_far_below_float32() -> None:
    arguments = np.concatenate([np.logspace(-12, np.log10(60), 4000), np.linspace(0.01, 60, 4000)])
    for x in arguments:
        assert one_minus_exp(np.float64(x)) == pytest.approx(-math.expm1(-x), rel=1e-11)


@pytest.mark.parametrize(("x", "expected"), [(0.0, 0.0), (64.0, 1.0), (1e300, 1.0)])
def test_it_holds_at_the_ends(x: float, expected: float) -> None:
    assert one_minus_exp(np.float64(x)) == expected


def test_it_never_falls_nor_leaves_its_range() -> None:
    # in float32, as it is used: in float64 neighbours may differ by a unit in the last place either way
    values = [np.float32(one_minus_exp(np.float64(x))) for x in np.linspace(0, 80, 5000)]
    assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise(values))


def test_exp32_is_within_two_units_in_the_last_place_over_its_range() -> None:
    n = 50_000 if JIT_ENABLED else 3000
    arguments = np.concatenate([np.linspace(LOWEST, HIGHEST, n), np.linspace(-1, 1, n), np.linspace(-20, 5, n)])
    assert max(map(distance_ulp, arguments.astype(np.float32))) < 2


def test_exp32_is_within_two_units_where_its_reduction_changes_over() -> None:
    # r = x - n ln 2 is largest halfway between two whole n
    for n in range(-125, 126):
        middle = np.float32((n + 0.5) * math.log(2))
        for x in (np.nextafter(middle, np.float32(-100)), middle, np.nextafter(middle, np.float32(100))):
            assert distance_ulp(x) < 2


@settings(deadline=None)  # the first call may compile
@given(st.floats(LOWEST, HIGHEST, width=32))
def test_exp32_is_within_two_units_for_any_argument(x: float) -> None:
    assert distance_ulp(np.float32(x)) < 2


def test_exp32_of_nothing_is_exactly_one() -> None:
    for x in (0.0, -0.0, 1e-45, -1e-45, 1e-30):
        assert exp32(np.float32(x)) == 1


@pytest.mark.parametrize("x", [-87.5, -104.0, -1e30, -math.inf])
def test_exp32_is_held_to_its_lowest_value(x: float) -> None:
    assert exp32(np.float32(x)) == exp32(np.float32(LOWEST)) > np.finfo(np.float32).tiny


@pytest.mark.parametrize("x", [88.5, 1e30, math.inf])
def test_exp32_is_held_to_its_highest_value(x: float) -> None:
    assert exp32(np.float32(x)) == exp32(np.float32(HIGHEST)) < np.finfo(np.float32).max


def test_exp32_rises() -> None:
    # neighbours may be the wrong way round by its error; steps of 0.012 are 1e5 times as large
    values = [float(exp32(np.float32(x))) for x in np.linspace(-30, 30, 5000)]
    assert all(a < b for a, b in itertools.pairwise(values))


def bits_digest() -> str:
    """Hash over the bits of both exponentials at a few thousand arguments, within their ranges and beyond."""
    digest = hashlib.sha256()
    for x in np.linspace(-100, 100, 4001):
        digest.update(np.float32(exp32(np.float32(x))).tobytes())
        digest.update(np.float64(one_minus_exp(np.float64(abs(x)))).tobytes())
    return digest.hexdigest()


@pytest.mark.skipif(not JIT_ENABLED, reason="compares with the compiled form, which is switched off")
def test_interpreted_exponentials_have_the_bits_of_compiled_ones() -> None:
    child = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert child.stdout.strip() == bits_digest()


if __name__ == "__main__":
    print(bits_digest())
