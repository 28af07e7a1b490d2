"""Reads a file that somebody named, without waiting on what is no file and without reading more than can be meant."""

import os
import stat
from pathlib import Path

from neuromod.engine.errors import ConfigError


def read_regular_file(path: Path, largest: int) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    path : Path
        The file, or a link to it.
    largest : int
        Bytes. A larger file is refused, not read.

    Raises
    ------
    ConfigError
        It is a folder, a pipe, a device or a socket; or it is larger; or the name cannot be a file's.
    OSError
        It is not there, or cannot be read.
    """
    try:
        _check(path, path.stat(), largest)  # first: to open a device may already do something
        # a pipe may have taken the file's place since: to open it must not wait for whoever writes into it
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"{str(path)!r} cannot be read: {error}; name a file") from None
    with os.fdopen(handle, "rb") as file:
        _check(path, os.fstat(handle), largest)
        data = file.read(largest + 1)
    if len(data) > largest:  # it grew meanwhile
        raise _too_large(path, largest)
    return data


def _check(path: Path, found: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} cannot be read: it is no regular file but a folder, pipe or device; name a file")
    if found.st_size > largest:
        raise _too_large(path, largest)


def _too_large(path: Path, largest: int) -> ConfigError:
    return ConfigError(f"{path} is larger than {largest} bytes, which no such file is; name another")
