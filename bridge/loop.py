"""The real-time loop: from liblsl (or a ring, or a socket) to libzmq in compiled code, never in the interpreter.

One thread runs `run`. It pulls exactly the samples that the open block still needs, hands them to `consume`, fills one
message per tick in place and sends it, and keeps a record of the tick in a ring for the rest of the daemon. Commands
and inputs come by a ring or from the ingest socket and take effect between two ticks; each is echoed, with the tick at
which it did. When the source falls silent, flagged fillers keep subscribers informed; they do not advance the network,
so that a session replays bit for bit whatever stalls there were.

Only this thread touches the output and the ingest socket while it runs, and only it pulls from the inlet.
"""

import math
from typing import Any

import numpy as np

from neuromod.adapters.memory import CLOCK_RESET_S, LONGEST_PAUSE_S
from neuromod.bridge import wire
from neuromod.bridge.frames import (
    TOPIC_SPIKES,
    TOPIC_STIMULI,
    fill_spikes,
    fill_stimuli,
)
from neuromod.bridge.loop_inputs import STIMULI_READ, read_ingest, receive, take_inputs
from neuromod.bridge.loop_state import (
    C_FILLERS,
    C_LATE,
    C_MESSAGES,
    C_PULL_ERRORS,
    C_SEND_ERRORS,
    C_STALLS,
    ENDED,
    FILLER_S,
    FRAME_HEAD,
    LAST_DATA,
    LAST_STAMP,
    LATE_S,
    LOST,
    NEXT_FILLER,
    OFFSET,
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
    W_HELD,
    W_INLET,
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
    W_TIED,
    Loop,
    Rings,
    clock,
    sleep,
)
from neuromod.bridge.native import (
    LSL_PULL_CHUNK_F,
    MEMMOVE,
    ZMQ_DONTWAIT,
    ZMQ_SEND,
    ZMQ_SNDMORE,
    call_memmove,
    call_pull,
    call_send,
    copy,
    load_acquire,
    store_release,
)
from neuromod.bridge.pipeline import (
    Pipeline,
    consume,
    dequeue_stimuli,
    samples_wanted,
)
from neuromod.bridge.ring import (
    Ring,
    SampleRing,
    available,
    commit,
    peek,
    put,
    release,
    reserve,
)
from neuromod.engine.compiled import jit

FLAG_FILLER, FLAG_LATE = int(wire.Flag.FILLER), int(wire.Flag.LATE)

_WAIT_S = 0.02  # longest wait for samples, so that commands and the stop flag are seen
_FRAMES_PER_TURN = 8
_LSL_TIMEOUT = -1


@jit
def run(loop: Loop, rings: Rings, pipeline: Pipeline, front_end: Any, encoder: Any, network: Any) -> None:
    """Run until ``shared[STOP]`` is set. Called in a thread of its own, once."""
    state = loop.block[0]
    words, numbers, shared = state["words"], state["numbers"], state["shared"]
    while load_acquire(shared, STOP) == 0:
        take_inputs(loop, rings, pipeline, network)
        _send_frames(loop, rings)
        if words[W_SOURCE] == SOURCE_ZMQ:
            n = _wait_for_stimuli(loop, rings, pipeline, network)
        else:
            read_ingest(loop, rings, pipeline, network)
            wanted = min(samples_wanted(pipeline), loop.stamps.shape[0])
            if words[W_SOURCE] == SOURCE_RING:
                n = _pull_ring(loop, rings.samples, wanted)
            else:
                n = _pull_lsl(loop, wanted)
        now = clock(state)
        if n > 0:
            numbers[LAST_DATA] = now
            words[W_STARTED] = 1
            _set_state(state, STREAMING)
            done: Any = np.int64(0)  # a literal would have consume compiled twice
            while done < n:
                done, n_records = consume(
                    pipeline, front_end, encoder, network, loop.samples, loop.stamps, done, n, loop.records
                )
                for k in range(n_records):
                    _complete(state, loop.records[k], now)
                    _send_tick(loop, rings, k)
                    put(rings.ticks, loop.record_rows, k)
                if n_records > 0:
                    copy(loop.record_rows[-1], loop.record_rows[n_records - 1])
        else:
            _watch(loop, rings, now)


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
    return min(max(due - now, 0.0), _WAIT_S)


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
    left = numbers[OFFSET] + numbers[RATE] * numbers[LAST_STAMP] - clock(state)
    sleep(state, min(left, patience))
    if left > patience:
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
        sleep(state, RING_POLL_S)
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
def _wait_for_stimuli(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> int:
    """Wait a bounded time for a message; stimuli are the samples of this source."""
    state = loop.block[0]
    if not dequeue_stimuli(pipeline, state["values"]):  # those that Python read come as inputs, and are queued
        if state["words"][W_PULL] == 0:
            sleep(state, RING_POLL_S)
        if receive(loop, rings, pipeline, network) != STIMULI_READ:
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
    if clock(state) - record["t_sample"] > numbers[LATE_S]:
        record["flags"] |= FLAG_LATE
        state["counters"][C_LATE] += 1


@jit
def _send_tick(loop: Loop, rings: Rings, k: int) -> None:
    """Number, stamp and send the messages of record `k`."""
    state, record = loop.block[0], loop.records[k]
    words = state["words"]
    now = clock(state)
    record["t_tick"] = now
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
        now,
        record["spikes"],
        record["flags"],
    )
    _send(loop, rings.out, TOPIC_SPIKES.ctypes.data, TOPIC_SPIKES.shape[0], frame.ctypes.data, frame.shape[0])
    if words[W_PUBLISH_STIMULI]:
        frame = state["stimuli_frame"]
        fill_stimuli(frame, record["seq"], record["tick"], record["stimuli"])
        _send(loop, rings.out, TOPIC_STIMULI.ctypes.data, TOPIC_STIMULI.shape[0], frame.ctypes.data, frame.shape[0])


@jit
def _watch(loop: Loop, rings: Rings, now: float) -> None:
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
        record["spikes"] = 0
        counters[C_FILLERS] += 1
        _send_tick(loop, rings, k)
        put(rings.ticks, loop.record_rows, k)
