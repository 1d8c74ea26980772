# make demo   train a tiny Whisper on spoken digits, from nothing to a transcript (about 5 minutes after installation)
# make test   the test suite
# make chaos  60 random faults in one run, then the long versions of tests (about 15 minutes)
# make fuzz   random damage to samples (FUZZ_EXAMPLES=10000 inputs to each test; a minute or two)
# make lint   ruff and mypy
# make bench  what the README's figures come from (about 7 minutes)
# make bench-peers  beside the original recipe, the Hugging Face way and lhotse (about 5 minutes)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test chaos fuzz lint bench bench-peers clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-cluster.txt requirements-tools.txt requirements-export.txt $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -r requirements-export.txt
	touch $@

$(VENV)/installed-bench: requirements-bench.txt $(VENV)/installed-dev
	$(BIN)/pip install --disable-pip-version-check -r requirements-bench.txt
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

chaos: $(VENV)/installed-dev
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m pytest -n 2 -m long

FUZZ_EXAMPLES ?= 10000
fuzz: $(VENV)/installed-dev
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/features/test_sample.py -k fuzz --timeout=1800 \
		--hypothesis-show-statistics

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/profile_stages.py --json benchmarks/results/profile_stages.json
	$(BIN)/python benchmarks/scaling.py --json benchmarks/results/scaling.json
	$(BIN)/python benchmarks/producer.py --json benchmarks/results/producer.json
	$(BIN)/python benchmarks/producer_memory.py --json benchmarks/results/producer_memory.json
	$(BIN)/python benchmarks/sources.py

bench-peers: $(VENV)/installed-bench
	$(BIN)/python benchmarks/compare.py --json benchmarks/results/compare.json

clean:
	rm -rf out .cache
