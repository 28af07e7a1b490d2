"""What a session file may say about its decoder."""

from typing import Any

import pydantic
import pytest

from neuromod.adapters.decoder import make_decoder
from neuromod.adapters.decoder_config import (
    DecoderConfig,
    DecoderFileConfig,
    KalmanConfig,
    LinearConfig,
    PopulationVectorConfig,
    RatesConfig,
)
from neuromod.engine.errors import ConfigError

_ADAPTER: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(DecoderConfig)

EYE2, EYE3 = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
RATES: dict[str, Any] = {"kind": "rates", "channels": [0, 1, 2]}
VECTOR: dict[str, Any] = {
    "kind": "population_vector",
    "channels": [0, 1, 2],
    "preferred_directions": [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]],
}
LINEAR: dict[str, Any] = {"kind": "linear", "weights": [[1.0] * 16, [2.0] * 16]}
KALMAN: dict[str, Any] = {
    "kind": "kalman",
    "channels": [0, 1, 2],
    "states": ["x", "v"],
    "outputs": ["v"],
    "state_mean": [0.0, 0.0],
    "count_mean": [1.0, 1.0, 1.0],
    "transition": EYE2,
    "transition_noise": EYE2,
    "observation": [[1.0, 0.0]] * 3,
    "observation_noise": EYE3,
    "initial_covariance": EYE2,
}


@pytest.mark.parametrize(
    ("values", "kind", "n_outputs"),
    [
        (RATES, RatesConfig, 3),
        ({"channels": [5]}, RatesConfig, 1),
        (VECTOR, PopulationVectorConfig, 2),
        (LINEAR, LinearConfig, 2),
        (KALMAN, KalmanConfig, 1),
    ],
)
def test_kind_tells_the_decoders_apart(values: dict[str, Any], kind: type, n_outputs: int) -> None:
    config: Any = _ADAPTER.validate_python(values)
    assert kind.__name__ == type(config).__name__
    assert make_decoder(config, 1.0)[0]["n_outputs"] == n_outputs
    assert _ADAPTER.validate_json(_ADAPTER.dump_json(config)) == config


def test_a_path_names_a_fitted_decoder() -> None:
    config = _ADAPTER.validate_python({"path": "reach-v3.json"})
    assert isinstance(config, DecoderFileConfig)
    assert config.path.name == "reach-v3.json"


def test_a_path_leaves_nothing_else_to_say_but_events() -> None:
    with pytest.raises(pydantic.ValidationError, match="tau_ms"):
        _ADAPTER.validate_python({"path": "reach-v3.json", "tau_ms": 20.0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "neural"}, "does not match any of the expected tags"),
        (RATES | {"tau": 20.0}, "Extra inputs"),
        (RATES | {"channels": [0, 0]}, "names a channel twice"),
        (RATES | {"channels": list(range(9))}, "at most 8"),
        (RATES | {"channels": [16]}, "less than 16"),
        (RATES | {"limit": float("inf")}, r"limit"),
        (RATES | {"limit": float("nan")}, "limit"),
        (RATES | {"gain": float("nan")}, "gain"),
        (RATES | {"events": [{"output": 3, "above": 1.0}]}, r"events\[0\] watches output 3; the decoder has 3"),
        (RATES | {"events": [{"channel": 1}] * 17}, "at most 16"),
        (RATES | {"events": [{}]}, "an event watches one thing"),
        (RATES | {"events": [{"output": 0, "channel": 1, "above": 1.0}]}, "an event watches one thing"),
        (RATES | {"events": [{"output": 0}]}, "needs the level"),
        (RATES | {"events": [{"channel": 1, "above": 3.0}]}, "a spike has no level"),
        (RATES | {"events": [{"output": 0, "above": 1.0, "below": 2.0}]}, "below = 2 lies over above = 1"),
        (VECTOR | {"preferred_directions": [[1.0, 0.0]]}, "has 1 entries for 3 channels"),
        (VECTOR | {"preferred_directions": [[1.0, 0], [0, 1.0], [1.0, 0, 0]]}, "mixes two and three dimensions"),
        (VECTOR | {"preferred_directions": [[1.0, 0], [0, 1.0], [0, 0]]}, "points nowhere"),
        (VECTOR | {"preferred_directions": [[1.0]] * 3}, "at least 2"),
        (VECTOR | {"depth_hz": 0.0}, "greater than"),
        (VECTOR | {"depth_hz": [1.0, 2.0]}, "depth_hz has 2 entries for 3 channels"),
        (LINEAR | {"n_lags": 2}, r"weights\[0\] has 1 lags; n_lags = 2 expected"),
        (LINEAR | {"n_lags": 11}, "less than or equal to 10"),
        (LINEAR | {"features": "rates", "n_lags": 2}, "rates have one lag"),
        (LINEAR | {"weights": [[1.0] * 15]}, "at least 16"),
        (LINEAR | {"weights": [[1.0] * 16] * 9}, "at most 8"),
        (LINEAR | {"weights": [[1e10] * 16]}, "less than or equal"),
        (LINEAR | {"bias": [1.0]}, "bias has 1 entries for 2 outputs"),
        (KALMAN | {"states": ["x", "x"]}, "names a state twice"),
        (KALMAN | {"outputs": ["speed"]}, 'outputs names "speed"; the states are x, v'),
        (KALMAN | {"count_mean": [1.0]}, "count_mean has 1 entries; 3 expected"),
        (KALMAN | {"observation": EYE2}, "observation has 2 rows"),
        (KALMAN | {"transition": [[1e4, 0], [0, 1]]}, "less than or equal to 1000"),
        (KALMAN | {"transition_noise": [[1.0, 0.5], [0.0, 1.0]]}, "is not symmetric"),
        (KALMAN | {"transition_noise": [[1.0, 2.0], [2.0, 1.0]]}, "is no covariance: it has a negative direction"),
        (KALMAN | {"initial_covariance": [[0.0, 1.0], [1.0, 1.0]]}, "has covariances but no variance"),
        (KALMAN | {"observation_noise": [[1.0] * 3] * 3}, "is not positive definite"),
        (KALMAN | {"observation_noise": [[0.0] * 3] * 3}, "is not positive definite"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        _ADAPTER.validate_python(values)


def test_counts_that_would_tell_more_than_counts_can_are_refused() -> None:
    config = _ADAPTER.validate_python(
        KALMAN | {"observation": [[1e9, 0.0]] * 3, "observation_noise": [[1e-9, 0, 0], [0, 1e-9, 0], [0, 0, 1e-9]]}
    )
    with pytest.raises(ConfigError, match="observation_noise is far too small"):
        make_decoder(config, 1.0)


@pytest.mark.parametrize("dt_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tick_has_a_positive_length(dt_ms: float) -> None:
    with pytest.raises(ConfigError, match="a positive duration expected"):
        make_decoder(None, dt_ms)
