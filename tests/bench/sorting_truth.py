"""Recordings whose spikes are known: what sorting is measured against.

Generated block by block from a seed, so that none need be held in memory: noise that channels share in part and that
is not white in time, a slow field common to all, many units too small to be sorted, and scored units with refractory
periods, a rate that moves for all together (which brings overlaps), amplitudes that vary and troughs between samples.
Waveforms are generated, or real shapes taken from a sorted recording of a Utah array; spike trains are drawn, or real.

A *scenario* says what; `Truth` is one, drawn. The first part is for templates, the last is scored.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import neo
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter, resample_poly
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import NumpySorting
from spikeinterface.core.generate import generate_single_fake_waveform

FREQUENCY = 30_000.0
BLOCK = 30_000
FINE = 8
"""Positions between samples at which a trough may lie."""
N_BEFORE, N_SAMPLES = 30, 120
UV_PER_BIT = 0.195
_MOST_COINCIDENT = 0.2

Floats = NDArray[np.float32]
Slow = Literal["none", "fade", "drift", "step"]


class MissingRecordingError(RuntimeError):
    """A real recording that shapes or trains come from is not there."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is drawn."""

    probe: Literal["utah", "neuropixels"]
    seed: int
    n_channels: int = 96
    n_units: int = 60
    n_background: int = 200
    train_s: float = 20.0
    test_s: float = 20.0
    slow: Slow = "none"
    """`fade`: amplitudes fall by 30 %; `drift`: the probe moves by 30 um; `step`: by 20 um at once, half way through
    what is scored. All but `step` begin where training ends and go on to the end."""
    hybrid: bool = False
    """Shapes and spike trains are real."""

    @property
    def n_train(self) -> int:
        """Samples that templates may be estimated from."""
        return round(self.train_s * FREQUENCY)

    @property
    def n_samples(self) -> int:
        """All samples, in whole blocks."""
        return -(-round((self.train_s + self.test_s) * FREQUENCY) // BLOCK) * BLOCK

    @property
    def name(self) -> str:
        """For file names: the same for the same recording."""
        words = [self.probe, f"{self.n_channels}ch", f"{self.n_units}u", f"{self.n_background}b"]
        words += [f"{self.train_s:g}s", f"{self.test_s:g}s", self.slow, "hybrid" if self.hybrid else "generated"]
        return "-".join([*words, f"seed{self.seed}"])


def utah(seed: int, **others: object) -> Scenario:
    """A Utah array of 96 channels."""
    return dataclasses.replace(Scenario("utah", seed), **others)  # type: ignore[arg-type]


def neuropixels(seed: int, **others: object) -> Scenario:
    """All 384 channels of a Neuropixels 1 probe."""
    base = Scenario("neuropixels", seed, n_channels=384, n_units=200, n_background=400, train_s=15.0, test_s=15.0)
    return dataclasses.replace(base, **others)  # type: ignore[arg-type]


def positions(probe: str, n_channels: int) -> NDArray[np.float64]:
    """Where the channels are, in um."""
    if probe == "utah":
        grid = [(x, y) for y in range(10) for x in range(10) if not (x in (0, 9) and y in (0, 9))]
        return np.array(grid[:n_channels], dtype=np.float64) * 400.0
    row, side = np.divmod(np.arange(n_channels), 2)
    return np.column_stack([np.where(row % 2 == 0, 43.0, 59.0) - 32.0 * side, 20.0 * row]).astype(np.float64)


class Source(NamedTuple):
    """A unit as the probe sees it."""

    first: int
    """Of the channels that it reaches; they follow one another."""
    waveforms: Floats
    """(n_displacements, FINE, N_SAMPLES, n_reached), in uV."""
    peak_uv: float


class Train(NamedTuple):
    """Spikes of all units, in order."""

    times: NDArray[np.float64]  # samples, with their fraction
    units: NDArray[np.int64]
    factors: NDArray[np.float64]


class Truth:
    """One recording."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.positions_um = positions(scenario.probe, scenario.n_channels)
        rng = np.random.default_rng([scenario.seed, 1])
        self.displacements_um = np.arange(_displacement_range(scenario.slow) + 1, dtype=np.float64)
        shapes = _real_shapes() if scenario.hybrid else None
        self.sources = _draw_sources(rng, self, scenario.n_units, scored=True, shapes=shapes)
        self.sources += _draw_sources(rng, self, scenario.n_background, scored=False, shapes=shapes)
        self._train = _draw_train(np.random.default_rng([scenario.seed, 2]), scenario)
        scored = self._train.units < scenario.n_units
        self.samples = np.round(self._train.times[scored]).astype(np.int64)
        self.units = self._train.units[scored]

    @property
    def peaks_uv(self) -> NDArray[np.float64]:
        """Depth of the trough of each scored unit where it is deepest, before any filter."""
        return np.array([source.peak_uv for source in self.sources[: self.scenario.n_units]])

    def part(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples and units of the scored spikes in [begin, end)."""
        inside = (self.samples >= begin) & (self.samples < end)
        return self.samples[inside], self.units[inside]

    def displacement_um(self, sample: float) -> float:
        """How far the probe has moved."""
        begin, end = self.scenario.n_train, self.scenario.n_samples
        if self.scenario.slow == "drift":
            return 30.0 * float(np.clip((sample - begin) / (end - begin), 0.0, 1.0))
        return 20.0 if self.scenario.slow == "step" and sample >= (begin + end) // 2 else 0.0

    def gain(self, sample: float) -> float:
        """What amplitudes are multiplied by."""
        begin, end = self.scenario.n_train, self.scenario.n_samples
        return 1.0 - 0.3 * float(np.clip((sample - begin) / (end - begin), 0.0, 1.0)) if self._fades else 1.0

    @property
    def _fades(self) -> bool:
        return self.scenario.slow == "fade"

    def blocks(self) -> Iterator[Floats]:
        """The signal in uV, (BLOCK, n_channels) each, always the same."""
        noise = _Noise(np.random.default_rng([self.scenario.seed, 3]), self.scenario.probe, self.positions_um)
        train = self._train
        starts = np.floor(train.times).astype(np.int64) - N_BEFORE
        signal = np.zeros((BLOCK + N_SAMPLES, self.scenario.n_channels), np.float32)
        for begin in range(0, self.scenario.n_samples, BLOCK):
            signal[:BLOCK] += noise.draw(BLOCK)
            for k in range(*np.searchsorted(starts, (begin, begin + BLOCK))):
                source = self.sources[train.units[k]]
                moved = round(self.displacement_um(train.times[k]))
                waveform = source.waveforms[moved, int((train.times[k] % 1.0) * FINE)]
                at, factor = starts[k] - begin, train.factors[k] * self.gain(train.times[k])
                reached = slice(source.first, source.first + waveform.shape[1])
                signal[at : at + N_SAMPLES, reached] += np.float32(factor) * waveform
            yield signal[:BLOCK].copy()
            signal[:N_SAMPLES] = signal[BLOCK:]
            signal[N_SAMPLES:] = 0.0

    def cached(self, folder: Path) -> NDArray[np.int16]:
        """The whole signal as a recorder keeps it, in steps of UV_PER_BIT; drawn where the folder has it not yet."""
        path = folder / f"{self.scenario.name}.npy"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            shape = (self.scenario.n_samples, self.scenario.n_channels)
            whole = np.lib.format.open_memmap(partial, mode="w+", dtype=np.int16, shape=shape)
            for i, block in enumerate(self.blocks()):
                whole[i * BLOCK : (i + 1) * BLOCK] = np.clip(np.round(block / UV_PER_BIT), -32768, 32767)
            whole.flush()
            partial.replace(path)
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


class _Noise:
    """What is there without spikes: white, coloured in time, shared with neighbours, and a slow field common to all."""

    LEVEL_UV, FIELD_UV = 8.0, 3.0

    def __init__(self, rng: np.random.Generator, probe: str, positions_um: NDArray[np.float64]) -> None:
        self._rng = rng
        distance = np.linalg.norm(positions_um[:, np.newaxis] - positions_um, axis=2)
        reach = 400.0 if probe == "utah" else 50.0
        covariance = 0.6 * np.eye(len(distance)) + 0.4 * np.exp(-distance / reach)
        self._mix = np.linalg.cholesky(covariance).T.astype(np.float32)
        self._gain = rng.uniform(0.8, 1.25, len(distance)).astype(np.float32) * np.float32(self.LEVEL_UV)
        self._colour = np.zeros((1, len(distance)), np.float32)
        self._slow = np.zeros(1)

    def draw(self, n: int) -> Floats:
        """The next n samples, (n, n_channels)."""
        white = self._rng.standard_normal((n, len(self._gain)), dtype=np.float32) @ self._mix
        # half of the power has a pole at 0.7, some 1.7 kHz
        coloured, self._colour = lfilter(
            np.array([0.714], np.float32), np.array([1.0, -0.7], np.float32), white, axis=0, zi=self._colour
        )
        slow, self._slow = lfilter([1.0], [1.0, -0.999], self._rng.standard_normal(n), zi=self._slow)
        field = (slow + self._rng.standard_normal(n)) * self.FIELD_UV
        drawn: Floats = ((white + coloured) * (self._gain * np.float32(0.5))) + field.astype(np.float32)[:, np.newaxis]
        return drawn


class Score(NamedTuple):
    """How well each true unit was found, by the unit that matches it best; a unit is matched once."""

    accuracy: NDArray[np.float64]  # (n_units,) hits over hits, misses and false positives
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def score(
    truth: tuple[NDArray[np.int64], NDArray[np.int64]],
    found: tuple[NDArray[np.int64], NDArray[np.int64]],
    n_units: int,
    *,
    n_found: int | None = None,
    tolerance_ms: float = 0.4,
) -> Score:
    """Compare spikes, both as (samples, units), with spikeinterface.comparison; as many units found as there are."""
    ids, others = np.arange(n_units), np.arange(n_found if n_found is not None else n_units)
    true, tested = (
        NumpySorting.from_samples_and_labels([samples], [units], FREQUENCY, unit_ids=names)
        for (samples, units), names in ((truth, ids), (found, others))
    )
    comparison = compare_sorter_to_ground_truth(true, tested, exhaustive_gt=True, delta_time=tolerance_ms)
    table = comparison.get_performance().loc[ids]
    return Score(*(table[name].to_numpy(dtype=np.float64) for name in Score._fields))


def _displacement_range(slow: Slow) -> int:
    return {"none": 0, "fade": 0, "drift": 30, "step": 20}[slow]


def _draw_sources(
    rng: np.random.Generator, truth: Truth, n: int, *, scored: bool, shapes: list[NDArray[np.float64]] | None
) -> list[Source]:
    """Units at random places, with troughs of random depth."""
    sites = truth.positions_um
    is_utah = truth.scenario.probe == "utah"
    largest = 300.0 if scored else 28.0
    smallest = 55.0 if scored else 10.0
    # units share electrodes: two in three of an array have any that can be sorted
    near = rng.permutation(len(sites))[: -(-2 * len(sites) // 3)] if is_utah and scored else np.arange(len(sites))
    found = []
    for _ in range(n):
        peak_uv = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        if is_utah:
            place = sites[rng.choice(near)] + rng.normal(0.0, 15.0, 2)
        else:
            margin = np.array((5.0, 0.0))
            place = rng.uniform(sites.min(axis=0) - margin, sites.max(axis=0) + margin)
        depth, decay, speed = rng.uniform(8.0, 40.0), rng.uniform(15.0, 40.0), rng.uniform(250.0, 350.0)
        shrink, angle = rng.uniform(0.5, 1.0), rng.uniform(0.0, 2.0 * np.pi)
        shape = _draw_shape(rng) if shapes is None else shapes[int(rng.integers(len(shapes)))]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # the probe goes down by d: units come nearer to higher channels
        away = sites - (place + np.outer(truth.displacements_um, (0.0, 1.0)))[:, np.newaxis]
        across = away @ turn.T * (1.0, shrink)
        distance = np.sqrt((across**2).sum(axis=2) + depth**2)
        gain = np.exp(-distance / decay)
        gain *= peak_uv / gain[0].max()
        reached = np.flatnonzero((gain > 0.5).any(axis=0))
        reached = np.arange(reached[0], reached[-1] + 1)
        if is_utah:  # channels in between are 400 um away: not worth their time
            reached = np.array([int(gain[0].argmax())])
        delay = np.round((distance - distance.min(axis=1, keepdims=True)) / speed * FREQUENCY * FINE / 1e3)
        found.append(_source(shape, reached, gain[:, reached], delay[:, reached].astype(np.int64), peak_uv))
    return found


def _source(
    shape: NDArray[np.float64],
    reached: NDArray[np.int64],
    gain: NDArray[np.float64],
    delay: NDArray[np.int64],
    peak_uv: float,
) -> Source:
    """Sample a shape at every displacement, position between samples and channel."""
    # position `fine` of FINE delays the shape by that much, and the sample `i` lies at i * FINE of it
    padded = np.concatenate([np.zeros(FINE * N_SAMPLES), shape])
    at = FINE * N_SAMPLES + FINE * np.arange(N_SAMPLES)
    index = at[:, np.newaxis] - np.arange(FINE)[:, np.newaxis, np.newaxis] - delay[:, np.newaxis, np.newaxis]
    return Source(int(reached[0]), (padded[index] * gain[:, np.newaxis, np.newaxis]).astype(np.float32), peak_uv)


def _draw_shape(rng: np.random.Generator) -> NDArray[np.float64]:
    """A generated waveform, its trough of depth 1 at N_BEFORE * FINE, in steps of 1 / FINE samples."""
    ms = 1e3 / FREQUENCY
    shape: NDArray[np.float64] = generate_single_fake_waveform(
        sampling_frequency=FREQUENCY * FINE,
        ms_before=N_BEFORE * ms,
        ms_after=(N_SAMPLES - N_BEFORE) * ms,
        positive_amplitude=rng.uniform(0.1, 0.35),
        depolarization_ms=rng.uniform(0.09, 0.16),
        repolarization_ms=rng.uniform(0.3, 0.8),
        recovery_ms=rng.uniform(0.8, 1.5),
        smooth_ms=rng.uniform(0.03, 0.08),
        dtype="float64",
    )
    return shape


def recordings_folder() -> Path:
    """Where the real recordings are.

    Raises
    ------
    MissingRecordingError
        NEUROMOD_RECORDINGS names no folder.
    """
    folder = Path(os.environ.get("NEUROMOD_RECORDINGS", ""))
    if not os.environ.get("NEUROMOD_RECORDINGS") or not folder.is_dir():
        raise MissingRecordingError("no real recordings: set NEUROMOD_RECORDINGS to the folder that holds them")
    return folder


def _real_shapes() -> list[NDArray[np.float64]]:
    """Mean waveforms of the sorted units of a Utah array, as `_draw_shape` gives them."""
    stem = recordings_folder() / "utah-reach-to-grasp-l101210" / "l101210-001-02"
    if not stem.with_suffix(".nev").is_file():
        raise MissingRecordingError(f"no {stem}.nev")
    reader = neo.rawio.BlackrockRawIO(str(stem))
    reader.parse_header()
    shapes = []
    for i, name in enumerate(reader.header["spike_channels"]["name"]):
        sorted_as = int(str(name).partition("#")[2])
        waveforms = reader.get_spike_raw_waveforms(spike_channel_index=i)[:, 0]
        if sorted_as not in _UNSORTED and len(waveforms) >= _ENOUGH:
            shapes.append(_as_drawn(np.median(waveforms, axis=0)))
    return shapes


_UNSORTED = (0, 255)
_ENOUGH = 30


def _as_drawn(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """A mean waveform with its ends taken to 0, in finer steps, moved and scaled as `_draw_shape` has it."""
    taper = np.ones(len(mean))
    taper[:5], taper[-12:] = np.linspace(0.0, 1.0, 5), np.linspace(1.0, 0.0, 12)
    fine = resample_poly(np.pad(mean * taper, 8), FINE, 1)
    trough = int(fine.argmin())
    shape = np.zeros(FINE * N_SAMPLES)
    begin = FINE * N_BEFORE - trough
    shape[begin : begin + len(fine)] = fine / -fine[trough]
    return shape


def _draw_train(rng: np.random.Generator, scenario: Scenario) -> Train:
    """Spikes of scored units and of background ones, whose units come after."""
    duration_s = scenario.n_samples / FREQUENCY
    # one slow rate moves all: a lognormal walk with a time constant of 100 ms
    n_bins = int(duration_s * 100.0) + 1
    walk = lfilter([np.sqrt(1.0 - 0.9**2)], [1.0, -0.9], rng.standard_normal(n_bins))
    common = np.exp(0.6 * walk - 0.18)
    rates = np.clip(np.exp(rng.normal(np.log(7.0), 0.6, scenario.n_units)), 2.0, 30.0)
    trains = [_renewal(rng, rate, common, duration_s) for rate in rates]
    if scenario.hybrid:
        trains = _real_trains(rng, scenario)
    trains += [_renewal(rng, rng.uniform(3.0, 12.0), common, duration_s) for _ in range(scenario.n_background)]
    # the last spikes of the recording would be cut off
    trains = [t[(t > N_SAMPLES) & (t < scenario.n_samples - N_SAMPLES)] for t in trains]
    times = np.concatenate(trains)
    units = np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    factors = np.clip(rng.normal(1.0, 0.08, len(times)), 0.7, 1.3)
    order = np.argsort(times, kind="stable")
    return Train(times[order], units[order], factors[order])


def _renewal(
    rng: np.random.Generator, rate_hz: float, common: NDArray[np.float64], duration_s: float
) -> NDArray[np.float64]:
    """Spike times in samples: intervals of a gamma distribution of shape 2, stretched by the common rate."""
    passed = np.concatenate([[0.0], np.cumsum(common)]) / 100.0
    n = int(rate_hz * passed[-1] * 1.5) + 50
    own = np.cumsum(rng.gamma(2.0, 0.5 / rate_hz, n))
    times = np.interp(own[own < passed[-1]], passed, np.arange(len(passed)) / 100.0)
    kept = times[:1].tolist()
    for t in times[1:]:
        if t - kept[-1] > _REFRACTORY_S:
            kept.append(t)
    return np.array([t for t in kept if t < duration_s]) * FREQUENCY


_REFRACTORY_S = 0.0025


def _coincident(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Share of the spikes of the smaller train that the other has as well, within 0.3 ms."""
    near = round(0.3e-3 * FREQUENCY)
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    found = np.searchsorted(large, small + near, side="right") > np.searchsorted(large, small - near)
    return float(found.mean()) if len(small) else 0.0


def _real_trains(rng: np.random.Generator, scenario: Scenario) -> list[NDArray[np.float64]]:
    """Trains of the busiest units of a macaque sorted with Kilosort 4, from a random moment on, in random order.

    Units that pause through either part can be neither learnt nor scored, and are passed over; so are those whose
    spikes another had at the same moments: a sorter that counts one neuron twice makes such trains. Laid on two
    electrodes, units that never fire apart have one shape, to whoever estimates shapes from spike times.
    """
    folder = recordings_folder() / "neuropixels-nhp-units"
    if not folder.is_dir():
        raise MissingRecordingError(f"no {folder}")
    times, clusters = np.load(folder / "spike_times.npy").astype(np.int64), np.load(folder / "spike_clusters.npy")
    begin = rng.integers(0, times.max() - scenario.n_samples)
    inside = (times >= begin) & (times < begin + scenario.n_samples)
    times, clusters = times[inside] - begin, clusters[inside].astype(np.int64)
    learnt = times < scenario.n_train
    n_clusters = clusters.max() + 1
    counts = [np.bincount(clusters[part], minlength=n_clusters) for part in (learnt, ~learnt)]
    busiest: list[int] = []
    for cluster in np.argsort(-np.minimum(*counts), kind="stable").tolist():
        train = np.sort(times[clusters == cluster])
        if all(_coincident(train, np.sort(times[clusters == other])) < _MOST_COINCIDENT for other in busiest):
            busiest.append(cluster)
        if len(busiest) == scenario.n_units:
            break
    trains = []
    for cluster in rng.permutation(busiest):
        train = np.sort(times[clusters == cluster]) + rng.uniform(0.0, 1.0, np.count_nonzero(clusters == cluster))
        trains.append(train[np.diff(train, prepend=-np.inf) > _REFRACTORY_S * FREQUENCY])
    return trains
