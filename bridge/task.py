"""The centre-out task through a running daemon: in lock-step for the statistics, in true time for the proof.

Lock-step: the session's source is `zmq` with blocks of 10 ms. A message of stimuli goes in, ten velocities come out;
where the task does not need to see the answer, many bins go at once. As fast as the machine goes, and bit for bit what
`NetworkLoop` does without a daemon.

True time: the user's neurons are an LSL outlet that sends a vector each 10 ms, to which the daemon subscribes as to any
device; velocities come over ZeroMQ, rewards go to ingest. Where nothing comes late, the same bits again.

Either way a `Loop` of `neuromod.engine.centre_out` hides the sockets, so that conditions are played by the same code.
"""

import contextlib
import math
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.adapters.decoder import decode_all, make_decoder, reset
from neuromod.adapters.decoder_config import N_OUTPUTS, PopulationVectorConfig
from neuromod.bridge import checkpoint, wire
from neuromod.bridge.assembly import assemble, stimuli_stream
from neuromod.bridge.client import Client, ClientTimeoutError
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.demo import free_ports, isolated_lsl, process, tail
from neuromod.bridge.task_view import TaskView
from neuromod.bridge.warm import LONGEST_START_S
from neuromod.engine.centre_out import (
    BIN_S,
    BIN_TICKS,
    CONDITIONS,
    DECODER_TAU_MS,
    INPUTS,
    OUTPUT_DIRECTIONS,
    OUTPUTS,
    STEP,
    CentreOutTask,
    Condition,
    Loop,
    NetworkLoop,
    Practice,
    Trials,
    bystander_seed,
    network_config,
    practise,
    success_rate,
    wilson_interval,
)
from neuromod.engine.errors import AdapterError, AdapterTimeoutError, ConfigError
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.network import SpikingNetwork

GOAL = 0.8
"""Share of successes that counts as learnt."""

_DEPTH_HZ = 20.0
_ANSWER_S = 20.0
_CURSOR_EVERY_BINS = 3
_WEIGHTS_EVERY_S = 2.0
_IDLE = wire.Flag.FILLER | wire.Flag.PAUSED
_WORDS = 1 << np.arange(N_CHANNELS, dtype=np.uint32)

DECODER = PopulationVectorConfig(
    channels=tuple(range(N_CHANNELS))[OUTPUTS],
    preferred_directions=OUTPUT_DIRECTIONS,
    baseline_hz=0.0,
    depth_hz=_DEPTH_HZ,
    # a spike is a rate whose integral is 1, and the population vector is scaled by dimensions / channels: so a spike
    # moves the cursor by gain x (2 / 4) / depth
    gain=2.0 * STEP * _DEPTH_HZ,
    tau_ms=DECODER_TAU_MS,
    settle_ms=0.0,
)
"""Population vector whose outputs vx, vy, in units/s, move the cursor by `STEP` for each spike."""


class LocalDecoder:
    """The session's decoder, called in this process."""

    def __init__(self) -> None:
        self._decoder = make_decoder(DECODER, 1.0)

    def __call__(self, spikes: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Take spikes (n, 16); return velocities (n, 2)."""
        return self.of_words((spikes * _WORDS).sum(axis=1, dtype=np.uint32))

    def of_words(self, spikes: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Take spikes as n numbers of 16 bits; return velocities (n, 2)."""
        outputs = np.empty((len(spikes), N_OUTPUTS), np.float32)
        decode_all(self._decoder[0], spikes, outputs, np.empty(len(spikes), np.int64))
        return outputs[:, :2]

    def reset(self) -> None:
        """Forget the past."""
        reset(self._decoder[0])


def offline(seed: int) -> NetworkLoop:
    """Network and decoder of the task without a daemon: what the daemon has to equal."""
    return NetworkLoop(SpikingNetwork(network_config(seed)), LocalDecoder())


def task_session(
    seed: int, *, source_id: str | None = None, sockets: dict[str, str] | None = None, daemon_decodes: bool = True
) -> SessionConfig:
    """Session of the task.

    Parameters
    ----------
    seed : int
        Of the network.
    source_id : str, optional
        Of the LSL outlet of the user's neurons; without it, stimuli come over ZeroMQ, in lock-step.
    sockets : dict of str to str, optional
        Addresses; the session's defaults without it.
    daemon_decodes : bool
        Whether the daemon has the decoder, and publishes `command`.
    """
    body: dict[str, Any] = {
        "session": {"name": "centre-out"},
        "network": network_config(seed).model_dump(mode="json"),
        # in lock-step time has no meaning, and in true time a command that comes a bin late still moves the cursor
        "timing": {"late_ms": 60_000.0 if source_id is None else 50.0},
        "source": {"kind": "zmq", "block_ms": 1e3 * BIN_S},
    }
    if source_id is not None:
        body["source"] = {"kind": "lsl", "source_id": source_id, "content": "features", "resolve_timeout_s": 30.0}
        body["encoder"] = {"kind": "identity", "normalisation": "none", "smoothing_ms": 0.0, "offset": 0.0}
    if sockets is not None:
        body["sockets"] = sockets
    if daemon_decodes:
        body["decoder"] = DECODER.model_dump(mode="json")
    return SessionConfig.model_validate(body)


class Velocities:
    """Subscribes to what moves the cursor: one velocity a tick, in order; a context manager.

    Parameters
    ----------
    address : str
        Of the daemon's output socket.
    daemon_decodes : bool
        True takes the daemon's `command`; False decodes its `spikes` here, to the same bits.

    Attributes
    ----------
    lost : int
        Messages that never came, by the gaps in `seq`.
    """

    def __init__(self, address: str, *, daemon_decodes: bool = True) -> None:
        self.lost = 0
        self._decoder = None if daemon_decodes else LocalDecoder()
        self._frame = wire.command_frame(2) if daemon_decodes else wire.spikes_frame(N_CHANNELS)
        self._topic = wire.TOPIC_COMMAND if daemon_decodes else wire.TOPIC_SPIKES
        self._next_seq: int | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(self._topic)
        self._socket.subscribe(wire.TOPIC_STATE)
        self._socket.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._context.term()

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until the daemon publishes to this subscriber.

        Raises
        ------
        AdapterTimeoutError
            If nothing came: there is no daemon, or its `publish.state_hz` is 0.
        """
        # subscriptions travel in order: once `state` comes, the other topic would come too
        deadline = time.monotonic() + timeout_s
        while self._poll(deadline):
            if self._socket.recv_multipart()[0] == wire.TOPIC_STATE:
                self._socket.unsubscribe(wire.TOPIC_STATE)
                return
        raise AdapterTimeoutError(
            f"nothing came from the daemon within {timeout_s:g} s; check that it runs; publish.state_hz may not be 0"
        )

    def restart(self) -> None:
        """Begin anew with a network that was put back to its start."""
        if self._decoder is not None:
            self._decoder.reset()

    def take(self, n_ticks: int, timeout_s: float) -> NDArray[np.float64]:
        """Return the velocities of the next ticks, shape (n, 2): fewer than asked for where the time is over."""
        deadline = time.monotonic() + timeout_s
        parts: list[NDArray[np.float64]] = []
        missing = n_ticks
        while missing > 0:
            payloads = self._payloads(missing)
            if payloads:
                velocities = self._velocities(payloads)
                missing -= len(velocities)
                parts.append(velocities)
            elif not self._poll(deadline):
                break
        return np.concatenate(parts) if parts else np.empty((0, 2))

    def _poll(self, deadline: float) -> bool:
        left_s = deadline - time.monotonic()
        return left_s > 0 and bool(self._socket.poll(math.ceil(1e3 * left_s)))

    def _payloads(self, most: int) -> list[bytes]:
        """Return what waits on the socket."""
        payloads = []
        with contextlib.suppress(zmq.Again):
            for _ in range(most):
                topic, payload = self._socket.recv_multipart(zmq.DONTWAIT)
                if topic == self._topic and len(payload) == len(self._frame.template):
                    payloads.append(payload)
        return payloads

    def _velocities(self, payloads: list[bytes]) -> NDArray[np.float64]:
        """Return the velocities of the ticks at which the network moved."""
        data = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), -1)
        seq = self._column(data, "seq", ">u8", 1)[:, 0]
        expected = int(seq[0]) if self._next_seq is None else self._next_seq
        self.lost += int(seq[-1]) + 1 - expected - len(seq)
        self._next_seq = int(seq[-1]) + 1
        moved = (self._column(data, "flags", ">u4", 1)[:, 0] & _IDLE) == 0
        if self._decoder is None:
            values: NDArray[np.float32] = self._column(data, "values", "<f4", 2)[moved]
        else:
            words = self._column(data, "spikes", "<u2", 1)[moved, 0]
            values = self._decoder.of_words(words.astype(np.uint32))
        return values.astype(np.float64)

    def _column(self, data: NDArray[np.uint8], key: str, kind: str, n: int) -> NDArray[Any]:
        at = self._frame.offsets[key]
        return np.ascontiguousarray(data[:, at : at + n * np.dtype(kind).itemsize]).view(kind)


class LockStep:
    """A daemon that is driven by stimuli messages: a `Loop` that runs as fast as the machine goes.

    Parameters
    ----------
    client : Client
        Of the daemon.
    velocities : Velocities
        Connected.

    Attributes
    ----------
    n_ticks : int
        Ticks that the daemon has answered.
    """

    def __init__(self, client: Client, velocities: Velocities) -> None:
        self._client, self._velocities = client, velocities
        self.n_ticks = 0

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Send bins; wait for all their ticks.

        Raises
        ------
        AdapterTimeoutError
            If they do not come, or only some: the daemon stands still, or messages were lost.
        """
        for row in stimuli:
            self._client.send_stimuli(row)
        n_ticks = BIN_TICKS * len(stimuli)
        answer = self._velocities.take(n_ticks, _ANSWER_S)
        if len(answer) < n_ticks or self._velocities.lost:
            raise AdapterTimeoutError(
                f"expected the answers to {n_ticks} ticks within {_ANSWER_S:g} s, got {len(answer)}, and "
                f"{self._velocities.lost} were lost; check that nobody else drives or pauses this daemon"
            )
        self.n_ticks += n_ticks
        return answer

    def add_reward(self, amount: float, /) -> None:
        """Send a reward: it acts on the first tick of the next bin."""
        self._client.send_reward(amount)

    def set_learning(self, on: bool, /) -> None:
        """Let the daemon's network learn, or freeze it."""
        self._client.request("learning", on=on)


class TrueTime(LockStep):
    """A daemon that follows an LSL outlet: a `Loop` that pushes a vector each 10 ms of the clock.

    Parameters
    ----------
    client : Client
        Of the daemon.
    velocities : Velocities
        Connected.
    outlet : pylsl.StreamOutlet
        From `user_outlet`.

    Attributes
    ----------
    n_late : int
        Bins whose velocities had not all come when the next was due. What is late moves the cursor a bin later, and
        the trials may then be others than in lock-step.
    latency_s : list of float
        From the push of each vector to the arrival of the last of its velocities.
    """

    def __init__(self, client: Client, velocities: Velocities, outlet: pylsl.StreamOutlet) -> None:
        super().__init__(client, velocities)
        self._outlet = outlet
        self._due: float | None = None
        self._owed = 0
        self.n_late = 0
        self.latency_s: list[float] = []

    def run(self, stimuli: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Push bins, each when it is due; return what has come of them in time."""
        parts = []
        for row in stimuli:
            due = self._due if self._due is not None else pylsl.local_clock() + BIN_S
            self._due = due + BIN_S
            if (early_s := due - pylsl.local_clock()) > 0:
                time.sleep(early_s)
            self._outlet.push_sample(row, due)
            pushed = pylsl.local_clock()
            self._owed += BIN_TICKS
            # a bin that began late has less time, but always some: what is there is taken
            answer = self._velocities.take(self._owed, max(self._due - pylsl.local_clock() - 0.002, 0.0005))
            self._owed -= len(answer)
            if self._owed == 0:
                self.latency_s.append(pylsl.local_clock() - pushed)
            else:
                self.n_late += 1
            self.n_ticks += len(answer)
            parts.append(answer)
        return np.concatenate(parts)


def user_outlet(source_id: str) -> pylsl.StreamOutlet:
    """Open the outlet of the simulated user: 16 channels, a vector of activities each 10 ms."""
    info = pylsl.StreamInfo("centre-out user", "features", N_CHANNELS, 1.0 / BIN_S, pylsl.cf_float32, source_id)
    return pylsl.StreamOutlet(info)


class Marks:
    """Tells the daemon what happens in the task, for its record: a callable for `play`.

    Events: `target` with [x, y] and `go` when a target is lit, `cursor` with [x, y] each 30 ms of a movement, and `hit`
    or `miss` at its end. So a decoder can be fitted to a recorded session.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._was_moving = False
        self._n_seen = 0

    def __call__(self, task: CentreOutTask) -> None:
        """Look at the task, and say what is new."""
        now = pylsl.local_clock()
        if task.is_moving and not self._was_moving:
            self._n_seen = 0
            self._client.send_event("target", list(task.target_position), now)
            self._client.send_event("go", None, now)
        if task.is_moving and self._n_seen % _CURSOR_EVERY_BINS == 0:
            self._client.send_event("cursor", list(task.cursor.position), now)
        if self._was_moving and not task.is_moving:
            self._client.send_event("cursor", list(task.cursor.position), now)
            self._client.send_event("hit" if task.cursor.touched == task.target else "miss", None, now)
        self._was_moving = task.is_moving
        self._n_seen += 1


@dataclass
class Results:
    """What `run_task` collects: practices by condition, in the order of seeds, and how fast it went."""

    n_targets: int
    mode: Literal["lock-step", "true time"]
    practices: dict[str, list[Practice]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    n_ticks: int = 0
    elapsed_s: float = 0.0
    latency_s: list[float] = field(default_factory=list)
    n_late: int = 0

    def summary(self, last: int = 200) -> dict[str, Any]:
        """Return the figures as plain data.

        A trial is no independent draw where weights move from trial to trial, but seeds are: `interval` is Student's t
        over seeds (NaN-free: absent for one seed); `wilson`, over the pooled trials, is right for `frozen` only, whose
        policy never changes, and is given for comparison elsewhere.
        """
        conditions = {name: _figures(found, last) for name, found in self.practices.items()}
        body: dict[str, Any] = {
            "mode": self.mode,
            "n_targets": self.n_targets,
            "seeds": list(self.seeds),
            "last": last,
            "conditions": conditions,
            "ticks": self.n_ticks,
            "elapsed_s": self.elapsed_s,
            "ticks_per_s": self.n_ticks / self.elapsed_s if self.elapsed_s else 0.0,
        }
        if "reward" in conditions:
            shares = conditions["reward"]["success"]
            body["n_learnt"] = sum(share >= GOAL for share in shares)
            body["ok"] = body["n_learnt"] >= 0.8 * len(shares)
        if self.latency_s:
            p50, p99 = np.percentile(self.latency_s, [50, 99])
            body["latency_us"] = {"p50": 1e6 * float(p50), "p99": 1e6 * float(p99)}
            body["late_bins"] = self.n_late
        return body


def _figures(found: list[Practice], last: int) -> dict[str, Any]:
    shares = [success_rate(practice.trials, last) for practice in found]
    body: dict[str, Any] = {
        "n_trials": len(found[0].trials.target),
        "success": shares,
        "mean": float(np.mean(shares)),
        **_over_seeds(shares),
        "wilson": _pooled([practice.trials for practice in found], last),
        "trials_to_goal": [trials_to_goal(practice.trials) for practice in found],
    }
    probes = [practice.probe for practice in found if practice.probe is not None]
    if probes:
        after = [success_rate(probe, len(probe.target)) for probe in probes]
        body["probe"] = {
            "success": after,
            "mean": float(np.mean(after)),
            **_over_seeds(after),
            "wilson": _pooled(probes, max(len(probe.target) for probe in probes)),
        }
    return body


def _over_seeds(shares: list[float]) -> dict[str, Any]:
    """95 % interval of the mean over seeds."""
    if len(shares) < 2:
        return {}
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(shares) - 1)) * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    mean = float(np.mean(shares))
    return {"interval": [max(mean - half, 0.0), min(mean + half, 1.0)]}


def _pooled(runs: list[Trials], last: int) -> list[float]:
    succeeded = np.concatenate([trials.succeeded[-last:] for trials in runs])
    return list(wilson_interval(int(succeeded.sum()), len(succeeded)))


def trials_to_goal(trials: Trials, window: int = 100) -> int | None:
    """Number of trials after which `GOAL` of the last `window` were successes, or None where that never was."""
    if len(trials.target) < window:
        return None
    shares = np.convolve(trials.succeeded, np.ones(window), "valid") / window
    reached = np.flatnonzero(shares >= GOAL - 1e-9)
    return int(reached[0]) + window if len(reached) else None


def practise_with(
    client: Client,
    loop: LockStep,
    start: Path,
    conditions: Sequence[Condition],
    seed: int,
    *,
    n_trials: int = 500,
    n_targets: int = 4,
    n_probe: int = 0,
    velocities: Velocities,
    earned: NDArray[np.float64] | None = None,
    watch: Callable[[Condition, CentreOutTask], None] | None = None,
) -> dict[Condition, Practice]:
    """Play conditions with one running daemon, each from the network's start.

    Parameters
    ----------
    client : Client
        Of the daemon.
    loop : LockStep
        Lock-step or true time.
    start : Path
        Where to keep a checkpoint of the daemon as it is now: every condition begins from it.
    conditions : sequence of str
        In the order of `CONDITIONS`, whatever order they come in.
    seed : int
        Of the task and, as it must be, of the daemon's network.
    n_trials, n_targets, n_probe : int
        As in `practise`.
    velocities : Velocities
        That of `loop`.
    earned : ndarray, optional
        Rewards for `shuffled`; by default those of the condition `reward`, which is played first where need be.
    watch : callable, optional
        Called with the condition and the task, after each answer.
    """
    client.request("checkpoint", path=str(start))
    begun = False

    def fresh() -> Loop:
        nonlocal begun
        if begun:
            client.request("restore", path=str(start))
            velocities.restart()
        begun = True
        return loop

    done: dict[Condition, Practice] = {}
    for condition in sorted(conditions, key=CONDITIONS.index):
        done[condition] = practise(
            condition,
            seed,
            fresh,
            lambda: offline(bystander_seed(seed)),
            n_trials=n_trials,
            n_targets=n_targets,
            n_probe=n_probe,
            earned=done["reward"].trials.reward if "reward" in done else earned,
            watch=None if watch is None else lambda task, c=condition: watch(c, task),  # type: ignore[misc]
        )
    return done


def run_task(
    *,
    conditions: Sequence[Condition] = ("reward", "frozen", "shuffled", "sham"),
    seeds: Sequence[int] = range(10),
    n_trials: int = 500,
    n_targets: int = 4,
    n_probe: int = 0,
    true_time: bool = False,
    marks: bool = False,
    daemon_decodes: bool = True,
    view: TaskView | None = None,
    progress: Callable[[int, Condition, CentreOutTask], None] | None = None,
) -> Results:
    """Start a daemon for each seed, and play the task with it.

    Parameters
    ----------
    conditions : sequence of str
        Any of `CONDITIONS`. `shuffled` in true time needs `reward` beside it.
    seeds : sequence of int
        Networks and tasks.
    n_trials, n_targets, n_probe : int
        As in `practise`. In true time a trial takes some 0.7 s, and there is no probe.
    true_time : bool
        Over LSL by the clock; else in lock-step.
    marks : bool
        Send what happens to the daemon as events, for its record.
    daemon_decodes : bool
        Take the daemon's `command` rather than decode its spikes here.
    view : TaskView, optional
        Gets the task after each answer, and the weights from time to time.
    progress : callable, optional
        Called with seed, condition and task after each answer.

    Raises
    ------
    ConfigError
        If a condition is not known, there is no seed, or `shuffled` comes without `reward` in true time.
    AdapterError
        If a daemon does not start or answer.
    """
    chosen = sorted(dict.fromkeys(conditions), key=lambda name: CONDITIONS.index(name) if name in CONDITIONS else -1)
    if not chosen or not seeds or any(name not in CONDITIONS for name in chosen):
        raise ConfigError(f"expected seeds, and conditions among {', '.join(CONDITIONS)}; got {', '.join(chosen)}")
    if true_time and (n_probe or ("shuffled" in chosen and "reward" not in chosen)):
        raise ConfigError("in true time there is no probe, and shuffled rewards are those of reward: name it too")
    results = Results(n_targets, "true time" if true_time else "lock-step", {c: [] for c in chosen}, tuple(seeds))
    for seed in seeds:
        # the grid of a stream cannot be put back: in true time each condition has a daemon of its own
        groups: list[list[Condition]] = [[c] for c in chosen] if true_time else [list(chosen)]
        done: dict[Condition, Practice] = {}
        for group in groups:
            with tempfile.TemporaryDirectory(prefix="neuromod-task-") as name, contextlib.ExitStack() as stack:
                folder = Path(name)
                client, velocities, loop, config = stack.enter_context(
                    _daemon(folder, seed, true_time=true_time, daemon_decodes=daemon_decodes)
                )
                mark = Marks(client) if marks else None
                if view is not None:
                    view.begin(seed, n_trials)
                    if not true_time:  # a checkpoint is read by assembling its session, which takes the stream then
                        stack.enter_context(_weights_for(view, config, folder))

                def watch(condition: Condition, task: CentreOutTask, seed: int = seed, mark: Any = mark) -> None:
                    if mark is not None:
                        mark(task)
                    if view is not None:
                        view.watch(condition, task)
                    if progress is not None:
                        progress(seed, condition, task)

                begun = time.monotonic()
                done |= practise_with(
                    client,
                    loop,
                    folder / "start.checkpoint",
                    group,
                    seed,
                    n_trials=n_trials,
                    n_targets=n_targets,
                    n_probe=n_probe,
                    velocities=velocities,
                    earned=done["reward"].trials.reward if "reward" in done else None,
                    watch=watch,
                )
                results.elapsed_s += time.monotonic() - begun
                results.n_ticks += loop.n_ticks
                if isinstance(loop, TrueTime):
                    results.latency_s += loop.latency_s
                    results.n_late += loop.n_late
        for condition in chosen:
            results.practices[condition].append(done[condition])
    return results


@contextlib.contextmanager
def _daemon(
    folder: Path, seed: int, *, true_time: bool, daemon_decodes: bool
) -> Iterator[tuple[Client, Velocities, LockStep, SessionConfig]]:
    """Give a daemon in a process of its own, connected."""
    addresses = {
        name: f"tcp://127.0.0.1:{port}"
        for name, port in zip(("ingest", "output", "control"), free_ports(3), strict=True)
    }
    source_id = f"centre-out-{uuid.uuid4().hex[:8]}" if true_time else None
    config = task_session(seed, source_id=source_id, sockets=addresses, daemon_decodes=daemon_decodes)
    file, log = folder / "task.toml", folder / "daemon.log"
    file.write_text(config.effective_toml(), encoding="utf-8")
    with contextlib.ExitStack() as stack:
        outlet = None
        if source_id is not None:
            stack.enter_context(isolated_lsl(folder))
            outlet = user_outlet(source_id)
        command = [sys.executable, "-c", "from neuromod.bridge.cli import main; main()", "start", str(file)]
        child = stack.enter_context(process(command, log))
        client = stack.enter_context(Client(**addresses, timeout_s=5.0))
        deadline = time.monotonic() + LONGEST_START_S
        while True:
            with contextlib.suppress(ClientTimeoutError):
                client.request("status")
                break
            if child.poll() is not None:
                raise AdapterError(f"the daemon ended by itself: {tail(log)}")
            if time.monotonic() > deadline:
                raise AdapterTimeoutError(f"no daemon within {LONGEST_START_S:g} s: {tail(log)}")
        velocities = stack.enter_context(Velocities(addresses["output"], daemon_decodes=daemon_decodes))
        velocities.wait_connected(_ANSWER_S)
        if outlet is None:
            yield client, velocities, LockStep(client, velocities), config
        else:
            if not outlet.wait_for_consumers(LONGEST_START_S):
                raise AdapterTimeoutError(f"the daemon did not subscribe within {LONGEST_START_S:g} s: {tail(log)}")
            yield client, velocities, TrueTime(client, velocities, outlet), config


@contextlib.contextmanager
def _weights_for(view: TaskView, config: SessionConfig, folder: Path) -> Iterator[None]:
    """Show the network's weights, by way of checkpoints, from a thread and with a client of its own."""
    stop = threading.Event()

    def read() -> None:
        path = folder / "weights.checkpoint"
        with Client(**config.sockets.model_dump(), timeout_s=2.0) as client:
            while not stop.wait(_WEIGHTS_EVERY_S):
                with contextlib.suppress(ClientTimeoutError):
                    client.request("checkpoint", path=str(path))
                    view.weights = weights_in(path, config)

    thread = threading.Thread(target=read, name="neuromod-task-weights", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(3.0)


def weights_in(path: Path, config: SessionConfig) -> NDArray[np.float32]:
    """Return the weights from inputs to outputs, shape (8, 4), in a checkpoint of a lock-step session."""
    assembly = assemble(config, stimuli_stream(config.source))  # type: ignore[arg-type]
    data = checkpoint.load(path, assembly)
    at = 0
    for part in assembly.parts():
        if part is assembly.network.state:
            break
        at += part.nbytes
    state = data[at : at + assembly.network.state.nbytes].view(assembly.network.state.dtype)
    weights: NDArray[np.float32] = np.array(state[0]["weights_mv"][INPUTS, OUTPUTS])
    return weights
