"""The template matching of spikeinterface on recordings whose spikes are known.

`python tests/bench/sorting_peers.py --cache FOLDER [--probe utah] [--seeds 1 2 3] [--hybrid]`. Each peer has templates
from the true spike times of the first part, estimated on a recording that spikeinterface preprocessed its own way (a
filter that looks ahead, median reference, z-score or whitening), and sees the last part whole. What it reaches is kept
in FOLDER, by recording, and not measured again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import spikeinterface.preprocessing as spre
from numpy.typing import NDArray
from probeinterface import Probe
from spikeinterface.core import NumpyRecording, NumpySorting, Templates, get_noise_levels
from spikeinterface.core.waveform_tools import estimate_templates_with_accumulator
from spikeinterface.sortingcomponents.matching import find_spikes_from_templates

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.sorting_truth import FREQUENCY, UV_PER_BIT, Scenario, Truth, neuropixels, score, utah

ONE_CORE = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
BEFORE_MS, AFTER_MS = 1.0, 2.0
REACH_UM = 100.0
SPARSE_BELOW = 1.5
"""Channels of a template that stay within this many times the noise are left out, as tridesclous2 does."""


class Peer(NamedTuple):
    """A way to match templates."""

    method: str
    whitened: bool
    options: dict[str, Any]
    """What differs from spikeinterface's own defaults."""


PEERS = {
    "tdc-peeler, z-scored": Peer("tdc-peeler", False, {}),
    "tdc-peeler, whitened": Peer("tdc-peeler", True, {}),
    "circus-omp, whitened": Peer("circus-omp", True, {}),
    "wobble, whitened": Peer("wobble", True, {}),
    "nearest, whitened": Peer("nearest", True, {}),
}


def recording_of(truth: Truth, signal: NDArray[np.int16]) -> Any:
    """The recording as spikeinterface has it."""
    recording = NumpyRecording([signal], FREQUENCY)
    recording.set_channel_gains(UV_PER_BIT)
    recording.set_channel_offsets(0.0)
    probe = Probe(ndim=2)
    probe.set_contacts(truth.positions_um, shapes="circle", shape_params={"radius": 5.0})
    probe.set_device_channel_indices(np.arange(len(truth.positions_um)))
    recording.set_probe(probe)  # works in place
    return recording


def preprocessed(recording: Any, *, whitened: bool, seed: int) -> Any:
    """Filtered, referenced, of unit noise: in memory, once for all peers."""
    kept = spre.common_reference(spre.bandpass_filter(recording, freq_min=300.0, freq_max=6000.0, dtype="float32"))
    if whitened:
        kept = spre.whiten(kept, dtype="float32", mode="local", radius_um=REACH_UM, seed=seed)
    else:
        kept = spre.zscore(kept, mode="median+mad", dtype="float32", seed=seed)
    n = recording.get_num_samples()
    traces = np.empty((n, recording.get_num_channels()), np.float32)
    for begin in range(0, n, 60_000):
        end = min(begin + 60_000, n)
        traces[begin:end] = kept.get_traces(start_frame=begin, end_frame=end)
    held = NumpyRecording([traces], FREQUENCY)
    held.set_probe(recording.get_probe())
    return held


def templates_of(truth: Truth, recording: Any, noise: NDArray[np.float64]) -> Any:
    """Mean waveforms of the true spikes of the first part, sparse."""
    n_units = truth.scenario.n_units
    margin = round(3e-3 * FREQUENCY)
    samples, units = truth.part(margin, truth.scenario.n_train - margin)
    sorting = NumpySorting.from_samples_and_labels([samples], [units], FREQUENCY, unit_ids=np.arange(n_units))
    n_before, n_after = round(BEFORE_MS * FREQUENCY / 1e3), round(AFTER_MS * FREQUENCY / 1e3)
    mean = estimate_templates_with_accumulator(
        recording, sorting.to_spike_vector(), sorting.unit_ids, n_before, n_after, return_in_uV=False, **ONE_CORE
    )
    best = mean[:, n_before].argmin(axis=1)
    sites = truth.positions_um
    near = np.linalg.norm(sites[best][:, np.newaxis] - sites, axis=2) <= REACH_UM
    mask = near & (np.ptp(mean, axis=1) > SPARSE_BELOW * noise)
    mask[np.arange(n_units), best] = True
    dense = Templates(mean, FREQUENCY, n_before, is_in_uV=False, probe=recording.get_probe(),
                      channel_ids=recording.channel_ids, unit_ids=sorting.unit_ids)  # fmt: skip
    from spikeinterface.core import ChannelSparsity

    return dense.to_sparse(ChannelSparsity(mask, sorting.unit_ids, recording.channel_ids))


def measure(scenario: Scenario, folder: Path, names: list[str]) -> dict[str, Any]:
    """What each peer reaches with a recording: per-unit scores and seconds of CPU for one of recording."""
    kept_at = folder / f"peers-{scenario.name}.json"
    kept: dict[str, Any] = json.loads(kept_at.read_text()) if kept_at.is_file() else {}
    missing = [name for name in names if name not in kept]
    if not missing:
        return kept
    truth = Truth(scenario)
    recording = recording_of(truth, truth.cached(folder))
    n_train, n_samples = scenario.n_train, recording.get_num_samples()
    true = truth.part(n_train, n_samples)
    for whitened in (False, True):
        todo = [name for name in missing if PEERS[name].whitened == whitened]
        if not todo:
            continue
        ready = preprocessed(recording, whitened=whitened, seed=scenario.seed)
        noise = get_noise_levels(ready, return_in_uV=False, random_slices_kwargs={"seed": 0}, **ONE_CORE)
        templates = templates_of(truth, ready, noise)
        last = ready.frame_slice(n_train, n_samples)
        for name in todo:
            peer = PEERS[name]
            options = dict(peer.options)
            if peer.method in ("tdc-peeler", "nearest"):
                options["noise_levels"] = noise
            begin = time.process_time()
            try:
                spikes = find_spikes_from_templates(
                    last, templates, method=peer.method, method_kwargs=options, job_kwargs=ONE_CORE
                )
            except Exception as error:
                print(f"{name}: {error!r}", file=sys.stderr)
                continue
            taken = time.process_time() - begin
            found = spikes["sample_index"].astype(np.int64) + n_train, spikes["cluster_index"].astype(np.int64)
            reached = score(true, found, scenario.n_units)
            kept[name] = {field: values.tolist() for field, values in reached._asdict().items()}
            kept[name]["cpu_s_per_s"] = taken / scenario.test_s
            kept_at.write_text(json.dumps(kept))
    return kept


def main() -> None:
    """Measure what is not kept yet, and print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for recordings and results")
    parser.add_argument("--probe", choices=("utah", "neuropixels"), default="utah")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--hybrid", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    make = {"utah": utah, "neuropixels": neuropixels}[arguments.probe]
    for seed in arguments.seeds:
        scenario = make(seed, hybrid=arguments.hybrid)
        for name, reached in measure(scenario, arguments.cache, arguments.peers).items():
            means = ", ".join(f"{field} {np.mean(reached[field]):.4f}" for field in ("accuracy", "recall", "precision"))
            print(f"seed {seed}, {name:<22} {means}, {reached['cpu_s_per_s']:.2f} s of CPU a second", flush=True)


if __name__ == "__main__":
    main()
