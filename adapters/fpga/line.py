"""A serial line to a board: bytes out, bytes in, as soon as they are there.

Written for the round trip: on POSIX it reads and writes the file descriptor itself, since pyserial's own read waits for
a count of bytes. Elsewhere pyserial does it.
"""

import contextlib
import errno
import importlib
import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError, MissingExtraError

log = logging.getLogger(__name__)

_AT_ONCE = 65536
_UDEV = 'ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"'
_WRITE_S = 1.0


class Line:
    """An open serial line.

    Parameters
    ----------
    path : str
        Device file, or what else pyserial opens.
    baud : int
        Bits per second.

    Raises
    ------
    AdapterError
        If it cannot be opened.

    Attributes
    ----------
    latency_timer_ms : int or None
        How long the USB adapter holds back bytes that do not fill a packet; None where there is none to know of.
    """

    def __init__(self, path: str, baud: int) -> None:
        self.path = path
        self._port = _open_port(path, baud)
        self._read: Callable[[float], bytes] = self._read_port
        self._fd = -1
        if os.name == "posix":
            self._fd = int(self._port.fileno())
            self._read = self._read_fd
        self.latency_timer_ms = _lower_latency(self._port, path)

    def fileno(self) -> int:
        """Return what to wait on for bytes; -1 where there is no such thing."""
        return self._fd

    def write(self, data: bytes) -> None:
        """Write all of it; what the driver does not take at once is waited for, a second at most.

        Raises
        ------
        AdapterLostError
            If the line is gone.
        AdapterTimeoutError
            If the driver takes no more.
        """
        try:
            if self._fd < 0:
                self._port.write(data)
                return
            n = os.write(self._fd, data)
            if n != len(data):
                self._write_rest(data[n:])
        except BlockingIOError:
            self._write_rest(data)
        except OSError as error:
            raise self._gone(error) from error

    def read(self, timeout_s: float) -> bytes:
        """Return what has arrived; wait for the first byte at most so long.

        Raises
        ------
        AdapterLostError
            If the line is gone.
        """
        try:
            return self._read(timeout_s)
        except OSError as error:
            raise self._gone(error) from error

    def drain(self, quiet_s: float, at_most_s: float) -> int:
        """Throw away what arrives until it has been quiet for so long; return how many bytes that were."""
        end, n = time.monotonic() + at_most_s, 0
        while time.monotonic() < end and (data := self.read(quiet_s)):
            n += len(data)
        return n

    def close(self) -> None:
        """Let go of the line; never raises."""
        try:
            self._port.close()
        except Exception as error:
            log.debug("closing %s: %s", self.path, error)

    def _write_rest(self, data: bytes) -> None:
        end = time.monotonic() + _WRITE_S
        while data:
            select.select((), (self._fd,), (), 0.02)
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._gone(error) from error
            if data and time.monotonic() > end:
                raise AdapterTimeoutError(f"{self.path} takes no more bytes; check its cable, or raise its baud rate")

    def _read_fd(self, timeout_s: float) -> bytes:
        # select and not poll, which macOS does not have for terminals
        if not select.select((self._fd,), (), (), max(0.0, timeout_s))[0]:
            return b""
        data = os.read(self._fd, _AT_ONCE)
        if not data:  # a line that hung up is ready, and has nothing
            raise OSError(errno.EIO, "hung up")
        return data

    def _read_port(self, timeout_s: float) -> bytes:
        waiting = self._port.in_waiting
        if not waiting:
            self._port.timeout = timeout_s
            first = bytes(self._port.read(1))
            return first + bytes(self._port.read(self._port.in_waiting)) if first else b""
        return bytes(self._port.read(waiting))

    def _gone(self, error: Exception) -> AdapterLostError:
        return AdapterLostError(f"{self.path} is gone ({error}); check its cable")


def _open_port(path: str, baud: int) -> Any:
    try:
        serial = importlib.import_module("serial")
    except ImportError as error:
        raise MissingExtraError(
            f"pyserial, which comes with neuromod-bridge, cannot be imported ({error}); install it again: "
            "pip install pyserial"
        ) from error
    try:
        return serial.Serial(path, baudrate=baud, timeout=0, write_timeout=_WRITE_S, exclusive=True)
    except (OSError, ValueError) as error:  # pyserial's own error is an OSError
        code = getattr(error, "errno", None)
        if code == errno.ENOENT:
            raise AdapterError(
                f"there is no {path}: check that the board is plugged in, and the name of its port"
            ) from error
        word = "is used by another program" if code == errno.EAGAIN else f"({error})"
        raise AdapterError(
            f"{path} cannot be opened {word}; check its name, that you may use it (group dialout), and that it has "
            f"{baud} baud"
        ) from error


def _lower_latency(port: Any, path: str) -> int | None:
    """Ask the driver not to hold bytes back; return the latency timer of a USB adapter in ms, where it has one."""
    # a pty, or a driver without, refuses; what counts is the timer itself
    with contextlib.suppress(AttributeError, OSError, ValueError, NotImplementedError):
        port.set_low_latency_mode(True)
    timer = Path("/sys/class/tty") / Path(os.path.realpath(path)).name / "device" / "latency_timer"
    try:
        held_ms = int(timer.read_text())
    except (OSError, ValueError):
        return None
    if held_ms <= 1:
        return held_ms
    try:
        timer.write_text("1")
        return int(timer.read_text())
    except (OSError, ValueError):
        log.warning(
            "%s holds bytes back for up to %d ms, and %s may not be written by you; as root write 1 to it, or add "
            "the udev rule %s",
            *(path, held_ms, timer, _UDEV),
        )
        return held_ms
