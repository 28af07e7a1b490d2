"""Every neuron model under a steady current: what it does, and what theory says that it must do."""

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from neuromod.engine import plots
from neuromod.engine.config import ChannelOverride, LearningConfig, NetworkConfig
from neuromod.engine.examples import keep
from neuromod.engine.models import adex, lapicque, phase_plane
from neuromod.engine.models.catalogue import model_named
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.recording import record

# %% [markdown]
# One neuron a channel. They do not meet: spikes carry no charge, and nothing learns. `bias` is the steady current, in
# the unit of each model. The two AdEx neurons get 2 % less and 2 % more than the rheobase.

# %%
rheobase_pa = adex.rheobase_pa(adex.ADEX.complete({}))
currents = {
    "lif": 18.0,
    "lapicque": 0.18,
    "izhikevich": 10.0,
    "fitzhugh_nagumo": 0.5,
    "hodgkin_huxley": 10.0,
    "pospischil": 1.0,
    "adex": 1.02 * rheobase_pa,
}
channels = {i: ChannelOverride.model_validate({"model": m, "bias": c}) for i, (m, c) in enumerate(currents.items())}
channels[7] = ChannelOverride(model="adex", bias=0.98 * rheobase_pa)
config = NetworkConfig(channels=channels, recurrent_gain=0.0, learning=LearningConfig(rule="none"))
recording = record(SpikingNetwork(config, dt_ms=0.1), np.zeros((20_000, 16)))
LIF, LAPICQUE, IZHIKEVICH, FHN, HH, POSPISCHIL, ADEX, ADEX_BELOW = range(8)


def intervals_ms(channel: int) -> np.ndarray:
    """Times between the spikes of a channel."""
    return np.diff(recording.spike_times_ms(channel))


# %% [markdown]
# Where there is a closed form, the interval between spikes is that, rounded up to the tick of 0.1 ms.

# %%
leaky_ms = 2.0 + 20.0 * math.log(18.0 / (18.0 - 15.0))
circuit_ms = 1000.0 / lapicque.rate_hz(lapicque.LAPICQUE.complete({}), 0.18)
for channel, expected_ms in ((LIF, leaky_ms), (LAPICQUE, circuit_ms)):
    assert (intervals_ms(channel) > expected_ms - 1e-3).all()
    assert (intervals_ms(channel) < expected_ms + 0.1 + 1e-3).all()

# %% [markdown]
# Elsewhere an accurate solution of the equations stands in: Izhikevich's regular spiking neuron fires 23 times in its
# first second, FitzHugh and Nagumo's 25 times in 1000 units of time, the squid axon at 68.3 Hz once it is steady.

# %%
assert (recording.spike_times_ms(IZHIKEVICH) <= 1000).sum() == 23
assert abs((recording.spike_times_ms(FHN) <= 1000).sum() - 25) <= 1
assert abs(1000.0 / intervals_ms(HH)[-30:].mean() - 68.3) < 1.0
assert intervals_ms(POSPISCHIL)[-1] > 1.5 * intervals_ms(POSPISCHIL)[0], "a regular spiking neuron adapts"
assert recording.spikes[10_000:, ADEX].any()
assert not recording.spikes[10_000:, ADEX_BELOW].any(), "at most a spike at the onset"

# %%
figure, axes = plt.subplots(len(currents), 1, figsize=(8, 9), sharex=True, layout="constrained")
for i, (ax, (model, current)) in enumerate(zip(axes, currents.items(), strict=True)):
    plots.membrane(recording, [i], ax=ax).set(xlim=(0, 300), xlabel="", ylabel="v (no unit)" if i == FHN else "v (mV)")
    unit = model_named(model).input_unit.removeprefix("1")
    ax.set_title(f"{model}, current {current:.3g} {unit}", loc="left", fontsize="medium")
axes[-1].set_xlabel("time (ms)")
keep(figure, "models")

# %% [markdown]
# The spike of FitzHugh and Nagumo as a loop: fast between the outer branches of the cubic, slow along them.

# %%
parameters = config.channel(FHN).complete_parameters()
loop = np.column_stack([recording.variable(name, FHN) for name in ("v", "w")])
ax = plots.phase_plane(lambda v: phase_plane.nullclines(parameters, 0.5, v), loop)
assert phase_plane.regime(parameters, 0.5) == "oscillatory"
keep(ax.figure, "phase_plane")
