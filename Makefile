# Two commands matter to a newcomer: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
DATA ?= data
BIN := $(VENV)/bin
RUN := $(BIN)/compresskit

.PHONY: install demo fmt lint type test test-all check bench clean

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

test: install
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python -m pytest -m "slow or not slow"

check: lint type test

bench: install  # DATA: a folder with torchvision's MNIST
	$(BIN)/python scripts/bench_moments.py
	$(BIN)/python scripts/bench_fuse.py
	$(BIN)/python scripts/bench_training.py --root $(DATA)

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
