"""From a session that a real daemon recorded to a decoder that it swaps in, and back."""

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pylsl
import pytest
from harness import FREE_PORTS, WAIT_S, Running, wait_until
from typer.testing import CliRunner, Result

from neuromod.adapters.actuators.base import Command
from neuromod.adapters.config import ZmqConfig
from neuromod.adapters.decoder_file import load_decoder
from neuromod.bridge.assembly import stimuli_stream
from neuromod.bridge.calibrate import Series, align, read_behaviour, read_targets, read_ticks
from neuromod.bridge.cli import app
from neuromod.bridge.config import parse
from neuromod.bridge.pipeline import TICK
from neuromod.bridge.session import Session, find_sessions, start_session
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import ConfigError

N_BLOCKS = 9000  # of 5 ms: 45 s, twice what 5 x 5 blocks with gaps of 1 s take at least
PREFERRED = 2.0 * math.pi * np.arange(14) / 14
RADIANS_PER_BLOCK = 2.0 * math.pi / 337.0  # a turn in 1.7 s, which no block of a fold is a multiple of


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})


# -- a session of which every tick is known


class Made(NamedTuple):
    """A session that was written rather than run."""

    session: Session
    t: np.ndarray[Any, Any]


def made(folder: Path, change: Callable[[Any], Any], events: list[tuple[str, float, Any]]) -> Session:
    """Write a session of 1000 ticks of 1 ms from t = 100 s, changed by a function; with events."""
    ticks = np.zeros(1000, TICK)
    ticks["record"] = ticks["tick"] = np.arange(1000)
    ticks["t_sample"] = 100.0 + 1e-3 * np.arange(1000)
    ticks["spikes"] = 1 + np.arange(1000) % 7
    recorder = start_session(
        folder,
        parse('source = "zmq"'),
        records={"ticks": TICK},
        info=stimuli_stream(ZmqConfig(kind="zmq", block_ms=1.0)),
        block_ms=1.0,
        ticks_per_block=1,
        built_from="",
        local_clock=100.0,
    )
    recorder.add("ticks", change(ticks))
    for name, t, value in events:
        recorder.add_message("events", {"name": name, "t": t, "tick": 0, "source": "ingest", "value": value})
    recorder.close("done")
    return Session(recorder.folder)


def same(ticks: Any) -> Any:
    return ticks


def test_a_target_holds_from_its_event_to_the_next_and_is_unknown_outside(tmp_path: Path) -> None:
    events = [("target", 100.1, [1, 0]), ("other", 100.15, "x"), ("target", 100.3, None), ("target", 100.4, [0.0, 2.0])]
    session = made(tmp_path, same, [*events, ("target", 100.6, [3, 3])])
    series = read_targets(session, "target")

    found = align(series, np.array([100.0, 100.1, 100.2, 100.35, 100.4, 100.5999, 100.7, np.nan]))

    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(found, [nothing, [1, 0], [1, 0], nothing, [0, 2], [0, 2], nothing, nothing])


def test_behaviour_moves_in_straight_lines_but_not_across_a_long_silence(tmp_path: Path) -> None:
    events = [("cursor", 100.0 + 0.1 * k, [float(k)]) for k in range(6)] + [("cursor", 102.0, [20.0])]
    session = made(tmp_path, same, events)
    series = read_behaviour(session, "event:cursor")

    found = align(series, np.array([99.9, 100.05, 100.42, 101.0, 102.0 - 1e-9, 102.1]))

    np.testing.assert_allclose(found[:, 0], [np.nan, 0.5, 4.2, np.nan, np.nan, np.nan], rtol=1e-9)


@pytest.mark.parametrize("ending", [".csv", ".npz"])
def test_behaviour_comes_from_files_too(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"hand{ending}"
    t, values = np.array([100.2, 100.0, 100.1]), np.array([[2.0, 20.0], [0.0, 0.0], [1.0, 10.0]])
    if ending == ".csv":
        path.write_text("t,x,y\n" + "\n".join(f"{a},{x},{y}" for a, (x, y) in zip(t, values, strict=True)))
    else:
        np.savez(path, t=t, values=values)
    series = read_behaviour(made(tmp_path / "s", same, []), str(path))

    np.testing.assert_allclose(align(series, np.array([100.15])), [[1.5, 15.0]], rtol=1e-9)


def xdf_bytes(streams: list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> bytes:
    """Write streams of float32 as LabRecorder does: https://github.com/sccn/xdf/wiki/Specifications."""

    def chunk(tag: int, content: bytes) -> bytes:
        content = tag.to_bytes(2, "little") + content
        return b"\x04" + len(content).to_bytes(4, "little") + content

    data = b"XDF:" + chunk(1, b"<?xml version='1.0'?><info><version>1.0</version></info>")
    for number, (name, t, values) in enumerate(streams, 1):
        head = number.to_bytes(4, "little")
        info = (
            f"<?xml version='1.0'?><info><name>{name}</name><type>hand</type>"
            f"<channel_count>{values.shape[1]}</channel_count>"
            "<nominal_srate>0</nominal_srate><channel_format>float32</channel_format><source_id></source_id></info>"
        )
        data += chunk(2, head + info.encode())
        rows = b"".join(
            b"\x08" + np.float64(at).tobytes() + row.astype("<f4").tobytes() for at, row in zip(t, values, strict=True)
        )
        data += chunk(3, head + b"\x04" + len(t).to_bytes(4, "little") + rows)
        end = f"<?xml version='1.0'?><info><sample_count>{len(t)}</sample_count></info>"
        data += chunk(6, head + end.encode())
    return data


def test_behaviour_comes_from_a_named_stream_of_an_xdf_file(tmp_path: Path) -> None:
    t = 100.0 + 0.1 * np.arange(5)
    path = tmp_path / "run.xdf"
    path.write_bytes(xdf_bytes([("hand", t, np.arange(10.0).reshape(5, 2)), ("gaze", t, -np.arange(5.0)[:, None])]))
    session = made(tmp_path / "s", same, [])

    hand = read_behaviour(session, f"{path}:hand")

    np.testing.assert_allclose(align(hand, np.array([100.25])), [[5.0, 6.0]], rtol=1e-6)
    with pytest.raises(ConfigError, match="hand, gaze; name one"):
        read_behaviour(session, str(path))


def test_ticks_at_which_the_network_stood_still_are_left_out(tmp_path: Path) -> None:
    def change(ticks: Any) -> Any:
        ticks["flags"][100:110] = int(Flag.FILLER)
        ticks["flags"][110:120] = int(Flag.PAUSED)
        ticks["tick"][100:120] = 99  # they repeat the last
        ticks["tick"][120:] -= 20
        ticks["spikes"][100:120] = 0
        return ticks

    found = read_ticks(made(tmp_path, change, []), settle_ms=50.0)

    expected = 1 + np.arange(1000) % 7
    np.testing.assert_array_equal(found.spikes, np.delete(expected, np.s_[100:120]))
    assert np.isfinite(found.t_sample).all()
    assert found.counts == {"fillers": 10, "paused": 10, "blanked": 0, "lost": 0, "after_loss": 0, "used": 980}


def test_blanked_and_lost_ticks_keep_their_place_but_tell_nothing(tmp_path: Path) -> None:
    def change(ticks: Any) -> Any:
        ticks["flags"][100:110] = int(Flag.BLANKED)
        return np.delete(ticks, np.s_[500:530])

    found = read_ticks(made(tmp_path, change, []), settle_ms=50.0)

    expected = 1 + np.arange(1000) % 7
    expected[500:530] = 0
    np.testing.assert_array_equal(found.spikes, expected)
    unknown = np.flatnonzero(~np.isfinite(found.t_sample))
    np.testing.assert_array_equal(unknown, [*range(100, 110), *range(500, 580)])
    assert found.counts == {"fillers": 0, "paused": 0, "blanked": 10, "lost": 30, "after_loss": 50, "used": 910}


def test_ticks_that_a_board_did_not_answer_tell_nothing_nor_do_those_that_still_feel_it(tmp_path: Path) -> None:
    def change(ticks: Any) -> Any:
        for unanswered in (slice(0, 2), slice(300, 310), slice(990, 1000)):
            ticks["flags"][unanswered] |= int(Flag.BOARD)
            ticks["spikes"][unanswered] = 0
        return ticks

    found = read_ticks(made(tmp_path, change, []), settle_ms=50.0)

    unknown = np.flatnonzero(~np.isfinite(found.t_sample))
    np.testing.assert_array_equal(unknown, [*range(52), *range(300, 360), *range(990, 1000)])
    assert found.counts["after_loss"] == len(unknown)
    assert found.counts["used"] == 1000 - len(unknown)


def test_ticks_that_begin_anew_from_a_checkpoint_are_kept_apart(tmp_path: Path) -> None:
    def change(ticks: Any) -> Any:
        ticks["tick"][600:] -= 300
        return ticks

    found = read_ticks(made(tmp_path, change, []), settle_ms=50.0)

    assert len(found.spikes) == 1050
    assert not found.spikes[600:650].any()
    assert found.counts["lost"] == 0
    assert found.counts["used"] == 950


@pytest.mark.parametrize(
    "args, message",
    [
        (["--targets", "goal"], "no event 'goal'; it has target, words"),
        (["--targets", "words"], "a number or a list of numbers expected"),
        (["--behaviour", "hand.txt"], "expected event:NAME, or a file"),
        (["--behaviour", "gone.csv"], "no such file"),
        (["--targets", "target", "--behaviour", "event:target"], "give one of"),
        ([], "give one of"),
        (["--targets", "target"], "meet no usable tick"),
    ],
)
def test_what_cannot_be_fitted_is_told_with_exit_code_2(tmp_path: Path, args: list[str], message: str) -> None:
    events = [("target", 1.0, [1, 2]), ("target", 2.0, [1, 3]), ("words", 100.0, "left")]
    session = made(tmp_path, same, events)

    result = run("calibrate", str(session.folder), *args)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_alignment_does_not_look_ahead() -> None:
    series = Series(np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0], [3.0]]), "", True)
    assert align(series, np.array([np.nextafter(2.0, 0.0), 2.0]))[:, 0].tolist() == [1.0, 2.0]


# -- a session that a daemon recorded


def config(folder: Path, *, record: bool) -> Any:
    return parse(
        """
        source = {kind = "zmq", block_ms = 5.0}
        [timing]
        stall_ms = 20000.0
        late_ms = 10000.0
        [network.learning]
        rule = "none"
        [decoder]
        kind = "rates"
        channels = [0, 1]
        """
        + (f'[record]\nfolder = "{folder}"\nmin_free_mb = 1.0\nwarn_free_mb = 1.0\n' if record else "")
        + FREE_PORTS,
        folder=folder,
    )


def position(block: int) -> tuple[float, float]:
    """Where the cursor is: it swings along an ellipse whose size changes."""
    angle = RADIANS_PER_BLOCK * block
    size = 1.0 + 0.5 * math.sin(angle / 5.3)
    return size * math.cos(angle), size * math.sin(1.37 * angle)


def stimuli(block: int) -> list[float]:
    """What cells with cosine tuning to that position would give."""
    x, y = position(block)
    return [*(0.6 * (x * np.cos(PREFERRED) + y * np.sin(PREFERRED)) + 0.6), 0.0, 0.0]


def has_moved(running: Running, n_ticks: int) -> bool:
    return bool(running.health["counters"]["ticks"] >= n_ticks)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session in which stimuli followed a movement that events tell of; other events are guesses."""
    folder = tmp_path_factory.mktemp("sessions")
    rng = np.random.default_rng(3)
    with Running(config(folder, record=True)) as running:
        for block in range(N_BLOCKS):
            if block % 10 == 0:
                # what was sent is taken before the next is: the events' times are those of their ticks
                least = 5 * (block - 10)
                wait_until(functools.partial(has_moved, running, least), "ticks")
                running.client.send_event("cursor", list(position(block)), t=pylsl.local_clock())
                if block % 50 == 0:
                    running.client.send_event("guess", rng.choice([-1.0, 1.0], 2).tolist(), t=pylsl.local_clock())
            running.client.send_stimuli(stimuli(block))
        running.wait_for_ticks(5 * N_BLOCKS)
        wait_until(lambda: not running.health["counters"]["ticks_overflow"], "no tick lost")
    return find_sessions(folder)[0]


@pytest.mark.compiled_loop
@pytest.mark.parametrize("kind", ["linear", "kalman", "population_vector", "rates"])
def test_a_decoder_of_a_recorded_session_beats_the_baselines_on_held_out_blocks(
    recorded: Path, tmp_path: Path, kind: str
) -> None:
    result = run(
        "calibrate", str(recorded), "--behaviour", "event:cursor", "--kind", kind, "-o", str(tmp_path), "--json"
    )

    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["beats_baselines"]
    assert found["metrics"]["decoder"]["r2"]["low"] > 0.3  # half of what such cells give; the mean gives at most 0
    assert found["metrics"]["mean"]["r2"]["mean"] <= 0.0
    assert found["file"] == str(tmp_path / "cursor-v1.json")
    file = load_decoder(Path(found["file"]))
    assert file.provenance.session == recorded.name
    assert file.provenance.dt_ms == 1.0
    assert file.provenance.metrics["beats_baselines"] is True
    options = file.provenance.options
    assert options["targets"] == "event:cursor"
    assert re.fullmatch("[0-9a-f]{64}", str(options["session_sha256"]))
    assert f"neuromod decoder {found['file']}" in result.stderr


@pytest.mark.compiled_loop
def test_targets_that_have_nothing_to_do_with_the_spikes_are_refused(recorded: Path, tmp_path: Path) -> None:
    args = ["calibrate", str(recorded), "--targets", "guess", "-o", str(tmp_path / "decoders")]

    refused = run(*args)

    assert refused.exit_code == 1
    assert "no better than a naive one" in refused.stderr
    assert "nothing was written" in refused.stderr
    assert "R2" in refused.stdout
    assert "nearest target" in refused.stdout
    assert not (tmp_path / "decoders").exists()

    forced = run(*args, "--force", "--name", "anyway")

    assert forced.exit_code == 1
    file = load_decoder(tmp_path / "decoders" / "anyway-v1.json")
    assert file.provenance.metrics["beats_baselines"] is False


@pytest.mark.compiled_loop
def test_the_daemon_swaps_a_calibrated_decoder_in_and_rolls_it_back(recorded: Path, tmp_path: Path) -> None:
    for _ in range(2):
        fitted = run("calibrate", str(recorded), "--behaviour", "event:cursor", "-o", str(tmp_path))
        assert fitted.exit_code == 0, fitted.stderr
    file = tmp_path / "cursor-v2.json"  # the second of two versions
    with Running(config(tmp_path, record=False)) as running:
        heard = running.listen("command")
        sent = 0

        def commands(until: int) -> list[Command]:
            """Send stimuli, not far ahead of what comes back, until the command of a tick was heard; return all."""
            nonlocal sent

            def turn() -> bool:
                nonlocal sent
                last = found[-1].tick if (found := heard.of(Command)[-1:]) else 0
                if 5 * sent < last + 200:
                    running.client.send_stimuli(stimuli(sent))
                    sent += 1
                return last >= until

            heard.until(turn, f"tick {until}")
            return heard.of(Command)

        def give(*args: str) -> int:
            done = run(*args, "--address", running.daemon.addresses["control"], "--timeout", str(WAIT_S), "--json")
            assert done.exit_code == 0, done.stderr
            tick: int = json.loads(done.stdout)["tick"]
            return tick

        commands(500)
        swapped_at = give("decoder", str(file))
        commands(swapped_at + 3000)  # longer than a decoder of counts takes to begin
        kept = str(tmp_path / "swapped.checkpoint")
        give("checkpoint", kept)
        rolled_back_at = give("rollback")
        found = commands(rolled_back_at + 500)

        versions = {m.tick: m.decoder for m in found}
        assert all(v == (2 if swapped_at <= tick < rolled_back_at else 0) for tick, v in versions.items())
        assert set(versions.values()) == {0, 2}
        of_rates = [m.values for m in found if m.decoder == 0]
        of_cursor = [m.values for m in found if m.decoder == 2]
        assert min(values.min() for values in of_rates) >= 0.0  # rates are never negative, positions are
        assert min(values.min() for values in of_cursor) < 0.0
        refused = run("rollback", "--address", running.daemon.addresses["control"], "--timeout", str(WAIT_S))
        assert refused.exit_code == 1
        assert "no decoder was swapped in" in refused.stderr

        assert running.health["decoder"]["from"] == "session"
        give("restore", kept)
        assert (running.health["decoder"]["version"], running.health["decoder"]["from"]) == (2, str(file))
    with Running(config(tmp_path, record=False)) as running:  # which knows nothing of that file
        give("restore", kept)
        assert (running.health["decoder"]["version"], running.health["decoder"]["from"]) == (2, f"checkpoint {kept}")
