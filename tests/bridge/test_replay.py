"""Replay: the same recording gives the same spikes, however and however fast it is played."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from neuromod.adapters.base import Marker
from neuromod.adapters.memory import MemorySource
from neuromod.bridge.cli import app
from neuromod.bridge.config import SessionConfig, for_recording, parse
from neuromod.bridge.replay import play
from neuromod.engine.errors import ConfigError

SESSION = """
source = {kind = "lsl", name = "in memory here"}
[front_end]
warmup_s = 0.2
[encoder]
warmup_s = 0.2
"""


def noisy_spikes(seed: int, n_channels: int = 16, seconds: float = 1.5, fs: float = 20_000.0) -> MemorySource:
    """Noise with a spike of -80 uV now and then on every channel."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0.0, 8.0, (int(seconds * fs), n_channels)).astype(np.float32)
    shape = -80.0 * np.exp(-(((np.arange(30) - 8) / 3.0) ** 2)).astype(np.float32)
    for channel in range(n_channels):
        for at in rng.integers(0, len(samples) - 40, int(30 * seconds)):
            samples[at : at + 30, channel] += shape
    return MemorySource(samples, fs, markers=[Marker(0.5, "cue", 3), Marker(0.50004, "go")])


def session() -> SessionConfig:
    return parse(SESSION)


@pytest.mark.parametrize("seed", [0, 1])
def test_replaying_a_recording_twice_gives_identical_spikes(seed: int) -> None:
    first, second = play(session(), noisy_spikes(seed)), play(session(), noisy_spikes(seed))
    assert sum(first.log.spikes_per_channel()) > 50
    assert first.log.digest() == second.log.digest()


def test_a_seed_of_the_network_changes_the_spikes() -> None:
    one = play(parse(SESSION + "[network]\nseed = 1\n"), noisy_spikes(0))
    two = play(parse(SESSION + "[network]\nseed = 2\n"), noisy_spikes(0))
    assert one.log.digest() != two.log.digest()


def test_every_sample_and_every_tick_is_accounted_for() -> None:
    result = play(session(), noisy_spikes(0, seconds=1.5, fs=20_000.0))
    assert result.counters["samples"] == 30_000
    assert result.log.column("tick").tolist() == list(range(1500))
    assert result.log.column("sample").tolist() == list(range(20, 30_001, 20))


def test_markers_are_given_the_first_tick_that_is_not_before_them() -> None:
    result = play(session(), noisy_spikes(0))
    times, ticks = result.log.column("t_sample"), result.log.column("tick")
    assert [event.name for event in result.events] == ["cue", "go"]
    for event in result.events:
        at = int(np.flatnonzero(times >= event.t)[0])
        assert event.tick == ticks[at]


def test_replay_stops_after_the_tick_it_was_told() -> None:
    whole, part = play(session(), noisy_spikes(0)), play(session(), noisy_spikes(0), until_tick=700)
    assert part.log.n_ticks == 700
    assert np.array_equal(part.log.column("spikes"), whole.log.column("spikes")[:700])


def test_a_live_source_cannot_be_replayed() -> None:
    with pytest.raises(ConfigError, match="live"):
        play(session())


def test_command_keeps_the_spikes_and_prints_what_a_program_can_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    np.save(tmp_path / "counts.npy", rng.poisson(2.0, (400, 20)).astype(np.float32))
    out = tmp_path / "spikes.npz"
    arguments = ["replay", str(tmp_path / "counts.npy"), "--bin-ms", "20", "--json", "--spikes-out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    with np.load(out) as kept:
        assert summary["ticks"] == len(kept["tick"]) == 400 * 20  # bins of 20 ms, ticks of 1 ms
        assert summary["spikes"] == [int((kept["spikes"] >> i & 1).sum()) for i in range(16)]


@pytest.mark.parametrize(
    ("relative", "options", "expected"),
    [
        ("m1-utah-wristflexion-jango/Jango_20141203_default_offline_data.mat",
         {"bin_ms": 50.0, "stream": "train_data.spikeratedata"}, {"samples": 24_000, "ticks": 1_200_000}),
        ("openephys-binary-32ch", {}, {"samples": 49_408}),
        ("utah-segments/ResetCorrect/reset.ns2", {}, {}),
        ("utah-reach-to-grasp-l101210/l101210-001.ns2", {}, {}),
        ("neuropixels1-spikeglx-60ms/supercat_5-19-2022-CI0_g0", {"stream": "imec0.ap"}, {"samples": 1_799}),
        ("lsl-xdf/example-files/minimal.xdf", {"stream": "SendDataC"}, {"samples": 9}),
        ("lsl-xdf/example-files/clock_resets.xdf", {"stream": "BioSemi"}, {"samples": 27_815, "backward_steps": 1}),
        ("lsl-xdf/MagicBlinkEMG/markersPlusEKG.xdf", {"stream": "obci_eeg1"}, {"samples": 5_620, "gaps": 0}),
        ("lsl-xdf/MagicBlinkEMG/three_motion_one.xdf", {"stream": "obci_eeg1"}, {"samples": 77_200, "gaps": 0}),
    ],
)  # fmt: skip
def test_real_recordings_play_to_the_end_with_their_quirks_counted(
    recordings: Path, relative: str, options: dict[str, float | str], expected: dict[str, int]
) -> None:
    result = play(for_recording(recordings / relative, **options))  # type: ignore[arg-type]
    counters = result.counters
    assert counters["samples"] > 0
    assert counters["ticks"] == result.log.n_ticks
    assert {name: counters[name] for name in expected} == expected
    # whatever was odd about the stamps is in the counters, and every sample went somewhere
    newest = int(result.log.column("sample")[-1]) if result.log.n_ticks else 0
    block = counters["samples"] + counters["samples_filled"] - newest
    assert 0 <= block <= 1000


def test_locust_tetrode_plays_as_raw_signal(recordings: Path) -> None:
    text = f"""
    [source]
    kind = "recording"
    path = "{recordings / "locust-tetrode" / "locust_trial_01.raw"}"
    format = "binary"
    sampling_frequency_hz = 15000
    n_channels = 4
    dtype = "int16"
    """
    result = play(parse(text))
    n_bytes = (recordings / "locust-tetrode" / "locust_trial_01.raw").stat().st_size
    assert result.counters["samples"] == n_bytes // (2 * 4)  # int16, 4 channels
    assert sum(result.log.spikes_per_channel()[:4]) > 0


def test_a_recording_has_no_board_that_could_be_the_network() -> None:
    config = parse(SESSION + "[offload]\ndelay_ticks = 2\n[publish]\nstimuli = true\n")
    with pytest.raises(ConfigError, match=r"\[offload\]: a board outside is the network.*--speed 1.*neuromod hil"):
        play(config, noisy_spikes(0))
