"""The squid giant axon of Hodgkin & Huxley [1]_: sodium, potassium and leak, v in mV above rest.

C dv/dt = drive - g_na m^3 h (v - e_na) - g_k n^4 (v - e_k) - g_leak (v - e_leak), and for each gate
dx/dt = phi (alpha (1 - x) - beta x) with the rates of [1]_ and phi = q10^((temperature - 6.3) / 10).

With v held, every gate relaxes exponentially; with the gates held, so does v. The two take turns, half a substep of the
gates at either end of a step: exponential Euler on a staggered grid, of second order and stable for any substep
[2]_ [3]_ [4]_. A substep is at most 0.05 ms, and shorter by sqrt(phi) where gates are quicker than at 6.3 C: that keeps
the error of the firing rate at 0.1 to 0.3 % from 6 to 26 C (measured); phi alone would take more than it needs, since
the membrane is not quicker. Spikes that arrive move v at the start of the step. v is held within -150 and 200 mV.
Cortisol divides the drive where it is positive, and charge that depolarises, by the threshold gain.

The start is v = 0 with the gates at their steady state there: the rest of the standard axon, to 0.001 mV.

References
----------
.. [1] Hodgkin & Huxley (1952), J. Physiol. 117, 500-544.
.. [2] Rush & Larsen (1978), IEEE Trans. Biomed. Eng. 25, 389-392.
.. [3] Hines (1984), Int. J. Biomed. Comput. 15, 69-76.
.. [4] Boergers & Nectow (2013), SIAM J. Sci. Comput. 35, B623-B643.
"""

import math

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import exp32
from neuromod.engine.layout_types import Record
from neuromod.engine.models.gates import INTERPRETED, linoid, rise32, substeps, temperature_factor
from neuromod.engine.models.model import Model, Parameter, Variable
from neuromod.engine.models.stress import held_down

SUBSTEP_MS = 0.05
"""Longest substep, where no gate is quicker than at 6.3 C."""

_START = (0.0, 0.0529325, 0.5961208, 0.3176769)

HODGKIN_HUXLEY = Model(
    name="hodgkin_huxley",
    number=5,
    title="squid giant axon",
    reference="Hodgkin & Huxley (1952), J. Physiol. 117, 500-544",
    input_unit="uA/cm2",
    input_limit=1e6,
    gain=8.0,
    bias=0.0,  # with 4, spikes from elsewhere keep a network going for ever that has once fired
    input_per_mv=lambda parameters: parameters["g_leak_ms_cm2"],
    parameters=(
        Parameter("capacitance_uf_cm2", 1.0, 0.1, 10.0, "membrane capacitance"),
        Parameter("g_na_ms_cm2", 120.0, 0.0, 1_000.0, "greatest sodium conductance"),
        Parameter("g_k_ms_cm2", 36.0, 0.0, 1_000.0, "greatest potassium conductance"),
        Parameter("g_leak_ms_cm2", 0.3, 0.001, 100.0, "leak conductance"),
        Parameter("e_na_mv", 115.0, -150.0, 200.0, "reversal potential of sodium above rest"),
        Parameter("e_k_mv", -12.0, -150.0, 200.0, "reversal potential of potassium above rest"),
        Parameter("e_leak_mv", 10.6, -150.0, 200.0, "reversal potential of the leak above rest"),
        Parameter("temperature_c", 6.3, 0.0, 30.0, "temperature, which scales the rates of the gates"),
        Parameter("q10", 3.0, 1.0, 4.0, "factor on these rates for 10 degrees more"),
        Parameter("v_spike_mv", 20.0, -100.0, 100.0, "potential above rest whose upward crossing is a spike"),
    ),
    variables=(
        Variable("v_mv", "membrane potential above rest", above_rest=True),
        Variable("m", "open part of the sodium activation gates"),
        Variable("h", "open part of the sodium inactivation gates"),
        Variable("n", "open part of the potassium gates"),
    ),
    start=lambda parameters: _START,
    derived=("n_substeps", "gate_step_ms", "membrane_step"),
)

NUMBER = HODGKIN_HUXLEY.number
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
# a potential this small is 0; left alone it would decay into subnormal numbers, slow on many processors
_TINY_MV = np.float32(1e-30)
# walls that no axon meets: between them every rate is finite and no power of a gate is a subnormal number
_LOWEST_MV, _HIGHEST_MV = np.float32(-150.0), np.float32(200.0)
_REFERENCE_C = np.float32(6.3)
_LIMIT_MS = np.float64(SUBSTEP_MS)
_PER_80, _PER_18, _PER_10 = np.float32(-1 / 80), np.float32(-1 / 18), np.float32(0.1)
_V_M, _V_N = np.float32(25.0), np.float32(10.0)
_EXP_1, _EXP_2_5, _EXP_3 = np.float32(math.exp(1.0)), np.float32(math.exp(2.5)), np.float32(math.exp(3.0))
_B_M, _A_H, _A_N, _B_N = np.float32(4.0), np.float32(0.07), np.float32(0.1), np.float32(0.125)


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Divide steps of `step_ms` into equal substeps, for each channel as many as it needs."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, derived = block["parameters"], block["derived"]
    capacitance, temperature, q10 = parameters[0], parameters[7], parameters[8]
    n_substeps, gate_step, membrane_step = derived[0], derived[1], derived[2]
    for i in range(n_channels):
        if model[i] == NUMBER:
            phi = temperature_factor(q10[i], temperature[i] - _REFERENCE_C)
            n = np.float32(substeps(step_ms, _LIMIT_MS, phi))
            n_substeps[i] = n
            gate_step[i] = step_ms / n * np.float32(phi)
            membrane_step[i] = step_ms / n / capacitance[i]


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every squid axon by `step_ms` and write 1 or 0 into its `fired`."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, variables, derived = block["parameters"], block["variables"], block["derived"]
    g_na, g_k, g_leak = parameters[1], parameters[2], parameters[3]
    e_na, e_k, e_leak = parameters[4], parameters[5], parameters[6]
    v_spike = parameters[9]
    v, m, h, n = variables[0], variables[1], variables[2], variables[3]
    n_substeps, gate_step, membrane_step = derived[0], derived[1], derived[2]
    drive, kick, fired = block["drive"], block["kick"], block["fired"]
    eased = _ONE / threshold_gain
    most = _ZERO
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = v[i] + held_down(kick[i], eased)
        moved = moved if moved > _LOWEST_MV else _LOWEST_MV
        moved = moved if moved < _HIGHEST_MV else _HIGHEST_MV
        fires = moved >= v_spike[i] and v[i] < v_spike[i]
        v[i] = moved if mine else v[i]
        fired[i] = (_ONE if fires else _ZERO) if mine else fired[i]
        most = max(most, n_substeps[i] if mine else _ZERO)
    for turn in range(int(most) + 1):
        k = np.float32(turn)
        for i in range(n_channels):
            if INTERPRETED and model[i] != NUMBER:
                continue
            # gates go half a substep first and last, the membrane between; then a channel waits for those with more
            ends = k == _ZERO or k == n_substeps[i]
            part = (_HALF if ends else _ONE) if k <= n_substeps[i] else _ZERO
            goes = _ONE if k < n_substeps[i] else _ZERO
            mine = model[i] == NUMBER
            before = v[i]
            e80 = exp32(before * _PER_80)
            e40 = e80 * e80
            e20 = e40 * e40
            e10 = e20 * e20
            opening = linoid((_V_M - before) * _PER_10, e10 * _EXP_2_5)
            rate = opening + _B_M * exp32(before * _PER_18)
            gate = gate_step[i] * part
            now_m = m[i] + (opening / rate - m[i]) * rise32(gate * rate)
            opening = _A_H * e20
            rate = opening + _ONE / (e10 * _EXP_3 + _ONE)
            now_h = h[i] + (opening / rate - h[i]) * rise32(gate * rate)
            opening = _A_N * linoid((_V_N - before) * _PER_10, e10 * _EXP_1)
            rate = opening + _B_N * e80
            now_n = n[i] + (opening / rate - n[i]) * rise32(gate * rate)
            sodium = g_na[i] * (now_m * now_m * now_m) * now_h
            potassium = g_k[i] * ((now_n * now_n) * (now_n * now_n))
            total = sodium + potassium + g_leak[i]
            current = sodium * e_na[i] + potassium * e_k[i] + g_leak[i] * e_leak[i]
            current = current + held_down(drive[i], eased)
            after = before + (current / total - before) * rise32(membrane_step[i] * goes * total)
            after = after if after > _LOWEST_MV else _LOWEST_MV
            after = after if after < _HIGHEST_MV else _HIGHEST_MV
            after = after if abs(after) > _TINY_MV else _ZERO
            fires = after >= v_spike[i] and before < v_spike[i]
            m[i] = now_m if mine else m[i]
            h[i] = now_h if mine else h[i]
            n[i] = now_n if mine else n[i]
            v[i] = after if mine else before
            fired[i] = _ONE if fires and mine else fired[i]
