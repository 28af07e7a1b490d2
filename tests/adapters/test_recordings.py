"""The real recordings beside the project: each plays to its end, with its quirks counted."""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs.registry import register_codec
from spikeinterface.core import NumpyRecording

from neuromod.adapters.base import Marker, Source, open_source
from neuromod.adapters.config import RecordingConfig
from neuromod.adapters.recording import config_for, detect_format
from neuromod.engine.errors import NeuromodError, RecordingError

JANGO = "m1-utah-wristflexion-jango/Jango_20141203_default_offline_data.mat"
SPIKEGLX = "neuropixels1-spikeglx-60ms"
LOCUST: dict[str, Any] = {"dtype": "int16", "n_channels": 4, "sampling_frequency_hz": 15000.0}


def play_to_the_end(source: Source) -> tuple[int, np.ndarray, list[Marker]]:
    n, stamps, markers = 0, [], []
    while not source.ended:
        chunk = source.read(4096)
        assert np.isfinite(chunk.samples).all()
        n += len(chunk)
        stamps.append(chunk.stamps)
        markers += source.markers()
    markers += source.markers()
    return n, np.concatenate(stamps), markers


@pytest.mark.parametrize(
    ("path", "options", "shape", "rate", "n_markers", "quirks"),
    [
        ("locust-tetrode/locust_trial_01.raw", LOCUST, (431_548, 4), 15000.0, 0, {}),
        (JANGO, {"bin_ms": 50.0, "variable": "train_data.spikeratedata"}, (24_000, 96), 20.0, 0, {}),
        ("utah-reach-to-grasp-l101210/l101210-001.ns2", {}, (3640, 6), 1000.0, 8, {}),
        (
            "utah-segments/PauseCorrect/pause_correct.ns2", {}, (8000, 16), 1000.0, 0,
            {"segments": 2, "segment_gaps": 1},
        ),
        (
            "utah-segments/ResetCorrect/reset.ns2", {}, (8001, 16), 1000.0, 0,
            {"segments": 2, "clock_resets": 1, "warnings": 1},
        ),
        ("utah-segments/PauseSpikesOutside/pause_spikes_outside_seg.nev", {}, (35_078, 16), 1000.0, 0, {}),
        ("utah-segments/ResetFail/reset_fail.nev", {"n_units": None}, (4004, 189), 1000.0, 0, {}),
        ("neuropixels-nhp-units", {"sampling_frequency_hz": 30000.0}, (384_140, 16), 1000.0, 0, {}),
        (SPIKEGLX, {"stream_id": "imec0.ap"}, (1799, 384), 30000.061088, 0, {}),
        (SPIKEGLX, {"stream_id": "imec1.lf"}, (155, 384), 2499.9801952580196, 0, {}),
        ("neuropixels2-spikeglx-33ms", {"stream_id": "imec0.ap"}, (1000, 384), 30000.0, 0, {}),
        (
            "openephys-binary-32ch", {}, (49_408, 32), 30000.0, 7,
            {"event_times_unscaled": 7, "markers_outside": 49},
        ),
        ("lsl-xdf/example-files/minimal.xdf", {}, (9, 3), 10.0, 9, {}),
        ("lsl-xdf/example-files/empty_streams.xdf", {}, (10, 1), 1.0, 1, {"empty_streams": 2}),
        (
            "lsl-xdf/example-files/clock_resets.xdf", {}, (27_815, 8), 100.0, 175,
            {"backward_steps": 1, "clock_resets": 1, "gaps": 20},
        ),
        (
            "lsl-xdf/MagicBlinkEMG/markersPlusEKG.xdf", {}, (5620, 8), 250.0, 29,
            {"backward_steps": 72, "gaps": 77},
        ),
        ("lsl-xdf/MagicBlinkEMG/test1.xdf", {}, (23_390, 8), 250.0, 48, {"backward_steps": 783, "gaps": 1554}),
        (
            "lsl-xdf/MagicBlinkEMG/three_motion_one.xdf", {}, (77_200, 8), 250.0, 216,
            {"backward_steps": 1449, "gaps": 1532},
        ),
    ],
)  # fmt: skip
def test_every_recording_plays_to_its_end_with_its_quirks_counted(
    recordings: Path, path: str, options: dict[str, Any], shape: tuple[int, int], rate: float, n_markers: int,
    quirks: dict[str, int],
) -> None:  # fmt: skip
    source = open_source(config_for(recordings / path, **options))
    info = source.info
    n, _, markers = play_to_the_end(source)
    assert (n, info.n_channels) == shape == (info.n_samples, info.n_channels)
    assert info.sampling_frequency == pytest.approx(rate, rel=1e-12)
    assert len(markers) == n_markers
    assert source.quirks == quirks
    source.close()


def test_a_pause_stays_as_long_as_it_was(recordings: Path) -> None:
    source = open_source(config_for(recordings / "utah-segments/PauseCorrect/pause_correct.ns2"))
    _, stamps, _ = play_to_the_end(source)
    source.close()
    assert stamps[4000] - stamps[3999] == pytest.approx(31.0087 - 3.999)
    assert np.diff(np.delete(stamps, range(4000, 8000))).max() == pytest.approx(0.001)


def test_after_a_reset_of_the_device_clock_the_next_segment_follows_at_once(recordings: Path) -> None:
    source = open_source(config_for(recordings / "utah-segments/ResetCorrect/reset.ns2"))
    _, stamps, _ = play_to_the_end(source)
    source.close()
    np.testing.assert_allclose(np.diff(stamps), 0.001, atol=1e-9)


def test_ttl_edges_fall_where_the_recording_has_them(recordings: Path) -> None:
    source = open_source(config_for(recordings / "openephys-binary-32ch"))
    _, _, markers = play_to_the_end(source)
    source.close()
    # 34.8671 s on the clock of the device, whose first sample is at 34.8416 s
    assert markers[0].t == pytest.approx(0.0255, abs=1e-9)
    assert markers[0].value == "8"


def test_markers_of_another_host_fall_within_the_signal(recordings: Path) -> None:
    source = open_source(config_for(recordings / "lsl-xdf/MagicBlinkEMG/three_motion_one.xdf"))
    _, stamps, markers = play_to_the_end(source)
    source.close()
    assert 0.0 < markers[0].t < markers[-1].t < stamps[-1]


def test_microvolt_come_from_the_gain_of_the_file(recordings: Path) -> None:
    folder = recordings / "openephys-binary-32ch"
    source = open_source(config_for(folder))
    chunk = source.read(100)
    assert set(source.info.units) == {"uV"}
    source.close()
    raw = np.fromfile(next(folder.rglob("continuous.dat")), np.int16, 100 * 32).reshape(100, 32)
    np.testing.assert_array_equal(chunk.samples, raw.astype(np.float32) * np.float32(0.19499999284744262695))


def test_a_folder_or_a_file_of_it_means_the_same_recording(recordings: Path) -> None:
    oebin = next((recordings / "openephys-binary-32ch").rglob("structure.oebin"))
    by_file = open_source(config_for(oebin))
    assert by_file.info.n_samples == 49_408
    by_file.close()
    by_folder = open_source(config_for(recordings / "utah-segments/PauseCorrect"))
    assert by_folder.info.n_samples == 8000
    by_folder.close()
    meta = next((recordings / SPIKEGLX).rglob("*imec0.ap.meta"))
    by_file = open_source(config_for(meta, stream_id="imec0.ap"))
    assert by_file.info.n_samples == 1799
    by_file.close()
    with pytest.raises(RecordingError, match="name a file"):
        open_source(config_for(recordings / "utah-segments", format="blackrock"))


def test_a_recording_of_several_streams_lists_them(recordings: Path) -> None:
    with pytest.raises(RecordingError, match=r'"imec0.ap" \(imec0.ap, 384 channels') as error:
        open_source(config_for(recordings / SPIKEGLX))
    assert "SYNC" not in str(error.value)
    with pytest.raises(RecordingError, match=r'stream_id is "imec7\.ap"'):
        open_source(config_for(recordings / SPIKEGLX, stream_id="imec7.ap"))


def test_a_matrix_among_several_has_to_be_named(recordings: Path) -> None:
    with pytest.raises(RecordingError, match=r"train_data.spikeratedata \(24000, 96\)"):
        open_source(config_for(recordings / JANGO, bin_ms=50.0))


def test_a_rate_that_is_not_that_of_the_file_is_refused(recordings: Path) -> None:
    with pytest.raises(RecordingError, match="sampling_frequency_hz says 2000, the file 30000"):
        open_source(config_for(recordings / "openephys-binary-32ch", sampling_frequency_hz=2000.0))


CORRUPTIBLE = [
    "utah-reach-to-grasp-l101210/l101210-001.ns2",
    "lsl-xdf/example-files/clock_resets.xdf",
    JANGO,
    "utah-segments/ResetFail/reset_fail.nev",
]


@pytest.mark.filterwarnings("ignore")  # the readers of damaged files warn as they please; here only the errors count
@pytest.mark.parametrize("path", CORRUPTIBLE)
@pytest.mark.parametrize("keep", [0, 10, 300, 0.5])
def test_a_damaged_file_is_refused_in_our_words_or_plays_what_is_left(
    recordings: Path, tmp_path: Path, path: str, keep: float
) -> None:
    whole = (recordings / path).read_bytes()
    damaged = tmp_path / Path(path).name
    damaged.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    options = {"bin_ms": 50.0, "variable": "train_data.spikeratedata"} if path == JANGO else {}
    complaint, n = "", 0
    try:
        source = open_source(config_for(damaged, **options))
        n, _, _ = play_to_the_end(source)
        source.close()
    except NeuromodError as error:
        complaint = str(error)
    # the head of an .ns2 is 56 bytes long: what follows is whole samples, however few
    assert str(damaged) in complaint or (n > 0 and keep in (300, 0.5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".ns5", ".nev", ".xdf", ".mat", ".npy", ".rhd", ".nwb", ".edf", ".plx", ".ncs"])
def test_noise_in_the_place_of_a_recording_is_refused_in_our_words(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(np.random.default_rng(6).bytes(5000))
    options = {"bin_ms": 50.0} if suffix in (".mat", ".npy") else {}
    with pytest.raises(RecordingError, match="noise"):
        open_source(config_for(path, **options))


def test_what_is_missing_or_of_no_known_form_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such file or folder"):
        detect_format(tmp_path / "absent.ns5")
    with pytest.raises(RecordingError, match="no format that is known"):
        detect_format(tmp_path)
    (tmp_path / "notes.docx").touch()
    with pytest.raises(RecordingError, match=r'files ending in ".docx"'):
        detect_format(tmp_path / "notes.docx")
    with pytest.raises(RecordingError, match="no such file"):
        open_source(RecordingConfig(path=tmp_path / "absent.raw", format="binary"))


def test_raw_binary_says_what_it_lacks_and_refuses_half_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "some.dat"
    np.zeros(1001, np.int16).tofile(path)
    with pytest.raises(RecordingError, match=r"add sampling_frequency_hz, n_channels, dtype .*-c replay\.toml"):
        open_source(config_for(path))
    with pytest.raises(RecordingError, match=r"2002 bytes \(2 over\)"):
        open_source(config_for(path, sampling_frequency_hz=1000.0, n_channels=2, dtype="int16"))
    with pytest.raises(RecordingError, match='dtype "int17"'):
        open_source(config_for(path, sampling_frequency_hz=1000.0, n_channels=1, dtype="int17"))
    with pytest.raises(RecordingError, match='neo knows no format "neuroscop"'):
        open_source(config_for(path, format="neuroscop"))


def test_a_file_grown_large_is_never_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # 40 GB of holes: more than this machine has
    source = open_source(config_for(path, sampling_frequency_hz=30000.0, n_channels=64, dtype="int16"))
    assert len(source.read(1000)) == 1000
    assert source.info.n_samples == (40 << 30) // 128
    source.close()


def test_nwb_plays_in_microvolt_with_its_channels(tmp_path: Path) -> None:
    pynwb = pytest.importorskip("pynwb")
    from datetime import UTC, datetime

    nwb = pynwb.NWBFile("test", "id", datetime(2026, 1, 1, tzinfo=UTC))
    device = nwb.create_device("array")
    group = nwb.create_electrode_group("group", description="", location="M1", device=device)
    for _ in range(3):
        nwb.add_electrode(group=group, location="M1")
    table = nwb.create_electrode_table_region([0, 1, 2], "all")
    data = np.random.default_rng(7).integers(-500, 500, (200, 3), dtype=np.int16)
    nwb.add_acquisition(
        pynwb.ecephys.ElectricalSeries(
            name="raw", data=data, electrodes=table, rate=1000.0, starting_time=5.0, conversion=1e-6
        )
    )
    with pynwb.NWBHDF5IO(tmp_path / "session.nwb", "w") as io:
        io.write(nwb)
    source = open_source(config_for(tmp_path / "session.nwb"))
    chunk = source.read(1000)
    assert source.ended
    assert source.info.units == ("uV", "uV", "uV")
    source.close()
    np.testing.assert_allclose(chunk.samples, data, rtol=1e-6)
    np.testing.assert_allclose(chunk.stamps, np.arange(200) / 1000.0, atol=1e-12)


class Runs:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def saved(folder: Path, **options: Any) -> Path:
    """A folder that spikeinterface saved."""
    recording = NumpyRecording([np.arange(200, dtype=np.float32).reshape(100, 2)], 1000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recording.save(folder=folder, verbose=False, **options)
    return folder


@pytest.mark.parametrize("options", [{"format": "binary"}, {"format": "zarr"}], ids=["binary", "zarr"])
def test_what_spikeinterface_saved_plays(tmp_path: Path, options: dict[str, Any]) -> None:
    path = saved(tmp_path / ("saved.zarr" if options["format"] == "zarr" else "saved"), **options)
    source = open_source(RecordingConfig(path=path, format="spikeinterface"))

    assert play_to_the_end(source)[0] == 100

    source.close()


def test_nothing_that_lies_in_a_recording_is_carried_out(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with_property = saved(tmp_path / "property")
    (with_property / "properties").mkdir(exist_ok=True)
    np.save(with_property / "properties" / "x.npy", np.array([Runs(mark), 1], dtype=object), allow_pickle=True)
    as_dump = tmp_path / "dumped.pkl"
    as_dump.write_bytes(pickle.dumps(Runs(mark)))
    named = tmp_path / "named"
    named.mkdir()
    called = {"class": "pathlib.Path", "kwargs": {}, "version": "0", "module": "pathlib", "annotations": {}}
    (named / "si_folder.json").write_text(json.dumps(called))
    packed = saved(tmp_path / "packed.zarr", format="zarr")
    register_codec(numcodecs.Pickle)
    rows = zarr.open(packed, mode="a").create_dataset(
        "channel_ids", data=np.array([Runs(mark), 1], dtype=object), object_codec=numcodecs.Pickle(), overwrite=True
    )
    assert len(rows) == 2

    for path in (with_property, as_dump, named, packed):
        with pytest.raises(RecordingError, match=re.escape(str(path))):
            open_source(RecordingConfig(path=path, format="spikeinterface"))
        assert not mark.exists(), path
