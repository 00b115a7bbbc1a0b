# The two commands: `make demo` and `make test`. Both set everything up first.

# The newest Python that runs: a pyenv shim is on the PATH without a version behind it. Where only an
# older Python has torch at hand (a CPU build on disk, not gigabytes of CUDA), say make PYTHON=python3.11.
PYTHON ?= $(or $(firstword $(foreach v,3.13 3.12 3.11,$(shell python$(v) -c 'print("python$(v)")' 2>/dev/null))),python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help setup demo test fuzz schemathesis s3-server gltf-tools check links format docs wheel bench clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/'

setup: $(READY)  ## make .venv with dff and everything it needs

# setuptools warns of folders that have a package's name, as ours do on purpose (setup.py). Its strict mode, which
# does not warn, would link each file: a new one would be missing until the next installation.
# pyrender 0.1.45 pins a PyOpenGL that is too old for current Mesa, hence --no-deps (its needs are the extra gl).
$(READY): pyproject.toml constraints.txt scripts/install_system_packages.sh
	bash scripts/install_system_packages.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps pyrender==0.1.45
	$(BIN)/python scripts/compile_kernels.py
	@touch $(READY)

demo: $(READY)  ## photo -> synthesis -> training -> served aligner -> one HTML report
	$(BIN)/dff demo

# Three processes for two cores: tests that start Ray wait half of their time.
test: $(READY)  ## run the tests
	@$(MAKE) --no-print-directory s3-server || echo "The S3 server can't be installed: its tests are skipped."
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

fuzz: $(READY)  ## 3,000 damaged files and 60 rounds of random requests to the service
	DFF_FUZZ=3000 $(BIN)/python -m pytest -p no:cacheprovider --timeout=1800 tests/aligner/service/test_fuzz.py

schemathesis: $(READY)  ## Schemathesis against a server: 2,000 requests from the API's description
	bash scripts/run_schemathesis.sh

s3-server: build/swift/bin/swift-proxy-server  ## install a real S3 server for the tests that want one

build/swift/bin/swift-proxy-server: tests/swift.txt
	$(PYTHON) -m venv build/swift
	build/swift/bin/pip install --quiet --retries 1 --timeout 15 -r tests/swift.txt
	@touch $@

gltf-tools: $(READY)  ## install glTF's validator and viewers (npm) for the tests that want them
	npm install --silent --prefix .venv/gltf gltf-validator@2.0.0-dev.3.10 \
		@google/model-viewer@4.4.0 three@0.183.2

check: $(READY) links  ## ruff and mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy scripts/*.py benchmarks/*.py

links:  # the rooms under the name that they are installed by, where mypy and mkdocs look for them
	rm -rf build/typing
	mkdir -p build/typing/dff
	ln -s $(CURDIR)/dff/* $(CURDIR)/face $(CURDIR)/infra $(CURDIR)/pipeline $(CURDIR)/trainer $(CURDIR)/aligner build/typing/dff

format: $(READY)  ## ruff format and import order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) links  ## build the documentation into out/docs
	$(BIN)/pip install --quiet -c constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(READY)  ## build the wheel into out/wheel
	rm -rf build/lib build/bdist.*  # setuptools would pack files that are no longer in the tree
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir out/wheel .

bench: $(READY)  ## the benchmarks: ratios measured in one run
	for b in render synthesis inverse training align; do $(BIN)/python -m benchmarks.$$b || exit 1; done

clean:  ## remove the virtual environment and what runs have left
	rm -rf $(VENV) out build .mypy_cache .ruff_cache .pytest_cache
