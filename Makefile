# make demo | make test | make check | make setup
PYTHON ?= python3
export OMP_WAIT_POLICY ?= passive
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo test check bench-memory

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/smoothtune train demo --run-dir $(DEMO_RUN) > /dev/null
	$(BIN)/smoothtune evaluate $(DEMO_RUN) --words-alone
	@printf 'text\nIt leaked on the first day and nobody answered my calls.\n' \
		| $(BIN)/smoothtune predict $(DEMO_RUN) --task reviews 2> /dev/null
	@printf 'question1\tquestion2\nHow do I stop my bike chain from squeaking?\tWhat keeps a bicycle chain quiet?\n' \
		| $(BIN)/smoothtune predict $(DEMO_RUN) --task questions --probabilities 2> /dev/null
	@printf 'sentence1\tsentence2\nA man is slicing bread in the kitchen.\tSomeone cuts a loaf at the counter.\n' \
		| $(BIN)/smoothtune predict $(DEMO_RUN) --task similarity 2> /dev/null

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

bench-memory: setup
	$(BIN)/python benchmarks/predict_memory.py
