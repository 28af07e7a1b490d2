"""The state of a network: one contiguous block of bytes, 64-byte aligned, whose C layout is data.

Parameters are part of the block, so that a copy of it is a whole network. Kernels see it as one record: each field then
lies at an offset known to the compiler, which is what lets it prove that rows do not overlap and use vectors.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from neuromod.engine.layout_types import State
from neuromod.engine.models.catalogue import N_DERIVED, N_PARAMETERS, N_VARIABLES

N_CHANNELS = 16
N_SENSORY = 14
COINCIDENCE = 14
INHIBITORY = 15
N_MODULATORS = 4
MAX_DELAY_TICKS = 62
"""Longest delay of a channel's spikes: `past` has 63 bits, the sign left out."""

LIVE = (
    "input_gain",
    "recurrent_gain",
    "inhibition_strength_mv",
    "inhibition_duration_ms",
    "coincidence_window_ms",
    "coincidence_min_channels",
    "learning_rate_per_s",
)
"""Parameters that may change while the network runs, in the order of the field `live`."""

LAYOUT_VERSION = 2
"""Raised whenever a field moves, appears or changes its meaning."""

FIXED = (
    *("models", "model", "parameters", "gain", "bias", "noise", "noisy", "drive_limit", "inhibited"),
    *(
        "delay_ticks",
        "delayed",
        "stimulus_limit",
        "coincidence_refractory_ms",
        "baselines",
        "relaxation",
        "reward_rate",
    ),
    *("dopamine_input", "cortisol_threshold", "cortisol_inhibition", "acetylcholine_input", "acetylcholine_recurrent"),
    *("rule", "nearest", "soft_bounds", "homeostatic", "plastic", "trace_tau_ms", "a_plus_mv", "a_minus_mv"),
    *("w_min_mv", "w_max_mv", "target_hz", "rate_tau_ms", "scaling_tau_ms"),
)
"""Fields that the configuration sets for good; a checkpoint fits a network that has the same."""

ALIGNMENT = 64


class Field(NamedTuple):
    """Where one field lies in the block, in bytes, and what it holds (numpy type string, little endian; C order)."""

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


_ROW = (N_CHANNELS,)
_FIELDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    # counters
    ("step", "<i8", ()),  # ticks since the start
    ("spikes", "<i8", ()),  # last tick's: bit i = channel i
    ("arriving", "<i8", ()),  # channels whose spikes arrive at the next tick: `spikes`, later where delayed
    ("n_coincident", "<i8", ()),  # sensory channels that the detector last found within its window
    ("bad_stimuli", "<i8", ()),  # values that were not finite and were taken as 0
    ("bad_levels", "<i8", ()),  # levels, rewards, stresses and parameters that were not finite and were ignored
    ("learning", "<i8", ()),  # 1 where plasticity may change weights
    ("models", "<i8", ()),  # bit m = some channel has the model of number m
    ("delayed", "<i8", ()),  # 1 where some channel's spikes are delayed
    ("noisy", "<i8", ()),  # 1 where some channel's drive is noisy
    # 16 for ever; read, because LLVM unrolls a loop of constant length into scalar code before it looks for vectors.
    # Kernels take it `& -16`, which tells LLVM that no remainder is left: a tick of 105 ns instead of 118 when it was
    # tried
    ("n_channels", "<i8", ()),
    # neuromodulators, in the order of MODULATORS
    ("levels", "<f8", (N_MODULATORS,)),
    ("baselines", "<f8", (N_MODULATORS,)),
    ("relaxation", "<f8", (N_MODULATORS,)),  # part of the way to the baseline that one tick goes
    ("reward_baseline", "<f8", ()),
    ("reward_rate", "<f8", ()),  # part of the way to a reward that the reward baseline goes
    ("dopamine_input", "<f8", ()),
    ("cortisol_threshold", "<f8", ()),
    ("cortisol_inhibition", "<f8", ()),
    ("acetylcholine_input", "<f8", ()),
    ("acetylcholine_recurrent", "<f8", ()),
    # plasticity: `plasticity.py` says what each means
    ("rule", "<i8", ()),  # index into RULES
    ("nearest", "<i8", ()),  # 1: each spike pairs with the nearest of the other side alone
    ("soft_bounds", "<i8", ()),
    ("homeostatic", "<i8", ()),
    ("trace_tau_ms", "<f8", (3,)),  # of pre_trace, post_trace, eligibility
    ("trace_fall", "<f4", (3,)),  # part of each that a step takes
    ("a_plus_mv", "<f4", ()),
    ("a_minus_mv", "<f4", ()),
    ("w_min_mv", "<f4", ()),
    ("w_max_mv", "<f4", ()),
    ("target_hz", "<f4", ()),
    ("rate_tau_ms", "<f4", ()),
    ("scaling_tau_ms", "<f4", ()),
    # the circuit
    ("dt_ms", "<f8", ()),
    ("live", "<f8", (len(LIVE),)),
    ("stimulus_limit", "<f4", ()),
    ("prepared_ms", "<f4", ()),  # step for which `derived` was computed; 0 = not yet
    ("inhibition_left_ms", "<f4", ()),
    ("coincidence_refractory_ms", "<f4", ()),
    ("coincidence_left_ms", "<f4", ()),
    # channels
    ("model", "<i4", _ROW),  # number of the model; 0 = none
    ("gain", "<f4", _ROW),  # drive per unit of stimulus
    ("bias", "<f4", _ROW),  # drive without stimulus
    ("noise", "<f4", _ROW),  # standard deviation of the drive's white noise, as averaged over 1 ms
    ("drive_limit", "<f4", _ROW),  # magnitude that the drive is held to
    ("inhibited", "<f4", _ROW),  # drive that 1 mV of the interneuron's inhibition takes off
    ("delay_ticks", "<i8", _ROW),  # ticks that a channel's spikes take beyond the one that all take
    ("past", "<i8", _ROW),  # spikes of the last 63 ticks, the newest in bit 0; kept only where some are delayed
    ("random", "<u8", _ROW),  # state of each channel's random numbers
    ("since_spike_ms", "<f4", _ROW),  # model time since the last spike of a neuron
    ("parameters", "<f4", (N_PARAMETERS, N_CHANNELS)),  # of the channel's model, in its order
    ("variables", "<f4", (N_VARIABLES, N_CHANNELS)),  # row 0: membrane potential
    ("derived", "<f4", (N_DERIVED, N_CHANNELS)),
    ("weights_mv", "<f4", (N_CHANNELS, N_CHANNELS)),  # row = source, column = target
    ("plastic", "<f4", (N_CHANNELS, N_CHANNELS)),  # 1 where plasticity may change the weight
    ("unrounded_mv", "<f4", (N_CHANNELS, N_CHANNELS)),  # what rounding has kept out of each weight so far
    ("eligibility_mv", "<f4", (N_CHANNELS, N_CHANNELS)),
    ("pre_trace", "<f4", _ROW),
    ("post_trace", "<f4", _ROW),
    ("rate_hz", "<f4", _ROW),  # running rate of each channel, for homeostasis
    # the tick's working memory
    ("drive", "<f4", _ROW),  # input of each neuron, in the unit of its model
    ("kick", "<f4", _ROW),  # charge of last tick's spikes, mV
    ("fired", "<f4", _ROW),  # 1 where the neuron fired
    ("departed", "<f4", _ROW),  # 1 for the bits of `arriving`
)


def _lay_out() -> tuple[tuple[Field, ...], int]:
    """Place the fields in order, rows on cache lines and scalars on their own size."""
    placed, end = [], 0
    for name, dtype, shape in _FIELDS:
        kind = np.dtype((dtype, shape))
        step = ALIGNMENT if kind.itemsize >= ALIGNMENT else kind.base.itemsize
        offset = -(-end // step) * step
        placed.append(Field(name, offset, dtype, shape))
        end = offset + kind.itemsize
    return tuple(placed), -(-end // ALIGNMENT) * ALIGNMENT


LAYOUT, BLOCK_BYTES = _lay_out()
"""The fields, in order of their offset; and the size of the block in bytes."""

BLOCK = np.dtype(
    {
        "names": [field.name for field in LAYOUT],
        "formats": [(field.dtype, field.shape) for field in LAYOUT],
        "offsets": [field.offset for field in LAYOUT],
        "itemsize": BLOCK_BYTES,
    },
    align=True,
)
"""The block as a numpy type."""

LAYOUT_ID = hashlib.sha256(repr((LAYOUT_VERSION, LAYOUT)).encode()).digest()[:16]
"""Sixteen bytes that differ for layouts that differ."""


def allocate(n_blocks: int = 1) -> State:
    """Return zeroed blocks, each 64-byte aligned, as an array of as many records."""
    n_bytes = n_blocks * BLOCK_BYTES
    raw = np.zeros(n_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(BLOCK)


def attach(buffer: memoryview | bytearray) -> State:
    """Return the block that lies in `buffer`, without a copy: shared memory, say.

    Raises
    ------
    ValueError
        If the buffer is not exactly one block long.
    """
    if memoryview(buffer).nbytes != BLOCK_BYTES:
        raise ValueError(f"expected a buffer of {BLOCK_BYTES} bytes, got {memoryview(buffer).nbytes}")
    return np.frombuffer(buffer, dtype=BLOCK)
