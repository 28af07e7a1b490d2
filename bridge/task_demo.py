"""`neuromod demo --task`: the cursor task through a daemon of its own, live, and what came of it."""

import contextlib
import json as as_json

from rich.console import Console
from rich.live import Live
from rich.table import Table

from neuromod.bridge.task import GOAL, Results, run_task
from neuromod.bridge.task_view import TaskView
from neuromod.bridge.warm import is_compiled, warm_loop
from neuromod.engine.centre_out import CentreOutTask, Condition

N_TRIALS = 400
N_TRIALS_TRUE = 500


def run_task_demo(*, seeds: int, true_time: bool, controls: bool, json: bool) -> int:
    """Let networks learn the task from reward alone; the body of `neuromod demo --task`.

    Parameters
    ----------
    seeds : int
        How many networks, one after the other.
    true_time : bool
        Over LSL by the clock, five to six minutes for a network; else in lock-step, as fast as the machine goes.
    controls : bool
        Play without learning, with rewards in another order, and sham, too.
    json : bool
        Print the summary as JSON on stdout, and no live view.

    Returns
    -------
    int
        0 where at least four networks in five reach 80 % in the last 100 trials, else 1.
    """
    console = Console(stderr=True)
    if not is_compiled():
        with console.status("compiling the real-time loop; about a minute, once per version"):
            warm_loop()
    conditions: tuple[Condition, ...] = ("reward", "frozen", "shuffled", "sham") if controls else ("reward",)
    view = TaskView()
    is_drawn = console.is_terminal and not json

    def progress(seed: int, condition: Condition, task: CentreOutTask) -> None:
        if not is_drawn:
            view.print_line(console)

    with Live(view, console=console, refresh_per_second=10) if is_drawn else contextlib.nullcontext():
        results = run_task(
            conditions=conditions,
            seeds=range(seeds),
            n_trials=N_TRIALS_TRUE if true_time else N_TRIALS,
            true_time=true_time,
            view=view,
            progress=progress,
        )
    summary = results.summary(last=100)
    if json:
        print(as_json.dumps(summary, indent=2))
    else:
        console.print(_table(results, summary["conditions"]))
        console.print(f"{summary['n_learnt']} of {seeds} networks reached {GOAL:.0%}, from reward alone")
    return 0 if summary["ok"] else 1


def _table(results: Results, conditions: dict[str, dict[str, object]]) -> Table:
    table = Table("condition", "success in the last 100 trials", "of all networks", title=f"centre-out, {results.mode}")
    for name, figures in conditions.items():
        shares, mean = figures["success"], figures["mean"]
        assert isinstance(shares, list)
        interval = figures.get("interval")
        span = f" ({interval[0]:.2f} to {interval[1]:.2f})" if isinstance(interval, list) else ""
        table.add_row(name, " ".join(f"{share:.2f}" for share in shares), f"{mean:.2f}{span}")
    return table
