# `make run` and `make test` do all set-up from a fresh clone: Python 3.11+ and make are enough,
# and a C++20 compiler makes the cpu backend fast.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard native/*.*)
PROMPT ?= A telescope is

.PHONY: run test lint types unit test-slow cross-tools bench clean

# The demo model in the smallest environment: no PyTorch, no test tools.
run: $(VENV)/.run
	$(BIN)/firstlight run demo "$(PROMPT)" -n 64 --verbose

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest -m "not slow and not hardware and not speed" -rs \
		-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGUMENTS)

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m "slow or speed" -rs

# What the tests of other processors need; they are skipped where it is missing.
cross-tools:
	@echo "On Debian and Ubuntu, as root:"
	@echo "  apt-get install cmake ninja-build g++ g++-aarch64-linux-gnu g++-riscv64-linux-gnu qemu-user"

# Peers are given by BENCH_ARGUMENTS, see bench/README.md.
bench: $(VENV)/.dev
	$(BIN)/pip install -q -e ".[bench]"
	$(BIN)/python bench/run.py $(BENCH_ARGUMENTS)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

# Rebuilt when the native sources change; Python sources are used where they lie.
$(VENV)/.run: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install -q -e ".[demo]"
	touch $@

$(VENV)/.dev: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e ".[demo,dev]"
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
