"""Checkpoints by the clock, and what a life begins from: the newest good one, bit for bit, after a crash only."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MEMORY, GatedSource, Running, session, wait_until

from neuromod.bridge.intake import Intake
from neuromod.bridge.resume import LastLife, Life, from_supervisor
from neuromod.bridge.session_log import LogReader
from neuromod.bridge.supervision import Supervision
from neuromod.bridge.wire import EventMessage
from neuromod.engine.errors import AdapterError, ConfigError

LEARNING = "\n[network.learning]\nrule = 'hebbian'\n"


def source() -> GatedSource:
    """Features that drive every channel, so that weights change."""
    rng = np.random.default_rng(1)
    return GatedSource(rng.uniform(0.0, 60.0, (200_000, 16)).astype(np.float32), 1000.0, kind="features")


class Lives:
    """Lives of one daemon, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "loop.checkpoint"
        self.folder = folder

    def begin(self, resume: str = "crash", every_s: float = 3600.0, **options: Any) -> Running:
        text = (
            f'{MEMORY}{LEARNING}\n[checkpoint]\npath = "{self.path}"\nresume = "{resume}"\nevery_s = {every_s}\n'
            f'[record]\nfolder = "{self.folder}/kept"\nmin_free_mb = 1\nwarn_free_mb = 1\n'
        )
        config = session(text)
        running = Running(config, source=source(), speed=1.0, supervision=Supervision(config, **options))
        self.source: GatedSource = running.daemon.intake.source  # type: ignore[assignment]
        return running

    def crash(self) -> None:
        """Make it look as if the life that has just ended in order had been killed."""
        path = self.path.with_name(self.path.name + ".life")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"is_clean": False, "why": ""}))


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path)


def weights(running: Running) -> bytes:
    found: bytes = running.daemon.assembly.network.state[0]["weights_mv"].tobytes()
    return found


def some_life(lives: Lives) -> tuple[int, bytes]:
    """Live, learn, write two checkpoints; return the second's tick and weights."""
    with lives.begin() as running:
        before = weights(running)
        lives.source.let_go(200)
        running.wait_for_ticks(200)
        checkpoints = running.daemon.supervision.checkpoints
        assert checkpoints is not None
        checkpoints.turn()
        lives.source.let_go(400)
        running.wait_for_ticks(400)
        checkpoints.turn()
        health = running.health["checkpoints"]
        assert (health["count"], health["tick"], health["fault"]) == (2, 400, "")
        assert 0.0 <= health["age_s"] < 3600.0
        at_400 = weights(running)
        assert at_400 != before
        lives.source.let_go(500)
        running.wait_for_ticks(500)
    return 400, at_400


def restarted(running: Running) -> dict[str, Any]:
    """Return what was announced of a restart."""
    found = wait_until(
        lambda: [e for e in running.daemon.collector.past_events if e.name == "daemon.restarted"], "the announcement"
    )
    assert len(found) == 1
    assert isinstance(found[0], EventMessage)
    assert found[0].source == "daemon"
    value: dict[str, Any] = found[0].value
    return value


@pytest.mark.compiled_loop
def test_a_life_after_a_crash_goes_on_with_the_weights_of_the_checkpoint_bit_for_bit(lives: Lives) -> None:
    tick, learnt = some_life(lives)
    lives.crash()
    (first,) = (lives.folder / "kept").iterdir()
    with lives.begin() as running:
        wait_until(lambda: weights(running) == learnt, "the weights of the checkpoint")
        value = restarted(running)
        assert (value["tick"], value["checkpoint"], value["restarts"]) == (tick, str(lives.path), 1)
        assert "killed" in value["ended"]
        assert value["downtime_s"] >= 0.0
        assert running.health["restarts"] == 1
        lives.source.let_go(10)
        assert int(running.records.wait_for(1)[0]["tick"]) == tick
    second = next(folder for folder in (lives.folder / "kept").iterdir() if folder != first)
    assert LogReader(second).metadata["continues"] == str(first)


@pytest.mark.compiled_loop
@pytest.mark.parametrize(
    ("resume", "is_crash", "goes_on"),
    [("crash", False, False), ("never", True, False), ("always", False, True)],
    ids=["after an orderly end", "never", "always"],
)
def test_what_a_life_begins_from_is_as_the_session_says(
    lives: Lives, resume: str, is_crash: bool, goes_on: bool
) -> None:
    tick, _ = some_life(lives)
    if is_crash:
        lives.crash()
    with lives.begin(resume) as running:
        lives.source.let_go(1)
        first = running.records.wait_for(1)[0]
        assert int(first["tick"]) == (tick if goes_on else 0)
        assert running.health["restarts"] == int(is_crash)


@pytest.mark.compiled_loop
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_and_that_is_said(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    some_life(lives)
    lives.crash()
    data = bytearray(lives.path.read_bytes())
    data[len(data) // 2] ^= 1
    lives.path.write_bytes(data)
    with lives.begin() as running:
        assert restarted(running)["tick"] == 200
    assert "loop.checkpoint is damaged" in caplog.text


@pytest.mark.compiled_loop
def test_a_crash_before_the_first_checkpoint_begins_anew_and_says_so(lives: Lives) -> None:
    with lives.begin():
        pass
    lives.crash()
    with lives.begin() as running:
        lives.source.let_go(1)  # the announcement waits for a tick
        assert restarted(running)["checkpoint"] is None
        assert int(running.records.wait_for(1)[0]["tick"]) == 0


@pytest.mark.compiled_loop
def test_a_life_that_fails_while_it_begins_is_no_orderly_end(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    tick, _ = some_life(lives)
    lives.crash()
    with monkeypatch.context() as broken:

        def fail(*_: Any) -> Any:
            raise AdapterError("the stream went away")

        broken.setattr(Intake, "begin", fail)
        with pytest.raises(AdapterError), lives.begin():
            pass
    with lives.begin() as running:
        lives.source.let_go(1)
        value = restarted(running)
        assert (value["tick"], value["restarts"], value["ended"]) == (tick, 2, "failed: the stream went away")


@pytest.mark.compiled_loop
def test_a_command_for_which_there_was_no_room_does_not_stand_in_the_way_of_the_next(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lives.begin() as running:
        checkpoints = running.daemon.supervision.checkpoints
        assert checkpoints is not None
        with monkeypatch.context() as full:
            full.setattr(running.daemon.collector, "submit", lambda *_, **__: False)
            checkpoints.turn()
            assert "too many inputs wait" in running.health["checkpoints"]["fault"]
        checkpoints.turn()
        assert running.health["checkpoints"]["fault"] == ""


@pytest.mark.compiled_loop
def test_checkpoints_come_by_the_clock_and_only_so_many_are_kept(lives: Lives) -> None:
    with lives.begin(every_s=0.1) as running:
        wait_until(lambda: running.health["checkpoints"]["count"] >= 5, "five checkpoints")
        names = {path.name for path in lives.folder.iterdir() if "partial" not in path.name}
    kept = {"loop.checkpoint", "loop.checkpoint.1", "loop.checkpoint.2"}
    assert names - {"kept", "loop.checkpoint.life", "loop.checkpoint.life.lock"} <= kept
    assert kept == {p.name for p in lives.folder.glob("loop.checkpoint*") if ".life" not in p.name}


@pytest.mark.compiled_loop
def test_a_disk_that_takes_no_checkpoint_is_said_once_and_nothing_else_happens(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with lives.begin(every_s=0.1) as running:
        wait_until(lambda: running.health["checkpoints"]["count"] >= 1, "a checkpoint")
        real = os.fsync

        def full(fd: int) -> None:
            if str(lives.path) in str(Path(f"/proc/self/fd/{fd}").readlink()):  # not the record beside it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd)

        monkeypatch.setattr(os, "fsync", full)
        health = running.wait_for_health(lambda h: not h["watchdogs"]["disk"]["ok"], "the watchdog's word")
        assert "No space left on device" in health["watchdogs"]["disk"]["says"]
        good = lives.path.read_bytes()
        count = health["checkpoints"]["count"]
        monkeypatch.setattr(os, "fsync", real)
        running.wait_for_health(lambda h: h["checkpoints"]["count"] > count, "checkpoints again")
        assert good[:20] == lives.path.read_bytes()[:20]
    assert caplog.text.count("could not be written") == 2  # by the checkpoints, and by the watchdog


@pytest.mark.compiled_loop
def test_what_a_supervisor_knows_is_told(lives: Lives) -> None:
    told = from_supervisor('{"how": "was ended by SIGKILL", "at": 5.0, "restarts": 3}')
    with lives.begin(last=told) as running:
        value = restarted(running)
    assert (value["ended"], value["restarts"]) == ("was ended by SIGKILL", 3)
    assert value["downtime_s"] > 1e6
    with pytest.raises(ConfigError, match="leave it out"):
        from_supervisor("{}")


# -- the file of a life


def test_a_life_that_never_began_leaves_what_is_known_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "c"
    life = Life(path, wall=lambda: 10.0)
    assert life.last is None
    life.begin("s1")
    life._unlock()  # as the kernel does where a process is killed
    for _ in range(2):
        stillborn = Life(path, wall=lambda: 20.0)
        stillborn.end("failed", is_clean=True)
        assert stillborn.last == LastLife(False, "it was killed, or crashed, without a word", 10.0, 1, "s1")
    second = Life(path)
    second.begin("s2")
    second._unlock()
    third = Life(path)
    assert third.last is not None
    assert third.last.restarts == 2
    third.begin("")
    third.end("stopped", is_clean=True)
    fourth = Life(path)
    assert fourth.last is not None
    assert (fourth.last.is_clean, fourth.last.how, fourth.last.restarts) == (True, "stopped", 0)
    fourth.end("", is_clean=True)


def test_two_daemons_on_one_path_are_refused(tmp_path: Path) -> None:
    life = Life(tmp_path / "c")
    with pytest.raises(ConfigError, match="another daemon"):
        Life(tmp_path / "c")
    life.end("stopped", is_clean=True)
    Life(tmp_path / "c").end("stopped", is_clean=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"is_clean": true}'])
def test_a_damaged_file_counts_as_a_crash(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.life").write_text(text)
    life = Life(tmp_path / "c")
    assert life.last is not None
    assert not life.last.is_clean
    assert "damaged" in caplog.text
    life.end("", is_clean=True)


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make its folder"):
        Life(tmp_path / "nowhere" / "c")
    life = Life(tmp_path / "c")
    (tmp_path / "c.life.partial").mkdir()  # as good as a full disk
    with pytest.raises(ConfigError, match="cannot be written"):
        life.begin("")
    life.end("", is_clean=True)
