"""How `neuromod certify` shows what it found: tables for a terminal, and one page with its histograms inside."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neuromod.bridge.certify import EDGES_US
from neuromod.sorting.page import ACCENT, PALE, escaped, table, write_page

_STYLE = """
h2{margin:2em 0 .4em;padding-top:.8em;border-top:1px solid #dfe2e7}
.grid td,.grid th{padding:6px 16px 6px 0}.grid .n,.yes,.no{white-space:nowrap}
.yes{color:#14713d;font-weight:600}.no{color:#b3261e;font-weight:600}
figure{display:inline-block;margin:.6em 1.2em .6em 0;vertical-align:top}figcaption{font-size:13px;max-width:370px}
svg text{font:11px system-ui,sans-serif;fill:#444}.key i{display:inline-block;width:1em;height:.8em;margin:0 .3em 0 1em}
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 370, 190, 50, 24, 20, 30
_LIMIT = "#b3261e"
_NAMES = (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us"))


# -- a terminal -------------------------------------------------------------------------------------------------------


def print_report(console: Console, found: dict[str, Any], changed: dict[str, Any] | None) -> None:
    """Print a report, and what changed."""
    console.print(_host_line(found["host"]), highlight=False, markup=False)
    console.print(_load_line(found), "\n", highlight=False, markup=False)
    measures = Table("us", "p50", "p99", "p99.9", "max", "p50 over bare", "p99 over bare", box=None, pad_edge=False)
    for measure in found["measures"].values():
        measures.add_row(measure["title"], *_numbers(measure["ours"]), *_excess(measure))
        measures.add_row("  bare", *_numbers(measure["bare"]), style="dim")
    console.print(measures)
    target = found["measures"]["ticks"]["target"]
    told = "[green]met" if target["met"] else "[red]not met"
    console.print(
        f"ticks begin at most {target['over_bare_us']:g} us later than bare, at p50 and p99: {told}\n", highlight=False
    )
    if found["grid"]:
        promises = Table("channels", "tick", "promised", "late", "p50", "p99", "p99.9", "max", box=None, pad_edge=False)
        for point in found["grid"]:
            word = "[green]yes" if point["promised"] else "[red]no"
            promises.add_row(
                str(point["channels"]), f"{point['tick_ms']:g} ms", word, f"{point['late_share']:.3%}",
                *_numbers(point["ends"]),
            )  # fmt: skip
        console.print(promises)
        for point in found["grid"]:
            name = f"{point['channels']} channels, {point['tick_ms']:g} ms"
            console.print(f"{name}: {'' if point['promised'] else 'not '}promised: {point['why']}", highlight=False)
        console.print(
            f"us from the push of a sample to the end of its tick. {found['rule']}\n", style="dim", highlight=False
        )
    if found["loopback"]:
        _print_loopback(console, found["loopback"])
    for finding in found["findings"]:
        if finding["status"] != "ok":
            line = f"{finding['name']}: {finding['found']}; {finding['mend']}"
            console.print(f"[yellow]{escape(line)}", highlight=False)
    if changed is not None:
        _print_changes(console, changed)
    for line in found["not_measured"]:
        console.print(f"not measured: {line}", style="dim", highlight=False)


def _print_loopback(console: Console, loopback: dict[str, Any]) -> None:
    parts = Table("electrode in to actuator out, us", "p50", "p99", "p99.9", "max", box=None, pad_edge=False)
    parts.add_row("pulse pushed -> far end of the actuator", *_numbers(loopback["total"]), style="bold")
    for part in loopback["parts"]:
        parts.add_row(f"  {part['name']}", *_numbers(part))
    console.print(parts)
    console.print(_loopback_line(loopback), "\n", style="dim", highlight=False)


def _print_changes(console: Console, changed: dict[str, Any]) -> None:
    console.print(f"\n{_since_line(changed)}:", style="bold", highlight=False, markup=False)
    moved = [row for row in changed["rows"] if row["verdict"] in ("slower", "faster")]
    if moved:
        rows = Table("measure", "", "then, us", "now, us", "ratio", "", box=None)
        for row in moved:
            style = "red" if row["verdict"] == "slower" else "green"
            rows.add_row(*_change_cells(row), f"[{style}]{row['verdict']}")
        console.print(rows)
    unjudged = sum(row["verdict"].startswith("not judged") for row in changed["rows"])
    told = f"{len(moved)} of {len(changed['rows'])} figures changed"
    console.print(f"{told}, {unjudged} not judged; {changed['rule']}", style="dim", highlight=False)
    for line in [*_promise_lines(changed), *_fact_lines(changed)]:
        console.print(line, highlight=False, markup=False)


# -- a page -----------------------------------------------------------------------------------------------------------


def write_html(path: Path, found: dict[str, Any], changed: dict[str, Any] | None) -> Path:
    """Write the page: promises, every histogram beside its bare loop, what changed, and what was not measured.

    Parameters
    ----------
    path : Path
        File to write.
    found : dict
        The report.
    changed : dict or None
        As `certify.compare` returns it.
    """
    host = found["host"]
    parts = [
        f"<h1>{escaped(host['name'])}: what this host can promise</h1>",
        f"<p class=small>{escaped(host['when'])}. {escaped(_host_line(host))}. {escaped(_load_line(found))}</p>",
    ]
    if found["grid"]:
        parts += ["<h2>Promises</h2>", f"<p>{escaped(found['rule'])}</p>", _promises(found["grid"])]
    if found["findings"]:
        rows = [[f["name"], f["status"], f["found"], f["mend"]] for f in found["findings"]]
        parts += ["<h2>What bears on it</h2>", table(("check", "", "found", "to mend"), rows)]
    key = (
        f'<p class="small key"><i style="background:{ACCENT}"></i>measured<i style="background:{PALE}"></i>bare'
        f'<i style="background:{_LIMIT};width:2px"></i>end of the period; upwards: share of the times, both axes are '
        "logarithmic</p>"
    )
    parts += ["<h2>Beside bare loops</h2>", key, _measures(found["measures"])]
    for measure in found["measures"].values():
        caption = f"{measure['title']}: {measure['what']}; bare: {measure['bare_is']}"
        parts.append(histogram(measure["ours"], measure["bare"], caption))
    if found["grid"]:
        parts += ["<h2>The closed loop</h2>", key]
    for point in found["grid"]:
        name, period = f"{point['channels']} channels, ticks of {point['tick_ms']:g} ms", 1e3 * point["tick_ms"]
        answers = point["answers"]
        parts.append(f"<h3>{escaped(name)}</h3>")
        parts.append(histogram(point["ends"], None, "end of the tick after the push of its sample", period))
        parts.append(histogram(answers["ours"], answers["bare"], "command at a subscriber; bare: pylsl + pyzmq"))
        parts.append(histogram(point["computed"], None, "computing of one tick, by its own clock", period))
    if loopback := found["loopback"]:
        parts += ["<h2>Electrode in to actuator out</h2>", f"<p>{escaped(loopback['what'])}</p>"]
        rows = [["all of it", *_numbers(loopback["total"])], *([p["name"], *_numbers(p)] for p in loopback["parts"])]
        parts += [table(("us", "p50", "p99", "p99.9", "max"), rows, numbers=(1, 2, 3, 4))]
        parts += [f"<p class=small>{escaped(_loopback_line(loopback))}</p>"]
        parts.append(histogram(loopback["total"], None, "pulse pushed to the far end of the actuator"))
        parts += [histogram(part, None, part["name"]) for part in loopback["parts"]]
    if changed is not None:
        parts.append(_changes(changed))
    parts += ["<h2>Not measured</h2><ul>", *(f"<li>{escaped(line)}</li>" for line in found["not_measured"]), "</ul>"]
    return write_page(path, f"certify: {host['name']}", parts, _STYLE)


def histogram(ours: dict[str, Any], bare: dict[str, Any] | None, caption: str, limit_us: float | None = None) -> str:
    """Return a histogram with logarithmic axes as SVG; each of its series is a share of its own messages.

    Parameters
    ----------
    ours, bare : dict
        As `certify.series` returns them.
    caption : str
        What it shows.
    limit_us : float, optional
        Drawn as a line: the end of the period.
    """
    drawn = [(bare, PALE), (ours, ACCENT)] if bare is not None else [(ours, ACCENT)]
    used = np.flatnonzero(np.sum([series["histogram"] for series, _ in drawn], axis=0))
    ends_us = [float(EDGES_US[used[0]]), float(EDGES_US[used[-1] + 1]), *([] if limit_us is None else [limit_us])]
    low = math.floor(math.log10(min(ends_us)) + 1e-9)
    high = max(math.ceil(math.log10(max(ends_us)) - 1e-9), low + 1)
    decades = 1 + math.floor(math.log10(max(series["n"] for series, _ in drawn)))  # what came once is seen

    def x(us: float) -> float:
        share = (math.log10(min(max(us, EDGES_US[0]), EDGES_US[-1])) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return _TOP - math.log10(share) / decades * (_HEIGHT - _BOTTOM - _TOP)

    def upright(us: float, style: str) -> str:
        return f'<line x1="{x(us):.1f}" x2="{x(us):.1f}" y1="{_TOP}" y2="{floor}" {style}/>'

    parts = []
    floor = _HEIGHT - _BOTTOM
    for us in (step * 10.0**decade for decade in range(low, high + 1) for step in (1, 2, 5)):
        is_decade = math.log10(us) % 1.0 == 0.0
        if us <= 10.0**high and (is_decade or high - low <= 2):
            parts.append(upright(us, 'stroke="#eee"'))
            parts.append(f'<text x="{x(us):.1f}" y="{floor + 14}" text-anchor="middle">{_us(us)}</text>')
    for power in (0, 2, decades):
        words = f"{10.0**-power:.{max(power - 2, 0)}%}"
        parts.append(f'<text x="{_LEFT - 4}" y="{y(10.0**-power) + 4:.1f}" text-anchor="end">{words}</text>')
    for series, colour in drawn:
        path = []
        for k, count in enumerate(series["histogram"]):
            if count:
                left, right = x(EDGES_US[k]), x(EDGES_US[k + 1])
                path.append(f"M{left:.1f},{floor}V{y(count / series['n']):.1f}H{right:.1f}V{floor}Z")
        parts.append(f'<path d="{"".join(path)}" fill="{colour}" fill-opacity="0.75"/>')
    for row, (name, key) in enumerate(_NAMES[:2]):  # above each other, since they may be near
        if ours[key] is not None:
            parts.append(upright(ours[key], 'stroke="#1b1b1b" stroke-dasharray="2 3"'))
            parts.append(f'<text x="{x(ours[key]):.1f}" y="{_TOP - 15 + 12 * row}" text-anchor="middle">{name}</text>')
    if limit_us is not None:
        parts.append(upright(limit_us, f'stroke="{_LIMIT}" stroke-width="1.5"'))
    numbers = ", ".join(f"{name} {_number(ours[key])}" for name, key in _NAMES)
    if bare is not None:
        numbers += "; bare " + ", ".join(f"{name} {_number(bare[key])}" for name, key in _NAMES)
    svg = f'<svg role="img" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    title = f"<title>{escaped(caption)}</title>"
    said = f"<b>{escaped(caption)}</b><br>{numbers} us, {ours['n']:,} times"
    return f"<figure>{svg}{title}{''.join(parts)}</svg><figcaption>{said}</figcaption></figure>"


def _us(us: float) -> str:
    return f"{us:g} us" if us < 1e3 else f"{us / 1e3:g} ms" if us < 1e6 else f"{us / 1e6:g} s"


def _promises(grid: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class=n>{point['channels']}</td><td class=n>{point['tick_ms']:g} ms</td>"
        f"<td class={'yes' if point['promised'] else 'no'}>{'promised' if point['promised'] else 'not promised'}</td>"
        f"<td class=n>{point['ticks']:,}</td><td class=n>{point['late_share']:.3%}</td>"
        + "".join(f"<td class=n>{number}</td>" for number in _numbers(point["ends"]))
        + f"<td>{escaped(point['why'])}</td></tr>"
        for point in grid
    )
    head = ("channels", "tick", "", "ticks", "late", "p50, us", "p99", "p99.9", "max", "why")
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f"<table class=grid><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _measures(measures: dict[str, Any]) -> str:
    rows = []
    for measure in measures.values():
        rows.append([measure["title"], *_numbers(measure["ours"]), *_excess(measure)])
        rows.append(["bare", *_numbers(measure["bare"]), "", ""])
    head = ("us", "p50", "p99", "p99.9", "max", "p50 over bare", "p99 over bare")
    target = measures["ticks"]["target"]
    word = "met" if target["met"] else "not met"
    told = f"Ticks begin at most {target['over_bare_us']:g} us later than bare at p50 and p99: {word}."
    return table(head, rows, numbers=range(1, 7)) + f"<p class=small>{told}</p>"


def _changes(changed: dict[str, Any]) -> str:
    rows = [[*_change_cells(row), row["verdict"]] for row in changed["rows"]]
    lines = "".join(f"<li>{escaped(line)}</li>" for line in [*_promise_lines(changed), *_fact_lines(changed)])
    head = ("measure", "", "then, us", "now, us", "ratio", "")
    return (
        f"<h2>{escaped(_since_line(changed))}</h2><p class=small>{escaped(changed['rule'])}; "
        f"least and greatest repetition in brackets</p><ul>{lines}</ul>" + table(head, rows, numbers=(2, 3, 4))
    )


# -- words of both ----------------------------------------------------------------------------------------------------


def _numbers(series: dict[str, Any]) -> list[str]:
    return [_number(series[key]) for _, key in _NAMES]


def _number(us: float | None) -> str:
    return "-" if us is None else f"{us:,.1f}" if us < 100.0 else f"{us:,.0f}"


def _excess(measure: dict[str, Any]) -> list[str]:
    return ["-" if over is None else f"{over:+,.1f}" for over in measure["over_bare"].values()]


def _host_line(host: dict[str, Any]) -> str:
    libraries = {"liblsl": host["liblsl"], "libzmq": host["libzmq"]} | host["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return (
        f"{host['cpu']}, {host['cores']} cores, governor {host['governor']}, {host['kernel']}, "
        f"Python {host['python']}, {versions}"
    )


def _load_line(found: dict[str, Any]) -> str:
    host = found["host"]
    return (
        f"{found['settings']['rounds']} repetitions of each measure. Load average {_load(host['load_before'])} before, "
        f"{_load(host['load_after'])} after"
    )


def _load(average: list[float]) -> str:
    return f"{average[0]:.2f}" if average else "not told"


def _since_line(changed: dict[str, Any]) -> str:
    then, now = changed["then"], changed["now"]
    return f"Since {then['when']} on {then['host']}, load average {_load(then['load'])} then, {_load(now['load'])} now"


def _loopback_line(loopback: dict[str, Any]) -> str:
    return (
        f"{loopback['sent']:,} pulses sent, {loopback['answered']:,} answered, {loopback['unasked']:,} answers "
        "too many; what the amplifier and the device behind the actuator take comes on top"
    )


def _change_cells(row: dict[str, Any]) -> list[str]:
    then, now = (f"{x[1]:,.1f} ({x[0]:,.1f}-{x[2]:,.1f})" for x in (row["then_us"], row["now_us"]))
    return [row["measure"], row["quantity"], then, now, "-" if row["ratio"] is None else f"{row['ratio']:.2f}"]


def _promise_lines(changed: dict[str, Any]) -> list[str]:
    return [
        f"{p['point']}: {'promised now' if p['now'] else 'no longer promised'} ({p['why']})"
        + ("" if p["ticks_moved"] else "; p50 and p99 of its ticks are the same, so it may be chance")
        for p in changed["promises"]
    ]


def _fact_lines(changed: dict[str, Any]) -> list[str]:
    return [f"{fact['fact']}: {fact['then']} then, {fact['now']} now" for fact in changed["host"]]
