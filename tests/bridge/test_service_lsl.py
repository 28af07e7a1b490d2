"""The daemon on true LSL streams of other processes: the same bits as offline, stalls, losses and returns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import pytest
from harness import WAIT_S, Process, Running, bits, playback, raster, session, straight, wait_until
from numpy.typing import NDArray

from neuromod.adapters.base import Marker
from neuromod.adapters.lsl import marker_row
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.wire import EventMessage, Flag, SpikesMessage
from neuromod.engine.network import SpikingNetwork

pytestmark = pytest.mark.compiled_loop

SIGNAL = """
[front_end]
features = ["crossings", "spiking_band"]
warmup_s = 0.3
crossings = {high_hz = 4500}
[encoder]
warmup_s = 0.4
[timing]
stall_ms = 100
behind_ms = 60000
"""


def write_signal(path: Path, n_channels: int, rate_hz: float, seconds: float) -> None:
    """Noise of 10 uV with spikes of -120 uV, at rates that differ between channels."""
    rng = np.random.default_rng(7)
    n = int(seconds * rate_hz)
    signal = rng.normal(0.0, 10.0, (n, n_channels))
    for channel in range(n_channels):
        for at in rng.integers(0, n - 20, int(seconds * (20 + 5 * channel))):
            signal[at : at + int(rate_hz * 4e-4) + 1, channel] -= 120.0
    signal.astype("<f4").tofile(path)


def write_features(path: Path, n_bins: int) -> None:
    np.save(path, np.random.default_rng(8).poisson(0.4, (n_bins, 20)).astype(np.float32))


class Case:
    """A recording, and sessions that play it straight or receive it live."""

    def __init__(self, source: dict[str, Any], sections: str, content: str, n_ticks: int, repeats: int) -> None:
        self.source, self.sections, self.content = source, sections, content
        self.n_ticks, self.repeats = n_ticks, repeats

    def recorded(self) -> SessionConfig:
        keys = ", ".join(f'{key} = "{v}"' if isinstance(v, str) else f"{key} = {v}" for key, v in self.source.items())
        return session(f"source = {{{keys}}}\n{self.sections}")

    def live(self, name: str) -> SessionConfig:
        return session(f'source = {{kind = "lsl", name = "{name}", content = "{self.content}"}}\n{self.sections}')


@pytest.fixture(scope="module", params=["16 x 10 kHz", "32 x 30 kHz", "features"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("recording")
    if request.param == "features":
        write_features(folder / "f.npy", 200)
        source = {"kind": "features", "path": str(folder / "f.npy"), "bin_ms": 5.0}
        return Case(
            source, "[encoder]\nwarmup_s = 0.2\n[timing]\nstall_ms = 100\nbehind_ms = 60000\n", "features", 1000, 0
        )
    n_channels, rate_hz = (16, 10_000.0) if request.param.startswith("16") else (32, 30_000.0)
    write_signal(folder / "s.raw", n_channels, rate_hz, 1.0)
    source = {
        "kind": "recording",
        "path": str(folder / "s.raw"),
        "sampling_frequency_hz": rate_hz,
        "n_channels": n_channels,
        "dtype": "float32",
        "gain_uv": 1.0,
    }
    return Case(source, SIGNAL, "signal", 1000, int(n_channels == 16))


def uncertainty_s(running: Running) -> float:
    """Return by how much stamps of the stream may be off on our clock, as the daemon states it now."""
    return float(running.health["source"]["clock_uncertainty_s"] or 0.0)


def play_live(case: Case, name: str) -> tuple[NDArray[Any], list[SpikesMessage], dict[str, Any]]:
    with playback(source=case.source, name=name), Running(case.live(name)) as running:
        at_first_s = uncertainty_s(running)
        listener = running.listen("spikes")
        records = running.records.wait_for(case.n_ticks)
        last = case.n_ticks - 1
        listener.until(lambda: any(m.tick == last for m in listener.of(SpikesMessage)[-1:]), "the last tick")
        off_s = max(at_first_s, uncertainty_s(running))
        assert np.all(records["t_tick"] >= records["t_sample"] - off_s)  # no tick before its samples
        return records, listener.of(SpikesMessage), running.health


def test_live_true_time_and_fast_play_give_the_same_bits(case: Case) -> None:
    fast = straight(case.recorded())
    with Running(case.recorded(), speed=1.0) as running:
        true_time = running.records.wait_for(case.n_ticks)
    first, messages, health = play_live(case, "live one")
    lives = [first, *(play_live(case, f"again {i}")[0] for i in range(case.repeats))]

    assert len(fast) == case.n_ticks
    assert bits(fast).sum() > 100
    for played in (true_time, *lives):
        np.testing.assert_array_equal(played["tick"], fast["tick"])
        for name in ("spikes", "stimuli", "membrane", "sample"):
            np.testing.assert_array_equal(played[name], fast[name], err_msg=name)
    heard = [m for m in messages if not m.is_filler]
    np.testing.assert_array_equal(raster(heard), bits(fast)[[m.tick for m in heard]])
    counters = health["counters"]
    assert counters["samples_lost"] == counters["gaps"] == counters["discontinuities"] == 0
    assert health["errors"] == {}


# -- an outlet in a process of its own that does what it is told

SENDER = """
import json, sys, time
import numpy as np, pylsl
name, source_id, n_channels, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
info = pylsl.StreamInfo(name, "Test", n_channels, rate, pylsl.cf_float32, source_id)
outlet = pylsl.StreamOutlet(info)
print("ready", flush=True)
for line in sys.stdin:
    first, stop, t0 = json.loads(line)
    while not outlet.wait_for_consumers(1.0):
        pass
    rows = np.random.default_rng(11).uniform(0, 2, (stop, n_channels)).astype(np.float32)
    for i in range(first, stop):
        while pylsl.local_clock() < t0 + i / rate:
            time.sleep(0.0002)
        outlet.push_sample(rows[i], t0 + i / rate)
    print("sent", stop, flush=True)
"""


class Sender(Process):
    """An outlet that sends rows of `sent_rows` when it is told to."""

    def __init__(self, name: str, source_id: str) -> None:
        super().__init__("-c", SENDER, name, source_id, "16", "1000")

    def send(self, first: int, stop: int, t0: float) -> None:
        """Send rows, row i stamped, and not sent before, `t0` + i ms."""
        self.tell(f"[{first}, {stop}, {t0!r}]")


@contextmanager
def sender(name: str, source_id: str) -> Iterator[Sender]:
    """Give an outlet that can be found."""
    child = Sender(name, source_id)
    try:
        child.wait_for_line("ready", "out")
        yield child
    finally:
        child.popen.kill()
        child.end()


def sent_rows(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(11).uniform(0, 2, (n, 16)).astype(np.float32)


def live_session(name: str, rest: str = "") -> SessionConfig:
    return session(
        f"""source = {{kind = "lsl", name = "{name}", content = "features"}}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[timing]
stall_ms = 60
behind_ms = 60000
max_fill_ms = 0
{rest}"""
    )


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_a_stalled_stream_is_filled_and_goes_on_as_if_undisturbed(loop: str) -> None:
    config = live_session(f"halting {loop}", f'[runtime]\nloop = "{loop}"\n')
    with sender(f"halting {loop}", f"halting-{loop}") as child, Running(config) as running:
        listener = running.listen("spikes", "health")
        t0 = pylsl.local_clock() + 0.1
        child.send(0, 200, t0)
        running.records.wait_for(200)
        listener.health(lambda m: m.state == "stalled")
        running.wait_for_health(lambda h: h["counters"]["fillers"] > 100, "fillers")
        child.send(200, 400, t0)  # late, but with the stamps of their time: a hiccup of the network, not of the device
        live = running.records.wait_for(400)
        counters = running.health["counters"]
        everything = running.records.all()
        listener.until(lambda: sum(not m.is_filler for m in listener.of(SpikesMessage)) == 400, "spikes")

    np.testing.assert_array_equal(bits(live), SpikingNetwork().run(sent_rows(400)))
    assert counters["gaps"] == 0
    fillers = everything[(everything["flags"] == Flag.FILLER) & (everything["tick"] == 199)]
    assert len(fillers) > 50
    assert not fillers["spikes"].any()
    assert 0.055 <= fillers["t_tick"][0] - live["t_tick"][199] < 0.6  # a busy machine may have the first one late
    assert np.median(np.diff(fillers["t_tick"])) == pytest.approx(0.001, rel=0.5)
    assert np.all(np.diff([m.seq for m in listener.of(SpikesMessage)]) == 1)


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_a_lost_stream_is_taken_back_and_a_stranger_of_its_name_is_not(loop: str) -> None:
    name = f"amplifier {loop}"
    config = live_session(name, f'[runtime]\nloop = "{loop}"\n')
    with sender(name, f"{name}-1") as first, Running(config) as running:
        listener = running.listen("spikes", "health")
        first.send(0, 100, pylsl.local_clock() + 0.1)
        running.records.wait_for(100)
        first.popen.kill()
        listener.health(lambda m: m.state == "lost")
        running.wait_for_health(lambda h: h["counters"]["fillers"] > 100, "fillers")
        with sender(name, f"{name}-2") as stranger:
            stranger.send(0, 100, pylsl.local_clock())
            for _ in range(8):
                assert listener.health(lambda m: True).state == "lost"
            assert stranger.lines["out"] == ["ready"]  # nobody listens to it
            with sender(name, f"{name}-1") as same:
                # found, and silent for a while: an inlet that is open must not be opened again
                same.send(100, 200, pylsl.local_clock() + 0.6)
                listener.health(lambda m: m.state == "stalled")
                live = running.records.wait_for(200)
                health = running.health
            assert stranger.lines["out"] == ["ready"]

    np.testing.assert_array_equal(bits(live), SpikingNetwork().run(sent_rows(200)))
    assert live["flags"][100] & Flag.DISCONTINUITY
    assert health["source"]["quirks"]["reconnects"] == 1
    assert health["counters"]["discontinuities"] == 1
    assert np.all(np.diff([m.seq for m in listener.of(SpikesMessage)]) == 1)


def test_markers_of_a_stream_are_aligned_to_ticks() -> None:
    described = pylsl.StreamInfo("cues", "Markers", 2, 0, pylsl.cf_string, "cues-1")
    outlet = pylsl.StreamOutlet(described)
    config = live_session("with cues", '[[markers]]\nname = "cues"\n')
    with sender("with cues", "with-cues-1") as child, Running(config) as running:
        listener = running.listen("spikes", "event")
        # both clocks are corrected by themselves, from the same host: off by some microseconds, or what a probe leaves
        marker_off_s, source_off_s = running.daemon.intake.markers[0].correction()[1], uncertainty_s(running)
        t0 = pylsl.local_clock() + 0.2
        outlet.push_sample(marker_row(Marker(0.0, "go", 3)), t0 + 0.0505)
        child.send(0, 200, t0)
        event = listener.until(lambda: next(iter(listener.of(EventMessage)), None), "the marker")
        listener.spikes(200)
        live = running.records.wait_for(200)

    assert (event.name, event.value, event.source) == ("go", 3, "lsl")
    at = np.maximum.accumulate(live["t_sample"])
    assert at[event.tick - 1] < event.t <= at[event.tick]
    assert event.t == pytest.approx(t0 + 0.0505, abs=2e-4 + marker_off_s)
    assert at[50] == pytest.approx(t0 + 0.0500, abs=2e-4 + source_off_s)


def test_markers_that_vanish_are_taken_back_when_they_return() -> None:
    described = pylsl.StreamInfo("prompts", "Markers", 2, 0, pylsl.cf_string, "prompts-1")
    outlet = pylsl.StreamOutlet(described)
    config = live_session("with prompts", '[[markers]]\nname = "prompts"\n')
    with sender("with prompts", "with-prompts-1") as child, Running(config) as running:
        listener = running.listen("event")
        child.send(0, 3000, pylsl.local_clock())  # so that no event has to wait for a tick

        def comes(name: str) -> None:
            outlet.push_sample(marker_row(Marker(0.0, name)))
            listener.until(lambda: [m for m in listener.of(EventMessage) if m.name == name], f"the marker {name}")

        comes("before")
        (markers,) = running.daemon.intake.markers
        del outlet
        wait_until(lambda: markers.is_lost, "the loss")
        outlet = pylsl.StreamOutlet(described)
        assert outlet.wait_for_consumers(WAIT_S)
        comes("after")
        assert markers.quirks == {"lost": 1, "reconnects": 1}


def test_markers_that_are_not_required_may_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    absent = '[[markers]]\nname = "nowhere"\nrequired = false\nresolve_timeout_s = 0.2\n'
    with sender("alone", "alone-1") as child, Running(live_session("alone", absent)) as running:
        child.send(0, 50, pylsl.local_clock() + 0.1)
        running.records.wait_for(50)
    assert "nowhere" in caplog.text


def test_values_that_are_not_finite_are_held_flagged_and_counted() -> None:
    described = pylsl.StreamInfo("broken", "Test", 16, 1000.0, pylsl.cf_float32, "broken-1")
    outlet = pylsl.StreamOutlet(described)
    rows = sent_rows(60)
    held = rows.copy()
    held[20, 3], held[30:33, 5] = held[19, 3], held[29, 5]
    rows[20, 3], rows[30:33, 5] = np.nan, (np.inf, -np.inf, np.nan)
    with Running(live_session("broken")) as running:
        t0 = pylsl.local_clock()
        outlet.push_chunk(rows, (t0 + np.arange(60) / 1000.0).tolist())
        live = running.records.wait_for(60)
        counters = running.health["counters"]

    np.testing.assert_array_equal(bits(live), SpikingNetwork().run(held))
    np.testing.assert_array_equal(np.flatnonzero(live["flags"] & Flag.NONFINITE), [20, 30, 31, 32])
    assert counters["nonfinite_values"] == 4
    assert np.isfinite(live["membrane"]).all()
