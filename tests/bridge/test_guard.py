"""The guard: a stop file counts at once whatever the disk does, and no grant is lost on its way to the gate."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import wait_until

from neuromod.bridge import gate as g
from neuromod.bridge import loop_state as rt
from neuromod.bridge.guard import Guard, asleep
from neuromod.bridge.ledger import LedgerError

N = g.MAX_ELECTRODES + 1


class Loop:
    """Stands for the way to a loop: takes what there is room for, and keeps it."""

    def __init__(self) -> None:
        self.gate = g.make_gate(2)
        self.assembly = SimpleNamespace(stimulation=SimpleNamespace(gate=self.gate))
        self.is_full, self.is_held, self.halts = False, False, 0
        self.taken: list[tuple[int, float]] = []

    def submit(self, kind: int, *, word: int, values: list[float]) -> bool:
        assert kind == rt.GRANT
        if not self.is_full:
            self.taken.append((word, values[0]))
        return not self.is_full

    def apply(self) -> None:
        for index, granted in self.taken:
            g.grant(self.gate[0], index, granted)
        self.taken.clear()

    def hold(self, is_held: bool) -> None:
        self.is_held = is_held

    def halt(self) -> None:
        self.halts += 1


class Disk:
    """Stands for a ledger whose disk takes its time."""

    def __init__(self) -> None:
        self.granted_pc = np.zeros(N)
        self.next_pc = np.zeros(N)
        self.is_stuck, self.entered, self.fails = threading.Event(), threading.Event(), False

    def top_up(self, dose_pc: Any) -> None:
        self.entered.set()
        while self.is_stuck.is_set():
            pass
        if self.fails:
            raise LedgerError("the disk is full")
        self.granted_pc = self.next_pc.copy()


def guard(loop: Loop, stop_file: Path | None = None, disk: Disk | None = None, **options: Any) -> Guard:
    return Guard(loop, stop_file, disk, **options)  # type: ignore[arg-type]


def test_a_stop_file_counts_while_the_ledger_waits_for_its_disk(tmp_path: Path) -> None:
    loop, disk, stop, file = Loop(), Disk(), threading.Event(), tmp_path / "stop"
    watching = guard(loop, file, disk)
    disk.is_stuck.set()
    threads = [threading.Thread(target=run, args=(stop,)) for run in (watching.run, watching.run_ledger)]
    for thread in threads:
        thread.start()
    try:
        assert disk.entered.wait(5.0)
        file.touch()
        wait_until(lambda: loop.is_held and loop.halts == 1, "the stop file seen")
        file.unlink()
        wait_until(lambda: not loop.is_held, "the stop file gone")
    finally:
        stop.set()
        disk.is_stuck.clear()
        for thread in threads:
            thread.join(5.0)
    assert loop.halts == 1


def test_a_host_that_slept_stops_stimulation_once() -> None:
    loop, slept_s = Loop(), [40.0]  # it slept before the daemon started, which is nobody's matter
    watching = guard(loop, asleep=lambda: slept_s[0])
    watching.look()
    assert loop.halts == 0
    slept_s[0] += 3.0
    watching.look()
    slept_s[0] -= 1.0  # the readings of its two clocks were held apart
    watching.look()
    slept_s[0] += 1.0
    watching.look()
    assert loop.halts == 1


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system does not tell how long it was suspended")
def test_a_host_that_does_not_sleep_is_not_taken_for_one_that_does() -> None:
    readings = sorted(asleep() for _ in range(1000))
    assert readings[-1] - readings[500] < 0.01


def test_a_grant_for_which_there_was_no_room_is_sent_again() -> None:
    loop, disk = Loop(), Disk()
    watching = guard(loop, disk=disk)
    disk.next_pc[[0, g.TOTAL]] = 50.0
    loop.is_full = True
    watching.grant()
    assert not loop.taken
    loop.is_full = False
    watching.grant()
    assert loop.taken == [(0, 50.0), (g.TOTAL, 50.0)]
    loop.apply()
    np.testing.assert_array_equal(loop.gate[0]["granted_pc"], disk.granted_pc)
    watching.grant()
    assert not loop.taken


def test_a_loop_that_is_slow_to_take_a_grant_is_not_flooded_with_it() -> None:
    loop, disk = Loop(), Disk()
    watching = guard(loop, disk=disk)
    disk.next_pc[1] = 50.0
    for _ in range(50):
        watching.grant()
    assert loop.taken == [(1, 50.0)]
    disk.next_pc[1] = 60.0  # more is news
    watching.grant()
    assert loop.taken == [(1, 50.0), (1, 60.0)]


def test_what_was_granted_is_told_even_where_the_disk_fails_afterwards() -> None:
    loop, disk = Loop(), Disk()
    watching = guard(loop, disk=disk)
    disk.next_pc[1] = 50.0
    loop.is_full = True
    watching.grant()
    loop.is_full, disk.fails = False, True
    watching.grant()
    assert watching.fault == "the disk is full"
    assert loop.taken == [(1, 50.0)]
    disk.fails = False
    watching.grant()
    assert watching.fault == ""
