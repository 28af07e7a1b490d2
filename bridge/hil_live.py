"""The loop at true time, or at a multiple of it, with a device under test beside it as any other peer.

The daemon runs as it does in a session, and publishes the stimuli of every tick; each message is handed to the device
as it comes. So round trips happen at the pace, and with the jitter, of a live loop.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pylsl

from neuromod.adapters.base import Chunk, Marker, Source, StreamInfo, create_source, empty_chunk
from neuromod.bridge.client import Client
from neuromod.bridge.config import SessionConfig, SocketsConfig
from neuromod.bridge.hil_compare import Comparison, Inputs
from neuromod.bridge.hil_reference import FixedReference, Modulation
from neuromod.bridge.service import Daemon
from neuromod.bridge.wire import SpikesMessage, StateMessage, StimuliMessage
from neuromod.engine.errors import AdapterTimeoutError

_SLICE_S = 0.0002  # how long answers are waited for before the loop's next message is looked for
_IDLE_S = 0.05
_READY_S = 30.0
_NO_MODULATION = np.zeros((1, 5), np.int64)
_BITS = 1 << np.arange(16)
_FREE = "tcp://127.0.0.1:*"


class HeldSource:
    """A source that gives nothing before it is released: nobody must miss its first tick.

    Parameters
    ----------
    source : Source
        Who gives then.
    """

    def __init__(self, source: Source) -> None:
        self._source, self.is_released = source, False

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        return self._source.info

    @property
    def ended(self) -> bool:
        """True once the last sample was read."""
        return self._source.ended

    @property
    def quirks(self) -> dict[str, int]:
        """Oddities met so far."""
        return self._source.quirks

    def open(self) -> None:
        """Open it."""
        self._source.open()

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples; none before the release."""
        if not self.is_released:
            time.sleep(min(timeout_s, 0.005))
            return empty_chunk(self.info.n_channels)
        return self._source.read(max_samples, timeout_s)

    def markers(self) -> list[Marker]:
        """Return the markers that became available."""
        return self._source.markers() if self.is_released else []

    def close(self) -> None:
        """Let go of everything held."""
        self._source.close()


def live_session(config: SessionConfig) -> SessionConfig:
    """Return the session as a run has it: all that is compared goes out, on free ports, and nothing is recorded."""
    publish = config.publish.model_copy(update={"spikes": "every", "stimuli": True, "state_hz": 10.0})
    sockets = SocketsConfig(ingest=_FREE, output=_FREE, control=_FREE)
    return config.model_copy(update={"publish": publish, "sockets": sockets, "record": None})


def run_live(
    config: SessionConfig,
    comparison: Comparison,
    *,
    speed: float,
    until_tick: int | None,
    on_progress: Callable[[int], None],
    source: Source | None = None,
) -> dict[str, Any]:
    """Play the recording through the daemon, and every tick through device and reference.

    Parameters
    ----------
    config : SessionConfig
        With the recording as its source.
    comparison : Comparison
        Started.
    speed : float
        Multiple of true time.
    until_tick : int, optional
        Stop after so many ticks.
    on_progress : callable
        Gets the number of ticks so far.
    source : Source, optional
        In place of the configuration's.

    Returns
    -------
    dict
        What the daemon counted.
    """
    held = HeldSource(source or create_source(config.source))
    session = live_session(config)
    with Daemon(session, source=held, speed=speed) as daemon, Client(output=daemon.addresses["output"]) as client:
        subscription = client.subscribe("stimuli", "spikes", "state")
        _await_subscription(subscription)
        held.is_released = True
        listener = _Listener(comparison, subscription)
        told = 0
        while not comparison.is_over and (until_tick is None or listener.n_ticks < until_tick):
            listener.turn()
            if listener.n_ticks - told >= 100:
                told = listener.n_ticks
                on_progress(told)
            if listener.is_idle and (daemon.stopped.is_set() or daemon.has_ended()):
                break
        while listener.is_idle is False and not comparison.is_over and until_tick is None:
            listener.turn()
        if daemon.failure is not None:
            raise daemon.failure
        counters = daemon.collector.counters()
    return {name: int(value) for name, value in counters.items()}


class _Listener:
    """Takes the loop's messages and the device's answers as they come."""

    def __init__(self, comparison: Comparison, subscription: Any) -> None:
        self.comparison, self._subscription = comparison, subscription
        self.n_ticks = 0
        self.is_idle = False
        self._spikes: SpikesMessage | None = None
        self._next = 0
        reference = comparison.reference
        self._modulation = Modulation(reference.network) if isinstance(reference, FixedReference) else None

    def turn(self) -> None:
        """Take what is there; wait a little where nothing is."""
        comparison = self.comparison
        under_way = comparison.n_answered < comparison.n_submitted
        try:
            message = self._subscription.receive(0.0 if under_way else _IDLE_S)
        except TimeoutError:
            message = None
        self.is_idle = message is None and not under_way
        if isinstance(message, SpikesMessage):
            self._spikes = message
        elif isinstance(message, StimuliMessage):
            self._take(message)
        if comparison.n_answered < comparison.n_submitted:
            comparison.collect(_SLICE_S if message is None else 0.0)
            if comparison.wants_state:
                comparison.settle()

    def _take(self, message: StimuliMessage) -> None:
        spikes, comparison = self._spikes, self.comparison
        if not message.is_step or message.tick < self._next:
            return
        comparison.trace.missed += message.tick - self._next
        self._next = message.tick + 1
        ring = comparison.ring
        while comparison.n_submitted - comparison.n_answered >= ring.length // 2 and not comparison.is_over:
            comparison.collect(_IDLE_S)
        words = _NO_MODULATION
        if self._modulation is not None:
            words = self._modulation.words(message.modulation[np.newaxis], np.array([message.step_ms]))
        k = comparison.n_submitted
        mine = spikes is not None and spikes.seq == message.seq
        fired = np.array([spikes.spikes @ _BITS], np.uint16) if mine else None  # type: ignore[union-attr]
        comparison.prepare(Inputs(np.array([message.tick]), message.values[np.newaxis], words, fired))
        ring.t_tick[k % ring.length] = spikes.t_tick if mine else np.nan  # type: ignore[union-attr]
        comparison.submit(k)
        self.n_ticks += 1


def clock() -> float:
    """Return seconds on the loop's own clock, on which `t_tick` is told."""
    return float(pylsl.local_clock())


def _await_subscription(subscription: Any) -> None:
    """Wait until messages come: from then on none is missed."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        try:
            if isinstance(subscription.receive(_IDLE_S), StateMessage):
                return
        except TimeoutError:
            continue
    raise AdapterTimeoutError(f"the daemon of this run published nothing within {_READY_S:g} s")
