# Works with GNU make and a POSIX shell on a machine that has only Python >= 3.10. pip's own settings
# (PIP_INDEX_URL, PIP_CACHE_DIR, ...) apply as usual.
#   make PYTHON=python3.12 test      another interpreter
#   make VENV=/tmp/venv test         another place for the environment
#   make TEST_PROCESSES=8 test       more tests at a time (about 1.5 GB of memory each)

PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
REQUIREMENTS_DEV ?= requirements-dev.txt
TEST_PROCESSES ?= 2

RUN := $(VENV)/bin/python
# One thread a process: with more, the threads of two processes wait for each other on two cores.
# "worksteal", as the tests of a file take from milliseconds to half a minute.
TEST := OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n $(TEST_PROCESSES) --dist worksteal
RUNTIME := $(VENV)/.ltrb-runtime
DEV := $(VENV)/.ltrb-dev
OURS := $(VENV)/.ltrb-created
REMEDY := Remove it (make clean, if make made it) or choose another place: make VENV=<folder> ...

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-grid lint clean
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME)  ## draw pictures, train a small detector on them, detect; results in runs/
	"$(RUN)" train.py --name demo --exist-ok
	"$(RUN)" detect.py --weights runs/train/demo/weights/best.pt --source datasets/shapes/images/val \
		--name demo --exist-ok
	@echo
	@echo "The validation pictures with the boxes found in them: runs/detect/demo"
	@echo "The training, its curves and its weights:             runs/train/demo"

test: $(DEV)  ## the tests, without the slow ones
	$(TEST) -m "not slow and not grid"

test-slow: $(DEV)  ## the tests marked slow, which take minutes
	$(TEST) -m "slow and not grid" || [ $$? -eq 5 ]  # 5: no test is marked slow

test-grid: $(DEV)  ## every combination of what the other tests try by pairs: about ten minutes
	$(TEST) -m grid

lint: $(DEV)  ## ruff: rules and formatting; changes nothing
	@status=0; \
	echo '"$(RUN)" -m ruff check .'; "$(RUN)" -m ruff check . || status=1; \
	echo '"$(RUN)" -m ruff format --check .'; "$(RUN)" -m ruff format --check . || status=1; \
	exit $$status

clean:  ## remove caches and the environment made here; runs/ and datasets/ stay
	rm -rf __pycache__ .ruff_cache .pytest_cache .hypothesis
	find benchmarks data models scripts tests utils -type d -name __pycache__ -prune -exec rm -rf {} +
	@if [ -e "$(OURS)" ]; then echo 'rm -rf "$(VENV)"'; rm -rf "$(VENV)"; \
	elif [ -e "$(VENV)" ]; then echo "$(VENV) was not made by this Makefile: kept"; fi

$(RUNTIME): $(REQUIREMENTS) | $(RUN)
	$(check_venv)
	"$(RUN)" -m pip install --disable-pip-version-check -r "$(REQUIREMENTS)"
	@touch "$@"

$(DEV): $(REQUIREMENTS) $(REQUIREMENTS_DEV) | $(RUN)
	$(check_venv)
	"$(RUN)" -m pip install --disable-pip-version-check -r "$(REQUIREMENTS_DEV)"
	@touch "$@"

# Runs only where there is no such file, or where it is a link to an interpreter that is gone.
$(RUN):
	@if [ -e "$(VENV)" ]; then \
		echo "error: $(VENV) exists, but has no working bin/python. $(REMEDY)"; exit 2; fi >&2
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: $(PYTHON) not found. Install Python 3.10 or newer, or name one:"; \
		echo "  make PYTHON=/path/to/python3 ..."; exit 2; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		found=`"$(PYTHON)" --version 2>&1`; \
		echo "error: $(PYTHON) is $$found; ltrb needs Python 3.10 or newer. Name one:"; \
		echo "  make PYTHON=python3.12 ..."; exit 2; } >&2
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		version=`"$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'`; \
		echo "error: $(PYTHON) cannot make virtual environments: its ensurepip or venv module is missing."; \
		echo "  Debian, Ubuntu: sudo apt install python$$version-venv"; \
		echo "  elsewhere: the package of your system that brings Python's venv and ensurepip"; exit 2; } >&2
	@mkdir -p "$(VENV)" && touch "$(OURS)"
	"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }

# An environment that was there before is used as it is, if it can be.
define check_venv
@"$(RUN)" -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	echo "error: $(VENV) needs Python 3.10 or newer, and pip. $(REMEDY)"; exit 2; } >&2
endef
