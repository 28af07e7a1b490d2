"""A summary of a sorting for people: one HTML file with its figures inside."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle
from neuromod.sorting.page import ACCENT, INK, PALE, escaped, image, new_figure, plain, table, write_page
from neuromod.sorting.unit_encoding import COLUMNS, cells, explain

_MOST_CHANNELS = 4
_MOST_POINTS = 2000
_REFRACTORY_MS = 1.5
_ISI_MS = 50.0
_RATE_BINS = 60
_STYLE = ".unit{border-top:1px solid #ccc;padding-top:.4em}"


def write_report(
    path: Path,
    bundle: Bundle,
    samples: NDArray[np.int64],
    units: NDArray[np.int64],
    amplitudes: NDArray[np.float32],
    n_samples: int,
) -> Path:
    """Write the summary of a sorting.

    Parameters
    ----------
    path : Path
        File to write.
    bundle : Bundle
        The sorting.
    samples, units : ndarray of int64, shape (n_spikes,)
        Of each spike: its sample, and its unit, a row of the bundle's templates.
    amplitudes : ndarray of float32, shape (n_spikes,)
        Signal at its trough, in units of the stream.
    n_samples : int
        Length of the recording.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError("the report needs matplotlib: pip install 'neuromod-bridge[plots]'") from error
    info = bundle.info
    duration_s = n_samples / info.sampling_frequency
    parts = [
        f"<h1>{escaped(info.name)}: {len(info.units)} units</h1>",
        f"<p>{escaped(_summary(bundle, duration_s))}</p>",
        image(_overview(bundle), "Left: where channels (grey) and units are; right: rate and trough of each unit."),
        "<h2>Units</h2>", _unit_table(bundle),
    ]  # fmt: skip
    if info.encoding is not None:
        rows = cells(explain(info.encoding, bundle))
        parts += [f"<h2>Encoding by {escaped(info.encoding.by)}</h2>", table(COLUMNS, rows, numbers=(0, 2))]
    rejected = info.provenance.get("rejected_units", {})
    for title, entries in (("Channels that were left out", info.excluded), ("Units that were left out", rejected)):
        if entries:
            parts += [f"<h2>{title}</h2>", table(("", "why"), [[name, why] for name, why in entries.items()])]
    parts.append("<h2>Each unit</h2>")
    parts.append(
        '<p class="small">Mean waveform on the largest channels through the loop\'s filter; where the unit is; '
        f"intervals between spikes, with the refractory period of {_REFRACTORY_MS} ms; trough of each spike and rate "
        "over the recording.</p>"
    )
    for u, unit in enumerate(info.units):
        mine = units == u
        times = samples[mine] / info.sampling_frequency
        order = np.argsort(times, kind="stable")
        figure = _unit_figure(bundle, u, times[order], amplitudes[mine][order], duration_s)
        words = f"Unit {unit.id} on {unit.channel}: {unit.n_spikes} spikes, {unit.rate_hz:.2f} Hz"
        parts.append(f'<div class="unit"><h3>{escaped(words)}</h3>{image(figure, words)}</div>')
    parts.append(f"<h2>How it was made</h2>{_provenance(info.provenance)}")
    return write_page(path, f"Sorting of {info.name}", parts, _STYLE)


# -- words and tables -------------------------------------------------------------------------------------------------


def _summary(bundle: Bundle, duration_s: float) -> str:
    info = bundle.info
    sorter = info.provenance.get("sorter", {})
    made = info.created_at.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    n = len(info.channel_names)
    return (
        f"{duration_s:.1f} s of {n} channels at {info.sampling_frequency:g} Hz, {n - len(info.excluded)} of them "
        f"sorted by {sorter.get('name', 'given spikes')} with seed {info.provenance.get('seed', '-')} on {made}. "
        f"Online: the {info.engine} engine, {info.chain.low_hz:g} to {info.chain.high_hz:g} Hz, reference "
        f"{info.chain.reference}, detection at {info.detection_noise:g} times the noise."
    )


def _unit_table(bundle: Bundle) -> str:
    metrics = list(dict.fromkeys(name for unit in bundle.info.units for name in unit.quality))
    shown = [name for name in metrics if name not in ("num_spikes", "firing_rate")]
    head = ("unit", "channel", "x um", "y um", "spikes", "Hz", "trough", *(name.replace("_", " ") for name in shown))
    rows = [
        [
            unit.id, unit.channel, f"{unit.position_um[0]:z.0f}", f"{unit.position_um[1]:z.0f}", str(unit.n_spikes),
            f"{unit.rate_hz:.2f}", f"{unit.peak_uv:.0f}", *(_number(unit.quality.get(name)) for name in shown),
        ]
        for unit in bundle.info.units
    ]  # fmt: skip
    return table(head, rows, numbers=range(2, len(head)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _provenance(provenance: Mapping[str, Any]) -> str:
    rows = []
    for key, value in provenance.items():
        if key not in ("probe_um", "excluded", "rejected_units"):  # shown above
            text = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            rows.append([key.replace("_", " "), text])
    return table(("", ""), rows)


# -- figures ----------------------------------------------------------------------------------------------------------


def _overview(bundle: Bundle) -> Any:
    figure = new_figure(13.0, 4.6)
    units = bundle.info.units
    place, rates, troughs = figure.subplots(1, 3, width_ratios=(1.2, 1.0, 1.0))
    xy = np.array([unit.position_um for unit in units]).reshape(-1, 2)
    hz = np.array([unit.rate_hz for unit in units])
    _probe(place, bundle)
    dots = place.scatter(*xy.T, c=hz, cmap="viridis", s=36, edgecolors=INK, linewidths=0.6, zorder=3)
    figure.colorbar(dots, ax=place, label="rate, Hz")
    place.set(xlabel="x, um", ylabel="y, um")
    depth = np.argsort(xy[:, 1])
    rates.barh(np.arange(len(units)), hz[depth], color=ACCENT)
    rates.set(xlabel="rate, Hz", ylabel="units, from low to high y")
    unit_of = bundle.info.units_of_signal or "units of the file"
    troughs.scatter([-unit.peak_uv for unit in units], xy[:, 1], c=ACCENT, s=24)
    troughs.set(xlabel=f"size of the trough, {unit_of}", ylabel="y, um")
    for axes in (place, rates, troughs):
        plain(axes)
    return figure


def _unit_figure(
    bundle: Bundle, u: int, times: NDArray[np.float64], amplitudes: NDArray[np.float32], duration_s: float
) -> Any:
    unit = bundle.info.units[u]
    figure = new_figure(13.0, 2.3)
    shape, place, intervals, sizes, rate = figure.subplots(1, 5, width_ratios=(1.5, 0.7, 1.0, 1.5, 1.5))
    _waveforms(shape, bundle, u)
    _probe(place, bundle)
    place.plot(*unit.position_um, marker="*", ms=11, color=ACCENT, mec=INK, mew=0.5)
    place.set(xticks=[], yticks=[])
    _intervals(intervals, times)
    step = max(1, len(times) // _MOST_POINTS)
    sizes.plot(times[::step], amplitudes[::step], ".", ms=2.5, color=ACCENT, alpha=0.6)
    sizes.set(xlabel="s", title="trough", xlim=(0.0, duration_s))
    edges = np.linspace(0.0, duration_s, _RATE_BINS + 1)
    rate.stairs(np.histogram(times, edges)[0] / (edges[1] - edges[0]), edges, color=ACCENT, fill=True, alpha=0.7)
    rate.set(xlabel="s", title="rate, Hz", xlim=(0.0, duration_s))
    for axes in (shape, place, intervals, sizes, rate):
        plain(axes)
    return figure


def _waveforms(axes: Any, bundle: Bundle, u: int) -> None:
    """The template on its largest channels, beside each other."""
    template = bundle.templates_uv[u]
    size = np.ptp(template, axis=0)
    largest = [int(c) for c in np.argsort(-size, kind="stable")[:_MOST_CHANNELS] if size[c] > 0.0]
    ms = (np.arange(len(template)) - bundle.info.n_before) / bundle.info.sampling_frequency * 1e3
    gap = 0.25 + ms[-1] - ms[0]
    for i, c in enumerate(largest):
        noise = float(bundle.noise[c])
        axes.fill_between(ms + i * gap, template[:, c] - noise, template[:, c] + noise, color=PALE, alpha=0.6, lw=0)
        axes.plot(ms + i * gap, template[:, c], color=ACCENT if i == 0 else INK, lw=1.4)
        axes.annotate(
            bundle.info.channel_names[c], (ms[0] + i * gap, 1.0), xycoords=("data", "axes fraction"), fontsize=7,
            va="top",
        )  # fmt: skip
    axes.axvline(0.0, color=PALE, lw=0.8, zorder=0)
    axes.set(title=f"waveform +- noise, {bundle.info.units_of_signal}", xlabel="ms, channel beside channel")


def _intervals(axes: Any, times: NDArray[np.float64]) -> None:
    isi = np.diff(times) * 1e3
    short = 100.0 * float((isi < _REFRACTORY_MS).mean()) if len(isi) else 0.0
    axes.hist(isi[isi < _ISI_MS], np.linspace(0.0, _ISI_MS, 51), color=INK)
    axes.axvline(_REFRACTORY_MS, color=ACCENT, lw=1.0)
    axes.set(title=f"ISI, {short:.2g} % < {_REFRACTORY_MS} ms", xlabel="ms", xlim=(0.0, _ISI_MS))


def _probe(axes: Any, bundle: Bundle) -> None:
    names = bundle.info.channel_names
    taken = np.array([name not in bundle.info.excluded for name in names])
    axes.plot(*bundle.positions_um[taken].T, "s", ms=2.2, color=PALE)
    axes.plot(*bundle.positions_um[~taken].T, "x", ms=3.0, color=INK)
    spread = np.ptp(bundle.positions_um, axis=0)
    if spread.min() > 0.2 * spread.max():
        axes.set_aspect("equal")
