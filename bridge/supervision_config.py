"""`[watchdog]` and `[checkpoint]` of a session file: when to say that something is wrong, and what survives a crash."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

Bound = Annotated[float, Field(ge=0.0, le=86_400.0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class WatchdogConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How long each thing may be wrong before it is announced; 0 switches that watchdog off.

    Attributes
    ----------
    source_s : float
        The source brings nothing, or is gone.
    tick_s : float
        The loop does not come round: it is stuck in a library, and the process ends with code 70 to be started anew.
    peers : tuple of str
        Names whose `alive` is expected, beside those of `stimulation.peers`.
    peer_s : float
        One of them was not heard.
    write_s : float
        One write of the record takes so long.
    sample_age_s : float
        The newest sample is older than `timing.late_ms`: when the loop takes it, or by now where the source is silent.
        Messages of stimuli, which keep no clock, are not watched.
    clock_step_ms : float
        The clock on the wall was set by more than this between two looks, or the host slept for more than 0.1 s.
    clock_jump_ms, clock_uncertainty_ms : float
        A correction of the source's clock that differs from the one before by more, or is known no better than this.
    hold_s : float
        All must be well for so long before it is said to be, so that nothing is announced over and over.
    """

    source_s: Bound = 5.0
    tick_s: Annotated[float, Field(ge=0.0, le=600.0, allow_inf_nan=False)] = 1.0
    peers: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    peer_s: Bound = 5.0
    write_s: Bound = 2.0
    sample_age_s: Bound = 2.0
    clock_step_ms: Bound = 50.0
    clock_jump_ms: Bound = 10.0
    clock_uncertainty_ms: Bound = 20.0
    hold_s: Annotated[float, Field(ge=0.0, le=600.0, allow_inf_nan=False)] = 2.0


class CheckpointConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Checkpoints that the daemon writes by itself.

    Attributes
    ----------
    path : Path
        The newest one; those before are `PATH.1`, `PATH.2`, and a small file `PATH.life` says how the daemon ended.
    every_s : float
        Seconds from one to the next.
    keep : int
        How many there are at the most.
    resume : {"crash", "never", "always"}
        When a session begins from the newest good one: where the last life did not end in order, never, or always.
    """

    path: Path
    every_s: Annotated[float, Field(ge=0.1, le=86_400.0, allow_inf_nan=False)] = 10.0
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    resume: Literal["crash", "never", "always"] = "crash"
