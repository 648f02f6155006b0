#!/usr/bin/env bash
# Part of stage 7 of a recipe: is the teacher good enough to distil?
set -euo pipefail

help_message="Usage: local/check_teacher.sh [options] <valid-dir> <model-dir>
 e.g.: local/check_teacher.sh --max-error 60 data/dev exp/teacher

Recognises and scores <valid-dir> with greedy decoding in <model-dir>/decode_full, and ends with exit status 2 if more
than --max-error per cent of the words are wrong: a student cannot learn what its teacher does not know.

  --max-error P        in per cent (default: 60)
  --allow true         only warn (default: false)
  --ref-tokens NAME    text in phones of the data directory: of a model of phones, whose phones are scored
  --scoring HOW        plain or gigaspeech (default: plain)
  --cmd CMD, --nj N, --ngpu N    as of local/decode.sh"

max_error=60
allow=false
ref_tokens=
scoring=plain
cmd=run.pl
nj=4
ngpu=
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/options.sh"
arguments 2 "$@"

"${here}/decode.sh" --cmd "${cmd}" --nj "${nj}" --ngpu "${ngpu}" "$1" "$2" "$2"
"${here}/score.sh" --scoring "${scoring}" --ref-tokens "${ref_tokens}" "$1" "$2" > /dev/null
python3 -m distill.bin.check_teacher --max_error "${max_error}" --allow "${allow}" "$2/decode_full/$(basename "$1")"
