"""What a session file may say about its decoder, and what a fitted decoder file holds."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Discriminator, Field, Tag

from neuromod.engine.layout import N_CHANNELS, N_SENSORY

N_OUTPUTS = 8
"""Most outputs of a decoder."""

MAX_EVENTS = 16
MAX_LAGS = 10
MAX_STATES = 6

# Limits that keep every product of a tick far from the largest float64, whatever the spikes.
_Number = Annotated[float, Field(ge=-1e9, le=1e9)]
_Variance = Annotated[float, Field(ge=-1e12, le=1e12)]
_Limit = Annotated[float, Field(gt=0.0, le=1e30)]
_Channel = Annotated[int, Field(ge=0, lt=N_CHANNELS)]
_RateHz = Annotated[float, Field(ge=0.0, le=1e6)]
_DepthHz = Annotated[float, Field(gt=1e-6, le=1e6)]
_TauMs = Annotated[float, Field(ge=0.1, le=60_000.0)]
_BinMs = Annotated[float, Field(ge=0.1, le=10_000.0)]
_SettleMs = Annotated[float, Field(ge=0.0, le=600_000.0)]


class _Config(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen, unknown keys refused."""


class EventConfig(_Config, frozen=True, extra="forbid"):
    """Something that happens in one tick: an output rises above a level, or a channel spikes.

    Attributes
    ----------
    output : int, optional
        Output that is watched, from 0.
    above : float, optional
        The event happens when the output rises above this, in the output's unit.
    below : float, optional
        It can happen again after the output fell below this; by default the same as `above`.
    channel : int, optional
        Channel whose every spike is the event, instead of an output.
    refractory_ms : float
        Least time between two events; what would happen in between does not, and is not made up for.
    """

    output: Annotated[int, Field(ge=0, lt=N_OUTPUTS)] | None = None
    above: _Number | None = None
    below: _Number | None = None
    channel: _Channel | None = None
    refractory_ms: Annotated[float, Field(ge=0.0, le=3_600_000.0)] = 0.0

    @pydantic.model_validator(mode="after")
    def _watches_one_thing(self) -> Self:
        if (self.output is None) == (self.channel is None):
            raise ValueError("an event watches one thing: give output = ..., above = ..., or channel = ...")
        if self.channel is not None and (self.above is not None or self.below is not None):
            raise ValueError("a spike has no level: above and below go with output, not with channel")
        if self.output is not None and self.above is None:
            raise ValueError(f"an event of output {self.output} needs the level it rises above: above = ...")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(f"below = {self.below:g} lies over above = {self.above:g}; swap them, or lower below")
        return self


class _DecoderConfig(_Config, frozen=True, extra="forbid"):
    """What all kinds share.

    Attributes
    ----------
    limit : float
        Every output is held to between -limit and limit, in the output's unit.
    events : tuple of EventConfig
        Up to 16; event j is bit j.
    """

    limit: _Limit = 1e6
    events: Annotated[tuple[EventConfig, ...], Field(max_length=MAX_EVENTS)] = ()

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        raise NotImplementedError

    @pydantic.model_validator(mode="after")
    def _events_have_outputs(self) -> Self:
        for j, event in enumerate(self.events):
            if event.output is not None and event.output >= self.n_outputs:
                raise ValueError(
                    f"events[{j}] watches output {event.output}; the decoder has {self.n_outputs}, numbered from 0"
                )
        return self


def _no_twins(channels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(channels)) != len(channels):
        raise ValueError(f"channels = {list(channels)} names a channel twice")
    return channels


_Channels = Annotated[
    tuple[_Channel, ...], Field(min_length=1, max_length=N_CHANNELS), pydantic.AfterValidator(_no_twins)
]


class RatesConfig(_DecoderConfig, frozen=True, extra="forbid"):
    """Firing rates, smoothed by a causal exponential: output i is the rate of channel i of `channels`.

    Attributes
    ----------
    channels : tuple of int
        One to eight channels.
    tau_ms : float
        Time constant of the exponential.
    gain : float
        Output per spike/s.
    """

    kind: Literal["rates"] = "rates"
    channels: Annotated[_Channels, Field(max_length=N_OUTPUTS)] = tuple(range(N_OUTPUTS))
    tau_ms: _TauMs = 100.0
    gain: _Number = 1.0

    @property
    def n_outputs(self) -> int:
        """One a channel."""
        return len(self.channels)


class PopulationVectorConfig(_DecoderConfig, frozen=True, extra="forbid"):
    """Population vector in two or three dimensions.

    Each channel votes for its preferred direction with the weight (rate - baseline) / depth, where depth is how far
    the rate rises above the baseline for a movement in that direction [1]_. The sum is multiplied by dimensions /
    channels, so that for cosine tuning and evenly spread directions full modulation gives a vector of length `gain`.

    Attributes
    ----------
    channels : tuple of int
        Channels that vote.
    preferred_directions : tuple of tuple of float
        One for each of `channels`, of 2 or 3 numbers; made unit vectors.
    baseline_hz, depth_hz : float or tuple of float
        For all, or one for each of `channels`, in spikes/s.
    gain : float
        Length of the output at full modulation.
    tau_ms : float
        Time constant of the rates.
    settle_ms : float, optional
        Time after the start in which outputs stay 0, since rates are not known yet; by default 3 `tau_ms`.

    References
    ----------
    .. [1] Georgopoulos, Schwartz & Kettner (1986), Science 233, 1416-1419.
    """

    kind: Literal["population_vector"] = "population_vector"
    channels: _Channels = tuple(range(N_SENSORY))
    preferred_directions: tuple[Annotated[tuple[_Number, ...], Field(min_length=2, max_length=3)], ...]
    baseline_hz: _RateHz | tuple[_RateHz, ...] = 20.0
    depth_hz: _DepthHz | tuple[_DepthHz, ...] = 20.0
    gain: _Number = 1.0
    tau_ms: _TauMs = 100.0
    settle_ms: _SettleMs | None = None

    @property
    def n_outputs(self) -> int:
        """Number of dimensions."""
        return len(self.preferred_directions[0])

    def per_channel(self, name: Literal["baseline_hz", "depth_hz"]) -> tuple[float, ...]:
        """Return a parameter that may be one number, as one for each of `channels`."""
        value: float | tuple[float, ...] = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.channels)

    @pydantic.model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        n = len(self.channels)
        lengths = [
            ("preferred_directions", len(self.preferred_directions)),
            ("baseline_hz", len(self.per_channel("baseline_hz"))),
            ("depth_hz", len(self.per_channel("depth_hz"))),
        ]
        for name, length in lengths:
            if length != n:
                raise ValueError(f"{name} has {length} entries for {n} channels; give one for each")
        if len({len(direction) for direction in self.preferred_directions}) > 1:
            raise ValueError("preferred_directions mixes two and three dimensions; give all as many")
        for i, direction in enumerate(self.preferred_directions):
            if math.hypot(*direction) < 1e-9:
                raise ValueError(f"preferred_directions[{i}] = {list(direction)} points nowhere; give a direction")
        return self


class LinearConfig(_DecoderConfig, frozen=True, extra="forbid"):
    """Outputs are a weighted sum over channels and lags, plus a bias: the Wiener filter.

    Attributes
    ----------
    features : {"counts", "rates"}
        Spike counts of the last `n_lags` bins, or exponentially filtered rates in spikes/s (no lags).
    bin_ms : float
        Length of a bin of counts.
    n_lags : int
        Bins, 1 to 10; lag 0 is the newest.
    tau_ms : float
        Time constant of the rates.
    settle_ms : float, optional
        With rates: time after the start in which outputs stay 0, by default 3 `tau_ms`. With counts that time is
        `n_lags` bins.
    weights : tuple
        For each output, for each lag, 16 numbers; a single lag may leave out its level.
    bias : tuple of float
        One for each output.
    """

    kind: Literal["linear"] = "linear"
    features: Literal["counts", "rates"] = "counts"
    bin_ms: _BinMs = 50.0
    n_lags: Annotated[int, Field(ge=1, le=MAX_LAGS)] = 1
    tau_ms: _TauMs = 100.0
    settle_ms: _SettleMs | None = None
    weights: Annotated[
        tuple[tuple[Annotated[tuple[_Number, ...], Field(min_length=N_CHANNELS, max_length=N_CHANNELS)], ...], ...],
        Field(min_length=1, max_length=N_OUTPUTS),
    ]
    bias: tuple[_Number, ...] = ()

    @pydantic.field_validator("weights", mode="before")
    @classmethod
    def _one_lag_may_be_flat(cls, weights: Any) -> Any:
        if isinstance(weights, (list, tuple)) and all(
            isinstance(row, (list, tuple)) and row and not isinstance(row[0], (list, tuple)) for row in weights
        ):
            return tuple((tuple(row),) for row in weights)
        return weights

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_bias_is_zero(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("bias") and isinstance(values.get("weights"), (list, tuple)):
            return values | {"bias": (0.0,) * len(values["weights"])}
        return values

    @property
    def n_outputs(self) -> int:
        """Rows of the weights."""
        return len(self.weights)

    @pydantic.model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.features == "rates" and self.n_lags != 1:
            raise ValueError(f'n_lags = {self.n_lags} goes with features = "counts"; rates have one lag')
        for o, lags in enumerate(self.weights):
            if len(lags) != self.n_lags:
                raise ValueError(f"weights[{o}] has {len(lags)} lags; n_lags = {self.n_lags} expected")
        if len(self.bias) != len(self.weights):
            raise ValueError(f"bias has {len(self.bias)} entries for {len(self.weights)} outputs; give one for each")
        return self


_Matrix = tuple[tuple[_Number, ...], ...]
_Covariance = tuple[tuple[_Variance, ...], ...]


class KalmanConfig(_DecoderConfig, frozen=True, extra="forbid"):
    """Kalman filter on binned counts [1]_: x = A x + w, z = C x + q, both less their means; w ~ W, q ~ Q.

    Attributes
    ----------
    bin_ms : float
        Length of a bin of counts, which is a step of the filter.
    states : tuple of str
        Names of the entries of the state, one to six: ("px", "py", "vx", "vy").
    outputs : tuple of str
        States that are the outputs.
    channels : tuple of int
        Channels whose counts are observed.
    state_mean, count_mean : tuple of float
        One for each state, one for each of `channels`.
    transition, transition_noise : matrix
        A and the covariance W, states x states.
    observation : matrix
        C, channels x states: counts a bin per unit of the state.
    observation_noise : matrix
        Covariance Q, channels x channels; positive definite.
    initial_covariance : matrix
        Of the state at the start, states x states.

    References
    ----------
    .. [1] Wu, Gao, Bienenstock, Donoghue & Black (2006), Neural Comput. 18, 80-118.
    """

    kind: Literal["kalman"] = "kalman"
    bin_ms: _BinMs = 50.0
    states: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_STATES)]
    outputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=N_OUTPUTS)]
    channels: _Channels = tuple(range(N_SENSORY))
    state_mean: tuple[_Number, ...]
    count_mean: tuple[_Number, ...]
    transition: tuple[tuple[Annotated[float, Field(ge=-1e3, le=1e3)], ...], ...]
    transition_noise: _Covariance
    observation: _Matrix
    observation_noise: _Covariance
    initial_covariance: _Covariance

    @property
    def n_outputs(self) -> int:
        """States that are shown."""
        return len(self.outputs)

    @pydantic.model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        n, m = len(self.states), len(self.channels)
        if len(set(self.states)) != n:
            raise ValueError(f"states = {list(self.states)} names a state twice")
        for name in self.outputs:
            if name not in self.states:
                raise ValueError(f'outputs names "{name}"; the states are {", ".join(self.states)}')
        for key, expected in (("state_mean", n), ("count_mean", m)):
            if len(getattr(self, key)) != expected:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries; {expected} expected")
        shapes = {
            "transition": (n, n),
            "transition_noise": (n, n),
            "observation": (m, n),
            "observation_noise": (m, m),
            "initial_covariance": (n, n),
        }
        for key, (rows, columns) in shapes.items():
            matrix = getattr(self, key)
            if len(matrix) != rows or any(len(row) != columns for row in matrix):
                raise ValueError(
                    f"{key} has {len(matrix)} rows of {sorted({len(row) for row in matrix})}; "
                    f"{rows} rows of {columns} expected"
                )
        _check_covariance("transition_noise", self.transition_noise, definite=False)
        _check_covariance("initial_covariance", self.initial_covariance, definite=False)
        _check_covariance("observation_noise", self.observation_noise, definite=True)
        return self


def _check_covariance(key: str, matrix: _Covariance, *, definite: bool) -> None:
    n = len(matrix)
    scale = max(abs(matrix[i][i]) for i in range(n))
    for i in range(n):
        for j in range(i):
            if abs(matrix[i][j] - matrix[j][i]) > 1e-9 * scale:
                raise ValueError(f"{key} is not symmetric: entries [{i}][{j}] and [{j}][{i}] differ")
    # pivots of an elimination: a covariance has none below zero
    rest = [list(row) for row in matrix]
    for k in range(n):
        pivot = rest[k][k]
        if definite and not (pivot > 1e-9 * scale and pivot >= 1e-9):
            raise ValueError(f"{key} is not positive definite: nothing is left of row {k}; add to its diagonal")
        if pivot < -1e-9 * scale:
            raise ValueError(f"{key} is no covariance: it has a negative direction (row {k})")
        if pivot <= 1e-9 * scale:
            if any(abs(rest[i][k]) > 1e-6 * scale for i in range(k + 1, n)):
                raise ValueError(f"{key} is no covariance: row {k} has covariances but no variance")
            continue
        for i in range(k + 1, n):
            share = rest[i][k] / pivot
            for j in range(k, n):
                rest[i][j] -= share * rest[k][j]


class DecoderFileConfig(_Config, frozen=True, extra="forbid"):
    """A decoder that was fitted and saved.

    Attributes
    ----------
    path : Path
        The file, as `neuromod calibrate` wrote it.
    events : tuple of EventConfig
        Where given, these take the place of the file's.
    """

    path: Path
    events: Annotated[tuple[EventConfig, ...], Field(max_length=MAX_EVENTS)] = ()


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        return "file" if "path" in value else str(value.get("kind", "rates"))
    return "file" if isinstance(value, DecoderFileConfig) else str(getattr(value, "kind", "rates"))


FittedConfig = Annotated[
    Annotated[RatesConfig, Tag("rates")]
    | Annotated[PopulationVectorConfig, Tag("population_vector")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[KalmanConfig, Tag("kalman")],
    Discriminator(_tag),
]
"""A decoder with all its numbers."""

DecoderConfig = Annotated[
    Annotated[RatesConfig, Tag("rates")]
    | Annotated[PopulationVectorConfig, Tag("population_vector")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[KalmanConfig, Tag("kalman")]
    | Annotated[DecoderFileConfig, Tag("file")],
    Discriminator(_tag),
]
"""The `decoder` of a session: `kind` and its numbers, or `path` to a fitted one."""
