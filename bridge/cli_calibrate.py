"""`neuromod calibrate`: from a recorded session to a decoder file.

Exit codes: 0 the decoder is better than naive ones; 1 it is not, and nothing was written without --force; 2 there was
nothing to fit.
"""

import json as jsonlib
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from neuromod.engine.errors import NeuromodError


class Kind(StrEnum):
    """What to fit."""

    LINEAR = "linear"
    KALMAN = "kalman"
    POPULATION_VECTOR = "population_vector"
    RATES = "rates"


def calibrate(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help="Folder of the session.", show_default=False)],
    targets: Annotated[
        str | None,
        typer.Option(metavar="EVENT", help="Events whose value, a number or a list, is the target until the next."),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What was done: event:NAME, FILE.npz (t, values), FILE.csv (time first), FILE.xdf[:STREAM].",
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What to fit; rates is linear, from filtered rates.")] = Kind.LINEAR,
    name: Annotated[str | None, typer.Option(help="Name of the decoder.", show_default="that of the targets")] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for decoder files.")] = Path("decoders"),
    bin_ms: Annotated[float, typer.Option(min=1.0, max=1000.0, help="Bin of counts, in ms.")] = 50.0,
    lags: Annotated[int, typer.Option(min=1, max=10, help="Bins that a linear decoder looks at.")] = 5,
    tau_ms: Annotated[
        float, typer.Option(min=1.0, max=10_000.0, help="Time constant of filtered rates, in ms.")
    ] = 100.0,
    folds: Annotated[int, typer.Option(min=3, max=50, help="Blocks to hold out, one after another.")] = 5,
    gap_ms: Annotated[float, typer.Option(min=0.0, help="Time left out around a held-out block, in ms.")] = 1000.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffled baseline.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file even where naive decoders do as well.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")] = False,
) -> None:
    """Fit a decoder to a recorded session, and say by held-out blocks what it is worth.

    [bold]neuromod calibrate sessions/session-20250101-120000 --targets target[/bold]

    [bold]neuromod calibrate sessions/session-20250101-120000 --behaviour event:cursor --kind kalman[/bold]

    [bold]neuromod calibrate sessions/session-20250101-120000 --behaviour hand.csv[/bold]    times on the daemon's clock

    The file is a new version each time. [bold]neuromod decoder FILE[/bold] swaps it into the running daemon at a tick
    boundary, [bold]neuromod rollback[/bold] undoes it. Exits with 1 where naive decoders do as well.
    """
    if (targets is None) == (behaviour is None):
        raise NeuromodError("give one of --targets EVENT and --behaviour SOURCE")
    from rich.console import Console

    from neuromod.adapters.calibration import FitOptions
    from neuromod.bridge import calibrate as fitting
    from neuromod.bridge.session import Session

    found = Session(session)
    series = (
        fitting.read_targets(found, targets) if targets is not None else fitting.read_behaviour(found, behaviour or "")
    )
    options = FitOptions(bin_ms=bin_ms, n_lags=lags, tau_ms=tau_ms, n_folds=folds, gap_ms=gap_ms, seed=seed)
    with Console(stderr=True).status("fitting, and holding out one block after another"):
        result = fitting.calibrate(found, series, kind.value, options)
    is_better = result.metrics.beats_baselines
    path = fitting.save(folder, name or _name(targets or behaviour or ""), result) if is_better or force else None
    if json:
        body: dict[str, Any] = {
            "file": None if path is None else str(path),
            "beats_baselines": is_better,
            "metrics": result.metrics.model_dump(mode="json"),
            "ticks": result.ticks.counts,
            "notes": list(result.notes),
        }
        typer.echo(jsonlib.dumps(body, indent=2, allow_nan=False))
    else:
        _print(fitting.table(result))
    counts = result.ticks.counts
    typer.echo(
        f"{counts['used']} ticks of {result.ticks.dt_ms:g} ms, left out: {fitting.left_out(counts)}; "
        f"{result.metrics.held_out_s:.1f} s held out in {result.metrics.n_folds} blocks",
        err=True,
    )
    if not is_better:
        typer.echo(
            "neuromod: this decoder is no better than a naive one: its interval of R2 is not above those of the mean "
            "and of shuffled targets" + ("" if force else "; nothing was written (--force writes it all the same)"),
            err=True,
        )
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    if path is not None:
        swap = f"neuromod decoder {shlex.quote(str(path))}"
        typer.echo(f"wrote {path}; swap it in: {swap}; and undo that: neuromod rollback", err=True)
    if not is_better:
        raise typer.Exit(1)


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=panel)(calibrate)


def _name(source: str) -> str:
    """Return a name for a decoder after what it was fitted to."""
    stem = Path(source.removeprefix("event:").partition(".xdf:")[0]).stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._") or "decoder"


def _print(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("held out", "decoder [95 %]", "always the mean", "shuffled targets")
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console().print(shown)
