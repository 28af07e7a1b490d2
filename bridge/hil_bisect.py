"""Finds the first tick, and the first register, at which a device leaves its reference.

A device that can be written and read is brought to the reference's state of some tick and run on from there. Where it
still equals the reference, the fault lies later; where it does not, earlier. Twenty runs find one tick of a million.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Device
from neuromod.bridge.hil_device import TestDevice
from neuromod.bridge.hil_reference import FixedReference
from neuromod.bridge.hil_trace import MADE_BY_TICKS, WordDifference, differing_words
from neuromod.engine.errors import AdapterError

Kind = Literal["found", "memory", "not reproduced", "intermittent", "impossible"]

_WINDOW = 4
_ANSWER_S = 2.0
_CHECKPOINT = 4096


@dataclasses.dataclass
class Bisection:
    """What a bisection came to.

    Attributes
    ----------
    kind : str
        found; memory: a register does not hold what is written to it; not reproduced; intermittent: it differs in some
        runs alone; impossible: the protocol cannot write and read the state.
    summary : str
        In a sentence.
    tick : int or None
        The first wrong one.
    words : list of WordDifference
        What it left, parameters first, then in the order in which a tick makes them.
    probes : int
        Runs that it took.
    repeats : bool or None
        Whether the same tick from the same state goes wrong again, as a wrong computation does, and a bit that flipped
        once does not.
    """

    kind: Kind
    summary: str
    tick: int | None = None
    words: list[WordDifference] = dataclasses.field(default_factory=list)
    probes: int = 0
    repeats: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """For report.json and the page."""
        return {
            "kind": self.kind, "summary": self.summary, "tick": self.tick, "probes": self.probes,
            "repeats": self.repeats,
            "words": [word.as_json() | {"text": word.describe()} for word in self.words[:64]],
        }  # fmt: skip


def bisect(
    device: TestDevice,
    start: NDArray[Any],
    stimuli: NDArray[np.int16],
    modulation: NDArray[np.int64],
    suspected: int,
    *,
    on_probe: Callable[[int, int], None] = lambda first, last: None,
) -> Bisection:
    """Find the first tick that a device computes wrongly.

    Parameters
    ----------
    device : TestDevice
        Open. Where it can be started afresh, it is before each run, so that what befell it once befalls it again.
    start : ndarray of FIXED_BLOCK, shape (1,)
        State before the first tick.
    stimuli : ndarray of int16, shape (n, 16)
    modulation : ndarray of int64, shape (n, 5)
        Of all ticks.
    suspected : int
        Ticks after which a difference was seen.
    on_probe : callable
        Gets the range that is left, before each run.
    """
    search = _Search(device, start, stimuli, modulation, on_probe)
    try:
        return search.run(max(1, min(suspected, len(stimuli))))
    except _NotHeldError as error:
        return Bisection("memory", f"A register does not hold what is written to it: {error}", probes=search.n_probes)
    except AdapterError as error:
        return Bisection("impossible", f"The device cannot be bisected: {error}", probes=search.n_probes)


class _NotHeldError(Exception):
    """What was written reads back otherwise."""


class _Search:
    def __init__(
        self,
        device: TestDevice,
        start: NDArray[Any],
        stimuli: NDArray[np.int16],
        modulation: NDArray[np.int64],
        on_probe: Callable[[int, int], None],
    ) -> None:
        self._device, self._start, self._on_probe = device, start, on_probe
        self._stimuli, self._modulation = stimuli, modulation
        self._known = {0: start}
        self.n_probes = 0

    def run(self, suspected: int) -> Bisection:
        n = len(self._stimuli)
        last = suspected
        if not self._probe(0, last):
            last = n
            if suspected == n or not self._probe(0, last):
                said = (
                    "The difference does not come again: from the start, the device now equals the reference after "
                    f"{n:,} ticks. It was no fault of registers or computation that repeats itself; look at the link, "
                    "the power, and upsets of memory."
                )
                return Bisection("not reproduced", said, probes=self.n_probes)
        for is_checkpointed in (True, False):
            found = self._narrow(last, is_checkpointed)
            if found is not None:
                return found
        said = (
            f"The device differs within the first {last:,} ticks in some runs, and in others not: the same ticks from "
            "the same state do not always give the same. Look at timing closure, clock and power."
        )
        return Bisection("intermittent", said, probes=self.n_probes)

    def _narrow(self, last: int, is_checkpointed: bool) -> Bisection | None:
        """Halve the range until one tick is left; None where that tick alone is right after all."""
        low, high = 0, last
        while high - low > 1:
            self._on_probe(low, high)
            middle = (low + high) // 2
            if self._probe(low if is_checkpointed else 0, middle):
                high = middle
            else:
                low = middle
        words = self._probe(low if is_checkpointed else 0, high)
        if not words:
            return None
        repeats = bool(self._probe(low, high, afresh=False))
        first = words[0]
        if repeats:
            said = (
                f"Tick {low:,} is the first to go wrong, and from the same state it does so again: a wrong computation"
            )
        else:
            said = (
                f"A register was changed once, before tick {low + 1:,}: from the same state, the tick before goes right"
            )
        never = ", and no tick ever writes this one" if first.register.name not in MADE_BY_TICKS else ""
        return Bisection("found", f"{said}{never}. {first.describe()}.", low, words, self.n_probes, repeats)

    def _probe(self, first: int, last: int, *, afresh: bool = True) -> list[WordDifference]:
        """Run the device from the reference's state before tick `first` to before `last`; return what differs."""
        self.n_probes += 1
        if afresh and self._device.restart is not None:
            self._device.restart()
        device = self._device.device
        state = self._state_at(first)
        try:
            device.load(state)
        except AdapterError as error:
            if "does not hold" in str(error):
                raise _NotHeldError(str(error)) from None
            raise
        self._drive(device, state, first, last)
        return differing_words(self._state_at(last), device.read_state())

    def _drive(self, device: Device, state: NDArray[Any], first: int, last: int) -> None:
        held = FixedReference.modulation_of(state)
        answered = first
        for k in range(first, last):
            words = self._modulation[k]
            changed = None if np.array_equal(words, held) else words
            held = words
            device.submit(k, self._stimuli[k], changed)
            while answered <= k and (k - answered >= _WINDOW or k == last - 1):
                answers = device.poll(_ANSWER_S)
                if not answers:
                    raise AdapterError(f"no answer to tick {answered} within {_ANSWER_S:g} s")
                answered = answers[-1].tick + 1

    def _state_at(self, n_ticks: int) -> NDArray[Any]:
        """The reference's state before tick `n_ticks`."""
        nearest = max(k for k in self._known if k <= n_ticks)
        state = self._known[nearest]
        while nearest < n_ticks:
            until = min(n_ticks, (nearest // _CHECKPOINT + 1) * _CHECKPOINT)
            state = FixedReference.advanced(state, self._stimuli[nearest:until], self._modulation[nearest:until])
            nearest = until
            if nearest % _CHECKPOINT == 0:
                self._known[nearest] = state
        return state
