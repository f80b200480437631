# make demo | test | test-slow | test-processors | check | docs | bench | clean
# TORCH chooses another build of torch: make test TORCH="torch --index-url https://download.pytorch.org/whl/cu128"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
WORKERS ?= 2
TEACHER ?= runs/bench/sst2/teacher/student

.PHONY: demo test test-slow test-processors check docs bench clean

demo: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/distill demo --output-dir runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) tests

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow tests

# The tests as other processors compute: without vector instructions, with AVX2, with no more than AVX2 in oneDNN.
test-processors: $(VENV)/.installed-dev
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n $(WORKERS) tests
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n $(WORKERS) tests
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n $(WORKERS) tests

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy knowledge_distillation

docs: $(VENV)/.installed-dev
	$(BIN)/pip install -q -c constraints.txt mkdocs
	$(BIN)/mkdocs build --strict

# All of tests/benchmarks/, each in its turn: hours, with nothing else running. DATA: a folder in GLUE's TSV layout.
# Only peers.py needs the network, to install the other tools by pip. TEACHER: a BERT fine-tuned on SST-2, for the scores
# they reach. The table of losses in docs/benchmarks.md needs full shapes: tests/benchmarks/losses.py without options.
bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/losses.py --small --repeat 1
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/growth.py --plots runs/bench/plots
	$(BIN)/python tests/benchmarks/peers.py --data $(DATA)
	GLUE_DATA_DIR=$(DATA) $(BIN)/python tests/benchmarks/results.py examples/glue_sst2.yaml runs/bench/sst2
	$(BIN)/python tests/benchmarks/peers.py --data $(DATA) --parity --teacher $(TEACHER) --rows 8000
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
