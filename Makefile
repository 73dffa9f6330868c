# make run and make test need Python 3.11 or newer and nothing else: the first call makes .venv and fills it.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run test test-slow test-faults lint pictures

run: .venv/installed
	$(BIN)/python inference.py $(ARGS)

# Two processes, each with files of its own: the tests use one thread of torch each. They start hundreds of processes: what Python
# compiles for one of them is kept for the others.
test: .venv/installed
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# What docs/guarantees.md promises: bad inputs, hostile folders, injections, kills, signals, pairs, full disks, broken streams.
test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The page of the lesson and the pictures of README.md and README.ru.md. Those of the page need Chromium.
LESSON := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 COLUMNS=120 $(BIN)/python inference.py
RUN := HF_HUB_OFFLINE=1 COLUMNS=100 $(BIN)/python -m inspector run names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 3
STEP := HF_HUB_OFFLINE=1 $(BIN)/python -m inspector step names-expert Крас --beside names-qwen2 --temperature 0.8 --top-p 0.9 --seed 0 --size 100x30
SHOT := $(BIN)/python tools/screenshot.py docs/lesson.html

pictures: .venv/installed
	$(LESSON) --lang en --save-svg docs/lesson.svg --html docs/lesson.html > /dev/null
	$(LESSON) --lang ru --save-svg docs/ru/lesson.svg > /dev/null
	$(RUN) --lang en --save-svg docs/run.svg > /dev/null
	$(RUN) --lang ru --save-svg docs/ru/run.svg > /dev/null
	$(STEP) --lang en --save-svg docs/step.svg --keys "space"
	$(STEP) --lang ru --save-svg docs/ru/step.svg --keys "space"
	$(SHOT) docs/page.png --width 1280 --height 900 --at en.2.1
	$(SHOT) docs/ru/page.png --width 1280 --height 900 --at ru.2.1

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}: 3.11 or newer is needed; make PYTHON=/path/to/python3.11 names it" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
