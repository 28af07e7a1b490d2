"""Scripts for `adapters/core_script.v`: what the twin says, for simulators that nothing else can drive."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from core_comparison import random_modulation, random_state, random_stimuli, varied_modulation, varied_stimuli
from numpy.typing import NDArray

from neuromod.adapters.fpga.core_model import ADDRESSES, state_words
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.fixed_registers import register
from neuromod.engine.fixed_tick import fixed_tick, set_modulation

TESTBENCH = Path(__file__).parent / "adapters" / "core_script.v"
_WRITE, _STIMULUS, _TICK, _READ = range(1, 5)
_EPISODE, _BETWEEN = 50, 50
_MEMBRANES = np.flatnonzero(register("v").address == (ADDRESSES & 0x3F0))


def write_script(path: Path, n_ticks: int, seed: int) -> None:
    """Half of the ticks of a network that learns, half of random states and input, 50 from each.

    Spikes and membranes are compared after every tick, every register after each 50.
    """
    rng = np.random.default_rng(seed)
    network, n_learning = FixedNetwork(), n_ticks // 2
    with path.open("w") as file:
        file.writelines(
            _commands(network.state, varied_stimuli(rng, n_learning), varied_modulation(network, rng, n_learning))
        )
        for _ in range((n_ticks - n_learning) // _EPISODE):
            file.writelines(
                _commands(random_state(rng), random_stimuli(rng, _EPISODE), random_modulation(rng, _EPISODE))
            )
        file.write("0 0 0\n")


def simulate(folder: Path, sources: Sequence[Path], script: Path, timeout_s: float) -> str:
    """Compile with Icarus Verilog, run, and return the last line that was printed; fails with what it says."""
    binary = folder / "core.vvp"
    command = ["iverilog", "-g2001", "-o", str(binary), "-s", "core_script", *map(str, sources), str(TESTBENCH)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    run = subprocess.run(
        ["vvp", "-n", str(binary), f"+script={script}"], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert run.returncode == 0, run.stderr
    assert " wrong" in run.stdout, run.stdout
    return run.stdout.strip().splitlines()[-1]


def _commands(state: NDArray[Any], stimuli: NDArray[np.int16], modulation: NDArray[np.int64]) -> list[str]:
    lines = [_line(_WRITE, address, word) for address, word in zip(ADDRESSES, state_words(state), strict=True)]
    for k, row in enumerate(stimuli):
        set_modulation(state, modulation[k])
        lines += [_line(_WRITE, m, word) for m, word in enumerate(modulation[k])]
        lines += [_line(_STIMULUS, i, word) for i, word in enumerate(row)]
        lines.append(_line(_TICK, 0, fixed_tick(state, row)))
        words = state_words(state)
        at = np.arange(len(words)) if (k + 1) % _BETWEEN == 0 or k + 1 == len(stimuli) else _MEMBRANES
        lines += [_line(_READ, ADDRESSES[i], words[i]) for i in at]
    return lines


def _line(command: int, where: Any, word: Any) -> str:
    return f"{command:x} {int(where):x} {int(word) & 0xFFFFFFFF:x}\n"
