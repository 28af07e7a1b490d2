"""Plays recordings through the loop: as fast as the machine goes, or at a pace with the daemon's sockets open.

As fast as possible means no threads, no sockets and no clock: chunks of the recording go straight into `consume`, the
function that the live loop calls. The same recording gives the same spikes bit for bit, live or replayed.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from neuromod.adapters.base import Source, create_source
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.events import EventAligner
from neuromod.bridge.pipeline import COUNTERS, N_UNITS, UNIT
from neuromod.bridge.wire import EventMessage, Flag
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import N_CHANNELS

_READ_S = 0.25
_LARGEST_READ = 16384
_READ_TICKS = 4096  # at least: with fewer, features of 1 kHz spend half of their time in Python
_KEPT = ("tick", "sample", "t_sample", "flags", "spikes")


@dataclass
class SpikeLog:
    """Spikes of a session, tick by tick; what a replay is compared by."""

    chunks: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    units: list[NDArray[Any]] = field(default_factory=list)
    n_ticks: int = 0

    def add(self, records: NDArray[Any]) -> None:
        """Keep the records of ticks; fillers and pauses, at which the network stood still, are left out."""
        live = records[(records["flags"] & (Flag.FILLER | Flag.PAUSED)) == 0]
        self.chunks.append({name: live[name].copy() for name in _KEPT})
        self.n_ticks += len(live)

    def add_units(self, units: NDArray[Any]) -> None:
        """Keep spikes of sorted units (UNIT)."""
        if len(units):
            self.units.append(units.copy())

    def unit_spikes(self) -> NDArray[Any]:
        """Return the spikes of sorted units: records of UNIT, in the order in which they were recognised."""
        return np.concatenate([np.empty(0, UNIT), *self.units])

    def column(self, name: str) -> NDArray[Any]:
        """Return one of tick, sample, t_sample, flags, spikes (bit i = channel i), one item a tick."""
        return np.concatenate([chunk[name] for chunk in self.chunks]) if self.chunks else np.empty(0)

    def spikes_per_channel(self) -> list[int]:
        """Count the spikes of each channel."""
        masks = self.column("spikes").astype(np.uint32)
        return [int((masks >> i & 1).sum()) for i in range(N_CHANNELS)]

    def digest(self) -> str:
        """Hash ticks, spikes and spikes of units: equal for equal ones, bit for bit."""
        hasher = hashlib.sha256()
        hasher.update(self.column("tick").astype("<u8").tobytes())
        hasher.update(self.column("spikes").astype("<u4").tobytes())
        units = self.unit_spikes()
        for name in ("sample", "unit", "amplitude"):
            hasher.update(units[name].tobytes())
        return hasher.hexdigest()

    def save(self, path: Path, events: list[EventMessage]) -> None:
        """Write everything as an .npz: the columns, unit_sample, ..., and event_name, event_t, event_tick."""
        columns: dict[str, Any] = {name: self.column(name) for name in _KEPT}
        units = self.unit_spikes()
        columns |= {f"unit_{name}": units[name] for name in ("sample", "t_sample", "unit", "amplitude", "residual")}
        np.savez_compressed(
            path,
            **columns,
            event_name=np.array([event.name for event in events], dtype=np.str_),
            event_t=np.array([event.t for event in events], np.float64),
            event_tick=np.array([event.tick for event in events], np.int64),
        )


@dataclass(frozen=True)
class Replay:
    """What a replay gave."""

    log: SpikeLog
    events: list[EventMessage]
    counters: dict[str, int]
    quirks: dict[str, int]
    stream_s: float
    wall_s: float

    def summary(self) -> dict[str, Any]:
        """Return what a program may want to know of it."""
        return {
            "ticks": self.log.n_ticks,
            "spikes": self.log.spikes_per_channel(),
            "unit_spikes": sum(map(len, self.log.units)),
            "digest": self.log.digest(),
            "events": len(self.events),
            "counters": self.counters,
            "quirks": self.quirks,
            "stream_s": self.stream_s,
            "wall_s": self.wall_s,
            "times_real_time": self.stream_s / self.wall_s if self.wall_s > 0 else None,
        }


def play(
    config: SessionConfig,
    source: Source | None = None,
    *,
    on_progress: Callable[[float], None] = lambda stream_s: None,
    until_tick: int | None = None,
    on_ticks: Callable[[NDArray[Any]], None] = lambda records: None,
) -> Replay:
    """Play a recording through the loop as fast as the machine goes.

    Parameters
    ----------
    config : SessionConfig
        The session; its source is a recording.
    source : Source, optional
        In place of the configuration's.
    on_progress : callable
        Gets the seconds of recording played so far.
    until_tick : int, optional
        Stop after so many ticks rather than at the end.
    on_ticks : callable
        Gets every array of TICK records, in order; it is used again after the call.

    Raises
    ------
    ConfigError
        If the source is live and has no end, or the network is a board outside, which nobody asks here.
    """
    if config.offload is not None:
        raise ConfigError(
            "[offload]: a board outside is the network of this session, and a replay as fast as the machine goes has "
            "none; play at a pace ('neuromod replay --speed 1') with the board's adapter beside it, remove [offload], "
            "or compare the board with the network of the daemon ('neuromod hil')"
        )
    if source is None and config.source.kind in ("lsl", "zmq"):
        raise ConfigError(f"source kind {config.source.kind!r} is live: replay needs a recording")
    source = source or create_source(config.source)
    source.open()
    try:
        assembly = assemble(config, source.info)
        return _play(assembly, source, on_progress, until_tick, on_ticks)
    finally:
        source.close()


def _play(
    assembly: Assembly,
    source: Source,
    on_progress: Callable[[float], None],
    until_tick: int | None,
    on_ticks: Callable[[NDArray[Any]], None],
) -> Replay:
    fs = source.info.sampling_frequency
    log, aligner, events = SpikeLog(), EventAligner(), list[EventMessage]()
    records = assembly.records(_READ_TICKS)
    n_read = int(min(max(_READ_S * fs, _READ_TICKS / assembly.ticks_per_block, 1.0), _LARGEST_READ))
    started = time.perf_counter()
    n_samples = 0
    while not source.ended and (until_tick is None or log.n_ticks < until_tick):
        chunk = source.read(n_read, 1.0)
        for marker in source.markers():
            aligner.add_event(marker.name, marker.t, marker.value, "recording", 0.0)
        n_samples += len(chunk)
        done = 0
        while done < len(chunk):
            done, n_records = assembly.consume(chunk.samples, chunk.stamps, done, records)
            if until_tick is not None:
                n_records = min(n_records, until_tick - log.n_ticks)
            log.add(records[:n_records])
            on_ticks(records[:n_records])
            units = assembly.pipeline.units[: assembly.pipeline.words[N_UNITS]]
            log.add_units(units if until_tick is None else units[units["tick"] < until_tick])
            aligner.add_ticks(records["t_sample"][:n_records], records["tick"][:n_records])
        events += aligner.take(0.0)
        on_progress(n_samples / fs)
    events += aligner.take(np.inf)  # those behind the last tick
    return Replay(
        log,
        events,
        dict(zip(COUNTERS, assembly.pipeline.counters.tolist(), strict=True)),
        dict(source.quirks),
        n_samples / fs,
        time.perf_counter() - started,
    )


def _play_paced(config: SessionConfig, speed: float, on_progress: Callable[[float], None]) -> Replay:
    """Play through the daemon at a multiple of true time, its sockets open to whoever listens."""
    from neuromod.bridge.service import Daemon
    from neuromod.bridge.stop_signals import stop_on_signals

    log = SpikeLog()
    started = time.perf_counter()
    with Daemon(config, speed=speed, on_ticks=log.add, on_units=log.add_units) as daemon:
        stop_on_signals(daemon.stopped)
        print(f"neuromod: spikes at {daemon.addresses['output']}; Ctrl-C stops", file=sys.stderr)
        info = daemon.assembly.info
        while not daemon.stopped.wait(0.1) and not daemon.has_ended():
            on_progress(daemon.collector.counters()["samples"] / info.sampling_frequency)
        quirks = daemon.intake.describe()["quirks"]
    if daemon.failure is not None:
        raise daemon.failure
    counters = {name: daemon.collector.counters()[name] for name in COUNTERS}
    return Replay(
        log,
        list(daemon.collector.past_events),
        counters,
        quirks,
        counters["samples"] / info.sampling_frequency,
        time.perf_counter() - started,
    )


def replay_command(
    *, config: SessionConfig, recording: Path, speed: float | None, json: bool, spikes_out: Path | None
) -> int:
    """Play a recording and say what came of it; the body of `neuromod replay`.

    Parameters
    ----------
    config : SessionConfig
        The session, with the recording as its source.
    recording : Path
        For the title.
    speed : float or None
        Multiple of true time; None for as fast as possible.
    json : bool
        Print the summary as JSON on stdout.
    spikes_out : Path or None
        Where to keep the spikes, as .npz.

    Returns
    -------
    int
        Exit code.
    """
    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:2],
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        console=console,
        disable=json or not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"playing {recording.name}", total=None, shown="")

        def on_progress(stream_s: float) -> None:
            progress.update(task, completed=stream_s, shown=f"{stream_s:.1f} s")

        result = play(config, on_progress=on_progress) if speed is None else _play_paced(config, speed, on_progress)
    if spikes_out is not None:
        result.log.save(spikes_out, result.events)
    _print(result, as_json=json, title=str(recording))
    return 0


def _print(result: Replay, *, as_json: bool, title: str) -> None:
    summary = result.summary()
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    table = Table(title=title, show_header=False)
    rate = summary["times_real_time"]
    table.add_row("played", f"{result.stream_s:.2f} s in {result.wall_s:.2f} s ({rate:.1f} x real time)")
    table.add_row("ticks", str(summary["ticks"]))
    table.add_row("spikes per channel", " ".join(map(str, summary["spikes"])))
    if result.log.units:
        table.add_row("spikes of sorted units", str(summary["unit_spikes"]))
    table.add_row("events", str(summary["events"]))
    odd = {k: v for k, v in result.counters.items() if v and k not in ("samples", "blocks", "ticks")} | result.quirks
    table.add_row("samples", f"{result.counters['samples']}" + "".join(f", {k} {v}" for k, v in odd.items()))
    table.add_row("digest", summary["digest"])
    Console().print(table)
