"""Processes of the soak run: ``soak_workers.py KIND JSON`` with the settings of one of them.

A source that writes down what it pushes, a witness that writes down what the daemon publishes, and those who make
trouble: clients that come and go, that send nonsense, that ask without end, or that never read.
"""

import json
import os
import pty
import random
import sys
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import zmq

from fuzz import kept
from neuromod.adapters.actuator_config import StimulatorConfig
from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.adapters.actuators.device import LineDevice
from neuromod.adapters.actuators.stimulator import VirtualStimulator
from neuromod.bridge import wire
from neuromod.bridge.client import Client, ClientTimeoutError
from neuromod.bridge.keys import load_client
from neuromod.bridge.wire import EventMessage, HealthMessage, SpikesMessage

PUSHED = np.dtype([("index", "<u8"), ("stamp", "<f8"), ("pushed", "<f8")])
"""What the source writes of each sample: its number in this life of the source, its stamp, and when it was pushed."""

SEEN = np.dtype(
    [
        ("kind", "u1"),  # 0 spikes, 1 command, 2 stimulation
        ("what", "u1"),  # of stimulation: 0 lease, 1 train, 2 stop
        ("nonzero", "u1"),  # of a command: whether it says to do anything
        ("life", "<u4"),  # of the daemon, as the numbers of messages tell: they begin anew
        ("seq", "<u8"),
        ("tick", "<u8"),
        ("id", "<u8"),
        ("flags", "<u4"),
        ("t_sample", "<f8"),
        ("t", "<f8"),  # end of the tick, or sending
        ("expires", "<f8"),
        ("arrived", "<f8"),
        ("electrode", "<u2"),
        ("pulses", "<u4"),
        ("amplitude_ua", "<f8"),
        ("phase_us", "<f8"),
        ("period_us", "<f8"),
    ]
)
"""What the witness writes of each message."""

SPIKES, COMMAND, STIMULATION = 0, 1, 2
KINDS = ("lease", "train", "stop")


def source(name: str, source_id: str, n_channels: int, rate: float, file: str, seed: int) -> None:
    """Push a sample a millisecond, stamped on a grid, and write each down before it is pushed."""
    info = pylsl.StreamInfo(name, "Features", n_channels, rate, pylsl.cf_float32, source_id)
    outlet = pylsl.StreamOutlet(info)
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.0, 5.0, (4096, n_channels)).astype(np.float32)
    begin, sent = pylsl.local_clock() + 0.05, 0
    print("ready", flush=True)
    with Path(file).open("ab", buffering=0) as out:
        while True:
            now = pylsl.local_clock()
            due = min(int((now - begin) * rate) + 1 - sent, 500)
            if due <= 0:
                time.sleep(max(0.0, begin + sent / rate - now))
                continue
            rows = np.zeros(due, PUSHED)
            rows["index"] = np.arange(sent, sent + due)
            rows["stamp"] = begin + rows["index"] / rate
            rows["pushed"] = now
            out.write(rows.tobytes())
            for row in rows:
                outlet.push_sample(values[int(row["index"]) % len(values)], float(row["stamp"]))
            sent += due


def witness(addresses: dict[str, str], file: str, events: str, key: str | None) -> None:
    """Read everything, at once, and write it down."""
    life: dict[int, int] = {}
    last: dict[int, int] = {}
    with _client(addresses, key) as client:
        heard = client.subscribe("spikes", "command", "stimulation", "event", "health")
        print("ready", flush=True)
        with Path(file).open("ab", buffering=1 << 14) as out, Path(events).open("a", buffering=1) as told:
            flushed = time.monotonic()
            while True:
                try:
                    message = heard.receive(0.2)
                except ClientTimeoutError:
                    message = None
                now = pylsl.local_clock()
                if time.monotonic() - flushed > 0.2:
                    out.flush()
                    flushed = time.monotonic()
                if isinstance(message, EventMessage):
                    told.write(json.dumps({"event": message.name, "t": now, "value": _plain(message.value)}) + "\n")
                elif isinstance(message, HealthMessage):
                    told.write(json.dumps({"health": message.state, "t": now}) + "\n")
                elif message is not None:
                    row = np.zeros(1, SEEN)
                    _fill(row[0], message)
                    kind, seq = int(row[0]["kind"]), int(row[0]["seq"])
                    if kind not in last or seq <= last[kind]:
                        life[kind] = life.get(kind, -1) + 1
                    last[kind] = seq
                    row["life"], row["arrived"] = life[kind], now
                    out.write(row.tobytes())


def _fill(row: Any, message: Any) -> None:
    row["seq"], row["tick"] = message.seq, message.tick
    match message:
        case SpikesMessage():
            row["kind"], row["flags"] = SPIKES, int(message.flags)
            row["t_sample"], row["t"] = message.t_sample, message.t_tick
        case Command():
            row["kind"], row["flags"] = COMMAND, int(message.flags)
            row["t_sample"], row["t"], row["expires"] = message.t_sample, message.t_tick, message.expires
            row["nonzero"] = bool(np.any(message.values)) or message.events != 0
        case Stimulation():
            row["kind"], row["what"] = STIMULATION, KINDS.index(message.kind)
            for name in ("id", "t", "expires", "electrode", "pulses", "amplitude_ua", "phase_us", "period_us"):
                row[name] = getattr(message, name)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | dict | list) or value is None else str(value)


def _client(addresses: dict[str, str], key: str | None) -> Client:
    settings: dict[str, Any] = {**addresses, **({} if key is None else {"key": Path(key)})}
    return Client(**settings)


def device(port: str, pulses: str) -> None:
    """Be a stimulator behind a serial line: one end of a pseudo-terminal, whose other end is `port` until this ends."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    place = Path(port)
    place.unlink(missing_ok=True)
    place.symlink_to(os.ttyname(theirs))
    stimulator = VirtualStimulator(StimulatorConfig(pulses=Path(pulses)))
    line = LineDevice(ours, stimulator)
    print("ready", flush=True)
    while True:
        line.step()  # `theirs` stays open: a line that nobody has open is an error to read from


def flood(addresses: dict[str, str], seconds: float, key: str | None, seed: int) -> None:
    """Subscribe and go away again, many times, while some read slowly."""
    rng, ends, n = random.Random(seed), time.monotonic() + seconds, 0
    with _client(addresses, key) as slow_client:
        slow = [slow_client.subscribe("spikes", "command") for _ in range(8)]
        while time.monotonic() < ends:
            with _client(addresses, key) as client:
                for _ in range(4):
                    client.subscribe(*rng.sample(["spikes", "command", "event", "health", "state"], 2))
                    n += 1
                time.sleep(rng.uniform(0.0, 0.02))
            for each in slow:  # one message each: far fewer than come
                try:
                    each.receive(0.0)
                except ClientTimeoutError:
                    continue
    print(json.dumps({"subscriptions": n}), flush=True)


def frozen(addresses: dict[str, str], key: str | None) -> None:
    """Subscribe to everything and read until stopped from outside; then say what was lost."""
    with _client(addresses, key) as client:
        heard, said = client.subscribe("spikes", "command", "event", buffer=1000), 0
        print("ready", flush=True)
        while True:
            try:
                heard.receive(0.2)
            except ClientTimeoutError:
                continue
            if (lost := sum(heard.lost.values())) > said:
                said = lost
                print(json.dumps({"lost": lost}), flush=True)


def nonsense(addresses: dict[str, str], seconds: float, key: str, seed: int, rate: float) -> None:
    """Send what no daemon can take, to ingest and to control: whatever fuzzing keeps, and noise."""
    rng, context = random.Random(seed), zmq.Context()
    inputs = [data for name in ("ingest", "control", "compiled") for data in kept.read(kept.CORPUS, name)]
    push, dealer = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
    for socket, address in ((push, addresses["ingest"]), (dealer, addresses["control"])):
        socket.linger, socket.sndtimeo = 0, 100
        load_client(Path(key)).apply(socket)
        socket.connect(address)
    n, begun = 0, time.monotonic()
    topics = (b"spikes", b"reward", b"stimuli", b"modulators", b"", b"\xff" * 40)  # none of them stops or stimulates
    while (now := time.monotonic()) < begun + seconds:
        if n > (now - begun) * rate:
            time.sleep(0.002)
            continue
        data = bytearray(rng.choice(inputs))
        data[rng.randrange(len(data) + 1) :] = rng.randbytes(rng.choice((0, 3, 40, 5000)))
        parts = [rng.choice(topics), b"\xc1" + bytes(data)][: rng.choice((1, 2, 2, 2))]  # c1 is no msgpack
        try:
            push.send_multipart(parts + [b"more"] * rng.choice((0, 0, 0, 3)), zmq.DONTWAIT)
            dealer.send_multipart([b"\xc1" + bytes(data)[:200]] * rng.choice((1, 1, 4)), zmq.DONTWAIT)
        except zmq.Again:
            time.sleep(0.001)
        n += 1
    print(json.dumps({"sent": n}), flush=True)


def control_flood(addresses: dict[str, str], seconds: float, key: str, rate: float) -> None:
    """Ask for status without end, and read no answer."""
    request, context, dealers = wire.pack_request(wire.Request("status")), zmq.Context(), []
    for _ in range(4):
        dealer = context.socket(zmq.DEALER)
        dealer.linger, dealer.rcvhwm = 0, 10
        load_client(Path(key)).apply(dealer)
        dealer.connect(addresses["control"])
        dealers.append(dealer)
    n, begun = 0, time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        if n > (now - begun) * rate:
            time.sleep(0.001)
            continue
        try:
            dealers[n % len(dealers)].send(request, zmq.DONTWAIT)
        except zmq.Again:
            time.sleep(0.001)
        n += 1
    print(json.dumps({"asked": n}), flush=True)


def intruder(addresses: dict[str, str], seconds: float, key: str | None) -> None:
    """Knock at every socket, again and again, and say what would do harm; say what was heard."""
    ends, heard, answered, n = time.monotonic() + seconds, 0, 0, 0
    stop, pause = wire.pack_ingest(wire.StopInput()), wire.pack_request(wire.Request("pause"))
    while time.monotonic() < ends:
        context = zmq.Context()
        push, sub, dealer = context.socket(zmq.PUSH), context.socket(zmq.SUB), context.socket(zmq.DEALER)
        sub.subscribe(b"")
        for socket, name in ((push, "ingest"), (sub, "output"), (dealer, "control")):
            socket.linger = 0
            if key is not None:
                load_client(Path(key)).apply(socket)
            socket.connect(addresses[name])
        for socket, parts in ((push, stop), (dealer, (pause,))):
            try:
                socket.send_multipart(parts, zmq.DONTWAIT)
            except zmq.Again:
                continue
        heard += bool(sub.poll(300))
        answered += bool(dealer.poll(100))
        n += 1
        context.destroy(0)
    print(json.dumps({"knocked": n, "heard": heard, "answered": answered}), flush=True)


WORKERS: dict[str, Callable[..., None]] = {
    "source": source,
    "witness": witness,
    "device": device,
    "flood": flood,
    "frozen": frozen,
    "nonsense": nonsense,
    "control_flood": control_flood,
    "intruder": intruder,
}

if __name__ == "__main__":
    try:
        WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))
    except KeyboardInterrupt:
        os._exit(0)
