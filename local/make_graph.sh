#!/usr/bin/env bash
# Stage 6 of a recipe: the denominator graph of LF-MMI.
set -euo pipefail

help_message="Usage: local/make_graph.sh [options] <text> <graph-file>
 e.g.: local/make_graph.sh --token-list data/phones/tokens.txt --token-type phn data/train/text.phn exp/graph/den.npz

Estimates a token n-gram on <text>, a Kaldi text file, and writes it as the denominator graph <graph-file> (.npz). With
--lm the n-gram is that one, and <text> is not read.

  --token-list FILE    one token on each line, the first is blank (needed)
  --token-type TYPE    char, bpe, word or phn (default: word)
  --bpemodel FILE      sentencepiece model of bpe tokens
  --order N            of the n-gram, 1 to 4 (default: 2)
  --lm FILE            this token n-gram instead: ARPA (*.arpa) or OpenFst text (*.fst.txt)"

token_list=
token_type=word
bpemodel=
order=2
lm=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 2 "$@"
[ -n "${token_list}" ] || fail "$0: --token-list is missing"

source=(--text "$1" --order "${order}")
if [ -n "${lm}" ]; then source=(--lm "${lm}"); fi
python3 -m distill.bin.make_graph "${source[@]}" --token_list "${token_list}" --token_type "${token_type}" \
    --bpemodel "${bpemodel}" --output "$2"
