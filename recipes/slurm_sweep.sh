#!/bin/sh
# Trains ranks 4 to 32 as jobs of SLURM's queue, a GPU each, and prints the table of all at the end.
# Not tried on a real SLURM, only with submitit's local executor (tests/runs/test_launchers.py).
#   recipes/slurm_sweep.sh nl /shared/cv-corpus-25.0-...-nl.tar.gz /shared/runs [hydra overrides]
# Once before:  uv sync --inexact --locked --extra slurm  (.uv/bin/uv where make installed it), in a checkout on the
# shared disk. The command waits for the last job: start it in tmux. Logs of a job are in <runs>/.hydra/.submitit/<job>/.
set -eu
language=${1:?the locale of the corpus, for example nl}
data=$(realpath "${2:?the archive or folder of the release, where every node sees it}")
runs=$(realpath "${3:?a folder for the runs, where every node sees it, its path without spaces}")
shift 3
cd "$(dirname "$0")/.."
# sbatch passes the environment on, so clips are scanned once for all jobs.
export ASR_LORA_CACHE="${ASR_LORA_CACHE:-$runs/.cache}"

queue="hydra/launcher=submitit_slurm"
queue="$queue hydra.launcher.partition=${PARTITION:-gpu}"  # sinfo lists them
queue="$queue hydra.launcher.gpus_per_node=1"              # a run takes one; some clusters need hydra.launcher.gres=gpu:1
queue="$queue hydra.launcher.cpus_per_task=6"              # four to decode clips, one to train, one to spare
queue="$queue hydra.launcher.mem_gb=32"
queue="$queue hydra.launcher.timeout_min=$((60 * ${JOB_HOURS:-8}))"  # of one job; the launcher's default of an hour is too short
queue="$queue hydra.launcher.max_num_timeout=3"            # times that a job out of time resumes from its checkpoint
queue="$queue hydra.launcher.array_parallelism=8"          # jobs at once
# More settings may follow: hydra.launcher.account=..., .qos=..., .constraint=...; .setup=[...] are commands before the
# job, and +hydra.launcher.additional_parameters.mail-type=END and others are passed to sbatch.

make sweep LANG="$language" HOURS=1 DATA="$data" RANKS=4,8,16,32 ARGS="runs_dir=$runs $queue $*"
