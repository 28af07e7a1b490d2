"""Crossings against spikes that are known: a generated recording, and a real one with its published figure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import probeinterface
import pytest
from numpy.typing import NDArray

import naive.front_end as naive
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.sorting.config import CrossingsConfig, FrontEndConfig
from neuromod.sorting.front_end import FrontEnd

# the kernels' Python form is compared elsewhere, on fewer samples
pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="seconds of signal take minutes without the compiler")

Floats = NDArray[np.float32]
Run = Callable[..., Floats]


def crossing_times(run: Run, front_end: FrontEnd, samples: Floats, per_block: int) -> list[NDArray[np.int64]]:
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


def test_known_spikes_of_a_generated_recording_are_found(run: Run) -> None:
    from spikeinterface.generation import generate_ground_truth_recording, generate_templates

    # a sparse array, 400 um apart, with one unit 15 um beside each of the first four electrodes, 12 sd deep
    electrodes = np.array([[400.0 * (i % 4), 400.0 * (i // 4)] for i in range(16)])
    units = np.column_stack([electrodes[:4], np.full(4, 15.0)])
    templates = generate_templates(electrodes, units, 30000.0, ms_before=1.0, ms_after=3.0, seed=1)
    templates *= 60.0 / -templates.min(axis=(1, 2), keepdims=True)
    probe = probeinterface.Probe(ndim=2)
    probe.set_contacts(electrodes, shapes="circle", shape_params={"radius": 6})
    probe.set_device_channel_indices(np.arange(16))
    recording, sorting = generate_ground_truth_recording(
        durations=[12.0],
        sampling_frequency=30000.0,
        num_channels=16,
        num_units=4,
        probe=probe,
        templates=templates,
        ms_before=1.0,
        ms_after=3.0,
        generate_sorting_kwargs={"firing_rates": 15.0, "refractory_period_ms": 4.0},
        noise_kwargs={"noise_levels": 5.0, "strategy": "on_the_fly"},
        seed=7,
    )
    samples = np.ascontiguousarray(recording.get_traces(), dtype=np.float32)
    front_end = FrontEnd(FrontEndConfig(warmup_s=4.0), 16, 30000.0)

    times = crossing_times(run, front_end, samples, per_block=6)

    assert front_end.excluded == {}
    for channel, unit in enumerate(sorting.unit_ids):
        spikes = sorting.get_unit_spike_train(unit)
        spikes = spikes[spikes > 4 * 30000 + 6]
        # the crossing is on the way down to the trough, at most 0.5 ms before it; the causal filter delays by 0.1 ms
        near = np.abs(times[channel][:, None] - spikes[None, :]) <= 15
        recall, precision = near.any(axis=0).mean(), near.any(axis=1).mean()
        assert len(spikes) > 80
        assert recall > 0.98
        assert precision > 0.9  # overlaps and the noise of the way back up cross once more
    # Rice: band-limited noise crosses -4.5 sd about 3500 Hz exp(-4.5 ** 2 / 2) = 0.14 times a second
    assert sum(len(times[c]) for c in range(4, 16)) < 3 * 0.14 * 12 * 8


def test_the_tetrode_of_the_locust_shows_about_the_published_number_of_events(run: Run, recordings: Path) -> None:
    raw = np.fromfile(recordings / "locust-tetrode" / "locust_trial_01.raw", dtype=np.int16).reshape(-1, 4)
    samples = raw.astype(np.float32)
    config = FrontEndConfig(crossings=CrossingsConfig(threshold_noise=-5.0), warmup_s=14.0)
    front_end = FrontEnd(config, 4, 15000.0)
    run(front_end, samples, [len(samples)])  # measures the noise
    levels = front_end.threshold

    times = crossing_times(run, front_end, samples, per_block=15)

    # 761 is for another filter; the upper edge of ours alone moves the number from 660 (7 kHz) to 790 (3 kHz)
    assert 0.85 * 761 < len(merged(times, within=15)) < 1.15 * 761
    # exactly what the twin counts; the signal twice, since the second run goes on from the filter state of the first
    y = naive.filtered(np.concatenate([samples, samples]).astype(np.float64), 15000.0, 300.0, 6000.0, 2)[len(samples) :]
    for c in range(4):
        twin = naive.crossing_samples(y[:, c], levels[c], dead_samples=15)
        assert len(times[c]) == len({i // 15 for i in twin if i < 15 * (len(samples) // 15)})
