# make run and make test need Python 3.11 or newer and nothing else: the first call makes .venv and fills it.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run test test-slow test-faults lint pictures docs/lesson.svg docs/step.svg docs/lesson.html docs/page.png

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

# The pictures of README.md and README.ru.md, and docs/lesson.html, of which one is: that takes Chromium.
PICTURES := docs/lesson.svg docs/step.svg docs/lesson.html docs/page.png
OFFLINE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 LC_ALL=C.UTF-8

pictures: $(PICTURES)

docs/lesson.svg: .venv/installed
	$(OFFLINE) COLUMNS=120 $(BIN)/python inference.py --save-svg $@ > /dev/null

docs/step.svg: .venv/installed
	$(OFFLINE) $(BIN)/python -m inspector step names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 3 --keys "space space space space space" --save-svg $@ > /dev/null

docs/lesson.html: .venv/installed
	$(OFFLINE) $(BIN)/python -m inspector report names-qwen2 names-expert Крас --out $@ > /dev/null

docs/page.png: docs/lesson.html
	$(BIN)/python tools/screenshot.py $< $@ --width 1280 --height 900

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}: 3.11 or newer is needed; make PYTHON=/path/to/python3.11 names it" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
