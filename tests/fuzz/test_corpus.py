"""Every parser of bytes from outside keeps its promises on what fuzzing has found so far, and on changes of that.

`fuzz.py` looks for more; this needs no fuzzer.
"""

import random
from pathlib import Path

import pytest

from fuzz.target import Target
from fuzz.targets import TARGETS

HERE = Path(__file__).parent
SEED = 20261130
N_MUTANTS = 150

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def kept(target: Target) -> dict[str, bytes]:
    """Inputs that are kept, by name: what once broke something, then what the fuzzer found worth keeping."""
    return {
        f"{kind}/{target.name}/{path.name}": path.read_bytes()
        for kind in ("crashes", "corpus")
        for path in sorted((HERE / kind / target.name).glob("*"))
    }


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
    for name, data in kept(target).items():
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"given tests/fuzz/{name}")
            raise


@every_target
def test_changed_inputs_are_taken_or_refused_as_documented(target: Target) -> None:
    inputs = [*kept(target).values(), *target.seeds()]
    chance = random.Random(SEED)
    for _ in range(N_MUTANTS):
        data = mutant(chance, inputs, target.max_bytes)
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"given {data!r}")
            raise


def test_no_target_keeps_more_than_it_needs() -> None:
    for target in TARGETS.values():
        inputs = kept(target).values()
        assert len(inputs) < 200, target.name
        assert sum(map(len, inputs)) < 200_000, target.name


def test_folders_belong_to_targets() -> None:
    found = {path.name for kind in ("corpus", "crashes") for path in (HERE / kind).glob("*")}
    assert found <= set(TARGETS)
