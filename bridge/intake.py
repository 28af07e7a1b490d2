"""The source of a session and its streams of markers: found, opened, given to the loop, kept, and closed."""

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Marker, Source, StreamInfo
from neuromod.adapters.config import ZmqConfig
from neuromod.adapters.lsl import LslMarkers, LslSource
from neuromod.bridge import loop_state as rt
from neuromod.bridge import native
from neuromod.bridge.assembly import stimuli_stream
from neuromod.bridge.collector import Collector
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.keepers import Feeder, Keeper
from neuromod.bridge.lsl_list import markers_of, source_of
from neuromod.engine.errors import AdapterError, AdapterTimeoutError, NeuromodError

log = logging.getLogger(__name__)

_FIRST_PULL_S = 20.0
_TELL_EVERY_S = 60.0


class Intake:
    """The source of a session and its streams of markers; `open`, `attach`, `begin`, `threads`, `close`, in this order.

    Parameters
    ----------
    config : SessionConfig
        Says which.
    source : Source, optional
        In place of the one that the configuration names.

    Attributes
    ----------
    source : Source, optional
        None where stimuli messages are the source.
    markers : list of LslMarkers
        Those that were found.
    pulls : int
        What the loop pulls from: SOURCE_LSL, SOURCE_RING or SOURCE_ZMQ.
    scale : ndarray of float32, optional
        What the loop multiplies a sample by, where the source has not.
    """

    def __init__(self, config: SessionConfig, source: Source | None = None) -> None:
        self._config = config
        self.source = source
        self.markers: list[LslMarkers] = []
        self.pulls = rt.SOURCE_RING
        self.scale: NDArray[np.float32] | None = None
        self._info: StreamInfo | None = None
        self._collector: Collector | None = None
        self._uncertainty_s = math.nan

    # -- before the loop runs -----------------------------------------------------------------------------------------

    def open(self, *, is_native: bool, is_patient: bool = False) -> StreamInfo:
        """Find the source and the markers; return what the source is.

        Parameters
        ----------
        is_native : bool
            Whether the loop can pull from liblsl by itself.
        is_patient : bool
            Whether to go on looking, and to say so in the log, where one does not answer in time.

        Raises
        ------
        AdapterError
            One is not there, or not what was said.
        """
        find = _patiently if is_patient else _once
        # first, since a playback begins as soon as somebody listens to its signal
        for marker_config in self._config.markers:
            markers = markers_of(self._config, marker_config)
            try:
                (find if marker_config.required else _once)(markers.open)
            except AdapterError as error:
                if marker_config.required:
                    raise
                log.warning("markers: %s; the session goes on without", error)
                continue
            self.markers.append(markers)
        if isinstance(self._config.source, ZmqConfig) and self.source is None:
            self.pulls = rt.SOURCE_ZMQ
            self._info = stimuli_stream(self._config.source)
            return self._info
        if self.source is None:
            self.source = source_of(self._config)
        if isinstance(self.source, LslSource):
            find(partial(self.source.open, subscribed=False))
            if is_native:
                self.pulls, self.scale = rt.SOURCE_LSL, self.source.scale
        else:
            find(self.source.open)
        self._info = self.source.info
        return self._info

    @property
    def is_lsl(self) -> bool:
        """Whether the source is a stream of LSL, whoever pulls from it."""
        return isinstance(self.source, LslSource)

    @property
    def inlet(self) -> int:
        """Address of the inlet that the loop pulls from; 0 where it pulls from none."""
        if self.pulls != rt.SOURCE_LSL:
            return 0
        assert isinstance(self.source, LslSource)
        return self.source.handle

    def attach(self, collector: Collector) -> None:
        """Learn of the loop, and tell it the source's clock, before it runs."""
        self._collector = collector
        if isinstance(self.source, LslSource):
            self._follow_clock(*self.source.correction(), submit=False)

    # -- while it runs ------------------------------------------------------------------------------------------------

    def begin(self, stopped: threading.Event) -> None:
        """Have samples flow: last, so that none waits for us.

        Raises
        ------
        AdapterTimeoutError
            The sender does not answer.
        AdapterError
            The loop never came to its first pull: it is stuck in a library.
        """
        if not isinstance(self.source, LslSource):
            return
        if self.pulls == rt.SOURCE_LSL:
            # The loop's first pull subscribes. Were it done before the loop runs, samples would pile up while Python
            # starts it: 10 ms beside a busy thread. And were it done beside that pull, it would end the process.
            deadline = time.monotonic() + _FIRST_PULL_S
            while not native.get_word(self._shared, rt.PULLED):
                if stopped.wait(0.001):
                    return
                if time.monotonic() > deadline:
                    raise AdapterError(f"the loop has not pulled a sample within {_FIRST_PULL_S:g} s: it is stuck")
        self.source.subscribe()

    def threads(
        self, stop: threading.Event, on_failure: Callable[[Exception], None]
    ) -> list[tuple[str, Callable[[], None]]]:
        """Return the names of the threads that are to run now, and what they do until `stop` is set.

        Parameters
        ----------
        stop : Event
            Ends them.
        on_failure : callable
            Gets the error of a source that failed; what came before it is still played.
        """
        found = [("neuromod-source", keeper)] if (keeper := self._source_keeper(stop, on_failure)) else []
        return found + [("neuromod-markers", self._marker_keeper(markers, stop)) for markers in self.markers]

    def describe(self) -> dict[str, Any]:
        """Say what health says of the source."""
        info = self._info
        assert info is not None
        return {
            "name": info.name,
            "kind": self._config.source.kind,
            "content": info.kind,
            "n_channels": info.n_channels,
            "sampling_frequency": info.sampling_frequency,
            "hostname": info.hostname,
            "source_id": info.source_id,
            "clock_offset_s": float(self._numbers[rt.OFFSET]),
            "clock_uncertainty_s": self._uncertainty_s if math.isfinite(self._uncertainty_s) else None,
            "quirks": dict(self.source.quirks) if self.source is not None else {},
        }

    def clock(self) -> tuple[float, float]:
        """Return the correction of the source's clock and its uncertainty, in s; NaN where none is measured."""
        is_measured = math.isfinite(self._uncertainty_s)
        return float(self._numbers[rt.OFFSET]) if is_measured else math.nan, self._uncertainty_s

    def close(self) -> None:
        """Give all of them back; nothing may be pulling any more."""
        if self.source is not None:
            self.source.close()
        for markers in self.markers:
            markers.close()

    @property
    def _block(self) -> Any:
        assert self._collector is not None
        return self._collector.loop.block[0]

    @property
    def _shared(self) -> NDArray[np.int64]:
        shared: NDArray[np.int64] = self._block["shared"]
        return shared

    @property
    def _numbers(self) -> NDArray[np.float64]:
        numbers: NDArray[np.float64] = self._block["numbers"]
        return numbers

    def _source_keeper(
        self, stop: threading.Event, on_failure: Callable[[Exception], None]
    ) -> Callable[[], None] | None:
        assert self._collector is not None
        if self.pulls == rt.SOURCE_RING:
            assert self.source is not None
            is_paced = self._block["words"][rt.W_PACED]
            feeder = Feeder(
                self.source,
                self._collector.rings.samples,
                on_markers=self._collector.add_markers,
                on_lost=lambda: self._set_state(rt.LOST),
                on_reconnect=self._is_back,
                on_end=lambda error: self._has_ended(error, on_failure),
                on_clock=self._follow_clock if self.is_lsl else None,
                paced_hz=self.source.info.sampling_frequency / self._numbers[rt.RATE] if is_paced else 0.0,
            )
            return lambda: feeder.run(stop)
        if self.pulls == rt.SOURCE_LSL:
            keeper = Keeper(
                self.source,
                is_lost=lambda: native.get_word(self._shared, rt.STATE) == rt.LOST,
                on_clock=self._follow_clock,
                on_reconnect=lambda: self._send_inlet(stop),
            )
            return lambda: keeper.run(stop)
        return None

    def _marker_keeper(self, markers: LslMarkers, stop: threading.Event) -> Callable[[], None]:
        assert self._collector is not None
        collector, offset = self._collector, [0.0]

        def on_clock(offset_s: float, _: float) -> None:
            if math.isfinite(offset_s):
                offset[0] = offset_s

        def on_markers(found: list[Marker]) -> None:
            now = collector.now()
            for marker in found:
                collector.events.add_event(marker.name, marker.t + offset[0], marker.value, "lsl", now)

        on_clock(*markers.correction())
        keeper = Keeper(
            markers,
            is_lost=lambda: markers.is_lost,
            on_clock=on_clock,
            on_reconnect=lambda: None,
            on_markers=on_markers,
        )
        return lambda: keeper.run(stop)

    def _set_state(self, state: int) -> None:
        """Correct what the loop says of its source; only while no samples reach it, or it would say otherwise."""
        native.set_word(self._shared, rt.STATE, state)

    def _is_back(self) -> None:
        assert isinstance(self.source, LslSource)
        # no longer lost, although nothing has come yet: else the keeper would destroy the inlet that the loop pulls
        self._set_state(rt.STALLED)
        self._follow_clock(*self.source.correction())  # its host may have been started anew, with another clock

    def _send_inlet(self, stop: threading.Event) -> None:
        assert self._collector is not None
        self._is_back()
        while not self._collector.submit(rt.INLET, word=self.inlet) and not stop.wait(0.01):
            pass

    def _follow_clock(self, offset_s: float, uncertainty_s: float, *, submit: bool = True) -> None:
        if not math.isfinite(offset_s):
            return  # no answer: what was known holds
        self._uncertainty_s = uncertainty_s
        offset_s -= self._config.timing.device_delay_ms / 1000.0
        if submit:
            assert self._collector is not None
            self._collector.submit(rt.CLOCK, values=[offset_s])
        else:
            self._numbers[rt.OFFSET] = offset_s

    def _has_ended(self, error: Exception | None, on_failure: Callable[[Exception], None]) -> None:
        if error is not None:
            log.error("the source failed: %s", error, exc_info=not isinstance(error, NeuromodError))
            on_failure(error)
        native.set_word(self._shared, rt.SOURCE_ENDED, 1)


def _once(find: Callable[[], object]) -> None:
    find()


def _patiently(find: Callable[[], object]) -> None:
    """Call what finds a stream until it does; a signal ends the wait by an exception."""
    told = -math.inf
    while True:
        try:
            find()
            return
        except AdapterTimeoutError as error:
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                log.warning("%s. Goes on looking", error)
