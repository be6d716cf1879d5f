# One front door. `make help` lists what there is.
PYTHON ?= python3
# processes that share the tests, file by file; 0: pytest alone
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
AIRFLOW := .airflow-venv
.DEFAULT_GOAL := help
.PHONY: help setup demo test pictures faults soak model bench lint docs airflow airflow-up airflow-down clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: setup.cfg pyproject.toml
	@echo "building $(VENV) (a minute or two the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[local,dashboard,demo,lineage,test,docs,dev]'
	@touch $@

setup: $(VENV)/ready  ## Build .venv with the command at .venv/bin/lakehouse

demo: setup  ## Everything real, end to end, with a reconciliation at the end
	@$(BIN)/python demo/demo.py $(if $(KEEP),--keep)

test: setup  ## Run the whole suite on real services
	@$(BIN)/python -m pytest $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

pictures: setup  ## Take the pictures in docs/images anew
	@LAKEHOUSE_PICTURES=docs/images $(BIN)/python -m pytest -q tests/dashboard/test_pages.py -k pictures

faults: setup  ## Every cell of the kill matrix, schedules of the model in the engine, histories of a job (an hour)
	@$(BIN)/python -m tests.faults.matrix
	@LAKEHOUSE_KILLS=10 LAKEHOUSE_EXAMPLES=40 $(BIN)/python -m pytest --timeout 900 tests/faults \
	  tests/test_incremental.py tests/test_delta_modes.py

soak: setup  ## 200 times kill -9 at random moments under load (40 minutes)
	@$(BIN)/python -m tests.faults.soak 200

model: setup  ## Hundreds of thousands of schedules of a model of the protocol (10 minutes; no services)
	@LAKEHOUSE_EXAMPLES=4000 $(BIN)/python -m pytest -q -s --timeout 1800 tests/model/test_model.py

bench: setup  ## Beside hand-written PySpark, in one run (about 10 minutes)
	@$(BIN)/python benchmarks/compare.py

lint: setup  ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --config setup.cfg

docs: setup  ## Schemas, reference and the site (build/site), made anew
	@$(BIN)/lakehouse schema --write schema
	@$(BIN)/lakehouse reference --write
	@$(BIN)/mkdocs build && echo "build/site/index.html"

# An environment of its own, without pyspark: Airflow's dependencies and the engine's do not mix.
$(AIRFLOW)/ready: airflow/constraints.txt setup.cfg pyproject.toml
	@echo "building $(AIRFLOW) (two minutes the first time)"
	@$(PYTHON) -m venv $(AIRFLOW)
	@$(AIRFLOW)/bin/pip install --quiet --disable-pip-version-check -c airflow/constraints.txt \
	  apache-airflow asyncpg psycopg2-binary pydantic pyyaml jsonschema sqlglot
	@$(AIRFLOW)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

airflow: $(AIRFLOW)/ready  ## Build Airflow's own environment in .airflow-venv

airflow-up: setup airflow  ## Start Airflow with the DAGs of pipelines/, and leave it running
	@$(BIN)/lakehouse airflow up

airflow-down: setup  ## Stop Airflow
	@$(BIN)/lakehouse airflow down

clean:  ## Remove what was built here (data under .lakehouse stays)
	rm -rf $(VENV) $(AIRFLOW) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
