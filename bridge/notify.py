"""Tells a service manager how the daemon is, in the words of systemd's sd_notify; without one, does nothing."""

import contextlib
import logging
import math
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

_EXTEND_S, _EXTEND_EVERY_S = 30.0, 5.0


class Notifier:
    """A datagram for each thing to say; a manager that does not listen is no reason to fail.

    Parameters
    ----------
    address : str
        Path of its socket, `@NAME` for one in Linux's abstract namespace; empty for nobody.
    watchdog_s : float
        It wants to hear `alive` at least so often, in seconds; infinite where it does not.
    """

    def __init__(self, address: str = "", watchdog_s: float = math.inf) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address and not hasattr(socket, "AF_UNIX"):
            log.warning("NOTIFY_SOCKET is set, but this system has no such sockets: nobody is told how the daemon is")
        elif address and address[0] not in "/@":
            log.warning("NOTIFY_SOCKET is %r, which is no path and no @name: nobody is told how the daemon is", address)
        elif address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int | None = None) -> Self:
        """Make one of `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        meant = environment.get("WATCHDOG_PID", "")
        wanted = environment.get("WATCHDOG_USEC", "")
        is_for_us = not meant or meant == str(os.getpid() if pid is None else pid)
        watchdog_s = int(wanted) / 1e6 if wanted.isdecimal() and int(wanted) and is_for_us else math.inf
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s)

    @property
    def is_connected(self) -> bool:
        """Whether there is a manager to tell."""
        return self._socket is not None

    def send(self, **said: str) -> None:
        """Say some things at once, as `STATUS="..."`."""
        if self._socket is None:
            return
        text = "\n".join(f"{key}={' '.join(value.split())}" for key, value in said.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("the service manager could not be told %s: %s", text, error)

    def ready(self) -> None:
        """Say that the loop runs."""
        self.send(READY="1", STATUS="the loop runs")

    def alive(self) -> None:
        """Say that the loop goes round."""
        self.send(WATCHDOG="1")

    def status(self, text: str) -> None:
        """Say in a line how it is."""
        self.send(STATUS=text)

    def stopping(self) -> None:
        """Say that the daemon is about to end."""
        self.send(STOPPING="1", STATUS="stopping")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Ask for patience meanwhile: the first start of a version compiles the loop, which takes minutes."""
        done = threading.Event()

        def ask() -> None:
            while True:
                self.send(EXTEND_TIMEOUT_USEC=str(int(_EXTEND_S * 1e6)), STATUS="starting")
                if done.wait(_EXTEND_EVERY_S):
                    return

        thread = threading.Thread(target=ask, name="neuromod-starting", daemon=True)
        if self._socket is not None:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if self._socket is not None:
                thread.join()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
