"""What every source keeps, whoever wrote it.

Subclass `SourceConformance`, return a fresh and unopened source of a stream of at least 20 samples from `make_source`,
and the tests below are yours.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from neuromod.adapters.base import Chunk, Marker, Source
from neuromod.engine.errors import AdapterError

TIMEOUT_S = 2.0


def read_all(source: Source, max_samples: int = 1000, enough: int | None = None) -> Chunk:
    """Read to the end, or until so many samples have come; a live source that falls silent for 2 s ends it too."""
    chunks = []
    n = 0
    while not source.ended and (enough is None or n < enough):
        chunk = source.read(max_samples if enough is None else min(max_samples, enough - n), TIMEOUT_S)
        if not len(chunk):
            break
        n += len(chunk)
        chunks.append(chunk)
    if not chunks:
        return source.read(max_samples)
    return Chunk(np.concatenate([c.samples for c in chunks]), np.concatenate([c.stamps for c in chunks]))


class SourceConformance:
    """Subclass it as Test..., and give it `make_source`."""

    is_live = False
    is_regular = True

    @pytest.fixture
    def source(self) -> Source:
        """A fresh source, not open."""
        raise NotImplementedError("override the fixture `source`")

    @pytest.fixture
    def opened(self, source: Source) -> Iterator[Source]:
        source.open()
        yield source
        source.close()

    def test_a_source_that_is_not_open_says_so(self, source: Source) -> None:
        with pytest.raises(AdapterError, match="not open"):
            _ = source.info
        with pytest.raises(AdapterError, match="not open"):
            source.read(1)
        assert not source.ended

    def test_its_info_is_complete(self, opened: Source) -> None:
        info = opened.info
        assert info.name
        assert info.kind in ("signal", "features")
        assert info.n_channels == len(info.channel_names) == len(info.units) > 0
        assert len(set(info.channel_names)) == info.n_channels
        assert info.sampling_frequency > 0
        assert info.is_regular is self.is_regular
        if self.is_live:
            assert info.n_samples is None
        else:
            assert info.n_samples is not None
            assert info.duration_s is not None
            assert info.n_samples >= 20

    def test_chunks_are_float32_with_a_float64_stamp_each(self, opened: Source) -> None:
        chunk = opened.read(7, TIMEOUT_S)
        assert 1 <= len(chunk) <= 7
        assert chunk.samples.dtype == np.float32
        assert chunk.samples.shape == (len(chunk), opened.info.n_channels)
        assert chunk.samples.flags.c_contiguous
        assert chunk.samples.flags.writeable
        assert chunk.stamps.dtype == np.float64
        assert np.isfinite(chunk.stamps).all()

    def test_a_chunk_handed_out_is_never_changed_again(self, opened: Source) -> None:
        first = opened.read(3, TIMEOUT_S)
        samples, stamps = first.samples.copy(), first.stamps.copy()
        first.samples[:] += 0
        opened.read(1000, TIMEOUT_S)
        np.testing.assert_array_equal(first.samples, samples)
        np.testing.assert_array_equal(first.stamps, stamps)

    def test_opening_twice_changes_nothing(self, opened: Source) -> None:
        info = opened.info
        opened.open()
        assert opened.info == info

    def test_closing_twice_and_unopened_is_safe(self, source: Source) -> None:
        source.close()
        source.open()
        source.close()
        source.close()
        with pytest.raises(AdapterError, match="not open"):
            source.read(1)

    def test_quirks_are_counts_by_name(self, opened: Source) -> None:
        assert all(isinstance(name, str) and isinstance(n, int) and n > 0 for name, n in opened.quirks.items())

    def test_it_ends_after_exactly_its_samples_and_stays_ended(self, opened: Source) -> None:
        if self.is_live:
            pytest.skip("a live stream does not end")
        everything = read_all(opened, 13)
        assert len(everything) == opened.info.n_samples
        assert opened.ended
        assert len(opened.read(5)) == 0

    def test_the_split_into_chunks_changes_neither_samples_nor_stamps(self, source: Source) -> None:
        if self.is_live:
            pytest.skip("a live stream cannot be read twice")
        played = []
        for max_samples in (1, 7, 100_000):
            source.open()
            limit = 2000 if max_samples == 1 else 100_000
            chunks = read_all(source, max_samples, enough=min(limit, source.info.n_samples or 0))
            played.append(chunks)
            source.close()
        n = min(len(chunk) for chunk in played)
        for chunk in played[1:]:
            np.testing.assert_array_equal(chunk.samples[:n], played[0].samples[:n])
            np.testing.assert_array_equal(chunk.stamps[:n], played[0].stamps[:n])

    def test_it_can_be_played_again_after_closing(self, source: Source) -> None:
        if self.is_live:
            pytest.skip("a live stream cannot be read twice")
        source.open()
        first = read_all(source)
        first_markers = source.markers()
        source.close()
        source.open()
        again = read_all(source)
        np.testing.assert_array_equal(first.samples, again.samples)
        assert source.markers() == first_markers
        source.close()

    def test_every_marker_is_handed_over_once_and_not_before_its_sample(self, opened: Source) -> None:
        if self.is_live:
            pytest.skip("markers of live streams are streams of their own")
        seen: list[Marker] = []
        newest = -np.inf
        while not opened.ended:
            chunk = opened.read(11)
            newest = max(newest, float(chunk.stamps.max()))
            new = opened.markers()
            if not opened.ended:
                assert all(marker.t <= newest for marker in new)
            seen += new
        seen += opened.markers()
        assert opened.markers() == []
        assert all(np.isfinite(marker.t) for marker in seen)
        assert all(isinstance(marker.name, str) for marker in seen)
