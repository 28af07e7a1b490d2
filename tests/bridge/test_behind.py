"""A loop that falls behind its source drops to the newest, or ends; one that has only old stamps does neither."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import pytest
from harness import FREE_PORTS, Process, Running, session, started, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromod.bridge.client import Client
from neuromod.bridge.config import parse
from neuromod.bridge.loop import is_behind
from neuromod.bridge.loop_state import INPUT_NAMES
from neuromod.bridge.session import Session
from neuromod.bridge.session_replay import replay_session
from neuromod.bridge.wire import EventMessage, Flag

RATE_HZ = 1000.0

STREAM = """
import sys, time
import numpy as np, pylsl
name, seconds = sys.argv[1], float(sys.argv[2])
outlet = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Test", 16, 1000.0, pylsl.cf_float32, name))
print("ready", flush=True)
while not outlet.wait_for_consumers(1.0):
    pass
rows = np.random.default_rng(3).uniform(0.0, 3.0, (1000, 16)).astype(np.float32)
t0, i = pylsl.local_clock(), 0
while i < 1000 * seconds:
    while i <= (pylsl.local_clock() - t0) * 1000.0:
        outlet.push_sample(rows[i % 1000], t0 + i / 1000.0)
        i += 1
    time.sleep(0.001)
"""


def live(name: str, rest: str = "", timing: str = "") -> str:
    return f"""
    source = {{kind = "lsl", name = "{name}", content = "features"}}
    {rest}
    [encoder]
    kind = "identity"
    normalisation = "none"
    smoothing_ms = 0
    offset = 0
    [timing]
    stall_ms = 60
    {timing}
    """


@contextmanager
def streaming(name: str, seconds: float = 120.0) -> Iterator[Process]:
    """Give a process that streams 16 channels at 1 kHz once somebody listens."""
    child = Process("-c", STREAM, name, str(seconds))
    try:
        child.wait_for_line("ready", "out")
        yield child
    finally:
        child.popen.kill()
        child.end()


def outlet_of(name: str) -> pylsl.StreamOutlet:
    return pylsl.StreamOutlet(pylsl.StreamInfo(name, "Test", 16, RATE_HZ, pylsl.cf_float32, f"{name}-1"))


def push(outlet: Any, first_stamp: float, n: int) -> None:
    rows = np.random.default_rng(n).uniform(0.0, 2.0, (n, 16)).astype(np.float32)
    outlet.push_chunk(rows, (first_stamp + np.arange(n) / RATE_HZ).tolist())


# -- the decision


@settings(deadline=None)
@given(
    age_s=st.one_of(st.floats(-1.0, 5.0), st.just(math.nan)),
    waiting=st.integers(0, 100_000),
    frequency_hz=st.sampled_from([20.0, 1000.0, 24414.0625, 30_000.0]),
    behind_s=st.one_of(st.floats(0.005, 2.0), st.just(math.inf)),
)
def test_behind_is_who_has_old_samples_and_as_long_a_backlog(
    age_s: float, waiting: int, frequency_hz: float, behind_s: float
) -> None:
    period_s = 1.0 / frequency_hz
    is_old = not math.isnan(age_s) and age_s > behind_s
    has_backlog = waiting * period_s >= behind_s

    assert is_behind(age_s, waiting, period_s, behind_s) == (is_old and has_backlog)


@pytest.mark.parametrize(
    ("timing", "block_ms", "expected_ms"),
    [
        ("", 1.0, 100.0),
        ("behind_ms = 80", 1.0, 80.0),
        ("behind_ms = 20", 1.0, 50.0),  # less than a stall
        ("behind_ms = 20", 100.0, 300.0),  # less than three blocks
        ("late_ms = 400", 1.0, 400.0),
        ("stall_ms = 700", 1.0, 700.0),
    ],
)
def test_what_counts_as_behind_is_never_less_than_late_or_a_stall(
    timing: str, block_ms: float, expected_ms: float
) -> None:
    config = parse(f'source = {{kind = "lsl", name = "x"}}\n[timing]\n{timing}\n')

    assert config.timing.behind_bound_ms(block_ms) == expected_ms


# -- the loop


pytestmark = pytest.mark.compiled_loop


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_a_burst_of_the_past_is_dropped_and_the_newest_goes_on(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    name = f"burst {loop}"
    outlet = outlet_of(name)
    with Running(session(live(name, f'runtime = {{loop = "{loop}"}}'))) as running:
        listener = running.listen("spikes", "event")
        push(outlet, pylsl.local_clock() - 0.02, 20)
        running.records.wait_for(20)
        push(outlet, pylsl.local_clock() - 2.0, 2000)
        (event,) = listener.until(
            lambda: [m for m in listener.of(EventMessage) if m.name == "source.behind"], "the event"
        )
        dropped = running.wait_for_health(lambda h: h["counters"]["samples_dropped"] > 1000, "the drop")
        running.wait_for_health(
            lambda h: h["counters"]["samples_dropped"] + h["counters"]["samples"] == 2020, "all samples"
        )
        n_before = len(running.records.live())
        push(outlet, pylsl.local_clock() - 0.02, 20)
        newest = running.records.wait_for(n_before + 20)[n_before:]
        counters = running.health["counters"]

    assert event.source == "daemon"
    assert "samples were" in str(event.value)
    assert "dropped" in str(event.value)
    assert dropped["counters"]["samples_filled"] == 0
    assert counters["samples_filled"] == 0  # what was dropped is not made up for
    assert newest["flags"][0] & Flag.DISCONTINUITY
    assert not (newest["flags"][1:] & Flag.DISCONTINUITY).any()
    assert "fell behind its source" in caplog.text


def test_old_stamps_alone_are_late_and_nothing_is_dropped() -> None:
    outlet = outlet_of("old stamps")
    with Running(session(live("old stamps"))) as running:
        for k in range(30):  # a device that stamps 5 s back, and sends 10 ms at once
            push(outlet, pylsl.local_clock() - 5.0, 10)
            records = running.records.wait_for(10 * (k + 1))
        health = running.health

    assert health["counters"]["samples_dropped"] == 0
    assert (records["flags"] & Flag.LATE).all()
    assert health["sample_age_ms"] > 4900.0


def test_samples_that_are_old_are_announced_whether_they_come_or_not() -> None:
    outlet = outlet_of("too old")
    limits = "[watchdog]\nsample_age_s = 0.2\nhold_s = 0.1"
    with Running(session(live("too old", timing=f"late_ms = 1000\n{limits}"))) as running:

        def told(is_ok: bool) -> dict[str, Any]:
            return running.wait_for_health(lambda h: h["watchdogs"]["sample_age"]["ok"] is is_ok, f"it is {is_ok}")

        def push_until(age_s: float, is_ok: bool) -> None:
            def push_and_look() -> bool:
                push(outlet, pylsl.local_clock() - age_s, 10)
                return bool(running.health["watchdogs"]["sample_age"]["ok"] is is_ok)

            wait_until(push_and_look, f"it is {is_ok}")

        push_until(5.0, is_ok=False)
        assert "the newest sample is 49" in running.health["watchdogs"]["sample_age"]["says"]
        push_until(0.02, is_ok=True)
        health = told(False)  # none comes any more: it is what health says that grows
        assert health["sample_age_ms"] > 1000.0


def test_the_age_of_the_newest_sample_grows_while_none_comes() -> None:
    outlet = outlet_of("ageing")
    with Running(session(live("ageing"))) as running:
        assert running.health["sample_age_ms"] is None
        push(outlet, pylsl.local_clock() - 0.02, 20)
        running.records.wait_for(20)
        first = running.wait_for_health(lambda h: h["sample_age_ms"] is not None, "an age")["sample_age_ms"]
        running.wait_for_health(lambda h: h["sample_age_ms"] > first + 100.0, "its growth")


def recorded_session(folder: Path, name: str, timing: str = "") -> Path:
    path = folder / "session.toml"
    record = f'record = {{folder = "{folder / "sessions"}", raw = true}}'
    path.write_text(live(name, record, timing) + "[publish]\nhealth_s = 0.1\n" + FREE_PORTS)
    return path


def health(client: Client) -> dict[str, Any]:
    told: dict[str, Any] = client.request("status")["health"]
    return told


def hold_up(child: Process, seconds: float) -> None:
    """Stop every thread of a process for a time."""
    child.halt(signal.SIGSTOP)
    over = threading.Event()
    over.wait(seconds)
    child.popen.send_signal(signal.SIGCONT)


def test_a_daemon_that_was_held_up_goes_on_with_the_newest_and_its_record_replays(tmp_path: Path) -> None:
    with streaming("held up"), started(recorded_session(tmp_path, "held up")) as (child, client):
        wait_until(lambda: health(client)["counters"]["ticks"] > 300, "ticks")
        hold_up(child, 1.0)
        counters = wait_until(lambda: (c := health(client)["counters"])["samples_dropped"] and c, "dropped samples")
        ticks = counters["ticks"]
        wait_until(lambda: health(client)["counters"]["ticks"] > ticks + 200, "ticks after it")
        last = health(client)
        client.request("stop")
        code, _ = child.end()

    assert code == 0
    assert last["counters"]["samples_dropped"] > 500
    recorded = Session(next((tmp_path / "sessions").iterdir()))
    inputs = recorded.records("inputs")
    drops = inputs[inputs["kind"] == INPUT_NAMES.index("behind")]
    assert drops["values"][:, 0].sum() == last["counters"]["samples_dropped"]
    named = [event["name"] for event in recorded.messages("events")]
    assert named.count("source.behind") == len(drops)
    ticks = recorded.records("ticks")
    for drop in drops:
        after = ticks[(ticks["record"] >= drop["record"]) & (ticks["flags"] & Flag.FILLER == 0)]
        assert after["flags"][0] & Flag.DISCONTINUITY
    result = replay_session(recorded.folder)
    assert (result.difference, result.losses) == (None, [])
    assert result.from_samples == result.ticks > 0


def test_where_it_is_to_stop_the_session_ends_in_order_with_one_sentence(tmp_path: Path) -> None:
    config = recorded_session(tmp_path, "to be stopped", 'behind = "stop"')
    with streaming("to be stopped"), started(config) as (child, client):
        wait_until(lambda: health(client)["counters"]["ticks"] > 300, "ticks")
        hold_up(child, 1.0)
        code, _ = child.end()

    assert code == 1
    said = [line for line in child.lines["err"] if "the session ends" in line]
    assert len(said) == 1
    assert 'timing.behind = "stop"' in said[0]
    end = Session(next((tmp_path / "sessions").iterdir())).end()
    assert end is not None
    assert "fell behind" in end["why"]
