"""The phase plane of the FitzHugh-Nagumo model: nullclines, fixed points, and what they say of the regime.

For parameters by name (`a`, `b`, `epsilon`) and a constant current, all dimensionless; for figures, tests and the
state in which a neuron starts. The tick does not come here.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Regime = Literal["excitable", "oscillatory", "blocked", "bistable"]


def nullclines(
    parameters: Mapping[str, float], current: float, v: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where either variable stands still.

    Parameters
    ----------
    parameters : mapping
        `a` and `b`; others are ignored.
    current : float
        Constant drive.
    v : array_like
        Values of v at which to compute them.

    Returns
    -------
    tuple of ndarray of float64, shape of `v`
        w on the cubic, where dv/dt = 0, and w on the line where dw/dt = 0.
    """
    v = np.asarray(v, dtype=np.float64)
    return v - v**3 / 3.0 + current, (v + parameters["a"]) / parameters["b"]


def fixed_points(parameters: Mapping[str, float], current: float) -> NDArray[np.float64]:
    """States in which nothing changes: where the nullclines meet.

    Parameters
    ----------
    parameters : mapping
        `a` and `b` > 0; others are ignored.
    current : float
        Constant drive.

    Returns
    -------
    ndarray of float64, shape (n, 2)
        v and w of each, v ascending. One for b <= 1; up to three beyond.

    Notes
    -----
    v solves v^3 / 3 - v + (v + a) / b = current. Halving intervals takes nothing but the four operations and a square
    root, so a network starts from the same bits on every machine; an eigenvalue routine gives no such promise.
    """
    a, b = parameters["a"], parameters["b"]

    def excess(v: float) -> float:
        return v * v * v / 3.0 - v + (v + a) / b - current

    bound = 2.0
    while excess(-bound) > 0.0 or excess(bound) < 0.0:
        bound *= 2.0
    turn = math.sqrt(max(1.0 - 1.0 / b, 0.0))
    edges = (-bound, -turn, turn, bound) if turn > 0.0 else (-bound, bound)
    roots = [
        _root(excess, low, high)
        for low, high in itertools.pairwise(edges)
        if (excess(low) > 0.0) != (excess(high) > 0.0)
    ]
    return np.array([(v, (v + a) / b) for v in roots])


def regime(parameters: Mapping[str, float], current: float) -> Regime:
    """What the neuron does under a constant current, as the linear stability of its fixed points has it.

    Parameters
    ----------
    parameters : mapping
        `a`, `b` and `epsilon`.
    current : float
        Constant drive.

    Returns
    -------
    {"excitable", "oscillatory", "blocked", "bistable"}
        excitable: it rests on the left branch of the cubic, and one push is one spike. oscillatory: no fixed point is
        stable, it fires on and on. blocked: it rests on the right branch, too depolarised to fire. bistable: two
        fixed points are stable.

    Notes
    -----
    Stability is local. For the usual parameters it is lost subcritically: beside the oscillatory currents, 0.331 to
    1.419, lies a band, down to 0.325 and up to 1.425, in which the cycle exists beside the stable fixed point, and the
    initial state decides.
    """
    stable = [v for v, _ in fixed_points(parameters, current) if _is_stable(parameters, v)]
    if not stable:
        return "oscillatory"
    if len(stable) > 1:
        return "bistable"
    return "excitable" if stable[0] < 0.0 else "blocked"


def _is_stable(parameters: Mapping[str, float], v: float) -> bool:
    """Whether both eigenvalues of the Jacobian have negative real parts: trace below and determinant above 0."""
    b, epsilon = parameters["b"], parameters["epsilon"]
    slope = 1.0 - v * v
    trace, determinant = slope - epsilon * b, epsilon * (1.0 - b * slope)
    return trace < 0.0 < determinant


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function` changes sign between `low` and `high`, to the last bit."""
    above = function(high) > 0.0
    while True:
        middle = low + (high - low) / 2.0
        if middle in (low, high):
            return middle
        if (function(middle) > 0.0) == above:
            high = middle
        else:
            low = middle
