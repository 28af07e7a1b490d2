"""`neuromod demo`: the whole loop on one machine, live, and checked against itself.

Three processes, as in a laboratory: a recording on a true LSL outlet, the daemon, and this one, which subscribes, shows
what arrives, and at the end replays the same recording offline to see whether live and replay agree bit for bit.
"""

import contextlib
import json as jsonlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live

from neuromod.adapters.base import StreamInfo, open_source
from neuromod.bridge.client import Client
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.demo_view import View
from neuromod.bridge.listener import Listener
from neuromod.bridge.replay import play
from neuromod.bridge.warm import LONGEST_START_S, is_compiled, warm_loop
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import AdapterError, AdapterTimeoutError
from neuromod.engine.layout import N_CHANNELS

N_ELECTRODES = 32
SAMPLING_FREQUENCY = 30_000.0
_WARMUP_S = 1.0  # of front end and of encoder, so that spikes come soon
_START_LEAD_S = 1.0
_STREAM_NAME = "neuromod-demo"

# A private session on this host: the demonstration neither sees nor disturbs the streams of a laboratory.
_LSL_API_CFG = "[lab]\nSessionID = {session}\n[multicast]\nResolveScope = machine\n[log]\nlevel = -2\n"


Floats = NDArray[np.float64]
Mode = Literal["crossings", "sorted", "features"]


def run_demo(*, session: SessionConfig | None, seconds: float, json: bool, seed: int, mode: Mode = "crossings") -> int:
    """Run the demonstration; the body of `neuromod demo`.

    Parameters
    ----------
    session : SessionConfig or None
        A session that plays a recording; None generates one with known spikes.
    seconds : float
        How long to run.
    json : bool
        Print the summary as JSON on stdout, and no live view.
    seed : int
        Of the generated recording.
    mode : {"crossings", "sorted", "features"}
        What becomes of a generated recording.

    Returns
    -------
    int
        0 only where the loop ran without loss and replays bit for bit, else 1.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="neuromod-demo-") as folder:
        if not is_compiled():
            with console.status("compiling the real-time loop; about a minute, once per version"):
                warm_loop()
        known: int | None = None
        if session is None:
            with console.status(f"generating {seconds:g} s of {N_ELECTRODES} electrodes with known spikes"):
                session, sorting, positions_um = _generate(Path(folder), seconds, seed)
                known = int(sorting.count_total_num_spikes())
            if mode == "sorted":
                with console.status("estimating templates from the known spikes; of a recording: neuromod sort"):
                    session = _sorted(session, sorting, positions_um, Path(folder))
            elif mode == "features":
                session = _changed(session, features=["spiking_band"])
        session = _quick_warmup(session)
        summary = _run(session, Path(folder), seconds, console, show=not json)
    if known is not None:
        summary["spikes_in_recording"] = known
    if json:
        print(jsonlib.dumps(summary, indent=2))
    else:
        _print(summary, console)
    return 0 if summary["ok"] else 1


def _generate(folder: Path, seconds: float, seed: int) -> tuple[SessionConfig, Any, Floats]:
    """Write a recording with known spikes; return a session that plays it, the spikes, and where electrodes are."""
    from spikeinterface.core import write_binary_recording
    from spikeinterface.generation import generate_ground_truth_recording

    # an Utah-like grid: neighbours far enough apart that most units are seen by one electrode
    recording, sorting = generate_ground_truth_recording(
        durations=[seconds],
        sampling_frequency=SAMPLING_FREQUENCY,
        num_channels=N_ELECTRODES,
        num_units=14,
        generate_probe_kwargs={
            "num_columns": 4,
            "xpitch": 100,
            "ypitch": 100,
            "contact_shapes": "circle",
            "contact_shape_params": {"radius": 6},
        },
        seed=seed,
    )
    path = folder / "demo.raw"
    write_binary_recording(recording, file_paths=[path], dtype="float32", n_jobs=1, progress_bar=False)
    source = {
        "kind": "recording",
        "path": path,
        "format": "binary",
        "sampling_frequency_hz": SAMPLING_FREQUENCY,
        "n_channels": N_ELECTRODES,
        "dtype": "float32",
        "gain_uv": 1.0,
    }
    return SessionConfig.model_validate({"source": source}), sorting, recording.get_channel_locations()


def _sorted(session: SessionConfig, sorting: Any, positions_um: Floats, folder: Path) -> SessionConfig:
    """Return the session with the units of the generated recording as its features."""
    from neuromod.sorting.templates import estimate
    from neuromod.sorting.unit_encoding import measure_normalisation, propose

    with contextlib.closing(open_source(session.source)) as source:
        names = source.info.channel_names
    samples = np.fromfile(folder / "demo.raw", np.float32).reshape(-1, N_ELECTRODES)
    spikes = sorting.to_spike_vector()
    bundle = estimate(
        lambda begin, end: samples[begin:end], len(samples), spikes["sample_index"], spikes["unit_index"],
        unit_ids=[f"unit {unit}" for unit in sorting.unit_ids], name="demo", sampling_frequency=SAMPLING_FREQUENCY,
        channel_names=names, positions_um=positions_um,
    )  # fmt: skip
    bundle = bundle.with_info(encoding=propose(bundle), normalisation=measure_normalisation(bundle))
    return _changed(session, features=["units"], units={"bundle": bundle.save(folder / "sorting")})


def _changed(session: SessionConfig, **front_end: Any) -> SessionConfig:
    body = session.effective()
    body["front_end"] |= front_end
    return SessionConfig.model_validate(body)


def _quick_warmup(session: SessionConfig) -> SessionConfig:
    return session.model_copy(
        update={
            "front_end": session.front_end.model_copy(update={"warmup_s": _WARMUP_S}),
            "encoder": session.encoder.model_copy(update={"warmup_s": _WARMUP_S}),
        }
    )


@dataclass
class _Live:
    """What came of the live part."""

    heard: NDArray[Any]
    health: dict[str, Any]
    daemon_code: int


def _run(session: SessionConfig, folder: Path, seconds: float, console: Console, *, show: bool) -> dict[str, Any]:
    source = open_source(session.source)
    info = source.info
    source.close()
    with isolated_lsl(folder):
        live = _run_live(session, info, folder, seconds, console, show=show)
    ticks = live.heard[(live.heard["flags"] & Flag.FILLER) == 0]
    if not len(ticks):
        raise AdapterTimeoutError("no tick came from the daemon; `neuromod doctor` says what may stand in the way")
    with console.status("replaying the same recording offline"):
        offline = play(session, until_tick=int(ticks["tick"][-1]) + 1)
    return _summarise(live, ticks, offline.log.column("tick"), offline.log.column("spikes"), offline.counters)


def _summarise(
    live: _Live,
    ticks: NDArray[Any],
    offline_ticks: NDArray[Any],
    offline_spikes: NDArray[Any],
    offline_counters: dict[str, int],
) -> dict[str, Any]:
    latency_us = (ticks["t_arrival"] - ticks["t_sample"]) * 1e6
    p50, p99 = np.percentile(latency_us, [50, 99])
    counters = live.health.get("counters", {})
    seq = live.heard["seq"].astype(np.int64)
    missed = int(seq[-1] - seq[0] + 1 - len(seq) + seq[0])
    n_ticks = len(ticks)
    identical = bool(
        n_ticks == len(offline_ticks)
        and np.array_equal(ticks["tick"], offline_ticks)
        and np.array_equal(ticks["spikes"], offline_spikes)
    )
    # what the recording itself lacks is no loss of the loop's
    lost = counters.get("samples_lost", 0) - offline_counters["samples_lost"]
    overflow = sum(n for name, n in counters.items() if name.endswith("overflow"))
    ok = identical and missed == 0 and lost == 0 and overflow == 0 and live.daemon_code == 0
    return {
        "ok": ok,
        "ticks": n_ticks,
        "spikes": [int((ticks["spikes"] >> i & 1).sum()) for i in range(N_CHANNELS)],
        "samples_received": counters.get("samples", 0),
        "samples_lost": lost,
        "messages_lost": missed,
        "latency_us": {"p50": float(p50), "p99": float(p99), "max": float(latency_us.max())},
        "late_ticks": counters.get("late_ticks", 0),
        "fillers": int((live.heard["flags"] & Flag.FILLER).astype(bool).sum()),
        "replay_identical": identical,
        "daemon_exit_code": live.daemon_code,
        "units": live.health.get("units", {}),
        "counters": counters,
    }


def _run_live(
    session: SessionConfig, info: StreamInfo, folder: Path, seconds: float, console: Console, *, show: bool
) -> _Live:
    ingest, output, control = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
    with contextlib.ExitStack() as stack:
        outlet = stack.enter_context(process(_playback_command(session, info), folder / "playback.log"))
        ready = _first_line(outlet, folder / "playback.log")
        config = _daemon_config(session, info, ready, {"ingest": ingest, "output": output, "control": control})
        (folder / "demo.toml").write_text(config.effective_toml(), encoding="utf-8")
        listener = stack.enter_context(Listener(output))
        client = stack.enter_context(Client(ingest=ingest, output=output, control=control, timeout_s=5.0))
        daemon = stack.enter_context(
            process([*_NEUROMOD, "start", str(folder / "demo.toml")], folder / "daemon.log", stdout=subprocess.DEVNULL)
        )
        heard = _watch(listener, client, daemon, outlet, folder, info, seconds, console, show=show)
        health: dict[str, Any] = {}
        if daemon.poll() is None:
            # after pause no tick can come between the counters and the end
            client.request("pause")
            heard.append(listener.heard())
            health = client.request("status")["health"]
            client.request("stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(5.0)
        heard.append(listener.heard())
        code = daemon.poll()
    arrived = np.concatenate(heard)
    arrived = arrived[(arrived["flags"] & Flag.PAUSED) == 0]
    return _Live(arrived, health, -1 if code is None else code)


def _watch(
    listener: Listener,
    client: Client,
    daemon: subprocess.Popen[str],
    outlet: subprocess.Popen[str],
    folder: Path,
    info: StreamInfo,
    seconds: float,
    console: Console,
    *,
    show: bool,
) -> list[NDArray[Any]]:
    """Collect and show what arrives until `seconds` of it have passed or the recording has ended."""
    heard: list[NDArray[Any]] = []
    view = View(info, seconds)
    given_up = time.monotonic() + LONGEST_START_S
    began: float | None = None
    is_terminal = show and console.is_terminal
    with contextlib.ExitStack() as stack:
        if is_terminal:
            stack.enter_context(Live(view, console=console, refresh_per_second=10, transient=True))
        while daemon.poll() is None:
            time.sleep(0.05)
            new = listener.heard()
            heard.append(new)
            live = new[(new["flags"] & Flag.FILLER) == 0]
            view.add(live)
            now = time.monotonic()
            if began is None:
                if len(live):
                    began = now
                elif now > given_up:
                    raise AdapterTimeoutError(f"no spikes within {LONGEST_START_S:g} s: {tail(folder / 'daemon.log')}")
                continue
            if now - began >= seconds or outlet.poll() is not None or (len(new) and not len(live)):
                return heard
            if show and not is_terminal:
                view.print_line(console)
    raise AdapterError(f"the daemon ended by itself: {tail(folder / 'daemon.log')}")


_NEUROMOD = [sys.executable, "-c", "from neuromod.bridge.cli import main; main()"]


def _playback_command(session: SessionConfig, info: StreamInfo) -> list[str]:
    play_config = {
        "source": session.source.model_dump(mode="json"),
        "name": _STREAM_NAME,
        "source_id": f"{_STREAM_NAME}-{uuid.uuid4().hex[:8]}",
        "start_lead_s": _START_LEAD_S,
        "die_with_parent": True,
    }
    return [sys.executable, "-m", "neuromod.adapters.playback", jsonlib.dumps(play_config)]


def _daemon_config(
    session: SessionConfig, info: StreamInfo, ready: dict[str, Any], addresses: dict[str, str]
) -> SessionConfig:
    """The session, with the stream instead of the recording as its source."""
    body = session.effective()
    body["source"] = {"kind": "lsl", "source_id": ready["source_id"], "content": info.kind, "resolve_timeout_s": 30.0}
    if not info.is_regular:
        period = {"features": "bin_ms", "signal": "sampling_frequency_hz"}[info.kind]
        rate = info.sampling_frequency
        body["source"][period] = 1000.0 / rate if info.kind == "features" else rate
    body["markers"] = [{"source_id": ready["markers_source_id"], "resolve_timeout_s": 30.0}]
    body["sockets"] = addresses
    return SessionConfig.model_validate(body)


@contextlib.contextmanager
def isolated_lsl(folder: Path) -> Iterator[None]:
    """Have the processes that are started meanwhile use an LSL session of their own."""
    path = folder / "lsl_api.cfg"
    path.write_text(_LSL_API_CFG.format(session=uuid.uuid4().hex))
    before = os.environ.get("LSLAPICFG")
    os.environ["LSLAPICFG"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LSLAPICFG"]
        else:
            os.environ["LSLAPICFG"] = before


@contextlib.contextmanager
def process(command: list[str], log: Path, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run a process, its words going to a file, and end it whatever happens."""
    file: IO[str]
    with log.open("w") as file, subprocess.Popen(command, stdout=stdout, stderr=file, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5.0)
                except subprocess.TimeoutExpired:
                    process.kill()


def _first_line(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        said: dict[str, Any] = jsonlib.loads(line)
    except ValueError:
        raise AdapterError(f"the outlet did not start: {tail(log)}") from None
    return said


def tail(log: Path) -> str:
    """Return the last line of a log."""
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing; run `neuromod doctor`"


def free_ports(n: int) -> list[int]:
    """Ask the kernel for ports; held together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _print(summary: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    latency = summary["latency_us"]
    table = Table(title="neuromod demo", show_header=False)
    table.add_row("ticks", f"{summary['ticks']:,}")
    table.add_row("spikes per channel", " ".join(map(str, summary["spikes"])))
    if "spikes_in_recording" in summary:
        table.add_row("spikes in the recording", f"{summary['spikes_in_recording']:,} of 14 units")
    if units := summary["units"]:
        told = f"{units['spikes']:,} of {len(units['ids'])} units; {units['unmatched']:,} detections of none"
        table.add_row("spikes recognised", told)
    table.add_row("samples received / lost", f"{summary['samples_received']:,} / {summary['samples_lost']}")
    table.add_row("messages lost", str(summary["messages_lost"]))
    table.add_row(
        "sample to subscriber", f"p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us, max {latency['max']:.0f} us"
    )
    table.add_row("late ticks", str(summary["late_ticks"]))
    table.add_row("replayed offline", "identical, bit for bit" if summary["replay_identical"] else "[red]different")
    table.add_row("verdict", "[green]the loop ran without loss" if summary["ok"] else "[red]the loop did not run clean")
    Console().print(table)
