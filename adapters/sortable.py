"""Recordings for the offline sorter: the same samples and channels as the loop has them, as spikeinterface has them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.config import RecordingConfig
from neuromod.adapters.readers import NeoReader, Reader, open_extractor, open_spikeinterface
from neuromod.adapters.recording import SPIKEINTERFACE_FORMATS, detect_format
from neuromod.engine.errors import RecordingError


class Sortable(NamedTuple):
    """A recording, opened twice over.

    Attributes
    ----------
    recording : spikeinterface.BaseRecording
        One segment: several follow each other without their gaps. With the probe that the file carries, if any.
    reader : Reader
        The loop's own.
    notes : tuple of str
        What somebody who sorts it should know.
    """

    recording: Any
    reader: Reader
    notes: tuple[str, ...]

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return samples [begin, end), counted over all segments, as the loop sees them."""
        parts, first = [], 0
        for index, segment in enumerate(self.reader.segments):
            low, high = max(begin - first, 0), min(end - first, segment.n_samples)
            if low < high:
                parts.append(self.reader.read(index, low, high))
            first += segment.n_samples
        empty = np.zeros((0, len(self.reader.channel_names)), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate([empty, *parts])


def open_sortable(config: RecordingConfig) -> Sortable:
    """Open a recording for sorting.

    Parameters
    ----------
    config : RecordingConfig
        As the loop would open it.

    Raises
    ------
    RecordingError
        It cannot be opened, holds no raw signal, or its segments do not fit together.
    """
    name = config.format
    if name == "auto":
        name = "binary" if config.dtype else detect_format(config.path)
    if name in ("xdf", "features", "units"):
        raise RecordingError(
            f"{config.path}: a file of {name}; sorting takes raw signal as acquisition systems write it (Blackrock, "
            "SpikeGLX, Open Ephys, NWB, raw binary, ...)"
        )
    if name in SPIKEINTERFACE_FORMATS:
        opened = open_spikeinterface(config, name)
        reader: Reader = opened
        recording = opened.recording
    else:
        neo_reader = NeoReader(config, name)
        reader, recording = neo_reader, open_extractor(config.path, name, neo_reader.stream_id)
        if recording is None:
            recording = reader_recording(reader)
        else:  # spikeinterface takes any unit for microvolt
            recording.set_channel_gains(neo_reader.gain)
            recording.set_channel_offsets(neo_reader.offset)
    notes = []
    if len(reader.segments) > 1:
        from spikeinterface import concatenate_recordings

        notes.append(f"{len(reader.segments)} segments are sorted as one, without the gaps between them")
        recording = concatenate_recordings([recording])
    if int(recording.get_num_channels()) != len(reader.channel_names):
        raise RecordingError(
            f"{config.path}: spikeinterface sees {recording.get_num_channels()} channels, the loop "
            f"{len(reader.channel_names)}; name one stream with --stream"
        )
    if any(unit != "uV" for unit in reader.units):
        notes.append("the file does not say what its samples are in: amplitudes are in its own units")
    return Sortable(recording, reader, tuple(notes))


def reader_recording(reader: Reader) -> Any:
    """Return a spikeinterface recording of what a reader reads, in microvolt where the reader knows them."""
    from spikeinterface.core import BaseRecording, BaseRecordingSegment

    class Segment(BaseRecordingSegment):  # type: ignore[misc]
        def __init__(self, index: int) -> None:
            super().__init__(sampling_frequency=reader.sampling_frequency)
            self._index = index

        def get_num_samples(self) -> int:
            return reader.segments[self._index].n_samples

        def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any = None) -> NDArray[np.float32]:
            traces = reader.read(self._index, start_frame, end_frame)
            return traces if channel_indices is None else traces[:, channel_indices]

    recording = BaseRecording(reader.sampling_frequency, list(reader.channel_names), np.float32)
    for index in range(len(reader.segments)):
        recording.add_recording_segment(Segment(index))
    n_channels = len(reader.channel_names)
    if all(unit == "uV" for unit in reader.units):
        recording.set_channel_gains(np.ones(n_channels))
        recording.set_channel_offsets(np.zeros(n_channels))
    recording._serializability.update(memory=False, json=False, pickle=False)
    return recording
