"""The compilation cache notices an edit anywhere below a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine import compiled

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import neuromod
neuromod.__path__.append({root!r} + "/neuromod")     # our own folder joins the namespace
from neuromod.{package}.outer import outer
print(outer(1), outer.stats.cache_hits[()] if () in outer.stats.cache_hits else sum(outer.stats.cache_hits.values()))
"""
INNER = "from {decorator_module} import {decorator}\n\n@{use}\ndef inner(x):\n    return x + {number}\n"
OUTER = "from {decorator_module} import {decorator}\n{imports}\n\n@{use}\ndef outer(x):\n    return {called}(x) * 10\n"
BY_NAME = {"imports": "from neuromod.cache.trial.inner import inner", "called": "inner"}
BY_MODULE = {"imports": "from neuromod.cache.trial import inner", "called": "inner.inner"}
OURS = {"decorator_module": "neuromod.engine.compiled", "decorator": "jit", "use": "jit"}
PLAIN = {"decorator_module": "numba", "decorator": "njit", "use": "njit(cache=True)"}
PACKAGE = "cache.trial"


def write(root: Path, how: dict[str, str], number: int) -> None:
    folder = root / "neuromod" / PACKAGE.replace(".", "/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    (folder.parent / "__init__.py").touch()
    (folder / "inner.py").write_text(INNER.format(number=number, **how))
    outer = folder / "outer.py"
    text = OUTER.format(**how)
    if not outer.exists():  # an unchanged file keeps its date, which is what numba's own cache looks at
        outer.write_text(text)


def call(root: Path) -> tuple[int, int]:
    """Run the outer function in a new process; return its value and how often the disk cache served it."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    environment |= {"NUMBA_CACHE_DIR": str(root / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    program = PROGRAM.format(root=str(root), package=PACKAGE)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    value, hits = done.stdout.split()
    return int(value), int(hits)


@pytest.mark.parametrize("imported", [BY_NAME, BY_MODULE], ids=["by name", "by module"])
def test_an_edited_callee_in_another_file_is_noticed(tmp_path: Path, imported: dict[str, str]) -> None:
    write(tmp_path, OURS | imported, number=1)
    assert call(tmp_path) == (20, 0)
    assert call(tmp_path) == (20, 1), "the cache must serve what has not changed"
    write(tmp_path, OURS | imported, number=5)
    assert call(tmp_path) == (60, 0)


def test_the_plain_cache_of_numba_would_not_notice(tmp_path: Path) -> None:
    # the reason for compiled.py; when this fails, numba has learned it and compiled.py may go
    write(tmp_path, PLAIN | BY_NAME, number=1)
    assert call(tmp_path)[0] == 20
    write(tmp_path, PLAIN | BY_NAME, number=5)
    assert call(tmp_path) == (20, 1)


def test_the_tick_depends_on_every_file_below_it() -> None:
    below = set(compiled._sources("neuromod.engine.tick"))
    assert below >= {
        "neuromod.engine.tick",
        "neuromod.engine.compiled",
        "neuromod.engine.exponential",
        "neuromod.engine.layout",
        "neuromod.engine.models.catalogue",
        "neuromod.engine.models.lif",
        "neuromod.engine.models.model",
    }
    assert not any(name.startswith("neuromod.bridge") for name in below)


def test_decorating_leaves_the_cache_folder_of_others_alone() -> None:
    before = numba.config.CACHE_DIR
    compiled.jit(call)
    assert before == numba.config.CACHE_DIR


@pytest.mark.skipif(not compiled.JIT_ENABLED, reason="there is nothing to compile under NUMBA_DISABLE_JIT=1")
def test_kernels_release_the_interpreter_lock_and_keep_ieee_order() -> None:
    from neuromod.engine.tick import tick

    options = tick.targetoptions  # type: ignore[attr-defined]
    assert options["nogil"]
    assert not options.get("fastmath")


@compiled.jit
def allocating(n: int) -> float:
    return np.ones(n).sum()  # type: ignore[no-any-return]


@compiled.jit
def borrowing(values: NDArray[np.float64]) -> float:
    return values[0] + values[1]  # type: ignore[no-any-return]


@pytest.mark.skipif(not compiled.JIT_ENABLED, reason="there is nothing to compile under NUMBA_DISABLE_JIT=1")
def test_a_kernel_that_allocates_does_not_compile() -> None:
    # `_nrt` is not a public option of numba: this says when it is gone
    assert borrowing(np.array([1.0, 2.0])) == 3.0
    with pytest.raises(numba.core.errors.NumbaError, match="empty"):
        allocating(3)
