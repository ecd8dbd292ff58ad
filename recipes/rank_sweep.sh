#!/bin/sh
# Trains ranks 4 to 32 at the same alpha / r, one run folder each, and writes the page that compares them.
#   recipes/rank_sweep.sh nl /path/to/cv-corpus-25.0-...-nl.tar.gz [hydra overrides]
set -eu
language=${1:?the locale of the corpus, for example nl}
data=$(realpath "${2:?the archive or folder of the release}")
shift 2
cd "$(dirname "$0")/.."
make sweep LANG="$language" HOURS=1 DATA="$data" RANKS=4,8,16,32 ARGS="$*"
make report RUNS="runs/$language-1h-*"
