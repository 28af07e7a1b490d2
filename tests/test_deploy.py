"""What `deploy/` hands to a host: units as systemd reads them, the container file, and tuning that can be undone.

Neither a running systemd nor a container engine is needed: where systemd's own checker is missing, its tests skip.
"""

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
TUNE = DEPLOY / "tuning/neuromod-tune"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="deploy/ is for Linux hosts")


# -- systemd

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
MOST_EXPOSED = 2.0  # of 10; it needs the network, serial lines, real time, and memory that is written and then run


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with programs that are there on this machine."""
    for name, installed_as in (("neuromod@", "neuromod@lab"), ("neuromod-tune", "neuromod-tune")):
        text = (DEPLOY / f"systemd/{name}.service").read_text()
        text = text.replace("/opt/neuromod/bin/neuromod", f"{sys.prefix}/bin/neuromod")
        text = text.replace("/usr/local/sbin/neuromod-tune", str(TUNE))
        (tmp_path / f"{installed_as}.service").write_text(text)
    return tmp_path


@needs_systemd
def test_systemd_finds_nothing_to_say_about_the_units(units: Path) -> None:
    checked = analyze("verify", "--man=no", *map(str, sorted(units.glob("*.service"))))

    assert (checked.returncode, checked.stderr) == (0, "")


@needs_systemd
def test_systemd_rates_the_daemon_as_little_exposed(units: Path) -> None:
    rated = analyze("security", "--offline=yes", "--no-pager", str(units / "neuromod@lab.service"))

    if "offline" in rated.stderr:
        pytest.skip("this systemd is older than 250 and rates only what runs")
    exposure = re.search(r"exposure level for neuromod@lab.service: ([\d.]+)", rated.stdout)
    assert exposure, rated.stdout + rated.stderr
    assert float(exposure[1]) <= MOST_EXPOSED


def setting(name: str) -> list[str]:
    text = (DEPLOY / "systemd/neuromod@.service").read_text()
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def test_the_unit_leaves_the_daemon_what_its_loop_needs() -> None:
    assert setting("LimitRTPRIO") == ["98"]
    assert setting("LimitMEMLOCK") == ["infinity"]
    assert setting("RestrictRealtime") == ["no"]
    assert setting("MemoryDenyWriteExecute") == ["no"]
    assert setting("CPUSchedulingPolicy") == []
    # compiled code has to be kept where the daemon may write
    assert setting("CacheDirectory") == ["neuromod"]
    assert "NUMBA_CACHE_DIR=/var/cache/neuromod/numba" in setting("Environment")


def test_the_unit_does_not_restart_what_a_restart_cannot_mend() -> None:
    from neuromod.bridge.cli_client import exit_code
    from neuromod.engine.errors import ConfigError

    assert str(exit_code(ConfigError("x"))) in setting("RestartPreventExitStatus")[0].split()


# -- tuning


THP = "sys/kernel/mm/transparent_hugepage"
USB = "sys/devices/pci0/usb1/1-2"
VALUES = {
    **{f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "schedutil\n" for n in range(4)},
    **{
        f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_available_governors": "performance schedutil \n"
        for n in range(4)
    },
    **{f"sys/devices/system/cpu/cpu{n}/cpuidle/state0/disable": "0\n" for n in range(4)},
    **{f"sys/devices/system/cpu/cpu{n}/cpuidle/state0/latency": "2\n" for n in range(4)},
    **{f"sys/devices/system/cpu/cpu{n}/cpuidle/state1/disable": "0\n" for n in range(4)},
    **{f"sys/devices/system/cpu/cpu{n}/cpuidle/state1/latency": "133\n" for n in range(4)},
    "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
    "proc/sys/kernel/random/boot_id": "first-boot\n",
    "proc/sys/kernel/sched_rt_runtime_us": "950000\n",
    "proc/irq/default_smp_affinity": "ffffffff,0000000f\n",
    "proc/irq/7/smp_affinity_list": "0-3\n",
    "proc/irq/8/smp_affinity_list": "0\n",
    "proc/irq/9/smp_affinity_list": "\n",
    "proc/1/comm": "systemd\n",
    "proc/sys/net/core/rmem_max": "212992\n",
    "proc/sys/net/core/wmem_max": "67108864\n",
    "proc/sys/vm/swappiness": "60\n",
    f"{THP}/enabled": "always [madvise] never\n",
    f"{THP}/defrag": "always defer defer+madvise [madvise] never\n",
    f"{USB}/idVendor": "0403\n",
    f"{USB}/power/control": "auto\n",
    f"{USB}/1-2:1.0/ttyUSB0/latency_timer": "16\n",
    "etc/security/limits.d/other.conf": "* - core 0\n",
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with four processors and one FTDI adapter, as files."""
    root = tmp_path / "host"
    for path, text in VALUES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    devices = root / "sys/bus/usb-serial/devices"
    devices.mkdir(parents=True)
    (devices / "ttyUSB0").symlink_to(Path("../../../devices/pci0/usb1/1-2/1-2:1.0/ttyUSB0"))
    (root / "var/lib").mkdir(parents=True)
    return root


def tune(host: Path, *arguments: str, expect: int = 0) -> str:
    """Run the command on the made-up host, then show its choices as a kernel does."""
    done = subprocess.run(
        [sys.executable, TUNE, *arguments, "--root", host], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stdout + done.stderr
    for name, choices in (("enabled", "always madvise never"), ("defrag", "always defer defer+madvise madvise never")):
        text = (host / THP / name).read_text()
        if "[" not in text:
            assert text.strip() in choices.split()
            (host / THP / name).write_text(
                " ".join(f"[{c}]" if c == text.strip() else c for c in choices.split()) + "\n"
            )
    return done.stdout + done.stderr


def contents(host: Path) -> dict[str, bytes | None]:
    """Return every file and folder, with what is in it."""
    return {str(path.relative_to(host)): path.read_bytes() if path.is_file() else None for path in host.rglob("*")}


def loaded() -> Any:
    """Return the program as a module."""
    loader = importlib.machinery.SourceFileLoader("neuromod_tune", str(TUNE))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("neuromod_tune", loader))  # type: ignore[arg-type]
    sys.modules["neuromod_tune"] = module  # its data classes look themselves up
    loader.exec_module(module)
    return module


ALL = ("apply", "--cpus", "2,3", "--no-turbo")


def test_apply_sets_what_it_says(host: Path) -> None:
    tune(host, *ALL)

    def value(path: str) -> str:
        return (host / path).read_text().strip()

    assert {value(f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor") for n in range(4)} == {"performance"}
    assert {value(f"sys/devices/system/cpu/cpu{n}/cpuidle/state1/disable") for n in range(4)} == {"1"}
    assert {value(f"sys/devices/system/cpu/cpu{n}/cpuidle/state0/disable") for n in range(4)} == {"0"}
    assert value("sys/devices/system/cpu/intel_pstate/no_turbo") == "1"
    assert value("proc/sys/kernel/sched_rt_runtime_us") == "-1"
    assert value("proc/irq/default_smp_affinity") == "00000000,00000003"
    assert value("proc/irq/7/smp_affinity_list") == "0-1"
    assert value("proc/irq/8/smp_affinity_list") == "0"  # was away from them already
    assert value("proc/sys/net/core/rmem_max") == "16777216"
    assert value("proc/sys/net/core/wmem_max") == "67108864"  # never made smaller
    assert value("proc/sys/vm/swappiness") == "1"
    assert "[never]" in value(f"{THP}/enabled")
    assert "[never]" in value(f"{THP}/defrag")
    assert value(f"{USB}/1-2:1.0/ttyUSB0/latency_timer") == "1"
    assert value(f"{USB}/power/control") == "on"
    assert "@realtime - rtprio 98" in value("etc/security/limits.d/neuromod.conf")
    assert "not set" not in tune(host, "status", "--cpus", "2,3", "--no-turbo")


@pytest.mark.parametrize("times", [1, 2])
def test_undo_leaves_every_file_byte_for_byte_as_it_was(host: Path, times: int) -> None:
    before = contents(host)

    for _ in range(times):
        tune(host, *ALL)
    assert contents(host) != before
    tune(host, "undo")

    assert contents(host) == before
    assert "nothing to undo" in tune(host, "undo")


def test_undo_gives_back_a_limits_file_that_was_there(host: Path) -> None:
    (host / "etc/security/limits.d/neuromod.conf").write_bytes(b"# ours \xff\n@lab - rtprio 50")
    before = contents(host)

    tune(host, *ALL)
    tune(host, "undo")

    assert contents(host) == before


def test_a_second_apply_with_other_cpus_still_gives_back_the_first_values(host: Path) -> None:
    before = contents(host)

    tune(host, "apply", "--cpus", "3")
    tune(host, "apply", "--cpus", "0,1", "--no-turbo")
    assert (host / "proc/irq/8/smp_affinity_list").read_text() == "2-3\n"
    tune(host, "undo")

    assert contents(host) == before


@pytest.mark.parametrize("n_writes", [0, 1, 7, 12])
def test_an_apply_that_was_cut_short_is_undone_too(host: Path, n_writes: int) -> None:
    before = contents(host)
    tune_module = loaded()

    class Interrupted(tune_module.Host):  # type: ignore[misc, name-defined]
        n_left = n_writes

        def write(self, setting: Any) -> None:
            if self.n_left == 0:
                raise KeyboardInterrupt
            self.n_left -= 1
            super().write(setting)

    interrupted = Interrupted(host)
    with pytest.raises(KeyboardInterrupt):
        tune_module.apply(interrupted, tune_module.plan(interrupted, [2, 3], True), dry_run=False)
    assert (contents(host) == before) is False  # the state file at least
    tune(host, "undo")

    assert contents(host) == before


def test_what_cannot_be_set_is_said_and_keeps_nothing_else_from_being_set(host: Path) -> None:
    governor = host / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.unlink()
    governor.symlink_to("/proc/sys/kernel/cap_last_cap")  # may be read, and written by nobody

    out = tune(host, *ALL, expect=1)

    assert re.search(r"governor +FAILED +/sys/.*cpu0/cpufreq/scaling_governor: .*run as root on the host itself", out)
    assert (host / "proc/sys/vm/swappiness").read_text() == "1\n"


def test_an_interrupt_that_the_kernel_keeps_is_said_and_is_no_failure(host: Path) -> None:
    kept = Path("/proc/sys/kernel/cap_last_cap")  # a number that even root may not write
    cpu = kept.read_text().strip()
    (host / f"sys/devices/system/cpu/cpu{cpu}").mkdir()
    (host / "proc/irq/77").mkdir()
    (host / "proc/irq/77/smp_affinity_list").symlink_to(kept)

    out = tune(host, "apply", "--cpus", cpu)

    assert re.search(r"interrupts +kept +77: the kernel keeps", out)


def test_a_dry_run_changes_nothing_and_says_all(host: Path) -> None:
    before = contents(host)

    out = tune(host, *ALL, "--dry-run")

    assert contents(host) == before
    assert re.search(r"would +/proc/sys/vm/swappiness: 60 -> 1\n", out)
    assert re.search(r"would +/sys/kernel/mm/transparent_hugepage/enabled: madvise -> never\n", out)
    tune(host, *ALL)
    during = contents(host)
    out = tune(host, "undo", "--dry-run")
    assert contents(host) == during
    assert re.search(r"would +/proc/sys/vm/swappiness: 1 -> 60\n", out)


def test_after_a_reboot_only_files_are_given_back(host: Path) -> None:
    tune(host, *ALL)
    (host / "proc/sys/kernel/random/boot_id").write_text("second-boot\n")
    (host / "proc/sys/vm/swappiness").write_text("30\n")  # what this boot began with

    out = tune(host, "undo")

    assert (host / "proc/sys/vm/swappiness").read_text() == "30\n"
    assert not (host / "etc/security/limits.d/neuromod.conf").exists()
    assert "of an earlier boot" in out


def test_an_adapter_that_was_unplugged_does_not_hinder_undo(host: Path) -> None:
    tune(host, *ALL)
    shutil.rmtree(host / USB)

    out = tune(host, "undo")

    assert "latency_timer is gone" in out
    assert not (host / "var/lib/neuromod-tune").exists()


def test_what_a_host_does_not_have_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        [sys.executable, TUNE, "status", "--root", tmp_path], capture_output=True, text=True, timeout=60, check=True
    )

    for name, advice in (
        ("governor", "on the VM's host"),
        ("idle", "on the VM's host"),
        ("throttling", "run on the host"),
        ("network", "run on the host"),
        ("serial", "apply again"),
    ):
        assert re.search(rf"^{name} +-- +.*{advice}", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("apply", "--cpus", "3-2"), "expected CPUs such as 2,3 or 2-5, got '3-2'"),
        (("apply", "--cpus", "7"), "this host has no CPU 7; it has 0-3"),
        (("apply", "--skip", "idel"), "no step is called idel"),
    ],
)
def test_bad_usage_is_one_sentence(host: Path, arguments: tuple[str, ...], sentence: str) -> None:
    before = contents(host)

    out = tune(host, *arguments, expect=2)

    assert sentence in out
    assert "Traceback" not in out
    assert contents(host) == before


def test_a_broken_state_file_stops_everything(host: Path) -> None:
    (host / "var/lib/neuromod-tune").mkdir()
    (host / "var/lib/neuromod-tune/state.json").write_text("{")
    before = contents(host)

    for command in ("apply", "undo"):
        assert "cannot be read" in tune(host, command, expect=2)
    assert contents(host) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_may_change_the_host() -> None:
    done = subprocess.run([sys.executable, TUNE, "apply"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "sudo neuromod-tune apply" in done.stderr


def test_this_host_can_be_looked_at() -> None:
    for arguments in (("status",), ("apply", "--dry-run")):
        subprocess.run([sys.executable, TUNE, *arguments], capture_output=True, timeout=60, check=True)
    assert TUNE.stat().st_mode & stat.S_IXUSR


# -- container


def instructions() -> list[tuple[str, str]]:
    """Return the container file as pairs of keyword and the rest, lines continued and comments left out."""
    text = (DEPLOY / "container/Containerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(keyword, rest.strip()) for keyword, _, rest in (line.partition(" ") for line in lines if line.strip())]


KEYWORDS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}


def test_the_container_file_copies_all_that_the_package_is_made_of_and_it_exists() -> None:
    stages = [rest.split(" AS ")[1] for keyword, rest in instructions() if keyword == "FROM" and " AS " in rest]
    copied: set[str] = set()
    for keyword, rest in instructions():
        assert keyword in KEYWORDS | {"ENTRYPOINT", "CMD"}
        if keyword != "COPY":
            continue
        if rest.startswith("--from="):
            assert rest.split()[0].removeprefix("--from=") in stages
        else:
            copied |= set(rest.split()[:-1])
    assert copied == {*FOLDERS, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)
    # the build context holds these and no more
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


FOLDERS = ("adapters", "bridge", "engine", "sorting")


def test_the_container_does_not_run_as_root() -> None:
    users = [rest for keyword, rest in instructions() if keyword == "USER"]
    assert users == ["neuromod"]
    last = max(i for i, (keyword, _) in enumerate(instructions()) if keyword == "FROM")
    after_user = instructions()[instructions().index(("USER", "neuromod")) :]
    assert last < instructions().index(("USER", "neuromod"))
    assert {"HEALTHCHECK", "ENTRYPOINT", "CMD"} <= {keyword for keyword, _ in after_user}


def test_the_containers_commands_are_commands_of_neuromod() -> None:
    from typer.testing import CliRunner

    from neuromod.bridge.cli import app

    said = dict(instructions())
    health = json.loads(said["HEALTHCHECK"].split("CMD ")[1])
    commands = [health[1:], [*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])][1:]]
    for command in commands:
        options = [part for part in command if part.startswith("--")]
        shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        assert all(option in shown.output for option in options)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_to_say_about_the_shell_that_we_run(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    runs = [rest for keyword, rest in instructions() if keyword == "RUN"]
    script.write_text("\n".join(["#!/bin/sh", *runs, ""]))

    checked = subprocess.run(["shellcheck", script, ROOT / ".ci/run"], capture_output=True, text=True, timeout=60)

    assert checked.returncode == 0, checked.stdout
