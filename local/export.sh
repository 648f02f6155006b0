#!/usr/bin/env bash
# Stage 15 of a recipe: a streaming student for devices.
set -euo pipefail

help_message="Usage: local/export.sh [options] <data-dir> <model-dir> <export-dir>
 e.g.: local/export.sh --chunk-ms 480 data/test exp/student_stream exp/export

Exports a streaming student to ONNX and sherpa-onnx, in float32 and int8, and compares what both say of <data-dir>
(several in quotes) with what the model says. <export-dir>/parity.json has the result.

  --chunk-ms \"A B\"     chunk lengths in ms, a model for each (default: 480)"

chunk_ms=480
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"

read -r -a data <<< "$1"
read -r -a chunks <<< "${chunk_ms}"
python3 -m distill.bin.export --model "$2" --data_dirs "${data[@]}" --chunk_ms "${chunks[@]}" --output "$3"
