"""Every parser of bytes from outside keeps its promises on what fuzzing has found so far, and on changes of that.

`fuzz.py` looks for more; this needs no fuzzer.
"""

import random
from pathlib import Path

import pytest

from fuzz import kept
from fuzz.target import Target
from fuzz.targets import TARGETS

SEED = 20261130
N_MUTANTS = 150

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def inputs_of(target: Target) -> list[bytes]:
    """What once broke something, what the fuzzer found worth keeping, and what it began with."""
    return [*kept.read(kept.CRASHES, target.name), *kept.read(kept.CORPUS, target.name), *target.seeds()]


def mutant(chance: random.Random, inputs: list[bytes], longest: int) -> bytes:
    """Change an input in a few places, or join two."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 32)]
            case 3:
                data[at:at] = chance.choice(_ODD)
            case 4:
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
            case 5:
                other = chance.choice(inputs)
                data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data[:longest])


_ODD = (
    b"\0",
    b"\xff" * 8,
    b"\x7f\xf8" + bytes(6),
    b"[" * 40,
    b"{",
    b"1e999",
    b"nan",
    b"9" * 30,
    "\u2028".encode(),
    b"\\",
)


@every_target
def test_what_fuzzing_found_is_taken_or_refused_as_documented(target: Target) -> None:
    for data in inputs_of(target):
        run(target, data)


@every_target
def test_changed_inputs_are_taken_or_refused_as_documented(target: Target) -> None:
    inputs = inputs_of(target)
    chance = random.Random(SEED)
    for _ in range(N_MUTANTS):
        run(target, mutant(chance, inputs, target.max_bytes))


def run(target: Target, data: bytes) -> None:
    try:
        target.run(data)
    except Exception as error:
        error.add_note(f"given {data!r}")
        raise


def test_files_belong_to_targets() -> None:
    found = {path.name for folder in (kept.CORPUS, kept.CRASHES) for path in folder.iterdir()}
    assert found <= {f"{name}.txt" for name in TARGETS}


def test_what_is_kept_is_read_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(kept, "CRASHES", tmp_path / "crashes")
    inputs = [b"", b"#", b"'\"\r\n\x0c\x85", bytes(range(256))]

    kept.write_corpus("a", reversed([*inputs, b""]))
    for data in inputs:
        kept.add_crash("a", data, "ValueError: \u2028 of\ntwo lines")

    assert kept.read(kept.CORPUS, "a") == kept.read(kept.CRASHES, "a") == inputs
