"""What a run of hardware in the loop finds: mismatches, times, the first divergence and the state around it."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuromod.bridge.saturation import Saturation
from neuromod.engine.fixed_registers import REGISTERS, Register
from neuromod.engine.layout import N_CHANNELS

Kind = Literal["spikes", "membranes", "state"]

MADE_BY_TICKS = (
    "spikes", "coincidence_left", "inhibition_left", "v", "refractory_left", "since_spike", "pre_trace", "post_trace",
    "eligibility", "weights", "tick",
)  # fmt: skip
"""Registers that ticks write, in the order in which one does."""

_MOST_SNAPSHOTS = 400
_BITS = np.arange(N_CHANNELS)


@dataclass(frozen=True, slots=True)
class WordDifference:
    """A number of the state that differs."""

    register: Register
    index: tuple[int, ...]
    expected: int
    found: int

    @property
    def name(self) -> str:
        """As in FIXED_POINT.md, with its index: `weights[3][5]`."""
        return self.register.name + "".join(f"[{i}]" for i in self.index)

    def describe(self) -> str:
        """The register and both values, in decimal and in its own format."""
        scale, r = 2.0**self.register.fraction, self.register
        unit = f" {r.unit}" if r.unit else ""
        return (
            f"{self.name}: expected {self.expected} ({self.expected / scale:.10g}{unit} in {r.format}), "
            f"found {self.found} ({self.found / scale:.10g}{unit})"
        )

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        scale = 2.0**self.register.fraction
        flat = int(np.ravel_multi_index(self.index, self.register.shape)) if self.index else 0
        return {
            "register": self.register.name, "index": list(self.index), "address": self.register.address + flat,
            "format": self.register.format, "unit": self.register.unit, "expected": self.expected, "found": self.found,
            "expected_value": self.expected / scale, "found_value": self.found / scale,
        }  # fmt: skip


def differing_words(expected: NDArray[Any], found: NDArray[Any]) -> list[WordDifference]:
    """Return the numbers of two states that differ: parameters first, then in the order in which a tick makes them."""
    parameters = [r for r in REGISTERS if r.name not in MADE_BY_TICKS]
    made = sorted((r for r in REGISTERS if r.name in MADE_BY_TICKS), key=lambda r: MADE_BY_TICKS.index(r.name))
    words = []
    for register in (*parameters, *made):
        one, other = np.asarray(expected[0][register.name]), np.asarray(found[0][register.name])
        for where in np.argwhere(one != other):
            index = tuple(int(i) for i in where)
            words.append(WordDifference(register, index, int(one[index]), int(other[index])))
    return words


class Snapshot(NamedTuple):
    """The whole state of both after so many ticks."""

    n_ticks: int
    reference: NDArray[Any]
    device: NDArray[Any]
    words: list[WordDifference]


class Ring:
    """The newest ticks, one row each; row = tick modulo `length`."""

    length = 8192

    def __init__(self, stimuli_type: DTypeLike) -> None:
        n = self.length
        self.loop_tick = np.zeros(n, np.int64)
        self.stimuli = np.zeros((n, N_CHANNELS), stimuli_type)
        self.modulation = np.zeros((n, 5), np.int64)
        self.reference_spikes, self.device_spikes = np.zeros(n, np.uint16), np.zeros(n, np.uint16)
        self.reference_v, self.device_v = np.zeros((n, N_CHANNELS), np.int32), np.zeros((n, N_CHANNELS), np.int32)
        self.v_mask = np.zeros(n, np.int32)
        self.float_spikes, self.has_float = np.zeros(n, np.uint16), np.zeros(n, np.bool_)
        self.is_lost, self.is_repaired = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.round_trip_ns, self.clocks = np.zeros(n, np.int64), np.zeros(n, np.int32)
        self.submitted_at, self.answered_at, self.t_tick = np.zeros(n), np.zeros(n), np.full(n, np.nan)

    def rows(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the rows of ticks `first` to `last` - 1."""
        return np.arange(first, last) % self.length


@dataclass
class Divergence:
    """Where device and reference first differ, and what was around it."""

    kind: Kind
    tick: int
    loop_tick: int
    first: int = 0
    """Tick of the first row below."""
    n_after: int = 0
    stimuli: NDArray[Any] = field(default_factory=lambda: np.zeros((0, N_CHANNELS)))
    modulation: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    spikes: NDArray[np.uint16] = field(default_factory=lambda: np.zeros((0, 2), np.uint16))
    """Reference, device."""
    v: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2, N_CHANNELS), np.int32))
    v_mask: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    snapshot: Snapshot | None = None
    """The whole state, read as soon after it as could be."""

    @property
    def channels(self) -> list[int]:
        """Channels that differ at its tick, by spikes or membranes."""
        row = self.tick - self.first
        if not 0 <= row < len(self.spikes):
            return []
        spikes = (int(self.spikes[row, 0]) ^ int(self.spikes[row, 1])) >> _BITS & 1
        v = (self.v[row, 0] ^ self.v[row, 1]) & self.v_mask[row]
        return [int(i) for i in np.flatnonzero(spikes | (v != 0)) if self.kind != "state"]

    def keep(self, ring: Ring, first: int, last: int) -> None:
        """Keep the ticks `first` to `last` - 1."""
        at = ring.rows(first, last)
        self.first, self.n_after = first, last - self.tick
        self.stimuli, self.modulation = ring.stimuli[at].copy(), ring.modulation[at].copy()
        self.spikes = np.stack([ring.reference_spikes[at], ring.device_spikes[at]], axis=1)
        self.v = np.stack([ring.reference_v[at], ring.device_v[at]], axis=1)
        self.v_mask = ring.v_mask[at].copy()


class Trace:
    """Everything a run found. Arrays have one item a tick."""

    def __init__(self) -> None:
        self.n_ticks = self.n_submitted = 0
        self.spike_mismatches = self.membrane_mismatches = 0
        """Ticks with at least one."""
        self.membranes_compared = 0
        self.v_bits = 0
        self.lost = self.repaired = self.missed = self.stray_answers = self.returns = self.unread_states = 0
        self.states_compared = self.state_mismatches = 0
        self.why_no_state = ""
        self.is_device_gone = False
        self.divergence: Divergence | None = None
        self.events: list[tuple[int, str]] = []
        self.first_counts: dict[str, int] = {}
        self.counts: list[tuple[int, dict[str, int]]] = []
        self.snapshots: list[Snapshot] = []
        self.weights: list[tuple[int, NDArray[np.int64]]] = []
        """Of the reference, now and then: ticks before it, and Q8.24, shape (16, 16)."""
        self._weights_every = 50
        self.float_counts = np.zeros((3, N_CHANNELS), np.int64)
        """Spikes per channel of the reference, of the loop's network, and of both at the same tick."""
        self.saturation = Saturation()
        """Of the reference in fixed point; of another, no tick is looked at."""
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add_inputs(self, words: NDArray[Any], modulation: NDArray[np.int64], *, keep: bool) -> None:
        """Keep what drove ticks, where that is wanted."""
        if keep:
            self._add("stimuli", words)
            self._add("modulation", modulation)

    def add_ticks(self, ring: Ring, first: int, last: int, *, keep_v: bool) -> tuple[Kind, int] | None:
        """Compare and keep the ticks `first` to `last` - 1; return of the first that differs how, and which it is."""
        at = ring.rows(first, last)
        lost = ring.is_lost[at]
        reference, device = ring.reference_spikes[at], ring.device_spikes[at]
        spikes = (reference != device) & ~lost
        mask = ring.v_mask[at]
        device_v = ring.device_v[at]
        v = (((ring.reference_v[at] ^ device_v) & mask[:, np.newaxis]) != 0).any(axis=1)
        self.n_ticks = last
        self.spike_mismatches += int(spikes.sum())
        self.membrane_mismatches += int(v.sum())
        self.membranes_compared += int((mask != 0).sum())
        self.v_bits |= int(np.bitwise_or.reduce(mask))
        self.lost += int(lost.sum())
        self.repaired += int(ring.is_repaired[at].sum())
        self._add_float(reference, ring.float_spikes[at], ring.has_float[at])
        for name, part in (
            ("reference", reference), ("device", device), ("float", ring.float_spikes[at]), ("lost", lost),
            ("wrong", spikes | v), ("round_trip_ns", ring.round_trip_ns[at]), ("clocks", ring.clocks[at]),
            ("answered_at", ring.answered_at[at]), ("t_tick", ring.t_tick[at]),
        ):  # fmt: skip
            self._add(name, part)
        if keep_v:
            self._add("v", device_v)
            self._add("v_mask", mask)
        if not (spikes | v).any():
            return None
        k = int(np.argmax(spikes | v))
        return ("spikes" if spikes[k] else "membranes"), first + k

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a comparison of the whole state; every other one is left out where there are too many."""
        self.states_compared += 1
        self.state_mismatches += len(snapshot.words)
        self.snapshots.append(snapshot)
        if len(self.snapshots) > _MOST_SNAPSHOTS:
            del self.snapshots[1:-1:2]

    def add_weights(self, n_ticks: int, weights: NDArray[np.int64]) -> None:
        """Keep weights of the reference, ever more seldom."""
        if self.weights and n_ticks < self.weights[-1][0] + self._weights_every:
            return
        self.weights.append((n_ticks, weights.copy()))
        if len(self.weights) > _MOST_SNAPSHOTS:
            del self.weights[1::2]
            self._weights_every *= 2

    def column(self, name: str) -> NDArray[Any]:
        """Return one of reference, device, float (spikes), lost, wrong, round_trip_ns, clocks, answered_at, t_tick.

        Also stimuli, modulation, v and v_mask where they were kept.
        """
        parts = self._parts.get(name, [])
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0] if parts else np.empty(0, np.int64)

    def link_counts(self) -> dict[str, int]:
        """Return by how much each count of the link rose during the run."""
        last = self.counts[-1][1] if self.counts else {}
        return {name: value - self.first_counts.get(name, 0) for name, value in last.items()}

    def _add(self, name: str, part: NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(part.copy())

    def _add_float(self, reference: NDArray[np.uint16], loop: NDArray[np.uint16], known: NDArray[np.bool_]) -> None:
        for row, masks in enumerate((reference[known], loop[known], reference[known] & loop[known])):
            self.float_counts[row] += (masks[:, np.newaxis] >> _BITS & 1).sum(axis=0)
