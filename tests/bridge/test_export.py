"""`neuromod export`: folders of images and Verilog, from session files and checkpoints, and back."""

import ctypes
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from neuromod.adapters.config import ZmqConfig
from neuromod.adapters.fpga import wire
from neuromod.bridge import checkpoint, export
from neuromod.bridge.assembly import Assembly, assemble, stimuli_stream
from neuromod.bridge.cli import app
from neuromod.bridge.config import load
from neuromod.engine import images
from neuromod.engine.fixed_network import FixedNetwork, quantised_stimuli
from neuromod.engine.modulators import NeuroModulators

IMAGES = {"parameters.json", "parameters.mem", "parameters_decay.mem", "parameters_weights.mem", "registers.mem"}
Change = Callable[[str], str]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})


def told(*args: str | Path) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def refused(*args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("neuromod: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def session(tmp_path: Path) -> Path:
    file = tmp_path / "session.toml"
    file.write_text('source = {kind = "zmq", block_ms = 1.5}\n[network]\nseed = 3\n')
    return file


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for name, words in {
        "v_thresholds.mem": range(0x120, 0x1A0, 8),
        "v_decay.mem": range(0xC0, 0xD0),
        "v_weights.mem": range(256),
        "v_output_weights.mem": range(0xFFF0, 0x10020),
    }.items():
        (folder / name).write_text("// from elsewhere\n" + "".join(f"{word & 0xFFFF:04X}\n" for word in words))
    (folder / "notes.mem").write_text("of no set")
    return folder


def test_images_of_a_session_read_back_to_the_same_registers(session: Path, tmp_path: Path) -> None:
    body = told("export", "mem", session, "-o", tmp_path / "images")
    assert set(body["files"]) == IMAGES == {path.name for path in (tmp_path / "images").iterdir()}
    assert (body["source"], body["dt_ms"], body["clipped"]) == ("session.toml", 0.75, [])
    expected = FixedNetwork(load(session).network, dt_ms=0.75)
    assert export.read([tmp_path / "images"]).network.state == expected.state
    assert export.read([tmp_path / "images" / "registers.mem"]).network.state == expected.state

    again = told("export", "mem", tmp_path / "images", "-o", tmp_path / "again")
    assert again["network_sha256"] == body["network_sha256"]
    for name in IMAGES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "images" / name).read_bytes()


def test_images_are_made_for_the_longer_steps_of_a_slow_link_too(session: Path, tmp_path: Path) -> None:
    body = told("export", "mem", session, "-o", tmp_path / "images", "--dt-ms", "6")
    assert body["dt_ms"] == 6.0
    assert told("export", "read", tmp_path / "images")["dt_ms"] == 6.0
    assert export.read([tmp_path / "images"]).network.state == FixedNetwork(load(session).network, dt_ms=6.0).state


def test_reading_says_what_images_hold_and_runs_them(session: Path, tmp_path: Path) -> None:
    run("export", "mem", session, "-o", tmp_path / "images")
    stimuli = np.random.default_rng(1).uniform(0, 4, (50, 16))
    np.save(tmp_path / "stimuli.npy", stimuli)
    out = tmp_path / "spikes.npz"
    body = told(
        *("export", "read", tmp_path / "images", "--run", "120", "--stimuli", tmp_path / "stimuli.npy"),
        *("--spikes-out", out),
    )
    expected = FixedNetwork(load(session).network, dt_ms=0.75).run(np.tile(stimuli, (3, 1))[:120])
    assert (np.load(out)["spikes"] == expected).all()
    assert body["spikes"] == expected.sum(axis=0).tolist()
    assert sum(body["spikes"]) > 0
    shown = run("export", "read", tmp_path / "images")
    assert "session.toml is good: ticks of 0.75 ms, at tick 0, learns" in shown.stderr


def learnt(session: Path) -> Assembly:
    """The loop of a session whose network has learnt something."""
    config = load(session)
    assert isinstance(config.source, ZmqConfig)
    parts = assemble(config, stimuli_stream(config.source))
    network = parts.network
    for row in np.random.default_rng(2).uniform(0, 4, (10, 16)):
        network.add_reward(1.0)
        network.run(np.tile(row, (100, 1)))
    network.set_parameters(recurrent_gain=1.5, coincidence_min_channels=5)
    return parts


def saved(parts: Assembly, path: Path) -> Path:
    checkpoint.save(path, parts, np.concatenate([np.frombuffer(each.tobytes(), np.uint8) for each in parts.parts()]), 7)
    return path


def test_what_a_daemon_learnt_leaves_with_its_checkpoint(session: Path, tmp_path: Path) -> None:
    parts = learnt(session)
    body = told(
        *("export", "mem", session, "--checkpoint", saved(parts, tmp_path / "a.checkpoint"), "-o", tmp_path / "images")
    )
    weights = parts.network.weights.astype(np.float64)
    network = export.read([tmp_path / "images"]).network
    start = FixedNetwork(load(session).network, dt_ms=0.75)
    assert (network.state[0]["weights"] == np.floor(weights * 2**24 + 0.5)).all()
    assert (network.state[0]["weights"] != start.state[0]["weights"]).any()
    assert network.state[0]["recurrent_gain"] == 3 << 15
    assert network.state[0]["min_channels"] == 5
    assert network.state[0]["tick"] == 0
    assert not network.state[0]["eligibility"].any()
    assert body["source"] == "session.toml and a.checkpoint"
    assert any("left there: membranes, traces" in note for note in body["notes"])


def test_checkpoints_that_do_not_go_with_the_session_are_refused(session: Path, tmp_path: Path) -> None:
    path = saved(learnt(session), tmp_path / "a.checkpoint")
    out = ("-o", tmp_path / "images")
    assert "leave --dt-ms out" in refused("export", "mem", session, "--checkpoint", path, "--dt-ms", "1", *out)
    other = tmp_path / "other.toml"
    other.write_text('source = "zmq"\n[network.sensory]\ngain = 11.0\n')
    assert "gain differ" in refused("export", "mem", other, "--checkpoint", path, *out)
    path.write_bytes(path.read_bytes()[:-3])
    assert "is not a checkpoint" in refused("export", "mem", session, "--checkpoint", path, *out)
    assert "cannot be read" in refused("export", "mem", session, "--checkpoint", tmp_path / "none", *out)
    assert not (tmp_path / "images").exists()


def test_numbers_that_do_not_fit_are_refused_or_clipped_and_named(session: Path, tmp_path: Path) -> None:
    session.write_text('source = "zmq"\n[network.sensory]\nbias = -300.0\n')
    out = ("-o", tmp_path / "images")
    assert "bias[13] is -300 mV, expected -128 to 127.996 (Q8.8)" in refused("export", "mem", session, *out)
    clipped = run("export", "mem", session, "--clip", *out)
    assert clipped.exit_code == 0
    assert "clipped: bias[13] from -300 to -128 mV" in clipped.stderr
    assert "14 numbers clipped" in clipped.stderr
    assert len(told("export", "read", tmp_path / "images")["clipped"]) == 14


def test_a_published_set_is_read_run_and_taken_over(published: Path, tmp_path: Path) -> None:
    body = told("export", "read", published, "--run", "200")
    assert body["spikes"][14] == 0 < min(body["spikes"][i] for i in (0, 13, 15))
    assert body["weights_mv"][2][1] == 18 / 256  # row = source here, target there
    assert body["output_weights"][0][:2] == [-16 / 256, -15 / 256]
    assert any("neuron 14 of the images is silent" in note for note in body["notes"])
    files = [published / f"v_{part}.mem" for part in ("decay", "weights", "thresholds")]
    assert told("export", "read", *files, "--run", "200")["spikes"] == body["spikes"]

    told("export", "mem", published, "-o", tmp_path / "ours")
    for ours, theirs in {
        "parameters.mem": "v_thresholds.mem",
        "parameters_decay.mem": "v_decay.mem",
        "parameters_weights.mem": "v_weights.mem",
        "parameters_output_weights.mem": "v_output_weights.mem",
    }.items():
        assert "// from elsewhere\n" + (tmp_path / "ours" / ours).read_text() == (published / theirs).read_text()
    assert told("export", "read", tmp_path / "ours", "--run", "200")["spikes"] == body["spikes"]


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("parameters.mem", lambda text: text + "0000\n", "parameters.mem, line 17: a word at address 10"),
        ("parameters_decay.mem", lambda text: "z" + text, "parameters_decay.mem, line 1: expected up to 4"),
        ("registers.mem", lambda text: text + "\n", "registers.mem is not the file that parameters.json"),
        ("parameters.json", lambda text: text[:-9], "parameters.json is missing, or no JSON"),
        ("parameters_weights.mem", lambda text: "\udcff" + text, "parameters_weights.mem is no text (byte 0)"),
    ],
)
def test_damaged_images_are_refused_by_path(
    session: Path, tmp_path: Path, name: str, change: Change, complaint: str
) -> None:
    run("export", "mem", session, "-o", tmp_path / "images")
    path = tmp_path / "images" / name
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    assert f"{tmp_path / 'images'}/{complaint}" in refused("export", "read", tmp_path / "images")


def test_bad_usage_is_refused_in_words(session: Path, published: Path, tmp_path: Path) -> None:
    run("export", "mem", session, "-o", tmp_path / "images")
    assert "is there already" in refused("export", "mem", session, "-o", tmp_path / "images")
    assert run("export", "mem", session, "-o", tmp_path / "images", "--force").exit_code == 0
    assert "says how long a tick is" in refused("export", "read", tmp_path / "images", "--dt-ms", "0.5")
    assert "--clip go without" in refused("export", "mem", published, "--clip", "-o", tmp_path / "x")
    assert "go with --run" in refused("export", "read", published, "--spikes-out", tmp_path / "x.npz")
    assert "holds no images" in refused("export", "read", tmp_path)
    assert "no such file" in refused("export", "read", tmp_path / "none")
    assert "cannot be written" in refused("export", "mem", session, "-o", session / "x")
    np.save(tmp_path / "bad.npy", np.zeros((3, 4)))
    assert "shape (3, 4)" in refused("export", "read", published, "--run", "3", "--stimuli", tmp_path / "bad.npy")
    np.save(tmp_path / "nan.npy", np.full((3, 16), np.nan))
    assert "finite" in refused("export", "read", published, "--run", "3", "--stimuli", tmp_path / "nan.npy")
    assert "--stimulus: expected finite" in refused("export", "read", published, "--run", "3", "--stimulus", "nan")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "torn.npy").write_bytes(b"PK\x03\x04")
    for name in ("empty.npy", "torn.npy"):
        assert "cannot be read" in refused("export", "read", published, "--run", "3", "--stimuli", tmp_path / name)
    np.savez(tmp_path / "two.npz", a=[0.0], b=[1.0])
    assert "several arrays" in refused("export", "read", published, "--run", "3", "--stimuli", tmp_path / "two.npz")


def test_verilog_comes_with_its_images_header_and_how_to_build_it(session: Path, tmp_path: Path) -> None:
    body = told("export", "verilog", session, "-o", tmp_path / "board", "--protocol", "siliconbridge")
    files = {path.name: path.read_text() for path in (tmp_path / "board").iterdir()}
    assert set(files) == set(body["files"]) >= IMAGES | {"neuromod_core.v", "neuromod_config.vh", "README.txt"}
    header = files["neuromod_config.vh"].splitlines()
    assert '`define NEUROMOD_IMAGE "registers.mem"' in header
    assert "`define NEUROMOD_CLOCK_HZ 100000000" in header
    assert "`define NEUROMOD_BAUD 115200" in header
    assert "`define NEUROMOD_PROTOCOL 1" in header
    assert any(body["network_sha256"] in line for line in header)
    assert (
        "`define NEUROMOD_BAUD 3000000"
        in export.verilog(export.source_of(session), clock_hz=100_000_000, baud=None, protocol="neuromod")[
            "neuromod_config.vh"
        ]
    )
    assert "neither Vivado nor a board" in files["README.txt"]
    assert export.read([tmp_path / "board"]).network.state == export.source_of(session).network.state


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--baud", "12000000"), "cannot make 12000000 baud within 2 %: 8.33 clocks a bit, expected at least 10"),
        (("--baud", "3000000", "--clock-hz", "12000000"), "take up to 1200000 baud, or a faster clock"),
        (("--baud", "10"), "expected at least 300 baud"),
    ],
)
def test_a_baud_rate_that_the_clock_cannot_make_is_refused(
    session: Path, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused("export", "verilog", session, "-o", tmp_path / "board", *options)
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("protocol", ["neuromod", "siliconbridge"])
def test_the_exported_folder_is_clean_to_verilator(session: Path, tmp_path: Path, protocol: str) -> None:
    from neuromod.adapters.fpga.verilated import find_verilator

    binary, root = find_verilator()
    folder = tmp_path / "board"
    told("export", "verilog", session, "-o", folder, "--protocol", protocol)
    result = subprocess.run(
        [
            str(binary),
            "--lint-only",
            "-Wall",
            "--top-module",
            "nexys_a7_top",
            *sorted(p.name for p in folder.glob("*.v")),
        ],
        cwd=folder,
        env={"VERILATOR_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_checkpoint_of_another_layout_is_refused(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LAYOUT_VERSION", 1)
    path = saved(learnt(session), tmp_path / "a.checkpoint")
    monkeypatch.undo()
    assert "is of another version of the package" in refused("export", "mem", session, "--checkpoint", path)


@pytest.mark.long  # half a minute to compile each
@pytest.mark.parametrize("baud", [3_000_000, 10_000_000])
def test_the_exported_top_comes_up_with_the_network_and_runs_it_bit_for_bit_over_its_serial_line(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baud: int
) -> None:
    top = ExportedTop(session, tmp_path / "board", baud, monkeypatch)
    network = export.source_of(session).network
    stimuli = quantised_stimuli(np.random.default_rng(4).uniform(0, 6, (60, 16)), 1000.0)
    modulation = network.modulation_words(NeuroModulators(dopamine=0.5))
    fired = 0
    for tick, row in enumerate(stimuli):
        (frame,) = top.ask(wire.pack_tick(tick, tick, row, modulation if tick == 7 else None))
        expected = network.run(row[np.newaxis] / 256.0, modulation[np.newaxis] if tick >= 7 else None)[0]
        answer = wire.unpack_tick_done(frame.body)
        assert answer.tick == tick
        assert answer.spikes[0] == int(expected @ (1 << np.arange(16)))
        assert (answer.v == network.state[0]["v"]).all()
        fired += int(expected.sum())
    assert fired > 40
    words = [top.ask(wire.pack_read(0, address, 48))[0] for address in range(0, images.N_WORDS, 48)]
    read = np.concatenate([wire.unpack_words(frame.body)[1] for frame in words])
    assert images.from_words(read.astype(np.int64)) == network.state


class ExportedTop:
    """The top of an exported folder, compiled as it lies there."""

    def __init__(self, session: Path, folder: Path, baud: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from neuromod.adapters.fpga.verilated import verilate

        told("export", "verilog", session, "-o", folder, "--baud", str(baud))
        monkeypatch.chdir(folder)  # where `include and $readmemh look, as they do where Vivado runs
        sources = [folder / "neuromod_config.vh", *sorted(folder.glob("*.v"))]
        self._library = verilate("nexys_a7_top", sources, Path(__file__).with_name("exported_top.cpp"))
        self._library.top_new.restype = ctypes.c_void_p
        self._top = ctypes.c_void_p(self._library.top_new(100_000_000, baud))
        self._parser = wire.Parser()

    def ask(self, question: bytes) -> list[wire.Frame]:
        """Send a frame, and wait for what comes back."""
        out = ctypes.create_string_buffer(1024)
        n = self._library.top_exchange(self._top, len(question), question, len(out), out)
        assert n >= 0, "a byte without its stop bit"
        return self._parser.feed(out.raw[:n])
