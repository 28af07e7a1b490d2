"""The source of a session and who looks after it, without a loop: what is wrong is told, and clocks are followed."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import MEMORY, session

from neuromod.adapters.base import Chunk
from neuromod.adapters.config import LslConfig
from neuromod.adapters.lsl import LslSource
from neuromod.adapters.memory import MemorySource
from neuromod.bridge import intake, keepers
from neuromod.bridge import loop_state as rt
from neuromod.bridge.intake import Intake
from neuromod.bridge.keepers import Feeder
from neuromod.bridge.ring import make_sample_ring
from neuromod.engine.errors import AdapterError


class Clocked(MemorySource):
    """A source whose clock drifts, and which ends with an error."""

    n_asked = 0

    def correction(self) -> tuple[float, float]:
        self.n_asked += 1
        return 0.001 * self.n_asked, 0.0001

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        if self.n_asked == 3:
            raise ZeroDivisionError("a fault of the plug-in")
        return super().read(1, timeout_s)


def test_the_clock_of_a_source_that_python_reads_is_followed_and_any_error_of_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keepers, "_CLOCK_EVERY_S", 0.0)
    source = Clocked(np.zeros((10, 2), np.float32), 1000.0)
    source.open()
    offsets_s: list[float] = []
    ends: list[Exception | None] = []

    def ignore(*_: Any) -> None:
        pass

    Feeder(
        source,
        make_sample_ring(2, 16),
        on_markers=ignore,
        on_lost=ignore,
        on_reconnect=ignore,
        on_end=ends.append,
        on_clock=lambda offset_s, _: offsets_s.append(offset_s),
    ).run(threading.Event())

    assert offsets_s == [0.001, 0.002, 0.003]
    assert [str(error) for error in ends] == ["a fault of the plug-in"]


def test_a_loop_that_never_pulls_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_FIRST_PULL_S", 0.0)
    waiting = Intake(session(MEMORY), LslSource(LslConfig(kind="lsl", name="x")))
    waiting.pulls = rt.SOURCE_LSL
    block = [{"shared": np.zeros(64, np.int64)}]
    waiting._collector = SimpleNamespace(loop=SimpleNamespace(block=block))  # type: ignore[assignment]

    with pytest.raises(AdapterError, match="stuck"):
        waiting.begin(threading.Event())
    stopped = threading.Event()
    stopped.set()
    waiting.begin(stopped)  # nor where it is to end anyway
