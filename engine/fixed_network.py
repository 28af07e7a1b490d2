"""FixedNetwork: a network's configuration in fixed point, as hardware runs it."""

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError, FixedPointError, StimulusError
from neuromod.engine.fixed_registers import (
    FIXED_BLOCK,
    GUARD_BITS,
    MODULATION,
    REGISTERS,
    RULE_NEAREST,
    RULE_REWARD,
    Register,
    register,
)
from neuromod.engine.fixed_tick import fixed_run
from neuromod.engine.layout import COINCIDENCE, N_CHANNELS, N_SENSORY
from neuromod.engine.layout_types import State
from neuromod.engine.models import lapicque
from neuromod.engine.modulators import MODULATORS, NeuroModulators
from neuromod.engine.network import MIN_DT_MS, check_step, connected, initial_weights

MAX_FIXED_DT_MS = 10.0
"""Longest tick. Membranes and traces are exact for a step of any length. But a neuron fires once a tick at most, and
refractory times, inhibition and the window of coincidence are whole ticks: at 10 ms nothing fires above 100 a second,
and their defaults, of 2 to 8 ms, come to one tick or none."""

_NEVER = 2**16 - 1
_TEMPO = MODULATORS.index("tempo")
_MODULATION = [register(name) for name in MODULATION]
_SCALES = np.array([2.0**each.fraction for each in _MODULATION])
_LOWEST, _HIGHEST = (np.array([getattr(each, end) for each in _MODULATION], float) for end in ("lowest", "highest"))


class Misfit(NamedTuple):
    """A number that its register cannot hold.

    Attributes
    ----------
    name : str
        Register, and which of its numbers.
    value, held : float
        What it is, and the nearest that the register holds.
    unit, format : str
        Of the register.
    low, high : float
        Its range.
    """

    name: str
    value: float
    held: float
    unit: str
    format: str
    low: float
    high: float

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} is {self.value:g}{unit}, expected {self.low:g} to {self.high:g} ({self.format})"


class FixedNetwork:
    """A network of LIF and Lapicque neurons in fixed point, bit for bit what the hardware description computes.

    Parameters
    ----------
    config : NetworkConfig, optional
        What the network is, in terms that `FIXED_POINT.md` says hardware has.
    dt_ms : float
        Wall time of one tick, 0.001 to 10 ms: longer than floating-point networks take, for a link that carries fewer.
    clip : bool
        Take the nearest for a number that its register cannot hold, and name it in `clipped`, rather than refuse.

    Attributes
    ----------
    clipped : tuple of Misfit
        Numbers that were clipped.
    rounded : dict of str to float
        By how much rounding moved the numbers of each register, at most, in its unit; those that it moved.

    Raises
    ------
    FixedPointError
        If the configuration asks for what hardware does not have, or for a number that its register cannot hold; all
        of them are named.
    """

    def __init__(self, config: NetworkConfig | None = None, *, dt_ms: float = 1.0, clip: bool = False) -> None:
        self.config = NetworkConfig() if config is None else config
        check_step(self.config, dt_ms, MAX_FIXED_DT_MS)
        _refuse_what_hardware_has_not(self.config)
        self.dt_ms = dt_ms
        self.state: State = np.zeros(1, dtype=FIXED_BLOCK)
        self.rounded: dict[str, float] = {}
        misfits: list[Misfit] = []
        for name, values in _numbers(self.config, dt_ms).items():
            where = register(name)
            integers, beyond = _as_integers(where, values)
            self.state[0][name] = integers
            misfits += beyond
            moved = np.abs(integers / 2.0**where.fraction - np.asarray(values, dtype=np.float64))
            # half a step is as far as rounding goes: what moved further was clipped
            greatest = float(np.max(moved * (moved <= 0.5 / 2.0**where.fraction)))
            if greatest > 0.0:
                self.rounded[name] = greatest
        if misfits and not clip:
            raise FixedPointError("; ".join(map(str, misfits)))
        self.clipped = tuple(misfits)
        self.state[0]["since_spike"][:] = _NEVER
        self._is_configured = True

    @classmethod
    def from_registers(cls, state: State, config: NetworkConfig | None = None, *, dt_ms: float = 1.0) -> Self:
        """Return a network that continues where these registers stand.

        Parameters
        ----------
        state : State
            One record of `FIXED_BLOCK`; copied.
        config : NetworkConfig, optional
            Says what the host does: how far stimuli go, and what the neuromodulators come to. What the board computes
            is in the registers alone. Without it stimuli go as far as Q8.8 does, and modulation is given as words.
        dt_ms : float
            Wall time of one tick.

        Raises
        ------
        ConfigError
            If no tick is as long.
        FixedPointError
            If a number lies beyond its register.
        """
        if not MIN_DT_MS <= dt_ms <= MAX_FIXED_DT_MS:
            raise ConfigError(f"expected ticks of {MIN_DT_MS:g} to {MAX_FIXED_DT_MS:g} ms, got {dt_ms:g}")
        for each in REGISTERS:
            values = state[0][each.name]
            if np.min(values) < each.lowest or np.max(values) > each.highest:
                raise FixedPointError(
                    f"{each.name} holds {np.min(values)} to {np.max(values)}, beyond {each.format}: expected "
                    f"{each.lowest} to {each.highest}"
                )
        network = cls.__new__(cls)
        network.config = NetworkConfig() if config is None else config
        network.dt_ms = dt_ms
        network.state = np.array(state, dtype=FIXED_BLOCK)
        network.rounded, network.clipped = {}, ()
        network._is_configured = config is not None
        return network

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights as membranes see them, Q8.8, shape (16, 16), mV per spike; row = source, column = target."""
        words = (self.state[0]["weights"] + (1 << (GUARD_BITS - 1))) >> GUARD_BITS
        return np.array(np.minimum(words, 2**15 - 1) / 256.0)

    def run(self, stimuli: ArrayLike, modulation: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Advance by one tick per row of `stimuli`.

        Parameters
        ----------
        stimuli : array_like, shape (n, 16)
            Finite numbers, held to `stimulus_limit` and rounded to Q8.8.
        modulation : ndarray of int64, shape (n, 5), optional
            As from `modulation_words`, set before each tick; without, that of the network stays.

        Returns
        -------
        ndarray of bool, shape (n, 16)
            Which channels fired at which tick.

        Raises
        ------
        StimulusError
            If stimuli or modulation have another shape, stimuli are not all finite, or a word lies outside its
            register. The network has not moved then.
        """
        words = quantised_stimuli(stimuli, self.config.stimulus_limit)
        if modulation is None:
            rows = np.zeros((0, len(_MODULATION)), np.int64)
        else:
            rows = np.require(modulation, np.int64, ["C", "A", "W"])
            if rows.shape != (len(words), len(_MODULATION)):
                raise StimulusError(
                    f"expected modulation of shape ({len(words)}, {len(_MODULATION)}), got {rows.shape}"
                )
            for k, where in enumerate(_MODULATION):
                if len(rows) and not (where.lowest <= rows[:, k].min() and rows[:, k].max() <= where.highest):
                    raise StimulusError(
                        f"expected {where.name} within {where.lowest} and {where.highest}, {where.format}"
                    )
        spikes = np.empty(len(words), dtype=np.uint16)
        fixed_run(self.state, words, rows, spikes)
        return (spikes[:, np.newaxis] >> np.arange(N_CHANNELS) & 1).astype(np.bool_)

    def modulation_words(self, levels: NeuroModulators) -> NDArray[np.int64]:
        """The five numbers of modulation that levels of the neuromodulators come to, int64, shape (5,).

        Raises
        ------
        FixedPointError
            If the tempo is not the baseline's, at which the parameters were computed, or a number does not fit; or the
            network was made from registers without a configuration.
        """
        return quantised_modulation(self.modulation(_row(levels))).reshape(-1)

    def modulation(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """What levels of the neuromodulators come to, before they are rounded.

        Parameters
        ----------
        levels : ndarray of float64, shape (n, 4)
            In the order of `MODULATORS`.

        Returns
        -------
        ndarray of float64, shape (n, 5)
            As `quantised_modulation` takes them.

        Raises
        ------
        FixedPointError
            If the tempo is not the baseline's, at which the parameters were computed; or the network was made from
            registers without a configuration.
        """
        if not self._is_configured:
            raise FixedPointError(
                "registers alone do not say what neuromodulators come to: give the configuration too, or words of "
                "modulation"
            )
        tempo = self.config.modulation.baseline.tempo
        if (other := levels[levels[:, _TEMPO] != tempo, _TEMPO]).size:
            raise FixedPointError(f"expected the tempo of the parameters, {tempo:g}, got {other[0]:g}")
        numbers = _modulation(self.config, levels, self.dt_ms).values()
        return np.stack(np.broadcast_arrays(*numbers), axis=1)


def quantised_modulation(numbers: ArrayLike) -> NDArray[np.int64]:
    """Modulation as words of its registers, rounded half up.

    Parameters
    ----------
    numbers : array_like of float64, shape (n, 5)
        Input gain, recurrent gain, threshold gain, inhibition in mV, and learning factor, of n ticks.

    Returns
    -------
    ndarray of int64, shape (n, 5)

    Raises
    ------
    FixedPointError
        If one is not finite, or does not fit: the first of each register is named, by its row.
    """
    values = np.asarray(numbers, dtype=np.float64).reshape(-1, len(MODULATION))
    scaled = np.floor(values * _SCALES + 0.5)
    if not ((scaled >= _LOWEST) & (scaled <= _HIGHEST)).all():  # NaN too
        beyond = [_as_integers(where, values[:, k])[1][:1] for k, where in enumerate(_MODULATION)]
        raise FixedPointError("; ".join(str(each) for first in beyond for each in first))
    words: NDArray[np.int64] = scaled.astype(np.int64, order="C")
    return words


def misfit(name: str, value: float, held: float) -> Misfit:
    """Describe a number that does not fit the register of that name; `name` may end in its indices.

    Raises
    ------
    FixedPointError
        If there is no such register.
    """
    where = register(name.partition("[")[0])
    scale = 2.0**where.fraction
    return Misfit(name, value, float(held), where.unit, where.format, where.lowest / scale, where.highest / scale)


def quantised_stimuli(stimuli: ArrayLike, limit: float) -> NDArray[np.int16]:
    """Stimuli as Q8.8, held to `limit` and to -128 to 127.996, rounded half up.

    Raises
    ------
    StimulusError
        If they have another shape than (n, 16) or are not all finite.
    """
    values = np.asarray(stimuli, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != N_CHANNELS:
        raise StimulusError(f"expected stimuli of shape (n, {N_CHANNELS}), got {values.shape}")
    if not np.isfinite(values).all():
        raise StimulusError("expected finite stimuli; replace NaN and infinity before they reach the network")
    words = np.floor(np.clip(values, -limit, limit) * 256.0 + 0.5)
    return np.ascontiguousarray(np.clip(words, -(2**15), 2**15 - 1).astype(np.int16))


def _refuse_what_hardware_has_not(config: NetworkConfig) -> None:
    complaints = []
    for i in (*range(N_SENSORY), N_CHANNELS - 1):
        channel = config.channel(i)
        if channel.model not in ("lif", "lapicque"):
            complaints.append(f"channel {i} is {channel.model}, expected lif or lapicque")
        if channel.noise:
            complaints.append(f"channel {i} has noise of {channel.noise:g}, expected 0")
    if any(config.delay_ticks):
        complaints.append("delay_ticks must all be 0")
    learning = config.learning
    if learning.rule == "hebbian":
        complaints.append("learning.rule is hebbian, expected reward or none")
    if learning.bounds == "soft":
        complaints.append("learning.bounds is soft, expected hard")
    if learning.homeostasis is not None:
        complaints.append("learning.homeostasis must be left out")
    if complaints:
        raise FixedPointError("fixed-point hardware does not have this: " + "; ".join(complaints))


def _numbers(config: NetworkConfig, dt_ms: float) -> dict[str, ArrayLike]:
    """Every number that the configuration sets, by register, in the register's unit."""
    step_ms = dt_ms * config.modulation.baseline.tempo
    learning = config.learning
    plastic = np.zeros((N_CHANNELS, N_CHANNELS), dtype=np.int64)
    if learning.plastic is not None:
        plastic[:] = learning.plastic
    else:
        plastic[:N_SENSORY, :N_SENSORY] = 1 - np.eye(N_SENSORY, dtype=np.int64)
    plastic *= connected(config).astype(np.int64)
    rule = {"none": 0, "reward": RULE_REWARD}[learning.rule] | (RULE_NEAREST if learning.pairing == "nearest" else 0)
    numbers: dict[str, ArrayLike] = {
        **{
            name: float(values[0])
            for name, values in _modulation(config, _row(config.modulation.baseline), dt_ms).items()
        },
        "inhibition_ticks": _ticks(config.inhibition.duration_ms, step_ms),
        # the last tick that is at most half a step beyond the window, as in `tick`
        "window_ticks": math.ceil(config.coincidence.window_ms / step_ms + 0.5) - 1,
        "min_channels": config.coincidence.min_channels,
        "coincidence_refractory": _ticks(config.coincidence.refractory_ms, step_ms),
        "rule": rule,
        "weights": initial_weights(config).astype(np.float64),
        "plastic": plastic @ (1 << np.arange(N_CHANNELS)),
    }
    if learning.rule == "reward":
        numbers |= {
            "fall_plus": -math.expm1(-step_ms / learning.tau_plus_ms),
            "fall_minus": -math.expm1(-step_ms / learning.tau_minus_ms),
            "fall_eligibility": -math.expm1(-step_ms / learning.tau_eligibility_ms),
            "a_plus": learning.a_plus_mv,
            "a_minus": learning.a_minus_mv,
            "w_min": learning.w_min_mv,
            "w_max": learning.w_max_mv,
        }
    neurons = {name: np.zeros(N_CHANNELS) for name in _NEURON}
    for i in range(N_CHANNELS):
        if i != COINCIDENCE:
            for name, value in _neuron(config, i, step_ms).items():
                neurons[name][i] = value
    return numbers | neurons


_NEURON = ("rise", "gain", "bias", "threshold", "v_reset", "v_min", "refractory")


def _neuron(config: NetworkConfig, index: int, step_ms: float) -> dict[str, float]:
    """One neuron in the terms of the bank, in which a Lapicque membrane is a LIF with no refractory time or floor."""
    channel = config.channel(index).complete()
    p = channel.parameters
    assert channel.gain is not None
    assert channel.bias is not None
    if channel.model == "lapicque":
        resistance = p["resistance_mohm"]
        rise = -math.expm1(-step_ms / lapicque.tau_ms(p))
        values = (rise, channel.gain * resistance, channel.bias * resistance, p["v_threshold_mv"], 0.0, -128.0, 0)
    else:
        rise = -math.expm1(-step_ms / p["tau_mem_ms"])
        refractory = _ticks(p["refractory_ms"], step_ms)
        values = (
            *(rise, channel.gain, channel.bias, p["v_threshold_mv"], p["v_reset_mv"], p["v_min_mv"]),
            refractory,
        )
    return dict(zip(_NEURON, values, strict=True))


def _row(levels: NeuroModulators) -> NDArray[np.float64]:
    """The levels in the order of `MODULATORS`, shape (1, 4)."""
    return np.array([[getattr(levels, name) for name in MODULATORS]], dtype=np.float64)


def _modulation(config: NetworkConfig, levels: NDArray[np.float64], dt_ms: float) -> dict[str, NDArray[np.float64]]:
    """What `tick` makes of the levels of n ticks, shape (n, 4), as numbers that hardware multiplies by."""
    m = config.modulation
    step_s = dt_ms * m.baseline.tempo / 1000.0
    dopamine, cortisol, acetylcholine, _ = levels.T
    rate = config.learning.rate_per_s if config.learning.rule == "reward" else 0.0
    return {
        "input_gain": config.input_gain
        * (1 + m.acetylcholine_input * acetylcholine)
        * (1 + m.dopamine_input * dopamine),
        "recurrent_gain": config.recurrent_gain * (1 - m.acetylcholine_recurrent * acetylcholine),
        "threshold_gain": 1 + m.cortisol_threshold * cortisol,
        "inhibition": config.inhibition.strength_mv * (1 + m.cortisol_inhibition * cortisol),
        "learning_factor": rate * dopamine * step_s,
    }


def _ticks(duration_ms: float, step_ms: float) -> int:
    """Ticks that a duration holds for: it ends at the tick nearest to its length, as in `tick`."""
    return max(0, math.ceil(duration_ms / step_ms - 0.5))


def _as_integers(where: Register, values: ArrayLike) -> tuple[NDArray[np.int64], list[Misfit]]:
    """Numbers in a register's format, rounded half up and held to its range, and those that it cannot hold."""
    numbers, scale = np.asarray(values, dtype=np.float64), 2.0**where.fraction
    scaled = np.floor(numbers * scale + 0.5)
    beyond = ~((scaled >= where.lowest) & (scaled <= where.highest))  # NaN too
    if not beyond.any():
        return scaled.astype(np.int64), []
    held = np.clip(np.nan_to_num(scaled), where.lowest, where.highest).astype(np.int64)
    misfits = [
        misfit(where.name + "".join(f"[{k}]" for k in index), float(numbers[tuple(index)]), held[tuple(index)] / scale)
        for index in np.argwhere(beyond)
    ]
    return held, misfits
