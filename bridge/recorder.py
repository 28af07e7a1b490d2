"""The recorder: takes records from the other threads, and writes them to the log of the session in its own.

Nothing here ever waits for the disk but the recorder's threads. What does not fit into the queue is counted and left
out, and the gap shows in the numbers of the records. A disk that is full, or fails, ends the recording and nothing
else: it is announced ahead, and the log still gets its end.
"""

import contextlib
import logging
import math
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.ring import SampleRing, available, peek, refused, release
from neuromod.bridge.session_log import SEGMENT_BYTES, LogWriter
from neuromod.engine.errors import SessionLogError

log = logging.getLogger(__name__)

Announce = Callable[[str, str, dict[str, Any]], None]
"""Called with what happened ("disk" or "ended"), a sentence, and numbers."""

SAMPLES = "samples"
RESERVE = "reserve"
RESERVE_BYTES = 1 << 20

QUEUE_BYTES = 32 << 20
"""What may wait to be written; more is left out."""

_TURN_S = 0.05  # a quarter of the 0.2 s within which records are to be with the operating system
_SYNC_S = 1.0
_LARGEST_CHUNK = 1 << 20
WARN_FREE_S = 600.0
"""Time at the present rate that the disk lasts for, below which it is announced."""
_CHECK_S = 1.0
_RATE_TAU_S = 10.0  # over which the rate of writing is averaged, by which the time to a full disk is told


class _Entry(NamedTuple):
    kind: str
    first: int
    n: int
    payload: bytes


def sample_dtype(n_channels: int) -> np.dtype[Any]:
    """Return the layout of a raw sample: its stamp as the source gave it, in seconds, and its values."""
    return np.dtype([("stamp", np.float64), ("values", np.float32, (n_channels,))], align=True)


def pack(body: Mapping[str, Any]) -> bytes:
    """Pack a message; numpy's numbers and arrays, paths and sets become plain ones."""
    return bytes(msgpack.packb(dict(body), default=_plain))


class Recorder:
    """Writes a log in a thread of its own.

    Parameters
    ----------
    folder : Path
        An existing folder without a log.
    metadata : mapping
        For the header of the log.
    kinds : mapping of str to dtype or None
        Kinds of records, with the layout of theirs; None for messages.
    min_free_bytes : int
        Free space that is left to others: with less, the recording ends.
    warn_free_bytes, warn_free_s : int, float
        Space beyond `min_free_bytes`, in bytes and in seconds at the present rate, below which it is announced; and
        again each time that it has halved.
    queue_bytes : int
        What may wait to be written; more is left out, and counted.
    segment_bytes : int
        Length of a file of the log.
    announce : callable, optional
        Told when the disk runs low and when the recording ends, on the recorder's thread.
    free_bytes : callable, optional
        Returns the free space of the disk, in bytes.

    Raises
    ------
    OSError
        Where the log cannot be begun.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, Any],
        kinds: Mapping[str, np.dtype[Any] | None],
        *,
        min_free_bytes: int = 256 << 20,
        warn_free_bytes: int = 4 << 30,
        warn_free_s: float = WARN_FREE_S,
        queue_bytes: int = QUEUE_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        announce: Announce | None = None,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.folder, self.kinds = folder, dict(kinds)
        in_order = sorted(kinds, key=lambda name: kinds[name] is not None)
        self._order = {name: place for place, name in enumerate(in_order)}
        self._min_free, self._warn_free, self._warn_free_s = min_free_bytes, warn_free_bytes, warn_free_s
        self._queue_bytes = queue_bytes
        self._announce = announce
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(folder).free)
        self._lock = threading.Lock()  # for the queue and the numbers of records; never held while writing
        self._queue: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._next = dict.fromkeys(kinds, 0)
        self._lost: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._ring: SampleRing | None = None
        self._buffer: NDArray[Any] = np.empty(0)
        self._refused = 0
        self._taken = 0  # samples taken from the ring
        self._gaps: deque[tuple[int, int]] = deque()  # of samples: before how many taken, and how many are missing
        self._why = ""
        self._stop, self._is_closing = threading.Event(), False
        self._threads: list[threading.Thread] = []
        self._failed_sync: OSError | None = None
        self._turn_since = self._sync_since = 0.0  # when a thread began with what it writes now
        self._rate = 0.0
        self._seen: tuple[float, int] = (time.monotonic(), 0)
        self._free: int = self._free_bytes()
        self._next_check = self._seen[0] + _CHECK_S
        self._warn_below = 1.0
        self._reserve = folder / RESERVE
        # random, so that no file system makes less of it than it is
        self._reserve.write_bytes(os.urandom(RESERVE_BYTES))
        self._writer = LogWriter(folder, metadata, kinds, segment_bytes=segment_bytes)

    # -- from any thread ----------------------------------------------------------------------------------------------

    @property
    def is_recording(self) -> bool:
        """False once the recording has ended, for whatever reason."""
        return not self._why

    @property
    def records_samples(self) -> bool:
        """Whether raw samples are taken from their ring."""
        return self._ring is not None and self.is_recording

    def add(self, kind: str, records: NDArray[Any]) -> bool:
        """Leave records to be written; they are copied. False, and counted, where they cannot be.

        Parameters
        ----------
        kind : str
            As named to the constructor.
        records : ndarray of that kind's dtype, shape (n,)
        """
        if records.dtype != self.kinds[kind]:
            raise SessionLogError(f"{kind} are records of {self.kinds[kind]}, not of {records.dtype}")
        return not len(records) or self._leave(kind, records.shape[0], records.tobytes())

    def add_message(self, kind: str, body: Mapping[str, Any]) -> bool:
        """Leave a message to be written. False, and counted, where it cannot be."""
        if self.kinds[kind] is not None:
            raise SessionLogError(f"{kind} are records: leave them with add()")
        return self._leave(kind, 1, pack(body))

    def record_samples(self, ring: SampleRing) -> None:
        """Take raw samples, the kind "samples", from this ring from now on; the recorder is its consumer.

        Where the ring is full, its producer leaves out what does not fit and adds it to the ring's count of refused.
        """
        dtype = sample_dtype(ring.samples.shape[1])
        if self.kinds.get(SAMPLES) != dtype:
            raise SessionLogError(f"the log has no kind {SAMPLES!r} of {ring.samples.shape[1]} channels")
        self._buffer = np.zeros(max(1, _LARGEST_CHUNK // dtype.itemsize), dtype)
        available(ring.ends), peek(ring.ends, ring.stamps.shape[0], 0), release(ring.ends, 0)  # compiled now, not later
        self._refused = int(refused(ring.ends))
        self._ring = ring

    def status(self) -> dict[str, Any]:
        """Return how the recording is, for `health`."""
        with self._lock:
            waiting, lost, written = self._waiting_bytes, dict(self._lost), dict(self._written)
        left_s = self._left_s()
        return {
            "state": "ended" if self._why else "recording",
            "why": self._why,
            "folder": str(self.folder),
            "bytes": self._writer.n_bytes,
            "segments": self._writer.segment + 1,
            "bytes_per_s": round(self._rate),
            "records": written,
            "lost": {kind: count for kind, count in lost.items() if count},
            "waiting_bytes": waiting,
            "busy_s": self._busy_s(),
            "free_bytes": self._free,
            "free_s": left_s if math.isfinite(left_s) else None,
        }

    # -- begin and end ------------------------------------------------------------------------------------------------

    def write_message(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write a message at once, before the recorder's thread has started.

        Raises
        ------
        OSError
            Where it cannot be written.
        """
        if self._threads:
            raise SessionLogError("the recorder is running: leave messages with add_message()")
        self._writer.write(kind, self._next[kind], 1, pack(body))
        self._next[kind] += 1
        self._written[kind] += 1

    def start(self) -> None:
        """Start the recorder's threads."""
        self._seen = (time.monotonic(), self._writer.n_bytes)
        self._next_check = self._seen[0] + _CHECK_S
        self._threads = [
            threading.Thread(target=self._run, name="neuromod-recorder", daemon=True),
            # apart: while a slow disk takes its time, records still go to the operating system
            threading.Thread(target=self._sync, name="neuromod-recorder-sync", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self, why: str = "closed") -> None:
        """Write what waits, and the end of the log. Safe to call twice."""
        if self._is_closing:
            return
        self._is_closing = True
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if not self._why:
            self._turn()
        if not self._why:
            self._end(why, is_failed=False)
        with contextlib.suppress(OSError):
            self._writer.sync()
        self._writer.close()

    # -- the recorder's threads ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(_TURN_S) and not self._why:
            self._turn()

    def _sync(self) -> None:
        while not self._stop.wait(_SYNC_S):
            self._sync_since = time.monotonic()
            try:
                self._writer.sync()
            except OSError as error:
                self._failed_sync = error
                return
            finally:
                self._sync_since = 0.0

    def _busy_s(self) -> float:
        """For how long the slower of both threads has been at what it writes now."""
        now = time.monotonic()
        return max(now - since if since else 0.0 for since in (self._turn_since, self._sync_since))

    def _turn(self) -> None:
        """Write what waits; whatever goes wrong ends the recording."""
        self._turn_since = time.monotonic()
        try:
            if self._failed_sync is not None:
                raise self._failed_sync
            self._write_queue()
            while self._ring is not None and self._write_samples(self._ring):
                self._write_queue()  # samples that come as fast as they are written hold up nothing else
            now = time.monotonic()
            if now >= self._next_check:
                self._next_check = now + _CHECK_S
                self._check_space(now)
        except OSError as error:
            self._end(f"{error.strerror or error}", is_failed=True)
        except Exception as error:
            log.exception("the recorder failed")
            self._end(f"the recorder failed: {error}", is_failed=True)
        finally:
            self._turn_since = 0.0

    def _write_queue(self) -> None:
        with self._lock:
            entries = list(self._queue)
            self._queue.clear()
        runs: dict[str, list[list[_Entry]]] = {}
        for entry in entries:
            of_kind = runs.setdefault(entry.kind, [])
            if of_kind and _goes_on(of_kind[-1], entry):
                of_kind[-1].append(entry)
            else:
                of_kind.append([entry])
        # messages first, then records in the order of their kinds: what is cut off by a kill, nothing before it needs
        for kind in sorted(runs, key=self._order.__getitem__):
            for run in runs[kind]:
                self._write(run)

    def _write(self, run: list[_Entry]) -> None:
        """Write neighbours of one kind as a chunk."""
        payload = run[0].payload if len(run) == 1 else b"".join(entry.payload for entry in run)
        kind, count = run[0].kind, sum(entry.n for entry in run)
        self._writer.write(kind, run[0].first, count, payload)
        with self._lock:
            self._waiting_bytes -= len(payload)
            self._written[kind] += count

    def _write_samples(self, ring: SampleRing) -> bool:
        """Write waiting samples, as many as fit into a chunk; return whether more than those may wait.

        A full ring refuses all that comes until samples are released. So what was refused between two releases belongs
        behind the sample that filled the ring, the capacity of the ring after the first one taken by the second.
        """
        capacity, buffer = ring.stamps.shape[0], self._buffer
        n = min(int(available(ring.ends)), len(buffer))
        if n:
            at = int(peek(ring.ends, capacity, 0))
            before_end = min(n, capacity - at)
            for first, start, stop in ((0, at, at + before_end), (before_end, 0, n - before_end)):
                part = buffer[first : first + stop - start]
                part["stamp"], part["values"] = ring.stamps[start:stop], ring.samples[start:stop]
            release(ring.ends, n)
        count = int(refused(ring.ends))
        if count > self._refused:
            self._gaps.append((self._taken + capacity, count - self._refused))
            with self._lock:
                self._lost[SAMPLES] += count - self._refused
            self._refused = count
        done = 0
        while done < n:
            while self._gaps and self._gaps[0][0] <= self._taken:
                with self._lock:
                    self._next[SAMPLES] += self._gaps.popleft()[1]
            stop = min(n, done + self._gaps[0][0] - self._taken) if self._gaps else n
            part = buffer[done:stop]
            with self._lock:
                first = self._next[SAMPLES]
                self._next[SAMPLES] += len(part)
            self._writer.write(SAMPLES, first, len(part), part.view(np.uint8).data)
            self._written[SAMPLES] += len(part)
            self._taken += len(part)
            done = stop
        return n == len(buffer)

    def _check_space(self, now: float) -> None:
        self._free = self._free_bytes()
        then, written = self._seen
        self._seen = (now, self._writer.n_bytes)
        rate = (self._writer.n_bytes - written) / max(now - then, 1e-3)
        self._rate += (rate - self._rate) * (-math.expm1((then - now) / _RATE_TAU_S) if self._rate else 1.0)
        if self._free < self._min_free:
            self._end(f"the disk is full: {_amount(self._free)} are free, and {_amount(self._min_free)} stay so")
            return
        room, left_s = self._free - self._min_free, self._left_s()
        level = min(room / max(self._warn_free, 1), left_s / self._warn_free_s)
        if level < self._warn_below:
            self._warn_below = level / 2.0
            time_left = f", or {left_s / 60.0:.1f} min at this rate" if math.isfinite(left_s) else ""
            self._tell(
                "disk",
                f"the recording has room for {_amount(room)} more{time_left}; make room, or it ends",
                {"free_bytes": self._free, "free_s": left_s if math.isfinite(left_s) else None},
            )
        elif level > 2.0:  # room was made, and not by a little
            self._warn_below = 1.0

    def _left_s(self) -> float:
        """Seconds until the space that may be used is, at the present rate."""
        return max(0, self._free - self._min_free) / self._rate if self._rate > 0.0 else math.inf

    def _end(self, why: str, *, is_failed: bool = True) -> None:
        """Write the end of the log, into the room that was reserved for it where there is no other."""
        with self._lock:
            self._why = why
            self._queue.clear()
            self._waiting_bytes = 0
            for kind, count in self._next.items():
                self._lost[kind] = count - self._written[kind] + sum(n for _, n in self._gaps if kind == SAMPLES)
            body = {
                "why": why,
                "failed": is_failed,
                "records": {kind: self._written[kind] for kind in self.kinds},
                "lost": {kind: count for kind, count in self._lost.items() if count},
                "bytes": self._writer.n_bytes,
            }
        self._reserve.unlink(missing_ok=True)
        try:
            self._write_end(body)
        except OSError as error:
            log.error("the log of the session has no end: %s", error)
        if is_failed:
            self._tell("ended", f"the recording has ended: {why}; the session goes on without it", body)

    def _write_end(self, body: dict[str, Any]) -> None:
        try:
            self._writer.write_end(body)
        except OSError:  # a file that takes no more says nothing of the next one
            self._writer.next_segment()
            self._writer.write_end(body)

    def _tell(self, what: str, sentence: str, numbers: dict[str, Any]) -> None:
        log.warning("%s", sentence)
        if self._announce is not None:
            try:
                self._announce(what, sentence, numbers)
            except Exception:
                log.exception("nobody could be told")

    def _leave(self, kind: str, count: int, payload: bytes) -> bool:
        with self._lock:
            if self._why:
                self._lost[kind] += count
                return False
            first = self._next[kind]
            self._next[kind] += count
            if self._waiting_bytes + len(payload) > self._queue_bytes:
                self._lost[kind] += count
                return False
            self._waiting_bytes += len(payload)
            self._queue.append(_Entry(kind, first, count, payload))
        return True


def _goes_on(run: list[_Entry], entry: _Entry) -> bool:
    """Say whether an entry belongs into the chunk of those before it."""
    last = run[-1]
    size = sum(len(other.payload) for other in run) + len(entry.payload)
    return entry.first == last.first + last.n and size <= _LARGEST_CHUNK


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a message of the log takes plain data, not {type(value).__name__}")
