"""What a device under test has to equal: the fixed-point twin for boards, the floating-point network for a daemon."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuromod.adapters.fpga.twin import fixed_trace
from neuromod.engine.errors import FixedPointError
from neuromod.engine.fixed_network import FixedNetwork, quantised_modulation, quantised_stimuli
from neuromod.engine.fixed_registers import MODULATION
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.network import SpikingNetwork

_BITS = 1 << np.arange(N_CHANNELS)


class Reference(Protocol):
    """Runs ticks as the device should."""

    stimuli_type: DTypeLike
    """Of what the device is given: int16 words of Q8.8, or float32."""

    def words(self, stimuli: NDArray[np.float32]) -> NDArray[Any]:
        """Return stimuli, shape (n, 16), in the form that both device and reference take."""

    def modulation_words(self, numbers: NDArray[np.float64], step_ms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return words of modulation of n ticks, shape (n, 5), of what the loop says of them.

        Parameters
        ----------
        numbers : ndarray of float64, shape (n, 5)
            As in TICK records and `stimuli` messages.
        step_ms : ndarray of float64, shape (n,)
            By how much the network's own time went on at each tick.

        Raises
        ------
        FixedPointError
            If the tempo is not that of the parameters, or a number does not fit its register.
        """

    def run(
        self, words: NDArray[Any], modulation: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32] | int]:
        """Run n ticks; return spikes, shape (n,), and membranes in Q8.16, shape (n, 16), or 0 where there are none."""

    def copy_state(self) -> NDArray[Any] | None:
        """Return a copy of the state, where a device can be brought to it."""


class FixedReference:
    """The twin: what a board computes, to the bit.

    Parameters
    ----------
    network : FixedNetwork
        At its start.
    """

    stimuli_type: DTypeLike = np.int16

    def __init__(self, network: FixedNetwork) -> None:
        self.network = network
        self._limit = network.config.stimulus_limit
        self._step_ms = network.dt_ms * network.config.modulation.baseline.tempo

    @property
    def state(self) -> NDArray[Any]:
        """The state: one record of `FIXED_BLOCK`; the memory itself."""
        return self.network.state

    @property
    def modulation(self) -> NDArray[np.int64]:
        """Words of modulation in the state, shape (5,)."""
        return self.modulation_of(self.state)

    @staticmethod
    def modulation_of(state: NDArray[Any]) -> NDArray[np.int64]:
        """Words of modulation in a state, shape (5,)."""
        return np.array([state[0][name] for name in MODULATION], np.int64)

    def words(self, stimuli: NDArray[np.float32]) -> NDArray[np.int16]:
        """Return stimuli as Q8.8."""
        return quantised_stimuli(stimuli, self._limit)

    def modulation_words(self, numbers: NDArray[np.float64], step_ms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return words of modulation, where every step is as long as the parameters take it to be."""
        if not (np.abs(step_ms - self._step_ms) <= 1e-6 * self._step_ms).all():
            raise FixedPointError(
                f"expected every step to be {self._step_ms:g} ms, as the parameters were computed for, got "
                f"{np.min(step_ms):g} to {np.max(step_ms):g} ms: the tempo of a board is fixed"
            )
        return quantised_modulation(numbers)

    def run(self, words: NDArray[np.int16], modulation: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[Any]]:
        """Run n ticks; return spikes and membranes."""
        spikes, v = np.empty(len(words), np.uint16), np.empty(words.shape, np.int32)
        fixed_trace(self.state, words, modulation, spikes, v)
        return spikes, v

    def copy_state(self) -> NDArray[Any]:
        """Return a copy of the state."""
        return self.state.copy()

    @staticmethod
    def advanced(state: NDArray[Any], words: NDArray[np.int16], modulation: NDArray[np.int64]) -> NDArray[Any]:
        """Return what a state becomes by n ticks; the state itself stays."""
        after = state.copy()
        fixed_trace(after, words, modulation, np.empty(len(words), np.uint16), np.empty(words.shape, np.int32))
        return after


class FloatReference:
    """The floating-point network: what a daemon computes.

    Parameters
    ----------
    network : SpikingNetwork
        At its start.
    """

    stimuli_type: DTypeLike = np.float32

    def __init__(self, network: SpikingNetwork) -> None:
        self.network = network

    def words(self, stimuli: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return stimuli as they are."""
        return stimuli

    def modulation_words(self, numbers: NDArray[np.float64], step_ms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return zeros: a daemon has its own modulation."""
        return np.zeros((len(numbers), 5), np.int64)

    def run(self, words: NDArray[np.float32], modulation: NDArray[np.int64]) -> tuple[NDArray[np.uint16], int]:
        """Run n ticks; return spikes."""
        return (self.network.run(words) @ _BITS).astype(np.uint16), 0

    def copy_state(self) -> None:
        """Return None: a daemon cannot be brought to a state."""
        return
