"""Yoked trains: what another session delivered comes on the electrode of the same name."""

from pathlib import Path

import numpy as np
import pytest

from neuromod.adapters.base import StreamInfo
from neuromod.bridge.config import parse
from neuromod.bridge.gate import DECISION
from neuromod.bridge.session import find_sessions, start_session
from neuromod.bridge.yoked import yoked_trains
from neuromod.engine.errors import ConfigError

INFO = StreamInfo("s", "signal", 1, 1000.0, ("a",), ("uV",))


def electrode(name: str) -> str:
    return f'{{name = "{name}", material = "pt", area_um2 = 2000.0, impedance_kohm = 10.0}}'


def recorded(folder: Path, names: list[str], sent: list[tuple[int, int, int]]) -> Path:
    """Record a session whose decisions are (tick, electrode, delivered)."""
    toml = (
        'source = {kind = "lsl", name = "s"}\n[stimulation]\nelectrodes = [' + ", ".join(map(electrode, names)) + "]\n"
    )
    recorder = start_session(
        folder, parse(toml), records={"decisions": DECISION}, info=INFO,
        block_ms=1.0, ticks_per_block=1, built_from="0", local_clock=0.0,
    )  # fmt: skip
    decisions = np.zeros(len(sent), DECISION)
    for row, (tick, number, delivered) in zip(decisions, sent, strict=True):
        row["tick"], row["electrode"], row["delivered"], row["pulses"] = tick, number, delivered, 1
    assert recorder.add("decisions", decisions)
    recorder.close()
    return find_sessions(folder)[-1]


def test_trains_go_to_the_electrode_of_the_same_name(tmp_path: Path) -> None:
    folder = recorded(tmp_path, ["a", "b", "c"], [(9, 2, 1), (4, 0, 1), (5, 1, 0), (9, 0, 1)])
    trains = yoked_trains(folder, ["c", "x", "a"])
    # b was never delivered to, and need not be here
    assert trains[["tick", "electrode"]].tolist() == [(4, 2), (9, 0), (9, 2)]


def test_a_train_on_an_electrode_that_is_not_here_is_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, ["a", "b"], [(4, 0, 1), (5, 1, 1)])
    with pytest.raises(ConfigError, match="electrode b, and this session has a, c"):
        yoked_trains(folder, ["a", "c"])


def test_a_number_that_the_other_session_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, ["a"], [(4, 7, 1)])
    with pytest.raises(ConfigError, match="number 7"):
        yoked_trains(folder, ["a"])


def test_a_session_that_delivered_nothing_is_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, ["a"], [(4, 0, 0)])
    with pytest.raises(ConfigError, match="delivered no train"):
        yoked_trains(folder, ["a"])
