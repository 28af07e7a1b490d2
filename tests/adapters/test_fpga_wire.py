"""Frames between host and board: what is packed comes back, and whatever is damaged never does."""

import doctest
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.wire import Frame, Kind, Parser, Refusal, TickDone
from neuromod.engine.errors import ProtocolError

BODIES = st.binary(max_size=wire.MAX_FRAME - wire.OVERHEAD) | st.lists(
    st.sampled_from([b"\0", b"\0\0\0\0", b"\xff" * 60, b"\1\0"]), max_size=4
).map(b"".join)
U32 = st.integers(0, 2**32 - 1)


def cobs_naive(data: bytes) -> bytes:
    """COBS as its paper has it: byte by byte, a code that is mended when the next zero comes."""
    out, code_at = bytearray([0]), 0
    for byte in data:
        if byte:
            out.append(byte)
        if not byte or len(out) - code_at == 0xFF:
            out[code_at] = len(out) - code_at
            code_at = len(out)
            out.append(0)
    out[code_at] = len(out) - code_at
    return bytes(out)


def one(data: bytes) -> Frame:
    parser = Parser()
    (frame,) = parser.feed(data)
    assert (parser.damaged, parser.dropped) == (0, 0)
    return frame


@given(data=st.binary(max_size=wire.MAX_FRAME) | st.binary(max_size=20).map(lambda b: b.replace(b"\7", b"\0")))
def test_cobs_is_that_of_its_paper_and_comes_back(data: bytes) -> None:
    encoded = wire.encode(data)
    assert encoded == cobs_naive(data)
    assert 0 not in encoded
    assert wire.decode(encoded) == data


@pytest.mark.parametrize("code", [b"", b"\x03\x01", b"\x02", b"\x02\x01\x00", b"\xff" + b"\x01" * 254, b"\x01\x05\x01"])
def test_wrong_cobs_code_is_refused(code: bytes) -> None:
    assert wire.decode(code) is None


@given(kind=st.integers(0, 255), sequence=st.integers(0, 2**16 - 1), body=BODIES, version=st.integers(0, 255))
def test_any_frame_comes_back_as_it_was(kind: int, sequence: int, body: bytes, version: int) -> None:
    assert one(wire.pack(kind, sequence, body, version)) == Frame(version, kind, sequence, body)


@given(bodies=st.lists(BODIES, max_size=5), data=st.data())
def test_frames_come_back_from_pieces_of_any_length(bodies: list[bytes], data: Any) -> None:
    stream = b"\0" + b"".join(wire.pack(Kind.READ, k, body) for k, body in enumerate(bodies)) + b"\0\0"
    parser, frames, at = Parser(), [], 0
    while at < len(stream):
        n = data.draw(st.integers(1, 200))
        frames += parser.feed(stream[at : at + n])
        at += n
    assert [(frame.sequence, frame.body) for frame in frames] == list(enumerate(bodies))
    assert (parser.damaged, parser.dropped) == (0, 0)


@given(body=BODIES, at=st.integers(0, 254), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_a_frame_and_the_next_one_is_found(body: bytes, at: int, bit: int) -> None:
    damaged = bytearray(wire.pack(Kind.TICK, 1, body))
    damaged[at % len(damaged)] ^= 1 << bit
    parser = Parser()
    frames = parser.feed(bytes(damaged) + b"\0" + wire.pack(Kind.READ, 2))
    assert [frame.sequence for frame in frames] == [2]
    assert parser.damaged >= 1
    begins_empty = damaged[0] == 0
    assert len(damaged) - begins_empty <= parser.dropped <= len(damaged) + 1


@given(body=BODIES, at=st.integers(0, 254), n=st.integers(1, 40))
def test_lost_bytes_cost_that_frame_and_no_other_but_where_the_zero_is_lost(body: bytes, at: int, n: int) -> None:
    whole = wire.pack(Kind.TICK, 1, body)
    at %= len(whole)
    rest = whole[:at] + whole[at + n :]
    parser = Parser()
    frames = parser.feed(rest + wire.pack(Kind.READ, 2) + wire.pack(Kind.READ, 3))
    assert [frame.sequence for frame in frames] in ([2, 3], [3])
    assert frames[0].sequence == 2 or not rest.endswith(b"\0")
    assert parser.damaged == 1 or not rest


@given(noise=st.binary(max_size=2000))
@settings(max_examples=50)
def test_noise_of_any_length_is_dropped_and_counted_byte_by_byte(noise: bytes) -> None:
    parser = Parser()
    frames = parser.feed(noise) + parser.feed(b"\0" + wire.pack(Kind.READ, 9))
    assert frames[-1].sequence == 9
    assert len(frames) == 1  # 32 bits of CRC against some 2000 bytes
    n_empty = len(noise + b"\0") - sum(len(run) + 1 for run in (noise + b"\0").split(b"\0")[:-1] if run)
    assert parser.dropped == len(noise) + 1 - n_empty
    assert len(parser._buffer) == 0


def test_a_frame_without_its_zero_does_not_grow_for_ever() -> None:
    parser = Parser()
    for _ in range(100):
        assert parser.feed(b"\1" * 100) == []
        assert len(parser._buffer) < wire.MAX_WIRE
    (frame,) = parser.feed(b"\0" + wire.pack(Kind.READ, 1))
    assert frame.sequence == 1
    assert parser.damaged == 1
    assert parser.dropped == 10_001


def test_a_frame_too_short_for_its_head_is_none_though_its_crc_is_right() -> None:
    short = b"\1\2\3"
    parser = Parser()
    assert parser.feed(wire.encode(short + struct.pack("<I", zlib.crc32(short))) + b"\0") == []
    assert parser.damaged == 1


def test_bodies_that_do_not_fit_are_refused() -> None:
    room = wire.MAX_FRAME - wire.OVERHEAD
    assert len(wire.pack(Kind.TICK, 0, bytes(room))) <= wire.MAX_WIRE
    assert len(wire.pack(Kind.TICK, 0, b"\1" * room)) <= wire.MAX_WIRE
    with pytest.raises(ProtocolError, match="at most 245 bytes, not 246"):
        wire.pack(Kind.TICK, 0, bytes(room + 1))


# -- bodies


@given(
    tick=U32,
    stimuli=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=16, max_size=16),
    modulation=st.none() | st.tuples(*[st.integers(0, 2**24 - 1)] * 4, st.integers(-(2**31), 2**31 - 1)),
)
def test_a_tick_comes_back(tick: int, stimuli: list[int], modulation: tuple[int, ...] | None) -> None:
    words = None if modulation is None else np.array(modulation, dtype=np.int64)
    frame = one(wire.pack_tick(3, tick, np.array(stimuli, dtype=np.int16), words))
    assert (frame.version, frame.kind, frame.sequence) == (1, Kind.TICK, 3)
    assert len(frame.body) == (37 if words is None else 57)
    back_tick, back_stimuli, back_modulation = wire.unpack_tick(frame.body)
    assert back_tick == tick
    assert back_stimuli.tolist() == stimuli
    assert (back_modulation is None) == (words is None)
    if back_modulation is not None:
        assert tuple(back_modulation.tolist()) == modulation


@given(
    tick=U32,
    clocks=st.integers(0, 2**16 - 1),
    spikes=st.tuples(*[st.integers(0, 2**16 - 1)] * 4),
    v=st.lists(st.integers(-(2**23), 2**23 - 1), min_size=16, max_size=16),
)
def test_the_answer_to_a_tick_comes_back(tick: int, clocks: int, spikes: tuple[int, ...], v: list[int]) -> None:
    frame = one(wire.pack_tick_done(3, TickDone(tick, clocks, spikes, np.array(v, dtype=np.int32))))
    assert (frame.kind, len(frame.body)) == (Kind.TICK_DONE, 62)
    back = wire.unpack_tick_done(frame.body)
    assert (back.tick, back.clocks, back.spikes, back.v.tolist()) == (tick, clocks, spikes, v)
    assert back.v.dtype == np.int32


@given(address=st.integers(0, 2**16 - 1), words=st.lists(st.integers(-(2**31), 2**32 - 1), min_size=1, max_size=56))
def test_words_come_back_as_32_bits(address: int, words: list[int]) -> None:
    for pack, kind in ((wire.pack_write, Kind.WRITE), (wire.pack_words, Kind.WORDS)):
        frame = one(pack(3, address, words))
        assert frame.kind == kind
        back_address, back = wire.unpack_words(frame.body)
        assert back_address == address
        assert back.tolist() == [word % 2**32 for word in words]
    for pack_n, kind in ((wire.pack_read, Kind.READ), (wire.pack_written, Kind.WRITTEN)):
        frame = one(pack_n(4, address, len(words)))
        assert (frame.kind, wire.unpack_address(frame.body)) == (kind, (address, len(words)))


@given(reason=st.sampled_from(Refusal), tick=U32)
def test_a_refusal_comes_back(reason: Refusal, tick: int) -> None:
    frame = one(wire.pack_refused(65535, reason, tick))
    assert (frame.kind, frame.sequence, wire.unpack_refused(frame.body)) == (Kind.REFUSED, 65535, (reason, tick))


@pytest.mark.parametrize("n", [0, 57])
def test_counts_of_words_that_no_frame_has_are_refused(n: int) -> None:
    with pytest.raises(ProtocolError, match=f"1 to 56 words, got {n}"):
        wire.pack_write(0, 0, [0] * n)
    with pytest.raises(ProtocolError, match=f"1 to 56 words, got {n}"):
        wire.pack_read(0, 0, n)
    with pytest.raises(ProtocolError, match="1 to 56"):
        wire.unpack_address(bytes([0, 0, n]))


@pytest.mark.parametrize(
    "unpack, body",
    [
        (wire.unpack_tick, bytes(37)),
        (wire.unpack_tick, bytes(4) + b"\1" + bytes(52)),
        (wire.unpack_tick_done, bytes(62)),
        (wire.unpack_words, b"\0\0\2" + bytes(8)),
        (wire.unpack_address, b"\0\0\1"),
        (wire.unpack_refused, bytes(5)),
    ],
)
def test_a_body_of_another_length_is_refused(unpack: Any, body: bytes) -> None:
    unpack(body)
    for wrong in (body[:-1], body + b"\0", b""):
        with pytest.raises(ProtocolError, match="bytes, got"):
            unpack(wrong)


def test_ticks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="16 stimuli"):
        wire.pack_tick(0, 0, np.zeros(15, dtype=np.int16))
    with pytest.raises(ProtocolError, match="5 words"):
        wire.pack_tick(0, 0, np.zeros(16, dtype=np.int16), np.zeros(4, dtype=np.int64))


def test_the_worked_examples_are_right() -> None:
    failed, tried = doctest.testmod(wire)
    assert (failed, tried > 1) == (0, True)
