"""Compiled loops around what is measured, so that nothing of the interpreter is in the figures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine import tick as kernels
from neuromod.engine.compiled import jit
from neuromod.engine.plasticity import learn
from neuromod.engine.tick import set_modulator, tick


@jit
def ticks(state: Any, stimuli: NDArray[np.float32], spikes: NDArray[np.int64]) -> None:
    """One tick per row of `stimuli`."""
    for k in range(stimuli.shape[0]):
        spikes[k] = tick(state, stimuli[k])


@jit
def empty(state: Any, stimuli: NDArray[np.float32]) -> int:
    """What a call from Python costs whatever it does: the arguments of `tick`."""
    return 0


@jit
def updates(state: Any, values: NDArray[np.float32]) -> None:
    """A modulator set and all of them relaxed, once per value."""
    block = state[0]
    for k in range(values.shape[0]):
        set_modulator(state, k & 3, values[k])
        kernels._relax(block)


@jit
def drives(state: Any, stimuli: NDArray[np.float32]) -> None:
    """The first part of a tick."""
    block = state[0]
    for k in range(stimuli.shape[0]):
        kernels._drive(block, stimuli[k], block["prepared_ms"])


@jit
def kicks(state: Any, spikes: NDArray[np.int64]) -> None:
    """Charges of these spikes."""
    block = state[0]
    for k in range(spikes.shape[0]):
        block["arriving"] = spikes[k]
        kernels._kick(block)


@jit
def advances(state: Any, spikes: NDArray[np.int64]) -> None:
    """The neurons alone, their drive held."""
    block = state[0]
    for _ in range(spikes.shape[0]):
        kernels._advance(block, block["prepared_ms"], np.float32(1.0))


@jit
def bookkeeping(state: Any, spikes: NDArray[np.int64]) -> None:
    """Coincidences, collection and departure of these spikes."""
    block = state[0]
    for k in range(spikes.shape[0]):
        step_ms = block["prepared_ms"]
        for i in range(block["n_channels"]):
            block["fired"][i] = np.float32(spikes[k] >> i & 1)
        found = kernels._collect(block, step_ms) | kernels._detect(block, step_ms) << 14
        block["spikes"] = found
        kernels._depart(block, found)


@jit
def lessons(state: Any, spikes: NDArray[np.int64]) -> None:
    """Plasticity after these spikes."""
    block = state[0]
    for k in range(spikes.shape[0]):
        mask = spikes[k]
        block["spikes"] = mask
        block["arriving"] = mask
        for i in range(block["n_channels"]):
            one = np.float32(mask >> i & 1)
            block["fired"][i] = one
            block["departed"][i] = one
        learn(block, block["prepared_ms"], np.float32(block["levels"][0]))
