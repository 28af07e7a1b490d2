"""The same network in Brian2 and NEST, in an interpreter of their own that takes turns with the caller.

Sixteen LIF neurons, all to all, reward-modulated STDP with an eligibility trace and constant dopamine, steps of 1 ms:
as near to ours as each simulator comes by its own means. "long" is one run; "stepped" hands in new stimuli every step,
as a closed loop has to. This file is both sides: `Peers` starts it with the interpreter that has the simulators, and
says over a pipe what to run.
"""

import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

N_LONG, N_STEPPED = 2000, 50

TAU_MS, THRESHOLD_MV, REFRACTORY_MS = 20.0, 15.0, 2.0
TAU_STDP_MS, TAU_ELIGIBILITY_MS = 20.0, 1000.0
A_PLUS_MV, A_MINUS_MV, RATE_PER_S, DOPAMINE, W_MAX_MV = 0.1, 0.105, 1.0, 0.5, 4.0
MEAN_MV, SD_MV = 16.0, 10.0


class Peers:
    """The simulators that an interpreter has, ready to run.

    Parameters
    ----------
    python : str
        Path of the interpreter.

    Attributes
    ----------
    counts : dict
        Ticks in one call, by the name that `run` takes.
    notes : list of str
        What is not there, and why.
    """

    def __init__(self, python: str) -> None:
        self._child = subprocess.Popen(
            [python, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            ready = json.loads(self._answer())
        except ValueError:
            self._child.kill()
            raise RuntimeError(f"{python} could not run {Path(__file__).name}") from None
        self.counts: dict[str, int] = ready["counts"]
        self.notes: list[str] = ready["notes"]

    def run(self, name: str) -> None:
        """Run one of `counts`, and return when it is over."""
        assert self._child.stdin is not None
        self._child.stdin.write(name + "\n")
        self._child.stdin.flush()
        if self._answer().strip() != "done":
            raise RuntimeError(f"{name} failed; the child said why")

    def _answer(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate()


def brian(numpy: Any) -> dict[str, tuple[Callable[[], Any], int]]:
    """Brian2, compiled by its Cython target."""
    b: Any = importlib.import_module("brian2")
    b.prefs.codegen.target = "cython"
    b.defaultclock.dt = 1.0 * b.ms
    noise = numpy.random.default_rng(0).normal(MEAN_MV, SD_MV, (N_LONG, 16)) * b.mV
    space = {
        "tau": TAU_MS * b.ms, "tau_stdp": TAU_STDP_MS * b.ms, "tau_c": TAU_ELIGIBILITY_MS * b.ms,
        "theta": THRESHOLD_MV * b.mV, "a_plus": A_PLUS_MV * b.mV, "a_minus": A_MINUS_MV * b.mV,
        "w_max": W_MAX_MV * b.mV, "gain": RATE_PER_S * DOPAMINE / b.second,
    }  # fmt: skip

    def network(drive: str, more: dict[str, Any]) -> tuple[Any, Any]:
        neurons = b.NeuronGroup(
            16, f"dv/dt = ({drive} - v) / tau : volt (unless refractory)\nI : volt", threshold="v >= theta",
            reset="v = 0*mV", refractory=REFRACTORY_MS * b.ms, method="euler", namespace=space | more,
        )  # fmt: skip
        synapses = b.Synapses(
            neurons, neurons,
            """dc/dt = -c / tau_c : volt (clock-driven)
               w : volt
               dx/dt = -x / tau_stdp : 1 (event-driven)
               dy/dt = -y / tau_stdp : 1 (event-driven)""",
            on_pre="v_post += w; x += 1; c -= a_minus * y", on_post="y += 1; c += a_plus * x",
            method="exact", namespace=space, delay=1.0 * b.ms,
        )  # fmt: skip
        synapses.connect()
        synapses.w = "rand() * 0.5 * mV"
        synapses.run_regularly("w = clip(w + gain * c * dt, 0*mV, w_max)", dt=1.0 * b.ms)
        return b.Network(neurons, synapses), neurons

    # `t` runs on from call to call: the noise is read round and round
    long, _ = network("noise(t % period, i)", {"noise": b.TimedArray(noise, dt=1.0 * b.ms), "period": N_LONG * b.ms})
    stepped, neurons = network("I", {})
    drive, rows = neurons.variables["I"].get_value(), itertools.cycle(numpy.asarray(noise))

    def step() -> None:
        drive[:] = next(rows)

    # a run of one step takes tenths of a second to prepare: an operation within a run is what Brian2 has for loops
    stepped.add(b.NetworkOperation(step, dt=1.0 * b.ms))
    return {
        f"Brian2 {b.__version__}, long": (lambda: long.run(N_LONG * b.ms), N_LONG),
        f"Brian2 {b.__version__}, stepped": (lambda: stepped.run(N_LONG * b.ms), N_LONG),
    }


def nest(numpy: Any) -> dict[str, tuple[Callable[[], Any], int]]:
    """NEST, one thread; its dopamine is a train of spikes, its neurons are exact."""
    n: Any = importlib.import_module("nest")
    n.verbosity = n.VerbosityLevel.ERROR
    n.ResetKernel()
    n.resolution = 1.0
    n.local_num_threads = 1
    noise = numpy.random.default_rng(0).normal(MEAN_MV, SD_MV, (N_STEPPED, 16))
    cell = {
        "tau_m": TAU_MS, "C_m": TAU_MS, "E_L": 0.0, "V_m": 0.0, "V_reset": 0.0, "V_th": THRESHOLD_MV,
        "t_ref": REFRACTORY_MS, "tau_minus": TAU_STDP_MS,
    }  # fmt: skip
    neurons = n.Create("iaf_psc_delta", 16, params=cell)
    dopamine = n.Create("parrot_neuron")
    # five dopamine spikes a second are 0.005 per ms on average: ten times our dopamine, with pairs of a tenth
    n.Connect(n.Create("poisson_generator", params={"rate": 10_000.0 * RATE_PER_S * DOPAMINE / 1000.0}), dopamine)
    volume = n.Create("volume_transmitter", params={"deliver_interval": 1})
    n.Connect(dopamine, volume)
    n.CopyModel(
        "stdp_dopamine_synapse", "rewarded",
        {
            "volume_transmitter": volume, "A_plus": A_PLUS_MV / 10.0, "A_minus": A_MINUS_MV / 10.0,
            "tau_plus": TAU_STDP_MS, "tau_c": TAU_ELIGIBILITY_MS, "Wmin": 0.0, "Wmax": W_MAX_MV,
        },
    )  # fmt: skip
    n.Connect(neurons, neurons, syn_spec={"synapse_model": "rewarded", "weight": 0.25, "delay": 1.0})
    source = n.Create("noise_generator", params={"mean": 0.0, "std": SD_MV, "dt": 1.0})
    n.Connect(source, neurons)
    neurons.I_e = MEAN_MV
    # Simulate prepares and cleans up every time; Run, in between, is what NEST has for loops
    n.Prepare()

    def step() -> None:
        for k in range(N_STEPPED):
            neurons.I_e = noise[k]
            n.Run(1.0)

    return {
        f"NEST {n.__version__}, long": (lambda: n.Run(float(N_LONG)), N_LONG),
        f"NEST {n.__version__}, stepped": (step, N_STEPPED),
    }


@contextmanager
def _quiet_stdout() -> Iterator[Any]:
    """The simulators write to stdout, which is the caller's pipe: give them stderr, and the caller the pipe."""
    os = importlib.import_module("os")
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        yield pipe
    finally:
        pipe.close()


def serve() -> None:
    """Say what there is, then run what is asked for until the caller closes the pipe."""
    with _quiet_stdout() as pipe:
        found: dict[str, tuple[Callable[[], Any], int]] = {}
        notes = []
        for name, make in (("Brian2", brian), ("NEST", nest)):
            try:
                found |= make(importlib.import_module("numpy"))
            except Exception as error:  # not there, or not able to run beside the libraries that are
                notes.append(f"no {name}: {type(error).__name__}: {error}")
        print(json.dumps({"counts": {name: count for name, (_, count) in found.items()}, "notes": notes}), file=pipe)
        for line in sys.stdin:
            found[line.strip()][0]()
            print("done", file=pipe)


if __name__ == "__main__":
    serve()
