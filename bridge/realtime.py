"""What the daemon asks of the operating system for the sake of its loop, each with a word where it is refused."""

import ctypes
import logging
import os
import sys
import threading
from pathlib import Path

from neuromod.bridge.config import RuntimeConfig

log = logging.getLogger(__name__)

_PR_SET_TIMERSLACK = 29
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_IS_LINUX = sys.platform.startswith("linux")


def prepare_process(runtime: RuntimeConfig) -> list[str]:
    """Ask for what concerns the whole process, before any library starts threads of its own.

    Threads inherit the timer slack of the thread that starts them, so liblsl's and libzmq's get it too.

    Returns
    -------
    list of str
        What was refused, and how to mend it.
    """
    refused = []
    if _IS_LINUX:
        _set_timer_slack(runtime.timer_slack_ns)
    if runtime.lock_memory and not _lock_memory():
        refused.append("lock_memory: not permitted; raise the memlock limit (ulimit -l unlimited, or LimitMEMLOCK=)")
    return refused


def prepare_loop_thread(runtime: RuntimeConfig) -> list[str]:
    """Ask for what concerns the loop's thread; called in it. Returns what was refused."""
    refused = []
    if _IS_LINUX:
        _set_timer_slack(runtime.timer_slack_ns)
    if runtime.cpus:
        try:
            os.sched_setaffinity(0, runtime.cpus)
        except (AttributeError, OSError) as error:
            refused.append(f"cpus = {list(runtime.cpus)}: {_reason(error)}; name CPUs that this process may use")
    if runtime.realtime_priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(runtime.realtime_priority))
        except (AttributeError, OSError) as error:
            refused.append(
                f"realtime_priority = {runtime.realtime_priority}: {_reason(error)}; allow it with "
                "'ulimit -r 98', LimitRTPRIO=98 in the service, or CAP_SYS_NICE"
            )
    return refused


def promote_library_threads(runtime: RuntimeConfig) -> int:
    """Give the threads of liblsl and libzmq the loop's priority too: it waits for them. Returns how many got it."""
    if not (runtime.realtime_priority and _IS_LINUX):
        return 0
    ours = {thread.native_id for thread in threading.enumerate()}
    promoted = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) in ours:
            continue
        try:
            os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(runtime.realtime_priority))
            promoted += 1
        except OSError:  # gone meanwhile, or refused like the loop's own, which was reported
            continue
    return promoted


def _set_timer_slack(slack_ns: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0)


def _lock_memory() -> bool:
    if sys.platform == "win32":
        return False
    try:
        return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)
    except AttributeError:
        return False


def _reason(error: Exception) -> str:
    return "not to be had on this platform" if isinstance(error, AttributeError) else str(error)
