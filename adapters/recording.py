"""Recordings of every format that neo and spikeinterface open, played as a source.

Read lazily, a quarter of a megabyte ahead. Segments keep the gaps between them where the file knows when each began; a
segment that begins before the one before it ended (the device's clock was reset) follows it at once, and is counted.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuromod.adapters.base import Chunk, Marker, Source, StreamInfo, empty_chunk, not_open
from neuromod.adapters.config import FeaturesConfig, RecordingConfig, SourceConfig, UnitsConfig, XdfConfig
from neuromod.adapters.memory import MarkerTrack
from neuromod.adapters.readers import NeoReader, Reader, open_spikeinterface, unreadable
from neuromod.engine.errors import RecordingError

log = logging.getLogger(__name__)

FORMATS = ("auto", "binary", "nwb", "spikeinterface", "and the name of every neo.rawio class: blackrock, spikeglx, ...")
SPIKEINTERFACE_FORMATS = ("binary", "nwb", "spikeinterface")
# Small enough that reading on delays no sample of a paced playback by more than 0.1 ms.
_AHEAD_VALUES = 1 << 16
_BY_SUFFIX = {
    ".nwb": "nwb",
    ".nev": "blackrock",
    **{f".ns{i}": "blackrock" for i in range(1, 10)},
    ".rhd": "intan",
    ".rhs": "intan",
    ".ncs": "neuralynx",
    ".oebin": "openephysbinary",
    ".continuous": "openephys",
    ".meta": "spikeglx",
    ".edf": "edf",
    ".vhdr": "brainvision",
    ".rec": "spikegadgets",
    ".plx": "plexon",
    ".pl2": "plexon2",
    ".smr": "ced",
    ".smrx": "ced",
}
# What a folder of a format holds, at any depth; the first that matches.
_BY_CONTENT = (
    ("structure.oebin", "openephysbinary"),
    ("*.meta", "spikeglx"),
    ("*.continuous", "openephys"),
    ("*.ncs", "neuralynx"),
    ("*.rhd", "intan"),
    ("*.rhs", "intan"),
    ("binary.json", "spikeinterface"),
    ("si_folder.json", "spikeinterface"),
    ("*.ns[1-9]", "blackrock"),
)


def detect_format(path: Path) -> str:
    """Return the format that a path looks like.

    Returns
    -------
    str
        One of `FORMATS`, or "xdf", "features" or "units" for what other kinds of source play.

    Raises
    ------
    RecordingError
        If there is nothing, or it looks like nothing that is known.
    """
    if not path.exists():
        if path.parent.is_dir() and any(path.parent.glob(f"{path.name}.ns[1-9]")):
            return "blackrock"  # neo's own way of naming a set of files
        raise RecordingError(f"{path}: no such file or folder; check the path (relative ones start at {Path.cwd()})")
    if path.is_dir():
        if (path / "spike_times.npy").exists():
            return "units"
        for pattern, name in _BY_CONTENT:
            if next(path.rglob(pattern), None) is not None:
                return name
        raise RecordingError(f"{path}: a folder of no format that is known by its content; say format = ...")
    suffix = path.suffix.lower()
    if suffix in (".xdf", ".xdfz") or path.name.lower().endswith(".xdf.gz"):
        return "xdf"
    if suffix in (".npy", ".mat"):
        return "features"
    if suffix == ".nev" and not any(path.parent.glob(f"{path.stem}.ns[1-9]")):
        return "units"
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix in (".bin", ".dat", ".raw"):
        return "spikeglx" if path.with_suffix(".meta").exists() else "binary"
    raise RecordingError(
        f'{path}: files ending in "{suffix}" are not known; say format = ... (one of {", ".join(FORMATS[1:])})'
    )


def config_for(path: Path, **options: Any) -> SourceConfig:
    """Return the configuration of the source that plays a path: the right kind, with these options.

    Parameters
    ----------
    path : Path
        Any file or folder that some kind of source plays.
    **options
        Keys of that kind's configuration.

    Raises
    ------
    RecordingError
        As `detect_format`.
    pydantic.ValidationError
        If an option does not belong to the kind, or one is missing.
    """
    name = options.get("format", "auto")
    if name == "auto":
        name = "binary" if options.get("dtype") and path.is_file() else detect_format(path)
    others: dict[str, type[Any]] = {"xdf": XdfConfig, "features": FeaturesConfig, "units": UnitsConfig}
    config: SourceConfig = others.get(name, RecordingConfig)(path=path, **options)
    return config


def open_recording(config: RecordingConfig) -> Source:
    """Return the source of a recording; an XDF file or a folder of spike trains is handed to its own kind.

    Raises
    ------
    RecordingError
        If the path looks like nothing known, or like a kind that needs more to be said.
    """
    name = config.format
    if name == "auto":
        name = "binary" if config.dtype else detect_format(config.path)
    if name == "features":
        raise RecordingError(f'{config.path}: a matrix of features; use kind = "features" and say bin_ms')
    if name in ("xdf", "units"):
        said = sorted(config.model_fields_set - {"kind", "path", "format"})
        if said:
            raise RecordingError(
                f'{config.path}: {", ".join(said)} cannot be said of this file here; use kind = "{name}"'
            )
        from neuromod.adapters.base import create_source

        return create_source(XdfConfig(path=config.path) if name == "xdf" else UnitsConfig(path=config.path))
    if name in SPIKEINTERFACE_FORMATS:
        return RecordingSource(config, name, lambda: open_spikeinterface(config, name))
    return RecordingSource(config, name, lambda: NeoReader(config, name))


class RecordingSource:
    """A recording, played from its start to its end.

    Parameters
    ----------
    config : RecordingConfig
        Path, and what to expect.
    format_name : str
        Name of the format, for messages.
    open_reader : callable
        Opens the files.
    """

    def __init__(self, config: RecordingConfig, format_name: str, open_reader: Callable[[], Reader]) -> None:
        self._config = config
        self._format = format_name
        self._open_reader = open_reader
        self._reader: Reader | None = None
        self._info: StreamInfo | None = None
        self._quirks: dict[str, int] = {}
        self._starts: list[float] = []
        self._segment, self._frame = 0, 0
        self._ahead, self._held = empty_chunk(1), 0
        self._track = MarkerTrack((), ())

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        if self._info is None:
            raise not_open(str(self._config.path))
        return self._info

    @property
    def ended(self) -> bool:
        """True once the last sample was read."""
        return self._info is not None and self._segment >= len(self._starts) and self._held >= len(self._ahead)

    @property
    def quirks(self) -> dict[str, int]:
        """Counted: `segments`, `segment_gaps`, `clock_resets`, `unknown_starts`, `markers_outside`, `warnings`, ..."""
        return dict(self._quirks)

    def open(self) -> None:
        """Open the files and read their headers.

        Raises
        ------
        RecordingError
            If there is no such recording, or it cannot be read, or it is not what the configuration says.
        """
        if self._reader is not None:
            return
        if not self._config.path.exists() and self._format != "blackrock":
            raise RecordingError(f"{self._config.path}: no such file or folder; check the path")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                reader = self._open_reader()
            self._begin(reader)
        except RecordingError:
            raise
        except Exception as error:
            raise unreadable(self._config.path, self._format, error) from error
        self._reader = reader
        for warning in said:
            if not issubclass(warning.category, DeprecationWarning | FutureWarning | ResourceWarning):
                self._quirks["warnings"] = self._quirks.get("warnings", 0) + 1
                log.warning("%s: %s", self._config.path, warning.message)

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples at once."""
        info = self.info
        if self._held >= len(self._ahead):
            self._fill()
        start, stop = self._held, min(self._held + max_samples, len(self._ahead))
        if start >= stop:
            return empty_chunk(info.n_channels)
        self._held = stop
        # parts of arrays that nobody else holds and that are never filled again: no copy is needed
        chunk = Chunk(self._ahead.samples[start:stop], self._ahead.stamps[start:stop])
        self._track.reach(float(chunk.stamps[-1]))
        return chunk

    def markers(self) -> list[Marker]:
        """Return the events that the samples reached since the last call."""
        _ = self.info
        return self._track.take(everything=self.ended)

    def close(self) -> None:
        """Close the files."""
        reader, self._reader = self._reader, None
        self._info = None
        if reader is not None:
            reader.close()

    def _begin(self, reader: Reader) -> None:
        fs = reader.sampling_frequency
        config = self._config
        for key, expected, came in (
            ("sampling_frequency_hz", config.sampling_frequency_hz, fs),
            ("n_channels", config.n_channels, len(reader.channel_names)),
        ):
            if expected is not None and abs(came - expected) > 1e-3 * expected:
                raise RecordingError(
                    f"{config.path}: {key} says {expected:g}, the file {came:g}; mend the configuration"
                )
        total = sum(segment.n_samples for segment in reader.segments)
        if total == 0:
            raise RecordingError(f"{config.path}: expected samples, the stream holds none; it may be truncated")
        self._quirks = dict(reader.quirks)
        self._starts, markers = _place(reader, self._quirks)
        self._track = MarkerTrack(markers, [marker.t for marker in markers])
        self._segment, self._frame = 0, 0
        self._ahead, self._held = empty_chunk(len(reader.channel_names)), 0
        self._info = StreamInfo(
            name=config.path.stem if reader.name.isdigit() else reader.name,
            kind="signal",
            n_channels=len(reader.channel_names),
            sampling_frequency=fs,
            channel_names=reader.channel_names,
            units=reader.units,
            source_id=f"{config.path.name}:{reader.name}",
            n_samples=total,
            duration_s=self._starts[-1] + reader.segments[-1].n_samples / fs,
        )
        self._skip_empty(reader)

    def _fill(self) -> None:
        assert self._reader is not None
        reader = self._reader
        if self._segment >= len(self._starts):
            return
        n = reader.segments[self._segment].n_samples
        start = self._frame
        stop = min(n, start + max(1, _AHEAD_VALUES // len(reader.channel_names)))
        try:
            samples = reader.read(self._segment, start, stop)
        except Exception as error:
            raise unreadable(self._config.path, self._format, error) from error
        if samples.shape != (stop - start, len(reader.channel_names)):
            raise RecordingError(
                f"{self._config.path}: expected samples {start} to {stop} of segment {self._segment}, "
                f"got an array of shape {samples.shape}; the file may be truncated"
            )
        stamps = self._starts[self._segment] + np.arange(start, stop, dtype=np.float64) / reader.sampling_frequency
        self._ahead, self._held, self._frame = Chunk(samples, stamps), 0, stop
        self._skip_empty(reader)

    def _skip_empty(self, reader: Reader) -> None:
        while self._segment < len(self._starts) and self._frame >= reader.segments[self._segment].n_samples:
            self._segment, self._frame = self._segment + 1, 0


def _place(reader: Reader, quirks: dict[str, int]) -> tuple[list[float], list[Marker]]:
    """Return the start of every segment in seconds from the start of the recording, and the markers moved with them."""
    starts: list[float] = []
    markers: list[Marker] = []
    period = 1.0 / reader.sampling_frequency
    origin: float | None = None  # device time of the instant 0, as long as the device's clock runs on
    end = 0.0
    for index, segment in enumerate(reader.segments):
        start = end
        if segment.t_start is None:
            if index:
                quirks["unknown_starts"] = quirks.get("unknown_starts", 0) + 1
        else:
            if origin is None:
                origin = segment.t_start - end
            start = segment.t_start - origin
            if start < end - 0.5 * period:
                quirks["clock_resets"] = quirks.get("clock_resets", 0) + 1
                start, origin = end, segment.t_start - end
            elif start > end + 0.5 * period:
                quirks["segment_gaps"] = quirks.get("segment_gaps", 0) + 1
            markers += [Marker(marker.t - origin, marker.name, marker.value) for marker in segment.markers]
        starts.append(start)
        end = start + segment.n_samples * period
    if len(starts) > 1:
        quirks["segments"] = len(starts)
    return starts, markers
