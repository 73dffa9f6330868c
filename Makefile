# make run and make test need Python 3.11 or newer and nothing else: the first call makes .venv and fills it.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run test test-slow test-faults lint pictures docs/lesson.svg docs/page.png

run: .venv/installed
	$(BIN)/python inference.py $(ARGS)

# Two processes, each with files of its own: the tests use one thread of torch each.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# What docs/guarantees.md promises: bad inputs, hostile folders, injections, kills, signals, pairs, full disks, broken streams.
test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pictures of README.md and README.ru.md. That of the page needs Chromium, and the page, docs/lesson.html.
pictures: docs/lesson.svg $(patsubst docs/lesson.html,docs/page.png,$(wildcard docs/lesson.html))

docs/lesson.svg: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 COLUMNS=120 $(BIN)/python inference.py --lang en --save-svg $@ > /dev/null

docs/page.png: .venv/installed
	$(BIN)/python tools/screenshot.py docs/lesson.html $@ --width 1280 --height 900

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}: 3.11 or newer is needed; make PYTHON=/path/to/python3.11 names it" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
