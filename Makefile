# minillama. Needs Python 3.11 or newer and make; .venv is set up once, by itself.
#
#   make run             train everything, from an empty model to an aligned policy,
#                        and report; options: make run ARGS="--seed 1"
#   make test            all unit tests, and every notebook with its outputs compared
#   make test NB=09      only that notebook; options of pytest: ARGS="-x"
#   make lab             JupyterLab, opened on the first notebook (NB=09: on that one)
#   make student         build/student/: the notebooks with blanks, for those who write
#   make mine FROM=build/student
#                        a package of what you wrote there, its tests and its policy;
#                        ONLY=gae,whiten or EXCEPT=gae chooses
#   make nbgrader        build/nbgrader/: the same as a course for nbgrader, which
#                        collects and grades
#   make book            build/book/: the notebooks as web pages, to be read offline
#   make tidy            take out of the notebooks what running and saving leaves
#   make sync            fill the notebooks' definition cells from the package
#   make lint            ruff, and whether the definition cells agree with the package
#   make bench           measure speed
#   make mutants FILE=minillama/kl.py
#                        whether the unit tests of a file notice a change in it
#   make clean           delete build/ (trained stages included) and caches;
#                        make clean ALL=1 also build/student, build/nbgrader, .venv
#
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# PyTorch's threads soon fall asleep while they wait, so that other programs lose little.
# minillama/__init__.py says the same, but notebooks load PyTorch before it.
export OMP_WAIT_POLICY ?= PASSIVE
ifeq ($(OMP_WAIT_POLICY),PASSIVE)
export GOMP_SPINCOUNT ?= 3000
endif

NOTEBOOKS := $(sort $(wildcard notebooks/$(if $(NB),$(NB)_)*.ipynb))
ifneq ($(NB),)
$(if $(NOTEBOOKS),,$(error there is no notebook $(NB): notebooks/$(NB)_*.ipynb))
endif

# The root conftest.py serves both. Committed outputs belong to seed 0; on another seed
# only asserts count.
STRICT := $(if $(filter-out 0,$(MINILLAMA_SEED)),--nbval-lax,--nbval)
# A cell may have to build every stage on a busy machine; a kernel that died is noticed
# after this many seconds.
NBVAL := $(STRICT) --nbval-current-env --nbval-sanitize-with=tests/sanitize.cfg \
  --nbval-cell-timeout=3000
# One worker a core, one thread a worker, whole files in this order: the last notebook
# builds the models that all need while the unit tests run; long notebooks come early.
LAST := $(lastword $(NOTEBOOKS))
BACKWARDS := $(shell printf '%s\n' $(NOTEBOOKS) | sort -r)
WHAT := $(if $(NB),$(NOTEBOOKS),$(LAST) tests $(filter-out $(LAST),$(BACKWARDS)))
SIDE_BY_SIDE := --numprocesses=logical --maxprocesses=8 --dist=loadfile \
  --no-loadscope-reorder --override-ini=console_output_style=classic
# JupyterLab refuses to run as root unless told.
LAB := --ServerApp.root_dir=. --custom-css \
  --ServerApp.tornado_settings="{'static_custom_path': ['$(CURDIR)/minillama/course/lab']}" \
  $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help run test lab student mine nbgrader book tidy sync lint bench mutants clean

help:
	@sed -n 's/^#   //p; /^$$/q' Makefile

run: $(READY)
	$(PY) -m minillama run $(ARGS)

# A CI system sets CI: there nbgrader is installed for its test, which is skipped without.
NBGRADER := $(PY) -c 'import nbgrader' 2>/dev/null || \
  $(PY) -m pip install -q -e '.[nbgrader]'

test: export OMP_NUM_THREADS = 1
test: $(READY)
	-@$(if $(CI),$(NBGRADER),:)
	$(PY) -m pytest $(WHAT) $(NBVAL) $(if $(NB),,$(SIDE_BY_SIDE)) \
	  --junitxml=build/test/junit.xml $(ARGS)

lab: $(READY)
	$(PY) -m jupyterlab $(LAB) $(firstword $(NOTEBOOKS)) $(ARGS)

student: $(READY)
	$(PY) -m minillama.course.release student

mine: $(READY)
	$(PY) -m minillama.course.mine $(or $(FROM),build/student) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(EXCEPT),--except $(EXCEPT)) $(ARGS)

# nbgrader comes with the first call: it puts its own menu and buttons into JupyterLab.
nbgrader: $(READY)
	@$(NBGRADER)
	$(PY) -m minillama.course.release nbgrader

# Sphinx and MathJax come with the first call.
book: $(READY)
	@$(PY) -c 'import mathjax, sphinx_book_theme' 2>/dev/null || \
	  $(PY) -m pip install -q -e '.[book]'
	$(PY) -m minillama.course.book $(ARGS)

tidy: $(READY)
	$(PY) -m minillama.course.tidy

sync: $(READY)
	$(PY) -m minillama.course.sync

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m minillama.course.sync --check

bench: $(READY)
	$(PY) tests/bench.py $(ARGS)

# mutmut comes with the first call: nothing else needs it.
mutants: $(READY)
	@$(if $(FILE),,echo "which file? for example: make mutants FILE=minillama/kl.py"; exit 1)
	@$(PY) -c 'import mutmut' 2>/dev/null || $(PY) -m pip install -q -e '.[mutants]'
	$(PY) tests/mutants.py $(FILE) $(ARGS)

clean:
	@echo "deleting build/ (trained stages included, build/student and build/nbgrader only with ALL=1), caches$(if $(ALL), and $(VENV))"
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 \
	  $(if $(ALL),,! -name student ! -name nbgrader) -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache .hypothesis *.egg-info \
	  notebooks/.ipynb_checkpoints $(if $(ALL),$(VENV))
	@find minillama tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an installation cut short is taken up again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "minillama needs Python 3.11 or newer; $(PYTHON) is not. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "setting up $(VENV), once: a few minutes and up to a few gigabytes, most of it PyTorch"
	@rm -f $@
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@: JupyterLab asks whether to show news, and its question would cover a lesson.
	-@$(PY) -m jupyter labextension disable --level=sys_prefix \
	  "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1
	@touch $@
