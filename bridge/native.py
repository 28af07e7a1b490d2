"""What the real-time loop needs below Python: atomic access, calls through C pointers, byte order.

Threads that run compiled code share memory with Python threads. A plain load in a compiled loop may be hoisted out of
it, so a flag would never be seen to change, and on weakly ordered processors a record could be seen before its
contents: every word that crosses threads is loaded and stored by the atomics of this module.

Functions of liblsl, libzmq and the C library are called through their addresses, passed as plain integers: a ctypes
function held as a global works too, but numba's disk cache refuses it, so that it would be compiled at every start.

Under ``NUMBA_DISABLE_JIT=1`` the atomics are plain reads and writes (the interpreter lock orders them) and C calls are
not to be had.
"""

import ctypes
import ctypes.util
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED, jit

N_FUNCTIONS = 16
(
    LSL_LOCAL_CLOCK,
    LSL_PULL_CHUNK_F,
    LSL_SAMPLES_AVAILABLE,
    LSL_INLET_FLUSH,
    ZMQ_SEND,
    ZMQ_RECV,
    ZMQ_MSG_INIT,
    ZMQ_MSG_RECV,
    ZMQ_MSG_DATA,
    ZMQ_MSG_SIZE,
    ZMQ_MSG_MORE,
    ZMQ_MSG_GETS,
    ZMQ_MSG_CLOSE,
    SLEEP,
    SLEEP_UNTIL,
    MEMMOVE,
) = range(N_FUNCTIONS)
"""Where `functions` keeps the address of each C function."""

SLEEP_UNIT_US = 1000 if sys.platform == "win32" else 1
"""What one unit of SLEEP's argument is worth: `usleep` on POSIX, `Sleep` (milliseconds) on Windows."""

ZMQ_DONTWAIT = 1
ZMQ_SNDMORE = 2
ZMQ_MSG_WORDS = 8  # a zmq_msg_t is 64 bytes, aligned like a pointer

CLOCK_MONOTONIC, TIMER_ABSTIME = 1, 1  # of Linux
_SAME_CLOCK_S = 1e-3  # apart by less than this, read one after the other, two clocks are one

_OF_LSL = {
    LSL_LOCAL_CLOCK: "lsl_local_clock",
    LSL_PULL_CHUNK_F: "lsl_pull_chunk_f",
    LSL_SAMPLES_AVAILABLE: "lsl_samples_available",
    LSL_INLET_FLUSH: "lsl_inlet_flush",
}
_OF_ZMQ = {
    ZMQ_SEND: "zmq_send",
    ZMQ_RECV: "zmq_recv",
    ZMQ_MSG_INIT: "zmq_msg_init",
    ZMQ_MSG_RECV: "zmq_msg_recv",
    ZMQ_MSG_DATA: "zmq_msg_data",
    ZMQ_MSG_SIZE: "zmq_msg_size",
    ZMQ_MSG_MORE: "zmq_msg_more",
    ZMQ_MSG_GETS: "zmq_msg_gets",
    ZMQ_MSG_CLOSE: "zmq_msg_close",
}


def _item_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _make_load(order: str) -> Any:
    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _item_pointer(context, builder, array, args[0], args[1])
            return builder.load_atomic(pointer, order, 8, typ=context.get_value_type(array.dtype))

        return array.dtype(array, types.intp), generate

    return load


def _make_store(order: str) -> Any:
    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store_atomic(args[2], _item_pointer(context, builder, array, args[0], args[1]), order, 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, array.dtype), generate

    return store


@intrinsic
def _store_big_endian(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write an unsigned integer at a byte offset, most significant byte first, in one unaligned store."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _item_pointer(context, builder, array, args[0], args[1])
        swapped = builder.bswap(args[2]) if sys.byteorder == "little" else args[2]
        builder.store(swapped, builder.bitcast(pointer, args[2].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def _load_byte(typing_context: Any, address: Any) -> Any:
    """Return the byte at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))

    return types.uint8(types.intp), generate


@intrinsic
def _bits_of(typing_context: Any, value: Any) -> Any:
    """Return the bits of a float64 as uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), generate


def _c_call(returns: Any, *arguments: Any) -> Any:
    """Build an intrinsic ``call(address, (arguments...))`` for a C function of this signature."""
    tuple_type = types.BaseTuple.from_types(arguments)

    @intrinsic
    def call(typing_context: Any, address: Any, values: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            c_type = ir.FunctionType(context.get_value_type(returns), [context.get_value_type(a) for a in arguments])
            function = builder.inttoptr(args[0], c_type.as_pointer())
            return builder.call(function, [builder.extract_value(args[1], i) for i in range(len(arguments))])

        return returns(types.intp, tuple_type), generate

    return call


def _plain_load(array: Any, index: int) -> Any:
    return array[index]


def _plain_store(array: Any, index: int, value: Any) -> None:
    array[index] = value


def _plain_store_big_endian(array: Any, offset: int, value: Any) -> None:
    raw = np.asarray(value)
    array[offset : offset + raw.nbytes] = np.frombuffer(raw.astype(raw.dtype.newbyteorder(">")).tobytes(), np.uint8)


def _plain_bits_of(value: float) -> np.uint64:
    return np.float64(value).view(np.uint64)


load_acquire: Callable[..., Any] = _make_load("acquire") if JIT_ENABLED else _plain_load
"""``load_acquire(array, index)``: an item of a 1-d array of 8-byte items; what its writer wrote before is visible."""
load_relaxed: Callable[..., Any] = _make_load("monotonic") if JIT_ENABLED else _plain_load
"""``load_relaxed(array, index)``: the item itself is never torn nor stale for ever; nothing is said of other words."""
store_release: Callable[..., Any] = _make_store("release") if JIT_ENABLED else _plain_store
"""``store_release(array, index, value)``: whoever acquires the item sees all that was written before it."""
store_relaxed: Callable[..., Any] = _make_store("monotonic") if JIT_ENABLED else _plain_store
"""``store_relaxed(array, index, value)``: the item itself is never torn; `value` has the dtype of the array."""
store_big_endian: Callable[..., Any] = _store_big_endian if JIT_ENABLED else _plain_store_big_endian
"""``store_big_endian(uint8_array, offset, value)``: network byte order, the width of `value`'s own unsigned type."""
bits_of: Callable[..., Any] = _bits_of if JIT_ENABLED else _plain_bits_of
"""``bits_of(float64)``: its bits as uint64."""

load_byte: Callable[..., Any] = _load_byte
"""``load_byte(address)``: what C left there, as uint8."""

call_clock: Callable[..., Any] = _c_call(types.float64)
call_pull: Callable[..., Any] = _c_call(
    types.uint64, types.intp, types.intp, types.intp, types.uint64, types.uint64, types.float64, types.intp
)
call_send: Callable[..., Any] = _c_call(types.int32, types.intp, types.intp, types.uint64, types.int32)
call_recv = call_send
call_msg: Callable[..., Any] = _c_call(types.int32, types.intp)  # init, more, close
call_msg_recv: Callable[..., Any] = _c_call(types.int32, types.intp, types.intp, types.int32)
call_msg_pointer: Callable[..., Any] = _c_call(types.intp, types.intp)  # data, and size_t size
call_msg_gets: Callable[..., Any] = _c_call(types.intp, types.intp, types.intp)
call_count: Callable[..., Any] = _c_call(types.uint32, types.intp)  # samples that wait in an inlet, or are flushed
call_sleep: Callable[..., Any] = _c_call(types.int32, types.uint32)
call_sleep_until: Callable[..., Any] = _c_call(types.int32, types.int32, types.int32, types.intp, types.intp)
call_memmove: Callable[..., Any] = _c_call(types.intp, types.intp, types.intp, types.uint64)


def c_functions() -> NDArray[np.int64]:
    """Find the C functions that the compiled loop calls.

    Returns
    -------
    ndarray of int64, shape (N_FUNCTIONS,)
        Addresses, indexed by the constants of this module. 0 where a function cannot be located; the loop then
        leaves that side to Python threads (`missing` says which).
    """
    found = np.zeros(N_FUNCTIONS, np.int64)
    found[MEMMOVE] = ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
    libc: Any = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
    found[SLEEP] = _address(libc, "Sleep" if sys.platform == "win32" else "usleep")
    try:
        import pylsl

        for index, name in _OF_LSL.items():
            found[index] = _address(pylsl.lib.lib, name)
        if _is_monotonic(pylsl.local_clock):
            found[SLEEP_UNTIL] = _address(libc, "clock_nanosleep")
    except (ImportError, RuntimeError, AttributeError):  # pylsl raises RuntimeError where liblsl itself is absent
        pass
    try:
        import zmq.backend.cython._zmq as pyzmq

        # the very library that pyzmq's sockets live in: a second copy of libzmq would not know their handles
        libzmq = ctypes.CDLL(pyzmq.__file__)
        for index, name in _OF_ZMQ.items():
            found[index] = _address(libzmq, name)
    except (ImportError, OSError, AttributeError):
        pass
    return found


def missing(functions: NDArray[np.int64]) -> list[str]:
    """Name the libraries whose functions could not be located, for the daemon to say."""
    absent = []
    if not (functions[LSL_LOCAL_CLOCK] and functions[LSL_PULL_CHUNK_F]):
        absent.append("liblsl")
    if not functions[list(_OF_ZMQ)].all():
        absent.append("libzmq")
    return absent


def _is_monotonic(clock: Callable[[], float]) -> bool:
    """Say whether a clock, in seconds, is the one that `call_sleep_until` goes by: CLOCK_MONOTONIC of Linux."""
    if sys.platform != "linux" or np.dtype(np.intp).itemsize != 8:  # the loop lays out a timespec of two int64
        return False
    return any(abs(clock() - time.clock_gettime(time.CLOCK_MONOTONIC)) < _SAME_CLOCK_S for _ in range(5))


def _address(library: Any, name: str) -> int:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0


@jit
def copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Fill a one-dimensional array with the first items of another.

    Not ``target[:] = source``, which brings broadcasting, and with it error messages that are made at run time.
    """
    for i in range(target.shape[0]):
        target[i] = source[i]


@jit
def get_word(array: NDArray[np.int64], index: int) -> int:
    """`load_acquire` for Python threads."""
    return load_acquire(array, index)


@jit
def set_word(array: NDArray[np.int64], index: int, value: int) -> None:
    """`store_release` for Python threads."""
    store_release(array, index, value)
