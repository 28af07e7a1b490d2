"""The centre-out task through a daemon: the same trials as offline, in lock-step and in true time."""

import json
import math
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Running, wait_until
from rich.console import Console

from neuromod.bridge.config import SessionConfig
from neuromod.bridge.task import (
    DECODER,
    LocalDecoder,
    LockStep,
    Marks,
    Results,
    TrueTime,
    Velocities,
    practise_with,
    run_task,
    task_session,
    trials_to_goal,
    user_outlet,
    weights_in,
)
from neuromod.bridge.task import offline as offline_loop
from neuromod.bridge.task_view import TaskView
from neuromod.bridge.wire import EventMessage
from neuromod.engine.centre_out import (
    BIN_TICKS,
    CONDITIONS,
    NO_TARGET,
    OUTPUT_DIRECTIONS,
    STEP,
    CentreOutTask,
    Condition,
    NetworkLoop,
    Practice,
    Trials,
    bystander_seed,
    network_config,
    play,
    practise,
)
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import AdapterTimeoutError, ConfigError
from neuromod.engine.network import SpikingNetwork

FREE = {name: "tcp://127.0.0.1:*" for name in ("ingest", "output", "control")}
SEED = 5


def same(live: Trials, called: Trials) -> None:
    for name, values in vars(live).items():
        np.testing.assert_array_equal(values, vars(called)[name], err_msg=name)


def with_fast_health(config: SessionConfig) -> SessionConfig:
    return config.model_copy(update={"publish": config.publish.model_copy(update={"state_hz": 100.0})})


# -- the decoder


def test_one_spike_of_an_output_moves_the_cursor_by_one_step_in_its_direction() -> None:
    decoder = LocalDecoder()
    for k, direction in enumerate(OUTPUT_DIRECTIONS):
        decoder.reset()
        spikes = np.zeros((600, 16), dtype=bool)
        spikes[0, 8 + k] = True
        moved = decoder(spikes).sum(axis=0, dtype=np.float64) * 1e-3
        # 600 ms is twenty time constants; velocities are float32
        assert moved == pytest.approx(STEP * np.array(direction), abs=1e-6)


def test_spikes_of_other_channels_move_nothing() -> None:
    spikes = np.ones((50, 16), dtype=bool)
    spikes[:, list(DECODER.channels)] = False
    assert not LocalDecoder()(spikes).any()


def test_the_decoder_is_the_same_however_many_ticks_come_at_once() -> None:
    spikes = np.random.default_rng(1).random((300, 16)) < 0.05
    whole, parts = LocalDecoder(), LocalDecoder()
    np.testing.assert_array_equal(whole(spikes), np.concatenate([parts(spikes[k : k + 7]) for k in range(0, 300, 7)]))


def test_the_network_learns_with_the_daemons_decoder_as_with_the_plain_one() -> None:
    if not JIT_ENABLED:
        pytest.skip("NUMBA_DISABLE_JIT is set: 400 trials of 670 ticks take minutes when interpreted")
    done = practise("reward", 0, lambda: offline_loop(0), lambda: offline_loop(1), n_trials=400)
    assert done.trials.succeeded[-100:].mean() >= 0.8


# -- in lock-step


@pytest.fixture(scope="module", params=[True, False], ids=["command", "spikes"])
def lock_step(request: pytest.FixtureRequest) -> Iterator[tuple[Running, LockStep, Velocities]]:
    """A daemon with the decoder, which publishes commands, and one without, whose spikes are decoded here."""
    decodes: bool = request.param
    config = with_fast_health(task_session(SEED, sockets=FREE, daemon_decodes=decodes))
    with (
        Running(config) as running,
        Velocities(running.client.output, daemon_decodes=decodes) as velocities,
    ):
        velocities.wait_connected(20.0)
        yield running, LockStep(running.client, velocities), velocities


@pytest.fixture
def played(
    lock_step: tuple[Running, LockStep, Velocities], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[Condition, Practice]]:
    """Play conditions from the start of the daemon's network."""
    running, loop, velocities = lock_step
    kind = "spikes" if running.daemon.config.decoder is None else "command"
    first = tmp_path_factory.getbasetemp() / f"task-{kind}.checkpoint"
    if first.exists():
        running.client.request("restore", path=str(first))
        velocities.restart()
    else:
        running.client.request("checkpoint", path=str(first))

    def go(*conditions: Condition, **options: Any) -> dict[Condition, Practice]:
        start = first.with_name("start.checkpoint")
        return practise_with(running.client, loop, start, conditions, SEED, velocities=velocities, **options)

    return go


@pytest.mark.compiled_loop
def test_every_condition_goes_the_same_way_through_a_daemon_as_offline(
    played: Callable[..., dict[Condition, Practice]], lock_step: tuple[Running, LockStep, Velocities]
) -> None:
    made: list[NetworkLoop] = []

    def fresh() -> NetworkLoop:
        made.append(offline_loop(SEED))
        return made[-1]

    live = played(*CONDITIONS, n_trials=6, n_probe=2)
    for condition in CONDITIONS:
        called = practise(condition, SEED, fresh, lambda: offline_loop(bystander_seed(SEED)), n_trials=6, n_probe=2)
        same(live[condition].trials, called.trials)
        probes = live[condition].probe, called.probe
        assert probes[0] is not None
        assert probes[1] is not None
        same(*probes)  # type: ignore[arg-type]
    # the last condition was the last that the daemon's network saw
    network = lock_step[0].daemon.assembly.network
    assert network.state.tobytes() == made[-1].network.state.tobytes()


@pytest.mark.compiled_loop
def test_reward_over_the_socket_moves_the_weights_as_it_does_offline(
    played: Callable[..., dict[Condition, Practice]], lock_step: tuple[Running, LockStep, Velocities], tmp_path: Path
) -> None:
    running, _, _ = lock_step
    trials = played("reward", n_trials=15)["reward"].trials
    called = offline_loop(SEED)
    same(trials, play(CentreOutTask(SEED, 15), called))
    learnt = running.daemon.assembly.network
    assert learnt.state.tobytes() == called.network.state.tobytes()
    assert (learnt.weights != SpikingNetwork(network_config(SEED)).weights).any()
    running.client.request("checkpoint", path=str(tmp_path / "now.checkpoint"))
    shown = weights_in(tmp_path / "now.checkpoint", running.daemon.config)
    np.testing.assert_array_equal(shown, learnt.weights[:8, 8:12])


@pytest.mark.compiled_loop
def test_the_record_gets_targets_the_way_of_the_cursor_and_the_outcome(
    played: Callable[..., dict[Condition, Practice]], lock_step: tuple[Running, LockStep, Velocities]
) -> None:
    running, _, _ = lock_step
    listener = running.listen("event")
    seen: set[tuple[float, float]] = set()
    mark = Marks(running.client)

    def watch(_: Condition, task: CentreOutTask) -> None:
        mark(task)
        seen.add(task.cursor.position)

    n_trials = 3
    trials = played("reward", n_trials=n_trials, watch=watch)["reward"].trials

    def events() -> list[EventMessage]:
        found: list[EventMessage] = listener.of(EventMessage)
        return found

    listener.until(lambda: sum(e.name in ("hit", "miss") for e in events()) == n_trials, "outcomes")
    names = [event.name for event in events()]
    assert names[:3] == ["target", "go", "cursor"]
    outcomes = [name == "hit" for name in names if name in ("hit", "miss")]
    assert outcomes == trials.succeeded.tolist()
    targets = [event.value for event in events() if event.name == "target"]
    assert targets == [CentreOutTask(SEED).cursor.targets[k].tolist() for k in trials.target]
    ways = [tuple(event.value) for event in events() if event.name == "cursor"]
    assert set(ways) <= seen
    assert len(set(ways)) > n_trials
    # one each 30 ms, and one at the end
    expected = sum(math.ceil(ticks / BIN_TICKS / 3) + 1 for ticks in trials.movement_ticks)
    assert len(ways) == expected
    times = [event.t for event in events()]
    assert times == sorted(times)


@pytest.mark.compiled_loop
def test_a_daemon_that_stands_still_is_said_so_and_not_waited_for(
    lock_step: tuple[Running, LockStep, Velocities],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, loop, _ = lock_step
    monkeypatch.setattr("neuromod.bridge.task._ANSWER_S", 0.2)
    running.client.request("pause")
    try:
        with pytest.raises(AdapterTimeoutError, match=r"answers to 10 ticks within 0\.2 s, got 0"):
            loop.run(np.zeros((1, 16), np.float32))
    finally:
        running.client.request("resume")


def test_where_no_daemon_publishes_there_is_an_error_that_says_so() -> None:
    with Velocities("tcp://127.0.0.1:9") as velocities, pytest.raises(AdapterTimeoutError, match="check that it runs"):
        velocities.wait_connected(0.1)


# -- in true time


@pytest.mark.compiled_loop
def test_in_true_time_over_lsl_the_trials_are_those_offline() -> None:
    outlet = user_outlet("test-task-user")
    config = with_fast_health(task_session(SEED, source_id="test-task-user", sockets=FREE))
    with Running(config) as running, Velocities(running.client.output) as velocities:
        velocities.wait_connected(20.0)
        assert wait_until(outlet.have_consumers, "the daemon's subscription")
        loop = TrueTime(running.client, velocities, outlet)
        task = CentreOutTask(SEED, 3, rest_bins=5)
        live = play(task, loop)

    assert len(loop.latency_s) > 50
    if loop.n_late or velocities.lost:
        pytest.skip("this machine was too busy to answer within 10 ms: the trials are others then, rightly")
    same(live, play(CentreOutTask(SEED, 3, rest_bins=5), offline_loop(SEED)))


# -- processes of their own, and figures


@pytest.mark.slow
@pytest.mark.compiled_loop
def test_run_task_starts_daemons_plays_and_sums_up() -> None:
    results = run_task(conditions=("frozen", "reward"), seeds=[1, 2], n_trials=4, n_probe=2)
    summary = results.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["conditions"]) == ["reward", "frozen"]
    for condition in ("reward", "frozen"):
        for seed, practice in zip((1, 2), results.practices[condition], strict=True):
            called = practise(
                condition,
                seed,
                lambda seed=seed: offline_loop(seed),  # type: ignore[misc]
                lambda: offline_loop(0),
                n_trials=4,
            )
            same(practice.trials, called.trials)
    assert summary["ticks"] > 2 * 2 * 4 * 400
    assert summary["ticks_per_s"] > 0


def outcomes(*succeeded: bool) -> Trials:
    n = len(succeeded)
    target = np.zeros(n, np.int64)
    touched = np.where(succeeded, 0, NO_TARGET)
    return Trials(target, touched, np.full(n, 200), np.full(n, 150), np.where(succeeded, 0.5, -0.5))


def test_trials_to_the_goal_are_those_up_to_the_end_of_the_first_good_window() -> None:
    assert trials_to_goal(outcomes(*[False] * 50, *[True] * 100)) == 130
    assert trials_to_goal(outcomes(*[True] * 99)) is None
    assert trials_to_goal(outcomes(*[False, True] * 100)) is None


def test_the_summary_counts_the_seeds_that_learnt_and_gives_intervals() -> None:
    good, bad = outcomes(*[True] * 200), outcomes(*[False] * 180, *[True] * 20)
    results = Results(4, "lock-step", {"reward": [Practice(good, None)] * 4 + [Practice(bad, bad)]}, (0, 1, 2, 3, 4))
    summary = results.summary()
    assert summary["n_learnt"] == 4
    assert summary["ok"]
    figures = summary["conditions"]["reward"]
    assert figures["mean"] == pytest.approx((4 + 0.1) / 5)
    assert figures["interval"][0] < figures["mean"] < figures["interval"][1] <= 1.0
    assert figures["wilson"][0] < figures["mean"] < figures["wilson"][1]
    assert figures["probe"]["success"] == [pytest.approx(0.1)]
    assert "interval" not in figures["probe"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"conditions": ["hope"]},
        {"conditions": []},
        {"seeds": []},
        {"conditions": ["shuffled"], "true_time": True},
        {"n_probe": 5, "true_time": True},
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run_task(**{"conditions": ("reward",), "seeds": [0], **wrong})


# -- the view


def drawn(view: TaskView) -> str:
    console = Console(file=StringIO(), width=120, height=40, force_terminal=False)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_view_draws_target_cursor_success_and_weights() -> None:
    view = TaskView()
    assert "waiting" in drawn(view)
    view.begin(7, 30)
    task = CentreOutTask(7, 30)
    view.watch("reward", task)
    picture = drawn(view)
    assert "seed 7   trial 0 / 30   no trial yet" in picture
    assert "●" in picture
    assert "█" in picture
    assert "weights: not read yet" in picture
    while not task.is_finished:
        towards = 10 * np.array(task.target_position)
        task.advance(np.tile(towards, (BIN_TICKS * len(task.stimuli), 1)))
        view.watch("reward", task)
    view.weights = np.linspace(0, 5, 32, dtype=np.float32).reshape(8, 4)
    picture = drawn(view)
    assert "trial 30 / 30   100% of the last 20" in picture
    assert "22.5°" in picture
    assert "█" * 11 in picture  # the curve of eleven windows


def test_another_condition_begins_a_new_curve() -> None:
    view = TaskView()
    view.begin(0, 5)
    for condition in ("reward", "frozen"):
        task = CentreOutTask(0, 1, limit_bins=1)
        while not task.is_finished:
            view.watch(condition, task)
            task.advance(np.zeros((BIN_TICKS * len(task.stimuli), 2)))
        view.watch(condition, task)
    assert "frozen, seed 0   trial 1 / 5   0% of the last 1" in drawn(view)


def test_without_a_terminal_a_line_comes_each_fifty_trials() -> None:
    view, console = TaskView(), Console(file=StringIO(), width=100)
    view.begin(3, 100)
    task = CentreOutTask(3, 100, limit_bins=1)
    while not task.is_finished:
        view.watch("frozen", task)
        view.print_line(console)
        task.advance(np.zeros((BIN_TICKS * len(task.stimuli), 2)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [f"frozen, seed 3: {n} trials, 0% of the last 50 succeeded" for n in (50, 100)]
