#!/usr/bin/env bash
# A synthesised many-voiced command corpus, small enough for a laptop. ./run.sh --help lists every option; besides
# --train_teacher true trains the teacher anew instead of taking the one in teacher/.
set -euo pipefail
cd "$(dirname "$0")"

teacher=(--teacher teacher)
options=()
while [ $# -gt 0 ]; do
    if [ "$1" = --train_teacher ]; then
        case "${2:-}" in
            true) teacher=() ;;
            false) ;;
            *) echo "error: run.sh: --train_teacher ${2:-}: true or false" >&2; exit 2 ;;
        esac
        shift 2
    else
        options+=("$1")
        shift
    fi
done

recipe=(
    ./distill.sh
    --train_set train
    --valid_set valid
    --test_sets "test"
    --token_type word
    --ngram_order 2
    --audio_format wav
    --teacher_init_config conf/train_teacher_init.yaml --teacher_init_max_s 1.6
    --teacher_config conf/train_teacher.yaml
    "${teacher[@]}"
    --student_full_config conf/train_student_full.yaml
    --student_stream_config conf/train_student_stream.yaml
    --no_kd false
    --ngpu 0 --nj 2
)
"${recipe[@]}" "${options[@]}"
if [ ${#options[@]} -eq 0 ]; then
    "${recipe[@]}" --stage 15 --stop_stage 15
    . ./path.sh
    echo
    echo "Beside the paper (arXiv 2303.09278):"
    python3 "${DISTILL_ROOT}/utils/closing_table.py"
fi
