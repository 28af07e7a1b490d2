"""Feature matrices, spike trains and XDF files that we write ourselves, so that every number is known."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from conformance.makers import write_xdf
from conformance.sources import read_all
from neuromod.adapters.base import Marker, open_source
from neuromod.adapters.config import FeaturesConfig, UnitsConfig, XdfConfig
from neuromod.engine.errors import RecordingError

COUNTS = np.arange(60.0).reshape(20, 3)


def refusal(config: Any) -> str:
    with pytest.raises(RecordingError) as error:
        open_source(config)
    return str(error.value)


def write_matrix(folder: Path, form: str) -> tuple[Path, str | None]:
    if form == "npy":
        np.save(folder / "counts.npy", COUNTS)
        return folder / "counts.npy", None
    if form == "mat":
        savemat(folder / "counts.mat", {"session": {"counts": COUNTS, "label": "x"}})
        return folder / "counts.mat", "session.counts"
    with h5py.File(folder / "v73.mat", "w", userblock_size=512) as file:
        file["session/counts"] = COUNTS.T  # as MATLAB writes it
    with (folder / "v73.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return folder / "v73.mat", "session.counts"


@pytest.mark.parametrize("form", ["npy", "mat", "mat 7.3"])
def test_a_matrix_plays_one_row_a_bin_whatever_its_file(tmp_path: Path, form: str) -> None:
    path, variable = write_matrix(tmp_path, form)
    for config in (FeaturesConfig(path=path, bin_ms=30.0), FeaturesConfig(path=path, bin_ms=30.0, variable=variable)):
        source = open_source(config)
        chunk = read_all(source)
        assert source.info.kind == "features"
        assert source.info.sampling_frequency == pytest.approx(1000.0 / 30.0)
        source.close()
        np.testing.assert_array_equal(chunk.samples, COUNTS.astype(np.float32))
        np.testing.assert_allclose(chunk.stamps, np.arange(20) * 0.03, atol=1e-12)


def test_a_matrix_that_looks_turned_around_has_to_be_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "wide.npy"
    np.save(path, COUNTS.T)
    assert "set transposed = true" in refusal(FeaturesConfig(path=path, bin_ms=50.0))
    assert "set transposed = true" in refusal(FeaturesConfig(path=path, bin_ms=50.0, n_channels=3))
    source = open_source(FeaturesConfig(path=path, bin_ms=50.0, transposed=True))
    np.testing.assert_array_equal(read_all(source).samples, COUNTS.astype(np.float32))
    right = open_source(FeaturesConfig(path=path, bin_ms=50.0, n_channels=20))
    assert right.info.n_samples == 3


def test_what_is_no_matrix_of_numbers_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    assert "(2, 3, 4)" in refusal(FeaturesConfig(path=tmp_path / "cube.npy", bin_ms=50.0))
    np.save(tmp_path / "words.npy", np.array([["a", "b"], ["c", "d"]]))
    assert "real numbers" in refusal(FeaturesConfig(path=tmp_path / "words.npy", bin_ms=50.0))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    assert "cannot be read" in refusal(FeaturesConfig(path=tmp_path / "objects.npy", bin_ms=50.0))
    savemat(tmp_path / "two.mat", {"a": COUNTS, "b": COUNTS})
    message = refusal(FeaturesConfig(path=tmp_path / "two.mat", bin_ms=50.0))
    assert "a (20, 3), b (20, 3)" in message
    assert 'no variable "c"' in refusal(FeaturesConfig(path=tmp_path / "two.mat", bin_ms=50.0, variable="c"))


@pytest.fixture
def phy_folder(tmp_path: Path) -> Path:
    # unit 7: 3 spikes, unit 8: 1, unit 9: 2; at 1000 samples a second
    np.save(tmp_path / "spike_times.npy", np.array([0, 1, 1, 5, 9, 9], np.uint64))
    np.save(tmp_path / "spike_clusters.npy", np.array([7, 7, 8, 9, 9, 7], np.uint32))
    (tmp_path / "params.py").write_text("dat_path = 'x'\nsample_rate = 1000.0\nraise SystemExit\n")
    return tmp_path


def test_spike_trains_play_as_counts_per_bin_of_the_busiest_units(phy_folder: Path) -> None:
    source = open_source(UnitsConfig(path=phy_folder, bin_ms=2.0, n_units=2))
    chunk = read_all(source)
    assert source.info.channel_names == ("7", "9")
    assert source.info.units == ("spikes", "spikes")
    np.testing.assert_array_equal(chunk.samples, [[2, 0], [0, 0], [0, 1], [0, 0], [1, 1]])
    everything = read_all(open_source(UnitsConfig(path=phy_folder, n_units=None)))
    assert everything.samples.sum() == 6
    chosen = open_source(UnitsConfig(path=phy_folder, unit_ids=("9", "8")))
    assert chosen.info.channel_names == ("9", "8")


def test_spike_trains_that_do_not_fit_are_refused(phy_folder: Path) -> None:
    assert "no unit 4" in refusal(UnitsConfig(path=phy_folder, unit_ids=("4",)))
    (phy_folder / "params.py").unlink()
    assert "sampling_frequency_hz" in refusal(UnitsConfig(path=phy_folder))
    np.save(phy_folder / "spike_clusters.npy", np.array([1]))
    assert "6 spikes, spike_clusters.npy 1" in refusal(UnitsConfig(path=phy_folder, sampling_frequency_hz=1000.0))
    assert "no such file" in refusal(UnitsConfig(path=phy_folder / "absent.nev"))


def test_an_xdf_signal_is_in_microvolt_and_keeps_its_stamps(tmp_path: Path) -> None:
    stamps = 1000.0 + np.arange(300) / 100.0
    stamps[150:] += 3.0
    stamps[200] -= 0.5
    source = open_source(XdfConfig(path=write_xdf(tmp_path / "s.xdf", stamps=stamps)))
    chunk = read_all(source)
    np.testing.assert_array_equal(chunk.stamps, stamps - 1000.0)
    np.testing.assert_array_equal(chunk.samples[:, 0], np.arange(300, dtype=np.float32) * 1000)
    assert source.info.channel_names == ("left", "right")
    assert source.info.hostname == "rig-a"
    assert source.quirks == {"backward_steps": 1, "gaps": 2}


def test_xdf_markers_of_another_host_come_to_the_clock_of_the_signal(tmp_path: Path) -> None:
    source = open_source(XdfConfig(path=write_xdf(tmp_path / "s.xdf", marker_offset_s=-777.0)))
    seen: list[Marker] = []
    reached = 0
    while not seen:
        reached += len(source.read(1))
        seen = source.markers()
    assert seen[0].name == "go"
    assert seen[0].t == pytest.approx(1.0, abs=1e-9)
    assert reached == 101


def test_an_xdf_stream_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = write_xdf(tmp_path / "s.xdf")
    assert 'name "signal"' in refusal(XdfConfig(path=path, name="sginal"))
    assert "got 0" in refusal(XdfConfig(path=path, name="events"))
    assert "bin_ms = 50 says 20 Hz" in refusal(XdfConfig(path=path, bin_ms=50.0))
    assert open_source(XdfConfig(path=path, bin_ms=10.0)).info.kind == "features"
    (tmp_path / "no.xdf").write_bytes(b"nothing")
    assert "expected an XDF file" in refusal(XdfConfig(path=tmp_path / "no.xdf"))
