"""With a list of LSL streams, nobody else is listened to: not at the start, and not at a return."""

import logging

import pylsl
import pytest
from harness import wait_until

from conformance.makers import signal_outlet
from neuromod.adapters.config import LslConfig, MarkerConfig
from neuromod.adapters.lsl import Allows, LslMarkers, LslSource
from neuromod.bridge.config import parse
from neuromod.bridge.lsl_list import source_of
from neuromod.bridge.security_config import SecurityConfig
from neuromod.engine.errors import AdapterError


def allows(tmp_path: object, *sources: str) -> Allows:
    return SecurityConfig(keys=tmp_path, lsl_sources=sources).allows


@pytest.fixture(scope="module")
def host() -> str:
    """Return what LSL calls this host."""
    with signal_outlet("which host"):
        found = wait_until(lambda: pylsl.resolve_byprop("name", "which host", timeout=1.0), "an outlet of this host")
    return str(found[0].hostname())


def test_of_two_streams_of_one_name_the_one_on_the_list_is_taken(
    tmp_path: object, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with signal_outlet("amp", source_id="stranger"), signal_outlet("amp", source_id="ours"):
        source = LslSource(LslConfig(name="amp"), allows(tmp_path, f"{host}/ours"))
        source.open()
        info, quirks = source.info, source.quirks
        source.close()

    assert info.source_id == "ours"
    assert quirks == {"lsl_refused": 1}
    assert f"refused one of host '{host}' with source_id 'stranger'" in caplog.text


def test_any_source_of_a_host_may_be_listed_and_then_two_are_one_too_many(tmp_path: object, host: str) -> None:
    with signal_outlet("amp", source_id="one") as first:
        source = LslSource(LslConfig(name="amp"), allows(tmp_path, f"{host}/*"))
        source.open()
        assert source.info.source_id == first.source_id
        source.close()
        with signal_outlet("amp", source_id="two"), pytest.raises(AdapterError, match="2 LSL streams have"):
            LslSource(LslConfig(name="amp"), allows(tmp_path, f"{host}/*")).open()


@pytest.mark.parametrize("listed", [(), ("elsewhere/stranger",), ("elsewhere/*",), ("{host}/other",)])
def test_a_stream_that_is_not_on_the_list_is_refused_in_one_sentence(
    tmp_path: object, host: str, listed: tuple[str, ...]
) -> None:
    by_list = allows(tmp_path, *(entry.format(host=host) for entry in listed))
    with signal_outlet("amp", source_id="stranger"), pytest.raises(AdapterError) as error:
        LslSource(LslConfig(name="amp", resolve_timeout_s=1.0), by_list).open()

    said = str(error.value)
    assert f"{host}/stranger" in said
    assert "security.lsl_sources" in said
    assert "add it there as hostname/source_id" in said


def test_a_stream_without_a_source_id_is_on_no_list(tmp_path: object, host: str) -> None:
    assert not allows(tmp_path, f"{host}/*")(host, "")


def test_a_list_holds_for_markers_too(tmp_path: object, host: str) -> None:
    described = pylsl.StreamInfo("cues", "Markers", 1, 0, pylsl.cf_string, "cues-1")
    _outlet = pylsl.StreamOutlet(described)
    config = MarkerConfig(name="cues", resolve_timeout_s=1.0)

    with pytest.raises(AdapterError, match=r"security\.lsl_sources"):
        LslMarkers(config, allows(tmp_path, f"{host}/cues-2")).open()
    markers = LslMarkers(config, allows(tmp_path, f"{host}/cues-1"))
    markers.open()
    assert markers.info.source_id == "cues-1"
    markers.close()


def test_at_a_return_a_stranger_is_refused_counted_and_told_of_and_the_search_goes_on(
    tmp_path: object, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with signal_outlet("amp", source_id="ours"):
        source = LslSource(LslConfig(name="amp"), allows(tmp_path, f"{host}/ours"))
        source.open()
    wait_until(lambda: len(source.read(1, 0.1)) == 0 and source.is_lost, "the loss")
    with signal_outlet("amp", source_id="stranger"):
        wait_until(lambda: source.reconnect(0.2) or source.quirks.get("lsl_refused"), "the stranger")
        assert source.is_lost
        assert source.quirks["lsl_refused"] == 1
        with signal_outlet("amp", source_id="ours"):
            wait_until(lambda: source.reconnect(0.5), "the return")
            assert source.info.source_id == "ours"
            source.close()
    assert sum("with source_id 'stranger'" in message for message in caplog.messages) == 1


def test_the_section_security_is_what_a_session_goes_by(tmp_path: object, host: str) -> None:
    text = f'source = {{kind = "lsl", name = "amp", resolve_timeout_s = 1.0}}\n[security]\nkeys = "{tmp_path}"\n'
    with signal_outlet("amp", source_id="ours"):
        with pytest.raises(AdapterError, match=r"security\.lsl_sources"):
            source_of(parse(text)).open()
        source = source_of(parse(f'{text}lsl_sources = ["{host}/ours"]\n'))
        source.open()
        assert source.info.source_id == "ours"
        source.close()
