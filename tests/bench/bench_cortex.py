"""What sixteen spike trains keep of real cortex: `python tests/bench/bench_cortex.py RECORDING.mat [...]`.

A wrist-flexion recording (96 channels of macaque M1, counts in 50 ms bins, cursor and EMG) goes through features,
encoder and network, by the loop's own replay, and a linear decoder or a Kalman filter reads the sixteen spike trains.
Beside it, the same readouts of what went into the network (the stimuli) and of all channels; the mean of the training
part; and the whole chain, encoder included, fitted to targets whose blocks of 2 s have changed places.

The encoder and every readout are fitted to the first three quarters. Regularisation is chosen there by five blocks,
each held out once, for which the encoder too is fitted anew. The last quarter is scored once; its 95 % intervals come
from drawing its 10 s blocks anew, with replacement.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import cortex
from bench.cortex import Floats, Kind, Known, Recording

from neuromod.bridge.bench import host

KINDS: tuple[Kind, ...] = ("linear", "kalman")
STRENGTHS: dict[Kind, tuple[float, ...]] = {"linear": (0.001, 0.01, 0.1, 0.3), "kalman": (0.0, 0.1, 0.5, 1.0)}
N_SHUFFLES = 3
_BLOCK_S, _N_DRAWS = 10.0, 2000
_PLOTTED_S = 60.0
_SPIKES, _STIMULI = "16 spike trains", "16 stimuli"


class Row(NamedTuple):
    """A readout, and what it gives.

    Attributes
    ----------
    readout, inputs : str
        What reads what.
    strength : float or None
        Its regularisation.
    validated : ndarray of float64, shape (n_targets,), or None
        R2 in the blocks held out within the training part.
    outputs : ndarray of float64, shape (n_bins, n_targets)
        Over the whole recording.
    """

    readout: str
    inputs: str
    strength: float | None
    validated: Floats | None
    outputs: Floats


class Chosen(NamedTuple):
    """A regularisation, and the R2 that it was chosen by."""

    strength: float
    validated: Floats


def choose_for_network(recording: Recording, training: Known, folder: Path) -> Iterator[dict[tuple[str, Kind], Chosen]]:
    """Choose the regularisation of readouts of stimuli and spikes, the encoder fitted anew to each block's others.

    Yields an empty dict after each block, and the choices at last.
    """
    y = recording.targets
    scores: dict[tuple[str, Kind, float], list[Floats]] = {}
    for kept, out in cortex.folds(training):
        config = cortex.encode_for(recording, kept, folder, Path("memory"), None)
        stimuli = cortex.stimuli_of(config, recording)
        counts = cortex.counts_of(cortex.spikes_of(config, recording), recording.bin_ms)
        for name, x in ((_STIMULI, stimuli.astype(np.float64)), (_SPIKES, counts)):
            for kind in KINDS:
                for strength, outputs in zip(
                    STRENGTHS[kind], cortex.read_out(kind, x, y, kept, STRENGTHS[kind]), strict=True
                ):
                    scores.setdefault((name, kind, strength), []).append(cortex.r2(y[out], outputs[out]))
        yield {}
    chosen: dict[tuple[str, Kind], Chosen] = {}
    for (name, kind, strength), found in scores.items():
        validated = np.mean(found, axis=0)
        if (name, kind) not in chosen or validated.mean() > chosen[name, kind].validated.mean():
            chosen[name, kind] = Chosen(strength, validated)
    yield chosen


def best_channels(recording: Recording, training: Known, n: int = 16) -> Floats:
    """Return the channels that go most with position or velocity of the cursor in the training part."""
    z = recording.features[training] - recording.features[training].mean(axis=0)
    y = recording.targets[training][:, :4] - recording.targets[training][:, :4].mean(axis=0)
    sd = np.maximum(z.std(axis=0), 1e-12)
    correlation = np.abs(z.T @ y / len(z)) / sd[:, None] / y.std(axis=0)
    return np.asarray(recording.features[:, np.argsort(-correlation.max(axis=1), kind="stable")[:n]])


def measure(recording: Recording, folder: Path, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    """Fit every readout; return them in the order of the table, and rates and agreement of the spikes."""
    training, _ = cortex.split(len(recording.features))
    y, x = recording.targets, recording.features
    task = progress.add_task("choosing, encoder and all", total=5 + 6 + N_SHUFFLES)
    chosen: dict[tuple[str, Kind], Chosen] = {}
    for found in choose_for_network(recording, training, folder):
        chosen |= found
        progress.advance(task, 0 if found else 1)
    rows = [Row("mean of training", "-", None, None, np.tile(y[training].mean(axis=0), (len(y), 1)))]

    progress.update(task, description="shuffled targets")
    strength = chosen[_SPIKES, "linear"].strength
    outputs = []
    for seed in range(N_SHUFFLES):
        other = cortex.shuffled(recording, training, seed)
        spikes = cortex.spikes_of(cortex.encode_for(other, training, folder, Path("memory"), None), recording)
        counts = cortex.counts_of(spikes, recording.bin_ms)
        outputs.append(cortex.read_out("linear", counts, other.targets, training, (strength,))[0])
        progress.advance(task)
    best = max(outputs, key=lambda o: float(cortex.r2(y[~training], o[~training]).mean()))
    rows.append(Row("linear, shuffled", _SPIKES, strength, None, best))

    progress.update(task, description="channels themselves")
    smoothed = cortex.smooth(x, recording.bin_ms, cortex.smoothing_ms())
    pairs: list[tuple[Kind, str, Floats]] = [
        ("linear", "16 best channels", best_channels(recording, training)),
        ("linear", "all channels", x),
        ("linear", "all channels, smoothed", smoothed),
        ("kalman", "all channels", x),
    ]
    for kind, name, inputs in pairs:
        own = Chosen(*cortex.choose(kind, inputs, y, training, STRENGTHS[kind]))
        rows.append(Row(kind, name, *own, cortex.read_out(kind, inputs, y, training, (own.strength,))[0]))
        progress.advance(task)

    progress.update(task, description="stimuli and spikes")
    config = cortex.encode_for(recording, training, folder, Path("memory"), None)
    stimuli = cortex.stimuli_of(config, recording)
    spikes = cortex.spikes_of(config, recording)
    fixed = cortex.fixed_spikes_of(config, stimuli, recording.bin_ms)
    for kind in KINDS:
        own = chosen[_STIMULI, kind]
        given = cortex.read_out(kind, stimuli.astype(np.float64), y, training, (own.strength,))[0]
        rows.append(Row(kind, _STIMULI, *own, given))
    for kind in KINDS:
        own = chosen[_SPIKES, kind]
        rows.append(Row(kind, _SPIKES, *own, cortex.decode_spikes(kind, spikes, recording, training, own.strength)))
        progress.advance(task)
    own = chosen[_SPIKES, "linear"]
    given = cortex.decode_spikes("linear", fixed, recording, training, own.strength)
    rows.append(Row("linear", f"{_SPIKES}, fixed point", own.strength, None, given))
    seconds = len(y) * recording.bin_ms / 1000.0
    trains = cortex.counts_of(spikes, recording.bin_ms)
    facts = {
        "rates_hz": (trains.sum(axis=0) / seconds).tolist(),
        "highest_rate_hz": float(trains.max() * 1000.0 / recording.bin_ms),
        "ticks_alike_in_fixed_point": float((spikes == fixed).mean()),
        "counts_alike_in_fixed_point": float((trains == cortex.counts_of(fixed, recording.bin_ms)).mean()),
        "held_out_s": float((~training).sum() * recording.bin_ms / 1000.0),
    }
    return rows, facts


# -- figures ----------------------------------------------------------------------------------------------------------


class Scorer:
    """R2 of held-out outputs, its interval by blocks drawn anew, and that of differences, drawn together.

    Parameters
    ----------
    truth : ndarray of float64, shape (n_bins, n_targets)
        Held out.
    bin_ms : float
        Length of a bin.
    seed : int
        Of the draws.
    """

    def __init__(self, truth: Floats, bin_ms: float, seed: int = 0) -> None:
        self._truth = truth
        n_blocks = max(2, round(len(truth) * bin_ms / 1000.0 / _BLOCK_S))
        self._starts = np.arange(n_blocks) * len(truth) // n_blocks
        self._drawn = np.random.default_rng(seed).integers(0, n_blocks, (_N_DRAWS, n_blocks))
        self._spread = self._by_block((truth - truth.mean(axis=0)) ** 2)

    def score(self, outputs: Floats) -> Floats:
        """R2 of each target, of their groups and of draws: shape (1 + n_draws, n_targets); the first is the figure."""
        error = self._by_block((outputs - self._truth) ** 2)
        whole = 1.0 - error.sum(axis=0) / self._spread.sum(axis=0)
        draws = 1.0 - error[self._drawn].sum(axis=1) / self._spread[self._drawn].sum(axis=1)
        return np.vstack([whole, draws])

    def _by_block(self, values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, self._starts, axis=0))


def columns(names: tuple[str, ...]) -> dict[str, list[int]]:
    """Name the columns of the table: each of the cursor's targets, and the mean of EMG."""
    found = {name: [k] for k, name in enumerate(names[:4])}
    return found | ({"EMG": list(range(4, len(names)))} if len(names) > 4 else {})


def interval(scores: Floats) -> dict[str, float]:
    """Figure and 95 % interval of a column of scores, whose first row is the figure."""
    low, high = np.percentile(scores[1:], (2.5, 97.5))
    return {"r2": float(scores[0]), "low": float(low), "high": float(high)}


def report(recording: Recording, rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Score every readout on the last quarter, and the differences that were asked for."""
    _, held_out = cortex.split(len(recording.features))
    scorer = Scorer(recording.targets[held_out], recording.bin_ms)
    scores = [scorer.score(row.outputs[held_out]) for row in rows]
    parts = columns(recording.names)
    table = [
        {
            "readout": row.readout, "inputs": row.inputs, "strength": row.strength,
            "validated": (
                None if row.validated is None else {name: float(row.validated[k].mean()) for name, k in parts.items()}
            ),
            "held_out": {name: interval(score[:, k].mean(axis=1)) for name, k in parts.items()},
            "per_target": dict(zip(recording.names, score[0].tolist(), strict=True)),
        }
        for row, score in zip(rows, scores, strict=True)
    ]  # fmt: skip
    at = {(row.readout, row.inputs): score for row, score in zip(rows, scores, strict=True)}
    spikes = at["linear", _SPIKES]
    against = {
        "spikes less stimuli": at["linear", _STIMULI],
        "spikes less all channels, smoothed": at["linear", "all channels, smoothed"],
        "spikes less 16 best channels": at["linear", "16 best channels"],
        "spikes less the same in fixed point": at["linear", f"{_SPIKES}, fixed point"],
    }
    differences = {
        what: {name: interval((spikes - other)[:, k].mean(axis=1)) for name, k in parts.items()}
        for what, other in against.items()
    }
    return {"host": host(os.getloadavg()), "table": table, "differences": differences, "spikes": facts}


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    names = list(found["table"][0]["held_out"])
    table = Table(title=f"R2 on the last quarter, {found['spikes']['held_out_s']:.0f} s, and 95 % interval")
    for name in ("readout", "of", *names):
        table.add_column(name, no_wrap=name not in ("readout", "of"))
    for row in found["table"]:
        table.add_row(row["readout"], row["inputs"], *(_shown(row["held_out"][name]) for name in names))
    console = Console(width=140)
    console.print(table)
    table = Table("", *names, title="linear readout of the spikes, less others: difference of R2, drawn in pairs")
    for what, row in found["differences"].items():
        table.add_row(what, *(_shown(row[name], "+") for name in names))
    console.print(table)
    table = Table("readout", "of", "strength", *names, title="R2 in blocks held out within the first three quarters")
    for row in found["table"]:
        if row["validated"] is not None:
            values = (f"{row['validated'][name]:.3f}" for name in names)
            table.add_row(row["readout"], row["inputs"], f"{row['strength']:g}", *values)
    console.print(table)
    facts = found["spikes"]
    console.print("spikes/s of each channel:", " ".join(f"{rate:.1f}" for rate in facts["rates_hz"]), highlight=False)
    console.print(
        f"highest in a bin {facts['highest_rate_hz']:.0f}/s; in fixed point {facts['ticks_alike_in_fixed_point']:.2%} "
        f"of ticks and {facts['counts_alike_in_fixed_point']:.2%} of counts are the same",
        highlight=False,
    )


def _shown(figure: dict[str, float], sign: str = "") -> str:
    return f"{figure['r2']:{sign}.2f} [{figure['low']:{sign}.2f}, {figure['high']:{sign}.2f}]"


def plot(path: Path, recording: Recording, rows: list[Row]) -> None:
    """Draw a minute from the middle of the last quarter: the cursor, and what four readouts make of it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    _, held_out = cortex.split(len(recording.features))
    rows_held_out = np.flatnonzero(held_out)
    n = min(round(_PLOTTED_S * 1000.0 / recording.bin_ms), len(rows_held_out))
    start = int(rows_held_out[(len(rows_held_out) - n) // 2])
    shown = slice(start, start + n)
    t = np.arange(shown.start, shown.stop) * recording.bin_ms / 1000.0
    picked = [("linear", "all channels, smoothed"), ("linear", _STIMULI), ("linear", _SPIKES), ("kalman", _SPIKES)]
    by_name = {(row.readout, row.inputs): row.outputs for row in rows}
    figure, axes = pyplot.subplots(len(picked), 2, figsize=(13.0, 9.0), sharex=True, sharey="col", layout="constrained")
    for line, name in zip(axes, picked, strict=True):
        scores = cortex.r2(recording.targets[held_out], by_name[name][held_out])
        for k, axis in enumerate(line):
            axis.plot(t, recording.targets[shown, k], color="0.6", linewidth=2.5, label="cursor")
            axis.plot(t, by_name[name][shown, k], color=("C0", "C3")[k], linewidth=1.2, label="decoded")
            axis.set_title(
                f"{recording.names[k]}: {name[0].replace('kalman', 'Kalman')}, {name[1]}: R2 = {scores[k]:.2f}",
                fontsize=10,
            )
            axis.set_ylabel("position, as recorded" if k == 0 else "")
    for axis in axes[-1]:
        axis.set_xlabel("time in the recording (s), held out")
    axes[0, 0].legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def keep(folder: Path, path: Path, recording: Recording, strength: float) -> Path:
    """Write the session, its matrix and its decoder of the cursor into a folder; return the session's file."""
    folder.mkdir(parents=True, exist_ok=True)
    training, _ = cortex.split(len(recording.features))
    config = cortex.encode_for(recording, training, folder.absolute(), path.absolute(), cortex.VARIABLE)
    spikes = cortex.spikes_of(config, recording)
    decoder = cortex.fit_decoder("linear", spikes, recording, training, cortex.GROUPS["cursor"], strength)
    file = folder / "session.toml"
    file.write_text(config.model_copy(update={"decoder": decoder}).effective_toml(), encoding="utf-8")
    return file


def main() -> None:
    """Measure; print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, metavar="RECORDING.mat", help="a file of limblab's train_data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="for the cursor and what is decoded of it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the session, its matrix and its decoder")
    arguments = parser.parse_args()
    recording = cortex.load(arguments.recording)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        rows, facts = measure(recording, Path(folder), progress)
    found = report(recording, rows, facts)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(arguments.plot, recording, rows)
    if arguments.output:
        strength = next(r.strength for r in rows if (r.readout, r.inputs) == ("linear", _SPIKES))
        assert strength is not None
        print(f"wrote {keep(arguments.output, arguments.recording, recording, strength)}")


if __name__ == "__main__":
    main()
