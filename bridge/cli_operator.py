"""The operator's commands: make a key, arm and hold, disarm, halt, swap decoders.

Exit codes of `arm`: 0 ended by the operator or by its time, 1 disarmed by anything else, 2 could not arm.
"""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from neuromod.bridge.cli_client import Address, Config, Json, Key, Timeout, _command
from neuromod.engine.errors import NeuromodError

Ingest = Annotated[str | None, typer.Option("--ingest", help="Address of the daemon's ingest.")]
Output = Annotated[str | None, typer.Option("--output", help="Address of the daemon's output.")]
Control = Annotated[str | None, typer.Option("--control", help="Address of the daemon's control.")]

ClientKey = Annotated[
    Path | None,
    typer.Option(
        "--client-key",
        envvar="NEUROMOD_KEY",
        metavar="FILE",
        help="Key for a daemon that asks for one, as 'keys new' wrote it.",
    ),
]


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add every command of this module to the command line."""
    for function in (key, arm, disarm, halt, decoder, rollback):
        app.command(rich_help_panel=panel)(function)


def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.", show_default=False)]) -> None:
    """Write a new key, which arming stimulation needs; nobody but you may read it.

    [bold]neuromod key stimulation.key[/bold]
    """
    from neuromod.bridge.arming import write_key

    write_key(file)
    typer.echo(
        f'wrote {file}; name it in the session file under stimulation, key_file = "{file}", start the session, '
        f"then: neuromod arm --key {file} --seconds 60",
        err=True,
    )


def arm(
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="For how long at most.")] = 60.0,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The session's key of stimulation.", show_default="that of --config"
        ),
    ] = None,
    config: Config = None,
    ingest: Ingest = None,
    output: Output = None,
    control: Control = None,
    client_key: ClientKey = None,
    timeout: Timeout = 2.0,
    json: Json = False,
) -> None:
    """Arm stimulation, and hold it armed as long as this runs: a dead man's handle.

    [bold]neuromod arm --seconds 60 --key stimulation.key[/bold]

    Any key stops stimulation at once; so do Ctrl-C, Ctrl-Z, a closed terminal and SIGTERM. Where this program hangs or
    is killed its heartbeat is missed, and the gate disarms. Without a terminal it reads no keys, and stops at the end
    of standard input.

    Exits with 0 where you or the time ended it, with 1 where anything else did, with 2 where it could not be armed.
    """
    from neuromod.bridge import operator
    from neuromod.bridge.arming import read_key
    from neuromod.bridge.client import RefusedError

    if key is None and config is not None:
        key = _key_file(config)
    secret = read_key(key) if key is not None else None
    addresses = _addresses(config, ingest=ingest, output=output, control=control)
    try:
        ending = operator.arm(seconds, secret, **addresses, as_json=json, timeout_s=timeout, client_key=client_key)
    except RefusedError as error:
        typer.echo(f"neuromod: {error}", err=True)
        raise typer.Exit(2) from None
    if ending.exit_code:
        typer.echo(f"neuromod: {ending.text}", err=True)
    raise typer.Exit(ending.exit_code)


def disarm(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 2.0, json: Json = False
) -> None:
    """End the arming of stimulation; every train stops.

    [bold]neuromod disarm[/bold]    or, by every way at once, [bold]neuromod halt[/bold]
    """
    _command("disarm", {}, config, address, key, timeout, json)


def halt(
    config: Config = None,
    ingest: Ingest = None,
    output: Output = None,
    control: Control = None,
    key: Key = None,
    timeout: Timeout = 2.0,
    json: Json = False,
) -> None:
    """Stop stimulation at once, by every way to the daemon, of which one may be stuck.

    [bold]neuromod halt[/bold]

    Exits with 0 where the daemon says that the gate is disarmed, with 1 where it was reached but does not say so in
    time, with 2 where it was not reached.
    """
    from neuromod.bridge import operator

    addresses = _addresses(config, ingest=ingest, output=output, control=control)
    found = operator.halt(**addresses, timeout_s=timeout, client_key=key)
    if json:
        typer.echo(jsonlib.dumps({"disarmed": bool(found.confirmed_by), "confirmed_by": found.confirmed_by or None}))
    if found.confirmed_by:
        typer.echo("stimulation is disarmed", err=True)
        return
    if found.is_taken:
        typer.echo(
            f"neuromod: the stop was sent, but no answer says within {timeout:g} s that the gate is disarmed; "
            "stop the daemon, and switch the stimulator off",
            err=True,
        )
        raise typer.Exit(1)
    hint = f"use another key ({found.forbidden})" if found.forbidden else "check the addresses"
    raise NeuromodError(
        f"no daemon took the stop at {addresses['ingest']} nor at {addresses['control']} within {timeout:g} s; "
        f"switch the stimulator off, and {hint}"
    )


def decoder(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As calibrate wrote it.", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """Swap a fitted decoder into the running daemon, at a tick boundary.

    [bold]neuromod decoder decoders/cursor-v3.json[/bold]

    [bold]neuromod rollback[/bold] undoes it.
    """
    _command("decoder", {"path": str(file.absolute())}, config, address, key, timeout, json)


def rollback(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 5.0, json: Json = False
) -> None:
    """Swap back the decoder before the last swap."""
    _command("rollback", {}, config, address, key, timeout, json)


def _addresses(config: Path | None, **given: str | None) -> dict[str, str]:
    from neuromod.bridge import wire

    found = {"ingest": wire.DEFAULT_INGEST, "output": wire.DEFAULT_OUTPUT, "control": wire.DEFAULT_CONTROL}
    if config is not None:
        from neuromod.bridge.config import load

        found = load(config).sockets.for_clients()
    return found | {name: address for name, address in given.items() if address is not None}


def _key_file(config: Path) -> Path | None:
    from neuromod.bridge.config import load

    stimulation = load(config).stimulation
    return stimulation.key_file if stimulation is not None else None
