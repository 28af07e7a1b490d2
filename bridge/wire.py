"""The wire format, Python side: every message of PROTOCOL.md packed, unpacked and checked.

The daemon's slow paths, the client and the tests use these functions; the compiled loop fills the per-tick frames in
place, from the same templates and offsets (`spikes_frame`, `stimuli_frame`). Whatever arrives, unpacking either returns
a checked message or raises `MessageError`, whose `reason` is the name under which the daemon counts it.
"""

import enum
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.engine.errors import ProtocolError

PROTOCOL_VERSION: Final = 1

DEFAULT_INGEST: Final = "tcp://127.0.0.1:5555"
DEFAULT_OUTPUT: Final = "tcp://127.0.0.1:5556"
DEFAULT_CONTROL: Final = "tcp://127.0.0.1:5557"

TOPIC_SPIKES: Final = b"spikes"
TOPIC_STIMULI: Final = b"stimuli"
TOPIC_STATE: Final = b"state"
TOPIC_HEALTH: Final = b"health"
TOPIC_EVENT: Final = b"event"
TOPIC_MODULATORS: Final = b"modulators"
TOPIC_REWARD: Final = b"reward"
TOPIC_STRESS: Final = b"stress"
TOPIC_COMMAND: Final = b"command"
TOPIC_STIMULATION: Final = b"stimulation"
TOPIC_UNITS: Final = b"units"
TOPIC_ARRAY: Final = b"array"
TOPIC_ALIVE: Final = b"alive"
TOPIC_HEARTBEAT: Final = b"heartbeat"
TOPIC_STIMULATE: Final = b"stimulate"
TOPIC_BOARD: Final = b"board"
TOPIC_STOP: Final = b"stop"

OUTPUT_TOPICS: Final = (
    TOPIC_SPIKES,
    TOPIC_STIMULI,
    TOPIC_UNITS,
    TOPIC_COMMAND,
    TOPIC_STIMULATION,
    TOPIC_STATE,
    TOPIC_ARRAY,
    TOPIC_HEALTH,
    TOPIC_EVENT,
)
INGEST_TOPICS: Final = (
    TOPIC_STIMULI,
    TOPIC_MODULATORS,
    TOPIC_REWARD,
    TOPIC_STRESS,
    TOPIC_EVENT,
    TOPIC_ALIVE,
    TOPIC_HEARTBEAT,
    TOPIC_STIMULATE,
    TOPIC_BOARD,
    TOPIC_STOP,
)

N_CHANNELS: Final = 16
N_MODULATION: Final = 5
"""Numbers of `modulation`: input gain, recurrent gain, threshold gain, inhibition in mV, learning factor."""
MAX_CHANNELS: Final = 2040  # bin8 carries at most 255 bytes of spike bits

# What a client may send. libzmq's MAXMSGSIZE drops far larger messages before they are seen; this is the exact bound.
MAX_INBOUND_BYTES: Final = 4096
MAX_OUTBOUND_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 8
MAX_NAME_CHARACTERS: Final = 256
MAX_SESSION_CHARACTERS: Final = 64

# Order and inclusive limits of the four neuromodulators, as neuromod.engine.modulators has them (a test compares).
MODULATOR_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "dopamine": (-1.0, 1.0),
    "cortisol": (0.0, 1.0),
    "acetylcholine": (0.0, 1.0),
    "tempo": (0.1, 4.0),
}

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class Flag(enum.IntFlag):
    """Bits of `flags` in a `spikes` message. The loop sets them; several may be set at once."""

    FILLER = 1
    """The source is silent. The network was not advanced; `tick` repeats the last one and no bit of `spikes` is set."""
    FILLED = 2
    """The block holds samples that were filled in for a gap."""
    EXTERNAL = 4
    """Stimuli from ingest were added."""
    NONFINITE = 8
    """The block held NaN or Inf, replaced before the front end."""
    DISCONTINUITY = 16
    """The time grid was laid anew: reset, backward step, or gap beyond the fill limit."""
    LATE = 32
    """The tick ended later than `timing.late_ms` after its newest sample."""
    MODULATED = 64
    """A modulator level, a reward or a stress took effect at the start of this tick."""
    PAUSED = 128
    """The session is paused by the control socket."""
    BLANKED = 256
    """Samples of the block were blanked around a stimulation pulse; plasticity stood still."""
    INHIBITED = 512
    """In `command`: nothing may be done now, and all values are zero."""
    BOARD = 1024
    """A board is the network, and its answer for this tick was missing: no spike is known."""


class Reason(enum.StrEnum):
    """Why a message was refused: the names under which the daemon counts refusals in `health`."""

    OVERSIZED = "oversized"
    PARTS = "parts"
    TOPIC = "topic"
    MSGPACK = "msgpack"
    NESTING = "nesting"
    TYPE = "type"
    MISSING_KEY = "missing_key"
    UNKNOWN_KEY = "unknown_key"
    LENGTH = "length"
    RANGE = "range"
    NONFINITE = "nonfinite"
    VERSION = "version"


class MessageError(ProtocolError):
    """A message cannot be used; `reason` says why in one countable word."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# ---------------------------------------------------------------------------------------------------------------------
# Frames of fixed width, filled in place by the compiled loop


@dataclass(frozen=True, slots=True)
class Frame:
    """A msgpack map whose values all have a fixed width, so that it can be filled in place.

    Attributes
    ----------
    template : bytes
        The whole message with every value zero, except `v` and `n`, which are set.
    offsets : mapping of str to int
        Where the bytes of each value begin, past the msgpack type byte (and length byte of a bin). Integers and floats
        are big-endian, as msgpack has them; the contents of a bin are little-endian.
    """

    template: bytes
    offsets: Mapping[str, int]


def _frame(values: Sequence[tuple[str, bytes, bytes]]) -> Frame:
    """Lay (key, type bytes, value bytes) one after the other into a map."""
    data = bytearray([0x80 | len(values)] if len(values) < 16 else struct.pack(">BH", 0xDE, len(values)))
    offsets: dict[str, int] = {}
    for key, header, value in values:
        name = key.encode()
        data += bytes([0xA0 | len(name)]) + name + header
        offsets[key] = len(data)
        data += value
    return Frame(bytes(data), offsets)


def _bin_header(n_bytes: int) -> bytes:
    return struct.pack(">BB", 0xC4, n_bytes) if n_bytes < 256 else struct.pack(">BH", 0xC5, n_bytes)


def spikes_frame(n: int = N_CHANNELS) -> Frame:
    """Frame of a `spikes` message of `n` channels: 108 bytes for sixteen.

    Examples
    --------
    >>> len(spikes_frame(16).template), spikes_frame(16).offsets["seq"]
    (108, 9)
    """
    _check_n(n)
    u64, f64 = bytes(8), bytes(8)
    n_bytes = (n + 7) // 8
    return _frame(
        [
            ("v", b"", bytes([PROTOCOL_VERSION])),
            ("seq", b"\xcf", u64),
            ("tick", b"\xcf", u64),
            ("sample", b"\xcf", u64),
            ("t_sample", b"\xcb", f64),
            ("t_tick", b"\xcb", f64),
            ("n", b"\xcd", struct.pack(">H", n)),
            ("spikes", _bin_header(n_bytes), bytes(n_bytes)),
            ("flags", b"\xce", bytes(4)),
        ]
    )


def stimuli_frame(n: int = N_CHANNELS) -> Frame:
    """Frame of an output `stimuli` message of `n` channels."""
    _check_n(n)
    return _frame(
        [
            ("v", b"", bytes([PROTOCOL_VERSION])),
            ("seq", b"\xcf", bytes(8)),
            ("tick", b"\xcf", bytes(8)),
            ("n", b"\xcd", struct.pack(">H", n)),
            ("values", _bin_header(4 * n), bytes(4 * n)),
            ("modulation", _bin_header(8 * N_MODULATION), bytes(8 * N_MODULATION)),
            ("step_ms", b"\xcb", bytes(8)),
            ("flags", b"\xce", bytes(4)),
        ]
    )


def command_frame(n: int) -> Frame:
    """Frame of a `command` message of `n` outputs."""
    _check_n(n)
    return _frame(
        [
            ("v", b"", bytes([PROTOCOL_VERSION])),
            ("seq", b"\xcf", bytes(8)),
            ("tick", b"\xcf", bytes(8)),
            ("t_sample", b"\xcb", bytes(8)),
            ("t_tick", b"\xcb", bytes(8)),
            ("n", b"\xcd", struct.pack(">H", n)),
            ("values", _bin_header(4 * n), bytes(4 * n)),
            ("events", b"\xce", bytes(4)),
            ("decoder", b"\xcf", bytes(8)),
            ("flags", b"\xce", bytes(4)),
            ("expires", b"\xcb", bytes(8)),
        ]
    )


STIMULATION_KINDS: Final = ("lease", "train", "stop")
_STIMULATION: Final = (
    ("seq", "Q"), ("tick", "Q"), ("t", "d"), ("kind", "B"), ("id", "Q"), ("electrode", "H"), ("amplitude_ua", "d"),
    ("phase_us", "d"), ("interphase_us", "d"), ("amplitude2_ua", "d"), ("phase2_us", "d"), ("pulses", "I"),
    ("period_us", "d"), ("expires", "d"), ("reason", "H"),
)  # fmt: skip
_UNITS: Final = (
    ("seq", "Q"), ("tick", "Q"), ("sample", "Q"), ("t_sample", "d"), ("t_tick", "d"), ("unit", "H"), ("amplitude", "d"),
    ("residual", "d"), ("flags", "I"),
)  # fmt: skip
_TYPE_BYTES: Final = {"Q": b"\xcf", "d": b"\xcb", "B": b"\xcc", "H": b"\xcd", "I": b"\xce"}


def stimulation_frame() -> Frame:
    """Frame of a `stimulation` message; `kind` is an index of `STIMULATION_KINDS`."""
    return _numbers_frame(_STIMULATION)


def units_frame() -> Frame:
    """Frame of a `units` message."""
    return _numbers_frame(_UNITS)


def _numbers_frame(numbers: Sequence[tuple[str, str]]) -> Frame:
    fields = [(key, _TYPE_BYTES[code], bytes(struct.calcsize(code))) for key, code in numbers]
    return _frame([("v", b"", bytes([PROTOCOL_VERSION])), *fields])


def _check_n(n: int) -> None:
    if not 1 <= n <= MAX_CHANNELS:
        raise MessageError(Reason.RANGE, f"n must be 1 to {MAX_CHANNELS} channels, not {n}")


# ---------------------------------------------------------------------------------------------------------------------
# Output: what the daemon publishes


@dataclass(frozen=True, slots=True, eq=False)
class SpikesMessage:
    """Spikes of one tick.

    Attributes
    ----------
    seq : int
        Counts the messages of this socket's topic; a jump is a loss between daemon and subscriber.
    tick : int
        Number of network steps since the session began.
    sample : int
        Number of samples of the source up to and including the newest one of this tick.
    t_sample, t_tick : float
        Seconds on the daemon's `lsl_local_clock`: time of the newest sample (source's stamp, corrected), and end of the
        tick. NaN where unknown.
    spikes : ndarray of bool, shape (n,)
    flags : Flag
    """

    seq: int
    tick: int
    sample: int
    t_sample: float
    t_tick: float
    spikes: NDArray[np.bool_]
    flags: Flag

    @property
    def channels(self) -> list[int]:
        """Indices of the channels that fired."""
        return [int(i) for i in np.flatnonzero(self.spikes)]

    @property
    def latency_us(self) -> float:
        """Microseconds from the newest sample to the end of the tick."""
        return (self.t_tick - self.t_sample) * 1e6

    @property
    def is_filler(self) -> bool:
        """True where the source is silent and the network was not advanced."""
        return Flag.FILLER in self.flags


@dataclass(frozen=True, slots=True, eq=False)
class StimuliMessage:
    """What drove one tick.

    Attributes
    ----------
    seq, tick : int
        Those of its `spikes` message.
    values : ndarray of float32, shape (n,)
        Stimuli, in units of the encoder's output.
    modulation : ndarray of float64, shape (5,)
        Input gain, recurrent gain, threshold gain, inhibition in mV and learning factor, as they acted in this tick;
        all 0 where the network did not step. NaN from a daemon that does not say, as is `step_ms`.
    step_ms : float
        By how much the network's own time went on, in ms; 0 where it did not step.
    flags : Flag
        Those of its `spikes` message.
    """

    seq: int
    tick: int
    values: NDArray[np.float32]
    modulation: NDArray[np.float64] = field(default_factory=lambda: np.full(N_MODULATION, np.nan))
    step_ms: float = math.nan
    flags: Flag = field(default_factory=lambda: Flag(0))

    @property
    def is_step(self) -> bool:
        """True where the network stepped: the source is not silent, and the session not paused."""
        return not self.flags & (Flag.FILLER | Flag.PAUSED)


@dataclass(frozen=True, slots=True)
class UnitMessage:
    """One spike of a sorted unit.

    Attributes
    ----------
    seq : int
        Counts the messages of this topic.
    tick : int
        The tick whose stimuli it went into.
    sample : int
        Number of the sample at which its template has its trough, from 1 as in `SpikesMessage`.
    t_sample, t_tick : float
        Seconds on the daemon's `lsl_local_clock`: time of that sample, and when the message was made.
    unit : int
        Row of the sorting; `health` names them under ``units.ids``.
    amplitude : float
        Multiple of the unit's template.
    residual : float
        RMS of what was left around it once the template was taken away, in multiples of the noise.
    flags : Flag
        Of the tick.
    """

    seq: int
    tick: int
    sample: int
    t_sample: float
    t_tick: float
    unit: int
    amplitude: float
    residual: float
    flags: Flag


@dataclass(frozen=True, slots=True, eq=False)
class StateMessage:
    """State of the network, some times a second.

    Attributes
    ----------
    tick : int
    t : float
        Seconds on the daemon's `lsl_local_clock`.
    membrane : ndarray of float32, shape (16,)
        Potential of each channel, as its model counts it (mV, for most).
    modulators : dict of str to float
        The four levels.
    rates_hz : ndarray of float32, shape (16,)
        Spikes per second of network time, smoothed.
    """

    tick: int
    t: float
    membrane: NDArray[np.float32]
    modulators: dict[str, float]
    rates_hz: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Snippet:
    """A piece of signal around a spike.

    Attributes
    ----------
    channel : int
        Of the source, from 0.
    t_sample : float
        Seconds on the daemon's `lsl_local_clock`: time of the sample at which it crossed.
    crossing : int
        Index of that sample in `data`.
    data : ndarray of float32, shape (n,)
        As the crossings are looked for: filtered, less the mean of all channels that take part.
    """

    channel: int
    t_sample: float
    crossing: int
    data: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayMessage:
    """How the channels of the source are, some times a second; sources of many channels take several messages.

    Attributes
    ----------
    seq, tick : int
        Number of this message, and the newest tick.
    t : float
        Seconds on the daemon's `lsl_local_clock`.
    n, first : int
        Channels of the source, and the first one that the arrays here are of.
    counts : str
        What `rates_hz` counts: "crossings", "units" (spikes of sorted units, at the channel where each is largest), or
        "" where the source brings no spikes.
    unit : str
        What `noise` and the snippets are in: "uV" where the scale is known.
    rates_hz : ndarray of float32
        Counts per second since the message before; NaN where nothing is counted.
    noise : ndarray of float32
        Standard deviation of the noise of the filtered signal; NaN where it is not known.
    positions_um : ndarray of float32, shape (channels, 2)
        Where they are on the probe; no rows where that is not known.
    excluded : tuple of int
        Channels that take no part.
    sampling_frequency : float
        Of the snippets, in Hz.
    snippets : tuple of Snippet
        A few recent spikes, other channels in each message.
    """

    seq: int
    tick: int
    t: float
    n: int
    first: int
    counts: str
    unit: str
    rates_hz: NDArray[np.float32]
    noise: NDArray[np.float32]
    positions_um: NDArray[np.float32]
    excluded: tuple[int, ...]
    sampling_frequency: float
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, slots=True)
class HealthMessage:
    """Health of the daemon, once a second. `body` is the whole map: see PROTOCOL.md for its keys."""

    t: float
    state: str
    body: dict[str, Any]

    @property
    def counters(self) -> dict[str, int]:
        """Everything counted since the session began."""
        counters: dict[str, int] = self.body.get("counters", {})
        return counters


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A marker, aligned to a tick: from a marker stream, a recording's digital events, ingest, or the daemon itself."""

    name: str
    t: float
    tick: int
    source: str
    value: Any = None


OutputMessage = (
    SpikesMessage
    | StimuliMessage
    | UnitMessage
    | Command
    | Stimulation
    | StateMessage
    | ArrayMessage
    | HealthMessage
    | EventMessage
)


def pack_spikes(message: SpikesMessage) -> bytes:
    """Pack a `spikes` message exactly as the compiled loop does."""
    n = len(message.spikes)
    frame = spikes_frame(n)
    data, at = bytearray(frame.template), frame.offsets
    _put_u64(data, at["seq"], "seq", message.seq)
    _put_u64(data, at["tick"], "tick", message.tick)
    _put_u64(data, at["sample"], "sample", message.sample)
    struct.pack_into(">d", data, at["t_sample"], message.t_sample)
    struct.pack_into(">d", data, at["t_tick"], message.t_tick)
    bits = np.packbits(np.asarray(message.spikes, dtype=np.bool_), bitorder="little").tobytes()
    data[at["spikes"] : at["spikes"] + len(bits)] = bits
    struct.pack_into(">I", data, at["flags"], int(message.flags))
    return bytes(data)


def pack_stimuli(message: StimuliMessage) -> bytes:
    """Pack an output `stimuli` message exactly as the compiled loop does."""
    frame = stimuli_frame(len(message.values))
    data, at = bytearray(frame.template), frame.offsets
    _put_u64(data, at["seq"], "seq", message.seq)
    _put_u64(data, at["tick"], "tick", message.tick)
    values = np.asarray(message.values, dtype="<f4").tobytes()
    data[at["values"] : at["values"] + len(values)] = values
    modulation = np.asarray(message.modulation, dtype="<f8")
    if modulation.shape != (N_MODULATION,):
        raise MessageError(Reason.LENGTH, f"modulation is {N_MODULATION} numbers, not of shape {modulation.shape}")
    data[at["modulation"] : at["modulation"] + modulation.nbytes] = modulation.tobytes()
    struct.pack_into(">d", data, at["step_ms"], message.step_ms)
    struct.pack_into(">I", data, at["flags"], int(message.flags))
    return bytes(data)


def pack_command(message: Command) -> bytes:
    """Pack a `command` message exactly as the compiled loop does."""
    frame = command_frame(len(message.values))
    data, at = bytearray(frame.template), frame.offsets
    for key in ("seq", "tick", "decoder"):
        _put_u64(data, at[key], key, getattr(message, key))
    for key in ("t_sample", "t_tick", "expires"):
        struct.pack_into(">d", data, at[key], getattr(message, key))
    values = np.asarray(message.values, dtype="<f4").tobytes()
    data[at["values"] : at["values"] + len(values)] = values
    struct.pack_into(">I", data, at["events"], message.events)
    struct.pack_into(">I", data, at["flags"], int(message.flags))
    return bytes(data)


def pack_stimulation(message: Stimulation) -> bytes:
    """Pack a `stimulation` message exactly as the compiled loop does."""
    frame = stimulation_frame()
    data = bytearray(frame.template)
    for key, code in _STIMULATION:
        value = getattr(message, key)
        struct.pack_into(">" + code, data, frame.offsets[key], STIMULATION_KINDS.index(value) if code == "B" else value)
    return bytes(data)


def pack_unit(message: UnitMessage) -> bytes:
    """Pack a `units` message exactly as the compiled loop does."""
    frame = units_frame()
    data = bytearray(frame.template)
    for key, code in _UNITS:
        struct.pack_into(">" + code, data, frame.offsets[key], getattr(message, key))
    return bytes(data)


def pack_state(message: StateMessage) -> bytes:
    """Pack a `state` message."""
    return _pack(
        {
            "v": PROTOCOL_VERSION,
            "tick": message.tick,
            "t": message.t,
            "membrane": np.asarray(message.membrane, dtype="<f4").tobytes(),
            "modulators": {name: float(level) for name, level in message.modulators.items()},
            "rates_hz": np.asarray(message.rates_hz, dtype="<f4").tobytes(),
        }
    )


def pack_array(message: ArrayMessage) -> bytes:
    """Pack an `array` message."""
    body: dict[str, Any] = {
        "v": PROTOCOL_VERSION,
        "seq": message.seq,
        "tick": message.tick,
        "t": message.t,
        "n": message.n,
        "first": message.first,
        "counts": message.counts,
        "unit": message.unit,
        "rates_hz": np.asarray(message.rates_hz, dtype="<f4").tobytes(),
        "noise": np.asarray(message.noise, dtype="<f4").tobytes(),
        "excluded": list(message.excluded),
        "sampling_frequency": message.sampling_frequency,
        "snippets": [
            {
                "channel": snippet.channel,
                "t_sample": snippet.t_sample,
                "crossing": snippet.crossing,
                "data": np.asarray(snippet.data, dtype="<f4").tobytes(),
            }
            for snippet in message.snippets
        ],
    }
    if len(message.positions_um):
        body["positions_um"] = np.asarray(message.positions_um, dtype="<f4").tobytes()
    return _pack(body)


def pack_health(message: HealthMessage) -> bytes:
    """Pack a `health` message; `t` and `state` are set from the fields, all else comes from `body`."""
    rest = {key: value for key, value in message.body.items() if key not in ("v", "t", "state")}
    return _pack({"v": PROTOCOL_VERSION, "t": message.t, "state": message.state, **rest})


def pack_event(message: EventMessage) -> bytes:
    """Pack an output `event` message; `value` is left out where there is none."""
    body: dict[str, Any] = {
        "v": PROTOCOL_VERSION,
        "name": message.name,
        "t": message.t,
        "tick": message.tick,
        "source": message.source,
    }
    if message.value is not None:
        body["value"] = message.value
    return _pack(body)


def unpack_output(topic: bytes, payload: bytes) -> OutputMessage:
    """Check and unpack one published message.

    Keys that this version does not know are ignored, so that a later daemon may add some.

    Raises
    ------
    MessageError
        The topic is unknown, the payload is malformed, or it is of another protocol version.
    """
    if topic == TOPIC_SPIKES and len(payload) == _SPIKES_16.size:
        fast = _unpack_spikes_16(payload)
        if fast is not None:
            return fast
    if topic not in OUTPUT_TOPICS:
        raise _unknown_topic(topic, OUTPUT_TOPICS)
    body = _unpack_map(payload, MAX_OUTBOUND_BYTES)
    version = _integer(body, "v")
    if version != PROTOCOL_VERSION:
        raise MessageError(
            Reason.VERSION,
            f"the message is of protocol version {version}, this client speaks {PROTOCOL_VERSION}; "
            "use the client that came with the daemon",
        )
    if topic == TOPIC_SPIKES:
        n = _integer(body, "n", 1, MAX_CHANNELS)
        bits = _binary(body, "spikes", (n + 7) // 8)
        return SpikesMessage(
            seq=_integer(body, "seq"),
            tick=_integer(body, "tick"),
            sample=_integer(body, "sample"),
            t_sample=_number(body, "t_sample"),
            t_tick=_number(body, "t_tick"),
            spikes=_unpack_bits(bits, n),
            flags=Flag(_integer(body, "flags", 0, 0xFFFF_FFFF)),
        )
    if topic == TOPIC_STIMULI:
        n = _integer(body, "n", 1, MAX_CHANNELS)
        seq, tick, values = _integer(body, "seq"), _integer(body, "tick"), _floats(body, "values", n)
        if "modulation" not in body:  # of a daemon of this version from before it had these keys
            return StimuliMessage(seq, tick, values)
        modulation = np.frombuffer(_binary(body, "modulation", 8 * N_MODULATION), dtype="<f8").astype(np.float64)
        flags = Flag(_integer(body, "flags", 0, 0xFFFF_FFFF))
        return StimuliMessage(seq, tick, values, modulation, _number(body, "step_ms"), flags)
    if topic == TOPIC_COMMAND:
        n = _integer(body, "n", 1, MAX_CHANNELS)
        return Command(
            seq=_integer(body, "seq"),
            tick=_integer(body, "tick"),
            t_sample=_number(body, "t_sample"),
            t_tick=_number(body, "t_tick"),
            values=_floats(body, "values", n),
            events=_integer(body, "events", 0, 0xFFFF_FFFF),
            decoder=_integer(body, "decoder"),
            flags=_integer(body, "flags", 0, 0xFFFF_FFFF),
            expires=_number(body, "expires"),
        )
    if topic == TOPIC_STIMULATION:
        numbers: dict[str, Any] = {
            key: _number(body, key) if code == "d" else _integer(body, key) for key, code in _STIMULATION
        }
        numbers["kind"] = STIMULATION_KINDS[_integer(body, "kind", 0, len(STIMULATION_KINDS) - 1)]
        return Stimulation(**numbers)
    if topic == TOPIC_UNITS:
        found: dict[str, Any] = {
            key: _number(body, key) if code == "d" else _integer(body, key) for key, code in _UNITS
        }
        found["flags"] = Flag(_integer(body, "flags", 0, 0xFFFF_FFFF))
        return UnitMessage(**found)
    if topic == TOPIC_STATE:
        modulators = _get(body, "modulators")
        if not isinstance(modulators, dict):
            raise MessageError(Reason.TYPE, f"modulators must be a map of levels, not {_kind(modulators)}")
        return StateMessage(
            tick=_integer(body, "tick"),
            t=_number(body, "t"),
            membrane=_floats(body, "membrane", None),
            modulators={name: _number(modulators, name) for name in modulators},
            rates_hz=_floats(body, "rates_hz", None),
        )
    if topic == TOPIC_ARRAY:
        return _unpack_array(body)
    if topic == TOPIC_HEALTH:
        for key in ("counters", "latency_us", "source", "errors"):
            if not isinstance(body.get(key, {}), dict):
                raise MessageError(Reason.TYPE, f"{key} must be a map, not {_kind(body[key])}")
        return HealthMessage(_number(body, "t"), _text(body, "state"), body)
    return EventMessage(
        name=_text(body, "name"),
        t=_number(body, "t"),
        tick=_integer(body, "tick"),
        source=_text(body, "source"),
        value=body.get("value"),
    )


def _unpack_array(body: dict[str, Any]) -> ArrayMessage:
    rates_hz, n, first = _floats(body, "rates_hz", None), _integer(body, "n", 1), _integer(body, "first")
    if first + len(rates_hz) > n:
        raise MessageError(Reason.LENGTH, f"rates_hz has {len(rates_hz)} channels from {first} on, of {n} in all")
    has_positions = "positions_um" in body
    positions = _floats(body, "positions_um", 2 * len(rates_hz)) if has_positions else np.zeros(0, np.float32)
    excluded, snippets = _get(body, "excluded"), _get(body, "snippets")
    if not isinstance(excluded, list) or not all(type(channel) is int and 0 <= channel < n for channel in excluded):
        raise MessageError(Reason.TYPE, f"excluded must be an array of channels from 0 to {n - 1}")
    if not isinstance(snippets, list) or not all(isinstance(snippet, dict) for snippet in snippets):
        raise MessageError(Reason.TYPE, "snippets must be an array of maps")
    return ArrayMessage(
        seq=_integer(body, "seq"),
        tick=_integer(body, "tick"),
        t=_number(body, "t"),
        n=n,
        first=first,
        counts=_text(body, "counts"),
        unit=_text(body, "unit"),
        rates_hz=rates_hz,
        noise=_floats(body, "noise", len(rates_hz)),
        positions_um=positions.reshape(-1, 2),
        excluded=tuple(excluded),
        sampling_frequency=_number(body, "sampling_frequency"),
        snippets=tuple(
            Snippet(
                channel=_integer(snippet, "channel", 0, n - 1),
                t_sample=_number(snippet, "t_sample"),
                crossing=_integer(snippet, "crossing"),
                data=_floats(snippet, "data", None),
            )
            for snippet in snippets
        ),
    )


# The frame of sixteen channels as one structure: 7 us a message instead of 18, which a subscriber at 1 kHz notices.
_SPIKES_16: Final = struct.Struct(">9sQ6sQ8sQ10sd8sd14s2s7sI")


def _headers_16() -> tuple[bytes, ...]:
    return tuple(part for part in _SPIKES_16.unpack(spikes_frame(16).template) if isinstance(part, bytes) and any(part))


def _unpack_spikes_16(payload: bytes) -> SpikesMessage | None:
    """Read a message in exactly the fixed layout; None where it is another msgpack form of the same map, or damaged."""
    h0, seq, h1, tick, h2, sample, h3, t_sample, h4, t_tick, h5, bits, h6, flags = _SPIKES_16.unpack(payload)
    if (h0, h1, h2, h3, h4, h5, h6) != _HEADERS_16:
        return None
    return SpikesMessage(seq, tick, sample, t_sample, t_tick, _unpack_bits(bits, 16), Flag(flags))


def _unpack_bits(bits: bytes, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=n, bitorder="little").view(np.bool_)


_HEADERS_16: Final = _headers_16()


# ---------------------------------------------------------------------------------------------------------------------
# Ingest: what clients send in


@dataclass(frozen=True, slots=True, eq=False)
class StimuliInput:
    """Stimuli to add to the source's, or to drive one tick with `source.kind = "zmq"`: finite float32, shape (n,).

    Here and below, `t` is when it was sent, in seconds on the daemon's `lsl_local_clock`; with it, the daemon reports
    how long it took to take effect.
    """

    values: NDArray[np.float32]
    t: float | None = None


@dataclass(frozen=True, slots=True)
class ModulatorsInput:
    """Levels to set, each within `MODULATOR_LIMITS`; those not named keep their level."""

    levels: dict[str, float]
    t: float | None = None


@dataclass(frozen=True, slots=True)
class RewardInput:
    """A reward to add: any finite amount, negative for a punishment."""

    amount: float
    t: float | None = None


@dataclass(frozen=True, slots=True)
class StressInput:
    """A stress to add: finite, not negative."""

    amount: float
    t: float | None = None


@dataclass(frozen=True, slots=True)
class EventInput:
    """A marker. `t` is in seconds on the daemon's `lsl_local_clock`; without it, the time of arrival is taken."""

    name: str
    t: float | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class AliveInput:
    """A peer that stimulation depends on lives: `name` is one of `stimulation.peers`."""

    name: str


@dataclass(frozen=True, slots=True)
class HeartbeatInput:
    """The operator's hand is on the handle: `token` is what `arm` returned."""

    token: int


@dataclass(frozen=True, slots=True)
class StimulateInput:
    """Ask the gate for a train of the program of this name; `session` and `seq` as in `Request`."""

    program: str
    session: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class BoardInput:
    """The answer of a board that is the network: the spikes of a tick, bit i = channel i.

    `checked` says that it came over a link with a checksum. A session whose pulses leave for a body takes no other.
    """

    tick: int
    spikes: int
    checked: bool = False


@dataclass(frozen=True, slots=True)
class StopInput:
    """Stop stimulation at once."""


IngestMessage = (
    StimuliInput
    | ModulatorsInput
    | RewardInput
    | StressInput
    | EventInput
    | AliveInput
    | HeartbeatInput
    | StimulateInput
    | BoardInput
    | StopInput
)


def pack_ingest(message: IngestMessage) -> tuple[bytes, bytes]:
    """Check and pack one message for the ingest socket.

    Returns
    -------
    topic, payload : bytes
        Sixteen stimuli always give the 74 bytes that the compiled loop reads by itself.

    Raises
    ------
    MessageError
        The daemon would refuse it.
    """
    topic: bytes
    body: dict[str, Any]
    match message:
        case StimuliInput(values):
            if np.size(values) != N_CHANNELS:
                raise MessageError(Reason.LENGTH, f"stimuli are {N_CHANNELS} numbers, not {np.size(values)}")
            topic, body = TOPIC_STIMULI, {"values": as_stimuli(values).tobytes()}
        case ModulatorsInput(levels):
            topic, body = TOPIC_MODULATORS, dict(levels)
        case RewardInput(amount):
            topic, body = TOPIC_REWARD, {"amount": amount}
        case StressInput(amount):
            topic, body = TOPIC_STRESS, {"amount": amount}
        case EventInput(name, _, value):
            topic, body = TOPIC_EVENT, {"name": name} | ({} if value is None else {"value": value})
        case AliveInput(name):
            topic, body = TOPIC_ALIVE, {"name": name}
        case HeartbeatInput(token):
            topic, body = TOPIC_HEARTBEAT, {"token": token}
        case StimulateInput(program, session, seq):
            topic, body = TOPIC_STIMULATE, {"program": program} | _ordered(session, seq)
        case BoardInput(tick, spikes, checked):
            topic = TOPIC_BOARD
            body = {"tick": tick, "spikes": spikes} | ({} if checked is False else {"checked": checked})
        case StopInput():
            topic, body = TOPIC_STOP, {}
    if (t := getattr(message, "t", None)) is not None:
        body["t"] = t
    payload = _pack(body)
    unpack_ingest(topic, payload)
    return topic, payload


def unpack_ingest(topic: bytes, payload: bytes, n: int = N_CHANNELS) -> IngestMessage:
    """Check and unpack one message that arrived at the ingest socket.

    Parameters
    ----------
    topic, payload : bytes
        The two parts of the message.
    n : int
        Number of channels of the network; stimuli of another length are refused.

    Raises
    ------
    MessageError
        For everything that PROTOCOL.md does not allow; nothing else is ever raised.
    """
    if topic not in INGEST_TOPICS:
        raise _unknown_topic(topic, INGEST_TOPICS)
    body = _unpack_map(payload, MAX_INBOUND_BYTES)
    if topic == TOPIC_STIMULI:
        _only(body, ("values", "t"))
        values = _stimuli(_get(body, "values"), n)
        if not np.isfinite(values).all():
            raise MessageError(Reason.NONFINITE, "values must be finite in float32: no NaN, no Inf")
        return StimuliInput(values, _time(body))
    if topic == TOPIC_MODULATORS:
        _only(body, (*MODULATOR_LIMITS, "t"))
        levels = {name: _within(body, name, *MODULATOR_LIMITS[name]) for name in body if name != "t"}
        if not levels:
            raise MessageError(Reason.MISSING_KEY, f"name at least one of {', '.join(MODULATOR_LIMITS)}")
        return ModulatorsInput(levels, _time(body))
    if topic == TOPIC_REWARD:
        _only(body, ("amount", "t"))
        return RewardInput(_within(body, "amount", -_FLOAT32_MAX, _FLOAT32_MAX), _time(body))
    if topic == TOPIC_STRESS:
        _only(body, ("amount", "t"))
        return StressInput(_within(body, "amount", 0.0, _FLOAT32_MAX), _time(body))
    if topic == TOPIC_EVENT:
        _only(body, ("name", "t", "value"))
        _check_finite(body.get("value"))
        return EventInput(_name(body, "name"), _time(body), body.get("value"))
    if topic == TOPIC_ALIVE:
        _only(body, ("name",))
        return AliveInput(_name(body, "name"))
    if topic == TOPIC_HEARTBEAT:
        _only(body, ("token",))
        return HeartbeatInput(_integer(body, "token", 0, (1 << 62) - 1))
    if topic == TOPIC_STIMULATE:
        _only(body, ("program", "session", "seq"))
        return StimulateInput(_name(body, "program"), *_order(body))
    if topic == TOPIC_BOARD:
        _only(body, ("tick", "spikes", "checked"))
        tick, spikes = _integer(body, "tick", 0, (1 << 63) - 1), _integer(body, "spikes", 0, (1 << n) - 1)
        return BoardInput(tick, spikes, "checked" in body and _boolean(body, "checked"))
    return StopInput()  # whatever else it holds: a stop is obeyed


def as_stimuli(values: ArrayLike) -> NDArray[np.float32]:
    """Return numbers as a vector of little-endian float32; one beyond its range becomes Inf, to be refused as such."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MessageError(Reason.TYPE, f"stimuli must be numbers: {error}") from None
    if vector.ndim != 1:
        raise MessageError(Reason.LENGTH, f"stimuli are one vector, not an array of shape {vector.shape}")
    with np.errstate(over="ignore"):
        return vector.astype("<f4")


def split_parts(frames: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return topic and payload of a multipart message; refuse any other number of parts."""
    if len(frames) != 2:
        raise MessageError(Reason.PARTS, f"a message has two parts, topic and payload; this one has {len(frames)}")
    return frames[0], frames[1]


# ---------------------------------------------------------------------------------------------------------------------
# Control: request and reply


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the control socket; `id`, where given, comes back with the reply.

    `session` is what `hello` returned, and `seq` rises with each request of that session, so that one which was
    recorded and is sent again is known.
    """

    cmd: str
    args: dict[str, Any] = field(default_factory=dict)
    id: int | str | None = None
    session: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a `Request`: a `result`, or an `error` sentence and its countable `reason`."""

    ok: bool
    result: Any = None
    error: str = ""
    reason: str = ""
    id: int | str | None = None


def pack_request(request: Request) -> bytes:
    """Pack a request; refuse what the daemon would refuse to read."""
    body: dict[str, Any] = {"cmd": request.cmd, "args": request.args}
    if request.id is not None:
        body["id"] = request.id
    payload = _pack(body | _ordered(request.session, request.seq))
    unpack_request(payload)
    return payload


def unpack_request(payload: bytes) -> Request:
    """Check and unpack a request. Whether the command exists is for `neuromod.bridge.commands` to say."""
    body = _unpack_map(payload, MAX_INBOUND_BYTES)
    _only(body, ("cmd", "args", "id", "session", "seq"))
    args = body.get("args", {})
    if not isinstance(args, dict):
        raise MessageError(Reason.TYPE, f"args must be a map, not {_kind(args)}")
    _check_finite(args)
    return Request(_text(body, "cmd"), args, _identifier(body), *_order(body))


def pack_reply(reply: Reply) -> bytes:
    """Pack a reply: `result` where it is ok, else `error` and `reason`."""
    body: dict[str, Any] = {"ok": reply.ok}
    if reply.ok:
        body["result"] = reply.result
    else:
        body |= {"error": reply.error, "reason": reply.reason}
    if reply.id is not None:
        body["id"] = reply.id
    return _pack(body)


def unpack_reply(payload: bytes) -> Reply:
    """Check and unpack a reply."""
    body = _unpack_map(payload, MAX_OUTBOUND_BYTES)
    ok = _get(body, "ok")
    if not isinstance(ok, bool):
        raise MessageError(Reason.TYPE, f"ok must be true or false, not {_kind(ok)}")
    if ok:
        return Reply(True, body.get("result"), id=_identifier(body))
    return Reply(False, error=_text(body, "error"), reason=_text(body, "reason"), id=_identifier(body))


def split_envelope(frames: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """Split what a ROUTER received into the envelope, to be sent back in front of the reply, and the payload.

    A DEALER sends [payload]; a REQ sends [empty, payload]; the ROUTER puts the identity in front of both.
    """
    frames = list(frames)
    if len(frames) == 2 or (len(frames) == 3 and not frames[1]):
        return frames[:-1], frames[-1]
    raise MessageError(
        Reason.PARTS, f"a request is one part, after an empty one from a REQ; this one has {len(frames)}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# msgpack, and the checks that all messages share


def _pack(body: dict[str, Any]) -> bytes:
    try:
        packed: bytes = msgpack.packb(body, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(Reason.TYPE, f"this cannot be packed as msgpack: {error}") from None
    return packed


def _refuse_ext(code: int, data: bytes) -> None:
    raise MessageError(Reason.MSGPACK, f"msgpack extension type {code} is not part of the protocol")


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise MessageError(Reason.MSGPACK, "a key occurs twice in one map")
    return body


def _unpack_map(payload: bytes, limit: int) -> dict[str, Any]:
    """Decode one plain, bounded msgpack map with string keys."""
    if len(payload) > limit:
        raise MessageError(Reason.OVERSIZED, f"the payload has {len(payload)} bytes, at most {limit} are read")
    try:
        body = msgpack.unpackb(
            payload, raw=False, strict_map_key=True, ext_hook=_refuse_ext, object_pairs_hook=_unique_pairs
        )
    except MessageError:
        raise
    except msgpack.StackError:
        raise MessageError(Reason.NESTING, f"the payload is nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        # a truncated message, bytes after its end, broken UTF-8, a key that is no string
        raise MessageError(Reason.MSGPACK, f"the payload is not one msgpack value: {error}") from None
    if not isinstance(body, dict):
        raise MessageError(Reason.TYPE, f"the payload must be a msgpack map, not {_kind(body)}")
    _check_plain(body, 1)
    return body


def _check_plain(value: Any, depth: int) -> None:
    """Refuse what has no business in a message: deep nesting, keys that are bytes, msgpack's timestamps."""
    if depth > MAX_DEPTH:
        raise MessageError(Reason.NESTING, f"the payload is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise MessageError(Reason.TYPE, f"keys must be strings, not {_kind(key)}")
            _check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str | bytes):
        raise MessageError(Reason.MSGPACK, f"{_kind(value)} is not part of the protocol")


def _check_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise MessageError(Reason.NONFINITE, "numbers must be finite: no NaN, no Inf")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_finite(item)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _unknown_topic(topic: bytes, known: Sequence[bytes]) -> MessageError:
    names = ", ".join(name.decode() for name in known)
    return MessageError(Reason.TOPIC, f"topic {topic[:32]!r} is not one of {names}")


def _only(body: dict[str, Any], known: Sequence[str]) -> None:
    for key in body:
        if key not in known:
            raise MessageError(Reason.UNKNOWN_KEY, f"{key[:32]!r} is not one of the keys {', '.join(known)}")


def _get(body: dict[str, Any], key: str) -> Any:
    if key not in body:
        raise MessageError(Reason.MISSING_KEY, f"{key} is missing")
    return body[key]


def _number(body: dict[str, Any], key: str) -> float:
    value = _get(body, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MessageError(Reason.TYPE, f"{key} must be a number, not {_kind(value)}")
    return float(value)


def _finite(body: dict[str, Any], key: str) -> float:
    value = _number(body, key)
    if not math.isfinite(value):
        raise MessageError(Reason.NONFINITE, f"{key} must be finite, not {value}")
    return value


def _within(body: dict[str, Any], key: str, low: float, high: float) -> float:
    value = _finite(body, key)
    if not low <= value <= high:
        raise MessageError(Reason.RANGE, f"{key} must be {low:g} to {high:g}, not {value:g}")
    return value


def _integer(body: dict[str, Any], key: str, low: int = 0, high: int = (1 << 64) - 1) -> int:
    value = _get(body, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise MessageError(Reason.TYPE, f"{key} must be an integer, not {_kind(value)}")
    if not low <= value <= high:
        raise MessageError(Reason.RANGE, f"{key} must be {low} to {high}, not {value}")
    return value


def _boolean(body: dict[str, Any], key: str) -> bool:
    value = _get(body, key)
    if not isinstance(value, bool):
        raise MessageError(Reason.TYPE, f"{key} must be a boolean, not {_kind(value)}")
    return value


def _text(body: dict[str, Any], key: str) -> str:
    value = _get(body, key)
    if not isinstance(value, str):
        raise MessageError(Reason.TYPE, f"{key} must be a string, not {_kind(value)}")
    return value


def _name(body: dict[str, Any], key: str) -> str:
    name = _text(body, key)
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise MessageError(Reason.LENGTH, f"{key} must have 1 to {MAX_NAME_CHARACTERS} characters, not {len(name)}")
    return name


def _time(body: dict[str, Any]) -> float | None:
    return _finite(body, "t") if body.get("t") is not None else None


def _binary(body: dict[str, Any], key: str, n_bytes: int) -> bytes:
    value = _get(body, key)
    if not isinstance(value, bytes):
        raise MessageError(Reason.TYPE, f"{key} must be binary, not {_kind(value)}")
    if len(value) != n_bytes:
        raise MessageError(Reason.LENGTH, f"{key} must have {n_bytes} bytes, not {len(value)}")
    return value


def _floats(body: dict[str, Any], key: str, n: int | None) -> NDArray[np.float32]:
    value = _get(body, key)
    if n is None:
        n = len(value) // 4 if isinstance(value, bytes) else 0
    return np.frombuffer(_binary(body, key, 4 * n), dtype="<f4").astype(np.float32)


def _stimuli(values: Any, n: int) -> NDArray[np.float32]:
    if isinstance(values, bytes):
        return _floats({"values": values}, "values", n)
    if not isinstance(values, list):
        raise MessageError(Reason.TYPE, f"values must be binary or a list of numbers, not {_kind(values)}")
    if len(values) != n:
        raise MessageError(Reason.LENGTH, f"values must have {n} numbers, not {len(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MessageError(Reason.TYPE, f"values must be numbers, not {_kind(value)}")
    return as_stimuli([float(value) for value in values])


def _identifier(body: dict[str, Any]) -> int | str | None:
    value = body.get("id")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise MessageError(Reason.TYPE, f"id must be an integer or a string, not {_kind(value)}")
    return value


def _ordered(session: str | None, seq: int | None) -> dict[str, Any]:
    return {key: value for key, value in (("session", session), ("seq", seq)) if value is not None}


def _order(body: dict[str, Any]) -> tuple[str | None, int | None]:
    """Read `session` and `seq`, which come together or not at all."""
    if "session" not in body and "seq" not in body:
        return None, None
    session = _text(body, "session")
    if not 1 <= len(session) <= MAX_SESSION_CHARACTERS:
        raise MessageError(Reason.LENGTH, f"session has 1 to {MAX_SESSION_CHARACTERS} characters, as hello returned it")
    return session, _integer(body, "seq", 1)


def _put_u64(data: bytearray, at: int, name: str, value: int) -> None:
    if not 0 <= value < 1 << 64:
        raise MessageError(Reason.RANGE, f"{name} must fit 64 bits without sign, not {value}")
    struct.pack_into(">Q", data, at, value)
