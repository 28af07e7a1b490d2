"""How fast the engine is: `python tests/bench/bench_engine.py [--json] [--quick] [--peers-python PATH]`.

All that is compared runs in turns: a round calls everything once, a few milliseconds each, and a ratio is the median
over rounds of ratios within a round, so that what else the host does falls on both sides. Beside it stand absolute
times, medians too, which hold for this host alone. `floor.c` says what the floor is; where the time of a tick goes is
told by leaving parts out and by calling parts alone, which need not add up: a processor overlaps them.

Peers (Brian2, NEST) run in an interpreter of their own, given by --peers-python.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import loops
from bench.floor import FASTEST, Floor, NoFloorError, aligned, bare_config, build, compiler
from bench.peers import Peers

from neuromod.bridge.bench import host
from neuromod.engine.banks import Banks
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS, N_SENSORY
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.models.model import Model
from neuromod.engine.network import SpikingNetwork
from neuromod.engine.tick import tick

N_TICKS = 4096
N_CALLS = 2000
SLICE_NS = 1e6
N_BANKS, N_BANK_TICKS = 24, 12_000
TARGET_HZ = 20.0
LIF_LEARNS = "16 lif, learning"
FLOOR = "C floor"
ONE_BANK, MANY_BANKS = "1 bank on 1 core", f"{N_BANKS} banks on all cores"

Times = dict[str, NDArray[np.float64]]


class Subject(NamedTuple):
    """What one round calls once, and how many times that does what is measured."""

    call: Callable[[], Any]
    times: int


class Target(NamedTuple):
    """A figure that the engine is to reach: at most `limit`."""

    name: str
    values: NDArray[np.float64]  # one a round
    limit: float
    unit: str


class Workload:
    """A network and what drives it: noise about a level at which its neurons fire at some 20 Hz.

    Parameters
    ----------
    models : list of str
        Model of each channel; that of channel 14 counts for nothing.
    levels : list of float, optional
        Mean stimulus of each channel; found by bisection where left out, one for all.
    settings
        As for `bare_config`.
    """

    def __init__(self, models: list[str], levels: list[float] | None = None, **settings: Any) -> None:
        others = {i: {"model": name} for i, name in enumerate(models) if i not in (COINCIDENCE, INHIBITORY)}
        interneuron = {"model": models[INHIBITORY]}
        config = bare_config(channels=others, interneuron=interneuron, **settings)
        self.network = SpikingNetwork(config, seed=1)
        self.spikes = np.zeros(N_TICKS, dtype=np.int64)
        self.stimuli = aligned((N_TICKS, N_CHANNELS), np.float32)
        self._noise = np.random.default_rng(1).normal(1.0, 0.5, self.stimuli.shape)
        self.levels = levels or [self._find_level()] * N_CHANNELS
        self._start(self.levels)

    def _start(self, levels: list[float]) -> None:
        self.stimuli[:] = self._noise * levels
        self.network.reset()
        self.run()

    def _find_level(self) -> float:
        low, high = 0.0, 50.0
        for _ in range(12):
            level = (low + high) / 2.0
            self._start([level] * N_CHANNELS)
            low, high = (level, high) if self.rate_hz < TARGET_HZ else (low, level)
        return high

    def run(self) -> None:
        """One tick per row of the stimuli."""
        loops.ticks(self.network.state, self.stimuli, self.spikes)

    @property
    def rate_hz(self) -> float:
        """Mean rate of the sensory neurons in the latest run."""
        bits = self.spikes[:, np.newaxis] >> np.arange(N_SENSORY) & 1
        return float(bits.mean() * 1000.0 / self.network.dt_ms)

    def subject(self) -> Subject:
        """Ticks, to be timed: fewer where they take long, for a short call is seldom interrupted."""
        taken = []
        for _ in range(3):
            begin = time.perf_counter_ns()
            self.run()
            taken.append(time.perf_counter_ns() - begin)
        n = max(int(min(1.0, SLICE_NS / min(taken)) * N_TICKS), 100)
        return Subject(partial(loops.ticks, self.network.state, self.stimuli[:n], self.spikes[:n]), n)


def silent(models: list[str], *, kernels: bool = True) -> Workload:
    """A network in which nothing fires and nothing is learnt: its neurons alone, or not even these."""
    quiet = Workload(models, [0.0] * N_CHANNELS, rule="none")
    quiet.network.state[0]["bias"][:] = 0.0
    if not kernels:
        quiet.network.state[0]["models"] = 0
    return quiet


def mixture(names: list[str]) -> list[str]:
    """These models in turn over the channels."""
    return list(itertools.islice(itertools.cycle(names), N_CHANNELS))


def interleave(subjects: dict[str, Subject], n_rounds: int) -> Times:
    """Time every subject once a round; ns for one of what each counts, an array of one number a round.

    Each call follows one that is not timed: what others left in the caches is nobody's cost.
    """
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(n_rounds):
        for name, subject in subjects.items():
            subject.call()
            begin = time.perf_counter_ns()
            subject.call()
            taken[name].append((time.perf_counter_ns() - begin) / subject.times)
    return {name: np.array(values) for name, values in taken.items()}


def engine_subjects(notes: list[str], rates: dict[str, float]) -> dict[str, Subject]:
    """Everything but the peers, by name."""
    names = [model.name for model in MODELS]
    made: dict[str, Workload] = {}
    levels = {}
    for name in names:
        made[f"16 {name}, learning"] = own = Workload([name] * N_CHANNELS)
        levels[name] = own.levels[0]
    everything, no_hh = mixture(names), mixture([m.name for m in MODELS if not is_hodgkin_huxley(m)])
    if len(names) > 1:
        made["all models, learning"] = Workload(everything, [levels[name] for name in everything])
        made["all models without Hodgkin-Huxley, learning"] = Workload(no_hh, [levels[name] for name in no_hh])
        made["all models, silent"] = silent(everything)
        made |= {f"16 {name}, silent": silent([name] * N_CHANNELS) for name in names}
    lif = made[LIF_LEARNS]
    level = [levels["lif"]] * N_CHANNELS
    made["16 lif, learning, dopamine 0"] = Workload(["lif"] * N_CHANNELS, level, dopamine=0.0)
    made["16 lif, no learning"] = Workload(["lif"] * N_CHANNELS, level, rule="none")
    made["16 lif, silent"] = silent(["lif"] * N_CHANNELS)
    made["no neurons"] = silent(["lif"] * N_CHANNELS, kernels=False)
    subjects = {}
    try:
        floor, bits = Floor(build(), lif.network), np.zeros(N_TICKS, dtype=np.int64)
        subjects[FLOOR] = Subject(lambda: floor.run(lif.stimuli, bits), N_TICKS)
    except NoFloorError as error:
        notes.append(f"no C floor: {error}")
    subjects |= {name: work.subject() for name, work in made.items()}
    rates |= {name: work.rate_hz for name, work in made.items() if work.rate_hz > 0.0}
    return subjects | part_subjects(lif) | call_subjects() | bank_subjects()


def is_hodgkin_huxley(model: Model) -> bool:
    """Whether a model has the channels of Hodgkin and Huxley, whose gates cost most."""
    return model.name in ("hodgkin_huxley", "pospischil")


def part_subjects(lif: Workload) -> dict[str, Subject]:
    """Parts of an all-LIF learning tick, each in a loop of its own on a copy of the network."""

    def copy() -> Any:
        network = SpikingNetwork(lif.network.config)
        network.restore(lif.network.checkpoint())
        return network.state

    spikes, values = lif.spikes.copy(), np.random.default_rng(0).uniform(0.1, 0.9, N_TICKS).astype(np.float32)
    parts: dict[str, tuple[Callable[..., None], NDArray[Any]]] = {
        "part: drive": (loops.drives, lif.stimuli),
        "part: kick": (loops.kicks, spikes),
        "part: neurons": (loops.advances, spikes),
        "part: spikes": (loops.bookkeeping, spikes),
        "part: plasticity": (loops.lessons, spikes),
        "modulator set, all relaxed": (loops.updates, values),
    }
    return {name: Subject(partial(loop, copy(), rows), N_TICKS) for name, (loop, rows) in parts.items()}


def call_subjects() -> dict[str, Subject]:
    """Calls from Python, one tick each."""
    work = Workload(["lif"] * N_CHANNELS, [1.0] * N_CHANNELS)
    state, row = work.network.state, work.stimuli[0]

    def calls(function: Callable[[Any, Any], int]) -> None:
        for _ in itertools.repeat(None, N_CALLS):
            function(state, row)

    return {
        "empty call from Python": Subject(lambda: calls(loops.empty), N_CALLS),
        "learning tick from Python": Subject(lambda: calls(tick), N_CALLS),
    }


def bank_subjects() -> dict[str, Subject]:
    """One bank on one core, and many on all."""
    stimuli = np.random.default_rng(2).normal(0.5, 0.25, (N_BANK_TICKS, N_CHANNELS)).astype(np.float32)
    one, many = (Banks(bare_config(), seeds=range(n)) for n in (1, N_BANKS))
    return {
        ONE_BANK: Subject(partial(one.run, stimuli, workers=1), N_BANK_TICKS),
        MANY_BANKS: Subject(partial(many.run, stimuli), N_BANK_TICKS),
    }


def targets(times: Times) -> list[Target]:
    """What the engine is to reach, where it was measured."""
    found = []

    def add(name: str, values: NDArray[np.float64] | None, limit: float, unit: str) -> None:
        if values is not None:
            found.append(Target(name, values, limit, unit))

    def ratio(above: str, below: str) -> NDArray[np.float64] | None:
        return times[above] / times[below] if above in times and below in times else None

    add("all-LIF learning tick / C floor", ratio(LIF_LEARNS, FLOOR), 6.0, "x")
    add("all-LIF learning tick", times[LIF_LEARNS], 150.0, "ns")
    add("mixture without Hodgkin-Huxley", times.get("all models without Hodgkin-Huxley, learning"), 1000.0, "ns")
    add("modulator update", times["modulator set, all relaxed"], 20.0, "ns")
    add("16 Izhikevich", times.get("16 izhikevich, learning"), 250.0, "ns")
    add("16 Hodgkin-Huxley", times.get("16 hodgkin_huxley, learning"), 3000.0, "ns")
    add("all models / sum of the parts", ratio_to_parts(times), 1.1, "x")
    add("tick from Python / empty call", ratio("learning tick from Python", "empty call from Python"), 2.0, "x")
    add("tick from Python", times["learning tick from Python"], 600.0, "ns")
    # 13 on two cores
    add(f"{N_BANKS} banks / 1 bank", ratio(MANY_BANKS, ONE_BANK), N_BANKS / min(n_cores(), N_BANKS) * 13.0 / 12.0, "x")
    return found


def n_cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ratio_to_parts(times: Times) -> NDArray[np.float64] | None:
    """A tick of all models over the tick without neurons and what each model by itself adds to that.

    All silent and without learning: what spikes cost is the same whatever fires, and would be counted for each part.
    The parts are medians over rounds: a sum of many within one round is seldom free of an interruption.
    """
    if "all models, silent" not in times:
        return None
    base = np.median(times["no neurons"])
    parts = [np.median(times[f"16 {model.name}, silent"]) - base for model in MODELS]
    ratio: NDArray[np.float64] = times["all models, silent"] / (base + sum(parts))
    return ratio


def summary(values: NDArray[np.float64]) -> dict[str, float]:
    """Median and quartiles over rounds."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "quarter": float(low), "three_quarters": float(high)}


def compiler_version() -> str:
    """First line of what the compiler says of itself."""
    try:
        said = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    except NoFloorError as error:
        return str(error)
    return f"{said.partition(os.linesep)[0]} {' '.join(FASTEST)}"


def measure(n_rounds: int, peers_python: str | None) -> dict[str, Any]:
    """The whole report."""
    before = os.getloadavg() if hasattr(os, "getloadavg") else ()
    notes: list[str] = []
    rates: dict[str, float] = {}
    subjects = engine_subjects(notes, rates)
    times = interleave(subjects, n_rounds)
    found = targets(times)
    report: dict[str, Any] = {
        "host": host(before) | {"compiler": compiler_version()},
        "settings": {"rounds": n_rounds, "ticks": N_TICKS},
        "targets": [
            summary(t.values)
            | {"name": t.name, "limit": t.limit, "unit": t.unit, "met": bool(np.median(t.values) <= t.limit)}
            for t in found
        ],
        "ns": {name: summary(values) for name, values in times.items()},
        "rates_hz": rates,
        "peers": {},
        "notes": notes,
    }
    if peers_python is None:
        notes.append("no peers: --peers-python names no interpreter that has Brian2 or NEST")
    else:
        report["peers"] = measure_peers(peers_python, subjects[LIF_LEARNS], notes)
    return report


def measure_peers(python: str, ours: Subject, notes: list[str], n_rounds: int = 5) -> dict[str, Any]:
    """The same network in other simulators, in turns with ours."""
    with Peers(python) as peers:
        notes += peers.notes
        subjects = {name: Subject(partial(peers.run, name), count) for name, count in peers.counts.items()}
        times = interleave({"ours": ours} | subjects, n_rounds)
    return {name: {"ns": summary(times[name]), "times_ours": summary(times[name] / times["ours"])} for name in subjects}


def show(report: dict[str, Any]) -> None:
    """Print tables."""
    for key, value in report["host"].items():
        print(f"{key}: {value}")
    print(f"\n{'':<46}{'median':>9}{'quartiles':>20}{'at most':>10}")
    for row in report["targets"]:
        quartiles = f"{row['quarter']:.2f} to {row['three_quarters']:.2f}"
        verdict = "" if row["met"] else "  missed"
        print(f"{row['name']:<46}{row['median']:>9.2f}{quartiles:>20}{row['limit']:>10g} {row['unit']}{verdict}")
    print(f"\n{'ns each':<46}{'median':>9}{'quartiles':>20}{'Hz':>10}")
    for name, row in report["ns"].items():
        quartiles = f"{row['quarter']:.1f} to {row['three_quarters']:.1f}"
        rate = f"{report['rates_hz'][name]:.0f}" if name in report["rates_hz"] else ""
        print(f"{name:<46}{row['median']:>9.1f}{quartiles:>20}{rate:>10}")
    for name, row in report["peers"].items():
        print(f"{name:<46}{row['ns']['median']:>9.0f} ns a tick, {row['times_ours']['median']:.0f} times ours")
    for note in report["notes"]:
        print(note)


def main() -> None:
    """Print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20 rounds rather than 200")
    parser.add_argument("--peers-python", help="interpreter that has brian2 or nest-simulator")
    arguments = parser.parse_args()
    report = measure(20 if arguments.quick else 200, arguments.peers_python)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


if __name__ == "__main__":
    main()
