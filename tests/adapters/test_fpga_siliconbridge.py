"""The board's Verilog, byte by byte, with SiliconBridge v3.0, against its twin."""

import random
import struct

import numpy as np
import pytest

from naive.board import NaiveSiliconBridge
from neuromod.adapters.fpga.board_model import BoardModel
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import REGISTERS
from neuromod.engine.images import from_words, to_words

SWITCHES = 0xA50F


class Bench:
    """A board, and its twin; what one answers, the other has to."""

    def __init__(self) -> None:
        state = FixedNetwork().state
        self.board = BoardModel("siliconbridge", to_words(state))
        self.board.set_switches(SWITCHES)
        self.twin = NaiveSiliconBridge(state, SWITCHES)

    def send(self, data: bytes) -> bytes:
        """Hand over bytes; return what it answers, once that was compared."""
        rest, out = data, b""
        while rest:
            n_taken, answer = self.board.run(rest)
            rest, out = rest[n_taken:], out + answer
        assert out == self.twin.feed(data)
        return out

    def compare(self) -> None:
        """Every register of both, past the protocol."""
        state = from_words(self.board.words())
        for each in REGISTERS:
            assert (state[each.name] == self.twin.state[each.name]).all(), each.name


@pytest.fixture
def bench() -> Bench:
    return Bench()


def _tick(rng: np.random.Generator) -> bytes:
    return b"\xaa" + rng.integers(-20 * 256, 60 * 256, 16).astype(">i2").tobytes()


def test_ticks_equal_the_twin_for_a_thousand_ticks(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    fired = 0
    for k in range(1000):
        if k % 50 == 10:
            bench.send(b"\xdd" + int(rng.integers(-300, 300)).to_bytes(2, "big", signed=True))
        answer = bench.send(_tick(rng))
        assert len(answer) == 36
        assert answer[34:] == SWITCHES.to_bytes(2, "big")
        fired += int.from_bytes(answer[32:34], "big").bit_count()
    bench.compare()  # weights that learned too, and what its answers round off
    assert fired > 500


def test_a_reward_sets_the_learning_factor(bench: Bench) -> None:
    assert bench.send(b"\xdd\xff\x80") == b""  # -0.5
    assert from_words(bench.board.words())[0]["learning_factor"] == -(1 << 23)


def test_parameters_are_written_and_read_back_and_others_ignored(bench: Bench) -> None:
    rng = random.Random(0)
    assert bench.send(b"\xde\x00\x20" + rng.randbytes(64)) == b""
    for start, count in ((3, 1), (14, 4), (30, 4), (31, 255), (32, 2), (255, 3), (240, 40), (5, 0)):
        bench.send(struct.pack("BBB", 0xDE, start, count) + rng.randbytes(2 * count))
        bench.compare()
    for address in (*range(34), 63, 128, 255):
        answer = bench.send(bytes([0xEE, address]))
        assert (answer[0], len(answer)) == (0xA6, 3)


def test_bytes_that_begin_nothing_are_ignored(bench: Bench) -> None:
    others = bytes(set(range(256)) - {0xAA, 0xDD, 0xDE, 0xEE})
    assert bench.send(others + b"\xee\x00")[0] == 0xA6


def test_after_a_lost_byte_it_takes_stimuli_for_something_else_and_goes_on(bench: Bench) -> None:
    rng = np.random.default_rng(1)
    for k in range(30):
        data = bytearray(_tick(rng))
        if k % 3 == 0:
            del data[int(rng.integers(len(data)))]
        bench.send(bytes(data))
    bench.compare()


@pytest.mark.parametrize("seed", range(3))
def test_no_bytes_wedge_it(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        bench.send(bytes(rng.choices([0xAA, 0xDD, 0xDE, 0xEE, *range(32)], k=rng.randrange(1, 80))))
    bench.send(bytes(600))  # whatever has begun is over: 255 words at most
    assert len(bench.send(_tick(np.random.default_rng(seed)))) == 36
    bench.compare()


def test_commands_back_to_back_while_it_computes(bench: Bench) -> None:
    rng = np.random.default_rng(2)
    data = b"".join(_tick(rng) + b"\xee\x01\xdd\x00\x10" for _ in range(13))
    assert 480 < len(data) <= 512
    assert bench.board.flood(data) == bench.twin.feed(data)


def test_a_reset_brings_the_image_back(bench: Bench) -> None:
    bench.send(_tick(np.random.default_rng(0)) + b"\xde\x00\x01\x12\x34\xaa\x01")
    bench.board.reset()
    bench.twin = NaiveSiliconBridge(FixedNetwork().state, SWITCHES)
    bench.compare()
    assert len(bench.send(_tick(np.random.default_rng(0)))) == 36
