"""Recorded sessions, replayed: the same bit for bit, and told exactly where not."""

import contextlib
import datetime
import json
import math
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import pytest
from harness import (
    FREE_PORTS,
    ONE_PROGRAM,
    GatedSource,
    Listener,
    Running,
    playback,
    process,
    started,
    wait_until,
)
from numpy.typing import NDArray

from neuromod.adapters.decoder_config import LinearConfig
from neuromod.adapters.decoder_file import Provenance, save_decoder
from neuromod.bridge.arming import write_key
from neuromod.bridge.client import RefusedError
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.gate import CONDITION_FILLED, REASONS, WAITING
from neuromod.bridge.loop_state import ARM, INPUT_NAMES, SNAPSHOT
from neuromod.bridge.session import Session, verify
from neuromod.bridge.session_log import LogReader, LogWriter
from neuromod.bridge.session_replay import replay_session, replay_session_command
from neuromod.bridge.wire import Flag, SpikesMessage

pytestmark = pytest.mark.compiled_loop

STRONG = np.linspace(3.3, 5.1, 16)
NO_STEP = Flag.FILLER | Flag.PAUSED


def loop_of(folder: Path, source: str, *, raw: bool, mode: str = "live", more: str = "") -> SessionConfig:
    """A recorded session with everything: it learns, decodes, and asks for a pulse at each spike of channel 0."""
    key = folder / "key"
    if not key.exists():
        write_key(key)
    return parse(
        f"""
        source = {source}
        record = {{folder = "{folder / "sessions"}", raw = {str(raw).lower()}}}
        {more}
        [network.learning]
        rate_per_s = 40.0
        [decoder]
        kind = "rates"
        channels = [0, 1]
        tau_ms = 50.0
        events = [{{channel = 0, refractory_ms = 5.0}}]
        [stimulation]
        mode = "{mode}"
        key_file = "{key}"
        ledger = "{folder / "dose.json"}"
        heartbeat_ms = 20000.0
        {ONE_PROGRAM}
        """
        + FREE_PORTS,
        folder=folder,
    )


def by_messages(folder: Path, *, raw: bool = False, mode: str = "live") -> SessionConfig:
    """A session whose ticks are messages of stimuli."""
    return loop_of(folder, '{kind = "zmq", block_ms = 1.0}', raw=raw, mode=mode, more="[timing]\nstall_ms = 5000.0")


def key_of(folder: Path) -> bytes:
    return (folder / "key").read_bytes().strip()


def send(running: Running, n: int, seed: int = 0) -> None:
    """Send `n` stimuli, a tick each, and wait until the network has had them."""
    before = running.health["counters"]["samples"]
    for row in np.random.default_rng(seed).uniform(0.0, 5.0, (n, 16)):
        running.client.send_stimuli(row)
    running.wait_for_health(lambda h: h["counters"]["samples"] == before + n, f"{n} more")


def recorded(folder: Path) -> Path:
    """Return the newest session of a folder."""
    return max((folder / "sessions").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def n_ticks(session: Session) -> int:
    """Count the network steps of a log."""
    return int(((session.records("ticks")["flags"] & NO_STEP) == 0).sum())


def rewritten(folder: Path, out: Path, change: Callable[[str, int, NDArray[Any]], NDArray[Any] | None]) -> Path:
    """Write a log anew, its records as `change(kind, number of the first, records)` returns them; None leaves them out.

    The records of what is left out stay counted, as where a queue had no room for them.
    """
    reader = LogReader(folder)
    out.mkdir()
    writer = LogWriter(out, reader.metadata, reader.kinds)
    for chunk in reader.chunks():
        payload: bytes | None = chunk.payload
        if chunk.dtype is not None:
            rows = change(chunk.kind, chunk.first, chunk.array().copy())
            payload = None if rows is None else rows.tobytes()
        if payload is not None:
            writer.write(chunk.kind, chunk.first, chunk.count, payload)
    if reader.end is not None:
        writer.write_end(reader.end)
    writer.close()
    return out


def split(folder: Path, out: Path, kind: str) -> Path:
    """Write a log anew with a chunk for each record of a kind, so that single ones can be left out."""
    reader = LogReader(folder)
    out.mkdir()
    writer = LogWriter(out, reader.metadata, reader.kinds)
    for chunk in reader.chunks():
        if chunk.kind != kind:
            writer.write(chunk.kind, chunk.first, chunk.count, chunk.payload)
            continue
        for k, row in enumerate(chunk.array()):
            writer.write(kind, chunk.first + k, 1, row.tobytes())
    assert reader.end is not None
    writer.write_end(reader.end)
    writer.close()
    return out


# -- whole sessions


@pytest.mark.parametrize("raw", [False, True], ids=["from stimuli", "from samples"])
def test_a_session_with_every_input_and_command_replays_bit_for_bit(tmp_path: Path, raw: bool) -> None:
    config = by_messages(tmp_path, raw=raw)
    provenance = Provenance(fitted_at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), dt_ms=1.0)
    weights = ([0.5] * 16, [-0.25] * 16)
    decoder = save_decoder(tmp_path, "other", LinearConfig(bin_ms=5.0, weights=weights), provenance)
    with Running(config) as running:
        client, request = running.client, running.client.request
        send(running, 200, 1)  # spikes without arming: refused
        token = client.arm(60.0, key_of(tmp_path))["token"]
        send(running, 100, 2)
        client.send_heartbeat(token)
        client.send_reward(0.75, t=pylsl.local_clock())
        client.send_stress(0.25)
        client.send_modulators(acetylcholine=0.5, tempo=1.5)
        client.send_stimulate("pulse")
        wait_until(lambda: running.health["counters"]["inputs"] >= 8, "the inputs")
        send(running, 100, 3)
        saved = request("checkpoint", path=str(tmp_path / "there.checkpoint"))["path"]
        request("learning", on=False)
        send(running, 50, 4)
        request("learning", on=True)
        request("set", parameters={"network.input_gain": 9.0})
        send(running, 50, 5)
        request("decoder", path=str(decoder))
        send(running, 50, 6)
        request("rollback")
        request("pause")
        send(running, 20, 7)
        request("resume")
        send(running, 50, 8)
        request("disarm")
        with pytest.raises(RefusedError, match="refused by the gate"):
            client.arm(80_000.0, key_of(tmp_path))
        client.arm(60.0, key_of(tmp_path))
        send(running, 50, 9)
        request("restore", path=saved)
        send(running, 100, 10)
        client.arm(60.0, key_of(tmp_path))
        send(running, 50, 11)
        client.send_stop()
        wait_until(lambda: running.health["stimulation"]["state"] == "disarmed", "the stop")
        send(running, 50, 12)

    session = Session(recorded(tmp_path))
    decisions, inputs = session.records("decisions"), session.records("inputs")
    result = replay_session(session.folder)

    assert result.difference is None
    assert (result.losses, result.notes, result.skipped, result.decisions_lost) == ([], [], 0, 0)
    assert result.verdict == "same"
    assert result.ticks == n_ticks(session) == 850
    assert (result.from_samples, result.from_stimuli) == ((850, 0) if raw else (0, 850))
    assert result.paused == 20
    assert result.decisions == len(decisions)
    assert decisions["delivered"].any()
    assert Counter(REASONS[reason] for reason in decisions["reason"]).keys() >= {"allowed", "not_armed"}
    # that nothing was left untried
    kinds = {INPUT_NAMES[kind] for kind in inputs["kind"]}
    assert kinds >= set(INPUT_NAMES) - {"stimuli", "clock", "inlet", "alive", "fault", "board", "behind"}
    assert result.inputs == len(inputs)


def by_a_board(folder: Path, *, raw: bool) -> SessionConfig:
    """A session driven by messages whose network is a board."""
    more = "[timing]\nstall_ms = 5000.0\n[offload]\ndelay_ticks = 2\n[publish]\nstimuli = true"
    return loop_of(folder, '{kind = "zmq", block_ms = 1.0}', raw=raw, more=more)


def play_a_board(
    running: Running, n: int, *, seed: int, silent: range = range(0), unchecked: int | None = None
) -> None:
    """Send stimuli and, as a board would, the answer to each between it and the next one; none for some."""
    counters = running.health["counters"]
    rng = np.random.default_rng(seed)
    first, samples = counters["ticks"], counters["samples"]
    for k, row in enumerate(rng.uniform(0.0, 5.0, (n, 16))):
        running.client.send_stimuli(row)
        if k not in silent:
            running.client.send_board(first + k, int(rng.integers(2**16)), k != unchecked)
    running.wait_for_health(lambda h: h["counters"]["samples"] == samples + n, f"{n} more")


@pytest.fixture(scope="module", params=[False, True], ids=["from stimuli", "from samples"])
def of_a_board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of a board that answers, is silent for a while, late, paused, and set back by a checkpoint."""
    folder = tmp_path_factory.mktemp("board")
    with Running(by_a_board(folder, raw=request.param)) as running:
        client = running.client
        play_a_board(running, 100, seed=1)
        client.arm(60.0, key_of(folder))
        client.send_reward(0.5)
        play_a_board(running, 50, seed=2, silent=range(20, 30))
        client.send_board(3, 1, True)  # long past
        client.arm(60.0, key_of(folder))
        client.request("pause")
        send(running, 10, 3)
        client.request("resume")
        saved = client.request("checkpoint", path=str(folder / "there.checkpoint"))["path"]
        play_a_board(running, 50, seed=4, unchecked=20)
        assert running.health["board"]["unchecked"] == 1  # counted from the checkpoint on, once it is restored
        client.request("restore", path=saved)
        for row in np.random.default_rng(5).uniform(0.0, 5.0, (10, 16)):
            client.send_stimuli(row)
        wait_until(lambda: running.health["counters"]["samples"] == 170, "the last ticks")
        counted = running.health["board"]
    assert counted["late"] >= 1
    assert counted["missing"] >= 12
    return recorded(folder)


def test_a_session_of_a_board_replays_bit_for_bit(of_a_board: Path) -> None:
    session = Session(of_a_board)
    ticks = session.records("ticks")
    result = replay_session(of_a_board)

    assert result.difference is None
    assert (result.losses, result.skipped, result.verdict) == ([], 0, "same")
    assert result.ticks == n_ticks(session) == 210
    missing = (ticks["flags"] & Flag.BOARD) != 0
    assert missing.sum() > 12
    # of the answers, neither those of before the pause are used, nor those that the checkpoint holds
    expected = [0, 1, *range(122, 132), 150, 151, 172, *range(150, 160)]
    assert ticks["tick"][missing].tolist() == expected
    assert not ticks["spikes"][missing].any()
    assert {INPUT_NAMES[kind] for kind in session.records("inputs")["kind"]} >= {"board", "arm", "reward", "restore"}


@pytest.mark.parametrize("raw", [False, True], ids=["from stimuli", "from samples"])
def test_answers_of_before_a_stall_are_not_used_after_it_live_and_in_a_replay(tmp_path: Path, raw: bool) -> None:
    encoder = '[encoder]\nkind = "identity"\nnormalisation = "none"\nsmoothing_ms = 0\noffset = 0\n'
    more = encoder + "[timing]\nstall_ms = 100.0\n[offload]\ndelay_ticks = 64\n[publish]\nstimuli = true"
    in_memory = '{kind = "lsl", name = "in place of a source in memory", content = "features"}'
    config = loop_of(tmp_path, in_memory, raw=raw, mode="dry_run", more=more)
    rows = np.random.default_rng(0).uniform(0.0, 3.0, (120, 16)).astype(np.float32)
    source = GatedSource(rows, 1000.0, kind="features")
    with Running(config, source=source) as running:
        source.let_go(50)
        running.wait_for_ticks(50)
        for k in range(50):
            if k != 20:
                running.client.send_board(k, 0xFFFF)
        running.wait_for_health(lambda h: h["counters"]["inputs"] >= 49, "the answers")
        running.wait_for_health(lambda h: h["counters"]["fillers"] > 0, "a filler")
        running.client.send_board(20, 0xFFFF)  # in time, were it not of before the stall
        running.wait_for_health(lambda h: h["counters"]["inputs"] >= 50, "the last answer")
        source.let_go()
        running.wait_for_ticks(120)
    session, result = Session(recorded(tmp_path)), replay_session(recorded(tmp_path))

    ticks = session.records("ticks")
    steps = ticks[(ticks["flags"] & NO_STEP) == 0]
    assert steps["tick"].tolist() == list(range(120))
    assert (steps["flags"] & Flag.BOARD).all()
    assert not steps["spikes"].any()
    assert (session.records("inputs")["kind"] == INPUT_NAMES.index("board")).sum() == 50
    assert (result.difference, result.losses, result.verdict) == (None, [], "same")
    assert (result.from_samples, result.from_stimuli) == ((120, 0) if raw else (0, 120))
    assert result.fillers > 0


def test_an_answer_of_a_board_that_was_changed_or_is_not_there_is_found(of_a_board: Path, tmp_path: Path) -> None:
    def with_answer_to_tick_50(change: Callable[[Any], None]) -> Any:
        def rewrite(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
            if kind == "inputs":
                at = np.flatnonzero((rows["kind"] == INPUT_NAMES.index("board")) & (rows["word"] == 50))
                assert len(at) in (0, 1)
                for k in at:
                    change(rows[k])
            return rows

        return rewrite

    def other(one: Any) -> None:
        one["values"][0] = int(one["values"][0]) ^ 1

    def gone(one: Any) -> None:
        one["word"] = 10_000

    other_spikes = replay_session(rewritten(of_a_board, tmp_path / "other", with_answer_to_tick_50(other))).difference
    missing = replay_session(rewritten(of_a_board, tmp_path / "gone", with_answer_to_tick_50(gone))).difference

    assert other_spikes is not None
    assert missing is not None
    assert (other_spikes.tick, other_spikes.field) == (52, "spikes")
    assert (missing.tick, missing.field) == (52, "flags")


SIGNAL = '{kind = "lsl", name = "in place of a source in memory", content = "signal"}'
FROM_SIGNAL = """
        [front_end]
        features = ["bands"]
        reference = "none"
        warmup_s = 0.05
        [front_end.bands]
        ranges_hz = [[20.0, 200.0]]
        [encoder]
        kind = "identity"
        smoothing_ms = 0.0
        normalisation = "none"
        offset = 3.0
        gain = 0.5
        [artefacts]
        channels = [0, 3]
        blank_us = 4000.0
        [timing]
        stall_ms = 100.0
        late_ms = 10000.0
        jitter_ms = 2.0
        max_fill_ms = 50.0
        """


def test_a_session_of_signal_with_gaps_and_artefacts_replays_from_its_samples(tmp_path: Path) -> None:
    n, rate = 4000, 2000.0
    rng = np.random.default_rng(3)
    stamps = np.arange(n) / rate
    stamps[1000:] += 0.013  # filled in
    stamps[2000:] += 0.300  # too long for that, and a stall
    samples = rng.normal(0.0, 20.0, (n, 16)).astype(np.float32)
    samples[1500, 2] = np.nan
    samples[2500], stamps[2500] = samples[2499], stamps[2499]  # twice the same
    source = GatedSource(samples, rate, stamps=stamps)
    with Running(loop_of(tmp_path, SIGNAL, raw=True, more=FROM_SIGNAL), source=source, speed=1.0) as running:
        source.let_go(600)
        running.wait_for_health(lambda h: h["counters"]["samples"] == 600, "the first samples")
        running.client.arm(60.0, key_of(tmp_path))
        source.let_go()
        running.wait_for_health(lambda h: h["tick"] > 500, "half a second")
        running.client.send_reward(0.5)
        for _ in range(5):
            running.client.send_stimuli(STRONG, t=pylsl.local_clock())
        running.wait_for_health(lambda h: h["counters"]["samples"] == n - 1, "all samples")
        counters, blanked = running.health["counters"], running.health["blanked"]

    session = Session(recorded(tmp_path))
    ticks = session.records("ticks")
    result = replay_session(session.folder)

    assert result.difference is None
    assert result.losses == []
    assert result.from_samples == n_ticks(session) == counters["ticks"] > 1900
    assert result.decisions == len(session.records("decisions")) > 0
    assert result.inputs > 6
    for flag in (Flag.FILLER, Flag.FILLED, Flag.DISCONTINUITY, Flag.NONFINITE, Flag.BLANKED, Flag.EXTERNAL):
        assert (ticks["flags"] & flag).any(), flag
    assert counters["duplicates"] == 1
    assert any(blanked.values())
    assert (ticks["conditions"] & CONDITION_FILLED).any()
    assert session.records("decisions")["delivered"].any()
    # and from the recorded stimuli too, which know nothing of all this
    again = replay_session(session.folder, use_samples=False)
    assert (again.difference, again.from_stimuli, again.fillers) == (None, result.ticks, result.fillers)


def test_a_session_of_a_live_stream_replays_from_the_samples_that_lsl_gave(tmp_path: Path) -> None:
    np.random.default_rng(4).normal(0.0, 20.0, (8000, 16)).astype("<f4").tofile(tmp_path / "signal.raw")
    played: dict[str, Any] = {"kind": "recording", "path": str(tmp_path / "signal.raw"), "dtype": "float32"}
    played |= {"sampling_frequency_hz": 2000.0, "n_channels": 16, "gain_uv": 1.0}
    live = '{kind = "lsl", name = "replayed live", content = "signal"}'
    with (
        playback(source=played, name="replayed live"),
        Running(loop_of(tmp_path, live, raw=True, more=FROM_SIGNAL)) as running,
    ):
        running.wait_for_health(lambda h: h["tick"] > 500, "half a second")
        running.client.arm(60.0, key_of(tmp_path))
        running.client.send_stimuli(STRONG)
        running.client.send_reward(0.5)
        running.wait_for_health(lambda h: h["tick"] > 2000, "two seconds")

    session = Session(recorded(tmp_path))
    result = replay_session(session.folder)
    assert (result.difference, result.losses) == (None, [])
    assert result.from_samples == n_ticks(session) > 2000
    assert {INPUT_NAMES[kind] for kind in session.records("inputs")["kind"]} >= {"arm", "stimuli", "reward", "clock"}


def test_doses_and_waits_of_earlier_sessions_are_part_of_the_replay(tmp_path: Path) -> None:
    for _ in range(2):
        with Running(by_messages(tmp_path)) as running:
            send(running, 10)
            with contextlib.suppress(RefusedError):
                running.client.arm(60.0, key_of(tmp_path))
            send(running, 300)

    session = Session(recorded(tmp_path))
    inputs = session.records("inputs")
    assert inputs[inputs["kind"] == ARM]["values"][0, 1] == WAITING  # the first one has given a dose just now
    assert replay_session(session.folder).verdict == "same"


def test_the_condition_of_a_blind_session_is_replayed_and_not_told(tmp_path: Path, capsys: Any) -> None:
    config = by_messages(tmp_path, mode="sham")
    assert config.stimulation is not None
    blind = config.model_copy(update={"stimulation": config.stimulation.model_copy(update={"blind": True})})
    with Running(blind) as running:
        send(running, 10)
        running.client.arm(60.0, key_of(tmp_path))
        send(running, 200)
    assert replay_session_command(recorded(tmp_path), json=True) == 0

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "decisions":
            rows["mode"] = 0
        return rows

    assert replay_session_command(rewritten(recorded(tmp_path), tmp_path / "other", change), json=True) == 1
    told = capsys.readouterr().out
    assert '"field": "mode"' in told
    assert '"expected": "sealed"' in told
    assert "sham" not in told


# -- what is not as it was


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of 400 ticks with raw samples, a reward at tick 100, and a checkpoint at tick 300."""
    folder = tmp_path_factory.mktemp("short")
    with Running(by_messages(folder, raw=True)) as running:
        send(running, 100, 1)
        running.client.arm(60.0, key_of(folder))
        running.client.send_reward(0.5)
        running.wait_for_health(lambda h: h["counters"]["inputs"] >= 2, "the reward")
        send(running, 200, 2)
        running.client.request("checkpoint", path=str(folder / "there.checkpoint"))
        send(running, 100, 3)
    return recorded(folder)


@pytest.mark.parametrize(
    ("name", "tick", "use_samples"),
    [("stimuli", 123, True), ("stimuli", 0, False), ("membrane", 123, False), ("outputs", 398, True)],
)
def test_a_number_that_is_off_by_its_last_bit_is_found_at_its_tick(
    short: Path, tmp_path: Path, name: str, tick: int, use_samples: bool
) -> None:
    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "ticks":
            at = rows["tick"] == tick
            rows[name][at, 1] = np.nextafter(rows[name][at, 1], np.float32(np.inf))
        return rows

    result = replay_session(rewritten(short, tmp_path / "changed", change), use_samples=use_samples)

    assert result.difference is not None
    assert (result.difference.tick, result.difference.what) == (tick, "tick")
    # from samples the stimulus itself is found; without them it shows in the membrane that it moves
    assert result.difference.field == (name if name != "stimuli" or use_samples else "membrane")
    assert result.ticks == tick  # and no tick from there on is claimed
    assert result.verdict == "differs"


def test_a_spike_a_refusal_and_an_answer_that_were_changed_are_found(short: Path, tmp_path: Path) -> None:
    def found(name: str, change: Callable[[str, int, NDArray[Any]], NDArray[Any]]) -> tuple[str, str, int]:
        difference = replay_session(rewritten(short, tmp_path / name, change)).difference
        assert difference is not None
        return difference.what, difference.field, difference.tick

    def spike(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "ticks":
            rows["spikes"][rows["tick"] == 50] ^= 1 << 15
        return rows

    decisions = Session(short).records("decisions")
    refused = decisions[decisions["reason"] != 0][-1]

    def refusal(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "decisions":
            at = rows["id"] == refused["id"]
            rows["reason"][at] = 0
        return rows

    def answer(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "inputs":
            rows["values"][rows["kind"] == ARM, 1] = WAITING
        return rows

    assert found("spike", spike) == ("tick", "spikes", 50)
    assert found("refusal", refusal) == ("decision", "reason", refused["tick"])
    assert found("answer", answer) == ("input", "values", 100)


def test_an_input_that_was_changed_is_found_where_it_acts(short: Path, tmp_path: Path) -> None:
    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "inputs":
            reward = rows["kind"] == INPUT_NAMES.index("reward")
            rows["values"][reward, 0] *= 1.001
        return rows

    difference = replay_session(rewritten(short, tmp_path / "changed", change)).difference
    assert difference is not None
    assert (difference.tick, difference.field) == (100, "modulators")


# -- what is not there


def test_behind_lost_ticks_the_replay_goes_on_at_the_next_checkpoint(short: Path, tmp_path: Path) -> None:
    apart = split(short, tmp_path / "apart", "ticks")

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        return None if kind == "ticks" and 200 <= first < 203 else rows

    result = replay_session(rewritten(apart, tmp_path / "lossy", change))

    assert result.difference is None
    assert result.ticks == 200 + 100
    assert result.skipped == 400 - 3 - 300
    assert result.losses == [
        "3 records of ticks are missing before record 203: the state is unknown from there on",
        "the replay goes on from the checkpoint at record 300",
    ]
    # and it does compare what comes behind the checkpoint
    tampered = rewritten(tmp_path / "lossy", tmp_path / "tampered", _off_at(350))
    difference = replay_session(tampered).difference
    assert difference is not None
    assert difference.tick == 350


def _off_at(tick: int) -> Callable[[str, int, NDArray[Any]], NDArray[Any]]:
    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "ticks":
            rows["spikes"][rows["tick"] == tick] ^= 1
        return rows

    return change


def test_without_a_checkpoint_nothing_is_claimed_behind_lost_ticks(short: Path, tmp_path: Path) -> None:
    apart = split(short, tmp_path / "apart", "ticks")

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        return None if kind == "ticks" and first == 310 else rows

    result = replay_session(rewritten(apart, tmp_path / "lossy", change))
    assert (result.difference, result.ticks, result.skipped) == (None, 310, 89)


def test_behind_a_lost_input_nothing_is_claimed_until_a_checkpoint(short: Path, tmp_path: Path) -> None:
    apart = split(short, tmp_path / "apart", "inputs")
    inputs = Session(short).records("inputs")
    reward = int(np.flatnonzero(inputs["kind"] == INPUT_NAMES.index("reward"))[0])
    assert (inputs["kind"] == SNAPSHOT).any()

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        return None if kind == "inputs" and first == reward else rows

    for use_samples in (True, False):
        result = replay_session(rewritten(apart, tmp_path / f"lossy {use_samples}", change), use_samples=use_samples)
        assert result.difference is None
        assert result.ticks == 100 + 100
        assert result.skipped == 200
        assert result.losses[0].startswith("an input that acted before record 100 is not in the log")


def test_where_samples_are_lost_it_goes_on_from_stimuli(short: Path, tmp_path: Path) -> None:
    apart = split(short, tmp_path / "apart", "samples")

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        return None if kind == "samples" and first == 150 else rows

    result = replay_session(rewritten(apart, tmp_path / "lossy", change))
    assert (result.difference, result.from_samples, result.from_stimuli) == (None, 150, 250)
    assert result.losses == ["1 samples are lost: from record 150 on by recorded stimuli"]


def test_lost_decisions_are_counted_and_not_called_a_difference(short: Path, tmp_path: Path) -> None:
    apart = split(short, tmp_path / "apart", "decisions")
    n = len(Session(short).records("decisions"))

    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        return None if kind == "decisions" and first == 3 else rows

    result = replay_session(rewritten(apart, tmp_path / "lossy", change))
    assert (result.verdict, result.decisions, result.decisions_lost) == ("same", n - 1, 1)


def test_a_decision_that_nobody_made_is_a_difference(short: Path, tmp_path: Path) -> None:
    def change(kind: str, first: int, rows: NDArray[Any]) -> NDArray[Any]:
        if kind == "decisions":
            rows["id"][-1] += 1000
        return rows

    difference = replay_session(rewritten(short, tmp_path / "changed", change)).difference
    assert difference is not None
    assert (difference.what, difference.field) == ("decision", "id")


# -- the command


def test_the_command_says_the_verdict_by_its_exit_code(short: Path, tmp_path: Path, capsys: Any) -> None:
    assert replay_session_command(short, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["ticks"], told["difference"]) == ("same", 400, None)

    changed = rewritten(short, tmp_path / "changed", _off_at(7))
    assert replay_session_command(changed, json=True) == 1
    difference = json.loads(capsys.readouterr().out)["difference"]
    assert (difference["tick"], difference["field"]) == (7, "spikes")
    assert difference["expected"] == difference["got"] ^ 1

    assert replay_session_command(changed, json=False) == 1
    assert "tick 7" in capsys.readouterr().out

    nothing = rewritten(short, tmp_path / "nothing", lambda kind, first, rows: None if kind == "ticks" else rows)
    assert replay_session_command(nothing, json=True) == 2


def test_neuromod_replay_knows_a_session_by_its_log(short: Path) -> None:
    with process("-m", "neuromod.bridge.cli", "replay", str(short), "--json") as child:
        assert child.end(timeout_s=60.0)[0] == 0
        assert json.loads("\n".join(child.lines["out"]))["verdict"] == "same"
    with process("-m", "neuromod.bridge.cli", "replay", str(short), "--speed", "1") as child:
        assert child.end(timeout_s=60.0)[0] == 2
        assert "give no other option" in child.errors


# -- killed


def test_a_killed_session_verifies_replays_and_has_all_that_was_seen_a_second_before(tmp_path: Path) -> None:
    config = tmp_path / "session.toml"
    config.write_text(by_messages(tmp_path, raw=True).effective_toml())
    with started(config) as (child, client):
        listener = Listener(client, "spikes")
        rows = np.random.default_rng(5).uniform(0.0, 5.0, (64, 16))
        client.send_stimuli(rows[0])
        listener.spikes(1)
        client.arm(60.0, key_of(tmp_path))
        sent, end = 1, math.inf
        while pylsl.local_clock() < end:
            client.send_stimuli(rows[sent % 64])
            sent += 1
            listener.spikes(sent)
            if sent == 300:  # which are owed at the end
                end = pylsl.local_clock() + 1.2
        client.send_reward(0.5)
        killed = pylsl.local_clock()
        child.end(signal.SIGKILL)

    folder = recorded(tmp_path)
    session = Session(folder)
    report, result = verify(folder), replay_session(folder)
    logged = session.records("ticks")["tick"].astype(np.int64)
    owed = [m.tick for m in listener.of(SpikesMessage) if m.t_tick < killed - 1.0]
    assert len(owed) >= 300
    assert set(owed) <= set(logged.tolist())
    assert report.ended == "killed"
    assert report.is_ok
    assert result.verdict == "same"
    assert result.ticks + result.skipped == len(logged)
    assert result.skipped < 100  # at most those of the collector's last turn
