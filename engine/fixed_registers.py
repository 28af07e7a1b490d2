"""Every number of the fixed-point network, as data: what the twin, the images, the HDL and the serial link agree on.

One table says where a number lies in the board's address space (words of 32 bits), how many bits it has, how many of
these are a fraction, and whether it is signed. `FIXED_POINT.md` says what is done with them.
"""

from typing import Literal, NamedTuple

import numpy as np

from neuromod.engine.errors import FixedPointError
from neuromod.engine.layout import N_CHANNELS

Part = Literal["parameter", "state", "learning"]


class Register(NamedTuple):
    """A number, or an array of them, of the fixed-point network.

    Attributes
    ----------
    name : str
        As in `FIXED_POINT.md`.
    address : int
        Of its first word; arrays follow word by word in C order.
    shape : tuple of int
        () for a single number.
    bits, fraction : int
        Width, and how many bits of it stand behind the point.
    signed : bool
        Two's complement where true.
    part : {"parameter", "state", "learning"}
        Whether it is set from outside, follows from the ticks, or is there for learning alone.
    unit : str
        Of the number; empty for none.
    """

    name: str
    address: int
    shape: tuple[int, ...]
    bits: int
    fraction: int
    signed: bool
    part: Part
    unit: str

    @property
    def lowest(self) -> int:
        """Least integer it holds."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """Greatest integer it holds."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def format(self) -> str:
        """The format in words: `Q8.8` and the like where signed, `UQ8.16` where not."""
        return f"{'' if self.signed else 'U'}Q{self.bits - self.fraction}.{self.fraction}"


_ROW, _MATRIX = (N_CHANNELS,), (N_CHANNELS, N_CHANNELS)

REGISTERS: tuple[Register, ...] = (
    # modulation: what the host makes of the neuromodulators and the gains, for every tick
    Register("input_gain", 0x000, (), 24, 16, False, "parameter", ""),
    Register("recurrent_gain", 0x001, (), 24, 16, False, "parameter", ""),
    Register("threshold_gain", 0x002, (), 24, 16, False, "parameter", ""),
    Register("inhibition", 0x003, (), 24, 16, False, "parameter", "mV"),
    Register("learning_factor", 0x004, (), 32, 24, True, "learning", ""),
    # the circuit
    Register("inhibition_ticks", 0x005, (), 16, 0, False, "parameter", "ticks"),
    Register("window_ticks", 0x006, (), 16, 0, False, "parameter", "ticks"),
    Register("min_channels", 0x007, (), 4, 0, False, "parameter", ""),
    Register("coincidence_refractory", 0x008, (), 16, 0, False, "parameter", "ticks"),
    # plasticity
    Register("fall_plus", 0x009, (), 24, 24, False, "learning", "per tick"),
    Register("fall_minus", 0x00A, (), 24, 24, False, "learning", "per tick"),
    Register("fall_eligibility", 0x00B, (), 24, 24, False, "learning", "per tick"),
    Register("a_plus", 0x00C, (), 24, 16, False, "learning", "mV"),
    Register("a_minus", 0x00D, (), 24, 16, False, "learning", "mV"),
    Register("w_min", 0x00E, (), 16, 8, True, "learning", "mV"),
    Register("w_max", 0x00F, (), 16, 8, True, "learning", "mV"),
    # neurons
    Register("rise", 0x010, _ROW, 24, 24, False, "parameter", "per tick"),
    Register("gain", 0x020, _ROW, 16, 8, True, "parameter", "mV"),
    Register("bias", 0x030, _ROW, 16, 8, True, "parameter", "mV"),
    Register("threshold", 0x040, _ROW, 16, 8, True, "parameter", "mV"),
    Register("v_reset", 0x050, _ROW, 16, 8, True, "parameter", "mV"),
    Register("v_min", 0x060, _ROW, 16, 8, True, "parameter", "mV"),
    Register("refractory", 0x070, _ROW, 16, 0, False, "parameter", "ticks"),
    # what the ticks leave
    Register("rule", 0x080, (), 2, 0, False, "parameter", ""),
    Register("tick", 0x081, (), 32, 0, False, "state", "ticks"),
    Register("spikes", 0x082, (), 16, 0, False, "state", ""),
    Register("inhibition_left", 0x083, (), 16, 0, False, "state", "ticks"),
    Register("coincidence_left", 0x084, (), 16, 0, False, "state", "ticks"),
    Register("v", 0x090, _ROW, 24, 16, True, "state", "mV"),
    Register("refractory_left", 0x0A0, _ROW, 16, 0, False, "state", "ticks"),
    Register("since_spike", 0x0B0, _ROW, 16, 0, False, "state", "ticks"),
    Register("pre_trace", 0x0C0, _ROW, 24, 16, False, "learning", ""),
    Register("post_trace", 0x0D0, _ROW, 24, 16, False, "learning", ""),
    Register("plastic", 0x0E0, _ROW, 16, 0, False, "learning", ""),
    # 16 guard bits below Q8.8; without learning they are 0, and need no memory
    Register("weights", 0x100, _MATRIX, 32, 24, True, "state", "mV"),
    Register("eligibility", 0x200, _MATRIX, 32, 24, True, "learning", "mV"),
)
"""All of them, in the order of their addresses."""

RULE_REWARD, RULE_NEAREST = 1, 2
"""Bits of `rule`: synapses learn from reward; a spike pairs with the nearest of the other side alone."""

MODULATION = ("input_gain", "recurrent_gain", "threshold_gain", "inhibition", "learning_factor")
"""Names of the five numbers that the neuromodulators come to, in the order in which they are handed over."""

GUARD_BITS = 16
"""Bits of a weight below its Q8.8 value, which is what reaches a membrane: the weight rounded, half up."""

FIXED_BLOCK = np.dtype([(register.name, "<i8", register.shape) for register in REGISTERS])
"""The twin's memory: every number as an integer of 64 bits, which no intermediate result outgrows."""


def register(name: str) -> Register:
    """Return the register of that name.

    Raises
    ------
    FixedPointError
        If there is none.
    """
    for each in REGISTERS:
        if each.name == name:
            return each
    raise FixedPointError(f"no register {name!r}; there are {', '.join(each.name for each in REGISTERS)}")


def size_bytes(*, learning: bool) -> int:
    """Memory that a network needs on the board, in bytes, every number at its own width.

    Parameters
    ----------
    learning : bool
        Whether it learns. Without, weights have no guard bits, and traces, eligibility and their constants are left
        out.
    """
    bits = 0
    for each in REGISTERS:
        if each.part == "learning" and not learning:
            continue
        guard = GUARD_BITS if each.name == "weights" and not learning else 0
        bits += each.size * (each.bits - guard)
    return -(-bits // 8)
