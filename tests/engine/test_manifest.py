"""The images of a network together with their manifest: the same network again, or refused in words."""

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest

from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import FixedPointError, ImageError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.manifest import MANIFEST, export, network_sha256, read
from neuromod.engine.modulators import NeuroModulators

IMAGES = ("parameters.mem", "parameters_weights.mem", "parameters_decay.mem", "registers.mem")


def exported(config: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    network = FixedNetwork(NetworkConfig.model_validate(config or {}), **options)
    return export(network, source="a test", neuromod="0")


def with_hash(texts: dict[str, str], name: str, text: str) -> dict[str, str]:
    """A changed image whose hash the manifest was told."""
    body = json.loads(texts[MANIFEST])
    body["files"][name]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return texts | {name: text, MANIFEST: json.dumps(body)}


def test_a_network_that_runs_and_learns_comes_back_and_goes_on_bit_for_bit() -> None:
    stimuli = np.repeat(np.random.default_rng(3).uniform(0, 3, (30, 16)), 20, axis=0)
    network = FixedNetwork(NetworkConfig.model_validate({"modulation": {"baseline": {"dopamine": 0.5}}}), dt_ms=0.5)
    network.run(stimuli)
    back, manifest = read(export(network, source="a test", neuromod="0"))
    assert back.state == network.state
    assert (back.dt_ms, back.config) == (0.5, network.config)
    levels = NeuroModulators(dopamine=-0.3, cortisol=0.2)
    assert (back.modulation_words(levels) == network.modulation_words(levels)).all()
    assert (back.run(stimuli) == network.run(stimuli)).all()
    assert back.state == network.state
    assert manifest.network_sha256 == network_sha256(network.config)


def test_the_manifest_tells_order_formats_and_what_rounding_took() -> None:
    body = json.loads(exported()[MANIFEST])
    assert set(body["files"]) == set(IMAGES)
    weights = body["files"]["parameters_weights.mem"]
    assert weights["order"].startswith("neuron-major: row = target, column = source")
    assert (weights["format"], weights["signed"], weights["shape"]) == ("Q8.8", True, [16, 16])
    rounded = {each["name"]: each["at_most"] for each in body["rounded"]}
    assert 0 < rounded["weights"] <= 2**-25  # at its guard bits
    assert 2**-10 < rounded["parameters_weights.mem"] <= 2**-9  # without
    assert 0 < rounded["parameters_decay.mem"] <= 2**-9
    assert body["clipped"] == []


def test_a_decay_that_q8_8_cannot_hold_is_told() -> None:
    slow = {"sensory": {"parameters": {"tau_mem_ms": 1000.0}}}
    texts = exported(slow)
    assert texts["parameters_decay.mem"].splitlines()[0] == "0100"
    assert any("no decay between 255/256 and 1" in note for note in json.loads(texts[MANIFEST])["notes"])
    assert not any("no decay" in note for note in json.loads(exported()[MANIFEST])["notes"])


def test_what_does_not_fit_is_refused_by_name_or_clipped_counted_and_named() -> None:
    config = {"sensory": {"parameters": {"v_threshold_mv": 200.0}}, "channels": {3: {"gain": -300.0}}}
    with pytest.raises(FixedPointError, match=r"gain\[3\] is -300 mV, expected -128 to .* threshold\[13\] is 200 mV"):
        exported(config)
    texts = exported(config, clip=True)
    clipped = json.loads(texts[MANIFEST])["clipped"]
    assert len(clipped) == 15
    assert clipped[0] == {"name": "gain[3]", "value": -300.0, "held": -128.0, "unit": "mV"}
    network, _ = read(texts)
    assert network.state[0]["threshold"][0] == 2**15 - 1
    assert export(network, source="a test", neuromod="0") == texts


def test_what_hardware_has_not_is_refused_with_clip_too() -> None:
    with pytest.raises(FixedPointError, match="izhikevich"):
        exported({"sensory": {"model": "izhikevich"}}, clip=True)


@pytest.mark.parametrize("name", IMAGES)
def test_every_changed_missing_or_short_image_is_refused_by_file_and_line(name: str) -> None:
    texts = exported()
    lines = texts[name].splitlines()
    last = len(lines)
    with pytest.raises(ImageError, match=f"in {name} is missing"):
        read({key: text for key, text in texts.items() if key != name}, "in ")
    with pytest.raises(ImageError, match=f"in {name}: expected .* words, got"):
        read(texts | {name: "\n".join(lines[:-1])}, "in ")
    with pytest.raises(ImageError, match=f"in {name}, line {last}: expected up to"):
        read(texts | {name: "\n".join([*lines[:-1], "0x12"])}, "in ")
    with pytest.raises(ImageError, match=f"in {name} is not the file that parameters.json was written for"):
        read(texts | {name: "// a comment\n" + texts[name]}, "in ")


def test_an_image_at_odds_with_the_registers_is_refused_by_line_though_its_hash_was_renewed() -> None:
    texts = exported()
    lines = texts["parameters_weights.mem"].splitlines()
    lines[17] = "7ABC"
    with pytest.raises(ImageError, match=r"parameters_weights.mem, line 18: 7ABC, and registers.mem says 0000"):
        read(with_hash(texts, "parameters_weights.mem", "\n".join(lines)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "other"}, "no manifest of neuromod's images"),
        ({"version": 2}, "is of version 2, and this program reads version 1"),
        ({"dt_ms": "long"}, "dt_ms"),
        ({"dt_ms": -1.0}, "dt_ms"),
        ({"extra": 1}, "extra"),
        ({"network": {}}, "the configuration in it has sha256"),
        ({"files": {}}, r"expected the files parameters\.mem, "),
        ({"clipped": [{"name": "x[0]", "value": 1.0, "held": 0.0, "unit": ""}]}, "no register 'x'"),
        ({"clipped": [{"name": "v[0]", "value": math.nan, "held": 0.0, "unit": ""}]}, "finite"),
        ({"rounded": [{"name": "nope", "at_most": 1.0, "unit": ""}]}, "no register 'nope'"),
        ({"rounded": [{"name": "v", "at_most": math.inf, "unit": ""}]}, "finite"),
    ],
)
def test_a_manifest_that_is_none_or_was_changed_is_refused(change: dict[str, Any], complaint: str) -> None:
    texts = exported()
    with pytest.raises(ImageError, match=complaint):
        read(texts | {MANIFEST: json.dumps(json.loads(texts[MANIFEST]) | change)})


def test_a_manifest_that_describes_an_image_otherwise_is_refused() -> None:
    texts = exported()
    body = json.loads(texts[MANIFEST])
    body["files"]["parameters.mem"]["signed"] = False
    with pytest.raises(ImageError, match=r"parameters\.mem is described otherwise"):
        read(texts | {MANIFEST: json.dumps(body)})
    for text in ("", "[]", "{", "\x00", "[" * 100_000):
        with pytest.raises(ImageError, match=r"parameters\.json"):
            read(texts | {MANIFEST: text})


def test_registers_alone_run_but_do_not_say_what_neuromodulators_do() -> None:
    network = FixedNetwork()
    bare = FixedNetwork.from_registers(network.state)
    with pytest.raises(FixedPointError, match="give the configuration too"):
        bare.modulation_words(NeuroModulators())
    stimuli = np.full((50, 16), 2.0)
    assert (bare.run(stimuli) == network.run(stimuli)).all()
    bare.state[0]["threshold"][0] = 2**15
    with pytest.raises(FixedPointError, match=r"threshold holds .* beyond Q8\.8"):
        FixedNetwork.from_registers(bare.state)
