"""The log: for people, for programs, for the journal of systemd, and in a file that does not grow without end."""

import contextlib
import datetime
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import WAIT_S, neuromod, process, wait_until

from neuromod.bridge import logs
from neuromod.bridge.client import Client
from neuromod.bridge.logs import Context, ForJournal, JsonLines, LogFormat, is_journal
from neuromod.engine.errors import ConfigError


def record(message: str, *args: Any, level: int = logging.WARNING, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("neuromod.bridge.some", level, __file__, 1, message, args, exc_info)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    for handler in set(logger.handlers) - set(handlers):
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()
    logger.handlers[:], logger.level = handlers, level


# -- lines of JSON


def test_a_record_is_one_object_with_time_level_logger_and_message() -> None:
    told = record("late tick: %d us over", 12)

    body = json.loads(JsonLines(Context()).format(told))

    assert datetime.datetime.fromisoformat(body.pop("time")).timestamp() == pytest.approx(told.created, abs=1e-5)
    assert body == {"level": "warning", "logger": "neuromod.bridge.some", "message": "late tick: 12 us over"}


def test_session_tick_and_local_clock_are_told_where_they_are_known() -> None:
    context = Context("monday")
    context.clock, context.tick = lambda: 123.5, lambda: 42

    body = json.loads(JsonLines(context).format(record("x")))

    assert (body["session"], body["tick"], body["local_clock"]) == ("monday", 42, 123.5)


def test_an_exception_is_told_whole() -> None:
    try:
        raise OSError("no space left")
    except OSError:
        body = json.loads(JsonLines(Context()).format(record("failed", exc_info=sys.exc_info())))

    assert body["message"] == "failed"
    assert body["exception"].startswith("Traceback")
    assert "OSError: no space left" in body["exception"]


@pytest.mark.parametrize("message", ["two\nlines", "a\r\nb", "\u2028 and \x85", '"quoted" \\ \x00', "\udcff"])
def test_no_message_can_begin_a_line_of_its_own(message: str) -> None:
    line = JsonLines(Context()).format(record("%s", message))

    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message


# -- for the journal


@pytest.mark.parametrize(
    ("level", "priority"), [("CRITICAL", 2), ("ERROR", 3), ("WARNING", 4), ("INFO", 6), ("DEBUG", 7)]
)
def test_every_line_begins_with_its_priority(level: str, priority: int) -> None:
    lines = ForJournal(logging.Formatter("%(message)s")).format(
        record("first\nsecond", level=logging.getLevelNamesMapping()[level])
    )
    assert lines.splitlines() == [f"<{priority}>first", f"<{priority}>second"]


def test_only_the_stream_that_systemd_named_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as stream, (tmp_path / "b").open("w") as other:
        found = os.fstat(stream.fileno())
        named = f"{found.st_dev}:{found.st_ino}"
        assert is_journal(stream, named)
        assert not is_journal(other, named)
        assert not is_journal(stream, "")
    assert not is_journal(io.StringIO(), named)


def test_stderr_that_is_the_journal_gets_priorities(tmp_path: Path) -> None:
    # the journal's stream is a socket that is made by systemd; a file is told by the same two numbers
    path = tmp_path / "journal"
    program = (
        "import os, sys, logging; from neuromod.bridge import logs; f = os.fstat(2); "
        "logs.set_up(journal_stream=f'{f.st_dev}:{f.st_ino}'); logging.getLogger('x').error('it failed')"
    )
    with path.open("w") as stderr:
        subprocess.run([sys.executable, "-c", program], stderr=stderr, check=True, timeout=60)
    assert path.read_text() == "<3>x: it failed\n"


# -- in a file


def test_the_file_gets_what_stderr_gets(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root.setLevel(logging.INFO)
    logs.set_up(form=LogFormat.JSON, file=tmp_path / "a.log", context=Context("s"))

    logging.getLogger("neuromod.x").info("hello")
    logging.getLogger("neuromod.x").debug("not that")

    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["hello"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_file_that_is_full_is_put_aside_and_the_oldest_thrown_away(
    root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    logs.set_up(file=tmp_path / "a.log")

    for k in range(200):
        logging.getLogger("x").warning("%d %s", k, "y" * 80)

    names = {"a.log", *(f"a.log.{k}" for k in range(1, logs.OLD_FILES + 1))}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "199 y" in (tmp_path / "a.log").read_text()


def test_a_file_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log-file: .*absent/a.log cannot be written: No such file.*; name a file"):
        logs.set_up(file=tmp_path / "absent" / "a.log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_log_is_said_once_and_ends_nothing(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(file=Path("/dev/full"))
    root.handlers[1].maxBytes = 0  # type: ignore[attr-defined]  # a device is not put aside

    for k in range(5):
        logging.getLogger("x").warning("message %d", k)

    lines = capsys.readouterr().err.splitlines()
    assert sum("/dev/full cannot be written" in line for line in lines) == 1
    assert sum("message" in line for line in lines) == 5


# -- as the command writes it


@pytest.mark.compiled_loop
def test_start_writes_lines_of_json_from_its_first_word_to_its_last(
    session_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path, file = session_file('source = "zmq"\n[session]\nname = "logged"\n'), tmp_path / "neuromod.log"
    before = time.time()
    with neuromod("start", str(path), "--log-format", "json", "--log-file", str(file)) as child:
        child.wait_for_line("Ctrl-C stops", timeout_s=240.0)
        addresses = {name: child.wait_for_line(rf'"{name}: (tcp[^"]+)"')[1] for name in ("ingest", "output", "control")}
        with Client(**addresses, timeout_s=WAIT_S) as client:
            for _ in range(5):
                client.send_stimuli([1.0] * 16)
            wait_until(lambda: client.request("status")["health"]["tick"] == 4, "five ticks")
            client._push.send_multipart([b"no_such_topic", b"x"])  # type: ignore[union-attr]
            child.wait_for_line("refused 1 messages")
        code, _ = child.end(signal.SIGTERM)

    bodies = [json.loads(line) for line in child.lines["err"]]
    assert code == 0
    assert {body["session"] for body in bodies} == {"logged"}
    assert all(before - 1 < datetime.datetime.fromisoformat(body["time"]).timestamp() < time.time() for body in bodies)
    (refusal,) = (body for body in bodies if body["message"].startswith("refused 1"))
    assert (refusal["level"], refusal["logger"], refusal["tick"]) == ("warning", "neuromod.bridge.collector", 4)
    assert refusal["local_clock"] > 0
    assert [json.loads(line) for line in file.read_text().splitlines() if '"logger": "neuromod"' not in line] == [
        body for body in bodies if body["logger"] != "neuromod"
    ]


def test_what_cannot_be_run_is_said_in_the_form_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    with process("-m", "neuromod.bridge.cli", "start", str(path), "--log-format", "json") as child:
        assert child.end(timeout_s=60.0)[0] == 2
    (line,) = child.lines["err"]
    assert str(path) in json.loads(line)["message"]
    assert json.loads(line)["level"] == "error"
