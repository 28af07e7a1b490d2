"""How late ticks of 1 ms are in the daemon's loop, against a bare loop of clock_nanosleep, by turns in one run.

Run as ``python tests/bench/bench_lateness.py``. A tick is due at the stamp of its newest sample on our clock, which is
`t_sample` of its record; it is late by how much later the loop had that sample (`t_arrival`).
"""

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import FREE_PORTS, MEMORY, Running, wait_until

from neuromod.adapters.memory import MemorySource
from neuromod.bridge import native, realtime
from neuromod.bridge.config import RuntimeConfig, parse
from neuromod.bridge.native import CLOCK_MONOTONIC, TIMER_ABSTIME, call_clock, call_sleep_until
from neuromod.engine.compiled import jit

PERIOD_S = 1e-3
FIRST_LEFT_OUT = 200  # while threads start


@jit
def bare(functions: NDArray[np.int64], time: NDArray[np.int64], late: NDArray[np.float64]) -> None:
    """Sleep until each millisecond, and note how much later the clock says that it is."""
    due = call_clock(functions[native.LSL_LOCAL_CLOCK], ()) + 0.01
    for k in range(late.shape[0]):
        time[0] = np.int64(due)
        time[1] = np.int64((due - time[0]) * 1e9)
        call_sleep_until(
            functions[native.SLEEP_UNTIL], (np.int32(CLOCK_MONOTONIC), np.int32(TIMER_ABSTIME), time.ctypes.data, 0)
        )
        late[k] = call_clock(functions[native.LSL_LOCAL_CLOCK], ()) - due
        due += PERIOD_S


def of_bare_loop(n: int, runtime: RuntimeConfig) -> NDArray[np.float64]:
    """Lateness of `n` wakings of a bare loop in a thread that is prepared like the daemon's, in us."""
    functions, late = native.c_functions(), np.zeros(n)

    def run() -> None:
        realtime.prepare_loop_thread(runtime)
        bare(functions, np.zeros(2, np.int64), late)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return late[FIRST_LEFT_OUT:] * 1e6


def of_daemon(n: int, runtime: RuntimeConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lateness at which `n` ticks of a paced recording began, and at which they ended, in us."""
    rows = np.random.default_rng(5).uniform(0.0, 2.0, (n, 16)).astype(np.float32)
    source = MemorySource(rows, 1.0 / PERIOD_S, kind="features")
    config = parse(MEMORY + FREE_PORTS).model_copy(update={"runtime": runtime})
    with Running(config, source=source, speed=1.0) as running:
        wait_until(lambda: running.health["state"] == "ended", "the end", n * PERIOD_S + 60.0)
        ticks: Any = running.records.wait_for(n)[FIRST_LEFT_OUT:]
    return (ticks["t_arrival"] - ticks["t_sample"]) * 1e6, (ticks["t_tick"] - ticks["t_sample"]) * 1e6


def told(name: str, late_us: NDArray[np.float64]) -> tuple[float, float]:
    p50, p99 = np.percentile(late_us, [50, 99])
    print(f"{name:28} p50 {p50:8.1f}   p99 {p99:8.1f}   max {late_us.max():10.1f} us   n {len(late_us)}")
    return float(p50), float(p99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each loop in each round")
    parser.add_argument("--realtime", type=int, default=0, help="SCHED_FIFO priority of either loop's thread")
    options = parser.parse_args()
    if not native.c_functions()[native.SLEEP_UNTIL]:
        sys.exit("there is no clock_nanosleep on the clock of LSL here: nothing to compare with")
    n = int(options.seconds / PERIOD_S)
    runtime = RuntimeConfig(realtime_priority=options.realtime)
    for refused in realtime.prepare_process(runtime):
        print(refused)
    of_bare_loop(FIRST_LEFT_OUT + 1, runtime)  # compiles it
    found: dict[str, list[NDArray[np.float64]]] = {"bare clock_nanosleep": [], "tick began": [], "tick ended": []}
    for _ in range(options.rounds):
        found["bare clock_nanosleep"].append(of_bare_loop(n, runtime))
        began, ended = of_daemon(n, runtime)
        found["tick began"].append(began)
        found["tick ended"].append(ended)
    figures = {name: told(name, np.concatenate(parts)) for name, parts in found.items()}
    for name in ("tick began", "tick ended"):
        more = np.subtract(figures[name], figures["bare clock_nanosleep"])
        print(f"{name}, above bare:  p50 {more[0]:+.1f} us   p99 {more[1]:+.1f} us")
    priority = f"SCHED_FIFO {options.realtime}" if options.realtime else "no real-time priority"
    print(f"{priority}, liblsl {pylsl.library_version()}, by turns, {options.rounds} x {options.seconds:g} s each")


if __name__ == "__main__":
    main()
