"""Izhikevich's simple model [1]_ [2]_, its spikes placed inside the step.

    dv/dt = quadratic v^2 + linear v + constant - u + drive
    du/dt = a (b (v + u_offset) - u_decay u)        at v = v_peak: v becomes c, u becomes u + d

v in mV, t in ms, u and drive without unit (mV/ms, if one insists). The defaults are the equations of [1]_; [2]_ needs
other coefficients for three of its twenty patterns.

**Integration.** v runs away towards its peak, and most of the error of the usual schemes comes from there: Euler's
method with two steps of 0.5 ms loses half of a fast-spiking neuron's spikes. With u held, though, dv/dt is a quadratic
in v, and its flow is known in closed form: over h, with f = dv/dt and g half of its derivative by v,

    v(h) = v + f T / (1 - g T),   T = tan(w h) / w,   w^2 = quadratic f - g^2,

a tangent above the rheobase and a hyperbolic one below, of which one continued fraction takes care. u is held at its
average over the substep, weighted by what a change of it then does to v(h); u itself is integrated by the trapezoidal
rule with its end correction. In all that is of third order. The time at which v meets its peak is the integral of
dv / f [3]_; the neuron is reset there and integrated on from there. Substeps are of 0.5 ms at most. Over a second, the
six reference simulations of the tests then have the exact count or one more, and 0.1 ms ticks the exact times.

A step in which a neuron fires more than once, long or at a high tempo, reports one spike, but all its resets are done.
At a drive of several thousand there may be more resets than a substep has room for (`_MAX_PIECES`): time is lost then.

**Initial state**: v = c, u = b (v + u_offset), at which the reference simulations of the tests begin; it is not rest,
which for most presets lies lower, and from a high c a neuron may fire a few times before it is silent. Where a is
negative, u would not find back from there: such a neuron begins at -65 mV, as in the script of [1]_, if c lies higher.

**Presets**: RS to RZ are the seven neurons of [1]_, Fig. 2, those with names in small letters the twenty patterns of
[2]_, Fig. 1, with the parameters of the script that its author published with it (figure1.m), but for one: with the
published d = -2, inhibition_induced_bursting does not end its first burst under any stimulus. Its u falls from spike to
spike and carries v along, ever faster; in the script, Euler steps of 0.5 ms overshoot the peak so far that they lift u
instead. Here d = -0.5. `firing_patterns` has the stimulus that brings each pattern out. The two that inhibition makes
fire have a bias of 80 and a negative gain: a stimulus of 1 takes 5 off, as in the figure. accommodation answers the
onset of a stimulus, or a fast ramp, and is silent again.

**Cortisol** divides the drive where it is positive, and charge that depolarises: the rheobase, which no parameter
names, rises by the threshold gain, and so does the least charge that makes a resting neuron fire.

References
----------
.. [1] Izhikevich (2003), IEEE Trans. Neural Netw. 14, 1569-1572.
.. [2] Izhikevich (2004), IEEE Trans. Neural Netw. 15, 1063-1070.
.. [3] Henon (1982), Physica D 5, 412-414: a crossing found by taking the variable that crosses for the time.
"""

import math
from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.layout_types import Record
from neuromod.engine.models.model import Model, Parameter, Variable
from neuromod.engine.models.stress import held_down

_INHIBITED_MV = 10.0
_UNSTABLE_START_MV = -65.0


def _input_per_mv(parameters: Mapping[str, float]) -> float:
    """A tenth of the drive that holds the membrane 10 mV below rest, u at its steady state: the model has no leak.

    The slope at rest itself would not do: it is 0 for a neuron at the edge of firing, and a parabola is steeper below.
    Such a neuron, and one that fires by itself, counts from the bottom of the parabola. Without decay u has no steady
    state, and is held.
    """
    quadratic, linear, b = parameters["quadratic_per_mv_ms"], parameters["linear_per_ms"], parameters["b"]
    if parameters["u_decay"] > 0:
        b = b / parameters["u_decay"]
        constant = parameters["constant"] - b * parameters["u_offset_mv"]
        slope = math.sqrt(max((linear - b) ** 2 - 4 * quadratic * constant, 0.0))
    else:
        slope = max(2 * quadratic * parameters["u_offset_mv"] - linear, 0.0)
    return slope + quadratic * _INHIBITED_MV


def _start(parameters: Mapping[str, float]) -> tuple[float, float]:
    c, b = parameters["c_mv"], parameters["b"]
    v = c if parameters["a_per_ms"] >= 0 else min(c, _UNSTABLE_START_MV)
    return v, b * (v + parameters["u_offset_mv"])


def _complaint(parameters: Mapping[str, float]) -> str:
    if parameters["c_mv"] < parameters["v_peak_mv"]:
        return ""
    return f"expected c_mv < v_peak_mv, got {parameters['c_mv']:g} and {parameters['v_peak_mv']:g}"


def _neuron(a: float, b: float, c: float, d: float, **others: float) -> dict[str, float]:
    return {"a_per_ms": a, "b": b, "c_mv": c, "d": d, **others}


IZHIKEVICH = Model(
    name="izhikevich",
    number=3,
    title="Izhikevich's simple model, spikes placed inside the step",
    reference="Izhikevich (2003), IEEE Trans. Neural Netw. 14, 1569-1572; (2004), 15, 1063-1070",
    input_unit="1",
    input_limit=1e4,
    gain=10.0,
    bias=0.0,
    input_per_mv=_input_per_mv,
    parameters=(
        Parameter("a_per_ms", 0.02, -1.0, 2.0, "rate of the recovery variable u"),
        Parameter("b", 0.2, -10.0, 10.0, "sensitivity of u to the membrane potential"),
        Parameter("c_mv", -65.0, -200.0, 100.0, "potential after a spike"),
        Parameter("d", 8.0, -1_000.0, 1_000.0, "what a spike adds to u"),
        Parameter("quadratic_per_mv_ms", 0.04, 0.001, 1.0, "coefficient of v^2 in dv/dt"),
        Parameter("linear_per_ms", 5.0, -50.0, 50.0, "coefficient of v in dv/dt"),
        Parameter("constant", 140.0, -10_000.0, 10_000.0, "constant in dv/dt"),
        Parameter("u_offset_mv", 0.0, -200.0, 200.0, "added to the potential that u follows"),
        Parameter("u_decay", 1.0, 0.0, 1.0, "1 where u decays at its rate, 0 where it only integrates"),
        Parameter("v_peak_mv", 30.0, -100.0, 200.0, "peak of a spike, where v and u are reset"),
    ),
    variables=(
        Variable("v_mv", "membrane potential"),
        Variable("u", "recovery variable"),
    ),
    start=_start,
    derived=("u_factor", "current", "crosses"),
    complaint=_complaint,
    presets={
        "RS": _neuron(0.02, 0.2, -65, 8),
        "IB": _neuron(0.02, 0.2, -55, 4),
        "CH": _neuron(0.02, 0.2, -50, 2),
        "FS": _neuron(0.1, 0.2, -65, 2),
        "LTS": _neuron(0.02, 0.25, -65, 2),
        "TC": _neuron(0.02, 0.25, -65, 0.05),
        "RZ": _neuron(0.1, 0.26, -65, 2),
        "tonic_spiking": _neuron(0.02, 0.2, -65, 6),
        "phasic_spiking": _neuron(0.02, 0.25, -65, 6),
        "tonic_bursting": _neuron(0.02, 0.2, -50, 2),
        "phasic_bursting": _neuron(0.02, 0.25, -55, 0.05),
        "mixed_mode": _neuron(0.02, 0.2, -55, 4),
        "spike_frequency_adaptation": _neuron(0.01, 0.2, -65, 8),
        "class_1_excitable": _neuron(0.02, -0.1, -55, 6, linear_per_ms=4.1, constant=108),
        "class_2_excitable": _neuron(0.2, 0.26, -65, 0),
        "spike_latency": _neuron(0.02, 0.2, -65, 6),
        "subthreshold_oscillations": _neuron(0.05, 0.26, -60, 0),
        "resonator": _neuron(0.1, 0.26, -60, -1),
        "integrator": _neuron(0.02, -0.1, -55, 6, linear_per_ms=4.1, constant=108),
        "rebound_spike": _neuron(0.03, 0.25, -60, 4),
        "rebound_burst": _neuron(0.03, 0.25, -52, 0),
        "threshold_variability": _neuron(0.03, 0.25, -60, 4),
        "bistability": _neuron(0.1, 0.26, -60, 0),
        "depolarizing_afterpotential": _neuron(1, 0.2, -60, -21),
        "accommodation": _neuron(0.02, 1, -55, 4, u_offset_mv=65, u_decay=0),
        "inhibition_induced_spiking": _neuron(-0.02, -1, -60, 8),
        "inhibition_induced_bursting": _neuron(-0.026, -1, -45, -0.5),
    },
    inputs={name: (-5.0, 80.0) for name in ("inhibition_induced_spiking", "inhibition_induced_bursting")},
)

NUMBER = IZHIKEVICH.number

_MAX_SUBSTEP_MS = np.float32(0.5)
_MAX_PIECES = 32
_MAX_ANGLE = np.float32(2.0)  # of (w h)^2: the continued fraction is good to 1e-4 there, and its pole lies at 2.47
_LOW_MV, _HIGH_MV = np.float32(-1000.0), np.float32(1000.0)
_MAX_U = np.float32(1e5)
_MIN_SLOPE = np.float32(1e-3)  # mV/ms: keeps 1 / f finite where rounding has a word in whether v meets its peak

_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_THIRD, _TWELFTH = np.float32(1 / 3), np.float32(1 / 12)
# tan(s) / s = (105 - 10 s^2) / (105 - 45 s^2 + s^4), to s^8
_T0, _T1, _T2 = np.float32(105.0), np.float32(10.0), np.float32(45.0)
# Gauss-Legendre with three points: the outer ones off the middle, in halves of the interval, and the weights
_NODE = np.float32(math.sqrt(0.6))
_OUTER, _MIDDLE = np.float32(5 / 18), np.float32(4 / 9)


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Compute `u_factor`, the part of the update of u that only the length of the substep and the parameters set."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters = block["parameters"]
    a, b, decay = parameters[0], parameters[1], parameters[8]
    u_factor = block["derived"][0]
    h = _substep(step_ms)
    for i in range(n_channels):
        factor = _u_factor(h, a[i], b[i], decay[i])
        u_factor[i] = factor if model[i] == NUMBER else u_factor[i]


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every Izhikevich channel by `step_ms` and write 1 or 0 into its `fired`.

    Charge that arrives moves v at the start. Each substep advances all channels as if none met its peak, in vectors,
    and then those that do, one by one. Channels of other models pass through the formula too: to select what goes in
    would make the loop scalar, and the tick three times as long.
    """
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters = block["parameters"]
    a, b, quadratic, linear = parameters[0], parameters[1], parameters[4], parameters[5]
    constant, offset, decay, v_peak = parameters[6], parameters[7], parameters[8], parameters[9]
    v, u = block["variables"][0], block["variables"][1]
    u_factor, current, crosses = block["derived"][0], block["derived"][1], block["derived"][2]
    drive, kick, fired = block["drive"], block["kick"], block["fired"]
    eased = _ONE / threshold_gain
    for i in range(n_channels):
        mine = model[i] == NUMBER
        v[i] = _held(v[i] + held_down(kick[i], eased), _LOW_MV, _HIGH_MV) if mine else v[i]
        current[i] = constant[i] + held_down(drive[i], eased) if mine else current[i]
        fired[i] = _ZERO if mine else fired[i]
    h = _substep(step_ms)
    for _ in range(_n_substeps(step_ms)):
        n_crossing = 0
        for i in range(n_channels):
            mine = model[i] == NUMBER
            moved, recovered, crossing = _flow(
                h, v[i], u[i], current[i], a[i], b[i], quadratic[i], linear[i], offset[i], decay[i], v_peak[i],
                u_factor[i],
            )  # fmt: skip
            crossing = crossing and mine
            n_crossing += 1 if crossing else 0
            crosses[i] = (_ONE if crossing else _ZERO) if mine else crosses[i]
            v[i] = moved if mine and not crossing else v[i]
            u[i] = recovered if mine and not crossing else u[i]
        if n_crossing > 0:
            for i in range(n_channels):
                if model[i] == NUMBER and crosses[i] > _ZERO:
                    _fire(block, i, h)


@jit
def _n_substeps(step_ms: np.float32) -> int:
    """Number of equal substeps of a step."""
    return math.ceil(step_ms / _MAX_SUBSTEP_MS)


@jit
def _substep(step_ms: np.float32) -> np.float32:
    """Length of a substep, ms."""
    return step_ms / np.float32(_n_substeps(step_ms))


@jit
def _held(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Hold x to a range."""
    x = x if x > low else low
    return x if x < high else high


@jit
def _u_factor(h: np.float32, a: np.float32, b: np.float32, decay: np.float32) -> np.float32:
    """What the end correction's equation for the new u is to be multiplied by, to be solved."""
    return _ONE / (_ONE + h * _HALF * a * decay + h * h * _TWELFTH * (a * decay * a * decay - a * b))


@jit
def _mean_u(h: np.float32, u: np.float32, half_slope: np.float32, du: np.float32, ddu: np.float32) -> np.float32:
    """Average of u over h, weighted by what a change of it does to v at the end."""
    return u + h * _HALF * (du + h * _THIRD * (ddu - half_slope * du))


@jit
def _slopes(
    v: np.float32,
    u: np.float32,
    current: np.float32,
    a: np.float32,
    b: np.float32,
    quadratic: np.float32,
    linear: np.float32,
    offset: np.float32,
    decay: np.float32,
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """dv/dt without its u, half of its derivative by v, and the first two derivatives of u."""
    without_u = (quadratic * v + linear) * v + current
    half_slope = quadratic * v + _HALF * linear
    du = a * (b * (v + offset) - decay * u)
    ddu = a * (b * (without_u - u) - decay * du)
    return without_u, half_slope, du, ddu


@jit
def _flow(
    h: np.float32,
    v: np.float32,
    u: np.float32,
    current: np.float32,
    a: np.float32,
    b: np.float32,
    quadratic: np.float32,
    linear: np.float32,
    offset: np.float32,
    decay: np.float32,
    v_peak: np.float32,
    u_factor: np.float32,
) -> tuple[np.float32, np.float32, np.bool_]:
    """Return v and u after h, and whether v meets its peak before, in which case they mean nothing."""
    without_u, half_slope, du, ddu = _slopes(v, u, current, a, b, quadratic, linear, offset, decay)
    f = without_u - _mean_u(h, u, half_slope, du, ddu)
    angle = h * h * (quadratic * f - half_slope * half_slope)
    above = h * (_T0 - _T1 * angle)
    below = _T0 + angle * (angle - _T2) - above * half_slope
    # below <= 0: v has run through infinity, which takes f > 0, so that the first comparison holds there too
    crosses = f * above >= (v_peak - v) * below or angle > _MAX_ANGLE or v >= v_peak
    v_end = v + f * above / below
    v_end = v_end if v_end > _LOW_MV else _LOW_MV
    pull = a * b * (v_end + offset)
    ddu_end = a * b * ((quadratic * v_end + linear) * v_end + current) - a * decay * pull
    u_end = (u + h * (_HALF * (du + pull) + h * _TWELFTH * (ddu - ddu_end))) * u_factor
    return v_end, _held(u_end, -_MAX_U, _MAX_U), crosses


@jit
def _fire(block: Record, i: int, h: np.float32) -> None:
    """Take channel `i` through a substep in which it meets its peak, reset by reset.

    A substep that turns w h too far is taken in halves, quarters, ...
    """
    parameters = block["parameters"]
    a, b, c, d = parameters[0][i], parameters[1][i], parameters[2][i], parameters[3][i]
    quadratic, linear, offset = parameters[4][i], parameters[5][i], parameters[7][i]
    decay, v_peak = parameters[8][i], parameters[9][i]
    current = block["derived"][1][i]
    v, u = block["variables"][0][i], block["variables"][1][i]
    left = h
    piece = h
    for _ in range(_MAX_PIECES):
        without_u, half_slope, du, ddu = _slopes(v, u, current, a, b, quadratic, linear, offset, decay)
        f = without_u - _mean_u(piece, u, half_slope, du, ddu)
        if piece * piece * (quadratic * f - half_slope * half_slope) > _MAX_ANGLE and v < v_peak:
            piece = piece * _HALF
            continue
        moved, recovered, crosses = _flow(
            piece, v, u, current, a, b, quadratic, linear, offset, decay, v_peak, _u_factor(piece, a, b, decay)
        )
        if crosses:
            t = _ZERO
            if v < v_peak:
                t = piece
                area = _ZERO
                # the average of u depends on the time, but little: a second round is enough
                for _round in range(2):
                    mean_u = _mean_u(t, u, half_slope, du, ddu)
                    t, area = _way_to_peak(v, v_peak, mean_u, current, quadratic, linear)
                    t = t if t < piece else piece
                e = a * decay
                u = (
                    u * (_ONE - e * t * _HALF)
                    + a * b * (area + offset * t)
                    - e * t * t * _TWELFTH * (du - a * b * (v_peak + offset))
                ) / (_ONE + e * t * (_HALF + e * t * _TWELFTH))
            v = c
            u = _held(u + d, -_MAX_U, _MAX_U)
            block["fired"][i] = _ONE
            left = left - t
        else:
            v = moved
            u = recovered
            left = left - piece
        if left <= _ZERO:
            break
        piece = left
    block["variables"][0][i] = v
    block["variables"][1][i] = u


@jit
def _way_to_peak(
    v: np.float32, v_peak: np.float32, u: np.float32, current: np.float32, quadratic: np.float32, linear: np.float32
) -> tuple[np.float32, np.float32]:
    """Time from v to its peak with u held, and the integral of v over that time: those of dv / f and v dv / f."""
    middle = _HALF * (v_peak + v)
    half = _HALF * (v_peak - v)
    v1, v3 = middle - _NODE * half, middle + _NODE * half
    f1 = (quadratic * v1 + linear) * v1 + current - u
    f2 = (quadratic * middle + linear) * middle + current - u
    f3 = (quadratic * v3 + linear) * v3 + current - u
    t1 = _OUTER / (f1 if f1 > _MIN_SLOPE else _MIN_SLOPE)
    t2 = _MIDDLE / (f2 if f2 > _MIN_SLOPE else _MIN_SLOPE)
    t3 = _OUTER / (f3 if f3 > _MIN_SLOPE else _MIN_SLOPE)
    width = v_peak - v
    return width * (t1 + t2 + t3), width * (t1 * v1 + t2 * middle + t3 * v3)
