"""Criteria of `neuromod hil`: what a run has to keep to, with units in the names, and what becomes of them."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
from pydantic import Field

from neuromod.bridge.config_errors import checked
from neuromod.bridge.hil_trace import Trace
from neuromod.bridge.saturation import Saturation
from neuromod.engine.errors import ConfigError

Count = Annotated[int, Field(ge=0)]
Microseconds = Annotated[float, Field(gt=0, le=60e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

LINK_COUNTS = ("damaged", "resent", "reordered", "late", "resets", "reconnects")
"""Counts of a link that have a limit of their own; any other one comes under `link_other_max`."""


class Criteria(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Limits of a run.

    Attributes
    ----------
    ticks_min : int
        Ticks that the device has to have answered.
    spikes_min : int
        Spikes that the reference has to have fired: silence proves little.
    spike_mismatches_max, membrane_mismatches_max : int
        Ticks at which a spike, or a membrane as far as the protocol carries it, differs from the reference.
    state_mismatches_max : int
        Words of the whole state that differ, over all comparisons.
    state_every_ticks : int
        How often the whole state is compared where a run goes as fast as it can; at true time it is compared at the
        end, since reading it holds up the ticks. 0 for only at the end.
    lost_answers_max : int
        Ticks of which it is not known what the device made of them.
    missed_ticks_max : int
        Ticks of the loop that did not reach the device.
    link_..._max : int
        Faults that the link counted, by name.
    round_trip_p50_us, round_trip_p99_us, round_trip_max_us : float, optional
        From the first byte written to the last byte of the answer read; not judged where left out.
    deadline_us : float, optional
        Longest round trip that is in time; without it, the period of a block at the speed of the run.
    deadline_misses_share_max : float
        Share of ticks that are over it; a lost answer is over it too.
    float_agreement_min : float, optional
        Share of spikes that fixed and floating point have at the same tick, 2 both / (one + other).
    saturated_drives_share_max : float, optional
        Share of ticks at which the drive of a channel goes past +-128 mV, where fixed point ends: the session's doing,
        and no fault of a device.
    require_all : bool
        A criterion that could not be judged counts as failed.
    """

    ticks_min: Annotated[int, Field(ge=1)] = 1_000
    spikes_min: Count = 1
    spike_mismatches_max: Count = 0
    membrane_mismatches_max: Count = 0
    state_mismatches_max: Count = 0
    state_every_ticks: Count = 10_000
    lost_answers_max: Count = 0
    missed_ticks_max: Count = 0
    link_damaged_max: Count = 0
    link_resent_max: Count = 0
    link_reordered_max: Count = 0
    link_late_max: Count = 0
    link_resets_max: Count = 0
    link_reconnects_max: Count = 0
    link_other_max: Count = 0
    round_trip_p50_us: Microseconds | None = 500.0
    round_trip_p99_us: Microseconds | None = 1_000.0
    round_trip_max_us: Microseconds | None = None
    deadline_us: Microseconds | None = None
    deadline_misses_share_max: Share = 0.001
    float_agreement_min: Share | None = None
    saturated_drives_share_max: Share | None = None
    require_all: bool = False


_COMMENTS = {
    "ticks_min": "ticks that the device has to have answered",
    "spikes_min": "spikes that the reference has to have fired: silence proves little",
    "spike_mismatches_max": "ticks at which a spike differs from the reference",
    "membrane_mismatches_max": "ticks at which a membrane differs, as far as the protocol carries it",
    "state_mismatches_max": "words of the whole state (weights, eligibility, ...) that differ, over all comparisons",
    "state_every_ticks": "how often the whole state is compared as fast as possible; at true time only at the end",
    "lost_answers_max": "ticks of which it is not known what the device made of them",
    "missed_ticks_max": "ticks of the loop that did not reach the device",
    "link_damaged_max": "frames that came damaged, either way",
    "link_resent_max": "frames that were sent again",
    "link_reordered_max": "answers out of order",
    "link_late_max": "answers after their time",
    "link_resets_max": "times that the board started anew",
    "link_reconnects_max": "times that the port went away and came back",
    "link_other_max": "any other fault that the device counts",
    "round_trip_p50_us": "round trip from the first byte written to the last byte read: half of them",
    "round_trip_p99_us": "... 99 of 100",
    "round_trip_max_us": "... all; not judged where left out",
    "deadline_us": "longest round trip in time; where left out, the period of a block at the speed of the run",
    "deadline_misses_share_max": "share of ticks that are over it",
    "float_agreement_min": "spikes in common of fixed and floating point, 0 to 1; a statistic where left out",
    "saturated_drives_share_max": "share of ticks whose drive goes past +-128 mV; a statistic where left out",
    "require_all": "a criterion that could not be judged counts as failed",
}
_EXAMPLES = {
    "round_trip_max_us": "5000.0",
    "deadline_us": "1000.0",
    "float_agreement_min": "0.9",
    "saturated_drives_share_max": "0.0",
}


def criteria_toml() -> str:
    """Return the defaults as a commented file."""
    lines = ["# Criteria of 'neuromod hil'. Every key may be left out; these are the defaults.", ""]
    for name, field in Criteria.model_fields.items():
        value = field.default
        text = str(value).lower() if isinstance(value, bool) else f"{value}"
        key = f"# {name} = {_EXAMPLES[name]}" if value is None else f"{name} = {text}"
        lines.append(f"{key:<40}# {_COMMENTS[name]}")
    return "\n".join(lines) + "\n"


def load_criteria(path: Path | None) -> Criteria:
    """Read criteria; without a file, the defaults.

    Raises
    ------
    ConfigError
        The file cannot be read, or says what there is not.
    """
    if path is None:
        return Criteria()
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); 'neuromod hil --print-criteria' prints one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return checked(Criteria, raw, text, str(path))


Status = Literal["passed", "failed", "not judged"]


class Judgement(NamedTuple):
    """One criterion, and what became of it."""

    name: str
    key: str
    limit: str
    found: str
    status: Status
    why: str = ""
    value: float | None = None
    bound: float | None = None


class Timing(NamedTuple):
    """How times of a run have to be taken."""

    deadline_us: float
    why_not: str
    """Why round trips are not judged; empty where they are."""


def judge(criteria: Criteria, trace: Trace, timing: Timing) -> list[Judgement]:
    """Hold a run against its criteria."""
    counts = trace.link_counts()
    other = {name: n for name, n in counts.items() if name not in LINK_COUNTS and n and name not in _NO_FAULTS}
    rows = [
        _at_least("ticks answered", "ticks_min", criteria.ticks_min, trace.n_ticks - trace.lost, _gone(trace)),
        _at_least("spikes compared", "spikes_min", criteria.spikes_min, int(trace.float_counts[0].sum())),
        _at_most("spike mismatches", "spike_mismatches_max", criteria.spike_mismatches_max, trace.spike_mismatches,
                 _first(trace, "spikes"), unit="ticks"),
        _at_most("membrane mismatches", "membrane_mismatches_max", criteria.membrane_mismatches_max,
                 trace.membrane_mismatches, _first(trace, "membranes"), unit="ticks",
                 why_not="" if trace.membranes_compared else "the protocol carries no membranes"),
        _at_most("state mismatches", "state_mismatches_max", criteria.state_mismatches_max, trace.state_mismatches,
                 _first_word(trace), unit="words",
                 why_not="" if trace.states_compared else trace.why_no_state or "the state could not be read"),
        _at_most("lost answers", "lost_answers_max", criteria.lost_answers_max, trace.lost, _gone(trace)),
        _at_most("ticks missed", "missed_ticks_max", criteria.missed_ticks_max, trace.missed,
                 "the loop's messages were not taken in time" if trace.missed else ""),
    ]  # fmt: skip
    for name in LINK_COUNTS:
        found = max(counts.get(name, 0), trace.returns if name == "reconnects" else 0)
        key = f"link_{name}_max"
        rows.append(_at_most(f"link: {name}", key, getattr(criteria, key), found))
    named = ", ".join(f"{name} {n}" for name, n in other.items())
    rows.append(_at_most("link: other faults", "link_other_max", criteria.link_other_max, sum(other.values()), named))
    rows += _times(criteria, trace, timing)
    agreement = float_agreement(trace)
    why_not = "" if agreement is not None else "neither had a spike"
    least = criteria.float_agreement_min
    if least is None:
        shown, said = (f"{agreement:.4f}" if agreement is not None else "-"), "a statistic: no limit is set"
        rows.append(Judgement("agreement with float", "float_agreement_min", "-", shown, "not judged", said, agreement))
    else:
        shared = agreement or 0.0
        rows.append(_at_least("agreement with float", "float_agreement_min", least, shared, why_not=why_not))
    rows.append(_saturation(criteria, trace.saturation))
    if criteria.require_all:
        rows = [
            row._replace(status="failed", why=f"not judged: {row.why}")
            if row.status == "not judged" and row.bound is not None
            else row
            for row in rows
        ]
    return rows


def float_agreement(trace: Trace) -> float | None:
    """Return the share of spikes that reference and floating-point loop have at the same tick; None without any."""
    one, other, both = trace.float_counts.sum(axis=1)
    return float(2 * both / (one + other)) if one + other else None


def round_trips_us(trace: Trace) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the round trips that were measured."""
    known = ~trace.column("lost").astype(bool) & (trace.column("round_trip_ns") > 0)
    return np.asarray(trace.column("round_trip_ns")[known] / 1e3)


def deadline_misses(trace: Trace, deadline_us: float) -> int:
    """Return how many ticks were over the deadline, lost ones included."""
    over = trace.column("round_trip_ns") > deadline_us * 1e3
    return int((over | trace.column("lost").astype(bool)).sum())


_NO_FAULTS = ("ticks", "sent", "answered", "repaired", "lost")
"""Counts that are no faults, or that have a criterion already."""


def _times(criteria: Criteria, trace: Trace, timing: Timing) -> list[Judgement]:
    measured = round_trips_us(trace)
    why_not = timing.why_not or ("" if len(measured) else "no answer came")
    rows = []
    for key, name, quantile in (
        ("round_trip_p50_us", "round trip p50", 0.5),
        ("round_trip_p99_us", "round trip p99", 0.99),
        ("round_trip_max_us", "round trip max", 1.0),
    ):
        limit = getattr(criteria, key)
        found = float(np.quantile(measured, quantile)) if len(measured) else 0.0
        if limit is None:
            rows.append(Judgement(name, key, "-", f"{found:,.0f} us", "not judged", "no limit is set", found))
        else:
            rows.append(_at_most(name, key, limit, found, why_not=why_not, unit="us"))
    misses = deadline_misses(trace, timing.deadline_us)
    share = misses / trace.n_ticks if trace.n_ticks else 0.0
    most = criteria.deadline_misses_share_max
    row = _at_most("deadline misses", "deadline_misses_share_max", most, share, why_not=why_not)
    limit, found_words = f"<= {most:.2%} of ticks", f"{share:.2%} ({misses:,})"
    why = row.why or f"deadline {timing.deadline_us:,.0f} us"
    rows.append(row._replace(limit=limit, found=found_words, why=why))
    return rows


def _saturation(criteria: Criteria, saturation: Saturation) -> Judgement:
    name, key, most = "drives past +-128 mV", "saturated_drives_share_max", criteria.saturated_drives_share_max
    why_not = "" if saturation.n_ticks else "the reference is not in fixed point"
    found = "-" if why_not else f"{saturation.share:.2%} ({saturation.ticks:,})"
    if most is None:
        why = why_not or saturation.where() or "a statistic: no limit is set"
        return Judgement(name, key, "-", found, "not judged", why, saturation.share)
    row = _at_most(name, key, most, saturation.share, saturation.where(), why_not=why_not)
    return row._replace(limit=f"<= {most:.2%} of ticks", found=found)


def _at_most(
    name: str, key: str, limit: float, found: float, why: str = "", *, unit: str = "", why_not: str = ""
) -> Judgement:
    status: Status = "not judged" if why_not else "passed" if found <= limit else "failed"
    return Judgement(
        name, key, f"<= {_number(limit, unit)}", _number(found, unit), status, why_not or why, found, limit
    )


def _at_least(name: str, key: str, limit: float, found: float, why: str = "", *, why_not: str = "") -> Judgement:
    status: Status = "not judged" if why_not else "passed" if found >= limit else "failed"
    return Judgement(name, key, f">= {_number(limit)}", _number(found), status, why_not or why, found, limit)


def _number(value: float, unit: str = "") -> str:
    if value == int(value):
        text = f"{int(value):,}"
    else:
        text = f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _first(trace: Trace, kind: str) -> str:
    divergence = trace.divergence
    if divergence is None or divergence.kind != kind:
        return ""
    channels = ", ".join(map(str, divergence.channels))
    return f"first at tick {divergence.tick}, channel {channels}"


def _first_word(trace: Trace) -> str:
    for snapshot in trace.snapshots:
        if snapshot.words:
            more = f", and {len(snapshot.words) - 1} more" if len(snapshot.words) > 1 else ""
            return f"after {snapshot.n_ticks} ticks {snapshot.words[0].describe()}{more}"
    return ""


def _gone(trace: Trace) -> str:
    return trace.events[-1][1] if trace.is_device_gone and trace.events else ""
