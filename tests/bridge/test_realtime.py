"""What is asked of the operating system: granted where it can be, and a clear word where it is refused."""

import os
import resource
import subprocess
import sys
import threading

import pytest

from neuromod.bridge import realtime
from neuromod.bridge.config import RuntimeConfig

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="scheduling calls are those of Linux")


def in_thread(runtime: RuntimeConfig) -> tuple[list[str], int, set[int]]:
    """Prepare a thread; return what was refused, its scheduling policy, and its CPUs."""
    found: list[tuple[list[str], int, set[int]]] = []

    def ask() -> None:
        refused = realtime.prepare_loop_thread(runtime)
        found.append((refused, os.sched_getscheduler(0), os.sched_getaffinity(0)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


def timer_slack_ns() -> int:
    """Timer slack of this process's main thread, as the kernel tells it."""
    program = "from neuromod.bridge import realtime, config; realtime.prepare_process(config.RuntimeConfig()); "
    program += "print(open('/proc/self/timerslack_ns').read())"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_timer_slack_is_one_nanosecond_by_default() -> None:
    assert timer_slack_ns() == 1


def test_the_loop_runs_on_the_cpus_it_is_given() -> None:
    cpu = min(os.sched_getaffinity(0))
    refused, _, cpus = in_thread(RuntimeConfig(cpus=(cpu,)))
    assert refused == []
    assert cpus == {cpu}


def test_a_cpu_that_is_not_there_is_refused_in_words() -> None:
    refused, _, _ = in_thread(RuntimeConfig(cpus=(4095,)))
    assert len(refused) == 1
    assert "cpus = [4095]" in refused[0]


def test_realtime_priority_is_granted_or_refused_with_the_remedy() -> None:
    refused, policy, _ = in_thread(RuntimeConfig(realtime_priority=1))
    if refused:
        assert policy == os.SCHED_OTHER
        assert "LimitRTPRIO" in refused[0]
    else:
        assert policy == os.SCHED_FIFO


def test_a_priority_that_is_refused_leaves_the_thread_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    refused, policy, _ = in_thread(RuntimeConfig(realtime_priority=10))
    assert policy == os.SCHED_OTHER
    assert refused == [
        "realtime_priority = 10: [Errno 1] Operation not permitted; allow it with 'ulimit -r 98', LimitRTPRIO=98 in "
        "the service, or CAP_SYS_NICE"
    ]


def test_memory_that_cannot_be_locked_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "_lock_memory", lambda: False)
    (refused,) = realtime.prepare_process(RuntimeConfig(lock_memory=True))
    assert "LimitMEMLOCK" in refused


def test_locked_memory_is_granted_or_refused_with_the_remedy() -> None:
    # in a process of its own: it cannot be taken back
    program = (
        "from neuromod.bridge import realtime, config\n"
        "print(realtime.prepare_process(config.RuntimeConfig(lock_memory=True)))\n"
        "print([l for l in open('/proc/self/status') if l.startswith('VmLck')][0].split()[1])"
    )

    def forbid() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=forbid)
    refused, locked_kb = done.stdout.splitlines()
    assert (refused == "[]" and int(locked_kb) > 0) or "memlock" in refused
