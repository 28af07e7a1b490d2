"""Boards as devices: the twin's bits come back through every fault, each is named, and a clean line raises no alarm.

Most of it runs against a peer in Python, whose trouble is exact to the frame; what matters most runs against the
board's own Verilog too.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpga_peer import CLOCKS, BridgeBoard, Change, Peer, TwinBoard
from harness import wait_until

from conformance.boards import answers, cut, differing, doubled, flipped, gone, of_ticks, ticks
from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.config import FpgaConfig, create_device
from neuromod.adapters.fpga.device import Answer, Device
from neuromod.adapters.fpga.faults import Fault, Flip, Lose, Memory, Reset
from neuromod.adapters.fpga.siliconbridge import SiliconBridge
from neuromod.adapters.fpga.simulated import SimulatedBoard
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import REGISTERS
from neuromod.engine.images import to_words
from neuromod.engine.layout_types import State

LEARNING = NetworkConfig.model_validate({"learning": {"rule": "reward", "rate_per_s": 1.0}})


@contextmanager
def board_and_peer(folder: Path, depth: int = 4, **options: Any) -> Iterator[tuple[Board, Peer, State]]:
    """Give an open board with a network that learns, behind it the peer, and the network's state."""
    state = FixedNetwork(LEARNING).state
    with Peer(folder, TwinBoard(FixedNetwork().state)) as peer:
        board = Board(peer.path, depth=depth, **({"timeout_ms": 2000.0, "lost_ms": 10_000.0} | options))
        board.open()
        board.load(state)
        try:
            yield board, peer, state
        finally:
            board.close()


# -- what holds for every device, on the peer and on the Verilog


@contextmanager
def made_device(
    kind: str, folder: Path, state: State, faults: tuple[Fault, ...] = (), timeout_ms: float = 2000.0
) -> Iterator[Device]:
    """Give an open device of our protocol (`board`) or SiliconBridge (`bridge`) before the peer or the Verilog.

    It is patient where nothing goes wrong: other processes of this machine may keep an answer waiting.
    """
    protocol, _, behind = kind.partition(" ")
    name: Any = "neuromod" if protocol == "board" else "siliconbridge"
    config = {"protocol": name, "baud": 3_000_000, "depth": 4 if protocol == "board" else 1}
    config |= {"timeout_ms": timeout_ms, "lost_ms": 10_000.0}
    with (
        SimulatedBoard(protocol=name, words=to_words(state), faults=faults)
        if behind == "verilog"
        else Peer(folder, TwinBoard(state) if protocol == "board" else BridgeBoard(state))
    ) as there:
        device = create_device(FpgaConfig.model_validate(config | {"port": there.path}))
        device.open()
        try:
            yield device
        finally:
            device.close()


KINDS = ["board peer", "bridge peer", "board verilog", "bridge verilog"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_line_gives_the_bits_of_the_twin_and_no_alarm(kind: str, tmp_path: Path) -> None:
    is_board = kind.startswith("board")
    state = FixedNetwork(LEARNING if is_board else None).state
    made = ticks(400, modulated=is_board)
    with made_device(kind, tmp_path, state) as device:
        device.load(state)
        found = answers(device, made)
        assert differing(state, made, found) == []
        assert device.counts == {}
        assert all(not answer.is_lost and not answer.is_repaired and answer.v is not None for answer in found)
        assert all(0 < answer.round_trip_ns < 20e9 for answer in found)
        assert any(answer.spikes for answer in found)
        if is_board:
            assert all(answer.clocks > 0 for answer in found)
            np.testing.assert_array_equal(device.read_state(), state)


@pytest.mark.parametrize("kind", ["board peer", "board verilog"])
def test_a_state_in_the_middle_of_a_run_is_loaded_and_read_back_register_by_register(kind: str, tmp_path: Path) -> None:
    network = FixedNetwork(LEARNING)
    differing(network.state, made := ticks(300), [Answer(k, 0, is_lost=True) for k in range(300)])
    network.state[0]["weights"][0] = np.linspace(-(2**31), 2**31 - 1, 16).astype(np.int64)
    assert network.state[0]["eligibility"].any()
    with made_device(kind, tmp_path, FixedNetwork().state) as device:
        device.load(network.state)
        back = device.read_state()
        for each in REGISTERS:
            np.testing.assert_array_equal(back[0][each.name], network.state[0][each.name], each.name)
        found = answers(device, made[:50], first=300)
        assert differing(network.state, made[:50], found) == []


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_and_using_what_is_closed_is_harmless(kind: str, tmp_path: Path) -> None:
    with made_device(kind, tmp_path, FixedNetwork().state) as device:
        device.close()
        device.close()
        with pytest.raises(AdapterError, match="not open: call open first"):
            device.poll()
        device.open()
        device.load(FixedNetwork().state)
        assert len(answers(device, ticks(3, modulated=False))) == 3


def test_of_the_verilog_flipped_and_lost_bytes_and_resets_cost_no_tick(tmp_path: Path) -> None:
    state = FixedNetwork(LEARNING).state
    faults = (Flip(rate=5e-4), Lose(rate=5e-4), Reset(tick=200), Reset(tick=203))
    made = ticks(400)
    with made_device("board verilog", tmp_path, state, faults, timeout_ms=100.0) as device:
        device.load(state)
        found = answers(device, made)
        assert differing(state, made, found) == []
        assert device.counts["resets"] == 2
        assert device.counts["damaged"] + device.counts["damaged_there"] > 5


def test_of_the_verilog_a_flipped_bit_of_memory_shows_at_the_tick(tmp_path: Path) -> None:
    state = FixedNetwork(LEARNING).state
    fault = Memory.model_validate({"register": "threshold", "index": 3, "bit": 11, "tick": 100})
    made = ticks(200)
    with made_device("board verilog", tmp_path, state, (fault,)) as device:
        device.load(state)
        wrong = differing(state, made, answers(device, made))
        assert wrong
        assert 100 <= wrong[0] < 120
        assert (device.read_state()[0]["threshold"] != state[0]["threshold"]).nonzero()[0].tolist() == [3]


# -- our protocol: every fault is named, and mended


def test_clocks_and_the_clock_of_the_board_are_told(tmp_path: Path) -> None:
    with board_and_peer(tmp_path) as (board, _, _):
        assert board.clock_hz == 100_000_000
        assert {answer.clocks for answer in answers(board, ticks(5))} == {CLOCKS}
        assert board.name == f"board at {tmp_path}/board"


TROUBLE = [
    ("in", flipped, {"damaged_there", "resent"}),
    ("in", cut, {"damaged_there", "resent"}),
    ("in", gone, {"missed", "resent"}),
    ("in", doubled, {"duplicated"}),
    ("out", flipped, {"damaged", "repaired"}),
    ("out", cut, {"damaged", "repaired"}),
    ("out", gone, {"repaired"}),
    ("out", doubled, {"duplicated"}),
]


@pytest.mark.parametrize("direction, change, names", TROUBLE)
@pytest.mark.parametrize("depth", [1, 4])
def test_trouble_with_a_frame_is_named_and_costs_no_tick(
    direction: str, change: Any, names: set[str], depth: int, tmp_path: Path
) -> None:
    made = ticks(120)
    with board_and_peer(tmp_path, depth, timeout_ms=300.0) as (board, peer, state):
        if direction == "in":
            peer.incoming = of_ticks(20, 21, 60, change=change)
        else:
            peer.outgoing = of_ticks(20, 40, 60, change=change)
        found = answers(board, made, ahead=depth)
        assert differing(state, made, found) == []
        counts = board.counts
        if depth == 1 and change is gone:  # nothing follows by which it would show
            names = {"timeouts", "resent"}
        elif depth == 1 and "repaired" in names:
            names = names | {"timeouts"}
        assert names <= set(counts), counts
        assert not {"lost", "resets", "unexpected"} & set(counts)
        assert not any(answer.is_lost for answer in found)
        assert counts.get("damaged", 0) == (3 if "damaged" in names else 0)
        assert counts.get("resent", 0) <= 3 * depth  # each trouble once, whatever else refuses because of it
        if direction == "out" and change is not doubled:
            assert sum(answer.is_repaired for answer in found) >= 3
        np.testing.assert_array_equal(board.read_state(), state)


def test_three_lost_answers_in_a_row_are_repaired_and_of_four_one_is_lost(tmp_path: Path) -> None:
    made = ticks(60)
    with board_and_peer(tmp_path, depth=8) as (board, peer, state):
        peer.outgoing = of_ticks(10, 11, 12, 30, 31, 32, 33, change=gone)
        found = answers(board, made)
        assert differing(state, made, found) == []
        assert sum(answer.is_lost for answer in found) == 1
        assert (board.counts["repaired"], board.counts["lost"]) == (6, 1)
        repaired = [answer for answer in found if answer.is_repaired]
        assert len(repaired) == 6
        assert all(answer.v is None and answer.round_trip_ns > 0 for answer in repaired)
        np.testing.assert_array_equal(board.read_state(), state)


def test_the_last_answer_of_all_is_learned_from_the_registers(tmp_path: Path) -> None:
    made = ticks(30)
    with board_and_peer(tmp_path, depth=1, timeout_ms=300.0) as (board, peer, state):
        peer.outgoing = of_ticks(29, change=gone)
        found = answers(board, made, ahead=1)
        assert differing(state, made, found) == []
        assert found[-1].is_repaired
        assert found[-1].v is not None
        assert board.counts["repaired"] == 1


def test_answers_that_come_late_are_taken_and_named(tmp_path: Path) -> None:
    made = ticks(60)
    with board_and_peer(tmp_path, timeout_ms=20.0) as (board, peer, state):

        def late(data: bytes) -> list[bytes]:
            wait_until(lambda: board._pipeline.counts.get("timeouts", 0) >= 1, "a timeout")
            return [data]

        peer.outgoing = of_ticks(20, change=late)
        found = answers(board, made)
        assert differing(state, made, found) == []
        assert board.counts["late"] >= 1
        assert board.counts["timeouts"] >= 1
        assert not {"lost", "unexpected", "resets"} & set(board.counts)


def test_answers_in_another_order_are_named_and_right(tmp_path: Path) -> None:
    held: list[bytes] = []

    def hold(data: bytes) -> list[bytes]:
        held.append(data)
        return []

    hold_back = of_ticks(20, change=hold)
    made = ticks(60)
    with board_and_peer(tmp_path) as (board, peer, state):
        peer.outgoing = lambda index, data: [data, held.pop()] if held else hold_back(index, data)
        found = answers(board, made)
        assert differing(state, made, found) == []
        assert board.counts["reordered"] == 1
        assert not {"lost", "unexpected", "resent"} & set(board.counts)


@pytest.mark.parametrize("seed, depth", [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_any_mixture_of_trouble_leaves_every_answer_right(seed: int, depth: int, tmp_path: Path) -> None:
    def trouble(rng: np.random.Generator) -> Change:
        kinds: list[Any] = [flipped, cut, gone, doubled]
        return lambda index, data: kinds[rng.integers(4)](data) if rng.random() < 0.1 and len(data) > 12 else [data]

    made = ticks(300, seed)
    with board_and_peer(tmp_path, depth, timeout_ms=20.0) as (board, peer, state):
        peer.incoming = trouble(np.random.default_rng(2 * seed))
        peer.outgoing = trouble(np.random.default_rng(2 * seed + 1))
        found = answers(board, made, ahead=2 * depth)
        peer.incoming = peer.outgoing = lambda index, data: [data]
        assert differing(state, made, found) == []
        assert board.counts["damaged"] + board.counts["damaged_there"] > 10  # of some thirty
        assert sum(answer.is_lost for answer in found) < 10
        np.testing.assert_array_equal(board.read_state(), state)
        assert not {"unexpected", "resets"} & set(board.counts)


def test_tick_numbers_wrap_at_32_bits(tmp_path: Path) -> None:
    with board_and_peer(tmp_path) as (board, peer, state):
        state[0]["tick"] = 2**32 - 20
        board.load(state)
        peer.outgoing = of_ticks(30, 31, change=gone)
        made = ticks(40)
        found = answers(board, made, 2**32 - 20, ahead=40)
        assert differing(state, made, found) == []
        assert [answer.tick for answer in found] == [*range(2**32 - 20, 2**32), *range(20)]


# -- resets, silence, loss


@pytest.mark.parametrize("when", [0, 1, 57])
def test_a_board_that_was_reset_gets_its_state_back_and_goes_on(when: int, tmp_path: Path) -> None:
    made = ticks(120)
    with board_and_peer(tmp_path) as (board, peer, state):
        found = answers(board, made[:when]) if when else []
        peer.reset()
        if when == 0:  # its image's next tick is the right one: only its mark tells
            wait_until(lambda: board.poll(0.05) or board.counts.get("resets"), "the reset seen")
        found += answers(board, made[when:], first=when)
        assert differing(state, made, found) == []
        assert board.counts["resets"] == 1
        np.testing.assert_array_equal(board.read_state(), state)


def test_a_reset_in_the_middle_of_what_is_under_way_costs_no_tick(tmp_path: Path) -> None:
    made = ticks(100)
    with board_and_peer(tmp_path, depth=8) as (board, peer, state):

        def reset(data: bytes) -> list[bytes]:
            peer.board.reset()
            return [data]

        peer.incoming = of_ticks(40, change=reset)
        found = answers(board, made, ahead=8)
        assert differing(state, made, found) == []
        assert board.counts["resets"] == 1


def test_without_a_shadow_a_reset_ends_it(tmp_path: Path) -> None:
    with board_and_peer(tmp_path, keep_shadow=False) as (board, peer, _):
        answers(board, ticks(10))
        peer.reset()
        board.submit(10, *ticks(1)[0])
        with pytest.raises(AdapterLostError, match="was reset, and what it held is not known here; load it again"):
            wait_until(lambda: board.poll(0.05), "an answer")


def test_a_board_that_falls_silent_is_gone_in_a_bounded_time(tmp_path: Path) -> None:
    with board_and_peer(tmp_path, timeout_ms=50.0, lost_ms=500.0) as (board, peer, _):
        answers(board, ticks(10))
        peer.is_silent = True
        board.submit(10, *ticks(1)[0])
        begun = time.monotonic()
        with pytest.raises(AdapterLostError, match=r"has said nothing for [0-9]+ ms; check its cable and power"):
            board.poll(20.0)
        assert 0.5 <= time.monotonic() - begun < 10.0


def test_a_line_that_damages_a_request_each_time_is_given_up_though_the_board_answers(tmp_path: Path) -> None:
    with board_and_peer(tmp_path, lost_ms=2000.0) as (board, peer, state):
        peer.incoming = lambda index, data: flipped(data) if len(data) > 60 else [data]
        errors: list[AdapterError] = []

        def load() -> None:
            try:
                board.load(state)
            except AdapterError as error:
                errors.append(error)

        threading.Thread(target=load, daemon=True).start()
        wait_until(lambda: errors, "an end")
        assert isinstance(errors[0], AdapterLostError)
        assert "sent 30 times, and came over damaged or without an answer" in str(errors[0])
        assert "lower the baud rate" in str(errors[0])


def test_a_line_that_damages_a_tick_each_time_is_given_up_though_the_board_answers(tmp_path: Path) -> None:
    with board_and_peer(tmp_path) as (board, peer, _):
        peer.incoming = lambda index, data: flipped(data) if len(data) > 40 else [data]
        for k, tick in enumerate(ticks(4)):
            board.submit(k, *tick)
        with pytest.raises(
            AdapterLostError, match="was given tick 0 31 times, and does not run it: the line is too bad"
        ):
            wait_until(lambda: board.poll(0.1), "the end")


def test_a_board_that_falls_silent_while_nobody_asks_is_found_gone_too(tmp_path: Path) -> None:
    with board_and_peer(tmp_path, timeout_ms=50.0, lost_ms=500.0) as (board, peer, _):
        peer.is_silent = True
        with pytest.raises(AdapterLostError, match="has said nothing"):
            wait_until(lambda: board.poll(0.02), "an answer to nothing")


def test_a_caller_that_was_away_for_long_finds_its_answers(tmp_path: Path) -> None:
    made = ticks(4)
    with board_and_peer(tmp_path, timeout_ms=50.0, lost_ms=300.0) as (board, peer, state):
        peer.outgoing = of_ticks(1, 3, change=gone)
        for k, tick in enumerate(made):
            board.submit(k, *tick)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 0.6, "some time")  # far beyond lost_ms
        found: list[Answer] = []
        while len(found) < 4:
            found += board.poll(1.0)
        assert differing(state, made, found) == []


@pytest.mark.parametrize("protocol", ["board", "bridge"])
def test_one_that_is_unplugged_is_gone_and_after_plugging_in_opens_again(protocol: str, tmp_path: Path) -> None:
    state = FixedNetwork().state
    made = ticks(20, modulated=False)
    with Peer(tmp_path, TwinBoard(state) if protocol == "board" else BridgeBoard(state)) as peer:
        device: Device = Board(peer.path) if protocol == "board" else SiliconBridge(peer.path, baud=3_000_000)
        device.open()
        device.load(state)
        answers(device, made)
        peer.unplug()
        with pytest.raises(AdapterLostError, match=r"is gone .*; check its cable"):
            answers(device, made, first=20)
        device.close()
        with pytest.raises(AdapterError, match=r"there is no .*board: check that the board is plugged in"):
            device.open()
        peer.reset()
        peer.plug_in()
        device.open()
        device.load(state)
        found = answers(device, made)
        assert differing(state.copy(), made, found) == []
        device.close()


# -- what cannot be opened, or loaded


def test_what_does_not_answer_or_answers_otherwise_is_refused_in_words(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        assert isinstance(peer.board, TwinBoard)
        board = Board(peer.path, timeout_ms=50.0, lost_ms=500.0)
        peer.is_silent = True
        with pytest.raises(AdapterTimeoutError, match=r"nothing answers at .*: check that the board is programmed"):
            board.open()
        peer.is_silent = False
        peer.outgoing = lambda index, data: [b"\x55\xaa" * 20 + b"\0"]
        with pytest.raises(AdapterTimeoutError, match=r"answers, but not in our protocol: check .* 3000000 baud"):
            board.open()
        peer.outgoing = lambda index, data: [data]
        peer.board.magic = 0x12345678
        with pytest.raises(AdapterError, match="answers as 0x12345678, expected 0x4E4D4F44"):
            board.open()
        peer.board.magic = wire.MAGIC
        peer.board.version = 1 | 32 << 8 | 2 << 16
        with pytest.raises(
            AdapterError, match="protocol 1, with 32 channels and register layout 2; expected 1, 16 and 1"
        ):
            board.open()
        assert board.fileno() == -1


def test_a_port_that_another_program_has_is_refused_in_words(tmp_path: Path) -> None:
    with board_and_peer(tmp_path) as (_, peer, _), pytest.raises(AdapterError, match="is used by another program"):
        Board(peer.path).open()


def test_a_register_that_does_not_hold_what_was_written_is_named(tmp_path: Path) -> None:
    state = FixedNetwork().state
    with Peer(tmp_path) as peer:
        board = Board(peer.path)
        board.open()
        assert isinstance(peer.board, TwinBoard)
        peer.board.stuck = {0x043: 1, 0x112: 1}
        with pytest.raises(AdapterError) as raised:
            board.load(state)
        held, row = state[0]["threshold"][3], state[0]["weights"][1][2]
        assert f"threshold[3] is {held ^ 1} instead of {held}; weights[1][2] is {row ^ 1} instead of {row}" in str(
            raised.value
        )
        board.close()


def test_ticks_out_of_order_are_refused(tmp_path: Path) -> None:
    with board_and_peer(tmp_path) as (board, _, _):
        board.submit(0, *ticks(1)[0])
        with pytest.raises(AdapterError, match="expected tick 1, got 3: ticks follow each other"):
            board.submit(3, *ticks(1)[0])
