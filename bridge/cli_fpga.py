"""The commands of boards: `neuromod fpga-sim` simulates one.

Exit codes as in `neuromod.bridge.cli`; a simulated board that is stopped by SIGINT or SIGTERM has done its work: 0.
"""

import json as jsonlib
import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Protocol(StrEnum):
    """What a board speaks."""

    NEUROMOD = "neuromod"
    SILICONBRIDGE = "siliconbridge"


def fpga_sim(
    protocol: Annotated[Protocol, typer.Option(help="What the board speaks.")] = Protocol.NEUROMOD,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with registers.mem, as 'neuromod export' writes it.",
            show_default="the default network",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:KEY=VALUE,...", help="What is to go wrong; may be given again.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which bytes and bits a rate hits.")] = 0,
    link: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Symbolic link to the serial port, made anew.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON on stdout.")] = False,
) -> None:
    """Simulate a board, from its Verilog, behind a serial port that a host opens like the real one.

    The first line on stdout is the port. It stays until it is stopped, with Ctrl-C for instance, and then prints what
    it has counted.

    [bold]neuromod fpga-sim[/bold]

    [bold]neuromod fpga-sim --link board --fault flip:rate=1e-4 --fault reset:tick=5000[/bold]

    Faults, of bytes: flip and lose, with rate=... or bytes=1+2+3, and direction=to_board or to_host; of answers:
    delay:ms=5,ticks=10+20 (or every=100) and reorder:ticks=10; of the board: stop:tick=10 (for_ms=100),
    reset:tick=10, memory:tick=10,register=weights,index=17,bit=20.
    """
    from neuromod.adapters.fpga.faults import parse_fault
    from neuromod.adapters.fpga.simulated import BoardServer

    faults = [parse_fault(text) for text in fault or ()]
    words = _image(images)
    typer.echo("compiling the board, where it was not yet: half a minute", err=True)
    with BoardServer(protocol=protocol.value, words=words, faults=faults, seed=seed, link=link) as board:
        wake, stop = os.pipe()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: os.write(stop, b"\0"))
        typer.echo(board.path)  # flushes
        board.serve(wake)
        counts = board.counts
    if json:
        typer.echo(jsonlib.dumps({"counts": counts, "injections": [each._asdict() for each in board.injections]}))
    else:
        typer.echo(", ".join(f"{name} {count}" for name, count in counts.items()))


def _image(images: Path | None) -> Any:
    """Registers that the board comes up with, shape (768,)."""
    from neuromod.engine.errors import ConfigError
    from neuromod.engine.fixed_network import FixedNetwork
    from neuromod.engine.images import read_registers, to_words

    if images is None:
        return to_words(FixedNetwork().state)
    path = images / "registers.mem"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{path} cannot be read ({reason}); name the folder that 'neuromod export' wrote") from None
    return to_words(read_registers(text, str(path)))


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands of boards."""
    app.command("fpga-sim", rich_help_panel=panel)(fpga_sim)
