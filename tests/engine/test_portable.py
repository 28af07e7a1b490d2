"""The compiled tick and the Python it is written in give the same bits, with everything switched on."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import NetworkConfig
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.network import SpikingNetwork


def everything(rule: str) -> NetworkConfig:
    """All models, noise, delays, masks, learning and scaling at once."""
    rng = np.random.default_rng(3)
    channels = {i: {"model": MODELS[i % len(MODELS)].name, "noise": 0.1} for i in range(14)}
    channels[13] = {"model": "pospischil", "preset": "IB"}
    return NetworkConfig.model_validate(
        {
            "seed": 5,
            "channels": channels,
            "connected": (rng.random((16, 16)) < 0.8).astype(int).tolist(),
            "delay_ticks": rng.integers(0, 5, 16).tolist(),
            "weights": {"kind": "random", "low_mv": 0, "high_mv": 6},
            "learning": {"rule": rule, "bounds": "soft", "w_max_mv": 8, "rate_per_s": 50, "homeostasis": {}},
            "modulation": {"dopamine_tau_ms": 20, "tempo_tau_ms": 30},
        }
    )


def digest(rule: str, dt_ms: float) -> str:
    """Hash over the spikes and the whole block after 150 ticks in which every modulator moves."""
    network = SpikingNetwork(everything(rule), dt_ms=dt_ms)
    stimuli = np.random.default_rng(1).normal(2, 2, (150, 16)).astype(np.float32)
    spikes = [network.run(stimuli[:50])]
    network.add_reward(1.0)
    network.add_stress(0.5)
    spikes.append(network.run(stimuli[50:100]))
    network.boost_focus(0.5)
    network.set_tempo(2.5)
    spikes.append(network.run(stimuli[100:]))
    fired = np.concatenate(spikes)
    assert fired[:, :14].any(axis=0).sum() > 10, "most channels must have fired, or little was compared"
    return hashlib.sha256(fired.tobytes() + network.state.tobytes()).hexdigest()


@pytest.mark.skipif(not JIT_ENABLED, reason="compares with the compiled form, which is switched off")
@pytest.mark.parametrize(("rule", "dt_ms"), [("reward", 1.0), ("hebbian", 0.5)])
def test_an_interpreted_network_has_the_bits_of_a_compiled_one(rule: str, dt_ms: float) -> None:
    child = subprocess.run(
        [sys.executable, __file__, rule, str(dt_ms)],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == digest(rule, dt_ms)


if __name__ == "__main__":
    print(digest(sys.argv[1], float(sys.argv[2])))
