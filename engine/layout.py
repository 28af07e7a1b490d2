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

LIVE = (
    "input_gain",
    "recurrent_gain",
    "inhibition_strength_mv",
    "inhibition_duration_ms",
    "coincidence_window_ms",
    "coincidence_min_channels",
)
"""Parameters that may change while the network runs, in the order of the field `live`."""

LAYOUT_VERSION = 1
"""Raised whenever a field moves, appears or changes its meaning."""

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
    ("bad_stimuli", "<i8", ()),  # values that were not finite and were taken as 0
    ("bad_levels", "<i8", ()),  # levels, rewards, stresses and parameters that were not finite and were ignored
    ("learning", "<i8", ()),  # 1 where plasticity may change weights
    # 16 for ever; read, because LLVM unrolls a loop of constant length into scalar code before it looks for vectors
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
    ("gain_mv", "<f4", _ROW),  # drive per unit of stimulus
    ("bias_mv", "<f4", _ROW),  # drive without stimulus
    ("inhibited", "<f4", _ROW),  # share of the interneuron's inhibition that arrives
    ("since_spike_ms", "<f4", _ROW),  # sensory channels: model time since the last spike
    ("parameters", "<f4", (N_PARAMETERS, N_CHANNELS)),  # of the channel's model, in its order
    ("variables", "<f4", (N_VARIABLES, N_CHANNELS)),  # row 0: membrane potential
    ("derived", "<f4", (N_DERIVED, N_CHANNELS)),
    ("weights_mv", "<f4", (N_CHANNELS, N_CHANNELS)),  # row = source, column = target
    # the tick's working memory
    ("drive", "<f4", _ROW),  # what the membrane would settle at, mV
    ("kick", "<f4", _ROW),  # charge of last tick's spikes, mV
    ("fired", "<f4", _ROW),
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


def allocate() -> State:
    """Return a zeroed block, 64-byte aligned, as an array of one record."""
    raw = np.zeros(BLOCK_BYTES + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + BLOCK_BYTES].view(BLOCK)


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
