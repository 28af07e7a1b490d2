"""How long one tick takes, a million of them: `python tests/bench/bench_tick.py [--json]`.

Each tick is timed on its own inside one compiled loop, the reading of the clock included. A deadline is missed where a
tick takes longer than the millisecond that it stands for.
"""

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.bench import host
from neuromod.bridge.native import LSL_LOCAL_CLOCK, c_functions, call_clock
from neuromod.engine.compiled import jit
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import set_modulator, tick

N_TICKS = 1_000_000
STIMULI = 4096
DEADLINE_NS = 1e6


@jit
def timed(
    functions: NDArray[np.int64], network: Any, stimuli: NDArray[np.float32], busy: bool, took: NDArray[np.float64]
) -> None:
    """Tick and take the time, with a modulator set before each tick where `busy`."""
    address = functions[LSL_LOCAL_CLOCK]
    for k in range(took.shape[0]):
        begin = call_clock(address, ())
        if busy:
            set_modulator(network, k & 3, np.float32(0.5))
        tick(network, stimuli[k % stimuli.shape[0]])
        took[k] = call_clock(address, ()) - begin


def measure(busy: bool) -> dict[str, float]:
    """Percentiles in ns, and missed deadlines."""
    network = SpikingNetwork(seed=0)
    stimuli = np.random.default_rng(0).normal(8.0, 4.0, (STIMULI, 16)).astype(np.float32)
    took = np.zeros(N_TICKS)
    timed(c_functions(), network.state, stimuli, busy, took[:1000])
    timed(c_functions(), network.state, stimuli, busy, took)
    ns = took * 1e9
    found = {f"p{q:g}": float(np.percentile(ns, q)) for q in (50, 99, 99.9)}
    return found | {"max": float(ns.max()), "missed": int((ns > DEADLINE_NS).sum())}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows = {"tick": measure(busy=False), "tick, a modulator set before each": measure(busy=True)}
    if as_json:
        print(json.dumps({"host": host(), "n_ticks": N_TICKS, "ns": rows}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in host().items()))
    print(f"{f'ns, {N_TICKS} ticks':<36}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>10}{'missed':>8}")
    for name, row in rows.items():
        print(f"{name:<36}" + "".join(f"{row[q]:>{w}.0f}" for q, w in zip(row, (8, 8, 8, 10, 8), strict=True)))


if __name__ == "__main__":
    main()
