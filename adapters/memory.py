"""A source in memory: the reference of the contract, and the example to copy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.adapters.base import Chunk, Kind, Marker, StreamInfo, empty_chunk, not_open
from neuromod.engine.errors import ConfigError

# A step back by more than this, in seconds of recording, is a clock that was set back; less is jitter.
CLOCK_RESET_S = 1.0
# A pause is played at its length. One longer than this, in seconds of recording, is a clock that was set forward, for
# which nobody waits: the stamps stay as they are, and the pace goes on.
LONGEST_PAUSE_S = 600.0


class MemorySource:
    """Arrays, played as any other source.

    Parameters
    ----------
    samples : array_like, shape (n, n_channels)
        Converted to float32.
    sampling_frequency : float
        Samples per second, in Hz.
    stamps : array_like of float64, shape (n,), optional
        Seconds on the clock of the source, in any order. By default sample i is at i / sampling_frequency.
    markers : sequence of Marker
        Handed over when the samples reach them.
    kind : {"signal", "features"}
        What the samples are.
    name, channel_names, units, source_id, hostname, stream_type, is_regular : optional
        As in `StreamInfo`.
    """

    def __init__(
        self,
        samples: ArrayLike,
        sampling_frequency: float,
        *,
        stamps: ArrayLike | None = None,
        markers: Sequence[Marker] = (),
        kind: Kind = "signal",
        name: str = "memory",
        channel_names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        source_id: str = "",
        hostname: str = "",
        stream_type: str = "",
        is_regular: bool = True,
    ) -> None:
        array = np.ascontiguousarray(samples, np.float32)
        if array.ndim != 2 or array.shape[1] == 0:
            raise ConfigError(f"samples must have the shape (n, n_channels), n_channels at least 1; got {array.shape}")
        if not (np.isfinite(sampling_frequency) and sampling_frequency > 0):
            raise ConfigError(f"sampling_frequency must be a positive number of Hz, got {sampling_frequency}")
        n, n_channels = array.shape
        if stamps is None:
            stamps = np.arange(n, dtype=np.float64) / sampling_frequency
        self._samples = array
        self._stamps: NDArray[np.float64] = np.ascontiguousarray(stamps, np.float64)
        if self._stamps.shape != (n,):
            raise ConfigError(f"stamps must be one per sample: expected shape ({n},), got {self._stamps.shape}")
        names = tuple(channel_names or (f"ch{i + 1}" for i in range(n_channels)))
        unit_words = tuple(units or ("uV" if kind == "signal" else "",) * n_channels)
        for what, words in (("channel_names", names), ("units", unit_words)):
            if len(words) != n_channels:
                raise ConfigError(f"{what} must be one per channel: expected {n_channels}, got {len(words)}")
        self._info = StreamInfo(
            name=name,
            kind=kind,
            n_channels=n_channels,
            sampling_frequency=float(sampling_frequency),
            channel_names=names,
            units=unit_words,
            source_id=source_id,
            hostname=hostname,
            stream_type=stream_type,
            is_regular=is_regular,
            n_samples=n,
            duration_s=sum(float(np.ptp(piece)) + 1.0 / sampling_frequency for piece in self._pieces()),
        )
        self._track = MarkerTrack(markers, self._reached_at(markers))
        self._position = 0
        self._is_open = False

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        self._check_open()
        return self._info

    @property
    def ended(self) -> bool:
        """True once every sample was read."""
        return self._is_open and self._position >= len(self._stamps)

    @property
    def quirks(self) -> dict[str, int]:
        """Nothing is odd about arrays."""
        return {}

    def open(self) -> None:
        """Begin at the first sample."""
        if not self._is_open:
            self._is_open = True
            self._position = 0
            self._track.rewind()

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples at once."""
        self._check_open()
        start, stop = self._position, min(self._position + max_samples, len(self._stamps))
        if start >= stop:
            return empty_chunk(self._info.n_channels)
        self._position = stop
        stamps = self._stamps[start:stop].copy()
        self._track.reach(stop - 1)
        return Chunk(self._samples[start:stop].copy(), stamps)

    def markers(self) -> list[Marker]:
        """Return the markers that the samples reached since the last call."""
        self._check_open()
        return self._track.take(everything=self.ended)

    def close(self) -> None:
        """Nothing is held."""
        self._is_open = False

    def _pieces(self) -> list[NDArray[np.float64]]:
        """Return the stamps, split where the clock of the source was set back."""
        if not len(self._stamps):
            return []
        return np.split(self._stamps, np.flatnonzero(np.diff(self._stamps) < -CLOCK_RESET_S) + 1)

    def _reached_at(self, markers: Sequence[Marker]) -> list[float]:
        """Return for every marker the index of the first sample at or after it, on the piece of clock it is nearest."""
        if not len(self._stamps):
            return [0.0] * len(markers)
        spans, begin = [], 0
        for piece in self._pieces():
            spans.append((float(piece.min()), float(piece.max()), begin, np.maximum.accumulate(piece)))
            begin += len(piece)
        reached = []
        for marker in markers:
            _, _, begin, risen = min(spans, key=lambda span: max(span[0] - marker.t, marker.t - span[1], 0.0))
            reached.append(float(begin + np.searchsorted(risen, marker.t)))
        return reached

    def _check_open(self) -> None:
        if not self._is_open:
            raise not_open(f"memory source {self._info.name!r}")


class LoadedSource:
    """A recording small enough to be loaded whole when it is opened; a child says how, in `_load`.

    Parameters
    ----------
    what : str
        The file, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._memory: MemorySource | None = None
        self._quirks: dict[str, int] = {}

    def _load(self) -> MemorySource:
        """Read the file; count its oddities in `_quirks`."""
        raise NotImplementedError

    @property
    def _loaded(self) -> MemorySource:
        if self._memory is None:
            raise not_open(self._what)
        return self._memory

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        return self._loaded.info

    @property
    def ended(self) -> bool:
        """True once the last sample was read."""
        return self._memory is not None and self._memory.ended

    @property
    def quirks(self) -> dict[str, int]:
        """Oddities of the file, counted."""
        return dict(self._quirks)

    def open(self) -> None:
        """Load the file.

        Raises
        ------
        RecordingError
            If there is no such file, or it cannot be read, or it is not what the configuration says.
        """
        if self._memory is None:
            self._quirks = {}
            memory = self._load()
            memory.open()
            self._memory = memory

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples at once."""
        return self._loaded.read(max_samples, timeout_s)

    def markers(self) -> list[Marker]:
        """Return the markers that the samples reached since the last call."""
        return self._loaded.markers()

    def close(self) -> None:
        """Let the arrays go."""
        self._memory = None


class MarkerTrack:
    """The markers of a recording, handed over when its samples reach them.

    Parameters
    ----------
    markers : sequence of Marker
        In any order; equal ones keep theirs.
    reached_at : sequence of float
        For each, how far the samples must be: an index, a time, whatever `reach` is told.
    """

    def __init__(self, markers: Sequence[Marker], reached_at: Sequence[float]) -> None:
        order = sorted(range(len(markers)), key=lambda i: (reached_at[i], markers[i].t))
        self._markers = [markers[i] for i in order]
        self._reached_at = [reached_at[i] for i in order]
        self.rewind()

    def rewind(self) -> None:
        """Begin again."""
        self._next = 0
        self._reached = -np.inf

    def reach(self, place: float) -> None:
        """Note how far the samples are."""
        self._reached = place

    def take(self, *, everything: bool = False) -> list[Marker]:
        """Return the markers that were reached, or all that are left, each once."""
        start = self._next
        while self._next < len(self._markers) and (everything or self._reached_at[self._next] <= self._reached):
            self._next += 1
        return self._markers[start : self._next]
