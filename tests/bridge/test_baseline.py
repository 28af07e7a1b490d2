"""`neuromod baseline`: what it measures, what it writes, and that a session is then frozen to it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from neuromod.bridge.cli import app
from neuromod.bridge.config import load
from neuromod.bridge.replay import play

FS = 20_000.0


@pytest.fixture
def session_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    samples = rng.normal(0.0, 10.0, (int(3 * FS), 8)).astype(np.float32)
    samples[:, 3] = 0.0  # a dead channel
    samples[100, 2] = np.nan  # and a sample that is none
    samples.tofile(tmp_path / "rest.raw")
    path = tmp_path / "session.toml"
    path.write_text(
        f"""
        [source]
        kind = "recording"
        path = "rest.raw"
        format = "binary"
        sampling_frequency_hz = {FS}
        n_channels = 8
        dtype = "float32"
        gain_uv = 1.0
        """
    )
    return path


def measure(session_file: Path, folder: Path, seconds: float = 2.0) -> Path:
    arguments = ["baseline", str(session_file), "--seconds", str(seconds), "-o", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def test_thresholds_exclusions_and_normalisation_are_written_to_a_dated_file(
    session_file: Path, tmp_path: Path
) -> None:
    path = measure(session_file, tmp_path / "baselines")
    body = json.loads(path.read_text())
    assert path.parent == tmp_path / "baselines"
    assert list(body["excluded"].values()) == ["dead"]
    live = [level for level in body["threshold_uv"] if level is not None]
    # white noise of 10 uV keeps sqrt(5700 / 10000) of its deviation in the band of 300 to 6000 Hz; the filter's slopes
    # and the estimate over a second account for the tenth
    assert live == pytest.approx([-4.5 * 10.0 * np.sqrt(0.57)] * 7, rel=0.1)


def test_a_session_with_a_baseline_needs_no_warm_up(session_file: Path, tmp_path: Path) -> None:
    path = measure(session_file, tmp_path)
    without = play(load(session_file))
    session_file.write_text(session_file.read_text() + f'\n[session]\nbaseline = "{path}"\n')
    frozen = play(load(session_file))
    # the recording is shorter than the default warm-up: without a baseline the network never hears of it
    assert sum(without.log.spikes_per_channel()) == 0
    assert sum(frozen.log.spikes_per_channel()) > 0


@pytest.mark.compiled_loop
def test_a_baseline_of_another_stream_is_refused_in_one_sentence(session_file: Path, tmp_path: Path) -> None:
    path = measure(session_file, tmp_path)
    text = session_file.read_text().replace("n_channels = 8", "n_channels = 4")
    session_file.write_text(text + f'\n[session]\nbaseline = "{path}"\n')
    result = CliRunner().invoke(app, ["start", str(session_file)])
    assert result.exit_code == 2
    assert "channel" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_recording_that_is_too_short_is_said_to_be(session_file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["baseline", str(session_file), "--seconds", "60", "-o", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "60 s" in result.stderr
    assert not (tmp_path / "none").exists()
