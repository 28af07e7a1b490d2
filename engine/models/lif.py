"""Leaky integrate-and-fire with exact integration, an absolute refractory period and a floor.

Between spikes tau dv/dt = drive - v, v in mV above rest. For a drive held over a step h the solution is
v + (drive - v)(1 - exp(-h / tau)), exact for any h [1]_ but for rounding. Synaptic input is a charge: it moves v at the
end of the step by its weight, in full. The factor is kept as 1 - exp rather than exp: in float32 exp(-h / tau) lies
just below 1, where a short step would lose most of its digits.

**Rounding.** In float32 v stands still once a step would add less than half a unit in its last place: drive - v less
than 3e-8 to 6e-8 v tau / h. With tau = 20 ms and h = 0.001 ms that is 0.06 to 0.12 % of v, and a drive that lies above
the threshold by less never fires the neuron. Refractory times are sums of rounded steps, right to the tick up to about
10,000 ticks.

References
----------
.. [1] Rotter & Diesmann (1999), Biol. Cybern. 81, 381-402.
"""

from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import one_minus_exp
from neuromod.engine.layout_types import Record
from neuromod.engine.models.model import Model, Parameter, Variable


def _complaint(parameters: Mapping[str, float]) -> str:
    v_min, v_reset, v_threshold = (parameters[name] for name in ("v_min_mv", "v_reset_mv", "v_threshold_mv"))
    if v_min <= v_reset < v_threshold:
        return ""
    return f"expected v_min_mv <= v_reset_mv < v_threshold_mv, got {v_min:g}, {v_reset:g}, {v_threshold:g}"


LIF = Model(
    name="lif",
    number=1,
    title="leaky integrate-and-fire with refractory period",
    reference="Rotter & Diesmann (1999), Biol. Cybern. 81, 381-402",
    input_unit="mV",
    input_limit=1e9,
    gain=10.0,
    bias=12.0,
    input_per_mv=lambda parameters: 1.0,
    parameters=(
        Parameter("tau_mem_ms", 20.0, 0.1, 10_000.0, "membrane time constant"),
        Parameter("v_threshold_mv", 15.0, 0.001, 1_000.0, "firing threshold above rest"),
        Parameter("v_reset_mv", 0.0, -1_000.0, 1_000.0, "potential after a spike, above rest"),
        Parameter("v_min_mv", -20.0, -1_000.0, 0.0, "lowest potential, as set by the reversal of inhibition"),
        Parameter("refractory_ms", 2.0, 0.0, 1_000.0, "time after a spike in which the membrane stays at reset"),
    ),
    variables=(
        Variable("v_mv", "membrane potential above rest", above_rest=True),
        Variable("refractory_left_ms", "time for which the membrane still stays at reset"),
    ),
    start=lambda parameters: (0.0, 0.0),
    derived=("rise",),
    complaint=_complaint,
    presets={"quick": {"tau_mem_ms": 10.0}},
)

NUMBER = LIF.number
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
# a potential this small is rest; left alone it would decay into subnormal numbers, slow on many processors
_TINY_MV = np.float32(1e-30)


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Compute `rise` = 1 - exp(-step / tau) of every LIF channel, for steps of `step_ms` model time."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    tau_mem = block["parameters"][0]
    rise = block["derived"][0]
    for i in range(n_channels):
        if model[i] == NUMBER:
            rise[i] = np.float32(one_minus_exp(np.float64(step_ms) / np.float64(tau_mem[i])))


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every LIF channel by `step_ms` and write 1 or 0 into its `fired`.

    A period ends at the step nearest to its length, so that sums of rounded steps cannot make it a step longer.
    """
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters = block["parameters"]
    v_threshold = parameters[1]
    v_reset = parameters[2]
    v_min = parameters[3]
    refractory = parameters[4]
    v = block["variables"][0]
    left = block["variables"][1]
    rise = block["derived"][0]
    drive = block["drive"]
    kick = block["kick"]
    fired = block["fired"]
    half_step = step_ms * _HALF
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = v[i] + (drive[i] - v[i]) * rise[i] + kick[i]
        moved = moved if moved > v_min[i] else v_min[i]
        moved = moved if abs(moved) > _TINY_MV else _ZERO
        held = left[i] > half_step
        moved = v_reset[i] if held else moved
        fires = moved >= v_threshold[i] * threshold_gain
        rest = left[i] - step_ms
        rest = rest if rest > _ZERO else _ZERO
        moved = v_reset[i] if fires else moved
        rest = refractory[i] if fires else rest
        v[i] = moved if mine else v[i]
        left[i] = rest if mine else left[i]
        fired[i] = (_ONE if fires else _ZERO) if mine else fired[i]
