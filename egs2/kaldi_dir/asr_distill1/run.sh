#!/usr/bin/env bash
# Distil on any Kaldi data directories, as they are. ./run.sh --help lists every option; README.md has the rest.
#   ./run.sh --source_train /corpus/train --source_valid /corpus/dev --source_test "/corpus/test_a clean=/corpus/test_b"
set -euo pipefail
cd "$(dirname "$0")"

train='' valid='' tests='' options=() missing=false
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || case "$1" in --source_*) echo "error: $1: needs a value; README.md says which" >&2; exit 2 ;; esac
    case "$1" in
        -h | --help)
            echo "Beside the options below: --source_train DIR, --source_valid DIR (default: speakers of the former),"
            echo "--source_test DIR or NAME=DIR, which may be repeated"
            echo
            options+=(--help)
            shift
            ;;
        --source_train) train=$2; shift 2 ;;
        --source_valid) valid=$2; shift 2 ;;
        --source_test) tests+=" $2"; shift 2 ;;
        --source_*)
            echo "error: $1: no such option; --source_train, --source_valid or --source_test" >&2
            missing=true options+=(--check true) # what else is wrong is listed as well
            shift 2
            ;;
        *) options+=("$1"); shift ;;
    esac
done
for directory in ${train} ${valid} ${tests}; do
    if [ ! -d "${directory#*=}" ]; then
        echo "error: ${directory#*=}: no such directory; correct the --source option" >&2
        missing=true options+=(--check true)
    fi
done
if [ -n "${train}${valid}${tests}" ]; then
    for option in train test; do
        given=${train}
        if [ "${option}" = test ]; then given=${tests}; fi
        if [ -z "${given}" ]; then
            echo "error: --source_${option}: is missing; give the Kaldi data directory of the ${option} set" >&2
            missing=true options+=(--check true)
        fi
    done
fi
names=
for directory in ${tests}; do # DIR, named after its last part, or NAME=DIR
    case "${directory}" in *=*) names+="${directory%%=*} " ;; *) names+="$(basename "${directory}") " ;; esac
done
if ${missing}; then exec > /dev/null; fi

./distill.sh \
    --train_set train --valid_set valid --test_sets "${names:-test}" \
    --local_data_opts "${train:+--train ${train}} ${valid:+--valid ${valid}} ${tests:+--test ${tests}}" \
    --token_type bpe --nbpe 500 --latencies "160 320 480 960 full" \
    --teacher_init_config conf/train_teacher_init.yaml --teacher_targets online \
    --student conf/students/s3.yaml --no_kd false \
    --nj 8 \
    "${options[@]}"
if ${missing}; then exit 2; fi
