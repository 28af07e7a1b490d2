"""What `neuromod certify` measures is measured by the real processes; how fast anything is, no test says."""

import copy
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from neuromod.bridge import certify, certify_measures, certify_report
from neuromod.bridge.certify_measures import Loopback, Measured, Pair, Point, Settings, _blocks_of, _judge_loopback
from neuromod.bridge.cli import app
from neuromod.bridge.cli_certify import _settings
from neuromod.bridge.wire import Flag
from neuromod.engine.errors import ConfigError

TICKS = [("sample", np.uint64), ("t_sample", np.float64), ("flags", np.uint32)]
HOST = {
    "name": "rig", "cpu": "a processor", "cores": 4, "kernel": "Linux 6", "governor": "performance", "python": "3.12",
    "liblsl": 116, "libzmq": "4.3.5", "versions": {"numpy": "2.0"}, "load_before": [0.1], "load_after": [0.2],
    "when": "2025-01-01T00:00:00+0000",
}  # fmt: skip


def runs(middle_us: float, n: int = 5, size: int = 1500) -> list[Any]:
    """Repetitions around a latency, which differ a little from each other."""
    random = np.random.default_rng(int(middle_us))
    return [middle_us * (1.0 + 0.01 * k) * random.uniform(0.9, 1.1, size) for k in range(n)]


def measured(tick_us: float = 20.0, end_us: float = 300.0, n: int = 5) -> Measured:
    point = Point(96, 1.0, runs(end_us, n), runs(40.0, n), Pair(runs(end_us + 60.0, n), runs(250.0, n)))
    zeromq, lsl, ticks, ended = (
        Pair(runs(ours, n), runs(bare, n))
        for ours, bare in ((80.0, 40.0), (120.0, 40.0), (tick_us, 12.0), (45.0, 12.0))
    )
    return Measured(Settings(), zeromq, lsl, ticks, ended, [point], None, "sleeping")


def report(**of: Any) -> dict[str, Any]:
    """A report, as it comes back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(certify.report(measured(**of), HOST, [])))
    return found


def verdicts(changed: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in changed["rows"]:
        found.setdefault(row["measure"], set()).add(row["verdict"])
    return found


# -- the rule


def point(**of: Any) -> dict[str, Any]:
    return {"tick_ms": 1.0, "ticks": 5000, "late": 0, "missing": 0, "ends": {"p999_us": 500.0}} | of


def test_a_rate_is_promised_where_no_tick_was_late_or_missing_and_a_tenth_of_the_period_is_free() -> None:
    assert certify.judge(point())["promised"]
    assert certify.judge(point(ends={"p999_us": 899.0}))["promised"]


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"late": 1}, "1 of 5,000 ticks ended after their period"),
        ({"missing": 2}, "2 blocks gave no tick"),
        ({"ends": {"p999_us": 950.0}}, "p99.9 leaves 5% of the period, less than 10%"),
        ({"tick_ms": 0.5}, "p99.9 leaves 0% of the period"),
        ({"ticks": 2999}, "only 2,999 ticks were measured, 3,000 are needed"),
    ],
)
def test_what_is_not_promised_says_why(of: dict[str, Any], why: str) -> None:
    judged = certify.judge(point(**of))

    assert not judged["promised"]
    assert why in judged["why"]


def test_a_promise_says_how_many_late_ticks_it_does_not_rule_out() -> None:
    judged = certify.judge(point(ticks=3000))

    # the least n with 0.999**n < 5%: were one tick of a thousand late, so many would hardly all have been in time
    assert judged["why"] == "none of 3,000 ticks late, so fewer than 1 in 1,002 at 95%; p99.9 leaves 50% of the period"


def test_so_few_times_have_no_percentile_beyond_which_none_of_them_lies() -> None:
    of_some, of_few = certify.series(runs(100.0, 1, 999)), certify.series(runs(100.0, 1, 99))

    assert of_some["p99_us"] is not None
    assert of_some["p999_us"] is None
    assert (of_few["p99_us"], of_few["p999_us"]) == (None, None)
    assert of_few["max_us"] > of_few["p50_us"]
    assert "p99.9 -, max" in certify_report.histogram(of_few, None, "a caption")


def test_late_ticks_are_counted_against_their_own_period() -> None:
    found = measured()
    found.points[0].ends[0][:3] = 1001.0

    (of_grid,) = certify.report(found, HOST, [])["grid"]

    assert (of_grid["late"], of_grid["late_share"]) == (3, 3 / 7500)
    assert not of_grid["promised"]


def test_a_promise_holds_for_fewer_channels_and_longer_ticks_too() -> None:
    found = report()

    assert certify.is_promised(found, 96, 1.0)
    assert certify.is_promised(found, 16, 5.0)
    assert not certify.is_promised(found, 384, 1.0)
    assert not certify.is_promised(found, 96, 0.5)


def test_a_point_that_was_measured_is_judged_by_itself() -> None:
    found = report()
    (of_grid,) = found["grid"]
    found["grid"].append(of_grid | {"channels": 16, "promised": False})

    assert not certify.is_promised(found, 16, 1.0)
    assert certify.is_promised(found, 32, 1.0)


def test_ticks_are_held_against_the_bare_loop_of_the_same_repetition() -> None:
    assert report(tick_us=20.0)["measures"]["ticks"]["target"]["met"]
    far = report(tick_us=40.0)["measures"]["ticks"]
    assert not far["target"]["met"]
    assert far["over_bare"]["p50_us"] == pytest.approx(28.0, abs=2.0)


# -- another day


def test_a_report_is_the_same_as_itself() -> None:
    changed = certify.compare(report(), report())

    assert set().union(*verdicts(changed).values()) == {"the same"}
    assert (changed["promises"], changed["host"]) == ([], [])


def test_a_change_beyond_the_spread_of_repetitions_is_told_and_nothing_else() -> None:
    changed = verdicts(certify.compare(report(tick_us=20.0), report(tick_us=30.0)))

    assert changed.pop("tick lateness") == {"slower"}
    assert set().union(*changed.values()) == {"the same"}
    assert verdicts(certify.compare(report(tick_us=30.0), report(tick_us=20.0)))["tick lateness"] == {"faster"}


def test_a_change_within_the_spread_of_repetitions_is_none() -> None:
    then, now = report(), report()
    for run, us in zip(then["measures"]["lsl"]["ours"]["runs"], (100.0, 150.0, 200.0, 210.0, 220.0), strict=True):
        run["p50_us"] = us
    for run, us in zip(now["measures"]["lsl"]["ours"]["runs"], (215.0, 260.0, 270.0, 290.0, 310.0), strict=True):
        run["p50_us"] = us

    assert verdicts(certify.compare(then, now))["LSL"] == {"the same"}


def test_too_few_repetitions_are_not_judged() -> None:
    changed = verdicts(certify.compare(report(n=4), report(tick_us=90.0)))

    assert changed["tick lateness"] == {"not judged: fewer than 5 repetitions"}


def test_a_lost_promise_and_another_kernel_are_told() -> None:
    then, now = report(), report(end_us=950.0)
    now["host"] = now["host"] | {"kernel": "Linux 7"}

    changed = certify.compare(then, now)

    (lost,) = changed["promises"]
    assert (lost["point"], lost["then"], lost["now"]) == ("96 channels, 1 ms", True, False)
    assert lost["ticks_moved"]
    assert changed["host"] == [{"fact": "kernel", "then": "Linux 6", "now": "Linux 7"}]


def test_a_promise_lost_by_one_late_tick_is_no_change_of_ticks() -> None:
    late = measured()
    late.points[0].ends[0][0] = 1001.0

    changed = certify.compare(report(), certify.report(late, HOST, []))

    assert [p["ticks_moved"] for p in changed["promises"]] == [False]
    assert "so it may be chance" in certify_report._promise_lines(changed)[0]


def test_the_newest_report_of_a_host_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "rig"
    assert certify.newest(folder) is None

    kept = certify.keep(report(), folder)
    (folder / "20200101-000000.json").write_text("{}")

    assert certify.newest(folder) == kept
    assert certify.load(kept) == report()
    assert certify.folder_of("a/../b").parent == certify.folder_of("rig").parent


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read"),
        ("no json", "is no JSON"),
        ("[]", "is no report of 'certify' .schema none, expected 1"),
        ('{"schema": 7}', "schema 7, expected 1"),
        ('{"schema": 1, "measures": {}}', "is no whole report"),
    ],
)
def test_a_file_that_is_no_report_is_told_in_a_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "then.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=sentence):
        certify.load(path)


@pytest.mark.parametrize("put", [None, [], {}, "x", [None], float("nan")])
def test_a_report_that_was_tampered_with_is_refused_or_compared(tmp_path: Path, put: Any) -> None:
    whole = report()
    for path in _paths(whole):
        broken = copy.deepcopy(whole)
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = put
        (tmp_path / "then.json").write_text(json.dumps(broken))
        try:
            then = certify.load(tmp_path / "then.json")
        except ConfigError:
            continue
        certify_report._print_changes(Console(file=io.StringIO()), certify.compare(then, whole))


def _paths(of: Any) -> Iterator[tuple[Any, ...]]:
    """Every place of a report that is compared, of lists only the beginning."""
    for key in of.keys() - {"histogram", "settings", "computed", "answers"} if isinstance(of, dict) else range(1):
        yield (key,)
        if of[key] and isinstance(of[key], (dict, list)):
            yield from ((key, *more) for more in _paths(of[key]))


# -- the measures


def test_ticks_are_laid_beside_pushes_by_counting_though_their_stamps_lie_on_a_grid() -> None:
    pushed = np.arange(100, dtype=np.float64) * 1e-3
    pushed[50:] += 0.02  # the sender was held up
    ticks = np.zeros(98, TICKS)
    ticks["sample"] = 30 * (1 + np.arange(98))
    ticks["t_sample"] = 2e-3 + 1e-3 * np.arange(98) + 40e-6  # the first two were not heard; the grid goes on evenly

    np.testing.assert_array_equal(_blocks_of(ticks, pushed, 30), 2 + np.arange(98))


@pytest.mark.parametrize("dropped", [60, 299, 301])
def test_ticks_are_laid_beside_the_right_pushes_after_samples_were_dropped(dropped: int) -> None:
    pushed = 5.0 + np.arange(200, dtype=np.float64) * 1e-4
    ticks = np.zeros(80, TICKS)
    ticks["sample"] = 3 * (1 + np.arange(len(ticks)))  # those that were dropped are not counted
    true = ticks["sample"].astype(np.int64)
    true[10:] += dropped
    ticks["t_sample"] = 5.0 + (true - 3) / 30e3 + 20e-6  # less than a sample of clock correction
    ticks["flags"][10] = Flag.DISCONTINUITY

    np.testing.assert_array_equal(_blocks_of(ticks, pushed, 3), (true - 1) // 3)


def test_each_pulse_is_laid_beside_its_first_answer_and_the_parts_of_its_way_add_up() -> None:
    sent = np.array([1.0, 1.05, 1.10])
    ticks = np.zeros(3, [("tick", np.uint64), ("t_arrival", np.float64)])
    ticks["tick"], ticks["t_arrival"] = [10, 60, 80], [1.0002, 1.0502, 1.08]
    heard = np.array([
        [1.0005, 1.0, 10, 1.0003], [1.0015, 1.0, 10, 1.0003],  # the second answer of the same pulse
        [1.0506, 1.0, 60, 1.0503],
        [1.0805, 1.0, 80, 1.0803],  # 30 ms after a pulse, so nobody's answer
    ])  # fmt: skip
    found = Loopback()

    _judge_loopback(found, sent, ticks, heard)

    assert (found.n_sent, found.n_answered, found.n_unasked) == (3, 2, 2)
    np.testing.assert_allclose(found.total[0], [500.0, 600.0], atol=0.01)
    np.testing.assert_allclose(sum(part[0] for part in found.parts.values()), found.total[0], atol=0.01)


# -- the page


def test_the_page_has_every_histogram_and_says_what_changed(tmp_path: Path) -> None:
    then, now = report(), report(tick_us=30.0)
    now["loopback"] = {
        "what": "a pulse", "total": certify.series(runs(500.0)), "sent": 9, "answered": 9, "unasked": 0,
        "parts": [{"name": "there <and> back"} | certify.series(runs(250.0))],
    }  # fmt: skip

    page = certify_report.write_html(tmp_path / "page.html", now, certify.compare(then, now)).read_text()

    assert page.count("<svg") == page.count("</svg>") == 4 + 3 + 2  # measures, a point of the grid, the way out
    for name in ("ZeroMQ", "LSL", "tick lateness", "96 channels, ticks of 1 ms", "there &lt;and&gt; back", "slower"):
        assert name in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # one file, whole in itself
    assert "NaN" not in page


@pytest.mark.parametrize("middle_us", [0.3, 1.0, 37.0, 3e6])
def test_a_histogram_can_be_drawn_of_anything(middle_us: float) -> None:
    drawn = certify_report.histogram(certify.series(runs(middle_us)), None, "a caption", limit_us=1000.0)

    assert "<title>a caption</title>" in drawn
    assert sum(certify.series(runs(middle_us))["histogram"]) == 7500
    assert all(0.0 <= float(x) <= 370.0 for x in re.findall(r' x1?="([^"]+)"', drawn))


# -- the command


def test_what_is_measured_unless_told_otherwise_may_be_asked_for() -> None:
    ticks_ms = Settings().ticks_ms

    assert _settings(False, None, ",".join(map(str, ticks_ms)), None, None, False).ticks_ms == ticks_ms


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--channels", "many"], "--channels is numbers from 1 to 4096"),
        (["--channels", "1.5"], "--channels are whole numbers"),
        (["--ticks", "5"], "--ticks is numbers from 0.1 to 1"),
        (["--ticks", "0.33"], "a whole number of samples at 30 kHz"),
        (["--require", "96"], "--require is channels@ms, such as 96@1"),
        (["--quick", "--require", "384@1"], "so many channels are not measured"),
        (["--quick", "--require", "96@0.5"], "so short a tick is not measured"),
        (["--compare", "/no/such.json"], "/no/such.json: cannot be read"),
        (["--html", "/no/such/page.html"], "there is no folder /no/such"),
        (["--html", "/"], "--html /: is a folder"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_before_anything_is_measured(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["certify", *arguments])

    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_what_was_measured_is_shown_though_nothing_can_be_compared_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "folder_of", lambda host: tmp_path)
    monkeypatch.setattr(certify_measures, "measure", lambda settings, step: measured())
    (tmp_path / "20200101-000000Z.json").write_text('{"schema": 0}')
    (tmp_path / "page.html.part").mkdir()

    result = CliRunner().invoke(app, ["certify", "--json", "--html", str(tmp_path / "page.html")])

    assert result.exit_code == 2
    assert json.loads(result.stdout)["changed"] is None
    assert "nothing to compare with" in result.stderr
    assert "cannot be written" in result.stderr
    newest = certify.newest(tmp_path)
    assert newest is not None
    assert certify.load(newest)["grid"]


def test_it_ends_in_order_when_it_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(settings: Settings, step: object) -> Measured:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # or pytest would end here
        signal.raise_signal(signal.SIGTERM)
        return measured()

    monkeypatch.setattr(certify_measures, "measure", terminate)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert CliRunner().invoke(app, ["certify", "--no-keep"]).exit_code == 130
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.compiled_loop
def test_the_real_thing_measures_compares_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "folder_of", lambda host: tmp_path / "kept")
    (tmp_path / "then.json").write_text(json.dumps(report()))
    arguments = ["--channels", "16", "--ticks", "1", "--rounds", "2", "--seconds", "0.6", "--loopback", "--json"]
    arguments += ["--html", str(tmp_path / "page.html"), "--compare", str(tmp_path / "then.json")]

    result = CliRunner().invoke(app, ["certify", *arguments])

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    changed = found.pop("changed")
    assert certify.load(next((tmp_path / "kept").glob("*.json"))) == found
    for measure in found["measures"].values():
        for series in (measure["ours"], measure["bare"]):
            assert len(series["runs"]) == 2
            assert sum(series["histogram"]) == series["n"] > 100
            assert 0.0 < series["p50_us"] <= series["p99_us"] <= series["max_us"]
    (of_grid,) = found["grid"]
    assert (of_grid["channels"], of_grid["tick_ms"]) == (16, 1.0)
    assert of_grid["ticks"] > 500
    assert 0.0 < of_grid["computed"]["p50_us"] < of_grid["ends"]["p50_us"] < of_grid["answers"]["ours"]["p50_us"]
    loopback = found["loopback"]
    assert 0 < loopback["answered"] <= loopback["sent"]
    assert loopback["total"]["p50_us"] > max(part["p50_us"] for part in loopback["parts"])
    assert verdicts(changed)["tick lateness"] == {"not judged: fewer than 5 repetitions"}
    assert (tmp_path / "page.html").read_text().count("<svg") == 4 + 3 + 1 + 3
