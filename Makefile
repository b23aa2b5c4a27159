# `make demo` and `make test` need Python 3.10+ and nothing else; both make the virtual environment .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Few threads: on small machines torch's own pool only gets in the way of small networks.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND = agg

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster test-trackers fuzz mutants torture lint notebooks readme site docs dist audit bench results study study-report clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.installed ## Set up, run the main job, and write demo/report.html
	$(BIN)/proxy-attention demo

# Three processes for two cores, since each waits for a disk or a process now and then: the lab's tests; all others; the notebooks
LAB := $(wildcard tests/test_lab_*.py tests/test_study*.py)
REST := $(filter-out $(LAB), $(wildcard tests/test_*.py))
# They write thousands of small files, a gigabyte in all: in memory, where 4 GB are free there and scripts may run
MEMORY := $(shell grep -qs ' /dev/shm .*noexec' /proc/mounts || df -Pk /dev/shm 2> /dev/null | awk 'NR == 2 && $$4 > 4000000 {print "/dev/shm"}')

test: $(VENV)/.installed-dev ## Set up, then pass the tests of the notebooks and of tests/ (three processes)
	@TMPDIR=$$(mktemp -d "$${TMPDIR:-$(or $(MEMORY),/tmp)}/proxy_attention.XXXXXX") && export TMPDIR || exit; \
	trap 'rm -rf "$$TMPDIR"' EXIT; trap 'kill $$lab $$notebooks; exit 130' INT; \
	$(BIN)/python -m pytest $(LAB) > .lab_tests.log 2>&1 & lab=$$!; \
	$(BIN)/python .ci/notebooks.py > .notebooks.log 2>&1 & notebooks=$$!; \
	$(BIN)/python -m pytest $(REST); status=$$?; \
	wait $$notebooks || status=1; cat .notebooks.log; \
	wait $$lab || status=1; cat .lab_tests.log; exit $$status

test-cluster: $(VENV)/.installed-dev ## Jobs of a real SLURM of one node, which the tests start (needs root and apt-get install slurm-wlm munge; else skipped)
	@$(BIN)/python -m pytest tests/cluster

test-trackers: $(VENV)/.installed-dev ## Weights & Biases (offline) and MLflow (a local folder), which it installs (150 MB; make test skips them)
	$(BIN)/pip install -q mlflow-skinny wandb
	$(BIN)/python -m pytest tests/test_trackers.py

fuzz: $(VENV)/.installed-dev ## Hostile arguments, files, settings and command lines: 20,000 of them (about a quarter of an hour; make test tries 500)
	FUZZ_UNIT=1070 $(BIN)/python -m pytest -q tests/test_fuzz_arguments.py tests/test_fuzz_files.py

mutants: $(VENV)/.installed-dev ## Do the tests notice changed code? Mutation tests of five modules (about half an hour; MODULES=stages for one)
	$(BIN)/pip install -q -e '.[mutants]'
	$(BIN)/python .ci/mutants.py $(MODULES)

torture: $(VENV)/.installed-dev ## Stop runs, a comparison and a script at about 120 random moments: do they end the same? Figures: results/torture.jsonl
	$(BIN)/python .ci/torture.py --save

lint: $(VENV)/.installed-dev ## Notebooks and modules agree, and no lint
	$(BIN)/python .ci/agree.py
	$(BIN)/ruff check .

notebooks: $(VENV)/.installed-dev ## Export the modules from the notebooks and clean the notebooks
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean

readme: $(VENV)/.installed-dev ## Make README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

site: $(VENV)/.installed-dev ## Make the pages in _site from the notebooks, without quarto, and check their links
	$(BIN)/python .ci/site.py

docs: $(VENV)/.installed-dev ## Make the pages in _docs from the notebooks (needs quarto; DOCS_URL: where they will be)
	$(BIN)/python .ci/docs.py $(DOCS_URL)

dist: | $(VENV)/bin/pip ## Build the sdist and the wheel in dist/ and check both
	rm -rf build dist
	$(BIN)/pip install -q 'build>=1.2' check-wheel-contents twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

audit: $(VENV)/.installed ## Has anything that is needed a known vulnerability?
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable

bench: $(VENV)/.installed-dev ## Run the benchmarks (about half an hour) and keep their figures in results/
	$(BIN)/pip install -q -e '.[bench]'
	for b in startup saliency reading step memory; do $(BIN)/python benchmarks/$$b.py --save || exit 1; done

results: $(VENV)/.installed ## Make the record that the README reads: the demo's two policies beside plain training, three seeds (about ten minutes)
	$(BIN)/proxy-attention compare demo --arms proposal,default --seeds 3 --out runs/readme
	mkdir -p results/demo && cp runs/readme/record.jsonl results/demo/
	$(BIN)/proxy-attention demo && cp demo/gallery.png nbs/images/gallery.png

study: $(VENV)/.installed-dev ## Run what the study's records in studies/results don't hold yet (an hour and a half on one core; it can be stopped), and make its report
	$(BIN)/python -m studies run
	test -f studies/results/agreement.jsonl || { $(BIN)/proxy-attention run vit_plain --settings studies/settings.ini \
		&& $(BIN)/python -m studies agree runs/vit_plain runs/study/digits_95; }
	test -f studies/results/transfer.jsonl || $(BIN)/python -m studies transfer runs/study/digits_95 --task later_asl
	$(MAKE) study-report

study-report: $(VENV)/.installed-dev ## Make the study's tables, drawings and pages from the committed records
	$(BIN)/python -m studies report
	PYTHONWARNINGS=ignore $(BIN)/nbdev-test --save studies/questions --n-workers 0 # warnings would name folders of this machine
	$(BIN)/nbdev-clean --fname studies/questions

clean: ## Remove the virtual environment, builds, and what the demo wrote
	rm -rf $(VENV) build dist *.egg-info demo

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "proxy_attention needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py | $(VENV)/bin/pip
	$(BIN)/pip install -q -e '.[lab]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py | $(VENV)/bin/pip
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.installed
