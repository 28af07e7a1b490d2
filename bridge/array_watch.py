"""Looks at the channels of the source for the topic `array`: rates, noise, and a few recent spikes.

Runs in the collector's thread, some times a second. Nothing of the loop waits for it or goes by it: counts and noise
are read while the front end writes them, each an aligned word of its own, and samples are read from the ring of the
recorder, in which what was taken stays until it is written over. Without a recorder nobody takes samples: then they
are given back here, unread.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge import loop_state as rt
from neuromod.bridge import native, wire
from neuromod.bridge.assembly import Assembly
from neuromod.bridge.pipeline import COUNTERS
from neuromod.bridge.recorder import Recorder
from neuromod.bridge.ring import SampleRing, available, refused, release
from neuromod.engine.errors import ConfigError
from neuromod.sorting.front_end import FrontEnd, band_pass

CHANNELS_PER_MESSAGE = 512
SNIPPETS_PER_MESSAGE = 16

_WINDOW_S = 0.1  # in which spikes are looked for
_WINDOW_BYTES = 4 << 20  # of many channels less, so that looking takes a millisecond or two
_SETTLE_S = 0.01  # until the filter has forgotten where it began
_BEFORE_S, _AFTER_S = 0.0007, 0.0013
_CANDIDATES = 32
_LONGEST_MESSAGE = rt.FRAME_BYTES - len(wire.TOPIC_ARRAY)
_HEAD = 0  # where a ring counts what was put into it
_BLOCKS = COUNTERS.index("blocks")

Floats = NDArray[np.float64]


def window_samples(assembly: Assembly) -> int:
    """Return how many of the newest samples are looked at; 0 where the source brings none that could have spikes."""
    info = assembly.info
    if info.kind != "signal" or _band(assembly.front_end) is None:
        return 0
    return int(min(_WINDOW_S * info.sampling_frequency, _WINDOW_BYTES / (4 * info.n_channels)))


def ring_capacity(assembly: Assembly, chunk: int) -> int:
    """Return the length of a ring in which the newest samples stay until they were read: a power of two."""
    window = window_samples(assembly)
    return 1 << math.ceil(math.log2(4 * window + 2 * chunk)) if window else 2


class ArrayWatch:
    """Makes the messages of topic `array`.

    Parameters
    ----------
    assembly : Assembly
        The parts of the loop.
    loop : Loop
        Its state.
    raw : SampleRing
        In which the loop leaves samples, where it does.
    recorder : Recorder, optional
        Takes the samples out of `raw`, where it records them.
    """

    def __init__(self, assembly: Assembly, loop: rt.Loop, raw: SampleRing, recorder: Recorder | None = None) -> None:
        self._assembly, self._loop, self._raw, self._recorder = assembly, loop, raw, recorder
        front_end, info = assembly.front_end, assembly.info
        self._n = info.n_channels
        self._counts = "units" if front_end.unit_ids else ""
        if info.kind == "signal" and front_end.crossings is not None:
            self._counts = "crossings"
        known = {unit for unit in info.units if unit}
        self._unit = known.pop() if len(known) == 1 else ""
        bundle = front_end.bundle
        places = bundle.positions_um if bundle is not None else np.zeros((0, 2))
        self._positions_um = places.astype(np.float32)
        self._by_units = np.zeros(self._n)
        self._last_counts = self._count()
        self._last_blocks = int(assembly.pipeline.counters[_BLOCKS])
        self._seq = self._next_channel = self._refused = 0
        window = window_samples(assembly) if loop.block[0]["words"][rt.W_KEEP_SAMPLES] else 0
        # the loop may be writing so many samples beyond those that it has counted
        fits = raw.stamps.shape[0] - loop.stamps.shape[0]
        self._window = window if window <= fits else 0
        self._band = _band(front_end) if self._window else None
        self._is_released_here = bool(loop.block[0]["words"][rt.W_KEEP_SAMPLES])

    def add_units(self, units: NDArray[Any]) -> None:
        """Count spikes of sorted units, an array of UNIT."""
        channels = self._assembly.front_end.state.unit_channel[units["unit"]]
        self._by_units += np.bincount(channels, minlength=self._n)

    def make_room(self) -> None:
        """Give samples back that nobody records, so that new ones find room; to be called some times in 0.1 s."""
        if self._is_released_here and (self._recorder is None or not self._recorder.records_samples):
            release(self._raw.ends, available(self._raw.ends))

    def messages(self, t: float, tick: int) -> Iterator[bytes]:
        """Yield the messages of this moment, packed.

        Parameters
        ----------
        t : float
            Local clock, in seconds.
        tick : int
            The newest.
        """
        rates_hz, counted = self._rates_hz()
        noise = self._noise().astype(np.float32)
        excluded = self._excluded()
        snippets = list(self._snippets(counted, set(excluded)))
        for first in range(0, self._n, CHANNELS_PER_MESSAGE):
            here = range(first, min(first + CHANNELS_PER_MESSAGE, self._n))
            part = slice(first, here.stop)
            mine = [snippet for snippet in snippets if snippet.channel in here]
            while True:
                message = wire.ArrayMessage(
                    seq=self._seq,
                    tick=tick,
                    t=t,
                    n=self._n,
                    first=first,
                    counts=self._counts,
                    unit=self._unit,
                    rates_hz=rates_hz[part],
                    noise=noise[part],
                    positions_um=self._positions_um[part],
                    excluded=tuple(channel for channel in excluded if channel in here),
                    sampling_frequency=self._assembly.info.sampling_frequency,
                    snippets=tuple(mine),
                )
                payload = wire.pack_array(message)
                if len(payload) <= _LONGEST_MESSAGE or not mine:
                    break
                mine = mine[: len(mine) // 2]  # of a very fast stream they are long
            self._seq += 1
            yield payload

    # -- numbers of the front end -------------------------------------------------------------------------------------

    def _count(self) -> Floats:
        crossings = self._assembly.front_end.crossings if self._counts == "crossings" else None
        return self._by_units.copy() if crossings is None else crossings

    def _rates_hz(self) -> tuple[NDArray[np.float32], Floats]:
        """Return counts per second since the last time, and the counts."""
        blocks, counts = int(self._assembly.pipeline.counters[_BLOCKS]), self._count()
        span_s = (blocks - self._last_blocks) * self._assembly.block_ms / 1000.0
        counted = counts - self._last_counts
        self._last_blocks, self._last_counts = blocks, counts
        # nothing is known of a silent source, nor before there are thresholds
        if not self._counts or span_s <= 0.0 or not self._assembly.front_end.is_ready:
            return np.full(self._n, np.nan, np.float32), counted
        # a restored checkpoint sets the number of blocks, but no count
        return np.maximum(counted / span_s, 0.0).astype(np.float32), counted

    def _noise(self) -> Floats:
        front_end = self._assembly.front_end
        if front_end.bundle is not None:
            found = front_end.bundle.noise * front_end.state.sorter.noise
        else:
            measured = front_end.noise
            found = measured.get("crossings", next(iter(measured.values()), np.zeros(self._n)))
        return np.where(found > 0.0, found, np.nan)

    def _excluded(self) -> list[int]:
        front_end = self._assembly.front_end
        out = set(front_end.excluded)
        masked = front_end.describe_units().get("masked", {})
        assert isinstance(masked, dict)
        out.update(masked)
        return [channel for channel, name in enumerate(front_end.channel_names) if name in out]

    # -- samples ------------------------------------------------------------------------------------------------------

    def _snippets(self, counted: Floats, excluded: set[int]) -> Iterator[wire.Snippet]:
        """Yield recent spikes of a few channels, others each time."""
        front_end = self._assembly.front_end
        if self._band is None or not (front_end.is_ready and (found := self._newest()) is not None):
            return
        import scipy.signal  # the front end has it already

        samples, stamps = found
        sos, has_reference = self._band
        fs = self._assembly.info.sampling_frequency
        turned = np.roll(np.arange(self._n), -self._next_channel)
        is_candidate = np.array([channel not in excluded for channel in turned])
        if self._counts:
            is_candidate &= counted[turned] > 0
        channels = turned[is_candidate][:_CANDIDATES]
        if not len(channels):
            return
        scale = self._assembly.pipeline.scale
        signal = samples[:, channels] * scale[channels]
        if has_reference:
            weights = np.where([channel in excluded for channel in range(self._n)], 0.0, scale).astype(np.float32)
            signal -= (samples @ (weights / max(1, int(np.count_nonzero(weights)))))[:, None]
        filtered = scipy.signal.sosfilt(sos, signal - signal[0], axis=0)
        threshold = self._thresholds()[channels]
        below = filtered < threshold
        crossed = below[1:] & ~below[:-1]
        before, after = math.ceil(_BEFORE_S * fs), math.ceil(_AFTER_S * fs)
        first = max(before, int(_SETTLE_S * fs))
        numbers = self._loop.block[0]["numbers"]
        n = 0
        for k, channel in enumerate(channels):
            where = np.flatnonzero(crossed[first : len(crossed) - after, k])
            if not len(where):
                continue
            at = first + int(where[-1]) + 1
            t_sample = float(numbers[rt.OFFSET] + numbers[rt.RATE] * stamps[at])
            data = filtered[at - before : at + after, k].astype(np.float32)
            self._next_channel = (int(channel) + 1) % self._n
            yield wire.Snippet(int(channel), t_sample, before, data)
            n += 1
            if n == SNIPPETS_PER_MESSAGE:
                return
        self._next_channel = (int(channels[-1]) + 1) % self._n

    def _thresholds(self) -> Floats:
        """Return a threshold for each channel; -inf where there is none."""
        front_end = self._assembly.front_end
        if self._counts == "crossings":
            return front_end.threshold
        multiple = front_end.bundle.info.detection_noise if front_end.bundle is not None else -4.5
        noise = self._noise()
        return np.where(np.isfinite(noise), multiple * noise, -np.inf)

    def _newest(self) -> tuple[NDArray[np.float32], Floats] | None:
        """Return a copy of the newest samples and their stamps; None where there are too few, or a gap is near."""
        ring = self._raw
        capacity = ring.stamps.shape[0]
        head = native.get_word(ring.ends, _HEAD)
        start = head - self._window
        lost = int(refused(ring.ends))
        is_whole, self._refused = lost == self._refused, lost
        if start < 0 or not is_whole:
            return None
        at = start % capacity
        split = min(self._window, capacity - at)
        samples = np.concatenate([ring.samples[at : at + split], ring.samples[: self._window - split]])
        stamps = np.concatenate([ring.stamps[at : at + split], ring.stamps[: self._window - split]])
        # what was being written meanwhile may have been written over the oldest of them
        if native.get_word(ring.ends, _HEAD) + self._loop.stamps.shape[0] - start > capacity:
            return None
        if not math.isfinite(samples.sum(dtype=np.float64)):
            np.nan_to_num(samples, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return samples, stamps


def _band(front_end: FrontEnd) -> tuple[Floats, bool] | None:
    """Return the filter through which spikes are seen, and whether a common reference is taken off."""
    if front_end.bundle is not None:
        chain = front_end.bundle.info.chain
        low_hz, high_hz, order, has_reference = chain.low_hz, chain.high_hz, chain.order, chain.reference != "none"
    else:
        band, reference = front_end.config.crossings, front_end.config.reference
        low_hz, high_hz, order = band.low_hz, band.high_hz, band.order
        n_included = front_end.n_channels - len(front_end.excluded)
        has_reference = reference != "none" and (reference != "auto" or n_included >= 16)
    try:
        return band_pass(low_hz, high_hz, order, front_end.sampling_frequency, "crossings"), has_reference
    except ConfigError:
        return None
