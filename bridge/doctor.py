"""What this host can do for a session, and how to mend what it cannot.

Every check returns a `Finding` and raises nothing: what a platform does not have is a warning, or no finding at all.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from neuromod.bridge import wire

try:
    import resource
except ImportError:  # Windows has no limits of this kind
    resource = None  # type: ignore[assignment]

Status = Literal["ok", "warn", "fail"]

LATENESS_SAMPLES = 500
LATE_P99_US = 1000.0  # beyond a whole tick of 1 ms the loop cannot keep time at all
ROUND_TRIP_S = 5.0
LIBRARIES = ("numpy", "numba", "pylsl", "pyzmq", "msgpack", "pydantic", "spikeinterface", "neo")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    status : {"ok", "warn", "fail"}
        warn: sessions run, but less well; fail: they do not run.
    found : str
        What is the case.
    mend : str
        What to do about it; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def diagnose(multicast: bool = True) -> Iterator[Finding]:
    """Look at everything, in the order in which a newcomer would mend it.

    Parameters
    ----------
    multicast : bool
        Whether to send LSL traffic: an outlet for a moment, and a query to the network.
    """
    checks: list[Callable[[], Finding | None]] = [
        check_python,
        check_libraries,
        check_liblsl,
        check_libzmq,
        check_cache,
        check_disk,
        *([check_lsl_round_trip] if multicast else []),
        check_clock,
        check_timer,
        check_cores,
        check_governor,
        check_realtime,
        check_locked_memory,
        check_ports,
    ]
    for check in checks:
        try:
            finding = check()
        except Exception as error:  # a check that breaks must not hide the others
            name = check.__name__.removeprefix("check_").replace("_", " ")
            finding = Finding(name, "warn", f"could not be looked at: {type(error).__name__}: {error}")
        if finding is not None:
            yield finding


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Return what `neuromod doctor --json` prints."""
    return {"status": worst(findings), "findings": [asdict(finding) for finding in findings]}


def worst(findings: list[Finding]) -> Status:
    """Return the worst status among findings."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"


def check_python() -> Finding:
    """Python and platform."""
    found = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()}"
    if platform.system() != "Linux":
        return Finding("python", "warn", found, "the real-time path is tried on Linux; use it there for experiments")
    return Finding("python", "ok", f"{found} {platform.machine()}")


def check_libraries() -> Finding:
    """Versions of what sessions rest on."""
    versions, missing = [], []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("libraries", "fail", f"missing: {', '.join(missing)}", "pip install neuromod-bridge again")
    return Finding("libraries", "ok", ", ".join(versions))


def check_liblsl() -> Finding:
    """Whether liblsl loads and shows the function that the compiled loop calls."""
    try:
        import pylsl
        from pylsl.lib import lib
    except Exception as error:
        mend = "install liblsl (conda install -c conda-forge liblsl, or a .deb of sccn/liblsl) or set PYLSL_LIB"
        return Finding("liblsl", "fail", f"cannot be loaded: {error}", mend)
    if not hasattr(lib, "lsl_pull_chunk_f"):
        return Finding("liblsl", "warn", "lsl_pull_chunk_f is missing", 'set runtime.loop = "python", or update liblsl')
    version = pylsl.library_version()
    return Finding("liblsl", "ok", f"{version // 100}.{version % 100}, compiled path can call it")


def check_libzmq() -> Finding:
    """Whether pyzmq's libzmq shows the functions that the compiled loop calls."""
    import zmq

    found = f"{zmq.zmq_version()}, curve {'yes' if zmq.has('curve') else 'no'}"
    try:
        from zmq.backend.cython import _zmq

        library = ctypes.CDLL(_zmq.__file__)
        _ = library.zmq_send, library.zmq_recv
    except (ImportError, OSError, AttributeError) as error:
        mend = 'set runtime.loop = "python", or install pyzmq from its wheel'
        return Finding("libzmq", "warn", f"{found}; not reachable for compiled code: {error}", mend)
    return Finding("libzmq", "ok", f"{found}, compiled path can call it")


def check_cache() -> Finding:
    """Whether compiled code can be kept: without it every start compiles for a minute."""
    from neuromod.engine.compiled import cache_folder

    folder = cache_folder("neuromod.engine.tick")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = f"make {folder} writable, or set XDG_CACHE_HOME to a folder that is"
        return Finding("cache", "warn", f"{folder}: {error.strerror}; every start compiles anew", mend)
    return Finding("cache", "ok", str(folder))


def check_disk() -> Finding:
    """Room for what sessions write."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free_gb:.1f} GB free in {Path.cwd()}"
    if free_gb < 1.0:
        return Finding("disk", "warn", found, "make room: 96 channels at 30 kHz are 21 GB an hour as int16")
    return Finding("disk", "ok", found)


def check_lsl_round_trip() -> Finding:
    """An outlet of our own, found by multicast and read back."""
    try:
        import pylsl
    except Exception:  # said by check_liblsl already
        return Finding("lsl round trip", "fail", "not tried, liblsl is missing", "see liblsl")
    source_id = f"neuromod-doctor-{uuid.uuid4().hex}"
    info = pylsl.StreamInfo("neuromod-doctor", "Test", 1, pylsl.IRREGULAR_RATE, pylsl.cf_float32, source_id)
    outlet = pylsl.StreamOutlet(info)
    began = time.monotonic()
    found = pylsl.resolve_byprop("source_id", source_id, 1, ROUND_TRIP_S)
    resolved_ms = 1e3 * (time.monotonic() - began)
    mend = (
        "allow UDP 16571-16604 and TCP 16572-16604 in the firewall, check that the interface has multicast "
        "(ip link), or name peers under [lab] KnownPeers in ~/lsl_api/lsl_api.cfg"
    )
    if not found:
        return Finding("lsl round trip", "fail", f"own outlet not found in {ROUND_TRIP_S:g} s", mend)
    inlet = pylsl.StreamInlet(found[0], recover=False)
    try:
        inlet.open_stream(ROUND_TRIP_S)
        outlet.wait_for_consumers(ROUND_TRIP_S)
        sent = pylsl.local_clock()
        outlet.push_sample([1.0], sent)
        sample, stamp = inlet.pull_sample(ROUND_TRIP_S)
        took_us = 1e6 * (pylsl.local_clock() - sent)
    except (TimeoutError, RuntimeError) as error:
        return Finding("lsl round trip", "fail", f"own outlet found but not read: {error}", mend)
    finally:
        inlet.close_stream()
    if sample is None or stamp != sent:
        return Finding("lsl round trip", "fail", f"own sample did not come back in {ROUND_TRIP_S:g} s", mend)
    return Finding("lsl round trip", "ok", f"resolved in {resolved_ms:.0f} ms, first sample in {took_us:.0f} us")


def check_clock() -> Finding | None:
    """The clock that the kernel reads: a slow one makes each stamp cost a system call."""
    path = Path("/sys/devices/system/clocksource/clocksource0")
    if not (path / "current_clocksource").exists():
        return None
    current = (path / "current_clocksource").read_text().strip()
    if current in ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"):
        return Finding("clock", "ok", current)
    available = (path / "available_clocksource").read_text().split()
    mend = f"echo tsc | sudo tee {path}/current_clocksource" if "tsc" in available else "boot with tsc=reliable"
    return Finding("clock", "warn", f"{current}: reading it is slow", mend)


def timer_lateness_us(n: int = LATENESS_SAMPLES) -> list[float]:
    """Sleep `n` times for 1 ms with timer slack 1 and return how late each wake-up came, sorted, in microseconds."""
    lateness: list[float] = []

    def measure() -> None:
        # in a thread of its own: timer slack belongs to a thread, and the caller's stays as it was
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK
        for _ in range(n):
            before = time.monotonic_ns()
            time.sleep(0.001)
            lateness.append((time.monotonic_ns() - before) / 1e3 - 1000.0)

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return sorted(lateness)


def check_timer() -> Finding:
    """How late the kernel wakes a sleeping thread."""
    lateness = timer_lateness_us()
    p50, p99, worst_us = (lateness[int(q * (len(lateness) - 1))] for q in (0.5, 0.99, 1.0))
    found = f"wakes {p50:.0f} us late at p50, {p99:.0f} at p99, {worst_us:.0f} at most"
    if p99 > LATE_P99_US:
        mend = (
            "stop other work on this host, see 'deploy/tuning/neuromod-tune status', pin the loop (runtime.cpus), "
            "or set runtime.realtime_priority"
        )
        return Finding("timer", "warn", found, mend)
    return Finding("timer", "ok", found)


def check_cores() -> Finding:
    """Processors that this process may use, cgroup limits included."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{usable} usable"
    limit = _cgroup_cpus()
    if limit is not None:
        found += f", cgroup allows the time of {limit:g}"
    if min(usable, limit or usable) < 2:
        return Finding("cores", "warn", found, "give the session two cores: one for the loop, one for all the rest")
    if limit is not None and limit < usable:
        mend = "a cgroup quota stops all threads for the rest of a period when it is used up: lift it (cpu.max)"
        return Finding("cores", "warn", found, mend)
    return Finding("cores", "ok", found)


def _cgroup_cpus() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return float(quota) / float(period)
    return None


def check_governor() -> Finding | None:
    """Whether the processor slows down between ticks."""
    governors = {
        path.read_text().strip() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    if not governors:
        return None
    found = ", ".join(sorted(governors))
    if governors <= {"performance"}:
        return Finding("governor", "ok", found)
    return Finding("governor", "warn", found, "sudo deploy/tuning/neuromod-tune apply")


def check_realtime() -> Finding | None:
    """Whether a thread may ask for SCHED_FIFO."""
    if not hasattr(os, "sched_setscheduler"):
        return None
    refused: list[OSError] = []

    def ask() -> None:
        # in a thread of its own that ends at once: the caller keeps its scheduler
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0] if hasattr(resource, "RLIMIT_RTPRIO") else "unknown"
    if not refused:
        return Finding("real time", "ok", f"SCHED_FIFO permitted (RLIMIT_RTPRIO {limit})")
    mend = (
        "sudo deploy/tuning/neuromod-tune apply, join the group 'realtime' and log in again; "
        "without it keep runtime.realtime_priority = 0"
    )
    return Finding("real time", "warn", f"SCHED_FIFO refused (RLIMIT_RTPRIO {limit})", mend)


def check_locked_memory() -> Finding | None:
    """How much memory may be locked."""
    if not hasattr(resource, "RLIMIT_MEMLOCK"):
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or (hasattr(os, "geteuid") and os.geteuid() == 0):
        return Finding("locked memory", "ok", "unlimited")
    mend = (
        "sudo deploy/tuning/neuromod-tune apply, join the group 'realtime' and log in again; "
        "without it keep runtime.lock_memory = false"
    )
    return Finding("locked memory", "warn", f"at most {limit / 2**20:.0f} MB", mend)


def check_ports() -> Finding:
    """Whether the three default ports are free."""
    taken = []
    for address in (wire.DEFAULT_INGEST, wire.DEFAULT_OUTPUT, wire.DEFAULT_CONTROL):
        url = urlsplit(address)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((url.hostname, url.port))
            except OSError:
                taken.append(str(url.port))
    if taken:
        mend = "a daemon is running already ('neuromod status'), or give [sockets] other ports (ss -ltnp shows who)"
        return Finding("ports", "warn", f"in use: {', '.join(taken)}", mend)
    return Finding("ports", "ok", "5555 to 5557 are free")
