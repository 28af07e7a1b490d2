"""The log: what was written comes back; what is cut off, changed or gone is said, and the rest still read."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuromod.bridge.gate import DECISION
from neuromod.bridge.loop_state import INPUT
from neuromod.bridge.pipeline import TICK
from neuromod.bridge.session_log import (
    HEAD_BYTES,
    MARKER,
    Chunk,
    LogReader,
    LogWriter,
    describe,
    dtype_of,
    segment_path,
    segments,
)
from neuromod.engine.errors import SessionLogError

RECORD = np.dtype([("number", np.uint64), ("x", np.float32, (5,)), ("small", np.uint8)], align=True)
KINDS = {"ticks": RECORD, "events": None}
METADATA = {"name": "a log", "rate": 30000.0, "nested": {"list": [1, 2]}}


def some(first: int, n: int) -> NDArray[Any]:
    """Return n records that say their number in every field."""
    records = np.zeros(n, RECORD)
    records["number"] = np.arange(first, first + n)
    records["x"] = records["number"][:, None]
    records["small"] = records["number"] % 251
    return records


def write_log(folder: Path, n_chunks: int = 8, *, has_end: bool = True, **settings: Any) -> LogWriter:
    """Write chunks of 10 records each, and an event behind each."""
    folder.mkdir(exist_ok=True)
    writer = LogWriter(folder, METADATA, KINDS, **settings)
    for i in range(n_chunks):
        writer.write("ticks", 10 * i, 10, some(10 * i, 10).tobytes())
        writer.write("events", i, 1, b"\x81\xa1i" + bytes([i]))  # msgpack for {"i": i}
    if has_end:
        writer.write_end({"why": "closed"})
    writer.close()
    return writer


def numbers(chunks: list[Chunk]) -> list[int]:
    return [int(number) for chunk in chunks if chunk.kind == "ticks" for number in chunk.array()["number"]]


def read(folder: Path) -> tuple[list[Chunk], LogReader]:
    reader = LogReader(folder)
    return list(reader.chunks()), reader


def offsets(path: Path) -> list[int]:
    """Return where the chunks of a segment begin, found by their lengths alone."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        assert data[at : at + 8] == MARKER
        found.append(at)
        at += HEAD_BYTES + struct.unpack_from("<I", data, at + 36)[0]
    return found


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_log(tmp_path)
    chunks, reader = read(tmp_path)
    assert numbers(chunks) == list(range(80))
    assert [message for chunk in chunks if chunk.kind == "events" for message in chunk.messages()] == [
        {"i": i} for i in range(8)
    ]
    assert all((chunk.array()["x"] == chunk.array()["number"][:, None]).all() for chunk in chunks[::2])
    assert reader.metadata == METADATA
    assert reader.kinds == KINDS
    assert reader.end == {"why": "closed"}
    assert reader.faults == []


@pytest.mark.parametrize("dtype", [TICK, INPUT, DECISION, RECORD, np.dtype([("inner", RECORD, (2,)), ("y", "<f8")])])
def test_the_log_describes_the_layout_of_its_records(dtype: np.dtype[Any]) -> None:
    assert dtype_of(describe(dtype)) == dtype
    assert dtype_of(describe(dtype)).itemsize == dtype.itemsize


def test_layouts_without_fields_and_with_objects_are_refused() -> None:
    with pytest.raises(SessionLogError, match="structured"):
        describe(np.dtype(np.float64))
    with pytest.raises(SessionLogError, match="'thing'"):
        describe(np.dtype([("thing", object)]))


def test_one_kind_is_read_alone(tmp_path: Path) -> None:
    write_log(tmp_path)
    assert {chunk.kind for chunk in LogReader(tmp_path).chunks("events")} == {"events"}


def test_a_log_goes_on_in_another_segment_before_it_grows_too_long(tmp_path: Path) -> None:
    write_log(tmp_path, 40, segment_bytes=4096)
    files = segments(tmp_path)
    assert len(files) > 3
    assert all(path.stat().st_size <= 4096 + 100 for path in files)  # the word that another follows comes on top
    chunks, reader = read(tmp_path)
    assert numbers(chunks) == list(range(400))
    assert reader.faults == []


def test_a_log_is_read_while_it_grows(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, METADATA, KINDS, segment_bytes=4096)
    reader = LogReader(tmp_path)
    seen: list[int] = []
    for i in range(40):
        writer.write("ticks", 10 * i, 10, some(10 * i, 10).tobytes())
        seen += numbers(list(reader.new_chunks()))
        assert seen == list(range(10 * i + 10))
    writer.close()
    assert reader.faults == []


def test_a_chunk_that_is_being_written_waits_for_the_next_look(tmp_path: Path) -> None:
    write_log(tmp_path, 3, has_end=False)
    path = segment_path(tmp_path, 0)
    whole = path.read_bytes()
    last = offsets(path)[-2]  # the last chunk of ticks
    reader = LogReader(tmp_path)
    path.write_bytes(whole[:last])
    seen = numbers(list(reader.new_chunks()))
    for stop in range(last, len(whole), 7):
        path.write_bytes(whole[:stop])
        seen += numbers(list(reader.new_chunks()))
    path.write_bytes(whole)
    seen += numbers(list(reader.new_chunks()))
    assert seen == list(range(30))
    assert reader.faults == []


def test_a_log_cut_off_at_any_byte_of_its_last_chunk_is_torn_and_no_more(tmp_path: Path) -> None:
    write_log(tmp_path, 3, has_end=False)
    path = segment_path(tmp_path, 0)
    whole = path.read_bytes()
    last = offsets(path)[-2]
    end_of_ticks = offsets(path)[-1]
    for stop in range(last, end_of_ticks + 1):
        path.write_bytes(whole[:stop])
        chunks, reader = read(tmp_path)
        is_clean = stop in (last, end_of_ticks)
        assert [fault.what for fault in reader.faults] == ([] if is_clean else ["torn"])
        assert numbers(chunks) == list(range(30 if stop == end_of_ticks else 20))
        assert reader.end is None
        if not is_clean:
            assert (reader.faults[0].offset, reader.faults[0].n_bytes) == (last, stop - last)


def test_room_that_a_loss_of_power_left_unwritten_is_torn(tmp_path: Path) -> None:
    write_log(tmp_path, 3, has_end=False)
    with segment_path(tmp_path, 0).open("ab") as file:
        file.write(bytes(5000))
    chunks, reader = read(tmp_path)
    assert numbers(chunks) == list(range(30))
    assert [fault.what for fault in reader.faults] == ["torn"]


def test_a_flipped_bit_anywhere_is_found_and_costs_one_chunk(tmp_path: Path) -> None:
    write_log(tmp_path, 8)
    path = segment_path(tmp_path, 0)
    whole, starts = path.read_bytes(), offsets(path)
    rng = random.Random(0)
    # every byte of two chunks and of the headers' heads, and 300 places anywhere
    places = [*range(starts[2], starts[4]), *range(HEAD_BYTES), *rng.sample(range(len(whole)), 300)]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        hit = max(start for start in starts if start <= place)
        chunks, reader = read(tmp_path)
        assert [fault.what for fault in reader.faults] == ["damaged"], place
        assert reader.faults[0].offset == hit
        assert reader.metadata == METADATA
        index = starts.index(hit)
        missing = range(10 * (index // 2 - 1), 10 * (index // 2)) if index >= 2 and index % 2 == 0 else range(0)
        assert numbers(chunks) == [n for n in range(80) if n not in missing or index == len(starts) - 1], place
        if index < len(starts) - 1:  # behind the last chunk there is none that tells
            assert reader.faults[0].n_chunks == 1
            assert reader.end == {"why": "closed"}
        else:
            assert reader.end is None


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_reading_goes_on_behind_anything_written_over_the_middle(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, 20)
    path = segment_path(folder, 0)
    whole, starts = path.read_bytes(), offsets(path)
    start = data.draw(st.integers(starts[2], starts[-2]))
    old = data.draw(st.integers(0, starts[-1] - start))
    new = data.draw(
        st.one_of(st.binary(max_size=200), st.just(MARKER * 20), st.just(whole[starts[3] : starts[3] + 70]))
    )
    path.write_bytes(whole[:start] + new + whole[start + old :])
    chunks, reader = read(folder)
    untouched_before = [i for i, at in enumerate(starts[:-1]) if starts[i + 1] <= start]
    untouched_after = [i for i, at in enumerate(starts) if at >= start + old]
    kept = {chunk.sequence for chunk in chunks}
    assert kept >= {i for i in (*untouched_before, *untouched_after) if 2 <= i < len(starts) - 1}
    if whole != path.read_bytes():
        assert reader.faults
    assert reader.end == {"why": "closed"}


def test_a_chunk_whose_end_is_gone_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    write_log(tmp_path, 20)
    path = segment_path(tmp_path, 0)
    whole, starts = path.read_bytes(), offsets(path)
    for cut in range(2, len(starts) - 1):
        path.write_bytes(whole[: starts[cut] + HEAD_BYTES] + whole[starts[cut + 1] :])
        chunks, _ = read(tmp_path)
        assert {chunk.sequence for chunk in chunks} >= set(range(2, len(starts) - 1)) - {cut}


def test_a_segment_that_is_gone_is_missed(tmp_path: Path) -> None:
    write_log(tmp_path, 40, segment_bytes=4096)
    for gone in range(len(segments(tmp_path))):
        path = segment_path(tmp_path, gone)
        saved = path.read_bytes()
        path.unlink()
        chunks, reader = read(tmp_path)
        assert "missing" in [fault.what for fault in reader.faults]
        assert reader.metadata == METADATA  # each segment tells how to read all
        assert 0 < len(numbers(chunks)) < 400
        path.write_bytes(saved)
    assert read(tmp_path)[1].faults == []


def test_a_segment_cut_short_in_the_middle_of_a_log_is_damage(tmp_path: Path) -> None:
    write_log(tmp_path, 40, segment_bytes=4096)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-300])
    assert "damaged" in [fault.what for fault in read(tmp_path)[1].faults]


def test_a_kill_between_two_segments_leaves_nothing_wrong(tmp_path: Path) -> None:
    writer = write_log(tmp_path, 8, has_end=False)
    segment_path(tmp_path, writer.segment + 1).touch()  # made, and nothing written yet
    chunks, reader = read(tmp_path)
    assert numbers(chunks) == list(range(80))
    assert reader.faults == []


def test_a_segment_of_another_log_is_no_part_of_this_one(tmp_path: Path) -> None:
    write_log(tmp_path / "a", 40, segment_bytes=4096)
    write_log(tmp_path / "b", 40, segment_bytes=4096)
    segment_path(tmp_path / "a", 2).write_bytes(segment_path(tmp_path / "b", 2).read_bytes())
    assert "damaged" in [fault.what for fault in read(tmp_path / "a")[1].faults]


@pytest.mark.parametrize("content", [b"", b"no log at all" * 100, MARKER * 50])
def test_what_is_no_log_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SessionLogError, match=r"log-000000\.nmlog"):
        LogReader(tmp_path)
    segment_path(tmp_path, 0).write_bytes(content)
    with pytest.raises(SessionLogError, match="header"):
        LogReader(tmp_path)


def test_a_write_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, METADATA, KINDS)
    writer.write("ticks", 0, 10, some(0, 10).tobytes())
    full, log = os.open("/dev/full", os.O_WRONLY), os.dup(writer._fd)
    os.dup2(full, writer._fd)
    with pytest.raises(OSError, match="No space left"):
        writer.write("ticks", 10, 10, some(10, 10).tobytes())
    os.dup2(log, writer._fd)
    writer.write("ticks", 20, 10, some(20, 10).tobytes())
    writer.close()
    os.close(full)
    os.close(log)
    chunks, reader = read(tmp_path)
    assert [chunk.first for chunk in chunks] == [0, 20]
    assert reader.faults == []


def test_names_of_the_logs_own_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionLogError, match="end"):
        LogWriter(tmp_path, {}, {"end": None})
