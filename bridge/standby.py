"""A process that has everything imported and compiled, and waits for the daemon beside it to crash."""

import logging
import sys
import threading

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


def wait_to_be_told() -> str:
    """Get ready to run a daemon, then wait for the supervisor.

    Returns
    -------
    str
        What it says of the last life, for `resume.from_supervisor`; empty where there is nothing left to do.
    """
    import neuromod.bridge.service  # noqa: F401 - this is what takes its time
    from neuromod.bridge.warm import is_compiled, warm_loop

    said: list[str] = []
    told = threading.Event()

    def listen() -> None:
        said.append(sys.stdin.readline().strip())
        told.set()

    threading.Thread(target=listen, name="neuromod-standby", daemon=True).start()
    # the daemon compiles; where it has died before it was done, nobody else will
    while not is_compiled() and not told.wait(_LOOK_EVERY_S):
        pass
    if told.is_set() and not said[0]:
        return ""
    warm_loop()
    log.info("a standby is ready")
    told.wait()
    return said[0]
