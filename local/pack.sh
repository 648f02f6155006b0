#!/usr/bin/env bash
# Part of stage 16 of a recipe: a model as one file, with its model card.
set -euo pipefail

help_message="Usage: local/pack.sh [options] <model-dir> <zip-file>
 e.g.: local/pack.sh --pack-options \"--license cc-by-4.0\" exp/student_stream exp/student_stream.zip

  --results FILE        results.json of the experiment, for the model card
  --bench FILE          bench.json, for the model card (local/benchmark.sh)
  --export DIR          its export, to be packed as well (local/export.sh)
  --pack-options STR    such as \"--license cc-by-4.0 --language en\"; distill.bin.pack has them all"

results=
bench=
export=
pack_options=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 2 "$@"

options=()
if [ -n "${results}" ]; then options+=(--results "${results}"); fi
if [ -n "${bench}" ]; then options+=(--bench "${bench}"); fi
if [ -n "${export}" ]; then options+=(--export "${export}"); fi
# shellcheck disable=SC2086
python3 -m distill.bin.pack --model "$1" "${options[@]}" ${pack_options} --output "$2"
