# Needs make, git and Python >= 3.11; no compiler, no GPU. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --no-compile --no-input --disable-pip-version-check -c constraints.txt
# Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of the processes of each command would compile anew
# what it imports, which takes longer than all else before the first step. With all cores, unlike pip. Python compiles by
# itself, at the first import, where the variable is not set.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib jobs model pipeline || true,true)

.PHONY: help demo ui bench gpu-check gpu-packages gpu-wheels test test-all chaos check format lint audit sbom clean clean-all

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## train and evaluate a small translator, in about five minutes on two cores
	@$(BIN)/transloom run experiment=demo

ui: $(VENV)/.installed  ## serve MLflow's pages on the runs, on this machine only
	@$(BIN)/transloom ui

bench: $(VENV)/.installed-export  ## measure training and decoding against what is usually used; ARGS="corpus=multi30k_en_de"
	@$(BIN)/transloom bench $(ARGS)

# With WHEELS=<folder> by the machine's own python3, with its own torch, and what those wheels bring besides: offline.
GPU_PACKAGES := $(CURDIR)/build/gpu-check
gpu-check: $(if $(WHEELS),gpu-packages,$(VENV)/.installed-export)  ## try training and translating on this machine's GPU, in nine minutes; WHEELS=<folder>
	@$(if $(WHEELS),PYTHONPATH=$(GPU_PACKAGES) python3,$(BIN)/python) -m transloom.jobs.gpu_check $(ARGS)

gpu-packages:
	@rm -rf $(GPU_PACKAGES)
	@python3 -m pip install -qq --no-index --no-deps --no-compile --no-input --disable-pip-version-check \
		--target $(GPU_PACKAGES) $(WHEELS)/*.whl

# No dependencies are followed: what a machine with torch and transformers has already is not in the list.
GPU_WHEELS := build/wheels
GPU_PIP := -q --disable-pip-version-check --no-deps -c constraints.txt
gpu-wheels: $(BIN)/python  ## fetch into build/wheels what gpu-check needs beside torch; PYTHON_VERSION=3.12 for that machine's
	@mkdir -p $(GPU_WHEELS)
	@# DeepSpeed comes as source, and compiles nothing.
	@DS_BUILD_OPS=0 $(BIN)/python -m pip wheel $(GPU_PIP) -w $(GPU_WHEELS) deepspeed
	@$(BIN)/python -m pip download $(GPU_PIP) --only-binary=:all: -d $(GPU_WHEELS) -r deploy/gpu-check.txt \
		$(if $(PYTHON_VERSION),--python-version $(PYTHON_VERSION))
	@du -sh $(GPU_WHEELS)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20
test: check  ## lint, types, layers and the tests that take seconds; test-all has those of whole trainings, too
	$(PYTEST) -m "not slow"

test-all: check  ## lint, types, layers and all tests, in about forty minutes on two cores; what .ci/run does
	@# tests/conftest.py says which go together, and which come first. The order is kept.
	$(PYTEST)

# tests/chaos is a package beside the tests, and is not installed.
chaos: $(VENV)/.installed-dev  ## inject faults into real trainings; ARGS="cases=1,5 times=3", ARGS="soak minutes=10", ARGS=stall
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m chaos $(ARGS)

check: $(VENV)/.installed-dev  ## lint, formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: check

audit: $(VENV)/.installed-audit  ## look the installed versions up among the known vulnerabilities; asks the internet
	@# strict: a package that could not be looked up is not one that is sound
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip || { \
		echo "Not clean: the reason stands above. Where that is no vulnerability, the advisory service did not answer" >&2; \
		echo "(it needs the internet), and not all versions were checked." >&2; exit 1; }

sbom: $(VENV)/.installed-audit  ## write sbom.json, the installed packages with their licences, in CycloneDX's form
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json \
		$(BIN)/python

clean:  ## remove caches and build leftovers
	rm -rf build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-all: clean  ## also remove the environment and every output
	rm -rf $(VENV) outputs

# The stamps make the environment anew only when what it is made from changed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Transloom needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Transloom into $(VENV): a minute or two, depending on the network"
	@$(PIP_INSTALL) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-export: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Transloom, and what it is compared with, into $(VENV): a minute or two, depending on the network"
	@$(PIP_INSTALL) -e '.[export]'
	@$(COMPILE)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-audit: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pip-audit and cyclonedx-bom into $(VENV)"
	@$(PIP_INSTALL) -e '.[audit]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Transloom and its development tools into $(VENV): a minute or two, depending on the network"
	@$(PIP_INSTALL) -e '.[dev]'
	@$(COMPILE)
	@touch $(VENV)/.installed $(VENV)/.installed-export $@
