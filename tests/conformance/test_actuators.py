"""The actuators that we bring, each held to the contract, its device at the other end of a real connection."""

import contextlib
import itertools
import os
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pylsl
import pytest
import zmq
from pylsl.util import LostError

from conformance.actuators import ActuatorConformance, Rig
from neuromod.adapters.actuator_config import (
    LslOutletsConfig,
    MemoryConfig,
    SerialLineConfig,
    StimulatorConfig,
    ZmqPeerConfig,
)
from neuromod.adapters.actuators.base import Actuator, Command, Spikes, Stimulation
from neuromod.adapters.actuators.device import LineDevice
from neuromod.adapters.actuators.lsl_outlets import LslOutlets
from neuromod.adapters.actuators.memory import MemoryActuator
from neuromod.adapters.actuators.serial_line import SerialLine
from neuromod.adapters.actuators.stimulator import VirtualStimulator
from neuromod.adapters.actuators.zmq_peer import ZmqPeer

_names = itertools.count()


def done_by(device: MemoryActuator) -> int:
    return len(device.commands) + len(device.spikes) + len(device.pulses)


class MemoryRig(Rig):
    """A clock that is turned by hand: nothing here takes time."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._now = 1000.0
        self.device = MemoryActuator(MemoryConfig(n_outputs=2), clock=self.now)
        super().__init__(self.device)

    def now(self) -> float:
        return self._now

    def wait(self) -> None:
        self._now += 0.002

    def acts(self) -> int:
        self.device.advance()
        return done_by(self.device)

    def is_safe(self) -> bool:
        return not self.device.values.any() and not self.device.is_stimulating

    def vanish(self) -> None:
        self.device.is_broken = True

    def unreachable(self) -> Actuator:
        absent = MemoryActuator()
        absent.is_broken = True
        return absent


class TestMemoryActuator(ActuatorConformance):
    @pytest.fixture(params=["command", "spikes", "stimulation"])
    def rig(self, request: pytest.FixtureRequest) -> Rig:
        return MemoryRig(request.param)


class StimulatorRig(Rig):
    topic = "stimulation"

    def __init__(self, folder: Path) -> None:
        self._pulses = folder / "pulses.jsonl"
        self.device = VirtualStimulator(StimulatorConfig(pulses=self._pulses))
        super().__init__(self.device)

    def acts(self) -> int:
        return self._pulses.read_bytes().count(b"\n") if self._pulses.exists() else 0

    def is_safe(self) -> bool:
        return not self.device.is_stimulating

    def vanish(self) -> None:
        full = os.open("/dev/full", os.O_WRONLY)  # a disk with no room
        os.dup2(full, self.device._fd)
        os.close(full)

    def unreachable(self) -> Actuator:
        return VirtualStimulator(StimulatorConfig(pulses=Path("/no/such/folder/pulses")))


class TestVirtualStimulator(ActuatorConformance):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        rig = StimulatorRig(tmp_path)
        yield rig
        rig.actuator.close()


class Firmware:
    """A device on one end of a pty, in a thread of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.fd, slave = os.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave  # held open, so that the line outlasts a port that is closed and opened again
        self.device = LineDevice(self.fd, inner)
        self.lock = threading.Lock()
        self.is_stalled = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.0005):
            if not self.is_stalled:
                with self.lock, contextlib.suppress(OSError):
                    self.device.step(0.002)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.device.close()
        for fd in (self.fd, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)


class SerialRig(Rig):
    can_stall = True

    def __init__(self, topic: str, inner: Any) -> None:
        self.topic = topic
        self.firmware = Firmware(inner)
        # silent for longer than a busy machine may take away from the thread
        config = SerialLineConfig(
            port=self.firmware.port, wants=(topic,), lost_ms=1000, heartbeat_ms=20, lease_ms=900
        )  # fmt: skip
        super().__init__(SerialLine(config))

    def acts(self) -> int:
        with self.firmware.lock:
            inner = self.firmware.inner
            return inner.n_pulses if isinstance(inner, VirtualStimulator) else done_by(inner)

    def is_safe(self) -> bool:
        with self.firmware.lock:
            inner = self.firmware.inner
            values_safe = isinstance(inner, VirtualStimulator) or not inner.values.any()
            return values_safe and not inner.is_stimulating

    def vanish(self) -> None:
        self.firmware.stop()

    def stall(self) -> None:
        self.firmware.is_stalled = True

    def unreachable(self) -> Actuator:
        return SerialLine(SerialLineConfig(port="/dev/ttyNobody"))


class TestSerialLine(ActuatorConformance):
    @pytest.fixture(params=["command", "spikes", "stimulation"])
    def rig(self, request: pytest.FixtureRequest) -> Iterator[Rig]:
        rig = SerialRig(request.param, MemoryActuator(MemoryConfig(n_outputs=2)))
        yield rig
        rig.actuator.close()
        rig.firmware.stop()


class TestStimulatorBehindASerialLine(ActuatorConformance):
    @pytest.fixture
    def rig(self) -> Iterator[Rig]:
        rig = SerialRig("stimulation", VirtualStimulator())
        yield rig
        rig.actuator.close()
        rig.firmware.stop()


class Peer:
    """A program at the other end of the sockets, in a thread; it drives an actuator in memory."""

    def __init__(self, config: ZmqPeerConfig, inner: MemoryActuator) -> None:
        self._config = config
        self.inner = inner
        inner.open()
        self.lock = threading.Lock()
        self.is_stalled = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        if self._config.pattern == "push":
            messages = context.socket(zmq.PULL)
        else:
            messages = context.socket(zmq.SUB)
            messages.subscribe(b"")
        answers = context.socket(zmq.PUSH)
        for socket, address in ((messages, self._config.messages), (answers, self._config.answers)):
            socket.set_hwm(10)
            socket.linger = 0
            socket.reconnect_ivl = 5
            if self._config.bind:
                socket.connect(address)
            else:
                socket.bind(address)
        heard = time.monotonic()
        lease_s = 1.0
        while not self._stopped.wait(0.0005):
            if self.is_stalled:
                continue
            with self.lock:
                if messages.poll(2):
                    topic, payload = messages.recv_multipart()
                    heard = time.monotonic()
                    body = msgpack.unpackb(payload)
                    lease_s = 1e-3 * body.get("lease_ms", 1e3 * lease_s)
                    for answer in self._act(topic, body):
                        with contextlib.suppress(zmq.Again):
                            answers.send_multipart(answer, zmq.DONTWAIT)
                if time.monotonic() - heard > lease_s:
                    self.inner.disarm()
        context.destroy(0)

    def _act(self, topic: bytes, body: dict[str, Any]) -> list[list[bytes]]:
        if topic == b"ping":
            return [[b"pong", msgpack.packb({"n": body["n"], "armed": self.inner.is_armed})]]
        if topic == b"arm":
            self.inner.arm()
        elif topic == b"disarm":
            self.inner.disarm()
        elif topic == b"command":
            self.inner.send(Command(**(body | {"values": np.frombuffer(body["values"], "<f4")})))
        else:
            self.inner.send((Spikes if topic == b"spikes" else Stimulation)(**body))
        return []

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.inner.close()


class ZmqRig(Rig):
    can_stall = True

    def __init__(self, topic: str, folder: Path, **config: Any) -> None:
        self.topic = topic
        config |= {"messages": f"ipc://{folder}/m", "answers": f"ipc://{folder}/a", "lost_ms": 1000, "lease_ms": 900}
        self.config = ZmqPeerConfig(ping_ms=10, **config)
        self.peer = Peer(self.config, MemoryActuator(MemoryConfig(n_outputs=2)))
        super().__init__(ZmqPeer(self.config))

    def acts(self) -> int:
        with self.peer.lock:
            return done_by(self.peer.inner)

    def is_safe(self) -> bool:
        with self.peer.lock:
            return not self.peer.inner.values.any() and not self.peer.inner.is_stimulating

    def vanish(self) -> None:
        self.peer.stop()

    def stall(self) -> None:
        self.peer.is_stalled = True

    def unreachable(self) -> Actuator:
        nobody = {name: getattr(self.config, name) + "-nobody" for name in ("messages", "answers")}
        return ZmqPeer(ZmqPeerConfig(open_timeout_s=0.1, **nobody))


class TestZmqPeer(ActuatorConformance):
    @pytest.fixture(params=["command", "spikes", "stimulation"])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
        rig = ZmqRig(request.param, tmp_path)
        yield rig
        rig.actuator.close()
        rig.peer.stop()


class TestZmqPeerThatBindsAndSubscribes(ActuatorConformance):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        rig = ZmqRig("command", tmp_path, pattern="pub", bind=False)
        yield rig
        rig.actuator.close()
        rig.peer.stop()


class LslRig(Rig):
    """Looks through inlets that are connected once the outlets exist: LSL keeps nothing for those who come later."""

    has_a_device = False

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.inlets: list[Any] = []
        self.samples: list[list[float]] = []
        self.is_gone = True
        source_id = f"rig-{os.getpid()}-{next(_names)}"
        wanted = {"spikes": "events"} if topic == "spikes" else {"spikes": "none", "outputs": ("x", "y")}
        config = LslOutletsConfig(name=source_id, source_id=source_id, **wanted)
        self.stream = f"{source_id}:{'spikes' if topic == 'spikes' else 'commands'}"
        rig = self

        class Watched(LslOutlets):
            def open(self) -> None:
                if not self._is_open:
                    super().open()
                    rig.connect()

        super().__init__(Watched(config))

    def connect(self) -> None:
        (found,) = pylsl.resolve_byprop("source_id", self.stream, 1, 10.0)
        self.inlets = [pylsl.StreamInlet(found, recover=False)]
        self.inlets[0].open_stream(10.0)
        self.is_gone = False

    def look(self) -> None:
        with contextlib.suppress(LostError):
            while self.inlets:
                sample, _ = self.inlets[0].pull_sample(0.0)
                if sample is None:
                    return
                self.samples.append(sample)
        self.is_gone = True  # a stream that has ended says nothing to anybody

    def acts(self) -> int:
        self.look()
        return len(self.samples) if self.topic == "spikes" else sum(map(any, self.samples))

    def is_safe(self) -> bool:
        self.look()
        return self.topic == "spikes" or self.is_gone or not self.samples or not any(self.samples[-1])


class TestLslOutlets(ActuatorConformance):
    @pytest.fixture(params=["command", "spikes"])
    def rig(self, request: pytest.FixtureRequest) -> Iterator[Rig]:
        rig = LslRig(request.param)
        yield rig
        rig.inlets.clear()
        rig.actuator.close()
