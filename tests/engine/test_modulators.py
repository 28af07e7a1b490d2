"""Each neuromodulator has an effect of its own, shown alone, and returns to its baseline in its own time."""

import math
from collections.abc import Callable

import numpy as np
import pydantic
import pytest

from neuromod.engine import tick as kernels
from neuromod.engine.config import (
    ChannelConfig,
    GivenWeightsConfig,
    InhibitionConfig,
    LearningConfig,
    ModulationConfig,
    NetworkConfig,
    RandomWeightsConfig,
)
from neuromod.engine.errors import StimulusError
from neuromod.engine.layout import INHIBITORY
from neuromod.engine.modulators import MODULATORS, NeuroModulators
from neuromod.engine.network import SpikingNetwork

NO_WEIGHTS = GivenWeightsConfig(matrix_mv=((0.0,) * 16,) * 16)
BELOW_THRESHOLD = ChannelConfig(gain=2, bias=0)
ISOLATED = NetworkConfig(sensory=BELOW_THRESHOLD, weights=NO_WEIGHTS)


def settled_mv(modulators: NeuroModulators, stimulus: float = 3.0) -> float:
    """Where the membrane of an isolated channel settles under a constant stimulus of 2 mV each."""
    network = SpikingNetwork(ISOLATED)
    network.run(np.full((600, 16), stimulus), modulators)
    return float(network.state[0]["variables"][0, 0])


def sensory_spikes(modulators: NeuroModulators, config: NetworkConfig | None = None) -> int:
    stimuli = np.random.default_rng(4).uniform(0, 4, (3000, 16))
    return int(SpikingNetwork(config, seed=1).run(stimuli, modulators)[:, :14].sum())


def test_dopamine_scales_sensory_input_with_its_sign() -> None:
    potentials = [settled_mv(NeuroModulators(dopamine=level)) for level in (-1, 0, 0.5, 1)]
    assert potentials == pytest.approx([6 * 0.9, 6, 6 * 1.05, 6 * 1.1], rel=1e-5)
    rates = [sensory_spikes(NeuroModulators(dopamine=level)) for level in (-1, 0, 1)]
    assert rates == sorted(rates)
    assert rates[0] < rates[2]


def test_cortisol_raises_thresholds() -> None:
    def fires(cortisol: float, drive_mv: float) -> bool:
        network = SpikingNetwork(NetworkConfig(sensory=ChannelConfig(gain=1, bias=0), weights=NO_WEIGHTS))
        spikes = network.run(np.full((400, 16), drive_mv), NeuroModulators(cortisol=cortisol))
        return bool(spikes[:, 0].any())

    # 15 mV x (1 + 0.3 x level)
    assert [fires(0, 15.2), fires(0.5, 15.2), fires(0.5, 17.1), fires(0.5, 17.4), fires(1, 19.4), fires(1, 19.6)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip


def test_cortisol_strengthens_inhibition() -> None:
    def inhibition_mv(cortisol: float) -> float:
        weights = np.zeros((16, 16))
        weights[1, INHIBITORY] = 25
        config = NetworkConfig(
            sensory=ChannelConfig(gain=10, bias=0),
            weights=GivenWeightsConfig(matrix_mv=weights.tolist()),
            inhibition=InhibitionConfig(strength_mv=10, duration_ms=5),
        )
        network = SpikingNetwork(config)
        stimuli = np.zeros((3, 16))
        stimuli[0, 1] = 1000
        spikes = network.run(stimuli, NeuroModulators(cortisol=cortisol))
        assert spikes[1, INHIBITORY]
        return -float(network.state[0]["drive"][0])

    assert [inhibition_mv(level) for level in (0, 0.5, 1)] == [10, 15, 20]


def test_cortisol_lowers_the_rates_of_the_network() -> None:
    rates = [sensory_spikes(NeuroModulators(cortisol=level)) for level in (0, 0.5, 1)]
    assert rates[0] > rates[1] > rates[2] > 0


def test_acetylcholine_raises_input_gain_and_lowers_recurrent_gain() -> None:
    assert [settled_mv(NeuroModulators(acetylcholine=level)) for level in (0, 0.5, 1)] == pytest.approx(
        [6, 7.5, 9], rel=1e-5
    )

    def recurrent_mv(level: float) -> float:
        weights = np.zeros((16, 16))
        weights[1, 2] = 4
        network = SpikingNetwork(
            NetworkConfig(
                sensory=ChannelConfig(gain=10, bias=0), weights=GivenWeightsConfig(matrix_mv=weights.tolist())
            )
        )
        stimuli = np.zeros((2, 16))
        stimuli[0, 1] = 1000
        network.run(stimuli, NeuroModulators(acetylcholine=level))
        return float(network.state[0]["variables"][0, 2])

    assert [recurrent_mv(level) for level in (0, 0.5, 1)] == [4, 3, 2]


def test_tempo_scales_the_time_of_the_models() -> None:
    def potential_after(n_ticks: int, tempo: float) -> float:
        network = SpikingNetwork(ISOLATED)
        network.run(np.full((n_ticks, 16), 3.0), NeuroModulators(tempo=tempo))
        return float(network.state[0]["variables"][0, 0])

    for tempo in (0.1, 0.5, 1, 2, 4):
        assert potential_after(10, tempo) == pytest.approx(-6 * math.expm1(-10 * tempo / 20), rel=1e-5)


def test_twice_the_tempo_is_the_same_network_on_twice_the_step() -> None:
    stimuli = np.random.default_rng(5).uniform(0, 4, (4000, 16))
    fast = SpikingNetwork(seed=2, dt_ms=0.5).run(stimuli, NeuroModulators(tempo=2))
    plain = SpikingNetwork(seed=2, dt_ms=1.0).run(stimuli, NeuroModulators(tempo=1))
    assert (fast == plain).all()
    assert plain.any(axis=0).all()


def test_tempo_at_rest_again_gives_the_network_its_own_time_back() -> None:
    quick = ModulationConfig(tempo_tau_ms=5)
    network = SpikingNetwork(ISOLATED.model_copy(update={"modulation": quick}))
    network.run(np.zeros((1, 16)))
    rise = network.state[0]["derived"][0].copy()
    kernels.set_modulator(network.state, MODULATORS.index("tempo"), np.float32(3))
    network.run(np.zeros((1, 16)))
    assert (network.state[0]["derived"][0] != rise)[:14].all()
    network.run(np.zeros((500, 16)))
    assert (network.state[0]["derived"][0] == rise).all()


@pytest.mark.parametrize("dt_ms", [1.0, 0.25])
@pytest.mark.parametrize("name", MODULATORS)
def test_each_modulator_returns_to_its_baseline_with_its_own_time_constant(name: str, dt_ms: float) -> None:
    baseline = NeuroModulators(dopamine=0.1, cortisol=0.2, acetylcholine=0.3, tempo=1.5)
    tau_ms = dict(zip(MODULATORS, (50.0, 400.0, 100.0, 200.0), strict=True))
    modulation = ModulationConfig(baseline=baseline, **{f"{key}_tau_ms": tau for key, tau in tau_ms.items()})
    network = SpikingNetwork(NetworkConfig(modulation=modulation), dt_ms=dt_ms)
    start = 0.9
    kernels.set_modulator(network.state, MODULATORS.index(name), np.float32(start))
    network.run(np.zeros((round(120 / dt_ms), 16)))
    rest = getattr(baseline, name)
    expected = rest + (start - rest) * math.exp(-120 / tau_ms[name])
    assert getattr(network.modulators, name) == pytest.approx(expected, rel=1e-6)
    others = set(MODULATORS) - {name}
    assert all(getattr(network.modulators, other) == getattr(baseline, other) for other in others)


def test_a_level_set_between_two_ticks_acts_in_full_on_the_next() -> None:
    network = SpikingNetwork(ISOLATED)
    kernels.set_modulator(network.state, MODULATORS.index("acetylcholine"), np.float32(1))
    network.step(np.full(16, 2.0))
    assert network.state[0]["drive"][0] == 2 * 2 * 1.5
    assert 0.99 < network.modulators.acetylcholine < 1


def test_dopamine_is_reward_against_its_running_baseline() -> None:
    network = SpikingNetwork(NetworkConfig(modulation=ModulationConfig(reward_rate=0.25, dopamine_tau_ms=1)))
    errors = []
    for reward in (0.8, 0.8, 0.8, 0.0):
        kernels.add_reward(network.state, np.float32(reward))
        errors.append(network.modulators.dopamine)
        network.run(np.zeros((100, 16)))
    expectation = [0.8 * (1 - 0.75**k) for k in range(4)]
    expected = [0.8 - expectation[0], 0.8 - expectation[1], 0.8 - expectation[2], -expectation[3]]
    assert errors == pytest.approx(expected, rel=1e-6)


def test_the_running_baseline_follows_a_sequence_of_rewards_by_rescorla_and_wagner() -> None:
    rate, rewards = 0.3, np.random.default_rng(7).uniform(-0.45, 0.45, 30)
    network = SpikingNetwork(NetworkConfig(modulation=ModulationConfig(reward_rate=rate, dopamine_tau_ms=1)))
    for n, reward in enumerate(rewards):
        # V_n = sum over the rewards before of rate (1 - rate)^(n - 1 - k) r_k
        expected = sum(rate * (1 - rate) ** (n - 1 - k) * rewards[k] for k in range(n))
        network.add_reward(float(reward))
        assert network.modulators.dopamine == pytest.approx(reward - expected, abs=1e-7)  # rewards are float32
        network.run(np.zeros((60, 16)))
        assert network.modulators.dopamine == 0, "60 time constants later"


def test_a_reward_gates_plasticity_and_nothing_else_does() -> None:
    def weight(act: Callable[[SpikingNetwork], None]) -> float:
        puppet = ChannelConfig(gain=100, bias=0)
        learning = LearningConfig(rule="reward", w_min_mv=-1)
        network = SpikingNetwork(NetworkConfig(sensory=puppet, weights=NO_WEIGHTS, learning=learning))
        stimuli = np.zeros((20, 16))
        stimuli[5, 0] = stimuli[10, 1] = 1000
        network.run(stimuli)
        act(network)
        network.run(np.zeros((100, 16)))
        return float(network.weights[0, 1])

    def give(amount: float) -> Callable[[SpikingNetwork], None]:
        return lambda network: network.add_reward(amount)

    assert weight(give(0.5)) > 0 > weight(give(-0.5))
    assert weight(give(0.5)) == pytest.approx(2 * weight(give(0.25)), rel=1e-5)
    assert weight(lambda network: None) == 0
    assert weight(lambda network: network.add_stress(1)) == 0
    assert weight(lambda network: network.boost_focus(1)) == 0
    assert weight(lambda network: network.set_tempo(2)) == 0


def test_each_method_moves_its_own_modulator_alone() -> None:
    acts: tuple[tuple[Callable[[SpikingNetwork], None], dict[str, float]], ...] = (
        (lambda network: network.add_reward(0.5), {"dopamine": 0.5}),
        (lambda network: network.add_stress(0.25), {"cortisol": 0.25}),
        (lambda network: network.boost_focus(0.75), {"acetylcholine": 0.75}),
        (lambda network: network.set_tempo(3), {"tempo": 3.0}),
    )
    for act, expected in acts:
        network = SpikingNetwork()
        act(network)
        assert network.modulators == NeuroModulators(**expected)


def test_what_methods_add_is_held_to_the_range() -> None:
    network = SpikingNetwork(NetworkConfig(modulation=ModulationConfig(reward_rate=0)))
    for _ in range(2):
        network.add_reward(0.8)
        network.add_stress(0.8)
        network.boost_focus(0.8)
        network.set_tempo(8)
    assert network.modulators == NeuroModulators(dopamine=1, cortisol=1, acetylcholine=1, tempo=4)
    for _ in range(3):
        network.add_reward(-0.8)
        network.add_stress(-0.8)
        network.boost_focus(-0.8)
        network.set_tempo(-8)
    assert network.modulators == NeuroModulators(dopamine=-1, cortisol=0, acetylcholine=0, tempo=0.1)


def test_stress_added_between_ticks_raises_the_threshold_of_the_next_and_wears_off() -> None:
    # 16 mV: above the threshold of 15, below that of 15 x (1 + 0.3)
    modulation = ModulationConfig(cortisol_tau_ms=100)
    config = NetworkConfig(sensory=ChannelConfig(gain=1, bias=0), weights=NO_WEIGHTS, modulation=modulation)
    network = SpikingNetwork(config)
    network.add_stress(1)
    fired = network.run(np.full((400, 16), 16.0))[:, 0].nonzero()[0]
    # threshold 15 (1 + 0.3 exp(-t / 100)) falls to 16 at t = 100 ln(4.5) = 150 ms; the membrane follows 16 from below
    assert 150 < fired[0] < 200


def test_focus_added_between_ticks_raises_input_and_wears_off() -> None:
    network = SpikingNetwork(ISOLATED)
    drive = []
    network.boost_focus(1)
    for _ in range(4001):
        network.run(np.full((1, 16), 2.0))
        drive.append(float(network.state[0]["drive"][0]))
    assert [drive[k] for k in (0, 2000, 4000)] == pytest.approx(
        [4 * (1 + 0.5 * math.exp(-k)) for k in range(3)], rel=1e-5
    )


def test_a_tempo_set_between_ticks_speeds_the_next_and_wears_off() -> None:
    network = SpikingNetwork(ISOLATED.model_copy(update={"modulation": ModulationConfig(tempo_tau_ms=50)}))
    network.set_tempo(4)
    v = []
    for _ in range(60):
        network.run(np.full((1, 16), 3.0))
        v.append(float(network.state[0]["variables"][0, 0]))
    # model time passed: sum of 1 + 3 exp(-k / 50)
    for n in (1, 10, 60):
        model_ms = sum(1 + 3 * math.exp(-k / 50) for k in range(n))
        assert v[n - 1] == pytest.approx(-6 * math.expm1(-model_ms / 20), rel=1e-5)


@pytest.mark.parametrize("method", ["add_reward", "add_stress", "boost_focus", "set_tempo"])
@pytest.mark.parametrize("amount", [math.nan, math.inf, 1e300])
def test_an_amount_that_is_no_finite_float32_is_refused_and_moves_nothing(method: str, amount: float) -> None:
    network = SpikingNetwork()
    with pytest.raises(StimulusError, match="expected a finite number"):
        getattr(network, method)(amount)
    assert network.modulators == NeuroModulators()


def test_rewards_and_stresses_between_two_ticks_add_up() -> None:
    network = SpikingNetwork(NetworkConfig(modulation=ModulationConfig(reward_rate=0)))
    for _ in range(3):
        kernels.add_reward(network.state, np.float32(0.25))
        kernels.add_stress(network.state, np.float32(0.125))
    assert (network.modulators.dopamine, network.modulators.cortisol) == (0.75, 0.375)


def test_an_effect_of_zero_takes_a_modulator_out() -> None:
    off = ModulationConfig(
        dopamine_input=0, cortisol_threshold=0, cortisol_inhibition=0, acetylcholine_input=0, acetylcholine_recurrent=0
    )
    config = NetworkConfig(
        modulation=off, weights=RandomWeightsConfig(low_mv=-1, high_mv=1), learning=LearningConfig(rate_per_s=0)
    )
    stimuli = np.random.default_rng(6).uniform(0, 4, (1000, 16))
    plain = SpikingNetwork(config).run(stimuli)
    modulated = SpikingNetwork(config).run(stimuli, NeuroModulators(dopamine=1, cortisol=1, acetylcholine=1))
    assert (plain == modulated).all()


@pytest.mark.parametrize(
    "levels",
    [
        {"dopamine": -1.1},
        {"cortisol": -0.1},
        {"acetylcholine": 1.1},
        {"tempo": 0},
        {"tempo": 5},
        {"cortisol": math.nan},
    ],
)
def test_a_level_out_of_range_is_refused(levels: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(levels))):
        NeuroModulators(**levels)


def test_the_order_of_the_modulators_is_the_same_everywhere() -> None:
    assert tuple(NeuroModulators.model_fields) == MODULATORS
    order = (kernels.DOPAMINE, kernels.CORTISOL, kernels.ACETYLCHOLINE, kernels.TEMPO)
    assert order == tuple(range(4)) == tuple(map(MODULATORS.index, ("dopamine", "cortisol", "acetylcholine", "tempo")))
    levels = NeuroModulators(dopamine=-0.5, cortisol=0.25, acetylcholine=0.75, tempo=2)
    assert levels.as_array().tolist() == [-0.5, 0.25, 0.75, 2]
    assert levels.as_array().dtype == np.float32
