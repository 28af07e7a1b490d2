"""What a session may say about its sources, and how third parties add theirs."""

from importlib.metadata import EntryPoint
from typing import Any

import pydantic
import pytest

from neuromod.adapters import base, plugins
from neuromod.adapters.config import LslConfig, PluginConfig, SourceConfig, ZmqConfig
from neuromod.adapters.memory import MemorySource
from neuromod.engine.errors import ConfigError

ADAPTER: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(SourceConfig)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"kind": "lsl"}, "at least one of name, type, source_id or hostname"),
        ({"kind": "lsl", "name": "x", "nmae": "y"}, "nmae"),
        ({"kind": "lsl", "name": "x", "bin_ms": 50}, "bin_ms goes with content"),
        ({"kind": "lsl", "name": "x", "content": "features", "sampling_frequency_hz": 20}, "features state bin_ms"),
        ({"kind": "features", "path": "x.npy"}, "bin_ms"),
        ({"kind": "features", "path": "x.npy", "bin_ms": 0.5}, "greater than or equal to 1"),
        ({"kind": "units", "path": "x", "bin_ms": 101}, "less than or equal to 100"),
        ({"kind": "recording", "path": "x", "sampling_frequency_hz": float("nan")}, "sampling_frequency_hz"),
        ({"kind": "lls", "name": "x"}, 'no source of kind "lls" is installed; known kinds: features, lsl'),
        ({"name": "x"}, "kind"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_reason(said: dict[str, Any], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        ADAPTER.validate_python(said)


def test_every_kind_of_ours_is_told_by_its_word() -> None:
    assert isinstance(ADAPTER.validate_python({"kind": "lsl", "type": "EEG"}), LslConfig)
    assert ADAPTER.validate_python({"kind": "zmq"}) == ZmqConfig()
    assert ADAPTER.validate_python(LslConfig(name="x")) == LslConfig(name="x")


def build_third_party(config: PluginConfig) -> MemorySource:
    return MemorySource([[config.options["value"]]], 1000.0)


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("thirdparty", f"{__name__}:build_third_party", base.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module_anywhere:build", base.ENTRY_POINT_GROUP),
    ]
    ours = list(plugins.installed(base.ENTRY_POINT_GROUP).values())
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*ours, *points])


def test_a_third_party_kind_passes_with_its_own_options(third_party: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda self: build_third_party)
    config = ADAPTER.validate_python({"kind": "thirdparty", "value": 4.0})
    assert config.options == {"value": 4.0}
    source = base.open_source(config)
    assert source.read(1).samples[0, 0] == 4.0


def test_a_kind_that_cannot_be_imported_says_what_is_missing(third_party: None) -> None:
    with pytest.raises(ConfigError, match="no_such_module_anywhere"):
        base.open_source(ADAPTER.validate_python({"kind": "broken"}))


def test_our_kinds_are_found_through_entry_points() -> None:
    assert {"lsl", "recording", "xdf", "features", "units"} <= set(plugins.installed(base.ENTRY_POINT_GROUP))
    for kind, point in plugins.installed(base.ENTRY_POINT_GROUP).items():
        assert callable(point.load()), kind


def test_a_kind_without_an_entry_point_is_an_error_when_it_is_opened() -> None:
    with pytest.raises(ConfigError, match='source kind "zmq" is not installed'):
        base.open_source(ZmqConfig())


def test_channel_names_become_unique_and_never_empty() -> None:
    assert base.unique_names(["a", "", "a", None, "a"]) == ("a", "ch2", "a_3", "ch4", "a_5")


@pytest.mark.parametrize(
    ("unit", "factor"), [("uV", 1.0), ("µV", 1.0), ("microvolts", 1.0), ("mV", 1e3), ("V", 1e6), ("counts", None)]
)
def test_voltages_are_known_by_the_usual_words(unit: str, factor: float | None) -> None:
    assert base.microvolts_per(unit) == factor
