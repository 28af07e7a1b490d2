"""A soak: the whole service at work, and a fault every few seconds; at the end, what became of every sample and pulse.

    .venv/bin/python tests/bench/soak.py --minutes 30 [--seed N] [--json FILE] [--html FILE]

A real daemon runs at 1 kHz on a real LSL stream, records, and stimulates a virtual stimulator behind a serial line,
with an operator who arms it whenever he may. Sources, subscribers, serial lines and disks fail, clients send nonsense,
and the daemon is killed. Exits with 1 where a fault was not noticed or not recovered from, where a tick or a sample is
unaccounted for, or where the stimulator did what it must not; with 2 where the run itself could not be held.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.soak_faults import HARD, SOFT, Outcome, inflict, schedule
from bench.soak_judge import Verdict, check_the_judge, collect, judge, n_changes
from bench.soak_rig import AMPLITUDE_UA, PERIOD_US, PHASE_US, PULSES, START_WITHIN_MS, Rig, resources
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PROGRAM = {"amplitude_ua": AMPLITUDE_UA, "phase_us": PHASE_US, "period_us": PERIOD_US, "pulses": float(PULSES)}
PROGRAM["start_within_s"] = START_WITHIN_MS / 1e3
SETTLE_S = 8.0
"""Before the first fault, so that there are pulses to judge."""


def soak(minutes: float, seed: int, folder: Path, told: Console, *, pause_s: tuple[float, float]) -> dict[str, Any]:
    """Run it; return everything that was found out.

    Parameters
    ----------
    minutes : float
        How long; each kind of fault happens at least once, however short it is.
    seed : int
        Of the order of faults, and of all that is drawn.
    folder : Path
        Empty, for whatever is written.
    told : Console
        Where to say how it goes.
    pause_s : tuple of float
        Least and greatest time between the end of a fault and the next one.
    """
    rng = random.Random(seed)
    rig = Rig(folder, minutes, seed)
    outcomes: list[Outcome] = []
    scrapes: list[int] = []
    try:
        rig.start()
        time.sleep(SETTLE_S)
        first = _measure(rig)
        begun, next_one, wanted = time.monotonic(), schedule(rng), {*SOFT, *HARD}
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=told) as progress:
            task = progress.add_task("soak")
            while (now := time.monotonic() - begun) < 60.0 * minutes or wanted:
                # what is left, once the time is over
                kind = next_one() if now < 60.0 * minutes else next(each for each in (*SOFT, *HARD) if each in wanted)
                progress.update(task, description=f"{now:.0f} s: {kind.name}")
                outcome = inflict(kind, rig, rng, now)
                wanted -= {kind}
                outcomes.append(outcome)
                scrapes.append(rig.scrape())
                progress.console.print(_line(outcome), highlight=False)
                time.sleep(rng.uniform(*pause_s))
        time.sleep(2.0)
        seconds, last = time.monotonic() - begun, _measure(rig)
        rig.finish()
        evidence = collect(folder, [(start, end) for start, end in rig.daemon.lives], PROGRAM)
        verdict = judge(evidence)
        passed_wrongly = check_the_judge(evidence)
    finally:
        rig.close()
    return {
        "seconds": round(seconds, 1),
        "seed": seed,
        "disk": rig.disk.how,
        "faults": [outcome.as_dict() for outcome in outcomes],
        "scrapes": {"made": len(scrapes), "unanswered": scrapes.count(0)},
        "armings": rig.operator.armings,
        "refused_armings": rig.operator.refusals,
        "restarts": rig.daemon.restarts,
        "counts": verdict.counts,
        "unaccounted": verdict.unaccounted,
        "unsafe": verdict.unsafe,
        "judge": {"changes": n_changes(), "passed_wrongly": passed_wrongly},
        "resources": {"first": first, "last": last},
        "complaints": _complaints(outcomes, verdict, passed_wrongly, scrapes),
    }


def _measure(rig: Rig) -> dict[str, dict[str, float]]:
    return {name: resources(pid) for name, pid in rig.processes().items()}


def _complaints(outcomes: list[Outcome], verdict: Verdict, passed_wrongly: list[str], scrapes: list[int]) -> list[str]:
    found = []
    for outcome in outcomes:
        if outcome.is_good:
            continue
        what = "was not recovered from" if outcome.recovered_s is None else "was not noticed"
        found.append(f"{outcome.fault} at {outcome.at_s:.0f} s {what}; {outcome.error}".rstrip("; "))
    found += [f"unaccounted for: {each}" for each in verdict.unaccounted]
    found += [f"unsafe: {each}" for each in verdict.unsafe]
    found += [f"the judge takes no notice of {each}" for each in passed_wrongly]
    if 0 in scrapes:
        found.append(f"metrics were not told {scrapes.count(0)} times of {len(scrapes)}")
    if not verdict.counts.get("pulses"):
        found.append("there was no pulse at the far end: nothing of safety was shown")
    return found


def _line(outcome: Outcome) -> str:
    noticed = f"noticed in {outcome.noticed_s:.1f} s ({outcome.sign})" if outcome.sign else "nothing to notice"
    if outcome.has_to_show and not outcome.sign:
        noticed = "NOT NOTICED"
    recovered = f"over in {outcome.recovered_s:.1f} s" if outcome.recovered_s is not None else "NOT OVER"
    return f"{outcome.at_s:7.1f} s  {outcome.fault}: {noticed}; {recovered} {outcome.error}"


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the result as tables."""
    faults = Table(title=f"{result['seconds'] / 60:.1f} minutes, seed {result['seed']}")
    for column in ("fault", "times", "noticed", "by", "recovered", "p50 s", "max s"):
        faults.add_column(column, justify="left" if column in ("fault", "by") else "right")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in result["faults"]:
        kinds.setdefault(each["fault"], []).append(each)
    for name, each in kinds.items():
        times = [one["recovered_s"] for one in each if one["recovered_s"] is not None]
        signs = sorted({one["sign"].partition(":")[0] for one in each if one["sign"]})
        noticed = sum(bool(one["sign"]) for one in each)
        faults.add_row(
            name, str(len(each)), str(noticed) if each[0]["has_to_show"] or noticed else "need not",
            ", ".join(signs) or "-", str(len(times)),
            f"{statistics.median(times):.1f}" if times else "-", f"{max(times):.1f}" if times else "-",
        )  # fmt: skip
    judged = Table(title="what became of it", show_header=False)
    counts = result["counts"]
    rows = {
        "samples pushed by the source": counts.get("pushed"),
        "newest of a tick": counts.get("in_ticks"),
        "in gaps that are flagged": counts.get("in_flagged_gaps"),
        "while the daemon was down": counts.get("while_down"),
        "samples and ticks unaccounted for": counts.get("unaccounted", 0) if not result["unaccounted"] else "see below",
        "messages that the witness missed": counts.get("witness_missed"),
        "pulses at the stimulator, of trains": f"{counts.get('pulses')}, {counts.get('trains')}",
        "commands, of them inhibited": f"{counts.get('commands')}, {counts.get('commands_inhibited')}",
        "unsafe outputs": len(result["unsafe"]),
        "changes of the evidence that the judge must refuse, and did": (
            f"{result['judge']['changes']}, {result['judge']['changes'] - len(result['judge']['passed_wrongly'])}"
        ),
        "armings; restarts of the daemon": f"{result['armings']}; {result['restarts']}",
        "times that metrics were asked for, and told": (
            f"{result['scrapes']['made']}, {result['scrapes']['made'] - result['scrapes']['unanswered']}"
        ),
        "the disk was": result["disk"],
    }
    for name, value in rows.items():
        judged.add_row(name, str(value))
    used = Table(title="processes, at the beginning and at the end")
    for column in ("process", "descriptors", "threads", "MB", "processor, %"):
        used.add_column(column, justify="left" if column == "process" else "right")
    first, last = result["resources"]["first"], result["resources"]["last"]
    for name in last:
        a, b = first.get(name, {}), last[name]
        if not a or not b:
            continue
        share = (b["cpu_s"] - a["cpu_s"]) / result["seconds"] * 100.0
        used.add_row(
            name, f"{a['descriptors']:.0f} {b['descriptors']:.0f}", f"{a['threads']:.0f} {b['threads']:.0f}",
            f"{a['rss_mb']:.0f} {b['rss_mb']:.0f}", f"{share:.0f}" if share >= 0 else "restarted",
        )  # fmt: skip
    return [faults, judged, used]


def main() -> int:
    """Run it from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 5.0), metavar="S", help="between two faults")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--html", type=Path, help="file for the tables")
    parser.add_argument("--keep", type=Path, help="folder for all that is written, kept afterwards")
    arguments = parser.parse_args()
    out = Console(record=True)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="neuromod-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = soak(
            arguments.minutes, arguments.seed, folder.absolute(), Console(stderr=True), pause_s=tuple(arguments.pause)
        )
    except (TimeoutError, RuntimeError, OSError) as error:
        print(f"soak: {error}; what was written is in {folder}", file=sys.stderr)
        return 2
    for table in tables(result):
        out.print(table)
    for complaint in result["complaints"]:
        out.print(f"[red]{complaint}[/red]")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.html:
        arguments.html.write_text(out.export_html())
    if not arguments.keep and not result["complaints"]:
        shutil.rmtree(folder, ignore_errors=True)
    elif result["complaints"]:
        out.print(f"what was written is in {folder}")
    return 1 if result["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
