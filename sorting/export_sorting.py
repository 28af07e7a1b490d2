"""Sortings for other programs: Phy, and Neurodata Without Borders (NWB)."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle


def export_phy(folder: Path, analyzer: Any) -> Path:
    """Write a folder for Phy's template view, without a copy of the recording.

    Parameters
    ----------
    folder : Path
        Must not be there.
    analyzer : spikeinterface.SortingAnalyzer
        With waveforms, templates and spike amplitudes, as `curation.curate` leaves it.
    """
    from spikeinterface.exporters import export_to_phy

    export_to_phy(
        analyzer, folder, compute_pc_features=False, compute_amplitudes=True, copy_binary=False, verbose=False,
        remove_if_exists=False, n_jobs=1, progress_bar=False,
    )  # fmt: skip
    return folder


def export_nwb(
    path: Path,
    bundle: Bundle,
    samples: NDArray[np.int64],
    units: NDArray[np.int64],
    n_samples: int,
    *,
    session_start: datetime.datetime | None = None,
) -> Path:
    """Write the units of a sorting as an NWB file.

    Parameters
    ----------
    path : Path
        File to write.
    bundle : Bundle
        The sorting.
    samples, units : ndarray of int64, shape (n_spikes,)
        Of each spike: its sample, and its unit, a row of the bundle's templates.
    n_samples : int
        Length of the recording.
    session_start : datetime, optional
        With time zone; when the recording began. By default, where nobody knows, the time of sorting, and the file
        says so.

    Raises
    ------
    ConfigError
        pynwb is not installed.
    """
    try:
        from pynwb import NWBHDF5IO, NWBFile
    except ImportError as error:
        raise ConfigError("NWB needs pynwb: pip install 'neuromod-bridge[nwb]'") from error

    info = bundle.info
    fs = info.sampling_frequency
    known = "" if session_start is not None else " When it was recorded is not known: the start is the time of sorting."
    nwb = NWBFile(
        session_description=f"Units of {info.name}, sorted by neuromod.{known}",
        identifier=info.arrays_sha256 or info.name,
        session_start_time=session_start if session_start is not None else info.created_at,
        notes=json.dumps(info.provenance, default=str),
    )
    device = nwb.create_device(name="array", description=f"{len(info.channel_names)} channels of {info.name}")
    group = nwb.create_electrode_group("array", "all electrodes", "unknown", device)
    nwb.add_electrode_column("rel_x", "position across the array, um")
    nwb.add_electrode_column("rel_y", "position along the array, um")
    nwb.add_electrode_column("channel_name", "name of the channel")
    for name, (x, y) in zip(info.channel_names, bundle.positions_um, strict=True):
        nwb.add_electrode(group=group, location="unknown", rel_x=x, rel_y=y, channel_name=name)
    metrics = sorted({name for unit in info.units for name in unit.quality})
    nwb.add_unit_column("unit_name", "id of the unit in the sorting")
    for name in metrics:
        nwb.add_unit_column(name, f"quality metric {name}, as spikeinterface defines it; NaN where it is not to be had")
    span = [[0.0, n_samples / fs]]
    for u, unit in enumerate(info.units):
        channel = info.channel_names.index(unit.channel)
        values = {name: unit.quality.get(name) for name in metrics}
        nwb.add_unit(
            spike_times=np.sort(samples[units == u]) / fs,
            obs_intervals=span,
            waveform_mean=bundle.templates_uv[u, :, channel].astype(np.float64),
            electrodes=[channel],
            unit_name=unit.id,
            **{name: math.nan if value is None else value for name, value in values.items()},
        )
    with NWBHDF5IO(str(path), "w") as file:
        file.write(nwb)
    return path
