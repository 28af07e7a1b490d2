"""NWB: other people's programs open the file, and find the numbers of the log in it."""

import json
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.bridge.config import parse
from neuromod.bridge.export_nwb import Subject, export_nwb
from neuromod.bridge.gate import DECISION, REASONS
from neuromod.bridge.loop_state import CLOCK, INPUT, REWARD
from neuromod.bridge.pipeline import TICK
from neuromod.bridge.recorder import pack, sample_dtype
from neuromod.bridge.session import Session, find_sessions, start_session
from neuromod.bridge.session_log import LogWriter
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import SessionLogError

pytestmark = [pytest.mark.filterwarnings("ignore")]  # four programs of others, each with warnings of its own

pynwb = pytest.importorskip("pynwb")

LOCAL_S = 5000.0
"""The local clock when the session began."""
STAMP_S = 300.0
"""That of the source, which is another host's."""
N_TICKS, N_SAMPLES, N_CHANNELS = 2000, 60_000, 4
STARTED = datetime(2025, 3, 4, 10, 20, 30, tzinfo=timezone(timedelta(hours=1)))
SOURCE = 'source = {kind = "lsl", name = "amplifier"}\n'


def make_ticks(rng: np.random.Generator, *, jitter_s: float = 0.0) -> NDArray[Any]:
    ticks = np.zeros(N_TICKS, TICK)
    ticks["record"] = ticks["tick"] = np.arange(N_TICKS)
    ticks["sample"] = 30 * np.arange(1, N_TICKS + 1)
    # the tick's newest sample is its 30th
    ticks["t_sample"] = LOCAL_S + 0.5 + (ticks["sample"] - 1) / 30_000.0
    ticks["t_sample"] += rng.uniform(0.0, jitter_s, N_TICKS) if jitter_s else 0.0
    ticks["now_ns"] = (ticks["t_sample"] * 1e9).astype(np.int64)
    ticks["spikes"] = rng.integers(0, 1 << 16, N_TICKS) & rng.integers(0, 1 << 16, N_TICKS)
    for name in ("stimuli", "membrane", "modulators", "outputs"):
        ticks[name] = rng.normal(size=ticks[name].shape)
    return ticks


def make_samples(rng: np.random.Generator) -> NDArray[Any]:
    samples = np.zeros(N_SAMPLES, sample_dtype(N_CHANNELS))
    samples["stamp"] = STAMP_S + np.arange(N_SAMPLES) / 30_000.0
    samples["values"] = rng.normal(0.0, 50.0, (N_SAMPLES, N_CHANNELS))
    return samples


def make_decisions(rng: np.random.Generator) -> NDArray[Any]:
    decisions = np.zeros(20, DECISION)
    decisions["id"] = np.arange(1, 21)
    decisions["now_ns"] = ((LOCAL_S + np.linspace(0.6, 2.0, 20)) * 1e9).astype(np.int64)
    decisions["reason"] = rng.integers(0, 5, 20)
    decisions["delivered"] = decisions["reason"] == 0
    decisions["amplitude_ua"], decisions["pulses"] = 12.5, 3
    decisions["cause"] = 64
    return decisions


def record(
    folder: Path,
    *,
    jitter_s: float = 0.0,
    scale: NDArray[np.float32] | None = None,
    units: str = "uV",
    extra_config: str = "",
    ticks: NDArray[Any] | None = None,
    samples: bool = True,
    clock: float | None = None,
    **header: Any,
) -> Session:
    rng = np.random.default_rng(1)
    info = StreamInfo(
        "amplifier", "signal", N_CHANNELS, 30_000.0, tuple("abcd"), (units,) * N_CHANNELS, source_id="amp-1"
    )
    kinds = {"ticks": TICK, "inputs": INPUT, "decisions": DECISION}
    recorder = start_session(
        folder,
        parse(SOURCE + extra_config),
        records={**kinds, "samples": sample_dtype(N_CHANNELS)} if samples else kinds,
        info=info,
        block_ms=1.0,
        ticks_per_block=1,
        built_from="0123456789abcdef",
        local_clock=LOCAL_S,
        scale=scale,
        now=STARTED,
        **header,
    )
    all_ticks = make_ticks(rng, jitter_s=jitter_s) if ticks is None else ticks
    for part in np.array_split(all_ticks, 7):
        recorder.add("ticks", part)
    if samples:
        for part in np.array_split(make_samples(rng), 11):
            recorder.add("samples", part)
    recorder.add("decisions", make_decisions(rng))
    inputs = np.zeros(2, INPUT)
    inputs["kind"], inputs["samples"] = [REWARD, CLOCK], [100, 40_000]
    inputs["now_ns"] = int((LOCAL_S + 0.7) * 1e9)
    inputs["values"][0, 0] = 1.5
    inputs["values"][1, 0] = LOCAL_S + 0.5 - STAMP_S if clock is None else clock
    recorder.add("inputs", inputs)
    recorder.add_message("events", {"name": "target", "t": LOCAL_S + 1.25, "tick": 750, "source": "ingest", "value": 3})
    recorder.add_message("events", {"name": "go", "t": LOCAL_S + 1.0, "tick": 500, "source": "lsl", "value": None})
    recorder.close()
    return Session(find_sessions(folder)[0])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return record(tmp_path_factory.mktemp("sessions"))


@pytest.fixture(scope="module")
def nwb_file(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nwb") / "session.nwb"
    subject = Subject("rat1", "Rattus norvegicus", "F", "P90D")
    counts = export_nwb(session.folder, out, subject=subject, experimenter=["Doe, Jane"], institution="I", lab="L")
    assert counts["ticks"] == N_TICKS
    assert counts["samples"] == N_SAMPLES
    return out


def spike_times(ticks: NDArray[Any], channel: int) -> NDArray[np.float64]:
    """Return the times of a channel's spikes, in seconds since the session began."""
    fired = (ticks["spikes"] >> np.uint32(channel)) & 1 == 1
    return np.asarray(ticks["t_sample"][fired] - LOCAL_S)


def test_pynwb_finds_every_number_of_the_log(session: Session, nwb_file: Path) -> None:
    ticks, samples = session.records("ticks"), session.records("samples")
    with pynwb.NWBHDF5IO(str(nwb_file), "r") as io:
        nwb = io.read()
        assert nwb.session_start_time == STARTED
        assert nwb.session_start_time.utcoffset() == timedelta(hours=1)
        assert (nwb.subject.subject_id, nwb.experimenter) == ("rat1", ("Doe, Jane",))
        loop = nwb.processing["closed_loop"]
        for name, field in (("stimuli",) * 2, ("membrane",) * 2, ("modulators",) * 2, ("decoder_outputs", "outputs")):
            series = loop[name]
            np.testing.assert_array_equal(series.data[:], ticks[field])
            # a rate of 1 kHz: the ticks stand on a grid
            assert series.rate == 1000.0
            assert series.starting_time == pytest.approx(ticks["t_sample"][0] - LOCAL_S, abs=1e-9)
        for channel in range(16):
            np.testing.assert_array_equal(nwb.units["spike_times"][channel], spike_times(ticks, channel))
        raw = nwb.processing["ecephys"]["raw"]
        assert raw.data == nwb.acquisition["raw"].data  # one data set under two names
        np.testing.assert_array_equal(raw.data[:], samples["values"])
        assert raw.conversion == pytest.approx(1e-6)
        # the first sample was stamped 300 s by its host, which was 5000.5 s here
        assert raw.starting_time == pytest.approx(0.5, abs=1e-9)
        assert raw.rate == 30_000.0
        decisions = loop["stimulation_decisions"].to_dataframe()
        assert decisions["reason"].tolist() == [REASONS[i] for i in session.records("decisions")["reason"]]
        assert decisions["delivered"].tolist() == session.records("decisions")["delivered"].astype(bool).tolist()
        assert set(decisions["cause"]) == {"schedule"}
        assert decisions["time"].to_numpy() == pytest.approx(np.linspace(0.6, 2.0, 20))
        assert nwb.acquisition["events"].data[:].tolist() == ["go", "target"]
        assert nwb.acquisition["events"].timestamps[:].tolist() == [1.0, 1.25]
        assert loop["event_table"].to_dataframe()["value"].tolist() == ["null", "3"]
        assert loop["inputs"].to_dataframe()["kind"].tolist() == ["reward", "clock"]


def test_nwbinspector_finds_nothing_critical(nwb_file: Path) -> None:
    inspector = pytest.importorskip("nwbinspector")
    messages = list(inspector.inspect_nwbfile(nwbfile_path=str(nwb_file)))
    found = [(message.importance.name, message.check_function_name, message.message) for message in messages]
    serious = {"ERROR", "PYNWB_VALIDATION", "CRITICAL", "BEST_PRACTICE_VIOLATION"}
    assert [entry for entry in found if entry[0] in serious] == []


def neo_segment(path: Path) -> Any:
    import neo

    (segment,) = (
        segment for block in neo.io.NWBIO(str(path), mode="r").read_all_blocks() for segment in block.segments
    )
    return segment


def test_neo_finds_signal_spikes_and_events(session: Session, nwb_file: Path) -> None:
    ticks, samples = session.records("ticks"), session.records("samples")
    segment = neo_segment(nwb_file)
    (raw,) = segment.analogsignals
    assert float(raw.sampling_rate.rescale("Hz")) == 30_000.0
    assert float(raw.t_start.rescale("s")) == pytest.approx(0.5, abs=1e-9)
    np.testing.assert_allclose(raw.rescale("uV").magnitude, samples["values"], rtol=1e-5)
    assert len(segment.spiketrains) == 16
    for channel, train in enumerate(segment.spiketrains):
        np.testing.assert_allclose(train.rescale("s").magnitude, spike_times(ticks, channel), atol=1e-9)
    (events,) = segment.events
    assert events.times.rescale("s").magnitude.tolist() == [1.0, 1.25]
    assert events.labels.tolist() == ["go", "target"]


@pytest.mark.parametrize(
    "given",
    [{"clock": LOCAL_S + 0.502 - STAMP_S}, {"samples": False}, {"scale": np.arange(1, 5, dtype=np.float32)}],
    ids=["samples off the grid", "no samples", "scales of their own"],
)
def test_neo_opens_every_kind_of_session(given: dict[str, Any], tmp_path: Path) -> None:
    session = record(tmp_path, **given)
    export_nwb(session.folder, tmp_path / "out.nwb")
    segment = neo_segment(tmp_path / "out.nwb")
    assert len(segment.spiketrains) == 16
    assert len(segment.events) == 1


def test_spikeinterface_finds_recording_and_sorting(session: Session, nwb_file: Path) -> None:
    from spikeinterface.extractors.nwbextractors import NwbRecordingExtractor, NwbSortingExtractor

    ticks, samples = session.records("ticks"), session.records("samples")
    recording = NwbRecordingExtractor(str(nwb_file))
    assert recording.get_num_channels() == N_CHANNELS
    assert recording.get_sampling_frequency() == 30_000.0
    np.testing.assert_allclose(recording.get_traces(return_in_uV=True), samples["values"], rtol=1e-5)
    sorting = NwbSortingExtractor(str(nwb_file), sampling_frequency=1000.0, t_start=0.0)
    assert sorting.get_num_units() == 16
    for channel in (0, 14, 15):
        times = sorting.get_unit_spike_train(unit_id=sorting.unit_ids[channel], return_times=True)
        # to the frames of the 1 kHz that a sorting is asked for here
        np.testing.assert_allclose(times, spike_times(ticks, channel), atol=0.6e-3)


def test_pynapple_finds_units_and_series(session: Session, nwb_file: Path) -> None:
    nap = pytest.importorskip("pynapple")
    ticks = session.records("ticks")
    data = nap.load_file(str(nwb_file))
    units, stimuli = data["units"], data["stimuli"]
    assert len(units) == 16
    for channel in range(16):
        np.testing.assert_allclose(units[channel].index.values, spike_times(ticks, channel), atol=1e-9)
    np.testing.assert_array_equal(stimuli.values, ticks["stimuli"])
    np.testing.assert_allclose(stimuli.index.values, ticks["t_sample"] - LOCAL_S, atol=2e-6)


def read(session: Session, tmp_path: Path, **given: Any) -> Any:
    """Export, and return the open file."""
    export_nwb(session.folder, tmp_path / "out.nwb", **given)
    return pynwb.NWBHDF5IO(str(tmp_path / "out.nwb"), "r")


def test_ticks_off_the_grid_have_their_own_times_which_the_series_share(tmp_path: Path) -> None:
    session = record(tmp_path, jitter_s=3e-4, samples=False)
    with read(session, tmp_path) as io:
        loop = io.read().processing["closed_loop"]
        assert loop["stimuli"].rate is None
        expected = session.records("ticks")["t_sample"] - LOCAL_S
        np.testing.assert_array_equal(loop["stimuli"].timestamps[:], expected)
        assert loop["membrane"].timestamps == loop["stimuli"].timestamps


def test_samples_follow_the_clock_that_the_loop_followed(tmp_path: Path) -> None:
    # from sample 40,000 on the offset was 2 ms larger
    session = record(tmp_path, clock=LOCAL_S + 0.502 - STAMP_S)
    with read(session, tmp_path) as io:
        times = io.read().acquisition["raw"].timestamps[:]
    expected = 0.5 + np.arange(N_SAMPLES) / 30_000.0 + np.where(np.arange(N_SAMPLES) >= 40_000, 0.002, 0.0)
    np.testing.assert_allclose(times, expected, atol=1e-9)


def test_each_channel_keeps_its_scale(tmp_path: Path) -> None:
    scale = np.array([0.25, 0.25, 0.5, 1.0], np.float32)
    session = record(tmp_path, scale=scale)
    with read(session, tmp_path) as io:
        raw = io.read().processing["ecephys"]["raw"]
        volts = raw.data[:] * raw.channel_conversion[:] * raw.conversion
        np.testing.assert_allclose(volts, session.records("samples")["values"] * scale * 1e-6, rtol=1e-6)


def test_a_signal_of_unknown_unit_is_not_said_to_be_volts(tmp_path: Path) -> None:
    with read(record(tmp_path, units=""), tmp_path) as io:
        raw = io.read().acquisition["raw"]
        assert type(raw).__name__ == "TimeSeries"
        assert raw.unit == "unknown"


def test_fillers_and_pauses_are_invalid_intervals_and_no_steps(tmp_path: Path) -> None:
    ticks = make_ticks(np.random.default_rng(0))
    ticks["flags"][100:200] = int(Flag.FILLER)
    ticks["flags"][500:600] = int(Flag.PAUSED)
    session = record(tmp_path, ticks=ticks, samples=False)
    with read(session, tmp_path) as io:
        nwb = io.read()
        assert len(nwb.processing["closed_loop"]["stimuli"].data) == N_TICKS - 200
        invalid = nwb.invalid_times.to_dataframe()
        assert [tags[0] for tags in invalid["tags"]] == ["filler", "paused"]
        times = ticks["t_sample"] - LOCAL_S
        assert invalid["start_time"].to_numpy() == pytest.approx([times[99], times[499]], abs=2e-3)
        assert invalid["stop_time"].to_numpy() == pytest.approx([times[200], times[600]], abs=2e-3)
        observed = nwb.units["obs_intervals"][0]
        assert observed[:, 0] == pytest.approx([times[0], times[200], times[600]], abs=2e-3)
        assert observed[:, 1] == pytest.approx([times[99], times[499], times[-1]], abs=2e-3)


def test_the_ticks_of_a_block_stand_one_after_the_other(tmp_path: Path) -> None:
    info = StreamInfo("counts", "features", 2, 20.0, ("a", "b"), ("", ""))
    recorder = start_session(
        tmp_path, parse('source = {kind = "lsl", name = "counts", content = "features"}'), records={"ticks": TICK},
        info=info, block_ms=50.0, ticks_per_block=50, built_from="x", local_clock=LOCAL_S,
    )  # fmt: skip
    ticks = np.zeros(500, TICK)
    ticks["record"] = ticks["tick"] = np.arange(500)
    ticks["sample"] = np.arange(500) // 50 + 1
    ticks["t_sample"] = LOCAL_S + ticks["sample"] * 0.05
    for part in np.array_split(ticks, 13):  # the chunks of the log do not respect blocks
        recorder.add("ticks", part)
        recorder._turn()
    recorder.close()
    with read(Session(find_sessions(tmp_path)[0]), tmp_path) as io:
        series = io.read().processing["closed_loop"]["stimuli"]
        assert series.rate == 1000.0
        assert series.starting_time == pytest.approx(0.001, abs=1e-9)


def test_a_blind_session_stays_blind_unless_asked(tmp_path: Path) -> None:
    session = record(tmp_path, samples=False)
    sealed = zlib.compress(pack({name: session.metadata[name] for name in ("config", "files")}))
    folder = tmp_path / "blind"
    folder.mkdir()
    writer = LogWriter(folder, {**session.metadata, "sealed": sealed}, session.kinds)
    for chunk in session.log_chunks():
        writer.write(chunk.kind, chunk.first, chunk.count, chunk.payload)
    writer.close()
    for unblind in (False, True):
        with read(Session(folder), tmp_path, unblind=unblind) as io:
            columns = io.read().processing["closed_loop"]["stimulation_decisions"].colnames
            assert ("delivered" in columns) == unblind
            assert ("mode" in columns) == unblind


def test_a_session_without_ticks_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    session = record(tmp_path, ticks=np.zeros(0, TICK), samples=False)
    with pytest.raises(SessionLogError, match="no tick"):
        export_nwb(session.folder, tmp_path / "out.nwb")
    with pytest.raises(SessionLogError, match="cannot be written"):
        export_nwb(record(tmp_path / "b", samples=False).folder, tmp_path / "no" / "out.nwb")
    assert not list(tmp_path.glob("*.nwb*"))


def test_the_configuration_is_in_the_notes(session: Session, nwb_file: Path) -> None:
    with pynwb.NWBHDF5IO(str(nwb_file), "r") as io:
        notes = io.read().notes
    config = parse(notes.partition("\n")[2])
    assert config.effective() == json.loads(json.dumps(session.metadata["config"]))
