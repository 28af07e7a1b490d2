"""What a board's registers must be after the ticks it was given: the twin, run behind it.

A board that was reset gets its state back from here. It is brought up to date only when asked, or every thousand ticks,
so that it costs the round trip nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.fixed_registers import MODULATION
from neuromod.engine.fixed_tick import fixed_run
from neuromod.engine.layout_types import State

_AT_ONCE = 1000


class Shadow:
    """The twin of a board.

    Parameters
    ----------
    state : ndarray of FIXED_BLOCK, shape (1,)
        What was loaded into the board; copied.
    """

    def __init__(self, state: State) -> None:
        self._state: State = state.copy()
        self._stimuli: list[NDArray[np.int16]] = []
        self._modulation: list[NDArray[np.int64]] = []
        self._last = np.array([self._state[0][name] for name in MODULATION], dtype=np.int64)
        self._advance()  # compiles, where that is to be done

    def follow(self, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None) -> None:
        """Take note of a tick that the board has run."""
        if modulation is not None:
            self._last = modulation
        self._stimuli.append(stimuli)
        self._modulation.append(self._last)
        if len(self._stimuli) >= _AT_ONCE:
            self._advance()

    @property
    def state(self) -> NDArray[Any]:
        """The registers after the last tick noted: a copy."""
        self._advance()
        return self._state.copy()

    def _advance(self) -> None:
        n = len(self._stimuli)
        fixed_run(
            self._state,
            np.array(self._stimuli, dtype=np.int16).reshape(n, 16),
            np.array(self._modulation, dtype=np.int64).reshape(n, len(MODULATION)),
            np.empty(n, dtype=np.uint16),
        )
        self._stimuli.clear()
        self._modulation.clear()
