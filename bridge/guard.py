"""Watches over stimulation from outside the loop: the stop file, and the ledger of the dose."""

import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import loop_state as rt
from neuromod.bridge.collector import Collector
from neuromod.bridge.gate import MAX_ELECTRODES
from neuromod.bridge.ledger import Ledger, LedgerError

log = logging.getLogger(__name__)

_EVERY_S = 0.01
_AGAIN = 100  # turns after which a grant that the loop took, and the gate has not, is sent once more


class Guard:
    """Looks every 10 ms, with a thread for each of two things: a disk that is slow to take a grant delays no stop.

    `run` watches the stop file, `run_ledger` the dose.

    Parameters
    ----------
    collector : Collector
        The way to the loop.
    stop_file : Path, optional
        While it is there, nothing is stimulated, and arming is refused.
    ledger : Ledger, optional
        Open; where the mode sends nothing there is none.
    """

    def __init__(self, collector: Collector, stop_file: Path | None, ledger: Ledger | None) -> None:
        self._collector, self._stop_file, self._ledger = collector, stop_file, ledger
        self._is_held = False
        self._sent_pc = np.full(MAX_ELECTRODES + 1, -np.inf)  # what the loop has been told
        self._turns = 0
        self.fault = ""  # what is wrong with the ledger, in a sentence

    def run(self, stop: threading.Event) -> None:
        """Watch the stop file until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.look()

    def run_ledger(self, stop: threading.Event) -> None:
        """Grant dose as it is used, until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.grant()

    def look(self) -> None:
        """Look for the stop file once."""
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
