"""Which requests of a client that was let in are carried out: by role, by rate, and each of them once.

Sequence numbers. `hello` gives a client a session, a word that nobody can guess and that belongs to its key. Whatever
changes something names the session, and a number that rises. A request that was recorded and is sent again has a number
that was used, or a session of a daemon that is gone.
"""

import collections
import logging
import secrets
import threading

from neuromod.bridge.commands import COMMANDS, CommandError
from neuromod.bridge.limits import Bucket, SparingLog
from neuromod.bridge.roles import COMMAND_ROLES, Role, Sender, names_of
from neuromod.bridge.security_config import SecurityConfig

log = logging.getLogger(__name__)

UNORDERED = ("status", "version", "hello", "challenge", "disarm")
"""Commands that need no `seq`: those that change nothing, and the one that must never wait for anything."""

UNLIMITED = ("disarm",)
_BURST_S = 2.0
_SESSIONS_PER_KEY = 64
_TOKEN_BYTES = 16


class Admission:
    """Judges requests; `check` of control's thread, `check_stimulate` of the collector's.

    Parameters
    ----------
    requests_per_s : float, optional
        How many requests a key may make on average. None where there are no keys: then everybody may do everything, and
        sequence numbers are checked where they are given.
    """

    def __init__(self, requests_per_s: float | None) -> None:
        self._requests_per_s = requests_per_s
        self._buckets: dict[str, Bucket] = {}  # no more than there are keys
        self._sessions: dict[str, collections.OrderedDict[str, int]] = {}  # last number by session, by name of the key
        self._lock = threading.Lock()
        self._log = SparingLog(log)

    def hello(self, sender: Sender) -> str:
        """Begin a session; the one that was not used for longest makes room for it."""
        session = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._lock:
            mine = self._sessions.setdefault(sender.name, collections.OrderedDict())
            mine[session] = 0
            while len(mine) > _SESSIONS_PER_KEY:
                mine.popitem(last=False)
        return session

    def check(self, sender: Sender, cmd: str, session: str | None, seq: int | None) -> None:
        """Refuse a command, by raising, that this sender may not give, gives too often, or gave before.

        Raises
        ------
        CommandError
            With reason `role`, `rate`, `session` or `replayed`.
        """
        cmd = cmd if cmd in COMMANDS else ascii(cmd[:32])  # it goes into the log
        try:
            self._check(sender, cmd, session, seq)
        except CommandError as error:
            self._log.say(logging.WARNING, f"refused: {sender.name}: {error}", sender.name, cmd, error.reason)
            raise

    def check_stimulate(self, sender: Sender, session: str | None, seq: int | None) -> None:
        """Refuse, by raising, a `stimulate` that came before.

        Raises
        ------
        CommandError
            With reason `session` or `replayed`.
        """
        try:
            self._check_order(sender, "stimulate", session, seq)
        except CommandError as error:
            self._log.say(logging.WARNING, f"refused: {sender.name}: {error}", sender.name, "stimulate", error.reason)
            raise

    def _check(self, sender: Sender, cmd: str, session: str | None, seq: int | None) -> None:
        if self._requests_per_s is not None and cmd not in UNLIMITED:
            burst = _BURST_S * self._requests_per_s
            bucket = self._buckets.setdefault(sender.name, Bucket(self._requests_per_s, burst))
            if not bucket.take():
                raise CommandError(
                    "rate", f"more than {self._requests_per_s:g} requests a second from this key; slower"
                )
        needed = COMMAND_ROLES.get(cmd, Role.CONTROL)
        if not sender.may(needed):
            has = ", ".join(names_of(sender.roles)) or "none that is still valid"
            raise CommandError("role", f"{cmd} needs the role {' or '.join(names_of(needed))}; this key has {has}")
        if cmd not in UNORDERED or session is not None:
            self._check_order(sender, cmd, session, seq)

    def _check_order(self, sender: Sender, cmd: str, session: str | None, seq: int | None) -> None:
        if session is None or seq is None:
            if self._requests_per_s is not None:
                raise CommandError("session", f"{cmd} needs session and seq: ask for a session with hello")
            return
        with self._lock:
            mine = self._sessions.get(sender.name, collections.OrderedDict())
            if session not in mine:
                raise CommandError("session", f"{cmd}: this session is not known; ask for one with hello")
            if seq <= mine[session]:
                raise CommandError("replayed", f"{cmd}: seq {seq} is not above {mine[session]}, which came before")
            mine[session] = seq
            mine.move_to_end(session)


def admission_of(config: SecurityConfig | None) -> Admission:
    """Return what judges the requests of a session."""
    return Admission(None if config is None else config.requests_per_s)
