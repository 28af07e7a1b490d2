"""What a host may promise, and what changed since another day: the rules of `neuromod certify`.

A measurement becomes a report: a map of plain numbers that JSON can hold, with the repetitions of each measure, so
that a later one can tell a change from noise.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from neuromod.bridge.certify_measures import RATE_HZ, Loopback, Measured, Pair, Point
from neuromod.engine.errors import ConfigError

SCHEMA = 1
MARGIN = 0.1
"""Share of a period that has to be left between the 99.9th percentile and the end of the period."""

LEAST_TICKS = 3000
"""Where none of so many was late, at least 99.9% of all are in time, at a confidence of 95%."""

TICK_TARGET_US = 10.0
"""How far the loop's ticks may be later than those of a bare loop, at p50 and at p99."""

CHANGE = 0.1
"""A change of less than this is none, however sure it is."""

LEAST_RUNS = 5
"""Repetitions on either side: all of five beyond all of another five are, by chance alone, one of 126 figures."""

EDGES_US: NDArray[np.float64] = np.geomspace(1.0, 1e6, 121)
"""Edges of every histogram: twenty to a decade, the same on every day; what lies outside is in the outermost bins."""

NOT_MEASURED = (
    "Minutes, not days: what comes once an hour (a cron job, an update, a backup, a change of frequency) was not seen.",
    "The amplifier, its driver and its network: sample times begin at the push into LSL, on this host.",
    "Other work: what else will run beside a session was there only as far as it ran during this measurement.",
    "Recording, offload to a board, several subscribers: 'neuromod bench latency' measures recording.",
)

_QUANTILES = {"p50_us": 50.0, "p99_us": 99.0, "p999_us": 99.9, "max_us": 100.0}
_CHECKS = ("clock", "timer", "cores", "governor", "real time", "locked memory")
_HOST_FACTS = ("name", "cpu", "cores", "kernel", "governor", "python", "liblsl", "libzmq")


# -- a report ---------------------------------------------------------------------------------------------------------


def report(measured: Measured, host: dict[str, Any], findings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the whole report.

    Parameters
    ----------
    measured : Measured
        What was measured.
    host : dict
        As `host_facts` returns it.
    findings : sequence of dict
        Of 'neuromod doctor'.
    """
    ticks = _pair(
        "tick lateness", "from when a tick of 1 ms is due until the daemon's own loop begins it", measured.ticks
    )
    ended = _pair("tick end", "from when the same tick is due until it has ended", measured.ended)
    ticks["bare_is"] = ended["bare_is"] = measured.bare_ticks
    ticks["target"] = {
        "over_bare_us": TICK_TARGET_US,
        "met": all(over is not None and over <= TICK_TARGET_US for over in ticks["over_bare"].values()),
    }
    zeromq = _pair("ZeroMQ", "PUB to SUB, one way between two processes", measured.zeromq)
    lsl = _pair("LSL", "outlet to inlet, one way between two processes", measured.lsl)
    zeromq["bare_is"] = lsl["bare_is"] = "TCP over loopback, the same 64 bytes, the same two processes"
    return {
        "schema": SCHEMA,
        "host": host,
        "settings": asdict(measured.settings),
        "findings": [finding for finding in findings if finding["name"] in _CHECKS],
        "measures": {"zeromq": zeromq, "lsl": lsl, "ticks": ticks, "ended": ended},
        "rule": rule(),
        "grid": [_point(point) for point in measured.points],
        "loopback": None if measured.loopback is None else _loopback(measured.loopback),
        "not_measured": [
            *NOT_MEASURED,
            *([] if measured.loopback else ["The way out to an actuator: --loopback does."]),
        ],
    }


def rule() -> str:
    """Return the rule of a promise, in words."""
    return (
        "A tick is late when it ends more than one period after its newest sample was pushed into LSL. A rate is "
        f"promised where no tick of {LEAST_TICKS:,} or more was late, none was missing, and the 99.9th percentile "
        f"leaves {MARGIN:.0%} of the period free. The confidence of 95% takes late ticks to come one by one; where "
        "they come in bursts, only a longer measurement tells."
    )


def series(runs: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Return what is kept of a measure: percentiles of all and of each repetition, and a histogram, in us."""
    together = np.concatenate(runs)
    inside = np.clip(together, EDGES_US[0], EDGES_US[-1])
    return {
        "n": len(together),
        **_percentiles(together),
        "runs": [_percentiles(run) for run in runs],
        "histogram": np.histogram(inside, EDGES_US)[0].tolist(),
    }


def _percentiles(us: NDArray[np.float64]) -> dict[str, float | None]:
    """Return percentiles; None for those beyond which not one of so few lies."""
    return {
        name: round(float(np.percentile(us, q)), 3) if q == 100.0 or len(us) * (100.0 - q) >= 100.0 else None
        for name, q in _QUANTILES.items()
    }


def _pair(title: str, what: str, pair: Pair) -> dict[str, Any]:
    ours, bare = series(pair.ours), series(pair.bare)
    over = {name: _excess(ours["runs"], bare["runs"], name) for name in ("p50_us", "p99_us")}
    return {"title": title, "what": what, "ours": ours, "bare": bare, "over_bare": over}


def _excess(ours: list[dict[str, Any]], bare: list[dict[str, Any]], name: str) -> float | None:
    # within each repetition, which saw one machine; the median of them is not ruled by a bad moment
    excess = [a[name] - b[name] for a, b in zip(ours, bare, strict=True) if None not in (a[name], b[name])]
    return float(np.median(excess)) if excess else None


def _point(point: Point) -> dict[str, Any]:
    period_us = 1e3 * point.tick_ms
    ends = np.concatenate(point.ends)
    late = int((ends > period_us).sum())
    found = {
        "channels": point.channels,
        "rate_hz": RATE_HZ,
        "tick_ms": point.tick_ms,
        "ticks": len(ends),
        "late": late,
        "late_share": late / len(ends),
        "missing": point.n_missing,
        "ends": series(point.ends),
        "computed": series(point.computed),
        "answers": _pair("answer", "from the push to a subscriber of commands", point.answers),
    }
    return found | judge(found)


def judge(point: dict[str, Any]) -> dict[str, Any]:
    """Say whether a point of the grid is promised, and why or why not.

    Parameters
    ----------
    point : dict
        With `tick_ms`, `ticks`, `late`, `missing` and `ends`.

    Returns
    -------
    dict
        `promised` and `why`.
    """
    n = point["ticks"]
    reasons = []
    if n < LEAST_TICKS:
        reasons.append(f"only {n:,} ticks were measured, {LEAST_TICKS:,} are needed")
    if point["late"]:
        reasons.append(f"{point['late']:,} of {n:,} ticks ended after their period")
    if point["missing"]:
        reasons.append(f"{point['missing']:,} blocks gave no tick")
    if reasons:
        return {"promised": False, "why": "; ".join(reasons)}
    free = 1.0 - point["ends"]["p999_us"] / (1e3 * point["tick_ms"])
    if free < MARGIN:
        return {"promised": False, "why": f"p99.9 leaves {free:.0%} of the period, less than {MARGIN:.0%}"}
    one_in = 1.0 / (1.0 - 0.05 ** (1.0 / n))
    why = f"none of {n:,} ticks late, so fewer than 1 in {one_in:,.0f} at 95%; p99.9 leaves {free:.0%} of the period"
    return {"promised": True, "why": why}


def _loopback(found: Loopback) -> dict[str, Any]:
    return {
        "what": "a pulse in channel 0 of 16 at 30 kHz, pushed into LSL -> front end -> network -> decoder -> command "
        "-> 'neuromod actuate zmq' -> a program behind it",
        "total": series(found.total),
        "parts": [{"name": name} | series(runs) for name, runs in found.parts.items()],
        "sent": found.n_sent,
        "answered": found.n_answered,
        "unasked": found.n_unasked,
    }


def host_name() -> str:
    """Return the name of this host."""
    return platform.node() or "host"


def host_facts(load_before: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return what figures depend on: as of `neuromod bench`, with the host's name and its governors."""
    from neuromod.bridge.bench import host

    governors = {
        path.read_text().strip() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    return {"name": host_name(), "governor": ", ".join(sorted(governors)) or "not told"} | host(load_before)


# -- another day ------------------------------------------------------------------------------------------------------


def compare(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Say what changed between two reports.

    A measure changed where all repetitions of one report lie beyond all of the other, and their medians differ by
    `CHANGE` or more; fewer than `LEAST_RUNS` repetitions are not judged.

    Returns
    -------
    dict
        `then` and `now` (date, host, load average), `rule`, `rows` (measure, quantity, least, median and greatest
        repetition of both, verdict), `promises` that were lost or won, and `host` facts that differ.
    """
    rows: list[dict[str, Any]] = []
    before = dict(_all_series(then))
    for name, found in _all_series(now):
        if name in before:
            for quantity in ("p50_us", "p99_us"):
                rows += _row(name, quantity, before[name]["runs"], found["runs"])
    moved = {row["measure"] for row in rows if row["verdict"] in ("slower", "faster")}
    held = {_name(p): p["promised"] for p in then["grid"]}
    promises = [
        {
            "point": name,
            "then": held[name],
            "now": p["promised"],
            "why": p["why"],
            "ticks_moved": f"{name}: end of tick" in moved,
        }
        for p in now["grid"]
        if (name := _name(p)) in held and held[name] != p["promised"]
    ]
    old, new = _facts(then), _facts(now)
    return {
        "then": _when(then),
        "now": _when(now),
        "rule": (
            "changed: all repetitions of one day lie beyond all of the other (by chance alone, 1 figure in 126 does), "
            f"and medians differ by {CHANGE:.0%} or more; the host or its load: see the load averages"
        ),
        "rows": rows,
        "promises": promises,
        "host": [
            {"fact": fact, "then": old.get(fact), "now": new.get(fact)}
            for fact in old | new
            if old.get(fact) != new.get(fact)
        ],
    }


def _when(found: dict[str, Any]) -> dict[str, Any]:
    host = found["host"]
    return {"when": host["when"], "host": host["name"], "load": [float(load) for load in host["load_before"]]}


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    """Return what does not change by itself."""
    facts = {fact: found["host"].get(fact) for fact in _HOST_FACTS}
    facts |= found["host"]["versions"]
    return facts | {f["name"]: f["found"] for f in found["findings"] if f["name"] not in ("timer", "governor")}


def _name(point: dict[str, Any]) -> str:
    return f"{point['channels']} channels, {point['tick_ms']:g} ms"


def _all_series(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for measure in found["measures"].values():
        yield measure["title"], measure["ours"]
        yield f"{measure['title']}, bare", measure["bare"]
    for point in found["grid"]:
        name = _name(point)
        yield f"{name}: end of tick", point["ends"]
        yield f"{name}: computing", point["computed"]
        yield f"{name}: command", point["answers"]["ours"]
        yield f"{name}: bare", point["answers"]["bare"]
    if found["loopback"]:
        yield "loopback", found["loopback"]["total"]


def _row(name: str, quantity: str, then: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    before, after = ([run[quantity] for run in runs if run[quantity] is not None] for runs in (then, now))
    if not (before and after):
        return
    medians = float(np.median(before)), float(np.median(after))
    if min(len(before), len(after)) < LEAST_RUNS:
        verdict = f"not judged: fewer than {LEAST_RUNS} repetitions"
    elif medians[1] >= (1.0 + CHANGE) * medians[0] and min(after) > max(before):
        verdict = "slower"
    elif medians[1] <= (1.0 - CHANGE) * medians[0] and max(after) < min(before):
        verdict = "faster"
    else:
        verdict = "the same"
    yield {
        "measure": name, "quantity": quantity.removesuffix("_us"),
        "then_us": [round(x, 1) for x in (min(before), medians[0], max(before))],
        "now_us": [round(x, 1) for x in (min(after), medians[1], max(after))],
        "ratio": round(medians[1] / medians[0], 3) if medians[0] > 0.0 else None, "verdict": verdict,
    }  # fmt: skip


# -- where reports are kept -------------------------------------------------------------------------------------------


def folder_of(host: str) -> Path:
    """Return where the reports of a host are kept."""
    return platformdirs.user_data_path("neuromod") / "certify" / (re.sub(r"[^\w.-]+", "-", host).strip(".") or "host")


def make(folder: Path) -> None:
    """Make the folder of the reports of a host.

    Raises
    ------
    ConfigError
        It cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def keep(found: dict[str, Any], folder: Path) -> Path:
    """Write a report into a folder, under the time at which it was made; whole or not at all.

    Raises
    ------
    ConfigError
        The folder cannot be written to.
    """
    make(folder)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%SZ', time.gmtime())}.json"
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return path


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder}: cannot be written to ({error.strerror}); see --no-keep")


def newest(folder: Path) -> Path | None:
    """Return the newest report of a folder; None where there is none."""
    return max(folder.glob("*.json"), default=None, key=lambda path: path.name)


def load(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises
    ------
    ConfigError
        It cannot be read, or is no report of this version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a file that 'certify' kept") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is no JSON; give a file that 'certify' kept, or its --json") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        told = found.get("schema", "none") if isinstance(found, dict) else "none"
        raise ConfigError(f"{path}: is no report of 'certify' (schema {told}, expected {SCHEMA}); measure anew")
    try:  # whoever edited it hears of it here, and not in the middle of a table
        json.dumps(compare(found, found), allow_nan=False)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"{path}: is no whole report of 'certify' ({error!r} is missing or wrong); measure anew"
        ) from None
    return found


def is_promised(found: dict[str, Any], channels: int, tick_ms: float) -> bool:
    """Say whether a report promises a point; one that was not measured, by one with more channels or shorter ticks."""
    for p in found["grid"]:
        if (p["channels"], p["tick_ms"]) == (channels, tick_ms):
            return bool(p["promised"])
    return any(p["promised"] for p in found["grid"] if p["channels"] >= channels and p["tick_ms"] <= tick_ms)
