"""The one contract for what goes out: what an actuator is, and how the actuator process finds one.

An actuator is a device, stream or program that acts on spikes, on commands of the decoder, or on stimulation trains
that the safety gate issued. It runs in a process of its own (`neuromod actuate`), so that nothing in it can hold up the
loop.

A new actuator is a class with the members of `Actuator`, named in the entry-point group `neuromod.actuators`;
`neuromod.adapters.actuators.memory` is the example to copy and `tests/conformance/actuators.py` the suite to subclass.

All times are seconds, as float64, on `pylsl.local_clock` of the daemon's host, where actuator processes run as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters import plugins
from neuromod.engine.errors import AdapterError

ENTRY_POINT_GROUP = "neuromod.actuators"

SEND_BOUND_S = 0.02
"""No `send`, `arm` or `disarm` takes longer than this, whatever the device does."""

POLL_INTERVAL_S = 0.01
"""An actuator is polled at least this often: that is when it keeps its device alive and notices that it is gone."""

DO_NOTHING = 1 | 128 | 512 | 1024
"""Flags FILLER, PAUSED, INHIBITED and BOARD of PROTOCOL.md: whoever acts on spikes or commands does nothing then."""

Topic = Literal["command", "spikes", "stimulation"]
StimulationKind = Literal["lease", "train", "stop"]


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """What the decoder made of one tick.

    Parameters
    ----------
    seq : int
        Number of this message among the commands since the daemon started; one that goes back is another daemon.
    tick : int
        Number of the network step.
    t_sample, t_tick : float
        Time of the newest sample, and of the end of the tick.
    values : ndarray of float32, shape (n,)
        Outputs of the decoder, in the units of its configuration. Zero where `flags` has INHIBITED (512).
    events : int
        Bits of the events of the decoder.
    decoder : int
        Version of the decoder.
    flags : int
        Bits of the tick, as in PROTOCOL.md; INHIBITED says to do nothing.
    expires : float
        From then on it must not be acted on.
    """

    seq: int
    tick: int
    t_sample: float
    t_tick: float
    values: NDArray[np.float32] = field(repr=False)
    events: int
    decoder: int
    flags: int
    expires: float


@dataclass(frozen=True, slots=True)
class Stimulation:
    """What the safety gate says to a stimulator.

    Parameters
    ----------
    seq : int
        Number of this message among those of the topic since the daemon started.
    tick : int
        Number of the network step.
    t : float
        Time of the gate.
    kind : {"lease", "train", "stop"}
        The gate lives; deliver a train; stop everything at once.
    id : int
        Number of the decision.
    electrode : int
        Where, from 0.
    amplitude_ua, amplitude2_ua : float
        Current of the first and of the second phase, in microampere, signed; cathodic is negative.
    phase_us, interphase_us, phase2_us : float
        Length of the first phase, of the pause after it, and of the second phase, in microseconds.
    pulses : int
        How many.
    period_us : float
        From the start of one pulse to the start of the next, in microseconds.
    expires : float
        A train starts only before it, and every message but "stop" prolongs the lease to it: past the lease everything
        stops, in the middle of a train too, until a new train comes.
    reason : int
        Why, for a stop; the words are in the ledger of the gate.
    """

    seq: int
    tick: int
    t: float
    kind: StimulationKind
    id: int
    electrode: int
    amplitude_ua: float
    phase_us: float
    interphase_us: float
    amplitude2_ua: float
    phase2_us: float
    pulses: int
    period_us: float
    expires: float
    reason: int


@dataclass(frozen=True, slots=True)
class Spikes:
    """Spikes of one tick.

    Parameters
    ----------
    seq, tick : int
        As in `Command`, counted by themselves.
    t_sample, t_tick : float
        Time of the newest sample, and of the end of the tick.
    channels : int
        Bit i is set where channel i fired.
    flags : int
        Bits of the tick, as in PROTOCOL.md.
    """

    seq: int
    tick: int
    t_sample: float
    t_tick: float
    channels: int
    flags: int


ActuatorMessage = Command | Stimulation | Spikes


@dataclass(frozen=True, slots=True)
class Reward:
    """The outcome of what was done: any finite amount, negative for a punishment; `t` is when, where that is known."""

    amount: float
    t: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at the device; `value` is plain data that msgpack can carry."""

    name: str
    t: float | None = None
    value: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Stimuli:
    """What the device senses, as stimuli of the network: float32, shape (n_channels,)."""

    values: NDArray[np.float32]
    t: float | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The device has taken the message of this topic and number; `t` is when that was heard."""

    topic: Topic
    seq: int
    t: float


Answer = Reward | Event | Stimuli | Acknowledgement


class Actuator(Protocol):
    """Something that acts. Built from its configuration without touching anything outside; `open` does that.

    One thread uses an actuator. Until `arm`, and after `disarm`, `close` and every error, its output is in its safe
    state: no movement, no current, no event.
    """

    @property
    def name(self) -> str:
        """Which one, in words for a person; the same before and after `open`."""

    @property
    def wants(self) -> frozenset[Topic]:
        """The kinds of message that it acts on; others are dropped by `send`."""

    @property
    def is_armed(self) -> bool:
        """True from `arm` to the next `disarm`, `close` or error."""

    def open(self) -> None:
        """Reach the device, and put its output into the safe state. A second call while open changes nothing.

        Raises
        ------
        AdapterError
            Where there is no such device, or it does not answer, or it cannot be used; says what to do.
        """

    def arm(self) -> None:
        """Let messages act from now on. A second call while armed changes nothing.

        Raises
        ------
        AdapterError
            If it is not open, or the device does not take it; it is disarmed then.
        """

    def send(self, message: ActuatorMessage) -> bool:
        """Hand one message to the device, within `SEND_BOUND_S`.

        Returns
        -------
        bool
            False where the message was dropped: not armed, not wanted, expired or not to be acted on.

        Raises
        ------
        AdapterError
            If it is not open, or the device did not take the message in time, or is gone; it is disarmed then.
        """

    def poll(self) -> Sequence[Answer]:
        """Return what came back since the last call, at once, and do what keeps the device alive.

        Called at least every `POLL_INTERVAL_S`.

        Raises
        ------
        AdapterLostError
            If the device is gone; it is disarmed then. `close` and `open` begin anew.
        AdapterError
            If it is not open.
        """

    def disarm(self) -> None:
        """Drive the output to its safe state. Safe at any time, twice, and before `open`; it never raises.

        A device that cannot be reached any more is left to its own lease, and the next `poll` says that it is gone.
        """

    def close(self) -> None:
        """Disarm, then let go of everything held. Safe to call twice; it never raises."""


def create_actuator(config: Any) -> Actuator:
    """Build the actuator that a configuration describes, without opening it.

    Parameters
    ----------
    config : ActuatorConfig
        Anything with a `kind` that names an entry point of the group `neuromod.actuators`; the object behind it is
        called with the configuration.

    Raises
    ------
    ConfigError
        If no installed actuator has this kind, or its module cannot be imported.
    """
    built: Actuator = plugins.create(ENTRY_POINT_GROUP, "actuator", config)
    return built


def topic_of(message: ActuatorMessage) -> Topic:
    """Return the topic that a message belongs to."""
    match message:
        case Command():
            return "command"
        case Stimulation():
            return "stimulation"
        case Spikes():
            return "spikes"


def says_nothing(message: ActuatorMessage, now: float) -> bool:
    """Return whether a message is not to be acted on: too old, or flagged as DO_NOTHING. A stop is never too old."""
    match message:
        case Command():
            return bool(message.flags & DO_NOTHING) or not now < message.expires
        case Stimulation():
            return message.kind != "stop" and not now < message.expires
        case Spikes():
            return bool(message.flags & DO_NOTHING)


def nanoseconds(t: float) -> int:
    """Return an instant in seconds as whole nanoseconds."""
    return round(t * 1e9)


def not_open(name: str) -> AdapterError:
    """Return the error of an actuator that is used before `open`."""
    return AdapterError(f"{name} is not open; call open() first")
