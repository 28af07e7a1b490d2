"""Sessions that sort: units are features, their spikes come out of the pipeline, on the wire, and out of a replay."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from naive.sorted_signals import FREQUENCY, N_CHANNELS, N_UNITS, bundle_of, known
from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.frames import fill_units, units_frame
from neuromod.bridge.pipeline import UNIT
from neuromod.bridge.replay import play
from neuromod.engine.errors import ConfigError
from neuromod.sorting.config import FrontEndConfig
from neuromod.sorting.front_end import FrontEnd, finish_block, push


@pytest.fixture(scope="module")
def sorting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(known(20.0, 1, 400.0), 400.0).save(tmp_path_factory.mktemp("sorted") / "sorting")


def session(folder: Path, sorting: Path, n_channels: int = N_CHANNELS, **front_end: Any) -> SessionConfig:
    """A session that plays 4 s of known spikes."""
    path = folder / "signal.raw"
    path.write_bytes(known(4.0, 2, 400.0).signal[:, :n_channels].tobytes())
    return SessionConfig.model_validate(
        {
            "source": {
                "kind": "recording",
                "path": path,
                "format": "binary",
                "sampling_frequency_hz": FREQUENCY,
                "n_channels": n_channels,
                "dtype": "float32",
                "gain_uv": 1.0,
            },
            "front_end": {"units": {"bundle": sorting}, **front_end},
            "encoder": {"warmup_s": 1.0},
        }
    )


def test_a_session_that_names_a_sorting_gives_the_spikes_of_its_units_and_stimuli_of_them(
    tmp_path: Path, sorting: Path
) -> None:
    truth = known(4.0, 2, 400.0)
    config = session(tmp_path, sorting)

    result, again = play(config), play(config)
    units = result.log.unit_spikes()

    found = set(zip(units["unit"].tolist(), ((units["sample"] - 1) // 15).tolist(), strict=True))
    true = list(zip(truth.units.tolist(), (truth.samples // 15).tolist(), strict=True))
    hits = sum(any((u, t + d) in found for d in (-1, 0, 1)) for u, t in true)
    assert hits / len(true) > 0.93  # those of the last 2 ms are not decided on
    assert len(units) < 1.05 * len(true)
    # a spike goes into the stimuli of the block that completes it
    assert np.all(units["tick"].astype(np.int64) - units["sample"].astype(np.int64) // 30 <= 3)
    assert np.allclose(units["t_sample"] * FREQUENCY, units["sample"].astype(float) - 1.0, atol=1e-3)
    assert sum(result.log.spikes_per_channel()) > 0
    assert result.log.digest() == again.log.digest()


def test_units_stand_behind_the_features_of_channels(sorting: Path) -> None:
    config = FrontEndConfig.model_validate(
        {"features": ["crossings", "units"], "units": {"bundle": sorting}, "warmup_s": 0.2}
    )
    truth = known(1.0, 2, 400.0)
    front_end = FrontEnd(config, N_CHANNELS, FREQUENCY)
    features = np.zeros(front_end.n_features, np.float32)
    total = np.zeros(front_end.n_features)

    for block in truth.signal.reshape(-1, 30, N_CHANNELS):
        push(front_end.state, block)
        finish_block(front_end.state, features)
        total += np.nan_to_num(features)

    assert front_end.feature_names[-N_UNITS:] == tuple(f"u{u}" for u in range(N_UNITS))
    assert front_end.n_features == N_CHANNELS + N_UNITS
    live = truth.samples > 6000  # after the warm-up
    expected = np.bincount(truth.units[live], minlength=N_UNITS)
    assert np.all(np.abs(total[N_CHANNELS:] - expected) <= 0.15 * expected + 2)
    assert front_end.describe_units()["engine"] == "sparse"


def test_a_sorting_of_another_array_is_refused(tmp_path: Path, sorting: Path) -> None:
    with pytest.raises(ConfigError, match="sorted from 8 channels, the stream has 4"):
        play(session(tmp_path, sorting, n_channels=4))


def test_a_folder_without_a_sorting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no bundle\.json"):
        play(session(tmp_path, tmp_path))


@pytest.mark.parametrize(
    "front_end, word",
    [
        ({"features": ["units"]}, "takes a sorting"),
        ({"features": ["crossings"], "units": {"bundle": "sorting"}}, "leaves units out"),
    ],
)
def test_units_and_a_sorting_go_together(front_end: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        FrontEndConfig.model_validate(front_end)


def test_the_loop_fills_the_frame_that_the_client_reads() -> None:
    record = np.zeros(1, UNIT)
    record[0] = (5, 17, 1234, 12.5, 0.93, 1.08, 301, int(wire.Flag.FILLED))
    frame = units_frame()

    fill_units(frame, 7, 12.5021, record[0])

    message = wire.UnitMessage(7, 17, 1234, 12.5, 12.5021, 301, 0.93, 1.08, wire.Flag.FILLED)
    assert frame.tobytes() == wire.pack_unit(message)
    assert wire.unpack_output(wire.TOPIC_UNITS, frame.tobytes()) == message
    assert set(msgpack.unpackb(frame.tobytes())) >= {"v", "unit", "amplitude"}
