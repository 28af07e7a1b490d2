"""Learning from delayed reward: credit waits in eligibility traces, and a network learns four choices by it."""

# %%
import matplotlib.pyplot as plt
import numpy as np

from neuromod.engine import plots
from neuromod.engine.banks import Banks
from neuromod.engine.config import ChannelConfig, LearningConfig, NetworkConfig, RandomWeightsConfig
from neuromod.engine.examples import keep
from neuromod.engine.four_choice import INPUTS, OUTPUTS, accuracy, train

# %% [markdown]
# A pair of spikes 5 ms apart makes a synapse eligible; one tick of dopamine comes so many ms later. One bank a delay.
# The trace decays with 500 ms, and so must the change: rate x dopamine x a exp(-5 / tau_plus) exp(-delay / 500).

# %%
config = NetworkConfig(
    sensory=ChannelConfig(gain=1000.0, bias=0.0),
    weights=RandomWeightsConfig(low_mv=1.0, high_mv=1.0),
    recurrent_gain=0.0,
    learning=LearningConfig(rate_per_s=1000.0, a_plus_mv=0.1, tau_plus_ms=20.0, tau_eligibility_ms=500.0),
)
delays_ms = np.arange(0, 2001, 100)
stimuli = np.zeros((2006, 16))
stimuli[0, 0] = stimuli[5, 1] = 1.0
levels = np.tile(np.array([0.0, 0.0, 0.0, 1.0]), (len(delays_ms), len(stimuli), 1))
levels[np.arange(len(delays_ms)), 5 + delays_ms, 0] = 1.0
banks = Banks([config] * len(delays_ms))
banks.run(stimuli, levels)
changes_mv = banks.states["weights_mv"][:, 0, 1] - 1.0
expected_mv = 0.1 * np.exp(-5 / 20.0) * np.exp(-delays_ms / 500.0)
# a weight of 1 mV has steps of 1.2e-7 mV
assert np.abs(changes_mv - expected_mv).max() < 1e-6

# %% [markdown]
# The task: four cues, four choices, and 100 to 300 ms from the choice to its reward. Chance is one in four. Without
# dopamine it stays at that. With the same rewards in another order weights wander, and with them the share of right
# choices: a network may be above chance or below it for long, and the mean over networks is at chance.

# %%
conditions = {
    "reward": (plots.BLUE, [train(seed) for seed in range(3)]),
    "rewards shuffled": (plots.VERMILION, [train(seed, shuffle=True) for seed in range(10)]),
    "no dopamine": (plots.BLACK, [train(seed, dopamine=False) for seed in range(3)]),
}
reached = {name: np.array([accuracy(run) for run in runs]) for name, (_, runs) in conditions.items()}
assert reached["reward"].min() >= 0.85
# fixed weights: each trial is a guess of its own, and 600 of them have a standard deviation of 0.018
assert abs(reached["no dopamine"].mean() - 0.25) < 0.07
# Trials of one network are no independent guesses here, networks are: shares of 200 trials have a standard deviation
# of 0.09 from seed to seed, and so the mean of ten one of 0.03. Half right is two of four cues answered by luck.
assert abs(reached["rewards shuffled"].mean() - 0.25) < 0.12
assert reached["rewards shuffled"].max() < 0.6

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(delays_ms, expected_mv, color="0.6", label="closed form")
left.plot(delays_ms, changes_mv, ".", color=plots.BLUE, label="network")
left.set(xlabel="dopamine after the pair (ms)", ylabel="weight change (mV)")
left.legend(frameon=False)
window = np.ones(100) / 100
for name, (colour, runs) in conditions.items():
    for k, run in enumerate(runs[:3]):
        curve = np.convolve(run.correct, window, "valid")
        right.plot(np.arange(100, 100 + len(curve)), curve, color=colour, label=name if k == 0 else None)
right.axhline(0.25, color="0.6", linestyle="--", label="chance")
right.set(xlabel="trial", ylabel="right choices of the last 100", ylim=(0, 1))
right.legend(frameon=False, loc="center right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
keep(figure, "delayed_reward")

# %% [markdown]
# What it learnt: each pair of inputs that prefer a cue has its strongest weights onto the output that is right.

# %%
learnt = conditions["reward"][1][0].weights_after
ax = plots.weights(learnt[INPUTS, OUTPUTS])
ax.set(xlabel="output", ylabel="input")
assert (learnt[INPUTS, OUTPUTS].argmax(axis=1) == np.arange(8) // 2).all()
keep(ax.figure, "delayed_reward_weights")
