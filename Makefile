# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv, installs, and runs.
PYTHON ?= python3
BIN := .venv/bin
# Two processes of tests, each with whole files; not of those whose jobs run on Ray: two clusters have no room here.
IN_TWO := -n 2 --dist loadfile
# The exact versions this was tested with; `make PIP_ARGS=...` adds an index, for example PyTorch's CPU builds:
# make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt $(PIP_ARGS)

.PHONY: demo test test-all test-vllm check bench soak clean

demo: .venv/runtime
	$(BIN)/gptj-batch demo

test: .venv/dev
	$(MAKE) .venv/unit
	$(BIN)/python -m pytest tests/parity -q $(IN_TWO)
	$(BIN)/python -m pytest tests/integration -q -m "not extended and without_ray and not on_ray" $(IN_TWO)
	$(BIN)/python -m pytest tests/integration -q -m "not extended and (on_ray or not without_ray)"
	$(MAKE) test-vllm VLLM_TESTS="-m vllm_first"

# The same, the longer tests (buckets, lost machines, every setting of every task), and those of vLLM's backend.
test-all: test test-vllm
	$(BIN)/python -m pytest tests -q -m "extended or without_ray" --all-on-ray

# vLLM's backend on the CPU build of vLLM, in an environment of its own, made once in minutes; see jobs/bench/vllm_env.py.
# Where it cannot be made, this says why, and is no failure.
VLLM_TESTS ?=
test-vllm: .venv/dev
	$(BIN)/python -m jobs.bench.vllm_env $(PIP_ARGS)
	$(BIN)/python -m jobs.bench.vllm_overlay -m pytest tests/parity/test_vllm_*.py tests/integration/test_vllm_*.py -q $(VLLM_TESTS)

# The unit tests passed on these files: `make check` and `make test` after one another, as in CI, run them once.
.venv/unit: .venv/dev $(shell find gptj_batch pipelines jobs tests infra *.md pyproject.toml -type f -not -path '*/__pycache__/*')
	$(BIN)/python -m pytest tests/unit tests/architecture -q -m "not extended" $(IN_TWO)
	touch $@

# What a developer, the pre-commit hook and CI all run.
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) .venv/unit

# All peers take turns on this machine, about 75 minutes; ARGS="--only W1,W3" for a part of it. vLLM gets an environment of its own.
bench: .venv/dev
	$(BIN)/python -m jobs.bench.vllm_env $(PIP_ARGS)
	$(BIN)/python -m jobs.bench.suite $(ARGS)

# 200 runs, each with a process killed at a random moment, compared with an undisturbed one; ARGS="--rounds 20" for fewer.
soak: .venv/dev
	$(BIN)/python -m jobs.soak $(ARGS)

clean:
	rm -rf .venv build dist

# torch first and by itself: the version is exact, and an index that has a CPU build of it is then the one that is used.
.venv/runtime: pyproject.toml infra/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

.venv/dev: .venv/runtime
	$(PIP) -e '.[dev]'
	touch $@
