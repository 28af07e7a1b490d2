"""The monitor: its model against an obvious twin, its keys and pictures against a real daemon, and a terminal."""

import asyncio
import fcntl
import itertools
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from harness import FREE_PORTS, WAIT_S, driven_daemon, pulsing, sockets, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual import events
from textual.drivers.headless_driver import HeadlessDriver
from textual.widgets import Input
from typer.testing import CliRunner

from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.bridge import wire
from neuromod.bridge.cli import app
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.monitor_canvas import GLYPHS
from neuromod.bridge.monitor_draw import PAGES, Screen, draw
from neuromod.bridge.monitor_model import KEPT_S, SILENT_S, WARN_S, Model
from neuromod.bridge.monitor_view import MonitorApp, glyphs_for, quick_driver, row_of
from neuromod.bridge.session import Session
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import NeuromodError

T0 = 1000.0
BY_STOP = ("stopped", "disarmed")  # the message and the command go out together
SIZES = [(80, 24), (120, 40), (200, 60), (60, 16), (40, 10), (80, 34), (300, 20)]


# -- the model, without a daemon --------------------------------------------------------------------------------------


def spikes(seq: int, t: float, channels: tuple[int, ...] = (), flags: int = 0, latency_s: float = 1e-4) -> bytes:
    fired = np.zeros(16, np.bool_)
    fired[list(channels)] = True
    return wire.pack_spikes(wire.SpikesMessage(seq, seq, seq, t - latency_s, t, fired, Flag(flags)))


def health(t: float, uptime_s: float = 5.0, **body: Any) -> bytes:
    return wire.pack_health(wire.HealthMessage(t, "streaming", {"uptime_s": uptime_s, **body}))


def other_form(payload: bytes) -> bytes:
    """The same map as another msgpack library might write it."""
    import msgpack

    return bytes(msgpack.packb(dict(reversed(msgpack.unpackb(payload).items()))))


class Naive:
    """One message after the other, by the slow and obvious way."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, tuple[int, ...], int]] = []
        self.lost, self.expected = 0, -1

    def take(self, payload: bytes) -> None:
        message = wire.unpack_output(b"spikes", payload)
        assert isinstance(message, wire.SpikesMessage)
        if self.expected >= 0 and message.seq > self.expected:
            self.lost += message.seq - self.expected
        if message.seq < self.expected:
            self.ticks.clear()
        self.expected = message.seq + 1
        self.ticks.append((message.t_tick, tuple(message.channels), int(message.flags)))
        self.ticks = [tick for tick in self.ticks if tick[0] > message.t_tick - KEPT_S]

    def raster(self, n_columns: int, seconds: float) -> tuple[list[list[int]], list[int]]:
        counts, flags = [[0] * n_columns for _ in range(16)], [-1] * n_columns
        width = seconds / n_columns
        last = int(self.ticks[-1][0] // width)
        for t, channels, flag in self.ticks:
            column = int(t // width) - last + n_columns - 1
            if column >= 0:
                flags[column] = max(flags[column], 0) | flag
                for channel in channels:
                    counts[channel][column] += 1
        return counts, flags


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 3), st.sets(st.integers(0, 15)), st.sampled_from([0, 1, 32, 64]), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    cuts=st.sets(st.integers(0, 60)),
    restart=st.one_of(st.none(), st.integers(0, 59)),
    n_columns=st.integers(1, 50),
)
def test_the_model_equals_an_obvious_twin_however_messages_are_batched(
    steps: list[Any], cuts: set[int], restart: int | None, n_columns: int
) -> None:
    payloads, seq, t = [], 0, T0
    for place, (step, channels, flags, is_other) in enumerate(steps):
        seq, t = (0 if place == restart else seq + step), t + 0.0717
        payload = spikes(seq, t, tuple(channels), flags)
        payloads.append(other_form(payload) if is_other and restart is None else payload)
    model, naive = Model(), Naive()

    edges = sorted({0, len(payloads), *(cut for cut in cuts if cut < len(payloads))})
    for a, b in itertools.pairwise(edges):
        model.take(b"spikes", payloads[a:b], T0)
    for payload in payloads:
        naive.take(payload)

    counts, flags = model.raster(n_columns)
    expected_counts, expected_flags = naive.raster(n_columns, 5.0)
    assert counts.tolist() == expected_counts
    assert flags.tolist() == expected_flags
    assert model.restarts == (restart is not None and 0 < restart < len(steps))
    if restart is None:
        assert model.lost["spikes"] == naive.lost
    assert model.malformed == 0


def test_commands_are_read_as_one_and_their_events_counted() -> None:
    model = Model()
    values = np.array([1.5, -2.0], np.float32)
    events = [0, 1, 0, 3, 1]
    batch = [
        wire.pack_command(Command(i, i, T0, T0 + 0.001 * i, values + i, e, 4, int(Flag.INHIBITED), T0 + 1.0))
        for i, e in enumerate(events)
    ]

    model.take(b"command", batch[:2], T0)
    model.take(b"command", batch[3:], T0)

    assert model.command is not None
    assert (model.command[0].tolist(), model.command[1]) == ([5.5, 2.0], int(Flag.INHIBITED))
    assert {bit: n for bit, (n, _) in model.command_events.items()} == {0: 3, 1: 1}
    assert model.command_events[0][1] == T0 + 0.004
    assert model.lost["command"] == 1


def gate_message(kind: Any, seq: int, reason: int = 0) -> bytes:
    return wire.pack_stimulation(Stimulation(seq, 0, T0, kind, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, T0, reason))


def test_the_gate_is_as_the_newest_message_says_health_or_lease() -> None:
    model = Model()
    assert model.gate(T0).state == "unknown"

    told = {"state": "armed", "mode": "live", "seconds_left": 30.0, "heartbeat_s": 0.1, "arms": 2, "counts": {}}
    model.take(b"health", [health(T0, stimulation=told)], T0)
    gate = model.gate(T0 + 0.5)
    assert (gate.state, gate.mode, gate.seconds_left, gate.arms) == ("armed", "live", 29.5, 2)
    assert gate.heartbeat_s == pytest.approx(0.6)

    model.take(b"stimulation", [gate_message("stop", 0, reason=5)], T0 + 0.6)
    assert (model.gate(T0 + 0.7).state, model.gate(T0 + 0.7).ended_by) == ("disarmed", "heartbeat")

    model.take(b"stimulation", [gate_message("lease", 1)], T0 + 0.8)
    assert model.gate(T0 + 0.9).state == "armed"  # before any health says so

    model.take(b"health", [health(T0, stimulation={"state": "off"})], T0 + 1.0)
    assert model.gate(T0 + 1.1).state == "off"


def test_silence_is_told_by_how_long_it_lasts() -> None:
    model = Model()
    assert model.connection(T0) == "waiting"
    model.take(b"spikes", [spikes(0, T0)], T0)
    assert model.connection(T0 + 0.5 * WARN_S) == "live"
    assert model.connection(T0 + 0.5 * (WARN_S + SILENT_S)) == "late"
    assert model.connection(T0 + SILENT_S) == "silent"
    canvas = draw(model, T0 + 2.3, 80, 24, Screen(), GLYPHS["braille"])
    assert "NO MESSAGE FOR 2.3 s" in canvas.lines()[0]


def test_several_signs_of_one_restart_count_once() -> None:
    model = Model()
    model.take(b"spikes", [spikes(100, T0)], T0)
    model.take(b"health", [health(T0, uptime_s=60.0)], T0)

    model.take(b"spikes", [spikes(0, T0 + 2.0)], T0 + 2.0)
    model.take(b"health", [health(T0 + 2.1, uptime_s=1.0)], T0 + 2.1)
    event = wire.pack_event(wire.EventMessage("daemon.restarted", T0 + 2.2, 0, "daemon", "after a crash"))
    model.take(b"event", [event], T0 + 2.2)

    assert model.restarts == 1
    assert any("started again" in line for line in draw(model, T0 + 3, 80, 24, Screen(), GLYPHS["braille"]).lines())
    assert len(model.ticks) == 1  # nothing of the one before


def test_a_moment_is_told_on_the_clock_of_the_daemon() -> None:
    here, elsewhere = Model(), Model()
    assert here.daemon_time(T0) is None
    here.take(b"health", [health(T0 - 0.01)], T0)
    elsewhere.take(b"health", [health(T0 - 500.3)], T0)
    elsewhere.take(b"health", [health(T0 - 499.2)], T0 + 1.0)

    assert here.daemon_time(T0 + 5.0) == T0 + 5.0
    assert elsewhere.daemon_time(T0 + 5.0) == pytest.approx(T0 - 495.2)  # by the quicker of the two


def test_what_is_no_message_is_counted_and_another_version_said() -> None:
    model = Model()
    model.take(b"spikes", [b"\xc1", bytes(108)], T0)
    model.take(
        b"health", [wire.pack_health(wire.HealthMessage(T0, "streaming", {})).replace(b"\xa1v\x01", b"\xa1v\x02")], T0
    )
    assert model.malformed == 3
    assert "version 2" in model.refusal


def full_model(n: int = 96, counts: str = "crossings") -> Model:
    """Return a model that has heard everything."""
    model, rng = Model(), np.random.default_rng(2)
    for i in range(0, 4000, 100):
        batch = [spikes(k, T0 + 1e-3 * k, tuple(np.flatnonzero(rng.random(16) < 0.02))) for k in range(i, i + 100)]
        model.take(b"spikes", batch, T0 + 1e-3 * i)
    t = T0 + 4.0
    levels = {"dopamine": -0.2, "cortisol": 0.1, "acetylcholine": 0.5, "tempo": 1.0}
    ramp = np.arange(16, dtype=np.float32)
    model.take(b"state", [wire.pack_state(wire.StateMessage(1, t, ramp, levels, ramp))], t)
    decoded = Command(1, 1, T0, t, np.array([1.25, -0.5], np.float32), 0, 4, 0, T0 + 5.0)
    model.take(b"command", [wire.pack_command(decoded)], t)
    rates = rng.exponential(20.0, n).astype(np.float32) if counts else np.full(n, np.nan, np.float32)
    wave = np.sin(np.linspace(0, 6, 60)).astype(np.float32) * 80
    snippets = tuple(wire.Snippet(c, t, 20, wave) for c in range(0, n, 7)) if counts else ()
    places = np.stack([np.arange(n) % 10, np.arange(n) // 10], axis=1).astype(np.float32)
    array = wire.ArrayMessage(
        0, 1, t, n, 0, counts, "uV", rates, np.float32(0.25) * rates, places, (3,), 30e3, snippets
    )
    model.take(b"array", [wire.pack_array(array)], t)
    body: dict[str, Any] = {
        "counters": {"ticks": 4000, "late_ticks": 3, "gaps": 0, "units_overflow": 2},
        "errors": {"range": 4},
        "latency_us": {"p50": 90.0, "p99": 210.0, "max": 4000.0},
        "source": {"name": "synthetic", "n_channels": n, "sampling_frequency": 30000.0},
        "stimulation": {
            "state": "armed", "mode": "live", "seconds_left": 42.0, "heartbeat_s": 0.2, "arms": 1,
            "counts": {"issued": 7, "refused_rate": 2}, "dose_nc": 14.0,
        },
        "recording": {"state": "recording", "bytes": 5_000_000, "lost": {}, "free_s": 7000.0},
        "watchdogs": {"loop": {"ok": True, "says": ""}, "disk": {"ok": False, "says": "slow"}},
        "restarts": 2,
    }  # fmt: skip
    model.take(b"health", [health(t, **body)], t)
    model.take(b"event", [wire.pack_event(wire.EventMessage("go\nnow", t, 1, "ingest", {"trial": 4}))], t)
    return model


@pytest.mark.parametrize("glyphs", GLYPHS)
@pytest.mark.parametrize("page", [*PAGES, "help"])
def test_every_page_is_drawn_at_every_size(page: str, glyphs: str) -> None:
    models = [full_model(), full_model(384), full_model(3000), full_model(20, counts=""), Model()]
    for width, height in SIZES:
        for model in models:
            canvas = draw(model, T0 + 4.1, width, height, Screen(page=page), GLYPHS[glyphs])
            lines = canvas.lines()
            assert len(lines) == height
            assert max(map(len, lines)) <= width
            if glyphs == "ascii":
                assert "".join(lines).isascii()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_what_matters_is_told_in_words_at_any_size(width: int, height: int) -> None:
    text = "\n".join(draw(full_model(), T0 + 4.1, width, height, Screen(), GLYPHS["braille"]).lines())

    for said in (
        "ARMED",
        "41.9 s left",
        "last command",
        "1.25 -0.5",
        "noise ",
        "heartbeat 0.3 s ago",
        "p99",
        "late 3",
        "refused 4",
        "overflow 2",
        "Hz",
    ):
        assert said in text
    assert "watchdog disk: slow" in text
    assert "STOP" in text
    features = "\n".join(draw(full_model(20, ""), T0 + 4.1, width, height, Screen(), GLYPHS["braille"]).lines())
    assert "n/a" in features


@pytest.mark.parametrize(
    ("term", "encoding", "expected"),
    [("xterm-256color", "utf-8", "braille"), ("linux", "UTF-8", "blocks"), ("xterm", "ISO-8859-1", "ascii")],
)
def test_a_terminal_is_drawn_on_with_what_it_has(term: str, encoding: str, expected: str) -> None:
    assert glyphs_for(term, encoding) == expected


def picture(model: Model, width: int = 80, height: int = 24, **view: Any) -> str:
    return "\n".join(draw(model, T0 + 4.1, width, height, Screen(**view), GLYPHS["braille"]).lines())


def test_an_arming_is_not_told_as_of_now_where_it_is_not_known() -> None:
    model = full_model()
    later = T0 + 4.0 + SILENT_S
    for width, height in ((80, 24), (120, 40)):
        assert "ARMED WHEN LAST HEARD" in "\n".join(
            draw(model, later, width, height, Screen(), GLYPHS["braille"]).lines()
        )
    leased = Model()
    leased.take(b"stimulation", [gate_message("lease", 1)], T0 + 4.0)
    assert "ARMED <<<  time left not known yet" in picture(leased)
    assert leased.summary(T0 + 4.1)["stimulation"]["seconds_left"] is None


def test_the_keys_that_stop_are_those_that_do() -> None:
    model = full_model()
    assert "SPACE OR S STOPS" in picture(model)
    writing = picture(model, is_writing=True)
    assert "CTRL-S STOPS" in writing
    assert "SPACE OR S" not in writing
    assert "YOUR KEY HAS NO ROLE TO STOP" in picture(model, can_stop=False)
    small = picture(model, 40, 10, notice="THE STOP WAS SENT", is_alarming=True)
    assert "THE STOP WAS SENT" in small
    assert "ARMED 41.9 s left" in small


@pytest.mark.parametrize("glyphs", GLYPHS)
def test_what_others_send_moves_no_cursor_and_keeps_its_place(glyphs: str) -> None:
    model = full_model()
    name = "\x1b[2J\u202e\x07 \u3053\u3093 e\u0301"
    model.take(b"event", [wire.pack_event(wire.EventMessage(name, T0 + 4.0, 1, "ingest", "\u3053" * 200))], T0 + 4.0)

    for width in (80, 81):
        canvas = draw(model, T0 + 4.1, width, 24, Screen(page="events"), GLYPHS[glyphs])
        lines = canvas.lines()
        assert all(line.isprintable() for line in lines)
        assert "?[2J??" in lines[3]
        assert [row_of(canvas, y).cell_length for y in range(24)] == [width] * 24
        assert all(cell_len(segment.text) <= width for y in range(24) for segment in row_of(canvas, y))
        assert ("\u3053\u3093 \u00e9" in lines[3]) == (glyphs != "ascii")


def test_more_channels_than_characters_share_them_and_the_probe_stands_upright() -> None:
    model = full_model(384)
    model.rates_hz[:] = 0.0
    model.rates_hz[-4:] = 50.0
    rows = [line[1:23] for line in picture(model).splitlines()[14:22]]
    assert "4 a cell" in rows[6]
    assert sum(row.count("·") for row in rows[:5]) == 384 // 4 - 1
    assert rows[4].rstrip().endswith("█")

    upright = full_model(20)  # two rows of ten, the second one above
    upright.rates_hz[:10], upright.rates_hz[10:] = 0.0, 50.0
    rows = [line[1:23] for line in picture(upright).splitlines()[14:22]]
    assert rows[0].strip() == "█" * 20
    assert "█" not in rows[1]


def test_an_address_that_is_none_is_refused_before_the_screen_is_taken() -> None:
    nowhere = dict.fromkeys(("ingest", "output", "control"), "tcp://127.0.0.1:1")
    for name in nowhere:
        with pytest.raises(NeuromodError, match="'nonsense' is no address to connect to"):
            MonitorApp({**nowhere, name: "nonsense"})


# -- against a real daemon --------------------------------------------------------------------------------------------


def config(folder: Path, sockets: str = FREE_PORTS) -> SessionConfig:
    record = f'[record]\nfolder = "{folder}"\nmin_free_mb = 1.0\n'
    return parse(pulsing('mode = "dry_run"\nheartbeat_ms = 20000.0') + record + sockets)


async def until(pilot: Any, condition: Callable[[], Any], what: str) -> Any:
    """Let the application go on until a condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
        await pilot.pause(0.02)
    return found


def watch(addresses: dict[str, str], act: Callable[[MonitorApp, Any], Awaitable[None]], size: Any = (80, 24)) -> None:
    """Run the monitor without a terminal, and do something with it."""

    async def run() -> None:
        monitor = MonitorApp(addresses, glyphs=GLYPHS["braille"])
        async with monitor.run_test(size=size) as pilot:
            await act(monitor, pilot)

    async def a_moment(*_: float) -> None:
        await asyncio.sleep(0.01)

    # after each key the pilot waits until this process is idle, which with a daemon in it is never: for two seconds
    with patch("textual.app.wait_for_idle", a_moment), patch("textual.pilot.wait_for_idle", a_moment):
        asyncio.run(run())


def screen(monitor: MonitorApp) -> str:
    from neuromod.bridge.monitor_view import Picture

    canvas = monitor.query_one(Picture).canvas
    return "\n".join(canvas.lines()) if canvas is not None else ""


@pytest.mark.compiled_loop
@pytest.mark.parametrize("key", ["s", "space", "ctrl+s"])
def test_one_key_disarms_an_armed_session_and_says_so(tmp_path: Path, key: str) -> None:
    with driven_daemon(config(tmp_path)) as running:
        running.client.arm(600.0)

        async def act(monitor: MonitorApp, pilot: Any) -> None:
            await until(pilot, lambda: "ARMED" in screen(monitor), "the arming on the screen")
            if key == "ctrl+s":  # in the middle of a note
                await pilot.press("n", "s", "space", "x")
                assert running.health["stimulation"]["state"] == "armed"
            await pilot.press(key)
            await until(pilot, lambda: running.health["stimulation"]["state"] == "disarmed", "the end of the arming")
            assert running.health["stimulation"]["disarmed_by"] in BY_STOP
            await until(pilot, lambda: "STIMULATION IS STOPPED" in screen(monitor), "the word of it")
            await until(pilot, lambda: "ARMED <<<" not in screen(monitor), "the gate")

        watch(running.daemon.addresses, act)


@pytest.mark.compiled_loop
def test_the_thread_that_reads_the_keyboard_stops_by_itself(tmp_path: Path) -> None:
    """Whatever the drawing does: here the application is held up from the key to the end of the arming."""
    with driven_daemon(config(tmp_path)) as running:
        running.client.arm(600.0)

        async def act(monitor: MonitorApp, pilot: Any) -> None:
            await until(pilot, lambda: "ARMED" in screen(monitor), "the arming on the screen")
            # what runs without a terminal has a driver of its own: this is the one that a terminal gets
            driver = quick_driver(HeadlessDriver)(monitor)
            keyboard = threading.Thread(target=driver.process_message, args=(events.Key("s", "s"),))
            keyboard.start()
            # no await: nothing of the application runs
            wait_until(lambda: running.health["stimulation"]["state"] == "disarmed", "the end of the arming")
            assert running.health["stimulation"]["disarmed_by"] in BY_STOP
            await until(pilot, lambda: not keyboard.is_alive(), "the key")

        watch(running.daemon.addresses, act)


@pytest.mark.compiled_loop
def test_a_note_is_in_the_record_at_the_moment_of_its_key(tmp_path: Path) -> None:
    note_t = []
    with driven_daemon(config(tmp_path)) as running:

        async def act(monitor: MonitorApp, pilot: Any) -> None:
            await until(pilot, lambda: monitor.model.health, "health")
            before = time.monotonic()
            await pilot.press("n")
            after = time.monotonic()
            await pilot.press(*"sneezed", "space", "s", "enter")
            note = monitor.model.notes[-1]
            await until(pilot, lambda: note.tick is not None, "the note as an event")
            assert before <= note.t <= after
            note_t.append(note.t)
            await until(pilot, lambda: "note kept at tick" in screen(monitor), "the word of it")
            assert monitor.focused is None
            assert not monitor.query_one(Input).has_class("shown")

        watch(running.daemon.addresses, act)
        folder = running.daemon.recorder.folder  # type: ignore[union-attr]
    (kept,) = Session(folder).notes()
    assert (kept["text"], kept["t"]) == ("sneezed s", note_t[0])
    assert kept["at"].timestamp() == pytest.approx(time.time() - (time.monotonic() - note_t[0]), abs=0.5)
    shown = CliRunner().invoke(app, ["session", "show", str(folder)], env={"COLUMNS": "100"}).stdout
    assert f"note {kept['at']:%H:%M:%S}" in shown
    assert f"sneezed s (tick {kept['tick']})" in shown


@pytest.mark.compiled_loop
def test_a_daemon_that_was_started_again_is_found_and_told(tmp_path: Path) -> None:
    with driven_daemon(config(tmp_path)) as running:
        addresses = running.daemon.addresses

    async def act(monitor: MonitorApp, pilot: Any) -> None:
        await until(pilot, lambda: "No daemon is heard yet" in screen(monitor), "that nobody is there")
        sockets = "[sockets]\n" + "\n".join(f'{name} = "{address}"' for name, address in addresses.items())
        for turn in range(2):
            with driven_daemon(config(tmp_path, sockets)):
                heard = monitor.model.heard_at
                await until(pilot, partial(lambda before: monitor.model.heard_at != before, heard), "a message")
                await until(
                    pilot, partial(lambda n: monitor.model.restarts == n and monitor.model.health, turn), "health"
                )
                await until(pilot, lambda: len(monitor.model.ticks) > 20, "ticks")
                if turn == 1:
                    await until(pilot, lambda: "started again" in screen(monitor), "the word of it")

    watch(addresses, act)


@pytest.mark.compiled_loop
def test_pause_holds_the_picture_but_not_the_gate_and_digits_turn_pages(tmp_path: Path) -> None:
    with driven_daemon(config(tmp_path)) as running:

        async def act(monitor: MonitorApp, pilot: Any) -> None:
            await until(pilot, lambda: "disarmed" in screen(monitor), "the gate")
            for number, page in enumerate(PAGES, 1):
                await pilot.press(str(number))
                await until(pilot, partial(lambda name: monitor.view.page == name, page), page)
            await pilot.press("question_mark")
            await until(pilot, lambda: "stop stimulation at once" in screen(monitor), "the help")
            await pilot.press("escape", "p")
            await until(pilot, lambda: "PAUSED" in screen(monitor), "the pause")
            running.client.arm(600.0)
            await until(pilot, lambda: "ARMED" in screen(monitor), "the arming on a picture that stands still")
            await pilot.press("p")
            await until(pilot, lambda: "PAUSED" not in screen(monitor), "the end of the pause")

        watch(running.daemon.addresses, act)


@pytest.mark.compiled_loop
def test_the_command_draws_on_a_terminal_prints_json_and_pictures(tmp_path: Path) -> None:
    with driven_daemon(config(tmp_path)) as running:
        args = sockets(running.daemon.addresses)
        shown, code = at_a_terminal(["monitor", *args, "--seconds", "3"], 80, 24)
        assert code == 0
        assert "neuromod" in shown
        assert "network" in shown
        assert "disarmed" in shown

        printed = CliRunner().invoke(app, ["monitor", *args, "--json", "--seconds", "1"])
        assert printed.exit_code == 0
        (summary,) = map(json.loads, printed.stdout.splitlines())
        assert summary["connection"] == "live"
        assert summary["state"] == "streaming"
        assert summary["stimulation"]["state"] == "disarmed"
        assert len(summary["spikes_per_s"]) == 16

        picture = CliRunner().invoke(
            app, ["monitor", *args, "--snapshot", "--seconds", "1", "--characters", "ascii"], env={"COLUMNS": "90"}
        )
        assert picture.exit_code == 0
        assert "STREAMING" in picture.stdout
        assert picture.stdout.isascii()


def test_without_a_daemon_or_a_terminal_it_says_so() -> None:
    nowhere = ["--output", "tcp://127.0.0.1:1"]
    silent = CliRunner().invoke(app, ["monitor", *nowhere, "--json", "--seconds", "1"])
    assert (silent.exit_code, json.loads(silent.stdout)["connection"]) == (1, "waiting")
    picture = CliRunner().invoke(app, ["monitor", *nowhere, "--snapshot", "--seconds", "0.1"])
    assert picture.exit_code == 1
    assert "No daemon is heard yet" in picture.stdout
    piped = CliRunner().invoke(app, ["monitor", *nowhere])
    assert piped.exit_code == 2
    assert "--snapshot or --json" in piped.stderr
    wrong = CliRunner().invoke(app, ["monitor", "--output", "nonsense", "--json"])
    assert (wrong.exit_code, "no address" in wrong.stderr) == (2, True)


def test_a_byte_that_is_no_utf8_does_not_cost_the_stop_after_it_and_a_stop_outlives_the_screen() -> None:
    nowhere = sockets(dict.fromkeys(("ingest", "output", "control"), "tcp://127.0.0.1:1"))
    shown, code = at_a_terminal(["monitor", *nowhere], 80, 24, [("No daemon", b"\xe9 "), ("STOPPING", b"q")])

    assert code == 1
    assert "neuromod: NO DAEMON TOOK THE STOP: SWITCH THE STIMULATOR OFF" in shown
    assert "Traceback" not in shown


def at_a_terminal(args: list[str], width: int, height: int, keys: Sequence[tuple[str, bytes]] = ()) -> tuple[str, int]:
    """Run the command on a terminal of its own; return all that it wrote, and its exit code.

    Each of `keys` is pressed once the text before it was written.
    """
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "neuromod.bridge.cli", *args],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
    )
    mode = termios.tcgetattr(terminal)
    os.close(terminal)
    got, waiting = b"", list(keys)
    deadline = time.monotonic() + 3 * WAIT_S
    try:
        while time.monotonic() < deadline:
            if not select.select([keyboard], [], [], 0.1)[0]:
                if child.poll() is not None:
                    break
                continue
            try:
                got += os.read(keyboard, 65536)
            except OSError:  # the other end is closed
                break
            if waiting and waiting[0][0].encode() in got:
                os.write(keyboard, waiting.pop(0)[1])
        code = child.wait(WAIT_S)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        os.close(keyboard)
    assert mode is not None
    return got.decode(errors="replace"), code
