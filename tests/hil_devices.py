"""Devices that are wrong in known ways, and recordings, for the tests of hardware in the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.config import SessionConfig, for_recording
from neuromod.bridge.hil import MakeDevice, Options, Outcome, run
from neuromod.bridge.hil_config import Criteria
from neuromod.bridge.hil_device import TestDevice
from neuromod.bridge.offload import OffloadConfig
from neuromod.engine.errors import AdapterError, AdapterLostError
from neuromod.engine.fixed_registers import FIXED_BLOCK

SESSION = """
source = {kind = "lsl", name = "in place of the recording"}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[network.modulation.baseline]
dopamine = 0.4
"""
"""Features are stimuli; synapses learn, and dopamine moves them."""


def recording(folder: Path, n_ticks: int = 3000, seed: int = 0) -> tuple[SessionConfig, Path]:
    """Write stimuli of 1 ms each as a feature matrix; return the session that plays them, and the file."""
    rng = np.random.default_rng(seed)
    held = np.repeat(rng.uniform(0.0, 2.5, (n_ticks // 20 + 1, 16)), 20, axis=0)[:n_ticks]
    path = folder / f"stimuli{seed}.npy"
    np.save(path, held.astype(np.float32))
    session = folder / "session.toml"
    session.write_text(SESSION)
    return for_recording(path, session, bin_ms=1.0), path


def of_a_board(config: SessionConfig) -> SessionConfig:
    """Return the session with a board for its network."""
    publish = config.publish.model_copy(update={"spikes": "every", "stimuli": True})
    return config.model_copy(update={"offload": OffloadConfig(delay_ticks=2), "publish": publish})


def of(device: Any, **more: Any) -> MakeDevice:
    """Return what hands a device to a run."""
    return lambda state: TestDevice(device, **more)


def try_on(device: Any, config: SessionConfig, criteria: Criteria | None = None, **options: Any) -> Outcome:
    """Run a device on a recording as fast as it goes."""
    return run(config, of(device), criteria or Criteria(), Options(**options))[0]


def rows(outcome: Outcome) -> dict[str, str]:
    """Return the status of each criterion by its key."""
    return {judgement.key: judgement.status for judgement in outcome.judgements}


class ChangedTwin(TwinDevice):
    """A twin whose state is changed around certain ticks.

    Parameters
    ----------
    change : callable
        Gets the state after each tick, and its number.
    """

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        super().__init__()
        self._change = change

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Run the tick, then change the state; membranes are told as they are then."""
        super().submit(tick, stimuli, modulation)
        self._change(self.state[0], tick)
        last = self._answers[-1]
        self._answers[-1] = Answer(tick, last.spikes, self.state[0]["v"].astype(np.int32), round_trip_ns=1000)


def flip(name: str, index: tuple[int, ...], bit: int, at_tick: int) -> Callable[[Any, int], None]:
    """Flip one bit before tick `at_tick`, whenever the device comes by there."""

    def change(block: Any, tick: int) -> None:
        if tick == at_tick - 1:
            block[name][index] ^= 1 << bit

    return change


def once(change: Callable[[Any, int], None], at_tick: int) -> Callable[[Any, int], None]:
    """Change the state at that tick the first time alone."""
    times = [0]

    def first(block: Any, tick: int) -> None:
        if tick == at_tick and not times[0]:
            times[0] = 1
            change(block, tick)

    return first


def truncating(block: Any, tick: int) -> None:
    """Compute wrongly: the membrane of channel 5 loses its lowest bit above 9 mV."""
    if block["v"][5] > 9 << 16:
        block["v"][5] &= ~1


class LosingTwin(TwinDevice):
    """A twin of which every so many answers are lost on the way."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self._lost = 0

    @property
    def counts(self) -> dict[str, int]:
        """What was lost."""
        return {"lost": self._lost, "resent": self._lost}

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return answers, some of them lost."""
        answers = super().poll(timeout_s)
        lost = [a.tick % self._every == self._every - 1 for a in answers]
        self._lost += sum(lost)
        return [Answer(a.tick, 0, is_lost=True) if gone else a for a, gone in zip(answers, lost, strict=True)]


class UnpluggedTwin(TwinDevice):
    """A twin that is unplugged at a tick, and forgets all.

    Parameters
    ----------
    at_tick : int
        When.
    comes_back : bool
        Whether `open` finds it again.
    """

    def __init__(self, at_tick: int, *, comes_back: bool) -> None:
        super().__init__()
        self._at_tick, self._comes_back, self._is_gone = at_tick, comes_back, False

    def open(self) -> None:
        """Fail where it is gone for good."""
        if self._is_gone and not self._comes_back:
            raise AdapterError("no such device")
        super().open()

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Run the tick, until it is unplugged."""
        if tick == self._at_tick and not self._is_gone:
            self._is_gone = True
            self.state = np.zeros(1, FIXED_BLOCK)
            raise AdapterLostError("unplugged")
        super().submit(tick, stimuli, modulation)


class StuckTwin(TwinDevice):
    """A twin with a register whose lowest bit is stuck at 1; `load` says so, as a board's does, once it matters."""

    def load(self, state: NDArray[Any]) -> None:
        """Write, read back, compare."""
        super().load(state)
        if not state[0]["threshold"][4] & 1:
            raise AdapterError(
                f"{self.name} does not hold what was written: threshold[4] is 1 instead of 0; program it anew"
            )
