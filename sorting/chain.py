"""From samples to whitened signal: the causal chain that templates are estimated through and the loop sorts with.

Each sample takes a Butterworth band-pass and a common reference; what is left, `y`, is collected into *frames* of about
half a millisecond, and a whole frame is whitened at once and shifted into a window, channel by channel, the newest
samples last. Frames are counted in samples from the first one on, so that how samples were cut into chunks cannot
change a bit of what follows.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit, jit_apart
from neuromod.engine.errors import ConfigError
from neuromod.sorting import reference
from neuromod.sorting.bundle import ChainConfig

FRAME_MS = 0.5
LANES = 16
"""Columns behind those in use that may be read, so that an engine can read a frame in whole vectors."""
_PAD = 8
_DENORMAL_GUARD = 1e-60
_SLACK_FRAMES = 16  # the window is moved back only after so many frames: every frame, that took half of the time

# Entries of ChainState.settings.
_N_CHANNELS, _REFERENCE, FRAME, _N_WINDOW = range(4)

# Entries of ChainState.counters.
_STARTED, _IN_FRAME, TAKEN, END = range(4)  # END: columns of the window in use; the newest sample is the last of them


class ChainState(NamedTuple):
    """Everything the kernels read and write; `n_padded` is the number of channels rounded up to a multiple of 8."""

    # fixed at construction
    settings: NDArray[np.int64]
    sos: NDArray[np.float64]  # (n_sections, 5): b0 b1 b2 a1 a2
    at_rest: NDArray[np.float64]  # (n_sections, 2): filter state for a constant input of 1
    clip: NDArray[np.float64]  # (n_padded,)
    included: NDArray[np.float64]  # (n_padded,) 1: takes part
    row: NDArray[np.int64]  # (n_channels + 1,) where the neighbours of each channel begin
    neighbour: NDArray[np.int64]  # (n_neighbours,)
    weight: NDArray[np.float32]  # (n_neighbours,) what of each neighbour makes up the whitened channel
    # moving with every sample
    counters: NDArray[np.int64]
    z: NDArray[np.float64]  # (n_sections, 2, n_padded)
    clean: NDArray[np.float64]  # (n_padded,) 0: blanked
    alive: NDArray[np.float64]  # (n_padded,) 0: masked
    present: NDArray[np.float64]  # (n_padded,) 1: included, clean and alive
    inverse: NDArray[np.float64]  # (1,) 1 / channels that are present
    frame: NDArray[np.float32]  # (n_channels, frame) referenced samples of the open frame
    window: NDArray[np.float32]  # (n_channels, n_window + slack) whitened; the first `END` columns count
    # scratch
    y: NDArray[np.float64]  # (n_padded,) the sample, filtered and referenced; 0 where a channel is not present
    scratch: NDArray[np.float64]  # (n_padded,)


CHANGING = ("counters", "z", "clean", "alive", "present", "inverse", "frame", "window")
"""What a checkpoint of a chain must hold."""


def frame_samples(sampling_frequency: float) -> int:
    """Samples of a frame: about half a millisecond, at least one."""
    return max(1, round(FRAME_MS * 1e-3 * sampling_frequency))


def band_pass(config: ChainConfig, sampling_frequency: float) -> NDArray[np.float64]:
    """Sections of the band-pass, shape (order, 5).

    Raises
    ------
    ConfigError
        The band does not fit below half the sampling frequency.
    """
    if config.low_hz >= config.high_hz or config.low_hz >= 0.5 * sampling_frequency:
        raise ConfigError(
            f"a pass band of {config.low_hz:g} to {config.high_hz:g} Hz at {sampling_frequency:g} Hz; it must ascend "
            f"and lie below {0.5 * sampling_frequency:g} Hz"
        )
    import scipy.signal  # takes longer to import than all else here

    # up to 0.9 of the Nyquist frequency, so that one parameter file serves slower amplifiers
    high_hz = min(config.high_hz, 0.45 * sampling_frequency)
    sos = scipy.signal.butter(config.order, [config.low_hz, high_hz], "bandpass", fs=sampling_frequency, output="sos")
    return np.ascontiguousarray(sos[:, [0, 1, 2, 4, 5]], dtype=np.float64)


def make_chain(
    config: ChainConfig,
    sampling_frequency: float,
    n_channels: int,
    noise: NDArray[np.float64] | None = None,
    whitening: NDArray[np.float32] | None = None,
    included: NDArray[np.bool_] | None = None,
    *,
    window_samples: int = 1,
) -> ChainState:
    """Allocate a chain, at its start.

    Parameters
    ----------
    config : ChainConfig
        Filter and reference.
    sampling_frequency : float
        In Hz.
    n_channels : int
        Channels of a sample.
    noise : ndarray of float64, shape (n_channels,), optional
        Standard deviation of each referenced channel, which sets where the clipped mean clips; without it, nowhere.
    whitening : ndarray of float32, shape (n_channels, n_channels), optional
        ``window = whitening @ y``; without it, the identity.
    included : ndarray of bool, shape (n_channels,), optional
        Channels that take part; all by default.
    window_samples : int
        Least number of newest samples that stand in the window; it is a whole number of frames.

    Raises
    ------
    ConfigError
        The band does not fit the rate.
    """
    n_padded = -(-n_channels // _PAD) * _PAD
    frame = frame_samples(sampling_frequency)
    n_window = -(-window_samples // frame) * frame
    # nothing is filtered where nothing is sorted
    sos = band_pass(config, sampling_frequency) if n_channels else np.zeros((0, 5))
    clip = np.full(n_padded, np.inf)
    if noise is not None:
        clip[:n_channels] = np.where(noise > 0.0, config.clip_noise * noise, np.inf)
    takes_part = np.zeros(n_padded)
    takes_part[:n_channels] = 1.0 if included is None else included
    matrix = np.eye(n_channels, dtype=np.float32) if whitening is None else whitening
    pairs = [_by_fours(np.flatnonzero(weights), n_channels) for weights in matrix]
    settings = np.zeros(4, np.int64)
    settings[:] = n_channels, reference.CODES[config.reference], frame, n_window
    chain = ChainState(
        settings=settings,
        sos=sos,
        at_rest=_at_rest(sos),
        clip=clip,
        included=takes_part,
        row=np.concatenate([[0], np.cumsum([len(pair) for pair in pairs])]).astype(np.int64),
        neighbour=np.concatenate([np.empty(0, np.int64), *pairs]).astype(np.int64) % max(1, n_channels),
        weight=np.concatenate(
            [
                np.empty(0, np.float32),
                *(np.where(pair < n_channels, matrix[c, pair % n_channels], 0.0) for c, pair in enumerate(pairs)),
            ]
        ).astype(np.float32),
        counters=np.zeros(4, np.int64),
        z=np.zeros((len(sos), 2, n_padded)),
        clean=np.zeros(n_padded),
        alive=np.zeros(n_padded),
        present=np.zeros(n_padded),
        inverse=np.zeros(1),
        frame=np.zeros((n_channels, frame), np.float32),
        window=np.zeros((n_channels, n_window + _SLACK_FRAMES * frame + LANES), np.float32),
        y=np.zeros(n_padded),
        scratch=np.zeros(n_padded),
    )
    reset_chain(chain)
    return chain


def _by_fours(neighbours: NDArray[np.int64], n_channels: int) -> NDArray[np.int64]:
    """Fill up with `n_channels`, which stands for a neighbour of no weight, to a multiple of four."""
    return np.concatenate([neighbours, np.full(-len(neighbours) % 4, n_channels)])


def reset_chain(chain: ChainState) -> None:
    """Back to the state of a new chain."""
    for name in CHANGING:
        getattr(chain, name).fill(0)
    chain.clean.fill(1.0)
    chain.alive.fill(1.0)
    chain.counters[END] = chain.settings[_N_WINDOW]
    refresh(chain)


@jit
def refresh(chain: ChainState) -> None:
    """Find out which channels are present, after `clean` or `alive` was changed."""
    n = 0.0
    for c in range(chain.present.shape[0]):
        chain.present[c] = chain.included[c] * chain.clean[c] * chain.alive[c]
        n += chain.present[c]
    chain.inverse[0] = 1.0 / n if n > 0.0 else 0.0


@jit
def set_clean(chain: ChainState, clean: NDArray[np.float64]) -> None:
    """Say which channels are blanked: 0 in `clean`, of shape (n_padded,)."""
    for c in range(clean.shape[0]):
        chain.clean[c] = clean[c]
    refresh(chain)


@jit
def take(chain: ChainState, x: NDArray[np.float64]) -> bool:
    """Take one sample of all channels.

    Parameters
    ----------
    chain : ChainState
        Changed in place; `y` holds the filtered and referenced sample afterwards.
    x : ndarray of float64, shape (n_padded,)
        In units of the stream.

    Returns
    -------
    bool
        Whether a frame became whole, and now stands whitened in the last of the window's columns in use.
    """
    y = chain.y
    counters = chain.counters
    if counters[_STARTED] == 0:
        _rest_at(chain, x)
        counters[_STARTED] = 1
    for c in range(y.shape[0]):
        y[c] = x[c]
    for s in range(chain.sos.shape[0]):
        _filter(y, chain.z[s, 0], chain.z[s, 1], chain.sos[s])
    common = 0.0
    kind = chain.settings[_REFERENCE]
    if kind == reference.CLIPPED_MEAN:
        common = reference.clipped_mean(y, chain.present, chain.inverse[0], chain.clip, chain.scratch)
    elif kind == reference.MEAN:
        common = reference.mean(y, chain.present, chain.inverse[0])
    elif kind == reference.MEDIAN:
        common = reference.median(y, chain.present, chain.scratch, chain.settings[_N_CHANNELS])
    for c in range(y.shape[0]):
        y[c] = (y[c] - common) * chain.present[c]
    at = counters[_IN_FRAME]
    for c in range(chain.frame.shape[0]):
        chain.frame[c, at] = np.float32(y[c])
    counters[TAKEN] += 1
    counters[_IN_FRAME] += 1
    if counters[_IN_FRAME] < chain.settings[FRAME]:
        return False
    counters[_IN_FRAME] = 0
    _whiten(chain)
    return True


@jit
def _rest_at(chain: ChainState, x: NDArray[np.float64]) -> None:
    """Filters in the state they would have, had the first sample stood for ever: no step response to an offset."""
    for s in range(chain.z.shape[0]):
        for k in range(2):
            for c in range(x.shape[0]):
                chain.z[s, k, c] = chain.at_rest[s, k] * x[c]


@jit
def _filter(y: NDArray[np.float64], z0: NDArray[np.float64], z1: NDArray[np.float64], sos: NDArray[np.float64]) -> None:
    """One second-order section, transposed direct form II, on one sample of all channels."""
    b0 = sos[0]
    b1 = sos[1]
    b2 = sos[2]
    a1 = sos[3]
    a2 = sos[4]
    for c in range(y.shape[0]):
        v = y[c]
        out = b0 * v + z0[c]
        z0[c] = b1 * v - a1 * out + z1[c]
        z1[c] = b2 * v - a2 * out
        y[c] = out


@jit_apart
def _whiten(chain: ChainState) -> None:
    """Put the open frame, whitened, behind the window's columns in use; without room, move those to the front first.

    Over the time of the frame, for four neighbours at once: that vectorises, a sum over neighbours would not.
    """
    frame = chain.frame
    window = chain.window
    n = frame.shape[1]
    if chain.counters[END] + n + LANES > window.shape[1]:
        keep = chain.settings[_N_WINDOW] - n
        old = chain.counters[END] - keep
        for c in range(window.shape[0]):
            row = window[c]
            for t in range(keep):
                row[t] = row[t + old]
        chain.counters[END] = keep
    end = chain.counters[END]
    chain.counters[END] = end + n
    for c in range(window.shape[0]):
        out = window[c, end : end + n]
        for t in range(n):
            out[t] = np.float32(0.0)
        # a channel that is not present is silent, and not the whitened rest of its neighbours
        if chain.present[c] > 0.0:
            for k in range(chain.row[c], chain.row[c + 1], 4):
                w0 = chain.weight[k]
                w1 = chain.weight[k + 1]
                w2 = chain.weight[k + 2]
                w3 = chain.weight[k + 3]
                y0 = frame[chain.neighbour[k]]
                y1 = frame[chain.neighbour[k + 1]]
                y2 = frame[chain.neighbour[k + 2]]
                y3 = frame[chain.neighbour[k + 3]]
                for t in range(n):
                    out[t] += (w0 * y0[t] + w1 * y1[t]) + (w2 * y2[t] + w3 * y3[t])
    z = chain.z
    for s in range(z.shape[0]):  # subnormal numbers, which a silence decays into, cost up to a hundred times more
        for k in range(2):
            for c in range(z.shape[2]):
                if abs(z[s, k, c]) < _DENORMAL_GUARD:
                    z[s, k, c] = 0.0


def _at_rest(sos: NDArray[np.float64]) -> NDArray[np.float64]:
    """State of each section, shape (n_sections, 2), for a constant input of 1."""
    states = np.zeros((len(sos), 2))
    level = 1.0
    for state, (b0, b1, b2, a1, a2) in zip(states, sos, strict=True):
        out = level * (b0 + b1 + b2) / (1.0 + a1 + a2)
        state[1] = b2 * level - a2 * out
        state[0] = b1 * level - a1 * out + state[1]
        level = out
    return states


@jit_apart
def _run(chain: ChainState, samples: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float32]) -> None:
    for i in range(samples.shape[0]):
        for c in range(samples.shape[1]):
            x[c] = samples[i, c]
        take(chain, x)
        for c in range(samples.shape[1]):
            y[i, c] = np.float32(chain.y[c])


def filtered(chain: ChainState, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take samples of shape (n, n_channels), finite; return them filtered and referenced, not whitened.

    The chain's state goes on from call to call: a recording may be streamed through in parts.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    y = np.empty_like(samples)
    _run(chain, samples, np.zeros(chain.y.shape[0]), y)
    return y


def whitened(chain: ChainState, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take samples as `filtered` does; return them whitened as well, as they will stand in the window."""
    y = filtered(chain, samples)
    n_channels = y.shape[1]
    z = np.zeros_like(y)
    for c in range(n_channels):
        # the order of the additions is that of `_whiten`, so that the bits are too
        for k in range(chain.row[c], chain.row[c + 1], 4):
            parts = [chain.weight[k + i] * y[:, chain.neighbour[k + i]] for i in range(4)]
            z[:, c] += (parts[0] + parts[1]) + (parts[2] + parts[3])
    return z * chain.present[:n_channels].astype(np.float32)
