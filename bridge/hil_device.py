"""Devices under test by the name that the command line gives them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga import board
from neuromod.adapters.fpga import wire as serial
from neuromod.adapters.fpga.config import DEVICES
from neuromod.adapters.fpga.device import Answer, Device
from neuromod.adapters.fpga.link import BAUD, Link, Protocol
from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge import wire
from neuromod.bridge.client import Client, Subscription
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError, ConfigError
from neuromod.engine.layout import N_CHANNELS

_DEPTH: dict[Protocol, int] = {"neuromod": 16, "siliconbridge": 1}
"""Ticks under way at once; not every SiliconBridge board takes bytes in while it answers."""

_SIMULATED_DEPTH = 16

_USB_TIMER_MS = 1.0  # as it should be set
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
    restart : callable, optional
        Starts the device afresh, and returns it, open: its faults begin again.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(
        self,
        device: Device,
        *,
        is_peer: bool = False,
        is_simulated: bool = False,
        protocol: Protocol | None = None,
        baud: int | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
        stop: Callable[[], None] = lambda: None,
        restart: Callable[[], Device] | None = None,
    ) -> None:
        self.device, self.is_peer, self.is_simulated = device, is_peer, is_simulated
        self.protocol, self.baud = protocol, baud
        self._facts, self.stop, self._restart = facts, stop, restart
        self.facts: dict[str, Any] = {}

    @property
    def restart(self) -> Callable[[], None] | None:
        """Start the device afresh, open; None where that cannot be done from here."""
        again = self._restart
        if again is None:
            return None

        def restart() -> None:
            self.device.close()
            self.device = again()

        return restart

    def describe(self) -> None:
        """Ask for what is to be said of the device, while it is open."""
        facts = {"name": self.device.name, "has_checksum": self.device.has_checksum} | board_facts(self.device)
        if self.protocol == "neuromod":
            # opening refuses any other
            facts["version_word"] = f"0x{board.LAYOUT_VERSION << 16 | N_CHANNELS << 8 | serial.VERSION:08X}"
        self.facts = facts | self._facts()


def make_device(
    which: str,
    start_state: Callable[[], NDArray[Any]],
    *,
    protocol: Protocol = "neuromod",
    baud: int | None = None,
    faults: Sequence[str] = (),
    seed: int = 0,
    key: Path | None = None,
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
    key : Path, optional
        For a daemon that asks for keys.

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
        return TestDevice(PeerDaemon(ingest, output or _next_port(ingest), key), is_peer=True)
    rate = baud or BAUD[protocol]
    if which != "sim":
        made = DEVICES[protocol](which, baud=rate, depth=_DEPTH[protocol])
        return TestDevice(made, protocol=protocol, baud=rate)
    simulation = _Simulation(protocol, rate, start_state, faults, seed)
    device = simulation.start()
    return TestDevice(
        device,
        is_simulated=True,
        protocol=protocol,
        baud=rate,
        facts=simulation.facts,
        stop=simulation.stop,
        restart=simulation.restart,
    )


class _Simulation:
    """A simulated board in a process of its own, and the adapter to it."""

    def __init__(
        self,
        protocol: Protocol,
        baud: int,
        start_state: Callable[[], NDArray[Any]],
        faults: Sequence[str],
        seed: int,
    ) -> None:
        from neuromod.adapters.fpga.faults import parse_fault

        self._protocol, self._baud, self._asked, self._seed = protocol, baud, list(faults), seed
        self._faults = [parse_fault(text) for text in faults]
        self._state = start_state()
        self._board: Any = None

    def start(self) -> Device:
        from neuromod.adapters.fpga.simulated import SimulatedBoard
        from neuromod.engine.images import to_words

        self._board = SimulatedBoard(
            protocol=self._protocol, words=to_words(self._state), faults=self._faults, seed=self._seed
        ).start()
        return DEVICES[self._protocol](self._board.path, baud=self._baud, depth=_SIMULATED_DEPTH)

    def restart(self) -> Device:
        self.stop()
        device = self.start()
        device.open()
        return device

    def stop(self) -> None:
        if self._board is not None:
            self._board.stop()

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": f"simulated board ({self._protocol})",
            "simulation": "this version's Verilog, compiled by Verilator",
        }
        if self._asked:
            done = [f"{injection.kind} at tick {injection.tick}" for injection in self._board.injections]
            found |= {"faults_asked_for": self._asked, "faults_injected": len(done), "first_of_them": done[:10]}
        return found


def check_link(device: TestDevice, ticks_hz: float) -> None:
    """Refuse a pace that a real line does not carry.

    Raises
    ------
    ConfigError
        Says what it carries, and what to do.
    """
    if device.protocol is None or device.is_simulated or device.baud is None:
        return
    link = Link(device.protocol, device.baud, depth=_DEPTH[device.protocol], latency_timer_ms=_USB_TIMER_MS)
    if ticks_hz > link.max_ticks_hz:
        least = link.least_baud(ticks_hz)
        faster = f"--baud {least} on both sides, or " if least is not None else ""
        raise ConfigError(
            f"{device.baud} baud carry {link.max_ticks_hz:.0f} ticks/s, and this run has {ticks_hz:.0f}: use {faster}"
            f"--speed {link.max_ticks_hz / ticks_hz:.2g} of what was asked for, or --speed max"
        )


def modelled_wire(device: TestDevice) -> tuple[float | None, str]:
    """Return the time that a tick of a simulated board would spend on a wire, in us, and words that say so."""
    if device.protocol is None or device.baud is None or not device.is_simulated:
        return None, ""
    link = Link(device.protocol, device.baud, is_modulated=False)
    wire_us = 1e6 * link.wire_s
    words = (
        f"Modelled, not measured: {link.bytes_out} bytes out and {link.bytes_back} back take {wire_us:,.0f} us at "
        f"{device.baud:,} baud, and the latency timer of a USB adapter, set to {_USB_TIMER_MS:g} ms, up to "
        f"{1e3 * _USB_TIMER_MS:,.0f} us; the simulated line takes none of both."
    )
    return wire_us + 1e3 * _USB_TIMER_MS, words


def board_facts(device: Any) -> dict[str, Any]:
    """Return what a board that is open tells of itself."""
    names = ("clock_hz", "latency_timer_ms")
    return {name: getattr(device, name) for name in names if getattr(device, name, None) is not None}


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
    key : Path, optional
        With the roles observe and feed, where it asks for keys.
    """

    has_checksum = True

    def __init__(self, ingest: str, output: str, key: Path | None = None) -> None:
        self._ingest, self._output, self._key = ingest, output, key
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
        self._client = Client(ingest=self._ingest, output=self._output, key=self._key)
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
