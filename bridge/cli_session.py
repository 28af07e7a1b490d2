"""The commands of `neuromod session`: what recorded sessions there are, what they hold, and how to take them elsewhere.

Exit codes as in `neuromod.bridge.cli`; `verify` exits with 1 where something is missing or damaged.
"""

import contextlib
import json as json_text
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from neuromod.bridge.session import Report

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List, show, check and export recorded sessions.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
Folder = Annotated[Path, typer.Argument(metavar="SESSION", help="Folder of the session.", show_default=False)]
Unblind = Annotated[bool, typer.Option("--unblind", help="Tell the condition of a blind session too.")]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where sessions are kept.")] = Path("sessions"),
    json: Json = False,
) -> None:
    """List the sessions in a folder, oldest first.

    [bold]neuromod session list[/bold]

    [bold]neuromod session list /data/sessions --json[/bold]
    """
    from neuromod.bridge.session import Session, find_sessions
    from neuromod.engine.errors import ConfigError, SessionLogError

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one that [record] names")
    rows: list[dict[str, Any]] = []
    for path in find_sessions(folder):
        size = sum(file.stat().st_size for file in path.glob("log-*.nmlog"))
        row: dict[str, Any] = {"folder": str(path), "started_at": None, "source": None, "mb": round(size / 1e6, 1)}
        try:
            session = Session(path)
            row |= {"started_at": session.started_at.isoformat(), "source": session.metadata["stream"]["name"]}
            row |= {"condition": session.condition, "error": None}
        except SessionLogError as error:
            row |= {"condition": None, "error": str(error)}
        rows.append(row)
    if json:
        _print_json(rows)
    elif rows:
        from rich.table import Table

        table = Table("session", "started", "source", "condition", "MB", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            started = row["error"] or row["started_at"][:19].replace("T", " ")
            table.add_row(
                Path(row["folder"]).name, started, row["source"] or "", row["condition"] or "", f"{row['mb']:.1f}"
            )
        _print(table)
    else:
        typer.echo(f"no session in {folder}", err=True)


@app.command()
def show(session: Folder, unblind: Unblind = False, json: Json = False) -> None:
    """Say what a session was: when, from what source, in which condition, with which files, and the operator's notes.

    [bold]neuromod session show sessions/session-20250101-120000[/bold]
    """
    from neuromod.bridge.session import Session

    found = Session(session)
    header = found.unsealed() if unblind else {k: v for k, v in found.metadata.items() if k != "sealed"}
    notes = found.notes()
    body = {
        "folder": str(session),
        **header,
        "condition": header.get("condition", found.condition),
        "kinds": {name: None if dtype is None else dtype.itemsize for name, dtype in found.kinds.items()},
        "notes": [{**note, "at": note["at"].isoformat()} for note in notes],
        "end": found.end(),
    }
    if json:
        _print_json(body)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=str(session), show_header=False)
    stream, versions, end = header["stream"], header["versions"], body["end"]
    table.add_row("started", found.started_at.isoformat(sep=" ", timespec="seconds"))
    table.add_row("ended", "killed, or not over" if end is None else str(end["why"]))
    rate = f"{stream['sampling_frequency']:g} Hz"
    table.add_row("source", f"{stream['name']}: {stream['n_channels']} channels of {stream['kind']} at {rate}")
    table.add_row("blocks", f"{header['block_ms']:g} ms of {header['ticks_per_block']} ticks")
    table.add_row("condition", str(body["condition"]))
    table.add_row("versions", ", ".join(f"{name} {value}" for name, value in versions.items()))
    for entry in header["files"]:
        kept = "kept in the log" if entry["is_kept"] else "hash only" if entry["sha256"] else "not kept"
        table.add_row(entry["key"], f"{entry['path']} ({kept})")
    for note in notes:
        table.add_row(f"note {note['at']:%H:%M:%S}", escape(f"{note['text']} (tick {note['tick']})"))
    _print(table)


@app.command()
def verify(session: Folder, json: Json = False) -> None:
    """Read a whole session, check every byte, and say what it holds and what is missing.

    [bold]neuromod session verify sessions/session-20250101-120000[/bold]

    Exits with 1 where something is missing or damaged. A log whose end is cut off, as by a kill or a loss of power, is
    neither: what it says is all there is.
    """
    from neuromod.bridge.session import verify as check

    with _progress(f"reading {session.name}", hidden=json) as on_progress:
        report = check(session, on_progress)
    if json:
        _print_json(report.as_dict())
    else:
        _print(_report_table(report))
    if not report.is_ok:
        raise typer.Exit(1)


@app.command()
def export(
    session: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT.nwb", help="File to write.", show_default=False)],
    subject_id: Annotated[str | None, typer.Option(help="Who or what was recorded from.")] = None,
    species: Annotated[str | None, typer.Option(help="Latin binomial, as 'Rattus norvegicus'.")] = None,
    sex: Annotated[str | None, typer.Option(help="M, F, O (other) or U (unknown).")] = None,
    age: Annotated[str | None, typer.Option(help="ISO 8601 duration, as P90D.")] = None,
    experimenter: Annotated[str | None, typer.Option(help="'Last, First'; several with ';' between.")] = None,
    institution: Annotated[str | None, typer.Option(help="Where.")] = None,
    lab: Annotated[str | None, typer.Option(help="Whose laboratory.")] = None,
    description: Annotated[str | None, typer.Option(help="What the session was for.")] = None,
    unblind: Unblind = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a session as NWB, for neo, spikeinterface, pynapple and all else that reads it.

    [bold]neuromod session export sessions/session-20250101-120000 out.nwb --subject-id rat1 --species 'Rattus
    norvegicus' --sex F --age P90D[/bold]
    """
    from neuromod.bridge.export_nwb import Subject, export_nwb
    from neuromod.engine.errors import NeuromodError

    if out.exists() and not force:
        raise NeuromodError(f"{out} is there already; give another name, or --force to replace it")
    with _progress(f"writing {out.name}", hidden=json) as on_progress:
        written = export_nwb(
            session,
            out,
            subject=Subject(subject_id, species, sex, age) if subject_id is not None else None,
            experimenter=[name.strip() for name in (experimenter or "").split(";") if name.strip()],
            institution=institution,
            lab=lab,
            description=description,
            unblind=unblind,
            on_progress=on_progress,
        )
    if json:
        _print_json(written)
    else:
        typer.echo(f"wrote {out}: " + ", ".join(f"{count} {name}" for name, count in written.items()), err=True)


# -- helpers


def _print_json(body: Any) -> None:
    typer.echo(json_text.dumps(body, indent=2, allow_nan=False, default=str))


def _print(table: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(table)


@contextlib.contextmanager
def _progress(title: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=hidden or not console.is_terminal, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _report_table(report: "Report") -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=report.folder, show_header=False)
    ended = {"properly": "properly", "early": "[yellow]early", "killed": "[yellow]killed, or not over"}[report.ended]
    table.add_row("verdict", "[green]whole" if report.is_ok else "[red]something is missing or damaged")
    table.add_row("ended", ended + (f": {escape(report.why)}" if report.why else ""))
    table.add_row("log", f"{report.n_bytes / 1e6:.1f} MB in {report.n_segments} files")
    if ticks := report.ticks:
        table.add_row("ticks", f"{ticks['first']} to {ticks['last']}, {ticks['duration_s']:.1f} s")
        odd = {name: ticks[name] for name in ("fillers", "paused", "gaps", "missing", "steps_missing", "backward")}
        if told := ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in odd.items() if count):
            table.add_row("", told)
    for kind, count in report.records.items():
        if count or kind in report.lost:
            lost = f", [red]{report.lost[kind]} lost" if kind in report.lost else ""
            table.add_row(f"records of {kind}", f"{count}{lost}")
    if report.decisions:
        table.add_row("decided", ", ".join(f"{count} {name}" for name, count in report.decisions.items()))
    for fault in report.faults:
        table.add_row("[yellow]torn" if fault.what == "torn" else f"[red]{fault.what}", escape(str(fault)))
    for key in report.damaged_files:
        table.add_row("[red]damaged", f"the kept file of {key}")
    return table
