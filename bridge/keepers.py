"""Threads that look after the sources while the loop runs: none of them is on the real-time path."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Marker, Source
from neuromod.bridge.ring import SampleRing, put_samples

log = logging.getLogger(__name__)

_READ_SAMPLES = 4096
_READ_S = 0.25  # no more at once: markers of a chunk wait for its samples to be played
_FULL_S = 0.002  # before a full ring is looked at again
_FREE_PART = 0.2  # of a ring, before the loop's pace leaves room for which it is not looked at either
_CLOCK_EVERY_S = 2.0
_RECONNECT_S = 0.1  # no longer: a session that is stopped meanwhile waits for it
_MARKERS_EVERY_S = 0.01


class Feeder:
    """Reads a source in Python and feeds the loop's ring: recordings, plug-ins, and LSL where liblsl is out of reach.

    Parameters
    ----------
    source : Source
        Open; only this thread uses it from now on.
    ring : SampleRing
        Where samples go; the feeder waits while it is full.
    on_markers : callable
        Gets the source's markers as they come, and for each how many samples were fed before the first one that is
        not before it.
    on_lost : callable
        Called each time that a live source was found gone.
    on_reconnect : callable
        Called each time that it came back.
    on_end : callable
        Called once, without or with the error that ended the source.
    on_clock : callable, optional
        Gets offset and uncertainty of a live source's clock, in seconds, every so often.
    paced_hz : float
        At how many samples per second the loop takes them; 0 for as fast as it can.
    """

    def __init__(
        self,
        source: Source,
        ring: SampleRing,
        on_markers: Callable[[list[Marker], list[int]], None],
        on_lost: Callable[[], None],
        on_reconnect: Callable[[], None],
        on_end: Callable[[Exception | None], None],
        on_clock: Callable[[float, float], None] | None = None,
        paced_hz: float = 0.0,
    ) -> None:
        self._source, self._ring = source, ring
        # beside a loop that keeps pace each waking is a disturbance: not before a good part of the ring is free
        self._wait_s = max(_FULL_S, _FREE_PART * len(ring.stamps) / paced_hz) if paced_hz else _FULL_S
        self._on_markers, self._on_end, self._on_clock = on_markers, on_end, on_clock
        self._on_lost, self._on_reconnect = on_lost, on_reconnect

    def run(self, stop: threading.Event) -> None:
        """Feed until the source ends or `stop` is set."""
        error: Exception | None = None
        fed, next_clock = 0, 0.0
        n_read = int(min(max(_READ_S * self._source.info.sampling_frequency, 1), _READ_SAMPLES))
        try:
            while not stop.is_set():
                chunk = self._source.read(n_read, 0.05)
                # markers first: they wait for their tick, which must not have passed unseen
                if markers := self._source.markers():
                    self._on_markers(markers, [fed + _first_at(chunk.stamps, m.t) for m in markers])
                done = 0
                while done < len(chunk) and not stop.is_set():
                    took = put_samples(self._ring, chunk.samples, chunk.stamps, done)
                    done += took
                    if not took:
                        stop.wait(self._wait_s)
                fed += done
                if self._source.ended:
                    break
                if getattr(self._source, "is_lost", False):
                    self._on_lost()
                    if self._source.reconnect(_RECONNECT_S):  # type: ignore[attr-defined]
                        self._on_reconnect()
                elif self._on_clock is not None and time.monotonic() >= next_clock:
                    self._on_clock(*self._source.correction())  # type: ignore[attr-defined]
                    next_clock = time.monotonic() + _CLOCK_EVERY_S
        except Exception as caught:  # of a plug-in it may be any
            error = caught
        self._on_end(error)


class Keeper:
    """Keeps a live stream: follows its clock, and reconnects to it, and to nothing else, when it was lost.

    Parameters
    ----------
    source : LslSource or LslMarkers
        Open.
    is_lost : callable
        Says whether the stream is gone; for the source of signal this is the loop's word.
    on_clock : callable
        Gets offset and uncertainty, in seconds.
    on_reconnect : callable
        Called after the stream came back.
    on_markers : callable, optional
        Gets the markers of a marker stream.
    """

    def __init__(
        self,
        source: Any,
        *,
        is_lost: Callable[[], bool],
        on_clock: Callable[[float, float], None],
        on_reconnect: Callable[[], None],
        on_markers: Callable[[list[Marker]], None] | None = None,
    ) -> None:
        self._source, self._is_lost = source, is_lost
        self._on_clock, self._on_reconnect, self._on_markers = on_clock, on_reconnect, on_markers

    def run(self, stop: threading.Event) -> None:
        """Keep the stream until `stop` is set."""
        next_clock = 0.0
        said_lost = False
        while not stop.wait(_MARKERS_EVERY_S if self._on_markers else 0.05):
            if self._is_lost():
                if not said_lost:
                    log.warning("%s: the stream is gone; waiting for the same source to return", self._source.info.name)
                    said_lost = True
                if self._source.reconnect(_RECONNECT_S):
                    log.warning("%s: the stream is back", self._source.info.name)
                    said_lost = False
                    self._on_reconnect()
                    next_clock = 0.0
                continue
            if self._on_markers and (markers := self._source.markers()):
                self._on_markers(markers)
            if time.monotonic() >= next_clock:
                offset, uncertainty = self._source.correction()
                if math.isfinite(offset):
                    self._on_clock(offset, uncertainty)
                next_clock = time.monotonic() + _CLOCK_EVERY_S


def _first_at(stamps: NDArray[np.float64], t: float) -> int:
    """Return the place of the first stamp that is not before `t`; stamps may step back."""
    later = np.flatnonzero(stamps >= t)
    return int(later[0]) if len(later) else len(stamps)


def ring_capacity(n_channels: int, sampling_frequency: float) -> int:
    """Return how many samples the feeder may be ahead: about half a second, in at most 64 MB."""
    most = max(2, 64_000_000 // (4 * n_channels))
    wanted = min(max(0.5 * sampling_frequency, 2.0), float(most))
    return 1 << int(np.log2(wanted))
