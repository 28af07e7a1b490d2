"""All that keeps a daemon up, in one place: watchdogs, checkpoints by the clock, and what its last life left."""

import logging
import threading
import time
from collections.abc import Callable

from neuromod.bridge.checkpoints import Checkpointer
from neuromod.bridge.collector import Collector
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.notify import Notifier
from neuromod.bridge.resume import LastLife, Life, find_checkpoint, tell_restart
from neuromod.bridge.watch import Watch

log = logging.getLogger(__name__)


class Supervision:
    """Of one daemon, which calls `begin`, `attach`, `threads` and `end` in this order.

    Parameters
    ----------
    config : SessionConfig
        Its session.
    notifier : Notifier, optional
        Tells a service manager how it is.
    last : LastLife, optional
        What a supervisor knows of the life before.
    on_stuck : callable, optional
        Called where the loop stands still; without it, that is only announced.

    Attributes
    ----------
    is_kept_up : bool
        Whether a service manager has started it, or a supervisor anew: then it waits for its source without end.
    """

    def __init__(
        self,
        config: SessionConfig,
        *,
        notifier: Notifier | None = None,
        last: LastLife | None = None,
        on_stuck: Callable[[], None] | None = None,
    ) -> None:
        self._config, self._notifier, self._on_stuck = config, notifier or Notifier(), on_stuck
        self._last = last
        # nobody would start it by hand once the stream is there
        self.is_kept_up = self._notifier.is_connected or last is not None
        self._life: Life | None = None
        self._watch: Watch | None = None
        self.checkpoints: Checkpointer | None = None

    @property
    def last_session(self) -> str:
        """Folder of the record that this life goes on from; empty where there is none."""
        return self._last.session if self._last is not None and not self._last.is_clean else ""

    def begin(self) -> None:
        """Take the place of the last life.

        Raises
        ------
        ConfigError
            Another daemon has it, or it cannot be written to.
        """
        if self._config.checkpoint is not None:
            self._life = Life(self._config.checkpoint.path, self._last)
            self._last = self._life.last

    def attach(self, collector: Collector, clock_of_source: Callable[[], tuple[float, float]]) -> Checkpointer:
        """Go on from the last life where there is one, before the loop runs; return the session's checkpoints."""
        config, life, last = self._config, self._life, self._last
        checkpoints = Checkpointer(collector, config.checkpoint, on_written=life.seen if life is not None else _nothing)
        if life is not None:
            life.begin(str(collector.recorder.folder) if collector.recorder is not None else "")
        found = None
        if config.checkpoint is not None:
            found = find_checkpoint(config.checkpoint, collector.assembly, last)
        if found is not None:
            checkpoints.begin_from(found)
        restarts = 0
        if last is not None and not last.is_clean:
            restarts = last.restarts
            sentence, value = tell_restart(last, found, time.time())
            log.warning("%s", sentence)
            now = collector.now()
            collector.events.add_event("daemon.restarted", now, value, "daemon", now)
        elif found is not None:
            log.warning("the session goes on from %s of tick %d", found.path, found.tick)
        watch = Watch(
            config,
            collector,
            checkpoints,
            clock_of_source=clock_of_source,
            notifier=self._notifier,
            on_stuck=self._on_stuck,
        )
        collector.more_health |= {
            "watchdogs": watch.describe,
            "checkpoints": checkpoints.describe,
            "restarts": lambda: restarts,
        }
        self._watch, self.checkpoints = watch, checkpoints
        return checkpoints

    def threads(self, stop: threading.Event) -> list[tuple[str, Callable[[], None]]]:
        """Return the names of the threads that are to run now, and what they do until `stop` is set."""
        assert self._watch is not None
        assert self.checkpoints is not None
        watch, checkpoints = self._watch, self.checkpoints
        found: list[tuple[str, Callable[[], None]]] = [("neuromod-watchdogs", lambda: watch.run(stop))]
        if self._config.checkpoint is not None:
            found.append(("neuromod-checkpoints", lambda: checkpoints.run(stop)))
        return found

    def end(self, failure: Exception | None) -> None:
        """Note how this life ends. Safe to call twice."""
        if self._life is not None:
            self._life.end("stopped" if failure is None else f"failed: {failure}", is_clean=failure is None)


def _nothing() -> None:
    pass
