"""The four neuromodulators: what they are called, their ranges, and their order everywhere."""

from typing import Annotated

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

MODULATORS = ("dopamine", "cortisol", "acetylcholine", "tempo")
"""Order of the modulators in every array and message."""

RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.1, 4.0))
"""Least and greatest level of each, in that order."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class NeuroModulators(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Levels of the neuromodulators; the defaults leave the network as it is configured.

    Attributes
    ----------
    dopamine : float
        Signed reward-prediction error, -1 to 1. Scales sensory input; gates reward-modulated plasticity.
    cortisol : float
        Stress, 0 to 1. Raises thresholds and strengthens the interneuron's inhibition.
    acetylcholine : float
        Attention, 0 to 1. Raises the gain of input and lowers that of recurrent spikes.
    tempo : float
        Speed of the network's own time, 0.1 to 4 times wall time.
    """

    dopamine: Annotated[Finite, Field(ge=RANGES[0][0], le=RANGES[0][1])] = 0.0
    cortisol: Annotated[Finite, Field(ge=RANGES[1][0], le=RANGES[1][1])] = 0.0
    acetylcholine: Annotated[Finite, Field(ge=RANGES[2][0], le=RANGES[2][1])] = 0.0
    tempo: Annotated[Finite, Field(ge=RANGES[3][0], le=RANGES[3][1])] = 1.0

    def as_array(self) -> NDArray[np.float32]:
        """Levels in the order of `MODULATORS`, shape (4,)."""
        return np.array([getattr(self, name) for name in MODULATORS], dtype=np.float32)
