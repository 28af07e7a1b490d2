"""The loop at true time, or at a multiple of it, with a device under test beside it as any other peer.

Each message of stimuli is handed to the device as it comes. So round trips happen at the pace, and with the jitter, of
a live loop.
"""

import time
from collections.abc import Callable

import numpy as np
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil_compare import Comparison, Inputs
from neuromod.bridge.hil_loop import LoopProcess
from neuromod.engine.errors import AdapterError, AdapterTimeoutError

_SLICE_S = 0.0002  # how long answers are waited for before the loop's next message is looked for
_IDLE_MS = 20
_READY_S = 30.0
_SILENT_S = 30.0


def _layout(frame: wire.Frame, **formats: str) -> np.dtype[np.void]:
    """Dtype of a message of fixed layout; unpacking it by msgpack takes thirty times as long."""
    names = list(formats)
    offsets = [frame.offsets[name] for name in names]
    return np.dtype(
        {"names": names, "formats": list(formats.values()), "offsets": offsets, "itemsize": len(frame.template)}
    )


_SPIKES = _layout(wire.spikes_frame(), seq=">u8", tick=">u8", t_tick=">f8", spikes="<u2", flags=">u4")
_STIMULI = _layout(
    wire.stimuli_frame(), seq=">u8", tick=">u8", values="(16,)<f4", modulation="(5,)<f8", step_ms=">f8", flags=">u4"
)
_STOOD_STILL = int(wire.Flag.FILLER | wire.Flag.PAUSED)


def run_live(
    config: SessionConfig,
    comparison: Comparison,
    *,
    speed: float,
    until_tick: int | None,
    on_progress: Callable[[int], None],
) -> dict[str, int]:
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

    Returns
    -------
    dict
        What the daemon counted.

    Raises
    ------
    AdapterError
        If the loop fails, or falls silent.
    """
    with LoopProcess(config, speed) as loop, zmq.Context() as context, context.socket(zmq.SUB) as messages:
        messages.set_hwm(200_000)
        messages.linger = 0
        for topic in (wire.TOPIC_SPIKES, wire.TOPIC_STIMULI, wire.TOPIC_STATE):
            messages.subscribe(topic)
        messages.connect(loop.output)
        _await_subscription(messages)
        loop.release()
        listener = _Listener(comparison, messages)
        told, quiet_since = 0, time.monotonic()
        while not comparison.is_over and (until_tick is None or listener.n_ticks < until_tick):
            if listener.turn():
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _SILENT_S:
                raise AdapterTimeoutError(f"the loop published nothing for {_SILENT_S:g} s, and has not ended")
            elif loop.has_ended() and not messages.poll(_IDLE_MS):
                break
            if listener.n_ticks - told >= 100:
                told = listener.n_ticks
                on_progress(told)
        comparison.drain()  # before anything else is waited for: their round trips are still running
        loop.stop()
        return loop.counters


class _Listener:
    """Takes the loop's messages and the device's answers as they come."""

    def __init__(self, comparison: Comparison, messages: "zmq.Socket[bytes]") -> None:
        self.comparison, self._messages = comparison, messages
        self.n_ticks = 0
        self._spikes: NDArray[np.void] | None = None
        self._next = 0

    def turn(self) -> bool:
        """Take what is there, wait a little where nothing is; return whether the loop said anything."""
        comparison = self.comparison
        under_way = comparison.n_answered < comparison.n_submitted
        if not under_way and not self._messages.poll(_IDLE_MS):
            return False
        said = False
        try:
            topic, payload = self._messages.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            pass
        else:
            said = True
            if topic == wire.TOPIC_SPIKES:
                self._spikes = _read(payload, _SPIKES, "spikes")
            elif topic == wire.TOPIC_STIMULI:
                self._take(_read(payload, _STIMULI, "stimuli"))
        if comparison.n_answered < comparison.n_submitted:
            comparison.collect(0.0 if said else _SLICE_S)
            if comparison.wants_state:
                comparison.settle()
        return said

    def _take(self, message: NDArray[np.void]) -> None:
        tick, comparison = int(message["tick"]), self.comparison
        if int(message["flags"]) & _STOOD_STILL or tick < self._next:
            return
        comparison.trace.missed += tick - self._next
        self._next = tick + 1
        ring = comparison.ring
        while comparison.n_submitted - comparison.n_answered >= ring.length // 2 and not comparison.is_over:
            comparison.collect(_SLICE_S)
        words = comparison.reference.modulation_words(message["modulation"][np.newaxis], message["step_ms"][np.newaxis])
        spikes = self._spikes
        mine = spikes is not None and spikes["seq"] == message["seq"]
        fired = spikes["spikes"].astype(np.uint16)[np.newaxis] if mine else None  # type: ignore[index]
        k = comparison.n_submitted
        ring.t_tick[k % ring.length] = spikes["t_tick"] if mine else np.nan  # type: ignore[index]
        comparison.take_one(Inputs(np.array([tick]), message["values"][np.newaxis], words, fired))
        self.n_ticks += 1


def clock() -> float:
    """Return seconds on the loop's own clock, on which `t_tick` is told."""
    return float(pylsl.local_clock())


def _read(payload: bytes, layout: np.dtype[np.void], name: str) -> NDArray[np.void]:
    if len(payload) != layout.itemsize:
        raise AdapterError(f"expected {name} messages of {layout.itemsize} bytes, got {len(payload)}")
    return np.frombuffer(payload, layout)[0]  # type: ignore[no-any-return]


def _await_subscription(messages: "zmq.Socket[bytes]") -> None:
    """Wait until messages come: from then on none is missed."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if messages.poll(_IDLE_MS) and messages.recv_multipart()[0] == wire.TOPIC_STATE:
            return
    raise AdapterTimeoutError(f"the daemon of this run published nothing within {_READY_S:g} s")
