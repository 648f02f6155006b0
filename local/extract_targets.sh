#!/usr/bin/env bash
# Stage 8 of a recipe: store what students want of their teacher.
set -euo pipefail

help_message="Usage: local/extract_targets.sh [options] <data-dir> <teacher-dir> <targets-dir>
 e.g.: local/extract_targets.sh --student-configs conf/train_student_full.yaml --graph exp/graph/den.npz --nj 8 \\
           --cmd queue.pl data/train exp/teacher exp/targets/train

Runs the teacher over <data-dir> and stores hidden layers and logits as Kaldi arks, before which it prints the space and
time they take. Called again it makes only shards that are missing, or were made from another teacher or other audio.

  --student-configs \"A B\"   training configurations of the students, which say what is stored (default: every layer)
  --graph FILE              denominator graph, for students with posterior_top_k or nbest
  --dtype TYPE              float32, float16, compressed or codebook (default: float32); codebooks are trained on the
                            first data set, in <targets-dir>/../codebooks.npz, and used by all that have this parent
  --show-streams true       only print what would be stored
  --check true              only check that what is stored is whole and of this teacher and audio; exit status 2 if not
  --cmd CMD, --nj N         how jobs are run, and how many (default: run.pl, 4)
  --ngpu N                  GPUs, with a job on each; 0: run on the CPU (default: the GPUs of this machine)"

student_configs=
graph=
dtype=float32
show_streams=false
check=false
cmd=run.pl
nj=4
ngpu=
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"
on_gpus

data=$1 teacher=$2 dir=$3
read -r -a configs <<< "${student_configs}"
extract=(
    python3 -m distill.bin.extract_targets --teacher "${teacher}" --dtype "${dtype}" --device "${device}"
    --num_jobs "${nj}" --wav_scp "${data}/wav.scp" --output "${dir}"
)
if [ -n "${student_configs}" ]; then extract+=(--student_config "${configs[@]}"); fi
if [ -n "${graph}" ]; then extract+=(--graph "${graph}"); fi
if ${show_streams}; then exec "${extract[@]}" --show_streams; fi
if ${check}; then exec "${extract[@]}" --check; fi
"${extract[@]}" --plan
# shellcheck disable=SC2086
if [ "${dtype}" = codebook ]; then ${cmd} "${dir}/log/codebooks.log" "${extract[@]}" --train_codebooks; fi
# shellcheck disable=SC2086
python3 -m distill.bin.watch_jobs --logs "${dir}/log/extract.*.log" -- \
    ${cmd} JOB=1:"${nj}" "${dir}/log/extract.JOB.log" "${extract[@]}" --job JOB
"${extract[@]}" --merge
