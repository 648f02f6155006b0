#!/usr/bin/env bash
# Posteriors of our models for Kaldi's decoders.
set -euo pipefail

help_message="Usage: local/compute_posteriors.sh [options] <data-dir> <model-dir> <wspecifier>
 e.g.: local/compute_posteriors.sh data/test exp/student_stream ark:- |
           decode-faster --acoustic-scale=1.0 exp/graph/TLG.fst ark:- ark,t:exp/test.tra
       local/compute_posteriors.sh --mean true data/train exp/student_stream exp/student_stream/priors.vec

Writes a matrix for each utterance of <data-dir>: a row for each frame (20 or 40 ms), a column for each token, natural
logarithms. Column j belongs to input label j + 1 of a decoding graph; CTC's blank is column 0. <wspecifier> is
ark:FILE, ark,scp:FILE,FILE, or ark:- for a pipe. With several jobs it must contain JOB, such as ark:exp/post.JOB.ark.

  --chunk-ms N         chunk length of a streaming student in ms; full: every frame sees the whole utterance
                       (default: full)
  --priors FILE        write log-likelihoods: posteriors divided by these priors, a Kaldi vector in text form
  --prior-scale S      power of the priors (default: 1)
  --mean true          write the mean posteriors of the data to the file <wspecifier> instead, for --priors
  --batch-seconds S    padded audio that is computed at once (default: 60)
  --device DEVICE      cpu or cuda (default: cpu)
  --threads N          CPU threads of a job (default: 1)
  --cmd CMD, --nj N    how jobs are run, and how many; with --nj 1 it runs here (default: run.pl, 1)"

chunk_ms=full
priors=
prior_scale=1
mean=false
batch_seconds=60
device=cpu
threads=1
cmd=run.pl
nj=1
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/options.sh"
arguments 3 "$@"

data=$1 model=$2 wspecifier=$3
compute=(
    env OMP_NUM_THREADS="${threads}" python3 -m distill.bin.compute_posteriors --model "${model}" --data_dir "${data}"
    --chunk_ms "${chunk_ms}" --prior_scale "${prior_scale}" --batch_seconds "${batch_seconds}" --device "${device}"
    --output "${wspecifier}"
)
if [ -n "${priors}" ]; then compute+=(--priors "${priors}"); fi
if ${mean}; then compute+=(--mean); fi
if [ "${nj}" = 1 ]; then exec "${compute[@]}"; fi
if ${mean} || [[ "${wspecifier}" != *JOB* ]]; then
    fail "$0: --nj ${nj}: needs JOB in ${wspecifier}, such as ark:post.JOB.ark, and goes without --mean"
fi
log_dir=${model}/log
if [ ! -d "${model}" ]; then log_dir=$(dirname "${model}")/log; fi
# shellcheck disable=SC2086
python3 -m distill.bin.watch_jobs --logs "${log_dir}/posteriors_${data##*/}.*.log" -- \
    ${cmd} JOB=1:"${nj}" "${log_dir}/posteriors_${data##*/}.JOB.log" "${compute[@]}" --job JOB --num_jobs "${nj}"
