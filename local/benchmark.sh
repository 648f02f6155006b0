#!/usr/bin/env bash
# Stage 14 of a recipe: latency of a streaming student, size and speed of several models.
set -euo pipefail

help_message="Usage: local/benchmark.sh [options] <data-dir> <model-dir> <json-file>
 e.g.: local/benchmark.sh --chunk-ms \"160 480\" --teacher exp/teacher data/test exp/student_stream exp/bench.json

Measures the streaming student <model-dir> on <data-dir>, the delay of its tokens against the teacher's.

  --chunk-ms \"A B\"     chunk lengths in ms (default: 480)
  --teacher DIR        (needed)
  --others \"DIR ...\"    models whose size and speed are measured besides (default: none)
  --export DIR         the student's export, to be measured as well (default: none)"

chunk_ms=480
teacher=
others=
export=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"
[ -n "${teacher}" ] || fail "$0: --teacher is missing"

read -r -a chunks <<< "${chunk_ms}"
read -r -a models <<< "${teacher} ${others} $2"
python3 -m distill.bin.latency --model "$2" --teacher "${teacher}" --data_dir "$1" --chunk_ms "${chunks[@]}" \
    --output "$3"
exported=()
if [ -n "${export}" ]; then exported=(--export "${export}"); fi
python3 -m distill.bin.speed --models "${models[@]}" "${exported[@]}" --data_dir "$1" --chunk_ms "${chunks[@]}" \
    --output "$3"
