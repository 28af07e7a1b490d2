"""The real-time loop: from liblsl (or a ring, or a socket) to libzmq in compiled code, never in the interpreter.

One thread runs `run`. It pulls exactly the samples that the open block still needs, hands them to `consume`, fills one
message per tick in place and sends it, and keeps a record of the tick in a ring for the rest of the daemon. Commands
and inputs come by a ring or from the ingest socket and take effect between two ticks; each is echoed, with the tick at
which it did. When the source falls silent, flagged fillers keep subscribers informed; they do not advance the network,
so that a session replays bit for bit whatever stalls there were.

Only this thread touches the output and the ingest socket while it runs, and only it pulls from the inlet.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.memory import CLOCK_RESET_S, LONGEST_PAUSE_S
from neuromod.bridge import wire
from neuromod.bridge.frames import (
    TOPIC_MODULATORS,
    TOPIC_REWARD,
    TOPIC_SPIKES,
    TOPIC_STIMULI,
    TOPIC_STRESS,
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
    N_FUNCTIONS,
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
    copy,
    load_acquire,
    store_release,
)
from neuromod.bridge.pipeline import (
    ANCHORED,
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
from neuromod.bridge.ring import (
    Ring,
    SampleRing,
    available,
    commit,
    make_ring,
    make_sample_ring,
    peek,
    put,
    release,
    reserve,
    rows_of,
    take,
)
from neuromod.engine.compiled import jit
from neuromod.engine.layout import LIVE, N_CHANNELS
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
        ("word", np.int64),  # LEVELS, SET: bit i = modulator or parameter i is given; LEARNING: on; INLET: handle
        ("values", np.float64, (N_CHANNELS,)),
    ],
    align=True,
)
"""A command or an input on its way into the loop, and its echo."""

FRAME_BYTES = 16384
FRAME = np.dtype([("topic", np.int64), ("payload", np.int64), ("data", np.uint8, (FRAME_BYTES,))], align=True)
"""A message to be published: lengths of topic and payload, and the two one after the other."""

INGEST_BYTES = 64 + wire.MAX_INBOUND_BYTES
INGEST_FRAME = np.dtype([("topic", np.int64), ("payload", np.int64), ("data", np.uint8, (INGEST_BYTES,))], align=True)
"""A message from ingest that the loop leaves to Python."""

_FRAME_HEAD = 16  # bytes of a frame before its data

# items of `shared` that cross threads, a cache line each
STOP, STATE, SOURCE_ENDED = 0, 8, 16
PULLED = 9  # beside STATE, also the loop's to write: whether the inlet has been pulled from

# items of `words`
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
    _RECV_FLAGS,
    _TIED,  # whether the clock of a paced recording has been tied to ours
    _HELD,  # samples of a paced recording that were taken and are not due yet
    _MORE,  # whether more messages may wait on the ingest socket than were read in one turn
) = range(15)

# items of `numbers`; local clock = OFFSET + RATE x stamp
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
)
"""Names of `counters`, in order."""
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
) = range(len(LOOP_COUNTERS))

_WAIT_S = 0.02  # longest wait for samples, so that commands and the stop flag are seen
_INGEST_PER_TURN = 16
_FRAMES_PER_TURN = 8
_RING_POLL_S = 100e-6
_LSL_TIMEOUT = -1
_N_LIVE = len(LIVE)
_LARGEST_AMOUNT = float(np.finfo(np.float32).max)
_NOTHING, _STIMULI_READ, _HANDLED = 0, 1, 2


_SPIKES_BYTES, _STIMULI_BYTES = spikes_frame().size, stimuli_frame().size

LOOP = np.dtype(
    [
        ("functions", np.int64, (N_FUNCTIONS,)),
        ("shared", np.int64, (24,)),
        ("words", np.int64, (16,)),
        ("numbers", np.float64, (8,)),
        ("counters", np.int64, (len(LOOP_COUNTERS),)),
        ("spikes_frame", np.uint8, (_SPIKES_BYTES,)),
        ("stimuli_frame", np.uint8, (_STIMULI_BYTES,)),
        ("topic", np.uint8, (64,)),
        ("payload", np.uint8, (wire.MAX_INBOUND_BYTES,)),
        ("scratch", np.int64, (4,)),  # where C functions leave an int, a size or an error code
        ("values", np.float32, (N_CHANNELS,)),
        ("given", np.float64, (4,)),
        ("is_given", np.uint8, (4,)),
        ("level_keys", np.uint8, (4, 32)),
        ("level_limits", np.float64, (4, 2)),
        ("amount_keys", np.uint8, (1, 32)),
    ],
    align=True,
)
"""What is of one size for every stream; one record, so that compiled functions are handed one pointer."""


class Loop(NamedTuple):
    """State of `run`, apart from the pipeline's. All arrays."""

    block: NDArray[Any]  # LOOP, shape (1,)
    samples: NDArray[np.float32]
    stamps: NDArray[np.float64]
    records: NDArray[Any]  # TICK; the last one is the filler
    record_rows: NDArray[np.uint8]  # the same memory
    echo: NDArray[Any]  # INPUT, shape (1,): the input that is being applied
    echo_rows: NDArray[np.uint8]
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
    block = np.zeros(1, LOOP)
    state = block[0]
    state["functions"][:] = functions
    words = state["words"]
    words[_SOURCE] = source
    words[_PUBLISH_ALL] = publish_all
    words[_PUBLISH_STIMULI] = publish_stimuli
    words[_PACED] = paced_rate > 0
    words[_OUT_RING] = not functions[ZMQ_SEND]
    words[_N_CHANNELS] = n_channels
    words[_RECV_FLAGS] = 0 if source == SOURCE_ZMQ else ZMQ_DONTWAIT
    numbers = state["numbers"]
    numbers[RATE] = 1.0 / paced_rate if paced_rate > 0 else 1.0
    numbers[_STALL_S], numbers[_LATE_S], numbers[_FILLER_S] = stall_s, late_s, block_s
    state["spikes_frame"][:] = spikes_frame()
    state["stimuli_frame"][:] = stimuli_frame()
    state["level_keys"][:] = keys_table(MODULATORS)
    state["level_limits"][:] = [wire.MODULATOR_LIMITS[name] for name in MODULATORS]
    state["amount_keys"][:] = keys_table(("amount",))
    records, echo = np.zeros(max(ticks_per_block, 64) + 1, TICK), np.zeros(1, INPUT)
    return Loop(
        block=block,
        samples=np.zeros((chunk, n_channels), np.float32),
        stamps=np.zeros(chunk, np.float64),
        records=records,
        record_rows=rows_of(records),
        echo=echo,
        echo_rows=rows_of(echo),
        snapshot_parts=np.array([(part.ctypes.data, part.nbytes) for part in parts], np.int64).reshape(-1, 2),
        snapshot=np.zeros(sum(part.nbytes for part in parts), np.uint8),
    )


def set_handles(loop: Loop, *, inlet: int = 0, pub: int = 0, pull: int = 0) -> None:
    """Give the loop its inlet and its two sockets, before it runs."""
    words = loop.block[0]["words"]
    words[_INLET], words[_PUB], words[_PULL] = inlet, pub, pull


@jit
def run(loop: Loop, rings: Rings, pipeline: Pipeline, front_end: Any, encoder: Any, network: Any) -> None:
    """Run until ``shared[STOP]`` is set. Called in a thread of its own, once."""
    state = loop.block[0]
    words, numbers, shared = state["words"], state["numbers"], state["shared"]
    while load_acquire(shared, STOP) == 0:
        _take_inputs(loop, rings, pipeline, network)
        _send_frames(loop, rings)
        if words[_SOURCE] == SOURCE_ZMQ:
            n = _wait_for_stimuli(loop, rings, pipeline, network)
        else:
            _read_ingest(loop, rings, pipeline, network)
            wanted = min(samples_wanted(pipeline), loop.stamps.shape[0])
            if words[_SOURCE] == SOURCE_RING:
                n = _pull_ring(loop, rings.samples, wanted)
            else:
                n = _pull_lsl(loop, wanted)
        now = _clock(state)
        if n > 0:
            numbers[_LAST_DATA] = now
            words[_STARTED] = 1
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
def _clock(state: Any) -> float:
    return call_clock(state["functions"][LSL_LOCAL_CLOCK], ())


@jit
def _sleep(state: Any, seconds: float) -> None:
    if seconds > 0.0:
        call_sleep(state["functions"][SLEEP], (np.uint32(max(1.0, seconds * 1e6 / SLEEP_UNIT_US)),))


@jit
def _set_state(state: Any, value: int) -> None:
    if state["shared"][STATE] != value:
        store_release(state["shared"], STATE, value)


@jit
def _patience(state: Any) -> float:
    """Return how long to wait for samples, in seconds: until something else is due."""
    if state["words"][_MORE]:
        return 0.0
    if state["words"][_STARTED] == 0:
        return _WAIT_S
    numbers = state["numbers"]
    now = _clock(state)
    due = numbers[_LAST_DATA] + numbers[_STALL_S]
    if due <= now:
        due = numbers[_NEXT_FILLER]
    return min(max(due - now, 0.0), _WAIT_S)


@jit
def _pull_lsl(loop: Loop, wanted: int) -> int:
    """Pull at most `wanted` samples into the buffer; return how many came in time."""
    state = loop.block[0]
    words, scratch = state["words"], state["scratch"]
    patience = _patience(state)
    if words[_INLET] == 0:
        _sleep(state, min(patience, 0.001))
        return 0
    width = words[_N_CHANNELS]
    scratch[0] = 0
    got = call_pull(
        state["functions"][LSL_PULL_CHUNK_F],
        (
            words[_INLET],
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
        state["counters"][_PULL_ERRORS] += 1
        words[_INLET] = 0
        _set_state(state, LOST)
    return np.int64(got) // width


@jit
def _pull_ring(loop: Loop, ring: SampleRing, wanted: int) -> int:
    """Take at most `wanted` samples of a Python source into the buffer, not before they are due where it is paced."""
    state = loop.block[0]
    words, numbers = state["words"], state["numbers"]
    patience = _patience(state)
    if words[_HELD] == 0:
        n = _take_samples(loop, ring, wanted, patience)
        if n == 0 or words[_PACED] == 0:
            return n
        for i in range(n):
            _keep_pace(state, loop.stamps[i])
        words[_HELD] = n
        patience = _patience(state)
    # samples that are not due soon are held: meanwhile commands are obeyed, and a long pause is a stall as if live
    left = numbers[OFFSET] + numbers[RATE] * numbers[_LAST_STAMP] - _clock(state)
    _sleep(state, min(left, patience))
    if left > patience:
        return 0
    n = words[_HELD]
    words[_HELD] = 0
    return n


@jit
def _take_samples(loop: Loop, ring: SampleRing, wanted: int, patience: float) -> int:
    """Move at most `wanted` samples from the ring into the buffer; wait up to `patience` s for them."""
    state = loop.block[0]
    shared, words = state["shared"], state["words"]
    give_up = _clock(state) + patience
    n = min(available(ring.ends), wanted)
    while n < wanted and load_acquire(shared, SOURCE_ENDED) == 0:
        if (n > 0 and words[_PACED] == 0) or _clock(state) >= give_up:
            break
        _sleep(state, _RING_POLL_S)
        n = min(available(ring.ends), wanted)
    if n == 0:
        if load_acquire(shared, SOURCE_ENDED) != 0 and available(ring.ends) == 0:
            _set_state(state, ENDED)
            _sleep(state, 0.001)
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
        step = stamp - numbers[_LAST_STAMP]
        if words[_TIED] == 0 or step < -CLOCK_RESET_S or step > LONGEST_PAUSE_S:
            numbers[OFFSET] = _clock(state) - numbers[RATE] * stamp
            words[_TIED] = 1
        numbers[_LAST_STAMP] = stamp


@jit
def _wait_for_stimuli(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> int:
    """Wait a bounded time for a message; stimuli are the samples of this source."""
    state = loop.block[0]
    if not dequeue_stimuli(pipeline, state["values"]):  # those that Python read come as inputs, and are queued
        if state["words"][_PULL] == 0:
            _sleep(state, _RING_POLL_S)
        if _receive(loop, rings, pipeline, network) != _STIMULI_READ:
            return 0
    copy(loop.samples[0], state["values"])
    loop.stamps[0] = _clock(state)
    return 1


@jit
def _read_ingest(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> None:
    """Read the messages that wait on the ingest socket, a bounded number of them."""
    words = loop.block[0]["words"]
    words[_MORE] = 1
    for _ in range(_INGEST_PER_TURN):
        got = _receive(loop, rings, pipeline, network)
        if got == _NOTHING:
            words[_MORE] = 0
            break
        if got == _STIMULI_READ:
            enqueue_stimuli(pipeline, loop.block[0]["values"])


@jit
def _receive(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> int:
    """Read one ingest message, always to its end.

    What is in the usual form and in range takes effect here; anything else goes to Python, which judges and counts it.
    """
    state = loop.block[0]
    topic, payload, counters = state["topic"], state["payload"], state["counters"]
    if state["words"][_PULL] == 0:
        return _NOTHING
    if available(rings.odd.ends) >= rings.odd.rows.shape[0]:
        # Python will soon have read what it was left; until then messages wait in the socket, and none is lost
        if state["words"][_SOURCE] == SOURCE_ZMQ:
            _sleep(state, _RING_POLL_S)
        return _NOTHING
    n_topic = _receive_part(state, topic)
    if n_topic < 0:
        return _NOTHING
    counters[_INGEST] += 1
    n_payload, n_parts = 0, 1
    while _has_more(state):
        n_payload = _receive_part(state, payload)
        n_parts += 1
    if n_parts != 2:
        counters[_PARTS] += 1
        return _HANDLED
    if n_topic > topic.shape[0] or n_payload > payload.shape[0]:
        counters[_OVERSIZED] += 1
        return _HANDLED
    if _starts(topic, n_topic, TOPIC_STIMULI) and read_stimuli(payload, n_payload, state["values"]):
        return _STIMULI_READ
    if _read_modulation(loop, n_topic, n_payload):
        loop.echo[0]["id"] = 0
        _apply(loop, rings, pipeline, network)
        return _HANDLED
    at = reserve(rings.odd)
    if at >= 0:
        row = rings.odd.rows[at]
        sizes = row[:_FRAME_HEAD].view(np.int64)
        sizes[0], sizes[1] = n_topic, n_payload
        for i in range(n_topic):
            row[_FRAME_HEAD + i] = topic[i]
        for i in range(n_payload):
            row[_FRAME_HEAD + n_topic + i] = payload[i]
        commit(rings.odd)
    return _HANDLED


@jit
def _read_modulation(loop: Loop, n_topic: int, n_payload: int) -> bool:
    """Read levels, a reward or a stress into `loop.echo`; False where the message is not one in the usual form."""
    state, echo = loop.block[0], loop.echo[0]
    topic, payload, given, is_given = state["topic"], state["payload"], state["given"], state["is_given"]
    if _starts(topic, n_topic, TOPIC_MODULATORS):
        if not read_numbers(payload, n_payload, state["level_keys"], given, is_given):
            return False
        limits = state["level_limits"]
        word = 0
        for m in range(is_given.shape[0]):
            if is_given[m]:
                if not limits[m, 0] <= given[m] <= limits[m, 1]:
                    return False
                echo["values"][m] = given[m]
                word |= 1 << m
        echo["kind"] = LEVELS
        echo["word"] = word
        return word != 0
    is_reward = _starts(topic, n_topic, TOPIC_REWARD)
    if not is_reward and not _starts(topic, n_topic, TOPIC_STRESS):
        return False
    if not read_numbers(payload, n_payload, state["amount_keys"], given, is_given) or not is_given[0]:
        return False
    echo["kind"] = REWARD if is_reward else STRESS
    echo["values"][0] = given[0]
    return (is_reward or given[0] >= 0.0) and abs(given[0]) <= _LARGEST_AMOUNT  # the network takes float32


@jit
def _starts(text: NDArray[np.uint8], size: int, name: NDArray[np.uint8]) -> bool:
    """Say whether the first `size` bytes of `text` are `name`."""
    if size != name.shape[0]:
        return False
    for i in range(name.shape[0]):
        if text[i] != name[i]:
            return False
    return True


@jit
def _receive_part(state: Any, buffer: NDArray[np.uint8]) -> int:
    """Return the length of the part, which may be more than the buffer took; negative where there was none."""
    words = state["words"]
    return call_recv(
        state["functions"][ZMQ_RECV],
        (words[_PULL], buffer.ctypes.data, np.uint64(buffer.shape[0]), np.int32(words[_RECV_FLAGS])),
    )


@jit
def _has_more(state: Any) -> bool:
    """Say whether the message that is being read has another part."""
    scratch = state["scratch"]
    scratch[1] = 0
    scratch[2] = 4  # bytes of the answer
    at = scratch.ctypes.data
    failed = call_getsockopt(
        state["functions"][ZMQ_GETSOCKOPT], (state["words"][_PULL], np.int32(ZMQ_RCVMORE), at + 8, at + 16)
    )
    return failed == 0 and (scratch[1] & 0xFFFFFFFF) != 0


@jit
def _take_inputs(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> None:
    """Apply the commands and inputs that wait in their ring."""
    one_by_one = loop.block[0]["words"][_SOURCE] == SOURCE_ZMQ
    for _ in range(available(rings.inputs.ends)):
        take(rings.inputs, loop.echo_rows)
        _apply(loop, rings, pipeline, network)
        # where stimuli are the source, a second one in the queue would be added to the tick of the first
        if one_by_one and loop.echo[0]["kind"] == STIMULI:
            break


@jit
def _apply(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any) -> None:
    """Let the input in `loop.echo` take effect, and echo it with the number of the first tick that it acts on."""
    state, echo = loop.block[0], loop.echo[0]
    kind, word, values = echo["kind"], echo["word"], echo["values"]
    if kind == LEVELS:
        for m in range(4):
            if word >> m & 1:
                set_modulator(network, m, np.float32(values[m]))
    elif kind == REWARD:
        add_reward(network, np.float32(values[0]))
    elif kind == STRESS:
        add_stress(network, np.float32(values[0]))
    elif kind == STIMULI:
        for c in range(N_CHANNELS):
            state["values"][c] = np.float32(values[c])
        enqueue_stimuli(pipeline, state["values"])
    elif kind == PAUSE:
        pipeline.words[PAUSED] = 1
    elif kind == RESUME:
        pipeline.words[PAUSED] = 0
    elif kind == LEARNING:
        set_learning(network, word != 0)
    elif kind == SET:
        for p in range(_N_LIVE):
            if word >> p & 1:
                set_parameter(network, p, values[p])
    elif kind == CLOCK:
        state["numbers"][OFFSET] = values[0]
    elif kind == INLET:
        state["words"][_INLET] = word
    elif kind in (SNAPSHOT, RESTORE):
        was_paused = pipeline.words[PAUSED]
        _copy_parts(loop, kind == RESTORE)
        pipeline.words[PAUSED] = was_paused  # whether the session runs is the operator's word, not the checkpoint's
        if kind == RESTORE:
            pipeline.words[ANCHORED] = 0  # the time between checkpoint and now is no gap of the source
    if kind in (LEVELS, REWARD, STRESS):
        pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED
    echo["tick"] = pipeline.words[TICK_NEXT]
    state["counters"][_INPUTS] += 1
    put(rings.echoes, loop.echo_rows, 0)


@jit
def _copy_parts(loop: Loop, back: bool) -> None:
    """Copy all that a checkpoint holds into `loop.snapshot`, or back."""
    at = loop.snapshot.ctypes.data
    for k in range(loop.snapshot_parts.shape[0]):
        part, size = loop.snapshot_parts[k, 0], loop.snapshot_parts[k, 1]
        source, target = (at, part) if back else (part, at)
        call_memmove(loop.block[0]["functions"][MEMMOVE], (target, source, np.uint64(size)))
        at += size


@jit
def _send_frames(loop: Loop, rings: Rings) -> None:
    """Publish finished messages that other threads left in their ring."""
    for _ in range(min(available(rings.frames.ends), _FRAMES_PER_TURN)):
        row = rings.frames.rows[peek(rings.frames.ends, rings.frames.rows.shape[0], 0)]
        sizes = row[:_FRAME_HEAD].view(np.int64)
        middle = _FRAME_HEAD + sizes[0]
        at = row.ctypes.data
        _send(loop, rings.out, at + _FRAME_HEAD, sizes[0], at + middle, sizes[1])
        release(rings.frames.ends, 1)


@jit
def _send(loop: Loop, out: Ring, topic: int, topic_bytes: int, payload: int, payload_bytes: int) -> None:
    """Send one message of two parts, given by their addresses: one compiled function for every kind of array.

    A PUB socket at its high-water mark drops it and never blocks.
    """
    state = loop.block[0]
    functions = state["functions"]
    state["counters"][_MESSAGES] += 1
    if state["words"][_OUT_RING]:
        at = reserve(out)
        if at >= 0:
            row = out.rows[at]
            sizes = row[:_FRAME_HEAD].view(np.int64)
            sizes[0], sizes[1] = topic_bytes, payload_bytes
            start = row.ctypes.data + _FRAME_HEAD
            call_memmove(functions[MEMMOVE], (start, topic, np.uint64(topic_bytes)))
            call_memmove(functions[MEMMOVE], (start + topic_bytes, payload, np.uint64(payload_bytes)))
            commit(out)
        return
    send, socket = functions[ZMQ_SEND], state["words"][_PUB]
    first = call_send(send, (socket, topic, np.uint64(topic_bytes), np.int32(ZMQ_DONTWAIT | ZMQ_SNDMORE)))
    second = call_send(send, (socket, payload, np.uint64(payload_bytes), np.int32(ZMQ_DONTWAIT)))
    if first < 0 or second < 0:
        state["counters"][_SEND_ERRORS] += 1


@jit
def _complete(state: Any, record: Any, arrival: float) -> None:
    """Put the stamp of a record on our clock, and judge whether it is late."""
    numbers = state["numbers"]
    record["t_sample"] = numbers[OFFSET] + numbers[RATE] * record["t_sample"]
    record["t_arrival"] = arrival
    if _clock(state) - record["t_sample"] > numbers[_LATE_S]:
        record["flags"] |= FLAG_LATE
        state["counters"][_LATE] += 1


@jit
def _send_tick(loop: Loop, rings: Rings, k: int) -> None:
    """Number, stamp and send the messages of record `k`."""
    state, record = loop.block[0], loop.records[k]
    words = state["words"]
    now = _clock(state)
    record["t_tick"] = now
    record["seq"] = words[_SEQ]
    if words[_PUBLISH_ALL] == 0 and record["spikes"] == 0 and record["flags"] == 0:
        return
    words[_SEQ] += 1
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
    if words[_PUBLISH_STIMULI]:
        frame = state["stimuli_frame"]
        fill_stimuli(frame, record["seq"], record["tick"], record["stimuli"])
        _send(loop, rings.out, TOPIC_STIMULI.ctypes.data, TOPIC_STIMULI.shape[0], frame.ctypes.data, frame.shape[0])


@jit
def _watch(loop: Loop, rings: Rings, now: float) -> None:
    """Notice that the source is silent, and keep subscribers informed by fillers at the pace of the blocks."""
    state = loop.block[0]
    words, numbers, counters = state["words"], state["numbers"], state["counters"]
    told = state["shared"][STATE]
    if words[_STARTED] == 0 or told == ENDED or words[_SOURCE] == SOURCE_ZMQ:
        return
    if now - numbers[_LAST_DATA] < numbers[_STALL_S]:
        return
    if numbers[_NEXT_FILLER] <= numbers[_LAST_DATA]:  # the first of this silence
        counters[_STALLS] += 1
        numbers[_NEXT_FILLER] = now
    if told == STREAMING:
        _set_state(state, STALLED)
    if now >= numbers[_NEXT_FILLER]:
        # one that comes late is not made up for by a burst
        numbers[_NEXT_FILLER] = max(numbers[_NEXT_FILLER] + numbers[_FILLER_S], now)
        k = loop.records.shape[0] - 1
        record = loop.records[k]
        record["flags"] = FLAG_FILLER
        record["spikes"] = 0
        counters[_FILLERS] += 1
        _send_tick(loop, rings, k)
        put(rings.ticks, loop.record_rows, k)
