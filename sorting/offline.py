"""From a recording to a sorting: channels, offline sorter, curation, online templates, and what they reach.

Work goes on in `SORTING.partial`, whose finished stages survive an interrupt or a failure: the same call goes on from
there. The sorting appears whole, under its own name, or not at all.
"""

import hashlib
import json
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.compiled import jit_apart
from neuromod.engine.errors import ConfigError
from neuromod.sorting import sorter_process
from neuromod.sorting.bundle import INFO_NAME, Bundle
from neuromod.sorting.channel_check import check_channels
from neuromod.sorting.curation import Curated, curate
from neuromod.sorting.events import N_EVENTS
from neuromod.sorting.online import Sorter, SorterState, take_sample
from neuromod.sorting.sort_config import SortConfig
from neuromod.sorting.sorter_process import Found
from neuromod.sorting.templates import Reader, estimate

Say = Callable[[str, float | None], None]
"""Told what goes on, and the share of it that is done, where that is known."""

ANALYZER, SPIKES = "analyzer", "spikes.npz"
_IDENTITY, _FOUND = "identity.json", "found.npz"
_CHECKED_S = 300.0
_CHUNK_S = 0.02
_MATCH_MS = 1.0
_FEWEST_FOR_REFERENCE = 16


class Recorded(NamedTuple):
    """A recording that is to be sorted."""

    recording: Any
    """spikeinterface's, with a probe; one segment."""
    read: Reader
    """What the loop would see of it."""
    name: str
    channel_names: tuple[str, ...]
    in_uv: bool


class Sorting(NamedTuple):
    """What came of it."""

    bundle: Bundle
    spikes: "Spikes"


class Spikes(NamedTuple):
    """Spikes of the units of a bundle: all of the offline sorter, and of the online one those it was tried on."""

    samples: NDArray[np.int64]
    units: NDArray[np.int64]
    """Row of the bundle's templates."""
    amplitudes: NDArray[np.float32]
    """Signal at the trough, after the offline filter, in units of the stream."""
    n_samples: int
    """Length of the recording."""
    online_begin: int
    """First sample that was sorted online as well, up to the end."""
    online_samples: NDArray[np.int64]
    """Troughs, once filtered by the loop's causal filter."""
    online_units: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> "Spikes":
        """Read the spikes that lie beside a bundle.

        Raises
        ------
        ConfigError
            There are none.
        """
        try:
            # opened here: numpy leaves a damaged archive open
            with (folder / SPIKES).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                values = {name: file[name] for name in cls._fields}
                values |= {name: int(values[name]) for name in ("n_samples", "online_begin")}
        except NO_ARRAYS as error:
            raise ConfigError(f"{folder} holds no {SPIKES} to read ({error}); sort the recording again") from None
        return cls(**values)


def sort_recording(
    recorded: Recorded,
    output: Path,
    config: SortConfig,
    *,
    seed: int = 0,
    n_jobs: int = 1,
    provenance: Mapping[str, Any] | None = None,
    finish: Callable[[Path, Sorting], None] = lambda folder, sorting: None,
    say: Say = lambda what, share: None,
) -> Sorting:
    """Sort a recording into a folder.

    Parameters
    ----------
    recorded : Recorded
        The recording.
    output : Path
        Folder of the sorting; replaced where it is one already.
    config : SortConfig
        Parameters.
    seed : int
        The same recording, parameters, seed and versions give the same sorting.
    n_jobs : int
        Processes that spikeinterface may use.
    provenance : mapping, optional
        What the bundle is to tell of its making beside what is known here.
    finish : callable, optional
        Called with the folder, before it appears, and what is in it: to add reports and exports.
    say : callable
        Told what goes on.

    Raises
    ------
    ConfigError
        Recording or parameters do not allow it; says what to do.
    SorterError
        The offline sorter failed.
    """
    recording = recorded.recording
    fs, n_samples = float(recording.get_sampling_frequency()), int(recording.get_num_samples())
    if output.exists() and not (output / INFO_NAME).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is there already, and no sorting; give another name with -o")
    if n_samples < config.min_duration_s * fs:
        raise ConfigError(
            f"a recording of {n_samples / fs:.3g} s; at least {config.min_duration_s:g} s expected, or units cannot be "
            "known (min_duration_s in the parameters)"
        )
    sorter = sorter_process.choose(config.sorter.name)
    parameters = sorter_process.parameters_of(sorter, config.sorter.parameters.get(sorter, {}), seed)
    say("looking at channels", None)
    excluded = check_channels(
        recorded.read, n_samples, fs, recorded.channel_names, config.channels, in_uv=recorded.in_uv
    )
    made_of: dict[str, Any] = {
        "input_sha256": _hash(recording, say),
        "n_samples": n_samples,
        "probe_um": np.round(recording.get_channel_locations(), 3).tolist(),
        "excluded": excluded,
        "parameters": config.model_dump(mode="json"),
        "sorter": {"name": sorter, "parameters": parameters},
        "seed": seed,
        "versions": _versions(),
    }
    partial = output.with_name(f"{output.name}.partial")
    _enter(partial, made_of)
    try:
        prepared = _prepared(recording, recorded.channel_names, excluded, config)
        found = _once(partial, lambda: sorter_process.run(
            prepared, sorter, parameters, partial / "sorter", seed=seed, n_jobs=n_jobs,
            say=lambda what, share: say(f"{sorter}: {what}", share),
        ))  # fmt: skip
        shutil.rmtree(partial / ANALYZER, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="spikeinterface")  # as that a metric could not be had
            curated = curate(
                prepared, found, config.curation, folder=partial / ANALYZER, seed=seed, n_jobs=n_jobs, say=say
            )
        told = dict(provenance or {}) | made_of | {"rejected_units": curated.rejected}
        bundle, spikes = _bundle(recorded, curated, config, excluded, told, say)
        with (partial / SPIKES).open("wb") as file:
            np.savez_compressed(file, **spikes._asdict())
        bundle.save(partial)
        sorting = Sorting(bundle, spikes)
        say("writing", None)
        finish(partial, sorting)
        for name in (_IDENTITY, _FOUND):
            (partial / name).unlink()
        _replace(partial, output)
    except BaseException:
        if not (partial / _FOUND).is_file():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return Sorting(Bundle.load(output), sorting.spikes)


def online_spikes(bundle: Bundle, read: Reader, begin: int, end: int, say: Say) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sort samples [begin, end) as the loop would; return the sample and the unit of each event."""
    sorter = Sorter(bundle, tracking=False)
    x = np.zeros(sorter.state.last_x.shape[0])
    chunk = max(1, round(_CHUNK_S * bundle.info.sampling_frequency))
    samples, units = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(begin, end, chunk):
        signal = np.ascontiguousarray(read(first, min(first + chunk, end)), dtype=np.float32)
        _push(sorter.state, signal, x)
        rows = sorter.state.events.rows[: int(sorter.state.events.counters[N_EVENTS])]
        samples.append(rows["sample"] + begin)
        units.append(rows["unit"].copy())
        sorter.state.events.counters[N_EVENTS] = 0
        say("sorting it online", (first - begin) / (end - begin))
    return np.concatenate(samples), np.concatenate(units)


@jit_apart
def _push(sorter: SorterState, signal: NDArray[np.float32], x: NDArray[np.float64]) -> None:
    for i in range(signal.shape[0]):
        for c in range(signal.shape[1]):
            x[c] = signal[i, c]
        take_sample(sorter, x)


def agreement(ours: NDArray[np.int64], theirs: NDArray[np.int64], sampling_frequency: float) -> float | None:
    """Share of spikes on which two trains agree: matched / (all of both - matched), as spikeinterface counts accuracy.

    None where both are empty. Two spikes match within 1 ms, which takes in that a causal filter moves a trough.
    """
    if len(ours) + len(theirs) == 0:
        return None
    matched = min(_near(ours, theirs, sampling_frequency), _near(theirs, ours, sampling_frequency))
    return matched / (len(ours) + len(theirs) - matched)


def _near(a: NDArray[np.int64], b: NDArray[np.int64], sampling_frequency: float) -> int:
    """How many of a have one of b nearby."""
    if len(b) == 0:
        return 0
    a, b = np.sort(a), np.sort(b)
    at = np.searchsorted(b, a)
    distance = np.minimum(np.abs(a - b[np.minimum(at, len(b) - 1)]), np.abs(a - b[np.maximum(at - 1, 0)]))
    return int(np.count_nonzero(distance <= _MATCH_MS * 1e-3 * sampling_frequency))


def _bundle(
    recorded: Recorded,
    curated: Curated,
    config: SortConfig,
    excluded: dict[str, str],
    provenance: dict[str, Any],
    say: Say,
) -> tuple[Bundle, Spikes]:
    """Estimate online templates, and tell of each unit how well it is found online."""
    recording = recorded.recording
    fs, n_samples = float(recording.get_sampling_frequency()), int(recording.get_num_samples())

    chain = config.chain
    if len(recorded.channel_names) - len(excluded) < _FEWEST_FOR_REFERENCE:
        chain = chain.model_copy(update={"reference": "none"})
    bundle = estimate(
        recorded.read, n_samples, curated.found.samples, curated.found.units,
        unit_ids=curated.found.names, name=recorded.name, sampling_frequency=fs,
        channel_names=recorded.channel_names, positions_um=recording.get_channel_locations()[:, :2],
        excluded=excluded, config=chain, detection_noise=config.detection_noise,
        engine=None if config.engine == "auto" else config.engine, quality=curated.quality,
        units_of_signal="uV" if recorded.in_uv else "", provenance=provenance,
        progress=lambda share: say("estimating online templates", share),
    )  # fmt: skip
    begin = max(0, n_samples - round(_CHECKED_S * fs))
    at, unit = online_spikes(bundle, recorded.read, begin, n_samples, say)
    offline = curated.found.samples >= begin
    infos = []
    for u, info in enumerate(bundle.info.units):
        reached = agreement(at[unit == u], curated.found.samples[offline & (curated.found.units == u)], fs)
        infos.append(info.model_copy(update={"quality": info.quality | {"online_agreement": reached}}))
    spikes = Spikes(
        curated.found.samples, curated.found.units, curated.amplitudes, n_samples, begin, at, unit.astype(np.int64)
    )
    return bundle.with_info(units=tuple(infos)), spikes


def _prepared(recording: Any, names: Sequence[str], excluded: Mapping[str, str], config: SortConfig) -> Any:
    """What the offline sorter and the metrics see."""
    import spikeinterface.preprocessing as preprocessing

    settings = config.preprocessing
    kept = [c for c, name in zip(recording.channel_ids, names, strict=True) if name not in excluded]
    fs = recording.get_sampling_frequency()
    if settings.phase_shift and "inter_sample_shift" in recording.get_property_keys():
        recording = preprocessing.phase_shift(recording)
    top = min(settings.high_hz, 0.45 * fs)
    recording = preprocessing.bandpass_filter(recording, settings.low_hz, top, dtype="float32")
    recording = recording.select_channels(kept)
    # of a few electrodes, the reference would be made of the spikes themselves
    if settings.reference == "none" or len(kept) < _FEWEST_FOR_REFERENCE:
        return recording
    operator = "average" if settings.reference == "mean" else "median"
    return preprocessing.common_reference(recording, reference="global", operator=operator)


def _hash(recording: Any, say: Say) -> str:
    """SHA-256 of all raw samples, by rows."""
    digest = hashlib.sha256()
    n, chunk = int(recording.get_num_samples()), round(recording.get_sampling_frequency())
    for begin in range(0, n, chunk):
        traces = recording.get_traces(start_frame=begin, end_frame=min(begin + chunk, n))
        digest.update(np.ascontiguousarray(traces).data)
        say("reading the recording", begin / n)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    packages = ("neuromod-bridge", "numpy", "scipy", "numba", "spikeinterface")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _enter(partial: Path, made_of: dict[str, Any]) -> None:
    """Make the folder of the work, or take it up where it is of the same making."""
    text = json.dumps(made_of, indent=1, sort_keys=True, default=str)
    identity = partial / _IDENTITY
    if identity.is_file() and identity.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    identity.write_text(text, encoding="utf-8")


def _once(partial: Path, make: Callable[[], Found]) -> Found:
    """What a sorter found, or had found when the work was interrupted."""
    path = partial / _FOUND
    if not path.is_file():
        make().save(path)
    return Found.load(path)


def _replace(partial: Path, output: Path) -> None:
    old = output.with_name(f"{output.name}.old")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)
