# `make demo` and `make test` work from nothing: they make an environment in .venv and install what they need there.
# PYTHON names the Python (3.11 or newer) that the environment is made with.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
N ?= 1000
SEED ?= $(shell date +%s)
BIN := $(abspath $(VENV))/bin

.DELETE_ON_ERROR:
.PHONY: help demo test lint typecheck coverage coverage-all snapshots hashes oracles faults-verify site notebooks docs wheel clean

help:
	@echo "make demo      convert ResNet32, show its stages, take one training step of the result"
	@echo "make test      ruff, mypy and all tests"
	@echo "make lint      ruff and mypy alone"
	@echo "make coverage  which networks convert: torchvision's CNNs, one of each family of timm and pytorchcv; minutes"
	@echo "make coverage-all  all 702, on JOBS processes, from where an interrupted run was; about an hour"
	@echo "make snapshots  whether one network of each family converts to what it did; minutes"
	@echo "make hashes    whether text and notes are the same under five seeds of Python's hashes, same networks; minutes"
	@echo "make oracles   N=1000 recipes against networks written by hand, and 3 styles of N / 3; a fifth of a second each"
	@echo "make site      the documentation as a site in build/site, its links checked"
	@echo "make notebooks the notebooks of examples/notebooks, run"
	@echo "make docs      the pictures of docs/, drawn anew, and the emitted networks of docs/gallery"
	@echo "make faults-verify  verify on every case of tests/faults"
	@echo "make fuzz      convert and check N=1000 random networks; about a second each"
	@echo "make wheel     build the package into dist/"
	@echo "make clean     remove builds and caches; .venv stays"

# Each environment is a stamp file, so that a second run installs nothing.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.models: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[models]"
	touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.models
	mkdir -p build
	$(BIN)/tdc convert zoo:resnet32 -o build/resnet32_td.py --force
	$(BIN)/tdc inspect zoo:resnet32
	$(BIN)/python examples/one_step.py build/resnet32_td.py

test: lint
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(MAKE) typecheck

# mypy cannot follow the mapping of passes/ and benchmarks/ into td_compiler in an editable install, so it is given the
# package as a user gets it, installed into a folder of its own, with the checkout's other Python beside it.
typecheck: $(VENV)/.dev
	rm -rf build/lib build/typed
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/typed .
	cp -R examples tests build/typed
	cd build/typed && $(BIN)/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		td_compiler examples tests

$(VENV)/.zoos: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[models,pytorchcv]"
	touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean --quiet

$(VENV)/.notebooks: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[notebooks]"
	touch $@

notebooks: $(VENV)/.notebooks
	$(BIN)/python -m pytest --nbmake examples/notebooks/*.ipynb

coverage: $(VENV)/.zoos
	$(BIN)/python -m benchmarks coverage --jobs $(JOBS) --resume

coverage-all: $(VENV)/.models
	$(BIN)/python -m benchmarks coverage --models torchvision-cnns timm-cnns --jobs $(JOBS) --resume \
		--output benchmarks/results/coverage.md

snapshots: $(VENV)/.dev
	$(BIN)/python -m tests.snapshots compare

hashes: $(VENV)/.dev
	$(BIN)/python -m tests.hashes

oracles: $(VENV)/.dev
	$(BIN)/python -m tests.oracles recipes $(N)
	$(BIN)/python -m tests.oracles styles $$(($(N) / 3))

GALLERY := $(addprefix torchvision:,resnet50 densenet121 mobilenet_v3_small efficientnet_b0 convnext_tiny googlenet) \
	timm:regnety_008 timm:repvgg_a0 timm:dla34 zoo:nin zoo:resnet32 zoo:lenet_fc

docs: $(VENV)/.dev
	for network in $(GALLERY); do $(BIN)/tdc convert $$network -o docs/gallery --force || exit 1; done
	$(BIN)/tdc inspect zoo:lenet_fc --plot docs/images/lenet_fc.svg --force
	$(BIN)/tdc inspect torchvision:resnet18 --plot docs/images/resnet18.svg --force
	$(BIN)/tdc inspect torchvision:mobilenet_v2 --plot docs/images/mobilenet_v2.svg --force

faults-verify: $(VENV)/.dev
	TD_FAULTS=all $(BIN)/python -m pytest -n $(JOBS) tests/faults/test_verify.py

fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=$(N) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -n $(JOBS) -x tests/test_fuzz_networks.py

wheel: $(VENV)/.dev
	rm -rf build/lib dist
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
