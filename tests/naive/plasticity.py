"""Plasticity once more: one synapse at a time, as the papers have it."""

import numpy as np

from neuromod.engine.config import NetworkConfig
from neuromod.engine.exponential import one_minus_exp

F = np.float32
TINY = F(1e-30)


class NaivePlasticity:
    """`eligibility[j][i]` belongs to the synapse from channel j to channel i, as `weights[j][i]` does."""

    def __init__(self, config: NetworkConfig) -> None:
        self.rules = config.learning
        self.low, self.high = F(self.rules.w_min_mv), F(self.rules.w_max_mv)
        self.synapses = [(j, i) for j in range(16) for i in range(16) if self._is_plastic(config, j, i)]
        self.pre_trace = [F(0)] * 16
        self.post_trace = [F(0)] * 16
        self.eligibility = np.zeros((16, 16), dtype=F)
        self.unrounded = np.zeros((16, 16), dtype=F)
        homeostasis = self.rules.homeostasis
        self.rates = [F(homeostasis.target_hz if homeostasis else 0)] * 16

    def follow(
        self,
        weights: np.ndarray,
        departed: list[bool],
        fired: list[bool],
        step: np.float32,
        dopamine: np.float32,
        learning: bool,
    ) -> None:
        """Change `weights` by a tick in which spikes of `departed` leave their delays and channels of `fired` fire."""
        if self.rules.rule != "none":
            self._decay(step)
            factor = F(self.rules.rate_per_s) * dopamine * (step / F(1000)) if learning else F(0)
            for j, i in self.synapses:
                change = F(0)
                if fired[i]:
                    change += F(self.rules.a_plus_mv) * self.pre_trace[j]
                if departed[j]:
                    change -= F(self.rules.a_minus_mv) * self.post_trace[i]
                if self.rules.rule == "reward":
                    change += self.eligibility[j][i]
                    if abs(change) <= TINY:
                        change = F(0)
                    self.eligibility[j][i] = change
                    change = factor * change
                if learning:
                    self._move(weights, j, i, change, soft=self.rules.bounds == "soft")
            self._mark(departed, fired)
        if self.rules.homeostasis is not None:
            self._scale(weights, fired, step, learning)

    def _is_plastic(self, config: NetworkConfig, j: int, i: int) -> bool:
        chosen = config.learning.plastic
        plastic = bool(chosen[j][i]) if chosen is not None else j < 14 and i < 14 and i != j
        return plastic and (config.connected is None or bool(config.connected[j][i]))

    def _decay(self, step: np.float32) -> None:
        def decayed(trace: np.float32, tau_ms: float) -> np.float32:
            return trace - trace * F(one_minus_exp(np.float64(step) / tau_ms))

        for k in range(16):
            before = decayed(self.pre_trace[k], self.rules.tau_plus_ms)
            after = decayed(self.post_trace[k], self.rules.tau_minus_ms)
            self.pre_trace[k] = before if before > TINY else F(0)
            self.post_trace[k] = after if after > TINY else F(0)
        for j, i in self.synapses:
            self.eligibility[j][i] = decayed(self.eligibility[j][i], self.rules.tau_eligibility_ms)

    def _mark(self, departed: list[bool], fired: list[bool]) -> None:
        nearest = self.rules.pairing == "nearest"
        for k in range(16):
            if departed[k]:
                self.pre_trace[k] = F(1) if nearest else self.pre_trace[k] + F(1)
            if fired[k]:
                self.post_trace[k] = F(1) if nearest else self.post_trace[k] + F(1)

    def _move(self, weights: np.ndarray, j: int, i: int, change: np.float32, soft: bool) -> None:
        w = weights[j][i]
        if soft:
            ahead = self.high - w if change > 0 else w - self.low
            change = change * max(ahead / (self.high - self.low), F(0))
        if change == 0:
            return
        wanted = change + self.unrounded[j][i]
        moved = w + wanted
        self.unrounded[j][i] = wanted - (moved - w)
        weights[j][i] = max(min(moved, max(w, self.high)), min(w, self.low))

    def _scale(self, weights: np.ndarray, fired: list[bool], step: np.float32, learning: bool) -> None:
        homeostasis = self.rules.homeostasis
        assert homeostasis is not None
        target = F(homeostasis.target_hz)
        for k in range(16):
            now = F(1000) / step if fired[k] else F(0)
            rate = self.rates[k] + step / F(homeostasis.tau_rate_ms) * (now - self.rates[k])
            self.rates[k] = rate if rate > TINY else F(0)
        for j, i in self.synapses if learning else []:
            w = max(weights[j][i], F(0))
            change = w * (step / F(homeostasis.tau_scaling_ms)) * (F(1) - self.rates[i] / target)
            self._move(weights, j, i, change, soft=False)
