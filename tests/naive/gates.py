"""What the naive twins of models with voltage-gated channels share."""

import math

import numpy as np

from naive.stress import held_down
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


def relaxed(gate: np.float32, alpha: np.float32, beta: np.float32, step: np.float32) -> np.float32:
    """A gate after a step in which it opens at the rate alpha and shuts at beta."""
    return gate + (alpha / (alpha + beta) - gate) * rise(step * (alpha + beta))


def temperature_factor(q10: np.float32, degrees: np.float32) -> float:
    return math.pow(float(q10), float(degrees) / 10)


def substeps_of(step: np.float32, limit_ms: float, factor: float) -> int:
    return max(1, math.ceil(float(step) * math.sqrt(max(1.0, factor)) / limit_ms - 1e-6))


def held(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    return min(max(x, low), high)


class NaiveGated:
    """A membrane and gates that take turns; `_gates` and `_membrane` are the neuron's own."""

    lowest_mv: float
    highest_mv: float
    v: np.float32
    v_spike: np.float32
    capacitance: np.float32
    phi: float

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        n_substeps = substeps_of(step, 0.05, self.phi)
        substep = step / F(n_substeps)
        drive = held_down(drive, threshold_gain)
        gate_step = substep * F(self.phi)

        fired = self._move_to(self.v + held_down(kick, threshold_gain))
        self._gates(gate_step * F(0.5))
        for k in range(n_substeps):
            fired |= self._membrane(drive, substep / self.capacitance)
            self._gates(gate_step * F(0.5) if k == n_substeps - 1 else gate_step)
        return fired

    def _gates(self, step: np.float32) -> None:
        raise NotImplementedError

    def _membrane(self, drive: np.float32, step: np.float32) -> bool:
        raise NotImplementedError

    def _move_to(self, v: np.float32) -> bool:
        before, self.v = self.v, held(v, F(self.lowest_mv), F(self.highest_mv))
        return bool(before < self.v_spike <= self.v)
