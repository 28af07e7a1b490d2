"""Fit a decoder to a recorded session: lay targets or behaviour on its ticks, validate, save a version.

Ticks at which the network did not move (fillers, pauses) are no ticks for a decoder, which did not move either. Where
ticks were lost or samples blanked, spikes are not what they would have been: targets there count as unknown.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters import calibration
from neuromod.adapters.calibration import Estimate, FitOptions, Metrics, Scores
from neuromod.adapters.decoder_config import FittedConfig
from neuromod.adapters.decoder_file import Provenance, save_decoder
from neuromod.adapters.xdf import load_streams
from neuromod.bridge.session import Session
from neuromod.bridge.session_log import segments
from neuromod.bridge.wire import Flag
from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.errors import ConfigError, RecordingError

Floats = NDArray[np.float64]
Kind = Literal["linear", "kalman", "population_vector", "rates"]

_EVENT = "event:"
_XDF = re.compile(r"(?i)(.+\.(?:xdf|xdfz|xdf\.gz))(?::(.+))?")
_LONGEST_STEP_S = 1.0
_LONGEST_STEP = 5.0  # in steps of usual length
_MOST_LOST_S = 60.0  # a longer loss is laid out as this much: it is to separate, not to take up room
_NOT_A_STEP = int(Flag.FILLER | Flag.PAUSED)


class Series(NamedTuple):
    """Values over time.

    Attributes
    ----------
    t : ndarray of float64, shape (n,)
        Rising, in s, on the daemon's local clock.
    values : ndarray of float64, shape (n, n_outputs)
        NaN where nothing is known.
    what : str
        Where they come from, in words.
    is_held : bool
        A value holds until the next; otherwise it moves to it in a straight line.
    """

    t: Floats
    values: Floats
    what: str
    is_held: bool


@dataclass(frozen=True, slots=True)
class Ticks:
    """What a decoder would have seen of a session.

    Attributes
    ----------
    spikes : ndarray of uint32, shape (n,)
        Bit i is channel i; 0 in ticks that were lost.
    t_sample : ndarray of float64, shape (n,)
        Time of the newest sample, s, local clock; NaN where the tick may not be used.
    dt_ms : float
        Length of a tick, in ms.
    counts : dict of str to int
        used; left out: fillers, paused, blanked, lost, after_loss.
    """

    spikes: NDArray[np.uint32]
    t_sample: Floats
    dt_ms: float
    counts: dict[str, int] = field(default_factory=dict)


class Calibration(NamedTuple):
    """A fitted decoder, and all that there is to say of it."""

    decoder: FittedConfig
    metrics: Metrics
    provenance: Provenance
    ticks: Ticks
    notes: tuple[str, ...]


# -- targets ----------------------------------------------------------------------------------------------------------


def read_targets(session: Session, name: str) -> Series:
    """Take the values of the events of a name as targets: each holds until the next one."""
    return _events(session, name, is_held=True)


def read_behaviour(session: Session | None, spec: str) -> Series:
    """Read behaviour, between whose samples lines are drawn.

    Parameters
    ----------
    session : Session or None
        For ``event:NAME``.
    spec : str
        ``event:NAME``; a file ``.npz`` with arrays ``t`` and ``values``; a file ``.csv`` whose first column is the
        time; or ``FILE.xdf``, with ``:STREAM`` where it holds several streams of numbers. Times are on the local clock
        of the daemon, in s.

    Raises
    ------
    ConfigError
        There is no such event or file, or it does not hold such values.
    """
    if spec.startswith(_EVENT):
        if session is None:
            raise ConfigError("behaviour: a recording has no events; name a file .npz, .csv or .xdf[:STREAM]")
        return _events(session, spec.removeprefix(_EVENT), is_held=False)
    if match := _XDF.fullmatch(spec):
        return _sorted(*_read_xdf(Path(match[1]), match[2]), what=spec)
    path = Path(spec)
    reader = {".npz": _read_npz, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"behaviour: expected event:NAME, or a file .npz, .csv or .xdf[:STREAM], got {spec!r}")
    if not path.is_file():
        raise ConfigError(f"behaviour: {path}: no such file; check the path")
    return _sorted(*reader(path), what=spec)


def _events(session: Session, name: str, *, is_held: bool) -> Series:
    t, rows, names = [], [], set()
    for event in session.messages("events"):
        names.add(event["name"])
        if event["name"] == name:
            t.append(float(event["t"]))
            rows.append(_numbers(name, event["value"]))
    if not rows:
        raise ConfigError(
            f"{session.folder} has no event {name!r}; it has {', '.join(sorted(names)) or 'none'}: "
            "send them as the task goes on, with the target or the position as value"
        )
    widths = {len(row) for row in rows if row is not None}
    if len(widths) != 1:
        raise ConfigError(
            f"the values of the events {name!r} have {sorted(widths) or 'no'} numbers; each needs as many as the other"
        )
    width = widths.pop()
    values = np.array([[math.nan] * width if row is None else row for row in rows])
    return _sorted(np.array(t), values, what=f"{_EVENT}{name}", is_held=is_held)


def _numbers(name: str, value: Any) -> list[float] | None:
    """Return the numbers of an event's value; None for no value, from which on nothing is known."""
    if value is None:
        return None
    row = value if isinstance(value, (list, tuple)) else [value]
    if not row or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in row):
        raise ConfigError(f"an event {name!r} has the value {value!r:.80}; a number or a list of numbers expected")
    return [float(x) for x in row]


def _sorted(t: Floats, values: Floats, *, what: str, is_held: bool = False) -> Series:
    t = np.asarray(t, np.float64)
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if t.ndim != 1 or values.ndim != 2 or len(t) != len(values) or len(t) < 2:
        raise ConfigError(
            f"{what}: times of shape {t.shape} and values of shape {values.shape}; "
            "one row for each time expected, and at least 2"
        )
    if not np.isfinite(t).all():
        raise ConfigError(f"{what}: times that are not finite; leave those rows out")
    order = np.argsort(t, kind="stable")
    return Series(t[order], values[order], what, is_held)


def _read_npz(path: Path) -> tuple[Floats, Floats]:
    try:
        # opened here: numpy leaves a damaged archive open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return np.asarray(file["t"], np.float64), np.asarray(file["values"], np.float64)
    except NO_ARRAYS as error:
        raise ConfigError(f"{path}: expected the arrays t and values, as numpy.savez writes them: {error}") from None


def _read_csv(path: Path) -> tuple[Floats, Floats]:
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not any(cell.strip() for cell in row):
                    continue
                try:
                    rows.append([float(cell) if cell.strip() else math.nan for cell in row])
                except ValueError:
                    if number > 1:  # the first may name the columns
                        raise ConfigError(f"{path}: line {number} holds what is no number: {row}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        raise ConfigError(f"{path}: expected a time and one or more values in every line, and as many in each")
    table = np.array(rows)
    return table[:, 0], table[:, 1:]


def _read_xdf(path: Path, name: str | None) -> tuple[Floats, Floats]:
    """Read a stream of numbers; the offsets that LabRecorder measured bring it to the clock of the host it ran on."""
    try:
        streams = load_streams(path, dejitter_timestamps=False)
        known = {s["info"]["name"][0]: s for s in streams if s["info"]["channel_format"][0] != "string"}
    except RecordingError as error:
        raise ConfigError(f"behaviour: {error}") from None
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{path}: a stream of it states no name or format ({error!r}); it may be corrupt") from None
    if name is None and len(known) == 1:
        name = next(iter(known))
    if name not in known:
        raise ConfigError(
            f"{path} holds the streams of numbers {', '.join(map(str, known)) or 'none'}; "
            f"name one, as in {path}:{next(iter(known), 'NAME')}"
        )
    stream = known[name]
    return np.asarray(stream["time_stamps"], np.float64), np.asarray(stream["time_series"], np.float64)


# -- ticks ------------------------------------------------------------------------------------------------------------


def read_ticks(session: Session, settle_ms: float) -> Ticks:
    """Read the ticks of a session as a decoder would have seen them.

    Parameters
    ----------
    session : Session
        The session.
    settle_ms : float
        After ticks that are missing, how long until a decoder has forgotten them, in ms.

    Raises
    ------
    ConfigError
        The network never moved.
    """
    dt_ms = float(session.metadata["block_ms"]) / int(session.metadata["ticks_per_block"])
    names = ("tick", "t_sample", "flags", "spikes")
    # most of a record is of no use here, and a session may be long
    parts = [tuple(np.array(chunk[name]) for name in names) for chunk in session.chunks("ticks")]
    if not parts:
        raise ConfigError(f"{session.folder} holds no ticks: there is nothing to fit to")
    number, t, flags, spikes = (np.concatenate(column) for column in zip(*parts, strict=True))
    is_filler, is_paused = (flags & int(Flag.FILLER)) != 0, (flags & int(Flag.PAUSED)) != 0
    counts = {"fillers": int(is_filler.sum()), "paused": int((is_paused & ~is_filler).sum())}
    moved = (flags & _NOT_A_STEP) == 0
    if not moved.any():
        raise ConfigError(f"the network of {session.folder} never moved: there is nothing to fit to")
    number, t, flags, spikes = number[moved].astype(np.int64), t[moved].astype(np.float64), flags[moved], spikes[moved]
    is_blanked = (flags & int(Flag.BLANKED)) != 0
    counts["blanked"] = int(is_blanked.sum())
    t[is_blanked] = np.nan
    # where ticks are missing, or begin anew from a checkpoint, silence stands in for them
    settle = math.ceil(settle_ms / dt_ms)
    steps = np.diff(number)
    at = np.flatnonzero(steps != 1) + 1
    missing = np.where(steps[at - 1] > 1, steps[at - 1] - 1, settle)
    counts["lost"] = int(missing[steps[at - 1] > 1].sum())
    missing = np.minimum(missing, math.ceil(_MOST_LOST_S * 1e3 / dt_ms))
    polluted = np.zeros(len(t), np.bool_)
    for first in at:
        polluted[first : first + settle] = True
    # of a board that did not answer no spikes are known, and silence stands in for them, too
    is_unknown = (flags & int(Flag.BOARD)) != 0
    polluted |= is_unknown
    for first in np.flatnonzero(is_unknown[:-1] & ~is_unknown[1:]) + 1:
        polluted[first : first + settle] = True
    counts["after_loss"] = int((polluted & ~is_blanked).sum())
    t[polluted] = np.nan
    where = np.repeat(at, missing)
    t, spikes = np.insert(t, where, np.nan), np.insert(spikes.astype(np.uint32), where, 0)
    counts["used"] = int(np.isfinite(t).sum())
    return Ticks(spikes, t, dt_ms, counts)


def align(series: Series, t: Floats) -> Floats:
    """Lay values on the times of ticks.

    Parameters
    ----------
    series : Series
        Held, or to be interpolated.
    t : ndarray of float64, shape (n,)
        Times, in s; NaN where nothing is wanted.

    Returns
    -------
    ndarray of float64, shape (n, n_outputs)
        NaN before the first value and after the last, and, where lines are drawn, in steps of more than 1 s and more
        than five usual ones: nobody knows what went on there.
    """
    found = np.full((len(t), series.values.shape[1]), np.nan)
    with np.errstate(invalid="ignore"):
        inside = (t >= series.t[0]) & (t <= series.t[-1])
    at = t[inside]
    if series.is_held:
        found[inside] = series.values[np.searchsorted(series.t, at, side="right") - 1]
        return found
    steps = np.diff(series.t)
    longest = max(_LONGEST_STEP_S, _LONGEST_STEP * float(np.median(steps)))
    right = np.clip(np.searchsorted(series.t, at), 1, len(series.t) - 1)
    values = np.column_stack([np.interp(at, series.t, column) for column in series.values.T])
    values[steps[right - 1] > longest] = np.nan
    found[inside] = values
    return found


# -- fitting ----------------------------------------------------------------------------------------------------------


def calibrate(
    session: Session, series: Series, kind: Kind = "linear", options: FitOptions | None = None
) -> Calibration:
    """Fit a decoder to a session and validate it on held-out blocks.

    Parameters
    ----------
    session : Session
        The session.
    series : Series
        What the outputs should have been.
    kind : {"linear", "kalman", "population_vector", "rates"}
        As of `calibration.fit`; "rates" is a linear decoder of filtered rates.
    options : FitOptions, optional
        How.

    Raises
    ------
    ConfigError
        Targets and ticks have no time in common, or as of `calibration.fit`.
    """
    options = options or FitOptions()
    if kind == "rates":
        options = options.model_copy(update={"features": "rates"})
    fitted: calibration.Kind = "linear" if kind == "rates" else kind
    memory_ms = max(options.gap_ms, 3.0 * options.tau_ms, options.n_lags * options.bin_ms)
    ticks = read_ticks(session, memory_ms)
    targets = align(series, ticks.t_sample)
    if not np.isfinite(targets).all(axis=1).any():
        shown = ticks.t_sample[np.isfinite(ticks.t_sample)]
        raise ConfigError(
            f"{series.what}: its times, {series.t[0]:.3f} to {series.t[-1]:.3f} s, meet no usable tick of the session, "
            f"{_span(shown)}; both must be on the daemon's local clock"
        )
    fit = calibration.fit(ticks.spikes, ticks.dt_ms, targets, fitted, options)
    metadata = session.metadata
    config = json.dumps(metadata["config"], sort_keys=True, default=str)
    metrics = fit.metrics.model_dump(mode="json")
    provenance = Provenance(
        fitted_at=datetime.now(UTC),
        dt_ms=ticks.dt_ms,
        session=session.folder.resolve().name,
        config_hash=hashlib.sha256(config.encode()).hexdigest(),
        options={
            "kind": kind,
            "targets": series.what,
            "held": series.is_held,
            "fit": options.model_dump(mode="json"),
            "ticks": dict(ticks.counts),
            "session_sha256": log_hash(session.folder),
            "versions": {name: str(value) for name, value in metadata["versions"].items()},
        },
        metrics=metrics | {"beats_baselines": fit.metrics.beats_baselines},
    )
    return Calibration(fit.decoder, fit.metrics, provenance, ticks, tuple(_notes(metadata["config"], fit.decoder)))


def log_hash(folder: Path) -> str:
    """Return the SHA-256 of the log of a session, all segments in order."""
    digest = hashlib.sha256()
    for path in segments(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def save(folder: Path, name: str, found: Calibration) -> Path:
    """Write the next version of a decoder; return its file."""
    return save_decoder(folder, name, found.decoder, found.provenance)


def _span(t: Floats) -> str:
    return f"{t.min():.3f} to {t.max():.3f} s" if len(t) else "of which there is none"


def _notes(config: dict[str, Any], decoder: FittedConfig) -> list[str]:
    """Say what stands between this decoder and the daemon that the session came from."""
    section = config.get("decoder")
    if not isinstance(section, dict):
        return [
            "the session has no [decoder], and its daemon takes none: add [decoder] with path = this file, start again"
        ]
    notes = []
    if section.get("events"):
        notes.append(
            "the session's decoder has events; they are not part of a fit, and a swap leaves them out: "
            "what they trigger stays away until the rollback"
        )
    n_before = _n_outputs(section)
    if n_before is not None and n_before != decoder.n_outputs:
        notes.append(
            f"the session's decoder has {n_before} outputs and this one {decoder.n_outputs}: its daemon refuses the "
            "swap; name this file as path in [decoder] and start again"
        )
    return notes


def _n_outputs(section: dict[str, Any]) -> int | None:
    """Return the outputs of a decoder in a configuration; None where only its file knows."""
    sizes = {"rates": "channels", "linear": "weights", "kalman": "outputs"}
    kind = section.get("kind")
    if kind == "population_vector":
        return len(section["preferred_directions"][0])
    return len(section[sizes[kind]]) if kind in sizes else None


# -- telling ----------------------------------------------------------------------------------------------------------


def table(found: Calibration) -> list[list[str]]:
    """Return the figures as rows: what, of the decoder, of always the mean, of shuffled targets.

    R2, Pearson's r, and the part of trials in which the output lies nearest to its target or points its way; with 95 %
    intervals over the held-out blocks.
    """
    metrics = found.metrics
    columns = (metrics.decoder, metrics.mean, metrics.shuffled)
    rows = [["R2", *(_shown(scores.r2) for scores in columns)]]
    for o in range(len(metrics.decoder.r2_per_output)):
        rows.append([f"R2, output {o}", *(_shown(scores.r2_per_output[o]) for scores in columns)])
        rows.append([f"r, output {o}", *(_shown(scores.correlation_per_output[o]) for scores in columns)])
    for key, label in (
        ("nearest_target", "nearest target"),
        ("within_45_degrees", "within 45 deg"),
    ):
        if getattr(metrics.decoder, key) is not None:
            rows.append([label, *(_shown(_estimate(scores, key)) for scores in columns)])
    return rows


def _estimate(scores: Scores, key: str) -> Estimate | None:
    estimate: Estimate | None = getattr(scores, key)
    return estimate


def _shown(estimate: Estimate | None) -> str:
    if estimate is None or estimate.mean is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def left_out(counts: dict[str, int]) -> str:
    """Say in words which ticks were left out."""
    words: Sequence[tuple[str, str]] = (
        ("fillers", "fillers"),
        ("paused", "paused"),
        ("blanked", "blanked"),
        ("lost", "lost"),
        ("after_loss", "after a loss"),
    )
    return ", ".join(f"{counts[key]} {word}" for key, word in words if counts.get(key)) or "none"
