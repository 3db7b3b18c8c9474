# Every command that a person needs; the CI calls the same ones.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
EXTRAS ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu)
CONFIG ?= configs/demo.yaml
ARGS ?=
JOBS ?= 3

BIN := .venv/bin
SERVING := .venv/.serving
INSTALLED := .venv/.installed
RAY_BIN := .venv-ray/bin
RAY_INSTALLED := .venv-ray/.installed
TRITON := build/gpu_codegen/triton/.installed

.DEFAULT_GOAL := help
.PHONY: help install serve test test-slow test-all test-image test-gpu-codegen test-ray fuzz chaos demo-model demo-scores lint format docs-check requirements swagger-ui bench bench-gpu gpu-check clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv for serving and testing

serve: $(SERVING)  ## install into .venv what serving needs, then serve; CONFIG=configs/demo.yaml HOST=127.0.0.1 PORT=8000
	$(BIN)/python -m app --config $(CONFIG) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

# Three at a time on two cores, as many tests wait for processes. Files stay whole and in order, because neighbours
# share a browser, services and imported modules.
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)  ## run all tests except the slow ones; ARGS="tests/app -k settings" JOBS=3
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(INSTALLED)  ## run only the slow tests
	$(PYTEST) -m slow $(ARGS)

test-all: $(INSTALLED)  ## run all tests
	$(PYTEST) $(ARGS)

test-image: $(INSTALLED)  ## build the image with the small model and try it; as root on Debian, with buildah
	TEST_IMAGE=1 $(BIN)/python -m pytest tests/image $(ARGS)

test-gpu-codegen: $(INSTALLED) $(TRITON)  ## examine the code that torch's compiler makes for GPUs, without one; EVERY=1 for all sizes and batches
	TEST_GPU_CODEGEN=$(if $(EVERY),every,quick) $(BIN)/python -m pytest tests/gpu_codegen tests/workers/engine/kernels $(ARGS)

test-ray: $(RAY_INSTALLED)  ## run the service on a Ray cluster of two nodes, in an environment of its own
	$(RAY_BIN)/python -m pytest tests/ray $(ARGS)

fuzz: $(INSTALLED)  ## feed damaged input to the image decoder, the body parser and the service; ARGS="--seconds 600"
	$(BIN)/python -m tests.fuzz decoder $(ARGS)
	$(BIN)/python -m tests.fuzz parser $(ARGS)
	$(BIN)/python -m tests.fuzz service $(ARGS)

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## fix the style that ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs-check: $(INSTALLED)  ## check the documents: links, names of things, commands
	$(BIN)/python -m pytest tests/docs $(ARGS)

requirements: $(INSTALLED)  ## renew requirements.txt and requirements/, with versions and hashes
	$(BIN)/python -m requirements

swagger-ui: $(INSTALLED)  ## renew Swagger UI in app/docs, by npm; ARGS=5.35.0 for that version
	$(BIN)/python -m requirements.swagger_ui $(ARGS)

chaos: $(INSTALLED)  ## run the service under random faults for an hour; ARGS="--seconds 600 --seed 2 --out FILE"
	$(BIN)/python -m tests.chaos $(ARGS)

demo-model: $(INSTALLED)  ## train the small model from scratch, alone on the machine; ARGS="--minutes 180 --seed 0"
	$(BIN)/python -m example.demo_model train $(ARGS)

demo-scores: $(INSTALLED)  ## score a model and show its images; ARGS="FOLDER --sheet FILE.jpg"
	$(BIN)/python -m example.demo_model evaluate $(ARGS)

bench: $(INSTALLED)  ## run the short benchmarks; ARGS=overhead for one, see docs/performance.md
	$(BIN)/python -m tests.bench $(ARGS)

# Where torch for the GPU is there already: make bench-gpu INSTALLED= BIN=/usr/bin
bench-gpu: $(INSTALLED)  ## time an image on a GPU, as shipped, by stages, beside others; ARGS="--quick --parts http"
	$(BIN)/python -m tests.bench.latency $(ARGS)

GPU_TESTS = $(shell grep -rl -F --include='test_*.py' pytest.mark.gpu tests)
gpu-check: $(INSTALLED)  ## on a GPU, in ten minutes: an image by the service, CUDA_VISIBLE_DEVICES set and not; the tests marked gpu
	rm -f build/gpu-check.json
	began=$$(date +%s); timeout 240 $(BIN)/python -m tests.bench.latency --parts devices --out build/gpu-check.json; service=$$?; \
	timeout --signal=INT $$((began + 580 - $$(date +%s))) \
		$(BIN)/python -m pytest -v -m gpu -W default $(GPU_TESTS) $(ARGS) && exit $$service

clean:  ## delete .venv, caches and build files
	rm -rf .venv .venv-ray .mypy_cache .pytest_cache .ruff_cache .hypothesis build contour.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Serving needs 1.4 GB with torch for CPUs, testing 2.1 GB: .venv grows at the first test.
$(SERVING): pyproject.toml constraints.txt
	$(call installed,$(if $(EXTRAS),[$(EXTRAS)]))
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(call installed,[dev$(if $(EXTRAS),$(comma)$(EXTRAS))])
	@touch $@ $(SERVING)

comma := ,
define installed
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.$(1)'
endef

$(RAY_INSTALLED): pyproject.toml constraints.txt example/ray/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv-ray
	$(RAY_BIN)/pip install --constraint constraints.txt --constraint example/ray/constraints.txt --editable '.[ray]' pytest
	@touch $@

# Not into .venv: where torch finds Triton, it behaves differently. pip wants hashes of all or none, so of it alone.
$(TRITON): requirements/cuda.txt
	mkdir -p $(@D)
	sed -n '/^triton==/,/[^\\]$$/p' $< > $(@D).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) --requirement $(@D).txt
	@touch $@
