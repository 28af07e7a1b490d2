"""What a session file may say, and what is said about one that cannot be."""

import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from harness import ONE_PROGRAM
from hypothesis import given
from hypothesis import strategies as st

from neuromod.adapters.config import FeaturesConfig, LslConfig, RecordingConfig, XdfConfig
from neuromod.bridge.config import SessionConfig, for_recording, load, parse
from neuromod.bridge.template import SourceKind, session_toml
from neuromod.bridge.toml_text import find_line, to_toml
from neuromod.engine.errors import ConfigError

ZMQ = 'source = "zmq"\n'
LSL = '[source]\nkind = "lsl"\nname = "amp"\n'


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(text, where="s.toml")
    return str(raised.value)


# -- what is there


def test_a_source_is_all_that_a_session_needs() -> None:
    config = parse(ZMQ)

    assert config.source.kind == "zmq"
    assert config.sockets.output == "tcp://127.0.0.1:5556"
    assert config.timing.stall_ms == 50.0
    assert config.runtime.loop == "compiled"


def test_a_source_that_is_one_word_is_short_for_its_kind() -> None:
    assert parse('source = "zmq"') == parse('[source]\nkind = "zmq"')


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ('kind = "lsl"\nname = "a"', "signal"),
        ('kind = "lsl"\nname = "a"\ncontent = "features"', "features"),
        ('kind = "recording"\npath = "a"', "signal"),
        ('kind = "xdf"\npath = "a"', "signal"),
        ('kind = "xdf"\npath = "a"\nbin_ms = 50', "features"),
        ('kind = "features"\npath = "a"\nbin_ms = 50', "features"),
        ('kind = "units"\npath = "a"', "features"),
        ('kind = "zmq"', "stimuli"),
    ],
)
def test_a_session_knows_what_its_source_brings(source: str, content: str) -> None:
    assert parse(f"[source]\n{source}").source_content == content


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_the_effective_configuration_reads_back_as_the_same_session(kind: SourceKind) -> None:
    config = parse(session_toml(kind))

    again = parse(config.effective_toml())

    assert again.effective() == config.effective()
    assert json.loads(config.effective_json()) == config.effective()


@pytest.mark.parametrize("source", [ZMQ, LSL], ids=["stimuli", "signal"])
def test_a_session_that_stimulates_reads_back_as_the_same_session(source: str) -> None:
    decoder = 'decoder = {kind = "rates", tau_ms = 50.0, events = [{channel = 0}]}\n'
    config = parse(decoder + source + "[stimulation]" + ONE_PROGRAM)
    assert parse(config.effective_toml()).effective() == config.effective()


def test_the_effective_configuration_has_every_default_and_no_section_that_the_source_does_not_use() -> None:
    signal, features, stimuli = parse(LSL), parse(LSL + 'content = "features"'), parse(ZMQ)

    sections = {"session", "source", "network", "markers", "sockets", "publish", "timing", "runtime", "watchdog"}
    assert set(signal.effective()) == sections | {"front_end", "encoder"}
    assert set(features.effective()) == sections | {"encoder"}
    assert set(stimuli.effective()) == sections
    assert signal.effective()["network"]["sensory"]["parameters"]["tau_mem_ms"] > 0
    assert "block_ms" not in features.effective()["timing"]


def test_what_is_not_set_shows_as_a_comment() -> None:
    assert "# baseline is not set" in parse(ZMQ).effective_toml().splitlines()


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_the_template_states_the_defaults(kind: SourceKind) -> None:
    written = tomllib.loads(session_toml(kind))
    effective = parse(session_toml(kind)).effective()
    # a session keeps a record where it says [record], and the template does
    bare = parse(to_toml({"source": written["source"], "record": {}})).effective()

    assert effective == bare
    for section in ("sockets", "publish", "timing", "runtime", "record"):
        assert set(written[section]) == set(effective[section]), f"[{section}] of the template is not complete"


# -- files


def test_paths_start_from_the_folder_of_the_session_file(tmp_path: Path) -> None:
    (tmp_path / "data.ns5").touch()
    (tmp_path / "baseline.json").touch()
    file = tmp_path / "session.toml"
    file.write_text('[session]\nbaseline = "baseline.json"\n[source]\nkind = "recording"\npath = "data.ns5"\n')

    config = load(file)

    assert isinstance(config.source, RecordingConfig)
    assert config.source.path == tmp_path / "data.ns5"
    assert config.session.baseline == tmp_path / "baseline.json"


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text(ZMQ + '[session]\nbaseline = "gone.json"\n')

    with pytest.raises(ConfigError, match=r"session\.baseline names .*gone\.json.*'neuromod baseline' writes one"):
        load(file)


def test_weights_may_come_from_a_file(tmp_path: Path) -> None:
    matrix = np.arange(256.0).reshape(16, 16) / 256
    matrix[:, 14] = 0  # the coincidence detector takes no weighted input
    np.save(tmp_path / "w.npy", matrix)
    np.savetxt(tmp_path / "w.csv", matrix, delimiter=",")
    file = tmp_path / "session.toml"

    for name in ("w.npy", "w.csv"):
        file.write_text(ZMQ + f'[network.weights]\nkind = "file"\npath = "{name}"\n')
        weights: Any = load(file).network.weights
        assert np.array_equal(np.array(weights.matrix_mv), matrix)

    np.save(tmp_path / "w.npy", matrix[:4])
    file.write_text(ZMQ + '[network.weights]\nkind = "file"\npath = "w.npy"\n')
    with pytest.raises(ConfigError, match=r"shape \(4, 16\).*16 rows"):
        load(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; 'neuromod init"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[source\n", "not TOML: .*line 1"),
        (b"a = 1\na = 2\n", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "session.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=rf"session\.toml.*{said}"):
        load(file)


def test_a_folder_is_no_session_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


# -- faults: one sentence, with the key, its line and the fix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ZMQ + "[timing]\nstal_ms = 5", "s.toml, line 3: timing.stal_ms is not a known key: did you mean stall_ms?"),
        ('sorce = "zmq"', "s.toml, line 1: sorce is not a known key: did you mean source?"),
        ('[source]\nkind = "lsl"\nnam = "a"', "s.toml, line 3: source.nam is not a known key: did you mean name?"),
        (ZMQ + "[runtime]\nturbo = true", "line 3: runtime.turbo is not a known key: remove it, or use one of cpus,"),
        (ZMQ + '[[markers]]\nname = "a"\n\n[[markers]]\nname = "b"\ntipe = "c"', "line 7: markers.1.tipe is not"),
        (ZMQ + "[network.channels.3]\nmodell = 'lif'", "line 3: network.channels.3.modell is not a known key"),
        # units
        (ZMQ + "[timing]\nstall_s = 0.05", "line 3: timing.stall_s has the wrong unit: write stall_ms = 50"),
        (ZMQ + "[timing]\nstall_us = 5e4", "timing.stall_us has the wrong unit: write stall_ms = 50"),
        (ZMQ + "[timing]\nstall = 50", "line 3: timing.stall needs its unit in its name: write stall_ms"),
        (ZMQ + "[timing]\nstall_hz = 20", "timing.stall_hz has the wrong unit: it is given as stall_ms"),
        (LSL + "[front_end.crossings]\nlow_khz = 0.3", "crossings.low_khz has the wrong unit: write low_hz = 300"),
        (ZMQ + "[network.coincidence]\nwindow_s = 0.003", "window_s has the wrong unit: write window_ms = 3"),
        (ZMQ + "[network.sensory.parameters]\ntau_mem_s = 0.02", "line 3: network.sensory.parameters.tau_mem_s has"),
        (ZMQ + "[network.channels.3.parameters]\ntau_mem = 20", "needs its unit in its name: write tau_mem_ms"),
        (ZMQ + "[network]\ntau_mem_s = 0.02", "network.tau_mem_s has the wrong unit: write tau_mem_ms = 20, in"),
        (ZMQ + "[network.sensory]\ntau_mem_ms = 2", "network.sensory.tau_mem_ms is a parameter of the model"),
        # values
        (ZMQ + "[timing]\nstall_ms = 'fast'", "line 3: timing.stall_ms should be a valid number"),
        (ZMQ + "[timing]\nlate_ms = -1", "line 3: timing.late_ms should be greater than 0, not -1"),
        (ZMQ + "[timing]\nlate_ms = nan", "timing.late_ms should be"),
        (ZMQ + "[timing]\nfill = 'guess'", "line 3: timing.fill should be 'hold' or 'zero', not 'guess'"),
        (ZMQ + "[network.weights]\nkind = 'magic'", "network.weights.kind is 'magic', but must be one of"),
        (ZMQ + "[session]\nname = '../x'", "session.name should match pattern"),
        ("source = 3", "line 1: source should be"),
        ('source = "telepathy"', 'no source of kind "telepathy" is installed; known kinds: '),
        ('[source]\nkind = "lsl"', "source: give at least one of name, type, source_id or hostname"),
        ("", "s.toml: source is missing"),
        ("[source]\n", "source.kind is missing"),
        # combinations
        (ZMQ + "[front_end]", "line 2: source 'zmq' brings stimuli straight to the network: remove [front_end]"),
        (ZMQ + '[decoder]\nkind = "nope"', "line 2: decoder.kind is 'nope', but must be one of 'rates',"),
        (ZMQ + "[artefacts]", "line 2: source 'zmq' brings stimuli straight to the network: remove [artefacts]"),
        (ZMQ + "[encoder]", "line 2: source 'zmq' brings stimuli straight to the network: remove [encoder]"),
        (LSL + 'content = "features"\n[front_end]', "line 5: front_end works on a signal, but source 'lsl'"),
        (ZMQ + "[timing]\nblock_ms = 1", "line 3: timing.block_ms cuts a signal into blocks; here source.block_ms"),
        (LSL + "[front_end.crossings]\nlow_hz = 7000", "low_hz = 7000 must lie below high_hz = 6000"),
        (LSL + "[encoder]\nkind = 'matrix'", "line 4: encoder: matrix_path and kind = \"matrix\" go together"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_that_names_the_key_its_line_and_the_fix(text: str, said: str) -> None:
    message = fault(text)

    assert said in message
    assert "\n" not in message


def test_every_fault_of_a_file_is_told_at_once() -> None:
    lines = fault(ZMQ + "[timing]\nstall_s = 1\nlate_ms = -1\n[publish]\nspikes = 'never'").splitlines()

    assert len(lines) == 3


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5556",
        "tcp://*:5556",
        "tcp://192.168.1.4:5556",
        "tcp://[::]:5556",
    ],
)
def test_a_bind_away_from_loopback_is_refused_without_keys(address: str) -> None:
    message = fault(ZMQ + f'[sockets]\noutput = "{address}"')

    assert "line 3: sockets.output" in message
    assert "away from loopback" in message
    assert "neuromod keys init" in message
    assert "[security]" in message
    session = parse(ZMQ + f'[sockets]\noutput = "{address}"\n[security]\nkeys = "keys"')
    assert session.sockets.output == address.replace("*", "0.0.0.0")
    assert parse(session.effective_toml()).effective() == session.effective()


@pytest.mark.parametrize("address", ["tcp://rig.lab:5556", "tcp://eth0:1"])
def test_an_interface_is_named_by_its_number(address: str) -> None:
    assert "is no address of an interface" in fault(ZMQ + f'[sockets]\noutput = "{address}"')


def test_clients_on_this_host_reach_a_daemon_that_binds_every_interface() -> None:
    sockets = parse(
        ZMQ + '[sockets]\noutput = "tcp://0.0.0.0:5556"\ncontrol = "tcp://[::]:7"\n[security]\nkeys = "keys"'
    ).sockets

    assert sockets.for_clients() == {
        "ingest": "tcp://127.0.0.1:5555",
        "output": "tcp://127.0.0.1:5556",
        "control": "tcp://[::1]:7",
    }


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("tcp://127.0.0.1:6000", "tcp://127.0.0.1:6000"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
        ("tcp://localhost:6000", "tcp://127.0.0.1:6000"),
        ("tcp://127.1.2.3:6000", "tcp://127.1.2.3:6000"),
        ("tcp://[::1]:6000", "tcp://[::1]:6000"),
        ("ipc:///tmp/neuromod", "ipc:///tmp/neuromod"),
    ],
)
def test_loopback_and_ipc_are_good_addresses(address: str, bound: str) -> None:
    assert parse(ZMQ + f'[sockets]\noutput = "{address}"').sockets.output == bound


@pytest.mark.parametrize("address", ["", "5556", "127.0.0.1:5556", "udp://127.0.0.1:1", "tcp://127.0.0.1", "ipc://"])
def test_an_address_must_look_like_one(address: str) -> None:
    assert "an address looks like tcp://127.0.0.1:5556" in fault(ZMQ + f'[sockets]\noutput = "{address}"')


def test_two_sockets_do_not_share_a_port() -> None:
    assert "line 3: sockets.output and sockets.ingest both bind tcp://127.0.0.1:5555" in fault(
        ZMQ + '[sockets]\noutput = "tcp://127.0.0.1:5555"'
    )
    free = "tcp://127.0.0.1:*"
    parse(ZMQ + f'[sockets]\ningest = "{free}"\noutput = "{free}"\ncontrol = "{free}"')


def test_a_block_that_is_merely_due_is_no_stall() -> None:
    timing = parse(ZMQ).timing

    assert timing.stall_bound_ms(1.0) == 50.0
    assert timing.stall_bound_ms(50.0) == 150.0


# -- a session for a recording


def test_a_recording_gets_the_source_that_its_name_tells(tmp_path: Path) -> None:
    for name in ("a.xdf", "a.npy", "a.ns5"):
        (tmp_path / name).touch()

    xdf = for_recording(tmp_path / "a.xdf").source
    features = for_recording(tmp_path / "a.npy", bin_ms=50.0).source
    raw = for_recording(tmp_path / "a.ns5", stream="5").source

    assert isinstance(xdf, XdfConfig)
    assert isinstance(features, FeaturesConfig)
    assert features.bin_ms == 50.0
    assert isinstance(raw, RecordingConfig)
    assert raw.stream_id == "5"


def test_a_feature_matrix_needs_the_length_of_its_bins(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()

    with pytest.raises(ConfigError, match="--bin-ms"):
        for_recording(tmp_path / "a.npy")


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.*no such file"):
        for_recording(tmp_path / "gone")


def test_a_recording_takes_the_place_of_the_source_of_a_session_file(tmp_path: Path) -> None:
    (tmp_path / "a.ns5").touch()
    file = tmp_path / "session.toml"
    file.write_text(LSL + "[network]\nseed = 9\n")

    session = for_recording(tmp_path / "a.ns5", file)

    assert isinstance(session.source, RecordingConfig)
    assert session.network.seed == 9


def test_a_session_file_that_plays_the_recording_itself_keeps_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    file = tmp_path / "session.toml"
    file.write_text('[source]\nkind = "recording"\npath = "a.bin"\nn_channels = 4\n')

    source = for_recording(tmp_path / "a.bin", file).source

    assert isinstance(source, RecordingConfig)
    assert source.n_channels == 4


def test_a_front_end_does_not_go_with_a_recording_of_features(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    file = tmp_path / "session.toml"
    file.write_text(LSL + '[front_end]\nreference = "none"\n')

    with pytest.raises(ConfigError, match="front_end works on a signal"):
        for_recording(tmp_path / "a.npy", file, bin_ms=50.0)


def test_a_session_can_be_built_in_python() -> None:
    config = SessionConfig(source=LslConfig(name="amp"))

    assert config.source_content == "signal"
    assert parse(config.effective_toml()).effective() == config.effective()


# -- TOML as text

tables = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    ).flatmap(lambda leaf: st.sampled_from([leaf, [leaf, leaf]])),
    lambda inner: (
        st.dictionaries(st.text(st.characters(codec="ascii"), max_size=6), inner, max_size=4)
        | st.lists(st.dictionaries(st.text(max_size=3), inner, max_size=2), min_size=1, max_size=2)
    ),
    max_leaves=10,
)


@given(body=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), tables, max_size=5))
def test_written_toml_reads_back_as_it_was(body: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(body)) == body


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 1),
        (("t",), 3),
        (("t", "b"), 4),
        (("t", "b", "c"), 4),
        (("t", "missing"), 3),
        (("list", 1, "d"), 8),
        (("t", "u", "e.f"), 10),
        (("deep", "er"), 11),
        (("deep",), 11),
        (("gone",), None),
    ],
)
def test_a_key_is_found_on_its_line(path: tuple[str | int, ...], line: int | None) -> None:
    text = 'a = 1 # [x]\n\n[t] # a table\nb.c = 2\n[[list]]\nd = 1\n[[list]]\nd = 2\n[t.u]\n"e.f" = 3\n[deep.er.est]\n'

    assert find_line(text, path) == line


BOARD = "[offload]\ndelay_ticks = 2\n[publish]\nstimuli = true\n"


@pytest.mark.parametrize("source", [ZMQ, LSL, LSL + 'content = "features"\n'], ids=["stimuli", "signal", "features"])
def test_a_session_whose_network_is_a_board_reads_back_as_the_same_session(source: str) -> None:
    config = parse(source + BOARD)

    assert parse(config.effective_toml()).effective() == config.effective()
    assert config.effective()["offload"] == {"delay_ticks": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ZMQ + "[offload]", "line 2: offload.delay_ticks is missing"),
        (ZMQ + BOARD.replace("2", "0"), "line 3: offload.delay_ticks should be greater than or equal to 1"),
        (ZMQ + BOARD.replace("2", "65"), "line 3: offload.delay_ticks should be less than or equal to 64"),
        (ZMQ + BOARD.replace("true", "false"), "line 5: offload: a board needs the stimuli of each tick, which"),
        (ZMQ + "[offload]\ndelay_ticks = 2", "set publish.stimuli = true"),
        (ZMQ + BOARD + 'spikes = "spiking"', 'line 6: offload: a board needs every tick, with a spike or without: set'),
        (ZMQ + BOARD + "[network.sensory]\nmodel = 'izhikevich'", "no board can be this network: fixed-point hardware"),
        (ZMQ + BOARD + "[network.sensory]\nmodel = 'izhikevich'", "channel 0 is izhikevich, expected lif or lapicque"),
        (LSL + BOARD + "[network.sensory]\nnoise = 1.0", "channel 3 has noise of 1, expected 0"),
        (ZMQ + BOARD + "[network.sensory.parameters]\nv_threshold_mv = 200.0", "threshold[0] is 200 mV"),
        ('[source]\nkind = "zmq"\nblock_ms = 4.0\n' + BOARD, "but a block gives 4 ticks at once"),
        (LSL + BOARD + "[timing]\nblock_ms = 3", "but a block gives 3 ticks at once"),
        ('[source]\nkind = "zmq"\nblock_ms = 100.0\n' + BOARD, "take blocks of at most 64 ticks"),
    ],
)  # fmt: skip
def test_a_board_that_could_not_be_the_network_is_refused_with_the_fix(text: str, said: str) -> None:
    message = fault(text)

    assert said in message
    assert "\n" not in message


def test_ticks_too_short_for_a_trace_are_refused_before_anything_is_compiled() -> None:
    text = 'source = {kind = "zmq", block_ms = 0.1}\n[network.learning]\ntau_eligibility_ms = 200000.0\n'
    with pytest.raises(ConfigError, match=r"tau_eligibility_ms must not exceed 1e\+06 ticks, 100000 ms"):
        parse(text)
    parse(text.replace("0.1", "1.0"))
