"""Examples: each runs from top to bottom, asserts its claim, and writes its figures where it is told to."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from neuromod.engine import examples
from neuromod.engine.compiled import JIT_ENABLED

FIGURES = {
    "delayed_reward": ["delayed_reward.png", "delayed_reward_weights.png"],
    "firing_patterns": ["firing_patterns.png"],
    "models": ["models.png", "phase_plane.png"],
    "stdp_window": ["stdp_window.png"],
}


@pytest.fixture(autouse=True)
def _no_display() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.mark.skipif(not JIT_ENABLED, reason="examples take up to millions of ticks: minutes without compilation")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "delayed_reward" else name for name in FIGURES]
)
def test_an_example_holds_and_writes_its_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "figures")])
    runpy.run_module(f"neuromod.engine.examples.{name}", run_name="__main__")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == FIGURES[name]


def test_every_example_is_executed_here() -> None:
    assert examples.__file__ is not None
    assert {path.stem for path in Path(examples.__file__).parent.glob("*.py")} == {"__init__", *FIGURES}


@pytest.mark.parametrize("arguments", [["models"], ["ipykernel_launcher.py", "-f", "kernel.json"]])
def test_nothing_is_written_without_a_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(tmp_path)
    examples.keep(plt.figure(), "figure")
    assert not list(tmp_path.iterdir())
