"""`neuromod bench`: what this host makes of the project's promises, with everything that the figures depend on.

Ratios come from one interleaved run and can be compared between hosts; microseconds cannot.
"""

import importlib.metadata
import json as json_text
import os
import platform
import time
from pathlib import Path
from typing import Any

import pylsl
import zmq
from rich.console import Console
from rich.table import Table

from neuromod.bridge import bench_latency, bench_throughput
from neuromod.bridge.bench_latency import EZMSG, NEUROMOD, PERCENTILES

_LIBRARIES = ("numpy", "numba", "llvmlite", "pylsl", "pyzmq", "msgpack", "ezmsg", "spikeinterface")
_progress = Console(stderr=True)


def latency(*, json: bool = False, seconds: float = 5.0, rounds: int = 3, endurance_s: float = 60.0) -> int:
    """Measure the latency from an LSL sample to a ZeroMQ subscriber, beside a bare pylsl and pyzmq loop.

    Parameters
    ----------
    json : bool
        Print JSON on stdout rather than tables.
    seconds, rounds : float, int
        Length of a run; how often each system runs.
    endurance_s : float
        Length of a last run that counts lost samples; 0 for none.

    Returns
    -------
    int
        0, or 1 where the daemon lost a sample.
    """
    before = os.getloadavg() if hasattr(os, "getloadavg") else ()
    body = bench_latency.measure(seconds, rounds, endurance_s, _say)
    targets = _latency_targets(body)
    report = {"host": host(before), "settings": {"seconds": seconds, "rounds": rounds}, "targets": targets} | body
    if json:
        print(json_text.dumps(report, indent=2))
    else:
        console = Console()
        _print_host(console, report["host"])
        for stream in body["streams"].values():
            for table in _stream_tables(stream):
                console.print(table, "")
        console.print(_targets_table(targets))
    return 0 if all(target["met"] for target in targets if target["must"]) else 1


def throughput(*, json: bool = False, seconds: float = 20.0) -> int:
    """Measure how far ahead of real time each part is.

    Parameters
    ----------
    json : bool
        Print JSON on stdout rather than tables.
    seconds : float
        Length of the recording that is replayed.

    Returns
    -------
    int
        Always 0.
    """
    before = os.getloadavg() if hasattr(os, "getloadavg") else ()
    body = bench_throughput.measure(seconds, _say)
    targets = _throughput_targets(body)
    report = {"host": host(before), "targets": targets} | body
    if json:
        print(json_text.dumps(report, indent=2))
        return 0
    console = Console()
    _print_host(console, report["host"])
    table = Table("", "one tick", "with modulators", "fill and send a message", "with a subscriber", box=None)
    names = ("tick_ns", "tick_with_modulators_ns", "frame_ns", "frame_with_subscriber_ns")
    table.add_row("ns", *("-" if body[name] is None else f"{body[name]:.0f}" for name in names))
    console.print(table)
    slowest = ", ".join(f"{n} channels {body[f'path_{n}']['slowest_block_us']:.0f} us" for n in (96, 384))
    console.print(f"slowest block of 1 ms: {slowest}")
    console.print(_targets_table(targets))
    return 0


def host(load_before: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return what figures depend on: processor, kernel, versions, and how busy the host was."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "liblsl": pylsl.library_version(),
        "libzmq": zmq.zmq_version(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
        "load_before": load_before[:1],
        "load_after": os.getloadavg()[:1] if hasattr(os, "getloadavg") else (),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _say(line: str) -> None:
    _progress.print(line, style="dim", highlight=False)


def _target(name: str, value: float, limit: float, unit: str, *, at_least: bool = False, must: bool = False) -> Any:
    met = value >= limit if at_least else value <= limit
    return {"name": name, "value": value, "limit": limit, "unit": unit, "at_least": at_least, "met": met, "must": must}


def _latency_targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    features, raw, endurance = body["streams"]["features"], body["streams"]["raw"], body["endurance"]
    ours = features["systems"][NEUROMOD]
    targets = [
        _target("p50 / bare, 16 x 1 kHz", features["ratios"][NEUROMOD]["p50"]["median"], 1.15, "x"),
        _target("p50 / bare, 96 x 30 kHz", raw["ratios"][NEUROMOD]["p50"]["median"], 1.15, "x"),
        _target(
            "p50 with a busy Python thread / without", features["ratio_busy_to_neuromod"]["p50"]["median"], 1.15, "x"
        ),
        _target("first sample after start, 16 x 1 kHz", ours["first_us"]["median"] / 1000.0, 5.0, "ms"),
        _target(
            "first sample after start, 96 x 30 kHz", raw["systems"][NEUROMOD]["first_us"]["median"] / 1000.0, 5.0, "ms"
        ),
        _target("lost, 16 x 1 kHz", ours["lost"], 0, "", must=True),
        _target("lost, 96 x 30 kHz", raw["systems"][NEUROMOD]["lost"], 0, "chunks", must=True),
    ]
    if EZMSG in features["ratios"]:
        both = features["systems"]
        targets.append(_target("p50 / ezmsg, 16 x 1 kHz", ours["p50_us"] / both[EZMSG]["p50_us"], 0.4, "x"))
    for key, run in endurance.items():
        name = f"lost in {run['seconds']:g} s, {body['streams'][key]['name']}"
        targets.append(_target(name, run["lost"], 0, "", must=True))
    return targets


def _throughput_targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _target("96 x 30 kHz raw, share of a core", body["path_96"]["median_share"], 0.5, ""),
        _target("384 x 30 kHz raw, share of a core", body["path_384"]["median_share"], 1.0, ""),
        _target("replay of 96 channels raw", body["replay_raw_96"]["times_real_time"], 20.0, "x", at_least=True),
        _target(
            "replay of 16 features at 1 kHz", body["replay_features_16"]["times_real_time"], 1000.0, "x", at_least=True
        ),
    ]


def _print_host(console: Console, found: dict[str, Any]) -> None:
    libraries = {"liblsl": found["liblsl"], "libzmq": found["libzmq"]} | found["versions"]
    console.print(f"{found['cpu']}, {found['cores']} cores, {found['kernel']}, Python {found['python']}")
    console.print(", ".join(f"{name} {version}" for name, version in libraries.items()), highlight=False)
    loads = [f"{load[0]:.2f}" for load in (found["load_before"], found["load_after"]) if load]
    if loads:
        console.print(f"load average before and after: {', '.join(loads)}\n", highlight=False)


def _stream_tables(stream: dict[str, Any]) -> list[Table]:
    times = Table(
        *("us", "p50", "p99", "p99.9", "max", "first", "lost"),
        title=f"{stream['name']}, stamp to subscriber",
        title_justify="left",
        box=None,
    )
    for system, found in stream["systems"].items():
        first, lost = f"{found['first_us']['median']:.0f}", f"{found['lost']} / {found['sent']}"
        times.add_row(system, *(f"{found[f'{name}_us']:.0f}" for name in PERCENTILES), first, lost)
    ratios = Table("ratio to bare (least to greatest)", "p50", "p99", "p99.9", box=None)
    for system, ratio in stream["ratios"].items():
        ratios.add_row(system, *(spread(ratio[name]) for name in ("p50", "p99", "p999")))
    return [times, ratios]


def spread(ratio: dict[str, float]) -> str:
    """Return a ratio with its least and greatest."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['greatest']:.2f})"


def _targets_table(targets: list[dict[str, Any]]) -> Table:
    table = Table("target", "found", "wanted", "", box=None)
    for target in targets:
        table.add_row(
            target["name"],
            f"{target['value']:.3g} {target['unit']}".strip(),
            f"{'at least' if target['at_least'] else 'at most'} {target['limit']:g}",
            "[green]met" if target["met"] else "[red]not met",
        )
    return table
