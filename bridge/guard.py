"""Watches over stimulation from outside the loop: the stop file, a host that slept, and the ledger of the dose."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import loop_state as rt
from neuromod.bridge.collector import Collector
from neuromod.bridge.gate import MAX_ELECTRODES
from neuromod.bridge.ledger import Ledger, LedgerError

log = logging.getLogger(__name__)

_EVERY_S = 0.01
SLEPT_S = 0.1
"""A host that was suspended for longer has slept."""
_AGAIN = 100  # turns after which a grant that the loop took, and the gate has not, is sent once more


def asleep() -> float:
    """Return for how long this host has been suspended since it started, in seconds; 0 where it cannot be told.

    The monotonic clock, on which armings, heartbeats and leases run, stands still meanwhile. On macOS and Windows it is
    another clock, and there this always says 0.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if boot is None else time.clock_gettime(boot) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Guard:
    """Looks every 10 ms, with a thread for each of two things: a disk that is slow to take a grant delays no stop.

    `run` watches the stop file and the host's sleep, which ends an arming; `run_ledger` watches the dose.

    Parameters
    ----------
    collector : Collector
        The way to the loop.
    stop_file : Path, optional
        While it is there, nothing is stimulated, and arming is refused.
    ledger : Ledger, optional
        Open; where the mode sends nothing there is none.
    asleep : callable
        Returns for how long the host has been suspended, in seconds.
    """

    def __init__(
        self,
        collector: Collector,
        stop_file: Path | None,
        ledger: Ledger | None,
        asleep: Callable[[], float] = asleep,
    ) -> None:
        self._collector, self._stop_file, self._ledger = collector, stop_file, ledger
        self._asleep = asleep
        self._slept_s = asleep()
        self._is_held = False
        self._sent_pc = np.full(MAX_ELECTRODES + 1, -np.inf)  # what the loop has been told
        self._turns = 0
        self.fault = ""  # what is wrong with the ledger, in a sentence

    def run(self, stop: threading.Event) -> None:
        """Watch the stop file and the host's sleep until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.look()

    def run_ledger(self, stop: threading.Event) -> None:
        """Grant dose as it is used, until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.grant()

    def look(self) -> None:
        """Look once for the stop file, and whether the host has slept."""
        slept_s = self._asleep()
        if slept_s - self._slept_s > SLEPT_S:
            # time to act on what the operator saw before has passed, and no clock of the gate knows of it
            self._collector.halt()
            log.warning("the host was suspended for %.1f s: stimulation is stopped", slept_s - self._slept_s)
        # the clocks are read one after the other, so a busy host makes a reading too small, never too large
        self._slept_s = max(self._slept_s, slept_s)
        if self._stop_file is None:
            return
        is_there = self._stop_file.exists()
        if is_there != self._is_held:
            self._collector.hold(is_there)
            if is_there:
                self._collector.halt()
            log.warning("stop file %s: %s", self._stop_file, "stimulation is held" if is_there else "removed")
            self._is_held = is_there

    def grant(self) -> None:
        """Look once at how much of the dose is left, and see to it that the gate knows of what is granted."""
        if self._ledger is None:
            return
        try:
            self._ledger.top_up(self._collector.assembly.stimulation.gate[0]["dose_pc"].copy())
        except LedgerError as error:
            if not self.fault:
                # what was granted still holds: the gate itself refuses what goes beyond
                log.error("%s", error)
            self.fault = str(error)
        else:
            self.fault = ""
        self._tell(self._ledger.granted_pc)

    def _tell(self, granted_pc: NDArray[np.float64]) -> None:
        """Leave for the loop what the gate does not know of; again where there was no room for it the last time."""
        self._turns += 1
        if self._turns % _AGAIN == 0:
            self._sent_pc.fill(-np.inf)
        known_pc = np.fmax(self._collector.assembly.stimulation.gate[0]["granted_pc"], self._sent_pc)
        for index in np.flatnonzero(known_pc < granted_pc):
            if self._collector.submit(rt.GRANT, word=int(index), values=[float(granted_pc[index])]):
                self._sent_pc[index] = granted_pc[index]
