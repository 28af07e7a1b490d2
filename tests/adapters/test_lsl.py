"""Lab Streaming Layer in: who is listened to, in what units, and who is refused when it comes back."""

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pylsl
import pytest
from harness import wait_until

from conformance.makers import Sender, sender, signal_outlet
from conformance.sources import read_all
from neuromod.adapters import lsl
from neuromod.adapters.base import Marker, StreamInfo
from neuromod.adapters.config import LslConfig, MarkerConfig
from neuromod.adapters.lsl import LslMarkers, LslSource, list_streams, marker_row
from neuromod.engine.errors import AdapterError, AdapterTimeoutError


def opened(**query: object) -> LslSource:
    source = LslSource(LslConfig(**query))
    source.open()
    return source


def refusal(**query: object) -> str:
    with pytest.raises(AdapterError) as error:
        LslSource(LslConfig(**query)).open()
    return str(error.value)


def test_samples_and_stamps_arrive_as_they_were_sent() -> None:
    with signal_outlet("plain") as sender:
        source = opened(name="plain", type="EEG")
        sent = np.arange(20, dtype=np.float32).reshape(10, 2)
        stamps = 123.0 + np.arange(10) / 7.0
        sender.outlet.push_chunk(sent, stamps.tolist())
        got = read_all(source, 4, enough=10)
        source.close()
    np.testing.assert_array_equal(got.samples, sent)
    np.testing.assert_array_equal(got.stamps, stamps)


def test_known_voltages_become_microvolt_and_the_loop_is_told_the_factor() -> None:
    with signal_outlet("units", n_channels=4, units=["V", "millivolts", "µV", "a.u."], labels=list("aabc")) as sender:
        source = opened(name="units")
        sender.outlet.push_sample([1.0, 2.0, 3.0, 4.0])
        chunk = source.read(1, 2.0)
        info, scale, handle = source.info, source.scale, source.handle
        source.close()
    assert info.units == ("uV", "uV", "uV", "a.u.")
    assert info.channel_names == ("a", "a_2", "b", "c")
    np.testing.assert_array_equal(scale, np.array([1e6, 1e3, 1, 1], np.float32))
    np.testing.assert_array_equal(chunk.samples, np.array([[1e6, 2e3, 3, 4]], np.float32))
    assert handle > 0


@pytest.mark.parametrize("fmt", [pylsl.cf_int16, pylsl.cf_int32, pylsl.cf_double64])
def test_every_number_format_is_read_as_float32(fmt: int) -> None:
    with signal_outlet("formats", fmt=fmt) as sender:
        source = opened(name="formats")
        sender.outlet.push_sample([-5, 1234])
        chunk = source.read(1, 2.0)
        source.close()
    np.testing.assert_array_equal(chunk.samples, np.array([[-5, 1234]], np.float32))


def test_a_missing_stream_is_reported_with_what_was_seen() -> None:
    def is_named() -> bool:
        message = refusal(name="absent", resolve_timeout_s=0.3)
        assert 'name "absent"' in message
        return 'name "present"' in message

    with signal_outlet("present"):
        wait_until(is_named, "what was seen")


def test_two_streams_that_match_are_an_error_that_names_both() -> None:
    with signal_outlet("twin", source_id="left"), signal_outlet("twin", source_id="right"):
        message = refusal(name="twin")
        assert "left" in message
        assert "right" in message
        source = opened(name="twin", source_id="right")
        assert source.info.source_id == "right"
        source.close()


def test_quotes_in_a_name_do_not_break_the_search() -> None:
    with signal_outlet('it\'s a "rig"'):
        opened(name='it\'s a "rig"').close()


def test_a_stream_that_is_not_what_was_said_is_refused() -> None:
    with signal_outlet("other", rate=500.0, n_channels=3):
        assert "has 3 channels" in refusal(name="other", n_channels=4)
        assert "runs at 500 Hz" in refusal(name="other", sampling_frequency_hz=1000.0)
        assert "runs at 500 Hz" in refusal(name="other", content="features", bin_ms=10.0)


def test_a_stream_of_strings_is_no_signal_and_a_signal_no_marker_stream() -> None:
    with signal_outlet("words", fmt=pylsl.cf_string, rate=0.0), signal_outlet("numbers"):
        assert "string" in refusal(name="words")
        with pytest.raises(AdapterError, match="1000 Hz"):
            LslMarkers(MarkerConfig(name="numbers")).open()


def test_features_of_irregular_rate_need_a_stated_bin() -> None:
    with signal_outlet("bins", rate=0.0):
        assert "bin_ms" in refusal(name="bins", content="features")
        source = opened(name="bins", content="features", bin_ms=50.0)
        assert source.info.kind == "features"
        assert not source.info.is_regular
        assert source.info.sampling_frequency == 20.0
        source.close()


def test_the_clock_is_known_before_the_first_sample() -> None:
    with signal_outlet("clock"):
        source = opened(name="clock")
        offset, uncertainty = source.correction()
        source.close()
    # the same machine: liblsl measures its own round trip on loopback, and takes none of 30 ms
    assert abs(offset) <= max(uncertainty, 0.01)
    assert 0 <= uncertainty < 0.03


def test_a_lost_stream_is_noticed_and_only_the_same_one_taken_back() -> None:
    with signal_outlet("amp", source_id="serial-1") as sender:
        source = opened(name="amp")
        sender.outlet.push_sample([1.0, 2.0])
        assert len(source.read(1, 2.0)) == 1
        first_handle = source.handle
    while not source.is_lost:
        assert len(source.read(1, 0.1)) == 0
    assert not source.ended
    assert source.quirks["lost"] == 1
    with signal_outlet("amp", source_id="serial-2"):
        assert not source.reconnect(0.3)
        assert source.is_lost
        with pytest.raises(AdapterError):
            _ = source.handle
        assert np.isnan(source.correction()).all()
        assert len(source.read(1, 0.0)) == 0
    with signal_outlet("amp", source_id="serial-1", n_channels=5):
        wait_until(lambda: source.reconnect(0.5) or source.quirks.get("refused_reconnects"), "the refusal")
        assert source.is_lost
    with signal_outlet("amp", source_id="serial-1") as sender:
        assert source.reconnect(20.0)
        assert source.handle
        sender.outlet.push_sample([3.0, 4.0])
        np.testing.assert_array_equal(source.read(1, 2.0).samples, np.array([[3.0, 4.0]], np.float32))
        source.close()
    assert (source.quirks["refused_reconnects"], source.quirks["reconnects"]) == (1, 1)
    assert first_handle > 0


def freeze_after(monkeypatch: pytest.MonkeyPatch, step: str, frozen: Sender) -> None:
    """Have a sender stand still once a step of connecting is done."""
    owner = lsl if hasattr(lsl, step) else lsl._Connection
    original: Callable[..., Any] = getattr(owner, step)

    def with_freeze(*args: Any) -> Any:
        result = original(*args)
        frozen.freeze()
        return result

    monkeypatch.setattr(owner, step, with_freeze)


@pytest.mark.parametrize(
    ("done", "unanswered"),
    [("_wait_for", "request for the description"), ("_attach", "clock probes"), ("_learn_clock", "subscription")],
)
def test_a_sender_that_stops_answering_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, done: str, unanswered: str
) -> None:
    with sender("frozen", "frozen-1") as frozen:
        freeze_after(monkeypatch, done, frozen)
        with pytest.raises(AdapterTimeoutError, match=rf"seen, but its {unanswered}.* was not answered within 2 s"):
            LslSource(LslConfig(name="frozen", resolve_timeout_s=2.0)).open()


@pytest.mark.parametrize("done", ["_wait_for", "_attach", "_learn_clock"])
def test_a_sender_that_stops_answering_is_not_back_yet(monkeypatch: pytest.MonkeyPatch, done: str) -> None:
    with sender("back", "back-1"):
        source = opened(name="back")
    while not source.is_lost:
        source.read(1, 0.1)
    with sender("back", "back-1") as frozen, monkeypatch.context() as patch:
        freeze_after(patch, done, frozen)
        assert not source.reconnect(2.0)
        assert source.is_lost
    with sender("back", "back-1"):
        assert source.reconnect(5.0)
    source.close()


def test_a_stream_without_source_id_is_never_taken_back() -> None:
    with signal_outlet("nameless", source_id="") as sender:
        source = opened(name="nameless")
        assert sender.source_id == ""
        if source.info.source_id:
            pytest.skip("this pylsl invents a source_id")
    with signal_outlet("nameless", source_id=""):
        assert not source.reconnect(0.3)
    source.close()


def test_markers_keep_name_value_and_stamp() -> None:
    sent = [Marker(1.5, "go"), Marker(2.5, "dose", 3), Marker(3.5, "é", "mg"), Marker(4.5, "level", 0.25)]
    with signal_outlet("events", fmt=pylsl.cf_string, rate=0.0, type="Markers") as sender:
        markers = LslMarkers(MarkerConfig(name="events"))
        markers.open()
        for marker in sent:
            sender.outlet.push_sample(marker_row(marker), marker.t)
        seen: list[Marker] = []
        while len(seen) < len(sent):
            seen += markers.markers()
        offset, uncertainty = markers.correction()
        assert abs(offset) <= max(uncertainty, 0.01)
        markers.close()
    assert seen == sent


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("202611231714361234567890", "202611231714361234567890"),
        ("18446744073709551615", 2**64 - 1),
        ("18446744073709551616", "18446744073709551616"),
        ("-9223372036854775808", -(2**63)),
        ("-9223372036854775809", "-9223372036854775809"),
        ("9" * 5000, "9" * 5000),
        ("2.5", 2.5),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\ud83d"', '"\\ud83d"'),
        ("left hand", "left hand"),
        ('{"a": 1}', '{"a": 1}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_that_cannot_go_on_as_a_number_stays_text(text: str, value: str | int | float) -> None:
    marker = lsl._text_marker(1.0, ["cue", text])
    assert marker == Marker(1.0, "cue", value)
    assert type(marker.value) is type(value)
    assert msgpack.unpackb(msgpack.packb(marker.value)) == value


def test_markers_of_numbers_are_named_by_their_stream() -> None:
    with signal_outlet("ttl", n_channels=1, fmt=pylsl.cf_int32, rate=0.0) as sender:
        markers = LslMarkers(MarkerConfig(name="ttl"))
        markers.open()
        sender.outlet.push_sample([7], 1.0)
        seen: list[Marker] = []
        while not seen:
            seen += markers.markers()
        assert seen == [Marker(1.0, "ttl", 7)]
        sender.vanish()
        while not markers.is_lost:
            assert markers.markers() == []
        markers.close()


def test_streams_are_listed_by_name() -> None:
    def found() -> dict[str, StreamInfo] | None:
        seen = {info.name: info for info in list_streams(0.5)}
        return seen if {"a", "b"} <= set(seen) else None

    with signal_outlet("b", n_channels=3), signal_outlet("a", rate=250.0):
        seen = wait_until(found, "both streams")
    assert list(seen) == sorted(seen)
    assert seen["b"].n_channels == 3
    assert seen["a"].sampling_frequency == 250.0


def test_a_stream_that_does_not_come_times_out_with_the_builtin_too() -> None:
    with pytest.raises(TimeoutError, match="seen: no stream at all"):
        LslSource(LslConfig(name="nobody", resolve_timeout_s=0.1)).open()
    assert issubclass(AdapterTimeoutError, TimeoutError)
