"""Figures of spikes, membranes, weights, phase planes and learning windows.

Each function draws into `ax`, or into a new figure, and returns the axes: nothing is shown and no setting is left
changed. Drawing needs matplotlib, which comes with the extra `plots`; nothing else in the engine does.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError, MissingExtraError
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS
from neuromod.engine.models.catalogue import model_named
from neuromod.engine.models.model import Variable
from neuromod.engine.recording import Recording, variables_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Nullclines = Callable[[NDArray[np.float64]], tuple[ArrayLike, ArrayLike]]
"""Takes values of v; returns w where dv/dt = 0 and w where dw/dt = 0, at each."""

# the colours of Okabe and Ito, told apart with all common kinds of colour blindness
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
_GREY = "0.75"


def raster(spikes: ArrayLike, dt_ms: float = 1.0, *, ax: "Axes | None" = None) -> "Axes":
    """Draw a mark for each spike, a row a channel.

    Parameters
    ----------
    spikes : array_like of bool, shape (n, 16)
        As `run` returns them.
    dt_ms : float
        Wall time of one tick, ms.
    ax : Axes, optional
        Where to draw; a new figure where left out.

    Raises
    ------
    ConfigError
        If the spikes have another shape.
    """
    fired = np.asarray(spikes, dtype=np.bool_)
    if fired.shape == (0,):
        fired = fired.reshape(0, N_CHANNELS)
    if fired.ndim != 2 or fired.shape[1] != N_CHANNELS:
        raise ConfigError(f"expected spikes of shape (n, {N_CHANNELS}), got {fired.shape}")
    ax = ax or _new_axes(8.0, 3.6)
    names, colours = [str(i) for i in range(N_CHANNELS)], [BLUE] * N_CHANNELS
    names[COINCIDENCE], colours[COINCIDENCE] = "coincidence", ORANGE
    names[INHIBITORY], colours[INHIBITORY] = "interneuron", VERMILION
    times = [(np.flatnonzero(fired[:, i]) + 1) * dt_ms for i in range(N_CHANNELS)]
    ax.eventplot(times, lineoffsets=range(N_CHANNELS), linelengths=0.8, linewidths=1.0, colors=colours)
    ax.set_yticks(range(N_CHANNELS), names)
    ax.set(xlabel="time (ms)", ylabel="channel", xlim=(0, max(len(fired), 1) * dt_ms), ylim=(N_CHANNELS - 0.4, -0.6))
    return ax


def membrane(recording: Recording, channels: int | Sequence[int], *, ax: "Axes | None" = None) -> "Axes":
    """Draw membrane potentials, a line a channel, with a mark at the top for each spike.

    Parameters
    ----------
    recording : Recording
        With the field `variables`, or with the potentials by name.
    channels : int or sequence of int
        Which; their models must count their potentials in one unit and from one zero, at rest or not.
    ax : Axes, optional
        Where to draw; a new figure where left out.

    Raises
    ------
    ConfigError
        If a channel has no membrane, the potentials have different units or zeros, or they were not recorded.
    """
    chosen = [int(channels)] if isinstance(channels, int | np.integer) else [int(channel) for channel in channels]
    potentials = {channel: _potential(recording.config, channel) for channel in chosen}
    units = {channel: _unit(potential) for channel, potential in potentials.items()}
    if len(set(units.values())) > 1:
        found = ", ".join(f"{unit} (channel {channel})" for channel, unit in units.items())
        raise ConfigError(f"expected potentials of one unit and one zero, got {found}: use one axis each")
    lines = {channel: recording.variable(potential.name, channel) for channel, potential in potentials.items()}
    ax = ax or _new_axes(8.0, 3.0)
    for k, (channel, values) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        ax.plot(recording.t_ms, values, color=colour, label=f"channel {channel}")
        times = recording.spike_times_ms(channel)
        # a row a channel, above the lines: after a spike most models are at reset, and their spikes have no height
        height = np.full(len(times), 1.0 - 0.06 * (k + 0.5))
        ax.plot(times, height, "|", color=colour, markersize=6, transform=ax.get_xaxis_transform())
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1.0 - 0.06 * len(lines)))
    unit = next(iter(units.values()), "mV")
    end_ms = recording.start_ms + max(len(recording.spikes), 1) * recording.dt_ms
    ax.set(xlabel="time (ms)", ylabel=f"membrane potential ({unit})", xlim=(recording.start_ms, end_ms))
    if len(lines) > 1:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def weights(matrix: ArrayLike, *, ax: "Axes | None" = None) -> "Axes":
    """Draw a weight matrix: from 0 up in viridis, or around 0 in red and blue where some weights are negative.

    Parameters
    ----------
    matrix : array_like, shape (n_sources, n_targets)
        mV per spike; row = source, column = target.
    ax : Axes, optional
        Where to draw; a new figure where left out.

    Raises
    ------
    ConfigError
        If that is no matrix, or one without a weight.
    """
    values = np.asarray(matrix)
    if values.ndim != 2 or values.size == 0:
        raise ConfigError(f"expected a matrix of weights, sources x targets, got an array of shape {values.shape}")
    ax = ax or _new_axes(5.0, 4.2)
    top = float(np.abs(values).max(initial=0.0)) or 1.0
    signed = bool((values < 0).any())
    image = ax.imshow(values, cmap="RdBu_r" if signed else "viridis", vmin=-top if signed else 0.0, vmax=top)
    ax.figure.colorbar(image, ax=ax, label="weight (mV per spike)")
    ax.set(xlabel="target channel", ylabel="source channel")
    ax.set_xticks(range(0, values.shape[1], 2 if values.shape[1] > 8 else 1))
    ax.set_yticks(range(0, values.shape[0], 2 if values.shape[0] > 8 else 1))
    ax.spines[:].set_visible(False)
    return ax


def phase_plane(
    nullclines: Nullclines,
    trajectory: ArrayLike | None = None,
    *,
    v_limits: tuple[float, float] = (-2.5, 2.5),
    labels: tuple[str, str] = ("v (no unit)", "w (no unit)"),
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the nullclines of a model of two variables, and a way through its plane.

    Parameters
    ----------
    nullclines : callable
        Takes v; returns w where dv/dt = 0 and w where dw/dt = 0. For FitzHugh-Nagumo
        `lambda v: models.phase_plane.nullclines(parameters, current, v)`.
    trajectory : array_like, shape (n, 2), optional
        v and w over time; its start gets a dot. The plane then shows what the trajectory needs. Without a point it
        is as if left out.
    v_limits : tuple of float
        Range of v.
    labels : tuple of str
        Of v and w, with units.
    ax : Axes, optional
        Where to draw; a new figure where left out.

    Raises
    ------
    ConfigError
        If the trajectory has another shape.
    """
    way = np.asarray([] if trajectory is None else trajectory)
    if way.size > 0 and (way.ndim != 2 or way.shape[1] != 2):
        raise ConfigError(f"expected a trajectory of shape (n, 2), v and w, got {way.shape}")
    ax = ax or _new_axes(4.6, 3.8)
    v = np.linspace(*v_limits, 400)
    still_v, still_w = nullclines(v)
    ax.plot(v, still_v, color=VERMILION, label=f"d{labels[0].split()[0]}/dt = 0")
    ax.plot(v, still_w, color=BLUE, label=f"d{labels[1].split()[0]}/dt = 0")
    if way.size > 0:
        ax.plot(way[:, 0], way[:, 1], color=BLACK, linewidth=1.0, label="trajectory")
        ax.plot(way[0, 0], way[0, 1], "o", color=BLACK, markersize=5)
        low, high = float(way[:, 1].min()), float(way[:, 1].max())
        margin = 0.25 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=v_limits)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def stdp_window(lags_ms: ArrayLike, changes_mv: ArrayLike, *, ax: "Axes | None" = None) -> "Axes":
    """Draw what a pair of spikes does to a weight, against the time between the two.

    Parameters
    ----------
    lags_ms : array_like, shape (n,)
        Time of the target's spike after that of the source, ms.
    changes_mv : array_like, shape (n,)
        Change of the weight, mV: potentiation in blue, depression in vermilion.
    ax : Axes, optional
        Where to draw; a new figure where left out.
    """
    ax = ax or _new_axes(5.0, 3.4)
    lags, changes = np.asarray(lags_ms), np.asarray(changes_mv)
    ax.axhline(0.0, color=_GREY, linewidth=0.8, zorder=0)
    ax.axvline(0.0, color=_GREY, linewidth=0.8, zorder=0)
    for sign, colour, label in ((1, BLUE, "potentiation"), (-1, VERMILION, "depression")):
        chosen = sign * changes > 0
        ax.plot(lags[chosen], changes[chosen], ".", color=colour, label=label)
    ax.set(xlabel="target's spike after source's (ms)", ylabel="weight change (mV)")
    ax.legend(frameon=False)
    return ax


def _potential(config: NetworkConfig, channel: int) -> Variable:
    """Membrane potential of a channel, as its model declares it."""
    if not variables_of(config, channel):
        raise ConfigError(f"the coincidence detector, channel {COINCIDENCE}, has no membrane")
    return model_named(config.channel(channel).model).variables[0]


def _unit(potential: Variable) -> str:
    """Unit of a potential, and whether it counts from rest."""
    unit = "mV" if potential.name.endswith("_mv") else "no unit"
    return f"{unit} above rest" if potential.above_rest else unit


def _new_axes(width: float, height: float) -> "Axes":
    """Axes in a new figure of that size, in inches.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib; pip install 'neuromod-bridge[plots]'") from error
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
