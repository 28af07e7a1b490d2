"""The body of `neuromod hil`: a run, its report folder, and a summary for the terminal."""

import json as jsonlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuromod.adapters.base import Source
from neuromod.bridge import hil_golden
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil import MakeDevice, Options, Outcome, run
from neuromod.bridge.hil_config import Criteria
from neuromod.bridge.hil_evidence import (
    as_json,
    command_line,
    hash_path,
    hash_session,
    provenance,
    write_json,
    write_junit,
)
from neuromod.bridge.hil_report import write_report
from neuromod.bridge.sort import progress
from neuromod.engine.errors import ConfigError

JSON, JUNIT, PAGE = "report.json", "junit.xml", "report.html"


@dataclass
class Wanted:
    """What is to become of a run."""

    recording: Path
    report: Path | None = None
    golden: Path | None = None
    json: bool = False


def hil_command(
    config: SessionConfig,
    make: MakeDevice,
    criteria: Criteria,
    options: Options,
    wanted: Wanted,
    *,
    source: Source | None = None,
) -> int:
    """Run, write, print.

    Returns
    -------
    int
        Exit code: 0 passed, 1 failed.
    """
    if wanted.report is not None:
        _make_folder(wanted.report)
    golden: dict[str, Any] | None = None
    if wanted.golden is not None:
        options.keep_trace = True
        if wanted.golden.exists():
            golden = hil_golden.load(wanted.golden)
            hashes = {"recording": hash_path(wanted.recording), "configuration": hash_session(config)}
            hil_golden.check(wanted.golden, golden, hashes)
    with progress(hidden=wanted.json) as say:
        outcome, device = run(config, make, criteria, options, source=source, on_progress=say)
        say("writing the report", None)
        made = provenance(wanted.recording, config, outcome, device, command_line())
        if wanted.golden is not None:
            _keep_golden(wanted.golden, golden, outcome, made)
        body = as_json(outcome, criteria, wanted.recording, made)
        if wanted.report is not None:
            write_json(wanted.report / JSON, body)
            write_junit(wanted.report / JUNIT, body)
            write_report(wanted.report / PAGE, outcome, body)
    if wanted.json:
        print(jsonlib.dumps(body, indent=2, allow_nan=False))
    else:
        _print(outcome, body, wanted)
    return 0 if outcome.is_passed else 1


def _keep_golden(path: Path, golden: dict[str, Any] | None, outcome: Outcome, made: dict[str, Any]) -> None:
    if golden is not None:
        judgement = hil_golden.compare(golden, outcome.trace)
        outcome.judgements.append(judgement)
        outcome.golden = {
            "file": str(path),
            "made_at": golden["meta"]["made_at"],
            "is_equal": judgement.status == "passed",
        }
    elif outcome.is_passed:
        hil_golden.save(path, outcome.trace, made)
        outcome.golden = {"file": str(path), "is_written": True}
    else:
        print(f"neuromod: {path} was not written: a run that failed is no golden one", file=sys.stderr)
        outcome.golden = {"file": str(path), "is_written": False}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (JSON, JUNIT, PAGE):  # of an earlier run: never to be taken for this one's
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another folder for --report"
        ) from None


def _print(outcome: Outcome, body: dict[str, Any], wanted: Wanted) -> None:
    console = Console()
    styles = {"passed": "green", "failed": "bold red", "not judged": "dim"}
    name = body["device"].get("name", body["device"]["kind"])
    console.print(Text(f"{name} on {wanted.recording.name}", "bold"))
    table = Table("", "criterion", "limit", "found", box=None, pad_edge=False, header_style="bold")
    for judgement in outcome.judgements:
        cells = judgement.status, judgement.name, judgement.limit, judgement.found
        table.add_row(*(Text(cell, styles[judgement.status]) for cell in cells))
    console.print(table)
    for judgement in outcome.judgements:
        if judgement.why and judgement.status != "passed" and judgement.bound is not None:
            console.print(Text(f"{judgement.name}: {judgement.why}", styles[judgement.status]))
    if said := outcome.trace.saturation.describe():
        console.print(Text(f"accuracy: {said}", "yellow"))
    if outcome.bisection is not None:
        console.print(Text(f"bisection: {outcome.bisection.summary}"))
    if wanted.report is not None:
        console.print(Text(f"report: {wanted.report / PAGE}"))
    word, style = ("PASSED", "bold green") if outcome.is_passed else ("FAILED", "bold red")
    ticks = body["ticks"]
    console.print(Text(f"{word}: {ticks['answered']:,} ticks in {ticks['wall_s']:.1f} s", style))
