"""What every actuator keeps, whoever wrote it.

Subclass `ActuatorConformance`, give it a fixture `rig` with your actuator and its device, real or simulated at the
other end of the real connection, and the tests below are yours.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pylsl
import pytest

from neuromod.adapters.actuators.base import (
    POLL_INTERVAL_S,
    SEND_BOUND_S,
    Actuator,
    ActuatorMessage,
    Command,
    Spikes,
    Stimulation,
)
from neuromod.engine.errors import AdapterError, AdapterLostError

WAIT_S = 10.0
# Other programs may hold the two cores: a call that waits for nothing has been seen to take this long.
SCHEDULING_S = 0.5


class Rig:
    """An actuator, and eyes on what its device does.

    Override what your device does otherwise.
    """

    has_a_device = True
    """Whether there is something at the other end that can vanish."""
    can_stall = False
    """Whether the other end can be made to take nothing any more; then `stall` does."""
    topic = "command"
    """What `message` makes."""
    n_outputs = 2
    lease_s = 0.9
    """How long what a message starts may go on without another: longer than it may take to come to the device."""

    def __init__(self, actuator: Actuator) -> None:
        self.actuator = actuator
        self._numbers = itertools.count(1)

    def now(self) -> float:
        """The time on the actuator's clock."""
        return float(pylsl.local_clock())

    def wait(self) -> None:
        """Let a little time pass."""
        time.sleep(0.002)

    def message(self, lease_s: float | None = None) -> ActuatorMessage:
        """A message that makes the device act: outputs that are not zero, a spike, or a train longer than its lease."""
        return make(self.topic, next(self._numbers), self.now(), lease_s or self.lease_s, self.n_outputs)

    def acts(self) -> int:
        """How much the device has done so far, in whatever it does: moves, spikes, pulses."""
        raise NotImplementedError

    def is_safe(self) -> bool:
        """Whether its output is in the safe state now."""
        raise NotImplementedError

    def vanish(self) -> None:
        """Take the device away."""
        raise NotImplementedError

    def stall(self) -> None:
        """Have the device take nothing any more, and stay."""
        raise NotImplementedError

    def unreachable(self) -> Actuator:
        """An actuator, not open, for a device that is not there."""
        raise NotImplementedError

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Poll the actuator until a condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
            self.actuator.poll()
            self.wait()


def make(topic: str, seq: int, now: float, lease_s: float, n_outputs: int = 2) -> ActuatorMessage:
    """Return a message of a topic that acts: values of one, a spike on channels 0 and 9, or a train of 10 ms pulses."""
    if topic == "command":
        return Command(seq, seq, now, now, np.ones(n_outputs, np.float32), 1, 1, 0, now + lease_s)
    if topic == "spikes":
        return Spikes(seq, seq, now, now, 0b10_0000_0001, 0)
    return train(seq, now, now + lease_s)


def train(seq: int, now: float, expires: float, **changes: Any) -> Stimulation:
    """Return a train of 1000 biphasic pulses of 50 uA, 200 us a phase, every 10 ms, on electrode 3."""
    fields: dict[str, Any] = {
        "seq": seq, "tick": seq, "t": now, "kind": "train", "id": seq, "electrode": 3, "amplitude_ua": -50.0,
        "phase_us": 200.0, "interphase_us": 50.0, "amplitude2_ua": 50.0, "phase2_us": 200.0, "pulses": 1000,
        "period_us": 10_000.0, "expires": expires, "reason": 0,
    }  # fmt: skip
    return Stimulation(**(fields | changes))


class ActuatorConformance:
    """Subclass it as Test..., and give it `rig`."""

    @pytest.fixture
    def rig(self) -> Rig:
        """A rig whose actuator is fresh, not open."""
        raise NotImplementedError("override the fixture `rig`")

    def armed(self, rig: Rig) -> Actuator:
        rig.actuator.open()
        rig.actuator.arm()
        return rig.actuator

    def acting(self, rig: Rig) -> Actuator:
        """Have the device act, seen by its own eyes."""
        actuator = self.armed(rig)
        assert actuator.send(rig.message())
        rig.until(lambda: rig.acts() > 0, "the device acts")
        return actuator

    def test_it_has_a_name_and_wants_something_before_it_is_open(self, rig: Rig) -> None:
        assert rig.actuator.name
        assert rig.topic in rig.actuator.wants <= {"command", "spikes", "stimulation"}
        assert not rig.actuator.is_armed

    def test_one_that_is_not_open_says_so_and_can_be_disarmed_and_closed(self, rig: Rig) -> None:
        rig.actuator.disarm()
        rig.actuator.close()
        for call in (rig.actuator.arm, rig.actuator.poll, lambda: rig.actuator.send(rig.message())):
            with pytest.raises(AdapterError, match="not open"):
                call()
        assert not rig.actuator.is_armed

    def test_until_it_is_armed_nothing_acts(self, rig: Rig) -> None:
        rig.actuator.open()
        assert not rig.actuator.send(rig.message())
        assert rig.is_safe()
        rig.actuator.arm()
        assert rig.actuator.is_armed
        before = rig.acts()
        assert before == 0  # and had it been underway, it would arrive before the next, and be counted below
        assert rig.actuator.send(rig.message())
        rig.until(lambda: rig.acts() > 0, "the device acts once armed")

    def test_opening_and_arming_twice_changes_nothing(self, rig: Rig) -> None:
        actuator = self.armed(rig)
        actuator.open()
        actuator.arm()
        assert actuator.is_armed
        assert actuator.send(rig.message())
        rig.until(lambda: rig.acts() > 0, "the device acts")

    def test_disarming_makes_it_safe_and_keeps_it_so(self, rig: Rig) -> None:
        actuator = self.acting(rig)
        actuator.disarm()
        actuator.disarm()
        assert not actuator.is_armed
        rig.until(rig.is_safe, "safe after disarm")
        before = rig.acts()
        assert not actuator.send(rig.message())
        actuator.poll()
        assert rig.acts() == before

    def test_it_can_be_armed_again(self, rig: Rig) -> None:
        actuator = self.acting(rig)
        actuator.disarm()
        rig.until(rig.is_safe, "safe after disarm")
        before = rig.acts()
        rig.wait()  # a pulse that had begun is finished first
        actuator.arm()
        assert actuator.send(rig.message())
        rig.until(lambda: rig.acts() > before, "the device acts again")

    def test_closing_makes_it_safe_and_twice_is_safe_too(self, rig: Rig) -> None:
        actuator = self.acting(rig)
        actuator.close()
        actuator.close()
        assert not actuator.is_armed
        deadline = time.monotonic() + WAIT_S
        while not rig.is_safe():
            assert time.monotonic() < deadline, "safe after close"
            rig.wait()
        with pytest.raises(AdapterError, match="not open"):
            actuator.send(rig.message())

    def test_it_can_be_opened_again_after_closing(self, rig: Rig) -> None:
        actuator = self.acting(rig)
        actuator.close()
        before = rig.acts()
        rig.wait()
        actuator.open()
        assert not actuator.is_armed
        actuator.arm()
        assert actuator.send(rig.message())
        rig.until(lambda: rig.acts() > before, "the device acts again")

    def test_what_has_expired_does_not_act(self, rig: Rig) -> None:
        if rig.topic == "spikes":
            pytest.skip("spikes do not expire: they are events, and over at once")
        actuator = self.armed(rig)
        assert not actuator.send(rig.message(lease_s=-0.001))
        actuator.poll()
        assert rig.is_safe()
        assert rig.acts() == 0

    def test_past_the_lease_nothing_goes_on(self, rig: Rig) -> None:
        if rig.topic == "spikes":
            pytest.skip("spikes are events, and over at once")
        self.acting(rig)
        ends = rig.now() + rig.lease_s
        rig.until(lambda: rig.is_safe() or rig.now() > ends + SCHEDULING_S, "the lease runs out")
        assert rig.is_safe()

    def test_what_it_does_not_want_is_dropped(self, rig: Rig) -> None:
        actuator = self.armed(rig)
        for topic in {"command", "spikes", "stimulation"} - actuator.wants:
            assert not actuator.send(make(topic, 1, rig.now(), 0.1))
        assert rig.acts() == 0

    def test_sending_is_bounded_in_time(self, rig: Rig) -> None:
        actuator = self.armed(rig)
        assert max(timed(lambda: actuator.send(rig.message())) for _ in range(20)) < SEND_BOUND_S + SCHEDULING_S

    def test_sending_to_a_device_that_takes_nothing_is_bounded_and_ends_disarmed(self, rig: Rig) -> None:
        if not rig.can_stall:
            pytest.skip("this device cannot refuse to take what is sent")
        actuator = self.armed(rig)
        rig.stall()
        took = []
        with pytest.raises(AdapterError):  # noqa: PT012 (how many it takes depends on buffers of the system)
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                begun = time.monotonic()
                try:
                    actuator.send(rig.message())
                    actuator.poll()
                finally:
                    took.append(time.monotonic() - begun)
        assert not actuator.is_armed
        assert max(took) < SEND_BOUND_S + SCHEDULING_S

    def test_polling_never_waits(self, rig: Rig) -> None:
        actuator = self.armed(rig)
        # the median: a call that waited for its device would do so every time
        assert statistics.median(timed(actuator.poll) for _ in range(50)) < POLL_INTERVAL_S / 5

    def test_a_device_that_is_not_there_is_an_adapter_error(self, rig: Rig) -> None:
        if not rig.has_a_device:
            pytest.skip("there is no device that could be missing")
        absent = rig.unreachable()
        with pytest.raises(AdapterError):
            absent.open()
        assert not absent.is_armed
        absent.close()

    def test_a_device_that_vanishes_is_noticed_and_leaves_it_disarmed(self, rig: Rig) -> None:
        if not rig.has_a_device:
            pytest.skip("there is no device that could vanish")
        actuator = self.acting(rig)
        rig.vanish()
        deadline = time.monotonic() + WAIT_S
        with pytest.raises(AdapterLostError):  # noqa: PT012 (noticed by one of many polls)
            while time.monotonic() < deadline:
                actuator.poll()
                rig.wait()
        assert not actuator.is_armed
        actuator.disarm()
        actuator.close()
        with pytest.raises(AdapterError, match="not open"):
            actuator.send(rig.message())


def timed(call: Callable[[], Any]) -> float:
    """Return how long a call takes, in seconds."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun
