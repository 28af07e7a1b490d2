"""Compiles, or loads from the cache, everything that the loop calls, before a stream is opened."""

import logging

import numpy as np

from neuromod.adapters.base import StreamInfo
from neuromod.bridge import loop_state as rt
from neuromod.bridge import native
from neuromod.bridge.assembly import assemble
from neuromod.bridge.config import parse
from neuromod.bridge.gate import DECISION
from neuromod.bridge.loop import run
from neuromod.bridge.pipeline import TICK, UNIT
from neuromod.bridge.ring import append, drain, put_samples, refused
from neuromod.engine.compiled import cache_folder

log = logging.getLogger(__name__)

LONGEST_START_S = 600.0
"""How long a process is waited for that may have to compile the loop first: a slow, busy machine took four minutes."""

_INFO = StreamInfo("warm", "signal", 1, 30000.0, ("a",), ("",))
# no filter, since designing one takes a library that loads for a second; the types are those of every session
_SESSION = """
source = {kind = "lsl", name = "warm"}
[front_end]
features = ["raw"]
"""


def is_compiled() -> bool:
    """Say whether the loop of this version has been compiled on this machine before."""
    return any(cache_folder("neuromod.bridge.loop").glob("**/loop.run-*.nbc"))


def warm_loop() -> None:
    """Have every compiled function of the loop ready: a second from the cache, about a minute the first time.

    Without it, compilation would become backlog of a stream that is already open.
    """
    if not is_compiled():
        log.warning("compiling the real-time loop; this takes about a minute, once per version")
    parts = assemble(parse(_SESSION), _INFO)
    loop = rt.make_loop(
        native.c_functions(),
        source=rt.SOURCE_RING,
        n_channels=1,
        chunk=1,
        ticks_per_block=1,
        block_s=0.001,
        stall_s=1.0,
        late_s=1.0,
        publish_all=False,
        publish_stimuli=False,
        paced_rate=0.0,
        parts=parts.parts(),
        decisions=parts.pipeline.decisions,
        units=parts.pipeline.units,
    )
    rings = rt.make_rings(1)
    shared = loop.block[0]["shared"]
    native.set_word(shared, rt.STOP, native.get_word(shared, rt.STATE) + 1)  # so that it returns at once
    run(loop, rings, *parts.states)
    # what other threads call while the loop runs
    append(rings.inputs, np.zeros(1, rt.INPUT))
    drain(rings.inputs, rt.INPUT)
    drain(rings.ticks, TICK)
    drain(rings.decisions, DECISION)
    drain(rings.units, UNIT)
    refused(rings.ticks.ends)
    put_samples(rings.samples, np.zeros((1, 1), np.float32), np.zeros(1), 0)
    parts.consume(np.zeros((1, 1), np.float32), np.zeros(1), 0, parts.records())
