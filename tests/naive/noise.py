"""The noise once more: whole numbers of Python, cut to 64 bits where the generator's are."""

import math

import numpy as np

F = np.float32
ALL_BITS = 2**64 - 1
SCALE = F(1 / math.sqrt(8 * (2**32 - 1) / 12))  # eight uniform words, each of variance (2^32 - 1) / 12


class NaiveNoise:
    """The random numbers of one channel."""

    def __init__(self, state: int) -> None:
        self.state = state

    def draw(self, step: np.float32) -> np.float32:
        """Return a number of mean 0 and variance 1 ms / step."""
        words: list[int] = []
        for _ in range(2):
            word = self._word()
            words += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        return F(sum(words) - 8 * 0xFFFF // 2) * (SCALE * F(np.sqrt(F(1) / step)))

    def _word(self) -> int:
        """The next 64 bits: Marsaglia's xorshift by 13, 7 and 17."""
        x = self.state
        x = (x ^ x << 13) & ALL_BITS
        x = x ^ x >> 7
        self.state = (x ^ x << 17) & ALL_BITS
        return self.state


def seeded(seed: int) -> list[NaiveNoise]:
    """One generator a channel, as a network of this seed starts with them."""
    words = np.random.SeedSequence(seed).generate_state(32, np.uint64)
    return [NaiveNoise(int(word) | 1) for word in words[16:]]
