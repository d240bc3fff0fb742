# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
DOCS := $(VENV)/.docs
# The package with one of its extras, from this folder.
INSTALL = if command -v uv >/dev/null 2>&1; then \
		VIRTUAL_ENV=$(VENV) uv pip install --quiet -e '.$(1)'; \
	else \
		env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(1)'; \
	fi

.PHONY: demo test check docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the main job on the bundled backbone, in minutes (pictures and adapters in demo/)"
	@echo "make test    the tests"
	@echo "make check   linter, formatter, type checker and the order of the rooms"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make bench   the benchmarks behind the README's ratios"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vprompt needs Python 3.11 or newer; set PYTHON=...")'
	@echo "Setting up $(VENV): PyTorch and timm are a few hundred megabytes, once."
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(BIN)/python
	@$(call INSTALL,[dev])
	@touch $@

# Less than for the tests: the package alone.
$(DEMO): pyproject.toml | $(BIN)/python
	@$(call INSTALL,)
	@touch $@

$(DOCS): $(READY)
	@$(call INSTALL,[docs])
	@touch $@

demo: $(DEMO)
	$(BIN)/vprompt demo --out demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo

# Not with --quiet: it silences the warnings that make a strict build fail.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(READY)
	$(BIN)/python benchmarks/inference.py --rounds 5
	$(BIN)/python benchmarks/inference.py --backbone swin_tiny_patch4_window7_224 --prompts 50 --rounds 5
	$(BIN)/python benchmarks/training.py --rounds 2
	$(BIN)/python benchmarks/memory.py --rounds 1 --prompts 200 --batch 8
	$(BIN)/python benchmarks/caching.py --rounds 2
	$(BIN)/python benchmarks/condensing.py --rounds 2 --batch 4
	$(BIN)/python benchmarks/bank.py --rounds 3
	$(BIN)/python benchmarks/formats.py --rounds 9
	$(BIN)/python benchmarks/serving.py --rounds 2 --seconds 3

clean:
	rm -rf $(VENV) demo runs site
