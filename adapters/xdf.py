"""A stream of an XDF file, as LabRecorder writes it.

pyxdf is told to leave the stamps alone: no clock synchronisation, no smoothing of jitter, no mending of clock resets.
So the stamps are those that the sender gave, as a live inlet would hand them over, with their gaps, backward steps and
resets; the same grid then decides about them. Marker streams of another machine are brought to the clock of the signal
by the difference of the clock offsets that LabRecorder measured nearest in time.
"""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Kind, Marker, microvolts_per, unique_names
from neuromod.adapters.config import XdfConfig
from neuromod.adapters.memory import LoadedSource, MemorySource
from neuromod.engine.errors import RecordingError

# Two measurements of a clock offset this far apart, in seconds, are two clocks: the sender was restarted.
_RESET_S = 1.0


class XdfSource(LoadedSource):
    """A stream of an XDF file, with the markers of the same file.

    Parameters
    ----------
    config : XdfConfig
        Which file, and which of its streams.

    Notes
    -----
    pyxdf loads every stream of the file as a whole, also those that are not played.
    """

    def __init__(self, config: XdfConfig) -> None:
        super().__init__(str(config.path))
        self._config = config

    def _load(self) -> MemorySource:
        streams = load_streams(
            self._config.path, synchronize_clocks=False, dejitter_timestamps=False, handle_clock_resets=False
        )
        try:
            return self._play(streams)
        except RecordingError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # pyxdf takes a header as it is: what it should say may be missing, or be of any kind
            raise RecordingError(
                f"{self._what}: expected streams as the XDF format has them, but one of them says something else "
                f"({type(error).__name__}: {error}); the file may be corrupt"
            ) from error

    def _play(self, streams: list[Any]) -> MemorySource:
        stream, others = self._choose(streams)
        info = stream["info"]
        stamps = np.asarray(stream["time_stamps"], np.float64)
        nominal = float(_first(info, "nominal_srate") or 0.0)
        kind: Kind = "signal" if self._config.bin_ms is None else "features"
        rate = nominal if nominal > 0 else 1000.0 / (self._config.bin_ms or np.inf)
        if rate <= 0:
            raise RecordingError(
                f"{self._what}: the stream {_name(stream)} has no regular rate; for features say bin_ms"
            )
        if self._config.bin_ms is not None and abs(rate * self._config.bin_ms / 1000.0 - 1.0) > 1e-3:
            raise RecordingError(
                f"{self._what}: the stream {_name(stream)} runs at {rate:g} Hz, "
                f"bin_ms = {self._config.bin_ms:g} says {1000 / self._config.bin_ms:g} Hz"
            )
        names, units, scale = _channels(info, kind)
        samples = np.array(stream["time_series"], np.float32).reshape(len(stamps), len(names))
        samples *= scale
        self._count_quirks(stream, stamps, 1.0 / rate)
        markers = [marker for other in others for marker in _markers(other, stream)]
        first = float(stamps[0])
        return MemorySource(
            samples,
            rate,
            stamps=stamps - first,
            markers=[Marker(marker.t - first, marker.name, marker.value) for marker in markers],
            kind=kind,
            name=_name(stream),
            channel_names=names,
            units=units,
            source_id=str(_first(info, "source_id") or ""),
            hostname=str(_first(info, "hostname") or ""),
            stream_type=str(_first(info, "type") or ""),
            is_regular=nominal > 0,
        )

    def _choose(self, streams: list[Any]) -> tuple[Any, list[Any]]:
        """Return the stream that is meant and the marker streams."""
        config = self._config
        markers = [s for s in streams if _is_marker_stream(s) and len(s["time_stamps"])]
        self._quirk("empty_streams", sum(not len(s["time_stamps"]) for s in streams))
        if config.name is None and config.type is None and config.stream_id is None:
            fitting = [s for s in streams if not _is_marker_stream(s) and len(s["time_stamps"])][:1]
        else:
            wanted = {"name": config.name, "type": config.type, "stream_id": config.stream_id}
            fitting = [
                s
                for s in streams
                if all(v is None or str(_first(s["info"], key)) == str(v) for key, v in wanted.items())
            ]
        usable = [s for s in fitting if len(s["time_stamps"]) and _first(s["info"], "channel_format") != "string"]
        if len(usable) == 1:
            return usable[0], [s for s in markers if s is not usable[0]]
        listing = "; ".join(
            f'stream_id {_first(s["info"], "stream_id")} name "{_name(s)}" type "{_first(s["info"], "type")}" '
            f"({len(s['time_stamps'])} samples of {_first(s['info'], 'channel_format')})"
            for s in streams
        )
        raise RecordingError(
            f"{self._what}: expected one stream of numbers with samples that is meant, got {len(usable)}; "
            f"the file holds {listing or 'no stream'}. Say name, type or stream_id"
        )

    def _count_quirks(self, stream: Any, stamps: NDArray[np.float64], period: float) -> None:
        steps = np.diff(stamps)
        self._quirk("backward_steps", int((steps < 0).sum()))
        self._quirk("duplicate_stamps", int((steps == 0).sum()))
        self._quirk("gaps", int((steps > 1.5 * period).sum()))
        self._quirk("clock_resets", int((np.abs(np.diff(stream["clock_values"])) > _RESET_S).sum()))

    def _quirk(self, what: str, count: int) -> None:
        if count:
            self._quirks[what] = count


def load_streams(path: Path, **options: bool) -> list[Any]:
    """Return all streams of an XDF file.

    Parameters
    ----------
    path : Path
        The file.
    **options
        Of `pyxdf.load_xdf`.

    Raises
    ------
    RecordingError
        If there is no such file, or pyxdf stumbles over it.
    """
    if not path.is_file():
        raise RecordingError(f"{path}: no such file; check the path")
    import pyxdf

    is_packed = path.suffix.lower() in (".xdfz", ".gz")
    try:
        # opened here, because pyxdf leaves a file that it stumbles over open
        with gzip.open(path) if is_packed else path.open("rb") as file:
            _check_counts(file)
            file.seek(0)
            streams, _ = pyxdf.load_xdf(file, **options)
    except Exception as error:
        raise RecordingError(
            f"{path}: expected an XDF file, but it cannot be read ({type(error).__name__}: {error}); "
            "it may be truncated, corrupt or of another format"
        ) from error
    return list(streams)


def _check_counts(file: Any) -> None:
    """Refuse a chunk that promises more than it has room for: pyxdf makes room for what is promised, and then reads.

    Raises
    ------
    ValueError
        Where there is such a chunk.
    """
    n_channels: dict[bytes, int] = {}
    file.seek(len(b"XDF:"))
    while (size := _number(file)) is not None:
        begins = file.tell()
        tag, stream = file.read(2), file.read(4)
        if tag == b"\x02\x00":
            found = re.search(rb"<channel_count>\s*(\d{1,18})\s*<", file.read(size))
            n_channels[stream] = int(found[1]) if found else 0
        elif tag == b"\x03\x00":
            n_samples = _number(file) or 0
            # a sample has a byte for its time, and at least one for each of its values
            if n_samples * (1 + n_channels.get(stream, 0)) > size:
                raise ValueError(f"a chunk of {size} bytes promises {n_samples} samples")
        file.seek(begins + size)


def _number(file: Any) -> int | None:
    """Read a number that says before how many bytes it has; None where the file ends, or pyxdf will stumble."""
    width = file.read(1)
    if width not in (b"\x01", b"\x04", b"\x08"):
        return None
    data = file.read(width[0])
    number = int.from_bytes(data, "little")
    return number if len(data) == width[0] and number < 1 << 62 else None


def _first(info: Any, key: str) -> Any:
    """Return the value of a field that pyxdf wraps in a list, or None."""
    value = info.get(key)
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _name(stream: Any) -> str:
    return str(_first(stream["info"], "name") or "")


def _is_marker_stream(stream: Any) -> bool:
    info = stream["info"]
    return _first(info, "channel_format") == "string" or float(_first(info, "nominal_srate") or 0.0) <= 0


def _channels(info: Any, kind: Kind) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float32]]:
    """Return names, units and the scale to microvolt."""
    n_channels = int(_first(info, "channel_count"))
    described = (_first(_first(info, "desc") or {}, "channels") or {}).get("channel") or []
    rows = [row if isinstance(row, dict) else {} for row in described[:n_channels]]
    rows += [{}] * (n_channels - len(rows))
    names = unique_names(str(_first(row, "label") or "") for row in rows)
    units = [str(_first(row, "unit") or "") for row in rows]
    scale = np.ones(n_channels, np.float32)
    if kind == "signal":
        for i, unit in enumerate(units):
            factor = microvolts_per(unit)
            if factor is not None:
                scale[i], units[i] = factor, "uV"
    return names, tuple(units), scale


def _markers(other: Any, stream: Any) -> list[Marker]:
    """Return the markers of a stream, on the clock of the signal."""
    stamps = np.asarray(other["time_stamps"], np.float64)
    hosts = [_first(s["info"], "hostname") for s in (other, stream)]
    if hosts[0] != hosts[1] or not hosts[0]:
        stamps = stamps + _offset_at(stamps, other)
        stamps = stamps - _offset_back(stamps, stream)
    is_text = _first(other["info"], "channel_format") == "string"
    found = []
    for t, row in zip(stamps.tolist(), other["time_series"], strict=True):
        if is_text:
            found.append(Marker(t, str(row[0]), str(row[1]) if len(row) > 1 else None))
        else:
            found.append(Marker(t, _name(other), row[0].item()))
    return found


def _offset_at(stamps: NDArray[np.float64], stream: Any) -> NDArray[np.float64]:
    """Return what to add to stamps of a stream to reach the recorder's clock: the offset measured nearest in time."""
    values = np.asarray(stream["clock_values"], np.float64)
    return _nearest(stamps, np.asarray(stream["clock_times"], np.float64) - values, values)


def _offset_back(recorder_times: NDArray[np.float64], stream: Any) -> NDArray[np.float64]:
    """Return what to subtract from the recorder's times to reach the clock of a stream."""
    values = np.asarray(stream["clock_values"], np.float64)
    return _nearest(recorder_times, np.asarray(stream["clock_times"], np.float64), values)


def _nearest(at: NDArray[np.float64], times: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(values):
        return np.zeros(len(at))
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    right = np.clip(np.searchsorted(times, at), 1, max(1, len(times) - 1))
    right = np.minimum(right, len(times) - 1)
    left = np.maximum(right - 1, 0)
    nearest: NDArray[np.float64] = np.where(at - times[left] <= times[right] - at, values[left], values[right])
    return nearest
