"""The live view of the demonstration: raster, rates, latency."""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuromod.adapters.base import StreamInfo
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS

_COLUMN_TICKS = 50
_COLUMNS = 60
_DENSITY = " ▂▅█"
_LINE_EVERY_TICKS = 2000
_NAMES = {COINCIDENCE: "coincidence", INHIBITORY: "interneuron"}


class View:
    """What the subscriber has heard, drawn; a rich renderable.

    Parameters
    ----------
    info : StreamInfo
        The stream, for the title.
    seconds : float
        How long it will run.
    """

    def __init__(self, info: StreamInfo, seconds: float) -> None:
        self._info, self._seconds = info, seconds
        self._columns: deque[NDArray[np.int64]] = deque(maxlen=_COLUMNS)
        self._open = np.zeros(N_CHANNELS, np.int64)
        self._open_ticks = 0
        self._n_ticks = 0
        self._said_ticks = 0
        self._latency_us: NDArray[np.float64] = np.empty(0)
        self._elapsed_s = 0.0
        self._t0: float | None = None

    def add(self, heard: NDArray[Any]) -> None:
        """Take in messages, an array of HEARD."""
        if not len(heard):
            return
        self._t0 = float(heard["t_arrival"][0]) if self._t0 is None else self._t0
        self._elapsed_s = float(heard["t_arrival"][-1]) - self._t0
        self._n_ticks += len(heard)
        self._latency_us = np.concatenate([self._latency_us, (heard["t_arrival"] - heard["t_sample"]) * 1e6])[-5000:]
        fired = (heard["spikes"][:, None] >> np.arange(N_CHANNELS, dtype=np.uint32)) & 1
        for row in fired.astype(np.int64):
            self._open += row
            self._open_ticks += 1
            if self._open_ticks == _COLUMN_TICKS:
                self._columns.append(self._open)
                self._open, self._open_ticks = np.zeros(N_CHANNELS, np.int64), 0

    def print_line(self, console: Console) -> None:
        """Print a line every two thousand ticks, where there is no terminal to draw on."""
        if self._n_ticks - self._said_ticks >= _LINE_EVERY_TICKS:
            self._said_ticks = self._n_ticks
            console.print(f"{self._n_ticks:,} ticks, {self._latency_line()}")

    def __rich__(self) -> RenderableType:
        """Draw."""
        info = self._info
        title = (
            f"{info.n_channels} channels at {info.sampling_frequency:g} Hz over LSL -> 16 spiking channels -> ZeroMQ"
            f"   {self._elapsed_s:4.1f} / {self._seconds:g} s"
        )
        grid = Table.grid(padding=(0, 1))
        rates = self._rates_hz()
        for i in range(N_CHANNELS):
            cells = "".join(_DENSITY[min(int(column[i]), len(_DENSITY) - 1)] for column in self._columns)
            style = "yellow" if i in _NAMES else "cyan"
            grid.add_row(f"{i:2d}", Text(cells.rjust(_COLUMNS), style=style), f"{rates[i]:5.1f} Hz", _NAMES.get(i, ""))
        return Group(Text(title, style="bold"), grid, Text(f"{self._n_ticks:,} ticks, {self._latency_line()}"))

    def _rates_hz(self) -> NDArray[np.float64]:
        if not self._columns or self._elapsed_s <= 0:
            return np.zeros(N_CHANNELS)
        ticks_per_s = self._n_ticks / self._elapsed_s
        shown: NDArray[np.float64] = np.sum(self._columns, axis=0) / (len(self._columns) * _COLUMN_TICKS) * ticks_per_s
        return shown

    def _latency_line(self) -> str:
        if not len(self._latency_us):
            return "waiting for the first tick"
        p50, p99 = np.percentile(self._latency_us, [50, 99])
        return f"sample to subscriber p50 {p50:.0f} us, p99 {p99:.0f} us"
