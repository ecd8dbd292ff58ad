#!/bin/sh
# The published full-data run on one T4: all of Common Voice's train split, LoRA r=32 on large-v2 in 8 bits.
#   recipes/full_data.sh nl /path/to/cv-corpus-25.0-...-nl.tar.gz
set -eu
language=${1:?the locale of the corpus, for example nl}
data=$(realpath "${2:?the archive or folder of the release}")
cd "$(dirname "$0")/.."
exec make train LANG="$language" HOURS=all DATA="$data" \
  ARGS="experiment=full_data hardware=t4"
