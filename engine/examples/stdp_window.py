"""The STDP window: what one pair of spikes does to a weight is a exp(-|lag| / tau), with the sign of their order."""

# %%
import numpy as np

from neuromod.engine import plots
from neuromod.engine.banks import Banks
from neuromod.engine.config import ChannelConfig, LearningConfig, NetworkConfig, RandomWeightsConfig
from neuromod.engine.examples import keep

# %% [markdown]
# One bank a lag. A stimulus of 1 for one tick fires a channel in that tick; spikes carry no charge, so there are no
# others. Channel 0 is the source, channel 1 the target.

# %%
config = NetworkConfig(
    sensory=ChannelConfig(gain=1000.0, bias=0.0),
    weights=RandomWeightsConfig(low_mv=1.0, high_mv=1.0),
    recurrent_gain=0.0,
    learning=LearningConfig(rule="hebbian", a_plus_mv=0.1, a_minus_mv=0.12, tau_plus_ms=15.0, tau_minus_ms=30.0),
)
lags_ms = np.arange(-80, 81, 4)
banks = Banks([config] * len(lags_ms))
stimuli = np.zeros((len(lags_ms), 200, 16))
stimuli[:, 100, 0] = 1.0
stimuli[np.arange(len(lags_ms)), 100 + lags_ms, 1] = 1.0
spikes = banks.run(stimuli)
changes_mv = banks.states["weights_mv"][:, 0, 1] - 1.0

# %% [markdown]
# Two spikes in the same tick are no pair.

# %%
assert (spikes.sum(axis=1)[:, :2] == 1).all()
potentiation = 0.1 * np.exp(-lags_ms / 15.0)
depression = -0.12 * np.exp(lags_ms / 30.0)
expected_mv = np.where(lags_ms > 0, potentiation, depression) * (lags_ms != 0)
# a weight of 1 mV has steps of 1.2e-7 mV
assert np.abs(changes_mv - expected_mv).max() < 1e-6

# %%
ax = plots.stdp_window(lags_ms, changes_mv)
for side in (lags_ms < 0, lags_ms > 0):
    ax.plot(lags_ms[side], expected_mv[side], color="0.6", linewidth=1.0, zorder=0)
keep(ax.figure, "stdp_window")
