"""The online sorter's matching as one would write it down: all of a recording at once, the likeliest spike first."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.signal
from numpy.typing import NDArray

from neuromod.sorting.bundle import Bundle

Floats = NDArray[np.float64]


class Spike(NamedTuple):
    """One that was found."""

    sample: int
    unit: int
    amplitude: float


def match(bundle: Bundle, z: Floats, *, prior: float, least: float, ridge: float) -> list[Spike]:
    """Explain a whitened signal by spikes.

    Parameters
    ----------
    bundle : Bundle
        Templates, limits of amplitude, autocovariance of the noise.
    z : ndarray, shape (n, n_channels)
        Whitened signal.
    prior : float
        Precision of amplitudes about 1.
    least : float
        Twice the log of how much likelier a spike must make the signal.
    ridge : float
        Noise that is white, beside that of the autocovariance.
    """
    z = z.astype(np.float64).copy()
    templates = bundle.templates.astype(np.float64)
    n_units, length, _ = templates.shape
    n_before = bundle.info.n_before
    column = np.array(bundle.info.autocovariance)[:length].copy()
    column[0] += ridge
    filters = np.array([scipy.linalg.solve_toeplitz(column, template) for template in templates])
    energy = np.sum(templates * filters, axis=(1, 2))
    # of each unit and each sample at which a template may begin: amplitude in least squares, gain in likelihood
    gain = np.zeros((n_units, len(z) - length + 1))
    amplitude = np.zeros_like(gain)

    def look(begin: int, end: int) -> None:
        for t in range(max(begin, 0), min(end, gain.shape[1])):
            product = np.sum(filters * z[t : t + length], axis=(1, 2))
            a = product / energy
            fits = (a >= bundle.amplitude_limits[:, 0]) & (a <= bundle.amplitude_limits[:, 1])
            gain[:, t] = np.where(fits, (product + prior) ** 2 / (energy + prior) - prior, 0.0)
            amplitude[:, t] = a

    look(0, gain.shape[1])
    found: list[Spike] = []
    while True:
        unit, t = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[unit, t] <= least:
            return sorted(found)
        a = float(amplitude[unit, t])
        found.append(Spike(int(t) + n_before, int(unit), a))
        z[t : t + length] -= a * templates[unit]
        look(int(t) - length + 1, int(t) + length)


def whitened(bundle: Bundle, samples: NDArray[np.float32]) -> Floats:
    """The causal chain, a matrix at a time: band-pass, clipped mean of all channels, whitening."""
    info, config = bundle.info, bundle.info.chain
    band = (config.low_hz, min(config.high_hz, 0.45 * info.sampling_frequency))
    sos = scipy.signal.butter(config.order, band, "bandpass", fs=info.sampling_frequency, output="sos")
    x = samples.astype(np.float64)
    at_rest = scipy.signal.sosfilt_zi(sos)[:, :, np.newaxis] * x[0]
    y = scipy.signal.sosfilt(sos, x, axis=0, zi=at_rest)[0]
    limit = config.clip_noise * bundle.noise
    if config.reference == "clipped-mean":
        centre = y.mean(axis=1, keepdims=True)
        y = y - centre - np.mean(np.clip(y - centre, -limit, limit), axis=1, keepdims=True)
    return np.asarray(y @ bundle.whitening.astype(np.float64).T)
