"""`neuromod hil`: a recording through the real loop, with a device under test and its reference on the same stimuli."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import Source, create_source
from neuromod.bridge.assembly import LONGEST_TICK_MS, block_length_ms
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil_compare import Comparison, Inputs, Rules
from neuromod.bridge.hil_config import Criteria, Judgement, Timing, judge
from neuromod.bridge.hil_device import TestDevice
from neuromod.bridge.hil_reference import FixedReference, FloatReference, Modulation, Reference
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
    keep_inputs: bool = False
    keep_v: bool = False
    reconnect_s: float = 5.0


@dataclass
class Outcome:
    """What a run came to."""

    trace: Trace
    judgements: list[Judgement]
    timing: Timing
    dt_ms: float
    ticks_per_block: int
    reference: Reference
    start_state: NDArray[Any] | None
    """Of the reference before the first tick, where it has one that a device can be brought to."""
    counts: dict[str, int]
    counters: dict[str, int]
    """Of the loop."""
    started_at: float
    wall_s: float
    speed: float | None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_passed(self) -> bool:
        """Whether no criterion failed."""
        return not any(judgement.status == "failed" for judgement in self.judgements)


def run(
    config: SessionConfig,
    device: TestDevice,
    criteria: Criteria,
    options: Options,
    *,
    source: Source | None = None,
    on_progress: Callable[[int, float], None] = lambda n_ticks, share: None,
) -> Outcome:
    """Run device and reference on a recording, and judge what came of it.

    Parameters
    ----------
    config : SessionConfig
        With the recording as its source.
    device : TestDevice
        Opened here, and closed again.
    criteria : Criteria
        What the run has to keep to.
    options : Options
        Pace and length.
    source : Source, optional
        In place of the configuration's.
    on_progress : callable
        Gets the number of ticks so far, and the share of the recording that has been played.

    Raises
    ------
    ConfigError
        If the recording or session cannot be used.
    FixedPointError
        If the network is none that a board has.
    AdapterError
        If the device cannot be reached.
    """
    if source is None and config.source.kind in ("lsl", "zmq"):
        raise ConfigError(f"source kind {config.source.kind!r} is live: hil replays a recording")
    source = source or create_source(config.source)
    source.open()
    try:
        block_ms = block_length_ms(config, source.info)
        n_samples, rate_hz = source.info.n_samples, source.info.sampling_frequency
    finally:
        source.close()
    ticks_per_block = max(1, int(np.ceil(block_ms / LONGEST_TICK_MS - 1e-9)))
    dt_ms = block_ms / ticks_per_block
    n_ticks = n_samples / rate_hz * 1e3 / dt_ms if n_samples else None
    if options.until_tick is not None:
        n_ticks = min(n_ticks or options.until_tick, options.until_tick)
    reference: Reference
    if device.is_peer:
        reference = FloatReference(SpikingNetwork(config.network, dt_ms=dt_ms))
    else:
        reference = FixedReference(FixedNetwork(config.network, dt_ms=dt_ms))
    start_state = reference.copy_state()
    started_at, started = time.time(), time.perf_counter()
    is_paced = options.speed is not None
    rules = Rules(
        window=_WINDOW,
        state_every=0 if is_paced else criteria.state_every_ticks,
        keep_inputs=options.keep_inputs,
        keep_v=options.keep_v,
        reconnect_s=options.reconnect_s,
    )

    def tell(done: int) -> None:
        on_progress(done, done / n_ticks if n_ticks else 0.0)

    device.device.open()
    try:
        comparison = Comparison(reference, device.device, rules)
        comparison.start()
        if options.speed is not None:
            from neuromod.bridge.hil_live import clock, run_live

            rules.clock = clock
            counters = run_live(
                config, comparison, speed=options.speed, until_tick=options.until_tick, on_progress=tell, source=source
            )
        else:
            counters = _run_fast(config, comparison, source, options.until_tick, tell)
        trace = comparison.finish()
        device.describe()
    finally:
        device.device.close()
    timing = _timing(criteria, device, options.speed, block_ms)
    return Outcome(
        trace=trace,
        judgements=judge(criteria, trace, timing),
        timing=timing,
        dt_ms=dt_ms,
        ticks_per_block=ticks_per_block,
        reference=reference,
        start_state=start_state,
        counts=trace.link_counts(),
        counters=counters,
        started_at=started_at,
        wall_s=time.perf_counter() - started,
        speed=options.speed,
    )


class _Gone(Exception):
    """The device is gone for good."""


def _run_fast(
    config: SessionConfig,
    comparison: Comparison,
    source: Source,
    until_tick: int | None,
    tell: Callable[[int], None],
) -> dict[str, int]:
    reference = comparison.reference
    modulation = Modulation(reference.network) if isinstance(reference, FixedReference) else None

    def on_ticks(records: NDArray[Any]) -> None:
        live = records[(records["flags"] & (Flag.FILLER | Flag.PAUSED)) == 0]
        words = np.zeros((len(live), 5), np.int64)
        if modulation is not None:
            words = modulation.words(live["modulation"], live["step_ms"])
        spikes = live["spikes"].astype(np.uint16)
        comparison.take(Inputs(live["tick"].astype(np.int64), live["stimuli"], words, spikes))
        tell(comparison.n_submitted)
        if comparison.is_over:
            raise _Gone

    try:
        return play(config, source, until_tick=until_tick, on_ticks=on_ticks).counters
    except _Gone:
        return {}


def _timing(criteria: Criteria, device: TestDevice, speed: float | None, block_ms: float) -> Timing:
    """What round trips are held against; only at a pace do they tell of a loop."""
    deadline_us = criteria.deadline_us or block_ms * 1e3 / (speed or 1.0)
    if speed is None:
        return Timing(deadline_us, "as fast as possible, ticks wait for each other: run with --speed 1")
    return Timing(deadline_us, "")
