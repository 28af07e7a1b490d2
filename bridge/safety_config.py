"""`[stimulation]` of a session file: electrodes and their limits, programs, and who may stimulate how.

Every program is judged by the gate itself while the file is read: one that no gate would ever let pass is an error
then, not a refusal in the session.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field
from pydantic_core import PydanticCustomError

from neuromod.bridge import gate as g

MAX_PROGRAMS = 16
MAX_EVENTS = 32

Mode = Literal["live", "dry_run", "open_loop", "sham", "yoked"]
MODES: tuple[str, ...] = get_args(Mode)
"""What the numbers of a mode mean, in order; `stimulation` says what each does."""

Material = Literal["pt", "ptir", "airof", "sirof", "tin", "pedot"]
DENSITY_UC_CM2: dict[str, float] = {
    "pt": 50.0,
    "ptir": 50.0,
    "airof": 1000.0,
    "sirof": 1000.0,
    "tin": 900.0,
    "pedot": 2300.0,
}
"""Default limit of charge density per phase for an electrode's material, in uC/cm^2 of geometric area.

The lower ends of what is reported to be reversible: Pt and PtIr 50 to 150, activated and sputtered iridium oxide 1000
to 5000 [1]_, titanium nitride 900 [2]_, PEDOT 2300 [3]_. They protect the electrode; that tissue stands them is not
said.

.. [1] Cogan (2008), Annu. Rev. Biomed. Eng. 10, 275-309, table 2.
.. [2] Weiland, Anderson & Humayun (2002), IEEE Trans. Biomed. Eng. 49, 1574-1579.
.. [3] Cui & Zhou (2007), IEEE Trans. Neural Syst. Rehabil. Eng. 15, 502-508.
"""

SHANNON_MIN_AREA_UM2 = 2000.0
"""Smallest electrode for which the Shannon criterion says anything (Cogan et al. 2016, J. Neural Eng. 13, 021001)."""

_Positive = Annotated[float, Field(gt=0.0, le=1e12, allow_inf_nan=False)]
_Time = Annotated[float, Field(ge=0.0, le=g.MAX_PHASE_US, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[\w.-]+$")]


class _Section(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen, unknown keys refused."""


class ElectrodeConfig(_Section, frozen=True, extra="forbid"):
    """One stimulating electrode and its limits; a train over any of them is refused, never made smaller.

    Attributes
    ----------
    name : str
        What programs call it. Its number, which the stimulator is sent, is its place in the list, from 0.
    area_um2 : float
        Geometric area, in um^2.
    material : {"pt", "ptir", "airof", "sirof", "tin", "pedot"}
        Gives the default of `density_uc_cm2`.
    impedance_kohm : float
        Measured impedance, in kOhm; with the current it gives the voltage that is held against `compliance_v`.
    amplitude_ua : float
        Greatest current of a phase, in uA.
    charge_nc : float
        Greatest charge of a phase, in nC. The default is what microelectrodes did no harm with.
    density_uc_cm2 : float, optional
        Greatest charge density of a phase, in uC/cm^2; the material's where it is not given.
    shannon_k : float, optional
        k of the Shannon criterion; none by default. Refused below 2000 um^2, where it does not hold.
    balance_nc, balance_fraction : float
        Greatest difference between the charges of the two phases, in nC and as a part of the first; both hold.
    interphase_us : float
        Longest pause between the phases, in us.
    rate_hz : float
        Greatest rate of pulses, within a train and between trains, in Hz: no two pulses of the electrode start closer
        than 1 / rate_hz. Between trains it counts from the latest end of the train before.
    pulses : int
        Most pulses of a train.
    duration_ms : float
        Longest train, in ms.
    interval_us : float
        Shortest time from the end of a pulse to the start of the next, within a train and between trains, in us.
    minute_uc, session_uc : float
        Greatest dose of any 60 s and of the session, restarts included: the charge of all phases that are the larger of
        their pulse, in uC.
    """

    name: _Name
    area_um2: _Positive
    material: Material
    impedance_kohm: Annotated[float, Field(gt=0.0, le=1e5, allow_inf_nan=False)]
    amplitude_ua: _Positive = 100.0
    charge_nc: _Positive = 4.0
    density_uc_cm2: _Positive | None = None
    shannon_k: Annotated[float, Field(ge=-5.0, le=3.0, allow_inf_nan=False)] | None = None
    balance_nc: Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)] = 0.1
    balance_fraction: Annotated[float, Field(ge=0.0, le=0.1, allow_inf_nan=False)] = 0.01
    interphase_us: _Time = 100.0
    rate_hz: _Positive = 300.0
    pulses: Annotated[int, Field(ge=1, le=g.MAX_PULSES)] = 200
    duration_ms: Annotated[float, Field(gt=0.0, le=g.MAX_TRAIN_US / 1000.0, allow_inf_nan=False)] = 1000.0
    interval_us: _Time = 500.0
    minute_uc: _Positive = 10.0
    session_uc: _Positive = 500.0

    @pydantic.model_validator(mode="after")
    def _shannon_applies(self) -> "ElectrodeConfig":
        if self.shannon_k is not None and self.area_um2 < SHANNON_MIN_AREA_UM2:
            raise PydanticCustomError(
                "combination",
                "electrode {name} has {area} um2, and the Shannon criterion does not hold for microelectrodes below "
                "{least} um2: leave shannon_k out and limit charge_nc",
                {
                    "key": "stimulation.electrodes",
                    "name": self.name,
                    "area": f"{self.area_um2:g}",
                    "least": f"{SHANNON_MIN_AREA_UM2:g}",
                },
            )
        return self

    @property
    def density_limit_uc_cm2(self) -> float:
        """The limit of charge density that holds, in uC/cm^2."""
        return DENSITY_UC_CM2[self.material] if self.density_uc_cm2 is None else self.density_uc_cm2


class ProgramConfig(_Section, frozen=True, extra="forbid"):
    """A train of equal biphasic pulses.

    Attributes
    ----------
    name, electrode : str
        What it is called, and the electrode that it is for.
    amplitude_ua, phase_us : float
        Current and length of the first phase; cathodic is negative.
    interphase_us : float
        Pause between the phases.
    amplitude2_ua, phase2_us : float, optional
        Current (of opposite sign) and length of the second phase; where not given, the opposite of the first, and as
        long.
    pulses : int
        How many.
    period_us : float
        From the start of a pulse to that of the next; needed for more than one.
    """

    name: _Name
    electrode: _Name
    amplitude_ua: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
    phase_us: _Positive
    interphase_us: _Time = 0.0
    amplitude2_ua: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] | None = None
    phase2_us: _Time | None = None
    pulses: Annotated[int, Field(ge=1, le=g.MAX_PULSES)] = 1
    period_us: Annotated[float, Field(ge=0.0, le=g.MAX_PERIOD_US, allow_inf_nan=False)] = 0.0


class TriggerConfig(_Section, frozen=True, extra="forbid"):
    """The program that an event of the decoder (the number of its bit) asks for."""

    event: Annotated[int, Field(ge=0, lt=MAX_EVENTS)]
    program: _Name


class ScheduleConfig(_Section, frozen=True, extra="forbid"):
    """What mode `open_loop` asks for: a program every `period_ms`, each time moved by up to `jitter_ms` either way."""

    program: _Name
    period_ms: Annotated[float, Field(ge=1.0, le=3.6e6, allow_inf_nan=False)]
    jitter_ms: Annotated[float, Field(ge=0.0, le=1.8e6, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class StimulationConfig(_Section, frozen=True, extra="forbid"):
    """Everything that stimulation of a session may do. The defaults are meant to be too low rather than too high.

    Attributes
    ----------
    electrodes : tuple of ElectrodeConfig
        At most 32.
    programs : tuple of ProgramConfig
        At most 16.
    triggers : tuple of TriggerConfig
        One program an event at most.
    schedule : ScheduleConfig, optional
        Mode `open_loop` needs it.
    mode : {"live", "dry_run", "open_loop", "sham", "yoked"}
        See `stimulation`. The default sends nothing.
    blind : bool
        Keep from the operator which mode this is, and what of it was sent.
    yoked_session : Path, optional
        Log of the session whose trains mode `yoked` repeats.
    lease_ms : float
        A stimulator that hears nothing of the gate for so long stops by itself.
    start_within_ms : float
        A stimulator begins a train within this time of its issue or never; at most `lease_ms`. The gate counts with the
        latest moment, so that trains on one electrode stand at least this far apart.
    longest_arming_s : float
        Longest time that one arming may be for.
    heartbeat_ms : float
        The operator's heartbeat must be heard this often; 0 for none.
    peers : tuple of str
        Names of processes that must be alive: at most 8.
    peer_timeout_ms : float
        A peer unheard of for longer is lost.
    late_ticks : int
        Late ticks in a row that disarm.
    total_amplitude_ua : float
        Greatest sum of the currents of all trains that overlap in time, in uA.
    total_minute_uc, total_session_uc : float
        Greatest doses on all electrodes together, in uC.
    compliance_v : float
        Greatest voltage that the stimulator can drive, in V.
    key_file : Path, optional
        Arming needs the key in it; needed in every mode but `dry_run`.
    ledger : Path, optional
        Where the dose is kept over restarts; needed in every mode that sends.
    stop_file : Path, optional
        While there is such a file, nothing is armed.
    """

    electrodes: Annotated[tuple[ElectrodeConfig, ...], Field(min_length=1, max_length=g.MAX_ELECTRODES)]
    programs: Annotated[tuple[ProgramConfig, ...], Field(max_length=MAX_PROGRAMS)] = ()
    triggers: tuple[TriggerConfig, ...] = ()
    schedule: ScheduleConfig | None = None
    mode: Mode = "dry_run"
    blind: bool = False
    yoked_session: Path | None = None
    lease_ms: Annotated[float, Field(ge=20.0, le=1000.0, allow_inf_nan=False)] = 100.0
    start_within_ms: Annotated[float, Field(ge=0.1, le=g.MAX_START_WITHIN_NS / 1e6, allow_inf_nan=False)] = 10.0
    longest_arming_s: Annotated[float, Field(gt=0.0, le=86_400.0, allow_inf_nan=False)] = 600.0
    heartbeat_ms: Annotated[float, Field(ge=0.0, le=60_000.0, allow_inf_nan=False)] = 2000.0
    peers: Annotated[tuple[_Name, ...], Field(max_length=g.MAX_PEERS)] = ()
    peer_timeout_ms: Annotated[float, Field(ge=1.0, le=60_000.0, allow_inf_nan=False)] = 1000.0
    late_ticks: Annotated[int, Field(ge=1, le=10_000)] = 5
    total_amplitude_ua: _Positive = 200.0
    total_minute_uc: _Positive = 20.0
    total_session_uc: _Positive = 1000.0
    compliance_v: Annotated[float, Field(gt=0.0, le=1000.0, allow_inf_nan=False)] = 5.0
    key_file: Path | None = None
    ledger: Path | None = None
    stop_file: Path | None = None

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "StimulationConfig":
        electrodes = _unique("electrodes", [e.name for e in self.electrodes])
        programs = _unique("programs", [p.name for p in self.programs])
        _unique("peers", list(self.peers))
        _unique("triggers", [f"event {t.event}" for t in self.triggers])
        for i, program in enumerate(self.programs):
            _known(f"programs.{i}.electrode", program.electrode, electrodes)
        for i, trigger in enumerate(self.triggers):
            _known(f"triggers.{i}.program", trigger.program, programs)
        if self.schedule is not None:
            _known("schedule.program", self.schedule.program, programs)
            if self.schedule.jitter_ms > self.schedule.period_ms / 2:
                raise _wrong("schedule.jitter_ms", "at most half of period_ms", f"{self.schedule.jitter_ms:g}")
        if self.start_within_ms > self.lease_ms:
            raise _wrong("start_within_ms", f"at most lease_ms ({self.lease_ms:g})", f"{self.start_within_ms:g}")
        self._mode_has_what_it_needs()
        limits = build_gate(self)[0]
        for i, train in enumerate(build_programs(self)):
            reason = g.check_static(limits, train)
            if reason != g.ALLOWED:
                raise PydanticCustomError(
                    "combination",
                    "program {name} would never pass the gate: {why}",
                    {
                        "key": f"stimulation.programs.{i}",
                        "name": self.programs[i].name,
                        "why": explain(limits, train, reason),
                    },
                )
        return self

    def _mode_has_what_it_needs(self) -> None:
        if self.mode == "open_loop" and self.schedule is None:
            raise _wrong("schedule", "a table for mode open_loop: program, period_ms", "nothing")
        if (self.mode == "yoked") != (self.yoked_session is not None):
            raise _wrong("yoked_session", "the log of a session in mode yoked, and only there", f"mode {self.mode}")
        if self.mode != "dry_run" and self.key_file is None:
            raise _wrong("key_file", f"a file with the key for arming in mode {self.mode}", "nothing")
        if is_sent(self.mode) and self.ledger is None:
            raise _wrong("ledger", f"a file in which the dose survives restarts, in mode {self.mode}", "nothing")


def is_sent(mode: str | int) -> bool:
    """Say whether a mode (its name or its number) sends what the gate allows."""
    name = mode if isinstance(mode, str) else MODES[mode]
    return name in ("live", "open_loop", "yoked")


def build_gate(config: StimulationConfig) -> NDArray[Any]:
    """Return a disarmed gate with the limits of a configuration, shape (1,). Nothing is granted by a ledger yet."""
    gate: NDArray[Any] = g.make_gate(len(config.electrodes))
    limits = gate[0]
    limits["n_peers"] = len(config.peers)
    limits["sends"] = is_sent(config.mode)
    for i, electrode in enumerate(config.electrodes):
        for name in ("amplitude_ua", "area_um2", "balance_fraction", "interphase_us", "rate_hz", "pulses"):
            limits[name][i] = getattr(electrode, name)
        limits["interval_us"][i] = electrode.interval_us
        limits["impedance_kohm"][i] = electrode.impedance_kohm
        limits["charge_pc"][i] = electrode.charge_nc * 1e3
        limits["density_uc_cm2"][i] = electrode.density_limit_uc_cm2
        # a power of ten is not exact: two units down is surely not above it
        power = math.inf if electrode.shannon_k is None else 10.0**electrode.shannon_k * (1.0 - 2.0**-51)
        limits["shannon"][i] = power
        limits["balance_pc"][i] = electrode.balance_nc * 1e3
        limits["duration_us"][i] = electrode.duration_ms * 1e3
        limits["minute_pc"][i] = electrode.minute_uc * 1e6
        limits["session_pc"][i] = electrode.session_uc * 1e6
    limits["compliance_mv"] = config.compliance_v * 1e3
    limits["total_amplitude_ua"] = config.total_amplitude_ua
    limits["minute_pc"][g.TOTAL] = config.total_minute_uc * 1e6
    limits["session_pc"][g.TOTAL] = config.total_session_uc * 1e6
    limits["start_within_ns"] = round(config.start_within_ms * 1e6)
    limits["longest_arming_ns"] = round(config.longest_arming_s * 1e9)
    limits["heartbeat_ns"] = round(config.heartbeat_ms * 1e6)
    limits["peer_timeout_ns"] = round(config.peer_timeout_ms * 1e6)
    limits["late_ticks"] = config.late_ticks
    return gate


def build_programs(config: StimulationConfig) -> NDArray[Any]:
    """Return the programs of a configuration as TRAIN records, in its order."""
    names = [electrode.name for electrode in config.electrodes]
    trains = np.zeros(len(config.programs), g.TRAIN)
    for i, program in enumerate(config.programs):
        train = trains[i]
        train["electrode"] = names.index(program.electrode)
        for name in ("amplitude_ua", "phase_us", "interphase_us", "pulses", "period_us"):
            train[name] = getattr(program, name)
        train["amplitude2_ua"] = -program.amplitude_ua if program.amplitude2_ua is None else program.amplitude2_ua
        train["phase2_us"] = program.phase_us if program.phase2_us is None else program.phase2_us
        train["program"] = i
    return trains


def explain(gate: Any, train: Any, reason: int) -> str:
    """Say which limit a train exceeds: what it allows, what the train has, and what to do.

    Parameters
    ----------
    gate, train : GATE and TRAIN records
        As given to `check` or `check_static`.
    reason : int
        What that returned.
    """
    e = int(train["electrode"])
    if not 0 <= e < int(gate["n_electrodes"]):
        return f"{g.REASON_TEXTS[reason]} (it has number {e})"
    charge, strongest = g.charge_pc(train), max(abs(float(train["amplitude_ua"])), abs(float(train["amplitude2_ua"])))
    dose, area = charge * float(train["pulses"]), float(gate["area_um2"][e])
    pulse = float(train["phase_us"] + train["interphase_us"] + train["phase2_us"])
    density = charge * 100.0 / area
    period = float(train["period_us"])
    told: dict[int, tuple[float, float, str, str]] = {
        g.AMPLITUDE: (gate["amplitude_ua"][e], strongest, "uA", "lower amplitude_ua"),
        g.TOTAL_AMPLITUDE: (gate["total_amplitude_ua"], strongest, "uA", "lower amplitude_ua"),
        g.CHARGE: (gate["charge_pc"][e] / 1e3, charge / 1e3, "nC", "lower amplitude_ua or phase_us"),
        g.DENSITY: (gate["density_uc_cm2"][e], density, "uC/cm2", "lower amplitude_ua or phase_us"),
        g.SHANNON: (
            math.log10(gate["shannon"][e] or math.nan),
            math.log10(max(density * charge * 1e-6, 1e-300)),
            "(the k of log10(D) = k - log10(Q))",
            "lower amplitude_ua or phase_us",
        ),
        g.BALANCE: (
            min(gate["balance_pc"][e], gate["balance_fraction"][e] * abs(train["amplitude_ua"]) * train["phase_us"])
            / 1e3,
            g.imbalance_pc(train) / 1e3,
            "nC of difference",
            "give both phases the same amplitude times length",
        ),
        g.INTERPHASE: (gate["interphase_us"][e], train["interphase_us"], "us", "shorten interphase_us"),
        g.RATE: (gate["rate_hz"][e], 1e6 / period if period else math.inf, "Hz", "lengthen period_us"),
        g.PULSES: (gate["pulses"][e], train["pulses"], "pulses", "ask for fewer pulses"),
        g.DURATION: (min(gate["duration_us"][e], g.MAX_TRAIN_US), g.duration_us(train), "us", "ask for fewer pulses"),
        g.COMPLIANCE: (
            gate["compliance_mv"] / 1e3,
            strongest * gate["impedance_kohm"][e] / 1e3,
            "V",
            "lower amplitude_ua, or correct impedance_kohm",
        ),
        g.MINUTE: (gate["minute_pc"][e] / 1e6, dose / 1e6, "uC", "ask for fewer or smaller pulses"),
        g.TOTAL_MINUTE: (gate["minute_pc"][g.TOTAL] / 1e6, dose / 1e6, "uC", "ask for fewer or smaller pulses"),
        g.SESSION: (gate["session_pc"][e] / 1e6, dose / 1e6, "uC", "ask for fewer or smaller pulses"),
        g.TOTAL_SESSION: (gate["session_pc"][g.TOTAL] / 1e6, dose / 1e6, "uC", "ask for fewer or smaller pulses"),
    }
    text = g.REASON_TEXTS[reason]
    if reason in (g.OVERLAP, g.INTERVAL):
        least = pulse + (float(gate["interval_us"][e]) if reason == g.INTERVAL else 0.0)
        return f"{text}; expected a period_us of at least {least:.12g}, got {period:.12g}: lengthen it"
    if reason not in told:
        return text
    limit, got, unit, remedy = told[reason]
    return f"{text}; expected at most {limit:.12g} {unit}, got {got:.12g}: {remedy}"


def _unique(key: str, names: list[str]) -> list[str]:
    """Return the names, none of which may come twice."""
    for name in names:
        if names.count(name) > 1:
            raise _wrong(key, "each only once", f"{name} {names.count(name)} times")
    return names


def _known(key: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise _wrong(key, "one of " + (", ".join(names) or "none, since none is given"), name)


def _wrong(key: str, expected: str, got: str) -> PydanticCustomError:
    return PydanticCustomError(
        "combination",
        "{key}: expected {expected}, got {got}",
        {"key": f"stimulation.{key}", "expected": expected, "got": got},
    )
