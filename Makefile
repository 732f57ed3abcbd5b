# Everything a fresh machine needs is Python 3.11+, make and a package index; each target sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# Small tensors: one thread per test process is faster than many.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
# The demo's too: a second thread gains little there, and on a busy machine the threads mostly wait for each other.
DEMO_RECIPE := examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml

.PHONY: help demo test check docs format bench bench-layer bench-checkpoint bench-decode bench-lora bench-lora-stream clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F: '{printf "  make %-17s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SeekTune needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV), once; this takes a minute or two ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## fine-tune a tiny DeepSeek-V4 on HellaSwag on the CPU, about four minutes, and say where the report is
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(DEMO_RECIPE)

test: $(STAMP)  ## all tests
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS)

check: $(STAMP)  ## format, lint, types, import contract, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) -m 'not slow'

docs: $(STAMP)  ## build the guides into site/, strictly; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(STAMP)  ## measure a training step against transformers, and where its time goes; about half an hour, quiet machine, 20 GB
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python bench/step.py --threads $(WORKERS)
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python bench/parts.py
	$(BIN)/python bench/plot.py

bench-layer: $(STAMP)  ## measure one CSA and one HCA layer of V4-Flash; 20 GB
	$(BIN)/python bench/layer.py --threads $(WORKERS)

bench-checkpoint: $(STAMP)  ## measure converting against this disk's copying, and saving beside the training
	$(BIN)/python bench/checkpoint.py
	$(BIN)/python bench/save.py

bench-decode: $(STAMP)  ## measure decoding and prefill against transformers, and at 1,000 and 100,000 tokens
	OMP_NUM_THREADS=1 $(BIN)/python bench/decode.py

bench-lora: $(STAMP)  ## adapters on a true-width slice of V4-Flash: needs 18 GB of disk and 17 GB of memory
	$(BIN)/python bench/dequantize.py
	$(BIN)/python bench/lora.py

bench-lora-stream: $(STAMP)  ## the same on eight layers that stay on disk: needs 36 GB of disk and 12 GB of memory
	$(BIN)/python bench/lora.py --stream --layers 8

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
