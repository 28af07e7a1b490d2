"""A configuration that cannot work is refused before a network exists, with a word on what would."""

from typing import Any

import pydantic
import pytest

from neuromod.engine.config import ChannelOverride, NetworkConfig, check_live
from neuromod.engine.layout import LIVE


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"sead": 1}, "sead"),
        ({"seed": -1}, "seed"),
        ({"sensory": {"parameters": {"tau_ms": 3}}}, "has no parameter 'tau_ms'; it has tau_mem_ms"),
        ({"sensory": {"parameters": {"tau_mem_ms": 0}}}, "tau_mem_ms must lie within 0.1 and 10000, got 0"),
        ({"sensory": {"parameters": {"tau_mem_ms": float("nan")}}}, "tau_mem_ms must lie within"),
        ({"sensory": {"parameters": {"v_reset_mv": 15}}}, "v_min_mv <= v_reset_mv < v_threshold_mv"),
        ({"sensory": {"parameters": {"v_min_mv": -1, "v_reset_mv": -2}}}, "v_min_mv <= v_reset_mv"),
        ({"sensory": {"model": "hodgkin"}}, "'lif'"),
        ({"sensory": {"gain": float("inf")}}, "finite"),
        ({"channels": {3: {"parameters": {"tau_mem_ms": -1}}}}, "channel 3: .*tau_mem_ms"),
        ({"channels": {16: {}}}, "less than 16"),
        ({"channels": {14: {}}}, "coincidence detector"),
        ({"coincidence": {"min_channels": 0}}, "min_channels"),
        ({"coincidence": {"min_channels": 15}}, "min_channels"),
        ({"coincidence": {"window_ms": -1}}, "window_ms"),
        ({"inhibition": {"strength_mv": -1}}, "strength_mv"),
        ({"weights": {"kind": "given", "matrix_mv": [[0] * 16] * 15}}, "at least 16"),
        ({"weights": {"kind": "given", "matrix_mv": [[0] * 15] * 16}}, "at least 16"),
        ({"weights": {"kind": "given", "matrix_mv": [[1] * 16] * 16}}, "column 14"),
        ({"weights": {"kind": "given", "matrix_mv": [[1e6] * 16] * 16}}, "1000"),
        ({"weights": {"kind": "random", "low_mv": 2, "high_mv": 1}}, "must not exceed"),
        ({"modulation": {"dopamine_tau_ms": 0}}, "dopamine_tau_ms"),
        ({"modulation": {"baseline": {"tempo": 9}}}, "tempo"),
        ({"stimulus_limit": 0}, "stimulus_limit"),
    ],
)
def test_a_bad_configuration_is_refused(data: dict[str, Any], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        NetworkConfig.model_validate(data)


def test_a_configuration_survives_a_round_trip_as_plain_data() -> None:
    config = NetworkConfig(seed=3, channels={2: ChannelOverride(gain=3.5)})
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config
    assert NetworkConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_channel_takes_over_what_it_does_not_name() -> None:
    config = NetworkConfig.model_validate(
        {
            "sensory": {"gain": 4, "parameters": {"tau_mem_ms": 7, "refractory_ms": 1}},
            "channels": {"2": {"bias": 1, "parameters": {"refractory_ms": 3}}},
        }
    )
    assert config.channel(2).gain == 4
    assert config.channel(2).bias == 1
    assert config.channel(2).complete_parameters()["tau_mem_ms"] == 7
    assert config.channel(2).complete_parameters()["refractory_ms"] == 3
    assert config.channel(3).complete_parameters()["refractory_ms"] == 1
    assert config.channel(15).gain == 0


def test_the_interneuron_keeps_its_own_defaults_where_others_are_set() -> None:
    config = NetworkConfig.model_validate({"interneuron": {"parameters": {"v_threshold_mv": 12}}})
    assert (config.channel(15).gain, config.channel(15).bias) == (0, 0)


def test_the_default_of_every_live_parameter_is_allowed() -> None:
    values = NetworkConfig().live_values()
    assert tuple(check_live(name, value) for name, value in zip(LIVE, values, strict=True)) == values


def test_the_interneuron_keeps_its_defaults_with_another_model() -> None:
    config = NetworkConfig.model_validate({"channels": {"15": {"model": "adex"}}})
    assert (config.channel(15).gain, config.channel(15).bias) == (0, 0)


@pytest.mark.parametrize("where", [{"interneuron": {}}, {"channels": {"15": {}}}])
def test_one_parameter_of_the_interneuron_leaves_the_others_quick(where: dict[str, dict[str, Any]]) -> None:
    key = next(iter(where))
    own = {"parameters": {"refractory_ms": 1.0}}
    config = NetworkConfig.model_validate({key: own if key == "interneuron" else {"15": own}})
    assert config.channel(15).complete_parameters()["tau_mem_ms"] == 10
    assert config.channel(15).complete_parameters()["refractory_ms"] == 1
