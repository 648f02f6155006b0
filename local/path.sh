# shellcheck shell=bash
# Sourced: puts the project's Python, ESPnet's and Kaldi's small scripts and sclite on PATH, wherever it is called from.
# Job wrappers (queue.pl ...) that are on PATH already come before ESPnet's.
DISTILL_ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
export DISTILL_ROOT
# With one of these a checkpoint may run code
for unsafe in ESPNET_ALLOW_UNSAFE_TORCH_LOAD TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD; do
    if [ "${!unsafe:-0}" != 0 ]; then echo "note: ${unsafe} is ignored: it would let a checkpoint run code" >&2; fi
    unset "${unsafe}"
done
# A script that was called by another one finds everything prepared.
if [ "${DISTILL_READY:-}" != "${DISTILL_ROOT} $(command -v python3)" ]; then
    distill_python=$(make -s -C "${DISTILL_ROOT}" python) || exit 2
    ESPNET_ROOT=$("${DISTILL_ROOT}/utils/get_espnet.sh") || exit 2
    PATH="$(dirname "${distill_python}"):${PATH}:${ESPNET_ROOT}/egs2/TEMPLATE/asr1/utils:/usr/lib/sctk/bin"
    DISTILL_READY="${DISTILL_ROOT} $(command -v python3)"
    export ESPNET_ROOT PATH DISTILL_READY
    export PYTHONPATH="${DISTILL_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
fi
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Within a job of slurm: since its version 22.05 srun does not know by itself how many cores the job has for a task.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK}; fi
