"""The other end of a serial line: what the firmware of a device does, in Python.

It answers every frame, goes to its safe state by itself when the host falls silent, and drives an actuator of this
process: one in memory for tests, a virtual stimulator with its own timer, or whatever you wish to try.

``python -m neuromod.adapters.actuators.device PORT --pulses FILE`` is a stimulator as a process of its own.
"""

import argparse
import contextlib
import os
import select
import struct
import sys
import tty
from collections.abc import Callable
from pathlib import Path

import pylsl

from neuromod.adapters.actuator_config import StimulatorConfig
from neuromod.adapters.actuators import frames
from neuromod.adapters.actuators.base import Actuator
from neuromod.adapters.actuators.frames import Frame, Kind, Status
from neuromod.engine.errors import AdapterError

_POLL_S = 0.005
_HELD_UP_S = 0.002  # by which a wait may overrun before its end is no longer taken for the time of what came
_READ = 4096


class LineDevice:
    """A device on a file descriptor.

    Parameters
    ----------
    fd : int
        Of a serial port or a pty, raw; it is not closed here.
    actuator : Actuator
        What it drives; it is opened here and closed by `close`.
    clock : callable
        The device's own time in seconds; need not be the host's.

    Attributes
    ----------
    lease_s : float
        As the last heartbeat told.
    bad_bytes : int
        Bytes that were no good frame.
    """

    def __init__(self, fd: int, actuator: Actuator, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._fd = fd
        self._actuator = actuator
        self._clock = clock
        self._parser = frames.Parser()
        self._number = 0
        self._heard = self._looked = clock()
        self.lease_s = 0.25
        os.set_blocking(fd, False)
        actuator.open()

    @property
    def bad_bytes(self) -> int:
        """Bytes that belonged to no good frame."""
        return self._parser.dropped

    def step(self, timeout_s: float = _POLL_S) -> None:
        """Wait for bytes, act on what is there, and say what there is to say.

        Raises
        ------
        OSError
            If the line is gone.
        """
        readable, _, _ = select.select([self._fd], [], [], timeout_s)
        now = self._clock()
        # Held up (a stopped process, say), it cannot tell when a frame came, and takes it for as old as it may be.
        arrived = now if now - self._looked <= timeout_s + _HELD_UP_S else self._looked
        self._looked = now
        if readable:
            data = os.read(self._fd, _READ)
            if not data:
                raise OSError("the line was closed")
            for frame in self._parser.feed(data):
                self._heard = arrived
                self._answer(Kind.ACK, struct.pack("<BBB", frame.kind, frame.number, self._act(frame, arrived)))
        if self._clock() - self._heard > self.lease_s:
            self._actuator.disarm()
        for answer in self._actuator.poll():
            frame_bytes = frames.pack_answer(answer, self._number)
            if frame_bytes is not None:
                self._write(frame_bytes)

    def close(self) -> None:
        """Go to the safe state."""
        self._actuator.close()

    def _act(self, frame: Frame, arrived: float) -> Status:
        try:
            if frame.kind is Kind.HEARTBEAT and len(frame.payload) == 4:
                self.lease_s = 1e-6 * int.from_bytes(frame.payload, "little")
                return Status.TAKEN if self._actuator.is_armed else Status.DROPPED
            if frame.kind is Kind.ARM:
                self._actuator.arm()
            elif frame.kind is Kind.DISARM:
                self._actuator.disarm()
            else:
                message = frames.unpack_message(frame, arrived)
                if message is None or not self._actuator.send(message):
                    return Status.DROPPED
        except AdapterError:
            self._actuator.disarm()
            return Status.FAULT
        return Status.TAKEN

    def _answer(self, kind: Kind, payload: bytes) -> None:
        self._write(frames.pack(kind, self._number, payload))

    def _write(self, data: bytes) -> None:
        self._number += 1
        with contextlib.suppress(BlockingIOError):  # a host that does not read misses answers; the device goes on
            os.write(self._fd, data)


def main(argv: list[str] | None = None) -> int:
    """Be a stimulator behind a serial line until it is gone; return the exit code."""
    from neuromod.adapters.actuators.stimulator import VirtualStimulator

    parser = argparse.ArgumentParser(description="A virtual stimulator behind a serial line.")
    parser.add_argument("port", type=Path, help="device file, for instance one end of a pty")
    parser.add_argument("--pulses", type=Path, help="file to append one line of JSON per pulse to")
    arguments = parser.parse_args(argv)
    try:
        fd = os.open(arguments.port, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd)
    except OSError as error:
        print(f"device: {arguments.port} cannot be opened ({error.strerror})", file=sys.stderr)
        return 2
    device = LineDevice(fd, VirtualStimulator(StimulatorConfig(pulses=arguments.pulses)))
    print("ready", flush=True)
    try:
        while True:
            device.step()
    except (OSError, KeyboardInterrupt):
        return 0
    finally:
        device.close()
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
