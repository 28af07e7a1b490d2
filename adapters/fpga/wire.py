"""The frames between a host and a board, as `PROTOCOL.md` says, for both sides of the line.

`pack_...` returns what goes on the wire, zero byte and all. `Parser` finds whole frames in what arrives, and
`unpack_...` reads their bodies.
"""

import enum
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ProtocolError
from neuromod.engine.layout import N_CHANNELS

VERSION = 1
MAX_FRAME = 253
"""Bytes of a frame before COBS; so no run of it is long enough for the code 0xFF."""
MAX_WIRE = MAX_FRAME + 2
"""Bytes of the longest frame on the wire: one more by COBS, and the zero."""
OVERHEAD = 8
MAX_WORDS = 56
MAX_UNDER_WAY = 512
"""Bytes that may be under way to the board."""
HISTORY = 4
"""Ticks whose spikes an answer tells: its own, and those before."""

MAGIC = 0x4E4D4F44
MAGIC_ADDRESS, VERSION_ADDRESS, CLOCK_ADDRESS, BOOTS_ADDRESS = 0x3F0, 0x3F1, 0x3F2, 0x3F3
DAMAGED_ADDRESS, REFUSED_ADDRESS, OVERRUN_ADDRESS = 0x3F4, 0x3F5, 0x3F6

_HEAD = struct.Struct("<BBH")
_CRC = struct.Struct("<I")
_TICK = struct.Struct("<IB")
_TICK_DONE = struct.Struct("<IH4H")
_ADDRESS = struct.Struct("<HB")
_REFUSED = struct.Struct("<BI")
_STIMULI_BYTES = 2 * N_CHANNELS
_V_BYTES = 3 * N_CHANNELS
_N_MODULATION = 5
_HAS_MODULATION = 1


class Kind(enum.IntEnum):
    """Kinds of frames."""

    TICK = 0x02
    WRITE = 0x03
    READ = 0x04
    TICK_DONE = 0x82
    WRITTEN = 0x83
    WORDS = 0x84
    REFUSED = 0xFF


class Refusal(enum.IntEnum):
    """Why a board does not do what it is asked for."""

    DAMAGED = 1
    KIND = 2
    PAST = 3
    FUTURE = 4
    ADDRESS = 5


class Frame(NamedTuple):
    """A frame that arrived whole; its kind and version may be any."""

    version: int
    kind: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True, eq=False)
class TickDone:
    """A board's answer to a tick.

    Parameters
    ----------
    tick : int
        The one that was run.
    clocks : int
        Clock cycles that it took.
    spikes : tuple of int
        Of this tick and the three before it, newest first; bit i = channel i.
    v : ndarray of int32, shape (16,)
        Membranes, Q8.16.
    """

    tick: int
    clocks: int
    spikes: tuple[int, ...]
    v: NDArray[np.int32]


def encode(frame: bytes) -> bytes:
    """Return a frame of at most 253 bytes in COBS, without the zero that ends it.

    Examples
    --------
    >>> encode(bytes([1, 0, 0, 2])).hex(" ")
    '02 01 01 02 02'
    """
    return b"".join([b"%c%b" % (len(run) + 1, run) for run in frame.split(b"\0")])


def decode(data: bytes) -> bytes | None:
    """Return what COBS code stands for; None where it is wrong."""
    out, at, size = bytearray(data), 0, len(data)
    while at < size:
        code = data[at]
        if code == 0 or code == 0xFF:  # 0xFF begins a run that no frame is long enough for
            return None
        out[at] = 0  # every code but the first stands where a zero was
        at += code
    return bytes(out[1:]) if at == size and size else None


def pack(kind: int, sequence: int, body: bytes = b"", version: int = VERSION) -> bytes:
    """Return a frame as it goes on the wire.

    Raises
    ------
    ProtocolError
        If the body is longer than a frame holds.

    Examples
    --------
    >>> pack(Kind.READ, 7, bytes([0x40, 0x00, 2])).hex(" ")  # two thresholds
    '04 01 04 07 02 40 06 02 20 a6 3e 8c 00'
    """
    if len(body) > MAX_FRAME - OVERHEAD:
        raise ProtocolError(f"a frame carries at most {MAX_FRAME - OVERHEAD} bytes, not {len(body)}")
    frame = _HEAD.pack(version, kind, sequence & 0xFFFF) + body
    return encode(frame + _CRC.pack(zlib.crc32(frame))) + b"\0"


class Parser:
    """Finds frames in what arrives, in pieces of any length.

    Attributes
    ----------
    dropped : int
        Bytes that belonged to no good frame.
    damaged : int
        Frames dropped: their COBS code or CRC is wrong, or they are too short or too long.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._too_long = False
        self.dropped = 0
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; return the frames that they complete."""
        self._buffer += data
        frames = []
        while (end := self._buffer.find(0)) >= 0:
            raw = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            frame = None if self._too_long else _whole(raw)
            if frame is not None:
                frames.append(frame)
            elif raw or self._too_long:  # a zero after a zero is nothing
                self.drop(raw)
            self._too_long = False
        if len(self._buffer) >= MAX_WIRE:  # the zero is missing: nothing up to the next one can be a frame
            self._too_long = True
            self.dropped += len(self._buffer)
            self._buffer.clear()
        return frames

    def drop(self, raw: bytes) -> None:
        """Count a frame that is none; what stood between two zeros, or the end of it where it was too long."""
        self.damaged += 1
        self.dropped += len(raw) + 1

    def clear(self) -> None:
        """Forget what has begun to arrive."""
        self._buffer.clear()
        self._too_long = False


def _whole(raw: bytes) -> Frame | None:
    frame = decode(raw)
    if frame is None or not OVERHEAD <= len(frame) <= MAX_FRAME:
        return None
    inside = frame[:-4]
    if zlib.crc32(inside) != _CRC.unpack_from(frame, len(inside))[0]:
        return None
    version, kind, sequence = _HEAD.unpack_from(frame)
    return Frame(version, kind, sequence, inside[_HEAD.size :])


# -- ticks


def pack_tick(
    sequence: int, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None
) -> bytes:
    """Return the frame that has a tick run.

    Parameters
    ----------
    sequence : int
        Of the frame, modulo 65,536.
    tick : int
        Its number, modulo 2^32.
    stimuli : ndarray of int16, shape (16,)
        Q8.8.
    modulation : ndarray of int64, shape (5,), optional
        Words of input gain, recurrent gain, threshold gain, inhibition and learning factor, set before the tick.

    Raises
    ------
    ProtocolError
        If there are not sixteen stimuli, or not five words.
    """
    body = stimuli.astype("<i2").tobytes()
    if len(body) != _STIMULI_BYTES:
        raise ProtocolError(f"expected {N_CHANNELS} stimuli, got {stimuli.shape}")
    if modulation is not None:
        if modulation.size != _N_MODULATION:
            raise ProtocolError(f"expected {_N_MODULATION} words of modulation, got {modulation.shape}")
        body += modulation.astype("<u4").tobytes()
    head = _TICK.pack(tick & 0xFFFF_FFFF, 0 if modulation is None else _HAS_MODULATION)
    return pack(Kind.TICK, sequence, head + body)


def unpack_tick(body: bytes) -> tuple[int, NDArray[np.int16], NDArray[np.int64] | None]:
    """Return number, stimuli and modulation of a tick; the learning factor comes back signed.

    Raises
    ------
    ProtocolError
        If the length is wrong.
    """
    tick, flags = _taken(_TICK, body)
    size = _TICK.size + _STIMULI_BYTES
    has_modulation = bool(flags & _HAS_MODULATION)
    _expect(body, size + 4 * _N_MODULATION * has_modulation)
    stimuli = np.frombuffer(body, "<i2", N_CHANNELS, _TICK.size).astype(np.int16)
    if not has_modulation:
        return tick, stimuli, None
    modulation = np.frombuffer(body, "<u4", _N_MODULATION, size).astype(np.int64)
    modulation[4] = modulation[4:].astype(np.int32)[0]
    return tick, stimuli, modulation


def pack_tick_done(sequence: int, done: TickDone) -> bytes:
    """Return the frame of a board's answer to a tick."""
    v = done.v.astype("<i4").view(np.uint8).reshape(N_CHANNELS, 4)[:, :3].tobytes()
    head = _TICK_DONE.pack(done.tick & 0xFFFF_FFFF, min(done.clocks, 0xFFFF), *done.spikes)
    return pack(Kind.TICK_DONE, sequence, head + v)


def unpack_tick_done(body: bytes) -> TickDone:
    """Return a board's answer to a tick.

    Raises
    ------
    ProtocolError
        If the length is wrong.
    """
    _expect(body, _TICK_DONE.size + _V_BYTES)
    tick, clocks, *spikes = _TICK_DONE.unpack_from(body)
    # words of 4 bytes every 3 bytes, of which the lowest byte is the neighbour's
    words: NDArray[np.int32] = np.ndarray((N_CHANNELS,), "<i4", body, _TICK_DONE.size - 1, (3,))
    return TickDone(tick, clocks, tuple(spikes), (words >> 8).astype(np.int32, copy=False))


# -- registers


def pack_write(sequence: int, address: int, words: Sequence[int] | NDArray[Any]) -> bytes:
    """Return the frame that writes words from an address on; negative ones as two's complement of 32 bits.

    Raises
    ------
    ProtocolError
        If there are none, or more than 56.
    """
    return _pack_words(Kind.WRITE, sequence, address, words)


def pack_words(sequence: int, address: int, words: Sequence[int] | NDArray[Any]) -> bytes:
    """Return the frame of the words that a board read."""
    return _pack_words(Kind.WORDS, sequence, address, words)


def _pack_words(kind: Kind, sequence: int, address: int, words: Sequence[int] | NDArray[Any]) -> bytes:
    values = np.asarray(words, dtype=np.int64)
    _check_n(len(values))
    return pack(kind, sequence, _ADDRESS.pack(address, len(values)) + (values & 0xFFFF_FFFF).astype("<u4").tobytes())


def unpack_words(body: bytes) -> tuple[int, NDArray[np.uint32]]:
    """Return address and words of a WRITE, or of the answer to a READ.

    Raises
    ------
    ProtocolError
        If the length is wrong.
    """
    address, n = _taken(_ADDRESS, body)
    _check_n(n)
    _expect(body, _ADDRESS.size + 4 * n)
    return address, np.frombuffer(body, "<u4", n, _ADDRESS.size).astype(np.uint32)


def pack_read(sequence: int, address: int, n: int) -> bytes:
    """Return the frame that asks for `n` words from an address on.

    Raises
    ------
    ProtocolError
        If `n` is not 1 to 56.
    """
    _check_n(n)
    return pack(Kind.READ, sequence, _ADDRESS.pack(address, n))


def pack_written(sequence: int, address: int, n: int) -> bytes:
    """Return the frame that says how many words were written where."""
    return pack(Kind.WRITTEN, sequence, _ADDRESS.pack(address, n))


def unpack_address(body: bytes) -> tuple[int, int]:
    """Return address and count of a READ, or of the answer to a WRITE.

    Raises
    ------
    ProtocolError
        If the length is wrong, or the count is not 1 to 56.
    """
    address, n = _taken(_ADDRESS, body)
    _expect(body, _ADDRESS.size)
    _check_n(n)
    return address, n


# -- refusals


def pack_refused(sequence: int, reason: int, tick: int) -> bytes:
    """Return the frame of a refusal; `tick` is the one that the board expects next."""
    return pack(Kind.REFUSED, sequence, _REFUSED.pack(reason, tick & 0xFFFF_FFFF))


def unpack_refused(body: bytes) -> tuple[int, int]:
    """Return reason, and the tick that the board expects next.

    Raises
    ------
    ProtocolError
        If the length is wrong.
    """
    reason, tick = _taken(_REFUSED, body)
    _expect(body, _REFUSED.size)
    return reason, tick


def _taken(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < layout.size:
        raise ProtocolError(f"expected at least {layout.size} bytes, got {len(body)}")
    return layout.unpack_from(body)


def _expect(body: bytes, size: int) -> None:
    if len(body) != size:
        raise ProtocolError(f"expected {size} bytes, got {len(body)}")


def _check_n(n: int) -> None:
    if not 1 <= n <= MAX_WORDS:
        raise ProtocolError(f"expected 1 to {MAX_WORDS} words, got {n}")
