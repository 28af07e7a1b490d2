"""The command line. Everything heavy is imported by the command that needs it, so that `--help` comes at once.

Exit codes: 0 all went well; 1 it ran, and failed; 2 it could not run (bad configuration, bad usage, no daemon);
130 interrupted. What a program may read goes to stdout, everything else to stderr. Environment variables are read here
and nowhere below: `NEUROMOD_LOG` and `NEUROMOD_LOG_FORMAT` (level and form of the log), `NEUROMOD_KEY` (file with
the key of a client), and what systemd sets (`JOURNAL_STREAM`, `NOTIFY_SOCKET`, `WATCHDOG_USEC`).
"""

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from neuromod.bridge import (
    cli_actuate,
    cli_adapter,
    cli_calibrate,
    cli_certify,
    cli_client,
    cli_export,
    cli_fpga,
    cli_hil,
    cli_keys,
    cli_monitor,
    cli_operator,
    cli_session,
    cli_sort,
    logs,
)
from neuromod.engine.errors import NeuromodError

if TYPE_CHECKING:
    from neuromod.bridge.config import SessionConfig

SETUP = "Set up"
RUN = "Run"
TALK = "Talk to a running daemon"

LSL_CONSUMER_S = 600.0  # the program that is to listen is started by hand


class _Group(typer.core.TyperGroup):
    """Turns every error that neuromod raises on purpose into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NeuromodError as error:
            logs.say(str(error), logging.ERROR)
            raise typer.Exit(cli_client.exit_code(error)) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Closed-loop, real-time brain-computer-interface service: neural signal in (Lab Streaming Layer or a
    recording), a 16-channel spiking network, spikes out over ZeroMQ.

    Begin with [bold]neuromod demo[/bold], then [bold]neuromod doctor[/bold], [bold]init[/bold], [bold]check[/bold] and
    [bold]start[/bold].

    Not a medical device: for research, never on its own between a signal and a body.""",
    epilog="Exit codes: 0 well, 1 failed, 2 could not run (configuration, usage, no daemon), 130 interrupted.",
)


class LogLevel(StrEnum):
    """How much to say on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class SourceKind(StrEnum):
    """What a new session file is to read from."""

    LSL = "lsl"
    RECORDING = "recording"
    FEATURES = "features"
    ZMQ = "zmq"


class Mode(StrEnum):
    """What becomes of raw signal."""

    CROSSINGS = "crossings"
    SORTED = "sorted"
    FEATURES = "features"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Session file (TOML).", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"neuromod {version('neuromod-bridge')}")
        raise typer.Exit


@app.callback()
def _options(
    log_level: Annotated[
        LogLevel, typer.Option(envvar="NEUROMOD_LOG", case_sensitive=False, help="What to log on stderr.")
    ] = LogLevel.WARNING,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="The same as --log-level info.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    level = "INFO" if verbose and log_level == LogLevel.WARNING else log_level.value.upper()
    logging.getLogger().setLevel(level)
    logs.set_up(journal_stream=os.environ.get("JOURNAL_STREAM", ""))


# -- set up


@app.command(rich_help_panel=SETUP)
def init(
    path: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="File to write.")] = Path("session.toml"),
    source: Annotated[SourceKind, typer.Option(help="Where signal comes from.")] = SourceKind.LSL,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Of raw signal: threshold crossings, spikes of sorted units, or power.", show_default="crossings"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented session file to edit.

    [bold]neuromod init[/bold]    for an LSL stream

    [bold]neuromod init replay.toml --source recording[/bold]    for a recording

    [bold]neuromod init sorted.toml --mode sorted[/bold]    for units that 'neuromod sort' found
    """
    from neuromod.bridge.template import session_toml

    if mode is not None and source not in (SourceKind.LSL, SourceKind.RECORDING):
        raise _usage(f"--mode is of raw signal, and --source {source} brings none: leave it out")
    if path.exists() and not force:
        raise _usage(f"{path} is there already; give another name, or --force to replace it")
    try:
        path.write_text(session_toml(source.value, (mode or Mode.CROSSINGS).value), encoding="utf-8")
    except OSError as error:
        raise _usage(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    typer.echo(f"wrote {path}; edit [source], then: neuromod check {path}", err=True)


@app.command(rich_help_panel=SETUP)
def check(config: ConfigFile, json: Json = False) -> None:
    """Check a session file and print it complete, every default included.

    [bold]neuromod check session.toml[/bold]

    [bold]neuromod check session.toml --json | jq .network[/bold]
    """
    from neuromod.bridge.config import load

    session = load(config)
    typer.echo(session.effective_json() if json else session.effective_toml(), nl=json)
    typer.echo(f"{config} is good", err=True)


@app.command(rich_help_panel=SETUP)
def doctor(
    json: Json = False,
    multicast: Annotated[bool, typer.Option(help="Send LSL traffic to the network.")] = True,
) -> None:
    """Say what this host can do, and how to mend what it cannot.

    [bold]neuromod doctor[/bold]

    Exits with 1 where something stands in the way of any session; warnings do not.
    """
    from neuromod.bridge import doctor as checks

    findings = list(checks.diagnose(multicast))
    if json:
        _print_json(checks.as_json(findings))
    else:
        _print_table(
            ["", "check", "found", "mend"],
            [
                [{"ok": "[green]ok", "warn": "[yellow]warn", "fail": "[red]fail"}[f.status], f.name, f.found, f.mend]
                for f in findings
            ],
        )
    if checks.worst(findings) == "fail":
        raise typer.Exit(1)


@app.command(rich_help_panel=SETUP)
def streams(
    wait: Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds to listen.")] = 1.0, json: Json = False
) -> None:
    """List the LSL streams on the network.

    [bold]neuromod streams[/bold]    then name one under source in the session file
    """
    from neuromod.adapters.lsl import list_streams

    found = list_streams(wait)
    if json:
        _print_json(
            [
                {
                    "name": stream.name,
                    "type": stream.stream_type,
                    "kind": stream.kind,
                    "n_channels": stream.n_channels,
                    "sampling_frequency_hz": stream.sampling_frequency,
                    "source_id": stream.source_id,
                    "hostname": stream.hostname,
                }
                for stream in found
            ]
        )
    elif found:
        _print_table(
            ["name", "channels", "Hz", "source_id", "host"],
            [
                [s.name, str(s.n_channels), f"{s.sampling_frequency:g}", s.source_id or "", s.hostname or ""]
                for s in found
            ],
        )
    else:
        typer.echo("no LSL stream found; start one, or see 'neuromod doctor'", err=True)


@app.command(rich_help_panel=SETUP)
def layout(json: Json = False) -> None:
    """Print the layout of the network's state, for programs in other languages.

    [bold]neuromod layout --json[/bold]
    """
    from neuromod.engine.layout import BLOCK_BYTES, LAYOUT, LAYOUT_VERSION

    fields = [
        {"name": f.name, "offset": int(f.offset), "dtype": str(f.dtype), "shape": [int(n) for n in f.shape]}
        for f in LAYOUT
    ]
    if json:
        _print_json({"version": LAYOUT_VERSION, "bytes": int(BLOCK_BYTES), "fields": fields})
    else:
        _print_table(
            ["offset", "dtype", "shape", "name"],
            [[str(f["offset"]), str(f["dtype"]), str(f["shape"]), str(f["name"])] for f in fields],
        )
        typer.echo(f"layout {LAYOUT_VERSION}, {BLOCK_BYTES} bytes", err=True)


@app.command(rich_help_panel=SETUP)
def models(
    name: Annotated[str | None, typer.Argument(help="One model, with all its parameters.", show_default=False)] = None,
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print engine/MODELS.md, all models in full.")] = False,
) -> None:
    """List the neuron models, or say what one of them is: input, parameters, state, presets.

    [bold]neuromod models[/bold]

    [bold]neuromod models lapicque[/bold]

    [bold]neuromod models --json | jq '.models[].name'[/bold]
    """
    if markdown and (json or name is not None):
        raise _usage("--markdown prints all models in full: give neither --json nor a name with it")
    from neuromod.engine import documentation
    from neuromod.engine.models.catalogue import MODELS

    known = {model.name: model for model in MODELS}
    if name is not None and name not in known:
        raise _usage(f"there is no neuron model {name!r}; there are {', '.join(known)}")
    if markdown:
        typer.echo(documentation.markdown(), nl=False)
    elif json and name is not None:
        _print_json(documentation.as_data(known[name]))
    elif json:
        _print_json({"models": [documentation.as_data(model) for model in MODELS]})
    elif name is not None:
        model = known[name]
        typer.echo(f"{model.name}: {model.title}\n{model.reference}\n\n{documentation.input_of(model)}")
        for table in documentation.tables(model):
            typer.echo(f"\n{table.title}")
            _print_table(list(table.columns), [list(row) for row in table.rows])
    else:
        table = documentation.overview()
        _print_table(list(table.columns), [list(row) for row in table.rows])


# -- run


@app.command(rich_help_panel=RUN)
def demo(
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="How long to run.")] = 20.0,
    recording: Annotated[Path | None, typer.Option(help="Your own recording instead of a generated one.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Session file; its source section is replaced."),
    ] = None,
    bin_ms: Annotated[
        float | None, typer.Option(min=1.0, max=100.0, help="The recording holds features of so many ms, not signal.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream, where the recording holds several.")] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="What becomes of the generated recording, as with 'init'.", show_default="crossings"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated recording.")] = 0,
    task: Annotated[bool, typer.Option("--task", help="A cursor task instead, learnt from reward alone.")] = False,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="--task: how many networks.")] = 1,
    real_time: Annotated[bool, typer.Option("--real-time", help="--task: over LSL, by the clock.")] = False,
    controls: Annotated[bool, typer.Option("--controls", help="--task: play the controls, too.")] = False,
    json: Json = False,
) -> None:
    """Run the whole loop on this host: a recording as LSL stream, the daemon, a subscriber, a live view.

    [bold]neuromod demo[/bold]

    [bold]neuromod demo --mode sorted[/bold]    its units, recognised by their templates

    [bold]neuromod demo --recording data/my_recording.ns5 --json[/bold]

    [bold]neuromod demo --recording counts.npy --bin-ms 50[/bold]

    [bold]neuromod demo --task --controls[/bold]    the closed loop: a network learns to move a cursor

    Exits with 0 only where the loop really ran, without loss; with --task, where it was learnt.
    """
    if task and (recording, config, bin_ms, stream) != (None, None, None, None):
        raise _usage("--task makes its own signal: leave --recording, --config, --bin-ms and --stream out")
    if not task and (seeds, real_time, controls) != (1, False, False):
        raise _usage("--seeds, --real-time and --controls go with --task")
    if task:
        from neuromod.bridge.task_demo import run_task_demo

        raise typer.Exit(run_task_demo(seeds=seeds, true_time=real_time, controls=controls, json=json))
    if mode is not None and (task or recording is not None):
        raise _usage("--mode is of the generated recording: of your own, the session file (--config) says it")
    if recording is None and (config, bin_ms, stream) != (None, None, None):
        raise _usage("--config, --bin-ms and --stream say more of a --recording: give one")
    session = None if recording is None else _session_for(recording, config, bin_ms, stream)
    from neuromod.bridge.demo import run_demo

    raise typer.Exit(
        run_demo(session=session, seconds=seconds, json=json, seed=seed, mode=(mode or Mode.CROSSINGS).value)
    )


@app.command(rich_help_panel=RUN)
def start(
    config: ConfigFile,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start it anew where it crashes.")] = False,
    standby: Annotated[
        bool | None,
        typer.Option("--keep-standby/--no-standby", help="--supervise: a warm process (250 MB) to take over at once."),
    ] = None,
    is_standby: Annotated[bool, typer.Option("--standby", hidden=True)] = False,
    last_life: Annotated[str | None, typer.Option(hidden=True)] = None,
    log_format: Annotated[
        logs.LogFormat, typer.Option(envvar="NEUROMOD_LOG_FORMAT", help="The log for people, or JSON for programs.")
    ] = logs.LogFormat.TEXT,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The log in a file too; 10 MB, and five older ones are kept.")
    ] = None,
) -> None:
    """Run the daemon until it is stopped (Ctrl-C, SIGTERM or 'neuromod stop').

    [bold]neuromod start session.toml[/bold]

    [bold]neuromod -v start session.toml --log-format json --log-file neuromod.log[/bold]

    [bold]neuromod start --supervise session.toml[/bold]    as a child that is started anew after a crash; with
    checkpoint in the session file, from where it was, and always disarmed
    """
    from neuromod.bridge.stop_signals import halt_on_signal

    halt_on_signal(lambda: None)  # what only starts has nothing to stop
    journal = os.environ.get("JOURNAL_STREAM", "")
    logs.set_up(form=log_format, journal_stream=journal)  # the file is the daemon's alone
    if supervise:
        from neuromod.bridge.supervise import supervise as run_supervised

        ours = ("--supervise", "--keep-standby", "--no-standby")
        said = [word for word in sys.argv[1:] if word not in ours]  # all else is the child's
        command = [sys.executable, "-m", "neuromod.bridge.cli", *said]
        raise typer.Exit(run_supervised(command, has_standby=standby is not False))
    if standby is not None:
        raise _usage("--keep-standby and --no-standby go with --supervise")
    if is_standby:
        from neuromod.bridge.standby import wait_to_be_told

        if not (last_life := wait_to_be_told()):
            raise typer.Exit
    context = logs.Context()
    logs.set_up(form=log_format, file=log_file, journal_stream=journal, context=context)
    from neuromod.bridge.config import load

    session = load(config)
    context.session = session.session.name
    from neuromod.bridge.notify import Notifier
    from neuromod.bridge.resume import from_supervisor
    from neuromod.bridge.service import Daemon, serve

    def follow(daemon: Daemon) -> None:
        context.clock, context.tick = daemon.collector.now, lambda: daemon.collector.last_tick

    with Notifier.from_environment(os.environ) as notifier:
        last = from_supervisor(last_life) if last_life is not None else None
        raise typer.Exit(serve(session, on_open=follow, notifier=notifier, last=last))


@app.command(rich_help_panel=RUN)
def replay(
    recording: Annotated[Path, typer.Argument(help="File or folder; a recorded session too.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Session file; its source section is replaced.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(help="1 for true time, a multiple, or max.", show_default="max; 1 with --lsl")
    ] = None,
    lsl: Annotated[bool, typer.Option("--lsl", help="Play it as an LSL stream instead, for any LSL program.")] = False,
    bin_ms: Annotated[
        float | None, typer.Option(min=1.0, max=100.0, help="The file holds features of so many ms, not signal.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream, where a recording holds several.")] = None,
    spikes_out: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Keep the spikes.")] = None,
    json: Json = False,
) -> None:
    """Play a recording through the loop, or as an LSL stream; or replay a session and compare it with its record.

    [bold]neuromod replay data.ns5 --spikes-out spikes.npz[/bold]    as fast as the machine goes

    [bold]neuromod replay counts.npy --bin-ms 50 --speed 1[/bold]    a feature matrix, at true time

    [bold]neuromod replay data.xdf --lsl[/bold]    as an outlet for any LSL program; a line of JSON says that it is
    ready, then it waits for somebody to listen

    [bold]neuromod replay sessions/session-20250101-120000[/bold]    a recorded session, from its raw samples where it
    has them: exits with 0 where all that was computed comes out the same bit for bit, with 1 and the first tick at
    which it does not
    """
    from neuromod.bridge.session_log import segments

    if recording.is_dir() and segments(recording):
        if lsl or (config, speed, bin_ms, stream, spikes_out) != (None,) * 5:
            raise _usage("a recorded session is replayed by what its log holds: give no other option than --json")
        from neuromod.bridge.session_replay import replay_session_command

        raise typer.Exit(replay_session_command(recording, json=json))
    session = _session_for(recording, config, bin_ms, stream)
    if lsl:
        if spikes_out is not None:
            raise _usage("--spikes-out goes without --lsl: an outlet has no network behind it")
        from neuromod.adapters import playback

        pace: Any = "max" if speed == "max" else _speed(speed or "1")
        play = playback.PlaybackConfig(source=session.source, speed=pace, consumer_timeout_s=LSL_CONSUMER_S)
        raise typer.Exit(playback.main([play.model_dump_json()]))
    from neuromod.bridge.replay import replay_command

    raise typer.Exit(
        replay_command(
            config=session,
            recording=recording,
            speed=None if speed in (None, "max") else _speed(speed),
            json=json,
            spikes_out=spikes_out,
        )
    )


@app.command(rich_help_panel=RUN)
def baseline(
    config: ConfigFile,
    seconds: Annotated[float, typer.Option(min=1.0, max=86_400.0, help="How long to measure.")] = 60.0,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for the dated file.")] = Path("baselines"),
) -> None:
    """Measure thresholds, channels to exclude and normalisation, and write them to a dated file.

    [bold]neuromod baseline session.toml --seconds 120 -o baselines[/bold]

    Then name the file as baseline under the session section; it stays frozen for the session.
    """
    from neuromod.bridge.config import load

    session = load(config)
    from neuromod.bridge.baseline import measure

    raise typer.Exit(measure(session, seconds, folder))


class Bench(StrEnum):
    """What to measure."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@app.command(rich_help_panel=RUN)
def bench(
    what: Annotated[Bench, typer.Argument(help="latency beside a bare pylsl + pyzmq loop, or throughput of replay.")],
    only: Annotated[
        str | None, typer.Option(help="latency: only these of neuromod, busy, ezmsg, closed-loop, recording; commas.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="latency: length of a run.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="latency: runs of each.")] = 5,
    endurance: Annotated[float, typer.Option(min=0.0, max=86_400.0, help="latency: seconds of one long run.")] = 60.0,
    json: Json = False,
) -> None:
    """Measure this host, as ratios to a bare loop of one interleaved run.

    [bold]neuromod bench latency --json[/bold]

    [bold]neuromod bench latency --only closed-loop,recording --rounds 3[/bold]
    """
    from neuromod.bridge import bench as benchmarks

    if what is Bench.THROUGHPUT:
        raise typer.Exit(benchmarks.throughput(json=json))
    chosen = [name.strip() for name in only.split(",")] if only is not None else []
    code = benchmarks.latency(json=json, seconds=seconds, rounds=rounds, endurance_s=endurance, only=chosen)
    raise typer.Exit(code)


app.command(rich_help_panel=RUN)(cli_actuate.actuate)
app.add_typer(cli_adapter.app, name="adapter", rich_help_panel=RUN)
app.add_typer(cli_session.app, name="session", rich_help_panel=RUN)
cli_calibrate.add_commands(app, RUN)
cli_certify.add_commands(app, SETUP)
cli_sort.add_commands(app, RUN)
cli_export.add_commands(app, RUN)
cli_fpga.add_commands(app, RUN)
cli_hil.add_commands(app, RUN)
cli_client.add_commands(app, TALK)
cli_keys.add_commands(app, SETUP)
cli_operator.add_commands(app, TALK)
cli_monitor.add_commands(app, TALK)


def main() -> None:
    """Entry point of the `neuromod` command."""
    app(prog_name="neuromod")


# -- helpers


def _usage(message: str) -> NeuromodError:
    return NeuromodError(message)


def _speed(text: str | None) -> float:
    try:
        speed = float(text or "")
    except ValueError:
        speed = 0.0
    if not 0.0 < speed <= 1e6:
        raise _usage(f"--speed is a positive multiple of true time, or max, not {text!r}")
    return speed


def _session_for(recording: Path, config: Path | None, bin_ms: float | None, stream: str | None) -> "SessionConfig":
    from neuromod.bridge.config import for_recording

    return for_recording(recording, config, bin_ms=bin_ms, stream=stream)


def _print_json(body: Any) -> None:
    import json

    typer.echo(json.dumps(body, indent=2, allow_nan=False))


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False).print(table)


if __name__ == "__main__":
    main()
