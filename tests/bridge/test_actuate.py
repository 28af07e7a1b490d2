"""The process between daemon and actuator: what is fresh acts, and everything else disarms.

A publisher of this test stands in for the daemon, over the daemon's own messages and sockets.
"""

import json
import os
import select
import signal
import textwrap
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pylsl
import pytest
import zmq
from harness import Process, process, wait_until

from conformance.actuators import make, train
from neuromod.adapters.actuators.base import Acknowledgement, Answer, Command, Event, Reward, Stimulation, Stimuli
from neuromod.adapters.actuators.memory import MemoryActuator
from neuromod.bridge import cli_actuate, wire
from neuromod.bridge.actuate import ActuateConfig, Actuation
from neuromod.bridge.config_errors import checked
from neuromod.engine.errors import AdapterError, AdapterLostError, ConfigError

LEASE_S = 0.1
# How much younger than it is a device on a line may take what came: what its wait may last, and overrun.
ARRIVAL_S = 0.007


class Daemon:
    """The output and ingest sockets of a daemon."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.XPUB)
        self._in = self._context.socket(zmq.PULL)
        self.output, self.ingest = f"ipc://{folder}/o", f"ipc://{folder}/i"
        self._out.bind(self.output)
        self._in.bind(self.ingest)
        self.heard: list[wire.IngestMessage] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(0)

    def wait_for_subscriptions(self, n: int) -> None:
        for _ in range(n):
            assert self._out.poll(20_000)
            assert self._out.recv()[0] == 1

    def say(self, message: Any) -> None:
        if isinstance(message, Stimulation):
            self._out.send_multipart([wire.TOPIC_STIMULATION, wire.pack_stimulation(message)])
        elif isinstance(message, Command):
            self._out.send_multipart([wire.TOPIC_COMMAND, wire.pack_command(message)])
        else:
            self._out.send_multipart([wire.TOPIC_SPIKES, wire.pack_spikes(message)])

    def raw(self, topic: bytes, payload: bytes) -> None:
        self._out.send_multipart([topic, payload])

    def listen(self) -> list[wire.IngestMessage]:
        while self._in.poll(0):
            topic, payload = self._in.recv_multipart()
            self.heard.append(wire.unpack_ingest(topic, payload))
        return self.heard

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.listen() if isinstance(message, kind)]


def now() -> float:
    return float(pylsl.local_clock())


def command(seq: int, lease_s: float = 30.0, **changes: Any) -> Command:
    made = make("command", seq, now(), lease_s, 8)
    assert isinstance(made, Command)
    fields = {name: getattr(made, name) for name in made.__slots__} | changes  # slots of a dataclass are its fields
    return Command(**fields)


def spikes(seq: int, age_s: float = 0.0) -> wire.SpikesMessage:
    t = now() - age_s
    return wire.SpikesMessage(seq, seq, seq, t, t, np.arange(16) % 2 == 0, wire.Flag(0))


class Running:
    """An `Actuation` of a memory device, in a thread; where no test asks for it, silence and age change nothing."""

    def __init__(self, daemon: Daemon, actuator: Any = None, **config: Any) -> None:
        self.device = actuator or MemoryActuator()
        settings = {"actuator": {"kind": "memory"}, "output": daemon.output, "ingest": daemon.ingest}
        settings |= {"silence_ms": 60_000, "stale_ms": 10_000} | config
        self.actuation = Actuation(ActuateConfig.model_validate(settings), self.device)
        self._daemon = daemon
        self._stop = threading.Event()
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.actuation.run(self._stop.is_set, self.ready.set)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.ready.wait(20)
        self._daemon.wait_for_subscriptions(len(self.device.wants))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert not self.device.is_armed

    def wait_for(self, what: str, n: int = 1) -> None:
        wait_until(lambda: self.actuation.counts.get(what, 0) >= n, f"{n} {what}: {self.actuation.counts}")

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


def test_fresh_commands_spikes_and_trains_reach_the_actuator_as_they_were(daemon: Daemon) -> None:
    with Running(daemon) as running:
        sent = command(1)
        daemon.say(sent)
        daemon.say(spikes(1))
        daemon.say(train(1, now(), now() + 0.9, pulses=1))
        running.wait_for("acted", 3)
        wait_until(lambda: running.device.pulses, "a pulse")
        (got,) = running.device.commands
        np.testing.assert_array_equal(got.values, sent.values)
        assert (got.seq, got.tick, got.events, got.expires) == (sent.seq, sent.tick, sent.events, sent.expires)
        assert running.device.spikes[0].channels == 0x5555
        assert running.device.pulses[0].electrode == 3


def test_it_is_not_armed_before_the_first_message_and_disarmed_by_silence(daemon: Daemon) -> None:
    with Running(daemon, silence_ms=50) as running:
        assert not running.device.is_armed
        daemon.say(command(1))
        running.wait_for("acted")
        wait_until(lambda: not running.device.is_armed, "disarmed")
        daemon.say(command(2))
        running.wait_for("acted", 2)


def test_what_is_stale_or_from_another_clock_is_dropped(daemon: Daemon) -> None:
    with Running(daemon, stale_ms=100) as running:
        daemon.say(command(1, lease_s=-0.001))
        daemon.say(command(2, t_tick=now() + 60, expires=now() + 61))
        daemon.say(command(3, expires=float("nan")))
        daemon.say(spikes(1, age_s=0.2))
        daemon.say(spikes(2, age_s=-60.0))
        daemon.say(train(1, now() - 1.0, now() - 0.5))
        running.wait_for("stale", 6)
        assert not running.device.is_armed
        assert not running.device.commands + running.device.spikes + running.device.pulses


def test_an_inhibited_command_does_not_arm_and_a_filler_does_not_either(daemon: Daemon) -> None:
    with Running(daemon) as running:
        daemon.say(command(1, flags=int(wire.Flag.INHIBITED)))
        daemon.say(wire.SpikesMessage(1, 0, 0, now(), now(), np.zeros(16, bool), wire.Flag.FILLER))
        running.wait_for("dropped", 2)
        assert not running.device.is_armed


def test_a_stop_of_the_gate_disarms_and_the_next_train_arms(daemon: Daemon) -> None:
    with Running(daemon) as running:
        daemon.say(train(1, now(), now() + 0.9))
        wait_until(lambda: running.device.pulses, "a pulse")
        daemon.say(train(2, now(), now() - 1.0, kind="stop", reason=4))
        wait_until(lambda: not running.device.is_armed, "disarmed")
        assert not running.device.is_stimulating
        daemon.say(train(3, now(), now() + 0.9, electrode=4))
        wait_until(lambda: running.device.pulses[-1].electrode == 4, "the next train")


def test_another_daemon_disarms_first_and_is_heard_from_its_second_message_on(daemon: Daemon) -> None:
    with Running(daemon) as running:
        daemon.say(command(100))
        running.wait_for("acted")
        daemon.say(command(1))
        running.wait_for("restarts")
        wait_until(lambda: not running.device.is_armed, "disarmed")
        daemon.say(command(2))
        running.wait_for("acted", 2)
        assert [got.seq for got in running.device.commands] == [100, 2]


def test_what_is_malformed_is_counted_and_another_version_ends_it_disarmed(daemon: Daemon) -> None:
    with Running(daemon) as running:
        daemon.say(command(1))
        daemon.raw(wire.TOPIC_COMMAND, b"\xc1")
        running.wait_for("malformed")
        body = bytearray(wire.pack_command(command(2)))
        assert body[3] == wire.PROTOCOL_VERSION
        body[3] += 1
        daemon.raw(wire.TOPIC_COMMAND, bytes(body))
        wait_until(lambda: running.has_ended, "the end")
        assert not running.device.is_armed
        assert isinstance(running.error, wire.MessageError)


def test_answers_reach_ingest_and_acknowledgements_are_counted(daemon: Daemon) -> None:
    answers: list[Answer] = [
        Reward(0.5, 3.25),
        Event("target", 4.5, {"n": 1}),
        Stimuli(np.arange(16, dtype=np.float32)),
        Acknowledgement("command", 1, 0.0),
        Reward(float("nan")),
    ]
    with Running(daemon) as running:
        for answer in answers:
            running.device.answer(answer)
        running.wait_for("acknowledged")
        running.wait_for("bad_answers")
        wait_until(lambda: daemon.of(wire.StimuliInput), "stimuli")
        assert daemon.of(wire.RewardInput) == [wire.RewardInput(0.5, 3.25)]
        assert daemon.of(wire.EventInput) == [wire.EventInput("target", 4.5, {"n": 1})]
        np.testing.assert_array_equal(daemon.of(wire.StimuliInput)[0].values, np.arange(16))


def test_it_tells_that_it_lives_under_its_name_and_only_while_it_does(daemon: Daemon) -> None:
    with Running(daemon, name="arm", alive_hz=50, reconnect_s=0.05) as running:
        wait_until(lambda: len(daemon.of(wire.AliveInput)) >= 3, "alive")
        assert {message.name for message in daemon.of(wire.AliveInput)} == {"arm"}
        daemon.say(command(1))
        running.wait_for("acted")
        running.device.is_broken = True
        wait_until(lambda: not running.device.is_armed, "disarmed")
        heard = [(now(), len(daemon.of(wire.AliveInput)))]

        def is_silent() -> bool:
            if (n := len(daemon.of(wire.AliveInput))) > heard[-1][1]:
                heard.append((now(), n))
            return now() > heard[-1][0] + 0.2

        # ten times as long as from one to the next; some may have been underway
        wait_until(is_silent, "the end of all signs of life")
        running.device.is_broken = False
        running.wait_for("reconnects")
        n = len(daemon.of(wire.AliveInput))
        wait_until(lambda: len(daemon.of(wire.AliveInput)) > n, "alive again")
        assert not running.device.is_armed
        daemon.say(command(2))
        running.wait_for("acted", 2)


def test_a_daemon_that_went_and_came_back_is_heard_and_told_again(daemon: Daemon, tmp_path: Path) -> None:
    with Running(daemon, name="arm", silence_ms=50, alive_hz=50) as running:
        daemon.say(command(100))
        running.wait_for("acted")
        daemon.close()
        wait_until(lambda: not running.device.is_armed, "disarmed by silence")
        with Daemon(tmp_path) as second:
            second.wait_for_subscriptions(len(running.device.wants))
            wait_until(lambda: second.of(wire.AliveInput), "alive")
            second.say(command(1))
            running.wait_for("restarts")
            second.say(command(2))
            running.wait_for("acted", 2)
        assert [got.seq for got in running.device.commands] == [100, 2]


def test_without_reconnecting_a_lost_device_ends_it(daemon: Daemon) -> None:
    with Running(daemon, reconnect_s=0) as running:
        daemon.say(command(1))
        running.wait_for("acted")
        running.device.is_broken = True
        wait_until(lambda: running.has_ended, "the end")
        assert isinstance(running.error, AdapterLostError)


class Faulty(MemoryActuator):
    """A device in memory whose driver has a fault of its own."""

    is_faulty = False

    def poll(self) -> Any:
        if self.is_faulty:
            raise ZeroDivisionError
        return super().poll()


def test_a_fault_in_a_driver_ends_it_disarmed(daemon: Daemon) -> None:
    device = Faulty()
    with Running(daemon, device) as running:
        daemon.say(command(1))
        running.wait_for("acted")
        assert device.is_armed
        device.is_faulty = True
        wait_until(lambda: running.has_ended, "the end")
        assert isinstance(running.error, ZeroDivisionError)
        assert not device.is_armed
        with pytest.raises(AdapterError, match="not open"):
            device.send(command(2))


def test_one_that_cannot_be_opened_never_tells_that_it_lives(daemon: Daemon) -> None:
    device = MemoryActuator()
    device.is_broken = True
    settings = {"actuator": {"kind": "memory"}, "output": daemon.output, "ingest": daemon.ingest}
    with pytest.raises(AdapterError, match="broken"):
        Actuation(ActuateConfig.model_validate(settings), device).run(lambda: False)
    assert not daemon.listen()


# -- processes, killed

GATE = textwrap.dedent("""
    import sys, time
    import pylsl, zmq
    from neuromod.bridge import wire
    from conformance.actuators import train
    output, lease_s = sys.argv[1], float(sys.argv[2])
    socket = zmq.Context().socket(zmq.XPUB)
    socket.bind(output)
    socket.recv()
    for seq in range(1, 10_000_000):
        now = pylsl.local_clock()
        # a train in the middle of one is a lease; where a lease came too late, it is a train
        kind = "train" if seq % 8 == 1 else "lease"
        said = train(seq, now, now + lease_s, kind=kind, period_us=2000.0, pulses=10_000)
        socket.send_multipart([wire.TOPIC_STIMULATION, wire.pack_stimulation(said)])
        time.sleep(lease_s / 4)
""")


def run_gate(output: str) -> Process:
    return Process(
        "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{GATE}", output, str(LEASE_S)
    )


ACTUATE = "import typer; from neuromod.bridge.cli_actuate import actuate; typer.run(actuate)"


def newest_train(path: Path) -> list[float]:
    """Return when the pulses of the newest train started, in seconds; the last line may be half written."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    pulses = [json.loads(line) for line in lines]
    return [1e-9 * pulse["start_ns"] for pulse in pulses if pulse["train"] == pulses[-1]["train"]]


def wait_for_a_train(path: Path) -> None:
    """Wait until a train has outlived its first lease twice over, and goes on."""

    def goes_on() -> bool:
        starts = newest_train(path)
        return bool(starts) and starts[-1] - starts[0] > 2 * LEASE_S and now() - starts[-1] < 0.02

    wait_until(goes_on, "a train that goes on", 60.0)


def assert_stopped_within_the_lease(path: Path, before: float, after: float, line: "Line | None" = None) -> None:
    """Who spoke before one instant and no more after another has the train end a lease later: a pulse starts before.

    A device on a line counts from when the last words came to it.
    """
    # long enough for fifty more, were the train to go on
    wait_until(lambda: now() > after + LEASE_S + 0.1, "some time")
    if line is not None:
        after = max(after, line.passed + ARRIVAL_S)
    starts = newest_train(path)
    assert starts[-1] > before - 0.05, "the train was not underway"
    assert starts[-1] <= after + LEASE_S
    assert len(starts) < 10_000


@pytest.mark.parametrize("attempt", range(3))
def test_killing_the_gate_in_the_middle_of_a_train_ends_it_within_the_lease(tmp_path: Path, attempt: int) -> None:
    output, pulses = f"ipc://{tmp_path}/o", tmp_path / "pulses.jsonl"
    arguments = ("stimulator", "-o", f"pulses={pulses}", "--output", output, "--ingest", f"ipc://{tmp_path}/i")
    with process("-c", ACTUATE, *arguments) as child:
        child.wait_for_line("Ctrl-C stops")
        gate = run_gate(output)
        try:
            wait_for_a_train(pulses)
            before, after = gate.halt()
        finally:
            gate.popen.kill()
            gate.end()
        assert_stopped_within_the_lease(pulses, before, after)
        code, _ = child.end(signal.SIGTERM)
        assert code == 0


def test_killing_the_driver_of_a_serial_stimulator_ends_the_train_within_the_lease(tmp_path: Path) -> None:
    output, pulses = f"ipc://{tmp_path}/o", tmp_path / "pulses.jsonl"
    with (
        Line() as line,
        process("-m", "neuromod.adapters.actuators.device", line.ends[0], "--pulses", str(pulses)) as device,
    ):
        device.wait_for_line("ready", "out")
        options = ("-o", f"port={line.ends[1]}", "-o", 'wants=["stimulation"]', "--output", output)
        with process("-c", ACTUATE, "serial", *options, "--ingest", f"ipc://{tmp_path}/i") as driver:
            driver.wait_for_line("Ctrl-C stops")
            gate = run_gate(output)
            try:
                wait_for_a_train(pulses)
                before, after = driver.halt()
            finally:
                gate.popen.kill()
                gate.end()
            assert_stopped_within_the_lease(pulses, before, after, line)


class Line:
    """Two ptys, joined as a serial cable joins two machines."""

    def __init__(self) -> None:
        pairs = [os.openpty() for _ in range(2)]
        self._masters = [master for master, _ in pairs]
        self._slaves = [slave for _, slave in pairs]
        for slave in self._slaves:
            tty.setraw(slave)
        self.ends = [os.ttyname(slave) for slave in self._slaves]
        self.passed = 0.0  # when the last bytes came to the first end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for fd in (*self._masters, *self._slaves):
            os.close(fd)

    def _run(self) -> None:
        a, b = self._masters
        while not self._stop.is_set():
            for fd in select.select([a, b], [], [], 0.02)[0]:
                os.write(b if fd == a else a, os.read(fd, 4096))
                if fd == b:
                    self.passed = now()


def test_a_killed_daemon_disarms_an_actuator_that_has_no_lease_of_its_own(daemon: Daemon) -> None:
    with Running(daemon, silence_ms=80) as running:
        daemon.say(command(1, lease_s=30.0))
        running.wait_for("acted")
        assert running.device.commands[0].values.any()
        wait_until(lambda: not running.device.values.any(), "outputs at rest")


# -- the command


def test_the_command_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    cli_actuate.actuate(list_=True, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} >= {"lsl", "memory", "serial", "stimulator", "zmq"}
    cli_actuate.actuate(list_=True)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == [row["kind"] for row in rows]
    assert all(row["about"] and row["about"] in line for row, line in zip(rows, shown, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "say what to drive"),
        ({"kind": "nonsense"}, "no actuator of kind"),
        ({"kind": "serial"}, "port is missing"),
        ({"kind": "memory", "option": ["n_outputs"]}, "KEY=VALUE"),
        ({"kind": "memory", "option": ["n_outputs=0"]}, "greater than or equal to 1"),
        ({"kind": "memory", "output": "tcp://10.0.0.1:5556"}, "away from loopback"),
        ({"config": Path("/no/such.toml")}, "cannot be read"),
        ({"kind": "serial", "option": ["port=/dev/ttyNobody"]}, "/dev/ttyNobody cannot be opened"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, AdapterError), match=sentence):
        cli_actuate.actuate(**arguments)


def test_a_file_says_it_all_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "arm.toml"
    path.write_text('name = "arm"\nsilence_ms = 40\n[actuator]\nkind = "memory"\nn_outputs = 3\n')
    raw, text, where = cli_actuate._read(path)
    config = checked(ActuateConfig, raw, text, where)
    assert (config.name, config.silence_ms, config.actuator.kind) == ("arm", 40, "memory")
    path.write_text("silence_ms = 0\n[actuator]\nkind = 'memory'\n")
    with pytest.raises(ConfigError, match="line 1: silence_ms"):
        cli_actuate.actuate(config=path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_with_0(tmp_path: Path, number: int) -> None:
    with process(
        "-c", ACTUATE, "memory", "--output", f"ipc://{tmp_path}/o", "--ingest", f"ipc://{tmp_path}/i"
    ) as child:
        child.wait_for_line("Ctrl-C stops")
        code, _ = child.end(number)
    assert code == 0
