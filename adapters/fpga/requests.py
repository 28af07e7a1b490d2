"""Registers read and written: requests that are repeated until they are answered, several under way at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.pipeline import Pipeline
from neuromod.adapters.fpga.wire import Frame, Kind, Refusal
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError

Make = Callable[[int], bytes]
"""Makes the frame of a request, given its sequence."""

MAX_TRIES = 30
"""How often the same thing is sent to a board before the line counts as too bad."""

_RUNS = ((0x000, 0x085), (0x090, 0x0F0), (0x100, 0x300))  # addresses at which something lies
_NOTHING: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)


class Requests:
    """What is asked of a board beside ticks. To write or read a register twice changes nothing, so it may be repeated.

    Parameters
    ----------
    pipeline : Pipeline
        Gives out sequences, and knows what else is under way.
    write : callable
        Writes bytes.
    read : callable
        Reads, at most for the seconds that it is given, and hands frames to `take` among others.
    timeout_ns, lost_ns : int
        After which a request is repeated, and given up.

    Attributes
    ----------
    damaged : int
        Requests that the board refused as damaged.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        write: Callable[[bytes], None],
        read: Callable[[float], None],
        timeout_ns: int,
        lost_ns: int,
    ) -> None:
        self._pipeline, self._write, self._read = pipeline, write, read
        self._timeout_ns, self._lost_ns = timeout_ns, lost_ns
        self._asked: dict[int, tuple[int, int]] = {}  # by sequence: which request, bytes
        self._waiting: list[int] = []
        self._answers: dict[int, NDArray[np.uint32]] = {}
        self._tries: dict[int, int] = {}
        self._heard_ns = 0
        self.damaged = 0

    def make(self, requests: Sequence[Make]) -> list[NDArray[np.uint32]]:
        """Make requests; return the words that each was answered with, none for writes.

        Raises
        ------
        AdapterTimeoutError
            If there is no answer.
        AdapterLostError
            If one comes over damaged however often it is sent.
        AdapterError
            If the board refuses one.
        """
        self._asked.clear()
        self._answers.clear()
        self._tries.clear()
        self._waiting = list(range(len(requests)))[::-1]
        self._heard_ns = sent_ns = time.monotonic_ns()
        try:
            while len(self._answers) < len(requests):
                if self._send(requests):
                    sent_ns = time.monotonic_ns()
                self._read(1e-9 * self._timeout_ns)
                now_ns = time.monotonic_ns()
                if now_ns - self._heard_ns > self._lost_ns:
                    raise AdapterTimeoutError("the board does not answer; check its cable and power")
                if now_ns - max(sent_ns, self._heard_ns) >= self._timeout_ns:
                    # a late answer to these still counts: a slow board would otherwise be asked for ever
                    self._waiting += [which for which, size in self._asked.values() if size]
                    self._asked = {sequence: (which, 0) for sequence, (which, _) in self._asked.items()}
        finally:
            self._asked.clear()
        return [self._answers[which] for which in range(len(requests))]

    def take(self, frame: Frame) -> bool:
        """Take a frame where it answers a request; return whether it does."""
        if frame.sequence not in self._asked:
            return False
        if frame.kind == Kind.WORDS:
            answer = wire.unpack_words(frame.body)[1]
        elif frame.kind == Kind.WRITTEN:
            answer = _NOTHING
        elif frame.kind == Kind.REFUSED:
            reason, _ = wire.unpack_refused(frame.body)
            if reason != Refusal.DAMAGED:
                raise AdapterError(
                    f"the board refuses a request, reason {reason}: program it with this version's Verilog"
                )
            self.damaged += 1
            self._waiting.append(self._asked.pop(frame.sequence)[0])
            self._heard_ns = time.monotonic_ns()
            return True
        else:
            return False
        self._pipeline.settle_before(frame.sequence)
        self._answers[self._asked.pop(frame.sequence)[0]] = answer
        self._heard_ns = time.monotonic_ns()
        return True

    def _send(self, requests: Sequence[Make]) -> bool:
        """Send as many as there is room for, one at least; return whether any was."""
        has_sent = False
        while self._waiting:
            if self._waiting[-1] in self._answers:
                self._waiting.pop()
                continue
            tries = self._tries.get(self._waiting[-1], 0)
            if tries >= MAX_TRIES:  # a board that refuses it each time is not silent, and would never be given up
                raise AdapterLostError(
                    f"a request was sent {tries} times, and came over damaged or without an answer: the line is too "
                    "bad; check the cable, or lower the baud rate on both sides"
                )
            sequence = self._pipeline.sequence()
            frame = requests[self._waiting[-1]](sequence)
            under_way = sum(size for _, size in self._asked.values())
            if under_way and self._pipeline.bytes_under_way + under_way + len(frame) > wire.MAX_UNDER_WAY:
                break
            self._tries[self._waiting[-1]] = tries + 1
            self._asked[sequence] = self._waiting.pop(), len(frame)
            self._write(frame)
            has_sent = True
        return has_sent


def chunks() -> list[tuple[int, int]]:
    """Return addresses and counts of words that cover every register."""
    step = wire.MAX_WORDS
    return [(at, min(step, end - at)) for begin, end in _RUNS for at in range(begin, end, step)]


def writer(address: int, words: Sequence[int] | NDArray[Any]) -> Make:
    """Return what makes a request to write words."""
    return lambda sequence: wire.pack_write(sequence, address, words)


def reader(address: int, n: int) -> Make:
    """Return what makes a request to read words."""
    return lambda sequence: wire.pack_read(sequence, address, n)
