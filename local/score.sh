#!/usr/bin/env bash
# Stage 13 of a recipe: score what was recognised of a data set.
set -euo pipefail

help_message="Usage: local/score.sh [options] <data-dir> <decode-dir> ...
 e.g.: local/score.sh data/test exp/student_stream

Scores what local/decode.sh recognised of <data-dir> (several in quotes) in each <decode-dir>, at all chunk lengths and
with all decoders, against <data-dir>/text. Results are in <decode-dir>/decode_*/test/score_wer, score_cer and score_ter.

  --bpemodel FILE      sentencepiece model, to count errors of bpe tokens as well
  --ref-tokens NAME    file of the data directory with its text in phones, to count errors of phones as well
  --scoring HOW        plain, or gigaspeech: hyphens split, fillers and tags not counted (default: plain)"

bpemodel=
ref_tokens=
scoring=plain
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments some "$@"

options=(--scoring "${scoring}")
if [ -n "${bpemodel}" ]; then options+=(--bpemodel "${bpemodel}"); fi
for data in $1; do
    decoded=()
    for dir in "${@:2}"; do
        for found in "${dir}"/decode_*/"$(basename "${data}")"; do
            # Of jobs that failed at once nothing is there but a note of what they began with.
            if [ -n "$(find "${found}" -mindepth 1 ! -name made_from 2> /dev/null)" ]; then decoded+=("${found}"); fi
        done
    done
    [ ${#decoded[@]} -gt 0 ] || fail "$2: nothing of ${data} is recognised there; run local/decode.sh first"
    references=(--ref "${data}/text")
    if [ -n "${ref_tokens}" ]; then references+=(--ref_tokens "${data}/${ref_tokens}"); fi
    python3 -m distill.bin.score "${references[@]}" --decode_dir "${decoded[@]}" "${options[@]}"
done
