"""Takes checkpoints of a running loop and gives them back: by command, by the clock, and at a start after a crash."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuromod.bridge import checkpoint
from neuromod.bridge import loop_state as rt
from neuromod.bridge.collector import Collector
from neuromod.bridge.commands import CommandError
from neuromod.bridge.supervision_config import CheckpointConfig
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)


class Checkpointer:
    """The only one that uses the loop's copy of itself; any thread may call.

    Parameters
    ----------
    collector : Collector
        The way to the loop.
    config : CheckpointConfig, optional
        When to write by itself, and where to; without it only when told.
    on_written : callable
        Called after each checkpoint that was written by itself.
    wall : callable
        Clock on the wall, in seconds.
    """

    def __init__(
        self,
        collector: Collector,
        config: CheckpointConfig | None = None,
        *,
        on_written: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._collector, self._config, self._on_written, self._wall = collector, config, on_written, wall
        self._lock = threading.Lock()  # for the copy, never held while writing
        self._last: tuple[float, int] | None = None  # when, and the tick that came next
        self.count = 0
        self.fault = ""  # why the last one could not be written, in a sentence

    def check_answered(self) -> None:
        """Refuse to touch what the loop copies from and to while it may still be about to."""
        if self._collector.unanswered:
            raise CommandError("refused", "an earlier command is still on its way into the loop; try again")

    def save(self, path: Path, keep: int = 1) -> int:
        """Write the loop as it is between two ticks; return the tick that comes next.

        Parameters
        ----------
        path : Path
            Where to.
        keep : int
            The files that were there before move to `PATH.1` and so on, until there are so many.

        Raises
        ------
        CommandError, TimeoutError
            The loop cannot be asked now.
        ConfigError, OSError
            As `checkpoint.save`.
        """
        collector, loop = self._collector, self._collector.loop
        with self._lock:
            self.check_answered()
            number = collector.next_id()
            tick = int(collector.call(rt.SNAPSHOT, number=number)["tick"])
            copied, kept = loop.snapshot.copy(), loop.stimulation_kept.tobytes()
        checkpoint.save(path, collector.assembly, copied, tick, keep=keep)
        if collector.recorder is not None:  # from which a replay goes on behind a gap
            body = {"id": number, "path": str(path), "data": copied.tobytes(), "stimulation": kept}
            collector.recorder.add_message("checkpoints", body)
        return tick

    def restore(self, path: Path) -> Any:
        """Have the loop go on from a file; return the echo.

        Raises
        ------
        ConfigError
            As `checkpoint.read`.
        CommandError, TimeoutError
            The loop cannot be asked now.
        """
        found = checkpoint.read(path, self._collector.assembly)
        with self._lock:
            self.check_answered()
            return self._collector.call(rt.RESTORE, number=self._offer(found))

    def begin_from(self, found: checkpoint.Found) -> None:
        """Have the loop begin with a checkpoint: called before it runs, and taken before its first tick."""
        number = self._offer(found)
        self._collector.unanswered.add(number)  # until its echo comes, nobody else touches the copy
        self._collector.submit(rt.RESTORE, number=number)

    def _offer(self, found: checkpoint.Found) -> int:
        """Leave for the loop, and in the record, what it is to go on from; return the number that names it."""
        collector = self._collector
        collector.loop.snapshot[:] = found.data  # the loop reads it only when told to
        collector.decoder_sources.setdefault(found.decoder_version, f"checkpoint {found.path}")
        number = collector.next_id()
        if collector.recorder is not None:
            body = {"id": number, "path": str(found.path), "data": found.data.tobytes()}
            collector.recorder.add_message("checkpoints", body)
        return number

    # -- by the clock -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Write a checkpoint every so often until `stop` is set."""
        assert self._config is not None
        while not stop.wait(self._config.every_s):
            self.turn()

    def turn(self) -> None:
        """Write one; what goes wrong is said once, and tried again the next time."""
        assert self._config is not None
        try:
            tick = self.save(self._config.path, self._config.keep)
        except (CommandError, ConfigError, OSError, TimeoutError) as error:
            if self._collector.is_stopping:
                return
            if not self.fault:
                log.error("checkpoint %s could not be written: %s", self._config.path, error)
            self.fault = f"checkpoint {self._config.path} could not be written: {error}"
            return
        self.fault = ""
        self.count += 1
        self._last = (self._wall(), tick)
        self._on_written()

    def describe(self) -> dict[str, Any]:
        """Say what health says of the checkpoints; nothing where none are written by themselves."""
        if self._config is None:
            return {}
        return {
            "path": str(self._config.path),
            "count": self.count,
            "age_s": self._wall() - self._last[0] if self._last else None,
            "tick": self._last[1] if self._last else None,
            "fault": self.fault,
        }
