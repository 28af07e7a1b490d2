"""Bits where Python has no word for them: of a float32, and of a row of sixteen as one number.

The rows of the network are vectors, its spikes are bits: going over by explicit vectors took a third off the tick.
"""

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


_ROW = ir.VectorType(ir.FloatType(), 16)
_ROW_BITS = ir.IntType(16)


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return builder.bitcast(context.make_array(array_type)(context, builder, array).data, _ROW.as_pointer())


def _make_pack(predicate: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def pack(typing_context: Any, row: Any, limit: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = builder.load(_row_pointer(context, builder, row, args[0]), align=4)
            limits = ir.Constant(_ROW, ir.Undefined)
            for i in range(16):
                limits = builder.insert_element(limits, args[1], ir.Constant(ir.IntType(32), i))
            holds = builder.fcmp_ordered(predicate, values, limits)
            return builder.zext(builder.bitcast(holds, _ROW_BITS), ir.IntType(64))

        return types.int64(row, types.float32), generate

    return pack


@intrinsic  # type: ignore[untyped-decorator]
def _count(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _unpack(typing_context: Any, bits: Any, row: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = builder.bitcast(builder.trunc(args[0], _ROW_BITS), ir.VectorType(ir.IntType(1), 16))
        builder.store(builder.uitofp(lanes, _ROW), _row_pointer(context, builder, row, args[1]), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, row), generate


def _plain_above(row: Any, limit: np.float32) -> int:
    return sum(1 << i for i in range(16) if row[i] > limit)


def _plain_below(row: Any, limit: np.float32) -> int:
    return sum(1 << i for i in range(16) if row[i] < limit)


def _plain_count(bits: int) -> int:
    return int(bits).bit_count()


def _plain_unpack(bits: int, row: Any) -> None:
    for i in range(16):
        row[i] = np.float32(bits >> i & 1)


above: Callable[[Any, np.float32], int] = _make_pack(">") if JIT_ENABLED else _plain_above
"""The entries of a row of sixteen float32 above a limit, as bits: bit i is entry i."""

below: Callable[[Any, np.float32], int] = _make_pack("<") if JIT_ENABLED else _plain_below
"""The entries of a row of sixteen float32 below a limit, as bits."""

count: Callable[[int], int] = _count if JIT_ENABLED else _plain_count
"""How many bits are set."""

unpack: Callable[[int, Any], None] = _unpack if JIT_ENABLED else _plain_unpack
"""Write 1 or 0 into each entry of a row of sixteen float32: bit i into entry i."""
