# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-interpreted lint bench clean

demo: .venv/ready
	$(BIN)/neuromod demo

test: lint
	$(BIN)/pytest

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the kernels as the Python they are written in: slower, and the same bits
test-interpreted: .venv/ready-dev
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest

# PEERS_PYTHON=... names an interpreter that has Brian2 and NEST
bench: .venv/ready-dev
	$(BIN)/neuromod bench latency
	$(BIN)/neuromod bench throughput
	$(BIN)/python tests/bench/bench_engine.py $(if $(PEERS_PYTHON),--peers-python $(PEERS_PYTHON))

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("neuromod needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
