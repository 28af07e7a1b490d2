"""Cortical neurons of Pospischil et al. (2008) [1]_: sodium, potassium, a slow potassium and a calcium current.

C dv/dt = drive - g_leak (v - e_leak) - g_na m^3 h (v - e_na) - (g_k n^4 + g_m p) (v - e_k) - g_ca q^2 r (v - e_ca)

with v absolute. The spikes are those of Traub & Miles [2]_, moved along v by `v_t_mv`; p is the M-current, which adapts
the rate, with time constants up to `tau_max_ms` [3]_; q and r are the L-type calcium channel, which makes bursts [4]_.
Rates are those at 36 C, times q10^((temperature - 36) / 10).

Presets: RS (regular spiking) is the fit of [1]_ to a cell of the ferret's visual cortex; FS (fast spiking) and IB
(intrinsically bursting: one burst, then single spikes) are the cells that its authors published as programs (ModelDB
123623), which take e_k = -100 mV. Currents there are absolute: 0.15 nA onto IB's 29,000 um2 are 0.52 uA/cm2. The
low-threshold calcium current of the paper's LTS cell is not part of this model.

Integration is that of `hodgkin_huxley`, in substeps of at most 0.05 ms at 36 C (rates are 0.2 % off at most, measured).
v is held within -120 and 150 mV. Cortisol divides the drive where it is positive, and charge that depolarises, by the
threshold gain. The start is the lowest potential at which no current flows, with all gates at their
steady state: rest.

References
----------
.. [1] Pospischil, Toledo-Rodriguez, Monier, Piwkowska, Bal, Fregnac, Markram & Destexhe (2008), Biol. Cybern. 99,
   427-441.
.. [2] Traub & Miles (1991), Neuronal Networks of the Hippocampus, Cambridge University Press.
.. [3] Yamada, Koch & Adams (1989), in Methods in Neuronal Modeling, MIT Press.
.. [4] Reuveni, Friedman, Amitai & Gutnick (1993), J. Neurosci. 13, 4609-4621.
"""

import math
from collections.abc import Mapping

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import exp32
from neuromod.engine.layout_types import Record
from neuromod.engine.models.gates import INTERPRETED, linoid, rise32, substeps, temperature_factor
from neuromod.engine.models.model import Model, Parameter, Variable
from neuromod.engine.models.stress import held_down

SUBSTEP_MS = 0.05
"""Longest substep, where no gate is quicker than at 36 C."""

LOWEST_MV, HIGHEST_MV = -120.0, 150.0
"""Walls of v: between them every rate is finite and no power of a gate is a subnormal number."""


def steady_gates(v: float, v_t: float) -> tuple[float, float, float, float, float, float]:
    """m, h, n, p, q and r that a membrane held at `v` settles at, for a Traub-Miles potential `v_t` (both mV)."""
    u = v - v_t
    opening_and_closing = (
        (1.28 * _linoid((13 - u) / 4), 1.4 * _linoid((u - 40) / 5)),
        (0.128 * math.exp((17 - u) / 18), 4 / (1 + math.exp((40 - u) / 5))),
        (0.16 * _linoid((15 - u) / 5), 0.5 * math.exp((10 - u) / 40)),
        (1.0, math.exp(-(v + 35) / 10)),
        (0.209 * _linoid((-27 - v) / 3.8), 0.94 * math.exp((-75 - v) / 17)),
        (0.000457 * math.exp((-13 - v) / 50), 0.0065 / (1 + math.exp((-15 - v) / 28))),
    )
    m, h, n, p, q, r = (a / (a + b) for a, b in opening_and_closing)
    return m, h, n, p, q, r


def steady_current(v: float, parameters: Mapping[str, float]) -> float:
    """Current out of a membrane held at `v` (mV) once its gates have settled, uA/cm2."""
    m, h, n, p, q, r = steady_gates(v, parameters["v_t_mv"])
    potassium = parameters["g_k_ms_cm2"] * n**4 + parameters["g_m_ms_cm2"] * p
    return (
        parameters["g_leak_ms_cm2"] * (v - parameters["e_leak_mv"])
        + parameters["g_na_ms_cm2"] * m**3 * h * (v - parameters["e_na_mv"])
        + potassium * (v - parameters["e_k_mv"])
        + parameters["g_ca_ms_cm2"] * q**2 * r * (v - parameters["e_ca_mv"])
    )


def _start(parameters: Mapping[str, float]) -> tuple[float, ...]:
    """Rest. No reversal potential lies beyond the walls, so the current changes its sign between them."""
    high = next(
        (v for v in range(int(LOWEST_MV), int(HIGHEST_MV)) if steady_current(v, parameters) > 0), int(HIGHEST_MV)
    )
    low, v = high - 1.0, float(high)
    for _ in range(50):
        middle = (low + v) / 2
        low, v = (low, middle) if steady_current(middle, parameters) > 0 else (middle, v)
    return v, *steady_gates(v, parameters["v_t_mv"])


def _linoid(x: float) -> float:
    return x / math.expm1(x) if x else 1.0


POSPISCHIL = Model(
    name="pospischil",
    number=6,
    title="cortical neuron: regular spiking, fast spiking or bursting",
    reference="Pospischil et al. (2008), Biol. Cybern. 99, 427-441",
    input_unit="uA/cm2",
    input_limit=1e6,
    gain=1.0,
    bias=0.0,
    input_per_mv=lambda parameters: parameters["g_leak_ms_cm2"],
    parameters=(
        Parameter("capacitance_uf_cm2", 1.0, 0.1, 10.0, "membrane capacitance"),
        Parameter("g_na_ms_cm2", 56.0, 0.0, 1_000.0, "greatest sodium conductance"),
        Parameter("g_k_ms_cm2", 6.0, 0.0, 1_000.0, "greatest conductance of the delayed-rectifier potassium channels"),
        Parameter("g_leak_ms_cm2", 0.0205, 0.001, 100.0, "leak conductance"),
        Parameter("g_m_ms_cm2", 0.075, 0.0, 100.0, "greatest conductance of the M-current, which adapts the rate"),
        Parameter("g_ca_ms_cm2", 0.0, 0.0, 100.0, "greatest conductance of the L-type calcium channels"),
        Parameter("e_na_mv", 50.0, LOWEST_MV, HIGHEST_MV, "reversal potential of sodium"),
        Parameter("e_k_mv", -90.0, LOWEST_MV, HIGHEST_MV, "reversal potential of potassium"),
        Parameter("e_leak_mv", -70.3, LOWEST_MV, HIGHEST_MV, "reversal potential of the leak"),
        Parameter("e_ca_mv", 120.0, LOWEST_MV, HIGHEST_MV, "reversal potential of calcium"),
        Parameter("v_t_mv", -56.2, -80.0, -35.0, "Traub-Miles potential, which moves the spike threshold"),
        Parameter("tau_max_ms", 608.0, 10.0, 10_000.0, "scale of the time constant of the M-current"),
        Parameter("temperature_c", 36.0, 0.0, 45.0, "temperature, which scales the rates of the gates"),
        Parameter("q10", 3.0, 1.0, 4.0, "factor on these rates for 10 degrees more"),
        Parameter("v_spike_mv", 0.0, -100.0, 100.0, "potential whose upward crossing is a spike"),
    ),
    variables=(
        Variable("v_mv", "membrane potential"),
        Variable("m", "open part of the sodium activation gates"),
        Variable("h", "open part of the sodium inactivation gates"),
        Variable("n", "open part of the delayed-rectifier gates"),
        Variable("p", "open part of the M-current's gates"),
        Variable("q", "open part of the calcium activation gates; as it began where g_ca is 0"),
        Variable("r", "open part of the calcium inactivation gates; as it began where g_ca is 0"),
    ),
    start=_start,
    derived=("n_substeps", "gate_step_ms", "membrane_step", "m_shift", "g_ca_open"),
    presets={
        "RS": {},
        "FS": {
            "g_na_ms_cm2": 50.0,
            "g_k_ms_cm2": 10.0,
            "g_leak_ms_cm2": 0.15,
            "g_m_ms_cm2": 0.0,
            "e_k_mv": -100.0,
            "e_leak_mv": -70.0,
            "v_t_mv": -55.0,
        },
        "IB": {
            "g_na_ms_cm2": 50.0,
            "g_k_ms_cm2": 5.0,
            "g_leak_ms_cm2": 0.01,
            "g_m_ms_cm2": 0.03,
            "g_ca_ms_cm2": 0.17,
            "e_k_mv": -100.0,
            "e_leak_mv": -85.0,
            "v_t_mv": -55.0,
            "tau_max_ms": 1000.0,
        },
    },
    inputs={"FS": (1.0, 2.0)},  # its rheobase lies between 2.5 and 3
)

NUMBER = POSPISCHIL.number
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
# a potential this small is 0; left alone it would decay into subnormal numbers, slow on many processors
_TINY_MV = np.float32(1e-30)
_LOWEST, _HIGHEST = np.float32(LOWEST_MV), np.float32(HIGHEST_MV)
_REFERENCE_C = np.float32(36.0)
_LIMIT_MS = np.float64(SUBSTEP_MS)
_PER_40, _PER_18, _PER_5, _PER_4 = np.float32(-1 / 40), np.float32(-1 / 18), np.float32(1 / 5), np.float32(1 / 4)
_U_M, _U_H, _U_N, _U_40 = np.float32(13.0), np.float32(17.0), np.float32(15.0), np.float32(40.0)
_EXP_M, _EXP_8, _EXP_N = np.float32(math.exp(13 / 4)), np.float32(math.exp(8.0)), np.float32(math.exp(3.0))
_A_M, _B_M, _A_H, _B_H = np.float32(1.28), np.float32(1.4), np.float32(0.128), np.float32(4.0)
_A_N, _B_N = np.float32(0.16), np.float32(0.5 * math.exp(10 / 40))
_V_P, _PER_20, _P_UP = np.float32(35.0), np.float32(-1 / 20), np.float32(3.3)
_V_Q, _PER_3_8, _A_Q = np.float32(-27.0), np.float32(1 / 3.8), np.float32(0.209)
_V_CLOSING, _PER_17, _B_Q = np.float32(-75.0), np.float32(1 / 17), np.float32(0.94)
_V_A, _PER_50, _A_R = np.float32(-13.0), np.float32(1 / 50), np.float32(0.000457)
_V_B, _PER_28, _B_R = np.float32(-15.0), np.float32(1 / 28), np.float32(0.0065)


@jit
def prepare(block: Record, step_ms: np.float32) -> None:
    """Divide steps of `step_ms` into equal substeps, for each channel as many as it needs."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, derived = block["parameters"], block["derived"]
    capacitance, v_t, temperature, q10 = parameters[0], parameters[10], parameters[12], parameters[13]
    n_substeps, gate_step, membrane_step, m_shift, g_ca_open = (
        derived[0],
        derived[1],
        derived[2],
        derived[3],
        derived[4],
    )
    for i in range(n_channels):
        if model[i] == NUMBER:
            phi = temperature_factor(q10[i], temperature[i] - _REFERENCE_C)
            n = np.float32(substeps(step_ms, _LIMIT_MS, phi))
            n_substeps[i] = n
            gate_step[i] = step_ms / n * np.float32(phi)
            membrane_step[i] = step_ms / n / capacitance[i]
            m_shift[i] = exp32((v_t[i] + _V_P) * _PER_20)
            g_ca_open[i] = _ZERO


@jit
def advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Advance every neuron of this model by `step_ms` and write 1 or 0 into its `fired`."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    parameters, variables, derived = block["parameters"], block["variables"], block["derived"]
    g_na, g_k, g_leak, g_m, g_ca = parameters[1], parameters[2], parameters[3], parameters[4], parameters[5]
    e_na, e_k, e_leak, e_ca = parameters[6], parameters[7], parameters[8], parameters[9]
    v_t, tau_max, v_spike = parameters[10], parameters[11], parameters[14]
    v, m, h, n, p = variables[0], variables[1], variables[2], variables[3], variables[4]
    n_substeps, gate_step, membrane_step = derived[0], derived[1], derived[2]
    m_shift, g_ca_open = derived[3], derived[4]
    drive, kick, fired = block["drive"], block["kick"], block["fired"]
    eased = _ONE / threshold_gain
    most, most_calcium = _ZERO, _ZERO
    for i in range(n_channels):
        mine = model[i] == NUMBER
        moved = v[i] + held_down(kick[i], eased)
        moved = moved if moved > _LOWEST else _LOWEST
        moved = moved if moved < _HIGHEST else _HIGHEST
        fires = moved >= v_spike[i] and v[i] < v_spike[i]
        v[i] = moved if mine else v[i]
        fired[i] = (_ONE if fires else _ZERO) if mine else fired[i]
        most = max(most, n_substeps[i] if mine else _ZERO)
        most_calcium = max(most_calcium, g_ca[i] if mine else _ZERO)
    for turn in range(int(most) + 1):
        k = np.float32(turn)
        if most_calcium > _ZERO:
            _advance_calcium(block, k)
        for i in range(n_channels):
            if INTERPRETED and model[i] != NUMBER:
                continue
            # gates go half a substep first and last, the membrane between; then a channel waits for those with more
            ends = k == _ZERO or k == n_substeps[i]
            part = (_HALF if ends else _ONE) if k <= n_substeps[i] else _ZERO
            goes = _ONE if k < n_substeps[i] else _ZERO
            mine = model[i] == NUMBER
            before = v[i]
            gate = gate_step[i] * part
            u = before - v_t[i]
            e40 = exp32(u * _PER_40)
            e20 = e40 * e40
            e10 = e20 * e20
            e5 = e10 * e10
            shut = e5 * _EXP_8
            opening = _A_M * linoid((_U_M - u) * _PER_4, e5 * e20 * _EXP_M)
            # linoid(-x) = linoid(x) exp(x): its exponential is at hand, and small rates keep their digits
            rate = opening + _B_M * (linoid((_U_40 - u) * _PER_5, shut) * shut)
            now_m = m[i] + (opening / rate - m[i]) * rise32(gate * rate)
            opening = _A_H * exp32((u - _U_H) * _PER_18)
            rate = opening + _B_H / (_ONE + shut)
            now_h = h[i] + (opening / rate - h[i]) * rise32(gate * rate)
            opening = _A_N * linoid((_U_N - u) * _PER_5, e5 * _EXP_N)
            rate = opening + _B_N * e40
            now_n = n[i] + (opening / rate - n[i]) * rise32(gate * rate)
            z = e20 * m_shift[i]
            rate = (_P_UP + z * z) / (z * tau_max[i])
            now_p = p[i] + (_ONE / (_ONE + z * z) - p[i]) * rise32(gate * rate)
            sodium = g_na[i] * (now_m * now_m * now_m) * now_h
            potassium = g_k[i] * ((now_n * now_n) * (now_n * now_n)) + g_m[i] * now_p
            total = sodium + potassium + g_ca_open[i] + g_leak[i]
            current = sodium * e_na[i] + potassium * e_k[i] + g_ca_open[i] * e_ca[i] + g_leak[i] * e_leak[i]
            current = current + held_down(drive[i], eased)
            after = before + (current / total - before) * rise32(membrane_step[i] * goes * total)
            after = after if after > _LOWEST else _LOWEST
            after = after if after < _HIGHEST else _HIGHEST
            after = after if abs(after) > _TINY_MV else _ZERO
            fires = after >= v_spike[i] and before < v_spike[i]
            m[i] = now_m if mine else m[i]
            h[i] = now_h if mine else h[i]
            n[i] = now_n if mine else n[i]
            p[i] = now_p if mine else p[i]
            v[i] = after if mine else before
            fired[i] = _ONE if fires and mine else fired[i]


@jit
def _advance_calcium(block: Record, k: np.float32) -> None:
    """Let the calcium gates go their part of substep k; apart, since most neurons have none."""
    n_channels = block["n_channels"] & -16
    model = block["model"]
    g_ca = block["parameters"][5]
    variables, derived = block["variables"], block["derived"]
    v, q, r = variables[0], variables[5], variables[6]
    n_substeps, gate_step, g_ca_open = derived[0], derived[1], derived[4]
    for i in range(n_channels):
        if INTERPRETED and model[i] != NUMBER:
            continue
        ends = k == _ZERO or k == n_substeps[i]
        part = (_HALF if ends else _ONE) if k <= n_substeps[i] else _ZERO
        mine = model[i] == NUMBER and g_ca[i] > _ZERO
        gate = gate_step[i] * part
        x = (_V_Q - v[i]) * _PER_3_8
        opening = _A_Q * linoid(x, exp32(x))
        rate = opening + _B_Q * exp32((_V_CLOSING - v[i]) * _PER_17)
        now_q = q[i] + (opening / rate - q[i]) * rise32(gate * rate)
        opening = _A_R * exp32((_V_A - v[i]) * _PER_50)
        rate = opening + _B_R / (_ONE + exp32((_V_B - v[i]) * _PER_28))
        now_r = r[i] + (opening / rate - r[i]) * rise32(gate * rate)
        q[i] = now_q if mine else q[i]
        r[i] = now_r if mine else r[i]
        g_ca_open[i] = g_ca[i] * (now_q * now_q) * now_r if mine else g_ca_open[i]
