#!/usr/bin/env bash
# Stage 5 of a recipe with --token_type phn: phones as tokens.
set -euo pipefail

help_message="Usage: local/phone_tokens.sh [options] <token-dir> <text> ...
 e.g.: local/phone_tokens.sh --lexicon data/local/dict/lexicon.txt data/phones data/train/text data/dev/text

Writes <token-dir>/tokens.txt, <token-dir>/lexicon.txt (the lexicon in these tokens, for the decoder wfst), and beside
each Kaldi text file its phones, <text>.phn. A word that is not in the lexicon is named with file and line; it gets the
phones of the word in the lang directory's oov.txt, or of <unk> in a lexicon, and is refused where there is neither.

  --lexicon FILE     a word and its phones on each line
  --lang-dir DIR     a Kaldi lang directory instead: phones.txt and phones/align_lexicon.txt are read"

lexicon=
lang_dir=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments some "$@"
[ $# -ge 2 ] || fail "$0: no text file is given after <token-dir>"

if [ -n "${lexicon}" ]; then source=(--lexicon "${lexicon}"); else source=(--lang_dir "${lang_dir}"); fi
[ -n "${lexicon}${lang_dir}" ] || fail "$0: needs --lexicon FILE or --lang-dir DIR"
python3 -m distill.bin.phone_tokens "${source[@]}" --output "$1" --texts "${@:2}"
