"""The panels of the monitor's pages, each drawn into a part of a canvas from what the model knows."""

import itertools
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.monitor_canvas import (
    ALARM,
    ARMED,
    BOLD,
    DIM,
    FRAME,
    GREEN,
    HEAT,
    N_HEAT,
    ORANGE,
    PLAIN,
    PURPLE,
    SKY,
    YELLOW,
    Canvas,
    Rect,
)
from neuromod.bridge.monitor_model import Gate, Model
from neuromod.bridge.wire import N_CHANNELS, EventMessage, Flag
from neuromod.engine.layout import COINCIDENCE, INHIBITORY

RASTER_S: Final = 5.0

FLAG_LETTERS: Final = (
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


def _channel_style(channel: int) -> int:
    return {COINCIDENCE: YELLOW, INHIBITORY: PURPLE}.get(channel, SKY)


def raster_panel(canvas: Canvas, rect: Rect, model: Model) -> None:
    """Draw the spikes of the network over the last seconds, with rates and membranes where there is room."""
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
        letter = next((letter for flag, letter in FLAG_LETTERS if merged & flag.value), "")
        canvas.text(y, plot.x + column, letter or canvas.glyphs.horizontal, ORANGE if letter else FRAME)
        if letter and letter not in seen:
            seen.append(letter)
    if seen:
        names = {letter: str(flag.name).lower() for flag, letter in FLAG_LETTERS}
        told = " " + " ".join(f"{letter} {names[letter]}" for letter in seen)
        canvas.text(y, plot.x + plot.width, told, ORANGE, canvas.width - 1)


def array_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the rate of each of the source's channels as a shade, as they lie on the probe where that is known."""
    rates = model.rates_hz
    n = len(rates)
    known = rates[np.isfinite(rates)]
    top = max(10.0, float(np.percentile(known, 99))) if len(known) else 0.0
    note = f"0 to {top:.0f} Hz" if len(known) and rect.height < 8 else ""
    inside = canvas.frame(rect, f"array, {model.counts or 'channels'}", note)
    if not inside.height:
        return
    if not n:
        canvas.paragraph(inside, "nothing heard: publish.array_hz is 0?")
        return
    if not len(known):
        why = "warming up, or silent" if model.counts else "the source brings no spikes"
        canvas.paragraph(inside, f"{n} channels, rates n/a: {why}")
        return
    is_out = np.isin(np.arange(n), list(model.excluded))
    legend: list[tuple[str, int]] = [("0 ", DIM)]
    legend += [(canvas.glyphs.shades[_shade(heat)], HEAT + heat) for heat in range(N_HEAT)]
    legend.append((f" {top:.0f} Hz", DIM))
    # where there are more channels than characters, neighbours share one
    shared = math.ceil(n / (inside.width * max(1, inside.height - 2)))
    noise = model.noise[np.isfinite(model.noise)]
    told = f"{shared} a cell  " if shared > 1 else ""
    told += f"noise {np.median(noise):.3g} {model.unit}  " if len(noise) else ""
    told += f"{np.sum(known == 0.0)} silent  {np.sum(is_out)} out"
    below = [legend, [(told, DIM)]] if inside.height > 5 else []
    area = Rect(inside.y, inside.x, inside.height - len(below), inside.width)
    for line, parts in enumerate(below, area.y + area.height):
        canvas.words(line, inside.x + 1, parts, inside.x + inside.width)
    firsts = np.arange(0, n, shared)
    heard = np.add.reduceat(np.isfinite(rates).astype(np.int64), firsts)
    means = np.add.reduceat(np.nan_to_num(rates, nan=0.0), firsts) / np.maximum(heard, 1)
    is_out = np.logical_and.reduceat(is_out, firsts)
    places, cell = _places(len(firsts), model.positions_um, area)
    lines = max(1, min(2, area.height // (int(places[:, 0].max()) + 1))) if cell > 3 else 1
    for k, (row, column) in enumerate(places.tolist()):
        y, x = area.y + row * lines, area.x + column * cell
        if is_out[k]:
            canvas.text(y, x, canvas.glyphs.cross, DIM)
        elif heard[k]:
            heat = min(N_HEAT - 1, int(N_HEAT * math.sqrt(means[k] / top))) if means[k] > 0.0 else -1
            glyph = canvas.glyphs.shades[_shade(heat)] if heat >= 0 else canvas.glyphs.shades[0]
            style = HEAT + heat if heat >= 0 else DIM
            for line in range(lines):
                canvas.text(y + line, x, glyph * max(1, cell - (cell > 3)), style, area.x + area.width)


def _shade(heat: int) -> int:
    return 1 + heat // 2


def _places(n: int, positions: NDArray[np.float32], area: Rect) -> tuple[NDArray[np.int64], int]:
    """Return row and column of each of n cells in an area that has room for them, and the width of a cell.

    They lie as on the probe, its y upwards, where that fits.
    """
    if len(positions) == n and np.isfinite(positions).all():
        columns, x = np.unique(positions[:, 0], return_inverse=True)
        rows, y = np.unique(-positions[:, 1], return_inverse=True)
        if len(rows) > len(columns) and len(rows) > area.height:  # a shank: its depth runs along the lines
            columns, rows, x, y = rows, columns, y, x
        if len(rows) <= area.height and len(columns) <= area.width and len(rows) * len(columns) <= 8 * n:
            return np.stack([y, x], axis=1), max(1, min(6, area.width // len(columns)))
    # near square, characters being twice as high as wide
    n_columns = min(max(math.ceil(math.sqrt(n)), math.ceil(n / area.height)), area.width)
    at = np.arange(n)
    return np.stack([at // n_columns, at % n_columns], axis=1), max(1, min(6, area.width // n_columns))


def noise_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the noise of each channel as a column."""
    noise = model.noise
    known = noise[np.isfinite(noise)]
    inside = canvas.frame(rect, f"noise, {model.unit or 'unit unknown'}")
    if not inside.height:
        return
    if not len(known):
        canvas.paragraph(inside, "n/a" if len(noise) else "nothing heard: publish.array_hz is 0?")
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


def snippets_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the newest spike of each of several channels."""
    inside = canvas.frame(rect, "spikes", model.unit)
    y, x, height, width = inside
    if not height:
        return
    newest = list(model.snippets.values())[::-1]
    if not newest:
        canvas.paragraph(
            inside, "none yet" if model.counts or not len(model.rates_hz) else "n/a: the source brings no signal"
        )
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


def network_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the modulators as bars, and below them the last command and the membranes."""
    inside = canvas.frame(rect, "modulators")
    y, x, height, width = inside
    if not height:
        return
    if model.state is None:
        canvas.paragraph(inside, "nothing heard: publish.state_hz is 0?")
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
    if model.command is not None:
        values, flags = model.command
        inhibited = " INHIBITED" if flags & Flag.INHIBITED else ""
        told = [[("last command", DIM), (inhibited, ORANGE)], [(_numbers(values), BOLD)]]
        for parts in told[: y + height - row]:
            canvas.words(row, x + 1, parts, x + width)
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


def loop_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw latency, losses, recording and watchdogs."""
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
    parts += [(" lost ", DIM), (f"{lost}", ORANGE if lost else BOLD)]
    if free_s is not None:
        parts += [(" full in ", DIM), (duration(free_s), ORANGE if free_s < 3600 else BOLD)]
    return parts


def gate_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw how the gate is, what it did, and the last train."""
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
            + ([(f"  {time_left(gate)}", BOLD)] if gate.state == "armed" else [])
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
    for row, parts in enumerate(rows[:height]):
        canvas.words(y + row, x + 1, parts, end)


def time_left(gate: Gate) -> str:
    """Return how long an arming lasts yet."""
    return "time left not known yet" if gate.seconds_left is None else f"{gate.seconds_left:.1f} s left"


def _last_train(model: Model, now: float) -> list[list[tuple[str, int]]]:
    train = model.train
    if train is None:
        return [[("last train ", DIM), ("none sent", BOLD)]]
    then = model.daemon_time(now)
    ago = f"  {duration(then - train.t)} ago" if then is not None else ""
    return [
        [("last train ", DIM), (f"electrode {train.electrode}{ago}", BOLD)],
        [(f"  {train.amplitude_ua:g} uA x {train.phase_us:g} us, {train.pulses} pulses", PLAIN)],
    ]


def _command_rows(model: Model, now: float) -> list[list[tuple[str, int]]]:
    if model.command is None:
        return [[("command ", DIM), ("none: the session has no decoder", DIM)]]
    values, flags = model.command
    rows = [[("command ", DIM), (_numbers(values), BOLD), (" INHIBITED" if flags & Flag.INHIBITED else "", ORANGE)]]
    then = model.daemon_time(now)
    for bit, (n, t) in sorted(model.command_events.items()):
        ago = f"{duration(then - t)} ago" if then is not None else ""
        rows.append([(f"event {bit}  ", DIM), (f"{n} times", BOLD), (f"  last {ago}", DIM)])
    return rows


def _numbers(values: NDArray[np.float32]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def command_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the last command, and how often each of its events came."""
    decoder = model.health.get("decoder", {})
    note = f"{decoder.get('kind', '')} v{decoder.get('version', 0)}" if model.command is not None else ""
    inside = canvas.frame(rect, "decoder", note)
    rows = _command_rows(model, now)
    if model.command is not None:
        rows.insert(0, [("from ", DIM), (str(decoder.get("from", "")), PLAIN)])
    for row, parts in enumerate(rows[: inside.height]):
        canvas.words(inside.y + row, inside.x + 1, parts, inside.x + inside.width)


def counters_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw every counter that is not zero."""
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


def events_panel(canvas: Canvas, rect: Rect, model: Model, now: float) -> None:
    """Draw the newest events, and before them the notes that are not kept yet."""
    inside = canvas.frame(rect, "events", "n adds a note")
    rows: list[list[tuple[str, int]]] = []
    for note in list(model.notes)[::-1]:
        state = model.note_state(note, now)
        if state != "kept":
            words = {"sent": "on its way", "lost": "NOT KEPT: it did not come back", "unsent": "NOT KEPT: no daemon"}
            rows.append([(f"note {words[state]}: ", ALARM if state != "sent" else DIM), (note.text, PLAIN)])
    for at, event in list(model.events)[::-1]:
        style = YELLOW if event.name == "note" else ORANGE if event.source == "daemon" else PLAIN
        rows.append([(f"{duration(now - at):>6} ago  ", DIM), (event_text(event), style)])
    if not rows:
        rows.append([("none yet", DIM)])
    for row, parts in enumerate(rows[: inside.height]):
        canvas.words(inside.y + row, inside.x + 1, parts, inside.x + inside.width)


def event_text(event: EventMessage) -> str:
    """Return an event on one line."""
    value = "" if event.value is None else f": {event.value}"
    return f"{event.name}{value}  ({event.source}, tick {event.tick:,})".replace("\n", " ")


# -- numbers for people -----------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 10.0:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.0f} h"


def _us(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "n/a"
    if value < 1e4:
        return f"{value:.0f} us" if value < 1e3 else f"{value / 1e3:.1f} ms"
    return f"{value / 1e3:.0f} ms" if value < 1e6 else f"{value / 1e6:.3g} s"


def _bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
