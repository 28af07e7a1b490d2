"""The engine's own exponential against the library's."""

import itertools
import math

import numpy as np
import pytest

from neuromod.engine.exponential import one_minus_exp


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
