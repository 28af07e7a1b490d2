"""Hardware in the loop at a pace: the daemon as in a session, the device as its peer; and a second daemon as device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from harness import Running, session
from hil_devices import ChangedTwin, flip, of, of_a_board, recording, rows

from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil import MakeDevice, Options, run
from neuromod.bridge.hil_config import Criteria, Timing, judge
from neuromod.bridge.hil_device import make_device
from neuromod.bridge.hil_loop import live_session
from neuromod.bridge.replay import play
from neuromod.engine.errors import AdapterError, ConfigError

pytestmark = pytest.mark.compiled_loop

LAX = Criteria(round_trip_p50_us=5e6, round_trip_p99_us=5e6, deadline_us=5e6)
"""Of times on a machine that may be busy with anything else."""


def test_a_paced_run_compares_every_tick_of_the_loop(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=2500)
    outcome, _ = run(config, of(TwinDevice()), LAX, Options(speed=2.0))
    trace = outcome.trace
    assert outcome.is_passed
    assert (trace.n_ticks, trace.missed, outcome.counters["ticks"]) == (2500, 0, 2500)
    assert outcome.wall_s > 1.25  # it did go at that pace
    assert trace.column("float").tolist() == play(config).log.column("spikes").tolist()
    found = rows(outcome)
    assert {found[k] for k in ("round_trip_p50_us", "round_trip_p99_us", "deadline_misses_share_max")} == {"passed"}
    missed = {row.key: row.status for row in judge(LAX, trace, Timing(deadline_us=0.5, why_not=""))}
    assert missed["deadline_misses_share_max"] == "failed"  # no device keeps that
    assert np.isfinite(trace.column("t_tick")).all()
    assert (trace.column("answered_at") > trace.column("t_tick")).all()


def test_a_paced_run_finds_what_a_fast_one_finds_and_ends_where_it_was_told(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome, _ = run(config, of(ChangedTwin(flip("v", (5,), 17, 901))), LAX, Options(speed=4.0, until_tick=1200))
    divergence = outcome.trace.divergence
    assert divergence is not None
    assert (divergence.kind, divergence.tick, divergence.channels) == ("membranes", 900, [5])
    assert divergence.n_after > 10
    assert outcome.trace.n_ticks == 1200


def test_a_paced_run_of_a_session_whose_network_is_a_board_goes_without_it(tmp_path: Path) -> None:
    plain, _ = recording(tmp_path, n_ticks=1500)
    outcome, _ = run(of_a_board(plain), of(TwinDevice()), LAX, Options(speed=4.0))
    assert outcome.is_passed
    assert live_session(of_a_board(plain)).offload is None
    assert outcome.trace.column("float").tolist() == play(plain).log.column("spikes").tolist()
    assert outcome.trace.column("float").any()


def test_a_loop_that_cannot_run_says_why(tmp_path: Path) -> None:
    config, path = recording(tmp_path, n_ticks=1200)
    path.write_bytes(b"no longer a matrix")
    with pytest.raises((AdapterError, ConfigError), match="stimuli0"):
        run(config, of(TwinDevice()), LAX, Options(speed=4.0))


@contextmanager
def second_daemon(config: SessionConfig, **network: object) -> Iterator[MakeDevice]:
    """Run a daemon whose source is messages of stimuli, with the network of a session or with another one."""
    text = 'source = {kind = "zmq", block_ms = 1.0}\n'
    other = session(text).model_copy(update={"network": config.network.model_copy(update=network)})
    with Running(other) as running:
        addresses = f"{running.daemon.addresses['ingest']},{running.daemon.addresses['output']}"
        yield lambda state: make_device(addresses, state)


def test_a_second_daemon_gives_the_same_spikes_and_is_compared_by_them_alone(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    with second_daemon(config) as make:
        outcome, device = run(config, make, Criteria(), Options())
    found = rows(outcome)
    assert outcome.is_passed
    assert device.is_peer
    assert np.bitwise_count(outcome.trace.column("device")).sum() > 500
    assert (found["spike_mismatches_max"], found["membrane_mismatches_max"]) == ("passed", "not judged")
    assert found["state_mismatches_max"] == "not judged"


def test_a_second_daemon_with_another_network_is_found_out(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    with second_daemon(config, seed=7) as make:
        outcome, _ = run(config, make, Criteria(), Options(bisect=True))
    assert rows(outcome)["spike_mismatches_max"] == "failed"
    assert outcome.bisection is not None
    assert outcome.bisection.kind == "impossible"


def test_a_daemon_that_has_run_before_is_refused(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=50)
    with second_daemon(config) as make:
        run(config, make, Criteria(), Options())
        with pytest.raises(AdapterError, match="start it afresh"):
            run(config, make, Criteria(), Options())
