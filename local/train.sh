#!/usr/bin/env bash
# Stages 7, 10 and 11 of a recipe: train a teacher or a student.
set -euo pipefail

help_message="Usage: local/train.sh [options] <config> <train-dir> <valid-dir> <exp-dir>
 e.g.: local/train.sh --token-list data/phones/tokens.txt --token-type phn --train-text text.phn \\
           --graph exp/graph/den.npz --teacher exp/teacher --ngpu 1 --cmd \"queue.pl --gpu 1\" \\
           conf/train_student_full.yaml data/train data/dev exp/student_full

Trains the network that <config> describes, a teacher or a student, on Kaldi data directories whose wav.scp names
one-channel audio files of 16 kHz. Called again it goes on from its last checkpoint. The log is <exp-dir>/train.log.

Data
  --token-list FILE      one token on each line, the first is blank (needed)
  --token-type TYPE      char, bpe, word or phn (default: word)
  --bpemodel FILE        sentencepiece model of bpe tokens
  --train-text NAME      text file of the data directories (default: text)
  --stats-dir DIR        made by local/collect_stats.sh (default: <exp-dir>/stats, made if it is not there)
  --max-seconds S        leave longer training utterances out; auto: all but the shortest 30 %, or 300 (default: none)
What is learnt from
  --graph FILE           denominator graph (local/make_graph.sh)
  --teacher DIR          the trained teacher of a student; without it the student learns from the text alone
  --train-targets DIR, --valid-targets DIR
                         the teacher's stored outputs (local/extract_targets.sh); without them it runs in the training
  --second-teacher DIR   another teacher, which runs in the training
  --init DIR             begin with the weights of this training
  --train-args STR       more, such as \"--max_epoch 10 --distill_conf alpha=0.5\"; distill.bin.train has them all
Machine
  --cmd CMD              how the job is run: run.pl or a scheduler's wrapper (default: run.pl)
  --ngpu N, --num-nodes N    GPUs of each node, and nodes; 0 GPUs trains on the CPU (default: this machine's GPUs, 1).
                         Each takes batches of the configuration's batch_bins, and computes in bfloat16
  --threads N            CPU threads of a node (default: all cores)
  --seed N               (default: 0)"

token_list=
token_type=word
bpemodel=
train_text=text
stats_dir=
max_seconds=
graph=
teacher=
train_targets=
valid_targets=
second_teacher=
init=
train_args=
cmd=run.pl
ngpu=
num_nodes=1
threads=$(nproc)
seed=0
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/options.sh"
arguments 4 "$@"
[ -n "${token_list}" ] || fail "$0: --token-list is missing"
gpus=$(gpus_here) ngpu=${ngpu:-${gpus}}
if [ "${cmd%% *}" = run.pl ] && [ "${ngpu}" -gt "${gpus}" ]; then
    fail "--ngpu ${ngpu}: this machine has ${gpus} GPUs; give --ngpu ${gpus}, or a scheduler's wrapper as --cmd"
fi
if [ "${ngpu}" -gt 1 ]; then threads=$(((threads + ngpu - 1) / ngpu)); fi # each GPU's process has its share
if [ -n "${train_targets}" ] && [ -z "${valid_targets}" ]; then fail "$0: --train-targets needs --valid-targets"; fi

config=$1 train=$2 valid=$3 dir=$4
log=${dir}/train.log
mkdir -p "${dir}"
stats=${stats_dir:-${dir}/stats}
if [ ! -e "${stats}/valid/speech_shape" ]; then
    "${here}/collect_stats.sh" "${train}" "${valid}" "${stats}"
fi
shapes=${stats}/train/speech_shape
if [ -n "${max_seconds}" ]; then
    shapes=${dir}/train_shape
    if [ "${max_seconds}" = auto ]; then
        max_seconds=$(sort -n -k 2 "${stats}/train/speech_shape" | awk '{ samples[NR] = $2 } END {
            count = int(0.3 * NR); if (count < 300) count = 300; if (count > NR) count = NR
            printf "%.8g\n", samples[count] / 16000 }')
        log "training on utterances of at most ${max_seconds} s"
    fi
    awk -v most="${max_seconds}" '$2 <= 16000 * most + 0.5' "${stats}/train/speech_shape" > "${shapes}"
    [ -s "${shapes}" ] || fail "--max-seconds ${max_seconds}: no utterance of ${train} is that short"
fi

# ESPnet's trainer with this project's task; options given later win.
trainer=(
    python3 -m distill.bin.train --config "${config}" --output_dir "${dir}"
    --ngpu "${ngpu}" --seed "${seed}" --resume true --use_preprocessor true --cleaner none --g2p none
    --token_list "${token_list}" --token_type "${token_type}" --bpemodel "${bpemodel:-none}"
    --train_data_path_and_name_and_type "${train}/wav.scp,speech,sound"
    --train_data_path_and_name_and_type "${train}/${train_text},text,text"
    --valid_data_path_and_name_and_type "${valid}/wav.scp,speech,sound"
    --valid_data_path_and_name_and_type "${valid}/${train_text},text,text"
    --train_shape_file "${shapes}" --valid_shape_file "${stats}/valid/speech_shape"
)
if [ -n "${graph}" ]; then trainer+=(--distill_conf "graph=${graph}"); fi
if [ -n "${init}" ]; then trainer+=(--init "${init}"); fi
if [ -n "${teacher}" ]; then
    kind=online
    if [ -n "${train_targets}" ]; then kind=stored; fi
    trainer+=(--teacher "${teacher}" --teacher_targets "${kind}")
fi
if [ -n "${second_teacher}" ]; then trainer+=(--second_teacher "${second_teacher}"); fi
if [ -n "${train_targets}" ]; then
    trainer+=(--train_targets "${train_targets}" --valid_targets "${valid_targets}")
fi
read -r -a more <<< "${train_args}"
trainer+=("${more[@]}")

if [ "${ngpu}" -gt 1 ] || [ "${cmd}" != run.pl ]; then
    # ESPnet's launcher: one process for each GPU, on one node or several
    wrapper="${cmd} --name ${dir##*/}"
    if [ "${ngpu}" = 0 ]; then wrapper+=" --num_threads ${threads}"; fi
    log "training in ${dir}, log in ${log}"
    python3 -m espnet2.bin.launch --cmd "${wrapper}" --log "${log}" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
        --init_file_prefix "${dir}/.dist_init_" --multiprocessing_distributed true -- \
        env OMP_NUM_THREADS="${threads}" "${trainer[@]}" ||
        fail "${log}: the training failed; its end: $(tail -n 3 "${log}" | tr '\n' ' ')"
else
    OMP_NUM_THREADS=${threads} python3 -m distill.bin.watch --log "${log}" -- "${trainer[@]}"
fi
