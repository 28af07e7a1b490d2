"""Many independent networks of sixteen channels, run on all cores in one call: sweeps, seeds, or 384 channels.

Their blocks lie in one array. Threads run the compiled tick, which holds no interpreter lock, each on a bank of its
own; a bank's ticks come in order, so which thread ran them leaves no trace in the bits.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine import tick as kernels
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import CheckpointError, ConfigError, StimulusError
from neuromod.engine.layout import N_CHANNELS, allocate
from neuromod.engine.layout_types import State
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import MAX_DT_MS, SpikingNetwork, checked_inputs

# Banks take turns after so many ticks, so that cores end together also where their number does not divide that of the
# banks; 0.1 ms of work or more, against some 3 us to change.
_TURN_TICKS = 1024


class Banks:
    """B independent networks.

    Parameters
    ----------
    configs : NetworkConfig or iterable of NetworkConfig, optional
        One for all banks, with `seeds`; or one a bank. The default network where left out.
    seeds : iterable of int, optional
        Seeds of the banks, instead of the configuration's.
    dt_ms : float
        Wall time of one tick, 0.001 to 1 ms.

    Attributes
    ----------
    states : State, shape (B,)
        The blocks of all banks: `states["weights_mv"]` has the shape (B, 16, 16).
    networks : tuple of SpikingNetwork
        The banks, each on its block in `states`: whatever a network can do may be done with any of them between runs.

    Raises
    ------
    ConfigError
        If there is no bank, several configurations come with seeds, or `dt_ms` or a seed cannot be used.

    Examples
    --------
    >>> banks = Banks(seeds=range(24))
    >>> banks.run(np.full((1000, 16), 2.0)).shape
    (24, 1000, 16)
    >>> banks.networks[3].add_reward(0.5)
    """

    states: State
    networks: tuple[SpikingNetwork, ...]

    def __init__(
        self,
        configs: NetworkConfig | Iterable[NetworkConfig] | None = None,
        *,
        seeds: Iterable[int] | None = None,
        dt_ms: float = MAX_DT_MS,
    ) -> None:
        if configs is None or isinstance(configs, NetworkConfig):
            pairs = [(configs, seed) for seed in ([None] if seeds is None else seeds)]
        elif seeds is None:
            pairs = [(config, None) for config in configs]
        else:
            raise ConfigError("several configurations have their own seeds: give one configuration with `seeds`")
        if not pairs:
            raise ConfigError("expected at least one bank, got none: name a configuration or a seed for each")
        self.states = allocate(len(pairs))
        self.networks = tuple(
            SpikingNetwork(config, seed=seed, dt_ms=dt_ms, state=self.states[i : i + 1])
            for i, (config, seed) in enumerate(pairs)
        )

    def __len__(self) -> int:
        return len(self.networks)

    def run(
        self,
        stimuli: ArrayLike,
        modulators: NeuroModulators | ArrayLike | None = None,
        *,
        workers: int | None = None,
    ) -> NDArray[np.bool_]:
        """Advance every bank by one tick per row of stimuli: the same bits as each network run by itself.

        Parameters
        ----------
        stimuli : array_like, shape (n, 16) or (B, n, 16)
            Finite numbers: the same for all banks, or each bank's own.
        modulators : NeuroModulators or array_like of shape (n, 4) or (B, n, 4), optional
            Levels set before every tick; without, those of each bank go on.
        workers : int, optional
            Threads that run banks, this one among them; one for each processor that this process has where left out.

        Returns
        -------
        ndarray of bool, shape (B, n, 16)
            Which channels of which bank fired at which tick.

        Raises
        ------
        StimulusError
            If stimuli or modulators have another shape or are not all finite. No bank has moved then.
        ConfigError
            If `workers` is below 1.

        Notes
        -----
        An exception that arrives during the run, such as KeyboardInterrupt, leaves banks at different ticks.
        """
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers}")
        inputs = self._inputs(stimuli, modulators)
        n_ticks = len(inputs[0][0])
        spikes = np.empty((len(self), n_ticks, N_CHANNELS), dtype=np.bool_)
        turns = deque((bank, 0) for bank in range(len(self)))
        stopped = threading.Event()

        def work() -> None:
            # there are no more threads than banks: one that finds no turn waiting leaves a thread to each bank not done
            while not stopped.is_set():
                try:
                    bank, first = turns.popleft()
                except IndexError:
                    return
                end = min(first + _TURN_TICKS, n_ticks)
                values, levels = inputs[bank]
                kernels.run(self.networks[bank].state, values[first:end], levels[first:end], spikes[bank, first:end])
                if end < n_ticks:
                    turns.append((bank, end))

        n_turns = len(self) * -(-n_ticks // _TURN_TICKS)
        n_helpers = min(workers or _processors(), len(self), n_turns) - 1
        if n_helpers <= 0:
            work()
            return spikes
        with ThreadPoolExecutor(n_helpers, "neuromod-banks") as pool:
            try:
                helpers = [pool.submit(work) for _ in range(n_helpers)]
                work()
                for helper in helpers:
                    helper.result()
            finally:
                stopped.set()
        return spikes

    def reset(self) -> None:
        """Put every bank back to its start."""
        for network in self.networks:
            network.reset()

    def checkpoint(self) -> bytes:
        """Return all banks as bytes that `restore` takes: the checkpoints of the networks, one after the other."""
        return b"".join(network.checkpoint() for network in self.networks)

    def restore(self, checkpoint: bytes) -> None:
        """Continue bit for bit where `checkpoint` was taken, parameters included.

        Raises
        ------
        CheckpointError
            If it is not of as many banks, or one of them cannot be restored as `SpikingNetwork.restore` says. All
            banks are unchanged then.
        """
        size, rest = divmod(len(checkpoint), len(self))
        if rest or size != len(self.networks[0].checkpoint()):
            raise CheckpointError(f"expected the checkpoint of {len(self)} banks, got {len(checkpoint)} bytes")
        before = self.states.tobytes()
        for i, network in enumerate(self.networks):
            try:
                network.restore(checkpoint[i * size : (i + 1) * size])
            except CheckpointError as error:
                self.states.view(np.uint8)[:] = np.frombuffer(before, dtype=np.uint8)
                raise CheckpointError(f"bank {i}: {error}") from None

    def _inputs(
        self, stimuli: ArrayLike, modulators: NeuroModulators | ArrayLike | None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Stimuli and levels of each bank, checked; one pair of arrays for all where they share them."""
        if np.ndim(stimuli) != 3 and not _has_banks(modulators):
            return [checked_inputs(stimuli, modulators)] * len(self)
        n_banks = len(self)
        each_stimuli = np.asarray(stimuli) if np.ndim(stimuli) == 3 else [stimuli] * n_banks
        each_modulators = np.asarray(modulators) if _has_banks(modulators) else [modulators] * n_banks
        for what, given in (("stimuli", each_stimuli), ("modulators", each_modulators)):
            if len(given) != n_banks:
                raise StimulusError(f"expected {what} of {n_banks} banks, got those of {len(given)}")
        inputs = []
        for i, (values, levels) in enumerate(zip(each_stimuli, each_modulators, strict=True)):
            try:
                inputs.append(checked_inputs(values, levels))
            except StimulusError as error:
                raise StimulusError(f"bank {i}: {error}") from None
        return inputs


def _has_banks(modulators: NeuroModulators | ArrayLike | None) -> bool:
    """Whether levels are given for each bank."""
    return not isinstance(modulators, NeuroModulators | None) and np.ndim(modulators) == 3


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
