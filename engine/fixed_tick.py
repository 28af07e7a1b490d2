"""The tick of the fixed-point network: integers alone, the same bits as the hardware description.

`FIXED_POINT.md` is the specification that this kernel and `engine/hdl/neuromod_core.v` both follow, step by step; the
numbers and their formats are those of `fixed_registers.REGISTERS`.
"""

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit
from neuromod.engine.fixed_registers import GUARD_BITS, RULE_NEAREST, RULE_REWARD
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_SENSORY
from neuromod.engine.layout_types import Record, State

_ZERO, _ONE = np.int64(0), np.int64(1)
_SENSORY_BITS = np.int64((1 << N_SENSORY) - 1)
_TOP_S16, _TOP_S24, _TOP_S32 = np.int64(2**15 - 1), np.int64(2**23 - 1), np.int64(2**31 - 1)
_TOP_U16, _TOP_U24 = np.int64(2**16 - 1), np.int64(2**24 - 1)
_ALL_BITS_U32 = np.int64(2**32 - 1)
_UNITY_TRACE = np.int64(1 << 16)


@jit
def fixed_tick(state: State, stimuli: NDArray[np.int16]) -> int:
    """Advance the fixed-point network by one tick.

    Parameters
    ----------
    state : State
        One record of `FIXED_BLOCK`, every number within its register's range. Changed in place.
    stimuli : ndarray of int16, shape (16,)
        Q8.8.

    Returns
    -------
    int
        The spikes: bit i is channel i.
    """
    block = state[0]
    before = block["spikes"]
    coincidence = _detect(block, before)
    inhibition = _inhibit(block, before)
    spikes = _integrate(block, stimuli, before, inhibition) | coincidence << COINCIDENCE
    if block["rule"] & RULE_REWARD:
        _learn(block, spikes)
    block["spikes"] = spikes
    block["tick"] = block["tick"] + _ONE & _ALL_BITS_U32
    return int(spikes)


@jit
def fixed_run(
    state: State, stimuli: NDArray[np.int16], modulation: NDArray[np.int64], spikes: NDArray[np.uint16]
) -> None:
    """Advance by one tick per row of `stimuli`.

    Parameters
    ----------
    state : State
        As for `fixed_tick`.
    stimuli : ndarray of int16, shape (n, 16)
        Q8.8.
    modulation : ndarray of int64, shape (0, 5) or (n, 5)
        Input gain, recurrent gain, threshold gain, inhibition and learning factor, set before each tick; without rows,
        the network's own stay.
    spikes : ndarray of uint16, shape (n,)
        Overwritten.
    """
    for k in range(stimuli.shape[0]):
        if modulation.shape[0] > 0:
            set_modulation(state, modulation[k])
        spikes[k] = fixed_tick(state, stimuli[k])


@jit
def set_modulation(state: State, words: NDArray[np.int64]) -> None:
    """Set the five numbers of modulation, in the order of their addresses, each within its register's range."""
    block = state[0]
    block["input_gain"] = words[0]
    block["recurrent_gain"] = words[1]
    block["threshold_gain"] = words[2]
    block["inhibition"] = words[3]
    block["learning_factor"] = words[4]


@jit
def count_saturated(
    state: State, stimuli: NDArray[np.int16], modulation: NDArray[np.int64], channels: NDArray[np.int64]
) -> int:
    """Count the ticks, about to be run, whose drive is not what wider registers would make of it.

    Counted where stimulus or drive is held to its range and the drive comes out otherwise for it: there the network
    parts from floating point, whose drive has no end. What Q8.8 did not hold of a stimulus is not seen here.

    Inhibition is left out, since it needs the spikes of these very ticks. It only lowers a drive: a tick is counted at
    which it would have brought the drive back below 128 mV, and one is not at which it alone pushes the drive below
    -128 mV, where the membrane falls a little more slowly to its floor. What is counted follows from parameters and
    inputs alone, which is what can be set otherwise.

    Parameters
    ----------
    state : State
        As for `fixed_tick`; stays as it is.
    stimuli, modulation : ndarray
        As for `fixed_run`.
    channels : ndarray of int64, shape (16,)
        Rises by the ticks of each channel; never by any of the detector, which has no drive.

    Returns
    -------
    int
        Ticks with at least one such channel.
    """
    block = state[0]
    gain, bias = block["gain"], block["bias"]
    ticks = 0
    for k in range(stimuli.shape[0]):
        input_gain = modulation[k, 0] if modulation.shape[0] > 0 else block["input_gain"]
        is_held = False
        for i in range(stimuli.shape[1]):
            if i == COINCIDENCE:
                continue
            stimulus = _rounded(np.int64(stimuli[k, i]) * input_gain, 8)
            drive = _held(_rounded(_held(stimulus, _TOP_S24) * gain[i], 8) + (bias[i] << 8), _TOP_S24)
            if drive != _rounded(stimulus * gain[i], 8) + (bias[i] << 8):
                channels[i] += _ONE
                is_held = True
        ticks += 1 if is_held else 0
    return ticks


@jit
def _held(value: np.int64, top: np.int64) -> np.int64:
    """Saturate to the signed range of which `top` is the greatest."""
    value = value if value < top else top
    return value if value > -top - _ONE else -top - _ONE


@jit
def _rounded(value: np.int64, bits: int) -> np.int64:
    """Drop the lowest bits, rounding half up."""
    return (value + (_ONE << (bits - 1))) >> bits


@jit
def _fallen(value: np.int64, fall: np.int64) -> np.int64:
    """What is left of a trace after its fall, rounded towards zero, which it so reaches."""
    product = value * fall
    return value - ((product + (_TOP_U24 if value > _ZERO else _ZERO)) >> 24)


@jit
def _detect(block: Record, before: np.int64) -> int:
    """1 where a sensory spike of the last tick completes a coincidence and the detector is not refractory."""
    since = block["since_spike"]
    window = block["window_ticks"]
    distinct = _ZERO
    for i in range(N_SENSORY):
        distinct += _ONE if since[i] <= window else _ZERO
    left = block["coincidence_left"]
    fires = before & _SENSORY_BITS != 0 and distinct >= block["min_channels"] and left == 0
    left = block["coincidence_refractory"] if fires else left - _ONE
    block["coincidence_left"] = left if left > _ZERO else _ZERO
    block["v"][COINCIDENCE] = distinct << 16
    return 1 if fires else 0


@jit
def _inhibit(block: Record, before: np.int64) -> np.int64:
    """Inhibition of this tick, UQ8.16 mV; an arriving spike of the interneuron starts it anew."""
    left = block["inhibition_ticks"] if before >> INHIBITORY & 1 else block["inhibition_left"]
    block["inhibition_left"] = left - _ONE if left > _ZERO else _ZERO
    return np.int64(block["inhibition"]) if left > _ZERO else _ZERO


@jit
def _integrate(block: Record, stimuli: NDArray[np.int16], before: np.int64, inhibition: np.int64) -> np.int64:
    """Advance every membrane, and the times since the last spike; return the spikes."""
    weights, v = block["weights"], block["v"]
    rise, gain, bias, threshold = block["rise"], block["gain"], block["bias"], block["threshold"]
    v_reset, v_min, refractory = block["v_reset"], block["v_min"], block["refractory"]
    held, since = block["refractory_left"], block["since_spike"]
    spikes = _ZERO
    for i in range(v.shape[0]):
        if i == COINCIDENCE:
            continue
        charge = _ZERO
        for j in range(v.shape[0]):
            if before >> j & 1:
                charge += min(_rounded(weights[j, i], GUARD_BITS), _TOP_S16)
        stimulus = _held(_rounded(np.int64(stimuli[i]) * block["input_gain"], 8), _TOP_S24)
        below = inhibition if i < N_SENSORY else _ZERO
        drive = _held(_rounded(stimulus * gain[i], 8) + (bias[i] << 8) - below, _TOP_S24)
        leak = _rounded((drive - v[i]) * rise[i], 24)
        moved = _held(v[i] + leak + _rounded(charge * block["recurrent_gain"], 8), _TOP_S24)
        moved = max(moved, v_min[i] << 8)
        resting = held[i] > _ZERO
        fires = not resting and moved << 8 >= threshold[i] * block["threshold_gain"]
        v[i] = v_reset[i] << 8 if fires or resting else moved
        held[i] = refractory[i] if fires else held[i] - (_ONE if resting else _ZERO)
        since[i] = _ZERO if fires else min(since[i] + _ONE, _TOP_U16)
        spikes |= (_ONE if fires else _ZERO) << i
    return spikes


@jit
def _learn(block: Record, spikes: np.int64) -> None:
    """Let traces fall, collect the pairs of this tick, let dopamine spend the eligibility, and let traces jump."""
    before, after = block["pre_trace"], block["post_trace"]
    weights, eligibility, plastic = block["weights"], block["eligibility"], block["plastic"]
    fall, factor = block["fall_eligibility"], block["learning_factor"]
    low, high = block["w_min"] << 16, block["w_max"] << 16
    kept = _ZERO if block["rule"] & RULE_NEAREST else _ONE
    for i in range(before.shape[0]):
        before[i] = _fallen(before[i], block["fall_plus"])
        after[i] = _fallen(after[i], block["fall_minus"])
    for j in range(before.shape[0]):
        potentiation = min(_rounded(before[j] * block["a_plus"], 8), _TOP_S32)
        for i in range(after.shape[0]):
            change = _ZERO
            if plastic[j] >> i & 1:
                # the detector takes no weighted input: its own spikes pair with nothing
                change += potentiation if spikes >> i & 1 and i != COINCIDENCE else _ZERO
                if spikes >> j & 1:
                    change -= min(_rounded(after[i] * block["a_minus"], 8), _TOP_S32)
            e = _held(_fallen(eligibility[j, i], fall) + change, _TOP_S32)
            eligibility[j, i] = e
            w = weights[j, i]
            moved = w + _rounded(e * factor, 24)
            moved = min(moved, max(w, high))
            weights[j, i] = _held(max(moved, min(w, low)), _TOP_S32)
    for i in range(before.shape[0]):
        if spikes >> i & 1:
            before[i] = min(before[i] * kept + _UNITY_TRACE, _TOP_U24)
            if i != COINCIDENCE:
                after[i] = min(after[i] * kept + _UNITY_TRACE, _TOP_U24)
