"""Small bundles and signals with known spikes, for the tests of the online sorter."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.sorting.bundle import Bundle
from neuromod.sorting.templates import estimate

FREQUENCY = 30_000.0
N_CHANNELS = 8
N_UNITS = 6
NAMES = tuple(f"e{i}" for i in range(N_CHANNELS))


class Known(NamedTuple):
    """A signal in uV, and the spikes that are in it."""

    signal: NDArray[np.float32]  # (n, N_CHANNELS)
    samples: NDArray[np.int64]
    units: NDArray[np.int64]


def waveforms(pitch_um: float) -> NDArray[np.float32]:
    """Spikes of the units, (N_UNITS, 60, N_CHANNELS) in uV, with troughs at sample 20."""
    t = (np.arange(60) - 20) / FREQUENCY * 1e3
    found = np.zeros((N_UNITS, 60, N_CHANNELS), np.float32)
    for u in range(N_UNITS):
        width = 0.12 + 0.03 * u
        course = -np.exp(-0.5 * (t / width) ** 2) + 0.45 * np.exp(-0.5 * ((t - 0.3 - 0.05 * u) / 0.2) ** 2)
        reach = np.exp(-np.abs(np.arange(N_CHANNELS) - (u + 1)) * pitch_um / 30.0)
        found[u] = (90.0 + 15.0 * u) * course[:, np.newaxis] * np.where(reach > 0.05, reach, 0.0)
    return found


def known(seconds: float, seed: int, pitch_um: float, rate_hz: float = 12.0) -> Known:
    """Draw noise of 8 uV, with spikes at random times, so that some overlap."""
    rng = np.random.default_rng(seed)
    n = round(seconds * FREQUENCY)
    signal = rng.normal(0.0, 8.0, (n, N_CHANNELS)).astype(np.float32)
    shapes = waveforms(pitch_um)
    samples, units = [], []
    for u in range(N_UNITS):
        gaps = rng.exponential(FREQUENCY / rate_hz, round(2 * seconds * rate_hz)) + 60.0
        times = np.cumsum(gaps).astype(np.int64)
        times = times[(times > 300) & (times < n - 300)]
        for t in times:
            signal[t - 20 : t + 40] += shapes[u] * np.float32(rng.normal(1.0, 0.05))
        samples.append(times)
        units.append(np.full(len(times), u))
    order = np.argsort(np.concatenate(samples), kind="stable")
    return Known(signal, np.concatenate(samples)[order], np.concatenate(units)[order])


def bundle_of(truth: Known, pitch_um: float) -> Bundle:
    """Estimate a bundle from a signal and its spikes, through the chain."""
    return estimate(
        lambda begin, end: truth.signal[begin:end],
        len(truth.signal),
        truth.samples,
        truth.units,
        unit_ids=[f"u{u}" for u in range(N_UNITS)],
        name="known",
        sampling_frequency=FREQUENCY,
        channel_names=NAMES,
        positions_um=np.stack([np.zeros(N_CHANNELS), pitch_um * np.arange(N_CHANNELS)], axis=1),
    )
