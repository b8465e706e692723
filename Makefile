# The two commands are `make demo` and `make test`; `make help` lists the rest.
# Paths are relative, so that a checkout may lie in a folder with a space in its name.

# Not ?=: some shells export a NAME of their own.
export NAME = 小易
export AUTHOR = 李雷
PYTHON ?= python3

bin := .venv/bin
yi := $(bin)/yi-tune
# Stands for the environment: younger than what it was built from, or it is built again.
ready := .venv/.ready

.PHONY: help demo test test-unit test-llamacpp test-exports test-deepspeed test-vllm lint format nano nano-report replay-report bench bench-cpu bench-memory bench-published bench-full-size bench-gpu bench-gpus bench-scale bench-sharding bench-chat bench-download bench-data bench-export bench-serve test-api pictures docs messages lock clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "make %-15s %s\n", $$1, $$2}'

$(ready): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "yi-tune needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# uv installs the whole in a minute where pip takes many, and compiles bytecode on all cores.
	$(bin)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	$(bin)/uv pip sync --quiet --python $(bin)/python --require-hashes --compile-bytecode requirements.lock
	$(bin)/uv pip install --quiet --python $(bin)/python --no-deps --no-build-isolation --editable .
	@touch $(ready)

demo: $(ready) ## the main job on the embedded model; NAME= and AUTHOR= say who it is to be
	@echo '$$ yi-tune chat --model nano --base --prompt "你是谁？"'
	@$(yi) chat --model nano --base --prompt "你是谁？"
	@echo
	@echo "$$ yi-tune train --model nano --name \"$$NAME\" --author \"$$AUTHOR\" --run demo --fresh"
	@$(yi) train --model nano --name "$$NAME" --author "$$AUTHOR" --run demo --fresh
	@echo
	@echo '$$ yi-tune chat --run demo --prompt "你是谁？"'
	@$(yi) chat --run demo --prompt "你是谁？"
	@echo
	@echo 'Now you: source .venv/bin/activate, then'
	@echo '  yi-tune chat --run demo          talk to it'
	@echo '  yi-tune check --run demo         ask it every held-out question'
	@echo '  yi-tune download                 the real thing, Yi-1.5-6B-Chat, for a CUDA GPU'

test: $(ready) ## all tests, offline
	@# Three at a time on two cores: while one waits, for a server or a signal, another works.
	$(bin)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-unit: $(ready) ## only the tests that start no engine
	$(bin)/python -m pytest --ignore tests/e2e

# An environment of its own: .venv stays as it is locked. cmake and ninja come along; a C++ compiler has to be there.
.venv-llamacpp/.ready: $(ready)
	$(bin)/uv venv --quiet --clear .venv-llamacpp
	$(bin)/uv pip install --quiet --python .venv-llamacpp/bin/python llama-cpp-python==0.3.36
	@touch $@

test-llamacpp: $(ready) .venv-llamacpp/.ready ## exported GGUF in llama.cpp, which is compiled first (some minutes)
	LLAMACPP_PYTHON="$(CURDIR)/.venv-llamacpp/bin/python" $(bin)/python -m pytest -rP tests/e2e/test_llamacpp.py

# torch as it is locked: uv then has it already.
.venv-transformers4/.ready: $(ready)
	$(bin)/uv venv --quiet --clear .venv-transformers4
	$(bin)/uv pip install --quiet --python .venv-transformers4/bin/python 'transformers==4.57.*' torch==2.10.0 numpy \
		jinja2 protobuf sentencepiece
	@touch $@

test-exports: $(ready) .venv-transformers4/.ready ## exports in transformers 4, which is installed first
	TRANSFORMERS4_PYTHON="$(CURDIR)/.venv-transformers4/bin/python" $(bin)/python -m pytest -rP tests/e2e/test_transformers4.py

# Beside .venv's packages, not among them. With DS_BUILD_OPS=0 it compiles nothing.
.deepspeed/.ready: $(ready)
	DS_BUILD_OPS=0 $(bin)/uv pip install --quiet --python $(bin)/python --target .deepspeed --no-deps \
		--no-build-isolation deepspeed==0.18.4 hjson msgpack ninja py-cpuinfo
	@touch $@

test-deepspeed: $(ready) .deepspeed/.ready ## train --shard zero2 and zero3 on the CPU, with DeepSpeed, which is installed first
	PYTHONPATH="$(CURDIR)/.deepspeed" $(bin)/python -m pytest -rP tests/e2e/test_deepspeed.py

test-vllm: $(ready) ## yi-tune serve --engine vllm; VLLM= names the folder in which there is a command vllm
	VLLM="$(VLLM)" $(bin)/python -m pytest -rP tests/e2e/test_vllm.py

lint: $(ready) ## ruff and mypy
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

format: $(ready) ## ruff's formatter and its safe fixes
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

nano: $(ready) ## build the embedded model from nothing (up to 30 minutes)
	@# Memory that is kept, not given back to the system after every step, saves time.
	MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 $(bin)/python nano/build.py

nano-report: $(ready) ## tune nano to a dozen identities and write docs/nano.md
	$(bin)/python nano/report.py

replay-report: $(ready) ## tune nano without and with replay and write docs/replay.md
	$(bin)/python nano/replay.py

bench: $(ready) ## yi-tune train beside llamafactory-cli train, and its profiles; writes docs/benchmarks.md
	$(bin)/python -m bench.train

bench-cpu: $(ready) ## training on a CPU with and without bf16; writes docs/bench-cpu.md
	$(bin)/python -m bench.cpu

bench-memory: $(ready) ## the estimate of memory beside what training takes; writes docs/memory.md
	$(bin)/python -m bench.memory

bench-published: $(ready) ## the estimate of memory beside published figures, without training; writes docs/memory.md
	$(bin)/python -m bench.published

bench-full-size: $(ready) ## train, chat and export at the size of Yi-1.5-6B on a CPU (some 30 GB of disk); writes docs/full-size.md
	$(bin)/python -m bench.full_size

bench-gpu: $(ready) ## all that needs a CUDA GPU, in less than eight minutes; writes docs/bench-gpu.md
	$(bin)/python -m bench.gpu

bench-gpus: $(ready) ## what is planned on which GPU, and the forecast of time, without a GPU; writes docs/gpus.md
	$(bin)/python -m bench.gpus

bench-scale: $(ready) ## what more cards and machines would bring, by formulas; writes docs/scale.md
	$(bin)/python -m bench.scale

bench-sharding: $(ready) ## train --shard on two CUDA GPUs or more, beside whole models; writes docs/bench-sharding.md
	$(bin)/python -m bench.sharding

bench-chat: $(ready) ## time to the first token over ten turns; writes docs/bench-chat.md
	$(bin)/python -m bench.chat

bench-download: $(ready) ## yi-tune download beside huggingface_hub; writes docs/bench-download.md
	$(bin)/python -m bench.download

bench-export: $(ready) ## a run beside its exports; writes docs/bench-export.md
	$(bin)/python -m bench.export

bench-data: $(ready) ## 100,000 rows of own data: memory and time; writes docs/bench-data.md
	$(bin)/python -m bench.own_data

bench-serve: $(ready) ## yi-tune serve beside LLaMA-Factory's API; writes docs/bench-serve.md
	$(bin)/python -m bench.serve

test-api: $(ready) ## over 1,000 generated cases for the API of yi-tune serve
	API_CASES=100 $(bin)/python -m pytest -rP tests/e2e/test_serve.py -k server_error

pictures: $(ready) ## draw the pictures of the README (tmux, Chromium)
	$(bin)/python -m bench.pictures

docs: $(ready) ## write docs/help.md from --help
	$(bin)/typer yi_tune.cli utils docs --name yi-tune --title 'yi-tune' --output docs/help.md
	@# The mark by which Click keeps the lines of the examples.
	@sed -i '/^\x08$$/d' docs/help.md

messages: $(ready) ## bring the catalogues of translations up to date with the texts in the source
	$(bin)/python -m tests.messages

lock: $(ready) ## compile requirements.lock anew from pyproject.toml
	$(bin)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

clean: ## remove the environment
	rm -rf .venv .venv-llamacpp .venv-transformers4 .deepspeed
