"""The command that drives an actuator."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from neuromod.bridge.cli_client import Key
from neuromod.engine.errors import ConfigError


def actuate(
    kind: Annotated[
        str | None, typer.Argument(help="What to drive; see --list.", show_default="that of --config")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Actuator file (TOML).")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Key of the actuator, as in TOML.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name under which the daemon knows it.")] = None,
    output: Annotated[str | None, typer.Option(help="Output address of the daemon.")] = None,
    ingest: Annotated[str | None, typer.Option(help="Ingest address of the daemon.")] = None,
    key: Key = None,
    list_: Annotated[bool, typer.Option("--list", help="List the kinds of actuators that are installed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """Drive an actuator with what a running daemon publishes, until it is stopped (Ctrl-C or SIGTERM).

    [bold]neuromod actuate --list[/bold]

    [bold]neuromod actuate lsl -o 'outputs=["vx", "vy"]'[/bold]    commands and spikes as LSL streams

    [bold]neuromod actuate serial -o port=/dev/ttyUSB0 --name arm[/bold]

    [bold]neuromod actuate --config stimulator.toml[/bold]    a file with the table actuator, and its keys

    Exits with 0 after a signal, 2 where the actuator cannot be reached.
    """
    if list_:
        _list(json)
        return
    from neuromod.bridge import actuate as process
    from neuromod.bridge.config_errors import checked

    raw, text, where = _read(config)
    actuator: Any = raw.setdefault("actuator", {})
    if isinstance(actuator, dict):
        if kind is not None:
            actuator["kind"] = kind
        actuator |= dict(map(_pair, option or ()))
        if "kind" not in actuator:
            raise ConfigError("say what to drive: 'neuromod actuate KIND', or --config FILE with the table actuator")
    given = (("name", name), ("output", output), ("ingest", ingest), ("key", key))
    raw |= {name_: value for name_, value in given if value is not None}
    process_config = checked(process.ActuateConfig, raw, text, where)
    code = process.actuate(process_config, ready=lambda sentence: typer.echo(f"neuromod: {sentence}", err=True))
    raise typer.Exit(code)


def _list(json: bool) -> None:
    """Print each kind of actuator with what its class says of itself."""
    from neuromod.adapters import plugins
    from neuromod.adapters.actuators.base import ENTRY_POINT_GROUP

    rows = []
    for kind, point in sorted(plugins.installed(ENTRY_POINT_GROUP).items()):
        try:
            about = (point.load().__doc__ or "").strip().partition("\n")[0]
        except ImportError as error:
            about = f"cannot be used: {error}"
        rows.append({"kind": kind, "about": about, "from": point.value})
    if json:
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['kind']:<12}{row['about']}")


def _read(config: Path | None) -> tuple[dict[str, Any], str, str]:
    import tomllib

    if config is None:
        return {}, "", "actuate"
    try:
        text = config.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
        if isinstance(key := raw.get("key"), str):
            raw["key"] = str(config.parent / Path(key).expanduser())  # paths in a file start from its folder
        return raw, text, str(config)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: cannot be read ({error}); check its name and permissions") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{config}: not TOML: {error}") from None


def _pair(text: str) -> tuple[str, Any]:
    """Return key and value; a value that is no TOML is a word."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--option is KEY=VALUE, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
