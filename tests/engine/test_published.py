"""Images that others published: read, run bit for bit as plain integers say, and written back."""

from typing import Any

import numpy as np
import pytest

from neuromod.engine.errors import FixedPointError, ImageError
from neuromod.engine.manifest import OUTPUT_IMAGE, export, read, read_output_weights
from neuromod.engine.published import Published, part_of, read_published, to_network

HEAD = "// SPDX-License-Identifier: MIT OR Apache-2.0\n"


def merged_v2() -> dict[str, str]:
    """The set `merged_v2` as published, but for the words of its output weights."""

    def image(words: Any) -> str:
        return HEAD + "".join(f"{word & 0xFFFF:04X}\n" for word in words)

    decay = [0xCC, 0xCF, 0xD1, 0xD4, 0xD7, 0xD9, 0xDC, 0xDE, 0xE1, 0xE3, 0xE6, 0xE8, 0xEB, 0xEE, 0xF0, 0xF3]
    return {
        "merged_v2_thresholds.mem": image(0x120 + 8 * i for i in range(16)),
        "merged_v2_decay.mem": image(decay),
        "merged_v2_weights.mem": image(0xC0 + 4 * i + j for i in range(16) for j in range(16)),
        "merged_v2_output_weights.mem": image(7 * k % 61 - 30 for k in range(48)),
    }


def plain_run(texts: dict[str, str], stimuli: list[list[int]]) -> tuple[list[int], list[int]]:
    """The published network in plain integers, potentials in 1/65536: spikes of each tick, and the last potentials."""

    def words(part: str) -> list[int]:
        (text,) = [text for name, text in texts.items() if name == f"merged_v2_{part}.mem"]
        numbers = [int(line, 16) for line in text.splitlines() if not line.startswith("//")]
        return [number - 0x10000 if number >= 0x8000 else number for number in numbers]

    threshold, decay, weight = words("thresholds"), words("decay"), words("weights")
    potential, fired, trains = [0] * 16, [False] * 16, []
    for row in stimuli:
        before, fired = fired, [False] * 16
        for target in range(16):
            if target == 14:
                continue
            charge = sum(weight[16 * target + source] for source in range(16) if before[source])
            # decay x potential + (1 - decay) x stimulus, to the nearest 1/65536
            leak = ((row[target] * 256 - potential[target]) * (256 - decay[target]) + 128) // 256
            moved = max(-(2**23), min(2**23 - 1, potential[target] + leak + charge * 256))
            fired[target] = moved >= threshold[target] * 256
            potential[target] = 0 if fired[target] else moved
        trains.append(sum(1 << i for i in range(16) if fired[i]))
    return trains, potential


@pytest.mark.parametrize("seed", range(3))
def test_running_a_published_set_is_bit_equal_to_plain_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # 0 to 4, now and then the extremes
    words = rng.integers(0, 1024, (3000, 16))
    words[rng.random(words.shape) < 0.01] = -(2**15)
    words[rng.random(words.shape) < 0.01] = 2**15 - 1
    texts = merged_v2()
    network = to_network(read_published(texts))
    spikes = network.run(words / 256.0) @ (1 << np.arange(16))
    trains, potential = plain_run(texts, words.tolist())
    assert spikes.tolist() == trains
    kept = [i for i in range(16) if i != 14]
    assert network.state[0]["v"][kept].tolist() == [potential[i] for i in kept]
    rate = np.mean([bin(train).count("1") for train in trains])
    assert 0.5 < rate < 15, "or the comparison says little"
    assert not (spikes >> 14 & 1).any()


def test_spikes_reach_targets_by_row() -> None:
    texts = merged_v2()
    lines = ["0000"] * 256
    lines[16 * 3 + 7] = "0100"  # neuron 3 takes 1 from neuron 7
    network = to_network(read_published(texts | {"merged_v2_weights.mem": "\n".join(lines)}))
    network.state[0]["spikes"] = 1 << 7
    network.run(np.zeros((1, 16)))
    assert network.state[0]["v"].tolist() == [0, 0, 0, 65_536, *[0] * 12]


def test_a_set_is_written_back_word_for_word_in_our_own_images() -> None:
    texts = merged_v2()
    published = read_published(texts)
    assert published.output_weights is not None
    ours = export(to_network(published), source="a test", neuromod="0", output_weights=published.output_weights)
    assert HEAD + ours["parameters.mem"] == texts["merged_v2_thresholds.mem"]
    assert HEAD + ours["parameters_weights.mem"] == texts["merged_v2_weights.mem"]
    assert HEAD + ours["parameters_decay.mem"] == texts["merged_v2_decay.mem"]
    assert HEAD + ours[OUTPUT_IMAGE] == texts["merged_v2_output_weights.mem"]
    network, manifest = read(ours)
    assert network.state == to_network(published).state
    assert (read_output_weights(ours[OUTPUT_IMAGE]) == published.output_weights).all()
    assert OUTPUT_IMAGE in manifest.files
    with pytest.raises(ImageError, match=r"parameters_output_weights.mem: expected 48 words, got 47"):
        read(ours | {OUTPUT_IMAGE: ours[OUTPUT_IMAGE][5:]})


def test_a_set_that_is_not_whole_or_not_one_is_refused() -> None:
    texts = merged_v2()
    with pytest.raises(ImageError, match="no image of decay"):
        read_published({name: text for name, text in texts.items() if "decay" not in name})
    with pytest.raises(ImageError, match=r"v1_decay.mem: a second image of decay"):
        read_published(texts | {"v1_decay.mem": texts["merged_v2_decay.mem"]})
    with pytest.raises(ImageError, match=r"other.mem: expected a name that ends in"):
        read_published(texts | {"other.mem": ""})
    with pytest.raises(ImageError, match=r"merged_v2_decay.mem: expected 16 words, got 15"):
        read_published(texts | {"merged_v2_decay.mem": texts["merged_v2_decay.mem"][:-5]})
    assert part_of("output_weights.mem") == "output_weights"


def test_decays_that_a_leak_cannot_have_are_refused_by_name() -> None:
    decay = np.full(16, 200)
    decay[[0, 3, 5]] = 0, -1, 257
    with pytest.raises(FixedPointError, match=r"decay\[0\] is 0, decay\[3\] is -0.0039.*, decay\[5\] is 1.0039"):
        to_network(Published(np.full(16, 300), decay, np.zeros((16, 16), np.int64)))
