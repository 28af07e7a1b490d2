"""Fitted decoders on disk."""

import datetime
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromod.adapters.decoder import make_decoder
from neuromod.adapters.decoder_config import DecoderFileConfig, EventConfig, LinearConfig
from neuromod.adapters.decoder_file import Provenance, content_hash, load_decoder, save_decoder, versions
from neuromod.engine.errors import ConfigError

PROVENANCE = Provenance(
    fitted_at=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    dt_ms=1.0,
    session="monkey-7",
    config_hash="abc",
    options={"n_lags": 2},
    metrics={"r2": 0.5},
)


def some_decoder(seed: int = 0) -> LinearConfig:
    weights = np.random.default_rng(seed).normal(size=(2, 3, 16))
    return LinearConfig.model_validate({"n_lags": 3, "bin_ms": 20.0, "weights": weights.tolist()})


def test_a_decoder_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = save_decoder(tmp_path / "decoders", "reach", some_decoder(), PROVENANCE)
    file = load_decoder(path)
    assert path.name == "reach-v1.json"
    assert (file.name, file.version, file.decoder, file.provenance) == ("reach", 1, some_decoder(), PROVENANCE)


def test_each_save_is_a_new_version_and_the_old_ones_stay_as_they_were(tmp_path: Path) -> None:
    first = save_decoder(tmp_path, "reach", some_decoder(1), PROVENANCE)
    before = first.read_bytes()
    paths = [first, *(save_decoder(tmp_path, "reach", some_decoder(k), PROVENANCE) for k in range(2, 12))]
    assert [path.name for path in paths] == [f"reach-v{k}.json" for k in range(1, 12)]
    assert versions(tmp_path, "reach") == list(zip(range(1, 12), paths, strict=True))
    assert first.read_bytes() == before
    assert [p for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_decoders_of_other_names_count_for_themselves(tmp_path: Path) -> None:
    save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    assert save_decoder(tmp_path, "reach-left", some_decoder(), PROVENANCE).name == "reach-left-v1.json"
    assert save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE).name == "reach-v2.json"


def test_savers_at_the_same_time_get_versions_of_their_own(tmp_path: Path) -> None:
    saved: list[Path] = []
    together = threading.Barrier(4)

    def save() -> None:
        together.wait(timeout=10.0)
        for _ in range(10):
            saved.append(save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE))

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert sorted(load_decoder(path).version for path in saved) == list(range(1, 41))


def test_a_saved_file_can_be_read_by_everybody(tmp_path: Path) -> None:
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["", "../reach", "a/b", ".hidden", "re ach", "-x"])
def test_a_name_is_that_of_a_file_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a decoder called"):
        save_decoder(tmp_path, name, some_decoder(), PROVENANCE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write a decoder into"):
        save_decoder(tmp_path / "file", "reach", some_decoder(), PROVENANCE)


def edited(path: Path, **changes: Any) -> None:
    """Change a file and mend its hash."""
    content = json.loads(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        inner = content
        for key in parents:
            inner = inner[key]
        inner[last] = value
    content["sha256"] = content_hash(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "neuromod-baseline"}, "is no decoder file"),
        ({"format_version": 2}, "has format version 2; this neuromod reads 1"),
        ({"decoder__kind": "neural"}, "is no usable decoder: decoder"),
        ({"decoder__bin_ms": -1.0}, "bin_ms"),
        ({"decoder__weights": [[[1e300] * 16] * 3] * 2}, "weights"),
        ({"decoder__extra": 1}, "extra"),
        ({"provenance__dt_ms": 0.0}, "provenance.dt_ms"),
        ({"version": 0}, "version"),
        ({"version": 7}, "was renamed; call it reach-v7.json again"),
        ({"name": "grasp"}, "was renamed; call it grasp-v1.json again"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    edited(path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_decoder(path)


def test_an_edit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """Another digit in place of each of a sample of digits: never a decoder."""
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    text = path.read_text()
    digits = [i for i, ch in enumerate(text) if ch.isdigit()]
    for i in np.random.default_rng(0).choice(digits, 100, replace=False):
        changed = text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :]
        if json.loads(changed) == json.loads(text):  # the last digits of a float may say nothing
            continue
        path.write_text(changed)
        with pytest.raises(ConfigError):
            load_decoder(path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, part: float) -> None:
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    text = path.read_text()
    path.write_text(text[: int(len(text) * part)])
    with pytest.raises(ConfigError, match="it is not JSON"):
        load_decoder(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neuromod calibrate"):
        load_decoder(tmp_path / "none-v1.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    path = tmp_path / "pipe-v1.json"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="no regular file"):
        load_decoder(path)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large-v1.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than"):
        load_decoder(path)


def test_a_session_that_names_the_file_gets_its_decoder_and_version(tmp_path: Path) -> None:
    save_decoder(tmp_path, "reach", some_decoder(1), PROVENANCE)
    path = save_decoder(tmp_path, "reach", some_decoder(2), PROVENANCE)
    decoder = make_decoder(DecoderFileConfig(path=path), 1.0)
    assert decoder.tobytes() == make_decoder(some_decoder(2), 1.0, version=2).tobytes()


def test_events_of_the_session_take_the_place_of_the_files(tmp_path: Path) -> None:
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    decoder = make_decoder(DecoderFileConfig(path=path, events=(EventConfig(channel=3),)), 1.0)
    assert decoder[0]["n_events"] == 1
    with pytest.raises(ConfigError, match="watches output 5"):
        make_decoder(DecoderFileConfig(path=path, events=(EventConfig(output=5, above=1.0),)), 1.0)


def test_a_decoder_fitted_with_other_ticks_is_refused(tmp_path: Path) -> None:
    path = save_decoder(tmp_path, "reach", some_decoder(), PROVENANCE)
    with pytest.raises(ConfigError, match=r"fitted with ticks of 1 ms, this session has 0\.5 ms"):
        make_decoder(DecoderFileConfig(path=path), 0.5)
