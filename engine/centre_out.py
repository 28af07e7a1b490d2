"""A centre-out cursor task that a network learns from delayed reward alone: the closed loop in small.

A trial: a target lights up on a circle around the centre, and the cursor starts in the centre. A simulated user aims
from where the cursor is to where the target is; eight neurons tuned to that direction [1]_ are the stimuli of the
network, a decoder reads a velocity from the network's spikes, and the velocity moves the cursor, so that the aim turns
as the cursor moves. The trial succeeds where the cursor touches the target within its time, and fails where it touches
another or none. After 100 to 200 ms of nothing comes the reward, positive or negative, then a rest.

Nobody tells the network which of its outputs moves the cursor where. It takes two or three spikes in a row of the right
output, some of them long before the reward: the distal reward problem of `four_choice`, with a chain of acts in place
of one, and with acts that change what is seen next.

Nothing here knows sockets, decoders or clocks. `CentreOutTask` hands out stimuli in bins of 10 ms and takes velocities;
a `Loop` is whatever answers the one by the other: a network and a decoder in this process (`NetworkLoop`), or a daemon
on the other side of its sockets (`neuromod.bridge.task`). `practise` plays one condition with any of them, the same way
bit for bit.

Measured over 30 seeds: of the last 200 of 500 trials 29 networks do all but at most one right, and one 0.74, for which
one of four targets is lost; 100 trials in a row with 0.8 right first end after 208 to 297. Over ten seeds, random
movements (learning frozen) succeed in 0.09 of trials, and so do networks with the same rewards in another order (0.04
to 0.18 in one), in the sham condition, and without dopamine. A trial takes 0.67 s of network time, 0.56 s once learnt.

References
----------
.. [1] Georgopoulos, Kalaska, Caminiti & Massey (1982), J. Neurosci. 2, 1527-1537.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine import four_choice
from neuromod.engine.config import ModulationConfig, NetworkConfig
from neuromod.engine.errors import ConfigError, StimulusError
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.network import SpikingNetwork, checked_seed

N_INPUTS, N_OUTPUTS = four_choice.N_INPUTS, four_choice.N_CHOICES
INPUTS, OUTPUTS = four_choice.INPUTS, four_choice.OUTPUTS
"""Channels that the user's neurons drive, and channels that the decoder reads."""
OUTPUT_DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Where each output moves the cursor: 0, 90, 180 and 270 degrees."""

TICK_S = 0.001
BIN_TICKS = 10
"""Ticks of a bin: the user looks at the cursor once a bin, and its neurons keep their activity until the next."""
BIN_S = BIN_TICKS * TICK_S

STEP = 0.55
"""How far one spike of an output is to move the cursor, in distances from the centre to a target."""
DECODER_TAU_MS = 30.0
"""Time constant of the decoder's rates: most of a step is done before the next spike, 50 ms later or more."""

RADIUS = 0.25
REWARD = 0.5
NO_TARGET = -1
MAX_SPEED = 60.0
BOUND = 1.5
"""Half the side of the plane, in distances from the centre to a target."""

Condition = Literal["reward", "frozen", "shuffled", "sham", "no_dopamine"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

_CONCENTRATION = 4.0  # of the tuning: half width of 34 degrees, so that neighbouring targets share few neurons
_TRIALS, _NOISE, _SHUFFLE, _BYSTANDER = 11, 12, 13, 14  # not the streams of `four_choice`, whose weights are ours too
_MOVE, _DELAY, _REST = range(3)


class Loop(Protocol):
    """What a task is played with: stimuli in, velocities out."""

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Take the stimuli of n bins, shape (n, 16); return a velocity a tick, shape (10 n, 2), in units/s."""
        ...

    def add_reward(self, amount: float, /) -> None:
        """Take a reward, before the next tick."""
        ...

    def set_learning(self, on: bool, /) -> None:
        """Let the weights change, or freeze them, before the next tick."""
        ...


@dataclass(frozen=True)
class Trials:
    """What happened, one entry a trial.

    Attributes
    ----------
    target : ndarray of int64
        Which target was lit.
    touched : ndarray of int64
        Which target the cursor touched; `NO_TARGET` where the time was over first.
    movement_ticks : ndarray of int64
        From the target to the touch or the end of the time.
    delay_ticks : ndarray of int64
        From the end of the movement's last bin to the reward.
    reward : ndarray of float64
        Amount that the task asked for.
    """

    target: NDArray[np.int64]
    touched: NDArray[np.int64]
    movement_ticks: NDArray[np.int64]
    delay_ticks: NDArray[np.int64]
    reward: NDArray[np.float64]

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which trials reached the target that was lit."""
        return np.asarray(self.touched == self.target)


class Cursor:
    """A point in a plane that velocities move and targets stop. Positions in units of the distance to a target.

    Parameters
    ----------
    n_targets : int
        Spread evenly over the unit circle, the first at 0 degrees; 1 to 16.
    radius : float
        Of each target, above 0; targets may not overlap, nor reach the centre.
    max_speed : float
        Faster velocities are shortened to it, in units/s.

    Raises
    ------
    ConfigError
        If a number is out of its range.

    Examples
    --------
    >>> cursor = Cursor(n_targets=4)
    >>> for _ in range(1000):
    ...     cursor.move(0.0, 1.0)
    >>> cursor.touched
    1
    """

    def __init__(self, n_targets: int = 4, radius: float = RADIUS, max_speed: float = MAX_SPEED) -> None:
        if isinstance(n_targets, bool) or not isinstance(n_targets, int | np.integer) or not 1 <= n_targets <= 16:
            raise ConfigError(f"expected 1 to 16 targets, got {n_targets!r}")
        between = 2.0 if n_targets == 1 else 2.0 * math.sin(math.pi / n_targets)
        if not 0.0 < radius < min(1.0, between / 2.0):
            raise ConfigError(
                f"expected a radius above 0 and below {min(1.0, between / 2.0):.4g}, where {n_targets} targets would "
                f"overlap or reach the centre; got {radius}"
            )
        if not 0.0 < max_speed < math.inf:
            raise ConfigError(f"expected a finite max_speed above 0, got {max_speed}")
        angles = np.arange(n_targets) * (2.0 * np.pi / n_targets)
        # rounded, so that a target at 90 degrees lies exactly above the centre
        self.targets: NDArray[np.float64] = np.round(np.stack([np.cos(angles), np.sin(angles)], axis=1), 12) + 0.0
        self.radius, self.max_speed = float(radius), float(max_speed)
        self._centres = [(float(x), float(y)) for x, y in self.targets]
        self.centre()

    def centre(self) -> None:
        """Put the cursor back into the centre, free to move."""
        self.x = self.y = 0.0
        self.touched = NO_TARGET

    @property
    def position(self) -> tuple[float, float]:
        """Where it is."""
        return self.x, self.y

    def move(self, vx: float, vy: float, dt_s: float = TICK_S) -> int:
        """Move by a velocity for a time; a cursor that has touched a target stays there until `centre`.

        Parameters
        ----------
        vx, vy : float
            Velocity, in units/s.
        dt_s : float
            How long, in s.

        Returns
        -------
        int
            The target that it touches, or `NO_TARGET`.

        Raises
        ------
        StimulusError
            If the velocity is not finite. The cursor has not moved then.
        """
        if not (math.isfinite(vx) and math.isfinite(vy)):
            raise StimulusError(f"expected a finite velocity, got ({vx}, {vy}); the decoder has to give finite outputs")
        if self.touched != NO_TARGET:
            return self.touched
        speed = math.hypot(vx, vy)
        scale = dt_s if speed <= self.max_speed else dt_s * (self.max_speed / speed)
        self.x = min(max(self.x + scale * vx, -BOUND), BOUND)
        self.y = min(max(self.y + scale * vy, -BOUND), BOUND)
        for k, (x, y) in enumerate(self._centres):
            if (self.x - x) ** 2 + (self.y - y) ** 2 <= self.radius**2:
                self.touched = k
        return self.touched

    def direction_to(self, target: int) -> float:
        """Direction from the cursor to the middle of a target, in radians."""
        x, y = self._centres[target]
        return math.atan2(y - self.y, x - self.x)


class CentreOutTask:
    """Targets, the cursor, the user who aims, and rewards; it holds no network and no clock.

    Parameters
    ----------
    seed : int
        Of targets, delays and the noise of the user's neurons.
    n_trials : int
        After which the task is finished.
    n_targets : int
        Four, one for each output, or eight, half of them between two outputs; any from 1 to 16.
    radius : float
        Of a target, in distances from the centre.
    limit_bins : int
        Time for a movement, in bins of 10 ms.
    delay_bins : tuple of int
        Shortest and longest time from the end of the movement to the reward; each between them is as likely.
    rest_bins : int
        Length of the rest after the reward.
    noise : float
        Standard deviation of the activity of a user's neuron from bin to bin, relative to its mean; at least 0.
    rewards : array_like, shape (n_trials,), optional
        Amounts to hand out instead of the earned ones, as a control.

    Attributes
    ----------
    cursor : Cursor
        As it is now: read it, do not move it.

    Raises
    ------
    ConfigError
        If the seed cannot be used, a length is no whole number or below one bin, the delays are out of order, or there
        is not one finite reward a trial.

    Examples
    --------
    >>> task = CentreOutTask(seed=7, n_trials=1)
    >>> while not task.is_finished:
    ...     towards = np.array(task.target_position) - task.cursor.position
    ...     reward = task.advance(np.tile(10 * towards, (BIN_TICKS * len(task.stimuli), 1)))
    >>> task.trials().succeeded.tolist()
    [True]
    """

    def __init__(
        self,
        seed: int,
        n_trials: int = 500,
        *,
        n_targets: int = 4,
        radius: float = RADIUS,
        limit_bins: int = 40,
        delay_bins: tuple[int, int] = (10, 20),
        rest_bins: int = 30,
        noise: float = 0.2,
        rewards: ArrayLike | None = None,
    ) -> None:
        seed = checked_seed(seed)
        shortest, longest = delay_bins
        lengths = (n_trials, limit_bins, shortest, longest, rest_bins)
        whole = all(isinstance(length, int | np.integer) and not isinstance(length, bool) for length in lengths)
        if not whole or min(lengths) < 1 or longest < shortest:
            raise ConfigError(
                "expected at least one trial, phases of at least one bin, all whole numbers, and delays as (shortest, "
                f"longest); got n_trials={n_trials}, limit_bins={limit_bins}, delay_bins={delay_bins}, "
                f"rest_bins={rest_bins}"
            )
        if not 0.0 <= noise < math.inf:
            raise ConfigError(f"expected a finite noise of at least 0, got {noise}")
        self.n_trials = n_trials
        self.cursor = Cursor(n_targets, radius)
        # a row a trial: the first trials are the same however many follow
        drawn = np.random.default_rng([seed, _TRIALS]).random((n_trials, 2))
        self._targets = (drawn[:, 0] * n_targets).astype(np.int64)
        self._delays = shortest + (drawn[:, 1] * (longest - shortest + 1)).astype(np.int64)
        self._given = None if rewards is None else np.array(rewards, dtype=np.float64)
        if self._given is not None and self._given.shape != (n_trials,):
            raise ConfigError(f"expected one reward for each of {n_trials} trials, got shape {self._given.shape}")
        if self._given is not None and not np.isfinite(self._given).all():
            trial = int(np.flatnonzero(~np.isfinite(self._given))[0])
            raise ConfigError(f"expected finite rewards, got {self._given[trial]} for trial {trial}")
        self._touched = np.full(n_trials, NO_TARGET)
        self._movement_ticks = np.zeros(n_trials, dtype=np.int64)
        self._rewards = np.zeros(n_trials)
        self._seed, self._noise = seed, float(noise)
        self._limit_bins, self._rest_bins = limit_bins, rest_bins
        self._blank = np.zeros((max(longest, rest_bins), N_CHANNELS), dtype=np.float32)
        self._n_done = 0
        self._begin()

    @property
    def n_done(self) -> int:
        """Trials that are over, their rest included."""
        return self._n_done

    @property
    def is_finished(self) -> bool:
        """Whether all trials are over."""
        return self._n_done == self.n_trials

    @property
    def is_moving(self) -> bool:
        """Whether the target is lit and the cursor may move."""
        return not self.is_finished and self._phase == _MOVE

    @property
    def target(self) -> int:
        """Target of the running trial.

        Raises
        ------
        ConfigError
            If the task is finished, and no trial is running.
        """
        if self.is_finished:
            raise ConfigError(f"all {self.n_trials} trials are over, and there is no target: stop when `is_finished`")
        return int(self._targets[self._n_done])

    @property
    def target_position(self) -> tuple[float, float]:
        """Where the target of the running trial is."""
        x, y = self.cursor.targets[self.target]
        return float(x), float(y)

    @property
    def stimuli(self) -> NDArray[np.float32]:
        """Stimuli of the bins left until the task needs to see velocities, shape (n, 16); none once it is finished.

        One bin while the cursor moves, since the aim follows it; the whole rest of the phase else. The memory is the
        task's own: read it, do not write.
        """
        if self.is_finished:
            return self._blank[:0]
        return self._aim if self._phase == _MOVE else self._blank[self._elapsed : self._length()]

    def advance(self, velocities: ArrayLike, n_bins: int | None = None) -> float | None:
        """Take the velocities that answer the next bins.

        Parameters
        ----------
        velocities : array_like, shape (n, 2)
            One a tick, in units/s. While the cursor does not move they are taken and do nothing.
        n_bins : int, optional
            How many bins went by, where the velocities cannot tell: in true time some may come late or be lost. By
            default n is ten a bin. At most as many bins as `stimuli` has rows.

        Returns
        -------
        float or None
            Reward to deliver before the next tick, or None where none is due.

        Raises
        ------
        StimulusError
            If the velocities have another shape, are not finite, or are those of no whole bin or of more bins than are
            left. The task has not moved then.
        """
        rows = np.asarray(velocities, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != 2 or not np.isfinite(rows).all():
            raise StimulusError(f"expected finite velocities of shape (n, 2), got shape {rows.shape}")
        if n_bins is None:
            n_bins, odd = divmod(len(rows), BIN_TICKS)
            if odd:
                raise StimulusError(f"expected {BIN_TICKS} velocities for each bin, got {len(rows)}")
        n_left = len(self.stimuli)
        if not 1 <= n_bins <= n_left:
            raise StimulusError(
                f"expected the velocities of 1 to {n_left} bins, got {n_bins}; "
                "ask for `stimuli` again after each answer, and stop when `is_finished`"
            )
        if self._phase == _MOVE:
            self._move(rows)
        self._elapsed += n_bins
        if self._elapsed == self._length() or (self._phase == _MOVE and self.cursor.touched != NO_TARGET):
            return self._turn()
        if self._phase == _MOVE:
            self._aim = self._user()
        return None

    def trials(self) -> Trials:
        """Copy of what happened in the trials that are over."""
        over = slice(self._n_done)
        return Trials(
            self._targets[over].copy(),
            self._touched[over].copy(),
            self._movement_ticks[over].copy(),
            BIN_TICKS * self._delays[over],
            self._rewards[over].copy(),
        )

    def _length(self) -> int:
        return (self._limit_bins, int(self._delays[self._n_done]), self._rest_bins)[self._phase]

    def _begin(self) -> None:
        """Begin the trial `n_done`, or be finished."""
        self._phase, self._elapsed = _MOVE, 0
        self.cursor.centre()
        if self.is_finished:
            return
        # a stream a trial: how long one trial takes leaves the noise of the next as it is
        drawn = np.random.default_rng([self._seed, _NOISE, self._n_done])
        self._factors = 1.0 + self._noise * drawn.standard_normal((self._limit_bins, N_INPUTS))
        self._aim = self._user()

    def _user(self) -> NDArray[np.float32]:
        """Activity of the user's neurons, given where the cursor is: one bin."""
        stimuli = tuned_stimuli(self.cursor.direction_to(self.target))
        stimuli[INPUTS] *= np.maximum(self._factors[self._elapsed], 0.0)
        return stimuli[np.newaxis]

    def _move(self, rows: NDArray[np.float64]) -> None:
        trial = self._n_done
        for vx, vy in rows.tolist():
            if self.cursor.touched != NO_TARGET:
                break
            self._movement_ticks[trial] += 1
            self.cursor.move(vx, vy)

    def _turn(self) -> float | None:
        """End the phase; return the reward that its end brings."""
        trial, ended = self._n_done, self._phase
        self._phase, self._elapsed = (ended + 1) % 3, 0
        if ended == _MOVE:
            self._touched[trial] = self.cursor.touched
        elif ended == _DELAY:
            earned = REWARD if self._touched[trial] == self._targets[trial] else -REWARD
            self._rewards[trial] = earned if self._given is None else self._given[trial]
            return float(self._rewards[trial])
        else:
            self._n_done += 1
            self._begin()
        return None


def tuned_stimuli(direction: float) -> NDArray[np.float32]:
    """Mean stimuli where the user aims into a direction, shape (16,): 0 to 1 for the inputs, 0 for all others.

    Input k prefers 22.5 + 45 k degrees, so that each of four targets is seen as well by two inputs (0.74 each), hardly
    by their neighbours (0.08), and not by the others. Von Mises tuning, exp(4 (cos(difference) - 1)).

    Parameters
    ----------
    direction : float
        In radians.
    """
    preferred = (np.arange(N_INPUTS) + 0.5) * (2.0 * np.pi / N_INPUTS)
    stimuli = np.zeros(N_CHANNELS, dtype=np.float32)
    stimuli[INPUTS] = np.exp(_CONCENTRATION * (np.cos(preferred - direction) - 1.0))
    return stimuli


def network_config(seed: int) -> NetworkConfig:
    """Network for the task: that of the four-choice task, made to act several times a trial.

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
    What differs from `four_choice.network_config`, and why.

    Outputs: a bias of 11 mV instead of 8 lets them fire about every 60 ms while a target is lit, so that two or three
    steps go into a trial. The interneuron silences inputs and outputs for 40 ms after each step: then the user's aim,
    which the step has turned, is read afresh.

    Weights stay at 0.5 mV and above: an output that has been punished for all it did still fires now and then, and can
    find out.

    The running baseline of reward follows slowly, 1 % a trial instead of 10. It is the same for all targets. Where it
    follows fast, the targets learnt first raise it, each failure with another target is then punished by more than a
    rare success repays, and that target's synapses die out before its output is found: one of four targets is lost in
    most networks. With 2 % this happens in one of six, with 1 % in none of thirty.
    """
    config = four_choice.network_config(seed)
    outputs = range(N_CHANNELS)[OUTPUTS]
    eager = {i: config.channels[i].model_copy(update={"bias": 11.0}) for i in outputs}
    return config.model_copy(
        update={
            "channels": {**config.channels, **eager},
            "learning": config.learning.model_copy(update={"w_min_mv": 0.5}),
            "modulation": ModulationConfig(reward_rate=0.01),
        }
    )


class NetworkLoop:
    """A network and a decoder in this process.

    Parameters
    ----------
    network : SpikingNetwork
        In ticks of 1 ms.
    decode : callable
        Gets the spikes of n ticks, shape (n, 16), and returns the velocities, shape (n, 2); it keeps its own state.
    """

    def __init__(self, network: SpikingNetwork, decode: Callable[[NDArray[np.bool_]], NDArray[np.floating]]) -> None:
        self.network = network
        self._decode = decode

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Run bins of 10 ms."""
        spikes = self.network.run(np.repeat(stimuli, BIN_TICKS, axis=0))
        return np.asarray(self._decode(spikes), dtype=np.float64)

    def add_reward(self, amount: float, /) -> None:
        """Deliver a reward."""
        self.network.add_reward(amount)

    def set_learning(self, on: bool, /) -> None:
        """Let the weights change, or freeze them."""
        self.network.set_learning(on)


class Sham:
    """A loop whose commands go nowhere: another loop, which sees the same stimuli, moves the cursor instead.

    The learner is rewarded for what the other one did.
    """

    def __init__(self, learner: Loop, actor: Loop) -> None:
        self._learner, self._actor = learner, actor

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Run both; return what the actor does."""
        self._learner.run(stimuli)
        return self._actor.run(stimuli)

    def add_reward(self, amount: float, /) -> None:
        """Reward the learner alone."""
        self._learner.add_reward(amount)

    def set_learning(self, on: bool, /) -> None:
        """Let the learner's weights change, or freeze them."""
        self._learner.set_learning(on)


class Unrewarded:
    """A loop to which no reward comes, so that its dopamine never leaves its baseline."""

    def __init__(self, loop: Loop) -> None:
        self.run, self.set_learning = loop.run, loop.set_learning

    def add_reward(self, amount: float, /) -> None:
        """Keep the reward back."""


def play(task: CentreOutTask, loop: Loop, watch: Callable[[CentreOutTask], None] | None = None) -> Trials:
    """Play the rest of the task.

    Parameters
    ----------
    task : CentreOutTask
        Where it stands.
    loop : Loop
        What answers.
    watch : callable, optional
        Called after every answer, and once before the first.
    """
    if watch is not None:
        watch(task)
    while not task.is_finished:
        stimuli = task.stimuli
        reward = task.advance(loop.run(stimuli), len(stimuli))
        if reward is not None:
            loop.add_reward(reward)
        if watch is not None:
            watch(task)
    return task.trials()


@dataclass(frozen=True)
class Practice:
    """One network in one condition.

    Attributes
    ----------
    trials : Trials
        Of the practice itself.
    probe : Trials
        After it: learning frozen, the network's own commands on the cursor, earned rewards. Says what the network has
        learnt, also where it was not in command. None without `n_probe`.
    """

    trials: Trials
    probe: Trials | None


def practise(
    condition: Condition,
    seed: int,
    fresh: Callable[[], Loop],
    bystander: Callable[[], Loop],
    *,
    n_trials: int = 500,
    n_targets: int = 4,
    n_probe: int = 0,
    earned: ArrayLike | None = None,
    watch: Callable[[CentreOutTask], None] | None = None,
) -> Practice:
    """Play one condition.

    Parameters
    ----------
    condition : {"reward", "frozen", "shuffled", "sham", "no_dopamine"}
        reward: the network learns. frozen: its weights cannot change: the random policy. shuffled: it gets the rewards
        that it earns in `reward`, in another order. sham: the bystander moves the cursor. no_dopamine: no reward
        reaches it.
    seed : int
        Of the task; the targets and delays are the same in all conditions.
    fresh : callable
        Returns the loop at its start, with the same bits each time.
    bystander : callable
        Returns the loop that acts in `sham`: a network that learns nothing.
    n_trials, n_targets : int
        Of the task.
    n_probe : int
        Trials to add with learning frozen and the network in command.
    earned : array_like, optional
        Rewards that the same seed earned in `reward`, for `shuffled`; without them that is played first.
    watch : callable, optional
        As `play` has it.

    Raises
    ------
    ConfigError
        If the condition is not known, or the task cannot be played.
    """
    if condition not in CONDITIONS:
        raise ConfigError(f"expected a condition among {', '.join(CONDITIONS)}; got {condition!r}")
    rewards = None
    if condition == "shuffled":
        if earned is None:
            earned = play(CentreOutTask(seed, n_trials, n_targets=n_targets), fresh()).reward
        rewards = np.random.default_rng([checked_seed(seed), _SHUFFLE]).permutation(np.asarray(earned))
    task = CentreOutTask(seed, n_trials, n_targets=n_targets, rewards=rewards)
    own = fresh()
    loop: Loop = own
    if condition == "frozen":
        own.set_learning(False)
    elif condition == "sham":
        actor = bystander()
        actor.set_learning(False)
        loop = Sham(own, actor)
    elif condition == "no_dopamine":
        loop = Unrewarded(own)
    trials = play(task, loop, watch)
    if n_probe == 0:
        return Practice(trials, None)
    own.set_learning(False)
    return Practice(trials, play(CentreOutTask(probe_seed(seed), n_probe, n_targets=n_targets), own, watch))


def bystander_seed(seed: int) -> int:
    """Seed of the network that acts in `sham`."""
    return int(np.random.default_rng([checked_seed(seed), _BYSTANDER]).integers(2**31))


def probe_seed(seed: int) -> int:
    """Seed of the trials of a probe: others than those of the practice."""
    return int(np.random.default_rng([checked_seed(seed), _BYSTANDER, 1]).integers(2**31))


def success_rate(trials: Trials, last: int = 200) -> float:
    """Share of successes among the `last` trials, or among all where they are fewer; 0 to 1.

    Raises
    ------
    ConfigError
        If `last` is below 1, or there is no trial.
    """
    if last < 1 or not len(trials.target):
        raise ConfigError(f"expected at least one trial to judge by, got the last {last} of {len(trials.target)}")
    return float(trials.succeeded[-last:].mean())


def wilson_interval(n_successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Confidence interval of a share, by Wilson's score; 95 % for the default `z`.

    It presumes that trials are independent, given the policy: they are where weights do not change.

    Raises
    ------
    ConfigError
        If there are no trials, or more successes than trials.

    References
    ----------
    .. [1] Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    if not 0 <= n_successes <= n or n < 1:
        raise ConfigError(f"expected 0 to n successes among at least one trial, got {n_successes} of {n}")
    share = n_successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)
