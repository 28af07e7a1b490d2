"""Ticks for boards, their answers, what the twin says of them; and trouble on the way."""

import itertools
import time
from collections.abc import Callable

import numpy as np
from fpga_peer import Change
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer, Device
from neuromod.adapters.fpga.wire import Kind, decode
from neuromod.engine.fixed_tick import fixed_tick, set_modulation
from neuromod.engine.layout_types import State

Tick = tuple[NDArray[np.int16], NDArray[np.int64] | None]


def ticks(n: int, seed: int = 0, *, modulated: bool = True) -> list[Tick]:
    """Return ticks that make spikes, some with another modulation."""
    rng = np.random.default_rng(seed)
    made: list[Tick] = []
    for k in range(n):
        words = None
        if modulated and k % 5 == 0:
            words = np.array([65536 + 100 * (k % 9), 65536, 60000, 65536, 400 * (k % 11 - 5)], dtype=np.int64)
        made.append((rng.integers(-3000, 9000, 16).astype(np.int16), words))
    return made


def answers(device: Device, made: list[Tick], first: int = 0, ahead: int = 8, timeout_s: float = 20.0) -> list[Answer]:
    """Hand over ticks, so many under way, and return an answer to each; numbers wrap at 32 bits."""
    numbers = [(first + k) % 2**32 for k in range(len(made))]
    found: list[Answer] = []
    end, k = time.monotonic() + timeout_s, 0
    while len(found) < len(made):
        while k < len(made) and k - len(found) < ahead:
            device.submit(numbers[k], *made[k])
            k += 1
        found += device.poll(0.2)
        assert time.monotonic() < end, f"{len(found)} of {len(made)} answers: {device.counts}"
    assert [answer.tick for answer in found] == numbers
    return found


def differing(state: State, made: list[Tick], found: list[Answer]) -> list[int]:
    """Run the twin, and return the ticks at which an answer is another; those that are lost are none."""
    wrong = []
    for (stimuli, words), answer in zip(made, found, strict=True):
        if words is not None:
            set_modulation(state, words)
        spikes = fixed_tick(state, stimuli)
        if answer.is_lost:
            continue
        if answer.spikes != spikes or (answer.v is not None and (answer.v != state[0]["v"] & answer.v_mask).any()):
            wrong.append(answer.tick)
    return wrong


def at(*frames: int, change: Callable[[bytes], list[bytes]]) -> Callable[[int], Change]:
    """Return what makes trouble of the frames with these numbers, counted from now."""

    def from_now(begin: int) -> Change:
        return lambda index, data: change(data) if index - begin in frames else [data]

    return from_now


def of_ticks(*numbers: int, change: Callable[[bytes], list[bytes]]) -> Change:
    """Return what makes trouble of the ticks of our protocol, or the answers to them, with these numbers from now on.

    What is asked beside them, each second, goes through and is not counted.
    """
    count = itertools.count()

    def trouble(index: int, data: bytes) -> list[bytes]:
        frame = decode(data[:-1])
        is_tick = frame is not None and len(frame) > 1 and frame[1] in (Kind.TICK, Kind.TICK_DONE)
        return change(data) if is_tick and next(count) in numbers else [data]

    return trouble


def flipped(data: bytes) -> list[bytes]:
    """Return a frame with one bit flipped in its middle, but no zero made or lost."""
    k = next(k for k in range(len(data) // 2, len(data)) if data[k] not in (0, 1))
    return [data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :]]


def cut(data: bytes) -> list[bytes]:
    """Return a frame that lacks three bytes of its middle."""
    return [data[: len(data) // 2] + data[len(data) // 2 + 3 :]]


def gone(data: bytes) -> list[bytes]:
    """Return nothing."""
    return []


def doubled(data: bytes) -> list[bytes]:
    """Return a frame twice."""
    return [data, data]
