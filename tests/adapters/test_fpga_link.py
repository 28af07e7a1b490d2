"""What a link carries, and what is said of one that does not; and the configuration of a board."""

import math
from typing import Any

import numpy as np
import pytest

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.config import FpgaConfig, create_device
from neuromod.adapters.fpga.link import Link, decimation
from neuromod.adapters.fpga.siliconbridge import SiliconBridge
from neuromod.engine.errors import ConfigError


@pytest.mark.parametrize("is_modulated", [False, True])
def test_bytes_of_a_tick_are_those_of_its_frames(is_modulated: bool) -> None:
    link = Link(is_modulated=is_modulated)
    rng = np.random.default_rng(0)
    for _ in range(20):
        stimuli = rng.integers(-(2**15), 2**15, 16).astype(np.int16)
        words = rng.integers(0, 2**24, 5) if is_modulated else None
        assert len(wire.pack_tick(1, 2, stimuli, words)) == link.bytes_out
        done = wire.TickDone(1, 2, (3, 4, 5, 6), rng.integers(-(2**23), 2**23, 16).astype(np.int32))
        assert len(wire.pack_tick_done(1, done)) == link.bytes_back
    bridge = Link("siliconbridge")
    assert (bridge.bytes_out, bridge.bytes_back) == (33, 36)


def test_time_on_the_wire_is_ten_bits_a_byte() -> None:
    link = Link("siliconbridge", 115_200, depth=1, tick_us=0.0)
    assert link.wire_s == pytest.approx(69 * 10 / 115_200)
    assert link.max_ticks_hz == pytest.approx(1 / link.wire_s)
    # full duplex: with two under way the longer direction alone bounds it
    assert Link("siliconbridge", 115_200, depth=2).max_ticks_hz == pytest.approx(320.0)


def test_no_more_is_under_way_than_the_board_has_room_for() -> None:
    assert Link(depth=16).under_way == 512 // 67
    assert Link(depth=16, is_modulated=False).under_way == 512 // 47


def test_a_latency_timer_holds_back_what_nothing_pushes() -> None:
    alone, many = Link(depth=1, latency_timer_ms=16.0), Link(depth=4, latency_timer_ms=16.0)
    assert alone.max_ticks_hz < 62.5
    assert many.max_ticks_hz > 1000.0


def test_the_rate_never_falls_with_more_baud_or_depth() -> None:
    for protocol in ("neuromod", "siliconbridge"):
        for latency_ms in (0.0, 1.0, 16.0):
            rates = [
                [Link(protocol, baud, depth, True, latency_ms).max_ticks_hz for depth in range(1, 9)]
                for baud in (115_200, 1_000_000, 3_000_000)
            ]
            assert (np.diff(rates, axis=0) >= 0).all()
            assert (np.diff(rates, axis=1) >= 0).all()


def test_a_link_that_is_fast_enough_carries_every_tick() -> None:
    assert decimation(Link(), 1.0) == 1
    assert decimation(Link(), 1.0, "auto") == 1
    assert decimation(Link("siliconbridge", 115_200, depth=2), 4.0) == 1


@pytest.mark.parametrize(
    "link, step_ms, wanted, words",
    [
        (Link(baud=115_200), 1.0, 1, "carries 160 ticks/s .* the session has 1000: set 921600 baud on both sides, or"),
        (Link("siliconbridge", 115_200, 2), 1.0, 1, "carries 320 ticks/s .33 bytes out and 36 back a tick, 6.00 ms"),
        (
            Link("siliconbridge", 115_200, 1),
            1.0,
            1,
            "set 921600 baud on both sides, or give --decimate auto to look on in steps of 6 ms$",
        ),
        (
            Link(baud=9600),
            1.0,
            "auto",
            "75 ticks of 1 ms .* of 75 ms, and a board's network takes 10 ms at most: set 9",
        ),
        (Link(baud=9600), 1.0, 1, "the session has 1000: set 921600 baud on both sides$"),
        (
            Link(baud=115_200),
            0.1,
            2,
            "the session has 5000: set 4000000 baud .* --decimate auto to look on in steps of",
        ),
        (Link(depth=1, latency_timer_ms=16.0), 1.0, 1, "latency timer of the USB adapter to 1 ms"),
        (Link(tick_us=2000.0), 1.0, 1, "have more ticks under way .depth., or longer ticks"),
    ],
)
def test_a_link_that_is_too_slow_is_refused_with_its_numbers(
    link: Link, step_ms: float, wanted: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        decimation(link, step_ms, wanted)


def test_as_many_ticks_make_one_as_the_link_needs() -> None:
    link = Link("siliconbridge", 3_000_000, depth=1)
    n = decimation(link, 1 / 30, "auto")
    assert n == math.ceil(30_000 / link.max_ticks_hz)
    assert n > 1
    assert decimation(link, 1 / 30, n + 1) == n + 1
    with pytest.raises(ConfigError, match="the session has"):
        decimation(link, 1 / 30, n - 1)


def test_a_board_at_the_baud_rate_of_siliconbridge_looks_on_at_a_session_of_1_khz() -> None:
    link = FpgaConfig(port="/dev/ttyUSB1", protocol="siliconbridge").link()
    assert link.baud == 115_200
    assert decimation(link, 1.0, "auto") == 6
    assert decimation(FpgaConfig(port="/dev/ttyUSB1", baud=115_200).link(), 1.0, "auto") == 7


def test_a_configuration_makes_the_device_that_it_says() -> None:
    ours = FpgaConfig(port="/dev/ttyUSB1")
    assert isinstance(create_device(ours), Board)
    assert (ours.link().baud, ours.link().depth) == (3_000_000, 4)
    theirs = FpgaConfig(port="/dev/ttyUSB1", protocol="siliconbridge")
    assert isinstance(create_device(theirs), SiliconBridge)
    assert (theirs.link().baud, theirs.link().depth) == (115_200, 1)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"timeout_ms": 20.0, "baud": 115_200}, "4 answers take 30.8 ms on a wire of 115200 baud; wait twice as long"),
        ({"timeout_ms": 500.0, "lost_ms": 100.0}, "lost_ms is 100, expected at least timeout_ms, 500"),
        ({"depth": 17}, "less than or equal to 16"),
        ({"speed": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FpgaConfig.model_validate({"port": "/dev/ttyUSB1"} | keys)
