#!/usr/bin/env bash
# LibriSpeech, 960 h. ./run.sh --help lists every option; README.md describes the sets and the cost.
#   ./run.sh --local_data_opts "--librispeech /corpora/LibriSpeech"
set -euo pipefail
cd "$(dirname "$0")"

./distill.sh \
    --train_set train --valid_set valid --test_sets "dev_clean dev_other test_clean test_other" \
    --token_type bpe --nbpe 500 --max_wav_duration 30 \
    --teacher_init_config conf/train_teacher_init.yaml --teacher_targets online \
    --student conf/students/s3.yaml --no_kd false \
    --latencies "160 320 480 960 full" \
    --ngpu 4 --nj 16 \
    --plan_options "--corpus LibriSpeech-960 --hours 960.9 --utterances 281241 --test_hours 21.2" \
    "$@"
