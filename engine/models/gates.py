"""What models with voltage-gated channels share: the mathematics of gates, with the same bits on every machine."""

import math

import numpy as np

from neuromod.engine.bits import float_of
from neuromod.engine.compiled import JIT_ENABLED, jit
from neuromod.engine.exponential import one_minus_exp

INTERPRETED = not JIT_ENABLED
"""Whether kernels pass over channels of other models. Compiled, they compute there what nobody stores, for the sake of
vectors; interpreted, that would take time, and numbers that mean nothing would bring warnings.
"""

_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(12582912.0)  # 1.5 x 2^23: adding it leaves no digits after the point
_LN2_HIGH = np.float32(0.693359375)  # nine digits of ln 2, so that a whole number of them is exact
_LN2_LOW = np.float32(-2.1219444005469057e-4)
_LONGEST = np.float32(80.0)  # exp(-80) is nothing beside 1, and a normal number
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_TINY = np.float32(1e-30)  # lost beside any exp(x) - 1 that is used, but no division by 0 at 0
# Bernoulli numbers over factorials: x / (exp(x) - 1) = 1 - x/2 + x^2/12 - x^4/720 + x^6/30240 - ...
_B2, _B4, _B6 = np.float32(1 / 12), np.float32(1 / 720), np.float32(1 / 30240)


@jit
def rise32(x: np.float32) -> np.float32:
    """Return 1 - exp(-x): the part of its way that a gate or a membrane goes in x time constants.

    Parameters
    ----------
    x : float32
        Not negative; above 80 the answer is that of 80, which is 1.

    Returns
    -------
    float32
        Within 3 units in the last place, also for tiny x.

    Notes
    -----
    As in `exp32`, exp(-x) = 2^n exp(r); with q = exp(r) - 1 from the series, 1 - exp(-x) = (1 - 2^n) - 2^n q, where
    nothing cancels: n = 0 leaves -q, and otherwise 2^n is at most a half.
    """
    x = x if x < _LONGEST else _LONGEST
    n = _ROUND - x * _LOG2_E - _ROUND
    r = -x - n * _LN2_HIGH - n * _LN2_LOW
    # the terms in pairs: half the time of one after the other, where a substep waits for this number
    r2 = r * r
    q = r + r2 * ((_C2 + r * _C3) + r2 * (_C4 + r * _C5) + (r2 * r2) * (_C6 + r * _C7))
    scale = float_of(np.int32((np.int32(n) + _BIAS) << _MANTISSA))
    return (_ONE - scale) - scale * q


@jit
def linoid(x: np.float32, exp_x: np.float32) -> np.float32:
    """Return x / (exp(x) - 1), which is 1 at 0: the shape of many opening rates.

    Parameters
    ----------
    x : float32
        Any number.
    exp_x : float32
        exp(x), which the caller has at hand; used where |x| is 1 or more.

    Returns
    -------
    float32
        Relative error below 1e-6, and 1.6 times that of `exp_x`.
    """
    square = x * x
    near = _ONE - _HALF * x + square * (_B2 - square * (_B4 - square * _B6))
    far = x / (exp_x - _ONE + _TINY)
    return near if square < _ONE else far


_UNITY, _TWO, _TEN = np.float64(1.0), np.float64(2.0), np.float64(10.0)
_SLACK = np.float64(1e-6)
_LOG_TERMS = 24  # of the series of ln(q10) for a q10 of at most 4: the next is 0.6^49 / 49 = 3e-13


@jit
def temperature_factor(q10: np.float32, degrees: np.float32) -> np.float64:
    """Return q10 ** (degrees / 10): how much quicker gates are where it is that much warmer.

    Parameters
    ----------
    q10 : float32
        1 to 4.
    degrees : float32
        -60 to 60.

    Returns
    -------
    float64
        Relative error below 1e-10.
    """
    # ln(q10) = 2 artanh(u)
    u = (np.float64(q10) - _UNITY) / (np.float64(q10) + _UNITY)
    series = np.float64(0.0)
    for k in range(_LOG_TERMS - 1, -1, -1):
        series = _UNITY / np.float64(2 * k + 1) + u * u * series
    exponent = _TWO * u * series * np.float64(degrees) / _TEN
    slower = _UNITY - one_minus_exp(abs(exponent))
    return slower if exponent < np.float64(0.0) else _UNITY / slower


@jit
def substeps(step_ms: np.float32, limit_ms: np.float64, factor: np.float64) -> int:
    """Into how many substeps a step is divided: none is longer than `limit_ms`, nor than that by sqrt(factor).

    A millionth of a substep more is allowed, so that rounding adds none to a step that is a multiple of the limit.
    """
    quicker = np.sqrt(factor) if factor > _UNITY else _UNITY
    return max(1, math.ceil(np.float64(step_ms) * quicker / limit_ms - _SLACK))
