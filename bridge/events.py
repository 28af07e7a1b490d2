"""Markers and events, each given the tick that it belongs to."""

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.wire import EventMessage

_KEPT_TICKS = 65536  # ticks that an event may come late by; a minute at 1 kHz
_PATIENCE_S = 2.0
_STEP_BACK_S = 0.1  # less is jitter; more, and the clock of the source was set back


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
    `patience_s`, so that nothing is lost. Where the clock of the source was set back, the same time came twice: the
    newer is meant where it has been reached, else the older. Any thread may add events; one adds ticks and takes.
    """

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._times: NDArray[np.float64] = np.empty(0, np.float64)
        self._ticks: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._pending: list[_Pending] = []
        self._pending_lock = threading.Lock()

    def add_ticks(self, t_sample: NDArray[np.float64], ticks: NDArray[np.uint64]) -> None:
        """Note finished ticks, in order."""
        times = [self._times]
        newest = self._newest()
        while len(t_sample):
            # a stamp within jitter before its forerunner comes no sooner: the first tick at or after t is found by
            # the largest stamp so far
            rising = np.fmax(np.fmax.accumulate(t_sample), newest)
            back = np.flatnonzero(t_sample < rising - _STEP_BACK_S)
            n = int(back[0]) if len(back) else len(t_sample)
            times.append(rising[:n])
            t_sample, newest = t_sample[n:], -np.inf
        self._times = np.concatenate(times)[-_KEPT_TICKS:]
        self._ticks = np.concatenate([self._ticks, ticks])[-_KEPT_TICKS:]

    def add_event(self, name: str, t: float, value: Any, source: str, now: float) -> None:
        """Note an event at `t`, in seconds on the clock of the ticks; `now` is the time on ours."""
        with self._pending_lock:
            self._pending.append(_Pending(t, name, value, source, now))

    def take(self, now: float) -> Iterable[EventMessage]:
        """Return the events whose tick is known, in the order of their times; all of them where `now` is infinite."""
        newest = self._newest()
        due, waiting = list[_Pending](), list[_Pending]()
        with self._pending_lock:
            for event in self._pending:
                (due if event.t <= newest or now - event.since > self._patience_s else waiting).append(event)
            self._pending = waiting
        return [EventMessage(e.name, e.t, self._tick_at(e.t), e.source, e.value) for e in sorted(due)]

    def _newest(self) -> float:
        return float(self._times[-1]) if len(self._times) else -np.inf

    def _tick_at(self, t: float) -> int:
        if not len(self._times):
            return 0
        starts = [0, *(np.flatnonzero(np.diff(self._times) < 0) + 1).tolist(), len(self._times)]
        spans = list(itertools.pairwise(starts))
        covering = [(start, end) for start, end in spans if self._times[start] <= t <= self._times[end - 1]]
        start, end = (covering or spans)[-1]
        at = start + int(np.searchsorted(self._times[start:end], t, side="left"))
        return int(self._ticks[min(at, end - 1)])
