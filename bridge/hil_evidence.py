"""What a run of hardware in the loop leaves for programs: report.json, and junit.xml for CI."""

import datetime
import hashlib
import json
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from neuromod.adapters.fpga import board, wire
from neuromod.bridge.config import SessionConfig, paths_in
from neuromod.bridge.hil import Outcome
from neuromod.bridge.hil_config import Criteria, deadline_misses, float_agreement, round_trips_us
from neuromod.bridge.hil_device import TestDevice
from neuromod.bridge.wire import PROTOCOL_VERSION as MESSAGE_VERSION
from neuromod.engine.images import to_words
from neuromod.engine.layout import LAYOUT_VERSION

FORMAT_VERSION = 1
"""Of report.json."""

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}


def provenance(
    recording: Path, config: SessionConfig, outcome: Outcome, device: TestDevice, command: list[str]
) -> dict[str, Any]:
    """Return what made a run: versions, host, hashes, device."""
    return {
        "made_at": datetime.datetime.fromtimestamp(outcome.started_at, datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {
            "neuromod": version("neuromod-bridge"),
            "python": platform.python_version(),
            "numba": version("numba"),
            "numpy": version("numpy"),
            "messages": MESSAGE_VERSION,
            "serial_protocol": wire.VERSION,
            "registers": board.LAYOUT_VERSION,
            "state_layout": LAYOUT_VERSION,
        },
        "host": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "name": platform.node(),
            "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
        "hashes": {
            "recording": hash_path(recording),
            "configuration": hash_session(config),
            "files": {
                key: hash_path(path) for key, path in paths_in(config, "") if path.exists() and key != "source.path"
            },
            "images": None if outcome.start_state is None else hash_bytes(to_words(outcome.start_state).tobytes()),
        },
        "device": {"kind": _kind(device), "protocol": device.protocol, "baud": device.baud} | device.facts,
        "left_out": ["offload"] if config.offload is not None else [],
    }  # fmt: skip


def as_json(outcome: Outcome, criteria: Criteria, recording: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Return report.json."""
    trace = outcome.trace
    divergence = trace.divergence
    trips = round_trips_us(trace)
    return {
        "format": FORMAT_VERSION,
        "verdict": "passed" if outcome.is_passed else "failed",
        "recording": str(recording),
        "speed": outcome.speed or "max",
        "criteria": [
            {
                "name": j.name, "key": j.key, "limit": j.limit, "found": j.found, "status": j.status, "why": j.why,
                "value": j.value, "bound": j.bound,
            }
            for j in outcome.judgements
        ],
        "limits": criteria.model_dump(),
        "ticks": {
            "answered": trace.n_ticks - trace.lost, "submitted": trace.n_submitted, "lost": trace.lost,
            "repaired": trace.repaired, "missed": trace.missed, "dt_ms": outcome.dt_ms,
            "seconds_of_recording": trace.n_ticks * outcome.dt_ms / 1e3, "wall_s": outcome.wall_s,
        },
        "comparison": {
            "spike_mismatches": trace.spike_mismatches,
            "membrane_mismatches": trace.membrane_mismatches, "membranes_compared": trace.membranes_compared,
            "membrane_bits": trace.v_bits & 0xFFFFFF,
            "state_mismatches": trace.state_mismatches, "states_compared": trace.states_compared,
            "spikes_digest": hash_bytes(trace.column("device").astype("<u2").tobytes()),
            "float_agreement": float_agreement(trace),
            "spikes_per_channel": {
                "reference": trace.float_counts[0].tolist(), "float": trace.float_counts[1].tolist(),
                "same_tick": trace.float_counts[2].tolist(),
            },
        },
        "saturated_drives": trace.saturation.as_json() if trace.saturation.n_ticks else None,
        "first_divergence": None if divergence is None else {
            "kind": divergence.kind, "tick": divergence.tick, "loop_tick": divergence.loop_tick,
            "channels": divergence.channels,
            "words_after": [w.as_json() for w in divergence.snapshot.words[:64]] if divergence.snapshot else [],
            "read_after_ticks": divergence.snapshot.n_ticks if divergence.snapshot else None,
        },
        "times_us": {
            "deadline": outcome.timing.deadline_us,
            "deadline_misses": deadline_misses(trace, outcome.timing.deadline_us),
            "judged": not outcome.timing.why_not, "modelled_wire": outcome.modelled_us,
            "round_trip": _quantiles(trips),
            "loop_to_answer": _quantiles((trace.column("answered_at") - trace.column("t_tick")) * 1e6),
        },
        "link": {"counts": outcome.counts, "events": [{"tick": tick, "what": what} for tick, what in trace.events]},
        "loop": outcome.counters,
        "golden": outcome.golden or None,
        "bisection": outcome.bisection.as_json() if outcome.bisection else None,
    } | made  # fmt: skip


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write report.json."""
    _write(path, json.dumps(body, indent=2, allow_nan=False) + "\n")


def write_junit(path: Path, body: dict[str, Any]) -> None:
    """Write junit.xml: one test case for each criterion."""
    rows = body["criteria"]
    failed = sum(row["status"] == "failed" for row in rows)
    skipped = sum(row["status"] == "not judged" for row in rows)
    counts = {"tests": str(len(rows)), "failures": str(failed), "errors": "0", "time": f"{body['ticks']['wall_s']:.3f}"}
    root = ElementTree.Element("testsuites", {"name": "neuromod hil", **counts})
    suite = ElementTree.SubElement(
        root, "testsuite",
        {
            "name": f"hil {Path(body['recording']).name}", **counts, "skipped": str(skipped),
            "timestamp": body["made_at"].removesuffix("+00:00"), "hostname": body["host"]["name"] or "localhost",
        },
    )  # fmt: skip
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("device", body["device"].get("name", body["device"]["kind"])), ("recording", body["recording"]),
        ("speed", str(body["speed"])), ("recording_sha256", body["hashes"]["recording"]),
        ("configuration_sha256", body["hashes"]["configuration"]), ("neuromod", body["versions"]["neuromod"]),
    ):  # fmt: skip
        ElementTree.SubElement(properties, "property", {"name": name, "value": _printable(value)})
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", {"name": row["name"], "classname": "neuromod.hil", "time": "0"}
        )
        words = _printable(f"limit {row['limit']}, found {row['found']}" + (f": {row['why']}" if row["why"] else ""))
        if row["status"] == "failed":
            ElementTree.SubElement(case, "failure", {"message": words, "type": row["key"]}).text = words
        elif row["status"] == "not judged":
            ElementTree.SubElement(case, "skipped", {"message": words})
        else:
            ElementTree.SubElement(case, "system-out").text = words
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    _write(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    hasher = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        hasher.update(f"{inner.relative_to(path).as_posix()}\0{hash_path(inner)}\n".encode())
    return hasher.hexdigest()


def hash_session(config: SessionConfig) -> str:
    """SHA-256 of all of a session that a run goes by: not where signal comes from, and who listens."""
    return hash_bytes(config.model_dump_json(exclude={"source", "sockets", "record"}).encode())


def hash_bytes(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def command_line() -> list[str]:
    """The command that this process was called with."""
    return ["neuromod", *sys.argv[1:]]


def _kind(device: TestDevice) -> str:
    if device.is_peer:
        return "daemon"
    if device.protocol is None:
        return "twin"
    return "simulated board" if device.is_simulated else "board"


def _quantiles(values: Any) -> dict[str, float] | None:
    known = values[np.isfinite(values)] if len(values) else values
    if not len(known):
        return None
    found = {name: float(np.quantile(known, q)) for name, q in _QUANTILES.items()}
    return {name: round(value, 3) for name, value in found.items() if math.isfinite(value)}


def _printable(text: str) -> str:
    """Without the control characters that XML has no way to write."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
