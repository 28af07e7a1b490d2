"""Cortisol once more, for neurons without a threshold."""

import numpy as np


def held_down(x: np.float32, threshold_gain: np.float32) -> np.float32:
    """Input that depolarises is divided by the gain."""
    return x * (np.float32(1) / threshold_gain) if x > 0 else x
