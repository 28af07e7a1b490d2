"""A board that speaks `PROTOCOL.md`: ticks are pipelined, and whatever the line does to them is found and mended.

Damage and loss in either direction cost time, and no tick: the board runs each exactly once, in order. A board that was
reset gets the state that it should have from the host's twin of it. What cannot be mended is said: an answer that is
lost, a board that is gone.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.line import Line
from neuromod.adapters.fpga.pipeline import Pipeline
from neuromod.adapters.fpga.requests import MAX_TRIES, Requests, chunks, reader, writer
from neuromod.adapters.fpga.shadow import Shadow
from neuromod.adapters.fpga.wire import Frame, Kind, Parser
from neuromod.engine.errors import AdapterError, AdapterLostError, AdapterTimeoutError
from neuromod.engine.fixed_registers import FIXED_BLOCK, REGISTERS, register
from neuromod.engine.layout import N_CHANNELS

log = logging.getLogger(__name__)

LAYOUT_VERSION = 1
"""Of the registers, as the board tells it."""

_STATUS, _N_STATUS = wire.BOOTS_ADDRESS, 4
_LAST, _N_LAST = register("tick").address, register("v").address + N_CHANNELS - register("tick").address
_STATUS_NS = 1_000_000_000
_MAX_UNANSWERED = 3
_LOADS = 3


class Board:
    """A board on a serial line. It is a `Device`.

    Parameters
    ----------
    port : str
        Device file.
    baud : int
        Bits per second, as the board has it.
    depth : int
        Ticks under way at once, 1 to 16; 512 bytes bound it too.
    timeout_ms : float
        How long an answer may take before its tick is sent again.
    lost_ms : float
        A board that says nothing for so long is gone.
    keep_shadow : bool
        Run the twin behind the board, so that a board that was reset is loaded again and goes on.

    Attributes
    ----------
    clock_hz : int
        Of the board, once it is open.
    latency_timer_ms : int or None
        Of the USB adapter, where there is one.
    """

    has_checksum = True

    def __init__(
        self,
        port: str,
        *,
        baud: int = 3_000_000,
        depth: int = 4,
        timeout_ms: float = 100.0,
        lost_ms: float = 1000.0,
        keep_shadow: bool = True,
    ) -> None:
        self._port, self._baud = port, baud
        self._timeout_ns, self._lost_ns = int(1e6 * timeout_ms), int(1e6 * lost_ms)
        self._pipeline = Pipeline(depth, self._timeout_ns)
        self._parser = Parser()
        self._line: Line | None = None
        self._keep_shadow = keep_shadow
        self._shadow: Shadow | None = None
        self._asides: dict[int, tuple[Callable[[NDArray[np.uint32]], None], int]] = {}
        self._unanswered = 0
        self._heard_ns = self._status_ns = 0
        self._mine: dict[str, int] = {}
        self._there: dict[str, int] = {}
        self._there_before: NDArray[np.uint32] | None = None
        self._boots = 0
        self._requests = Requests(self._pipeline, self._write, self._read, self._timeout_ns, self._lost_ns)
        self.clock_hz = 0
        self.latency_timer_ms: int | None = None

    @property
    def name(self) -> str:
        """Which one."""
        return f"board at {self._port}"

    @property
    def counts(self) -> dict[str, int]:
        """Faults met so far, by name.

        damaged: frames that arrived damaged; damaged_there, overrun_there: what the board says of those it got; missed:
        times that ticks did not reach the board; timeouts; resent; repaired: answers lost whose spikes were learned
        from later ones; lost: answers for good; late, reordered, duplicated, unexpected: frames that were that; resets.
        """
        counts = dict(self._pipeline.counts)
        for more in (
            self._mine,
            self._there,
            {"damaged": self._parser.damaged, "damaged_there": self._requests.damaged},
        ):
            for what, n in more.items():
                if n:
                    counts[what] = counts.get(what, 0) + n
        return counts

    def open(self) -> None:
        """Reach the board; check that it is one, and its version.

        Raises
        ------
        AdapterError
            Where there is none, or it does not answer, or is another one; says what to do.
        """
        self.close()
        self._line = Line(self._port, self._baud)
        self.latency_timer_ms = self._line.latency_timer_ms
        try:
            self._greet(self._line)
        except BaseException:
            self.close()
            raise

    def _greet(self, line: Line) -> None:
        damaged = self._parser.damaged
        self._parser.clear()
        line.drain(0.0, 0.1)
        line.write(b"\0")
        self._heard_ns = self._status_ns = time.monotonic_ns()
        try:
            words = self._requests.make([reader(wire.MAGIC_ADDRESS, 7)])[0]
        except AdapterTimeoutError:
            bytes_in = self._parser.damaged - damaged
            raise AdapterTimeoutError(
                f"{self._port} answers, but not in our protocol: check that the board has {self._baud} baud, and "
                "that it does not speak SiliconBridge (--protocol siliconbridge)"
                if bytes_in
                else f"nothing answers at {self._port}: check that the board is programmed and its power is on, that "
                f"this is its port, and that it has {self._baud} baud"
            ) from None
        magic, version, self.clock_hz = (int(word) for word in words[:3])
        if magic != wire.MAGIC:
            raise AdapterError(
                f"{self._port} answers as 0x{magic:08X}, expected 0x{wire.MAGIC:08X}: it is another device, or "
                "programmed with something else"
            )
        protocol, n_channels, layout = version & 0xFF, version >> 8 & 0xFF, version >> 16
        if (protocol, n_channels, layout) != (wire.VERSION, N_CHANNELS, LAYOUT_VERSION):
            raise AdapterError(
                f"{self.name} speaks protocol {protocol}, with {n_channels} channels and register layout {layout}; "
                f"expected {wire.VERSION}, {N_CHANNELS} and {LAYOUT_VERSION}: program it with this version's Verilog"
            )
        if not self.clock_hz:
            raise AdapterError(f"{self.name} says that its clock has 0 Hz: program it anew")
        self._there_before = words[4:].copy()
        self._claim()
        self._pipeline.begin(int(self._requests.make([reader(_LAST, 1)])[0][0]))
        self._shadow = None

    def _claim(self) -> None:
        """Leave a mark that a reset wipes out."""
        self._boots = secrets.randbits(32) | 1
        self._requests.make([writer(wire.BOOTS_ADDRESS, [self._boots])])

    def load(self, state: NDArray[Any]) -> None:
        """Write every register, read it back, and compare. Ticks under way are forgotten.

        Raises
        ------
        AdapterError
            If a word differs, by its name.
        """
        self._write_and_compare(state)
        self._pipeline.begin(int(state[0]["tick"]))
        self._shadow = Shadow(state) if self._keep_shadow else None

    def _write_and_compare(self, state: NDArray[Any]) -> None:
        memory = np.zeros(0x300, dtype=np.int64)
        for each in REGISTERS:
            memory[each.address : each.address + each.size] = np.ravel(state[0][each.name])
        self._requests.make([writer(address, memory[address : address + n]) for address, n in chunks()])
        self._claim()
        differing = []
        back = self._read_memory()
        for each in REGISTERS:
            written = np.ravel(state[0][each.name])
            read = np.ravel(back[0][each.name])
            for k in np.flatnonzero(written != read):
                index = "".join(f"[{i}]" for i in np.unravel_index(k, each.shape)) if each.shape else ""
                differing.append(f"{each.name}{index} is {read[k]} instead of {written[k]}")
        if differing:
            raise AdapterError(
                f"{self.name} does not hold what was written: {'; '.join(differing[:4])}"
                f"{f' and {len(differing) - 4} more' if len(differing) > 4 else ''}; program it anew"
            )

    def read_state(self) -> NDArray[Any]:
        """Read every register, once no tick is under way.

        Raises
        ------
        AdapterLostError
            If the board is gone.
        """
        while self._pipeline.n_pending:
            self._turn(1e-9 * self._timeout_ns)
        return self._read_memory()

    def _read_memory(self) -> NDArray[Any]:
        memory = np.zeros(0x300, dtype=np.uint32)
        answers = self._requests.make([reader(address, n) for address, n in chunks()])
        for (address, n), words in zip(chunks(), answers, strict=True):
            memory[address : address + n] = words
        state = np.zeros(1, dtype=FIXED_BLOCK)
        for each in REGISTERS:
            words = memory[each.address : each.address + each.size]
            values = words.view(np.int32) if each.signed else words
            state[0][each.name] = values.astype(np.int64).reshape(each.shape)
        return state

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None = None) -> None:
        """Hand over one tick; returns without waiting for it.

        Raises
        ------
        AdapterError
            If it is not the next one.
        AdapterLostError
            If the board is gone.
        """
        words = None if modulation is None else np.array(modulation, dtype=np.int64)
        self._pipeline.submit(tick, np.array(stimuli, dtype=np.int16), words)
        self._write_due(time.monotonic_ns())

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return the answers that have come, in the order of their ticks; wait for the first one at most so long.

        Raises
        ------
        AdapterLostError
            If the board is gone, or was reset and there is no shadow.
        """
        end = time.monotonic() + timeout_s
        self._turn(timeout_s)
        while not self._pipeline.done and (left_s := end - time.monotonic()) > 0:
            self._turn(left_s)
        done, self._pipeline.done = self._pipeline.done, []
        return done

    def fileno(self) -> int:
        """Return what to wait on for its answers; -1 where there is none."""
        return -1 if self._line is None else self._line.fileno()

    def close(self) -> None:
        """Let go of the line. Safe to call twice; it never raises."""
        if self._line is not None:
            self._line.close()
        self._line = None
        self._asides.clear()

    # -- one turn: read, understand, write

    def _turn(self, timeout_s: float) -> None:
        now_ns = time.monotonic_ns()
        wait_ns = self._pipeline.wait_ns(now_ns)
        self._read(timeout_s if wait_ns is None else min(timeout_s, 1e-9 * wait_ns))
        if self._pipeline.suspects_reset:
            self._look_after_reset()
        now_ns = time.monotonic_ns()
        self._write_due(now_ns)
        if self._check_time(now_ns):
            self._write_due(now_ns)
        self._ask_aside(now_ns)

    def _read(self, timeout_s: float) -> None:
        data = self._open_line().read(timeout_s)
        if not data:
            return
        now_ns = time.monotonic_ns()
        for frame in self._parser.feed(data):
            self._take(frame, now_ns)
        if self._shadow is not None:
            for pending in self._pipeline.finished:
                self._shadow.follow(pending.stimuli, pending.modulation)
        self._pipeline.finished.clear()

    def _take(self, frame: Frame, now_ns: int) -> None:
        if frame.version != wire.VERSION:
            raise AdapterError(f"{self.name} speaks protocol {frame.version}, expected {wire.VERSION}")
        self._heard_ns = now_ns
        self._unanswered = 0
        if self._requests.take(frame):
            return
        if frame.sequence in self._asides:
            then, _ = self._asides.pop(frame.sequence)
            self._pipeline.settle_before(frame.sequence)
            if frame.kind == Kind.WORDS:
                then(wire.unpack_words(frame.body)[1])
        elif frame.kind not in (Kind.WORDS, Kind.WRITTEN):  # late ones, of requests that were made again
            self._pipeline.take(frame, now_ns)

    def _write_due(self, now_ns: int) -> None:
        data = self._pipeline.due(now_ns, 16 * len(self._asides))
        if data:
            self._write(data)

    def _check_time(self, now_ns: int) -> bool:
        """Return whether an answer is overdue, and something is to be sent again."""
        tried = self._pipeline.waits_for
        # refused as damaged each time it is sent again at once, and is never overdue
        if tried is not None and tried.tries > MAX_TRIES:
            raise AdapterLostError(
                f"{self.name} was given tick {tried.tick} {tried.tries} times, and does not run it: the line is "
                "too bad, or the board at fault; lower the baud rate, or program it anew"
            )
        pending = self._pipeline.overdue(now_ns)
        if pending is None:
            return False
        if pending.tries <= 1:  # nobody may have looked for long: silence counts from here
            self._heard_ns = now_ns
        self._check_silence(now_ns)
        return True

    def _check_silence(self, now_ns: int) -> None:
        if now_ns - self._heard_ns > self._lost_ns:
            raise AdapterLostError(
                f"{self.name} has said nothing for {1e-6 * (now_ns - self._heard_ns):.0f} ms; check its cable and power"
            )

    def _write(self, data: bytes) -> None:
        self._open_line().write(data)

    def _open_line(self) -> Line:
        if self._line is None:
            raise AdapterError(f"{self.name} is not open: call open first")
        return self._line

    # -- what is asked beside the ticks

    def _ask_aside(self, now_ns: int) -> None:
        for sequence, (_, asked_ns) in list(self._asides.items()):
            if now_ns - asked_ns > self._timeout_ns:
                del self._asides[sequence]
                self._unanswered += 1
                self._status_ns = 0
                if self._unanswered >= _MAX_UNANSWERED:
                    self._check_silence(now_ns)
        if self._asides or self._pipeline.bytes_under_way + 16 > wire.MAX_UNDER_WAY:
            return
        if self._pipeline.wants_registers:
            self._aside(_LAST, _N_LAST, self._take_last, now_ns)
        elif now_ns - self._status_ns > _STATUS_NS:
            self._status_ns = now_ns
            self._aside(_STATUS, _N_STATUS, self._take_status, now_ns)

    def _aside(self, address: int, n: int, then: Callable[[NDArray[np.uint32]], None], now_ns: int) -> None:
        sequence = self._pipeline.sequence()
        self._asides[sequence] = then, now_ns
        self._write(wire.pack_read(sequence, address, n))

    def _take_last(self, words: NDArray[np.uint32]) -> None:
        v = words[register("v").address - _LAST :].view(np.int32).copy()
        self._pipeline.repair(int(words[0]), int(words[1]), v, time.monotonic_ns())

    def _take_status(self, words: NDArray[np.uint32]) -> None:
        if words[0] != self._boots:
            self._pipeline.suspects_reset = True
            return
        assert self._there_before is not None
        # differences of unsigned words: right across their wrapping
        for name, n in zip(
            ("damaged_there", "refused_there", "overrun_there"), words[1:] - self._there_before, strict=True
        ):
            if name != "damaged_there":  # those are counted by their refusals, but for the ones too short for that
                self._there[name] = self._there.get(name, 0) + int(n)
        self._there_before = words[1:].copy()

    def _look_after_reset(self) -> None:
        """Find out whether the board was reset; if so, load what it should hold, and go on from there."""
        self._pipeline.suspects_reset = False
        status = self._requests.make([reader(_STATUS, _N_STATUS)])[0]
        if status[0] == self._boots:
            return
        self._mine["resets"] = self._mine.get("resets", 0) + 1
        self._there_before = status[1:].copy()
        if self._shadow is None:
            raise AdapterLostError(f"{self.name} was reset, and what it held is not known here; load it again")
        state = self._shadow.state
        log.warning("%s was reset; its state before tick %d is loaded again", self.name, state[0]["tick"])
        for attempt in range(_LOADS):
            try:
                self._write_and_compare(state)
                break
            except AdapterError as error:  # it may have been reset again meanwhile
                if attempt == _LOADS - 1 or isinstance(error, ConnectionError):
                    raise AdapterLostError(f"{self.name} was reset, and cannot be loaded again: {error}") from error
        self._pipeline.again(int(state[0]["tick"]), time.monotonic_ns())
