"""What a board says beside what it should: the twin, run on the same ticks, and the daemon's own spikes."""

import logging
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer
from neuromod.bridge.saturation import ADVICE, KEPT_MODULATION, Saturation
from neuromod.engine.fixed_tick import fixed_tick, set_modulation
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.layout_types import State

log = logging.getLogger(__name__)

_REMEMBERED = 4096
_LONGEST_US = 100_000


@dataclass(frozen=True, slots=True)
class Divergence:
    """A tick at which board and twin differ.

    Parameters
    ----------
    tick : int
        Of the daemon.
    channels : tuple of int
        Whose spike or membrane differs.
    spikes, expected_spikes : int
        The board's, and the twin's; bit i = channel i.
    v, expected_v : tuple of int
        Membranes of these channels, Q8.16; empty where the board did not tell them.
    """

    tick: int
    channels: tuple[int, ...]
    spikes: int
    expected_spikes: int
    v: tuple[int, ...] = ()
    expected_v: tuple[int, ...] = ()


class Mirror:
    """Runs the twin beside a board, and compares bit for bit; spikes also with those of the daemon's network.

    Parameters
    ----------
    state : ndarray of FIXED_BLOCK, shape (1,)
        What the board was given; copied.

    Attributes
    ----------
    state : State
        The twin after the last tick.
    compared, diverging : int
        Ticks whose answer was compared, and that differed.
    first : Divergence or None
        The first that did.
    unanswered : int
        Ticks that the twin ran alone: their answer was lost, or the board away.
    saturation : Saturation
        Ticks whose drive is held to its range.
    """

    def __init__(self, state: State) -> None:
        self.state: State = state.copy()
        self.compared = self.diverging = self.unanswered = 0
        self.first: Divergence | None = None
        self.saturation = Saturation()
        self._theirs: OrderedDict[int, int] = OrderedDict()  # spikes of the daemon that no answer of the board has met
        self._ours: OrderedDict[int, int] = OrderedDict()  # and the other way round
        self._both = self._only_board = self._only_daemon = self._equal_ticks = self._met = 0

    def restart(self, state: State) -> None:
        """Begin anew from another state; what was counted stays."""
        self.state[:] = state
        self._theirs.clear()
        self._ours.clear()

    def follow(
        self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None, answer: Answer | None
    ) -> Divergence | None:
        """Run the twin by a tick and compare; return how they differ.

        Parameters
        ----------
        tick : int
            The daemon's number of it.
        stimuli : ndarray of int16, shape (16,)
            Q8.8.
        modulation : ndarray of int64, shape (5,), optional
            Where it was set.
        answer : Answer, optional
            What the board said; None where it was away.
        """
        if modulation is not None:
            set_modulation(self.state, modulation)
        if self.saturation.add(self.state, stimuli[np.newaxis], KEPT_MODULATION) and self.saturation.ticks == 1:
            channels = ", ".join(map(str, np.flatnonzero(self.saturation.channels)))
            log.warning("tick %d: stimulus or drive of channel %s goes past +-128 mV: %s", tick, channels, ADVICE)
        expected = fixed_tick(self.state, stimuli)
        if answer is None or answer.is_lost:
            self.unanswered += 1
            return None
        self.compared += 1
        self._meet(tick, answer.spikes, self._ours, self._theirs)
        differs = [i for i in range(N_CHANNELS) if (answer.spikes ^ expected) >> i & 1]
        v = self.state[0]["v"]
        if answer.v is not None:
            wrong = np.flatnonzero(answer.v != (v & answer.v_mask))
            differs = sorted({*differs, *(int(i) for i in wrong)})
        if not differs:
            return None
        self.diverging += 1
        told = () if answer.v is None else tuple(int(answer.v[i]) for i in differs)
        divergence = Divergence(
            *(tick, tuple(differs), answer.spikes, expected, told),
            () if answer.v is None else tuple(int(v[i]) & answer.v_mask for i in differs),
        )
        self.first = self.first or divergence
        return divergence

    def hear(self, tick: int, spikes: int) -> None:
        """Take note of what the daemon's network fired at a tick."""
        self._meet(tick, spikes, self._theirs, self._ours)

    def _meet(self, tick: int, spikes: int, own: "OrderedDict[int, int]", others: "OrderedDict[int, int]") -> None:
        other = others.pop(tick, None)
        if other is None:
            own[tick] = spikes
            if len(own) > _REMEMBERED:
                own.popitem(last=False)
            return
        board, daemon = (spikes, other) if own is self._ours else (other, spikes)
        self._met += 1
        self._equal_ticks += board == daemon
        self._both += (board & daemon).bit_count()
        self._only_board += (board & ~daemon).bit_count()
        self._only_daemon += (daemon & ~board).bit_count()

    def summary(self) -> dict[str, Any]:
        """Return what was found, as plain data."""
        spikes = 2 * self._both + self._only_board + self._only_daemon
        return {
            "compared": self.compared,
            "diverging": self.diverging,
            "unanswered": self.unanswered,
            "first_divergence": None if self.first is None else asdict(self.first),
            "saturated_drives": self.saturation.as_json(),
            "agreement_with_daemon": {
                "ticks": self._met,
                "equal_ticks": self._equal_ticks,
                "spikes_of_both": self._both,
                "of_board_alone": self._only_board,
                "of_daemon_alone": self._only_daemon,
                "agreement": 2 * self._both / spikes if spikes else None,
            },
        }


class Latencies:
    """A histogram of round trips in bins of a microsecond, up to 100 ms; longer ones share the last."""

    def __init__(self) -> None:
        self._bins = np.zeros(_LONGEST_US + 1, dtype=np.int64)
        self._max_ns = 0

    def add(self, took_ns: int) -> None:
        """Count one."""
        self._bins[min(took_ns // 1000, _LONGEST_US)] += 1
        self._max_ns = max(self._max_ns, took_ns)

    def percentile(self, percent: float) -> int | None:
        """Return the bound in us below or at which so many are; None without any."""
        below = np.cumsum(self._bins)
        if not below[-1]:
            return None
        return int(np.searchsorted(below, max(1, math.ceil(below[-1] * percent / 100.0))))

    def summary(self) -> dict[str, Any]:
        """Return count, percentiles in us, and the histogram: upper bounds in us, doubling, with counts."""
        n = int(self._bins.sum())
        if not n:
            return {"n": 0}
        histogram, low = [], 0
        while low <= _LONGEST_US:
            high = max(16, 2 * low)
            if count := int(self._bins[low:high].sum()):
                histogram.append([min(high, _LONGEST_US), count])
            low = high
        names = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
        return {
            "n": n,
            **{name: self.percentile(percent) for name, percent in names.items()},
            "max": self._max_ns // 1000,
            "histogram": histogram,
        }
