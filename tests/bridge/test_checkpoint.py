"""Checkpoints: a loop goes on bit for bit where it was saved, and no other file is taken for one."""

import contextlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.bridge import checkpoint, pipeline
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.config import parse
from neuromod.bridge.pipeline import TICK_NEXT, enqueue_stimuli
from neuromod.engine.errors import ConfigError
from neuromod.engine.tick import add_reward
from neuromod.sorting import front_end

RATE = 24414.0625
N_CHANNELS = 4
SESSION = """
source = {kind = "lsl", name = "s"}
timing = {jitter_ms = 0.1, max_fill_ms = 5.0}
front_end = {features = ["crossings", "spiking_band"], warmup_s = 0.02, reference = "clipped-mean"}
encoder = {warmup_s = 0.02}
"""


def build(*, toml: str = SESSION, n_channels: int = N_CHANNELS, rate: float = RATE) -> Assembly:
    names = tuple(f"ch{i}" for i in range(n_channels))
    return assemble(parse(toml), StreamInfo("s", "signal", n_channels, rate, names, ("uV",) * n_channels))


def signal(n: int, seed: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A raw signal with a few gaps."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0.0, 20.0, (n, N_CHANNELS)).astype(np.float32)
    samples[rng.random(samples.shape) < 0.01] *= 8.0
    steps = np.ones(n)
    steps[::701] = 9
    return samples, 5.0 + np.cumsum(steps) / RATE


def play(parts: Assembly, samples: NDArray[np.float32], stamps: NDArray[np.float64]) -> NDArray[Any]:
    records = parts.records(8192)
    done, n_records = parts.consume(samples.copy(), stamps, 0, records)
    assert done == len(stamps)
    return records[:n_records]


def snapshot(parts: Assembly) -> NDArray[np.uint8]:
    """The bytes of all parts, one after the other, as the loop copies them."""
    return np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in parts.parts()])


def put_back(parts: Assembly, data: NDArray[np.uint8]) -> None:
    at = 0
    for part in parts.parts():
        part.view(np.uint8).reshape(-1)[:] = data[at : at + part.nbytes]
        at += part.nbytes
    assert at == len(data)


@pytest.fixture(scope="module")
def parts() -> Assembly:
    """A loop in the middle of a session."""
    built = build()
    play(built, *signal(2000))
    return built


@pytest.fixture
def saved(parts: Assembly, tmp_path: Path) -> Path:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, snapshot(parts), 81)
    return path


def body_of(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(path.read_bytes())
    return body


def refusal(path: Path, parts: Assembly) -> str:
    with pytest.raises(ConfigError) as refused:
        checkpoint.load(path, parts)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_what_is_loaded_is_what_was_saved(parts: Assembly, saved: Path) -> None:
    assert checkpoint.load(saved, parts).tobytes() == snapshot(parts).tobytes()
    assert body_of(saved)["tick"] == 81


@pytest.mark.parametrize("cut", [700, 3000, 9001])  # in both halves of the warm-up, and in the middle of a block
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(cut: int, tmp_path: Path) -> None:
    samples, stamps = signal(12_000)
    whole, stopped, resumed = build(), build(), build()
    path = tmp_path / "a.checkpoint"

    def stimulate(parts: Assembly) -> None:
        for k in range(3):
            enqueue_stimuli(parts.pipeline, np.full(16, k, np.float32), 0.0)
        add_reward(parts.network.state, np.float32(0.5))

    play(whole, samples[:cut], stamps[:cut])
    stimulate(whole)  # three messages that still wait when the checkpoint is made
    expected = play(whole, samples[cut:], stamps[cut:])

    play(stopped, samples[:cut], stamps[:cut])
    stimulate(stopped)
    checkpoint.save(path, stopped, snapshot(stopped), int(stopped.pipeline.words[TICK_NEXT]))
    play(resumed, *signal(500, seed=9))  # whatever it did before
    put_back(resumed, checkpoint.load(path, resumed))
    found = play(resumed, samples[cut:], stamps[cut:])

    assert expected["spikes"].any()
    for name in found.dtype.names or ():
        assert found[name].tobytes() == expected[name].tobytes(), name
    assert snapshot(resumed).tobytes() == snapshot(whole).tobytes()


# -- what is refused


def test_a_file_that_is_not_there_is_named(parts: Assembly, tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.checkpoint", parts)


def test_a_folder_is_no_checkpoint(parts: Assembly, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path, parts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_truncated_file_is_refused(parts: Assembly, saved: Path, share: float) -> None:
    data = saved.read_bytes()
    cut = saved.with_name("cut.checkpoint")
    cut.write_bytes(data[: int(share * len(data))])

    assert "not a checkpoint" in refusal(cut, parts)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True), change=st.integers(1, 255), in_head=st.booleans())
def test_a_file_with_one_changed_byte_is_refused_or_says_the_same(
    parts: Assembly, saved: Path, share: float, change: int, in_head: bool
) -> None:
    data = bytearray(saved.read_bytes())
    data[int(share * (2000 if in_head else len(data)))] ^= change
    damaged = saved.with_name("damaged.checkpoint")
    damaged.write_bytes(data)

    loaded = snapshot(parts)
    with contextlib.suppress(ConfigError):
        loaded = checkpoint.load(damaged, parts)  # the tick may be another, or the name of its key

    assert loaded.tobytes() == snapshot(parts).tobytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_a_foreign_file_is_refused(parts: Assembly, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(data)

    assert "not a checkpoint" in refusal(path, parts)


@pytest.mark.parametrize("body", [[], {}, {"format": "other"}, 7, {"format": ["neuromod-checkpoint"]}], ids=str)
def test_msgpack_of_something_else_is_refused(parts: Assembly, tmp_path: Path, body: Any) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(msgpack.packb(body))

    assert "not a checkpoint of neuromod" in refusal(path, parts)


def changed_data(body: dict[str, Any]) -> None:
    body["data"] = b"\0" + body["data"][1:]


def shorter_data_with_its_checksum(body: dict[str, Any]) -> None:
    body["data"] = body["data"][:-8]
    body["crc32"] = zlib.crc32(body["data"])


def no_data(body: dict[str, Any]) -> None:
    del body["data"]


def other_version(body: dict[str, Any]) -> None:
    body["version"] = 2


def other_part(body: dict[str, Any]) -> None:
    body["parts"][0][2] = [9]


def other_order(body: dict[str, Any]) -> None:
    body["parts"].reverse()


def other_network_layout(body: dict[str, Any]) -> None:
    body["layout"] += 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_data, "checksum"),
        (shorter_data_with_its_checksum, "damaged"),
        (no_data, "damaged"),
        (other_version, "of version 2, this program reads version 1"),
        (other_part, "built otherwise"),
        (other_order, "built otherwise"),
        (other_network_layout, "built otherwise"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(
    parts: Assembly, saved: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    body = body_of(saved)
    change(body)
    saved.write_bytes(msgpack.packb(body))

    assert words in refusal(saved, parts)


@pytest.mark.parametrize(
    "other",
    [
        {"n_channels": 5},
        {"rate": 30000.0},
        {"toml": SESSION.replace('"crossings", ', "")},
        {"toml": SESSION.replace("jitter_ms", "block_ms = 2.0, jitter_ms")},
    ],
    ids=["channels", "rate", "features", "block"],
)
def test_a_checkpoint_of_a_loop_built_otherwise_is_refused(saved: Path, other: dict[str, Any]) -> None:
    assert "built otherwise" in refusal(saved, build(**other))


# -- what would do harm, with a checksum that fits


def spoil(path: Path, parts: Assembly, array: NDArray[Any], change: Callable[[NDArray[Any]], None]) -> None:
    """Change one part of the state in a file, as who writes a file may."""
    body = body_of(path)
    data = bytearray(body["data"])
    at = 0
    for part in parts.parts():
        if part is array:
            break
        at += part.nbytes
    copy = np.frombuffer(bytes(data[at : at + array.nbytes]), array.dtype).reshape(array.shape).copy()
    change(copy)
    data[at : at + array.nbytes] = copy.tobytes()
    body["data"], body["crc32"] = bytes(data), zlib.crc32(bytes(data))
    path.write_bytes(msgpack.packb(body))


def setting(at: Any, value: Any) -> Callable[[NDArray[Any]], None]:
    def change(array: NDArray[Any]) -> None:
        array[at] = value

    return change


@pytest.mark.parametrize("word", ["_REGULAR", "_TICKS_PER_BLOCK", "_FILL_ZERO"])
def test_a_checkpoint_does_not_configure_the_words_of_the_pipeline(parts: Assembly, saved: Path, word: str) -> None:
    spoil(saved, parts, parts.pipeline.words, setting(getattr(pipeline, word), 77))
    assert "another configuration (pipeline.words)" in refusal(saved, parts)


@pytest.mark.parametrize("number", ["_PERIOD", "_FOLLOW", "_TOLERANCE", "_LONGEST_FILL", "_BLOCK_SAMPLES"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_checkpoint_does_not_configure_the_numbers_of_the_pipeline(
    parts: Assembly, saved: Path, number: str, value: float
) -> None:
    spoil(saved, parts, parts.pipeline.numbers, setting(getattr(pipeline, number), value))
    assert "another configuration (pipeline.numbers)" in refusal(saved, parts)


@pytest.mark.parametrize("name", ["settings", "paths", "sos", "blank_mask", "limits", "edges"])
def test_a_checkpoint_does_not_configure_the_front_end(parts: Assembly, saved: Path, name: str) -> None:
    array = getattr(parts.front_end.state, name)
    spoil(saved, parts, array, setting(0, 99 if array.dtype != bool else ~array[0]))
    assert f"another configuration (front_end.{name})" in refusal(saved, parts)


@pytest.mark.parametrize("name", ["options", "numbers", "matrix", "reached"])
def test_a_checkpoint_does_not_configure_the_encoder(parts: Assembly, saved: Path, name: str) -> None:
    spoil(saved, parts, getattr(parts.encoder.state, name), setting(0, 99))
    assert f"another configuration (encoder.{name})" in refusal(saved, parts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"_QUEUE_HEAD": 3, "_QUEUE_TAIL": 4}, "queue"),
        ({"_QUEUE_HEAD": 2000, "_QUEUE_TAIL": 0}, "queue"),
        ({"_QUEUE_HEAD": -1, "_QUEUE_TAIL": -2}, "queue"),
        ({"_QUEUE_HEAD": 2**63 - 1, "_QUEUE_TAIL": -(2**63)}, "queue"),
        ({"INDEX": -5}, "sample -5"),
        ({"INDEX": 2**62}, "block"),
        ({"_BLOCK": -3}, "block -3"),
        ({"_BLOCK": 2**63 - 1}, "block"),
        ({"_MISSING": -1}, "gap"),
        ({"_MISSING": 2**40}, "gap"),
    ],
    ids=str,
)
def test_a_checkpoint_whose_pipeline_stands_nowhere_is_refused(
    parts: Assembly, saved: Path, words: dict[str, int], said: str
) -> None:
    for name, value in words.items():
        spoil(saved, parts, parts.pipeline.words, setting(getattr(pipeline, name), value))
    assert said in refusal(saved, parts)


def test_trains_to_be_blanked_lie_in_their_array(parts: Assembly, saved: Path) -> None:
    state = parts.front_end.state
    whole = saved.read_bytes()
    spoil(saved, parts, state.counters, setting(front_end._TRAINS, 257))
    assert "257 trains" in refusal(saved, parts)
    saved.write_bytes(whole)
    spoil(saved, parts, state.counters, setting(front_end._TRAINS, 1))
    spoil(saved, parts, state.trains, setting((0, 0), 32))
    assert "electrode" in refusal(saved, parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 5), ("n_outputs", 9), ("n_lags", 11), ("n_states", 7), ("n_events", 17), ("newest", 10),
        ("event_output", 8), ("event_channel", 16), ("output_state", 6), ("newest", -1), ("n_lags", -1),
        ("output_state", -1), ("event_output", -1), ("bin_ticks", -1), ("in_bin", -1), ("dt_ms", 2.0),
    ],
)  # fmt: skip
def test_a_decoder_that_would_reach_beyond_its_arrays_is_refused(
    parts: Assembly, saved: Path, field: str, value: float
) -> None:
    def change(array: NDArray[Any]) -> None:
        array[field] = value

    spoil(saved, parts, parts.decoder, change)
    assert field in refusal(saved, parts)


# -- what is no file


def test_a_pipe_is_refused_and_not_waited_on(parts: Assembly, tmp_path: Path) -> None:
    path = tmp_path / "pipe.checkpoint"
    os.mkfifo(path)
    assert "no regular file" in refusal(path, parts)


def test_a_device_without_end_is_refused(parts: Assembly) -> None:
    assert "no regular file" in refusal(Path("/dev/zero"), parts)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(parts: Assembly, tmp_path: Path) -> None:
    path = tmp_path / "large.checkpoint"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse; read, it would not fit into memory
    assert "larger than" in refusal(path, parts)


def test_a_pipe_in_the_way_of_the_half_file_is_not_waited_on(parts: Assembly, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    os.mkfifo(path.with_name(path.name + ".partial"))
    checkpoint.save(path, parts, snapshot(parts), 3)
    assert body_of(path)["tick"] == 3


# -- a crash in the middle


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_on_the_way_leaves_no_half_file(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, is_there: bool
) -> None:
    path = tmp_path / "a.checkpoint"
    if is_there:
        checkpoint.save(path, parts, snapshot(parts), 1)
    before = path.read_bytes() if is_there else None

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, parts, snapshot(parts), 2)

    assert sorted(tmp_path.iterdir()) == ([path] if is_there else [])
    assert (path.read_bytes() if is_there else None) == before


def test_a_process_that_dies_while_it_writes_leaves_the_older_file(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, snapshot(parts), 1)
    seen: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_bytes()))  # a crash here would leave this

    checkpoint.save(path, parts, snapshot(parts), 2)

    assert msgpack.unpackb(seen[0])["tick"] == 1
    assert body_of(path)["tick"] == 2


def test_a_file_that_is_no_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    parts = build()
    precious = tmp_path / "session.toml"
    precious.write_text("[source]\n")
    with pytest.raises(ConfigError, match="not overwritten"):
        checkpoint.save(precious, parts, snapshot(parts), 0)
    assert precious.read_text() == "[source]\n"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    parts = build()
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        checkpoint.save(tmp_path / "nowhere" / "x.checkpoint", parts, snapshot(parts), 0)


def test_a_checkpoint_of_another_encoder_matrix_is_refused(tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.npy"
    toml = f'source = {{kind = "lsl", name = "s"}}\nencoder = {{kind = "matrix", matrix_path = "{matrix}"}}\n'
    np.save(matrix, np.eye(16, 4, dtype=np.float32))
    parts = build(toml=toml)
    checkpoint.save(tmp_path / "a.checkpoint", parts, snapshot(parts), 0)
    np.save(matrix, 2 * np.eye(16, 4, dtype=np.float32))
    with pytest.raises(ConfigError, match="built otherwise"):
        checkpoint.load(tmp_path / "a.checkpoint", build(toml=toml))


def test_how_late_is_late_does_not_matter_to_a_checkpoint(tmp_path: Path) -> None:
    parts = build()
    checkpoint.save(tmp_path / "a.checkpoint", parts, snapshot(parts), 0)
    other = build(toml=SESSION.replace("max_fill_ms = 5.0", "max_fill_ms = 5.0, late_ms = 3.0, stall_ms = 80.0"))
    assert len(checkpoint.load(tmp_path / "a.checkpoint", other)) == len(snapshot(parts))
