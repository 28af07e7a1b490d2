#!/usr/bin/env python3
"""Looks for bytes that break a parser, guided by the way that the code goes (atheris, libFuzzer).

    .venv/bin/python tests/fuzz/fuzz.py all --seconds 60
    .venv/bin/python tests/fuzz/fuzz.py ledger --seconds 300
    .venv/bin/python tests/fuzz/fuzz.py --list

What is worth keeping goes to `corpus/TARGET.txt`, what breaks something to `crashes/TARGET.txt`, see `kept.py`;
`test_corpus.py` replays both.
Needs `pip install -e '.[fuzz]'`. Exits with 1 where something broke.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MOST_INPUTS, MOST_BYTES = 100, 30_000
"""Of the corpus of a target. Smaller inputs go first: they say as much, and mutate better."""

HANGS_S = 20
RSS_MB = 3000


def main() -> int:
    """Fuzz one target or all; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", nargs="?", default="all", help="name of a target, or all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="0 for another one each time")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    arguments = parser.parse_args()
    sys.path[0] = str(HERE.parent)  # the folder `tests`, so that this folder is the package `fuzz`
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # compiled code cannot be followed, nor says what it reached beyond
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("fuzz: atheris is not installed; pip install -e '.[fuzz]' (Linux, Python before 3.14)", file=sys.stderr)
        return 2
    from fuzz.targets import TARGETS

    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    if arguments.target != "all" and arguments.target not in TARGETS:
        print(f"fuzz: no target {arguments.target!r}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    results = {}
    for name in names:
        results[name] = _fuzz(TARGETS[name], arguments.seconds, arguments.seed)
        if not arguments.json:
            print(f"{name:<18}" + "  ".join(f"{key} {value}" for key, value in results[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 1 if any(result["broke"] for result in results.values()) else 0


def _fuzz(target: Any, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; keep what it found."""
    from fuzz import kept

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        inputs, artifacts, merged = (Path(folder) / part for part in ("inputs", "artifacts", "merged"))
        for each in (inputs, artifacts, merged):
            each.mkdir()
        for number, data in enumerate([*kept.read(kept.CORPUS, target.name), *target.seeds()]):
            (inputs / str(number)).write_bytes(data)
        options = [f"-artifact_prefix={artifacts}/", f"-timeout={HANGS_S}", f"-rss_limit_mb={RSS_MB}"]
        options += [f"-max_len={target.max_bytes}", f"-seed={seed}", f"-max_total_time={int(seconds)}"]
        begun = time.monotonic()
        # what breaks ends the run: behind it, the fuzzer would find the same again and again
        told = _run(target.name, [*options, "-print_final_stats=1", str(inputs)])
        took_s = time.monotonic() - begun
        broke = list(artifacts.iterdir())
        for artifact in broke:
            kept.add_crash(target.name, artifact.read_bytes(), _what_broke(told))
        if broke:
            print(told[told.find(" === ") :][:3000], file=sys.stderr)
        elif "Done" not in told:
            raise RuntimeError(f"the fuzzer of {target.name} ended early:\n{told[-3000:]}")
        merging = _run(target.name, ["-set_cover_merge=1", f"-max_len={target.max_bytes}", str(merged), str(inputs)])
        found = sorted((path.read_bytes() for path in merged.iterdir()), key=len)[:MOST_INPUTS]
    total = list(itertools.accumulate(map(len, found)))
    found = [data for data, size in zip(found, total, strict=True) if size <= MOST_BYTES]
    if not found:
        raise RuntimeError(f"the corpus of {target.name} could not be merged:\n{merging[-3000:]}")
    kept.write_corpus(target.name, found)
    executions = _number(r"stat::number_of_executed_units: (\d+)", told)
    return {
        "seconds": round(took_s),
        "executions": executions,
        "per_s": round(executions / took_s),
        "coverage": _number(r"\bcov: (\d+)", told),
        "inputs": len(found),
        "bytes": sum(map(len, found)),
        "broke": len(broke),
    }


def _run(name: str, options: list[str]) -> str:
    """Run libFuzzer on a target; return what it said."""
    command = [sys.executable, str(HERE / "worker.py"), name]
    with tempfile.TemporaryDirectory(prefix="fuzz-again-") as folder:
        again = Path(folder) / "again"  # to merge, libFuzzer runs its own command once more
        again.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        again.chmod(0o755)
        done = subprocess.run(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"FUZZ_AGAIN": str(again)},
            check=False,
        )
    return done.stdout.decode(errors="replace")


def _number(pattern: str, text: str) -> int:
    return int(([*re.findall(pattern, text)] or ["0"])[-1])


def _what_broke(told: str) -> str:
    """Return the line of the fuzzer's output that names the exception, or what else ended the run."""
    found = re.search(r"(?<=Uncaught Python exception: ===\n).*|libFuzzer: .*", told)
    return found[0] if found else "ended the process"


if __name__ == "__main__":
    sys.exit(main())
