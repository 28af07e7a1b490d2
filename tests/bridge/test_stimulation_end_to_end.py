"""Stimulation from end to end: the true daemon, true actuator processes, and all that may happen to either."""

import itertools
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pylsl
import pytest
from harness import FREE_PORTS, WAIT_S, GatedSource, Listener, Process, Running, neuromod, started, wait_until
from typer.testing import CliRunner

from naive.front_end import Train, Window, blanked_samples, held
from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.adapters.actuators.lease import LATEST_NS
from neuromod.bridge.arming import write_key
from neuromod.bridge.cli import app
from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError
from neuromod.bridge.config import parse
from neuromod.bridge.gate import REASONS
from neuromod.bridge.ledger import LedgerError
from neuromod.bridge.session import Session, find_sessions
from neuromod.bridge.warm import warm_loop
from neuromod.bridge.wire import EventMessage, Flag, SpikesMessage

pytestmark = pytest.mark.compiled_loop

LEASE_S = 0.1
STRONG, QUIET = [5.0] * 14 + [0.0] * 2, [0.0] * 16  # every sensory channel fires, or none
ZMQ = 'source = {kind = "zmq", block_ms = 1.0}\n'


def rig(folder: Path, sections: str = ZMQ, *, mode: str = "live", stimulation: str = "", events: str = "") -> str:
    """A session file with two electrodes; the spikes of channel 0 trigger `short` on the first of them."""
    key = folder / "key"
    if not key.exists():
        write_key(key)
    for line in ("heartbeat_ms = 0.0", "start_within_ms = 50.0"):
        if line.split()[0] not in stimulation:
            stimulation += f"{line}\n"
    if "[timing]" not in sections:
        sections += "[timing]\nstall_ms = 5000.0\nlate_ms = 1000.0\n"
    return f"""
{sections}
[decoder]
kind = "rates"
channels = [0, 1]
tau_ms = 50.0
events = [{events or "{channel = 0, refractory_ms = 40.0}"}]
[stimulation]
mode = "{mode}"
key_file = "{key}"
ledger = "{folder / "dose.json"}"
lease_ms = {1e3 * LEASE_S}
{stimulation}
[[stimulation.electrodes]]
name = "e1"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
pulses = 2000
duration_ms = 10000.0
[[stimulation.electrodes]]
name = "e2"
area_um2 = 4000.0
material = "sirof"
impedance_kohm = 50.0
pulses = 2000
duration_ms = 10000.0
[[stimulation.programs]]
name = "short"
electrode = "e1"
amplitude_ua = -10.0
phase_us = 200.0
interphase_us = 50.0
amplitude2_ua = 5.0
phase2_us = 400.0
pulses = 8
period_us = 4000.0
[[stimulation.programs]]
name = "long"
electrode = "e2"
amplitude_ua = -10.0
phase_us = 200.0
pulses = 1000
period_us = 4000.0
[[stimulation.programs]]
name = "other"
electrode = "e1"
amplitude_ua = -10.0
phase_us = 200.0
pulses = 1000
period_us = 4000.0
[[stimulation.programs]]
name = "single"
electrode = "e2"
amplitude_ua = -10.0
phase_us = 200.0
[[stimulation.triggers]]
event = 0
program = "short"
{FREE_PORTS}
[publish]
state_hz = 100
health_s = 0.1
"""


PERIOD_S, CHARGE_NC = 0.004, 2.0  # of all programs


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Compile here, where no bound of a test runs, what the daemons of this file then load."""
    warm_loop()


def now() -> float:
    return float(pylsl.local_clock())


def armed(client: Client, folder: Path, seconds: float = 120.0) -> int:
    """Arm as soon as the gate lets us (peers are heard, a stop file is seen to be gone); return the token."""
    key = (folder / "key").read_bytes().strip()
    last = ""

    def attempt() -> Any:
        nonlocal last
        try:
            return client.arm(seconds, key)
        except RefusedError as error:
            last = str(error)
            return None

    try:
        return int(wait_until(attempt, "an arming")["token"])
    except AssertionError as error:
        raise AssertionError(f"{error}: {last}") from None


class Hand:
    """All that must go on for stimulation to: samples, the operator's heartbeat, a peer that lives.

    Every 5 ms, from a thread with a client of its own; each can be taken away.
    """

    def __init__(self, client: Client, outlet: Any = None, *, peer: str = "") -> None:
        self.values = QUIET
        self.feeds = True
        self.lag_s = 0.0
        self.peer = peer
        self.token = 0
        self.lives = self.beats = True
        self._addresses = {"ingest": client.ingest, "output": client.output, "control": client.control}
        self._outlet = outlet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(**self._addresses, timeout_s=0.1) as client:
            while not self._stop.wait(0.005):
                try:
                    if self.feeds and self._outlet is not None:
                        self._outlet.push_sample(self.values, now() - self.lag_s)
                    elif self.feeds:
                        client.send_stimuli(self.values)
                    if self.token and self.beats:
                        client.send_heartbeat(self.token)
                    if self.peer and self.lives:
                        client.send_alive(self.peer)
                except ClientTimeoutError:
                    continue  # the daemon is killed or stands still: that is what some tests are about


# -- the electrode


class Electrode:
    """A stimulator process, and the pulses that it writes down."""

    def __init__(self, child: Process, path: Path) -> None:
        self.child, self._path = child, path

    @property
    def pulses(self) -> list[dict[str, Any]]:
        """Every pulse so far; the last line may be half written."""
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def newest(self) -> float:
        """When the last pulse began, in seconds of the local clock."""
        return max((1e-9 * pulse["start_ns"] for pulse in self.pulses), default=0.0)

    def is_in_a_train(self) -> bool:
        """Whether the newest train has outlived its lease already: it goes on because leases come."""
        pulses = self.pulses
        starts = [1e-9 * pulse["start_ns"] for pulse in pulses if pulse["train"] == pulses[-1]["train"]]
        return bool(starts) and starts[-1] - starts[0] > 2.0 * LEASE_S and now() - starts[-1] < 5 * PERIOD_S

    def begin_a_train(self, client: Client, program: str) -> None:
        """Ask for a train until one goes on: what comes too late, or loses its lease once, does not come back."""
        client.send_stimulate(program)
        asked = now()

        def goes_on() -> bool:
            nonlocal asked
            if now() - max(self.newest, asked) > 0.5:
                client.send_stimulate(program)  # refused until the train before would have been over
                asked = now()
            return self.is_in_a_train()

        wait_until(goes_on, f"a train {program!r}", 60.0)

    def assert_ended_with_the_lease(self, before: float, after: float) -> None:
        """The pulses ended with the lease that was told last, although the train was longer.

        The daemon spoke before the first instant, and did no more after the second.
        """
        n = len(self.pulses)
        wait_until(lambda: now() > after + LEASE_S + 20 * PERIOD_S, "room for twenty more pulses")
        assert self.newest > before - 10 * PERIOD_S, "the train was not underway"
        assert self.newest <= after + LEASE_S
        assert len(self.pulses) <= n + LEASE_S / PERIOD_S + 2  # one at either end


@contextmanager
def electrode(folder: Path, client: Client) -> Iterator[Electrode]:
    """Give `neuromod actuate stimulator` beside a daemon."""
    path = folder / "pulses.jsonl"
    options = ("-o", f"pulses={path}", "--name", "stimulator", "--output", client.output, "--ingest", client.ingest)
    with neuromod("actuate", "stimulator", *options) as child:
        child.wait_for_line("Ctrl-C stops")
        yield Electrode(child, path)


PEER_S = 1.5  # longer than a busy machine keeps a process from its core
PEER = f'peers = ["stimulator"]\npeer_timeout_ms = {1e3 * PEER_S}\n'


def session_file(folder: Path, text: str) -> Path:
    path = folder / "session.toml"
    path.write_text(text)
    return path


def told(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.request("status")["health"]["stimulation"]
    return found


def refusals(client: Client) -> int:
    """How many trains were refused because nothing is armed."""
    return int(told(client)["counts"].get("refused_not_armed", 0))


def test_a_trigger_leads_to_its_pulses_and_the_death_of_the_stimulator_disarms(tmp_path: Path) -> None:
    with (
        started(session_file(tmp_path, rig(tmp_path, stimulation=PEER))) as (_, client),
        Hand(client) as hand,
    ):
        with electrode(tmp_path, client) as at:
            heard = Listener(client, "event", "stimulation")
            armed(client, tmp_path)
            assert not at.pulses
            hand.values = STRONG
            wait_until(lambda: len(at.pulses) >= 6, "a train")
            hand.values = QUIET
            # the stimulator does not begin what comes too late, and says nothing of it
            heard.until(lambda: {pulse["train"] for pulse in at.pulses} <= ends(heard).keys(), "the ends of all trains")
            assert ends(heard).keys() <= {train.id for train in trains(heard)}
            for number, end in ends(heard).items():
                pulses = [pulse for pulse in at.pulses if pulse["train"] == number]
                assert (end["electrode"], end["asked"], end["pulses"]) == (0, 8, len(pulses))
                # a pulse for which the stimulator had no time is left out, never made up for, and none comes twice
                indices = [pulse["index"] for pulse in pulses]
                assert indices == sorted(set(indices) & set(range(8)))
                assert all(b["start_ns"] - a["start_ns"] >= 4_000_000 for a, b in itertools.pairwise(pulses))
                for pulse in pulses:
                    place_ns = (pulse["index"] - pulses[0]["index"]) * 4_000_000
                    late_ns = pulse["start_ns"] - pulses[0]["start_ns"] - place_ns
                    assert abs(late_ns) <= LATEST_NS  # as far as each may be behind its place, the first one too
                    assert (pulse["amplitude_ua"], pulse["amplitude2_ua"]) == (-10.0, 5.0)
                    assert (pulse["phase_us"], pulse["interphase_us"], pulse["phase2_us"]) == (200.0, 50.0, 400.0)
            # the machine may take pulses of any one train, but not of each
            assert max(end["pulses"] for end in ends(heard).values()) >= 5
            at.begin_a_train(client, "long")
            _, killed = at.child.halt()
            at.child.end()
            n = len(at.pulses)
        stop = heard.until(lambda: stops(heard), "the end of the arming")[0]
        assert REASONS[stop.reason] == told(client)["disarmed_by"] == "peer"
        assert told(client)["state"] == "disarmed"
        # so long without a sign of life; one every 50 ms, and some time on the way
        assert stop.t - killed < PEER_S + 0.05 + 0.25
        with electrode(tmp_path, client) as at:
            wait_until(lambda: "stimulator" in at.child.errors, "another one")
            hand.values = STRONG
            before = told(client)["counts"]
            wait_until(lambda: refusals(client) > 2, "refusals")
            assert told(client)["counts"]["delivered"] == before["delivered"]
            assert len(at.pulses) == n, "it came back, and something was still being done"
            armed(client, tmp_path)
            wait_until(lambda: len(at.pulses) > n, "pulses after a new arming")


def test_a_daemon_that_stands_still_or_is_killed_ends_the_train_and_the_dose_is_remembered(tmp_path: Path) -> None:
    text = rig(tmp_path, stimulation=PEER)
    with started(session_file(tmp_path, text)) as (daemon, client), Hand(client):
        with electrode(tmp_path, client) as at:
            armed(client, tmp_path)
            at.begin_a_train(client, "long")

            at.assert_ended_with_the_lease(*daemon.halt(signal.SIGSTOP))
            n, stood_still = len(at.pulses), now()
            wait_until(lambda: now() > stood_still + PEER_S, "longer than a peer may be silent")
            daemon.popen.send_signal(signal.SIGCONT)
            # it wakes up to signs of life from long ago, and to none in between
            wait_until(lambda: told(client)["state"] == "disarmed", "the end of the arming")
            assert told(client)["disarmed_by"] == "peer"
            assert len(at.pulses) == n

        (tmp_path / "pulses.jsonl").rename(tmp_path / "first.jsonl")
        with electrode(tmp_path, client) as at:
            armed(client, tmp_path)
            at.begin_a_train(client, "other")  # on the first electrode the gate counts with the rest of the train

            at.assert_ended_with_the_lease(*daemon.halt())
            daemon.end()

            given = CHARGE_NC * (n + len(at.pulses))

    with Running(parse(text)) as again:
        assert again.health["stimulation"]["dose_nc"] >= given
        with pytest.raises(RefusedError, match="not all pulses before a restart are surely older than a minute"):
            again.client.arm(10.0, (tmp_path / "key").read_bytes().strip())


def test_the_dose_survives_an_orderly_restart_and_no_other_daemon_may_spend_it(tmp_path: Path) -> None:
    text = rig(tmp_path)
    with started(session_file(tmp_path, text)) as (daemon, client):
        with Hand(client) as hand:
            heard = Listener(client, "stimulation")
            armed(client, tmp_path)
            hand.values = STRONG
            heard.until(lambda: len(trains(heard)) >= 3, "three trains")
            with pytest.raises(LedgerError, match="another process has this ledger open"), Running(parse(text)):
                pass
            client.request("stop")
            stop = heard.until(lambda: stops(heard), "the stop at the end of the session")[0]
        assert REASONS[stop.reason] == "stopped"
        assert daemon.end()[0] == 0
    n = len(trains(heard))
    with Running(parse(text)) as again:
        assert again.health["stimulation"]["dose_nc"] == pytest.approx(n * 8 * CHARGE_NC, rel=1e-12)
        with pytest.raises(RefusedError, match="not all pulses before a restart are surely older than a minute"):
            again.client.arm(10.0, (tmp_path / "key").read_bytes().strip())


def trains(heard: Listener) -> list[Stimulation]:
    return [message for message in heard.of(Stimulation) if message.kind == "train"]


def ends(heard: Listener) -> dict[int, dict[str, Any]]:
    """What the stimulator said of each train that is over, by its number."""
    return {m.value["id"]: m.value for m in heard.of(EventMessage) if m.name == "stimulated"}


def stops(heard: Listener) -> list[Stimulation]:
    return [message for message in heard.of(Stimulation) if message.kind == "stop"]


# -- every way to stop

FEATURES = """
source = {kind = "lsl", name = "NAME", content = "features"}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[timing]
stall_ms = 1500.0
late_ms = 300.0
jitter_ms = 600.0
"""
WATCHFUL = f"""
heartbeat_ms = 1500.0
{PEER}
late_ticks = 5
"""
"""A hand that misses 1.5 s is a fault; one that is kept from its core for a while is not."""


class Watched:
    """A daemon in a process of its own, on an LSL stream of this one, whose every tick triggers what it can."""

    def __init__(self, folder: Path, daemon: Process, client: Client, hand: Hand) -> None:
        self.folder, self.daemon, self.client, self.hand = folder, daemon, client, hand
        self.heard = Listener(client, "stimulation")
        self.checkpoint = str(client.request("checkpoint", path=str(folder / "before.checkpoint"))["path"])

    def arm(self, seconds: float = 60.0) -> None:
        """Arm, keep the heartbeat going, and hear a train."""
        self.hand.token = 0
        n = len(trains(self.heard))
        self.hand.token = armed(self.client, self.folder, seconds)
        self.heard.until(lambda: len(trains(self.heard)) > n, "a train")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    info = pylsl.StreamInfo("watched", "Features", 16, 200.0, pylsl.cf_float32, "watched-1")
    outlet = pylsl.StreamOutlet(info)
    stimulation = WATCHFUL + f'stop_file = "{folder / "STOP"}"\n'
    text = rig(folder, FEATURES.replace("NAME", "watched"), stimulation=stimulation)
    with started(session_file(folder, text)) as (daemon, client), Hand(client, outlet, peer="stimulator") as hand:
        hand.values = STRONG
        yield Watched(folder, daemon, client, hand)


def _hand(**changes: Any) -> Callable[[Watched], object]:
    def change(watched: Watched) -> None:
        for name, value in changes.items():
            setattr(watched.hand, name, value)

    return change


def _nothing(_: Watched) -> None:
    pass


@pytest.mark.parametrize(
    ("reason", "cause", "undo"),
    [
        pytest.param("stopped", lambda w: w.client.send_stop(), _nothing, id="a message"),
        pytest.param("disarmed stopped", lambda w: w.client.request("disarm"), _nothing, id="a command"),
        pytest.param("stopped", lambda w: w.daemon.popen.send_signal(signal.SIGUSR1), _nothing, id="a signal"),
        pytest.param(
            "stopped", lambda w: (w.folder / "STOP").touch(), lambda w: (w.folder / "STOP").unlink(), id="a file"
        ),
        pytest.param("heartbeat", _hand(beats=False), _hand(beats=True), id="the operator lets go"),
        pytest.param("peer", _hand(lives=False), _hand(lives=True), id="a peer is lost"),
        pytest.param("silent", _hand(feeds=False), _hand(feeds=True), id="the source stalls"),
        pytest.param("late", _hand(lag_s=0.45), _hand(lag_s=0.0), id="the source lags"),
        pytest.param("discontinuity", _hand(lag_s=2.0), _hand(lag_s=0.0), id="the source's clock is set back"),
        pytest.param(
            "paused", lambda w: w.client.request("pause"), lambda w: w.client.request("resume"), id="the session pauses"
        ),
        pytest.param(
            "restored", lambda w: w.client.request("restore", path=w.checkpoint), _nothing, id="a checkpoint comes back"
        ),
    ],
)  # fmt: skip
def test_stimulation_stops_and_only_a_new_arming_brings_it_back(
    watched: Watched, reason: str, cause: Callable[[Watched], object], undo: Callable[[Watched], object]
) -> None:
    heard = watched.heard
    watched.arm()
    n = len(stops(heard))

    cause(watched)

    stop = heard.until(lambda: stops(heard)[n:], "the stop")[0]
    assert REASONS[stop.reason] in reason.split()
    assert told(watched.client)["disarmed_by"] == REASONS[stop.reason]
    undo(watched)
    before = refusals(watched.client)
    wait_until(lambda: refusals(watched.client) > before + 2, "triggers that are refused")
    again = len(trains(heard))
    watched.arm()
    after = heard.messages[heard.messages.index(stop) + 1 :]
    kinds = [message.kind for message in after if isinstance(message, Stimulation)]
    # what follows the stop begins with the new arming's own lease: nothing came in between
    assert kinds[0] == "lease"
    assert len(trains(heard)) > again
    watched.client.request("disarm")
    heard.until(lambda: len(stops(heard)) > n + 1, "the end of this arming")


def test_an_arming_runs_out(watched: Watched) -> None:
    n = len(stops(watched.heard))
    watched.arm(1.5)
    stop = watched.heard.until(lambda: stops(watched.heard)[n:], "the stop")[0]
    assert REASONS[stop.reason] == "expired"
    assert told(watched.client)["disarmed_by"] == "expired"


# -- modes

MODES_ZMQ = ZMQ + "[timing]\nstall_ms = 5000.0\nlate_ms = 60000.0\n"


def step(running: Running, heard: Listener, values: list[float], n: int) -> None:
    """Go through n ticks one by one, so that the time between two is never less than a round trip."""
    for _ in range(n):
        before = len(heard.of(SpikesMessage))
        running.client.send_stimuli(values)
        heard.until(lambda k=before: len(heard.of(SpikesMessage)) > k, "a tick")  # type: ignore[misc]


def decisions(folder: Path) -> Any:
    (found,) = find_sessions(folder)
    return Session(found).records("decisions")


def test_an_open_loop_goes_by_its_schedule_and_a_yoked_session_by_that_of_another(tmp_path: Path) -> None:
    """The first is recorded; the second, driven by no event at all, repeats it tick for tick."""
    # a tick takes a round trip of some 0.2 ms here, and a train must be over by the next one
    schedule = 'schedule = {program = "single", period_ms = 45.0, jitter_ms = 5.0, seed = 3}\nstart_within_ms = 0.1\n'
    first, second = tmp_path / "first", tmp_path / "second"
    recorded = MODES_ZMQ + f'[record]\nfolder = "{first}"\n'
    with Running(parse(rig(tmp_path, recorded, mode="open_loop", stimulation=schedule))) as running:
        heard = running.listen("stimulation", "spikes")
        step(running, heard, QUIET, 5)
        armed(running.client, tmp_path)
        step(running, heard, STRONG, 250)
        scheduled = trains(heard)
    assert len(scheduled) >= 4
    gaps = [b.tick - a.tick for a, b in itertools.pairwise(scheduled)]
    assert all(35 <= gap <= 56 for gap in gaps)  # twice the jitter at most, and a tick of rounding
    assert len(set(gaps)) > 1
    assert not np.any(decisions(first)["cause"] != 64), "an event of the decoder asked for a train"

    (tmp_path / "dose.json").unlink()  # another body: or we would wait for a minute
    yoked = MODES_ZMQ + f'[record]\nfolder = "{second}"\n'
    (source,) = find_sessions(first)
    stimulation = f'yoked_session = "{source}"\nstart_within_ms = 0.1\n'
    with Running(parse(rig(tmp_path, yoked, mode="yoked", stimulation=stimulation))) as running:
        heard = running.listen("stimulation", "spikes")
        step(running, heard, QUIET, 5)
        armed(running.client, tmp_path)
        step(running, heard, STRONG, 125)
        step(running, heard, QUIET, 125)
        repeated = trains(heard)
    form = ("tick", "electrode", "amplitude_ua", "phase_us", "interphase_us", "amplitude2_ua", "phase2_us", "pulses")
    for name in (*form, "period_us"):
        assert [getattr(m, name) for m in repeated] == [getattr(m, name) for m in scheduled], name
    found = decisions(second)
    assert set(found["cause"]) == {65}
    assert np.array_equal(found["tick"], [m.tick for m in scheduled])


@pytest.mark.parametrize("mode", ["live", "sham"])
def test_a_blind_session_does_not_tell_its_mode(tmp_path: Path, mode: str) -> None:
    text = rig(tmp_path, MODES_ZMQ, mode=mode, stimulation="blind = true\n" + PEER)
    with Running(parse(text)) as running, Hand(running.client, peer="stimulator") as hand:
        heard = running.listen("event", "health")
        armed(running.client, tmp_path)
        hand.values = STRONG
        running.wait_for_health(lambda h: h["stimulation"]["counts"]["issued"] > 2, "trains that the gate lets pass")
        # what a stimulator says when it has done something
        running.client.send_event("stimulated", {"id": 1, "electrode": 0, "pulses": 8, "asked": 8})
        running.client.send_event("refused", {"id": 2, "why": "busy"})
        running.client.send_event("last", None)
        heard.until(lambda: [m for m in heard.of(EventMessage) if m.name == "last"], "the last event")
        health = heard.health(lambda h: h.body["stimulation"]["state"] == "armed").body
        status = CliRunner().invoke(app, ["status", "--address", running.daemon.addresses["control"], "--json"])
        assert status.exit_code == 0
    assert set(health["stimulation"]) == {"state", "mode", "seconds_left", "arms", "disarmed_by", "counts"}
    assert health["stimulation"]["mode"] == "blinded"
    assert set(health["stimulation"]["counts"]) - {"refused_not_armed", "refused_overlap"} == {
        "issued", "overflow", "missed", "requests_refused",
    }  # fmt: skip
    assert [m.name for m in heard.of(EventMessage)] == ["last"]
    for text in (repr(health), status.output):
        assert not {"live", "sham", "delivered", "dose"} & set(re.findall(r"[a-z]+", text))


# -- artefacts

SIGNAL = """
source = {kind = "lsl", name = "in place of a source in memory", content = "signal"}
[front_end]
features = ["raw"]
reference = "none"
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
[timing]
stall_ms = 5000.0
late_ms = 60000.0
"""
"""At 1 kHz every sample is a block and a tick, and every stimulus the value of a channel."""
ARTEFACTS = """
[artefacts]
channels = [1]
lead_us = 700
blank_us = 1600
delay_us = 12300
[[artefacts.electrodes]]
electrode = "e2"
channels = ["ch3", 3]
lead_us = 0
blank_us = 20000
delay_us = 0
"""
WINDOWS = {
    0: Window(lead_us=700.0, blank_us=1600.0, delay_us=12300.0, channels=(1,)),
    1: Window(lead_us=0.0, blank_us=20000.0, delay_us=0.0, channels=(2, 3)),
}
TWO_EVENTS = "{channel = 0, refractory_ms = 200.0}, {channel = 4, refractory_ms = 170.0}"
SECOND_TRIGGER = '[[stimulation.triggers]]\nevent = 1\nprogram = "single"\n'
BEFORE_ARMING = 20


def played(folder: Path, mode: str, signal: Any) -> tuple[Any, Any, dict[str, Any], list[Stimulation]]:
    """Play a signal through a daemon that is armed from its first samples on; return its record, and what it said."""
    folder.mkdir()
    sections = SIGNAL + ARTEFACTS + f'[record]\nfolder = "{folder / "record"}"\n'
    text = rig(folder, sections, mode=mode, stimulation="start_within_ms = 0.1\n", events=TWO_EVENTS) + SECOND_TRIGGER
    source = GatedSource(signal, 1000.0)
    with Running(parse(text), source=source) as running:
        heard = running.listen("stimulation")
        source.let_go(BEFORE_ARMING)
        running.wait_for_ticks(BEFORE_ARMING)
        armed(running.client, folder)
        source.let_go()
        running.wait_for_ticks(len(signal))
        running.client.request("disarm")
        heard.until(lambda: stops(heard), "the end of the arming")
        health = running.health
    (found,) = find_sessions(folder / "record")
    session = Session(found)
    return session.records("ticks"), session.records("decisions"), health, trains(heard)


def test_delivered_trains_blank_their_channels_for_their_time_and_sham_trains_the_same(tmp_path: Path) -> None:
    n = 1300
    signal = (0.1 * np.random.default_rng(5).random((n, 6))).astype(np.float32).astype(np.float64)
    for first, channel in ((300, 0), (420, 4), (640, 0), (800, 4), (1000, 0)):
        signal[first : first + 12, channel] = 5.0

    ticks, decided, health, sent = played(tmp_path / "live", "live", signal)
    sham_ticks, sham_decided, sham_health, sham_sent = played(tmp_path / "sham", "sham", signal)

    passed = decided[decided["reason"] == 0]
    assert set(passed["electrode"]) == {0, 1}
    assert [(train.tick, train.id) for train in sent] == [(d["tick"], d["id"]) for d in passed]
    by_record = {tick["record"]: tick for tick in ticks}
    pulses = [
        Train(
            int(by_record[d["record"]]["sample"]), int(d["electrode"]), 0.0, int(d["pulses"]), float(d["period_us"]),
            float(d["phase_us"] + d["interphase_us"] + d["phase2_us"]),
        )
        for d in passed
    ]  # fmt: skip
    mask = blanked_samples(signal.shape, 1000.0, pulses, WINDOWS)
    assert mask.any(axis=0).tolist() == [False, True, True, True, False, False]
    assert 0 < mask.sum() < mask.size // 4
    np.testing.assert_array_equal(ticks["stimuli"][:, :6], held(signal, mask).astype(np.float32))
    np.testing.assert_array_equal(ticks["flags"] & Flag.BLANKED != 0, mask.any(axis=1))
    assert health["blanked"] == {"samples": int(mask.sum()), "instants": int(mask.any(axis=1).sum())}

    # sham: not one train leaves, and the record differs in nothing but that and the time
    assert not sham_sent
    assert not sham_decided["delivered"].any()
    assert sham_health["blanked"] == health["blanked"]
    for name in ("tick", "stimuli", "spikes", "membrane", "outputs", "events"):
        np.testing.assert_array_equal(sham_ticks[name], ticks[name], err_msg=name)
    for name in ("tick", "id", "reason", "cause", "electrode", "amplitude_ua", "pulses"):
        np.testing.assert_array_equal(sham_decided[name], decided[name], err_msg=name)


def test_weights_stand_still_while_an_artefact_is_blanked_whatever_the_rewards(tmp_path: Path) -> None:
    signal = np.tile(np.array(STRONG, np.float32), (2000, 1))
    artefacts = '[artefacts]\nchannels = ["ch16"]\nblank_us = 500000\n[network.learning]\nrate_per_s = 10.0\n'
    text = rig(tmp_path, SIGNAL + artefacts, events="{channel = 0, refractory_ms = 20000.0}")
    source = GatedSource(signal, 1000.0)
    with Running(parse(text), source=source) as running:
        network = running.daemon.assembly.network
        played = 5
        source.let_go(played)
        running.records.wait_for(played)
        armed(running.client, tmp_path)

        def blanked() -> Any:
            return running.records.live()["flags"] & Flag.BLANKED != 0

        def rewarded(n: int) -> None:
            """Play so many samples more, with a reward for every ten of them."""
            nonlocal played
            for _ in range(0, n, 10):
                inputs = running.health["counters"]["inputs"]
                running.client.send_reward(0.5)
                running.wait_for_health(lambda h, k=inputs: h["counters"]["inputs"] > k, "a reward")  # type: ignore[misc]
                played += 10
                source.let_go(played)
                running.records.wait_for(played)

        while not blanked().any():
            assert played < 1000, "no artefact"
            rewarded(10)
        before = network.weights
        rewarded(250)
        after = network.weights
        # 28.65 ms of train and 500 of window: between the two copies the artefact did not end
        assert 250 < blanked().sum() < 528
        np.testing.assert_array_equal(after, before)
        under = running.records.live()[blanked()]
        assert under["spikes"].any()
        assert under["modulators"][:, 0].max() > 0.1, "no reward reached the network"
        rewarded(350)
        assert not blanked()[-50:].any(), "the artefact did not end"
        assert not np.array_equal(network.weights, after), "they stood still because nothing would have moved them"


# -- inputs from outside


def test_inputs_act_on_the_next_tick_and_their_latency_is_what_a_subscriber_measures(tmp_path: Path) -> None:
    inputs: dict[str, tuple[Callable[[Client, float], None], Flag]] = {
        "reward": (lambda client, t: client.send_reward(0.5, t), Flag.MODULATED),
        "stress": (lambda client, t: client.send_stress(0.1, t), Flag.MODULATED),
        "levels": (lambda client, t: client.send_modulators(acetylcholine=0.7, t=t), Flag.MODULATED),
        "stimuli": (lambda client, t: client.send_stimuli(QUIET, t), Flag(0)),
    }
    with Running(parse(rig(tmp_path))) as running:
        heard = running.listen("spikes", "health")
        step(running, heard, QUIET, 3)
        for name, (send, flag) in inputs.items():
            last, seen = heard.of(SpikesMessage)[-1], len(heard.messages)
            t = now()
            send(running.client, t)
            if name != "stimuli":  # which are a tick by themselves
                running.client.send_stimuli(QUIET)
            health = heard.health(lambda h: h.body["ingest_latency_us"], f"the latency of {name}")
            (tick,) = [m for m in heard.messages[seen:] if isinstance(m, SpikesMessage)]
            assert tick.tick == last.tick + 1
            assert tick.flags == flag
            told_us = health.body["ingest_latency_us"]
            # float64 seconds, and nothing else: a microsecond is a thousand times their resolution after a day
            assert told_us["p50"] == told_us["max"] == pytest.approx((tick.t_tick - t) * 1e6, abs=1.0), name
            assert tick.t_tick <= now()


def test_stimuli_added_to_a_signal_tell_their_latency_too(tmp_path: Path) -> None:
    source = GatedSource(np.zeros((5000, 6), np.float32), 1000.0)
    with Running(parse(rig(tmp_path, SIGNAL)), source=source) as running:
        heard = running.listen("spikes", "health")
        source.let_go()
        heard.spikes(20)
        t = now()
        running.client.send_stimuli(STRONG, t)
        health = heard.health(lambda h: h.body["ingest_latency_us"], "the latency of stimuli")
        (tick,) = [m for m in heard.of(SpikesMessage) if m.flags & Flag.EXTERNAL]
        assert health.body["ingest_latency_us"]["max"] == pytest.approx((tick.t_tick - t) * 1e6, abs=1.0)


# -- outlets


def inlet(name: str) -> pylsl.StreamInlet:
    (info,) = pylsl.resolve_byprop("name", name, 1, WAIT_S)
    found = pylsl.StreamInlet(info)
    found.open_stream(WAIT_S)
    return found


def pulled(found: pylsl.StreamInlet, n: int) -> tuple[Any, Any]:
    """Return the next samples and their stamps, as they were sent, once there are n."""
    samples: list[Any] = []
    stamps: list[float] = []

    def pull() -> bool:
        more, when = found.pull_chunk(0.0, 4096)
        samples.extend(more)
        stamps.extend(when)
        return len(samples) >= n

    wait_until(pull, f"{n} samples")
    return np.array(samples), np.array(stamps)


def test_outlets_carry_spikes_rates_and_commands_with_the_stamps_of_the_daemon(tmp_path: Path) -> None:
    file = tmp_path / "outlets.toml"
    # silence and age do not disarm here: on a busy machine they would, and leave out what this test counts
    file.write_text(
        'silence_ms = 60000\nstale_ms = 60000\n[actuator]\nkind = "lsl"\nname = "end to end"\n'
        'source_id = "end-to-end"\noutputs = ["a", "b"]\nrates_hz = 50\n'
    )
    with Running(parse(rig(tmp_path))) as running:
        heard = running.listen("spikes", "command")
        where = ("--output", running.client.output, "--ingest", running.client.ingest)
        with neuromod("actuate", "--config", str(file), *where) as child:
            child.wait_for_line("Ctrl-C stops")
            spikes, rates, commands = (inlet(f"end to end {what}") for what in ("spikes", "rates", "commands"))

            def are_there() -> bool:
                step(running, heard, STRONG, 10)
                return all(found.samples_available() > 12 for found in (spikes, rates, commands))

            wait_until(are_there, "samples of all three streams")
            fired, t_fired = pulled(spikes, 12)
            rate, t_rate = pulled(rates, 12)
            value, t_value = pulled(commands, 12)
            for found in (spikes, rates, commands):
                found.close_stream()
            child.end(signal.SIGTERM)
        heard.until(lambda: heard.of(Command)[-1].t_sample >= t_value[-1], "the last command that came out")
    ticks = heard.of(SpikesMessage)

    # one sample for each spike, between the first tick of which there are any and the last
    expected = [(m.t_sample, c) for m in ticks for c in m.channels if t_fired[0] < m.t_sample < t_fired[-1]]
    inner = (t_fired[0] < t_fired) & (t_fired < t_fired[-1])
    assert list(zip(t_fired[inner], fired[inner, 0], strict=True)) == expected
    assert len({t for t, _ in expected}) > 3

    # commands as they were decoded; one that was too old when it came to the outlet is left out
    by_stamp = {m.t_sample: m.values for m in heard.of(Command)}
    decoded = [k for k, t in enumerate(t_value) if t in by_stamp]
    assert len(decoded) > 12
    assert not value[[k for k in range(len(t_value)) if k not in decoded]].any(), "what is no command is rest"
    for k in decoded:
        np.testing.assert_array_equal(value[k], by_stamp[t_value[k]])
    assert value.any()

    # rates: a low-pass filter of 100 ms over bins of 20 ms, which begin at the first tick
    bin_s, keep = 0.02, np.exp(-0.02 / 0.1)
    origin = t_rate[0] - bin_s
    np.testing.assert_allclose(np.diff(t_rate), bin_s, atol=1e-6)  # float64 of an uptime in seconds
    y = np.zeros(16)
    for k in range(len(t_rate)):
        within = [m for m in ticks if origin + k * bin_s <= m.t_sample < origin + (k + 1) * bin_s]
        y = keep * y + (1.0 - keep) / bin_s * sum((m.spikes for m in within), np.zeros(16))
        np.testing.assert_allclose(rate[k], y, rtol=1e-5, atol=1e-5)  # float32
    assert rate.max() > 10.0
