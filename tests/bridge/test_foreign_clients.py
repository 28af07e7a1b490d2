"""The clients of `deploy/clients`, in C and in JavaScript, hear from a daemon what the Python client hears."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from harness import MEMORY, GatedSource, Running, session, wait_until

from neuromod.bridge import wire
from neuromod.bridge.wire import EventMessage, Flag, HealthMessage, SpikesMessage

CLIENTS = Path(__file__).resolve().parents[2] / "deploy/clients"
START_S = 60.0  # for a process to start and say its first word on a busy machine
INSTALL_S = 90.0


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client in C, built as its README says."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")
    (folder / "probe.c").write_text("#include <msgpack.h>\n#include <zmq.h>\nint main(void) { return zmq_errno(); }\n")

    def build(source: Path, library: str) -> "subprocess.CompletedProcess[str]":
        flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
        out = str(folder / source.stem)
        command = [compiler, *flags, str(source), "-o", out, "-lzmq", f"-l{library}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    # the library was renamed with its version 5
    library = next(
        (each for each in ("msgpack-c", "msgpackc") if build(folder / "probe.c", each).returncode == 0), None
    )
    if library is None:
        pytest.skip("no libzmq or msgpack-c with headers (Debian: libzmq3-dev libmsgpack-dev)")
    built = build(CLIENTS / "subscriber.c", library)
    assert built.returncode == 0, built.stderr
    return [str(folder / "subscriber")]


@pytest.fixture(scope="module")
def javascript() -> list[str]:
    """The command of the client in JavaScript, with its packages in a folder that is kept from run to run."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node with npm")
    files = [CLIENTS / name for name in ("package.json", "package-lock.json", "subscriber.js")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"neuromod-npm-{os.getuid()}-{digest}"
    if not kept.exists():
        made = Path(tempfile.mkdtemp(prefix="neuromod-npm-"))
        for file in files:
            shutil.copy(file, made)
        try:
            # its native part comes ready in the package, so that no script of a package has to run
            install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(install, cwd=made, check=True, capture_output=True, timeout=INSTALL_S)
            made.rename(kept)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(made, ignore_errors=True)
            if not kept.exists():  # else another run was faster
                pytest.skip(f"npm could not install zeromq and @msgpack/msgpack: {error}")
    return [node, str(kept / "subscriber.js")]


class Heard:
    """What a client has printed so far."""

    def __init__(self, popen: "subprocess.Popen[bytes]", path: Path) -> None:
        self.popen, self._path = popen, path

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Every whole line, parsed."""
        return [json.loads(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["topic"] == topic]


@contextmanager
def running(command: list[str], path: Path, **environment: str) -> Iterator[Heard]:
    with path.open("wb") as out:
        popen = subprocess.Popen(command, stdout=out, env={**os.environ, **environment})
    try:
        yield Heard(popen, path)
    finally:
        popen.kill()
        popen.wait()


# -- beside a daemon


@pytest.mark.compiled_loop
@pytest.mark.parametrize("language", ["c", "javascript"])
def test_it_hears_what_the_python_client_hears(language: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = request.getfixturevalue(language)
    samples = np.random.default_rng(7).uniform(0.0, 40.0, (1000, 16)).astype(np.float32)
    source = GatedSource(samples, 1000.0, kind="features")

    with Running(session(MEMORY), source=source) as daemon:
        python = daemon.listen("spikes", "event", "health")
        with running([*command, "1000000", daemon.daemon.addresses["output"]], tmp_path / "out") as client:
            # `health` is the last that it subscribes to: once it hears one it hears all
            wait_until(lambda: client.of("health"), "health", START_S)
            source.let_go(300)
            daemon.client.send_event('cue "7" \u00e4')
            source.let_go()
            python.until(lambda: [m for m in python.of(EventMessage) if m.name.startswith("cue")], "the event")
            python.until(
                lambda: sum(not m.flags & Flag.FILLER for m in python.of(SpikesMessage)) >= len(samples), "all ticks"
            )
            last = python.of(SpikesMessage)[-1].seq
            wait_until(lambda: client.of("spikes")[-1]["seq"] >= last and client.of("event"), "the same", START_S)
            seen = client.messages
            python.until(lambda: python.of(SpikesMessage)[-1].seq >= max_seq(seen), "what it heard after that")

    spikes = {message.seq: message for message in python.of(SpikesMessage)}
    mine = [message for message in seen if message["topic"] == "spikes"]
    assert {message["lost"] for message in seen} == {0}
    assert [message["seq"] for message in mine] == list(range(mine[0]["seq"], mine[-1]["seq"] + 1))
    assert sum(not message["flags"] & Flag.FILLER for message in mine) >= len(samples)
    assert any(int(message["spikes"], 16) for message in mine)
    for message in mine:
        assert fields(message) == fields_of(spikes[message["seq"]])
    (event,) = [message for message in seen if message["topic"] == "event" and message["name"].startswith("cue")]
    (wanted,) = [message for message in python.of(EventMessage) if message.name.startswith("cue")]
    assert (event["name"], event["tick"], event["t"]) == (wanted.name, wanted.tick, wanted.t)
    times = {message.body["t"] for message in python.of(HealthMessage)}
    assert times & {message["t"] for message in seen if message["topic"] == "health"}


def max_seq(messages: list[dict[str, Any]]) -> int:
    return max(int(message["seq"]) for message in messages if message["topic"] == "spikes")


def fields(message: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(message[name] for name in ("tick", "sample", "t_sample", "t_tick", "spikes", "flags"))


def fields_of(message: SpikesMessage) -> tuple[Any, ...]:
    spikes = np.packbits(message.spikes, bitorder="little").tobytes().hex()
    # a time that is not known is NaN, for which JSON has null
    times = (None if np.isnan(t) else t for t in (message.t_sample, message.t_tick))
    return (message.tick, message.sample, *times, spikes, int(message.flags))


# -- what a daemon does not show on demand


@functools.cache
def spikes(seq: int, tick: int = 0) -> tuple[bytes, bytes]:
    return b"spikes", wire.pack_spikes(SpikesMessage(seq, tick, tick, 1.0, 1.0001, np.arange(16) == 9, Flag(0)))


@contextmanager
def publisher(secret_key: bytes | None = None) -> Iterator[tuple["zmq.Socket[bytes]", str]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.rcvtimeo = int(1e3 * START_S)
    if secret_key is not None:
        socket.curve_server, socket.curve_secretkey = True, secret_key
    socket.bind("tcp://127.0.0.1:*")
    try:
        yield socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)
    finally:
        context.destroy(linger=0)


def wait_for_subscriptions(socket: "zmq.Socket[bytes]") -> None:
    assert {socket.recv() for _ in range(3)} == {b"\x01spikes", b"\x01event", b"\x01health"}


@pytest.mark.parametrize("language", ["c", "javascript"])
def test_it_counts_losses_and_ends_after_n_messages(
    language: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    command = request.getfixturevalue(language)
    with publisher() as (socket, address), running([*command, "5", address], tmp_path / "out") as client:
        wait_for_subscriptions(socket)
        # beyond 2^53, where a double counts no more; then a daemon that was started again
        for seq in (100, 101, 105, 0):
            socket.send_multipart(spikes(seq, 2**53 + 1))
        socket.send_multipart((b"event", wire.pack_event(EventMessage("stop", 2.5, 3, "daemon"))))
        code = client.popen.wait(START_S)

    assert code == 0
    assert [(m["topic"], m.get("seq"), m["lost"]) for m in client.messages] == [
        ("spikes", 100, 0),
        ("spikes", 101, 0),
        ("spikes", 105, 3),
        ("spikes", 0, 3),
        ("event", None, 0),
    ]
    assert {int(m["tick"]) for m in client.messages[:4]} == {2**53 + 1}
    assert client.messages[0]["spikes"] == "0002"


@pytest.mark.parametrize("language", ["c", "javascript"])
def test_it_ends_with_a_word_at_another_version(language: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = request.getfixturevalue(language)
    with publisher() as (socket, address), running([*command, "5", address], tmp_path / "out") as client:
        wait_for_subscriptions(socket)
        socket.send_multipart((b"health", b"\x81\xa1v\x02"))
        code = client.popen.wait(START_S)

    assert code == 1
    assert client.messages == []


@pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq has no CURVE")
@pytest.mark.parametrize("language", ["c", "javascript"])
def test_it_reads_its_keys_from_the_environment(language: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = request.getfixturevalue(language)
    server_public, server_secret = zmq.curve_keypair()
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = {"NEUROMOD_PUBLIC_KEY": public, "NEUROMOD_SECRET_KEY": secret, "NEUROMOD_SERVER_KEY": server_public.decode()}

    with (
        publisher(server_secret) as (socket, address),
        running([*command, "1", address], tmp_path / "out", **keys) as c,
    ):
        wait_for_subscriptions(socket)
        socket.send_multipart(spikes(3))
        assert c.popen.wait(START_S) == 0

    assert [message["seq"] for message in c.messages] == [3]
