"""From sorted units to the network's channels: proposing groups, explaining them, and freezing their normalisation."""

import csv
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import ArrayLike, NDArray

from neuromod.engine.compiled import jit
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import COINCIDENCE, INHIBITORY, N_CHANNELS, N_SENSORY
from neuromod.sorting.bundle import Bundle, Encoding, Normalisation
from neuromod.sorting.config import EncoderConfig
from neuromod.sorting.encoder import Encoder, EncoderState, encode
from neuromod.sorting.unit_tuning import Tuning

Floats = NDArray[np.float64]
Counts = NDArray[np.float32]

# Below these, a measured deviation is uncertain by some 10 %, and the closed form is no worse: see the notes of
# `measure_normalisation`.
MIN_SPIKES = 30
MIN_TIME_CONSTANTS = 100

_FEWEST_SECTORS = 4
_BLOCKS_AT_ONCE = 4096
_LONGEST_MS = 3600e3


# -- groups -----------------------------------------------------------------------------------------------------------


def propose(
    bundle: Bundle,
    by: Literal["tuning", "location", "rate", "table"] = "location",
    *,
    n_groups: int | None = None,
    tuning: Tuning | None = None,
    table: Path | Mapping[str, int] | None = None,
) -> Encoding:
    """Propose which units feed which stimulus.

    Parameters
    ----------
    bundle : Bundle
        The sorting.
    by : {"location", "rate", "tuning", "table"}
        location: neighbours together, in the order of the array, shares of units and of rate as equal as neighbourhood
        allows. rate: summed rates as equal as can be, wherever units lie. tuning: units of like preferred direction, in
        equal sectors, or of one preferred condition; units that are not tuned are left out. table: as given.
    n_groups : int, optional
        How many stimuli to use, 1 to 14; not for a table, nor for conditions. By default 14, or one for each unit where
        there are fewer; sectors of a direction as many, down to 4, as leave the fewest empty.
    tuning : Tuning, optional
        Of the units, in the bundle's order; for "tuning", see `unit_tuning.measure_tuning`.
    table : Path or mapping of str to int, optional
        For "table": unit ids with their stimuli, see `read_table`.

    Returns
    -------
    Encoding
        Groups of unit ids for stimulus 0, 1, ..., with a reason each.

    Raises
    ------
    ConfigError
        There is no unit, something that the choice needs is missing or does not fit, or nothing could be grouped.
    """
    if not bundle.unit_ids:
        raise ConfigError(f'the sorting of "{bundle.info.name}" has no unit that could be encoded')
    if n_groups is not None and not 1 <= n_groups <= N_SENSORY:
        raise ConfigError(f"n_groups = {n_groups}: 1 to {N_SENSORY} expected, the number of sensory channels")
    for what, given, needed in (
        ("tuning", tuning is not None, by == "tuning"),
        ("table", table is not None, by == "table"),
    ):
        if given != needed:
            raise ConfigError(
                f"an encoding by {by} {'takes' if needed else 'has no use for'} a {what}: "
                f"{'give one' if needed else 'leave it out'}"
            )
    if tuning is not None:
        return _by_tuning(bundle, tuning, n_groups)
    if table is not None:
        if n_groups is not None:
            raise ConfigError("n_groups has no effect on a table, which names its stimuli itself; leave it out")
        return _by_table(bundle, read_table(table) if isinstance(table, Path) else dict(table))
    n = min(n_groups or N_SENSORY, len(bundle.unit_ids))
    return _by_rate(bundle, n) if by == "rate" else _by_location(bundle, n)


def _by_location(bundle: Bundle, n_groups: int) -> Encoding:
    """Recursive bisection: across the longer side of what is left, where the weights of both parts suit their groups.

    A unit weighs the mean of its share of units and of rate. The encoder gives each unit of a group the same say, and
    the Fisher information of a Poisson train about a relative change of its rate is that rate: so this is balance
    between loudness and information.
    """
    units = bundle.info.units
    positions = np.array([unit.position_um for unit in units])
    rates = _rates(bundle)
    shares = rates / rates.sum() if rates.sum() > 0.0 else np.full(len(units), 1.0 / len(units))
    weights = 0.5 * shares + 0.5 / len(units)

    def split(members: list[int], n: int) -> list[list[int]]:
        if n == 1:
            return [sorted(members)]
        here = positions[members]
        axis = 0 if np.ptp(here[:, 0]) > np.ptp(here[:, 1]) else 1  # on equal sides along y: the depth of a probe
        ordered = sorted(members, key=lambda i: (positions[i, axis], positions[i, 1 - axis], i))
        n_low = n // 2
        before = np.cumsum(weights[ordered])
        sizes = np.arange(n_low, len(ordered) - (n - n_low) + 1)  # each group gets at least one unit
        cut = int(sizes[np.argmin(np.abs(before[sizes - 1] - before[-1] * n_low / n))])
        return split(ordered[:cut], n_low) + split(ordered[cut:], n - n_low)

    groups = split(list(range(len(units))), n_groups)
    reasons = []
    for members in groups:
        low, high = positions[members].min(axis=0), positions[members].max(axis=0)
        reasons.append(
            f"{_number(members)} {_where(low, high)}, "
            f"{100 * len(members) / len(units):.1f} % of units and {100 * shares[members].sum():.1f} % of spikes"
        )
    return _encoding(bundle, "location", groups, reasons)


def _by_rate(bundle: Bundle, n_groups: int) -> Encoding:
    """The fastest unit left goes to the group of the least sum, at most 4/3 of the best (Graham 1969)."""
    rates = _rates(bundle)
    groups: list[list[int]] = [[] for _ in range(n_groups)]
    for i in np.argsort(-rates, kind="stable").tolist():
        min(groups, key=lambda group: (sum(rates[group]), len(group))).append(i)
    mean = rates.sum() / n_groups
    reasons = [
        f"{_number(group)} with {rates[group].sum():.3g} Hz together; groups have {mean:.3g} Hz on average"
        for group in groups
    ]
    return _encoding(bundle, "rate", [sorted(group) for group in groups], reasons)


def _by_tuning(bundle: Bundle, tuning: Tuning, n_groups: int | None) -> Encoding:
    if len(tuning.preferred) != len(bundle.unit_ids):
        raise ConfigError(f"tuning of {len(tuning.preferred)} units for a sorting of {len(bundle.unit_ids)}")
    tuned = np.flatnonzero(tuning.is_tuned)
    if len(tuned) == 0:
        raise ConfigError(
            f"no unit of {len(tuning.preferred)} follows the behaviour at alpha = {tuning.alpha:g}; check that "
            "behaviour and spikes run on one clock, or encode by location"
        )
    if tuning.conditions:
        if n_groups is not None:
            raise ConfigError("n_groups has no effect on conditions, which get one stimulus each; leave it out")
        n = len(tuning.conditions)
        if n > N_SENSORY:
            raise ConfigError(f"{n} conditions for {N_SENSORY} sensory channels; join some, or give their directions")
        place = tuning.preferred.astype(np.int64)
        names = [f'condition "{condition}"' for condition in tuning.conditions]
    else:
        n = n_groups or _best_sectors(tuning.preferred[tuned])
        place = _sector(tuning.preferred, n)
        names = [f"directions around {math.degrees(2.0 * math.pi * k / n):.0f} deg" for k in range(n)]
    groups = [tuned[place[tuned] == k].tolist() for k in range(n)]
    reasons = [
        f"{_number(members)} preferring {names[k]}; behaviour explains "
        f"{100 * float(np.mean(tuning.strength[members])):.1f} % of the variance on average (p <= {tuning.alpha:g})"
        if members
        else f"no tuned unit prefers {names[k]}: this stimulus stays 0"
        for k, members in enumerate(groups)
    ]
    return _encoding(bundle, "tuning", groups, reasons)


def _best_sectors(directions: Floats) -> int:
    """Number of equal sectors, the most of those that leave the fewest empty."""
    most = min(N_SENSORY, len(directions))
    return min(
        range(most, min(_FEWEST_SECTORS, most) - 1, -1), key=lambda n: n - len(np.unique(_sector(directions, n)))
    )


def _sector(directions: Floats, n: int) -> NDArray[np.int64]:
    """Sectors of equal width; number 0 is centred on direction 0."""
    return np.floor(directions * n / (2.0 * math.pi) + 0.5).astype(np.int64) % n


def _by_table(bundle: Bundle, table: Mapping[str, int]) -> Encoding:
    index = {unit: i for i, unit in enumerate(bundle.unit_ids)}
    unknown = [unit for unit in table if unit not in index]
    if unknown:
        raise ConfigError(
            f"the table names {_listed(unknown)}, which the sorting does not have; it has {_listed(bundle.unit_ids)}"
        )
    if not table:
        raise ConfigError("the table names no unit; give at least one line of unit and stimulus")
    for unit, stimulus in table.items():
        if isinstance(stimulus, bool) or not isinstance(stimulus, int) or not 0 <= stimulus < N_CHANNELS:
            raise ConfigError(
                f'the table gives unit "{unit}" stimulus {stimulus!r}; 0 to {N_CHANNELS - 1} expected, '
                f"of which 0 to {N_SENSORY - 1} are sensory"
            )
    groups = [[i for unit, i in index.items() if table.get(unit) == k] for k in range(max(table.values()) + 1)]
    special = {COINCIDENCE: ", of the coincidence detector", INHIBITORY: ", of the inhibitory interneuron"}
    reasons = [
        f"{_number(members) if members else 'no unit'} by the table{special.get(k, '')}"
        for k, members in enumerate(groups)
    ]
    return _encoding(bundle, "table", groups, reasons)


def read_table(path: Path) -> dict[str, int]:
    """Read units and their stimuli from a file.

    Parameters
    ----------
    path : Path
        ``.csv`` with the columns ``unit`` and ``stimulus``, in any order and beside any others; or ``.toml`` with a
        table ``[stimulus]`` of ``"unit id" = number``.

    Returns
    -------
    dict of str to int
        Stimulus of each unit named.

    Raises
    ------
    ConfigError
        The file cannot be read, is no such table, or names a unit twice; says the line where it can.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
        if path.suffix.lower() == ".toml":
            found = tomllib.loads(text).get("stimulus")
            if not isinstance(found, dict):
                raise ConfigError(f'{path}: a table [stimulus] with lines such as "unit id" = 3 expected')
            return found
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the table of units {path}: {error}") from error
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"{path}: a table of units is a .csv or .toml file")
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if not {"unit", "stimulus"} <= set(reader.fieldnames or ()):
        raise ConfigError(f'{path}: a first line with the columns "unit" and "stimulus" expected')
    table: dict[str, int] = {}
    for row in reader:
        unit, stimulus = (row["unit"] or "").strip(), (row["stimulus"] or "").strip()
        where = f"{path}, line {reader.line_num}"
        if not unit:
            raise ConfigError(f"{where}: no unit is named")
        if unit in table:
            raise ConfigError(f'{where}: unit "{unit}" was given a stimulus before; a unit feeds one')
        if not (stimulus.isascii() and stimulus.isdigit()):
            raise ConfigError(f'{where}: stimulus "{stimulus}" of unit "{unit}" is no whole number from 0')
        table[unit] = int(stimulus)
    return table


def _encoding(
    bundle: Bundle,
    by: Literal["tuning", "location", "rate", "table"],
    groups: Sequence[Sequence[int]],
    reasons: Sequence[str],
) -> Encoding:
    ids = bundle.unit_ids
    return Encoding(by=by, groups=tuple(tuple(ids[i] for i in group) for group in groups), reasons=tuple(reasons))


def _rates(bundle: Bundle) -> Floats:
    return np.array([unit.rate_hz for unit in bundle.info.units], dtype=np.float64)


def _where(low: Floats, high: Floats) -> str:
    first, last = (f"({x:z.0f}, {y:z.0f})" for x, y in (low, high))
    return f"at {first} um" if first == last else f"between {first} and {last} um"


def _number(members: Sequence[int]) -> str:
    return f"{len(members)} unit{'s' if len(members) != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:8]) + (", ..." if len(names) > 8 else "")


# -- explaining -------------------------------------------------------------------------------------------------------


class GroupRow(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One stimulus and what feeds it."""

    stimulus: int | None
    """None: the units that feed none."""
    units: tuple[str, ...]
    rate_hz: float
    """Summed."""
    positions_um: tuple[tuple[float, float], ...]
    reason: str


COLUMNS = ("stimulus", "units", "Hz", "x um", "y um", "reason")
"""Of `cells`."""


def explain(encoding: Encoding, bundle: Bundle) -> tuple[GroupRow, ...]:
    """Say what feeds each stimulus and why; last, where there are any, which units feed none.

    Raises
    ------
    ConfigError
        The encoding names a unit that the bundle does not have.
    """
    units = {unit.id: unit for unit in bundle.info.units}
    used = {unit for group in encoding.groups for unit in group}
    unknown = sorted(used - units.keys())
    if unknown:
        raise ConfigError(f"the encoding names {_listed(unknown)}, which the sorting does not have; encode it again")
    left = tuple(unit for unit in bundle.unit_ids if unit not in used)
    why = {
        "tuning": "left out: the behaviour explains no more of their counts than chance would",
        "table": "left out: not in the table",
    }
    rows: list[tuple[int | None, tuple[str, ...], str]] = [
        (k, group, reason) for k, (group, reason) in enumerate(zip(encoding.groups, encoding.reasons, strict=True))
    ]
    if left:
        rows.append((None, left, why.get(encoding.by, "left out")))
    return tuple(
        GroupRow(
            stimulus=stimulus,
            units=group,
            rate_hz=sum(units[unit].rate_hz for unit in group),
            positions_um=tuple(units[unit].position_um for unit in group),
            reason=reason,
        )
        for stimulus, group, reason in rows
    )


def cells(rows: Iterable[GroupRow]) -> list[list[str]]:
    """Rows as text, under `COLUMNS`."""
    return [
        [
            str(row.stimulus) if row.stimulus is not None else "-",
            " ".join(row.units) or "-",
            f"{row.rate_hz:.1f}",
            *(_range([position[axis] for position in row.positions_um]) for axis in (0, 1)),
            row.reason,
        ]
        for row in rows
    ]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = f"{min(values):z.0f}", f"{max(values):z.0f}"
    return low if low == high else f"{low} to {high}"


# -- normalisation ----------------------------------------------------------------------------------------------------


def poisson_normalisation(rate_hz: ArrayLike, block_ms: float, smoothing_ms: float) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the smoothed counts of Poisson units, in closed form.

    Parameters
    ----------
    rate_hz : array_like of float
        Rates.
    block_ms : float
        Length of a block.
    smoothing_ms : float
        Time constant of the encoder's exponential; 0: none.

    Returns
    -------
    mean, sd : ndarray of float64
        Per block.

    Notes
    -----
    The encoder smooths counts c by ``s[t] = d s[t - 1] + (1 - d) c[t]`` with ``d = exp(-block / tau)``: an exponential
    rate kernel of weight 1, so the mean of s is that of c, ``m = rate * block``. Counts of a Poisson unit are
    independent with variance m, so that of s is ``m (1 - d)^2 / (1 - d^2) = m tanh(block / (2 tau))``: shot noise
    through an exponential, Campbell's theorem in discrete time. For blocks much shorter than tau the rate so estimated,
    ``s / block``, has the variance ``rate / (2 tau)`` whatever the block.
    """
    mean = np.asarray(rate_hz, dtype=np.float64) * (block_ms * 1e-3)
    factor = math.tanh(block_ms / (2.0 * smoothing_ms)) if smoothing_ms > 0.0 else 1.0
    return mean, np.sqrt(mean * factor)


def count_blocks(
    samples: ArrayLike, units: ArrayLike, bundle: Bundle, n_samples: int, *, block_ms: float = 1.0
) -> Iterator[Counts]:
    """Count the spikes of each unit in blocks, as the loop cuts them.

    Parameters
    ----------
    samples : array_like of int
        Sample of each spike, counted from the first of the recording, in any order.
    units : array_like of int
        Its unit, a row of the bundle's templates.
    bundle : Bundle
        The sorting: its units and its sampling frequency.
    n_samples : int
        Length of the recording. A last block that is not whole is left out.
    block_ms : float
        At least one sample.

    Yields
    ------
    ndarray of float32, shape (up to 4096, n_units)
        Counts of successive blocks.
    """
    at, unit = np.asarray(samples, dtype=np.int64), np.asarray(units, dtype=np.int64)
    n_units = len(bundle.unit_ids)
    if at.ndim != 1 or at.shape != unit.shape:
        raise ConfigError(f"samples of shape {at.shape} and units of shape {unit.shape}; one of each a spike expected")
    if np.any((unit < 0) | (unit >= n_units)) or np.any((at < 0) | (at >= n_samples)):
        raise ConfigError(
            f"spikes outside the recording of {n_samples} samples, or of other units than the {n_units} of the sorting"
        )
    order = np.argsort(at, kind="stable")
    at, unit = at[order], unit[order]
    length = block_ms * 1e-3 * bundle.info.sampling_frequency
    if not (math.isfinite(length) and length >= 1.0 - 1e-9):
        raise ConfigError(f"blocks of {block_ms} ms hold less than a sample; lengthen them")
    n_blocks = int((n_samples + 1) / length) + 1
    for start in range(0, n_blocks, _BLOCKS_AT_ONCE):
        numbers = np.arange(start, min(start + _BLOCKS_AT_ONCE, n_blocks) + 1)
        edges = np.maximum(numbers, np.floor(numbers * length + 1e-9).astype(np.int64))
        edges = edges[edges <= n_samples]
        n = len(edges) - 1
        if n < 1:
            return
        first, last = np.searchsorted(at, edges[[0, -1]])
        block = np.searchsorted(edges, at[first:last], side="right") - 1
        counts = np.bincount(block * n_units + unit[first:last], minlength=n * n_units)
        yield counts.reshape(n, n_units).astype(np.float32)


def measure_normalisation(
    bundle: Bundle,
    counts: Counts | Iterable[Counts] | None = None,
    *,
    block_ms: float = 1.0,
    smoothing_ms: float = 30.0,
) -> Normalisation:
    """Measure the constants with which a session normalises the counts of units from its first block on.

    Parameters
    ----------
    bundle : Bundle
        The sorting.
    counts : ndarray of float32, shape (n_blocks, n_units), or iterable of such chunks, optional
        Spikes of each unit in successive blocks, see `count_blocks`; best those of the online sorter. Of more than an
        hour, the first hour is used. None: all units by the closed form.
    block_ms, smoothing_ms : float
        As in the session.

    Returns
    -------
    Normalisation
        Mean and standard deviation of the smoothed counts, per unit.

    Raises
    ------
    ConfigError
        The counts are of another number of units, negative or not finite, or the durations are impossible.

    Notes
    -----
    The encoder's own kernel smooths the counts. Where it saw fewer than 30 spikes of a unit, or less than 100 time
    constants, the closed form of `poisson_normalisation` stands in, at the unit's rate in the bundle (with none there,
    at half a spike more than were seen: Jeffreys' estimate, never 0). Spikes of a slow unit are lone kernels, so the
    variance is uncertain by ``1 / sqrt(n)`` and the deviation by half of that, 9 % at n = 30, before it is asked
    whether two of them fell together by chance; of a fast unit it is uncertain by ``sqrt(tau / T)``, 10 % at 100 time
    constants. The closed form has no more than the error of its rate, and is never 0, which would silence the unit.
    """
    if not (math.isfinite(block_ms) and 0.0 < block_ms < _LONGEST_MS / 2):
        raise ConfigError(f"a block of {block_ms} ms; a positive duration below half an hour expected")
    if not 0.0 <= smoothing_ms <= 60_000.0:
        raise ConfigError(f"smoothing_ms = {smoothing_ms}: 0 to 60000 expected, as encoder.smoothing_ms")
    n_units = len(bundle.unit_ids)
    if n_units == 0:
        raise ConfigError(f'the sorting of "{bundle.info.name}" has no unit that could be normalised')
    # the mean and deviation are read from the warm-up of an encoder that never ends it
    settings = EncoderConfig(smoothing_ms=smoothing_ms, warmup_s=_LONGEST_MS * 1e-3)
    encoder = Encoder(settings, n_units, bundle.unit_ids, block_ms=block_ms)
    left = round(_LONGEST_MS / block_ms) - 1
    n_blocks, spikes, stimuli = 0, np.zeros(n_units), np.zeros(N_CHANNELS, dtype=np.float32)
    for chunk in (counts,) if isinstance(counts, np.ndarray) else counts or ():
        if chunk.ndim != 2 or chunk.shape[1] != n_units:
            raise ConfigError(f"counts of shape {chunk.shape}; (n_blocks, {n_units}) expected, a column for each unit")
        taken = np.ascontiguousarray(chunk[: left - n_blocks], dtype=np.float32)
        if not np.all((taken >= 0.0) & np.isfinite(taken)):
            raise ConfigError("counts that are negative or not finite; leave out the blocks that are not known")
        _encode_all(encoder.state, taken, stimuli)
        n_blocks += len(taken)
        spikes += taken.sum(axis=0, dtype=np.float64)
        if n_blocks == left:
            break
    mean, sd = encoder.normalisation
    rates = _rates(bundle)
    if n_blocks:
        rates = np.where(rates > 0.0, rates, (spikes + 0.5) / (n_blocks * block_ms * 1e-3))
    is_known = (spikes >= MIN_SPIKES) & (n_blocks * block_ms >= MIN_TIME_CONSTANTS * smoothing_ms)
    poisson_mean, poisson_sd = poisson_normalisation(rates, block_ms, smoothing_ms)
    return Normalisation(
        block_ms=block_ms,
        smoothing_ms=smoothing_ms,
        mean=tuple(np.where(is_known, mean, poisson_mean).tolist()),
        sd=tuple(np.where(is_known, sd, poisson_sd).tolist()),
    )


@jit
def _encode_all(state: EncoderState, counts: Counts, stimuli: Counts) -> None:
    for b in range(counts.shape[0]):
        encode(state, counts[b], stimuli)
