#!/usr/bin/env bash
# Stage 9 of a recipe: the length of every utterance, by which a training makes its batches.
set -euo pipefail

help_message="Usage: local/collect_stats.sh [options] <config> <train-dir> <valid-dir> <stats-dir>
 e.g.: local/collect_stats.sh --token-list data/phones/tokens.txt --token-type phn --train-text text.phn \\
           conf/train_teacher.yaml data/train data/dev exp/stats

One <stats-dir> serves every training on the same data. <config> is any of these trainings' configurations.

  --token-list FILE    one token on each line, the first is blank (needed)
  --token-type TYPE    char, bpe, word or phn (default: word)
  --bpemodel FILE      sentencepiece model of bpe tokens
  --train-text NAME    text file of the data directories (default: text)"

token_list=
token_type=word
bpemodel=
train_text=text
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 4 "$@"
[ -n "${token_list}" ] || fail "$0: --token-list is missing"

config=$1 train=$2 valid=$3 dir=$4
for data in "${train}" "${valid}"; do
    for table in wav.scp "${train_text}"; do
        [ -s "${data}/${table}" ] || fail "${data}/${table}: not found, or empty"
    done
done
mkdir -p "${dir}"
log=${dir}/stats.log
python3 -m distill.bin.train --collect_stats true --ngpu 0 --config "${config}" --output_dir "${dir}" \
    --use_preprocessor true --cleaner none --g2p none \
    --token_list "${token_list}" --token_type "${token_type}" --bpemodel "${bpemodel:-none}" \
    --train_shape_file "${train}/wav.scp" --valid_shape_file "${valid}/wav.scp" \
    --train_data_path_and_name_and_type "${train}/wav.scp,speech,sound" \
    --train_data_path_and_name_and_type "${train}/${train_text},text,text" \
    --valid_data_path_and_name_and_type "${valid}/wav.scp,speech,sound" \
    --valid_data_path_and_name_and_type "${valid}/${train_text},text,text" > "${log}" 2>&1 ||
    { tail -n 5 "${log}" >&2; exit 2; }
