"""Bytes that come in over serial lines: frames of actuators, of boards, and of SiliconBridge boards."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fuzz.messages import pass_on
from fuzz.target import Target
from neuromod.adapters.actuators import frames as actuator_frames
from neuromod.adapters.actuators.base import Acknowledgement, Command, Event, Reward, Spikes, Stimulation, Stimuli
from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.siliconbridge import SiliconBridge
from neuromod.engine.errors import AdapterError, ProtocolError

# The first byte of an input says whether its checksums are made right before the parser sees it: behind a checksum
# stands a second parser, which a fuzzer would never reach.


def actuator(data: bytes) -> None:
    """Frames are found, none of them twice, and messages and answers in them are read or passed over."""
    parser = actuator_frames.Parser()
    stream = _as_actuator_frames(data[1:]) if data[:1] >= b"\x80" else data[1:]
    found = []
    for start in range(0, len(stream), 7):
        found += parser.feed(stream[start : start + 7])
    assert sum(actuator_frames.OVERHEAD + len(frame.payload) for frame in found) + parser.dropped <= len(stream)
    at_once = actuator_frames.Parser()
    assert at_once.feed(stream) == found, "what arrives in pieces is not what arrives at once"
    for frame in found:
        message = actuator_frames.unpack_message(frame, 1.0)
        if message is not None:
            again = _one(actuator_frames.Parser().feed(actuator_frames.pack_message(message, frame.number, 1.0)))
            assert type(actuator_frames.unpack_message(again, 1.0)) is type(message)
        answer = actuator_frames.unpack_answer(frame, 1.0)
        if answer is not None:
            pass_on(answer)


def _one(frames: list[Any]) -> Any:
    assert len(frames) == 1
    return frames[0]


def _as_actuator_frames(data: bytes) -> bytes:
    """Take bytes for kind, length and payload, again and again; return good frames."""
    kinds, out, at = list(actuator_frames.Kind), b"", 0
    while at + 2 <= len(data):
        payload = data[at + 2 : at + 2 + min(data[at + 1], actuator_frames.MAX_PAYLOAD)]
        out += actuator_frames.pack(kinds[data[at] % len(kinds)], at, payload)
        at += 2 + len(payload)
    return out


def _actuator_seeds() -> list[bytes]:
    train = Stimulation(1, 2, 3.0, "train", 4, 5, -6.0, 7.0, 8.0, 9.0, 10.0, 11, 12.0, 13.0, 14)
    messages: list[Any] = [
        Command(1, 2, 0.0, 0.0, np.arange(3, dtype=np.float32), 1, 0, 0, 1.5),
        Spikes(1, 2, 0.0, 0.0, 0x8001, 0),
        train,
    ]
    answers: list[Any] = [Reward(0.5), Event("go", None, {"a": 1}), Event("x"), Stimuli(np.zeros(16, np.float32))]
    packed = [actuator_frames.pack_message(message, 3, 1.0) for message in messages]
    packed += [frame for answer in answers if (frame := actuator_frames.pack_answer(answer, 4))]
    assert actuator_frames.pack_answer(Acknowledgement("command", 1, 0.0), 1) is None
    whole = [b"\0" + frame for frame in packed]
    kinds = list(actuator_frames.Kind)
    loose = [b"\x80" + bytes([kinds.index(frame[3]), frame[2]]) + frame[5:-2] for frame in packed]  # type: ignore[arg-type]
    return [*whole, *loose, b"\0" + b"".join(packed)]


def fpga_wire(data: bytes) -> None:
    """COBS, CRC and the bodies of all frames: read, or refused as `ProtocolError`; what is packed again is the same."""
    parser, at_once = wire.Parser(), wire.Parser()
    stream = _as_frames(data[1:]) if data[:1] >= b"\x80" else data[1:]
    found = []
    for start in range(0, len(stream), 5):
        found += parser.feed(stream[start : start + 5])
    assert at_once.feed(stream) == found
    for frame in found:
        assert wire.pack(frame.kind, frame.sequence, frame.body, frame.version) in b"\0" + stream
        for unpack, pack in _BODIES:
            try:
                content = unpack(frame.body)
            except ProtocolError:
                continue
            again = _one(wire.Parser().feed(pack(content)))
            assert again.body == frame.body or unpack is wire.unpack_tick  # reserved bits of its flags are dropped


def _as_frames(data: bytes) -> bytes:
    kinds, out, at = list(wire.Kind), b"", 0
    while at + 3 <= len(data):
        body = data[at + 3 : at + 3 + min(data[at + 2], wire.MAX_FRAME - wire.OVERHEAD)]
        out += wire.pack(kinds[data[at] % len(kinds)], data[at + 1], body)
        at += 3 + len(body)
    return out


_BODIES: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = [
    (wire.unpack_tick, lambda c: wire.pack_tick(1, *c)),
    (wire.unpack_tick_done, lambda c: wire.pack_tick_done(1, c)),
    (wire.unpack_words, lambda c: wire.pack_words(1, *c)),
    (wire.unpack_address, lambda c: wire.pack_read(1, *c)),
    (wire.unpack_refused, lambda c: wire.pack_refused(1, *c)),
]


def _frames_of_a_board() -> list[bytes]:
    done = wire.TickDone(3, 400, tuple(range(wire.HISTORY)), np.arange(16, dtype=np.int32) - 8)
    return [
        wire.pack_tick(1, 5, np.arange(16, dtype=np.int16), np.arange(5)),
        wire.pack_tick(2, 6, np.zeros(16, dtype=np.int16)),
        wire.pack_tick_done(3, done),
        wire.pack_words(4, 0x100, [1, -2, 3]),
        wire.pack_read(5, 0, 56),
        wire.pack_written(6, 0, 4),
        wire.pack_refused(7, 1, 9),
    ]


def _fpga_seeds() -> list[bytes]:
    packed = _frames_of_a_board()
    kinds, loose = list(wire.Kind), []
    for frame in wire.Parser().feed(b"".join(packed)):
        loose.append(bytes([0x80, kinds.index(frame.kind), frame.sequence, len(frame.body)]) + frame.body)  # type: ignore[arg-type]
    return [*(b"\0" + frame for frame in packed), *loose, b"\0" + b"".join(packed)]


class _ScriptedLine:
    """Stands for a serial line: gives out what it was told, and takes everything."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.written = 0

    def read(self, timeout_s: float) -> bytes:
        return self.waiting.popleft() if self.waiting else b""

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def drain(self, quiet_s: float, at_most_s: float) -> int:
        self.waiting.clear()
        return 0

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


def board(data: bytes) -> None:
    """A board that answers with whatever frames: ticks are answered at most once each, or the board is given up."""
    device = Board("scripted", depth=3, keep_shadow=False)
    line: Any = _ScriptedLine()
    device._line = line
    device._there_before = np.zeros(3, np.uint32)
    device._boots = 1
    device._heard_ns = 0
    device._pipeline.begin(0)
    answered: list[int] = []
    now_ns, at, n_ticks = 1, 0, 0
    try:
        while at + 4 <= len(data) and at < 600:
            what, which, size = data[at] % 10, data[at + 1], min(data[at + 2], 120)
            body = data[at + 3 : at + 3 + size]
            at += 3 + size
            now_ns += 1_000_000
            if what >= len(wire.Kind):
                if device._pipeline.n_pending < 8:
                    device._pipeline.submit(n_ticks, np.zeros(16, np.int16), None)
                    n_ticks += 1
                device._ask_aside(now_ns)
                device._write_due(now_ns)
                continue
            sequence = (device._pipeline._sequence - which % 8) & 0xFFFF
            kind = list(wire.Kind)[what]
            device._take(wire.Frame(wire.VERSION, kind, sequence, body), now_ns)
            device._write_due(now_ns)
            answered += [answer.tick for answer in device._pipeline.done]
            device._pipeline.done.clear()
            if device._pipeline.suspects_reset:
                return
    except AdapterError:
        return
    assert answered == sorted(set(answered))


def _board_seeds() -> list[bytes]:
    kinds, submit = list(wire.Kind), bytes([9, 0, 0])
    seeds = []
    for tick in range(2):
        done = wire.TickDone(tick, 400, (0,) * wire.HISTORY, np.zeros(16, np.int32))
        body = _one(wire.Parser().feed(wire.pack_tick_done(1, done))).body
        seeds.append(submit * 2 + bytes([kinds.index(wire.Kind.TICK_DONE), 1 - tick, len(body)]) + body + b"\0")
    refused = _one(wire.Parser().feed(wire.pack_refused(1, 1, 0))).body
    seeds.append(submit + bytes([kinds.index(wire.Kind.REFUSED), 0, len(refused)]) + refused + b"\0")
    words = _one(wire.Parser().feed(wire.pack_words(1, 0, [1, 0, 0, 0]))).body
    seeds.append(submit + bytes([kinds.index(wire.Kind.WORDS), 0, len(words)]) + words + b"\0")
    return seeds


def siliconbridge(data: bytes) -> None:
    """A SiliconBridge board that answers with whatever bytes, in whatever pieces."""
    device = SiliconBridge("scripted", depth=2, timeout_ms=0.001, lost_ms=0.0)
    line: Any = _ScriptedLine()
    device._line = line
    step = 1 + (data[0] if data else 0) % 48
    pieces = [data[start : start + step] for start in range(1, len(data), step)]
    answered: list[int] = []
    try:
        device._next = 0
        for tick, piece in enumerate(pieces):
            device.submit(tick, np.zeros(16, np.int16))
            line.waiting.append(piece)
            answered += [answer.tick for answer in device.poll(0.0)]
    except AdapterError:
        return
    assert answered == list(range(len(answered)))


LINKS = "neuromod.adapters.fpga"
TARGETS = [
    Target("actuator_frames", actuator, _actuator_seeds, ("neuromod.adapters.actuators.frames",), 1024),
    Target("fpga_wire", fpga_wire, _fpga_seeds, (f"{LINKS}.wire",), 1024),
    Target("board", board, _board_seeds, (f"{LINKS}.board", f"{LINKS}.pipeline", f"{LINKS}.requests"), 600),
    Target(
        "siliconbridge", siliconbridge, lambda: [b"\x21" + bytes(102), b"\x05" * 40], (f"{LINKS}.siliconbridge",), 512
    ),
]
