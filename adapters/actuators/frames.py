r"""The frames of a serial line: how commands, spikes and stimulation travel to a device, and its answers back.

A frame, every number little-endian:

| bytes | what |
|---|---|
| 2 | AA 55 |
| 1 | n, the length of the payload, 0 to 250 |
| 1 | kind |
| 1 | number of the frame, counting up modulo 256 in each direction |
| n | payload |
| 2 | CRC-16/CCITT (polynomial 0x1021, begun with 0xFFFF) over everything from n to the end of the payload |

| kind | from | payload |
|---|---|---|
| 01 HEARTBEAT | host | u32 lease, us: without a good frame for so long, the device goes to its safe state |
| 02 ARM, 03 DISARM | host | nothing |
| 10 COMMAND | host | u32 message number, u32 tick, u32 events, u32 remaining, us; then n float32 |
| 11 SPIKES | host | u32 message number, u32 tick, then the channels, bit i % 8 of byte i // 8 |
| 12 STIMULATION | host | u32 message number, u8 kind (0 lease, 1 train, 2 stop), u32 id, u16 electrode, 5 float32: amplitude, phase, interphase, second amplitude and phase (uA, us), u32 pulses, float32 period (us), u32 remaining, us, u16 reason |
| 80 ACK | device | u8 kind of the frame, u8 number of the frame, u8 status: 0 taken, 1 dropped (of a HEARTBEAT: not armed), 2 the device is at fault |
| 81 REWARD | device | float32 amount |
| 82 EVENT | device | a name, UTF-8; after a byte 0, where there is one, a value as JSON |
| 83 STIMULI | device | n float32 |

The device has a clock of its own, so `remaining` is what is left of a lease when the frame is sent, 0 where it is over.
The time on the line comes on top; it is bounded by the host, which holds back what would wait behind other frames.
Whatever has a wrong length, kind or CRC is dropped byte by byte until the next AA 55: a damaged frame never acts.
"""  # noqa: E501 (a table)

import binascii
import enum
import json
import math
import struct
from dataclasses import dataclass

import numpy as np

from neuromod.adapters.actuators.base import (
    Acknowledgement,
    ActuatorMessage,
    Answer,
    Command,
    Event,
    Reward,
    Spikes,
    Stimulation,
    StimulationKind,
    Stimuli,
)

SYNC = b"\xaa\x55"
MAX_PAYLOAD = 250
OVERHEAD = 7

_LARGEST_U32 = 0xFFFF_FFFF
_KINDS: tuple[StimulationKind, ...] = ("lease", "train", "stop")
_HEAD = struct.Struct("<BBB")
_COMMAND = struct.Struct("<IIII")
_SPIKES = struct.Struct("<II")
_STIMULATION = struct.Struct("<IBIHfffffIfIH")


class Kind(enum.IntEnum):
    """Kinds of frames."""

    HEARTBEAT = 0x01
    ARM = 0x02
    DISARM = 0x03
    COMMAND = 0x10
    SPIKES = 0x11
    STIMULATION = 0x12
    ACK = 0x80
    REWARD = 0x81
    EVENT = 0x82
    STIMULI = 0x83


class Status(enum.IntEnum):
    """What a device says to a frame."""

    TAKEN = 0
    DROPPED = 1
    FAULT = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that arrived whole."""

    kind: Kind
    number: int
    payload: bytes


def pack(kind: Kind, number: int, payload: bytes = b"") -> bytes:
    """Return a frame.

    Examples
    --------
    >>> pack(Kind.ARM, 7).hex(" ")
    'aa 55 00 02 07 19 da'
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD} bytes, not {len(payload)}")
    body = _HEAD.pack(len(payload), kind, number & 0xFF) + payload
    return SYNC + body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))


class Parser:
    """Finds frames in what arrives, in pieces of any length.

    Attributes
    ----------
    dropped : int
        Bytes that belonged to no good frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.dropped = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; return the frames that they complete."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= OVERHEAD:
            size = OVERHEAD + self._buffer[2]
            if self._buffer[:2] != SYNC or size > OVERHEAD + MAX_PAYLOAD:
                self._drop()
                continue
            if len(self._buffer) < size:
                break
            frame = self._whole(bytes(self._buffer[:size]))
            if frame is None:
                self._drop()
                continue
            frames.append(frame)
            del self._buffer[:size]
        return frames

    def _drop(self) -> None:
        """Let bytes go up to what may be the next beginning."""
        at = self._buffer.find(SYNC[0], 1)
        n = at if at > 0 else len(self._buffer)
        self.dropped += n
        del self._buffer[:n]

    @staticmethod
    def _whole(data: bytes) -> Frame | None:
        body = data[2:-2]
        if struct.pack("<H", binascii.crc_hqx(body, 0xFFFF)) != data[-2:]:
            return None
        _, kind, number = _HEAD.unpack(body[:3])
        try:
            return Frame(Kind(kind), number, body[3:])
        except ValueError:
            return None


def pack_message(message: ActuatorMessage, number: int, now: float) -> bytes:
    """Return the frame of a message that leaves now, in seconds on the clock of its `expires`."""
    match message:
        case Command():
            values = np.asarray(message.values, "<f4").tobytes()
            head = _COMMAND.pack(
                message.seq & _LARGEST_U32,
                message.tick & _LARGEST_U32,
                message.events & _LARGEST_U32,
                _remaining_us(message.expires, now),
            )
            return pack(Kind.COMMAND, number, head + values)
        case Spikes():
            n_bytes = max(1, (message.channels.bit_length() + 7) // 8)
            head = _SPIKES.pack(message.seq & _LARGEST_U32, message.tick & _LARGEST_U32)
            return pack(Kind.SPIKES, number, head + message.channels.to_bytes(n_bytes, "little"))
        case Stimulation():
            payload = _STIMULATION.pack(
                message.seq & _LARGEST_U32,
                _KINDS.index(message.kind),
                message.id & _LARGEST_U32,
                message.electrode,
                message.amplitude_ua,
                message.phase_us,
                message.interphase_us,
                message.amplitude2_ua,
                message.phase2_us,
                message.pulses,
                message.period_us,
                _remaining_us(message.expires, now),
                message.reason,
            )
            return pack(Kind.STIMULATION, number, payload)


def unpack_message(frame: Frame, now: float) -> ActuatorMessage | None:
    """Return the message of a frame that arrived now on the device's own clock; None where it is damaged or none.

    Times are on the device's clock: `t` and `t_tick` are now, `expires` is now plus what remained.
    """
    data = frame.payload
    try:
        if frame.kind is Kind.COMMAND:
            seq, tick, events, remaining = _COMMAND.unpack_from(data)
            values = np.frombuffer(data, "<f4", offset=_COMMAND.size).astype(np.float32)
            return Command(seq, tick, now, now, values, events, 0, 0, now + 1e-6 * remaining)
        if frame.kind is Kind.SPIKES:
            seq, tick = _SPIKES.unpack_from(data)
            return Spikes(seq, tick, now, now, int.from_bytes(data[_SPIKES.size :], "little"), 0)
        if frame.kind is Kind.STIMULATION:
            seq, kind, train, electrode, *wave, remaining, reason = _STIMULATION.unpack(data)
            amplitude, phase, interphase, amplitude2, phase2, pulses, period = wave
            return Stimulation(
                seq, 0, now, _KINDS[kind], train, electrode, amplitude, phase, interphase, amplitude2, phase2, pulses,
                period, now + 1e-6 * remaining, reason,
            )  # fmt: skip
    except (struct.error, ValueError, IndexError):
        pass
    return None


def pack_answer(answer: Answer, number: int) -> bytes | None:
    """Return the frame of an answer of the device; an acknowledgement is none, since frames are acknowledged."""
    match answer:
        case Reward(amount):
            return pack(Kind.REWARD, number, struct.pack("<f", amount))
        case Event(name, _, value):
            text = name if value is None else f"{name}\0{json.dumps(value)}"
            return pack(Kind.EVENT, number, text.encode()[:MAX_PAYLOAD])
        case Stimuli(values):
            return pack(Kind.STIMULI, number, np.asarray(values, "<f4").tobytes())
        case Acknowledgement():
            return None


def unpack_answer(frame: Frame, now: float) -> Answer | None:
    """Return the answer of a frame that arrived now; None where it is damaged or none."""
    try:
        if frame.kind is Kind.REWARD:
            return Reward(struct.unpack("<f", frame.payload)[0], now)
        if frame.kind is Kind.EVENT:
            name, _, value = frame.payload.decode().partition("\0")
            return Event(name, now, json.loads(value) if value else None)
        if frame.kind is Kind.STIMULI:
            return Stimuli(np.frombuffer(frame.payload, "<f4").astype(np.float32), now)
    except (struct.error, ValueError):  # broken UTF-8 and broken JSON are ValueErrors too
        pass
    return None


def _remaining_us(expires: float, now: float) -> int:
    # rounded down: a lease never grows on the way
    return min(max(0, int((expires - now) * 1e6)), _LARGEST_U32) if math.isfinite(expires) else 0
