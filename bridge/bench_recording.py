"""What the latency bench finds out about a session that it had recorded: what is missing, and what memory it took."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from neuromod.bridge.session import find_sessions, verify


def disk_folder() -> Path:
    """Return a folder for large temporary files: where there are two, the one that is kept over restarts is on disk."""
    kept = Path("/var/tmp")  # noqa: S108 - only a name: what is made in it is made with a random one
    return kept if kept.is_dir() else Path(tempfile.gettempdir())


def inspect(folder: Path, n_samples: int, n_heard: int) -> dict[str, Any]:
    """Verify the only session in a folder, and lay it beside what was sent and what was heard.

    Parameters
    ----------
    folder : Path
        Where the session was recorded.
    n_samples : int
        Samples that the sender pushed.
    n_heard : int
        Ticks that a subscriber heard of, fillers left out.

    Returns
    -------
    dict
        ended, why, n_bytes, faults as `neuromod session verify` says it; ticks_lost: missing in the log, or heard of
        and not in it; samples_lost: sent and not in the log; and other records that are missing.
    """
    sessions = find_sessions(folder)
    if len(sessions) != 1:
        return {"ended": "never", "why": f"{len(sessions)} sessions where one was expected", "is_ok": False}
    report = verify(sessions[0])
    ticks = report.ticks
    missing = sum(ticks.get(name, 0) for name in ("missing", "steps_missing"))
    return {
        "ended": report.ended,
        "why": report.why,
        "is_ok": report.is_ok and report.ended == "properly",
        "n_bytes": report.n_bytes,
        "faults": [str(fault) for fault in report.faults],
        "ticks": ticks.get("steps", 0),
        "ticks_lost": max(missing + report.lost.get("ticks", 0), n_heard - ticks.get("steps", 0)),
        "samples": report.records.get("samples", 0),
        "samples_lost": n_samples - report.records.get("samples", 0),
        "others_lost": {kind: n for kind, n in report.lost.items() if kind not in ("ticks", "samples")},
    }


def memory(resident: list[float], every_s: float) -> dict[str, float]:
    """Return what became of the memory of a process, in MB.

    Parameters
    ----------
    resident : list of float
        Before the run, and then every `every_s` seconds of it.
    every_s : float
        In seconds.

    Returns
    -------
    dict
        before_mb, begin_mb (median of the second quarter of the run: rings are in memory once they have been gone
        round), end_mb (median of the last quarter), growth_mb between these two, most_mb. Empty where nothing is known.

    Notes
    -----
    Medians, since a chunk on its way to the disk comes and goes.
    """
    if len(resident) < 2:
        return {}
    run = np.array(resident[1:])
    quarter = len(run) / 4.0
    begin = float(np.median(run[int(quarter) : max(int(2 * quarter), int(quarter) + 1)]))
    end = float(np.median(run[min(int(3 * quarter), len(run) - 1) :]))
    found = {"before_mb": resident[0], "begin_mb": begin, "end_mb": end, "growth_mb": end - begin}
    return found | {"most_mb": float(run.max()), "span_s": every_s * len(run) / 2.0}
