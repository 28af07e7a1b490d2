"""Banks: each the network that it would be alone, whoever runs it and in whatever order."""

import threading
from typing import Any

import numpy as np
import pytest

from neuromod.engine import banks as module
from neuromod.engine import tick as kernels
from neuromod.engine.banks import Banks
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import InhibitionConfig, NetworkConfig
from neuromod.engine.errors import CheckpointError, ConfigError, StimulusError
from neuromod.engine.layout import ALIGNMENT
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

N_TICKS = 3000 if JIT_ENABLED else 100
LEVELS = NeuroModulators(dopamine=0.5, cortisol=0.2, acetylcholine=0.3, tempo=1.5)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let banks change threads often, and at an odd number of ticks."""
    monkeypatch.setattr(module, "_TURN_TICKS", N_TICKS // 13)


def stimuli_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(2, 2, (*shape, 16)).astype(np.float32)


def levels_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-1, 0, 0, 0.1], [1, 1, 1, 4], (*shape, 4)).astype(np.float32)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("n_banks", [1, 2, 5])
def test_banks_have_the_bits_of_networks_run_one_by_one(n_banks: int, workers: int) -> None:
    banks = Banks(seeds=range(n_banks))
    stimuli = stimuli_of(1, n_banks, N_TICKS)
    spikes = banks.run(stimuli, LEVELS, workers=workers)
    assert spikes.shape == (n_banks, N_TICKS, 16)
    for seed in range(n_banks):
        alone = SpikingNetwork(seed=seed)
        assert (alone.run(stimuli[seed], LEVELS) == spikes[seed]).all()
        assert alone.state.tobytes() == banks.networks[seed].state.tobytes() == banks.states[seed : seed + 1].tobytes()
    assert spikes.any()


@pytest.mark.parametrize("own_stimuli", [False, True])
@pytest.mark.parametrize("own_levels", [False, True])
def test_stimuli_and_levels_are_shared_or_each_banks_own(own_stimuli: bool, own_levels: bool) -> None:
    stimuli, levels = stimuli_of(2, 3, 200), levels_of(3, 3, 200)
    spikes = Banks(seeds=[4, 5, 6]).run(
        stimuli if own_stimuli else stimuli[0], levels if own_levels else levels[0], workers=2
    )
    for i, seed in enumerate([4, 5, 6]):
        expected = SpikingNetwork(seed=seed).run(stimuli[i * own_stimuli], levels[i * own_levels])
        assert (spikes[i] == expected).all()


def test_each_bank_may_have_a_configuration_of_its_own() -> None:
    configs = [NetworkConfig(seed=i, inhibition=InhibitionConfig(strength_mv=10.0 * i)) for i in range(3)]
    banks = Banks(configs, dt_ms=0.5)
    spikes = banks.run(stimuli_of(4, 300))
    for i, config in enumerate(configs):
        assert banks.networks[i].config == config
        assert (spikes[i] == SpikingNetwork(config, dt_ms=0.5).run(stimuli_of(4, 300))).all()


def test_the_state_of_every_bank_is_readable_in_one_array() -> None:
    banks = Banks(seeds=range(3))
    banks.run(stimuli_of(5, 50))
    assert banks.states["step"].tolist() == [50, 50, 50]
    assert banks.states["weights_mv"].shape == (3, 16, 16)
    assert (banks.states["weights_mv"][2] == banks.networks[2].weights).all()


def test_a_bank_is_a_network_on_its_own_cache_lines() -> None:
    banks = Banks(seeds=range(5))
    banks.networks[1].set_tempo(3.0)
    assert banks.states["levels"][:, 3].tolist() == [1, 3, 1, 1, 1]
    for network in banks.networks:
        assert network.state.ctypes.data % ALIGNMENT == 0


def test_a_run_of_no_ticks_moves_nothing() -> None:
    banks = Banks(seeds=range(3))
    assert banks.run(np.zeros((0, 16))).shape == (3, 0, 16)
    assert banks.states["step"].tolist() == [0, 0, 0]


def test_a_restored_checkpoint_continues_bit_for_bit() -> None:
    banks = Banks(seeds=range(3))
    banks.run(stimuli_of(6, 500 if JIT_ENABLED else 50), LEVELS)
    saved = banks.checkpoint()
    expected = banks.run(stimuli_of(7, 100))
    other = Banks(seeds=[7, 8, 9])
    other.restore(saved)
    assert (other.run(stimuli_of(7, 100)) == expected).all()
    assert other.states.tobytes() == banks.states.tobytes()


def test_reset_puts_every_bank_back_to_its_start() -> None:
    banks = Banks(seeds=range(3))
    fresh = banks.states.tobytes()
    banks.run(stimuli_of(8, 50), LEVELS)
    banks.reset()
    assert banks.states.tobytes() == fresh


@pytest.mark.parametrize("n_banks", [1, 2, 4])
def test_a_checkpoint_of_another_number_of_banks_is_refused(n_banks: int) -> None:
    with pytest.raises(CheckpointError, match="expected the checkpoint of 3 banks"):
        Banks(seeds=range(3)).restore(Banks(seeds=range(n_banks)).checkpoint())


def test_a_damaged_checkpoint_changes_no_bank() -> None:
    banks = Banks(seeds=range(3))
    saved = banks.checkpoint()
    banks.run(stimuli_of(9, 50))
    before = banks.states.tobytes()
    with pytest.raises(CheckpointError, match="bank 2: the checkpoint is damaged"):
        banks.restore(saved[:-1] + bytes([saved[-1] ^ 1]))
    assert banks.states.tobytes() == before


@pytest.mark.parametrize(
    ("stimuli", "modulators", "words"),
    [
        (np.zeros((5, 15)), None, r"expected stimuli of shape \(n, 16\), got \(5, 15\)"),
        (np.zeros((2, 5, 16)), None, "expected stimuli of 3 banks, got those of 2"),
        (np.zeros((3, 5, 15)), None, r"bank 0: expected stimuli of shape \(n, 16\)"),
        (np.zeros((5, 16)), np.ones((4, 5, 4)), "expected modulators of 3 banks, got those of 4"),
        (np.zeros((3, 5, 16)), np.ones((4, 4)), r"bank 0: expected modulators of shape \(5, 4\)"),
        (np.where(np.arange(240).reshape(3, 5, 16) == 239, np.nan, 0), None, "bank 2: .* stimulus 15 of tick 4"),
    ],
)
def test_bad_input_is_refused_and_no_bank_moves(stimuli: np.ndarray, modulators: Any, words: str) -> None:
    banks = Banks(seeds=range(3))
    with pytest.raises(StimulusError, match=words):
        banks.run(stimuli, modulators)
    assert not banks.states["step"].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "at least one bank"),
        ({"configs": []}, "at least one bank"),
        ({"configs": [NetworkConfig()], "seeds": [1]}, "give one configuration with `seeds`"),
        ({"seeds": [1, -1]}, "seed must be a whole number"),
        ({"seeds": [1], "dt_ms": 2.0}, "dt_ms must lie within"),
    ],
)
def test_banks_that_cannot_be_built_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Banks(**arguments)


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        Banks(seeds=[1]).run(np.zeros((1, 16)), workers=0)


def test_an_interrupted_run_ends_its_threads_early(monkeypatch: pytest.MonkeyPatch) -> None:
    here, run, raised = threading.current_thread(), kernels.run, threading.Event()

    def interrupted(*arguments: Any) -> None:
        if threading.current_thread() is here:
            raised.set()
            raise KeyboardInterrupt
        raised.wait(60)
        run(*arguments)

    banks = Banks(seeds=range(4))
    monkeypatch.setattr(kernels, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        banks.run(stimuli_of(1, N_TICKS), workers=2)
    assert (banks.states["step"] < N_TICKS).all()
    assert not any(thread.name.startswith("neuromod-banks") for thread in threading.enumerate())
