# `make help` lists what there is. Another interpreter: make quickstart PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart picture test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make quickstart   install into $(VENV) and distil a real encoder: table, report.html, model"
	@echo "make picture      README's picture of the report of RUN (runs/quickstart); needs Chromium"
	@echo "make test         install the test extra and run all tests"
	@echo "make lint         install the dev extra; format, lint, types and import layers"
	@echo "make clean        remove $(VENV) and caches (never runs/)"

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/potstill quickstart

RUN ?= runs/quickstart
picture: $(VENV)/.installed-quickstart
	$(BIN)/potstill report "$(RUN)"
	$(BIN)/python benchmarks/report_picture.py "$(RUN)" docs/images/report.png

# One thread each: two test processes that share the cores must not fight over them.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf "$(VENV)" build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say which extras are installed; editing pyproject.toml or constraints.txt renews them.
$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch "$@"

$(VENV)/.created:
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "error: $(PYTHON) is not installed: install Python 3.11 or newer, or name one:" \
			"make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, $(PYTHON) is" \
			"$$("$(PYTHON)" --version 2>&1): name a newer one, for example" \
			"make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || { \
		echo "error: $(PYTHON) has no venv with pip: install it (on Debian and Ubuntu the package" \
			"python3-venv), or name another: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch "$@"
