"""The command line as a user and a script see it: what is printed where, and the exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from typer.testing import CliRunner, Result

from neuromod.bridge import wire
from neuromod.bridge.cli import app
from neuromod.bridge.commands import COMMANDS
from neuromod.bridge.config import load
from neuromod.engine.models.catalogue import MODELS

WAIT_S = 60.0


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    # a wide terminal without colours, so that what is said is found in one piece
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"} | (env or {}))


@pytest.fixture
def session(tmp_path: Path) -> Path:
    file = tmp_path / "session.toml"
    file.write_text('source = "zmq"\n')
    return file


# -- help


def test_help_comes_without_loading_the_heavy_libraries() -> None:
    heavy = ["numba", "scipy", "spikeinterface", "neo", "pylsl", "zmq", "numpy"]
    code = (
        "import sys\n"
        "from neuromod.bridge.cli import app\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert found.stdout.strip() == "[]"


@pytest.mark.compiled_loop
def test_a_daemon_loads_nothing_that_its_session_may_not_need_nor_does_its_warm_up() -> None:
    heavy = ["scipy.signal", "scipy.stats", "spikeinterface", "neo", "matplotlib", "textual"]
    code = (
        "import sys, neuromod.bridge.service\n"
        "from neuromod.bridge.warm import warm_loop\n"
        "warm_loop()\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=280)

    assert found.stdout.strip() == "[]"


COMMANDS_WITH_HELP = [
    ["init"], ["check"], ["doctor"], ["certify"], ["streams"], ["layout"], ["models"],
    ["demo"], ["start"], ["replay"], ["baseline"], ["bench"], ["actuate"], ["calibrate"],
    ["session", "list"], ["session", "show"], ["session", "verify"], ["session", "export"],
    ["export", "mem"], ["export", "verilog"], ["export", "read"], ["adapter", "fpga"], ["fpga-sim"], ["hil"],
    ["subscribe"], ["status"], ["pause"], ["resume"], ["stop"], ["set"], ["learning"], ["checkpoint"], ["restore"],
    ["keys", "init"], ["keys", "new"], ["keys", "list"], ["keys", "revoke"],
    ["key"], ["arm"], ["disarm"], ["halt"], ["decoder"], ["rollback"],
    ["send", "stimuli"], ["send", "modulators"], ["send", "reward"], ["send", "stress"], ["send", "stimulate"],
    ["send", "event"], ["monitor"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS_WITH_HELP, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = run(*command, "--help")

    assert result.exit_code == 0
    assert f"neuromod {' '.join(command)}" in result.output.replace("root ", "neuromod ")


def test_help_lists_every_command_and_the_exit_codes() -> None:
    shown = run("--help").output

    for command in COMMANDS_WITH_HELP:
        assert re.search(rf"\b{command[0]}\b", shown)
    assert "130 interrupted" in shown
    assert "Not a medical device" in shown


def test_every_command_of_the_control_socket_can_be_given() -> None:
    at_hand = {command[0] for command in COMMANDS_WITH_HELP} | {"version", "challenge", "hello"}  # parts of others

    assert set(COMMANDS) <= at_hand


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"^\$ neuromod ([\w-]+)", readme, re.MULTILINE))

    assert named >= {"doctor", "init", "check", "baseline", "start", "subscribe", "replay"}
    assert named <= {command[0] for command in COMMANDS_WITH_HELP}


def test_version_is_printed() -> None:
    assert re.fullmatch(r"neuromod \d+\.\d+.*\n", run("--version").stdout)


# -- usage


@pytest.mark.parametrize(
    "args", [["nonsense"], ["check"], ["subscribe", "--count", "none"], ["demo", "--seconds", "0"], ["bench", "beauty"]]
)
def test_wrong_usage_is_told_on_stderr_with_exit_code_2(args: list[str]) -> None:
    result = run(*args)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_no_error_of_a_user_shows_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[timing]\nstall_s = 1\n")
    for args in (
        ["check", str(tmp_path / "bad.toml")],
        ["check", str(tmp_path / "gone.toml")],
        ["start", str(tmp_path / "bad.toml")],
        ["baseline", str(tmp_path / "bad.toml")],
        ["replay", str(tmp_path / "gone.ns5")],
        ["status", "--address", "nowhere"],
        ["status", "--address", "tcp://127.0.0.1:1", "--timeout", "0.05"],
        ["send", "reward", "1", "--address", "tcp://127.0.0.1:1", "--timeout", "0.05"],
        ["send", "stimuli", "1", "2"],
        ["send", "modulators", "--tempo", "99"],
        ["subscribe", "nonsense"],
        ["subscribe", "--address", "tcp://127.0.0.1:1", "--timeout", "0.05"],
        ["set", "gain"],
        ["learning", "maybe"],
    ):
        result = run(*args)

        assert result.exit_code == 2, (args, result.output)
        assert result.stderr.startswith("neuromod: "), args
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)


# -- init, check


@pytest.mark.parametrize("source", ["lsl", "zmq"])
def test_what_init_writes_passes_check(tmp_path: Path, source: str) -> None:
    file = tmp_path / "s.toml"

    written = run("init", str(file), "--source", source)
    checked = run("check", str(file))

    assert (written.exit_code, checked.exit_code) == (0, 0)
    assert load(file).source.kind == source


def test_init_does_not_replace_a_file_unless_told_to(session: Path) -> None:
    refused = run("init", str(session))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert session.read_text() == 'source = "zmq"\n'

    assert run("init", str(session), "--force").exit_code == 0
    assert "[source]" in session.read_text()


def test_check_prints_the_effective_session_on_stdout_and_the_verdict_on_stderr(session: Path, tmp_path: Path) -> None:
    result = run("check", str(session))
    again = tmp_path / "again.toml"
    again.write_text(result.stdout)

    assert result.exit_code == 0
    assert load(again).effective() == load(session).effective()
    assert "is good" in result.stderr


def test_check_prints_json_for_programs(session: Path) -> None:
    assert json.loads(run("check", str(session), "--json").stdout)["timing"]["stall_ms"] == 50.0


def test_check_names_each_fault(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('source = "zmq"\n[timing]\nstall_s = 0.05\n')

    result = run("check", str(file))

    assert result.exit_code == 2
    assert "line 3: timing.stall_s has the wrong unit: write stall_ms = 50" in result.stderr
    assert result.stdout == ""


def test_layout_is_for_programs_too() -> None:
    body = json.loads(run("layout", "--json").stdout)

    assert body["bytes"] > 0
    assert {"name", "offset", "dtype", "shape"} == set(body["fields"][0])
    assert run("layout").exit_code == 0


def test_models_are_listed_and_each_can_be_looked_up() -> None:
    listed = run("models").stdout
    for model in MODELS:
        assert re.search(rf"^{model.name} ", listed, re.MULTILINE)
        shown = run("models", model.name).stdout
        assert model.reference in shown
        for name in (p.name for p in model.parameters):
            assert re.search(rf"^{name} ", shown, re.MULTILINE)


def test_models_are_for_programs_too() -> None:
    body = json.loads(run("models", "--json").stdout)["models"]
    assert [model["name"] for model in body] == [model.name for model in MODELS]
    assert json.loads(run("models", "lapicque", "--json").stdout) == next(m for m in body if m["name"] == "lapicque")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["hodgkin"], "there is no neuron model 'hodgkin'; there are lif, lapicque"),
        (["lif", "--markdown"], "--markdown prints all models in full"),
    ],
)
def test_models_that_cannot_be_shown_are_exit_code_2(args: list[str], said: str) -> None:
    result = run("models", *args)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr


# -- replay options


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan", "inf"])
def test_a_speed_is_a_positive_multiple_or_max(tmp_path: Path, speed: str) -> None:
    (tmp_path / "a.ns5").touch()

    result = run("replay", str(tmp_path / "a.ns5"), f"--speed={speed}", "--lsl")

    assert result.exit_code == 2
    assert "--speed is a positive multiple" in result.stderr


def test_an_outlet_keeps_no_spikes(tmp_path: Path) -> None:
    (tmp_path / "a.ns5").touch()

    assert run("replay", str(tmp_path / "a.ns5"), "--lsl", "--spikes-out", "x.npz").exit_code == 2


def test_replay_as_lsl_says_on_stdout_when_its_outlet_is_there(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.ones((200, 4), np.float32))
    command = [sys.executable, "-m", "neuromod.bridge.cli", "replay", str(tmp_path / "counts.npy")]
    process = subprocess.Popen(
        [*command, "--bin-ms", "50", "--lsl"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.communicate()

    assert ready["ready"] is True
    assert (ready["n_channels"], ready["sampling_frequency"], ready["speed"]) == (4, 20.0, 1.0)


# -- talking to a daemon


class Daemon(threading.Thread):
    """Answers control requests, and publishes over and over, until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets = {"control": self.context.socket(zmq.ROUTER), "output": self.context.socket(zmq.PUB)}
        self.sockets["ingest"] = self.context.socket(zmq.PULL)
        self.addresses = {}
        for name, socket in self.sockets.items():
            socket.linger = 0
            socket.bind("tcp://127.0.0.1:*")
            self.addresses[name] = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.requests: list[wire.Request] = []
        self.ingested: list[wire.IngestMessage] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        seq = 0
        while not self.stopping.is_set():
            if self.sockets["control"].poll(2):
                envelope, payload = wire.split_envelope(self.sockets["control"].recv_multipart())
                request = wire.unpack_request(payload)
                self.requests.append(request)
                if request.cmd == "restore":
                    reply = wire.Reply(False, error="it is of another layout", reason="refused", id=request.id)
                else:
                    reply = wire.Reply(True, {"state": "streaming", "counters": {"samples": 3}}, id=request.id)
                self.sockets["control"].send_multipart([*envelope, wire.pack_reply(reply)])
            while self.sockets["ingest"].poll(0):
                topic, payload = self.sockets["ingest"].recv_multipart()
                self.ingested.append(wire.unpack_ingest(topic, payload))
            spikes = wire.SpikesMessage(seq, seq, seq, float("nan"), 1.0, np.arange(16) == 2, wire.Flag.LATE)
            self.sockets["output"].send_multipart([b"spikes", wire.pack_spikes(spikes)])
            health = wire.HealthMessage(1.0, "streaming", {"latency_us": {"p50": float("nan")}})
            self.sockets["output"].send_multipart([b"health", wire.pack_health(health)])
            seq += 1
        self.context.destroy(linger=0)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    yield daemon
    daemon.stopping.set()
    daemon.join(WAIT_S)


def test_subscribe_prints_one_line_a_message(daemon: Daemon) -> None:
    result = run("subscribe", "spikes", "-n", "3", "--timeout", "20", "--address", daemon.addresses["output"])

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert "..|............." in lines[0]
    assert "LATE" in lines[0]


def test_subscribe_prints_json_lines_that_any_program_reads(daemon: Daemon) -> None:
    result = run(
        "subscribe", "spikes", "health", "-n", "6", "--json", "--timeout", "20", "--address", daemon.addresses["output"]
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    messages: list[dict[str, Any]] = [json.loads(line, parse_constant=refuse) for line in result.stdout.splitlines()]
    assert {message["topic"] for message in messages} == {"spikes", "health"}
    spikes = next(message for message in messages if message["topic"] == "spikes")
    assert (spikes["channels"], spikes["flags"], spikes["t_sample"]) == ([2], ["LATE"], None)


def test_subscribe_ends_after_some_seconds(daemon: Daemon) -> None:
    assert run("subscribe", "state", "--seconds", "0.1", "--address", daemon.addresses["output"]).exit_code == 0


def test_status_is_readable_and_has_json(daemon: Daemon) -> None:
    shown = run("status", "--address", daemon.addresses["control"])
    body = json.loads(run("status", "--json", "--address", daemon.addresses["control"]).stdout)

    assert shown.exit_code == 0
    assert re.search(r"state\s+streaming", shown.stdout)
    assert body["counters"] == {"samples": 3}


@pytest.mark.parametrize(
    ("args", "cmd", "sent"),
    [
        (["pause"], "pause", {}),
        (["resume"], "resume", {}),
        (["stop"], "stop", {}),
        (["learning", "off"], "learning", {"on": False}),
        (["checkpoint"], "checkpoint", {}),
        (["checkpoint", "/tmp/a.ckpt"], "checkpoint", {"path": "/tmp/a.ckpt"}),
        (["set", "network.input_gain=1.5", "publish.spikes=spiking"], "set",
         {"parameters": {"network.input_gain": 1.5, "publish.spikes": "spiking"}}),
    ],
)  # fmt: skip
def test_commands_reach_the_daemon(daemon: Daemon, args: list[str], cmd: str, sent: dict[str, Any]) -> None:
    assert run(*args, "--address", daemon.addresses["control"]).exit_code == 0
    assert [(request.cmd, request.args) for request in daemon.requests] == [(cmd, sent)]


def test_a_daemon_that_says_no_is_exit_code_1(daemon: Daemon) -> None:
    result = run("restore", "x.ckpt", "--address", daemon.addresses["control"])

    assert result.exit_code == 1
    assert result.stderr == "neuromod: it is of another layout\n"


def test_the_addresses_may_come_from_the_session_file(daemon: Daemon, session: Path) -> None:
    session.write_text(session.read_text() + f'[sockets]\ncontrol = "{daemon.addresses["control"]}"\n')

    assert run("status", "--config", str(session)).exit_code == 0


def test_send_reaches_the_daemon_negative_numbers_too(daemon: Daemon) -> None:
    at = ["--address", daemon.addresses["ingest"]]
    values = ["-1.5", *["0"] * 15]

    codes = [
        run("send", "stimuli", *values, "--repeat", "2", *at).exit_code,
        run("send", "modulators", "--dopamine", "-0.5", *at).exit_code,
        run("send", "reward", "-0.5", *at).exit_code,
        run("send", "stress", "0.5", *at).exit_code,
        run("send", "event", "go", "--value", '{"trial": 4}', *at).exit_code,
    ]

    assert codes == [0] * 5
    # closing a client hands over what it sent, so the messages are on their way: wait for the daemon's thread only
    done = threading.Event()
    for _ in range(int(WAIT_S * 100)):
        if len(daemon.ingested) >= 6:
            break
        done.wait(0.01)
    assert sum(isinstance(message, wire.StimuliInput) for message in daemon.ingested) == 2
    assert wire.RewardInput(-0.5) in daemon.ingested
    assert wire.ModulatorsInput({"dopamine": -0.5}) in daemon.ingested
    assert wire.EventInput("go", None, {"trial": 4}) in daemon.ingested


# -- signals and environment


def attend_to_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_is_quiet_and_exit_code_130(daemon: Daemon) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "neuromod.bridge.cli", "subscribe", "spikes", "--address", daemon.addresses["output"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # a shell has its background jobs ignore interrupts, and children inherit that
        preexec_fn=attend_to_interrupts,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_the_level_of_the_log_comes_from_the_environment() -> None:
    assert run("layout", env={"NEUROMOD_LOG": "debug"}).exit_code == 0
    assert run("layout", env={"NEUROMOD_LOG": "deafening"}).exit_code == 2
