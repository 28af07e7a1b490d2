"""Starts the daemon as a child and anew after a crash; imports next to nothing, so that little of its own can fail.

A signal that is to end the daemon, or to stop stimulation, is passed on. The child gets SIGTERM when this process is
killed (Linux). How a child ended, and when, is told to the next one, which announces it.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger(__name__)

MOST_CRASHES, WITHIN_S = 5, 60.0
"""So many crashes within so many seconds, and it gives up."""
COULD_NOT_RUN = 2
"""Exit code of a session that cannot be: starting it anew would change nothing."""

STANDBY_AFTER_S = 8.0
"""Age of the daemon at which a standby is started."""

_LONGEST_PAUSE_S = 8.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_PASSED_ON = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, n)]
_HALT = getattr(signal, "SIGUSR1", None)


def supervise(
    command: Sequence[str],
    *,
    has_standby: bool = False,
    most_crashes: int = MOST_CRASHES,
    within_s: float = WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run a command until it ends in order, and anew where it does not.

    Parameters
    ----------
    command : sequence of str
        Starts the daemon; from the second time on with `--last-life` and what is known of the child before.
    has_standby : bool
        Keep a process beside the daemon that has everything imported, started with `--standby`, and takes its place.
    most_crashes, within_s
        So many crashes within so many seconds, and it gives up.
    clock : callable
        In seconds.

    Returns
    -------
    int
        Exit code: that of a child that was told to end, ended in order or cannot run; 1 where it gave up.
    """
    child: subprocess.Popen[bytes] | None = None
    standby: subprocess.Popen[bytes] | None = None
    told_to_end = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal told_to_end
        told_to_end = told_to_end or number != _HALT
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    before = {number: signal.signal(number, on_signal) for number in _PASSED_ON}
    crashes: deque[float] = deque(maxlen=most_crashes)
    restarts, last_life = 0, ""
    try:
        while True:
            child = _take(standby, last_life) or _start([*command, *(["--last-life", last_life] if last_life else [])])
            standby = None
            log.info("the daemon runs as process %d", child.pid)
            if told_to_end:  # by a signal that came while there was no child to pass it to
                child.terminate()
            if has_standby:
                with contextlib.suppress(subprocess.TimeoutExpired):  # not while the daemon itself starts
                    child.wait(STANDBY_AFTER_S)
                if child.poll() is None and not told_to_end:
                    standby = _start_standby(command)
            code = child.wait()  # handlers of signals run in between
            ended_at = time.time()
            child = None
            how = _tell(code)
            if code == 0 or told_to_end:
                log.info("the daemon %s", how)
                return code if code >= 0 else 128 - code
            if code == COULD_NOT_RUN and not restarts:
                log.error("the daemon %s: it cannot run, and is not started again", how)
                return code
            crashes.append(clock())
            if len(crashes) == most_crashes and crashes[-1] - crashes[0] < within_s:
                log.critical(
                    "the daemon %s, for the %dth time in %.0f s: given up; see its log, mend what is wrong, "
                    "and start it by hand",
                    how,
                    most_crashes,
                    crashes[-1] - crashes[0],
                )
                return 1
            # at once the first time: what was one bad moment is over; then it may be something that needs time
            recent = sum(crashes[-1] - at < within_s for at in crashes)
            pause_s = min(0.5 * 2.0 ** (recent - 2), _LONGEST_PAUSE_S) if recent > 1 else 0.0
            log.error("the daemon %s: started anew in %.1f s", how, pause_s)
            restarts += 1
            last_life = json.dumps({"how": how, "at": ended_at, "restarts": restarts})
            deadline = clock() + pause_s
            while not told_to_end and clock() < deadline:
                time.sleep(_POLL_S)
            if told_to_end:
                log.info("told to end while no daemon ran")
                return 0
    finally:
        if child is not None:  # something of ours failed: nobody would look after it
            child.terminate()
            child.wait()
        if standby is not None:
            standby.kill()
            standby.communicate()
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(standby: "subprocess.Popen[bytes] | None", last_life: str) -> "subprocess.Popen[bytes] | None":
    """Tell a standby to be the daemon; None where there is none that lives."""
    if standby is None or standby.stdin is None:
        return None
    try:
        standby.stdin.write(last_life.encode() + b"\n")
        standby.stdin.close()
    except OSError:
        standby.wait()
        log.warning("the standby had ended by itself: the daemon starts from nothing")
        return None
    return standby


def _start_standby(command: Sequence[str]) -> "subprocess.Popen[bytes] | None":
    try:
        return _start([*command, "--standby"], stdin=subprocess.PIPE)
    except (OSError, subprocess.SubprocessError) as error:  # no memory for it is no reason to end the daemon
        log.warning("the daemon goes without a standby: %s", error)
        return None


def _start(command: Sequence[str], *, stdin: int | None = None) -> "subprocess.Popen[bytes]":
    if sys.platform == "win32":
        return subprocess.Popen(command, stdin=stdin)
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

    def die_with_parent() -> None:
        if _HALT is not None:  # until the daemon heeds it: what only starts has nothing to stop
            signal.signal(_HALT, signal.SIG_IGN)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before this was asked for
                os._exit(1)

    # a group of its own: Ctrl-C in a terminal comes to us, and once to the child
    return subprocess.Popen(command, stdin=stdin, preexec_fn=die_with_parent, process_group=0)


def _tell(code: int) -> str:
    if code >= 0:
        said = {70: ", since its loop stood still", 0: ""}.get(code, "")
        return f"ended with exit code {code}{said}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
