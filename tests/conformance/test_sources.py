"""The sources that we bring, each held to the contract."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conformance.makers import signal_outlet, write_xdf
from conformance.sources import SourceConformance
from neuromod.adapters.base import Marker, Source
from neuromod.adapters.config import FeaturesConfig, LslConfig, RecordingConfig, UnitsConfig, XdfConfig
from neuromod.adapters.features import FeatureSource
from neuromod.adapters.lsl import LslSource
from neuromod.adapters.memory import MemorySource
from neuromod.adapters.recording import open_recording
from neuromod.adapters.units import UnitSource
from neuromod.adapters.xdf import XdfSource

MARKERS = [Marker(0.02, "go", 1), Marker(0.005, "first"), Marker(9.0, "late", "x")]


class TestMemorySource(SourceConformance):
    @pytest.fixture
    def source(self) -> Source:
        samples = np.random.default_rng(1).normal(size=(50, 3))
        return MemorySource(samples, 1000.0, markers=MARKERS)


class TestMemorySourceWithAClockReset(SourceConformance):
    @pytest.fixture
    def source(self) -> Source:
        stamps = np.concatenate([100.0 + np.arange(25) / 1000.0, np.arange(25) / 1000.0])
        markers = [Marker(0.01, "after the reset"), Marker(100.01, "before the reset")]
        return MemorySource(np.ones((50, 2)), 1000.0, stamps=stamps, markers=markers)

    def test_markers_follow_the_piece_of_clock_that_they_belong_to(self, opened: Source) -> None:
        opened.read(25)
        assert [marker.name for marker in opened.markers()] == ["before the reset"]
        opened.read(25)
        assert [marker.name for marker in opened.markers()] == ["after the reset"]


class TestRawBinaryRecording(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        path = tmp_path / "four.raw"
        np.random.default_rng(2).integers(-999, 999, (40_000, 4), dtype=np.int16).tofile(path)
        return open_recording(
            RecordingConfig(path=path, sampling_frequency_hz=30000.0, n_channels=4, dtype="int16", gain_uv=0.25)
        )


class TestXdfFile(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        return XdfSource(XdfConfig(path=write_xdf(tmp_path / "session.xdf")))


class TestXdfFileOfIrregularRate(SourceConformance):
    is_regular = False

    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        return XdfSource(XdfConfig(path=write_xdf(tmp_path / "session.xdf", rate=0.0), name="signal", bin_ms=10.0))


class TestFeatureMatrix(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        np.save(tmp_path / "counts.npy", np.random.default_rng(3).poisson(2.0, (200, 5)))
        return FeatureSource(FeaturesConfig(path=tmp_path / "counts.npy", bin_ms=50.0))


class TestSpikeTrains(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        rng = np.random.default_rng(4)
        np.save(tmp_path / "spike_times.npy", np.sort(rng.integers(0, 30_000, 500)))
        np.save(tmp_path / "spike_clusters.npy", rng.integers(0, 20, 500))
        return UnitSource(UnitsConfig(path=tmp_path, sampling_frequency_hz=30000.0))


class TestLslStream(SourceConformance):
    is_live = True

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        with signal_outlet("conformance", n_channels=3, keep_sending=True) as outlet:
            yield LslSource(LslConfig(source_id=outlet.source_id))


class TestLslStreamOfIrregularRate(SourceConformance):
    is_live = True
    is_regular = False

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        with signal_outlet("irregular", rate=0.0, keep_sending=True) as outlet:
            yield LslSource(LslConfig(source_id=outlet.source_id, content="features", bin_ms=2.0))
