"""The mathematics of gates against the library's."""

import math

import numpy as np
import pytest

from neuromod.engine.models.gates import linoid, rise32, substeps, temperature_factor

F = np.float32


def test_a_rise_is_accurate_to_the_last_place_however_small() -> None:
    arguments = np.concatenate([np.logspace(-37, np.log10(79), 3000), np.linspace(0.01, 79, 3000)]).astype(np.float32)
    for x in arguments:
        exact = -math.expm1(-float(x))
        assert abs(rise32(x) - exact) <= 1.5 * np.spacing(F(exact)), x


@pytest.mark.parametrize(("x", "expected"), [(0.0, 0.0), (80.0, 1.0), (1e30, 1.0)])
def test_a_rise_holds_at_the_ends(x: float, expected: float) -> None:
    assert rise32(F(x)) == expected


def test_a_linoid_is_accurate_on_both_sides_of_its_series() -> None:
    for x in np.linspace(-20, 20, 4001).astype(np.float32):
        exact = float(x) / math.expm1(float(x)) if x else 1.0
        assert linoid(x, F(math.exp(float(x)))) == pytest.approx(exact, rel=2e-6)


def test_a_temperature_factor_is_a_power_of_q10() -> None:
    for q10 in np.linspace(1, 4, 16).astype(np.float32):
        for degrees in (-60, -6.3, 0, 0.1, 10, 60):
            expected = float(q10) ** (float(F(degrees)) / 10)
            assert temperature_factor(q10, F(degrees)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("step_ms", "factor", "expected"),
    [(1.0, 1.0, 20), (1.0, 0.2, 20), (0.05, 1.0, 1), (0.051, 1.0, 2), (1.0, 4.0, 40), (4.0, 1.0, 80), (1e-4, 1.0, 1)],
)
def test_no_substep_is_longer_than_its_limit(step_ms: float, factor: float, expected: int) -> None:
    assert substeps(F(step_ms), np.float64(0.05), np.float64(factor)) == expected
