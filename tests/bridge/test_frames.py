"""Frames filled and read in place are, byte for byte, what msgpack and PROTOCOL.md make of them."""

import math
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.bridge import frames, wire
from neuromod.bridge.frames import (
    ANSWER_KEYS,
    INGEST_STIMULI_BYTES,
    command_frame,
    fill_command,
    fill_spikes,
    fill_stimulation,
    fill_stimuli,
    keys_table,
    read_answer,
    read_numbers,
    read_stimuli,
    spikes_frame,
    stimulation_frame,
    stimuli_frame,
)
from neuromod.bridge.gate import DECISION
from neuromod.bridge.pipeline import TICK
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import MODULATORS

LEVELS = keys_table(MODULATORS)
AMOUNT = keys_table(("amount",))

int63 = st.integers(0, 2**63 - 1)  # what the loop's counters can hold
float32s = st.floats(width=32)
fast = settings(deadline=None, max_examples=200)  # no deadline: the first call compiles

usual_numbers = st.integers(-32, 127) | st.floats(allow_nan=False, allow_infinity=False)
other_values = st.one_of(
    st.integers(-(2**63), -33),
    st.integers(128, 2**64 - 1),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)


_CURRENTS = ("amplitude_ua", "phase_us", "interphase_us", "amplitude2_ua", "phase2_us", "period_us")


def guarded(payload: bytes | bytearray, guard: int) -> NDArray[np.uint8]:
    """The payload as it lies in the loop's buffer, in front of what an earlier message left there."""
    return np.frombuffer(payload + bytes([guard] * 80), np.uint8).copy()


def numbers_in(payload: bytes, keys: NDArray[np.uint8] = LEVELS, guard: int = 0) -> list[float | None] | None:
    """What `read_numbers` says: a value or None for every key, or None for all where it leaves the message."""
    values, present = np.full(len(keys), 777.0), np.full(len(keys), 9, np.uint8)
    if not read_numbers(guarded(payload, guard), len(payload), keys, values, present):
        return None
    assert set(present.tolist()) <= {0, 1}
    return [float(v) if p else None for v, p in zip(values, present, strict=True)]


def tick_record(rng: np.random.Generator) -> Any:
    """A TICK with every field at random."""
    record = np.frombuffer(rng.bytes(TICK.itemsize), TICK).copy()
    record["t_sample"], record["t_tick"] = rng.normal(size=2) * 1e6
    record["outputs"] = rng.normal(size=record["outputs"].shape)
    return record[0]


def levels_by_msgpack(payload: bytes) -> list[float | None]:
    """The same by msgpack; raises or fails where the payload is not a map of levels."""
    pairs = msgpack.unpackb(payload, object_pairs_hook=list)
    assert isinstance(pairs, list)
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    assert set(names) <= set(MODULATORS)
    for _, value in pairs:
        assert isinstance(value, int | float)
        assert not isinstance(value, bool)
    body = dict(pairs)
    return [float(body[name]) if name in body else None for name in MODULATORS]


def stimuli_payload(values: Any) -> bytes:
    packed: bytes = msgpack.packb({"values": np.asarray(values, "<f4").tobytes()})
    return packed


# -- out


@pytest.mark.parametrize("n_outputs", [1, 2, 8])
@pytest.mark.parametrize("flags", [0, int(wire.Flag.LATE), int(wire.Flag.INHIBITED | wire.Flag.FILLER)])
def test_a_filled_command_frame_is_the_packed_message(n_outputs: int, flags: int) -> None:
    rng = np.random.default_rng([n_outputs, flags])
    frame = command_frame(n_outputs)
    for _ in range(20):  # nothing of the one before may stay
        record = tick_record(rng)
        fill_command(frame, 7, record, 3, flags, 12.25)

        is_inhibited = bool(flags & wire.Flag.INHIBITED)
        values = np.zeros(n_outputs, np.float32) if is_inhibited else record["outputs"][:n_outputs]
        events = 0 if is_inhibited else int(record["events"])
        tick, t_sample, t_tick = int(record["tick"]), float(record["t_sample"]), float(record["t_tick"])
        packed = wire.pack_command(Command(7, tick, t_sample, t_tick, values, events, 3, flags, 12.25))
        assert frame.tobytes() == packed
        read = wire.unpack_output(b"command", packed)
        assert isinstance(read, Command)
        assert read.values.tolist() == values.tolist()
        assert (read.tick, read.t_tick, read.events, read.flags) == (tick, t_tick, events, flags)


@pytest.mark.parametrize("kind", wire.STIMULATION_KINDS)
def test_a_filled_stimulation_frame_is_the_packed_message(kind: Any) -> None:
    decision = np.zeros(1, DECISION)
    decision["id"], decision["electrode"], decision["pulses"] = 2**40, 31, 7
    for name, value in zip(_CURRENTS, (-10.5, 200.0, 50.0, 5.25, 400.0, 1e4), strict=True):
        decision[name] = value
    frame = stimulation_frame()
    fill_stimulation(frame, 5, 6, 1.5, wire.STIMULATION_KINDS.index(kind), 1.75, 16, decision[0])

    message = Stimulation(5, 6, 1.5, kind, 2**40, 31, -10.5, 200.0, 50.0, 5.25, 400.0, 7, 1e4, 1.75, 16)
    assert frame.tobytes() == wire.pack_stimulation(message)
    assert wire.unpack_output(b"stimulation", frame.tobytes()) == message


def test_stimuli_with_the_time_of_sending_are_read_in_compiled_code() -> None:
    values = np.arange(16, dtype=np.float32)
    _, payload = wire.pack_ingest(wire.StimuliInput(values, 1234.5))
    read, sent = np.zeros(N_CHANNELS, np.float32), np.zeros(1)

    assert read_stimuli(guarded(payload, 0), len(payload), read, sent)

    assert read.tolist() == values.tolist()
    assert sent[0] == 1234.5
    assert not read_stimuli(guarded(payload, 0), len(payload) - 1, read, sent)
    for at in (0, 1, 9, 74, 76):  # the map, a key, the length, the second key, its type
        damaged = bytearray(payload)
        damaged[at] ^= 0x01
        assert not read_stimuli(guarded(damaged, 0), len(damaged), read, sent)


@fast
@given(
    seq=int63,
    tick=int63,
    sample=int63,
    t_sample=st.floats(),
    t_tick=st.floats(),
    mask=st.integers(0, 0xFFFF),
    flags=st.integers(0, 2**32 - 1),
)
def test_a_filled_spikes_frame_is_the_packed_message(
    seq: int, tick: int, sample: int, t_sample: float, t_tick: float, mask: int, flags: int
) -> None:
    frame = spikes_frame()
    fill_spikes(frame, 2**63 - 1, 2**63 - 1, 2**63 - 1, math.nan, math.nan, 0xFFFF, 2**32 - 1)  # nothing of it may stay

    fill_spikes(frame, seq, tick, sample, t_sample, t_tick, mask, flags)

    spikes = np.array([bool(mask >> i & 1) for i in range(N_CHANNELS)])
    message = wire.SpikesMessage(seq, tick, sample, t_sample, t_tick, spikes, wire.Flag(flags & 0xFF))
    expected = bytearray(wire.pack_spikes(message))
    expected[-4:] = struct.pack(">I", flags)  # reserved bits too
    assert frame.tobytes() == bytes(expected)
    body = msgpack.unpackb(frame.tobytes())
    assert (body["v"], body["n"]) == (wire.PROTOCOL_VERSION, N_CHANNELS)
    assert (body["seq"], body["tick"], body["sample"], body["flags"]) == (seq, tick, sample, flags)
    assert int.from_bytes(body["spikes"], "little") == mask
    assert struct.pack(">dd", body["t_sample"], body["t_tick"]) == struct.pack(">dd", t_sample, t_tick)


@fast
@given(
    seq=int63,
    tick=int63,
    values=st.lists(float32s, min_size=N_CHANNELS, max_size=N_CHANNELS),
    modulation=st.lists(st.floats(), min_size=5, max_size=5),
    step_ms=st.floats(),
    flags=st.integers(0, 2**32 - 1),
)
def test_a_filled_stimuli_frame_is_the_packed_message(
    seq: int, tick: int, values: list[float], modulation: list[float], step_ms: float, flags: int
) -> None:
    frame, record = stimuli_frame(), np.zeros(1, TICK)
    record.view(np.uint8)[:] = 0xFF  # nothing of it may stay
    fill_stimuli(frame, record[0])

    record["seq"], record["tick"], record["stimuli"], record["flags"] = seq, tick, values, flags
    record["modulation"], record["step_ms"] = modulation, step_ms
    fill_stimuli(frame, record[0])

    array, numbers = np.array(values, np.float32), np.array(modulation)
    message = wire.StimuliMessage(seq, tick, array, numbers, step_ms, wire.Flag(flags & 0xFF))
    expected = bytearray(wire.pack_stimuli(message))
    expected[-4:] = struct.pack(">I", flags)  # reserved bits too
    assert frame.tobytes() == bytes(expected)
    body = msgpack.unpackb(frame.tobytes())
    assert (body["seq"], body["tick"], body["n"], body["flags"]) == (seq, tick, N_CHANNELS, flags)
    assert body["values"] == array.tobytes()
    assert body["modulation"] == numbers.astype("<f8").tobytes()
    assert struct.pack(">d", body["step_ms"]) == struct.pack(">d", step_ms)


def test_frames_are_copies_of_their_template() -> None:
    spikes_frame()[:] = 0
    stimuli_frame()[:] = 0

    assert spikes_frame().tobytes() == wire.spikes_frame(N_CHANNELS).template
    assert stimuli_frame().tobytes() == wire.stimuli_frame(N_CHANNELS).template


@pytest.mark.parametrize("name", ["SPIKES", "STIMULI", "MODULATORS", "REWARD", "STRESS", "BOARD", "STOP"])
def test_topics_are_those_of_the_wire(name: str) -> None:
    assert getattr(frames, f"TOPIC_{name}").tobytes() == getattr(wire, f"TOPIC_{name}")


# -- stimuli in


@fast
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=N_CHANNELS, max_size=N_CHANNELS
    )
)
def test_finite_stimuli_of_the_fixed_layout_are_read_bit_for_bit(values: list[float]) -> None:
    payload, read = stimuli_payload(values), np.full(N_CHANNELS, np.nan, np.float32)

    assert len(payload) == INGEST_STIMULI_BYTES == 74
    assert payload == wire.pack_ingest(wire.StimuliInput(np.array(values, np.float32)))[1]
    assert read_stimuli(guarded(payload, 0), len(payload), read, np.zeros(1))
    assert read.tobytes() == np.array(values, np.float32).tobytes()


@fast
@given(
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    at=st.integers(0, N_CHANNELS - 1),
)
def test_stimuli_that_are_not_finite_are_refused(bad: float, at: int) -> None:
    values = np.ones(N_CHANNELS, np.float32)
    values[at] = bad
    payload = stimuli_payload(values)

    assert not read_stimuli(guarded(payload, 0), len(payload), np.zeros(N_CHANNELS, np.float32), np.zeros(1))


@fast
@given(at=st.integers(0, 9), byte=st.integers(0, 255))
def test_stimuli_with_any_other_byte_before_the_values_are_left(at: int, byte: int) -> None:
    payload = bytearray(stimuli_payload(np.ones(N_CHANNELS)))
    is_same = payload[at] == byte
    payload[at] = byte

    assert bool(read_stimuli(guarded(payload, 0), 74, np.zeros(N_CHANNELS, np.float32), np.zeros(1))) == is_same


def test_stimuli_of_any_other_length_are_left() -> None:
    payload = stimuli_payload(np.ones(N_CHANNELS))  # whole in the buffer, so that only the size can tell
    values = np.zeros(N_CHANNELS, np.float32)

    assert [size for size in range(120) if read_stimuli(guarded(payload, 0), size, values, np.zeros(1))] == [74]


@pytest.mark.parametrize(
    "body",
    [
        {"values": [1.0] * N_CHANNELS},
        {"value5": bytes(64)},
        {"values": bytes(64), "x": 1},
        {"values": "a" * 64},
        {},
        bytes(64),
    ],
    ids=str,
)
def test_stimuli_in_other_forms_are_left(body: Any) -> None:
    payload = msgpack.packb(body)

    assert not read_stimuli(guarded(payload, 0), len(payload), np.zeros(N_CHANNELS, np.float32), np.zeros(1))


# -- numbers in


@fast
@given(body=st.dictionaries(st.sampled_from(MODULATORS), usual_numbers))
def test_maps_of_numbers_in_their_usual_forms_are_read_as_msgpack_reads_them(body: dict[str, float]) -> None:
    payload = msgpack.packb(body)

    read = numbers_in(payload)

    assert read == [float(body[name]) if name in body else None for name in MODULATORS]
    assert read == levels_by_msgpack(payload)


def test_every_short_integer_and_the_ends_of_the_doubles_are_read() -> None:
    for value in [*range(-32, 128), -0.0, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 0.1]:
        read = numbers_in(msgpack.packb({"amount": value}), AMOUNT)

        assert read is not None
        assert struct.pack(">d", read[0]) == struct.pack(">d", value)


@fast
@given(
    body=st.dictionaries(st.sampled_from(MODULATORS), usual_numbers),
    name=st.sampled_from(MODULATORS),
    value=other_values,
)
def test_a_map_with_any_other_value_is_left(body: dict[str, Any], name: str, value: Any) -> None:
    assert numbers_in(msgpack.packb(body | {name: value})) is None


@fast
@given(body=st.dictionaries(st.sampled_from(MODULATORS), usual_numbers), key=st.text(max_size=40) | st.binary())
@example(body={}, key="dopamin")
@example(body={}, key="dopamine\0")
@example(body={}, key="Dopamine")
@example(body={}, key="")
@example(body={}, key=b"dopamine")
def test_a_map_with_an_unknown_key_is_left(body: dict[Any, Any], key: str | bytes) -> None:
    if key not in MODULATORS:
        assert numbers_in(msgpack.packb(body | {key: 0.5})) is None


@fast
@given(
    pairs=st.lists(st.tuples(st.sampled_from(MODULATORS), usual_numbers), min_size=2, max_size=5).filter(
        lambda pairs: len({name for name, _ in pairs}) < len(pairs)
    )
)
def test_a_map_with_a_key_twice_is_left(pairs: list[tuple[str, float]]) -> None:
    packer = msgpack.Packer()
    payload = packer.pack_map_pairs(pairs)

    assert numbers_in(payload) is None


@fast
@given(
    body=st.dictionaries(st.sampled_from(MODULATORS), usual_numbers, min_size=1),
    tail=st.binary(min_size=1, max_size=9),
    data=st.data(),
)
def test_a_map_cut_short_or_followed_by_anything_is_left(
    body: dict[str, float], tail: bytes, data: st.DataObject
) -> None:
    payload = msgpack.packb(body)
    cut = data.draw(st.integers(0, len(payload) - 1))
    buffer = guarded(payload + tail, 0)
    values, present = np.zeros(len(LEVELS)), np.zeros(len(LEVELS), np.uint8)

    # the rest of the map still stands behind the size that counts
    assert not read_numbers(buffer, cut, LEVELS, values, present)
    assert not read_numbers(buffer, len(payload) + len(tail), LEVELS, values, present)


def random_messages() -> st.SearchStrategy[bytes]:
    """Bytes of all kinds: random, of maps, and of maps with a few bytes changed."""
    maps = st.dictionaries(st.sampled_from(MODULATORS), usual_numbers | other_values).map(msgpack.packb)

    def changed(payload: bytes, changes: list[tuple[int, int]]) -> bytes:
        mutable = bytearray(payload)
        for at, byte in changes:
            mutable[at % len(mutable)] = byte
        return bytes(mutable)

    changes = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3)
    return st.one_of(
        st.binary(max_size=60),
        st.builds(changed, maps, changes),
        st.builds(lambda payload, tail: payload + tail, maps, st.binary(max_size=9)),
        st.builds(lambda payload, n: payload[:-n], maps, st.integers(1, 10)),
    )


@settings(deadline=None, max_examples=1000)
@given(payload=random_messages())
@example(payload=b"")
@example(payload=b"\x81")
@example(payload=b"\x80")
@example(payload=msgpack.packb({"dopamine": 1.0})[:-1])
def test_no_message_is_read_otherwise_than_msgpack_reads_it(payload: bytes) -> None:
    read = numbers_in(payload)

    # whatever an earlier message left behind the payload changes nothing
    assert numbers_in(payload, guard=0xFF) == read
    assert numbers_in(payload, guard=0xCB) == read
    if read is not None:
        assert read == levels_by_msgpack(payload)


def test_every_type_byte_is_read_as_msgpack_reads_it_or_left() -> None:
    for kind in range(256):
        for n_bytes in range(10):
            payload = b"\x81\xa8dopamine" + bytes([kind] + [0] * n_bytes)
            is_usual = (n_bytes == 0 and (kind < 0x80 or kind >= 0xE0)) or (n_bytes == 8 and kind == 0xCB)

            read = numbers_in(payload)

            assert (read is not None) == is_usual, payload
            if read is not None:
                assert read == levels_by_msgpack(payload)


class Spy:
    """A payload that ends where it ends: reading beyond fails."""

    def __init__(self, payload: bytes) -> None:
        self.payload = np.frombuffer(payload, np.uint8)

    def __getitem__(self, at: int) -> np.uint8:
        assert 0 <= at < len(self.payload), f"read at {at} of {len(self.payload)} bytes"
        byte: np.uint8 = self.payload[at]
        return byte


@settings(deadline=None, max_examples=300)
@given(payload=random_messages())
@example(payload=b"")
@example(payload=b"\x81\xa8dopamine\xcb")
@example(payload=b"\x81\xa8dopamine\xcb1234567")
@example(payload=b"\x81\xa8dopamine")
def test_nothing_beyond_the_size_is_read(payload: bytes) -> None:
    python_form: Any = getattr(read_numbers, "py_func", read_numbers)
    values, present = np.zeros(len(LEVELS)), np.zeros(len(LEVELS), np.uint8)

    read = python_form(Spy(payload), len(payload), LEVELS, values, present)

    assert bool(read) == (numbers_in(payload) is not None)


# -- a board's answer


def answer_in(payload: bytes | bytearray, guard: int = 0) -> list[int] | None:
    """Tick, spikes and whether checked as `read_answer` has them, None where it leaves the message."""
    answer = np.full(3, 777, np.int64)
    if not read_answer(guarded(payload, guard), len(payload), keys_table(ANSWER_KEYS), answer):
        return None
    return [int(number) for number in answer]


widths = st.sampled_from([("B", 0xCC), ("H", 0xCD), ("I", 0xCE), ("Q", 0xCF)])


@fast
@given(
    tick=int63 | st.integers(0, 300),
    spikes=st.integers(0, 0xFFFF),
    checked=st.none() | st.booleans(),
    order=st.permutations(ANSWER_KEYS),
)
def test_an_answer_is_read_as_msgpack_writes_it(tick: int, spikes: int, checked: bool | None, order: list[str]) -> None:
    body = {"tick": tick, "spikes": spikes} | ({} if checked is None else {"checked": checked})
    payload = msgpack.packb({key: body[key] for key in order if key in body})

    assert answer_in(payload) == [tick, spikes, bool(checked)]
    assert wire.unpack_ingest(b"board", payload) == wire.BoardInput(tick, spikes, bool(checked))
    packed = wire.pack_ingest(wire.BoardInput(tick, spikes, bool(checked)))[1]
    assert answer_in(packed) == [tick, spikes, bool(checked)]


@fast
@given(number=st.integers(0, 0xFF), one=widths, two=widths)
def test_the_numbers_of_an_answer_may_have_any_width(number: int, one: tuple[str, int], two: tuple[str, int]) -> None:
    parts = [bytes([kind]) + struct.pack(">" + code, number) for code, kind in (one, two)]
    payload = b"\x82\xa4tick" + parts[0] + b"\xa6spikes" + parts[1]

    assert answer_in(payload) == [number, number, 0]


@fast
@given(
    body=st.dictionaries(
        st.sampled_from(["tick", "spikes", "checked", "t", "ticks"]),
        usual_numbers | other_values | st.booleans(),
        max_size=4,
    )
)
def test_any_other_map_is_no_answer_to_compiled_code_and_the_wire_says_why(body: dict[str, Any]) -> None:
    payload = msgpack.packb(body)
    read = answer_in(payload)
    try:
        judged = wire.unpack_ingest(b"board", payload)
    except wire.MessageError:
        assert read is None
        return
    assert isinstance(judged, wire.BoardInput)
    assert read in (None, [judged.tick, judged.spikes, judged.checked])


@fast
@given(at=st.integers(0, 29), byte=st.integers(0, 255), cut=st.integers(0, 28), guard=st.integers(0, 255))
def test_a_damaged_answer_is_left_or_is_one_that_msgpack_reads_too(at: int, byte: int, cut: int, guard: int) -> None:
    payload = bytearray(msgpack.packb({"tick": 70_000, "checked": True, "spikes": 513}))
    assert answer_in(payload[:cut], guard) is None
    payload[at % len(payload)] = byte

    read = answer_in(payload, guard)

    if read is not None:
        assert wire.unpack_ingest(b"board", bytes(payload)) == wire.BoardInput(read[0], read[1], bool(read[2]))


@pytest.mark.parametrize(
    "body", [{"tick": 2**63, "spikes": 1}, {"tick": 1, "spikes": 2**16}, {"tick": 1, "spikes": -1}]
)
def test_an_answer_out_of_range_is_left_to_be_refused(body: dict[str, int]) -> None:
    payload = msgpack.packb(body)

    assert answer_in(payload) is None
    with pytest.raises(wire.MessageError) as refused:
        wire.unpack_ingest(b"board", payload)
    assert refused.value.reason is wire.Reason.RANGE
