"""The way from samples to ticks once more, slow and obvious: one sample, one block, one tick at a time.

Samples are laid on the grid, gaps filled in, the grid cut into blocks, a block turned into stimuli by a function of its
samples (their mean, where nothing else is given), and the network stepped.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.wire import Flag
from neuromod.engine.layout import LIVE
from neuromod.engine.network import SpikingNetwork

Row = NDArray[np.float32]

QUEUE_LENGTH = 1024
FOLLOW_S = 2.0


@dataclass
class NaiveTick:
    tick: int
    sample: int
    t_sample: float
    flags: Flag
    spikes: int
    stimuli: Row
    membrane: Row
    modulators: Row
    modulation: tuple[float, ...]
    step_ms: float


def modulation_of(network: SpikingNetwork) -> tuple[tuple[float, ...], float]:
    """What levels and parameters come to in the next tick: four gains and the learning factor; and the step in ms."""
    live = dict(zip(LIVE, network.state[0]["live"].tolist(), strict=True))
    m, levels = network.config.modulation, network.modulators
    step_ms = network.dt_ms * levels.tempo
    learns = network.config.learning.rule == "reward" and network.state[0]["learning"] == 1
    return (
        live["input_gain"]
        * (1 + m.acetylcholine_input * levels.acetylcholine)
        * (1 + m.dopamine_input * levels.dopamine),
        live["recurrent_gain"] * (1 - m.acetylcholine_recurrent * levels.acetylcholine),
        1 + m.cortisol_threshold * levels.cortisol,
        live["inhibition_strength_mv"] * (1 + m.cortisol_inhibition * levels.cortisol),
        live["learning_rate_per_s"] * levels.dopamine * (step_ms / 1000.0) if learns else 0.0,
    ), step_ms


def mean_of(block: Sequence[Row]) -> Row:
    """Mean of each channel as a stimulus; channels that the stream does not have get 0."""
    stimuli = np.zeros(16, np.float32)
    for c in range(len(block[0])):
        stimuli[c] = sum(float(sample[c]) for sample in block) / len(block)
    return stimuli + np.float32(0.0)  # a mean too small for float32 may be -0.0, which the encoder's sum makes 0.0


class NaivePipeline:
    def __init__(
        self,
        network: SpikingNetwork,
        *,
        n_channels: int,
        sampling_frequency: float,
        block_ms: float,
        ticks_per_block: int,
        regular: bool = True,
        jitter_ms: float = 50.0,
        fill: str = "hold",
        max_fill_ms: float = 1000.0,
        scale: Row | None = None,
        stimulate: Callable[[Sequence[Row]], Row] = mean_of,
        delay_ticks: int = 0,
        checked_only: bool = False,
    ) -> None:
        self.network, self.stimulate, self.ticks_per_block = network, stimulate, ticks_per_block
        self.regular, self.fill = regular, fill
        self.period = 1.0 / sampling_frequency
        self.last_gap = 0  # samples of the newest gap that may yet come late
        self.tolerance = jitter_ms / 1000.0 if jitter_ms / 1000.0 > self.period else self.period / 2.0
        self.longest_fill = max_fill_ms / 1000.0
        self.samples_per_block = max(
            Fraction(1), Fraction(repr(sampling_frequency)) * Fraction(repr(block_ms)) / Fraction(1000)
        )
        self.scale = np.ones(n_channels, np.float32) if scale is None else scale
        self.last = np.zeros(n_channels, np.float32)

        self.slot: float | None = None  # where on the grid the last sample lies; None: no grid yet
        self.last_stamp = math.nan
        self.block: list[Row] = []
        self.block_flags = Flag(0)
        self.n_laid = self.n_blocks = self.n_ticks = 0
        self.queue: deque[Row] = deque()
        self.is_paused = self.is_modulated = False
        self.delay_ticks, self.checked_only = delay_ticks, checked_only
        self.answers: dict[int, int] = {}  # of a board, by tick
        self.answers_from = 0  # those to earlier ticks are of before an interruption
        self.counters: Counter[str] = Counter()
        self.ticks: list[NaiveTick] = []

    # -- inputs

    def queue_stimuli(self, values: Row) -> bool:
        if len(self.queue) == QUEUE_LENGTH:
            self.counters["stimuli_overflow"] += 1
            return False
        self.queue.append(values.copy())
        return True

    def answer(self, tick: int, spikes: int, is_checked: bool) -> None:
        """Take what a board says of a tick."""
        if self.checked_only and not is_checked:
            self.counters["board_unchecked"] += 1
        elif (
            tick in self.answers
            or tick < self.answers_from
            or not self.n_ticks - self.delay_ticks <= tick < self.n_ticks
        ):
            self.counters["board_late"] += 1
        else:
            self.answers[tick] = spikes

    def pause(self, is_paused: bool) -> None:
        """Let the network stand still, or step again."""
        if self.is_paused and not is_paused:
            self.answers_from = self.n_ticks
        self.is_paused = is_paused

    def drop(self) -> None:
        """Go on with the next sample as if it were the first, whatever was left out before it."""
        self.slot, self.last_gap = None, 0
        self.counters["discontinuities"] += 1
        self.block_flags |= Flag.DISCONTINUITY

    def feed(self, sample: Row, stamp: float) -> None:
        values = (sample * self.scale).astype(np.float32)
        if self._repeats(values, stamp):
            self.counters["duplicates"] += 1
            return
        missing = self._lay(stamp)
        for left in reversed(range(missing)):
            if self.fill == "zero":
                self.last = np.zeros_like(self.last)
            self.counters["samples_filled"] += 1
            self.block_flags |= Flag.FILLED
            self._append(self.last, self.last_stamp - (left + 1) * self.period)
        for c in range(len(values)):
            if not math.isfinite(values[c]):
                values[c] = self.last[c]
                self.counters["nonfinite_values"] += 1
                self.block_flags |= Flag.NONFINITE
        self.last = values
        self.counters["samples"] += 1
        self._append(values, self.last_stamp)

    # -- the grid

    def _repeats(self, values: Row, stamp: float) -> bool:
        """Whether the sample is the last one again; what would be replaced anyway makes no difference."""
        if not self.regular or self.slot is None or stamp != self.last_stamp:
            return False
        return all(v == last for v, last in zip(values, self.last, strict=True) if math.isfinite(v))

    def _lay(self, stamp: float) -> int:
        """Find the place of a sample; return how many are missing before it."""
        if not math.isfinite(stamp):
            self.counters["bad_stamps"] += 1
            if self.slot is None:
                self.last_stamp = 0.0
                return 0
            stamp = self.slot + self.period
        self.last_stamp = stamp
        if self.slot is None or not self.regular:
            self.slot = stamp
            return 0
        expected = self.slot + self.period
        late = stamp - expected
        if abs(late) <= self.tolerance:
            self.slot = expected - math.expm1(-self.period / FOLLOW_S) * late
            return 0
        self.slot = stamp
        if late < 0:
            late_after_all = min(self.last_gap, math.floor(min(-late / self.period, 1e12) + 0.5))
            self.counters["samples_lost"] -= late_after_all
            self.last_gap -= late_after_all
            self.counters["backward_steps"] += 1
        else:
            missing = math.floor(late / self.period + 0.5)
            self.counters["gaps"] += 1
            self.counters["samples_lost"] += missing
            self.last_gap = missing
            if late <= self.longest_fill:
                return missing
        self.counters["discontinuities"] += 1
        self.block_flags |= Flag.DISCONTINUITY
        return 0

    # -- blocks and ticks

    def _append(self, values: Row, t: float) -> None:
        self.block.append(values)
        self.n_laid += 1
        if self.n_laid == math.floor((self.n_blocks + 1) * self.samples_per_block):
            self._close(t)

    def _close(self, t: float) -> None:
        stimuli = self.stimulate(self.block)
        self.n_blocks += 1
        self.counters["blocks"] += 1
        for _ in range(self.ticks_per_block):
            self._tick(stimuli.copy(), t)
        self.block, self.block_flags = [], Flag(0)

    def _tick(self, stimuli: Row, t: float) -> None:
        flags, spikes = self.block_flags, 0
        modulation: tuple[float, ...] = (0.0,) * 5
        step_ms = 0.0
        if flags & Flag.DISCONTINUITY:
            self.answers_from = self.n_ticks
        if self.is_paused:
            flags |= Flag.PAUSED
        else:
            if self.is_modulated:
                self.is_modulated = False
                flags |= Flag.MODULATED
            if self.queue:
                stimuli += self.queue.popleft()
                self.counters["stimuli_applied"] += 1
                flags |= Flag.EXTERNAL
            modulation, step_ms = modulation_of(self.network)
            spikes = sum(1 << i for i, fired in enumerate(self.network.step(stimuli)) if fired)
            if self.delay_ticks:
                wanted = self.n_ticks - self.delay_ticks
                answer = self.answers.get(wanted) if wanted >= self.answers_from else None
                spikes = answer or 0
                self.counters["board_missing" if answer is None else "board_answered"] += 1
                if answer is None:
                    flags |= Flag.BOARD
            self.n_ticks += 1
            self.counters["ticks"] += 1
        levels = self.network.modulators.as_array()
        membrane = np.array(self.network.state[0]["variables"][0])
        number = max(0, self.n_ticks - 1)  # repeated while paused
        self.ticks.append(
            NaiveTick(number, self.n_laid, t, flags, spikes, stimuli, membrane, levels, modulation, step_ms)
        )
