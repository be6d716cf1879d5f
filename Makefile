# One front door. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test faults bench lint clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: setup.cfg pyproject.toml
	@echo "building $(VENV) (a minute or two the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[local,demo,test,dev]'
	@touch $@

setup: $(VENV)/ready  ## Build .venv with the command at .venv/bin/lakehouse

demo: setup  ## Everything real, end to end, with a reconciliation at the end
	@$(BIN)/python demo/demo.py

test: setup  ## Run the whole suite on real services
	@$(BIN)/python -m pytest

faults: setup  ## More of what dies: ten kills in mid-stream
	@LAKEHOUSE_KILLS=10 $(BIN)/python -m pytest tests/faults

bench: setup  ## Beside hand-written PySpark, in one run (about 10 minutes)
	@$(BIN)/python benchmarks/compare.py

lint: setup  ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --config setup.cfg

clean:  ## Remove what was built here (data under .lakehouse stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
