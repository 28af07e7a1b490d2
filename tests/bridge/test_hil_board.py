"""Hardware in the loop on the board's own Verilog, behind a pseudo-terminal, with and without faults.

`tests/bench/hil_faults.py` prints the whole table; here is what each kind of finding stands on.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
from hil_devices import of, recording, rows

from neuromod.adapters.fpga.twin import TwinDevice
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.hil import Options, run
from neuromod.bridge.hil_config import Criteria
from neuromod.bridge.hil_device import make_device

_SPEC = importlib.util.spec_from_file_location("hil_faults", Path(__file__).parents[1] / "bench" / "hil_faults.py")
assert _SPEC is not None
assert _SPEC.loader is not None
faults = importlib.util.module_from_spec(_SPEC)
sys.modules["hil_faults"] = faults
_SPEC.loader.exec_module(faults)

if sys.platform == "win32":
    pytest.skip("a simulated board needs a pseudo-terminal", allow_module_level=True)

_SHORT = (
    ("neuromod", "flip:bytes=60000,direction=to_host"),
    ("neuromod", "memory:tick=700,register=threshold,index=3,bit=9"),
    ("siliconbridge", "flip:bytes=25000,direction=to_board"),
    ("siliconbridge", "reorder:ticks=700"),
)
_CASES = {case[:2]: case for case in faults.CASES}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> SessionConfig:
    """Return a session that plays stimuli of all channels to a network that does not learn."""
    config: SessionConfig = faults.session(tmp_path_factory.mktemp("hil"), faults.N_TICKS)
    return config


@pytest.mark.parametrize("case", [_CASES[short] for short in _SHORT], ids=lambda case: f"{case.protocol} {case.fault}")
def test_a_fault_is_noticed_named_and_not_before_it_happened(case: "faults.Case", played: SessionConfig) -> None:  # type: ignore[name-defined]
    finding = faults.try_case(case, played)
    assert finding.is_right, finding


@pytest.mark.long
@pytest.mark.parametrize("case", faults.CASES, ids=lambda case: f"{case.protocol} {case.fault}")
def test_every_fault_is_noticed(case: "faults.Case", played: SessionConfig) -> None:  # type: ignore[name-defined]
    finding = faults.try_case(case, played)
    assert finding.is_right, finding


def test_the_verilog_passes_with_learning_on_and_its_state_read(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    outcome, device = run(config, lambda state: make_device("sim", state), Criteria(state_every_ticks=1000), Options())
    assert outcome.is_passed
    assert outcome.trace.states_compared == 5
    assert (outcome.trace.weights[0][1] != outcome.trace.weights[-1][1]).any()
    assert outcome.modelled_us is not None  # the line's time, which is not simulated
    assert "simulated board" in device.facts["name"]


def test_siliconbridge_is_compared_by_what_it_carries(played: SessionConfig) -> None:
    outcome, _ = run(
        played, lambda state: make_device("sim", state, protocol="siliconbridge"), Criteria(), Options(until_tick=1000)
    )
    found = rows(outcome)
    assert outcome.is_passed
    assert (found["membrane_mismatches_max"], found["state_mismatches_max"]) == ("passed", "not judged")
    assert outcome.trace.v_bits & 0xFF == 0


def test_bisection_finds_a_bit_that_flipped_in_the_simulated_boards_memory(tmp_path: Path) -> None:
    config, _ = recording(tmp_path)
    fault = "memory:tick=9,register=weights,index=39,bit=27"
    outcome, _ = run(
        config,
        lambda state: make_device("sim", state, faults=(fault,)),
        Criteria(),
        Options(until_tick=20, bisect=True),
    )
    found = outcome.bisection
    assert found is not None
    assert (found.kind, found.tick) == ("found", 8)  # before tick 9: seen in what the tick before left
    assert found.words[0].name == "weights[2][7]"
    assert found.words[0].expected ^ found.words[0].found == 1 << 27
    assert "changed once, before tick 9" in found.summary


@pytest.mark.long
def test_an_hour_of_clean_ticks_raises_no_alarm(tmp_path: Path) -> None:
    config, _ = recording(tmp_path, n_ticks=3_600_000)
    outcome, _ = run(config, of(TwinDevice()), Criteria(), Options())
    assert outcome.trace.n_ticks == 3_600_000
    assert outcome.is_passed


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["neuromod", "siliconbridge"])
def test_a_clean_board_raises_no_alarm_for_long(tmp_path: Path, protocol: str) -> None:
    config = faults.session(tmp_path, 200_000)
    outcome = faults.try_clean(protocol, config)
    assert outcome.trace.n_ticks == 200_000
    assert [each for each in outcome.judgements if each.status == "failed"] == []
    assert outcome.is_passed
