"""`neuromod hil`: is the hardware right, and in time? Exit codes: 0 passed, 1 failed, 2 could not run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neuromod.bridge.cli_client import Key
from neuromod.engine.errors import ConfigError

_LINE = "Boards"


class Protocol(StrEnum):
    """What a board speaks."""

    NEUROMOD = "neuromod"
    SILICONBRIDGE = "siliconbridge"


def hil(
    recording: Annotated[
        Path | None, typer.Argument(metavar="RECORDING", help="File or folder, as of 'replay'.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            "-d",
            metavar="twin|sim|PORT|tcp://...",
            help="The Q8.8 twin, a simulated board, a board's serial port, or a second daemon's ingest "
            "(and after a comma its output).",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Session file; its source section is replaced.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for report.html, report.json and junit.xml.")
    ] = None,
    criteria: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Limits to keep to.", show_default="--print-criteria")
    ] = None,
    speed: Annotated[str, typer.Option(help="1 for true time, a multiple, or max.")] = "max",
    until_tick: Annotated[int | None, typer.Option(min=1, help="Stop after so many ticks.")] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Keep the trace there; where it is there, compare with it."),
    ] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Find the first wrong tick and register.")] = False,
    bin_ms: Annotated[
        float | None, typer.Option(min=1.0, max=100.0, help="The file holds features of so many ms, not signal.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream, where a recording holds several.")] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="What the board speaks.", rich_help_panel=_LINE)
    ] = Protocol.NEUROMOD,
    baud: Annotated[
        int | None,
        typer.Option(
            min=300, help="Of its line.", rich_help_panel=_LINE, show_default="3000000; 115200 of siliconbridge"
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:KEY=VALUE,...",
            help="Let the simulated board fail: flip, lose, delay, reorder, stop, reset, memory.",
            rich_help_panel=_LINE,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the faults.", rich_help_panel=_LINE)] = 0,
    key: Key = None,
    print_criteria: Annotated[
        bool, typer.Option("--print-criteria", help="Print the criteria with their defaults, and leave.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print report.json on stdout, for programs.")] = False,
) -> None:
    """Replay a recording through the loop with a device beside it, and say whether it is right and in time.

    [bold]neuromod hil data.ns5 --device sim --config session.toml --report hil[/bold]

    [bold]neuromod hil data.ns5 --device /dev/ttyUSB1 --speed 1 --report hil[/bold]    at true time, with its deadlines

    [bold]neuromod hil counts.npy --bin-ms 50 --device twin --golden trace.npz[/bold]    keep a trace, or compare

    [bold]neuromod hil data.ns5 --device sim --fault memory:tick=500,register=weights,index=17,bit=20 --bisect[/bold]

    [bold]neuromod hil --print-criteria > criteria.toml[/bold]

    Every tick the device gets the stimuli that the loop's network gets; its spikes, membranes and registers are
    compared with the fixed-point network's, bit for bit, or with the floating-point one's where it is a daemon.
    Exits with 0 where every criterion that was judged holds, with 1 where one does not, with 2 where it could not run.
    """
    if print_criteria:
        from neuromod.bridge.hil_config import criteria_toml

        typer.echo(criteria_toml(), nl=False)
        return
    if recording is None or device is None:
        raise ConfigError("say what to replay, and --device twin, sim, a serial port or tcp://...; or --print-criteria")
    pace = _speed(speed)
    from neuromod.bridge.config import for_recording
    from neuromod.bridge.hil_config import load_criteria

    limits = load_criteria(criteria)
    session = for_recording(recording, config, bin_ms=bin_ms, stream=stream)
    from neuromod.bridge.hil import Options
    from neuromod.bridge.hil_command import Wanted, hil_command
    from neuromod.bridge.hil_device import make_device

    which = device
    options = Options(speed=pace, until_tick=until_tick, bisect=bisect)
    wanted = Wanted(recording=recording, report=report, golden=golden, json=json)
    try:
        code = hil_command(
            session,
            lambda state: make_device(
                which, state, protocol=protocol.value, baud=baud, faults=tuple(fault or ()), seed=seed, key=key
            ),
            limits, options, wanted,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("neuromod: interrupted; nothing was judged", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=panel)(hil)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.0 < speed <= 1e3:
        raise ConfigError(f"--speed is a positive multiple of true time, up to 1000, or max, not {text!r}")
    return speed
