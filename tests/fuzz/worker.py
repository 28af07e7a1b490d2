"""One target under libFuzzer, in a process of its own: ``worker.py TARGET OPTIONS...``; see `fuzz.py`."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Follow the modules of the target, and begin; libFuzzer ends the process."""
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    sys.path[0] = str(HERE.parent)
    name, options = sys.argv[1], sys.argv[2:]

    import atheris

    from fuzz.targets import TARGETS

    # The functions alone, and not whole packages as they are imported: what is no parser would only be slower.
    for module in TARGETS[name].modules:
        for function in _functions(importlib.import_module(module)):
            atheris.instrument_func(function)
    with contextlib.suppress(Exception):
        TARGETS[name].run(b"")  # what is made at the first call is not the input's doing
    atheris.Setup([os.environ.get("FUZZ_AGAIN", "fuzz"), *options], TARGETS[name].run)
    atheris.Fuzz()


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module defines."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        inside: list[Any] = [value, *(vars(value).values() if inspect.isclass(value) else ())]
        for each in inside:
            found = getattr(each, "fget", None) or getattr(each, "__func__", each)
            found = inspect.unwrap(found) if callable(found) else found
            if isinstance(found, FunctionType) and found.__module__ == module.__name__:
                yield found


if __name__ == "__main__":
    main()
