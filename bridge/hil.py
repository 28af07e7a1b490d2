"""`neuromod hil`: a recording through the real loop, with a device under test and its reference on the same stimuli."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Source, create_source
from neuromod.bridge.assembly import LONGEST_TICK_MS, block_length_ms
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil_bisect import Bisection, bisect
from neuromod.bridge.hil_compare import Comparison, Inputs, Rules
from neuromod.bridge.hil_config import Criteria, Judgement, Timing, judge
from neuromod.bridge.hil_device import TestDevice, check_link, modelled_wire
from neuromod.bridge.hil_reference import FixedReference, FloatReference, Reference
from neuromod.bridge.hil_trace import Trace
from neuromod.bridge.replay import play
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import ConfigError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.network import SpikingNetwork

_WINDOW = 4
"""Ticks under way at once where a run goes as fast as it can: enough to hide a link's latency behind the device."""


@dataclass
class Options:
    """What a run is to do, beyond session, device and criteria."""

    speed: float | None = None
    """Multiple of true time; None for as fast as possible."""
    until_tick: int | None = None
    keep_trace: bool = False
    """Keep inputs and membranes of every tick, for a golden trace."""
    bisect: bool = False
    """Find the first wrong tick and register, where the device differs."""
    reconnect_s: float = 5.0


@dataclass
class Outcome:
    """What a run came to."""

    trace: Trace
    judgements: list[Judgement]
    timing: Timing
    dt_ms: float
    ticks_per_block: int
    start_state: NDArray[Any] | None
    """Of the reference before the first tick, where it has one that a device can be brought to."""
    counts: dict[str, int]
    """Faults that the link counted during the run."""
    counters: dict[str, int]
    """Of the loop."""
    started_at: float
    wall_s: float
    speed: float | None
    modelled_us: float | None = None
    """Time on a wire that a simulated board does not have."""
    modelled_words: str = ""
    bisection: Bisection | None = None
    golden: dict[str, Any] = field(default_factory=dict)

    @property
    def is_passed(self) -> bool:
        """Whether no criterion failed."""
        return not any(judgement.status == "failed" for judgement in self.judgements)


MakeDevice = Callable[[Callable[[], NDArray[Any]]], TestDevice]
"""Makes a device, given what returns the state that a simulated board comes up with."""


def run(
    config: SessionConfig,
    make: MakeDevice,
    criteria: Criteria,
    options: Options,
    *,
    source: Source | None = None,
    on_progress: Callable[[str, float | None], None] = lambda what, share: None,
) -> tuple[Outcome, TestDevice]:
    """Run device and reference on a recording, and judge what came of it.

    Parameters
    ----------
    config : SessionConfig
        With the recording as its source.
    make : callable
        Makes the device; it is opened, closed and stopped here.
    criteria : Criteria
        What the run has to keep to.
    options : Options
        Pace and length.
    source : Source, optional
        In place of the configuration's; only as fast as possible.
    on_progress : callable
        Gets what is being done, and the share of it that is done.

    Raises
    ------
    ConfigError
        If recording, session or device cannot be used together.
    FixedPointError
        If the network is none that a board has.
    AdapterError
        If the device cannot be reached.
    """
    # the device is compared, not in the loop: nobody would answer
    config = config.model_copy(update={"offload": None})
    if source is None and config.source.kind in ("lsl", "zmq"):
        raise ConfigError(f"source kind {config.source.kind!r} is live: hil replays a recording")
    source = source or create_source(config.source)
    source.open()
    try:
        block_ms = block_length_ms(config, source.info)
        n_samples, rate_hz = source.info.n_samples, source.info.sampling_frequency
    finally:
        source.close()
    ticks_per_block = max(1, math.ceil(block_ms / LONGEST_TICK_MS - 1e-9))
    dt_ms = block_ms / ticks_per_block
    n_ticks = n_samples / rate_hz * 1e3 / dt_ms if n_samples else None
    if options.until_tick is not None:
        n_ticks = min(n_ticks or options.until_tick, options.until_tick)

    def tell(done: int) -> None:
        on_progress(f"tick {done:,}", min(1.0, done / n_ticks) if n_ticks else None)

    on_progress("making the device", None)
    device = make(lambda: FixedNetwork(config.network, dt_ms=dt_ms).state)
    try:
        reference: Reference
        if device.is_peer:
            reference = FloatReference(SpikingNetwork(config.network, dt_ms=dt_ms))
        else:
            reference = FixedReference(FixedNetwork(config.network, dt_ms=dt_ms))
        check_link(device, 1e3 / dt_ms * options.speed if options.speed is not None else 0.0)
        start_state = reference.copy_state()
        started_at, started = time.time(), time.perf_counter()
        is_paced = options.speed is not None
        rules = Rules(
            window=_WINDOW,
            state_every=0 if is_paced else criteria.state_every_ticks,
            keep_inputs=options.keep_trace or options.bisect,
            keep_v=options.keep_trace,
            reconnect_s=options.reconnect_s,
        )
        on_progress("reaching the device", None)
        device.device.open()
        comparison = Comparison(reference, device.device, rules)
        comparison.start()
        if options.speed is not None:
            from neuromod.bridge.hil_live import clock, run_live

            rules.clock = clock
            counters = run_live(
                config, comparison, speed=options.speed, until_tick=options.until_tick, on_progress=tell
            )
        else:
            counters = _run_fast(config, comparison, source, options.until_tick, tell)
        trace = comparison.finish()
        wall_s = time.perf_counter() - started
        device.describe()
        bisection = _bisect(device, trace, start_state, on_progress) if options.bisect else None
    finally:
        device.device.close()
        device.stop()
    timing = _timing(criteria, options.speed, block_ms)
    modelled_us, words = modelled_wire(device)
    outcome = Outcome(
        trace=trace,
        judgements=judge(criteria, trace, timing),
        timing=timing,
        dt_ms=dt_ms,
        ticks_per_block=ticks_per_block,
        start_state=start_state,
        counts=trace.link_counts(),
        counters=counters,
        started_at=started_at,
        wall_s=wall_s,
        speed=options.speed,
        modelled_us=modelled_us,
        modelled_words=words,
        bisection=bisection,
    )
    return outcome, device


def _bisect(
    device: TestDevice,
    trace: Trace,
    start: NDArray[Any] | None,
    on_progress: Callable[[str, float | None], None],
) -> Bisection | None:
    first_bad = next((snapshot.n_ticks for snapshot in trace.snapshots if snapshot.words), None)
    if trace.divergence is None:
        return None
    if start is None:
        return Bisection(
            "impossible", "A daemon cannot be written and read: its first wrong tick is that of its spikes."
        )
    suspected = trace.divergence.tick + 1
    if trace.divergence.kind == "state" and first_bad is not None:
        suspected = first_bad
    n = trace.n_ticks
    stimuli, modulation = trace.column("stimuli")[:n], trace.column("modulation")[:n]

    def on_probe(first: int, last: int) -> None:
        on_progress(f"bisecting ticks {first:,} to {last:,}", None)

    return bisect(device, start, stimuli, modulation, suspected, on_probe=on_probe)


class _Gone(Exception):
    """The device is gone for good."""


def _run_fast(
    config: SessionConfig,
    comparison: Comparison,
    source: Source,
    until_tick: int | None,
    tell: Callable[[int], None],
) -> dict[str, int]:
    def on_ticks(records: NDArray[Any]) -> None:
        live = records[(records["flags"] & (Flag.FILLER | Flag.PAUSED)) == 0]
        words = comparison.reference.modulation_words(live["modulation"], live["step_ms"])
        spikes = live["spikes"].astype(np.uint16)
        comparison.take(Inputs(live["tick"].astype(np.int64), live["stimuli"], words, spikes))
        tell(comparison.n_submitted)
        if comparison.is_over:
            raise _Gone

    try:
        return play(config, source, until_tick=until_tick, on_ticks=on_ticks).counters
    except _Gone:
        return {}


def _timing(criteria: Criteria, speed: float | None, block_ms: float) -> Timing:
    """What round trips are held against; only at a pace do they tell of a loop."""
    deadline_us = criteria.deadline_us or block_ms * 1e3 / (speed or 1.0)
    if speed is None:
        return Timing(deadline_us, "ticks queue at full speed: --speed 1 tells")
    return Timing(deadline_us, "")
