"""Atomics, C calls and byte order: what the loop needs below Python does what its name says."""

import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pylsl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuromod.bridge import native
from neuromod.bridge.native import (
    bits_of,
    call_clock,
    call_memmove,
    get_word,
    load_acquire,
    load_relaxed,
    set_word,
    store_big_endian,
    store_relaxed,
    store_release,
)
from neuromod.engine.compiled import JIT_ENABLED, jit

GUARD = 0xA5
GO, STOP, TURNS = 0, 8, 16  # a cache line each

compiled_only = pytest.mark.skipif(not JIT_ENABLED, reason="compiled code is switched off")


@jit
def store_u16(frame: NDArray[np.uint8], at: int, value: int) -> None:
    store_big_endian(frame, at, np.uint16(value))


@jit
def store_u32(frame: NDArray[np.uint8], at: int, value: int) -> None:
    store_big_endian(frame, at, np.uint32(value))


@jit
def store_u64(frame: NDArray[np.uint8], at: int, value: np.uint64) -> None:
    store_big_endian(frame, at, value)


@jit
def store_double(frame: NDArray[np.uint8], at: int, value: float) -> None:
    store_big_endian(frame, at, bits_of(value))


@jit
def spin_until_stopped(words: NDArray[np.int64], limit: int) -> int:
    """Turns made before STOP was seen; `limit` where it was not. All inlined, as the loop of the daemon is."""
    store_release(words, GO, 1)
    turns = 0
    while load_acquire(words, STOP) == 0 and turns < limit:
        turns += 1
    return turns


@jit
def spin_relaxed_until_stopped(words: NDArray[np.int64], limit: int) -> int:
    store_release(words, GO, 1)
    turns = 0
    while load_relaxed(words, STOP) == 0 and turns < limit:
        turns += 1
    return turns


@jit
def count_aloud(words: NDArray[np.int64], limit: int) -> None:
    """Show every turn to other threads until STOP."""
    turns = 0
    while load_acquire(words, STOP) == 0 and turns < limit:
        turns += 1
        store_relaxed(words, TURNS, turns)


@jit
def lsl_clock(address: int) -> float:
    return call_clock(address, ())  # type: ignore[no-any-return]


@jit
def copy_bytes(address: int, target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
    call_memmove(address, (target.ctypes.data, source.ctypes.data, np.uint64(source.shape[0])))


STORES: list[tuple[Callable[..., None], str, Any]] = [
    (store_u16, ">H", st.integers(0, 2**16 - 1)),
    (store_u32, ">I", st.integers(0, 2**32 - 1)),
    (store_u64, ">Q", st.integers(0, 2**64 - 1).map(np.uint64)),
    (store_double, ">d", st.floats()),
]


@pytest.mark.parametrize(("store", "form", "values"), STORES, ids=[form for _, form, _ in STORES])
@settings(deadline=None)  # the first call compiles
@given(data=st.data(), at=st.integers(0, 9))
def test_big_endian_stores_write_what_struct_packs_and_nothing_else(
    store: Callable[..., None], form: str, values: Any, data: st.DataObject, at: int
) -> None:
    value = data.draw(values)
    frame = np.full(20, GUARD, np.uint8)

    store(frame, at, value)

    expected = bytearray([GUARD] * 20)
    struct.pack_into(form, expected, at, value if form == ">d" else int(value))
    assert frame.tobytes() == bytes(expected)


@settings(deadline=None)  # the first call compiles
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_a_word_is_read_as_it_was_written_and_its_neighbours_stay(value: int) -> None:
    words = np.full(3, -1, np.int64)

    set_word(words, 1, value)

    assert get_word(words, 1) == value
    assert words[[0, 2]].tolist() == [-1, -1]


@compiled_only
@pytest.mark.parametrize("spin", [spin_until_stopped, spin_relaxed_until_stopped])
def test_a_running_loop_sees_the_flag_of_a_python_thread(spin: Callable[..., int]) -> None:
    # a plain load would be hoisted: the loop then makes all its turns, or none
    limit = 1 << 34
    words, turns = np.zeros(24, np.int64), [limit]
    spin(np.ones(24, np.int64), 1)  # compiled before the clock runs

    def run() -> None:
        turns[0] = spin(words, limit)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: get_word(words, GO) == 1)
    set_word(words, STOP, 1)
    thread.join(20.0)

    assert not thread.is_alive()
    assert turns[0] < limit


@compiled_only
def test_a_python_thread_sees_the_stores_of_a_running_loop() -> None:
    words = np.zeros(24, np.int64)
    count_aloud(np.ones(24, np.int64), 1)
    thread = threading.Thread(target=count_aloud, args=(words, 1 << 34), daemon=True)
    thread.start()

    first = wait_for(lambda: get_word(words, TURNS))
    later = wait_for(lambda: get_word(words, TURNS) > first)
    set_word(words, STOP, 1)
    thread.join(20.0)

    assert later
    assert not thread.is_alive()


def test_liblsl_and_libzmq_are_located() -> None:
    functions = native.c_functions()

    assert native.missing(functions) == []
    assert (functions[[native.SLEEP, native.MEMMOVE]] != 0).all()


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ([native.LSL_LOCAL_CLOCK], ["liblsl"]),
        ([native.LSL_PULL_CHUNK_F], ["liblsl"]),
        ([native.ZMQ_SEND], ["libzmq"]),
        ([native.ZMQ_RECV], ["libzmq"]),
        ([native.ZMQ_MSG_GETS], ["libzmq"]),
        ([native.LSL_PULL_CHUNK_F, native.ZMQ_RECV], ["liblsl", "libzmq"]),
    ],
)
def test_a_library_of_which_one_function_is_missing_is_named(lost: list[int], named: list[str]) -> None:
    functions = np.ones(native.N_FUNCTIONS, np.int64)
    functions[lost] = 0

    assert native.missing(functions) == named


@compiled_only
def test_the_clock_called_by_its_address_is_the_clock_of_lsl() -> None:
    address = native.c_functions()[native.LSL_LOCAL_CLOCK]

    times = []
    for _ in range(100):
        times += [pylsl.local_clock(), lsl_clock(address)]
    times.append(pylsl.local_clock())

    assert times == sorted(times)


@compiled_only
@settings(deadline=None)  # the first call compiles
@given(data=st.binary(min_size=1, max_size=200))
def test_memory_moved_by_address_arrives_whole(data: bytes) -> None:
    source, target = np.frombuffer(data, np.uint8).copy(), np.full(len(data) + 8, GUARD, np.uint8)

    copy_bytes(native.c_functions()[native.MEMMOVE], target, source)

    assert target.tobytes() == data + bytes([GUARD] * 8)


def wait_for(condition: Callable[[], Any], polls: int = 10_000_000) -> Any:
    """Poll a bounded number of times, about ten seconds; return what the condition last said."""
    for _ in range(polls):
        if result := condition():
            return result
    return condition()
