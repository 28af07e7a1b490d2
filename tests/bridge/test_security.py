"""A daemon that asks for keys: true CURVE sockets over TCP, and who gets in, who does not, and who may do what."""

import contextlib
import itertools
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from harness import FREE_PORTS, ONE_PROGRAM, WAIT_S, wait_until

from neuromod.bridge import keys, wire
from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError
from neuromod.bridge.config import parse
from neuromod.bridge.doorkeeper import Doorkeeper
from neuromod.bridge.monitor_link import Hand
from neuromod.bridge.operator import Line, Stop
from neuromod.bridge.peer import Peer, PeerConfig
from neuromod.bridge.roles import EVERY_ROLE, Role, Sender
from neuromod.bridge.service import Daemon
from neuromod.bridge.warm import warm_loop
from neuromod.bridge.wire import EventMessage, HealthMessage, StateMessage
from neuromod.engine.errors import ConfigError

pytestmark = pytest.mark.compiled_loop

SHORT_S = 0.3  # for what is refused, and so never comes: each wait for it costs so much
STIMULATION = """
[timing]
stall_ms = 60000.0
late_ms = 1000.0
[decoder]
kind = "rates"
channels = [0]
events = [{channel = 0}]
[stimulation]
mode = "dry_run"
heartbeat_ms = 0.0
"""
ROLES = {"eye": Role.OBSERVE, "hand": Role.FEED, "doctor": Role.STIMULATE | Role.OBSERVE, "boss": Role.CONTROL}


class Guarded:
    """A daemon with keys, the files of its clients by name, and clients of it."""

    def __init__(self, tmp_path: Path, security: str = "") -> None:
        self.folder = tmp_path / "keys"
        keys.init_folder(self.folder)
        self.files = {name: keys.new_client(self.folder, name, roles) for name, roles in ROLES.items()}
        self.daemon = Daemon(
            parse(
                f'source = {{kind = "zmq", block_ms = 1.0}}\n{STIMULATION}{ONE_PROGRAM}{FREE_PORTS}'
                f'[security]\nkeys = "{self.folder}"\n{security}\n[publish]\nstate_hz = 100\nhealth_s = 0.1\n'
            )
        )

    def client(self, name: str | None, timeout_s: float = WAIT_S, **addresses: str) -> Client:
        """Return a client that has the key of this name, or none."""
        key = None if name is None else self.files[name]
        return Client(**self.daemon.addresses | addresses, key=key, timeout_s=timeout_s)

    @property
    def health(self) -> dict[str, Any]:
        """What the daemon would say of itself now."""
        body: dict[str, Any] = self.daemon.collector.health()
        return body

    def refused(self, reason: str) -> int:
        """How many connections were turned away for this reason."""
        return int(self.health["security"]["refused"].get(reason, 0))

    @property
    def strangers(self) -> int:
        """How many without a key were turned away; one that is told of keys may hang up before we say no."""
        return self.refused("no_key") + self.refused("handshake")

    def errors(self, reason: str) -> int:
        """How many messages and requests were refused for this reason."""
        return int(self.health["errors"].get(reason, 0))


@contextlib.contextmanager
def guarded(tmp_path: Path, security: str = "") -> Iterator[Guarded]:
    found = Guarded(tmp_path, security)
    with found.daemon:
        yield found
    assert found.daemon.failure is None
    assert not found.daemon.is_stuck


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A daemon for the tests that leave it as it is."""
    warm_loop()
    with guarded(tmp_path_factory.mktemp("guarded")) as found:
        yield found


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], str]:
    """Return a function that waits for a line of the log, and returns it."""
    caplog.set_level(logging.INFO)

    def wait_for(pattern: str) -> str:
        found: str = wait_until(lambda: next(filter(re.compile(pattern).search, list(caplog.messages)), ""), pattern)
        return found

    return wait_for


@contextlib.contextmanager
def stranger(kind: int, address: str, key: keys.ClientKey | None) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(kind) as opened:
        opened.linger = 0
        if key is not None:
            key.apply(opened)
        opened.connect(address)
        yield opened


def made_up(server: bytes) -> keys.ClientKey:
    return keys.ClientKey("nobody", EVERY_ROLE, *zmq.curve_keypair(), server)


# -- who gets in


def test_each_key_does_what_its_roles_are_for(shared: Guarded) -> None:
    with shared.client("eye") as eye, shared.client("hand") as hand, shared.client("boss") as boss:
        heard = eye.subscribe("event", "state")
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        hand.send_event("reached")
        wait_until(lambda: isinstance(m := heard.receive(WAIT_S), EventMessage) and m.name == "reached", "the event")
        before = shared.health["counters"]["ingest_messages"]
        hand.send_reward(1.0)
        wait_until(lambda: shared.health["counters"]["ingest_messages"] > before, "the reward")
        result = boss.request("set", parameters={"network.input_gain": 1.5})
        assert result["parameters"]["network.input_gain"] == 1.5
        assert boss.request("checkpoint", path=str(shared.folder.parent / "x.checkpoint"))["path"]
        assert eye.request("status")["health"]["security"]["clients"]["doctor"] == ["observe", "stimulate"]
        assert hand.request("version")["protocol"] == wire.PROTOCOL_VERSION


def test_who_may_stimulate_arms_holds_asks_and_disarms(shared: Guarded) -> None:
    with shared.client("doctor") as doctor, doctor.subscribe("event", "state") as heard:
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        with shared.client("hand") as hand:
            hand.send_stimuli([0.0] * 16)  # the gate lets nobody arm before there is a tick
            wait_until(lambda: shared.health["state"] == "streaming", "a tick")
        token = doctor.arm(60.0)["token"]
        doctor.send_heartbeat(token)
        assert shared.health["stimulation"]["state"] == "armed"
        before = shared.errors("session"), shared.errors("replayed")
        counted = shared.health["counters"]["ingest_messages"]
        doctor.send_stimulate("pulse")
        wait_until(lambda: shared.health["counters"]["ingest_messages"] > counted, "the request")
        doctor.request("disarm")
        assert shared.health["stimulation"]["state"] == "disarmed"
        assert (shared.errors("session"), shared.errors("replayed")) == before


def test_a_stop_is_obeyed_by_the_way_that_a_key_opens_and_said_to_fail_where_there_is_none(tmp_path: Path) -> None:
    with guarded(tmp_path) as rig:
        with rig.client("doctor") as doctor, rig.client("hand") as hand:
            hand.send_stimuli([0.0] * 16)
            wait_until(lambda: rig.health["state"] == "streaming", "a tick")
            doctor.arm(60.0)
        topics = ("stimulation", "health")
        with Line(*topics, **rig.daemon.addresses, client_key=rig.files["eye"]) as eye:
            stop = Stop(eye)
            wait_until(lambda: stop.wait(SHORT_S) or stop.forbidden, "the refusal")
            assert (stop.is_sent, stop.is_answered, stop.confirmed_by, stop.refusal) == (False, False, "", None)
            assert "disarm needs the role stimulate or control" in stop.forbidden
            assert rig.health["stimulation"]["state"] == "armed"
        with Line(*topics, **rig.daemon.addresses, client_key=rig.files["hand"]) as line:  # the message alone
            stop = Stop(line)
            wait_until(lambda: stop.wait(0.01) or (stop.is_sent and stop.forbidden), "the refusal of the command")
            wait_until(lambda: rig.health["stimulation"]["state"] == "disarmed", "the end of the arming")


def test_a_console_that_could_not_hear_the_gate_arms_nothing(shared: Guarded, tmp_path: Path) -> None:
    deaf = keys.new_client(shared.folder, "deaf", Role.STIMULATE, tmp_path / "deaf.key")
    addresses = [f"--{name}={address}" for name, address in shared.daemon.addresses.items()]
    command = [sys.executable, "-m", "neuromod.bridge.cli", "arm", f"--client-key={deaf}", *addresses]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=6 * WAIT_S)
    assert done.returncode == 2
    assert "the key of deaf is for stimulate, and the console needs observe too" in " ".join(done.stderr.split())
    assert shared.health["stimulation"]["state"] == "disarmed"


def test_the_monitor_says_that_a_key_cannot_stop(tmp_path: Path) -> None:
    with guarded(tmp_path) as rig, rig.client("doctor") as doctor, rig.client("hand") as hand:
        hand.send_stimuli([0.0] * 16)
        wait_until(lambda: rig.health["state"] == "streaming", "a tick")
        doctor.arm(60.0)
        steersman = Hand({**rig.daemon.addresses, "client_key": rig.files["eye"]})
        steersman.start()
        try:
            steersman.stop()
            word = wait_until(lambda: steersman.words and steersman.words.popleft(), "what became of the stop")
        finally:
            steersman.close()
        assert not word.is_good
        assert "THIS KEY MAY NOT STOP: SWITCH THE STIMULATOR OFF" in word.text
        doctor.request("disarm")


def test_peers_of_the_daemon_have_keys_too(shared: Guarded, tmp_path: Path) -> None:
    both = keys.new_client(shared.folder, "arm", Role.OBSERVE | Role.FEED, tmp_path / "arm.key")
    addresses = {name: shared.daemon.addresses[name] for name in ("output", "ingest")}
    peer = Peer(PeerConfig(key=both, **addresses), "arm")
    try:
        peer.connect(wire.TOPIC_HEALTH)
        wait_until(lambda: any(isinstance(m, HealthMessage) for m in peer.messages()), "health")
        before = shared.health["counters"]["ingest_messages"]
        peer.send(wire.AliveInput("arm"))
        wait_until(lambda: shared.health["counters"]["ingest_messages"] > before, "alive")
    finally:
        peer.close()


def test_a_peer_goes_to_another_host_with_a_key_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="away from loopback"):
        PeerConfig(output="tcp://10.0.0.7:5556")
    assert PeerConfig(key=tmp_path / "k", output="tcp://10.0.0.7:5556").output == "tcp://10.0.0.7:5556"


# -- who does not


def test_without_a_key_nobody_gets_in(tmp_path: Path, said: Callable[[str], str]) -> None:
    kinds = {"ingest": zmq.PUSH, "output": zmq.SUB, "control": zmq.DEALER}
    with guarded(tmp_path) as rig:  # whose log has told of nobody yet
        for name, kind in kinds.items():
            before = rig.strangers
            with stranger(kind, rig.daemon.addresses[name], None):
                said(rf"refused: a client at \S.* (came without a key|broke off).*, and may not connect to {name}")
            assert rig.strangers > before


def test_a_client_without_a_key_is_told_what_may_be(shared: Guarded) -> None:
    with shared.client(None, SHORT_S) as client, pytest.raises(ClientTimeoutError, match="or it asks for a key"):
        client.request("status")


@pytest.mark.parametrize("name", ["ingest", "output", "control"])
@pytest.mark.parametrize(
    "said_first",
    [b"GET / HTTP/1.1\r\n\r\n" * 8, b"\x01\x00\x07\x00reward", b"\xff" + bytes(8) + b"\x7f\x01\x08\x00\x00"],
    ids=["http", "zmtp 1", "zmtp 2"],
)
def test_who_speaks_another_protocol_is_counted_and_who_leaves_is_not(
    shared: Guarded, name: str, said_first: bytes
) -> None:
    wait_until(lambda: not shared.health["security"]["connections"], "those of other tests to leave")
    before = shared.refused("handshake")
    with shared.client("doctor") as doctor:
        assert doctor.request("status")
    wait_until(lambda: not shared.health["security"]["connections"], "its leaving")
    assert shared.refused("handshake") == before
    address = ("127.0.0.1", int(shared.daemon.addresses[name].rpartition(":")[2]))
    with socket.create_connection(address, WAIT_S) as plain:
        plain.sendall(said_first)
        wait_until(lambda: shared.refused("handshake") == before + 1, "the refusal")


def test_an_unknown_key_does_not_get_in(shared: Guarded, said: Callable[[str], str]) -> None:
    before = shared.refused("unknown_key")
    key = made_up(keys.load_server(shared.folder).public)
    with stranger(zmq.DEALER, shared.daemon.addresses["control"], key):
        wait_until(lambda: shared.refused("unknown_key") > before, "the refusal")
    said(r"refused: a client at 127\.0\.0\.1 with the unknown key [0-9a-f]{16} may not connect to control")


def test_a_client_of_another_daemon_does_not_get_in(
    shared: Guarded, said: Callable[[str], str], tmp_path: Path
) -> None:
    other = keys.init_folder(tmp_path / "other")
    mine = keys.load_client(shared.files["boss"])
    before = shared.refused("other_daemon")
    mistaken = keys.ClientKey(mine.name, mine.roles, mine.public, mine.secret, other.public)
    with stranger(zmq.DEALER, shared.daemon.addresses["control"], mistaken):
        wait_until(lambda: shared.refused("other_daemon") > before, "the refusal")
    said("refused: a client at .* believes in the key of another daemon")


@pytest.mark.parametrize(("name", "client"), [("output", "hand"), ("output", "boss"), ("ingest", "eye")])
def test_a_key_without_the_role_of_a_socket_does_not_get_in(
    shared: Guarded, said: Callable[[str], str], tmp_path: Path, name: str, client: str
) -> None:
    other = f"other-{client}"  # of whom the log has not told within the last minute
    key = keys.new_client(shared.folder, other, ROLES[client], tmp_path / "key")
    before = shared.refused("role")
    kind = {"ingest": zmq.PUSH, "output": zmq.SUB}[name]
    with stranger(kind, shared.daemon.addresses[name], keys.load_client(key)):
        wait_until(lambda: shared.refused("role") > before, "the refusal")
    said(rf"refused: {other} \([0-9a-f]{{16}}\) at 127\.0\.0\.1 may not connect to {name}: its key has")


def test_a_client_that_is_refused_hears_that_it_may_be_for_its_key(shared: Guarded) -> None:
    with shared.client("hand", SHORT_S) as hand, pytest.raises(ClientTimeoutError, match="refuses this key"):
        hand.subscribe("state").receive(SHORT_S)


@pytest.mark.parametrize(
    ("client", "cmd", "args"),
    [
        ("eye", "set", {"parameters": {"network.input_gain": 2.0}}),
        ("eye", "stop", {}),
        ("hand", "pause", {}),
        ("hand", "arm", {"seconds": 1.0}),
        ("boss", "arm", {"seconds": 1.0}),
        ("doctor", "restore", {"path": "/etc/passwd"}),
        ("hand", "disarm", {}),
    ],
)
def test_a_command_needs_its_role(
    shared: Guarded, said: Callable[[str], str], client: str, cmd: str, args: dict[str, Any]
) -> None:
    before = shared.errors("role")
    with shared.client(client) as asking, pytest.raises(RefusedError, match="needs the role") as caught:
        asking.request(cmd, **args)

    assert caught.value.reason == "role"
    assert shared.errors("role") == before + 1
    said(rf"refused: {client}: {cmd} needs the role")


# -- changes of the list


def test_revoking_ends_the_connections_of_a_key_and_new_ones_are_let_in(
    tmp_path: Path, said: Callable[[str], str]
) -> None:
    with guarded(tmp_path) as rig, rig.client("boss") as boss, rig.client("eye") as eye:
        heard = eye.subscribe("state")
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        assert boss.request("status")
        keys.revoke_client(rig.folder, "boss")
        said("a key was revoked or has other roles: every connection is ended")
        boss.timeout_s = SHORT_S

        def is_out() -> bool:
            with contextlib.suppress(RefusedError):  # what came by the connection before it ended
                with pytest.raises(ClientTimeoutError, match="refuses this key"):
                    boss.request("status")
                return True
            return False

        wait_until(is_out, "the end of its connection")
        wait_until(lambda: rig.refused("unknown_key"), "its attempts to connect anew")
        while heard._socket.poll(0):  # what was on its way before
            heard.receive(WAIT_S)
        assert isinstance(heard.receive(WAIT_S), StateMessage)  # the other one is back by itself
        rig.files["new"] = keys.new_client(rig.folder, "new", Role.CONTROL)
        with rig.client("new") as new:
            assert new.request("set", parameters={"network.input_gain": 1.1})


def test_a_role_that_is_taken_away_is_gone(tmp_path: Path) -> None:
    with guarded(tmp_path) as rig, rig.client("doctor") as doctor:
        assert doctor.request("challenge")
        listed = rig.folder / "clients" / "doctor.key"
        listed.write_text(listed.read_text().replace("observe,stimulate", "observe"))
        wait_until(lambda: rig.health["security"]["clients"]["doctor"] == ["observe"], "the change")
        with pytest.raises(RefusedError) as caught:
            doctor.request("challenge")
        assert caught.value.reason == "role"


def test_what_a_revoked_key_had_on_its_way_is_refused(tmp_path: Path) -> None:
    with guarded(tmp_path) as rig:
        keys.revoke_client(rig.folder, "doctor")
        wait_until(lambda: "doctor" not in rig.health["security"]["clients"], "the change")
        before = rig.errors("role")

        rig.daemon.collector.judge(*wire.pack_ingest(wire.HeartbeatInput(1)), Sender("doctor", ROLES["doctor"]).user_id)

        assert rig.errors("role") == before + 1


def test_a_list_that_cannot_be_read_at_this_moment_stays_as_it_is(
    tmp_path: Path, said: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(tmp_path) as rig, rig.client("eye") as eye:
        heard = eye.subscribe("state")
        assert isinstance(heard.receive(WAIT_S), StateMessage)

        def fail(*_: object, **__: object) -> None:
            raise keys.UnreadableError("the folder cannot be read: Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(keys, "clients", fail)
            rig.files["new"] = keys.new_client(rig.folder, "new", Role.CONTROL)
            said("Too many open files; until it can, the list of clients stays as it is")
            assert set(rig.health["security"]["clients"]) == set(ROLES)
        wait_until(lambda: "new" in rig.health["security"]["clients"], "the change")
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        assert rig.health["security"]["let_in"]["eye"] == 1


# -- replays


class Wire:
    """What somebody who can write to the control socket in a client's name can do."""

    def __init__(self, rig: Guarded, name: str) -> None:
        self._stack = contextlib.ExitStack()
        address, key = rig.daemon.addresses["control"], keys.load_client(rig.files[name])
        self._dealer = self._stack.enter_context(stranger(zmq.DEALER, address, key))
        self._ids = itertools.count()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def request(self, cmd: str, session: str | None = None, seq: int | None = None, **args: Any) -> wire.Reply:
        """Return the answer."""
        return self.write(wire.pack_request(wire.Request(cmd, args, next(self._ids), session, seq)))

    def write(self, payload: bytes) -> wire.Reply:
        """Return the answer to these bytes."""
        self._dealer.send(payload)
        assert self._dealer.poll(int(1e3 * WAIT_S))
        return wire.unpack_reply(self._dealer.recv())


def test_a_command_that_is_sent_again_is_refused(shared: Guarded, said: Callable[[str], str]) -> None:
    with Wire(shared, "boss") as line:
        session = line.request("hello").result["session"]
        recorded = wire.pack_request(wire.Request("resume", {}, 1, session, 5))
        assert line.write(recorded).ok

        again = line.write(recorded)

        assert (again.ok, again.reason) == (False, "replayed")
        assert line.request("resume", session, 4).reason == "replayed"
        assert line.request("resume", session, 6).ok
    assert shared.errors("replayed") >= 2
    said("refused: boss: resume: seq 5 is not above 5")


def test_a_command_without_a_session_or_with_that_of_another_is_refused(shared: Guarded) -> None:
    with Wire(shared, "boss") as line, Wire(shared, "doctor") as other:
        assert line.request("resume").reason == "session"
        assert line.request("resume", other.request("hello").result["session"], 1).reason == "session"
        assert line.request("status").ok


def test_a_client_begins_a_new_session_by_itself(shared: Guarded) -> None:
    with shared.client("boss") as boss:
        boss.request("resume")
        boss._session = "of a daemon that is gone"
        assert boss.request("resume")


def test_a_stimulate_that_is_sent_again_is_refused(shared: Guarded) -> None:
    with shared.client("doctor") as doctor:
        session = doctor.request("hello")["session"]
        before = shared.errors("replayed")
        for _ in range(3):
            doctor.send(wire.StimulateInput("pulse", session, 1))
        wait_until(lambda: shared.errors("replayed") == before + 2, "two refusals")
        before = shared.errors("session")
        doctor.send(wire.StimulateInput("pulse"))
        doctor.send(wire.StimulateInput("pulse", "made up", 1))
        wait_until(lambda: shared.errors("session") == before + 2, "two refusals")


# -- too much


def test_a_key_that_asks_too_often_is_refused_and_others_are_not(tmp_path: Path) -> None:
    with guarded(tmp_path, "requests_per_s = 5") as rig, rig.client("eye") as eye, rig.client("boss") as boss:
        answers = []
        for _ in range(30):
            try:
                eye.request("status")
                answers.append("")
            except RefusedError as error:
                answers.append(error.reason)
        assert answers[:10] == [""] * 10
        assert "rate" in answers
        assert rig.errors("rate") >= 1
        assert boss.request("status")


def test_a_storm_of_strangers_leaves_the_daemon_answering(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    n = 500
    with guarded(tmp_path) as rig, rig.client("eye") as eye, rig.client("boss") as boss:
        heard = eye.subscribe("state")
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        server, host = keys.load_server(rig.folder).public, rig.daemon.addresses["control"]
        address = ("127.0.0.1", int(host.rpartition(":")[2]))
        context = zmq.Context()
        context.max_sockets = 2 * n
        strangers: list[zmq.Socket[bytes]] = []
        try:
            for k in range(n):
                if k % 3 == 0:  # no peer of ZeroMQ at all
                    with socket.create_connection(address, WAIT_S) as plain:
                        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 8)
                else:
                    knocking = context.socket(zmq.DEALER)
                    strangers.append(knocking)
                    knocking.reconnect_ivl = -1
                    if k % 3 == 1:
                        made_up(server).apply(knocking)
                    knocking.connect(host)
                if k % 50 == 0:
                    assert boss.request("set", parameters={"publish.state_hz": 100})
            # a plain connection that is reset before it is accepted leaves nothing to count
            wait_until(
                lambda: rig.refused("unknown_key") == (n + 1) // 3 and rig.strangers >= n // 3,
                "all keys, counted",
                60.0,
            )
        finally:
            for knocking in strangers:
                knocking.close(0)
            context.term()
        assert boss.request("status")
        assert isinstance(heard.receive(WAIT_S), StateMessage)
        assert rig.health["security"]["connections"] < 20
    refusals = [message for message in caplog.messages if message.startswith("refused")]
    assert 3 <= len(refusals) < 100
    assert any("unknown key" in message for message in refusals)
    assert any("without a key" in message or "broke off" in message for message in refusals)


def test_strangers_that_stay_keep_no_client_from_what_it_does(tmp_path: Path, said: Callable[[str], str]) -> None:
    with guarded(tmp_path) as rig, rig.client("eye") as eye, contextlib.ExitStack() as stack:
        assert eye.request("status")
        rig.daemon._sockets.door._most_connections = 8
        address = ("127.0.0.1", int(rig.daemon.addresses["control"].rpartition(":")[2]))
        for _ in range(30):
            stack.enter_context(socket.create_connection(address, WAIT_S))
        wait_until(lambda: rig.refused("too_many") >= 20, "those that are too many")
        said(r"refused: a client at 127\.0\.0\.1 may not connect to control: \d+ connections are open")
        assert eye.request("status")
        wait_until(lambda: rig.health["security"]["connections"] <= 8, "their end")
        stack.close()
        with rig.client("boss") as boss:
            assert boss.request("status")


def test_a_subscription_beyond_any_topic_ends_the_connection(shared: Guarded) -> None:
    with stranger(zmq.SUB, shared.daemon.addresses["output"], keys.load_client(shared.files["eye"])) as eye:
        eye.reconnect_ivl = -1
        eye.subscribe(b"state")
        assert eye.poll(int(1e3 * WAIT_S))
        with eye.get_monitor_socket(zmq.EVENT_DISCONNECTED) as ends:
            eye.subscribe(b"x" * 100_000)
            assert ends.poll(int(1e3 * WAIT_S))
            eye.disable_monitor()


def test_a_storm_that_nobody_listens_to_does_not_hold_up_the_end() -> None:
    n = 800  # libzmq's monitor would hold two thousand events, and each of these tells of three
    context = zmq.Context()
    bound = context.socket(zmq.ROUTER)
    door = Doorkeeper(context, None)
    door.protect("ingest", bound)
    address = ("127.0.0.1", bound.bind_to_random_port("tcp://127.0.0.1"))

    def storm() -> None:
        with contextlib.suppress(OSError):
            for _ in range(n):
                socket.create_connection(address, WAIT_S).close()

    def run(part: Callable[[], None]) -> bool:
        thread = threading.Thread(target=part, daemon=True)
        thread.start()
        thread.join(WAIT_S)
        return not thread.is_alive()

    assert run(storm)
    assert run(door.close)
    bound.close(0)
    context.term()


# -- without keys


def test_plain_clients_go_on_working_without_keys(tmp_path: Path) -> None:
    config = parse(f'source = "zmq"\n{FREE_PORTS}')
    with Daemon(config) as daemon, Client(**daemon.addresses, timeout_s=WAIT_S) as client:
        assert client.request("set", parameters={"network.input_gain": 1.5})
        session = client.request("hello")["session"]
        assert isinstance(session, str)
        security = client.request("status")["health"]["security"]
        assert (security["keys"], security["clients"], security["refused"]) == (False, {}, {})


def test_keys_that_others_may_read_stop_the_daemon_before_a_socket_is_bound(tmp_path: Path) -> None:
    keys.init_folder(tmp_path / "keys")
    (tmp_path / "keys" / "server.key_secret").chmod(0o644)
    daemon = Daemon(parse(f'source = "zmq"\n{FREE_PORTS}[security]\nkeys = "{tmp_path / "keys"}"\n'))

    with pytest.raises(ConfigError, match="chmod 600"):
        daemon.open()
    assert daemon.addresses == {}
