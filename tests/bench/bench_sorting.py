"""How well and how fast units are recognised in the loop: `python tests/bench/bench_sorting.py --cache FOLDER [...]`.

Recordings are drawn from seeds (`sorting_truth.py`) and kept in FOLDER with what the peers reach (`sorting_peers.py`).

accuracy    templates from the true spikes of the first part, scored on the last: ours against the best template
            matching of spikeinterface, unit by unit; and how long it takes, from a trough and of a core
drift       the same before and after slow change, templates followed or not
end-to-end  an offline sorter's spikes make the templates: the online sorter against the offline one, on the last part

The real shapes and trains of `--hybrid` need NEUROMOD_RECORDINGS.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.sorting_peers import PEERS, measure, recording_of
from bench.sorting_runs import CHUNK, LEAD_S, bundle_from_truth, delays_ms, estimate_from, run, run_held_out
from bench.sorting_truth import BLOCK, FREQUENCY, UV_PER_BIT, Floats, Truth, neuropixels, score, utah

from neuromod.bridge.bench import host
from neuromod.sorting import sorter_process
from neuromod.sorting.bundle import Bundle

MAKERS = {"utah": utah, "neuropixels": neuropixels}
BELOW_PEER = {"utah": -0.01, "neuropixels": -0.02}
REAL_TIME = {"utah": 50.0, "neuropixels": 3.0}
P999_MS = {"utah": 0.2, "neuropixels": 1.0}
P99_DELAY_MS = 2.5
LOST = 0.03
OFFLINE = "tridesclous2"
DRIFTS: list[tuple[str, Any, dict[str, Any]]] = [
    ("utah", utah, {"slow": "fade", "test_s": 120.0}),
    ("neuropixels", neuropixels, {"slow": "drift", "test_s": 600.0}),
    ("neuropixels", neuropixels, {"slow": "step", "test_s": 120.0}),
]
SMALL_PROBE: dict[str, Any] = {"n_channels": 96, "n_units": 50, "n_background": 100, "train_s": 20.0}
"""A quarter of a Neuropixels probe is enough to drift by."""


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and its 95 % interval, normal: hundreds of units."""
    mean, error = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - error, mean + error


def accuracy(probe: str, seeds: list[int], cache: Path, *, hybrid: bool, duration_s: float | None) -> dict[str, Any]:
    """Ours against the best peer, and delays and CPU time."""
    parts: dict[str, list[NDArray[np.float64]]] = {"ours": []}
    delays, cpu = [], []
    for seed in seeds:
        scenario = MAKERS[probe](seed, hybrid=hybrid, **({"test_s": duration_s} if duration_s else {}))
        truth = Truth(scenario)
        signal = truth.cached(cache)
        found, reached = run_held_out(bundle_from_truth(truth, signal), truth, signal)
        parts["ours"].append(reached.accuracy)
        delays.append(delays_ms(found, truth))
        cpu.append(found.cpu_ns / 1e6)
        whitened = probe == "neuropixels"
        names = [name for name, peer in PEERS.items() if peer.method != "nearest"]
        names = [name for name in names if PEERS[name].method != "tdc-peeler" or PEERS[name].whitened == whitened]
        for name, theirs in measure(scenario, cache, names).items():
            parts.setdefault(name, []).append(np.array(theirs["accuracy"]))
    pooled = {name: np.concatenate(values) for name, values in parts.items() if len(values) == len(seeds)}
    best = max((name for name in pooled if name != "ours"), key=lambda name: float(pooled[name].mean()))
    mean, low, high = interval(pooled["ours"] - pooled[best])
    chunk_ms, delay_ms = np.concatenate(cpu), np.concatenate(delays)
    p50, p999 = (float(v) for v in np.percentile(chunk_ms, (50, 99.9)))
    real_time = CHUNK / FREQUENCY * 1e3 / p50
    p99 = float(np.percentile(delay_ms, 99))
    return {
        "accuracy": {name: float(values.mean()) for name, values in pooled.items()},
        "by_seed": {name: [float(v.mean()) for v in values] for name, values in parts.items()},
        "best_peer": best,
        "difference": {"mean": mean, "low": low, "high": high, "met": low > BELOW_PEER[probe]},
        "delay_ms": {"p50": float(np.median(delay_ms)), "p99": p99, "met": p99 <= P99_DELAY_MS},
        "cpu_ms": {"p50": p50, "p99.9": p999, "met": p999 <= P999_MS[probe]},
        "real_time": {"ratio": real_time, "met": real_time >= REAL_TIME[probe]},
        "n_units": len(pooled["ours"]),
    }


def drift(seed: int, probes: list[str], duration_s: float | None) -> list[dict[str, Any]]:
    """Accuracy lost to slow change, by what changes, templates followed or not."""
    rows = []
    for probe, make, options in DRIFTS:
        if probe not in probes:
            continue
        scenario = make(seed, **(SMALL_PROBE if probe == "neuropixels" else {}) | options)
        if duration_s is not None:
            scenario = dataclasses.replace(scenario, test_s=duration_s)
        still = Truth(dataclasses.replace(scenario, slow="none"))
        moving = Truth(scenario)
        bundle = bundle_while_still(still)
        base = last_quarter(bundle, still, tracking=True)
        reached = {tracking: last_quarter(bundle, moving, tracking=tracking) for tracking in (True, False)}
        lost = {tracking: float((base - values).mean()) for tracking, values in reached.items()}
        rows.append(
            {
                "probe": probe, "change": scenario.slow, "seconds": scenario.test_s, "seed": seed,
                "still": float(base.mean()),
                "tracking": float(reached[True].mean()), "off": float(reached[False].mean()),
                "lost_tracking": lost[True], "lost_off": lost[False], "met": lost[True] <= LOST,
            }
        )  # fmt: skip
    return rows


def bundle_while_still(truth: Truth) -> Bundle:
    """Templates from the first part of a recording that is never whole in memory."""
    n_blocks = -(-truth.scenario.n_train // BLOCK)
    first = np.concatenate(list(itertools.islice(truth.blocks(), n_blocks)))
    return estimate_from(truth, lambda begin, end: first[begin:end])


def last_quarter(bundle: Bundle, truth: Truth, *, tracking: bool) -> NDArray[np.float64]:
    """Accuracy of each unit once change has come to its end: in the last quarter of what is sorted."""
    scenario = truth.scenario
    skipped = scenario.n_train // BLOCK - 1
    blocks: Iterator[Floats] = itertools.islice(truth.blocks(), skipped, None)
    found = run(bundle, blocks, skipped * BLOCK, tracking=tracking)
    begin = scenario.n_samples - (scenario.n_samples - scenario.n_train) // 4
    reached = score(truth.part(begin, scenario.n_samples), found.part(begin, scenario.n_samples), scenario.n_units)
    return reached.accuracy


def end_to_end(probe: str, seed: int, cache: Path, duration_s: float | None) -> dict[str, Any]:
    """The offline sorter's own result on the last part, and what its first part makes the online sorter reach."""
    scenario = MAKERS[probe](seed, train_s=40.0, **({"test_s": duration_s} if duration_s else {}))
    if probe == "neuropixels":
        scenario = dataclasses.replace(scenario, **SMALL_PROBE | {"train_s": 40.0})
    truth = Truth(scenario)
    signal = truth.cached(cache)
    with tempfile.TemporaryDirectory() as folder:
        found = sorter_process.run(
            recording_of(truth, signal), OFFLINE, sorter_process.parameters_of(OFFLINE, {}, seed),
            Path(folder) / "sorter", seed=seed,
        )  # fmt: skip
    n_units, n_train, n_samples = len(found.names), scenario.n_train, scenario.n_samples
    samples, units = found.samples, found.units
    learnt, last = samples < n_train, samples >= n_train
    first = n_train - round(LEAD_S * FREQUENCY)
    scale = np.float32(UV_PER_BIT)
    bundle = estimate_from(
        truth,
        lambda begin, end: signal[begin:end].astype(np.float32) * scale,
        spikes=(samples[learnt], units[learnt]),
        n_units=n_units,
    )
    online = run(bundle, iter([signal[first:].astype(np.float32) * scale]), first)
    true = truth.part(n_train, n_samples)
    theirs = score(true, (samples[last], units[last]), scenario.n_units, n_found=n_units)
    ours = score(true, online.part(n_train, n_samples), scenario.n_units, n_found=n_units)
    mean, low, high = interval(ours.accuracy - theirs.accuracy)
    return {
        "probe": probe, "seed": seed, "sorter": OFFLINE, "units_found": n_units,
        "offline": float(theirs.accuracy.mean()), "online": float(ours.accuracy.mean()),
        "difference": {"mean": mean, "low": low, "high": high, "met": mean >= -0.02},
    }  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """Print tables."""
    console = Console(width=140)

    def verdict(met: bool) -> str:
        return "" if met else "[red]missed[/red]"

    for name, row in report["accuracy"].items():
        table = Table("", "accuracy", "by seed", title=f"{name}, {row['n_units']} units")
        for who, mean in sorted(row["accuracy"].items(), key=lambda pair: -pair[1]):
            table.add_row(who, f"{mean:.4f}", "  ".join(f"{v:.3f}" for v in row["by_seed"][who]))
        console.print(table)
        d, delay, cpu, fast = row["difference"], row["delay_ms"], row["cpu_ms"], row["real_time"]
        table = Table("", "measured", "")
        table.add_row(
            f"ours - {row['best_peer']}, points, 95 %",
            f"{100 * d['mean']:+.2f} ({100 * d['low']:+.2f} to {100 * d['high']:+.2f})", verdict(d["met"]),
        )  # fmt: skip
        table.add_row("trough to event, ms, p50; p99", f"{delay['p50']:.2f}; {delay['p99']:.2f}", verdict(delay["met"]))
        table.add_row(
            "CPU of 1 ms, us, p50; p99.9", f"{1e3 * cpu['p50']:.1f}; {1e3 * cpu['p99.9']:.1f}", verdict(cpu["met"])
        )
        table.add_row("against real time, p50", f"{fast['ratio']:.1f} x", verdict(fast["met"]))
        console.print(table)
    if report["drift"]:
        table = Table("slow change", "s", "seed", "still", "tracking", "off", "lost, tracking", "lost, off", "")
        for row in report["drift"]:
            table.add_row(
                f"{row['probe']}, {row['change']}", f"{row['seconds']:g}", str(row["seed"]),
                *(f"{row[key]:.3f}" for key in ("still", "tracking", "off", "lost_tracking", "lost_off")),
                verdict(row["met"]),
            )  # fmt: skip
        console.print(table)
    if report["end_to_end"]:
        table = Table("end to end", "seed", "offline", "online", "difference", "")
        for row in report["end_to_end"]:
            d = row["difference"]
            table.add_row(
                f"{row['probe']}, {row['sorter']}", str(row["seed"]), f"{row['offline']:.3f}", f"{row['online']:.3f}",
                f"{100 * d['mean']:+.2f} ({100 * d['low']:+.2f} to {100 * d['high']:+.2f})", verdict(d["met"]),
            )  # fmt: skip
        console.print(table)


def main() -> None:
    """Measure what was asked for; print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for recordings and peers' results; some GB")
    parser.add_argument("--only", nargs="+", choices=("accuracy", "drift", "end-to-end"))
    parser.add_argument("--probe", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--duration", type=float, help="seconds that are scored, or sorted while something changes")
    parser.add_argument("--hybrid", action="store_true", help="real shapes and trains as well")
    parser.add_argument("--json", type=Path, help="file for the report")
    arguments = parser.parse_args()
    parts = arguments.only or ["accuracy", "drift", "end-to-end"]
    arguments.cache.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "host": host(os.getloadavg()), "seeds": arguments.seeds, "accuracy": {}, "drift": [], "end_to_end": [],
    }  # fmt: skip
    for probe in arguments.probe:
        for hybrid in (False, True) if arguments.hybrid else (False,):
            if "accuracy" in parts:
                name = f"{probe}, {'hybrid' if hybrid else 'generated'}"
                report["accuracy"][name] = accuracy(
                    probe, arguments.seeds, arguments.cache, hybrid=hybrid, duration_s=arguments.duration
                )
    if "drift" in parts:
        report["drift"] = [row for seed in arguments.seeds for row in drift(seed, arguments.probe, arguments.duration)]
    if "end-to-end" in parts:
        report["end_to_end"] = [
            end_to_end(probe, seed, arguments.cache, arguments.duration)
            for probe in arguments.probe
            for seed in arguments.seeds
        ]
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
