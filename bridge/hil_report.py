"""The page of a run of hardware in the loop: what an engineer has to know within a minute, and the evidence below."""

from pathlib import Path
from typing import Any

import numpy as np

from neuromod.bridge.hil import Outcome
from neuromod.bridge.hil_config import float_agreement, round_trips_us
from neuromod.bridge.hil_trace import Divergence, Snapshot
from neuromod.engine.layout import N_CHANNELS
from neuromod.sorting.page import escaped, image, table, write_page

_MOST_CHANNELS = 3
_MOST_WORDS = 24
_ROWS_BEFORE, _ROWS_AFTER = 6, 4
_MV = 1.0 / 65536.0
_COLOURS = {"passed": "ok", "failed": "bad", "not judged": "dim"}
_STYLE = """
:root{--ok:#14713d;--okbg:#e8f4ec;--bad:#b3261e;--badbg:#fbeae9;--dim:#666d78;--line:#dfe2e7}
body{color:#1d2127}h1{margin:0;font-size:1.45em}
h2{margin:2.2em 0 .5em;padding-top:.9em;border-top:1px solid var(--line)}
.verdict{border-radius:10px;padding:1.1em 1.4em;border-left:10px solid;margin-bottom:1em}
.verdict.ok{background:var(--okbg);border-color:var(--ok)}.verdict.bad{background:var(--badbg);border-color:var(--bad)}
.verdict b.word{font-size:1.9em;letter-spacing:.03em;display:block;line-height:1.2}
.ok b.word{color:var(--ok)}.bad b.word{color:var(--bad)}.verdict p{margin:.3em 0 0}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:10px;margin:1em 0}
.card{border:1px solid var(--line);border-radius:8px;padding:.55em .8em}
.card b{display:block;font-size:1.35em;font-variant-numeric:tabular-nums;line-height:1.25}
.card span{color:var(--dim);font-size:12px}.card.bad b{color:var(--bad)}
.pill{display:inline-block;border-radius:99px;padding:0 .7em;font-size:12px;font-weight:600;white-space:nowrap}
.pill.ok{background:var(--okbg);color:var(--ok)}.pill.bad{background:var(--badbg);color:var(--bad)}
.pill.dim{background:#eef0f3;color:var(--dim)}
table.criteria{width:100%}table.criteria td{padding:4px 12px 4px 0}tr.bad td{background:var(--badbg)!important}
tr.dim td{color:var(--dim)}tr.at td{background:#fff3d6!important}
td.all{font-size:11px;white-space:nowrap}td.why{overflow-wrap:anywhere}
td{font-variant-numeric:tabular-nums}code{font-size:12px;overflow-wrap:anywhere}
.note{border-left:4px solid #c77700;background:#fff8ec;padding:.5em .9em;border-radius:4px;font-size:14px}
@media print{.verdict,.card{break-inside:avoid}}
"""


def write_report(path: Path, outcome: Outcome, body: dict[str, Any]) -> Path:
    """Write the page.

    Parameters
    ----------
    path : Path
        File to write.
    outcome : Outcome
        The run.
    body : dict
        What report.json says of it.
    """
    parts = [_verdict(outcome, body), _cards(outcome, body), _criteria(outcome)]
    if said := outcome.trace.saturation.describe():
        parts.append(f'<p class="note">Accuracy: {escaped(said)}.</p>')
    divergence = outcome.trace.divergence
    if body["bisection"]:
        parts.append(_bisection(body["bisection"]))
    draws = _can_draw()
    if not draws:
        parts.append(
            '<p class="note">Figures are missing: they need matplotlib. '
            "<code>pip install 'neuromod-bridge[plots]'</code>, then run again; all numbers are in report.json.</p>"
        )
    if draws and outcome.trace.n_ticks:
        from neuromod.bridge import hil_plots as plots

        figure = plots.raster(outcome.trace, outcome.dt_ms)
        parts += ["<h2>Spikes</h2>", image(figure, "Raster of the spikes of device and reference.", dpi=110)]
    if divergence is not None:
        parts.append(_divergence(divergence, draws=draws))
    if draws and outcome.trace.n_ticks:
        parts.append(_times(outcome, body))
    parts.append(_link(outcome, draws=draws))
    parts.append(_weights(outcome, draws=draws))
    parts.append(_made(body))
    return write_page(path, f"HIL {body['verdict']}: {Path(body['recording']).name}", parts, _STYLE)


# -- the first minute -------------------------------------------------------------------------------------------------


def _verdict(outcome: Outcome, body: dict[str, Any]) -> str:
    trace, ticks = outcome.trace, body["ticks"]
    name = body["device"].get("name", body["device"]["kind"])
    failed = [j for j in outcome.judgements if j.status == "failed"]
    pace = "as fast as possible" if outcome.speed is None else f"at {outcome.speed:g} x true time"
    run = (
        f"{ticks['answered']:,} ticks, {ticks['seconds_of_recording']:,.1f} s of {Path(body['recording']).name}, {pace}"
    )
    if body["left_out"]:
        run += "; without [offload] of the session, since the device is compared and not in the loop"
    if failed:
        words = "; ".join(f"{j.name}: {j.found}, limit {j.limit}" for j in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        first = ""
        if trace.divergence is not None:
            first = f" First divergence at tick {trace.divergence.tick:,} ({trace.divergence.kind})."
        said = f"{len(failed)} of {len(outcome.judgements)} criteria failed. {words}{more}.{first}"
    else:
        judged = sum(j.status == "passed" for j in outcome.judgements)
        left = len(outcome.judgements) - judged
        said = f"All {judged} criteria that were judged hold; {left} were not judged, and say why."
    css, word = ("ok", "PASSED") if outcome.is_passed else ("bad", "FAILED")
    return (
        f'<div class="verdict {css}"><b class="word">{word}</b><h1>{escaped(name)}</h1>'
        f"<p>{escaped(run)}</p><p>{escaped(said)}</p></div>"
    )


def _cards(outcome: Outcome, body: dict[str, Any]) -> str:
    trace = outcome.trace
    trips = round_trips_us(trace)
    faults = sum(n for name, n in outcome.counts.items() if name not in ("ticks", "sent", "answered"))
    agreement = float_agreement(trace)
    p50, p99 = (float(np.quantile(trips, q)) if len(trips) else 0.0 for q in (0.5, 0.99))
    membranes = f"{trace.membrane_mismatches:,}" if trace.membranes_compared else "-"
    words = f"{trace.state_mismatches:,}" if trace.states_compared else "-"
    cards = [
        ("ticks compared", f"{trace.n_ticks - trace.lost:,}", trace.lost > 0),
        ("ticks with other spikes", f"{trace.spike_mismatches:,}", trace.spike_mismatches > 0),
        ("ticks with other membranes", membranes, trace.membrane_mismatches > 0),
        ("words of state that differ", words, trace.state_mismatches > 0),
        ("round trip p50 / p99, us", f"{p50:,.0f} / {p99:,.0f}", False),
        ("deadlines missed", f"{body['times_us']['deadline_misses']:,}" if not outcome.timing.why_not else "-", False),
        ("faults of the link", f"{faults:,}", faults > 0),
        ("spikes as in floating point", f"{agreement:.1%}" if agreement is not None else "-", False),
    ]  # fmt: skip
    inner = "".join(
        f'<div class="card{" bad" if is_bad else ""}"><b>{escaped(value)}</b><span>{escaped(label)}</span></div>'
        for label, value, is_bad in cards
    )
    return f'<div class="cards">{inner}</div>'


def _criteria(outcome: Outcome) -> str:
    order = {"failed": 0, "passed": 1, "not judged": 2}
    rows = "".join(
        f'<tr class="{_COLOURS[j.status]}"><td><span class="pill {_COLOURS[j.status]}">{j.status}</span></td>'
        f"<td>{escaped(j.name)}</td><td class=n>{escaped(j.limit)}</td><td class=n>{escaped(j.found)}</td>"
        f"<td>{escaped(j.why)}</td></tr>"
        for j in sorted(outcome.judgements, key=lambda j: order[j.status])
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "criterion", "limit", "found", ""))
    return f'<table class="criteria"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


# -- the evidence -----------------------------------------------------------------------------------------------------


def _bisection(found: dict[str, Any]) -> str:
    rows = [[word["text"]] for word in found.get("words", [])[:_MOST_WORDS]]
    shown = table(("what the first wrong tick left",), rows) if rows else ""
    return f"<h2>Bisection</h2><p><b>{escaped(found['summary'])}</b></p>{shown}"


def _divergence(divergence: Divergence, *, draws: bool) -> str:
    channels = divergence.channels
    where = f", channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels))}" if channels else ""
    parts = [
        "<h2>First divergence</h2>",
        f"<p>Tick <b>{divergence.tick:,}</b> of the run (tick {divergence.loop_tick:,} of the loop), by "
        f"{divergence.kind}{where}.</p>",
    ]
    shown = channels or _channels_of(divergence.snapshot)
    for channel in shown[:_MOST_CHANNELS] if len(divergence.spikes) else []:
        if draws:
            from neuromod.bridge import hil_plots as plots

            words = f"Membrane and stimulus of channel {channel} around the first divergence."
            parts.append(image(plots.membranes(divergence, channel), words, dpi=110))
    if len(divergence.spikes):
        parts.append(_ticks_around(divergence, shown[0] if shown else 0))
    snapshot = divergence.snapshot
    if snapshot is not None and snapshot.words:
        head = ("register", "address", "reference", "", "device", "", "format")
        rows = [_word_row(word.as_json()) for word in snapshot.words[:_MOST_WORDS]]
        more = len(snapshot.words) - len(rows)
        parts.append(
            f"<h3>The state after {snapshot.n_ticks:,} ticks: {len(snapshot.words):,} words differ</h3>"
            + table(head, rows, numbers=(2, 3, 4, 5))
            + (f"<p class=small>... and {more:,} more.</p>" if more > 0 else "")
        )
    if shown and snapshot is not None:
        parts.append(_weights_into(snapshot, shown[0]))
    return "\n".join(parts)


def _ticks_around(divergence: Divergence, channel: int) -> str:
    at = divergence.tick - divergence.first
    first, last = max(0, at - _ROWS_BEFORE), min(len(divergence.spikes), at + _ROWS_AFTER + 1)
    scale = 1.0 / 256.0 if divergence.stimuli.dtype.kind == "i" else 1.0
    rows = []
    for k in range(first, last):
        device_v = f"{divergence.v[k, 1, channel] * _MV:.5f}" if divergence.v_mask[k] else "-"
        cells = [
            f"{divergence.first + k:,}", f"{divergence.stimuli[k, channel] * scale:.4f}",
            f"{divergence.v[k, 0, channel] * _MV:.5f}", device_v,
            _channels(int(divergence.spikes[k, 0])), _channels(int(divergence.spikes[k, 1])),
            "  ".join(f"{x * scale:.2f}" for x in divergence.stimuli[k]),
        ]  # fmt: skip
        css = ' class="at"' if k == at else ""
        plain = "".join(f"<td class=n>{escaped(cell)}</td>" for cell in cells[:-1])
        rows.append(f'<tr{css}>{plain}<td class="all">{escaped(cells[-1])}</td></tr>')
    head = ("tick", f"stimulus {channel}", f"v[{channel}] reference, mV", f"v[{channel}] device, mV", "spikes, reference", "spikes, device", "all stimuli")  # noqa: E501  # fmt: skip
    titles = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    return f"<h3>The ticks around it</h3><table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _word_row(word: dict[str, Any]) -> list[str]:
    name = word["register"] + "".join(f"[{i}]" for i in word["index"])
    unit = f" {word['unit']}" if word["unit"] else ""
    return [
        name, f"0x{word['address']:03X}", str(word["expected"]), f"{word['expected_value']:.8g}{unit}",
        str(word["found"]), f"{word['found_value']:.8g}{unit}", word["format"],
    ]  # fmt: skip


def _weights_into(snapshot: Snapshot, channel: int) -> str:
    one, other = (s[0]["weights"][:, channel] / 2.0**24 for s in (snapshot.reference, snapshot.device))
    rows = [["reference", *(f"{w:.4f}" for w in one)], ["device", *(f"{w:.4f}" for w in other)]]
    head = ("from", *map(str, range(N_CHANNELS)))
    numbers = range(1, N_CHANNELS + 1)
    return f"<h3>Weights into channel {channel}, mV</h3>" + table(head, rows, numbers=numbers)


def _channels_of(snapshot: Snapshot | None) -> list[int]:
    if snapshot is None:
        return []
    return list(dict.fromkeys(word.index[-1] for word in snapshot.words if word.index))


def _times(outcome: Outcome, body: dict[str, Any]) -> str:
    from neuromod.bridge import hil_plots as plots

    modelled = outcome.modelled_us
    # of a bin of features many ticks come at once: no period then
    period_us = 1e3 * outcome.dt_ms / outcome.speed if outcome.speed and outcome.ticks_per_block == 1 else None
    deadline_us, is_judged = outcome.timing.deadline_us, not outcome.timing.why_not
    figure = plots.latencies(outcome.trace, deadline_us, modelled, period_us, is_judged=is_judged)
    words = [f"Deadline {outcome.timing.deadline_us:,.0f} us."]
    if outcome.timing.why_not:
        words.append(f"Not judged: {outcome.timing.why_not}.")
    if modelled:
        words.append(outcome.modelled_words)
    return (
        "<h2>Times</h2>"
        + f"<p class=small>{escaped(' '.join(words))}</p>"
        + image(figure, "Round trips and jitter.", dpi=110)
    )


def _link(outcome: Outcome, *, draws: bool) -> str:
    parts = ["<h2>Link</h2>"]
    counts = {name: n for name, n in outcome.counts.items() if n}
    if not counts and not outcome.trace.events:
        return parts[0] + "<p>No fault was counted.</p>"
    if counts:
        parts.append(table(("fault", "times"), [[name, f"{n:,}"] for name, n in counts.items()], numbers=(1,)))
    if draws and counts:
        from neuromod.bridge import hil_plots as plots

        parts.append(image(plots.link_errors(outcome.trace), "Faults of the link over the run.", dpi=110))
    if outcome.trace.events:
        rows = [[f"{tick:,}", what] for tick, what in outcome.trace.events[:40]]
        parts.append("<h3>What happened</h3>" + table(("tick", ""), rows, numbers=(0,)))
    return "\n".join(parts)


def _weights(outcome: Outcome, *, draws: bool) -> str:
    if outcome.start_state is None:
        return ""
    parts = ["<h2>Weights</h2>"]
    figure = None
    if draws:
        from neuromod.bridge import hil_plots as plots

        figure = plots.weights(outcome.trace)
    if figure is not None:
        parts.append(image(figure, "Weights over the run.", dpi=110))
    else:
        moved = bool(outcome.trace.weights) and (outcome.trace.weights[0][1] != outcome.trace.weights[-1][1]).any()
        parts.append(
            "<p>They moved.</p>"
            if moved
            else "<p>No weight moved: the session does not learn, or without dopamine.</p>"
        )
    read = outcome.trace.states_compared
    parts.append(f"<p class=small>The device's whole state was read and compared {read:,} times.</p>" if read else "")
    return "\n".join(parts)


def _made(body: dict[str, Any]) -> str:
    device = {key: value for key, value in body["device"].items() if value is not None}
    rows = [
        ["made at", body["made_at"]],
        ["command", " ".join(body["command"])],
        *([f"device: {key.replace('_', ' ')}", _words(value)] for key, value in device.items()),
        *([f"version: {key.replace('_', ' ')}", _words(value)] for key, value in body["versions"].items()),
        *([f"host: {key}", _words(value)] for key, value in body["host"].items()),
        *([f"SHA-256 of {key}", _words(value)] for key, value in body["hashes"].items() if value),
        *([f"loop: {key.replace('_', ' ')}", _words(value)] for key, value in body["loop"].items() if value),
    ]
    if body["golden"]:
        rows.append(["golden trace", _words(body["golden"])])
    return "<h2>How it was made</h2>" + table(("", ""), rows)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _channels(mask: int) -> str:
    return " ".join(str(i) for i in range(N_CHANNELS) if mask >> i & 1) or "-"


def _can_draw() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True
