# A fresh machine needs Python 3.11+, make and a package index; each target sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written when an installation is complete: the package alone, and with what tests, checks, guides and benches need.
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
WORKERS ?= 2
# What fuzzing found, outside of the tree.
FUZZ_OUT ?= /tmp/seektune-fuzz
# Small tensors: one thread per test process is faster than many. A worker that runs out of tests takes another's.
# Bytecode is kept even where the environment says otherwise: tests start many interpreters.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
PYTEST := $(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist worksteal
# The demo's too: a second thread gains little there, and on a busy machine the threads mostly wait for each other.
DEMO_RECIPE := examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml
SUMS_RECIPE := examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_sums.yaml
GRPO_RECIPE := examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_grpo.yaml
CHAT_RECIPE := examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_chat.yaml
PRETRAIN_RECIPE := examples/llm_pretrain/deepseek_v4/deepseek_v4_tiny_pretrain.yaml

.PHONY: help demo demo-chat demo-pretrain demo-grpo test check fast lint docs format bench bench-layer bench-checkpoint bench-decode bench-decode-mesh bench-lora bench-lora-stream fuzz clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F: '{printf "  make %-17s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SeekTune needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV), once: 1.4 GB with a CPU build of torch, several GB more with a CUDA build ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	@echo "Adding tools and other implementations that the tests compare with, once: 2.2 GB ..."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(DEV_STAMP)

demo: $(STAMP)  ## fine-tune a tiny DeepSeek-V4 on HellaSwag on the CPU, about four minutes, and print the path of the report
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(DEMO_RECIPE)

demo-chat: $(STAMP)  ## teach a tiny DeepSeek-V4 example conversations on the CPU, about three minutes; the report shows its answers
	test -d conversations || $(BIN)/seektune data example conversations
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(CHAT_RECIPE)

demo-pretrain: $(STAMP)  ## pretrain a tiny DeepSeek-V4 on TinyShakespeare on two cores, about four minutes; the report has what it writes
	test -d shakespeare || $(BIN)/seektune data example shakespeare --kind text
	OMP_NUM_THREADS=1 $(BIN)/seektune train --nproc-per-node=2 $(PRETRAIN_RECIPE) --parallel.dp_replicate=2 --parallel.dp_shard=1

demo-grpo: $(STAMP)  ## teach a tiny DeepSeek-V4 sums until it is right in half of its answers, then train it on rewards; the report shows the curve
	test -d sums || $(BIN)/seektune data example sums --kind prompt_completion
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(SUMS_RECIPE) --run_dir=runs/sums
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(SUMS_RECIPE) --run_dir=runs/half-right \
		--model.preset=null --model.weights=runs/sums/model --data.path=sums/taught.jsonl \
		--data.validation=sums/validation.jsonl --optimizer.lr=3e-4 --schedule.warmup_steps=2 --steps=28
	OMP_NUM_THREADS=1 $(BIN)/seektune train $(GRPO_RECIPE)

test: $(DEV_STAMP)  ## all tests
	$(PYTEST)

check: $(DEV_STAMP)  ## lint, and beside it the fast tests
	$(MAKE) --no-print-directory --jobs=2 lint fast

fast: $(DEV_STAMP)
	$(PYTEST) -m 'not slow'

lint: $(DEV_STAMP)  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEV_STAMP)  ## build the guides into site/, strictly; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(DEV_STAMP)  ## measure a training step against transformers, and where its time goes; about half an hour, quiet machine, 20 GB
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python bench/step.py --threads $(WORKERS)
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python bench/parts.py
	$(BIN)/python bench/plot.py

bench-layer: $(DEV_STAMP)  ## measure one CSA and one HCA layer of V4-Flash; 20 GB
	$(BIN)/python bench/layer.py --threads $(WORKERS)

bench-checkpoint: $(DEV_STAMP)  ## measure converting against this disk's copying, and saving during training
	$(BIN)/python bench/checkpoint.py
	$(BIN)/python bench/save.py

bench-decode: $(DEV_STAMP)  ## measure decoding and prefill against transformers, and at 1,000 and 100,000 tokens
	OMP_NUM_THREADS=1 $(BIN)/python bench/decode.py

bench-decode-mesh: $(DEV_STAMP)  ## measure decoding on 1, 2 and 4 processes that share the experts of the tiny model
	OMP_NUM_THREADS=1 $(BIN)/python bench/decode_mesh.py

bench-lora: $(DEV_STAMP)  ## adapters on a true-width slice of V4-Flash: needs 18 GB of disk and 17 GB of memory
	$(BIN)/python bench/dequantize.py
	$(BIN)/python bench/lora.py

bench-lora-stream: $(DEV_STAMP)  ## the same on eight layers that stay on disk: needs 36 GB of disk and 12 GB of memory
	$(BIN)/python bench/lora.py --stream --layers 8

fuzz: $(DEV_STAMP)  ## half an hour of hostile inputs for each reader of files and requests of others; Python 3.11 only
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	for target in $$($(BIN)/python -m tests.fuzz.table); do for how in '' --structured; do \
	$(TEST_ENV) $(BIN)/python -m tests.fuzz.run $$target $(FUZZ_OUT) --minutes 15 $$how; done; done

format: $(DEV_STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
