"""Figures of a run of hardware in the loop. matplotlib is imported by the functions that draw."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.hil_trace import Divergence, Trace
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS
from neuromod.sorting.page import new_figure, plain

SAME, REFERENCE, DEVICE, LATE = "#2b2f36", "#0b5cad", "#d1343b", "#c77700"
"""Colours: where both agree, of the reference alone, of the device alone, and of what was late or lost."""

_BITS = np.arange(N_CHANNELS)
_WIDE = 12.4
_RASTER_TICKS = 600
_BINS = 240
_MV = 1.0 / 65536.0
_MOST_WEIGHTS = 12


def raster(trace: Trace, dt_ms: float) -> Any:
    """Spikes of both around the first divergence, or where most happens; and mismatches over the whole run."""
    figure = new_figure(_WIDE, 4.6)
    spikes, strip = figure.subplots(2, 1, height_ratios=(4.0, 1.0))
    reference, device = trace.column("reference"), trace.column("device")
    lost = trace.column("lost").astype(bool)
    first, last = raster_window(trace)
    one, other = _unpacked(reference[first:last]), _unpacked(device[first:last])
    other[lost[first:last]] = False
    known = ~lost[first:last, np.newaxis]
    for mask, colour, marker, size, label in (
        (one & other, SAME, "|", 42, "both"),
        (one & ~other & known, REFERENCE, "v", 26, "reference alone"),
        (other & ~one, DEVICE, "^", 26, "device alone"),
        (one & ~known, LATE, "x", 22, "reference; the answer is lost"),
    ):
        ticks, channels = np.nonzero(mask)
        label = f"{label} ({len(ticks):,})"
        spikes.scatter(ticks + first, channels, s=size, c=colour, marker=marker, linewidths=1.1, label=label)
    divergence = trace.divergence
    if divergence is not None and first <= divergence.tick < last:
        spikes.axvline(divergence.tick, color=DEVICE, lw=1.0, alpha=0.7, zorder=0)
        spikes.annotate(
            f"first divergence, tick {divergence.tick:,}", (divergence.tick, N_CHANNELS - 0.2), color=DEVICE,
            fontsize=8, xytext=(4, 0), textcoords="offset points",
        )  # fmt: skip
    names = [str(i) for i in range(N_CHANNELS)]
    names[COINCIDENCE], names[INHIBITORY] = "14 coinc.", "15 inhib."
    spikes.set(
        xlim=(first - 1, last), ylim=(-0.7, N_CHANNELS + 0.6), yticks=range(N_CHANNELS), yticklabels=names,
        title=f"spikes of ticks {first:,} to {last - 1:,} of {trace.n_ticks:,}, {dt_ms:g} ms each", xlabel="tick",
    )  # fmt: skip
    spikes.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, borderaxespad=0.1)
    _strip(strip, trace)
    for axes in (spikes, strip):
        plain(axes)
    spikes.title.set_ha("left")
    spikes.title.set_x(0.0)
    return figure


def raster_window(trace: Trace) -> tuple[int, int]:
    """First tick, and one beyond the last, that a raster shows: around the divergence, or the busiest."""
    n = trace.n_ticks
    if trace.divergence is not None:
        first = max(0, min(trace.divergence.tick - _RASTER_TICKS // 3, n - _RASTER_TICKS))
        return first, min(n, first + _RASTER_TICKS)
    fired = np.bitwise_count(trace.column("reference"))
    step = _RASTER_TICKS // 2
    sums = np.add.reduceat(fired.astype(np.int64), np.arange(0, n, step)) if n else np.zeros(1)
    first = max(0, min(int(np.argmax(sums)) * step, n - _RASTER_TICKS))
    return first, min(n, first + _RASTER_TICKS)


def _strip(axes: Any, trace: Trace) -> None:
    """Rates and mismatches over the whole run."""
    n = max(1, trace.n_ticks)
    edges = np.linspace(0, n, min(n, _BINS) + 1).astype(int)[:-1]
    width = n / len(edges)
    for name, colour, style in (("reference", REFERENCE, "-"), ("device", DEVICE, "--")):
        rate = np.add.reduceat(np.bitwise_count(trace.column(name)).astype(np.int64), edges) / width
        axes.plot(edges + width / 2, rate, color=colour, lw=1.0, ls=style, label=f"spikes per tick, {name}")
    wrong = np.add.reduceat(trace.column("wrong").astype(np.int64), edges)
    lost = np.add.reduceat(trace.column("lost").astype(np.int64), edges)
    top = max(axes.get_ylim()[1], 0.1)
    for count, colour, label in ((wrong, DEVICE, "ticks that differ"), (lost, LATE, "answers lost")):
        if count.any():
            axes.bar(edges, np.where(count > 0, top, 0.0), width, align="edge", color=colour, alpha=0.22, label=label)
    axes.set(xlim=(0, n), ylim=(0, top), xlabel="tick of the whole run")
    axes.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False)


def membranes(divergence: Divergence, channel: int) -> Any:
    """Membrane of one channel in both, and its stimulus, around the first divergence."""
    figure = new_figure(_WIDE, 3.0)
    membrane, stimulus = figure.subplots(1, 2)
    ticks = divergence.first + np.arange(len(divergence.spikes))
    known = divergence.v_mask != 0
    v = divergence.v[:, :, channel] * _MV
    membrane.plot(ticks, v[:, 0], color=REFERENCE, lw=1.6, marker="o", ms=2.5, label="reference")
    if known.any():
        membrane.plot(ticks[known], v[known, 1], color=DEVICE, lw=1.2, ls="--", marker="x", ms=4, label="device")
    scale = 1.0 / 256.0 if divergence.stimuli.dtype.kind == "i" else 1.0
    stimulus.step(ticks, divergence.stimuli[:, channel] * scale, where="mid", color=SAME, lw=1.2)
    for axes in (membrane, stimulus):
        axes.axvline(divergence.tick, color=DEVICE, lw=1.0, alpha=0.6)
        axes.set(xlabel="tick")
        plain(axes)
    membrane.set_title(f"membrane of channel {channel}, mV", fontsize=8)
    membrane.legend(fontsize=7, frameon=False)
    stimulus.set_title(f"stimulus of channel {channel}", fontsize=8)
    return figure


def latencies(
    trace: Trace, deadline_us: float, modelled_us: float | None, period_us: float | None, *, is_judged: bool
) -> Any:
    """Histograms of round trips and of jitter, and both over the run.

    Parameters
    ----------
    trace : Trace
        The run.
    deadline_us : float
        Drawn where round trips come near.
    modelled_us : float or None
        Wire time to be added to what was measured.
    period_us : float or None
        Of the loop's ticks, where they came one by one at a pace.
    is_judged : bool
        Whether round trips are held against the deadline.
    """
    at_a_pace = bool(np.isfinite(trace.column("t_tick")).any())
    figure = new_figure(_WIDE, 5.4 if at_a_pace else 2.8)
    all_axes = figure.subplots(2, 2) if at_a_pace else figure.subplots(1, 2)
    trips, over, *others = all_axes.reshape(-1)
    lost = trace.column("lost").astype(bool)
    us = trace.column("round_trip_ns") / 1e3
    known = ~lost & (us > 0)
    measured = us[known]
    if len(measured):
        top = max(deadline_us * 1.3, measured.max(), (modelled_us or 0.0) + np.quantile(measured, 0.99)) * 1.1
        edges = np.geomspace(max(measured.min() * 0.8, 0.5), top, 90)
        trips.hist(measured, edges, color=REFERENCE, alpha=0.85, label="measured")
        if modelled_us:
            trips.hist(
                measured + modelled_us, edges, color=LATE, histtype="step", lw=1.2,
                label=f"+ {modelled_us:,.0f} us of wire and USB timer, modelled",
            )  # fmt: skip
        trips.set(xscale="log", yscale="log")
        for q, name in ((0.5, "p50"), (0.99, "p99")):
            at = float(np.quantile(measured, q))
            trips.axvline(at, color=SAME, lw=0.8, ls=":")
            side = "left" if q > 0.9 else "right"
            trips.annotate(f"{name} {at:,.0f}", (at, 0.84), xycoords=("data", "axes fraction"), fontsize=7, ha=side)
        if is_judged:
            trips.axvline(deadline_us, color=DEVICE, lw=1.0, label="deadline")
        trips.set_ylim(0.7, 20.0 * trips.get_ylim()[1])  # room for the legend
        trips.legend(fontsize=7, frameon=False, ncols=3, loc="upper left")
    trips.set(title="round trip, us", xlabel="us", ylabel="ticks")
    _over_the_run(over, us, known, lost, deadline_us if is_judged else None)
    if others:
        jitter, path = others
        _jitter(jitter, trace, period_us)
        _whole_path(path, trace)
    for axes in all_axes.reshape(-1):
        plain(axes)
    return figure


def _jitter(axes: Any, trace: Trace, period_us: float | None) -> None:
    answered = trace.column("answered_at")
    gaps = np.diff(answered) * 1e6
    gaps = gaps[np.isfinite(gaps)]
    if period_us is None or not len(gaps):
        words = "ticks come many at once here: no period"
        axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, fontsize=8)
    else:
        deviation = gaps - period_us
        limit = max(float(np.quantile(np.abs(deviation), 0.999)), 1.0) * 1.2
        axes.hist(np.clip(deviation, -limit, limit), 91, color=REFERENCE, alpha=0.85)
        axes.set(yscale="log")
        spread = float(np.quantile(np.abs(deviation), 0.99))
        _corner(axes, f"99 % within {spread:,.0f} us")
    axes.set(title="jitter: time between answers, less the period", xlabel="us", ylabel="ticks")


def _over_the_run(
    axes: Any, us: NDArray[Any], known: NDArray[np.bool_], lost: NDArray[np.bool_], deadline_us: float | None
) -> None:
    n = len(us)
    middles, half, most = [], [], []
    for first, last in itertools.pairwise(np.linspace(0, n, min(n, _BINS) + 1).astype(int)):
        part = us[first:last][known[first:last]]
        if len(part):
            middles.append((first + last) / 2)
            half.append(np.median(part))
            most.append(part.max())
    axes.plot(middles, half, color=REFERENCE, lw=1.2, label="median")
    axes.plot(middles, most, color=REFERENCE, lw=0.6, alpha=0.6, label="longest")
    if deadline_us is not None:
        axes.axhline(deadline_us, color=DEVICE, lw=1.0, label="deadline")
        missed = np.flatnonzero(lost | (us > deadline_us))
        if len(missed):
            shown = missed[:: max(1, len(missed) // 2000)]
            heights = np.where(lost[shown], deadline_us, us[shown])
            label = f"missed or lost ({len(missed):,})"
            axes.scatter(shown, heights, s=12, c=LATE, marker="x", linewidths=1.0, label=label, zorder=3)
    title = "round trip over the run, us" if deadline_us is None else "round trip and missed deadlines over the run, us"
    axes.set(yscale="log", title=title, xlabel="tick", xlim=(0, max(n, 1)))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 4.0)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper left")


def _whole_path(axes: Any, trace: Trace) -> None:
    us = (trace.column("answered_at") - trace.column("t_tick")) * 1e6
    us = us[np.isfinite(us) & (us > 0)]
    if len(us):
        axes.hist(us, np.geomspace(us.min() * 0.8, us.max() * 1.2, 90), color=SAME, alpha=0.8)
        axes.set(xscale="log", yscale="log")
        words = ", ".join(f"{name} {float(np.quantile(us, q)):,.0f}" for q, name in ((0.5, "p50"), (0.99, "p99")))
        _corner(axes, words)
    axes.set(title="from the end of the loop's tick to the device's answer", xlabel="us", ylabel="ticks")


def link_errors(trace: Trace) -> Any:
    """Faults of the link as they added up."""
    figure = new_figure(_WIDE, 2.4)
    axes = figure.subplots()
    names = [name for name, n in trace.link_counts().items() if n]
    for k, name in enumerate(names):
        ticks = [0, *(tick for tick, _ in trace.counts)]
        values = [0, *(counts.get(name, 0) - trace.first_counts.get(name, 0) for _, counts in trace.counts)]
        axes.step(ticks, values, where="post", lw=1.3, label=name, color=f"C{k}")
    axes.set(title="faults of the link, added up", xlabel="tick", xlim=(0, max(1, trace.n_ticks)))
    axes.legend(fontsize=7, frameon=False, ncols=4)
    plain(axes)
    return figure


def weights(trace: Trace) -> Any | None:
    """Weights that moved most: lines of the reference, crosses of the device where it was read; None if none moved."""
    ticks = np.array([tick for tick, _ in trace.weights])
    values = np.array([w for _, w in trace.weights], np.int64)
    if len(ticks) < 2:
        return None
    spread = np.ptp(values, axis=0)
    order = np.argsort(-spread, axis=None)[:_MOST_WEIGHTS]
    order = order[spread.reshape(-1)[order] > 0]
    if not len(order):
        return None
    figure = new_figure(_WIDE, 3.6)
    axes = figure.subplots()
    for k, flat in enumerate(order):
        j, i = np.unravel_index(int(flat), spread.shape)
        colour = f"C{k % 10}"
        axes.plot(ticks, values[:, j, i] / 2.0**24, color=colour, lw=1.2, label=f"{j} to {i}")
        for snapshot in trace.snapshots:
            found = float(snapshot.device[0]["weights"][j, i]) / 2.0**24
            axes.plot(snapshot.n_ticks, found, marker="x", ms=5, color=colour, ls="none")
    axes.set(
        title="weights that moved most, mV: lines the reference, crosses the device where its state was read",
        xlabel="tick", xlim=(0, max(1, trace.n_ticks)),
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    axes.legend(fontsize=7, frameon=False, ncols=12, loc="upper left", handlelength=1.2, columnspacing=1.0)
    plain(axes)
    return figure


def _corner(axes: Any, words: str) -> None:
    axes.annotate(words, (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=7)


def _unpacked(masks: NDArray[Any]) -> NDArray[np.bool_]:
    return (masks.astype(np.int64)[:, np.newaxis] >> _BITS & 1).astype(np.bool_)
