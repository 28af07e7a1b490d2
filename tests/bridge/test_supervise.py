"""A supervised daemon is started anew after a crash, from its checkpoint, disarmed; not without end, and no orphan."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pylsl
import pytest
from harness import ONE_PULSE, WAIT_S, Listener, Process, neuromod, process, wait_until

from neuromod.bridge import checkpoint
from neuromod.bridge import supervise as supervising
from neuromod.bridge.client import Client
from neuromod.bridge.supervise import supervise
from neuromod.bridge.wire import EventMessage

START_S = 240.0  # it may have to compile first

SESSION = (
    """
source = {{kind = "lsl", name = "{name}", content = "features"}}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[network.learning]
rule = "hebbian"
[publish]
health_s = 0.1
state_hz = 100
[sockets]
ingest = "ipc://{folder}/in"
output = "ipc://{folder}/out"
control = "ipc://{folder}/do"
[checkpoint]
path = "{folder}/loop.checkpoint"
every_s = 0.2
[stimulation]
"""
    + ONE_PULSE
)


class Streaming:
    """An outlet of features that sends, or keeps silent, as the test says."""

    def __init__(self, name: str) -> None:
        info = pylsl.StreamInfo(name, "Feature", 16, 500.0, pylsl.cf_float32, f"{name}-1")
        self._outlet = pylsl.StreamOutlet(info)
        self.sends, self.done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self.done.wait(0.002):
            if self.sends.is_set():
                self._outlet.push_sample(rng.uniform(0.0, 60.0, 16).tolist())

    def close(self) -> None:
        self.done.set()
        self._thread.join()
        del self._outlet


@contextmanager
def streaming(name: str) -> Iterator[Streaming]:
    """Give an outlet."""
    stream = Streaming(name)
    try:
        yield stream
    finally:
        stream.close()


def daemons(supervisor: Process) -> list[psutil.Process]:
    """Return the children of a supervisor."""
    found: list[psutil.Process] = psutil.Process(supervisor.popen.pid).children()
    return found


def living(folder: Path) -> psutil.Process:
    """Return the daemon that lives now, by the file beside its checkpoints."""
    return psutil.Process(json.loads((folder / "loop.checkpoint.life").read_text())["pid"])


@pytest.mark.compiled_loop
def test_a_killed_daemon_is_back_from_its_checkpoint_disarmed_and_says_so(tmp_path: Path) -> None:
    config = tmp_path / "session.toml"
    config.write_text(SESSION.format(name="supervised", folder=tmp_path))
    with streaming("supervised") as stream, neuromod("start", "--supervise", str(config)) as supervisor:
        stream.sends.set()
        supervisor.wait_for_line("Ctrl-C stops", timeout_s=START_S)
        first = living(tmp_path)
        addresses = {"ingest": "in", "output": "out", "control": "do"}
        with Client(**{k: f"ipc://{tmp_path}/{v}" for k, v in addresses.items()}, timeout_s=WAIT_S) as client:
            listener = Listener(client, "health", "event")
            listener.health(lambda m: m.body["checkpoints"]["count"] >= 2 and m.counters["spikes"] > 0, "checkpoints")
            assert client.request("arm", seconds=60.0, nonce="", mac="")["arms"] == 1
            first.kill()
            stream.sends.clear()
            (event,) = listener.until(
                lambda: [m for m in listener.of(EventMessage) if m.name == "daemon.restarted"], "the word", START_S
            )
            second = living(tmp_path)
            health = listener.health(lambda m: m.body["restarts"] == 1)
            n_ready = supervisor.errors.count("standby is ready")  # on a slow machine the second was one itself
            # what the first life left: the second has not moved on since, for its stream is silent
            client.request("checkpoint", path=str(tmp_path / "after"))
            before, after = (checkpoint.network_block(tmp_path / name) for name in ("loop.checkpoint", "after"))
            stream.sends.set()
            listener.health(lambda m: m.state == "streaming" and m.body["tick"] > event.value["tick"], "ticks again")

            wait_until(lambda: supervisor.errors.count("standby is ready") > n_ready, "a standby", START_S)
            (standby,) = (child for child in daemons(supervisor) if child.pid != second.pid)
            second.kill()
            again = listener.health(lambda m: m.body["restarts"] == 2 and m.state == "streaming", "the standby's life")
            third = living(tmp_path)
            code, _ = supervisor.end(signal.SIGTERM)

    assert second.pid != first.pid
    assert event.source == "daemon"
    assert (event.value["ended"], event.value["restarts"]) == ("was ended by SIGKILL", 1)
    assert event.value["downtime_s"] < START_S
    assert health.body["stimulation"]["state"] == "disarmed"
    assert health.body["stimulation"]["arms"] == 0
    assert before["weights_mv"].tobytes() == after["weights_mv"].tobytes()
    assert before["eligibility_mv"].tobytes() == after["eligibility_mv"].tobytes()
    assert code == 0
    assert third.pid == standby.pid
    assert again.body["tick"] >= event.value["tick"]
    wait_until(lambda: not third.is_running(), "the end of the daemon")
    assert "was ended by SIGKILL: started anew" in supervisor.errors


@pytest.mark.compiled_loop
def test_after_a_crash_a_stream_that_is_away_is_waited_for_however_long_that_takes(tmp_path: Path) -> None:
    config = tmp_path / "session.toml"
    text = SESSION.format(name="away", folder=tmp_path)
    config.write_text(text.replace('content = "features"', 'content = "features", resolve_timeout_s = 0.2'))
    life = json.dumps({"how": "was ended by SIGKILL", "at": time.time(), "restarts": 1})
    with neuromod("start", str(config), "--last-life", life) as daemon:
        daemon.wait_for_line("no LSL stream .* Goes on looking", timeout_s=START_S)
        with streaming("away"):
            daemon.wait_for_line("Ctrl-C stops", timeout_s=START_S)
            code, _ = daemon.end(signal.SIGTERM)
    assert code == 0
    assert daemon.errors.count("Goes on looking") == 1  # a line a minute, however often it looks


# -- the parent, with children that do as they are told


@contextmanager
def supervised(script: str, *words: str) -> Iterator[Process]:
    """Give a supervisor of a Python script, in a process of its own."""
    command = [sys.executable, "-c", script, *words]
    parent = (
        "import logging, sys; logging.basicConfig(level='INFO', stream=sys.stderr)\n"
        f"from neuromod.bridge.supervise import supervise; sys.exit(supervise({command!r}))"
    )
    with process("-c", parent) as child:
        yield child


LIVES = "import signal, sys, time\nprint('lives', *sys.argv[1:], file=sys.stderr, flush=True)\n"
WAITS = LIVES + "time.sleep(600)"


@pytest.mark.parametrize("code", [0, 2], ids=["an orderly end", "a session that cannot be"])
def test_what_would_end_the_same_way_is_not_started_again(code: int, tmp_path: Path) -> None:
    script = f"import sys; open({str(tmp_path / 'lives')!r}, 'a').write('x'); sys.exit({code})"
    assert supervise([sys.executable, "-c", script]) == code
    assert (tmp_path / "lives").read_text() == "x"


def test_too_many_crashes_and_it_gives_up_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = f"import os; open({str(tmp_path / 'lives')!r}, 'a').write('x'); os.abort()"
    assert supervise([sys.executable, "-c", script], most_crashes=3) == 1
    assert (tmp_path / "lives").read_text() == "xxx"
    assert "was ended by SIGABRT, for the 3th time" in caplog.text
    assert "given up" in caplog.text


def test_crashes_long_apart_are_each_forgiven_and_told_to_the_next(tmp_path: Path) -> None:
    script = (
        f"import sys; kept = open({str(tmp_path / 'lives')!r}, 'a+'); kept.seek(0); n = len(kept.readlines())\n"
        "kept.write(' '.join(sys.argv[1:]) + '\\n'); kept.close(); sys.exit(70 if n < 4 else 0)"
    )
    hours = iter(range(0, 10_000_000, 3600))
    assert supervise([sys.executable, "-c", script], most_crashes=3, clock=lambda: float(next(hours))) == 0
    first, *others = (tmp_path / "lives").read_text().splitlines()
    assert first == ""
    told = [json.loads(line.removeprefix("--last-life ")) for line in others]
    assert [life["restarts"] for life in told] == [1, 2, 3, 4]
    assert told[0]["how"] == "ended with exit code 70, since its loop stood still"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_end_is_passed_on_and_ends_both(number: int) -> None:
    script = (
        LIVES
        + f"signal.signal({int(number)}, lambda *_: sys.exit(0))\nprint('ready', file=sys.stderr)\ntime.sleep(600)"
    )
    with supervised(script) as parent:
        parent.wait_for_line("^ready")
        (child,) = daemons(parent)
        code, _ = parent.end(number)
        assert code == 0
        assert not child.is_running()


def test_sigusr1_is_passed_on_and_ends_nothing() -> None:
    said = "lambda *_: print('halted', file=sys.stderr, flush=True)"
    script = (
        f"import signal, sys, time\nsignal.signal(signal.SIGUSR1, {said})\n" + LIVES + "\nwhile True: time.sleep(0.01)"
    )
    with supervised(script) as parent:
        parent.wait_for_line("^lives")
        parent.popen.send_signal(signal.SIGUSR1)
        parent.wait_for_line("^halted")
        assert len(daemons(parent)) == 1
        parent.end(signal.SIGTERM)


def test_sigusr1_does_not_end_what_only_starts() -> None:
    script = "import signal, sys; sys.exit(0 if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN else 9)"
    assert supervise([sys.executable, "-c", script], most_crashes=1) == 0


def test_a_standby_that_ended_by_itself_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("neuromod.bridge.supervise.STANDBY_AFTER_S", 0.0)
    # the first crashes once its standby has come and gone; the next ends in order
    script = """
import os, psutil, sys, time
if "--standby" in sys.argv:
    sys.exit(3)
family = psutil.Process(os.getppid()).children
while "--last-life" not in sys.argv and not any(child.status() == psutil.STATUS_ZOMBIE for child in family()):
    time.sleep(0.01)
sys.exit(0 if "--last-life" in sys.argv else 70)
"""
    assert supervise([sys.executable, "-c", script], has_standby=True) == 0
    assert "starts from nothing" in caplog.text


def test_a_standby_takes_over_from_a_daemon_that_died_before_it_had_compiled(tmp_path: Path) -> None:
    script = "from neuromod.bridge.standby import wait_to_be_told; print(wait_to_be_told())"
    nothing_compiled = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "1"}  # nor does it take a minute then
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="the last life\n", capture_output=True, text=True, timeout=START_S, check=True,
        env=os.environ | nothing_compiled,
    )  # fmt: skip
    assert done.stdout == "the last life\n"


def test_a_standby_for_which_there_is_no_memory_is_no_reason_to_end_the_daemon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = supervising._start

    def start_daemon(command: Sequence[str], **options: Any) -> Any:
        if "--standby" in command:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return start(command, **options)

    monkeypatch.setattr(supervising, "STANDBY_AFTER_S", 0.0)
    monkeypatch.setattr(supervising, "_start", start_daemon)
    assert supervise([sys.executable, "-c", "import time; time.sleep(0.5)"], has_standby=True) == 0
    assert "goes without a standby: [Errno 12]" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_supervisor_that_is_killed_leaves_no_orphan() -> None:
    with supervised(WAITS) as parent:
        parent.wait_for_line("^lives")
        (child,) = daemons(parent)
        parent.end(signal.SIGKILL)
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the child")
