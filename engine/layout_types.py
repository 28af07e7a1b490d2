"""Names for what kernels are handed, for the type checker and the reader."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

State: TypeAlias = NDArray[np.void]
"""The block of a network as an array of one record, `shape (1,)`: what the functions of `tick` take."""

Record: TypeAlias = Any
"""That one record, inside a kernel: `state[0]`, whose fields are arrays and scalars on the block."""
