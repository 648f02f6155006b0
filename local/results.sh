#!/usr/bin/env bash
# Part of stage 13 of a recipe: the scores of an experiment as one table.
set -euo pipefail

help_message="Usage: local/results.sh [options] <exp-dir>
 e.g.: local/results.sh --test-sets \"test_clean test_other\" exp

Writes <exp-dir>/results.json and <exp-dir>/RESULTS.md from what local/score.sh counted of <exp-dir>/teacher,
<exp-dir>/student_full, <exp-dir>/student_stream and the like.

  --test-sets \"A B\"     names of the test sets (default: test)
  --recipe NAME         what the table calls the recipe (default: the current directory)"

test_sets="test"
recipe=$(basename "${PWD}")
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 1 "$@"

python3 -m distill.bin.results --expdir "$1" --test_sets "${test_sets}" --recipe "${recipe}"
