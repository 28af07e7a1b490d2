"""`neuromod export`: a network as memory images and as Verilog, and images read back.

Exit codes as in `neuromod.bridge.cli`.
"""

import json as jsonlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from neuromod.bridge.export import Source

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a network out to hardware, in fixed point: memory images, Verilog; and read images back.",
)

From = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Session file (TOML), or a folder of images.", show_default=False)
]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights that the session learnt, of 'neuromod checkpoint'.")
]
TickLength = Annotated[
    float | None,
    typer.Option("--dt-ms", min=0.001, max=10.0, help="Length of a tick.", show_default="as the session's"),
]
Clip = Annotated[bool, typer.Option("--clip", help="Clip numbers that do not fit, and name them, not refuse them.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]


class Protocol(StrEnum):
    """What the board speaks."""

    NEUROMOD = "neuromod"
    SILICONBRIDGE = "siliconbridge"


@app.command()
def mem(
    config: From,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path("images"),
    checkpoint: Checkpoint = None,
    dt_ms: TickLength = None,
    clip: Clip = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a network as $readmemh images, with a manifest that says what lies in them.

    [bold]neuromod export mem session.toml -o images[/bold]

    [bold]neuromod export mem session.toml --checkpoint monday.checkpoint -o images[/bold]    what it learnt, too

    [bold]neuromod export mem merged_v2 -o images[/bold]    a published set of thresholds, decays and weights

    registers.mem is the whole network. parameters.mem, parameters_weights.mem and parameters_decay.mem are for boards
    that load these. Of a checkpoint go the weights and the parameters that may change while it runs; membranes, traces
    and eligibility stay.
    """
    from neuromod.bridge import export

    source = export.source_of(config, checkpoint=checkpoint, dt_ms=dt_ms, clip=clip)
    texts = source.texts()
    export.write(output, texts, force=force)
    _tell(source, output, texts, json=json)


@app.command()
def verilog(
    config: From,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path("verilog"),
    checkpoint: Checkpoint = None,
    protocol: Annotated[Protocol, typer.Option(help="What the board speaks.")] = Protocol.NEUROMOD,
    baud: Annotated[
        int | None,
        typer.Option(min=1, help="Of the serial line.", show_default="3000000; 115200 for siliconbridge"),
    ] = None,
    clock_hz: Annotated[int, typer.Option(min=1, help="Clock of the core.")] = 100_000_000,
    dt_ms: TickLength = None,
    clip: Clip = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a board that runs the network: our Verilog, its images, and how to build it.

    [bold]neuromod export verilog session.toml -o board[/bold]

    [bold]neuromod export verilog session.toml -o board --protocol siliconbridge[/bold]    for hosts that exist
    """
    from neuromod.bridge import export

    source = export.source_of(config, checkpoint=checkpoint, dt_ms=dt_ms, clip=clip)
    texts = export.verilog(source, clock_hz=clock_hz, baud=baud, protocol=protocol.value)
    export.write(output, texts, force=force)
    _tell(source, output, texts, json=json)


@app.command()
def read(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="A folder of images, or the images.", show_default=False)
    ],
    ticks: Annotated[int, typer.Option("--run", min=0, max=10_000_000, help="Run it for so many ticks.")] = 0,
    stimulus: Annotated[float, typer.Option(help="--run: stimulus of every channel.")] = 2.0,
    stimuli: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="--run: rows of 16 stimuli, over and over.")
    ] = None,
    spikes_out: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="--run: keep the spikes.")] = None,
    dt_ms: Annotated[
        float | None,
        typer.Option("--dt-ms", min=0.001, max=10.0, help="Length of a tick.", show_default="the manifest's, or 1"),
    ] = None,
    json: Json = False,
) -> None:
    """Read images, check every word, say what they hold, and run them.

    [bold]neuromod export read images[/bold]

    [bold]neuromod export read thresholds.mem decay.mem weights.mem --run 1000[/bold]    a published set
    """
    from neuromod.bridge import export
    from neuromod.engine.errors import ConfigError

    if not ticks and (stimuli is not None or spikes_out is not None):
        raise ConfigError("--stimuli and --spikes-out go with --run N")
    source = export.read(images, dt_ms=dt_ms)
    body = _body(source)
    if ticks:
        import numpy as np

        spikes = export.run(source.network, ticks, stimuli, stimulus)
        body |= {"ticks": ticks, "spikes": spikes.sum(axis=0).tolist()}
        if spikes_out is not None:
            try:
                np.savez_compressed(spikes_out, spikes=spikes)
            except OSError as error:
                raise ConfigError(f"{spikes_out} cannot be written ({error.strerror})") from None
    if json:
        typer.echo(jsonlib.dumps(body, indent=2, allow_nan=False))
        return
    _print_network(body)


def add_commands(group: typer.Typer, panel: str) -> None:
    """Add the commands to the command line."""
    group.add_typer(app, name="export", rich_help_panel=panel)


# -- helpers


def _body(source: "Source") -> dict[str, Any]:
    network = source.network
    block = network.state[0]
    return {
        "source": source.named,
        "dt_ms": network.dt_ms,
        "tick": int(block["tick"]),
        "learns": bool(block["rule"] & 1),
        "thresholds_mv": (block["threshold"] / 256.0).tolist(),
        "rises": (block["rise"] / 2.0**24).tolist(),
        "weights_mv": network.weights.tolist(),
        "output_weights": None if source.output_weights is None else (source.output_weights / 256.0).tolist(),
        "notes": list(source.notes),
        "clipped": [each._asdict() for each in network.clipped],
    }


def _tell(source: "Source", folder: Path, texts: dict[str, str], *, json: bool) -> None:
    from neuromod.engine.manifest import MANIFEST, read_manifest

    told = read_manifest(texts[MANIFEST])
    if json:
        body = told.model_dump(mode="json", exclude={"network"})
        body |= {"folder": str(folder), "images": body["files"], "files": sorted(texts)}
        typer.echo(jsonlib.dumps(body, indent=2, allow_nan=False))
        return
    for each in told.clipped:
        typer.echo(f"clipped: {each.name} from {each.value:g} to {each.held:g} {each.unit}", err=True)
    for note in told.notes:
        typer.echo(f"note: {note}", err=True)
    clipped = f", {len(told.clipped)} numbers clipped" if told.clipped else ""
    typer.echo(f"wrote {folder}: {len(texts)} files of {source.named}, ticks of {told.dt_ms:g} ms{clipped}", err=True)


def _print_network(body: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [
        "channel",
        "threshold, mV",
        "rise a tick",
        "weights from it, mV",
        *(["spikes"] if "ticks" in body else []),
    ]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for i in range(16):
        row = body["weights_mv"][i]
        cells = [str(i), f"{body['thresholds_mv'][i]:g}", f"{body['rises'][i]:.6g}", f"{min(row):g} to {max(row):g}"]
        table.add_row(*cells, *([str(body["spikes"][i])] if "ticks" in body else []))
    Console().print(table)
    for note in body["notes"]:
        typer.echo(f"note: {note}", err=True)
    learns = "learns" if body["learns"] else "does not learn"
    typer.echo(f"{body['source']} is good: ticks of {body['dt_ms']:g} ms, at tick {body['tick']}, {learns}", err=True)
