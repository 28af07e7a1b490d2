"""A device behind a serial line: framed, checked, asked whether it lives. The frames are in `frames`."""

import contextlib
import errno
import importlib
import io
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import pylsl

from neuromod.adapters.actuator_config import SerialLineConfig
from neuromod.adapters.actuators import frames
from neuromod.adapters.actuators.base import (
    Acknowledgement,
    ActuatorMessage,
    Answer,
    Spikes,
    Topic,
    not_open,
    says_nothing,
    topic_of,
)
from neuromod.adapters.actuators.frames import Frame, Kind, Status
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError, MissingExtraError

_ASK_S = 0.05
_LATE_S = 0.02


class SerialLine:
    """An actuator on a serial line that speaks frames.

    Parameters
    ----------
    config : SerialLineConfig
        Which port, and what to send.
    clock : callable
        Returns the time in seconds.

    Notes
    -----
    What is sent may wait on the line: at 115,200 baud a stimulation frame takes 5 ms. Nothing is sent while more
    than 20 ms of it wait, so that leases, which are told as what remains of them, are never older than that on arrival.
    """

    def __init__(self, config: SerialLineConfig, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._config = config
        self._clock = clock
        self._port: Any = None
        self._parser = frames.Parser()
        self._number = 0
        self._is_armed = False
        self._arm_was_heard = False
        self._heard = 0.0
        self._asked = 0.0
        self._waiting: dict[int, tuple[Topic, int] | None] = {}  # by number of the frame: what waits for its answer
        self._answers: list[Answer] = []

    @property
    def name(self) -> str:
        """The port."""
        return f"device at {self._config.port}"

    @property
    def wants(self) -> frozenset[Topic]:
        """As configured."""
        return frozenset(self._config.wants)

    @property
    def is_armed(self) -> bool:
        """True from `arm` to `disarm`, `close` or an error."""
        return self._is_armed

    def open(self) -> None:
        """Open the port, and have the device say that it is disarmed.

        Raises
        ------
        MissingExtraError
            If pyserial, which neuromod-bridge depends on, cannot be imported.
        AdapterError
            If there is no such port, or something else uses it.
        AdapterTimeoutError
            If nothing answers on it.
        """
        if self._port is not None:
            return
        self._port = _open_port(self._config)
        self._parser = frames.Parser()
        self._waiting, self._answers = {}, []
        try:
            self._greet()
        except BaseException:
            self._release()
            raise

    def arm(self) -> None:
        """Tell the device to act from now on."""
        self._check()
        if not self._is_armed:
            self._write(Kind.HEARTBEAT, self._lease())
            self._write(Kind.ARM)
            self._arm_was_heard = False
            self._is_armed = True

    def send(self, message: ActuatorMessage) -> bool:
        """Write one frame."""
        self._check()
        now = self._clock()
        topic = topic_of(message)
        if not self._is_armed or topic not in self._config.wants or says_nothing(message, now):
            return False
        if isinstance(message, Spikes) and not message.channels:
            return False
        number = self._number
        try:
            data = frames.pack_message(message, number, now)
        except (ValueError, OverflowError, struct.error) as error:
            self.disarm()
            raise AdapterError(f"{self.name} cannot be sent this {topic}: {error}") from None
        self._put(data, (topic, message.seq))
        return True

    def poll(self) -> Sequence[Answer]:
        """Read what has come, send the heartbeat, and notice a device that is silent."""
        self._check()
        self._listen()
        now = self._clock()
        if now - self._heard > 1e-3 * self._config.lost_ms:
            silent_ms = 1e3 * (now - self._heard)
            self.disarm()
            raise AdapterLostError(f"{self.name} has been silent for {silent_ms:.0f} ms; check its power and its cable")
        if now - self._asked >= 1e-3 * self._config.heartbeat_ms:
            self._asked = now
            self._write(Kind.HEARTBEAT, self._lease())
        answers, self._answers = self._answers, []
        return answers

    def disarm(self) -> None:
        """Tell the device to go to its safe state; if that does not reach it, its own lease will."""
        self._is_armed = False
        if self._port is not None:
            with contextlib.suppress(Exception):  # a safe state is asked for on the way out of every fault
                self._port.write(frames.pack(Kind.DISARM, self._next()))

    def close(self) -> None:
        """Disarm, and let go of the port."""
        self.disarm()
        self._release()

    def _release(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(Exception):
                port.close()

    def _greet(self) -> None:
        deadline = time.monotonic() + self._config.open_timeout_s
        self._heard = self._asked = -1.0
        self._port.timeout = 0.005
        while self._heard < 0.0:
            self._write(Kind.DISARM)
            until = time.monotonic() + _ASK_S
            while time.monotonic() < until and self._heard < 0.0:
                if any(map(_is_disarmed, self._parser.feed(self._port.read(self._port.in_waiting or 1)))):
                    self._heard = self._clock()
            if time.monotonic() > deadline:
                raise AdapterTimeoutError(
                    f"{self.name} did not answer within {self._config.open_timeout_s:g} s; check that it has power, "
                    f"that it runs at {self._config.baudrate} baud and speaks these frames"
                )
        self._port.timeout = 0

    def _listen(self) -> None:
        try:
            data = self._port.read(self._port.in_waiting or 1)
        except Exception as error:
            raise self._lost(error) from error
        for frame in self._parser.feed(data):
            self._heard = self._clock()
            if frame.kind is Kind.ACK and len(frame.payload) == 3:
                self._acknowledged(*frame.payload)
            elif (answer := frames.unpack_answer(frame, self._heard)) is not None:
                self._answers.append(answer)

    def _acknowledged(self, kind: int, number: int, status: int) -> None:
        waiting = self._waiting.pop(number, None)
        if status == Status.FAULT:
            self.disarm()
            raise AdapterError(f"{self.name} reports a fault at a frame of kind {kind:#04x}; look at the device")
        if kind == Kind.ARM:
            self._arm_was_heard = True
        if kind == Kind.HEARTBEAT and status == Status.DROPPED and self._arm_was_heard:
            self._is_armed = False  # we were silent for longer than its lease; who uses us may arm it again
        if waiting is not None and status == Status.TAKEN:
            self._answers.append(Acknowledgement(*waiting, self._heard))

    def _lease(self) -> bytes:
        return int(1e3 * self._config.lease_ms).to_bytes(4, "little")

    def _next(self) -> int:
        number = self._number
        self._number = (number + 1) & 0xFF
        return number

    def _write(self, kind: Kind, payload: bytes = b"") -> int:
        number = self._number
        self._put(frames.pack(kind, number, payload), None)
        return number

    def _put(self, data: bytes, waiting: tuple[Topic, int] | None) -> None:
        number = self._next()
        self._waiting[number] = waiting
        try:
            # A frame that does not fit into what the operating system still holds for the line would arrive late;
            # there are 10 bits a byte on the line.
            is_late = 10.0 * self._port.out_waiting / self._config.baudrate > _LATE_S
            if is_late or not _takes_more(self._port):
                raise TimeoutError
            n = self._port.write(data)
        except Exception as error:
            raise self._lost(error) from error
        if n is not None and n != len(data):
            raise self._lost(TimeoutError())  # a part of it was taken

    def _lost(self, error: Exception) -> AdapterError:
        self.disarm()
        if isinstance(error, TimeoutError):
            return AdapterTimeoutError(
                f"{self.name} does not take what is sent; send it less, or raise its baud rate on both sides"
            )
        return AdapterLostError(f"{self.name} is gone ({error}); check its cable")

    def _check(self) -> None:
        if self._port is None:
            raise not_open(self.name)


def _is_disarmed(frame: Frame) -> bool:
    # an answer to an earlier DISARM does as well: the device is there, and disarmed
    return frame.kind is Kind.ACK and len(frame.payload) == 3 and frame.payload[0] == Kind.DISARM


def _takes_more(port: Any) -> bool:
    """Whether a write would go on; without room pyserial would try again for ever."""
    if os.name != "posix":
        return True
    try:
        return bool(select.select([], [port.fileno()], [], 0.0)[1])
    except io.UnsupportedOperation:  # a port of pyserial's own, behind no file
        return True


def _open_port(config: SerialLineConfig) -> Any:
    try:
        serial = importlib.import_module("serial")
    except ImportError as error:
        raise MissingExtraError(
            f"pyserial, which comes with neuromod-bridge, cannot be imported ({error}); install it again: "
            "pip install pyserial"
        ) from error
    try:
        return serial.serial_for_url(
            # pyserial looks at a timeout after the bytes have gone: a host that stood still would count as a deaf line
            config.port,
            baudrate=config.baudrate,
            timeout=0,
            write_timeout=0,
            exclusive=True,
        )
    except (OSError, ValueError) as error:  # pyserial's own error is an OSError
        word = "is used by another program" if getattr(error, "errno", None) == errno.EAGAIN else f"({error})"
        raise AdapterError(
            f"{config.port} cannot be opened {word}; check its name, and that you may use it (group dialout)"
        ) from error
