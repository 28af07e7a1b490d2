"""Recorded spike trains played as counts per bin: the sorted units of a Blackrock `.nev`, or a Phy / Kilosort folder.

A recording without its raw signal still drives the loop: for hardware in the loop, and to check an encoder.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Marker
from neuromod.adapters.config import UnitsConfig
from neuromod.adapters.memory import LoadedSource, MemorySource
from neuromod.adapters.readers import open_neo
from neuromod.engine.errors import RecordingError

_MOST_VALUES = 1 << 31  # of 4 bytes; stamps, and what it takes to count, are as large as six units


class UnitSource(LoadedSource):
    """Spike trains, one feature per unit: spikes per bin.

    Parameters
    ----------
    config : UnitsConfig
        Which file, which units, and how long a bin is.
    """

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__(str(config.path))
        self._config = config

    def _load(self) -> MemorySource:
        path = self._config.path
        if not path.exists():
            raise RecordingError(f"{path}: no such file or folder; check the path")
        markers: list[Marker] = []
        if path.is_dir():
            trains, end_s = self._load_phy(path)
        else:
            trains, end_s, markers = self._load_nev(path)
        chosen = self._choose(trains)
        bin_s = self._config.bin_ms / 1000.0
        if not end_s / bin_s * (len(chosen) + 6) < _MOST_VALUES:
            raise RecordingError(
                f"{path}: {len(chosen)} units over {end_s:.4g} s in bins of {self._config.bin_ms:g} ms are more than "
                "can be held; if the sampling frequency is right and the file whole, give longer bins or fewer units"
            )
        n_bins = max(1, int(np.floor(end_s / bin_s)) + 1)
        counts = np.zeros((n_bins, len(chosen)), np.float32)
        for column, name in enumerate(chosen):
            bins = np.floor(trains[name] / bin_s).astype(np.int64)
            counts[:, column] = np.bincount(bins, minlength=n_bins)[:n_bins]
        return MemorySource(
            counts,
            1.0 / bin_s,
            stamps=np.arange(n_bins, dtype=np.float64) * self._config.bin_ms / 1000.0,
            markers=markers,
            kind="features",
            name=path.stem,
            channel_names=chosen,
            units=["spikes"] * len(chosen),
            source_id=path.name,
        )

    def _choose(self, trains: dict[str, NDArray[np.float64]]) -> list[str]:
        if not any(len(train) for train in trains.values()):
            raise RecordingError(f"{self._what}: expected spike trains, it holds no spikes")
        if self._config.unit_ids is not None:
            missing = [unit for unit in self._config.unit_ids if unit not in trains]
            if missing:
                raise RecordingError(
                    f"{self._what}: holds no unit {', '.join(missing)}; it has {', '.join(list(trains)[:40])}"
                    + (f" and {len(trains) - 40} more" if len(trains) > 40 else "")
                )
            return list(self._config.unit_ids)
        # stable: equally busy units keep the order of the file
        busiest = sorted(trains, key=lambda name: -len(trains[name]))[: self._config.n_units]
        return [name for name in trains if name in set(busiest)]

    def _load_phy(self, folder: Path) -> tuple[dict[str, NDArray[np.float64]], float]:
        times, clusters = (_load_vector(folder / f"spike_{what}.npy") for what in ("times", "clusters"))
        if len(times) != len(clusters):
            raise RecordingError(
                f"{folder}: spike_times.npy holds {len(times)} spikes, spike_clusters.npy {len(clusters)}; "
                "they do not belong together, or one is truncated"
            )
        fs = self._config.sampling_frequency_hz or _phy_rate(folder)
        if not fs:
            raise RecordingError(f"{folder}: has no params.py that states sample_rate; say sampling_frequency_hz")
        seconds = times.astype(np.float64) / fs
        if not np.all((seconds >= 0) & (seconds < np.inf)):  # NaN is not either
            raise RecordingError(f"{folder}: spike_times.npy holds other times than samples from the start")
        trains = {str(unit): seconds[clusters == unit] for unit in np.unique(clusters)}
        return trains, float(seconds.max(initial=0.0))

    def _load_nev(self, path: Path) -> tuple[dict[str, NDArray[np.float64]], float, list[Marker]]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            raw = open_neo(path, "blackrock")
        self._quirk("warnings", sum(issubclass(w.category, UserWarning) for w in said))
        names = [str(channel["name"]) for channel in raw.header["spike_channels"]]
        parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        markers: list[Marker] = []
        n_segments = raw.segment_count(0)
        end = 0.0
        origin = 0.0
        for seg in range(n_segments):
            t_start, t_stop = (float(t(0, seg)) for t in (raw.segment_t_start, raw.segment_t_stop))
            if seg == 0:
                origin = t_start
            elif t_start - origin < end:
                self._quirk("clock_resets", 1)
                origin = t_start - end
            for index, name in enumerate(names):
                stamps = raw.get_spike_timestamps(0, seg, index, None, None)
                seconds = np.asarray(raw.rescale_spike_timestamp(stamps, "float64")) - origin
                inside = seconds[(seconds >= 0) & (seconds <= t_stop - origin)]
                self._quirk("spikes_outside", len(seconds) - len(inside))
                parts[name].append(inside)
            markers += _nev_markers(raw, seg, origin)
            end = max(end, t_stop - origin)
        if n_segments > 1:
            self._quirks["segments"] = n_segments
        return {name: np.concatenate(trains) for name, trains in parts.items()}, end, markers

    def _quirk(self, what: str, count: int) -> None:
        if count:
            self._quirks[what] = self._quirks.get(what, 0) + count


def _nev_markers(raw: Any, seg: int, origin: float) -> list[Marker]:
    found = []
    for index, channel in enumerate(raw.header["event_channels"]):
        if raw.event_count(0, seg, index):
            stamps, _, labels = raw.get_event_timestamps(0, seg, index, None, None)
            times = raw.rescale_event_timestamp(stamps, "float64", index)
            found += [
                Marker(float(t) - origin, str(channel["name"]), str(label))
                for t, label in zip(times, labels, strict=True)
            ]
    return found


def _load_vector(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:  # numpy would leave a damaged one open
            vector: NDArray[Any] = np.load(file, allow_pickle=False).reshape(-1)
        if vector.dtype.kind not in "iuf":
            raise TypeError(f"it holds {vector.dtype}")
    except Exception as error:
        raise RecordingError(
            f"{path}: expected a vector of numbers written by numpy, but it cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
    return vector


def _phy_rate(folder: Path) -> float | None:
    """Return the sample_rate that a params.py states, read as text: a data folder is not code to run."""
    params = folder / "params.py"
    text = params.read_text(encoding="utf-8", errors="replace") if params.is_file() else ""
    found = re.search(r"^\s*sample_rate\s*=\s*(\d+\.?\d*(?:[eE]\+?\d\d?)?)\s*(?:#.*)?$", text, re.MULTILINE)
    return float(found[1]) if found else None
