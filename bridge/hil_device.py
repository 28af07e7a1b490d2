"""Devices under test by the name that the command line gives them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.device import Answer, Device
from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge import wire
from neuromod.bridge.client import Client, Subscription
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError, ConfigError

ProtocolName = Literal["neuromod", "siliconbridge"]

BAUD: dict[ProtocolName, int] = {"neuromod": 3_000_000, "siliconbridge": 115_200}
_PEERS = ("tcp://", "ipc://")
_BITS = 1 << np.arange(16)
_READY_S = 10.0


class TestDevice:
    """A device, and what a report says of it.

    Parameters
    ----------
    device : Device
        The device itself.
    is_peer : bool
        A daemon, which runs the floating-point network.
    is_simulated : bool
        It runs on this machine: its line takes no time.
    protocol, baud
        Of its line.
    facts : callable, optional
        Returns what else is to be said of it: version words, clock, ...
    stop : callable, optional
        Ends what was started for it.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(
        self,
        device: Device,
        *,
        is_peer: bool = False,
        is_simulated: bool = False,
        protocol: ProtocolName | None = None,
        baud: int | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.is_peer, self.is_simulated = device, is_peer, is_simulated
        self.protocol, self.baud = protocol, baud
        self._facts, self.stop = facts, stop
        self.facts: dict[str, Any] = {}

    def describe(self) -> None:
        """Ask for what is to be said of the device, while it is open."""
        self.facts = {"name": self.device.name, "has_checksum": self.device.has_checksum} | self._facts()


def make_device(
    which: str,
    start_state: Callable[[], NDArray[Any]],
    *,
    protocol: ProtocolName = "neuromod",
    baud: int | None = None,
    faults: Sequence[str] = (),
    seed: int = 0,
) -> TestDevice:
    """Make the device that a name stands for; a simulated board is started, nothing else is touched.

    Parameters
    ----------
    which : str
        `twin`, `sim`, a serial port, or the ingest address of a daemon, and after a comma its output's.
    start_state : callable
        Returns the record of `FIXED_BLOCK` that a simulated board comes up with.
    protocol : {"neuromod", "siliconbridge"}
        What a board speaks.
    baud : int, optional
        Of its line; 3,000,000, or 115,200 of SiliconBridge.
    faults : sequence of str
        What is to go wrong in a simulated board.
    seed : int
        Of the faults.

    Raises
    ------
    ConfigError
        If there is no such device, or these options do not go with it.
    AdapterError
        If a simulated board does not start.
    """
    if faults and which != "sim":
        raise ConfigError(f"--fault goes with --device sim: {which} cannot be told to fail")
    if which == "twin":
        return TestDevice(TwinDevice(), is_simulated=True)
    if which.startswith(_PEERS):
        ingest, _, output = which.partition(",")
        return TestDevice(PeerDaemon(ingest, output or _next_port(ingest)), is_peer=True)
    rate = baud or BAUD[protocol]
    if which != "sim":
        device = _board(which, protocol, rate)
        return TestDevice(device, protocol=protocol, baud=rate, facts=lambda: board_facts(device))
    from neuromod.adapters.fpga.faults import parse_fault
    from neuromod.adapters.fpga.simulated import SimulatedBoard
    from neuromod.engine.images import to_words

    parsed = [parse_fault(text) for text in faults]
    board = SimulatedBoard(protocol=protocol, words=to_words(start_state()), faults=parsed, seed=seed).start()
    try:
        device = _board(board.path, protocol, rate)
    except BaseException:
        board.stop()
        raise

    def facts() -> dict[str, Any]:
        done = [f"{injection.kind} at tick {injection.tick}" for injection in board.injections[:20]]
        return board_facts(device) | {"faults_asked_for": list(faults), "faults_injected": done}

    return TestDevice(device, is_simulated=True, protocol=protocol, baud=rate, facts=facts, stop=board.stop)


def board_facts(device: Any) -> dict[str, Any]:
    """Return what a board that is open tells of itself."""
    names = ("clock_hz", "latency_timer_ms", "version_word")
    return {name: getattr(device, name) for name in names if getattr(device, name, None) is not None}


def _board(port: str, protocol: ProtocolName, baud: int) -> Device:
    if protocol == "siliconbridge":
        from neuromod.adapters.fpga.siliconbridge import SiliconBridge

        return SiliconBridge(port, baud=baud)
    from neuromod.adapters.fpga.board import Board

    return Board(port, baud=baud, depth=16)


def _next_port(ingest: str) -> str:
    head, colon, port = ingest.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"--device {ingest}: say where its output is, too: INGEST,OUTPUT")
    return f"{head}:{int(port) + 1}"


class PeerDaemon:
    """A second daemon as a device: stimuli go to its ingest, spikes come from its output. It is a `Device` but for
    the stimuli, which are float32.

    Parameters
    ----------
    ingest, output : str
        Its addresses. Its source has to be `zmq`, so that a message is a tick.
    """

    has_checksum = True

    def __init__(self, ingest: str, output: str) -> None:
        self._ingest, self._output = ingest, output
        self._client: Client | None = None
        self._spikes: Subscription | None = None
        self._sent_ns: dict[int, int] = {}
        self._base: int | None = None
        self._malformed = 0

    @property
    def name(self) -> str:
        """Which one."""
        return f"daemon at {self._ingest}"

    @property
    def counts(self) -> dict[str, int]:
        """Messages that were lost on the way, and malformed ones."""
        lost = sum(self._spikes.lost.values()) if self._spikes is not None else 0
        return {"messages_lost": lost, "malformed": self._malformed}

    def open(self) -> None:
        """Subscribe, and wait until the daemon is heard.

        Raises
        ------
        AdapterTimeoutError
            If it is not.
        """
        self.close()
        self._client = Client(ingest=self._ingest, output=self._output)
        self._spikes = self._client.subscribe("spikes", "state", "health")
        try:
            while not isinstance(self._spikes.receive(_READY_S), wire.StateMessage | wire.HealthMessage):
                pass
        except TimeoutError:
            self.close()
            raise AdapterTimeoutError(
                f"no daemon is heard at {self._output} within {_READY_S:g} s: start one whose session says "
                'source = {kind = "zmq", ...}, and name its ingest and output'
            ) from None

    def load(self, state: NDArray[Any]) -> None:
        """Refuse: a daemon's network cannot be written.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(f"{self.name}: a daemon's network cannot be written; start it afresh for each run")

    def read_state(self) -> NDArray[Any]:
        """Refuse: a daemon's network is no fixed-point one.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(f"{self.name}: a daemon's network is compared by its spikes")

    def submit(self, tick: int, stimuli: NDArray[Any], modulation: NDArray[np.int64] | None = None) -> None:
        """Send the stimuli of one tick.

        Raises
        ------
        AdapterLostError
            If no daemon takes them.
        """
        assert self._client is not None
        self._sent_ns[tick] = time.perf_counter_ns()
        try:
            self._client.send_stimuli(stimuli)
        except TimeoutError as error:
            raise AdapterLostError(str(error)) from None

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return the spikes that have come; wait for the first ones at most so long.

        Raises
        ------
        AdapterError
            If the daemon had run ticks before this run's first one.
        """
        assert self._spikes is not None
        answers: list[Answer] = []
        until = time.monotonic() + timeout_s
        while True:
            try:
                message = self._spikes.receive(0.0 if answers else max(0.0, until - time.monotonic()))
            except TimeoutError:
                break
            if not isinstance(message, wire.SpikesMessage) or message.flags & (wire.Flag.FILLER | wire.Flag.PAUSED):
                continue
            if self._base is None:
                self._base = message.tick
                if message.tick:
                    raise AdapterError(
                        f"{self.name} has run {message.tick} ticks already: start it afresh for each run"
                    )
            tick = message.tick - self._base
            sent = self._sent_ns.pop(tick, None)
            spent = time.perf_counter_ns() - sent if sent is not None else 0
            answers.append(Answer(tick, int(message.spikes @ _BITS), round_trip_ns=spent))
        self._malformed = self._spikes.malformed
        return answers

    def close(self) -> None:
        """Let go of the sockets."""
        if self._client is not None:
            self._client.close()
        self._client = self._spikes = None
