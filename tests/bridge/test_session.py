"""A recorded session: it holds all that a replay needs, and `verify` says what it holds and what is missing."""

import hashlib
import json
import os
import stat
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import wait_until
from numpy.typing import NDArray
from typer.testing import CliRunner

from neuromod.adapters.base import StreamInfo
from neuromod.bridge import session as sessions
from neuromod.bridge.cli_session import app
from neuromod.bridge.config import SessionConfig, load, parse
from neuromod.bridge.gate import DECISION
from neuromod.bridge.pipeline import TICK
from neuromod.bridge.recorder import Recorder
from neuromod.bridge.session import Session, find_sessions, start_session, verify
from neuromod.bridge.session_log import segment_path, segments
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import ConfigError, SessionLogError

CONFIG = 'source = {kind = "lsl", name = "amplifier"}\n[session]\nname = "my session"\n'
INFO = StreamInfo("amplifier", "signal", 2, 1000.0, ("a", "b"), ("uV", "uV"))


def begin(folder: Path, config: SessionConfig | None = None, **given: Any) -> Recorder:
    return start_session(
        folder,
        config or parse(CONFIG),
        records={"ticks": TICK, "decisions": DECISION},
        info=INFO,
        block_ms=1.0,
        ticks_per_block=1,
        built_from="0123",
        local_clock=100.0,
        **given,
    )


def some_ticks(first: int, n: int) -> NDArray[Any]:
    ticks = np.zeros(n, TICK)
    ticks["record"] = ticks["tick"] = np.arange(first, first + n)
    ticks["t_sample"] = 100.0 + ticks["tick"] / 1000.0
    ticks["now_ns"] = (ticks["t_sample"] * 1e9).astype(np.int64)
    return ticks


def add(recorder: Recorder, ticks: NDArray[Any]) -> None:
    """Add ticks, and have them written as a chunk of their own."""
    before = recorder.status()["records"].get("ticks", 0)
    recorder.add("ticks", ticks)
    wait_until(lambda: recorder.status()["records"].get("ticks", 0) == before + len(ticks), "the ticks written")


def record(folder: Path, *parts: NDArray[Any], **given: Any) -> Session:
    recorder = begin(folder, **given)
    for part in parts or (some_ticks(0, 100), some_ticks(100, 50)):
        add(recorder, part)
    recorder.close()
    return Session(find_sessions(folder)[-1])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


# -- what is kept


def test_a_session_says_what_it_was(tmp_path: Path) -> None:
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    session = record(tmp_path, now=now, scale=np.array([0.5, 2.0], np.float32), extra={"is_timed": False})
    assert session.folder.name == "my_session-20250102-030405"
    assert session.started_at == now
    header = session.metadata
    assert header["stream"]["channel_names"] == ["a", "b"]
    assert header["scale"] == [0.5, 2.0]
    assert (header["block_ms"], header["ticks_per_block"], header["built_from"]) == (1.0, 1, "0123")
    assert header["is_timed"] is False
    assert {"neuromod", "protocol", "layout", "python", "numpy", "numba", "platform"} <= set(header["versions"])
    assert (session.condition, session.is_blind) == ("none", False)
    np.testing.assert_array_equal(session.records("ticks")["tick"], np.arange(150))
    assert sum(len(chunk) for chunk in session.chunks("ticks")) == 150
    assert session.end() is not None


def test_two_sessions_of_one_second_have_their_own_folders(tmp_path: Path) -> None:
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    first, second = (record(tmp_path, now=now).folder for _ in range(2))
    assert first != second
    assert find_sessions(tmp_path) == sorted([first, second])


def test_the_readable_configuration_is_the_effective_one(tmp_path: Path) -> None:
    session = record(tmp_path)
    text = (session.folder / "session.toml").read_text()
    assert load(session.folder / "session.toml").effective() == parse(CONFIG).effective()
    assert text.startswith("# my session, started ")


def test_files_that_the_configuration_names_come_back_when_they_are_gone(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    np.save(tmp_path / "matrix.npy", matrix)
    (tmp_path / "session.toml").write_text(CONFIG + '[encoder]\nkind = "matrix"\nmatrix_path = "matrix.npy"\n')
    config = load(tmp_path / "session.toml")
    original = (tmp_path / "matrix.npy").read_bytes()
    session = record(tmp_path / "sessions", config=config)
    (tmp_path / "matrix.npy").unlink()
    (entry,) = session.files()
    assert (entry["key"], entry["size"], entry["is_kept"]) == ("encoder.matrix_path", len(original), True)
    assert entry["sha256"] == hashlib.sha256(original).hexdigest()
    restored = session.materialise(tmp_path / "restored")
    assert restored.encoder.matrix_path is not None
    assert restored.encoder.matrix_path.read_bytes() == original
    assert restored.effective() | {"encoder": 0} == config.effective() | {"encoder": 0}
    assert verify(session.folder).is_ok


@pytest.mark.parametrize(
    "change",
    [{"key": "../elsewhere"}, {"key": "{elsewhere}"}, {"part": "../../../elsewhere"}, {"part": "{elsewhere}"}],
    ids=lambda change: next(iter(change)),
)
def test_a_log_cannot_have_files_written_elsewhere(tmp_path: Path, change: dict[str, str]) -> None:
    np.save(tmp_path / "matrix.npy", np.zeros((16, 2), np.float32))
    (tmp_path / "session.toml").write_text(CONFIG + '[encoder]\nkind = "matrix"\nmatrix_path = "matrix.npy"\n')
    session = record(tmp_path / "sessions", config=load(tmp_path / "session.toml"))
    ((name, value),) = change.items()
    session.metadata["files"][0][name] = value.replace("{elsewhere}", str(tmp_path / "elsewhere"))

    with pytest.raises(SessionLogError, match="do not trust it"):
        session.materialise(tmp_path / "restored")

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("change", [{"files": [{}]}, {"files": 3}, {"config": 3, "files": []}, {"sealed": b"x"}])
def test_a_log_of_something_else_is_refused_in_words(tmp_path: Path, change: dict[str, Any]) -> None:
    session = record(tmp_path / "sessions")
    session.metadata.update(change)
    with pytest.raises(SessionLogError, match="of no session that this program knows"):
        session.materialise(tmp_path / "restored")


def has_hash(session: Session, wanted: str) -> bool:
    return bool(session.files()[0]["sha256"] == wanted)


def test_of_the_recording_that_is_the_source_only_the_hash_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "counts.npy", np.ones((100, 2), np.float32))
    config = parse('source = {kind = "features", path = "counts.npy", bin_ms = 20}', folder=tmp_path)
    wanted = hashlib.sha256((tmp_path / "counts.npy").read_bytes()).hexdigest()
    for largest in (sessions.LARGEST_FILE, 10):  # a large one is hashed while the session runs
        monkeypatch.setattr(sessions, "LARGEST_FILE", largest)
        recorder = begin(tmp_path / str(largest), config)
        session = Session(recorder.folder)
        wait_until(partial(has_hash, session, wanted), "the hash")
        recorder.close()
        assert not session.files()[0]["is_kept"]
        assert session.materialise(tmp_path / "restored").source == config.source
        assert verify(session.folder).is_ok


def test_a_session_does_not_keep_the_sessions_before_it(tmp_path: Path) -> None:
    config = parse(CONFIG + '[record]\nfolder = "sessions"\n')
    config = config.model_copy(update={"record": config.record.model_copy(update={"folder": tmp_path})})  # type: ignore[union-attr]
    first, second = record(tmp_path, config=config), record(tmp_path, config=config)
    assert first.files() == second.files() == []


def write_stimulation(folder: Path, mode: str, *, blind: bool) -> SessionConfig:
    """Return a session with a stimulator, in a mode."""
    key = folder / "arming.key"
    key.write_text("correct horse battery staple" * 4)
    key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    (folder / "session.toml").write_text(
        CONFIG
        + f"""
[stimulation]
mode = "{mode}"
blind = {str(blind).lower()}
key_file = "arming.key"
ledger = "dose.ledger"
[[stimulation.electrodes]]
name = "e0"
area_um2 = 2000
impedance_kohm = 40
material = "sirof"
[[stimulation.programs]]
name = "p0"
electrode = "e0"
amplitude_ua = 10
phase_us = 200
"""
    )
    (folder / "dose.ledger").touch()
    return load(folder / "session.toml")


@pytest.fixture
def blind_session(tmp_path: Path) -> Session:
    return record(tmp_path / "sessions", config=write_stimulation(tmp_path, "sham", blind=True))


def test_the_key_that_arms_is_nowhere_in_a_session(blind_session: Session, tmp_path: Path) -> None:
    secret = (tmp_path / "arming.key").read_bytes()
    for path in blind_session.folder.iterdir():
        assert secret not in path.read_bytes()
        assert hashlib.sha256(secret).hexdigest().encode() not in path.read_bytes()
    restored = blind_session.materialise(tmp_path / "restored")
    key_file = next((tmp_path / "restored").rglob("arming.key"))
    assert str(key_file) in str(restored.effective())
    assert key_file.read_bytes() != secret


def test_the_condition_of_a_blind_session_is_not_seen_until_it_is_asked_for(blind_session: Session) -> None:
    assert blind_session.condition == "sealed"
    assert "mode" not in blind_session.metadata["config"]["stimulation"]
    for path in blind_session.folder.iterdir():
        assert b"sham" not in path.read_bytes(), path
    shown = CliRunner().invoke(app, ["show", str(blind_session.folder), "--json"])
    assert shown.exit_code == 0
    assert "sham" not in shown.stdout
    for json_option in ([], ["--json"]):
        unsealed = CliRunner().invoke(app, ["show", str(blind_session.folder), "--unblind", *json_option])
        assert "sham" in unsealed.stdout
    assert blind_session.unsealed()["config"]["stimulation"]["mode"] == "sham"
    assert verify(blind_session.folder).is_ok


def test_a_folder_that_cannot_be_written_to_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be recorded there"):
        begin(tmp_path / "file")


def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionLogError, match="no session"):
        Session(tmp_path / "nothing")
    with pytest.raises(SessionLogError, match="holds no log"):
        verify(tmp_path)
    with pytest.raises(SessionLogError, match="'samples'; it has ticks, decisions"):
        record(tmp_path).records("samples")


# -- verify


def test_a_session_that_was_closed_is_whole(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    add(recorder, some_ticks(0, 100))
    decisions = np.zeros(5, DECISION)
    decisions["reason"], decisions["delivered"] = [0, 0, 3, 3, 4], [1, 0, 0, 0, 0]
    recorder.add("decisions", decisions)
    recorder.add_message("events", {"name": "go", "t": 100.0, "tick": 3, "source": "ingest", "value": None})
    recorder.close()
    report = verify(recorder.folder)
    assert report.is_ok
    assert (report.ended, report.why) == ("properly", "closed")
    assert (report.ticks["first"], report.ticks["last"], report.ticks["steps"]) == (0, 99, 100)
    assert report.ticks["duration_s"] == pytest.approx(0.099)
    assert report.decisions == {"allowed": 2, "refused": 3, "delivered": 1}
    assert report.records["events"] == 1
    assert report.lost == {}
    assert report.faults == []


def test_ticks_that_never_reached_the_recorder_are_missed(tmp_path: Path) -> None:
    report = verify(record(tmp_path, some_ticks(0, 100), some_ticks(107, 50)).folder)
    assert not report.is_ok
    assert (report.ticks["gaps"], report.ticks["missing"], report.ticks["steps_missing"]) == (1, 7, 7)
    assert report.lost == {}  # of what was left to the recorder


def test_fillers_and_a_restored_checkpoint_are_no_gaps(tmp_path: Path) -> None:
    ticks = some_ticks(0, 100)
    ticks["flags"][40:50] = int(Flag.FILLER)
    ticks["tick"][40:50] = 39
    ticks["tick"][50:] = np.arange(20, 70)  # a checkpoint of tick 20
    report = verify(record(tmp_path, ticks).folder)
    assert report.is_ok
    assert (report.ticks["fillers"], report.ticks["backward"], report.ticks["steps_missing"]) == (10, 1, 0)


def test_a_damaged_chunk_is_said_with_what_was_lost(tmp_path: Path) -> None:
    session = record(tmp_path, some_ticks(0, 100), some_ticks(100, 50), some_ticks(150, 50))
    path = segment_path(session.folder, 0)
    # in the middle of the second chunk of ticks
    flip(path, path.read_bytes().index(some_ticks(120, 1).tobytes()) + 50)
    report = verify(session.folder)
    assert not report.is_ok
    assert report.lost == {"ticks": 50}
    assert (report.ticks["gaps"], report.ticks["missing"]) == (1, 50)
    assert [fault.what for fault in report.faults] == ["damaged"]
    assert report.ended == "properly"


def test_a_torn_tail_is_told_from_damage(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    add(recorder, some_ticks(0, 100))
    whole = segment_path(recorder.folder, 0).read_bytes()
    add(recorder, some_ticks(100, 50))
    recorder.close()
    path = segment_path(recorder.folder, 0)
    path.write_bytes(path.read_bytes()[: len(whole) + 1000])
    report = verify(recorder.folder)
    assert report.is_ok
    assert report.is_torn
    assert report.ended == "killed"
    assert report.ticks["last"] == 99


def test_a_damaged_kept_file_is_missed(tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.full((16, 2), 7.25, np.float32))
    (tmp_path / "session.toml").write_text(CONFIG + '[encoder]\nkind = "matrix"\nmatrix_path = "matrix.npy"\n')
    session = record(tmp_path / "sessions", config=load(tmp_path / "session.toml"))
    path = segment_path(session.folder, 0)
    flip(path, path.read_bytes().index(np.full(8, 7.25, np.float32).tobytes()))
    assert verify(session.folder).damaged_files == ["encoder.matrix_path"]
    with pytest.raises(SessionLogError, match=r"matrix\.npy in the log"):
        session.materialise(tmp_path / "restored")


def test_a_session_that_is_being_recorded_can_be_read(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    add(recorder, some_ticks(0, 100))
    assert verify(recorder.folder).ticks["last"] == 99
    add(recorder, some_ticks(100, 100))
    assert len(Session(recorder.folder).records("ticks")) == 200
    recorder.close()


# -- the command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def test_the_commands_list_show_and_verify(tmp_path: Path) -> None:
    session = record(tmp_path)
    listed = json.loads(run("list", str(tmp_path), "--json").stdout)
    assert [Path(row["folder"]) for row in listed] == [session.folder]
    assert (listed[0]["source"], listed[0]["error"]) == ("amplifier", None)
    assert "my_session" in run("list", str(tmp_path)).stdout
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; name the one that \[record\] names"):
        CliRunner().invoke(app, ["list", str(tmp_path / "nowhere")], catch_exceptions=False)
    shown = json.loads(run("show", str(session.folder), "--json").stdout)
    assert shown["config"] == json.loads(json.dumps(parse(CONFIG).effective()))
    assert shown["end"]["why"] == "closed"
    assert "amplifier: 2 channels" in run("show", str(session.folder)).stdout
    verified = run("verify", str(session.folder), "--json")
    assert (verified.exit_code, json.loads(verified.stdout)["is_ok"]) == (0, True)
    assert "whole" in run("verify", str(session.folder)).stdout


def test_verify_fails_where_something_is_damaged_and_not_where_the_end_is_torn(tmp_path: Path) -> None:
    session = record(tmp_path)
    (path,) = segments(session.folder)
    os.truncate(path, path.stat().st_size - 5)
    torn = run("verify", str(session.folder))
    assert (torn.exit_code, "torn" in torn.stdout) == (0, True)
    flip(path, path.stat().st_size // 2)
    damaged = run("verify", str(session.folder))
    assert (damaged.exit_code, "damaged" in damaged.stdout) == (1, True)
    assert json.loads(run("verify", str(session.folder), "--json").stdout)["faults"][0]["what"] == "damaged"


def test_export_writes_and_does_not_overwrite_unasked(tmp_path: Path) -> None:
    session, out = record(tmp_path), tmp_path / "out.nwb"
    written = run("export", str(session.folder), str(out), "--subject-id", "rat1", "--json")
    assert (written.exit_code, json.loads(written.stdout)["ticks"]) == (0, 150)
    again = run("export", str(session.folder), str(out))
    assert again.exit_code != 0
    assert "--force" in str(again.exception)
    assert run("export", str(session.folder), str(out), "--force").exit_code == 0
