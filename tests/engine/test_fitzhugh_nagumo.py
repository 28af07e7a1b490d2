"""FitzHugh-Nagumo against an accurate solution of its equations, and its phase plane against what the neuron does."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import (
    ChannelConfig,
    ChannelOverride,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    NetworkConfig,
)
from neuromod.engine.models.fitzhugh_nagumo import FITZHUGH_NAGUMO
from neuromod.engine.models.phase_plane import fixed_points, nullclines, regime
from neuromod.engine.modulators import NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
NONE = LearningConfig(rule="none")
DEFAULTS = FITZHUGH_NAGUMO.complete({})
BISTABLE = FITZHUGH_NAGUMO.complete({"a": 0.0, "b": 2.0})
HOPF = (0.3312813, 1.4187187)  # where trace = 0: v = -+sqrt(1 - epsilon b), I = v^3 / 3 - v + (v + a) / b


def lone(bias: float, **parameters: float) -> NetworkConfig:
    """Neurons that do not know of each other, under a constant drive."""
    neuron = ChannelConfig(model="fitzhugh_nagumo", gain=1, bias=bias, parameters=parameters)
    return NetworkConfig(sensory=neuron, weights=NO_WEIGHTS, inhibition=InhibitionConfig(strength_mv=0), learning=NONE)


def with_drives(drives: list[float], **parameters: float) -> NetworkConfig:
    """A neuron for each drive, on the channels from 0."""
    config = lone(0, **parameters)
    return config.model_copy(update={"channels": {i: ChannelOverride(bias=drive) for i, drive in enumerate(drives)}})


def state(network: SpikingNetwork, channel: int = 0) -> tuple[float, float]:
    v, w = network.state[0]["variables"][:2, channel].tolist()
    return v, w


def solve(current: float, start: tuple[float, float], times: np.ndarray) -> np.ndarray:
    """The textbook's equations with the default parameters, to 1e-8: v at `times`."""

    def slope(t: float, y: np.ndarray) -> list[float]:
        v, w = y
        return [v - v**3 / 3 - w + current, 0.08 * (v + 0.7 - 0.8 * w)]

    solution = solve_ivp(slope, (0, times[-1]), start, method="DOP853", rtol=1e-9, atol=1e-10, t_eval=times)
    return np.asarray(solution.y[0])


def test_it_starts_at_the_fixed_point_without_drive() -> None:
    # v^3 / 3 - v + (v + a) / b = 0, as textbooks have it
    assert state(SpikingNetwork(lone(0))) == pytest.approx((-1.1994080352, -0.6242600441), rel=1e-7)
    network = SpikingNetwork(lone(0))
    network.run(np.zeros((500, 16)))
    assert state(network) == pytest.approx((-1.1994080352, -0.6242600441), rel=1e-6)


def test_spike_counts_under_a_current_step_are_those_of_the_equations() -> None:
    # from rest, current on at 0, over 1000 time units. Counts of the literature's table, within its one spike; and
    # exactly those of an accurate solution, at a tick of four substeps and at one of a single, shorter substep
    drives = [0.32, 0.325, 0.33, 0.34, 0.5, 0.7, 1.0, 1.4]
    table = [1, 20, 20, 21, 25, 27, 27, 22]
    times = np.linspace(0, 1000, 10_001)
    solved = []
    for drive in drives:
        above = solve(drive, state(SpikingNetwork(lone(0))), times) >= 0
        solved.append(int((above[1:] & ~above[:-1]).sum()))
    for dt_ms in (1.0, 0.2) if JIT_ENABLED else (1.0,):
        network = SpikingNetwork(with_drives(drives), dt_ms=dt_ms)
        counts = network.run(np.zeros((round(1000 / dt_ms), 16))).sum(axis=0)[: len(drives)]
        assert counts.tolist() == solved
        assert counts == pytest.approx(table, abs=1)


def test_a_step_of_current_fires_repetitively_from_between_0_32_and_0_33_on() -> None:
    spikes = SpikingNetwork(with_drives([0.32, 0.33])).run(np.zeros((2000, 16)))
    # the step itself is one push, and one spike; what counts is whether more follow
    assert spikes[1000:].sum(axis=0)[:2].tolist() == [0, pytest.approx(20, abs=1)]


@pytest.mark.parametrize(("current", "duration"), [(1.0, 20.0), (5.0, 4.0)])
def test_convergence_is_of_fourth_order(current: float, duration: float) -> None:
    errors = []
    for dt_ms in (1 / 4, 1 / 8, 1 / 16) if current == 1 else (1 / 8, 1 / 16, 1 / 32):
        network = SpikingNetwork(lone(current), dt_ms=dt_ms)
        times = np.arange(1, round(duration / dt_ms) + 1) * dt_ms
        expected = solve(current, state(network), times)
        found = []
        for _ in times:
            network.step(np.zeros(16))
            found.append(state(network)[0])
        errors.append(np.abs(np.array(found) - expected).max())
    # each halving of the substep takes 16 times off the error, down to the 1e-6 of sums in float32, which the
    # shortest substeps here still lie above
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders == pytest.approx([4, 4], abs=0.5)
    assert errors[-1] > 2e-6


def test_a_tick_of_any_length_is_cut_into_substeps_of_at_most_a_quarter() -> None:
    for dt_ms, time_unit_ms, expected in ((1.0, 1.0, 4), (0.3, 1.0, 2), (0.25, 1.0, 1), (0.1, 4.0, 1), (1.0, 0.1, 40)):
        network = SpikingNetwork(lone(0.2, time_unit_ms=time_unit_ms), dt_ms=dt_ms)
        network.step(np.zeros(16))
        substep, n_substeps = network.state[0]["derived"][:2, 0]
        assert n_substeps == expected
        assert substep * n_substeps == pytest.approx(dt_ms / time_unit_ms)


def test_time_unit_and_tempo_scale_time_alone() -> None:
    slow = SpikingNetwork(lone(0.7, time_unit_ms=4.0)).run(np.zeros((4000, 16)))[:, 0]
    plain = SpikingNetwork(lone(0.7)).run(np.zeros((1000, 16)))[:, 0]
    fast = SpikingNetwork(lone(0.7, time_unit_ms=4.0)).run(np.zeros((1000, 16)), NeuroModulators(tempo=4.0))[:, 0]
    assert plain.sum() == pytest.approx(27, abs=1)
    # the same substeps of 0.25 time units, four to a tick or one
    assert (np.flatnonzero(slow) // 4).tolist() == np.flatnonzero(plain).tolist() == np.flatnonzero(fast).tolist()


def test_a_channel_does_not_depend_on_the_time_unit_of_another() -> None:
    alone = SpikingNetwork(lone(0.7))
    config = lone(0.7).model_copy(update={"channels": {3: ChannelOverride(parameters={"time_unit_ms": 0.1})}})
    together = SpikingNetwork(config)
    for network in (alone, together):
        network.run(np.zeros((200, 16)))
    assert state(alone, 0) == state(together, 0)
    assert state(alone, 3) != state(together, 3)


@pytest.mark.parametrize(("charge_mv", "fires"), [(13.0, False), (14.0, True), (40.0, True), (-40.0, False)])
def test_a_charge_fires_a_resting_neuron_as_its_phase_plane_has_it(charge_mv: float, fires: bool) -> None:
    # the threshold lies between displacements of v by 0.52 and 0.56; 40 mV cross v_threshold by themselves; and
    # after a single negative charge v is back before w has fallen
    weights = np.zeros((16, 16))
    weights[0, 1] = charge_mv
    config = lone(0).model_copy(update={"weights": GivenWeightsConfig(matrix_mv=weights.tolist())})
    network = SpikingNetwork(config)
    before = state(network, 1)[0]
    network.state[0]["arriving"] = 1
    spikes = network.run(np.zeros((60, 16)))[:, 1]
    start = (before + charge_mv / 25, state(SpikingNetwork(lone(0)))[1])
    solved = solve(0.0, start, np.linspace(0, 60, 6001)).max() > 1
    assert bool(spikes.any()) == fires == solved
    assert spikes.sum() <= 1


def test_ringing_about_a_blocked_state_is_no_spike() -> None:
    # just above the upper bifurcation v rings about 0.97 for hundreds of time units
    spikes = SpikingNetwork(with_drives([1.43, 1.5])).run(np.zeros((1000, 16)))
    assert spikes.sum(axis=0)[:2].tolist() == [1, 1]
    at_one = SpikingNetwork(with_drives([1.43], v_threshold=1.0)).run(np.zeros((1000, 16)))
    assert at_one[:, 0].sum() > 5, "which is why v_threshold is not 1"


def test_inhibition_of_1_mv_moves_the_resting_membrane_by_1_mv() -> None:
    network = SpikingNetwork(lone(0))
    rest = state(network)[0]
    network.run(np.full((2000, 16), -network.state[0]["inhibited"][0]))
    # the slope at rest; over 0.04 units of v the cubic bends away from it by 2 %
    assert (state(network)[0] - rest) * DEFAULTS["v_unit_mv"] == pytest.approx(-1, rel=0.04)


def test_inhibition_silences_a_neuron_whose_current_has_no_slope_at_its_fixed_point() -> None:
    network = SpikingNetwork(lone(0.01, a=0.0, b=1.0))
    assert network.run(np.zeros((500, 16)))[:, 0].sum() > 10
    inhibited = np.full((500, 16), -30 * network.state[0]["inhibited"][0])
    assert network.run(inhibited)[10:, 0].sum() == 0


def test_release_from_inhibition_fires_as_it_does_squid_nerve() -> None:
    network = SpikingNetwork(lone(0))
    network.run(np.full((200, 16), -0.5))
    assert network.run(np.zeros((30, 16)))[:, 0].sum() == 1


def test_the_preset_is_that_of_1961() -> None:
    neuron = ChannelConfig(model="fitzhugh_nagumo", preset="fitzhugh_1961")
    assert neuron.complete_parameters() == DEFAULTS | {"epsilon": 1 / 9}


# -- phase plane


def test_nullclines_are_the_cubic_and_the_line() -> None:
    cubic, line = nullclines(DEFAULTS, 0.5, [-1.0, 0.0, 1.0])
    assert cubic == pytest.approx([-2 / 3 + 0.5, 0.5, 2 / 3 + 0.5])
    assert line == pytest.approx([-0.3 / 0.8, 0.7 / 0.8, 1.7 / 0.8])


@pytest.mark.parametrize(("parameters", "current", "n"), [
    (DEFAULTS, 0.0, 1), (DEFAULTS, -10.0, 1), (DEFAULTS, 10.0, 1), (BISTABLE, 0.0, 3), (BISTABLE, 1.0, 1),
    (DEFAULTS | {"b": 0.05}, 0.0, 1), (DEFAULTS | {"b": 5.0}, 0.0, 3),
])  # fmt: skip
def test_fixed_points_are_all_the_crossings_of_the_nullclines(
    parameters: dict[str, float], current: float, n: int
) -> None:
    points = fixed_points(parameters, current)
    cubic, line = nullclines(parameters, current, points[:, 0])
    assert cubic == pytest.approx(line, abs=1e-12)
    assert line == pytest.approx(points[:, 1], abs=1e-12)
    assert (np.diff(points[:, 0]) > 0).all()
    a, b = parameters["a"], parameters["b"]
    roots = np.roots([1 / 3, 0, 1 / b - 1, a / b - current])
    real = np.sort(roots[abs(roots.imag) < 1e-9].real)
    assert points[:, 0] == pytest.approx(real, abs=1e-9)
    assert len(points) == n


def test_the_regime_changes_where_the_trace_of_the_jacobian_does() -> None:
    for edge, below, above in ((HOPF[0], "excitable", "oscillatory"), (HOPF[1], "oscillatory", "blocked")):
        assert regime(DEFAULTS, edge - 1e-6) == below
        assert regime(DEFAULTS, edge + 1e-6) == above


@pytest.mark.parametrize(
    ("current", "expected"), [(-1.0, "excitable"), (0.2, "excitable"), (0.3, "excitable"), (0.34, "oscillatory"),
                              (0.8, "oscillatory"), (1.41, "oscillatory"), (1.45, "blocked"), (3.0, "blocked")]
)  # fmt: skip
def test_the_regime_is_what_the_neuron_does(current: float, expected: str) -> None:
    assert regime(DEFAULTS, current) == expected
    network = SpikingNetwork(lone(current))
    network.run(np.zeros((1000, 16)))
    late = network.run(np.zeros((500, 16)))[:, 0].sum()
    assert (late > 5) == (expected == "oscillatory")
    if expected != "oscillatory":
        # near the bifurcation the neuron still rings, ever less: 0.005 after 1500 time units at 0.02 beyond it
        assert state(network)[0] == pytest.approx(fixed_points(DEFAULTS, current)[0, 0], abs=0.01)
        assert (state(network)[0] > 0) == (expected == "blocked")


def test_a_bistable_neuron_stays_where_a_push_has_put_it() -> None:
    assert regime(BISTABLE, 0.0) == "bistable"
    low, middle, high = fixed_points(BISTABLE, 0.0)
    assert (low, middle, high) == (pytest.approx(-high), pytest.approx([0, 0]), pytest.approx(-low))
    network = SpikingNetwork(lone(0, a=0.0, b=2.0))
    assert state(network) == pytest.approx(tuple(low), rel=1e-6)
    for push, where in ((1.0, high), (0.0, high), (-1.0, low), (0.0, low)):
        network.run(np.full((500, 16), push))
        if push == 0:
            assert state(network) == pytest.approx(tuple(where), rel=1e-4)


def test_a_neuron_without_a_rest_starts_at_its_fixed_point_and_leaves_it_at_the_least_push() -> None:
    parameters = DEFAULTS | {"a": 0.1}
    assert regime(parameters, 0.0) == "oscillatory"
    network = SpikingNetwork(lone(0, a=0.1))
    assert state(network) == pytest.approx(tuple(fixed_points(parameters, 0.0)[0]), rel=1e-6)
    network.run(np.full((1, 16), 0.001))
    assert network.run(np.zeros((1000, 16)))[:, 0].sum() > 10


def test_the_largest_drive_and_charge_leave_no_trace_but_in_recovery() -> None:
    network = SpikingNetwork(lone(0))
    network.run(np.full((100, 16), 1000.0))
    v, w = state(network)
    assert (v, w) == pytest.approx(tuple(fixed_points(DEFAULTS, FITZHUGH_NAGUMO.input_limit)[0]), rel=1e-3)
    network.run(np.zeros((300, 16)))
    assert state(network) == pytest.approx(tuple(fixed_points(DEFAULTS, 0.0)[0]), abs=1e-3)
    assert math.isfinite(v)


def test_variables_next_to_0_are_0_and_never_subnormal() -> None:
    # a fixed point at 0, from which the least drive would move them by less than a normal number
    network = SpikingNetwork(lone(1e-39, a=0.0))
    for _ in range(20):
        network.step(np.zeros(16))
        assert state(network) == (0.0, 0.0)
