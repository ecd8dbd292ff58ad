#!/bin/sh
# The published low-data run on one T4: one hour of Common Voice, LoRA r=32 on large-v2 in 8 bits.
#   recipes/low_data.sh nl /path/to/cv-corpus-25.0-...-nl.tar.gz
set -eu
language=${1:?the locale of the corpus, for example nl}
data=$(realpath "${2:?the archive or folder of the release}")
cd "$(dirname "$0")/.."
exec make train LANG="$language" HOURS=1 DATA="$data" \
  ARGS="experiment=low_data hardware=t4"
