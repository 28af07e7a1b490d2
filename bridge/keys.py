"""Keys of the daemon and of its clients: CURVE key pairs in the certificate files of ZeroMQ (ZPL), in one folder.

::

    keys/                      0700
        server.key             public key of the daemon
        server.key_secret      0600: never leaves this host
        clients/               0700: who is let in
            NAME.key           public key and roles of a client
            NAME.key_secret    0600: for the client, unless it was written elsewhere

What `new_client` writes for the client has its key pair, its roles and the daemon's public key: all that it needs.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.utils.z85

from neuromod.bridge.roles import Role, Sender, names_of, roles_of
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LONGEST_FILE = 16_384
_KEY_CHARACTERS = 40
_OF_THE_MOMENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableError(ConfigError):
    """A file could not be read for want of something that will be there again: it says nothing of the file."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One file: a public key, perhaps the secret one, and what is said of them. Keys are Z85, 40 characters."""

    public: bytes
    secret: bytes | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client needs to be let in: its own key pair, and the daemon's public key, each as Z85."""

    name: str
    roles: Role
    public: bytes
    secret: bytes
    server: bytes

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket that is not connected yet use this key, and believe no daemon but the one it is for."""
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self.public, self.secret, self.server


HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5000, 15000
"""How often an end of a connection asks whether the other one is there, and how long it waits for the answer."""


def connect(socket: "zmq.Socket[bytes]", address: str, key: ClientKey | None) -> None:
    """Connect the socket of a client, with its key where it has one."""
    # A host without power says no good-bye, and a subscriber nothing that could be refused: it would wait for ever.
    socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
    if key is not None:
        key.apply(socket)
    socket.connect(address)


def fingerprint(public: bytes) -> str:
    """Return what tells keys apart in logs and lists: 16 hexadecimal digits of the SHA-256 of the public key."""
    return hashlib.sha256(public).hexdigest()[:16]


# -- the folder


def init_folder(folder: Path) -> Certificate:
    """Make a folder of keys with a new key pair of the daemon.

    Raises
    ------
    ConfigError
        Where it has one already, or cannot be written.
    """
    path = folder / "server.key_secret"
    public, secret = zmq.curve_keypair()
    made = Certificate(public, secret, {"name": "server"})
    with _told(folder):
        if path.exists():
            raise ConfigError(f"{path} is there already: clients believe that key alone; name another folder")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already, and is no empty folder; name another one")
        for made_folder in (folder, folder / "clients"):
            made_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made_folder.chmod(0o700)
        _write(path, made)
        _write(folder / "server.key", Certificate(public, None, made.metadata), mode=0o644)
    return made


def new_client(folder: Path, name: str, roles: Role, out: Path | None = None) -> Path:
    """Make a key for a client, let it in, and return the file that it is to be given.

    Raises
    ------
    ConfigError
        Where the name cannot be one of a file, there is such a client or such a file, or a file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a client's name: letters, digits, '.', '_' and '-', at most 63")
    server = load_server(folder)
    out = out or folder / "clients" / f"{name}.key_secret"
    listed = folder / "clients" / f"{name}.key"
    public, secret = zmq.curve_keypair()
    metadata = {"name": name, "roles": ",".join(names_of(roles))}
    taken = ((listed, "there is a client of that name: revoke it first"), (out, "keys are not overwritten"))
    with _told(folder):
        for path, what in taken:
            if path.exists():
                raise ConfigError(f"{path} is there already; {what}, or choose another name")
        _write(out, Certificate(public, secret, metadata | {"server": server.public.decode()}))
        _write(listed, Certificate(public, None, metadata))
    return out


def revoke_client(folder: Path, name: str) -> None:
    """Let a client in no more.

    Raises
    ------
    ConfigError
        Where there is none of that name.
    """
    path = folder / "clients" / f"{name}.key"
    with _told(folder):
        if not _NAME.fullmatch(name) or not path.is_file():
            known = ", ".join(sorted(sender.name for sender in clients(folder).values())) or "none"
            raise ConfigError(f"{folder} has no client {name!r}; it has {known}")
        path.unlink()
        path.with_suffix(".key_secret").unlink(missing_ok=True)  # where it was left here, it is good for nothing now


def load_server(folder: Path) -> Certificate:
    """Read the daemon's key pair.

    Raises
    ------
    ConfigError
        Where it is not there, is damaged, or others may read it.
    """
    path = folder / "server.key_secret"
    with _told(folder):
        if not path.exists():
            raise ConfigError(f"{folder} holds no key of a daemon; 'neuromod keys init {folder}' makes it")
        for kept in (folder, folder / "clients"):
            if sys.platform == "win32" or not kept.exists():
                continue
            if (owner := kept.stat().st_uid) not in (os.geteuid(), 0):
                raise ConfigError(
                    f"{kept} belongs to another user (uid {owner}), who may let clients in; keys belong to the user "
                    "that runs the daemon: where that is the other one, run this as that one too"
                )
            if kept.stat().st_mode & 0o022:
                raise ConfigError(
                    f"others may let clients in: {kept} has mode {mode_of(kept)}, expected 0700; chmod 700 {kept}"
                )
        return _load_secret(path)


def load_client(path: Path) -> ClientKey:
    """Read the file that a client was given.

    Raises
    ------
    ConfigError
        Where it is not there, is damaged, is no such file, or others may read it.
    """
    found = _load_secret(path)
    server = found.metadata.get("server", "").encode()
    if not _is_key(server):
        raise ConfigError(f"{path} does not say which daemon it is for; 'neuromod keys new' writes such files")
    assert found.secret is not None
    return ClientKey(found.metadata.get("name", path.stem), _roles(found, path), found.public, found.secret, server)


def clients(folder: Path, damaged: Callable[[str], None] | None = None) -> dict[bytes, Sender]:
    """Return who is let in: name and roles by public key.

    Parameters
    ----------
    folder : Path
        As `init_folder` made it.
    damaged : callable, optional
        Is told of each file that cannot be used, which is left out; without it, the first one raises.

    Raises
    ------
    ConfigError
        For a file that is damaged, that others may write to, that names no role, or repeats a key.
    UnreadableError
        Where the files cannot be read at this moment; with `damaged`, too.
    """
    found: dict[bytes, Sender] = {}
    try:
        paths = sorted(path for path in (folder / "clients").iterdir() if path.suffix == ".key")
    except FileNotFoundError:
        paths = []
    except OSError as error:
        raise _unreadable(folder / "clients", error) from None
    for path in paths:
        try:
            certificate, mode = _read(path)
            if not _NAME.fullmatch(path.stem):
                raise ConfigError(f"{str(path)!r}: {path.stem!r} cannot be a client's name")
            if mode & 0o022:
                raise ConfigError(f"others may write to {path} (mode {mode:04o}, expected 0600): chmod 600 {path}")
            if certificate.public in found:
                other = found[certificate.public].name
                raise ConfigError(f"{path} has the key of {other}: each client needs its own")
            found[certificate.public] = Sender(path.stem, _roles(certificate, path))
        except UnreadableError:
            raise
        except ConfigError as error:
            if damaged is None:
                raise
            damaged(str(error))
    return found


# -- files


def read_certificate(path: Path) -> Certificate:
    """Read a certificate file.

    Raises
    ------
    ConfigError
        Where it cannot be read, or holds no public key.
    """
    return _read(path)[0]


def parse_certificate(data: bytes) -> Certificate:
    """Parse what a certificate file holds: sections of indented ``key = value`` lines, `metadata` and `curve`.

    Raises
    ------
    ValueError
        In words, for what is none.
    """
    if len(data) > _LONGEST_FILE:
        raise ValueError(f"it is longer than {_LONGEST_FILE} bytes")
    sections: dict[str, dict[str, str]] = {"metadata": {}, "curve": {}}
    section = ""
    for line in data.decode(errors="strict").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            section = key
        elif section in sections:
            sections[section][key] = value.strip("\"'")
    public = sections["curve"].get("public-key", "").encode()
    secret = sections["curve"]["secret-key"].encode() if "secret-key" in sections["curve"] else None
    if not _is_key(public) or not (secret is None or _is_key(secret)):
        raise ValueError(f"under 'curve' it needs a public-key of {_KEY_CHARACTERS} characters of Z85")
    if secret is not None and zmq.curve_public(secret) != public:
        raise ValueError("its public key is not that of its secret key")
    return Certificate(public, secret, sections["metadata"])


def mode_of(path: Path) -> str:
    """Return the permissions of a file, in octal digits."""
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def _read(path: Path) -> tuple[Certificate, int]:
    """Read a certificate file, and its permissions: those of the very file that was read."""
    try:
        with path.open("rb") as file:
            mode = _permissions(os.fstat(file.fileno()))
            text = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return parse_certificate(text), mode
    except ValueError as error:
        raise ConfigError(f"{path} is no certificate: {error}; 'neuromod keys' writes them") from None


def _permissions(status: os.stat_result) -> int:
    # Windows keeps permissions elsewhere, and shows none of them here
    return stat.S_IMODE(status.st_mode) if sys.platform != "win32" else 0o600


def _unreadable(path: Path, error: OSError) -> ConfigError:
    kind = UnreadableError if error.errno in _OF_THE_MOMENT else ConfigError
    return kind(f"{path} cannot be read: {error.strerror}")


def _load_secret(path: Path) -> Certificate:
    found, mode = _read(path)
    if found.secret is None:
        raise ConfigError(f"{path} holds no secret key; the file that 'neuromod keys new' wrote for you has one")
    if mode & 0o077:
        raise ConfigError(
            f"others may read {path} (mode {mode:04o}, expected 0600): make it yours alone, chmod 600 {path}"
        )
    return found


def _write(path: Path, certificate: Certificate, mode: int = 0o600) -> None:
    """Write a new file, whole, with its mode from the first byte on."""
    lines = ["# ZeroMQ CURVE certificate" + (": SECRET, for its owner alone" if certificate.secret else "")]
    lines += ["metadata", *(f'    {key} = "{value}"' for key, value in certificate.metadata.items())]
    lines += ["curve", f'    public-key = "{certificate.public.decode()}"']
    if certificate.secret is not None:
        lines.append(f'    secret-key = "{certificate.secret.decode()}"')
    # under another name first: a daemon that looks at the folder meanwhile must not see half of a file
    scratch = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)  # which, unlike a renaming, never takes the place of another file
        except FileExistsError:
            raise
        except (OSError, AttributeError, NotImplementedError):  # a file system without links
            scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
    if sys.platform == "win32" and certificate.secret is not None:
        log.warning("%s: Windows keeps no modes; see to it that nobody else may read it", path)


def _roles(certificate: Certificate, path: Path) -> Role:
    try:
        return roles_of([name.strip() for name in certificate.metadata.get("roles", "").split(",") if name.strip()])
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _is_key(text: bytes) -> bool:
    if len(text) != _KEY_CHARACTERS:
        return False
    try:
        return len(zmq.utils.z85.decode(text)) == 32
    except (ValueError, KeyError, IndexError, struct.error):  # the last: five characters that say more than 32 bits
        return False


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ConfigError(f"{error.filename2 or error.filename} is there already, and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written or read: {error.strerror}") from None
