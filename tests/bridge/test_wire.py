"""What the wire format promises, byte by byte, and that nothing but MessageError comes out of bad input."""

import contextlib
import math
import re
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromod.adapters.config import ZmqConfig
from neuromod.bridge import wire
from neuromod.bridge.commands import COMMANDS, NETWORK_PARAMETERS, CommandError, parse_args
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.wire import Flag, MessageError, Reason
from neuromod.engine.errors import ProtocolError
from neuromod.engine.layout import LIVE
from neuromod.engine.modulators import MODULATORS, NeuroModulators

PROTOCOL_MD = Path(wire.__file__).parent / "PROTOCOL.md"

uint64 = st.integers(0, 2**64 - 1)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def spikes_message(**changes: Any) -> wire.SpikesMessage:
    spikes = np.zeros(16, np.bool_)
    spikes[[0, 9, 15]] = True
    fields: dict[str, Any] = {
        "seq": 7,
        "tick": 1007,
        "sample": 30210,
        "t_sample": 12.5,
        "t_tick": 12.50009,
        "spikes": spikes,
        "flags": Flag.EXTERNAL | Flag.LATE,
    }
    return wire.SpikesMessage(**(fields | changes))


def refusal(topic: bytes, payload: bytes) -> Reason:
    with pytest.raises(MessageError) as refused:
        wire.unpack_ingest(topic, payload)
    return refused.value.reason


# -- output


def test_a_spikes_message_of_sixteen_channels_has_the_documented_108_bytes() -> None:
    packed = wire.pack_spikes(spikes_message())

    assert len(packed) == 108
    assert packed.hex() in PROTOCOL_MD.read_text().replace(" ", "").replace("\n", "")


def test_any_msgpack_library_reads_a_spikes_message() -> None:
    body = msgpack.unpackb(wire.pack_spikes(spikes_message()))

    assert list(body) == ["v", "seq", "tick", "sample", "t_sample", "t_tick", "n", "spikes", "flags"]
    assert body["spikes"] == bytes([0b0000_0001, 0b1000_0010])  # bit i % 8 of byte i // 8 is channel i
    assert (body["v"], body["n"], body["flags"]) == (1, 16, 4 + 32)


def test_a_frame_filled_at_its_offsets_is_the_packed_message() -> None:
    frame = wire.spikes_frame(16)
    data = bytearray(frame.template)
    struct.pack_into(">Q", data, frame.offsets["seq"], 7)
    struct.pack_into(">Q", data, frame.offsets["tick"], 1007)
    struct.pack_into(">Q", data, frame.offsets["sample"], 30210)
    struct.pack_into(">d", data, frame.offsets["t_sample"], 12.5)
    struct.pack_into(">d", data, frame.offsets["t_tick"], 12.50009)
    struct.pack_into("<H", data, frame.offsets["spikes"], 0b1000_0010_0000_0001)
    struct.pack_into(">I", data, frame.offsets["flags"], 36)

    assert bytes(data) == wire.pack_spikes(spikes_message())


@given(
    seq=uint64,
    tick=uint64,
    sample=uint64,
    t_sample=st.floats(allow_nan=False),
    spikes=st.lists(st.booleans(), min_size=1, max_size=100),
    flags=st.integers(0, 255),
)
def test_spikes_come_back_as_they_were_packed(
    seq: int, tick: int, sample: int, t_sample: float, spikes: list[bool], flags: int
) -> None:
    packed = wire.pack_spikes(
        spikes_message(seq=seq, tick=tick, sample=sample, t_sample=t_sample, spikes=np.array(spikes), flags=Flag(flags))
    )

    back = wire.unpack_output(b"spikes", packed)

    assert isinstance(back, wire.SpikesMessage)
    assert (back.seq, back.tick, back.sample, back.t_sample, back.flags) == (seq, tick, sample, t_sample, flags)
    assert back.spikes.tolist() == spikes
    assert back.channels == [i for i, fired in enumerate(spikes) if fired]


@given(seq=uint64, t_tick=st.floats(allow_nan=False), spikes=st.lists(st.booleans(), min_size=16, max_size=16))
def test_the_fixed_layout_and_any_other_form_of_the_same_map_read_the_same(
    seq: int, t_tick: float, spikes: list[bool]
) -> None:
    fixed = wire.pack_spikes(spikes_message(seq=seq, t_tick=t_tick, spikes=np.array(spikes)))
    other = msgpack.packb(dict(reversed(msgpack.unpackb(fixed).items())))

    one, two = wire.unpack_output(b"spikes", fixed), wire.unpack_output(b"spikes", other)

    assert isinstance(one, wire.SpikesMessage)
    assert isinstance(two, wire.SpikesMessage)
    for name in ("seq", "tick", "sample", "t_sample", "t_tick", "flags", "channels"):
        assert getattr(one, name) == getattr(two, name)
    assert one.spikes.dtype == two.spikes.dtype == np.bool_
    assert one.spikes.flags.writeable


@given(values=st.lists(float32s, min_size=1, max_size=100))
def test_stimuli_come_back_as_they_were_packed(values: list[float]) -> None:
    back = wire.unpack_output(b"stimuli", wire.pack_stimuli(wire.StimuliMessage(1, 2, np.array(values, np.float32))))

    assert isinstance(back, wire.StimuliMessage)
    assert back.values.dtype == np.float32
    assert back.values.tolist() == values


@given(
    modulation=st.lists(st.floats(allow_nan=False), min_size=5, max_size=5),
    step_ms=st.floats(0.0, 4.0),
    flags=st.integers(0, 2**9 - 1),
)
def test_what_modulated_a_tick_comes_back_as_it_was_packed(modulation: list[float], step_ms: float, flags: int) -> None:
    message = wire.StimuliMessage(1, 2, np.ones(16, np.float32), np.array(modulation), step_ms, Flag(flags))

    back = wire.unpack_output(b"stimuli", wire.pack_stimuli(message))

    assert isinstance(back, wire.StimuliMessage)
    assert back.modulation.tolist() == modulation
    assert (back.step_ms, back.flags) == (step_ms, flags)
    assert back.is_step == (flags & (1 | 128) == 0)


def test_stimuli_of_a_daemon_that_does_not_say_what_modulated_them_are_read_all_the_same() -> None:
    body = msgpack.unpackb(wire.pack_stimuli(wire.StimuliMessage(1, 2, np.ones(16, np.float32))))
    for key in ("modulation", "step_ms", "flags"):
        del body[key]

    back = wire.unpack_output(b"stimuli", msgpack.packb(body))

    assert isinstance(back, wire.StimuliMessage)
    assert np.isnan([*back.modulation, back.step_ms]).all()


@pytest.mark.parametrize("modulation", [np.zeros(4), np.zeros((5, 1)), np.zeros(0)])
def test_modulation_of_another_length_is_not_packed(modulation: Any) -> None:
    with pytest.raises(MessageError, match="modulation is 5 numbers"):
        wire.pack_stimuli(wire.StimuliMessage(1, 2, np.ones(16, np.float32), modulation, 1.0))


def test_state_health_and_events_come_back_as_they_were_packed() -> None:
    ramp = np.arange(16, dtype=np.float32)
    state = wire.unpack_output(
        b"state", wire.pack_state(wire.StateMessage(5, 1.5, ramp, {"dopamine": 0.5, "tempo": 1.0}, 2 * ramp))
    )
    assert isinstance(state, wire.StateMessage)
    assert state.membrane.tolist() == ramp.tolist()
    assert state.rates_hz.tolist() == (2 * ramp).tolist()
    assert state.modulators == {"dopamine": 0.5, "tempo": 1.0}

    health = wire.unpack_output(
        b"health", wire.pack_health(wire.HealthMessage(2.0, "streaming", {"counters": {"samples": 3}}))
    )
    assert isinstance(health, wire.HealthMessage)
    assert (health.t, health.state, health.counters) == (2.0, "streaming", {"samples": 3})

    event = wire.EventMessage("go", 3.0, 9, "lsl", {"trial": 4})
    assert wire.unpack_output(b"event", wire.pack_event(event)) == event
    without_value = wire.EventMessage("go", 3.0, 9, "lsl")
    assert "value" not in msgpack.unpackb(wire.pack_event(without_value))


def array_message(**changes: Any) -> wire.ArrayMessage:
    fields: dict[str, Any] = {
        "seq": 3,
        "tick": 500,
        "t": 2.5,
        "n": 700,
        "first": 512,
        "counts": "crossings",
        "unit": "uV",
        "rates_hz": np.arange(188, dtype=np.float32),
        "noise": np.full(188, np.nan, np.float32),
        "positions_um": np.zeros((0, 2), np.float32),
        "excluded": (4, 600),
        "sampling_frequency": 30000.0,
        "snippets": (wire.Snippet(5, 2.25, 20, np.linspace(-80.0, 20.0, 60, dtype=np.float32)),),
    }
    return wire.ArrayMessage(**(fields | changes))


@pytest.mark.parametrize("positions", [np.zeros((0, 2)), np.arange(376.0).reshape(188, 2)])
def test_the_state_of_the_array_comes_back_as_it_was_packed(positions: Any) -> None:
    message = array_message(positions_um=positions.astype(np.float32))

    back = wire.unpack_output(b"array", wire.pack_array(message))

    assert isinstance(back, wire.ArrayMessage)
    for name in ("seq", "tick", "t", "n", "first", "counts", "unit", "excluded", "sampling_frequency"):
        assert getattr(back, name) == getattr(message, name)
    for name in ("rates_hz", "noise", "positions_um"):
        np.testing.assert_array_equal(getattr(back, name), getattr(message, name))
    (snippet,) = back.snippets
    assert (snippet.channel, snippet.t_sample, snippet.crossing) == (5, 2.25, 20)
    assert snippet.data.tobytes() == message.snippets[0].data.tobytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 600}, Reason.LENGTH),
        ({"noise": bytes(4)}, Reason.LENGTH),
        ({"positions_um": bytes(4)}, Reason.LENGTH),
        ({"excluded": [700]}, Reason.TYPE),
        ({"excluded": [True]}, Reason.TYPE),
        ({"snippets": [1]}, Reason.TYPE),
        ({"snippets": [{"channel": 700, "t_sample": 0.0, "crossing": 0, "data": b""}]}, Reason.RANGE),
        ({"snippets": [{"channel": 0, "t_sample": 0.0, "crossing": 0}]}, Reason.MISSING_KEY),
    ],
)
def test_a_state_of_the_array_that_cannot_be_is_refused(changes: dict[str, Any], reason: Reason) -> None:
    body = msgpack.unpackb(wire.pack_array(array_message())) | changes

    with pytest.raises(MessageError) as refused:
        wire.unpack_output(b"array", msgpack.packb(body))

    assert refused.value.reason is reason


def test_a_subscriber_ignores_keys_that_a_later_daemon_adds() -> None:
    body = msgpack.unpackb(wire.pack_spikes(spikes_message())) | {"confidence": 0.5}

    assert isinstance(wire.unpack_output(b"spikes", msgpack.packb(body)), wire.SpikesMessage)


def test_a_message_of_another_protocol_version_is_refused_by_name() -> None:
    body = msgpack.unpackb(wire.pack_spikes(spikes_message())) | {"v": 2}

    with pytest.raises(MessageError, match=r"version 2.*speaks 1") as refused:
        wire.unpack_output(b"spikes", msgpack.packb(body))

    assert refused.value.reason is Reason.VERSION


# -- ingest


def test_sixteen_stimuli_are_always_the_74_bytes_that_the_loop_reads_itself() -> None:
    topic, payload = wire.pack_ingest(wire.StimuliInput(np.arange(16, dtype=np.float32)))

    assert topic == b"stimuli"
    assert payload == b"\x81\xa6values\xc4\x40" + np.arange(16, dtype="<f4").tobytes()


@given(values=st.lists(float32s, min_size=16, max_size=16))
def test_stimuli_as_a_list_or_as_binary_are_the_same(values: list[float]) -> None:
    as_list = wire.unpack_ingest(b"stimuli", msgpack.packb({"values": values}))
    as_binary = wire.unpack_ingest(*wire.pack_ingest(wire.StimuliInput(np.array(values, np.float32))))

    assert isinstance(as_list, wire.StimuliInput)
    assert isinstance(as_binary, wire.StimuliInput)
    assert as_list.values.tobytes() == as_binary.values.tobytes()
    assert as_list.values.dtype == np.dtype("<f4")


def test_a_refusal_is_a_protocol_error_and_a_value_error() -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_ingest(b"stimuli", b"")
    with pytest.raises(ValueError):
        wire.unpack_ingest(b"stimuli", b"")


@pytest.mark.parametrize(
    "message",
    [
        wire.ModulatorsInput({"dopamine": -1.0, "tempo": 4.0}),
        wire.RewardInput(-2.5),
        wire.StressInput(0.0),
        wire.BoardInput(0, 0),
        wire.BoardInput(2**63 - 1, 65535),
        wire.BoardInput(7, 1, True),
        wire.EventInput("cue"),
        wire.EventInput("cue", 12.25, {"side": "left", "n": [1, 2]}),
    ],
)
def test_what_a_client_packs_the_daemon_reads(message: wire.IngestMessage) -> None:
    assert wire.unpack_ingest(*wire.pack_ingest(message)) == message


@pytest.mark.parametrize(
    ("topic", "body", "reason"),
    [
        (b"spikes", {}, Reason.TOPIC),
        (b"", {}, Reason.TOPIC),
        (b"stimuli", {}, Reason.MISSING_KEY),
        (b"stimuli", {"values": [0.0] * 15}, Reason.LENGTH),
        (b"board", {"tick": 0, "spikes": 0, "checked": 1}, Reason.TYPE),
        (b"board", {"tick": 0, "spikes": 0, "checked": None}, Reason.TYPE),
        (b"board", {"tick": 0, "checked": True}, Reason.MISSING_KEY),
        (b"stimuli", {"values": bytes(60)}, Reason.LENGTH),
        (b"stimuli", {"values": "0" * 64}, Reason.TYPE),
        (b"stimuli", {"values": [0.0] * 15 + [True]}, Reason.TYPE),
        (b"stimuli", {"values": [0.0] * 15 + [math.nan]}, Reason.NONFINITE),
        (b"stimuli", {"values": [0.0] * 15 + [1e39]}, Reason.NONFINITE),  # finite, but not in float32
        (b"stimuli", {"values": np.full(16, np.inf, "<f4").tobytes()}, Reason.NONFINITE),
        (b"stimuli", {"values": [0.0] * 16, "gain": 2}, Reason.UNKNOWN_KEY),
        (b"stimuli", [0.0] * 16, Reason.TYPE),
        (b"modulators", {}, Reason.MISSING_KEY),
        (b"modulators", {"serotonin": 0.5}, Reason.UNKNOWN_KEY),
        (b"modulators", {"dopamine": 1.01}, Reason.RANGE),
        (b"modulators", {"cortisol": -0.01}, Reason.RANGE),
        (b"modulators", {"tempo": 0}, Reason.RANGE),
        (b"modulators", {"tempo": True}, Reason.TYPE),
        (b"modulators", {"tempo": math.inf}, Reason.NONFINITE),
        (b"reward", {"amount": "1"}, Reason.TYPE),
        (b"reward", {"amount": math.nan}, Reason.NONFINITE),
        (b"reward", {"amount": 1e300}, Reason.RANGE),  # would be Inf in float32
        (b"stress", {"amount": -0.1}, Reason.RANGE),
        (b"board", {"tick": 3}, Reason.MISSING_KEY),
        (b"board", {"tick": -1, "spikes": 0}, Reason.RANGE),
        (b"board", {"tick": 2**63, "spikes": 0}, Reason.RANGE),
        (b"board", {"tick": 3, "spikes": 65536}, Reason.RANGE),
        (b"board", {"tick": 3.0, "spikes": 1}, Reason.TYPE),
        (b"board", {"tick": 3, "spikes": b"01"}, Reason.TYPE),
        (b"board", {"tick": 3, "spikes": 1, "t": 0.0}, Reason.UNKNOWN_KEY),
        (b"event", {}, Reason.MISSING_KEY),
        (b"event", {"name": ""}, Reason.LENGTH),
        (b"event", {"name": "x" * 257}, Reason.LENGTH),
        (b"event", {"name": "x", "t": "now"}, Reason.TYPE),
        (b"event", {"name": "x", "t": math.nan}, Reason.NONFINITE),
        (b"event", {"name": "x", "value": [math.nan]}, Reason.NONFINITE),
        (b"event", {"name": "x", "value": "y" * 5000}, Reason.OVERSIZED),
        (b"event", {"name": "x", "value": msgpack.ExtType(4, b"")}, Reason.MSGPACK),
        (b"event", {"name": "x", "value": msgpack.Timestamp(1)}, Reason.MSGPACK),
        (b"event", {"name": "x", "value": {b"key": 1}}, Reason.TYPE),
        (b"event", {"name": "x", "value": [[[[[[[[[]]]]]]]]]}, Reason.NESTING),
    ],
)
def test_input_that_the_protocol_does_not_allow_is_refused_with_a_countable_reason(
    topic: bytes, body: Any, reason: Reason
) -> None:
    assert refusal(topic, msgpack.packb(body)) is reason


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", Reason.MSGPACK),
        (b"\x81", Reason.MSGPACK),
        (b"\xc1", Reason.MSGPACK),
        (b"\x81\xa6amount\x01\x00", Reason.MSGPACK),  # a byte after the end
        (b"\x82\xa6amount\x01\xa6amount\x02", Reason.MSGPACK),  # one key, two values
        (b"\x81\xa1\xff\x01", Reason.MSGPACK),  # not UTF-8
        (b"\xdf\xff\xff\xff\xff", Reason.MSGPACK),  # claims four thousand million entries
        (b"\x81\xa1a" + b"\x91" * 4000, Reason.NESTING),
        (b"\x81\x01\x01", Reason.MSGPACK),  # a key that is no string
        (b"\x00" * 4097, Reason.OVERSIZED),
    ],
)
def test_bytes_that_are_not_one_plain_map_are_refused(payload: bytes, reason: Reason) -> None:
    assert refusal(b"reward", payload) is reason


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)
keys = st.sampled_from(
    ["v", "seq", "tick", "n", "spikes", "values", "amount", "name", "t", "value", "dopamine", "cmd", "args", "id", "ok",
     "sample", "t_sample", "t_tick", "flags", "membrane", "rates_hz", "modulators", "state", "counters", "source"]
)  # fmt: skip
payloads = st.binary(max_size=200) | st.one_of(anything, st.dictionaries(keys, anything | st.just(1), max_size=10)).map(
    msgpack.packb
)


@given(topic=st.sampled_from([*wire.INGEST_TOPICS, b"\xff"]), payload=payloads)
def test_whatever_arrives_at_ingest_only_a_message_error_is_raised(topic: bytes, payload: bytes) -> None:
    with contextlib.suppress(MessageError):
        message = wire.unpack_ingest(topic, payload)
        if isinstance(message, wire.StimuliInput):
            assert np.isfinite(message.values).all()


@given(topic=st.sampled_from([*wire.OUTPUT_TOPICS, b"\xff"]), payload=payloads)
def test_whatever_a_subscriber_receives_only_a_message_error_is_raised(topic: bytes, payload: bytes) -> None:
    with contextlib.suppress(MessageError):
        wire.unpack_output(topic, payload)


@given(payload=payloads)
def test_whatever_arrives_at_control_only_a_message_error_is_raised(payload: bytes) -> None:
    for unpack in (wire.unpack_request, wire.unpack_reply):
        with contextlib.suppress(MessageError):
            unpack(payload)


@given(cut=st.integers(0, 107), flip=st.integers(0, 107), to=st.integers(0, 255))
def test_a_damaged_spikes_message_is_read_or_refused(cut: int, flip: int, to: int) -> None:
    packed = bytearray(wire.pack_spikes(spikes_message()))
    with pytest.raises(MessageError):
        wire.unpack_output(b"spikes", bytes(packed[:cut]))
    packed[flip] = to
    with contextlib.suppress(MessageError):
        wire.unpack_output(b"spikes", bytes(packed))


def test_a_message_has_exactly_two_parts() -> None:
    assert wire.split_parts([b"a", b"b"]) == (b"a", b"b")
    for frames in ([], [b"a"], [b"a", b"b", b"c"]):
        with pytest.raises(MessageError) as refused:
            wire.split_parts(frames)
        assert refused.value.reason is Reason.PARTS


# -- control


@pytest.mark.parametrize(
    "request_",
    [wire.Request("status"), wire.Request("set", {"parameters": {"network.gain": 2.0}}, 4), wire.Request("x", {}, "a")],
)
def test_a_request_comes_back_as_it_was_packed(request_: wire.Request) -> None:
    assert wire.unpack_request(wire.pack_request(request_)) == request_


@pytest.mark.parametrize("reply", [wire.Reply(True, {"a": 1}, id=3), wire.Reply(False, error="no", reason="busy")])
def test_a_reply_comes_back_as_it_was_packed(reply: wire.Reply) -> None:
    assert wire.unpack_reply(wire.pack_reply(reply)) == reply


def test_args_and_id_may_be_left_out() -> None:
    assert wire.unpack_request(msgpack.packb({"cmd": "status"})) == wire.Request("status")


def test_the_envelope_of_a_req_and_of_a_dealer_both_go_back_as_they_came() -> None:
    assert wire.split_envelope([b"id", b"request"]) == ([b"id"], b"request")
    assert wire.split_envelope([b"id", b"", b"request"]) == ([b"id", b""], b"request")
    for frames in ([b"id"], [b"id", b"x", b"request"], [b"id", b"", b"a", b"b"]):
        with pytest.raises(MessageError):
            wire.split_envelope(frames)


@pytest.mark.parametrize(
    ("cmd", "args", "reason"),
    [
        ("explode", {}, "unknown_command"),
        ("pause", {"for_s": 3}, "bad_args"),
        ("set", {}, "bad_args"),
        ("set", {"parameters": {}}, "bad_args"),
        ("restore", {}, "bad_args"),
        ("learning", {"on": 1}, "bad_args"),
    ],
)
def test_a_command_that_does_not_exist_or_does_not_fit_is_refused(cmd: str, args: dict[str, Any], reason: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_args(cmd, args)
    assert refused.value.reason == reason


# -- PROTOCOL.md is the authority


def test_protocol_md_states_this_version() -> None:
    assert f"Protocol version: **{wire.PROTOCOL_VERSION}**" in PROTOCOL_MD.read_text()


def test_protocol_md_lists_exactly_the_commands_of_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", _section("Commands"), re.MULTILINE)

    assert {name: doc for name, _, doc in rows} == {command.name: command.doc for command in COMMANDS.values()}
    for name, args, _ in rows:
        assert re.findall(r"`(\w+)`", args) == list(COMMANDS[name].args.model_fields)


def test_protocol_md_lists_exactly_the_flags() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", _section("Flags"), re.MULTILINE)

    assert {name: int(bit) for bit, name in rows} == {flag.name: flag.value for flag in Flag}


def test_protocol_md_lists_exactly_the_reasons_of_refusal() -> None:
    assert re.findall(r"^\| `(\w+)` \|", _section("Refusals"), re.MULTILINE) == [str(reason) for reason in Reason]


def test_protocol_md_states_the_offsets_of_a_spikes_message() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", _section("spikes"), re.MULTILINE)

    assert {name: int(offset) for offset, name in rows} == dict(wire.spikes_frame(16).offsets)


def test_protocol_md_states_the_offsets_of_a_stimuli_message() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", _section("Output `stimuli`"), re.MULTILINE)

    assert {name: int(offset) for offset, name in rows} == dict(wire.stimuli_frame(16).offsets)
    assert f"{len(wire.stimuli_frame(16).template)} bytes" in _section("Output `stimuli`")


def test_every_live_parameter_of_the_network_can_be_set_by_its_name_in_the_session_file() -> None:
    assert tuple(NETWORK_PARAMETERS.values()) == LIVE
    effective = SessionConfig(source=ZmqConfig()).effective()
    for dotted in NETWORK_PARAMETERS:
        value = effective
        for part in dotted.split("."):
            value = value[part]
        assert isinstance(value, int | float)


def test_modulators_have_the_limits_of_the_engine() -> None:
    assert tuple(wire.MODULATOR_LIMITS) == MODULATORS
    for name, (low, high) in wire.MODULATOR_LIMITS.items():
        NeuroModulators(**{name: low})
        NeuroModulators(**{name: high})
        for beyond in (low - 1e-6, high + 1e-6):
            with pytest.raises(pydantic.ValidationError):
                NeuroModulators(**{name: beyond})


def test_protocol_md_names_every_topic_and_default_address() -> None:
    text = PROTOCOL_MD.read_text()
    for topic in {*wire.OUTPUT_TOPICS, *wire.INGEST_TOPICS}:
        assert f"`{topic.decode()}`" in text
    for address in (wire.DEFAULT_INGEST, wire.DEFAULT_OUTPUT, wire.DEFAULT_CONTROL):
        assert address in text


def _section(title: str) -> str:
    found = re.search(
        rf"^#+ [^\n]*{title}[^\n]*\n(.*?)(?=^#)", PROTOCOL_MD.read_text() + "\n#", re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"PROTOCOL.md has no section {title}"
    return found[1]
