# make demo | make test | make fuzz | make check | make setup | make bench (and each part of it alone: make bench-PART)
PYTHON ?= python3
export OMP_WAIT_POLICY ?= passive
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

BENCH := $(BIN)/python benchmarks
# Parts that make bench measures, in this order; quality, train-memory and cuda take long or need a GPU and are run by name.
PARTS := tune training floor step setfit prediction three-tasks growth pwim frozen mixed efficient checkpoints checkpoint-blocks cache-sums start

.PHONY: setup demo test check bench-memory bench bench-envs bench-page bench-quality bench-train-memory bench-cuda \
	$(addprefix bench-,$(PARTS))

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

# A process for each core, of one thread each: twice as fast as one process of all threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Ends runs in every way there is: KILLS of them at random moments, LOSSES by power loss (imitated: what was not synced is lost), each write of a run
# on a full disk; tells how many went on to the same bits. Models shared by 8 threads answer CALLS calls each.
.PHONY: test-faults
KILLS ?= 100
LOSSES ?= 200
CALLS ?= 1000
test-faults: setup
	OMP_NUM_THREADS=1 SMOOTHTUNE_THREAD_CALLS=$(CALLS) $(BIN)/python -m pytest --timeout 7200 tests/test_threads.py
	SMOOTHTUNE_KILLS=$(KILLS) SMOOTHTUNE_LOSSES=$(LOSSES) SMOOTHTUNE_FULL=1 $(BIN)/python -m pytest -s --timeout 7200 \
		tests/test_kills.py tests/test_power_loss.py tests/test_disk_full.py tests/test_checkpoint.py

# The kernels as a processor without AVX-512, and one with a tile unit (emulated), would build them.
.PHONY: test-processors
test-processors: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.processors avx2
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.processors tiles

# Damaged and hostile files for everything that reads files, then damaged entries of the cache; FUZZ=N and DAMAGES=N for other numbers of them, SEED=N for others.
.PHONY: fuzz
FUZZ ?= 20000
DAMAGES ?= 2400
SEED ?= 1
fuzz: setup
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ) --seed $(SEED)
	$(BIN)/python -m tests.fuzz.cache --damages $(DAMAGES) --seed $(SEED)

check: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

# Builds the sdist, and a wheel of it, installs that in a fresh environment, and trains, predicts and compares versions there.
.PHONY: release-check
RELEASE := build/release
release-check: setup
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt build
	$(BIN)/python -m build --outdir $(RELEASE)/dist .
	$(PYTHON) -m venv $(RELEASE)/venv
	$(RELEASE)/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(RELEASE)/dist/*.whl
	$(BIN)/python tests/release.py $(RELEASE)

bench-memory: setup
	$(BIN)/python benchmarks/predict_memory.py

# A part that fails leaves its section of the page as it was; the others are measured all the same.
bench: bench-envs
	@for part in $(PARTS); do $(MAKE) --no-print-directory bench-$$part || echo "bench-$$part failed" >&2; done
	$(MAKE) --no-print-directory bench-page

bench-envs: setup
	$(BENCH)/environments.py

bench-page: setup
	$(BENCH)/page.py

bench-tune: setup
	$(BENCH)/tune_trainer.py

bench-training: setup
	$(BENCH)/training.py

bench-floor: setup
	$(BENCH)/floor.py

bench-step: setup
	$(BENCH)/captured.py step_profile

bench-setfit: setup
	$(BENCH)/setfit_task.py

bench-prediction: setup
	$(BENCH)/prediction.py

bench-three-tasks: setup
	$(BENCH)/three_tasks.py

bench-growth: setup
	$(BENCH)/growth.py

bench-pwim: setup
	$(BENCH)/pwim_resnet.py

bench-frozen: setup
	$(BENCH)/captured.py frozen --epochs 3

# OTHER is the src folder of another checkout, with which single-thread calls are compared.
.PHONY: bench-shared-model
bench-shared-model: setup
	OMP_NUM_THREADS=1 $(BENCH)/shared_model.py --other $(OTHER)

bench-mixed: setup
	$(BENCH)/mixed_batch.py

bench-efficient: setup
	$(BENCH)/efficient_stage.py

bench-checkpoints: setup
	$(BENCH)/checkpoint_cost.py

bench-checkpoint-blocks: setup
	$(BENCH)/checkpoint_blocks.py

bench-cache-sums: setup
	$(BENCH)/cache_sums.py

bench-start: setup
	$(BENCH)/captured.py start

bench-train-memory: setup
	$(BENCH)/captured.py train_memory

bench-quality: setup
	$(BENCH)/quality.py

bench-cuda: setup
	$(BENCH)/training.py --device cuda
	$(BENCH)/floor.py --device cuda
	$(BENCH)/prediction.py --device cuda

# How often the intervals of scores hold the true value: benchmarks/results/coverage.json and the table of docs/intervals.md.
.PHONY: bench-coverage
bench-coverage: setup
	$(BENCH)/interval_coverage.py

# Kernels, for docs/kernels.md. BEFORE is a checkout of an earlier commit.
.PHONY: bench-kernel-errors bench-attention-speed
bench-kernel-errors: setup
	$(BENCH)/kernel_errors.py $(if $(BEFORE),--before $(BEFORE))

bench-attention-speed: setup
	$(BENCH)/attention_speed.py $(BEFORE)

# Smoothness, for docs/smoothness.md. Tuning and little data take hours: stopped, they go on where they were.
.PHONY: bench-smoothness-tables bench-smoothness-cost bench-smoothness-tuning bench-smoothness-little bench-smoothness-page
JOBS ?= $(shell nproc)

bench-smoothness-tables: setup
	$(BENCH)/smoothness_tables.py

bench-smoothness-cost: setup
	$(BENCH)/smoothness_cost.py

bench-smoothness-tuning: setup
	$(BENCH)/little_data_tuning.py --jobs $(JOBS) --threads 1 --finalists 2 --final-seeds 1

bench-smoothness-little: setup
	$(BENCH)/little_data.py --jobs $(JOBS) --threads 1

bench-smoothness-page: setup
	$(BENCH)/smoothness_page.py

# Wang's whole pipeline, for docs/results.md. Takes hours: stopped, it goes on where it was (runs/wang).
.PHONY: bench-wang bench-results-page bench-packaged
bench-wang: setup
	$(BENCH)/wang_pipeline.py

bench-packaged: setup
	$(BENCH)/packaged_learn.py

bench-results-page: setup
	$(BENCH)/results_page.py

# Two moons with and without smoothness: accuracies, and docs/images/boundary.svg.
.PHONY: bench-boundary
bench-boundary: setup
	$(BENCH)/boundary.py

# What the defaults give, for docs/defaults.md. Needs SMOOTHTUNE_DATA; takes hours: stopped, it resumes with the cells that are not there.
.PHONY: bench-default bench-default-page bench-tickets bench-several
bench-default: setup
	$(BENCH)/default_sets.py --jobs $(JOBS) --threads 1
	$(MAKE) --no-print-directory bench-default-page

bench-default-page: setup
	$(BENCH)/default_page.py

bench-tickets: setup
	$(BENCH)/tickets.py

bench-several: setup
	$(BENCH)/several_tasks.py
	$(MAKE) --no-print-directory bench-default-page
