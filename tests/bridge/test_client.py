"""The client against real sockets that stand for a daemon; every wait has an end."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from neuromod.bridge import keys, wire
from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError
from neuromod.bridge.wire import Flag, MessageError

WAIT_S = 20.0  # far beyond what anything here takes; a test that needs it fails


class Daemon:
    """The daemon's three sockets, on free ports, moved by hand."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.addresses: dict[str, str] = {}
        self.ingest = self._bind("ingest", zmq.PULL)
        self.output = self._bind("output", zmq.XPUB)  # shows who subscribed, so that no test has to guess
        self.control = self._bind("control", zmq.ROUTER)

    def _bind(self, name: str, kind: int) -> "zmq.Socket[bytes]":
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.rcvtimeo = int(1e3 * WAIT_S)
        socket.bind("tcp://127.0.0.1:*")
        self.addresses[name] = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return socket

    def publish_to_subscriber(self, *messages: tuple[bytes, bytes]) -> None:
        """Wait for one subscription, then publish."""
        assert self.output.recv()[:1] == b"\x01"
        for message in messages:
            self.output.send_multipart(message)

    def answer(self, answer: Callable[[wire.Request], wire.Reply]) -> wire.Request:
        """Answer one request."""
        envelope, payload = wire.split_envelope(self.control.recv_multipart())
        request = wire.unpack_request(payload)
        reply = answer(request)
        self.control.send_multipart([*envelope, wire.pack_reply(reply)])
        return request

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(**daemon.addresses, timeout_s=WAIT_S) as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def spikes(seq: int, flags: Flag = Flag(0)) -> tuple[bytes, bytes]:
    message = wire.SpikesMessage(seq, seq, seq, 1.0, 1.0001, np.arange(16) == seq % 16, flags)
    return b"spikes", wire.pack_spikes(message)


# -- subscribe


def test_a_subscription_is_an_iterator_of_typed_messages(daemon: Daemon, client: Client) -> None:
    subscription = client.subscribe("spikes", timeout_s=WAIT_S)
    daemon.publish_to_subscriber(spikes(3), spikes(4, Flag.FILLER))

    first, second = next(subscription), next(subscription)

    assert isinstance(first, wire.SpikesMessage)
    assert isinstance(second, wire.SpikesMessage)
    assert (first.tick, first.channels, first.is_filler) == (3, [3], False)
    assert second.is_filler
    assert subscription.received == 2
    assert first.latency_us == pytest.approx(100.0)


def test_losses_are_counted_from_jumps_in_seq(daemon: Daemon, client: Client) -> None:
    subscription = client.subscribe("spikes", timeout_s=WAIT_S)
    daemon.publish_to_subscriber(spikes(100), spikes(101), spikes(105), spikes(106), spikes(110))

    for _ in range(5):
        next(subscription)

    assert subscription.lost == {"spikes": 6}


def test_a_daemon_that_was_started_again_is_no_loss(daemon: Daemon, client: Client) -> None:
    subscription = client.subscribe("spikes", timeout_s=WAIT_S)
    daemon.publish_to_subscriber(spikes(100), spikes(0), spikes(1))

    for _ in range(3):
        next(subscription)

    assert subscription.lost == {}


class Cable:
    """A connection to a port, through which nothing comes any more once it is cut; a new one is whole."""

    def __init__(self, port: int) -> None:
        self._port, self._ends = port, set[socket.socket]()
        self._dead: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._dead |= self._ends

    def close(self) -> None:
        self._server.close()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._server.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                self._ends |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source not in self._dead:
                    sink.sendall(data)


def test_a_connection_that_died_without_a_word_is_made_anew(
    daemon: Daemon, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "HEARTBEAT_MS", 50)
    monkeypatch.setattr(keys, "HEARTBEAT_TIMEOUT_MS", 200)
    daemon.output.setsockopt(zmq.XPUB_VERBOSE, 1)  # tells of the second subscription too
    with (
        contextlib.closing(Cable(int(daemon.addresses["output"].rpartition(":")[2]))) as cable,
        Client(output=cable.address) as client,
    ):
        subscription = client.subscribe("spikes", timeout_s=WAIT_S)
        daemon.publish_to_subscriber(spikes(0))
        next(subscription)
        cable.cut()
        message = pool.submit(next, subscription)  # which subscribes again
        daemon.publish_to_subscriber(spikes(1))

        assert getattr(message.result(WAIT_S), "seq", None) == 1


def test_malformed_messages_are_passed_over_and_counted(daemon: Daemon, client: Client) -> None:
    subscription = client.subscribe("spikes", timeout_s=WAIT_S)
    daemon.publish_to_subscriber((b"spikes", b"\xc1"), (b"spikesque", b"\x80"), spikes(1))

    assert next(subscription) is not None
    assert subscription.malformed == 2


def test_a_daemon_of_another_protocol_version_is_an_error_not_silence(daemon: Daemon, client: Client) -> None:
    subscription = client.subscribe("health", timeout_s=WAIT_S)
    daemon.publish_to_subscriber((b"health", msgpack.packb({"v": 2, "t": 0.0, "state": "streaming"})))

    with pytest.raises(MessageError, match="version 2"):
        next(subscription)


def test_silence_is_an_error_after_the_timeout(client: Client) -> None:
    with pytest.raises(ClientTimeoutError, match=r"nothing came from tcp://.* within 0.05 s"):
        next(client.subscribe(timeout_s=0.05))


def test_stop_ends_an_iteration_that_waits(client: Client, pool: ThreadPoolExecutor) -> None:
    stop = threading.Event()
    subscription = client.subscribe("spikes", stop=stop)
    messages = pool.submit(list[Any], subscription)

    stop.set()

    assert messages.result(WAIT_S) == []


def test_a_topic_that_is_not_published_is_refused(client: Client) -> None:
    with pytest.raises(MessageError, match=r"'spike' is not published; choose from array, command, event, health"):
        client.subscribe("spike")


# -- send


def test_what_is_sent_arrives_as_the_protocol_says(daemon: Daemon, client: Client) -> None:
    client.send_stimuli(range(16))
    client.send_modulators(acetylcholine=0.5, tempo=2.0)
    client.send_reward(-1.0)
    client.send_stress(0.25)
    client.send_event("go", {"trial": 1}, t=3.5)

    topics, messages = [], []
    for _ in range(5):
        topic, payload = daemon.ingest.recv_multipart()
        topics.append(topic)
        messages.append(wire.unpack_ingest(topic, payload))

    assert topics == [b"stimuli", b"modulators", b"reward", b"stress", b"event"]
    assert isinstance(messages[0], wire.StimuliInput)
    assert messages[0].values.tolist() == list(range(16))
    assert messages[1:] == [
        wire.ModulatorsInput({"acetylcholine": 0.5, "tempo": 2.0}),
        wire.RewardInput(-1.0),
        wire.StressInput(0.25),
        wire.EventInput("go", 3.5, {"trial": 1}),
    ]


@pytest.mark.parametrize(
    "send",
    [
        lambda client: client.send_stimuli([0.0] * 15),
        lambda client: client.send_stimuli([[0.0] * 16]),
        lambda client: client.send_stimuli([float("nan")] * 16),
        lambda client: client.send_stimuli([1e39] * 16),
        lambda client: client.send_stimuli(["a"] * 16),
        lambda client: client.send_modulators(),
        lambda client: client.send_modulators(serotonin=1.0),
        lambda client: client.send_modulators(tempo=9.0),
        lambda client: client.send_reward(float("inf")),
        lambda client: client.send_reward("much"),
        lambda client: client.send_stress(-1.0),
        lambda client: client.send_event(""),
        lambda client: client.send_event("x", object()),
        lambda client: client.send_event("x", "y" * 5000),
    ],
)
def test_what_the_daemon_would_drop_is_refused_before_it_is_sent(
    daemon: Daemon, client: Client, send: Callable[[Client], None]
) -> None:
    with pytest.raises(MessageError):
        send(client)

    client.send_event("the first to arrive")
    assert b"the first to arrive" in daemon.ingest.recv_multipart()[1]


def test_sending_to_nobody_is_an_error_and_does_not_wait_for_ever() -> None:
    with (
        Client(ingest="tcp://127.0.0.1:1", timeout_s=0.05) as client,
        pytest.raises(ClientTimeoutError, match=r"no daemon took the message at tcp://127\.0\.0\.1:1"),
    ):
        client.send_reward(1.0)


def test_an_address_that_is_none_is_refused_by_name() -> None:
    with Client(ingest="nowhere") as client, pytest.raises(MessageError, match="'nowhere' is no address"):
        client.send_reward(1.0)


# -- request


def test_a_request_brings_back_the_result(daemon: Daemon, client: Client, pool: ThreadPoolExecutor) -> None:
    asked = pool.submit(daemon.answer, lambda request: wire.Reply(True, {"tick": 7}, id=request.id))

    result = client.request("set", parameters={"publish.state_hz": 20})

    assert result == {"tick": 7}
    request = asked.result(WAIT_S)
    assert (request.cmd, request.args) == ("set", {"parameters": {"publish.state_hz": 20}})


def test_a_refusal_carries_the_sentence_and_the_reason(
    daemon: Daemon, client: Client, pool: ThreadPoolExecutor
) -> None:
    pool.submit(daemon.answer, lambda r: wire.Reply(False, error="not while paused", reason="refused", id=r.id))

    with pytest.raises(RefusedError, match="not while paused") as refused:
        client.request("checkpoint")

    assert refused.value.reason == "refused"


def test_no_answer_is_an_error_after_the_timeout() -> None:
    began = time.monotonic()
    with (
        Client(control="tcp://127.0.0.1:1", timeout_s=0.05) as client,
        pytest.raises(ClientTimeoutError, match=r"no answer to 'status' from .* within 0.05 s"),
    ):
        client.request("status")
    assert time.monotonic() - began < WAIT_S


def test_the_late_answer_to_an_earlier_request_is_not_taken_for_the_next(
    daemon: Daemon, client: Client, pool: ThreadPoolExecutor
) -> None:
    def answer_twice() -> None:
        envelope, payload = wire.split_envelope(daemon.control.recv_multipart())
        number = wire.unpack_request(payload).id
        assert isinstance(number, int)
        for reply in (wire.Reply(True, "late", id=number - 1), wire.Reply(True, "mine", id=number)):
            daemon.control.send_multipart([*envelope, wire.pack_reply(reply)])

    pool.submit(answer_twice)

    assert client.request("status") == "mine"


def test_after_a_timeout_the_client_still_works(daemon: Daemon, pool: ThreadPoolExecutor) -> None:
    with Client(control=daemon.addresses["control"], timeout_s=0.05) as client:
        with pytest.raises(ClientTimeoutError):
            client.request("status")
        daemon.control.recv_multipart()  # the request that was given up
        client.timeout_s = WAIT_S
        pool.submit(daemon.answer, lambda request: wire.Reply(True, request.cmd, id=request.id))

        assert client.request("version") == "version"


def test_a_client_can_be_closed_twice(daemon: Daemon) -> None:
    client = Client(output=daemon.addresses["output"])
    client.subscribe("spikes")
    client.close()
    client.close()


def test_the_protocol_pages_example_runs(daemon: Daemon) -> None:
    # the ten lines of PROTOCOL.md, but for the address and the end
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.rcvtimeo = int(1e3 * WAIT_S)
    sub.connect(daemon.addresses["output"])
    sub.subscribe("spikes")
    daemon.publish_to_subscriber(spikes(3))
    try:
        _, payload = sub.recv_multipart()
        message = msgpack.unpackb(payload)
        assert int.from_bytes(message["spikes"], "little") == 1 << 3
    finally:
        context.destroy(linger=0)
