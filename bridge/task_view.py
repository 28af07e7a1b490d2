"""The live view of the centre-out task: the plane with cursor and target, the success so far, the weights."""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuromod.engine.centre_out import BOUND, N_INPUTS, N_OUTPUTS, CentreOutTask, Condition

_ROWS, _COLUMNS = 17, 35  # a character is about twice as high as wide
_EXTENT = 1.35  # half the side of what is shown, in distances to a target; beyond, the cursor sticks to the edge
_WINDOW = 20
_BARS = " ▁▂▃▄▅▆▇█"
_ARROWS = "→↑←↓"
_CURVE_COLUMNS = 60
_W_MAX_MV = 5.0
_TRAIL = 25

assert _EXTENT <= BOUND


class TaskView:
    """What the task shows, drawn; a rich renderable, to be put into `rich.live.Live` at 10 Hz.

    One thread calls `watch`; another may draw.

    Attributes
    ----------
    weights : ndarray of float32, shape (8, 4), or None
        From inputs to outputs, in mV; set it whenever they are known.
    """

    def __init__(self) -> None:
        self.weights: NDArray[np.float32] | None = None
        self._lock = threading.Lock()
        self._seed, self._n_trials, self._said = 0, 0, 0
        self._condition: Condition | None = None
        self._outcomes: list[bool] = []
        self._trail: deque[tuple[float, float]] = deque(maxlen=_TRAIL)
        self._targets: NDArray[np.float64] = np.empty((0, 2))
        self._target: int | None = None
        self._cursor, self._radius = (0.0, 0.0), 0.0
        self._was_moving = False

    def begin(self, seed: int, n_trials: int) -> None:
        """Forget what was: another network begins."""
        with self._lock:
            self._seed, self._n_trials = seed, n_trials
            self.weights = None
            self._clear()

    def watch(self, condition: Condition, task: CentreOutTask) -> None:
        """Look at the task; called after each answer."""
        with self._lock:
            if condition != self._condition or task.n_done < len(self._outcomes) - 1:
                self._clear()
            self._condition = condition
            if self._was_moving and not task.is_moving:
                self._outcomes.append(task.cursor.touched == task.target)
            if task.is_moving and not self._was_moving:
                self._trail.clear()
            self._was_moving = task.is_moving
            self._targets = task.cursor.targets
            self._target = None if task.is_finished else task.target
            self._cursor = task.cursor.position
            self._radius = task.cursor.radius
            if task.is_moving:
                self._trail.append(self._cursor)

    def print_line(self, console: Console) -> None:
        """Print a line each fifty trials, where there is no terminal to draw on."""
        with self._lock:
            n = len(self._outcomes)
            if n and n % 50 == 0 and n != self._said:
                self._said = n
                share = np.mean(self._outcomes[-50:])
                console.print(f"{self._condition}, seed {self._seed}: {n} trials, {share:.0%} of the last 50 succeeded")

    def __rich__(self) -> RenderableType:
        """Draw."""
        with self._lock:
            n = len(self._outcomes)
            recent = self._outcomes[-_WINDOW:]
            share = f"{np.mean(recent):.0%} of the last {len(recent)}" if recent else "no trial yet"
            what = f"centre-out, {self._condition or 'waiting'}, seed {self._seed}"
            title = f"{what}   trial {n} / {self._n_trials}   {share}"
            layout = Table.grid(padding=(0, 3))
            layout.add_row(self._plane(), self._weights())
            return Group(Text(title, style="bold"), layout, Text("success "), self._curve())

    def _clear(self) -> None:
        self._condition = None
        self._outcomes.clear()
        self._trail.clear()
        self._was_moving = False
        self._said = 0

    def _plane(self) -> Text:
        cells = [[(" ", "")] * _COLUMNS for _ in range(_ROWS)]
        for row in range(_ROWS):
            for column in range(_COLUMNS):
                x, y = _EXTENT * (2 * column / (_COLUMNS - 1) - 1), _EXTENT * (1 - 2 * row / (_ROWS - 1))
                inside = np.flatnonzero(((self._targets - (x, y)) ** 2).sum(axis=1) <= self._radius**2)
                if len(inside):
                    lit = int(inside[0]) == self._target and self._was_moving
                    cells[row][column] = ("█", "green") if lit else ("░", "dim")
        for at in self._trail:
            row, column = _cell(at)
            cells[row][column] = ("·", "yellow")
        row, column = _cell(self._cursor)
        cells[row][column] = ("●", "bold yellow")
        text = Text()
        for line in cells:
            for character, style in line:
                text.append(character, style)
            text.append("\n")
        return text

    def _weights(self) -> RenderableType:
        if self.weights is None:
            return Text("weights: not read yet", style="dim")
        table = Table(title="weights, mV", show_edge=False, box=None)
        table.add_column("aim")
        for arrow in _ARROWS[:N_OUTPUTS]:
            table.add_column(arrow, justify="center")
        for k in range(N_INPUTS):
            bars = [_bar(float(weight) / _W_MAX_MV) * 3 for weight in self.weights[k]]
            table.add_row(f"{(k + 0.5) * 360 / N_INPUTS:5.1f}°", *(Text(bar, style="cyan") for bar in bars))
        return table

    def _curve(self) -> Text:
        n = len(self._outcomes)
        if n < _WINDOW:
            return Text("")
        shares = np.convolve(self._outcomes, np.ones(_WINDOW) / _WINDOW, "valid")
        shown = shares[np.linspace(0, len(shares) - 1, min(len(shares), _CURVE_COLUMNS)).astype(int)]
        return Text("".join(_bar(float(share)) for share in shown), style="green")


def _cell(at: tuple[float, float]) -> tuple[int, int]:
    """Row and column of a position; the edge for one beyond it."""
    column = round((at[0] / _EXTENT + 1) / 2 * (_COLUMNS - 1))
    row = round((1 - at[1] / _EXTENT) / 2 * (_ROWS - 1))
    return min(max(row, 0), _ROWS - 1), min(max(column, 0), _COLUMNS - 1)


def _bar(share: float) -> str:
    return _BARS[min(max(round(share * (len(_BARS) - 1)), 0), len(_BARS) - 1)]
