"""Everything that builds a network, as checked data. Reading weights from a file is the caller's part."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, model_validator

from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, LIVE, MAX_DELAY_TICKS, N_CHANNELS
from neuromod.engine.models.catalogue import model_named
from neuromod.engine.modulators import NeuroModulators

Milliseconds = Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)]
TimeConstant = Annotated[float, Field(ge=1, le=1e8, allow_inf_nan=False)]
Millivolts = Annotated[float, Field(ge=-1_000, le=1_000, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WeightRow = Annotated[tuple[Millivolts, ...], Field(min_length=N_CHANNELS, max_length=N_CHANNELS)]
WeightMatrix = Annotated[tuple[WeightRow, ...], Field(min_length=N_CHANNELS, max_length=N_CHANNELS)]
Binary = Annotated[int, Field(ge=0, le=1)]
MaskRow = Annotated[tuple[Binary, ...], Field(min_length=N_CHANNELS, max_length=N_CHANNELS)]
Mask = Annotated[tuple[MaskRow, ...], Field(min_length=N_CHANNELS, max_length=N_CHANNELS)]
Input = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
TraceTime = Annotated[float, Field(ge=0.1, le=1e6, allow_inf_nan=False)]
ModelName = Literal["lif", "lapicque", "izhikevich", "fitzhugh_nagumo", "hodgkin_huxley", "pospischil", "adex"]


class _Frozen(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What all parts of the configuration share."""


class ChannelConfig(_Frozen):
    """What one neuron is and how its input reaches it.

    Attributes
    ----------
    model : str
        Neuron model; `neuromod models` lists them.
    preset : str, optional
        A published set of the model's parameters, by name.
    parameters : dict
        Parameters of the model by name, units in the names, over those of the preset and the model's defaults.
    gain : float, optional
        Drive per unit of stimulus, in the unit of the model's input (mV for lif: the depolarisation at which a stimulus
        of 1 settles). The preset's or the model's own where left out.
    bias : float, optional
        Drive without stimulus, in the same unit. Just below threshold it makes small stimuli count. The preset's or
        the model's own where left out.
    noise : float
        White noise on the drive, in the same unit: its standard deviation when averaged over 1 ms of model time.
    """

    model: ModelName = "lif"
    preset: str | None = None
    parameters: dict[str, float] = {}
    gain: Input | None = None
    bias: Input | None = None
    noise: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        model = model_named(self.model)
        if self.preset is not None and self.preset not in model.presets:
            known_presets = ", ".join(model.presets) or "none"
            raise ValueError(f"model {self.model} has no preset {self.preset!r}; it has {known_presets}")
        known = {parameter.name: parameter for parameter in model.parameters}
        for name, value in self.parameters.items():
            if name not in known:
                raise ValueError(f"model {self.model} has no parameter {name!r}; it has {', '.join(known)}")
            if not known[name].allows(value):
                raise ValueError(f"{name} must lie within {known[name].low:g} and {known[name].high:g}, got {value:g}")
        if complaint := model.complaint(self.complete_parameters()):
            raise ValueError(complaint)
        return self

    def complete_parameters(self) -> dict[str, float]:
        """All parameters of the model, in its order, with those of the preset and the defaults filled in."""
        return model_named(self.model).complete(self.parameters, self.preset)

    def complete(self) -> Self:
        """The same neuron with every number written out."""
        gain, bias = model_named(self.model).input(self.preset)
        return self.model_copy(
            update={
                "preset": None,
                "parameters": self.complete_parameters(),
                "gain": gain if self.gain is None else self.gain,
                "bias": bias if self.bias is None else self.bias,
            }
        )


class InterneuronConfig(ChannelConfig):
    """Channel 15 as a neuron: quicker than the sensory ones, and fed by their spikes alone.

    Attributes
    ----------
    model, preset, parameters, gain, bias, noise
        As in `ChannelConfig`, with other defaults: it takes no stimulus unless its `gain` says so. A lif has the preset
        `quick` unless another is named.
    """

    gain: Input | None = 0.0
    bias: Input | None = 0.0

    @model_validator(mode="before")
    @classmethod
    def _quick(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("model", "lif") == "lif" and data.get("preset") is None:
            return data | {"preset": "quick"}
        return data


class ChannelOverride(_Frozen):
    """What one channel has that its population has not; what is left out stays as in the population.

    Attributes
    ----------
    model, preset, parameters, gain, bias, noise
        As in `ChannelConfig`. Where the model differs from the population's, nothing of these is taken over; where it
        does not, all is that the channel leaves out, also over a preset that the channel names.
    """

    model: ModelName | None = None
    preset: str | None = None
    parameters: dict[str, float] = {}
    gain: Input | None = None
    bias: Input | None = None
    noise: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None


class CoincidenceConfig(_Frozen):
    """Channel 14: fires when enough distinct sensory channels have fired within a window.

    Attributes
    ----------
    window_ms : float
        Longest model time between the first and the last of those spikes.
    min_channels : int
        Number of distinct sensory channels that make a coincidence.
    refractory_ms : float
        Model time after a spike of the detector in which it does not fire again.
    """

    window_ms: Milliseconds = 3.0
    min_channels: Annotated[int, Field(ge=1, le=14)] = 4
    refractory_ms: Milliseconds = 5.0


class InhibitionConfig(_Frozen):
    """Channel 15: what a spike of the interneuron does to channels 0 to 13.

    Attributes
    ----------
    strength_mv : float
        Drive taken from every sensory channel while inhibition lasts, as the hyperpolarisation in mV of a membrane that
        had nothing but its leak (each model says how much of its input 1 mV is). Active currents make the shift smaller
        or larger, and a few milliseconds leave it unfinished.
    duration_ms : float
        Model time for which it lasts after the interneuron's spike; another spike starts it anew.
    """

    strength_mv: Strength = 30.0
    duration_ms: Milliseconds = 8.0


class RandomWeightsConfig(_Frozen):
    """Weights drawn from the seed: uniform between the sensory channels, with none from a channel to itself.

    Attributes
    ----------
    low_mv, high_mv : float
        Range of the weights between sensory channels, mV of depolarisation per spike.
    from_coincidence_mv : float
        Weight from the coincidence detector to every sensory channel.
    to_interneuron_mv : float
        Weight from every sensory channel to the interneuron.
    """

    kind: Literal["random"] = "random"
    low_mv: Millivolts = 0.0
    high_mv: Millivolts = 0.5
    from_coincidence_mv: Millivolts = 0.5
    to_interneuron_mv: Millivolts = 2.5

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low_mv > self.high_mv:
            raise ValueError(f"low_mv ({self.low_mv:g}) must not exceed high_mv ({self.high_mv:g})")
        return self


class GivenWeightsConfig(_Frozen):
    """Weights given as numbers.

    Attributes
    ----------
    matrix_mv : 16 rows of 16
        Depolarisation per spike, mV; row = source, column = target. Column 14 is 0: the coincidence detector counts
        spikes and has no membrane.
    """

    kind: Literal["given"] = "given"
    matrix_mv: WeightMatrix

    @model_validator(mode="after")
    def _check_detector(self) -> Self:
        if any(row[COINCIDENCE] for row in self.matrix_mv):
            raise ValueError(
                f"column {COINCIDENCE} of the weights must be 0: the coincidence detector counts spikes of the sensory "
                "channels and takes no weighted input"
            )
        return self


class ModulationConfig(_Frozen):
    """Neuromodulators: where each rests, how fast it returns there, in wall time, and how strongly it acts.

    Attributes
    ----------
    baseline : NeuroModulators
        Levels at rest.
    dopamine_tau_ms, cortisol_tau_ms, acetylcholine_tau_ms, tempo_tau_ms : float
        Time constants of the return to the baseline. 200 ms for dopamine is that of Izhikevich (2007) [1]_.
    reward_rate : float
        Part of the way that the running baseline of reward goes towards each reward (Rescorla-Wagner).
    dopamine_input : float
        Input gain is multiplied by 1 + this x dopamine: D1-like gain, small and signed [2]_.
    cortisol_threshold : float
        Thresholds are multiplied by 1 + this x cortisol: corticosteroids hold excitability down [3]_. Neurons without
        an explicit threshold have drive and charge that depolarise divided by it; neither weakens inhibition.
    cortisol_inhibition : float
        The interneuron's inhibition is multiplied by 1 + this x cortisol.
    acetylcholine_input, acetylcholine_recurrent : float
        Input gain is multiplied by 1 + the one x acetylcholine, recurrent gain by 1 - the other x acetylcholine [4]_.

    References
    ----------
    .. [1] Izhikevich (2007), Cereb. Cortex 17, 2443-2452.
    .. [2] Thurley, Senn & Luescher (2008), J. Neurophysiol. 99, 2985-2997.
    .. [3] Joels & de Kloet (1989), Science 245, 1502-1505.
    .. [4] Hasselmo (2006), Curr. Opin. Neurobiol. 16, 710-715.
    """

    baseline: NeuroModulators = NeuroModulators()
    dopamine_tau_ms: TimeConstant = 200.0
    cortisol_tau_ms: TimeConstant = 60_000.0
    acetylcholine_tau_ms: TimeConstant = 2_000.0
    tempo_tau_ms: TimeConstant = 5_000.0
    reward_rate: Share = 0.1
    dopamine_input: Share = 0.1
    cortisol_threshold: Share = 0.3
    cortisol_inhibition: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    acetylcholine_input: Share = 0.5
    acetylcholine_recurrent: Share = 0.5


class HomeostasisConfig(_Frozen):
    """Synaptic scaling: dw/dt = w (1 - rate / target) / tau_scaling for plastic excitatory weights (w > 0).

    Attributes
    ----------
    target_hz : float
        Rate, in spikes a second of model time, at which the weights rest.
    tau_rate_ms : float
        Time constant of the running rate.
    tau_scaling_ms : float
        Time constant of the weights of a silent channel; well above `tau_rate_ms`, or the rates swing.
    """

    target_hz: Annotated[float, Field(ge=0.01, le=1_000, allow_inf_nan=False)] = 10.0
    tau_rate_ms: Annotated[float, Field(ge=100, le=1e7, allow_inf_nan=False)] = 10_000.0
    tau_scaling_ms: Annotated[float, Field(ge=100, le=1e9, allow_inf_nan=False)] = 100_000.0


class LearningConfig(_Frozen):
    """Plasticity of the synapses. `engine/plasticity.py` has the mathematics and its sources.

    Attributes
    ----------
    rule : {"reward", "hebbian", "none"}
        reward: pairs of spikes make synapses eligible, dopamine changes them. hebbian: pairs change them at once.
    pairing : {"all", "nearest"}
        Whether a spike pairs with all earlier ones of the other side, or with the nearest alone.
    a_plus_mv, a_minus_mv : float
        Change by a pair of no distance: potentiation where the source fired first, depression where it fired last.
    tau_plus_ms, tau_minus_ms : float
        How fast either falls with the distance of the spikes, in model time.
    tau_eligibility_ms : float
        Time constant of the eligibility trace, in model time. No trace's may exceed a million ticks, where float32
        rounds its decay by up to 6 %; below 200,000 that is 1 %.
    rate_per_s : float
        Change of a weight per second of model time, dopamine of 1 and mV of eligibility.
    w_min_mv, w_max_mv : float
        Bounds of the plastic weights. One that begins outside stays there until plasticity moves it inwards.
    bounds : {"hard", "soft"}
        soft: every change is in proportion to the distance from the bound ahead.
    plastic : 16 rows of 16 ones and zeros, optional
        Synapses that may change, row = source, column = target; without it, those from each sensory channel to every
        other.
    homeostasis : HomeostasisConfig, optional
        Synaptic scaling; none where left out.
    """

    rule: Literal["reward", "hebbian", "none"] = "reward"
    pairing: Literal["all", "nearest"] = "all"
    a_plus_mv: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.1
    a_minus_mv: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.105
    tau_plus_ms: TraceTime = 20.0
    tau_minus_ms: TraceTime = 20.0
    tau_eligibility_ms: TraceTime = 1_000.0
    rate_per_s: Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)] = 1.0
    w_min_mv: Millivolts = 0.0
    w_max_mv: Millivolts = 2.0
    bounds: Literal["hard", "soft"] = "hard"
    plastic: Mask | None = None
    homeostasis: HomeostasisConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.w_min_mv >= self.w_max_mv:
            raise ValueError(f"w_min_mv ({self.w_min_mv:g}) must lie below w_max_mv ({self.w_max_mv:g})")
        if self.plastic is not None and any(row[COINCIDENCE] for row in self.plastic):
            raise ValueError(
                f"column {COINCIDENCE} of plastic must be 0: the coincidence detector has no weighted input"
            )
        return self


class NetworkConfig(_Frozen):
    """Everything that builds a network.

    Attributes
    ----------
    seed : int
        Seed of the initial weights and of the noise.
    sensory : ChannelConfig
        Channels 0 to 13.
    interneuron : InterneuronConfig
        Channel 15.
    channels : dict
        Channels that differ from their population, by index.
    coincidence, inhibition, weights, modulation, learning
        The circuit.
    connected : 16 rows of 16 ones and zeros, optional
        Synapses that exist, row = source, column = target; the others have no weight and get none. Without it, all.
        What the coincidence detector counts and whom the interneuron inhibits are no synapses.
    delay_ticks : 16 integers
        Whole ticks that the spikes of each channel take on their way, 0 to 62, beyond the one that all take. Plasticity
        counts a source's spike by the time that it leaves this delay.
    input_gain, recurrent_gain : float
        Factors on every stimulus and on every recurrent spike.
    stimulus_limit : float
        Stimuli are held to this magnitude, so that no finite input can make a potential infinite.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    sensory: ChannelConfig = ChannelConfig()
    interneuron: InterneuronConfig = InterneuronConfig()
    channels: dict[Annotated[int, Field(ge=0, lt=N_CHANNELS)], ChannelOverride] = {}
    coincidence: CoincidenceConfig = CoincidenceConfig()
    inhibition: InhibitionConfig = InhibitionConfig()
    weights: Annotated[RandomWeightsConfig | GivenWeightsConfig, Field(discriminator="kind")] = RandomWeightsConfig()
    connected: Mask | None = None
    delay_ticks: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_DELAY_TICKS)], ...],
        Field(min_length=N_CHANNELS, max_length=N_CHANNELS),
    ] = (0,) * N_CHANNELS
    modulation: ModulationConfig = ModulationConfig()
    learning: LearningConfig = LearningConfig()
    input_gain: Gain = 1.0
    recurrent_gain: Gain = 1.0
    stimulus_limit: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 1_000.0

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if COINCIDENCE in self.channels:
            raise ValueError(f"channel {COINCIDENCE} is the coincidence detector: set `coincidence` instead")
        for index in self.channels:
            self.channel(index)
        return self

    def channel(self, index: int) -> ChannelConfig:
        """Complete configuration of one neuron: its population's, with the channel's own entries over it."""
        base = self.interneuron if index == INHIBITORY else self.sensory
        own = self.channels.get(index)
        if own is None:
            return base
        chosen = own.model_dump(exclude_none=True)
        if own.model in (None, base.model):
            inherited = base.model_dump()
            # a preset of the channel's own replaces its population's, but not the parameters chosen by number
            chosen = inherited | chosen | {"parameters": base.parameters | own.parameters}
        try:
            return InterneuronConfig(**chosen) if index == INHIBITORY else ChannelConfig(**chosen)
        except pydantic.ValidationError as error:
            raise ValueError(f"channel {index}: {error.errors()[0]['msg']}") from None

    def live_values(self) -> tuple[float, ...]:
        """Values of the parameters that may change while the network runs, in the order of `LIVE`."""
        parts = {name: getattr(self, name) for name in _LIVE_PARTS}
        return tuple(float(getattr(parts.get(part, self), name)) for part, name in map(_split_live_name, LIVE))


_LIVE_PARTS: dict[str, type[_Frozen]] = {
    "inhibition": InhibitionConfig,
    "coincidence": CoincidenceConfig,
    "learning": LearningConfig,
}
"""Parts of the configuration by which names in `LIVE` begin; a name without such a beginning is the network's own."""


def check_live(name: str, value: float) -> float:
    """Return `value` if the live parameter `name` may take it.

    Raises
    ------
    ConfigError
        If there is no such live parameter, or the value lies outside its range.
    """
    if name not in LIVE:
        raise ConfigError(f"{name!r} cannot change while the network runs; {', '.join(LIVE)} can")
    part, key = _split_live_name(name)
    try:
        _LIVE_PARTS.get(part, NetworkConfig).model_validate({key: value})
    except pydantic.ValidationError as error:
        raise ConfigError(f"{name}: {error.errors()[0]['msg']}, got {value!r}") from None
    return float(value)


def with_live(config: NetworkConfig, values: Sequence[float]) -> NetworkConfig:
    """The same network with these live parameters, in the order of `LIVE`.

    Raises
    ------
    ConfigError
        If a value lies outside its range.
    """
    for name, value in zip(LIVE, values, strict=True):
        part, key = _split_live_name(name)
        checked: float = check_live(name, value)
        if part:
            changed = getattr(config, part).model_copy(
                update={key: _like(getattr(getattr(config, part), key), checked)}
            )
            config = config.model_copy(update={part: changed})
        else:
            config = config.model_copy(update={key: checked})
    return config


def _like(old: float, new: float) -> float:
    return int(new) if isinstance(old, int) else new


def _split_live_name(name: str) -> tuple[str, str]:
    """Split `inhibition_strength_mv` into its part of the configuration and the key there; `input_gain` has no part."""
    part, _, key = name.partition("_")
    return (part, key) if part in _LIVE_PARTS else ("", name)
