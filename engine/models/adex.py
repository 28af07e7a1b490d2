"""Adaptive exponential integrate-and-fire, its spikes placed inside the step [1]_.

    C dv/dt = -g_L (v - E_L) + g_L Delta_T exp((v - V_T) / Delta_T) - w + drive
    tau_w dw/dt = a (v - E_L) - w                 at v = v_peak: v becomes V_r, w becomes w + b

v in mV, t in ms, w and drive in pA, C in pF, g_L and a in nS. The defaults are those of [1]_, a regular spiking cell.
The peak hardly matters: above V_T + 5 Delta_T all that is left of the way up takes less than 1 % of C / g_L.

**Integration.** On its way up v escapes to infinity in finite time, and an explicit scheme escapes too late or to NaN.
Each part of the equations alone has a solution in closed form, though: w with v held, the leak with w held, and the
exponential, for which z = exp(-(v - V_T) / Delta_T) falls at the constant rate g_L / C and ends at z = 0. A substep
takes half of the leak, the exponential together with w, which sees the mean of v before and after it, and the other
half of the leak (Strang splitting [2]_): second order, nothing to diverge. Where the exponential reaches the peak
within the substep, the time is read off z, the neuron is reset there, and the rest of the substep follows with its own
share of each part.

A step in which a neuron fires more than once reports one spike, but all its resets are done, one a substep at most.
Inhibition holds v above `_FLOOR_MV`. Steps far below 0.01 ms are no more accurate: near -70 mV a float32 has steps of
8e-6 mV, and what one step of time adds is rounded to them.

**Initial state**: the stable fixed point without drive. A neuron that has none fires by itself, sooner or later, and
starts with v = E_L, w = 0.

**Rheobase** [3]_. With rising drive the fixed point vanishes (saddle-node) where a / g_L is below C / (g_L tau_w), and
otherwise loses its stability before (Andronov-Hopf); `rheobase_pa` has both. A sudden step may fire a neuron earlier.

**Presets** are the firing patterns of [4]_, table 1 and Fig. 4; `PATTERN_CURRENTS_PA` has the step of current, from
v = E_L and w = 0, that brings each out. Copies of the table in circulation differ in the rows of the delayed regular
bursting and the transient spiking: the rows taken here do what the figure shows, the others (a = -6 nS and 110 pA, a =
-10 nS and 350 pA) do not. With a preset, a stimulus of 1 is that step of current, unless gain and bias say otherwise.
delayed_regular_bursting has a = -g_L, and no current at which it rests: left alone it drifts, and after three minutes
of model time it fires (measured).

**Inhibition** in mV counts by the leak alone: w, which would add a, hardly moves in the time that inhibition lasts.

References
----------
.. [1] Brette & Gerstner (2005), J. Neurophysiol. 94, 3637-3642.
.. [2] Strang (1968), SIAM J. Numer. Anal. 5, 506-517.
.. [3] Touboul & Brette (2008), Biol. Cybern. 99, 319-334.
.. [4] Naud, Marcille, Clopath & Gerstner (2008), Biol. Cybern. 99, 335-347.
"""

import math
from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import exp32, one_minus_exp
from neuromod.engine.layout_types import Record
from neuromod.engine.models.model import Model, Parameter, Variable

_MIN_TAU_MS = 0.5  # of the membrane: two substeps


def rest(parameters: Mapping[str, float]) -> tuple[float, float] | None:
    """Potential (mV) and adaptation (pA) of the stable fixed point without drive; None where there is none."""
    c, g_l, e_l, v_t, delta, tau_w, a = (parameters[p.name] for p in ADEX.parameters[:7])
    if a <= -g_l:
        return None

    def outward_pa(v: float) -> float:
        return (g_l + a) * (v - e_l) - g_l * delta * math.exp((v - v_t) / delta)

    # the sum of the currents has one maximum, which lies between the two fixed points; below E_L it is negative
    low, high = e_l, v_t + delta * math.log1p(a / g_l)
    if high <= low or outward_pa(high) <= 0:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if outward_pa(middle) > 0 else (middle, high)
    if math.exp((low - v_t) / delta) >= 1 + c / (g_l * tau_w):
        return None
    return low, a * (low - e_l)


def rheobase_pa(parameters: Mapping[str, float]) -> float:
    """Least drive (pA) without a stable fixed point; a below -g_L, where no drive has one, gives -infinity.

    At a fixed point drive = (g_L + a)(v - E_L) - g_L Delta_T x with x = exp((v - V_T) / Delta_T). It vanishes where
    x = 1 + a / g_L, and oscillates with growing amplitude from where x = 1 + C / (g_L tau_w): what comes first counts.
    """
    c, g_l, e_l, v_t, delta, tau_w, a = (parameters[p.name] for p in ADEX.parameters[:7])
    if a <= -g_l:
        return -math.inf
    x = 1 + min(a / g_l, c / (g_l * tau_w))
    return (g_l + a) * (v_t + delta * math.log(x) - e_l) - g_l * delta * x


def _start(parameters: Mapping[str, float]) -> tuple[float, ...]:
    return (*(rest(parameters) or (parameters["e_l_mv"], 0.0)), 0.0)


def _complaint(parameters: Mapping[str, float]) -> str:
    e_l, v_t, v_reset, v_peak = (parameters[name] for name in ("e_l_mv", "v_t_mv", "v_reset_mv", "v_peak_mv"))
    if not (e_l < v_t < v_peak and v_reset < v_peak):
        return (
            f"expected e_l_mv < v_t_mv < v_peak_mv and v_reset_mv < v_peak_mv, "
            f"got {e_l:g}, {v_t:g}, {v_peak:g} and {v_reset:g}"
        )
    tau = parameters["c_pf"] / parameters["g_l_ns"]
    if tau < _MIN_TAU_MS:
        return f"expected a membrane time constant c_pf / g_l_ns of at least {_MIN_TAU_MS:g} ms, got {tau:g}"
    return ""


def _neuron(c: float, g_l: float, e_l: float, a: float, tau_w: float, b: float, v_reset: float) -> dict[str, float]:
    return {
        "c_pf": c, "g_l_ns": g_l, "e_l_mv": e_l, "v_t_mv": -50.0, "delta_t_mv": 2.0,
        "tau_w_ms": tau_w, "a_ns": a, "b_pa": b, "v_reset_mv": v_reset,
    }  # fmt: skip


PATTERN_CURRENTS_PA: Mapping[str, float] = {
    "tonic": 500.0,
    "adapting": 500.0,
    "initial_burst": 400.0,
    "regular_bursting": 210.0,
    "delayed_accelerating": 300.0,
    "delayed_regular_bursting": 110.0,
    "transient": 180.0,
    "irregular": 160.0,
}
"""Step of current that brings out the pattern of each preset."""

ADEX = Model(
    name="adex",
    number=7,
    title="adaptive exponential integrate-and-fire",
    reference="Brette & Gerstner (2005), J. Neurophysiol. 94, 3637-3642",
    input_unit="pA",
    input_limit=1e6,
    gain=400.0,
    bias=400.0,
    input_per_mv=lambda parameters: parameters["g_l_ns"],
    parameters=(
        Parameter("c_pf", 281.0, 10.0, 100_000.0, "membrane capacitance"),
        Parameter("g_l_ns", 30.0, 0.1, 10_000.0, "leak conductance"),
        Parameter("e_l_mv", -70.6, -150.0, 0.0, "reversal potential of the leak"),
        Parameter("v_t_mv", -50.4, -150.0, 50.0, "where the exponential sets in"),
        Parameter("delta_t_mv", 2.0, 0.1, 20.0, "how gradually it does"),
        Parameter("tau_w_ms", 144.0, 1.0, 100_000.0, "time constant of the adaptation"),
        Parameter("a_ns", 4.0, -1_000.0, 1_000.0, "adaptation to the membrane potential"),
        Parameter("b_pa", 80.5, -10_000.0, 10_000.0, "what a spike adds to the adaptation"),
        Parameter("v_reset_mv", -70.6, -150.0, 50.0, "potential after a spike"),
        Parameter("v_peak_mv", 20.0, -100.0, 100.0, "peak of a spike; hardly matters"),
        Parameter("refractory_ms", 0.0, 0.0, 1_000.0, "time after a spike in which the membrane stays at reset"),
    ),
    variables=(
        Variable("v_mv", "membrane potential"),
        Variable("w_pa", "adaptation current"),
        Variable("refractory_left_ms", "time for which the membrane still stays at reset"),
    ),
    start=_start,
    derived=("rise_v", "rise_w", "climb", "steepness", "per_g_l", "crosses"),
    complaint=_complaint,
    presets={
        "tonic": _neuron(200, 10, -70, 2, 30, 0, -58),
        "adapting": _neuron(200, 12, -70, 2, 300, 60, -58),
        "initial_burst": _neuron(130, 18, -58, 4, 150, 120, -50),
        "regular_bursting": _neuron(200, 10, -58, 2, 120, 100, -46),
        "delayed_accelerating": _neuron(200, 12, -70, -10, 300, 0, -58),
        "delayed_regular_bursting": _neuron(100, 10, -65, -10, 90, 30, -47),
        "transient": _neuron(100, 10, -65, 10, 90, 100, -47),
        "irregular": _neuron(100, 12, -60, -11, 130, 30, -48),
    },
    inputs={preset: (current, 0.0) for preset, current in PATTERN_CURRENTS_PA.items()},
)

NUMBER = ADEX.number

_MAX_SUBSTEP_MS = np.float32(0.25)
_FLOOR_MV = np.float32(-200.0)  # no reversal potential lies lower
_MAX_W_PA = np.float32(1e7)
_TINY_PA = np.float32(1e-30)  # smaller is none; left alone it would decay into subnormal numbers
_SLIVER = np.float32(1e-3)  # a refractory period with less than this part of a substep left is over
_LOWEST = np.float32(-60.0)  # an exponent below adds nothing to v, and would give subnormal numbers
_OVER = np.float32(1e-6)  # with less than this part of z left, the peak is there
_ZERO, _ONE, _HALF, _FOUR = np.float32(0.0), np.float32(1.0), np.float32(0.5), np.float32(4.0)
_THIRD, _FIFTH, _SEVENTH = np.float32(1 / 3), np.float32(1 / 5), np.float32(1 / 7)


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Compute what depends on the parameters and the length of the substep.

    `rise_v` is 1 - exp(-h / 2 tau) of the membrane, `rise_w` 1 - exp(-h / tau_w), `climb` h g_L / C, by which z falls,
    `steepness` 1 / Delta_T, `per_g_l` 1 / g_L.
    """
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, derived = block["parameters"], block["derived"]
    c, g_l, delta, tau_w = parameters[0], parameters[1], parameters[4], parameters[5]
    rise_v, rise_w, climb, steepness, per_g_l = derived[0], derived[1], derived[2], derived[3], derived[4]
    h = np.float64(step_ms / np.float32(_n_substeps(step_ms)))
    for i in range(n_channels):
        if model[i] == NUMBER:
            rate = np.float64(g_l[i]) / np.float64(c[i])
            rise_v[i] = np.float32(one_minus_exp(h * rate * np.float64(_HALF)))
            rise_w[i] = np.float32(one_minus_exp(h / np.float64(tau_w[i])))
            climb[i] = np.float32(h * rate)
            steepness[i] = _ONE / delta[i]
            per_g_l[i] = _ONE / g_l[i]


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every AdEx channel by `step_ms` and write 1 or 0 into its `fired`.

    Charge that arrives moves v at the start. V_T stands higher by (`threshold_gain` - 1)(V_T - E_L). Each substep
    advances all channels as if none met its peak, and then, where there are any, those that do.
    """
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, variables, derived = block["parameters"], block["variables"], block["derived"]
    e_l, v_t, delta, a, b = parameters[2], parameters[3], parameters[4], parameters[6], parameters[7]
    v_reset, v_peak, refractory = parameters[8], parameters[9], parameters[10]
    v, w, left = variables[0], variables[1], variables[2]
    rise_v, rise_w, climb, steepness = derived[0], derived[1], derived[2], derived[3]
    per_g_l, crosses = derived[4], derived[5]
    drive, kick, fired = block["drive"], block["kick"], block["fired"]
    raised = threshold_gain - _ONE
    n_substeps = _n_substeps(step_ms)
    h = step_ms / np.float32(n_substeps)
    per_h = _ONE / h
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = v_reset[i] if left[i] > _ZERO else _held(v[i] + kick[i], _FLOOR_MV, v_peak[i])
        v[i] = moved if mine else v[i]
        fired[i] = _ZERO if mine else fired[i]
    for _ in range(n_substeps):
        n_crossing = 0
        for i in range(n_channels):
            mine = model[i] == NUMBER
            free = _held(_ONE - left[i] * per_h, _ZERO, _ONE)
            moved, current, remains = _flow(
                v[i], w[i], e_l[i] + drive[i] * per_g_l[i], per_g_l[i], e_l[i], v_t[i] + raised * (v_t[i] - e_l[i]),
                delta[i], steepness[i], a[i], rise_v[i] * free, climb[i] * free, rise_w[i],
            )  # fmt: skip
            crossing = remains <= _OVER or moved >= v_peak[i]
            stays = left[i] - h
            stays = stays if stays > _SLIVER * h else _ZERO
            v[i] = (v[i] if crossing else moved) if mine else v[i]
            w[i] = (w[i] if crossing else current) if mine else w[i]
            left[i] = (left[i] if crossing else stays) if mine else left[i]
            crosses[i] = (_ONE if crossing else _ZERO) if mine else crosses[i]
            n_crossing += (1 if crossing else 0) if mine else 0
        if n_crossing > 0:
            for i in range(n_channels):
                if model[i] == NUMBER and crosses[i] > _ZERO:
                    fired[i] = _ONE
                    threshold = v_t[i] + raised * (v_t[i] - e_l[i])
                    rest_mv = e_l[i] + drive[i] * per_g_l[i]
                    # when the peak is met, in substeps
                    blocked = _held(left[i] * per_h, _ZERO, _ONE)
                    free = _ONE - blocked
                    summit = exp32((threshold - v_peak[i]) * steepness[i])
                    begun = v[i] + (rest_mv - w[i] * per_g_l[i] - v[i]) * (rise_v[i] * free)
                    part = (exp32((threshold - begun) * steepness[i]) - summit) / climb[i]
                    part = _held(blocked + part, blocked, _ONE)
                    # on the way up v is above where it began by Delta_T in the mean
                    w[i] += (a[i] * (begun + delta[i] - e_l[i]) - w[i]) * (rise_w[i] * part) + b[i]
                    after = _ONE - part
                    free = _held(after - refractory[i] * per_h, _ZERO, _ONE)
                    stays = refractory[i] - after * h
                    left[i] = stays if stays > _SLIVER * h else _ZERO
                    moved, w[i], remains = _flow(
                        v_reset[i], w[i], rest_mv, per_g_l[i], e_l[i], threshold,
                        delta[i], steepness[i], a[i], rise_v[i] * free, climb[i] * free, rise_w[i] * after,
                    )  # fmt: skip
                    # a peak that is met once more is dealt with in the next substep
                    v[i] = _held(moved, _FLOOR_MV, v_peak[i])
    for i in range(n_channels):
        mine = model[i] == NUMBER
        current = w[i] if abs(w[i]) > _TINY_PA else _ZERO
        w[i] = _held(current, -_MAX_W_PA, _MAX_W_PA) if mine else w[i]
        v[i] = (v[i] if v[i] > _FLOOR_MV else _FLOOR_MV) if mine else v[i]


@jit
def _flow(
    v: np.float32,
    w: np.float32,
    rest_mv: np.float32,
    per_g_l: np.float32,
    e_l: np.float32,
    v_t: np.float32,
    delta: np.float32,
    steepness: np.float32,
    a: np.float32,
    rise_v: np.float32,
    climb: np.float32,
    rise_w: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """Advance by a substep without a spike: return v, w and the part of z that the exponential has left."""
    v = v + (rest_mv - v - w * per_g_l) * rise_v
    exponent = (v - v_t) * steepness
    exponent = exponent if exponent > _LOWEST else _LOWEST
    remains = _ONE - climb * exp32(exponent)
    remains = remains if remains > _OVER else _OVER
    risen = v - delta * _log(remains)
    w = w + (_HALF * a * (v - e_l + (risen - e_l)) - w) * rise_w
    return risen + (rest_mv - risen - w * per_g_l) * rise_v, w, remains


@jit
def _log(x: np.float32) -> np.float32:
    """ln(x) for 1e-6 <= x <= 1.

    To 1e-6 above 0.4 and to 0.002 at 0.1; below, what it lacks stands for less than 0.002 of a substep on the way up.
    """
    # twice that of the root, which has the series 2 (y + y^3 / 3 + y^5 / 5 + ...) with y = (root - 1) / (root + 1)
    root = np.sqrt(x)
    y = (root - _ONE) / (root + _ONE)
    square = y * y
    logarithm: np.float32 = _FOUR * y * (_ONE + square * _THIRD + square * square * (_FIFTH + square * _SEVENTH))
    return logarithm


@jit
def _held(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Hold x to a range."""
    x = x if x > low else low
    return x if x < high else high


@jit
def _n_substeps(step_ms: np.float32) -> int:
    """Number of equal substeps of a step."""
    return math.ceil(step_ms / _MAX_SUBSTEP_MS)
