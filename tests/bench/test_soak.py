"""The soak run in short: faults of every kind on the whole service, and a judge that is shown to fail."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.soak import PROGRAM, soak
from bench.soak_judge import Evidence, Recorded, check_the_judge, judge, n_changes
from bench.soak_workers import COMMAND, PUSHED, SEEN, SPIKES, STIMULATION
from rich.console import Console

from neuromod.bridge.wire import Flag

N, BEGIN = 4000, 100.0
STOPPED = slice(1500, 1600)


def evidence() -> Evidence:
    """Four seconds of a daemon that does everything right: one stall of the source, and a train every 100 ms."""
    stamps = BEGIN + np.arange(N) * 1e-3
    pushed = np.zeros(N, PUSHED)
    pushed["stamp"], pushed["index"] = stamps, np.arange(N)
    flags = np.zeros(N, np.uint32)
    flags[STOPPED.stop] = Flag.DISCONTINUITY
    came = np.ones(N, np.bool_)
    came[STOPPED] = False
    seen = np.zeros(2 * int(came.sum()), SEEN)
    spikes, commands = seen[: int(came.sum())], seen[int(came.sum()) :]
    for rows, kind in ((spikes, SPIKES), (commands, COMMAND)):
        rows["kind"], rows["flags"] = kind, flags[came]
        rows["seq"] = rows["tick"] = np.arange(len(rows))
        rows["t_sample"], rows["t"] = stamps[came], stamps[came] + 2e-4
    commands["flags"][commands["flags"] != 0] |= np.uint32(Flag.INHIBITED)
    trains = np.zeros(30, SEEN)
    trains["kind"], trains["what"], trains["id"] = STIMULATION, 1, np.arange(30)
    trains["t"] = BEGIN + 0.1 * np.arange(30) + 0.05
    trains["expires"] = trains["t"] + 0.1
    pulses = [
        {
            "start_ns": int(1e9 * (float(train["t"]) + 1e-3)) + 10_000_000 * index,
            "train": int(train["id"]),
            "index": index,
            "electrode": 0,
            "amplitude_ua": PROGRAM["amplitude_ua"],
            "phase_us": PROGRAM["phase_us"],
            "amplitude2_ua": -PROGRAM["amplitude_ua"],
            "phase2_us": PROGRAM["phase_us"],
        }
        for train in trains
        for index in range(3)
    ]
    recorded = Recorded("s", spikes["t"], spikes["tick"], spikes["t_sample"], spikes["flags"], "properly", ())
    return Evidence([pushed], np.concatenate([seen, trains]), [recorded], [(BEGIN - 1, BEGIN + 9)], pulses, PROGRAM)


def test_a_run_without_fault_is_found_without_fault() -> None:
    verdict = judge(evidence())
    assert (verdict.unaccounted, verdict.unsafe) == ([], [])
    assert verdict.counts["in_ticks"] == N - 100
    assert verdict.counts["in_flagged_gaps"] == 100
    assert verdict.counts["pulses"] == 90


def test_the_judge_takes_notice_of_every_change_that_must_not_pass() -> None:
    assert check_the_judge(evidence()) == []
    assert n_changes() >= 10


def test_samples_in_a_gap_that_nobody_flagged_are_unaccounted_for() -> None:
    found = evidence()
    seen = found.seen.copy()
    seen["flags"] = 0
    calm = replace(found, seen=seen, recorded=[replace(found.recorded[0], flags=np.zeros(N - 100, np.uint32))])
    assert judge(calm).counts["unaccounted"] == 100


def test_samples_between_two_lives_of_the_daemon_came_while_it_was_down() -> None:
    found = evidence()
    killed, back = BEGIN + 2.0, BEGIN + 3.0

    def alive(t: Any) -> Any:
        return (t < killed) | (t > back)

    record = found.recorded[0]
    halves = [
        replace(record, **{name: getattr(record, name)[part] for name in ("t", "tick", "t_sample", "flags")})
        for part in (record.t < killed, record.t > back)
    ]
    cut = replace(
        found,
        seen=found.seen[alive(found.seen["t"])],
        recorded=[replace(halves[0], ended="killed"), halves[1]],
        lives=[(BEGIN - 1, killed), (killed + 0.1, BEGIN + 9)],
        pulses=[],
    )
    verdict = judge(cut)
    assert verdict.unaccounted == []
    assert verdict.counts["while_down"] == pytest.approx(1000, abs=2)
    # one that stopped working two seconds before it was killed owes what came until a second before
    idle = replace(cut, lives=[(BEGIN - 1, killed + 0.9), (back, BEGIN + 9)])
    assert judge(idle).counts["unaccounted"] == 0
    idle = replace(cut, lives=[(BEGIN - 1, killed + 1.0 + 0.5), (back + 0.6, BEGIN + 9)])
    assert judge(replace(idle, seen=idle.seen[idle.seen["t"] < killed])).counts["unaccounted"] > 400


@pytest.mark.slow
@pytest.mark.compiled_loop
@pytest.mark.timeout(900)
def test_the_service_comes_through_a_short_soak(tmp_path: Path) -> None:
    result = soak(2.0, 7, tmp_path, Console(quiet=True), pause_s=(0.5, 1.5))
    assert result["complaints"] == []
    assert result["counts"]["pushed"] > 100_000
    assert len({fault["fault"] for fault in result["faults"]}) >= 8
