"""The board's Verilog, byte by byte, with our frames: every row of PROTOCOL.md, and whatever else comes over a line."""

import random
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from naive.board import NaiveBoard
from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board_model import BoardModel
from neuromod.adapters.fpga.wire import Frame, Kind, Refusal
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.fixed_registers import REGISTERS, register
from neuromod.engine.images import from_words, to_words

TICK = register("tick").address


def _network() -> FixedNetwork:
    """A network that learns, and whose every register holds something."""
    network = FixedNetwork()
    rng = np.random.default_rng(1)
    block = network.state[0]
    block["learning_factor"] = 1 << 14
    for name in ("pre_trace", "post_trace", "eligibility"):
        block[name] = rng.integers(0, 1 << 16, block[name].shape)
    return network


class Bench:
    """A board, and its twin; what one answers, the other has to."""

    def __init__(self, state: Any) -> None:
        self.board = BoardModel("neuromod", to_words(state))
        self.twin = NaiveBoard(state)
        self._parser = wire.Parser()

    def send(self, data: bytes) -> list[Frame]:
        """Hand over bytes as fast as the board takes them; return its answers, once they were compared."""
        out = b""
        rest = data
        while rest:
            n_taken, answer = self.board.run(rest)
            rest, out = rest[n_taken:], out + answer
        frames = self.frames(out)
        assert [_bytes(frame) for frame in frames] == self.twin.feed(data)
        return frames

    def ask(self, data: bytes) -> Frame:
        """The one answer to a frame."""
        (frame,) = self.send(data)
        return frame

    def frames(self, out: bytes) -> list[Frame]:
        """Frames that the board sent, all of them good."""
        frames = self._parser.feed(out)
        assert self._parser.dropped == 0
        assert out == b"" or out[-1] == 0
        return frames

    def read(self, address: int, n: int = 1) -> list[int]:
        """Words, by frames of their own."""
        got, words = wire.unpack_words(self.ask(wire.pack_read(9, address, n)).body)
        assert got == address
        return [int(word) for word in words]

    def compare(self) -> None:
        """Every register of both, past the protocol."""
        state = from_words(self.board.words())
        for each in REGISTERS:
            assert (state[each.name] == self.twin.state[each.name]).all(), each.name


def _bytes(frame: Frame) -> bytes:
    """A frame as the twin writes it: without CRC, and 0 clocks."""
    body = frame.body
    if frame.kind == Kind.TICK_DONE:
        body = body[:4] + b"\0\0" + body[6:]
    return bytes([frame.version, frame.kind]) + frame.sequence.to_bytes(2, "little") + body


@pytest.fixture
def bench() -> Bench:
    return Bench(_network().state)


def _stimuli(n: int, seed: int = 0) -> NDArray[np.int16]:
    return quantised_stimuli(np.random.default_rng(seed).uniform(-20, 60, (n, 16)), 1000.0)


def _raw(frame: bytes) -> bytes:
    """A frame that is wrong in some way, with the right CRC."""
    return wire.encode(frame + zlib.crc32(frame).to_bytes(4, "little")) + b"\0"


# -- ticks


def test_ticks_through_frames_equal_the_twin_for_thousands_of_ticks(bench: Bench) -> None:
    rng = np.random.default_rng(3)
    network = _network()
    words = _stimuli(2000)
    fired = 0
    for k, row in enumerate(words):
        modulation = None
        if k % 7 == 3:
            modulation = network.modulation_words(network.config.modulation.baseline)
            modulation[[0, 4]] = rng.integers(40_000, 90_000), rng.integers(-(2**22), 2**22)
        frame = bench.ask(wire.pack_tick(k, k, row, modulation))  # membranes and spikes are compared here
        done = wire.unpack_tick_done(frame.body)
        assert (frame.sequence, done.tick) == (k, k)
        fired += done.spikes[0].bit_count()
    bench.compare()  # weights, traces, eligibility
    assert fired > 500
    assert (bench.twin.state["weights"] != network.state["weights"]).any()


def test_a_network_runs_as_fixed_network_does(bench: Bench) -> None:
    network = _network()
    stimuli = np.random.default_rng(5).uniform(-20, 60, (200, 16))
    expected = network.run(stimuli)
    history = [0, 0, 0]
    for k, row in enumerate(quantised_stimuli(stimuli, network.config.stimulus_limit)):
        done = wire.unpack_tick_done(bench.ask(wire.pack_tick(k, k, row)).body)
        spikes = int(expected[k] @ (1 << np.arange(16)))
        assert done.spikes == (spikes, *history)  # and of the three ticks before
        history = [spikes, *history[:2]]
    assert (done.v == network.state[0]["v"]).all()
    assert any(history)


def test_a_tick_is_answered_before_its_synapses_have_learnt(bench: Bench) -> None:
    assert bench.read(register("rule").address) == [1]
    done = wire.unpack_tick_done(bench.ask(wire.pack_tick(1, 0, _stimuli(1)[0])).body)
    assert 100 < done.clocks < 256  # 256 synapses learn, one a clock, and come last


@pytest.mark.parametrize("n_empty", [0, 1, 40, 120, 200])
def test_what_comes_while_synapses_learn_waits_for_them(bench: Bench, n_empty: int) -> None:
    """Whatever the moment: registers are read and written, and ticks run, after the tick before, not in it."""
    weights = register("weights").address
    frames = [wire.pack_tick(k, k, row) for k, row in enumerate(_stimuli(6))]
    others = [wire.pack_read(100 + k, weights + 40 * k, 40) for k in range(4)]
    others += [wire.pack_write(104, weights, [1 << 20, 2 << 20]), wire.pack_read(105, register("tick").address, 2)]
    # every byte a clock, so that frames stand in the board's queue while it works; empty frames move them on
    data = (b"\0" * n_empty).join(frame for pair in zip(frames, others, strict=True) for frame in pair)
    for start in range(0, len(data), 500):  # no more than may be under way
        piece = data[start : start + 500]
        assert [_bytes(frame) for frame in bench.frames(bench.board.flood(piece))] == bench.twin.feed(piece)
    bench.compare()


def test_a_tick_is_run_once_and_in_its_turn(bench: Bench) -> None:
    x = _stimuli(1)[0]
    for tick, reason in ((1, Refusal.FUTURE), (2**31 - 1, Refusal.FUTURE), (2**32 - 1, Refusal.PAST)):
        assert wire.unpack_refused(bench.ask(wire.pack_tick(5, tick, x)).body) == (reason, 0)
    assert bench.ask(wire.pack_tick(6, 0, x)).kind == Kind.TICK_DONE
    assert wire.unpack_refused(bench.ask(wire.pack_tick(7, 0, x)).body) == (Refusal.PAST, 1)
    assert bench.board.ticks == 1
    bench.compare()


def test_writing_the_tick_sets_its_number_and_it_wraps(bench: Bench) -> None:
    bench.ask(wire.pack_write(0, TICK, [2**32 - 1]))
    assert wire.unpack_tick_done(bench.ask(wire.pack_tick(1, 2**32 - 1, _stimuli(1)[0])).body).tick == 2**32 - 1
    assert wire.unpack_tick_done(bench.ask(wire.pack_tick(2, 0, _stimuli(1)[0])).body).tick == 0


# -- registers


def test_every_register_reads_back_as_it_was_written_at_its_width_and_sign(bench: Bench) -> None:
    rng = np.random.default_rng(2)
    for address in range(0, 0x300, 56):
        n = min(56, 0x300 - address)
        bench.ask(wire.pack_write(1, address, rng.integers(0, 2**32, n)))
    for address in range(0, 0x300, 48):
        bench.read(address, 48)  # compared with the twin
    bench.compare()


def test_a_board_tells_what_it_is_and_these_registers_cannot_be_written(bench: Bench) -> None:
    what = [0x4E4D4F44, 0x0001_1001, 100_000_000]
    assert bench.read(0x3F0, 3) == what
    bench.ask(wire.pack_write(1, 0x3F0, [1, 2, 3]))
    bench.ask(wire.pack_write(1, 0x3F4, [4, 5, 6]))
    assert bench.read(0x3F0, 16) == [*what, 0, 0, 0, 0, *[0] * 9]


def test_nothing_lies_between_the_registers(bench: Bench) -> None:
    for address in (0x085, 0x0F0, 0x300, 0x3EF, 0x3F7, 0x3FF):
        bench.ask(wire.pack_write(1, address, [2**32 - 1]))
        assert bench.read(address) == [0]
    bench.compare()


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.READ])
def test_words_beyond_the_address_space_are_refused_and_none_is_written(bench: Bench, kind: Kind) -> None:
    def frame(address: int, n: int) -> bytes:
        return (
            wire.pack_read(3, address, n)
            if kind == Kind.READ
            else wire.pack_write(3, address, np.arange(n, dtype=np.int64) + 7)
        )

    for address, n in ((0x400, 1), (0x3FF, 2), (0x3C9, 56), (0xFFFF, 1), (0xFFFF, 56), (0x8000, 3)):
        assert wire.unpack_refused(bench.ask(frame(address, n)).body) == (Refusal.ADDRESS, 0)
    for address, n in ((0x3FF, 1), (0x3C8, 56)):
        assert bench.ask(frame(address, n)).kind == kind | 0x80
    assert bench.read(0x3F5) == [6]


# -- refusals


def test_damage_is_refused_with_what_arrived_of_the_sequence(bench: Bench) -> None:
    good = bytearray(wire.pack_tick(0x1234, 0, _stimuli(1)[0]))
    n_answered = 0
    for bit in range(8 * (len(good) - 1)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        for frame in bench.send(bytes(bad)):
            assert frame.kind == Kind.REFUSED
            n_answered += 1
    assert n_answered > 8 * 30
    assert bench.board.ticks == 0
    assert bench.ask(bytes(good)).kind == Kind.TICK_DONE
    assert bench.read(0x3F4) == [bench.twin.damaged]


def test_frames_too_short_are_counted_and_not_answered(bench: Bench) -> None:
    for n in range(1, 8):
        assert bench.send(wire.encode(bytes(range(1, n + 1))) + b"\0") == []
    assert bench.send(b"\0\0\0") == []  # these are empty, and mean nothing
    assert bench.read(0x3F4) == [7]


def test_a_frame_of_253_bytes_is_heard_and_a_longer_one_is_damaged(bench: Bench) -> None:
    for size, reason in ((253, Refusal.KIND), (254, Refusal.DAMAGED), (255, Refusal.DAMAGED), (1000, Refusal.DAMAGED)):
        for filling in (b"\x07", b"\0"):
            frame = b"\x01\x7f\x22\x11" + filling * (size - 8)
            if size > 253 and filling != b"\0":
                data = b"\xff" * size + b"\0"  # one block cannot hold it
            else:
                data = _raw(frame)
            answer = bench.ask(data)
            assert wire.unpack_refused(answer.body)[0] == reason
    assert bench.ask(wire.pack_read(1, 0x3F0, 1)).kind == Kind.WORDS


def test_other_kinds_versions_and_lengths_are_refused(bench: Bench) -> None:
    tick = b"\x01\x02\x07\x00" + bytes(37)
    write = b"\x01\x03\x07\x00" + b"\x40\x00\x02" + bytes(8)
    read = b"\x01\x04\x07\x00" + b"\x40\x00\x02"
    frames = [bytes([1, kind]) + tick[2:] for kind in (0, 1, 5, 0x82, 0xFF)]
    frames += [bytes([version]) + frame[1:] for version in (0, 2, 255) for frame in (tick, write, read)]
    frames += [frame[:-1] for frame in (tick, write, read)] + [frame + b"\x01" for frame in (tick, write, read)]
    frames += [tick[:8] + b"\x01" + tick[9:], tick + bytes(20)]  # the flag says something else than the length
    frames += [b"\x01\x03\x07\x00\x40\x00\x00", b"\x01\x04\x07\x00\x40\x00\x00"]  # of no words
    frames += [b"\x01\x03\x07\x00\x40\x00\x39" + bytes(4 * 57), b"\x01\x04\x07\x00\x40\x00\x39"]  # of 57 words
    frames += [b"\x01\x02\x07\x00", b"\x01\x03\x07\x00", b"\x01\x04\x07\x00"]  # of nothing
    for frame in frames:
        answer = bench.ask(_raw(frame))
        assert (answer.kind, answer.sequence, wire.unpack_refused(answer.body)) == (Kind.REFUSED, 7, (Refusal.KIND, 0))
    assert bench.read(0x3F5) == [len(frames)]
    assert bench.ask(_raw(tick[:8] + b"\xfe" + tick[9:])).kind == Kind.TICK_DONE  # other flags mean nothing
    bench.compare()


# -- what comes over a line


def test_frames_back_to_back_are_all_answered_in_order(bench: Bench) -> None:
    words = _stimuli(20)
    data = b"".join(wire.pack_tick(k, k, row) for k, row in enumerate(words))
    assert [frame.sequence for frame in bench.send(data)] == list(range(20))


def test_512_bytes_may_be_under_way_whatever_the_board_does(bench: Bench) -> None:
    words = _stimuli(40)
    frames, k = b"", 0
    while len(frames) + 49 <= wire.MAX_UNDER_WAY:
        frames += wire.pack_tick(k, k, words[k])
        k += 1
    out = bench.board.flood(frames)
    assert [_bytes(frame) for frame in bench.frames(out)] == bench.twin.feed(frames)
    assert k == 10
    assert bench.read(0x3F6) == [0]


def test_bytes_beyond_that_are_lost_and_counted_and_the_board_goes_on(bench: Bench) -> None:
    frames = b"".join(wire.pack_tick(k, k, row) for k, row in enumerate(_stimuli(40)))
    answers = bench.frames(bench.board.flood(frames))
    lost = wire.unpack_words(bench.frames(bench.board.flood(b"\0" + wire.pack_read(1, 0x3F6, 1)))[-1].body)[1][0]
    assert 0 < lost < len(frames) - wire.MAX_UNDER_WAY + 100
    done = [frame for frame in answers if frame.kind == Kind.TICK_DONE]
    assert [frame.sequence for frame in done] == list(range(len(done)))
    assert 8 < len(done) < 40


def test_bytes_lost_on_the_line_are_counted(bench: Bench) -> None:
    bench.board.lose(3)
    bench.twin.overrun = 3
    assert bench.read(0x3F6) == [3]


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_wedge_it_and_it_answers_as_its_twin(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(120):
        tick = int(bench.twin.state[0]["tick"])
        good = [
            wire.pack_tick(rng.randrange(2**16), tick + rng.choice([0, 0, 0, 1, -1]), _stimuli(1, tick)[0]),
            wire.pack_read(rng.randrange(2**16), rng.randrange(0x440), rng.randrange(1, 57)),
            wire.pack_write(
                rng.randrange(2**16), rng.randrange(0x100, 0x300), [rng.randrange(2**32)] * rng.randrange(1, 57)
            ),
        ]
        data = bytearray(b"".join(rng.choices(good, k=rng.randrange(1, 4))))
        what = rng.randrange(6)
        if what == 0:  # bits
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif what == 1:  # bytes lost
            for _ in range(rng.randrange(1, 4)):
                del data[rng.randrange(len(data))]
        elif what == 2:  # noise
            at = rng.randrange(len(data) + 1)
            data[at:at] = rng.randbytes(rng.randrange(1, 400))
        elif what == 3:  # noise with few values, whose COBS code is often right
            data[0:0] = bytes(rng.choices([0, 1, 2, 3, 255], k=rng.randrange(1, 300)))
        elif what == 4:  # a cut
            del data[rng.randrange(len(data)) :]
        bench.send(bytes(data))
    bench.send(b"\0")
    assert bench.ask(wire.pack_read(77, 0x3F4, 2)).sequence == 77
    assert bench.twin.damaged > 20
    assert bench.board.ticks > 5
    bench.compare()


# -- image and reset


def test_a_board_comes_up_with_its_image() -> None:
    network = _network()
    network.state[0]["tick"] = 41
    bench = Bench(network.state)
    bench.compare()
    assert bench.ask(wire.pack_tick(0, 41, _stimuli(1)[0])).kind == Kind.TICK_DONE


def test_without_an_image_every_register_is_zero() -> None:
    assert (BoardModel().words() == 0).all()


def test_a_reset_brings_the_image_back_and_shows_in_boots(bench: Bench) -> None:
    bench.ask(wire.pack_write(0, 0x3F3, [0xC0FFEE]))
    for k, row in enumerate(_stimuli(5)):
        bench.ask(wire.pack_tick(k, k, row))
    assert bench.read(0x3F3) == [0xC0FFEE]
    bench.send(b"\x05")  # and a frame has begun
    bench.board.reset()
    bench.twin = NaiveBoard(_network().state)
    bench.compare()
    assert bench.read(0x3F3) == [0]
    assert wire.unpack_tick_done(bench.ask(wire.pack_tick(0, 0, _stimuli(1)[0])).body).spikes[1:] == (0, 0, 0)
