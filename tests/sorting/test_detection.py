"""Crossings against spikes that are known: a generated recording, and a real one with its published figure."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.sorting.config import CrossingsConfig, FrontEndConfig
from neuromod.sorting.front_end import FrontEnd

# the kernels' Python form is compared elsewhere, on fewer samples
pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="seconds of signal take minutes without the compiler")

Floats = NDArray[np.float32]


def crossing_times(run, front_end: FrontEnd, samples: Floats, per_block: int) -> list[NDArray[np.int64]]:
    """Samples, to within half a block, at which each channel crossed."""
    counts = np.nan_to_num(run(front_end, samples, [per_block] * (len(samples) // per_block)))
    return [np.flatnonzero(counts[:, c]) * per_block + per_block // 2 for c in range(samples.shape[1])]


def merged(times: list[NDArray[np.int64]], within: int) -> NDArray[np.int64]:
    """Events of a group of channels: crossings up to `within` samples after the start of an event are part of it."""
    events: list[int] = []
    for t in np.sort(np.concatenate(times)):
        if not events or t - events[-1] > within:
            events.append(int(t))
    return np.array(events, dtype=np.int64)


def test_known_spikes_of_a_generated_recording_are_found(run) -> None:
    from spikeinterface.generation import generate_ground_truth_recording

    recording, sorting = generate_ground_truth_recording(
        durations=[20.0],
        sampling_frequency=30000.0,
        num_channels=16,
        num_units=4,
        generate_probe_kwargs={"num_columns": 1, "xpitch": 400, "ypitch": 400},  # a sparse array: a unit a channel
        generate_sorting_kwargs={"firing_rates": 15.0, "refractory_period_ms": 4.0},
        generate_unit_locations_kwargs={"margin_um": 5.0, "minimum_z": 5.0, "maximum_z": 15.0, "minimum_distance": 300},
        noise_kwargs={"noise_levels": 5.0, "strategy": "on_the_fly"},
        seed=7,
    )
    samples = np.ascontiguousarray(recording.get_traces(), dtype=np.float32)
    front_end = FrontEnd(FrontEndConfig(warmup_s=4.0), 16, 30000.0)

    times = crossing_times(run, front_end, samples, per_block=6)

    begin = 4 * 30000
    for unit in sorting.unit_ids:
        spikes = sorting.get_unit_spike_train(unit)
        spikes = spikes[spikes > begin]
        window = samples[spikes[:100, None] + np.arange(-5, 15)[None, :]]
        best = int(window.mean(axis=0).min(axis=0).argmin())
        # the crossing comes on the way down to the trough; the causal filter delays by less than 0.3 ms
        near = np.abs(times[best][:, None] - spikes[None, :]) <= 18
        recall, precision = near.any(axis=0).mean(), near.any(axis=1).mean()
        depth = -window.mean(axis=0).min() / 5.0
        print(unit, best, round(depth, 1), recall, precision)


def test_the_tetrode_of_the_locust_shows_about_the_published_number_of_events(run, recordings: Path) -> None:
    raw = np.fromfile(recordings / "locust-tetrode" / "locust_trial_01.raw", dtype=np.int16).reshape(-1, 4)
    samples = raw.astype(np.float32)
    config = FrontEndConfig(crossings=CrossingsConfig(threshold_noise=-5.0), warmup_s=14.0)
    front_end = FrontEnd(config, 4, 15000.0)
    run(front_end, samples, [len(samples)])  # measures the noise
    levels = front_end.threshold

    counts = crossing_times(run, front_end, samples, per_block=15)
    events = merged(counts, within=15)
    print(len(events), [len(c) for c in counts], levels)
