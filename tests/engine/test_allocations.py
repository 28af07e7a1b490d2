"""A tick takes no memory from anybody.

Two looks at it: what the machine code of a tick calls, which also shows memory given back at once; and what the C
library's heap holds after many thousand ticks with everything switched on. `test_compiled` has a third: a kernel that
allocates does not compile.
"""

import ctypes
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from neuromod.engine import tick as kernels
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import NetworkConfig
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import tick

N_TICKS = 20_000
# of the C library, mathematics alone: these take numbers and return numbers
HARMLESS = re.compile(r"llvm\.\w[\w.]*|(sqrt|ceil|floor|trunc|rint|fabs|fma)f?")

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="the interpreter allocates whatever it does")


class _HeapStatistics(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _heap_bytes() -> Callable[[], int]:
    """A function that says how many bytes of the C library's heap are in use."""
    try:
        statistics = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError, OSError):
        pytest.skip("no mallinfo2: this is not glibc 2.33 or later")
    statistics.restype = _HeapStatistics

    def in_use() -> int:
        found = statistics()
        return int(found.uordblks + found.hblkhd)

    return in_use


def _everything() -> NetworkConfig:
    """All models, noise, delays, learning with dopamine, homeostasis."""
    names = itertools.cycle(model.name for model in MODELS)
    sensory = [i for i in range(N_CHANNELS) if i not in (COINCIDENCE, INHIBITORY)]
    return NetworkConfig.model_validate(
        {
            "channels": {i: {"model": name, "noise": 0.5} for i, name in zip(sensory, names, strict=False)},
            "delay_ticks": tuple(range(N_CHANNELS)),
            "modulation": {"baseline": {"dopamine": 0.5}},
            "learning": {"bounds": "soft", "homeostasis": {}},
        }
    )


def _callees(function: Callable[..., Any], arguments: tuple[Any, ...], **options: Any) -> set[str]:
    """What the machine code of `function`, compiled anew, calls; without its Python wrapper."""
    compiled = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    compiled(*arguments)
    code = "\n".join(compiled.inspect_llvm().values())
    bodies = re.findall(r"^define [^\n]*@\"?([\w.]+)[^\n]*\{\n(.*?)^\}", code, re.MULTILINE | re.DOTALL)
    kernel = [body for name, body in bodies if not name.startswith("_ZN7cpython")]
    assert kernel
    # by name, or through a pointer: "%4"
    return set(re.findall(r"\bcall [^@%\n]*(?:@\"?)?(%?[\w.]+)\"?\(", "\n".join(kernel)))


def test_a_tick_calls_nothing_that_could_allocate() -> None:
    network = SpikingNetwork(_everything())

    def one_tick(state: Any, stimuli: Any) -> Any:
        return tick(state, stimuli)

    called = _callees(one_tick, (network.state, np.zeros(N_CHANNELS, np.float32)), forceinline=True, _nrt=False)
    assert {name for name in called if not HARMLESS.fullmatch(name)} == set()


def test_a_kernel_that_allocates_is_seen_by_what_it_calls() -> None:
    def allocating(n: int) -> float:
        return np.ones(n).sum()  # type: ignore[no-any-return]

    called = _callees(allocating, (3,))
    assert any("NRT" in name for name in called if not HARMLESS.fullmatch(name))


def test_ticks_leave_the_heap_as_it_was() -> None:
    network = SpikingNetwork(_everything(), seed=3)
    stimuli = np.random.default_rng(0).normal(1.0, 1.0, (N_TICKS, N_CHANNELS)).astype(np.float32)
    modulators, spikes = np.zeros((0, 4), dtype=np.float32), np.empty((N_TICKS, N_CHANNELS), dtype=np.bool_)
    in_use = _heap_bytes()
    python_objects = sys.getallocatedblocks
    in_use()
    before, objects_before = in_use(), python_objects()
    kernels.run(network.state, stimuli, modulators, spikes)
    objects, after = python_objects(), in_use()
    assert spikes.any()
    # what the call itself leaves does not grow with the ticks: far below one byte or one object each
    assert abs(after - before) < N_TICKS / 4
    assert abs(objects - objects_before) < 50


def test_the_heap_is_seen_to_grow_by_the_least_allocation_a_tick() -> None:
    in_use = _heap_bytes()
    allocate, release = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    allocate.restype, release.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    kept = [None] * N_TICKS
    before = in_use()
    for k in range(N_TICKS):
        kept[k] = allocate(1)
    grown = in_use() - before
    for pointer in kept:
        release(pointer)
    assert grown > N_TICKS
