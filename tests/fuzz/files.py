"""Files that somebody names: session and actuator files, logs, checkpoints, ledgers, decoders, images, recordings."""

import contextlib
import datetime
import functools
import hashlib
import io
import json
import logging
import shutil
import struct
import unittest.mock
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import probeinterface
import zmq
from numpy.typing import NDArray
from rich.console import Console
from spikeinterface.core import NumpyRecording

from conformance.makers import write_xdf
from fuzz.target import Target, scratch
from neuromod.adapters import units
from neuromod.adapters.base import StreamInfo
from neuromod.adapters.config import FeaturesConfig, UnitsConfig, XdfConfig
from neuromod.adapters.decoder_config import LinearConfig
from neuromod.adapters.decoder_file import Provenance, content_hash, load_decoder, save_decoder
from neuromod.adapters.features import FeatureSource
from neuromod.adapters.units import UnitSource
from neuromod.adapters.xdf import XdfSource
from neuromod.bridge import (
    actuate,
    calibrate,
    certify,
    certify_report,
    checkpoint,
    cli_actuate,
    config,
    export,
    hil_config,
    hil_golden,
    keys,
    ledger,
    resume,
    session_log,
)
from neuromod.bridge.assembly import Assembly, assemble
from neuromod.bridge.config_errors import checked
from neuromod.bridge.gate import MAX_ELECTRODES
from neuromod.bridge.session import Session, verify
from neuromod.bridge.template import session_toml
from neuromod.engine import images, manifest
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError, ImageError, NeuromodError, RecordingError, SessionLogError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.sorting.baseline import Baseline, front_end_hash
from neuromod.sorting.bundle import _ARRAYS, Bundle, BundleInfo, UnitInfo
from neuromod.sorting.config import EncoderConfig
from neuromod.sorting.encoder import _matrix_from_file
from neuromod.sorting.offline import Spikes
from neuromod.sorting.probes import with_probe
from neuromod.sorting.sort_config import load_parameters
from neuromod.sorting.unit_encoding import read_table

# Behind a checksum stands a second parser, which a fuzzer would never reach by itself: where a format has one, inputs
# whose first byte is SEALED or above are the content, and the checksum is made here.
SEALED = 0x80


def _text(data: bytes) -> str | None:
    """Text as a file may hold it; None where it is no UTF-8, which is refused before any parser of ours."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


# -- TOML


def session_file(data: bytes) -> None:
    """A session file is refused in sentences, or its effective form is the same session again."""
    if (text := _text(data)) is None:
        return
    try:
        found = config.parse(text)
    except ConfigError as error:
        assert str(error)
        return
    try:
        again = config.parse(found.effective_toml())
    except ConfigError as error:
        raise AssertionError(f"the effective form of an accepted session is refused: {error}") from None
    assert again.effective() == found.effective()


def _session_seeds() -> list[bytes]:
    kinds: tuple[Any, ...] = ("lsl", "zmq", "recording", "xdf", "features", "units")
    seeds = []
    for kind in kinds:
        with contextlib.suppress(KeyError, ConfigError):
            seeds.append(session_toml(kind))
    text = seeds[0]
    bare = "\n".join(line.partition("#")[0].rstrip() for line in text.splitlines() if line.partition("#")[0].strip())
    small = [
        'source = {kind = "lsl", name = "s"}',
        'source.kind = "zmq"\n[network.sensory]\nmodel = "izhikevich"\npreset = "RS"\n[network.channels.3]\n'
        'model = "adex"\nparameters = {b_pa = 40.0}',
        'source = {kind = "lsl", name = "s"}\n[network.weights]\nkind = "file"\npath = "w.npy"',
        'source = {kind = "lsl", name = "s"}\n[decoder]\nkind = "rates"\nchannels = [1, 2]\n'
        '[[decoder.events]]\nname = "go"\nchannel = 3',
    ]
    return [each.encode() for each in (bare, *small)]


def actuator_file(data: bytes) -> None:
    """The file of `neuromod actuate`, and the criteria of `neuromod hil`."""
    path = scratch("actuator.toml")
    path.write_bytes(data)
    for read in (_read_actuator, hil_config.load_criteria, _read_parameters):
        with contextlib.suppress(ConfigError):
            read(path)


def _read_actuator(path: Path) -> None:
    raw, text, where = cli_actuate._read(path)
    checked(actuate.ActuateConfig, raw, text, where)


def _read_parameters(path: Path) -> None:
    load_parameters(str(path))


def _actuator_seeds() -> list[bytes]:
    return [
        b'name = "arm"\n[actuator]\nkind = "serial"\nport = "/dev/ttyUSB0"\n',
        b'output = "tcp://127.0.0.1:1"\n[actuator]\nkind = "zmq"\n',
        b'[actuator]\nkind = "lsl"\noutputs = ["vx", "vy"]\n',
        b'silence_ms = 10\nactuator = {kind = "stimulator", pulses = "p"}\n',
        hil_config.criteria_toml().encode(),
        b"[channels]\n[sorter]\n[curation]\n",
    ]


def unit_table(data: bytes) -> None:
    """A table of units, as CSV or TOML."""
    path = scratch("table.toml" if data[:1] >= b"\x80" else "table.csv")
    path.write_bytes(data[1:])
    with contextlib.suppress(ConfigError):
        assert all(isinstance(unit, str) for unit in read_table(path))


# -- files with a checksum


def log(data: bytes) -> None:
    """A log of a session, damaged or made up: `SessionLogError`, faults that are listed, or chunks that can be read."""
    folder = scratch("log")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = _as_log(data[1:]) if data[:1] >= bytes([SEALED]) else data[1:]
    cut = content.find(b"\n--\n")
    pieces = [content] if cut < 0 else [content[:cut], content[cut + 4 :]]
    for number, piece in enumerate(pieces):
        session_log.segment_path(folder, number).write_bytes(piece)
    try:
        reader = session_log.LogReader(folder)
        for chunk in reader.chunks():
            if chunk.dtype is None:
                chunk.messages()
            else:
                assert len(chunk.array()) * chunk.dtype.itemsize == len(chunk.payload)
        assert all(str(fault) for fault in reader.faults)
        verify(folder).as_dict()
        session = Session(folder)
        assert all(isinstance(entry, dict) for entry in session.files())
        shutil.rmtree(scratch("restored"), ignore_errors=True)
        session.materialise(scratch("restored"))
    except SessionLogError as error:
        assert str(error)


def _as_log(data: bytes) -> bytes:
    """Take bytes for kind, number of records, length and payload, again and again; return good chunks."""
    out, at, sequence = b"", 0, 0
    while at + 4 <= len(data):
        kind, count = data[at], data[at + 1]
        payload = data[at + 4 : at + 4 + int.from_bytes(data[at + 2 : at + 4], "little")]
        head = session_log.HEAD.pack(session_log.MARKER, 7, kind, sequence, 0, count, len(payload), zlib.crc32(payload))
        out += head + struct.pack("<I", zlib.crc32(head)) + payload
        sequence, at = sequence + 1, at + 4 + len(payload)
    return out


def _log_seeds() -> list[bytes]:
    records = np.zeros(3, np.dtype([("tick", "<u8"), ("x", "<f4", (2,)), ("flags", "<u4")]))
    folder = scratch("written")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = {"source": {"kind": "zmq"}, "encoder": {"kind": "matrix", "matrix_path": "m"}}
    entry = {"key": "encoder.matrix_path", "path": "m", "part": ".", "size": 1, "is_kept": True}
    metadata = {
        "session": {"name": "s", "started_at": "2026-01-02T03:04:05+00:00"},
        "config": config,
        "files": [entry | {"sha256": hashlib.sha256(b"x").hexdigest()}],
        "versions": {"neuromod": "0"},
    }
    writer = session_log.LogWriter(folder, metadata, {"ticks": records.dtype, "events": None, "files": None})
    writer.write("files", 0, 1, msgpack.packb({"index": 0, "data": b"x"}))
    writer.write("ticks", 0, 3, records.tobytes())
    writer.write("events", 0, 1, msgpack.packb({"name": "x"}))
    writer.write_end({"why": "closed", "failed": False, "records": {"ticks": 3, "events": 1, "files": 1}, "lost": {}})
    writer.close()
    whole = session_log.segment_path(folder, 0).read_bytes()
    chunks, at = b"", 0
    while at < len(whole):
        head = session_log.HEAD.unpack_from(whole, at)
        kind, count, length = head[2], head[5], head[6]
        at += session_log.HEAD_BYTES
        chunks += struct.pack("<BBH", kind, count, length) + whole[at : at + length]
        at += length
    return [b"\0" + whole, b"\0" + whole[:700], bytes([SEALED]) + chunks]


@functools.cache
def _loop() -> tuple[Assembly, bytes, dict[str, Any]]:
    """A loop in the middle of a session, its bytes, and the head of its checkpoint."""
    session = config.parse(
        'source = {kind = "lsl", name = "s"}\n[front_end]\nfeatures = ["crossings"]\nwarmup_s = 0.02\n'
        "[encoder]\nwarmup_s = 0.02"
    )
    parts = assemble(session, StreamInfo("s", "signal", 2, 24000.0, ("a", "b"), ("uV", "uV")))
    parts.consume(*_samples(600, 0.0), 0, parts.records(512))
    data = np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in parts.parts()])
    path = scratch("good.checkpoint")
    checkpoint.save(path, parts, data, 7)
    body = msgpack.unpackb(path.read_bytes())
    del body["data"], body["crc32"]
    return parts, data.tobytes(), body


def _samples(n: int, t: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    samples = np.random.default_rng(1).normal(0.0, 20.0, (n, 2)).astype(np.float32)
    return samples, 5.0 + t + np.arange(n) / 24000.0


def saved_loop(data: bytes) -> None:
    """A checkpoint is refused, or the loop goes on from it without reaching beyond an array."""
    parts, good, head = _loop()
    path = scratch("a.checkpoint")
    if data[:1] >= bytes([SEALED]):
        state, at = bytearray(good), 1
        while at + 4 <= len(data):  # place, length, bytes
            place, size = int.from_bytes(data[at : at + 3], "little") % len(state), data[at + 3] % 16
            patch = data[at + 4 : at + 4 + size][: len(state) - place]
            state[place : place + len(patch)] = patch
            at += 4 + size
        path.write_bytes(msgpack.packb(head | {"crc32": zlib.crc32(state), "data": bytes(state)}))
    else:
        path.write_bytes(data[1:])
    with contextlib.suppress(ConfigError):
        checkpoint.network_block(path)
    try:
        found = checkpoint.load(path, parts)
    except ConfigError:
        return
    if JIT_ENABLED:
        return  # compiled code would not say what it reached beyond; the fuzzer runs it interpreted
    _put_back(parts, found)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts.consume(*_samples(8, 0.03), 0, parts.records(512))
    finally:
        _put_back(parts, np.frombuffer(good, np.uint8))


def _put_back(parts: Assembly, data: NDArray[np.uint8]) -> None:
    at = 0
    for part in parts.parts():
        part.view(np.uint8).reshape(-1)[:] = data[at : at + part.nbytes]
        at += part.nbytes


def _checkpoint_seeds() -> list[bytes]:
    parts, good, head = _loop()
    seeds, at = [bytes([SEALED]), b"\0" + msgpack.packb(head | {"crc32": 0, "data": b""})], 0
    for part in parts.parts():  # a word of each part, as it is
        for place in range(at, at + min(part.nbytes, 32), 8):
            seeds.append(bytes([SEALED]) + place.to_bytes(3, "little") + b"\x08" + good[place : place + 8])
        at += part.nbytes
    return seeds


def ledger_file(data: bytes) -> None:
    """A ledger is refused, or what was given counts in full."""
    path = scratch("ledger.json")
    body = None
    if data[:1] >= bytes([SEALED]):
        try:
            body = json.loads(data[1:])
            text = json.dumps({"ledger": body, "crc32": ledger._crc(body)})
        except (ValueError, RecursionError, AttributeError):
            return
        path.write_text(text)
    else:
        path.write_bytes(data[1:])
    limits = np.full(MAX_ELECTRODES + 1, 1e6)
    try:
        opened = ledger.Ledger(path, "s", ("a", "b"), session_pc=limits, minute_pc=limits / 100, wall=lambda: 2e9)
    except ledger.LedgerError as error:
        assert str(error)
        return
    try:
        assert np.isfinite(opened.dose_pc).all()
        assert (opened.dose_pc >= 0.0).all()
        assert 0.0 <= opened.wait_s <= ledger.WAIT_S
        if body is not None:
            assert opened.dose_pc[-1] == body["total_pc"]
            assert opened.dose_pc[0] == body["spent_pc"].get("a", 0.0)
    finally:
        opened.close()


def _ledger_seeds() -> list[bytes]:
    path = scratch("seed.json")
    limits, seeds = np.full(MAX_ELECTRODES + 1, 1e6), []
    for dose in (None, np.linspace(1.0, 2.0, MAX_ELECTRODES + 1)):
        path.unlink(missing_ok=True)
        ledger.Ledger(path, "s", ("a", "b"), session_pc=limits, minute_pc=limits / 100).close(dose)
        text = path.read_bytes()
        seeds += [b"\0" + text, bytes([SEALED]) + json.dumps(json.loads(text)["ledger"]).encode()]
    return seeds


def decoder_file(data: bytes) -> None:
    """A decoder file is refused, or holds a decoder."""
    path = scratch("reach-v1.json")
    if data[:1] >= bytes([SEALED]):
        try:
            content = json.loads(data[1:])
            content["sha256"] = content_hash(content)
            path.write_text(json.dumps(content))
        except (ValueError, TypeError, RecursionError, AttributeError):
            return
    else:
        path.write_bytes(data[1:])
    try:
        file = load_decoder(path)
    except ConfigError as error:
        assert str(error)
        return
    assert (file.name, file.version) == ("reach", 1)
    assert file.decoder.n_outputs >= 1


def _decoder_seeds() -> list[bytes]:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    decoder = LinearConfig.model_validate({"n_lags": 1, "bin_ms": 20.0, "weights": [[[0.5] * 16]]})
    folder = scratch("decoders")
    shutil.rmtree(folder, ignore_errors=True)
    text = save_decoder(folder, "reach", decoder, Provenance(fitted_at=when, dt_ms=1.0)).read_text()
    compact = json.dumps(json.loads(text)).encode()
    return [b"\0" + text.encode(), bytes([SEALED]) + compact]


def baseline_file(data: bytes) -> None:
    """A baseline is refused, or is written as it was read."""
    path = scratch("baseline.json")
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        found = Baseline.load(path)
        assert Baseline.load(found.save(scratch("again.json"))) == found


def _baseline_seeds() -> list[bytes]:
    made = Baseline(
        measured_at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        stream_name="s",
        sampling_frequency=1000.0,
        channel_names=("a",),
        duration_s=1.0,
        front_end=None,
        front_end_hash=front_end_hash(None),
        feature_names=("a",),
        block_ms=1.0,
        smoothing_ms=0.0,
        excluded={},
        threshold_uv=(1.0,),
        noise={},
        mean=(0.0,),
        sd=(1.0,),
    )
    return [made.model_dump_json().encode()]


def bundle(data: bytes) -> None:
    """The folder of a sorting: JSON, and arrays in an archive."""
    folder = scratch("bundle")
    folder.mkdir(exist_ok=True)
    if data[:1] >= bytes([SEALED]):
        text, _, arrays = data[1:].partition(b"\n--\n")
        try:
            body = json.loads(text)
            body["arrays_sha256"] = hashlib.sha256(arrays).hexdigest()
            text = json.dumps(body).encode()
        except (ValueError, TypeError, RecursionError, AttributeError):
            return
    else:
        text, arrays = data[1:], b""
    (folder / "bundle.json").write_bytes(text)
    (folder / "bundle.npz").write_bytes(arrays)
    with contextlib.suppress(ConfigError), np.errstate(over="ignore"):
        found = Bundle.load(folder)
        assert found.templates.dtype == found.templates_uv.dtype == found.whitening.dtype == np.float32
        assert found.positions_um.dtype == found.noise.dtype == found.amplitude_limits.dtype == np.float64


def _bundle_seeds() -> list[bytes]:
    unit = UnitInfo(id="u", channel="a", position_um=(0.0, 0.0), n_spikes=1, rate_hz=1.0, peak_uv=-1.0)
    info = BundleInfo(
        created_at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        name="s",
        sampling_frequency=1000.0,
        channel_names=("a",),
        engine="sparse",
        n_before=1,
        units=(unit,),
    )
    one, template = np.ones((1, 1), np.float32), np.ones((1, 2, 1), np.float32)
    made = Bundle(info, np.zeros((1, 2)), np.ones(1), one, template, template, np.ones((1, 2)))
    folder = made.save(scratch("bundle-seed"))
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **{name: getattr(made, name) for name in _ARRAYS})
    text = json.dumps(json.loads((folder / "bundle.json").read_text()), separators=(",", ":")).encode()
    packed = (folder / "bundle.npz").read_bytes()
    return [b"\0" + text, *(bytes([SEALED]) + text + b"\n--\n" + content for content in (packed, arrays.getvalue()))]


def report(data: bytes) -> None:
    """A report of `certify` to compare with is refused, or what changed since can be told and printed."""
    path = scratch("report.json")
    path.write_bytes(data)
    try:
        then = certify.load(path)
    except ConfigError as error:
        assert str(error)
        return
    changed = certify.compare(then, json.loads(_report_seeds()[0]))
    json.dumps(changed, allow_nan=False)
    certify_report._print_changes(Console(file=io.StringIO()), changed)


@functools.cache
def _report_seeds() -> list[bytes]:
    some = {"runs": [{"p50_us": 1.0 + n, "p99_us": 2.0 + n} for n in range(4)]}
    answers = {"ours": some, "bare": some}
    point = {"channels": 16, "tick_ms": 1.0, "promised": True, "why": "w", "ends": some, "computed": some}
    body = {
        "schema": certify.SCHEMA,
        "host": {"when": "2026-01-02T03:04:05+0000", "name": "h"},
        "measures": {"ticks": {"title": "ticks", **answers}},
        "grid": [point | {"answers": answers}],
        "loopback": {"total": some},
    }
    return [json.dumps(body, separators=(",", ":")).encode()]


# -- keys, and what a life of the daemon leaves behind


def key_file(data: bytes) -> None:
    """A certificate is refused in words, or may be used; with a secret key that is made to fit, too."""
    if data[:1] >= bytes([SEALED]):
        public, secret = _pair()
        data = data[1:].replace(b"PUBLIC", public).replace(b"SECRET", secret)
    path = scratch("a.key")
    path.touch(0o600)
    path.write_bytes(data)
    for read in (keys.read_certificate, keys.load_client):
        with contextlib.suppress(ConfigError):
            read(path)
    folder = scratch("keys")
    (folder / "clients").mkdir(parents=True, exist_ok=True)
    (folder / "clients" / "anna.key").write_bytes(data)
    damaged: list[str] = []
    for sender in keys.clients(folder, damaged.append).values():
        assert sender.name == "anna"
    with contextlib.suppress(ConfigError):
        keys.load_server(folder)


@functools.cache
def _pair() -> tuple[bytes, bytes]:
    return zmq.curve_keypair()


def _key_seeds() -> list[bytes]:
    public, secret = _pair()
    text = b'metadata\n    name = "a"\n    roles = "observe,feed"\n    server = "PUBLIC"\n'
    text += b'curve\n    public-key = "PUBLIC"\n    secret-key = "SECRET"\n'
    largest = b'curve\n    public-key = "' + b"#" * 40 + b'"\n'
    return [b"\xff" + text, text.replace(b"PUBLIC", public).replace(b"SECRET", secret), largest]


def last_life(data: bytes) -> None:
    """What the daemon's last life left, and what a supervisor tells: read, or taken for a life that ended badly."""
    path = scratch("a.checkpoint.life")
    path.write_bytes(data)
    logging.disable(logging.CRITICAL)
    try:
        life = resume.Life(path.with_suffix(""))
        assert life.last is None or life.last.restarts >= 0
        life.end("closed", is_clean=True)
    except ConfigError:
        return
    finally:
        logging.disable(logging.NOTSET)
    if (text := _text(data)) is not None:
        with contextlib.suppress(ConfigError):
            resume.from_supervisor(text)


def _life_seeds() -> list[bytes]:
    body = {"is_clean": False, "session": "s", "restarts": 2, "seen_at": 1e9, "why": "", "boot_id": "x"}
    return [json.dumps(body).encode(), json.dumps({"how": "was ended", "at": 1.5, "restarts": 1}).encode()]


# -- images of a network


def words(data: bytes) -> None:
    """An image is refused by line, or the words are written as they were read."""
    if (text := _text(data)) is None:
        return
    try:
        found = images.read_words(text, "a.mem", n_words=4, digits=4)
    except ImageError as error:
        assert str(error).startswith("a.mem")
        return
    again = images.read_words(images.write_words(found.values, 4), "b.mem", n_words=4, digits=4)
    assert (again.values == found.values).all()


def exported(data: bytes) -> None:
    """One file of an exported network is another one: refused, or the same network."""
    texts, good = _exported()
    names = sorted(texts)
    name, text = names[(data[0] if data else 0) % len(names)], _text(data[1:])
    if text is None or not data:
        return
    changed = texts | {name: text}
    if data[0] >= SEALED and name != manifest.MANIFEST:
        body = json.loads(texts[manifest.MANIFEST])
        body["files"][name]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        changed[manifest.MANIFEST] = json.dumps(body)
    try:
        network, _ = manifest.read(changed)
    except ImageError as error:
        assert str(error)
        return
    if name != images_registers():
        assert network.state.tobytes() == good


def images_registers() -> str:
    """Name of the image that holds everything."""
    return manifest.REGISTERS_IMAGE


@functools.cache
def _exported() -> tuple[dict[str, str], bytes]:
    network = FixedNetwork(NetworkConfig())
    return dict(manifest.export(network, source="a test", neuromod="0")), network.state.tobytes()


def _exported_seeds() -> list[bytes]:
    texts, _ = _exported()
    names = sorted(texts)
    short = {name: text for name, text in texts.items() if len(text) < 6000}
    seeds = [bytes([names.index(name)]) + text.encode() for name, text in short.items()]
    body = json.loads(texts[manifest.MANIFEST])
    return [*seeds, bytes([names.index(manifest.MANIFEST)]) + json.dumps(body, separators=(",", ":")).encode()]


# -- recordings and matrices


def xdf(data: bytes) -> None:
    """A recording of LabRecorder is refused as `RecordingError`, or plays to its end; as behaviour, too."""
    path = scratch("a.xdf")
    path.write_bytes(data)
    source = XdfSource(XdfConfig(kind="xdf", path=path))
    logging.disable(logging.CRITICAL)  # pyxdf tells every oddity, a thousand times a second here
    try:
        with contextlib.suppress(ConfigError), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # so does numpy, of times that are beyond all
            calibrate.read_behaviour(None, str(path))
        source.open()
        for _ in range(1000):
            if source.ended:
                break
            source.read(4096)
            source.markers()
        else:
            raise AssertionError("it does not end")
        source.close()
    except RecordingError as error:
        assert str(error)
    finally:
        logging.disable(logging.NOTSET)


def _xdf_seeds() -> list[bytes]:
    path = scratch("seed.xdf")
    return [write_xdf(path, n=6).read_bytes(), write_xdf(path, n=3, rate=0.0).read_bytes()]


def spike_trains(data: bytes) -> None:
    """A folder of Kilosort: times, clusters and rate, with marks between. It is refused, or plays to its end."""
    folder = scratch("phy")
    folder.mkdir(exist_ok=True)
    parts = data.split(_MARK, 2)
    for name, part in zip(("spike_times.npy", "spike_clusters.npy", "params.py"), parts, strict=False):
        (folder / name).write_bytes(part)
    if len(parts) < 3:
        (folder / "params.py").unlink(missing_ok=True)
    source = UnitSource(UnitsConfig(path=folder, bin_ms=100.0))
    with unittest.mock.patch.object(units, "_MOST_VALUES", 1 << 20):  # to be quick, and small
        try:
            source.open()
        except RecordingError as error:
            assert str(error)
            return
    assert len(source.read(1 << 20)) == source.info.n_samples
    assert source.ended


def _train_seeds() -> list[bytes]:
    seeds = []
    for dtypes in (("u8", "i8"), ("i4", "u4")):
        files = [io.BytesIO() for _ in dtypes]
        for file, dtype in zip(files, dtypes, strict=True):
            np.save(file, np.array([0, 3, 4000], dtype))
        seeds.append(_MARK.join([*(file.getvalue() for file in files), b"sample_rate = 3e4\n"]))
    return seeds


_MARK = b"\n--\n"


def probe(data: bytes) -> None:
    """A file that says where channels are: refused, or positions for as many channels as the recording has."""
    which = data[0] % 3 if data else 0
    path = scratch(("array.cmp", "array.prb", "probe.json")[which])
    path.write_bytes(data[1:])
    try:
        placed, _ = with_probe(_two_channels(), str(path))
    except ConfigError as error:
        assert str(error)
        return
    assert placed.get_channel_locations().shape == (2, 2)


@functools.cache
def _two_channels() -> Any:
    return NumpyRecording([np.zeros((1, 2), np.float32)], 30_000.0)


def _probe_seeds() -> list[bytes]:
    probeinterface.write_probeinterface(scratch("seed.json"), probeinterface.generate_linear_probe(num_elec=2))
    written = json.dumps(json.loads(scratch("seed.json").read_text()), separators=(",", ":")).encode()
    groups = b"channel_groups = {0: {'channels': list(range(2)), 'geometry': {0: [0, 0], 1: (0, -20.5)}}}\n"
    return [b"\0//c\n0 0 A 1 a\n1 0 B 2 b\n", b"\1n = 2\n" + groups, b"\2" + written]


def matrix(data: bytes) -> None:
    """Arrays of numpy and tables of numbers, as several parts of neuromod take them."""
    which = data[0] if data else 0
    name, read = _MATRICES[which % len(_MATRICES)]
    path = scratch(name)
    path.write_bytes(data[1:])
    with contextlib.suppress(NeuromodError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)


def _weights(path: Path) -> None:
    text = f'source.kind = "zmq"\n[network.weights]\nkind = "file"\npath = "{path}"'
    config.parse(text)


def _mixing(path: Path) -> None:
    _matrix_from_file(EncoderConfig(kind="matrix", matrix_path=path), 2)


def _features(path: Path) -> None:
    source = FeatureSource(FeaturesConfig(path=path, bin_ms=10.0, n_channels=2))
    source.open()
    source.read(4096)


def _stimuli(path: Path) -> None:
    export.run(_fixed_network(), 1, path, 0.0)


@functools.cache
def _fixed_network() -> FixedNetwork:
    return FixedNetwork(NetworkConfig())


# no .mat: what is damaged can end the process in the compiled reader of scipy (1.17.1)
_MATRICES: list[tuple[str, Callable[[Path], Any]]] = [
    ("weights.npy", _weights),
    ("weights.csv", _weights),
    ("behaviour.npz", calibrate._read_npz),
    ("behaviour.csv", calibrate._read_csv),
    ("golden.npz", hil_golden.load),
    ("mixing.npy", _mixing),
    ("mixing.csv", _mixing),
    ("features.npy", _features),
    ("stimuli.npy", _stimuli),
    ("spikes.npz", lambda path: Spikes.load(path.parent)),
]


def _matrix_seeds() -> list[bytes]:
    array = io.BytesIO()
    np.save(array, np.zeros((16, 16), np.float32))
    archive, golden = io.BytesIO(), io.BytesIO()
    np.savez(archive, t=np.arange(2.0), values=np.zeros((2, 1)))
    np.savez(golden, meta=np.array(json.dumps({"format": hil_golden.FORMAT, "ticks": 0})))
    table = "\n".join(",".join(["0"] * 16) for _ in range(16)).encode()
    two, spikes = io.BytesIO(), io.BytesIO()
    np.save(two, np.zeros((16, 2)))
    np.savez(spikes, allow_pickle=False, **{name: np.arange(1) for name in Spikes._fields})
    return [
        b"\0" + array.getvalue(),
        b"\1" + table,
        b"\2" + archive.getvalue(),
        b"\3t,x\n0,1\n1,2\n",
        b"\4" + golden.getvalue(),
        *(bytes([which]) + two.getvalue() for which in (5, 7)),
        b"\6" + b"0,1\n" * 16,
        b"\x08" + array.getvalue(),
        b"\x09" + spikes.getvalue(),
    ]


BRIDGE = "neuromod.bridge"
TOML = ("tomllib._parser", f"{BRIDGE}.config", f"{BRIDGE}.config_errors", f"{BRIDGE}.toml_text")
PROCESS = (*TOML, f"{BRIDGE}.cli_actuate", f"{BRIDGE}.hil_config")
DECODERS = ("neuromod.adapters.decoder_file", "neuromod.adapters.decoder_config")
MATRICES = (f"{BRIDGE}.calibrate", f"{BRIDGE}.hil_golden", "neuromod.adapters.features", "numpy.lib.format")
TARGETS = [
    Target("session_file", session_file, _session_seeds, TOML),
    Target("actuator_file", actuator_file, _actuator_seeds, PROCESS, 1024),
    Target(
        "unit_table", unit_table, lambda: [b"\0unit,stimulus\na,1\nb, 2\n", b'\xff[stimulus]\n"a" = 1\n'],
        ("neuromod.sorting.unit_encoding",), 512,
    ),
    Target("log", log, _log_seeds, (f"{BRIDGE}.session_log", f"{BRIDGE}.session"), 2048),
    Target("checkpoint", saved_loop, _checkpoint_seeds, (f"{BRIDGE}.checkpoint",), 9000),
    Target("ledger", ledger_file, _ledger_seeds, (f"{BRIDGE}.ledger", "json.decoder"), 1024),
    Target("decoder", decoder_file, _decoder_seeds, DECODERS),
    Target("baseline", baseline_file, _baseline_seeds, ("neuromod.sorting.baseline",), 1024),
    Target("bundle", bundle, _bundle_seeds, ("neuromod.sorting.bundle", "numpy.lib.format"), 6000),
    Target("report", report, _report_seeds, (f"{BRIDGE}.certify", "json.decoder")),
    Target("key_file", key_file, _key_seeds, (f"{BRIDGE}.keys",), 512),
    Target("last_life", last_life, _life_seeds, (f"{BRIDGE}.resume", "json.decoder"), 512),
    Target("words", words, lambda: [b"0001\n@2 FF_00 // x\n/* y */ 3 @1 4"], ("neuromod.engine.images",), 256),
    Target("exported", exported, _exported_seeds, ("neuromod.engine.manifest",), 8192),
    Target("xdf", xdf, _xdf_seeds, ("neuromod.adapters.xdf", "pyxdf.pyxdf", f"{BRIDGE}.calibrate"), 4096),
    Target("spike_trains", spike_trains, _train_seeds, ("neuromod.adapters.units", "numpy.lib.format"), 1024),
    Target("probe", probe, _probe_seeds, ("neuromod.sorting.probes", "probeinterface.io"), 1024),
    Target("matrix", matrix, _matrix_seeds, MATRICES, 2048),
]  # fmt: skip
