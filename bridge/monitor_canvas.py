"""A grid of characters to draw on, with the styles and characters that a terminal has; it knows nothing of a daemon.

Colours say nothing that a character does not say too: levels are heights or shades, states are words. They are those of
Okabe and Ito, and of viridis, which people with any kind of colour vision can tell apart.
"""

import functools
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

_HEAT: Final = ("#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
STYLES: Final = (
    "",
    "bold",
    "dim",
    "#56b4e9",  # sky blue
    "#e69f00",  # orange
    "#cc79a7",  # purple
    "#009e73",  # green
    "bold #f0e442",  # yellow
    "bold #ffffff on #b33c00",  # alarm
    "bold #000000 on #e69f00",  # armed
    "bold #ffffff on #2b4a5e",  # bar
    "#7f8c94",  # frame
    *_HEAT,
)
PLAIN, BOLD, DIM, SKY, ORANGE, PURPLE, GREEN, YELLOW, ALARM, ARMED, BAR, FRAME, HEAT = range(13)
N_HEAT: Final = len(_HEAT)


class Glyphs(NamedTuple):
    """Characters to draw with, as far as a terminal has them."""

    heights: str
    shades: str
    is_braille: bool
    raster: tuple[str, str, str, str]  # neither, first, second, both
    horizontal: str
    vertical: str
    corners: str
    dot: str
    cross: str


GLYPHS: Final = {
    "braille": Glyphs(" ▁▂▃▄▅▆▇█", "·░▒▓█", True, (" ", "▀", "▄", "█"), "─", "│", "╭╮╰╯", "●", "×"),
    "blocks": Glyphs(" ░▒▓█", "·░▒▓█", False, (" ", "▀", "▄", "█"), "─", "│", "┌┐└┘", "■", "x"),
    "ascii": Glyphs(" .:-=+*#@", ".:+*#", False, (" ", "'", ".", ":"), "-", "|", "++++", "*", "x"),
}
"""By what a terminal shows: any modern one, the console of Linux, and one without Unicode."""


class Rect(NamedTuple):
    """A part of the screen."""

    y: int
    x: int
    height: int
    width: int


class Canvas:
    """A grid of characters, each with the index of its style in `STYLES`; behind a wide one is an empty cell."""

    def __init__(self, width: int, height: int, glyphs: Glyphs) -> None:
        self.width, self.height, self.glyphs = width, height, glyphs
        self.cells = np.full((height, width), " ", "<U1")
        self.styles = np.zeros((height, width), np.uint8)

    def text(self, y: int, x: int, text: str, style: int = PLAIN, end: int | None = None) -> int:
        """Write on one line, cut off before column `end`; return the column after it."""
        end = self.width if end is None else min(end, self.width)
        if not (0 <= y < self.height and x < end):
            return x
        cells = _cells(text, self.glyphs is GLYPHS["ascii"])
        if len(cells) > end - x:
            # half of a wide character is none
            cells = (*cells[: end - x - 1], " " if cells[end - x] == "" else cells[end - x - 1])
        self.cells[y, x : x + len(cells)] = cells
        self.styles[y, x : x + len(cells)] = style
        return x + len(cells)

    def words(self, y: int, x: int, parts: Sequence[tuple[str, int]], end: int | None = None) -> int:
        """Write parts of several styles one after the other."""
        for text, style in parts:
            x = self.text(y, x, text, style, end)
        return x

    def paragraph(self, rect: Rect, text: str, style: int = DIM) -> int:
        """Write on as many lines as it takes, a column off the left; return how many lines."""
        lines = textwrap.wrap(text, max(1, rect.width - 1))[: rect.height]
        for row, line in enumerate(lines):
            self.text(rect.y + row, rect.x + 1, line, style, rect.x + rect.width)
        return len(lines)

    def fill(self, rect: Rect, style: int) -> None:
        """Paint a part in a style, and empty it."""
        rows, columns = slice(rect.y, rect.y + rect.height), slice(rect.x, rect.x + rect.width)
        self.cells[rows, columns], self.styles[rows, columns] = " ", style

    def frame(self, rect: Rect, title: str, note: str = "") -> Rect:
        """Draw a frame with a title; return what is inside."""
        y, x, height, width = rect
        if height < 3 or width < 6:
            return Rect(y, x, 0, 0)
        g = self.glyphs
        for row, at in ((y, 0), (y + height - 1, 2)):
            self.text(row, x, g.corners[at] + g.horizontal * (width - 2) + g.corners[at + 1], FRAME)
        for row in range(y + 1, y + height - 1):
            self.text(row, x, g.vertical, FRAME)
            self.text(row, x + width - 1, g.vertical, FRAME)
        at = self.text(y, x + 2, f" {title} ", BOLD, x + width - 1)
        if note and at + len(note) + 3 < x + width:
            self.text(y, x + width - len(note) - 4, f" {note} ", DIM)
        return Rect(y + 1, x + 1, height - 2, width - 2)

    def dots(self, rect: Rect, dots: NDArray[np.bool_], style: int) -> None:
        """Draw a picture of dots, shape `dots_in` of the part."""
        y, x, height, width = rect
        if height < 1 or width < 1:
            return
        if self.glyphs.is_braille:
            bits = dots.reshape(height, 4, width, 2).astype(np.uint16)
            weights = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint16)
            codes = (bits * weights[None, :, None, :]).sum(axis=(1, 3))
            cells = np.where(codes == 0, " ", (codes + 0x2800).astype(np.uint32).view("<U1"))
        else:
            pairs = dots.reshape(height, 2, width)
            cells = np.array(self.glyphs.raster)[pairs[:, 0] + 2 * pairs[:, 1].astype(np.int64)]
        place = (slice(y, y + height), slice(x, x + width))
        self.cells[place] = cells
        self.styles[place] = np.where(cells == " ", self.styles[place], style)

    def dots_in(self, rect: Rect) -> tuple[int, int]:
        """Return rows and columns of dots that a part has."""
        return (4 * rect.height, 2 * rect.width) if self.glyphs.is_braille else (2 * rect.height, rect.width)

    def bar(self, y: int, x: int, width: int, share: float, style: int) -> None:
        """Draw a level from 0 to 1 as a horizontal bar."""
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
        full = round(share * width)
        solid, empty = ("#", ".") if self.glyphs is GLYPHS["ascii"] else ("█", "·")
        self.text(y, x, solid * full, style)
        self.text(y, x + full, empty * (width - full), DIM)

    def spark(self, rect: Rect, values: Sequence[float], top: float, style: int) -> None:
        """Draw values as columns that end at the right, `top` as high as the part."""
        steps = len(self.glyphs.heights) - 1
        shares = np.asarray(values, np.float64)[-rect.width :] / (top if top > 0 else math.inf)
        levels = np.round(np.clip(np.nan_to_num(shares), 0.0, 1.0) * steps * rect.height).astype(np.int64)
        rows = np.arange(rect.height)[::-1, None]
        here = np.clip(np.maximum(levels, 1) - rows * steps, 0, steps)
        end = rect.x + rect.width
        place = (slice(rect.y, rect.y + rect.height), slice(end - len(shares), end))
        self.cells[place] = np.where(here > 0, np.array(list(self.glyphs.heights))[here], self.cells[place])
        self.styles[place] = np.where(here > 0, style, self.styles[place])

    def lines(self) -> list[str]:
        """Return the picture as text."""
        return ["".join(row).rstrip() for row in self.cells.tolist()]


@functools.lru_cache(maxsize=4096)
def _cells(text: str, is_ascii: bool) -> tuple[str, ...]:
    """Return what stands in each cell; whoever may send an event may send anything, also what moves a cursor."""
    cells: list[str] = []
    for character in unicodedata.normalize("NFC", text):
        if not character.isprintable() or (is_ascii and not character.isascii()):
            cells.append("?")
        elif width := cell_len(character):
            cells += [character, *[""] * (width - 1)]
    return tuple(cells)
