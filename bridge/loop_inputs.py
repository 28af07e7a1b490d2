"""What comes into the running loop: messages of the ingest socket, commands, and their effect between two ticks.

A message in the usual form and in range, of a sender that may send it, takes effect at once, in compiled code;
anything else is left to Python, which judges and counts it, and sends it back by the ring where it is good. Every
effect is echoed with the first tick that it acts on.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.decoder import install
from neuromod.bridge.frames import (
    TOPIC_BOARD,
    TOPIC_MODULATORS,
    TOPIC_REWARD,
    TOPIC_STIMULI,
    TOPIC_STOP,
    TOPIC_STRESS,
    read_answer,
    read_numbers,
    read_stimuli,
)
from neuromod.bridge.gate import ARMING, LATE, RESTORED, STOPPED, alive, arm, disarm, grant, heartbeat, keep_doses
from neuromod.bridge.gate import PAUSED as SESSION_PAUSED
from neuromod.bridge.loop_state import (
    ALIVE,
    ARM,
    BEHIND,
    BOARD,
    C_INGEST,
    C_INPUTS,
    C_OVERSIZED,
    C_PARTS,
    CLOCK,
    DECODER_SWAP,
    DISARM,
    EVERY_ROLE,
    FAULT,
    GRANT,
    HEARTBEAT,
    INGEST_HEAD,
    INLET,
    LEARNING,
    LEVELS,
    OFFSET,
    PAUSE,
    RESTORE,
    RESUME,
    REWARD,
    RING_POLL_S,
    ROLE_FEED,
    ROLES_AT,
    SET,
    SNAPSHOT,
    SOURCE_ZMQ,
    STIMULATE,
    STIMULI,
    STRESS,
    W_ARMED,
    W_BEHIND,
    W_INLET,
    W_MORE,
    W_MORE_PARTS,
    W_PULL,
    W_RECV_FLAGS,
    W_ROLES,
    W_SENDER,
    W_SOURCE,
    Loop,
    Rings,
    clock,
    sleep,
)
from neuromod.bridge.native import (
    MEMMOVE,
    ZMQ_MSG_CLOSE,
    ZMQ_MSG_DATA,
    ZMQ_MSG_GETS,
    ZMQ_MSG_INIT,
    ZMQ_MSG_MORE,
    ZMQ_MSG_RECV,
    ZMQ_MSG_SIZE,
    call_memmove,
    call_msg,
    call_msg_gets,
    call_msg_pointer,
    call_msg_recv,
    load_byte,
)
from neuromod.bridge.pipeline import (
    ANCHORED,
    DELAY,
    FLAG_MODULATED,
    FLAGS_NEXT,
    N_DECISIONS,
    N_UNITS,
    PAUSED,
    RECORDS,
    TAKEN,
    TICK_NEXT,
    Pipeline,
    drop_samples,
    enqueue_stimuli,
    forget_answers,
    resume,
    take_answer,
)
from neuromod.bridge.ring import (
    available,
    commit,
    put,
    reserve,
    take,
)
from neuromod.bridge.stimulation import request_program
from neuromod.engine.compiled import jit, jit_apart
from neuromod.engine.layout import LIVE, N_CHANNELS
from neuromod.engine.tick import add_reward, add_stress, set_learning, set_modulator, set_parameter

NOTHING, STIMULI_READ, HANDLED = 0, 1, 2
"""What `receive` found."""

_INGEST_PER_TURN = 16
_PARTS_AT_ONCE = 16
_N_LIVE = len(LIVE)
_LARGEST_AMOUNT = float(np.finfo(np.float32).max)


@jit
def read_ingest(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any) -> None:
    """Read the messages that wait on the ingest socket, a bounded number of them."""
    words = loop.block[0]["words"]
    words[W_MORE] = 1
    for _ in range(_INGEST_PER_TURN):
        got = receive(loop, rings, pipeline, network, decoder, stimulation)
        if got == NOTHING:
            words[W_MORE] = 0
            break
        if got == STIMULI_READ:
            set_echo(loop, STIMULI, 0)
            for c in range(N_CHANNELS):
                loop.echo[0]["values"][c] = loop.block[0]["values"][c]
            loop.echo[0]["t_sent"] = loop.block[0]["sent"][0]
            _apply(loop, rings, pipeline, network, decoder, stimulation)


@jit_apart
def receive(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any) -> int:
    """Read one ingest message; of one that has far too many parts, a few of them.

    What is in the usual form and in range takes effect here, where its sender may feed and it can be recorded; a stop
    does, whoever sent it of those that were let in. All else goes to Python, together with who sent it, and is judged
    and counted there.
    """
    state = loop.block[0]
    topic, payload, counters = state["topic"], state["payload"], state["counters"]
    if state["words"][W_PULL] == 0:
        return NOTHING
    # half of the echoes is for commands, and for what comes by way of Python
    is_recorded = 2 * available(rings.echoes.ends) < rings.echoes.rows.shape[0]
    is_judged = available(rings.odd.ends) < rings.odd.rows.shape[0]
    if not (is_recorded and is_judged) and state["words"][W_ARMED] == 0:
        # Python will soon have read what it was left; until then messages wait in the socket, and none is lost; but
        # while stimulation is armed a stop may be behind them, and what Python cannot take is dropped and counted
        if state["words"][W_SOURCE] == SOURCE_ZMQ:
            sleep(state, RING_POLL_S)
        return NOTHING
    if state["words"][W_MORE_PARTS]:  # of a message that is counted already
        _receive_rest(state, payload)
        return HANDLED
    n_topic = _receive_part(state, topic, True)
    if n_topic < 0:
        return NOTHING
    counters[C_INGEST] += 1
    n_payload, n_more = _receive_rest(state, payload)
    if _starts(topic, n_topic, TOPIC_STOP):  # whatever else is wrong with it
        set_echo(loop, DISARM, STOPPED)
        _apply(loop, rings, pipeline, network, decoder, stimulation)
        return HANDLED
    if n_more != 1:
        counters[C_PARTS] += 1
        return HANDLED
    if n_topic > topic.shape[0] or n_payload > payload.shape[0]:
        counters[C_OVERSIZED] += 1
        return HANDLED
    if is_recorded and state["words"][W_ROLES] & ROLE_FEED:  # which every topic that is read here needs
        if _starts(topic, n_topic, TOPIC_STIMULI) and read_stimuli(payload, n_payload, state["values"], state["sent"]):
            return STIMULI_READ
        if _read_modulation(loop, n_topic, n_payload) or _read_answer(loop, pipeline, n_topic, n_payload):
            _apply(loop, rings, pipeline, network, decoder, stimulation)
            return HANDLED
    _leave_to_python(state, rings, n_topic, n_payload)
    return HANDLED


@jit
def _leave_to_python(state: Any, rings: Rings, n_topic: int, n_payload: int) -> None:
    """Put the message that was read, and who sent it, into the ring of what is to be judged."""
    topic, payload, sender = state["topic"], state["payload"], state["sender"]
    n_sender = state["words"][W_SENDER]
    at = reserve(rings.odd)
    if at < 0:
        return
    row = rings.odd.rows[at]
    sizes = row[:INGEST_HEAD].view(np.int64)
    sizes[0], sizes[1], sizes[2] = n_topic, n_payload, n_sender
    for i in range(n_topic):
        row[INGEST_HEAD + i] = topic[i]
    for i in range(n_payload):
        row[INGEST_HEAD + n_topic + i] = payload[i]
    for i in range(n_sender):
        row[INGEST_HEAD + n_topic + n_payload + i] = sender[i]
    commit(rings.odd)


@jit
def set_echo(loop: Loop, kind: int, word: int) -> None:
    """Begin an input that the loop itself brings in; its values are to be set."""
    echo = loop.echo[0]
    echo["kind"] = kind
    echo["id"] = 0
    echo["word"] = word
    echo["t_sent"] = 0.0


@jit
def report_fault(
    loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any, reason: int
) -> None:
    """Disarm for a reason that the loop found between two ticks, and echo it: in a replay it is one of the inputs."""
    set_echo(loop, FAULT, reason)
    _apply(loop, rings, pipeline, network, decoder, stimulation)


@jit
def report_behind(
    loop: Loop,
    rings: Rings,
    pipeline: Pipeline,
    network: Any,
    decoder: Any,
    stimulation: Any,
    n_dropped: int,
    age_s: float,
) -> None:
    """Leave out samples that the loop has dropped because it fell behind its source, and echo it like any input."""
    state, echo = loop.block[0], loop.echo[0]
    set_echo(loop, BEHIND, state["words"][W_BEHIND])
    echo["values"][0], echo["values"][1] = n_dropped, age_s
    _apply(loop, rings, pipeline, network, decoder, stimulation)


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
        for m in range(limits.shape[0]):
            if is_given[m]:
                if not limits[m, 0] <= given[m] <= limits[m, 1]:
                    return False
                echo["values"][m] = given[m]
                word |= 1 << m
        set_echo(loop, LEVELS, word)
        echo["t_sent"] = given[4] if is_given[4] else 0.0
        return word != 0
    is_reward = _starts(topic, n_topic, TOPIC_REWARD)
    if not is_reward and not _starts(topic, n_topic, TOPIC_STRESS):
        return False
    if not read_numbers(payload, n_payload, state["amount_keys"], given, is_given) or not is_given[0]:
        return False
    set_echo(loop, REWARD if is_reward else STRESS, 0)
    echo["values"][0] = given[0]
    echo["t_sent"] = given[1] if is_given[1] else 0.0
    return (is_reward or given[0] >= 0.0) and abs(given[0]) <= _LARGEST_AMOUNT  # the network takes float32


@jit
def _read_answer(loop: Loop, pipeline: Pipeline, n_topic: int, n_payload: int) -> bool:
    """Read a board's answer into `loop.echo`; False where it is none in the usual form, or no board is the network."""
    state = loop.block[0]
    answer = state["answer"]
    if pipeline.words[DELAY] == 0 or not _starts(state["topic"], n_topic, TOPIC_BOARD):
        return False
    if not read_answer(state["payload"], n_payload, state["answer_keys"], answer):
        return False
    set_echo(loop, BOARD, answer[0])
    loop.echo[0]["values"][0], loop.echo[0]["values"][1] = answer[1], answer[2]
    return True


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
def _receive_part(state: Any, buffer: NDArray[np.uint8], is_first: bool) -> int:
    """Return the length of the part, which may be more than the buffer took; negative where there was none.

    The first one tells who sent the message.
    """
    words, functions = state["words"], state["functions"]
    message = state["message"].ctypes.data
    call_msg(functions[ZMQ_MSG_INIT], (message,))
    size: Any = np.int64(
        call_msg_recv(functions[ZMQ_MSG_RECV], (message, words[W_PULL], np.int32(words[W_RECV_FLAGS])))
    )
    words[W_MORE_PARTS] = 0
    if size >= 0:
        size = call_msg_pointer(functions[ZMQ_MSG_SIZE], (message,))
        data = call_msg_pointer(functions[ZMQ_MSG_DATA], (message,))
        taken = min(size, buffer.shape[0])
        call_memmove(functions[MEMMOVE], (buffer.ctypes.data, data, np.uint64(taken)))
        words[W_MORE_PARTS] = call_msg(functions[ZMQ_MSG_MORE], (message,)) != 0
        if is_first:
            _read_sender(state, message)
    call_msg(functions[ZMQ_MSG_CLOSE], (message,))
    return size


@jit
def _receive_rest(state: Any, payload: NDArray[np.uint8]) -> tuple[int, int]:
    """Receive the parts behind the first, a bounded number at once; return the length of the last, and how many."""
    size, n = 0, 0
    while state["words"][W_MORE_PARTS] and n < _PARTS_AT_ONCE:
        size = _receive_part(state, payload, False)
        n += 1
    return size, n


@jit
def _read_sender(state: Any, message: int) -> None:
    """Keep the user id that the authentication gave the sender; without one, as without keys, every role is held."""
    words, sender = state["words"], state["sender"]
    words[W_SENDER], words[W_ROLES] = 0, EVERY_ROLE
    at = call_msg_gets(state["functions"][ZMQ_MSG_GETS], (message, state["user_id"].ctypes.data))
    if at == 0:
        return
    n = 0
    while n < sender.shape[0] and load_byte(at + n) != 0:
        sender[n] = load_byte(at + n)
        n += 1
    words[W_SENDER] = n
    if n > 0:
        words[W_ROLES] = (np.int64(sender[0]) - ROLES_AT) & EVERY_ROLE


@jit
def take_inputs(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any) -> None:
    """Apply the commands and inputs that wait in their ring."""
    one_by_one = loop.block[0]["words"][W_SOURCE] == SOURCE_ZMQ
    for _ in range(available(rings.inputs.ends)):
        take(rings.inputs, loop.echo_rows)
        _apply(loop, rings, pipeline, network, decoder, stimulation)
        # where stimuli are the source, a second one in the queue would be added to the tick of the first
        if one_by_one and loop.echo[0]["kind"] == STIMULI:
            break


@jit_apart
def _apply(loop: Loop, rings: Rings, pipeline: Pipeline, network: Any, decoder: Any, stimulation: Any) -> None:
    """Let the input in `loop.echo` take effect, and echo it with the number of the first tick that it acts on."""
    state, echo = loop.block[0], loop.echo[0]
    echo["now_ns"] = np.int64(clock(state) * 1e9)
    echo["tick"] = pipeline.words[TICK_NEXT]
    echo["record"] = pipeline.words[RECORDS]
    echo["samples"] = pipeline.words[TAKEN]
    echo["number"] = state["counters"][C_INPUTS]
    kind = echo["kind"]
    if kind == ARM:  # the gate has seen them between two ticks, of which there is no record
        echo["values"][2] = float(stimulation.gate[0]["conditions"])
    apply_input(echo, pipeline, network, decoder, stimulation, loop.next_decoder, state["values"])
    if kind == CLOCK:
        state["numbers"][OFFSET] = echo["values"][0]
    elif kind == INLET:
        state["words"][W_INLET] = echo["word"]
    elif kind in (SNAPSHOT, RESTORE):
        was_paused, records, taken = pipeline.words[PAUSED], pipeline.words[RECORDS], pipeline.words[TAKEN]
        _copy_record(state, loop.gate_before, stimulation.gate)
        _copy_record(state, loop.stimulation_kept, stimulation.block)
        _copy_parts(loop, kind == RESTORE)
        pipeline.words[PAUSED] = was_paused  # whether the session runs is the operator's word, not the checkpoint's
        pipeline.words[RECORDS], pipeline.words[TAKEN] = records, taken
        pipeline.words[N_DECISIONS] = pipeline.words[N_UNITS] = 0  # no file may have anything sent
        if kind == RESTORE:
            # the gate stays as it is, but for doses that the checkpoint knows of; and a restart is always disarmed
            _copy_record(state, loop.gate_restored, stimulation.gate)
            _copy_record(state, stimulation.gate, loop.gate_before)
            keep_doses(stimulation.gate[0], loop.gate_restored[0])
            disarm(stimulation.gate[0], RESTORED, echo["now_ns"])
            pipeline.words[ANCHORED] = 0  # the time between checkpoint and now is no gap of the source
            forget_answers(pipeline)
            echo["tick"] = pipeline.words[TICK_NEXT]
    state["counters"][C_INPUTS] += 1
    put(rings.echoes, loop.echo_rows, 0)


@jit
def apply_input(
    echo: Any,
    pipeline: Pipeline,
    network: Any,
    decoder: Any,
    stimulation: Any,
    next_decoder: NDArray[Any],
    stimuli: NDArray[np.float32],
) -> None:
    """Let an INPUT take effect on the parts of the loop, at its own `now_ns`: live, and again in a replay.

    What concerns the loop alone (its clock, its inlet) or needs a checkpoint is for the caller.
    """
    kind, word, values, now_ns = echo["kind"], echo["word"], echo["values"], echo["now_ns"]
    gate = stimulation.gate[0]
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
            stimuli[c] = np.float32(values[c])
        enqueue_stimuli(pipeline, stimuli, echo["t_sent"])
    elif kind == PAUSE:
        pipeline.words[PAUSED] = 1
        disarm(gate, SESSION_PAUSED, now_ns)
    elif kind == RESUME:
        resume(pipeline)
    elif kind == LEARNING:
        set_learning(network, word != 0)
    elif kind == SET:
        for p in range(_N_LIVE):
            if word >> p & 1:
                set_parameter(network, p, values[p])
    elif kind == ARM:
        # one that was asked for too long ago is answered to nobody, and nobody would have its token
        if now_ns > np.int64(values[3] * 1e9):
            values[1] = ARMING
        else:
            values[1] = arm(gate, now_ns, now_ns + np.int64(values[0] * 1e9), word)
    elif kind in (DISARM, FAULT):
        disarm(gate, word, now_ns)
    elif kind == HEARTBEAT:
        heartbeat(gate, word, now_ns)
    elif kind == ALIVE:
        alive(gate, word, now_ns)
    elif kind == STIMULATE:
        request_program(stimulation, word)
    elif kind == GRANT:
        grant(gate, word, values[0])
    elif kind == BOARD:
        take_answer(pipeline, word, int(values[0]), values[1] != 0.0)
    elif kind == DECODER_SWAP:
        install(decoder[0], next_decoder[0])
    elif kind == BEHIND:
        drop_samples(pipeline, int(values[0]))
        disarm(gate, LATE, now_ns)
    if kind in (LEVELS, REWARD, STRESS):
        pipeline.words[FLAGS_NEXT] |= FLAG_MODULATED


@jit
def _copy_record(state: Any, target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy a large record; by an assignment it would be one value of the compiler, which takes it half a minute."""
    call_memmove(
        state["functions"][MEMMOVE], (target.ctypes.data, source.ctypes.data, np.uint64(source.size * source.itemsize))
    )


@jit
def _copy_parts(loop: Loop, back: bool) -> None:
    """Copy all that a checkpoint holds into `loop.snapshot`, or back."""
    at = loop.snapshot.ctypes.data
    for k in range(loop.snapshot_parts.shape[0]):
        part, size = loop.snapshot_parts[k, 0], loop.snapshot_parts[k, 1]
        source, target = (at, part) if back else (part, at)
        call_memmove(loop.block[0]["functions"][MEMMOVE], (target, source, np.uint64(size)))
        at += size
