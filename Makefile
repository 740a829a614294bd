# A person's way in: every target is about one line over dvc or posttrain. `make` alone lists them.
# Assumed: git, make, and a Python of at least 3.11 with its venv module (another one: `make setup PYTHON=python3.12`).

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 6006
A ?= HEAD
B ?= workspace

# DVC runs its stages as `python scripts/…`; they must meet the environment's python.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Pickles of DVC's own. Where it would put them, in /var/tmp, others on the machine could exchange them (SECURITY.md).
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test smoke plan train-sft train-reward train-dpo train-grpo train-rloo pipeline use remote metrics compare sweep experiments status verify repro-check report tensorboard lint audit format deps docs bench clean .checkout

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(BIN)/.installed ## make .venv with the exact versions of constraints.txt

test: setup ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

smoke: setup ## run every stage for a few steps in a temporary folder, in under a minute
	$(BIN)/python scripts/smoke.py

plan: setup ## say what a stage of params.yaml will take before it runs (METHOD=dpo, PROBE=1 measures)
	$(BIN)/posttrain plan $(METHOD) --params params.yaml $(if $(PROBE),--probe)

train-sft: .checkout setup ## run the pipeline up to SFT and its evaluation
	$(BIN)/dvc repro evaluate@sft
	@$(MAKE) --no-print-directory metrics

train-reward: .checkout setup ## run the pipeline up to the reward model
	$(BIN)/dvc repro reward
	@$(MAKE) --no-print-directory metrics

train-dpo: .checkout setup ## run the pipeline up to DPO and its evaluation
	$(BIN)/dvc repro evaluate@sft evaluate@dpo
	@$(MAKE) --no-print-directory metrics

train-grpo: .checkout setup ## run the pipeline up to GRPO and its evaluation
	$(BIN)/dvc repro evaluate@sft evaluate@grpo
	@$(MAKE) --no-print-directory metrics

train-rloo: .checkout setup ## run the pipeline up to RLOO and its evaluation
	$(BIN)/dvc repro evaluate@sft evaluate@rloo
	@$(MAKE) --no-print-directory metrics

pipeline: .checkout setup ## run every stage of dvc.yaml that is not up to date
	$(BIN)/dvc repro
	@$(MAKE) --no-print-directory metrics

use: setup ## put a recipe in the place of params.yaml (RECIPE=name; without: list them)
	@$(BIN)/python -m posttrain.experiment.recipes $(RECIPE)

remote: .checkout setup ## set up where `dvc push` and `dvc pull` keep results (URL=folder, s3://…, ssh://…)
	@$(BIN)/dvc remote $(if $(URL),add --default --force storage $(URL),list)

metrics: setup ## show the metrics of the last run as a table
	@$(BIN)/python -m posttrain.experiment.metrics_table metrics

compare: .checkout setup ## lay two experiments beside each other (A=main B=exp-1a2b; revisions, experiments, folders)
	@$(BIN)/posttrain compare '$(A)' '$(B)' $(if $(ALL),--all)

sweep: .checkout setup ## run a grid as experiments (SET="dpo.beta=0.05,0.1 dpo.seed=0..2" JOBS=2 STAGES=evaluate@dpo)
	$(BIN)/posttrain sweep '$(SET)' $(if $(JOBS),--jobs $(JOBS)) $(if $(STAGES),--stages $(STAGES))

experiments: .checkout setup ## show all experiments, and write results/experiments.csv for pandas
	@$(BIN)/posttrain experiments --output results/experiments.csv

status: .checkout setup ## say what would run and why; frozen stages and dirty trees come first
	@$(BIN)/posttrain status

verify: setup ## check a model against its provenance (MODEL=models/dpo)
	@$(BIN)/posttrain verify '$(MODEL)'

repro-check: .checkout setup ## run a stage twice and compare to the bit (STAGE=dpo FLAGS="--max_steps 20")
	@$(BIN)/posttrain repro-check '$(STAGE)' $(FLAGS)

report: setup ## write report.html: one file with everything, to read or mail (EXPERIMENTS="main exp-1a2b")
	$(BIN)/posttrain report $(EXPERIMENTS)

tensorboard: setup ## show the training curves in a browser (PORT=6006)
	$(BIN)/python -m posttrain.experiment.tensorboard_view work --port $(PORT)

lint: setup ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Known and not mended by anyone: DVC's packages keep pickles in a cache, see DVC_SITE_CACHE_DIR.
audit: .venv-audit/.installed ## look the versions of constraints.txt up among known vulnerabilities, at pypi.org
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --ignore-vuln CVE-2025-69872 -r constraints.txt

format: setup ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

deps: setup ## bring the stages' lists of source files in dvc.yaml up to date
	$(BIN)/python -m posttrain.experiment.closure

docs: setup ## write docs/flags.md from the flags
	$(BIN)/python -m posttrain.config.flag_table

bench: setup ## measure training beside the peer, into docs/speed.md (DATA=folder; ALL=1, CHECK=1: has anything got worse?)
	$(BIN)/python -m benchmarks.comparison $(if $(DATA),--data '$(DATA)') $(if $(ALL),--all) $(if $(CHECK),--check)

clean: ## remove the environments, checkpoints and tool caches; models and the DVC cache stay
	rm -rf .venv .venv-peer .venv-audit work build .mypy_cache .ruff_cache src/*.egg-info
	find src scripts tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

.checkout:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "posttrain: this folder is not a git checkout, and DVC needs one: git clone the repository, or run 'git init && git add . && git commit -m start' here" >&2; exit 1; }
	@mkdir -p '$(DVC_SITE_CACHE_DIR)/repo'

.venv-audit/.installed:
	@$(PYTHON) -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit
	@touch $@

$(BIN)/.installed: pyproject.toml constraints.txt
	@command -v git >/dev/null || { echo "posttrain: git is not installed (Debian, Ubuntu: apt-get install git; macOS: xcode-select --install)" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "posttrain: $(PYTHON) is not installed; Python 3.11 or newer is needed (another one: make $(MAKECMDGOALS) PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("posttrain: $(PYTHON) is Python %d.%d; 3.11 or newer is needed (another one: make $(MAKECMDGOALS) PYTHON=python3.12)" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "posttrain: $(PYTHON) has no venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "posttrain: making .venv (1/3)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "posttrain: installing torch (2/3); a first time can take minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt torch
	@echo "posttrain: installing the rest of constraints.txt (3/3)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
