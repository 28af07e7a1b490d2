"""Lapicque's membrane of 1907: a capacitor that leaks through a resistor, and fires at a threshold.

C dv/dt = I - v / R, v in mV above rest; at the threshold it fires and starts again from rest [1]_ [2]_. There is no
refractory period and no floor: that is what `lif` adds. Parameters are those of the circuit, so that rheobase and
chronaxie, which Lapicque measured, follow from them. For a current held over a step h the solution is
v + (R I - v)(1 - exp(-h / tau)) with tau = R C, exact for any h [3]_ but for rounding: in float32 v stands still once
R I - v is less than 3e-8 to 6e-8 v tau / h, which at tau = 20 ms and h = 0.001 ms is 0.06 to 0.12 % of v, and a current
above the rheobase by less never fires the membrane. Synaptic charge moves v at the end of the step.

A current of duration d fires a resting membrane if it reaches rheobase / (1 - exp(-d / tau)), the strength-duration
curve. Twice the rheobase is needed for d = tau ln 2, the chronaxie.

References
----------
.. [1] Lapicque (1907), J. Physiol. Pathol. Gen. 9, 620-635.
.. [2] Brunel & van Rossum (2007), Biol. Cybern. 97, 337-349: its translation, and what it did and did not contain.
.. [3] Rotter & Diesmann (1999), Biol. Cybern. 81, 381-402.
"""

import math
from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import one_minus_exp
from neuromod.engine.layout_types import Record
from neuromod.engine.models.model import Model, Parameter, Variable

LAPICQUE = Model(
    name="lapicque",
    number=2,
    title="Lapicque's leaky membrane, in the terms of its circuit",
    reference="Lapicque (1907), J. Physiol. Pathol. Gen. 9, 620-635",
    input_unit="nA",
    input_limit=1e6,
    gain=0.1,
    bias=0.12,
    input_per_mv=lambda parameters: 1.0 / parameters["resistance_mohm"],
    parameters=(
        Parameter("capacitance_pf", 200.0, 1.0, 100_000.0, "capacitance of the membrane"),
        Parameter("resistance_mohm", 100.0, 0.1, 10_000.0, "resistance of the membrane; times capacitance: tau"),
        Parameter("v_threshold_mv", 15.0, 0.001, 1_000.0, "firing threshold above rest"),
    ),
    variables=(Variable("v_mv", "membrane potential above rest", above_rest=True),),
    start=lambda parameters: (0.0,),
    derived=("rise",),
)

NUMBER = LAPICQUE.number
_MS_PER_MOHM_PF = 1e-3
_SHARE = np.float64(_MS_PER_MOHM_PF)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
# a potential this small is rest; left alone it would decay into subnormal numbers, slow on many processors
_TINY_MV = np.float32(1e-30)


def tau_ms(parameters: Mapping[str, float]) -> float:
    """Time constant of the membrane, R C, in ms."""
    return parameters["resistance_mohm"] * parameters["capacitance_pf"] * _MS_PER_MOHM_PF


def rheobase_na(parameters: Mapping[str, float]) -> float:
    """Least current, in nA, that ever fires the membrane, however long it lasts: threshold / R."""
    return parameters["v_threshold_mv"] / parameters["resistance_mohm"]


def chronaxie_ms(parameters: Mapping[str, float]) -> float:
    """Duration, in ms, for which twice the rheobase just fires the membrane: tau ln 2."""
    return tau_ms(parameters) * math.log(2.0)


def threshold_current_na(parameters: Mapping[str, float], duration_ms: float) -> float:
    """Least current, in nA, that fires a resting membrane within `duration_ms` > 0: the strength-duration curve."""
    return rheobase_na(parameters) / -math.expm1(-duration_ms / tau_ms(parameters))


def rate_hz(parameters: Mapping[str, float], current_na: float) -> float:
    """Firing rate under a constant current, in spikes per second; 0 up to the rheobase."""
    rheobase = rheobase_na(parameters)
    if current_na <= rheobase:
        return 0.0
    return 1000.0 / (tau_ms(parameters) * -math.log1p(-rheobase / current_na))


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Compute `rise` = 1 - exp(-step / tau) of every Lapicque channel, for steps of `step_ms` model time."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    capacitance = block["parameters"][0]
    resistance = block["parameters"][1]
    rise = block["derived"][0]
    for i in range(n_channels):
        if model[i] == NUMBER:
            tau = np.float64(capacitance[i]) * np.float64(resistance[i]) * _SHARE
            rise[i] = np.float32(one_minus_exp(np.float64(step_ms) / tau))


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every Lapicque channel by `step_ms` and write 1 or 0 into its `fired`."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    resistance = block["parameters"][1]
    v_threshold = block["parameters"][2]
    v = block["variables"][0]
    rise = block["derived"][0]
    drive = block["drive"]
    kick = block["kick"]
    fired = block["fired"]
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = v[i] + (drive[i] * resistance[i] - v[i]) * rise[i] + kick[i]
        moved = moved if abs(moved) > _TINY_MV else _ZERO
        fires = moved >= v_threshold[i] * threshold_gain
        moved = _ZERO if fires else moved
        v[i] = moved if mine else v[i]
        fired[i] = (_ONE if fires else _ZERO) if mine else fired[i]
