"""The simulated board behind its pseudo-terminal, opened as a serial port is, and every fault that it can be given."""

import contextlib
import errno
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board_model import BoardModel
from neuromod.adapters.fpga.faults import Fault, Injection, LineFaults, parse_fault
from neuromod.adapters.fpga.simulated import BoardServer, SimulatedBoard
from neuromod.adapters.fpga.wire import Frame, Kind, Refusal
from neuromod.engine.errors import AdapterError, ConfigError
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.images import to_words, write_registers

serial: Any = importlib.import_module("serial")  # it ships no type information

WAIT_S = 20.0  # for what takes less than a millisecond
SILENCE_S = 0.05  # long enough for an answer that would come


class Host:
    """A host at a board's port, in a few lines."""

    def __init__(self, path: str) -> None:
        self.port = serial.Serial(path, 3_000_000, timeout=0)
        self.parser = wire.Parser()
        self.words = _stimuli()
        self._ready: list[Frame] = []

    def send(self, *ticks: int) -> None:
        """Ask for ticks, all at once; the sequence is the tick's number."""
        self.port.write(b"".join(wire.pack_tick(tick, tick, self.words[tick]) for tick in ticks))

    def frame(self, timeout_s: float = WAIT_S) -> Frame | None:
        """The next answer; None if none comes."""
        deadline = time.monotonic() + timeout_s
        while not self._ready and (left := deadline - time.monotonic()) > 0:
            select.select([self.port], [], [], left)
            self._ready += self.parser.feed(self.port.read(4096))
        return self._ready.pop(0) if self._ready else None

    def answers(self, n: int) -> list[Frame]:
        frames = [self.frame() for _ in range(n)]
        assert None not in frames
        return [frame for frame in frames if frame is not None]

    def ask(self, data: bytes) -> Frame:
        self.port.write(data)
        return self.answers(1)[0]

    def run(self, *ticks: int) -> list[Any]:
        """Ticks one after the other; their answers."""
        done = []
        for tick in ticks:
            self.send(tick)
            (frame,) = self.answers(1)
            assert frame.kind == Kind.TICK_DONE, frame
            done.append(wire.unpack_tick_done(frame.body))
        return done

    def word(self, address: int) -> int:
        return int(wire.unpack_words(self.ask(wire.pack_read(9, address, 1)).body)[1][0])

    def close(self) -> None:
        self.port.close()


def _stimuli() -> NDArray[np.int16]:
    return quantised_stimuli(np.random.default_rng(0).uniform(0, 60, (300, 16)), 1000.0)


def _image() -> NDArray[np.int64]:
    return to_words(FixedNetwork().state)


def _board(*faults: str, seed: int = 0, link: Path | None = None) -> SimulatedBoard:
    return SimulatedBoard(words=_image(), faults=[parse_fault(text) for text in faults], seed=seed, link=link)


# -- the port


def test_a_host_runs_ticks_through_the_port_and_gets_what_the_network_gives() -> None:
    network = FixedNetwork()
    with _board() as board:
        host = Host(board.path)
        host.port.write(b"\0")
        fired = 0
        for row, done in zip(_stimuli(), host.run(*range(300)), strict=True):
            expected = network.run(row[np.newaxis] / 256.0)[0]
            assert done.spikes[0] == int(expected @ (1 << np.arange(16)))
            assert (done.v == network.state[0]["v"]).all()
            fired += int(expected.sum())
        host.close()
    counts = board.counts
    assert fired > 100
    assert (counts["ticks"], counts["answers"], counts["overrun"]) == (300, 300, 0)
    assert counts["bytes_out"] == 300 * 72
    assert board.injections == []


def test_the_board_stays_while_hosts_come_and_go() -> None:
    with _board() as board:
        for k in range(3):
            host = Host(board.path)
            host.run(k)
            host.close()
        # one that leaves in the middle of a frame, with an answer unread
        host = Host(board.path)
        host.send(3)
        host.port.write(b"\x09\x09")
        host.close()
        host = Host(board.path)
        host.port.write(b"\0")
        host.send(3)
        while (frame := host.answers(1)[0]).kind != Kind.REFUSED:
            pass  # the answer that was left unread may still come
        assert wire.unpack_refused(frame.body) == (Refusal.PAST, 4)
        host.close()


def test_siliconbridge_is_spoken_too() -> None:
    network = FixedNetwork()
    with SimulatedBoard(protocol="siliconbridge", words=_image()) as board:
        port = serial.Serial(board.path, 115_200, timeout=WAIT_S)
        for row in _stimuli()[:20]:
            port.write(b"\xaa" + row.astype(">i2").tobytes())
            answer = port.read(36)
            spikes = network.run(row[np.newaxis] / 256.0)[0]
            assert answer[:32] == (network.state[0]["v"] >> 8).astype(">i2").tobytes()
            assert int.from_bytes(answer[32:34], "big") == int(spikes @ (1 << np.arange(16)))
        port.close()


def test_bytes_beyond_512_under_way_are_lost_and_counted_by_the_board() -> None:
    with _board() as board:
        host = Host(board.path)
        host.port.write(b"\x01" * 3000 + b"\0")
        host.port.flush()
        while board.counts["bytes_in"] < 3001:
            pass
        host.port.write(b"\0")
        # each time that it reads, at most 512 go on
        overrun = 0
        host.port.write(wire.pack_read(9, wire.OVERRUN_ADDRESS, 1))
        while (frame := host.frame()) is not None and frame.kind != Kind.WORDS:
            pass
        assert frame is not None
        overrun = int(wire.unpack_words(frame.body)[1][0])
        assert overrun == board.counts["overrun"]
        host.close()
    assert overrun > 0


def test_a_link_leads_to_the_port_and_goes_with_the_board(tmp_path: Path) -> None:
    link = tmp_path / "board"
    link.symlink_to("nowhere any more")
    with _board(link=link) as board:
        assert str(link.readlink()) == board.path
        host = Host(str(link))
        host.run(0)
        host.close()
    assert not link.is_symlink()


def test_a_link_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be made"), _board(link=tmp_path / "file"):
        pass


# -- faults


def test_flips_hit_the_named_byte_in_the_named_direction() -> None:
    with _board("flip:bytes=100,direction=to_board", "flip:bytes=200,direction=to_host") as board:
        host = Host(board.path)
        host.run(0, 1)  # of 47 bytes each, so byte 100 is of the third
        refused = host.ask(wire.pack_tick(2, 2, host.words[2]))
        assert wire.unpack_refused(refused.body) == (Refusal.DAMAGED, 2)
        host.send(2)  # two answers of 72 bytes and a refusal of 15 have come: the next one is hit
        assert host.frame(SILENCE_S) is None
        assert host.parser.damaged > 0
        assert host.run(3)[0].tick == 3
        host.close()
    told = [(each.kind, each.direction, each.byte) for each in board.injections]
    assert told == [("flip", "to_board", 100), ("flip", "to_host", 200)]
    assert board.counts["flip"] == 2


def test_lost_bytes_are_missed_on_either_way() -> None:
    with _board("lose:bytes=10,direction=to_board", "lose:bytes=40,direction=to_host") as board:
        host = Host(board.path)
        assert host.ask(wire.pack_tick(0, 0, host.words[0])).kind == Kind.REFUSED  # 19 bytes
        host.send(0)
        assert host.frame(SILENCE_S) is None
        assert host.parser.damaged == 1
        assert host.run(1)[0].spikes[1] >= 0  # tick 0 was run
        host.close()
    assert board.counts["lose"] == 2


@pytest.mark.parametrize("kind", ["flip", "lose"])
def test_a_rate_hits_as_many_bytes_as_it_says_and_the_same_ones_for_the_same_seed(kind: str) -> None:
    faults = [parse_fault(f"{kind}:rate=0.01,bytes=5")]
    data = bytes(100_000)

    def carried(seed: int, pieces: int) -> tuple[bytes, list[Injection]]:
        told: list[Injection] = []
        line = LineFaults(faults, "to_host", seed)
        step = len(data) // pieces
        out = b"".join(line.carry(data[k : k + step], 0, told.append) for k in range(0, len(data), step))
        return out, told

    out, told = carried(1, 1)
    # a binomial of mean 1000 and deviation 31
    assert 850 < len(told) < 1150
    assert len(set(told)) == len(told)
    assert 5 in [each.byte for each in told]
    assert carried(1, 1000) == (out, told)
    assert carried(2, 1)[0] != out
    if kind == "flip":
        assert sum(byte.bit_count() for byte in out) == len(told)
        assert all(out[each.byte] for each in told)
    else:
        assert len(out) == len(data) - len(told)


def test_delayed_answers_come_late_and_those_after_them_wait() -> None:
    with _board("delay:ms=80,ticks=1") as board:
        host = Host(board.path)
        began = time.monotonic()
        host.send(0, 1, 2)
        assert [frame.sequence for frame in host.answers(3)] == [0, 1, 2]
        assert time.monotonic() - began >= 0.08
        host.run(3)
        host.close()
    assert [(each.kind, each.tick) for each in board.injections] == [("delay", 1)]


def test_reordered_answers_are_swapped() -> None:
    with _board("reorder:ticks=1+4,within_ms=5000") as board:
        host = Host(board.path)
        host.send(0, 1, 2, 3, 4)
        host.send(5)
        assert [frame.sequence for frame in host.answers(6)] == [0, 2, 1, 3, 5, 4]
        host.close()
    assert board.counts["reorder"] == 2


def test_a_reordered_answer_that_nothing_follows_comes_by_itself() -> None:
    with _board("reorder:ticks=0,within_ms=20") as board:
        host = Host(board.path)
        host.run(0, 1)
        host.close()


def test_a_stopped_board_says_nothing_and_runs_nothing() -> None:
    with _board("stop:tick=2") as board:
        host = Host(board.path)
        host.run(0, 1)
        host.send(2, 3)
        assert host.frame(SILENCE_S) is None
        host.send(2)
        assert host.frame(SILENCE_S) is None
        host.close()
    assert (board.counts["ticks"], board.counts["stop"]) == (2, 1)


def test_a_board_that_stopped_for_a_time_goes_on_where_it_was() -> None:
    with _board("stop:tick=2,for_ms=60") as board:
        host = Host(board.path)
        host.run(0, 1)
        began = time.monotonic()
        frame = None
        while frame is None:
            host.send(2)
            frame = host.frame(0.02)
        assert time.monotonic() - began >= 0.05
        assert wire.unpack_tick_done(frame.body).tick == 2
        host.close()
    assert board.counts["stop"] == 1


def test_a_reset_board_comes_up_with_its_image_and_forgets_boots() -> None:
    with _board("reset:tick=3") as board:
        host = Host(board.path)
        host.ask(wire.pack_write(1, wire.BOOTS_ADDRESS, [7]))
        first = host.run(0, 1, 2)
        host.send(3)
        (frame,) = host.answers(1)
        assert wire.unpack_refused(frame.body) == (Refusal.FUTURE, 0)
        assert host.word(wire.BOOTS_ADDRESS) == 0
        again = host.run(0, 1, 2, 3)  # once is enough
        assert [done.spikes for done in again[:3]] == [done.spikes for done in first]
        host.close()
    assert board.counts["reset"] == 1


def test_a_flipped_bit_of_memory_is_in_its_register_and_nowhere_else() -> None:
    with _board("memory:tick=2,register=weights,index=17,bit=20", "memory:tick=2,register=v,index=3,bit=23") as board:
        host = Host(board.path)
        network = FixedNetwork()
        host.run(0, 1)
        network.run(host.words[:2] / 256.0)
        before = network.state.copy()
        network.state[0]["weights"].reshape(-1)[17] ^= 1 << 20
        v = int(network.state[0]["v"][3])
        network.state[0]["v"][3] = v - (1 << 23) if v >= 0 else v + (1 << 23)
        (done,) = host.run(2)
        network.run(host.words[2:3] / 256.0)
        assert (done.v == network.state[0]["v"]).all()
        assert host.word(0x100 + 17) == int(network.state[0]["weights"].reshape(-1)[17]) & 0xFFFF_FFFF
        assert before[0]["weights"].reshape(-1)[17] != network.state[0]["weights"].reshape(-1)[17]
        host.close()
    assert board.counts["memory"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flop:tick=1", "expected flip, lose, delay, reorder, stop, reset, memory"),
        ("flip", "give rate="),
        ("flip:rate=1", "less than 1"),
        ("flip:rate=0.1,direction=up", "direction"),
        ("flip:rate", "KEY=VALUE"),
        ("lose:bytes=1+x", "bytes"),
        ("delay:ms=5", "give ticks="),
        ("delay:ticks=5", "ms: Field required"),
        ("reorder", "ticks"),
        ("stop:tick=-1", "tick"),
        ("reset:tick=1,for_ms=3", "for_ms"),
        ("memory:tick=1,bit=32", "weights has 32 bits"),
        ("memory:tick=1,bit=0,index=256", "weights has 256 numbers"),
        ("memory:tick=1,bit=0,register=wheights", "no register 'wheights'"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        parse_fault(text)


# -- the command


def _command(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "neuromod.bridge.cli", "fpga-sim", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_the_port_and_its_counts_when_it_is_stopped(tmp_path: Path, name: signal.Signals) -> None:
    network = FixedNetwork()
    network.state[0]["tick"] = 100
    (tmp_path / "registers.mem").write_text(write_registers(network.state))
    process = _command("--images", str(tmp_path), "--fault", "flip:bytes=3,direction=to_board", "--seed", "4", "--json")
    assert process.stdout is not None
    host = Host(process.stdout.readline().strip())
    assert host.ask(wire.pack_tick(0, 100, host.words[0])).kind == Kind.REFUSED
    assert host.ask(wire.pack_tick(1, 100, host.words[0])).kind == Kind.TICK_DONE
    host.close()
    process.send_signal(name)
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    told = json.loads(out)
    assert (told["counts"]["ticks"], told["counts"]["flip"], told["counts"]["answers"]) == (1, 1, 2)
    assert told["injections"] == [{"kind": "flip", "tick": 100, "direction": "to_board", "byte": 3}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--images", "nowhere"], "cannot be read"), (["--fault", "stop"], "tick: Field required")],
)
def test_the_command_refuses_what_it_cannot_do(arguments: Sequence[str], said: str) -> None:
    process = _command(*arguments)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said in error


def test_a_server_in_this_process_stops_when_it_is_woken() -> None:
    wake, stop = os.pipe()
    faults: list[Fault] = []
    with BoardServer(words=_image(), faults=faults) as server:
        os.write(stop, b"\0")
        server.serve(wake)
        assert server.counts["ticks"] == 0
    server.close()
    os.close(wake)
    os.close(stop)


# -- what is served without the interpreter


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal's master, and its slave."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    yield master, slave
    os.close(master)
    with contextlib.suppress(OSError):  # a test may have closed it
        os.close(slave)


def test_what_no_fault_is_for_is_answered_at_once_and_the_rest_handed_back(terminal: tuple[int, int]) -> None:
    (master, slave), (wake, stop) = terminal, os.pipe()
    model, rows = BoardModel(words=_image()), _stimuli()
    frames = [wire.pack_tick(tick, tick, rows[tick]) for tick in range(5)]
    os.write(slave, b"".join(frames[:3]))
    served = model.serve(master, wake, ticks=(0, 2))
    # the board has taken in a byte or two of the third by then
    assert frames[2].endswith(served.data)
    assert (served.n_in, len(served.data) > 40) == (len(b"".join(frames[:3])) - len(served.data), True)
    assert (served.n_answers, served.n_out, served.n_sent, model.ticks) == (2, 144, 144, 2)
    assert model.run(served.data)[1] != b""
    # a byte among those that come, or one of an answer, is to be hit
    for bytes_in, bytes_out in ((len(frames[3]) - 1, 1 << 20), (1 << 20, 71)):
        os.write(slave, frames[3])
        served = model.serve(master, wake, bytes_in=bytes_in, bytes_out=bytes_out)
        assert (served.n_in, served.n_answers, served.data, model.ticks) == (0, 0, frames[3], 3)
    # it comes back though nothing happens, and when it is woken
    os.write(slave, frames[3] + frames[4][:20])
    served = model.serve(master, wake)
    assert (served.is_woken, served.n_answers, served.n_in, served.data) == (False, 1, len(frames[3]) + 20, b"")
    os.write(stop, b"\0")
    assert model.serve(master, wake).is_woken
    os.close(wake)
    os.close(stop)


def test_a_line_that_hung_up_is_told_and_not_read_for_ever(terminal: tuple[int, int]) -> None:
    (master, slave), (wake, stop) = terminal, os.pipe()
    os.close(slave)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        BoardModel(words=_image()).serve(master, wake)
    os.close(wake)
    os.close(stop)
