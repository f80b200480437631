# make demo | test | check | docs | bench | clean
# TORCH chooses another build of torch: make test TORCH="torch --index-url https://download.pytorch.org/whl/cu128"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test check docs bench clean

demo: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/distill demo --output-dir runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) tests

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy knowledge_distillation

docs: $(VENV)/.installed-dev
	$(BIN)/pip install -q -c constraints.txt mkdocs
	$(BIN)/mkdocs build --strict

# Losses at small shapes (the table of docs/benchmarks.md needs the full ones: tests/benchmarks/losses.py without
# options, half an hour), then the tables of docs/results.md. DATA: a folder in GLUE's TSV layout; hours, not minutes.
bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/losses.py --small --repeat 1
	GLUE_DATA_DIR=$(DATA) $(BIN)/python tests/benchmarks/results.py examples/glue_sst2.yaml runs/bench/sst2
	GLUE_DATA_DIR=$(DATA) $(BIN)/python tests/benchmarks/results.py examples/glue_qqp.yaml runs/bench/qqp

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
