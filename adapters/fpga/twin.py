"""The fixed-point network itself as a device: what a board has to equal, behind the interface of a board."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer
from neuromod.engine.compiled import jit
from neuromod.engine.errors import AdapterError
from neuromod.engine.fixed_registers import FIXED_BLOCK
from neuromod.engine.fixed_tick import fixed_tick, set_modulation
from neuromod.engine.layout_types import State


@jit
def fixed_trace(
    state: State,
    stimuli: NDArray[np.int16],
    modulation: NDArray[np.int64],
    spikes: NDArray[np.uint16],
    v: NDArray[np.int32],
) -> None:
    """Advance by one tick per row of `stimuli`, and keep the membranes too.

    Parameters
    ----------
    state : State
        One record of `FIXED_BLOCK`. Changed in place.
    stimuli : ndarray of int16, shape (n, 16)
        Q8.8.
    modulation : ndarray of int64, shape (0, 5) or (n, 5)
        Set before each tick; without rows, the network's own stays.
    spikes : ndarray of uint16, shape (n,)
        Bit i = channel i. Overwritten.
    v : ndarray of int32, shape (n, 16)
        Membranes after each tick, Q8.16. Overwritten.
    """
    membranes = state[0]["v"]
    for k in range(stimuli.shape[0]):
        if modulation.shape[0] > 0:
            set_modulation(state, modulation[k])
        spikes[k] = fixed_tick(state, stimuli[k])
        for i in range(v.shape[1]):
            v[k, i] = membranes[i]


class TwinDevice:
    """A `Device` in this process: `fixed_tick` on a state of its own. Nothing is ever lost on the way."""

    def __init__(self) -> None:
        self.state: State = np.zeros(1, dtype=FIXED_BLOCK)
        self._answers: list[Answer] = []
        self._spikes = np.zeros(1, np.uint16)

    @property
    def name(self) -> str:
        """Which one, in words for a person."""
        return "Q8.8 twin in this process"

    @property
    def has_checksum(self) -> bool:
        """True: there is no way on which anything could be damaged."""
        return True

    @property
    def counts(self) -> dict[str, int]:
        """Faults met so far: none."""
        return {}

    def open(self) -> None:
        """Have the kernel compiled, so that the first tick takes no longer than others."""
        self._run(np.zeros(1, FIXED_BLOCK), np.zeros((1, self.state["v"].shape[1]), np.int16))

    def load(self, state: NDArray[Any]) -> None:
        """Take over every register of a `FIXED_BLOCK` record."""
        self.state[:] = state
        self._answers.clear()

    def read_state(self) -> NDArray[Any]:
        """Return every register: one record of `FIXED_BLOCK`, shape (1,)."""
        return self.state.copy()

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Run one tick; its answer waits for `poll`.

        Raises
        ------
        AdapterError
            If it is not the network's next tick.
        """
        expected = int(self.state[0]["tick"])
        if tick != expected:
            raise AdapterError(f"{self.name}: expected tick {expected}, got {tick}; load a state to begin elsewhere")
        started = time.perf_counter_ns()
        if modulation is not None:
            set_modulation(self.state, modulation)
        v = self._run(self.state, stimuli[np.newaxis])
        spent = time.perf_counter_ns() - started
        self._answers.append(Answer(tick, int(self._spikes[0]), v[0], round_trip_ns=spent))

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return the answers since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _run(self, state: State, stimuli: NDArray[np.int16]) -> NDArray[np.int32]:
        v = np.empty(stimuli.shape, np.int32)
        fixed_trace(state, stimuli, _NO_MODULATION, self._spikes, v)
        return v


_NO_MODULATION = np.zeros((0, 5), np.int64)
