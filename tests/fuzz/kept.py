"""What fuzzing has found, as text that can be read and compared: a line for each input, as Python writes bytes.

`corpus/TARGET.txt` has what the fuzzer found worth keeping, `crashes/TARGET.txt` what once broke something, each below
a comment that says what.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

CORPUS, CRASHES = (Path(__file__).resolve().parent / kind for kind in ("corpus", "crashes"))


def read(folder: Path, target: str) -> list[bytes]:
    """Return the inputs that a folder, `CORPUS` or `CRASHES`, has for a target."""
    path = folder / f"{target}.txt"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [ast.literal_eval(line) for line in lines if not line.startswith("#")]


def write_corpus(target: str, inputs: Iterable[bytes]) -> None:
    """Put inputs in the place of the corpus of a target."""
    lines = [f"{data!r}\n" for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target}.txt").write_text("".join(lines), encoding="ascii")


def add_crash(target: str, data: bytes, what: str) -> None:
    """Add an input that broke something, and what it broke."""
    CRASHES.mkdir(exist_ok=True)
    with (CRASHES / f"{target}.txt").open("a", encoding="ascii") as file:
        file.write(f"# {ascii(what)[1:-1]}\n{data!r}\n")
