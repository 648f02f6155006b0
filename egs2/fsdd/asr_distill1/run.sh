#!/usr/bin/env bash
# Connected digits spliced from FSDD's real recordings. ./run.sh --help lists every option; README.md describes the sets.
set -euo pipefail
cd "$(dirname "$0")"

./distill.sh \
    --train_set train \
    --valid_set valid \
    --test_sets "test test_isolated test_unseen" \
    --token_type word \
    --ngram_order 2 \
    --audio_format wav \
    --teacher_init_config conf/train_teacher_init.yaml --teacher_init_max_s 1.6 \
    --teacher_config conf/train_teacher.yaml \
    --student_full_config conf/train_student_full.yaml \
    --student_stream_config conf/train_student_stream.yaml \
    --latencies "160 320 480 960 full" \
    --ngpu 0 --nj 2 \
    "$@"
