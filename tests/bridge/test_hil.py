"""Hardware in the loop: a right device passes, a wrong one is found out, and where it goes wrong is named."""

from pathlib import Path

import numpy as np
import pytest
from hil_devices import (
    ChangedTwin,
    LosingTwin,
    StuckTwin,
    UnpluggedTwin,
    flip,
    of,
    of_a_board,
    once,
    recording,
    rows,
    truncating,
    try_on,
)
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil import Options, run
from neuromod.bridge.hil_config import Criteria, Timing, criteria_toml, judge, load_criteria
from neuromod.bridge.hil_device import PeerDaemon, make_device
from neuromod.bridge.hil_trace import Trace, differing_words
from neuromod.bridge.replay import play
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import AdapterError, ConfigError, FixedPointError
from neuromod.engine.fixed_network import FixedNetwork


def test_the_twin_passes_with_everything_compared(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(TwinDevice(), config, Criteria(state_every_ticks=500))
    trace = outcome.trace
    assert outcome.is_passed
    assert "failed" not in rows(outcome).values()
    assert (trace.n_ticks, trace.membranes_compared) == (3000, 3000)
    assert trace.states_compared == 1 + 6 + 1  # at the start, every 500 ticks, at the end
    assert np.bitwise_count(trace.column("device")).sum() > 500
    assert (
        trace.weights[0][1] != trace.weights[-1][1]
    ).any()  # synapses learned: more than an idle network was compared


def test_the_loops_own_spikes_are_kept_beside_those_of_the_reference(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(TwinDevice(), config)
    assert outcome.trace.column("float").tolist() == play(config).log.column("spikes").tolist()
    assert rows(outcome)["float_agreement_min"] == "not judged"
    strict = try_on(TwinDevice(), config, Criteria(float_agreement_min=1.0))
    assert rows(strict)["float_agreement_min"] == "failed"


def test_ticks_are_the_same_whatever_the_blocks_they_are_compared_in(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    whole = try_on(TwinDevice(), config, Criteria(state_every_ticks=0))
    parts = try_on(TwinDevice(), config, Criteria(state_every_ticks=7))
    assert whole.trace.column("device").tolist() == parts.trace.column("device").tolist()


def test_the_first_tick_and_channel_that_differ_are_named_with_the_state_around_them(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(ChangedTwin(flip("v", (5,), 17, at_tick=1201)), config)
    divergence = outcome.trace.divergence
    assert divergence is not None
    assert (divergence.kind, divergence.tick, divergence.channels) == ("membranes", 1200, [5])
    at = divergence.tick - divergence.first
    assert abs(int(divergence.v[at, 0, 5]) - int(divergence.v[at, 1, 5])) == 1 << 17
    assert (divergence.v[at - 1, 0] == divergence.v[at - 1, 1]).all()
    assert divergence.n_after > 10
    assert divergence.snapshot is not None  # the whole state was read soon after
    assert rows(outcome)["membrane_mismatches_max"] == "failed"


def test_a_fault_that_no_spike_shows_is_found_in_the_state(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    # the detector's weights reach no neuron of this session: nothing but the memory itself is wrong
    outcome = try_on(ChangedTwin(flip("eligibility", (15, 3), 3, at_tick=2999)), config)
    assert (rows(outcome)["spike_mismatches_max"], rows(outcome)["state_mismatches_max"]) == ("passed", "failed")
    assert outcome.trace.divergence is not None
    assert outcome.trace.divergence.kind == "state"


def test_a_network_that_never_fires_proves_nothing_unless_that_is_said_to_do(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=1000)
    silent = NetworkConfig.model_validate({"sensory": {"gain": 0.0, "bias": 0.0}})
    config = config.model_copy(update={"network": silent})
    assert rows(try_on(TwinDevice(), config))["spikes_min"] == "failed"
    assert try_on(TwinDevice(), config, Criteria(spikes_min=0)).is_passed


def test_lost_answers_are_counted_and_hide_no_difference(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(LosingTwin(every=100), config)
    found = rows(outcome)
    assert outcome.trace.lost == 30
    assert (found["lost_answers_max"], found["link_resent_max"]) == ("failed", "failed")
    assert (found["spike_mismatches_max"], found["state_mismatches_max"]) == ("passed", "passed")
    allowed = Criteria(lost_answers_max=30, link_resent_max=30)
    assert try_on(LosingTwin(every=100), config, allowed).is_passed


def test_a_device_that_is_plugged_in_again_goes_on_where_the_reference_is(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(UnpluggedTwin(1000, comes_back=True), config)
    trace = outcome.trace
    assert (trace.returns, trace.n_ticks, trace.spike_mismatches) == (1, 3000, 0)
    assert 1 <= trace.lost <= 4  # what was under way
    assert rows(outcome)["link_reconnects_max"] == "failed"
    assert trace.snapshots[-1].words == []


def test_a_device_that_stays_away_ends_the_run_and_fails_it(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(UnpluggedTwin(500, comes_back=False), config, reconnect_s=0.2)
    assert outcome.trace.is_device_gone
    assert rows(outcome)["ticks_min"] == "failed"
    assert "no such device" in next(j.why for j in outcome.judgements if j.key == "ticks_min")


def test_a_device_that_falls_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    class Mute(TwinDevice):
        def poll(self, timeout_s: float = 0.0) -> list[Answer]:
            return [a for a in super().poll(timeout_s) if a.tick < 300]

        def load(self, state: np.ndarray) -> None:
            if state[0]["tick"]:
                raise AdapterError("it does not answer")
            super().load(state)

    config, _ = recording(tmp_path, n_ticks=400)
    outcome = try_on(Mute(), config, reconnect_s=0.1)
    assert outcome.trace.is_device_gone
    assert any("no answer to tick 300" in what for _, what in outcome.trace.events)


def with_gain(config: SessionConfig, gain: float) -> SessionConfig:
    """Return the session with another gain of its sensory channels."""
    return config.model_copy(update={"network": NetworkConfig.model_validate({"sensory": {"gain": gain}})})


def past_128_mv(path: Path, gain: int) -> NDArray[np.bool_]:
    """Return which sensory channels such a gain drives past the range at which tick, from the recording alone."""
    words = np.floor(np.load(path).astype(float) * 256 + 0.5).astype(int)[:, :14]
    return np.asarray(words * gain + 12 * 256 >= 1 << 15)


@pytest.mark.parametrize("every", [0, 7])
def test_drives_past_the_range_are_counted_over_the_run_and_fail_it_only_where_that_has_a_limit(
    tmp_path: Path, every: int
) -> None:
    config, path = recording(tmp_path)
    expected = past_128_mv(path, 60)
    outcome = try_on(TwinDevice(), with_gain(config, 60.0), Criteria(state_every_ticks=every))
    found = outcome.trace.saturation
    assert outcome.is_passed
    assert (found.n_ticks, found.ticks) == (3000, expected.any(axis=1).sum())
    assert found.channels.tolist() == [*expected.sum(axis=0), 0, 0]
    row = next(j for j in outcome.judgements if j.key == "saturated_drives_share_max")
    assert (row.status, row.value, row.bound) == ("not judged", found.share, None)
    assert 0.0 < found.share < 1.0
    for limit, status in ((found.share, "passed"), (0.99 * found.share, "failed")):
        strict = Criteria(saturated_drives_share_max=limit)
        assert rows(try_on(TwinDevice(), with_gain(config, 60.0), strict))["saturated_drives_share_max"] == status
    assert rows(try_on(TwinDevice(), config, Criteria(saturated_drives_share_max=0.0)))[row.key] == "passed"


def test_of_a_reference_in_floating_point_no_drive_is_judged() -> None:
    for criteria in (Criteria(), Criteria(saturated_drives_share_max=0.0)):
        row = next(j for j in judge(criteria, Trace(), Timing(1e3, "")) if j.key == "saturated_drives_share_max")
        assert (row.status, row.found, row.why) == ("not judged", "-", "the reference is not in fixed point")


def test_a_device_that_comes_back_has_no_tick_looked_at_twice(tmp_path: Path) -> None:
    config, path = recording(tmp_path)
    found = try_on(UnpluggedTwin(1000, comes_back=True), with_gain(config, 60.0)).trace.saturation
    assert (found.n_ticks, found.ticks) == (3000, past_128_mv(path, 60).any(axis=1).sum())


def test_a_run_ends_after_the_tick_it_was_told(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    assert try_on(TwinDevice(), config, until_tick=1234).trace.n_ticks == 1234


# -- bisection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index", "bit"),
    [("threshold", (3,), 9), ("weights", (2, 7), 25), ("eligibility", (0, 1), 22), ("v", (6,), 0)],
)
def test_bisection_names_tick_and_register_of_a_bit_that_flips(
    tmp_path: Path, name: str, index: tuple[int, ...], bit: int
) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(ChangedTwin(flip(name, index, bit, at_tick=1700)), config, bisect=True)
    found = outcome.bisection
    assert found is not None
    assert (found.kind, found.tick) == ("found", 1699)
    first = found.words[0]
    assert (first.register.name, first.index) == (name, index)
    assert first.expected ^ first.found == 1 << bit


def test_bisection_tells_a_wrong_computation_from_a_memory_fault(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome = try_on(ChangedTwin(truncating), config, bisect=True)
    found = outcome.bisection
    assert found is not None
    assert found.repeats
    assert "wrong computation" in found.summary
    assert found.words[0].name == "v[5]"
    # not a tick earlier: that far, the twin itself never has an odd membrane above 9 mV there
    network = FixedNetwork(config.network)
    stimuli = np.load(tmp_path / "stimuli0.npy")
    for k in range(found.tick or 0):
        network.run(stimuli[k : k + 1])
        v = int(network.state[0]["v"][5])
        assert v <= 9 << 16 or v % 2 == 0


def test_bisection_says_that_a_fault_does_not_come_again(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    change = once(flip("v", (5,), 17, at_tick=1201), 1200)
    found = try_on(ChangedTwin(change), config, bisect=True).bisection
    assert found is not None
    assert found.kind == "not reproduced"
    assert "does not come again" in found.summary


def test_bisection_names_a_register_that_holds_nothing(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)

    class Later(StuckTwin):
        is_stuck = False

        def load(self, state: np.ndarray) -> None:
            if self.is_stuck:
                super().load(state)
            else:
                TwinDevice.load(self, state)
            self.is_stuck = True

        def submit(self, tick: int, *rest: object) -> None:
            self.state[0]["threshold"][4] |= 1
            super().submit(tick, *rest)  # type: ignore[arg-type]

    found = try_on(Later(), config, bisect=True).bisection
    assert found is not None
    assert found.kind == "memory"
    assert "threshold[4]" in found.summary


def test_nothing_is_bisected_where_nothing_differs(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=1200)
    assert try_on(TwinDevice(), config, bisect=True).bisection is None


def test_differing_words_come_parameters_first_then_as_a_tick_makes_them() -> None:
    one = FixedNetwork().state
    other = one.copy()
    for name, index in (("weights", (1, 2)), ("v", (3,)), ("bias", (0,))):
        other[0][name][index] += 1
    assert [word.name for word in differing_words(one, other)] == ["bias[0]", "v[3]", "weights[1][2]"]


# -- criteria, and what is refused ------------------------------------------------------------------------------------


def test_the_printed_criteria_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text(criteria_toml())
    assert load_criteria(path) == Criteria()
    uncommented = [line.removeprefix("# ") for line in criteria_toml().splitlines() if " = " in line]
    path.write_text("\n".join(uncommented))
    assert set(load_criteria(path).model_fields_set) == set(Criteria.model_fields)


def test_a_bad_key_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text("ticks_min = 10\nspike_mismatch_max = 0\n")
    with pytest.raises(ConfigError, match=r"line 2.*spike_mismatch_max.*spike_mismatches_max"):
        load_criteria(path)


def test_what_was_not_judged_fails_only_where_all_is_required(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    assert rows(try_on(TwinDevice(), config))["round_trip_p50_us"] == "not judged"
    strict = try_on(TwinDevice(), config, Criteria(require_all=True))
    assert rows(strict)["round_trip_p50_us"] == "failed"
    assert rows(strict)["round_trip_max_us"] == "not judged"  # it has no limit


def test_a_network_that_no_board_has_is_refused_by_name(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    learning = config.network.learning.model_copy(update={"rule": "hebbian"})
    other = config.model_copy(update={"network": config.network.model_copy(update={"learning": learning})})
    with pytest.raises(FixedPointError, match="hebbian"):
        try_on(TwinDevice(), other)


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ("twin", {"faults": ("stop:tick=5",)}, "--fault goes with --device sim"),
        ("sim", {"faults": ("burn:tick=5",)}, "burn"),
        ("ipc:///tmp/x", {}, "INGEST,OUTPUT"),
    ],
)
def test_bad_devices_get_one_clear_sentence(which: str, options: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_device(which, lambda: FixedNetwork().state, **options)  # type: ignore[arg-type]


def test_a_port_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=100)
    with pytest.raises(AdapterError, match="nowhere"):
        run(config, lambda state: make_device(str(tmp_path / "nowhere"), state), Criteria(), Options())


def test_a_line_too_slow_for_the_pace_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=100)
    with pytest.raises(ConfigError, match=r"115200 baud carry \d+ ticks/s"):
        run(
            config,
            lambda state: make_device(str(tmp_path / "nowhere"), state, protocol="siliconbridge"),
            Criteria(),
            Options(speed=1.0),
        )


def test_a_daemon_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuromod.bridge.hil_device._READY_S", 0.2)
    with pytest.raises(AdapterError, match="no daemon is heard"):
        PeerDaemon("ipc:///tmp/neuromod-no-such-in", "ipc:///tmp/neuromod-no-such-out").open()


def test_the_device_is_given_back_however_the_run_ends(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=100)
    closed = []

    class Closing(TwinDevice):
        def load(self, state: np.ndarray) -> None:
            raise AdapterError("it does not take it")

        def close(self) -> None:
            closed.append("device")

    with pytest.raises(AdapterError, match="does not take it"):
        run(config, of(Closing(), stop=lambda: closed.append("simulation")), Criteria(), Options())
    assert closed == ["device", "simulation"]


def test_a_session_whose_network_is_a_board_is_played_without_it(tmp_path: Path) -> None:
    plain, _ = recording(tmp_path)
    outcome = try_on(TwinDevice(), of_a_board(plain))
    assert outcome.is_passed
    assert outcome.trace.column("float").tolist() == play(plain).log.column("spikes").tolist()
    assert outcome.trace.column("float").any()
