# make demo and make test install what they need into .venv, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SRC    := extensions envs recipes tests

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types format bench docs clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp is newer than both files once what they ask for is installed.
$(VENV)/installed: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; say which: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Installing into $(VENV): some minutes, without a word"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt --editable ".[dev]"
	@touch $@

install: $(VENV)/installed  ## install into .venv

demo: install  ## train on a million actions, in a few minutes on a CPU
	$(BIN)/python -m recipes.stoch_dqn

test: install  ## the tests, without the slow ones
	$(BIN)/python -m pytest -q -n auto -m "not slow"

test-slow: install  ## all the tests
	$(BIN)/python -m pytest -q -n auto

lint: install  ## style
	$(BIN)/ruff check $(SRC)
	$(BIN)/ruff format --check $(SRC)

types: install  ## types
	$(BIN)/mypy

format: install  ## put the style right
	$(BIN)/ruff check --fix $(SRC)
	$(BIN)/ruff format $(SRC)

bench: install  ## the timings and the learning results of docs/benchmarks (hours; goes on where it stopped)
	$(BIN)/python -m recipes.bench.action_scaling
	$(BIN)/python -m recipes.bench.memoryless
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.torchrl_scaling
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.chain_race
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.reproduce.stochastic_q --part tables
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.reproduce.stochastic_q --part control
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.reproduce.stochastic_q --part time
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.reproduce.stochastic_q --part scale
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.peers
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.env_throughput
	$(BIN)/python -m recipes.bench.world_scores
	$(BIN)/python -m recipes.bench.world_pages
	$(BIN)/python -m recipes.bench.learning
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.ademamix_lm
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.ademamix_rl
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.minillm
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.minillm_exact
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.minillm_variance
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.minillm_sampling
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.minillm_speed
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.qdpo
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.qdpo_speed
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.replay_data
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.radt
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.radt_dial
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.radt_speed
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.glasses_theory
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.glasses_speed
	$(BIN)/python -m recipes.bench.glasses_speed --whole
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.glasses_returns
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.glasses_trained --tier a b
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.bench.glasses_grpo
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt --editable ".[bench]"
	$(BIN)/python -m recipes.bench.optimizers

docs: install  ## the documentation, into docs/_build
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:  ## forget the environment and all that was built
	rm -rf $(VENV) build docs/_build *.egg-info
