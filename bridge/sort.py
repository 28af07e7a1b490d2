"""`neuromod sort`: from a recording to a sorting that the loop runs with, and from its units to the network."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from neuromod.adapters.config import RecordingConfig
from neuromod.adapters.sortable import open_sortable
from neuromod.bridge.calibrate import Series, read_behaviour
from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.offline import ANALYZER, Recorded, Say, Sorting, Spikes, sort_recording
from neuromod.sorting.probes import with_probe
from neuromod.sorting.sort_config import load_parameters
from neuromod.sorting.templates import engine_for
from neuromod.sorting.unit_encoding import count_blocks, measure_normalisation, propose, read_table
from neuromod.sorting.unit_tuning import Tuning, measure_tuning

REPORT, PHY, NWB = "report.html", "phy", "units.nwb"
METHODS = ("location", "rate", "tuning")
_BIN_MS = 50.0
_GIVEN_FOR = {"sparse": "utah", "dense": "neuropixels"}


class EncodingOptions(NamedTuple):
    """How units are to find their way to the network."""

    by: str
    """One of `METHODS`, or a file with a table of units."""
    n_groups: int | None = None
    behaviour: str | None = None
    """For tuning: what was done, see `read_behaviour`; times in s from the recording's first sample."""
    lag_ms: float = 0.0
    """By how much behaviour follows the spikes that go with it."""
    block_ms: float = 1.0
    smoothing_ms: float = 30.0


def sort(
    source: RecordingConfig,
    output: Path,
    *,
    probe: str | None,
    parameters: str | None,
    sorter: str | None,
    encoding: EncodingOptions,
    exports: tuple[str, ...],
    report: bool,
    seed: int,
    n_jobs: int,
    say: Say,
) -> Bundle:
    """Sort a recording.

    Raises
    ------
    NeuromodError
        It cannot be done; nothing is left behind but finished stages, from which the same call goes on.
    """
    opened = open_sortable(source)
    recording, probe_source = with_probe(opened.recording, probe, source.path)
    positions = recording.get_channel_locations()[:, :2]
    which = parameters if parameters is not None else _GIVEN_FOR[engine_for(positions)]
    config = load_parameters(which)
    if sorter is not None:
        config = config.model_copy(update={"sorter": config.sorter.model_copy(update={"name": sorter})})
    _check_exports(exports, report)
    _check_encoding(encoding)
    recorded = Recorded(
        recording, opened.read, source.path.name, opened.reader.channel_names,
        in_uv=all(unit == "uV" for unit in opened.reader.units),
    )  # fmt: skip

    def finish(folder: Path, sorting: Sorting) -> None:
        bundle = encoded(sorting.bundle, sorting.spikes, encoding)
        bundle.save(folder)
        _export(folder, sorting._replace(bundle=bundle), exports, report=report)

    try:
        sorting = sort_recording(
            recorded, output, config, seed=seed, n_jobs=n_jobs, finish=finish, say=say,
            provenance={
                "recording": source.model_dump(mode="json"), "probe": probe_source, "parameter_file": which,
                "notes": list(opened.notes),
            },
        )  # fmt: skip
    finally:
        opened.reader.close()
    return sorting.bundle


def encoded(bundle: Bundle, spikes: Spikes, options: EncodingOptions) -> Bundle:
    """Return a bundle with a proposed encoding, and the normalisation that a session freezes."""
    _check_encoding(options)
    by, table, tuning = options.by, None, None
    if by not in METHODS:
        by, table = "table", Path(options.by)
    elif options.behaviour is not None:
        tuning = tuning_of(bundle, spikes, read_behaviour(None, options.behaviour), options.lag_ms)
    proposed = propose(bundle, cast(Any, by), n_groups=options.n_groups, tuning=tuning, table=table)
    counts = count_blocks(
        spikes.online_samples - spikes.online_begin, spikes.online_units, bundle,
        spikes.n_samples - spikes.online_begin, block_ms=options.block_ms,
    )  # fmt: skip
    normalisation = measure_normalisation(bundle, counts, block_ms=options.block_ms, smoothing_ms=options.smoothing_ms)
    return bundle.with_info(encoding=proposed, normalisation=normalisation)


def tuning_of(bundle: Bundle, spikes: Spikes, behaviour: Series, lag_ms: float) -> Tuning:
    """Measure what the units of a sorting are tuned to, in bins of 50 ms.

    Two columns of behaviour are movement along two axes, between whose rows lines are drawn; one column has the number
    of a condition, which holds until the next row.
    """
    counts = np.concatenate([*count_blocks(spikes.samples, spikes.units, bundle, spikes.n_samples, block_ms=_BIN_MS)])
    t = (np.arange(len(counts)) + 0.5) * _BIN_MS * 1e-3 + lag_ms * 1e-3
    at = np.searchsorted(behaviour.t, t, side="right") - 1
    known = (at >= 0) & (t <= behaviour.t[-1])
    if not known.any():
        raise ConfigError(
            f"behaviour from {behaviour.t[0]:.3g} to {behaviour.t[-1]:.3g} s does not meet a recording of "
            f"{len(counts) * _BIN_MS * 1e-3:.3g} s; times count from its first sample"
        )
    n_columns = behaviour.values.shape[1]
    if n_columns == 2:
        moved = np.stack([np.interp(t, behaviour.t, column) for column in behaviour.values.T], axis=1)
        moved[~known] = math.nan
        return measure_tuning(counts, moved)
    if n_columns == 1:
        held = behaviour.values[np.maximum(at, 0), 0]
        labels = [f"{value:g}" if k and math.isfinite(value) else "" for value, k in zip(held, known, strict=True)]
        return measure_tuning(counts, labels)
    raise ConfigError(
        f"behaviour of {n_columns} columns; two (movement along two axes) or one (number of a condition) expected"
    )


def encode_again(folder: Path, options: EncodingOptions) -> Bundle:
    """Give a sorting that is there another encoding."""
    spikes = Spikes.load(folder)
    bundle = encoded(Bundle.load(folder), spikes, options)
    bundle.save(folder)
    if (folder / REPORT).is_file():
        _report(folder, bundle, spikes)
    return bundle


def default_jobs() -> int:
    """Return how many processes to use: all processors but one, for whoever sits before the screen."""
    return max(1, (os.cpu_count() or 2) - 1)


def default_output(recording: Path) -> Path:
    """Return the folder in which a recording is sorted where nobody names one."""
    return Path(f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', recording.stem)}-sorting")


@contextlib.contextmanager
def progress(*, hidden: bool) -> Iterator[Say]:
    """Show what goes on, on stderr, where somebody sees it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=hidden or not console.is_terminal, transient=True) as shown:
        task = shown.add_task("opening", total=None)

        def say(what: str, share: float | None) -> None:
            shown.update(task, description=what, total=None if share is None else 1.0, completed=share or 0.0)

        yield say


def unit_rows(bundle: Bundle) -> list[list[str]]:
    """Return a table of units: id, channel, position, spikes, rate, trough, SNR, ISI violations, agreement online."""
    rows = []
    for unit in bundle.info.units:
        quality = unit.quality

        def shown(name: str, form: str, values: dict[str, float | None] = quality) -> str:
            value = values.get(name)
            return "-" if value is None else format(value, form)

        rows.append(
            [
                unit.id, unit.channel, f"{unit.position_um[0]:z.0f}, {unit.position_um[1]:z.0f}", str(unit.n_spikes),
                f"{unit.rate_hz:.2f}", f"{unit.peak_uv:.0f}", shown("snr", ".1f"),
                shown("isi_violations_ratio", ".2f"), shown("online_agreement", ".3f"),
            ]
        )  # fmt: skip
    return rows


def _check_encoding(options: EncodingOptions) -> None:
    """Refuse, before hours of sorting, what could not be encoded after them."""
    if options.by not in METHODS:
        read_table(Path(options.by))
    if options.by != "tuning" and options.behaviour is not None:
        raise ConfigError("--behaviour is for --encode tuning: leave it out, or encode by tuning")
    if options.by == "tuning":
        if options.behaviour is None:
            raise ConfigError("an encoding by tuning needs --behaviour: what was done while this was recorded")
        read_behaviour(None, options.behaviour)


def _check_exports(exports: tuple[str, ...], report: bool) -> None:
    """Refuse, before hours of sorting, what could not be written after them."""
    import importlib.util

    needed = {"matplotlib": ("plots", report), "pynwb": ("nwb", "nwb" in exports)}
    for package, (extra, is_needed) in needed.items():
        if is_needed and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{'the report' if extra == 'plots' else 'NWB'} needs {package}: pip install 'neuromod-bridge[{extra}]'"
                + (", or leave it out with --no-report" if extra == "plots" else "")
            )


def _export(folder: Path, sorting: Sorting, exports: tuple[str, ...], *, report: bool) -> None:
    from neuromod.sorting.export_sorting import export_nwb, export_phy

    bundle, spikes = sorting
    if report:
        _report(folder, bundle, spikes)
    if "nwb" in exports:
        export_nwb(folder / NWB, bundle, spikes.samples, spikes.units, spikes.n_samples)
    if "phy" in exports:
        import spikeinterface

        export_phy(folder / PHY, spikeinterface.load(folder / ANALYZER))


def _report(folder: Path, bundle: Bundle, spikes: Spikes) -> None:
    from neuromod.sorting.report import write_report

    write_report(folder / REPORT, bundle, spikes.samples, spikes.units, spikes.amplitudes, spikes.n_samples)
