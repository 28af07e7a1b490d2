"""White noise on the drive of each channel, from random numbers whose state is part of the network's block."""

import numpy as np

from neuromod.engine.compiled import jit
from neuromod.engine.layout_types import Record

_LEFT, _RIGHT, _LAST = np.uint64(13), np.uint64(7), np.uint64(17)
_WORD = np.uint64(0xFFFF)
_16, _32, _48 = np.uint64(16), np.uint64(32), np.uint64(48)
# the sum of eight uniform words of 16 bits: its mean, and one over its standard deviation
_MEAN = np.int64(8 * 0xFFFF // 2)
_SCALE = np.float32(1.0 / (8 * (2.0**32 - 1.0) / 12.0) ** 0.5)
_MS = np.float32(1.0)

MAX_NOISE = 4.9
"""Greatest magnitude of a number, in standard deviations."""


@jit
def add_noise(block: Record, step_ms: np.float32) -> None:
    """Add to the drive of each channel a random number of standard deviation `noise` x sqrt(1 ms / step).

    With this measure the noise of a membrane does not depend on the length of the step, which is what makes it white.
    The sum is held to `drive_limit` again.

    Notes
    -----
    Each number is a sum of eight uniform ones (Irwin-Hall): mean 0, variance 1, excess kurtosis -0.15, never beyond
    4.9: close to a normal one, without its rare large values. The words come from a 64-bit xorshift generator a channel
    [1]_, which shifts alone, so that it has the same bits compiled or not.

    References
    ----------
    .. [1] Marsaglia (2003), J. Stat. Softw. 8(14).
    """
    n_channels = block["n_channels"] & -16
    drive, noise, random = block["drive"], block["noise"], block["random"]
    bound = block["drive_limit"]
    scale = _SCALE * np.float32(np.sqrt(_MS / step_ms))
    for i in range(n_channels):
        x = random[i]
        x ^= x << _LEFT
        x ^= x >> _RIGHT
        x ^= x << _LAST
        total = np.int64(x & _WORD) + np.int64(x >> _16 & _WORD) + np.int64(x >> _32 & _WORD) + np.int64(x >> _48)
        x ^= x << _LEFT
        x ^= x >> _RIGHT
        x ^= x << _LAST
        total += np.int64(x & _WORD) + np.int64(x >> _16 & _WORD) + np.int64(x >> _32 & _WORD) + np.int64(x >> _48)
        random[i] = x
        y = drive[i] + noise[i] * (np.float32(total - _MEAN) * scale)
        y = y if y < bound[i] else bound[i]
        drive[i] = y if y > -bound[i] else -bound[i]
