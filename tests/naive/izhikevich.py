"""Izhikevich's simple model once more: one neuron, from formula to formula, in float32 scalars."""

import math

import numpy as np

from naive.stress import held_down
from neuromod.engine.config import ChannelConfig
from neuromod.engine.models.izhikevich import IZHIKEVICH

F = np.float32


class NaiveIzhikevich:
    def __init__(self, config: ChannelConfig) -> None:
        parameters = config.complete_parameters()
        self.a, self.b, self.c, self.d, *coefficients = map(F, parameters.values())
        self.k2, self.k1, self.k0, self.u_offset, self.u_decay, self.v_peak = coefficients
        self.v, self.u = (F(x) for x in IZHIKEVICH.start(parameters))
        self.current = F(0)
        self.fired = False

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool:
        self.v = min(max(self.v + held_down(kick, threshold_gain), F(-1000)), F(1000))
        self.current = self.k0 + held_down(drive, threshold_gain)
        self.fired = False
        n_substeps = math.ceil(step / F(0.5))
        for _ in range(n_substeps):
            self.substep(step / F(n_substeps))
        return self.fired

    def substep(self, h: np.float32) -> None:
        """Advance by h, cut into pieces that end at spikes or turn the tangent by less than a quarter."""
        left = piece = h
        for _ in range(32):
            angle, end = self.tangent(piece)
            if angle > 2 and self.v < self.v_peak:
                piece = piece / F(2)
                continue
            if end is None:
                left = left - self.spike(piece)
            else:
                self.u = self.u_at(end, piece)
                self.v = end
                left = left - piece
            if left <= 0:
                return
            piece = left

    def dv_and_u(self, v: np.float32) -> np.float32:
        return (self.k2 * v + self.k1) * v + self.current

    def half_slope(self) -> np.float32:
        return self.k2 * self.v + F(0.5) * self.k1

    def du(self) -> np.float32:
        return self.a * (self.b * (self.v + self.u_offset) - self.u_decay * self.u)

    def ddu(self) -> np.float32:
        return self.a * (self.b * (self.dv_and_u(self.v) - self.u) - self.u_decay * self.du())

    def mean_u(self, h: np.float32) -> np.float32:
        return self.u + h * F(0.5) * (self.du() + h * F(1 / 3) * (self.ddu() - self.half_slope() * self.du()))

    def tangent(self, h: np.float32) -> tuple[np.float32, np.float32 | None]:
        """How far w h turns, squared, and v after h with u held; None where v meets its peak before."""
        f = self.dv_and_u(self.v) - self.mean_u(h)
        g = self.half_slope()
        angle = h * h * (self.k2 * f - g * g)
        above = h * (F(105) - F(10) * angle)
        below = F(105) + angle * (angle - F(45)) - above * g
        if angle > 2 or self.v >= self.v_peak or f * above >= (self.v_peak - self.v) * below:
            return angle, None
        return angle, max(self.v + f * above / below, F(-1000))

    def u_at(self, v_end: np.float32, h: np.float32) -> np.float32:
        """u after h by the trapezoidal rule with its end correction, which holds the unknown u on both sides."""
        a, b, decay = self.a, self.b, self.u_decay
        pull = a * b * (v_end + self.u_offset)
        ddu_end = a * b * self.dv_and_u(v_end) - a * decay * pull
        explicit = self.u + h * (F(0.5) * (self.du() + pull) + h * F(1 / 12) * (self.ddu() - ddu_end))
        implicit = F(1) / (F(1) + h * F(0.5) * a * decay + h * h * F(1 / 12) * (a * decay * a * decay - a * b))
        return self.held(explicit * implicit)

    def held(self, u: np.float32) -> np.float32:
        return min(max(u, F(-1e5)), F(1e5))

    def spike(self, h: np.float32) -> np.float32:
        """Go to the peak and reset; return the time to the peak, at most h."""
        t = F(0)
        if self.v < self.v_peak:
            t = h
            for _ in range(2):
                t, area = self.way_to_peak(self.mean_u(t))
                t = min(t, h)
            e, ab = self.a * self.u_decay, self.a * self.b
            explicit = (
                self.u * (F(1) - e * t * F(0.5))
                + ab * (area + self.u_offset * t)
                - e * t * t * F(1 / 12) * (self.du() - ab * (self.v_peak + self.u_offset))
            )
            self.u = explicit / (F(1) + e * t * (F(0.5) + e * t * F(1 / 12)))
        self.v = self.c
        self.u = self.held(self.u + self.d)
        self.fired = True
        return t

    def way_to_peak(self, u: np.float32) -> tuple[np.float32, np.float32]:
        """Integrals of dv / f and of v dv / f by Gauss and Legendre's rule of three points."""
        middle, half, width = F(0.5) * (self.v_peak + self.v), F(0.5) * (self.v_peak - self.v), self.v_peak - self.v
        node = F(math.sqrt(0.6))
        points = (middle - node * half, middle, middle + node * half)
        weights = (F(5 / 18), F(4 / 9), F(5 / 18))
        t1, t2, t3 = (w / max(self.dv_and_u(v) - u, F(1e-3)) for v, w in zip(points, weights, strict=True))
        return width * (t1 + t2 + t3), width * (t1 * points[0] + t2 * points[1] + t3 * points[2])
