"""The squid axon once more: one neuron, scalars of the width that the kernel uses."""

import math

import numpy as np

from naive.gates import NaiveGated, exp, linoid, relaxed, rise, temperature_factor
from neuromod.engine.config import ChannelConfig

F = np.float32


class NaiveHodgkinHuxley(NaiveGated):
    lowest_mv, highest_mv = -150, 200

    def __init__(self, config: ChannelConfig) -> None:
        p = {name: F(value) for name, value in config.complete_parameters().items()}
        self.capacitance, self.v_spike = p["capacitance_uf_cm2"], p["v_spike_mv"]
        self.g_na, self.g_k, self.g_leak = p["g_na_ms_cm2"], p["g_k_ms_cm2"], p["g_leak_ms_cm2"]
        self.e_na, self.e_k, self.e_leak = p["e_na_mv"], p["e_k_mv"], p["e_leak_mv"]
        self.phi = temperature_factor(p["q10"], p["temperature_c"] - F(6.3))
        self.v, self.m, self.h, self.n = F(0), F(0.0529325), F(0.5961208), F(0.3176769)

    def _gates(self, step: np.float32) -> None:
        v = self.v
        e80 = exp(v * F(-1 / 80))
        e20 = e80 * e80 * (e80 * e80)
        e10 = e20 * e20
        alpha_m = linoid((F(25) - v) * F(0.1), e10 * F(math.exp(2.5)))
        beta_m = F(4) * exp(v * F(-1 / 18))
        alpha_h = F(0.07) * e20
        beta_h = F(1) / (e10 * F(math.exp(3)) + F(1))
        alpha_n = F(0.1) * linoid((F(10) - v) * F(0.1), e10 * F(math.exp(1)))
        beta_n = F(0.125) * e80
        self.m = relaxed(self.m, alpha_m, beta_m, step)
        self.h = relaxed(self.h, alpha_h, beta_h, step)
        self.n = relaxed(self.n, alpha_n, beta_n, step)

    def _membrane(self, drive: np.float32, step: np.float32) -> bool:
        sodium = self.g_na * (self.m * self.m * self.m) * self.h
        potassium = self.g_k * (self.n * self.n * (self.n * self.n))
        total = sodium + potassium + self.g_leak
        current = sodium * self.e_na + potassium * self.e_k + self.g_leak * self.e_leak + drive
        return self._move_to(self.v + (current / total - self.v) * rise(step * total))
