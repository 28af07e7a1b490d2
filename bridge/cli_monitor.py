"""`neuromod monitor`: a running daemon at a glance, on a terminal, also over ssh.

Exit codes: 0 ended as asked, 1 where a stop was not confirmed before the end, or with `--json` or `--snapshot` where no
daemon was heard, 2 could not run.
"""

import json as jsonlib
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuromod.bridge.cli_client import Config, Json, Key
from neuromod.bridge.cli_operator import Control, Ingest, Output, _addresses
from neuromod.engine.errors import NeuromodError

if TYPE_CHECKING:
    from neuromod.bridge.monitor_canvas import Glyphs

_SNAPSHOT_S = 5.5
_SNAPSHOT_SIZE = (120, 40)


class Page(StrEnum):
    """What to show first."""

    OVERVIEW = "overview"
    ARRAY = "array"
    GATE = "gate"
    LOOP = "loop"
    EVENTS = "events"


class Characters(StrEnum):
    """What to draw with."""

    BRAILLE = "braille"
    BLOCKS = "blocks"
    ASCII = "ascii"


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=panel)(monitor)


def monitor(
    config: Config = None,
    ingest: Ingest = None,
    output: Output = None,
    control: Control = None,
    key: Key = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so many seconds.")] = None,
    json: Json = False,
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Print one picture as text, and end.")] = False,
    page: Annotated[Page, typer.Option(help="What to show first.")] = Page.OVERVIEW,
    characters: Annotated[
        Characters | None, typer.Option(help="What to draw with.", show_default="what the terminal has")
    ] = None,
) -> None:
    """Watch a running daemon: spikes, array, latency, recording and the safety gate, on one screen.

    [bold]neuromod monitor -c session.toml[/bold]    in a terminal of at least 80 x 24, over ssh too

    [bold]neuromod monitor --snapshot > now.txt[/bold]    one picture, as text

    [bold]neuromod monitor --json --seconds 60[/bold]    a line of JSON each second

    SPACE or s stops stimulation at once; n adds a note to the record of the session; ? explains the screen. It waits
    for a daemon that is not there yet, and finds one again that was started anew. It cannot arm: see 'neuromod arm'.
    """
    addresses: dict[str, Any] = _addresses(config, ingest=ingest, output=output, control=control)
    addresses["client_key"] = key
    if json:
        raise typer.Exit(_print_summaries(addresses, seconds))
    from neuromod.bridge.monitor_canvas import GLYPHS

    glyphs = GLYPHS[characters.value] if characters is not None else None
    if snapshot:
        raise typer.Exit(_print_picture(addresses, seconds or _SNAPSHOT_S, page.value, glyphs))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NeuromodError("monitor draws on a terminal, and there is none: use --snapshot or --json")
    from neuromod.bridge.monitor_view import MonitorApp

    app = MonitorApp(addresses, seconds=seconds, page=page.value, glyphs=glyphs)
    app.run(mouse=False)
    words = app.hand.words  # of a stop that went on while the screen was gone
    for word in words:
        typer.echo(f"neuromod: {word.text}", err=True)
    if app.return_code or not all(word.is_good for word in words):
        raise typer.Exit(app.return_code or 1)


def _print_summaries(addresses: dict[str, Any], seconds: float | None) -> int:
    """Print a line each second; return 1 where nothing was heard at all."""
    from neuromod.bridge.monitor_link import Ear
    from neuromod.bridge.monitor_model import Model
    from neuromod.bridge.show import plain

    model, begun = Model(), time.monotonic()
    until = None if seconds is None else begun + seconds
    with Ear(addresses["output"], addresses["client_key"]) as ear:
        due = begun + 1.0
        while until is None or due <= until + 0.5:
            while (now := time.monotonic()) < due:
                ear.listen(model, now)
                time.sleep(min(0.05, max(0.0, due - now)))
            ear.listen(model, now)
            typer.echo(jsonlib.dumps(plain(model.summary(now)), allow_nan=False))
            sys.stdout.flush()
            due += 1.0
    return 0 if model.heard_at is not None else 1


def _print_picture(addresses: dict[str, Any], seconds: float, page: str, glyphs: "Glyphs | None") -> int:
    """Listen for a while, and print one screen."""
    import shutil

    from neuromod.bridge.monitor_draw import Screen, draw
    from neuromod.bridge.monitor_link import Ear
    from neuromod.bridge.monitor_model import Model
    from neuromod.bridge.monitor_view import glyphs_here

    model, until = Model(), time.monotonic() + seconds
    with Ear(addresses["output"], addresses["client_key"]) as ear:
        while (now := time.monotonic()) < until:
            ear.listen(model, now)
            time.sleep(0.05)
    width, height = shutil.get_terminal_size(_SNAPSHOT_SIZE)
    shown = tuple((name, str(addresses[name])) for name in ("ingest", "output", "control"))
    screen = Screen(page=page, addresses=shown, can_steer=False)
    canvas = draw(model, time.monotonic(), width, height, screen, glyphs or glyphs_here())
    typer.echo("\n".join(canvas.lines()).rstrip())
    return 0 if model.heard_at is not None else 1
