"""SpikingNetwork: checks what comes in, owns the state, calls the tick."""

import math
import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine import tick as kernels
from neuromod.engine.config import GivenWeightsConfig, LearningConfig, NetworkConfig, check_live
from neuromod.engine.errors import CheckpointError, ConfigError, StimulusError
from neuromod.engine.layout import (
    BLOCK_BYTES,
    COINCIDENCE,
    FIXED,
    INHIBITORY,
    LAYOUT_ID,
    LAYOUT_VERSION,
    LIVE,
    N_CHANNELS,
    N_MODULATORS,
    N_SENSORY,
    allocate,
)
from neuromod.engine.layout_types import Record, State
from neuromod.engine.models.catalogue import NO_MODEL, model_named
from neuromod.engine.modulators import MODULATORS, RANGES, NeuroModulators
from neuromod.engine.noise import MAX_NOISE
from neuromod.engine.plasticity import RULES

MIN_DT_MS, MAX_DT_MS = 0.001, 1.0
_LOWEST, _HIGHEST = np.array(RANGES, dtype=np.float32).T
_BITS = 1 << np.arange(N_CHANNELS)
_MAX_TICKS = 1e6  # longest time constant of a trace: float32 rounds its decay by up to 6 %, at a fifth of that by 1 %

# magic, layout version, layout id, checksum of the block
_HEADER = struct.Struct("<8sI16sI")
_MAGIC = b"NMODNET\0"


class SpikingNetwork:
    """Sixteen spiking channels: 0 to 13 sensory, 14 the coincidence detector, 15 the global inhibitory interneuron.

    Parameters
    ----------
    config : NetworkConfig, optional
        What the network is; the default is a lively one.
    seed : int, optional
        Seed of the initial weights, instead of the configuration's.
    dt_ms : float
        Wall time of one tick, 0.001 to 1 ms.
    state : State, optional
        Memory for the block, as from `layout.allocate` or `layout.attach`; what it held is lost.

    Raises
    ------
    ConfigError
        If `config` is none, `seed` cannot be used, or `dt_ms` as `check_step` says.

    Examples
    --------
    >>> network = SpikingNetwork(seed=7)
    >>> spikes = network.run(np.full((1000, 16), 2.0, dtype=np.float32))
    >>> spikes.shape
    (1000, 16)
    """

    def __init__(
        self,
        config: NetworkConfig | None = None,
        *,
        seed: int | None = None,
        dt_ms: float = MAX_DT_MS,
        state: State | None = None,
    ) -> None:
        config = NetworkConfig() if config is None else config
        if not isinstance(config, NetworkConfig):
            raise ConfigError(
                f"expected a NetworkConfig, got {type(config).__name__}; NetworkConfig.model_validate takes a dict, "
                "and a seed goes by name: seed=7"
            )
        if seed is not None:
            config = config.model_copy(update={"seed": checked_seed(seed)})
        check_step(config, dt_ms)
        self.config = config
        self._state = allocate() if state is None else state
        self._load(bytes(BLOCK_BYTES))
        _fill(self._state, config, dt_ms)
        self._initial = self._state.tobytes()
        self._warm()

    @property
    def state(self) -> State:
        """The block, for the functions of `tick`; the same memory for the life of the network."""
        return self._state

    @property
    def dt_ms(self) -> float:
        """Wall time of one tick, ms."""
        return float(self._state[0]["dt_ms"])

    @property
    def n_ticks(self) -> int:
        """Ticks since the start or the last reset."""
        return int(self._state[0]["step"])

    @property
    def weights(self) -> NDArray[np.float32]:
        """Copy of the weights, shape (16, 16), mV per spike; row = source, column = target."""
        return np.array(self._state[0]["weights_mv"])

    @property
    def modulators(self) -> NeuroModulators:
        """Levels of the neuromodulators that the next tick will use."""
        return NeuroModulators(**dict(zip(MODULATORS, self._state[0]["levels"].tolist(), strict=True)))

    def step(self, stimuli: ArrayLike, modulators: NeuroModulators | None = None) -> NDArray[np.bool_]:
        """Advance by one tick.

        Parameters
        ----------
        stimuli : array_like, shape (16,)
            Finite numbers, one per channel.
        modulators : NeuroModulators, optional
            Levels set before the tick; without, those of the network go on relaxing to their baselines.

        Returns
        -------
        ndarray of bool, shape (16,)
            Which channels fired.

        Raises
        ------
        StimulusError
            If the stimuli have another shape or are not all finite. The network has not moved then.

        Notes
        -----
        Most of its few microseconds are spent on these checks. `tick.tick(network.state, stimuli)`, which does without
        them and returns bits, takes a tenth of that from Python.
        """
        values = _as_float32(stimuli)
        if values.shape != (N_CHANNELS,):
            raise StimulusError(f"expected stimuli of shape ({N_CHANNELS},), got {values.shape}")
        _refuse_non_finite(values[np.newaxis], "stimulus")
        if modulators is not None:
            for index, level in enumerate(modulators.as_array()):
                kernels.set_modulator(self._state, index, level)
        spikes: NDArray[np.bool_] = (kernels.tick(self._state, values) & _BITS) != 0
        return spikes

    def run(self, stimuli: ArrayLike, modulators: NeuroModulators | ArrayLike | None = None) -> NDArray[np.bool_]:
        """Advance by one tick per row of `stimuli`, in one compiled call: the same bits as as many `step`.

        Parameters
        ----------
        stimuli : array_like, shape (n, 16)
            Finite numbers.
        modulators : NeuroModulators or array_like of shape (n, 4), optional
            Levels set before every tick, in the order of `MODULATORS`; without, those of the network go on.

        Returns
        -------
        ndarray of bool, shape (n, 16)
            Which channels fired at which tick.

        Raises
        ------
        StimulusError
            If stimuli or modulators have another shape or are not all finite, or a level is out of its range. The
            network has not moved then.
        """
        values, rows = checked_inputs(stimuli, modulators)
        spikes = np.empty(values.shape, dtype=np.bool_)
        kernels.run(self._state, values, rows, spikes)
        return spikes

    def add_reward(self, amount: float) -> None:
        """Deliver a reward: dopamine moves by reward - running baseline, which then moves towards the reward."""
        kernels.add_reward(self._state, _finite(amount, "reward"))

    def add_stress(self, amount: float) -> None:
        """Add to cortisol, held to its range."""
        kernels.add_stress(self._state, _finite(amount, "stress"))

    def boost_focus(self, amount: float) -> None:
        """Add to acetylcholine, held to its range."""
        kernels.boost_focus(self._state, _finite(amount, "focus"))

    def set_tempo(self, tempo: float) -> None:
        """Set the speed of model time, held to 0.1 to 4; it relaxes to its baseline like the other modulators."""
        kernels.set_modulator(self._state, kernels.TEMPO, _finite(tempo, "tempo"))

    def set_learning(self, on: bool) -> None:
        """Allow plasticity to change weights, or forbid it; traces and eligibility follow the spikes either way."""
        kernels.set_learning(self._state, on)

    def set_parameters(self, **values: float) -> dict[str, tuple[float, float]]:
        """Change parameters of the running network: any of `layout.LIVE`. `config` stays what it was built from.

        Returns
        -------
        dict
            Name to (old, new) of those that changed.

        Raises
        ------
        ConfigError
            If a name is not among them or a value is outside its range. Nothing has changed then.
        """
        checked = {name: check_live(name, value) for name, value in values.items()}
        live = self._state[0]["live"]
        changed = {}
        for name, value in checked.items():
            index = LIVE.index(name)
            if live[index] != value:
                changed[name] = (float(live[index]), value)
                kernels.set_parameter(self._state, index, np.float64(value))
        return changed

    def reset(self) -> None:
        """Put everything back to the start: potentials, weights, modulators, parameters, counters."""
        self._load(self._initial)

    def checkpoint(self) -> bytes:
        """Return the whole network as bytes that `restore` takes."""
        return as_checkpoint(self._state.tobytes())

    def restore(self, checkpoint: bytes) -> None:
        """Continue bit for bit where `checkpoint` was taken, parameters included.

        Raises
        ------
        CheckpointError
            If it is none of ours, of another version, damaged, or of a network that was built otherwise (`dt_ms`, or
            the configuration but for its seed, initial weights and live parameters). The network is unchanged then.
        """
        if len(checkpoint) < _HEADER.size or checkpoint[: len(_MAGIC)] != _MAGIC:
            raise CheckpointError("not a checkpoint of a network: it does not start with the mark of one")
        _, version, layout, checksum = _HEADER.unpack_from(checkpoint)
        if (version, layout) != (LAYOUT_VERSION, LAYOUT_ID):
            raise CheckpointError(
                f"the checkpoint has layout version {version} ({layout.hex()}), this program has {LAYOUT_VERSION} "
                f"({LAYOUT_ID.hex()}): restore it with the version of neuromod that wrote it"
            )
        block = checkpoint[_HEADER.size :]
        if len(block) != BLOCK_BYTES or zlib.crc32(block) != checksum:
            raise CheckpointError("the checkpoint is damaged: its length or its checksum is wrong; take an older one")
        dt_ms = float(np.frombuffer(block, dtype=self._state.dtype)[0]["dt_ms"])
        if dt_ms != self.dt_ms:
            raise CheckpointError(
                f"the checkpoint's network has ticks of {dt_ms:g} ms, this one of {self.dt_ms:g} ms: "
                "build the network with the same dt_ms"
            )
        theirs, mine = (np.frombuffer(raw, dtype=self._state.dtype)[0] for raw in (block, self._initial))
        if differ := [name for name in FIXED if not np.array_equal(theirs[name], mine[name])]:
            raise CheckpointError(
                f"the checkpoint's network was built otherwise: {', '.join(differ)} differ; build the network with the "
                "configuration of the checkpoint (seed, initial weights and live parameters may be others)"
            )
        if (theirs["weights_mv"] * (connected(self.config) == 0)).any():
            raise CheckpointError(
                "the checkpoint's network was built otherwise: it has weights where `connected` has no synapse here"
            )
        self._load(block)

    def _load(self, block: bytes) -> None:
        """Overwrite the block in place, so that everyone who holds the state sees it."""
        self._state.view(np.uint8)[:] = np.frombuffer(block, dtype=np.uint8)

    def _warm(self) -> None:
        """Compile every function of the tick now, so that nothing compiles during a session."""
        state = self._state
        kernels.run(
            state,
            np.zeros((1, N_CHANNELS), dtype=np.float32),
            np.zeros((0, N_MODULATORS), dtype=np.float32),
            np.empty((1, N_CHANNELS), dtype=np.bool_),
        )
        kernels.tick(state, np.zeros(N_CHANNELS, dtype=np.float32))
        kernels.set_modulator(state, 0, np.float32(0.0))
        kernels.set_parameter(state, 0, np.float64(1.0))
        self.reset()


def as_checkpoint(block: bytes) -> bytes:
    """Return what `SpikingNetwork.checkpoint` gives for a network with this block, of this version's layout."""
    return _HEADER.pack(_MAGIC, LAYOUT_VERSION, LAYOUT_ID, zlib.crc32(block)) + block


def checked_seed(seed: int) -> int:
    """Return a seed as an int.

    Raises
    ------
    ConfigError
        If it is no whole number within 0 and 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be a whole number within 0 and 2**63 - 1, got {seed!r}")
    return int(seed)


def check_step(config: NetworkConfig, dt_ms: float, longest_ms: float = MAX_DT_MS) -> None:
    """Refuse a tick that float32 or the limits of a model are not good enough for.

    Parameters
    ----------
    config : NetworkConfig
        The network's.
    dt_ms : float
        Wall time of one tick.
    longest_ms : float
        Longest that there may be.

    Raises
    ------
    ConfigError
        At the network's baseline of tempo: if `dt_ms` is out of range, a trace of plasticity would decay by too little
        in a tick, or noise, which is the stronger the shorter the tick, would be cut by the limit of a model's input.
    """
    if not MIN_DT_MS <= dt_ms <= longest_ms:
        raise ConfigError(f"dt_ms must lie within {MIN_DT_MS} and {longest_ms}, got {dt_ms}; take several ticks")
    step_ms = dt_ms * config.modulation.baseline.tempo
    for name, tau_ms in _traces(config.learning).items():
        if tau_ms > _MAX_TICKS * step_ms * (1 + 1e-9):
            raise ConfigError(
                f"{name} must not exceed {_MAX_TICKS:g} ticks, {_MAX_TICKS * step_ms:g} ms in steps of {step_ms:g} ms, "
                f"got {tau_ms:g}: float32 would round the decay away; take a longer tick, a shorter time, or no rule"
            )
    for i in (*range(N_SENSORY), INHIBITORY):
        channel = config.channel(i)
        limit = model_named(channel.model).input_limit
        greatest = channel.noise * MAX_NOISE / math.sqrt(step_ms)
        if greatest > limit:
            raise ConfigError(
                f"channel {i}: noise of {channel.noise:g} reaches {greatest:g} in steps of {step_ms:g} ms, and "
                f"{channel.model} takes no more than {limit:g}: lower it, or lengthen the tick"
            )


def _traces(learning: LearningConfig) -> dict[str, float]:
    """Time constants, in ms, of the traces that a rule uses."""
    used: dict[str, float] = {}
    if learning.rule != "none":
        used |= {"tau_plus_ms": learning.tau_plus_ms, "tau_minus_ms": learning.tau_minus_ms}
    if learning.rule == "reward":
        used["tau_eligibility_ms"] = learning.tau_eligibility_ms
    if learning.homeostasis is not None:
        used["tau_rate_ms"] = learning.homeostasis.tau_rate_ms
    return used


def checked_inputs(
    stimuli: ArrayLike, modulators: NeuroModulators | ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Stimuli and levels of a run as `tick.run` wants them.

    Raises
    ------
    StimulusError
        If either has another shape than `SpikingNetwork.run` takes, or is not all finite.
    """
    values = _as_float32(stimuli)
    if values.ndim != 2 or values.shape[1] != N_CHANNELS:
        raise StimulusError(f"expected stimuli of shape (n, {N_CHANNELS}), got {values.shape}")
    _refuse_non_finite(values, "stimulus")
    return values, _level_rows(modulators, len(values))


def initial_weights(config: NetworkConfig) -> NDArray[np.float32]:
    """Weights that a configuration starts with, shape (16, 16), mV per spike; row = source, column = target."""
    if isinstance(config.weights, GivenWeightsConfig):
        return (np.array(config.weights.matrix_mv) * connected(config)).astype(np.float32)
    chosen = config.weights
    weights = np.zeros((N_CHANNELS, N_CHANNELS))
    between = np.random.default_rng(config.seed).uniform(chosen.low_mv, chosen.high_mv, (N_SENSORY, N_SENSORY))
    weights[:N_SENSORY, :N_SENSORY] = between
    np.fill_diagonal(weights, 0.0)
    weights[COINCIDENCE, :N_SENSORY] = chosen.from_coincidence_mv
    weights[:N_SENSORY, INHIBITORY] = chosen.to_interneuron_mv
    return (weights * connected(config)).astype(np.float32)


def connected(config: NetworkConfig) -> NDArray[np.float64]:
    """1 for each synapse that exists, shape (16, 16); row = source, column = target."""
    if config.connected is None:
        return np.ones((N_CHANNELS, N_CHANNELS))
    return np.array(config.connected, dtype=np.float64)


def _fill(state: State, config: NetworkConfig, dt_ms: float) -> None:
    """Write the start of a network into a zeroed block."""
    block = state[0]
    block["learning"] = 1
    block["n_channels"] = N_CHANNELS
    modulation = config.modulation
    levels = [getattr(modulation.baseline, name) for name in MODULATORS]
    block["levels"][:] = levels
    block["baselines"][:] = levels
    block["relaxation"][:] = [-math.expm1(-dt_ms / getattr(modulation, f"{name}_tau_ms")) for name in MODULATORS]
    for name in (
        "reward_rate",
        "dopamine_input",
        "cortisol_threshold",
        "cortisol_inhibition",
        "acetylcholine_input",
        "acetylcholine_recurrent",
    ):
        block[name] = getattr(modulation, name)
    block["dt_ms"] = dt_ms
    block["live"][:] = config.live_values()
    block["stimulus_limit"] = config.stimulus_limit
    block["coincidence_refractory_ms"] = config.coincidence.refractory_ms
    block["since_spike_ms"][:] = kernels.NEVER_MS
    block["weights_mv"][:] = initial_weights(config)
    block["delay_ticks"][:] = config.delay_ticks
    block["delayed"] = any(config.delay_ticks)
    # words that the generator of the weights, which takes the first few, does not see; never 0, which xorshift keeps
    block["random"][:] = np.random.SeedSequence(config.seed).generate_state(2 * N_CHANNELS, np.uint64)[N_CHANNELS:] | 1
    _fill_learning(block, config)
    for i in range(N_CHANNELS):
        if i == COINCIDENCE:
            block["model"][i] = NO_MODEL
            continue
        channel = config.channel(i).complete()
        model = model_named(channel.model)
        block["model"][i] = model.number
        block["models"] |= 1 << model.number
        block["gain"][i] = channel.gain
        block["bias"][i] = channel.bias
        block["noise"][i] = channel.noise
        block["drive_limit"][i] = model.input_limit
        if i < N_SENSORY:
            block["inhibited"][i] = model.input_per_mv(channel.parameters)
        for k, value in enumerate(channel.parameters.values()):
            block["parameters"][k, i] = value
        for k, value in enumerate(model.start(channel.parameters)):
            block["variables"][k, i] = value
    block["noisy"] = bool((block["noise"] > 0).any())


def _fill_learning(block: Record, config: NetworkConfig) -> None:
    """Write the plasticity of a network into its block."""
    learning = config.learning
    block["rule"] = RULES.index(learning.rule)
    block["nearest"] = learning.pairing == "nearest"
    block["soft_bounds"] = learning.bounds == "soft"
    block["trace_tau_ms"][:] = learning.tau_plus_ms, learning.tau_minus_ms, learning.tau_eligibility_ms
    for name in ("a_plus_mv", "a_minus_mv", "w_min_mv", "w_max_mv"):
        block[name] = getattr(learning, name)
    plastic = np.zeros((N_CHANNELS, N_CHANNELS))
    if learning.plastic is None:
        plastic[:N_SENSORY, :N_SENSORY] = 1 - np.eye(N_SENSORY)
    else:
        plastic[:] = learning.plastic
    block["plastic"][:] = plastic * connected(config)
    if learning.homeostasis is not None:
        block["homeostatic"] = 1
        block["target_hz"] = learning.homeostasis.target_hz
        block["rate_tau_ms"] = learning.homeostasis.tau_rate_ms
        block["scaling_tau_ms"] = learning.homeostasis.tau_scaling_ms
        block["rate_hz"][:] = learning.homeostasis.target_hz


def _level_rows(modulators: NeuroModulators | ArrayLike | None, n_ticks: int) -> NDArray[np.float32]:
    """Levels for each tick as the kernel wants them, checked."""
    if modulators is None:
        return np.zeros((0, N_MODULATORS), dtype=np.float32)
    if isinstance(modulators, NeuroModulators):
        return np.tile(modulators.as_array(), (n_ticks, 1))
    rows = _as_float32(modulators)
    if rows.shape != (n_ticks, N_MODULATORS):
        raise StimulusError(f"expected modulators of shape ({n_ticks}, {N_MODULATORS}), got {rows.shape}")
    _refuse_non_finite(rows, "modulator")
    beyond = np.argwhere((rows < _LOWEST) | (rows > _HIGHEST))
    if len(beyond):
        tick, index = beyond[0]
        raise StimulusError(
            f"{MODULATORS[index]} of tick {tick} is {rows[tick, index]:g}, expected {_LOWEST[index]:g} to "
            f"{_HIGHEST[index]:g}; a level at rest is 0, and tempo 1"
        )
    return rows


def _finite(amount: float, what: str) -> np.float32:
    """The amount as kernels take it.

    Raises
    ------
    StimulusError
        If it is not a finite float32.
    """
    value = _as_float32(amount)[()]
    if not np.isfinite(value):
        raise StimulusError(f"expected a finite number as {what}, got {amount!r}")
    return np.float32(value)


def _refuse_non_finite(values: NDArray[np.float32], what: str) -> None:
    """Raise where a value is NaN or infinite, naming the first."""
    if np.isfinite(values).all():
        return
    bad = np.argwhere(~np.isfinite(values))
    row, column = bad[0]
    raise StimulusError(
        f"expected finite float32 numbers, got {values[row, column]} as {what} {column} of tick {row}, "
        f"{len(bad)} such in all; replace them before they reach the network"
    )


def _as_float32(values: ArrayLike) -> NDArray[np.float32]:
    """C-contiguous float32; what is too large becomes infinite without a warning, and is refused by name later.

    Writeable and aligned as well: numba takes an array that is not for another type, and would compile the tick anew.
    """
    with np.errstate(over="ignore"):
        return np.require(values, dtype=np.float32, requirements=["C", "A", "W", "E"])
