PYTHON ?= python3
VENV ?= .venv
# Exact: pip takes the newest torch that a range admits, which may be another several gigabytes.
TORCH ?= torch==2.13.0

bin := $(VENV)/bin
native := CMakeLists.txt $(wildcard kernels/native/*.cpp kernels/native/*.h kernels/native/simd/*.h)

.PHONY: demo test sanitized emulated search fuzz clients clients-small lint clean

demo: $(VENV)/.runs  ## serve the demo model on 127.0.0.1:8000
	$(bin)/qwell serve

test: $(VENV)/.tests  ## run all tests
	$(bin)/pytest -n 2 --dist loadfile

sanitized: $(VENV)/.tests  ## the C++ tests with the compiler's sanitizers
	$(bin)/pytest tests/sanitized

emulated: $(VENV)/.tests  ## the C++ tests on processors that this machine is not
	$(bin)/pytest -n 2 --dist loadfile tests/emulated

search: $(VENV)/.tests  ## properties on examples that no run has tried yet
	$(bin)/pytest -n 2 --dist loadfile --hypothesis-profile search tests/unit tests/parity tests/server

fuzz: $(VENV)/.tests  ## 20,000 spoilt requests, others each time
	QWELL_FUZZ_REQUESTS=20000 $(bin)/pytest -s --timeout 3600 tests/server/test_fuzz.py

clients: $(VENV)/.tests  ## the programs that people use with OpenAI's API, each in its own environment
	$(bin)/pytest tests/clients --timeout 1200

clients-small: $(VENV)/.tests  ## all but those that take long to install
	$(bin)/pytest tests/clients --timeout 1200 -m "not large_install"

lint: $(VENV)/.tests  ## style, types, direction of imports
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports
	# mypy does not follow an editable install: it gets the package as a wheel lays it out.
	rm -rf build/typed && mkdir -p build/typed
	cp -r src/qwell build/typed
	cp -r bench kernels runtime server build/typed/qwell
	MYPYPATH=build/typed $(bin)/mypy --package qwell

clean:
	rm -rf $(VENV) build

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(bin)/pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.runs: $(VENV)/.torch pyproject.toml $(native)
	$(bin)/pip install --quiet --editable .
	touch $@

# Not after .runs: each installation compiles the kernels.
$(VENV)/.tests: $(VENV)/.torch pyproject.toml $(native)
	$(bin)/pip install --quiet --editable ".[test,lint]"
	touch $(VENV)/.runs $@
