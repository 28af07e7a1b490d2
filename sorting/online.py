"""The online sorter: from samples to spikes of sorted units, one frame of half a millisecond at a time.

A sample goes through the causal chain that the templates were estimated through (`chain.py`); each frame that becomes
whole is whitened, channels that fell silent or went wild are masked, and an engine recognises the spikes whose
templates now lie within the window: `sparse.py` for arrays, `dense.py` for probes.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit, jit_apart
from neuromod.sorting import chain as signal
from neuromod.sorting import dense, motion, sparse
from neuromod.sorting.bundle import Bundle, ChainConfig
from neuromod.sorting.chain import END, TAKEN, ChainState, make_chain, refresh, reset_chain, take
from neuromod.sorting.dense import DenseState, make_dense, match_dense, reset_dense
from neuromod.sorting.events import UnitEvents, make_events
from neuromod.sorting.sparse import SparseState, make_sparse, match_sparse, reset_sparse

EngineName = Literal["sparse", "dense"]

# Entries of SorterState.settings.
_ENGINE, _CHECK_FRAMES, _FRAME, _TRACKING = range(4)
_SPARSE, _DENSE = range(2)

# Entries of SorterState.counters.
_FRAMES = 0

# Why a channel is masked.
FINE, DEAD, NOISY, STUCK = range(4)
REASONS = ("", "dead", "noisy", "stuck")

_CHECK_S = 1.0  # channels are judged so often, over the time since the last time
_DEAD_BELOW = 0.2  # mean magnitude of the whitened signal against that of noise alone
_NOISY_ABOVE = 4.0
_LONGEST_WAIT = 6  # a channel that fails its trials is tried after 2, 4, ... and at last each 64 checks
_NOISE_RATE, _LEAST_NOISE, _MOST_NOISE = 0.05, 0.7, 2.0  # how noise is followed: share of the log, and bounds
_MEDIAN = 0.6744897501960817  # of |x| for Gaussian x of unit standard deviation
_SLOPE = 0.42863  # how the share of |x| beyond the median changes with the log of the deviation
_CLIP = 4.0  # a spike counts for no more than this
_MEAN_OF_UNIT_NOISE = 0.7978845608028654  # mean of |x| for Gaussian x of unit standard deviation


class SorterState(NamedTuple):
    """Everything the kernels read and write."""

    settings: NDArray[np.int64]
    counters: NDArray[np.int64]
    chain: ChainState
    sparse: SparseState
    dense: DenseState
    events: UnitEvents
    magnitude: NDArray[np.float32]  # (n_channels, frame) sum of |z| since channels were last judged
    beyond: NDArray[np.float32]  # (n_channels, frame) samples since then whose |z| was above the median of the noise
    noise: NDArray[np.float64]  # (n_channels,) standard deviation of the whitened noise; 1 when it was sorted
    threshold: NDArray[np.float32]  # (n_channels,) of detection
    moved: NDArray[np.int64]  # (n_channels,) whether the raw signal has moved since then
    last_x: NDArray[np.float64]  # (n_padded,) the sample of a frame before
    reason: NDArray[np.int64]  # (n_channels,) why it is masked
    failed: NDArray[np.int64]  # (n_channels,) trials since it was well
    wait: NDArray[np.int64]  # (n_channels,) checks until the next trial
    detection: NDArray[np.float64]  # (1,) threshold in multiples of the noise


@jit
def take_sample(sorter: SorterState, x: NDArray[np.float64]) -> None:
    """Take one sample of all channels, of shape (n_padded,), in units of the stream; finite."""
    if take(sorter.chain, x):
        for c in range(sorter.moved.shape[0]):
            sorter.moved[c] |= x[c] != sorter.last_x[c]
            sorter.last_x[c] = x[c]
        _recognise(sorter)


@jit
def set_clean(sorter: SorterState, clean: NDArray[np.float64]) -> None:
    """Say which channels are blanked, or left out of the session: 0 in `clean`, of shape (n_padded,)."""
    signal.set_clean(sorter.chain, clean)


@jit_apart
def _recognise(sorter: SorterState) -> None:
    """Do what is due with a whole frame."""
    chain = sorter.chain
    window = chain.window
    end = chain.counters[END]
    frame = sorter.settings[_FRAME]
    for c in range(window.shape[0]):
        magnitude = sorter.magnitude[c]
        beyond = sorter.beyond[c]
        row = window[c, end - frame : end]
        middle = np.float32(_MEDIAN * sorter.noise[c])
        for t in range(row.shape[0]):  # each place in a frame for itself: a sum along the row would not be vectorised
            size = abs(row[t])
            magnitude[t] += min(size, np.float32(_CLIP))
            beyond[t] += np.float32(1.0) if size > middle else np.float32(0.0)
    sorter.counters[_FRAMES] += 1
    if sorter.counters[_FRAMES] == sorter.settings[_CHECK_FRAMES]:
        sorter.counters[_FRAMES] = 0
        _judge(sorter)
    first: int = chain.counters[TAKEN] - end
    if sorter.settings[_ENGINE] == _DENSE:
        match_dense(sorter.dense, window, end, chain.present, sorter.threshold, first, sorter.events)
        if sorter.dense.settings[dense.TRACKING]:
            motion.follow(sorter.dense.motion, chain.neighbour, chain.weight)
    else:
        match_sparse(sorter.sparse, window, end, chain.present, sorter.threshold, first, sorter.events)


@jit
def _judge(sorter: SorterState) -> None:
    """Mask channels that are stuck, dead or noisy, take back those that are no longer, and follow the noise of others.

    A masked channel is silent in the window, so that only a trial of one check tells whether it is well again; each
    that fails doubles the wait for the next. One that stood still is taken back once its raw signal moves.
    """
    chain = sorter.chain
    n_samples = np.float64(sorter.settings[_CHECK_FRAMES] * sorter.settings[_FRAME])
    for c in range(sorter.reason.shape[0]):
        if chain.included[c] > 0.0 and chain.clean[c] > 0.0:
            magnitude = 0.0
            beyond = 0.0
            for t in range(sorter.magnitude.shape[1]):
                magnitude += sorter.magnitude[c, t]
                beyond += sorter.beyond[c, t]
            relative = magnitude / (_MEAN_OF_UNIT_NOISE * n_samples)
            if sorter.moved[c] == 0:
                sorter.reason[c] = STUCK
            elif sorter.reason[c] == STUCK:
                sorter.reason[c] = FINE
            elif chain.alive[c] == 0.0:
                sorter.wait[c] -= 1
                if sorter.wait[c] <= 0:
                    sorter.reason[c] = FINE  # on trial
            elif relative < _DEAD_BELOW or relative > _NOISY_ABOVE:
                sorter.reason[c] = DEAD if relative < _DEAD_BELOW else NOISY
                sorter.failed[c] = min(sorter.failed[c] + 1, _LONGEST_WAIT)
                sorter.wait[c] = 1 << sorter.failed[c]
            else:
                sorter.failed[c] = max(sorter.failed[c] - 1, 0)
                if sorter.settings[_TRACKING]:
                    change = (beyond / n_samples - 0.5) / _SLOPE
                    noise = sorter.noise[c] * math.exp(_NOISE_RATE * change)
                    sorter.noise[c] = min(max(noise, _LEAST_NOISE), _MOST_NOISE)
                    sorter.threshold[c] = np.float32(sorter.detection[0] * sorter.noise[c])
            chain.alive[c] = 1.0 if sorter.reason[c] == FINE else 0.0
        for t in range(sorter.magnitude.shape[1]):
            sorter.magnitude[c, t] = np.float32(0.0)
            sorter.beyond[c, t] = np.float32(0.0)
        sorter.moved[c] = 0
    refresh(chain)


class Sorter:
    """The online sorter of one stream: checks, allocates, resets.

    Parameters
    ----------
    bundle : Bundle or None
        What to recognise. None gives a sorter of no channel and no unit, whose state is of the same types.
    engine : {"auto", "sparse", "dense"}
        auto: as the bundle says.
    tracking : bool
        Whether templates follow slow change.
    """

    def __init__(
        self, bundle: Bundle | None, *, engine: Literal["auto", "sparse", "dense"] = "auto", tracking: bool = True
    ) -> None:
        self.bundle = bundle
        self.engine: EngineName = "sparse"
        if bundle is not None:
            self.engine = bundle.info.engine if engine == "auto" else engine
        self.state = _allocate(bundle, self.engine, tracking)
        self.reset()
        empty = np.zeros(self.state.chain.y.shape[0])
        take_sample(self.state, empty)  # compile, or load from the disk cache, before anything is live
        set_clean(self.state, np.ones_like(empty))
        self.reset()

    @property
    def unit_ids(self) -> tuple[str, ...]:
        """Ids of the units."""
        return self.bundle.unit_ids if self.bundle is not None else ()

    @property
    def masked(self) -> dict[str, str]:
        """Channels that take no part for now, or in this sorting at all, and why."""
        if self.bundle is None:
            return {}
        names = self.bundle.info.channel_names
        found = {name: REASONS[code] for name, code in zip(names, self.state.reason.tolist(), strict=True) if code}
        return dict(self.bundle.info.excluded) | found

    def changing(self) -> list[NDArray[Any]]:
        """Return the arrays that a checkpoint must hold: all that a bundle does not give."""
        state = self.state
        return [
            *(getattr(state.chain, name) for name in signal.CHANGING),
            *(getattr(state.sparse, name) for name in sparse.CHANGING),
            *(getattr(state.dense, name) for name in dense.CHANGING),
            *(getattr(state.dense.motion, name) for name in motion.CHANGING),
            *(state.chain.neighbour, state.chain.weight),
            *(state.events.counts, state.events.counters),
            *(state.counters, state.magnitude, state.beyond, state.noise, state.threshold),
            *(state.moved, state.last_x, state.reason, state.failed, state.wait),
        ]

    def reset(self) -> None:
        """Back to the state of a new sorter."""
        state = self.state
        reset_chain(state.chain)
        reset_sparse(state.sparse)
        reset_dense(state.dense)
        if state.dense.settings[dense.TRACKING]:
            motion.put(state.dense.motion, state.chain.neighbour, state.chain.weight)
        for part in (state.events.rows, state.events.counts, state.events.counters, state.counters):
            part[...] = np.zeros((), part.dtype)
        for numbers in (state.magnitude, state.beyond, state.moved, state.last_x):
            numbers[...] = 0
        for codes in (state.reason, state.failed, state.wait):
            codes[...] = 0
        state.noise.fill(1.0)
        state.threshold.fill(state.detection[0])


def _allocate(bundle: Bundle | None, engine: EngineName, tracking: bool) -> SorterState:
    fs = bundle.info.sampling_frequency if bundle is not None else 30_000.0
    n_channels = len(bundle.info.channel_names) if bundle is not None else 0
    frame = signal.frame_samples(fs)
    n_window = frame
    if bundle is not None:
        wanted = dense.window_samples if engine == "dense" else sparse.window_samples
        n_window = -(-wanted(bundle, frame) // frame) * frame
    chain = make_chain(
        bundle.info.chain if bundle is not None else ChainConfig(),
        fs,
        n_channels,
        bundle.noise if bundle is not None else None,
        bundle.whitening if bundle is not None else None,
        bundle.noise > 0.0 if bundle is not None else None,
        window_samples=n_window,
    )
    if bundle is not None and engine == "dense" and tracking:  # room for the whitening at every displacement
        row = motion.rows(bundle)
        chain = chain._replace(row=row, neighbour=np.zeros(row[-1], np.int64), weight=np.zeros(row[-1], np.float32))
    settings = np.zeros(4, np.int64)
    settings[_TRACKING] = tracking
    settings[_ENGINE] = _DENSE if engine == "dense" else _SPARSE
    settings[_CHECK_FRAMES], settings[_FRAME] = max(1, round(_CHECK_S * fs / frame)), frame
    return SorterState(
        settings=settings,
        counters=np.zeros(1, np.int64),
        chain=chain,
        sparse=make_sparse(bundle if engine == "sparse" else None, frame, tracking=tracking),
        dense=make_dense(bundle if engine == "dense" else None, frame, tracking=tracking),
        events=make_events(len(bundle.unit_ids) if bundle is not None else 0),
        magnitude=np.zeros((n_channels, frame), np.float32),
        beyond=np.zeros((n_channels, frame), np.float32),
        noise=np.zeros(n_channels),
        threshold=np.zeros(n_channels, np.float32),
        moved=np.zeros(n_channels, np.int64),
        last_x=np.zeros(chain.y.shape[0]),
        reason=np.zeros(n_channels, np.int64),
        failed=np.zeros(n_channels, np.int64),
        wait=np.zeros(n_channels, np.int64),
        detection=np.full(1, bundle.info.detection_noise if bundle is not None else -np.inf),
    )
