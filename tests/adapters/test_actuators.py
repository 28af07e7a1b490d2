"""What each actuator does beside the contract: frames, streams, kinds from elsewhere."""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import pytest
from harness import wait_until
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from conformance.actuators import make, train
from conformance.test_actuators import Firmware
from neuromod.adapters import plugins
from neuromod.adapters.actuator_config import (
    ActuatorConfig,
    LslOutletsConfig,
    MemoryConfig,
    SerialLineConfig,
    StimulatorConfig,
    ZmqPeerConfig,
)
from neuromod.adapters.actuators import frames
from neuromod.adapters.actuators.base import (
    ENTRY_POINT_GROUP,
    Acknowledgement,
    Command,
    Event,
    Reward,
    Spikes,
    Stimuli,
    create_actuator,
)
from neuromod.adapters.actuators.device import LineDevice
from neuromod.adapters.actuators.frames import Kind, Parser
from neuromod.adapters.actuators.lsl_outlets import LslOutlets, RateBins
from neuromod.adapters.actuators.memory import MemoryActuator
from neuromod.adapters.actuators.serial_line import SerialLine
from neuromod.adapters.actuators.stimulator import VirtualStimulator
from neuromod.engine.errors import AdapterError, AdapterLostError, ConfigError


def heard_from(actuator: Any, n: int) -> list[Any]:
    """Return the first answers of an actuator."""
    answers: list[Any] = []

    def enough() -> bool:
        answers.extend(actuator.poll())
        return len(answers) >= n

    wait_until(enough, f"{n} answers")
    return answers


ACTUATOR: TypeAdapter[Any] = TypeAdapter(ActuatorConfig)


# -- frames


@given(st.binary(max_size=250), st.integers(0, 255), st.binary(max_size=40), st.integers(1, 60))
def test_a_frame_is_found_in_any_noise_and_in_pieces_of_any_length(
    payload: bytes, number: int, noise: bytes, piece: int
) -> None:
    parser = Parser()
    # AA 55 in the noise may open a frame that swallows the next one: two in a row, and the end of what it claims
    data = noise.replace(b"\xaa", b"") + frames.pack(Kind.EVENT, number, payload)
    found = [frame for i in range(0, len(data), piece) for frame in parser.feed(data[i : i + piece])]
    assert [(frame.kind, frame.number, frame.payload) for frame in found] == [(Kind.EVENT, number, payload)]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_damaged_byte_makes_another_frame(at: int, change: int) -> None:
    data = bytearray(frames.pack_message(train(7, 10.0, 10.1), 3, 10.0))
    data[at % len(data)] ^= change
    assert Parser().feed(bytes(data)) == []  # one byte is a burst of 8 bits: CRC-16 sees every burst up to 16


def test_a_train_arrives_with_what_remains_of_its_lease_on_another_clock() -> None:
    (frame,) = Parser().feed(frames.pack_message(train(7, 10.0, 10.1), 3, 10.04))
    got = frames.unpack_message(frame, 500.0)
    assert got == train(7, 500.0, pytest.approx(500.06, abs=2e-6), tick=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start_within_s", "status"), [(0.05, frames.Status.DROPPED), (9.0, frames.Status.TAKEN)])
def test_a_device_that_was_held_up_begins_no_train_that_it_got_meanwhile_too_late(
    start_within_s: float, status: frames.Status
) -> None:
    host, line = socket.socketpair()
    with host, line:
        config = MemoryConfig.model_validate({"limits": {"max_lease_s": 10.0}})
        device = LineDevice(line.fileno(), MemoryActuator(config))
        device.step(0.0)
        now = pylsl.local_clock()
        host.sendall(frames.pack(Kind.ARM, 1) + frames.pack_message(train(7, now, now + start_within_s), 2, now))
        wait_until(lambda: pylsl.local_clock() > now + 0.1, "held up for longer than the train may wait")
        device.step(0.0)
        _, answer = (frame for frame in Parser().feed(host.recv(4096)) if frame.kind is Kind.ACK)
        assert frames.Status(answer.payload[2]) is status
        device.close()


def test_what_has_run_out_has_nothing_left_whatever_its_number() -> None:
    for expires in (9.0, -np.inf, np.nan):
        (frame,) = Parser().feed(frames.pack_message(train(7, 10.0, expires), 3, 10.0))
        got = frames.unpack_message(frame, 500.0)
        assert got is not None
        assert got.expires == 500.0  # type: ignore[union-attr]


def test_commands_and_spikes_come_through_frames_as_they_were() -> None:
    command, spikes = make("command", 5, 10.0, 0.5, 3), Spikes(6, 6, 10.0, 10.0, 0b1000_0000_0000_0001, 0)
    first, second = Parser().feed(frames.pack_message(command, 0, 10.0) + frames.pack_message(spikes, 1, 10.0))
    got = frames.unpack_message(first, 10.0)
    assert isinstance(got, Command)
    np.testing.assert_array_equal(got.values, np.ones(3, np.float32))
    assert (got.seq, got.tick, got.events) == (5, 5, 1)
    assert frames.unpack_message(second, 10.0) == spikes


def test_every_answer_comes_through_its_frame() -> None:
    for answer in (Reward(0.5, 1.0), Event("lever", 1.0), Event("touch", 1.0, {"where": [1, 2]})):
        data = frames.pack_answer(answer, 0)
        assert data is not None
        (frame,) = Parser().feed(data)
        assert frames.unpack_answer(frame, 1.0) == answer
    data = frames.pack_answer(Stimuli(np.arange(16, dtype=np.float32)), 0)
    assert data is not None
    (frame,) = Parser().feed(data)
    got = frames.unpack_answer(frame, 1.0)
    assert isinstance(got, Stimuli)
    np.testing.assert_array_equal(got.values, np.arange(16))


# -- a serial line


@contextlib.contextmanager
def line(**config: Any) -> Any:
    device = MemoryActuator(MemoryConfig(n_outputs=2))
    firmware = Firmware(device)
    settings = {"port": firmware.port, "wants": ("command", "stimulation"), "lost_ms": 1000, "heartbeat_ms": 20}
    actuator = SerialLine(SerialLineConfig(**(settings | {"lease_ms": 900} | config)))
    try:
        yield actuator, firmware, device
    finally:
        actuator.close()
        firmware.stop()


def test_answers_of_a_device_come_back_over_the_line_and_each_message_is_acknowledged() -> None:
    with line() as (actuator, firmware, device):
        actuator.open()
        actuator.arm()
        actuator.send(make("command", 41, pylsl.local_clock(), 5.0))
        with firmware.lock:
            device.answer(Reward(0.25))
        answers = heard_from(actuator, 2)
        assert {type(answer) for answer in answers} == {Acknowledgement, Reward}
        assert [(a.topic, a.seq) for a in answers if isinstance(a, Acknowledgement)] == [("command", 41)]
        assert [a.amount for a in answers if isinstance(a, Reward)] == [0.25]


def test_noise_on_the_line_is_passed_over() -> None:
    with line() as (actuator, firmware, device):
        actuator.open()
        actuator.arm()
        os.write(firmware.fd, b"\xaa\x55\x03garbage\xaa\xaa\x55")
        actuator.send(make("command", 1, pylsl.local_clock(), 5.0))
        heard_from(actuator, 1)
        assert device.commands


def test_a_device_whose_host_falls_silent_goes_to_rest_and_says_so_when_the_host_is_back() -> None:
    with line(lease_ms=500, lost_ms=5000) as (actuator, firmware, device):
        actuator.open()
        actuator.arm()
        actuator.send(make("command", 1, pylsl.local_clock(), 30.0))
        wait_until(lambda: device.commands, "the command")
        # the host does not poll: no heartbeat
        wait_until(lambda: not device.is_armed, "the device's own lease")
        with firmware.lock:
            assert not device.values.any()
        wait_until(lambda: actuator.poll() is not None and not actuator.is_armed, "the host knows it")
        actuator.arm()
        actuator.send(make("command", 2, pylsl.local_clock(), 30.0))
        wait_until(lambda: actuator.poll() is not None and len(device.commands) == 2, "it acts again")


def test_a_line_that_was_lost_is_found_again_under_its_name(tmp_path: Path) -> None:
    port = tmp_path / "ttyArm"
    with line() as (_, first, _):
        port.symlink_to(first.port)
        actuator = SerialLine(SerialLineConfig(port=str(port), lost_ms=1000, lease_ms=900, heartbeat_ms=20))
        actuator.open()
        first.stop()
        with pytest.raises(AdapterLostError):
            wait_until(lambda: actuator.poll() and False, "the loss")
        actuator.close()
    with line() as (_, second, device):
        port.unlink()
        port.symlink_to(second.port)
        actuator.open()
        actuator.arm()
        assert actuator.send(make("command", 1, pylsl.local_clock(), 5.0))
        wait_until(lambda: actuator.poll() is not None and device.commands, "it acts again")
        actuator.close()


def test_a_port_on_which_nothing_answers_times_out_with_a_hint() -> None:
    master, slave = os.openpty()
    actuator = SerialLine(SerialLineConfig(port=os.ttyname(slave), open_timeout_s=0.1))
    with pytest.raises(TimeoutError, match="115200 baud"):
        actuator.open()
    os.close(master)
    os.close(slave)


# -- the stimulator


def test_pulses_stand_in_the_file_with_their_wave_and_their_time(tmp_path: Path) -> None:
    path = tmp_path / "pulses.jsonl"
    stimulator = VirtualStimulator(StimulatorConfig(pulses=path))
    stimulator.open()
    stimulator.arm()
    begun = pylsl.local_clock()
    assert stimulator.send(train(9, begun, begun + 0.9, pulses=400, period_us=1000.0))
    answers = heard_from(stimulator, 2)
    stimulator.close()
    pulses = [json.loads(text) for text in path.read_text().splitlines()]
    indices = [pulse["index"] for pulse in pulses]
    # a pulse for which there was no time is left out, and no other
    assert indices
    assert indices == sorted(set(indices) & set(range(400)))
    assert {(p["train"], p["electrode"], p["amplitude_ua"], p["phase2_us"]) for p in pulses} == {(9, 3, -50.0, 200.0)}
    starts = np.array([pulse["start_ns"] for pulse in pulses])
    assert starts[0] >= begun * 1e9 - 1
    assert (np.diff(starts) >= 1_000_000).all()
    assert [a.value for a in answers if isinstance(a, Event)] == [
        {"id": 9, "electrode": 3, "pulses": len(pulses), "asked": 400}
    ]


def test_a_refusal_of_the_device_is_told_with_its_reason() -> None:
    stimulator = VirtualStimulator()
    stimulator.open()
    stimulator.arm()
    now = pylsl.local_clock()
    assert not stimulator.send(train(1, now, now + 0.9, amplitude_ua=-1000.0, amplitude2_ua=1000.0))
    assert [answer.value for answer in stimulator.poll() if isinstance(answer, Event)] == [
        {"id": 1, "why": "out_of_range"}
    ]
    stimulator.close()


# -- LSL


def inlet(source_id: str) -> Any:
    (found,) = pylsl.resolve_byprop("source_id", source_id, 1, 10.0)
    connected = pylsl.StreamInlet(found, recover=False)
    connected.open_stream(10.0)
    return connected


def pulled(connected: Any, n: int) -> list[tuple[list[Any], float]]:
    found = []
    for _ in range(n):
        sample, t = connected.pull_sample(10.0)
        assert sample is not None
        found.append((sample, t))
    return found


def test_other_lsl_programs_see_spikes_rates_and_commands_with_their_stamps_and_labels() -> None:
    config = LslOutletsConfig(
        name="out", source_id="out-1", rates_hz=100, rate_tau_ms=None, outputs=("vx", "vy"), output_units="m/s"
    )
    outlets = LslOutlets(config)
    outlets.open()
    events, rates, commands = (inlet(f"out-1:{what}") for what in ("spikes", "rates", "commands"))
    outlets.arm()
    t0 = pylsl.local_clock()
    for tick in range(21):  # 20 ticks of 1 ms, channel 9 in every second; the last one ends the second bin
        outlets.send(Spikes(tick, tick, t0 + 1e-3 * tick, t0 + 1e-3 * tick + 1e-4, (tick % 2) << 9, 0))
    outlets.send(Command(1, 20, t0 + 0.02, t0 + 0.0201, np.array([0.5, -2], np.float32), 0, 1, 0, t0 + 60))
    spikes = pulled(events, 10)
    assert [sample for sample, _ in spikes] == [[9]] * 10
    np.testing.assert_allclose([t - t0 for _, t in spikes], 1e-3 * np.arange(1, 20, 2), atol=1e-9)
    first, second = pulled(rates, 2)
    assert first[0][9] == second[0][9] == pytest.approx(500.0)  # 5 spikes in 10 ms
    assert sum(first[0]) == first[0][9]
    np.testing.assert_allclose([first[1] - t0, second[1] - t0], [0.01, 0.02], atol=1e-9)
    assert pulled(commands, 1) == [([0.5, -2.0], t0 + 0.02)]
    outlets.disarm()
    assert pulled(commands, 1)[0][0] == [0.0, 0.0]
    described = commands.info(10.0)
    assert described.get_channel_labels() == ["vx", "vy"]
    assert described.get_channel_units() == ["m/s", "m/s"]
    assert described.type() == "Control"
    assert described.desc().child_value("manufacturer") == "neuromod"
    assert rates.info(10.0).nominal_srate() == 100.0
    assert rates.info(10.0).get_channel_units() == ["spikes/s"] * 16
    assert events.info(10.0).nominal_srate() == 0.0
    del events, rates, commands
    outlets.close()


def test_spikes_can_be_markers_stamped_with_the_end_of_the_tick() -> None:
    config = LslOutletsConfig(source_id="out-2", spikes="events", event_format="string", stamps="t_tick")
    outlets = LslOutlets(config)
    outlets.open()
    events = inlet("out-2:spikes")
    outlets.arm()
    outlets.send(Spikes(1, 1, 5.0, 5.5, 0b101, 0))
    assert pulled(events, 2) == [(["ch0"], 5.5), (["ch2"], 5.5)]
    assert events.info(10.0).type() == "Markers"
    del events
    outlets.close()


def test_commands_of_another_length_are_refused_with_what_to_do() -> None:
    outlets = LslOutlets(LslOutletsConfig(source_id="out-3", spikes="none", outputs=("x",)))
    outlets.open()
    outlets.arm()
    with pytest.raises(AdapterError, match="name in outputs"):
        outlets.send(make("command", 1, pylsl.local_clock(), 1.0, 2))
    assert not outlets.is_armed
    outlets.close()


def test_filtered_rates_approach_the_true_rate_as_a_low_pass_does() -> None:
    bins = RateBins(2, 100.0, 50.0)
    found = [rates[1] for i in range(201) for _, rates in bins.add(0.001 * i, 0b10)]
    n = np.arange(1, len(found) + 1)
    # 1000 spikes a second from the first tick on; float32 at the end, and a bin edge may take a tick from the next bin
    np.testing.assert_allclose(found, 1000.0 * (1 - np.exp(-n * 0.2)), rtol=0.11)
    assert found[-1] == pytest.approx(1000.0 * (1 - np.exp(-n[-1] * 0.2)), rel=0.03)


def test_a_pause_gives_empty_bins_and_a_long_one_a_new_grid() -> None:
    bins = RateBins(1, 10.0, None)
    bins.add(0.0, 1)
    paused = bins.add(0.55, 1)
    assert [float(rates[0]) for _, rates in paused] == [10.0, 0.0, 0.0, 0.0, 0.0]
    assert bins.add(7.77, 1) == []
    ((end, rates),) = bins.add(7.875, 0)
    assert end == pytest.approx(7.87)
    assert rates[0] == 10.0
    bins.add(7.8, 1)
    assert bins.late == 1


# -- kinds


def test_every_kind_of_ours_is_found_through_its_entry_point() -> None:
    examples = {
        "lsl": {}, "memory": {}, "stimulator": {}, "zmq": {}, "serial": {"port": "/dev/ttyUSB0"},
    }  # fmt: skip
    assert set(examples) <= set(plugins.installed(ENTRY_POINT_GROUP))
    for kind, options in examples.items():
        assert create_actuator(ACTUATOR.validate_python({"kind": kind} | options)).name


def test_a_kind_of_an_installed_package_is_found_and_gets_its_own_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party_arm.py").write_text(
        "from neuromod.adapters.actuators.memory import MemoryActuator\n"
        "class Arm(MemoryActuator):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.joints = config.options['joints']\n"
    )
    about = tmp_path / "third_party_arm-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-arm\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[neuromod.actuators]\narm = third_party_arm:Arm\n")
    with pytest.raises(ValidationError, match="install the package"):
        ACTUATOR.validate_python({"kind": "arm", "joints": 7})
    monkeypatch.syspath_prepend(tmp_path)
    config = ACTUATOR.validate_python({"kind": "arm", "joints": 7})
    actuator: Any = create_actuator(config)
    assert actuator.joints == 7
    actuator.open()
    actuator.close()
    sys.modules.pop("third_party_arm")
    (tmp_path / "third_party_arm.py").unlink()
    with pytest.raises(ConfigError, match="cannot be imported"):
        create_actuator(config)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "zmq", "messages": "tcp://192.168.0.5:5560"},
        {"kind": "zmq", "messages": "udp://127.0.0.1:5560"},
        {"kind": "zmq", "ping_ms": 200.0, "lost_ms": 300.0},
        {"kind": "serial", "port": "/dev/ttyUSB0", "heartbeat_ms": 200.0},
        {"kind": "lsl", "spikes": "none"},
        {"kind": "lsl", "outputs": ["x", "x"]},
        {"kind": "stimulator", "limits": {"max_lease_s": 0}},
        {"kind": "memory", "outputs": 2},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ACTUATOR.validate_python(options)


def test_localhost_is_written_as_its_number() -> None:
    assert ZmqPeerConfig(messages="tcp://localhost:5560").messages == "tcp://127.0.0.1:5560"
