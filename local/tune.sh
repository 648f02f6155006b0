#!/usr/bin/env bash
# Part of stage 12 of a recipe: the weight of the language model, chosen on the validation set.
set -euo pipefail

help_message="Usage: local/tune.sh [options] <valid-dir> <model-dir> <tuned-file>
 e.g.: local/tune.sh --decoders wfst --lm exp/lm/words.arpa --chunk-ms 480 data/dev exp/student_stream \\
           exp/student_stream/tuned.json

Chooses the weight of the language model and the bonus per word with the fewest word errors on <valid-dir>, and writes
them for local/decode.sh --tuned.

  --decoders \"A B\"        beam, wfst or both (default: wfst)
  --lm FILE               word n-gram, ARPA (needed)
  --chunk-ms N            chunk length in ms, or full (default: full)
  --decode-options STR    more options, such as \"--lexicon FILE\"; distill.bin.tune_decoding has them all"

decoders=wfst
lm=
chunk_ms=full
decode_options=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"
[ -n "${lm}" ] || fail "$0: --lm is missing"

# shellcheck disable=SC2086
python3 -m distill.bin.tune_decoding --model "$2" --chunk_ms "${chunk_ms}" --data_dir "$1" --decoder ${decoders} \
    --lm "${lm}" --output "$3" ${decode_options}
