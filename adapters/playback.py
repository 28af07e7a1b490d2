"""Any source as a true Lab Streaming Layer outlet, with its markers on an outlet of their own.

A sample of stamp s leaves at t0 + s / speed, with exactly that stamp, on a stream of nominal rate sampling_frequency
times speed, or of irregular rate where the original has none: gaps, jitter and resets are on the wire as they were. LSL
has no back-pressure: a consumer that falls behind by more than its buffer (or ours, 10 s) loses the oldest samples. So
"max" is a bounded rate that an ordinary consumer keeps up with, not an unbounded one; a recording played straight into
the daemon has no such limit.

A pause lasts as long as in the recording, over speed. Two steps are no time that went by, but a clock that was set: one
forward of more than LONGEST_PAUSE_S (600 s of recording), one back of more than CLOCK_RESET_S (1 s). There the stamps
stay what they are, and the next sample leaves one period after the last.

`python -m neuromod.adapters.playback CONFIG` plays in a process of its own, CONFIG being JSON of `PlaybackConfig` or
the path of a file of it. It writes one line of JSON when the outlet exists ({"ready": true, ...}) and one at its end
({"done": true, ...}). SIGINT and SIGTERM end it at once.
"""

import ctypes
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pylsl
from numpy.typing import NDArray
from pydantic import Field

from neuromod.adapters.base import Chunk, Marker, Source, StreamInfo, open_source
from neuromod.adapters.config import Positive, SourceConfig
from neuromod.adapters.lsl import marker_row
from neuromod.adapters.memory import CLOCK_RESET_S, LONGEST_PAUSE_S
from neuromod.engine.errors import AdapterTimeoutError, NeuromodError

# What "max" may be. A Python consumer of liblsl takes several times as much.
MAX_VALUES_PER_S = 20e6
MAX_SAMPLES_PER_S = 200e3
# Chunks read from the source at once.
_CHUNKS_A_READ = 8
# No sleep and no foreign call keeps a stop waiting for longer.
_SLICE_S = 0.05
_BUFFER_S = 10
_CHANNEL_TYPES = {"signal": "Ephys", "features": "Feature"}
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29

_push_chunk = pylsl.lib.lib["lsl_push_chunk_ftnp"]
_push_chunk.restype = ctypes.c_int32
_push_chunk.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_int32]


class PlaybackConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What to play, and how.

    Attributes
    ----------
    source : SourceConfig
        What to play.
    speed : float or "max"
        Multiple of true time.
    name, type, source_id : str, optional
        Of the outlet; by default the source's own name and type, and "playback:" before its source_id.
    chunk_ms : float
        How much signal travels together; at least one sample.
    consumer_timeout_s : float
        How long to wait for somebody to listen.
    start_lead_s : float
        From the moment that somebody listens to the first sample.
    drain_timeout_s : float
        How long to stay after the last sample, unless every listener leaves before.
    die_with_parent : bool
        End when the process that started this one dies (Linux).
    """

    source: SourceConfig
    speed: Positive | Literal["max"] = 1.0
    name: str | None = None
    type: str | None = None
    source_id: str | None = None
    chunk_ms: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    consumer_timeout_s: Annotated[float, Field(gt=0.0)] = 30.0
    start_lead_s: Annotated[float, Field(ge=0.0, le=60.0)] = 0.1
    drain_timeout_s: Annotated[float, Field(ge=0.0, le=600.0)] = 2.0
    die_with_parent: bool = False


@dataclass(frozen=True, slots=True)
class Outlet:
    """What can be found on the network once playback is ready; `nominal_rate` is 0 for a stream of irregular rate."""

    name: str
    source_id: str
    markers_source_id: str
    n_channels: int
    sampling_frequency: float
    nominal_rate: float
    speed: float
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class Played:
    """What was played.

    Parameters
    ----------
    n_samples, n_markers : int
        Sent.
    t0 : float
        Instant of stamp 0 on the LSL clock, in seconds.
    max_late_ms : float
        The longest that a chunk left after the stamp of its newest sample.
    was_stopped : bool
        Ended before the source did.
    """

    n_samples: int
    n_markers: int
    t0: float
    max_late_ms: float
    was_stopped: bool


def play(
    source: Source,
    *,
    speed: float | Literal["max"] = 1.0,
    name: str | None = None,
    type: str | None = None,
    source_id: str | None = None,
    chunk_ms: float = 1.0,
    consumer_timeout_s: float = 30.0,
    start_lead_s: float = 0.1,
    drain_timeout_s: float = 2.0,
    on_ready: Callable[[Outlet], None] = lambda outlet: None,
    stop: Callable[[], bool] = lambda: False,
) -> Played:
    """Play an open source to its end as an LSL outlet.

    Parameters
    ----------
    source : Source
        Open; it is not closed.
    speed, name, type, source_id, chunk_ms, consumer_timeout_s, start_lead_s, drain_timeout_s
        As in `PlaybackConfig`.
    on_ready : callable
        Called once, when the outlet can be found and before anybody is waited for.
    stop : callable
        Asked at every chunk, and every 50 ms of a wait, whether to end.

    Raises
    ------
    AdapterTimeoutError
        If nobody listens in time.
    """
    info = source.info
    times = _resolve_speed(speed, info)
    outlet, markers_outlet, facts = _make_outlets(info, times, name, type, source_id)
    on_ready(facts)
    deadline = time.monotonic() + consumer_timeout_s
    while not outlet.wait_for_consumers(_SLICE_S):
        if stop():
            return Played(0, 0, 0.0, 0.0, True)
        if time.monotonic() >= deadline:
            raise AdapterTimeoutError(
                f"nobody listened to the LSL stream {facts.name!r} within {consumer_timeout_s:g} s; start one, "
                f'for instance with source = {{ kind = "lsl", source_id = "{facts.source_id}" }}'
            )
    player = _Player(outlet, markers_outlet, times, pylsl.local_clock() + start_lead_s, stop)
    n_chunk = max(1, round(info.sampling_frequency * times * chunk_ms / 1000.0))
    while not source.ended and not player.is_stopped:
        chunk = source.read(n_chunk * _CHUNKS_A_READ, _SLICE_S)
        player.pending += source.markers()
        player.play(chunk, n_chunk, 1.0 / info.sampling_frequency)
        if stop():
            break
    if source.ended and not player.is_stopped:
        player.pending += source.markers()
        player.push_markers(math.inf)
        end = time.monotonic() + drain_timeout_s
        while outlet.have_consumers() and time.monotonic() < end and not stop():
            time.sleep(_SLICE_S)
    was_stopped = player.is_stopped or not source.ended
    return Played(player.n_samples, player.n_markers, player.t0, 1e3 * player.max_late_s, was_stopped)


class _Player:
    """Pushes chunks and markers when they are due."""

    def __init__(self, outlet: Any, markers_outlet: Any, speed: float, t0: float, stop: Callable[[], bool]) -> None:
        self._outlet = outlet
        self._markers_outlet = markers_outlet
        self._speed = speed
        self._stop = stop
        self._newest = -math.inf
        self._shift = 0.0  # where the source's clock was set, the pace goes on although the stamps jump
        self.t0 = t0
        self.pending: list[Marker] = []
        self.n_samples = 0
        self.n_markers = 0
        self.max_late_s = 0.0
        self.is_stopped = False

    def play(self, chunk: Chunk, n_chunk: int, period_s: float) -> None:
        """Push a few chunks, each when its newest sample is due."""
        if not len(chunk):
            return
        stamps = self.t0 + chunk.stamps / self._speed
        n_channels = chunk.samples.shape[1]
        jump_s = max(2.0 * n_chunk * period_s / self._speed, CLOCK_RESET_S / self._speed)
        # counted from the first sample, so that chunks stay in step with the blocks of whoever listens
        due_first = n_chunk - self.n_samples % n_chunk
        for start, stop in _cuts(stamps, due_first, n_chunk, jump_s):
            oldest, newest = float(stamps[start]), float(stamps[stop - 1])
            step_s = (oldest - self._newest) * self._speed
            if step_s < -CLOCK_RESET_S or LONGEST_PAUSE_S < step_s < math.inf:  # infinite at the first sample
                self._shift += self._newest + period_s / self._speed - oldest
            self._newest = newest
            if not self._wait_until(newest + self._shift):
                return
            self.push_markers(newest)
            part = chunk.samples[start:stop]
            _push_chunk(self._outlet.obj, part.ctypes.data, (stop - start) * n_channels, stamps[start:].ctypes.data, 1)
            self.n_samples += stop - start

    def push_markers(self, until: float) -> None:
        """Push the markers at or before an instant."""
        if not self.pending:
            return
        left = []
        for marker in self.pending:
            t = self.t0 + marker.t / self._speed
            if t <= until:
                self._markers_outlet.push_sample(marker_row(marker), t)
                self.n_markers += 1
            else:
                left.append(marker)
        self.pending = left

    def _wait_until(self, due: float) -> bool:
        late = pylsl.local_clock() - due
        while late < 0.0:
            if self._stop():
                self.is_stopped = True
                return False
            time.sleep(min(-late, _SLICE_S))
            late = pylsl.local_clock() - due
        self.max_late_s = max(self.max_late_s, late)
        return True


def _cuts(stamps: NDArray[np.float64], n_first: int, n_chunk: int, jump_s: float) -> list[tuple[int, int]]:
    """Return where to cut into chunks: after n_first samples, then every n_chunk, and where the stamps jump."""
    jumps = (np.flatnonzero(np.abs(np.diff(stamps)) > jump_s) + 1).tolist()
    edges = sorted({0, *range(n_first, len(stamps), n_chunk), *jumps, len(stamps)})
    return list(pairwise(edges))


def _resolve_speed(speed: float | Literal["max"], info: StreamInfo) -> float:
    if speed != "max":
        return float(speed)
    fs = info.sampling_frequency
    return max(1.0, min(MAX_VALUES_PER_S / (fs * info.n_channels), MAX_SAMPLES_PER_S / fs))


def _make_outlets(
    info: StreamInfo, speed: float, name: str | None, type_: str | None, source_id: str | None
) -> tuple[Any, Any, Outlet]:
    name = name or info.name
    source_id = source_id or f"playback:{info.source_id or info.name}"
    channel_type = _CHANNEL_TYPES[info.kind]
    rate = info.sampling_frequency * speed
    nominal = rate if info.is_regular else pylsl.IRREGULAR_RATE
    stream_type = type_ or info.stream_type or channel_type
    described = pylsl.StreamInfo(name, stream_type, info.n_channels, nominal, pylsl.cf_float32, source_id)
    described.set_channel_labels(list(info.channel_names))
    described.set_channel_units([_unit_word(unit) for unit in info.units])
    described.set_channel_types(channel_type)
    note = described.desc().append_child("playback")
    note.append_child_value("speed", repr(speed))
    note.append_child_value("sampling_frequency", repr(info.sampling_frequency))
    markers_id = f"{source_id}:markers"
    markers = pylsl.StreamInfo(f"{name} markers", "Markers", 2, pylsl.IRREGULAR_RATE, pylsl.cf_string, markers_id)
    markers.set_channel_labels(["name", "value"])
    # liblsl counts seconds for a regular stream, hundreds of samples for an irregular one
    buffered = _BUFFER_S if info.is_regular else math.ceil(_BUFFER_S * rate / 100.0)
    outlet = pylsl.StreamOutlet(described, chunk_size=0, max_buffered=buffered)
    markers_outlet = pylsl.StreamOutlet(markers)
    facts = Outlet(
        name=name,
        source_id=source_id,
        markers_source_id=markers_id,
        n_channels=info.n_channels,
        sampling_frequency=info.sampling_frequency,
        nominal_rate=nominal,
        speed=speed,
        duration_s=info.duration_s,
    )
    return outlet, markers_outlet, facts


def _unit_word(unit: str) -> str:
    return {"uV": "microvolts", "": "none"}.get(unit, unit)


class _StoppedBySignal(BaseException):
    """Raised by the signal handler, wherever the process happens to be."""


def main(argv: list[str] | None = None) -> int:
    """Play what a JSON configuration says; return the exit code: 0 also when stopped by a signal, 2 for an error."""
    arguments = sys.argv[1:] if argv is None else argv

    def stop_now(number: int, frame: Any) -> None:
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        raise _StoppedBySignal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_now)
    try:
        if len(arguments) != 1:
            print(
                "usage: python -m neuromod.adapters.playback CONFIG (JSON, or the path of a file of it)",
                file=sys.stderr,
            )
            return 2
        text = arguments[0]
        config = PlaybackConfig.model_validate_json(text if text.lstrip().startswith("{") else Path(text).read_text())
        _prepare_process(config)
        source = open_source(config.source)
        options = {key: getattr(config, key) for key in PlaybackConfig.model_fields if key not in _NOT_FOR_PLAY}
        played = play(source, on_ready=lambda outlet: _say({"ready": True, **asdict(outlet)}), **options)
        _say({"done": True, **asdict(played), "quirks": source.quirks})
        source.close()
    except _StoppedBySignal:
        return 0
    except (NeuromodError, pydantic.ValidationError, OSError) as error:
        print(f"playback: {error}", file=sys.stderr)
        return 2
    return 0


_NOT_FOR_PLAY = ("source", "die_with_parent")


def _say(facts: dict[str, Any]) -> None:
    # a parent that has gone away must not turn the end into a traceback
    try:
        print(json.dumps(facts), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_process(config: PlaybackConfig) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # nanoseconds: wakes 50 us earlier than by default, no privilege needed
    if config.die_with_parent:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
