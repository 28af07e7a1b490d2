"""A sorting on disk: whole or refused, with a word on what is wrong."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from naive.sorted_signals import FREQUENCY, NAMES, bundle_of, known
from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_of(known(3.0, 1, 400.0), 400.0)


def test_what_is_loaded_is_what_was_saved(bundle: Bundle, tmp_path: Path) -> None:
    again = Bundle.load(bundle.save(tmp_path / "s"))

    assert again.info.model_copy(update={"arrays_sha256": ""}) == bundle.info
    for name in ("positions_um", "noise", "whitening", "templates", "templates_uv", "amplitude_limits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(bundle, name))
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"bundle.json", "bundle.npz"}


def change(folder: Path, **entries: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nothing there", "there is no bundle.json; make one with `neuromod sort`"),
        ("other version", "a sorting of version 99, this neuromod reads version 1"),
        ("not json", "is not the description of a sorting"),
        ("other arrays", "is not the file that bundle.json goes with"),
        ("no arrays", "cannot read the sorting"),
        ("a bad sector before it was summed", "bundle.npz cannot be read"),
        ("unknown engine", "engine: Input should be 'sparse' or 'dense'"),
    ],
)
def test_a_damaged_sorting_is_refused_with_what_is_wrong(
    bundle: Bundle, tmp_path: Path, damage: str, said: str
) -> None:
    folder = bundle.save(tmp_path / "s")
    match damage:
        case "nothing there":
            (folder / "bundle.json").unlink()
        case "other version":
            change(folder, version=99, new_in_99=True)
        case "not json":
            (folder / "bundle.json").write_text("spikes")
        case "other arrays":
            with (folder / "bundle.npz").open("ab") as file:
                file.write(b"0")
        case "a bad sector before it was summed":
            content = bytearray((folder / "bundle.npz").read_bytes())
            content[100:] = bytes(byte ^ 0x55 for byte in content[100:200]) + content[200:]
            (folder / "bundle.npz").write_bytes(content)
            change(folder, arrays_sha256=hashlib.sha256(content).hexdigest())
        case "no arrays":
            (folder / "bundle.npz").unlink()
        case "unknown engine":
            change(folder, engine="diesel")

    with pytest.raises(ConfigError) as caught:
        Bundle.load(folder)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("frequency", "names", "said"),
    [
        (FREQUENCY, NAMES[:-1], "it was sorted from 8 channels, the stream has 7"),
        (24_000.0, NAMES, "it was sorted at 30000 Hz, the stream has 24000 Hz"),
        (FREQUENCY, NAMES[::-1], 'the stream has the same names in another order, from channel "e0" on'),
    ],
)
def test_another_stream_is_refused(bundle: Bundle, frequency: float, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bundle.check_stream(frequency, names)
    assert said in str(caught.value)


def test_other_names_for_as_many_channels_pass(bundle: Bundle) -> None:
    bundle.check_stream(FREQUENCY, [f"AP{i}" for i in range(len(NAMES))])
