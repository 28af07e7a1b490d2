"""The commands that connect hardware which runs the network itself."""

import json as jsonlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from neuromod.bridge.cli_client import Key
from neuromod.engine.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Connect a board that runs the network itself.")


class BoardMode(StrEnum):
    """What the board does."""

    MIRROR = "mirror"
    OFFLOAD = "offload"


class BoardProtocol(StrEnum):
    """What the board speaks."""

    NEUROMOD = "neuromod"
    SILICONBRIDGE = "siliconbridge"


@app.callback()
def _group() -> None:
    """Keep `fpga` a command of its own, though it is the only one yet."""


@app.command()
def fpga(
    port: Annotated[str, typer.Option(help="Device file of the board.", show_default=False)],
    mode: Annotated[BoardMode, typer.Option(help="Follow the daemon's network, or be it.")] = BoardMode.MIRROR,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Session file of the daemon (TOML).", show_default="defaults")
    ] = None,
    protocol: Annotated[BoardProtocol, typer.Option(help="What the board speaks.")] = BoardProtocol.NEUROMOD,
    baud: Annotated[
        int | None, typer.Option(help="Bits per second.", show_default="3000000; 115200 for siliconbridge")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Ticks under way at once.", show_default="4; 1 for siliconbridge")
    ] = None,
    timeout_ms: Annotated[float | None, typer.Option(help="How long an answer may take.", show_default="100")] = None,
    decimate: Annotated[
        str | None,
        typer.Option(help="Ticks of the session for one of the board's, or auto: for a slow link.", show_default="1"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Output address of the daemon.")] = None,
    ingest: Annotated[str | None, typer.Option(help="Ingest address of the daemon.")] = None,
    key: Key = None,
    name: Annotated[str | None, typer.Option(help="Name under which the daemon knows it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON at the end.")] = False,
) -> None:
    """Run the network on a board with what a running daemon publishes, until it is stopped (Ctrl-C or SIGTERM).

    The images are made of the session file, and loaded. In mode mirror the board follows the daemon's network, and each
    of its spikes and membranes is compared with the twin; in mode offload the daemon publishes the board's spikes.

    [bold]neuromod adapter fpga --port /dev/ttyUSB1 -c session.toml[/bold]

    [bold]neuromod adapter fpga --port /dev/ttyUSB1 -c session.toml --mode offload[/bold]

    [bold]neuromod adapter fpga --port /dev/ttyUSB1 --protocol siliconbridge --decimate auto[/bold]

    Exits with 0 after a signal, 1 where the board differed from its twin, 2 where it could not run.
    """
    from neuromod.bridge import fpga as process
    from neuromod.bridge.config import load
    from neuromod.bridge.config_errors import checked
    from neuromod.bridge.fpga_config import AdapterConfig

    session = None if config is None else load(config)
    board: dict[str, Any] = {"port": port, "protocol": protocol.value}
    for what, value in (("baud", baud), ("depth", depth), ("timeout_ms", timeout_ms)):
        if value is not None:
            board[what] = value
    if decimate is not None:
        board["decimate"] = _decimation(decimate)
    raw: dict[str, Any] = {"fpga": board, "mode": mode.value}
    given = (("name", name), ("output", output), ("ingest", ingest), ("key", key))
    raw |= {what: value for what, value in given if value is not None}
    if session is not None:
        for what, address in session.sockets.for_clients().items():
            if what in ("output", "ingest") and what not in raw and not address.endswith((":*", ":0")):
                raw[what] = address

    def done(summary: dict[str, Any]) -> None:
        typer.echo(jsonlib.dumps(summary, indent=2, allow_nan=False) if json else _in_words(summary), err=not json)

    adapter = checked(AdapterConfig, raw, "", "adapter fpga")
    code = process.serve_board(
        adapter, session, ready=lambda sentence: typer.echo(f"neuromod: {sentence}", err=True), done=done
    )
    raise typer.Exit(code)


def _decimation(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return "auto" if text == "auto" else int(text)
    raise ConfigError(f"--decimate is a number of ticks, or auto, not {text!r}")


def _in_words(summary: dict[str, Any]) -> str:
    """Say a summary in a few lines."""
    lines = [f"{summary['compared']} ticks of the board compared with the twin"]
    first = summary.get("first_divergence")
    if first is None:
        lines[0] += ": no difference" if summary["compared"] else ""
    else:
        channels = ", ".join(map(str, first["channels"]))
        lines[0] += f": {summary['diverging']} differ, first tick {first['tick']} on channels {channels}"
    if summary["decimation"] > 1:
        lines.append(
            f"{summary['decimation']} ticks of the session made one of the board's, of {summary['step_ms']:g} ms: a "
            "network of longer steps, not compared with the daemon's spikes"
        )
    agreement = summary.get("agreement_with_daemon") or {}
    if agreement.get("agreement") is not None:
        lines.append(
            f"spikes agree with the daemon's to {100 * agreement['agreement']:.2f} % over {agreement['ticks']} ticks"
        )
    held = summary.get("saturated_drives") or {"ticks": 0}
    if held["ticks"]:
        channels = ", ".join(str(i) for i, n in enumerate(held["by_channel"]) if n)
        lines.append(f"drives past +-128 mV in {held['share']:.2%} of ticks, on channels {channels}: less accurate")
    times = summary["round_trip_us"]
    if times["n"]:
        lines.append(f"round trip {times['p50']} us (p50), {times['p99']} us (p99), {times['max']} us (max)")
    if summary["counts"]:
        lines.append(", ".join(f"{what}: {n}" for what, n in sorted(summary["counts"].items())))
    return "\n".join(lines)
