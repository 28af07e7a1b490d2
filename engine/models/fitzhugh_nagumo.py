"""FitzHugh-Nagumo: the spike as a loop in a phase plane of two dimensions.

v' = v - v^3 / 3 - w + I and w' = epsilon (v + a - b w), with nothing in units [1]_ [2]_. It keeps of a nerve membrane
what is its geometry: a fast v with two outer branches, rest and spike, and a slow w that moves it from one to the
other. The defaults are those of FitzHugh's later review [3]_, for which it rests at v = -1.199, w = -0.624, fires
repetitively from I = 0.32 to 0.33 on, and is blocked above I = 1.42. `phase_plane` has its nullclines and regimes.

A classical Runge-Kutta scheme takes substeps of at most 0.25 time units. Charge of arriving spikes enters v at the
start of the step, at `v_unit_mv` mV a unit. The default of 25 mV makes a spike, from -2 to 2, 100 mV high; a resting
neuron then fires from 13.5 mV on, much as the lif neuron with its threshold of 15. A drive that sets in fires it once
from 0.15 on; so does release from inhibition, since recovery has fallen meanwhile (anodal break excitation).

There is no threshold in the model: what is counted is v rising through `v_threshold`. The default, 0, lies between
what fails to become a spike (below -0.6) and the fixed points at which the neuron is blocked (above 0.967). At 1, which
looks as natural, the ringing about such a fixed point would be counted: twelve spikes at I = 1.43 instead of one.
Cortisol, with no threshold to raise, divides the drive where it is positive, and charge that depolarises, which
multiplies the rheobase and the least charge that makes a resting neuron fire.

References
----------
.. [1] FitzHugh (1961), Biophys. J. 1, 445-466. Preset `fitzhugh_1961`: c = 3 there is epsilon = 1 / 9 here.
.. [2] Nagumo, Arimoto & Yoshizawa (1962), Proc. IRE 50, 2061-2070.
.. [3] FitzHugh (1969), in Schwan (ed.), Biological Engineering, McGraw-Hill, 1-85.
"""

import math
from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.layout_types import Record
from neuromod.engine.models.model import Model, Parameter, Variable
from neuromod.engine.models.phase_plane import fixed_points
from neuromod.engine.models.stress import held_down


def _input_per_mv(parameters: Mapping[str, float]) -> float:
    """Slope of the current that holds v, at rest, per mV; at least 1 a unit of v.

    The equations have no leak. Where rest lies on the middle of the cubic the slope can be 0, while inhibition, which
    takes v from there to the limb, meets one of 1 and more; 1, the coefficient of v itself, is what they count by.
    """
    v = _start(parameters)[0]
    return max(v * v - 1.0 + 1.0 / parameters["b"], 1.0) / parameters["v_unit_mv"]


def _start(parameters: Mapping[str, float]) -> tuple[float, float]:
    """The fixed point without drive; of several the lowest."""
    v, w = fixed_points(parameters, 0.0)[0].tolist()
    return v, w


FITZHUGH_NAGUMO = Model(
    name="fitzhugh_nagumo",
    number=4,
    title="excitable or oscillatory phase plane of FitzHugh and Nagumo",
    reference="FitzHugh (1961), Biophys. J. 1, 445-466; Nagumo et al. (1962), Proc. IRE 50, 2061-2070",
    input_unit="1",
    input_limit=10.0,
    gain=0.15,
    bias=0.1,  # from 0.15 on, a drive that begins with the run would fire once by its onset
    input_per_mv=_input_per_mv,
    parameters=(
        Parameter("a", 0.7, -2.0, 2.0, "distance of rest from the knee of the cubic: excitability"),
        Parameter("b", 0.8, 0.05, 5.0, "decay of recovery; beyond 1 there can be three fixed points"),
        Parameter("epsilon", 0.08, 0.001, 1.0, "speed of recovery against that of the membrane"),
        Parameter("time_unit_ms", 1.0, 0.1, 100.0, "model time that one unit of the equations' time takes"),
        Parameter("v_unit_mv", 25.0, 1.0, 1_000.0, "charge, in mV, that moves v by 1"),
        Parameter("v_threshold", 0.0, -1.0, 1.5, "v whose upward crossing is a spike"),
    ),
    variables=(Variable("v", "membrane potential, no unit"), Variable("w", "recovery, no unit")),
    start=_start,
    derived=("substep", "n_substeps"),
    presets={"fitzhugh_1961": {"epsilon": 1.0 / 9.0}},
)

NUMBER = FITZHUGH_NAGUMO.number
_MAX_SUBSTEP = np.float32(0.25)
_NO_SUBSTEP = np.int32(0)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_HALF, _THIRD, _SIXTH = np.float32(0.5), np.float32(1.0 / 3.0), np.float32(1.0 / 6.0)
# Bounds of the variables. No drive within its limit takes v beyond 3.5, and from 4 a substep still falls back inside;
# further out the cubic would throw it from side to side, and soon to infinity.
_V_BOUND = np.float32(4.0)
_W_BOUND = np.float32(100.0)
_TINY = np.float32(1e-12)  # this near 0 is 0: the cube of less would be a subnormal number, slow on many processors


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Cut steps of `step_ms` model time into substeps, for each channel as many as it needs and no more."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    time_unit = block["parameters"][3]
    substep = block["derived"][0]
    n_substeps = block["derived"][1]
    for i in range(n_channels):
        if model[i] == NUMBER:
            step = step_ms / time_unit[i]
            n_substeps[i] = np.float32(math.ceil(step / _MAX_SUBSTEP))
            substep[i] = step / n_substeps[i]


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every FitzHugh-Nagumo channel by the step that `prepare` cut, and write 1 or 0 into its `fired`."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters = block["parameters"]
    a, b, epsilon = parameters[0], parameters[1], parameters[2]
    v_unit = parameters[4]
    v_threshold = parameters[5]
    v = block["variables"][0]
    w = block["variables"][1]
    substep = block["derived"][0]
    n_substeps = block["derived"][1]
    drive, kick, fired = block["drive"], block["kick"], block["fired"]
    eased = _ONE / threshold_gain
    most = _NO_SUBSTEP
    for i in range(n_channels):
        needed = np.int32(n_substeps[i]) if model[i] == NUMBER else _NO_SUBSTEP
        most = needed if needed > most else most
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = _held(v[i] + held_down(kick[i], eased) / (v_unit[i] if mine else _ONE), _V_BOUND)
        fires = (v[i] < v_threshold[i]) & (moved >= v_threshold[i])
        v[i] = moved if mine else v[i]
        fired[i] = (_ONE if fires else _ZERO) if mine else fired[i]
    for k in range(most):
        done = np.float32(k)
        for i in range(n_channels):
            mine = (model[i] == NUMBER) & (done < n_substeps[i])
            current = held_down(drive[i], eased)
            # what other models keep in these rows would overflow in the cube: harmless, but numpy warns, uncompiled
            h = substep[i] if mine else _ZERO
            half = h * _HALF
            v0, w0 = v[i] if mine else _ZERO, w[i]
            dv1, dw1 = _slope_v(v0, w0, current), epsilon[i] * (v0 + a[i] - b[i] * w0)
            v1, w1 = v0 + half * dv1, w0 + half * dw1
            dv2, dw2 = _slope_v(v1, w1, current), epsilon[i] * (v1 + a[i] - b[i] * w1)
            v2, w2 = v0 + half * dv2, w0 + half * dw2
            dv3, dw3 = _slope_v(v2, w2, current), epsilon[i] * (v2 + a[i] - b[i] * w2)
            v3, w3 = v0 + h * dv3, w0 + h * dw3
            dv4, dw4 = _slope_v(v3, w3, current), epsilon[i] * (v3 + a[i] - b[i] * w3)
            sixth = h * _SIXTH
            moved = _held(v0 + sixth * (dv1 + _TWO * (dv2 + dv3) + dv4), _V_BOUND)
            recovered = _held(w0 + sixth * (dw1 + _TWO * (dw2 + dw3) + dw4), _W_BOUND)
            crosses = (v0 < v_threshold[i]) & (moved >= v_threshold[i])
            v[i] = moved if mine else v[i]
            w[i] = recovered if mine else w0
            fired[i] = _ONE if mine & crosses else fired[i]


@jit
def _slope_v(v: np.float32, w: np.float32, current: np.float32) -> np.float32:
    return (v + (current - w)) - (v * v) * (v * _THIRD)  # the shortest chain of operations that wait for v


@jit
def _held(x: np.float32, bound: np.float32) -> np.float32:
    """`x` within its bounds, and 0 where it is nearly that."""
    x = x if x < bound else bound
    x = x if x > -bound else -bound
    return x if abs(x) > _TINY else _ZERO
