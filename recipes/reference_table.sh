#!/bin/sh
# The published comparison on one hour and on all data: base model, LoRA r=32 on large-v2 in 8 bits, and full
# fine-tuning of medium (large-v2 does not fit a T4), with intervals, minutes, MB and dollars; made for one T4.
#   recipes/reference_table.sh nl /path/to/cv-corpus-25.0-...-nl.tar.gz [hydra overrides]
# SMALL=1: the same with whisper-base on a CPU and any small corpus, on LOW=0.1 hours and on all of it.
# Runs that are complete are not repeated. Leaves RUNS/<run>/ and RUNS/table.md; RUNS is runs/reference.
set -eu
language=${1:?the locale of the corpus, for example nl}
data=$(realpath "${2:?the archive or folder of the release}")
shift 2
cd "$(dirname "$0")/.."
runs=${RUNS:-runs/reference}
methods="lora=qv,model=whisper_large_v2 lora=full,model=whisper_medium,lora.optim=adamw_8bit"
machine="hardware=t4 runs_dir=$runs"
if [ -n "${SMALL:-}" ]; then
  methods="lora=qv,model=whisper_base,model.precision=fp32 lora=full,model=whisper_base"
  machine="hardware=cpu runs_dir=$runs"
fi
for size in low_data full_data; do
  for method in $methods; do
    settings="experiment=$size $(echo "$method" | tr , ' ') $machine"
    if [ -n "${SMALL:-}" ]; then
      [ "$size" = low_data ] && settings="$settings data.hours=${LOW:-0.1} training.max_steps=60" || settings="$settings training.max_steps=120"
    fi
    make train LANG="$language" DATA="$data" ARGS="$settings $*"
  done
done
exec .venv/bin/python recipes/reference_table.py "$runs"
