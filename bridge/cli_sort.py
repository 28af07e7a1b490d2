"""`neuromod sort`: from a recording to units, and from units to the network.

Exit codes as in `neuromod.bridge.cli`; 1 where the offline sorter failed.
"""

import json as jsonlib
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuromod.engine.errors import ConfigError

if TYPE_CHECKING:
    from neuromod.adapters.config import RecordingConfig
    from neuromod.sorting.bundle import Bundle

_RAW = "Raw binary files"
_ENCODING = "Encoding"


class Export(StrEnum):
    """Formats for other programs."""

    PHY = "phy"
    NWB = "nwb"


def sort(
    recording: Annotated[
        Path,
        typer.Argument(metavar="RECORDING", help="File or folder; or a sorting, to encode again.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="SORTING", help="Folder to write.", show_default="RECORDING-sorting"),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="File (.json, .prb, .cmp), utah, tetrode, linear:UM, NP1010, or MANUFACTURER/MODEL.",
            show_default="that of the recording, or a file beside it",
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(metavar="utah|neuropixels|FILE", help="Parameter file.", show_default="by the probe's geometry"),
    ] = None,
    sorter: Annotated[
        str | None, typer.Option(help="Any sorter of spikeinterface.", show_default="lupin with torch, or tridesclous2")
    ] = None,
    encode: Annotated[
        str | None,
        typer.Option(
            metavar="location|rate|tuning|FILE",
            help="Units to stimuli; a table is .csv or .toml.",
            rich_help_panel=_ENCODING,
            show_default="location",
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, max=14, help="How many stimuli.", rich_help_panel=_ENCODING, show_default="14")
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_ENCODING,
            help="For tuning: .npz (t, values), .csv (time first) or .xdf[:STREAM]; s from the first sample.",
        ),
    ] = None,
    lag_ms: Annotated[
        float, typer.Option(help="By how much behaviour follows its spikes, in ms.", rich_help_panel=_ENCODING)
    ] = 0.0,
    smoothing_ms: Annotated[
        float,
        typer.Option(min=0.0, max=60_000.0, help="Of the session's encoder, in ms.", rich_help_panel=_ENCODING),
    ] = 30.0,
    block_ms: Annotated[
        float, typer.Option(min=0.1, max=100.0, help="Of the session's timing.", rich_help_panel=_ENCODING)
    ] = 1.0,
    export: Annotated[list[Export] | None, typer.Option(help="Write for other programs, too.")] = None,
    report: Annotated[bool, typer.Option(help="Write a summary of the units, report.html.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same sorting.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes for reading and filtering.", show_default="all but one")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream, where a recording holds several.")] = None,
    rate_hz: Annotated[float | None, typer.Option(help="Sampling frequency.", rich_help_panel=_RAW)] = None,
    channels: Annotated[int | None, typer.Option(help="Interleaved channels.", rich_help_panel=_RAW)] = None,
    dtype: Annotated[str | None, typer.Option(help="int16, float32, ...", rich_help_panel=_RAW)] = None,
    gain_uv: Annotated[float | None, typer.Option(help="Microvolt per unit.", rich_help_panel=_RAW)] = None,
    header_bytes: Annotated[int, typer.Option(help="Bytes to skip.", rich_help_panel=_RAW)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a sorting that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")] = False,
) -> None:
    r"""Find the units of a recording, so that the loop can recognise them live.

    [bold]neuromod sort data.ns5 -o monday --probe array.cmp[/bold]    a Utah array with its map

    [bold]neuromod sort run_g0 --stream imec0.ap --export phy --export nwb[/bold]    SpikeGLX knows its probe

    [bold]neuromod sort raw.dat --rate-hz 30000 --channels 32 --dtype int16 --gain-uv 0.195 --probe linear:25[/bold]

    [bold]neuromod sort monday --encode tuning --behaviour hand.csv[/bold]    other stimuli for a sorting that is there

    The folder holds the bundle that [bold]\[front_end.units][/bold] of a session names, spikes.npz, report.html and
    spikeinterface's analyzer. After an interrupt, the same command goes on from the last finished stage.
    """
    from neuromod.bridge import sort as work
    from neuromod.sorting.sorter_process import SorterError

    options = work.EncodingOptions(encode or "location", groups, behaviour, lag_ms, block_ms, smoothing_ms)
    if (recording / "bundle.json").is_file():
        _refuse_beside_encoding(output, probe, parameters, sorter, export, stream, rate_hz, channels, dtype, gain_uv)
        if encode is None:
            raise ConfigError(f"{recording} is a sorting: say --encode ... to encode it again, or name a recording")
        bundle = work.encode_again(recording, options)
        _tell(bundle, recording, json=json)
        return
    folder = output if output is not None else work.default_output(recording)
    if (folder / "bundle.json").is_file() and not force:
        raise ConfigError(f"{folder} is a sorting already; give another name with -o, or --force to replace it")
    source = _source(recording, stream, rate_hz, channels, dtype, gain_uv, header_bytes)
    try:
        with work.progress(hidden=json) as say:
            bundle = work.sort(
                source, folder, probe=probe, parameters=parameters, sorter=sorter, encoding=options,
                exports=tuple(export or ()), report=report, seed=seed, n_jobs=jobs or work.default_jobs(), say=say,
            )  # fmt: skip
    except SorterError as error:
        typer.echo(f"neuromod: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("neuromod: interrupted; the same command goes on from the last finished stage", err=True)
        raise typer.Exit(130) from None
    _tell(bundle, folder, json=json)


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=panel)(sort)


def _refuse_beside_encoding(*given: Any) -> None:
    if any(value not in (None, []) for value in given):
        raise ConfigError("a sorting is encoded again: give only --encode and what goes with it")


def _source(
    path: Path,
    stream: str | None,
    rate_hz: float | None,
    channels: int | None,
    dtype: str | None,
    gain_uv: float | None,
    header_bytes: int,
) -> "RecordingConfig":
    import pydantic

    from neuromod.adapters.config import RecordingConfig
    from neuromod.adapters.recording import detect_format

    if not path.exists() and not any(path.parent.glob(f"{path.name}.ns[1-9]")):
        raise ConfigError(f"{path}: no such file or folder; mend the path of the recording")
    missing = [
        name for name, value in (("--rate-hz", rate_hz), ("--channels", channels), ("--dtype", dtype)) if not value
    ]
    if missing and path.exists() and detect_format(path) == "binary":
        raise ConfigError(f"{path}: a raw binary file says nothing about itself; add {', '.join(missing)}")
    try:
        return RecordingConfig(
            path=path.absolute(), stream_id=stream, sampling_frequency_hz=rate_hz, n_channels=channels, dtype=dtype,
            gain_uv=gain_uv, header_bytes=header_bytes,
        )  # fmt: skip
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def _tell(bundle: "Bundle", folder: Path, *, json: bool) -> None:
    from neuromod.bridge.sort import REPORT, unit_rows
    from neuromod.sorting.unit_encoding import COLUMNS, cells, explain

    info = bundle.info
    made = info.provenance
    rejected, notes = made.get("rejected_units", {}), made.get("notes", [])
    rows = explain(info.encoding, bundle) if info.encoding is not None else ()
    if json:
        body = {
            "sorting": str(folder),
            "engine": info.engine,
            "units": [unit.model_dump(mode="json") for unit in info.units],
            "excluded_channels": info.excluded,
            "rejected_units": rejected,
            "encoding": [row.model_dump(mode="json") for row in rows],
            "probe": made.get("probe"),
            "parameters": made.get("parameter_file"),
            "notes": notes,
        }
        typer.echo(jsonlib.dumps(body, indent=2, allow_nan=False))
        return
    columns = (
        *("unit", "channel", "x, y um", "spikes", "Hz", "trough", "SNR", "ISI violations", "found online again"),
    )
    _table(f"{len(info.units)} units of {info.name}", columns, unit_rows(bundle))
    _table(f"Encoding by {info.encoding.by}" if info.encoding else "No encoding", COLUMNS, cells(rows))
    for channel, reason in info.excluded.items():
        typer.echo(f"channel {channel} left out: {reason}", err=True)
    for unit, reason in rejected.items():
        typer.echo(f"unit {unit} left out: {reason}", err=True)
    for note in [*notes, f"probe: {made.get('probe')}; parameters: {made.get('parameter_file')}"]:
        typer.echo(f"note: {note}", err=True)
    seen = f"; look at {folder / REPORT}" if (folder / REPORT).is_file() else ""
    typer.echo(
        f"wrote {folder}{seen}\nuse it: neuromod init sorted.toml --mode sorted, and under [front_end.units] of that "
        f"file: bundle = {shlex.quote(str(folder.absolute()))}",
        err=True,
    )


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)
