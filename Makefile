# What people type; `make` alone prints it. Every target first installs what it needs, as uv.lock has it.

# LANG is also the shell's locale variable: only one given on make's own command line is a language of speech.
ifeq ($(origin LANG),command line)
language := $(value LANG)
endif
unexport LANG
unexport AUDIO DATA RUNS  # make would expand a $ in the path
export LC_ALL := C.UTF-8

UV := $(shell command -v uv || echo .uv/bin/uv)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

# A path meets two grammars: the shell takes a single-quoted string literally, Hydra a double-quoted one, but for ${ and
# for backslashes before that, before a quote or at the end. asr_lora.launch.quoted does the same in Python.
shell_string = '$(subst ','\'',$(1))'
hydra_string = "$(shell printf %s $(call shell_string,$(1)) | sed 's/\(\\*\)\$${/\1\1\\$${/g; s/\(\\*\)"/\1\1\\"/g; s/\\*$$/&&/')"
source = $(if $(value DATA),$(call shell_string,data.source=$(call hydra_string,$(value DATA))))
hours = $(if $(HOURS),data.hours=$(if $(filter all,$(HOURS)),null,$(HOURS)))
spoken = $(if $(language),data.language=$(language))
words = $(spoken) $(hours) $(source) $(ARGS)
RANKS := 4,8,16,32

.DEFAULT_GOAL := help
.PHONY: help demo doctor prepare train eval sweep search report transcribe export app plan bench check test test-all fuzz audit

help: ## this list
	@echo "make TARGET [LANG=nl] [HOURS=1|all] [DATA=/path/to/cv-corpus-...] [ARGS=\"hydra overrides\"]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(INSTALLED) ## the main job on synthetic Dutch, in minutes, on any machine: no account, no GPU, no data
	$(PYTHON) -m asr_lora.demo $(ARGS)

prepare: $(INSTALLED) ## draw the clips of a run and write its manifest
	$(PYTHON) -m asr_lora.prepare $(words)

train: $(INSTALLED) ## prepare, train an adapter, and score it against the untouched model
	$(PYTHON) -m asr_lora.train $(words)

eval: $(INSTALLED) ## score the last run, or the one that the words name, again
	$(PYTHON) -m asr_lora.eval $(words)

sweep: $(INSTALLED) ## one run a rank, RANKS=4,8,16,32
	$(PYTHON) -m asr_lora.train -m lora.r=$(RANKS) $(words)

search: $(INSTALLED) ## the best rank, learning rate and dropout by dev WER: ARGS="search.trials=20 search.max_hours=8"
	$(PYTHON) -m asr_lora.search $(words)

report: $(INSTALLED) ## the page of the last run, or of the one that the words name; RUNS="runs/nl-*" compares several
	$(PYTHON) -m asr_lora.report $(words) $(if $(value RUNS),$(call shell_string,report.runs=$(call hydra_string,$(value RUNS))))

plan: $(INSTALLED) ## hours, memory and dollars of a run on five GPUs and this machine, before anything is fetched
	$(PYTHON) -m asr_lora.plan $(words)

doctor: $(INSTALLED) ## look a run over in seconds, before it costs anything: ok, warn or fail, each with its way out
	$(PYTHON) -m asr_lora.doctor $(words)

transcribe: $(INSTALLED) ## text and subtitles of AUDIO=, a file, a folder or a pattern, by the last run or the one that the words name
	$(PYTHON) -m asr_lora.transcribe $(call shell_string,audio=$(call hydra_string,$(value AUDIO))) $(words)

export: $(INSTALLED) ## files for transformers, faster-whisper and whisper.cpp, each proven in its own runtime: ARGS="'export.formats=[ct2-int8]'"
	$(PYTHON) -m asr_lora.export $(words)

app: $(INSTALLED) ## a page to speak to: the untouched and the tuned model hear the same, side by side (http://127.0.0.1:7860)
	$(PYTHON) -m asr_lora.app $(words)

bench: $(INSTALLED) ## the tutorial recipe against ours, timed from outside, on DATA= or the demo's speech
	$(PYTHON) recipes/benchmark.py $(if $(language),--language $(language)) \
	  $(if $(value DATA),--source $(call shell_string,$(value DATA))) $(hours) $(ARGS)

check: $(INSTALLED) ## ruff and mypy, as pre-commit calls them
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

test: $(INSTALLED) ## everything that takes under ten minutes on two cores
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal -m "not slow"

test-all: $(INSTALLED) ## everything
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal

fuzz: $(INSTALLED) ## at least 20,000 broken inputs, other ones every time (nightly): CASES=50000 SEED=7 for more, or the same again
	FUZZ_CASES=$(or $(CASES),20000) $(if $(SEED),FUZZ_SEED=$(SEED)) \
	  $(PYTHON) -m pytest --timeout=7200 tests/test_fuzz_inputs.py tests/test_fuzz_runs.py

audit: $(INSTALLED) ## known vulnerabilities of all that uv.lock pins, extras too; asks PyPI's advisories, so it needs a network
	$(UV) export --quiet --locked --no-emit-project --all-extras --output-file .venv/audited.txt >/dev/null
	$(UV) tool run --from 'pip-audit>=2,<3' pip-audit --requirement .venv/audited.txt --no-deps --disable-pip --strict

$(INSTALLED): uv.lock pyproject.toml | $(UV)
	$(UV) sync --locked --extra demo --extra search --extra app --extra faster-whisper --extra whispercpp --compile-bytecode
	@touch $@

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv
