PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
FOLDERS := benchmarks export reference runtime

.PHONY: setup test test-full lint types demo bench clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,export,bench,test]'
	touch $@

types: $(INSTALLED)
	@mkdir -p .types/safelight
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder .types/safelight/$$folder; done

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not full_shape"

test-full: lint
	$(BIN)/pytest
