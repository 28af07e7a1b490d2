"""Hands for driving the kernels as the loop does: blocks, and chunks that never cross one."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.sorting.front_end import FrontEnd, blank, finish_block, push

Floats = NDArray[np.float32]
Run = Callable[..., Floats]


def _run(
    front_end: FrontEnd, samples: Floats, blocks: Sequence[int], cuts: Iterable[int] = (), trains: Iterable[Any] = ()
) -> Floats:
    out = np.zeros((len(blocks), front_end.n_features), dtype=np.float32)
    start = 0
    for row, length in zip(out, blocks, strict=True):
        stop = start + length
        for train in trains:
            if train.origin == start:
                blank(front_end.state, *train[1:])
        edges = [start, *(cut for cut in sorted(cuts) if start <= cut <= stop), stop]
        for a, b in itertools.pairwise(edges):
            push(front_end.state, samples[a:b])
        finish_block(front_end.state, row)
        start = stop
    return out


@pytest.fixture(scope="session")
def run() -> Run:
    """run(front_end, samples, block lengths, cuts=(), trains=()) -> features of all blocks."""
    return _run
