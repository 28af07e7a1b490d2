"""How often is often enough: a bound on requests, and a log that repetition does not fill."""

import logging
import time
from collections.abc import Callable

_SAY_AGAIN_S = 60.0
_LINES_PER_S, _LINES_AT_ONCE = 2.0, 50.0
_MOST_KEPT = 256


class Bucket:
    """Lets through `rate_per_s` on average, and `burst` at once.

    Parameters
    ----------
    rate_per_s, burst : float
        Positive.
    clock : callable
        In seconds, monotonic.
    """

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._left, self._at = burst, clock()

    def take(self) -> bool:
        """Say whether one more may pass now, and count it where it may."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate_per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class SparingLog:
    """Says a thing the first time at once, and repetitions once a minute with their number.

    Things that are all different are bounded too: some lines a second, the rest is counted. So whoever knocks as often
    as the network allows, from as many addresses as there are, fills neither the log nor the memory.

    Parameters
    ----------
    log : logging.Logger
        Where it is said.
    clock : callable
        In seconds, monotonic.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}  # when, and how many were kept back since
        self._lines = Bucket(_LINES_PER_S, _LINES_AT_ONCE, clock)
        self._kept_back = 0

    def say(self, level: int, sentence: str, *same: str) -> None:
        """Log a sentence, unless one of the `same` words was logged within the last minute."""
        now = self._clock()
        said_at, repeated = self._said.pop(same, (-_SAY_AGAIN_S, 0))
        if now - said_at >= _SAY_AGAIN_S:
            if self._lines.take():
                also = f" ({repeated} times more before)" if repeated else ""
                if self._kept_back:
                    also += f" ({self._kept_back} other lines were kept back)"
                    self._kept_back = 0
                self._log.log(level, "%s%s", sentence, also)
            else:
                self._kept_back += 1
            said_at, repeated = now, 0
        else:
            repeated += 1
        self._said[same] = (said_at, repeated)  # the latest stands last
        while len(self._said) > _MOST_KEPT:
            self._said.pop(next(iter(self._said)))
