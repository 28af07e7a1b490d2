"""From what the daemon says of its ticks to what a board is given: images, Q8.8 stimuli, words of modulation."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.config import FpgaConfig
from neuromod.adapters.fpga.link import decimation
from neuromod.bridge.wire import StimuliMessage
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError
from neuromod.engine.fixed_network import MAX_FIXED_DT_MS, FixedNetwork, quantised_modulation, quantised_stimuli
from neuromod.engine.fixed_registers import MODULATION
from neuromod.engine.network import MAX_DT_MS

_SAME_STEP = 1e-6
_FACTOR = MODULATION.index("learning_factor")  # the one number of modulation that is an amount for each tick


class BoardTick(NamedTuple):
    """A tick as a board takes it.

    Attributes
    ----------
    tick : int
        The daemon's number of it; the last one's, where several make one of the board's.
    stimuli : ndarray of int16, shape (16,)
        Q8.8.
    modulation : ndarray of int64, shape (5,), or None
        Words, where they are not those of the tick before.
    """

    tick: int
    stimuli: NDArray[np.int16]
    modulation: NDArray[np.int64] | None


class Ticks:
    """Makes a board's images and ticks of a daemon's messages.

    The images are for the step that the first message tells; one of another step is refused from then on.

    Parameters
    ----------
    network : NetworkConfig
        The session's.
    fpga : FpgaConfig
        Whose link has to carry them.

    Attributes
    ----------
    image : ndarray of FIXED_BLOCK, shape (1,), or None
        What the board is to hold before the first tick; None before `begin`.
    n : int
        Ticks of the daemon that make one of the board's.
    step_ms : float
        Length of the board's ticks.
    """

    def __init__(self, network: NetworkConfig, fpga: FpgaConfig) -> None:
        self._network, self._fpga = network, fpga
        self._tempo = network.modulation.baseline.tempo
        self._dt_ms = 0.0
        self._sum: list[tuple[NDArray[np.float32], NDArray[np.float64]]] = []
        self._last_modulation = b""
        self.image: NDArray[Any] | None = None
        self.n = 1

    @property
    def step_ms(self) -> float:
        """Length of the board's ticks, in wall time."""
        return self.n * self._dt_ms

    def forget(self) -> None:
        """Have the next message begin anew."""
        self.image = None

    def repeat_modulation(self) -> None:
        """Have the next tick bring its modulation along, even where it stays: the board has that of its images."""
        self._last_modulation = b""

    def begin(self, message: StimuliMessage, latency_timer_ms: int | None) -> NDArray[Any]:
        """Make images for the step that a message tells, and return them.

        Raises
        ------
        ConfigError
            If the link does not carry the daemon's ticks, or no network takes such steps.
        FixedPointError
            If hardware cannot hold the network's numbers.
        """
        if math.isnan(message.step_ms):
            raise ConfigError("this daemon does not say what modulated its ticks: run one of this version")
        self._dt_ms = message.step_ms / self._tempo
        if self._dt_ms > MAX_DT_MS * (1 + _SAME_STEP):
            raise ConfigError(
                f"the daemon's network steps by {message.step_ms:g} ms, expected {self._tempo * MAX_DT_MS:g} at "
                "most: begin with its tempo at the baseline"
            )
        self.n = decimation(self._fpga.link(float(latency_timer_ms or 0)), self._dt_ms, self._fpga.decimate)
        state = FixedNetwork(self._network, dt_ms=min(self.step_ms, MAX_FIXED_DT_MS)).state
        state[0]["tick"] = message.tick % 2**32
        self._sum.clear()
        self._last_modulation = b""
        self.image = state
        return state

    def take(self, message: StimuliMessage) -> BoardTick | None:
        """Return the tick that the board is to run; None where more messages make it.

        Raises
        ------
        ConfigError
            If its step is not that of the images.
        FixedPointError
            If hardware cannot hold its modulation.
        """
        expected_ms = self._dt_ms * self._tempo
        if abs(message.step_ms - expected_ms) > _SAME_STEP * expected_ms:
            raise ConfigError(
                f"tick {message.tick} of the daemon is a step of {message.step_ms:g} ms, and the images are for "
                f"{expected_ms:g}: tempo and block length are fixed on a board; leave them, or begin anew"
            )
        self._sum.append((message.values, message.modulation))
        if len(self._sum) < self.n:
            return None
        values, modulation = self._sum[0]
        if self.n > 1:
            values = np.mean([row for row, _ in self._sum], axis=0)
            rows = np.array([row for _, row in self._sum])
            modulation = rows.mean(axis=0)
            modulation[_FACTOR] = rows[:, _FACTOR].sum()
        self._sum.clear()
        stimuli = quantised_stimuli(values[np.newaxis], self._network.stimulus_limit)[0]
        raw = modulation.tobytes()
        if raw == self._last_modulation:
            return BoardTick(message.tick, stimuli, None)
        self._last_modulation = raw
        return BoardTick(message.tick, stimuli, quantised_modulation(modulation)[0])
