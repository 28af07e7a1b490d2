"""From samples to commands: the one compiled function that live service, replay, benchmarks and tests all call.

`consume` lays samples on the grid of their stream, fills gaps by the stated policy, runs the front end, closes
blocks, encodes stimuli, steps the network, decodes its spikes and asks the safety gate, and appends one record per
tick, one per spike of a sorted unit, and one per decision of the gate. It does no I/O and reads no clock: the time
that the gate goes by is given to it (`set_time`), who paces it, and what becomes of the records, is its caller's
business. How the samples are split over calls makes no difference to any bit of the result.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.decoder import decode
from neuromod.adapters.decoder_config import N_OUTPUTS
from neuromod.bridge.gate import (
    ALLOWED,
    CONDITION_BOARD,
    CONDITION_DISCONTINUITY,
    CONDITION_FILLED,
    CONDITION_NONFINITE_INPUT,
    CONDITION_NONFINITE_STATE,
    CONDITION_PAUSED,
    CONDITION_WARMING,
    DECISION,
)
from neuromod.bridge.native import copy
from neuromod.bridge.offload import MAX_DELAY_TICKS
from neuromod.bridge.stimulation import DRY_RUN, MAX_DECISIONS_PER_TICK, stimulate
from neuromod.bridge.wire import N_MODULATION, Flag
from neuromod.engine.compiled import jit
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.tick import levels, membrane, modulation, tick
from neuromod.sorting.encoder import encode, is_encoding
from neuromod.sorting.events import MAX_EVENTS, N_EVENTS
from neuromod.sorting.front_end import blank, finish_block, is_blanked, is_ready, push, skip

TICK = np.dtype(
    [
        ("record", np.uint64),  # counts records, fillers and pauses included, from 0
        ("inputs", np.uint64),  # inputs that took effect before it; the loop counts them, 0 in a replay
        ("seq", np.uint64),  # number of its message, or of the next one where it is not published
        ("tick", np.uint64),  # counts network steps, from 0
        ("sample", np.uint64),  # samples laid on the grid so far, up to the newest of this tick
        ("t_sample", np.float64),  # its stamp, s; the loop maps it to the local clock
        ("t_arrival", np.float64),  # when the loop had it, s, local clock; 0 in a replay
        ("t_tick", np.float64),  # when the tick ended, s, local clock; 0 in a replay
        ("t_sent", np.float64),  # when the stimuli from ingest that it took were sent, s, local clock; 0 where unknown
        ("now_ns", np.int64),  # the time that the gate went by, local clock
        # input gain, recurrent gain, threshold gain, inhibition in mV and learning factor, as they acted in this tick;
        # all 0, like the step, where the network stood still
        ("modulation", np.float64, (N_MODULATION,)),
        ("step_ms", np.float64),  # by which the network's own time went on: dt x tempo
        ("flags", np.uint32),  # FLAG_* of neuromod.bridge.wire
        ("conditions", np.uint32),  # CONDITION_* of neuromod.bridge.gate
        ("spikes", np.uint32),  # bit i = channel i
        ("events", np.uint32),  # bit j = event j of the decoder
        ("stimuli", np.float32, (N_CHANNELS,)),
        ("membrane", np.float32, (N_CHANNELS,)),
        ("modulators", np.float32, (4,)),
        ("outputs", np.float32, (N_OUTPUTS,)),  # of the decoder
    ],
    align=True,
)
"""One record per tick. All that a subscriber, the recorder or a test may want to know of it."""

UNIT = np.dtype(
    [
        ("record", np.uint64),  # of the first tick that its block gives
        ("tick", np.uint64),  # of that tick
        ("sample", np.uint64),  # at which its template has its trough, counted as in TICK
        ("t_sample", np.float64),  # stamp of that sample, s; the loop maps it to the local clock
        ("amplitude", np.float64),  # multiple of the template
        ("residual", np.float64),  # RMS of what is left, in multiples of the noise
        ("unit", np.uint32),  # row of the sorting
        ("flags", np.uint32),  # of the tick
    ],
    align=True,
)
"""One record per spike of a sorted unit."""

# plain integers, which is what compiled code takes
FLAG_FILLED, FLAG_EXTERNAL, FLAG_NONFINITE = int(Flag.FILLED), int(Flag.EXTERNAL), int(Flag.NONFINITE)
FLAG_DISCONTINUITY, FLAG_MODULATED, FLAG_PAUSED = int(Flag.DISCONTINUITY), int(Flag.MODULATED), int(Flag.PAUSED)
FLAG_BLANKED, FLAG_BOARD = int(Flag.BLANKED), int(Flag.BOARD)

# what `Pipeline.numbers` (float64) holds
_SLOT, _PERIOD, _FOLLOW, _TOLERANCE, _LONGEST_FILL, _BLOCK_SAMPLES, _LAST_STAMP = range(7)
# what `Pipeline.words` (int64) holds
(
    _REGULAR,  # whether stamps are expected on a grid
    _TICKS_PER_BLOCK,
    _FILL_ZERO,  # fill gaps with zeros rather than the last sample
    ANCHORED,  # whether the grid has been laid
    _MISSING,  # samples of a gap still to be filled in
    _PLACED,  # whether the sample at hand has been laid on the grid
    INDEX,  # samples laid on the grid so far
    _BLOCK,  # blocks closed so far
    TICK_NEXT,  # number of the next tick: at which an input applied now takes effect
    FLAGS_NEXT,  # flags for the ticks of the open block
    PAUSED,
    _QUEUE_HEAD,
    _QUEUE_TAIL,
    _LAST_GAP,  # samples of the newest gap, as far as they have not come late after all
    RECORDS,  # records written so far, fillers included: what orders ticks and inputs
    TAKEN,  # samples taken from the source so far, duplicates included
    NOW_NS,  # the time that the gate goes by
    CONDITIONS,  # what the caller knows against stimulation at this time: CONDITION_* of neuromod.bridge.gate
    N_DECISIONS,  # rows of `decisions` in use; the caller sets it to 0 once it has read them
    N_UNITS,  # rows of `units` in use; likewise
    DELAY,  # ticks from one to its answer, where a board is the network; 0 where none is
    _CHECKED_ONLY,  # whether an answer counts only where it came over a link with a checksum
    _ANSWERS_FROM,  # the first tick whose answer may be used: none from before an interruption is
    _DROPPED,  # samples that were dropped just before the next one
) = range(24)

COUNTERS = (
    "samples",
    "samples_lost",
    "samples_filled",
    "gaps",
    "duplicates",
    "backward_steps",
    "discontinuities",
    "nonfinite_values",
    "bad_stamps",
    "blocks",
    "ticks",
    "stimuli_applied",
    "stimuli_overflow",
    "board_answered",
    "board_missing",
    "board_late",
    "board_unchecked",
)
"""Names of `Pipeline.counters`, in order."""
(
    _SAMPLES,
    _LOST,
    _FILLED,
    _GAPS,
    _DUPLICATES,
    _BACKWARD,
    _DISCONTINUITIES,
    _NONFINITE,
    _BAD_STAMPS,
    _BLOCKS,
    _TICKS,
    _STIMULI_APPLIED,
    _STIMULI_OVERFLOW,
    _BOARD_ANSWERED,
    _BOARD_MISSING,
    _BOARD_LATE,
    _BOARD_UNCHECKED,
) = range(len(COUNTERS))

_QUEUE_LENGTH = 1024
_OF_TICK, _ITS_SPIKES = 0, 1  # what a row of `Pipeline.answers` holds
_SPIKE_BITS = (1 << N_CHANNELS) - 1
_LARGEST = np.finfo(np.float32).max
_MOST_MISSING = 1e12  # counted for one gap: a stamp may be any number, and a count must still count after it
_FOLLOW_S = 2.0  # time constant with which the grid follows the drift of a stream's true rate against its nominal one


class Pipeline(NamedTuple):
    """State of `consume`, apart from that of front end, encoder and network. All arrays; changed in place."""

    numbers: NDArray[np.float64]
    words: NDArray[np.int64]
    counters: NDArray[np.int64]
    scale: NDArray[np.float32]  # per channel, to microvolts
    last: NDArray[np.float32]  # last finite sample of each channel, scaled
    features: NDArray[np.float32]
    encoded: NDArray[np.float32]  # the source's stimuli of the block
    queue: NDArray[np.float32]  # stimuli from ingest, one row a tick
    queue_sent: NDArray[np.float64]  # when each of them was sent, 0 where unknown
    added: NDArray[np.float32]  # the row that is being added
    added_sent: NDArray[np.float64]  # when it was sent
    answers: NDArray[np.int64]  # of a board: the tick, -1 for none, and its spikes; that of tick k in row k % 64
    decisions: NDArray[Any]  # DECISION: what the gate decided on since the caller last looked
    units: NDArray[Any]  # UNIT: spikes of sorted units since the caller last looked


def make_pipeline(
    *,
    n_channels: int,
    n_features: int,
    sampling_frequency: float,
    block_ms: float,
    ticks_per_block: int,
    regular: bool,
    jitter_ms: float,
    fill: str,
    max_fill_ms: float,
    scale: NDArray[np.float32] | None = None,
    delay_ticks: int = 0,
    checked_only: bool = False,
) -> Pipeline:
    """Allocate the state of `consume` for one stream.

    Parameters
    ----------
    n_channels, n_features : int
        Width of the stream's samples and of the front end's output.
    sampling_frequency : float
        Nominal rate of the stream, in Hz.
    block_ms : float
        Length of a block, in ms; not necessarily a whole number of samples.
    ticks_per_block : int
        Network steps per block.
    regular : bool
        Whether stamps lie on a nominal grid. Where they do not, every sample is the next one.
    jitter_ms : float
        Deviation from the grid, in ms, up to which a stamp is jitter and beyond which it is a gap or a backward step;
        half a sample where it is less than a sample.
    fill : {"hold", "zero"}
        What stands in for missing samples.
    max_fill_ms : float
        Longest gap that is filled in; a longer one re-anchors the grid and is flagged as a discontinuity.
    scale : ndarray of float32, shape (n_channels,), optional
        Factor of each channel to microvolts; 1 by default.
    delay_ticks : int
        Where a board is the network, ticks from one to the answer that is published for it; 0 where none is.
    checked_only : bool
        Drop answers that no checksum guards; for sessions whose pulses leave for a body.
    """
    period = 1.0 / sampling_frequency
    numbers = np.zeros(8, np.float64)
    numbers[_PERIOD] = period
    numbers[_FOLLOW] = -math.expm1(-period / _FOLLOW_S)
    # jitter of more than a sample cannot be told from its loss; less is no reason to overlook a lost one
    jitter = jitter_ms * 1e-3
    numbers[_TOLERANCE] = jitter if jitter > period else 0.5 * period
    numbers[_LONGEST_FILL] = max_fill_ms * 1e-3
    numbers[_BLOCK_SAMPLES] = max(1.0, sampling_frequency * block_ms / 1000.0)
    words = np.zeros(24, np.int64)
    words[_REGULAR] = regular
    words[_TICKS_PER_BLOCK] = ticks_per_block
    words[_FILL_ZERO] = fill == "zero"
    words[DELAY] = delay_ticks
    words[_CHECKED_ONLY] = checked_only
    return Pipeline(
        numbers=numbers,
        words=words,
        counters=np.zeros(len(COUNTERS), np.int64),
        scale=np.ones(n_channels, np.float32) if scale is None else np.ascontiguousarray(scale, np.float32),
        last=np.zeros(n_channels, np.float32),
        features=np.zeros(n_features, np.float32),
        encoded=np.zeros(N_CHANNELS, np.float32),
        queue=np.zeros((_QUEUE_LENGTH, N_CHANNELS), np.float32),
        queue_sent=np.zeros(_QUEUE_LENGTH, np.float64),
        added=np.zeros(N_CHANNELS, np.float32),
        added_sent=np.zeros(1, np.float64),
        answers=np.full((MAX_DELAY_TICKS, 2), (-1, 0), np.int64),
        decisions=np.zeros(ticks_per_block * MAX_DECISIONS_PER_TICK, DECISION),
        units=np.zeros(4 * MAX_EVENTS, UNIT),
    )


@jit
def block_end(pipeline: Pipeline) -> int:
    """Return the index of the sample that follows the open block."""
    # the small term keeps a product of rounded factors such as 30 * 1e3 from falling one sample short
    return math.floor((pipeline.words[_BLOCK] + 1) * pipeline.numbers[_BLOCK_SAMPLES] + 1e-6)


@jit
def samples_wanted(pipeline: Pipeline) -> int:
    """Return how many samples the open block still needs; at least 1."""
    return max(1, block_end(pipeline) - pipeline.words[INDEX] - pipeline.words[_MISSING])


@jit
def set_time(pipeline: Pipeline, now_ns: int, conditions: int) -> None:
    """Set what the gate goes by in the ticks of the next `consume`: the local clock, and what speaks against pulses."""
    pipeline.words[NOW_NS] = now_ns
    pipeline.words[CONDITIONS] = conditions


@jit
def enqueue_stimuli(pipeline: Pipeline, values: NDArray[np.float32], sent: float) -> bool:
    """Queue stimuli to be added to those of one tick. False, and counted, where the queue is full."""
    words = pipeline.words
    if words[_QUEUE_HEAD] - words[_QUEUE_TAIL] >= _QUEUE_LENGTH:
        pipeline.counters[_STIMULI_OVERFLOW] += 1
        return False
    copy(pipeline.queue[words[_QUEUE_HEAD] % _QUEUE_LENGTH], values)
    pipeline.queue_sent[words[_QUEUE_HEAD] % _QUEUE_LENGTH] = sent
    words[_QUEUE_HEAD] += 1
    return True


@jit
def dequeue_stimuli(pipeline: Pipeline, values: NDArray[np.float32], sent: NDArray[np.float64]) -> bool:
    """Take the oldest queued stimuli. False where there are none."""
    words = pipeline.words
    if words[_QUEUE_TAIL] == words[_QUEUE_HEAD]:
        return False
    copy(values, pipeline.queue[words[_QUEUE_TAIL] % _QUEUE_LENGTH])
    sent[0] = pipeline.queue_sent[words[_QUEUE_TAIL] % _QUEUE_LENGTH]
    words[_QUEUE_TAIL] += 1
    return True


@jit
def take_answer(pipeline: Pipeline, tick: int, spikes: int, is_checked: bool) -> None:
    """Keep a board's answer to a tick.

    Dropped, and counted, where that is past, has been answered, or is to come, and where a checksum is demanded that
    its link has not: its spikes might be others than the board's, and pulses would follow.
    """
    words, row = pipeline.words, pipeline.answers[tick % MAX_DELAY_TICKS]
    if words[_CHECKED_ONLY] and not is_checked:
        pipeline.counters[_BOARD_UNCHECKED] += 1
        return
    oldest = max(words[TICK_NEXT] - words[DELAY], words[_ANSWERS_FROM])
    if tick >= words[TICK_NEXT] or tick < oldest or row[_OF_TICK] == tick:
        pipeline.counters[_BOARD_LATE] += 1
        return
    row[_OF_TICK], row[_ITS_SPIKES] = tick, spikes & _SPIKE_BITS


@jit
def forget_answers(pipeline: Pipeline) -> None:
    """Never use an answer of before now: the signal that it was given to is not the one that goes on.

    Called between two ticks, after a filler or a restored checkpoint. The next `DELAY` ticks have no answer then, also
    where one comes late; their commands are inhibited.
    """
    pipeline.words[_ANSWERS_FROM] = pipeline.words[TICK_NEXT]


@jit
def resume(pipeline: Pipeline) -> None:
    """Let the network step again, and by no answer of before the pause."""
    if pipeline.words[PAUSED]:
        forget_answers(pipeline)
    pipeline.words[PAUSED] = 0


@jit
def stand_by(pipeline: Pipeline) -> None:
    """Count a filler, for which there is no sample: live, and again in a replay, where its record tells of it."""
    pipeline.words[RECORDS] += 1
    forget_answers(pipeline)


@jit
def drop_samples(pipeline: Pipeline, n: int) -> None:
    """Leave out `n` samples that the caller has dropped before the next one: live, and again in a replay.

    They are not filled in, since whoever drops them wants the newest: the grid is laid anew, and the tick flagged.
    """
    words = pipeline.words
    words[ANCHORED] = 0
    words[_LAST_GAP] = 0
    words[_DROPPED] += n
    words[FLAGS_NEXT] |= FLAG_DISCONTINUITY
    pipeline.counters[_DISCONTINUITIES] += 1


@jit
def _place(pipeline: Pipeline, stamp: float) -> int:
    """Lay one sample on the grid; return how many samples are missing before it.

    The slot of a sample follows its stamp slowly, so that jitter does not matter and a rate that differs from the
    nominal one does not add up. A stamp that is later than its slot by more than the tolerance means missing samples;
    one that is earlier by more means that the clock of the source was set back, and re-anchors the grid.
    """
    numbers, words, counters = pipeline.numbers, pipeline.words, pipeline.counters
    expected = numbers[_SLOT] + numbers[_PERIOD]
    if not np.isfinite(stamp):
        counters[_BAD_STAMPS] += 1
        if not words[ANCHORED]:  # a grid laid at no time would call all time since then a gap
            numbers[_LAST_STAMP] = 0.0
            return 0
        stamp = expected
    numbers[_LAST_STAMP] = stamp
    if not words[ANCHORED] or not words[_REGULAR]:
        words[ANCHORED] = 1
        numbers[_SLOT] = stamp
        return 0
    late = stamp - expected
    if late > numbers[_TOLERANCE]:
        missing = math.floor(min(late / numbers[_PERIOD], _MOST_MISSING) + 0.5)
        counters[_GAPS] += 1
        counters[_LOST] += missing
        words[_LAST_GAP] = missing
        numbers[_SLOT] = stamp
        if late <= numbers[_LONGEST_FILL]:
            return missing
        counters[_DISCONTINUITIES] += 1
        words[FLAGS_NEXT] |= FLAG_DISCONTINUITY
    elif late < -numbers[_TOLERANCE]:
        # a sender that was held up and stamps by push: what seemed lost comes after all
        late_after_all = min(words[_LAST_GAP], math.floor(min(-late / numbers[_PERIOD], _MOST_MISSING) + 0.5))
        counters[_LOST] -= late_after_all
        words[_LAST_GAP] -= late_after_all
        counters[_BACKWARD] += 1
        counters[_DISCONTINUITIES] += 1
        words[FLAGS_NEXT] |= FLAG_DISCONTINUITY
        numbers[_SLOT] = stamp
    else:
        numbers[_SLOT] = expected + numbers[_FOLLOW] * late
    return 0


@jit
def _is_duplicate(pipeline: Pipeline, sample: NDArray[np.float32], stamp: float) -> bool:
    """Say whether a sample has both the stamp and the values of the one before it.

    A value that is not finite would be replaced by the one before it, and so makes no difference. Where stamps lie on
    no grid, two samples may well have the same, and are two.
    """
    words = pipeline.words
    if stamp != pipeline.numbers[_LAST_STAMP] or not words[ANCHORED] or not words[_REGULAR]:
        return False
    for c in range(sample.shape[0]):
        x = sample[c] * pipeline.scale[c]
        if np.isfinite(x) and x != pipeline.last[c]:
            return False
    return True


@jit
def clean(pipeline: Pipeline, samples: NDArray[np.float32]) -> None:
    """Scale samples in place, and hold the last finite value of a channel where a value is not finite."""
    scale, last = pipeline.scale, pipeline.last
    bad = 0
    for i in range(samples.shape[0]):
        for c in range(samples.shape[1]):
            x = samples[i, c] * scale[c]
            finite = np.isfinite(x)
            x = x if finite else last[c]
            bad += not finite
            samples[i, c] = x
            last[c] = x
    if bad:
        pipeline.counters[_NONFINITE] += bad
        pipeline.words[FLAGS_NEXT] |= FLAG_NONFINITE


@jit
def _close_block(
    pipeline: Pipeline,
    front_end: Any,
    encoder: Any,
    network: Any,
    decoder: Any,
    stimulation: Any,
    records: NDArray[Any],
    n_records: int,
    stamp: float,
) -> int:
    """Turn the block into stimuli, go through its ticks, append the records; return how many there are now."""
    words, counters = pipeline.words, pipeline.counters
    finish_block(front_end, pipeline.features)
    blanked = is_blanked(front_end)
    if blanked:
        words[FLAGS_NEXT] |= FLAG_BLANKED
    encode(encoder, pipeline.features, pipeline.encoded, blanked)
    words[_BLOCK] += 1
    counters[_BLOCKS] += 1
    _take_units(pipeline, front_end, stamp)
    warming = 0 if is_ready(front_end) and is_encoding(encoder) else CONDITION_WARMING
    for _ in range(words[_TICKS_PER_BLOCK]):
        record = records[n_records]
        flags = words[FLAGS_NEXT]
        stimuli = record["stimuli"]
        copy(stimuli, pipeline.encoded)
        record["inputs"] = 0
        record["seq"] = 0
        record["sample"] = words[INDEX]
        record["t_sample"] = stamp
        record["t_arrival"] = 0.0
        record["t_tick"] = 0.0
        record["t_sent"] = 0.0
        if words[PAUSED]:
            flags = (flags & ~FLAG_MODULATED) | FLAG_PAUSED
        else:
            if dequeue_stimuli(pipeline, pipeline.added, pipeline.added_sent):
                for c in range(N_CHANNELS):
                    # two finite numbers may add up to an infinite one
                    stimuli[c] = min(max(stimuli[c] + pipeline.added[c], -_LARGEST), _LARGEST)
                counters[_STIMULI_APPLIED] += 1
                record["t_sent"] = pipeline.added_sent[0]
                flags |= FLAG_EXTERNAL
            # a modulator set at this boundary has taken effect with the first tick after it
            words[FLAGS_NEXT] &= ~FLAG_MODULATED
        record["flags"] = flags
        record["now_ns"] = words[NOW_NS]
        record["conditions"] = words[CONDITIONS] | warming | _conditions_of(flags)
        n_before = words[N_DECISIONS]
        advance(pipeline, network, decoder, stimulation, record)
        for k in range(n_before, words[N_DECISIONS]):
            _blank(front_end, pipeline.decisions[k])
        n_records += 1
    words[FLAGS_NEXT] &= FLAG_MODULATED
    return n_records


@jit
def _take_units(pipeline: Pipeline, front_end: Any, stamp: float) -> None:
    """Move the spikes that the front end recognised in the block into `Pipeline.units`."""
    words = pipeline.words
    events = front_end.sorter.events
    for k in range(events.counters[N_EVENTS]):
        event = events.rows[k]
        row = pipeline.units[words[N_UNITS]]
        row["record"] = words[RECORDS]
        row["tick"] = max(0, words[TICK_NEXT] - 1) if words[PAUSED] else words[TICK_NEXT]
        row["sample"] = event["sample"] + 1
        row["t_sample"] = stamp - (words[INDEX] - 1 - event["sample"]) * pipeline.numbers[_PERIOD]
        row["amplitude"] = event["amplitude"]
        row["residual"] = event["residual"]
        row["unit"] = event["unit"]
        row["flags"] = words[FLAGS_NEXT] | (FLAG_PAUSED if words[PAUSED] else 0)
        words[N_UNITS] += 1
    events.counters[N_EVENTS] = 0


@jit
def _conditions_of(flags: int) -> int:
    """Return what the flags of a tick mean to the gate."""
    conditions = 0
    if flags & FLAG_FILLED:
        conditions |= CONDITION_FILLED
    if flags & FLAG_NONFINITE:
        conditions |= CONDITION_NONFINITE_INPUT
    if flags & FLAG_DISCONTINUITY:
        conditions |= CONDITION_DISCONTINUITY
    if flags & FLAG_PAUSED:
        conditions |= CONDITION_PAUSED
    return conditions


@jit
def advance(pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any, record: Any) -> None:
    """Step network, decoder and gate by the stimuli, flags, time and conditions of a TICK record; fill in the rest.

    All that a tick changes beyond front end and encoder: a session is replayed from recorded stimuli by this alone.
    Where a board is the network, its answers come by `take_answer`, and the network here is a shadow beside it, which
    keeps the neuromodulators.
    """
    words = pipeline.words
    block = network[0]
    conditions = record["conditions"] & ~np.uint32(CONDITION_NONFINITE_STATE | CONDITION_BOARD)
    record["flags"] &= ~np.uint32(FLAG_BOARD)
    outputs = record["outputs"]
    if record["flags"] & FLAG_DISCONTINUITY:
        forget_answers(pipeline)
    if record["flags"] & FLAG_PAUSED:
        record["tick"] = max(0, words[TICK_NEXT] - 1)
        record["spikes"] = 0
        record["events"] = 0
        stand_still(record)
        for k in range(outputs.shape[0]):
            outputs[k] = 0.0
        membrane(network, record["membrane"])
    else:
        was_learning = block["learning"]
        if record["flags"] & FLAG_BLANKED:
            block["learning"] = 0
        record["step_ms"] = modulation(network, record["modulation"])
        record["spikes"] = tick(network, record["stimuli"])
        block["learning"] = was_learning
        record["tick"] = words[TICK_NEXT]
        words[TICK_NEXT] += 1
        pipeline.counters[_TICKS] += 1
        if words[DELAY] > 0 and not _is_answered(pipeline, record):
            record["flags"] |= np.uint32(FLAG_BOARD)
            conditions |= np.uint32(CONDITION_BOARD)
        runaways = decoder[0]["runaways"]
        record["events"] = decode(decoder[0], record["spikes"], outputs)
        membrane(network, record["membrane"])
        if decoder[0]["runaways"] != runaways or not _is_finite(record["membrane"]) or not _is_finite(outputs):
            conditions |= np.uint32(CONDITION_NONFINITE_STATE)
    levels(network, record["modulators"])
    record["conditions"] = conditions
    record["record"] = words[RECORDS]
    words[RECORDS] += 1
    n_before = words[N_DECISIONS]
    words[N_DECISIONS] = stimulate(
        stimulation,
        record["events"],
        record["tick"],
        record["now_ns"],
        conditions,
        pipeline.decisions,
        n_before,
    )
    for k in range(n_before, words[N_DECISIONS]):
        pipeline.decisions[k]["record"] = record["record"]


@jit
def _is_answered(pipeline: Pipeline, record: Any) -> bool:
    """Put the spikes of the board in place of the network's own: those of `DELAY` ticks ago, none where missing."""
    tick = np.int64(record["tick"]) - pipeline.words[DELAY]
    row = pipeline.answers[tick % MAX_DELAY_TICKS]
    is_there = tick >= pipeline.words[_ANSWERS_FROM] and row[_OF_TICK] == tick
    record["spikes"] = row[_ITS_SPIKES] & _SPIKE_BITS if is_there else 0
    pipeline.counters[_BOARD_ANSWERED if is_there else _BOARD_MISSING] += 1
    return is_there


@jit
def stand_still(record: Any) -> None:
    """Say in a TICK record that the network did not step: nothing modulated it."""
    for k in range(N_MODULATION):
        record["modulation"][k] = 0.0
    record["step_ms"] = 0.0


@jit
def _is_finite(values: NDArray[np.float32]) -> bool:
    """Say whether all values are finite."""
    total = np.float32(0.0)
    for i in range(values.shape[0]):
        total += values[i] * np.float32(0.0)
    return total == np.float32(0.0)


@jit
def _blank(front_end: Any, decision: Any) -> None:
    """Have the front end leave out what a train will do to the signal.

    After a sham train too, so that a sham session differs from a live one in nothing but the current.
    """
    if decision["reason"] == ALLOWED and decision["mode"] != DRY_RUN:
        pulse_us = decision["phase_us"] + decision["interphase_us"] + decision["phase2_us"]
        blank(front_end, decision["electrode"], 0.0, decision["pulses"], decision["period_us"], pulse_us)


@jit
def consume(
    pipeline: Pipeline,
    front_end: Any,
    encoder: Any,
    network: Any,
    decoder: Any,
    stimulation: Any,
    samples: NDArray[np.float32],
    stamps: NDArray[np.float64],
    first: int,
    n: int,
    records: NDArray[Any],
) -> tuple[int, int]:
    """Take samples ``[first, n)`` as far as there is room for the records of their ticks.

    Parameters
    ----------
    pipeline, front_end, encoder, network, decoder, stimulation
        State of each part; changed in place.
    samples : ndarray of float32, shape (>= n, n_channels)
        Samples as the source gave them. Changed in place (scaled, made finite).
    stamps : ndarray of float64, shape (>= n,)
        Their times on the clock of the source, in seconds.
    first, n : int
        Range to take. A sample is taken once only: go on where the last call stopped.
    records : ndarray of TICK, shape (capacity,)
        Overwritten from the first on; capacity at least the ticks of one block.

    Returns
    -------
    first, n_records : int
        Where to go on (`n` when all was taken), and how many records were written.
    """
    numbers, words, counters = pipeline.numbers, pipeline.words, pipeline.counters
    i = first
    n_records: Any = np.int64(0)  # a literal would have _close_block compiled twice
    while (
        i < n
        and n_records + words[_TICKS_PER_BLOCK] <= records.shape[0]
        and words[N_DECISIONS] + words[_TICKS_PER_BLOCK] * MAX_DECISIONS_PER_TICK <= pipeline.decisions.shape[0]
        and words[N_UNITS] + MAX_EVENTS <= pipeline.units.shape[0]
    ):
        room = block_end(pipeline) - words[INDEX]
        stamp = 0.0
        if not words[_PLACED]:
            if _is_duplicate(pipeline, samples[i], stamps[i]):
                counters[_DUPLICATES] += 1
                words[TAKEN] += 1
                i += 1
                continue
            gaps = counters[_GAPS]
            words[_MISSING] = _place(pipeline, stamps[i])
            words[_PLACED] = 1
            if words[_DROPPED] > 0:
                skip(front_end, words[_DROPPED])
                words[_DROPPED] = 0
            if counters[_GAPS] > gaps and words[_MISSING] == 0:  # too long to be filled in
                skip(front_end, words[_LAST_GAP])
        if words[_MISSING] > 0:
            take = min(room, words[_MISSING])
            if words[_FILL_ZERO]:
                for c in range(pipeline.last.shape[0]):
                    pipeline.last[c] = 0.0
            held = pipeline.last.reshape((1, pipeline.last.shape[0]))
            for _ in range(take):
                push(front_end, held)
            words[_MISSING] -= take
            counters[_FILLED] += take
            words[FLAGS_NEXT] |= FLAG_FILLED
            stamp = stamps[i] - words[_MISSING] * numbers[_PERIOD] - numbers[_PERIOD]
        else:
            # as many samples as follow without a gap go through the front end in one call
            take = 1
            while (
                i + take < n
                and take < room
                and stamps[i + take] != numbers[_LAST_STAMP]
                and _follows(pipeline, stamps[i + take])
            ):
                _place(pipeline, stamps[i + take])
                take += 1
            run = samples[i : i + take]
            clean(pipeline, run)
            push(front_end, run)
            counters[_SAMPLES] += take
            words[_PLACED] = 0
            words[TAKEN] += take
            i += take
            stamp = numbers[_LAST_STAMP]
        words[INDEX] += take
        if words[INDEX] >= block_end(pipeline):
            n_records = _close_block(
                pipeline, front_end, encoder, network, decoder, stimulation, records, n_records, stamp
            )
    return i, n_records


@jit
def _follows(pipeline: Pipeline, stamp: float) -> bool:
    """Say whether a stamp is the next one on the grid, within the tolerance."""
    late = stamp - pipeline.numbers[_SLOT] - pipeline.numbers[_PERIOD]
    return not pipeline.words[_REGULAR] or abs(late) <= pipeline.numbers[_TOLERANCE]
