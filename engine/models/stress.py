"""What cortisol does to neurons that have no threshold to raise."""

import numpy as np

from neuromod.engine.compiled import jit


@jit
def held_down(x: np.float32, eased: np.float32) -> np.float32:
    """Divide input that depolarises by the threshold gain, and leave what hyperpolarises as it is.

    Rheobase and the least charge that fires a resting neuron then rise by the gain, and inhibition keeps its strength.

    Parameters
    ----------
    x : float32
        Drive, or charge of arriving spikes.
    eased : float32
        1 / threshold gain, at most 1: computed once a step, since a division in every channel takes longer.

    Returns
    -------
    float32
        x * `eased` where x > 0, else x.
    """
    less = x * eased
    return less if less < x else x
