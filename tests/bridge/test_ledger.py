"""The ledger: whatever happens to its process or its file, the dose is never counted too low."""

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuromod.bridge import gate as g
from neuromod.bridge.ledger import WAIT_S, Ledger, LedgerError

SESSION_PC, MINUTE_PC = 1e6, 1e4


class Clocks:
    """Two clocks that a test turns by hand."""

    def __init__(self) -> None:
        self.wall_s, self.monotonic_s = 1.7e9, 5000.0

    def wall(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.monotonic_s

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def ledger(
    path: Path, clocks: Clocks | None = None, session: str = "s", electrodes: tuple[str, ...] = ("a", "b")
) -> Ledger:
    clocks = clocks or Clocks()
    n = g.MAX_ELECTRODES + 1
    return Ledger(
        path, session, electrodes, session_pc=np.full(n, SESSION_PC), minute_pc=np.full(n, MINUTE_PC),
        wall=clocks.wall, monotonic=clocks.monotonic,
    )  # fmt: skip


def dose(a: float, b: float) -> np.ndarray:
    """Doses of electrodes a and b."""
    doses = np.zeros(g.MAX_ELECTRODES + 1)
    doses[0], doses[1], doses[g.TOTAL] = a, b, a + b
    return doses


def test_a_new_ledger_knows_of_no_dose_and_asks_for_no_wait(tmp_path: Path) -> None:
    with_none = ledger(tmp_path / "dose.json")
    assert not with_none.dose_pc.any()
    assert with_none.wait_s == 0.0
    with_none.close(dose(0, 0))


def test_an_orderly_close_writes_the_true_dose(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    first.top_up(dose(0, 0))
    first.close(dose(120.0, 30.0))
    second = ledger(tmp_path / "dose.json")
    np.testing.assert_array_equal(second.dose_pc, dose(120.0, 30.0))
    second.close(second.dose_pc)


def test_without_an_orderly_close_all_that_was_granted_counts_as_spent(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    granted = first.top_up(dose(0, 0))
    assert granted is not None
    first.close(None)  # the file stays as it was: what a crash leaves
    second = ledger(tmp_path / "dose.json")
    np.testing.assert_array_equal(second.dose_pc, granted)
    assert granted[0] == 2 * MINUTE_PC
    assert second.wait_s == WAIT_S
    second.close(None)


def test_a_grant_is_on_the_disk_before_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "dose.json"
    first = ledger(path)
    granted = first.top_up(dose(0, 0))
    assert granted is not None
    on_disk = json.loads(path.read_text())["ledger"]
    assert on_disk["spent_pc"] == {"a": granted[0], "b": granted[1]}
    assert on_disk["total_pc"] == granted[g.TOTAL]
    first.close(None)


def test_more_is_granted_when_half_is_used_and_never_beyond_the_session_limit(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    chunk = 2 * MINUTE_PC
    first.top_up(dose(0, 0))
    assert first.top_up(dose(0.5 * chunk, 0.0)) is None
    granted = first.top_up(dose(0.5 * chunk + 1, 0.0))
    assert granted is not None
    assert granted[0] == 1.5 * chunk + 1
    assert granted[1] == chunk
    near_the_end = first.top_up(dose(SESSION_PC - 1, 0.0))
    assert near_the_end is not None
    assert near_the_end[0] == SESSION_PC
    assert first.top_up(dose(SESSION_PC, 0.0)) is None
    first.close(None)


def test_the_largest_train_that_the_minute_allows_never_waits_for_a_grant_in_vain(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    spent = 0.0
    first.top_up(dose(0, 0))
    while spent + MINUTE_PC <= SESSION_PC:
        assert spent + MINUTE_PC <= first.granted_pc[0]
        spent += MINUTE_PC
        first.top_up(dose(spent, 0.0))
    first.close(dose(spent, 0.0))


def test_a_dose_never_falls_whatever_is_said_at_the_close(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    first.close(dose(500.0, 0.0))
    second = ledger(tmp_path / "dose.json")
    second.close(dose(0.0, 0.0))
    third = ledger(tmp_path / "dose.json")
    assert third.dose_pc[0] == 500.0
    third.close(None)


def test_electrodes_of_other_configurations_are_kept_and_found_by_name(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    first.close(dose(10.0, 20.0))
    second = ledger(tmp_path / "dose.json", electrodes=("b",))
    assert second.dose_pc[0] == 20.0
    assert second.dose_pc[g.TOTAL] == 30.0
    second.close(second.dose_pc)
    third = ledger(tmp_path / "dose.json", electrodes=("c", "a"))
    assert third.dose_pc[:2].tolist() == [0.0, 10.0]
    third.close(None)


def test_start_gives_a_gate_the_dose_and_the_wait(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    first.top_up(dose(0, 0))
    first.close(None)
    second = ledger(tmp_path / "dose.json")
    gate = g.make_gate(2)[0]
    second.start(gate, 7)
    assert gate["dose_pc"][0] == 2 * MINUTE_PC
    assert gate["granted_pc"][0] == gate["dose_pc"][0]
    assert gate["arm_after_ns"] == 7 + WAIT_S * 1e9
    second.close(None)


def test_after_an_orderly_close_only_the_rest_of_the_minute_is_waited_for(tmp_path: Path, clocks: Clocks) -> None:
    first = ledger(tmp_path / "dose.json", clocks)
    first.close(dose(1.0, 0.0))
    clocks.advance(20.0)
    second = ledger(tmp_path / "dose.json", clocks)
    assert second.wait_s == pytest.approx(WAIT_S - 20.0, abs=1e-5)  # the wall clock in float64 resolves 0.2 us
    second.close(second.dose_pc)
    clocks.advance(WAIT_S)
    third = ledger(tmp_path / "dose.json", clocks)
    assert third.wait_s == 0.0
    third.close(None)


def test_a_wall_clock_that_was_set_back_makes_the_wait_whole(tmp_path: Path, clocks: Clocks) -> None:
    first = ledger(tmp_path / "dose.json", clocks)
    first.close(dose(1.0, 0.0))
    clocks.advance(30.0)
    clocks.wall_s -= 3600.0
    second = ledger(tmp_path / "dose.json", clocks)
    assert second.wait_s == WAIT_S
    second.close(None)


def test_a_wall_clock_that_was_set_forward_in_the_same_boot_shortens_nothing(tmp_path: Path, clocks: Clocks) -> None:
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        pytest.skip("this system does not tell one boot from another")
    first = ledger(tmp_path / "dose.json", clocks)
    first.close(dose(1.0, 0.0))
    clocks.advance(5.0)
    clocks.wall_s += 3600.0
    second = ledger(tmp_path / "dose.json", clocks)
    assert second.wait_s == pytest.approx(WAIT_S - 5.0)
    second.close(None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("120.0", "12.0"),
        lambda text: text.replace("neuromod-ledger", "something"),
        lambda text: "[]",
        lambda text: '{"ledger": 3, "crc32": 0}',
        lambda text: "\x00" * 100,
        lambda text: text.replace("120.0", "NaN"),
    ],
)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "dose.json"
    ledger(path).close(dose(120.0, 0.0))
    damaged = damage(path.read_text())
    path.write_text(damaged)
    with pytest.raises(LedgerError, match="damaged"):
        ledger(path)
    assert path.read_text() == damaged


def test_every_flipped_bit_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "dose.json"
    ledger(path).close(dose(120.0, 7.0))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            opened = ledger(path)
        except LedgerError:
            continue
        np.testing.assert_array_equal(opened.dose_pc, dose(120.0, 7.0))
        opened.close(None)


def test_the_ledger_of_another_session_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path / "dose.json").close(dose(1.0, 0.0))
    with pytest.raises(LedgerError, match="of session 's', not of 't'"):
        ledger(tmp_path / "dose.json", session="t")


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    first = ledger(tmp_path / "dose.json")
    with pytest.raises(LedgerError, match="another process"):
        ledger(tmp_path / "dose.json")
    first.close(None)
    ledger(tmp_path / "dose.json").close(None)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger(tmp_path / "nowhere" / "dose.json")


def test_a_ledger_that_can_no_longer_be_written_grants_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "dose.json"
    first = ledger(path)
    first.top_up(dose(0, 0))
    before = first.granted_pc.copy()
    (tmp_path / "dose.json.partial").mkdir()  # what stands in the way of root too
    with pytest.raises(LedgerError, match="cannot be written"):
        first.top_up(dose(1.9 * MINUTE_PC, 0.0))
    np.testing.assert_array_equal(first.granted_pc, before)
    first.close(None)


_SPENDER = """
import mmap, struct, sys
import numpy as np
from pathlib import Path
from neuromod.bridge import gate as g
from neuromod.bridge.ledger import Ledger

gate = g.make_gate(1)[0]
for name in ("amplitude_ua", "charge_pc", "density_uc_cm2", "area_um2", "shannon", "balance_pc", "balance_fraction",
             "interphase_us", "rate_hz", "pulses", "duration_us"):
    gate[name] = np.inf
gate["compliance_mv"] = gate["total_amplitude_ua"] = np.inf
gate["minute_pc"], gate["session_pc"] = 20000.0, 4e6
gate["longest_arming_ns"] = g.MAX_NS
gate["sends"] = gate["late_ticks"] = 1
ledger = Ledger(Path(sys.argv[1]), "s", ["a"], session_pc=gate["session_pc"], minute_pc=gate["minute_pc"])
ledger.start(gate, 0)
file = open(sys.argv[2], "r+b")
truth = mmap.mmap(file.fileno(), 16)
given, = struct.unpack("d", truth[:8])
gate["granted_pc"] = ledger.granted_pc
train = np.zeros(1, g.TRAIN)[0]
train["amplitude_ua"], train["amplitude2_ua"], train["pulses"] = -20.0, 20.0, 1
train["phase_us"] = train["phase2_us"] = 200.0
now = int(gate["arm_after_ns"]) + 1
assert g.arm(gate, now, now + 10**17, 1) == 0
print("spending", flush=True)
while True:
    now += 16 * 10**9
    reason = g.check(gate, train, now, 0)
    if reason == g.ALLOWED:
        given += 4000.0
        truth[:8] = struct.pack("d", given)
    else:
        assert g.REASONS[reason] == "ledger", g.REASONS[reason]
    granted = ledger.top_up(gate["dose_pc"])
    if granted is not None:
        g.grant(gate, 0, granted[0])
        g.grant(gate, g.TOTAL, granted[g.TOTAL])
"""


@pytest.mark.parametrize("seed", [0])
def test_kill_9_at_any_moment_never_counts_too_little(tmp_path: Path, seed: int) -> None:
    """A process that spends as fast as it can is killed; what its gate allowed it wrote into shared memory."""
    rng = random.Random(seed)
    path, truth_path = tmp_path / "dose.json", tmp_path / "truth"
    truth_path.write_bytes(bytes(16))
    last = 0.0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", _SPENDER, str(path), str(truth_path)], stdout=subprocess.PIPE,
            env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"spending\n"
            with truth_path.open("r+b") as file, mmap.mmap(file.fileno(), 16) as truth:
                # so many trains on, wherever that is in the work of the ledger
                goal = last + 4000.0 * rng.randint(1, 40)
                while struct.unpack("d", truth[:8])[0] < goal and process.poll() is None:
                    pass
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                (given,) = struct.unpack("d", truth[:8])
        assert given >= goal  # it really spent, again and again
        opened = ledger(path, electrodes=("a",))
        assert opened.dose_pc[0] >= given
        assert opened.dose_pc[g.TOTAL] >= given
        opened.close(None)
        last = given


def test_where_files_cannot_be_locked_it_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows: importing it raises ImportError
    with pytest.raises(LedgerError, match="cannot lock files"):
        ledger(tmp_path / "dose.json")
    assert not list(tmp_path.iterdir())
