# Two commands matter to a newcomer: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
DATA ?= data
JOBS ?= auto
PARALLEL = -n $(JOBS) --dist worksteal
BIN := $(VENV)/bin
RUN := $(BIN)/compresskit

.PHONY: install demo fmt lint type test quick test-all check-gpu campaign docs check bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(RUN) train configs/quickstart.yaml --force
	$(RUN) fuse configs/quickstart.yaml --checkpoint runs/quickstart-train --force
	$(RUN) finetune configs/quickstart.yaml --checkpoint runs/quickstart-fuse --force

fmt: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: install
	$(BIN)/mypy

# Processes take tests from each other when they have none left. JOBS=0: all in one process.
test: install
	$(BIN)/python -m pytest $(PARALLEL)

quick: install  # without those that start programs or run whole verbs
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/commands --ignore tests/docs --ignore tests/training/test_resume.py --ignore tests/test_forked.py

test-all: install
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow" --ignore tests/campaigns

check-gpu: install  # every verb on a GPU against the CPU, and benches: build/gpu/gpu.json and gpu.md
	$(BIN)/python scripts/check_gpu.py

SEED ?= 0
campaign: install  # kills, damaged files, full disks, wrong numbers, two runs at once: about half an hour on two cores
	$(BIN)/python -m pytest tests/campaigns -m slow $(PARALLEL) --seed $(SEED) -rA

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo build/docs/index.html

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

check: lint type test

bench: install  # DATA: a folder with torchvision's MNIST
	$(BIN)/python scripts/bench_moments.py
	$(BIN)/python scripts/bench_fuse.py
	$(BIN)/python scripts/bench_training.py --root $(DATA)

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
