"""A four-choice task that a network learns from delayed reward alone, and the network that learns it.

A trial: one of four cues drives eight tuned inputs for 60 ms; the one of four outputs that fires most in that time is
the choice; after 100 to 300 ms of nothing comes the reward, positive where the choice was that of the cue, negative
where it was another or none; then half a second of rest. Each synapse from an input to an output has to be credited for
spikes long over when the reward arrives: the distal reward problem, solved by eligibility traces and dopamine [1]_.

`FourChoiceTask` knows nothing of the network: it hands out stimuli and takes spikes, tick by tick or many ticks at a
time with the same outcome, and says when to deliver which reward. It may run against a `SpikingNetwork`, or against
anything else that answers sixteen stimuli with sixteen spikes. A tick is 1 ms.

Why it is learnt. `reward - running baseline` is positive for every right choice and negative for every wrong one, and
is zero on average where the baseline is that average; so the weights follow the covariance of reward and eligibility
[2]_, which climbs the expected reward where choices are noisy [3]_. The noise is the exploration, and inhibition after
the first spike of an output keeps the others from becoming eligible for a choice that was not theirs.

Measured over 30 seeds: of the last 200 of 2,000 trials 0.945 to 0.99 are right, 0.98 in most; 100 trials in a row with
0.85 right first end after 230 to 390. With dopamine off, 0.25; with the same rewards in another order, 0.23
on average over seeds, 0.1 to 0.4 in one: weights wander. In fixed point it is learnt as well: FIXED_POINT.md has the
figures.

References
----------
.. [1] Izhikevich (2007), Cereb. Cortex 17, 2443-2452.
.. [2] Fremaux & Gerstner (2016), Front. Neural Circuits 9, 85.
.. [3] Florian (2007), Neural Comput. 19, 1468-1502.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.config import (
    ChannelOverride,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
)
from neuromod.engine.errors import ConfigError, StimulusError
from neuromod.engine.layout import INHIBITORY, N_CHANNELS
from neuromod.engine.network import SpikingNetwork, checked_seed

N_INPUTS, N_CHOICES = 8, 4
INPUTS = slice(0, N_INPUTS)
"""Channels that the cue drives: input k prefers the direction k x 45 degrees."""
OUTPUTS = slice(N_INPUTS, N_INPUTS + N_CHOICES)
"""Channels whose spikes are the choice: the first of them is choice 0."""
NO_CHOICE = -1

REWARD = 0.5
"""Reward of a right choice; a wrong one gets as much less than nothing.

The running baseline then lies between -0.5 and 0.5, so that its distance from either reward is never clipped.
"""

# A trial draws its jitter, its cues and its shuffling from streams of their own. Not 0: SeedSequence([7, 0]) is
# SeedSequence(7), which the network's noise is drawn from.
_WEIGHTS, _TRIALS, _SHUFFLE, _STIMULI = 1, 2, 3, 4
_CUE, _DELAY, _REST = range(3)
_INPUT_GAIN, _NOISE = 40.0, 10.0
_OUTPUT_GAIN = 10.0  # of outputs that take their noise from the stimuli


class Steppable(Protocol):
    """What `play` needs of a network."""

    def step(self, stimuli: NDArray[np.float32], /) -> ArrayLike:
        """Take 16 stimuli for one tick, return 16 spikes as true or false."""
        ...

    def add_reward(self, amount: float, /) -> None:
        """Take a reward, before the next tick."""
        ...


class Learner(Protocol):
    """What `train` needs of a network."""

    @property
    def weights(self) -> NDArray[np.floating[Any]]:
        """Weights, shape (16, 16), mV per spike; row = source, column = target."""

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.bool_]:
        """Take stimuli for n ticks, shape (n, 16), return spikes of the same shape."""

    def add_reward(self, amount: float, /) -> None:
        """Take a reward, before the next tick."""


@dataclass(frozen=True)
class Trials:
    """What happened, one entry a trial.

    Attributes
    ----------
    cue, choice : ndarray of int64
        0 to 3; the choice is right where it equals the cue, and `NO_CHOICE` where no output fired.
    reward : ndarray of float64
        Amount that the task asked for.
    delay_ticks : ndarray of int64
        Ticks from the end of the cue, when the choice is made, to the reward.
    """

    cue: NDArray[np.int64]
    choice: NDArray[np.int64]
    reward: NDArray[np.float64]
    delay_ticks: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which choices were right."""
        return np.asarray(self.choice == self.cue)


@dataclass(frozen=True)
class Learning(Trials):
    """Trials, and what they made of the weights.

    Attributes
    ----------
    weights_before, weights_after : ndarray of float32, shape (16, 16)
        mV per spike; row = source, column = target.
    """

    weights_before: NDArray[np.float32]
    weights_after: NDArray[np.float32]


class FourChoiceTask:
    """Cues, choices and rewards; it holds no network and no clock.

    The output with most spikes while the cue is on is the choice; among equals the one that fired first; among equals
    still, one by chance, drawn beforehand so that how one trial goes leaves the draws of the next as they are.

    Parameters
    ----------
    seed : int
        Of cues, delays and ties.
    n_trials : int
        After which the task is finished.
    cue_ticks, rest_ticks : int
        Length of the cue, in which the outputs are counted, and of the rest after the reward. Dopamine falls with a
        time constant of 200 ms: after a rest of 500 ms, 8 % of it is left to meet the next trial.
    delay_ticks : tuple of int
        Shortest and longest time from the end of the cue to the reward; each between them is as likely.
    rewards : array_like, shape (n_trials,), optional
        Amounts to hand out instead of the earned ones, as a control.

    Raises
    ------
    ConfigError
        If the seed cannot be used, a length is no whole number or below one tick, the delays are out of order, or there
        is not one finite reward a trial.

    Examples
    --------
    >>> task = FourChoiceTask(seed=7, n_trials=1)
    >>> while not task.is_finished:
    ...     spikes = np.zeros(16, dtype=bool)
    ...     spikes[8 + task.cue] = task.stimuli[0].any()
    ...     reward = task.advance(spikes)
    >>> task.trials().correct.tolist()
    [True]
    """

    def __init__(
        self,
        seed: int,
        n_trials: int = 2000,
        *,
        cue_ticks: int = 60,
        delay_ticks: tuple[int, int] = (100, 300),
        rest_ticks: int = 500,
        rewards: ArrayLike | None = None,
    ) -> None:
        seed = checked_seed(seed)
        shortest, longest = delay_ticks
        lengths = (n_trials, cue_ticks, shortest, longest, rest_ticks)
        whole = all(isinstance(length, int | np.integer) for length in lengths)
        if not whole or min(lengths) < 1 or longest < shortest:
            raise ConfigError(
                "expected at least one trial, phases of at least one tick, all whole numbers, and delays as "
                f"(shortest, longest); got n_trials={n_trials}, cue_ticks={cue_ticks}, delay_ticks={delay_ticks}, "
                f"rest_ticks={rest_ticks}"
            )
        self.n_trials = n_trials
        # a row a trial: the first trials are the same however many follow
        drawn = np.random.default_rng([seed, _TRIALS]).random((n_trials, 2 + N_CHOICES))
        self._cues = (drawn[:, 0] * N_CHOICES).astype(np.int64)
        self._delays = shortest + (drawn[:, 1] * (longest - shortest + 1)).astype(np.int64)
        self._tie_keys = drawn[:, 2:]
        self._given = None if rewards is None else np.array(rewards, dtype=np.float64)
        if self._given is not None and self._given.shape != (n_trials,):
            raise ConfigError(f"expected one reward for each of {n_trials} trials, got shape {self._given.shape}")
        if self._given is not None and not np.isfinite(self._given).all():
            trial = int(np.flatnonzero(~np.isfinite(self._given))[0])
            raise ConfigError(f"expected finite rewards, got {self._given[trial]} for trial {trial}")
        self._choices = np.full(n_trials, NO_CHOICE)
        self._rewards = np.zeros(n_trials)
        self._cue_ticks, self._rest_ticks = cue_ticks, rest_ticks
        self._cue_stimuli = [np.tile(tuned_stimuli(cue), (cue_ticks, 1)) for cue in range(N_CHOICES)]
        self._blank = np.zeros((max(longest, rest_ticks), N_CHANNELS), dtype=np.float32)
        self._counts = np.zeros(N_CHOICES, dtype=np.int64)
        self._first = np.full(N_CHOICES, cue_ticks)
        self._n_done, self._phase, self._elapsed = 0, _CUE, 0

    @property
    def n_done(self) -> int:
        """Trials that are over, their rest included."""
        return self._n_done

    @property
    def is_finished(self) -> bool:
        """Whether all trials are over."""
        return self._n_done == self.n_trials

    @property
    def cue(self) -> int:
        """Cue of the running trial, 0 to 3: the choice that is right.

        Raises
        ------
        ConfigError
            If the task is finished, and no trial is running.
        """
        if self.is_finished:
            raise ConfigError(f"all {self.n_trials} trials are over, and there is no cue: stop when `is_finished`")
        return int(self._cues[self._n_done])

    @property
    def stimuli(self) -> NDArray[np.float32]:
        """Stimuli of the ticks left until the task needs to see spikes, shape (n, 16); none once it is finished.

        Row 0 is the next tick's. The memory is the task's own: read it, do not write.
        """
        if self.is_finished:
            return self._blank[:0]
        rows = self._cue_stimuli[self.cue] if self._phase == _CUE else self._blank
        return rows[self._elapsed : self._length()]

    def advance(self, spikes: int | ArrayLike) -> float | None:
        """Take the spikes that answer the next ticks.

        Parameters
        ----------
        spikes : int or array_like of bool, shape (16,) or (n, 16)
            One tick's, as a number whose bit i is channel i or as one entry a channel; or those of n ticks, at most as
            many as `stimuli` has rows.

        Returns
        -------
        float or None
            Reward to deliver before the next tick, or None where none is due.

        Raises
        ------
        StimulusError
            If the spikes have another shape, or are those of more ticks than are left. The task has not moved then.
        """
        rows = _as_rows(spikes)
        n_left = len(self.stimuli)
        if len(rows) > n_left:
            raise StimulusError(
                f"expected the spikes of at most {n_left} ticks, got {len(rows)}; "
                "ask for `stimuli` again after each answer, and stop when `is_finished`"
            )
        if self._phase == _CUE:
            self._count(rows)
        self._elapsed += len(rows)
        return self._turn() if len(rows) == n_left else None

    def trials(self) -> Trials:
        """Copy of what happened in the trials that are over."""
        over = slice(self._n_done)
        return Trials(
            self._cues[over].copy(), self._choices[over].copy(), self._rewards[over].copy(), self._delays[over].copy()
        )

    def _length(self) -> int:
        return (self._cue_ticks, int(self._delays[self._n_done]), self._rest_ticks)[self._phase]

    def _count(self, rows: NDArray[np.bool_]) -> None:
        outputs = rows[:, OUTPUTS]
        seen = np.where(outputs.any(axis=0), self._elapsed + outputs.argmax(axis=0), self._cue_ticks)
        self._first = np.minimum(self._first, seen)
        self._counts += outputs.sum(axis=0)

    def _turn(self) -> float | None:
        """End the phase; return the reward that its end brings."""
        trial, ended = self._n_done, self._phase
        self._phase, self._elapsed = (ended + 1) % 3, 0
        if ended == _CUE:
            # the last key counts most
            best = int(np.lexsort((self._tie_keys[trial], self._first, -self._counts))[0])
            self._choices[trial] = best if self._counts[best] else NO_CHOICE
            self._counts[:], self._first[:] = 0, self._cue_ticks
        elif ended == _DELAY:
            earned = REWARD if self._choices[trial] == self._cues[trial] else -REWARD
            self._rewards[trial] = earned if self._given is None else self._given[trial]
            return float(self._rewards[trial])
        else:
            self._n_done += 1
        return None


def tuned_stimuli(cue: int) -> NDArray[np.float32]:
    """Stimuli of a cue, shape (16,): 0 to 1 for the inputs, 0 for all other channels.

    Cue c is the direction 22.5 + 90 c degrees, so that inputs 2 c and 2 c + 1 see it best (0.86 each), their
    neighbours some of it (0.29), and the others little (0.06 or less). Von Mises tuning, exp(2 (cos(difference) - 1)).
    """
    preferred = np.arange(N_INPUTS) * (2 * np.pi / N_INPUTS)
    direction = (cue + 0.25) * (2 * np.pi / N_CHOICES)
    stimuli = np.zeros(N_CHANNELS, dtype=np.float32)
    stimuli[INPUTS] = np.exp(2.0 * (np.cos(preferred - direction) - 1.0))
    return stimuli


def network_config(seed: int) -> NetworkConfig:
    """Network for the task: eight inputs, each with a plastic synapse onto each of four outputs, and the interneuron.

    Parameters
    ----------
    seed : int
        Of the jitter of the initial weights and of the noise.

    Raises
    ------
    ConfigError
        If the seed cannot be used.

    Notes
    -----
    Inputs: a stimulus of 0.86 drives them to 34 mV, twice the threshold: four spikes within the cue. The neighbours of
    these two stay below threshold, and fire now and then by their noise.

    Outputs: a bias of 8 mV, half way to threshold, lets the initial weights of 2 mV (+-0.1) bring one spike a trial.
    Their noise makes the membrane fluctuate by 1.6 mV, and decides which of them is first: this is the exploration. A
    weight difference of 2 mV outweighs it, so choices become sure as weights part. With half of this noise the task is
    learnt as well, with twice as much to 0.80.

    Interneuron: any output's spike fires it at once, and its inhibition of 40 ms outlasts the cue. So the first output
    to fire is most often the only one: 1.3 spikes a trial at first, 1.02 in the end. Without inhibition the outputs
    share the credit, and the task is not learnt.

    Learning: eligibility must span cue, delay and dopamine's own 200 ms, so its time constant is 500 ms. A surprising
    reward then moves the weights of two input spikes before the choice by about 0.1 mV: some tens of right trials a
    cue. Rates from 3 to 40 all learn; this one shows the way from chance. Bounds of 0 and 5 mV are far enough not to
    be what stops it: reward comes to be expected, and dopamine to nothing.
    """
    seed = checked_seed(seed)
    jitter = np.random.default_rng([seed, _WEIGHTS]).uniform(-0.1, 0.1, (N_INPUTS, N_CHOICES))
    weights = np.zeros((N_CHANNELS, N_CHANNELS))
    weights[INPUTS, OUTPUTS] = 2.0 + jitter
    weights[OUTPUTS, INHIBITORY] = 20.0
    plastic = np.zeros((N_CHANNELS, N_CHANNELS), dtype=int)
    plastic[INPUTS, OUTPUTS] = 1
    inputs = ChannelOverride(model="lif", gain=_INPUT_GAIN, bias=0.0, noise=_NOISE)
    outputs = ChannelOverride(model="lif", gain=0.0, bias=8.0, noise=_NOISE)
    unused = ChannelOverride(model="lif", gain=0.0, bias=0.0)
    kinds = [inputs] * N_INPUTS + [outputs] * N_CHOICES + [unused] * 2
    return NetworkConfig(
        seed=seed,
        channels=dict(enumerate(kinds)),
        inhibition=InhibitionConfig(strength_mv=30.0, duration_ms=40.0),
        weights=GivenWeightsConfig.model_validate({"matrix_mv": weights.tolist()}),
        connected=(weights != 0).astype(int).tolist(),
        learning=LearningConfig.model_validate(
            {
                "rule": "reward",
                "a_plus_mv": 0.1,
                "a_minus_mv": 0.105,
                "tau_eligibility_ms": 500.0,
                "rate_per_s": 8.0,
                "w_min_mv": 0.0,
                "w_max_mv": 5.0,
                "plastic": plastic.tolist(),
            }
        ),
    )


def quiet_config(seed: int) -> NetworkConfig:
    """The same network without noise of its own, as hardware has it: its noise comes with the stimuli, of `noise`.

    Raises
    ------
    ConfigError
        If the seed cannot be used.
    """
    config = network_config(seed)
    quiet = {i: channel.model_copy(update={"noise": 0.0}) for i, channel in config.channels.items()}
    for i in range(OUTPUTS.start, OUTPUTS.stop):
        quiet[i] = quiet[i].model_copy(update={"gain": _OUTPUT_GAIN})
    return config.model_copy(update={"channels": quiet})


def noise(rng: np.random.Generator, n_ticks: int) -> NDArray[np.float32]:
    """Stimuli that bring the noise of `network_config` to a network of `quiet_config`, shape (n, 16)."""
    drawn = np.zeros((n_ticks, N_CHANNELS), dtype=np.float32)
    scale = [_NOISE / _INPUT_GAIN] * N_INPUTS + [_NOISE / _OUTPUT_GAIN] * N_CHOICES
    drawn[:, : OUTPUTS.stop] = rng.standard_normal((n_ticks, OUTPUTS.stop)) * scale
    return drawn


def play(task: FourChoiceTask, network: Steppable) -> Trials:
    """Play the rest of the task tick by tick with anything that has `step` and `add_reward`."""
    while not task.is_finished:
        reward = task.advance(network.step(task.stimuli[0]))
        if reward is not None:
            network.add_reward(reward)
    return task.trials()


def train(
    seed: int,
    n_trials: int = 2000,
    *,
    dopamine: bool = True,
    shuffle: bool = False,
    progress: Callable[[int], None] | None = None,
    network: Learner | None = None,
) -> Learning:
    """Let a new network learn the task; the same seed gives the same bits.

    Runs each phase in one compiled call: the same outcome as `play`, in 0.12 ms a trial instead of 10.

    Parameters
    ----------
    seed : int
        Of everything: weights, noise, cues, delays, ties and shuffling.
    n_trials : int
        About 760 ticks each.
    dopamine : bool
        False delivers no reward to the network, so dopamine never leaves its baseline: a control.
    shuffle : bool
        True delivers the rewards that the same seed earned while learning, in another order: the same amounts,
        unrelated to cue and choice. A control; takes twice the time.
    progress : callable, optional
        Called with the number of trials done, after each.
    network : Learner, optional
        Learns instead: one of `quiet_config(seed)`, since noise is added to its stimuli. A `HostedFixedNetwork`, say.

    Raises
    ------
    ConfigError
        If the seed cannot be used, or there is not at least one trial.
    """
    rewards = None
    if shuffle:
        earned = train(seed, n_trials).reward
        rewards = np.random.default_rng([seed, _SHUFFLE]).permutation(earned)
    task = FourChoiceTask(seed, n_trials, rewards=rewards)
    draws = None if network is None else np.random.default_rng([seed, _STIMULI])
    learner: Learner = SpikingNetwork(network_config(seed)) if network is None else network
    before = learner.weights.astype(np.float32)
    while not task.is_finished:
        n_done = task.n_done
        stimuli = task.stimuli
        reward = task.advance(learner.run(stimuli if draws is None else stimuli + noise(draws, len(stimuli))))
        if reward is not None and dopamine:
            learner.add_reward(reward)
        if progress is not None and task.n_done > n_done:
            progress(task.n_done)
    done = task.trials()
    return Learning(done.cue, done.choice, done.reward, done.delay_ticks, before, learner.weights.astype(np.float32))


def accuracy(trials: Trials, last: int = 200) -> float:
    """Share of right choices among the `last` trials, or among all where they are fewer; 0 to 1.

    Raises
    ------
    ConfigError
        If `last` is below 1, or there is no trial.
    """
    if last < 1 or not len(trials.correct):
        raise ConfigError(f"expected at least one trial to judge by, got the last {last} of {len(trials.correct)}")
    return float(trials.correct[-last:].mean())


def _as_rows(spikes: int | ArrayLike) -> NDArray[np.bool_]:
    """Spikes of one or more ticks, shape (n, 16)."""
    if isinstance(spikes, (int, np.integer)):
        if not 0 <= spikes < 1 << N_CHANNELS:
            raise StimulusError(f"expected spikes as a number of {N_CHANNELS} bits, got {spikes}")
        return np.array([[int(spikes) >> i & 1 == 1 for i in range(N_CHANNELS)]])
    rows = np.atleast_2d(np.asarray(spikes, dtype=np.bool_))
    if rows.ndim != 2 or rows.shape[1] != N_CHANNELS:
        raise StimulusError(f"expected spikes of shape ({N_CHANNELS},) or (n, {N_CHANNELS}), got {rows.shape}")
    return rows
