"""Kills the recording daemon at random moments, and accounts for every tick that somebody saw.

``python tests/bench/kill_sessions.py --n 200`` starts that many daemons one after the other, drives each with stimuli,
rewards, armings and checkpoints, ends it by SIGKILL at a random moment, and then verifies, exports and replays what is
left of it. Exits with 1 where a log does not verify, a replay differs or leaves out what it should not, or a tick that
was published more than a second before the kill is in no log. A daemon takes some five seconds of one core to start.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pylsl

from neuromod.bridge.arming import write_key
from neuromod.bridge.client import Client, ClientTimeoutError, RefusedError
from neuromod.bridge.export_nwb import export_nwb
from neuromod.bridge.session import Session, find_sessions, verify
from neuromod.bridge.session_replay import replay_session
from neuromod.bridge.wire import SpikesMessage
from neuromod.engine.errors import NeuromodError

SESSION = """
source = {{kind = "zmq", block_ms = 1.0}}
record = {{folder = "{folder}/sessions", raw = {raw}, min_free_mb = 50.0}}
[timing]
stall_ms = 5000.0
[network.learning]
rate_per_s = 40.0
[decoder]
kind = "rates"
channels = [0, 1]
tau_ms = 50.0
events = [{{channel = 0, refractory_ms = 20.0}}]
[stimulation]
mode = "live"
key_file = "{folder}/key"
heartbeat_ms = 0.0
ledger = "{folder}/dose.json"
[[stimulation.electrodes]]
name = "e1"
area_um2 = 2000.0
material = "sirof"
impedance_kohm = 50.0
[[stimulation.programs]]
name = "pulse"
electrode = "e1"
amplitude_ua = -10.0
phase_us = 200.0
[[stimulation.triggers]]
event = 0
program = "pulse"
[sockets]
ingest = "tcp://127.0.0.1:*"
output = "tcp://127.0.0.1:*"
control = "tcp://127.0.0.1:*"
"""

OWED_S = 1.0  # what was published so long before the kill is in the log
LONGEST_S = 6.0
START_S = 180.0  # a first start compiles
CHUNK = 5  # stimuli sent at a time, every so many ms


def drive(client: Client, rng: np.random.Generator, key: bytes, folder: Path, stop: threading.Event) -> None:
    """Send a stimulus a millisecond, and now and then something else, until told or until nobody answers."""
    began, sent = time.monotonic(), 0
    armed = saved = 0.0
    while not stop.is_set():
        now = time.monotonic() - began
        try:
            for row in rng.uniform(0.0, 5.0, (CHUNK, 16)):
                client.send_stimuli(row)
            sent += CHUNK
            if rng.random() < 0.05:
                client.send_reward(float(rng.normal()))
            if now > armed:
                armed = now + 1.0
                client.arm(2.0, key)
            if now > saved:
                saved = now + 1.5
                client.request("checkpoint", path=str(folder / "there.checkpoint"))
        except RefusedError:
            pass
        except ClientTimeoutError:  # it has been killed
            return
        stop.wait(max(0.0, began + sent / 1000.0 - time.monotonic()))


def run_one(rng: np.random.Generator, folder: Path) -> dict[str, Any]:
    """Start, kill and judge one session."""
    raw = bool(rng.random() < 0.5)
    (folder / "session.toml").write_text(SESSION.format(folder=folder, raw=str(raw).lower()))
    write_key(folder / "key")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "neuromod.bridge.cli", "-v", "start", str(folder / "session.toml")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert daemon.stderr is not None
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        for line in daemon.stderr or ():
            lines.append(line)
            if "Ctrl-C stops" in line:
                started.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    seen: list[tuple[int, float]] = []
    stop = threading.Event()
    try:
        if not started.wait(START_S):
            raise RuntimeError("the daemon did not start:\n" + "".join(lines))
        text = "".join(lines)
        found = {name: re.search(rf"\b{name}: (tcp://\S+)", text) for name in ("ingest", "output", "control")}
        addresses = {name: match[1] for name, match in found.items() if match}
        moment = float(rng.uniform(0.0, LONGEST_S))
        with Client(**addresses, timeout_s=0.5) as client, client.subscribe("spikes") as heard:

            def listen() -> None:
                while not stop.is_set():
                    try:
                        message = heard.receive(0.1)
                    except ClientTimeoutError:
                        continue
                    if isinstance(message, SpikesMessage):
                        seen.append((message.tick, message.t_tick))

            listener = threading.Thread(target=listen)
            driver = threading.Thread(
                target=drive, args=(client, rng, (folder / "key").read_bytes().strip(), folder, stop)
            )
            listener.start()
            driver.start()
            time.sleep(moment)
            killed = pylsl.local_clock()
            daemon.kill()
            daemon.wait()
            time.sleep(0.2)  # what was sent is still on its way to the subscriber
            stop.set()
            driver.join()
            listener.join()
    finally:
        stop.set()
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        reader.join(5.0)

    session = find_sessions(folder / "sessions")[-1]
    report = verify(session)
    ticks = Session(session).records("ticks")
    # one that was killed before its first tick has nothing to export, and the exporter says so
    exported = export_nwb(session, folder / "out.nwb") if len(ticks) else {}
    result = replay_session(session)
    logged = set(ticks["tick"].tolist())
    owed = [tick for tick, t in seen if t < killed - OWED_S]
    return {
        "after_s": round(moment, 2),
        "raw": raw,
        "seen": len(seen),
        "owed": len(owed),
        "unaccounted": sum(tick not in logged for tick in owed),
        "lost_of_last_second": sum(tick not in logged for tick, t in seen if t >= killed - OWED_S),
        "logged": len(ticks),
        "verified": report.is_ok,
        "torn": report.is_torn,
        "empty": not len(ticks),
        "exported": bool(exported),
        "verdict": result.verdict,
        "compared": result.ticks + result.paused + result.fillers,
        "skipped": result.skipped,
        "decisions": result.decisions,
        "losses": result.losses,
        "difference": str(result.difference) if result.difference else None,
        "times_real_time": round(result.stream_s / result.wall_s, 1) if result.wall_s else None,
    }


def is_good(one: dict[str, Any]) -> bool:
    """Say whether a killed session is as it must be."""
    is_replayed = one["verdict"] == "same" if one["logged"] else one["verdict"] == "nothing"
    return bool(
        one["verified"]
        and one["exported"] != one["empty"]
        and is_replayed
        and not one["unaccounted"]
        and one["compared"] + one["skipped"] == one["logged"]
        and one["skipped"] <= 100  # the last turn of the collector, whose inputs may be missing
    )


def main() -> int:
    """Run them all, and print a line each and the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first one, to go on where another run ended"
    )
    args = parser.parse_args()
    totals: Counter[str] = Counter()
    for k in range(args.first, args.first + args.n):
        folder = Path(tempfile.mkdtemp(prefix="neuromod-kill-"))
        try:
            one = run_one(np.random.default_rng([args.seed, k]), folder)
        except NeuromodError as error:
            print(json.dumps({"session": k, "good": False, "error": str(error)}), flush=True)
            totals.update(sessions=1, failed=1)
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        good = is_good(one)
        print(json.dumps({"session": k, "good": good, **one}), flush=True)
        totals.update(sessions=1, good=good)
        names = (
            "verified",
            "torn",
            "empty",
            "exported",
            "seen",
            "owed",
            "unaccounted",
            "lost_of_last_second",
            "logged",
        )
        totals.update({name: int(one[name]) for name in (*names, "compared", "skipped", "decisions")})
        totals[one["verdict"]] += 1
    print(json.dumps({"totals": dict(totals)}))
    return 0 if totals["good"] == totals["sessions"] else 1


if __name__ == "__main__":
    sys.exit(main())
