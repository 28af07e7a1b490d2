"""Watches over stimulation from outside the loop: the stop file, and the ledger of the dose."""

import logging
import threading
from pathlib import Path

import numpy as np

from neuromod.bridge import loop_state as rt
from neuromod.bridge.collector import Collector
from neuromod.bridge.ledger import Ledger, LedgerError

log = logging.getLogger(__name__)

_EVERY_S = 0.01


class Guard:
    """Looks every 10 ms; one thread calls `run`.

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
        self.fault = ""  # what is wrong with the ledger, in a sentence

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.turn()

    def turn(self) -> None:
        """Look once."""
        if self._stop_file is not None:
            is_there = self._stop_file.exists()
            if is_there != self._is_held:
                self._collector.hold(is_there)
                if is_there:
                    self._collector.halt()
                log.warning("stop file %s: %s", self._stop_file, "stimulation is held" if is_there else "removed")
                self._is_held = is_there
        if self._ledger is not None:
            self._grant(self._ledger)

    def _grant(self, ledger: Ledger) -> None:
        try:
            granted = ledger.top_up(self._collector.assembly.stimulation.gate[0]["dose_pc"].copy())
        except LedgerError as error:
            if not self.fault:
                # what was granted still holds: the gate itself refuses what goes beyond
                log.error("%s", error)
            self.fault = str(error)
            return
        self.fault = ""
        if granted is not None:
            for index in np.flatnonzero(granted):
                self._collector.submit(rt.GRANT, word=int(index), values=[float(granted[index])])
