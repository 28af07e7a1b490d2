"""Puts the watchdogs of a session together from its parts, and acts on a loop that is stuck."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from neuromod.bridge import loop_state as rt
from neuromod.bridge import native
from neuromod.bridge.checkpoints import Checkpointer
from neuromod.bridge.collector import Collector
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.notify import Notifier
from neuromod.bridge.recorder import WARN_FREE_S
from neuromod.bridge.watchdog import Check, Clocks, Lasting, Peers, Standing, Watchdogs, disk_check

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 5.0
_SILENT = ("waiting", "stalled", "lost")


class Watch:
    """The watchdogs of a running session, and what they tell a service manager.

    Parameters
    ----------
    config : SessionConfig
        Its limits.
    collector : Collector
        The way to the loop and to who listens.
    checkpoints : Checkpointer
        Of the session.
    clock_of_source : callable
        Returns the correction of the source's clock and its uncertainty, in seconds.
    notifier : Notifier
        Hears that the loop goes round; never where it does not.
    on_stuck : callable, optional
        Called once where the loop stands still.
    """

    def __init__(
        self,
        config: SessionConfig,
        collector: Collector,
        checkpoints: Checkpointer,
        *,
        clock_of_source: Callable[[], tuple[float, float]],
        notifier: Notifier,
        on_stuck: Callable[[], None] | None = None,
    ) -> None:
        self._collector, self._notifier, self._on_stuck = collector, notifier, on_stuck
        limits = config.watchdog
        shared = collector.loop.block[0]["shared"]
        self._turns = Standing(
            limits.tick_s or math.inf,
            lambda: int(native.get_word(shared, rt.TURNS)),
            lambda lasted_s: f"the loop has not come round for {lasted_s:.1f} s: it is stuck in a library",
        )
        collector.heard = dict.fromkeys((*collector.peers, *limits.peers), 0)
        record = config.record
        checks: dict[str, Check] = {"tick": self._turns}
        if limits.source_s:
            checks["source"] = Lasting(
                limits.source_s,
                lambda: collector.state_name() in _SILENT,
                lambda lasted_s: f"nothing from the source for {lasted_s:.1f} s: it is {collector.state_name()}",
            )
        if limits.peer_s and collector.heard:
            checks["peers"] = Peers(limits.peer_s, collector.heard)
        checks["disk"] = disk_check(
            lambda: collector.recorder.status() if collector.recorder is not None else {"state": "off"},
            min_free_bytes=record.min_free_mb * 1e6 if record is not None else 0.0,
            warn_free_bytes=record.warn_free_mb * 1e6 if record is not None else 0.0,
            warn_free_s=WARN_FREE_S,
            write_s=limits.write_s,
            checkpoint_fault=lambda: checkpoints.fault,
        )
        checks["clock"] = Clocks(
            step_ms=limits.clock_step_ms,
            jump_ms=limits.clock_jump_ms,
            uncertainty_ms=limits.clock_uncertainty_ms,
            source=clock_of_source,
        )
        if limits.sample_age_s and config.source_content != "stimuli":  # which keep no clock
            checks["sample_age"] = Lasting(
                limits.sample_age_s,
                lambda: self._sample_age_s() > config.timing.late_ms / 1e3,
                lambda lasted_s: (
                    f"the newest sample is {1e3 * self._sample_age_s():.0f} ms old, "
                    f"beyond timing.late_ms for {lasted_s:.1f} s"
                ),
            )
        self.watchdogs = Watchdogs(
            checks,
            announce=self._announce,
            local_clock=collector.now,
            hold_s=limits.hold_s,
            on_turn=self._tell_manager,
        )
        self._next_ping = self._next_status = -math.inf

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        self.watchdogs.run(stop)

    def describe(self) -> dict[str, Any]:
        """Say what health says of the watchdogs."""
        return self.watchdogs.describe()

    def _sample_age_s(self) -> float:
        state = self._collector.state_name()
        return math.nan if state == "ended" else self._collector.sample_age_s(at_arrival=state not in _SILENT)

    def _announce(self, name: str, is_ok: bool, sentence: str) -> None:
        collector = self._collector
        if collector.is_stopping:
            return  # the loop is being ended
        now = collector.now()
        collector.events.add_event(f"watchdog.{name}", now, sentence, "daemon", now)
        if name == "tick" and not is_ok:
            log.critical("%s", sentence)
            if collector.recorder is not None:  # the event would wait for a tick
                collector.recorder.add_message("notes", {"t": now, "name": "watchdog.tick", "text": sentence})
            if self._on_stuck is not None:
                self._on_stuck()

    def _tell_manager(self) -> None:
        now = time.monotonic()
        if self._turns.has_moved and now >= self._next_ping:
            self._notifier.alive()
            self._next_ping = now + min(1.0, self._notifier.watchdog_s / 4.0)
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            wrong = [f"{name}: {w['says']}" for name, w in self.describe().items() if not w["ok"]]
            self._notifier.status(
                "; ".join([f"{self._collector.state_name()}, tick {self._collector.last_tick}", *wrong])
            )
