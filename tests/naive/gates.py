"""What the naive twins of models with voltage-gated channels share."""

import math

import numpy as np

from neuromod.engine.exponential import exp32
from neuromod.engine.models.gates import rise32

F = np.float32


def exp(x: np.float32) -> np.float32:
    return F(exp32(x))  # what is compiled gives Python a float of 64 bits


def rise(x: np.float32) -> np.float32:
    """1 - exp(-x)."""
    return F(rise32(x))


def linoid(x: np.float32, exp_x: np.float32) -> np.float32:
    """x / (exp(x) - 1), by its series where that cancels."""
    if abs(x) >= 1:
        return x / (exp_x - F(1))
    square = x * x
    return F(1) - F(0.5) * x + square * (F(1 / 12) - square * (F(1 / 720) - square * F(1 / 30240)))


def temperature_factor(q10: np.float32, degrees: np.float32) -> float:
    return math.pow(float(q10), float(degrees) / 10)


def substeps_of(step: np.float32, limit_ms: float, factor: float) -> int:
    return max(1, math.ceil(float(step) * math.sqrt(max(1.0, factor)) / limit_ms - 1e-6))


def held(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    return min(max(x, low), high)
