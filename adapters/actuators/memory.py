"""An actuator in memory: the reference of the contract, and the example to copy.

It has everything that a real device should have: outputs that return to zero when the last command is too old, a
stimulator that lives by the lease of the gate, and answers that wait to be fetched.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pylsl
from numpy.typing import NDArray

from neuromod.adapters.actuator_config import MemoryConfig
from neuromod.adapters.actuators.base import (
    Acknowledgement,
    ActuatorMessage,
    Answer,
    Command,
    Spikes,
    Stimulation,
    Topic,
    nanoseconds,
    not_open,
    says_nothing,
    topic_of,
)
from neuromod.adapters.actuators.lease import ACTED, Lease, Pulse, refused, stimulated
from neuromod.engine.errors import AdapterError, AdapterLostError


class MemoryActuator:
    """A device that records what it would do.

    Parameters
    ----------
    config : MemoryConfig, optional
        Its size and limits.
    clock : callable
        Returns the time in seconds; a test hands in one that it turns by hand.

    Attributes
    ----------
    commands : list of Command
        Those that moved the outputs.
    spikes : list of Spikes
        Those that acted.
    pulses : list of Pulse
        Every pulse that was started, at the instant at which a stimulator's own timer would have.
    is_broken : bool
        Set it to have the device vanish.
    """

    def __init__(self, config: MemoryConfig | None = None, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._config = config or MemoryConfig()
        self._clock = clock
        self._lease = Lease(self._config.limits.limits())
        self._is_open = False
        self._is_armed = False
        self._values = np.zeros(self._config.n_outputs, np.float32)
        self._values_until = 0.0
        self._answers: list[Answer] = []
        self.commands: list[Command] = []
        self.spikes: list[Spikes] = []
        self.pulses: list[Pulse] = []
        self.is_broken = False

    @property
    def name(self) -> str:
        """What it is."""
        return "actuator in memory"

    @property
    def wants(self) -> frozenset[Topic]:
        """Everything."""
        return frozenset(("command", "spikes", "stimulation"))

    @property
    def is_armed(self) -> bool:
        """True from `arm` to `disarm`, `close` or an error."""
        return self._is_armed

    @property
    def values(self) -> NDArray[np.float32]:
        """What the outputs are now, shape (n_outputs,); zero is their safe state."""
        self.advance()
        return self._values.copy()

    @property
    def is_stimulating(self) -> bool:
        """True while a train has pulses to come."""
        self.advance()
        return self._lease.is_running

    def open(self) -> None:
        """Begin with the outputs at zero."""
        if self.is_broken:
            raise AdapterError(f"{self.name} is broken; mend it by is_broken = False")
        self._is_open = True

    def arm(self) -> None:
        """Let messages act."""
        self._check()
        self._is_armed = True

    def send(self, message: ActuatorMessage) -> bool:
        """Act on a message, unless it is too late for it."""
        self._check()
        now = self._clock()
        self.advance(now)
        if not self._is_armed:
            return False
        match message:
            case Stimulation():
                heard = self._lease.hear(message, nanoseconds(now))
                self.advance(now)
                if heard not in ACTED:
                    self._answers.append(refused(message, heard, now))
                    return False
            case Command():
                if says_nothing(message, now):
                    self._rest()
                    return False
                if message.values.shape != self._values.shape:
                    self.disarm()
                    raise AdapterError(
                        f"{self.name} has {len(self._values)} outputs, the command has {len(message.values)} values; "
                        "set n_outputs to what the decoder gives"
                    )
                self._values[:] = message.values
                self._values_until = message.expires
                self.commands.append(message)
            case Spikes():
                if says_nothing(message, now):
                    return False
                self.spikes.append(message)
        self._answers.append(Acknowledgement(topic_of(message), message.seq, now))
        return True

    def poll(self) -> Sequence[Answer]:
        """Return the answers, and let time pass."""
        self._check()
        self.advance()
        answers, self._answers = self._answers, []
        return answers

    def disarm(self) -> None:
        """Outputs to zero, trains to an end."""
        self._is_armed = False
        self.advance()
        self._rest()
        self._lease.stop(nanoseconds(self._clock()))
        self._report()

    def close(self) -> None:
        """Disarm."""
        self.disarm()
        self._is_open = False

    def answer(self, answer: Answer) -> None:
        """Have the device say something."""
        self._answers.append(answer)

    def advance(self, now: float | None = None) -> None:
        """Do what was due up to now: start pulses, one by one at their own time, and let old commands go."""
        now = self._clock() if now is None else now
        now_ns = nanoseconds(now)
        while (due_ns := self._lease.next_ns) is not None and due_ns <= now_ns:
            self.pulses += self._lease.pulses(due_ns)
        self.pulses += self._lease.pulses(now_ns)
        if now >= self._values_until:
            self._rest()
        self._report()

    def _report(self) -> None:
        self._answers += [stimulated(end) for end in self._lease.ended()]

    def _rest(self) -> None:
        self._values[:] = 0.0

    def _check(self) -> None:
        if not self._is_open:
            raise not_open(self.name)
        if self.is_broken:
            self.disarm()
            raise AdapterLostError(f"{self.name} is gone; mend it by is_broken = False, then close and open it")
