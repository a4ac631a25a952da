# minillama. `make run` and `make test` need only Python 3.11 or newer and make: they set up .venv themselves.
#
#   make run            train everything, from an empty model to an aligned policy, and report (ARGS="…")
#   make test           all unit tests, then every notebook with its outputs compared
#   make test NB=09     only that notebook
#   make lab            JupyterLab, opened on the first notebook
#   make sync           fill the notebooks' definition cells from the package
#   make lint           ruff, and whether the definition cells agree with the package
#   make bench          measure speed
#   make mutants FILE=minillama/kl.py    whether its unit tests notice a change in that file
#   make clean          delete build/ (trained stages included) and caches; `make clean ALL=1` also deletes .venv
#
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# How PyTorch's threads wait for each other. Asleep, so that other programs lose nothing (minillama/__init__.py says the
# same; notebooks load PyTorch before it); but a run and a measurement want the machine to themselves, and awake is faster.
test lab: export OMP_WAIT_POLICY ?= PASSIVE
run bench: export OMP_WAIT_POLICY ?= ACTIVE

NOTEBOOKS := $(sort $(wildcard notebooks/$(if $(NB),$(NB)_)*.ipynb))
# The root conftest.py serves both. Committed outputs belong to seed 0; on another seed only asserts count.
STRICT := $(if $(filter-out 0,$(MINILLAMA_SEED)),--nbval-lax,--nbval)
# A cell may have to build every stage on a busy machine; a kernel that died is noticed after this many seconds.
NBVAL := $(STRICT) --nbval-current-env --nbval-sanitize-with=tests/sanitize.cfg --nbval-cell-timeout=3000

.PHONY: run test lab sync lint bench mutants clean

run: $(READY)
	$(PY) -m minillama run $(ARGS)

test: $(READY)
	@$(if $(NB),$(if $(NOTEBOOKS),,echo "there is no notebooks/$(NB)_*.ipynb"; exit 1))
	$(PY) -m pytest $(if $(NB),,tests) $(NOTEBOOKS) $(NBVAL) --junitxml=build/test/junit.xml $(ARGS)

lab: $(READY)
	$(PY) -m jupyterlab $(firstword $(NOTEBOOKS))

sync: $(READY)
	$(PY) -m minillama.course.sync

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m minillama.course.sync --check

bench: $(READY)
	$(PY) tests/bench.py $(ARGS)

# mutmut comes with the first call: nothing else needs it.
mutants: $(READY)
	@$(if $(FILE),,echo "which file? for example: make mutants FILE=minillama/kl.py"; exit 1)
	@$(PY) -c 'import mutmut' 2>/dev/null || $(PY) -m pip install -q -e '.[mutants]'
	$(PY) tests/mutants.py $(FILE) $(ARGS)

clean:
	@echo "deleting build/ (trained stages included) and caches$(if $(ALL), and $(VENV))"
	@rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info notebooks/.ipynb_checkpoints $(if $(ALL),$(VENV))
	@find minillama tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an installation cut short is taken up again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "minillama needs Python 3.11 or newer; $(PYTHON) is not. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "setting up $(VENV), once: a few minutes and up to a few gigabytes, most of it PyTorch"
	@rm -f $@
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@
