"""An offline sorter in a process of its own.

Sorters are large programs of others: one that is killed for lack of memory, or crashes in compiled code, then takes
nothing with it, and one that is interrupted leaves no thread behind.
"""

import collections
import contextlib
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError, NeuromodError

JOB, RECORDING, LOG, FOUND = "job.json", "recording.json", "sorter.log", "found.npz"
_POLL_S = 0.2
_PROGRESS = re.compile(r"([^\r\n|]*?):?\s+(\d+)%\|")
_SAID_LINES = 8


class SorterError(NeuromodError):
    """The offline sorter ended without a result."""


class Found(NamedTuple):
    """What an offline sorter found."""

    samples: NDArray[np.int64]
    """Of each spike, rising."""
    units: NDArray[np.int64]
    """Its unit, a place in `names`."""
    names: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> "Found":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["samples"], file["units"], tuple(str(name) for name in file["names"]))

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        partial = path.with_name(f"{path.name}.part")
        with partial.open("wb") as file:
            np.savez_compressed(file, samples=self.samples, units=self.units, names=np.array(self.names, dtype=np.str_))
        partial.replace(path)


def choose(name: str) -> str:
    """Return the sorter that is meant, if it can run here.

    Parameters
    ----------
    name : str
        Of a sorter of spikeinterface; "auto": lupin where torch is installed, or else tridesclous2.

    Raises
    ------
    ConfigError
        There is no such sorter, or it is not installed; says which are.
    """
    from spikeinterface.sorters import installed_sorters, sorter_dict

    if name == "auto":
        has_torch = importlib.util.find_spec("torch") is not None
        name = (
            "lupin" if has_torch and "lupin" in sorter_dict and sorter_dict["lupin"].is_installed() else "tridesclous2"
        )
    if name not in sorter_dict:
        raise ConfigError(f'spikeinterface knows no sorter "{name}"; it knows {", ".join(sorted(sorter_dict))}')
    if not sorter_dict[name].is_installed():
        how = " ".join(str(sorter_dict[name].installation_mesg).split())
        raise ConfigError(
            f'the sorter "{name}" is not installed; installed are {", ".join(sorted(installed_sorters()))}'
            + (f". To install it: {how:.300}" if how else "")
        )
    return name


def parameters_of(name: str, changed: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return all parameters of a sorter: its defaults, what differs from them, and the seed where it takes one.

    Raises
    ------
    ConfigError
        The sorter has no such parameter.
    """
    from spikeinterface.sorters import get_default_sorter_params

    known: dict[str, Any] = get_default_sorter_params(name)
    unknown = sorted(changed.keys() - known.keys())
    if unknown:
        raise ConfigError(
            f'the sorter "{name}" has no parameter {", ".join(unknown)}; it has {", ".join(sorted(known))}'
        )
    return known | ({"seed": seed} if "seed" in known else {}) | changed


def run(
    recording: Any,
    name: str,
    parameters: dict[str, Any],
    folder: Path,
    *,
    seed: int,
    n_jobs: int = 1,
    say: Callable[[str, float | None], None] = lambda what, share: None,
) -> Found:
    """Sort a recording in another process.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        Any: one that cannot be handed on is copied to a file first.
    name, parameters : str, dict
        The sorter, see `choose` and `parameters_of`.
    folder : Path
        For its files; made anew, and removed in the end, whatever the end is.
    seed : int
        Of all that is random.
    n_jobs : int
        Processes that the sorter may use.
    say : callable
        Told what the sorter is at, and which share of that is done, where it says.

    Raises
    ------
    SorterError
        It crashed, was killed, or found nothing at all; with the last it said.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if not recording.check_serializability("json"):
            say("copying the recording", None)
            recording = recording.save(folder=folder / "copy", progress_bar=False, verbose=False)
        recording.dump_to_json(folder / RECORDING, include_properties=True)
        job = {"sorter": name, "parameters": parameters, "seed": seed, "n_jobs": n_jobs}
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        log = folder / LOG
        with log.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "neuromod.sorting.sorter_process", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONHASHSEED": "0"},  # the order of sets is drawn anew otherwise
            )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL_S)
                    break
                say(*_state_of(log))
        finally:
            _end(child)
        if child.returncode != 0 or not (folder / FOUND).is_file():
            raise SorterError(_why(name, child.returncode, log))
        found = Found.load(folder / FOUND)
        if len(found.samples) == 0:
            raise SorterError(f'the sorter "{name}" found no spike; is there any signal, and is its scale right?')
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kill the process, where it still runs, and all that it started."""
    if child.poll() is None and os.name != "posix":
        child.kill()
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _state_of(log: Path) -> tuple[str, float | None]:
    """What the last progress bar in a log shows."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        found = _PROGRESS.findall(file.read().decode("utf-8", errors="replace"))
    return (found[-1][0].strip(), int(found[-1][1]) / 100.0) if found else ("starting", None)


def _why(name: str, code: int, log: Path) -> str:
    lines = (line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines())
    said = collections.deque(
        (line for line in lines if line and not _PROGRESS.match(line) and "inspect the runtime trace" not in line),
        _SAID_LINES,
    )
    how = f"was killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return (
        f'the sorter "{name}" {how if code < 0 else "failed"}; nothing was written. Try other parameters, or another '
        f"sorter (--sorter). It last said:\n" + "\n".join(f"  {line:.300}" for line in said)
    )


def _seed(first: int) -> None:
    """Make all that a sorter draws repeatable, also what it draws from generators that it does not seed."""
    import numba

    @numba.njit  # type: ignore[untyped-decorator]
    def seed_compiled(value: int) -> None:
        np.random.seed(value)  # noqa: NPY002  compiled code has a state of its own

    random.seed(first)
    np.random.seed(first)  # noqa: NPY002
    seed_compiled(first)
    new_generator = np.random.default_rng
    numbers = itertools.count()

    def default_rng(seed: Any = None) -> np.random.Generator:
        return new_generator([first, next(numbers)] if seed is None else seed)

    np.random.default_rng = default_rng


def main() -> None:
    """Sort what the folder named on the command line describes."""
    import spikeinterface as si
    from spikeinterface.sorters import run_sorter

    folder = Path(sys.argv[1])
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    _seed(job["seed"])
    si.set_global_job_kwargs(n_jobs=job["n_jobs"], progress_bar=True)
    sorting = run_sorter(
        job["sorter"],
        si.load(folder / RECORDING),
        folder=folder / "sorter",
        verbose=True,  # or some show no progress
        raise_error=True,
        **job["parameters"],
    )
    spikes = sorting.to_spike_vector()
    Found(
        spikes["sample_index"].astype(np.int64),
        spikes["unit_index"].astype(np.int64),
        tuple(str(unit) for unit in sorting.unit_ids),
    ).save(folder / FOUND)


if __name__ == "__main__":
    main()
