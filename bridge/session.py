"""A recorded session: a folder with the log of all that happened and the configuration that it came from.

The log's header holds what a replay needs to know, and the log every file that the configuration names, so that a
session can be replayed where those files are gone; but never the key that arms stimulation, and of the recording that
was the source only its hash.
"""

import contextlib
import hashlib
import platform
import secrets
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig, parse, paths_in
from neuromod.bridge.recorder import Announce, Recorder, pack
from neuromod.bridge.session_log import Chunk, Fault, LogReader, segments
from neuromod.bridge.toml_text import to_toml
from neuromod.engine.errors import ConfigError, SessionLogError
from neuromod.engine.layout import LAYOUT_VERSION
from neuromod.sorting import bundle

MESSAGES = ("events", "notes", "health", "timing", "decoders", "checkpoints", "files")
"""Kinds of messages that every session has, beside the records it is given.

events: as published. notes: what the recorder, the operator or the daemon has to say. health: as published. timing:
summaries of how late ticks were. decoders, checkpoints: what was put into the loop, whole. files: the configuration's.
"""

CONFIG_FILE = "session.toml"
LARGEST_FILE = 32 << 20
_SORTING_KEY = "front_end.units.bundle"
"""Bytes. A file that the configuration names is kept in the log up to this size; of a larger one, the hash."""

_PART = 1 << 20
_SEALED = ("mode", "schedule", "yoked_session", "ledger", "key_file")
"""What a blind operator could tell the condition by."""
_KEY_FILE = "key_file"
_OUTPUTS = ("record.folder", "checkpoint.path")
"""Paths that a session writes to: of no use to a replay."""


# -- recording --------------------------------------------------------------------------------------------------------


def start_session(
    folder: Path,
    config: SessionConfig,
    *,
    records: Mapping[str, np.dtype[Any]],
    info: StreamInfo,
    block_ms: float,
    ticks_per_block: int,
    built_from: str,
    local_clock: float,
    scale: NDArray[np.float32] | None = None,
    extra: Mapping[str, Any] | None = None,
    announce: Announce | None = None,
    now: datetime | None = None,
    **limits: Any,
) -> Recorder:
    """Make the folder of a session in `folder`, and begin to record into it.

    Parameters
    ----------
    folder : Path
        Where sessions are kept; made if it is not there.
    config : SessionConfig
        The session, as loaded.
    records : mapping of str to dtype
        Kinds of records: "ticks", "inputs", "decisions", "units" of a sorting, and "samples"
        (`recorder.sample_dtype`) for raw samples.
    info : StreamInfo
        The stream of the source.
    block_ms, ticks_per_block, built_from
        As of the assembly.
    local_clock : float
        The local clock now, in seconds: ties the clock of the records to that on the wall.
    scale : ndarray of float32, shape (n_channels,), optional
        Factor of each raw sample to microvolts, where the source has not applied it.
    extra : mapping, optional
        More for the header of the log: plain data. The export knows ``is_timed``, whether the times of ticks are on the
        local clock (by default they are), and ``clock_rate``, seconds of it per second of the source's (1).
    announce, **limits
        As of `Recorder`.
    now : datetime, optional
        When the session began, with its time zone; now, by default.

    Returns
    -------
    Recorder
        Running; the caller closes it.

    Raises
    ------
    ConfigError
        Where the folder cannot be written to, or a file that the configuration names cannot be read.
    """
    now = now if now is not None and now.tzinfo is not None else (now or datetime.now()).astimezone()
    effective = config.effective()
    try:
        place = _make_folder(folder, config.session.name, now)
        files, contents = _named_files(config)
        metadata = {
            "session": {
                "name": config.session.name,
                "started_at": now.isoformat(),
                "started_unix_ns": int(now.timestamp() * 1e9),
                "local_clock_s": local_clock,
            },
            "config": effective,
            "files": files,
            "versions": versions(),
            "stream": asdict(info) | {"channel_names": list(info.channel_names), "units": list(info.units)},
            "scale": None if scale is None else scale.astype(float).tolist(),
            "block_ms": block_ms,
            "ticks_per_block": ticks_per_block,
            "built_from": built_from,
            **(extra or {}),
        }
        metadata, shown = _seal(metadata)
        head = f"# {config.session.name}, started {now.isoformat(timespec='seconds')}: the complete configuration\n"
        (place / CONFIG_FILE).write_text(head + to_toml(shown), encoding="utf-8")
        kinds = {**records, **dict.fromkeys(MESSAGES)}
        recorder = Recorder(
            place, msgpack.unpackb(pack(metadata), strict_map_key=False), kinds, announce=announce, **limits
        )
        for index, data in contents.items():
            for offset in range(0, max(1, len(data)), _PART):
                recorder.write_message("files", {"index": index, "data": data[offset : offset + _PART]})
    except OSError as error:
        raise ConfigError(
            f"{folder}: the session cannot be recorded there ({error.strerror}); "
            "name a folder with room that can be written to"
        ) from None
    recorder.start()
    _hash_later(recorder, files)
    return recorder


def versions() -> dict[str, Any]:
    """Return the versions of all that the numbers of a session may depend on."""
    try:
        package = version("neuromod-bridge")
    except PackageNotFoundError:
        package = "not installed"
    return {
        "neuromod": package,
        "protocol": wire.PROTOCOL_VERSION,
        "layout": LAYOUT_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": version("numba"),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def _make_folder(folder: Path, name: str, now: datetime) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.strip().replace(' ', '_')}-{now:%Y%m%d-%H%M%S}"
    for number in range(1, 10_000):
        place = folder / (stem if number == 1 else f"{stem}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise SessionLogError(f"{folder} holds thousands of sessions of this second; name another folder")


def _named_files(config: SessionConfig) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """List the files that a configuration names, those of a folder one by one, and read those that are kept."""
    files: list[dict[str, Any]] = []
    contents: dict[int, bytes] = {}
    for key, named in ((key, named) for key, named in paths_in(config, "") if key not in _OUTPUTS):
        if key == _SORTING_KEY:  # reports and exports beside it are nothing that the loop was built from
            inside = [named / name for name in bundle.FILES]
        else:
            inside = sorted(path for path in named.rglob("*") if path.is_file()) if named.is_dir() else [named]
        for path in inside:
            entry: dict[str, Any] = {"key": key, "path": str(named), "part": str(path.relative_to(named))}
            entry |= {"size": None, "sha256": None, "is_kept": False}
            files.append(entry)
            if key.rpartition(".")[2] == _KEY_FILE:
                continue  # a hash would be enough to try keys by
            try:
                entry["size"] = path.stat().st_size
                if entry["size"] > LARGEST_FILE:
                    continue
                data = path.read_bytes()
            except FileNotFoundError:  # one that the session is yet to write
                continue
            except OSError as error:
                raise ConfigError(f"{key} names {path}, which cannot be read: {error.strerror}") from None
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if not key.startswith("source."):
                entry["is_kept"] = True
                contents[len(files) - 1] = data
    return files, contents


def _hash_later(recorder: Recorder, files: list[dict[str, Any]]) -> None:
    """Hash large files in a thread of its own, and put the hashes into the log when they are there."""
    large = [(i, Path(entry["path"]) / entry["part"]) for i, entry in enumerate(files) if _is_large(entry)]

    def run() -> None:
        for index, path in large:
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while recorder.is_recording and (block := file.read(_PART)):
                        digest.update(block)
            except OSError as error:
                recorder.add_message("notes", {"what": "file", "text": f"{path} cannot be read: {error.strerror}"})
                continue
            if not recorder.is_recording:
                return
            recorder.add_message("files", {"index": index, "sha256": digest.hexdigest()})

    if large:
        threading.Thread(target=run, name="neuromod-hash", daemon=True).start()


def _is_large(entry: Mapping[str, Any]) -> bool:
    return entry["sha256"] is None and (entry["size"] or 0) > LARGEST_FILE


# -- what a blind operator does not see -------------------------------------------------------------------------------


def _seal(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put away what tells the condition of a blind session; return the header, and the configuration to be shown."""
    config = metadata["config"]
    blind = [name for name, section in config.items() if isinstance(section, dict) and section.get("blind")]
    if not blind:
        return metadata, config
    sealed = {"config": config, "files": metadata["files"]}
    shown = {
        name: {key: value for key, value in section.items() if key not in _SEALED} if name in blind else section
        for name, section in config.items()
    }
    files = [
        {**entry, "key": "sealed", "path": "sealed"} if entry["key"].partition(".")[0] in blind else entry
        for entry in metadata["files"]
    ]
    # compressed, so that it is not read by accident; who wants to read it, unseals it
    header = {**metadata, "config": shown, "files": files, "sealed": zlib.compress(pack(sealed))}
    return header, shown


# -- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """Have content that nothing of ours has written, although its checksums are right, end in `SessionLogError`."""
    try:
        yield
    except SessionLogError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
        raise SessionLogError(
            f"{folder} is a log, but of no session that this program knows ({type(error).__name__}: {error}); "
            "verify it with the version of neuromod that wrote it"
        ) from error


class Session:
    """Reads a recorded session, also one that is still being recorded.

    Attributes
    ----------
    folder : Path
        Its folder.
    metadata : dict
        Header of the log; without what a blind session keeps to itself.
    kinds : dict of str to dtype or None
        What the log holds.

    Raises
    ------
    SessionLogError
        Where there is no session, or none that can be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SessionLogError(f"{folder} is no session; name a folder that 'neuromod session list' shows")
        self.folder = folder
        reader = LogReader(folder)
        self.metadata = reader.metadata
        self.kinds = reader.kinds

    @property
    def name(self) -> str:
        """What the session is called."""
        return str(self.metadata["session"]["name"])

    @property
    def started_at(self) -> datetime:
        """When it began, with its time zone."""
        return datetime.fromisoformat(self.metadata["session"]["started_at"])

    @property
    def is_blind(self) -> bool:
        """Whether the condition is kept from the operator."""
        return "sealed" in self.metadata

    @property
    def condition(self) -> str:
        """The mode of stimulation, "none" where none is configured, "sealed" where the session is blind."""
        return "sealed" if self.is_blind else _mode(self.metadata["config"])

    def unsealed(self) -> dict[str, Any]:
        """Return the whole header, the condition of a blind session included."""
        if not self.is_blind:
            return self.metadata
        with _as_written(self.folder):
            opened = msgpack.unpackb(zlib.decompress(self.metadata["sealed"]), strict_map_key=False)
            rest = {key: value for key, value in self.metadata.items() if key != "sealed"}
            return {**rest, **opened, "condition": _mode(opened["config"])}

    def chunks(self, kind: str) -> Iterator[NDArray[Any]]:
        """Yield the records of a kind, a chunk at a time; nothing where the session has no such kind."""
        for chunk in self.log_chunks(kind):
            yield chunk.array()

    def log_chunks(self, *kinds: str) -> Iterator[Chunk]:
        """Yield the chunks of kinds as they stand in the log, with the numbers of their records."""
        yield from LogReader(self.folder).chunks(*kinds)  # one of its own, so that several may be read side by side

    def records(self, kind: str) -> NDArray[Any]:
        """Return all records of a kind: "ticks", "inputs", "decisions", "units", "samples".

        Raises
        ------
        SessionLogError
            Where the session has no such kind.
        """
        dtype = self.kinds.get(kind)
        if dtype is None:
            has = ", ".join(name for name, layout in self.kinds.items() if layout is not None)
            raise SessionLogError(f"{self.folder} has no {kind!r}; it has {has}")
        return np.concatenate([np.empty(0, dtype), *self.chunks(kind)])

    def messages(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the messages of a kind, see `MESSAGES`."""
        if kind not in self.kinds or self.kinds[kind] is not None:
            raise SessionLogError(f"{self.folder} has no messages called {kind!r}")
        for chunk in self.log_chunks(kind):
            yield from chunk.messages()

    def notes(self) -> list[dict[str, Any]]:
        """List the operator's notes: `at` (date and time of day), `t` (local clock), `tick`, `text`."""
        clock_s = self.metadata["session"]["local_clock_s"]
        return [
            {
                "at": self.started_at + timedelta(seconds=event["t"] - clock_s),
                "t": event["t"],
                "tick": event["tick"],
                "text": str(event.get("value", "")),
            }
            for event in self.messages("events")
            if (event["name"], event["source"]) == ("note", "ingest")
        ]

    def end(self) -> dict[str, Any] | None:
        """Return the record of the session's end; None where it was killed, or goes on."""
        reader = LogReader(self.folder)
        for _ in reader.chunks("no kind"):
            pass
        return reader.end

    def files(self) -> list[dict[str, Any]]:
        """List the files that the configuration names: key, path, part of a folder, size, sha256, is_kept."""
        with _as_written(self.folder):
            files = [dict(entry) for entry in self.unsealed()["files"]]
            for message in self.messages("files"):
                if "sha256" in message:
                    files[message["index"]]["sha256"] = message["sha256"]
            return files

    def materialise(self, folder: Path) -> SessionConfig:
        """Write the kept files into a folder, and return the configuration with their paths.

        A file that was not kept is named where it was. In place of the key that arms stimulation stands another one,
        that nobody knows.

        Raises
        ------
        SessionLogError
            Where a kept file is damaged or would lie elsewhere, or the configuration is of another version of the
            package.
        """
        with _as_written(self.folder):
            return self._materialised(folder)

    def _materialised(self, folder: Path) -> SessionConfig:
        header = self.unsealed()
        places: dict[str, Path] = {}
        paths: dict[int, Path] = {}
        for index, entry in enumerate(header["files"]):
            is_secret = entry["key"].rpartition(".")[2] == _KEY_FILE
            if not entry["is_kept"] and not is_secret:
                continue
            place = folder / entry["key"] / Path(entry["path"]).name
            paths[index] = place / entry["part"]
            if not paths[index].is_relative_to(folder) or ".." in paths[index].relative_to(folder).parts:
                # a log may come from anybody: it must not say where on this host to write
                raise SessionLogError(
                    f"{self.folder}: a kept file would be written to {paths[index]}, and not into {folder}; this log "
                    "was not written by neuromod: do not trust it"
                )
            try:
                paths[index].parent.mkdir(parents=True, exist_ok=True)
                paths[index].write_bytes(secrets.token_hex(32).encode() if is_secret else b"")
            except OSError as error:
                raise SessionLogError(f"{self.folder}: {paths[index]} cannot be written: {error.strerror}") from None
            places[entry["key"]] = place
        for message in self.messages("files"):
            if "data" in message:
                with paths[message["index"]].open("ab") as file:
                    file.write(message["data"])
        for index, path in paths.items():
            wanted = header["files"][index]["sha256"]
            if wanted is not None and hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                raise SessionLogError(f"{header['files'][index]['path']} in the log of {self.folder} is damaged")
        body = deepcopy(header["config"])
        for key, place in places.items():
            if all(index in paths for index, entry in enumerate(header["files"]) if entry["key"] == key):
                _put(body, key, str(place))
        try:
            return parse(to_toml(body), where=f"configuration of {self.folder}")
        except ConfigError as error:
            raise SessionLogError(
                f"{self.folder} was recorded by version {header['versions']['neuromod']}: {error}"
            ) from None


def _mode(config: Mapping[str, Any]) -> str:
    modes = [str(part["mode"]) for part in config.values() if isinstance(part, dict) and {"mode", "blind"} <= set(part)]
    return modes[0] if modes else "none"


def _put(body: Any, key: str, value: str) -> None:
    *path, last = key.split(".")
    for name in path:
        body = body[int(name) if isinstance(body, list) else name]
    body[int(last) if isinstance(body, list) else last] = value


def find_sessions(folder: Path) -> list[Path]:
    """Return the sessions in a folder, oldest first."""
    found = [path for path in folder.iterdir() if path.is_dir() and segments(path)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (segments(path)[0].stat().st_mtime, path.name))


# -- verifying --------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What the log of a session holds.

    Attributes
    ----------
    folder : str
        The session.
    ended : str
        "properly", "early" (the recording ended, and says why) or "killed" (nothing says that it ended).
    why : str
        What the record of the end says.
    n_bytes, n_segments : int
        Size of the log.
    records : dict of str to int
        Records that can be read, by kind.
    lost : dict of str to int
        Records that are not there, by kind: for want of room in a queue when they came, or damaged since.
    ticks : dict
        first, last: numbers of the first and last network step; duration_s; fillers, paused: records that are no step;
        gaps, missing: places where numbers of records are left out, and how many; steps_missing: the same of steps;
        backward: places where the number of the step went back, as a restored checkpoint makes it.
    decisions : dict
        allowed, refused and, unless the session is blind, delivered.
    faults : list of Fault
        What is torn, damaged or missing in the files.
    damaged_files : list of str
        Kept files whose bytes are not those that were hashed.
    """

    folder: str
    ended: str = "killed"
    why: str = ""
    n_bytes: int = 0
    n_segments: int = 0
    records: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    ticks: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    damaged_files: list[str] = field(default_factory=list)

    @property
    def is_torn(self) -> bool:
        """Whether the log ends within a chunk, as one does whose writer was killed."""
        return any(fault.what == "torn" for fault in self.faults)

    @property
    def is_ok(self) -> bool:
        """Whether nothing is missing or damaged; being cut off at the end is neither."""
        is_whole = all(fault.what == "torn" for fault in self.faults)
        return is_whole and not self.lost and not self.damaged_files and not self.ticks.get("missing")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self) | {"is_ok": self.is_ok, "is_torn": self.is_torn}


@dataclass
class _TickCheck:
    """Follows the numbers of ticks from chunk to chunk."""

    last_record: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    first_tick: int = 0
    last_tick: int = 0
    n_steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    start: float | None = None
    stop: float = 0.0

    def add(self, ticks: NDArray[Any]) -> None:
        fields = ticks.dtype.names or ()
        flags = ticks["flags"] if "flags" in fields else np.zeros(len(ticks), np.uint32)
        is_filler, is_paused = (flags & wire.Flag.FILLER) != 0, (flags & wire.Flag.PAUSED) != 0
        self.counts["fillers"] += int(is_filler.sum())
        self.counts["paused"] += int((is_paused & ~is_filler).sum())
        if "record" in fields:
            steps = np.diff(ticks["record"].astype(np.int64), prepend=self.last_record)
            self.counts["gaps"] += int((steps != 1).sum())
            self.counts["missing"] += int(np.maximum(steps - 1, 0).sum())
            self.last_record = ticks["record"][-1:].astype(np.int64)
        numbers = ticks["tick"][~is_filler & ~is_paused].astype(np.int64)
        if len(numbers):
            if not self.n_steps:
                self.first_tick = int(numbers[0])
            steps = np.diff(numbers, prepend=[self.last_tick] if self.n_steps else numbers[:0])
            self.counts["steps_missing"] += int(np.maximum(steps - 1, 0).sum())
            self.counts["backward"] += int((steps < 1).sum())
            self.n_steps += len(numbers)
            self.last_tick = int(numbers[-1])
        if "now_ns" in fields and ticks["now_ns"].any():
            times = ticks["now_ns"][ticks["now_ns"] > 0] * 1e-9
        else:
            times = ticks["t_sample"] if "t_sample" in fields else np.zeros(0)
        if len(times):
            self.start = float(times[0]) if self.start is None else self.start
            self.stop = float(times[-1])

    def result(self) -> dict[str, Any]:
        if not (self.n_steps or self.counts.total()):
            return {}
        names = ("fillers", "paused", "gaps", "missing", "steps_missing", "backward")
        span = {"first": self.first_tick, "last": self.last_tick, "steps": self.n_steps}
        return span | {
            "duration_s": self.stop - self.start if self.start is not None else 0.0,
            **{name: self.counts[name] for name in names},
        }


def verify(folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read the whole log of a session, check every byte of it, and say what it holds.

    Parameters
    ----------
    folder : Path
        The session.
    on_progress : callable
        Gets the bytes read and the bytes in all.

    Raises
    ------
    SessionLogError
        Where there is no session, or nothing says how to read it.
    """
    with _as_written(folder):
        return _verified(folder, on_progress)


def _verified(folder: Path, on_progress: Callable[[int, int], None]) -> Report:
    session = Session(folder)
    reader = LogReader(folder)
    sizes = [path.stat().st_size for path in segments(folder)]
    report = Report(str(folder), n_bytes=sum(sizes), n_segments=len(sizes))
    expected: Counter[str] = Counter()
    records: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    decisions: Counter[str] = Counter()
    ticks = _TickCheck()
    hashes: dict[int, Any] = {}
    n_read = 0
    for chunk in reader.chunks():
        lost[chunk.kind] += max(0, chunk.first - expected[chunk.kind])
        expected[chunk.kind] = chunk.first + chunk.count
        records[chunk.kind] += chunk.count
        n_read += len(chunk.payload)
        on_progress(n_read, report.n_bytes)
        if chunk.kind == "ticks":
            ticks.add(chunk.array())
        elif chunk.kind == "decisions":
            found = chunk.array()
            decisions["allowed"] += int((found["reason"] == 0).sum())
            decisions["refused"] += int((found["reason"] != 0).sum())
            decisions["delivered"] += int((found["delivered"] != 0).sum())
        elif chunk.kind == "files":
            for message in chunk.messages():
                if "data" in message:
                    hashes.setdefault(message["index"], hashlib.sha256()).update(message["data"])
    on_progress(report.n_bytes, report.n_bytes)
    end = reader.end
    if end is not None:
        report.ended, report.why = "early" if end.get("failed") else "properly", str(end.get("why", ""))
        for kind in session.kinds:
            written = end["records"].get(kind, 0) + end["lost"].get(kind, 0)
            lost[kind] += max(0, written - expected[kind])
    report.records = {kind: records[kind] for kind in session.kinds}
    report.lost = {kind: n for kind, n in lost.items() if n}
    if session.is_blind:  # allowed and never delivered: so a sham would show
        del decisions["delivered"]
    report.ticks, report.decisions = ticks.result(), {**decisions}
    report.faults = list(reader.faults)
    kept = [(index, entry) for index, entry in enumerate(session.metadata["files"]) if entry["is_kept"]]
    report.damaged_files = [
        entry["key"] for index, entry in kept if index not in hashes or hashes[index].hexdigest() != entry["sha256"]
    ]
    return report
