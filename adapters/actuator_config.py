"""What may be said about an actuator: one table of TOML, told apart by `kind`."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, Discriminator, Field, Tag

from neuromod.adapters import plugins
from neuromod.adapters.actuators.base import ENTRY_POINT_GROUP, Topic
from neuromod.adapters.actuators.lease import Limits


class _Config(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen, unknown keys refused."""


def check_loopback(address: str) -> str:
    """Return an address of this host; raise ValueError, in a sentence, for any other."""
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return address
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not (port == "*" or port.isdigit()):
        raise ValueError(f"{address!r} is no address; one looks like tcp://127.0.0.1:5560 or ipc:///run/rig/arm")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"{address} is away from loopback, where nothing is encrypted without a key: forward the port through ssh"
        )
    return f"tcp://{host}:{port}"


Loopback = Annotated[str, AfterValidator(check_loopback)]
Ms = Annotated[float, Field(gt=0.0, le=60_000.0)]


class LimitsConfig(_Config, frozen=True, extra="forbid"):
    """What the device allows, whatever the gate says; see `Limits`."""

    n_electrodes: Annotated[int, Field(ge=1, le=65_535)] = 16
    max_amplitude_ua: Annotated[float, Field(gt=0.0, le=20_000.0)] = 200.0
    max_phase_us: Annotated[float, Field(gt=0.0, le=10_000.0)] = 2000.0
    max_pulses: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    max_lease_s: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0

    def limits(self) -> Limits:
        """Return them as the lease takes them."""
        return Limits(**self.model_dump())


class MemoryConfig(_Config, frozen=True, extra="forbid"):
    """A device in memory, which records what it would do.

    Attributes
    ----------
    n_outputs : int
        Values of a command.
    limits : LimitsConfig
        Of its stimulator.
    """

    kind: Literal["memory"] = "memory"
    n_outputs: Annotated[int, Field(ge=1, le=2040)] = 8
    limits: LimitsConfig = LimitsConfig()


class ZmqPeerConfig(_Config, frozen=True, extra="forbid"):
    """A program of yours, reached over a pair of ZeroMQ sockets of its own.

    Attributes
    ----------
    messages, answers : str
        Where messages go and answers come from.
    bind : bool
        We bind, and the peer connects; or the other way round.
    pattern : {"push", "pub"}
        PUSH waits for the one peer and says when it does not take a message; PUB reaches several, and loses.
    wants : tuple of {"command", "spikes", "stimulation"}
        What to forward.
    ping_ms, lost_ms : float
        How often the peer is asked whether it lives, and after how long without an answer it counts as lost.
    lease_ms : float
        Told with every ping: a peer that hears nothing for so long goes to its safe state by itself.
    open_timeout_s : float
        How long to wait for the peer at first.
    """

    kind: Literal["zmq"] = "zmq"
    messages: Loopback = "tcp://127.0.0.1:5560"
    answers: Loopback = "tcp://127.0.0.1:5561"
    bind: bool = True
    pattern: Literal["push", "pub"] = "push"
    wants: tuple[Topic, ...] = ("command", "spikes", "stimulation")
    ping_ms: Ms = 50.0
    lost_ms: Ms = 500.0
    lease_ms: Ms = 250.0
    open_timeout_s: Annotated[float, Field(gt=0.0, le=3600.0)] = 5.0

    @pydantic.model_validator(mode="after")
    def _pings_are_in_time(self) -> "ZmqPeerConfig":
        _check_times(self.ping_ms, self.lost_ms, self.lease_ms)
        return self


class LslOutletsConfig(_Config, frozen=True, extra="forbid"):
    """Lab Streaming Layer outlets, for LabRecorder and any LSL tool.

    Attributes
    ----------
    name : str
        What the names of the streams begin with.
    source_id : str
        What their source_id begins with; the same one lets a receiver find the streams again after a restart.
    spikes : {"events", "rates", "both", "none"}
        One sample per spike, of irregular rate; rates at a regular rate; or both.
    n_channels : int
        Channels of the network.
    event_format : {"int", "string"}
        A spike as the number of its channel (from 0), or as its label on a stream of markers.
    rates_hz : float
        Samples per second of the rates.
    rate_tau_ms : float, optional
        Time constant of an exponential filter over the bins; without it the rate is the count of each bin over its
        length.
    outputs : tuple of str
        Labels of the decoder's outputs, one channel each; empty makes no stream of commands.
    output_units : str
        Of all outputs.
    commands_hz : float
        Nominal rate of the commands: that of the ticks that make them; 0 states an irregular one.
    stamps : {"t_sample", "t_tick"}
        Samples are stamped with the time of the newest sample, or with the end of the tick. Without a time of the
        sample, the tick's is taken.
    """

    kind: Literal["lsl"] = "lsl"
    name: Annotated[str, Field(min_length=1, max_length=128)] = "neuromod"
    source_id: Annotated[str, Field(min_length=1, max_length=128)] = "neuromod"
    spikes: Literal["events", "rates", "both", "none"] = "both"
    n_channels: Annotated[int, Field(ge=1, le=2040)] = 16
    event_format: Literal["int", "string"] = "int"
    rates_hz: Annotated[float, Field(ge=0.1, le=1000.0)] = 50.0
    rate_tau_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] | None = 100.0
    outputs: tuple[str, ...] = ()
    output_units: str = "normalized"
    commands_hz: Annotated[float, Field(ge=0.0, le=100_000.0)] = 0.0
    stamps: Literal["t_sample", "t_tick"] = "t_sample"

    @pydantic.model_validator(mode="after")
    def _has_something_to_say(self) -> "LslOutletsConfig":
        if self.spikes == "none" and not self.outputs:
            raise ValueError('spikes = "none" and no outputs leave no stream: choose spikes, or name the outputs')
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError("the labels of outputs must differ from each other")
        return self


class SerialLineConfig(_Config, frozen=True, extra="forbid"):
    """A device behind a serial line that speaks the frames of `neuromod.adapters.actuators.frames`.

    Attributes
    ----------
    port : str
        Device file, or an URL of pyserial.
    baudrate : int
        Bits per second.
    wants : tuple of {"command", "spikes", "stimulation"}
        What to send; ("stimulation",) for a stimulator.
    heartbeat_ms, lost_ms : float
        How often the device is asked whether it lives, and after how long without an answer it counts as lost.
    lease_ms : float
        Told with every heartbeat: a device that hears nothing for so long goes to its safe state by itself.
    open_timeout_s : float
        How long to wait for the device at first; some boards start anew when their port is opened.
    """

    kind: Literal["serial"] = "serial"
    port: Annotated[str, Field(min_length=1)]
    baudrate: Annotated[int, Field(ge=1200, le=12_000_000)] = 115_200
    wants: tuple[Topic, ...] = ("command",)
    heartbeat_ms: Ms = 50.0
    lost_ms: Ms = 500.0
    lease_ms: Ms = 250.0
    open_timeout_s: Annotated[float, Field(gt=0.0, le=3600.0)] = 5.0

    @pydantic.model_validator(mode="after")
    def _heartbeats_are_in_time(self) -> "SerialLineConfig":
        _check_times(self.heartbeat_ms, self.lost_ms, self.lease_ms)
        return self


class StimulatorConfig(_Config, frozen=True, extra="forbid"):
    """A virtual stimulator: pulses on a timer of its own, written to a file instead of a body.

    Attributes
    ----------
    pulses : Path, optional
        File to append one line of JSON per pulse to.
    limits : LimitsConfig
        What it allows.
    """

    kind: Literal["stimulator"] = "stimulator"
    pulses: Path | None = None
    limits: LimitsConfig = LimitsConfig()


class PluginConfig(plugins.PluginConfig, frozen=True, extra="allow"):
    """An actuator that another package brings through the entry-point group `neuromod.actuators`.

    All keys but `kind` belong to that package, which validates `options` by itself.
    """

    group = ENTRY_POINT_GROUP
    what = "actuator"
    built_in = ("lsl", "memory", "serial", "stimulator", "zmq")


def _check_times(ask_ms: float, lost_ms: float, lease_ms: float) -> None:
    if 2.0 * ask_ms > min(lost_ms, lease_ms):
        raise ValueError(
            f"the device is asked every {ask_ms:g} ms, which must be at most half of lost_ms ({lost_ms:g}) "
            f"and of lease_ms ({lease_ms:g}): one late answer would count as a loss"
        )


ActuatorConfig = Annotated[
    Annotated[LslOutletsConfig, Tag("lsl")]
    | Annotated[MemoryConfig, Tag("memory")]
    | Annotated[SerialLineConfig, Tag("serial")]
    | Annotated[StimulatorConfig, Tag("stimulator")]
    | Annotated[ZmqPeerConfig, Tag("zmq")]
    | Annotated[PluginConfig, Tag("plugin")],
    Discriminator(PluginConfig.tag),
]
"""An actuator, told apart by `kind`."""
