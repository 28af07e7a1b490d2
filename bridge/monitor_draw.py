"""Draws what a monitor knows on a grid of characters: no terminal, no state. One call, one picture.

Colours say nothing that a character does not say too: levels are heights or shades, states are words. They are those of
Okabe and Ito, and of viridis, which people with any kind of colour vision can tell apart.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.monitor_model import Gate, Model
from neuromod.bridge.wire import N_CHANNELS, EventMessage, Flag
from neuromod.engine.layout import COINCIDENCE, INHIBITORY

PAGES: Final = ("overview", "array", "gate", "loop", "events")
RASTER_S: Final = 5.0
SMALLEST: Final = (60, 16)

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

_FLAG_LETTERS: Final = (
    (Flag.DISCONTINUITY, "D"),
    (Flag.BOARD, "X"),
    (Flag.NONFINITE, "N"),
    (Flag.FILLER, "-"),
    (Flag.PAUSED, "="),
    (Flag.FILLED, "f"),
    (Flag.LATE, "L"),
    (Flag.BLANKED, "b"),
    (Flag.MODULATED, "m"),
)
"""The gravest first: a column of time shows one."""

_LETTERS: Final = {
    "A": ("▄▀▄", "█▀█", "▀ ▀"), "R": ("█▀▄", "█▀▄", "▀ ▀"), "M": ("█▄█", "█▀█", "▀ ▀"), "E": ("█▀▀", "█▀ ", "▀▀▀"),
    "D": ("█▀▄", "█ █", "▀▀ "),
}  # fmt: skip


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
    """A grid of characters, each with the index of its style in `STYLES`."""

    def __init__(self, width: int, height: int, glyphs: Glyphs) -> None:
        self.width, self.height, self.glyphs = width, height, glyphs
        self.cells = np.full((height, width), " ", "<U1")
        self.styles = np.zeros((height, width), np.uint8)

    def text(self, y: int, x: int, text: str, style: int = PLAIN, end: int | None = None) -> int:
        """Write on one line, cut off before column `end`; return the column after it."""
        end = self.width if end is None else min(end, self.width)
        if not (0 <= y < self.height and x < end):
            return x
        text = text[: end - x]
        if text:
            self.cells[y, x : x + len(text)] = list(text)
            self.styles[y, x : x + len(text)] = style
        return x + len(text)

    def words(self, y: int, x: int, parts: Sequence[tuple[str, int]], end: int | None = None) -> int:
        """Write parts of several styles one after the other."""
        for text, style in parts:
            x = self.text(y, x, text, style, end)
        return x

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
        shown = list(values)[-rect.width :]
        for i, value in enumerate(shown):
            x = rect.x + rect.width - len(shown) + i
            level = round(min(value / top, 1.0) * steps * rect.height) if top > 0 and math.isfinite(value) else 0
            level = max(level, 1)
            for row in range(rect.height):
                here = min(max(level - row * steps, 0), steps)
                if here:
                    self.text(rect.y + rect.height - 1 - row, x, self.glyphs.heights[here], style)

    def lines(self) -> list[str]:
        """Return the picture as text."""
        return ["".join(row).rstrip() for row in self.cells.tolist()]


@dataclass(frozen=True, slots=True)
class Screen:
    """What is drawn beside the model.

    Attributes
    ----------
    page : str
        One of `PAGES`.
    addresses : mapping of str to str
        Of the daemon, to say where nobody answers.
    notice, is_alarming : str, bool
        A word of the monitor itself: what became of a stop, or of a note.
    is_frozen : bool
        The display is paused.
    can_steer : bool
        Keys do something; a picture that is printed has none.
    """

    page: str = "overview"
    addresses: tuple[tuple[str, str], ...] = ()
    notice: str = ""
    is_alarming: bool = False
    is_frozen: bool = False
    can_steer: bool = True


def draw(model: Model, now: float, width: int, height: int, screen: Screen, glyphs: Glyphs) -> Canvas:
    """Draw a whole screen.

    Parameters
    ----------
    model : Model
        What is known.
    now : float
        The moment, on the clock that the model was given.
    width, height : int
        Of the terminal, in characters.
    screen : Screen
        Page, and words of the monitor.
    glyphs : Glyphs
        What the terminal can show.
    """
    canvas = Canvas(width, height, glyphs)
    if width < SMALLEST[0] or height < SMALLEST[1]:
        _small(canvas, model, now)
        return canvas
    gate = model.gate(now)
    is_tall = height >= 34
    _header(canvas, model, now, screen)
    top = _gate_bar(canvas, 1, gate, screen, is_tall)
    body = Rect(top, 0, height - top - 2, width)
    if screen.page == "help":
        _help(canvas, body)
    elif model.heard_at is None:
        _nobody(canvas, body, screen)
    else:
        {
            "overview": _overview, "array": _array_page, "gate": _gate_page, "loop": _loop_page, "events": _events_page,
        }[screen.page](canvas, body, model, now)  # fmt: skip
    _notice(canvas, height - 2, model, now, screen)
    _keys(canvas, height - 1, gate, screen)
    return canvas


# -- what is on every page --------------------------------------------------------------------------------------------


def _small(canvas: Canvas, model: Model, now: float) -> None:
    gate = model.gate(now)
    style = {"armed": ARMED}.get(gate.state, BOLD)
    canvas.text(0, 0, f"{gate.state.upper()} {gate.seconds_left:.0f} s" if gate.state == "armed" else gate.state, style)
    canvas.text(1, 0, f"{model.connection(now)} {model.health.get('state', '')}")
    canvas.text(2, 0, f"at least {SMALLEST[0]} x {SMALLEST[1]} needed", DIM)


def _header(canvas: Canvas, model: Model, now: float, screen: Screen) -> None:
    health, width = model.health, canvas.width
    canvas.fill(Rect(0, 0, 1, width), BAR)
    source = health.get("source", {})
    rate = source.get("sampling_frequency")
    parts = [" neuromod"]
    if health:
        parts += [
            str(health.get("state", "")).upper(),
            f"{source.get('name', '')} {source.get('n_channels', '')} ch"
            + (f" {rate / 1000.0:g} kHz" if rate and rate >= 1000 else f" {rate:g} Hz" if rate else ""),
            f"tick {model.tick:,}",
            f"up {_clock(health.get('uptime_s', 0.0))}",
        ]
        if health.get("warming_up"):
            parts.insert(2, "WARMING UP")
    connection = model.connection(now)
    age_s = model.age_s(now)
    dot = canvas.glyphs.dot
    words, style = {
        "waiting": (" no daemon yet ", ALARM),
        "live": (f" {dot} live ", BAR),
        "late": (f" no message for {age_s:.1f} s ", ARMED),
        "silent": (f" NO MESSAGE FOR {age_s:.1f} s ", ALARM),
    }[connection]
    if screen.is_frozen:
        canvas.text(0, width - len(words) - 10, " PAUSED ", ARMED)
    room = width - len(words) - (11 if screen.is_frozen else 1)
    canvas.text(0, 0, "  ".join(parts), BAR, room)
    canvas.text(0, width - len(words), words, style)


def _gate_bar(canvas: Canvas, y: int, gate: Gate, screen: Screen, is_tall: bool) -> int:
    """Draw how the gate is; return the line below."""
    width = canvas.width
    rows = 3 if is_tall else 1
    beat = "" if gate.heartbeat_s is None else f"  heartbeat {gate.heartbeat_s:.1f} s ago"
    if gate.state == "armed":
        canvas.fill(Rect(y, 0, rows, width), ARMED)
        stop = "   SPACE OR S STOPS" if screen.can_steer else ""
        if is_tall:
            x = 2
            for letter in "ARMED":
                for row, line in enumerate(_LETTERS[letter]):
                    if canvas.glyphs is GLYPHS["ascii"]:
                        line = "".join("#" if c != " " else " " for c in line)
                    canvas.text(y + row, x, line, ARMED)
                x += 4
            canvas.text(y, x + 2, f"STIMULATION IS ARMED   {gate.seconds_left:.1f} s left", ARMED)
            canvas.text(y + 1, x + 2, f"mode {gate.mode or 'not known yet'}{beat}{_doses(gate)}", ARMED)
            canvas.text(y + 2, x + 2, stop.strip(), ARMED)
        else:
            told = f" >>> ARMED <<<  {gate.seconds_left:.1f} s left  {gate.mode}{beat}"
            canvas.text(y, 0, told, ARMED, width - len(stop) - 1)
            canvas.text(y, width - len(stop) - 1, stop, ARMED)
        return y + rows
    canvas.fill(Rect(y, 0, rows, width), PLAIN)
    if gate.state == "disarmed":
        parts = [(" disarmed ", BOLD), (f" mode {gate.mode}", PLAIN)]
        if gate.ended_by:
            parts.append((f"  ended by: {gate.ended_by}", ORANGE))
        parts.append((f"  armed {gate.arms} times{_doses(gate)}", DIM))
    elif gate.state == "off":
        parts = [(" stimulation off: this session has none", DIM)]
    else:
        parts = [(" stimulation: not known yet", DIM)]
    canvas.words(y + rows // 2, 0, parts)
    return y + rows


def _doses(gate: Gate) -> str:
    issued = gate.counts.get("issued", 0)
    refused = sum(gate.refusals.values())
    dose = f"  dose {gate.dose_nc:.4g} nC" if gate.dose_nc is not None else ""
    return f"  issued {issued}  refused {refused}{dose}"


def _notice(canvas: Canvas, y: int, model: Model, now: float, screen: Screen) -> None:
    """Say on one line what matters most: a word of ours, a fault, or the newest event."""
    faults = _faults(model, now)
    if screen.notice:
        canvas.text(y, 0, f" {screen.notice} ".ljust(canvas.width), ALARM if screen.is_alarming else YELLOW)
    elif faults:
        canvas.text(y, 0, f" {'; '.join(faults)} ", ALARM)
    elif model.events:
        at, event = model.events[-1]
        canvas.words(y, 0, [(f" {_ago(now - at)} ago  ", DIM), (_event(event), PLAIN)])


def _faults(model: Model, now: float) -> list[str]:
    found = [model.refusal] if model.refusal else []
    recording = model.health.get("recording", {})
    if recording.get("state") == "ended":
        found.append(f"recording has ended: {recording.get('why', '')}")
    for name, dog in model.health.get("watchdogs", {}).items():
        if isinstance(dog, dict) and not dog.get("ok", True):
            found.append(f"watchdog {name}: {dog.get('says', '')}")
    if model.restarted_at is not None and now - model.restarted_at < 30.0:
        found.append(f"the daemon was started again {_ago(now - model.restarted_at)} ago")
    return found


def _keys(canvas: Canvas, y: int, gate: Gate, screen: Screen) -> None:
    if not screen.can_steer:
        return
    stop = ARMED if gate.state == "armed" else BOLD
    words = " SPACE/s STOP " if canvas.width < 110 else " SPACE/s stop stimulation "
    x = canvas.words(y, 0, [(words, stop), (" n note p pause ? help q quit ", DIM)])
    if canvas.width < 90:  # numbers alone, but for the page that is shown
        for number, page in enumerate(PAGES, 1):
            is_shown = page == screen.page
            x = canvas.text(y, x, f" {number} {page}" if is_shown else f" {number}", BOLD if is_shown else DIM)
        return
    for number, page in enumerate(PAGES, 1):
        x = canvas.text(y, x, f" {number}", DIM)
        x = canvas.text(y, x, f" {page}" if page != screen.page else f"[{page}]", BOLD if page == screen.page else DIM)


def _nobody(canvas: Canvas, rect: Rect, screen: Screen) -> None:
    y = rect.y + rect.height // 3
    canvas.text(y, 4, "No daemon is heard yet. Waiting; this connects by itself.", BOLD)
    for row, (name, address) in enumerate(screen.addresses, 2):
        canvas.words(y + row, 4, [(f"{name:<8}", DIM), (address, PLAIN)])
    canvas.text(y + 6, 4, "neuromod start session.toml    starts one; -c session.toml takes its addresses", DIM)


def _help(canvas: Canvas, rect: Rect) -> None:
    inside = canvas.frame(rect, "help", "Esc or ? closes")
    letters = "  ".join(f"{letter} {str(flag.name).lower()}" for flag, letter in _FLAG_LETTERS)
    lines = (
        ("SPACE, s", "stop stimulation at once: by message and by command; Ctrl-S in a note too"),
        ("n", "note of this moment, kept in the record of the session"),
        ("p", "let the picture stand still, and go on; gate and connection always go on"),
        ("1 to 5, Tab", "pages: " + ", ".join(PAGES)),
        ("q", "quit; stimulation stays as it is"),
        ("", ""),
        ("network", "a mark is a spike; 14 coincidence detector, 15 inhibitory interneuron"),
        ("flg", letters),
        ("array", f"shade is rate; {canvas.glyphs.cross} takes no part; as on the probe where it is known"),
        ("not seen here", "messages that were published and did not come: this host, or ssh, is too slow"),
        ("", ""),
        ("", "This program cannot arm, and its end disarms nothing: 'neuromod arm' holds the handle."),
    )
    for row, (key, what) in enumerate(lines[: inside.height]):
        end = inside.x + inside.width
        canvas.text(
            inside.y + row, canvas.text(inside.y + row, inside.x + 1, f"{key:<14} ", BOLD, end), what, PLAIN, end
        )


# -- pages ------------------------------------------------------------------------------------------------------------


def _overview(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    y, _, height, width = rect
    if height < 28:
        raster_height = min(11, height - 9)
        _raster_panel(canvas, Rect(y, 0, raster_height, width), model)
        _row(
            canvas, Rect(y + raster_height, 0, height - raster_height, width), model, now,
            [(0.3, _array_panel), (0.28, _network_panel), (0.42, _loop_panel)],
        )  # fmt: skip
        return
    raster_height = N_CHANNELS + 3
    _raster_panel(canvas, Rect(y, 0, raster_height, width), model)
    left = height - raster_height
    first = left if left < 18 else max(9, left // 2)
    panels: list[tuple[float, _Panel]] = [(0.34, _array_panel), (0.33, _snippets_panel), (0.33, _loop_panel)]
    if left < 18:
        panels = [(0.28, _array_panel), (0.22, _snippets_panel), (0.22, _network_panel), (0.28, _loop_panel)]
    _row(canvas, Rect(y + raster_height, 0, first, width), model, now, panels)
    if left >= 18:
        rest = Rect(y + raster_height + first, 0, left - first, width)
        _row(
            canvas, rest, model, now,
            [(0.22, _noise_panel), (0.2, _network_panel), (0.28, _gate_panel), (0.3, _events_panel)],
        )  # fmt: skip


def _array_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    y, _, height, width = rect
    noise = 4 if height < 28 else 8
    _row(
        canvas, Rect(y, 0, height - noise, width), model, now, [(0.5, _array_panel), (0.5, _snippets_panel)]
    )  # fmt: skip
    _noise_panel(canvas, Rect(y + height - noise, 0, noise, width), model, now)


def _gate_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    _row(canvas, rect, model, now, [(0.5, _gate_panel), (0.5, _command_panel)])


def _loop_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    _row(canvas, rect, model, now, [(0.5, _loop_panel), (0.5, _counters_panel)])


def _events_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    _events_panel(canvas, rect, model, now)


_Panel = Callable[[Canvas, Rect, Model, float], None]


def _row(canvas: Canvas, rect: Rect, model: Model, now: float, panels: Sequence[tuple[float, _Panel]]) -> None:
    """Draw panels side by side, each with its share of the width."""
    x, total = rect.x, sum(share for share, _ in panels)
    for place, (share, panel) in enumerate(panels):
        width = rect.x + rect.width - x if place == len(panels) - 1 else round(rect.width * share / total)
        panel(canvas, Rect(rect.y, x, rect.height, width), model, now)
        x += width


# -- panels -----------------------------------------------------------------------------------------------------------


def _channel_style(channel: int) -> int:
    return {COINCIDENCE: YELLOW, INHIBITORY: PURPLE}.get(channel, SKY)


def _raster_panel(canvas: Canvas, rect: Rect, model: Model) -> None:
    rates = model.state.rates_hz if model.state is not None else np.zeros(0, np.float32)
    total = f"{float(np.sum(model.spikes_per_s())):.0f} spikes/s  {model.ticks_per_s():.0f} ticks/s"
    inside = canvas.frame(rect, f"network, last {RASTER_S:g} s", total)
    y, x, height, width = inside
    is_tall = height > N_CHANNELS
    label, right = 4 if is_tall else 6, (30 if is_tall and width > 84 else 9 if is_tall else 0)
    plot = Rect(y, x + label, N_CHANNELS if is_tall else N_CHANNELS // 2, width - label - right)
    per_cell = 2 if canvas.glyphs.is_braille else 1
    counts, flags = model.raster(plot.width * per_cell, RASTER_S)
    fired = counts > 0
    if not is_tall and height < N_CHANNELS // 2:
        return
    dots = np.zeros((plot.height * (4 if canvas.glyphs.is_braille else 2), fired.shape[1]), np.bool_)
    rows_each = len(dots) // N_CHANNELS
    for channel in range(N_CHANNELS):
        dots[channel * rows_each : (channel + 1) * rows_each] = fired[channel]
    if is_tall and rows_each > 1:  # a gap between the channels
        dots[rows_each - 1 :: rows_each] = False
    canvas.dots(plot, dots, SKY)
    for row in range(plot.height):
        first, last = (row, row) if is_tall else (2 * row, 2 * row + 1)
        style = _channel_style(last)
        canvas.text(y + row, x, f"{first:>3}" if is_tall else f"{first},{last}"[:5], style)
        here = slice(plot.x, plot.x + plot.width)
        canvas.styles[y + row, here] = np.where(canvas.cells[y + row, here] == " ", PLAIN, style)
        if is_tall and row < len(rates):
            at = plot.x + plot.width
            canvas.text(y + row, at, f"{rates[row]:5.1f} Hz", style)
            if right > 20:
                _membrane(canvas, y + row, at + 9, right - 10, model, row)
    if height > plot.height:
        _flags_row(canvas, y + plot.height, plot, flags, per_cell)


def _membrane(canvas: Canvas, y: int, x: int, width: int, model: Model, channel: int) -> None:
    if model.state is None or model.membrane_range is None or channel >= len(model.state.membrane):
        return
    value = float(model.state.membrane[channel])
    low, high = model.membrane_range[:, channel]
    text = f"{value:8.1f}" if math.isfinite(value) else "     nan"
    bar = width - len(text) - 1
    canvas.bar(y, x, bar, (value - low) / (high - low) if high > low else 0.0, _channel_style(channel))
    canvas.text(y, x + bar, text, PLAIN)


def _flags_row(canvas: Canvas, y: int, plot: Rect, flags: NDArray[np.int64], per_cell: int) -> None:
    canvas.text(y, plot.x - 4, "flg", DIM)
    seen: list[str] = []
    for column in range(plot.width):
        here = flags[column * per_cell : (column + 1) * per_cell]
        if (here < 0).all():
            continue
        merged = int(np.bitwise_or.reduce(here[here >= 0]))
        letter = next((letter for flag, letter in _FLAG_LETTERS if merged & flag), "")
        canvas.text(y, plot.x + column, letter or canvas.glyphs.horizontal, ORANGE if letter else FRAME)
        if letter and letter not in seen:
            seen.append(letter)
    if seen:
        names = {letter: str(flag.name).lower() for flag, letter in _FLAG_LETTERS}
        told = " " + " ".join(f"{letter} {names[letter]}" for letter in seen)
        canvas.text(y, plot.x + plot.width, told, ORANGE, canvas.width - 1)


def _array_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    rates = model.rates_hz
    n = len(rates)
    known = rates[np.isfinite(rates)]
    top = max(10.0, float(np.percentile(known, 99))) if len(known) else 0.0
    inside = canvas.frame(rect, f"array, {model.counts or 'channels'}", f"0 to {top:.0f} Hz" if len(known) else "")
    if not inside.height:
        return
    if not n:
        canvas.text(inside.y, inside.x + 1, "nothing heard: publish.array_hz is 0?", DIM, inside.x + inside.width)
        return
    if not len(known):
        why = "warming up, or silent" if model.counts else "the source brings no spikes"
        for line, words in enumerate((f"{n} channels", "rates n/a:", why)[: inside.height]):
            canvas.text(inside.y + line, inside.x + 1, words, DIM, inside.x + inside.width)
        return
    silent = int(np.sum(known == 0.0))
    legend = [
        ("0 ", DIM),
        *((canvas.glyphs.shades[_shade(i)], HEAT + i) for i in range(N_HEAT)),
        (f" {top:.0f} Hz ", DIM),
    ]
    words = f" {silent} silent {len(model.excluded)} out"
    has_legend = inside.height > 4
    area = Rect(inside.y, inside.x, inside.height - has_legend, inside.width)
    if has_legend:
        end = inside.x + inside.width
        canvas.text(
            inside.y + inside.height - 1,
            canvas.words(inside.y + inside.height - 1, inside.x + 1, legend, end),
            words,
            DIM,
            end,
        )
    places, cell = _places(model, area)
    lines = max(1, min(2, area.height // (int(places[:, 0].max()) + 1))) if cell > 3 else 1
    for channel in range(n):
        row, column = int(places[channel, 0]), int(places[channel, 1])
        if row < 0:
            continue
        y, x = area.y + row * lines, area.x + column * cell
        rate = rates[channel]
        if channel in model.excluded:
            canvas.text(y, x, canvas.glyphs.cross, DIM)
        elif math.isfinite(rate):
            heat = min(N_HEAT - 1, int(N_HEAT * math.sqrt(rate / top))) if rate > 0.0 else -1
            glyph = canvas.glyphs.shades[_shade(heat)] if heat >= 0 else canvas.glyphs.shades[0]
            style = HEAT + heat if heat >= 0 else DIM
            for line in range(lines):
                canvas.text(y + line, x, glyph * max(1, cell - (cell > 3)), style, area.x + area.width)


def _shade(heat: int) -> int:
    return 1 + heat // 2


def _places(model: Model, area: Rect) -> tuple[NDArray[np.int64], int]:
    """Return row and column of each channel in an area, and the width of a cell: as on the probe where that fits."""
    n = len(model.rates_hz)
    positions = model.positions_um
    if len(positions) == n and np.isfinite(positions).all():
        columns, x = np.unique(positions[:, 0], return_inverse=True)
        rows, y = np.unique(positions[:, 1], return_inverse=True)
        if len(rows) > len(columns) and len(rows) > area.height:  # a shank: its depth runs along the lines
            columns, rows, x, y = rows, columns, y, x
        if len(rows) <= area.height and len(columns) <= area.width and len(rows) * len(columns) <= 8 * n:
            return np.stack([y, x], axis=1), max(1, min(6, area.width // len(columns)))
    # near square, characters being twice as high as wide
    n_columns = math.ceil(math.sqrt(n))
    if math.ceil(n / n_columns) > area.height:
        n_columns = math.ceil(n / max(1, area.height))
    n_columns = min(n_columns, area.width)
    at = np.arange(n)
    places = np.stack([at // n_columns, at % n_columns], axis=1)
    places[places[:, 0] >= area.height] = -1  # there is no room
    return places, max(1, min(6, area.width // n_columns))


def _noise_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    noise = model.noise
    known = noise[np.isfinite(noise)]
    inside = canvas.frame(rect, f"noise, {model.unit or 'unit unknown'}")
    if not inside.height:
        return
    if not len(known):
        canvas.text(inside.y, inside.x + 1, "n/a" if len(noise) else "nothing heard", DIM)
        return
    told = f"{known.min():.1f} to {known.max():.1f}, median {np.median(known):.1f}"
    canvas.text(inside.y, inside.x + 1, told, PLAIN, inside.x + inside.width)
    plot = Rect(inside.y + 1, inside.x, inside.height - 1, inside.width)
    if plot.height < 1:
        plot = Rect(inside.y, inside.x + len(told) + 3, 1, inside.width - len(told) - 4)
    if plot.width < 4:
        return
    levels = np.where(np.isfinite(noise), noise, 0.0)
    top = min(float(known.max()), 4.0 * float(np.median(known)))  # one bad channel does not flatten the others
    n = len(levels)
    if n > plot.width:  # the noisiest of neighbours
        edges = np.arange(plot.width + 1) * n // plot.width
        levels = np.array([levels[a:b].max() for a, b in itertools.pairwise(edges)])
    else:
        levels = np.repeat(levels, max(1, plot.width // n))
    canvas.spark(Rect(plot.y, plot.x, plot.height, len(levels)), levels.tolist(), top, GREEN)


def _snippets_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    inside = canvas.frame(rect, "spikes", model.unit)
    y, x, height, width = inside
    if not height:
        return
    newest = list(model.snippets.values())[::-1]
    if not newest:
        told = "none yet" if model.counts or not len(model.rates_hz) else "n/a: the source brings no signal"
        canvas.text(y, x + 1, told, DIM, x + width)
        return
    n_across = max(1, width // (16 if width > 60 else 11))
    n_down = max(1, height // 6)
    wide, high = width // n_across, height // n_down
    shown = sorted(newest[: n_across * n_down], key=lambda snippet: snippet.channel)
    size = max(float(np.abs(snippet.data).max()) for snippet in shown)
    for place, snippet in enumerate(shown):
        top, left = y + place // n_across * high, x + place % n_across * wide
        plot = Rect(top + 1, left + 1, high - 1, wide - 2)
        canvas.text(top, left + 1, f"{snippet.channel} {snippet.data.min():.0f}", DIM, left + wide)
        rows, columns = canvas.dots_in(plot)
        if rows < 2 or columns < 4:
            continue
        data = snippet.data
        at = np.interp(np.linspace(0, len(data) - 1, columns), np.arange(len(data)), data)
        levels = np.clip(np.round((1.0 - (at / size + 1.0) / 2.0) * (rows - 1)), 0, rows - 1).astype(int)
        dots = np.zeros((rows, columns), np.bool_)
        for column in range(columns):
            before = levels[max(column - 1, 0)]
            low, high_ = sorted((int(before), int(levels[column])))
            # joined to the one before, without doubling its last dot
            dots[low + (levels[column] > before) : high_ + (levels[column] >= before), column] = True
            dots[levels[column], column] = True
        canvas.dots(plot, dots, SKY)


def _network_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    inside = canvas.frame(rect, "modulators")
    y, x, height, width = inside
    if not height:
        return
    if model.state is None:
        canvas.text(y, x + 1, "nothing heard: publish.state_hz is 0?", DIM, x + width)
        return
    row = y
    lows = {"dopamine": (-1.0, 1.0), "tempo": (0.0, 4.0)}
    for name, level in model.state.modulators.items():
        if row >= y + height:
            return
        low, high = lows.get(name, (0.0, 1.0))
        short = {"acetylcholine": "acetylch."}.get(name, name)
        canvas.text(row, x + 1, f"{short:<9}{level:6.2f}", PLAIN, x + width)
        if width > 22:
            canvas.bar(row, x + 17, width - 18, (level - low) / (high - low), GREEN)
        row += 1
    if height >= 8 and model.membrane_range is not None and row + 2 < y + height:
        canvas.text(row, x + 1, "membranes 0 to 15", DIM, x + width)
        low, high = model.membrane_range
        share = (model.state.membrane - low) / np.where(high > low, high - low, 1.0)
        share = np.nan_to_num(share, nan=0.0)
        rest = Rect(row + 1, x + 1, min(3, y + height - row - 1), min(width - 2, 2 * len(share)))
        step = 2 if width - 2 >= 2 * len(share) else 1
        levels = np.repeat(share, step)
        canvas.spark(Rect(rest.y, rest.x, rest.height, len(levels)), levels.tolist(), 1.0, SKY)


def _loop_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    inside = canvas.frame(rect, "loop")
    y, x, height, width = inside
    if not height:
        return
    end = x + width
    latency = model.health.get("latency_us", {})
    counters = model.health.get("counters", {})
    rows: list[list[tuple[str, int]]] = []
    if latency:
        rows.append(_facts(*((name, _us(latency.get(name)), False) for name in ("p50", "p99", "max"))))
    else:
        rows.append([("latency n/a", DIM)])
    named = (("late", "late_ticks"), ("lost", "samples_lost"), ("gaps", "gaps"))
    rows.append(_facts(*((name, counters.get(key, 0), bool(counters.get(key, 0))) for name, key in named)))
    rows.append(_recorder(model))
    refused = sum(model.health.get("errors", {}).values())
    overflow = sum(n for name, n in counters.items() if name.endswith("overflow"))
    rows.append(_facts(("refused", refused, refused > 0), ("overflow", overflow, overflow > 0)))
    missed = sum(model.lost.values())
    restarts = [("restarts", model.health["restarts"], False)] if "restarts" in model.health else []
    rows.append(_facts(("not seen here", missed, missed > 0), *restarts))
    dogs = model.health.get("watchdogs", {})
    if dogs:
        bad = [name for name, dog in dogs.items() if isinstance(dog, dict) and not dog.get("ok", True)]
        rows.append(
            [("watchdogs ", DIM), (f"{', '.join(bad)} BAD" if bad else f"{len(dogs)} well", ALARM if bad else BOLD)]
        )
    units = model.health.get("units", {})
    if units:
        rows.append(
            [("units ", DIM), (f"{len(units.get('ids', ()))}", BOLD), (f"  spikes {units.get('spikes', 0)}", DIM)]
        )
    # the picture of latency takes what is left, in second place
    left = height - len(rows)
    spark = min(left, 4) if left >= 1 else (1 if height >= 5 else 0)
    spark = min(spark, 2) if height < 9 else spark
    row = y
    for place, parts in enumerate(rows):
        if row >= y + height:
            break
        canvas.words(row, x + 1, parts, end)
        row += 1
        if place == 0 and spark and model.latencies:
            p99 = [values[1] for values in model.latencies]
            top = max(p99)
            note = f" p99 to {_us(top)}"
            plot = Rect(row, x + 1, spark, max(4, width - 2 - len(note)))
            canvas.spark(plot, p99, top, SKY)
            canvas.text(row, x + 1 + plot.width, note, DIM, end)
            row += spark


def _facts(*facts: tuple[str, Any, bool]) -> list[tuple[str, int]]:
    """Return names and values, with a colour for those that are bad, as parts of a line."""
    return [part for name, value, bad in facts for part in ((f"{name} ", DIM), (f"{value} ", ORANGE if bad else BOLD))]


def _recorder(model: Model) -> list[tuple[str, int]]:
    recording = model.health.get("recording", {})
    state = recording.get("state", "off")
    if state == "off":
        return [("recording ", DIM), ("off", ORANGE)]
    if state != "recording":
        return [("recording ", DIM), ("ENDED", ALARM), (f" {recording.get('why', '')}", ORANGE)]
    lost = sum(recording.get("lost", {}).values())
    free_s = recording.get("free_s")
    parts = [("rec ", DIM), (_bytes(recording.get("bytes", 0)), BOLD)]
    if free_s is not None:
        parts += [("  full in ", DIM), (_ago(free_s), ORANGE if free_s < 3600 else BOLD)]
    return [*parts, ("  lost ", DIM), (f"{lost}", ORANGE if lost else BOLD)]


def _gate_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    gate = model.gate(now)
    inside = canvas.frame(rect, "gate", gate.mode)
    y, x, height, width = inside
    end = x + width
    rows: list[list[tuple[str, int]]] = []
    if gate.state in ("off", "unknown"):
        rows.append([("no stimulation in this session" if gate.state == "off" else "not known yet", DIM)])
    else:
        rows.append(
            [(gate.state.upper() if gate.state == "armed" else gate.state, ARMED if gate.state == "armed" else BOLD)]
            + ([(f"  {gate.seconds_left:.1f} s left", BOLD)] if gate.state == "armed" else [])
            + ([(f"  by {gate.ended_by}", ORANGE)] if gate.state == "disarmed" and gate.ended_by else [])
        )
        if gate.heartbeat_s is not None:
            rows.append([("heartbeat ", DIM), (f"{gate.heartbeat_s:.1f} s ago", BOLD)])
        rows.append([("armed ", DIM), (f"{gate.arms}", BOLD), (" times", DIM)])
        for name, n in gate.counts.items():
            if not name.startswith("refused_") and (n or name == "issued"):
                rows.append([(f"{name.replace('_', ' ')} ", DIM), (f"{n}", BOLD)])
        if gate.dose_nc is not None:
            rows.append([("dose ", DIM), (f"{gate.dose_nc:.4g} nC", BOLD)])
        rows += _last_train(model, now)
        if gate.refusals:
            rows.append([("refused: ", DIM), *((f"{name} {n}  ", ORANGE) for name, n in gate.refusals.items())])
    if rect.width < 45:
        rows += _command_rows(model, now)[:1]
    for row, parts in enumerate(rows[:height]):
        canvas.words(y + row, x + 1, parts, end)


def _last_train(model: Model, now: float) -> list[list[tuple[str, int]]]:
    train = model.train
    if train is None:
        return [[("last train ", DIM), ("none sent", BOLD)]]
    then = model.daemon_time(now)
    ago = f"  {_ago(then - train.t)} ago" if then is not None else ""
    return [
        [("last train ", DIM), (f"electrode {train.electrode}{ago}", BOLD)],
        [(f"  {train.amplitude_ua:g} uA x {train.phase_us:g} us, {train.pulses} pulses", PLAIN)],
    ]


def _command_rows(model: Model, now: float) -> list[list[tuple[str, int]]]:
    if model.command is None:
        return [[("command ", DIM), ("none: the session has no decoder", DIM)]]
    values, _, flags = model.command
    shown = " ".join(f"{value:.3g}" for value in values)
    rows = [[("command ", DIM), (shown, BOLD), (" INHIBITED" if flags & Flag.INHIBITED else "", ORANGE)]]
    then = model.daemon_time(now)
    for bit, (n, t) in sorted(model.command_events.items()):
        ago = f"{_ago(then - t)} ago" if then is not None else ""
        rows.append([(f"event {bit}  ", DIM), (f"{n} times", BOLD), (f"  last {ago}", DIM)])
    return rows


def _command_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    decoder = model.health.get("decoder", {})
    note = f"{decoder.get('kind', '')} v{decoder.get('version', 0)}" if model.command is not None else ""
    inside = canvas.frame(rect, "decoder", note)
    rows = _command_rows(model, now)
    if model.command is not None:
        rows.insert(0, [("from ", DIM), (str(decoder.get("from", "")), PLAIN)])
    for row, parts in enumerate(rows[: inside.height]):
        canvas.words(inside.y + row, inside.x + 1, parts, inside.x + inside.width)


def _counters_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    inside = canvas.frame(rect, "counters")
    found = {name.replace("_", " "): n for name, n in model.health.get("counters", {}).items() if n}
    found |= {f"refused: {reason}": n for reason, n in model.health.get("errors", {}).items()}
    found |= {f"not seen here: {topic}": n for topic, n in model.lost.items()}
    if model.malformed:
        found["not understood here"] = model.malformed
    across = max(1, inside.width // 30)
    for place, (name, n) in enumerate(found.items()):
        row, column = place // across, place % across
        if row >= inside.height:
            break
        x = inside.x + 1 + column * (inside.width // across)
        canvas.words(inside.y + row, x, [(f"{name:<20.20} ", DIM), (f"{n:,}", BOLD)], inside.x + inside.width)


def _events_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    inside = canvas.frame(rect, "events", "n adds a note")
    rows: list[list[tuple[str, int]]] = []
    for note in list(model.notes)[::-1]:
        state = model.note_state(note, now)
        if state != "kept":
            words = {"sent": "on its way", "lost": "NOT KEPT: it did not come back", "unsent": "NOT KEPT: no daemon"}
            rows.append([(f"note {words[state]}: ", ALARM if state != "sent" else DIM), (note.text, PLAIN)])
    for at, event in list(model.events)[::-1]:
        style = YELLOW if event.name == "note" else ORANGE if event.source == "daemon" else PLAIN
        rows.append([(f"{_ago(now - at):>6} ago  ", DIM), (_event(event), style)])
    if not rows:
        rows.append([("none yet", DIM)])
    for row, parts in enumerate(rows[: inside.height]):
        canvas.words(inside.y + row, inside.x + 1, parts, inside.x + inside.width)


def _event(event: EventMessage) -> str:
    value = "" if event.value is None else f": {event.value}"
    return f"{event.name}{value}  ({event.source}, tick {event.tick:,})".replace("\n", " ")


# -- numbers for people -----------------------------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _ago(seconds: float) -> str:
    if seconds < 10.0:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.0f} h"


def _us(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "n/a"
    return f"{value:.0f} us" if value < 10_000 else f"{value / 1000:.3g} ms" if value < 1e6 else f"{value / 1e6:.3g} s"


def _bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
