#!/usr/bin/env bash
# Stage 9 of a recipe: the length of every utterance, by which a training makes its batches.
set -euo pipefail

help_message="Usage: local/collect_stats.sh <train-dir> <valid-dir> <stats-dir>
 e.g.: local/collect_stats.sh data/train data/dev exp/stats

Writes <stats-dir>/train/speech_shape and <stats-dir>/valid/speech_shape: the number of samples of each utterance, from
utt2num_samples of the data directory or else from the audio files' headers. One <stats-dir> serves every training on the
same data."

. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"

python3 -m distill.bin.utterance_lengths --data "$1" --output "$3/train/speech_shape"
python3 -m distill.bin.utterance_lengths --data "$2" --output "$3/valid/speech_shape"
