"""The process between daemon and board: the board follows bit for bit, whatever becomes of either.

Most of it runs against a publisher of this test over the daemon's own messages; the whole runs against real daemons.
"""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import zmq
from fpga_peer import BridgeBoard, Peer
from harness import ONE_PROGRAM, neuromod, session, started, wait_until
from harness import Running as RunningDaemon
from numpy.typing import NDArray

from conformance.boards import flipped, gone, of_ticks
from neuromod.adapters.fpga.simulated import SimulatedBoard
from neuromod.bridge import wire
from neuromod.bridge.cli_adapter import _in_words
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.fpga import FpgaAdapter
from neuromod.bridge.fpga_config import AdapterConfig, check_session
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import AdapterError, AdapterLostError, ConfigError, FixedPointError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.images import to_words

PUBLISHED = 'source = "zmq"\n[publish]\nstimuli = true\n'
LEARNING = '[network.learning]\nrule = "reward"\nrate_per_s = 1.0\n'
NO_RECURRENCE = """[network.weights]
kind = "random"
low_mv = 0.0
high_mv = 0.0
from_coincidence_mv = 0.0
to_interneuron_mv = 0.0
"""


def stimuli(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Return stimuli that make spikes."""
    return np.random.default_rng(seed).uniform(-10.0, 40.0, (n, 16)).astype(np.float32)


def modulation(network: NetworkConfig) -> NDArray[np.float64]:
    """Return the numbers of modulation that a network has at its baseline."""
    state = FixedNetwork(network).state[0]
    names = ("input_gain", "recurrent_gain", "threshold_gain", "inhibition")
    return np.array([*(state[name] / 65536 for name in names), state["learning_factor"] / 2**24])


class Publisher:
    """The output and ingest sockets of a daemon."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.XPUB)
        self._in = self._context.socket(zmq.PULL)
        self.output, self.ingest = f"ipc://{folder}/o", f"ipc://{folder}/i"
        self._out.xpub_verbose = True
        self._out.bind(self.output)
        self._in.bind(self.ingest)
        self.heard: list[wire.IngestMessage] = []
        self.seq = self.tick = 0
        self.modulation = modulation(NetworkConfig())
        self.step_ms = 1.0

    def close(self) -> None:
        self._context.destroy(0)

    def wait_for_subscriptions(self, n: int) -> None:
        while n:
            assert self._out.poll(20_000)
            n -= self._out.recv()[0] == 1  # 0: somebody left

    def say(self, values: NDArray[np.float32], flags: wire.Flag = wire.Flag(0)) -> None:
        """Publish a tick."""
        is_step = not flags & (wire.Flag.FILLER | wire.Flag.PAUSED)
        numbers = self.modulation if is_step else np.zeros(5)
        self.raw(
            wire.pack_stimuli(wire.StimuliMessage(self.seq, self.tick, values, numbers, self.step_ms * is_step, flags))
        )
        self.seq += 1
        self.tick += is_step

    def raw(self, payload: bytes) -> None:
        self._out.send_multipart([wire.TOPIC_STIMULI, payload])

    def of(self, kind: type[Any]) -> list[Any]:
        while self._in.poll(0):
            topic, payload = self._in.recv_multipart()
            self.heard.append(wire.unpack_ingest(topic, payload))
        return [message for message in self.heard if isinstance(message, kind)]


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    made = Publisher(tmp_path)
    yield made
    made.close()


class Running:
    """An adapter in a thread."""

    def __init__(self, path: str, output: str, ingest: str, session: SessionConfig | None = None, **keys: Any) -> None:
        fpga = {"port": path, "timeout_ms": 2000.0, "lost_ms": 5000.0} | keys.pop("fpga", {})
        raw = {"fpga": fpga, "output": output, "ingest": ingest, "reconnect_s": 0.05} | keys
        self.adapter = FpgaAdapter(AdapterConfig.model_validate(raw), session)
        self._stop = threading.Event()
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.adapter.run(self._stop.is_set, self.ready.set)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def summary(self) -> dict[str, Any]:
        return self.adapter.summary()

    def wait_for(self, what: str, n: int = 1) -> None:
        self._wait(lambda: self.adapter.all_counts().get(what, 0) >= n, f"{n} {what}")

    def wait_for_ticks(self, n: int) -> None:
        def ran() -> int:
            mirror = self.adapter.mirror
            return 0 if mirror is None else mirror.compared + mirror.unanswered

        self._wait(lambda: ran() >= n, f"{n} ticks")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(lambda: condition() or self.error, what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.adapter.all_counts()}") from None
        assert self.error is None, self.error

    def wait_for_end(self) -> BaseException | None:
        wait_until(lambda: not self._thread.is_alive(), "the end")
        return self.error


Start = Callable[..., Running]


@pytest.fixture
def running(publisher: Publisher) -> Iterator[Start]:
    """Return a function that starts an adapter between publisher and a board."""
    started: list[Running] = []

    def start(path: str, **keys: Any) -> Running:
        made = Running(path, publisher.output, publisher.ingest, **keys)
        made.__enter__()
        started.append(made)
        publisher.wait_for_subscriptions(2)
        return made

    yield start
    for made in started:
        made.__exit__()


def test_the_board_follows_every_tick_and_none_while_the_network_stands_still(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for k, row in enumerate(stimuli(200)):
            if k % 50 == 10:
                publisher.say(row, wire.Flag.FILLER)
                publisher.say(row, wire.Flag.PAUSED)
            publisher.say(row)
        adapter.wait_for_ticks(200)
        assert adapter.summary["compared"] == 200
        assert adapter.summary["first_divergence"] is None
        assert adapter.adapter.all_counts() == {"standing_still": 8}
        assert int(peer.board.state[0]["tick"]) == 200
        np.testing.assert_array_equal(peer.board.state, adapter.adapter.mirror.state)  # type: ignore[union-attr]
        times = adapter.summary["round_trip_us"]
        assert times["n"] == 200
        assert 0 < times["p50"] <= times["p99"] <= times["max"] + 1
        assert sum(n for _, n in times["histogram"]) == 200


def test_modulation_that_changes_reaches_the_board_before_its_tick(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, session=session(PUBLISHED + LEARNING))
        publisher.modulation = modulation(session(PUBLISHED + LEARNING).network)
        for k, row in enumerate(stimuli(150)):
            publisher.modulation[:4] += (0.01, 0.002, -0.001, 0.01)
            publisher.modulation[4] = 1e-3 * np.sin(0.1 * k)
            publisher.say(row)
        adapter.wait_for_ticks(150)
        assert adapter.summary["diverging"] == 0
        assert peer.board.state[0]["input_gain"] == round(65536 * publisher.modulation[0])
        assert peer.board.state[0]["eligibility"].any()


def test_a_bit_that_flips_in_the_board_is_found_at_its_tick_and_told(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(200)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows[:100]:
            publisher.say(row)
        adapter.wait_for_ticks(100)
        peer.board.state[0]["v"][5] ^= 1 << 15
        for row in rows[100:]:
            publisher.say(row)
        adapter.wait_for_ticks(200)
        first = adapter.summary["first_divergence"]
        assert (first["tick"], first["channels"]) == (100, (5,))
        assert len(first["v"]) == len(first["expected_v"]) == 1
        events = wait_until(lambda: [e for e in publisher.of(wire.EventInput) if "diverging" in e.value], "an event")
        assert events[0].name == "fpga.faults"
        assert events[0].value["first_divergence"] == 100


def test_drives_past_the_range_are_counted_told_once_and_no_fault_of_the_board(
    publisher: Publisher, running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.zeros((60, 16), np.float32)
    rows[20:, 5] = 20.0  # with a gain of 10
    rows[30:, (2, 14)] = 20.0
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(60)
        found = adapter.summary["saturated_drives"]
        assert (found["looked_at"], found["ticks"]) == (60, 40)
        assert {i: n for i, n in enumerate(found["by_channel"]) if n} == {2: 30, 5: 40}
        assert caplog.text.count("stimulus or drive of channel") == 1
        assert "tick 20: stimulus or drive of channel 5 goes past +-128 mV" in caplog.text
        assert adapter.adapter.all_counts() == {}
        assert "drives past +-128 mV in 66.67% of ticks, on channels 2, 5" in _in_words(adapter.summary)


def test_events_come_once_a_second_at_most_and_it_tells_that_it_lives(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, name="board", alive_hz=50.0)
        begun = time.monotonic()
        rows = stimuli(30)
        k = 0
        while len(publisher.of(wire.EventInput)) < 2:
            publisher.seq += 1  # a message is lost each time
            publisher.say(rows[k % 30])
            k += 1
            adapter.wait_for("lost_messages", k - 1)
            assert time.monotonic() < begun + 20
        assert time.monotonic() - begun >= 1.0
        assert len(publisher.of(wire.AliveInput)) > 5
        assert {message.name for message in publisher.of(wire.AliveInput)} == {"board"}
        assert {message.name for message in publisher.of(wire.EventInput)} == {"board.faults"}


def test_lost_messages_are_counted_and_the_board_goes_on(publisher: Publisher, running: Start, tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for k, row in enumerate(stimuli(100)):
            if k == 40:
                publisher.seq += 3
                publisher.tick += 3
            publisher.say(row)
        publisher.raw(b"\xc1")
        adapter.wait_for_ticks(100)
        adapter.wait_for("malformed")
        assert adapter.adapter.all_counts() == {"lost_messages": 3, "ticks_passed_over": 3, "malformed": 1}
        assert adapter.summary["diverging"] == 0


def test_another_daemon_has_another_network_and_the_board_gets_its_images(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(60)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(60)
        publisher.seq = publisher.tick = 0
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(120)
        assert adapter.adapter.all_counts() == {"daemon_restarts": 1}
        assert adapter.summary["diverging"] == 0
        network = FixedNetwork()
        network.run(rows)
        np.testing.assert_array_equal(peer.board.state, network.state)


@pytest.mark.parametrize(
    ("seq", "tick"),
    [
        pytest.param(60, 20, id="back"),
        pytest.param(60, 59, id="again"),
        pytest.param(60, 500, id="ahead"),
        pytest.param(90, 3, id="another daemon that is past the number of messages"),
    ],
)
def test_ticks_that_no_lost_message_accounts_for_are_of_another_state_and_the_board_begins_anew(
    seq: int, tick: int, publisher: Publisher, running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = stimuli(60)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(60)
        publisher.seq, publisher.tick = seq, tick
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(120)
        lost = {"lost_messages": seq - 60} if seq > 60 else {}
        assert adapter.adapter.all_counts() == {"network_restores": 1, **lost}
        assert f"tick went from 59 to {tick} within {seq - 59} messages" in caplog.text
        assert "what was learnt on the daemon is not in them" in caplog.text
        assert adapter.summary["diverging"] == 0
        network = FixedNetwork()
        network.state[0]["tick"] = tick
        network.run(rows)
        np.testing.assert_array_equal(peer.board.state, network.state)


def test_a_line_that_damages_what_loads_the_board_loses_it_and_the_process_can_be_ended(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        peer.incoming = lambda index, data: flipped(data) if len(data) > 60 else [data]
        for row in stimuli(10):
            publisher.say(row)
        adapter.wait_for("board_lost")
        adapter.wait_for_ticks(10)
        adapter.__exit__()
        assert adapter.error is None


def test_a_board_that_is_unplugged_and_back_goes_on_where_the_twin_is(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(160)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows[:50]:
            publisher.say(row)
        adapter.wait_for_ticks(50)
        peer.unplug()
        adapter.wait_for("board_lost")
        for row in rows[50:100]:
            publisher.say(row)
        adapter.wait_for_ticks(100)
        peer.reset()
        peer.plug_in()
        adapter.wait_for("reconnects")
        for row in rows[100:]:
            publisher.say(row)
        adapter.wait_for_ticks(160)
        assert adapter.summary["diverging"] == 0
        assert adapter.summary["compared"] >= 110
        assert adapter.summary["unanswered"] == 160 - adapter.summary["compared"]
        network = FixedNetwork()
        network.run(rows)
        np.testing.assert_array_equal(peer.board.state, network.state)


def test_a_board_that_was_reset_is_loaded_again_and_nothing_differs(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(120)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        for row in rows[:60]:
            publisher.say(row)
        adapter.wait_for_ticks(60)
        peer.reset()
        for row in rows[60:]:
            publisher.say(row)
        adapter.wait_for_ticks(120)
        assert adapter.adapter.all_counts()["resets"] == 1
        assert (adapter.summary["compared"], adapter.summary["diverging"]) == (120, 0)


def test_without_reconnecting_a_lost_board_ends_it(publisher: Publisher, running: Start, tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, reconnect_s=0.0)
        peer.unplug()
        assert isinstance(adapter.wait_for_end(), AdapterLostError)


@pytest.mark.parametrize("first", [0, 1234, 2**32 - 20])
def test_over_siliconbridge_the_board_is_compared_in_what_it_tells_whenever_it_joins(
    first: int, publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(80)
    publisher.tick = publisher.seq = first
    with Peer(tmp_path, BridgeBoard(FixedNetwork().state)) as peer:
        adapter = running(peer.path, fpga={"protocol": "siliconbridge", "baud": 3_000_000})
        for row in rows[:40]:
            publisher.say(row)
        adapter.wait_for_ticks(40)
        assert (adapter.summary["compared"], adapter.summary["diverging"]) == (40, 0)
        peer.board.state[0]["v"][:14] ^= 1 << 15  # those that rest forget it
        for row in rows[40:]:
            publisher.say(row)
        adapter.wait_for_ticks(80)
        assert adapter.summary["first_divergence"]["tick"] == first + 40


def test_over_siliconbridge_a_board_that_is_back_learns_by_the_factor_in_force(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    config = session(PUBLISHED + LEARNING)
    publisher.modulation = modulation(config.network)
    publisher.modulation[4] = 3 / 256
    rows = stimuli(80)
    with Peer(tmp_path, BridgeBoard(FixedNetwork(config.network).state)) as peer:
        adapter = running(peer.path, session=config, fpga={"protocol": "siliconbridge", "baud": 3_000_000})
        for row in rows[:40]:
            publisher.say(row)
        adapter.wait_for_ticks(40)
        peer.unplug()
        adapter.wait_for("board_lost")
        peer.reset()
        peer.plug_in()
        adapter.wait_for("reconnects")
        for row in rows[40:]:
            publisher.say(row)
        adapter.wait_for_ticks(80)
        assert adapter.adapter.mirror is not None
        for state in (peer.board.state, adapter.adapter.mirror.state):
            assert state[0]["learning_factor"] == 3 << 16
        assert (adapter.summary["compared"], adapter.summary["diverging"]) == (80, 0)


def test_over_siliconbridge_a_board_that_is_back_before_another_daemons_first_step_begins_with_it(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(40)
    with Peer(tmp_path, BridgeBoard(FixedNetwork().state)) as peer:
        adapter = running(peer.path, fpga={"protocol": "siliconbridge", "baud": 3_000_000})
        for row in rows[:20]:
            publisher.say(row)
        adapter.wait_for_ticks(20)
        peer.unplug()
        adapter.wait_for("board_lost")
        publisher.seq = publisher.tick = 0
        publisher.say(rows[0], wire.Flag.FILLER)
        adapter.wait_for("daemon_restarts")
        peer.reset()
        peer.plug_in()
        adapter.wait_for("reconnects")
        for row in rows[20:]:
            publisher.say(row)
        adapter.wait_for_ticks(40)
        assert adapter.summary["diverging"] == 0


# -- offload


def masks(rows: NDArray[np.float32]) -> list[int]:
    """Return what the network of defaults fires, bit i = channel i."""
    return [int(mask) for mask in FixedNetwork().run(rows) @ (1 << np.arange(16))]


def test_as_the_network_the_board_gives_its_spikes_back_and_nothing_while_it_is_away(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(150)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, mode="offload", session=parse(PUBLISHED + OFFLOAD))
        for row in rows[:50]:
            publisher.say(row)
        adapter.wait_for_ticks(50)
        peer.unplug()
        adapter.wait_for("board_lost")
        for row in rows[50:100]:
            publisher.say(row)
        adapter.wait_for_ticks(100)
        peer.plug_in()
        adapter.wait_for("reconnects")
        for row in rows[100:]:
            publisher.say(row)
        adapter.wait_for_ticks(150)
        wait_until(lambda: len(publisher.of(wire.BoardInput)) == 100, "answers")
        expected = masks(rows)
        assert any(expected)
        assert publisher.of(wire.BoardInput) == [
            wire.BoardInput(k, expected[k], checked=True) for k in (*range(50), *range(100, 150))
        ]
        assert adapter.summary["diverging"] == 0


def test_as_the_network_the_board_answers_each_step_once_across_pauses_and_stalls(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(60)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, mode="offload", session=parse(PUBLISHED + OFFLOAD))
        for k, row in enumerate(rows):
            for flag in (wire.Flag.PAUSED, wire.Flag.FILLER) if k in (20, 40) else ():
                for _ in range(5):
                    publisher.say(np.zeros(16, dtype=np.float32), flag)
            publisher.say(row)
        adapter.wait_for_ticks(60)
        wait_until(lambda: len(publisher.of(wire.BoardInput)) >= 60, "answers")
        found = publisher.of(wire.BoardInput)
        assert [(answer.tick, answer.spikes) for answer in found] == list(enumerate(masks(rows)))
        assert adapter.adapter.all_counts() == {"standing_still": 20}


def test_an_answer_that_is_lost_for_good_is_not_given_back(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(40)
    with Peer(tmp_path) as peer:
        adapter = running(
            peer.path, mode="offload", session=parse(PUBLISHED + OFFLOAD), fpga={"depth": 8, "timeout_ms": 2000.0}
        )
        for row in rows[:20]:
            publisher.say(row)
        adapter.wait_for_ticks(20)
        peer.outgoing = of_ticks(0, 1, 2, 3, change=gone)
        for row in rows[20:]:
            publisher.say(row)
        adapter.wait_for_ticks(40)
        assert adapter.adapter.all_counts()["lost"] == 1  # an answer tells the spikes of three before it
        wait_until(lambda: len(publisher.of(wire.BoardInput)) == 39, "answers")
        expected = masks(rows)
        assert all(answer.spikes == expected[answer.tick] for answer in publisher.of(wire.BoardInput))


def test_a_board_that_differs_from_the_twin_is_the_network_no_longer(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = stimuli(60)
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, mode="offload", session=parse(PUBLISHED + OFFLOAD))
        for row in rows[:30]:
            publisher.say(row)
        adapter.wait_for_ticks(30)
        peer.board.state[0]["v"][:14] ^= 1 << 15  # those that rest forget it
        for row in rows[30:]:
            publisher.say(row)
        adapter.wait_for_ticks(60)
        wait_until(lambda: len(publisher.of(wire.BoardInput)) >= 30, "answers")
        wait_until(lambda: [e for e in publisher.of(wire.EventInput) if "diverging" in e.value], "an event")
        assert [answer.tick for answer in publisher.of(wire.BoardInput)] == list(range(30))


# -- what is refused


@pytest.mark.parametrize("protocol", ["neuromod", "siliconbridge"])
def test_answers_say_whether_their_link_has_a_checksum(
    protocol: str, publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    board = BridgeBoard(FixedNetwork().state) if protocol == "siliconbridge" else None
    with Peer(tmp_path, board) as peer:
        fpga = {"protocol": protocol, "baud": 3_000_000}
        running(peer.path, mode="offload", session=parse(PUBLISHED + OFFLOAD), fpga=fpga)
        for row in stimuli(5):
            publisher.say(row)
        wait_until(lambda: len(publisher.of(wire.BoardInput)) == 5, "answers")
        assert {answer.checked for answer in publisher.of(wire.BoardInput)} == {protocol == "neuromod"}


def test_a_link_that_is_too_slow_is_refused_when_the_daemon_says_how_fast_it_is(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, fpga={"baud": 115_200, "depth": 2})
        publisher.say(stimuli(1)[0])
        error = adapter.wait_for_end()
        assert isinstance(error, ConfigError)
        assert "carries 160 ticks/s" in str(error)
        assert "the session has 1000: set 921600 baud on both sides, or give --decimate auto" in str(error)


@pytest.mark.parametrize("first", [0, 777])
def test_at_the_baud_rate_of_siliconbridge_a_board_looks_on_at_1_khz_in_longer_steps(
    first: int, publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = (np.round(stimuli(60)) * 6 / 16).astype(np.float32)  # whose means over six are whole in Q8.8
    network = FixedNetwork(dt_ms=6.0)
    publisher.tick = first
    with Peer(tmp_path, BridgeBoard(network.state)) as peer:
        adapter = running(peer.path, fpga={"protocol": "siliconbridge", "decimate": "auto"})
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(10)
        summary = adapter.summary
        assert (summary["baud"], summary["decimation"], summary["step_ms"]) == (115_200, 6, 6.0)
        assert (summary["compared"], summary["diverging"]) == (10, 0)
        assert summary["agreement_with_daemon"] is None
        assert network.run(rows.reshape(10, 6, 16).mean(axis=1)).any()
        for name in ("v", "spikes", "since_spike", "refractory_left"):
            np.testing.assert_array_equal(peer.board.state[0][name], network.state[0][name])


def test_decimated_the_board_is_a_network_of_longer_steps_on_means(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    rows = np.round(stimuli(40) * 16) / 16
    with Peer(tmp_path) as peer:
        adapter = running(peer.path, fpga={"decimate": 4})
        publisher.step_ms = 0.25
        publisher.modulation[4] = 2.0**-20
        for row in rows:
            publisher.say(row)
        adapter.wait_for_ticks(10)
        assert (adapter.summary["decimation"], adapter.summary["step_ms"]) == (4, 1.0)
        assert adapter.summary["diverging"] == 0
        network = FixedNetwork(dt_ms=1.0)
        network.run(rows.reshape(10, 4, 16).mean(axis=1))
        np.testing.assert_array_equal(peer.board.state[0]["v"], network.state[0]["v"])
        assert peer.board.state[0]["learning_factor"] == 4 * 2**4


def test_a_step_that_changes_is_refused(publisher: Publisher, running: Start, tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        publisher.say(stimuli(1)[0])
        adapter.wait_for_ticks(1)
        publisher.step_ms = 0.5
        publisher.say(stimuli(1)[0])
        error = adapter.wait_for_end()
        assert isinstance(error, ConfigError)
        assert "tick 1 of the daemon is a step of 0.5 ms, and the images are for 1:" in str(error)


def test_a_daemon_that_does_not_tell_enough_or_speaks_another_version_is_refused(
    publisher: Publisher, running: Start, tmp_path: Path
) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        publisher.modulation, publisher.step_ms = np.full(5, np.nan), np.nan
        publisher.say(stimuli(1)[0])
        assert "does not say what modulated its ticks" in str(adapter.wait_for_end())
        other = running(peer.path)
        body = bytearray(wire.pack_stimuli(wire.StimuliMessage(0, 0, stimuli(1)[0])))
        body[3] += 1
        publisher.raw(bytes(body))
        assert isinstance(other.wait_for_end(), wire.MessageError)


def test_modulation_that_no_register_holds_is_refused(publisher: Publisher, running: Start, tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        adapter = running(peer.path)
        publisher.modulation[0] = 300.0
        publisher.say(stimuli(1)[0])
        error = adapter.wait_for_end()
        assert isinstance(error, FixedPointError)
        assert "input_gain" in str(error)


def test_a_board_that_is_not_there_is_refused_before_the_daemon_hears_of_it(
    publisher: Publisher, tmp_path: Path
) -> None:
    config = AdapterConfig.model_validate(
        {"fpga": {"port": str(tmp_path / "nothing")}, "output": publisher.output, "ingest": publisher.ingest}
    )
    with pytest.raises(AdapterError, match=r"there is no .*nothing"):
        FpgaAdapter(config).run(lambda: False)
    assert publisher.of(wire.AliveInput) == []


OFFLOAD = "[offload]\ndelay_ticks = 2\n"

STIMULATING = """
[stimulation]
mode = "live"
key_file = "/nowhere/key"
ledger = "/nowhere/ledger"
""" + ONE_PROGRAM.partition("[[stimulation.triggers]]")[0]


def adapter_config(mode: str = "mirror", **fpga: Any) -> AdapterConfig:
    return AdapterConfig.model_validate({"fpga": {"port": "/dev/ttyUSB1"} | fpga, "mode": mode})


@pytest.mark.parametrize(
    "config, text, words",
    [
        (adapter_config(), 'source = "zmq"\n', r"set stimuli = true and spikes = \"every\" under \[publish\]"),
        (adapter_config(), PUBLISHED + 'spikes = "spiking"\n', r"set stimuli = true and spikes = \"every\""),
        (adapter_config("offload", decimate=2), PUBLISHED + OFFLOAD, "leave decimate to mode mirror"),
        (adapter_config("offload"), PUBLISHED, r"add \[offload\] with delay_ticks to the session"),
        (adapter_config(), PUBLISHED + OFFLOAD, "give --mode offload, or remove the section"),
        (
            adapter_config("offload", protocol="siliconbridge"),
            PUBLISHED + OFFLOAD + STIMULATING,
            "stimulation.mode is live, and SiliconBridge has no checksum",
        ),
    ],
)
def test_a_session_that_cannot_have_such_a_board_is_refused(config: AdapterConfig, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_session(config, parse(text))


def test_a_network_that_hardware_has_not_is_refused_by_name() -> None:
    text = PUBLISHED + "[network.channels.3]\nmodel = 'izhikevich'\n"
    with pytest.raises(FixedPointError, match="channel 3 is izhikevich, expected lif or lapicque"):
        check_session(adapter_config(), parse(text))


def test_a_checksum_lets_a_board_be_the_network_of_a_session_that_stimulates() -> None:
    check_session(adapter_config("offload"), parse(PUBLISHED + OFFLOAD + STIMULATING))
    check_session(adapter_config("mirror", protocol="siliconbridge"), parse(PUBLISHED + STIMULATING))
    dry = STIMULATING.replace('"live"', '"dry_run"')
    check_session(adapter_config("offload", protocol="siliconbridge"), parse(PUBLISHED + OFFLOAD + dry))


# -- with real daemons


@pytest.mark.compiled_loop
def test_beside_a_daemon_the_board_follows_its_network_and_mostly_fires_as_it_does(tmp_path: Path) -> None:
    # within what Q8.16 holds: stronger ones saturate there, and the two networks are not the same then; and without
    # recurrence, with which either network would be chaotic, and agree with the other no more than by chance
    rows = np.random.default_rng(0).uniform(0.0, 3.0, (300, 16)).astype(np.float32)
    with (
        Peer(tmp_path) as peer,
        RunningDaemon(session(PUBLISHED + LEARNING + NO_RECURRENCE)) as daemon,
        Running(
            peer.path,
            daemon.daemon.addresses["output"],
            daemon.daemon.addresses["ingest"],
            session=session(PUBLISHED + LEARNING + NO_RECURRENCE),
        ) as adapter,
    ):
        client, before = daemon.client, 0
        while adapter.adapter.mirror is None:  # nobody tells when a subscription has arrived
            client.send_stimuli(rows[0])
            before += 1
            daemon.records.wait_for(before)
        for k, row in enumerate(rows):
            if k == 100:
                client.send_modulators(dopamine=0.5, cortisol=0.3, acetylcholine=0.4)
            if k == 150:
                client.send_reward(0.5)
            if k == 200:
                daemon.records.wait_for(before + k)  # commands come another way, and what a pause finds moves nothing
                client.request("pause")
                client.request("resume")
            client.send_stimuli(row)
        n = daemon.records.wait_for(before + 300)["tick"][-1] + 1
        adapter.wait_for_ticks(300)
        wait_until(lambda: int(peer.board.state[0]["tick"]) == n, "the last tick")
        wait_until(lambda: adapter.summary["agreement_with_daemon"]["ticks"] >= 300, "both told")
        summary = adapter.summary
        assert summary["diverging"] == 0
        assert summary["unanswered"] == 0
        assert set(summary["counts"]) <= {"standing_still"}
        assert summary["agreement_with_daemon"]["spikes_of_both"] > 50
        # chance is far below: some 4 % of ticks have a spike
        assert summary["agreement_with_daemon"]["agreement"] > 0.5


@pytest.mark.compiled_loop
def test_the_command_mirrors_a_running_daemon_and_sums_up_as_json(tmp_path: Path, session_file: Any) -> None:
    text = PUBLISHED + LEARNING
    path = session_file(text)
    with Peer(tmp_path) as peer, started(path) as (_, client):
        arguments = ("--config", str(path), "--output", client.output, "--ingest", client.ingest)
        with neuromod("adapter", "fpga", "--port", peer.path, *arguments, "--json") as child:
            child.wait_for_line("board at .* mirror; Ctrl-C stops")
            row = stimuli(1)[0]

            def has_run() -> bool:
                client.send_stimuli(row)
                return peer.n_in > 200  # with some thirty frames that load it

            wait_until(has_run, "ticks")
            code, _ = child.end(signal.SIGTERM)
        summary = json.loads("\n".join(child.lines["out"]))
        assert code == 0
        assert summary["compared"] >= 100
        assert summary["diverging"] == 0
        assert summary["modelled_wire_us"]["out"] == pytest.approx(67 * 10 / 3)


@pytest.mark.compiled_loop
@pytest.mark.parametrize("is_decimated", [True, False])
def test_the_command_looks_on_at_a_daemon_at_the_baud_rate_of_siliconbridge_or_says_what_would(
    is_decimated: bool, tmp_path: Path, session_file: Any
) -> None:
    path = session_file(PUBLISHED)
    image = FixedNetwork(session(PUBLISHED).network, dt_ms=6.0).state
    arguments = ["--protocol", "siliconbridge", *(["--decimate", "auto"] if is_decimated else [])]
    with Peer(tmp_path, BridgeBoard(image)) as peer, started(path) as (_, client):
        sockets = ("--config", str(path), "--output", client.output, "--ingest", client.ingest)
        with neuromod("adapter", "fpga", "--port", peer.path, *arguments, *sockets) as child:
            child.wait_for_line("mirror; Ctrl-C stops")
            n_before, row = peer.n_in, stimuli(1)[0]

            def has_run() -> bool:
                client.send_stimuli(row)
                # 64 reads and two writes load it
                return peer.n_in > n_before + 100 or child.popen.poll() is not None

            wait_until(has_run, "ticks")
            code, _ = child.end(signal.SIGTERM)
    if is_decimated:
        assert code == 0
        assert re.search(r"\d\d ticks of the board compared with the twin: no difference", child.errors)
        assert "6 ticks of the session made one of the board's, of 6 ms: a network of longer steps" in child.errors
        assert "spikes agree" not in child.errors
    else:
        assert code == 2
        assert "the session has 1000: set 921600 baud on both sides, or give --decimate auto" in child.errors


def test_the_command_says_what_is_wrong_and_ends_with_two(tmp_path: Path) -> None:
    with neuromod("adapter", "fpga", "--port", str(tmp_path / "nothing")) as child:
        code, _ = child.end(timeout_s=60.0)
    assert code == 2
    assert "neuromod: there is no " in child.errors
    assert "compared" not in child.errors  # nothing began
    assert "check that the board is plugged in" in child.errors


@pytest.mark.compiled_loop
def test_a_daemon_publishes_the_spikes_of_a_board_behind_a_line() -> None:
    config = session(PUBLISHED + OFFLOAD)
    rows = stimuli(120)
    with (
        SimulatedBoard(words=to_words(FixedNetwork().state)) as board,
        RunningDaemon(config) as daemon,
        Running(
            board.path,
            daemon.daemon.addresses["output"],
            daemon.daemon.addresses["ingest"],
            session=config,
            mode="offload",
            alive_hz=0.001,
        ) as adapter,
    ):
        listener = daemon.listen("spikes")
        sent: list[NDArray[np.float32]] = []

        def inputs() -> int:
            return int(daemon.health["counters"]["inputs"])

        def send(row: NDArray[np.float32]) -> None:
            sent.append(row)
            daemon.client.send_stimuli(row)
            daemon.records.wait_for(len(sent))

        while (mirror := adapter.adapter.mirror) is None:  # nobody tells when a subscription has arrived
            send(np.zeros(16, dtype=np.float32))
        wait_until(lambda: int(mirror.state[0]["tick"]) == len(sent), "the answers to these")
        for row in rows:
            before = inputs()
            send(row)
            wait_until(lambda before=before: inputs() > before, "the answer")  # type: ignore[misc]
        messages = listener.spikes(len(sent))
        expected = FixedNetwork().run(np.array(sent))
        first = len(sent) - len(rows)
        for message in messages[first + 2 :]:
            np.testing.assert_array_equal(message.spikes, expected[message.tick - 2])
            assert not message.flags & wire.Flag.BOARD
        assert expected[first:].any()
        assert adapter.summary["diverging"] == 0
        agreement = adapter.summary["agreement_with_daemon"]
        assert agreement["equal_ticks"] == agreement["ticks"] > 100


def test_a_name_leaves_room_for_what_its_events_are_called() -> None:
    longest = wire.MAX_NAME_CHARACTERS - len(".faults")
    raw = {"fpga": {"port": "/dev/ttyUSB1"}, "name": "x" * longest}
    wire.pack_ingest(wire.EventInput(AdapterConfig.model_validate(raw).name + ".faults", 0.0, {}))
    with pytest.raises(ValueError, match="at most 249"):
        AdapterConfig.model_validate(raw | {"name": "x" * (longest + 1)})
