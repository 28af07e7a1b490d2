"""The cortical neuron once more: one neuron, scalars of the width that the kernel uses."""

import math

import numpy as np

from naive.gates import NaiveGated, exp, linoid, relaxed, rise, temperature_factor
from neuromod.engine.config import ChannelConfig
from neuromod.engine.models.pospischil import POSPISCHIL

F = np.float32


class NaivePospischil(NaiveGated):
    lowest_mv, highest_mv = -120, 150

    def __init__(self, config: ChannelConfig) -> None:
        parameters = config.complete_parameters()
        p = {name: F(value) for name, value in parameters.items()}
        self.capacitance, self.v_t, self.tau_max = p["capacitance_uf_cm2"], p["v_t_mv"], p["tau_max_ms"]
        self.v_spike = p["v_spike_mv"]
        self.g_na, self.g_k, self.g_leak = p["g_na_ms_cm2"], p["g_k_ms_cm2"], p["g_leak_ms_cm2"]
        self.g_m, self.g_ca = p["g_m_ms_cm2"], p["g_ca_ms_cm2"]
        self.e_na, self.e_k, self.e_leak, self.e_ca = p["e_na_mv"], p["e_k_mv"], p["e_leak_mv"], p["e_ca_mv"]
        self.phi = temperature_factor(p["q10"], p["temperature_c"] - F(36))
        self.v, self.m, self.h, self.n, self.p, self.q, self.r = (F(x) for x in POSPISCHIL.start(parameters))

    def _gates(self, step: np.float32) -> None:
        v, u = self.v, self.v - self.v_t
        e40 = exp(u * F(-1 / 40))
        e20 = e40 * e40
        e5 = e20 * e20 * (e20 * e20)
        shut = e5 * F(math.exp(8))
        alpha_m = F(1.28) * linoid((F(13) - u) * F(1 / 4), e5 * e20 * F(math.exp(13 / 4)))
        beta_m = F(1.4) * (linoid((F(40) - u) * F(1 / 5), shut) * shut)
        alpha_h = F(0.128) * exp((u - F(17)) * F(-1 / 18))
        beta_h = F(4) / (F(1) + shut)
        alpha_n = F(0.16) * linoid((F(15) - u) * F(1 / 5), e5 * F(math.exp(3)))
        beta_n = F(0.5 * math.exp(10 / 40)) * e40
        self.m = relaxed(self.m, alpha_m, beta_m, step)
        self.h = relaxed(self.h, alpha_h, beta_h, step)
        self.n = relaxed(self.n, alpha_n, beta_n, step)

        z = e20 * exp((self.v_t + F(35)) * F(-1 / 20))  # exp(-(v + 35) / 20)
        p_steady = F(1) / (F(1) + z * z)
        p_rate = (F(3.3) + z * z) / (z * self.tau_max)
        self.p = self.p + (p_steady - self.p) * rise(step * p_rate)

        if self.g_ca > 0:
            x = (F(-27) - v) * F(1 / 3.8)
            alpha_q, beta_q = F(0.209) * linoid(x, exp(x)), F(0.94) * exp((F(-75) - v) * F(1 / 17))
            alpha_r = F(0.000457) * exp((F(-13) - v) * F(1 / 50))
            beta_r = F(0.0065) / (F(1) + exp((F(-15) - v) * F(1 / 28)))
            self.q = relaxed(self.q, alpha_q, beta_q, step)
            self.r = relaxed(self.r, alpha_r, beta_r, step)

    def _membrane(self, drive: np.float32, step: np.float32) -> bool:
        sodium = self.g_na * (self.m * self.m * self.m) * self.h
        potassium = self.g_k * (self.n * self.n * (self.n * self.n)) + self.g_m * self.p
        calcium = self.g_ca * (self.q * self.q) * self.r if self.g_ca > 0 else F(0)
        total = sodium + potassium + calcium + self.g_leak
        current = sodium * self.e_na + potassium * self.e_k + calcium * self.e_ca + self.g_leak * self.e_leak
        current = current + drive
        return self._move_to(self.v + (current / total - self.v) * rise(step * total))
