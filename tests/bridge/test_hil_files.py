"""What a run leaves: the report for people, programs and CI; golden traces; exit codes."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hil_devices import SESSION, ChangedTwin, flip, of, of_a_board, recording
from typer.testing import CliRunner

from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.cli import app
from neuromod.bridge.hil import Options
from neuromod.bridge.hil_command import Wanted, hil_command
from neuromod.bridge.hil_config import Criteria, criteria_toml
from neuromod.bridge.hil_evidence import hash_path
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError

runner = CliRunner()


def written(folder: Path, device: Any, criteria: Criteria | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
    """Run, write the report into `folder`/report, and return the exit code and report.json."""
    config, path = recording(folder)
    wanted = Wanted(path, report=folder / "report", golden=options.pop("golden", None))
    code = hil_command(config, of(device), criteria or Criteria(), Options(**options), wanted)
    return code, json.loads((folder / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run that passed, and its report.json."""
    folder = tmp_path_factory.mktemp("passed")
    code, body = written(folder, TwinDevice())
    return folder, body | {"code": code}


def test_report_json_says_what_was_run_on_what_and_what_came_of_it(passed: tuple[Path, dict[str, Any]]) -> None:
    folder, body = passed
    assert (body["code"], body["verdict"], body["ticks"]["answered"]) == (0, "passed", 3000)
    assert {"neuromod", "python", "numba", "serial_protocol", "registers"} <= set(body["versions"])
    assert body["hashes"]["recording"] == hash_path(folder / "stimuli0.npy")
    assert all(re.fullmatch(r"[0-9a-f]{64}", body["hashes"][name]) for name in ("configuration", "images"))
    assert body["device"]["name"] == TwinDevice().name
    assert {row["key"] for row in body["criteria"]} >= {"spike_mismatches_max", "state_mismatches_max", "ticks_min"}
    assert body["first_divergence"] is None


def test_the_report_says_that_a_session_of_a_board_was_played_without_it(
    tmp_path: Path, passed: tuple[Path, dict[str, Any]]
) -> None:
    config, path = recording(tmp_path)
    wanted = Wanted(path, report=tmp_path / "report")
    assert hil_command(of_a_board(config), of(TwinDevice()), Criteria(), Options(), wanted) == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())["left_out"] == ["offload"]
    words = "without [offload] of the session"
    assert words in (tmp_path / "report" / "report.html").read_text()
    assert (passed[1]["left_out"], words in (passed[0] / "report" / "report.html").read_text()) == ([], False)


def test_a_failed_run_names_the_divergence_in_all_three_files(tmp_path: Path) -> None:
    code, body = written(tmp_path, ChangedTwin(flip("weights", (2, 7), 25, 1500)), bisect=True)
    assert code == 1
    assert body["first_divergence"]["tick"] >= 1500
    assert body["bisection"]["words"][0]["register"] == "weights"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "FAILED" in page
    assert "weights[2][7]" in page
    suite = ElementTree.parse(tmp_path / "report" / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    failures = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert "membrane mismatches" in failures


def test_junit_has_the_usual_shape(passed: tuple[Path, dict[str, Any]]) -> None:
    folder, body = passed
    root = ElementTree.parse(folder / "report" / "junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "-1")) == len(cases) == len(body["criteria"])
    assert int(suite.get("failures", "-1")) == len(suite.findall("testcase/failure")) == 0
    assert int(suite.get("skipped", "-1")) == len(suite.findall("testcase/skipped")) > 0
    assert [child.tag for child in suite] == ["properties"] + ["testcase"] * len(cases)
    for case in cases:
        assert {"name", "classname", "time"} <= set(case.keys())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))


def test_the_page_stands_by_itself(passed: tuple[Path, dict[str, Any]]) -> None:
    page = (passed[0] / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("data:image", "")
    assert "No weight moved" not in page


def test_without_matplotlib_the_page_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _ = written(tmp_path, ChangedTwin(flip("weights", (2, 7), 25, 1500)))
    page = (tmp_path / "report" / "report.html").read_text()
    assert code == 1
    assert "neuromod-bridge[plots]" in page
    assert "data:image" not in page
    assert "The ticks around it" in page


def test_an_earlier_report_is_never_taken_for_that_of_a_run_that_fell_over(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    for name in ("report.json", "report.html", "junit.xml"):
        (tmp_path / "report" / name).write_text("of an earlier run")

    class Broken(TwinDevice):
        def open(self) -> None:
            raise ConfigError("it is not there")

    with pytest.raises(ConfigError, match="not there"):
        written(tmp_path, Broken())
    assert list((tmp_path / "report").iterdir()) == []


def test_drives_past_the_range_are_told_on_the_terminal_the_page_and_to_programs_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], passed: tuple[Path, dict[str, Any]]
) -> None:
    config, path = recording(tmp_path)
    neurons = {"3": {"gain": 100.0}, "9": {"gain": -60.0}}
    config = config.model_copy(update={"network": NetworkConfig.model_validate({"channels": neurons})})
    assert hil_command(config, of(TwinDevice()), Criteria(), Options(), Wanted(path, report=tmp_path / "report")) == 0
    body = json.loads((tmp_path / "report" / "report.json").read_text())
    found = body["saturated_drives"]
    assert found["looked_at"] == 3000
    assert [i for i, n in enumerate(found["by_channel"]) if n] == [3, 9]
    assert max(found["by_channel"]) <= found["ticks"] == round(3000 * found["share"])
    share = found["by_channel"][3] / 3000
    said = f"stimulus or drive goes past +-128 mV on channel 3 in {share:.2%}, channel 9 in "
    for text in (capsys.readouterr().out, (tmp_path / "report" / "report.html").read_text()):
        words = " ".join(text.split())
        assert said in words
        assert "Lower gain and all that is in mV" in words

    folder, clean = passed
    assert (clean["saturated_drives"]["ticks"], clean["saturated_drives"]["looked_at"]) == (0, 3000)
    assert "drive goes past" not in (folder / "report" / "report.html").read_text()


# -- golden traces ----------------------------------------------------------------------------------------------------


def kept(
    capsys: pytest.CaptureFixture[str], folder: Path, device: Any, criteria: Criteria | None = None, *, golden: Path
) -> tuple[int, dict[str, Any]]:
    """Run with a golden trace and no report; return the exit code and what is printed for programs."""
    config, path = recording(folder)
    code = hil_command(config, of(device), criteria or Criteria(), Options(), Wanted(path, golden=golden, json=True))
    return code, json.loads(capsys.readouterr().out)


def test_a_golden_trace_is_kept_then_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = tmp_path / "golden.npz"
    code, body = kept(capsys, tmp_path, TwinDevice(), golden=golden)
    assert (code, body["golden"]["is_written"]) == (0, True)
    with np.load(golden) as file:
        assert file["spikes"].shape == (3000,)
        assert file["v"].shape == (3000, 16)
        assert json.loads(str(file["meta"]))["versions"]["neuromod"]
    before = golden.read_bytes()
    code, body = kept(capsys, tmp_path, TwinDevice(), golden=golden)
    assert (code, body["golden"]["is_equal"]) == (0, True)
    assert golden.read_bytes() == before


def test_a_device_that_differs_from_the_golden_trace_fails_though_every_limit_allows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = tmp_path / "golden.npz"
    kept(capsys, tmp_path, TwinDevice(), golden=golden)
    lax = Criteria(spike_mismatches_max=9999, membrane_mismatches_max=9999, state_mismatches_max=99999)
    code, body = kept(capsys, tmp_path, ChangedTwin(flip("v", (3,), 0, 2000)), lax, golden=golden)
    row = next(row for row in body["criteria"] if row["key"] == "golden")
    assert (code, row["status"]) == (1, "failed")
    assert "first at tick 1999, by its membranes" in row["why"]


def test_a_failed_run_leaves_no_golden_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = tmp_path / "golden.npz"
    code, body = kept(capsys, tmp_path, ChangedTwin(flip("weights", (2, 7), 25, 1500)), golden=golden)
    assert (code, body["golden"]["is_written"]) == (1, False)
    assert not golden.exists()


def test_a_golden_trace_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = tmp_path / "golden.npz"
    kept(capsys, tmp_path, TwinDevice(), golden=golden)
    (tmp_path / "other").mkdir()
    config, path = recording(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="of another recording"):
        hil_command(config, of(TwinDevice()), Criteria(), Options(), Wanted(path, golden=golden))
    golden.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="no golden trace"):
        hil_command(config, of(TwinDevice()), Criteria(), Options(), Wanted(path, golden=golden))


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return a recording and a session for the command line."""
    _, path = recording(tmp_path)
    (tmp_path / "session.toml").write_text(SESSION)
    return [str(path), "--bin-ms", "1", "-c", str(tmp_path / "session.toml")]


def test_the_command_passes_and_prints_json(files: list[str]) -> None:
    result = runner.invoke(app, ["hil", *files, "--device", "twin", "--json", "--until-tick", "1200"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ticks"]["answered"] == 1200


def test_the_command_fails_with_1_and_says_what(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "criteria.toml").write_text("ticks_min = 5000\n")
    result = runner.invoke(app, ["hil", *files, "-d", "twin", "--criteria", str(tmp_path / "criteria.toml")])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "ticks answered" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to replay"),
        (["--device", "twin", "--speed", "fast"], "--speed is a positive multiple"),
        (["--device", "twin", "--criteria", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--device", "/dev/no-such-port"], "no-such-port"),
        (["--device", "twin", "--fault", "reset:tick=3"], "--fault goes with --device sim"),
    ],
)
def test_what_cannot_run_gets_a_sentence_and_exit_code_2(files: list[str], arguments: list[str], said: str) -> None:
    result = runner.invoke(app, ["hil", *files, *arguments])
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_a_raw_file_is_asked_for_what_it_lacks_with_advice_that_works_for_hil(tmp_path: Path) -> None:
    path, session = tmp_path / "raw.dat", tmp_path / "replay.toml"
    np.random.default_rng(0).normal(0.0, 50.0, (60_000, 16)).astype(np.int16).tofile(path)
    command = ["hil", str(path), "--device", "twin"]
    result = runner.invoke(app, command)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "add sampling_frequency_hz, n_channels, dtype to its configuration" in said
    assert "`neuromod init replay.toml --source recording`" in said
    assert "give your command that file, as in `-c replay.toml`" in said

    runner.invoke(app, ["init", str(session), "--source", "recording"])
    declared = f'path = "{path}"\nsampling_frequency_hz = 30000\nn_channels = 16\ndtype = "int16"'
    session.write_text(re.sub(r"(?m)^path = .*$", lambda _: declared, session.read_text()))
    result = runner.invoke(app, [*command, "-c", str(session), "--json"])
    assert json.loads(result.stdout)["ticks"]["answered"] == 2000, result.stderr


def test_the_criteria_are_printed_without_a_recording() -> None:
    result = runner.invoke(app, ["hil", "--print-criteria"])
    assert (result.exit_code, result.stdout) == (0, criteria_toml())
