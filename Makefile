# Everything a fresh clone needs: `make demo`, `make test`, `make lint`. Each sets up .venv by itself.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
INSTALLED := .venv/.installed
VERL := .venv-verl/.installed
ADAPTERS := .venv-adapters/.installed
PLAYGROUND := runs/playground/.drawn

# Holds for what packages are built with, too.
export PIP_CONSTRAINT := constraints.txt

.PHONY: demo test test-verl test-adapters test-easyr1 lint format clean

# Train the tiny VLM on eight visual tasks; prints a table per source, writes runs/demo/.
demo: $(INSTALLED) $(PLAYGROUND)
	$(BIN)/vtriune train recipes/demo.yaml seed=$(SEED) --out runs/demo --replace

# One thread per process: two test processes share two cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# verl has an environment of its own: Ray and some fifty packages that nothing else needs.
test-verl: $(VERL)
	OMP_NUM_THREADS=1 .venv-verl/bin/pytest tests/integrations/verl

# TRL, ms-swift and OpenRLHF, whose own code calls ours: none lives with verl, and nothing else needs them.
test-adapters: $(ADAPTERS)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. .venv-adapters/bin/pytest \
		tests/integrations/test_trl.py tests/integrations/test_ms_swift.py tests/integrations/test_openrlhf.py

# EasyR1 is in no registry: `make test-easyr1 EASYR1=<clone of github.com/hiyouga/EasyR1>`. Its verl goes before verl itself.
test-easyr1: $(VERL)
	@test -f '$(EASYR1)/verl/workers/reward/function.py' || { echo 'no EasyR1: make test-easyr1 EASYR1=<clone>'; exit 2; }
	OMP_NUM_THREADS=1 PYTHONPATH='.:$(EASYR1)' .venv-verl/bin/pytest tests/integrations/test_easyr1.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PLAYGROUND): $(INSTALLED) src/vtriune/playground/tasks.py src/vtriune/playground/dataset.py
	rm -rf runs/playground
	$(BIN)/python -m vtriune.playground.dataset runs/playground
	touch $@

# torch goes first and alone, by exact version: asked for through a dependency it would bring the CUDA build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(VERL): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet torch==2.13.0
	.venv-verl/bin/pip install --quiet --editable '.[dev,verl]'
	touch $@

# OpenRLHF has wheels for Linux and Python 3.10 to 3.12.
$(ADAPTERS): pyproject.toml constraints.txt benchmarks/engine/requirements.txt tests/integrations/requirements.txt
	$(PYTHON) -m venv .venv-adapters
	.venv-adapters/bin/pip install --quiet torch==2.13.0
	.venv-adapters/bin/pip install --quiet --editable '.[dev]' -r tests/integrations/requirements.txt
	.venv-adapters/bin/pip install --quiet --no-deps ms-swift==4.6.0 openrlhf==0.11.2
	touch $@

clean:
	rm -rf .venv .venv-verl .venv-adapters runs/playground
