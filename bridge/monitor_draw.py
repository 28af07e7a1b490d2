"""Draws what a monitor knows on a grid of characters: no terminal, no state. One call, one picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from neuromod.bridge.monitor_canvas import (
    ALARM,
    ARMED,
    BAR,
    BOLD,
    DIM,
    GLYPHS,
    ORANGE,
    PLAIN,
    YELLOW,
    Canvas,
    Glyphs,
    Rect,
)
from neuromod.bridge.monitor_model import Gate, Model
from neuromod.bridge.monitor_panels import (
    FLAG_LETTERS,
    array_panel,
    command_panel,
    counters_panel,
    duration,
    event_text,
    events_panel,
    gate_panel,
    loop_panel,
    network_panel,
    noise_panel,
    raster_panel,
    snippets_panel,
    time_left,
)
from neuromod.bridge.wire import N_CHANNELS

PAGES: Final = ("overview", "array", "gate", "loop", "events")
SMALLEST: Final = (60, 16)

_LETTERS: Final = {
    "A": ("▄▀▄", "█▀█", "▀ ▀"), "R": ("█▀▄", "█▀▄", "▀ ▀"), "M": ("█▄█", "█▀█", "▀ ▀"), "E": ("█▀▀", "█▀ ", "▀▀▀"),
    "D": ("█▀▄", "█ █", "▀▀ "),
}  # fmt: skip


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
    is_writing : bool
        A note is being written, and letters are letters.
    can_stop : bool
        The daemon would take a stop from this client, by the roles of its key.
    can_steer : bool
        Keys do something; a picture that is printed has none.
    """

    page: str = "overview"
    addresses: tuple[tuple[str, str], ...] = ()
    notice: str = ""
    is_alarming: bool = False
    is_frozen: bool = False
    is_writing: bool = False
    can_stop: bool = True
    can_steer: bool = True

    @property
    def stop_keys(self) -> str:
        """The keys that stop stimulation now, for people; empty where there are none."""
        if not self.can_steer:
            return ""
        if not self.can_stop:
            return "YOUR KEY HAS NO ROLE TO STOP"
        return "CTRL-S STOPS" if self.is_writing else "SPACE OR S STOPS"


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
        _small(canvas, model, now, screen)
        return canvas
    gate = model.gate(now)
    is_tall = height >= 34
    _header(canvas, model, now, screen)
    top = _gate_bar(canvas, 1, gate, model, now, screen, is_tall)
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


def _small(canvas: Canvas, model: Model, now: float, screen: Screen) -> None:
    gate = model.gate(now)
    is_armed = gate.state == "armed"
    canvas.text(0, 0, f"ARMED {time_left(gate)}" if is_armed else gate.state, ARMED if is_armed else BOLD)
    canvas.text(1, 0, f"{model.connection(now)} {model.health.get('state', '')}")
    canvas.text(2, 0, screen.notice or screen.stop_keys, ALARM if screen.is_alarming else PLAIN)
    canvas.text(3, 0, f"at least {SMALLEST[0]} x {SMALLEST[1]} needed", DIM)


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


def _gate_bar(canvas: Canvas, y: int, gate: Gate, model: Model, now: float, screen: Screen, is_tall: bool) -> int:
    """Draw how the gate is, or was when the daemon was last heard; return the line below."""
    width = canvas.width
    rows = 3 if is_tall else 1
    is_heard = model.connection(now) in ("live", "late")
    beat = "" if gate.heartbeat_s is None else f"  heartbeat {gate.heartbeat_s:.1f} s ago"
    stop = screen.stop_keys
    if gate.state == "armed":
        canvas.fill(Rect(y, 0, rows, width), ARMED)
        if is_tall:
            x = 2
            for letter in "ARMED":
                for row, line in enumerate(_LETTERS[letter]):
                    if canvas.glyphs is GLYPHS["ascii"]:
                        line = "".join("#" if c != " " else " " for c in line)
                    canvas.text(y + row, x, line, ARMED)
                x += 4
            told = "STIMULATION IS ARMED" if is_heard else "STIMULATION WAS ARMED WHEN LAST HEARD"
            canvas.text(y, x + 2, f"{told}   {time_left(gate)}", ARMED)
            canvas.text(y + 1, x + 2, f"mode {gate.mode or 'not known yet'}{beat}{_doses(gate)}", ARMED)
            canvas.text(y + 2, x + 2, stop, ARMED)
        else:
            told = " >>> ARMED <<<" if is_heard else " >>> ARMED WHEN LAST HEARD <<<"
            canvas.text(y, 0, f"{told}  {time_left(gate)}  {gate.mode}{beat}", ARMED, width - len(stop) - 4)
            canvas.text(y, width - len(stop) - 1, stop, ARMED)
        return y + rows
    canvas.fill(Rect(y, 0, rows, width), PLAIN)
    if gate.state == "disarmed":
        parts = [(" disarmed ", BOLD), ("" if is_heard else "when last heard ", ORANGE), (f" mode {gate.mode}", PLAIN)]
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
    elif screen.is_writing:
        canvas.text(y, 0, f" a note of this moment: Enter keeps it, Esc leaves it; {screen.stop_keys}", YELLOW)
    elif faults:
        canvas.text(y, 0, f" {'; '.join(faults)} ", ALARM)
    elif model.events:
        at, event = model.events[-1]
        canvas.words(y, 0, [(f" {duration(now - at)} ago  ", DIM), (event_text(event), PLAIN)])


def _faults(model: Model, now: float) -> list[str]:
    found = [model.refusal] if model.refusal else []
    recording = model.health.get("recording", {})
    if recording.get("state") == "ended":
        found.append(f"recording has ended: {recording.get('why', '')}")
    for name, dog in model.health.get("watchdogs", {}).items():
        if isinstance(dog, dict) and not dog.get("ok", True):
            found.append(f"watchdog {name}: {dog.get('says', '')}")
    if model.restarted_at is not None and now - model.restarted_at < 30.0:
        found.append(f"the daemon was started again {duration(now - model.restarted_at)} ago")
    return found


def _keys(canvas: Canvas, y: int, gate: Gate, screen: Screen) -> None:
    if not screen.can_steer:
        return
    stop = DIM if not screen.can_stop else ARMED if gate.state == "armed" else BOLD
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
    canvas.text(y + 6, 4, "neuromod start session.toml starts one; -c session.toml takes its addresses.", DIM)
    canvas.text(y + 7, 4, "One with keys answers to a key with the role observe alone: --key FILE.", DIM)


def _help(canvas: Canvas, rect: Rect) -> None:
    inside = canvas.frame(rect, "help", "Esc or ? closes")
    letters = ", ".join(f"{letter} {str(flag.name).lower()}" for flag, letter in FLAG_LETTERS)
    told = (
        ("SPACE, s", "stop stimulation at once, by message and by command; Ctrl-S while a note is written"),
        ("n", "note of this moment, kept in the record of the session"),
        ("p", "let the picture stand still, and go on; gate and connection always go on"),
        ("1 to 5, Tab", "pages: " + ", ".join(PAGES)),
        ("q", "quit; stimulation stays as it is: this program cannot arm, and its end disarms nothing"),
        ("network", "a mark is a spike; 14 coincidence detector, 15 inhibitory interneuron"),
        ("flg", letters),
        ("array", f"shade is rate; {canvas.glyphs.cross} takes no part; as on the probe where that is known"),
        ("not seen here", "messages that were published and did not come: this host, or ssh, is too slow"),
    )
    row, bottom = inside.y, inside.y + inside.height
    for key, what in told:
        if row < bottom:
            canvas.text(row, inside.x + 1, key, BOLD)
            row += canvas.paragraph(Rect(row, inside.x + 15, bottom - row, inside.width - 15), what, PLAIN)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


# -- pages ------------------------------------------------------------------------------------------------------------


def _overview(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    y, _, height, width = rect
    if height < 28:
        raster_height = N_CHANNELS // 2 + 3  # two channels on a line
        raster_panel(canvas, Rect(y, 0, raster_height, width), model)
        _row(
            canvas, Rect(y + raster_height, 0, height - raster_height, width), model, now,
            [(0.3, array_panel), (0.28, network_panel), (0.42, loop_panel)],
        )  # fmt: skip
        return
    raster_height = N_CHANNELS + 3
    raster_panel(canvas, Rect(y, 0, raster_height, width), model)
    left = height - raster_height
    first = left if left < 18 else max(9, left // 2)
    panels: list[tuple[float, _Panel]] = [(0.34, array_panel), (0.33, snippets_panel), (0.33, loop_panel)]
    if left < 18:
        panels = [(0.28, array_panel), (0.22, snippets_panel), (0.22, network_panel), (0.28, loop_panel)]
    _row(canvas, Rect(y + raster_height, 0, first, width), model, now, panels)
    if left >= 18:
        rest = Rect(y + raster_height + first, 0, left - first, width)
        _row(
            canvas, rest, model, now,
            [(0.22, noise_panel), (0.2, network_panel), (0.28, gate_panel), (0.3, events_panel)],
        )  # fmt: skip


def _array_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    y, _, height, width = rect
    noise = 4 if height < 28 else 8
    _row(
        canvas, Rect(y, 0, height - noise, width), model, now, [(0.5, array_panel), (0.5, snippets_panel)]
    )  # fmt: skip
    noise_panel(canvas, Rect(y + height - noise, 0, noise, width), model, now)


def _gate_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    _row(canvas, rect, model, now, [(0.5, gate_panel), (0.5, command_panel)])


def _loop_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    _row(canvas, rect, model, now, [(0.5, loop_panel), (0.5, counters_panel)])


def _events_page(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    events_panel(canvas, rect, model, now)


_Panel = Callable[[Canvas, Rect, Model, float], None]


def _row(canvas: Canvas, rect: Rect, model: Model, now: float, panels: Sequence[tuple[float, _Panel]]) -> None:
    """Draw panels side by side, each with its share of the width."""
    x, total = rect.x, sum(share for share, _ in panels)
    for place, (share, panel) in enumerate(panels):
        width = rect.x + rect.width - x if place == len(panels) - 1 else round(rect.width * share / total)
        panel(canvas, Rect(rect.y, x, rect.height, width), model, now)
        x += width
