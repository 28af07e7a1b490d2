"""The real-time loop: from liblsl (or a ring, or a socket) to libzmq in compiled code, never in the interpreter.

One thread runs `run`. It pulls exactly the samples that the open block still needs, hands them to `consume`, fills the
messages of each tick in place and sends them, commands and stimulation first, and keeps a record of the tick in a ring
for the rest of the daemon. Commands and inputs come by a ring or from the ingest socket and take effect between two
ticks; each is echoed, with the tick at which it did. When the source falls silent, flagged fillers keep subscribers
informed; they do not advance the network, so that a session replays bit for bit whatever stalls there were.

The gate is told of time and faults with every tick, and between ticks whenever the loop turns: a silent source disarms
it like any other fault, and that is echoed like any other input.

Only this thread touches the output and the ingest socket while it runs, and only it pulls from the inlet.
"""

import math
from typing import Any

import numpy as np

from neuromod.adapters.memory import CLOCK_RESET_S, LONGEST_PAUSE_S
from neuromod.bridge import wire
from neuromod.bridge.frames import (
    TOPIC_COMMAND,
    TOPIC_SPIKES,
    TOPIC_STIMULATION,
    TOPIC_STIMULI,
    TOPIC_UNITS,
    fill_command,
    fill_spikes,
    fill_stimulation,
    fill_stimuli,
    fill_units,
)
from neuromod.bridge.gate import (
    CONDITION_IDLE,
    CONDITION_LATE,
    CONDITION_NONFINITE_STATE,
    CONDITION_SILENT,
    CONDITION_STOPPED,
    CONDITION_WARMING,
    STOPPED,
    watch,
)
from neuromod.bridge.loop_inputs import (
    STIMULI_READ,
    read_ingest,
    receive,
    report_behind,
    report_fault,
    take_inputs,
)
from neuromod.bridge.loop_state import (
    BEHIND_POLICIES,
    BEHIND_S,
    C_DROPPED,
    C_FILLERS,
    C_INPUTS,
    C_LATE,
    C_MESSAGES,
    C_PULL_ERRORS,
    C_SEND_ERRORS,
    C_STALLS,
    COMMAND_S,
    ENDED,
    FILLER_S,
    FRAME_HEAD,
    HALT_REASON,
    HALTS,
    HOLD,
    LAST_DATA,
    LAST_STAMP,
    LATE_S,
    LEASE_S,
    LOST,
    NEWEST,
    NEXT_FILLER,
    NEXT_LEASE,
    OFFSET,
    PERIOD_S,
    PULLED,
    RATE,
    RING_POLL_S,
    SOURCE_ENDED,
    SOURCE_RING,
    SOURCE_ZMQ,
    STALL_S,
    STALLED,
    STATE,
    STOP,
    STREAMING,
    TURNS,
    W_ARMED,
    W_BEHIND,
    W_COMMAND_SEQ,
    W_COMMANDS,
    W_DISARMS,
    W_HALTS,
    W_HELD,
    W_INLET,
    W_KEEP_SAMPLES,
    W_MORE,
    W_N_CHANNELS,
    W_OUT_RING,
    W_PACED,
    W_PUB,
    W_PUBLISH_ALL,
    W_PUBLISH_STIMULI,
    W_PULL,
    W_SEQ,
    W_SOURCE,
    W_STARTED,
    W_STIMULATION_SEQ,
    W_TIED,
    W_UNIT_SEQ,
    Loop,
    Rings,
    clock,
    sleep,
    sleep_until,
)
from neuromod.bridge.native import (
    LSL_INLET_FLUSH,
    LSL_PULL_CHUNK_F,
    LSL_SAMPLES_AVAILABLE,
    MEMMOVE,
    ZMQ_DONTWAIT,
    ZMQ_SEND,
    ZMQ_SNDMORE,
    call_count,
    call_memmove,
    call_pull,
    call_send,
    copy,
    load_acquire,
    store_release,
)
from neuromod.bridge.pipeline import (
    FLAG_BOARD,
    FLAG_DISCONTINUITY,
    FLAG_PAUSED,
    INDEX,
    N_DECISIONS,
    N_UNITS,
    RECORDS,
    TICK_NEXT,
    Pipeline,
    consume,
    dequeue_stimuli,
    samples_wanted,
    set_time,
    stand_by,
    stand_still,
)
from neuromod.bridge.ring import (
    Ring,
    SampleRing,
    add_samples,
    available,
    commit,
    peek,
    put,
    release,
    reserve,
)
from neuromod.engine.compiled import jit

FLAG_FILLER, FLAG_LATE, FLAG_INHIBITED = int(wire.Flag.FILLER), int(wire.Flag.LATE), int(wire.Flag.INHIBITED)
_LEASE, _TRAIN, _STOP = (wire.STIMULATION_KINDS.index(kind) for kind in ("lease", "train", "stop"))

# what forbids to act on a command: nothing new was decoded, or not from the signal as it is now
_NO_COMMAND = FLAG_FILLER | FLAG_PAUSED | FLAG_DISCONTINUITY | FLAG_LATE | FLAG_BOARD
_NO_COMMAND_IN = CONDITION_WARMING | CONDITION_NONFINITE_STATE | CONDITION_STOPPED
_WAIT_S = 0.02  # longest wait for samples, so that commands and the stop flag are seen
_FRAMES_PER_TURN = 8
_LSL_TIMEOUT = -1
_LONGEST_DRAIN_S = 0.2  # so that a stop is seen while a backlog is dropped
_DRAIN_LOOKS_S = 0.02
_MANY = 1 << 60
_STOP_BEHIND = BEHIND_POLICIES.index("stop")


@jit
def run(
    loop: Loop,
    rings: Rings,
    pipeline: Pipeline,
    front_end: Any,
    encoder: Any,
    network: Any,
    decoder: Any,
    stimulation: Any,
) -> None:
    """Run until ``shared[STOP]`` is set. Called in a thread of its own, once."""
    state = loop.block[0]
    words, numbers, shared = state["words"], state["numbers"], state["shared"]
    turns: Any = np.int64(0)
    while load_acquire(shared, STOP) == 0:
        turns += 1
        store_release(shared, TURNS, turns)
        take_inputs(loop, rings, pipeline, network, decoder, stimulation)
        _send_frames(loop, rings)
        if words[W_SOURCE] == SOURCE_ZMQ:
            n = _wait_for_stimuli(loop, rings, pipeline, network, decoder, stimulation)
        else:
            read_ingest(loop, rings, pipeline, network, decoder, stimulation)
            wanted = min(samples_wanted(pipeline), loop.stamps.shape[0])
            if words[W_SOURCE] == SOURCE_RING:
                n = _pull_ring(loop, rings.samples, wanted)
            else:
                n = _pull_lsl(loop, wanted)
        arrival = clock(state)
        if n > 0 and words[W_SOURCE] != SOURCE_ZMQ:  # what came meanwhile acts on their tick, not on the one after
            read_ingest(loop, rings, pipeline, network, decoder, stimulation)
        now = clock(state)
        if load_acquire(shared, HALTS) != words[W_HALTS]:
            words[W_HALTS] = load_acquire(shared, HALTS)
            report_fault(loop, rings, pipeline, network, decoder, stimulation, load_acquire(shared, HALT_REASON))
        record, index = pipeline.words[RECORDS], pipeline.words[INDEX]
        if n > 0:
            age = _age(state, loop.stamps[n - 1], now)
            numbers[NEWEST] = now - age
            # what waits is asked for only where samples are old
            if age > numbers[BEHIND_S] and is_behind(
                age, _waiting(state, rings.samples), numbers[PERIOD_S], numbers[BEHIND_S]
            ):
                n += _drop_backlog(state, rings.samples, loop.stamps[n - 1])
                state["counters"][C_DROPPED] += n
                report_behind(loop, rings, pipeline, network, decoder, stimulation, n, age)
                n = 0
                numbers[LAST_DATA] = clock(state)  # it is not the source that was silent
                if words[W_BEHIND] == _STOP_BEHIND:
                    store_release(shared, STOP, 1)
        if n > 0:
            if words[W_KEEP_SAMPLES]:
                add_samples(rings.raw, loop.samples, loop.stamps, n)
            set_time(pipeline, _ns(now), _conditions(state, loop.stamps[n - 1], now))
            done: Any = np.int64(0)  # a literal would have consume compiled twice
            while done < n:
                done, n_records = consume(
                    pipeline,
                    front_end,
                    encoder,
                    network,
                    decoder,
                    stimulation,
                    loop.samples,
                    loop.stamps,
                    done,
                    n,
                    loop.records,
                )
                if words[W_SOURCE] == SOURCE_ZMQ and n_records > 0:
                    loop.records[0]["t_sent"] = state["sent"][0]
                for k in range(n_records):
                    _complete(state, loop.records[k], arrival)
                    _send_command(loop, rings, k, decoder)
                _send_decisions(loop, rings, pipeline)
                for k in range(n_records):
                    _send_tick(loop, rings, k)
                    put(rings.ticks, loop.record_rows, k)
                _send_units(loop, rings, pipeline)
                if n_records > 0:
                    copy(loop.record_rows[-1], loop.record_rows[n_records - 1])
            if pipeline.words[INDEX] != index:  # a source that repeats itself brings no data
                numbers[LAST_DATA] = now
                words[W_STARTED] = 1
                _set_state(state, STREAMING)
        if pipeline.words[RECORDS] == record:  # no tick looked after the arming
            is_silent = now - numbers[LAST_DATA] >= numbers[STALL_S]
            conditions = CONDITION_IDLE | _held(state) | (CONDITION_SILENT if is_silent else 0)
            reason = watch(stimulation.gate[0], _ns(now), conditions)
            if reason != 0:
                report_fault(loop, rings, pipeline, network, decoder, stimulation, reason)
            _keep_informed(loop, rings, pipeline, decoder, now)
        _keep_lease(loop, rings, pipeline, stimulation)
    if stimulation.gate[0]["armed"] != 0:
        report_fault(loop, rings, pipeline, network, decoder, stimulation, STOPPED)
        _keep_lease(loop, rings, pipeline, stimulation)


@jit
def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


@jit
def _held(state: Any) -> int:
    """Return the condition that somebody outside the loop wants no stimulation."""
    return CONDITION_STOPPED if load_acquire(state["shared"], HOLD) != 0 else 0


@jit
def _conditions(state: Any, stamp: float, now: float) -> int:
    """Return what the loop knows against stimulation in the ticks of samples up to `stamp`."""
    numbers = state["numbers"]
    age = _age(state, stamp, now)
    # a stamp that is no number, or is of the future, says nothing of its age: so it is late
    return _held(state) | (0 if -numbers[LATE_S] <= age <= numbers[LATE_S] else CONDITION_LATE)


@jit
def _age(state: Any, stamp: float, now: float) -> float:
    """Return how long ago a sample was taken, by its stamp, in seconds."""
    numbers = state["numbers"]
    return now - (numbers[OFFSET] + numbers[RATE] * stamp)


@jit
def is_behind(age_s: float, waiting: int, period_s: float, behind_s: float) -> bool:
    """Say whether the loop has fallen behind its source.

    Old stamps alone are the source's own matter, and so is a chunk that it sends at once: behind is who has both old
    samples and as long a backlog waiting.

    Parameters
    ----------
    age_s : float
        Of the newest sample that was taken, in seconds; NaN where its stamp says nothing.
    waiting : int
        Samples that wait behind it.
    period_s : float
        From sample to sample, in seconds.
    behind_s : float
        What counts as behind, in seconds; infinite for never.
    """
    return age_s > behind_s and waiting * period_s >= behind_s


@jit
def _waiting(state: Any, ring: SampleRing) -> int:
    """Return how many samples wait to be taken."""
    words, functions = state["words"], state["functions"]
    if words[W_SOURCE] == SOURCE_RING:
        n = available(ring.ends)
        # the thread that feeds a ring keeps more behind it: a ring that is half full may be all that is ever seen
        return n if 2 * n < ring.stamps.shape[0] else _MANY
    if words[W_INLET] == 0:
        return 0
    waiting: Any = np.int64(call_count(functions[LSL_SAMPLES_AVAILABLE], (words[W_INLET],)))
    return waiting


@jit
def _drop_backlog(state: Any, ring: SampleRing, stamp: float) -> int:
    """Drop all that waits to be taken, after a sample of this stamp; return how many samples that were."""
    words, numbers = state["words"], state["numbers"]
    if words[W_SOURCE] != SOURCE_RING:
        flushed: Any = np.int64(call_count(state["functions"][LSL_INLET_FLUSH], (words[W_INLET],)))
        return flushed
    dropped: Any = np.int64(0)
    began = looked = clock(state)
    newest = seen = stamp
    while True:
        n = available(ring.ends)
        if n > 0:
            newest = ring.stamps[peek(ring.ends, ring.stamps.shape[0], n - 1)]
            release(ring.ends, n)
            dropped += n
        now = clock(state)
        if now - began >= _LONGEST_DRAIN_S or (n == 0 and not _age(state, newest, now) > numbers[BEHIND_S]):
            return dropped
        if now - looked >= _DRAIN_LOOKS_S:
            # stamps may be old for good: the backlog is gone once they go on no faster than time does
            if not newest - seen > 2.0 * (now - looked):
                return dropped
            looked, seen = now, newest
        sleep(state, RING_POLL_S)


@jit
def _set_state(state: Any, value: int) -> None:
    if state["shared"][STATE] != value:
        store_release(state["shared"], STATE, value)


@jit
def _patience(state: Any) -> float:
    """Return how long to wait for samples, in seconds: until something else is due."""
    if state["words"][W_MORE]:
        return 0.0
    if state["words"][W_STARTED] == 0:
        return _WAIT_S
    numbers = state["numbers"]
    now = clock(state)
    due = numbers[LAST_DATA] + numbers[STALL_S]
    if due <= now:
        due = numbers[NEXT_FILLER]
    longest = 0.25 * numbers[LEASE_S] if state["words"][W_ARMED] else _WAIT_S  # leases are to be prolonged
    return min(max(due - now, 0.0), longest, _WAIT_S)


@jit
def _pull_lsl(loop: Loop, wanted: int) -> int:
    """Pull at most `wanted` samples into the buffer; return how many came in time."""
    state = loop.block[0]
    words, scratch = state["words"], state["scratch"]
    patience = _patience(state)
    if words[W_INLET] == 0:
        sleep(state, min(patience, 0.001))
        return 0
    width = words[W_N_CHANNELS]
    scratch[0] = 0
    got = call_pull(
        state["functions"][LSL_PULL_CHUNK_F],
        (
            words[W_INLET],
            loop.samples.ctypes.data,
            loop.stamps.ctypes.data,
            np.uint64(wanted * width),
            np.uint64(wanted),
            patience,
            scratch.ctypes.data,
        ),
    )
    store_release(state["shared"], PULLED, 1)
    error = np.int32(scratch[0] & 0xFFFFFFFF)
    if error != 0 and error != _LSL_TIMEOUT:
        # the stream is gone: the inlet is not touched again until Python sends a new one
        state["counters"][C_PULL_ERRORS] += 1
        words[W_INLET] = 0
        _set_state(state, LOST)
    return np.int64(got) // width


@jit
def _pull_ring(loop: Loop, ring: SampleRing, wanted: int) -> int:
    """Take at most `wanted` samples of a Python source into the buffer, not before they are due where it is paced."""
    state = loop.block[0]
    words, numbers = state["words"], state["numbers"]
    patience = _patience(state)
    if words[W_HELD] == 0:
        n = _take_samples(loop, ring, wanted, patience)
        if n == 0 or words[W_PACED] == 0:
            return n
        for i in range(n):
            _keep_pace(state, loop.stamps[i])
        words[W_HELD] = n
        patience = _patience(state)
    # samples that are not due soon are held: meanwhile commands are obeyed, and a long pause is a stall as if live
    due, give_up = numbers[OFFSET] + numbers[RATE] * numbers[LAST_STAMP], clock(state) + patience
    sleep_until(state, min(due, give_up))
    if due > give_up:
        return 0
    n = words[W_HELD]
    words[W_HELD] = 0
    return n


@jit
def _take_samples(loop: Loop, ring: SampleRing, wanted: int, patience: float) -> int:
    """Move at most `wanted` samples from the ring into the buffer; wait up to `patience` s for them."""
    state = loop.block[0]
    shared, words = state["shared"], state["words"]
    give_up = clock(state) + patience
    n = min(available(ring.ends), wanted)
    while n < wanted and load_acquire(shared, SOURCE_ENDED) == 0:
        if (n > 0 and words[W_PACED] == 0) or clock(state) >= give_up:
            break
        sleep(state, min(RING_POLL_S, give_up - clock(state)))
        n = min(available(ring.ends), wanted)
    if n == 0:
        if load_acquire(shared, SOURCE_ENDED) != 0 and available(ring.ends) == 0:
            _set_state(state, ENDED)
            sleep(state, 0.001)
        return 0
    for i in range(n):
        at = peek(ring.ends, ring.stamps.shape[0], i)
        loop.stamps[i] = ring.stamps[at]
        copy(loop.samples[i], ring.samples[at])
    release(ring.ends, n)
    return n


@jit
def _keep_pace(state: Any, stamp: float) -> None:
    """Tie the clock of a recording to ours at its first sample, and again where it was set back or forward."""
    words, numbers = state["words"], state["numbers"]
    if math.isfinite(stamp):
        step = stamp - numbers[LAST_STAMP]
        if words[W_TIED] == 0 or step < -CLOCK_RESET_S or step > LONGEST_PAUSE_S:
            numbers[OFFSET] = clock(state) - numbers[RATE] * stamp
            words[W_TIED] = 1
        numbers[LAST_STAMP] = stamp


@jit
def _wait_for_stimuli(
    loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any
) -> int:
    """Wait a bounded time for a message; stimuli are the samples of this source."""
    state = loop.block[0]
    # those that Python read come as inputs, and are queued
    if not dequeue_stimuli(pipeline, state["values"], state["sent"]):
        if state["words"][W_PULL] == 0:
            sleep(state, RING_POLL_S)
        if receive(loop, rings, pipeline, network, decoder, stimulation) != STIMULI_READ:
            return 0
    copy(loop.samples[0], state["values"])
    loop.stamps[0] = clock(state)
    return 1


@jit
def _send_frames(loop: Loop, rings: Rings) -> None:
    """Publish finished messages that other threads left in their ring."""
    for _ in range(min(available(rings.frames.ends), _FRAMES_PER_TURN)):
        row = rings.frames.rows[peek(rings.frames.ends, rings.frames.rows.shape[0], 0)]
        sizes = row[:FRAME_HEAD].view(np.int64)
        middle = FRAME_HEAD + sizes[0]
        at = row.ctypes.data
        _send(loop, rings.out, at + FRAME_HEAD, sizes[0], at + middle, sizes[1])
        release(rings.frames.ends, 1)


@jit
def _send(loop: Loop, out: Ring, topic: int, topic_bytes: int, payload: int, payload_bytes: int) -> None:
    """Send one message of two parts, given by their addresses: one compiled function for every kind of array.

    A PUB socket at its high-water mark drops it and never blocks.
    """
    state = loop.block[0]
    functions = state["functions"]
    state["counters"][C_MESSAGES] += 1
    if state["words"][W_OUT_RING]:
        at = reserve(out)
        if at >= 0:
            row = out.rows[at]
            sizes = row[:FRAME_HEAD].view(np.int64)
            sizes[0], sizes[1] = topic_bytes, payload_bytes
            start = row.ctypes.data + FRAME_HEAD
            call_memmove(functions[MEMMOVE], (start, topic, np.uint64(topic_bytes)))
            call_memmove(functions[MEMMOVE], (start + topic_bytes, payload, np.uint64(payload_bytes)))
            commit(out)
        return
    send, socket = functions[ZMQ_SEND], state["words"][W_PUB]
    first = call_send(send, (socket, topic, np.uint64(topic_bytes), np.int32(ZMQ_DONTWAIT | ZMQ_SNDMORE)))
    second = call_send(send, (socket, payload, np.uint64(payload_bytes), np.int32(ZMQ_DONTWAIT)))
    if first < 0 or second < 0:
        state["counters"][C_SEND_ERRORS] += 1


@jit
def _complete(state: Any, record: Any, arrival: float) -> None:
    """Put the stamp of a record on our clock, and judge whether it is late."""
    numbers = state["numbers"]
    record["t_sample"] = numbers[OFFSET] + numbers[RATE] * record["t_sample"]
    record["t_arrival"] = arrival
    record["inputs"] = state["counters"][C_INPUTS]
    if clock(state) - record["t_sample"] > numbers[LATE_S]:
        record["flags"] |= FLAG_LATE
        state["counters"][C_LATE] += 1


@jit
def _send_command(loop: Loop, rings: Rings, k: int, decoder: Any) -> None:
    """Stamp record `k`, and send what the decoder made of it where there is one."""
    state, record = loop.block[0], loop.records[k]
    words = state["words"]
    record["t_tick"] = clock(state)
    if state["words"][W_COMMANDS] == 0:
        return
    flags = record["flags"]
    if flags & _NO_COMMAND or record["conditions"] & _NO_COMMAND_IN:
        flags |= FLAG_INHIBITED
    frame = loop.command_frame
    expires = record["t_tick"] + state["numbers"][COMMAND_S]
    fill_command(frame, words[W_COMMAND_SEQ], record, decoder[0]["version"], flags, expires)
    words[W_COMMAND_SEQ] += 1
    _send(loop, rings.out, TOPIC_COMMAND.ctypes.data, TOPIC_COMMAND.shape[0], frame.ctypes.data, frame.shape[0])


@jit
def _send_decisions(loop: Loop, rings: Rings, pipeline: Pipeline) -> None:
    """Send the trains that the gate let pass, and hand all that it decided to the rest of the daemon."""
    for k in range(pipeline.words[N_DECISIONS]):
        if pipeline.decisions[k]["delivered"] != 0:
            _send_stimulation(loop, rings, _TRAIN, pipeline.decisions[k]["tick"], 0, pipeline.decisions, k)
        put(rings.decisions, loop.decision_rows, k)
    pipeline.words[N_DECISIONS] = 0


@jit
def _send_units(loop: Loop, rings: Rings, pipeline: Pipeline) -> None:
    """Send the spikes of sorted units, and hand them to the rest of the daemon."""
    state, topic = loop.block[0], TOPIC_UNITS
    words, numbers, frame = state["words"], state["numbers"], state["units_frame"]
    if pipeline.words[N_UNITS] == 0:
        return
    now = clock(state)
    for k in range(pipeline.words[N_UNITS]):
        unit = pipeline.units[k]
        unit["t_sample"] = numbers[OFFSET] + numbers[RATE] * unit["t_sample"]
        fill_units(frame, words[W_UNIT_SEQ], now, unit)
        words[W_UNIT_SEQ] += 1
        _send(loop, rings.out, topic.ctypes.data, topic.shape[0], frame.ctypes.data, frame.shape[0])
        put(rings.units, loop.unit_rows, k)
    pipeline.words[N_UNITS] = 0


@jit
def _keep_lease(loop: Loop, rings: Rings, pipeline: Pipeline, stimulation: Any) -> None:
    """Prolong the lease of stimulators while the gate is armed, and end it at once where it is no longer."""
    state, gate = loop.block[0], stimulation.gate[0]
    words = state["words"]
    if words[W_DISARMS] != gate["disarms"]:  # an arming may have ended and another begun since the last turn
        words[W_DISARMS] = gate["disarms"]
        words[W_ARMED] = 0
        _send_stimulation(loop, rings, _STOP, pipeline.words[TICK_NEXT], gate["disarm_reason"], loop.no_decision, 0)
    if gate["armed"] != 0 and (words[W_ARMED] == 0 or clock(state) >= state["numbers"][NEXT_LEASE]):
        words[W_ARMED] = 1
        _send_stimulation(loop, rings, _LEASE, pipeline.words[TICK_NEXT], 0, loop.no_decision, 0)


@jit
def _send_stimulation(loop: Loop, rings: Rings, kind: int, tick: int, reason: int, decisions: Any, k: int) -> None:
    state = loop.block[0]
    words, numbers, frame = state["words"], state["numbers"], state["stimulation_frame"]
    now = clock(state)
    lease = numbers[LEASE_S]
    expires = now + lease
    numbers[NEXT_LEASE] = now + 0.25 * lease
    if kind == _TRAIN:
        expires = decisions[k]["expires_ns"] * 1e-9
        numbers[NEXT_LEASE] = 0.0  # a train must begin sooner than the lease ends: the next message prolongs it
    fill_stimulation(frame, words[W_STIMULATION_SEQ], tick, now, kind, expires, reason, decisions[k])
    words[W_STIMULATION_SEQ] += 1
    topic = TOPIC_STIMULATION
    _send(loop, rings.out, topic.ctypes.data, topic.shape[0], frame.ctypes.data, frame.shape[0])


@jit
def _send_tick(loop: Loop, rings: Rings, k: int) -> None:
    """Number and send the messages of record `k`."""
    state, record = loop.block[0], loop.records[k]
    words = state["words"]
    record["seq"] = words[W_SEQ]
    if words[W_PUBLISH_ALL] == 0 and record["spikes"] == 0 and record["flags"] == 0:
        return
    words[W_SEQ] += 1
    frame = state["spikes_frame"]
    fill_spikes(
        frame,
        record["seq"],
        record["tick"],
        record["sample"],
        record["t_sample"],
        record["t_tick"],
        record["spikes"],
        record["flags"],
    )
    _send(loop, rings.out, TOPIC_SPIKES.ctypes.data, TOPIC_SPIKES.shape[0], frame.ctypes.data, frame.shape[0])
    if words[W_PUBLISH_STIMULI]:
        frame = state["stimuli_frame"]
        fill_stimuli(frame, record)
        _send(loop, rings.out, TOPIC_STIMULI.ctypes.data, TOPIC_STIMULI.shape[0], frame.ctypes.data, frame.shape[0])


@jit
def _keep_informed(loop: Loop, rings: Rings, pipeline: Pipeline, decoder: Any, now: float) -> None:
    """Notice that the source is silent, and keep subscribers informed by fillers at the pace of the blocks."""
    state = loop.block[0]
    words, numbers, counters = state["words"], state["numbers"], state["counters"]
    told = state["shared"][STATE]
    if words[W_STARTED] == 0 or told == ENDED or words[W_SOURCE] == SOURCE_ZMQ:
        return
    if now - numbers[LAST_DATA] < numbers[STALL_S]:
        return
    if numbers[NEXT_FILLER] <= numbers[LAST_DATA]:  # the first of this silence
        counters[C_STALLS] += 1
        numbers[NEXT_FILLER] = now
    if told == STREAMING:
        _set_state(state, STALLED)
    if now >= numbers[NEXT_FILLER]:
        # one that comes late is not made up for by a burst
        numbers[NEXT_FILLER] = max(numbers[NEXT_FILLER] + numbers[FILLER_S], now)
        k = loop.records.shape[0] - 1
        record = loop.records[k]
        record["flags"] = FLAG_FILLER
        record["conditions"] = CONDITION_SILENT
        record["spikes"] = 0
        record["events"] = 0
        stand_still(record)
        record["t_sent"] = 0.0
        record["inputs"] = counters[C_INPUTS]
        for i in range(record["outputs"].shape[0]):
            record["outputs"][i] = 0.0
        record["now_ns"] = _ns(now)
        record["record"] = pipeline.words[RECORDS]
        stand_by(pipeline)
        counters[C_FILLERS] += 1
        _send_command(loop, rings, k, decoder)
        _send_tick(loop, rings, k)
        put(rings.ticks, loop.record_rows, k)
