"""The commands that talk to a running daemon: subscribe, send, and the commands of the control socket."""

import itertools
import json as jsonlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuromod.engine.errors import NeuromodError

if TYPE_CHECKING:
    from neuromod.bridge.client import Client
    from neuromod.bridge.wire import OutputMessage

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="CONFIG", help="Session file whose sockets to use.")
]
Address = Annotated[str | None, typer.Option("--address", help="The socket to use instead of the default one.")]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar="NEUROMOD_KEY",
        metavar="FILE",
        help="Key for a daemon that asks for one, as 'keys new' wrote it.",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, max=3600.0, help="Seconds to wait for the daemon.")]

NEGATIVE = {"ignore_unknown_options": True}  # -0.5 is a number, not an option

send_app = typer.Typer(
    no_args_is_help=True,
    help="Send stimuli, modulators, rewards, stresses, requests for stimulation or events to a running daemon.",
)


def exit_code(error: NeuromodError) -> int:
    """1 where the daemon was reached and said no, 2 where nothing could be tried."""
    from neuromod.bridge.client import RefusedError

    return 1 if isinstance(error, RefusedError) else 2


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add every command of this module to the command line."""
    for function in (subscribe, status, pause, resume, stop, set_, learning, checkpoint, restore):
        app.command(function.__name__.rstrip("_"), rich_help_panel=panel)(function)
    app.add_typer(send_app, name="send", rich_help_panel=panel)


# -- listening


def subscribe(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            help="spikes, stimuli, units, command, stimulation, state, array, health, event.", show_default="all"
        ),
    ] = None,
    config: Config = None,
    address: Address = None,
    key: Key = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many messages.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="End after so many seconds.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Give up where nothing comes for so many seconds.")
    ] = None,
    json: Json = False,
) -> None:
    """Print what the daemon publishes, one line a message.

    [bold]neuromod subscribe spikes[/bold]

    [bold]neuromod subscribe health --json --count 1 --timeout 3[/bold]

    [bold]neuromod subscribe --json > session.jsonl[/bold]    everything, as JSON lines

    Losses are counted, and said on stderr at the end.
    """
    from neuromod.bridge.client import ClientTimeoutError
    from neuromod.bridge.show import as_json, as_line

    deadline = None if seconds is None else time.monotonic() + seconds
    with _client("output", config, address, key, 2.0) as client:
        subscription = client.subscribe(*(topics or ()))
        try:
            for _ in range(count) if count is not None else itertools.count():
                message = _next_before(subscription, deadline, timeout)
                if message is None:
                    break
                typer.echo(jsonlib.dumps(as_json(message), allow_nan=False) if json else as_line(message))
        except ClientTimeoutError:
            if subscription.received == 0:
                raise
            typer.echo(f"neuromod: nothing came for {timeout:g} s", err=True)
            raise typer.Exit(1) from None
        finally:
            for topic, lost in subscription.lost.items():
                typer.echo(f"neuromod: {lost} messages of {topic} lost, see PROTOCOL.md, 'Order and loss'", err=True)


def _next_before(subscription: Any, deadline: float | None, timeout_s: float | None) -> "OutputMessage | None":
    from neuromod.bridge.client import ClientTimeoutError

    left_s = None if deadline is None else deadline - time.monotonic()
    if left_s is not None and left_s <= 0:
        return None
    ends_first = left_s is not None and (timeout_s is None or left_s < timeout_s)
    try:
        message: OutputMessage | None = subscription.receive(left_s if ends_first else timeout_s)
    except ClientTimeoutError:
        if ends_first:
            return None
        raise
    return message


# -- sending


@send_app.command(context_settings=NEGATIVE)
def stimuli(
    values: Annotated[list[float], typer.Argument(help="Sixteen numbers.", show_default=False)],
    repeat: Annotated[int, typer.Option(min=1, max=10_000_000, help="Send so many times.")] = 1,
    interval_ms: Annotated[float, typer.Option(min=0.0, help="Pause between two.")] = 1.0,
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Send stimuli: added to the source's, or one tick each with source.kind = "zmq".

    [bold]neuromod send stimuli 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 --repeat 100[/bold]
    """
    with _client("ingest", config, address, key, timeout) as client:
        for index in range(repeat):
            if index:
                time.sleep(1e-3 * interval_ms)
            client.send_stimuli(values)


@send_app.command()
def modulators(
    dopamine: Annotated[float | None, typer.Option(help="-1 to 1.")] = None,
    cortisol: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    acetylcholine: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    tempo: Annotated[float | None, typer.Option(help="0.1 to 4.")] = None,
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Set levels of neuromodulators; the others keep theirs.

    [bold]neuromod send modulators --acetylcholine 0.8 --tempo 1.5[/bold]
    """
    given = {"dopamine": dopamine, "cortisol": cortisol, "acetylcholine": acetylcholine, "tempo": tempo}
    with _client("ingest", config, address, key, timeout) as client:
        client.send_modulators(**{name: level for name, level in given.items() if level is not None})


@send_app.command(context_settings=NEGATIVE)
def reward(
    amount: Annotated[float, typer.Argument(help="Any finite amount; negative for a punishment.", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Add a reward.

    [bold]neuromod send reward 1.0[/bold]    or, for a punishment, [bold]neuromod send reward -0.5[/bold]
    """
    with _client("ingest", config, address, key, timeout) as client:
        client.send_reward(amount)


@send_app.command()
def stress(
    amount: Annotated[float, typer.Argument(help="Not negative.", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Add a stress.

    [bold]neuromod send stress 0.3[/bold]
    """
    with _client("ingest", config, address, key, timeout) as client:
        client.send_stress(amount)


@send_app.command()
def stimulate(
    program: Annotated[str, typer.Argument(help="One of the session's programs.", show_default=False)],
    config: Config = None,
    address: Address = None,
    control: Annotated[
        str | None, typer.Option("--control", help="The daemon's control socket, which a key needs too.")
    ] = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Ask the safety gate for a train of a program; it comes only while armed, and within every limit.

    [bold]neuromod send stimulate pulse[/bold]
    """
    with _client("ingest", config, address, key, timeout, control=control) as client:
        client.send_stimulate(program)
    typer.echo("asked; what the gate says comes as an event: 'neuromod subscribe event'", err=True)


@send_app.command()
def event(
    name: Annotated[str, typer.Argument(help="What happened.", show_default=False)],
    value: Annotated[str | None, typer.Option(help="JSON, or plain text.")] = None,
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
) -> None:
    """Mark this moment in the session.

    [bold]neuromod send event go --value '{"trial": 4}'[/bold]
    """
    with _client("ingest", config, address, key, timeout) as client:
        client.send_event(name, None if value is None else _value(value))


# -- commanding


def status(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 2.0, json: Json = False
) -> None:
    """Say how the daemon is doing.

    [bold]neuromod status[/bold]

    [bold]neuromod status --json | jq .health.counters[/bold]

    Exits with 2 where no daemon answers.
    """
    _command("status", {}, config, address, key, timeout, json)


def pause(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 2.0, json: Json = False
) -> None:
    """Hold the network; the source is still read."""
    _command("pause", {}, config, address, key, timeout, json)


def resume(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 2.0, json: Json = False
) -> None:
    """Let the network go on."""
    _command("resume", {}, config, address, key, timeout, json)


def stop(
    config: Config = None, address: Address = None, key: Key = None, timeout: Timeout = 2.0, json: Json = False
) -> None:
    """End the session."""
    _command("stop", {}, config, address, key, timeout, json)


def set_(
    parameters: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
    json: Json = False,
) -> None:
    """Change parameters at the next tick; 'neuromod status' lists those that may change.

    [bold]neuromod set network.input_gain=1.2 publish.state_hz=20[/bold]
    """
    values = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not (name and equals):
            raise NeuromodError(f"write NAME=VALUE, as in publish.state_hz=20, not {parameter!r}")
        values[name.strip()] = _value(value)
    _command("set", {"parameters": values}, config, address, key, timeout, json)


def learning(
    on: Annotated[str, typer.Argument(metavar="on|off", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 2.0,
    json: Json = False,
) -> None:
    """Let plasticity change weights, or freeze them."""
    if on not in ("on", "off"):
        raise NeuromodError(f"learning is on or off, not {on!r}")
    _command("learning", {"on": on == "on"}, config, address, key, timeout, json)


def checkpoint(
    path: Annotated[Path | None, typer.Argument(help="File, on the daemon's host.")] = None,
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """Write the whole state of the loop to a file.

    [bold]neuromod checkpoint before-training.ckpt[/bold]
    """
    args = {} if path is None else {"path": str(path.absolute())}
    _command("checkpoint", args, config, address, key, timeout, json)


def restore(
    path: Annotated[Path, typer.Argument(help="File, on the daemon's host.", show_default=False)],
    config: Config = None,
    address: Address = None,
    key: Key = None,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """Load the state of the loop from a checkpoint."""
    _command("restore", {"path": str(path.absolute())}, config, address, key, timeout, json)


# -- helpers


@contextmanager
def _client(
    socket: str, config: Path | None, address: str | None, key: Path | None, timeout_s: float, **also: str | None
) -> "Iterator[Client]":
    from neuromod.bridge.client import Client

    addresses: dict[str, str] = {}
    if config is not None and address is None:
        from neuromod.bridge.config import load

        addresses = load(config).sockets.for_clients()
    addresses |= {name: given for name, given in {socket: address, **also}.items() if given is not None}
    with Client(timeout_s=timeout_s, key=key, **addresses) as client:
        yield client


def _command(
    cmd: str,
    args: dict[str, Any],
    config: Path | None,
    address: str | None,
    key: Path | None,
    timeout_s: float,
    json: bool,
) -> None:
    from neuromod.bridge.show import as_tree, plain

    with _client("control", config, address, key, timeout_s) as client:
        result = client.request(cmd, **args)
    if json:
        typer.echo(jsonlib.dumps(plain(result), indent=2, allow_nan=False))
    elif result:
        typer.echo(as_tree(result))


def _value(text: str) -> Any:
    """Read a value as JSON where it is JSON, else as text."""
    try:
        return jsonlib.loads(text)
    except ValueError:
        return text
