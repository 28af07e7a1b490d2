"""The dose that a body was given, kept in a file over restarts and crashes.

Dose is written before it is given: what the gate may still give is in the file as spent already, and the gate refuses
what goes beyond (`granted_pc`). So a daemon that dies at any moment leaves a file that counts too much rather than too
little; one that closes in order writes the true dose.

The ledger also tells from when on stimulation may be armed after a restart: when every pulse before it is surely older
than the minute whose dose is limited. After a crash that is a full minute from now. After an orderly end it is a minute
from then, by the clock that does not stand still in this boot, and else by the clock on the wall; where that shows less
time than can have passed (it was set back), it is a full minute from now again. A wall clock that was set forward while
the machine was off is not noticed.
"""

import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.gate import MAX_ELECTRODES, TOTAL
from neuromod.engine.errors import NeuromodError

_FORMAT, _VERSION = "neuromod-ledger", 1
WAIT_S = 63.0
"""A minute, the second of the gate's bins, the longest lease, and one to spare."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LedgerError(NeuromodError, RuntimeError):
    """The ledger of the dose cannot be used, and nothing may be armed."""


class Ledger:
    """The ledger of one session, open: written by one process at a time.

    Parameters
    ----------
    path : Path
        The file; made where it is not there yet, in a folder that is.
    session : str
        Name of the session that it belongs to.
    electrodes : sequence of str
        Names of the session's electrodes, in their order. Those that are only in the file are kept.
    session_pc, minute_pc : ndarray of float64, shape (MAX_ELECTRODES + 1,)
        The gate's limits of these names. Nothing is granted beyond the session's; at a time, a hundredth of it is, or
        twice the minute's where that is more: no train is larger than half a grant, and none waits for one in vain.
    wall, monotonic : callable
        Clocks, in seconds; for tests.

    Raises
    ------
    LedgerError
        The file cannot be read or written, is damaged, or is of another session. Stimulation must not be armed then.
    """

    def __init__(
        self,
        path: Path,
        session: str,
        electrodes: Sequence[str],
        *,
        session_pc: NDArray[np.float64],
        minute_pc: NDArray[np.float64],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.session = session
        self.electrodes = tuple(electrodes)
        self._wall, self._monotonic = wall, monotonic
        self._limits = session_pc.copy()
        self._chunk = np.fmax(0.01 * session_pc, 2.0 * minute_pc)
        self._lock = threading.Lock()
        self._closed = False
        self._others: dict[str, float] = {}
        self.dose_pc: NDArray[np.float64] = np.zeros(MAX_ELECTRODES + 1)
        """Dose that was there when the ledger was opened: of each electrode, and at TOTAL of all."""
        self.wait_s = 0.0
        """For how long from its opening on arming must be refused."""
        if len(set(self.electrodes)) != len(self.electrodes) or len(self.electrodes) > MAX_ELECTRODES:
            raise LedgerError(f"{path}: expected at most {MAX_ELECTRODES} electrodes of different names; rename them")
        if not (np.isfinite(session_pc).all() and np.isfinite(minute_pc).all()):
            raise LedgerError(f"{path}: expected finite limits of the session's and the minute's dose; give them")
        self._lock_file()
        try:
            self._open()
        except BaseException:
            self._unlock_file()
            raise

    def _open(self) -> None:
        body = self._read()
        if body is not None:
            spent = dict(body["spent_pc"])
            for i, name in enumerate(self.electrodes):
                self.dose_pc[i] = spent.pop(name, 0.0)
            self._others = spent
            self.dose_pc[TOTAL] = body["total_pc"]
            self.wait_s = self._wait_s(body)
        self.granted_pc = self.dose_pc.copy()
        # from here on, until an orderly close, the end of the last pulse is unknown
        self._write(self.granted_pc, is_open=True)

    def start(self, gate: Any, now_ns: int) -> None:
        """Give a gate the dose so far and the wait, before the loop runs.

        Parameters
        ----------
        gate : GATE record
            Changed in place.
        now_ns : int
            Local clock, in ns.
        """
        gate["dose_pc"] = np.fmax(gate["dose_pc"], self.dose_pc)
        gate["granted_pc"] = self.granted_pc
        gate["arm_after_ns"] = max(int(gate["arm_after_ns"]), now_ns + math.ceil(self.wait_s * 1e9))

    def top_up(self, dose_pc: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Grant more where half of what was granted is used; return what is granted now, None where nothing changed.

        When it returns, the grant is on the disk: only then may the gate be told (`gate.grant`).

        Parameters
        ----------
        dose_pc : ndarray of float64, shape (MAX_ELECTRODES + 1,)
            The gate's `dose_pc`.

        Raises
        ------
        LedgerError
            It cannot be written; what was granted before still holds, and is all that there is.
        """
        with self._lock:
            if self._closed:
                raise LedgerError(f"{self.path}: the ledger is closed; open it again")
            is_low = self.granted_pc - dose_pc < 0.5 * self._chunk
            is_low[len(self.electrodes) : TOTAL] = False
            wanted = np.fmin(dose_pc + self._chunk, self._limits)
            granted = np.where(is_low, np.fmax(wanted, self.granted_pc), self.granted_pc)
            if np.array_equal(granted, self.granted_pc):
                return None
            self._write(granted, is_open=True)
            self.granted_pc = granted
            return granted.copy()

    def close(self, dose_pc: NDArray[np.float64] | None = None) -> None:
        """Write the true dose, when the loop has ended and every lease is over with it; twice does no harm.

        Parameters
        ----------
        dose_pc : ndarray of float64, shape (MAX_ELECTRODES + 1,), optional
            The gate's `dose_pc`. None where it is not known: all that was granted counts as spent then.

        Raises
        ------
        LedgerError
            It cannot be written: all that was granted counts as spent.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if dose_pc is not None:
                    # never less than when it was opened
                    self._write(np.fmax(dose_pc, self.dose_pc), is_open=False)
            finally:
                self._unlock_file()

    def _wait_s(self, body: dict[str, Any]) -> float:
        if not any(body["spent_pc"].values()) and not body["total_pc"]:
            return 0.0
        if body["open"]:
            return WAIT_S
        passed = self._wall() - body["closed_wall_s"]
        if body["boot"] and body["boot"] == _boot():
            # the same boot: by the clock that nobody sets, and never less than that
            passed = min(passed, self._monotonic() - body["closed_monotonic_s"])
        return WAIT_S if passed < 0.0 else max(0.0, WAIT_S - passed)

    def _read(self) -> dict[str, Any] | None:
        """Return what the file holds, None where there is no file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(
                f"{self.path}: the ledger cannot be read ({error}); nothing is armed until it can"
            ) from error
        try:
            document = json.loads(text)
            body = document["ledger"]
            is_whole = document["crc32"] == _crc(body) and body["format"] == _FORMAT and body["version"] == _VERSION
            doses = [body["total_pc"], *body["spent_pc"].values()]
            is_whole = is_whole and all(isinstance(x, float) and 0.0 <= x < math.inf for x in doses)
            is_whole = is_whole and isinstance(body["open"], bool)
            is_whole = is_whole and isinstance(body["session"], str) and isinstance(body["boot"], str)
            is_whole = is_whole and (body["open"] or math.isfinite(body["closed_wall_s"] + body["closed_monotonic_s"]))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            is_whole = False
        if not is_whole:
            raise LedgerError(
                f"{self.path}: expected a whole ledger of version {_VERSION}, this one is damaged or of another kind. "
                "How much was given is not known: restore it from a copy, or find out the dose before beginning another"
            )
        if body["session"] != self.session:
            raise LedgerError(
                f"{self.path} is the ledger of session {body['session']!r}, not of {self.session!r}; "
                "give each session its own, or the session its name"
            )
        return dict(body)

    def _write(self, spent_pc: NDArray[np.float64], *, is_open: bool) -> None:
        """Replace the file, and come back when the disk holds the new one."""
        spent = self._others | {name: float(spent_pc[i]) for i, name in enumerate(self.electrodes)}
        body = {
            "format": _FORMAT,
            "version": _VERSION,
            "session": self.session,
            "open": is_open,
            "spent_pc": spent,
            "total_pc": float(spent_pc[TOTAL]),
            "closed_wall_s": None if is_open else self._wall(),
            "closed_monotonic_s": None if is_open else self._monotonic(),
            "boot": _boot(),
        }
        text = json.dumps({"ledger": body, "crc32": _crc(body)}, indent=1) + "\n"
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the ledger cannot be written ({error}); nothing is armed without it. "
                "Make room, or give it a folder that can be written to"
            ) from error

    def _lock_file(self) -> None:
        """Keep other processes out: two daemons on one ledger would each spend the whole of it."""
        try:
            import fcntl  # here: this module is imported where nothing is sent, too, on systems that have none
        except ImportError as error:
            raise LedgerError(
                f"{self.path}: this system cannot lock files (POSIX flock), and nothing that sends is armed without "
                "that; stimulate from Linux or macOS, or choose mode 'dry_run' or 'sham'"
            ) from error
        try:
            self._lock_fd = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the ledger cannot be written ({error}); nothing is armed without it. "
                "Make its folder, or name one that can be written to"
            ) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            raise LedgerError(f"{self.path}: another process has this ledger open; end it first") from error

    def _unlock_file(self) -> None:
        os.close(self._lock_fd)


def _boot() -> str:
    """Return what tells this boot of the machine from others, empty where it is not known."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _crc(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
