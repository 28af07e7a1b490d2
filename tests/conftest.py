"""What every test stands on: Lab Streaming Layer kept to this machine, and the recordings beside the project.

liblsl reads its configuration once, when it is loaded: it has to be in place before anything imports pylsl. Child
processes inherit it through the environment.
"""

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from neuromod.engine.compiled import JIT_ENABLED

# The same examples each time: a change is judged by what it changes. `HYPOTHESIS_PROFILE=search` draws new ones.
settings.register_profile("steady", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "recordings"

# A private session on loopback, so that no stream of the laboratory is seen here and none of ours there. Searches and
# clock probes, tuned for a network, are quick on loopback; with them a connection takes 0.2 s instead of 1.2 s.
_LSL_API_CFG = """\
[lab]
SessionID = neuromod-test-{session}
[ports]
IPv6 = disable
[multicast]
ResolveScope = machine
[tuning]
MulticastMinRTT = 0.1
MulticastMaxRTT = 0.5
UnicastMinRTT = 0.1
UnicastMaxRTT = 0.5
ContinuousResolveInterval = 0.1
TimeProbeInterval = 0.01
TimeProbeMaxRTT = 0.03
[log]
level = -3
"""

_folder = tempfile.TemporaryDirectory(prefix="neuromod-lsl-")
_cfg = Path(_folder.name) / "lsl_api.cfg"
_cfg.write_text(_LSL_API_CFG.format(session=uuid.uuid4().hex))
os.environ["LSLAPICFG"] = str(_cfg)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Folder of the real recordings beside the project; skips where it is absent."""
    if not RECORDINGS.is_dir():
        pytest.skip("needs ../shared/recordings beside the project, which is absent")
    return RECORDINGS


@pytest.fixture(autouse=True, scope="session")
def _patience_with_daemons_of_this_process() -> None:
    """Give a daemon time to end its threads, past which it ends its process. How soon it is, is seen of processes."""
    if not JIT_ENABLED:
        return
    from neuromod.bridge import service  # which loads liblsl

    service._LONGEST_STOP_S = service._LONGEST_JOIN_S = 20.0


@pytest.fixture(autouse=True)
def _no_log_left_behind() -> Iterator[None]:
    """Take away what a command that ran within the test set up: it logs to a stderr that is closed by now."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of other classes
            root.removeHandler(handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot be interpreted: the real-time loop calls C functions, and is compiled code or nothing."""
    if JIT_ENABLED:
        return
    for item in items:
        if item.get_closest_marker("compiled_loop"):
            item.add_marker(pytest.mark.skip(reason="NUMBA_DISABLE_JIT is set: no real-time loop"))
