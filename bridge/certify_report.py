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
.grid td,.grid th{padding:6px 16px 6px 0}.yes{color:#14713d;font-weight:600}.no{color:#b3261e;font-weight:600}
figure{display:inline-block;margin:.6em 1.4em .6em 0;vertical-align:top}figcaption{font-size:13px;max-width:540px}
svg text{font:11px system-ui,sans-serif;fill:#444}.key i{display:inline-block;width:1em;height:.8em;margin:0 .3em 0 1em}
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 540, 170, 44, 30, 14
_NAMES = (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us"))


# -- a terminal -------------------------------------------------------------------------------------------------------


def print_report(console: Console, found: dict[str, Any], changed: dict[str, Any] | None) -> None:
    """Print a report, and what changed."""
    host = found["host"]
    console.print(_host_line(host), highlight=False, markup=False)
    console.print(_load_line(host), "\n", highlight=False, markup=False)
    measures = Table("us", "p50", "p99", "p99.9", "max", "p50 over bare", "p99 over bare", box=None, pad_edge=False)
    for measure in found["measures"].values():
        over = measure["over_bare"]
        excess = [f"{over['p50_us']:+,.1f}", f"{over['p99_us']:+,.1f}"]
        measures.add_row(measure["title"], *_numbers(measure["ours"]), *excess)
        measures.add_row("  bare", *_numbers(measure["bare"]), style="dim")
    console.print(measures)
    target = found["measures"]["ticks"]["target"]
    told = "[green]met" if target["met"] else "[red]not met"
    console.print(
        f"ticks at most {target['over_bare_us']:g} us later than bare, at p50 and p99: {told}\n", highlight=False
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
    then = changed["then"]
    console.print(f"\nsince {then['when']} on {then['host']}:", style="bold", highlight=False)
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
        f"<p class=small>{escaped(host['when'])}. {escaped(_host_line(host))}. {escaped(_load_line(host))}</p>",
    ]
    if found["grid"]:
        parts += ["<h2>Promises</h2>", f"<p>{escaped(found['rule'])}</p>", _promises(found["grid"])]
    if found["findings"]:
        rows = [[f["name"], f["status"], f["found"], f["mend"]] for f in found["findings"]]
        parts += ["<h2>What bears on it</h2>", table(("check", "", "found", "to mend"), rows)]
    key = f'<p class="small key"><i style="background:{ACCENT}"></i>measured<i style="background:{PALE}"></i>bare</p>'
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
        parts.append(histogram(point["ends"], None, f"{name}: end of the tick after the push of its sample", period))
        parts.append(
            histogram(answers["ours"], answers["bare"], f"{name}: command at a subscriber; bare: pylsl + pyzmq")
        )
        parts.append(histogram(point["computed"], None, f"{name}: computing of one tick, by its own clock", period))
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
    first, last = math.log10(EDGES_US[used[0]]), math.log10(EDGES_US[used[-1] + 1])
    if limit_us is not None:
        last = max(last, math.log10(limit_us))
    low, high = math.floor(first + 1e-9), max(math.ceil(last - 1e-9), math.floor(first + 1e-9) + 1)
    decades = max(1.0, math.ceil(math.log10(max(series["n"] for series, _ in drawn))))

    def x(us: float) -> float:
        share = (math.log10(max(us, EDGES_US[0])) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - 8)

    def y(share: float) -> float:
        up = 0.0 if share <= 0.0 else max(0.0, 1.0 + math.log10(share) / decades)
        return _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    floor = _HEIGHT - _BOTTOM
    for decade in range(low, high + 1):
        at = x(10.0**decade)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}" stroke="#eee"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 14}" text-anchor="middle">{_us(10.0**decade)}</text>')
    for share in (1.0, 0.01, 10.0**-decades):
        words = "1" if share == 1.0 else f"{share:.0e}".replace("e-0", "e-")
        parts.append(f'<text x="{_LEFT - 4}" y="{y(share) + 4:.1f}" text-anchor="end">{words}</text>')
    for series, colour in drawn:
        path = [f"M{x(EDGES_US[0]) if low <= 0 else _LEFT:.1f},{floor}"]
        for k, count in enumerate(series["histogram"]):
            if count:
                top = y(count / series["n"])
                left, right = x(EDGES_US[k]), x(EDGES_US[k + 1])
                path.append(f"M{left:.1f},{floor}V{top:.1f}H{right:.1f}V{floor}Z")
        parts.append(f'<path d="{"".join(path)}" fill="{colour}" fill-opacity="0.75"/>')
    for name, key in _NAMES[:2]:
        at = x(ours[key])
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}" stroke="#1b1b1b" stroke-dasharray="2 3"/>'
        )
        parts.append(f'<text x="{at:.1f}" y="{_TOP - 3}" text-anchor="middle">{name}</text>')
    if limit_us is not None:
        at = x(limit_us)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{floor}" stroke="#b3261e" stroke-width="1.5"/>'
        )
    numbers = ", ".join(f"{name} {ours[key]:,.0f}" for name, key in _NAMES)
    if bare is not None:
        numbers += "; bare " + ", ".join(f"{name} {bare[key]:,.0f}" for name, key in _NAMES)
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
        over = measure["over_bare"]
        rows.append(
            [measure["title"], *_numbers(measure["ours"]), f"{over['p50_us']:+,.1f}", f"{over['p99_us']:+,.1f}"]
        )
        rows.append(["bare", *_numbers(measure["bare"]), "", ""])
    head = ("us", "p50", "p99", "p99.9", "max", "p50 over bare", "p99 over bare")
    target = measures["ticks"]["target"]
    word = "met" if target["met"] else "not met"
    told = f"Ticks at most {target['over_bare_us']:g} us later than bare at p50 and p99: {word}."
    return table(head, rows, numbers=range(1, 7)) + f"<p class=small>{told}</p>"


def _changes(changed: dict[str, Any]) -> str:
    then = changed["then"]
    rows = [[*_change_cells(row), row["verdict"]] for row in changed["rows"]]
    lines = "".join(f"<li>{escaped(line)}</li>" for line in [*_promise_lines(changed), *_fact_lines(changed)])
    head = ("measure", "", "then, us", "now, us", "ratio", "")
    return (
        f"<h2>Since {escaped(then['when'])} on {escaped(then['host'])}</h2><p class=small>{escaped(changed['rule'])}; "
        f"quartiles in brackets</p><ul>{lines}</ul>" + table(head, rows, numbers=(2, 3, 4))
    )


# -- words of both ----------------------------------------------------------------------------------------------------


def _numbers(series: dict[str, Any]) -> list[str]:
    return [f"{series[key]:,.1f}" if series[key] < 100.0 else f"{series[key]:,.0f}" for _, key in _NAMES]


def _host_line(host: dict[str, Any]) -> str:
    libraries = {"liblsl": host["liblsl"], "libzmq": host["libzmq"]} | host["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return (
        f"{host['cpu']}, {host['cores']} cores, governor {host['governor']}, {host['kernel']}, "
        f"Python {host['python']}, {versions}"
    )


def _load_line(host: dict[str, Any]) -> str:
    loads = [f"{load[0]:.2f}" for load in (host["load_before"], host["load_after"]) if load]
    return f"Load average before and after: {', '.join(loads) or 'not told'}"


def _loopback_line(loopback: dict[str, Any]) -> str:
    return (
        f"{loopback['sent']:,} pulses sent, {loopback['answered']:,} answered, {loopback['unasked']:,} answers without "
        "a pulse; what the amplifier and the device behind the actuator take comes on top"
    )


def _change_cells(row: dict[str, Any]) -> list[str]:
    then, now = (f"{x[1]:,.1f} ({x[0]:,.1f}-{x[2]:,.1f})" for x in (row["then_us"], row["now_us"]))
    return [row["measure"], row["quantity"], then, now, "-" if row["ratio"] is None else f"{row['ratio']:.2f}"]


def _promise_lines(changed: dict[str, Any]) -> list[str]:
    return [
        f"{p['channels']} channels, ticks of {p['tick_ms']:g} ms: "
        f"{'promised now' if p['now'] else 'no longer promised'} ({p['why']})"
        for p in changed["promises"]
    ]


def _fact_lines(changed: dict[str, Any]) -> list[str]:
    return [f"{fact['fact']}: {fact['then']} then, {fact['now']} now" for fact in changed["host"]]
