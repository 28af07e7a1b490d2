"""Online templates from offline spike times: estimated through exactly the chain that the loop runs.

A template taken from an offline sorter's own signal does not fit the loop's: a causal filter moves and skews a spike,
and reference and whitening change its size. So the recording streams through `chain`, three times:

1. Noise and whitening, from stretches spread over the recording. The reference clips at multiples of the noise that it
   changes, so noise is measured without a reference, then with it, then once more with clipping where it will be.
2. Mean waveforms at the given spike times, and from them where each unit's trough is.
3. Refinement: from what is left once the spikes of *all* units are subtracted, each template takes its mean residual,
   clipped. In three rounds this takes out what neighbours that fire together left in each other's mean, which a plain
   mean keeps, and holds back spikes that nobody sorted: steps of a least-squares fit with Huber's loss [1]_.

Nothing is ever in memory but a stretch of a few seconds.

References
----------
.. [1] Huber (1964), Ann. Math. Stat. 35, 73-101.
"""

import datetime
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle, BundleInfo, ChainConfig, UnitInfo
from neuromod.sorting.chain import ChainState, filtered, make_chain
from neuromod.sorting.noise import MAD_OF_UNIT_NOISE

Reader = Callable[[int, int], NDArray[np.float32]]
"""``read(begin, end)``: samples of all channels, (end - begin, n_channels), in units of the stream."""

BEFORE_MS, AFTER_MS = 0.7, 1.0
"""Of a template around its trough. What comes later would delay an event by as much, and says little more."""
_TAIL_MS = 1.5
"""A spike rings the filter for longer: this much more is estimated, so that it is taken out of others' means."""
TROUGH_SEARCH_MS = 0.7
"""How far from a given time, either way, a unit's trough may lie once filtered."""
AMPLITUDE_LIMITS = (0.7, 1.45)
"""0.75 below lost half a point on an array: how amplitudes vary is weighed by the engines themselves."""
REACH_UM = 120.0
"""A template has no channels further than this from where its trough is deepest."""
DENSE_UM = 60.0
"""A probe whose channels have a neighbour this near, at least half of them, is dense."""

_CHUNK_S = 1.0
_NOISE_STRETCHES, _NOISE_S = 20, 20.0
_SETTLE_S = 0.05
_LAG_STRETCHES = 4  # are enough for a mean over channels
_CLIP_NOISE = 3.0
_SHRINK = 0.02
_ROUNDS = 3
_RESIDUAL_CLIP = 4.0
_ENERGY_SHARE = 0.01


class Levels(NamedTuple):
    """What the chain needs to know of the noise."""

    noise: NDArray[np.float64]  # (n_channels,) 0: excluded
    whitening: NDArray[np.float32]  # (n_channels, n_channels)
    autocovariance: NDArray[np.float64]  # (n_lags,) of the whitened noise


def estimate(
    read: Reader,
    n_samples: int,
    spike_samples: NDArray[np.integer[Any]],
    spike_units: NDArray[np.integer[Any]],
    *,
    unit_ids: Sequence[str],
    name: str,
    sampling_frequency: float,
    channel_names: Sequence[str],
    positions_um: NDArray[np.float64],
    excluded: Mapping[str, str] | None = None,
    config: ChainConfig | None = None,
    detection_noise: float = -4.5,
    engine: Literal["sparse", "dense"] | None = None,
    quality: Mapping[str, Mapping[str, float | None]] | None = None,
    units_of_signal: str = "uV",
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Bundle:
    """Make a bundle from a recording and the spike times of its units.

    Parameters
    ----------
    read : callable
        ``read(begin, end)`` gives samples [begin, end) of all channels, excluded ones too.
    n_samples : int
        Length of the recording.
    spike_samples : ndarray of int, shape (n_spikes,)
        Times of all spikes, as samples of the recording; any order.
    spike_units : ndarray of int, shape (n_spikes,)
        The unit of each, as an index into `unit_ids`.
    unit_ids : sequence of str
        Names of the units.
    name : str
        Of the recording.
    sampling_frequency : float
        In Hz.
    channel_names : sequence of str
        All channels, in the stream's order.
    positions_um : ndarray, shape (n_channels, 2)
        Where they are.
    excluded : mapping, optional
        Names of channels that take no part, with the reason.
    config : ChainConfig, optional
        The chain; default as the loop's default.
    detection_noise : float
        Detection threshold on the whitened signal.
    engine : {"sparse", "dense"}, optional
        By default as `engine_for` says.
    quality : mapping, optional
        Quality metrics of units, by id.
    units_of_signal : str
        What samples are in.
    provenance : mapping, optional
        What the bundle shall tell of its making.
    progress : callable, optional
        Called with the share of the work done, 0 to 1.

    Returns
    -------
    Bundle
        A unit without a spike that lies whole within the recording has a template of zeros, which matches nothing.

    Raises
    ------
    ConfigError
        The recording is too short to measure its noise, silent, or what was given does not fit together.
    """
    config = config if config is not None else ChainConfig()
    excluded = dict(excluded or {})
    n_channels, n_units = len(channel_names), len(unit_ids)
    included = np.array([channel not in excluded for channel in channel_names])
    positions_um = np.asarray(positions_um, dtype=np.float64)
    _check(n_samples, spike_samples, spike_units, n_units, positions_um, n_channels, sampling_frequency)
    report = progress if progress is not None else _ignore

    source = _Source(read, n_samples, sampling_frequency, n_channels)
    n_before, n_after = round(BEFORE_MS * 1e-3 * sampling_frequency), round(AFTER_MS * 1e-3 * sampling_frequency)
    levels = _measure_levels(source, config, included, positions_um, n_before + n_after)
    report(0.25)
    order = np.argsort(spike_samples, kind="stable")
    at, units = spike_samples[order].astype(np.int64), spike_units[order].astype(np.int64)
    search = round(TROUGH_SEARCH_MS * 1e-3 * sampling_frequency)
    stream = functools.partial(source.filtered, config, levels.noise, included)

    n_long = n_before + n_after + round(_TAIL_MS * 1e-3 * sampling_frequency)
    wide = _mean_waveforms(stream, at - n_before - search, units, (n_units, n_long + 2 * search, n_channels))
    report(0.5)
    begins = _trough_offsets(wide @ levels.whitening.T, n_before, search)
    templates_uv = wide[np.arange(n_units)[:, np.newaxis], begins[:, np.newaxis] + np.arange(n_long)]
    starts = at - n_before - search + begins[units]
    step = _steps(starts, units, templates_uv, levels.noise)
    for i in range(_ROUNDS):
        templates_uv = _refined(stream, starts, units, templates_uv, levels.noise, step)
        report(0.5 + 0.5 * (i + 1) / _ROUNDS)

    templates_uv = templates_uv[:, : n_before + n_after]
    templates = templates_uv @ levels.whitening.T
    support = _support(templates, np.bincount(units, minlength=n_units), n_before, positions_um)
    templates *= support[:, np.newaxis]
    infos = tuple(
        _describe(
            unit, templates_uv[u], support[u], channel_names, positions_um, int(np.count_nonzero(units == u)),
            n_samples / sampling_frequency, dict((quality or {}).get(unit, {})),
        )
        for u, unit in enumerate(unit_ids)
    )  # fmt: skip
    info = BundleInfo(
        created_at=datetime.datetime.now(datetime.UTC),
        name=name,
        sampling_frequency=sampling_frequency,
        channel_names=tuple(channel_names),
        units_of_signal=units_of_signal,
        excluded=excluded,
        chain=config,
        engine=engine if engine is not None else engine_for(positions_um[included]),
        detection_noise=detection_noise,
        autocovariance=tuple(levels.autocovariance.tolist()),
        n_before=n_before,
        units=infos,
        provenance=dict(provenance or {}),
    )
    return Bundle(
        info,
        positions_um,
        levels.noise,
        levels.whitening,
        templates.astype(np.float32),
        (templates_uv * support[:, np.newaxis]).astype(np.float32),
        np.tile(np.array(AMPLITUDE_LIMITS), (n_units, 1)),
    )


def engine_for(positions_um: NDArray[np.float64]) -> Literal["sparse", "dense"]:
    """Which engine suits a geometry: dense where most channels have a neighbour that sees the same units."""
    if len(positions_um) < 2:
        return "sparse"
    distance = np.linalg.norm(positions_um[:, np.newaxis] - positions_um, axis=2)
    np.fill_diagonal(distance, np.inf)
    return "dense" if np.median(distance.min(axis=1)) <= DENSE_UM else "sparse"


class _Source:
    """The recording, streamed through a chain."""

    def __init__(self, read: Reader, n_samples: int, sampling_frequency: float, n_channels: int) -> None:
        self._read, self._n_samples, self._n_channels = read, n_samples, n_channels
        self._frequency = sampling_frequency

    def filtered(
        self, config: ChainConfig, noise: NDArray[np.float64], included: NDArray[np.bool_]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All of it, as (number of its first sample, filtered and referenced chunk)."""
        chain = self._chain(config, noise, included)
        chunk = round(_CHUNK_S * self._frequency)
        for begin in range(0, self._n_samples, chunk):
            yield begin, filtered(chain, self._samples(begin, min(begin + chunk, self._n_samples)))

    def stretches(
        self, config: ChainConfig, noise: NDArray[np.float64], included: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        """Stretches spread evenly over it, each through a chain of its own that has settled."""
        settle = round(_SETTLE_S * self._frequency)
        length = round(_NOISE_S / _NOISE_STRETCHES * self._frequency) + settle
        n = min(_NOISE_STRETCHES, max(1, self._n_samples // length))
        for i in range(n):
            begin = i * (self._n_samples // n)
            samples = self._samples(begin, min(begin + length, self._n_samples))
            yield filtered(self._chain(config, noise, included), samples)[settle:]

    def _chain(self, config: ChainConfig, noise: NDArray[np.float64], included: NDArray[np.bool_]) -> ChainState:
        return make_chain(config, self._frequency, self._n_channels, noise, included=included)

    def _samples(self, begin: int, end: int) -> NDArray[np.float32]:
        samples = np.ascontiguousarray(self._read(begin, end), dtype=np.float32)
        if samples.shape != (end - begin, self._n_channels):
            raise ConfigError(
                f"samples {begin} to {end} of a recording of {self._n_channels} channels came as {samples.shape}; "
                f"{(end - begin, self._n_channels)} expected"
            )
        return samples


def _measure_levels(
    source: _Source, config: ChainConfig, included: NDArray[np.bool_], positions_um: NDArray[np.float64], n_lags: int
) -> Levels:
    """Noise through the chain as it will run, and the whitening that goes with it."""
    alone = config.model_copy(update={"reference": "none"})
    noise = _noise(source.stretches(alone, np.zeros(len(included)), included), included)
    if not np.any(noise > 0.0):
        raise ConfigError("the recording is silent on every channel: there is no noise to measure; check the recording")
    for _ in range(2):
        noise = _noise(source.stretches(config, noise, included), included)
    correlation = _correlation(source.stretches(config, noise, included), noise)
    whitening = _whitening(correlation, noise, positions_um, config.whitening_um)
    # the correlation of clipped noise is not quite that of the noise: what units of background leave is measured
    level = _noise((y @ whitening.T for y in source.stretches(config, noise, included)), included)
    scale = np.divide(1.0, level, out=np.zeros_like(level), where=level > 0.0)
    whitening *= scale[:, np.newaxis].astype(np.float32)
    autocovariance = _autocovariance(
        (y @ whitening.T for y in source.stretches(config, noise, included)), noise, n_lags
    )
    return Levels(noise, whitening, autocovariance)


def _noise(stretches: Iterator[NDArray[np.float32]], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median magnitude over stretches, scaled to a standard deviation; the median of stretches holds off artefacts."""
    medians = [np.median(np.abs(y), axis=0) for y in stretches]
    return np.asarray(np.where(included, np.median(medians, axis=0) / MAD_OF_UNIT_NOISE, 0.0), dtype=np.float64)


def _correlation(stretches: Iterator[NDArray[np.float32]], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of the noise of channels: spikes are clipped, or whitening would take them for noise."""
    total = np.zeros((len(noise), len(noise)))
    scale = np.divide(1.0, noise, out=np.zeros_like(noise), where=noise > 0.0).astype(np.float32)
    for y in stretches:
        z = np.clip(y * scale, -_CLIP_NOISE, _CLIP_NOISE)
        total += z.T @ z
    size = np.sqrt(np.maximum(np.diag(total), 1e-30))
    return np.asarray(total / np.outer(size, size))


def _autocovariance(
    stretches: Iterator[NDArray[np.float32]], noise: NDArray[np.float64], n_lags: int
) -> NDArray[np.float64]:
    """Mean autocovariance of the channels at lags below `n_lags`; spikes are clipped."""
    total = np.zeros(n_lags)
    for z in itertools.islice(stretches, _LAG_STRETCHES):
        clipped = np.clip(z[:, noise > 0.0], -_CLIP_NOISE, _CLIP_NOISE)
        spectrum = scipy.fft.rfft(clipped, scipy.fft.next_fast_len(len(clipped) + n_lags), axis=0)
        total += scipy.fft.irfft((spectrum.real**2 + spectrum.imag**2).sum(axis=1))[:n_lags]
    return np.asarray(total / total[0])


def _whitening(
    correlation: NDArray[np.float64], noise: NDArray[np.float64], positions_um: NDArray[np.float64], within_um: float
) -> NDArray[np.float32]:
    """Zero-phase whitening of each channel with its neighbours, to unit noise."""
    distance = np.linalg.norm(positions_um[:, np.newaxis] - positions_um, axis=2)
    rows = np.zeros_like(correlation)
    live = noise > 0.0
    for c in np.flatnonzero(live):
        near = np.flatnonzero(live & (distance[c] <= within_um) | (np.arange(len(noise)) == c))
        local = (1.0 - _SHRINK) * correlation[np.ix_(near, near)] + _SHRINK * np.eye(len(near))
        values, vectors = np.linalg.eigh(local)
        root = (vectors / np.sqrt(values)) @ vectors.T
        rows[c, near] = root[np.flatnonzero(near == c)[0]] / noise[near]
    return rows.astype(np.float32)


def _windows(
    stream: Callable[[], Iterator[tuple[int, NDArray[np.float32]]]], starts: NDArray[np.int64], length: int
) -> Iterator[tuple[int, NDArray[np.float32], int, int]]:
    """Stream in pieces that overlap by a window: (first sample, signal, first and last spike that lie whole in it).

    `starts` are in order; every window that lies whole in the recording is told once.
    """
    held, told = np.zeros((0, 0), np.float32), 0
    for begin, chunk in stream():
        signal = np.concatenate([held, chunk]) if len(held) else chunk
        first = begin - len(held)
        last = int(np.searchsorted(starts, first + len(signal) - length, side="right"))
        told = max(told, int(np.searchsorted(starts, first)))
        yield first, signal, told, max(told, last)
        told = max(told, last)
        held = signal[-(length - 1) :]


def _mean_waveforms(
    stream: Callable[[], Iterator[tuple[int, NDArray[np.float32]]]],
    starts: NDArray[np.int64],
    units: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.float64]:
    order = np.argsort(starts, kind="stable")
    starts, units = starts[order], units[order]
    total, count = np.zeros(shape), np.zeros(shape[0])
    for first, signal, k0, k1 in _windows(stream, starts, shape[1]):
        for k in range(k0, k1):
            at = starts[k] - first
            total[units[k]] += signal[at : at + shape[1]]
            count[units[k]] += 1.0
    total /= np.maximum(count, 1.0)[:, np.newaxis, np.newaxis]
    return total


def _trough_offsets(wide: NDArray[np.float64], n_before: int, search: int) -> NDArray[np.int64]:
    """Where in each wide mean waveform the template begins, so that its deepest trough lies at `n_before`."""
    inside = wide[:, n_before : n_before + 2 * search + 1]
    return inside.min(axis=2).argmin(axis=1) if len(wide) else np.zeros(0, np.int64)


def _steps(
    starts: NDArray[np.int64], units: NDArray[np.int64], templates: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much of its mean residual each template takes at once.

    All templates move together: where n spikes of units that share channels lie over each other on the mean, a whole
    step of each would correct n times over, and diverge on a dense probe. One n-th converges (Gershgorin's bound).
    """
    n_units, length = templates.shape[:2]
    reach = [_reach(template, noise) for template in templates]
    trains = [np.sort(starts[units == u]) for u in range(n_units)]
    steps = np.ones(n_units)
    for u in range(n_units):
        others = [
            trains[v] for v in range(n_units) if reach[v].start < reach[u].stop and reach[u].start < reach[v].stop
        ]
        if len(trains[u]) and others:
            near = np.sort(np.concatenate(others))
            pairs = np.searchsorted(near, trains[u] + length) - np.searchsorted(near, trains[u] - length, side="right")
            steps[u] = 2.0 / (1.0 + pairs.mean())  # a pair overlaps in half of a window on the mean; itself in all
    return steps


def _refined(
    stream: Callable[[], Iterator[tuple[int, NDArray[np.float32]]]],
    starts: NDArray[np.int64],
    units: NDArray[np.int64],
    templates: NDArray[np.float64],
    noise: NDArray[np.float64],
    step: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Add to each template the mean of what is left at its spikes once all units' spikes are taken away."""
    n_units, length = templates.shape[:2]
    order = np.argsort(starts, kind="stable")
    starts, units = starts[order], units[order]
    reach = [_reach(template, noise) for template in templates]
    limit = (_RESIDUAL_CLIP * noise).astype(np.float32)
    known = templates.astype(np.float32)
    change, count = np.zeros_like(templates), np.zeros(n_units)
    for first, signal, k0, k1 in _windows(stream, starts, length):
        residual = signal.copy()  # the stream's own is told again at the next piece's beginning
        for k in range(*np.searchsorted(starts, (first - length + 1, first + len(signal)))):
            near, at = reach[units[k]], starts[k] - first
            begin, end = max(at, 0), min(at + length, len(signal))
            residual[begin:end, near] -= known[units[k], begin - at : end - at, near]
        np.clip(residual, -limit, limit, out=residual)
        for k in range(k0, k1):
            near, at = reach[units[k]], starts[k] - first
            change[units[k], :, near] += residual[at : at + length, near]
            count[units[k]] += 1.0
    return templates + change * (step / np.maximum(count, 1.0))[:, np.newaxis, np.newaxis]


def _reach(template: NDArray[np.float64], noise: NDArray[np.float64]) -> slice:
    """The channels from the first to the last that a template may reach: more than are kept, and side by side."""
    size = np.divide(np.abs(template).max(axis=0), noise, out=np.zeros(len(noise)), where=noise > 0.0)
    found = np.flatnonzero(size > max(0.25, 0.02 * size.max()))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _support(
    templates: NDArray[np.float64], n_spikes: NDArray[np.int64], n_before: int, positions_um: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Channels of each template: near its trough, and with more energy than chance and than a small share of it."""
    n_units, length, _ = templates.shape
    energy = (templates**2).sum(axis=1)
    best = templates[:, n_before].argmin(axis=1)
    distance = np.linalg.norm(positions_um[best][:, np.newaxis] - positions_um, axis=2)
    by_chance = 2.0 * length / np.maximum(n_spikes, 1)[:, np.newaxis]
    largest = energy.max(axis=1, keepdims=True, initial=0.0)
    support: NDArray[np.bool_] = (distance <= REACH_UM) & (energy > by_chance) & (energy > _ENERGY_SHARE * largest)
    support[np.arange(n_units), best] = n_spikes > 0
    return support


def _describe(
    unit: str,
    template_uv: NDArray[np.float64],
    support: NDArray[np.bool_],
    channel_names: Sequence[str],
    positions_um: NDArray[np.float64],
    n_spikes: int,
    duration_s: float,
    quality: dict[str, float | None],
) -> UnitInfo:
    size = np.ptp(template_uv, axis=0) ** 2 * support
    best = int((template_uv * support).min(axis=0).argmin())
    place = size @ positions_um / size.sum() if size.sum() > 0.0 else positions_um[best]
    return UnitInfo(
        id=unit,
        channel=channel_names[best],
        position_um=(float(place[0]), float(place[1])),
        n_spikes=n_spikes,
        rate_hz=n_spikes / duration_s,
        peak_uv=float((template_uv * support).min()),
        quality=quality,
    )


def _check(
    n_samples: int,
    spike_samples: NDArray[np.integer[Any]],
    spike_units: NDArray[np.integer[Any]],
    n_units: int,
    positions_um: NDArray[np.float64],
    n_channels: int,
    sampling_frequency: float,
) -> None:
    if n_samples < sampling_frequency:
        raise ConfigError(
            f"a recording of {n_samples / sampling_frequency:.3g} s; at least 1 s expected, to measure its noise"
        )
    if positions_um.shape != (n_channels, 2):
        raise ConfigError(
            f"positions of shape {positions_um.shape} for {n_channels} channels; a probe of them expected"
        )
    if spike_samples.shape != spike_units.shape or spike_samples.ndim != 1:
        raise ConfigError(
            f"{spike_samples.shape} spike times with {spike_units.shape} units; one unit a spike expected"
        )
    if spike_units.size and not (spike_units.min() >= 0 and spike_units.max() < n_units):
        raise ConfigError(f"spikes of units {spike_units.min()} to {spike_units.max()}; 0 to {n_units - 1} expected")


def _ignore(_: float) -> None:
    """Progress that nobody asked for."""
