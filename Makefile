# Two commands: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8080
# How many test processes run at once; 0 runs them in this one.
# One more than processors: many tests wait for what other processes do.
TEST_PROCESSES ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
TESTS ?= tests
# Databases and logs of tests are in memory if it has 4 GiB to spare: they wait for no disk.
TEST_FOLDER ?= $(shell df --output=avail --block-size=1G /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 >= 4 {print "/dev/shm"}')
# Python 3.11 runs all tests; newer ones that are installed, by pyenv too, run the main job.
PYTHONS ?= $(wildcard $(HOME)/.pyenv/versions/3.1[2-4].*/bin/python) $(shell command -v python3.12 python3.13 python3.14)
PYTHON_TESTS ?= tests/functional/test_token.py tests/functional/test_cli_clients_create.py tests/buffered_worker/test_http_framing.py

VENV := .venv
BIN := $(VENV)/bin
# Nothing is installed but what a lock names, with the digest that it names. $(1) is a virtual environment, $(2) a lock.
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(2) && \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
LOCK := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-strip-extras setup.py
NODE_CLIENTS := tests/clients/node
PEERS := bench/peers

export HOST PORT

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.installed ## Install, migrate, make a signing key, serve http://localhost:8080. HOST= and PORT= move it.
	@$(BIN)/python wsgi.py

.PHONY: install
install: $(VENV)/.installed ## Install into .venv what a server needs, for production.

.PHONY: test
test: $(VENV)/.installed-for-tests node-clients ## Install and run every test, on a real PostgreSQL. TESTS= narrows it.
	@TMPDIR=$(or $(TEST_FOLDER),$${TMPDIR:-/tmp}) \
		$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(TESTS)

.PHONY: test-pythons
test-pythons: ## The main tests with every newer Python that is installed. PYTHONS= and PYTHON_TESTS= choose.
	@tested=; for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case "$$tested" in *" $$version "*) continue ;; esac; tested="$$tested $$version "; \
		echo "Python $$version: $(PYTHON_TESTS)"; \
		{ test -x $(VENV)-$$version/bin/python || $$python -m venv $(VENV)-$$version; } && \
		$(call install,$(VENV)-$$version,requirements-test.txt) && \
		$(VENV)-$$version/bin/python -m pytest --quiet --numprocesses $(TEST_PROCESSES) $(PYTHON_TESTS) || exit 1; \
	done

.PHONY: test-examples
test-examples: $(VENV)/.installed-for-tests node-clients ## Run the examples in every language. As root, Debian's packages are installed.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/install-tools; fi
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal tests/examples

.PHONY: bench
bench: $(VENV)/.installed-for-development ## Measure speed and memory, with wrk. ARGS="--short" is quick; ARGS="--help" tells more.
	@$(BIN)/python bench/throughput.py $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.installed-for-development ## The same, with other OAuth servers beside it: needs Node.js and npm.
	@test $(PEERS)/node_modules/.package-lock.json -nt $(PEERS)/package-lock.json || \
		npm ci --prefix $(PEERS) --silent --no-audit --no-fund
	@$(BIN)/python bench/throughput.py --peers $(ARGS)

.PHONY: profile
profile: $(VENV)/.installed-for-tests ## Where the time of a token goes. ARGS="--svg FILE" draws it.
	@$(BIN)/python bench/budget.py $(ARGS)

.PHONY: drill
drill: $(VENV)/.installed-for-tests ## Two machines under load, one fault after the other: the table of docs/reliability.md. Takes 4 minutes.
	@$(BIN)/python bench/drill.py $(ARGS)

.PHONY: check
check: $(VENV)/.installed-for-tests ## Lint, format check, types, and the import stack.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_architecture.py

.PHONY: mutants
mutants: $(VENV)/.installed-for-development ## Change the central modules one place at a time, and list the changes that their tests miss.
	@$(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results

.PHONY: fuzz
fuzz: $(VENV)/.installed-for-development ## Fuzz framing, forms, JWS and forwarded headers for ten minutes. ARGS="--seconds 60" is shorter.
	@$(BIN)/python -c 'import atheris' 2>/dev/null || { echo "Atheris has no wheel for this machine; nothing was fuzzed." >&2; exit 1; }
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

.PHONY: format
format: $(VENV)/.installed-for-tests ## Format the code.
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

.PHONY: tables
tables: $(VENV)/.installed ## Write the lists of docs/ that come from the code.
	@$(BIN)/python docs/write_tables.py

.PHONY: lock
lock: $(VENV)/.installed-for-development ## Write requirements*.txt from the ranges of setup.cfg. ARGS=--upgrade takes the newest releases.
	@$(LOCK) --all-extras --output-file requirements-dev.txt $(ARGS)
	@$(LOCK) --extra build --extra otel --extra test --extra check --constraint requirements-dev.txt --output-file requirements-test.txt
	@$(LOCK) --extra build --extra otel --constraint requirements-dev.txt --output-file requirements.txt

.PHONY: sbom
sbom: $(VENV)/.installed-for-development ## List what a server consists of, with licences, in CycloneDX: build/sbom.cdx.json.
	@$(BIN)/python deploy/sbom.py build/sbom.cdx.json

.PHONY: clean
clean: ## Remove what was installed and built. Keeps instance/ and .env: keys, clients and peppers are yours.
	rm -rf $(VENV) $(VENV)-3.* build mutants *.egg-info .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov $(NODE_CLIENTS)/node_modules $(PEERS)/node_modules
	find app buffered_worker config migrations tests bench wsgi.py -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true

# Made anew when what they were made from changes, so the second time is quick.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tokenhouse needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.cfg setup.py requirements.txt
	@echo "Installing into $(VENV) …"
	@$(call install,$(VENV),requirements.txt)
# Once for all: the user that runs a server must not write here, and would compile at each start and command.
	@$(BIN)/python -m compileall -q app buffered_worker config migrations wsgi.py
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed requirements-test.txt
	@echo "Installing what the tests need …"
	@$(call install,$(VENV),requirements-test.txt)
	@touch $@

$(VENV)/.installed-for-development: $(VENV)/.installed-for-tests requirements-dev.txt
	@echo "Installing what development needs …"
	@$(call install,$(VENV),requirements-dev.txt)
	@touch $@

# Clients in Node are tested where there is Node; where there is none, those tests say so.
.PHONY: node-clients
node-clients:
	@if command -v npm >/dev/null; then \
		test $(NODE_CLIENTS)/node_modules/.package-lock.json -nt $(NODE_CLIENTS)/package-lock.json || \
		npm ci --prefix $(NODE_CLIENTS) --silent --no-audit --no-fund; fi
