"""What Python does with the results of a loop: events of any content, and their ticks, whatever the pace."""

import numpy as np
import pytest
from harness import session

from neuromod.adapters.base import Marker
from neuromod.adapters.memory import MemorySource
from neuromod.bridge.replay import play
from neuromod.bridge.service import Daemon

pytestmark = pytest.mark.compiled_loop

SESSION = """
source = {kind = "lsl", name = "in memory here"}
encoder = {warmup_s = 0.5}
"""


def source(seconds: float, rate_hz: float, markers: list[Marker]) -> MemorySource:
    counts = np.random.default_rng(0).poisson(2.0, (int(seconds * rate_hz), 4))
    return MemorySource(counts, rate_hz, kind="features", markers=markers)


def run_to_the_end(feed: MemorySource, speed: float) -> Daemon:
    with Daemon(session(SESSION), source=feed, speed=speed) as daemon:
        for _ in range(600):
            if daemon.stopped.wait(0.05) or daemon.has_ended():
                break
        assert daemon.has_ended()
    return daemon


@pytest.mark.parametrize("value", [10**30, "\ud800", float("nan"), "x" * 100_000, "\x00"])
def test_no_value_of_a_marker_ends_the_session(value: str | float) -> None:
    feed = source(1.0, 100.0, [Marker(0.5, "odd", value), Marker(0.6, "usual", 7)])
    daemon = run_to_the_end(feed, speed=0.0)
    assert daemon.failure is None
    assert [event.name for event in daemon.collector.past_events] == ["odd", "usual"]


def test_markers_get_the_same_ticks_at_any_pace() -> None:
    markers = [Marker(0.37 + k, f"m{k}") for k in range(38)]
    markers.insert(20, Marker(19.4, "twin"))
    paced = run_to_the_end(source(40.0, 20.0, markers), speed=20.0)
    offline = play(session(SESSION), source(40.0, 20.0, markers))
    assert len(offline.events) == 39
    assert [(e.name, e.tick) for e in paced.collector.past_events] == [(e.name, e.tick) for e in offline.events]
