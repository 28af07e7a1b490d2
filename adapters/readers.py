"""Recorded signal, read lazily: one small interface over neo's rawio layer and over spikeinterface.

neo's rawio is used for everything it knows, because it also gives the events, the start of every segment and a gain and
unit per channel; spikeinterface for raw binary, NWB and its own folders.
"""

import gc
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Marker, microvolts_per, unique_names
from neuromod.adapters.config import RecordingConfig
from neuromod.engine.errors import RecordingError

# Blackrock files with a stamp per sample: a jump of more than this starts a new segment (neo refuses them otherwise).
_GAP_TOLERANCE_MS = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of samples without a break.

    Parameters
    ----------
    n_samples : int
        Length.
    t_start : float or None
        Time of the first sample on the clock of the device, in seconds; None where the file does not say.
    markers : tuple of Marker
        On the same clock.
    """

    n_samples: int
    t_start: float | None
    markers: tuple[Marker, ...] = ()


class Reader(Protocol):
    """One stream of a recording, open for reading."""

    name: str
    sampling_frequency: float
    channel_names: tuple[str, ...]
    units: tuple[str, ...]
    segments: tuple[Segment, ...]
    quirks: dict[str, int]

    def read(self, segment_index: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples start to stop of a segment, shape (stop - start, n_channels), microvolt where known."""

    def close(self) -> None:
        """Close the files."""


class NeoReader:
    """A stream of any format of neo's rawio layer.

    Parameters
    ----------
    config : RecordingConfig
        Path and stream.
    format_name : str
        Name of the rawio class without "RawIO", lower case.
    """

    def __init__(self, config: RecordingConfig, format_name: str) -> None:
        self._raw = open_neo(config.path, format_name)
        self.quirks: dict[str, int] = {}
        streams = [stream for stream in self._raw.header["signal_streams"] if not str(stream["name"]).endswith("-SYNC")]
        index = _choose(config, [(str(s["id"]), str(s["name"])) for s in streams], self._describe_stream)
        self.stream_id = stream_id = streams[index]["id"]
        self._stream_index = next(i for i, s in enumerate(self._raw.header["signal_streams"]) if s["id"] == stream_id)
        header = self._raw.header["signal_channels"]
        channels = header[header["stream_id"] == stream_id]
        self.name = str(streams[index]["name"])
        self.sampling_frequency = float(self._raw.get_signal_sampling_rate(self._stream_index))
        self.channel_names = unique_names(str(name) for name in channels["name"])
        factors = [microvolts_per(str(unit)) for unit in channels["units"]]
        self.units = tuple("uV" if f else str(u) for f, u in zip(factors, channels["units"], strict=True))
        scale = np.array([factor or 1.0 for factor in factors])
        self.gain = (channels["gain"] * scale).astype(np.float32)
        self.offset = (channels["offset"] * scale).astype(np.float32)
        self._places = [
            (block, seg) for block in range(self._raw.block_count()) for seg in range(self._raw.segment_count(block))
        ]
        self.segments = tuple(self._segment(block, seg) for block, seg in self._places)

    def read(self, segment_index: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples in microvolt, where the unit is known."""
        block, seg = self._places[segment_index]
        raw = self._raw.get_analogsignal_chunk(block, seg, start, stop, stream_index=self._stream_index)
        return _scaled(raw, self.gain, self.offset)

    def close(self) -> None:
        """Let neo's files go."""
        self._raw = None
        # neo closes nothing and refers to itself in circles: without this, files stay open for an unknown time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def _describe_stream(self, stream_id: str) -> str:
        ids = [str(stream["id"]) for stream in self._raw.header["signal_streams"]]
        index = ids.index(stream_id)
        header = self._raw.header["signal_channels"]
        n_channels = int((header["stream_id"] == stream_id).sum())
        return f"{n_channels} channels at {self._raw.get_signal_sampling_rate(index):g} Hz"

    def _segment(self, block: int, seg: int) -> Segment:
        n = int(self._raw.get_signal_size(block, seg, self._stream_index))
        t_start = float(self._raw.get_signal_t_start(block, seg, self._stream_index))
        t_stop = t_start + n / self.sampling_frequency
        inside = []
        for marker in self._events(block, seg, t_start, t_stop):
            if t_start <= marker.t <= t_stop:
                inside.append(marker)
            else:
                self.quirks["markers_outside"] = self.quirks.get("markers_outside", 0) + 1
        return Segment(n, t_start, tuple(sorted(inside, key=lambda marker: marker.t)))

    def _events(self, block: int, seg: int, t_start: float, t_stop: float) -> Iterator[Marker]:
        for index, channel in enumerate(self._raw.header["event_channels"]):
            if self._raw.event_count(block, seg, index) == 0:
                continue
            stamps, _, labels = self._raw.get_event_timestamps(block, seg, index, None, None)
            times = self._raw.rescale_event_timestamp(stamps, "float64", index)
            # neo 0.14 divides the TTL stamps of older Open Ephys files twice by the rate: they come in seconds already
            if np.all(times < t_start) and np.all((stamps >= t_start) & (stamps <= t_stop)):
                times = np.asarray(stamps, np.float64)
                self.quirks["event_times_unscaled"] = self.quirks.get("event_times_unscaled", 0) + len(times)
            for t, label in zip(times, labels, strict=True):
                yield Marker(float(t), str(channel["name"]), str(label))


class SpikeInterfaceReader:
    """Any recording of spikeinterface.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        Read in pieces with `get_traces`.
    name : str
        Name of the stream.
    """

    def __init__(self, recording: Any, name: str) -> None:
        self.recording: Any = recording
        self.name = name
        self.quirks: dict[str, int] = {}
        self.sampling_frequency = float(recording.get_sampling_frequency())
        names = recording.get_property("channel_name")
        self.channel_names = unique_names(str(n) for n in (recording.channel_ids if names is None else names))
        n_channels = len(self.channel_names)
        self._in_uv = bool(recording.has_scaleable_traces())
        self.units = ("uV" if self._in_uv else "",) * n_channels
        self.gain = np.ones(n_channels, np.float32)
        self.offset = np.zeros(n_channels, np.float32)
        if self._in_uv:
            self.gain[:] = recording.get_channel_gains()
            self.offset[:] = recording.get_channel_offsets()
        self.segments = tuple(self._segment(index) for index in range(recording.get_num_segments()))

    def read(self, segment_index: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples in microvolt, where the gain is known."""
        raw = self.recording.get_traces(segment_index=segment_index, start_frame=start, end_frame=stop)
        return _scaled(raw, self.gain, self.offset)

    def close(self) -> None:
        """Let the files go."""
        self.recording = None

    def _segment(self, index: int) -> Segment:
        time_info = self.recording.get_time_info(segment_index=index)
        t_start = time_info["t_start"]
        if time_info["time_vector"] is not None:
            t_start = time_info["time_vector"][0]
            self.quirks["time_vectors_ignored"] = self.quirks.get("time_vectors_ignored", 0) + 1
        n = int(self.recording.get_num_samples(segment_index=index))
        return Segment(n, None if t_start is None else float(t_start))


def open_neo(path: Path, format_name: str) -> Any:
    """Return neo's raw reader of a recording with its header parsed.

    Raises
    ------
    RecordingError
        If neo does not know the format, or cannot make sense of the file.
    """
    import neo.rawio

    classes = {c.__name__.removesuffix("RawIO").lower(): c for c in neo.rawio.rawiolist}
    if format_name not in classes:
        raise RecordingError(f'neo knows no format "{format_name}"; it knows {", ".join(sorted(classes))}')
    raw_class = classes[format_name]
    place, target = _place(path, format_name, raw_class)
    try:
        raw = raw_class(**{place: str(target)}, **_gap_option(raw_class))
        raw.parse_header()
    except Exception as error:  # every format fails in its own way
        raise unreadable(path, format_name, error) from error
    return raw


def open_extractor(path: Path, format_name: str, stream_id: str) -> Any:
    """Return spikeinterface's recording of a stream of a format of neo, with its probe; None where it has no such one.

    Raises
    ------
    RecordingError
        If spikeinterface cannot make sense of the file.
    """
    import neo.rawio
    from spikeinterface.extractors.extractor_classes import recording_extractor_full_dict
    from spikeinterface.extractors.neoextractors.openephys import OpenEphysBinaryRecordingExtractor

    raw_class = next(c for c in neo.rawio.rawiolist if c.__name__.removesuffix("RawIO").lower() == format_name)
    found = {getattr(c, "NeoRawIOClass", None): c for c in recording_extractor_full_dict.values()}
    found["OpenEphysBinaryRawIO"] = OpenEphysBinaryRecordingExtractor
    extractor = found.get(raw_class.__name__)
    if extractor is None:
        return None
    place, target = _place(path, format_name, raw_class)
    key = "folder_path" if place == "dirname" else "file_path"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return extractor(**{key: str(target)}, stream_id=stream_id, **_gap_option(extractor))
    except Exception as error:
        raise unreadable(path, format_name, error) from error


def _gap_option(reader: type[Any]) -> dict[str, float]:
    """Return the option of a reader of files that would refuse gaps without it."""
    accepted = inspect.signature(reader.__init__).parameters
    return {"gap_tolerance_ms": _GAP_TOLERANCE_MS} if "gap_tolerance_ms" in accepted else {}


def _place(path: Path, format_name: str, raw_class: type[Any]) -> tuple[str, Path]:
    """Return the argument by which a reader of neo wants its files, and their place."""
    place = "dirname" if "dirname" in inspect.signature(raw_class.__init__).parameters else "filename"
    target = path.parent if place == "dirname" and path.is_file() else path
    if place == "filename" and path.is_dir():
        target = _only_file(path, raw_class.extensions)
    if format_name == "blackrock":
        target = target.with_suffix("") if target.suffix else target
    return place, target


def open_spikeinterface(config: RecordingConfig, format_name: str) -> SpikeInterfaceReader:
    """Open a recording through spikeinterface: raw binary, NWB, its own folders.

    Raises
    ------
    RecordingError
        If something is missing from the configuration, or the file cannot be made sense of.
    """
    if format_name == "binary":
        return SpikeInterfaceReader(_open_binary(config), config.path.stem)
    try:
        if format_name == "nwb":
            from spikeinterface.extractors import read_nwb_recording

            series = {} if config.stream_id is None else {"electrical_series_path": _series_path(config.stream_id)}
            recording = read_nwb_recording(config.path, **series)
        else:
            recording = _open_saved(config.path)
    except RecordingError:
        raise
    except ImportError as error:
        raise RecordingError(f"{config.path}: reading NWB needs pynwb; pip install 'neuromod-bridge[nwb]'") from error
    except Exception as error:
        raise unreadable(config.path, format_name, error) from error
    return SpikeInterfaceReader(recording, config.stream_id or config.path.stem)


def _open_saved(path: Path) -> Any:
    """Open what spikeinterface saved, as long as nothing in it is carried out.

    Its own `load` unpickles, and imports and calls what a file names: a folder from elsewhere could run anything.
    """
    if path.suffix == ".zarr":
        from numcodecs.registry import codec_registry
        from spikeinterface.core.zarrextractors import read_zarr_recording

        codec_registry.pop("pickle", None)
        return read_zarr_recording(path)
    from spikeinterface.core import read_binary_folder

    if not (path / "binary.json").is_file():
        raise RecordingError(
            f"{path}: expected a folder that spikeinterface saved as binary or zarr; its other files may name code to "
            "run, and are not opened: load them with spikeinterface, and use recording.save(folder=...)"
        )
    for file in sorted((path / "properties").glob("*.npy")):
        np.load(file, allow_pickle=False)  # spikeinterface would allow it
    return read_binary_folder(path)


def unreadable(path: Path, format_name: str, error: Exception) -> RecordingError:
    """Return the error of a file that its reader stumbles over."""
    said = " ".join(str(error).split())[:300]
    return RecordingError(
        f"{path}: expected a recording of format {format_name}, but it cannot be read "
        f"({type(error).__name__}: {said}). It may be truncated or corrupt, "
        "lack a file that belongs to it, or need another format = ..."
    )


def _scaled(raw: NDArray[Any], gain: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a new float32 array of raw x gain + offset, each step rounded to float32."""
    samples = np.empty(raw.shape, np.float32)
    np.multiply(raw, gain, out=samples, dtype=np.float32, casting="same_kind" if raw.dtype.kind == "f" else "unsafe")
    if offset.any():
        samples += offset
    return samples


def _only_file(folder: Path, extensions: list[str]) -> Path:
    """Return the one file, or set of files of one name, of a folder that a format reads."""
    suffixes = {f".{extension.lower()}" for extension in extensions}
    found = {path.with_suffix(""): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes}
    if len(found) != 1:
        listing = ", ".join(path.name for path in found.values()) or "none"
        raise RecordingError(
            f"{folder}: expected one recording ({', '.join(sorted(suffixes))}), found {listing}; name a file"
        )
    return next(iter(found.values()))


def _series_path(stream_id: str) -> str:
    return stream_id if "/" in stream_id else f"acquisition/{stream_id}"


def _open_binary(config: RecordingConfig) -> Any:
    needed = ("sampling_frequency_hz", "n_channels", "dtype")
    missing = [key for key in needed if getattr(config, key) is None]
    if missing:
        raise RecordingError(
            f"{config.path}: a raw binary file says nothing about itself; add {', '.join(missing)} to its "
            "configuration: `neuromod init replay.toml --source recording`, give path and these under [source] of "
            "that file, then give your command that file, as in `-c replay.toml`"
        )
    try:
        dtype = np.dtype(config.dtype)
    except TypeError as error:
        raise RecordingError(f'{config.path}: dtype "{config.dtype}" is not known; say int16, float32, ...') from error
    n_bytes = config.path.stat().st_size - config.header_bytes
    frame = dtype.itemsize * (config.n_channels or 1)
    if n_bytes <= 0 or n_bytes % frame:
        raise RecordingError(
            f"{config.path}: expected whole frames of {config.n_channels} x {dtype} = {frame} bytes, got "
            f"{n_bytes} bytes ({n_bytes % frame} over); mend n_channels, dtype or header_bytes, or it is truncated"
        )
    from spikeinterface.core import BinaryRecordingExtractor

    gains = None if config.gain_uv is None else [config.gain_uv] * (config.n_channels or 1)
    return BinaryRecordingExtractor(
        file_paths=[config.path],
        sampling_frequency=config.sampling_frequency_hz,
        num_channels=config.n_channels,
        dtype=dtype,
        file_offset=config.header_bytes,
        gain_to_uV=gains,
        offset_to_uV=None if gains is None else [config.offset_uv] * len(gains),
    )


def _choose(config: RecordingConfig, streams: list[tuple[str, str]], describe: Any) -> int:
    """Return the place of the stream that is meant."""
    if not streams:
        raise RecordingError(
            f'{config.path}: holds no signal; spike trains of a .nev file or a Phy folder play with kind = "units"'
        )
    if config.stream_id is None and len(streams) == 1:
        return 0
    for index, words in enumerate(streams):
        if config.stream_id in words:
            return index
    listing = "; ".join(f'"{stream_id}" ({name}, {describe(stream_id)})' for stream_id, name in streams)
    came = "none was chosen" if config.stream_id is None else f'stream_id is "{config.stream_id}"'
    raise RecordingError(f"{config.path}: holds {len(streams)} streams and {came}; set stream_id to one of {listing}")
