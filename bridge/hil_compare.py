"""Drives a device and its reference with the same ticks, and compares all that comes back, tick by tick.

Nothing here knows where ticks come from or at what pace: `Comparison` is given them, one or many at a time, and keeps
what a report needs. A tick of a run is numbered from 0, whatever its number in the loop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer, Device
from neuromod.bridge.hil_reference import FixedReference, Reference
from neuromod.bridge.hil_trace import Divergence, Ring, Snapshot, Trace, differing_words
from neuromod.engine.errors import AdapterError, AdapterLostError

BEFORE, AFTER = 40, 24
"""Ticks around the first divergence that are kept."""

_ANSWER_S = 2.0  # a device that says nothing for so long is taken as gone; it should have said `is_lost` before
_CHECKPOINT, _COMPARE_EVERY = 256, 256
_COUNTS_EVERY = 100  # ticks between looks at the counts of the link
_MOST_RETURNS = 20  # a device that goes and comes back more often is not worth waiting for


class Inputs(NamedTuple):
    """Ticks of the loop, in order."""

    loop_ticks: NDArray[np.int64]
    stimuli: NDArray[np.float32]
    """Shape (n, 16)."""
    modulation: NDArray[np.int64]
    """Shape (n, 5), as words of their registers."""
    float_spikes: NDArray[np.uint16] | None
    """What the loop's own network did; None where that is not known."""


@dataclass
class Rules:
    """How a run is driven."""

    window: int = 1
    """Ticks that may be under way at once."""
    state_every: int = 0
    """Ticks between comparisons of the whole state; 0 for one at the end."""
    keep_inputs: bool = False
    """Keep stimuli and modulation of the whole run, for bisection."""
    keep_v: bool = False
    """Keep membranes of the whole run, for a golden trace."""
    reconnect_s: float = 5.0
    """How long a device that is gone is waited for."""
    clock: Callable[[], float] = field(default=time.perf_counter)


class Comparison:
    """Device and reference, side by side.

    Parameters
    ----------
    reference : Reference
        What the device has to equal; at its start.
    device : Device
        Open.
    rules : Rules
        How to drive it.
    """

    def __init__(self, reference: Reference, device: Device, rules: Rules) -> None:
        self.reference, self.device, self.rules = reference, device, rules
        self.trace = Trace()
        self.ring = Ring(reference.stimuli_type)
        self.n_submitted = self.n_answered = self.n_compared = 0
        self.is_over = False
        """The device is gone for good: further ticks would tell nothing."""
        self._batch_state: NDArray[Any] | None = None
        self._batch_first = 0
        self._modulation: NDArray[np.int64] | None = None
        self._reads_state = isinstance(reference, FixedReference)
        self._n_returns = 0
        self._next_counts = 0
        self._last_counts: dict[str, int] = {}
        self.wants_state = False
        """The first divergence was just met: the whole state, read soon, tells most of it."""
        self._silent_since = 0.0

    def start(self) -> None:
        """Bring the device to the reference's state, and see whether it can be read back.

        Raises
        ------
        AdapterError
            If the device does not take it.
        """
        if isinstance(self.reference, FixedReference):
            self.device.load(self.reference.state)
            self._modulation = self.reference.modulation
            try:
                state = self.device.read_state()
            except AdapterLostError:
                raise
            except AdapterError as error:
                self._reads_state = False
                self.trace.why_no_state = str(error)
            else:
                self._compare_state(state)
        else:
            self.trace.why_no_state = "a daemon's network is compared by its spikes"
        self._last_counts = dict(self.device.counts)
        self.trace.first_counts = dict(self._last_counts)

    # -- driving ------------------------------------------------------------------------------------------------------

    def take(self, inputs: Inputs) -> None:
        """Run ticks as fast as the device goes, with at most `rules.window` of them under way."""
        n = len(inputs.loop_ticks)
        first = 0
        while first < n and not self.is_over:
            last = min(n, first + self.ring.length // 2)
            if self.rules.state_every:
                last = min(last, first + self.rules.state_every - self.n_submitted % self.rules.state_every)
            self._take_part(Inputs(*(None if part is None else part[first:last] for part in inputs)))  # type: ignore[arg-type]
            first = last
            due = self.rules.state_every and self.n_submitted % self.rules.state_every == 0
            if (due or self.wants_state) and not self.is_over:
                self.settle()

    def _take_part(self, inputs: Inputs) -> None:
        begun = self.n_submitted
        self._prepare(inputs)
        for k in range(begun, begun + len(inputs.loop_ticks)):
            while self.n_submitted - self.n_answered >= self.rules.window and not self.is_over:
                self.collect(_ANSWER_S)
            if self.is_over:
                return
            self.submit(k)
            self.collect(0.0)
        self.drain()

    def take_one(self, inputs: Inputs) -> None:
        """Submit one tick at once, and run the reference while the device is at it; answers are not waited for."""
        first = self.n_submitted
        at = slice(first % self.ring.length, first % self.ring.length + 1)
        words = self._keep_inputs(inputs, at)
        self._keep_state(first)
        self.submit(first)
        self._run_reference(words, inputs.modulation, at)

    def _prepare(self, inputs: Inputs) -> None:
        """Run the reference over ticks that are to be submitted next, and keep both."""
        first = self.n_submitted
        at = self.ring.rows(first, first + len(inputs.loop_ticks))
        words = self._keep_inputs(inputs, at)
        self._keep_state(first)
        self._run_reference(words, inputs.modulation, at)

    def _keep_state(self, first: int) -> None:
        """Keep the reference's state before tick `first`, now and then: a device that comes back is led on from it."""
        if self._batch_state is None or first - self._batch_first >= _CHECKPOINT:
            self._batch_state, self._batch_first = self.reference.copy_state(), first
            if self._batch_state is not None:
                self.trace.add_weights(first, self._batch_state[0]["weights"])

    def _run_reference(self, words: NDArray[Any], modulation: NDArray[np.int64], at: slice | NDArray[np.int64]) -> None:
        if isinstance(self.reference, FixedReference):
            self.trace.saturation.add(self.reference.state, words, modulation)
        self.ring.reference_spikes[at], self.ring.reference_v[at] = self.reference.run(words, modulation)

    def _keep_inputs(self, inputs: Inputs, at: slice | NDArray[np.int64]) -> NDArray[Any]:
        words = self.reference.words(inputs.stimuli)
        ring = self.ring
        ring.loop_tick[at], ring.stimuli[at], ring.modulation[at] = inputs.loop_ticks, words, inputs.modulation
        ring.has_float[at] = inputs.float_spikes is not None
        if inputs.float_spikes is not None:
            ring.float_spikes[at] = inputs.float_spikes
        self.trace.add_inputs(words, inputs.modulation, keep=self.rules.keep_inputs)
        return words

    def submit(self, k: int) -> None:
        """Hand tick `k`, whose inputs are in the ring, to the device."""
        at = k % self.ring.length
        modulation = self.ring.modulation[at]
        changed = None
        if self._modulation is not None and not np.array_equal(modulation, self._modulation):
            changed = self._modulation = modulation.copy()
        self.ring.submitted_at[at] = self.rules.clock()
        self.n_submitted = k + 1
        try:
            self.device.submit(k, self.ring.stimuli[at], changed)
        except AdapterLostError as error:
            self._return(str(error))

    def collect(self, timeout_s: float) -> None:
        """Take the answers that have come; wait for the first one at most so long."""
        try:
            answers = self.device.poll(timeout_s)
        except AdapterLostError as error:
            self._return(str(error))
            return
        now = self.rules.clock()
        if answers:
            self._silent_since = now
            self._place(answers, now)
        elif self.n_answered < self.n_submitted:
            oldest = max(float(self.ring.submitted_at[self.n_answered % self.ring.length]), self._silent_since)
            if now - oldest > _ANSWER_S:
                self._return(f"no answer to tick {self.n_answered} within {_ANSWER_S:g} s")

    def drain(self) -> None:
        """Wait for the answers that are under way."""
        while self.n_answered < self.n_submitted and not self.is_over:
            self.collect(_ANSWER_S)

    def settle(self) -> None:
        """Wait for all answers, then compare the whole state where the device tells it."""
        self.drain()
        self.compare()
        if self._reads_state and not self.is_over and self.n_submitted > 0:
            try:
                self._compare_state(self.device.read_state())
            except AdapterLostError as error:
                self._return(str(error))
            except AdapterError as error:
                self.trace.events.append((self.n_answered, f"the state could not be read: {error}"))
                self.trace.unread_states += 1
        self.wants_state = False

    def finish(self) -> Trace:
        """Take what is still under way, compare the last state, and return what was found."""
        self.settle()
        self._look_at_counts(always=True)
        if (state := self.reference.copy_state()) is not None:
            self.trace.add_weights(self.n_submitted, state[0]["weights"])
        if self.trace.divergence is not None and self.trace.divergence.n_after < AFTER:
            self._keep_context()
        self.trace.n_submitted = self.n_submitted
        return self.trace

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _place(self, answers: list[Answer], now: float) -> None:
        ring = self.ring
        for answer in answers:
            if answer.tick != self.n_answered:
                if not self.n_answered < answer.tick < self.n_submitted:
                    self.trace.stray_answers += 1
                    continue
                self._lose(answer.tick)
            at = answer.tick % ring.length
            ring.device_spikes[at] = answer.spikes
            ring.is_lost[at], ring.is_repaired[at] = answer.is_lost, answer.is_repaired
            ring.round_trip_ns[at], ring.clocks[at], ring.answered_at[at] = answer.round_trip_ns, answer.clocks, now
            if answer.v is not None and not answer.is_lost:
                ring.device_v[at], ring.v_mask[at] = answer.v, answer.v_mask
            else:
                ring.v_mask[at] = 0
            self.n_answered = answer.tick + 1
        if self.n_answered >= self._next_counts or any(a.is_lost or a.is_repaired for a in answers):
            self._look_at_counts()
        if self.n_answered - self.n_compared >= _COMPARE_EVERY:
            self.compare()

    def _lose(self, until: int) -> None:
        """Take the answers before tick `until` as lost."""
        at = np.arange(self.n_answered, until) % self.ring.length
        self.ring.is_lost[at], self.ring.is_repaired[at], self.ring.v_mask[at] = True, False, 0
        self.ring.round_trip_ns[at], self.ring.answered_at[at] = 0, np.nan
        self.n_answered = until

    def compare(self) -> None:
        """Compare the ticks that were answered since the last time."""
        first, last = self.n_compared, self.n_answered
        if last == first:
            return
        wrong = self.trace.add_ticks(self.ring, first, last, keep_v=self.rules.keep_v)
        self.n_compared = last
        if self.trace.divergence is None and wrong is not None:
            kind, tick = wrong
            self.trace.divergence = Divergence(
                kind=kind, tick=tick, loop_tick=int(self.ring.loop_tick[tick % self.ring.length])
            )
            self.wants_state = self._reads_state
            self._keep_context()
        elif self.trace.divergence is not None and self.trace.divergence.n_after < AFTER:
            self._keep_context()

    def _keep_context(self) -> None:
        divergence = self.trace.divergence
        assert divergence is not None
        first = max(0, divergence.tick - BEFORE, self.n_answered - self.ring.length // 2)
        last = min(self.n_compared, divergence.tick + AFTER)
        divergence.keep(self.ring, first, last)

    def _compare_state(self, state: NDArray[Any]) -> None:
        assert isinstance(self.reference, FixedReference)
        words = differing_words(self.reference.state, state)
        snapshot = Snapshot(self.n_submitted, self.reference.state.copy(), state.copy(), words)
        self.trace.add_snapshot(snapshot)
        if words and self.trace.divergence is None:
            last = max(0, self.n_submitted - 1)
            self.trace.divergence = Divergence("state", last, int(self.ring.loop_tick[last % self.ring.length]))
            if self.n_submitted:
                self._keep_context()
        if words and self.trace.divergence is not None and self.trace.divergence.snapshot is None:
            self.trace.divergence.snapshot = snapshot

    def _look_at_counts(self, *, always: bool = False) -> None:
        self._next_counts = self.n_answered + _COUNTS_EVERY
        counts = dict(self.device.counts)
        if counts != self._last_counts or always:
            self._last_counts = counts
            self.trace.counts.append((self.n_answered, counts))

    # -- a device that goes away --------------------------------------------------------------------------------------

    def _return(self, why: str) -> None:
        """Give up what is under way, reach the device anew, and bring it to where the reference is."""
        trace = self.trace
        trace.events.append((self.n_answered, why))
        self._lose(self.n_submitted)
        self.compare()
        self._n_returns += 1
        trace.returns += 1
        deadline = time.monotonic() + self.rules.reconnect_s
        while self._n_returns <= _MOST_RETURNS:
            self.device.close()
            try:
                self.device.open()
                if isinstance(self.reference, FixedReference):
                    at = self._state_before(self.n_submitted)
                    self.device.load(at)
                    self._modulation = FixedReference.modulation_of(at)
            except AdapterError as error:
                if time.monotonic() > deadline:
                    trace.events.append((self.n_answered, f"it did not come back: {error}"))
                    break
                time.sleep(0.05)  # a port that is plugged in again takes its time
            else:
                trace.events.append((self.n_answered, "reached anew, and brought to the reference's state"))
                self._silent_since = self.rules.clock()
                return
        self.is_over = True
        trace.is_device_gone = True

    def _state_before(self, k: int) -> NDArray[Any]:
        """The reference's state before tick `k` of the batch at hand."""
        assert isinstance(self.reference, FixedReference)
        assert self._batch_state is not None
        at = np.arange(self._batch_first, k) % self.ring.length
        return self.reference.advanced(self._batch_state, self.ring.stimuli[at], self.ring.modulation[at])
