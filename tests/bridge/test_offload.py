"""A board outside is the network: its answers are published, and a board that does not answer is a fault."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from harness import FREE_PORTS, MEMORY, ONE_PROGRAM, GatedSource, Running, session, wait_until
from numpy.typing import NDArray

from neuromod.adapters.actuators.base import Command
from neuromod.bridge import wire
from neuromod.bridge.arming import write_key
from neuromod.bridge.assembly import assemble, stimuli_stream
from neuromod.bridge.client import RefusedError
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.offload import MODULATING
from neuromod.bridge.wire import Flag, SpikesMessage, StimuliMessage
from neuromod.engine.config import LearningConfig, NetworkConfig
from neuromod.engine.errors import ConfigError
from neuromod.engine.fixed_network import FixedNetwork, quantised_modulation
from neuromod.engine.layout import LIVE
from neuromod.engine.modulators import MODULATORS
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import modulation, set_modulator, set_parameter

pytestmark = pytest.mark.compiled_loop

ZMQ = 'source = "zmq"\n'
OFFLOAD = "[offload]\ndelay_ticks = {}\n[publish]\nstimuli = true\n"
# a busy machine makes neither silence nor a late tick: what inhibits and disarms here is the board
PATIENT = "[timing]\nstall_ms = 20000.0\nlate_ms = 10000.0\n"


def stimuli(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.0, 3.0, (n, 16)).astype(np.float32)


def offloaded(delay_ticks: int, more: str = "", source: str = ZMQ) -> SessionConfig:
    return session(source + more + OFFLOAD.format(delay_ticks))


def mask_of(spikes: NDArray[np.bool_]) -> int:
    return sum(1 << int(i) for i in np.flatnonzero(spikes))


class Board(threading.Thread):
    """A board: a peer with sockets of its own, which steps a fixed-point twin and answers."""

    def __init__(self, addresses: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.network = FixedNetwork()
        self.network.run(np.zeros((1, 16)))  # compiled now, not later
        self.network = FixedNetwork()
        self.answers: dict[int, int] = {}
        self.heard: list[StimuliMessage] = []
        self._addresses, self._ending, self.is_listening = addresses, threading.Event(), threading.Event()

    def run(self) -> None:
        context = zmq.Context()
        sub, push = context.socket(zmq.SUB), context.socket(zmq.PUSH)
        try:
            sub.connect(self._addresses["output"])
            push.connect(self._addresses["ingest"])
            # subscriptions travel in order: when the last one works, both do
            sub.subscribe(b"stimuli")
            sub.subscribe(b"state")
            while not self._ending.is_set():
                if not sub.poll(5):
                    continue
                topic, payload = sub.recv_multipart()
                if topic == b"state":
                    self.is_listening.set()
                    continue
                message = wire.unpack_output(topic, payload)
                assert isinstance(message, StimuliMessage)
                if message.is_step:
                    self.heard.append(message)
                    words = quantised_modulation(message.modulation)
                    spikes = self.network.run(message.values[np.newaxis], words)[0]
                    self.answers[message.tick] = mask_of(spikes)
                    answer = wire.BoardInput(message.tick, self.answers[message.tick])
                    push.send_multipart(wire.pack_ingest(answer))
        finally:
            sub.close(0)
            push.close(1000)
            context.term()

    def die(self) -> None:
        """Stop, whatever is still to be answered."""
        self._ending.set()
        self.join(10.0)
        assert not self.is_alive()


@contextmanager
def answering(running: Running) -> Iterator[Board]:
    """Give a board that hears the daemon."""
    board = Board(running.daemon.addresses)
    board.start()
    try:
        wait_until(board.is_listening.is_set, "the board's subscription")
        yield board
    finally:
        board.die()


def drive(running: Running, rows: NDArray[np.float32]) -> None:
    """Send stimuli one by one, each once the answer to the one before has arrived."""
    for row in rows:
        counted = running.health["counters"]["inputs"]
        running.client.send_stimuli(row)
        wait_until(lambda counted=counted: running.health["counters"]["inputs"] > counted, "the answer")  # type: ignore[misc]


@pytest.mark.parametrize("delay_ticks", [1, 3])
def test_the_spikes_of_the_board_are_published_so_many_ticks_later(delay_ticks: int) -> None:
    n = 150
    with Running(offloaded(delay_ticks)) as running, answering(running) as board:
        listener = running.listen("spikes")
        drive(running, stimuli(n // 2))
        before = running.health["counters"]["inputs"]
        running.client.send_modulators(dopamine=0.5, cortisol=0.25)
        wait_until(lambda: running.health["counters"]["inputs"] > before, "the levels")
        drive(running, stimuli(n - n // 2, seed=1))
        messages = listener.spikes(n)
        health = running.health

    assert [mask_of(m.spikes) for m in messages[delay_ticks:]] == [board.answers[k] for k in range(n - delay_ticks)]
    assert any(board.answers.values())
    assert [bool(m.flags & Flag.BOARD) for m in messages] == [True] * delay_ticks + [False] * (n - delay_ticks)
    assert not any(m.spikes.any() for m in messages[:delay_ticks])
    assert health["board"] == {"answered": n - delay_ticks, "missing": delay_ticks, "late": 0, "unchecked": 0}
    assert (board.network.weights != FixedNetwork().weights).any()  # it learned, by what it heard
    # a host that keeps a twin of its own has the same
    again = FixedNetwork().run(
        [m.values for m in board.heard], quantised_modulation([m.modulation for m in board.heard])
    )
    assert [mask_of(row) for row in again] == [board.answers[k] for k in range(n)]


def test_a_board_keeps_up_with_a_source_that_waits_for_nobody() -> None:
    n, delay = 400, 64
    source = GatedSource(stimuli(n), 1000.0, kind="features")
    with Running(offloaded(delay, source=MEMORY), source=source, speed=0.2) as running, answering(running) as board:
        listener = running.listen("spikes")
        source.let_go()
        messages = listener.spikes(n)
        wait_until(lambda: len(board.answers) == n, "the last answer")
        counted = running.health["board"]

    known = [m for m in messages if not m.flags & Flag.BOARD]
    assert len(known) == counted["answered"] > n // 2  # all but 64, where nothing takes a third of a second
    assert all(mask_of(m.spikes) == board.answers[m.tick - delay] for m in known)
    assert not any(m.spikes.any() for m in messages if m.flags & Flag.BOARD)


STIMULATES = (
    'decoder = {kind = "rates", channels = [0, 1], tau_ms = 50.0, events = [{channel = 0, refractory_ms = 5.0}]}\n'
    + ZMQ
)


def test_a_board_that_dies_is_flagged_inhibits_commands_and_disarms() -> None:
    config = parse(
        STIMULATES
        + PATIENT
        + "[stimulation]\nheartbeat_ms = 20000.0\n"
        + ONE_PROGRAM
        + OFFLOAD.format(2)
        + "state_hz = 100\nhealth_s = 0.1\n"
        + FREE_PORTS
    )
    n, extra = 40, 10
    with Running(config) as running:
        listener = running.listen("spikes", "command")
        with answering(running) as board:
            drive(running, stimuli(n))
            running.client.arm(60.0)
            drive(running, stimuli(n, seed=1))
            assert running.health["stimulation"]["state"] == "armed"
        for row in stimuli(extra, seed=2):
            running.client.send_stimuli(row)
        messages = listener.spikes(2 * n + extra)
        listener.until(lambda: len(listener.of(Command)) == len(messages), "commands")
        health = running.wait_for_health(lambda h: h["stimulation"]["state"] == "disarmed", "the end of the arming")
        commands = listener.of(Command)
        records = running.records.wait_for(len(messages))

    # the answers to the last two ticks had come
    missing = [k < 2 or k >= 2 * n + 2 for k in range(len(messages))]
    assert [bool(m.flags & Flag.BOARD) for m in messages] == missing
    assert [bool(c.flags & Flag.INHIBITED) for c in commands] == missing
    assert all(not c.values.any() and not c.events for c, gone in zip(commands, missing, strict=True) if gone)
    assert health["stimulation"]["disarmed_by"] == "board"
    assert health["board"] == {"answered": 2 * n, "missing": 2 + extra - 2, "late": 0, "unchecked": 0}
    assert len(board.answers) == 2 * n
    assert records["events"].any()  # of the board's spikes


def test_no_arming_while_the_board_does_not_answer() -> None:
    config = parse(STIMULATES + PATIENT + "[stimulation]\n" + ONE_PROGRAM + OFFLOAD.format(1) + FREE_PORTS)
    with Running(config) as running:
        running.client.send_stimuli(stimuli(1)[0])
        running.wait_for_ticks(1)
        with pytest.raises(RefusedError, match="has not answered in time"):
            running.client.arm(60.0)


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_answers_in_every_form_count_once_and_what_is_none_is_refused(loop: str) -> None:
    row = stimuli(1)[0]
    with Running(offloaded(2, f'[runtime]\nloop = "{loop}"\n')) as running:
        client = running.client

        def push(body: Any, topic: bytes = b"board") -> None:
            before = sum(running.health["errors"].values()) + running.health["counters"]["inputs"]
            assert client._push is not None
            client._push.send_multipart([topic, body if isinstance(body, bytes) else msgpack.packb(body)])
            wait_until(
                lambda: sum(running.health["errors"].values()) + running.health["counters"]["inputs"] > before,
                "the message",
            )

        listener = running.listen("spikes")
        client.send_stimuli(row)
        listener.spikes(1)
        push({"tick": 0, "spikes": 5})
        push({"spikes": 7, "tick": 0})  # twice
        push({"tick": 1, "spikes": 5})  # to come
        client.send_stimuli(row)
        listener.spikes(2)
        push(b"\x82\xa4tick\xd0\x01\xa6spikes\xd1\x00\x03")  # signed: read by Python
        for _ in range(2):
            client.send_stimuli(row)
        messages = listener.spikes(4)
        push({"tick": 1, "spikes": 9})  # past
        assert running.health["board"] == {"answered": 2, "missing": 2, "late": 3, "unchecked": 0}
        for bad in (
            {"tick": 2, "spikes": 65536},
            {"tick": -1, "spikes": 1},
            {"tick": 2.0, "spikes": 1},
            {"tick": 2, "spikes": True},
            {"tick": 2},
            {"tick": 2, "spikes": 1, "t": 0.5},
            [2, 1],
            b"\x82\xa4tick",
            bytes(5000),
        ):
            push(bad)
        assert running.health["errors"] == {
            "range": 2,
            "type": 3,
            "missing_key": 1,
            "unknown_key": 1,
            "msgpack": 1,
            "oversized": 1,
        }
        assert running.health["board"] == {"answered": 2, "missing": 2, "late": 3, "unchecked": 0}

    assert [mask_of(m.spikes) for m in messages] == [0, 0, 5, 3]
    assert [bool(m.flags & Flag.BOARD) for m in messages] == [True, True, False, False]


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_where_stimulation_is_sent_only_answers_over_a_link_with_a_checksum_count(loop: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    write_key(key)
    live = f'mode = "live"\nkey_file = "{key}"\nledger = "{tmp_path / "dose.json"}"\nheartbeat_ms = 20000.0\n'
    text = f'[runtime]\nloop = "{loop}"\n{PATIENT}[stimulation]\n' + live + ONE_PROGRAM
    rows = stimuli(6)
    with Running(parse(STIMULATES + text + OFFLOAD.format(1) + FREE_PORTS)) as running:
        client, listener = running.client, running.listen("spikes")
        for k, checked in enumerate([True, True, False, True, None]):
            client.send_stimuli(rows[k])
            listener.spikes(k + 1)
            if k == 2:
                client.arm(60.0, key.read_bytes().strip())
            counted = running.health["counters"]["inputs"]
            if checked is not None:
                client.send_board(k, 1 << k, checked)
            else:  # signed: read by Python
                assert client._push is not None
                client._push.send_multipart([b"board", bytes([0x82, 0xA4, *b"tick", 0xD0, k, 0xA6, *b"spikes", 1])])
            wait_until(lambda n=counted: running.health["counters"]["inputs"] > n, "the answer")  # type: ignore[misc]
        client.send_stimuli(rows[5])
        messages = listener.spikes(6)
        health = running.health

    assert [mask_of(m.spikes) for m in messages] == [0, 1, 2, 0, 8, 0]
    assert [bool(m.flags & Flag.BOARD) for m in messages] == [True, False, False, True, False, True]
    assert health["board"] == {"answered": 3, "missing": 3, "late": 0, "unchecked": 2}
    assert health["stimulation"]["disarmed_by"] == "board"


def test_a_session_whose_network_is_its_own_refuses_answers() -> None:
    with Running(session(ZMQ)) as running:
        running.client.send_board(0, 1)
        health = running.wait_for_health(lambda h: h["errors"], "the refusal")
    assert health["errors"] == {"topic": 1}
    assert health["board"] == {}


def answered(running: Running, listener: Any, rows: NDArray[np.float32], first: int, spikes: int | None) -> None:
    """Send stimuli one by one, and the answer to each tick from `first` on: `spikes` plus its number, or none."""
    for k, row in enumerate(rows, start=first):
        seen, counted = len(listener.of(SpikesMessage)), running.health["counters"]["inputs"]
        running.client.send_stimuli(row)
        listener.spikes(seen + 1)
        if spikes is not None:
            running.client.send_board(k, spikes + k)
            wait_until(lambda n=counted: running.health["counters"]["inputs"] > n, "the answer")  # type: ignore[misc]


def test_answers_of_before_a_restored_checkpoint_and_those_that_it_holds_are_not_used(tmp_path: Path) -> None:
    rows = stimuli(12)
    with Running(offloaded(2)) as running:
        client, listener = running.client, running.listen("spikes")
        answered(running, listener, rows[:4], 0, 100)
        path = client.request("checkpoint", path=str(tmp_path / "a.checkpoint"))["path"]
        answered(running, listener, rows[4:8], 4, 200)
        client.request("restore", path=path)
        answered(running, listener, rows[8:], 4, 300)
        messages = listener.spikes(12)

    assert [m.tick for m in messages[8:]] == [4, 5, 6, 7]
    assert [mask_of(m.spikes) for m in messages] == [0, 0, 100, 101, 102, 103, 204, 205, 0, 0, 304, 305]
    assert [k for k, m in enumerate(messages) if m.flags & Flag.BOARD] == [0, 1, 8, 9]


def test_answers_of_before_a_pause_drive_no_command_after_it() -> None:
    delay, rows = 4, stimuli(18)
    with Running(parse(STIMULATES + PATIENT + OFFLOAD.format(delay) + FREE_PORTS)) as running:
        client, listener = running.client, running.listen("spikes", "command")
        answered(running, listener, rows[:8], 0, 100)
        client.request("pause")
        client.request("resume")
        client.send_board(7, 9)  # the last tick before, again and late
        answered(running, listener, rows[8:12], 8, None)
        answered(running, listener, rows[12:], 12, 300)
        messages = listener.spikes(18)
        listener.until(lambda: len(listener.of(Command)) == len(messages), "commands")
        commands = listener.of(Command)

    missing = [0, 1, 2, 3, *range(8, 16)]
    assert [k for k, m in enumerate(messages) if m.flags & Flag.BOARD] == missing
    assert [k for k, c in enumerate(commands) if c.flags & Flag.INHIBITED] == missing
    assert [mask_of(m.spikes) for m in messages[4:8]] == [100, 101, 102, 103]
    assert [mask_of(m.spikes) for m in messages[16:]] == [312, 313]


def test_what_never_reaches_the_board_cannot_be_set() -> None:
    with Running(offloaded(2)) as running:
        known = running.client.request("status")["parameters"]
        for name in (
            "network.inhibition.duration_ms",
            "network.coincidence.window_ms",
            "network.coincidence.min_channels",
        ):
            with pytest.raises(RefusedError, match=rf"{name} never reaches it: nothing that is published would change"):
                running.client.request("set", parameters={"network.input_gain": 3.0, name: known[name]})
        assert running.client.request("status")["parameters"] == known  # all or none
        listener = running.listen("stimuli")
        found = running.client.request("set", parameters={"network.input_gain": 3.0, "publish.state_hz": 50.0})
        running.client.send_stimuli(stimuli(1)[0])
        listener.until(lambda: len(listener.of(StimuliMessage)) == 1, "stimuli")
    assert found["parameters"]["network.input_gain"] == 3.0
    assert listener.of(StimuliMessage)[0].modulation[0] == 3.0


def test_what_is_said_to_reach_a_board_does() -> None:
    network = SpikingNetwork(NetworkConfig(learning=LearningConfig(rule="reward")))
    set_modulator(network.state, MODULATORS.index("dopamine"), np.float32(0.5))
    before, after = np.zeros(5), np.zeros(5)
    changed = []
    for name in LIVE:
        modulation(network.state, before)
        at = LIVE.index(name)
        set_parameter(network.state, at, np.float64(network.state[0]["live"][at] * 2.0 + 1.0))
        modulation(network.state, after)
        if (before != after).any():
            changed.append(name)
    assert tuple(changed) == MODULATING


def test_a_delay_shorter_than_a_block_is_refused_once_the_length_of_a_block_is_known() -> None:
    config = parse('source = {kind = "lsl", name = "x", content = "features"}\n' + OFFLOAD.format(3))
    info = stimuli_stream(parse('source = {kind = "zmq", block_ms = 4.0}').source)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"delay_ticks is 3, but a block gives 4 ticks at once.*give at least 4"):
        assemble(config, info)
