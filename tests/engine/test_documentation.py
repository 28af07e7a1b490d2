"""The tables say what the declarations say, and MODELS.md is what they give."""

import re
from pathlib import Path

import numpy as np
import pytest

from neuromod.engine import documentation
from neuromod.engine.config import ChannelConfig, NetworkConfig
from neuromod.engine.layout import BLOCK_BYTES
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.models.model import Model
from neuromod.engine.network import SpikingNetwork

ENGINE = Path(__file__).parents[2] / "engine"
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_models_md_is_what_the_declarations_give() -> None:
    written = (ENGINE / "MODELS.md").read_text(encoding="utf-8")
    assert written == documentation.markdown(), "write it anew: neuromod models --markdown > engine/MODELS.md"


def test_tables_of_markdown_have_as_many_cells_in_every_row() -> None:
    blocks = [block.splitlines() for block in documentation.markdown().split("\n\n") if block.startswith("|")]
    # one of models, one of the layout, and parameters, state and presets of each model
    assert len(blocks) == 2 + sum(2 + bool(model.presets) for model in MODELS)
    for lines in blocks:
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {lines[0].count("|")}


@every_model
def test_every_model_has_the_file_that_its_section_names(model: Model) -> None:
    source = (ENGINE / "models" / f"{model.name}.py").read_text(encoding="utf-8")
    assert f'name="{model.name}"' in source


@every_model
def test_the_table_of_parameters_is_the_one_that_the_configuration_checks(model: Model) -> None:
    parameters = next(table for table in documentation.tables(model) if table.title == "Parameters")
    assert [row[0] for row in parameters.rows] == [p.name for p in model.parameters]
    for name, _, default, least, greatest, _ in parameters.rows:
        chosen = ChannelConfig(model=model.name).complete_parameters()
        assert chosen[name] == pytest.approx(float(default), rel=1e-5)
        for text, beyond in ((least, -1), (greatest, 1)):
            outside = float(text) + beyond * (1 + abs(float(text)))
            with pytest.raises(ValueError, match=f"{name} must lie within"):
                ChannelConfig(model=model.name, parameters={name: outside})


@every_model
def test_the_table_of_the_state_is_the_state_at_the_start(model: Model) -> None:
    neuron = ChannelConfig(model=model.name)
    network = SpikingNetwork(NetworkConfig(sensory=neuron))
    state = next(table for table in documentation.tables(model) if table.title == "State")
    start = [float(row[2]) for row in state.rows]
    assert start == pytest.approx(network.state[0]["variables"][: len(start), 0].tolist(), rel=1e-5, abs=1e-12)


@every_model
def test_a_preset_is_the_defaults_and_what_its_row_says(model: Model) -> None:
    for name, _, changes in documentation.tables(model)[2].rows if model.presets else ():
        said = model.complete({})
        for change in changes.split(", ") if changes != "nothing" else ():
            parameter, value = change.split(" ")
            said[parameter] = float(value)
        assert said == pytest.approx(model.complete({}, name), rel=1e-5)


@every_model
def test_the_drive_of_a_preset_is_the_one_that_its_row_says(model: Model) -> None:
    for name, drive, _ in documentation.tables(model)[2].rows if model.presets else ():
        channel = ChannelConfig(model=model.name, preset=name).complete()
        bias, sign, gain, *_ = drive.split(" ")
        assert (float(bias), float(sign + gain)) == (channel.bias, channel.gain)
        assert documentation.as_data(model)["preset_inputs"][name] == {"gain": channel.gain, "bias": channel.bias}


@pytest.mark.parametrize(
    ("name", "unit"),
    [("tau_mem_ms", "ms"), ("g_na_ms_cm2", "mS/cm2"), ("e_na_mv", "mV"), ("g_l_ns", "nS"),
     ("temperature_c", "degree C"), ("a_per_ms", "1/ms"), ("resistance_mohm", "MOhm"),
     ("v_threshold", ""), ("q10", ""), ("m", "")],
)  # fmt: skip
def test_the_unit_is_read_off_the_name(name: str, unit: str) -> None:
    assert documentation.unit_of(name) == unit


def test_the_layout_adds_up_to_the_block_beside_the_size_of_the_crate() -> None:
    rows = documentation.layout().rows
    ends = [int(offset) + int(size) for offset, size, *_ in rows]
    assert BLOCK_BYTES - 64 < ends[-1] <= BLOCK_BYTES
    assert all(end <= int(row[0]) for end, row in zip(ends, rows[1:], strict=False))
    assert sum(int(row[1]) for row in rows) == sum(SpikingNetwork().state[0][row[4]].nbytes for row in rows)
    assert f"{BLOCK_BYTES} bytes" in documentation.markdown()
    assert "2376" in documentation.markdown()


def test_data_for_programs_are_numbers() -> None:
    for model in MODELS:
        data = documentation.as_data(model)
        assert [p["name"] for p in data["parameters"]] == list(model.complete({}))
        assert [v["start"] for v in data["variables"]] == list(model.start(model.complete({})))
        assert all(np.isfinite(list(preset.values())).all() for preset in data["presets"].values())
        assert data["presets"].keys() == model.presets.keys()
