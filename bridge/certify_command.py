"""`neuromod certify` from the first repetition to the last table."""

import json as json_text
import logging
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from neuromod.bridge import certify, certify_measures, certify_report, doctor
from neuromod.bridge.certify_measures import Measured, Settings
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    before: dict[str, Any] | None = None,
    html: Path | None = None,
    is_kept: bool = True,
    require: tuple[int, float] | None = None,
    json: bool = False,
) -> int:
    """Measure, judge, compare, keep and show.

    Parameters
    ----------
    settings : Settings
        What to measure.
    before : dict, optional
        Report to compare with; the last one that was kept of this host, where there is one.
    html : Path, optional
        Page to write.
    is_kept : bool
        Keep the report for the next time.
    require : tuple of int and float, optional
        Channels and milliseconds that must be promised.
    json : bool
        Print JSON on stdout rather than tables.

    Returns
    -------
    int
        0, or 1 where what is required is not promised.

    Raises
    ------
    BenchError
        A process failed, or nothing arrived.
    ConfigError
        The report cannot be kept, or the page not be written.
    """
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    folder = certify.folder_of(certify.host_name())
    if is_kept:
        certify.make(folder)
    if before is None and (last := certify.newest(folder)) is not None:
        try:
            before = certify.load(last)
        except ConfigError as error:
            log.warning("nothing to compare with: %s", error)
    findings = [asdict(finding) for finding in doctor.diagnose(multicast=False)]
    measured = _measure(settings)
    found = certify.report(measured, certify.host_facts(load), findings)
    changed = None if before is None else certify.compare(before, found)
    # shown first: it took minutes, and a disk may be full
    if json:
        print(json_text.dumps(found | {"changed": changed}, indent=2, allow_nan=False))
    else:
        certify_report.print_report(Console(), found, changed)
    if is_kept:
        certify.keep(found, folder)
    if html is not None:
        try:
            certify_report.write_html(html, found, changed)
        except OSError as error:
            raise ConfigError(f"--html {html}: cannot be written ({error.strerror})") from None
    return 0 if require is None or certify.is_promised(found, *require) else 1


def _measure(settings: Settings) -> Measured:
    # or the processes that are started would outlive this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiled code is loaded, or compiled at the first time", total=settings.n_steps)
        done = -1

        def step(what: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, description=what, completed=done)

        return certify_measures.measure(settings, step)
