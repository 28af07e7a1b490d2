"""Monitors: any field of the state, at every k-th tick of a run, and all of its spikes, as arrays.

Beside the tick, not in it: a run that records goes through a kernel of its own, and others pay nothing for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.compiled import jit
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import COINCIDENCE, LAYOUT, N_CHANNELS
from neuromod.engine.layout_types import State
from neuromod.engine.models.catalogue import model_named
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork, checked_inputs
from neuromod.engine.tick import run

_FIELDS = {field.name: field for field in LAYOUT}
_VARIABLES = "variables"
_WORD_BYTES = 4  # every field is a whole number of these
_NO_WORD = -1
_NAN_BITS = np.int32(0x7FC00000)


@dataclass(frozen=True)
class Recording:
    """What `record` saw.

    Attributes
    ----------
    config : NetworkConfig
        Of the network.
    dt_ms : float
        Wall time of one tick, ms.
    start_ms : float
        Wall time since the network's start at which the run began, ms.
    spikes : ndarray of bool, shape (n_ticks, 16)
        Of every tick.
    t_ms : ndarray of float64, shape (n_recorded,)
        Wall time since the network's start at which each recorded tick ended, ms.
    rows : ndarray, shape (n_recorded,)
        The recorded fields, as a structured array.
    """

    config: NetworkConfig
    dt_ms: float
    start_ms: float
    spikes: NDArray[np.bool_]
    t_ms: NDArray[np.float64]
    rows: NDArray[np.void]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A recorded field: the number of records, then the shape that the field has in the block."""
        names = self.rows.dtype.names or ()
        if name not in names:
            raise ConfigError(f"{name!r} was not recorded, {', '.join(names) or 'no field'} was: name it in `fields`")
        return self.rows[name]

    def spike_times_ms(self, channel: int) -> NDArray[np.float64]:
        """Wall time since the network's start at which each tick ended in which a channel fired, ms.

        Raises
        ------
        ConfigError
            If there is no such channel.
        """
        _check_channel(channel)
        return self.start_ms + np.float64(self.dt_ms) * (np.flatnonzero(self.spikes[:, channel]) + 1)

    def variable(self, name: str, channel: int) -> NDArray[np.float32]:
        """A state variable of one channel, by the name that its model gives it, shape (n_recorded,).

        Parameters
        ----------
        name : str
            Such as `v_mv`; recorded by that name or with the field `variables`.
        channel : int
            0 to 15.

        Raises
        ------
        ConfigError
            If the channel's model has no such variable, or it was not recorded.
        """
        known = variables_of(self.config, channel)
        if name not in known:
            raise ConfigError(f"channel {channel} has no variable {name!r}; it has {', '.join(known) or 'none'}")
        if name in (self.rows.dtype.names or ()):
            return self.rows[name][:, channel]
        return self[_VARIABLES][:, known.index(name), channel]


def record(
    network: SpikingNetwork,
    stimuli: ArrayLike,
    fields: str | Iterable[str] = (_VARIABLES,),
    modulators: NeuroModulators | ArrayLike | None = None,
    *,
    every: int = 1,
) -> Recording:
    """Run a network and record fields of its state: the same bits as `SpikingNetwork.run`.

    Parameters
    ----------
    network : SpikingNetwork
        Advanced by one tick per row of `stimuli`.
    stimuli : array_like, shape (n, 16)
        Finite numbers.
    fields : str or iterable of str
        Fields of `layout.LAYOUT`, such as `weights_mv`; or state variables by the name that models give them, such as
        `v_mv`: one row of 16, with NaN for channels whose model has none of that name.
    modulators : NeuroModulators or array_like of shape (n, 4), optional
        Levels set before every tick; without, those of the network go on.
    every : int
        Fields are recorded at the end of every so many ticks, counted from the start of the run; spikes always.

    Raises
    ------
    ConfigError
        If there is no such field, or `every` is no whole number or below 1.
    StimulusError
        If stimuli or modulators have another shape or are not all finite. The network has not moved in either case.

    Examples
    --------
    >>> recording = record(SpikingNetwork(seed=7), np.full((100, 16), 2.0), ["v_mv", "weights_mv"], every=10)
    >>> recording["weights_mv"].shape
    (10, 16, 16)
    >>> recording.variable("v_mv", 3).shape
    (10,)
    """
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise ConfigError(f"every must be a whole number of ticks, at least 1, got {every!r}")
    every = int(every)  # of one type, or the kernel would be compiled for each
    values, levels = checked_inputs(stimuli, modulators)
    kinds, words = [], []
    for name in dict.fromkeys((fields,) if isinstance(fields, str) else fields):
        kind, found = _words_of(name, network.config)
        kinds.append((name, *kind))
        words += found
    spikes = np.empty(values.shape, dtype=np.bool_)
    n_recorded = len(values) // every
    rows = np.zeros(n_recorded, dtype=kinds)
    start_ms = network.n_ticks * network.dt_ms
    run_recorded(
        network.state,
        network.state.view(np.int32),
        values,
        levels,
        spikes,
        every,
        np.array(words, dtype=np.int64),
        rows.view(np.int32).reshape(n_recorded, len(words)) if words else np.zeros((n_recorded, 0), dtype=np.int32),
    )
    t_ms = start_ms + np.float64(network.dt_ms) * (every * np.arange(1, n_recorded + 1))
    return Recording(network.config, network.dt_ms, start_ms, spikes, t_ms, rows)


def variables_of(config: NetworkConfig, channel: int) -> list[str]:
    """Names of the state variables of a channel, in the order of their rows; none for the coincidence detector.

    Raises
    ------
    ConfigError
        If there is no such channel.
    """
    _check_channel(channel)
    if channel == COINCIDENCE:
        return []
    return [variable.name for variable in model_named(config.channel(channel).model).variables]


def _check_channel(channel: int) -> None:
    """Refuse what is no channel; numpy would take -1 for the last."""
    if not 0 <= channel < N_CHANNELS:
        raise ConfigError(f"channel must lie within 0 and {N_CHANNELS - 1}, got {channel}")


@jit
def run_recorded(
    state: State,
    words: NDArray[np.int32],
    stimuli: NDArray[np.float32],
    modulators: NDArray[np.float32],
    spikes: NDArray[np.bool_],
    every: int,
    indices: NDArray[np.int64],
    recorded: NDArray[np.int32],
) -> None:
    """`tick.run`, with some words of the block copied after each `every` ticks.

    Parameters
    ----------
    state, stimuli, modulators, spikes
        As for `tick.run`.
    words : ndarray of int32
        The same block as words of four bytes.
    every : int
        Ticks from one record to the next.
    indices : ndarray of int64, shape (n_words,)
        Which words; -1 stands for NaN.
    recorded : ndarray of int32, shape (n // every, n_words)
        Overwritten.
    """
    n_ticks = stimuli.shape[0]
    for row in range(-(-n_ticks // every)):
        first, end = row * every, min((row + 1) * every, n_ticks)
        run(state, stimuli[first:end], modulators[first:end], spikes[first:end])
        if row < recorded.shape[0]:
            for w in range(indices.shape[0]):
                recorded[row, w] = words[indices[w]] if indices[w] >= 0 else _NAN_BITS


def _words_of(name: str, config: NetworkConfig) -> tuple[tuple[str, tuple[int, ...]], list[int]]:
    """How numpy is to read a field or variable, and the words of the block that it consists of."""
    if name in _FIELDS:
        field = _FIELDS[name]
        first = field.offset // _WORD_BYTES
        n_bytes = np.dtype((field.dtype, field.shape)).itemsize
        return (field.dtype, field.shape), list(range(first, first + n_bytes // _WORD_BYTES))
    rows = [variables_of(config, channel) for channel in range(N_CHANNELS)]
    known = dict.fromkeys(variable for row in rows for variable in row)
    if name not in known:
        raise ConfigError(
            f"there is no field {name!r} to record; there are the variables {', '.join(known)} "
            f"and the fields {', '.join(_FIELDS)}"
        )
    table = _FIELDS[_VARIABLES]
    first = table.offset // _WORD_BYTES
    words = [first + row.index(name) * N_CHANNELS + i if name in row else _NO_WORD for i, row in enumerate(rows)]
    return (table.dtype, (N_CHANNELS,)), words
