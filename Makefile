# The project's habits. CI calls exactly these. PYTHON chooses the interpreter that the environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check bench gen lock clean

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)  ## a fleet on this machine, beside round robin on as many instances
	$(BIN)/multislo demo

test: $(READY)  ## everything that needs no cluster
	$(BIN)/python -m pytest -n auto tests

check: $(READY)  ## style, types, arrows between the rooms, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) gen
	git diff --exit-code -- docs

bench: $(READY)  ## the router's own cost
	$(BIN)/multislo bench placement
	$(BIN)/multislo bench proxy

gen: $(READY)  ## files that are written from code
	$(BIN)/python -m multislo_api.reference docs/manifest.md

lock:  ## pin every dependency (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev --group build \
		--output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
