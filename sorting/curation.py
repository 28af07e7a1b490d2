"""Quality of what an offline sorter found, by spikeinterface's metrics, and what of it is kept."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.sort_config import CurationConfig
from neuromod.sorting.sorter_process import Found

METRICS = (
    "num_spikes",
    "firing_rate",
    "presence_ratio",
    "snr",
    "isi_violation",
    "amplitude_cutoff",
    "amplitude_median",
)
_EXTENSIONS = ("random_spikes", "waveforms", "templates", "noise_levels", "spike_amplitudes", "template_similarity")
_REFRACTORY_MS = 1.5
_BINS = 20
_LONGEST_BIN_S = 60.0


class Curated(NamedTuple):
    """Units that are good enough."""

    found: Found
    """Their spikes; units and their names are those that were kept."""
    amplitudes: NDArray[np.float32]
    """Of each spike: the signal at its trough, after the offline filter, in units of the stream."""
    quality: dict[str, dict[str, float | None]]
    """By unit: metrics by their names in spikeinterface; None where one could not be had."""
    rejected: dict[str, str]
    """Units that are left out, and why."""


def curate(
    recording: Any,
    found: Found,
    config: CurationConfig,
    *,
    folder: Path,
    seed: int,
    n_jobs: int = 1,
    say: Callable[[str, float | None], None] = lambda what, share: None,
) -> Curated:
    """Measure units, and keep those within the limits.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        Filtered, with its probe; one segment.
    found : Found
        Of it.
    config : CurationConfig
        Limits.
    folder : Path
        In which spikeinterface's analyzer of the units that are kept is left, for `spikeinterface.load`.
    seed : int
        Of the choice of spikes that waveforms are taken of.
    n_jobs : int
        Processes.
    say : callable
        Told what goes on, and the share that is done.

    Raises
    ------
    ConfigError
        No unit is left; says how many each limit took.
    """
    from spikeinterface.core import NumpySorting, create_sorting_analyzer
    from spikeinterface.curation import remove_redundant_units

    fs = recording.get_sampling_frequency()
    inside = (found.samples >= 0) & (found.samples < recording.get_num_samples())
    sorting = NumpySorting.from_samples_and_labels(
        [found.samples[inside]], [np.array(found.names, dtype=object)[found.units[inside]]], fs,
        unit_ids=list(found.names),
    )  # fmt: skip
    rejected: dict[str, str] = {}
    counts = sorting.count_num_spikes_per_unit(outputs="dict")
    for unit in found.names:
        if counts[unit] < config.min_spikes:
            rejected[unit] = f"{counts[unit]} spikes, fewer than {config.min_spikes}"
    sorting = sorting.select_units([unit for unit in found.names if unit not in rejected])
    if len(sorting.unit_ids) > 1:
        say("comparing units", None)
        single = remove_redundant_units(
            sorting, align=False, duplicate_threshold=config.duplicate_share, remove_strategy="max_spikes"
        )
        for unit in set(sorting.unit_ids) - set(single.unit_ids):
            rejected[unit] = f"more than {100 * config.duplicate_share:g} % of its spikes are another unit's"
        sorting = single
    if len(sorting.unit_ids) == 0:
        raise _nothing_left(found, rejected)

    say("measuring units", 0.0)
    analyzer = create_sorting_analyzer(
        sorting, recording, sparse=True, seed=seed, peak_sign="neg", return_in_uV=recording.has_scaleable_traces(),
        job_kwargs={"n_jobs": n_jobs, "progress_bar": False},
    )  # fmt: skip
    options: dict[str, dict[str, Any]] = {
        "random_spikes": {"seed": seed},
        "noise_levels": {"random_slices_kwargs": {"seed": seed}},
    }
    for i, name in enumerate(_EXTENSIONS):
        analyzer.compute(name, n_jobs=n_jobs, progress_bar=False, **options.get(name, {}))
        say("measuring units", (i + 1) / (len(_EXTENSIONS) + 1))
    quality = _quality(analyzer, recording.get_duration())
    for unit in analyzer.unit_ids:
        reason = _beyond(quality[str(unit)], config)
        if reason is not None:
            rejected[str(unit)] = reason
    kept = [unit for unit in analyzer.unit_ids if str(unit) not in rejected]
    if not kept:
        raise _nothing_left(found, rejected)
    good = analyzer.select_units(kept, format="binary_folder", folder=folder)
    spikes = good.sorting.to_spike_vector()
    return Curated(
        Found(
            spikes["sample_index"].astype(np.int64),
            spikes["unit_index"].astype(np.int64),
            tuple(str(unit) for unit in kept),
        ),
        np.asarray(good.get_extension("spike_amplitudes").get_data(), dtype=np.float32),
        {str(unit): quality[str(unit)] for unit in kept},
        rejected,
    )


def _quality(analyzer: Any, duration_s: float) -> dict[str, dict[str, float | None]]:
    bins = {"bin_duration_s": min(_LONGEST_BIN_S, duration_s / _BINS)}
    table = analyzer.compute(
        "quality_metrics",
        metric_names=list(METRICS),
        metric_params={"presence_ratio": bins, "isi_violation": {"isi_threshold_ms": _REFRACTORY_MS, "min_isi_ms": 0}},
    ).get_data()
    return {
        str(unit): {
            str(name): float(value) if value is not None and math.isfinite(value) else None
            for name, value in row.items()
        }
        for unit, row in table.astype(object).where(table.notna(), None).iterrows()
    }


def _beyond(quality: dict[str, float | None], config: CurationConfig) -> str | None:
    """Say which limit a unit is beyond; None where it is within all. A metric that could not be had limits nothing."""
    for name, limit, is_least in (
        ("firing_rate", config.min_rate_hz, True),
        ("snr", config.min_snr, True),
        ("presence_ratio", config.min_presence_ratio, True),
        ("isi_violations_ratio", config.max_isi_violations_ratio, False),
        ("amplitude_cutoff", config.max_amplitude_cutoff, False),
    ):
        value = quality.get(name)
        if value is not None and limit is not None and (value < limit if is_least else value > limit):
            return f"{name} {value:.3g}, {'below' if is_least else 'above'} {limit:g}"
    return None


def _nothing_left(found: Found, rejected: dict[str, str]) -> ConfigError:
    by_reason: dict[str, int] = {}
    for reason in rejected.values():
        word = reason.split(" ")[0] if not reason[0].isdigit() and not reason.startswith("more") else reason[:60]
        by_reason[word] = by_reason.get(word, 0) + 1
    listing = "; ".join(f"{n} for {word}" for word, n in sorted(by_reason.items(), key=lambda item: -item[1])[:6])
    return ConfigError(
        f"none of the {len(found.names)} units that were found is within the limits of curation ({listing}); check the "
        "recording, or loosen [curation] in the parameters"
    )
