"""What is deployed to look at a daemon: every metric that board and rules name is one that a daemon tells."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ONE_PROGRAM, WAIT_S, Running, playback, session, wait_until
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from neuromod.bridge.metrics_config import MetricsConfig

FOLDER = Path(__file__).parent.parent / "deploy" / "observability"
BOARD, RULES = FOLDER / "dashboard.json", FOLDER / "alerts.yml"

NOT_OURS = {"up", "ALERTS", "process_max_fds", "process_open_fds", "process_cpu_seconds_total"}
"""Those of Prometheus itself, and those of a process that only some systems tell."""
WORDS = {"by", "on", "and", "or", "unless", "sum", "rate", "increase", "deriv", "abs", "changes", "label_values"} | {
    "histogram_quantile", "job", "instance", "le", "reason", "state",
}  # fmt: skip


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def rules() -> list[dict[str, Any]]:
    return [rule for group in read_yaml(RULES)["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Return every expression, by where it is."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    found |= {f"panel {p['title']}, {t['refId']}": t["expr"] for p in panels() for t in p["targets"]}
    board = json.loads(BOARD.read_text())
    found |= {f"variable {v['name']}": v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"}
    return found


def named(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)  # selectors and ranges
    return set(re.findall(r"(?<![\w$.])[a-zA-Z_]\w*", bare)) - WORDS


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names of all samples that a daemon tells which has everything, with their labels."""
    folder = tmp_path_factory.mktemp("session")
    np.save(folder / "f.npy", np.random.default_rng(0).uniform(0.0, 2.0, (20_000, 16)).astype(np.float32))
    config = session(
        'source = {kind = "lsl", name = "observed", content = "features"}\n[encoder]\nwarmup_s = 0.1\n'
        "[decoder]\nevents = [{channel = 0, refractory_ms = 20.0}]\n[timing]\nlate_ms = 60000\nstall_ms = 60000\n"
        f"[record]\nraw = true\nfolder = '{folder}'\n[stimulation]\nmode = 'dry_run'\nheartbeat_ms = 60000\n"
        + ONE_PROGRAM
        + '[metrics]\naddress = "127.0.0.1:0"\n'
    )
    found: dict[str, set[str]] = {}

    def scrape(running: Running) -> dict[str, set[str]]:
        assert running.daemon.metrics is not None
        with urllib.request.urlopen(running.daemon.metrics.url, timeout=WAIT_S) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
        return found

    source = {"kind": "features", "path": str(folder / "f.npy"), "bin_ms": 1.0}
    with playback(source=source, name="observed"), Running(config) as running:
        running.records.wait_for(300)
        running.client.arm(30.0)
        # the rate of writing is known after the recorder's first look at the disk
        wait_until(lambda: "neuromod_recorder_disk_left_seconds" in scrape(running), "the rate of writing")
        running.client.request("disarm")
    return found


@pytest.mark.compiled_loop
def test_every_metric_in_board_and_rules_is_told_by_a_daemon(told: dict[str, set[str]]) -> None:
    for where, expression in expressions().items():
        assert named(expression), where
        assert named(expression) - NOT_OURS <= told.keys(), where


@pytest.mark.compiled_loop
def test_every_label_in_a_legend_or_a_sentence_is_one_of_its_metrics(told: dict[str, set[str]]) -> None:
    texts = {f"panel {p['title']}": (t["expr"], t["legendFormat"]) for p in panels() for t in p["targets"]}
    for rule in rules():
        texts[f"alert {rule['alert']}"] = (rule["expr"], " ".join(rule["annotations"].values()))
    for where, (expression, text) in texts.items():
        known = {"job", "instance", *(label for name in named(expression) for label in told.get(name, ()))}
        used = set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", text))
        assert used <= known, where


@pytest.mark.compiled_loop
def test_what_a_daemon_tells_is_on_the_board_as_far_as_one_looks_at_it(told: dict[str, set[str]]) -> None:
    shown = {name for expression in expressions().values() for name in named(expression)}
    for name in ("ticks_total", "spikes_total", "firing_rate_hertz", "modulator_level", "refusals_total", "state"):
        assert f"neuromod_{name}" in shown & told.keys()


def test_brackets_and_quotes_are_balanced() -> None:
    for where, expression in expressions().items():
        waiting = []
        for letter in re.sub(r'"[^"]*"', "", expression):
            if letter in "([{":
                waiting.append(letter)
            elif letter in ")]}":
                assert waiting, where
                assert "([{".index(waiting.pop()) == ")]}".index(letter), where
        assert not waiting, where
        assert expression.count('"') % 2 == 0, where


def test_every_alert_says_how_grave_it_is_what_happened_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["alert"].startswith("Neuromod")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels.instance" in rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]


def test_every_alert_is_made_to_fire_on_made_up_series() -> None:
    fired = set(re.findall(r'alertname="(\w+)"', (FOLDER / "alerts_test.yml").read_text()))
    assert fired == {rule["alert"] for rule in rules()}


def test_what_is_now_is_not_what_was_last_heard() -> None:
    # else a daemon that has ended goes on to be streaming, and armed
    for panel in panels():
        if panel["type"] == "stat":
            assert [target["instant"] for target in panel["targets"]] == [True], panel["title"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    board = json.loads(BOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells


def test_the_scrape_example_reads_the_rules_and_the_address_of_the_default() -> None:
    config = read_yaml(FOLDER / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert config["rule_files"] == [RULES.name]
    assert job["static_configs"][0]["targets"] == [MetricsConfig().address]
    used = {name for text in expressions().values() for name in re.findall(r'job="(\w+)"', text)}
    assert used == {job["job_name"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not on the PATH")
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_prometheus_itself_takes_them(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.compiled_loop
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not on the PATH")
def test_prometheus_itself_finds_no_fault_with_a_scrape() -> None:
    with Running(session('source = "zmq"\n[metrics]\naddress = "127.0.0.1:0"\n')) as running:
        assert running.daemon.metrics is not None
        with urllib.request.urlopen(running.daemon.metrics.url, timeout=WAIT_S) as answer:
            text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
