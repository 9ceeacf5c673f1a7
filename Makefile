# Everything a contributor runs. Each target sets up what it needs; a second run finds it there.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLOTTING := $(VENV)/.installed-bench
BUF := .cache/buf/node_modules/.bin/buf

MESSAGES := $(wildcard proto/losswire/v1/*.proto)
SERVICES := proto/losswire/v1/loss_service.proto
GENERATED := client/src/losswire/v1
FRESH := .cache/generated
# Compiled when the server is installed.
KERNEL := server/hatch_build.py $(wildcard server/src/losswire_server/losses/cpu_kernel/*.h) \
	server/src/losswire_server/losses/cpu_kernel/kernel.cpp
SHELL_FILES := .ci/run $(wildcard deploy/*/*.sh)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install proto check fix test demo serve bench bench-kernels bench-peers bench-full clean
.PHONY: check-python check-types check-proto check-generated check-shell fresh

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv: both packages, editable, and what checks them

proto: $(BUF) fresh ## Format and lint the .proto files and generate the Python code from them
	$(BUF) format proto --write
	$(BUF) lint proto
	rm -f $(GENERATED)/*_pb2*
	cp $(FRESH)/losswire/v1/* $(GENERATED)/

check: check-python check-types check-proto check-generated check-shell ## Run every check that CI runs besides the tests

fix: $(INSTALLED) proto ## Repair what the checks find, where a tool can
	$(BIN)/ruff check --quiet --fix
	$(BIN)/ruff format --quiet

test: $(INSTALLED) ## Run the tests; ARGS='-k stream' passes options to pytest
	$(BIN)/python -m pytest $(ARGS)

demo: $(INSTALLED) ## Start a server, send it batches and compare the losses with PyTorch's
	$(BIN)/python examples/demo.py $(ARGS)

serve: $(INSTALLED) ## Run a server on 127.0.0.1:50051; ARGS='--help' lists its settings
	$(BIN)/losswire-server $(ARGS)

bench: $(INSTALLED) ## Measure the service against its limits, and small calls, in about 4 minutes
	$(BIN)/python -m benchmarks.bench_service $(ARGS)
	$(BIN)/python -m benchmarks.bench_small

bench-kernels: $(INSTALLED) ## Measure the CPU kernel against reading, PyTorch and, with ARGS='--full', torch.compile
	$(BIN)/python -m benchmarks.bench_kernels $(ARGS)

bench-peers: $(INSTALLED) ## Measure losswire beside Triton, Ray Serve, LitServe, BentoML and plain grpcio
	$(BIN)/python -m benchmarks.bench_peers $(ARGS)

bench-full: $(PLOTTING) ## Measure everything and draw the plots, in about 25 minutes; ARGS='--only peers,plots' for parts
	$(BIN)/python -m benchmarks.full $(ARGS)

clean: ## Remove everything that make made, .venv too
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache client/dist server/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-python: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(INSTALLED)
	$(BIN)/mypy

check-proto: $(BUF)
	$(BUF) lint proto
	$(BUF) format proto --diff --exit-code

check-generated: fresh
	@rm -rf .cache/committed && mkdir -p .cache/committed/losswire/v1 && cp $(GENERATED)/*_pb2* .cache/committed/losswire/v1
	@diff -r .cache/committed $(FRESH) || { echo "The generated code is not that of proto/: run make proto." >&2; exit 1; }

check-shell: $(INSTALLED)
	$(BIN)/shellcheck $(SHELL_FILES)

# Only LossService needs gRPC code: for a file without services the generator writes an empty module.
fresh: $(INSTALLED)
	@rm -rf $(FRESH) && mkdir -p $(FRESH)
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=$(FRESH) --pyi_out=$(FRESH) $(MESSAGES)
	@$(BIN)/python -m grpc_tools.protoc --proto_path=proto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--grpc_python_out=$(FRESH) --mypy_grpc_out=quiet:$(FRESH) $(SERVICES)

$(INSTALLED): pyproject.toml client/pyproject.toml server/pyproject.toml $(KERNEL)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "losswire needs Python 3.11 or newer; set PYTHON")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --editable 'client[report,bfloat16,otel]' --editable 'server[otlp]'
	@touch $@

$(PLOTTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(BUF):
	npm install --silent --no-audit --no-fund --prefix .cache/buf @bufbuild/buf@1.75.0
