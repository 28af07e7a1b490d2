"""`neuromod certify`: which rates of ticks and how many channels this host keeps up with, as it is.

Exit codes: 0 measured, and what --require asks for is promised; 1 it is not; 2 could not run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuromod.engine.errors import ConfigError

if TYPE_CHECKING:
    from neuromod.bridge.certify_measures import Settings


def certify(
    quick: Annotated[bool, typer.Option("--quick", help="About a minute, rather than four.")] = False,
    channels: Annotated[
        str | None, typer.Option(help="Counts of channels, commas.", show_default="16,96,384; 16,96 with --quick")
    ] = None,
    ticks: Annotated[
        str | None, typer.Option(help="Lengths of ticks in ms, commas.", show_default="1,0.5,0.2; 1 with --quick")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Repetitions of each.", show_default="5")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.5, max=3600.0, help="Length of one.", show_default="1 to 3")
    ] = None,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="Also send pulses in, through all of it, and out at an actuator.")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with every histogram.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Report to compare with.", show_default="the last one of this host"),
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the report for the next time.")] = True,
    require: Annotated[
        str | None, typer.Option(metavar="CHANNELS@MS", help="Exit with 1 unless this is promised.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report on stdout, for programs.")] = False,
) -> None:
    """Measure this host as it is, beside bare loops, and say which rates of ticks and channels it can promise.

    [bold]neuromod certify[/bold]    four minutes; leave the host alone meanwhile, or do what will be done beside it

    [bold]neuromod certify --quick --loopback --html host.html[/bold]

    [bold]neuromod certify --require 96@1 --json > today.json[/bold]    for scripts

    [bold]neuromod certify --compare before.json[/bold]    what another kernel, governor or version changed

    Reports are kept by host, and the next one says what changed beyond noise.
    """
    wanted = None if require is None else _point(require)
    settings = _settings(quick, channels, ticks, rounds, seconds, loopback)
    if wanted is not None and not any(c >= wanted[0] for c in settings.channels):
        raise ConfigError(f"--require {require}: so many channels are not measured; add them to --channels")
    if wanted is not None and not any(t <= wanted[1] for t in settings.ticks_ms):
        raise ConfigError(f"--require {require}: so short a tick is not measured; add it to --ticks")
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"--html {html}: there is no folder {html.absolute().parent}; make it first")
    if html is not None and html.is_dir():
        raise ConfigError(f"--html {html}: is a folder; name a file in it")
    from neuromod.bridge import certify as rules

    before = None if compare is None else rules.load(compare)
    from neuromod.bridge.certify_command import run

    raise typer.Exit(run(settings, before=before, html=html, is_kept=keep, require=wanted, json=json))


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=panel)(certify)


def _settings(
    quick: bool, channels: str | None, ticks: str | None, rounds: int | None, seconds: float | None, loopback: bool
) -> "Settings":
    from dataclasses import replace

    from neuromod.bridge.certify_measures import Settings

    found = Settings(loopback=loopback)
    if quick:
        found = replace(found, link_s=1.0, paced_s=1.0, loopback_s=2.0, channels=(16, 96), ticks_ms=(1.0,))
    if channels is not None:
        n_channels = _numbers("--channels", channels, 1.0, 4096.0)
        if any(n != int(n) for n in n_channels):
            raise ConfigError(f"--channels are whole numbers, not {channels!r}")
        found = replace(found, channels=tuple(int(n) for n in n_channels))
    if ticks is not None:
        ticks_ms = _numbers("--ticks", ticks, 0.1, 1.0)
        if any(abs(30.0 * t - round(30.0 * t)) > 1e-6 for t in ticks_ms):
            raise ConfigError(
                f"--ticks {ticks}: a tick is a whole number of samples at 30 kHz, as are 1, 0.5 and 0.2 ms"
            )
        found = replace(found, ticks_ms=ticks_ms)
    if rounds is not None:
        found = replace(found, rounds=rounds)
    if seconds is not None:
        found = replace(found, link_s=seconds, paced_s=seconds, grid_s=seconds, loopback_s=seconds)
    return found


def _numbers(option: str, text: str, least: float, most: float) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(least <= number <= most for number in numbers):
        raise ConfigError(f"{option} is numbers from {least:g} to {most:g} with commas between, not {text!r}")
    return tuple(dict.fromkeys(numbers))


def _point(text: str) -> tuple[int, float]:
    channels, _, tick_ms = text.partition("@")
    try:
        found = int(channels), float(tick_ms)
    except ValueError:
        found = 0, 0.0
    if not (found[0] > 0 and found[1] > 0.0):
        raise ConfigError(f"--require is channels@ms, such as 96@1, not {text!r}")
    return found
