"""The fixed-point network together with its host: neuromodulators live here, in floating point, as in `tick`.

A board has no neuromodulators, only the five numbers that they come to. The host keeps the levels, lets them relax,
adds rewards to dopamine against their running baseline, and hands the numbers over before every tick.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine import tick as kernels
from neuromod.engine.compiled import jit
from neuromod.engine.config import NetworkConfig
from neuromod.engine.fixed_network import FixedNetwork, quantised_modulation
from neuromod.engine.layout import N_MODULATORS
from neuromod.engine.layout_types import State
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork


class HostedFixedNetwork:
    """A fixed-point network that takes rewards and stress as a `SpikingNetwork` does.

    Parameters
    ----------
    config : NetworkConfig, optional
        As for `FixedNetwork`.
    dt_ms : float
        Wall time of one tick, 0.001 to 1 ms.

    Attributes
    ----------
    network : FixedNetwork
        What hardware computes.

    Raises
    ------
    FixedPointError
        As for `FixedNetwork`.
    """

    def __init__(self, config: NetworkConfig | None = None, *, dt_ms: float = 1.0) -> None:
        self.network = FixedNetwork(config, dt_ms=dt_ms)
        # a whole network, of which only the neuromodulators are used: so that the rules are those of `tick`
        self._host = SpikingNetwork(self.network.config, dt_ms=dt_ms)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights as membranes see them, shape (16, 16), mV per spike; row = source, column = target."""
        return self.network.weights

    @property
    def modulators(self) -> NeuroModulators:
        """Levels that the next tick will use."""
        return self._host.modulators

    def step(self, stimuli: ArrayLike) -> NDArray[np.bool_]:
        """Advance by one tick: 16 stimuli in, shape (16,); which channels fired out."""
        row: NDArray[np.bool_] = self.run(np.asarray(stimuli)[np.newaxis])[0]
        return row

    def run(self, stimuli: ArrayLike) -> NDArray[np.bool_]:
        """Advance by one tick per row of `stimuli`, shape (n, 16); return spikes of the same shape.

        Raises
        ------
        StimulusError
            As `FixedNetwork.run`.
        FixedPointError
            If the levels come to a number that does not fit its register.
        """
        levels = np.empty((len(np.atleast_1d(np.asarray(stimuli))), N_MODULATORS))
        state = self._host.state.copy()
        _relax(state, levels)
        spikes = self.network.run(stimuli, quantised_modulation(self.network.modulation(levels)))
        self._host.state[:] = state  # only now: a refused call leaves everything as it was
        return spikes

    def add_reward(self, amount: float) -> None:
        """Deliver a reward: dopamine moves by reward - running baseline, which then moves towards the reward."""
        self._host.add_reward(amount)

    def add_stress(self, amount: float) -> None:
        """Add to cortisol, held to its range."""
        self._host.add_stress(amount)

    def boost_focus(self, amount: float) -> None:
        """Add to acetylcholine, held to its range."""
        self._host.boost_focus(amount)


@jit
def _relax(state: State, levels: NDArray[np.float64]) -> None:
    """Write down the levels of as many ticks as `levels` has rows, and let them relax after each."""
    block = state[0]
    for k in range(levels.shape[0]):
        for m in range(levels.shape[1]):
            levels[k, m] = block["levels"][m]
        kernels._relax(block)
