"""Who may arm: the proof of a key, without the key on the wire.

The daemon hands out a number that is used once; whoever holds the key answers with its HMAC-SHA256 over that number and
the time asked for. What was recorded off the socket arms nothing again.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from neuromod.bridge.commands import CommandError
from neuromod.engine.errors import ConfigError

MIN_KEY_BYTES = 16
_NONCE_S = 30.0
_MOST_NONCES = 64


def read_key(path: Path) -> bytes:
    """Read a key from a file.

    Raises
    ------
    ConfigError
        Where it cannot be read, others may read it, or it is too short to be a key.
    """
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"stimulation.key_file: {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"stimulation.key_file: others may read {path}; make it yours alone: chmod 600 {path}")
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"stimulation.key_file: {path} holds {len(key)} bytes; a key has at least {MIN_KEY_BYTES}: "
            f"'neuromod key {path}' writes one"
        )
    return key


def write_key(path: Path) -> None:
    """Write a new random key, readable by its owner alone.

    Raises
    ------
    ConfigError
        Where there is such a file, or it cannot be written.
    """
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secrets.token_hex(32) + "\n")
    except FileExistsError:
        raise ConfigError(f"{path} is there already, and keys are not overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def prove(key: bytes, nonce: str, seconds: float) -> str:
    """Return the proof that arming for `seconds` is asked for by who holds the key."""
    return hmac.new(key, f"arm {nonce} {float(seconds)!r}".encode(), hashlib.sha256).hexdigest()


class Arming:
    """Hands out numbers and checks proofs.

    Parameters
    ----------
    key : bytes or None
        None: no proof is needed (nothing is ever sent in this mode).
    clock : callable
        In seconds.
    """

    def __init__(self, key: bytes | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._key, self._clock = key, clock
        self._nonces: dict[str, float] = {}

    def challenge(self) -> str:
        """Return a number to be used once, within half a minute."""
        now = self._clock()
        self._nonces = {nonce: t for nonce, t in self._nonces.items() if now - t < _NONCE_S}
        while len(self._nonces) >= _MOST_NONCES:
            self._nonces.pop(next(iter(self._nonces)))
        nonce = secrets.token_hex(16)
        self._nonces[nonce] = now
        return nonce

    def check(self, seconds: float, nonce: str | None, proof: str | None) -> None:
        """Take a proof, once.

        Raises
        ------
        CommandError
            With reason ``key``: it is none.
        """
        if self._key is None:
            return
        if nonce is None or proof is None:
            raise CommandError("key", "arm: this session needs the key: ask for a 'challenge', and send nonce and mac")
        issued = self._nonces.pop(nonce, None)
        if issued is None or self._clock() - issued >= _NONCE_S:
            raise CommandError("key", "arm: this nonce is not, or no longer, to be answered; ask for a new 'challenge'")
        if not hmac.compare_digest(prove(self._key, nonce, seconds).encode(), proof.encode()):
            raise CommandError("key", "arm: the key is not that of this session; see stimulation.key_file")
