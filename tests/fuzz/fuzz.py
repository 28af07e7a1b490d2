#!/usr/bin/env python3
"""Looks for bytes that break a parser, guided by the way that the code goes (atheris, libFuzzer).

    .venv/bin/python tests/fuzz/fuzz.py all --seconds 60
    .venv/bin/python tests/fuzz/fuzz.py ledger --seconds 300
    .venv/bin/python tests/fuzz/fuzz.py --list

What is worth keeping goes to `corpus/TARGET`, what breaks something to `crashes/TARGET`; `test_corpus.py` replays both.
Needs `pip install -e '.[fuzz]'`. Exits with 1 where something broke.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CORPUS, CRASHES = HERE / "corpus", HERE / "crashes"
MOST_FILES, MOST_BYTES = 100, 60_000
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
        results[name] = _fuzz(name, TARGETS[name].seeds(), TARGETS[name].max_bytes, arguments)
        if not arguments.json:
            print(f"{name:<18}" + "  ".join(f"{key} {value}" for key, value in results[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 1 if any(result["broke"] for result in results.values()) else 0


def _fuzz(name: str, seeds: list[bytes], max_bytes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one target in a process of its own; keep what it found."""
    corpus, crashes = CORPUS / name, CRASHES / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        grown, artifacts, merged = (Path(folder) / part for part in ("grown", "artifacts", "merged"))
        for each in (grown, artifacts, merged):
            each.mkdir()
        for number, seed in enumerate(seeds):
            (grown / f"seed{number}").write_bytes(seed)
        begun = time.monotonic()
        options = [f"-artifact_prefix={artifacts}/", f"-timeout={HANGS_S}", f"-rss_limit_mb={RSS_MB}"]
        options += [f"-max_len={max_bytes}", f"-seed={arguments.seed}", "-print_final_stats=1"]
        # what breaks ends the run: behind it, the fuzzer would find the same again and again
        told = _run(name, [*options, f"-max_total_time={int(arguments.seconds)}", str(grown), str(corpus)])
        seconds = time.monotonic() - begun
        executions = _number(r"stat::number_of_executed_units: (\d+)", told)
        coverage = _number(r"\bcov: (\d+)", told)
        broke = list(artifacts.glob("*"))
        for artifact in broke:
            crashes.mkdir(parents=True, exist_ok=True)
            artifact.replace(crashes / artifact.name)
        if broke:
            print(told[told.find(" === ") :][:3000], file=sys.stderr)
        elif "Done" not in told:
            raise RuntimeError(f"the fuzzer of {name} ended early:\n{told[-3000:]}")
        _run(name, ["-merge=1", f"-max_len={max_bytes}", str(merged), str(grown), str(corpus)])
        n_files, n_bytes = _keep(merged, corpus)
    return {
        "seconds": round(seconds),
        "executions": executions,
        "per_s": round(executions / max(seconds, 1e-9)),
        "coverage": coverage,
        "corpus": n_files,
        "bytes": n_bytes,
        "broke": len(broke),
    }


def _run(name: str, options: list[str]) -> str:
    """Run libFuzzer on a target; return what it said."""
    command = [sys.executable, str(HERE / "worker.py"), name]
    with tempfile.TemporaryDirectory(prefix="fuzz-again-") as folder:
        again = Path(folder) / "again"  # for -merge, libFuzzer runs its own command once more
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


def _keep(merged: Path, corpus: Path) -> tuple[int, int]:
    """Put a minimised corpus in the place of the one before; return how many files and bytes it has."""
    files = sorted(merged.glob("*"), key=lambda path: (path.stat().st_size, path.name))
    if not files:
        return 0, 0
    shutil.rmtree(corpus)
    corpus.mkdir()
    n_bytes = n_files = 0
    for path in files:
        size = path.stat().st_size
        if n_files == MOST_FILES or n_bytes + size > MOST_BYTES:
            break
        shutil.copyfile(path, corpus / path.name)  # libFuzzer names them by their hashes
        n_files, n_bytes = n_files + 1, n_bytes + size
    return n_files, n_bytes


if __name__ == "__main__":
    sys.exit(main())
