"""`neuromod keys`: who may connect to the daemon's sockets."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from neuromod.engine.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys with which clients connect.")

Folder = Annotated[
    Path, typer.Option("--folder", "-f", metavar="FOLDER", help="The folder of keys that 'keys init' made.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder to make.")] = Path("keys"),
) -> None:
    """Make the daemon's key pair, in a folder that is yours alone.

    [bold]neuromod keys init[/bold]
    """
    from neuromod.bridge import keys

    made = keys.init_folder(folder)
    typer.echo(
        f"made {folder}, key {keys.fingerprint(made.public)}; name it in the session file, "
        f'[security] keys = "{folder}", then: neuromod keys new NAME --roles observe --folder {folder}',
        err=True,
    )


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who it is for; logs and health say it.", show_default=False)],
    roles: Annotated[
        str, typer.Option("--roles", help="Of observe, feed, stimulate, control; with commas.", show_default=False)
    ],
    folder: Folder = Path("keys"),
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File for the client.", show_default="clients/NAME.key_secret"),
    ] = None,
) -> None:
    """Make a client's key, and let it in: a daemon that runs knows it a second later.

    [bold]neuromod keys new anna --roles observe,feed --out anna.key[/bold]

    observe: hear what is published. feed: send stimuli, modulators, rewards, events. stimulate: arm, hold and ask for
    stimulation. control: all other commands. The file is all that the client needs; hand it over by a way that nobody
    reads, such as scp, and keep no copy.
    """
    from neuromod.bridge import keys
    from neuromod.bridge.roles import roles_of

    try:
        wanted = roles_of([role.strip() for role in roles.split(",") if role.strip()])
    except ValueError as error:
        raise ConfigError(f"--roles: {error}") from None
    path = keys.new_client(folder, name, wanted, out)
    typer.echo(f"wrote {path}; give it to {name}, who uses it so: neuromod status --key {path.name}", err=True)


@app.command("list")
def list_(folder: Folder = Path("keys"), json: Json = False) -> None:
    """List who is let in, with roles, fingerprints and the modes of the files.

    [bold]neuromod keys list[/bold]
    """
    from neuromod.bridge import keys
    from neuromod.bridge.roles import names_of

    damaged: list[str] = []
    server = keys.load_server(folder)
    rows: list[dict[str, Any]] = [
        {
            "name": sender.name,
            "roles": names_of(sender.roles),
            "fingerprint": keys.fingerprint(public),
            "mode": keys.mode_of(folder / "clients" / f"{sender.name}.key"),
        }
        for public, sender in keys.clients(folder, damaged=damaged.append).items()
    ]
    for left_here in sorted((folder / "clients").glob("*.key_secret")):
        try:
            keys.load_client(left_here)
        except ConfigError as error:
            damaged.append(str(error))
    about = {"fingerprint": keys.fingerprint(server.public), "mode": keys.mode_of(folder / "server.key_secret")}
    if json:
        typer.echo(jsonlib.dumps({"server": about, "clients": rows, "damaged": damaged}, indent=2))
        return
    typer.echo(f"{'the daemon':<20} {about['fingerprint']}  {about['mode']}")
    for row in rows:
        typer.echo(f"{row['name']:<20} {row['fingerprint']}  {row['mode']}  {', '.join(row['roles'])}")
    for sentence in damaged:
        typer.echo(f"neuromod: {sentence}", err=True)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose key.", show_default=False)], folder: Folder = Path("keys")
) -> None:
    """Let a client in no more; a daemon that runs ends its connections a second later.

    [bold]neuromod keys revoke anna[/bold]
    """
    from neuromod.bridge import keys

    keys.revoke_client(folder, name)
    typer.echo(f"{name} is let in no more", err=True)


def add_commands(root: typer.Typer, panel: str) -> None:
    """Add the commands to the command line."""
    root.add_typer(app, name="keys", rich_help_panel=panel)
