"""What a soak run does to the daemon, how it is to be noticed, and what it is to recover to."""

import contextlib
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.soak_rig import Process, Rig, wait

from neuromod.bridge.client import Client, RefusedError

NOTICE_S, RECOVER_S = 90.0, 120.0
"""Bounds, not wishes: a machine that compiles beside it may take a minute to start a daemon."""


@dataclass
class Outcome:
    """What became of one fault.

    Attributes
    ----------
    fault : str
    at_s : float
        Since the run began.
    sign : str
        By what it was noticed; empty where it was not.
    has_to_show : bool
        False for what nobody has to announce, and only has to be withstood.
    noticed_s, recovered_s : float or None
        After it began, and after its cause was gone. None where it never was.
    error : str
    """

    fault: str
    at_s: float
    has_to_show: bool
    sign: str = ""
    noticed_s: float | None = None
    recovered_s: float | None = None
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Noticed, where it has to be, and recovered from."""
        return self.recovered_s is not None and (bool(self.sign) or not self.has_to_show)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"is_good": self.is_good}


class Fault:
    """One kind of fault; an instance is one occurrence."""

    name = ""
    has_to_show = True
    restarts = False
    """Whether the daemon is another process afterwards."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self.rig, self.rng = rig, rng
        self.before = rig.status() or {}

    def begin(self) -> None:
        """Do it."""

    def sign(self) -> str:
        """Return by what it can be noticed now; empty while it cannot."""
        return ""

    def lift(self) -> None:
        """Take its cause away."""

    def is_over(self) -> bool:
        """Whether all is as it should be."""
        return self.rig.is_well()

    def _risen(self, group: str, name: str) -> str:
        """Say that a counter of health has risen since before."""
        health = self.rig.status()
        risen = health is not None and health[group].get(name, 0) > self.before.get(group, {}).get(name, 0)
        return f"counters: {name}" if risen else ""

    def _worker(self, kind: str, **settings: Any) -> Process:
        worker = self.rig.worker(kind, addresses=self.rig.addresses, **settings)
        worker.start()
        return worker


class SourceKilled(Fault):
    """The source is killed, and started again under the same name."""

    name = "source killed and restarted"

    def begin(self) -> None:
        self.rig.source.end(signal.SIGKILL)

    def sign(self) -> str:
        health = self.rig.status()
        return f"health: {health['state']}" if health and health["state"] in ("stalled", "lost") else ""

    def lift(self) -> None:
        time.sleep(self.rng.uniform(0.0, 1.0))
        self.rig.new_source()


class SubscriberFlood(Fault):
    """Many subscribers come and go, some read slowly."""

    name = "flood of subscribers"

    def begin(self) -> None:
        self._flood = self._worker("flood", seconds=3.0, key=self.rig.keys["looker"], seed=self.rng.randrange(1 << 30))
        wait(lambda: not self._flood.is_running, 60.0, "the flood to end")

    def sign(self) -> str:
        health = self.rig.status()
        if not health:
            return ""
        then, now = (each.get("security", {}).get("let_in", {}).get("looker", 0) for each in (self.before, health))
        return "health: security.let_in" if now > then + 10 else ""


class Nonsense(Fault):
    """A storm of messages that are none, on ingest and control."""

    name = "storm of malformed messages"

    def begin(self) -> None:
        self._storm = self._worker(
            "nonsense", seconds=3.0, key=self.rig.keys["feeder"], seed=self.rng.randrange(1 << 30), rate=2000.0
        )

    def sign(self) -> str:
        health = self.rig.status()
        if not health:
            return ""
        then, now = self.before.get("errors", {}), health["errors"]
        risen = [name for name, n in now.items() if n > then.get(name, 0) and name != "refused"]  # armings may be
        return f"counters: {', '.join(risen[:4])}" if risen else ""

    def lift(self) -> None:
        wait(lambda: not self._storm.is_running, 60.0, "the storm to end")


class ControlFlood(Fault):
    """Requests without end, whose answers nobody reads."""

    name = "flood of control requests"

    def begin(self) -> None:
        self._flood = self._worker("control_flood", seconds=3.0, key=self.rig.keys["looker"], rate=3000.0)

    def sign(self) -> str:
        return self._risen("errors", "rate")

    def lift(self) -> None:
        wait(lambda: not self._flood.is_running, 60.0, "the flood to end")


class Intruder(Fault):
    """A client that may not come in: it hears nothing, is not answered, and ends nothing."""

    key: str | None = None
    reason = ""

    def begin(self) -> None:
        path = self.rig.keys[self.key] if self.key else None
        self._intruder = self._worker("intruder", seconds=2.0, key=path)

    def sign(self) -> str:
        health = self.rig.status()
        if not health:
            return ""
        then = self.before.get("security", {}).get("refused", {}).get(self.reason, 0)
        n = health["security"]["refused"].get(self.reason, 0) - then
        return "health: security.refused" if n > 0 else ""

    def lift(self) -> None:
        wait(lambda: not self._intruder.is_running, 60.0, "the intruder to go")
        found = re.findall(r'"heard": (\d+), "answered": (\d+)', self._intruder.said())
        if not found or found[-1] != ("0", "0"):
            raise RuntimeError(f"an intruder ({self.reason}) was heard out: {self._intruder.said()[-300:]}")


class NoKey(Intruder):
    """A client that knows nothing of keys."""

    name = "client without a key"
    reason = "no_key"


class UnknownKey(Intruder):
    """A client whose key was revoked."""

    name = "client whose key was revoked"
    key = "stranger"
    reason = "unknown_key"


class ObserverCommands(Fault):
    """A client that may look on tries to command."""

    name = "observer that commands"

    def begin(self) -> None:
        commands: list[tuple[str, dict[str, Any]]] = [
            ("pause", {}),
            ("stop", {}),
            ("set", {"parameters": {"network.input_gain": 0.0}}),
            ("disarm", {}),
            ("checkpoint", {}),
        ]
        with Client(**self.rig.addresses, timeout_s=5.0, key=self.rig.keys["looker"]) as client:
            for cmd, args in commands:
                try:
                    client.request(cmd, **args)
                except RefusedError as error:
                    if error.reason == "role":
                        continue
                    raise RuntimeError(f"{cmd} of an observer was refused as {error.reason}, not role") from error
                raise RuntimeError(f"{cmd} of an observer was carried out")

    def sign(self) -> str:
        return self._risen("errors", "role")


class SubscriberFrozen(Fault):
    """A subscriber of everything stops to read, as a process that is stopped."""

    name = "subscriber that never reads"
    has_to_show = False

    def begin(self) -> None:
        self._frozen = self.rig.worker("frozen", addresses=self.rig.addresses, key=self.rig.keys["looker"])
        self._frozen.start("ready", 60.0)
        self._frozen.send(signal.SIGSTOP)
        time.sleep(8.0)

    def sign(self) -> str:
        self._frozen.send(signal.SIGCONT)
        found = re.findall(r'"lost": (\d+)', self._frozen.said())
        return f"its own count: {found[-1]} lost" if found else ""

    def lift(self) -> None:
        self._frozen.end(signal.SIGKILL)


class LineCut(Fault):
    """The stimulator's serial line is pulled out, and plugged in again."""

    name = "serial line pulled out"

    def begin(self) -> None:
        self._offset = len(self.rig.hand.said())
        self.rig.device.end(signal.SIGKILL)

    def sign(self) -> str:
        said = self.rig.hand.said()[self._offset :]
        health = self.rig.status()
        if "looked for again" not in said or not health:
            return ""
        stimulation = health["stimulation"]
        if stimulation["state"] == "armed":
            return ""
        by = stimulation["disarmed_by"]
        return f"log of its process; health: disarmed by {by}" if by else "log of its process"

    def lift(self) -> None:
        self.rig.device.start("ready", 30.0)

    def is_over(self) -> bool:
        is_back = "is back" in self.rig.hand.said()[self._offset :]
        health = self.rig.status() if is_back else None
        return health is not None and bool(health["stimulation"]["state"] == "armed" or self.rig.has_to_wait())


class DiskFull(Fault):
    """The disk of the recordings is full; then there is room again, and the daemon is killed to record anew."""

    name = "disk full"
    restarts = True

    def begin(self) -> None:
        self.rig.disk.fill(self.rig.daemon.daemon_pid)

    def sign(self) -> str:
        health = self.rig.status()
        recording = health["recording"] if health else {}
        return f"health: recording ended, {recording['why']}" if recording.get("state") == "ended" else ""

    def lift(self) -> None:
        health = self.rig.status()  # the session goes on without it
        if not health or health["state"] != "streaming":
            raise RuntimeError(f"the session does not go on without its recording: {health and health['state']}")
        self.rig.disk.free(self.rig.daemon.daemon_pid)
        self._restarts = self.rig.daemon.restarts
        self.rig.daemon.kill()

    def is_over(self) -> bool:
        return self.rig.daemon.restarts > self._restarts and self.rig.is_well()


class DaemonKilled(Fault):
    """kill -9 of the daemon."""

    name = "daemon killed"
    restarts = True

    def begin(self) -> None:
        self._restarts = self.rig.daemon.restarts
        self.rig.daemon.kill()

    def sign(self) -> str:
        health = self.rig.status() if self.rig.daemon.restarts > self._restarts else None
        if health is None or health["restarts"] <= self.before.get("restarts", 0):
            return ""
        events = (self.rig.folder / "events.jsonl").read_text()
        told = events.count("daemon.restarted") >= self.rig.daemon.restarts
        return "health: restarts" + ("; event daemon.restarted" if told else "")


SOFT: tuple[type[Fault], ...] = (
    SourceKilled,
    SubscriberFlood,
    Nonsense,
    ControlFlood,
    SubscriberFrozen,
    LineCut,
    NoKey,
    UnknownKey,
    ObserverCommands,
)
HARD: tuple[type[Fault], ...] = (DiskFull, DaemonKilled)


def schedule(rng: random.Random, soft: tuple[type[Fault], ...] = SOFT) -> Callable[[], type[Fault]]:
    """Return what gives the next kind of fault: rounds of all soft ones in any order, each ended by a hard one in turn.

    After a hard one arming is refused for a minute, so they come seldom.
    """
    waiting: list[type[Fault]] = []
    rounds = 0

    def next_one() -> type[Fault]:
        nonlocal rounds
        if not waiting:
            waiting.extend(rng.sample(soft, len(soft)))
            waiting.append(HARD[rounds % len(HARD)])
            rounds += 1
        return waiting.pop(0)

    return next_one


def inflict(kind: type[Fault], rig: Rig, rng: random.Random, at_s: float) -> Outcome:
    """Let one happen; return what became of it."""
    fault = kind(rig, rng)
    outcome = Outcome(kind.name, round(at_s, 1), kind.has_to_show)
    try:
        begun = time.monotonic()
        fault.begin()
        with contextlib.suppress(TimeoutError):
            until = NOTICE_S if kind.has_to_show else 1.0
            wait(lambda: bool(_noted(outcome, fault)), until, f"a sign of {kind.name}")
            outcome.noticed_s = round(time.monotonic() - begun, 2)
        fault.lift()
        outcome.recovered_s = round(wait(fault.is_over, RECOVER_S, f"recovery from {kind.name}"), 2)
    except (TimeoutError, RuntimeError, OSError) as error:
        outcome.error = str(error)
    return outcome


def _noted(outcome: Outcome, fault: Fault) -> str:
    outcome.sign = outcome.sign or fault.sign()
    return outcome.sign
