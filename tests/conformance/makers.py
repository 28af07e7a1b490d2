"""Streams and files to test sources with, written without the code under test."""

import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pylsl


@dataclass
class TestOutlet:
    """An outlet of ours."""

    outlet: Any
    name: str
    source_id: str

    __test__ = False

    def vanish(self) -> None:
        """Destroy the native outlet: the stream is gone from the network."""
        self.outlet = None


@contextmanager
def signal_outlet(
    name: str,
    *,
    source_id: str | None = None,
    n_channels: int = 2,
    rate: float = 1000.0,
    fmt: int = pylsl.cf_float32,
    units: list[str] | None = None,
    labels: list[str] | None = None,
    type: str = "EEG",
    keep_sending: bool = False,
) -> Iterator[TestOutlet]:
    """Give an outlet that lives as long as the block; with `keep_sending`, samples keep coming."""
    source_id = f"{name}-id" if source_id is None else source_id
    info = pylsl.StreamInfo(name, type, n_channels, rate, fmt, source_id)
    if labels:
        info.set_channel_labels(labels)
    if units:
        info.set_channel_units(units)
    ours = TestOutlet(pylsl.StreamOutlet(info), name, source_id)
    done = threading.Event()

    def send() -> None:
        while not done.wait(0.002):
            ours.outlet.push_sample([1.0] * n_channels)

    thread = threading.Thread(target=send) if keep_sending else None
    if thread:
        thread.start()
    try:
        yield ours
    finally:
        done.set()
        if thread:
            thread.join()
        ours.vanish()


class Sender:
    """A process that holds an outlet of one channel, and can be made to stand still while its kernel still answers."""

    def __init__(self, name: str, source_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SENDER, name, source_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def freeze(self) -> None:
        """Stop every thread of it; connections to its ports are still taken, and never answered."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it, frozen or not."""
        self._process.kill()
        self._process.communicate()


_SENDER = """
import sys
import pylsl
outlet = pylsl.StreamOutlet(pylsl.StreamInfo(sys.argv[1], "EEG", 1, 1000.0, pylsl.cf_float32, sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def sender(name: str, source_id: str) -> Iterator[Sender]:
    """Give an outlet in a process of its own, which ends with the block."""
    process = Sender(name, source_id)
    try:
        yield process
    finally:
        process.kill()


def _chunk(tag: int, content: bytes) -> bytes:
    return struct.pack("<BIH", 4, len(content) + 2, tag) + content


def _header(stream_id: int, name: str, type_: str, n: int, rate: float, fmt: str, host: str, desc: str = "") -> bytes:
    xml = (
        f"<info><name>{name}</name><type>{type_}</type><channel_count>{n}</channel_count><nominal_srate>{rate}"
        f"</nominal_srate><channel_format>{fmt}</channel_format><source_id>{name}-id</source_id>"
        f"<hostname>{host}</hostname><desc>{desc}</desc></info>"
    )
    return _chunk(2, struct.pack("<I", stream_id) + xml.encode())


def _offsets(stream_id: int, time: float, value: float) -> bytes:
    return _chunk(4, struct.pack("<Idd", stream_id, time, value))


def write_xdf(
    path: Path, *, n: int = 300, rate: float = 100.0, stamps: np.ndarray | None = None, marker_offset_s: float = 50.0
) -> Path:
    """Write an XDF file: a 2-channel signal at 100 Hz in millivolt, and markers from another host's clock.

    The signal's clock is the recorder's minus 10 s; the markers' is the recorder's minus `marker_offset_s`. The
    marker "go" happens when sample 100 does. Sample i holds (i, -i). A `rate` of 0 is stated as irregular.
    """
    if stamps is None:
        stamps = 1000.0 + np.arange(n) / 100.0
    desc = "<channels>" + "".join(
        f"<channel><label>{label}</label><unit>mV</unit></channel>" for label in ("left", "right")
    ) + "</channels>"  # fmt: skip
    parts = [b"XDF:", _chunk(1, b"<info><version>1.0</version></info>")]
    parts.append(_header(1, "signal", "EEG", 2, rate, "float32", "rig-a", desc))
    parts.append(_header(2, "events", "Markers", 1, 0.0, "string", "rig-b"))
    for time in (1010.0, 1012.0):
        parts += [_offsets(1, time, 10.0), _offsets(2, time, marker_offset_s)]
    rows = b"".join(struct.pack("<Bdff", 8, stamp, i, -i) for i, stamp in enumerate(stamps))
    parts.append(_chunk(3, struct.pack("<IBI", 1, 4, n) + rows))
    word = b"go"
    event = struct.pack("<BdBB", 8, stamps[min(100, n - 1)] + 10.0 - marker_offset_s, 1, len(word)) + word
    parts.append(_chunk(3, struct.pack("<IBI", 2, 4, 1) + event))
    path.write_bytes(b"".join(parts))
    return path
