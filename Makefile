# `make demo`, `test`, `bench`, `fuzz` and `notebooks`. Everything runs in .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test bench bench-grading fuzz notebooks check format clean

demo: $(STAMP)
	$(BIN)/posttrain run recipes/demo.toml

test: $(STAMP)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

# BENCH="--quick", or BENCH="--workloads dpo --repeats 3"; without GSM8K's train.jsonl, rows of the same lengths.
GSM8K ?= $(wildcard ../shared/data/gsm8k/train.jsonl)
bench: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,peers]"
	$(BIN)/python -m benchmarks $(if $(GSM8K),--gsm8k $(GSM8K)) $(BENCH)

# The grader beside math-verify; results in benchmarks/GRADING.md.
bench-grading: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,graders]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.grading $(BENCH)

# The grader: mutated answers, guided by coverage where atheris is installed. FUZZ="--seconds 3600 --seed 7"
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.rewards.fuzz_grader $(FUZZ)

# Runs them anew and saves them with their outputs.
notebooks: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	$(BIN)/python notebooks/execute.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
