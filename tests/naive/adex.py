"""Adaptive exponential integrate-and-fire once more: one neuron, scalars of the width that the kernel uses."""

import math

import numpy as np

from neuromod.engine.config import ChannelConfig
from neuromod.engine.exponential import exp32
from neuromod.engine.models.adex import ADEX

F = np.float32
NOTHING = F(1e-6)


class NaiveAdEx:
    def __init__(self, config: ChannelConfig) -> None:
        p = config.complete_parameters()
        self.c, self.g_l, self.tau_w = (float(F(p[name])) for name in ("c_pf", "g_l_ns", "tau_w_ms"))
        self.e_l, self.v_t, self.delta = F(p["e_l_mv"]), F(p["v_t_mv"]), F(p["delta_t_mv"])
        self.a, self.b = F(p["a_ns"]), F(p["b_pa"])
        self.v_reset, self.v_peak, self.refractory = F(p["v_reset_mv"]), F(p["v_peak_mv"]), F(p["refractory_ms"])
        self.v, self.w, self.left = (F(x) for x in ADEX.start(p))

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        n = math.ceil(step / F(0.25))
        self.h = step / F(n)
        h = float(self.h)
        self.rise_v = F(-math.expm1(-h * (self.g_l / self.c) / 2))
        self.rise_w = F(-math.expm1(-h / self.tau_w))
        self.climb = F(h * (self.g_l / self.c))  # z falls by it in a substep
        self.target = self.e_l + drive * self._per(self.g_l)
        self.threshold = self.v_t + (threshold_gain - F(1)) * (self.v_t - self.e_l)

        self.v = self.v_reset if self.left > 0 else held(self.v + kick, F(-200), self.v_peak)
        n_spikes = sum(self._substep() for _ in range(n))
        self.w = held(self.w if abs(self.w) > F(1e-30) else F(0), F(-1e7), F(1e7))
        self.v = max(self.v, F(-200))
        return n_spikes > 0

    def _substep(self) -> bool:
        free = held(F(1) - self.left * (F(1) / self.h), F(0), F(1))  # part of the substep that is not refractory
        v, w, remains = self._flow(self.v, self.w, free, F(1))
        if v < self.v_peak and remains > NOTHING:
            self.v, self.w = v, w
            self.left = self._period(self.left - self.h)
            return False
        self._fire(free)
        return True

    def _fire(self, free: np.float32) -> None:
        blocked = held(self.left * (F(1) / self.h), F(0), F(1))
        begun = self.v + (self.target - self.w * self._per(self.g_l) - self.v) * (self.rise_v * free)
        t = (self._z(begun) - self._z(self.v_peak)) / self.climb  # in substeps
        t = held(blocked + t, blocked, F(1))
        self.w += (self.a * (begun + self.delta - self.e_l) - self.w) * (self.rise_w * t) + self.b
        after = F(1) - t
        free = held(after - self.refractory * (F(1) / self.h), F(0), F(1))
        self.left = self._period(self.refractory - after * self.h)
        v, self.w, _ = self._flow(self.v_reset, self.w, free, after)
        self.v = held(v, F(-200), self.v_peak)

    def _flow(
        self, v: np.float32, w: np.float32, free: np.float32, part: np.float32
    ) -> tuple[np.float32, np.float32, np.float32]:
        """Half of the leak, the exponential and w, half of the leak; `part` of a substep long, v `free` for less."""
        rise, per_g_l = self.rise_v * free, self._per(self.g_l)
        v = v + (self.target - v - w * per_g_l) * rise
        exponent = max((v - self.threshold) * (F(1) / self.delta), F(-60))
        remains = max(F(1) - self.climb * free * exp32(exponent), NOTHING)
        risen = v - self.delta * logarithm(remains)
        mean = F(0.5) * self.a * (v - self.e_l + (risen - self.e_l))
        w = w + (mean - w) * (self.rise_w * part)
        return risen + (self.target - risen - w * per_g_l) * rise, w, remains

    def _z(self, v: np.float32) -> np.float32:
        return exp32((self.threshold - v) * (F(1) / self.delta))

    def _period(self, left: np.float32) -> np.float32:
        return left if left > F(1e-3) * self.h else F(0)

    def _per(self, x: float) -> np.float32:
        return F(1) / F(x)


def logarithm(x: np.float32) -> np.float32:
    y = (np.sqrt(x) - F(1)) / (np.sqrt(x) + F(1))
    square = y * y
    result: np.float32 = F(4) * y * (F(1) + square * F(1 / 3) + square * square * (F(1 / 5) + square * F(1 / 7)))
    return result


def held(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    return min(max(x, low), high)
