"""The log of a session: numbered, checksummed chunks in segment files, appended to and never changed.

A log is a folder of segments, ``log-000000.nmlog`` and so on, each a row of chunks without anything between them. All
numbers are little-endian. A chunk is 48 bytes of head, then its payload:

====== ====== =====================================================================================================
offset type   meaning
====== ====== =====================================================================================================
0      8 byte marker, ``f5 4e 4d 4c 4f 47 0d 0a``
8      u32    tag of the log, the same in all its chunks
12     u32    kind: 0 header, 1 end, 2 end of segment, 16 and on as the header says
16     u64    sequence: number of the chunk in the log, from 0, over all segments
24     u64    first: number of its first record among those of its kind, from 0
32     u32    count: records in it
36     u32    length of the payload, in bytes
40     u32    CRC-32 of the payload
44     u32    CRC-32 of the 44 bytes before
====== ====== =====================================================================================================

A head that vouches for itself says how long the chunk is even where its payload is damaged, and the marker is how a
reader finds the next one where the head is. Records that were lost before they were written leave a gap in `first`,
chunks that were lost afterwards one in `sequence`.

A segment begins with its header, twice: a msgpack map of ``format``, ``version``, ``tag``, ``segment``, ``metadata``
and ``kinds``, which for each kind has its number and either the layout of its records or nothing for messages. A record
is a row of bytes of that layout; a message is a msgpack map. A segment ends with a chunk of kind 2 once the next one
exists, the log with one of kind 1, which says why it ended and what was written. What was killed has neither, and may
end within a chunk.

Each chunk is handed to the operating system by a plain `write`: killing the process loses none that was written.
"""

import contextlib
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import SessionLogError

FORMAT = "neuromod-session-log"
FORMAT_VERSION = 1

MARKER = b"\xf5NMLOG\r\n"
HEADER, END, SEGMENT_END, FIRST_KIND = 0, 1, 2, 16
_FIXED = {HEADER: "header", END: "end", SEGMENT_END: "segment"}
"""Kinds that every log has; their chunks hold messages."""

HEAD = struct.Struct("<8sIIQQIII")
HEAD_BYTES = HEAD.size + 4
LONGEST_PAYLOAD = 1 << 28
"""Bytes. A head that claims more is none."""

_NOT_MSGPACK = (ValueError, TypeError, OverflowError)
"""What msgpack raises for bytes that are none, or keys that no map can have."""

SEGMENT_BYTES = 1 << 30
_SCAN_BYTES = 1 << 20


class _Head(NamedTuple):
    tag: int
    kind: int
    sequence: int
    first: int
    n_records: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one kind.

    Attributes
    ----------
    kind : str
        Its name.
    first, count : int
        Number of the first record among those of its kind, and how many there are.
    sequence : int
        Number of the chunk in the log.
    payload : bytes
        The records, one after the other; empty where they were not asked for.
    dtype : dtype or None
        Layout of a record; None for messages.
    """

    kind: str
    first: int
    count: int
    sequence: int
    payload: bytes = field(repr=False)
    dtype: np.dtype[Any] | None = field(repr=False)

    def array(self) -> NDArray[Any]:
        """Return the records, read-only; shape (count,)."""
        if self.dtype is None:
            raise TypeError(f"{self.kind} are messages: read them with messages()")
        if len(self.payload) != self.count * self.dtype.itemsize:
            raise SessionLogError(
                f"chunk {self.sequence} of the log, {self.kind}: expected {self.count} records of "
                f"{self.dtype.itemsize} bytes, got {len(self.payload)} bytes"
            )
        return np.frombuffer(self.payload, self.dtype)

    def messages(self) -> list[Any]:
        """Return the messages."""
        if self.dtype is not None:
            raise TypeError(f"{self.kind} are records: read them with array()")
        unpacker = msgpack.Unpacker(max_buffer_size=LONGEST_PAYLOAD, strict_map_key=False)
        unpacker.feed(self.payload)
        try:
            found = list(unpacker)
        except _NOT_MSGPACK as error:
            raise SessionLogError(f"chunk {self.sequence} of the log, {self.kind}, is no msgpack: {error}") from None
        if not all(isinstance(message, dict) for message in found):
            raise SessionLogError(f"chunk {self.sequence} of the log, {self.kind}, holds what is no message")
        return found


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where a log is not what its writer wrote.

    Attributes
    ----------
    what : {"torn", "damaged", "missing"}
        torn: the last chunk was not written to its end, as when the writer is killed. damaged: bytes are not those that
        were written. missing: chunks or a segment are not there.
    segment : str
        Name of the file.
    offset, n_bytes : int
        Where in it, and how many bytes cannot be read.
    n_chunks : int
        Chunks lost, where the numbers of their neighbours tell; else 0.
    reason : str
        What was found.
    """

    what: str
    segment: str
    offset: int
    n_bytes: int
    n_chunks: int
    reason: str

    def __str__(self) -> str:
        return f"{self.segment} at byte {self.offset}: {self.what}, {self.reason}"


def describe(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the layout of a structured dtype as plain data, little-endian, padding included."""
    dtype = dtype.newbyteorder("<")
    if dtype.names is None or dtype.fields is None:
        raise SessionLogError(f"a kind of record is a structured dtype, not {dtype}")
    fields = []
    for name in dtype.names:
        inner, offset = dtype.fields[name][:2]
        base, shape = inner.subdtype if inner.subdtype is not None else (inner, ())
        if base.hasobject:
            raise SessionLogError(f"field {name!r} holds Python objects, which have no layout")
        fields.append([name, base.str if base.names is None else describe(base), list(shape), offset])
    return {"bytes": dtype.itemsize, "fields": fields}


def dtype_of(layout: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the dtype that `describe` described."""
    fields = layout["fields"]
    formats = [
        (dtype_of(base) if isinstance(base, Mapping) else np.dtype(base), tuple(shape)) for _, base, shape, _ in fields
    ]
    return np.dtype(
        {
            "names": [name for name, *_ in fields],
            "formats": formats,
            "offsets": [offset for *_, offset in fields],
            "itemsize": layout["bytes"],
        }
    )


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"log-{number:06d}.nmlog"


def segments(folder: Path) -> list[Path]:
    """Return the files of a log, in order."""
    return sorted(folder.glob("log-*.nmlog"))


class LogWriter:
    """Appends chunks. One thread writes; another may call `sync`.

    Parameters
    ----------
    folder : Path
        An existing folder without a log.
    metadata : mapping
        What a reader should know of the log; anything that msgpack takes.
    kinds : mapping of str to dtype or None
        Kinds of records by name, with the layout of theirs; None for messages.
    segment_bytes : int
        A segment that would grow beyond this ends, and another one begins.

    Raises
    ------
    OSError
        Where the first segment cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, Any],
        kinds: Mapping[str, np.dtype[Any] | None],
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder, self.segment_bytes = folder, segment_bytes
        self.n_bytes = 0
        self._numbers = {name: number for number, name in enumerate(kinds, FIRST_KIND)}
        if clash := set(kinds) & set(_FIXED.values()):
            raise SessionLogError(f"the kinds {sorted(clash)} are the log's own; choose other names")
        self._tag = int.from_bytes(secrets.token_bytes(4))
        self._header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "tag": self._tag,
            "metadata": dict(metadata),
            "kinds": {
                name: [number, None if kinds[name] is None else describe(kinds[name])]  # type: ignore[arg-type]
                for name, number in self._numbers.items()
            },
        }
        self._sequence = 0
        self._lock = threading.Lock()  # for the file descriptors, which `sync` uses on another thread
        self._finished: list[int] = []  # segments that are complete and not yet on the disk
        self.segment = 0
        self._size = 0
        self._is_fresh = True
        self._fd = self._create(0)
        try:
            self._put_header()
        except OSError:
            os.close(self._fd)
            raise

    def write(self, kind: str, first: int, count: int, payload: bytes | memoryview) -> None:
        """Append one chunk.

        Raises
        ------
        OSError
            The file ends with the chunk before; the next may be tried.
        """
        if len(payload) > LONGEST_PAYLOAD:
            raise SessionLogError(f"{len(payload)} bytes of {kind} are too many for a chunk of {LONGEST_PAYLOAD}")
        if self._size + HEAD_BYTES + len(payload) > self.segment_bytes and not self._is_fresh:
            self.next_segment()
        self._put(self._numbers[kind], first, count, payload)
        self._is_fresh = False

    def write_end(self, body: Mapping[str, Any]) -> None:
        """Append the end of the log."""
        self._put(END, 0, 1, msgpack.packb(dict(body)))

    def next_segment(self) -> None:
        """Begin another segment.

        The file first, then the word of it in the old one, then its contents: whatever is cut off in between, a reader
        knows whether a segment is missing.
        """
        fd = self._create(self.segment + 1)
        with contextlib.suppress(OSError):  # a file that takes no more is a reason to begin another one
            self._put(SEGMENT_END, 0, 1, msgpack.packb({"next": self.segment + 1}))
        with self._lock:
            self._finished.append(self._fd)
            self._fd = fd
        self.segment += 1
        self._size = 0
        self._put_header()

    def sync(self) -> None:
        """Wait until what was written so far is on the disk.

        Raises
        ------
        OSError
            The disk did not take it.
        """
        with self._lock:
            if self._fd < 0:
                return
            pending, self._finished = [*self._finished, os.dup(self._fd)], []
        try:
            for fd in pending:
                os.fdatasync(fd)
        finally:
            for fd in pending:
                os.close(fd)

    def close(self) -> None:
        """Close the files; what was not synced is left to the operating system."""
        with self._lock:
            for fd in [*self._finished, self._fd]:
                if fd >= 0:
                    os.close(fd)
            self._finished, self._fd = [], -1

    def _create(self, number: int) -> int:
        path = segment_path(self.folder, number)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def _put_header(self) -> None:
        payload = msgpack.packb({**self._header, "segment": self.segment})
        for _ in range(2):
            self._put(HEADER, 0, 1, payload)
        self._is_fresh = True

    def _put(self, kind: int, first: int, count: int, payload: bytes | memoryview) -> None:
        head = HEAD.pack(MARKER, self._tag, kind, self._sequence, first, count, len(payload), zlib.crc32(payload))
        head += struct.pack("<I", zlib.crc32(head))
        total = HEAD_BYTES + len(payload)
        try:
            written = os.writev(self._fd, [head, payload])
            while written < total:  # where the disk is nearly full
                rest = head[written:] if written < HEAD_BYTES else b""
                written += os.writev(self._fd, [rest, memoryview(payload)[max(0, written - HEAD_BYTES) :]])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            raise
        self._sequence += 1
        self._size += total
        self.n_bytes += total


class LogReader:
    """Reads a log, whole or as it grows; at any time it holds one chunk.

    Attributes
    ----------
    metadata : dict
        What the writer was given.
    kinds : dict of str to dtype or None
        Layout of each kind; None for messages.
    faults : list of Fault
        What the reading so far found wrong.
    end : dict or None
        The record of the log's end, once it has been read.

    Raises
    ------
    SessionLogError
        Where the folder holds no log, or one that no segment says how to read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.end: dict[str, Any] | None = None
        header = self._find_header()
        self._tag: int = header["tag"]
        self.metadata: dict[str, Any] = header["metadata"]
        self.kinds: dict[str, np.dtype[Any] | None] = {
            name: None if layout is None else dtype_of(layout) for name, (_, layout) in header["kinds"].items()
        }
        self._names = {number: name for name, (number, _) in header["kinds"].items()} | _FIXED
        self._segment = self._offset = self._expected = 0
        self._hole: tuple[str, int, int, str] | None = None  # bytes that could not be read, until the next good chunk

    def chunks(self, *kinds: str) -> Iterator[Chunk]:
        """Yield every chunk that can be read, from the first one on.

        Parameters
        ----------
        *kinds : str
            Only of these; the payload of others is passed over unread. Without any, all are read and checked.
        """
        self.faults, self.end = [], None
        self._segment = self._offset = self._expected = 0
        self._hole = None
        yield from self._chunks(kinds, is_final=True)

    def new_chunks(self, *kinds: str) -> Iterator[Chunk]:
        """Yield the chunks that were written since the last call; one that is not complete waits for the next."""
        yield from self._chunks(kinds, is_final=False)

    def _chunks(self, kinds: tuple[str, ...], *, is_final: bool) -> Iterator[Chunk]:
        while True:
            files = segments(self.folder)
            number_of_last = int(files[-1].stem[4:]) if files else -1
            has_later = self._segment < number_of_last and segment_path(self.folder, number_of_last).stat().st_size > 0
            path = segment_path(self.folder, self._segment)
            if not path.exists():
                if not has_later:
                    return
                self.faults.append(Fault("missing", path.name, 0, 0, 0, "the file is not there"))
                has_ended = True
            else:
                with path.open("rb") as file:
                    has_ended = yield from self._read(file, path.name, kinds, is_final, has_later)
            if self._segment == number_of_last and is_final:
                if has_ended:
                    name = segment_path(self.folder, self._segment + 1).name
                    self.faults.append(Fault("missing", name, 0, 0, 0, "the file is not there"))
                return
            if not (has_ended or has_later or (is_final and self._segment < number_of_last)):
                return
            self._segment, self._offset = self._segment + 1, 0

    def _read(
        self, file: BinaryIO, name: str, kinds: tuple[str, ...], is_final: bool, has_later: bool
    ) -> Generator[Chunk, None, bool]:
        """Yield the chunks of a segment from `_offset` on; return whether it says that another one follows."""
        has_ended = False
        size = os.fstat(file.fileno()).st_size
        is_whole = is_final or has_later
        while self._offset < size:
            file.seek(self._offset)
            raw = file.read(HEAD_BYTES)
            head = _parse(raw, self._tag)
            if head is None:
                if self._is_cut(raw, file):
                    if is_whole:
                        self._note_tail(name, size, has_later)
                    return has_ended
                found = _find(file, self._offset + 1, size, self._tag)
                if found is None and not is_whole:
                    return has_ended
                self._note_hole(name, found or size, "no chunk begins here")
                continue
            after = self._offset + HEAD_BYTES + head.length
            if after > size:
                found = _find(file, self._offset + 1, size, self._tag)
                if found is not None:  # it is not cut off: bytes of it are gone
                    self._note_hole(name, found, "a chunk is shorter than it says")
                    continue
                if is_whole:
                    self._note_tail(name, size, has_later)
                return has_ended
            known = self._names.get(head.kind, "")
            is_wanted = not kinds or known in kinds or head.kind < FIRST_KIND
            payload = file.read(head.length) if is_wanted else b""
            if is_wanted and zlib.crc32(payload) != head.crc:
                is_cut = self._is_cut(file.read(HEAD_BYTES), file)
                # where bytes are gone, the next chunk begins within the length that this one claims
                found = _find(file, self._offset + 1, size, self._tag)
                after = found or (after if is_cut else size)
                self._note_hole(name, after, f"the checksum of {known or 'a chunk'} is wrong")
                continue
            self._close_hole(head.sequence, name)
            self._offset, self._expected = after, head.sequence + 1
            if head.kind == END:
                self.end = _map(payload, f"the end of {self.folder}")
            elif head.kind == SEGMENT_END:
                has_ended = True
            elif head.kind >= FIRST_KIND and is_wanted and known:
                yield Chunk(known, head.first, head.n_records, head.sequence, payload, self.kinds[known])
        if is_whole:
            self._flush_hole()
        return has_ended

    @staticmethod
    def _is_cut(raw: bytes, file: BinaryIO) -> bool:
        """Say whether what is left may be the beginning of a chunk, or is room that was never written to."""
        if len(raw) < HEAD_BYTES:
            return raw[:8] == MARKER[: len(raw)] or not any(raw)
        if any(raw):
            return False
        while block := file.read(_SCAN_BYTES):
            if any(block):
                return False
        return True

    def _note_tail(self, name: str, size: int, has_later: bool) -> None:
        self._flush_hole()
        what = "damaged" if has_later else "torn"
        reason = "the segment is cut short" if has_later else "the last chunk is not complete"
        self.faults.append(Fault(what, name, self._offset, size - self._offset, 0, reason))
        self._offset = size

    def _note_hole(self, name: str, after: int, reason: str) -> None:
        """Remember bytes that cannot be read, together with those just before them."""
        if self._hole is not None and self._hole[0] != name:
            self._flush_hole()
        first_name, start, _, first_reason = self._hole or (name, self._offset, 0, reason)
        self._hole = (first_name, start, after - start, first_reason)
        self._offset = after

    def _close_hole(self, sequence: int, name: str) -> None:
        missing = sequence - self._expected
        if self._hole is not None:
            self._flush_hole(max(0, missing))
        elif missing > 0:
            self.faults.append(Fault("missing", name, self._offset, 0, missing, f"{missing} chunks are not there"))
        elif missing < 0:
            reason = f"chunk {sequence} comes after chunk {self._expected - 1}"
            self.faults.append(Fault("damaged", name, self._offset, 0, 0, reason))

    def _flush_hole(self, n_chunks: int = 0) -> None:
        if self._hole is not None:
            name, start, n_bytes, reason = self._hole
            self.faults.append(Fault("damaged", name, start, n_bytes, n_chunks, reason))
            self._hole = None

    def _find_header(self) -> dict[str, Any]:
        """Return the first header that is whole, in whichever segment."""
        files = segments(self.folder)
        if not files:
            raise SessionLogError(f"{self.folder} holds no log of a session (log-000000.nmlog); name such a folder")
        for path in files:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                offset: int | None = 0
                while offset is not None and offset < size:
                    file.seek(offset)
                    head = _parse(file.read(HEAD_BYTES))
                    if head is not None and head.kind == HEADER:
                        payload = file.read(head.length)
                        if len(payload) == head.length and zlib.crc32(payload) == head.crc:
                            return self._checked(_map(payload, f"the header of {path}"), path)
                    elif head is not None:
                        break  # headers come first
                    offset = _find(file, offset + 1, min(size, offset + _SCAN_BYTES))
        raise SessionLogError(f"{self.folder}: no segment of the log has a header that can be read")

    @staticmethod
    def _checked(header: dict[str, Any], path: Path) -> dict[str, Any]:
        if header.get("format") != FORMAT:
            raise SessionLogError(f"{path} is not a log of a session")
        if header.get("version") != FORMAT_VERSION:
            raise SessionLogError(
                f"{path} is a log of version {header.get('version')}, this program reads version {FORMAT_VERSION}"
            )
        try:
            kinds = {str(name): (int(kind), layout) for name, (kind, layout) in header["kinds"].items()}
            is_whole = isinstance(header["tag"], int) and isinstance(header["metadata"], dict)
            for _, layout in kinds.values():
                is_whole = is_whole and (layout is None or dtype_of(layout).itemsize > 0)
        except (
            KeyError,
            AttributeError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
            SyntaxError,
            MemoryError,
        ):
            is_whole = False
        if not is_whole:
            raise SessionLogError(f"{path}: the header does not say how the log is to be read; it was made otherwise")
        return header


def _map(payload: bytes, what: str) -> dict[str, Any]:
    """Unpack one map."""
    try:
        found = msgpack.unpackb(payload, strict_map_key=False)
    except _NOT_MSGPACK as error:
        raise SessionLogError(f"{what} is no msgpack: {error}") from None
    if not isinstance(found, dict):
        raise SessionLogError(f"{what} is no map")
    return found


def _parse(raw: bytes, tag: int | None = None) -> _Head | None:
    """Read the head of a chunk; None where this is none, or one of another log."""
    if len(raw) < HEAD_BYTES or not raw.startswith(MARKER):
        return None
    if zlib.crc32(raw[: HEAD.size]) != int.from_bytes(raw[HEAD.size : HEAD_BYTES], "little"):
        return None
    head = _Head(*HEAD.unpack_from(raw)[1:])
    return head if head.length <= LONGEST_PAYLOAD and tag in (None, head.tag) else None


def _find(file: BinaryIO, start: int, size: int, tag: int | None = None) -> int | None:
    """Return where the next chunk with a good head begins, None where there is none before `size`."""
    while start < size:
        file.seek(start)
        block = file.read(min(_SCAN_BYTES, size - start) + HEAD_BYTES)
        at = block.find(MARKER)
        while at >= 0 and start + at < size:
            if _parse(block[at : at + HEAD_BYTES], tag) is not None:
                return start + at
            at = block.find(MARKER, at + 1)
        start += _SCAN_BYTES
    return None
