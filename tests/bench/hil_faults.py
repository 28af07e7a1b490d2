"""Lets everything go wrong in a simulated board that can, and says what a run of hardware in the loop makes of each.

    .venv/bin/python tests/bench/hil_faults.py [--clean-ticks N] [--json FILE]

One row a fault: what was done, which criteria failed, and at which tick the run noticed first. A fault that no
criterion notices is an error, and so is a criterion that fails on a clean board.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromod.adapters.fpga.link import Protocol
from neuromod.bridge.config import SessionConfig, for_recording
from neuromod.bridge.hil import Options, Outcome, run
from neuromod.bridge.hil_config import Criteria
from neuromod.bridge.hil_device import make_device

N_TICKS = 1500

# a network that does not learn: SiliconBridge carries no learning factor finer than 1/256
_SESSION = """
source = {kind = "lsl", name = "in place of the recording"}
[encoder]
kind = "identity"
normalisation = "none"
smoothing_ms = 0
offset = 0
"""


class Case(NamedTuple):
    """A fault, and what has to notice it."""

    protocol: Protocol
    fault: str
    at_tick: int
    """First tick that it can touch."""
    noticed_by: tuple[str, ...]
    """Criteria of which at least one has to fail."""


_DIVERGES = ("spike_mismatches_max", "membrane_mismatches_max", "state_mismatches_max")
_LINK = (
    "link_damaged_max", "link_resent_max", "link_reordered_max", "link_late_max", "link_other_max", "lost_answers_max",
    "link_resets_max",
)  # fmt: skip

CASES: tuple[Case, ...] = (
    Case("neuromod", "flip:bytes=40000,direction=to_board", 500, _LINK),
    Case("neuromod", "flip:bytes=60000,direction=to_host", 500, _LINK),
    Case("neuromod", "flip:rate=0.0002", 0, _LINK),
    Case("neuromod", "lose:bytes=40000,direction=to_board", 500, _LINK),
    Case("neuromod", "lose:bytes=60000,direction=to_host", 500, _LINK),
    Case("neuromod", "delay:ms=250,ticks=700", 700, _LINK),
    Case("neuromod", "reorder:ticks=700", 700, _LINK),
    Case("neuromod", "stop:tick=700,for_ms=400", 700, _LINK),
    Case("neuromod", "stop:tick=700", 700, ("ticks_min", "lost_answers_max")),
    Case("neuromod", "reset:tick=700", 700, ("link_resets_max",)),
    Case("neuromod", "memory:tick=700,register=weights,index=18,bit=28", 700, _DIVERGES),
    Case("neuromod", "memory:tick=700,register=threshold,index=3,bit=9", 700, _DIVERGES),
    Case("neuromod", "memory:tick=700,register=v,index=3,bit=19", 700, _DIVERGES),
    Case("siliconbridge", "flip:bytes=25000,direction=to_board", 700, _DIVERGES + _LINK),
    Case("siliconbridge", "flip:bytes=25000,direction=to_host", 650, _DIVERGES + _LINK),
    Case("siliconbridge", "lose:bytes=25000,direction=to_board", 700, _DIVERGES + _LINK),
    Case("siliconbridge", "lose:bytes=25000,direction=to_host", 650, _DIVERGES + _LINK),
    Case("siliconbridge", "delay:ms=250,ticks=700", 700, _DIVERGES + _LINK),
    Case("siliconbridge", "reorder:ticks=700", 700, _DIVERGES + _LINK),
    Case("siliconbridge", "stop:tick=700,for_ms=400", 700, _DIVERGES + _LINK),
    Case("siliconbridge", "stop:tick=700", 700, ("ticks_min", "lost_answers_max")),
    Case("siliconbridge", "reset:tick=700", 700, _DIVERGES),
    Case("siliconbridge", "memory:tick=700,register=weights,index=18,bit=28", 700, _DIVERGES),
    Case("siliconbridge", "memory:tick=700,register=v,index=3,bit=19", 700, _DIVERGES),
)


class Finding(NamedTuple):
    """What a run made of a fault."""

    case: Case
    failed: tuple[str, ...]
    first_tick: int | None
    """At which the run noticed first."""
    words: str

    @property
    def is_right(self) -> bool:
        """Whether it was noticed as it has to be, and not before it happened."""
        in_time = self.first_tick is None or self.first_tick >= self.case.at_tick - 150
        return bool(set(self.failed) & set(self.case.noticed_by)) and in_time


def session(folder: Path, n_ticks: int, seed: int = 0) -> SessionConfig:
    """Write stimuli that make all channels fire, and return the session that plays them."""
    rng = np.random.default_rng(seed)
    held = np.repeat(rng.uniform(0.0, 2.5, (n_ticks // 20 + 1, 16)), 20, axis=0)[:n_ticks]
    np.save(folder / "stimuli.npy", held.astype(np.float32))
    (folder / "session.toml").write_text(_SESSION)
    return for_recording(folder / "stimuli.npy", folder / "session.toml", bin_ms=1.0)


def try_case(case: Case, config: SessionConfig, n_ticks: int = N_TICKS) -> Finding:
    """Run a simulated board with one fault."""
    outcome, _ = run(
        config,
        lambda state: make_device("sim", state, protocol=case.protocol, faults=(case.fault,)),
        Criteria(ticks_min=n_ticks),
        Options(reconnect_s=0.5),
    )
    failed = tuple(j.key for j in outcome.judgements if j.status == "failed")
    return Finding(case, failed, noticed_at(outcome), said(outcome))


def noticed_at(outcome: Outcome) -> int | None:
    """Return the first tick at which anything was wrong."""
    trace = outcome.trace
    ticks = [tick for tick, _ in trace.events]
    ticks += [
        tick for tick, counts in trace.counts if any(counts.get(k, 0) > trace.first_counts.get(k, 0) for k in counts)
    ]
    if trace.divergence is not None:
        ticks.append(trace.divergence.tick)
    lost = np.flatnonzero(trace.column("lost"))
    return min([*ticks, *lost[:1].tolist()], default=None)


def said(outcome: Outcome) -> str:
    """Return what failed, in words."""
    parts = [f"{j.name} {j.found}" for j in outcome.judgements if j.status == "failed"]
    divergence = outcome.trace.divergence
    if divergence is not None:
        parts.append(f"{divergence.kind} differ at tick {divergence.tick}")
    return "; ".join(parts)


def try_clean(protocol: Protocol | None, config: SessionConfig) -> Outcome:
    """Run a board, or the twin, that nothing befalls."""
    which = "twin" if protocol is None else "sim"
    make = lambda state: make_device(which, state, protocol=protocol or "neuromod")  # noqa: E731
    return run(config, make, Criteria(), Options())[0]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean-ticks", type=int, default=20_000, help="of each board that nothing befalls")
    parser.add_argument("--json", type=Path, help="where to keep the findings")
    arguments = parser.parse_args()
    findings: list[Finding] = []
    is_right = True
    with tempfile.TemporaryDirectory() as folder:
        config = session(Path(folder), N_TICKS)
        print("| protocol | fault | noticed at tick | finding |\n|---|---|---|---|")
        for case in CASES:
            finding = try_case(case, config)
            findings.append(finding)
            is_right &= finding.is_right
            mark = "" if finding.is_right else " **NOT NOTICED AS IT SHOULD BE**"
            print(f"| {case.protocol} | `{case.fault}` | {finding.first_tick} | {finding.words}{mark} |", flush=True)
        config = session(Path(folder), arguments.clean_ticks)
        for protocol in (None, "neuromod", "siliconbridge"):
            started = time.perf_counter()
            outcome = try_clean(protocol, config)
            is_right &= outcome.is_passed
            alarms = said(outcome) or "no alarm"
            spent = time.perf_counter() - started
            print(
                f"| {protocol or 'twin'} | none, {outcome.trace.n_ticks:,} ticks in {spent:.0f} s | - | {alarms} |",
                flush=True,
            )
    if arguments.json is not None:
        rows: list[dict[str, Any]] = [
            {
                "protocol": f.case.protocol, "fault": f.case.fault, "tick": f.first_tick, "failed": f.failed,
                "words": f.words, "is_right": f.is_right,
            }
            for f in findings
        ]  # fmt: skip
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
