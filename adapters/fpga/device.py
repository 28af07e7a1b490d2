"""The one contract for what runs the fixed-point network outside this process: a board, a simulated one, the twin.

A device is handed ticks by number and answers them by number, in order. Several may be under way; who waits for which
is the caller's business. What it cannot answer it says, by `Answer.is_lost`, rather than leave it open for ever.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a device says to one tick.

    Parameters
    ----------
    tick : int
        Which.
    spikes : int
        Bit i = channel i. Valid where `is_lost` is false.
    v : ndarray of int32, shape (16,), or None
        Membranes, Q8.16; None where the protocol or a lost answer does not tell.
    v_mask : int
        Bits of `v` that the protocol carries: -1 for all, -256 where it drops the guard bits.
    round_trip_ns : int
        From the first byte written to the last byte of the answer read; 0 where the answer was lost.
    clocks : int
        Clock cycles of the device until the tick's spikes were known; 0 where it does not tell.
    is_lost : bool
        The tick was run, or has to be taken as run, and what it gave is not known.
    is_repaired : bool
        The answer was lost or a frame sent again; spikes are right, `v` may be None.
    """

    tick: int
    spikes: int
    v: NDArray[np.int32] | None = None
    v_mask: int = -1
    round_trip_ns: int = 0
    clocks: int = 0
    is_lost: bool = False
    is_repaired: bool = False


class Device(Protocol):
    """Runs the fixed-point network. One thread uses a device. Building one touches nothing; `open` does that."""

    @property
    def name(self) -> str:
        """Which one, in words for a person."""

    @property
    def has_checksum(self) -> bool:
        """Whether damage on the way is detected. A device without may never be armed for stimulation."""

    @property
    def counts(self) -> dict[str, int]:
        """Faults met so far, by name: damaged, lost, late, reordered, resent, reconnects, resets, ..."""

    def open(self) -> None:
        """Reach the device.

        Raises
        ------
        AdapterError
            Where there is none, or it does not answer, or speaks another version; says what to do.
        """

    def load(self, state: NDArray[Any]) -> None:
        """Write every register of a `FIXED_BLOCK` record, read it back, and compare.

        Raises
        ------
        AdapterError
            If a word differs, by its name; or the protocol cannot write what is asked for.
        """

    def read_state(self) -> NDArray[Any]:
        """Read every register: one record of `FIXED_BLOCK`, shape (1,). Waits until no tick is under way.

        Raises
        ------
        AdapterError
            If the protocol cannot read them.
        """

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Hand over one tick; returns without waiting for it.

        Parameters
        ----------
        tick : int
            Its number: one more than the last one's.
        stimuli : ndarray of int16, shape (16,)
            Q8.8.
        modulation : ndarray of int64, shape (5,), optional
            As from `fixed_network.quantised_modulation`, where they changed.

        Raises
        ------
        AdapterLostError
            If the device is gone. `close` and `open` begin anew.
        """

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return the answers that have come, in the order of their ticks; wait for the first one at most so long.

        Raises
        ------
        AdapterLostError
            If the device is gone.
        """

    def close(self) -> None:
        """Let go of everything held. Safe to call twice; it never raises."""
