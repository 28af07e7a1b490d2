"""The host of a fixed-point network: the neuromodulators of `tick`, as words, before every tick."""

import numpy as np
import pytest

from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import FixedPointError, StimulusError
from neuromod.engine.fixed_host import HostedFixedNetwork
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.network import SpikingNetwork

STIMULI = np.repeat(np.random.default_rng(5).uniform(0, 3, (60, 16)), 20, axis=0)


def test_levels_follow_those_of_the_floating_point_network_and_words_follow_the_levels() -> None:
    hosted, floating, bare = HostedFixedNetwork(), SpikingNetwork(), FixedNetwork()
    rng = np.random.default_rng(1)
    at = 0
    while at < len(STIMULI):
        n = int(rng.integers(1, 90))
        for network in (hosted, floating):
            network.add_reward(0.5 if at % 3 else -0.4)
            network.add_stress(0.1)
            network.boost_focus(0.2)
        expected = []
        for row in STIMULI[at : at + n]:
            expected.append(bare.run(row[np.newaxis], bare.modulation_words(floating.modulators)[np.newaxis])[0])
            floating.step(row)
        assert (hosted.run(STIMULI[at : at + n]) == expected).all()
        assert hosted.modulators == floating.modulators
        at += n
    assert hosted.network.state == bare.state
    assert (hosted.weights != FixedNetwork().weights).any()


def test_step_by_step_is_all_at_once() -> None:
    at_once, stepped = HostedFixedNetwork(), HostedFixedNetwork()
    for network in (at_once, stepped):
        network.add_reward(1.0)
    rows = STIMULI[:200]
    assert (at_once.run(rows) == [stepped.step(row) for row in rows]).all()
    assert at_once.network.state == stepped.network.state
    assert at_once.modulators == stepped.modulators


def test_a_refused_call_leaves_network_and_levels_as_they_were() -> None:
    hosted = HostedFixedNetwork(NetworkConfig.model_validate({"inhibition": {"strength_mv": 200.0}}))
    hosted.add_reward(1.0)
    before, levels = hosted.network.state.copy(), hosted.modulators
    with pytest.raises(StimulusError, match="finite"):
        hosted.run(np.full((3, 16), np.nan))
    assert (hosted.network.state, hosted.modulators) == (before, levels)
    with pytest.raises(StimulusError, match="finite number as reward"):
        hosted.add_reward(float("nan"))
    assert (hosted.network.state, hosted.modulators) == (before, levels)
    hosted.add_stress(1.0)  # doubles the inhibition: 400 mV is more than a register holds
    levels = hosted.modulators
    with pytest.raises(FixedPointError, match=r"^inhibition\[0\] is 400 mV, expected 0 to 256 \(UQ8\.16\)$"):
        hosted.run(STIMULI[:3])
    assert (hosted.network.state, hosted.modulators) == (before, levels)
