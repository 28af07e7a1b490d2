"""Images that others published for sixteen neurons in Q8.8 (Spikenaut's `merged_v2`), as a network of ours.

Such a set has no manifest: 16 thresholds, 16 decays, 256 weights by target neuron, and where there is an output layer
48 weights of it; signed words of 4 digits, `//` comments. What a neuron does with them the files do not say. We take
the usual: a tick leaves `decay` of a membrane, adds 1 - decay of the stimulus, adds the weights of the last tick's
spikes in full, and resets a membrane that reaches its threshold to 0. In our registers all this is exact.

What they have and we have not: a neuron 14. That channel is the coincidence detector here, which is switched off (it
asks for 15 of 14 channels), so it stays silent and its spikes are missing from all others. Its words are kept in the
registers, which no tick reads, and written back. Neuron 15 is a neuron like the others, as inhibition is 0.

What differs in the hardware that was published with the files (silicon-hdl, `LifNeuron`): a leak is subtracted there,
not multiplied; a neuron takes one spike and one weight a clock; potentials are unsigned, with a floor of 0; and a
neuron is deaf in the clock after its spike. Its spikes are not expected to be these.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.config import InhibitionConfig, LearningConfig, NetworkConfig
from neuromod.engine.errors import FixedPointError, ImageError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import FIXED_BLOCK, GUARD_BITS, register
from neuromod.engine.images import OUTPUT_SHAPE, PARAMETER_DIGITS, read_words, signed
from neuromod.engine.layout_types import State

NOTE = (
    "neuron 14 of the images is silent: channel 14 is the coincidence detector, which is switched off; neuron 15 is "
    "one like the others, since inhibition is 0; there is no learning"
)

_ONE = 1 << 16
_NEVER_COINCIDENT = 15
_SHAPES: dict[str, tuple[int, ...]] = {
    "thresholds": (16,),
    "decay": (16,),
    "weights": (16, 16),
    "output_weights": OUTPUT_SHAPE,
}


@dataclass(frozen=True, eq=False)
class Published:
    """A set of images.

    Attributes
    ----------
    thresholds, decay : ndarray of int64, shape (16,)
        Q8.8.
    weights : ndarray of int64, shape (16, 16)
        Q8.8; row = target, column = source.
    output_weights : ndarray of int64, shape (16, 3), or None
        Q8.8; kept, since no part of our network reads them.
    """

    thresholds: NDArray[np.int64]
    decay: NDArray[np.int64]
    weights: NDArray[np.int64]
    output_weights: NDArray[np.int64] | None = None


def part_of(name: str) -> str | None:
    """Say which part of a set a file is, by its name; None where by none.

    Examples
    --------
    >>> part_of("merged_v2_output_weights.mem"), part_of("parameters.mem"), part_of("readme.mem")
    ('output_weights', 'thresholds', None)
    """
    if name == "parameters.mem":
        return "thresholds"
    for part in ("output_weights", "weights", "decay", "thresholds"):
        if name.endswith(f"{part}.mem"):
            return part
    return None


def read_published(texts: Mapping[str, str]) -> Published:
    """Return the set that these texts hold, each by its file's name.

    Raises
    ------
    ImageError
        If one cannot be read, says nothing of its part by its name, is there twice, or a part is missing.
    """
    found: dict[str, NDArray[np.int64]] = {}
    for name, text in texts.items():
        part = part_of(name)
        if part is None:
            raise ImageError(
                f"{name}: expected a name that ends in thresholds.mem, decay.mem, weights.mem or output_weights.mem"
            )
        if part in found:
            raise ImageError(f"{name}: a second image of {part}; give the files of one set")
        shape = _SHAPES[part]
        words = read_words(text, name, n_words=int(np.prod(shape)), digits=PARAMETER_DIGITS)
        found[part] = signed(words.values, 16).reshape(shape)
    if missing := [part for part in _SHAPES if part not in found and part != "output_weights"]:
        raise ImageError(f"no image of {', '.join(missing)}: a set has thresholds, decay and weights")
    return Published(**found)


def to_registers(published: Published) -> State:
    """Return a set as registers; `FixedNetwork.from_registers` runs them.

    Raises
    ------
    FixedPointError
        If a decay leaves a membrane less than nothing, nothing at all, or more than it was; all such are named.
    """
    rise = (256 - published.decay) << 16
    highest = register("rise").highest
    if wrong := np.flatnonzero((rise < 0) | (rise > highest)).tolist():
        named = ", ".join(f"decay[{i}] is {published.decay[i] / 256:g}" for i in wrong)
        raise FixedPointError(f"{named}; expected 1/256 to 1, the part of a membrane that a tick leaves")
    state: State = np.zeros(1, dtype=FIXED_BLOCK)
    block = state[0]
    for name in ("input_gain", "recurrent_gain", "threshold_gain"):
        block[name] = _ONE
    block["min_channels"] = _NEVER_COINCIDENT
    block["rise"] = rise
    block["gain"] = 1 << 8
    block["threshold"] = published.thresholds
    block["v_min"] = register("v_min").lowest
    block["since_spike"] = register("since_spike").highest
    block["weights"] = published.weights.T << GUARD_BITS
    return state


def to_network(published: Published, *, dt_ms: float = 1.0) -> FixedNetwork:
    """Return a set as a network that runs; its configuration says only what the host needs.

    Raises
    ------
    FixedPointError
        As `to_registers`.
    """
    config = NetworkConfig(inhibition=InhibitionConfig(strength_mv=0.0), learning=LearningConfig(rule="none"))
    return FixedNetwork.from_registers(to_registers(published), config, dt_ms=dt_ms)
