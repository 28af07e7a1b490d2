"""A SiliconBridge board: what its protocol cannot see it does not hide, and what it cannot carry it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpga_peer import BridgeBoard, Peer
from harness import wait_until

from conformance.boards import answers, at, differing, ticks
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.siliconbridge import SiliconBridge
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.layout_types import State


@contextmanager
def bridge_and_peer(folder: Path, **options: Any) -> Iterator[tuple[SiliconBridge, Peer, State]]:
    """Give an open SiliconBridge board, the peer behind it, and the network's state."""
    state = FixedNetwork().state
    with Peer(folder, BridgeBoard(state)) as peer:
        bridge = SiliconBridge(peer.path, baud=3_000_000, **({"timeout_ms": 500.0} | options))
        bridge.open()
        bridge.load(state)
        try:
            yield bridge, peer, state
        finally:
            bridge.close()


def test_siliconbridge_has_no_checksum_and_says_so(tmp_path: Path) -> None:
    with bridge_and_peer(tmp_path) as (bridge, _, _):
        assert not bridge.has_checksum
        assert Board.has_checksum
        with pytest.raises(AdapterError, match="reads thresholds and input gains alone"):
            bridge.read_state()


def test_a_flipped_bit_over_siliconbridge_shows_as_divergence_alone(tmp_path: Path) -> None:
    def flip(data: bytes) -> list[bytes]:
        return [data[:1] + bytes([data[1] ^ 0x40]) + data[2:]]

    made = ticks(60, modulated=False)
    with bridge_and_peer(tmp_path) as (bridge, peer, state):
        peer.incoming = at(20, change=flip)(peer.n_in)
        wrong = differing(state, made, answers(bridge, made, ahead=1))
        assert wrong[0] == 20
        assert bridge.counts == {}


@pytest.mark.parametrize("direction", ["in", "out"])
def test_lost_bytes_over_siliconbridge_cost_their_tick_and_the_line_is_in_step_again(
    direction: str, tmp_path: Path
) -> None:
    made = ticks(80, modulated=False)
    with bridge_and_peer(tmp_path) as (bridge, peer, state):
        if direction == "in":
            peer.incoming = at(20, change=lambda data: [data[:7] + data[9:]])(peer.n_in)
        else:
            peer.outgoing = at(20, change=lambda data: [data[:7] + data[9:]])(peer.n_out)
        found = answers(bridge, made, ahead=1)
        assert [answer.tick for answer in found if answer.is_lost] == [20]
        assert bridge.counts == {"timeouts": 1, "lost": 1, "resynchronised": 1}
        wrong = differing(state, made, found)
        # of a lost answer only that; a tick that was run on half of its stimuli leaves its traces
        assert not wrong if direction == "out" else wrong[0] == 21


def test_ticks_over_siliconbridge_wrap_at_32_bits_and_may_begin_anywhere(tmp_path: Path) -> None:
    made = ticks(40, modulated=False)
    with bridge_and_peer(tmp_path) as (bridge, _, state):
        state[0]["tick"] = 2**32 - 20
        bridge.load(state)
        found = answers(bridge, made, 2**32 - 20, ahead=40)
        assert [answer.tick for answer in found] == [*range(2**32 - 20, 2**32), *range(20)]
        assert differing(state, made, found) == []


def test_words_that_a_lost_byte_overwrote_are_written_again(tmp_path: Path) -> None:
    made = ticks(40, modulated=False)
    with bridge_and_peer(tmp_path) as (bridge, peer, state):

        def spoil(data: bytes) -> list[bytes]:
            peer.board.state[0]["threshold"][5] ^= 256
            return []

        peer.incoming = at(20, change=spoil)(peer.n_in)
        answers(bridge, made, ahead=1)
        assert bridge.counts["rewritten"] == 1
        np.testing.assert_array_equal(peer.board.state[0]["threshold"], state[0]["threshold"])


def test_a_siliconbridge_board_that_falls_silent_is_gone(tmp_path: Path) -> None:
    with bridge_and_peer(tmp_path, timeout_ms=100.0, lost_ms=500.0) as (bridge, peer, _):
        peer.is_silent = True
        bridge.submit(0, *ticks(1, modulated=False)[0])
        with pytest.raises(AdapterLostError, match="does not answer any more; check its cable and power"):
            wait_until(lambda: [a for a in bridge.poll(0.5) if not a.is_lost], "an answer")
        bridge.close()
        with pytest.raises(AdapterTimeoutError, match="no SiliconBridge board answers at"):
            bridge.open()


def test_what_siliconbridge_cannot_carry_is_refused_by_name(tmp_path: Path) -> None:
    with bridge_and_peer(tmp_path) as (bridge, _, state):
        other = FixedNetwork(NetworkConfig(input_gain=2.0)).state
        with pytest.raises(AdapterError, match="cannot write input_gain: program the board with images of this"):
            bridge.load(other)
        later = state.copy()
        later[0]["v"][2] = 5
        with pytest.raises(AdapterError, match=r"cannot write v: .*begin after its reset"):
            bridge.load(later)
        words = np.array([state[0][name] for name in ("input_gain", "recurrent_gain", "threshold_gain", "inhibition")])
        tick = ticks(1, modulated=False)[0][0]
        with pytest.raises(AdapterError, match="cannot change threshold_gain of a running board"):
            bridge.submit(0, tick, np.array([*words[:2], words[2] + 1, words[3], 0]))
        with pytest.raises(AdapterError, match=r"learning factor in steps of 1/256, not 1.19209e-07"):
            bridge.submit(0, tick, np.array([*words, 2]))
        bridge.submit(0, tick, np.array([*words, 3 << 16]))
        (answer,) = bridge.poll(20.0)
        assert not answer.is_lost


def test_thresholds_and_gains_reach_a_siliconbridge_board(tmp_path: Path) -> None:
    with bridge_and_peer(tmp_path) as (bridge, peer, state):
        state[0]["threshold"][4] = -300
        state[0]["gain"][15] = 777
        state[0]["learning_factor"] = -5 << 16
        bridge.load(state)
        wait_until(lambda: peer.board.state[0]["learning_factor"] == -5 << 16, "the reward scalar")
        for name in ("threshold", "gain"):
            np.testing.assert_array_equal(peer.board.state[0][name], state[0][name])
