"""Slow, obvious twin of the boards' protocols: bytes in, answers out, one after the other, as PROTOCOL.md says."""

import struct
import zlib
from typing import Any

import numpy as np

from neuromod.engine.fixed_registers import FIXED_BLOCK, REGISTERS
from neuromod.engine.fixed_tick import fixed_tick

PLACES = {register.address + k: (register, k) for register in REGISTERS for k in range(register.size)}
"""Register, and which of its numbers, by address."""


class NaiveBoard:
    """A board that speaks our frames; `state` is its network."""

    def __init__(self, state: Any = None) -> None:
        self.state = np.zeros(1, FIXED_BLOCK) if state is None else state.copy()
        self.buffer = b""
        self.spikes = [0, 0, 0]
        self.boots = self.damaged = self.refused = self.overrun = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the answers, without their CRC; those to ticks with 0 clocks."""
        *chunks, self.buffer = (self.buffer + data).split(b"\0")
        answers = [self._answer(chunk) for chunk in chunks if chunk]
        return [answer for answer in answers if answer is not None]

    def _answer(self, chunk: bytes) -> bytes | None:
        frame, is_wrong = _decoded(chunk)
        if len(frame) < 8:
            self.damaged += 1
            return None
        version, kind, sequence = struct.unpack_from("<BBH", frame)
        body = frame[4:-4]
        if is_wrong or zlib.crc32(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
            self.damaged += 1
            return self._refusal(sequence, 1)
        tick = int(self.state[0]["tick"])
        if version != 1:
            reason = 2
        elif kind == 2 and len(body) in (37, 57) and len(body) == 37 + 20 * (body[4] & 1):
            ahead = (struct.unpack_from("<I", body)[0] - tick) % 2**32
            reason = 0 if ahead == 0 else 3 if ahead >= 2**31 else 4
        elif kind in (3, 4) and len(body) >= 3:
            address, n = struct.unpack_from("<HB", body)
            good = 1 <= n <= 56 and len(body) == 3 + (4 * n if kind == 3 else 0)
            reason = 2 if not good else 5 if address + n > 0x400 else 0
        else:
            reason = 2
        if reason:
            self.refused += 1
            return self._refusal(sequence, reason)
        head = struct.pack("<BBH", 1, kind | 0x80, sequence)
        if kind == 2:
            return head + self._tick(tick, body)
        if kind == 3:
            for k, word in enumerate(struct.unpack_from(f"<{n}I", body, 3)):
                self._write(address + k, word)
            return head + body[:3]
        return head + body + b"".join(struct.pack("<I", self._read(address + k)) for k in range(n))

    def _refusal(self, sequence: int, reason: int) -> bytes:
        return struct.pack("<BBHBI", 1, 0xFF, sequence, reason, int(self.state[0]["tick"]))

    def _tick(self, tick: int, body: bytes) -> bytes:
        if body[4] & 1:
            for k, word in enumerate(struct.unpack_from("<5I", body, 37)):
                self._write(k, word)
        before = int(self.state[0]["spikes"])
        spikes = fixed_tick(self.state, np.frombuffer(body, "<i2", 16, 5).astype(np.int16))
        self.spikes = [before, *self.spikes[:2]]
        v = b"".join(int(word).to_bytes(3, "little", signed=True) for word in self.state[0]["v"])
        return struct.pack("<IH4H", tick, 0, spikes, *self.spikes) + v

    def _write(self, address: int, word: int) -> None:
        if address == 0x3F3:
            self.boots = word
        if address in PLACES:
            register, k = PLACES[address]
            word &= (1 << register.bits) - 1
            value = word - (1 << register.bits) if register.signed and word >> (register.bits - 1) else word
            self.state[register.name].reshape(-1)[k] = value

    def _read(self, address: int) -> int:
        if address in PLACES:
            register, k = PLACES[address]
            return int(self.state[register.name].reshape(-1)[k]) & 0xFFFF_FFFF
        own = [0x4E4D4F44, 1 << 16 | 16 << 8 | 1, 100_000_000, self.boots, self.damaged, self.refused, self.overrun]
        return own[address - 0x3F0] if 0x3F0 <= address <= 0x3F6 else 0


def _decoded(chunk: bytes) -> tuple[bytes, bool]:
    """What COBS code stands for, as far as a frame can be long, and whether it is wrong or goes on beyond that."""
    frame, at = b"", 0
    is_wrong = False
    while at < len(chunk):
        code = chunk[at]
        block = chunk[at + 1 : at + code]
        is_wrong = is_wrong or len(block) != code - 1
        frame += block
        at += code
        if code != 0xFF and at < len(chunk):
            frame += b"\0"
    return frame[:253], is_wrong or len(frame) > 253


class NaiveSiliconBridge:
    """A board that speaks SiliconBridge v3.0; `state` is its network."""

    def __init__(self, state: Any, switches: int = 0) -> None:
        self.state, self.switches = state.copy(), switches
        self.buffer = b""

    def feed(self, data: bytes) -> bytes:
        """Return what it answers."""
        self.buffer += data
        out = b""
        while (size := self._size()) and size <= len(self.buffer):
            command, self.buffer = self.buffer[:size], self.buffer[size:]
            out += self._answer(command)
        return out

    def _size(self) -> int:
        if not self.buffer:
            return 0
        if self.buffer[0] == 0xDE:
            return 3 + 2 * self.buffer[2] if len(self.buffer) >= 3 else 3
        return {0xAA: 33, 0xDD: 3, 0xEE: 2}.get(self.buffer[0], 1)

    def _answer(self, command: bytes) -> bytes:
        block = self.state[0]
        words = struct.unpack(f">{len(command[1:]) // 2}h", command[1 : 1 + len(command[1:]) // 2 * 2])
        if command[0] == 0xAA:
            spikes = fixed_tick(self.state, np.array(words, np.int16))
            return struct.pack(">16h2H", *(block["v"] >> 8).tolist(), spikes, self.switches)
        if command[0] == 0xDD:
            block["learning_factor"] = words[0] << 16
        if command[0] == 0xDE:
            for k, word in enumerate(struct.unpack(f">{command[2]}h", command[3:])):
                index = command[1] + k
                if index < 32:
                    block["threshold" if index < 16 else "gain"][index % 16] = word
        if command[0] == 0xEE:
            index = command[1]
            word = int(block["threshold" if index < 16 else "gain"][index % 16]) if index < 32 else 0
            return struct.pack(">Bh", 0xA6, word)
        return b""
