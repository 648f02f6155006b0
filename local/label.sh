#!/usr/bin/env bash
# Stage 3 of a recipe with --unlabelled true: the words that a teacher recognises become the training text.
set -euo pipefail

help_message="Usage: local/label.sh [options] <data-dir> <model-dir> <label-dir>
 e.g.: local/label.sh --nj 8 --cmd queue.pl data/train_unlabelled exp/teacher exp/labels

Recognises <data-dir> with a model of this toolkit, or one in Hugging Face's format, and writes what it recognised as
<data-dir>/text. Utterances in which it recognises no word are left out of the text. Intermediate results are in
<label-dir>; called again it makes only what is missing there.

  --cmd CMD, --nj N    how jobs are run, and how many (default: run.pl, 4)
  --ngpu N             GPUs, with a job on each; 0: run on the CPU (default: the GPUs of this machine)"

cmd=run.pl
nj=4
ngpu=
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/options.sh"
arguments 3 "$@"

data=$1 model=$2 dir=$3
if [ -d "${model}" ] && [ ! -e "${model}/config.yaml" ]; then
    "${here}/adopt_teacher.sh" "${model}" "${dir}/teacher"
    model=${dir}/teacher
fi
"${here}/decode.sh" --cmd "${cmd}" --nj "${nj}" --ngpu "${ngpu}" "${data}" "${model}" "${dir}"
awk 'NF > 1' "${dir}/decode_full/$(basename "${data}")/text" > "${dir}/text"
[ -s "${dir}/text" ] || fail "$2: recognises no word in ${data}; is it a recogniser of this language?"
mv "${dir}/text" "${data}/text"
log "the teacher's words are the text of $(wc -l < "${data}/text") utterances of ${data}"
