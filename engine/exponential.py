"""The engine's own exponentials: the same bits on every machine, compiled or not.

The exponential of the platform's library differs in its last bit between libraries and between numpy and numba; a
network would then differ between the machine that recorded a session and the one that replays it.
"""

import math

import numpy as np

from neuromod.engine.bits import float_of
from neuromod.engine.compiled import jit

_LIMIT = np.float64(64.0)  # exp(-64) is 1.6e-28: nothing, beside 1, in float32 and in float64
_SHARE = np.float64(1.0 / 64.0)
_TERMS = 14  # of the series for an argument of at most 1: the next term is 1 / 15! = 7.6e-13


@jit
def one_minus_exp(x: np.float64) -> np.float64:
    """1 - exp(-x) for x >= 0.

    Parameters
    ----------
    x : float64
        Not negative; above 64 the answer is that of 64.

    Returns
    -------
    float64
        Relative error below 1e-11, also for tiny x.

    Notes
    -----
    The series gives e = 1 - exp(-x / 64); each of six squarings of exp(-x / 64), written for e as e (2 - e), doubles
    the argument. No cancellation, no table, no branch.
    """
    x = x if x < _LIMIT else _LIMIT
    z = x * _SHARE
    # 1 - exp(-z) = z (1 - z/2 (1 - z/3 (1 - z/4 ...)))
    series = np.float64(1.0)
    for k in range(_TERMS, 1, -1):
        series = np.float64(1.0) - z / np.float64(k) * series
    e = z * series
    for _ in range(6):
        e = e * (np.float64(2.0) - e)
    return e


_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(12582912.0)  # 1.5 x 2^23: adding it leaves no digits after the point
_LN2_HIGH = np.float32(0.693359375)  # nine digits of ln 2, so that a whole number of them is exact
_LN2_LOW = np.float32(-2.1219444005469057e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))
_ONE = np.float32(1.0)


@jit
def exp32(x: np.float32) -> np.float32:
    """exp(x) in float32, for kernels that need it in every substep.

    Parameters
    ----------
    x : float32
        Held to -87 to 88, whose exponentials (1.6e-38 and 1.7e38) are normal numbers.

    Returns
    -------
    float32
        Within 2 units in the last place.

    Notes
    -----
    exp(x) = 2^n exp(r), n whole and |r| <= ln(2) / 2, where eight terms of the series suffice (Cody & Waite 1980,
    Software Manual for the Elementary Functions). No table and no branch, so that it runs on vectors.
    """
    x = x if x > _LOWEST else _LOWEST
    x = x if x < _HIGHEST else _HIGHEST
    n = x * _LOG2_E + _ROUND - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    p = _ONE + (r + r * r * p)
    return p * float_of(np.int32((np.int32(n) + _BIAS) << _MANTISSA))
