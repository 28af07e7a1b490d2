"""Per-tick messages, filled and read in place by the compiled loop.

The layout of these frames is part of PROTOCOL.md: every number has a fixed-width msgpack form, so a frame is made once
from a template of `neuromod.bridge.wire` (the same protocol, Python side) and afterwards only its numbers are stored.
"""

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import wire
from neuromod.bridge.native import bits_of, store_big_endian
from neuromod.engine.compiled import jit
from neuromod.engine.layout import N_CHANNELS

TOPIC_SPIKES = np.frombuffer(wire.TOPIC_SPIKES, np.uint8)
TOPIC_STIMULI = np.frombuffer(wire.TOPIC_STIMULI, np.uint8)
TOPIC_MODULATORS = np.frombuffer(wire.TOPIC_MODULATORS, np.uint8)
TOPIC_REWARD = np.frombuffer(wire.TOPIC_REWARD, np.uint8)
TOPIC_STRESS = np.frombuffer(wire.TOPIC_STRESS, np.uint8)
TOPIC_COMMAND = np.frombuffer(wire.TOPIC_COMMAND, np.uint8)
TOPIC_STIMULATION = np.frombuffer(wire.TOPIC_STIMULATION, np.uint8)
TOPIC_UNITS = np.frombuffer(wire.TOPIC_UNITS, np.uint8)
TOPIC_BOARD = np.frombuffer(wire.TOPIC_BOARD, np.uint8)
TOPIC_STOP = np.frombuffer(wire.TOPIC_STOP, np.uint8)

ANSWER_KEYS = ("tick", "spikes", "checked")
"""What a board's answer may hold, in the order in which `read_answer` gives it."""

_F64, _FIXMAP, _U8, _U64, _FALSE, _TRUE = 0xCB, 0x80, 0xCC, 0xCF, 0xC2, 0xC3
_CHECKED = ANSWER_KEYS.index("checked")
_VALUES_BYTES = 4 * N_CHANNELS

_SPIKES = wire.spikes_frame(N_CHANNELS)
_SEQ, _TICK, _SAMPLE, _T_SAMPLE, _T_TICK, _MASK, _FLAGS = (
    _SPIKES.offsets[key] for key in ("seq", "tick", "sample", "t_sample", "t_tick", "spikes", "flags")
)
_MASK_BYTES = (N_CHANNELS + 7) // 8

_STIMULI = wire.stimuli_frame(N_CHANNELS)
_S_SEQ, _S_TICK, _S_VALUES, _S_MODULATION, _S_STEP, _S_FLAGS = (
    _STIMULI.offsets[key] for key in ("seq", "tick", "values", "modulation", "step_ms", "flags")
)
_MODULATION_BYTES = 8 * wire.N_MODULATION

# all that comes after the values of a command stands at a fixed distance from the end of its frame
_COMMAND = wire.command_frame(1)
_C_SEQ, _C_TICK, _C_T_SAMPLE, _C_T_TICK, _C_VALUES = (
    _COMMAND.offsets[key] for key in ("seq", "tick", "t_sample", "t_tick", "values")
)
_C_EVENTS, _C_DECODER, _C_FLAGS, _C_EXPIRES = (
    len(_COMMAND.template) - _COMMAND.offsets[key] for key in ("events", "decoder", "flags", "expires")
)

_STIMULATION = wire.stimulation_frame()
_M_SEQ, _M_TICK, _M_T, _M_KIND, _M_ID, _M_ELECTRODE, _M_PULSES, _M_EXPIRES, _M_REASON = (
    _STIMULATION.offsets[key] for key in ("seq", "tick", "t", "kind", "id", "electrode", "pulses", "expires", "reason")
)
_M_AMPLITUDE, _M_PHASE, _M_INTERPHASE, _M_AMPLITUDE2, _M_PHASE2, _M_PERIOD = (
    _STIMULATION.offsets[key]
    for key in ("amplitude_ua", "phase_us", "interphase_us", "amplitude2_ua", "phase2_us", "period_us")
)

_UNITS = wire.units_frame()
_U_SEQ, _U_TICK, _U_SAMPLE, _U_T_SAMPLE, _U_T_TICK, _U_UNIT, _U_AMPLITUDE, _U_RESIDUAL, _U_FLAGS = (
    _UNITS.offsets[key]
    for key in ("seq", "tick", "sample", "t_sample", "t_tick", "unit", "amplitude", "residual", "flags")
)

_INGEST_STIMULI_T = np.frombuffer(
    msgpack.packb({"values": bytes(_VALUES_BYTES), "t": 0.0})[-11:-8], np.uint8
)  # key and type of the time after the values
_INGEST_STIMULI = np.frombuffer(msgpack.packb({"values": bytes(_VALUES_BYTES)})[:-_VALUES_BYTES], np.uint8)
INGEST_STIMULI_BYTES = _INGEST_STIMULI.size + _VALUES_BYTES
_INGEST_STIMULI_T_BYTES = INGEST_STIMULI_BYTES + _INGEST_STIMULI_T.size + 8
_INHIBITED = int(wire.Flag.INHIBITED)
_COMMAND_BYTES_1 = len(_COMMAND.template)


def keys_table(names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return msgpack keys for `read_numbers`, one row a name: the encoded key, padded with zeros."""
    table = np.zeros((len(names), 32), np.uint8)
    for row, name in zip(table, names, strict=True):
        key = msgpack.packb(name)
        row[: len(key)] = np.frombuffer(key, np.uint8)
    return table


def spikes_frame() -> NDArray[np.uint8]:
    """Return a spikes frame to be filled again and again."""
    return np.frombuffer(_SPIKES.template, np.uint8).copy()


def stimuli_frame() -> NDArray[np.uint8]:
    """Return a stimuli frame to be filled again and again."""
    return np.frombuffer(_STIMULI.template, np.uint8).copy()


@jit
def fill_spikes(
    frame: NDArray[np.uint8],
    seq: int,
    tick: int,
    sample: int,
    t_sample: float,
    t_tick: float,
    mask: int,
    flags: int,
) -> None:
    """Store the numbers of one spikes message; bit i of `mask` is channel i."""
    store_big_endian(frame, _SEQ, np.uint64(seq))
    store_big_endian(frame, _TICK, np.uint64(tick))
    store_big_endian(frame, _SAMPLE, np.uint64(sample))
    store_big_endian(frame, _T_SAMPLE, bits_of(t_sample))
    store_big_endian(frame, _T_TICK, bits_of(t_tick))
    for i in range(_MASK_BYTES):
        frame[_MASK + i] = (mask >> (8 * i)) & 0xFF
    store_big_endian(frame, _FLAGS, np.uint32(flags))


@jit
def fill_stimuli(frame: NDArray[np.uint8], record: Any) -> None:
    """Store the numbers of one stimuli message: those of a TICK record."""
    store_big_endian(frame, _S_SEQ, np.uint64(record["seq"]))
    store_big_endian(frame, _S_TICK, np.uint64(record["tick"]))
    raw = record["stimuli"].view(np.uint8)
    for i in range(_VALUES_BYTES):
        frame[_S_VALUES + i] = raw[i]
    raw = record["modulation"].view(np.uint8)
    for i in range(_MODULATION_BYTES):
        frame[_S_MODULATION + i] = raw[i]
    store_big_endian(frame, _S_STEP, bits_of(record["step_ms"]))
    store_big_endian(frame, _S_FLAGS, np.uint32(record["flags"]))


def command_frame(n_outputs: int) -> NDArray[np.uint8]:
    """Return a command frame of so many outputs, at least 1, to be filled again and again."""
    return np.frombuffer(wire.command_frame(max(1, n_outputs)).template, np.uint8).copy()


def stimulation_frame() -> NDArray[np.uint8]:
    """Return a stimulation frame to be filled again and again."""
    return np.frombuffer(_STIMULATION.template, np.uint8).copy()


@jit
def fill_command(frame: NDArray[np.uint8], seq: int, record: Any, decoder: int, flags: int, expires: float) -> None:
    """Store the numbers of one command message: those of a TICK record, all values zero where INHIBITED is set."""
    n = frame.shape[0]
    store_big_endian(frame, _C_SEQ, np.uint64(seq))
    store_big_endian(frame, _C_TICK, np.uint64(record["tick"]))
    store_big_endian(frame, _C_T_SAMPLE, bits_of(record["t_sample"]))
    store_big_endian(frame, _C_T_TICK, bits_of(record["t_tick"]))
    inhibited = flags & _INHIBITED
    raw = record["outputs"].view(np.uint8)
    for i in range(n - _COMMAND_BYTES_1 + 4):
        frame[_C_VALUES + i] = 0 if inhibited else raw[i]
    store_big_endian(frame, n - _C_EVENTS, np.uint32(0 if inhibited else record["events"]))
    store_big_endian(frame, n - _C_DECODER, np.uint64(decoder))
    store_big_endian(frame, n - _C_FLAGS, np.uint32(flags))
    store_big_endian(frame, n - _C_EXPIRES, bits_of(expires))


@jit
def fill_stimulation(
    frame: NDArray[np.uint8], seq: int, tick: int, t: float, kind: int, expires: float, reason: int, decision: Any
) -> None:
    """Store the numbers of one stimulation message; the train's are those of a DECISION record, or of zeros."""
    store_big_endian(frame, _M_SEQ, np.uint64(seq))
    store_big_endian(frame, _M_TICK, np.uint64(tick))
    store_big_endian(frame, _M_T, bits_of(t))
    frame[_M_KIND] = kind
    store_big_endian(frame, _M_ID, np.uint64(decision["id"]))
    store_big_endian(frame, _M_ELECTRODE, np.uint16(decision["electrode"]))
    store_big_endian(frame, _M_AMPLITUDE, bits_of(decision["amplitude_ua"]))
    store_big_endian(frame, _M_PHASE, bits_of(decision["phase_us"]))
    store_big_endian(frame, _M_INTERPHASE, bits_of(decision["interphase_us"]))
    store_big_endian(frame, _M_AMPLITUDE2, bits_of(decision["amplitude2_ua"]))
    store_big_endian(frame, _M_PHASE2, bits_of(decision["phase2_us"]))
    store_big_endian(frame, _M_PULSES, np.uint32(decision["pulses"]))
    store_big_endian(frame, _M_PERIOD, bits_of(decision["period_us"]))
    store_big_endian(frame, _M_EXPIRES, bits_of(expires))
    store_big_endian(frame, _M_REASON, np.uint16(reason))


def units_frame() -> NDArray[np.uint8]:
    """Return a units frame to be filled again and again."""
    return np.frombuffer(_UNITS.template, np.uint8).copy()


@jit
def fill_units(frame: NDArray[np.uint8], seq: int, t_tick: float, record: Any) -> None:
    """Store the numbers of one units message: those of a UNIT record."""
    store_big_endian(frame, _U_SEQ, np.uint64(seq))
    store_big_endian(frame, _U_TICK, np.uint64(record["tick"]))
    store_big_endian(frame, _U_SAMPLE, np.uint64(record["sample"]))
    store_big_endian(frame, _U_T_SAMPLE, bits_of(record["t_sample"]))
    store_big_endian(frame, _U_T_TICK, bits_of(t_tick))
    store_big_endian(frame, _U_UNIT, np.uint16(record["unit"]))
    store_big_endian(frame, _U_AMPLITUDE, bits_of(record["amplitude"]))
    store_big_endian(frame, _U_RESIDUAL, bits_of(record["residual"]))
    store_big_endian(frame, _U_FLAGS, np.uint32(record["flags"]))


@jit
def read_stimuli(payload: NDArray[np.uint8], size: int, values: NDArray[np.float32], sent: NDArray[np.float64]) -> bool:
    """Read the fixed layout of an ingest ``stimuli`` message: values alone, or values and then the time of sending.

    Returns
    -------
    bool
        False where the payload is not of the fixed layout or a value is not finite; `values` is then not to be used.
        ``sent[0]`` is the time of sending, 0 where there is none.
    """
    sent[0] = 0.0
    with_time = size == _INGEST_STIMULI_T_BYTES
    if size != INGEST_STIMULI_BYTES and not with_time:
        return False
    if payload[0] != _FIXMAP + 1 + with_time:
        return False
    for i in range(1, _INGEST_STIMULI.size):
        if payload[i] != _INGEST_STIMULI[i]:
            return False
    if with_time:
        for i in range(_INGEST_STIMULI_T.size):
            if payload[INGEST_STIMULI_BYTES + i] != _INGEST_STIMULI_T[i]:
                return False
        time = sent.view(np.uint8)
        for i in range(8):
            time[i] = payload[size - 1 - i]
        if not np.isfinite(sent[0]):
            return False
    raw = values.view(np.uint8)
    for i in range(_VALUES_BYTES):
        raw[i] = payload[_INGEST_STIMULI.size + i]
    for i in range(N_CHANNELS):
        if not np.isfinite(values[i]):
            return False
    return True


@jit
def read_numbers(
    payload: NDArray[np.uint8],
    size: int,
    keys: NDArray[np.uint8],
    values: NDArray[np.float64],
    present: NDArray[np.uint8],
) -> bool:
    """Read a map of numbers in their usual forms: float64, and integers from -32 to 127.

    Parameters
    ----------
    payload : ndarray of uint8
        The message; only its first `size` bytes count.
    size : int
        Its length in bytes.
    keys : ndarray of uint8, shape (n, 32)
        The keys that may occur, from `keys_table`.
    values : ndarray of float64, shape (n,)
        Overwritten where the key is present.
    present : ndarray of uint8, shape (n,)
        Set to 1 where the key is present, else to 0.

    Returns
    -------
    bool
        False for anything else: the message is then for the slower, complete reader in `neuromod.bridge.wire`.
    """
    for k in range(present.shape[0]):
        present[k] = 0
    if size < 1 or (payload[0] & 0xF0) != _FIXMAP:
        return False
    at = 1
    for _ in range(payload[0] & 0x0F):
        found = -1
        for k in range(keys.shape[0]):
            n = 1 + (keys[k, 0] & 0x1F)
            same = at + n <= size
            for i in range(n):
                same = same and payload[at + i] == keys[k, i]
            if same and not present[k]:
                found = k
                at += n
                break
        if found < 0 or at >= size:
            return False
        kind = payload[at]
        at += 1
        if kind == _F64 and at + 8 <= size:
            raw = values[found : found + 1].view(np.uint8)
            for i in range(8):
                raw[i] = payload[at + 7 - i]
            at += 8
        elif kind <= 0x7F or kind >= 0xE0:
            values[found] = np.int8(kind)
        else:
            return False
        if not np.isfinite(values[found]):
            return False
        present[found] = 1
    return at == size


@jit
def read_answer(payload: NDArray[np.uint8], size: int, keys: NDArray[np.uint8], answer: NDArray[np.int64]) -> bool:
    """Read an ingest ``board`` message: tick and spikes as unsigned integers of any width, and perhaps `checked`.

    Parameters
    ----------
    payload : ndarray of uint8
        The message; only its first `size` bytes count.
    size : int
        Its length in bytes.
    keys : ndarray of uint8, shape (3, 32)
        ``keys_table(ANSWER_KEYS)``.
    answer : ndarray of int64, shape (3,)
        Overwritten by tick, spikes, and 1 where the answer came over a link with a checksum.

    Returns
    -------
    bool
        False for anything else, and numbers out of range: the message is then for `neuromod.bridge.wire` to judge, and
        `answer` is not to be used.
    """
    answer[0] = answer[1] = answer[2] = -1
    if size < 1 or not _FIXMAP + 2 <= payload[0] <= _FIXMAP + 3:
        return False
    at = 1
    for _ in range(payload[0] - _FIXMAP):
        found = -1
        for k in range(3):
            n = 1 + (keys[k, 0] & 0x1F)
            same = at + n <= size
            for i in range(n):
                same = same and payload[at + i] == keys[k, i]
            if same and answer[k] < 0:
                found = k
                at += n
                break
        if found < 0 or at >= size:
            return False
        kind = payload[at]
        at += 1
        if found == _CHECKED:
            if kind != _FALSE and kind != _TRUE:
                return False
            answer[found] = kind - _FALSE
        elif kind <= 0x7F:
            answer[found] = kind
        elif _U8 <= kind <= _U64:
            width = 1 << (kind - _U8)
            if at + width > size:
                return False
            value = np.int64(0)
            for i in range(width):
                value = value << 8 | np.int64(payload[at + i])
            answer[found] = value  # negative beyond 2^63
            at += width
        else:
            return False
        if answer[found] < 0:
            return False
    answer[_CHECKED] = max(answer[_CHECKED], 0)
    return at == size and answer[0] >= 0 and 0 <= answer[1] < 1 << N_CHANNELS
