"""Watches from outside the loop what a session depends on, and says each change once: log, event, and `health`.

A check is a function that returns a sentence while something is wrong, and nothing while all is well. One thread asks
all of them ten times a second. It keeps a clock of its own that never counts more than a few of its turns at once: a
host that stood still, or gave this process no time, is not taken for a loop that is stuck.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from neuromod.bridge.guard import SLEPT_S, asleep

log = logging.getLogger(__name__)

Check = Callable[[float], str]
"""Gets the watchdogs' own clock, in seconds; returns what is wrong, in a sentence, or an empty string."""

EVERY_S = 0.1
STUCK_EXIT_CODE = 70
"""The process ended itself since its loop stood still."""

_MOST_TURNS = 3


class Lasting:
    """A check of a condition that is wrong once it has lasted.

    Parameters
    ----------
    limit_s : float
        For how long it may.
    is_so : callable
        Says whether the condition holds now.
    says : callable
        Gets how long it has lasted, in seconds; returns the sentence.
    """

    def __init__(self, limit_s: float, is_so: Callable[[], bool], says: Callable[[float], str]) -> None:
        self._limit_s, self._is_so, self._says = limit_s, is_so, says
        self._since: float | None = None

    def __call__(self, now: float) -> str:
        """Look once."""
        if not self._is_so():
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        lasted_s = now - self._since
        return self._says(lasted_s) if lasted_s > self._limit_s else ""


class Standing:
    """A check that a number goes on changing.

    Parameters
    ----------
    limit_s : float
        For how long it may stay.
    read : callable
        Returns the number.
    says : callable
        Gets how long it has stayed, in seconds; returns the sentence.
    """

    def __init__(self, limit_s: float, read: Callable[[], int], says: Callable[[float], str]) -> None:
        self._read, self._last, self._moved = read, read(), False
        self._lasting = Lasting(limit_s, lambda: not self._moved, says)

    def __call__(self, now: float) -> str:
        """Look once."""
        found = self._read()
        self._moved, self._last = found != self._last, found
        return self._lasting(now)

    @property
    def has_moved(self) -> bool:
        """Whether the number had changed at the last look."""
        return self._moved


class Peers:
    """A check that everybody who is to say `alive` does.

    Parameters
    ----------
    limit_s : float
        For how long one may be silent.
    heard : mapping of str to int
        How often each was heard; others write it.
    """

    def __init__(self, limit_s: float, heard: Mapping[str, int]) -> None:
        self._checks = {
            name: Standing(limit_s, lambda name=name: heard[name], lambda s, name=name: f"{name} (for {s:.1f} s)")  # type: ignore[misc]
            for name in heard
        }

    def __call__(self, now: float) -> str:
        """Look once."""
        silent = [said for check in self._checks.values() if (said := check(now))]
        return f"not heard: {', '.join(silent)}" if silent else ""


class Clocks:
    """A check of the clock on the wall against the monotonic one, of the host's sleep, and of the source's clock.

    Parameters
    ----------
    step_ms : float
        Largest step of the clock on the wall between two looks; 0 for any.
    jump_ms, uncertainty_ms : float
        Largest change from one correction of the source's clock to the next, and how well it must be known; 0 for any.
    source : callable
        Returns the correction and its uncertainty, in seconds; NaN where there is none.
    wall, monotonic : callable
        Clocks, in seconds.
    asleep : callable
        Returns for how long the host has been suspended, in seconds.
    """

    def __init__(
        self,
        *,
        step_ms: float,
        jump_ms: float,
        uncertainty_ms: float,
        source: Callable[[], tuple[float, float]],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        asleep: Callable[[], float] = asleep,
    ) -> None:
        self._step_s, self._jump_s, self._uncertainty_s = step_ms / 1e3, jump_ms / 1e3, uncertainty_ms / 1e3
        self._source, self._wall, self._monotonic, self._asleep = source, wall, monotonic, asleep
        self._slept_s = asleep()
        self._ahead_s = self._read()
        self._offset_s = source()[0]

    def __call__(self, now: float) -> str:
        """Look once."""
        said = []
        slept_s = self._asleep()
        if slept_s - self._slept_s > SLEPT_S:
            said.append(f"the host was suspended for {slept_s - self._slept_s:.1f} s")
        self._slept_s = max(self._slept_s, slept_s)
        if (ahead_s := self._read()) is not None:
            if self._ahead_s is not None and 0.0 < self._step_s < abs(ahead_s - self._ahead_s) and not said:
                said.append(f"the clock on the wall was set by {1e3 * (ahead_s - self._ahead_s):+.0f} ms")
            self._ahead_s = ahead_s
        offset_s, uncertainty_s = self._source()
        if math.isfinite(offset_s):
            if 0.0 < self._jump_s < abs(offset_s - self._offset_s):  # of NaN, never
                said.append(f"the source's clock jumped by {1e3 * (offset_s - self._offset_s):+.1f} ms")
            self._offset_s = offset_s
        if 0.0 < self._uncertainty_s < uncertainty_s:
            said.append(f"the source's clock is known to {1e3 * uncertainty_s:.1f} ms only")
        return "; ".join(said)

    def _read(self) -> float | None:
        """Return by how much the clock on the wall is ahead; None where the host was too busy to read both at once."""
        for _ in range(5):
            before = self._monotonic()
            wall = self._wall()
            after = self._monotonic()
            if after - before < 1e-3:
                return wall - before
        return None


class _Watched:
    """What is known of one thing, and since when."""

    def __init__(self, check: Check, now: float) -> None:
        self.check, self.since, self.says, self.is_ok = check, now, "", True
        self.well_since: float | None = None


class Watchdogs:
    """All checks of a session; one thread calls `run`.

    Parameters
    ----------
    checks : mapping of str to Check
        By name.
    announce : callable
        Gets name, whether all is well, and a sentence, at each change.
    local_clock : callable
        Clock of the `since` that health tells, in seconds.
    hold_s : float
        All must be well for so long before it is said.
    on_turn : callable
        Called after each turn.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        announce: Callable[[str, bool, str], None],
        local_clock: Callable[[], float],
        hold_s: float,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._announce, self._local_clock, self._hold_s, self._on_turn = announce, local_clock, hold_s, on_turn
        self._watched = {name: _Watched(check, local_clock()) for name, check in checks.items()}

    def run(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        """Look until `stop` is set."""
        now, last = 0.0, clock()
        while not stop.wait(EVERY_S):
            self.look(now)
            self._on_turn()
            read = clock()
            now, last = now + min(read - last, _MOST_TURNS * EVERY_S), read

    def look(self, now: float) -> None:
        """Ask every check once; `now` is the watchdogs' own clock, in seconds."""
        for name, watched in self._watched.items():
            said = watched.check(now)
            if said:
                watched.well_since = None
                watched.says = said
                if watched.is_ok:
                    watched.is_ok, watched.since = False, self._local_clock()
                    log.warning("watchdog %s: %s", name, said)
                    self._announce(name, False, said)
            elif not watched.is_ok:
                watched.well_since = now if watched.well_since is None else watched.well_since
                if now - watched.well_since >= self._hold_s:
                    lasted_s = self._local_clock() - watched.since
                    sentence = f"well again after {lasted_s:.1f} s; it was: {watched.says}"
                    watched.is_ok, watched.since, watched.says = True, self._local_clock(), ""
                    log.warning("watchdog %s: %s", name, sentence)
                    self._announce(name, True, sentence)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Say what health says of them."""
        return {name: {"ok": w.is_ok, "since": w.since, "says": w.says} for name, w in self._watched.items()}


def disk_check(
    recording: Callable[[], Mapping[str, Any]],
    *,
    min_free_bytes: float,
    warn_free_bytes: float,
    warn_free_s: float,
    write_s: float,
    checkpoint_fault: Callable[[], str],
) -> Check:
    """Return a check of all that is written: room, the time that it lasts for, failures, and writes that take long.

    Parameters
    ----------
    recording : callable
        Returns `Recorder.status()`, or its `{"state": "off"}`.
    min_free_bytes, warn_free_bytes, warn_free_s : float
        As of the recorder.
    write_s : float
        Longest time of a write; 0 for any.
    checkpoint_fault : callable
        Returns why the last checkpoint could not be written; empty where it could.
    """

    def check(now: float) -> str:
        said, status = [], recording()
        if status["state"] == "ended":
            said.append(f"the recording has ended: {status['why']}")
        elif status["state"] == "recording":
            room, left_s = max(0.0, status["free_bytes"] - min_free_bytes), status["free_s"]
            if room < warn_free_bytes or (left_s is not None and left_s < warn_free_s):
                lasts = "" if left_s is None else f", which lasts {left_s / 60.0:.1f} min at this rate"
                said.append(f"room for {room / 1e6:.0f} MB more of the recording{lasts}")
            if 0.0 < write_s < status["busy_s"]:
                said.append(f"a write of the recording takes {status['busy_s']:.1f} s so far")
        if fault := checkpoint_fault():
            said.append(fault)
        return "; ".join(said)

    return check
