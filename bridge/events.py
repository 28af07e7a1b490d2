"""Markers and events, each given the tick that it belongs to."""

import itertools
import threading
from collections import deque
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
        self._newest = -np.inf
        # times and ticks as they came; put together only for an event that is due, since ticks come all the time
        self._chunks: deque[tuple[NDArray[np.float64], NDArray[np.uint64]]] = deque()
        self._n_kept = 0
        self._pending: list[_Pending] = []
        self._pending_lock = threading.Lock()

    def add_ticks(self, t_sample: NDArray[np.float64], ticks: NDArray[np.uint64]) -> None:
        """Note finished ticks, in order."""
        while len(t_sample):
            # a stamp within jitter before its forerunner comes no sooner: the first tick at or after t is found by
            # the largest stamp so far
            rising = np.fmax(np.fmax.accumulate(t_sample), self._newest)
            back = np.flatnonzero(t_sample < rising - _STEP_BACK_S)
            n = int(back[0]) if len(back) else len(t_sample)
            if n:
                self._chunks.append((rising[:n], ticks[:n].copy()))
                self._n_kept += n
            self._newest = -np.inf if len(back) else float(rising[-1])
            t_sample, ticks = t_sample[n:], ticks[n:]
        while self._chunks and self._n_kept - len(self._chunks[0][0]) >= _KEPT_TICKS:
            self._n_kept -= len(self._chunks.popleft()[0])

    def add_event(self, name: str, t: float, value: Any, source: str, now: float) -> None:
        """Note an event at `t`, in seconds on the clock of the ticks; `now` is the time on ours."""
        with self._pending_lock:
            self._pending.append(_Pending(t, name, value, source, now))

    def take(self, now: float) -> Iterable[EventMessage]:
        """Return the events whose tick is known, in the order of their times; all of them where `now` is infinite."""
        due, waiting = list[_Pending](), list[_Pending]()
        with self._pending_lock:
            for event in self._pending:
                known = event.t <= self._newest or now - event.since > self._patience_s
                (due if known else waiting).append(event)
            self._pending = waiting
        if not due:
            return []
        times = np.concatenate([np.empty(0), *(chunk[0] for chunk in self._chunks)])[-_KEPT_TICKS:]
        ticks = np.concatenate([np.empty(0, np.uint64), *(chunk[1] for chunk in self._chunks)])[-_KEPT_TICKS:]
        return [EventMessage(e.name, e.t, _tick_at(e.t, times, ticks), e.source, e.value) for e in sorted(due)]


def _tick_at(t: float, times: NDArray[np.float64], ticks: NDArray[np.uint64]) -> int:
    """Find the first tick that is not before `t`; `times` rises but where the clock of the source was set back."""
    if not len(times):
        return 0
    starts = [0, *(np.flatnonzero(np.diff(times) < 0) + 1).tolist(), len(times)]
    spans = list(itertools.pairwise(starts))
    covering = [(start, end) for start, end in spans if times[start] <= t <= times[end - 1]]
    start, end = (covering or spans)[-1]
    at = start + int(np.searchsorted(times[start:end], t, side="left"))
    return int(ticks[min(at, end - 1)])
