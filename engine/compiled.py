"""How neuromod compiles: one decorator, and a disk cache that notices every edit.

Numba's disk cache checks only the file that a function is written in, so an edited callee in another file would leave
its compiled callers stale. Here the cache folder is named by a hash over the module's own source and the sources of
all neuromod modules that it imports, directly or not: an edit anywhere below a kernel gives it a new, empty folder.
"""

import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import numba
import platformdirs

P = ParamSpec("P")
R = TypeVar("R")

JIT_ENABLED = not numba.config.DISABLE_JIT
"""False under NUMBA_DISABLE_JIT=1, where kernels run as the Python they are written in."""

_IMPORT = re.compile(
    r"^\s*(?:from\s+(neuromod[\w.]*)\s+import\s+(\([^)]*\)|[^#\n]*)|import\s+(neuromod[\w.]*))", re.MULTILINE
)


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` for the real-time path: no interpreter lock, IEEE arithmetic, cached on disk.

    Division by zero follows IEEE 754 rather than raising, since a kernel may not raise; `fastmath` stays off, so that
    the order of evaluation, and with it every bit of a result, is the one written in the source.

    Numba's reference counts are off. A kernel borrows its arrays from its caller and allocates none, so it needs no
    count; handing some thirty arrays from function to function cost half of a tick in atomic increments (1.5 us, 0.8
    without), and a fifth of the time to compile. A kernel that would allocate, or assign to a slice, does not compile.
    Kernels are inlined into each other, since a call copies every field of every array to the stack (0.8 us to 0.4).
    """
    return _compile(function, forceinline=True)


def jit_apart(function: Callable[P, R]) -> Callable[P, R]:
    """Compile as `jit` does, but for calls: for what is large, called from several places, and not on every tick.

    Inlined, the handling of inputs stood nine times in the real-time loop, and took half of its compilation.
    """
    return _compile(function, forceinline=False)


def _compile(function: Callable[P, R], *, forceinline: bool) -> Callable[P, R]:
    before = numba.config.CACHE_DIR
    # read by numba at decoration only, and given back so that kernels of other packages stay where they were
    numba.config.CACHE_DIR = str(cache_folder(function.__module__))
    try:
        compiled: Callable[P, R] = numba.njit(
            cache=True, nogil=True, error_model="numpy", forceinline=forceinline, no_cfunc_wrapper=True, _nrt=False
        )(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


@functools.cache
def cache_folder(module: str) -> Path:
    """Folder of the compiled code of `module`, named by a hash over all neuromod sources it depends on.

    `NUMBA_CACHE_DIR`, where set, is the parent folder; otherwise the user's cache folder is.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources(module).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    parent = Path(numba.config.CACHE_DIR or platformdirs.user_cache_path("neuromod") / "numba")
    return parent / digest.hexdigest()[:16]


def _sources(module: str) -> dict[str, Path]:
    """Module names and files of `module` and of every neuromod module that it imports, directly or not."""
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _file_of(name)
        if name in found or path is None:
            continue
        found[name] = path
        for base, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
            queue.append(base or plain)
            package = _file_of(base) if base else None
            if package is not None and package.name == "__init__.py":
                queue += [f"{base}.{n}" for n in re.findall(r"\w+", names)]
    return found


def _file_of(module: str) -> Path | None:
    """Source file of a module, without importing it; None where there is no such module or it has no source."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec is not None else None
    return Path(file) if file and file.endswith(".py") else None
