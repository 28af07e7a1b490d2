"""The daemon's numbers for Prometheus: read when they are asked for, from what the collector has anyway.

A scrape runs in a thread of its own. It reads counters that the loop and the collector keep, and holds no lock that
they want. Nothing is global: a registry belongs to one daemon.
"""

import contextlib
import http.server
import logging
import platform
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as PrometheusCollector

from neuromod.bridge import loop_state as rt
from neuromod.bridge import native, wire
from neuromod.bridge.collector import Collector
from neuromod.bridge.gate import ALLOWED, REASONS
from neuromod.bridge.histograms import BOUNDS_S, Histogram
from neuromod.bridge.metrics_config import MetricsConfig
from neuromod.bridge.recorder import QUEUE_BYTES
from neuromod.bridge.ring import SampleRing
from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily

STATES = (*rt.STATE_NAMES, "paused", "stopping")

_PATHS = ("/", "/metrics")
_TURN_S = 0.1
_LONGEST_SILENCE_S = 5.0
_MOST_CONNECTIONS = 8
_HEAD, _TAIL = 0, 8  # items of a ring's `ends`

# told from the start: Prometheus takes no notice of the first step of a counter that was not there at 0
_OF_SENDERS = ("role", "rate", "session", "replayed", "key")
_REFUSALS = (*(str(reason) for reason in wire.Reason), "overflow", "event_value", *_OF_SENDERS)
_TURNED_AWAY = ("no_key", "unknown_key", "role", "other_daemon", "handshake", "too_many")

_BOUND_NAMES = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]

# of the counters in health: the name where it is not its own, and what it counts
_COUNTERS: dict[str, tuple[str, str]] = {
    "samples": ("samples", "Samples taken from the source, filled ones included"),
    "samples_lost": ("samples_lost", "Samples that the source never delivered"),
    "samples_filled": ("samples_filled", "Samples that were filled in for lost ones"),
    "samples_dropped": ("samples_dropped", "Samples skipped because the loop had fallen behind"),
    "gaps": ("gaps", "Gaps in the samples"),
    "duplicates": ("duplicate_samples", "Samples that came twice"),
    "backward_steps": ("backward_steps", "Stamps that went backward"),
    "discontinuities": ("discontinuities", "Times that the grid of samples was laid anew"),
    "nonfinite_values": ("nonfinite_values", "Values of samples that were not finite"),
    "bad_stamps": ("bad_stamps", "Stamps of samples that were no time"),
    "blocks": ("blocks", "Blocks of samples worked through"),
    "ticks": ("ticks", "Ticks of the network"),
    "late_ticks": ("late_ticks", "Ticks that ended later after their sample than timing.late_ms"),
    "stalls": ("stalls", "Times that the source fell silent"),
    "fillers": ("fillers", "Messages sent while the source was silent"),
    "messages": ("messages_sent", "Messages that the loop sent"),
    "send_errors": ("send_errors", "Messages that could not be sent"),
    "pull_errors": ("pull_errors", "Reads of the source that failed"),
    "inputs": ("inputs", "Inputs and commands that took effect"),
    "ingest_messages": ("ingest_messages", "Messages that came on the ingest socket"),
    "ingest_disconnects": ("ingest_disconnects", "Connections to the ingest socket that ended"),
    "stimuli_applied": ("stimuli_applied", "Stimuli from ingest that a tick took"),
    "bad_stimuli": ("bad_stimuli", "Stimuli that the network clipped or left out, being beyond its limits"),
    "bad_levels": ("bad_levels", "Levels of modulators that the network clipped or left out"),
    "board_answered": ("board_answered", "Ticks that the board answered in time"),
    "board_missing": ("board_missing", "Ticks that the board did not answer in time"),
    "board_late": ("board_late", "Answers of the board that came too late"),
    "board_unchecked": ("board_unchecked", "Answers of the board over a link without a checksum"),
}


def make_registry(collector: Collector, *, session: str) -> prometheus_client.CollectorRegistry:
    """Return a registry of one daemon's numbers, and of its process.

    Parameters
    ----------
    collector : Collector
        The daemon's.
    session : str
        Name of the session.
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(DaemonMetrics(collector, session=session))
    prometheus_client.ProcessCollector(registry=registry)
    return registry


class DaemonMetrics(PrometheusCollector):
    """Everything that the daemon tells of itself, as families of metrics; see `make_registry`."""

    def __init__(self, collector: Collector, *, session: str) -> None:
        self._collector, self._session = collector, session
        self._build = {
            "version": version("neuromod-bridge"),
            "protocol": str(wire.PROTOCOL_VERSION),
            "python": platform.python_version(),
        }

    def describe(self) -> Iterable[Any]:
        """Return nothing: names depend on what the session has."""
        return []

    def collect(self) -> Iterator[Any]:
        """Read the daemon."""
        collector, now = self._collector, self._collector.now()
        health = collector.health()
        yield from self._about(health)
        yield from _from_counters(health["counters"])
        refusals = dict.fromkeys(_REFUSALS, 0) | health["errors"]
        yield _counter("refusals", "Messages refused, by reason", ["reason"], refusals)
        spikes = {str(channel): int(n) for channel, n in enumerate(collector.spike_counts)}
        yield _counter("spikes", "Spikes of the network, by channel", ["channel"], spikes)
        yield from self._now(health, now)
        yield from _rings(collector)
        yield from _stimulation(health["stimulation"])
        if health["recording"]["state"] != "off":
            yield from _recording(health["recording"])
        yield from _from_others(health)
        times = collector.histograms
        if collector.is_timed:
            yield _histogram(
                "tick_latency_seconds", "From the stamp of a tick's newest sample to its end", times.latency
            )
            yield _histogram("tick_compute_seconds", "From a tick's samples being there to its end", times.compute)
        yield _histogram("ingest_latency_seconds", "From the sending of an input to the end of its tick", times.ingest)

    def _about(self, health: Mapping[str, Any]) -> Iterator[Family]:
        source = health["source"]
        facts = {"name": self._session, "source": source["name"], "kind": source["kind"], "content": source["content"]}
        yield InfoMetricFamily("neuromod_build", "Versions of the daemon", self._build)
        yield InfoMetricFamily("neuromod_session", "Which session it runs", {k: str(v) for k, v in facts.items()})
        yield _gauge("uptime_seconds", "Time since the session began", health["uptime_s"])
        states = {state: float(state == health["state"]) for state in STATES}
        yield _gauges("state", "1 for the state that the daemon is in, 0 for the others", ["state"], states)
        yield _gauge("warming_up", "1 until front end and encoder are ready", health["warming_up"])
        yield _gauge("excluded_channels", "Channels of the source that are left out", len(health["excluded_channels"]))
        restarts = {"": health.get("restarts", 0)}
        yield _counter("restarts", "Lives in a row before this one that did not end in order", [], restarts)
        for name, count in health["blanked"].items():
            yield _counter(f"blanked_{name}", f"Blanked around pulses of stimulation: {name}", [], {"": count})

    def _now(self, health: Mapping[str, Any], now: float) -> Iterator[Family]:
        collector, last = self._collector, self._collector.last
        yield _gauge("last_tick", "Number of the newest tick", health["tick"])
        if last["t_tick"]:
            yield _gauge("last_tick_age_seconds", "Time since the end of the newest tick", now - float(last["t_tick"]))
        if last_data := float(collector.loop.block[0]["numbers"][rt.LAST_DATA]):
            yield _gauge("last_data_age_seconds", "Time since samples came last", max(0.0, now - last_data))
        source = health["source"]
        yield _gauge("clock_offset_seconds", "From the clock of the source to the local one", source["clock_offset_s"])
        if source["clock_uncertainty_s"] is not None:
            yield _gauge("clock_uncertainty_seconds", "Uncertainty of the offset", source["clock_uncertainty_s"])
        rates = {str(channel): rate for channel, rate in enumerate(collector.rates_hz.tolist())}
        yield _gauges("firing_rate_hertz", "Firing rate over the last half second", ["channel"], rates)
        yield _gauges("modulator_level", "Level of each neuromodulator", ["modulator"], collector.modulator_levels())
        yield _gauge("learning", "1 while weights change", health["learning"])
        yield _gauge("decoder_version", "Version of the decoder", health["decoder"]["version"])


def _from_counters(counters: Mapping[str, int]) -> Iterator[Family]:
    """Every counter of health, also one that this module has not heard of; those of rings under one name."""
    overflows: dict[str, float] = {}
    for name, count in counters.items():
        if name.endswith("_overflow"):
            overflows[name.removesuffix("_overflow")] = count
        elif name != "spikes":  # which are told by channel
            told, text = _COUNTERS.get(name, (name, f"Counted as {name} in health"))
            yield _counter(told, text, [], {"": count})
    yield _counter("ring_overflows", "Records left out because a ring was full", ["ring"], overflows)


def _rings(collector: Collector) -> Iterator[Family]:
    used, size = {}, {}
    for name, ring in collector.rings._asdict().items():
        rows = ring.stamps if isinstance(ring, SampleRing) else ring.rows
        # the tail first: read the other way round, more could have been taken than had come
        tail = native.get_word(ring.ends, _TAIL)
        used[name] = min(max(native.get_word(ring.ends, _HEAD) - tail, 0), rows.shape[0])
        size[name] = rows.shape[0]
    yield _gauges("ring_used_records", "Records that wait in a ring", ["ring"], used)
    yield _gauges("ring_size_records", "Records that a ring holds", ["ring"], size)


def _stimulation(told: Mapping[str, Any]) -> Iterator[Family]:
    """Tell of the gate no more than health does, which hides from a blind operator what he must not know."""
    yield _gauge("stimulation_armed", "1 while stimulation is armed", told["state"] == "armed")
    if told["state"] == "off":
        return
    outcomes, lost = dict.fromkeys(REASONS, 0), {}
    for name, count in told["counts"].items():
        if name == "issued":
            outcomes[REASONS[ALLOWED]] = count
        elif name.startswith("refused_"):
            outcomes[name.removeprefix("refused_")] = count
        elif name == "delivered":
            yield _counter("stimulation_delivered", "Trains that were sent", [], {"": count})
        else:
            lost[name] = count
    yield _counter("stimulation_decisions", "Trains judged: allowed, or why not", ["outcome"], outcomes)
    yield _counter("stimulation_unjudged", "Trains that were never judged, by cause", ["cause"], lost)
    yield _gauge("stimulation_arming_left_seconds", "Time until the arming runs out", told["seconds_left"])
    yield _counter("stimulation_arms", "Times that stimulation was armed", [], {"": told["arms"]})
    if "dose_nc" in told:
        yield _gauge("stimulation_dose_coulombs", "Dose of the session on all electrodes", told["dose_nc"] * 1e-9)
    if "heartbeat_s" in told:
        yield _gauge("stimulation_heartbeat_age_seconds", "Since the operator's heartbeat", told["heartbeat_s"])


def _recording(told: Mapping[str, Any]) -> Iterator[Family]:
    yield _gauge("recorder_recording", "1 while the session is recorded", told["state"] == "recording")
    yield _counter("recorder_bytes", "Bytes written to the log of the session", [], {"": told["bytes"]})
    yield _counter("recorder_records", "Records written, by kind", ["kind"], told["records"])
    lost = dict.fromkeys(told["records"], 0) | told["lost"]
    yield _counter("recorder_records_lost", "Records left out of the log, by kind", ["kind"], lost)
    yield _gauge("recorder_queue_used_bytes", "Bytes that wait to be written", told["waiting_bytes"])
    yield _gauge("recorder_queue_size_bytes", "Bytes that may wait to be written", QUEUE_BYTES)
    yield _gauge("recorder_disk_free_bytes", "Free space of the disk", told["free_bytes"])
    # no number where nothing is written yet: an alert on "less than" then stays silent, as it should
    if told["free_s"] is not None:
        yield _gauge("recorder_disk_left_seconds", "Time until the disk is full, at this rate", told["free_s"])


def _from_others(health: Mapping[str, Any]) -> Iterator[Family]:
    """What only some sessions have."""
    if (age_ms := health.get("sample_age_ms")) is not None:
        yield _gauge("sample_age_seconds", "Age of the newest sample that the loop has taken", age_ms / 1000.0)
    if watchdogs := health.get("watchdogs"):
        fine = {name: float(told["ok"]) for name, told in watchdogs.items()}
        yield _gauges("watchdog_ok", "1 where a watchdog finds all well", ["name"], fine)
    if (connections := health.get("security", {}).get("connections")) is not None:
        yield _gauge("connections", "Connections to the daemon's sockets over TCP", connections)
    if (refused := health.get("security", {}).get("refused")) is not None:
        refused = dict.fromkeys(_TURNED_AWAY, 0) | refused
        yield _counter("connections_refused", "Connections turned away, by reason", ["reason"], refused)


def _counter(name: str, text: str, labels: list[str], counts: Mapping[str, float]) -> CounterMetricFamily:
    """Return a counter; `counts` are by the value of its label, or of the one key "" where it has none."""
    family = CounterMetricFamily(f"neuromod_{name}", text, labels=labels)
    for value, count in counts.items():
        family.add_metric([value] if labels else [], count)
    return family


def _gauges(name: str, text: str, labels: list[str], values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"neuromod_{name}", text, labels=labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"neuromod_{name}", text, value=float(value))


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    counted = histogram.read()
    buckets = list(zip(_BOUND_NAMES, counted.counts.cumsum().tolist(), strict=True))
    return HistogramMetricFamily(f"neuromod_{name}", text, buckets=buckets, sum_value=counted.total_s)


class MetricsServer:
    """Answers GET /metrics on loopback. Bound when it is made; `run` serves, in a thread of its own.

    Parameters
    ----------
    config : MetricsConfig
        Where.

    Raises
    ------
    ConfigError
        Where the address cannot be bound.
    """

    def __init__(self, config: MetricsConfig) -> None:
        host, port = config.host_and_port
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise ConfigError(
                f"metrics.address: {config.address} cannot be bound: {error.strerror or error}; "
                "is another daemon running? Stop it, or choose another port (0 for a free one)"
            ) from None
        bound = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/metrics"

    def run(self, registry: prometheus_client.CollectorRegistry, stop: threading.Event) -> None:
        """Answer until `stop` is set."""
        self._server.registry = registry
        while not stop.is_set():
            self._server.handle_request()

    def close(self) -> None:
        """Free the port."""
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A thread a request, so few at once that nobody can take the daemon's descriptors."""

    daemon_threads = True
    timeout = _TURN_S
    request_queue_size = 16
    registry: prometheus_client.CollectorRegistry

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._served: list[Any] = []  # from the oldest
        self._changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # not HTTPServer's, which asks the name server for the name of the host
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:
            time.sleep(_TURN_S)  # without descriptors the same connection would be tried again without rest
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._changed:
            if len(self._served) == _MOST_CONNECTIONS:
                # the oldest makes way: a scrape takes milliseconds, a letter now and then may take for ever
                with contextlib.suppress(OSError):  # gone by itself
                    self._served[0].shutdown(socket.SHUT_RDWR)
                self._changed.wait(_TURN_S)
            has_place = len(self._served) < _MOST_CONNECTIONS
            if has_place:
                self._served.append(request)
        return has_place

    def shutdown_request(self, request: Any) -> None:
        with self._changed:  # before it is closed: its descriptor may be another's then
            if request in self._served:
                self._served.remove(request)
                self._changed.notify()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape failed", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _LONGEST_SILENCE_S
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in _PATHS:
            self.send_error(404, "the numbers are at /metrics")
            return
        try:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        except (TypeError, ValueError):  # prometheus-client stumbles over a version that is no number
            encode, content_type = choose_encoder("")
        body = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "neuromod"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
