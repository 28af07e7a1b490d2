"""Where channels are: found in a recording or beside it, or taken from what somebody names."""

from pathlib import Path
from typing import Any

import numpy as np
import probeinterface as pi
import pytest
from spikeinterface.core import NumpyRecording

from neuromod.engine.errors import ConfigError
from neuromod.sorting.probes import utah_positions, with_probe


def recording(n_channels: int) -> Any:
    return NumpyRecording([np.zeros((100, n_channels), np.float32)], 30_000.0)


def positions(n_channels: int, wanted: str | Path | None, beside: Path | None = None) -> Any:
    return with_probe(recording(n_channels), None if wanted is None else str(wanted), beside)[0].get_channel_locations()


def test_a_utah_array_of_96_has_ten_rows_without_its_corners() -> None:
    found = positions(96, "utah")

    assert len(np.unique(found, axis=0)) == 96
    assert found.max() == 3600.0
    corners = [[0.0, 0.0], [0.0, 3600.0], [3600.0, 0.0], [3600.0, 3600.0]]
    assert not any(corner in found.tolist() for corner in corners)
    distance = np.linalg.norm(found[:, np.newaxis] - found, axis=2) + 1e9 * np.eye(96)
    np.testing.assert_allclose(distance.min(axis=1), 400.0)


@pytest.mark.parametrize("n_channels", [16, 25, 64, 100, 128])
def test_other_utah_arrays_are_whole(n_channels: int) -> None:
    assert len(np.unique(utah_positions(n_channels), axis=0)) == n_channels


def test_a_map_of_blackrock_is_read_by_labels_or_by_channel_numbers(tmp_path: Path) -> None:
    array = tmp_path / "array.cmp"
    array.write_text(
        "// Mapping for array 1025-0001\nUtah array 1025-0001\n"
        "0 0 A 2 elec2\n1 0 A 1 elec1\n0 1 B 1 elec33\n1 1 B 2 elec34\n"
    )

    # by channel number: A1, A2, B1 (33), B2 (34)
    assert positions(4, array).tolist() == [[400.0, 0.0], [0.0, 0.0], [0.0, 400.0], [400.0, 400.0]]
    named = recording(4)
    named.set_property("channel_name", ["elec34", "elec33", "elec2", "elec1"])
    by_label = with_probe(named, str(array))[0].get_channel_locations()
    assert by_label.tolist() == [[400.0, 400.0], [0.0, 400.0], [0.0, 0.0], [400.0, 0.0]]


PRB = """# of a tetrode
total_nb_channels = 4
channel_groups = {
    0: {"channels": list(range(2)), "graph": [], "geometry": {0: (0, 0), 1: [0.0, 20.0]}},
    1: {"channels": [3, 2], "geometry": {2: (30, 0), 3: (30, -20)}},
}
"""


def test_groups_of_klusta_are_wired_to_the_channels_they_name(tmp_path: Path) -> None:
    (tmp_path / "array.prb").write_text(PRB)

    found = positions(4, None, beside=tmp_path).tolist()

    assert found == [[0.0, 0.0], [0.0, 20.0], [30.0, 0.0], [30.0, -20.0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("open('ran', 'w')\n" + PRB, "line 1 is code"),
        (PRB + "for group in channel_groups.values():\n    open('ran', 'w')\n", "line 7 is code"),
        ("import os\n" + PRB, "line 1 is code"),
        ("channel_groups = {0: {'channels': open('ran', 'w'), 'geometry': {}}}", "malformed"),
        ("channel_groups = {0: {'channels': range(10**9), 'geometry': {}}}", "is no probe"),
        ("channel_groups = {0: {'channels': range(1000000000), 'geometry': {}}}", "more than 65536 channels"),
        ("channel_groups = {0: {'channels': [0, 1]}}", "geometry"),
        ("channel_groups = [", "SyntaxError"),
        ("x = 1", "is no probe"),
    ],
)
def test_a_probe_file_is_read_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "array.prb").write_text(text)

    with pytest.raises(ConfigError, match=says):
        positions(4, None, beside=tmp_path)

    assert not (tmp_path / "ran").exists()


def test_a_file_of_probeinterface_is_wired_to_the_channels_it_names(tmp_path: Path) -> None:
    probe = pi.generate_linear_probe(num_elec=4, ypitch=20.0)
    probe.set_device_channel_indices([3, 2, 1, 0])
    pi.write_probeinterface(tmp_path / "probe.json", probe)

    assert positions(4, tmp_path / "probe.json")[:, 1].tolist() == [60.0, 40.0, 20.0, 0.0]


@pytest.mark.parametrize(
    ("wanted", "n_channels", "last"),
    [("linear:25", 16, [0.0, 375.0]), ("tetrode", 4, [0.0, -12.5]), ("NP1010", 384, [32.0, 3820.0])],
)
def test_kinds_and_part_numbers(wanted: str, n_channels: int, last: list[float]) -> None:
    np.testing.assert_allclose(positions(n_channels, wanted)[-1], last, atol=1e-9)


def test_one_file_beside_a_recording_is_taken(tmp_path: Path) -> None:
    (tmp_path / "array.cmp").write_text("map\n0 0 A 1 e1\n1 0 A 2 e2\n")

    found, source = with_probe(recording(2), None, tmp_path / "data.ns5")

    assert source == "array.cmp, beside the recording"
    assert found.get_channel_locations().tolist() == [[0.0, 0.0], [400.0, 0.0]]


def test_of_several_files_beside_it_none_is_guessed(tmp_path: Path) -> None:
    for name in ("a.cmp", "b.cmp"):
        (tmp_path / name).write_text("map\n0 0 A 1 e1\n1 0 A 2 e2\n")

    with pytest.raises(ConfigError, match=r"a.cmp, b.cmp lie beside it: which\?"):
        with_probe(recording(2), None, tmp_path / "data.ns5")


def test_the_recordings_own_probe_goes_first_and_it_is_not_changed(tmp_path: Path) -> None:
    owned = with_probe(recording(4), "linear:10")[0]

    again, source = with_probe(owned)
    other, _ = with_probe(owned, "linear:50")

    assert source == "the recording"
    assert again.get_channel_locations()[-1, 1] == 30.0
    assert other.get_channel_locations()[-1, 1] == 150.0
    assert owned.get_channel_locations()[-1, 1] == 30.0


@pytest.mark.parametrize(
    ("wanted", "n_channels", "said"),
    [
        (None, 4, "does not say where its channels are; give one with --probe"),
        ("utah", 95, "no Utah array of 95 channels"),
        ("nosuch.json", 4, "no probe file nosuch.json"),
        ("linear:0", 4, "a distance above 0"),
        ("banana", 4, "no probe 'banana'"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_said(wanted: str | None, n_channels: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_probe(recording(n_channels), wanted)


def test_a_probe_of_another_number_of_contacts_is_refused(tmp_path: Path) -> None:
    probe = pi.generate_linear_probe(num_elec=8, ypitch=20.0)
    pi.write_probeinterface(tmp_path / "probe.json", probe)

    with pytest.raises(ConfigError, match=r"a probe of 8 contacts .* for a recording of 4 channels"):
        positions(4, tmp_path / "probe.json")
