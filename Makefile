# Every target sets up what it needs in $(VENV) first; a second run finds that done and starts at once.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
NATIVE := CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f)
FORMATTED := $(shell find csrc tests/ops/cuda_emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# benchmark-ratio compares the ops with those of this commit.
BASE ?= origin/main

# study: SMALL=1 for less than 20 minutes; DATA, MONO and MULTI are folders, PARTS comparisons (see examples/study.py).
STUDY = $(if $(SMALL),--small) $(if $(DATA),--data $(DATA)) $(if $(MONO),--mono $(MONO)) $(if $(MULTI),--multi $(MULTI)) \
	$(if $(EXTRAS),--extras) $(if $(PARTS),--parts $(PARTS))

.PHONY: demo study test lint format benchmark benchmark-ratio clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

study: $(VENV)/.installed
	$(BIN)/python examples/study.py $(STUDY)

test: lint
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

benchmark: $(VENV)/.installed
	$(PIP) install -c $(VENV)/constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks --json
	$(BIN)/python -m benchmarks report

benchmark-ratio: $(VENV)/.installed
	$(BIN)/python -m benchmarks --base $(BASE)

clean:
	rm -rf build out $(VENV)/.installed

# torch comes first and stays as it is, so that no dependency swaps it for another version or build.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ofa-fast needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	echo '$(TORCH)' > $(VENV)/constraints.txt
	$(PIP) install '$(TORCH)' numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) install -c $(VENV)/constraints.txt -C cmake.define.OFA_WERROR=ON -e '.[test,lint]'
	touch $@
