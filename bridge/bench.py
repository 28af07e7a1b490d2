"""`neuromod bench`: what this host makes of the project's promises, with everything that the figures depend on.

Ratios come from one interleaved run and can be compared between hosts; microseconds cannot.
"""

import importlib.metadata
import json as json_text
import os
import platform
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import zmq
from rich.console import Console
from rich.table import Table

from neuromod.bridge import bench_latency, bench_throughput
from neuromod.bridge.bench_latency import CLOSED_LOOP, EZMSG, NEUROMOD, PERCENTILES, RECORDING

_LIBRARIES = ("numpy", "numba", "llvmlite", "pylsl", "pyzmq", "msgpack", "ezmsg", "spikeinterface")
_progress = Console(stderr=True)


def latency(
    *,
    json: bool = False,
    seconds: float = 5.0,
    rounds: int = 3,
    endurance_s: float = 60.0,
    only: Collection[str] = (),
) -> int:
    """Measure the latency from an LSL sample to a ZeroMQ subscriber, beside a bare pylsl and pyzmq loop.

    Of spikes, and of commands where the loop is closed: decoder and gate at work, stimulation armed as a dry run.

    Parameters
    ----------
    json : bool
        Print JSON on stdout rather than tables.
    seconds, rounds : float, int
        Length of a run; how often each system runs.
    endurance_s : float
        Length of last runs that count lost samples, one of them recorded; 0 for none.
    only : collection of str
        Systems to run, of `bench_latency.CHOICES`, beside what they are held against; empty for all.

    Returns
    -------
    int
        0, or 1 where the daemon lost a sample, or its record a tick.

    Raises
    ------
    BenchError
        A system is asked for that there is not, or a part of the bench failed.
    """
    before = os.getloadavg() if hasattr(os, "getloadavg") else ()
    body = bench_latency.measure(seconds, rounds, endurance_s, _say, only)
    targets = _latency_targets(body)
    settings = {"seconds": seconds, "rounds": rounds, "endurance_s": endurance_s, "only": list(only)}
    report = {"host": host(before), "settings": settings, "targets": targets} | body
    if json:
        print(json_text.dumps(report, indent=2))
    else:
        console = Console()
        _print_host(console, report["host"])
        for stream in body["streams"].values():
            for table in _stream_tables(stream):
                console.print(table, "")
        for line in _closed_loop_lines(body) + _recording_lines(body):
            console.print(line, highlight=False)
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


_SHORT = {"features": "16 x 1 kHz", "raw": "96 x 30 kHz"}


def _latency_targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the systems that ran are held against."""
    streams, targets = body["streams"], []

    def ratio(name: str, key: str, system: str, limit: float) -> None:
        if key in streams and system in streams[key]["ratios"]:
            median = streams[key]["ratios"][system]["p50"]["median"]
            targets.append(_target(f"{name}, {_SHORT[key]}", median, limit, "x"))

    for key in _SHORT:
        ratio("p50 / bare", key, NEUROMOD, 1.15)
    if busy := streams["features"]["ratio_busy_to_neuromod"]:
        targets.append(_target("p50 with a busy Python thread / without", busy["p50"]["median"], 1.15, "x"))
    for key in _SHORT:
        ratio("p50 to command / bare", key, CLOSED_LOOP, 1.2)
    for key, stream in streams.items():
        if recorded := stream["ratio_recording_to_neuromod"]:
            name = f"p50 recording everything / not, {_SHORT[key]}"
            targets.append(_target(name, recorded["p50"]["median"], 1.1, "x"))
    for key, stream in streams.items():
        if runs := _runs_of(stream, CLOSED_LOOP):
            # a loop in which the gate never had anything to decide would be a cheap one
            issued, name = _issued(runs), f"trains that the gate let pass, {_SHORT[key]}"
            targets.append(_target(name, issued, 1, "", at_least=True))
    for key, stream in streams.items():
        if NEUROMOD in stream["systems"]:
            first_ms = stream["systems"][NEUROMOD]["first_us"]["median"] / 1000.0
            targets.append(_target(f"first sample after start, {_SHORT[key]}", first_ms, 5.0, "ms"))
    for key, stream in streams.items():
        for system, told in ((NEUROMOD, "lost"), (CLOSED_LOOP, "commands lost"), (RECORDING, "lost, recording")):
            if system in stream["systems"]:
                unit = "chunks" if key == "raw" else ""
                lost = stream["systems"][system]["lost"]
                targets.append(_target(f"{told}, {_SHORT[key]}", lost, 0, unit, must=True))
    both = streams["features"]["systems"]
    if EZMSG in both and NEUROMOD in both:
        ours = both[NEUROMOD]["p50_us"] / both[EZMSG]["p50_us"]
        targets.append(_target("p50 / ezmsg, 16 x 1 kHz", ours, 0.4, "x"))
    for run in body["endurance"].values():
        recorded = ", recording" if run["system"] == RECORDING else ""
        name = f"lost in {run['seconds']:g} s, {_SHORT[run['stream']]}{recorded}"
        targets.append(_target(name, run["lost"], 0, "", must=True))
    return targets + _recording_targets(body)


def _recording_targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    runs = _recorded(body)
    if not runs:
        return []
    recordings = [run["notes"]["recording"] for run in runs]
    targets = [
        _target(
            f"{what} lost by the record", sum(found.get(f"{what}_lost", 1) for found in recordings), 0, "", must=True
        )
        for what in ("ticks", "samples")
    ]
    damaged = sum(not found["is_ok"] for found in recordings)
    targets.append(_target("sessions that do not verify", damaged, 0, "", must=True))
    last = body["endurance"].get("recording")
    if last is not None and last["notes"]["memory"]:
        name = f"memory grown in the last half of {last['seconds']:g} s, recording"
        # in its first minute the daemon gathers the ticks that events are aligned to, some 4 MB of them, recorded or
        # not; beyond it a run of 300 s would show a leak of 30 bytes a tick
        targets.append(_target(name, last["notes"]["memory"]["growth_mb"], 4.0, "MB"))
    return targets


def _recorded(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all runs that were recorded."""
    runs = [run for stream in body["streams"].values() for run in _runs_of(stream, RECORDING)]
    return runs + [run for run in body["endurance"].values() if run["system"] == RECORDING]


def _runs_of(stream: dict[str, Any], system: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = stream["systems"].get(system, {"runs": []})["runs"]
    return runs


def _closed_loop_lines(body: dict[str, Any]) -> list[str]:
    """Say that the loop was closed indeed, and how long inputs took."""
    lines = []
    for stream in body["streams"].values():
        if not (runs := _runs_of(stream, CLOSED_LOOP)):
            continue
        notes = [run["notes"] for run in runs]
        counts = [note["system"]["stimulation"]["counts"] for note in notes]
        refused = sum(n for count in counts for name, n in count.items() if name.startswith("refused_"))
        armed = sum(note["poll"]["armed"] for note in notes)
        line = (
            f"closed loop, {stream['name']}: runs {len(runs)}, armed {armed} times, {_issued(runs)} trains let pass, "
        )
        line += f"{refused} refused"
        if latency := input_latency(notes):
            line += f"; inputs took effect after {latency['p50']:.0f} us (p50), {latency['max']:.0f} us at most"
        lines.append(line)
    return lines


def _issued(runs: list[dict[str, Any]]) -> int:
    """Return how many trains the gate let pass; a dry run sends none of them."""
    return sum(run["notes"]["system"]["stimulation"]["counts"]["issued"] for run in runs)


def input_latency(notes: list[dict[str, Any]]) -> dict[str, float]:
    """Return how long inputs took from `send` to the end of the tick that they act on, in us.

    `health` tells it by the second: `p50` and `p99` are medians of those, `max` is of all. Empty where none came.
    """
    windows = [window for note in notes for window in (*note["poll"]["windows"], note["system"]["ingest_latency_us"])]
    windows = [window for window in windows if window]
    if not windows:
        return {}
    found = {name: float(np.median([window[name] for window in windows])) for name in ("p50", "p99")}
    return found | {"max": max(window["max"] for window in windows)}


def _recording_lines(body: dict[str, Any]) -> list[str]:
    lines = []
    for run in _recorded(body):
        found, memory = run["notes"]["recording"], run["notes"]["memory"]
        if "n_bytes" not in found:
            lines.append(f"recording: {found['why']}")
            continue
        line = f"recording: {found['n_bytes'] / 1e6:.0f} MB, {found['ticks']} ticks, {found['ticks_lost']} lost; "
        line += f"{found['samples']} samples, {found['samples_lost']} lost"
        if memory:
            line += f"; memory {memory['begin_mb']:.1f} MB, at the end {memory['end_mb']:.1f} MB"
        if not found["is_ok"]:
            line += f"; ended {found['ended']}: {found['why'] or ', '.join(found['faults'])}"
        lines.append(line)
    return lines


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
