# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-computing test-waiting test-loop test-long test-interpreted fuzz soak lint warm bench bench-sorting clean

demo: .venv/ready
	$(BIN)/neuromod demo

test: .venv/ready-dev
	+$(MAKE) -j3 --output-sync=target test-computing test-waiting test-loop

# what computes, or heeds no clock, in an order in which what needs the loop comes when it is compiled
COMPUTING := tests/engine tests/fuzz tests/sorting tests/conformance/test_neurons.py tests/test_packaging.py \
  $(addprefix tests/bench/test_,bench_fixed.py floor.py) \
  $(addprefix tests/adapters/test_,calibration.py decoder.py fpga_simulated.py hdl.py recordings.py sortable.py) \
  $(addprefix tests/bridge/test_,baseline.py checkpoint.py config.py cortex.py export_nwb.py frames.py gate.py \
    gate_histories.py hil.py hil_files.py pipeline.py session_log.py wire.py \
    bench.py calibrate.py certify.py demo.py hil_board.py monitor.py resume.py task.py) tests/bench/test_bench_service.py
test-computing: .venv/ready-dev
	$(BIN)/pytest -m "not long" $(COMPUTING)

# beside it, what waits for sockets and clocks, and lint and test_sort.py, so that all three take as long; what needs the
# loop is apart, for that has to be compiled first
test-waiting: lint
	$(BIN)/pytest -m "not long and not compiled_loop" $(COMPUTING:%=--ignore=%)
test-loop: warm
	$(BIN)/pytest -m "not long and compiled_loop" $(COMPUTING:%=--ignore=%)

# so that no test's time is spent on it
warm: .venv/ready-dev
	$(BIN)/python -c 'from neuromod.bridge.warm import warm_loop; warm_loop()'

# some ten minutes on two idle cores: millions of ticks, and the netlist that synthesis makes of the Verilog
test-long: .venv/ready-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,synthesis]'
	$(BIN)/pytest -m long

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the kernels as the Python they are written in: slower, and the same bits
test-interpreted: .venv/ready-dev
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -m "not long"

# looks for bytes that break a parser; so many seconds for each of some thirty
SECONDS ?= 60
fuzz: .venv/ready-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/fuzz.py all --seconds $(SECONDS)

# the whole service for so many minutes, with a fault every few seconds
MINUTES ?= 30
soak: .venv/ready-dev
	$(BIN)/python tests/bench/soak.py --minutes $(MINUTES)

# PEERS_PYTHON=... names an interpreter that has Brian2 and NEST
bench: .venv/ready-dev
	$(BIN)/neuromod bench latency
	$(BIN)/neuromod bench throughput
	$(BIN)/python tests/bench/bench_engine.py $(if $(PEERS_PYTHON),--peers-python $(PEERS_PYTHON))

# an hour or two; keeps some GB of recordings in .bench
bench-sorting: .venv/ready-dev
	$(BIN)/python tests/bench/bench_sorting.py --cache .bench --json .bench/sorting.json

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
