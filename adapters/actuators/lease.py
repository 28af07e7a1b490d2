"""The last word on stimulation, at the device: a lease that runs out by itself, and the trains that live by it.

Nothing here knows a clock, a thread or a socket: every call is told the time. Whoever drives electrodes, in memory or
behind a serial line, gives it each message of the gate and asks it for the pulses that may start now. It trusts nobody:
what should not be, such as a number that does not rise, a clock that goes back, a lease that is too long or a train out
of the device's own range, stops everything.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from neuromod.adapters.actuators.base import Event, Stimulation

# What a first and a second phase may differ by in charge; the gate is stricter, this only knows nonsense from a pulse.
_BALANCE = 0.05

LATEST_NS = 1_000_000
"""How late a pulse may be behind its place in the train; more, and it is left out."""


class Heard(StrEnum):
    """What became of one message; in all but the first three, everything stopped, or nothing started."""

    STARTED = "started"
    PROLONGED = "prolonged"
    STOPPED = "stopped"
    STALE = "stale"
    """It came after its own `expires`. The newest word counts: the lease is over."""
    BUSY = "busy"
    """A train on an electrode that is in the middle of one; that one goes on."""
    REPEATED = "repeated"
    """Its number is not above the last one: a repetition, a wrong order, or another daemon. It is not acted on."""
    FUTURE = "future"
    """It was written after now: its clock is not ours."""
    LONG = "long"
    """Its lease is longer than the device allows."""
    OUT_OF_RANGE = "out_of_range"
    """A train that the device cannot or must not deliver."""
    BACKWARD = "backward"
    """The clock of the device went back."""


ACTED = (Heard.STARTED, Heard.PROLONGED, Heard.STOPPED)
"""What a stimulator acknowledges; the rest it refuses."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device allows, whatever the gate says.

    Parameters
    ----------
    n_electrodes : int
        They count from 0.
    max_amplitude_ua : float
        Of either phase.
    max_phase_us : float
        Length of either phase, and of the pause between.
    max_pulses : int
        Of a train.
    max_lease_s : float
        From now to the end of a lease.
    """

    n_electrodes: int = 16
    max_amplitude_ua: float = 200.0
    max_phase_us: float = 2000.0
    max_pulses: int = 10_000
    max_lease_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """One pulse that starts; `index` counts within its train, and `train` is the gate's number of the decision."""

    start_ns: int
    train: int
    index: int
    electrode: int
    amplitude_ua: float
    phase_us: float
    interphase_us: float
    amplitude2_ua: float
    phase2_us: float


@dataclass(frozen=True, slots=True)
class TrainEnd:
    """A train that is over: `pulses` of the `asked` ones were started."""

    t_ns: int
    train: int
    electrode: int
    pulses: int
    asked: int


@dataclass(slots=True)
class _Train:
    message: Stimulation
    start_ns: int
    index: int  # of the next pulse
    n_started: int
    due_ns: int
    latest_ns: int  # behind its place, for every pulse


class Lease:
    """Trains that start, go on and end as the gate's messages and the time allow.

    Parameters
    ----------
    limits : Limits
        What the device allows.

    Attributes
    ----------
    expires_ns : int
        When the lease runs out; 0 where there is none.
    counts : dict of str to int
        Messages by what became of them.

    Notes
    -----
    A pulse that has begun is finished, also by a stop: cutting one between its phases would leave charge in the tissue.
    A pulse that is late starts when it is asked for, and the next one a whole period later: there are no bursts.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._trains: dict[int, _Train] = {}
        self._free_ns: dict[int, int] = {}  # by electrode: when the pulse that began last is over
        self._ended: list[TrainEnd] = []
        self._seq = -1
        self._now_ns = -(1 << 62)
        self.expires_ns = 0
        self.counts: dict[str, int] = {}

    @property
    def is_running(self) -> bool:
        """True while a train has pulses to come."""
        return bool(self._trains)

    @property
    def next_ns(self) -> int | None:
        """When `pulses` is worth asking next: a pulse is due, or the lease ends; None where no train runs."""
        if not self._trains:
            return None
        return min(self.expires_ns, *(train.due_ns for train in self._trains.values()))

    def hear(self, message: Stimulation, now_ns: int) -> Heard:
        """Take one message of the gate.

        Parameters
        ----------
        message : Stimulation
            In the order of arrival.
        now_ns : int
            When it arrived, on the clock that `message.expires` is told on.
        """
        heard = self._hear(message, now_ns)
        self.counts[heard] = self.counts.get(heard, 0) + 1
        return heard

    def pulses(self, now_ns: int) -> list[Pulse]:
        """Return the pulses that start now: at most one of each train, none past the lease.

        A pulse that is more than `LATEST_NS` behind its place in the train is left out, and also where it is later than
        had the train begun at its `expires`: the gate counts on that end of a train, and on what may follow it.
        """
        if not self._clock(now_ns):
            return []
        started = []
        for electrode, train in list(self._trains.items()):
            if train.due_ns > now_ns:
                continue
            m = train.message
            period_ns = _nanoseconds(m.period_us)
            while train.index < m.pulses and now_ns - train.start_ns - train.index * period_ns > train.latest_ns:
                train.index += 1
            if train.index == m.pulses:  # the last pulse is over, or too late, and with it the train
                self._end(electrode, now_ns)
                continue
            nominal_ns = train.start_ns + train.index * period_ns
            if nominal_ns > now_ns:
                train.due_ns = nominal_ns
                continue
            started.append(
                Pulse(now_ns, m.id, train.index, electrode, m.amplitude_ua, m.phase_us, m.interphase_us,
                      m.amplitude2_ua, m.phase2_us)
            )  # fmt: skip
            train.index += 1
            train.n_started += 1
            last = train.index == m.pulses
            self._free_ns[electrode] = now_ns + _duration_ns(m)
            # a period from this one, never less, however late it was
            train.due_ns = self._free_ns[electrode] if last else now_ns + period_ns
        return started

    def stop(self, now_ns: int) -> None:
        """End every train and the lease. What is heard from then on counts anew."""
        for electrode in list(self._trains):
            self._end(electrode, now_ns)
        self.expires_ns = 0

    def ended(self) -> list[TrainEnd]:
        """Return the trains that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _hear(self, message: Stimulation, now_ns: int) -> Heard:
        last, self._seq = self._seq, message.seq
        if not self._clock(now_ns):
            return Heard.BACKWARD
        if message.kind == "stop":
            self.stop(now_ns)
            return Heard.STOPPED
        if message.seq <= last:
            self.stop(now_ns)
            return Heard.REPEATED
        if last >= 0 and message.seq > last + 1:
            # one that was lost may have been a stop; what this one says is newer, and holds
            self.stop(now_ns)
        refusal = self._refuse(message, now_ns)
        if refusal is not None:
            self.stop(now_ns)
            return refusal
        self.expires_ns = _nanoseconds(message.expires * 1e6)
        if message.kind == "lease":
            return Heard.PROLONGED
        if message.electrode in self._trains or now_ns < self._free_ns.get(message.electrode, now_ns):
            return Heard.BUSY
        latest_ns = min(LATEST_NS, self.expires_ns - now_ns)
        self._trains[message.electrode] = _Train(message, now_ns, 0, 0, now_ns, latest_ns)
        return Heard.STARTED

    def _clock(self, now_ns: int) -> bool:
        """Note the time; stop everything where it went back, or where the lease is over."""
        last, self._now_ns = self._now_ns, now_ns
        if now_ns < last:
            self.stop(now_ns)
            return False
        if now_ns >= self.expires_ns:
            self.stop(now_ns)
        return True

    def _refuse(self, m: Stimulation, now_ns: int) -> Heard | None:
        if not (math.isfinite(m.t) and math.isfinite(m.expires)) or m.kind not in ("lease", "train"):
            return Heard.OUT_OF_RANGE
        now_s = 1e-9 * now_ns
        if m.t > now_s + 1e-6:  # the resolution of float64 seconds after 30 years of uptime is 0.1 us
            return Heard.FUTURE
        if m.expires - now_s > self._limits.max_lease_s:
            return Heard.LONG
        if _nanoseconds(m.expires * 1e6) <= now_ns:
            return Heard.STALE
        if m.kind == "train" and not _is_deliverable(m, self._limits):
            return Heard.OUT_OF_RANGE
        return None

    def _end(self, electrode: int, now_ns: int) -> None:
        train = self._trains.pop(electrode)
        self._ended.append(TrainEnd(now_ns, train.message.id, electrode, train.n_started, train.message.pulses))


def stimulated(end: TrainEnd) -> Event:
    """Return what a stimulator says of a train that is over."""
    value = {"id": end.train, "electrode": end.electrode, "pulses": end.pulses, "asked": end.asked}
    return Event("stimulated", 1e-9 * end.t_ns, value)


def refused(message: Stimulation, heard: Heard, now: float) -> Event:
    """Return what a stimulator says of a message that it refuses."""
    return Event("refused", now, {"id": message.id, "why": str(heard)})


def _is_deliverable(m: Stimulation, limits: Limits) -> bool:
    numbers = (m.amplitude_ua, m.phase_us, m.interphase_us, m.amplitude2_ua, m.phase2_us, m.period_us)
    if not all(math.isfinite(number) for number in numbers):
        return False
    first, second = m.amplitude_ua * m.phase_us, m.amplitude2_ua * m.phase2_us
    return (
        0 <= m.electrode < limits.n_electrodes
        and 1 <= m.pulses <= limits.max_pulses
        and max(abs(m.amplitude_ua), abs(m.amplitude2_ua)) <= limits.max_amplitude_ua
        and min(m.phase_us, m.phase2_us) > 0.0
        and m.interphase_us >= 0.0
        and max(m.phase_us, m.interphase_us, m.phase2_us) <= limits.max_phase_us
        and abs(first + second) <= _BALANCE * abs(first)
        and (m.pulses == 1 or m.period_us >= m.phase_us + m.interphase_us + m.phase2_us)
    )


def _duration_ns(m: Stimulation) -> int:
    return _nanoseconds(m.phase_us + m.interphase_us + m.phase2_us)


def _nanoseconds(us: float) -> int:
    return round(us * 1e3)
