#!/usr/bin/env bash
# The graph of the decoder wfst for Kaldi's decoders.
set -euo pipefail

help_message="Usage: local/make_decoding_graph.sh [options] <arpa-file> <model-dir> <graph-dir>
 e.g.: local/make_decoding_graph.sh --lexicon data/phones/lexicon.txt data/local/lm.arpa exp/student_stream exp/graph

Composes CTC's topology, the lexicon and the word n-gram <arpa-file>, and writes <graph-dir>/TLG.fst in OpenFst's format
and its symbols, words.txt and tokens.txt. Input label j + 1 is column j of local/compute_posteriors.sh.

  --lexicon FILE       words and their tokens (default: the n-gram's words, as the model spells; needed for phones)
  --lm-weight W        of the n-gram's ln P (default: 0.5)
  --word-bonus B       added for each word (default: 0)
  --tuned FILE         take both from this file, which local/tune.sh wrote"

lexicon=
lm_weight=
word_bonus=
tuned=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"

options=(--lm "$1" --model "$2" --output "$3")
if [ -n "${lexicon}" ]; then options+=(--lexicon "${lexicon}"); fi
if [ -n "${lm_weight}" ]; then options+=(--lm_weight="${lm_weight}"); fi
if [ -n "${word_bonus}" ]; then options+=(--word_bonus="${word_bonus}"); fi
if [ -n "${tuned}" ]; then options+=(--tuned "${tuned}"); fi
python3 -m distill.bin.make_decoding_graph "${options[@]}"
