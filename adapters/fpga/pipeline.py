"""Which ticks are under way to a board, and what its answers say of them. No input or output here.

The board runs a tick only if it is its next one, and answers in the order of arrival. So an answer settles all frames
sent before its own; a refusal tells, by the board's next tick, which ticks have been run (their answers were lost) and
from which on to send again (go-back-N). Every transmission has a sequence of its own, so that what is said of an old
one is not taken for what is said of a new one.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.device import Answer
from neuromod.adapters.fpga.wire import Frame, Kind, Refusal, TickDone
from neuromod.engine.errors import AdapterError, ProtocolError

TICKS = 1 << 32
_REMEMBERED = 4096
_STRAYS = {
    "lost": "reordered",
    "late": "late",
    "answered": "duplicated",
    "refused": "duplicated",
    "forgotten": "",
    "unknown": "unexpected",
}
"""What an answer is, by how the frame that it answers ended before."""


@dataclass(slots=True, eq=False)
class Pending:
    """A tick that has no answer yet."""

    tick: int
    stimuli: NDArray[np.int16]
    modulation: NDArray[np.int64] | None
    first_ns: int = 0
    last_ns: int = 0
    sequence: int = -1
    tries: int = 0
    is_due: bool = True
    is_run: bool = False
    has_waited: bool = False


class Pipeline:
    """Ticks under way to one board.

    Parameters
    ----------
    depth : int
        How many may be.
    timeout_ns : int
        How long an answer may take before its tick is sent again.

    Attributes
    ----------
    counts : dict of str to int
        What went wrong, by name.
    done : list of Answer
        Answers that nobody has taken yet.
    finished : list of Pending
        Ticks of these answers, in the same order, for whoever keeps a shadow.
    suspects_reset : bool
        The board's next tick is one that it has run already, or was never given.
    """

    def __init__(self, depth: int, timeout_ns: int) -> None:
        self._depth = depth
        self._timeout_ns = timeout_ns
        self._sequence = 0
        self._queue: deque[Pending] = deque()
        self._under_way: deque[Pending] = deque()
        self._frames: dict[int, tuple[Pending, int]] = {}  # by sequence, in the order of sending: tick, bytes
        self._past: dict[int, str] = {}  # how frames before these ended
        self._next = 0  # of the caller
        self._run = 0  # ticks before this one have surely been run
        self.bytes_under_way = 0
        self.counts: dict[str, int] = {}
        self.done: list[Answer] = []
        self.finished: list[Pending] = []
        self.suspects_reset = False

    def begin(self, tick: int) -> None:
        """Begin anew: the board's next tick is this one. What is under way is forgotten; sequences go on."""
        self._queue.clear()
        self._under_way.clear()
        self.done.clear()
        self.finished.clear()
        self._forget_frames("forgotten")
        self._next = self._run = tick
        self.suspects_reset = False

    def again(self, tick: int, now_ns: int) -> None:
        """Go on after the board's state was loaded again, up to before this tick: all from it on is sent again."""
        self._forget_frames("forgotten")
        self._run = tick
        self.suspects_reset = False
        for pending in self._under_way:
            pending.is_run, pending.is_due, pending.has_waited = False, True, False
            pending.tries, pending.last_ns = 1, now_ns

    @property
    def n_pending(self) -> int:
        """How many ticks have no answer yet."""
        return len(self._under_way) + len(self._queue)

    def sequence(self) -> int:
        """Return a new sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        return self._sequence

    def submit(self, tick: int, stimuli: NDArray[np.int16], modulation: NDArray[np.int64] | None) -> None:
        """Take a tick.

        Raises
        ------
        AdapterError
            If it is not the next one.
        """
        if tick % TICKS != self._next:
            raise AdapterError(
                f"expected tick {self._next}, got {tick}: ticks follow each other, or load a state first"
            )
        self._next = (tick + 1) % TICKS
        self._queue.append(Pending(tick % TICKS, stimuli, modulation))

    # -- out

    def due(self, now_ns: int, reserved: int = 0) -> bytes:
        """Return what is to be written now: ticks that are due, as far as there is room; `reserved` bytes are taken."""
        out: list[bytes] = []
        for pending in self._under_way:
            if pending.is_due and not self._send(pending, now_ns, reserved, out):
                return b"".join(out)
        while self._queue and len(self._under_way) < self._depth + wire.HISTORY - 1:
            if not self._send(self._queue[0], now_ns, reserved, out):
                break
            self._under_way.append(self._queue.popleft())
        return b"".join(out)

    def _send(self, pending: Pending, now_ns: int, reserved: int, out: list[bytes]) -> bool:
        if len(self._frames) >= self._depth:
            return False
        sequence = (self._sequence + 1) & 0xFFFF
        frame = wire.pack_tick(sequence, pending.tick, pending.stimuli, pending.modulation)
        if self.bytes_under_way + reserved + len(frame) > wire.MAX_UNDER_WAY:
            return False
        self._sequence = sequence
        if pending.tries:
            self._count("resent")
        pending.tries += 1
        pending.first_ns = pending.first_ns or now_ns
        pending.last_ns, pending.sequence, pending.is_due = now_ns, sequence, False
        self._frames[sequence] = pending, len(frame)
        self.bytes_under_way += len(frame)
        out.append(frame)
        return True

    # -- in

    def take(self, frame: Frame, now_ns: int) -> None:
        """Take a frame that answers a tick, or one that nobody else knows."""
        try:
            if frame.kind == Kind.TICK_DONE:
                self._take_done(frame.sequence, wire.unpack_tick_done(frame.body), now_ns)
            elif frame.kind == Kind.REFUSED:
                self._take_refused(frame.sequence, *wire.unpack_refused(frame.body))
            else:
                self._count("unexpected")
        except ProtocolError:
            self._count("unexpected")

    def settle_before(self, sequence: int) -> None:
        """Frames sent before this one have been answered, or never will be."""
        for earlier in [s for s in self._frames if _ahead16(s, sequence) < 0]:
            self._end(earlier, "lost")

    def _take_done(self, sequence: int, done: TickDone, now_ns: int) -> None:
        if sequence in self._frames:
            pending = self._frames[sequence][0]
            if pending.tick != done.tick:
                self._count("unexpected")
                return
            self.settle_before(sequence)
            self._end(sequence, "answered")
        else:
            ended = self._past.get(sequence, "unknown")
            self._count_stray(ended)
            self._past[sequence] = "answered"
            if ended not in ("late", "lost"):
                return
        if _ahead(done.tick, self._run) >= 0:
            self._run = (done.tick + 1) % TICKS
        self._resolve(done, now_ns)

    def _resolve(self, done: TickDone, now_ns: int) -> None:
        """Give answers to every tick up to the one that is done; to those before it from its history."""
        while self._under_way and (back := _ahead(done.tick, self._under_way[0].tick)) >= 0:
            pending = self._under_way.popleft()
            took_ns = now_ns - pending.first_ns
            if back == 0:
                is_repaired = pending.tries > 1
                answer = Answer(pending.tick, done.spikes[0], done.v, -1, took_ns, done.clocks, False, is_repaired)
            elif back < wire.HISTORY:
                answer = Answer(pending.tick, done.spikes[back], None, -1, took_ns, is_repaired=True)
                self._count("repaired")
            else:
                answer = Answer(pending.tick, 0, is_lost=True)
                self._count("lost")
            self._finish(pending, answer)

    def _count_stray(self, ended: str) -> None:
        self._count(_STRAYS[ended], int(ended != "forgotten"))

    def _finish(self, pending: Pending, answer: Answer) -> None:
        pending.is_due = False
        self.done.append(answer)
        self.finished.append(pending)

    def _take_refused(self, sequence: int, reason: int, board_next: int) -> None:
        known = self._frames.get(sequence)
        if reason == Refusal.DAMAGED:
            self._count("damaged_there")
        elif known is None:
            ended = self._past.get(sequence, "unknown")  # a frame that arrived twice is run once, and refused once
            self._count_stray(ended if ended in ("answered", "refused", "unknown") else "forgotten")
            return
        elif reason not in (Refusal.PAST, Refusal.FUTURE):
            raise AdapterError(f"the board refuses a tick, reason {reason}: it does not speak protocol {wire.VERSION}")
        if known is not None:
            self.settle_before(sequence)
            self._end(sequence, "refused")
        if _ahead(board_next, self._run) < 0 or _ahead(board_next, self._next) > 0:
            self.suspects_reset = True
            return
        self._mark_run(board_next)
        for pending in self._under_way:
            if pending.tick == board_next and not pending.is_due:
                # sent again since that frame: then this is old news
                if known is None or _ahead16(pending.sequence, sequence) <= 0:
                    self._count("missed", int(reason == Refusal.FUTURE))
                    self._go_back()
                return

    def _mark_run(self, board_next: int) -> None:
        self._run = board_next
        for pending in self._under_way:
            if _ahead(pending.tick, board_next) < 0:
                pending.is_run, pending.is_due = True, False

    def _go_back(self) -> None:
        """Everything that was not run is sent again."""
        for pending in self._under_way:
            pending.is_due = not pending.is_run

    # -- time

    def overdue(self, now_ns: int) -> Pending | None:
        """Return the oldest tick where its answer is overdue; frames under way are given up then, and sent again."""
        if not self._under_way:
            return None
        waited_for = self._waited_for()
        if now_ns - waited_for.last_ns < self._timeout_ns:
            return None
        self._count("timeouts")
        self._forget_frames("late")
        self._go_back()
        waited_for.has_waited, waited_for.last_ns = True, now_ns
        return waited_for

    def wait_ns(self, now_ns: int) -> int | None:
        """Return how long until something may be overdue; None for never."""
        return max(0, self._waited_for().last_ns + self._timeout_ns - now_ns) if self._under_way else None

    @property
    def waits_for(self) -> Pending | None:
        """The oldest tick that the board has not run, or else the oldest; None where none is under way."""
        return self._waited_for() if self._under_way else None

    def _waited_for(self) -> Pending:
        oldest = self._under_way[0]
        if not oldest.is_run:
            return oldest
        return next((pending for pending in self._under_way if not pending.is_run), oldest)

    @property
    def wants_registers(self) -> bool:
        """Whether only registers still tell what the oldest tick gave: it was run, and no later one will tell."""
        if not self._under_way or not self._under_way[0].is_run or self._queue or self._frames:
            return False
        if any(pending.is_due for pending in self._under_way):
            return False
        return len(self._under_way) == 1 or self._under_way[0].has_waited

    def repair(self, board_next: int, spikes: int, v: NDArray[np.int32], now_ns: int) -> None:
        """Take the board's registers for the answer to the last tick that was run; those before it are lost."""
        if _ahead(board_next, self._run) != 0:
            return  # it has gone on meanwhile
        while self._under_way and self._under_way[0].is_run:
            pending = self._under_way.popleft()
            if (pending.tick + 1) % TICKS == board_next:
                self._count("repaired")
                took_ns = now_ns - pending.first_ns
                self._finish(pending, Answer(pending.tick, spikes, v, -1, took_ns, is_repaired=True))
            else:
                self._count("lost")
                self._finish(pending, Answer(pending.tick, 0, is_lost=True))

    # -- frames

    def _end(self, sequence: int, how: str) -> None:
        _, size = self._frames.pop(sequence)
        self.bytes_under_way -= size
        self._past[sequence] = how
        if len(self._past) > _REMEMBERED:
            del self._past[next(iter(self._past))]

    def _forget_frames(self, how: str) -> None:
        for sequence in list(self._frames):
            self._end(sequence, how)

    def _count(self, what: str, n: int = 1) -> None:
        if n:
            self.counts[what] = self.counts.get(what, 0) + n


def _ahead(a: int, b: int) -> int:
    """How far a tick is ahead of another, both modulo 2^32."""
    return ((a - b + TICKS // 2) % TICKS) - TICKS // 2


def _ahead16(a: int, b: int) -> int:
    return ((a - b + 0x8000) & 0xFFFF) - 0x8000
