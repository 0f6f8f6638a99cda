# Everything installs into .venv inside the checkout; nothing is done twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
READY := $(VENV)/.ready

.PHONY: help setup lint test test-long matrix programs quickstart clean

help:
	@echo "make quickstart   train a convnet teacher, distil a small DeiT from it, compare (minutes, CPU)"
	@echo "make test         run the tests"
	@echo "make test-long    run those that take long (half an hour): whole runs in several processes, every recipe;"
	@echo "                  TESTS='tests/data tests/launch' runs some of them"
	@echo "make programs     compile training steps for accelerators that need not be here, and what each part costs"
	@echo "make matrix       run the tests with Colab's versions, the oldest and the newest (half an hour)"
	@echo "make lint         check format, rules, types, shell scripts and the Dockerfile"
	@echo "make setup        only install into $(VENV)"

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "deit_jax needs Python 3.11 or newer; this is " + sys.version.split()[0] + "; choose one with: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[data,quickstart,test]'
	@touch $(READY)

$(VENV)/.lint: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

lint: $(VENV)/.lint
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/shellcheck --external-sources scripts/*.sh scripts/*.sbatch .ci/run
	@$(BIN)/hadolint Dockerfile

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations 15

test: $(READY)
	@$(PYTEST) -m 'not long'

test-long: $(READY)
	@$(PYTEST) -m long $(TESTS)

# Environments of their own, in .matrix/, made by uv: that of the path, else one in $(VENV).
matrix: $(READY)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@PATH="$$PATH:$(CURDIR)/$(BIN)" scripts/matrix.sh

# The compilers of TPUs and GPUs, which run on any CPU: gigabytes to install, an hour on two cores.
PROGRAMS := configs/deit.py:ti configs/deit.py:s configs/deit.py:b configs/deit_distilled.py:s
$(VENV)/.programs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "jax[tpu,cuda12]==$$($(BIN)/python -c 'import jax; print(jax.__version__)')"
	@touch $@

RESULT = benchmarks/results/programs/$$(basename $$recipe | sed s/.py:/_/)

programs: $(VENV)/.programs
	@for recipe in $(PROGRAMS); do \
	  $(BIN)/python benchmarks/programs.py --config=$$recipe --target=v5e-1 --config.train.batch_size=128 \
	    --output=$(RESULT)-v5e-1.json || exit 1; \
	  $(BIN)/python benchmarks/programs.py --config=$$recipe --target=h100 --config.train.batch_size=256 \
	    --config.model.attention=xla --output=$(RESULT)-h100.json || exit 1; \
	done

quickstart: $(READY)
	@$(BIN)/python train.py --config=configs/quickstart.py:teacher --workdir=$(RUNS)/teacher
	@$(BIN)/python train.py --config=configs/quickstart.py:student --config.teacher.init=$(RUNS)/teacher --workdir=$(RUNS)/student
	@$(BIN)/python train.py --config=configs/quickstart.py:plain --workdir=$(RUNS)/plain
	@$(BIN)/deit-jax compare teacher=$(RUNS)/teacher student=$(RUNS)/student plain=$(RUNS)/plain --png=$(RUNS)/curves.png

clean:
	rm -rf $(VENV) .matrix build *.egg-info
