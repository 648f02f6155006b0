#!/usr/bin/env bash
# What run.sh --dry_run true prints: the cost of a recipe before anything is run.
set -euo pipefail

help_message="Usage: local/plan.sh [options] <teacher-config> <student-full-config> <student-stream-config>
 e.g.: local/plan.sh --ngpu 4 --plan-options \"--hours 960 --test_hours 20\" conf/train_teacher.yaml \\
           conf/train_student_full.yaml conf/train_student_stream.yaml

Prints disk and GPU-hours of every stage of a recipe with these training configurations, by formulae.

  --teacher DIR                a teacher that is trained already; its size counts (default: none)
  --teacher-init-config FILE   first training of a teacher (default: none)
  --teacher-targets WHERE      stored or online (default: stored)
  --target-dtype TYPE          of stored targets: float32, float16, compressed or codebook (default: float32)
  --token-list FILE            tokens, if they are there already
  --vocab N                    number of tokens if they are not (default: 30, about that of characters)
  --utt2num-samples FILE       lengths of the training utterances, if they are counted already
  --test-utt2num-samples \"FILE ...\"  the same of the test sets
  --no-kd true                 the same student is trained without a teacher as well (default: false)
  --ngpu N                     GPUs of all nodes; 0: on the CPU (default: 0)
  --latencies N                number of chunk lengths that are recognised (default: 4)
  --plan-options STR           the corpus's size and more; distill.bin.plan has them all"

teacher=
teacher_init_config=
teacher_targets=stored
target_dtype=float32
token_list=
vocab=30
utt2num_samples=
test_utt2num_samples=
no_kd=false
ngpu=0
latencies=4
plan_options=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"

options=(--teacher_config "$1" --student_full_config "$2" --student_stream_config "$3"
    --teacher_targets "${teacher_targets}" --target_dtype "${target_dtype}" --latencies "${latencies}")
if [ -n "${teacher}" ]; then
    options+=(--teacher "${teacher}")
elif [ -n "${teacher_init_config}" ]; then
    options+=(--teacher_init_config "${teacher_init_config}")
fi
if [ -e "${token_list}" ]; then vocab=$(wc -l < "${token_list}"); fi
if [ -e "${utt2num_samples}" ]; then options+=(--utt2num_samples "${utt2num_samples}"); fi
if [ -n "${test_utt2num_samples}" ]; then
    read -r -a tests <<< "${test_utt2num_samples}"
    options+=(--test_utt2num_samples "${tests[@]}")
fi
if ${no_kd}; then options+=(--no_kd); fi
options+=(--vocab "${vocab:-30}" --ngpu "${ngpu}")
# shellcheck disable=SC2086
python3 -m distill.bin.plan "${options[@]}" ${plan_options}
