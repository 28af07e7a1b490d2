"""Lapicque's membrane once more: one neuron, scalars of the width that the kernel uses."""

import numpy as np

from neuromod.engine.config import ChannelConfig
from neuromod.engine.exponential import one_minus_exp

F = np.float32


class NaiveLapicque:
    def __init__(self, config: ChannelConfig) -> None:
        p = config.complete_parameters()
        self.capacitance, self.resistance = F(p["capacitance_pf"]), F(p["resistance_mohm"])
        self.threshold = F(p["v_threshold_mv"])
        self.v = F(0)

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        tau_ms = float(self.capacitance) * float(self.resistance) * 1e-3
        rise = F(one_minus_exp(np.float64(float(step) / tau_ms)))
        self.v = self.v + (drive * self.resistance - self.v) * rise + kick
        if abs(self.v) <= F(1e-30):
            self.v = F(0)
        if self.v >= self.threshold * threshold_gain:
            self.v = F(0)
            return True
        return False
