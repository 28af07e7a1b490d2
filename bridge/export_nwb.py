"""A recorded session as Neurodata Without Borders (NWB), the file that the field's tools read.

One time base: seconds since the session began. Everything is streamed from the log, chunk by chunk; of a long session
only spike times, events, inputs and decisions are ever held whole.

Only network steps have a place in the series: what a filler or a pause repeats was not computed, and is an invalid
interval instead. Trials are not made up. A blind session stays blind unless it is asked for.

neo 0.14 opens no file with an ElectricalSeries under acquisition, so that of the raw samples is in processing/ecephys,
and acquisition/raw shows the same data as a plain series.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.gate import REASONS
from neuromod.bridge.loop_state import CLOCK, INPUT_NAMES
from neuromod.bridge.safety_config import MODES
from neuromod.bridge.session import Session
from neuromod.bridge.stimulation import CAUSE_SCHEDULE, CAUSES
from neuromod.bridge.toml_text import to_toml
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import MissingExtraError, SessionLogError
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.modulators import MODULATORS

_REGULAR_S = 1e-6  # an axis whose every time is so near to its grid is stated by its rate
_NO_STEP = int(Flag.FILLER | Flag.PAUSED)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who or what was recorded from, in the words of NWB.

    Attributes
    ----------
    subject_id : str
        Name of the subject.
    species : str, optional
        Latin binomial.
    sex : str, optional
        M, F, O or U.
    age : str, optional
        ISO 8601 duration, as "P90D".
    """

    subject_id: str
    species: str | None = None
    sex: str | None = None
    age: str | None = None


@dataclass(frozen=True, slots=True)
class _Axis:
    """Times of a series: a rate where they lie on a grid, else all of them."""

    n: int
    start_s: float
    rate_hz: float | None


def export_nwb(
    folder: Path,
    out: Path,
    *,
    subject: Subject | None = None,
    experimenter: Sequence[str] = (),
    institution: str | None = None,
    lab: str | None = None,
    description: str | None = None,
    unblind: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write a session to an NWB file, which appears whole or not at all.

    Parameters
    ----------
    folder : Path
        The session.
    out : Path
        The file; replaced where it is there.
    subject : Subject, optional
        Who or what was recorded from.
    experimenter, institution, lab, description
        As NWB has them; names as "Last, First".
    unblind : bool
        Write the condition of a blind session, and what of its stimulation was sent.
    on_progress : callable
        Gets the ticks and samples written so far, and those in all.

    Returns
    -------
    dict of str to int
        What was written: ticks, spikes, unit_spikes, samples, events, inputs, decisions.

    Raises
    ------
    MissingExtraError
        pynwb is not installed.
    SessionLogError
        There is no session, or it holds no tick, or the file cannot be written.
    """
    try:
        import pynwb
    except ImportError as error:
        raise MissingExtraError("NWB needs pynwb; pip install 'neuromod-bridge[nwb]'") from error
    session = Session(folder)
    ticks = _Ticks(session)
    if not ticks.axis.n:
        raise SessionLogError(f"{folder} holds no tick: there is nothing to export")
    hides = session.is_blind and not unblind
    header = session.metadata if hides else session.unsealed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb and hdmf warn of their own matters
        nwb = pynwb.NWBFile(
            session_description=description or f"Closed-loop session {session.name!r} of neuromod",
            identifier=f"{folder.resolve().name}-{header['built_from'][:16]}",
            session_start_time=session.started_at,
            experimenter=list(experimenter) or None,
            institution=institution,
            lab=lab,
            source_script=f"neuromod {header['versions']['neuromod']}, neuromod session export",
            source_script_file_name="export_nwb.py",
            notes="Configuration of the session:\n" + to_toml(header["config"]),
        )
        if subject is not None:
            nwb.subject = pynwb.file.Subject(
                subject_id=subject.subject_id, species=subject.species, sex=subject.sex, age=subject.age
            )
        progress = _Progress(on_progress)
        counts = _Writer(session, nwb, ticks, hides, progress).write()
        unfinished = out.with_name(out.name + ".partial")
        try:
            with pynwb.NWBHDF5IO(str(unfinished), "w") as io:
                io.write(nwb)
            unfinished.replace(out)
        except OSError as error:
            raise SessionLogError(f"{out} cannot be written: {error}; choose another place") from None
        finally:
            unfinished.unlink(missing_ok=True)
    return counts


class _Ticks:
    """The network steps of a session and their times; read from the log each time that they are asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        header = session.metadata
        self._has_clock = bool(header.get("is_timed", True))
        self.zero_s = float(header["session"]["local_clock_s"]) if self._has_clock else 0.0
        self._per_block = int(header["ticks_per_block"])
        self.dt_s = header["block_ms"] / 1000.0 / self._per_block
        dtype = session.kinds.get("ticks")
        self.fields = () if dtype is None else dtype.names or ()
        self.spike_times: list[NDArray[np.float64]] = []
        self.invalid: list[tuple[float, float, str]] = []
        self.first: NDArray[Any] | None = None
        self.has_outputs = False
        self.last_s = 0.0
        self.axis = self._look()

    def steps(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
        """Yield network steps and their times, in seconds since the session began."""
        for ticks, times, is_step in self._all():
            if is_step.any():
                yield ticks[is_step], times[is_step]

    def _all(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]]:
        """Yield ticks with their times; those of a block stand evenly before the newest sample of it."""
        last_sample, place = -1, 0
        for ticks in self._session.chunks("ticks"):
            samples = ticks["sample"].astype(np.int64)
            index = np.arange(len(ticks))
            is_first = np.diff(samples, prepend=last_sample) != 0
            began = np.maximum.accumulate(np.where(is_first, index, -1))
            places = np.where(began >= 0, index - began, index + place)
            last_sample, place = int(samples[-1]), int(places[-1]) + 1
            before = np.clip(self._per_block - 1 - places, 0, None) * self.dt_s
            is_step = (ticks["flags"] & _NO_STEP) == 0
            yield ticks, ticks["t_sample"] - before - self.zero_s, is_step

    def observed(self) -> list[tuple[float, float]]:
        """Return the intervals in which there were network steps."""
        start, intervals = self.axis.start_s - self.dt_s, []
        for since, until, _ in self.invalid:
            if since > start:
                intervals.append((start, since))
            start = max(start, until)
        return [*intervals, (start, self.last_s)] if self.last_s > start else intervals

    def _look(self) -> _Axis:
        """Find spikes and invalid intervals, and whether the times lie on a grid."""
        spikes: list[list[NDArray[np.float64]]] = [[] for _ in range(N_CHANNELS)]
        axis = _AxisFinder(1.0 / self.dt_s)
        kind, since, until = "", 0.0, 0.0  # an interval reaches from the last step before it to the first one after
        for ticks, times, is_step in self._all():
            steps = ticks[is_step]
            if len(steps):
                if self.first is None:
                    self.first = steps[:1].copy()
                axis.add(times[is_step])
                for channel in range(N_CHANNELS):
                    spikes[channel].append(times[is_step][(steps["spikes"] >> np.uint32(channel)) & 1 == 1])
                if "outputs" in self.fields and not self.has_outputs:
                    self.has_outputs = bool(steps["outputs"].any())
            kinds = np.where(is_step, 0, np.where(ticks["flags"] & int(Flag.PAUSED), 2, 1))
            for at in np.flatnonzero(np.diff(kinds, prepend=-1)):
                name = ("", "filler", "paused")[kinds[at]]
                if name != kind:
                    if kind:
                        self.invalid.append((since, float(times[at]), kind))
                    kind, since = name, float(times[at - 1]) if at else until
            self.last_s = until = float(times[-1])
        if kind:
            self.invalid.append((since, until, kind))
        # a backward step of the source's clock is kept in the series; a unit's spikes are in order
        self.spike_times = [np.sort(np.concatenate([np.empty(0), *parts])) for parts in spikes]
        return axis.found()


class _AxisFinder:
    """Takes times, and says whether they lie on the grid of a rate."""

    def __init__(self, rate_hz: float) -> None:
        self._rate, self._n, self._start, self._worst = rate_hz, 0, 0.0, 0.0

    def add(self, times: NDArray[np.float64]) -> None:
        """Look at more times."""
        if not self._n and len(times):
            self._start = float(times[0])
        grid = self._start + np.arange(self._n, self._n + len(times)) / self._rate
        off = np.abs(times - grid)
        self._worst = max(self._worst, float(off.max()) if len(off) and np.isfinite(off).all() else 0.0)
        if not np.isfinite(off).all():
            self._worst = math.inf
        self._n += len(times)

    def found(self) -> _Axis:
        """Return the axis."""
        return _Axis(self._n, self._start, self._rate if self._worst <= _REGULAR_S else None)


class _Progress:
    """Counts rows that were written."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell, self.total, self._done = tell, 0, 0

    def add(self, n: int) -> None:
        self._done += n
        self._tell(self._done, self.total)


class _Writer:
    """Puts the parts of a session into an NWB file."""

    def __init__(self, session: Session, nwb: Any, ticks: _Ticks, hides: bool, progress: _Progress) -> None:
        self._session, self._nwb, self._ticks, self._hides = session, nwb, ticks, hides
        self._progress = progress
        self._module: Any = None

    def write(self) -> dict[str, int]:
        """Return what was put in."""
        self._module = self._nwb.create_processing_module(
            "closed_loop", "What the loop computed at each network step, what it was given, and what it decided"
        )
        self._add_ticks()
        self._add_units()
        counts = {
            "ticks": self._ticks.axis.n,
            "spikes": sum(len(times) for times in self._ticks.spike_times),
            "unit_spikes": self._add_sorted_units(),
            "samples": self._add_samples(),
            "events": self._add_events(),
            "inputs": self._add_inputs(),
            "decisions": self._add_decisions(),
        }
        for start, stop, why in self._ticks.invalid:
            self._nwb.add_invalid_time_interval(start_time=start, stop_time=stop, tags=[why])
        return counts

    def _add_ticks(self) -> None:
        from pynwb import TimeSeries

        axis, fields = self._ticks.axis, self._ticks.fields
        names = ", ".join(MODULATORS)
        wanted = [
            ("stimuli", "a.u.", f"Input of each of the {N_CHANNELS} channels, in the unit of its neuron model"),
            ("membrane", "mV", f"Potential of each of the {N_CHANNELS} neurons; dimensionless for FitzHugh-Nagumo"),
            ("modulators", "a.u.", f"Levels of {names}, in this order"),
            ("outputs", "a.u.", "Outputs of the decoder: commands to actuators"),
        ]
        shared: Any = None
        for name, unit, text in wanted:
            if name not in fields or (name == "outputs" and not self._ticks.has_outputs):
                continue
            width = self._session.kinds["ticks"][name].shape[0]  # type: ignore[index]
            timing: dict[str, Any] = {"rate": axis.rate_hz, "starting_time": axis.start_s}
            if axis.rate_hz is None:
                times = self._stream(lambda: (times for _, times in self._ticks.steps()), (axis.n,), np.float64)
                timing = {"timestamps": shared or times}
            data = self._stream(partial(self._column, name), (axis.n, width), np.float32)
            series = TimeSeries(
                name="decoder_outputs" if name == "outputs" else name,
                data=data,
                unit=unit,
                description=text,
                comments="One row per network step; ticks without a step are in invalid_times",
                **timing,
            )
            shared = shared or series
            self._module.add(series)

    def _column(self, name: str) -> Iterator[NDArray[Any]]:
        for steps, _ in self._ticks.steps():
            yield steps[name]

    def _add_units(self) -> None:
        from pynwb.misc import Units

        units = Units(
            name="units",
            description="Spikes of the sixteen channels of the spiking neural network: computed, not sorted, and of no "
            "electrode. A spike stands at the end of its network step",
            resolution=self._ticks.dt_s,
        )
        units.add_column("channel", "Channel of the network, from 0")
        units.add_column("role", "What the channel is in the network")
        observed = self._ticks.observed()
        for channel, times in enumerate(self._ticks.spike_times):
            role = {14: "coincidence detector", 15: "inhibitory interneuron"}.get(channel, "sensory")
            units.add_unit(id=channel, spike_times=times, channel=channel, role=role, obs_intervals=observed)
        self._nwb.units = units

    def _add_sorted_units(self) -> int:
        """Add the units that the loop recognised in the signal; their spikes stand at their troughs."""
        from pynwb.misc import Units

        if self._session.kinds.get("units") is None:
            return 0
        found = self._session.records("units")
        found = found[np.argsort(found["t_sample"], kind="stable")]
        times = found["t_sample"] - self._ticks.zero_s
        units = Units(name="sorted_units", description="Spikes that the online sorter recognised, by their troughs")
        units.add_column("unit_name", "Id of the unit in its sorting")
        observed = self._ticks.observed()
        for k, name in enumerate(self._session.metadata["unit_ids"]):
            units.add_unit(id=k, spike_times=times[found["unit"] == k], unit_name=name, obs_intervals=observed)
        self._module.add(units)
        return len(found)

    def _add_samples(self) -> int:
        from pynwb import TimeSeries
        from pynwb.ecephys import ElectricalSeries

        if self._session.kinds.get("samples") is None:
            return 0
        stream = self._session.metadata["stream"]
        axis = _AxisFinder(stream["sampling_frequency"])
        for _, times in self._samples():
            axis.add(times)
        found = axis.found()
        if not found.n:
            return 0
        width = stream["n_channels"]
        timing: dict[str, Any] = {"rate": found.rate_hz, "starting_time": found.start_s}
        if found.rate_hz is None:
            times_data = self._stream(lambda: (times for _, times in self._samples()), (found.n,), np.float64)
            timing = {"timestamps": times_data}
        data = self._stream(lambda: (values for values, _ in self._samples()), (found.n, width), np.float32)
        scale = np.array(self._session.metadata["scale"] or np.ones(width))
        is_signal = stream["kind"] == "signal" and all(unit == "uV" for unit in stream["units"])
        text = f"Samples of {stream['name']!r} as they came, before any filter"
        if not is_signal:
            unit = ", ".join(sorted(set(stream["units"]) - {""})) or "unknown"
            self._nwb.add_acquisition(TimeSeries(name="raw", data=data, unit=unit, description=text, **timing))
            return found.n
        is_one = bool((scale == scale[0]).all())
        conversion = 1e-6 * float(scale[0]) if is_one else 1e-6
        series = ElectricalSeries(
            name="raw",
            data=data,
            electrodes=self._electrodes(stream),
            conversion=conversion,
            channel_conversion=None if is_one else scale,
            description=text,
            **timing,
        )
        self._nwb.create_processing_module("ecephys", "Raw samples, with the channels that they are of").add(series)
        if is_one:
            timing = {"timestamps": series} if found.rate_hz is None else timing
            text += "; the data of processing/ecephys/raw"
            view = TimeSeries(name="raw", data=series, unit="volts", conversion=conversion, description=text, **timing)
            self._nwb.add_acquisition(view)
        return found.n

    def _electrodes(self, stream: dict[str, Any]) -> Any:
        nwb = self._nwb
        device = nwb.create_device(
            name="source", description=f"Stream {stream['name']!r} {stream['source_id']}".strip()
        )
        group = nwb.create_electrode_group(
            name="source", description="All channels of the stream", location="unknown", device=device
        )
        nwb.add_electrode_column("channel_name", "Name of the channel, as the stream says")
        for name in stream["channel_names"]:
            nwb.add_electrode(group=group, location="unknown", channel_name=name)
        return nwb.create_electrode_table_region(list(range(stream["n_channels"])), "All channels of the stream")

    def _samples(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """Yield samples and their times. Stamps are on the clock of the source: each is moved to ours as the loop did.

        The loop's inputs say from which sample on which offset held; the one before the first of them follows from the
        first tick.
        """
        changes, rate = self._clock_changes()
        for chunk in self._session.log_chunks("samples"):
            found = chunk.array()
            index = np.arange(chunk.first, chunk.first + len(found))
            at = np.searchsorted([first for first, _ in changes], index, side="right") - 1
            offsets = np.array([offset for _, offset in changes])[np.maximum(at, 0)]
            yield found["values"], offsets + rate * found["stamp"] - self._ticks.zero_s

    def _clock_changes(self) -> tuple[list[tuple[int, float]], float]:
        """From which raw sample on which offset to the local clock holds."""
        rate = float(self._session.metadata.get("clock_rate", 1.0))
        changes: list[tuple[int, float]] = []
        first = self._ticks.first
        if first is not None:
            newest = int(first["sample"][0]) - 1
            for chunk in self._session.log_chunks("samples"):
                stamps = chunk.array()["stamp"]
                at = min(max(newest - chunk.first, 0), len(stamps) - 1)
                changes.append((0, float(first["t_sample"][0] - rate * stamps[at])))
                break
        if self._session.kinds.get("inputs") is not None:
            for inputs in self._session.chunks("inputs"):
                for echo in inputs[inputs["kind"] == CLOCK]:
                    changes.append((int(echo["samples"]), float(echo["values"][0])))
        return changes or [(0, 0.0)], rate

    def _add_events(self) -> int:
        from pynwb.core import DynamicTable
        from pynwb.misc import AnnotationSeries

        events = sorted(self._session.messages("events"), key=lambda event: float(event["t"]))
        if not events:
            return 0
        times = [float(event["t"]) - self._ticks.zero_s for event in events]
        self._nwb.add_acquisition(
            AnnotationSeries(
                name="events",
                data=[str(event["name"]) for event in events],
                timestamps=times,
                description="Markers of the source, of ingest and of the daemon; values in closed_loop/event_table",
            )
        )
        table = DynamicTable(name="event_table", description="Markers with what came with them")
        for name, text in (
            ("time", "Seconds since the session began"),
            ("event_name", "What happened"),
            ("value", "What came with it, as JSON"),
            ("tick", "Network step that it belongs to"),
            ("source", "Who told"),
        ):
            table.add_column(name, text)
        for event, t in zip(events, times, strict=True):
            value = json.dumps(event.get("value"), default=str)
            table.add_row(
                time=t,
                event_name=str(event["name"]),
                value=value,
                tick=int(event.get("tick", 0)),
                source=str(event.get("source", "")),
            )
        self._module.add(table)
        return len(events)

    def _add_inputs(self) -> int:
        if self._session.kinds.get("inputs") is None:
            return 0
        inputs = self._session.records("inputs")
        if not len(inputs):
            return 0
        names = [INPUT_NAMES[kind] if 0 <= kind < len(INPUT_NAMES) else str(kind) for kind in inputs["kind"]]
        self._add_table(
            "inputs",
            "Commands and inputs that took effect in the loop",
            {
                "time": ("When it took effect, in seconds since the session began", self._seconds(inputs["now_ns"])),
                "kind": ("What it asks for", names),
                "tick": ("The first network step that it acts on", inputs["tick"]),
                "word": ("A number of its own to each kind: bits of what is given, or a choice", inputs["word"]),
                "values": ("Levels, an amount or stimuli; the rest are 0", inputs["values"]),
            },
        )
        return len(inputs)

    def _add_decisions(self) -> int:
        if self._session.kinds.get("decisions") is None:
            return 0
        found = self._session.records("decisions")
        if not len(found):
            return 0
        columns: dict[str, tuple[str, Any]] = {
            "time": ("When the gate decided, in seconds since the session began", self._seconds(found["now_ns"])),
            "tick": ("Network step that asked for the train", found["tick"]),
            "decision": ("Number of the decision, from 1", found["id"]),
            "reason": ("'allowed', or the limit or condition that refused it", [REASONS[i] for i in found["reason"]]),
        }
        if not self._hides:
            columns["mode"] = ("Mode of stimulation", [MODES[i] for i in found["mode"]])
            columns["delivered"] = ("Whether the train was sent to the stimulator", found["delivered"].astype(bool))
        columns["cause"] = ("What asked for it", [_cause(int(cause)) for cause in found["cause"]])
        for name, text in (
            ("electrode", "Number of the electrode"),
            ("amplitude_ua", "Current of the first phase, in uA"),
            ("phase_us", "Length of the first phase, in us"),
            ("interphase_us", "Pause between the phases, in us"),
            ("amplitude2_ua", "Current of the second phase, in uA"),
            ("phase2_us", "Length of the second phase, in us"),
            ("pulses", "Pulses of the train"),
            ("period_us", "From the start of one pulse to that of the next, in us"),
        ):
            columns[name] = (text, found[name])
        self._add_table("stimulation_decisions", "What the safety gate decided on each train it was asked for", columns)
        return len(found)

    def _add_table(self, name: str, text: str, columns: dict[str, tuple[str, Any]]) -> None:
        from pynwb.core import DynamicTable, VectorData

        data = [VectorData(name=key, description=what, data=values) for key, (what, values) in columns.items()]
        self._module.add(DynamicTable(name=name, description=text, columns=data))

    def _seconds(self, now_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        return now_ns.astype(np.float64) * 1e-9 - self._ticks.zero_s

    def _stream(self, parts: Callable[[], Iterator[NDArray[Any]]], shape: tuple[int, ...], dtype: Any) -> Any:
        from pynwb import H5DataIO

        self._progress.total += shape[0]
        return H5DataIO(_streamed(parts, shape, np.dtype(dtype), self._progress), compression="gzip", shuffle=True)


def _streamed(
    parts: Callable[[], Iterator[NDArray[Any]]], shape: tuple[int, ...], dtype: np.dtype[Any], progress: _Progress
) -> Any:
    """Return arrays that follow each other as one data set that hdmf writes part by part."""
    from hdmf.data_utils import AbstractDataChunkIterator, DataChunk

    class Streamed(AbstractDataChunkIterator):  # type: ignore[misc]
        """One pass over the log."""

        def __init__(self) -> None:
            self._parts, self._at = parts(), 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            part = next(self._parts)
            rows = slice(self._at, self._at + len(part))
            self._at += len(part)
            progress.add(len(part))
            return DataChunk(part, rows if len(shape) == 1 else (rows, slice(0, shape[1])))

        def recommended_chunk_shape(self) -> tuple[int, ...]:
            width = math.prod(shape[1:])
            return (max(1, min(shape[0], (1 << 18) // (width * dtype.itemsize))), *shape[1:])

        def recommended_data_shape(self) -> tuple[int, ...]:
            return shape

        @property
        def dtype(self) -> Any:
            return dtype

        @property
        def maxshape(self) -> tuple[int, ...]:
            return shape

    return Streamed()


def _cause(cause: int) -> str:
    return f"event {cause}" if cause < CAUSE_SCHEDULE else CAUSES[cause - CAUSE_SCHEDULE + 1]
