"""Everything that builds a network, as checked data. Reading weights from a file is the caller's part."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, model_validator

from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, LIVE, N_CHANNELS
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
ModelName = Literal["lif"]


class _Frozen(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What all parts of the configuration share."""


class ChannelConfig(_Frozen):
    """What one neuron is and how its input reaches it.

    Attributes
    ----------
    model : str
        Neuron model.
    parameters : dict
        Parameters of the model by name, units in the names; the model's defaults stand for those left out.
    gain_mv : float
        Drive per unit of stimulus: the depolarisation, in mV, at which a stimulus of 1 settles.
    bias_mv : float
        Drive without stimulus, mV. Just below threshold it makes small stimuli count.
    """

    model: ModelName = "lif"
    parameters: dict[str, float] = {}
    gain_mv: Millivolts = 10.0
    bias_mv: Millivolts = 12.0

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        known = {parameter.name: parameter for parameter in model_named(self.model).parameters}
        for name, value in self.parameters.items():
            if name not in known:
                raise ValueError(f"model {self.model} has no parameter {name!r}; it has {', '.join(known)}")
            if not known[name].allows(value):
                raise ValueError(f"{name} must lie within {known[name].low:g} and {known[name].high:g}, got {value:g}")
        if complaint := model_named(self.model).complaint(self.complete_parameters()):
            raise ValueError(complaint)
        return self

    def complete_parameters(self) -> dict[str, float]:
        """All parameters of the model, in its order, with the defaults filled in."""
        return {p.name: self.parameters.get(p.name, p.default) for p in model_named(self.model).parameters}


class InterneuronConfig(ChannelConfig):
    """Channel 15 as a neuron: quicker than the sensory ones, and fed by their spikes alone.

    Attributes
    ----------
    model, parameters, gain_mv, bias_mv
        As in `ChannelConfig`, with other defaults: it takes no stimulus unless its `gain_mv` says so.
    """

    parameters: dict[str, float] = {"tau_mem_ms": 10.0}
    gain_mv: Millivolts = 0.0
    bias_mv: Millivolts = 0.0


class ChannelOverride(_Frozen):
    """What one channel has that its population has not; what is left out stays as in the population.

    Attributes
    ----------
    model, parameters, gain_mv, bias_mv
        As in `ChannelConfig`. Parameters are taken over from the population one by one, unless the model differs.
    """

    model: ModelName | None = None
    parameters: dict[str, float] = {}
    gain_mv: Millivolts | None = None
    bias_mv: Millivolts | None = None


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
        Drive taken from every sensory channel while inhibition lasts, mV.
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
        Thresholds are multiplied by 1 + this x cortisol: corticosteroids hold excitability down [3]_.
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


class NetworkConfig(_Frozen):
    """Everything that builds a network.

    Attributes
    ----------
    seed : int
        Seed of the initial weights.
    sensory : ChannelConfig
        Channels 0 to 13.
    interneuron : InterneuronConfig
        Channel 15.
    channels : dict
        Channels that differ from their population, by index.
    coincidence, inhibition, weights, modulation
        The circuit.
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
    modulation: ModulationConfig = ModulationConfig()
    input_gain: Gain = 1.0
    recurrent_gain: Gain = 1.0
    stimulus_limit: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1_000.0

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
        own = self.channels.get(index, ChannelOverride())
        model = own.model or base.model
        inherited = base.parameters if model == base.model else {}
        try:
            return ChannelConfig(
                model=model,
                parameters=inherited | own.parameters,
                gain_mv=base.gain_mv if own.gain_mv is None else own.gain_mv,
                bias_mv=base.bias_mv if own.bias_mv is None else own.bias_mv,
            )
        except pydantic.ValidationError as error:
            raise ValueError(f"channel {index}: {error.errors()[0]['msg']}") from None

    def live_values(self) -> tuple[float, ...]:
        """Values of the parameters that may change while the network runs, in the order of `LIVE`."""
        parts = {"inhibition": self.inhibition, "coincidence": self.coincidence}
        return tuple(float(getattr(parts.get(part, self), name)) for part, name in map(_split_live_name, LIVE))


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
    kinds: dict[str, type[_Frozen]] = {"inhibition": InhibitionConfig, "coincidence": CoincidenceConfig}
    try:
        kinds.get(part, NetworkConfig).model_validate({key: value})
    except pydantic.ValidationError as error:
        raise ConfigError(f"{name}: {error.errors()[0]['msg']}, got {value!r}") from None
    return float(value)


def _split_live_name(name: str) -> tuple[str, str]:
    """Split `inhibition_strength_mv` into its part of the configuration and the key there; `input_gain` has no part."""
    part, _, key = name.partition("_")
    return (part, key) if part in ("inhibition", "coincidence") else ("", name)
