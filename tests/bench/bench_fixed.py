"""How far fixed point is from floating point: `python tests/bench/bench_fixed.py [--json] [--recordings FOLDER]`.

Networks learn from the same stimuli and rewards in fixed point, in floating point, and in floating point with stimuli
moved by half a step of Q8.8. The last is the measure: a recurrent network is chaotic, and parts from itself as well.
Then the four-choice task, and how long a tick takes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.bench import host
from neuromod.engine.config import InhibitionConfig, NetworkConfig
from neuromod.engine.fixed_host import HostedFixedNetwork
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.fixed_tick import fixed_run
from neuromod.engine.four_choice import accuracy, quiet_config, train
from neuromod.engine.network import SpikingNetwork

REWARD_EVERY = 1000
HALF_STEP = 2.0**-9
WITHIN = (0, 1, 2)

Rows = NDArray[np.floating[Any]]
Raster = NDArray[np.bool_]


def steps(run: int, n_ticks: int) -> Rows:
    """Levels of 0 to 3 for 20 ticks each."""
    drawn = np.random.default_rng([run, 1]).uniform(0, 3, (-(-n_ticks // 20), 16))
    return np.repeat(drawn, 20, axis=0)[:n_ticks]


def cut(rows: Rows, run: int, n_runs: int, n_ticks: int) -> Rows:
    """A stretch of a recording; those of all runs spread over its length."""
    if len(rows) < n_ticks:
        raise SystemExit(f"the recording has {len(rows)} ticks, fewer than --ticks {n_ticks}")
    start = run * (len(rows) - n_ticks) // max(1, n_runs - 1)
    return rows[start : start + n_ticks]


def utah_counts(folder: Path) -> Rows:
    """Counts of the 14 most variable channels in bins of 50 ms, as deviations: 0.5 for the mean, 0.5 a deviation."""
    from scipy.io import loadmat

    (path,) = (folder / "m1-utah-wristflexion-jango").glob("*.mat")
    counts = loadmat(path, squeeze_me=True, struct_as_record=False)["train_data"].spikeratedata.astype(float)
    chosen = counts[:, np.argsort(counts.var(axis=0))[-14:]]
    values = np.clip(0.5 + (chosen - chosen.mean(axis=0)) / chosen.std(axis=0) / 2, 0, 3)
    return np.repeat(np.pad(values, ((0, 0), (0, 2))), 50, axis=0)


def unit_rates(folder: Path) -> Rows:
    """Rates of the 14 busiest units over the last 30 ms, 1 where a unit has its mean."""
    from scipy.signal import lfilter

    place = folder / "neuropixels-nhp-units"
    ticks = np.load(place / "spike_times.npy").reshape(-1) // 30
    units = np.load(place / "spike_clusters.npy").reshape(-1)
    names, counts = np.unique(units, return_counts=True)
    trains = np.zeros((int(ticks.max()) + 1, 16))
    for k, name in enumerate(names[np.argsort(counts)[-14:]]):
        np.add.at(trains[:, k], ticks[units == name].astype(np.int64), 1.0)
    decay = np.exp(-1 / 30)
    rates = lfilter([1 - decay], [1, -decay], trains, axis=0)
    return np.asarray(rates / np.maximum(trains.mean(axis=0), 1e-9))


def learn(network: Any, stimuli: Rows, run: int) -> Raster:
    """Run with a reward of -0.5 to 0.5 every second."""
    rewards = np.random.default_rng([run, 2]).uniform(-0.5, 0.5, -(-len(stimuli) // REWARD_EVERY))
    rasters = []
    for k, reward in enumerate(rewards):
        network.add_reward(float(reward))
        rasters.append(network.run(stimuli[k * REWARD_EVERY : (k + 1) * REWARD_EVERY].astype(np.float32)))
    return np.concatenate(rasters)


def matched(a: Raster, b: Raster, within: int) -> float:
    """Share of the spikes of both that have one of the other on their channel, at most so many ticks away."""
    if not a.any() and not b.any():
        return 1.0

    def near(raster: Raster) -> Raster:
        spread = raster.copy()
        for k in range(1, within + 1):
            spread[k:] |= raster[:-k]
            spread[:-k] |= raster[k:]
        return spread

    return float(((a & near(b)).sum() + (b & near(a)).sum()) / (a.sum() + b.sum()))


def distance(ours: Raster, theirs: Raster, our_weights: Rows, their_weights: Rows) -> dict[str, Any]:
    """Everything by which two runs differ."""
    counts, others = ours.sum(axis=0), theirs.sum(axis=0)
    fires = others >= 100
    count_errors = np.abs(counts - others)[fires] / others[fires]
    rows = np.flatnonzero((ours != theirs).any(axis=1))
    weights = np.abs(our_weights - their_weights)
    return {
        "first_difference": int(rows[0]) if len(rows) else None,
        **{f"within_{k}": matched(ours, theirs, k) for k in WITHIN},
        "count_error_mean": float(count_errors.mean()),
        "count_error_max": float(count_errors.max()),
        "weight_error_mean_mv": float(weights.mean()),
        "weight_error_max_mv": float(weights.max()),
    }


def compare(name: str, stimuli: Callable[[int], Rows], n_runs: int, **changes: Any) -> dict[str, Any]:
    """Fixed against floating point, and floating point against itself, over runs."""
    fixed_runs, float_runs, rates, moved_weights = [], [], [], []
    for run in range(n_runs):
        rows = stimuli(run)
        config = NetworkConfig(seed=run).model_copy(update=changes)
        fixed, floating, other = HostedFixedNetwork(config), SpikingNetwork(config), SpikingNetwork(config)
        start = floating.weights
        theirs = learn(floating, rows, run)
        fixed_runs.append(distance(learn(fixed, rows, run), theirs, fixed.weights, floating.weights))
        float_runs.append(distance(learn(other, rows + HALF_STEP, run), theirs, other.weights, floating.weights))
        rates.append(float(theirs[:, :14].mean() * 1000))
        moved_weights.append(float(np.abs(floating.weights - start).max()))
    return {
        "name": name,
        "rate_hz": statistics.median(rates),
        "weights_moved_max_mv": statistics.median(moved_weights),
        "fixed": fixed_runs,
        "float_moved": float_runs,
    }


def choices(seed: int) -> dict[str, float]:
    """The four-choice task: right among the last 200 of 2,000 trials."""
    floating = train(seed, network=SpikingNetwork(quiet_config(seed)))
    fixed = train(seed, network=HostedFixedNetwork(quiet_config(seed)))
    return {
        "float": accuracy(train(seed)),
        "float_noise_in_stimuli": accuracy(floating),
        "fixed": accuracy(fixed),
        "same_choices": float((floating.choice == fixed.choice).mean()),
    }


def tick_ns(rounds: int = 9, n_ticks: int = 20_000) -> dict[str, float]:
    """Median time of a tick of the twin, in ns."""
    words = quantised_stimuli(steps(0, n_ticks), 1000.0)
    none, spikes = np.zeros((0, 5), dtype=np.int64), np.empty(n_ticks, dtype=np.uint16)
    found = {}
    for name, rule in (("learning", 1), ("not_learning", 0)):
        network = FixedNetwork()
        network.state[0]["rule"], network.state[0]["learning_factor"] = rule, 1 << 12
        taken = []
        for _ in range(rounds + 1):
            begin = time.perf_counter_ns()
            fixed_run(network.state, words, none, spikes)
            taken.append((time.perf_counter_ns() - begin) / n_ticks)
        found[name] = statistics.median(taken[1:])
    return found


def table(results: dict[str, Any]) -> str:
    """The comparison as Markdown: medians over runs, of fixed point and of floating point with moved stimuli."""
    lines = [
        "| stimuli | Hz | same tick | 1 tick | 2 ticks | count error, mean | max | weight error, mean mV | max mV |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = (*(f"within_{k}" for k in WITHIN), "count_error_mean", "count_error_max")
    for case in results["cases"]:
        for label, runs in (("fixed point", case["fixed"]), ("float, moved", case["float_moved"])):
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "first_difference"}
            cells = [f"{middle[key]:.2%}" for key in keys]
            cells += [f"{middle[key]:.2g}" for key in ("weight_error_mean_mv", "weight_error_max_mv")]
            lines.append(f"| {case['name']}: {label} | {case['rate_hz']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ticks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10, help="of the four-choice task")
    parser.add_argument("--recordings", type=Path, help="folder with the recordings, else drawn stimuli alone")
    options = parser.parse_args()
    n, n_runs = options.ticks, options.runs
    still = {"recurrent_gain": 0.0, "inhibition": InhibitionConfig(strength_mv=0.0)}
    cases = [
        compare("steps of 20 ms, no recurrence", lambda run: steps(run, n), n_runs, **still),
        compare("steps of 20 ms", lambda run: steps(run, n), n_runs),
    ]
    if options.recordings is not None:
        for name, rows in (
            ("Utah array, counts in 50 ms", utah_counts(options.recordings)),
            ("Neuropixels units, rates over 30 ms", unit_rates(options.recordings)),
        ):
            cases.append(compare(name, lambda run, rows=rows: cut(rows, run, n_runs, n), n_runs))  # type: ignore[misc]
    results = {
        "host": host(),
        "ticks": n,
        "runs": n_runs,
        "cases": cases,
        "four_choice": [choices(seed) for seed in range(options.seeds)],
        "tick_ns": tick_ns(),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(table(results))
    for key in results["four_choice"][0] if options.seeds else ():
        print(f"four choices, {key}: {', '.join(f'{each[key]:.3f}' for each in results['four_choice'])}")
    print(
        f"a tick of the twin: {results['tick_ns']['learning']:.0f} ns, {results['tick_ns']['not_learning']:.0f} without"
    )


if __name__ == "__main__":
    main()
