"""Memory images of a fixed-point network: texts that `$readmemh` loads, and back to the same bits.

`registers.mem` is the whole network as our hardware description loads it. Three smaller images hold what boards of the
SiliconBridge kind load: thresholds, weights and decays, all Q8.8. `manifest.py` tells what lies in
which.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ImageError
from neuromod.engine.fixed_registers import FIXED_BLOCK, GUARD_BITS, REGISTERS, Register
from neuromod.engine.layout import COINCIDENCE
from neuromod.engine.layout_types import State

N_WORDS = 0x300
"""Words of 32 bits that `registers.mem` holds: addresses 000 to 2FF."""
REGISTER_DIGITS, PARAMETER_DIGITS = 8, 4
"""Hexadecimal digits of a word: of 32 bits, of Q8.8."""
OUTPUT_SHAPE = (16, 3)
"""Of the weights of an output layer, which published sets have and our network has not: neurons, outputs."""

_PIECE = re.compile(r"//[^\n]*|/\*.*?\*/|(?P<open>/\*)|(?P<word>(?:(?!//|/\*)\S)+)", re.DOTALL)
_DIGITS = re.compile(r"[0-9A-Fa-f][0-9A-Fa-f_]*")
_HALF_GUARD = 1 << (GUARD_BITS - 1)
_TOP_S16 = 2**15 - 1


class Words(NamedTuple):
    """What an image holds.

    Attributes
    ----------
    values : ndarray of int64
        Unsigned, as the digits say.
    lines : ndarray of int64
        The line, from 1, on which each stands.
    """

    values: NDArray[np.int64]
    lines: NDArray[np.int64]


def write_words(values: Sequence[int] | NDArray[np.int64], digits: int) -> str:
    """Return an image of one word a line; negative numbers in two's complement."""
    mask = (1 << 4 * digits) - 1
    return "".join(f"{int(value) & mask:0{digits}X}\n" for value in np.asarray(values).reshape(-1))


def read_words(text: str, where: str, *, n_words: int, digits: int) -> Words:
    """Read an image as `$readmemh` does: comments, `@address`, `_` between digits; but nothing missing, and no x or z.

    Parameters
    ----------
    text : str
        The image.
    where : str
        What to call it in messages.
    n_words : int
        How many words it must hold.
    digits : int
        At most so many hexadecimal digits a word.

    Raises
    ------
    ImageError
        If it is none, by line; or holds another number of words.
    """
    values, lines = np.zeros(n_words, np.int64), np.zeros(n_words, np.int64)
    address, line, counted_to, n_read = 0, 1, 0, 0
    for piece in _PIECE.finditer(text):
        line += text.count("\n", counted_to, piece.start())
        counted_to = piece.start()
        if piece["open"]:
            raise ImageError(f"{where}, line {line}: a comment begins with /* and never ends")
        word = piece["word"]
        if word is None:
            continue
        if word.startswith("@"):
            if not _DIGITS.fullmatch(word[1:]):
                raise ImageError(f"{where}, line {line}: expected @ and a hexadecimal address, got {word[:20]!r}")
            address = int(word[1:].replace("_", ""), 16)
            continue
        if not _DIGITS.fullmatch(word) or len(word.replace("_", "")) > digits:
            raise ImageError(f"{where}, line {line}: expected up to {digits} hexadecimal digits, got {word[:20]!r}")
        if address >= n_words:
            raise ImageError(
                f"{where}, line {line}: a word at address {address:X}; expected {n_words} words, from 0 on"
            )
        if lines[address]:
            raise ImageError(f"{where}, line {line}: address {address:X} was set before, on line {lines[address]}")
        values[address], lines[address] = int(word.replace("_", ""), 16), line
        address += 1
        n_read += 1
    if n_read != n_words:
        missing = int(np.flatnonzero(lines == 0)[0])
        raise ImageError(f"{where}: expected {n_words} words, got {n_read}; the first that is missing is {missing:X}")
    return Words(values, lines)


def signed(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Take words for two's complement of so many bits."""
    half = 1 << (bits - 1)
    return np.asarray((values + half) % (1 << bits) - half)


def to_words(state: State) -> NDArray[np.int64]:
    """A network's registers as the words of its address space, shape (768,), 0 to 2**32 - 1; where nothing lies, 0."""
    words = np.zeros(N_WORDS, np.int64)
    for each in REGISTERS:
        words[each.address : each.address + each.size] = state[0][each.name].reshape(-1)
    return words & 0xFFFF_FFFF


def from_words(words: NDArray[np.int64]) -> State:
    """A network's registers from the words of its address space.

    Parameters
    ----------
    words : ndarray of int64, shape (768,)
        As from `to_words`.

    Returns
    -------
    State
        One record of `FIXED_BLOCK`.

    Raises
    ------
    ImageError
        If a word does not fit its register, or is not 0 where nothing lies.
    """
    return _from_words(words, lambda address: f"word {address:03X}")


def write_registers(state: State) -> str:
    """`registers.mem`: every word of the address space, 8 digits, under comments that name the registers."""
    words = to_words(state)
    starts = {each.address: _title(each) for each in REGISTERS}
    ends = {each.address + each.size for each in REGISTERS}
    lines = []
    for address, word in enumerate(words.tolist()):
        if title := starts.get(address):
            lines.append(f"// {address:03X} {title}")
        elif address in ends:
            lines.append(f"// {address:03X} nothing")
        lines.append(f"{word:0{REGISTER_DIGITS}X}")
    return "\n".join(lines) + "\n"


def read_registers(text: str, where: str = "registers.mem") -> State:
    """The network that `write_registers` wrote, bit for bit.

    Raises
    ------
    ImageError
        As `read_words`, and if a word does not fit its register.
    """
    words = read_words(text, where, n_words=N_WORDS, digits=REGISTER_DIGITS)
    return _from_words(words.values, lambda address: f"{where}, line {words.lines[address]}")


def thresholds(state: State) -> NDArray[np.int64]:
    """Words of `parameters.mem`, shape (16,), Q8.8 mV.

    Boards that load it have a neuron where we have the coincidence detector: where nobody gave it a threshold, it is
    the greatest there is, so that it does not fire.
    """
    words = np.array(state[0]["threshold"])
    words[COINCIDENCE] = words[COINCIDENCE] or _TOP_S16
    return words


def weights(state: State) -> NDArray[np.int64]:
    """Words of `parameters_weights.mem`, shape (16, 16), Q8.8 mV, as membranes see them; row = target."""
    return np.asarray(np.minimum((state[0]["weights"].T + _HALF_GUARD) >> GUARD_BITS, _TOP_S16))


def decays(state: State) -> NDArray[np.int64]:
    """Words of `parameters_decay.mem`, shape (16,), Q8.8: 1 - rise, the part that a tick leaves of a membrane."""
    return np.asarray(((1 << 24) - state[0]["rise"] + _HALF_GUARD) >> GUARD_BITS)


def _title(each: Register) -> str:
    shape = "".join(f"[{n}]" for n in each.shape)
    return f"{each.name}{shape} {each.format}" + (f", {each.unit}" if each.unit else "")


def _from_words(words: NDArray[np.int64], place: Callable[[int], str]) -> State:
    state: State = np.zeros(1, dtype=FIXED_BLOCK)
    free = np.ones(N_WORDS, np.bool_)
    for each in REGISTERS:
        span = slice(each.address, each.address + each.size)
        free[span] = False
        values = signed(words[span], 32) if each.signed else words[span]
        for k in np.flatnonzero((values < each.lowest) | (values > each.highest)):
            raise ImageError(
                f"{place(each.address + int(k))}: {each.name}{_index(each, int(k))} is {int(words[span][k]):08X}, "
                f"beyond {each.format}: expected {each.lowest} to {each.highest}, got {values[k]}"
            )
        state[0][each.name] = values.reshape(each.shape)
    for address in np.flatnonzero(free & (words != 0)):
        raise ImageError(
            f"{place(int(address))}: nothing lies at address {address:03X}, expected 0, got {int(words[address]):08X}"
        )
    return state


def _index(each: Register, k: int) -> str:
    return "".join(f"[{i}]" for i in np.unravel_index(k, each.shape)) if each.shape else ""
