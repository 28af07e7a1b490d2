"""Markers and events, each given the tick that it belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.wire import EventMessage

_KEPT_TICKS = 65536  # ticks that an event may come late by; a minute at 1 kHz
_PATIENCE_S = 2.0


@dataclass(order=True)
class _Pending:
    t: float
    name: str = field(compare=False)
    value: Any = field(compare=False)
    source: str = field(compare=False)
    since: float = field(compare=False)


class EventAligner:
    """Finds the tick of each event: the first whose newest sample is not before it.

    An event waits until that tick is there. Where the source falls silent meanwhile, it is given the last tick after
    `patience_s`, so that nothing is lost.
    """

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._times: NDArray[np.float64] = np.empty(0, np.float64)
        self._ticks: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._pending: list[_Pending] = []

    def add_ticks(self, t_sample: NDArray[np.float64], ticks: NDArray[np.uint64]) -> None:
        """Note finished ticks, in order."""
        if len(ticks):
            self._times = np.concatenate([self._times, t_sample])[-_KEPT_TICKS:]
            self._ticks = np.concatenate([self._ticks, ticks])[-_KEPT_TICKS:]

    def add_event(self, name: str, t: float, value: Any, source: str, now: float) -> None:
        """Note an event at `t`, in seconds on the clock of the ticks; `now` is the time on ours."""
        self._pending.append(_Pending(t, name, value, source, now))

    def take(self, now: float) -> Iterable[EventMessage]:
        """Return the events whose tick is known, in the order of their times."""
        if not self._pending:
            return []
        newest = float(self._times[-1]) if len(self._times) else -np.inf
        due = [e for e in self._pending if e.t <= newest or now - e.since > self._patience_s]
        self._pending = [e for e in self._pending if not (e.t <= newest or now - e.since > self._patience_s)]
        return [EventMessage(e.name, e.t, self._tick_at(e.t), e.source, e.value) for e in sorted(due)]

    def _tick_at(self, t: float) -> int:
        if not len(self._times):
            return 0
        at = int(np.searchsorted(self._times, t, side="left"))
        return int(self._ticks[min(at, len(self._ticks) - 1)])
