"""Who is let in at the daemon's sockets, and who was turned away.

With keys, every connection proves a CURVE key before a byte of it is read: libzmq asks the handler of this module
(ZAP, https://rfc.zeromq.org/spec/27) whether that key may connect to that socket. The list is read again whenever its
folder changes, and a key that is no longer on it loses its connections.

The sockets' monitors tell what never gets as far as that question: a client without a key, one that believes in
another daemon, a peer that does not speak the protocol.
"""

import collections
import contextlib
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import zmq
import zmq.utils.monitor
import zmq.utils.z85

from neuromod.bridge import keys
from neuromod.bridge.limits import SparingLog
from neuromod.bridge.roles import NO_ROLE, SOCKET_ROLES, Sender, names_of
from neuromod.bridge.security_config import SecurityConfig
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)

_ZAP = "inproc://zeromq.zap.01"
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_POLL_MS = 50
_EVENTS_AT_ONCE = 256
_MOST_EVENTS = 100_000
_LOOK_EVERY_S = 1.0
_YOUNG_S = 2.0  # a folder that changed so lately may change again without a new time
_MOST_CONNECTIONS = 4096
_HANDSHAKE_MS = 5000
_BACKLOG = 256

_FAILURES: dict[int, tuple[str, str]] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: ("no_key", "came without a key"),
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: ("other_daemon", "believes in the key of another daemon"),
}
_NOT_ZMTP = ("handshake", "does not speak ZMTP, or an old version of it")
_COUNTED = ("", "")  # a failure of which the answer to libzmq's question has told already


class Doorkeeper:
    """Guards the sockets of one daemon. `protect` each before it is bound, then call `run` in a thread.

    Parameters
    ----------
    context : zmq.Context
        Of the sockets: the question who may connect is asked within it.
    config : SecurityConfig, optional
        Without it nobody is asked for a key, and only the ends of connections to ingest are counted.

    Attributes
    ----------
    disconnects : int
        Connections to ingest that ended, which is all there is to see of a message too large for libzmq.
    refused : Counter of str
        Connections turned away, by reason: no_key, unknown_key, role, other_daemon, handshake, too_many.
    let_in : Counter of str
        Connections let in, by the name of the key.

    Raises
    ------
    ConfigError
        Where the keys cannot be read.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", config: SecurityConfig | None) -> None:
        self._context = context
        self._folder: Path | None = config.keys if config is not None else None
        self.disconnects = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.let_in: collections.Counter[str] = collections.Counter()
        self._log = SparingLog(log)
        self._monitors: dict[zmq.Socket[bytes], str] = {}
        self._watched: list[zmq.Socket[bytes]] = []
        self._peers: dict[tuple[str, int], Any] = {}  # by socket and descriptor, what `getpeername` says
        self._with_key: set[tuple[str, int]] = set()  # of those, that have shown one
        self._turned_away: set[tuple[str, int]] = set()  # of those, that end without having been let in
        self._most_connections = _most_connections()
        self._failed: dict[str, tuple[str, str]] = {}
        self._looked_at = 0.0
        self._zap: zmq.Socket[bytes] | None = None
        self._clients: dict[bytes, Sender] = {}
        if self._folder is not None:
            self._server = keys.load_server(self._folder)
            self._seen: list[tuple[str, int, int, int, int]] | None = self._listing()
            self._clients = keys.clients(self._folder)
            self._zap = context.socket(zmq.REP)
            self._zap.linger = 0
            self._zap.bind(_ZAP)  # before any socket that asks

    def protect(self, name: str, guarded: "zmq.Socket[bytes]") -> None:
        """Have a socket ask for keys, let go of dead peers, and tell what happens to its connections."""
        guarded.handshake_ivl = _HANDSHAKE_MS
        guarded.heartbeat_ivl, guarded.heartbeat_timeout = keys.HEARTBEAT_MS, keys.HEARTBEAT_TIMEOUT_MS
        guarded.tcp_keepalive = 1
        guarded.backlog = _BACKLOG
        if self._folder is not None:
            guarded.setsockopt(zmq.ZAP_DOMAIN, name.encode())
            # without it a daemon whose handler is gone would let everybody in
            guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            guarded.curve_server = True
            guarded.curve_secretkey = self._server.secret or b""
        if self._folder is not None or name == "ingest":
            monitor = self._context.socket(zmq.PAIR)
            # without a bound: where this thread is slow, or has ended, libzmq's would wait, with all that it carries
            monitor.rcvhwm = 0
            address = f"inproc://neuromod.door.{name}"
            guarded.monitor(address, _EVENTS)
            monitor.connect(address)
            self._monitors[monitor] = name
            self._watched.append(guarded)

    def run(self, stop: threading.Event) -> None:
        """Answer and listen until `stop` is set."""
        poller = zmq.Poller()
        for opened in [*self._monitors, *([self._zap] if self._zap is not None else [])]:
            poller.register(opened, zmq.POLLIN)
        while not stop.is_set():
            ready = dict(poller.poll(_POLL_MS))
            for monitor, name in self._monitors.items():  # ready or not: who is asked for now was told of before
                self._hear(monitor, name, _EVENTS_AT_ONCE)
            if self._zap is not None and self._zap in ready:
                self._zap.send_multipart(self._answer(self._zap.recv_multipart()))
            self._look(_LOOK_EVERY_S)

    def close(self) -> None:
        """Let go of everything; the thread has ended, and the sockets are still open."""
        for guarded in self._watched:
            guarded.disable_monitor()
        for opened in [*self._monitors, *([self._zap] if self._zap is not None else [])]:
            opened.close(0)
        self._monitors.clear()
        self._watched.clear()
        self._peers.clear()
        self._zap = None

    def sender(self, message: zmq.Frame) -> Sender:
        """Say who sent a message; as `sender_of`."""
        try:
            return self.sender_of(str(message.get("User-Id")))
        except zmq.ZMQError:
            return self.sender_of(None)

    def sender_of(self, user_id: str | None) -> Sender:
        """Say whose user id this is. With keys, who has none any more, although still connected, may do nothing."""
        if self._folder is None:
            return Sender()  # whatever a client says of itself
        sender = Sender.of(user_id) if user_id else Sender("nobody", NO_ROLE)
        return sender if sender in self._clients.values() else Sender(sender.name, NO_ROLE)

    @property
    def asks_for_keys(self) -> bool:
        """Whether there are keys at all."""
        return self._folder is not None

    def status(self) -> dict[str, Any]:
        """Say for health how the door is: with `keys` or open, who may come in, who did, and who was turned away."""
        return {
            "keys": self.asks_for_keys,
            "clients": {sender.name: names_of(sender.roles) for sender in self._clients.values()},
            "connections": len(self._peers),
            "let_in": dict(self.let_in),
            "refused": dict(self.refused),
        }

    # -- keys

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Answer one question of libzmq: version, id, domain, address, identity, mechanism, and the raw public key."""
        number = request[1] if len(request) > 1 else b""
        if len(request) != 7 or request[5] != b"CURVE":
            return [b"1.0", number, b"400", b"no key", b"", b""]
        domain, address, public = request[2].decode(), _where(request[3].decode()), zmq.utils.z85.encode(request[6])
        self._note_key(domain, address)
        if public not in self._clients:
            # it may have been made this moment, and libzmq's clients do not ask a second time once they were refused
            self._look(0.0)
        sender = self._clients.get(public)
        if sender is not None and sender.may(SOCKET_ROLES[domain]):
            self.let_in[sender.name] += 1
            sentence = f"{sender.name} ({keys.fingerprint(public)}) at {address} connects to {domain}"
            self._log.say(logging.INFO, sentence, sender.name, address, domain)
            return [b"1.0", number, b"200", b"OK", sender.user_id.encode(), b""]
        if sender is None:
            sentence = (
                f"a client at {address} with the unknown key {keys.fingerprint(public)} may not connect to {domain}"
            )
            self._refuse(sentence, "unknown_key", address, domain)
        else:
            needed = " or ".join(names_of(SOCKET_ROLES[domain]))
            sentence = (
                f"{sender.name} ({keys.fingerprint(public)}) at {address} may not connect to {domain}: "
                f"its key has {', '.join(names_of(sender.roles))}, and {needed} is needed"
            )
            self._refuse(sentence, "role", sender.name, domain)
        return [b"1.0", number, b"400", b"refused", b"", b""]

    def _note_key(self, name: str, address: str) -> None:
        """Note that a connection has shown a key: as far as can be told, the newest from there that had not."""
        waiting = [key for key in reversed(self._peers) if key[0] == name and key not in self._with_key]
        there = [key for key in waiting if _address(self._peers[key]) == address]
        self._with_key.update((there or waiting)[:1])

    def _refuse(self, sentence: str, reason: str, *who: str) -> None:
        self.refused[reason] += 1
        self._log.say(logging.WARNING, f"refused: {sentence}", reason, *who)

    def _listing(self) -> list[tuple[str, int, int, int, int]]:
        """What would be another one if a file of the list were another."""
        assert self._folder is not None
        with contextlib.suppress(OSError), os.scandir(self._folder / "clients") as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
            return sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found)
        return []

    def _look(self, every_s: float) -> None:
        """Read again who is let in, where the folder has changed; who is not any more loses its connections."""
        if self._folder is None or time.monotonic() - self._looked_at < every_s:
            return
        self._looked_at = time.monotonic()
        if len(self._peers) >= self._most_connections:  # one whose end was missed must not keep others out
            self._peers = {key: peer for key, peer in self._peers.items() if _peer_name(key[1]) == peer}
        listing = self._listing()
        is_settled = time.time() - max((entry[3] for entry in listing), default=0) * 1e-9 > _YOUNG_S
        if listing == self._seen and is_settled:
            return
        self._seen = listing
        try:
            found = keys.clients(self._folder, damaged=self._tell_damaged)
        except keys.UnreadableError as error:
            self._log.say(logging.ERROR, f"{error}; until it can, the list of clients stays as it is", str(error))
            self._seen = None
            return
        except ConfigError as error:
            self._tell_damaged(str(error))
            found = {}
        if found == self._clients:
            return
        log.warning(
            "the list of clients has changed: %s", ", ".join(sorted(s.name for s in found.values())) or "nobody"
        )
        is_narrower = any(found.get(public) != sender for public, sender in self._clients.items())
        self._clients = found
        if is_narrower:
            # libzmq ends no single connection: all end, and those that are still listed are back in a moment
            for monitor, name in self._monitors.items():
                self._hear(monitor, name)  # of those that were let in this moment, too
            for (_, descriptor), peer in self._peers.items():
                _end(descriptor, peer)
            log.warning("a key was revoked or has other roles: every connection is ended, and may come back")

    def _tell_damaged(self, sentence: str) -> None:
        self._log.say(logging.ERROR, f"{sentence}; this client is not let in", sentence)

    # -- connections

    def _hear(self, monitor: "zmq.Socket[bytes]", name: str, at_most: int = _MOST_EVENTS) -> None:
        for _ in range(at_most):  # a storm of them must not keep those with a key waiting
            try:
                heard = zmq.utils.monitor.recv_monitor_message(monitor, zmq.DONTWAIT)
            except zmq.Again:
                return
            event, value = int(heard["event"]), int(heard["value"])
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._failed[name] = _COUNTED
            elif event == zmq.EVENT_ACCEPTED:
                self._accept(name, value)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed[name] = _FAILURES.get(value, ("handshake", f"does not speak ZMTP as we do ({value:#x})"))
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._folder is not None:
                self._failed[name] = ("handshake", f"broke off while it was asked for its key ({os.strerror(value)})")
            elif event == zmq.EVENT_DISCONNECTED:
                self._part(name, value)

    def _accept(self, name: str, descriptor: int) -> None:
        self._peers.pop((name, descriptor), None)
        self._turned_away.discard((name, descriptor))
        self._with_key.discard((name, descriptor))
        if (peer := _peer_name(descriptor)) is None:
            return  # it is gone already
        if len(self._peers) >= self._most_connections:
            self._turned_away.add((name, descriptor))
            address = _address(peer)
            sentence = f"a client at {address} may not connect to {name}: {len(self._peers)} connections are open"
            self._refuse(sentence, "too_many", address, name)
            _end(descriptor, peer)
        self._peers[name, descriptor] = peer

    def _part(self, name: str, descriptor: int) -> None:
        """Take note of the end of a connection; where its handshake failed, libzmq told so just before."""
        connection = (name, descriptor)
        peer, failed = self._peers.pop(connection, None), self._failed.pop(name, None)
        if connection in self._turned_away:
            self._turned_away.discard(connection)
            return
        if failed is None and self._folder is not None and connection not in self._with_key:
            failed = _NOT_ZMTP  # of which libzmq tells nothing
        self._with_key.discard(connection)
        if failed is None:
            if name == "ingest":
                self.disconnects += 1
                sentence = (
                    "a connection to ingest ended: the client left, or sent more than libzmq takes (1 MiB) at once"
                )
                self._log.say(logging.INFO, sentence, "left")
        elif failed is not _COUNTED:
            reason, sentence = failed
            address = _address(peer)
            self._refuse(f"a client at {address} {sentence}, and may not connect to {name}", reason, address, name)


def _most_connections() -> int:
    """Return how many connections may be open: strangers must not use up what files and other sockets need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files // 2)


def _peer_name(descriptor: int) -> Any:
    """Return what `getpeername` says of a descriptor that is libzmq's; None where it is gone already."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        return borrowed.getpeername()
    except OSError:
        return None
    finally:
        borrowed.detach()


def _end(descriptor: int, peer: Any) -> None:
    """End a connection of libzmq, which then closes it, unless the number is that of another one by now."""
    if _peer_name(descriptor) != peer:
        return
    with contextlib.suppress(OSError):
        borrowed = socket.socket(fileno=descriptor)
        try:
            borrowed.shutdown(socket.SHUT_RDWR)
        finally:
            borrowed.detach()


def _address(peer: Any) -> str:
    if peer is None:
        return "an unknown address"  # it was gone before we could look
    return str(peer[0]) if isinstance(peer, tuple) else "this host"


def _where(address: str) -> str:
    """Return the address in a question of libzmq, which for ipc tells user and process instead."""
    return "this host" if address.startswith("localhost:") else address
