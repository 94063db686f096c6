# Everything here works on a fresh clone: each target installs what it needs into .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv-protos
GENERATED := clients/python

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
# Where cores are shared, waiting threads spin for some microseconds and no longer.
export GOMP_SPINCOUNT := 10000

.DEFAULT_GOAL := help
.PHONY: help install install-dev compiled audit test check check-pages check-deploy faults chaos bench bench-gpu integrations testbed protos docs clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[server,dev]'
	@touch $(VENV)/.server $@

install: $(VENV)/.server ## Install the backend and its client.

install-dev: $(VENV)/.dev ## Install the backend, its client and what the tests need.

# Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process of a backend would compile it again.
compiled: $(VENV)/.server
	@$(BIN)/python -m compileall -q services clients/python

audit: compiled ## Start the backend, audit an erased model, write build/audit.html, .json, .parquet.
	@mkdir -p build
	$(BIN)/unerase audit testbed/uce --concept hourglass --battery quick --local \
		--html build/audit.html --json-file build/audit.json --parquet build/audit.parquet

test: $(VENV)/.dev compiled ## Run the tests, in two processes of one thread each.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadgroup --no-loadscope-reorder

check: $(VENV)/.dev ## Format, lint, types, import rules, contracts, docs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint Dockerfile
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against releases/0.1.0.binpb
	$(MAKE) --no-print-directory docs

check-deploy: $(VENV)/.dev ## Check what is in deploy/ against the real thing (Debian's package prometheus).
	$(BIN)/unerase deploy check deploy/serve/local.yaml deploy/serve/cluster.yaml deploy/serve/cpu.yaml
	$(BIN)/python -m pytest -q tests/deploy/test_kubernetes.py tests/deploy/test_serve_config.py
	PYTHONPATH=tests $(BIN)/python deploy/prometheus/check.py

check-pages: $(VENV)/.dev ## Use and print the pages of reports in a real browser (Debian's packages chromium, poppler-utils).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m pages tests/report

docs: $(VENV)/.dev ## Build the documentation into build/docs; a broken link is an error.
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

faults: $(VENV)/.dev compiled ## Run the tests that start, stop and crowd backends of their own, one after the other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m backends

chaos: $(VENV)/.dev compiled ## Kill processes for ten minutes, on SQLite and on PostgreSQL; print kills, audits, what was lost.
	PYTHONPATH=tests $(BIN)/python -W ignore -m chaos

bench: $(VENV)/.dev compiled ## Measure speed and memory, compare with bench/bench.json; writes build/bench.json.
	PYTHONPATH=tests $(BIN)/python -m bench

bench-gpu: $(VENV)/.dev ## Measure Stable Diffusion 1.4's size on one GPU, in eight minutes; writes build/bench-gpu.json.
	$(BIN)/python -m bench.gpu

testbed: $(VENV)/.dev ## Train the testbed from nothing and print its table of detection rates.
	$(BIN)/python -m unerase_backend.testbed.train --out build/testbed

$(PROTOS_VENV)/.tools: protos/requirements.txt
	$(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip install --quiet --requirement protos/requirements.txt
	@touch $@

protos: $(PROTOS_VENV)/.tools $(VENV)/.dev ## Generate the Python code of the contracts, and number them.
	$(PROTOS_VENV)/bin/python -m grpc_tools.protoc -Iprotos \
		--plugin=protoc-gen-mypy=$(PROTOS_VENV)/bin/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(PROTOS_VENV)/bin/protoc-gen-mypy_grpc \
		--python_out=$(GENERATED) --grpc_python_out=$(GENERATED) --mypy_out=quiet:$(GENERATED) --mypy_grpc_out=quiet:$(GENERATED) \
		$$(cd protos && find unerase -name '*.proto' | sort)
	$(BIN)/python -m tools.contract

# In an environment of its own, since nobody else needs these packages. The tests' other plugins are not installed here.
# Every Eval Ever asks for a newer Python, for what is not used here: its schema and its checks of records are.
integrations: ## Run what works with packages of others: NudeNet (AGPL), PEFT, Inspect, PyRIT, in-toto and others.
	test -x build/integrations/bin/python || $(PYTHON) -m venv build/integrations
	build/integrations/bin/python -m pip install --quiet --editable '.[server]' --requirement tests/integrations/requirements.txt
	build/integrations/bin/python -m pip install --quiet --no-deps --ignore-requires-python every-eval-ever==0.3.0
	OMP_NUM_THREADS=1 build/integrations/bin/python -m pytest -q -m integrations --confcutdir tests/integrations tests/integrations

clean: ## Remove what was built and installed.
	rm -rf build $(VENV) $(PROTOS_VENV)
