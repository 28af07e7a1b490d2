"""Lab Streaming Layer in: one stream of numbers, and streams of markers.

Stamps pass raw, on the clock of the machine that sends; `correction` says how to reach ours. liblsl's own recovery is
off, because it can silently attach to a stream of the same name on another machine: `reconnect` takes only the same
source_id on the same host, and only with the same layout.

LSL authenticates nothing. A list of allowed hosts and source_ids keeps out mistakes and strangers that only use the
same name; who forges both is let in.
"""

import contextlib
import ctypes
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pylsl
from numpy.typing import NDArray
from pylsl.util import LostError
from pylsl.util import TimeoutError as LslTimeoutError  # not the built-in one

from neuromod.adapters.base import Chunk, Marker, StreamInfo, empty_chunk, microvolts_per, not_open, unique_names
from neuromod.adapters.config import LslConfig, MarkerConfig
from neuromod.engine.errors import AdapterError, AdapterTimeoutError

log = logging.getLogger(__name__)

# How often a search is looked at. It runs on threads of liblsl, so that Python goes on answering signals.
_POLL_S = 0.002
_ANSWER_S = 1.0  # however short the search: clock probes alone take 0.64 s
# How long a second stream that also matches gets to answer, from the moment the search begins. Two streams of one
# machine may need both waves of a search (multicast, then one by one 0.5 s later); the clock takes as long anyway.
_RIVAL_S = 0.65
# The offset of an open stream is at hand; waited for only while its sender is going.
_CLOCK_S = 0.05
_MARKER_BUFFER_S = 36.0
_MARKERS_AT_ONCE = 1024
# Of msgpack. Anybody may send a marker, and a long run of digits is rather a name or a date than a number.
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**64 - 1
_MOST_CHANNELS = 1 << 16  # anybody on the network may state any number; the largest arrays have some thousands
_MOST_STRANGERS_TOLD = 64  # in the log: a network may be full of them
Allows = Callable[[str, str], bool]
"""Says whether a stream of this host and this source_id may be used."""
_IDENTITY = ("name", "type", "source_id", "hostname")
_FORMAT_NAMES = {
    pylsl.cf_float32: "float32",
    pylsl.cf_double64: "double64",
    pylsl.cf_string: "string",
    pylsl.cf_int32: "int32",
    pylsl.cf_int16: "int16",
    pylsl.cf_int8: "int8",
    pylsl.cf_int64: "int64",
}
_lib: Any = pylsl.lib.lib


def _native(name: str, result: Any, *arguments: Any) -> Any:
    # indexing gives a function object of our own, so that pylsl's argument types stay as they are
    function = _lib[name]
    function.restype = result
    function.argtypes = arguments
    return function


_POINTER, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int
_pull_chunk_f = _native(
    "lsl_pull_chunk_f", ctypes.c_ulong, _POINTER, _POINTER, _POINTER, ctypes.c_ulong, ctypes.c_ulong, _DOUBLE, _POINTER
)
_time_correction_ex = _native("lsl_time_correction_ex", _DOUBLE, _POINTER, _POINTER, _POINTER, _DOUBLE, _POINTER)
_was_clock_reset = _native("lsl_was_clock_reset", ctypes.c_uint32, _POINTER)


def list_streams(timeout_s: float = 1.0) -> list[StreamInfo]:
    """Return the streams that can be seen on the network, by name.

    Parameters
    ----------
    timeout_s : float
        The whole of it is waited, in seconds; below 0.5 some streams may be missed.

    Returns
    -------
    list of StreamInfo
        Without channel names and units, which only a connection tells.
    """
    found = [_brief_info(info) for info in pylsl.resolve_streams(timeout_s)]
    return sorted(found, key=lambda info: (info.name, info.hostname, info.source_id))


class _Connection:
    """One inlet, resolved to exactly one stream and remembering which."""

    def __init__(self, config: LslConfig | MarkerConfig, max_buflen_s: float, allows: Allows | None) -> None:
        self._config = config
        self._allows = allows
        self._strangers: set[tuple[str, str]] = set()  # of this search
        self._strangers_told: set[tuple[str, str]] = set()
        self.refused = 0
        self._max_buflen_s = max_buflen_s
        self._inlet: Any = None
        self._identity: dict[str, str] | None = None
        self._search: Any = None  # for a stream that was lost; it outlasts a call of `reopen`
        self.is_lost = False

    def __str__(self) -> str:
        return f"LSL stream with {self.description}"

    @property
    def description(self) -> str:
        return ", ".join(f'{key} "{value}"' for key in _IDENTITY if (value := getattr(self._config, key)))

    @property
    def _wanted(self) -> dict[str, str]:
        return {key: value for key in _IDENTITY if (value := getattr(self._config, key))}

    @property
    def inlet(self) -> Any:
        if self._inlet is None:
            raise not_open(str(self))
        return self._inlet

    @property
    def is_open(self) -> bool:
        return self._inlet is not None

    def open(self, check: Callable[[Any], None], *, subscribed: bool = True) -> None:
        """Connect to the one stream that answers.

        Parameters
        ----------
        check : callable
            Gets the complete description of the stream, before any data flows; raises to refuse it.
        """
        timeout_s = self._config.resolve_timeout_s
        begun = time.monotonic()
        resolver = pylsl.ContinuousResolver(pred=_predicate(self._wanted))
        found = self._wait_for(resolver, timeout_s)
        if not found and self._strangers:
            strangers = ", ".join(f"{host}/{source_id or '(no source_id)'}" for host, source_id in self._strangers)
            raise AdapterError(
                f"an LSL stream with {self.description} is there, but is not one that security.lsl_sources allows: "
                f"{strangers}; add it there as hostname/source_id if it is the right one"
            )
        if not found:
            raise AdapterTimeoutError(
                f"no LSL stream with {self.description} within {timeout_s:g} s; seen: {_listing(list_streams(0.6))}. "
                "Start the stream, mend the words, or see `neuromod doctor` if a stream that runs is not seen"
            )
        answer_s = max(_ANSWER_S, timeout_s)
        described = self._attach(found[0], answer_s)
        try:
            self._learn_clock(answer_s)
            while time.monotonic() < begun + _RIVAL_S and len(found) < 2:
                time.sleep(_POLL_S)
                found = self._known(resolver.results())
            if len(found) > 1:
                raise AdapterError(
                    f"{len(found)} LSL streams have {self.description}: "
                    f"{_listing([_brief_info(info) for info in found])}. Say which by adding source_id or hostname"
                )
            self._check_allowed(described)
            check(described)
            if subscribed:
                self.subscribe(answer_s)
        except BaseException:
            self.close()
            raise
        self._identity = {"source_id": described.source_id(), "hostname": described.hostname()}

    def reopen(self, timeout_s: float, check: Callable[[Any], None]) -> bool:
        """Connect to the same stream come back: same source_id on the same host; False if it is not there (yet)."""
        self._drop_inlet()
        if self._identity is None or not self._identity["source_id"]:
            time.sleep(timeout_s)  # the caller tries again and again: be as slow as a search that finds nothing
            return False
        deadline = time.monotonic() + timeout_s
        # a search that began anew at each call would never get to its second wave, which asks known hosts one by one
        if self._search is None:
            # with a list, what has the name and is not on it is to be told of, too
            wanted = self._identity if self._allows is None else self._wanted
            self._search, self._strangers = pylsl.ContinuousResolver(pred=_predicate(wanted)), set()
        found = self._wait_for(self._search, timeout_s, self._identity)
        if not found:
            return False
        self._search = None
        newest = max(found, key=lambda info: float(info.created_at()))
        left_s = max(_ANSWER_S, deadline - time.monotonic())
        try:
            described = self._attach(newest, left_s)
            self._check_allowed(described)
            check(described)
            self._learn_clock(left_s)
            self.subscribe(left_s)
        except AdapterError as error:
            log.warning("%s", error)
            self.close()
            return False
        return True

    def _wait_for(self, resolver: Any, timeout_s: float, identity: dict[str, str] | None = None) -> list[Any]:
        """Return the first streams that a search finds, that may be used, and that are the one; none after a time."""
        deadline = time.monotonic() + timeout_s
        while not (found := self._known(resolver.results(), identity)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def _known(self, found: list[Any], identity: dict[str, str] | None = None) -> list[Any]:
        """Return those streams that may be used, and that are the one where one is looked for."""
        allowed = [info for info in found if self._is_allowed(info)]
        if identity is None:
            return allowed
        is_it = (identity["hostname"], identity["source_id"])
        return [info for info in allowed if (info.hostname(), info.source_id()) == is_it]

    def _is_allowed(self, info: Any) -> bool:
        if self._allows is None or self._allows(info.hostname(), info.source_id()):
            return True
        stranger = (info.hostname(), info.source_id())
        if stranger not in self._strangers:  # a search finds it again and again
            self._strangers.add(stranger)
            self.refused += 1
        if stranger not in self._strangers_told and len(self._strangers_told) < _MOST_STRANGERS_TOLD:
            self._strangers_told.add(stranger)
            log.warning("%s: refused one of host %r with source_id %r: not in security.lsl_sources", self, *stranger)
        return False

    def _check_allowed(self, described: Any) -> None:
        """Refuse a stream that answered the search with other words than its description has."""
        if not self._is_allowed(described):
            raise AdapterError(
                f"{self} is of host {described.hostname()!r} with source_id {described.source_id()!r}, which "
                "security.lsl_sources does not allow; add hostname/source_id there if it is the right one"
            )

    def correction(self) -> tuple[float, float]:
        """Return offset and uncertainty to our clock, in seconds; NaN where they are not known now."""
        if self._inlet is None:
            return math.nan, math.nan
        remote, uncertainty, code = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
        offset = _time_correction_ex(
            self.inlet.obj, ctypes.byref(remote), ctypes.byref(uncertainty), _CLOCK_S, ctypes.byref(code)
        )
        if code.value:
            return math.nan, math.nan
        return float(offset), float(uncertainty.value)

    def close(self) -> None:
        self._search = None
        self._drop_inlet()

    def _drop_inlet(self) -> None:
        inlet, self._inlet = self._inlet, None
        if inlet is not None:
            inlet.close_stream()
            # pylsl destroys the native inlet with the last reference to it: no thread may be pulling any more
            del inlet

    def _attach(self, found: Any, timeout_s: float) -> Any:
        self._inlet = pylsl.StreamInlet(found, max_buflen=math.ceil(self._buflen(found)), recover=False)
        self.is_lost = False
        try:
            return self._inlet.info(timeout_s)
        except (LslTimeoutError, LostError) as error:
            self.close()
            raise self._unanswered("request for the description (TCP)", timeout_s) from error

    def _learn_clock(self, timeout_s: float) -> None:
        # before data flow: the first pull would otherwise wait 640 ms for the clocks
        try:
            self.inlet.time_correction(timeout_s)
        except (LslTimeoutError, LostError) as error:
            raise self._unanswered("clock probes (UDP)", timeout_s) from error

    def subscribe(self, timeout_s: float) -> None:
        """Have data flow."""
        try:
            self.inlet.open_stream(timeout_s)
        except (LslTimeoutError, LostError) as error:
            raise self._unanswered("subscription (TCP)", timeout_s) from error

    def _unanswered(self, what: str, timeout_s: float) -> AdapterTimeoutError:
        return AdapterTimeoutError(
            f"{self}: seen, but its {what} was not answered within {timeout_s:g} s; check that the sender still runs "
            "and that no firewall blocks the LSL ports (16571 to 16604, TCP and UDP)"
        )

    def _buflen(self, found: Any) -> float:
        # liblsl counts seconds for a regular stream, hundreds of samples for an irregular one (at most 1 kHz here)
        return self._max_buflen_s if found.nominal_srate() > 0 else self._max_buflen_s * 10


class LslSource:
    """A live stream of numbers.

    Parameters
    ----------
    config : LslConfig
        Which stream, and what to expect of it.
    allows : callable, optional
        Gets host and source_id, and says whether that stream may be used. By default any may.

    Notes
    -----
    The compiled loop pulls float32 through `handle` by itself and multiplies by `scale`; `read` does the same for
    everybody else. Never both at once, and nothing may pull while `reconnect` or `close` runs: destroying an inlet
    under a pull ends the process.
    """

    def __init__(self, config: LslConfig, allows: Allows | None = None) -> None:
        self._config = config
        self._connection = _Connection(config, config.max_buflen_s, allows)
        self._info: StreamInfo | None = None
        self._layout: tuple[Any, ...] = ()
        self._scale: NDArray[np.float32] = np.ones(0, np.float32)
        self._quirks: dict[str, int] = {}

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        if self._info is None:
            raise not_open(str(self._connection))
        return self._info

    @property
    def ended(self) -> bool:
        """Never: a live stream may return."""
        return False

    @property
    def is_lost(self) -> bool:
        """True once a read found the sender gone; until `reconnect` succeeds."""
        return self._connection.is_lost or (self._info is not None and not self._connection.is_open)

    @property
    def quirks(self) -> dict[str, int]:
        """Counted: `lost`, `reconnects`, `refused_reconnects`, `clock_resets`, `lsl_refused`."""
        return _with_refused(self._quirks, self._connection)

    @property
    def handle(self) -> int:
        """Address of the native inlet, for `lsl_pull_chunk_f`; another one after `reconnect`, none after `close`."""
        return int(self._connection.inlet.obj.value)

    @property
    def scale(self) -> NDArray[np.float32]:
        """What to multiply a pulled sample by to get microvolt, shape (n_channels,); 1 where the unit is unknown."""
        return self._scale

    def open(self, *, subscribed: bool = True) -> None:
        """Find the stream, check it, learn its clock and subscribe.

        Parameters
        ----------
        subscribed : bool
            False leaves `subscribe` to the caller, who still has something to prepare before data may flow.

        Raises
        ------
        AdapterTimeoutError
            If no such stream was seen, or it does not answer.
        AdapterError
            If several match, or the stream is not what the configuration says, or none that is allowed.
        """
        if self._connection.is_open:
            return
        try:
            self._connection.open(self._check, subscribed=subscribed)
        except BaseException:
            self._info = None
            raise
        assert self._info is not None
        if not self._info.source_id:
            log.warning(
                "LSL stream %r states no source_id: should it vanish, it cannot be told from another one "
                "and will not be reconnected",
                self._info.name,
            )

    def subscribe(self) -> None:
        """Have data flow, where `open` was told not to.

        Raises
        ------
        AdapterTimeoutError
            If the sender does not answer.
        """
        self._connection.subscribe(self._config.resolve_timeout_s)

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Wait for the first sample, then return all that are there."""
        info = self.info
        if self.is_lost:
            return empty_chunk(info.n_channels)
        obj = self._connection.inlet.obj
        samples = np.empty((max_samples, info.n_channels), np.float32)
        stamps = np.empty(max_samples, np.float64)
        n = self._pull(obj, samples[:1], stamps[:1], timeout_s)
        if n and max_samples > 1:
            n += self._pull(obj, samples[1:], stamps[1:], 0.0)
        chunk = Chunk(samples[:n], stamps[:n])
        np.multiply(chunk.samples, self._scale, out=chunk.samples)
        return chunk

    def markers(self) -> list[Marker]:
        """Return nothing: LSL markers are streams of their own, see `LslMarkers`."""
        return []

    def correction(self) -> tuple[float, float]:
        """Return what to add to a stamp to reach our clock, and how uncertain that is, in seconds.

        Both are NaN where it is not known now. Costs microseconds once the stream is open; it may be called while
        another thread pulls.
        """
        if self._connection.is_open and _was_clock_reset(self._connection.inlet.obj):
            self._count("clock_resets")
        return self._connection.correction()

    def reconnect(self, timeout_s: float) -> bool:
        """Replace the inlet by a new one to the same stream: same source_id, same host, same layout.

        Parameters
        ----------
        timeout_s : float
            How long to look for it, in seconds.

        Returns
        -------
        bool
            False if it is not there (yet): call again. `handle` is then gone and reads return nothing.
        """
        _ = self.info
        if not self._connection.reopen(timeout_s, self._check_unchanged):
            return False
        self._count("reconnects")
        return True

    def close(self) -> None:
        """Unsubscribe and destroy the inlet. Nothing may be pulling."""
        self._connection.close()
        self._info = None

    def _check(self, described: Any) -> None:
        self._info, self._scale = _check_signal(described, self._config)
        self._layout = _layout(described)

    def _check_unchanged(self, described: Any) -> None:
        if _layout(described) != self._layout:
            self._count("refused_reconnects")
            raise AdapterError(
                f"{self._connection} returned with other channels, units, rate or format ({described.channel_count()} "
                f"x {described.nominal_srate():g} Hz): refused; restart the sender as it was, or the session"
            )

    def _pull(self, obj: Any, samples: NDArray[np.float32], stamps: NDArray[np.float64], timeout_s: float) -> int:
        code = ctypes.c_int()
        n_values = _pull_chunk_f(
            obj, samples.ctypes.data, stamps.ctypes.data, samples.size, stamps.size, timeout_s, ctypes.byref(code)
        )
        if code.value:  # -2 lost; anything else leaves the inlet just as useless
            self._connection.is_lost = True
            self._count("lost")
            return 0
        return int(n_values // samples.shape[1])

    def _count(self, what: str) -> None:
        self._quirks[what] = self._quirks.get(what, 0) + 1


class LslMarkers:
    """A live stream of markers: strings, or whole numbers.

    Parameters
    ----------
    config : MarkerConfig
        Which stream.
    allows : callable, optional
        As of `LslSource`.

    Notes
    -----
    A stream of strings gives markers named by its first channel; a second channel is their value: a number where it
    reads as a finite one of at most 64 bits, else text. A stream of numbers gives markers named by the stream, with the
    number of the first channel as value.
    """

    def __init__(self, config: MarkerConfig, allows: Allows | None = None) -> None:
        self._connection = _Connection(config, _MARKER_BUFFER_S, allows)
        self._info: StreamInfo | None = None
        self._is_text = True
        self._quirks: dict[str, int] = {}

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        if self._info is None:
            raise not_open(str(self._connection))
        return self._info

    @property
    def is_lost(self) -> bool:
        """True once the sender was found gone; until `reconnect` succeeds."""
        return self._connection.is_lost or (self._info is not None and not self._connection.is_open)

    @property
    def quirks(self) -> dict[str, int]:
        """Counted: `lost`, `reconnects`, `lsl_refused`."""
        return _with_refused(self._quirks, self._connection)

    def open(self) -> None:
        """Find the stream, check it, learn its clock and subscribe.

        Raises
        ------
        AdapterTimeoutError
            If no such stream was seen, or it does not answer.
        AdapterError
            If several match, or the stream is a signal.
        """
        if self._connection.is_open:
            return
        try:
            self._connection.open(self._check)
        except BaseException:
            self._info = None
            raise

    def markers(self) -> list[Marker]:
        """Return the markers that have come, with the raw stamps of the sender's clock. Never waits."""
        info = self.info
        if self.is_lost:
            return []
        found: list[Marker] = []
        while True:
            try:
                rows, stamps = self._connection.inlet.pull_chunk(timeout=0.0, max_samples=_MARKERS_AT_ONCE)
            except UnicodeDecodeError:  # the rows of this pull are gone
                self._quirks["undecodable"] = self._quirks.get("undecodable", 0) + 1
                continue
            except LostError:
                self._connection.is_lost = True
                self._quirks["lost"] = self._quirks.get("lost", 0) + 1
                return found
            for row, stamp in zip(rows, stamps, strict=True):
                found.append(_text_marker(stamp, row) if self._is_text else Marker(stamp, info.name, row[0]))
            if len(stamps) < _MARKERS_AT_ONCE:
                return found

    def correction(self) -> tuple[float, float]:
        """Return what to add to a stamp to reach our clock, and how uncertain that is, in seconds; NaN if unknown."""
        return self._connection.correction()

    def reconnect(self, timeout_s: float) -> bool:
        """Replace the inlet by a new one to the same source_id on the same host; False if it is not there (yet)."""
        _ = self.info
        if not self._connection.reopen(timeout_s, self._check):
            return False
        self._quirks["reconnects"] = self._quirks.get("reconnects", 0) + 1
        return True

    def close(self) -> None:
        """Unsubscribe and destroy the inlet."""
        self._connection.close()
        self._info = None

    def _check(self, described: Any) -> None:
        is_text = described.channel_format() == pylsl.cf_string
        if not is_text and described.nominal_srate() > 0:
            raise AdapterError(
                f"{self._connection} is sampled at {described.nominal_srate():g} Hz; markers come on a stream of "
                "irregular rate: name another stream, or use this one as the source"
            )
        self._is_text, self._info = is_text, _brief_info(described)


def _with_refused(quirks: dict[str, int], connection: _Connection) -> dict[str, int]:
    return {**quirks, **({"lsl_refused": connection.refused} if connection.refused else {})}


def marker_row(marker: Marker) -> list[str]:
    """Return a marker as the row of a stream of two strings, which `LslMarkers` reads back as it was."""
    return [marker.name, "" if marker.value is None else json.dumps(marker.value)]


def _text_marker(stamp: float, row: list[str]) -> Marker:
    if len(row) < 2 or not row[1]:
        return Marker(stamp, row[0])
    try:
        value = json.loads(row[1])
    except (ValueError, RecursionError):
        value = row[1]
    return Marker(stamp, row[0], value if _is_portable(value) else row[1])


def _is_portable(value: Any) -> bool:
    """Whether a marker of this value can go on as msgpack and as JSON."""
    match value:
        case int():
            return _SMALLEST_INT <= value <= _LARGEST_INT
        case float():
            return math.isfinite(value)
        case str():
            return not any("\ud800" <= character <= "\udfff" for character in value)  # half a pair: not UTF-8
    return False


def _predicate(wanted: dict[str, str]) -> str:
    return " and ".join(f"{key}={_xpath_literal(value)}" for key, value in wanted.items())


def _xpath_literal(text: str) -> str:
    """Return an XPath 1.0 string; it knows no escapes, so a text with both quotes is put together."""
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    return "concat(" + ', "\'", '.join(f"'{part}'" for part in text.split("'")) + ")"


def _brief_info(info: Any) -> StreamInfo:
    return StreamInfo(
        name=info.name(),
        kind="signal",
        n_channels=info.channel_count(),
        sampling_frequency=info.nominal_srate(),
        channel_names=(),
        units=(),
        source_id=info.source_id(),
        hostname=info.hostname(),
        stream_type=info.type(),
        is_regular=info.nominal_srate() > 0,
    )


def _listing(streams: list[StreamInfo]) -> str:
    if not streams:
        return "no stream at all"
    return "; ".join(
        f'name "{info.name}" type "{info.stream_type}" source_id "{info.source_id}" hostname "{info.hostname}" '
        f"({info.n_channels} x {info.sampling_frequency:g} Hz)"
        for info in streams
    )


def _told(described: Any) -> tuple[list[str | None], list[str | None]]:
    """Return the labels and the units of the channels; none where there are not as many as channels."""
    n_channels = described.channel_count()
    with contextlib.redirect_stdout(sys.stderr):  # where pylsl prints that it is another number
        told = [list(get() or ()) for get in (described.get_channel_labels, described.get_channel_units)]
    labels, units = (words if len(words) == n_channels else [] for words in told)
    return labels, units


def _layout(described: Any) -> tuple[Any, ...]:
    labels, units = _told(described)
    return described.channel_count(), described.nominal_srate(), described.channel_format(), tuple(labels), tuple(units)


def _check_signal(described: Any, config: LslConfig) -> tuple[StreamInfo, NDArray[np.float32]]:
    """Return what the stream is and the scale of its channels, or say why it cannot be used."""
    name, n_channels, nominal = described.name(), described.channel_count(), described.nominal_srate()
    format_name = _FORMAT_NAMES.get(described.channel_format(), "undefined")
    if format_name in ("string", "undefined"):
        raise AdapterError(
            f"the LSL stream {name!r} carries {format_name} values and cannot be a signal; "
            "name it under markers instead, or name another stream"
        )
    if not 1 <= n_channels <= _MOST_CHANNELS:
        raise AdapterError(f"the LSL stream {name!r} states {n_channels} channels; expected 1 to {_MOST_CHANNELS}")
    if config.n_channels is not None and n_channels != config.n_channels:
        raise AdapterError(
            f"the LSL stream {name!r} has {n_channels} channels, n_channels says {config.n_channels}; "
            "mend the configuration, or the device"
        )
    if config.content == "signal":
        key, stated = "sampling_frequency_hz", config.sampling_frequency_hz
    else:
        key, stated = "bin_ms", None if config.bin_ms is None else 1000.0 / config.bin_ms
    if nominal <= 0 and stated is None:
        raise AdapterError(f"the LSL stream {name!r} states no rate (irregular); say it: {key} in the configuration")
    if nominal > 0 and stated is not None and not math.isclose(nominal, stated, rel_tol=1e-3):
        raise AdapterError(
            f"the LSL stream {name!r} runs at {nominal:g} Hz, {key} says {stated:g} Hz; mend the configuration"
        )
    rate = nominal if nominal > 0 else stated
    assert rate is not None
    if config.content == "features" and not 9.99 <= rate <= 1001.0:
        raise AdapterError(
            f"the LSL stream {name!r} sends {rate:g} vectors a second; features come in bins of 1 to 100 ms (10 to "
            '1000 a second): use content = "signal", or bin them'
        )
    labels, told = _told(described)
    units = [unit or "" for unit in told or [""] * n_channels]
    scale = np.ones(n_channels, np.float32)
    if config.content == "signal":
        for i, unit in enumerate(units):
            factor = microvolts_per(unit)
            if factor is not None:
                scale[i], units[i] = factor, "uV"
    info = StreamInfo(
        name=name,
        kind=config.content,
        n_channels=n_channels,
        sampling_frequency=rate,
        channel_names=unique_names(labels or [None] * n_channels),
        units=tuple(units),
        source_id=described.source_id(),
        hostname=described.hostname(),
        stream_type=described.type(),
        is_regular=nominal > 0,
    )
    return info, scale
