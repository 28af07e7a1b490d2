"""What runs in a soak: source, daemon and who restarts it, witness, stimulator behind a serial line, operator.

Each is a process of its own, but for the operator, who arms and holds the handle. The serial line is a pseudo-terminal
that the stimulator holds the other end of: when that process ends, the line hangs up.
"""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pylsl

from neuromod.bridge import keys
from neuromod.bridge.arming import write_key
from neuromod.bridge.bench_latency import free_addresses, private_session
from neuromod.bridge.client import Client, RefusedError
from neuromod.bridge.roles import Role
from neuromod.engine.errors import NeuromodError

HERE = Path(__file__).parent
N_CHANNELS, RATE = 16, 1000.0
START_S = 240.0  # a first start compiles
AMPLITUDE_UA, PHASE_US, PULSES, PERIOD_US = -10.0, 200.0, 3, 10_000.0
LEASE_MS, START_WITHIN_MS = 100.0, 10.0
PEER = "hand"
CLIENTS = {
    "operator": Role.STIMULATE | Role.CONTROL,
    "witness": Role.OBSERVE,
    "hand": Role.OBSERVE | Role.FEED,
    "looker": Role.OBSERVE,
    "feeder": Role.FEED,
    "stranger": Role.OBSERVE | Role.FEED | Role.STIMULATE | Role.CONTROL,
}
"""Who has a key, and what it is good for. The stranger's is revoked."""
LEDGER_WAIT_S = 90.0
"""For so long after a kill nothing may be armed, and some."""

_SESSION = """
[session]
name = "soak"
[source]
kind = "lsl"
name = "soak"
source_id = "soak-source"
content = "features"
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[timing]
jitter_ms = 2.0
max_fill_ms = 100.0
[decoder]
kind = "rates"
channels = [0, 1]
tau_ms = 50.0
events = [{{channel = 0, refractory_ms = 200.0}}]
[stimulation]
mode = "live"
key_file = "{folder}/key"
ledger = "{folder}/dose.json"
heartbeat_ms = 2000.0
peers = ["{peer}"]
peer_timeout_ms = 1500.0
late_ticks = 100
lease_ms = {lease_ms}
start_within_ms = {start_within_ms}
total_minute_uc = 1000.0
total_session_uc = 100000.0
[[stimulation.electrodes]]
name = "e1"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
minute_uc = 1000.0
session_uc = 100000.0
[[stimulation.programs]]
name = "pulse"
electrode = "e1"
amplitude_ua = {amplitude_ua}
phase_us = {phase_us}
pulses = {pulses}
period_us = {period_us}
[[stimulation.triggers]]
event = 0
program = "pulse"
[record]
folder = "{disk}"
min_free_mb = 1.0
warn_free_mb = 1.0
[checkpoint]
path = "{folder}/soak.checkpoint"
every_s = 2.0
[security]
keys = "{folder}/keys"
lsl_sources = ["{host}/soak-source"]
[metrics]
address = "127.0.0.1:{metrics}"
[publish]
health_s = 0.5
[sockets]
ingest = "{ingest}"
output = "{output}"
control = "{control}"
"""

_ACTUATOR = """
name = "{peer}"
output = "{output}"
ingest = "{ingest}"
key = "{key}"
reconnect_s = 0.5
[actuator]
kind = "serial"
port = "{port}"
lost_ms = 500
wants = ["stimulation"]
"""


class Process:
    """A process that is started, watched and ended; what it says goes to a file."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.name, self._command, self._environment = name, command, environment
        self.log = folder / f"{name}.log"
        self.starts = 0
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self, ready: str | None = None, timeout_s: float = START_S) -> None:
        """Start it; wait until it says so."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(self._command, stdout=out, stderr=out, env=self._environment)
        self.starts += 1
        if ready is not None:
            wait(lambda: ready in self.said(offset) or not self.is_running, timeout_s, f"{self.name} to be ready")
            if not self.is_running:
                raise RuntimeError(f"{self.name} has ended:\n{self.said(offset)[-2000:]}")

    @property
    def is_running(self) -> bool:
        """Whether it is there."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.popen is not None
        return self.popen.pid

    def said(self, offset: int = 0) -> str:
        """What it said so far."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.is_running:
            assert self.popen is not None
            self.popen.send_signal(number)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> None:
        """End it, kindly unless told otherwise."""
        if self.popen is None:
            return
        self.send(number)
        self.send(signal.SIGCONT)
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Daemon(Process):
    """The daemon under its supervisor; the lives of the daemon are followed by what the supervisor says."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__("daemon", command, folder, environment)
        self.lives: list[list[float]] = []  # of each: from when to when, on the local clock
        self.daemon_pid = 0
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)

    @property
    def restarts(self) -> int:
        """How often the supervisor started it anew."""
        return len(self.lives) - 1

    def keep(self) -> None:
        """Start supervisor and daemon."""
        self._follower.start()
        self.start("Ctrl-C stops")

    def kill(self) -> None:
        """Kill the process with the loop."""
        os.kill(self.daemon_pid, signal.SIGKILL)

    def finish(self) -> None:
        """End both, in order."""
        self.end(signal.SIGTERM, 60.0)
        self._stop.set()
        self._follower.join(5.0)

    def _follow(self) -> None:
        read = 0
        while not self._stop.wait(0.02):
            now = pylsl.local_clock()
            if self.lives and self.lives[-1][1] == math.inf and not _is_there(self.daemon_pid):
                self.lives[-1][1] = now
            if not self.log.exists() or self.log.stat().st_size == read:
                continue
            said = self.said(read)
            said = said[: said.rfind("\n") + 1]
            read += len(said.encode())
            for pid in re.findall(r"the daemon runs as process (\d+)", said):
                if self.lives:
                    self.lives[-1][1] = min(self.lives[-1][1], now)
                self.daemon_pid = int(pid)
                self.lives.append([now, math.inf])


def _is_there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Operator(threading.Thread):
    """Arms whenever it may, holds the handle, and counts how often it did."""

    def __init__(self, rig: "Rig") -> None:
        super().__init__(daemon=True)
        self._rig = rig
        self._stop_it = threading.Event()
        self.armings = 0
        self.refusals: dict[str, int] = {}
        self.is_armed = False

    def run(self) -> None:
        """Do so until told."""
        secret = (self._rig.folder / "key").read_bytes().strip()
        client, token, ask_at = self._rig.client(), 0, 0.0
        try:
            while not self._stop_it.wait(0.1):
                try:
                    if time.monotonic() >= ask_at:
                        ask_at = time.monotonic() + 0.5
                        state = client.request("status")["health"]["stimulation"]
                        self.is_armed = state["state"] == "armed"
                        if not self.is_armed:
                            token = client.arm(20.0, secret)["token"]
                            self.armings += 1
                    if token:
                        client.send_heartbeat(token)
                except RefusedError as error:
                    self.refusals[error.reason] = self.refusals.get(error.reason, 0) + 1
                    token, ask_at = 0, time.monotonic() + 0.5
                except NeuromodError:
                    token, ask_at = 0, time.monotonic() + 0.5
                    client.close()
                    client = self._rig.client()
        finally:
            client.close()

    def finish(self) -> None:
        """End it."""
        self._stop_it.set()
        self.join(10.0)


class Disk:
    """A small disk for the recordings, which can be filled: a file system of its own where one may be mounted."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.is_mounted = False
        if os.geteuid() == 0 and sys.platform == "linux":
            command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "neuromod-soak", str(folder)]
            self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._ballast = folder / "ballast"

    @property
    def how(self) -> str:
        """How it is filled."""
        return "a file system filled to its last byte" if self.is_mounted else "a limit on the size of the log's file"

    def fill(self, pid: int) -> None:
        """Leave no room: nothing more can be written (ENOSPC), or not into the files of the process (EFBIG)."""
        if self.is_mounted:
            with self._ballast.open("wb") as file:
                for size in (1 << 20, 4096, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            os.write(file.fileno(), bytes(size))
            return
        import resource

        largest = max((path.stat().st_size for path in self.folder.rglob("*.nmlog")), default=0)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    def free(self, pid: int) -> None:
        """Make room again."""
        if self.is_mounted:
            self._ballast.unlink(missing_ok=True)
            return
        import resource

        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """Give it back."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


class Rig:
    """All of it.

    Parameters
    ----------
    folder : Path
        Empty; what is written stays until it is taken away.
    minutes : float
        For which the disk has to have room.
    seed : int
        Of the source's values and of the nonsense.
    """

    def __init__(self, folder: Path, minutes: float, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.disk = Disk(folder / "sessions", int(200 + 60 * minutes))
        self.environment = private_session(folder) | {"PYTHONUNBUFFERED": "1"}
        self.environment["PYTHONPATH"] = os.pathsep.join(
            [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        *addresses, metrics = free_addresses(4)
        self.addresses = dict(zip(("ingest", "output", "control"), addresses, strict=True))
        write_key(folder / "key")
        self.metrics = f"{metrics.replace('tcp', 'http')}/metrics"
        keys.init_folder(folder / "keys")
        self.keys = {name: str(keys.new_client(folder / "keys", name, roles)) for name, roles in CLIENTS.items()}
        revoked = Path(self.keys["stranger"])
        kept = revoked.read_bytes()
        keys.revoke_client(folder / "keys", "stranger")  # who was a client once, and kept the file
        self.keys["stranger"] = str(folder / "stranger.key_secret")
        Path(self.keys["stranger"]).touch(0o600)
        Path(self.keys["stranger"]).write_bytes(kept)
        self._client: Client | None = None
        (folder / "session.toml").write_text(
            _SESSION.format(
                folder=folder,
                disk=self.disk.folder,
                peer=PEER,
                lease_ms=LEASE_MS,
                start_within_ms=START_WITHIN_MS,
                amplitude_ua=AMPLITUDE_UA,
                phase_us=PHASE_US,
                pulses=PULSES,
                period_us=PERIOD_US,
                host=socket.gethostname(),
                metrics=metrics.rpartition(":")[2],
                **self.addresses,
            )
        )
        (folder / "hand.toml").write_text(
            _ACTUATOR.format(peer=PEER, port=folder / "port", key=self.keys["hand"], **self.addresses)
        )
        cli = [sys.executable, "-m", "neuromod.bridge.cli", "-v"]
        self.daemon = Daemon([*cli, "start", "--supervise", str(folder / "session.toml")], folder, self.environment)
        self.hand = Process("hand", [*cli, "actuate", "--config", str(folder / "hand.toml")], folder, self.environment)
        self.device = self.worker("device", port=str(folder / "port"), pulses=str(folder / "pulses.jsonl"))
        self.source = self.worker(
            "source", name="soak", source_id="soak-source", n_channels=N_CHANNELS, rate=RATE,
            file=str(folder / "pushed0"), seed=seed,
        )  # fmt: skip
        self.witness = self.worker(
            "witness",
            addresses=self.addresses,
            file=str(folder / "seen"),
            events=str(folder / "events.jsonl"),
            key=self.keys["witness"],
        )
        self.operator = Operator(self)
        self._sources = 1

    def worker(self, kind: str, **settings: Any) -> Process:
        """Return a process of `soak_workers.py`, not started."""
        command = [sys.executable, "-m", "bench.soak_workers", kind, json.dumps(settings)]
        return Process(kind, command, self.folder, self.environment)

    def client(self) -> Client:
        """Return a client of the daemon that may do what an operator may."""
        return Client(**self.addresses, timeout_s=2.0, key=self.keys["operator"])

    def new_source(self) -> None:
        """Start the source again: another process, the same name."""
        self.source = self.worker(
            "source", name="soak", source_id="soak-source", n_channels=N_CHANNELS, rate=RATE,
            file=str(self.folder / f"pushed{self._sources}"), seed=self.seed + self._sources,
        )  # fmt: skip
        self._sources += 1
        self.source.start("ready", 30.0)

    def status(self) -> dict[str, Any] | None:
        """Ask the daemon how it is; None where it does not answer."""
        self._client = self._client or self.client()
        try:
            health: dict[str, Any] = self._client.request("status")["health"]
            return health
        except NeuromodError:
            self._client.close()
            self._client = None
            return None

    def scrape(self) -> int:
        """Return how many lines of metrics the daemon tells; 0 where it does not answer."""
        try:
            with urllib.request.urlopen(self.metrics, timeout=5.0) as answer:
                return int(answer.read().count(b"\n"))
        except OSError:
            return 0

    def start(self) -> None:
        """Start everything, one after the other."""
        self.source.start("ready", 30.0)
        self.device.start("ready", 30.0)
        self.daemon.keep()
        self.hand.start("Ctrl-C stops", 60.0)
        self.witness.start("ready", 30.0)
        self.operator.start()
        wait(self.is_well, 60.0, "the rig to run")

    def is_well(self) -> bool:
        """Whether signal flows, and is recorded."""
        health = self.status()
        if health is None:
            return False
        return bool(health["state"] == "streaming" and health["recording"]["state"] == "recording")

    def has_to_wait(self) -> bool:
        """Whether the ledger still keeps anybody from arming, since the daemon was killed."""
        return bool(pylsl.local_clock() - self.daemon.lives[-1][0] < LEDGER_WAIT_S)

    def processes(self) -> dict[str, int]:
        """Number of each process that is to be watched."""
        named = {"source": self.source, "hand": self.hand, "device": self.device, "witness": self.witness}
        found = {name: process.pid for name, process in named.items() if process.is_running}
        return found | {"supervisor": self.daemon.pid, "daemon": self.daemon.daemon_pid, "conductor": os.getpid()}

    def finish(self) -> None:
        """End everything."""
        self.operator.finish()
        self.daemon.finish()
        time.sleep(0.5)  # what was sent is on its way to the witness
        for process in (self.witness, self.hand, self.device, self.source):
            process.end()

    def close(self) -> None:
        """Give everything back, whatever happened."""
        if self._client is not None:
            self._client.close()
        for process in (self.daemon, self.witness, self.hand, self.device, self.source):
            with contextlib.suppress(Exception):
                process.end(signal.SIGKILL, 5.0)
        self.disk.close()


def resources(pid: int) -> dict[str, float]:
    """Open descriptors, threads, resident memory in MB and processor seconds of a process; empty where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return {
            "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
            "threads": int(values["Threads"]),
            "rss_mb": int(values["VmRSS"].split()[0]) / 1024,
            "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        }
    except (OSError, KeyError, IndexError):
        return {}


def wait(until: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait for something; return for how many seconds.

    Raises
    ------
    TimeoutError
        If it does not come about.
    """
    begun = time.monotonic()
    while not until():
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - begun
