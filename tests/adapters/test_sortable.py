"""Recordings opened for sorting: the samples and channels that the loop has, with the probe that the file carries."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromod.adapters.config import RecordingConfig
from neuromod.adapters.sortable import open_sortable, reader_recording
from neuromod.engine.errors import RecordingError


@pytest.fixture(autouse=True)
def files_closed() -> Iterator[None]:
    """neo closes nothing and refers to itself in circles."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("path", "options", "shape", "last_um"),
    [
        ("neuropixels1-spikeglx-60ms", {"stream_id": "imec0.ap"}, (1799, 384), 3820.0),
        ("neuropixels2-spikeglx-33ms", {"stream_id": "imec0.ap"}, (1000, 384), None),
        ("openephys-binary-32ch", {}, (49_408, 32), None),
        ("utah-reach-to-grasp-l101210/l101210-001.ns2", {}, (3640, 6), None),
        ("utah-segments/PauseCorrect/pause_correct.ns2", {}, (8000, 16), None),
        (
            "locust-tetrode/locust_trial_01.raw",
            {"dtype": "int16", "n_channels": 4, "sampling_frequency_hz": 15000.0, "gain_uv": 1.0}, (431_548, 4), None,
        ),
    ],
)  # fmt: skip
def test_real_recordings_open_with_the_loops_samples(
    recordings: Path, path: str, options: dict[str, Any], shape: tuple[int, int], last_um: float | None
) -> None:
    opened = open_sortable(RecordingConfig(path=recordings / path, **options))

    assert (opened.recording.get_num_samples(), opened.recording.get_num_channels()) == shape
    assert len(opened.reader.channel_names) == shape[1]
    begin = shape[0] // 2 - 20  # across the gap, where there are two segments
    theirs = opened.recording.get_traces(start_frame=begin, end_frame=begin + 40, return_in_uV=True)
    np.testing.assert_allclose(opened.read(begin, begin + 40), theirs, rtol=1e-6)
    assert bool(opened.recording.has_probe()) == path.startswith("neuropixels")
    if last_um is not None:
        assert opened.recording.get_channel_locations()[-1, 1] == last_um


def test_segments_follow_each_other_and_that_is_told(recordings: Path) -> None:
    opened = open_sortable(RecordingConfig(path=recordings / "utah-segments/PauseCorrect/pause_correct.ns2"))

    assert opened.notes[0] == "2 segments are sorted as one, without the gaps between them"
    assert opened.read(0, 8000).shape == (8000, 16)


def test_what_holds_no_raw_signal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "counts.npy").touch()

    with pytest.raises(RecordingError, match="sorting takes raw signal"):
        open_sortable(RecordingConfig(path=tmp_path / "counts.npy"))


def test_a_reader_of_a_format_that_spikeinterface_lacks_is_wrapped(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    samples.tofile(tmp_path / "a.raw")
    opened = open_sortable(
        RecordingConfig(path=tmp_path / "a.raw", dtype="float32", n_channels=3, sampling_frequency_hz=1000.0, gain_uv=1)
    )

    wrapped = reader_recording(opened.reader)

    np.testing.assert_array_equal(wrapped.get_traces(start_frame=10, end_frame=20), samples[10:20])
    np.testing.assert_array_equal(wrapped.get_traces(channel_ids=["2"] if "2" in wrapped.channel_ids else None)[:, -1],
                                  samples[:, -1])  # fmt: skip
    assert not wrapped.check_serializability("json")  # so that a sorter gets a copy
