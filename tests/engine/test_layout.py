"""The block is what its published layout says, for readers that have no numpy."""

import ctypes
import struct

import numpy as np
import pytest

from neuromod.engine.layout import ALIGNMENT, BLOCK, BLOCK_BYTES, LAYOUT, Field, allocate, attach
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork


def view(raw: memoryview, field: Field) -> np.ndarray:
    """Read one field as another language would: by its offset, type and shape alone."""
    n_items = int(np.prod(field.shape, dtype=int))
    return np.frombuffer(raw, dtype=field.dtype, count=n_items, offset=field.offset).reshape(field.shape)


@pytest.mark.parametrize("field", LAYOUT, ids=lambda field: field.name)
def test_the_published_offsets_are_where_the_values_are(field: Field) -> None:
    network = SpikingNetwork(seed=3)
    network.run(np.full((50, 16), 2.0), NeuroModulators(dopamine=0.5, cortisol=0.1, acetylcholine=0.2, tempo=1.1))
    actual = network.state[0][field.name]
    assert (view(memoryview(network.state.tobytes()), field) == actual).all()
    if field.shape:
        assert actual.ctypes.data - network.state.ctypes.data == field.offset
        assert actual.flags.c_contiguous


def test_fields_follow_each_other_without_overlap() -> None:
    end = 0
    for field in LAYOUT:
        assert field.offset >= end
        assert field.offset % np.dtype(field.dtype).itemsize == 0
        size = np.dtype((field.dtype, field.shape)).itemsize
        assert size < ALIGNMENT or field.offset % ALIGNMENT == 0
        end = field.offset + size
    assert end <= BLOCK_BYTES < end + ALIGNMENT
    assert BLOCK.itemsize == BLOCK_BYTES


@pytest.mark.parametrize("repeat", range(5))
def test_the_block_is_aligned_and_contiguous(repeat: int) -> None:
    state = allocate()
    assert state.ctypes.data % ALIGNMENT == 0
    assert state.nbytes == BLOCK_BYTES
    assert state.flags.c_contiguous


def test_a_c_reader_finds_the_potentials() -> None:
    network = SpikingNetwork(seed=3)
    network.run(np.full((5, 16), 2.0))
    offset = next(field.offset for field in LAYOUT if field.name == "variables")
    c_row = (ctypes.c_float * 16).from_address(network.state.ctypes.data + offset)
    assert list(c_row) == network.state[0]["variables"][0].tolist()
    assert any(c_row)


def test_the_step_counter_comes_first() -> None:
    network = SpikingNetwork()
    network.run(np.zeros((321, 16)))
    assert struct.unpack_from("<q", network.state.tobytes()) == (321,)


def test_a_block_in_shared_memory_is_a_state() -> None:
    memory = bytearray(SpikingNetwork(seed=3).state.tobytes())
    state = attach(memory)
    state[0]["step"] = 7
    assert struct.unpack_from("<q", memory) == (7,)
    with pytest.raises(ValueError, match=f"expected a buffer of {BLOCK_BYTES} bytes"):
        attach(bytearray(10))


def test_every_model_has_a_number_and_a_name_of_its_own() -> None:
    assert len({model.number for model in MODELS}) == len(MODELS)
    assert len({model.name for model in MODELS}) == len(MODELS)
    assert all(model.number > 0 for model in MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_defaults_of_every_model_lie_in_their_ranges(model) -> None:  # type: ignore[no-untyped-def]
    assert all(parameter.allows(parameter.default) for parameter in model.parameters)
    assert all(parameter.meaning for parameter in model.parameters)
