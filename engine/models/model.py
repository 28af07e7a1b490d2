"""What a neuron model declares about itself, once: its parameters, its state variables and its number."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
    """One number per channel that the model changes: its name with its unit, its start and its meaning."""

    name: str
    initial: float
    meaning: str


@dataclass(frozen=True)
class Model:
    """A neuron model. Row k of the network's tables belongs to the k-th entry of each tuple.

    Attributes
    ----------
    name : str
        Name in the configuration.
    number : int
        Number in the state block; never given to another model, since checkpoints hold it.
    parameters : tuple of Parameter
        Rows of the table `parameters`.
    variables : tuple of Variable
        Rows of the table `variables`. The first is the membrane potential.
    derived : tuple of str
        Rows of the table `derived`: what `prepare` computes from the parameters and the step.
    complaint : callable
        Takes a complete set of parameters by name and says what is wrong with their combination; "" where nothing is.
    """

    name: str
    number: int
    parameters: tuple[Parameter, ...]
    variables: tuple[Variable, ...]
    derived: tuple[str, ...]
    complaint: Callable[[Mapping[str, float]], str]
