"""What the doctor promises: it looks at everything, raises nothing, and says how to mend what is not well."""

import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from neuromod.bridge import doctor, wire
from neuromod.bridge.cli import app
from neuromod.bridge.doctor import Finding


def test_every_finding_that_is_not_well_says_how_to_mend_it() -> None:
    findings = list(doctor.diagnose(multicast=False))

    assert len({finding.name for finding in findings}) == len(findings) >= 8
    for finding in findings:
        assert finding.found
        assert finding.status == "ok" or finding.mend, finding
        assert not finding.found.startswith("could not be looked at"), finding


def test_an_outlet_of_our_own_comes_back() -> None:
    finding = doctor.check_lsl_round_trip()

    if finding.status != "ok":
        pytest.skip(f"this host has no LSL multicast: {finding.found}")
    assert "first sample" in finding.found


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_disk() -> Finding:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, "check_disk", check_disk)

    findings = {finding.name: finding for finding in doctor.diagnose(multicast=False)}

    assert findings["disk"].status == "warn"
    assert "on fire" in findings["disk"].found
    assert "ports" in findings


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(wire, "DEFAULT_OUTPUT", f"tcp://127.0.0.1:{port}")

        finding = doctor.check_ports()

    assert finding.status == "warn"
    assert str(port) in finding.found


@pytest.mark.parametrize(("p99_us", "status"), [(80.0, "ok"), (5000.0, "warn")])
def test_a_timer_that_misses_whole_ticks_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, p99_us: float, status: str
) -> None:
    monkeypatch.setattr(doctor, "timer_lateness_us", lambda: sorted([30.0] * 98 + [p99_us] * 2))

    assert doctor.check_timer().status == status


def test_a_library_that_is_missing_stops_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "no-such-library-at-all"))

    finding = doctor.check_libraries()

    assert finding.status == "fail"
    assert "no-such-library-at-all" in finding.found


def test_timer_lateness_is_measured_in_microseconds() -> None:
    lateness = doctor.timer_lateness_us(20)

    assert lateness == sorted(lateness)
    assert len(lateness) == 20
    assert lateness[0] > -1000.0  # a sleep that ended before it began would be below


@pytest.mark.parametrize(("statuses", "worst"), [(["ok"], "ok"), (["ok", "warn"], "warn"), (["fail", "warn"], "fail")])
def test_the_verdict_is_the_worst_finding(statuses: list[Any], worst: str) -> None:
    assert doctor.worst([Finding("x", status, "y", "z") for status in statuses]) == worst


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_command_prints_json_and_fails_only_for_what_stops_sessions(
    monkeypatch: pytest.MonkeyPatch, status: Any, code: int
) -> None:
    found: Callable[[bool], list[Finding]] = lambda multicast: [Finding("x", status, "y", "z")]  # noqa: E731
    monkeypatch.setattr(doctor, "diagnose", found)

    result = CliRunner().invoke(app, ["doctor", "--json"])

    assert result.exit_code == code
    assert json.loads(result.stdout) == {
        "status": status,
        "findings": [{"name": "x", "status": status, "found": "y", "mend": "z"}],
    }
    assert CliRunner().invoke(app, ["doctor"]).exit_code == code


def test_the_default_ports_are_those_of_the_protocol() -> None:
    ports = [urlsplit(address).port for address in (wire.DEFAULT_INGEST, wire.DEFAULT_OUTPUT, wire.DEFAULT_CONTROL)]

    assert ports == [5555, 5556, 5557]
