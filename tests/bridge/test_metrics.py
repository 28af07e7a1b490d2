"""Metrics: what Prometheus reads of a running daemon, through real HTTP; and that reading it costs the loop nothing."""

import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MEMORY, ONE_PROGRAM, WAIT_S, GatedSource, Running, session, wait_until
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from neuromod.bridge import metrics as module
from neuromod.bridge.config import parse
from neuromod.bridge.histograms import BOUNDS_S, Histogram
from neuromod.bridge.metrics_config import MetricsConfig
from neuromod.engine.errors import ConfigError

METRICS = '[metrics]\naddress = "127.0.0.1:0"\n'
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def fetch(running: Running, accept: str = "text/plain", path: str = "") -> tuple[str, str]:
    """Return the text of a scrape, and its content type."""
    assert running.daemon.metrics is not None
    request = urllib.request.Request(running.daemon.metrics.url + path, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


class Scrape:
    """One reading of everything, by name of sample and labels."""

    def __init__(self, running: Running) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(fetch(running)[0]))
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, /, **labels: str) -> float:
        return self.samples[f"neuromod_{name}", tuple(sorted(labels.items()))]

    def of(self, name: str) -> dict[str, float]:
        """Return what a metric of one label says, by the value of the label."""
        return {labels[0][1]: value for (found, labels), value in self.samples.items() if found == f"neuromod_{name}"}

    def has(self, name: str) -> bool:
        return any(found == f"neuromod_{name}" for found, _ in self.samples)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon with all that metrics tell of: timed samples, a record, electrodes; it has made its 500 ticks."""
    folder = tmp_path_factory.mktemp("record")
    source = GatedSource(np.full((500, 16), 1.5, np.float32), 1000.0, kind="features")
    config = session(
        MEMORY
        + "[decoder]\nevents = [{channel = 0, refractory_ms = 20.0}]\n"
        + f"[record]\nfolder = '{folder}'\n[stimulation]\nmode = 'dry_run'\nheartbeat_ms = 0\n"
        + ONE_PROGRAM
        + METRICS
    )
    with Running(config, source=source) as running:
        listener = running.listen("spikes")
        source.let_go()
        listener.spikes(500)
        wait_until(lambda: running.daemon.collector.last_tick == 499, "the last tick")
        yield running


# -- what is told


@pytest.mark.compiled_loop
def test_a_scrape_tells_what_health_tells(watched: Running) -> None:
    scrape, health = Scrape(watched), watched.health

    assert scrape("ticks_total") == scrape("samples_total") == health["counters"]["ticks"] == 500
    assert scrape("samples_lost_total") == scrape("samples_filled_total") == scrape("send_errors_total") == 0
    assert scrape("late_ticks_total") == health["counters"]["late_ticks"]
    assert sum(scrape.of("spikes_total").values()) == health["counters"]["spikes"] > 0
    assert list(scrape.of("spikes_total").values()) == watched.daemon.collector.spike_counts.tolist()
    assert sum(scrape.of("state").values()) == 1
    assert set(scrape.of("state")) == set(module.STATES)
    assert scrape("last_tick") == 499
    assert scrape("clock_offset_seconds") == health["source"]["clock_offset_s"]
    assert scrape("recorder_recording") == 1
    assert scrape("recorder_disk_free_bytes") > 0
    assert scrape.of("modulator_level") == pytest.approx(watched.daemon.collector.modulator_levels())
    assert len(scrape.of("firing_rate_hertz")) == 16
    assert scrape("session_info", name="session", source="memory", kind="lsl", content="features") == 1
    assert scrape.has("build_info")
    assert "process_resident_memory_bytes" in {family.name for family in scrape.families}


@pytest.mark.compiled_loop
def test_every_tick_is_in_the_histograms_with_the_time_that_it_took(watched: Running) -> None:
    scrape, records = Scrape(watched), watched.records.live()

    for name, since in (("tick_latency", "t_sample"), ("tick_compute", "t_arrival")):
        times = records["t_tick"] - records[since]
        assert scrape(f"{name}_seconds_count") == 500
        assert scrape(f"{name}_seconds_sum") == pytest.approx(np.maximum(times, 0.0).sum())
        for bound in BOUNDS_S:
            assert scrape(f"{name}_seconds_bucket", le=f"{bound:g}") == (times <= bound).sum()
        assert scrape(f"{name}_seconds_bucket", le="+Inf") == 500


@pytest.mark.compiled_loop
def test_inputs_and_refusals_are_counted(watched: Running) -> None:
    before = Scrape(watched)

    watched.client.send_event("cue")
    assert watched.client._push is not None
    watched.client._push.send_multipart([b"no_such_topic", b"payload"])
    wait_until(lambda: watched.health["errors"], "a refusal")
    after = Scrape(watched)

    assert after("ingest_messages_total") == before("ingest_messages_total") + 2
    assert set(before.of("refusals_total").values()) == {0.0}  # there from the start, so that the first one is a step
    assert {reason: n for reason, n in after.of("refusals_total").items() if n} == watched.health["errors"]
    assert after("refusals_total", reason="topic") == 1


@pytest.mark.compiled_loop
def test_the_gate_is_told_of(watched: Running) -> None:
    told = watched.health["stimulation"]
    scrape = Scrape(watched)

    assert scrape("stimulation_armed") == scrape("stimulation_arming_left_seconds") == 0
    assert scrape("stimulation_dose_coulombs") == 0
    refused = {f"refused_{outcome}": n for outcome, n in scrape.of("stimulation_decisions_total").items() if n}
    assert refused == {name: n for name, n in told["counts"].items() if name.startswith("refused_")}
    assert refused.keys() == {"refused_not_armed"}


@pytest.mark.compiled_loop
def test_an_arming_is_told_of_with_what_is_left_of_it() -> None:
    source = GatedSource(np.full((60_000, 16), 0.1, np.float32), 1000.0, kind="features")
    gate = "[timing]\nlate_ms = 60000.0\nstall_ms = 60000.0\n[stimulation]\nmode = 'dry_run'\nheartbeat_ms = 0\n"
    with Running(
        session(MEMORY + gate + ONE_PROGRAM.split("[[stimulation.tri")[0] + METRICS), source=source
    ) as running:
        listener = running.listen("spikes")
        source.let_go()
        listener.spikes(10)
        running.client.arm(30.0)
        scrape = Scrape(running)

    assert scrape("stimulation_armed") == scrape("stimulation_arms_total") == 1
    assert 0 < scrape("stimulation_arming_left_seconds") <= 30.0


@pytest.mark.compiled_loop
def test_rings_are_told_by_name_with_what_they_hold(watched: Running) -> None:
    scrape, rings = Scrape(watched), watched.daemon.rings

    assert set(scrape.of("ring_used_records")) == set(scrape.of("ring_size_records")) == set(rings._fields)
    assert scrape("ring_size_records", ring="ticks") == len(rings.ticks.rows)
    assert scrape("ring_size_records", ring="samples") == len(rings.samples.stamps)
    assert all(used <= scrape("ring_size_records", ring=name) for name, used in scrape.of("ring_used_records").items())
    assert {"ticks", "decisions", "echoes", "frames", "out"} < set(scrape.of("ring_overflows_total"))


@pytest.mark.compiled_loop
def test_what_other_parts_put_into_health_is_told_too(watched: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    collector, health = watched.daemon.collector, watched.daemon.collector.health

    def with_more() -> dict[str, Any]:
        body = health()
        body["counters"]["something_new"] = 3
        return body | {
            "watchdogs": {"collector": {"ok": True, "says": ""}, "disk": {"ok": False, "says": "slow"}},
            "security": {"refused": {"unknown_key": 7}},
            "sample_age_ms": 2.5,
            "restarts": 2,
        }

    monkeypatch.setattr(collector, "health", with_more)
    scrape = Scrape(watched)

    assert scrape("something_new_total") == 3
    assert scrape.of("watchdog_ok") == {"collector": 1, "disk": 0}
    assert scrape("connections_refused_total", reason="unknown_key") == 7
    assert scrape("sample_age_seconds") == 0.0025
    assert scrape("restarts_total") == 2


@pytest.mark.compiled_loop
def test_a_blind_session_hides_from_prometheus_what_it_hides_from_the_operator(tmp_path: Path) -> None:
    key = tmp_path / "arming.key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    config = f"[stimulation]\nmode = 'sham'\nblind = true\nheartbeat_ms = 0\nkey_file = '{key}'\n" + ONE_PROGRAM
    config = config.split("[[stimulation.tri")[0]
    with Running(session('source = "zmq"\n' + f"[record]\nfolder = '{tmp_path}'\n" + config + METRICS)) as running:
        scrape = Scrape(running)

    assert scrape("stimulation_armed") == 0
    assert not scrape.has("stimulation_dose_coulombs")
    assert not scrape.has("stimulation_delivered_total")


# -- how it is told


@pytest.mark.compiled_loop
def test_names_follow_the_conventions_of_prometheus(watched: Running) -> None:
    families = [family for family in Scrape(watched).families if not family.name.startswith(("process_", "python_"))]

    for family in families:
        assert re.fullmatch(r"neuromod(_[a-z][a-z0-9]*)+", family.name), family.name
        assert re.fullmatch(r".+[^.]", family.documentation), family.name
        # base units only, in full, and last
        words = family.name.split("_")
        assert not {"ms", "us", "ns", "s", "hz", "nc", "mb", "kb", "percent", "milliseconds"} & set(words), family.name
        for unit in ("seconds", "bytes", "hertz", "coulombs"):
            assert unit not in words[:-1], family.name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert all(re.fullmatch("[a-z]+", label) for label in sample.labels), sample.labels
    assert len({family.name for family in families}) == len(families)


@pytest.mark.compiled_loop
def test_both_formats_of_prometheus_are_spoken(watched: Running) -> None:
    text, kind = fetch(watched)
    assert kind.startswith("text/plain")

    opened, kind = fetch(watched, accept=OPEN_METRICS)
    assert kind.startswith("application/openmetrics-text")
    read: Any = openmetrics.text_string_to_metric_families  # without types, as it comes
    names = {family.name for family in read(opened)}
    assert names >= {"neuromod_ticks", "neuromod_tick_latency_seconds", "neuromod_build"}
    assert {family.name for family in text_string_to_metric_families(text)} >= {"neuromod_ticks"}


@pytest.mark.compiled_loop
def test_other_paths_and_methods_are_refused(watched: Running) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(watched, path="/secrets")
    assert watched.daemon.metrics is not None
    request = urllib.request.Request(watched.daemon.metrics.url, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=WAIT_S)


@pytest.mark.compiled_loop
def test_connections_that_come_to_no_end_do_not_shut_prometheus_out(
    watched: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", None)  # as if each sent a letter now and then
    assert watched.daemon.metrics is not None
    port = int(watched.daemon.metrics.url.rpartition(":")[2].split("/")[0])
    endless = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]

    def scraped() -> bool:
        try:
            return "neuromod_ticks_total" in fetch(watched)[0]
        except OSError:
            return False

    wait_until(scraped, "a scrape beside endless connections")
    for one in endless:
        one.close()


# -- beside the loop, and beside other daemons


@pytest.mark.compiled_loop
def test_scraping_without_rest_loses_nothing_at_a_thousand_ticks_a_second() -> None:
    source = GatedSource(np.random.default_rng(0).uniform(0, 2, (1500, 16)), 1000.0, kind="features")
    done, scrapes = threading.Event(), [0]
    with Running(session(MEMORY + METRICS), source=source) as running:
        listener = running.listen("spikes")

        def scrape_on() -> None:
            while not done.is_set():
                fetch(running)
                scrapes[0] += 1

        scraper = threading.Thread(target=scrape_on)
        scraper.start()
        source.let_go()
        messages = listener.spikes(1500)
        done.set()
        scraper.join()
        health = running.wait_for_health(lambda h: h["counters"]["ticks"] == 1500, "the last tick")

    assert scrapes[0] > 3
    assert [m.tick for m in messages] == list(range(1500))
    assert not any(n for name, n in health["counters"].items() if name.endswith("overflow") or "lost" in name)
    assert health["counters"]["send_errors"] == 0


@pytest.mark.compiled_loop
def test_two_daemons_in_one_process_tell_of_themselves() -> None:
    stimuli = np.ones(16, np.float32)
    with Running(session('source = "zmq"\n' + METRICS)) as one, Running(session('source = "zmq"\n' + METRICS)) as two:
        for _ in range(3):
            one.client.send_stimuli(stimuli)
        one.wait_for_ticks(3)

        assert (Scrape(one)("ticks_total"), Scrape(two)("ticks_total")) == (3, 0)


@pytest.mark.compiled_loop
def test_a_daemon_that_has_ended_leaves_its_port_free() -> None:
    config = session('source = "zmq"\n' + METRICS)
    with Running(config) as running:
        assert running.daemon.metrics is not None
        port = int(running.daemon.metrics.url.rpartition(":")[2].split("/")[0])
    module.MetricsServer(MetricsConfig(address=f"127.0.0.1:{port}")).close()


def test_a_port_in_use_is_said_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"metrics.address: 127.0.0.1:{port} cannot be bound: .* another port"):
            module.MetricsServer(MetricsConfig(address=f"127.0.0.1:{port}"))


# -- where


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("0.0.0.0:9464", "away from loopback.*ssh -L"),
        ("192.168.1.4:9464", "away from loopback.*ssh -L"),
        ("example.org:9464", "away from loopback"),
        ("[::]:9464", "away from loopback"),
        ("127.0.0.1", "looks like 127.0.0.1:9464"),
        ("http://127.0.0.1:9464", "looks like"),
        ("127.0.0.1:70000", "ports end at 65535"),
        ("", "looks like"),
    ],
)
def test_only_loopback_may_be_bound(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"metrics.address: .*{says}"):
        parse(f'source = "zmq"\n[metrics]\naddress = "{address}"\n')


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:0", ("::1", 0)),
        ("127.3.2.1:99", ("127.3.2.1", 99)),
    ],
)
def test_addresses_that_may_be(address: str, bound: tuple[str, int]) -> None:
    assert MetricsConfig(address=address).host_and_port == bound


def test_a_session_serves_no_metrics_unless_it_says_so() -> None:
    assert parse('source = "zmq"\n').metrics is None
    written = parse('source = "zmq"\n[metrics]\n').effective_toml()
    assert '[metrics]\naddress = "127.0.0.1:9464"' in written


# -- histograms


def test_a_time_counts_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1.0, 0.0, 1e-6, 1.01e-6, 1.0, 1.01, 50.0]))

    counts, total_s = histogram.read()
    assert counts[[0, 1, -2, -1]].tolist() == [3, 1, 1, 2]
    assert counts.sum() == 7
    assert total_s == pytest.approx(52.01, rel=1e-4)


def test_what_was_read_does_not_change_afterwards() -> None:
    histogram = Histogram()
    before = histogram.read()
    histogram.add(np.full(100, 1e-3))
    assert (before.counts.sum(), before.total_s) == (0, 0.0)
    assert histogram.read().counts.sum() == 100


def test_bounds_are_spaced_evenly_on_a_logarithmic_scale_from_a_microsecond_to_a_second() -> None:
    assert BOUNDS_S[0] == 1e-6
    assert BOUNDS_S[-1] == 1.0
    steps = BOUNDS_S[1:] / BOUNDS_S[:-1]
    assert steps.min() > 1.3
    assert steps.max() < 1.7
