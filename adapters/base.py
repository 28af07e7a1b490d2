"""The one contract for signal that comes in: what a source is, and how the daemon finds one.

A source hands over samples with their stamps exactly as they are. Gaps, duplicates and backward steps are not decided
here but on the grid of the bridge, so that live and replayed decisions are the same. A new source is a class with the
members of `Source`, named in the entry-point group `neuromod.sources`; `neuromod.adapters.memory` is the example to
copy and `tests/conformance/` the suite to subclass.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters import plugins
from neuromod.engine.errors import AdapterError

ENTRY_POINT_GROUP = "neuromod.sources"

Kind = Literal["signal", "features"]

_MICROVOLTS = {
    "v": 1e6, "volt": 1e6, "volts": 1e6,
    "mv": 1e3, "millivolt": 1e3, "millivolts": 1e3,
    "uv": 1.0, "µv": 1.0, "μv": 1.0, "microvolt": 1.0, "microvolts": 1.0,
    "nv": 1e-3, "nanovolt": 1e-3, "nanovolts": 1e-3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a source says about its stream; complete once the source is open.

    Parameters
    ----------
    name : str
        Name of the stream, or of the recording.
    kind : {"signal", "features"}
        Regularly sampled raw signal, or one vector per bin of 1 to 100 ms.
    n_channels : int
        Channels of a signal, or length of a feature vector.
    sampling_frequency : float
        Samples, or vectors, per second, in Hz; may be fractional. 0 only in the answer of a discovery, for a stream of
        irregular rate.
    channel_names : tuple of str
        One per channel, unique.
    units : tuple of str
        One per channel: "uV" where the scale is known, else the word of the source, or "" where it says nothing.
    source_id, hostname : str
        Who sends, where that is known. Reconnection accepts only the same pair.
    stream_type : str
        Content type in the words of LSL ("EEG", "Markers", ...), or "".
    is_regular : bool
        Whether the stamps lie on the grid of `sampling_frequency`, but for gaps and jitter. False where the stream
        states no rate of its own: each sample then stands at its stamp, and `sampling_frequency` is what the
        configuration says of it.
    n_samples : int or None
        Samples in all, where the end is known.
    duration_s : float or None
        From the first sample to one period after the last, gaps included, in seconds.
    """

    name: str
    kind: Kind
    n_channels: int
    sampling_frequency: float
    channel_names: tuple[str, ...]
    units: tuple[str, ...]
    source_id: str = ""
    hostname: str = ""
    stream_type: str = ""
    is_regular: bool = True
    n_samples: int | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that happened: a TTL edge, a comment, a string on a marker stream.

    Parameters
    ----------
    t : float
        Stamp in seconds on the clock of the source.
    name : str
        What happened, or the line on which it happened.
    value : str, int, float or None
        What came with it, where anything did.
    """

    t: float
    name: str
    value: str | int | float | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive samples with their stamps.

    Parameters
    ----------
    samples : ndarray of float32, shape (n, n_channels), C-contiguous
        Microvolt where the unit is known. Non-finite values pass as they are.
    stamps : ndarray of float64, shape (n,)
        Seconds on the clock of the source; for a recording, from its start with the original gaps. A live source other
        than LSL, whose clock the daemon follows, stamps with `pylsl.local_clock`.
    """

    samples: NDArray[np.float32] = field(repr=False)
    stamps: NDArray[np.float64] = field(repr=False)

    def __len__(self) -> int:
        return int(self.stamps.shape[0])


class Source(Protocol):
    """A stream of samples from outside: live or recorded.

    Built from its configuration without touching anything outside; `open` does that. One thread uses a source.
    """

    @property
    def info(self) -> StreamInfo:
        """What the stream is. Raises AdapterError before `open`."""

    @property
    def ended(self) -> bool:
        """True once the last sample was read; never for a live stream that may return."""

    @property
    def quirks(self) -> dict[str, int]:
        """Oddities met so far, counted by name (segments, gaps, ...). An absent name means none."""

    def open(self) -> None:
        """Connect or open the file. A second call while open changes nothing.

        Raises
        ------
        AdapterError
            Where there is no such stream or recording, or it cannot be used; says what to do. A source that is played
            to its end and closed may be opened again, from the start.
        """

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples: at most `max_samples`, at least one unless the time ran out or the source ended.

        Parameters
        ----------
        max_samples : int
            At least 1. How the samples are split into chunks never changes them.
        timeout_s : float
            How long to wait for the first sample, in seconds. A recording never waits.
        """

    def markers(self) -> list[Marker]:
        """Return the markers that became available since the last call, in the order of their stamps.

        A recording makes a marker available with the first sample at or after it, and the rest at its end.
        """

    def close(self) -> None:
        """Let go of everything held. Safe to call twice."""


def empty_chunk(n_channels: int) -> Chunk:
    """Return a chunk of no samples."""
    return Chunk(np.empty((0, n_channels), np.float32), np.empty(0, np.float64))


def create_source(config: Any) -> Source:
    """Build the source that a configuration describes, without opening it.

    Parameters
    ----------
    config : SourceConfig
        Anything with a `kind` that names an entry point of the group `neuromod.sources`; the object behind it is called
        with the configuration.

    Raises
    ------
    ConfigError
        If no installed source has this kind, or its module cannot be imported.
    """
    built: Source = plugins.create(ENTRY_POINT_GROUP, "source", config)
    return built


def open_source(config: Any) -> Source:
    """Build and open the source that a configuration describes.

    Raises
    ------
    ConfigError
        As `create_source`.
    AdapterError
        As `Source.open`; the half-open source is closed again.
    """
    source = create_source(config)
    try:
        source.open()
    except BaseException:
        source.close()
        raise
    return source


def not_open(name: str) -> AdapterError:
    """Return the error of a source that is used before `open`."""
    return AdapterError(f"{name} is not open; call open() first, or use open_source()")


def unique_names(names: Iterable[str | None]) -> tuple[str, ...]:
    """Return usable channel names: empty ones become ch1, ch2, ...; a repeated one gets its place added.

    Examples
    --------
    >>> unique_names(["Fz", "", "Fz"])
    ('Fz', 'ch2', 'Fz_3')
    """
    taken: dict[str, None] = {}
    for i, name in enumerate(names):
        word = (name or "").strip() or f"ch{i + 1}"
        while word in taken:
            word = f"{word}_{i + 1}"
        taken[word] = None
    return tuple(taken)


def microvolts_per(unit: str) -> float | None:
    """Return how many microvolts one of this unit is, or None where it is not a known voltage.

    Examples
    --------
    >>> microvolts_per("mV")
    1000.0
    """
    return _MICROVOLTS.get(unit.strip().casefold())
