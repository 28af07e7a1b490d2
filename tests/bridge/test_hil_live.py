"""Hardware in the loop at a pace: the daemon as in a session, the device as its peer; and a second daemon as device."""

from pathlib import Path

import numpy as np
import pytest
from harness import running_daemon
from hil_devices import ChangedTwin, flip, of, recording, rows

from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.hil import Options, run
from neuromod.bridge.hil_config import Criteria
from neuromod.bridge.hil_device import make_device
from neuromod.bridge.replay import play
from neuromod.engine.errors import AdapterError

pytestmark = pytest.mark.compiled_loop

LAX = Criteria(round_trip_p50_us=1e6, round_trip_p99_us=2e6, deadline_us=5e6)
"""Of times a machine that tests may be busy with anything else."""
