# make run     execute the notebooks headlessly into runs/      (MODEL=joint NOTEBOOKS=02,03 ARGS=--fresh; ARGS=--all: every model)
# make test    the tests, one process per core                  (ARGS="-k scenes"; ARGS="-n 0": in one process)
# make seeds   the notebooks on every shipped training seed; collects the claims in outputs/seeds/
# make lab     JupyterLab on the notebooks
# make site    the HTML edition of outputs/ in site/: finding, verdicts, figures, notebooks, a page to try the edits
# make archive everything in the last commit as a ZIP file with checksums, fit for Zenodo
# make test-browser   the notebooks in JupyterLab and the HTML edition in headless Chromium (needs Node.js 20 and Chromium;
#                     NOTEBOOKS=01 chooses, NOTEBOOKS=site: only the edition; screenshots in tests/browser/screenshots/)
# make test-cluster   the Snakefile on a SLURM of one node, which it starts and stops (needs root and Debian's packages
#                     munge, slurmctld, slurmd, slurm-client)
# make lint    ruff over the code
# make clean   remove .venv and caches; runs/ and outputs/ stay
#
# Each sets up .venv first when that is missing or older than pyproject.toml and constraints.txt. Works with GNU make 3.81.
# PYTHON=python3.12 chooses the interpreter; CONSTRAINTS=/dev/null takes any versions pyproject.toml allows.

# the first of these that is new enough (3.11, as pyproject.toml says)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?= constraints.txt
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
comma := ,

.PHONY: help run test seeds lab site archive test-browser test-cluster lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/,$$d'

run: $(READY)
	@echo "Running the notebooks into runs/ (minutes on two CPU cores; what this machine has run and is up to date is skipped)."
	@$(BIN)/python -m lib.run $(if $(MODEL),--model '$(MODEL)') $(if $(NOTEBOOKS),--notebooks '$(NOTEBOOKS)') $(ARGS)

test: $(READY)
	@echo "Running the tests (15 to 40 minutes on two CPU cores, half of them the notebooks run once more)."
	@$(BIN)/python -m pytest -n logical --dist loadgroup --no-loadscope-reorder $(ARGS)

seeds: $(READY)
	@echo "Running the notebooks on the other training seeds into seeds/ (about seven minutes a seed on two CPU cores)."
	@$(BIN)/python -m lib.artifact.seeds $(ARGS)

lab: $(READY)
	@echo "Opening JupyterLab on notebooks/; Ctrl-C stops it."
	@$(BIN)/jupyter lab notebooks $(ARGS)

site: $(READY)
	@$(BIN)/python -m lib.artifact.site $(ARGS)

archive: $(READY)
	@$(BIN)/python -m lib.artifact.archive $(ARGS)

test-browser: $(READY)
	@command -v node >/dev/null && command -v npm >/dev/null || { \
		echo "error: Node.js 20 or newer is needed (Debian: apt-get install nodejs npm)" >&2; exit 2; }
	@echo "Running the notebooks in JupyterLab in a browser (about as long as make run ARGS=--fresh)."
	@npm ci --prefix tests/browser --silent --no-audit --no-fund
	@node tests/browser/run.mjs '$(abspath $(BIN)/python)' tests/browser/screenshots $(subst $(comma), ,$(NOTEBOOKS)) $(ARGS)

test-cluster: $(READY)
	@for program in munged slurmctld slurmd sbatch unshare; do command -v $$program >/dev/null || { \
		echo "error: $$program is needed (Debian: apt-get install munge slurmctld slurmd slurm-client)" >&2; \
		exit 2; }; done
	@test "$$(id -u)" = 0 && unshare --mount --pid --fork true 2>/dev/null || { \
		echo "error: root is needed (sudo make test-cluster; in a container with --cap-add SYS_ADMIN)" >&2; exit 2; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test,cluster]' -c $(CONSTRAINTS)
	@echo "Running the Snakefile on SLURM (some minutes; SLURM holds back for two what it queues again)."
	@$(BIN)/python -m pytest tests/cluster/check_slurm.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check . $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a set-up that was interrupted is taken up again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed: install it, or name it with make PYTHON=/path/to/python3.11" >&2; \
		exit 2; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) and the pinned packages (once; some minutes, mostly PyTorch)."
	@$(PYTHON) -m venv $(VENV) || { \
		echo "error: no virtual environment; on Debian or Ubuntu install the package python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]' -c $(CONSTRAINTS)
	@touch $@
