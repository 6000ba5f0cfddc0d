# make help     lists the targets
# make test     creates the environment where it is missing or out of date, and runs the tests

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Where to look for torch besides PyPI. On Linux without a GPU, the CPU wheel saves gigabytes:
#   make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=

# Optional parts that are installed, and so tested.
EXTRAS ?= test,plots,metrics,published,onnx,tensorboard

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)
# Only an extra index: what torch depends on still comes from PyPI, and a "+cpu" wheel ranks above the plain one.
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
SOURCES := modeling_mos modeling_sharcs trainers examples tests

# One thread a process: tests are small, and spinning threads slow each other down on shared cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-lowest test-distributed soak benchmark quality style clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP)  ## create the environment in VENV and install the project into it

# torch comes first: under the constraint alone, so that no later requirement can draw in another build of it.
$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.10; give another one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot create virtual environments (no ensurepip): install it (Debian, Ubuntu: apt install" \
			"python3-venv), or give an environment that exists: make install VENV=DIR" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH_INDEX) torch
	$(PIP_INSTALL) $(TORCH_INDEX) -e ".[$(EXTRAS)]"
	@touch $@

quickstart: $(STAMP)  ## run the whole stories of MoS and SHARCS on data that they make themselves
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/quickstart_sharcs.py

test: export HF_HUB_OFFLINE = 1
test: $(STAMP)  ## run the tests that are not marked slow, a file at a time on each core
	$(BIN)/python -m pytest -n auto --dist loadfile

test-lowest:  ## run the same tests with the oldest versions that setup.cfg allows, in .venv-lowest
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt EXTRAS=test,plots,metrics,published

# DeepSpeed has ninja and the C++ compiler build an operation in its first run ever, which takes a minute.
test-distributed: export HF_HUB_OFFLINE = 1
test-distributed: $(STAMP)  ## install DeepSpeed and run the tests that train with it, in two processes
	$(BIN)/python -c 'import deepspeed, ninja' 2>/dev/null || $(PIP_INSTALL) $(TORCH_INDEX) -e ".[deepspeed]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m deepspeed tests/test_deepspeed.py

soak: $(STAMP)  ## kill trainings and searches at random points and see that they end as if nobody had
	$(BIN)/python tests/soak.py --kills 24

# Two threads, so that BERT-base sizes take minutes on two cores. They wait for the next operation awake, but not for
# long: to wake one takes longer than a small product, and threads that share a core would keep each other waiting.
BENCHMARK_THREADS ?= 2
BENCHMARK_DIR ?= benchmarks
benchmark: export OMP_NUM_THREADS = $(BENCHMARK_THREADS)
benchmark: export GOMP_SPINCOUNT ?= 5000
# glibc keeps freed memory, in huge pages: by default it hands large tensors back to Linux, which clears them again page
# by page.
benchmark: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
benchmark: export MALLOC_MMAP_MAX_ = 0
benchmark: export MALLOC_TRIM_THRESHOLD_ = 4000000000
# What would take it beyond 15 minutes on two cores is cut: rows of inference, and layers of the longest steps.
benchmark: $(STAMP)  ## measure speed at BERT-base sizes, in turns with plain Transformers; results in benchmarks/
	$(BIN)/python examples/benchmarks/benchmark_startup.py --output_file $(BENCHMARK_DIR)/startup.json
	$(BIN)/python examples/benchmarks/benchmark_growth.py --output_file $(BENCHMARK_DIR)/growth.json \
		--plot $(BENCHMARK_DIR)/growth.png
	$(BIN)/python examples/benchmarks/benchmark_routing.py --rows 32 --batch_sizes 1 8 32 \
		--output_file $(BENCHMARK_DIR)/routing.json
	$(BIN)/python examples/benchmarks/benchmark_mos.py --step_shapes 4x128 --output_file $(BENCHMARK_DIR)/mos.json
	$(BIN)/python examples/benchmarks/benchmark_mos.py --parts training --step_shapes 16x128 --num_hidden_layers 4 \
		--output_file $(BENCHMARK_DIR)/mos-16x128.json

quality: $(STAMP)  ## check lint and format
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m ruff format --check $(SOURCES)

style: $(STAMP)  ## fix lint and format
	$(BIN)/python -m ruff check --fix $(SOURCES)
	$(BIN)/python -m ruff format $(SOURCES)

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
