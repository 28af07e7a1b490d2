"""Messages: what clients send to the daemon, what it publishes, and what actuators answer."""

import contextlib
import ctypes
import io
import json
import logging
import math
import re
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import prometheus_client
import pylsl

from fuzz.target import Target
from neuromod.adapters import lsl
from neuromod.adapters.actuators import zmq_peer
from neuromod.adapters.actuators.base import Answer, Command, Stimulation
from neuromod.adapters.config import LslConfig
from neuromod.bridge import actuate, commands, frames, metrics, wire
from neuromod.bridge.arming import Arming
from neuromod.bridge.monitor_model import Model
from neuromod.engine.errors import AdapterError
from neuromod.engine.modulators import MODULATORS

# One byte in front of a payload says which topic it is for: a fuzzer would need long to find the words.


def ingest(data: bytes) -> None:
    """Whatever is accepted packs again, and then means the same."""
    topic, payload = _topic(data, wire.INGEST_TOPICS)
    try:
        message = wire.unpack_ingest(topic, payload)
    except wire.MessageError as error:
        assert error.reason in wire.Reason
        assert str(error)
        return
    packed = wire.pack_ingest(message)
    assert wire.pack_ingest(wire.unpack_ingest(*packed)) == packed


def _topic(data: bytes, topics: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    which = data[0] % (len(topics) + 1) if data else 0
    return (topics[which], data[1:]) if which < len(topics) else (data[1:9], data[9:])


def _ingest_seeds() -> list[bytes]:
    messages: list[wire.IngestMessage] = [
        wire.StimuliInput(np.arange(16, dtype=np.float32), 1.5),
        wire.StimuliInput(np.zeros(16, np.float32)),
        wire.ModulatorsInput({"dopamine": 0.5, "tempo": 2.0}, 3.0),
        wire.RewardInput(1.0, 2.0),
        wire.StressInput(0.25),
        wire.EventInput("a", 1.0, {"deep": [1, None, "x", b"y", 2.5]}),
        wire.AliveInput("arm"),
        wire.HeartbeatInput(1 << 61),
        wire.StimulateInput("touch"),
        wire.StimulateInput("touch", "session", 7),
        wire.BoardInput(1 << 40, 0xFFFF, checked=True),
        wire.StopInput(),
    ]
    packed = [wire.pack_ingest(message) for message in messages]
    lists = msgpack.packb({"values": [0.5] * 15 + [3], "t": 0})
    return [bytes([wire.INGEST_TOPICS.index(topic)]) + payload for topic, payload in packed] + [b"\0" + lists]


def compiled(data: bytes) -> None:
    """What the loop's own readers take, the complete reader takes, and finds the same numbers in it."""
    which, payload = (data[0] % 4 if data else 0), data[1:]
    buffer = np.frombuffer(payload, np.uint8) if payload else np.zeros(0, np.uint8)
    if which == 0:
        values, sent = np.zeros(16, np.float32), np.zeros(1)
        if frames.read_stimuli(buffer, len(payload), values, sent):
            stimuli = wire.unpack_ingest(wire.TOPIC_STIMULI, payload)
            assert isinstance(stimuli, wire.StimuliInput)
            assert stimuli.values.tobytes() == values.tobytes()
            assert (stimuli.t or 0.0) == sent[0]
        return
    if which == 3:
        answer = np.zeros(3, np.int64)
        if frames.read_answer(buffer, len(payload), _ANSWER_KEYS, answer):
            board = wire.unpack_ingest(wire.TOPIC_BOARD, payload)
            assert board == wire.BoardInput(int(answer[0]), int(answer[1]), bool(answer[2]))
        return
    keys = _LEVEL_KEYS if which == 1 else _AMOUNT_KEYS
    numbers, present = np.zeros(len(keys)), np.zeros(len(keys), np.uint8)
    if not frames.read_numbers(buffer, len(payload), keys, numbers, present):
        return
    # limits are the loop's business; that it is a map of finite numbers by these names is the reader's
    body = msgpack.unpackb(payload, object_pairs_hook=_once)
    names = (*MODULATORS, "t") if which == 1 else ("amount", "t")
    found = {name: float(numbers[i]) for i, name in enumerate(names) if present[i]}
    assert body == found
    assert all(math.isfinite(number) for number in found.values())


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    assert len(dict(pairs)) == len(pairs), "a key twice"
    return dict(pairs)


_LEVEL_KEYS = frames.keys_table((*MODULATORS, "t"))
_AMOUNT_KEYS = frames.keys_table(("amount", "t"))
_ANSWER_KEYS = frames.keys_table(frames.ANSWER_KEYS)


def _compiled_seeds() -> list[bytes]:
    which = {wire.TOPIC_STIMULI: 0, wire.TOPIC_MODULATORS: 1, wire.TOPIC_REWARD: 2, wire.TOPIC_BOARD: 3}
    return [
        bytes([which[topic]]) + seed[1:]
        for seed in _ingest_seeds()
        if (topic := wire.INGEST_TOPICS[seed[0]]) in which and len(seed) > 1
    ]


def control(data: bytes) -> None:
    """A request is split from its envelope, read, and its arguments are checked; what is accepted packs again."""
    cuts, rest = (data[0] % 5 if data else 0), data[1:]
    parts = rest.split(b"\n--\n", cuts) if cuts else [b"client", rest]
    try:
        envelope, payload = wire.split_envelope(parts)
        request = wire.unpack_request(payload)
        assert [*envelope, payload] == parts
        assert wire.unpack_request(wire.pack_request(request)) == request
        args = commands.parse_args(request.cmd, request.args)
        if isinstance(args, commands.ArmArgs):
            arming = Arming(b"a key of this test")
            arming.check(args.seconds, args.nonce and arming.challenge(), args.mac)
            raise AssertionError("armed without the key")
    except (wire.MessageError, commands.CommandError) as error:
        assert str(error)
        assert re.fullmatch("[a-z_]+", error.reason)
        assert len(wire.pack_reply(wire.Reply(False, error=str(error), reason=str(error.reason)))) < 1 << 16


def _control_seeds() -> list[bytes]:
    args: dict[str, dict[str, Any]] = {
        "set": {"parameters": {"network.input_gain": 2.0, "x": "y", "b": True}},
        "checkpoint": {"path": "a"},
        "restore": {"path": "b"},
        "learning": {"on": False},
        "arm": {"seconds": 30.0, "nonce": "00", "mac": "ff"},
        "decoder": {"path": "c"},
    }
    requests = [wire.pack_request(wire.Request(name, args.get(name, {}), "id")) for name in commands.COMMANDS]
    requests.append(wire.pack_request(wire.Request("pause", session="s", seq=3)))
    odd = [wire.pack_request(wire.Request("status", {}, 7)), wire.pack_request(wire.Request("no such"))]
    return [b"\0" + request for request in (*requests, *odd)] + [b"\2who\n--\n\n--\n" + requests[0]]


def reply(data: bytes) -> None:
    """A reply that is accepted packs again."""
    try:
        found = wire.unpack_reply(data)
    except wire.MessageError:
        return
    packed = wire.pack_reply(found)
    assert wire.pack_reply(wire.unpack_reply(packed)) == packed


def _reply_seeds() -> list[bytes]:
    body = {"a": [1, 2.5, None], "b": {"c": "d"}}
    return [
        wire.pack_reply(wire.Reply(True, body, id=3)),
        wire.pack_reply(wire.Reply(False, error="no", reason="range", id="x")),
    ]


def output(data: bytes) -> None:
    """What the client reads has the types that its docstrings promise; per-tick messages pack again."""
    topic, payload = _topic(data, wire.OUTPUT_TOPICS)
    try:
        message = wire.unpack_output(topic, payload)
    except wire.MessageError:
        return
    packer = _PACKERS.get(type(message))
    if packer is None:
        return
    try:
        packed = packer(message)
    except (OverflowError, wire.MessageError):  # numbers of a later daemon may be wider than ours
        return
    except Exception as error:
        if type(error).__name__ == "error":  # struct.error: the same
            return
        raise
    again = packer(wire.unpack_output(topic, packed))
    assert again == packed


_PACKERS: dict[type, Any] = {
    wire.SpikesMessage: wire.pack_spikes,
    wire.StimuliMessage: wire.pack_stimuli,
    wire.UnitMessage: wire.pack_unit,
    Command: wire.pack_command,
    Stimulation: wire.pack_stimulation,
    wire.StateMessage: wire.pack_state,
    wire.ArrayMessage: wire.pack_array,
    wire.HealthMessage: wire.pack_health,
    wire.EventMessage: wire.pack_event,
}


def _output_seeds() -> list[bytes]:
    sixteen = np.arange(16, dtype=np.float32)
    state = wire.StateMessage(9, 1.5, sixteen, dict.fromkeys(wire.MODULATOR_LIMITS, 0.5), sixteen)
    train = Stimulation(1, 2, 3.0, "train", 4, 5, -6.0, 7.0, 8.0, 9.0, 10.0, 11, 12.0, 13.0, 14)
    packed = {
        wire.TOPIC_SPIKES: wire.pack_spikes(wire.SpikesMessage(1, 2, 3, 4.0, 5.0, sixteen > 3, wire.Flag.LATE)),
        wire.TOPIC_STIMULI: wire.pack_stimuli(wire.StimuliMessage(1, 2, sixteen, np.arange(5.0), 1.0)),
        wire.TOPIC_UNITS: wire.pack_unit(wire.UnitMessage(1, 2, 3, 4.0, 5.0, 6, 7.0, 8.0, wire.Flag(0))),
        wire.TOPIC_COMMAND: wire.pack_command(Command(1, 2, 3.0, 4.0, sixteen[:2], 1, 2, 0, 5.0)),
        wire.TOPIC_STIMULATION: wire.pack_stimulation(train),
        wire.TOPIC_STATE: wire.pack_state(state),
        wire.TOPIC_HEALTH: wire.pack_health(wire.HealthMessage(1.0, "streaming", {"counters": {"ticks": 3}})),
        wire.TOPIC_EVENT: wire.pack_event(wire.EventMessage("go", 1.0, 2, "lsl", 0.5)),
    }
    return [bytes([wire.OUTPUT_TOPICS.index(topic)]) + payload for topic, payload in packed.items()]


def peer(data: bytes) -> None:
    """What an actuator says over ZeroMQ is an answer, or one of the errors that the adapter counts."""
    topic, _, payload = data.partition(b"\n")
    try:
        answer = zmq_peer.as_answer(topic, zmq_peer.unpack(payload), 1.0)
    except zmq_peer.MALFORMED:
        return
    pass_on(answer)


def pass_on(answer: Answer) -> None:
    """Have `actuate` send an answer to the daemon, or count it."""
    actuation: Any = SimpleNamespace(
        _peer=SimpleNamespace(send=wire.pack_ingest, count=lambda what: None),
        _actuator=SimpleNamespace(name="an actuator"),
        _clock=lambda: 1.0,
    )
    logging.disable(logging.CRITICAL)
    try:
        actuate.Actuation._tell(actuation, answer)
    finally:
        logging.disable(logging.NOTSET)


def _peer_seeds() -> list[bytes]:
    answers: dict[str, dict[str, Any]] = {
        "ack": {"topic": "command", "seq": 4},
        "reward": {"amount": 0.5, "t": 2.0},
        "event": {"name": "x", "value": 3},
        "stimuli": {"values": bytes(64)},
    }
    return [topic.encode() + b"\n" + bytes(msgpack.packb(body)) for topic, body in answers.items()]


def heard(data: bytes) -> None:
    """The monitor takes or counts whatever a daemon publishes, in whatever order."""
    model, at = Model(), 0
    while at + 3 <= len(data):  # topic and length, again and again
        topic, size = _HEARD_TOPICS[data[at] % len(_HEARD_TOPICS)], int.from_bytes(data[at + 1 : at + 3])
        model.take(topic, [data[at + 3 : at + 3 + size]], 1.0 + at)
        at += 3 + size
    model.raster(80)
    json.dumps(model.summary(2.0 + at))


_HEARD_TOPICS = [topic for topic in wire.OUTPUT_TOPICS if topic != wire.TOPIC_HEALTH]  # whose body is free


def _heard_seeds() -> list[bytes]:
    found = [(wire.OUTPUT_TOPICS[seed[0]], seed[1:]) for seed in _output_seeds()]
    seeds = [
        bytes([_HEARD_TOPICS.index(topic)]) + len(payload).to_bytes(2) + payload
        for topic, payload in found
        if topic in _HEARD_TOPICS
    ]
    return [*seeds, b"".join(seeds) * 2]


def scrape(data: bytes) -> None:
    """A request to the address of the metrics is answered, by whatever status, or is none."""
    asked, answered = io.BytesIO(data), io.BytesIO()
    handler = metrics._Handler.__new__(metrics._Handler)
    handler.rfile, handler.wfile = asked, answered
    handler.client_address = ("127.0.0.1", 1)
    handler.server = SimpleNamespace(registry=prometheus_client.CollectorRegistry())  # type: ignore[assignment]
    handler.handle()


def _scrape_seeds() -> list[bytes]:
    return [
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text; version=1.0.0,*/*;q=0.1\r\n\r\n",
        b"GET /?name[]=a HTTP/1.0\r\n\r\n",
        b"GET //[ HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    ]


def lsl_header(data: bytes) -> None:
    """The description of an LSL stream is refused in words, or names as many channels as the stream has."""
    make = pylsl.lib.lib["lsl_streaminfo_from_xml"]
    make.restype, make.argtypes = ctypes.c_void_p, (ctypes.c_char_p,)
    described = pylsl.StreamInfo(handle=make(data))
    if described.channel_count() > 1 << 24:
        return  # liblsl would make room for names that nobody asks for
    assert lsl._listing([lsl._brief_info(described)])
    with contextlib.redirect_stderr(io.StringIO()):
        for content in ("signal", "features"):
            try:
                info, scale = lsl._check_signal(described, LslConfig(name="s", content=content))
            except AdapterError as error:
                assert str(error)
                continue
            assert len(set(info.channel_names)) == len(info.units) == len(scale) == info.n_channels >= 1
            assert math.isfinite(info.sampling_frequency)
            assert lsl._layout(described) == lsl._layout(described)


def _lsl_seeds() -> list[bytes]:
    info = pylsl.StreamInfo("s", "EEG", 2, 100.0, "float32", "id")
    info.set_channel_labels(["a", "b"])
    info.set_channel_units(["uV", "mV"])
    text = re.sub(r"\s*\n\s*", "", info.as_xml()).replace("<uid></uid>", "<uid>u</uid>")
    return [text.encode(), text.replace("<channel_count>2", "<channel_count>3").encode()]


def marker(data: bytes) -> None:
    """A marker's text from LSL becomes a value that goes on as msgpack and as JSON."""
    found = lsl._text_marker(1.0, ["name", data.decode("utf-8", "surrogateescape")])
    json.dumps(found.value, allow_nan=False)
    if not isinstance(found.value, str):
        msgpack.packb(found.value)


WIRE = ("neuromod.bridge.wire",)
TARGETS = [
    Target("ingest", ingest, _ingest_seeds, WIRE),
    Target("compiled", compiled, _compiled_seeds, ("neuromod.bridge.frames",), 256),
    Target("control", control, _control_seeds, (*WIRE, "neuromod.bridge.commands")),
    Target("reply", reply, _reply_seeds, WIRE),
    Target("output", output, _output_seeds, WIRE),
    Target("heard", heard, _heard_seeds, ("neuromod.bridge.monitor_model", *WIRE), 8192),
    Target("scrape", scrape, _scrape_seeds, ("neuromod.bridge.metrics", "http.server", "prometheus_client.exposition")),
    Target("lsl_header", lsl_header, _lsl_seeds, ("neuromod.adapters.lsl", "pylsl.info")),
    Target("peer", peer, _peer_seeds, ("neuromod.adapters.actuators.zmq_peer",), 512),
    Target("marker", marker, lambda: [b"1", b'"x"', b"-2.5e3", b"[1]"], ("neuromod.adapters.lsl", "json.decoder"), 512),
]
