"""How the daemon's last life ended, and what the next one goes on from.

A small file beside the checkpoints says who lives, and whether it ended in order. It is locked meanwhile: two daemons
on one path would each overwrite what the other may need.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromod.bridge import checkpoint
from neuromod.bridge.assembly import Assembly
from neuromod.bridge.supervision_config import CheckpointConfig
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class LastLife:
    """What is known of the life before this one.

    Attributes
    ----------
    is_clean : bool
        It ended in order.
    how : str
        How it ended, in a few words.
    at : float, optional
        When it ended, or was last seen: clock on the wall, in seconds.
    restarts : int
        How many lives in a row before this one did not end in order.
    session : str
        Folder of its record; empty where it kept none.
    """

    is_clean: bool
    how: str
    at: float | None
    restarts: int
    session: str = ""


def from_supervisor(text: str) -> LastLife:
    """Read what a supervisor says of the child before: a JSON map of `how`, `at` and `restarts`.

    Raises
    ------
    ConfigError
        It is something else.
    """
    try:
        body = json.loads(text)
        return LastLife(False, str(body["how"]), float(body["at"]), max(0, int(body["restarts"])))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise ConfigError("--last-life is what --supervise gives to its child; leave it out") from None


class Life:
    """The life that begins, in a file beside the checkpoints.

    Parameters
    ----------
    path : Path
        Of the checkpoints; the file is `PATH.life`.
    told : LastLife, optional
        What a supervisor says of the last life; it knows better how it ended, and when.
    wall : callable
        Clock on the wall, in seconds.

    Raises
    ------
    ConfigError
        The file cannot be written, or another daemon lives by it.
    """

    def __init__(self, path: Path, told: LastLife | None = None, *, wall: Callable[[], float] = time.time) -> None:
        self._path, self._wall = path.with_name(path.name + ".life"), wall
        self._lock_fd = -1
        try:
            self._lock()
            self.last = _combined(self._read(), told)
        except OSError as error:
            self._unlock()
            raise self._refusal(error) from None
        self._body: dict[str, Any] = {}

    def begin(self, session: str) -> None:
        """Note that it lives now, and the folder of its record; what was there of the last life is forgotten.

        Raises
        ------
        ConfigError
            The file cannot be written.
        """
        now = self._wall()
        self._body = {
            "pid": os.getpid(),
            "boot_id": _boot(),
            "started_at": now,
            "restarts": 0 if self.last is None or self.last.is_clean else self.last.restarts,
            "session": session,
            "is_clean": False,
            "why": "",
        }
        try:
            self._write(seen_at=now)
        except OSError as error:
            raise self._refusal(error) from None

    def seen(self) -> None:
        """Note that it still lives."""
        with contextlib.suppress(OSError):  # a full disk is said by the checkpoint itself
            self._write(seen_at=self._wall())

    def end(self, why: str, *, is_clean: bool) -> None:
        """Note how it ends. Safe to call twice: the first word holds."""
        if self._body:  # else it never lived, and how the last one ended still counts
            with contextlib.suppress(OSError):
                self._write(is_clean=is_clean, why=why, seen_at=self._wall())
            self._body = {}
        self._unlock()

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"checkpoint.path: {self._path} cannot be written ({error.strerror or error}); "
            "make its folder, or room, or name another"
        )

    def _read(self) -> LastLife | None:
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
            is_clean, session = bool(body["is_clean"]), str(body["session"])
            restarts, at = max(0, int(body["restarts"])), float(body["seen_at"])
            how = str(body["why"]) or (
                "the host went down" if body["boot_id"] != _boot() else "it was killed, or crashed, without a word"
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            log.warning("%s is damaged: the last life is taken for one that did not end in order", self._path)
            return LastLife(False, "unknown: its file is damaged", None, 1)
        return LastLife(is_clean, how, at, 0 if is_clean else restarts + 1, session)

    def _write(self, **changed: Any) -> None:
        self._body |= changed
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self._body, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: nothing is worse there than two daemons on one path, which is said nowhere
            return
        fd = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise ConfigError(
                f"checkpoint.path: another daemon writes its checkpoints to {self._path.with_suffix('')}; "
                "end it, or give this one a path of its own"
            ) from None
        self._lock_fd = fd

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def find_checkpoint(config: CheckpointConfig, assembly: Assembly, last: LastLife | None) -> checkpoint.Found | None:
    """Return the newest good checkpoint that this life is to begin from; what is wrong with newer ones is logged."""
    is_wanted = config.resume == "always" or (config.resume == "crash" and last is not None and not last.is_clean)
    if not is_wanted:
        return None
    for path in checkpoint.kept(config.path, config.keep):
        if not path.exists():
            continue
        try:
            return checkpoint.read(path, assembly)
        except ConfigError as error:
            log.error("not resumed from %s: %s", path, error)
    log.warning("there is no good checkpoint at %s: the session begins anew", config.path)
    return None


def tell_restart(last: LastLife, found: checkpoint.Found | None, now: float) -> tuple[str, dict[str, Any]]:
    """Return a sentence on a restart, and the value of its event; `now` is on the wall, in seconds."""
    value: dict[str, Any] = {
        "ended": last.how,
        "restarts": last.restarts,
        "downtime_s": None if last.at is None else max(0.0, now - last.at),
        "checkpoint": None,
    }
    sentence = f"restarted (number {last.restarts}): {last.how}"
    if value["downtime_s"] is not None:
        sentence += f"; last seen {value['downtime_s']:.1f} s ago"
    if found is None:
        return f"{sentence}; the network begins anew, disarmed", value
    age_s = max(0.0, now - found.written_at)
    value |= {"checkpoint": str(found.path), "tick": found.tick, "age_s": age_s}
    return f"{sentence}; goes on from {found.path.name} of tick {found.tick}, {age_s:.1f} s old, disarmed", value


def _combined(read: LastLife | None, told: LastLife | None) -> LastLife | None:
    if told is None:
        return read
    return LastLife(False, told.how, told.at, told.restarts, read.session if read is not None else "")


def _boot() -> str:
    """Return what tells this boot of the machine from others, empty where it is not known."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
