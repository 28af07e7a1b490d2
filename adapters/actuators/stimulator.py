"""A virtual stimulator: the lease, the trains and a timer of its own; pulses go to a file instead of a body.

It stands for the device that you will use, and shows what that must keep: whatever happens to the daemon, to the gate
or to the program that calls `send`, the pulses stop when the lease runs out, because only a message of the gate
prolongs it. Behind a serial line it is a process of its own: see `device`, and `serial_line` for the driver.
"""

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pylsl

from neuromod.adapters.actuator_config import StimulatorConfig
from neuromod.adapters.actuators.base import (
    Acknowledgement,
    ActuatorMessage,
    Answer,
    Stimulation,
    Topic,
    nanoseconds,
    not_open,
)
from neuromod.adapters.actuators.lease import ACTED, Lease, Pulse, refused, stimulated
from neuromod.engine.errors import AdapterError, AdapterLostError

_JOIN_S = 1.0
# A kernel wakes a thread some 0.1 ms late, and a train would fall behind by that with every pulse: the rest is waited
# for with open eyes.
_AWAKE_NS = 300_000


class VirtualStimulator:
    """A simulated stimulator: pulses on a timer of its own.

    Parameters
    ----------
    config : StimulatorConfig, optional
        What it allows, and where it writes its pulses.
    clock : callable
        Returns the time in seconds; that on which the messages tell theirs.

    Attributes
    ----------
    n_pulses : int
        Started so far.
    """

    def __init__(self, config: StimulatorConfig | None = None, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._config = config or StimulatorConfig()
        self._clock = clock
        self._lease = Lease(self._config.limits.limits())
        self._changed = threading.Condition()  # guards everything below and the lease
        self._timer: threading.Thread | None = None
        self._fd = -1
        self._is_armed = False
        self._failure: str | None = None
        self._answers: list[Answer] = []
        self.n_pulses = 0

    @property
    def name(self) -> str:
        """What it is."""
        return "virtual stimulator"

    @property
    def wants(self) -> frozenset[Topic]:
        """Stimulation."""
        return frozenset(("stimulation",))

    @property
    def is_armed(self) -> bool:
        """True from `arm` to `disarm`, `close` or an error."""
        return self._is_armed

    @property
    def is_stimulating(self) -> bool:
        """True while a train has pulses to come."""
        with self._changed:
            return self._lease.is_running

    @property
    def counts(self) -> dict[str, int]:
        """Messages by what became of them; see `Heard`."""
        with self._changed:
            return dict(self._lease.counts)

    def open(self) -> None:
        """Open the file and start the timer.

        Raises
        ------
        AdapterError
            If the file cannot be written.
        """
        if self._timer is not None:
            return
        if self._config.pulses is not None:
            try:
                self._fd = os.open(self._config.pulses, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise AdapterError(
                    f"{self._config.pulses} cannot be written ({error.strerror}); choose another file for the pulses"
                ) from error
        self._failure = None
        self._timer = threading.Thread(target=self._run, name="neuromod-stimulator", daemon=True)
        self._timer.start()

    def arm(self) -> None:
        """Let trains start."""
        self._check()
        self._is_armed = True

    def send(self, message: ActuatorMessage) -> bool:
        """Take one message of the gate."""
        self._check()
        if not self._is_armed or not isinstance(message, Stimulation):
            return False
        with self._changed:
            now = self._clock()
            heard = self._lease.hear(message, nanoseconds(now))
            if heard in ACTED:
                self._answers.append(Acknowledgement("stimulation", message.seq, now))
            else:
                self._answers.append(refused(message, heard, now))
            self._changed.notify()
        return heard in ACTED

    def poll(self) -> Sequence[Answer]:
        """Return what was heard and delivered."""
        self._check()
        with self._changed:
            self._answers += [stimulated(end) for end in self._lease.ended()]
            answers, self._answers = self._answers, []
        return answers

    def disarm(self) -> None:
        """Stop every train."""
        self._is_armed = False
        with self._changed:
            self._lease.stop(nanoseconds(self._clock()))
            self._changed.notify()

    def close(self) -> None:
        """Disarm, and end the timer."""
        self.disarm()
        with self._changed:
            timer, self._timer = self._timer, None
            self._changed.notify()
        if timer is not None:
            timer.join(_JOIN_S)
        with self._changed:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _run(self) -> None:
        with self._changed:
            while self._timer is threading.current_thread():
                next_ns = self._lease.next_ns
                if next_ns is None:
                    self._changed.wait()
                    continue
                now_ns = nanoseconds(self._clock())
                if now_ns < next_ns:
                    if (left_ns := next_ns - now_ns) > _AWAKE_NS:
                        self._changed.wait(1e-9 * (left_ns - _AWAKE_NS))
                    continue
                try:
                    for pulse in self._lease.pulses(now_ns):
                        self._deliver(pulse)
                except OSError as error:
                    self._lease.stop(now_ns)
                    self._failure = str(error.strerror)

    def _deliver(self, pulse: Pulse) -> None:
        self.n_pulses += 1
        if self._fd >= 0:  # a write of its own each: what is in the file survives kill -9
            os.write(self._fd, json.dumps(asdict(pulse)).encode() + b"\n")

    def _check(self) -> None:
        if self._timer is None:
            raise not_open(self.name)
        if self._failure is not None:
            self.disarm()
            raise AdapterLostError(
                f"{self.name} cannot write its pulses any more ({self._failure}); make room for them"
            )
