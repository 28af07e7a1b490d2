"""What a neuron model declares about itself, once: tick, configuration, documentation and exports read it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """One number per channel that a user may choose.

    Attributes
    ----------
    name : str
        Name with its unit, as in the configuration: `tau_mem_ms`.
    default : float
        Value of a channel that chooses none.
    low, high : float
        Least and greatest value allowed, both included.
    meaning : str
        One line for tables and error messages.
    """

    name: str
    default: float
    low: float
    high: float
    meaning: str

    def allows(self, value: float) -> bool:
        """Whether `value` is finite and within the range."""
        return math.isfinite(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Variable:
    """One number per channel that the model changes.

    Attributes
    ----------
    name : str
        Name with its unit: `v_mv`.
    meaning : str
        One line for tables.
    above_rest : bool
        True for a potential that is 0 at rest, rather than inside against outside.
    """

    name: str
    meaning: str
    above_rest: bool = False


@dataclass(frozen=True)
class Model:
    """A neuron model. Row k of the network's tables belongs to the k-th entry of each tuple.

    Attributes
    ----------
    name : str
        Name in the configuration.
    number : int
        Number in the state block; never given to another model, since checkpoints hold it.
    title, reference : str
        What it is, and where its mathematics come from.
    input_unit : str
        Unit of what drives it: of `bias`, of `gain` per unit of stimulus, and of the block's `drive`.
    input_limit : float
        The drive is held to this magnitude, within which no state of the model can become infinite.
    gain, bias : float
        Gain and bias of a channel that chooses none: silent without stimulus, and a stimulus of 1 or 2 makes it fire.
    input_per_mv : callable
        Takes a complete set of parameters; returns the drive, above 0, that 1 mV across the passive membrane takes: its
        leak, or what the model's file puts in place of one. The interneuron's inhibition, given in mV, is taken off the
        drive by this measure. How far it moves a membrane in fact is also a matter of the active currents, which can
        make it less (1 mV of every 3 in the squid axon) or much more.
    parameters : tuple of Parameter
        Rows of the table `parameters`.
    variables : tuple of Variable
        Rows of the table `variables`. The first is the membrane potential.
    start : callable
        Takes a complete set of parameters; returns the initial value of each variable: the state at rest, or another
        that the model's file names.
    derived : tuple of str
        Rows of the table `derived`: what `prepare` computes from the parameters and the step.
    complaint : callable
        Takes a complete set of parameters by name and says what is wrong with their combination; "" where nothing is.
    presets : mapping
        Published sets of parameters by name; what a set leaves out stands at its default.
    inputs : mapping
        Gain and bias of the presets that need others than the model's.
    """

    name: str
    number: int
    title: str
    reference: str
    input_unit: str
    input_limit: float
    gain: float
    bias: float
    input_per_mv: Callable[[Mapping[str, float]], float]
    parameters: tuple[Parameter, ...]
    variables: tuple[Variable, ...]
    start: Callable[[Mapping[str, float]], tuple[float, ...]]
    derived: tuple[str, ...]
    complaint: Callable[[Mapping[str, float]], str] = lambda parameters: ""
    presets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inputs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def complete(self, chosen: Mapping[str, float], preset: str | None = None) -> dict[str, float]:
        """All parameters in their order: the chosen ones over those of the preset over the defaults."""
        named = self.presets[preset] if preset is not None else {}
        return {p.name: chosen.get(p.name, named.get(p.name, p.default)) for p in self.parameters}

    def input(self, preset: str | None = None) -> tuple[float, float]:
        """Gain and bias of a channel that chooses none: the preset's where it has its own, else the model's."""
        return self.inputs.get(preset, (self.gain, self.bias)) if preset is not None else (self.gain, self.bias)
