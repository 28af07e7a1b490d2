"""Faults that a simulated board can be given, each of them the same for the same seed.

Two are of the line (`flip`, `lose`), two of the answers on their way (`delay`, `reorder`), three of the board itself
(`stop`, `reset`, `memory`). Bytes are numbered from 0 in each direction, before any is lost; ticks are those of the
board's register `tick`.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from neuromod.engine.errors import ConfigError, FixedPointError
from neuromod.engine.fixed_registers import register

Direction = Literal["to_board", "to_host"]

_Tick = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
_Numbers = tuple[Annotated[int, pydantic.Field(ge=0)], ...]


class _Fault(pydantic.BaseModel, frozen=True, extra="forbid"):
    pass


class _LineFault(_Fault):
    """Hits bytes, at a rate or by their numbers; in both directions unless one is named."""

    direction: Literal["to_board", "to_host", "both"] = "both"
    rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    bytes: _Numbers = ()

    @pydantic.model_validator(mode="after")
    def _hits(self) -> "_LineFault":
        if not self.rate and not self.bytes:
            raise ValueError("give rate=... (of bytes), or bytes=... (their numbers)")
        return self


class Flip(_LineFault):
    """One bit of a byte comes over wrong."""

    kind: Literal["flip"] = "flip"


class Lose(_LineFault):
    """A byte does not come over."""

    kind: Literal["lose"] = "lose"


class Delay(_Fault):
    """The answers to some ticks are held back, and so are those after them until they have gone."""

    kind: Literal["delay"] = "delay"
    ms: Annotated[float, pydantic.Field(gt=0, le=60_000)]
    ticks: _Numbers = ()
    every: Annotated[int, pydantic.Field(ge=1)] | None = None
    """All ticks whose number this divides."""

    @pydantic.model_validator(mode="after")
    def _hits(self) -> "Delay":
        if not self.ticks and self.every is None:
            raise ValueError("give ticks=... (their numbers), or every=...")
        return self


class Reorder(_Fault):
    """The answer to a tick comes after the one that follows it."""

    kind: Literal["reorder"] = "reorder"
    ticks: Annotated[_Numbers, pydantic.Field(min_length=1)]
    within_ms: Annotated[float, pydantic.Field(gt=0, le=60_000)] = 50.0
    """If no other answer follows within this time, it comes by itself."""


class Stop(_Fault):
    """From a tick on the board does nothing, for good or for some time: what comes meanwhile is lost."""

    kind: Literal["stop"] = "stop"
    tick: _Tick
    for_ms: Annotated[float, pydantic.Field(gt=0)] | None = None


class Reset(_Fault):
    """The board resets before a tick, and comes up with its image."""

    kind: Literal["reset"] = "reset"
    tick: _Tick


class Memory(_Fault):
    """One bit of a register is another before a tick: what no checksum sees."""

    kind: Literal["memory"] = "memory"
    tick: _Tick
    register_name: Annotated[str, pydantic.Field(alias="register")] = "weights"
    index: Annotated[int, pydantic.Field(ge=0)] = 0
    """Of the number within its register, in C order."""
    bit: Annotated[int, pydantic.Field(ge=0)]

    @pydantic.model_validator(mode="after")
    def _lies_somewhere(self) -> "Memory":
        try:
            where = register(self.register_name)
        except FixedPointError as error:
            raise ValueError(str(error)) from None
        if self.index >= where.size:
            raise ValueError(f"{where.name} has {where.size} numbers, expected index below that, got {self.index}")
        if self.bit >= where.bits:
            raise ValueError(f"{where.name} has {where.bits} bits, expected bit below that, got {self.bit}")
        return self

    @property
    def address(self) -> int:
        """Of the word that changes."""
        return register(self.register_name).address + self.index


Fault = Annotated[Flip | Lose | Delay | Reorder | Stop | Reset | Memory, pydantic.Field(discriminator="kind")]
FAULTS: pydantic.TypeAdapter[tuple[Fault, ...]] = pydantic.TypeAdapter(tuple[Fault, ...])
"""Checks and writes a number of faults."""

KINDS = ("flip", "lose", "delay", "reorder", "stop", "reset", "memory")


class Injection(NamedTuple):
    """A fault that happened.

    Attributes
    ----------
    kind : str
        As of the fault.
    tick : int
        The board's next tick when it happened.
    direction : str
        Of a byte; empty for what befell the board.
    byte : int
        Number of the byte in its direction; -1 for what befell the board.
    """

    kind: str
    tick: int
    direction: str = ""
    byte: int = -1


def parse_fault(text: str) -> Fault:
    """Return the fault that a word on the command line stands for.

    Parameters
    ----------
    text : str
        `KIND:KEY=VALUE,...`; several numbers are joined by +.

    Raises
    ------
    ConfigError
        If there is no such fault, or it lacks something; says what is expected.

    Examples
    --------
    >>> parse_fault("stop:tick=500,for_ms=100")
    Stop(kind='stop', tick=500, for_ms=100.0)
    >>> parse_fault("lose:bytes=100+101,direction=to_host").bytes
    (100, 101)
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"fault {text!r}: expected {', '.join(KINDS)} before the colon, got {kind!r}")
    values: dict[str, Any] = {"kind": kind}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"fault {text!r}: expected KEY=VALUE after the colon, got {part!r}")
        values[key.strip()] = value.split("+") if key.strip() in ("bytes", "ticks") else value.strip()
    try:
        return FAULTS.validate_python([values])[0]
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][2:])
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"fault {text!r}: {where + ': ' if where else ''}{said}") from None


class LineFaults:
    """What befalls the bytes of one direction.

    Parameters
    ----------
    faults : sequence of Fault
        Of any kind; those of the line in this direction count.
    direction : {"to_board", "to_host"}
        Which.
    seed : int
        Decides which bytes and bits a rate hits.
    """

    def __init__(self, faults: Sequence[Fault], direction: Direction, seed: int) -> None:
        self._direction = direction
        self._n_bytes = 0
        self._hits: list[list[Any]] = []  # next byte, those after it, and what is done to it
        for k, fault in enumerate(faults):
            if isinstance(fault, Flip | Lose) and fault.direction in (direction, "both"):
                rng = random.Random(f"{seed} {k} {direction}")  # noqa: S311
                numbers = _numbers(fault, rng)
                self._hits.append([next(numbers), numbers, fault.kind, rng])

    @property
    def n_whole(self) -> float:
        """How many bytes come over before something befalls one."""
        return min((hit[0] for hit in self._hits), default=math.inf) - self._n_bytes

    def skip(self, n: int) -> None:
        """Count bytes that were carried past this, at most `n_whole`."""
        self._n_bytes += n

    def carry(self, data: bytes, tick: int, report: Callable[[Injection], None]) -> bytes:
        """Return what comes over of some bytes; whatever befell them is reported."""
        start, end = self._n_bytes, self._n_bytes + len(data)
        self._n_bytes = end
        if not self._hits:
            return data
        bytes_: list[int | None] = list(data)
        for hit in self._hits:
            while hit[0] < end:
                number, numbers, kind, rng = hit
                at = number - start
                value = bytes_[at]
                if value is not None:
                    bytes_[at] = None if kind == "lose" else value ^ (1 << rng.randrange(8))
                    report(Injection(kind, tick, self._direction, number))
                hit[0] = next(numbers)
        return bytes(value for value in bytes_ if value is not None)


def _numbers(fault: Flip | Lose, rng: random.Random) -> Iterator[float]:
    """Numbers of the bytes that a fault hits, rising; then infinity."""
    if fault.rate:
        number, listed = -1, sorted(set(fault.bytes))
        while True:
            # the gap to the next hit of independent ones, drawn at once
            number += 1 + int(math.log(1.0 - rng.random()) / math.log1p(-fault.rate))
            while listed and listed[0] <= number:
                first = listed.pop(0)
                if first != number:
                    yield first
            yield number
    yield from sorted(set(fault.bytes))
    while True:
        yield math.inf
