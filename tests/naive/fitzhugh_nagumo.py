"""FitzHugh-Nagumo once more: one neuron, scalars of the width that the kernel uses, as the textbook has it."""

import math

import numpy as np

from naive.stress import held_down
from neuromod.engine.config import ChannelConfig
from neuromod.engine.models.fitzhugh_nagumo import FITZHUGH_NAGUMO

F = np.float32


class NaiveFitzHughNagumo:
    def __init__(self, config: ChannelConfig) -> None:
        p = config.complete_parameters()
        self.a, self.b, self.epsilon = F(p["a"]), F(p["b"]), F(p["epsilon"])
        self.time_unit, self.v_unit, self.threshold = F(p["time_unit_ms"]), F(p["v_unit_mv"]), F(p["v_threshold"])
        self.v, self.w = (F(x) for x in FITZHUGH_NAGUMO.start(p))

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        current = held_down(drive, threshold_gain)
        n = math.ceil(step / self.time_unit / F(0.25))
        h = step / self.time_unit / F(n)
        before, self.v = self.v, held(self.v + held_down(kick, threshold_gain) / self.v_unit, F(4))
        fired = before < self.threshold <= self.v
        for _ in range(n):
            before = self.v
            self._substep(current, h)
            fired = fired or before < self.threshold <= self.v
        return bool(fired)

    def _substep(self, current: np.float32, h: np.float32) -> None:
        """One step of the classical Runge-Kutta scheme."""

        def slope(v: np.float32, w: np.float32) -> tuple[np.float32, np.float32]:
            return (v + (current - w)) - (v * v) * (v * F(1 / 3)), self.epsilon * (v + self.a - self.b * w)

        half = h * F(0.5)
        v, w = self.v, self.w
        dv1, dw1 = slope(v, w)
        dv2, dw2 = slope(v + half * dv1, w + half * dw1)
        dv3, dw3 = slope(v + half * dv2, w + half * dw2)
        dv4, dw4 = slope(v + h * dv3, w + h * dw3)
        sixth = h * F(1 / 6)
        self.v = held(v + sixth * (dv1 + F(2) * (dv2 + dv3) + dv4), F(4))
        self.w = held(w + sixth * (dw1 + F(2) * (dw2 + dw3) + dw4), F(100))


def held(x: np.float32, bound: np.float32) -> np.float32:
    x = min(max(x, -bound), bound)
    return x if abs(x) > F(1e-12) else F(0)
