"""Memory images: read back to the same bits, and refused in words, by line, where they are not whole."""

from typing import Any

import numpy as np
import pytest

from neuromod.engine.errors import ImageError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import FIXED_BLOCK, REGISTERS
from neuromod.engine.images import (
    N_WORDS,
    decays,
    from_words,
    read_registers,
    read_words,
    thresholds,
    to_words,
    weights,
    write_registers,
    write_words,
)


def anywhere(seed: int) -> Any:
    """Registers with every number anywhere in its range, extremes included."""
    rng = np.random.default_rng(seed)
    state = np.zeros(1, dtype=FIXED_BLOCK)
    for each in REGISTERS:
        values = rng.integers(each.lowest, each.highest, each.shape, endpoint=True)
        extreme = rng.choice([each.lowest, each.highest], each.shape)
        state[0][each.name] = np.where(rng.random(each.shape) < 0.3, extreme, values)
    return state


@pytest.mark.parametrize("seed", range(5))
def test_registers_read_back_to_the_same_bits_wherever_in_their_range(seed: int) -> None:
    state = anywhere(seed)
    assert read_registers(write_registers(state)) == state
    assert from_words(to_words(state)) == state


def test_a_word_lies_on_the_line_of_its_address_and_negative_ones_are_sign_extended() -> None:
    state = FixedNetwork().state
    state[0]["v"][3] = -2
    state[0]["weights"][2, 5] = -(2**31)
    lines = [line for line in write_registers(state).splitlines() if not line.startswith("//")]
    assert len(lines) == N_WORDS
    assert all(len(line) == 8 for line in lines)
    assert (lines[0x093], lines[0x125], lines[0x08F]) == ("FFFFFFFE", "80000000", "00000000")
    assert lines[0x000] == "00010000"  # an input gain of 1


def test_images_are_read_as_readmemh_reads_them() -> None:
    text = "// a comment 12\r\n/* over\n lines 34 */ 1 00_Fe // 56\n@03 a/*no word*/b\n@2\tC"
    words = read_words(text, "x.mem", n_words=5, digits=4)
    assert words.values.tolist() == [1, 0xFE, 0xC, 0xA, 0xB]
    assert words.lines.tolist() == [3, 3, 5, 4, 4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n2\n", "x.mem: expected 3 words, got 2; the first that is missing is 2"),
        ("", "x.mem: expected 3 words, got 0"),
        ("1\n2\n3\n4\n", "x.mem, line 4: a word at address 3; expected 3 words"),
        ("1\n12345\n3\n", "x.mem, line 2: expected up to 4 hexadecimal digits, got '12345'"),
        ("1\n2\nxx\n", "x.mem, line 3: expected up to 4 hexadecimal digits, got 'xx'"),
        ("1\n-2\n3\n", "x.mem, line 2: expected up to 4 hexadecimal digits, got '-2'"),
        ("1\n2\n@g 3\n", "x.mem, line 3: expected @ and a hexadecimal address, got '@g'"),
        ("1\n2\n@1 3\n", "x.mem, line 3: address 1 was set before, on line 2"),
        ("1\n2\n@7FFFFFFFFFFFFFFFFFFFFF 3\n", "x.mem, line 3: a word at address 7F"),
        ("1\n/* 2\n3\n", "x.mem, line 2: a comment begins with /\\* and never ends"),
        ("\x00\x01", "x.mem, line 1: expected up to 4 hexadecimal digits"),
    ],
)
def test_what_is_no_image_is_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        read_words(text, "x.mem", n_words=3, digits=4)


@pytest.mark.parametrize(
    ("address", "word", "complaint"),
    [
        (0x010, "01000000", r"rise\[0\] is 01000000, beyond UQ0.24: expected 0 to 16777215, got 16777216"),
        (0x043, "00008000", r"threshold\[3\] is 00008000, beyond Q8.8"),
        (0x007, "00000010", "min_channels is 00000010, beyond UQ4.0"),
        (0x085, "00000001", "nothing lies at address 085, expected 0, got 00000001"),
    ],
)
def test_words_that_no_register_holds_are_refused_by_line_and_name(address: int, word: str, complaint: str) -> None:
    lines = write_registers(FixedNetwork().state).splitlines()
    line = [k for k, text in enumerate(lines) if not text.startswith("//")][address]
    lines[line] = word
    with pytest.raises(ImageError, match=f"registers.mem, line {line + 1}: {complaint}"):
        read_registers("\n".join(lines))


def test_small_images_hold_thresholds_weights_by_target_and_decays() -> None:
    state = anywhere(1)
    state[0]["weights"][2, 5] = -384 << 16
    state[0]["weights"][2, 6] = 2**31 - 1  # half up would leave the range
    state[0]["rise"][:3] = 0, 1 << 23, 2**24 - 1
    assert weights(state)[5, 2] == -384
    assert weights(state)[6, 2] == 2**15 - 1
    assert write_words(weights(state), 4).splitlines()[16 * 5 + 2] == "FE80"
    assert decays(state)[:3].tolist() == [256, 128, 0]
    assert (thresholds(state) == state[0]["threshold"]).all()
    state[0]["threshold"][14] = 0
    assert thresholds(state)[14] == 2**15 - 1
