"""The trains that another session delivered, for the mode that repeats them at the same ticks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.session import Session
from neuromod.bridge.stimulation import YOKED_TRAIN
from neuromod.engine.errors import ConfigError


def yoked_trains(folder: Path, electrodes: Sequence[str]) -> NDArray[Any]:
    """Read the delivered trains of a recorded session, in the order of their ticks.

    Parameters
    ----------
    folder : Path
        Of the recorded session.
    electrodes : sequence of str
        Names of this session's electrodes, in their order: a train goes to the electrode of the name that it was
        delivered to.

    Raises
    ------
    ConfigError
        The session delivered none, or on an electrode that this session does not have.
    """
    session = Session(folder)
    decisions = session.records("decisions")
    sent = decisions[decisions["delivered"] == 1]
    if not len(sent):
        raise ConfigError(f"stimulation.yoked_session: {folder} delivered no train; name a session that did")
    trains = np.zeros(len(sent), YOKED_TRAIN)
    for name in YOKED_TRAIN.names or ():
        trains[name] = sent[name]
    trains["electrode"] = _by_name(session, trains["electrode"], electrodes)
    return trains[np.argsort(trains["tick"], kind="stable")]


def _by_name(session: Session, numbers: NDArray[Any], electrodes: Sequence[str]) -> NDArray[np.int64]:
    """Return the numbers that electrodes of another session have in this one."""
    stimulation = session.metadata["config"].get("stimulation") or {}
    theirs = [str(electrode["name"]) for electrode in stimulation.get("electrodes", ())]
    here = {}
    for number in np.unique(numbers).tolist():
        name = theirs[number] if 0 <= number < len(theirs) else f"number {number}, which it does not name"
        if name not in electrodes:
            raise ConfigError(
                f"stimulation.yoked_session: {session.folder} delivered trains on the electrode {name}, and this "
                f"session has {', '.join(electrodes)}; give its electrode the same name, or name another session"
            )
        here[number] = electrodes.index(name)
    return np.array([here[number] for number in numbers.tolist()], np.int64)
