"""A board in Python: the twin behind a pty, with trouble to be switched on. The host's side is what it tests."""

import os
import pty
import select
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from naive.board import PLACES
from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.wire import Frame, Kind, Refusal, TickDone
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_tick import fixed_tick, set_modulation

CLOCKS = 321


class _Refusing(wire.Parser):
    """Keeps what was dropped, since a board answers that too."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[bytes] = []

    def drop(self, raw: bytes) -> None:
        super().drop(raw)
        self.raw.append(raw)


class TwinBoard:
    """What a board does with frames of our protocol.

    Attributes
    ----------
    stuck : dict of int to int
        Bits that come out wrong of what is written, by address.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        self._image = image
        self.version = wire.VERSION | 16 << 8 | 1 << 16
        self.magic = wire.MAGIC
        self.stuck: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Do as after power-up."""
        self.state = self._image.copy()
        self.boots = self.damaged = self.refused = 0
        self.history = [0, 0, 0, 0]
        self._parser = _Refusing()

    def feed(self, data: bytes) -> list[bytes]:
        """Take a frame, or what became of it; return the answers."""
        frames = self._parser.feed(data)
        answers = [self._damaged(raw) for raw in self._parser.raw if len(raw) > 8]
        self.damaged += len(self._parser.raw)
        self._parser.raw.clear()
        return answers + [self._answer(frame) for frame in frames]

    def _damaged(self, raw: bytes) -> bytes:
        body = wire.decode(raw) or raw[1:]
        return wire.pack_refused(int.from_bytes(body[2:4], "little"), Refusal.DAMAGED, self._next)

    @property
    def _next(self) -> int:
        return int(self.state[0]["tick"])

    def _answer(self, frame: Frame) -> bytes:
        if frame.kind == Kind.TICK:
            tick, stimuli, modulation = wire.unpack_tick(frame.body)
            if tick != self._next:
                self.refused += 1
                past = (tick - self._next) % 2**32 >= 2**31
                return wire.pack_refused(frame.sequence, Refusal.PAST if past else Refusal.FUTURE, self._next)
            if modulation is not None:
                set_modulation(self.state, modulation)
            self.history = [fixed_tick(self.state, stimuli), *self.history[:3]]
            done = TickDone(tick, CLOCKS, tuple(self.history), self.state[0]["v"].astype(np.int32))
            return wire.pack_tick_done(frame.sequence, done)
        if frame.kind == Kind.WRITE:
            address, words = wire.unpack_words(frame.body)
            for k, word in enumerate(words):
                self._write(address + k, int(word))
            return wire.pack_written(frame.sequence, address, len(words))
        if frame.kind == Kind.READ:
            address, n = wire.unpack_address(frame.body)
            return wire.pack_words(frame.sequence, address, [self._read(address + k) for k in range(n)])
        self.refused += 1
        return wire.pack_refused(frame.sequence, Refusal.KIND, self._next)

    def _read(self, address: int) -> int:
        own = [self.magic, self.version, 100_000_000, self.boots, self.damaged, self.refused, 0]
        if 0 <= address - wire.MAGIC_ADDRESS < len(own):
            return own[address - wire.MAGIC_ADDRESS]
        if address not in PLACES:
            return 0
        register, k = PLACES[address]
        return int(self.state[0][register.name].reshape(-1)[k])

    def _write(self, address: int, word: int) -> None:
        if address == wire.BOOTS_ADDRESS:
            self.boots = word
            return
        if address not in PLACES:
            return
        register, k = PLACES[address]
        word ^= self.stuck.get(address, 0)
        value = word & (1 << register.bits) - 1
        if register.signed and value >> (register.bits - 1):
            value -= 1 << register.bits
        if register.shape:
            self.state[0][register.name].reshape(-1)[k] = value
        else:
            self.state[0][register.name] = value


class BridgeBoard:
    """What a board does with bytes of SiliconBridge v3.0."""

    _SIZES = {0xAA: 33, 0xDD: 3, 0xEE: 2}

    def __init__(self, image: NDArray[Any]) -> None:
        self._image = image
        self.reset()

    def reset(self) -> None:
        """Do as after power-up."""
        self.state = self._image.copy()
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the answers."""
        self._buffer += data
        answers = []
        while self._buffer:
            kind = self._buffer[0]
            size = self._SIZES.get(kind, 1)
            if kind == 0xDE:
                size = 3 + 2 * self._buffer[2] if len(self._buffer) >= 3 else 3
            if len(self._buffer) < size:
                break
            body = bytes(self._buffer[1:size])
            del self._buffer[:size]
            if kind in self._SIZES or kind == 0xDE:
                answers.append(self._do(kind, body))
        return [answer for answer in answers if answer]

    def _do(self, kind: int, body: bytes) -> bytes:
        block = self.state[0]
        if kind == 0xAA:
            spikes = fixed_tick(self.state, np.frombuffer(body, ">i2").astype(np.int16))
            answer: bytes = (block["v"] >> 8).astype(">i2").tobytes() + spikes.to_bytes(2, "big") + b"\0\0"
            return answer
        if kind == 0xDD:
            block["learning_factor"] = np.frombuffer(body, ">i2").astype(np.int64)[0] << 16
        elif kind == 0xDE:
            for address, word in enumerate(np.frombuffer(body, ">i2", offset=2), body[0]):
                if address < 32:
                    block["gain" if address >= 16 else "threshold"][address % 16] = word
        elif kind == 0xEE:
            address = body[0]
            word = block["gain" if address >= 16 else "threshold"][address % 16] if address < 32 else 0
            return b"\xa6" + (int(word) & 0xFFFF).to_bytes(2, "big")
        return b""


Change = Callable[[int, bytes], list[bytes]]
"""Makes of a numbered frame, or answer, what arrives of it: pieces that are handed on one after the other."""


def _as_it_is(index: int, data: bytes) -> list[bytes]:
    return [data]


class Peer:
    """A board behind a pty, served by a thread of its own.

    Attributes
    ----------
    incoming, outgoing : Change
        Trouble. Of SiliconBridge, what arrives in one piece counts as a frame.
    """

    def __init__(self, folder: Path, board: TwinBoard | BridgeBoard | None = None, name: str = "board") -> None:
        self.board = TwinBoard(FixedNetwork().state) if board is None else board
        fixed_tick(FixedNetwork().state, np.zeros(16, dtype=np.int16))  # compiles before it is waited for
        self.path = str(folder / name)
        self.incoming: Change = _as_it_is
        self.outgoing: Change = _as_it_is
        self.n_in = self.n_out = 0
        self.is_silent = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ends: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self.plug_in()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        self.unplug()

    def plug_in(self) -> None:
        """Make the device file."""
        with self._lock:
            self._ends = pty.openpty()
            tty.setraw(self._ends[1])
            os.set_blocking(self._ends[0], False)
            Path(self.path).symlink_to(os.ttyname(self._ends[1]))

    def unplug(self) -> None:
        """Have the device file vanish, under whoever has it open."""
        with self._lock:
            if self._ends is not None:
                Path(self.path).unlink()
                for end in self._ends:
                    os.close(end)
            self._ends = None

    def reset(self) -> None:
        """Have the board do as after power-up, between two frames."""
        with self._lock:
            self.board.reset()

    def _serve(self) -> None:
        buffer = b""
        while not self._stop.is_set():
            with self._lock:
                ends = self._ends
            if ends is None or not select.select([ends[0]], [], [], 0.02)[0]:
                if ends is None:
                    time.sleep(0.001)
                continue
            with self._lock:
                if self._ends != ends:
                    continue
                try:
                    data, buffer = buffer + os.read(ends[0], 4096), b""
                    buffer = self._take(data, ends[0])
                except OSError:  # nobody has it open
                    time.sleep(0.001)

    def _write(self, fd: int, data: bytes) -> None:
        while data and not self._stop.is_set():
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # the host does not read as fast as it asks
                select.select([], [fd], [], 0.01)

    def _take(self, buffer: bytes, fd: int) -> bytes:
        if isinstance(self.board, TwinBoard):
            *frames, rest = buffer.split(b"\0")
            frames = [frame + b"\0" for frame in frames]
        else:
            frames, rest = [buffer], b""
        for frame in frames:
            pieces = self.incoming(self.n_in, frame)
            self.n_in += frame != b"\0"
            for piece in pieces:
                for answer in self.board.feed(piece):
                    out = self.outgoing(self.n_out, answer)
                    self.n_out += 1
                    for part in out if not self.is_silent else []:
                        self._write(fd, part)
        return rest
