# Everything a fresh clone needs: `make demo`, `make test`, `make lint`. Each sets up .venv by itself.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
INSTALLED := .venv/.installed
VERL := .venv-verl/.installed
TRL := .venv-trl/.installed
PLAYGROUND := runs/playground/.drawn

# Holds for what packages are built with, too.
export PIP_CONSTRAINT := constraints.txt

.PHONY: demo test test-verl test-trl lint format clean

# Train the tiny VLM on eight visual tasks; prints a table per source, writes runs/demo/.
demo: $(INSTALLED) $(PLAYGROUND)
	$(BIN)/vtriune train recipes/demo.yaml seed=$(SEED) --out runs/demo --replace

# One thread per process: two test processes share two cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# verl has an environment of its own: Ray and some fifty packages that nothing else needs.
test-verl: $(VERL)
	OMP_NUM_THREADS=1 .venv-verl/bin/pytest tests/integrations/verl

# TRL does not live with verl, and nothing else needs it: an environment of its own.
test-trl: $(TRL)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. .venv-trl/bin/pytest tests/integrations/test_trl.py

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

$(TRL): pyproject.toml constraints.txt benchmarks/engine/requirements.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet torch==2.13.0
	.venv-trl/bin/pip install --quiet --editable '.[dev]' -r benchmarks/engine/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-verl .venv-trl runs/playground
