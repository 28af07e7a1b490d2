"""The trains that another session delivered, for the mode that repeats them at the same ticks."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.session import Session
from neuromod.bridge.stimulation import YOKED_TRAIN
from neuromod.engine.errors import ConfigError


def yoked_trains(folder: Path) -> NDArray[Any]:
    """Read the delivered trains of a recorded session, in the order of their ticks.

    Raises
    ------
    ConfigError
        The session delivered none.
    """
    decisions = Session(folder).records("decisions")
    sent = decisions[decisions["delivered"] == 1]
    if not len(sent):
        raise ConfigError(f"stimulation.yoked_session: {folder} delivered no train; name a session that did")
    trains = np.zeros(len(sent), YOKED_TRAIN)
    for name in YOKED_TRAIN.names or ():
        trains[name] = sent[name]
    return trains[np.argsort(trains["tick"], kind="stable")]
