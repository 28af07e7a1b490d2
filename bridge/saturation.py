"""Where a drive of a fixed-point network goes past its range: a loss of accuracy, which no board is to blame for."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.fixed_tick import count_saturated
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.layout_types import State

KEPT_MODULATION = np.zeros((0, 5), np.int64)
"""For ticks whose modulation is in the state already."""

ADVICE = (
    "fixed point ends there, and floating point does not. Lower gain and all that is in mV (bias, threshold, weights, "
    "inhibition) by the same factor, which leaves the network what it is; or stimuli and input_gain"
)


@dataclass
class Saturation:
    """Ticks whose drive is held to its range, by `count_saturated`."""

    n_ticks: int = 0
    """Looked at."""
    ticks: int = 0
    """With at least one channel."""
    channels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_CHANNELS, np.int64))
    """Ticks of each."""

    def add(self, state: State, stimuli: NDArray[np.int16], modulation: NDArray[np.int64]) -> int:
        """Look at ticks before they are run, and return at how many a drive is held; forms as of `fixed_run`."""
        found = count_saturated(state, stimuli, modulation, self.channels)
        self.n_ticks += len(stimuli)
        self.ticks += found
        return found

    @property
    def share(self) -> float:
        """Share of the ticks."""
        return self.ticks / self.n_ticks if self.n_ticks else 0.0

    def where(self) -> str:
        """Name the channels, each with its share of the ticks; empty where nothing is held."""
        shares = [f"channel {i} in {_percent(int(n) / self.n_ticks)}" for i, n in enumerate(self.channels) if n]
        return f"{', '.join(shares)} of ticks" if shares else ""

    def describe(self) -> str:
        """Say where, and what to do; empty where nothing is held."""
        return f"stimulus or drive goes past +-128 mV on {self.where()}: {ADVICE}" if self.ticks else ""

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "looked_at": self.n_ticks, "ticks": self.ticks, "share": self.share, "by_channel": self.channels.tolist(),
        }  # fmt: skip


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "under 0.01%"
