"""The real-time loop: from liblsl (or a ring, or a socket) to libzmq in compiled code that never enters the interpreter.

One thread runs `run`. It pulls exactly the samples that the open block still needs, hands them to `consume`, fills one
message per tick in place and sends it, and keeps a record of the tick in a ring for the rest of the daemon. Commands and
inputs come by a ring or from the ingest socket and take effect between two ticks; each is echoed, with the tick at which
it did. When the source falls silent, flagged fillers keep subscribers informed; they do not advance the network, so that
a session replays bit for bit whatever stalls there were.

Only this thread touches the output and the ingest socket while it runs, and only it pulls from the inlet.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import wire
from neuromod.bridge.frames import (
    TOPIC_SPIKES,
    TOPIC_STIMULI,
    fill_spikes,
    fill_stimuli,
    keys_table,
    read_numbers,
    read_stimuli,
    spikes_frame,
    stimuli_frame,
)
from neuromod.bridge.native import (
    LSL_LOCAL_CLOCK,
    LSL_PULL_CHUNK_F,
    MEMMOVE,
    SLEEP,
    SLEEP_UNIT_US,
    ZMQ_DONTWAIT,
    ZMQ_GETSOCKOPT,
    ZMQ_RCVMORE,
    ZMQ_RECV,
    ZMQ_SEND,
    ZMQ_SNDMORE,
    call_clock,
    call_getsockopt,
    call_memmove,
    call_pull,
    call_recv,
    call_send,
    call_sleep,
    load_acquire,
    store_release,
)
from neuromod.bridge.pipeline import (
    FLAG_MODULATED,
    FLAGS_NEXT,
    PAUSED,
    TICK,
    TICK_NEXT,
    Pipeline,
    consume,
    dequeue_stimuli,
    enqueue_stimuli,
    samples_wanted,
)
from neuromod.bridge.ring import Ring, SampleRing, available, make_ring, make_sample_ring, peek, put, release, rows_of, take_many
from neuromod.engine.compiled import jit
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import MODULATORS
from neuromod.engine.tick import add_reward, add_stress, set_learning, set_modulator, set_parameter

FLAG_FILLER, FLAG_LATE = int(wire.Flag.FILLER), int(wire.Flag.LATE)

# where samples come from
SOURCE_LSL, SOURCE_RING, SOURCE_ZMQ = 0, 1, 2

# states that the loop reports in `Loop.shared[STATE]`
WAITING, STREAMING, STALLED, LOST, ENDED = range(5)
STATE_NAMES = ("waiting", "streaming", "stalled", "lost", "ended")

# what an input asks for
LEVELS, REWARD, STRESS, STIMULI, PAUSE, RESUME, LEARNING, SET, CLOCK, INLET, SNAPSHOT, RESTORE = range(12)

INPUT = np.dtype(
    [
        ("kind", np.int64),
        ("id", np.int64),  # echoed; 0 for what the loop read from the socket itself
        ("tick", np.int64),  # in the echo: the first tick that it acts on
        ("word", np.int64),  # LEVELS: bit i = modulator i is given; LEARNING: on; SET: parameter; INLET: handle
        ("values", np.float64, (N_CHANNELS,)),
    ],
    align=True,
)
"""A command or an input on its way into the loop, and its echo."""

FRAME_BYTES = 16384
FRAME = np.dtype([("topic", np.int64), ("payload", np.int64), ("data", np.uint8, (FRAME_BYTES,))], align=True)
"""A message: lengths of topic and payload, and the two one after the other."""

_INGEST_BYTES = wire.MAX_INBOUND_BYTES
INGEST_FRAME = np.dtype([("topic", np.int64), ("payload", np.int64), ("data", np.uint8, (64 + _INGEST_BYTES,))], align=True)
"""A message from ingest that the loop leaves to Python."""

# words of `Loop.shared`, one cache line each
STOP, STATE, SOURCE_ENDED = 0, 8, 16

# words of `Loop.words`
(
    _SOURCE,
    _INLET,
    _PUB,
    _PULL,
    _PUBLISH_ALL,
    _PUBLISH_STIMULI,
    _PACED,
    _STARTED,
    _SEQ,
    _OUT_RING,
    _N_CHANNELS,
) = range(11)

# numbers of `Loop.numbers`: local clock = OFFSET + RATE x stamp
OFFSET, RATE, _STALL_S, _LATE_S, _FILLER_S, _LAST_DATA, _NEXT_FILLER, _LAST_STAMP = range(8)

LOOP_COUNTERS = (
    "messages",
    "fillers",
    "stalls",
    "late_ticks",
    "inputs",
    "ingest_messages",
    "ingest_oversized",
    "ingest_parts",
    "send_errors",
    "pull_errors",
    "wait_us",
)
"""Names of `Loop.counters`, in order."""
(
    _MESSAGES,
    _FILLERS,
    _STALLS,
    _LATE,
    _INPUTS,
    _INGEST,
    _OVERSIZED,
    _PARTS,
    _SEND_ERRORS,
    _PULL_ERRORS,
    _WAIT_US,
) = range(len(LOOP_COUNTERS))

_WAIT_S = 0.02  # longest wait for samples, so that commands and the stop flag are seen
_INGEST_PER_TURN = 16
_FRAMES_PER_TURN = 8
_LONGEST_PAUSE_S = 5.0  # a recording's pause longer than this, or a step back in time, is not waited for
_NOTHING, _STIMULI_READ, _HANDLED = 0, 1, 2


class Loop(NamedTuple):
    """State of `run`, apart from the pipeline's. All arrays; `shared` and the rings cross threads."""

    functions: NDArray[np.int64]
    shared: NDArray[np.int64]
    words: NDArray[np.int64]
    numbers: NDArray[np.float64]
    counters: NDArray[np.int64]
    samples: NDArray[np.float32]
    stamps: NDArray[np.float64]
    records: NDArray[Any]
    record_rows: NDArray[np.uint8]
    filler: NDArray[Any]
    filler_rows: NDArray[np.uint8]
    echo: NDArray[Any]
    echo_rows: NDArray[np.uint8]
    odd: NDArray[Any]
    odd_rows: NDArray[np.uint8]
    spikes_frame: NDArray[np.uint8]
    stimuli_frame: NDArray[np.uint8]
    topic_spikes: NDArray[np.uint8]
    topic_stimuli: NDArray[np.uint8]
    out: NDArray[Any]
    out_rows: NDArray[np.uint8]
    topic: NDArray[np.uint8]
    payload: NDArray[np.uint8]
    values: NDArray[np.float32]
    numbers_read: NDArray[np.float64]
    numbers_present: NDArray[np.bool_]
    level_keys: NDArray[np.uint8]
    level_limits: NDArray[np.float64]
    amount_keys: NDArray[np.uint8]
    scratch: NDArray[np.int64]  # where C functions leave an int, a size or an error code
    snapshot_parts: NDArray[np.int64]  # (address, bytes) of all that a checkpoint holds
    snapshot: NDArray[np.uint8]


class Rings(NamedTuple):
    """The rings between the loop and the rest of the daemon."""

    samples: SampleRing  # to the loop: samples of a source that is read by a Python thread
    inputs: Ring  # to the loop: INPUT
    echoes: Ring  # from the loop: INPUT, with the tick of its effect
    ticks: Ring  # from the loop: TICK
    frames: Ring  # to the loop: FRAME, to be published
    odd: Ring  # from the loop: INGEST_FRAME, for Python to read
    out: Ring  # from the loop: FRAME, where libzmq cannot be called from compiled code


def make_rings(n_channels: int, *, samples_capacity: int = 2, ticks_capacity: int = 16384) -> Rings:
    """Allocate the rings for one stream."""
    return Rings(
        samples=make_sample_ring(n_channels, samples_capacity),
        inputs=make_ring(INPUT, 1024),
        echoes=make_ring(INPUT, 4096),
        ticks=make_ring(TICK, ticks_capacity),
        frames=make_ring(FRAME, 64),
        odd=make_ring(INGEST_FRAME, 256),
        out=make_ring(FRAME, 256),
    )


def make_loop(
    functions: NDArray[np.int64],
    *,
    source: int,
    n_channels: int,
    chunk: int,
    ticks_per_block: int,
    block_s: float,
    stall_s: float,
    late_s: float,
    publish_all: bool,
    publish_stimuli: bool,
    paced_rate: float,
    parts: list[NDArray[Any]],
) -> Loop:
    """Allocate the state of `run`.

    Parameters
    ----------
    functions : ndarray of int64
        From `native.c_functions`.
    source : int
        SOURCE_LSL, SOURCE_RING or SOURCE_ZMQ.
    n_channels, chunk : int
        Width of a sample, and the most samples that are pulled at a time.
    ticks_per_block, block_s : int, float
        Network steps per block, and its length in seconds.
    stall_s, late_s : float
        Silence that counts as a stall, and sample age that counts as late, in seconds.
    publish_all, publish_stimuli : bool
        Publish ticks without spikes too; publish stimuli as well.
    paced_rate : float
        SOURCE_RING: seconds of recording per second, 0 to take samples as they come.
    parts : list of ndarray
        Contiguous arrays that a checkpoint holds.
    """
    records = np.zeros(max(ticks_per_block, 64), TICK)
    filler, echo, odd = np.zeros(1, TICK), np.zeros(1, INPUT), np.zeros(1, INGEST_FRAME)
    out = np.zeros(1, FRAME)
    words = np.zeros(16, np.int64)
    words[_SOURCE] = source
    words[_PUBLISH_ALL] = publish_all
    words[_PUBLISH_STIMULI] = publish_stimuli
    words[_PACED] = paced_rate > 0
    words[_OUT_RING] = not functions[ZMQ_SEND]
    words[_N_CHANNELS] = n_channels
    numbers = np.zeros(8, np.float64)
    numbers[RATE] = 1.0 / paced_rate if paced_rate > 0 else 1.0
    numbers[_STALL_S], numbers[_LATE_S], numbers[_FILLER_S] = stall_s, late_s, block_s
    limits = np.array([wire.MODULATOR_LIMITS[name] for name in MODULATORS])
    return Loop(
        functions=functions,
        shared=np.zeros(24, np.int64),
        words=words,
        numbers=numbers,
        counters=np.zeros(len(LOOP_COUNTERS), np.int64),
        samples=np.zeros((chunk, n_channels), np.float32),
        stamps=np.zeros(chunk, np.float64),
        records=records,
        record_rows=rows_of(records),
        filler=filler,
        filler_rows=rows_of(filler),
        echo=echo,
        echo_rows=rows_of(echo),
        odd=odd,
        odd_rows=rows_of(odd),
        spikes_frame=spikes_frame(),
        stimuli_frame=stimuli_frame(),
        topic_spikes=TOPIC_SPIKES.copy(),
        topic_stimuli=TOPIC_STIMULI.copy(),
        out=out,
        out_rows=rows_of(out),
        topic=np.zeros(64, np.uint8),
        payload=np.zeros(_INGEST_BYTES, np.uint8),
        values=np.zeros(N_CHANNELS, np.float32),
        numbers_read=np.zeros(4, np.float64),
        numbers_present=np.zeros(4, np.bool_),
        level_keys=keys_table(MODULATORS),
        level_limits=limits,
        amount_keys=keys_table(("amount",)),
        scratch=np.zeros(4, np.int64),
        snapshot_parts=np.array([(part.ctypes.data, part.nbytes) for part in parts], np.int64).reshape(-1, 2),
        snapshot=np.zeros(sum(part.nbytes for part in parts), np.uint8),
    )


def set_handles(loop: Loop, *, inlet: int = 0, pub: int = 0, pull: int = 0) -> None:
    """Give the loop its inlet and its two sockets, before it runs."""
    loop.words[_INLET], loop.words[_PUB], loop.words[_PULL] = inlet, pub, pull


@jit
def run(loop: Loop, rings: Rings, pipeline: Pipeline, front_end: Any, encoder: Any, network: Any) -> None:
    """Run until ``loop.shared[STOP]`` is set. Called in a thread of its own, once."""
    words = loop.words
    while load_acquire(loop.shared, STOP) == 0:
        _take_inputs(loop, rings, pipeline, front_end, encoder, network)
        _send_frames(loop, rings)
        n = 0
        if words[_SOURCE] == SOURCE_ZMQ:
            n = _wait_for_stimuli(loop, rings, pipeline, network)
        else:
            for _ in range(_INGEST_PER_TURN):
                got = _receive(loop, rings, pipeline, network, ZMQ_DONTWAIT)
                if got == _NOTHING:
                    break
                if got == _STIMULI_READ:
                    enqueue_stimuli(pipeline, loop.values)
            wanted = min(samples_wanted(pipeline), loop.stamps.shape[0])
            n = _pull_ring(loop, rings, wanted) if words[_SOURCE] == SOURCE_RING else _pull_lsl(loop, wanted)
        now = _clock(loop)
        if n > 0:
            loop.numbers[_LAST_DATA] = now
            words[_STARTED] = 1
            _set_state(loop, STREAMING)
            done = 0
            while done < n:
                done, n_records = consume(
                    pipeline, front_end, encoder, network, loop.samples, loop.stamps, done, n, loop.records, 0
                )
                for k in range(n_records):
                    _publish(loop, rings, loop.records, loop.record_rows, k, now)
        else:
            _watch(loop, rings, pipeline, now)


@jit
def _clock(loop: Loop) -> float:
    return call_clock(loop.functions[LSL_LOCAL_CLOCK], ())


@jit
def _sleep(loop: Loop, seconds: float) -> None:
    if seconds > 0.0:
        call_sleep(loop.functions[SLEEP], (np.uint32(max(1.0, seconds * 1e6 / SLEEP_UNIT_US)),))


@jit
def _set_state(loop: Loop, state: int) -> None:
    if loop.shared[STATE] != state:
        store_release(loop.shared, STATE, state)


@jit
def _patience(loop: Loop) -> float:
    """Return how long to wait for samples: until something else is due."""
    if loop.words[_STARTED] == 0:
        return _WAIT_S
    now = _clock(loop)
    due = loop.numbers[_LAST_DATA] + loop.numbers[_STALL_S]
    if due <= now:
        due = loop.numbers[_NEXT_FILLER]
    return min(max(due - now, 0.0), _WAIT_S)


@jit
def _pull_lsl(loop: Loop, wanted: int) -> int:
    """Pull at most `wanted` samples into the buffer; return how many came in time."""
    words = loop.words
    patience = _patience(loop)
    if words[_INLET] == 0:
        _sleep(loop, min(patience, 0.001))
        return 0
    width = words[_N_CHANNELS]
    loop.scratch[0] = 0
    got = call_pull(
        loop.functions[LSL_PULL_CHUNK_F],
        (
            words[_INLET],
            loop.samples.ctypes.data,
            loop.stamps.ctypes.data,
            np.uint64(wanted * width),
            np.uint64(wanted),
            patience,
            loop.scratch.ctypes.data,
        ),
    )
    error = np.int32(loop.scratch[0] & 0xFFFFFFFF)
    if error != 0 and error != -1:  # -1 is a timeout
        # the stream is gone: the inlet is not touched again until Python sends a new one
        loop.counters[_PULL_ERRORS] += 1
        words[_INLET] = 0
        _set_state(loop, LOST)
    return np.int64(got) // width


@jit
def _pull_ring(loop: Loop, rings: Rings, wanted: int) -> int:
    """Take at most `wanted` samples from the ring of a Python source, not before they are due where it is paced."""
    words, numbers = loop.words, loop.numbers
    give_up = _clock(loop) + _patience(loop)
    n = min(available(rings.samples.index), wanted)
    while n < wanted and load_acquire(loop.shared, SOURCE_ENDED) == 0:
        if (n > 0 and words[_PACED] == 0) or _clock(loop) >= give_up:
            break
        _sleep(loop, 100e-6)
        n = min(available(rings.samples.index), wanted)
    if n == 0:
        if load_acquire(loop.shared, SOURCE_ENDED) != 0 and available(rings.samples.index) == 0:
            _set_state(loop, ENDED)
            _sleep(loop, 0.001)
        return 0
    for i in range(n):
        at = peek(rings.samples.index, rings.samples.stamps.shape[0], i)
        stamp = rings.samples.stamps[at]
        if words[_PACED]:
            now = _clock(loop)
            step = stamp - numbers[_LAST_STAMP]
            if words[_STARTED] == 0 and i == 0 or not (step >= 0.0 and step <= _LONGEST_PAUSE_S):
                if math.isfinite(stamp):
                    numbers[OFFSET] = now - stamp * numbers[RATE]
            if math.isfinite(stamp):
                numbers[_LAST_STAMP] = stamp
        loop.stamps[i] = stamp
        loop.samples[i, :] = rings.samples.samples[at]
    if words[_PACED]:
        due = numbers[OFFSET] + numbers[_LAST_STAMP] * numbers[RATE]
        # in slices, so that a stop is seen during a long pause
        while load_acquire(loop.shared, STOP) == 0:
            left = due - _clock(loop)
            if left <= 0.0:
                break
            _sleep(loop, min(left, _WAIT_S))
    release(rings.samples.index, n)
    return n


@jit
def _wait_for_stimuli(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> int:
    """Wait a bounded time for a message; stimuli are the samples of this source."""
    if not dequeue_stimuli(pipeline, loop.values):  # those that Python read come as inputs, and are queued
        if loop.words[_PULL] == 0:
            _sleep(loop, 100e-6)
        if _receive(loop, rings, pipeline, network, 0) != _STIMULI_READ:
            return 0
    loop.samples[0, :] = loop.values
    loop.stamps[0] = _clock(loop)
    return 1


@jit
def _receive(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, flags: int) -> int:
    """Read one ingest message, always to its end.

    What is in the usual form and in range takes effect here; anything else goes to Python, which judges and counts it.
    """
    socket = loop.words[_PULL]
    if socket == 0:
        return _NOTHING
    functions, counters = loop.functions, loop.counters
    n_topic = _receive_part(loop, socket, loop.topic, flags)
    if n_topic < 0:
        return _NOTHING
    counters[_INGEST] += 1
    n_payload = -1
    extra = 0
    while _more(loop, socket):
        if n_payload < 0:
            n_payload = _receive_part(loop, socket, loop.payload, 0)
        else:
            extra += 1
            _receive_part(loop, socket, loop.odd[0]["data"], 0)
    if n_payload < 0 or extra > 0:
        counters[_PARTS] += 1
        return _HANDLED
    if n_topic > loop.topic.shape[0] or n_payload > loop.payload.shape[0]:
        counters[_OVERSIZED] += 1
        return _HANDLED
    if _is_topic(loop, n_topic, b"stimuli") and read_stimuli(loop.payload, n_payload, loop.values):
        return _STIMULI_READ
    echo = loop.echo[0]
    echo["id"] = 0
    echo["word"] = 0
    if _is_topic(loop, n_topic, b"modulators"):
        if read_numbers(loop.payload, n_payload, loop.level_keys, loop.numbers_read, loop.numbers_present):
            fits = True
            for m in range(loop.level_keys.shape[0]):
                if loop.numbers_present[m]:
                    x = loop.numbers_read[m]
                    fits = fits and loop.level_limits[m, 0] <= x <= loop.level_limits[m, 1]
                    echo["values"][m] = x
                    echo["word"] |= 1 << m
            if fits and echo["word"] != 0:
                echo["kind"] = LEVELS
                _apply(loop, rings, pipeline, network)
                return _HANDLED
    elif (_is_topic(loop, n_topic, b"reward") or _is_topic(loop, n_topic, b"stress")) and read_numbers(
        loop.payload, n_payload, loop.amount_keys, loop.numbers_read, loop.numbers_present
    ):
        is_reward = loop.topic[0] == ord("r")
        if loop.numbers_present[0] and (is_reward or loop.numbers_read[0] >= 0.0):
            echo["values"][0] = loop.numbers_read[0]
            echo["kind"] = REWARD if is_reward else STRESS
            _apply(loop, rings, pipeline, network)
            return _HANDLED
    odd = loop.odd[0]
    odd["topic"] = n_topic
    odd["payload"] = n_payload
    for i in range(n_topic):
        odd["data"][i] = loop.topic[i]
    for i in range(n_payload):
        odd["data"][n_topic + i] = loop.payload[i]
    put(rings.odd.index, rings.odd.rows, loop.odd_rows, 0)
    return _HANDLED


@jit
def _receive_part(loop: Loop, socket: int, buffer: NDArray[np.uint8], flags: int) -> int:
    """Return the length of the part, which may be more than the buffer took; negative where there was none."""
    return call_recv(
        loop.functions[ZMQ_RECV], (socket, buffer.ctypes.data, np.uint64(buffer.shape[0]), np.int32(flags))
    )


@jit
def _more(loop: Loop, socket: int) -> bool:
    """Say whether the message that is being read has another part."""
    loop.scratch[1] = 0
    loop.scratch[2] = 4
    address = loop.scratch.ctypes.data
    failed = call_getsockopt(loop.functions[ZMQ_GETSOCKOPT], (socket, np.int32(ZMQ_RCVMORE), address + 8, address + 16))
    return failed == 0 and (loop.scratch[1] & 0xFFFFFFFF) != 0


@jit
def _take_inputs(loop: Loop, rings: Rings, pipeline: Pipeline, front_end: Any, encoder: Any, network: Any) -> None:
    """Apply the commands and inputs that wait in their ring."""
    for _ in range(available(rings.inputs.index)):
        take_many(rings.inputs.index, rings.inputs.rows, loop.echo_rows)
        _apply(loop, rings, pipeline, network)


@jit
def _apply(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> None:
    """Let the input in `loop.echo` take effect, and echo it with the number of the first tick that it acts on."""
    echo = loop.echo[0]
    kind, word, values = echo["kind"], echo["word"], echo["values"]
    if kind == LEVELS:
        for m in range(4):
            if word >> m & 1:
                set_modulator(network, m, np.float32(values[m]))
        pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED
    elif kind == REWARD:
        add_reward(network, np.float32(values[0]))
        pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED
    elif kind == STRESS:
        add_stress(network, np.float32(values[0]))
        pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED
    elif kind == STIMULI:
        for c in range(N_CHANNELS):
            loop.values[c] = np.float32(values[c])
        enqueue_stimuli(pipeline, loop.values)
    elif kind == PAUSE:
        pipeline.words[PAUSED] = 1
    elif kind == RESUME:
        pipeline.words[PAUSED] = 0
    elif kind == LEARNING:
        set_learning(network, word != 0)
    elif kind == SET:
        set_parameter(network, word, values[0])
    elif kind == CLOCK:
        loop.numbers[OFFSET] = values[0]
    elif kind == INLET:
        loop.words[_INLET] = word
    elif kind == SNAPSHOT or kind == RESTORE:
        _copy_parts(loop, kind == RESTORE)
    echo["tick"] = pipeline.words[TICK_NEXT]
    loop.counters[_INPUTS] += 1
    put(rings.echoes.index, rings.echoes.rows, loop.echo_rows, 0)


@jit
def _copy_parts(loop: Loop, back: bool) -> None:
    """Copy all that a checkpoint holds into `loop.snapshot`, or back."""
    at = loop.snapshot.ctypes.data
    for k in range(loop.snapshot_parts.shape[0]):
        part, size = loop.snapshot_parts[k, 0], loop.snapshot_parts[k, 1]
        source, target = (at, part) if back else (part, at)
        call_memmove(loop.functions[MEMMOVE], (target, source, np.uint64(size)))
        at += size


@jit
def _send_frames(loop: Loop, rings: Rings) -> None:
    """Publish finished messages that other threads left in their ring."""
    n = min(available(rings.frames.index), _FRAMES_PER_TURN)
    for _ in range(n):
        frame = rings.frames.records[peek(rings.frames.index, rings.frames.rows.shape[0], 0)]
        topic = frame["data"][: frame["topic"]]
        payload = frame["data"][frame["topic"] : frame["topic"] + frame["payload"]]
        _send(loop, rings, topic, payload)
        release(rings.frames.index, 1)


@jit
def _send(loop: Loop, rings: Rings, topic: NDArray[np.uint8], payload: NDArray[np.uint8]) -> None:
    """Send one message of two parts. A PUB socket at its high-water mark drops it and never blocks."""
    loop.counters[_MESSAGES] += 1
    if loop.words[_OUT_RING]:
        out = loop.out[0]
        out["topic"] = topic.shape[0]
        out["payload"] = payload.shape[0]
        for i in range(topic.shape[0]):
            out["data"][i] = topic[i]
        for i in range(payload.shape[0]):
            out["data"][topic.shape[0] + i] = payload[i]
        put(rings.out.index, rings.out.rows, loop.out_rows, 0)
        return
    send, socket = loop.functions[ZMQ_SEND], loop.words[_PUB]
    first = call_send(
        send, (socket, topic.ctypes.data, np.uint64(topic.shape[0]), np.int32(ZMQ_DONTWAIT | ZMQ_SNDMORE))
    )
    second = call_send(send, (socket, payload.ctypes.data, np.uint64(payload.shape[0]), np.int32(ZMQ_DONTWAIT)))
    if first < 0 or second < 0:
        loop.counters[_SEND_ERRORS] += 1


@jit
def _publish(
    loop: Loop, rings: Rings, records: NDArray[Any], rows: NDArray[np.uint8], k: int, arrival: float
) -> None:
    """Complete the record of a tick, publish it, and keep it for the rest of the daemon."""
    record = records[k]
    now = _clock(loop)
    t_sample = loop.numbers[OFFSET] + loop.numbers[RATE] * record["t_sample"]
    flags = record["flags"]
    if now - t_sample > loop.numbers[_LATE_S]:
        flags |= FLAG_LATE
        loop.counters[_LATE] += 1
    record["t_sample"] = t_sample
    record["t_arrival"] = arrival
    record["flags"] = flags
    _send_tick(loop, rings, record, now)
    loop.filler_rows[0, :] = rows[k]
    put(rings.ticks.index, rings.ticks.rows, rows, k)


@jit
def _send_tick(loop: Loop, rings: Rings, record: Any, now: float) -> None:
    """Number and send the messages of one record."""
    words = loop.words
    record["t_tick"] = now
    record["seq"] = words[_SEQ]
    if words[_PUBLISH_ALL] or record["spikes"] != 0 or record["flags"] != 0:
        words[_SEQ] += 1
        fill_spikes(
            loop.spikes_frame,
            record["seq"],
            record["tick"],
            record["sample"],
            record["t_sample"],
            now,
            record["spikes"],
            record["flags"],
        )
        _send(loop, rings, loop.topic_spikes, loop.spikes_frame)
        if words[_PUBLISH_STIMULI]:
            fill_stimuli(loop.stimuli_frame, record["seq"], record["tick"], record["stimuli"])
            _send(loop, rings, loop.topic_stimuli, loop.stimuli_frame)


@jit
def _watch(loop: Loop, rings: Rings, pipeline: Pipeline, now: float) -> None:
    """Notice that the source is silent, and keep subscribers informed by fillers at the pace of the blocks."""
    words, numbers = loop.words, loop.numbers
    state = loop.shared[STATE]
    if words[_STARTED] == 0 or state == ENDED or words[_SOURCE] == SOURCE_ZMQ:
        return
    if now - numbers[_LAST_DATA] < numbers[_STALL_S]:
        return
    if state == STREAMING:
        loop.counters[_STALLS] += 1
        numbers[_NEXT_FILLER] = now
        _set_state(loop, STALLED)
    if numbers[_NEXT_FILLER] == 0.0:
        numbers[_NEXT_FILLER] = now
    if now >= numbers[_NEXT_FILLER]:
        # a filler that comes late is not made up for by a burst
        numbers[_NEXT_FILLER] = max(numbers[_NEXT_FILLER] + numbers[_FILLER_S], now)
        record = loop.filler[0]
        record["flags"] = FLAG_FILLER
        record["spikes"] = 0
        loop.counters[_FILLERS] += 1
        _send_tick(loop, rings, record, now)
        put(rings.ticks.index, rings.ticks.rows, loop.filler_rows, 0)


@jit
def _is_topic(loop: Loop, size: int, name: bytes) -> bool:
    if size != len(name):
        return False
    for i in range(len(name)):
        if loop.topic[i] != name[i]:
            return False
    return True
