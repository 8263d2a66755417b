# `make` lists the targets. Everything runs in .venv, which the targets make and keep up to date by themselves:
# `make demo` on a fresh clone installs the base (no torch), `make test` adds the rest to the same environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# An interpreter of your choice: make test PYTHON=/path/to/python3.12
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A stamp is newer than what it was made from for as long as nothing needs to be installed again.
VENV_MADE := $(VENV)/.made
BASE := $(VENV)/.installed-base
ALL := $(VENV)/.installed-all
REQUIREMENTS := pyproject.toml constraints.txt hatch_build.py

SAMPLE := samples/motorcycle
FAST := not slow and not gpu
# For a schedule: another seed makes other cases.
FUZZ_CASES ?= 20000
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= 0

.PHONY: help demo test test-all test-triton gpu-check fuzz bench bench-short reliability screenshot lint format types clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(BASE) ## deblur the sample pair: pictures in demo/, PSNR and SSIM on the screen
	mkdir -p demo
	$(BIN)/ldp deblur $(SAMPLE)/left.png $(SAMPLE)/right.png -o demo/restored.png \
		--blur-map demo/blur-map.png --compare demo/compare.png --target $(SAMPLE)/target.png

test: lint types ## lint, types and the tests that need neither a GPU nor patience
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "$(FAST)"

test-all: lint types ## lint, types and every test; GPU tests skip where there is none
	$(BIN)/python -m pytest

test-triton: $(ALL) ## a real Triton server on loopback, in an environment of its own (.venv-triton)
	test -x .venv-triton/bin/python || $(BIN)/python -m venv .venv-triton
	grep -vE '^(protobuf|grpcio)==' constraints.txt > .venv-triton/constraints.txt
	.venv-triton/bin/pip install --quiet -c .venv-triton/constraints.txt -e . 'tritonclient[grpc,http]==2.73.0'
	.venv-triton/bin/pip install --quiet --no-deps nvidia-pytriton==0.7.0
	$(BIN)/python -m pytest tests/ldp_export/triton/test_serve.py

gpu-check: $(ALL) ## all that a GPU can check of LDP, in some minutes: a table, and build/gpu-check.json to send in
	$(BIN)/python -m tests.gpu -o build/gpu-check.json

fuzz: $(ALL) ## 20,000 hostile photos, bundles and arrays, then coverage-guided fuzzing of the readers: fuzz/
	$(BIN)/python -m tests.fuzz --cases $(FUZZ_CASES) --seed $(FUZZ_SEED) --jobs 2 -o fuzz
	$(BIN)/python -m tests.fuzz.atheris_manifest -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=fuzz/
	$(BIN)/python -m tests.fuzz.atheris_image -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=fuzz/

bench-short: $(ALL) ## parity of ldp-nano, whose gates can fail, and a short latency run: build/bench
	$(BIN)/python -m benchmarks parity -o build/bench
	$(BIN)/python -m benchmarks latency --shape 240x360 --seconds 30 -o build/bench

reliability: $(ALL) ## kills, fills and interrupts the commands, fifty kills and more: benchmarks/reports
	$(BIN)/python -m benchmarks reliability

screenshot: $(ALL) ## take the docs' picture of the page of ldp serve: docs/page.png
	$(BIN)/python -m benchmarks screenshot

bench: $(ALL) ## latency, parity, rooflines, Figure 1 and scaling: benchmarks/reports, build/report.html
	$(BIN)/python -m benchmarks exports --config small large fast fast-large
	$(BIN)/python -m benchmarks parity
	$(BIN)/python -m benchmarks latency --seconds 200
	$(BIN)/python -m benchmarks latency --config small fast --seconds 400 \
		--backend openvino:auto onnxruntime:fp32 torch:fp32 torch-channels-last:fp32
	$(BIN)/python -m benchmarks roofline
	$(BIN)/python -m benchmarks roofline --config small
	$(BIN)/python -m benchmarks roofline --config fast
	$(BIN)/python -m benchmarks roofline --config fast-large
	$(BIN)/python -m benchmarks figure1 --minutes 10
	$(BIN)/python -m benchmarks scaling --shape 1120x1680 2240x3360 --no-seams
	$(BIN)/python -m benchmarks report

lint: $(ALL) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(ALL) ## rewrite the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(ALL) ## mypy on the packages, the examples and the recipes
	$(BIN)/mypy

clean: ## remove what builds, tools and the demo wrote (not .venv)
	rm -rf build dist demo fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ldp_runtime ldp_export tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_MADE):
	@python=; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3.11 python3); do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: LDP needs Python 3.11 or newer; tried $(if $(PYTHON),$(PYTHON),python3.11 and python3)" \
			"($$($(if $(PYTHON),'$(PYTHON)',python3) --version 2>&1 | head -n 1 || true))." \
			"Install it, or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "error: $$python cannot make virtual environments. On Debian and Ubuntu install the package" \
			"python$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv." >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@touch $@

$(BASE): $(VENV_MADE) $(REQUIREMENTS)
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(ALL): $(VENV_MADE) $(REQUIREMENTS)
	$(PIP) install --quiet -c constraints.txt -e '.[export,train,bench,ray,rtx,cuda,serve,raw,fuzz,import,dev]'
	@touch $(BASE) $@
