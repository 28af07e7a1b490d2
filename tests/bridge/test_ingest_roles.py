"""Each message of ingest by the key of who sent it: over true CURVE sockets, read by compiled code and by Python."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import FREE_PORTS, ONE_PROGRAM, WAIT_S, wait_until

from neuromod.bridge import keys, native, wire
from neuromod.bridge.client import Client
from neuromod.bridge.config import parse
from neuromod.bridge.loop_state import EVERY_ROLE as EVERY_MASK
from neuromod.bridge.loop_state import ROLE_FEED, ROLES_AT, TURNS
from neuromod.bridge.roles import EVERY_ROLE, INGEST_ROLES, Role, Sender
from neuromod.bridge.service import Daemon

pytestmark = pytest.mark.compiled_loop

STIMULATION = '[decoder]\nkind = "rates"\nchannels = [0]\nevents = [{channel = 0}]\n[stimulation]\nmode = "dry_run"\n'
ROLES = {"hand": Role.FEED, "doctor": Role.STIMULATE, "boss": Role.CONTROL, "all": EVERY_ROLE}

MESSAGES: dict[str, wire.IngestMessage] = {
    "stimuli": wire.StimuliInput(np.ones(16, np.float32)),
    "modulators": wire.ModulatorsInput({"dopamine": 0.5}),
    "reward": wire.RewardInput(0.5),
    "stress": wire.StressInput(0.5),
    "alive": wire.AliveInput("anybody"),
    "heartbeat": wire.HeartbeatInput(7),
    "stimulate": wire.StimulateInput("pulse"),
    "stop": wire.StopInput(),
    "event": wire.EventInput("reached"),
}
FEED = {"stimuli", "modulators", "reward", "stress"}
ALLOWED = {
    "hand": FEED | {"alive", "event", "stop"},
    "doctor": {"heartbeat", "stimulate", "alive", "event", "stop"},
    "boss": {"alive", "event", "stop"},
}


class Guarded:
    """A daemon with keys and a client for each."""

    def __init__(self, folder: Path, loop: str) -> None:
        keys.init_folder(folder / "keys")
        files = {name: keys.new_client(folder / "keys", name, roles) for name, roles in ROLES.items()}
        self.daemon = Daemon(
            parse(
                f'source = {{kind = "zmq", block_ms = 1.0}}\nruntime = {{loop = "{loop}"}}\n{STIMULATION}{ONE_PROGRAM}'
                f'{FREE_PORTS}[security]\nkeys = "{folder / "keys"}"\n[publish]\nhealth_s = 0.1\n'
            )
        )
        self.daemon.open()
        addresses: Any = self.daemon.addresses
        self.clients = {name: Client(**addresses, key=file, timeout_s=WAIT_S) for name, file in files.items()}
        self.judged: list[tuple[bytes, str | None]] = []
        judge = self.daemon.collector.judge

        def judge_and_keep(topic: bytes, payload: bytes, user_id: str | None = None) -> None:
            self.judged.append((topic, user_id))
            judge(topic, payload, user_id)

        self.daemon.collector.judge = judge_and_keep  # type: ignore[method-assign]

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.daemon.close()
        assert self.daemon.failure is None

    def refused(self, reason: str = "role") -> int:
        return int(self.daemon.collector.errors().get(reason, 0))

    @property
    def dopamine(self) -> float:
        return float(self.daemon.assembly.network.modulators.dopamine)

    @property
    def turns(self) -> int:
        """How often the loop came round."""
        return int(native.get_word(self.daemon.loop.block[0]["shared"], TURNS))

    def counted(self, name: str) -> int:
        return int(self.daemon.collector.counters()[name])


@pytest.fixture(scope="module", params=["compiled", "python"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    found = Guarded(tmp_path_factory.mktemp("guarded"), request.param)
    with contextlib.closing(found):
        yield found


def test_compiled_code_reads_roles_as_python_writes_them() -> None:
    assert int(EVERY_ROLE) == EVERY_MASK
    assert int(Role.FEED) == ROLE_FEED
    assert ord(Sender("x", Role.FEED).user_id[0]) - ROLES_AT == ROLE_FEED
    # all that compiled code lets act by itself, apart from a stop, needs the one role that it looks for
    assert {topic for topic, roles in INGEST_ROLES.items() if roles == Role.FEED} == {
        wire.TOPIC_STIMULI, wire.TOPIC_MODULATORS, wire.TOPIC_REWARD, wire.TOPIC_STRESS, wire.TOPIC_BOARD,
    }  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_a_message_without_the_role_for_it_never_acts_and_is_counted(guarded: Guarded, name: str) -> None:
    wrong = {topic: message for topic, message in MESSAGES.items() if topic not in ALLOWED[name]}
    ticks, inputs, refused, dopamine = (
        guarded.counted("ticks"), guarded.counted("inputs"), guarded.refused(), guarded.dopamine,
    )  # fmt: skip

    for message in wrong.values():
        guarded.clients[name].send(message)

    wait_until(lambda: guarded.refused() == refused + len(wrong), "refusals")
    assert (guarded.counted("ticks"), guarded.counted("inputs")) == (ticks, inputs)
    assert guarded.dopamine == dopamine


@pytest.mark.parametrize("name", ALLOWED)
def test_a_message_with_the_role_for_it_acts(guarded: Guarded, name: str) -> None:
    def n_taken() -> int:  # where stimuli are the source, one is a sample
        return guarded.counted("samples") + guarded.counted("inputs") + len(guarded.judged)

    refused, before = guarded.refused(), n_taken()
    for topic in ALLOWED[name]:
        guarded.clients[name].send(MESSAGES[topic])

    wait_until(lambda: n_taken() >= before + len(ALLOWED[name]), "all of them")
    if name == "hand":
        wait_until(lambda: guarded.dopamine != 0.0, "the reward")
    assert guarded.refused() == refused


def test_what_python_judges_comes_with_the_user_id_of_its_sender(guarded: Guarded) -> None:
    for name in ROLES:
        guarded.clients[name].send(MESSAGES["event"])

    expected = {(wire.TOPIC_EVENT, Sender(name, roles).user_id) for name, roles in ROLES.items()}
    wait_until(lambda: expected <= set(guarded.judged), "events of all")


@pytest.mark.parametrize("guarded", ["compiled"], indirect=True)
def test_a_flood_waits_in_the_socket_until_the_record_has_caught_up(guarded: Guarded) -> None:
    n, before, lost = 5000, guarded.counted("ingest_messages"), guarded.counted("echoes_overflow")

    def is_still() -> bool:
        read, turns = guarded.counted("ingest_messages"), guarded.turns
        wait_until(lambda: guarded.turns > turns + 20, "turns of the loop")
        return guarded.counted("ingest_messages") == read > before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded.daemon.collector, "turn", lambda: None)
        for _ in range(n):
            guarded.clients["hand"].send(MESSAGES["reward"])
        wait_until(is_still, "the loop to leave the rest")
        held = guarded.counted("ingest_messages")
    wait_until(lambda: guarded.counted("ingest_messages") == before + n, "all of it")

    assert held < before + n
    assert guarded.counted("echoes_overflow") == lost


@pytest.mark.parametrize("guarded", ["compiled"], indirect=True)
def test_a_message_of_very_many_parts_is_read_a_few_at_a_time(guarded: Guarded) -> None:
    n, before, refused, turns = 100_000, guarded.counted("ingest_messages"), guarded.refused("parts"), guarded.turns
    hand = guarded.clients["hand"]
    hand.send(MESSAGES["event"])  # which connects
    assert hand._push is not None
    hand._push.send_multipart([wire.TOPIC_REWARD, *[b""] * n])
    hand.send(MESSAGES["event"])
    wait_until(lambda: guarded.counted("ingest_messages") == before + 3, "what was sent behind it")

    assert guarded.refused("parts") == refused + 1
    assert guarded.turns - turns >= n / 16


def test_the_log_names_who_sent_it_once_a_health_however_often(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(50):
        guarded.clients["boss"].send(MESSAGES["reward"])
    said = "'boss' sent 'reward', which needs the role feed"
    wait_until(lambda: any(said in message for message in caplog.messages), "the line")
    assert sum(said in message for message in caplog.messages) < 25
