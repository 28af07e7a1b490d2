"""Leaky integrate-and-fire once more: one neuron, scalars of the width that the kernel uses."""

import math

import numpy as np

from neuromod.engine.config import ChannelConfig

F = np.float32


class NaiveLif:
    def __init__(self, config: ChannelConfig) -> None:
        p = config.complete_parameters()
        self.tau = float(F(p["tau_mem_ms"]))
        self.threshold, self.reset, self.floor = F(p["v_threshold_mv"]), F(p["v_reset_mv"]), F(p["v_min_mv"])
        self.refractory = F(p["refractory_ms"])
        self.v = F(0)
        self.refractory_left = F(0)

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        if self.refractory_left > step / F(2):
            self.v = self.reset
        else:
            rise = F(-math.expm1(-float(step) / self.tau))
            self.v = max(self.v + (drive - self.v) * rise + kick, self.floor)
            if abs(self.v) <= F(1e-30):
                self.v = F(0)
        self.refractory_left = max(self.refractory_left - step, F(0))
        if self.v >= self.threshold * threshold_gain:
            self.v = self.reset
            self.refractory_left = self.refractory
            return True
        return False
