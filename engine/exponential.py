"""The engine's own exponential: the same bits on every machine, compiled or not.

The exponential of the platform's library differs in its last bit between libraries and between numpy and numba; a
network would then differ between the machine that recorded a session and the one that replays it.
"""

import numpy as np

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
