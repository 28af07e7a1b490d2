"""What the real-time loop is made of: its state, its rings, and the words by which other threads speak of them."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.decoder import DECODER
from neuromod.bridge import wire
from neuromod.bridge.frames import (
    ANSWER_KEYS,
    command_frame,
    keys_table,
    spikes_frame,
    stimulation_frame,
    stimuli_frame,
    units_frame,
)
from neuromod.bridge.gate import DECISION, GATE
from neuromod.bridge.native import (
    CLOCK_MONOTONIC,
    LSL_LOCAL_CLOCK,
    N_FUNCTIONS,
    SLEEP,
    SLEEP_UNIT_US,
    SLEEP_UNTIL,
    TIMER_ABSTIME,
    ZMQ_DONTWAIT,
    ZMQ_MSG_WORDS,
    ZMQ_SEND,
    call_clock,
    call_sleep,
    call_sleep_until,
)
from neuromod.bridge.pipeline import TICK, UNIT
from neuromod.bridge.ring import (
    Ring,
    SampleRing,
    make_ring,
    make_sample_ring,
    rows_of,
)
from neuromod.bridge.stimulation import STIMULATION
from neuromod.engine.compiled import jit
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import MODULATORS

# where samples come from
SOURCE_LSL, SOURCE_RING, SOURCE_ZMQ = 0, 1, 2

# states that the loop reports in `Loop.shared[STATE]`
WAITING, STREAMING, STALLED, LOST, ENDED = range(5)
STATE_NAMES = ("waiting", "streaming", "stalled", "lost", "ended")

# what an input asks for
LEVELS, REWARD, STRESS, STIMULI, PAUSE, RESUME, LEARNING, SET, CLOCK, INLET, SNAPSHOT, RESTORE = range(12)
ARM, DISARM, HEARTBEAT, ALIVE, STIMULATE, GRANT, DECODER_SWAP, FAULT, BOARD, BEHIND = range(12, 22)
INPUT_NAMES = (
    "levels", "reward", "stress", "stimuli", "pause", "resume", "learning", "set", "clock", "inlet", "snapshot",
    "restore", "arm", "disarm", "heartbeat", "alive", "stimulate", "grant", "decoder", "fault", "board",
    "behind",
)  # fmt: skip

INPUT = np.dtype(
    [
        ("kind", np.int64),
        ("number", np.int64),  # in the echo: inputs that took effect before it
        ("id", np.int64),  # echoed; 0 for what the loop read from the socket itself
        ("tick", np.int64),  # in the echo: the first tick that it acts on
        ("record", np.int64),  # in the echo: TICK records written before it took effect
        ("samples", np.int64),  # in the echo: samples taken from the source before it took effect
        ("now_ns", np.int64),  # in the echo: when it took effect, local clock
        # LEVELS, SET: bit i = modulator or parameter i is given; LEARNING: on; INLET: handle; ARM, HEARTBEAT: token;
        # DISARM, FAULT: reason; ALIVE: peer; STIMULATE: program; GRANT: electrode, or -1 for the total; BOARD: tick;
        # BEHIND: 1 where the loop ends for it
        ("word", np.int64),
        # ARM: seconds; in the echo the answer of the gate, and the conditions that it went by; local clock in s until
        # which it may take effect; BOARD: spikes, and whether its link has a checksum; BEHIND: samples that were
        # dropped, and the age in s of the newest that had been taken
        ("values", np.float64, (N_CHANNELS,)),
        ("t_sent", np.float64),  # when it was sent, s, local clock; 0 where unknown
    ],
    align=True,
)
"""A command or an input on its way into the loop, and its echo."""

FRAME_BYTES = 16384
FRAME = np.dtype([("topic", np.int64), ("payload", np.int64), ("data", np.uint8, (FRAME_BYTES,))], align=True)
"""A message to be published: lengths of topic and payload, and the two one after the other."""

SENDER_BYTES = 256  # a user id of ZAP is no longer
INGEST_BYTES = 64 + wire.MAX_INBOUND_BYTES + SENDER_BYTES
INGEST_FRAME = np.dtype(
    [("topic", np.int64), ("payload", np.int64), ("sender", np.int64), ("data", np.uint8, (INGEST_BYTES,))], align=True
)
"""A message from ingest that the loop leaves to Python: lengths of topic, payload and user id, and the three."""

FRAME_HEAD = 16  # bytes of a frame before its data
INGEST_HEAD = 24

# items of `shared` that cross threads, a cache line each
STOP, STATE, SOURCE_ENDED, HALTS, HOLD = 0, 8, 16, 24, 32
HALT_REASON = 25  # beside HALTS: why the last time
# HALTS: how often stimulation was to stop at once, whoever said so; HOLD: 1 as long as it must not be armed
PULLED = 9  # beside STATE, also the loop's to write: whether the inlet has been pulled from
TURNS = 10  # there too: how often the loop has come round, which stands still where it is stuck

# items of `words`
(
    W_SOURCE,
    W_INLET,
    W_PUB,
    W_PULL,
    W_PUBLISH_ALL,
    W_PUBLISH_STIMULI,
    W_PACED,
    W_STARTED,
    W_SEQ,
    W_OUT_RING,
    W_N_CHANNELS,
    W_RECV_FLAGS,
    W_TIED,  # whether the clock of a paced recording has been tied to ours
    W_HELD,  # samples of a paced recording that were taken and are not due yet
    W_MORE,  # whether more messages may wait on the ingest socket than were read in one turn
    W_COMMANDS,  # publish commands
    W_COMMAND_SEQ,
    W_STIMULATION_SEQ,
    W_HALTS,  # of HALTS, those that were obeyed
    W_ARMED,  # whether the last message on stimulation said that it may go on
    W_KEEP_SAMPLES,  # hand raw samples to the recorder
    W_DISARMS,  # ends of armings that stimulators were told of
    W_UNIT_SEQ,
    W_BEHIND,  # what is done where the loop falls behind
    W_MORE_PARTS,  # whether the message that is being read has another part
    W_SENDER,  # bytes of the user id of its sender
    W_ROLES,  # and the mask of its roles
) = range(27)

# items of `numbers`; local clock = OFFSET + RATE x stamp
(
    OFFSET,
    RATE,
    STALL_S,
    LATE_S,
    FILLER_S,
    LAST_DATA,
    NEXT_FILLER,
    LAST_STAMP,
    LEASE_S,  # how long a message on stimulation holds
    NEXT_LEASE,
    COMMAND_S,  # how long a command holds
    BEHIND_S,  # age of samples, and length of what waits behind them, beyond which the loop has fallen behind
    PERIOD_S,  # of a sample
    NEWEST,  # time of the newest sample that was taken, s, local clock; 0 before there is one
) = range(14)

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
    "samples_dropped",
)
"""Names of `counters`, in order."""
(
    C_MESSAGES,
    C_FILLERS,
    C_STALLS,
    C_LATE,
    C_INPUTS,
    C_INGEST,
    C_OVERSIZED,
    C_PARTS,
    C_SEND_ERRORS,
    C_PULL_ERRORS,
    C_DROPPED,
) = range(len(LOOP_COUNTERS))

BEHIND_POLICIES = ("newest", "stop")
"""What is done where the loop falls behind a live source, by the number in `words[W_BEHIND]`."""

# masks of roles in the user id of a sender, whose first character is ROLES_AT + mask; a test compares them with `Role`
ROLES_AT, EVERY_ROLE, ROLE_FEED = 64, 15, 2

RING_POLL_S = 100e-6  # how often a ring or a queue is looked at while there is nothing in it

_USER_ID = b"User-Id"

_SPIKES_BYTES, _STIMULI_BYTES, _STIMULATION_BYTES = spikes_frame().size, stimuli_frame().size, stimulation_frame().size
_UNITS_BYTES = units_frame().size

LOOP = np.dtype(
    [
        ("functions", np.int64, (N_FUNCTIONS,)),
        ("shared", np.int64, (40,)),
        ("words", np.int64, (32,)),
        ("numbers", np.float64, (16,)),
        ("counters", np.int64, (len(LOOP_COUNTERS),)),
        ("spikes_frame", np.uint8, (_SPIKES_BYTES,)),
        ("stimuli_frame", np.uint8, (_STIMULI_BYTES,)),
        ("stimulation_frame", np.uint8, (_STIMULATION_BYTES,)),
        ("units_frame", np.uint8, (_UNITS_BYTES,)),
        ("topic", np.uint8, (64,)),
        ("payload", np.uint8, (wire.MAX_INBOUND_BYTES,)),
        ("sender", np.uint8, (SENDER_BYTES,)),
        ("message", np.int64, (ZMQ_MSG_WORDS,)),  # a zmq_msg_t
        ("user_id", np.uint8, (16,)),  # the name of that property of a message, as C has it
        ("scratch", np.int64, (4,)),  # where C functions leave an error code, or find a time
        ("values", np.float32, (N_CHANNELS,)),
        ("sent", np.float64, (1,)),
        ("given", np.float64, (5,)),
        ("is_given", np.uint8, (5,)),
        ("level_keys", np.uint8, (5, 32)),
        ("level_limits", np.float64, (4, 2)),
        ("amount_keys", np.uint8, (2, 32)),
        ("answer", np.int64, (3,)),
        ("answer_keys", np.uint8, (3, 32)),
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
    command_frame: NDArray[np.uint8]
    decision_rows: NDArray[np.uint8]  # the memory of the pipeline's decisions
    unit_rows: NDArray[np.uint8]  # the memory of the pipeline's units
    no_decision: NDArray[Any]  # DECISION, shape (1,), all zero: the train of a message that has none
    next_decoder: NDArray[Any]  # DECODER, shape (1,): what DECODER_SWAP installs
    gate_before: NDArray[Any]  # GATE, shape (1,): the gate before a checkpoint was copied over it
    gate_restored: NDArray[Any]  # GATE, shape (1,): what the checkpoint held
    stimulation_kept: NDArray[Any]  # STIMULATION, shape (1,): as it was at the last checkpoint, which holds it not
    snapshot_parts: NDArray[np.int64]  # (address, bytes) of all that a checkpoint holds
    snapshot: NDArray[np.uint8]


class Rings(NamedTuple):
    """The rings between the loop and the rest of the daemon."""

    samples: SampleRing  # to the loop: samples of a source that is read by a Python thread
    inputs: Ring  # to the loop: INPUT
    echoes: Ring  # from the loop: INPUT, with the tick of its effect
    ticks: Ring  # from the loop: TICK
    decisions: Ring  # from the loop: DECISION
    units: Ring  # from the loop: UNIT
    raw: SampleRing  # from the loop: samples as they came, for the recorder
    frames: Ring  # to the loop: FRAME, to be published
    odd: Ring  # from the loop: INGEST_FRAME, for Python to read
    out: Ring  # from the loop: FRAME, where libzmq cannot be called from compiled code


def make_rings(
    n_channels: int,
    *,
    samples_capacity: int = 2,
    ticks_capacity: int = 16384,
    out_capacity: int = 2,
    raw_capacity: int = 2,
) -> Rings:
    """Allocate the rings for one stream."""
    return Rings(
        samples=make_sample_ring(n_channels, samples_capacity),
        inputs=make_ring(INPUT, 1024),
        echoes=make_ring(INPUT, 4096),
        ticks=make_ring(TICK, ticks_capacity),
        decisions=make_ring(DECISION, 4096),
        units=make_ring(UNIT, 16384),
        raw=make_sample_ring(n_channels, raw_capacity),
        frames=make_ring(FRAME, 64),
        odd=make_ring(INGEST_FRAME, 256),
        out=make_ring(FRAME, out_capacity),
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
    decisions: NDArray[Any],
    units: NDArray[Any],
    n_outputs: int = 0,
    lease_s: float = 0.1,
    keep_samples: bool = False,
    behind: str = "newest",
    behind_s: float = math.inf,
    period_s: float = 0.0,
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
    decisions, units : ndarray of DECISION, and of UNIT
        The pipeline's.
    n_outputs : int
        Of the decoder; 0 publishes no commands.
    lease_s : float
        How long messages on stimulation hold, in seconds, and commands at least.
    keep_samples : bool
        Hand raw samples to the recorder.
    behind : {"newest", "stop"}
        What is done where the loop falls behind its source: drop what waits and go on with the newest, or end.
    behind_s : float
        Age of samples that counts as that, in seconds, where as much waits behind them; infinite for never.
    period_s : float
        From sample to sample, in seconds.
    """
    block = np.zeros(1, LOOP)
    state = block[0]
    state["functions"][:] = functions
    words = state["words"]
    words[W_SOURCE] = source
    words[W_PUBLISH_ALL] = publish_all
    words[W_PUBLISH_STIMULI] = publish_stimuli
    words[W_PACED] = paced_rate > 0
    words[W_COMMANDS] = n_outputs > 0
    words[W_KEEP_SAMPLES] = keep_samples
    words[W_OUT_RING] = not functions[ZMQ_SEND]
    words[W_N_CHANNELS] = n_channels
    words[W_BEHIND] = BEHIND_POLICIES.index(behind)
    words[W_RECV_FLAGS] = 0 if source == SOURCE_ZMQ else ZMQ_DONTWAIT
    numbers = state["numbers"]
    numbers[RATE] = 1.0 / paced_rate if paced_rate > 0 else 1.0
    numbers[STALL_S], numbers[LATE_S], numbers[FILLER_S], numbers[LEASE_S] = stall_s, late_s, block_s, lease_s
    numbers[COMMAND_S] = max(lease_s, stall_s)  # until the source counts as stalled, whose fillers inhibit
    numbers[BEHIND_S], numbers[PERIOD_S] = behind_s, period_s
    state["user_id"][: len(_USER_ID)] = np.frombuffer(_USER_ID, np.uint8)
    state["spikes_frame"][:] = spikes_frame()
    state["stimuli_frame"][:] = stimuli_frame()
    state["stimulation_frame"][:] = stimulation_frame()
    state["units_frame"][:] = units_frame()
    state["level_keys"][:] = keys_table((*MODULATORS, "t"))
    state["level_limits"][:] = [wire.MODULATOR_LIMITS[name] for name in MODULATORS]
    state["amount_keys"][:] = keys_table(("amount", "t"))
    state["answer_keys"][:] = keys_table(ANSWER_KEYS)
    records, echo = np.zeros(max(ticks_per_block, 64) + 1, TICK), np.zeros(1, INPUT)
    return Loop(
        block=block,
        samples=np.zeros((chunk, n_channels), np.float32),
        stamps=np.zeros(chunk, np.float64),
        records=records,
        record_rows=rows_of(records),
        echo=echo,
        echo_rows=rows_of(echo),
        command_frame=command_frame(n_outputs),
        decision_rows=rows_of(decisions),
        unit_rows=rows_of(units),
        no_decision=np.zeros(1, DECISION),
        next_decoder=np.zeros(1, DECODER),
        gate_before=np.zeros(1, GATE),
        gate_restored=np.zeros(1, GATE),
        stimulation_kept=np.zeros(1, STIMULATION),
        snapshot_parts=np.array([(part.ctypes.data, part.nbytes) for part in parts], np.int64).reshape(-1, 2),
        snapshot=np.zeros(sum(part.nbytes for part in parts), np.uint8),
    )


def set_handles(loop: Loop, *, inlet: int = 0, pub: int = 0, pull: int = 0) -> None:
    """Give the loop its inlet and its two sockets, before it runs."""
    words = loop.block[0]["words"]
    words[W_INLET], words[W_PUB], words[W_PULL] = inlet, pub, pull


@jit
def clock(state: Any) -> float:
    """Return the time on the local clock, in seconds."""
    return call_clock(state["functions"][LSL_LOCAL_CLOCK], ())


@jit
def sleep(state: Any, seconds: float) -> None:
    """Give the processor away for a time; not at all where it is not positive."""
    if seconds > 0.0:
        call_sleep(state["functions"][SLEEP], (np.uint32(max(1.0, seconds * 1e6 / SLEEP_UNIT_US)),))


@jit
def sleep_until(state: Any, due: float) -> None:
    """Give the processor away until a time on the local clock, in seconds; not at all where it has passed."""
    if state["functions"][SLEEP_UNTIL] == 0:
        sleep(state, due - clock(state))
    elif due > 0.0:
        # by the time itself: what passes before the call does not add to it, as it does to a length of time
        time = state["scratch"]
        time[2] = np.int64(due)
        time[3] = np.int64((due - time[2]) * 1e9)
        call_sleep_until(
            state["functions"][SLEEP_UNTIL],
            (np.int32(CLOCK_MONOTONIC), np.int32(TIMER_ABSTIME), time.ctypes.data + 16, 0),
        )
