"""The compiled chain and the Python it is written in give the same bits."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.sorting.config import ArtefactConfig, EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd, blank, finish_block, is_blanked, push


def chain_digest(reference: str) -> str:
    """Hash over features, stimuli and state of 0.1 s through warm-up, all kinds of feature, blanking and encoder."""
    config = FrontEndConfig.model_validate(
        {
            "features": ["crossings", "spiking_band", "bands", "raw"],
            "reference": reference,
            "warmup_s": 0.02,
            "crossings": {"threshold_noise": -2.0},
            "spiking_band": {"log": True},
        }
    )
    artefacts = ArtefactConfig.model_validate({"electrodes": [{"electrode": 3, "channels": [1, 2], "delay_us": 700}]})
    front_end = FrontEnd(config, 5, 15000.0, artefacts=artefacts)
    encoder = Encoder(EncoderConfig(warmup_s=0.02), front_end.n_features, front_end.feature_names)
    samples = np.random.default_rng(1).normal(200.0, 10.0, (1500, 5)).astype(np.float32)
    features, stimuli = np.zeros(front_end.n_features, np.float32), np.zeros(16, np.float32)
    digest = hashlib.sha256()
    for start in range(0, 1500, 15):
        if start in (150, 750, 1050):
            blank(front_end.state, 0, 250.0, 4, 3100.0, 400.0)
            blank(front_end.state, 3, 0.0, 7, 2700.0, 400.0)
        push(front_end.state, samples[start : start + 15])
        finish_block(front_end.state, features)
        encode(encoder.state, features, stimuli, is_blanked(front_end.state))
        digest.update(features.tobytes() + stimuli.tobytes())
    for array in (*front_end.parts(), *encoder.state):
        digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.skipif(not JIT_ENABLED, reason="compares with the compiled form, which is switched off")
@pytest.mark.parametrize("reference", ["median", "clipped-mean"])
def test_interpreted_kernels_give_the_bits_of_compiled_ones(reference: str) -> None:
    child = subprocess.run(
        [sys.executable, __file__, reference],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert child.stdout.strip() == chain_digest(reference)


if __name__ == "__main__":
    print(chain_digest(sys.argv[1]))
