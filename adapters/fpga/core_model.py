"""The network's hardware description, compiled and run in this process: the core alone, without a link or a board."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.adapters.fpga.verilated import HDL, verilate
from neuromod.engine.errors import AdapterError, AdapterTimeoutError
from neuromod.engine.fixed_registers import FIXED_BLOCK, REGISTERS
from neuromod.engine.layout import N_CHANNELS

ADDRESSES = np.concatenate([np.arange(each.address, each.address + each.size, dtype=np.uint16) for each in REGISTERS])
"""Address of every number, in the order in which they lie in a `FIXED_BLOCK`."""

_SIGNED = np.concatenate([np.full(each.size, each.signed) for each in REGISTERS])
_N_MODULATION = 5


class CoreRun(NamedTuple):
    """What ticks of the core gave.

    Attributes
    ----------
    spikes : ndarray of uint16, shape (n,)
        Bit i = channel i.
    clocks : ndarray of uint16, shape (n,)
        Clock cycles that each tick took, from `start` to `done`.
    words : ndarray of uint32, shape (n, 741), or None
        Every register after every tick, as read through the port, in the order of `ADDRESSES`.
    """

    spikes: NDArray[np.uint16]
    clocks: NDArray[np.uint16]
    words: NDArray[np.uint32] | None


class CoreModel:
    """The core, verilated.

    Parameters
    ----------
    seed : int
        What registers and memories hold at power-up: zeros for 0, otherwise bits drawn with that seed.
    sources : sequence of Path, optional
        Verilog to compile in place of `neuromod_core.v`, with a module `neuromod_core` of the same ports.

    Raises
    ------
    MissingExtraError
        If Verilator is not installed.
    AdapterError
        If it, or the C++ compiler, fails.
    """

    def __init__(self, *, seed: int = 0, sources: Sequence[Path] | None = None) -> None:
        self._core: ctypes.c_void_p | None = None
        self._library = verilate(
            "neuromod_core",
            [HDL / "neuromod_core.v"] if sources is None else sources,
            Path(__file__).with_suffix(".cpp"),
        )
        self._library.core_new.restype = ctypes.c_void_p
        self._library.core_run.restype = ctypes.c_uint32
        self._core = ctypes.c_void_p(self._library.core_new(ctypes.c_uint32(seed)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        if self._core is not None:
            self._library.core_delete(self._core)
            self._core = None

    def load(self, state: NDArray[Any]) -> None:
        """Write every register of a `FIXED_BLOCK` record, shape (1,)."""
        self.write(ADDRESSES, state_words(state))

    def read_state(self) -> NDArray[Any]:
        """Read every register: one record of `FIXED_BLOCK`, shape (1,)."""
        words = self.read(ADDRESSES)
        numbers = np.where(_SIGNED, words.view(np.int32), words).astype(np.int64)
        return numbers.view(FIXED_BLOCK)

    def write(self, addresses: ArrayLike, words: ArrayLike) -> None:
        """Write words of 32 bits to addresses, one after the other."""
        at, what = np.ascontiguousarray(addresses, np.uint16), np.ascontiguousarray(words, np.uint32)
        if at.shape != what.shape or at.ndim != 1:
            raise AdapterError(f"expected as many words as addresses, got {what.shape} and {at.shape}")
        self._library.core_write(self._core, ctypes.c_uint32(at.size), _pointer(at), _pointer(what))

    def read(self, addresses: ArrayLike) -> NDArray[np.uint32]:
        """Read the words at addresses."""
        at = np.ascontiguousarray(addresses, np.uint16)
        words = np.empty(at.shape, np.uint32)
        self._library.core_read(self._core, ctypes.c_uint32(at.size), _pointer(at), _pointer(words))
        return words

    def reset(self, after_clocks: int = 0) -> None:
        """Reset the core, so many clocks after a tick began; 0 begins none. Registers may hold anything after that."""
        self._library.core_reset(self._core, ctypes.c_uint32(after_clocks))

    def run(
        self, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None, *, keep_words: bool = False
    ) -> CoreRun:
        """Run one tick per row.

        Parameters
        ----------
        stimuli : ndarray of int16, shape (n, 16)
            Q8.8.
        modulation : ndarray of int64, shape (n, 5), optional
            Input gain, recurrent gain, threshold gain, inhibition and learning factor, written before each tick.
        keep_words : bool
            Read every register after every tick; 3 kB each.

        Raises
        ------
        AdapterError
            If a shape is another one.
        AdapterTimeoutError
            If a tick does not end.
        """
        rows = np.ascontiguousarray(stimuli, np.int16)
        if rows.ndim != 2 or rows.shape[1] != N_CHANNELS:
            raise AdapterError(f"expected stimuli of shape (n, {N_CHANNELS}), got {rows.shape}")
        settings = None if modulation is None else np.ascontiguousarray(modulation, np.int64)
        if settings is not None and settings.shape != (len(rows), _N_MODULATION):
            raise AdapterError(f"expected modulation of shape ({len(rows)}, {_N_MODULATION}), got {settings.shape}")
        spikes, clocks = np.empty(len(rows), np.uint16), np.empty(len(rows), np.uint16)
        words = np.empty((len(rows), ADDRESSES.size), np.uint32) if keep_words else None
        n_done = self._library.core_run(
            self._core,
            ctypes.c_uint32(len(rows)),
            _pointer(rows),
            None if settings is None else _pointer(settings),
            _pointer(spikes),
            _pointer(clocks),
            ctypes.c_uint32(ADDRESSES.size),
            _pointer(ADDRESSES),
            None if words is None else _pointer(words),
        )
        if n_done < len(rows):
            raise AdapterTimeoutError(f"the core did not end tick {n_done} of {len(rows)} within 4096 clocks")
        return CoreRun(spikes, clocks, words)


def state_words(state: NDArray[Any]) -> NDArray[np.uint32]:
    """The words that registers holding `state` are read as: shape (741,), in the order of `ADDRESSES`."""
    return np.ascontiguousarray(state).view(np.int64).reshape(-1).astype(np.uint32)


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
