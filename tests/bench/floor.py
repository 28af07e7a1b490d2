"""The C floor: `floor.c` built in a temporary folder, and a network of ours put into it."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuromod.engine.config import CoincidenceConfig, InhibitionConfig, LearningConfig, ModulationConfig, NetworkConfig
from neuromod.engine.layout import ALIGNMENT, COINCIDENCE, LIVE, N_CHANNELS
from neuromod.engine.models.lif import LIF
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

SOURCE = Path(__file__).with_name("floor.c")
FASTEST = ("-O3", "-march=native")
# what the engine does beyond the floor: it carries what rounding keeps out of a weight
COMPENSATED = (*FASTEST, "-DCOMPENSATED")
SAME_BITS = (*COMPENSATED, "-ffp-contract=off")
PORTABLE = ("-O3", "-DCOMPENSATED", "-ffp-contract=off", "-Wno-psabi")

_ROW, _SQUARE = (N_CHANNELS,), (N_CHANNELS, N_CHANNELS)
_ROWS = ("v", "left", "pre_trace", "post_trace", "bias", "gain", "rise", "threshold", "reset", "lowest", "refractory")
_SCALARS = (
    *("pre_fall", "post_fall", "eligibility_fall", "a_plus", "a_minus", "w_min", "w_max", "rate"),
    *("dopamine", "dopamine_baseline", "dopamine_relaxation", "step"),
)
_STRUCT = np.dtype(
    [(name, "<f4", _SQUARE) for name in ("weights", "eligibility", "unrounded")]
    + [(name, "<f4", _ROW) for name in _ROWS]
    + [(name, "<f4", ()) for name in _SCALARS]
    + [("spikes", "<u4", ()), ("rest", "V12", ())]
)


class NoFloorError(Exception):
    """There is no compiler here, or it does not take the source."""


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that begin on a cache line, as vector loads want them."""
    kind = np.dtype((dtype, shape))
    raw = np.zeros(kind.itemsize + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + kind.itemsize].view(kind.base).reshape(shape)


def bare_config(rule: str = "reward", dopamine: float = 0.5, **settings: Any) -> NetworkConfig:
    """The network that the floor computes: all to all, and nothing but neurons, synapses and dopamine.

    The coincidence detector asks for more than ever happens and the interneuron does not inhibit; every synapse onto a
    neuron is plastic; dopamine rests at `dopamine` and acts on the weights alone.
    """
    plastic = [[int(target != COINCIDENCE) for target in range(N_CHANNELS)] for _ in range(N_CHANNELS)]
    return NetworkConfig.model_validate(
        {
            "coincidence": CoincidenceConfig(window_ms=0.0, min_channels=14),
            "inhibition": InhibitionConfig(strength_mv=0.0),
            "modulation": ModulationConfig(baseline=NeuroModulators(dopamine=dopamine), dopamine_input=0.0),
            "learning": LearningConfig(rule=rule, plastic=plastic, w_max_mv=4.0),
        }
        | settings
    )


def compiler() -> str:
    """Path of the C compiler: $CC, gcc or cc.

    Raises
    ------
    NoFloorError
        If there is none.
    """
    for name in (os.environ.get("CC"), "gcc", "cc"):
        if name and (path := shutil.which(name)):
            return path
    raise NoFloorError("no C compiler: neither $CC nor gcc nor cc")


def build(flags: tuple[str, ...] = FASTEST) -> Any:
    """Build the floor and return its function `run`.

    Raises
    ------
    NoFloorError
        If there is no compiler, or it fails.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder) / "floor.so"
        command = [compiler(), *flags, "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NoFloorError(f"{' '.join(command)} failed: {made.stderr.strip()[:300]}")
        function = ctypes.CDLL(str(library)).run
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    function.restype = None
    return function


class Floor:
    """A copy of an all-LIF network of `bare_config`, computed in C.

    Parameters
    ----------
    function : ctypes function
        What `build` returned.
    network : SpikingNetwork
        Read at this moment; it has to have run one tick, so that it knows what depends on the step.
    """

    def __init__(self, function: Any, network: SpikingNetwork) -> None:
        self._function = function
        self._struct = aligned((1,), _STRUCT)
        mine, block = self._struct[0], network.state[0]
        parameters = dict(zip((p.name for p in LIF.parameters), block["parameters"], strict=False))
        mine["weights"], mine["eligibility"] = block["weights_mv"], block["eligibility_mv"]
        mine["unrounded"] = block["unrounded_mv"]
        mine["v"], mine["left"] = block["variables"][:2]
        mine["rise"] = block["derived"][0]
        mine["threshold"], mine["reset"] = parameters["v_threshold_mv"], parameters["v_reset_mv"]
        mine["threshold"][COINCIDENCE] = np.inf
        mine["lowest"], mine["refractory"] = parameters["v_min_mv"], parameters["refractory_ms"]
        for name in ("pre_trace", "post_trace", "bias", "gain"):
            mine[name] = block[name]
        mine["pre_fall"], mine["post_fall"], mine["eligibility_fall"] = block["trace_fall"]
        mine["a_plus"], mine["a_minus"] = block["a_plus_mv"], block["a_minus_mv"]
        mine["rate"] = block["live"][LIVE.index("learning_rate_per_s")]
        mine["w_min"], mine["w_max"] = block["w_min_mv"], block["w_max_mv"]
        mine["dopamine"], mine["dopamine_baseline"] = block["levels"][0], block["baselines"][0]
        mine["dopamine_relaxation"] = block["relaxation"][0]
        mine["step"] = block["prepared_ms"]
        mine["spikes"] = block["spikes"]

    @property
    def weights(self) -> NDArray[np.float32]:
        """Copy of the weights, shape (16, 16)."""
        return np.array(self._struct[0]["weights"])

    def run(self, stimuli: NDArray[np.float32], spikes: NDArray[np.int64]) -> None:
        """One tick per row of `stimuli`, which begins on a cache line; `spikes` gets their bits."""
        self._function(self._struct.ctypes.data, stimuli.ctypes.data, len(stimuli), spikes.ctypes.data)
