"""What a tick of the simulated board costs: `python tests/bench/bench_fpga.py [--json] [--rounds N] [--ticks N]`.

By turns, so that all meet the same machine: the simulation alone, in this process; round trips at 1 kHz through the
board's pseudo-terminal, from the write to the read that brings the answer; and the same bytes echoed by a process that
does nothing with them, which is the floor. The ratio is of medians, the round trip's to the floor's.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import time
import tty
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga import wire
from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.board_model import BoardModel
from neuromod.adapters.fpga.simulated import SimulatedBoard
from neuromod.bridge.bench import host
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.images import to_words

PERIOD_NS = 1_000_000
BYTES_BACK = 72
TIMEOUT_S = 5.0
_ECHO = """
import os, select, sys
fd = int(sys.argv[1])
while True:
    select.select((fd,), (), ())
    os.read(fd, 4096)
    os.write(fd, bytes([1]) * int(sys.argv[2]))
"""


def stimuli(n_ticks: int) -> NDArray[np.int16]:
    """Levels of 0 to 3 for 20 ticks each."""
    drawn = np.random.default_rng(1).uniform(0, 3, (-(-n_ticks // 20), 16))
    return quantised_stimuli(np.repeat(drawn, 20, axis=0)[:n_ticks], 1000.0)


def paced(n: int, once: Callable[[], int]) -> list[int]:
    """Do something n times, a millisecond apart; what it returns."""
    found, due_ns = [], time.perf_counter_ns()
    for _ in range(n):
        due_ns += PERIOD_NS
        while (left_ns := due_ns - time.perf_counter_ns()) > 0:
            time.sleep(max(0, left_ns - 100_000) / 1e9)  # the rest is waited for awake
        found.append(once())
    return found


class Echo:
    """A process that answers every read at a pseudo-terminal with as many bytes as a board answers a tick with."""

    def __init__(self, frame: bytes, stack: ExitStack) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        process = subprocess.Popen([sys.executable, "-c", _ECHO, str(master), str(BYTES_BACK)], pass_fds=(master,))
        stack.callback(process.wait)
        stack.callback(process.kill)
        self._fd, self._frame = slave, frame

    def once(self) -> int:
        begin_ns, n = time.perf_counter_ns(), 0
        os.write(self._fd, self._frame)
        while n < BYTES_BACK:
            if not select.select((self._fd,), (), (), TIMEOUT_S)[0]:
                raise SystemExit("the echo does not answer")
            n += len(os.read(self._fd, 4096))
        return time.perf_counter_ns() - begin_ns


def percentiles(ns: list[int]) -> dict[str, float]:
    """In microseconds."""
    return {f"p{q}": round(float(np.percentile(ns, q)) / 1e3, 1) for q in (10, 50, 99)}


def measure(n_rounds: int, n_ticks: int) -> dict[str, Any]:
    """Times of all three, and the machine."""
    network = FixedNetwork()
    rows = stimuli(n_rounds * n_ticks)
    frames = [wire.pack_tick(k, k, row) for k, row in enumerate(rows)]
    alone: list[int] = []
    through: list[int] = []
    echoed: list[int] = []
    model = BoardModel("neuromod", to_words(network.state))
    with ExitStack() as stack:
        simulated = stack.enter_context(SimulatedBoard(words=to_words(network.state)))
        board = Board(simulated.path)
        board.open()
        stack.callback(board.close)
        board.load(network.state)
        echo = Echo(frames[0], stack)
        ticks = iter(range(len(rows)))

        def tick() -> int:
            k = next(ticks)
            board.submit(k, rows[k])
            if not (answers := board.poll(TIMEOUT_S)):
                raise SystemExit("the board does not answer")
            return answers[0].round_trip_ns

        clocks = model.clocks
        for start in range(0, len(rows), n_ticks):
            for frame in frames[start : start + n_ticks]:
                begin_ns = time.perf_counter_ns()
                model.run(frame)
                alone.append(time.perf_counter_ns() - begin_ns)
            through += paced(n_ticks, tick)
            echoed += paced(n_ticks, echo.once)
        clocks_per_tick = (model.clocks - clocks) / len(rows)
    return {
        "host": host(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "ticks": len(rows),
        "clocks_per_tick": clocks_per_tick,
        "simulation_us": percentiles(alone),
        "round_trip_us": percentiles(through),
        "echo_us": percentiles(echoed),
        "ratio": round(float(np.median(through) / np.median(echoed)), 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ticks", type=int, default=500, help="of each round")
    options = parser.parse_args()
    results = measure(options.rounds, options.ticks)
    if options.json:
        print(json.dumps(results))
        return
    print(f"{results['ticks']} ticks of {results['clocks_per_tick']:.0f} clocks; load {results['load']}")
    for name, label in (
        ("simulation_us", "simulation alone"),
        ("round_trip_us", "round trip at 1 kHz"),
        ("echo_us", "bare echo at 1 kHz"),
    ):
        print(f"{label:20}", ", ".join(f"{key} {value:.0f} us" for key, value in results[name].items()))
    print(f"ratio of medians     {results['ratio']:.2f}")


if __name__ == "__main__":
    main()
