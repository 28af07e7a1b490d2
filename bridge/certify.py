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

LEAST_TICKS = 1000
"""Fewer ticks have no 99.9th percentile."""

TICK_TARGET_US = 10.0
"""How far the loop's ticks may be later than those of a bare loop, at p50 and at p99."""

CHANGE = 0.1
"""A change of less than this is none, however sure it is."""

LEAST_RUNS = 3

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
_HOST_FACTS = ("cpu", "cores", "kernel", "governor", "python", "liblsl", "libzmq", "versions")


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
        "tick lateness", "from when a tick of 1 ms is due to its end, in the daemon's own loop", measured.ticks
    )
    ticks["bare_is"] = measured.bare_ticks
    ticks["woke"] = series(measured.wakes)
    ticks["target"] = {
        "over_bare_us": TICK_TARGET_US,
        "met": max(ticks["over_bare"]["p50_us"], ticks["over_bare"]["p99_us"]) <= TICK_TARGET_US,
    }
    zeromq = _pair("ZeroMQ", "PUB to SUB, one way between two processes", measured.zeromq)
    lsl = _pair("LSL", "outlet to inlet, one way between two processes", measured.lsl)
    zeromq["bare_is"] = lsl["bare_is"] = "TCP over loopback, the same 64 bytes, the same two processes"
    return {
        "schema": SCHEMA,
        "host": host,
        "settings": asdict(measured.settings),
        "findings": [finding for finding in findings if finding["name"] in _CHECKS],
        "measures": {"zeromq": zeromq, "lsl": lsl, "ticks": ticks},
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
        f"leaves {MARGIN:.0%} of the period free."
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


def _percentiles(us: NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(np.percentile(us, q)), 3) for name, q in _QUANTILES.items()}


def _pair(title: str, what: str, pair: Pair) -> dict[str, Any]:
    ours, bare = series(pair.ours), series(pair.bare)
    # within each repetition, which saw one machine; the median of them is not ruled by a bad moment
    over = {
        name: float(np.median([a[name] - b[name] for a, b in zip(ours["runs"], bare["runs"], strict=True)]))
        for name in ("p50_us", "p99_us")
    }
    return {"title": title, "what": what, "ours": ours, "bare": bare, "over_bare": over}


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
    period_us = 1e3 * point["tick_ms"]
    free = 1.0 - point["ends"]["p999_us"] / period_us
    reasons = []
    if point["ticks"] < LEAST_TICKS:
        reasons.append(f"only {point['ticks']:,} ticks were measured, {LEAST_TICKS:,} are needed")
    if point["late"]:
        reasons.append(f"{point['late']:,} of {point['ticks']:,} ticks ended after their period")
    if point["missing"]:
        reasons.append(f"{point['missing']:,} blocks gave no tick")
    if free < MARGIN:
        past = "lies beyond the period" if free < 0.0 else f"leaves {free:.0%} of the period, less than {MARGIN:.0%}"
        reasons.append(f"p99.9 {past}")
    if reasons:
        return {"promised": False, "why": "; ".join(reasons)}
    seconds = point["ticks"] * point["tick_ms"] / 1e3
    return {"promised": True, "why": f"no tick late in {seconds:.3g} s, p99.9 leaves {free:.0%} of the period"}


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


def host_facts(load_before: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return what figures depend on: as of `neuromod bench`, with the host's name and its governors."""
    from neuromod.bridge.bench import host

    governors = {
        path.read_text().strip() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    return {"name": platform.node() or "host", "governor": ", ".join(sorted(governors)) or "not told"} | host(
        load_before
    )


# -- another day ------------------------------------------------------------------------------------------------------


def compare(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Say what changed between two reports.

    A measure changed where the quartiles of its repetitions do not overlap, and their medians differ by `CHANGE` or
    more; fewer than `LEAST_RUNS` repetitions are not judged.

    Returns
    -------
    dict
        `then` (date and host), `rule`, `rows` (measure, quantity, quartiles of both, verdict), `promises` that were
        lost or won, and `host` facts that differ.
    """
    rows = []
    before = dict(_all_series(then))
    for name, found in _all_series(now):
        if name in before:
            rows += [_row(name, quantity, before[name]["runs"], found["runs"]) for quantity in ("p50_us", "p99_us")]
    held = {(p["channels"], p["tick_ms"]): p["promised"] for p in then["grid"]}
    promises = [
        {"channels": p["channels"], "tick_ms": p["tick_ms"], "then": held[key], "now": p["promised"], "why": p["why"]}
        for p in now["grid"]
        if (key := (p["channels"], p["tick_ms"])) in held and held[key] != p["promised"]
    ]
    facts = [
        {"fact": fact, "then": then["host"].get(fact), "now": now["host"].get(fact)}
        for fact in ("name", *_HOST_FACTS)
        if then["host"].get(fact) != now["host"].get(fact)
    ]
    return {
        "then": {"when": then["host"]["when"], "host": then["host"]["name"]},
        "rule": f"changed: quartiles of the repetitions do not overlap, and medians differ by {CHANGE:.0%} or more",
        "rows": rows,
        "promises": promises,
        "host": facts,
    }


def _all_series(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for measure in found["measures"].values():
        yield measure["title"], measure["ours"]
        yield f"{measure['title']}, bare", measure["bare"]
    for point in found["grid"]:
        name = f"{point['channels']} channels, {point['tick_ms']:g} ms"
        yield f"{name}: end of tick", point["ends"]
        yield f"{name}: computing", point["computed"]
        yield f"{name}: command", point["answers"]["ours"]
        yield f"{name}: bare", point["answers"]["bare"]
    if found["loopback"]:
        yield "loopback", found["loopback"]["total"]


def _row(name: str, quantity: str, then: list[dict[str, float]], now: list[dict[str, float]]) -> dict[str, Any]:
    before, after = (np.percentile([run[quantity] for run in runs], (25, 50, 75)) for runs in (then, now))
    if min(len(then), len(now)) < LEAST_RUNS:
        verdict = f"not judged: fewer than {LEAST_RUNS} repetitions"
    elif after[1] >= (1.0 + CHANGE) * before[1] and after[0] > before[2]:
        verdict = "slower"
    elif after[1] <= (1.0 - CHANGE) * before[1] and after[2] < before[0]:
        verdict = "faster"
    else:
        verdict = "the same"
    ratio = float(after[1] / before[1]) if before[1] > 0.0 else None
    return {
        "measure": name, "quantity": quantity.removesuffix("_us").replace("p999", "p99.9"),
        "then_us": [round(float(x), 1) for x in before], "now_us": [round(float(x), 1) for x in after],
        "ratio": None if ratio is None else round(ratio, 3), "verdict": verdict,
    }  # fmt: skip


# -- where reports are kept -------------------------------------------------------------------------------------------


def folder_of(host: str) -> Path:
    """Return where the reports of a host are kept."""
    return platformdirs.user_data_path("neuromod") / "certify" / (re.sub(r"[^\w.-]+", "-", host).strip(".") or "host")


def keep(found: dict[str, Any], folder: Path) -> Path:
    """Write a report into a folder, under the time at which it was made; whole or not at all.

    Raises
    ------
    ConfigError
        The folder cannot be written to.
    """
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); see --no-keep") from None
    return path


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
    """Say whether a report promises a point, or one that asks for more: more channels, shorter ticks."""
    return any(p["promised"] for p in found["grid"] if p["channels"] >= channels and p["tick_ms"] <= tick_ms)
