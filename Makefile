# Works on a machine with Python 3.11 and make: the first target that needs it makes .venv from the pinned requirements.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
TWISTD := $(VENV)/bin/twistd -n --pidfile=

# -b, and pyproject.toml: comparing bytes with str is an error in tests. Under trial -bb says the same.
PYTEST := $(PY) -b -m pytest
TRIAL := $(PY) -bb -m twisted.trial --temp-directory=_trial_temp
# The tests that start no programs and no reactor run a second time under Twisted's own runner.
NOT_IN_TRIAL := tests/live/% tests/packaging/% tests/docs/% tests/scripts/% tests/sdk/% tests/fuzz/test_node.py \
	tests/controls/test_controls.py tests/soak/%
IN_TRIAL = $(filter-out $(NOT_IN_TRIAL),$(wildcard tests/test_*.py tests/*/test_*.py))
# 8 GiB for each run in memory: a test that never stops writing fails alone, and does not take the machine with it.
BOUNDED := ulimit -v 8388608 2>/dev/null;
PROVIDERS := openai anthropic gemini groq

.DEFAULT_GOAL := help
.PHONY: help install build run dev demo check fmt vet lint clean version env-check \
	test test-unit test-trial test-live test-plain test-sdk test-simulated test-all test-health fuzz soak $(PROVIDERS:%=test-%)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything pinned, and llmproxy in it (editable)

$(STAMP): requirements/dev.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmproxy needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

build: $(STAMP) ## wheel and source archive in dist/
	$(PY) -m build --no-isolation

run: $(STAMP) ## the proxy in the foreground, port 9002 or $PORT (ARGS="--config FILE")
	$(TWISTD) llmproxy $(ARGS)

dev: export ENVIRONMENT = dev
dev: export LOG_LEVEL = debug
dev: export LOG_FORMAT = text
dev: $(STAMP) ## the same with ENVIRONMENT=dev and debug logs as text
	$(TWISTD) llmproxy $(ARGS)

demo: $(STAMP) ## simulator and proxy, lines to paste, one streamed answer as proof
	@$(PY) scripts/demo.py

check: lint vet ## lint, types and the quick tests
	$(PYTEST) -p no:twisted -q -m "not slow"

fmt: $(STAMP) ## format, and mend what ruff can
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

vet: $(STAMP) ## check types (mypy, strict)
	$(VENV)/bin/mypy

lint: $(STAMP) ## check style and format (ruff)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## remove what builds, tests and tools left behind (.venv stays)
	rm -rf build dist *.egg-info llmproxy/_build.py _trial_temp* tests.* .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name dropin.cache \) -exec rm -rf {} +

test: lint vet test-unit test-trial test-live test-plain test-simulated test-health test-sdk ## the whole suite

test-unit: $(STAMP)
	$(BOUNDED) $(PYTEST) -p no:twisted

test-trial: $(STAMP)
	$(BOUNDED) $(TRIAL) $(subst /,.,$(IN_TRIAL:.py=))

test-live: $(STAMP)
	$(PYTEST) tests/live

# What the proxy does to a request, once more with its short cuts off: tests/live/plain.py.
PLAIN := bounds cancel_and_cut connections framing half_close hostile_upstream identity incremental no_connection pool_order \
	slow_ends time tls_callers tls_upstream
test-plain: $(STAMP)
	LLMPROXY_TEST_PLAIN=1 $(PYTEST) $(PLAIN:%=tests/live/test_%.py)

# The fuzz of test-unit for SECONDS: new seeds until one fails, which is kept in .hypothesis and tried first from then on.
fuzz: SECONDS = 600
fuzz: $(STAMP) ## break both parsers for SECONDS (600)
	$(BOUNDED) $(PY) -m tests.fuzz.longer $(SECONDS)

# Everything at once against a running proxy for SECONDS; at the end nothing may be left, lost or counted twice.
soak: SECONDS = 300
soak: $(STAMP) ## everything at once against a running proxy for SECONDS (300)
	$(PY) -m tests.soak.run $(SECONDS)

test-sdk: $(STAMP)
	PYTHON=$(CURDIR)/$(PY) tests/sdk/run.sh

test-simulated: $(STAMP)
	@for provider in $(PROVIDERS); do $(PY) scripts/check_provider.py $$provider --upstream simulator || exit 1; done

test-all: check test ## check, the whole suite, and the live providers whose keys are set
	@for provider in $(PROVIDERS); do $(PY) scripts/check_provider.py $$provider || exit 1; done

$(PROVIDERS:%=test-%): test-%: $(STAMP)
	@$(PY) scripts/check_provider.py $* $(if $(UPSTREAM),--upstream $(UPSTREAM))

# The help reads these lines; the rule above does the work.
test-openai: ## against OpenAI with OPENAI_API_KEY (UPSTREAM=simulator: without)
test-anthropic: ## against Anthropic with ANTHROPIC_API_KEY (UPSTREAM=simulator: without)
test-gemini: ## against Gemini with GEMINI_API_KEY (UPSTREAM=simulator: without)
test-groq: ## against Groq with GROQ_API_KEY (UPSTREAM=simulator: without)

test-health: $(STAMP) ## start the proxy and look at /health, /health/live, /health/ready
	@$(PY) scripts/check_health.py

env-check: ## which provider keys are set in the environment
	@for name in OPENAI_API_KEY ANTHROPIC_API_KEY GEMINI_API_KEY GROQ_API_KEY; do \
		if [ -n "$$(printenv $$name)" ]; then echo "  $$name: found"; else echo "  $$name: missing"; fi; done

version: $(STAMP) ## version, git commit, build time, Python and Twisted
	@$(PY) -c 'from llmproxy import version; print(version.describe())'
