"""Checkpoints: the whole state of a loop in a file, written between two ticks and read back between two ticks."""

import contextlib
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.decoder import DECODER, KINDS
from neuromod.adapters.decoder_config import MAX_EVENTS, MAX_LAGS, MAX_STATES, N_OUTPUTS
from neuromod.adapters.regular_file import read_regular_file
from neuromod.bridge import pipeline as pipelines
from neuromod.bridge.assembly import Assembly
from neuromod.bridge.gate import GATE
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import BLOCK, BLOCK_BYTES, LAYOUT_VERSION, N_CHANNELS
from neuromod.engine.layout_types import Record
from neuromod.sorting import blanking
from neuromod.sorting import front_end as front_ends

_FORMAT = "neuromod-checkpoint"
_VERSION = 1
_LARGEST_HEAD = 1 << 20
"""Bytes that a file may hold beside the state itself."""
_LARGEST = 1 << 30
"""Bytes of a checkpoint whose session is not known: front ends of thousands of channels take some MB."""

# what is configuration, not state
_PIPELINE_WORDS = [
    pipelines._REGULAR,
    pipelines._TICKS_PER_BLOCK,
    pipelines._FILL_ZERO,
    pipelines.DELAY,
    pipelines._CHECKED_ONLY,
]
_PIPELINE_NUMBERS = [
    pipelines._PERIOD,
    pipelines._FOLLOW,
    pipelines._TOLERANCE,
    pipelines._LONGEST_FILL,
    pipelines._BLOCK_SAMPLES,
]
_FRONT_END = (
    "settings",
    "limits",
    "paths",
    "sos",
    "at_rest",
    "window_samples",
    "edges",
    "blank_extent",
    "blank_mask",
)
_ENCODER = ("options", "numbers", "matrix", "reached")

_LARGEST_COUNT = 2**52
"""Blocks that a session can have closed; the product with their length is still exact."""
_MANY = 2**62
_DECODER_RANGES = {
    "kind": (0, len(KINDS) - 1),
    "n_lags": (0, MAX_LAGS),
    "n_states": (0, MAX_STATES),
    "n_events": (0, MAX_EVENTS),
    "bin_ticks": (0, _MANY),
    "settle_ticks": (0, _MANY),
    "output_state": (0, MAX_STATES - 1),
    "event_channel": (-1, N_CHANNELS - 1),
    "event_output": (0, N_OUTPUTS - 1),
    "event_refractory": (0, _MANY),
    "n_ticks": (0, _MANY),
    "in_bin": (0, _MANY),
    "newest": (0, MAX_LAGS - 1),
    "n_bins": (0, _MANY),
}
"""Least and greatest of the whole numbers of a decoder."""


class Found(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    data: NDArray[np.uint8]
    """The bytes of the loop's parts, one after the other."""
    tick: int
    """The tick that comes next."""
    written_at: float
    """Clock on the wall, in seconds."""
    decoder_version: int
    """Of the decoder that it holds: not necessarily that of the session, since another may have been swapped in."""


def kept(path: Path, keep: int) -> list[Path]:
    """Return the names of a checkpoint and of those before it, the newest first."""
    return [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, keep))]


def save(path: Path, assembly: Assembly, snapshot: NDArray[np.uint8], tick: int, *, keep: int = 1) -> None:
    """Write what the loop copied; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
        Where to.
    assembly : Assembly
        The parts that were copied.
    snapshot : ndarray of uint8
        Their bytes, one after the other.
    tick : int
        The tick that comes next.
    keep : int
        What was at `path` moves to `PATH.1`, and so on, until there are so many files.

    Raises
    ------
    ConfigError
        Where there is no such folder, or a file of another kind is in the way.
    OSError
        Where the file cannot be written.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"checkpoint: there is no folder {path.parent}; make it, or name another")
    if path.exists() and not _is_checkpoint(path):
        raise ConfigError(f"checkpoint: {path} is no checkpoint and is not overwritten; give another name")
    data = snapshot.tobytes()
    body = {
        "format": _FORMAT,
        "version": _VERSION,
        "tick": tick,
        "built_from": assembly.built_from,
        "parts": _description(assembly),
        "layout": LAYOUT_VERSION,  # a field of the network may change its meaning and not its place
        "crc32": zlib.crc32(data),
        "data": data,
    }
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # a pipe of that name would be waited on
        with partial.open("xb") as file:
            file.write(msgpack.packb(body))
            file.flush()
            os.fsync(file.fileno())
        names = kept(path, keep)
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: Path, assembly: Assembly) -> NDArray[np.uint8]:
    """Read a checkpoint of a loop like this one; return the bytes of its parts.

    Raises
    ------
    ConfigError
        Where the file is missing, no regular file, damaged, of another version, of a loop that was built otherwise, or
        holds what compiled code must not be given.
    """
    return read(path, assembly).data


def read(path: Path, assembly: Assembly) -> Found:
    """Read a checkpoint as `load` does, with what it says of itself."""
    expected = sum(part.nbytes for part in assembly.parts())
    body, data = _read(path, expected + _LARGEST_HEAD)
    same = {"built_from": assembly.built_from, "parts": _description(assembly), "layout": LAYOUT_VERSION}
    if any(body.get(key) != value for key, value in same.items()):
        raise ConfigError(
            f"{path} is of a loop that was built otherwise; restore it into a session with the same stream, front_end, "
            "encoder, network and timing, and the same version of the package"
        )
    if len(data) != expected:
        raise ConfigError(f"{path} is damaged: it holds {len(data)} bytes of state, not {expected}; take another one")
    found = np.frombuffer(data, np.uint8)
    if wrong := _wrong_part(assembly, found):
        raise ConfigError(
            f"{path} holds {wrong}, which no checkpoint of this session can: it is damaged or was made to do harm; "
            "take another one"
        )
    tick = body.get("tick")
    return Found(
        path,
        found,
        tick if isinstance(tick, int) else 0,
        path.stat().st_mtime,
        int(_saved(assembly, found, assembly.decoder)[0]["version"]),
    )


def network_block(path: Path) -> Record:
    """Return the network of a checkpoint of any session: one record of `layout.BLOCK`.

    Raises
    ------
    ConfigError
        Where the file is missing, damaged, or not of this version of the package.
    """
    body, data = _read(path, _LARGEST)
    # what lies behind it has the same size in every session
    after = (("decoder.state", DECODER), ("stimulation.gate", GATE))
    expected = [[name, str(dtype), [1]] for name, dtype in (("network.state", BLOCK), *after)]
    end = len(data) - sum(dtype.itemsize for _, dtype in after)
    parts = body.get("parts")
    is_known = body.get("layout") == LAYOUT_VERSION and isinstance(parts, list) and parts[-3:] == expected
    if not is_known or end < BLOCK_BYTES:
        raise ConfigError(f"{path} is of another version of the package; export with the version that wrote it")
    return np.frombuffer(data[end - BLOCK_BYTES : end], BLOCK)[0]


def _read(path: Path, largest: int) -> tuple[dict[str, Any], bytes]:
    """Read a file and its checksum; return what it says and the bytes of its parts."""
    try:
        body = msgpack.unpackb(read_regular_file(path, largest))
    except OSError as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: {error.strerror}; name a file that 'neuromod checkpoint' wrote"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a checkpoint, or it is damaged ({error}); take another one") from None
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of neuromod")
    if body.get("version") != _VERSION:
        raise ConfigError(
            f"{path} is a checkpoint of version {body.get('version')}, this program reads version {_VERSION}"
        )
    data = body.get("data")
    if not isinstance(data, bytes) or zlib.crc32(data) != body.get("crc32"):
        raise ConfigError(f"{path} is damaged: its checksum does not fit its data; take another one")
    return body, data


def _saved(assembly: Assembly, data: NDArray[np.uint8], wanted: NDArray[Any]) -> NDArray[Any]:
    """Return what a checkpoint holds of a part of the loop."""
    start = 0
    for part in assembly.parts():
        if part is wanted:
            break
        start += part.nbytes
    # a copy, since the parts in a file need not be aligned
    return np.frombuffer(data[start : start + wanted.nbytes].tobytes(), wanted.dtype).reshape(wanted.shape)


def _wrong_part(assembly: Assembly, data: NDArray[np.uint8]) -> str:
    """Name what compiled code must not be given: it checks no index, and a checksum keeps nobody from writing a file.

    What was configured must be as it is here, and what is used to find a place in an array must lead to one.
    """

    def saved(part: NDArray[Any]) -> NDArray[Any]:
        return _saved(assembly, data, part)

    pipeline, front_end, encoder = assembly.pipeline, assembly.front_end.state, assembly.encoder.state
    words, numbers = saved(pipeline.words), saved(pipeline.numbers)
    configured = [
        ("pipeline.words", words[_PIPELINE_WORDS], pipeline.words[_PIPELINE_WORDS]),
        ("pipeline.numbers", numbers[_PIPELINE_NUMBERS], pipeline.numbers[_PIPELINE_NUMBERS]),
        ("pipeline.scale", saved(pipeline.scale), pipeline.scale),
        *((f"front_end.{name}", saved(getattr(front_end, name)), getattr(front_end, name)) for name in _FRONT_END),
        *((f"encoder.{name}", saved(getattr(encoder, name)), getattr(encoder, name)) for name in _ENCODER),
    ]
    for name, found, here in configured:
        if found.tobytes() != here.tobytes():
            return f"another configuration ({name})"
    return (
        _wrong_words([int(word) for word in words], numbers, pipeline.queue.shape[0])
        or _wrong_trains(saved(front_end.counters), saved(front_end.trains))
        or _wrong_decoder(saved(assembly.decoder)[0], assembly.decoder[0])
    )


def _wrong_words(words: list[int], numbers: NDArray[np.float64], queue_length: int) -> str:
    """Check where the pipeline stands; `words` as Python's integers, which do not overflow."""
    head, tail = words[pipelines._QUEUE_HEAD], words[pipelines._QUEUE_TAIL]
    if not 0 <= tail <= head <= tail + queue_length:
        return f"a queue of stimuli from {tail} to {head}"
    index, block, missing = words[pipelines.INDEX], words[pipelines._BLOCK], words[pipelines._MISSING]
    # the open block is never whole: samples that it has no room for would be taken from before the array
    if not (0 <= block <= _LARGEST_COUNT and index >= 0):
        return f"sample {index} of block {block}"
    if index >= math.floor((block + 1) * float(numbers[pipelines._BLOCK_SAMPLES]) + 1e-6):
        return f"sample {index} of block {block}"
    tick, tick_s = words[pipelines.TICK_NEXT], float(numbers[pipelines._PERIOD] * numbers[pipelines._BLOCK_SAMPLES])
    if not 0 <= 1e9 * tick_s * tick <= _MANY:  # the time of the network, in ns, is an int64
        return f"tick {tick}"
    longest = float(numbers[pipelines._LONGEST_FILL]) / float(numbers[pipelines._PERIOD])
    if not 0 <= missing <= longest + 1:
        return f"a gap of {missing} samples"
    return ""


def _wrong_trains(counters: NDArray[np.int64], trains: NDArray[np.int64]) -> str:
    n_trains = int(counters[front_ends._TRAINS])
    if not 0 <= n_trains <= blanking.N_TRAINS:
        return f"{n_trains} trains to be blanked"
    electrodes = trains[:n_trains, blanking._ELECTRODE]
    if not ((electrodes >= 0) & (electrodes < blanking.N_ELECTRODES)).all():
        return "trains on an electrode that cannot be"
    return ""


def _wrong_decoder(found: Any, here: Any) -> str:
    """Check a decoder; not necessarily the one that runs here, since another may have been swapped in before."""
    for name in ("n_outputs", "dt_ms"):
        if found[name] != here[name]:
            return f"a decoder of another {name}"
    for name, (least, most) in _DECODER_RANGES.items():
        if not ((found[name] >= least) & (found[name] <= most)).all():
            return f"a decoder whose {name} is beyond {least} to {most}"
    return ""


def _sync_folder(folder: Path) -> None:
    """Have names in a folder survive a loss of power, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some file systems sync none
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_checkpoint(path: Path) -> bool:
    """Say whether a file begins as a checkpoint does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _FORMAT.encode() in file.read(64)


def _description(assembly: Assembly) -> list[list[Any]]:
    """Name, type and shape of every part, by which a foreign checkpoint is told."""
    named = {
        "pipeline": assembly.pipeline._asdict(),
        "front_end": {str(i): part for i, part in enumerate(assembly.front_end.parts())},
        "encoder": assembly.encoder.state._asdict(),
        "network": {"state": assembly.network.state},
        "decoder": {"state": assembly.decoder},
        "stimulation": {"gate": assembly.stimulation.gate},
    }
    return [
        [f"{part}.{name}", str(array.dtype), list(array.shape)]
        for part, arrays in named.items()
        for name, array in arrays.items()
    ]
