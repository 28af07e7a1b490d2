"""What the signals of the operating system do to a daemon: end it in order, or stop stimulation and nothing else."""

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those that ask a process to end."""


class Interrupted(BaseException):
    """A signal came while the daemon was looking for its source."""


def halt_on_signal(halt: Callable[[], None]) -> None:
    """Have SIGUSR1 stop stimulation, and nothing else; called in the main thread."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: halt())


def unless_interrupted(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`sys.unraisablehook` that says nothing of an Interrupted that was dropped, and leaves the rest to `hook`."""

    def tell_what_is_dropped(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Interrupted):
            hook(dropped)

    return tell_what_is_dropped


def stop_on_signals(stop: threading.Event, *, interrupt: Callable[[], bool] = lambda: False) -> None:
    """Have SIGINT, SIGTERM and SIGHUP set an event; the first of them raises Interrupted while `interrupt()` is true.

    The event is set by a thread. A handler runs in the main thread between any two instructions, also while that holds
    the lock of the very event that it waits on.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    has_interrupted = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal has_interrupted
        if interrupt() and not has_interrupted:
            has_interrupted = True
            raise Interrupted

    def watch() -> None:
        while numbers := reader.recv(64):
            if not set(numbers).isdisjoint(STOP_SIGNALS):  # every signal with a handler is written there
                stop.set()

    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="neuromod-signals", daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
