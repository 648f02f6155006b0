#!/usr/bin/env bash
# speechocean762: read English of learners, half of them children. ./run.sh --help lists every option; README.md describes the sets.
set -euo pipefail
cd "$(dirname "$0")"
five_hours=../../mini_librispeech/asr_distill1 # networks of five hours of LibriSpeech: 2.2 are too little to begin at random

./distill.sh \
    --train_set train --valid_set valid --test_sets test \
    --token_type char --ngram_order 3 --max_wav_duration 20 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --from_scratch small --teacher_init "${five_hours}/teacher" --allow_bad_teacher true \
    --teacher_args "--max_epoch 5 --num_iters_per_epoch 400 --batch_bins 320000 --optim_conf lr=0.0005 --scheduler_conf max_steps=2000" \
    --student_full_args "--init ${five_hours}/student --max_epoch 8 --optim_conf lr=0.001 --scheduler_conf max_steps=2400" \
    --latencies "160 320 480 960 full" --decoders "greedy wfst" --decode_options "--wfst_beam 10" \
    --nj 2 \
    "$@"
