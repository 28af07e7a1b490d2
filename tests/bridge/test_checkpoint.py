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
from neuromod.bridge import checkpoint
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.config import parse
from neuromod.bridge.pipeline import TICK_NEXT, enqueue_stimuli
from neuromod.engine.errors import ConfigError
from neuromod.engine.tick import add_reward

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
