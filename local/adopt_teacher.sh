#!/usr/bin/env bash
# Stage 7 of a recipe with --teacher: take a model that was fine-tuned with CTC elsewhere as the teacher.
set -euo pipefail

help_message="Usage: local/adopt_teacher.sh [options] <model-dir> <teacher-dir>
 e.g.: local/adopt_teacher.sh --token-list data/chars/tokens.txt /models/wav2vec2-large-960h-lv60-self exp/teacher

Writes the CTC model of <model-dir>, in Hugging Face's format, as a teacher of this toolkit; docs/own-teacher.md lists the
families. Where <model-dir> is a training of this toolkit, <teacher-dir> becomes a link to it.

  --token-list FILE    tokens of the students, one on each line (default: the model's own)
  --own-tokens true    the teacher has the model's own tokens, in the case of those of the students (default: false)
  --token-type TYPE    char, bpe, word or phn (default: char)
  --show-tokens true   only print the model's own tokens; <teacher-dir> is then left out"

token_list=
token_type=char
own_tokens=false
show_tokens=false
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
if ${show_tokens}; then
    arguments 1 "$@"
    exec python3 -m distill.bin.adopt_teacher --model "$1" --show_tokens
fi
arguments 2 "$@"
if [ -e "$1/config.yaml" ]; then
    mkdir -p "$(dirname "$2")"
    ln -sfn "$(realpath "$1")" "$2"
    exit 0
fi
options=()
if [ -n "${token_list}" ]; then options=(--token_list "${token_list}" --token_type "${token_type}"); fi
if [ -z "${token_list}" ] || ${own_tokens}; then options+=(--own_tokens); fi
python3 -m distill.bin.adopt_teacher --model "$1" "${options[@]}" --output "$2"
