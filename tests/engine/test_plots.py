"""Plots: what is drawn is what was given, with units, and nothing outside the axes is touched."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from neuromod.engine import plots
from neuromod.engine.config import ChannelConfig, ChannelOverride, NetworkConfig
from neuromod.engine.errors import ConfigError
from neuromod.engine.models import phase_plane
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.recording import Recording, record


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    plt.switch_backend("Agg")
    before = mpl.rcParams.copy()
    yield
    plt.close("all")
    assert mpl.rcParams == before


def drawn(ax: Axes) -> Any:
    """The axes, after all that matplotlib computes when it draws them."""
    ax.figure.canvas.draw()
    return ax


def a_recording() -> Recording:
    others = {5: ChannelOverride(model="fitzhugh_nagumo"), 6: ChannelOverride(model="adex")}
    network = SpikingNetwork(NetworkConfig(channels=others), dt_ms=0.5)
    network.run(np.zeros((20, 16)))
    return record(network, np.full((100, 16), 2.0), every=2)


def test_a_raster_has_a_mark_for_each_spike_at_the_end_of_its_tick() -> None:
    spikes = np.zeros((100, 16), dtype=bool)
    spikes[[9, 49], 3], spikes[99, 15] = True, True
    ax = drawn(plots.raster(spikes, dt_ms=0.5))
    marks = [sorted(segment[0, 0] for segment in row.get_segments()) for row in ax.collections]
    assert marks[3] == [5.0, 25.0]
    assert marks[15] == [50.0]
    assert sum(map(len, marks)) == 3
    assert ax.get_xlim() == (0, 50)
    assert ax.get_xlabel() == "time (ms)"
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [*map(str, range(14)), "coincidence", "interneuron"]
    assert ax.yaxis_inverted(), "channel 0 is at the top"


def test_a_raster_without_a_tick_can_be_drawn() -> None:
    empty: list[ArrayLike] = [np.zeros((0, 16), dtype=bool), []]
    for nothing in empty:
        assert not any(len(row.get_segments()) for row in drawn(plots.raster(nothing)).collections)


def test_one_channel_may_be_drawn_without_a_list() -> None:
    recording = a_recording()
    either: list[Any] = [3, np.int64(3)]
    for channel in either:
        line = drawn(plots.membrane(recording, channel)).lines[0]
        assert line.get_ydata().tolist() == recording.variable("v_mv", 3).tolist()


def test_membranes_are_drawn_as_recorded_with_a_mark_for_each_spike() -> None:
    recording = a_recording()
    ax = drawn(plots.membrane(recording, [0, 15]))
    first, marks, second, _ = ax.lines
    assert first.get_xdata().tolist() == recording.t_ms.tolist()
    assert first.get_ydata().tolist() == recording.variable("v_mv", 0).tolist()
    assert second.get_ydata().tolist() == recording.variable("v_mv", 15).tolist()
    assert marks.get_xdata().tolist() == recording.spike_times_ms(0).tolist()
    assert len(recording.spike_times_ms(0)) > 0
    assert ax.get_xlim() == (10, 60)
    assert ax.get_ylabel() == "membrane potential (mV above rest)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["channel 0", "channel 15"]


@pytest.mark.parametrize(("channel", "unit"), [(0, "mV above rest"), (5, "no unit"), (6, "mV")])
def test_a_potential_says_its_unit_and_whether_it_counts_from_rest(channel: int, unit: str) -> None:
    assert drawn(plots.membrane(a_recording(), [channel])).get_ylabel() == f"membrane potential ({unit})"


def test_a_model_whose_potential_counts_from_rest_says_so_and_rests_at_0() -> None:
    for model in MODELS:
        potential, *others = model.variables
        assert potential.above_rest == ("above rest" in potential.meaning)
        assert not potential.above_rest or model.start(model.complete({}))[0] == 0.0
        assert not any(variable.above_rest for variable in others)


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ([0, 5], r"one unit and one zero, got mV above rest \(channel 0\), no unit \(channel 5\): use one axis each"),
        ([0, 6], r"one unit and one zero, got mV above rest \(channel 0\), mV \(channel 6\): use one axis each"),
        ([14], "has no membrane"),
        ([16], "channel must lie within 0 and 15"),
    ],
)
def test_membranes_that_cannot_share_axes_are_refused(channels: list[int], words: str) -> None:
    recording = a_recording()
    with pytest.raises(ConfigError, match=words):
        plots.membrane(recording, channels)
    assert not plt.get_fignums(), "no empty figure is left"


def test_weights_from_0_up_are_in_viridis_and_signed_ones_around_0() -> None:
    matrix = np.arange(256.0).reshape(16, 16)
    (image,) = drawn(plots.weights(matrix)).images
    assert (image.get_array() == matrix).all()
    assert (image.cmap.name, *image.get_clim()) == ("viridis", 0, 255)
    ax = drawn(plots.weights(matrix - 100))
    assert (ax.images[0].cmap.name, *ax.images[0].get_clim()) == ("RdBu_r", -155, 155)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target channel", "source channel")
    assert ax.figure.axes[1].get_ylabel() == "weight (mV per spike)"


def test_weights_that_are_all_0_can_be_drawn() -> None:
    drawn(plots.weights(np.zeros((16, 16))))


def test_a_phase_plane_has_both_nullclines_and_the_trajectory_from_its_start() -> None:
    parameters = ChannelConfig(model="fitzhugh_nagumo").complete_parameters()
    way = np.array([[-1.0, 0.0], [0.5, 0.4], [1.0, 1.0]])
    ax = drawn(plots.phase_plane(lambda v: phase_plane.nullclines(parameters, 0.5, v), way))
    still_v, still_w, trajectory, start = ax.lines
    v = still_v.get_xdata()
    assert still_v.get_ydata() == pytest.approx(v - v**3 / 3 + 0.5)
    assert still_w.get_ydata() == pytest.approx((v + 0.7) / 0.8)
    assert trajectory.get_xydata().tolist() == way.tolist()
    assert start.get_xydata().tolist() == [[-1.0, 0.0]]
    low, high = ax.get_ylim()
    assert low < 0 < 1 < high


def test_a_phase_plane_with_an_empty_trajectory_has_nullclines_alone() -> None:
    empty: list[ArrayLike] = [[], np.zeros((0, 2))]
    for nothing in empty:
        assert len(drawn(plots.phase_plane(lambda v: (v, -v), nothing)).lines) == 2


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.raster(np.zeros(16)), r"expected spikes of shape \(n, 16\), got \(16,\)"),
        (lambda: plots.raster(np.zeros((5, 15))), r"expected spikes of shape \(n, 16\), got \(5, 15\)"),
        (lambda: plots.weights([]), r"expected a matrix of weights, .* shape \(0,\)"),
        (lambda: plots.weights(np.zeros((0, 16))), r"expected a matrix of weights, .* shape \(0, 16\)"),
        (lambda: plots.phase_plane(lambda v: (v, -v), [1.0, 2.0]), r"trajectory of shape \(n, 2\), .* got \(2,\)"),
    ],
)
def test_arrays_of_another_shape_are_refused(draw: Callable[[], Axes], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw()
    assert not plt.get_fignums(), "no empty figure is left"


def test_a_learning_window_shows_either_sign_in_a_colour_of_its_own() -> None:
    ax = drawn(plots.stdp_window([-10, -5, 0, 5], [-0.1, -0.2, 0.0, 0.3]))
    up, down = ax.lines[2:]
    assert up.get_xydata().tolist() == [[5, 0.3]]
    assert down.get_xydata().tolist() == [[-10, -0.1], [-5, -0.2]]
    assert up.get_color() != down.get_color()
    assert ax.get_ylabel() == "weight change (mV)"


def test_each_draws_into_axes_that_it_is_given() -> None:
    figure, axes = plt.subplots(1, 5)
    recording = a_recording()
    assert plots.raster(recording.spikes, ax=axes[0]) is axes[0]
    assert plots.membrane(recording, [0], ax=axes[1]) is axes[1]
    assert plots.weights(np.eye(16), ax=axes[2]) is axes[2]
    assert plots.phase_plane(lambda v: (v, -v), ax=axes[3]) is axes[3]
    assert plots.stdp_window([1.0], [1.0], ax=axes[4]) is axes[4]
    assert plt.get_fignums() == [figure.number]


def test_the_engine_and_its_plots_import_without_matplotlib_and_say_what_is_missing() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from neuromod.engine import plots\n"
        "try: plots.raster([[True] * 16])\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "plots need matplotlib; pip install 'neuromod-bridge[plots]'\n"
