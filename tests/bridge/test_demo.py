"""The demonstration, as a newcomer runs it: three processes, a true LSL stream, and exit code 0 only without loss."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromod.bridge.demo import _Live, _summarise
from neuromod.bridge.listener import HEARD

pytestmark = pytest.mark.compiled_loop

NEUROMOD = [sys.executable, "-c", "from neuromod.bridge.cli import main; main()"]


def run_demo(*options: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run([*NEUROMOD, "demo", "--json", *options], capture_output=True, text=True, timeout=240)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_demo_runs_without_loss_and_agrees_with_its_offline_replay() -> None:
    code, summary, stderr = run_demo("--seconds", "4")
    assert code == 0, stderr
    assert summary["ok"] is True
    assert summary["ticks"] >= 3900
    assert summary["samples_lost"] == summary["messages_lost"] == 0
    assert summary["replay_identical"] is True
    assert min(summary["spikes"][:14]) > 0
    assert 0 < summary["latency_us"]["p50"] <= summary["latency_us"]["p99"] <= summary["latency_us"]["max"]


@pytest.mark.parametrize("mode", ["sorted", pytest.param("features", marks=pytest.mark.long)])
def test_every_mode_runs_without_loss(mode: str) -> None:
    code, summary, stderr = run_demo("--mode", mode, "--seconds", "3")
    assert code == 0, stderr
    assert summary["replay_identical"] is True
    assert sum(summary["spikes"][:14]) > 0
    units = summary["units"]
    assert bool(units) == (mode == "sorted")
    if units:
        assert len(units["ids"]) == 14
        # all of the recording's 3 s were played, the last part of it after the daemon was paused
        assert 0.7 * summary["spikes_in_recording"] < units["spikes"] <= 1.1 * summary["spikes_in_recording"]


def test_demo_plays_the_users_own_recording(recordings: Path) -> None:
    path = recordings / "openephys-binary-32ch"
    code, summary, stderr = run_demo("--recording", str(path), "--seconds", "5")
    assert code == 0, stderr
    assert summary["samples_received"] == 49_408
    assert summary["replay_identical"] is True


def test_demo_plays_features(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(3.0, (500, 20)).astype(np.float32)
    np.save(tmp_path / "counts.npy", counts)
    code, summary, stderr = run_demo("--recording", str(tmp_path / "counts.npy"), "--bin-ms", "10", "--seconds", "3")
    assert code == 0, stderr
    assert summary["ticks"] >= 2800
    assert summary["replay_identical"] is True


def test_a_recording_that_is_not_there_is_one_sentence_and_code_2() -> None:
    code, summary, stderr = run_demo("--recording", "/nowhere/at/all.ns5")
    assert code == 2
    assert summary == {}
    assert "/nowhere/at/all.ns5" in stderr
    assert "Traceback" not in stderr


def heard(n: int) -> np.ndarray[Any, Any]:
    messages = np.zeros(n, HEARD)
    messages["seq"] = messages["tick"] = np.arange(n)
    messages["t_arrival"] = 1e-4
    return messages


@pytest.mark.parametrize(
    "fault", ["none", "message lost", "first message lost", "sample lost", "other spikes", "daemon failed", "overflow"]
)
def test_any_loss_spoils_the_verdict(fault: str) -> None:
    messages = heard(100)
    counters, code = {"samples_lost": 7, "ticks_overflow": 0}, 0
    offline_ticks, offline_spikes = messages["tick"].copy(), messages["spikes"].copy()
    match fault:
        case "message lost":
            messages = np.delete(messages, 50)
        case "first message lost":
            messages = messages[1:]
        case "sample lost":
            counters["samples_lost"] += 1
        case "other spikes":
            offline_spikes[3] = 1
        case "daemon failed":
            code = 1
        case "overflow":
            counters["ticks_overflow"] = 1
    live = _Live(messages, {"counters": counters}, code)
    summary = _summarise(live, messages, offline_ticks, offline_spikes, {"samples_lost": 7})
    assert summary["ok"] is (fault == "none")
