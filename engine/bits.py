"""Bits of a float32 as an integer and back: what an exponential needs and Python has no word for."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from neuromod.engine.compiled import JIT_ENABLED


@intrinsic  # type: ignore[untyped-decorator]
def _float_of(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


def _plain_float_of(bits: np.int32) -> np.float32:
    return np.int32(bits).view(np.float32)


float_of: Callable[[np.int32], np.float32] = _float_of if JIT_ENABLED else _plain_float_of
"""The float32 whose bits are those of an int32."""
