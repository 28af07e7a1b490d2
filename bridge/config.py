"""The session file: everything a session is built from, in TOML, checked before a socket or a stream is opened."""

import ipaddress
import json
import math
import re
import tomllib
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from neuromod.adapters.config import LslConfig, MarkerConfig, SourceConfig, XdfConfig
from neuromod.adapters.decoder_config import DecoderConfig, DecoderFileConfig
from neuromod.bridge import wire
from neuromod.bridge.config_errors import checked
from neuromod.bridge.metrics_config import MetricsConfig
from neuromod.bridge.offload import OffloadConfig, check_offload
from neuromod.bridge.safety_config import StimulationConfig
from neuromod.bridge.security_config import SecurityConfig
from neuromod.bridge.supervision_config import CheckpointConfig, WatchdogConfig
from neuromod.bridge.toml_text import to_toml
from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.config import ChannelOverride, NetworkConfig
from neuromod.engine.errors import ConfigError
from neuromod.engine.network import MIN_DT_MS, check_step
from neuromod.sorting.config import ArtefactConfig, EncoderConfig, FrontEndConfig

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
AnyModel = TypeVar("AnyModel", bound=pydantic.BaseModel)

_TCP = re.compile(r"^tcp://(\[[^\]]+\]|[^:\[\]]+):(\*|\d+)$")

_MADE_BY = {
    "session.baseline": "'neuromod baseline' writes one",
    "security.keys": "'neuromod keys init' makes it",
}
_MADE_LATER = (
    "record.folder",
    "stimulation.stop_file",
    "stimulation.ledger",
    "checkpoint.path",
)  # paths that need not be there


def _check_address(address: str) -> str:
    """Allow TCP by number and ipc; write localhost as the number, since libzmq does not bind to names."""
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return address
    match = _TCP.match(address)
    if match is None:
        raise ValueError(f"an address looks like tcp://127.0.0.1:5556, this is {address!r}")
    host, port = match[1].strip("[]"), match[2]
    if port != "*" and not 0 <= int(port) <= 65535:
        raise ValueError(f"port {port} does not exist, ports end at 65535: choose a free one above 1023")
    host = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, host)  # noqa: S104, which needs keys
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{address}: {host!r} is no address of an interface; give its number, 0.0.0.0 for all of them"
        ) from None
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def is_loopback(address: str) -> bool:
    """Say whether an address of `[sockets]` can be reached from this host alone."""
    match = _TCP.match(address)
    return match is None or ipaddress.ip_address(match[1].strip("[]")).is_loopback


Address = Annotated[str, pydantic.AfterValidator(_check_address)]


class _Section(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen, unknown keys refused, defaults checked too."""


class SessionInfo(_Section, frozen=True, extra="forbid"):
    """What the session is called, and the baseline it stands on.

    Attributes
    ----------
    name : str
        Appears in `health` and in the names of files that the session writes.
    baseline : Path, optional
        File that `neuromod baseline` wrote: thresholds, exclusions and normalisation, frozen for the session.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w .-]+$")] = "session"
    baseline: Path | None = None


class SocketsConfig(_Section, frozen=True, extra="forbid"):
    """Where the three sockets bind: TCP (`*` as port takes a free one) or ipc; away from loopback only with keys."""

    ingest: Address = wire.DEFAULT_INGEST
    output: Address = wire.DEFAULT_OUTPUT
    control: Address = wire.DEFAULT_CONTROL

    def for_clients(self) -> dict[str, str]:
        """Return where a client on this host connects to: an address that means every interface is none to go to."""
        everywhere = (("tcp://0.0.0.0:", "tcp://127.0.0.1:"), ("tcp://[::]:", "tcp://[::1]:"))
        found: dict[str, str] = self.model_dump()
        for bound, reached in everywhere:
            found = {name: address.replace(bound, reached) for name, address in found.items()}
        return found

    @pydantic.model_validator(mode="after")
    def _are_different(self) -> "SocketsConfig":
        taken: dict[str, str] = {}
        for name in ("ingest", "output", "control"):
            address = getattr(self, name)
            if address in taken:
                raise PydanticCustomError(
                    "combination",
                    "sockets.{name} and sockets.{other} both bind {address}: give each its own port",
                    {"key": f"sockets.{name}", "name": name, "other": taken[address], "address": address},
                )
            if not address.endswith((":*", ":0")):
                taken[address] = name
        return self


class PublishConfig(_Section, frozen=True, extra="forbid"):
    """What goes out, and how often.

    Attributes
    ----------
    spikes : {"every", "spiking"}
        A `spikes` message each tick, or only for ticks with a spike or a flag.
    stimuli : bool
        Whether the stimuli of each tick go out too.
    state_hz : float
        How often `state` goes out; 0 for never.
    array_hz : float
        How often `array` goes out; 0 for never.
    health_s : float
        Seconds between `health` messages.
    """

    spikes: Literal["every", "spiking"] = "every"
    stimuli: bool = False
    state_hz: Annotated[float, Field(ge=0.0, le=100.0)] = 10.0
    array_hz: Annotated[float, Field(ge=0.0, le=10.0)] = 2.0
    health_s: Annotated[float, Field(ge=0.1, le=60.0)] = 1.0


class TimingConfig(_Section, frozen=True, extra="forbid"):
    """Blocks, and what is done about samples that are late, missing or out of order.

    Attributes
    ----------
    block_ms : float
        Length of a block of signal (features and zmq bring their own), at least one sample; the network advances in
        steps of at most 1 ms within it.
    stall_ms : float
        A source silent for longer has stalled; never taken as less than three blocks, see `stall_bound_ms`.
    late_ms : float
        A tick that ends later than this after its newest sample counts as late.
    behind : {"newest", "stop"}
        LSL: what is done where the loop falls behind. newest: drop what waits and go on with the newest; stop: end the
        session. Recordings and messages of stimuli wait for their turn, and are never dropped.
    behind_ms : float
        Fallen behind is a loop whose samples are older than this, with as much waiting behind them; never taken as less
        than late_ms or a stall, see `behind_bound_ms`.
    jitter_ms : float
        A stamp may stand this far from its place on the grid before it counts as a gap or a step; shorter losses go
        unseen. Set it low (1 or 2) for sources that stamp each sample exactly, higher for those that stamp by push and
        may be held up for longer. Less than one sample is taken as half a sample.
    device_delay_ms : float
        Known delay between the electrode and the stamp of its sample (LSL stamps the push), taken off `t_sample`.
    fill : {"hold", "zero"}
        Missing samples repeat the last one, or are zero.
    max_fill_ms : float
        Longer gaps are not filled: the grid is laid anew and the tick flagged.
    """

    block_ms: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    stall_ms: Annotated[float, Field(ge=5.0, le=60_000.0)] = 50.0
    late_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 10.0
    behind: Literal["newest", "stop"] = "newest"
    behind_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 100.0
    jitter_ms: Annotated[float, Field(gt=0.0, le=1000.0)] = 50.0
    device_delay_ms: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    fill: Literal["hold", "zero"] = "hold"
    max_fill_ms: Annotated[float, Field(ge=0.0, le=60_000.0)] = 1000.0

    def stall_bound_ms(self, block_ms: float) -> float:
        """Silence after which a source of such blocks has stalled: a block that is merely due is no stall."""
        return max(self.stall_ms, 3.0 * block_ms)

    def behind_bound_ms(self, block_ms: float) -> float:
        """Age and backlog that mean to have fallen behind: what a source may send at once without a stall is none."""
        return max(self.behind_ms, self.late_ms, self.stall_bound_ms(block_ms))


class RuntimeConfig(_Section, frozen=True, extra="forbid"):
    """What the loop asks of the operating system; each refusal is reported, none stops the session.

    Attributes
    ----------
    loop : {"compiled", "python"}
        compiled: the loop itself pulls from liblsl and sends through libzmq. python: threads of Python do that part for
        it, which is also what happens, with a warning, where the libraries cannot be called from compiled code.
    realtime_priority : int
        SCHED_FIFO priority of the loop's thread, 1 to 98; 0 leaves the scheduler alone.
    cpus : tuple of int
        The loop's thread may run on these only; empty for all.
    lock_memory : bool
        Keep the daemon's memory from being paged out (mlockall).
    timer_slack_ns : int
        How late the kernel may wake the loop's thread to save power.
    """

    loop: Literal["compiled", "python"] = "compiled"
    realtime_priority: Annotated[int, Field(ge=0, le=98)] = 0
    cpus: tuple[Annotated[int, Field(ge=0, le=4095)], ...] = ()
    lock_memory: bool = False
    timer_slack_ns: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class RecordConfig(_Section, frozen=True, extra="forbid"):
    """What is kept of the session: everything but raw samples, and these too when asked.

    Attributes
    ----------
    folder : Path
        Where the folder of the session is made.
    raw : bool
        Keep the samples as they came, too: some 12 MB/s for 96 channels at 30 kHz.
    warn_free_mb, min_free_mb : float
        Free space on the disk below which it is announced, and below which the recording ends; the session goes on.
    """

    folder: Path = Path("sessions")
    raw: bool = False
    warn_free_mb: Annotated[float, Field(ge=1.0, le=1e9)] = 5000.0
    min_free_mb: Annotated[float, Field(ge=1.0, le=1e9)] = 500.0


class SessionConfig(_Section, frozen=True, extra="forbid"):
    """A whole session. `load` reads it from a file, `effective_toml` writes it back with every default.

    Attributes
    ----------
    source : SourceConfig
        Where signal, features or stimuli come from. `source = "zmq"` is short for a table with that kind.
    front_end : FrontEndConfig
        From signal to features; used by sources of signal only.
    encoder : EncoderConfig
        From features to sixteen stimuli; not used by `zmq`, whose messages are stimuli already.
    network : NetworkConfig
        In the file, `weights = {kind = "file", path = "weights.npy"}` (or .csv) stands for the matrix in that file.
    decoder : DecoderConfig, optional
        From spikes to commands; without it none are published.
    stimulation : StimulationConfig, optional
        Electrodes, their limits, and what is to be stimulated when; without it nothing ever is.
    artefacts : ArtefactConfig
        What of the signal is left out around each pulse of stimulation.
    record : RecordConfig, optional
        Keep a record of the session; without it nothing is kept.
    offload : OffloadConfig, optional
        A board outside is the network; without it the daemon's own is.
    markers : tuple of MarkerConfig
        LSL streams of markers.
    security : SecurityConfig, optional
        Keys for every socket; without it only loopback and ipc are bound.
    metrics : MetricsConfig, optional
        Numbers for Prometheus; without it none are served.
    checkpoint : CheckpointConfig, optional
        Checkpoints by the clock, and what a session begins from after a crash; without it, none.
    session, sockets, publish, timing, runtime, watchdog
        See each section's class.
    """

    session: SessionInfo = SessionInfo()
    source: SourceConfig
    front_end: FrontEndConfig = FrontEndConfig()
    encoder: EncoderConfig = EncoderConfig()
    network: NetworkConfig = NetworkConfig()
    decoder: DecoderConfig | None = None
    stimulation: StimulationConfig | None = None
    artefacts: ArtefactConfig = ArtefactConfig()
    record: RecordConfig | None = None
    offload: OffloadConfig | None = None
    markers: tuple[MarkerConfig, ...] = ()
    sockets: SocketsConfig = SocketsConfig()
    security: SecurityConfig | None = None
    publish: PublishConfig = PublishConfig()
    timing: TimingConfig = TimingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    checkpoint: CheckpointConfig | None = None
    metrics: MetricsConfig | None = None

    @pydantic.field_validator("source", mode="before")
    @classmethod
    def _short_source(cls, source: Any) -> Any:
        return {"kind": source} if isinstance(source, str) else source

    @pydantic.model_validator(mode="after")
    def _sections_fit_the_source(self) -> "SessionConfig":
        given = self.model_fields_set
        kind = self.source.kind
        if self.source_content == "features" and "front_end" in given:
            raise _combination(
                "front_end", f"front_end works on a signal, but source {kind!r} brings features: remove [front_end]"
            )
        if self.source_content == "stimuli" and (unused := {"front_end", "encoder", "artefacts"} & given):
            section = max(unused)
            raise _combination(section, f"source 'zmq' brings stimuli straight to the network: remove [{section}]")
        if self.source_content in ("features", "stimuli") and "block_ms" in self.timing.model_fields_set:
            length = "source.block_ms" if kind == "zmq" else "the source's bin_ms"
            raise _combination(
                "timing.block_ms",
                f"timing.block_ms cuts a signal into blocks; here {length} says how long one is: remove it",
            )
        self._triggers_have_events()
        if self.security is None:
            self._sockets_stay_on_loopback()
        if kind == "zmq" or self.source_content == "signal":
            # a block is at least so long: the ticks of the session are no shorter
            block_ms = getattr(self.source, "block_ms", self.timing.block_ms)
            try:
                check_step(self.network, max(block_ms / math.ceil(block_ms), MIN_DT_MS))
            except ConfigError as error:
                raise _combination("network", str(error)) from None
        if self.offload is not None:
            self._a_board_can_follow(self.offload)
        return self

    def _a_board_can_follow(self, offload: OffloadConfig) -> None:
        """Refuse what no board can be the network of, as far as it can be known before the source is open."""
        if not self.publish.stimuli:
            raise _combination(
                "publish.stimuli",
                "offload: a board needs the stimuli of each tick, which are not published: set publish.stimuli = true",
            )
        if self.publish.spikes != "every":
            raise _combination(
                "publish.spikes",
                'offload: a board needs every tick, with a spike or without: set publish.spikes = "every"',
            )
        # a stream of features and a plug-in say how long a bin is once they are open, and are checked again then
        default = self.timing.block_ms if self.source_content == "signal" else 1.0
        block_ms = getattr(self.source, "block_ms", getattr(self.source, "bin_ms", None)) or default
        ticks = max(1, math.ceil(block_ms - 1e-9))
        try:
            check_offload(offload, self.network, max(block_ms / ticks, MIN_DT_MS), ticks)
        except ConfigError as error:
            raise _combination("offload", str(error)) from None

    def _sockets_stay_on_loopback(self) -> None:
        for name in ("ingest", "output", "control"):
            address = getattr(self.sockets, name)
            if not is_loopback(address):
                key = f"sockets.{name}"
                raise _combination(
                    key,
                    f"{key}: {address} is away from loopback, which needs keys: 'neuromod keys init keys', and "
                    '[security] keys = "keys"; or bind to 127.0.0.1 and reach the port through ssh -L',
                )

    def _triggers_have_events(self) -> None:
        """Refuse triggers that could never fire; those of a decoder's file are seen when it is read."""
        if self.stimulation is None or not self.stimulation.triggers or isinstance(self.decoder, DecoderFileConfig):
            return
        n_events = len(self.decoder.events) if self.decoder is not None else 0
        for k, trigger in enumerate(self.stimulation.triggers):
            if trigger.event >= n_events:
                key = f"stimulation.triggers.{k}.event"
                raise _combination(
                    key, f"{key} is {trigger.event}, but the decoder has {n_events} events; add it to decoder.events"
                )

    @property
    def source_content(self) -> Literal["signal", "features", "stimuli"] | None:
        """What the source brings; None for a plug-in, which says so only once it is open."""
        match self.source.kind:
            case "lsl":
                assert isinstance(self.source, LslConfig)
                return self.source.content
            case "recording":
                return "signal"
            case "xdf":
                assert isinstance(self.source, XdfConfig)
                return "signal" if self.source.bin_ms is None else "features"
            case "features" | "units":
                return "features"
            case "zmq":
                return "stimuli"
            case _:
                return None

    def effective(self) -> dict[str, Any]:
        """Return the complete configuration as plain data, without the sections that this source does not use."""
        body = self.model_dump(mode="json")
        for section in ("decoder", "stimulation", "record", "offload", "security", "checkpoint", "metrics"):
            if body[section] is None:
                del body[section]
        if self.stimulation is None or self.source_content == "stimuli":
            del body["artefacts"]
        if self.source_content in ("features", "stimuli"):
            del body["front_end"], body["timing"]["block_ms"]
        if self.source_content == "stimuli":
            del body["encoder"]
        body["network"] = complete(self.network).model_dump(mode="json")
        return body

    def effective_toml(self) -> str:
        """Return the complete configuration as TOML; `parse` reads it back to the same session."""
        return to_toml(self.effective())

    def effective_json(self) -> str:
        """Return the complete configuration as JSON."""
        return json.dumps(self.effective(), indent=2)


def complete(network: NetworkConfig) -> NetworkConfig:
    """Return the same network with every number of its neurons written out.

    Channels too: a preset of a channel's own gives way to parameters that its population has by number, and would be
    lost once those are all written out.
    """
    channels = {index: ChannelOverride(**network.channel(index).complete().model_dump()) for index in network.channels}
    populations = {"sensory": network.sensory.complete(), "interneuron": network.interneuron.complete()}
    return network.model_copy(update={"channels": channels, **populations})


def load(path: Path | str) -> SessionConfig:
    """Read and check a session file.

    Relative paths in it are taken from its own folder, and every file that it names must be there.

    Raises
    ------
    ConfigError
        The file cannot be read, is not TOML, or says something that cannot be; one sentence for each fault.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; 'neuromod init {path}' writes a commented one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a session file is TOML") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from None
    return parse(text, folder=path.absolute().parent, where=str(path))


def parse(text: str, *, folder: Path | None = None, where: str = "session") -> SessionConfig:
    """Check a session given as TOML text.

    Parameters
    ----------
    text : str
        The TOML.
    folder : Path, optional
        What relative paths start from; without it paths stay as they are and are not looked for.
    where : str
        What to call the text in messages.

    Raises
    ------
    ConfigError
        As `load`.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    _read_weights(raw, folder, where)
    config = checked(SessionConfig, raw, text, where)
    if folder is None:
        return config
    config = _with_paths_from(config, folder)
    for key, path in paths_in(config, ""):
        try:
            is_there = path.exists()
        except OSError as error:  # a folder on the way that this user may not enter
            raise ConfigError(f"{where}: {key} names {path}, which cannot be reached: {error.strerror}") from None
        if not is_there and key not in _MADE_LATER:
            fix = _MADE_BY.get(key, "mend the path, or put the file there")
            raise ConfigError(f"{where}: {key} names {path}, which does not exist; {fix}")
    return config


def for_recording(
    recording: Path, config: Path | None = None, *, bin_ms: float | None = None, stream: str | None = None
) -> SessionConfig:
    """Return a session that plays a recording.

    Parameters
    ----------
    recording : Path
        File or folder: `.xdf`, a feature matrix (`.npy`, `.mat`), or anything that neo or spikeinterface opens.
    config : Path, optional
        Session file whose other sections to take; without it, the defaults. If its source plays this same path, its
        other keys of `[source]` are taken too.
    bin_ms : float, optional
        The recording holds features, in bins of this length.
    stream : str, optional
        Which stream, where the recording holds several: its name in an XDF file, its id elsewhere.

    Raises
    ------
    ConfigError
        There is no such recording, or the session file is bad, or does not go with this kind of recording.
    """
    if not recording.exists():
        raise ConfigError(f"{recording}: no such file or folder; mend the path of the recording")
    path = recording.absolute()
    session = None if config is None else load(config)
    if session is not None and getattr(session.source, "path", None) == path and bin_ms is None and stream is None:
        return session
    source: dict[str, Any] = {"path": path}
    suffix = path.suffix.lower()
    if suffix in (".xdf", ".xdfz"):
        source |= {"kind": "xdf", "bin_ms": bin_ms, "name": stream}
    elif suffix in (".npy", ".mat"):
        if bin_ms is None:
            raise ConfigError(f"{recording} holds features: say how long a bin is, as in --bin-ms 50")
        source |= {"kind": "features", "bin_ms": bin_ms, "variable": stream}
    elif bin_ms is not None:
        source |= {"kind": "units", "bin_ms": bin_ms}
    else:
        source |= {"kind": "recording", "stream_id": stream}
    body: dict[str, Any] = {}
    if session is not None:
        # what was given, not every default: a front end that was never asked for goes with any recording
        body = {name: getattr(session, name) for name in session.model_fields_set if name != "source"}
    body["source"] = {key: value for key, value in source.items() if value is not None}
    return checked(SessionConfig, body, "", str(config or recording))


def _read_weights(raw: dict[str, Any], folder: Path | None, where: str) -> None:
    """Replace `network.weights` of kind "file" by the numbers in the file, so that the session is whole in itself."""
    network = raw.get("network")
    weights = network.get("weights") if isinstance(network, dict) else None
    if not isinstance(network, dict) or not isinstance(weights, dict) or weights.get("kind") != "file":
        return
    import numpy as np  # here, since most sessions need no numpy to be checked

    name = weights.get("path")
    if not isinstance(name, str) or len(weights) != 2:
        raise ConfigError(f'{where}: network.weights of kind "file" takes path, a .npy or .csv, and nothing else')
    path = (folder or Path()) / Path(name).expanduser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about an empty file, and the shape says it better
            with path.open("rb") as file:  # numpy would leave a damaged one open
                matrix = np.load(file) if path.suffix == ".npy" else np.loadtxt(file, delimiter=",", ndmin=2)
    except NO_ARRAYS as error:
        raise ConfigError(f"{where}: network.weights.path: {path} cannot be read as a matrix: {error}") from None
    if not isinstance(matrix, np.ndarray):
        raise ConfigError(f"{where}: network.weights.path: {path} is an archive; expected one matrix")
    if matrix.shape != (16, 16) or matrix.dtype.kind not in "fiu":
        raise ConfigError(
            f"{where}: network.weights.path: {path} holds {matrix.dtype} of shape {matrix.shape}; "
            "expected 16 rows (sources) of 16 numbers (targets), in mV"
        )
    network["weights"] = {"kind": "given", "matrix_mv": matrix.tolist()}


def _combination(key: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("combination", "{sentence}", {"key": key, "sentence": sentence})


def _with_paths_from(model: AnyModel, folder: Path) -> AnyModel:
    """Return a copy in which every relative path starts from `folder`."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value.expanduser()
        if isinstance(value, pydantic.BaseModel):
            return _with_paths_from(value, folder)
        if isinstance(value, tuple):
            return tuple(absolute(item) for item in value)
        return value

    changed = {
        name: new
        for name in type(model).model_fields
        if (new := absolute(value := getattr(model, name))) is not value and new != value
    }
    return model.model_copy(update=changed) if changed else model


def paths_in(value: Any, key: str) -> list[tuple[str, Path]]:
    """Every path in a configuration, with the key that names it."""
    if isinstance(value, Path):
        return [(key, value)]
    if isinstance(value, pydantic.BaseModel):
        inner = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple):
        inner = [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    return [found for name, item in inner for found in paths_in(item, f"{key}.{name}" if key else name)]
