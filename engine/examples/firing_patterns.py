"""The twenty firing patterns of Izhikevich (2004), each from its own stimulus through one model."""

# %%
import matplotlib.pyplot as plt
import numpy as np

from neuromod.engine import plots
from neuromod.engine.examples import keep
from neuromod.engine.models.firing_patterns import PATTERNS, run_pattern

traces = {name: run_pattern(pattern) for name, pattern in PATTERNS.items()}
times = {name: trace.spike_times_ms for name, trace in traces.items()}

# %% [markdown]
# What tells some of them apart, in numbers: how many spikes, when, and how far apart.

# %%
assert len(times["phasic_spiking"]) == 1, "once, at the onset"
assert len(times["tonic_spiking"]) > 3, "for as long as it is driven"
intervals = {name: np.diff(t) for name, t in times.items()}
assert intervals["tonic_bursting"].max() > 4 * intervals["tonic_bursting"].min(), "pauses between bursts"
assert intervals["spike_frequency_adaptation"][-1] > intervals["spike_frequency_adaptation"][0], "ever more slowly"
assert intervals["class_1_excitable"][0] > 2 * intervals["class_2_excitable"][0], "class 1 begins slowly"
assert times["spike_latency"][0] > 13.0 + 5.0, "long after its pulse, which ends at 13 ms"
assert len(times["rebound_spike"]) == 1 < len(times["rebound_burst"])
assert min(times["rebound_spike"][0], times["rebound_burst"][0]) > 25.0, "when inhibition is over, at 25 ms"
assert times["resonator"].min() > 320.0, "for the pulses a period apart, not for those nearer to each other"
assert times["integrator"].max() < 70.0, "for the pulses near to each other, not for those apart"
assert times["accommodation"].min() > 300.0, "for the fast ramp, not for the slow one"
assert times["threshold_variability"].min() > 80.0, "for the pulse after inhibition, not for the same one before"

# %%
figure, axes = plt.subplots(5, 4, figsize=(11, 10), layout="constrained")
for ax, (name, pattern) in zip(axes.flat, PATTERNS.items(), strict=True):
    trace = traces[name]
    ax.plot(trace.t_ms, trace.v_mv, color=plots.BLUE, linewidth=0.8)
    # the stimulus below, at a height of its own
    span = np.ptp(trace.input) or 1.0
    ax.plot(trace.t_ms, -110 + 15 * (trace.input - trace.input.min()) / span, color=plots.VERMILION, linewidth=0.8)
    ax.set_title(f"{pattern.letter} {name.replace('_', ' ')}", loc="left", fontsize="small")
    ax.set(xlim=(0, pattern.duration_ms), ylim=(-115, 40))
    ax.spines[["top", "right"]].set_visible(False)
for ax in axes[-1]:
    ax.set_xlabel("time (ms)")
for ax in axes[:, 0]:
    ax.set_ylabel("v (mV)")
keep(figure, "firing_patterns")
