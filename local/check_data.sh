#!/usr/bin/env bash
# Part of stages 1 and 5 of a recipe: find faults in data before anything is made from them.
set -euo pipefail

help_message="Usage: local/check_data.sh [options] <data-dir> ...
 e.g.: local/check_data.sh --allow-pipes true data/train data/dev

Checks Kaldi data directories and every audio file that they name. The first fault ends it with a line that names file,
line and cure, and exit status 2.

  --resample true       accept other sampling rates than 16 kHz (default: false)
  --allow-pipes true    run the commands in wav.scp (default: false)
  --unlabelled true     there need be no text (default: false)
  --token-list FILE, --token-type TYPE
                        only check that every token of the text (char, bpe or word) is in this list"

resample=false
allow_pipes=false
unlabelled=false
token_list=
token_type=word
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments some "$@"

options=(--resample "${resample}" --allow_pipes "${allow_pipes}" --unlabelled "${unlabelled}")
if [ -n "${token_list}" ]; then options+=(--token_list "${token_list}" --token_type "${token_type}"); fi
python3 -m distill.bin.check_data --data "$@" "${options[@]}"
