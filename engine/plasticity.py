"""Plasticity: pairs of spikes change weights, at once or once dopamine says whether they were worth it.

Runs in every tick, after its spikes are known. Every synapse j -> i sees two kinds of event: a spike that left channel
j (later by its delay, where it has one) and a spike of channel i. Two traces a channel, one for each side, jump by 1
with its spikes and decay in between [1]_; a spike of i then adds a_plus x pre_trace[j], a spike that left j takes
a_minus x post_trace[i]: the closed form a exp(-|t_i - t_j| / tau) for each pair [2]_. Traces are read before they jump,
so that two spikes of the same tick are no pair. With `nearest`, a trace jumps to 1 rather than by 1, and each spike
pairs with the nearest one before it alone.

Rule "hebbian" changes the weights by the pairs. Rule "reward" collects them in an eligibility trace a synapse, which
decays, and dw/dt = rate x dopamine x eligibility [3]_ [4]_: no dopamine, no change; negative dopamine, the opposite.

Each weight carries along what rounding has kept out of it (`unrounded_mv`), since most changes are small beside it.

A weight moves towards its bounds and never beyond; one that begins outside is not pulled in, but moves only inwards. So
a synapse with no eligibility and no spike never changes, homeostasis excepted: synaptic scaling [5]_ multiplies the
plastic excitatory weights onto a channel by what its running rate is off its target.

References
----------
.. [1] Morrison, Diesmann & Gerstner (2008), Biol. Cybern. 98, 459-478.
.. [2] Song, Miller & Abbott (2000), Nat. Neurosci. 3, 919-926.
.. [3] Izhikevich (2007), Cereb. Cortex 17, 2443-2452.
.. [4] Fremaux & Gerstner (2016), Front. Neural Circuits 9, 85.
.. [5] Turrigiano et al. (1998), Nature 391, 892-896; van Rossum, Bi & Turrigiano (2000), J. Neurosci. 20, 8812-8821.
"""

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.exponential import one_minus_exp
from neuromod.engine.layout import LIVE
from neuromod.engine.layout_types import Record

RULES = ("none", "hebbian", "reward")
"""Rules by their number in the block."""

_RATE = LIVE.index("learning_rate_per_s")
_NONE, _HEBBIAN, _REWARD = range(3)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_PER_SECOND = np.float32(1000.0)
# a trace this small is over; left alone it would decay into subnormal numbers, slow on many processors
_TINY = np.float32(1e-30)


@jit
def prepare_plasticity(block: Record, step_ms: np.float32) -> None:
    """Compute the part of each kind of trace that a step of `step_ms` model time takes.

    It, and not what is left, since float32 has few digits just below 1: a short step would lose most of them.
    """
    tau, fall = block["trace_tau_ms"], block["trace_fall"]
    for k in range(tau.shape[0]):
        fall[k] = np.float32(one_minus_exp(np.float64(step_ms) / tau[k]))


@jit
def learn(block: Record, step_ms: np.float32, dopamine: np.float32) -> None:
    """Follow the spikes of this tick, and change the weights where `learning` allows it."""
    if block["rule"] != _NONE:
        _follow(block, step_ms, dopamine)
    if block["homeostatic"] != 0:
        _scale(block, step_ms)


@jit
def _follow(block: Record, step_ms: np.float32, dopamine: np.float32) -> None:
    """Apply the network's rule to the spikes of this tick."""
    happened = block["arriving"] | block["spikes"]
    _decay(block)
    if block["rule"] == _REWARD:
        factor = np.float32(block["live"][_RATE]) * dopamine * (step_ms / _PER_SECOND)
        _reward(block, happened, factor if block["learning"] != 0 else _ZERO)
    elif happened != 0 and block["learning"] != 0:
        _pair(block)
    if happened != 0:
        _mark(block)


@jit
def _decay(block: Record) -> None:
    n_channels = block["n_channels"] & -16
    before, after, fall = block["pre_trace"], block["post_trace"], block["trace_fall"]
    fall_plus, fall_minus = fall[0], fall[1]
    for i in range(n_channels):
        x, y = before[i] - before[i] * fall_plus, after[i] - after[i] * fall_minus
        before[i] = x if x > _TINY else _ZERO
        after[i] = y if y > _TINY else _ZERO


@jit
def _mark(block: Record) -> None:
    """Let the traces jump."""
    n_channels = block["n_channels"] & -16
    before, after = block["pre_trace"], block["post_trace"]
    departed, fired = block["departed"], block["fired"]
    kept = _ZERO if block["nearest"] != 0 else _ONE
    for i in range(n_channels):
        before[i] = (before[i] * kept + _ONE) if departed[i] > _ZERO else before[i]
        after[i] = (after[i] * kept + _ONE) if fired[i] > _ZERO else after[i]


@jit
def _reward(block: Record, happened: int, factor: np.float32) -> None:
    """Let eligibility decay and collect this tick's pairs; and let dopamine spend it."""
    n_channels = block["n_channels"] & -16
    before, after = block["pre_trace"], block["post_trace"]
    departed, fired = block["departed"], block["fired"]
    eligibility, plastic = block["eligibility_mv"], block["plastic"]
    weights, unrounded = block["weights_mv"], block["unrounded_mv"]
    fall = block["trace_fall"][2]
    a_plus, a_minus = block["a_plus_mv"], block["a_minus_mv"]
    soft, low, high = block["soft_bounds"] != 0, block["w_min_mv"], block["w_max_mv"]
    if happened != 0:
        for j in range(n_channels):
            row, mask, w, rest = eligibility[j], plastic[j], weights[j], unrounded[j]
            potentiation, depression = a_plus * before[j], a_minus * departed[j]
            for i in range(n_channels):
                e = row[i] - row[i] * fall + (potentiation * fired[i] - depression * after[i]) * mask[i]
                e = e if abs(e) > _TINY else _ZERO
                row[i] = e
                w[i], rest[i] = _moved(w[i], rest[i], factor * e, soft, low, high)
    elif factor != _ZERO:
        for j in range(n_channels):
            row, w, rest = eligibility[j], weights[j], unrounded[j]
            for i in range(n_channels):
                e = row[i] - row[i] * fall
                e = e if abs(e) > _TINY else _ZERO
                row[i] = e
                w[i], rest[i] = _moved(w[i], rest[i], factor * e, soft, low, high)
    else:
        for j in range(n_channels):
            row = eligibility[j]
            for i in range(n_channels):
                e = row[i] - row[i] * fall
                row[i] = e if abs(e) > _TINY else _ZERO


@jit
def _pair(block: Record) -> None:
    n_channels = block["n_channels"] & -16
    before, after = block["pre_trace"], block["post_trace"]
    departed, fired = block["departed"], block["fired"]
    weights, unrounded, plastic = block["weights_mv"], block["unrounded_mv"], block["plastic"]
    a_plus, a_minus = block["a_plus_mv"], block["a_minus_mv"]
    soft, low, high = block["soft_bounds"] != 0, block["w_min_mv"], block["w_max_mv"]
    for j in range(n_channels):
        w, rest, mask = weights[j], unrounded[j], plastic[j]
        potentiation, depression = a_plus * before[j], a_minus * departed[j]
        for i in range(n_channels):
            change = (potentiation * fired[i] - depression * after[i]) * mask[i]
            w[i], rest[i] = _moved(w[i], rest[i], change, soft, low, high)


@jit
def _moved(
    w: np.float32, rest: np.float32, change: np.float32, soft: bool, low: np.float32, high: np.float32
) -> tuple[np.float32, np.float32]:
    """The weight after a change, and what of the change rounding has kept out of it, for the next one to bring along.

    Bounded; with soft bounds the change is in proportion to the distance from the bound ahead. Many a change is small
    beside its weight: without the rest, a reward of 0.05 would be lost at ticks of 0.01 ms (Kahan 1965, CACM 8, 40).
    """
    if soft:
        ahead = (high - w) if change > _ZERO else (w - low)
        share = ahead / (high - low)
        change = change * (share if share > _ZERO else _ZERO)
    wanted = change + rest
    moved = w + wanted
    rest = wanted - (moved - w) if change != _ZERO else rest
    moved = moved if change != _ZERO else w
    top = w if w > high else high
    bottom = w if w < low else low
    moved = moved if moved < top else top
    return (moved if moved > bottom else bottom), rest


@jit
def _scale(block: Record, step_ms: np.float32) -> None:
    """Multiply the plastic excitatory weights onto each channel by what its running rate is off the target."""
    n_channels = block["n_channels"] & -16
    rate, fired = block["rate_hz"], block["fired"]
    weights, unrounded, plastic = block["weights_mv"], block["unrounded_mv"], block["plastic"]
    part = step_ms / block["rate_tau_ms"]
    speed, target = step_ms / block["scaling_tau_ms"], block["target_hz"]
    low, high = block["w_min_mv"], block["w_max_mv"]
    for i in range(n_channels):
        r = rate[i] + part * (fired[i] * _PER_SECOND / step_ms - rate[i])
        rate[i] = r if r > _TINY else _ZERO
    if block["learning"] == 0:
        return
    for j in range(n_channels):
        w, rest, mask = weights[j], unrounded[j], plastic[j]
        for i in range(n_channels):
            excitatory = w[i] if w[i] > _ZERO else _ZERO
            change = excitatory * speed * (_ONE - rate[i] / target) * mask[i]
            w[i], rest[i] = _moved(w[i], rest[i], change, False, low, high)
