"""A process that has everything imported and compiled, and waits for the daemon beside it to crash."""

import logging
import sys
import time

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

    while not is_compiled():  # by the daemon, which is at it
        time.sleep(_LOOK_EVERY_S)
    warm_loop()
    log.info("a standby is ready")
    return sys.stdin.readline().strip()
