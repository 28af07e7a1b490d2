"""All mutable arrays of a part of the loop, as bytes and back, bit for bit."""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError

_HEADER = struct.Struct("<8s16sQ")


def identity(kind: str, *parts: object) -> bytes:
    """16 bytes that differ wherever a kind of state, or a part of what it was built from, differs."""
    return hashlib.sha256("\0".join([kind, *(repr(part) for part in parts)]).encode()).digest()[:16]


def pack(magic: bytes, built_from: bytes, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Header and the arrays' bytes, one after the other."""
    body = b"".join(array.tobytes() for array in arrays.values())
    return _HEADER.pack(magic, built_from, len(body)) + body


def unpack(data: bytes, magic: bytes, built_from: bytes, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy the bytes of `pack` into the arrays.

    Raises
    ------
    ConfigError
        The bytes are not such a snapshot, or one of a part that was built from something else. Nothing is changed.
    """
    what = magic.decode().strip("\0")
    size = sum(array.nbytes for array in arrays.values())
    if len(data) < _HEADER.size:
        raise ConfigError(f"this is no {what} snapshot: {len(data)} bytes, at least {_HEADER.size} expected")
    found_magic, found_from, found_size = _HEADER.unpack_from(data)
    if found_magic != magic.ljust(8, b"\0"):
        raise ConfigError(f"this is no {what} snapshot: it begins with {found_magic!r}, {magic!r} expected")
    if found_from != built_from:
        raise ConfigError(
            f"this {what} snapshot was taken with another configuration, channels or version; "
            "restore it into a session started with the same configuration"
        )
    if found_size != size or len(data) != _HEADER.size + size:
        raise ConfigError(f"this {what} snapshot holds {len(data) - _HEADER.size} bytes of state, {size} expected")
    offset = _HEADER.size
    for array in arrays.values():
        flat = np.frombuffer(data, dtype=array.dtype, count=array.size, offset=offset)
        array[...] = flat.reshape(array.shape)
        offset += array.nbytes
