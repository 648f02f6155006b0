#!/usr/bin/env bash
# Distil a large recogniser of this corpus into a small streaming one. ./run.sh --help lists every option.
set -euo pipefail
cd "$(dirname "$0")"

./distill.sh \
    --train_set train \
    --valid_set valid \
    --test_sets "test" \
    --token_type bpe --nbpe 500 \
    --teacher_init_config conf/train_teacher_init.yaml \
    --nj 4 \
    "$@"
