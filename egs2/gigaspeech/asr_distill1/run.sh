#!/usr/bin/env bash
# GigaSpeech, 10 to 10,000 h. ./run.sh --help lists every option; README.md describes the subsets and the cost.
#   ./run.sh --local_data_opts "--gigaspeech /corpora/GigaSpeech --subset XL"
set -euo pipefail
cd "$(dirname "$0")"

./distill.sh \
    --train_set train --valid_set valid --test_sets "dev test" \
    --token_type bpe --nbpe 500 \
    --teacher_init_config conf/train_teacher_init.yaml --teacher_targets online \
    --student conf/students/s3.yaml --no_kd false \
    --latencies "160 320 480 960 full" --scoring gigaspeech \
    --ngpu 8 --nj 32 \
    --plan_options "--corpus GigaSpeech-XL --hours 10000 --utterances 8282988 --test_hours 52" \
    "$@"
