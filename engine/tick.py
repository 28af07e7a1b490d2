"""The tick: one step of the network, and what may be changed between two of them.

Live service, replay, hardware runs, benchmarks and tests all call `tick`; they differ only in who paces it. It checks
nothing: `SpikingNetwork` checked and allocated. Order within a tick:

1. last tick's spikes are tested for a coincidence; those that arrive (last tick's, or older ones where they are
   delayed) start inhibition and bring their charge;
2. drive = bias + gain x stimulus - inhibition + noise;
3. each model advances its channels by dt x tempo;
4. spikes are collected, and times since the last spike advanced;
5. plasticity follows the spikes;
6. modulators relax, so that a level set between two ticks acts in full on the next.

All durations of neurons, circuit and plasticity count in model time, dt x tempo; modulators relax in wall time; delays
are whole ticks.
"""

import math

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.bits import above, below, count, unpack
from neuromod.engine.compiled import jit
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, LIVE, MAX_DELAY_TICKS, N_SENSORY
from neuromod.engine.layout_types import Record, State
from neuromod.engine.models import adex, fitzhugh_nagumo, hodgkin_huxley, izhikevich, lapicque, lif, pospischil
from neuromod.engine.noise import add_noise
from neuromod.engine.plasticity import RULES, learn, prepare_plasticity

DOPAMINE, CORTISOL, ACETYLCHOLINE, TEMPO = 0, 1, 2, 3
"""Indices of the modulators, in the order of `modulators.MODULATORS`."""

NEVER_MS = np.float32(1e9)
"""Time since the last spike of a channel that has not fired."""

_PAST = np.int64((1 << (MAX_DELAY_TICKS + 1)) - 1)
_SENSORY_BITS = (1 << N_SENSORY) - 1
_INPUT_GAIN = LIVE.index("input_gain")
_RECURRENT_GAIN = LIVE.index("recurrent_gain")
_STRENGTH = LIVE.index("inhibition_strength_mv")
_DURATION = LIVE.index("inhibition_duration_ms")
_WINDOW = LIVE.index("coincidence_window_ms")
_MIN_CHANNELS = LIVE.index("coincidence_min_channels")
_RATE = LIVE.index("learning_rate_per_s")
_REWARD = RULES.index("reward")
_MS_PER_S = np.float64(1000.0)
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_UNITY = np.float64(1.0)
_THERE = np.float64(1e-12)  # a level this near its baseline is there: no subnormal numbers, and tempo is 1 again


@jit
def tick(state: State, stimuli: NDArray[np.float32]) -> int:
    """Advance the network by one tick.

    Parameters
    ----------
    state : State
        The block. Changed in place.
    stimuli : ndarray of float32, shape (16,)
        One number per channel. A value that is not finite counts as 0 and is counted in `bad_stimuli`; magnitudes are
        held to `stimulus_limit`.

    Returns
    -------
    int
        The spikes: bit i is channel i.
    """
    block = state[0]
    levels = block["levels"]
    step_ms = np.float32(block["dt_ms"] * levels[TEMPO])
    if step_ms != block["prepared_ms"]:
        _prepare(block, step_ms)
        block["prepared_ms"] = step_ms
    _drive(block, stimuli, step_ms)
    if block["noisy"] != 0:
        add_noise(block, step_ms)
    _kick(block)
    coincidence = _detect(block, step_ms)
    _advance(block, step_ms, np.float32(_UNITY + block["cortisol_threshold"] * levels[CORTISOL]))
    spikes = _collect(block, step_ms) | coincidence << COINCIDENCE
    block["spikes"] = spikes
    _depart(block, spikes)
    learn(block, step_ms, np.float32(levels[DOPAMINE]))
    _relax(block)
    block["step"] += 1
    return spikes


@jit
def run(state: State, stimuli: NDArray[np.float32], modulators: NDArray[np.float32], spikes: NDArray[np.bool_]) -> None:
    """Advance the network by one tick per row of `stimuli`.

    Parameters
    ----------
    state : State
        The block. Changed in place.
    stimuli : ndarray of float32, shape (n, 16)
        As for `tick`.
    modulators : ndarray of float32, shape (0, 4) or (n, 4)
        Levels set before each tick; without rows, the network's own go on.
    spikes : ndarray of bool, shape (n, 16)
        Overwritten.
    """
    for k in range(stimuli.shape[0]):
        if modulators.shape[0] > 0:
            for m in range(modulators.shape[1]):
                set_modulator(state, m, modulators[k, m])
        mask = tick(state, stimuli[k])
        for i in range(spikes.shape[1]):
            spikes[k, i] = mask >> i & 1 == 1


@jit
def set_modulator(state: State, index: int, level: np.float32) -> None:
    """Set a modulator, held to its range; a level that is not finite is ignored and counted in `bad_levels`."""
    block = state[0]
    if not math.isfinite(level):
        block["bad_levels"] += 1
        return
    low = np.float64(0.0)
    high = _UNITY
    if index == DOPAMINE:
        low = -_UNITY
    if index == TEMPO:
        low = np.float64(0.1)
        high = np.float64(4.0)
    block["levels"][index] = min(max(np.float64(level), low), high)


@jit
def add_reward(state: State, amount: np.float32) -> None:
    """Deliver a reward: dopamine moves by reward - running baseline, which then moves towards the reward.

    An amount that is not finite is ignored and counted in `bad_levels`.
    """
    block = state[0]
    if not math.isfinite(amount):
        block["bad_levels"] += 1
        return
    error = np.float64(amount) - block["reward_baseline"]
    block["reward_baseline"] += block["reward_rate"] * error
    block["levels"][DOPAMINE] = min(max(block["levels"][DOPAMINE] + error, -_UNITY), _UNITY)


@jit
def add_stress(state: State, amount: np.float32) -> None:
    """Add to cortisol, held to its range; an amount that is not finite is ignored and counted in `bad_levels`."""
    block = state[0]
    if not math.isfinite(amount):
        block["bad_levels"] += 1
        return
    block["levels"][CORTISOL] = min(max(block["levels"][CORTISOL] + np.float64(amount), np.float64(0.0)), _UNITY)


@jit
def boost_focus(state: State, amount: np.float32) -> None:
    """Add to acetylcholine, held to its range; an amount that is not finite is ignored and counted in `bad_levels`."""
    block = state[0]
    if not math.isfinite(amount):
        block["bad_levels"] += 1
        return
    level = block["levels"][ACETYLCHOLINE] + np.float64(amount)
    block["levels"][ACETYLCHOLINE] = min(max(level, np.float64(0.0)), _UNITY)


@jit
def set_learning(state: State, on: bool) -> None:
    """Allow or freeze plasticity."""
    state[0]["learning"] = 1 if on else 0


@jit
def set_parameter(state: State, index: int, value: np.float64) -> None:
    """Set the parameter `LIVE[index]`, whose range the caller checked with `config.check_live`.

    A value that is not finite is ignored and counted in `bad_levels`.
    """
    block = state[0]
    if not math.isfinite(value):
        block["bad_levels"] += 1
        return
    block["live"][index] = value


@jit
def membrane(state: State, out: NDArray[np.float32]) -> None:
    """Copy the membrane potentials, each as its model counts them, into `out` (16,).

    The coincidence detector has no membrane: its entry is the number of channels that it last found within its window.
    """
    v = state[0]["variables"][0]
    for i in range(out.shape[0]):
        out[i] = v[i]


@jit
def levels(state: State, out: NDArray[np.float32]) -> None:
    """Copy the levels of the modulators into `out` (4,)."""
    level = state[0]["levels"]
    for i in range(out.shape[0]):
        out[i] = np.float32(level[i])


@jit
def modulation(state: State, out: NDArray[np.float64]) -> float:
    """Compute what the levels come to in the next tick, as hardware takes it.

    Parameters
    ----------
    state : State
        The block, before that tick.
    out : ndarray of float64, shape (5,)
        Overwritten by input gain, recurrent gain, threshold gain, inhibition in mV, and learning factor (rate x
        dopamine x step in s; 0 where weights do not learn from reward). In float64: the tick itself rounds each to
        float32, `fixed_network.quantised_modulation` to the words of its registers.

    Returns
    -------
    float
        The step in ms: dt x tempo.
    """
    block = state[0]
    levels, live = block["levels"], block["live"]
    step_ms = block["dt_ms"] * levels[TEMPO]
    out[0] = (
        live[_INPUT_GAIN]
        * (_UNITY + block["acetylcholine_input"] * levels[ACETYLCHOLINE])
        * (_UNITY + block["dopamine_input"] * levels[DOPAMINE])
    )
    out[1] = live[_RECURRENT_GAIN] * (_UNITY - block["acetylcholine_recurrent"] * levels[ACETYLCHOLINE])
    out[2] = _UNITY + block["cortisol_threshold"] * levels[CORTISOL]
    out[3] = live[_STRENGTH] * (_UNITY + block["cortisol_inhibition"] * levels[CORTISOL])
    is_rewarded = block["rule"] == _REWARD and block["learning"] != 0
    out[4] = live[_RATE] * levels[DOPAMINE] * (step_ms / _MS_PER_S) if is_rewarded else np.float64(0.0)
    return float(step_ms)


@jit
def _prepare(block: Record, step_ms: np.float32) -> None:
    """Compute all that depends on the length of the step."""
    models = block["models"]
    if models >> lif.NUMBER & 1:
        lif.prepare(block, step_ms)
    if models >> lapicque.NUMBER & 1:
        lapicque.prepare(block, step_ms)
    if models >> izhikevich.NUMBER & 1:
        izhikevich.prepare(block, step_ms)
    if models >> fitzhugh_nagumo.NUMBER & 1:
        fitzhugh_nagumo.prepare(block, step_ms)
    if models >> hodgkin_huxley.NUMBER & 1:
        hodgkin_huxley.prepare(block, step_ms)
    if models >> pospischil.NUMBER & 1:
        pospischil.prepare(block, step_ms)
    if models >> adex.NUMBER & 1:
        adex.prepare(block, step_ms)
    prepare_plasticity(block, step_ms)


@jit
def _advance(block: Record, step_ms: np.float32, threshold_gain: np.float32) -> None:
    """Let each model that some channel has advance its channels."""
    models = block["models"]
    if models >> lif.NUMBER & 1:
        lif.advance(block, step_ms, threshold_gain)
    if models >> lapicque.NUMBER & 1:
        lapicque.advance(block, step_ms, threshold_gain)
    if models >> izhikevich.NUMBER & 1:
        izhikevich.advance(block, step_ms, threshold_gain)
    if models >> fitzhugh_nagumo.NUMBER & 1:
        fitzhugh_nagumo.advance(block, step_ms, threshold_gain)
    if models >> hodgkin_huxley.NUMBER & 1:
        hodgkin_huxley.advance(block, step_ms, threshold_gain)
    if models >> pospischil.NUMBER & 1:
        pospischil.advance(block, step_ms, threshold_gain)
    if models >> adex.NUMBER & 1:
        adex.advance(block, step_ms, threshold_gain)


@jit
def _drive(block: Record, stimuli: NDArray[np.float32], step_ms: np.float32) -> None:
    """Input of each neuron, in the unit of its model: bias + gain x stimulus - inhibition."""
    n_channels = block["n_channels"] & -16
    levels = block["levels"]
    live = block["live"]
    gain, bias, inhibited, bound = block["gain"], block["bias"], block["inhibited"], block["drive_limit"]
    drive = block["drive"]
    limit = block["stimulus_limit"]
    input_gain = np.float32(
        live[_INPUT_GAIN]
        * (_UNITY + block["acetylcholine_input"] * levels[ACETYLCHOLINE])
        * (_UNITY + block["dopamine_input"] * levels[DOPAMINE])
    )
    left = block["inhibition_left_ms"]
    if block["arriving"] >> INHIBITORY & 1:
        left = np.float32(live[_DURATION])
    inhibition = _ZERO
    if left > step_ms * _HALF:
        inhibition = np.float32(live[_STRENGTH] * (_UNITY + block["cortisol_inhibition"] * levels[CORTISOL]))
    left = left - step_ms
    block["inhibition_left_ms"] = left if left > _ZERO else _ZERO
    bad = 0
    for i in range(n_channels):
        x = stimuli[i]
        finite = math.isfinite(x)
        bad += 0 if finite else 1
        x = x if finite else _ZERO
        x = x if x < limit else limit
        x = x if x > -limit else -limit
        y = bias[i] + gain[i] * (x * input_gain) - inhibition * inhibited[i]
        y = y if y < bound[i] else bound[i]
        drive[i] = y if y > -bound[i] else -bound[i]
    block["bad_stimuli"] += bad


@jit
def _kick(block: Record) -> None:
    """Charge that arriving spikes bring: the rows of their weights, added in the order of the sources."""
    n_channels = block["n_channels"] & -16
    weights, kick = block["weights_mv"], block["kick"]
    arriving = block["arriving"]
    gain = np.float32(
        block["live"][_RECURRENT_GAIN] * (_UNITY - block["acetylcholine_recurrent"] * block["levels"][ACETYLCHOLINE])
    )
    for i in range(n_channels):
        kick[i] = _ZERO
    while arriving != 0:
        row = weights[count((arriving & -arriving) - 1)]  # of the lowest bit that is set
        arriving &= arriving - 1
        for i in range(n_channels):
            kick[i] += row[i] * gain


@jit
def _detect(block: Record, step_ms: np.float32) -> int:
    """1 where a sensory spike of the last tick completes a coincidence and the detector is not refractory.

    Exact: every sensory channel counts once, by the time since its own last spike.
    """
    live = block["live"]
    half_step = step_ms * _HALF
    # at most half a step above the window: the times are sums of steps, and rounded
    edge = np.float32(live[_WINDOW]) + half_step
    distinct = count(below(block["since_spike_ms"], edge) & _SENSORY_BITS)
    block["n_coincident"] = distinct
    left = block["coincidence_left_ms"]
    fires = block["spikes"] & _SENSORY_BITS != 0 and distinct >= live[_MIN_CHANNELS] and left <= half_step
    left = np.float32(block["coincidence_refractory_ms"]) if fires else left - step_ms
    block["coincidence_left_ms"] = left if left > _ZERO else _ZERO
    return 1 if fires else 0


@jit
def _collect(block: Record, step_ms: np.float32) -> int:
    """Gather the spikes of all neurons into bits, and advance the times since the last spike."""
    n_channels = block["n_channels"] & -16
    fired, since = block["fired"], block["since_spike_ms"]
    for i in range(n_channels):
        since[i] = _ZERO if fired[i] > _ZERO else since[i] + step_ms
    # after the models, whose vectors would wait for a single entry just written into their row
    block["variables"][0][COINCIDENCE] = np.float32(block["n_coincident"])
    return above(fired, _ZERO)


@jit
def _depart(block: Record, spikes: int) -> None:
    """Say whose spikes arrive at the next tick: this tick's, or those of a channel's delay ago."""
    n_channels = block["n_channels"] & -16
    departed = block["departed"]
    arriving = spikes
    if block["delayed"] != 0:
        past, delay = block["past"], block["delay_ticks"]
        arriving = 0
        for j in range(n_channels):
            past[j] = (past[j] << 1 | (spikes >> j & 1)) & _PAST
            arriving |= (past[j] >> delay[j] & 1) << j
    unpack(arriving, departed)
    block["arriving"] = arriving


@jit
def _relax(block: Record) -> None:
    """Let every modulator go its part of the way to its baseline, which it reaches when nearly there."""
    level, baseline, part = block["levels"], block["baselines"], block["relaxation"]
    for i in range(level.shape[0]):
        gap = baseline[i] - level[i]
        level[i] = level[i] + gap * part[i] if abs(gap) > _THERE else baseline[i]
