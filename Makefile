# Every target sets up what it needs; `make help` lists them. Used identically by people and by .ci/run.
SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null) python3)
PY := .venv/bin/python
export EXECUTOR
# Where the CPU wheel of torch is, if it lies beside this checkout; TORCH_INDEX names an index instead (CONTRIBUTING.md).
export WHEELS ?= $(abspath $(firstword $(wildcard wheels ../shared/wheels)))
# Stand-ins for the packages that are published for Neuron hosts only: the NeuronTrainer on XLA:CPU.
export NEURON_HARNESS_STAND_INS ?= $(CURDIR)/tests/neuron/shim
SETUP := $(PYTHON) -m harness.bootstrap
# Most tests wait for a process of theirs half of the time. More than four at once only wait for memory. A file's tests
# share servers, so one process runs them.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: ui test-ui site soak wheel test-wheel mutants test-aws aws-transcripts test-chaos help setup check test test-all test-images test-neuron test-fast verify-dlc kill-matrix demo lock generated clean distclean

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## the three environments and DJL Serving's jars (what demo and test call first)
	@$(SETUP) harness train serve djl

demo: ## fine-tune SmolLM2-135M, serve it, measure what it learned; EXECUTOR=docker does it in containers
	@$(SETUP) harness train serve djl
	@[ "$(EXECUTOR)" != docker ] || $(PY) -m harness build --stand-in
	@$(PY) -m harness run harness/runs/smollm2-sarcasm.toml

ui: ## the page of `harness ui`: runs, curves, a chat, plans
	@$(SETUP) harness ui
	@.venv-ui/bin/harness ui

check: ## ruff, mypy, import directions, Python 3.10 syntax in the images, generated files
	@$(SETUP) harness train
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache
	@.venv/bin/vermin --no-tips -q -t=3.10- --violations containers train serve
	@.venv/bin/hadolint containers/*/Dockerfile containers/base/*.Dockerfile
	@$(PY) -m tests.generated --check

test: ## all tests that need no Docker: the fast tier, then the chain through the real server
	@$(SETUP) harness train serve djl
	@$(PY) -m pytest $(PARALLEL) -m "not docker and not neuron and not aws and not wheel and not ui"

test-images: ## build, push and pull the images, and run them: needs Docker, debootstrap (or DEBIAN_IMAGE), docker-registry
	@$(SETUP) harness train djl
	@$(PY) -m pytest -m docker tests/images

verify-dlc: ## the same checks on the real Deep Learning Containers: needs AWS credentials and 60 GB of disk
	@$(SETUP) harness
	@$(PY) -m tests.images.verify

# Those that need Docker share images and the engine, so one process runs them, beside the others.
test-all: test ## every test there is, each once: needs what test-images needs
	@$(SETUP) harness train serve djl neuron aws sdk2 sdk3 ui docs lmeval
	@$(MAKE) --no-print-directory site
	@$(PY) -m pytest -m docker > .cache/test-images.log 2>&1 & images=$$!; \
	$(PY) -m pytest $(PARALLEL) -m "neuron or aws or wheel"; code=$$?; \
	.venv-ui/bin/python -m pytest -m ui tests/ui || code=$$?; \
	wait $$images || code=$$?; cat .cache/test-images.log; exit $$code

test-ui: ## the page in a real browser: needs Debian's chromium, or one that CHROMIUM names
	@$(SETUP) harness train serve djl ui
	@.venv-ui/bin/python -m pytest -m ui tests/ui

site: ## docs/ as pages in site/, with every link checked
	@$(SETUP) harness docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict --clean

wheel: ## dist/neuron_harness-*.whl: the harness with everything that it needs at run time
	@$(SETUP) harness
	@$(PY) -m uv build --quiet --wheel --out-dir dist .

test-wheel: ## the wheel in an empty environment and directory: help, plan, doctor, a tiny run, local up, build --print
	@$(SETUP) harness
	@$(PY) -m pytest -m wheel -s tests/wheel

NEURON_TESTS := tests/neuron tests/tnx tests/shards tests/conformance tests/nxd tests/test_walk.py
NEURON_TESTS += tests/test_signature.py tests/test_limits.py

test-neuron: ## the real NeuronTrainer on XLA:CPU against device cpu, shards, engine, conformance; 5 GB of disk
	@$(SETUP) harness train serve djl neuron
	@$(PY) -m pytest $(PARALLEL) -m "not docker" $(NEURON_TESTS)

test-aws: ## the local SageMaker and platform sagemaker against it; recorded sessions of the AWS CLI and the SDKs
	@$(SETUP) harness train serve djl aws sdk2 sdk3 lmeval
	@$(PY) -m pytest $(PARALLEL) -m "not docker and not neuron" tests/emulator tests/aws

aws-transcripts: ## record docs/reference/aws-transcripts.md and sdk-transcripts.md anew
	@$(SETUP) harness train serve djl aws sdk2 sdk3
	@$(PY) -m tests.emulator.aws_session
	@$(PY) -m tests.emulator.sdk_session

soak: ## ten minutes of mixed load on one endpoint; memory, handles, threads and slots afterwards
	@$(SETUP) harness train serve djl
	@$(PY) -m tests.server.soak

test-chaos: ## trainings killed at ten steps; 200 jobs and 20 endpoints at once; the harness killed between every two steps
	@$(SETUP) harness train serve djl
	@$(PY) -m tests.chaos.kill_trainings
	@$(PY) -m tests.chaos.jobs
	@$(PY) -m tests.chaos.kill_steps

mutants: ## small changes of the pure core (mutmut), and which of them no test sees: docs/internals/mutants.md
	@$(SETUP) harness
	@$(PY) -m tests.mutants

test-fast: ## the fast tier: no network, no server, under two minutes
	@$(SETUP) harness
	@$(PY) -m pytest

kill-matrix: ## 39 interruptions (verb x moment x signal): each ends clean and goes on; 20 minutes
	@$(SETUP) harness train serve djl
	@$(PY) -m tests.kill_matrix

generated: ## rewrite the files that are made from the code (option lists, reference pages)
	@$(SETUP) harness train
	@$(PY) -m tests.generated

lock: ## resolve locks/*.in again into hash-locked files
	@$(SETUP) harness
	@$(PY) -m harness.bootstrap --lock

clean: ## delete run records and caches of the tools, and say what that frees
	@$(PYTHON) -m harness.bootstrap --clean

distclean: ## clean, and delete the environments, jars and assets too
	@$(PYTHON) -m harness.bootstrap --distclean
