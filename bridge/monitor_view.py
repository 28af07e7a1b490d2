"""The monitor on a terminal: draws the model some times a second, and turns keys into stops, notes and pages.

The key that stops is seen in the thread that reads the keyboard, and obeyed by a thread of its own (`Hand`): neither
waits for what is being drawn, nor for a terminal that takes no more.
"""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from neuromod.bridge import wire
from neuromod.bridge.keys import load_client
from neuromod.bridge.monitor_canvas import GLYPHS, STYLES, Canvas, Glyphs
from neuromod.bridge.monitor_draw import PAGES, Screen, draw
from neuromod.bridge.monitor_link import Ear, Hand
from neuromod.bridge.monitor_model import Model, Note
from neuromod.bridge.roles import INGEST_ROLES

STOP_KEYS = ("s", "space")
STOP_ALWAYS = "ctrl+s"  # while a note is being written, too
LONGEST_NOTE = 400

_HEAR_S = 0.1
_DRAW_EVERY = 2  # of these
_WORD_S, _ALARM_S = 8.0, 80.0
_KEY_NAMES = {" ": "space", "\x13": STOP_ALWAYS}
_STYLES = [Style.parse(style) if style else Style.null() for style in STYLES]


def glyphs_for(term: str, encoding: str) -> str:
    """Return which characters a terminal has, by its name and the encoding of what is written to it."""
    if "utf" not in encoding.lower():
        return "ascii"
    return "blocks" if term in ("linux", "vt100", "vt220", "ansi", "dumb") else "braille"


def glyphs_here() -> Glyphs:
    """Return the characters that the terminal of this program has."""
    return GLYPHS[glyphs_for(os.environ.get("TERM", ""), getattr(sys.stdout, "encoding", None) or "ascii")]


def row_of(canvas: Canvas, y: int) -> Strip:
    """Return a line of a picture as segments of one style each."""
    styles = canvas.styles[y]
    cells = canvas.cells[y].tolist()
    edges = [0, *(np.flatnonzero(np.diff(styles)) + 1).tolist(), canvas.width]
    segments = [Segment("".join(cells[a:b]), _STYLES[styles[a]]) for a, b in itertools.pairwise(edges)]
    return Strip(segments, canvas.width)


class Picture(Widget):
    """A canvas; only lines that changed are sent to the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.canvas: Canvas | None = None

    def show(self, canvas: Canvas) -> None:
        """Show another canvas."""
        before, self.canvas = self.canvas, canvas
        if before is None or before.cells.shape != canvas.cells.shape:
            self.refresh()
            return
        changed = (before.cells != canvas.cells) | (before.styles != canvas.styles)
        regions = []
        for y in np.flatnonzero(changed.any(axis=1)).tolist():
            columns = np.flatnonzero(changed[y])
            regions.append(Region(int(columns[0]), y, int(columns[-1] - columns[0]) + 1, 1))
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        """Return one line."""
        if self.canvas is None or y >= self.canvas.height:
            return Strip.blank(self.size.width)
        return row_of(self.canvas, y)


def quick_driver(base: type[Driver]) -> type[Driver]:
    """Return a driver that sees the keys that stop before anything else does."""

    class QuickDriver(base):  # type: ignore[misc,valid-type]
        def process_message(self, message: Message) -> None:
            app = self._app
            if isinstance(message, events.Key) and isinstance(app, MonitorApp) and app.is_stop(message.key):
                app.hand.stop()
            super().process_message(message)

        def run_input_thread(self) -> None:
            """Read the keyboard; a byte that is no UTF-8 must not cost the key that stops, which may follow it."""
            while True:
                try:
                    super().run_input_thread()
                except UnicodeDecodeError as error:
                    for character in error.object.decode(errors="ignore"):
                        self.process_message(events.Key(_KEY_NAMES.get(character, character), character))
                else:
                    return

    return QuickDriver


class MonitorApp(App[None]):
    """The monitor.

    Parameters
    ----------
    addresses : mapping of str to str
        ingest, output and control of the daemon.
    seconds : float, optional
        End after so long.
    page : str
        To begin with.
    glyphs : Glyphs, optional
        What the terminal can show; found out where not given.
    """

    CSS = """
    Screen { layers: below above; }
    Picture { width: 100%; height: 100%; layer: below; }
    Input { dock: bottom; layer: above; display: none; height: 1; border: none; padding: 0 1; }
    Input.shown { display: block; }
    """
    TITLE = "neuromod monitor"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # keys are the monitor's, but while a note is written
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s,space", "stop", "stop stimulation", priority=False),
        Binding(STOP_ALWAYS, "stop", "stop stimulation", priority=True),
        Binding("n", "note", "note"),
        Binding("p", "freeze", "pause"),
        Binding("question_mark,h", "page('help')", "help"),
        *(Binding(str(number), f"page('{page}')", page) for number, page in enumerate(PAGES, 1)),
        Binding("tab", "next_page", "next page", priority=False),
        Binding("escape", "leave", "back"),
        Binding("q,ctrl+q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
    ]

    def __init__(
        self,
        addresses: Mapping[str, Any],
        *,
        seconds: float | None = None,
        page: str = "overview",
        glyphs: Glyphs | None = None,
    ) -> None:
        super().__init__()
        self.driver_class = quick_driver(self.driver_class)
        self.model = Model()
        shown = tuple((name, str(addresses[name])) for name in ("ingest", "output", "control"))
        key = addresses.get("client_key")
        can_stop = key is None or bool(load_client(key).roles & INGEST_ROLES[wire.TOPIC_STOP])
        self.view = Screen(page=page, addresses=shown, can_stop=can_stop)
        self.hand = Hand(addresses)
        self._ear = Ear(addresses["output"], addresses.get("client_key"))
        self._seconds = seconds
        self._glyphs = glyphs or glyphs_here()
        self._turns = 0
        self._word_until = 0.0
        self._note_t: float | None = None

    def is_stop(self, key: str) -> bool:
        """Say whether a key stops stimulation now; while a note is written, letters are letters."""
        return key == STOP_ALWAYS or (key in STOP_KEYS and self._note_t is None)

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Picture()
        yield Input(placeholder="note: Enter keeps it, Esc leaves; Ctrl-S stops stimulation", max_length=LONGEST_NOTE)

    def on_mount(self) -> None:
        """Begin to listen."""
        self.hand.start()
        self.set_focus(None)
        self._until = None if self._seconds is None else time.monotonic() + self._seconds
        self.set_interval(_HEAR_S, self._turn)
        self._turn()

    def on_unmount(self) -> None:
        """End the threads and close the sockets."""
        self.hand.close()
        self._ear.close()

    def on_resize(self) -> None:
        """Draw anew in another size."""
        self._draw()

    def _turn(self) -> None:
        now = time.monotonic()
        self._ear.listen(self.model, now)
        while self.hand.words:
            word = self.hand.words.popleft()
            self._say(word.text, is_alarming=not word.is_good, seconds=_WORD_S if word.is_good else _ALARM_S)
        while self.hand.unsent:
            t = self.hand.unsent.popleft()
            for note in self.model.notes:
                if note.t == t:
                    note.is_sent = False
        self._follow_note(now)
        if self.view.notice and now > self._word_until:
            self.view = dataclasses.replace(self.view, notice="", is_alarming=False)
        self._turns += 1
        if self._turns % _DRAW_EVERY == 0 and not self.view.is_frozen:
            self._draw()
        elif self.view.is_frozen and self._turns % (5 * _DRAW_EVERY) == 0:
            self._draw_frozen(now)
        if self._until is not None and now >= self._until:
            self.exit()

    def _follow_note(self, now: float) -> None:
        """Say what became of the newest note, unless there is worse to say."""
        if not self.model.notes or self.view.is_alarming:
            return
        note = self.model.notes[-1]
        state = self.model.note_state(note, now)
        if state == "sent" or note.told == state:
            return
        note.told = state
        if state == "kept":
            self._say(f"note kept at tick {note.tick:,}: {note.text}")
        else:
            why = "no daemon took it" if state == "unsent" else "it did not come back"
            self._say(f"NOTE NOT KEPT, {why}: {note.text}", is_alarming=True)

    def _say(self, text: str, *, is_alarming: bool = False, seconds: float = _WORD_S) -> None:
        self.view = dataclasses.replace(self.view, notice=text, is_alarming=is_alarming)
        self._word_until = time.monotonic() + seconds
        self._draw()

    def _draw(self) -> None:
        width, height = self.size
        if width and height:
            self.query_one(Picture).show(draw(self.model, time.monotonic(), width, height, self.view, self._glyphs))

    def _draw_frozen(self, now: float) -> None:
        """Draw what must never stand still, above a picture that does: the connection and the gate."""
        picture = self.query_one(Picture)
        width, height = self.size
        if picture.canvas is None or (picture.canvas.height, picture.canvas.width) != (height, width):
            self._draw()
            return
        fresh = draw(self.model, now, width, height, self.view, self._glyphs)
        top = 4 if height >= 34 else 2
        fresh.cells[top:-2], fresh.styles[top:-2] = picture.canvas.cells[top:-2], picture.canvas.styles[top:-2]
        picture.show(fresh)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """Stop stimulation, once more where the thread that reads the keyboard has done so."""
        self.hand.stop()
        self._say("STOPPING STIMULATION ...", is_alarming=True)

    def action_page(self, page: str) -> None:
        """Show another page."""
        self.view = dataclasses.replace(self.view, page=page if page != self.view.page else "overview")
        self._draw()

    def action_next_page(self) -> None:
        """Show the page after this one."""
        at = PAGES.index(self.view.page) if self.view.page in PAGES else -1
        self.action_page(PAGES[(at + 1) % len(PAGES)])

    def action_freeze(self) -> None:
        """Let the picture stand still, or go on; connection and gate are always those of now."""
        self.view = dataclasses.replace(self.view, is_frozen=not self.view.is_frozen)
        self._draw()

    def action_note(self) -> None:
        """Begin a note of this moment."""
        t = self.model.daemon_time(time.monotonic())
        if t is None:
            self._say("no daemon is there to keep a note", is_alarming=True)
            return
        self._note_t = t
        notice = self.view.notice if self.view.is_alarming else ""
        self.view = dataclasses.replace(self.view, is_writing=True, notice=notice)
        self._draw()
        line = self.query_one(Input)
        line.value = ""
        line.add_class("shown")
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Send the note."""
        text, t = event.value.strip(), self._note_t
        self.action_leave()
        if text and t is not None:
            self.model.notes.append(Note(text, t, time.monotonic()))
            self.hand.note(text, t)

    def action_leave(self) -> None:
        """Close the line of the note, or the help."""
        self._note_t = None
        self.view = dataclasses.replace(self.view, is_writing=False)
        self._draw()
        self.query_one(Input).remove_class("shown")
        self.set_focus(None)
        if self.view.page == "help":
            self.action_page("overview")
