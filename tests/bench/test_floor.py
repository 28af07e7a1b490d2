"""The floor computes what the engine computes, or it would be the floor of something else."""

import numpy as np
import pytest
from bench.floor import COMPENSATED, PORTABLE, SAME_BITS, Floor, NoFloorError, aligned, bare_config, build
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.network import SpikingNetwork

N_TICKS = 20_000 if JIT_ENABLED else 300


def _run_both(
    flags: tuple[str, ...], seed: int, weights_seed: int | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Floor, SpikingNetwork]:
    try:
        function = build(flags)
    except NoFloorError as error:
        pytest.skip(str(error))
    network = SpikingNetwork(bare_config(), seed=seed if weights_seed is None else weights_seed)
    stimuli = aligned((N_TICKS, 16), np.float32)
    stimuli[:] = np.random.default_rng(seed).normal(0.7, 1.0, stimuli.shape)
    network.run(stimuli[:1])
    floor = Floor(function, network)
    bits = np.zeros(N_TICKS - 1, dtype=np.int64)
    rest = aligned((N_TICKS - 1, 16), np.float32)
    rest[:] = stimuli[1:]
    floor.run(rest, bits)
    return network.run(rest), bits[:, np.newaxis] >> np.arange(16) & 1 == 1, floor, network


@pytest.mark.parametrize("flags", [SAME_BITS, PORTABLE])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_floor_has_the_bits_of_the_engine(seed: int, flags: tuple[str, ...]) -> None:
    ours, floors, floor, network = _run_both(flags, seed)
    assert ours.sum() > N_TICKS * 15 * 0.005
    assert np.array_equal(ours, floors)
    assert np.array_equal(floor.weights, network.weights)
    assert not np.array_equal(network.weights, SpikingNetwork(bare_config(), seed=seed).weights)


def test_the_floor_with_products_and_sums_in_one_fires_when_the_engine_does() -> None:
    # a product and a sum in one rounding may move a spike now and then; other mathematics would move most of them, as
    # other weights do
    ours, floors, _, _ = _run_both(COMPENSATED, 0)
    others, _, _, _ = _run_both(COMPENSATED, 0, weights_seed=1)
    assert (ours != floors).sum() < 0.01 * ours.sum()
    assert (ours != others).sum() > 0.5 * ours.sum()
