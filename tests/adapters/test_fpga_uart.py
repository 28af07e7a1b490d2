"""The serial line in Verilog at true baud timing, by itself and in the whole top of the Nexys A7."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from naive.board import NaiveBoard, NaiveSiliconBridge
from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board_model import MODULES
from neuromod.adapters.fpga.verilated import HDL, verilate
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.images import write_registers

BENCHES = Path(__file__).with_name("hdl")
CLOCK_HZ = 100_000_000
BAUDS = (115_200, 3_000_000, 12_000_000)
WRONG = 256  # a byte with a wrong stop bit


class Uart:
    """One of the UARTs of `uart_bench.v`."""

    def __init__(self, library: ctypes.CDLL, which: int) -> None:
        self._library, self._which = library, which
        self.bit_clocks = CLOCK_HZ / BAUDS[which]
        library.bench_new.restype = ctypes.c_void_p
        self._bench = ctypes.c_void_p(library.bench_new())

    def close(self) -> None:
        self._library.bench_delete(self._bench)

    def receive(self, levels: NDArray[np.uint8]) -> list[int]:
        """What comes of levels on the line, clock by clock, and of rest for two bytes after them."""
        line = np.concatenate([levels, np.ones(int(20 * self.bit_clocks), np.uint8)])
        out = (ctypes.c_int * len(line))()
        n = self._library.bench_receive(self._bench, self._which, _pointer(line), len(line), out)
        return list(out[:n])

    def send(self, data: bytes, n_clocks: int) -> NDArray[np.uint8]:
        levels = np.empty(n_clocks, np.uint8)
        self._library.bench_send(self._bench, self._which, data, len(data), _pointer(levels), n_clocks)
        return levels


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(params=range(3), ids=[f"{baud} baud" for baud in BAUDS])
def uart(request: pytest.FixtureRequest) -> Iterator[Uart]:
    library = verilate("uart_bench", [BENCHES / "uart_bench.v", HDL / "neuromod_uart.v"], BENCHES / "uart_bench.cpp")
    found = Uart(library, request.param)
    yield found
    found.close()


def _bits(data: bytes) -> list[int]:
    return [bit for byte in data for bit in (0, *(byte >> k & 1 for k in range(8)), 1)]


def _line(bits: list[int], bit_clocks: float, start: float = 0.0) -> NDArray[np.uint8]:
    """Levels of bits that last so long, whole clocks or not, after some rest."""
    clocks = np.arange(int(start + len(bits) * bit_clocks))
    index = np.floor((clocks - start) / bit_clocks).astype(int)
    return np.where(index < 0, 1, np.array([*bits, 1])[np.minimum(index, len(bits))]).astype(np.uint8)


DATA = bytes([0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x7F, *np.random.default_rng(0).bytes(60)])


@pytest.mark.parametrize("wrong", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_bytes_come_over_where_the_other_side_is_as_far_off_as_the_head_of_the_file_says(
    uart: Uart, wrong: float
) -> None:
    bit_clocks = uart.bit_clocks * (1 + wrong * (0.04 if uart.bit_clocks > 30 else 0.01))
    data = DATA[:12] if uart.bit_clocks > 500 else DATA
    for start in (40.0, 41.3, 42.7):
        assert uart.receive(_line(_bits(data), bit_clocks, start)) == list(data)


def test_bits_are_sent_within_a_clock_of_where_they_belong_however_many_came_before(uart: Uart) -> None:
    data = DATA[:12] if uart.bit_clocks > 500 else DATA
    levels = uart.send(data, int((10 * len(data) + 4) * uart.bit_clocks) + len(data))
    start = int(np.argmin(levels))
    worst = 0.0
    for k, byte in enumerate(data):
        bits = [0, *(byte >> bit & 1 for bit in range(8)), 1]
        for bit in range(10):  # every edge inside the byte
            if bit and bits[bit] != bits[bit - 1]:
                near = start + bit * uart.bit_clocks
                window = levels[int(near) - 3 : int(near) + 4]
                edge = int(near) - 3 + int(np.flatnonzero(window == bits[bit])[0])
                worst = max(worst, abs(edge - near))
            middle = int(start + (bit + 0.5) * uart.bit_clocks)
            assert levels[middle] == bits[bit]
        rest = start + int(9.5 * uart.bit_clocks)
        if k + 1 < len(data):
            following = rest + int(np.argmin(levels[rest:]))
            assert 0 <= following - start - 10 * uart.bit_clocks <= 2  # the stop bit is whole
            start = following
    assert 0 < worst <= 1 or (worst == 0 and uart.bit_clocks.is_integer())
    assert levels[start + int(10 * uart.bit_clocks) :].all()


def test_a_low_shorter_than_half_a_bit_is_no_start(uart: Uart) -> None:
    for width in (1, int(0.4 * uart.bit_clocks)):
        line = np.concatenate([np.ones(50, np.uint8), np.zeros(width, np.uint8)])
        assert uart.receive(line) == []
    assert uart.receive(_line(_bits(b"\xa5"), uart.bit_clocks, 40)) == [0xA5]


def test_spikes_of_one_clock_change_nothing(uart: Uart) -> None:
    line = _line(_bits(b"\xa5\x5a"), uart.bit_clocks, 40)
    middles = (40 + (np.arange(20) + 0.5) * uart.bit_clocks).astype(int)
    for shift in (-1, 0, 1):
        noisy = line.copy()
        noisy[middles + shift] ^= 1
        assert uart.receive(noisy) == [0xA5, 0x5A]


def test_a_wrong_stop_bit_is_told_and_the_next_byte_is_heard(uart: Uart) -> None:
    bits = _bits(b"\xa5")
    bits[9] = 0
    rest = [1, 1]
    assert uart.receive(_line([*bits, *rest, *_bits(b"\x3c")], uart.bit_clocks, 40)) == [WRONG, 0x3C]


def test_a_line_held_low_is_one_error_and_then_nothing(uart: Uart) -> None:
    assert uart.receive(_line([0] * 40, uart.bit_clocks, 40)) == [WRONG]
    assert uart.receive(_line(_bits(b"\x3c"), uart.bit_clocks, 40)) == [0x3C]


# -- the whole top


class Top:
    """The pins of the Nexys A7, with a host on its serial line."""

    def __init__(self, folder: Path, protocol: int, baud: int, *, host_baud: float | None = None) -> None:
        network = FixedNetwork()
        self.state = network.state
        image = folder / "registers.mem"
        image.write_text(write_registers(network.state))
        header = folder / "neuromod_config.vh"
        header.write_text(
            f'`define NEUROMOD_IMAGE "registers.mem"\n`define NEUROMOD_CLOCK_HZ {CLOCK_HZ}\n'
            f"`define NEUROMOD_BAUD {baud}\n`define NEUROMOD_PROTOCOL {protocol}\n"
        )
        sources = [HDL / f"neuromod_{name}.v" for name in (*MODULES, "uart")] + [HDL / "nexys_a7_top.v"]
        self._library = verilate("nexys_a7_top", sources, BENCHES / "top_bench.cpp", headers=[header])
        self._library.top_new.restype = ctypes.c_void_p
        self._library.top_new.argtypes = [ctypes.c_double]
        self._bit_clocks = CLOCK_HZ / (host_baud or baud)
        self._top = ctypes.c_void_p(self._library.top_new(self._bit_clocks))

    def talk(self, data: bytes, n_expected: int) -> bytes:
        """Send, and listen for so many bytes; the answer begins within two milliseconds or never."""
        out = ctypes.create_string_buffer(n_expected)
        n = self._library.top_talk(self._top, data, len(data), out, n_expected, 200_000)
        assert self._library.top_wrong(self._top) == 0
        return ctypes.string_at(out, n)

    def press(self) -> None:
        for pressed in (1, 0):
            self._library.top_button(self._top, pressed)
            self.talk(b"", 1)

    @property
    def lit(self) -> int:
        """LEDs that were lit at any time."""
        return int(self._library.top_lit(self._top))

    def close(self) -> None:
        self._library.top_delete(self._top)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the image is read from, as it is by Vivado and by simulators: by its name alone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_top_runs_ticks_at_3_megabaud_as_its_twin_does(in_folder: Path) -> None:
    top = Top(in_folder, 0, 3_000_000, host_baud=3_000_000 * 1.01)
    twin, parser = NaiveBoard(top.state), wire.Parser()
    rng = np.random.default_rng(0)
    requests = [wire.pack_read(0, 0x3F0, 7)]
    requests += [wire.pack_tick(k, k, rng.integers(0, 60 * 256, 16).astype(np.int16)) for k in range(8)]
    requests += [wire.pack_read(1, 0x090, 16)]
    fired = 0
    for request in (b"\0", *requests):
        expected = twin.feed(request)
        size = sum(len(wire.pack(answer[1], 0, answer[4:])) for answer in expected)
        frames = parser.feed(top.talk(request, size))
        assert [frame.kind for frame in frames] == [answer[1] for answer in expected]
        for frame, answer in zip(frames, expected, strict=True):
            skipped = 6 if frame.kind == wire.Kind.TICK_DONE else 0  # its clocks, which the twin does not know
            assert frame.body[skipped:] == answer[4 + skipped :]
            if skipped:
                fired |= wire.unpack_tick_done(frame.body).spikes[0]
    assert fired
    assert top.lit == fired
    # the button brings the image back, and 0 ticks
    top.press()
    (frame,) = parser.feed(top.talk(wire.pack_read(2, 0x081, 1), 17))
    assert wire.unpack_words(frame.body)[1].tolist() == [0]
    top.close()


def test_the_top_answers_two_frames_under_way_at_once(in_folder: Path) -> None:
    top = Top(in_folder, 0, 3_000_000)
    x = np.zeros(16, np.int16)
    data = b"".join(wire.pack_tick(k, k, x) for k in range(4))
    frames = wire.Parser().feed(top.talk(data, 4 * 72))
    assert [wire.unpack_tick_done(frame.body).tick for frame in frames] == [0, 1, 2, 3]
    top.close()


def test_the_top_speaks_siliconbridge_at_115200_baud(in_folder: Path) -> None:
    top = Top(in_folder, 1, 115_200)
    twin = NaiveSiliconBridge(top.state, switches=0x8001)
    rng = np.random.default_rng(0)
    for data in (
        *(b"\xaa" + rng.integers(0, 60 * 256, 16).astype(">i2").tobytes() for _ in range(3)),
        b"\xde\x01\x01\x12\x34\xee\x01",
        b"\xee\x10",
    ):
        expected = twin.feed(data)
        assert top.talk(data, len(expected)) == expected
    top.close()
