"""A board that speaks SiliconBridge v3.0, as boards that exist do; see `PROTOCOL.md`.

The protocol has no checksum, length, sequence or tick number. An answer that is too short shows as a timeout; whatever
else happens on the line shows only where what the board says is compared with a twin. So it may never be armed.
"""

import logging
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.line import Line
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError
from neuromod.engine.fixed_registers import MODULATION, REGISTERS
from neuromod.engine.layout import N_CHANNELS

log = logging.getLogger(__name__)

BYTES_OUT = 1 + 2 * N_CHANNELS
BYTES_BACK = 2 * N_CHANNELS + 4

_TICK, _REWARD, _WRITE, _READ, _WORD = 0xAA, 0xDD, 0xDE, 0xEE, 0xA6
_WRITABLE = ("threshold", "gain")  # words 0 to 15, and 16 to 31
_LEFT_BY_TICKS = (
    *("tick", "spikes", "inhibition_left", "coincidence_left", "v", "refractory_left", "since_spike"),
    *("pre_trace", "post_trace", "eligibility"),
)
_NEVER = 2**16 - 1
_LONGEST = 2 + 2 * 255  # of what a board may still wait for: a write of 255 words


class SiliconBridge:
    """A board that speaks SiliconBridge v3.0. It is a `Device`.

    Parameters
    ----------
    port : str
        Device file.
    baud : int
        Bits per second.
    depth : int
        Ticks under way at once. More than one asks of the board that it takes bytes in while it answers.
    timeout_ms : float
        How long an answer may take before it and those behind it are given up.
    lost_ms : float
        A board that says nothing for so long is gone.
    image : ndarray of FIXED_BLOCK, shape (1,), optional
        What the board was programmed with. Without, that is taken to be the parameters and weights of the first state
        that is loaded, and the ticks to have left nothing yet.

    Attributes
    ----------
    latency_timer_ms : int or None
        Of the USB adapter, where there is one.
    """

    has_checksum = False

    def __init__(
        self,
        port: str,
        *,
        baud: int = 115_200,
        depth: int = 1,
        timeout_ms: float = 100.0,
        lost_ms: float = 1000.0,
        image: NDArray[Any] | None = None,
    ) -> None:
        self._port, self._baud, self._depth = port, baud, depth
        self._timeout_s, self._lost_s = 1e-3 * timeout_ms, 1e-3 * lost_ms
        self._image = None if image is None else image.copy()
        self._words: NDArray[np.int16] | None = None
        self._modulation = np.zeros(0, dtype=np.int64)
        self._line: Line | None = None
        self._buffer = bytearray()
        self._queue: deque[tuple[int, bytes]] = deque()
        self._under_way: deque[tuple[int, int]] = deque()  # tick, ns at which it was written
        self._next: int | None = None
        self._done: list[Answer] = []
        self._counts: dict[str, int] = {}
        self.latency_timer_ms: int | None = None

    @property
    def name(self) -> str:
        """Which one."""
        return f"SiliconBridge board at {self._port}"

    @property
    def counts(self) -> dict[str, int]:
        """Faults met so far, by name.

        timeouts: answers that were short, or did not come; lost: ticks given up with them; resynchronised: how often
        the line was emptied then; rewritten: words found changed after that; unexpected: bytes that answer nothing.
        """
        return dict(self._counts)

    def open(self) -> None:
        """Reach the board, and read a word from it.

        Raises
        ------
        AdapterError
            Where there is none, or it does not answer; says what to do.
        """
        self.close()
        self._line = Line(self._port, self._baud)
        self.latency_timer_ms = self._line.latency_timer_ms
        try:
            if self._resynchronise() is None:
                raise AdapterTimeoutError(
                    f"no SiliconBridge board answers at {self._port}: check that it is programmed and its power is on, "
                    f"that this is its port, and that it has {self._baud} baud"
                )
        except BaseException:
            self.close()
            raise

    def load(self, state: NDArray[Any]) -> None:
        """Write thresholds and input gains, and read them back; all else has to be in the board's image.

        The board itself has to be as after its reset: no word of the protocol can bring it there.

        Raises
        ------
        AdapterError
            If a word differs, by its name; or the state differs from the image in what the protocol does not carry.
        """
        self._refuse_what_is_not_carried(state)
        words = np.concatenate([state[0][name] for name in _WRITABLE]).astype(np.int16)
        self._settle()
        self._set_words(words)
        back = self._read_words()
        if back is None:
            raise AdapterTimeoutError(f"{self.name} does not tell what was written; check that it speaks version 3.0")
        if (back != words).any():
            wrong = [
                f"{_WRITABLE[k // N_CHANNELS]}[{k % N_CHANNELS}] is {back[k]} instead of {words[k]}"
                for k in np.flatnonzero(back != words)
            ]
            raise AdapterError(f"{self.name} does not hold what was written: {'; '.join(wrong[:4])}")
        self._words = words
        self._modulation = np.array([state[0][name] for name in MODULATION], dtype=np.int64)
        self._set_reward(int(self._modulation[-1]))
        self._next = int(state[0]["tick"])
        self._done.clear()

    def read_state(self) -> NDArray[Any]:
        """Say that the protocol cannot read it.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(
            "SiliconBridge reads thresholds and input gains alone: the state of the network stays unknown"
        )

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Hand over one tick; returns without waiting for it.

        Raises
        ------
        AdapterError
            If it is not the next one, or its modulation cannot be carried.
        AdapterLostError
            If the board is gone.
        """
        if self._next is not None and tick != self._next:
            raise AdapterError(
                f"expected tick {self._next}, got {tick}: ticks follow each other, or load a state first"
            )
        data = b"" if modulation is None else self._modulated(np.array(modulation, dtype=np.int64))
        self._next = (tick + 1) % 2**32
        self._queue.append((tick, data + bytes([_TICK]) + np.asarray(stimuli, dtype=">i2").tobytes()))
        self._write_due()

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return the answers that have come, in the order of their ticks; wait for the first one at most so long.

        Raises
        ------
        AdapterLostError
            If the board is gone.
        """
        end = time.monotonic() + timeout_s
        self._turn(timeout_s)
        while not self._done and (left_s := end - time.monotonic()) > 0:
            self._turn(left_s)
        done, self._done = self._done, []
        return done

    def fileno(self) -> int:
        """Return what to wait on for its answers; -1 where there is none."""
        return -1 if self._line is None else self._line.fileno()

    def close(self) -> None:
        """Let go of the line. Safe to call twice; it never raises."""
        if self._line is not None:
            self._line.close()
        self._line = None
        self._next = None
        self._done.clear()
        self._queue.clear()
        self._under_way.clear()
        self._buffer.clear()

    # -- ticks

    def _turn(self, timeout_s: float) -> None:
        if self._under_way:
            due_s = 1e-9 * (self._under_way[0][1] - time.monotonic_ns()) + self._timeout_s
            timeout_s = min(timeout_s, max(0.0, due_s))
        self._buffer += self._open_line().read(timeout_s)
        now_ns = time.monotonic_ns()
        while self._under_way and len(self._buffer) >= BYTES_BACK:
            tick, written_ns = self._under_way.popleft()
            words = np.frombuffer(bytes(self._buffer[:BYTES_BACK]), ">u2")
            del self._buffer[:BYTES_BACK]
            v = words[:N_CHANNELS].astype(np.int16).astype(np.int32) << 8
            self._done.append(Answer(tick, int(words[N_CHANNELS]), v, -256, now_ns - written_ns))
        if self._buffer and not self._under_way:
            self._count("unexpected", len(self._buffer))
            self._buffer.clear()
        if self._under_way and now_ns - self._under_way[0][1] >= 1e9 * self._timeout_s:
            self._give_up()
        self._write_due()

    def _write_due(self) -> None:
        while self._queue and len(self._under_way) < self._depth:
            tick, data = self._queue.popleft()
            self._under_way.append((tick, time.monotonic_ns()))
            self._open_line().write(data)

    def _give_up(self) -> None:
        """Nobody knows which of the ticks under way were run: all are lost. Begin again on an empty line."""
        self._count("timeouts")
        self._count("lost", len(self._under_way))
        self._done += [Answer(tick, 0, is_lost=True) for tick, _ in self._under_way]
        self._under_way.clear()
        words = self._resynchronise()
        if words is None:
            raise AdapterLostError(f"{self.name} does not answer any more; check its cable and power")
        self._count("resynchronised")
        if self._words is not None and (words != self._words).any():
            self._count("rewritten", int((words != self._words).sum()))
            self._set_words(self._words)

    def _resynchronise(self) -> NDArray[np.int16] | None:
        """Bring both sides to the beginning of something; return the words that the board holds, None without answer.

        Zeros complete what the board is waiting for, and mean nothing to it otherwise.
        """
        line = self._open_line()
        end = time.monotonic() + self._lost_s
        n_zeros = BYTES_OUT - 1
        while True:
            line.write(bytes(n_zeros))
            line.drain(self._quiet_s, self._lost_s)
            self._buffer.clear()
            words = self._read_words()
            if words is not None or time.monotonic() > end:
                return words
            n_zeros = _LONGEST

    @property
    def _quiet_s(self) -> float:
        """Silence after which nothing more is coming: the longest filling, an answer, and what USB adds."""
        return 0.02 + 10.0 * (_LONGEST + BYTES_BACK) / self._baud

    def _settle(self) -> None:
        """Wait until no tick is under way."""
        while self._under_way or self._queue:
            self._turn(self._timeout_s)

    # -- words

    def _set_words(self, words: NDArray[np.int16]) -> None:
        self._open_line().write(bytes([_WRITE, 0, len(words)]) + words.astype(">i2").tobytes())

    def _set_reward(self, learning_factor: int) -> None:
        self._open_line().write(bytes([_REWARD]) + ((learning_factor >> 16) & 0xFFFF).to_bytes(2, "big"))

    def _read_words(self) -> NDArray[np.int16] | None:
        """Return the 32 words that can be read; None where the board does not answer as it should."""
        line = self._open_line()
        found = []
        for address in range(2 * N_CHANNELS):
            line.write(bytes([_READ, address]))
            answer, end = b"", time.monotonic() + self._timeout_s
            while len(answer) < 3 and (left_s := end - time.monotonic()) > 0:
                answer += line.read(left_s)
            if len(answer) != 3 or answer[0] != _WORD:
                return None
            found.append(int.from_bytes(answer[1:], "big", signed=True))
        return np.array(found, dtype=np.int16)

    def _modulated(self, words: NDArray[np.int64]) -> bytes:
        """Return what sets the modulation of a tick, nothing where it stays."""
        if self._modulation.size:
            others = [
                name for name, word, held in zip(MODULATION[:-1], words, self._modulation, strict=False) if word != held
            ]
            if others:
                raise AdapterError(
                    f"SiliconBridge cannot change {', '.join(others)} of a running board; use a session whose "
                    "modulators stay at their baseline, or a board that speaks our protocol"
                )
            if words[-1] == self._modulation[-1]:
                return b""
        _check_learning_factor(int(words[-1]))
        self._modulation = words
        return bytes([_REWARD]) + ((int(words[-1]) >> 16) & 0xFFFF).to_bytes(2, "big")

    def _refuse_what_is_not_carried(self, state: NDArray[Any]) -> None:
        if self._image is None:
            self._image = state.copy()
            for name in _LEFT_BY_TICKS:
                self._image[0][name] = _NEVER if name == "since_spike" else 0
        carried = (*_WRITABLE, "learning_factor", "tick")  # the board knows no number of a tick: any will do
        differing = [
            each.name
            for each in REGISTERS
            if each.name not in carried and (state[0][each.name] != self._image[0][each.name]).any()
        ]
        if differing:
            raise AdapterError(
                f"SiliconBridge cannot write {', '.join(differing)}: program the board with images of this very "
                "network, and begin after its reset"
            )
        _check_learning_factor(int(state[0]["learning_factor"]))

    def _count(self, what: str, n: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + n

    def _open_line(self) -> Line:
        if self._line is None:
            raise AdapterError(f"{self.name} is not open: call open first")
        return self._line


def _check_learning_factor(word: int) -> None:
    if word % (1 << 16):
        raise AdapterError(
            f"SiliconBridge carries a learning factor in steps of 1/256, not {word / 2**24:g}; switch learning off, or "
            "use a board that speaks our protocol"
        )
