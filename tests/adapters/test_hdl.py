"""Our Verilog as other tools see it: lint, Icarus Verilog, and the netlist of synthesis."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bench.synthesis import cell_models, find_yosys, prepare, run_yosys
from core_comparison import (
    compare,
    random_modulation,
    random_state,
    random_stimuli,
    varied_modulation,
    varied_stimuli,
)
from core_script import simulate, write_script

from neuromod.adapters.fpga.core_model import CoreModel
from neuromod.adapters.fpga.verilated import HDL, find_verilator
from neuromod.engine.fixed_network import FixedNetwork

MODULES = sorted(HDL.glob("*.v"))
# Yosys' models and netlists are not ours to lint
QUIET = "`verilator_config\nlint_off\n" + "".join(
    f"lint_off -rule {rule}\n" for rule in ("UNOPTFLAT", "COMBDLY", "INITIALDLY", "SPECIFYIGN")
)
needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="needs Icarus Verilog (iverilog), which is not installed"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_lint_has_nothing_to_say(path: Path, tmp_path: Path) -> None:
    # what an export puts beside the top
    (tmp_path / "neuromod_config.vh").write_text(
        '`define NEUROMOD_IMAGE "registers.mem"\n`define NEUROMOD_CLOCK_HZ 100000000\n'
        "`define NEUROMOD_BAUD 3000000\n`define NEUROMOD_PROTOCOL 0\n"
    )
    binary, root = find_verilator()
    result = subprocess.run(
        [str(binary), "--lint-only", "-Wall", f"-I{HDL}", f"-I{tmp_path}", str(path)],
        env={"VERILATOR_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in (result.stderr + result.stdout).splitlines() if not line.startswith("- ")]
    assert said == []
    assert result.returncode == 0


def test_lint_covers_every_module_that_is_there() -> None:
    assert HDL / "neuromod_core.v" in MODULES


@needs_icarus
def test_core_equals_the_twin_under_icarus(tmp_path: Path) -> None:
    write_script(tmp_path / "script", 300, seed=1)
    said = simulate(tmp_path, [HDL / "neuromod_core.v"], tmp_path / "script", timeout_s=250)
    assert said.startswith("300 ticks, ")
    assert said.endswith(" words, 0 wrong")


@needs_icarus
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_core_equals_the_twin_under_icarus_over_10_000_ticks(tmp_path: Path) -> None:
    write_script(tmp_path / "script", 10_000, seed=2)
    said = simulate(tmp_path, [HDL / "neuromod_core.v"], tmp_path / "script", timeout_s=7000)
    assert said.startswith("10000 ticks, ")
    assert said.endswith(" words, 0 wrong")


@needs_icarus
def test_a_script_finds_a_single_wrong_bit(tmp_path: Path) -> None:
    write_script(tmp_path / "script", 2, seed=1)
    lines = (tmp_path / "script").read_text().splitlines()
    last = max(k for k, line in enumerate(lines) if line.startswith("4 "))
    command, where, word = lines[last].split()
    lines[last] = f"{command} {where} {int(word, 16) ^ 1:x}"
    (tmp_path / "script").write_text("\n".join(lines))
    said = simulate(tmp_path, [HDL / "neuromod_core.v"], tmp_path / "script", timeout_s=250)
    assert said.endswith(" words, 1 wrong")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_netlist_equals_the_twin_over_1000_ticks(tmp_path: Path) -> None:
    """Memories in LUTs, since Yosys' models of block RAM have no contents; the rest is what the FPGA gets."""
    if find_yosys() is None:
        pytest.skip("needs Yosys: pip install 'neuromod-bridge[synthesis]'")
    netlist, quiet = tmp_path / "netlist.v", tmp_path / "quiet.vlt"
    run_yosys(f"{prepare('neuromod_core', tmp_path)} -nobram; write_verilog -noattr {netlist.name}", tmp_path)
    quiet.write_text(QUIET)
    with CoreModel(seed=1, sources=[quiet, netlist, cell_models()]) as core:
        network, rng = FixedNetwork(), np.random.default_rng(4)
        core.load(network.state)
        found = compare(core, network.state, varied_stimuli(rng, 500), varied_modulation(network, rng, 500))
        assert found.difference == ""
        for _ in range(10):
            state = random_state(rng)
            core.load(state)
            found = compare(core, state, random_stimuli(rng, 50), random_modulation(rng, 50))
            assert found.difference == ""
