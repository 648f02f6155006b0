#!/usr/bin/env bash
# Mini LibriSpeech: five hours of read English. ./run.sh --help lists every option; README.md describes the sets.
set -euo pipefail
cd "$(dirname "$0")"

./distill.sh \
    --train_set train --valid_set valid --test_sets test \
    --token_type char --ngram_order 3 --max_wav_duration 20 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --from_scratch small --teacher_init_max_s 6 --allow_bad_teacher true \
    --latencies "160 320 480 960 full" --decoders "greedy wfst" --decode_options "--wfst_beam 12" \
    --nj 2 \
    "$@"
