"""Checkpoints: the whole state of a loop in a file, written between two ticks and read back between two ticks."""

import os
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.assembly import Assembly
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import LAYOUT_VERSION

_FORMAT = "neuromod-checkpoint"
_VERSION = 1


def save(path: Path, assembly: Assembly, snapshot: NDArray[np.uint8], tick: int) -> None:
    """Write what the loop copied; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
        Where to.
    assembly : Assembly
        The parts that were copied.
    snapshot : ndarray of uint8
        Their bytes, one after the other.
    tick : int
        The tick that comes next.

    Raises
    ------
    ConfigError
        Where there is no such folder, or a file of another kind is in the way.
    OSError
        Where the file cannot be written.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"checkpoint: there is no folder {path.parent}; make it, or name another")
    if path.exists() and not _is_checkpoint(path):
        raise ConfigError(f"checkpoint: {path} is no checkpoint and is not overwritten; give another name")
    data = snapshot.tobytes()
    body = {
        "format": _FORMAT,
        "version": _VERSION,
        "tick": tick,
        "built_from": assembly.built_from,
        "parts": _description(assembly),
        "layout": LAYOUT_VERSION,  # a field of the network may change its meaning and not its place
        "crc32": zlib.crc32(data),
        "data": data,
    }
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(msgpack.packb(body))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: Path, assembly: Assembly) -> NDArray[np.uint8]:
    """Read a checkpoint of a loop like this one; return the bytes of its parts.

    Raises
    ------
    ConfigError
        Where the file is missing, damaged, of another version, or of a loop that was built otherwise.
    """
    try:
        body = msgpack.unpackb(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: {error.strerror}; name a file that 'neuromod checkpoint' wrote"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a checkpoint, or it is damaged ({error}); take another one") from None
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of neuromod")
    if body.get("version") != _VERSION:
        raise ConfigError(
            f"{path} is a checkpoint of version {body.get('version')}, this program reads version {_VERSION}"
        )
    data = body.get("data")
    if not isinstance(data, bytes) or zlib.crc32(data) != body.get("crc32"):
        raise ConfigError(f"{path} is damaged: its checksum does not fit its data; take another one")
    same = {"built_from": assembly.built_from, "parts": _description(assembly), "layout": LAYOUT_VERSION}
    if any(body.get(key) != value for key, value in same.items()):
        raise ConfigError(
            f"{path} is of a loop that was built otherwise; restore it into a session with the same stream, front_end, "
            "encoder, network and timing, and the same version of the package"
        )
    expected = sum(part.nbytes for part in assembly.parts())
    if len(data) != expected:
        raise ConfigError(f"{path} is damaged: it holds {len(data)} bytes of state, not {expected}; take another one")
    return np.frombuffer(data, np.uint8)


def _is_checkpoint(path: Path) -> bool:
    """Say whether a file begins as a checkpoint does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _FORMAT.encode() in file.read(64)


def _description(assembly: Assembly) -> list[list[Any]]:
    """Name, type and shape of every part, by which a foreign checkpoint is told."""
    named = {
        "pipeline": assembly.pipeline._asdict(),
        "front_end": assembly.front_end.state._asdict(),
        "encoder": assembly.encoder.state._asdict(),
        "network": {"state": assembly.network.state},
        "decoder": {"state": assembly.decoder},
        "stimulation": {"gate": assembly.stimulation.gate},
    }
    return [
        [f"{part}.{name}", str(array.dtype), list(array.shape)]
        for part, arrays in named.items()
        for name, array in arrays.items()
    ]
