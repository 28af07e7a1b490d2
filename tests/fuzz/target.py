"""What a target of fuzzing is."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A parser, and what must hold whatever bytes it is given.

    Attributes
    ----------
    name : str
        What it is called on the command line, and its files in `corpus` and `crashes`.
    run : callable
        Gives the bytes to the parser. It returns where the parser took them or refused them in a documented way, and
        raises anything else where not: an error of another kind, or `AssertionError` for a promise that is not kept.
    seeds : callable
        Returns inputs to begin with.
    modules : sequence of str
        Modules in which the fuzzer follows which way the code went. None that is compiled.
    max_bytes : int
        Longest input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    modules: Sequence[str]
    max_bytes: int = 4096


def scratch(name: str) -> Path:
    """Return a file in a folder of this process's own, in memory where the system has such a place."""
    global _folder
    if _folder is None:
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        _folder = tempfile.TemporaryDirectory(prefix="neuromod-fuzz-", dir=place)
    return Path(_folder.name) / name


_folder: tempfile.TemporaryDirectory[str] | None = None
