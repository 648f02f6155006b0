#!/usr/bin/env bash
# Part of stage 12 of a recipe: a word n-gram for the decoders beam and wfst.
set -euo pipefail

help_message="Usage: local/make_lm.sh [options] <text> <arpa-file>
 e.g.: local/make_lm.sh --order 3 data/train/text exp/lm/words.arpa

Estimates a word n-gram on <text>, a Kaldi text file: interpolated Witten-Bell, no pruning.

  --order N    of the n-gram (default: 3)"

order=3
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 2 "$@"

python3 -m distill.bin.make_lm --text "$1" --order "${order}" --output "$2"
