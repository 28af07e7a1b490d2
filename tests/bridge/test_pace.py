"""A recording at a pace: its pauses are as long as they were, unless its clock was set."""

from typing import Any

import numpy as np
import pytest
from harness import session
from numpy.typing import NDArray

from neuromod.adapters.memory import CLOCK_RESET_S, LONGEST_PAUSE_S, MemorySource
from neuromod.bridge.service import Daemon
from neuromod.bridge.wire import Flag

pytestmark = pytest.mark.compiled_loop

SESSION = """
source = {kind = "lsl", name = "in memory here"}
encoder = {warmup_s = 0.5}
"""
SPEED = 20.0


def played(step_s: float) -> NDArray[Any]:
    """Ticks of two seconds of recording, with a step of the clock in the middle, at twenty times true time."""
    stamps = np.arange(200) * 0.01
    stamps[100:] += step_s
    feed = MemorySource(np.ones((200, 2)), 100.0, kind="features", stamps=stamps)
    ticks: list[NDArray[Any]] = []
    with Daemon(session(SESSION), source=feed, speed=SPEED, on_ticks=lambda new: ticks.append(new.copy())) as daemon:
        for _ in range(600):
            if daemon.stopped.wait(0.05) or daemon.has_ended():
                break
    return np.concatenate(ticks)


def test_a_pause_lasts_as_long_as_it_did_and_fillers_go_on_meanwhile() -> None:
    ticks = played(step_s=30.0)
    live = ticks[(ticks["flags"] & Flag.FILLER) == 0]
    assert len(live) == 2000
    due, ticked = live["t_sample"], live["t_tick"]
    after = np.argmax(np.diff(due)) + 1
    assert due[after] - due[after - 1] == pytest.approx(30.0 / SPEED, abs=0.01)
    assert np.all(ticked >= due)
    assert ticked[after] - due[after] < 0.5  # a busy machine may be late
    assert (ticks["flags"] & Flag.FILLER).any()


@pytest.mark.parametrize("step_s", [LONGEST_PAUSE_S + 100.0, -CLOCK_RESET_S - 5.0])
def test_nobody_waits_for_a_clock_that_was_set(step_s: float) -> None:
    live = played(step_s)
    live = live[(live["flags"] & Flag.FILLER) == 0]
    assert len(live) == 2000
    # two seconds of recording take a tenth of a second; the bound leaves a loaded machine its time
    assert np.diff(live["t_tick"]).max() < 1.0
