"""Golden traces: what a device did on a recording, kept to compare later devices and versions with, bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.bridge.hil_config import Judgement, Status
from neuromod.bridge.hil_trace import Trace
from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.errors import ConfigError

FORMAT = 1
_PART = 1000
"""Ticks whose inputs share a digest."""


def save(path: Path, trace: Trace, made: dict[str, Any]) -> None:
    """Write a golden trace: spikes, membranes with the bits that are known, digests, versions and hashes.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    body = {key: made[key] for key in ("versions", "hashes", "device", "made_at")}
    arrays: dict[str, Any] = _arrays(trace) | {
        "meta": np.array(json.dumps({"format": FORMAT, "ticks": trace.n_ticks} | body))
    }
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another place for --golden") from None


def load(path: Path) -> dict[str, Any]:
    """Read a golden trace.

    Raises
    ------
    ConfigError
        If it is none.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        meta = json.loads(str(found.pop("meta")))
        if not isinstance(meta, dict):
            raise ValueError("it does not say what it is")
    except NO_ARRAYS as error:
        raise ConfigError(
            f"{path} is no golden trace ({error}); name another file, or one that is not there yet"
        ) from None
    if meta.get("format") != FORMAT:
        raise ConfigError(f"{path}: expected a golden trace of format {FORMAT}, got {meta.get('format')}: make it anew")
    return found | {"meta": meta}


def check(path: Path, golden: dict[str, Any], hashes: dict[str, Any]) -> None:
    """Refuse a golden trace of another recording or configuration.

    Raises
    ------
    ConfigError
        Says which.
    """
    for what in ("recording", "configuration"):
        if golden["meta"]["hashes"][what] != hashes[what]:
            raise ConfigError(
                f"{path} is of another {what} (SHA-256 {golden['meta']['hashes'][what][:12]}..., this one "
                f"{hashes[what][:12]}...): name the file that goes with it, or one that is not there yet"
            )


def compare(golden: dict[str, Any], trace: Trace) -> Judgement:
    """Compare a run with a golden trace."""
    now = _arrays(trace)
    n = min(len(golden["spikes"]), len(now["spikes"]))
    parts = zip(golden["inputs"].tolist(), now["inputs"].tolist(), strict=False)
    inputs = next((k for k, (a, b) in enumerate(parts) if a != b and (k + 1) * _PART <= n), None)
    spikes = (golden["spikes"][:n] != now["spikes"][:n]) | now["lost"][:n]
    mask = (golden["v_mask"][:n] & now["v_mask"][:n])[:, np.newaxis]
    v = (((golden["v"][:n] ^ now["v"][:n]) & mask) != 0).any(axis=1)
    wrong = spikes | v
    why = []
    if wrong.any():
        first = int(np.argmax(wrong))
        why.append(f"first at tick {first}, by its {'spikes' if spikes[first] else 'membranes'}")
    if inputs is not None:
        why.append(
            f"the stimuli themselves differ from tick {inputs * _PART} on: the loop before the device has changed"
        )
    n_golden = int(golden["meta"]["ticks"])
    if n_golden != trace.n_ticks:
        why.append(f"it has {n_golden:,} ticks, this run {trace.n_ticks:,}")
    states = str(golden["state"]), str(now["state"])
    if all(states) and states[0] != states[1] and n_golden == trace.n_ticks:
        why.append("the state at the end differs")
    found = int(wrong.sum())
    status: Status = "failed" if why else "passed"
    return Judgement("golden trace", "golden", "<= 0 ticks", f"{found:,} ticks", status, "; ".join(why), found, 0)


def _arrays(trace: Trace) -> dict[str, NDArray[Any]]:
    n = trace.n_ticks
    stimuli, modulation = trace.column("stimuli")[:n], trace.column("modulation")[:n]
    digests = [
        hashlib.sha256(stimuli[k : k + _PART].tobytes() + modulation[k : k + _PART].tobytes()).hexdigest()
        for k in range(0, n, _PART)
    ]
    last = trace.snapshots[-1] if trace.snapshots else None
    state = hashlib.sha256(last.device.tobytes()).hexdigest() if last is not None and last.n_ticks == n else ""
    return {
        "spikes": trace.column("device").astype(np.uint16),
        "lost": trace.column("lost").astype(np.bool_),
        "v": trace.column("v").astype(np.int32).reshape(-1, 16),
        "v_mask": trace.column("v_mask").astype(np.int32),
        "inputs": np.array(digests, dtype=np.str_),
        "state": np.array(state),
    }
