#!/usr/bin/env bash
# Part of stage 16 of a recipe: the page of an experiment.
set -euo pipefail

help_message="Usage: local/report.sh [options] <data-dir> <exp-dir>
 e.g.: local/report.sh --valid-set dev dump/raw exp

Writes <exp-dir>/report/index.html, with results, latency, curves of the trainings and frequent errors. <data-dir> has
the data sets below it.

  --valid-set NAME    the validation set below <data-dir> (default: valid)"

valid_set=valid
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 2 "$@"

python3 -m distill.bin.report --expdir "$2" --data "$1" --valid_set "${valid_set}"
